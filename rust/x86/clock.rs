// SPDX-License-Identifier: GPL-2.0

//! The kernel's clocks, read together with the TSC.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use crate::linux::bindings;

/// Clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Nanoseconds since boot, suspended time included, at the rate of CLOCK_MONOTONIC_RAW.
    pub base_ns: u64,
    /// CLOCK_REALTIME in nanoseconds.
    pub real_ns: u64,
    /// TSC of this CPU.
    pub tsc: u64,
    /// The kernel's clock is the TSC: all three were read at the same tick of it. Else they were read one after the
    /// other.
    pub tsc_based: bool,
}

/// Reads the clocks. Process context; not while the machine is suspended.
pub fn snapshot() -> Snapshot {
    let mut s = bindings::rvmm_clocks::default();
    // SAFETY: The result has room.
    unsafe { bindings::rvmm_read_clocks(&mut s) };
    Snapshot {
        base_ns: s.base_ns,
        real_ns: s.real_ns,
        tsc: s.tsc,
        tsc_based: s.tsc_based,
    }
}
