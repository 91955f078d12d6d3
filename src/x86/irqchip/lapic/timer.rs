// SPDX-License-Identifier: GPL-2.0
//! Timer of a local APIC: one-shot, periodic and TSC-deadline (SDM 3A 11.5.4).
#![forbid(unsafe_code)]

/// Shortest period of the periodic timer in nanoseconds; protects the host against interrupt storms.
pub const MIN_PERIOD_NS: u64 = 200_000;

/// When the owner has to call `timer_expired`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerArm {
    /// Nothing to wait for.
    Off,
    /// At this absolute time in nanoseconds, on the clock that the owner passes as `now`.
    AtNs(u64),
    /// When the guest's TSC reaches this value.
    AtTsc(u64),
}

/// Timer mode, LVT timer bits 18:17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerMode {
    /// Counts down once.
    OneShot,
    /// Reloads at zero.
    Periodic,
    /// Fires when the TSC reaches IA32_TSC_DEADLINE.
    TscDeadline,
}

impl TimerMode {
    /// Decodes an LVT timer register; the reserved encoding 3 acts as one-shot.
    pub const fn from_lvt(lvt: u32) -> Self {
        match (lvt >> 17) & 3 {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

/// The countdown. Times are absolute nanoseconds of the owner's clock.
#[derive(Clone, Debug)]
pub struct Timer {
    mode: TimerMode,
    /// Nanoseconds per count: bus clock times divisor.
    ns_per_count: u64,
    bus_ns: u32,
    initial: u32,
    /// Next time at which the count reaches zero.
    zero_at: Option<u64>,
    /// Armed TSC deadline; 0 is disarmed.
    tsc_deadline: u64,
}

impl Timer {
    /// A stopped timer in reset state. `bus_ns` is the period of the APIC bus clock (KVM: 1 ns).
    pub const fn new(bus_ns: u32) -> Self {
        Self {
            mode: TimerMode::OneShot,
            // Divide configuration 0 divides by two (SDM 3A figure 11-10).
            ns_per_count: 2 * bus_ns as u64,
            bus_ns,
            initial: 0,
            zero_at: None,
            tsc_deadline: 0,
        }
    }

    /// Back to reset state.
    pub fn reset(&mut self) {
        *self = Self::new(self.bus_ns);
    }

    /// Armed TSC deadline; 0 if disarmed or in another mode.
    pub const fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Period in nanoseconds.
    fn period(&self) -> u64 {
        let period = u64::from(self.initial).saturating_mul(self.ns_per_count);
        match self.mode {
            TimerMode::Periodic => period.max(MIN_PERIOD_NS),
            _ => period,
        }
    }

    /// Divisor of divide configuration register value `dcr`: 1 to 128.
    fn divisor(dcr: u32) -> u64 {
        let shift = ((dcr & 3) | ((dcr & 8) >> 1)).wrapping_add(1) & 7;
        1 << shift
    }

    /// The guest wrote the divide configuration: the remaining counts now last `dcr`'s time each.
    pub fn set_divide(&mut self, dcr: u32, now: u64) {
        let left = self.count(now);
        self.ns_per_count = Self::divisor(dcr).saturating_mul(u64::from(self.bus_ns));
        if self.zero_at.is_some() && left != 0 {
            self.zero_at =
                Some(now.saturating_add(u64::from(left).saturating_mul(self.ns_per_count)));
        }
    }

    /// The guest selected a mode. Entering or leaving TSC-deadline mode disarms (SDM 3A 11.5.4.1).
    /// Returns true when that happened, and the initial count has become zero.
    pub fn set_mode(&mut self, mode: TimerMode, now: u64) -> bool {
        if mode == self.mode {
            return false;
        }
        // Past periods are over before the new mode begins.
        self.catch_up(now);
        let old = core::mem::replace(&mut self.mode, mode);
        let disarm = old == TimerMode::TscDeadline || mode == TimerMode::TscDeadline;
        if disarm {
            self.initial = 0;
            self.zero_at = None;
            self.tsc_deadline = 0;
        }
        disarm
    }

    /// The guest wrote the initial count: starts the countdown, or stops it with 0.
    /// Ignored in TSC-deadline mode; returns whether it was taken.
    pub fn set_initial(&mut self, count: u32, now: u64) -> bool {
        self.restore(count, count, now)
    }

    /// Continues a countdown from `initial` that has `left` counts to go. With none left it is over at once, as on KVM:
    /// whoever saved that may not have noticed the end yet, and one interrupt too many is better than none.
    pub fn restore(&mut self, initial: u32, left: u32, now: u64) -> bool {
        if self.mode == TimerMode::TscDeadline {
            return false;
        }
        self.initial = initial;
        self.zero_at = match (initial, left) {
            (0, _) => None,
            (_, 0) if self.mode == TimerMode::OneShot => Some(now),
            (_, left) if left < initial => {
                Some(now.saturating_add(u64::from(left).saturating_mul(self.ns_per_count)))
            }
            _ => Some(now.saturating_add(self.period())),
        };
        true
    }

    /// The guest wrote IA32_TSC_DEADLINE; ignored outside TSC-deadline mode. Returns whether it was taken.
    pub fn set_tsc_deadline(&mut self, tsc: u64) -> bool {
        if self.mode != TimerMode::TscDeadline {
            return false;
        }
        self.tsc_deadline = tsc;
        true
    }

    /// Current count; 0 in TSC-deadline mode.
    pub fn count(&self, now: u64) -> u32 {
        let (Some(zero_at), Some(unit)) =
            (self.zero_at, core::num::NonZeroU64::new(self.ns_per_count))
        else {
            return 0;
        };
        let left = if zero_at > now {
            zero_at.wrapping_sub(now)
        } else if self.mode == TimerMode::Periodic {
            let period = self.period().max(1);
            period.wrapping_sub(now.wrapping_sub(zero_at) % period)
        } else {
            return 0;
        };
        // Rounded up: the count is zero only once the time is over.
        let counts = (left / unit).wrapping_add(u64::from(left % unit != 0));
        u32::try_from(counts).unwrap_or(u32::MAX).min(self.initial)
    }

    /// Moves `zero_at` behind `now`; returns whether zero was passed.
    fn catch_up(&mut self, now: u64) -> bool {
        let Some(zero_at) = self.zero_at else {
            return false;
        };
        if now < zero_at {
            return false;
        }
        self.zero_at = if self.mode == TimerMode::Periodic {
            let period = self.period().max(1);
            let over = now.wrapping_sub(zero_at) % period;
            Some(now.saturating_add(period.wrapping_sub(over)))
        } else {
            None
        };
        true
    }

    /// The countdown goes on as if it were `ns` nanoseconds earlier.
    pub fn delay(&mut self, ns: u64) {
        self.zero_at = self.zero_at.map(|at| at.wrapping_add(ns));
    }

    /// Forgets expiries that went by while the LVT entry was masked.
    pub fn skip_past(&mut self, now: u64) {
        self.catch_up(now);
    }

    /// The armed time was reached, or perhaps not: returns whether the timer really expired, and prepares the next
    /// period.
    pub fn expired(&mut self, now: u64, tsc: u64) -> bool {
        if self.mode != TimerMode::TscDeadline {
            return self.catch_up(now);
        }
        let fire = self.tsc_deadline != 0 && tsc >= self.tsc_deadline;
        if fire {
            self.tsc_deadline = 0;
        }
        fire
    }

    /// What to wait for. A masked countdown needs no wake-up; a masked TSC deadline does, to be disarmed in time.
    pub fn arm(&self, masked: bool) -> TimerArm {
        match (self.mode, self.zero_at) {
            (TimerMode::TscDeadline, _) if self.tsc_deadline != 0 => {
                TimerArm::AtTsc(self.tsc_deadline)
            }
            (TimerMode::OneShot | TimerMode::Periodic, Some(at)) if !masked => TimerArm::AtNs(at),
            _ => TimerArm::Off,
        }
    }
}
