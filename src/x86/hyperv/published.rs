// SPDX-License-Identifier: GPL-2.0
//! What other CPUs see of a vCPU's SynIC, and leave there. Atomics, no lock.

use crate::nospec::Nospec;
use crate::x86::hyperv::defs::SINTS;
use crate::x86::hyperv::synic;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// A SynIC, for others than its vCPU.
pub(crate) struct Published {
    active: AtomicBool,
    sint: [AtomicU64; SINTS],
    /// Timers that are to be looked at, by bit.
    due: AtomicU32,
}

impl Published {
    /// One that is not active, all SINTs masked.
    pub(crate) fn new() -> Self {
        Self {
            active: AtomicBool::new(false),
            sint: [const { AtomicU64::new(synic::MASKED) }; SINTS],
            due: AtomicU32::new(0),
        }
    }

    /// Says what the registers are.
    pub(super) fn publish(&self, active: bool, sints: &[u64; SINTS]) {
        for (to, from) in self.sint.iter().zip(sints) {
            to.store(*from, Ordering::Relaxed);
        }
        self.active.store(active, Ordering::Release);
    }

    /// The vector of SINT number `n`, if interrupts can be sent there.
    pub(crate) fn vector(&self, n: usize) -> Option<u8> {
        if !self.active.load(Ordering::Acquire) {
            return None;
        }
        synic::vector_of(self.sint.get_nospec(n)?.load(Ordering::Relaxed))
    }

    /// Timer `n` is to be looked at; a request to the vCPU has to follow. Any context.
    pub(super) fn set_due(&self, n: u32) {
        self.due.fetch_or(1u32.wrapping_shl(n), Ordering::SeqCst);
    }

    /// Takes the timers that are to be looked at.
    pub(super) fn take_due(&self) -> u32 {
        self.due.swap(0, Ordering::SeqCst)
    }
}
