// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pausing a running machine, and letting it go on.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::arm64::Fork;
use crate::hold::{Ended, Hold};

struct Shared {
    hold: Mutex<Hold>,
    paused: AtomicBool,
}

/// Pauses a running machine from another thread: its CPUs stand still, its counter of time does not. Devices finish
/// what they have been asked for.
#[derive(Clone)]
pub struct Pause(Arc<Shared>);

impl Pause {
    pub(crate) fn new(hold: Hold) -> Self {
        Self(Arc::new(Shared {
            hold: Mutex::new(hold),
            paused: AtomicBool::new(false),
        }))
    }

    fn hold(&self) -> MutexGuard<'_, Hold> {
        self.0.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the CPUs, and comes back when all have stopped. A machine that is paused stays so.
    ///
    /// # Errors
    ///
    /// The machine has ended.
    pub fn pause(&self) -> Result<(), Ended> {
        self.hold().stop()?;
        self.0.paused.store(true, Ordering::Release);
        Ok(())
    }

    /// Lets the CPUs go on. A machine that is not paused is left alone.
    ///
    /// # Errors
    ///
    /// The machine has ended.
    pub fn resume(&self) -> Result<(), Ended> {
        let hold = self.hold();
        if self.0.paused.swap(false, Ordering::AcqRel) {
            hold.go();
        }
        Ok(())
    }

    /// Waits for who is at it.
    pub(crate) fn wait(&self) {
        drop(self.hold());
    }

    /// Saves nothing.
    ///
    /// # Errors
    ///
    /// A sentence.
    pub fn save(&self, _: &Path) -> Result<(), String> {
        Err("a machine on Arm64 cannot be saved yet".into())
    }

    /// Makes nothing that others could go on from.
    ///
    /// # Errors
    ///
    /// A sentence.
    pub fn fork(&self, _: &Path) -> Result<Fork, String> {
        Err("no machines go on from one on Arm64 yet".into())
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.0.paused.load(Ordering::Acquire)
    }
}
