// SPDX-License-Identifier: GPL-2.0
//! Times that a vCPU adapts to its guest: how long it polls in HLT before its thread sleeps.
#![forbid(unsafe_code)]

/// The module parameters `halt_poll_ns` (or what user space wants of a VM), `halt_poll_ns_grow`,
/// `halt_poll_ns_grow_start` and `halt_poll_ns_shrink`, as KVM has them (Documentation/virt/kvm/halt-polling.rst).
#[derive(Clone, Copy, Debug)]
pub struct PollLimits {
    /// No poll is longer, in nanoseconds.
    pub max: u32,
    /// Factor by which polls get longer; 0: they do not.
    pub grow: u32,
    /// The shortest poll.
    pub grow_start: u32,
    /// Divisor by which polls get shorter; 0: there are none at once.
    pub shrink: u32,
}

/// How long a halted vCPU polls for an event, in nanoseconds. Halts that a longer poll would have covered make it
/// longer, halts that no poll covers make it shorter.
#[derive(Clone, Copy, Debug, Default)]
pub struct HaltPoll(u32);

impl HaltPoll {
    /// For how long to poll now; 0: not at all.
    pub fn begin(&mut self, limits: &PollLimits) -> u32 {
        self.0 = self.0.min(limits.max);
        self.0
    }

    /// A halt took `halted` nanoseconds, polling included. `valid`: what ended it was meant for the guest.
    pub fn end(&mut self, limits: &PollLimits, halted: u64, valid: bool) {
        let max = limits.max;
        if !valid || self.0 != 0 && halted > max.into() {
            let shorter = self.0.checked_div(limits.shrink).unwrap_or(0);
            self.0 = if shorter < limits.grow_start {
                0
            } else {
                shorter
            };
        } else if halted > self.0.into() && self.0 < max && halted < max.into() && limits.grow != 0
        {
            self.0 = self.0.saturating_mul(limits.grow).max(limits.grow_start);
        }
    }
}
