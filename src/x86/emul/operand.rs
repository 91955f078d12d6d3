// SPDX-License-Identifier: GPL-2.0
//! Register operands: partial reads and writes (SDM 1 3.4.1).
#![forbid(unsafe_code)]

use super::insn::Operand;
use crate::x86::cpu::regs::{Gpr, Regs};

/// The low `width` bytes set: 1, 2, 4 bytes, else all 64 bits.
#[inline]
pub const fn mask(width: u8) -> u64 {
    match width {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// `value` with its low `width` bytes sign-extended to 64 bits.
pub(super) const fn sign_extend(value: u64, width: u8) -> u64 {
    match width {
        1 => value as u8 as i8 as u64,
        2 => value as u16 as i16 as u64,
        4 => value as u32 as i32 as u64,
        _ => value,
    }
}

/// `old` with its low `width` bytes replaced; a 4-byte write clears the upper half.
pub(super) const fn merge(old: u64, value: u64, width: u8) -> u64 {
    let m = mask(width);
    match width {
        1 | 2 => old & !m | value & m,
        _ => value & m,
    }
}

/// `old` with bits 15:8 replaced.
pub(super) const fn merge_high(old: u64, value: u64) -> u64 {
    old & !0xff00 | ((value & 0xff) << 8)
}

/// [`Regs::get`] without a bounds check: the mask shows the compiler what the type already guarantees.
pub(super) fn gpr(regs: &Regs, r: Gpr) -> u64 {
    regs.gpr[r as usize & 15]
}

/// [`Regs::set`] without a bounds check.
pub(super) fn set_gpr(regs: &mut Regs, r: Gpr, value: u64) {
    regs.gpr[r as usize & 15] = value;
}

/// Value of a register operand, zero-extended from `width` bytes; `None` if the operand is not a general-purpose
/// register.
pub fn read_reg(regs: &Regs, operand: Operand, width: u8) -> Option<u64> {
    match operand {
        Operand::Reg(r) => Some(gpr(regs, r) & mask(width)),
        Operand::High(r) => Some((gpr(regs, r) >> 8) & 0xff),
        _ => None,
    }
}

/// Writes the low `width` bytes of a register operand: 8- and 16-bit writes keep the other bits, 32-bit writes clear
/// the upper half. False, and nothing written, if the operand is not a general-purpose register.
pub fn write_reg(regs: &mut Regs, operand: Operand, width: u8, value: u64) -> bool {
    match operand {
        Operand::Reg(r) => set_gpr(regs, r, merge(gpr(regs, r), value, width)),
        Operand::High(r) => {
            let old = gpr(regs, r);
            set_gpr(regs, r, merge_high(old, value));
        }
        _ => return false,
    }
    true
}
