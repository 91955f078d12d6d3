// SPDX-License-Identifier: GPL-2.0
//! Instructions that the processor cannot execute because it cannot walk the guest's page tables: these are in a
//! read-only slot, where a walk that may set accessed bits counts as a write (SDM 3C 30.3.3.2; APM 2 15.25.5), or in no
//! memory at all. As in KVM they are emulated one by one, until the guest has other tables.
//!
//! Dispatch calls, with the vCPU's mutex held and interrupts on: guest memory may have to be faulted in.

use super::{Runner, Step};
use crate::x86::cpu::regs::{rflags, Gpr, Mode, Seg};
use crate::x86::emul::{Insn, Op, Operand};
use crate::x86::exit::{CrAccess, CrOp, Io, NestedFault};
use crate::x86::syscall::{Call, Fault};
use crate::x86::vcpu::fetch::FetchError;
use crate::x86::vcpu::guest_mem::{port_permitted, LinearError};
use crate::x86::vendor::{Groups, VcpuBackend};

impl Runner<'_> {
    /// Emulates the instruction in whose course the processor has met nested fault `f` on a page table.
    #[cold]
    #[inline(never)]
    pub(super) fn interpret(&mut self, f: &NestedFault) -> Step {
        let fetched = {
            let view = self.memory().view_of(&self.s.ring);
            self.s.fetch(&view, None).copied()
        };
        let insn = match fetched {
            Ok(insn) => insn,
            // The processor does not come as far as that.
            Err(FetchError::Fault(e)) => return self.raise(e),
            Err(FetchError::Reenter) => return self.emulation_failed(&[], 0),
            Err(e) => return self.fetch_failed(e),
        };
        self.s.load(Groups::ALL);
        match self.handed_over(&insn) {
            Some(step) => step,
            None => self.decode_and_emulate(Some(insn), Some(f), |_| true),
        }
    }

    /// What is no matter of the emulator's, but of the handler of its exit. That steps over it by its length.
    fn handed_over(&mut self, insn: &Insn) -> Option<Step> {
        let any = matches!(insn.op, Op::In | Op::Out | Op::Cpuid | Op::Pause | Op::Rsm);
        let privileged = matches!(
            insn.op,
            Op::Hlt
                | Op::Rdmsr
                | Op::Wrmsr
                | Op::MovCr
                | Op::MovDr
                | Op::Clts
                | Op::Lmsw
                | Op::Invd
                | Op::Wbinvd
        );
        if let Some(call) = Call::of(insn) {
            return Some(match self.system_call(call, insn.len()) {
                Ok(step) => step,
                Err(Fault::Undefined) => self.raise_ud(),
                Err(Fault::Protection) => self.raise_gp(),
            });
        }
        if !any && !privileged {
            return None;
        }
        if privileged && self.s.cpl() != 0 {
            return Some(self.raise_gp());
        }
        let told = self.s.hw.insn_len();
        if told.is_some_and(|n| n != insn.len()) {
            return Some(self.not_emulated(insn));
        }
        Some(match insn.op {
            Op::In | Op::Out => self.port_access(insn),
            Op::Rsm => self.rsm(None),
            Op::Cpuid => self.cpuid(None),
            Op::Pause => self.pause(None),
            Op::Hlt => self.hlt(None),
            Op::Rdmsr => self.rdmsr(None),
            Op::Wrmsr => self.wrmsr(None),
            Op::MovDr => self.dr_access(None),
            Op::Invd | Op::Wbinvd => self.write_back_caches(None),
            _ => {
                let decode = CrAccess {
                    cr: 0,
                    write: true,
                    gpr: None,
                    op: CrOp::Decode,
                };
                self.cr_access(&decode, None)
            }
        })
    }

    /// IN and OUT.
    fn port_access(&mut self, insn: &Insn) -> Step {
        let regs = &self.s.cpu.regs;
        let iopl = (regs.rflags & rflags::IOPL) >> 12;
        let vm86 = self.s.cpu.sregs.mode(regs.rflags) == Mode::Vm86;
        let input = insn.op == Op::In;
        let by_dx = (if input { insn.src } else { insn.dst }) == Operand::Dx;
        let port = if by_dx { regs.get(Gpr::Rdx) } else { insn.imm };
        if vm86 || u64::from(self.s.cpl()) > iopl {
            let (paging, task) = (self.s.paging(), *self.s.cpu.sregs.seg(Seg::Tr));
            let permitted = {
                let view = self.memory().view_of(&self.s.ring);
                port_permitted(&view, &paging, &task, port as u16, insn.width)
            };
            match permitted {
                Ok(true) => {}
                Ok(false) => return self.raise_gp(),
                Err(LinearError::Missing(page)) => {
                    return self.report_missing(page, false).unwrap_or(Step::Again)
                }
                Err(_) => return self.not_emulated(insn),
            }
        }
        let io = Io {
            port: port as u16,
            width: insn.width,
            input,
            string: false,
        };
        self.port(&io, None, true)
    }
}
