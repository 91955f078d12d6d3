// SPDX-License-Identifier: GPL-2.0
//! Loads and stores by MOV, MOVNTI, MOVZX and MOVSX in a form small enough to keep while user space completes the
//! access.
//!
//! Drivers use hardly anything else to reach their registers. Such a move has one access and no flags, so none of what
//! [`execute()`](super::exec::execute) does for restarts is needed. That both do the same is the test
//! `a_move_is_what_execute_does` in tools/logic/tests/emul_moves.rs.
#![forbid(unsafe_code)]

use super::exec::advance;
use super::insn::{Insn, Op, Operand};
use super::operand::{mask, read_reg, sign_extend, write_reg};
use crate::x86::cpu::regs::{Mode, Regs};

/// A move between a register or immediate and one memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The register; [`Operand::Imm`] for the store of an immediate.
    reg: Operand,
    /// Width of the register in bytes.
    width: u8,
    /// Width of the access in bytes: 1, 2, 4 or 8.
    access: u8,
    signed: bool,
    store: bool,
    /// Length of the instruction.
    len: u8,
    /// Mode of the code.
    mode: Mode,
}

impl Move {
    /// `insn` of code in `mode` as a move; `None` for anything else.
    #[inline]
    pub fn of(insn: &Insn, mode: Mode) -> Option<Self> {
        let (access, signed) = match insn.op {
            Op::Mov | Op::Movnti => (insn.width, false),
            Op::Movzx => (insn.src_width, false),
            Op::Movsx => (insn.src_width, true),
            _ => return None,
        };
        let (reg, store) = match (insn.dst, insn.src) {
            (Operand::Mem, r @ (Operand::Reg(_) | Operand::High(_) | Operand::Imm)) => (r, true),
            (r @ (Operand::Reg(_) | Operand::High(_)), Operand::Mem) => (r, false),
            _ => return None,
        };
        Some(Self {
            reg,
            width: insn.width,
            access,
            signed,
            store,
            len: insn.len(),
            mode,
        })
    }

    /// Whether it writes to memory.
    #[inline]
    pub fn is_store(&self) -> bool {
        self.store
    }

    /// Bytes of memory it accesses.
    #[inline]
    pub fn size(&self) -> u8 {
        self.access
    }

    /// What a store writes, zero-extended. `imm` is the instruction's immediate.
    #[inline]
    pub fn value(&self, regs: &Regs, imm: u64) -> u64 {
        read_reg(regs, self.reg, self.access).unwrap_or(imm & mask(self.access))
    }

    /// Completes the instruction; `data` is what a load has read.
    #[inline]
    pub fn finish(&self, regs: &mut Regs, data: u64) {
        if !self.store {
            let data = data & mask(self.access);
            let value = if self.signed {
                sign_extend(data, self.access)
            } else {
                data
            };
            write_reg(regs, self.reg, self.width, value);
        }
        advance(regs, self.len, self.mode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::cpu::regs::{rflags, Gpr};
    use crate::x86::emul::decode::decode;

    fn of(bytes: &[u8]) -> Option<(Move, Insn)> {
        let insn = decode(bytes, Mode::Long).unwrap();
        Move::of(&insn, Mode::Long).map(|m| (m, insn))
    }

    #[test]
    fn loads() {
        // (instruction, data, RAX after, from all ones)
        let table: [(&[u8], u64, u64); 7] = [
            (&[0x8b, 0x07], 0x1122_3344_8555_6677, 0x8555_6677),
            (
                &[0x48, 0x8b, 0x07],
                0x8122_3344_5566_7788,
                0x8122_3344_5566_7788,
            ),
            (&[0x66, 0x8b, 0x07], 0x8899, 0xffff_ffff_ffff_8899),
            (&[0x8a, 0x07], 0x1234, 0xffff_ffff_ffff_ff34),
            (&[0x8a, 0x27], 0x34, 0xffff_ffff_ffff_34ff),
            (&[0x0f, 0xb7, 0x07], 0x1_8899, 0x8899),
            (&[0x48, 0x0f, 0xbe, 0x07], 0x80, 0xffff_ffff_ffff_ff80),
        ];
        for (bytes, data, want) in table {
            let (m, insn) = of(bytes).unwrap();
            let mut regs = Regs::default();
            regs.set(Gpr::Rax, u64::MAX);
            regs.rflags = rflags::RF | rflags::FIXED;
            regs.rip = 0x1000;
            assert!(!m.is_store());
            m.finish(&mut regs, data);
            assert_eq!(regs.get(Gpr::Rax), want, "{bytes:x?}");
            assert_eq!(regs.rip, 0x1000 + u64::from(insn.len()));
            assert_eq!(regs.rflags, rflags::FIXED);
        }
    }

    #[test]
    fn stores() {
        let table: [(&[u8], u8, u64); 5] = [
            (&[0x89, 0x07], 4, 0x5566_7788),
            (&[0x48, 0x89, 0x07], 8, 0x1122_3344_5566_7788),
            (&[0x88, 0x27], 1, 0x77),
            (&[0xc7, 0x07, 0xfe, 0xff, 0xff, 0xff], 4, 0xffff_fffe),
            (&[0xc6, 0x07, 0x81], 1, 0x81),
        ];
        for (bytes, size, want) in table {
            let (m, insn) = of(bytes).unwrap();
            let mut regs = Regs::default();
            regs.set(Gpr::Rax, 0x1122_3344_5566_7788);
            assert!(m.is_store());
            assert_eq!((m.size(), m.value(&regs, insn.imm)), (size, want));
            m.finish(&mut regs, 0);
            assert_eq!(regs.get(Gpr::Rax), 0x1122_3344_5566_7788);
            assert_eq!(regs.rip, u64::from(insn.len()));
        }
    }

    #[test]
    fn others() {
        // ADD [rdi], eax; MOV eax, ebx; XCHG; MOVSB.
        for bytes in [&[0x01, 0x07][..], &[0x89, 0xd8], &[0x87, 0x07], &[0xa4]] {
            assert!(of(bytes).is_none(), "{bytes:x?}");
        }
    }
}
