// SPDX-License-Identifier: GPL-2.0
//! RDMSR and WRMSR (SDM 4; APM 2 15.11), and KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR.
//!
//! Dispatch calls, with the vCPU's mutex held, inside a stay or outside.

use super::{Runner, Step};
use crate::abi::exits;
use crate::abi::uapi::k;
use crate::linux::mmap::Field;
use crate::x86::cpu::index;
use crate::x86::cpu::msr::MsrError;
use crate::x86::cpu::regs::Gpr;
use crate::x86::hyperv;
use crate::x86::pv;
use crate::x86::vcpu::fetch::Known;
use crate::x86::vcpu::msr;
use crate::x86::vcpu::state::Completion;
use crate::x86::vendor::Stay;
use crate::x86::vm_caps::Direction;

exits::exits! {
    /// An RDMSR that user space answers.
    Rdmsr = KVM_EXIT_X86_RDMSR, msr: kvm_run__bindgen_ty_1__bindgen_ty_23 {
        error: u8 = error,
        pad: [u8; 7] = pad,
        reason: u32 = reason,
        index: u32 = index,
        data: u64 = data,
    }
    /// A WRMSR that user space carries out.
    Wrmsr = KVM_EXIT_X86_WRMSR, msr: kvm_run__bindgen_ty_1__bindgen_ty_23 {
        error: u8 = error,
        pad: [u8; 7] = pad,
        reason: u32 = reason,
        index: u32 = index,
        data: u64 = data,
    }
}

impl Rdmsr {
    /// Not zero: the access fails. The same for a WRMSR.
    const ERROR: Field<u8> = exits::union_field!(kvm_run__bindgen_ty_1__bindgen_ty_23, error);
    /// The value that was read.
    const DATA: Field<u64> = exits::union_field!(kvm_run__bindgen_ty_1__bindgen_ty_23, data);
}

impl Runner<'_> {
    /// User space wants a say in this access.
    #[inline]
    fn filtered(&self, index: u32, direction: Direction) -> bool {
        self.s
            .msr_filter
            .as_ref()
            .is_some_and(|f| !f.allows(index, direction))
    }

    /// A guest's access to an MSR that fails, for `reason` (KVM_MSR_EXIT_REASON_*): #GP, or user space's decision
    /// (KVM_CAP_X86_USER_SPACE_MSR).
    #[cold]
    fn refuse_msr(&mut self, direction: Direction, index: u32, data: u64, reason: u32) -> Step {
        if !self.vm.caps.user_space_msr(reason) {
            return self.raise_gp();
        }
        let (error, pad) = (0, [0; 7]);
        match direction {
            Direction::Read => {
                self.s.pending.completion = Completion::Rdmsr;
                self.ask(&Rdmsr {
                    error,
                    pad,
                    reason,
                    index,
                    data,
                })
            }
            Direction::Write => {
                self.s.pending.completion = Completion::Wrmsr;
                self.ask(&Wrmsr {
                    error,
                    pad,
                    reason,
                    index,
                    data,
                })
            }
        }
    }

    pub(super) fn rdmsr(&mut self, stay: Option<&Stay<'_>>) -> Step {
        let index = self.s.cpu.regs.get(Gpr::Rcx) as u32;
        if self.filtered(index, Direction::Read) {
            return self.refuse_msr(Direction::Read, index, 0, k::KVM_MSR_EXIT_REASON_FILTER);
        }
        if stay.is_some() && hyperv::msrs::may_sleep(index) {
            return Step::Slow;
        }
        let value = if index != index::PLATFORM_INFO || self.vm.caps.platform_info_readable() {
            self.s.read_msr(self.vm, index, false)
        } else {
            Err(MsrError::Invalid)
        };
        let v = match value {
            Ok(v) => v,
            Err(e) if msr::ignored("rdmsr", index, 0, e) => 0,
            Err(e) => {
                return self.refuse_msr(Direction::Read, index, 0, msr::exit_reason(e));
            }
        };
        let step = self.skip(&Known::RDMSR, stay);
        if matches!(step, Step::Again) {
            self.set_edx_eax(v);
        }
        step
    }

    /// User space has answered an RDMSR.
    pub(super) fn rdmsr_done(&mut self) -> Step {
        if self.run.get(Rdmsr::ERROR) != 0 {
            return self.raise_gp();
        }
        let value = self.run.get(Rdmsr::DATA);
        let step = self.skip(&Known::RDMSR, None);
        if matches!(step, Step::Again) {
            self.set_edx_eax(value);
        }
        step
    }

    /// User space has carried out a WRMSR, or refused to.
    pub(super) fn wrmsr_done(&mut self) -> Step {
        if self.run.get(Rdmsr::ERROR) != 0 {
            return self.raise_gp();
        }
        self.skip(&Known::WRMSR, None)
    }

    #[inline(always)]
    fn set_edx_eax(&mut self, value: u64) {
        self.s.cpu.regs.set(Gpr::Rax, value & 0xffff_ffff);
        self.s.cpu.regs.set(Gpr::Rdx, value >> 32);
    }

    pub(super) fn wrmsr(&mut self, stay: Option<&Stay<'_>>) -> Step {
        let regs = &self.s.cpu.regs;
        let index = regs.get(Gpr::Rcx) as u32;
        let value = regs.get(Gpr::Rdx) << 32 | regs.get(Gpr::Rax) & 0xffff_ffff;
        if self.filtered(index, Direction::Write) {
            let reason = k::KVM_MSR_EXIT_REASON_FILTER;
            return self.refuse_msr(Direction::Write, index, value, reason);
        }
        if stay.is_some() && (pv::msrs::may_sleep(index) || hyperv::msrs::may_sleep(index)) {
            return Step::Slow;
        }
        let page =
            || pv::msrs::page_of(index, value).or_else(|| hyperv::msrs::page_of(index, value));
        if let (None, Some(gpa)) = (stay, page()) {
            if let Some(step) = self.bring_in(gpa, true) {
                return step;
            }
        }
        // Moving the local APIC may change the nested page tables.
        if stay.is_some() && self.s.apic.virtualized && index == index::APIC_BASE {
            return Step::Slow;
        }
        // Fetch first: the write may change what the address translates to.
        let before = (
            self.s.cpu.regs.rip,
            self.s.cpu.regs.rflags,
            self.s.events.exception,
        );
        let step = self.skip(&Known::WRMSR, stay);
        if !matches!(step, Step::Again) {
            return step;
        }
        // What guests write most needs no look at what all the other MSRs are.
        if let Some(l) = &mut self.s.apic.lapic {
            match index {
                index::X2APIC_EOI if value == 0 && l.is_x2apic() => {
                    let action = l.eoi();
                    return self.apply(action);
                }
                index::TSC_DEADLINE => {
                    if l.set_tsc_deadline(value).timer {
                        self.vcpu.timer.arm(self.s);
                    }
                    return Step::Again;
                }
                _ => {}
            }
        }
        match self.s.write_msr(self.vm, index, value, false) {
            Ok(_) if hyperv::msrs::may_sleep(index) => self.hyperv_written(),
            Ok(action) => self.apply(action),
            Err(e) if msr::ignored("wrmsr", index, value, e) => Step::Again,
            Err(e) => {
                self.s.cpu.regs.rip = before.0;
                self.s.cpu.regs.rflags = before.1;
                self.s.events.exception = before.2;
                self.s.debug.reported();
                self.refuse_msr(Direction::Write, index, value, msr::exit_reason(e))
            }
        }
    }
}
