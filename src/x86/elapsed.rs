// SPDX-License-Identifier: GPL-2.0
//! The time between two moments, by all the clocks that a guest's time hangs on.

use crate::linux::clock;
use crate::linux::hrtimer::ktime_get_ns;
use crate::x86::cpu::tsc::Scale;
use crate::x86::pv::kvmclock::Point;

/// One moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    base_ns: u64,
    tsc: u64,
    timer_ns: u64,
}

impl Moment {
    /// This one.
    pub(crate) fn now() -> Self {
        let s = clock::snapshot();
        Self {
            base_ns: s.base_ns,
            tsc: s.tsc,
            timer_ns: ktime_get_ns(),
        }
    }

    /// What has passed since.
    pub(crate) fn elapsed(&self) -> Elapsed {
        Elapsed {
            from: *self,
            to: Self::now(),
        }
    }
}

/// What passed between two moments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Elapsed {
    from: Moment,
    to: Moment,
}

impl Elapsed {
    /// By the clock and the TSC that VMs' clocks count by.
    pub(crate) fn point(&self) -> Point {
        Point {
            base_ns: self.to.base_ns.wrapping_sub(self.from.base_ns),
            tsc: self.to.tsc.wrapping_sub(self.from.tsc),
        }
    }

    /// Ticks of a guest's TSC. As if it had never started anew: see [`crate::x86::host_tsc`].
    pub(crate) fn ticks(&self, scale: Scale) -> u64 {
        scale
            .apply(self.to.tsc)
            .wrapping_sub(scale.apply(self.from.tsc))
    }

    /// Nanoseconds of the host's timers.
    pub(crate) fn timer_ns(&self) -> u64 {
        self.to.timer_ns.wrapping_sub(self.from.timer_ns)
    }
}
