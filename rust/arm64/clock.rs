// SPDX-License-Identifier: GPL-2.0

//! The kernel's clock, read together with the counter.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use crate::linux::bindings;

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// CLOCK_REALTIME in nanoseconds.
    pub real_ns: u64,
    /// The physical counter.
    pub counter: u64,
}

/// Reads both at one moment. `None`: the kernel's clock is not the counter. Any context but NMI.
pub fn snapshot() -> Option<Snapshot> {
    let mut s = Snapshot {
        real_ns: 0,
        counter: 0,
    };
    // SAFETY: The results have room.
    let valid = unsafe { bindings::rvmm_read_clock(&mut s.real_ns, &mut s.counter) };
    valid.then_some(s)
}
