// SPDX-License-Identifier: GPL-2.0
//! Control registers and XCR0 (SDM 3A 2.5, 2.6; APM 2 3.1, 11.5).
//!
//! Dispatch calls, with the vCPU's mutex held, inside a stay or outside.

use super::{Runner, Step};
use crate::abi::uapi::k;
use crate::linux::cr;
use crate::mem::memory::MemError;
use crate::x86::cpu::regs::{cr4, Gpr, Seg};
use crate::x86::cpu::{control, events, xsave};
use crate::x86::emul::{Op, Operand};
use crate::x86::exit::{CrAccess, CrOp};
use crate::x86::vcpu::fetch::Known;
use crate::x86::vendor::{Groups, VcpuBackend};

impl Runner<'_> {
    /// MOV CR, CLTS, LMSW.
    pub(super) fn cr_access(&mut self, c: &CrAccess, atomic: bool) -> Step {
        self.s.load(Groups::CTRL.union(Groups::CODE));
        let (cr, write, op, gpr) = match c.op {
            CrOp::Decode => {
                let insn = match self.fetch(atomic) {
                    Ok(i) => i,
                    Err(step) => return step,
                };
                match (insn.op, insn.dst, insn.src) {
                    (Op::MovCr, Operand::Cr(n), Operand::Reg(g)) => (n, true, CrOp::Mov, Some(g)),
                    (Op::MovCr, Operand::Reg(g), Operand::Cr(n)) => (n, false, CrOp::Mov, Some(g)),
                    (Op::Clts, _, _) => (0, true, CrOp::Clts, None),
                    (Op::Lmsw, _, Operand::Reg(g)) => {
                        (0, true, CrOp::Lmsw(self.s.cpu.regs.get(g) as u16), None)
                    }
                    _ => {
                        return self.not_emulated(&insn);
                    }
                }
            }
            op => (c.cr, c.write, op, c.gpr),
        };
        let long = self.in_64_bit_code();
        if !write {
            let value = match cr {
                0 => self.s.cpu.sregs.cr0,
                3 => self.s.cpu.sregs.cr3,
                4 => self.s.cpu.sregs.cr4,
                _ => u64::from(self.s.cr8()),
            };
            let step = self.skip(atomic, &Known::CR);
            if matches!(step, Step::Again) {
                if let Some(g) = gpr {
                    self.s
                        .cpu
                        .regs
                        .set(g, if long { value } else { value & 0xffff_ffff });
                }
            }
            return step;
        }
        let source = gpr.map_or(0, |g| self.s.cpu.regs.get(g));
        let source = if long { source } else { source & 0xffff_ffff };
        let old = self.s.cpu.sregs;
        let new_value = match op {
            CrOp::Clts => old.cr0 & !crate::x86::cpu::regs::cr0::TS,
            // LMSW cannot clear PE.
            CrOp::Lmsw(v) => old.cr0 & !0xe | u64::from(v & 0xf),
            _ => source,
        };
        // Validate, then fetch (which may have to sleep), then change.
        enum New {
            Cr0(u64, u64),
            Cr3(u64),
            Cr4(u64, bool, bool),
            Cr8(u8),
        }
        let mut load_pdptes = None;
        let new = match cr {
            0 => match control::cr0_write_check(
                old.cr0,
                new_value,
                old.cr4,
                old.efer,
                old.seg(Seg::Cs).l,
            ) {
                Ok(w) => {
                    load_pdptes = w.load_pdptes.then_some(old.cr3);
                    New::Cr0(w.cr0, w.efer)
                }
                Err(_) => return self.raise_gp(),
            },
            3 => {
                match control::cr3_write_check(new_value, old.cr4, old.efer, &self.s.cpuid.features)
                {
                    Ok(w) => {
                        load_pdptes = old.pae_paging().then_some(w.cr3);
                        New::Cr3(w.cr3)
                    }
                    Err(_) => return self.raise_gp(),
                }
            }
            4 => match control::cr4_write_check(
                old.cr4,
                new_value,
                old.cr0,
                old.cr3,
                old.efer,
                &self.s.cpuid.features,
            ) {
                Ok(w) => {
                    load_pdptes = w.load_pdptes.then_some(old.cr3);
                    New::Cr4(w.cr4, w.flush, w.cpuid_changed)
                }
                Err(_) => return self.raise_gp(),
            },
            8 if new_value >> 4 == 0 => New::Cr8(new_value as u8),
            8 => return self.raise_gp(),
            _ => return self.raise(events::exception(events::vector::UD, None)),
        };
        let pdptes = match load_pdptes.map(|cr3| self.s.read_pdptes(self.vm, cr3, atomic)) {
            None => None,
            Some(Ok(p)) => Some(p),
            Some(Err(MemError::Fault)) if atomic => return Step::Slow,
            Some(Err(_)) => return self.raise_gp(),
        };
        let step = self.skip(atomic, &Known::CR);
        if !matches!(step, Step::Again) {
            return step;
        }
        if let Some(p) = pdptes {
            self.s.hw.set_pdptes(p);
        }
        match new {
            New::Cr0(cr0, efer) => {
                self.s.cpu.sregs.cr0 = cr0;
                self.s.cpu.sregs.efer = efer;
                self.s.dirty(Groups::CTRL);
                self.s.last_stay.tlb_generation = 0;
            }
            New::Cr3(cr3) => {
                self.s.cpu.sregs.cr3 = cr3;
                self.s.dirty(Groups::CTRL);
                self.s.last_stay.tlb_generation = 0;
            }
            New::Cr4(value, flush, cpuid_changed) => {
                self.s.cpu.sregs.cr4 = value;
                self.s.dirty(Groups::CTRL);
                if flush {
                    self.s.last_stay.tlb_generation = 0;
                }
                if cpuid_changed || (value ^ old.cr4) & cr4::OSXSAVE != 0 {
                    self.s.refresh_dynamic();
                } else {
                    self.s.cpuid.dynamic.cr4 = value;
                }
            }
            New::Cr8(v) => match &mut self.s.apic.lapic {
                Some(l) => l.set_cr8(v),
                None => {
                    let lower = v < self.s.apic.cr8;
                    self.s.apic.cr8 = v;
                    if lower {
                        // User space's local APIC has to look whether something can be delivered now.
                        self.set_exit(k::KVM_EXIT_SET_TPR);
                        return Step::User;
                    }
                }
            },
        }
        Step::Again
    }

    pub(super) fn xsetbv(&mut self, atomic: bool) -> Step {
        let regs = &self.s.cpu.regs;
        let index = regs.get(Gpr::Rcx) as u32;
        let value = regs.get(Gpr::Rdx) << 32 | regs.get(Gpr::Rax) & 0xffff_ffff;
        if !self.s.osxsave() {
            return self.raise(events::exception(events::vector::UD, None));
        }
        if self.s.cpl() != 0 || index != 0 || !xsave::xcr0_valid(value, self.s.allowed_xcr0()) {
            return self.raise_gp();
        }
        let step = self.skip(atomic, &Known::XSETBV);
        if matches!(step, Step::Again) {
            self.s.xstate.xcr0 = value;
            self.s.refresh_dynamic();
            if atomic {
                // SAFETY: In a stay, whose end restores the host's value; checked above.
                unsafe { cr::xsetbv(0, value) };
            }
        }
        step
    }
}
