// SPDX-License-Identifier: GPL-2.0
//! Integer arithmetic and status flags (SDM 1 3.4.3.1, appendix A).
#![forbid(unsafe_code)]

use super::insn::Op;
use super::operand::mask;
use crate::x86::cpu::regs::rflags::{AF, CF, OF, PF, SF, ZF};

/// The six status flags.
pub(super) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// `flag` if `cond`, else 0.
pub(super) const fn when(cond: bool, flag: u64) -> u64 {
    if cond {
        flag
    } else {
        0
    }
}

pub(super) const fn sign_bit(width: u8) -> u64 {
    match width {
        1 => 1 << 7,
        2 => 1 << 15,
        4 => 1 << 31,
        _ => 1 << 63,
    }
}

/// SF, ZF and PF of a result.
pub(super) fn result_flags(r: u64, width: u8) -> u64 {
    when(r & mask(width) == 0, ZF)
        | when(r & sign_bit(width) != 0, SF)
        | when((r as u8).count_ones() & 1 == 0, PF)
}

fn add(a: u64, b: u64, carry: bool, width: u8) -> (u64, u64) {
    let r = a.wrapping_add(b).wrapping_add(u64::from(carry));
    let out = a & b | (a | b) & !r;
    let f = result_flags(r, width)
        | when(out & sign_bit(width) != 0, CF)
        | when(out & 8 != 0, AF)
        | when((a ^ r) & (b ^ r) & sign_bit(width) != 0, OF);
    (r & mask(width), f)
}

fn sub(a: u64, b: u64, borrow: bool, width: u8) -> (u64, u64) {
    let r = a.wrapping_sub(b).wrapping_sub(u64::from(borrow));
    let out = !a & b | (!a | b) & r;
    let f = result_flags(r, width)
        | when(out & sign_bit(width) != 0, CF)
        | when(out & 8 != 0, AF)
        | when((a ^ b) & (a ^ r) & sign_bit(width) != 0, OF);
    (r & mask(width), f)
}

/// CF and OF are cleared; AF, undefined in the manuals, is cleared as processors do.
fn logic(r: u64, width: u8) -> (u64, u64) {
    (r & mask(width), result_flags(r, width))
}

/// Result and new RFLAGS of `op` on operands of `width` bytes, for the operations of opcode rows 00-3F, TEST, XADD (as
/// ADD), INC, DEC, NOT and NEG (which ignore `b`). CMP and TEST return the result although it is not stored. `None`
/// for any other operation.
pub(super) fn arithmetic(op: Op, a: u64, b: u64, width: u8, rflags: u64) -> Option<(u64, u64)> {
    let carry = rflags & CF != 0;
    let (r, f) = match op {
        Op::Add | Op::Xadd => add(a, b, false, width),
        Op::Adc => add(a, b, carry, width),
        Op::Sub | Op::Cmp => sub(a, b, false, width),
        Op::Sbb => sub(a, b, carry, width),
        Op::And | Op::Test => logic(a & b, width),
        Op::Or => logic(a | b, width),
        Op::Xor => logic(a ^ b, width),
        Op::Neg => sub(0, a, false, width),
        Op::Inc => {
            let (r, f) = add(a, 1, false, width);
            (r, f & !CF | rflags & CF)
        }
        Op::Dec => {
            let (r, f) = sub(a, 1, false, width);
            (r, f & !CF | rflags & CF)
        }
        Op::Not => return Some((!a & mask(width), rflags)),
        _ => return None,
    };
    Some((r, rflags & !STATUS | f))
}

/// Result and new RFLAGS of BT, BTS, BTR and BTC on bit `bit` (modulo the width). Only CF changes; the flags that the
/// manuals call undefined keep their value as on processors. `None` for any other operation.
pub(super) fn bit(op: Op, a: u64, bit: u64, width: u8, rflags: u64) -> Option<(u64, u64)> {
    let m = 1u64 << (bit & (u64::from(width) * 8).wrapping_sub(1) & 63);
    let r = match op {
        Op::Bt => a,
        Op::Bts => a | m,
        Op::Btr => a & !m,
        Op::Btc => a ^ m,
        _ => return None,
    };
    Some((r, rflags & !CF | when(a & m != 0, CF)))
}

/// Condition `cond` of Jcc, SETcc and CMOVcc (SDM 1 appendix B).
pub(super) const fn condition(cond: u8, rflags: u64) -> bool {
    let set = match (cond >> 1) & 7 {
        0 => rflags & OF != 0,
        1 => rflags & CF != 0,
        2 => rflags & ZF != 0,
        3 => rflags & (CF | ZF) != 0,
        4 => rflags & SF != 0,
        5 => rflags & PF != 0,
        6 => (rflags & SF != 0) != (rflags & OF != 0),
        _ => rflags & ZF != 0 || (rflags & SF != 0) != (rflags & OF != 0),
    };
    set != (cond & 1 != 0)
}
