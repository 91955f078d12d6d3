// SPDX-License-Identifier: GPL-2.0
//! The timer of a vCPU's local APIC (SDM 3A 12.5.4, APM 2 16.4.1), counted by the host's high-resolution timer, or by
//! one of the processor that ends the guest's turn.
//!
//! The vCPU's thread arms it under the vCPU's mutex, in a stay or outside. Its expiry comes in interrupt context and
//! takes no lock.

use crate::linux::boot_cpu;
use crate::linux::hrtimer::{self, Timer, TimerCallback};
use crate::x86::irqchip::lapic::timer::TimerArm;
use crate::x86::shared::{request, VcpuShared};
use crate::x86::vcpu::state::State;
use crate::x86::vendor::VcpuBackend;
use kernel::prelude::*;
use kernel::sync::Arc;

/// What the host's timer does: it asks the vCPU to look at its local APIC.
struct Expiry(Arc<VcpuShared>);

impl TimerCallback for Expiry {
    fn expired(&self) -> Option<u64> {
        self.0.request(request::TIMER);
        None
    }
}

/// `count` ticks of a clock of `khz`, counted by one of `other` per millisecond, without a product that overflows.
fn scaled(count: u64, khz: u32, other: u64) -> u64 {
    let khz = u64::from(khz).max(1);
    if khz == other {
        return count;
    }
    // The remainder is below 2^32, as the other rate is.
    (count / khz)
        .saturating_mul(other)
        .saturating_add((count % khz).saturating_mul(other) / khz)
}

/// The timer of a vCPU's local APIC.
pub(crate) struct ApicTimer {
    shared: Arc<VcpuShared>,
    host: Timer<Expiry>,
}

impl ApicTimer {
    /// One that is not armed, of the vCPU that `shared` belongs to.
    pub(super) fn new(shared: Arc<VcpuShared>) -> Result<Self> {
        let host = Timer::new(Expiry(shared.clone()))?;
        Ok(Self { shared, host })
    }

    /// Arms the APIC timer as the local APIC wants it.
    pub(crate) fn arm(&self, s: &mut State) {
        let Some(l) = &s.apic.lapic else { return };
        let arm = l.timer_arm();
        if s.timer.in_guest {
            if let TimerArm::AtTsc(deadline) = arm {
                self.stop_host_timer(s);
                let left = deadline
                    .saturating_sub(s.tsc())
                    .saturating_sub(s.timer.exit_advance);
                if left == 0 {
                    s.hw.set_deadline(u64::MAX);
                    self.shared.request_self(request::TIMER);
                } else {
                    let now = boot_cpu::rdtsc();
                    let left = scaled(left, s.tsc_rate_khz(), boot_cpu::tsc_khz().into());
                    s.hw.set_deadline(now.saturating_add(left));
                }
                return;
            }
            s.hw.set_deadline(u64::MAX);
        }
        self.arm_host_timer(s, arm);
    }

    /// Arms the host's timer for what the local APIC wants.
    fn arm_host_timer(&self, s: &mut State, arm: TimerArm) {
        match arm {
            TimerArm::Off => self.stop_host_timer(s),
            TimerArm::AtNs(ns) => {
                s.timer.host_armed = true;
                self.host.start_abs_ns(ns);
            }
            TimerArm::AtTsc(deadline) => {
                // Early by what the way from the timer's interrupt to the guest takes.
                let left = deadline
                    .saturating_sub(s.tsc())
                    .saturating_sub(s.timer.advance);
                if left == 0 {
                    self.shared.request_self(request::TIMER);
                    return;
                }
                let ns = scaled(left, s.tsc_rate_khz(), 1_000_000);
                s.timer.host_armed = true;
                self.host
                    .start_abs_ns(hrtimer::ktime_get_ns().saturating_add(ns.min(u64::MAX / 4)));
            }
        }
    }

    /// The host's timer is not needed. If it fires meanwhile the vCPU finds that its own has not.
    fn stop_host_timer(&self, s: &mut State) {
        if core::mem::take(&mut s.timer.host_armed) {
            let _ = self.host.try_cancel();
        }
    }

    /// The vCPU is about to sleep in HLT: a deadline that would end the guest's turn has to wake it.
    pub(crate) fn sleep(&self, s: &mut State) {
        let arm = match &s.apic.lapic {
            Some(l) if s.timer.in_guest => l.timer_arm(),
            _ => return,
        };
        if let TimerArm::AtTsc(_) = arm {
            self.arm_host_timer(s, arm);
        }
    }

    /// The vCPU has woken.
    pub(crate) fn wake(&self, s: &mut State) {
        if s.timer.in_guest && s.apic.lapic.as_ref().is_some_and(|l| l.tsc_deadline() != 0) {
            self.stop_host_timer(s);
        }
    }
}
