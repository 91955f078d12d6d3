// SPDX-License-Identifier: GPL-2.0
//! Control registers and XCR0 (SDM 3A 2.5, 2.6; APM 2 3.1, 11.5), and KVM_EXIT_SET_TPR.
//!
//! Dispatch calls, with the vCPU's mutex held, inside a stay or outside.

use super::{Runner, Step};
use crate::abi::exits;
use crate::mem::addr::Gpa;
use crate::mem::memory::MemError;
use crate::x86::cpu::regs::{cr0, cr4, Gpr, Seg};
use crate::x86::cpu::{control, xsave};
use crate::x86::emul::{Insn, Op, Operand};
use crate::x86::exit::{CrAccess, CrOp};
use crate::x86::vcpu::fetch::Known;
use crate::x86::vendor::{choose, Groups, Stay, VcpuBackend};
use kernel::prelude::*;

exits::exits! {
    /// The guest lowered its task priority, and the local APIC is user space's: something can perhaps be delivered now.
    SetTpr = KVM_EXIT_SET_TPR;
}

impl Runner<'_> {
    /// MOV CR, CLTS, LMSW, SMSW.
    pub(super) fn cr_access(&mut self, c: &CrAccess, stay: Option<&Stay<'_>>) -> Step {
        self.s.load(Groups::CTRL.union(Groups::CODE));
        let c = match self.cr_instruction(c, stay) {
            Ok(c) => c,
            Err(step) => return step,
        };
        let old = self.s.cpu.sregs.cr0;
        match c.op {
            CrOp::Clts => return self.write_cr0(old & !cr0::TS, stay),
            CrOp::Lmsw(word) => {
                return self.write_cr0(control::with_machine_status(old, word), stay)
            }
            _ if !c.write => return self.mov_from_cr(c.cr, c.gpr, stay),
            _ => {}
        }
        let value = c.gpr.map_or(0, |g| self.s.cpu.regs.get(g));
        let value = value & self.operand_mask();
        match c.cr {
            0 => self.write_cr0(value, stay),
            2 => self.write_cr2(value, stay),
            3 => self.write_cr3(value, stay),
            4 => self.write_cr4(value, stay),
            8 => self.write_cr8(value, stay),
            _ => self.raise_ud(),
        }
    }

    /// What the processor says of the access, or else the instruction itself.
    fn cr_instruction(&mut self, c: &CrAccess, stay: Option<&Stay<'_>>) -> Result<CrAccess, Step> {
        if c.op != CrOp::Decode {
            return Ok(*c);
        }
        let insn = self.fetch(stay)?;
        if insn.op == Op::Smsw {
            return Err(self.smsw(insn, stay));
        }
        // No other exits from an application: one of its threads has changed SMSW meanwhile, and the guest runs that.
        if self.s.cpl() != 0 {
            return Err(Step::Again);
        }
        let (cr, write, op, gpr) = match (insn.op, insn.dst, insn.src) {
            (Op::MovCr, Operand::Cr(n), Operand::Reg(g)) => (n, true, CrOp::Mov, Some(g)),
            (Op::MovCr, Operand::Reg(g), Operand::Cr(n)) => (n, false, CrOp::Mov, Some(g)),
            (Op::Clts, _, _) => (0, true, CrOp::Clts, None),
            (Op::Lmsw, _, Operand::Mem) => return Err(self.by_emulator(&insn, stay)),
            (Op::Lmsw, _, Operand::Reg(g)) => {
                let source = self.s.cpu.regs.get(g) as u16;
                (0, true, CrOp::Lmsw(source), None)
            }
            _ => return Err(self.not_emulated(&insn)),
        };
        // No exit: met where page tables cannot be written, or another thread has put it there.
        if cr == 2 && stay.is_some() && !choose::caps().is_some_and(|c| c.cr2_exits) {
            return Err(Step::Slow);
        }
        Ok(CrAccess { cr, write, gpr, op })
    }

    /// SMSW stores the low bits of CR0, to a register or to memory.
    fn smsw(&mut self, mut insn: Insn, stay: Option<&Stay<'_>>) -> Step {
        (insn.op, insn.src) = (Op::Mov, Operand::Imm);
        insn.imm = self.s.cpu.sregs.cr0;
        self.by_emulator(&insn, stay)
    }

    /// An instruction that the emulator knows, outside of stays.
    #[cold]
    fn by_emulator(&mut self, insn: &Insn, stay: Option<&Stay<'_>>) -> Step {
        if stay.is_some() {
            return Step::Slow;
        }
        self.s.load(Groups::ALL);
        self.s.pending.replay.clear();
        self.emulate(insn, None)
    }

    /// What user-mode instruction prevention (SDM 3A 2.5, CR4.UMIP) is about, on a processor without it.
    pub(super) fn descriptor_table(&mut self, stay: Option<&Stay<'_>>) -> Step {
        self.s.load(Groups::CODE);
        match self.fetch(stay) {
            Ok(insn) => match insn.op {
                Op::Sgdt
                | Op::Sidt
                | Op::Sldt
                | Op::Str
                | Op::Lgdt
                | Op::Lidt
                | Op::Lldt
                | Op::Ltr => self.by_emulator(&insn, stay),
                // Another thread has put that there meanwhile.
                _ => Step::Again,
            },
            Err(step) => step,
        }
    }

    fn mov_from_cr(&mut self, cr: u8, gpr: Option<Gpr>, stay: Option<&Stay<'_>>) -> Step {
        let mask = self.operand_mask();
        let value = match cr {
            0 => self.s.cpu.sregs.cr0,
            2 => self.s.cpu.sregs.cr2,
            3 => self.s.cpu.sregs.cr3,
            4 => self.s.cpu.sregs.cr4,
            _ => u64::from(self.s.cr8()),
        };
        let step = self.skip(&Known::CR, stay);
        if let (Step::Again, Some(g)) = (step, gpr) {
            self.s.cpu.regs.set(g, value & mask);
        }
        step
    }

    /// Ends the instruction of a write that is valid: what may have to sleep comes first, so that nothing has changed
    /// by then. The PDPTEs are loaded from what `cr3` points to (SDM 3A 5.4.1).
    fn end_cr_write(&mut self, cr3: Option<u64>, stay: Option<&Stay<'_>>) -> Result<(), Step> {
        if let (Some(cr3), None, false) = (cr3, stay, self.s.smm.is_active()) {
            if let Some(step) = self.bring_in(Gpa(cr3 & 0xffff_ffe0), false) {
                return Err(step);
            }
        }
        let pdptes = match cr3.map(|cr3| self.s.read_pdptes(self.vm, cr3, stay)) {
            None => None,
            Some(Ok(p)) => Some(p),
            Some(Err(MemError::Fault)) if stay.is_some() => return Err(Step::Slow),
            Some(Err(_)) => return Err(self.raise_gp()),
        };
        let step = self.skip(&Known::CR, stay);
        if !matches!(step, Step::Again) {
            return Err(step);
        }
        if let Some(p) = pdptes {
            self.s.hw.set_pdptes(p);
        }
        Ok(())
    }

    fn write_cr0(&mut self, value: u64, stay: Option<&Stay<'_>>) -> Step {
        let old = &self.s.cpu.sregs;
        let cs_l = old.seg(Seg::Cs).l;
        let Ok(w) = control::cr0_write_check(old.cr0, value, old.cr4, old.efer, cs_l) else {
            return self.raise_gp();
        };
        let cr3 = w.load_pdptes.then_some(old.cr3);
        if let Err(step) = self.end_cr_write(cr3, stay) {
            return step;
        }
        self.s.cpu.sregs.cr0 = w.cr0;
        self.s.cpu.sregs.efer = w.efer;
        self.s.dirty(Groups::CTRL);
        self.s.last_stay.tlb_generation = 0;
        Step::Again
    }

    /// See [`crate::x86::vendor::HwCaps::cr2_exits`].
    fn write_cr2(&mut self, value: u64, stay: Option<&Stay<'_>>) -> Step {
        if let Err(step) = self.end_cr_write(None, stay) {
            return step;
        }
        self.s.cpu.sregs.cr2 = value;
        Step::Again
    }

    fn write_cr3(&mut self, value: u64, stay: Option<&Stay<'_>>) -> Step {
        let old = &self.s.cpu.sregs;
        let Ok(new) = control::cr3_write_check(value, old.cr4, old.efer, &self.s.cpuid.features)
        else {
            return self.raise_gp();
        };
        let cr3 = old.pae_paging().then_some(new);
        if let Err(step) = self.end_cr_write(cr3, stay) {
            return step;
        }
        self.s.cpu.sregs.cr3 = new;
        self.s.dirty(Groups::CTRL);
        self.s.last_stay.tlb_generation = 0;
        Step::Again
    }

    fn write_cr4(&mut self, value: u64, stay: Option<&Stay<'_>>) -> Step {
        let old = &self.s.cpu.sregs;
        let (before, features) = (old.cr4, &self.s.cpuid.features);
        let Ok(w) = control::cr4_write_check(before, value, old.cr0, old.cr3, old.efer, features)
        else {
            return self.raise_gp();
        };
        let cr3 = w.load_pdptes.then_some(old.cr3);
        if let Err(step) = self.end_cr_write(cr3, stay) {
            return step;
        }
        self.s.cpu.sregs.cr4 = w.cr4;
        self.s.dirty(Groups::CTRL);
        if w.flush {
            self.s.last_stay.tlb_generation = 0;
        }
        if w.cpuid_changed || (w.cr4 ^ before) & cr4::OSXSAVE != 0 {
            self.s.refresh_dynamic();
        } else {
            self.s.cpuid.dynamic.cr4 = w.cr4;
        }
        Step::Again
    }

    fn write_cr8(&mut self, value: u64, stay: Option<&Stay<'_>>) -> Step {
        if value >> 4 != 0 {
            return self.raise_gp();
        }
        if let Err(step) = self.end_cr_write(None, stay) {
            return step;
        }
        match &mut self.s.apic.lapic {
            Some(l) => l.set_cr8(value as u8),
            None => {
                let before = core::mem::replace(&mut self.s.apic.cr8, value as u8);
                if self.s.apic.cr8 < before {
                    return self.ask(&SetTpr);
                }
            }
        }
        Step::Again
    }

    /// XSETBV.
    pub(super) fn xsetbv(&mut self, stay: Option<&Stay<'_>>) -> Step {
        let regs = &self.s.cpu.regs;
        let index = regs.get(Gpr::Rcx) as u32;
        let value = regs.get(Gpr::Rdx) << 32 | regs.get(Gpr::Rax) & 0xffff_ffff;
        if !self.s.osxsave() {
            return self.raise_ud();
        }
        if self.s.cpl() != 0 || index != 0 || !xsave::xcr0_valid(value, self.s.allowed_xcr0()) {
            return self.raise_gp();
        }
        let step = self.skip(&Known::XSETBV, stay);
        if !matches!(step, Step::Again) {
            return step;
        }
        self.s.xstate.xcr0 = value;
        self.s.refresh_dynamic();
        // The beginning of a stay loads it.
        Step::Leave
    }
}
