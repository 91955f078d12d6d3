// SPDX-License-Identifier: GPL-2.0
//! Debug registers (SDM 3B 19.2; APM 2 13.1).
//!
//! Dispatch calls, with the vCPU's mutex held, inside a stay or outside.

use super::{Runner, Step};
use crate::nospec::Nospec;
use crate::x86::cpu::events;
use crate::x86::cpu::regs::{cr4, dr6, dr7};
use crate::x86::emul::{Op, Operand};
use crate::x86::exit::Exception;
use crate::x86::vcpu::debug;
use crate::x86::vendor::{Groups, Stay};

impl Runner<'_> {
    /// MOV DR.
    pub(super) fn dr_access(&mut self, stay: Option<&Stay<'_>>) -> Step {
        let insn = match self.fetch(stay) {
            Ok(i) => i,
            Err(step) => return step,
        };
        let (n, g, write) = match (insn.op, insn.dst, insn.src) {
            (Op::MovDr, Operand::Dr(n), Operand::Reg(g)) => (n, g, true),
            (Op::MovDr, Operand::Reg(g), Operand::Dr(n)) => (n, g, false),
            _ => return self.not_emulated(&insn),
        };
        self.s.load(Groups::CTRL.union(Groups::CODE));
        // The instruction's own faults come before the intercept (CPL, CR4.DE) on VMX and SVM, but DR7.GD is ours.
        let debugged = self.s.debug.takes_debug() && self.s.cpu.dr7 & debug::GENERAL_DETECT != 0;
        let (mut dr, mut dr7) = self.s.guest_breakpoints();
        if debugged || dr7 & debug::GENERAL_DETECT != 0 {
            let db = Exception {
                vector: events::vector::DB,
                error_code: None,
                payload: debug::GENERAL_DETECT,
            };
            return if debugged {
                self.debug_exit(&db)
            } else {
                self.raise(db)
            };
        }
        if self.s.cpl() != 0 {
            return self.raise_gp();
        }
        let n = match n {
            4 | 5 if self.s.cpu.sregs.cr4 & cr4::DE != 0 => return self.raise_ud(),
            4 | 5 => n + 2,
            n => n & 7,
        };
        let mask = self.operand_mask();
        let cpu = &mut self.s.cpu;
        if write {
            let v = cpu.regs.get(g) & mask;
            if n >= 6 && v >> 32 != 0 {
                return self.raise_gp();
            }
            match n {
                6 => cpu.dr6 = dr6::loaded(v),
                7 => dr7 = dr7::loaded(v),
                n => {
                    if let Some(d) = dr.get_nospec_mut(usize::from(n)) {
                        *d = v;
                    }
                }
            }
            self.s.set_guest_breakpoints(dr, dr7);
        } else {
            let v = match n {
                6 => cpu.dr6,
                7 => dr7,
                n => dr.get_nospec(usize::from(n)).copied().unwrap_or(0),
            };
            cpu.regs.set(g, v & mask);
        }
        self.s.advance(insn.len());
        Step::Again
    }
}
