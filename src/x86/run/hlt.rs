// SPDX-License-Identifier: GPL-2.0
//! Instructions that wait: HLT, MONITOR, MWAIT (SDM 2A, 2B; SDM 3A 10.10).
//!
//! Dispatch calls, with the vCPU's mutex held, inside a stay or outside; [`Runner::halt`] is the outer loop's and
//! sleeps.

use super::{Runner, Step};
use crate::abi::exits;
use crate::abi::stats::VcpuCounter;
use crate::abi::uapi::k;
use crate::x86::vcpu::fetch::Known;
use crate::x86::vcpu::state::MpState;
use crate::x86::vendor::Stay;

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

    /// HLT: sleeps until there is something to do. False if a signal or request has to be looked at first.
    pub(super) fn halt(&mut self) -> bool {
        let shared = &self.vcpu.shared;
        if !self.wakes() {
            self.vcpu.timer.sleep(self.s);
            // A rise of the 8259s' INTR is a request as well.
            let woken = shared.wait.wait_interruptible(|| shared.requests() != 0);
            self.vcpu.timer.wake(self.s);
            if woken.is_err() {
                return false;
            }
            self.handle_requests();
        }
        if self.wakes() {
            self.s.mp_state = MpState::Runnable;
            self.s.pv.unhalted = false;
            self.stats.add(VcpuCounter::HaltWakeups, 1);
            return true;
        }
        false
    }

    /// Whether something ends HLT.
    fn wakes(&mut self) -> bool {
        let gate = self.s.gate();
        self.s.events.nmis != 0 && !gate.nmi
            || self.s.events.exception.is_some()
            || self.s.pv.unhalted
            || gate.if_flag && self.s.interrupt_pending(self.vm)
    }

    /// PAUSE in a loop that waits, perhaps for a vCPU whose turn it is not.
    pub(super) fn pause(&mut self, stay: Option<&Stay<'_>>) -> Step {
        if stay.is_some() {
            return Step::Slow;
        }
        let step = self.skip(&Known::PAUSE, stay);
        self.vm.vcpus.yield_from(&self.vcpu.shared);
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
