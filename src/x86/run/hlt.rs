// SPDX-License-Identifier: GPL-2.0
//! Instructions that wait: HLT, MONITOR, MWAIT (SDM 2A, 2B; SDM 3A 10.10).
//!
//! Dispatch calls, with the vCPU's mutex held, inside a stay or outside; [`Runner::halt`] is the outer loop's and
//! sleeps.

use super::{Runner, Step};
use crate::abi::exits;
use crate::abi::stats::{VcpuCounter as C, VcpuHistogram as H};
use crate::abi::uapi::k;
use crate::linux::{hrtimer, sched};
use crate::x86::vcpu::fetch::Known;
use crate::x86::vcpu::state::MpState;
use crate::x86::vendor::{Stay, VcpuBackend};
use kernel::prelude::*;

/// Waits awake until `asked` or for a signal, `longest` nanoseconds from `start` on, while nobody else wants the CPU.
/// Returns for how long.
fn poll(start: u64, longest: u64, asked: impl Fn() -> bool) -> u64 {
    let mut spent = 0;
    while !asked() && !sched::signal_pending() {
        core::hint::spin_loop();
        spent = hrtimer::ktime_get_ns().wrapping_sub(start);
        if spent >= longest || !sched::may_spin() {
            break;
        }
    }
    spent
}

impl Runner<'_> {
    /// HLT.
    pub(super) fn hlt(&mut self, stay: Option<&Stay<'_>>) -> Step {
        let step = self.skip(&Known::HLT, stay);
        if !matches!(step, Step::Again) {
            return step;
        }
        if self.s.apic.lapic.is_some() {
            if !self.wakes() {
                self.s.mp_state = MpState::Halted;
                return Step::Leave;
            }
            self.s.pv.unhalted = false;
            return Step::Again;
        }
        self.s.debug.reported();
        self.ask(&exits::Hlt)
    }

    /// HLT: waits until there is something to do. False if a signal or request has to be looked at first.
    pub(super) fn halt(&mut self) -> bool {
        let awake = self.wakes() || self.await_event();
        if awake {
            self.s.mp_state = MpState::Runnable;
            self.s.pv.unhalted = false;
            self.stats.add(C::HaltWakeups, 1);
        }
        awake
    }

    /// Waits for an event: awake for as long as that has paid lately, then asleep. False as [`Runner::halt`] says.
    fn await_event(&mut self) -> bool {
        self.vcpu.timer.sleep(self.s);
        let limits = self.vm.caps.poll_limits();
        let polls = !self.s.pv.no_poll;
        let longest = if polls {
            self.s.halt_poll.begin(&limits)
        } else {
            0
        };
        let shared = &self.vcpu.shared;
        // A rise of the 8259s' INTR is a request as well.
        let asked = || shared.requests() != 0;
        let start = hrtimer::ktime_get_ns();
        let polled = match longest {
            0 => 0,
            ns => poll(start, ns.into(), asked),
        };
        let woken = self.block(asked);
        let slept = !matches!(woken, Ok(false));
        let halted = if slept {
            hrtimer::ktime_get_ns().wrapping_sub(start)
        } else {
            polled
        };
        self.vcpu.timer.wake(self.s);
        if slept {
            self.s.hw.set_spinning(false);
        }
        let mut awake = false;
        if woken.is_ok() {
            self.handle_requests();
            awake = self.s.mp_state == MpState::Halted && self.wakes();
        }
        let valid = awake || woken.is_err();
        if slept {
            self.stats
                .time(C::HaltWaitNs, H::Sleep, halted.wrapping_sub(polled));
        }
        if longest != 0 {
            self.count_poll(polled, slept, valid);
        }
        if polls {
            self.s.halt_poll.end(&limits, halted, valid);
        }
        awake
    }

    fn count_poll(&self, ns: u64, slept: bool, valid: bool) {
        let stats = self.stats;
        stats.add(C::HaltPolls, 1);
        if slept {
            stats.time(C::HaltPollFailNs, H::PollFailure, ns);
        } else {
            stats.add(C::HaltPollSuccesses, 1);
            stats.add(C::HaltPollsInvalid, (!valid).into());
            stats.time(C::HaltPollSuccessNs, H::PollSuccess, ns);
        }
    }

    /// Sleeps until `condition` holds; returns whether it slept. EINTR.
    pub(super) fn block(&self, condition: impl FnMut() -> bool) -> Result<bool> {
        self.stats.set(C::Blocking, true);
        let result = self.vcpu.shared.wait.wait_interruptible(condition);
        self.stats.set(C::Blocking, false);
        result
    }

    /// Whether something ends HLT.
    fn wakes(&mut self) -> bool {
        self.s.pv.unhalted || self.has_event()
    }

    /// Whether there is an event that the next entry delivers, or an SMI.
    pub(super) fn has_event(&mut self) -> bool {
        let gate = self.s.gate();
        self.s.events.nmis != 0 && !gate.nmi
            || self.s.smm.is_due()
            || self.s.events.exception.is_some()
            || gate.if_flag && self.s.interrupt_pending(self.vm)
    }

    /// PAUSE in a loop that waits, perhaps for a vCPU whose turn it is not.
    pub(super) fn pause(&mut self, stay: Option<&Stay<'_>>) -> Step {
        let (vcpus, spinner) = (&self.vm.vcpus, &self.vcpu.shared);
        if stay.is_some() && vcpus.others_wait(spinner) {
            return Step::Slow;
        }
        let step = self.skip(&Known::PAUSE, stay);
        if matches!(step, Step::Slow) {
            return step;
        }
        let yielded = stay.is_none() && vcpus.yield_from(spinner);
        self.s.hw.set_spinning(!yielded);
        step
    }

    /// MONITOR, MWAIT.
    pub(super) fn monitor_mwait(&mut self, stay: Option<&Stay<'_>>) -> Step {
        if self.mwait_is_nop() {
            self.skip(&Known::MWAIT, stay)
        } else {
            self.raise_ud()
        }
    }

    /// MONITOR and MWAIT do nothing, which is always a correct way to wait; they fault only when user space wants that
    /// (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS).
    fn mwait_is_nop(&self) -> bool {
        let caps = &self.vm.caps;
        caps.quirk(k::KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS)
            || if caps.quirk(k::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT) {
                self.s.cpuid_leaf1_ecx() & 1 << 3 != 0
            } else {
                self.s.msrs.mwait()
            }
    }
}
