// SPDX-License-Identifier: GPL-2.0
//! #UD, for instructions that the guest believes its processor to have, as in KVM.
//!
//! A hypercall instruction of the other vendor: guests that do not ask CPUID which of the two they have to use find the
//! right one in their code after the first attempt (KVM_X86_QUIRK_FIX_HYPERCALL_INSN). System calls of a guest of the
//! other vendor: see [`syscall`]. And RSM of a guest that is in SMM, of which no processor knows.
//!
//! Dispatch calls, with the vCPU's mutex held, inside a stay or outside.

use super::{Runner, Step};
use crate::abi::uapi::k;
use crate::x86::cpu::cpuid::Vendor;
use crate::x86::cpu::index;
use crate::x86::cpu::regs::rflags;
use crate::x86::emul::{Insn, Op};
use crate::x86::exit::Exception;
use crate::x86::paging::gwalk::Access;
use crate::x86::syscall::{self, Call, Fault, Msrs};
use crate::x86::vcpu::fetch::FetchError;
use crate::x86::vcpu::guest_mem::{write_linear, LinearError};
use crate::x86::vendor::{choose, Groups, Stay};

impl Runner<'_> {
    /// An instruction that the processor does not know.
    #[cold]
    pub(super) fn undefined(&mut self, e: &Exception, stay: Option<&Stay<'_>>) -> Step {
        let fetched = {
            let view = self.memory().view_of(&self.s.ring);
            self.s.fetch(&view, stay).copied()
        };
        if let Some(call) = fetched.as_ref().ok().and_then(Call::of) {
            let len = fetched.map_or(0, |insn| insn.len());
            return match self.system_call(call, len) {
                Ok(step) => step,
                Err(Fault::Undefined) => self.exception(e),
                Err(Fault::Protection) => self.raise_gp(),
            };
        }
        match fetched {
            Ok(insn) if matches!(insn.op, Op::Vmcall | Op::Vmmcall) && insn.len() == 3 => {
                self.fix_hypercall(&insn, e, stay)
            }
            // No processor in a guest knows of its SMM.
            Ok(insn) if matches!(insn.op, Op::Rsm) && self.s.smm.is_active() => self.rsm(stay),
            Err(FetchError::Sleep) => Step::Slow,
            // The code has been changed, or its memory has gone: the guest runs what is there now.
            Err(FetchError::Reenter) => Step::Again,
            _ => self.exception(e),
        }
    }

    /// Executes a system call of `len` bytes, or the return from one.
    pub(super) fn system_call(&mut self, call: Call, len: u8) -> Result<Step, Fault> {
        let s = &mut *self.s;
        let mut msr = |index| s.read_msr(self.vm, index, true).unwrap_or(0);
        let msrs = Msrs {
            star: msr(index::STAR),
            lstar: msr(index::LSTAR),
            cstar: msr(index::CSTAR),
            fmask: msr(index::FMASK),
            sysenter_cs: msr(index::SYSENTER_CS),
            sysenter_esp: msr(index::SYSENTER_ESP),
            sysenter_eip: msr(index::SYSENTER_EIP),
        };
        s.load(Groups::ALL);
        let intel = s.cpuid.features.vendor == Vendor::Intel;
        let call = (call, len);
        syscall::execute(call, intel, &msrs, &mut s.cpu.regs, &mut s.cpu.sregs)?;
        s.dirty(Groups::ALL);
        s.completed();
        Ok(Step::Again)
    }

    /// The guest gets this processor's hypercall instruction in place of the other one, and executes it. Without the
    /// quirk, and where that is the instruction that it has, it gets its #UD.
    fn fix_hypercall(&mut self, insn: &Insn, e: &Exception, stay: Option<&Stay<'_>>) -> Step {
        let right = choose::hypercall();
        if insn.bytes().get(..3) == Some(&right[..]) {
            return self.exception(e);
        }
        // As KVM's emulator, to which both are privileged.
        if self.s.cpl() != 0 {
            return self.raise_gp();
        }
        if !self.vm.caps.quirk(k::KVM_X86_QUIRK_FIX_HYPERCALL_INSN) {
            return self.exception(e);
        }
        if stay.is_some() {
            return Step::Slow;
        }
        let la = self.s.linear_rip();
        let access = Access::data(true, 0, self.s.cpu.regs.rflags & rflags::AC != 0);
        let paging = self.s.paging();
        let written = {
            let view = self.memory().view_of(&self.s.ring);
            write_linear(&view, &paging, la, access, &right)
        };
        match written {
            Ok(()) => Step::Again,
            Err(LinearError::Fault(e)) => self.raise(e),
            Err(LinearError::Missing(page)) => {
                self.report_missing(page, true).unwrap_or(Step::Again)
            }
            Err(LinearError::Unusable) => self.exception(e),
        }
    }
}
