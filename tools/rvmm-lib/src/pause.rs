// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pausing a running machine, and letting it go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::hold::{Ended, Hold};

struct Shared {
    hold: Mutex<Hold>,
    paused: AtomicBool,
}

/// Pauses a running machine from another thread: its CPUs stand still. Devices finish what they have been asked for.
#[derive(Clone)]
pub struct Pause(Arc<Shared>);

impl Pause {
    pub(crate) fn new(hold: Hold) -> Self {
        Self(Arc::new(Shared {
            hold: Mutex::new(hold),
            paused: AtomicBool::new(false),
        }))
    }

    /// Stops the CPUs, and comes back when all have stopped: one that waits for the reader of the machine's output
    /// stops when that has read. A machine that is paused stays so.
    ///
    /// # Errors
    ///
    /// The machine has ended.
    pub fn pause(&self) -> Result<(), Ended> {
        let hold = self.0.hold.lock().unwrap_or_else(PoisonError::into_inner);
        hold.stop()?;
        self.0.paused.store(true, Ordering::Release);
        Ok(())
    }

    /// Lets the CPUs go on. A guest with kvmclock learns that it has stood still, so that it does not take that for a
    /// fault of its own. A machine that is not paused is left alone.
    ///
    /// # Errors
    ///
    /// The machine has ended.
    pub fn resume(&self) -> Result<(), Ended> {
        let hold = self.0.hold.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_paused() {
            return Ok(());
        }
        for id in 0..hold.vcpus() {
            // EINVAL: the guest has no such clock.
            hold.on(id, |fd| fd.kvmclock_ctrl().ok())?;
        }
        self.0.paused.store(false, Ordering::Release);
        hold.go();
        Ok(())
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.0.paused.load(Ordering::Acquire)
    }
}
