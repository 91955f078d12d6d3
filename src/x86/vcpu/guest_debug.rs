// SPDX-License-Identifier: GPL-2.0
//! Guest debugging by user space: KVM_SET_GUEST_DEBUG and what becomes KVM_EXIT_DEBUG (api.rst 4.87).
//!
//! This file adds to [`State`] what acts on [`crate::x86::vcpu::debug::Debug`]. The vCPU's ioctls and the run loop call
//! it under the vCPU's mutex; [`State::set_guest_debug`] may sleep, the others may be called in a stay.
#![forbid(unsafe_code)]

use crate::abi::uapi::k;
use crate::x86::cpu::events;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::rflags;
use crate::x86::exit::EventKind;
use crate::x86::vcpu::debug::{CONTROLS, DR6_NONE, GENERAL_DETECT};
use crate::x86::vcpu::state::State;
use crate::x86::vendor::{Interruptibility, VcpuBackend};
use crate::x86::vm::Vm;
use kernel::prelude::*;

impl State {
    /// CS.base + RIP.
    pub(crate) fn linear_rip(&mut self) -> u64 {
        self.code().linear(self.cpu.regs.rip)
    }

    /// RFLAGS without the TF of a single step.
    pub(crate) fn visible_rflags(&self) -> u64 {
        if self.debug.stepping() {
            self.cpu.regs.rflags & !rflags::TF
        } else {
            self.cpu.regs.rflags
        }
    }

    /// Sets RFLAGS from user space. The single step stays on where it was asked for.
    pub(crate) fn set_visible_rflags(&mut self, value: u64) {
        self.cpu.regs.rflags = value;
        if self.debug.stepping() && self.linear_rip() == self.debug.step_at {
            self.cpu.regs.rflags |= rflags::TF;
        }
    }

    /// DR0 to DR3 and DR7 as the guest sees them.
    pub(crate) fn guest_breakpoints(&self) -> ([u64; 4], u64) {
        self.debug.own.unwrap_or((self.cpu.dr, self.cpu.dr7))
    }

    /// Sets them.
    pub(crate) fn set_guest_breakpoints(&mut self, dr: [u64; 4], dr7: u64) {
        match &mut self.debug.own {
            Some(own) => *own = (dr, dr7),
            None => (self.cpu.dr, self.cpu.dr7) = (dr, dr7),
        }
    }

    /// A #DB reaches the guest: conditions of DR6 are those of `payload`, the others stay; DR7.GD goes (SDM 3B 19.2.3,
    /// 19.2.4).
    pub(crate) fn deliver_debug(&mut self, payload: u64) {
        // Without conditions it comes from user space, which has set DR6 itself.
        if payload != 0 {
            self.cpu.dr6 = self.cpu.dr6 & !0xf | payload & !DR6_NONE;
        }
        let (dr, dr7) = self.guest_breakpoints();
        if dr7 & GENERAL_DETECT != 0 {
            self.set_guest_breakpoints(dr, dr7 & !GENERAL_DETECT);
        }
    }

    /// KVM_SET_GUEST_DEBUG. EBUSY: something is to be injected, and an exception is pending already.
    pub(crate) fn set_guest_debug(&mut self, vm: &Vm, d: &k::kvm_guest_debug) -> Result {
        if d.control & (k::KVM_GUESTDBG_INJECT_DB | k::KVM_GUESTDBG_INJECT_BP) != 0 {
            let delivering = |e: crate::x86::exit::Event| {
                !matches!(e.kind, EventKind::ExternalInterrupt | EventKind::Nmi)
            };
            if self.events.exception.is_some() || self.events.interrupted.is_some_and(delivering) {
                return Err(EBUSY);
            }
            let v = if d.control & k::KVM_GUESTDBG_INJECT_DB != 0 {
                vector::DB
            } else {
                self.find_breakpoint(vm);
                vector::BP
            };
            self.events.exception = Some(events::exception(v, None));
        }
        let flags = self.visible_rflags();
        let own = self.guest_breakpoints();
        self.debug.control = if d.control & k::KVM_GUESTDBG_ENABLE != 0 {
            d.control & CONTROLS
        } else {
            0
        };
        self.debug.due = false;
        self.debug.shadow_at = None;
        if self.debug.control & k::KVM_GUESTDBG_USE_HW_BP != 0 {
            let r = &d.arch.debugreg;
            self.debug.own = Some(own);
            self.cpu.dr = [r[0], r[1], r[2], r[3]];
            // The upper half is reserved, and refused by the processor.
            self.cpu.dr7 = r[7] & 0xffff_ffff;
        } else {
            self.debug.own = None;
            (self.cpu.dr, self.cpu.dr7) = own;
        }
        if self.debug.stepping() {
            self.debug.step_at = self.linear_rip();
        }
        self.set_visible_rflags(flags);
        self.choose_exceptions();
        Ok(())
    }

    /// Has #BP exit for a user space that debugs the guest, beside the exceptions that always do.
    pub(crate) fn choose_exceptions(&mut self) {
        let breakpoints = u32::from(self.debug.has_soft_breakpoints()) << vector::BP;
        self.hw.set_exception_intercepts(breakpoints);
    }

    /// Before an entry. False when user space has to hear of a step first.
    #[cold]
    #[inline(never)]
    pub(crate) fn prepare_debug(&mut self) -> bool {
        if self.debug.due {
            return false;
        }
        if self.debug.shadow_at != Some(self.cpu.regs.rip) {
            self.debug.shadow_at = None;
        }
        // With an interrupt shadow VMX takes the trap of the instruction before, and wants it pending (SDM 3C
        // 27.3.1.5). Here there was none. Interrupts still wait for the instruction to be stepped over.
        let i = self.hw.interruptibility();
        if self.debug.stepping() && self.cpu.regs.rflags & rflags::TF != 0 && (i.sti || i.mov_ss) {
            self.debug.shadow_at = Some(self.cpu.regs.rip);
            self.hw.set_interruptibility(Interruptibility {
                sti: false,
                mov_ss: false,
                nmi: i.nmi,
            });
        }
        true
    }

    /// Remembers the INT3 at RIP, if there is one.
    fn find_breakpoint(&mut self, vm: &Vm) {
        const INT3: u8 = 0xcc;
        self.debug.breakpoint = None;
        let byte = {
            let view = self.memory(vm).view_of(&self.ring);
            self.code_byte(&view)
        };
        if byte == Some(INT3) {
            self.debug.breakpoint = Some((self.cpu.regs.rip, 1));
        }
    }

    /// User space is told of the INT3 at RIP, and may give it back to the guest.
    pub(crate) fn breakpoint_reported(&mut self) {
        self.debug.breakpoint = Some((self.cpu.regs.rip, self.hw.insn_len().unwrap_or(1)));
    }

    /// #BP from user space reaches the guest: the length of the INT3 behind it, if there is one at RIP.
    pub(crate) fn take_breakpoint(&mut self) -> Option<u8> {
        let (rip, len) = self.debug.breakpoint.take()?;
        (rip == self.cpu.regs.rip).then_some(len)
    }
}
