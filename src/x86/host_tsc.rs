// SPDX-License-Identifier: GPL-2.0
//! The host's TSC over system sleep. Processors may start it anew on the way back, or another machine may have slept
//! (hibernation): then all that counts by it stands too far ahead.
//!
//! vCPUs and the clocks of VMs compare [`lost`] with what they knew, before they use the TSC. Nobody runs a guest
//! meanwhile: user space is frozen.

use crate::linux::boot_cpu;
use core::sync::atomic::{AtomicU64, Ordering};

/// TSC of the boot CPU when the machine went to sleep.
static ASLEEP: AtomicU64 = AtomicU64::new(0);

static LOST: AtomicU64 = AtomicU64::new(0);

/// The machine goes to sleep.
pub(crate) fn suspend() {
    ASLEEP.store(boot_cpu::rdtsc(), Ordering::Relaxed);
}

/// It has woken up.
pub(crate) fn resume() {
    let lost = ASLEEP
        .load(Ordering::Relaxed)
        .saturating_sub(boot_cpu::rdtsc());
    if lost != 0 {
        LOST.fetch_add(lost, Ordering::Relaxed);
    }
}

/// Ticks by which the TSC is behind where it would be without restarts.
#[inline]
pub(crate) fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}
