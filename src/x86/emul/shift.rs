// SPDX-License-Identifier: GPL-2.0
//! Shifts and rotates (SDM 2B SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD).
//!
//! Flags that the manual calls undefined have the value that the rule for defined ones gives.
#![forbid(unsafe_code)]

use super::alu::{result_flags, sign_bit, when, STATUS};
use super::insn::Op;
use super::operand::{mask, sign_extend};
use crate::x86::cpu::regs::rflags::{CF, OF};

/// Bits of an operand of `width` bytes.
const fn bits_of(width: u8) -> u32 {
    match width {
        1 => 8,
        2 => 16,
        4 => 32,
        _ => 64,
    }
}

/// The bits of a count that matter for an operand of `width` bytes.
const fn masked(count: u8, width: u8) -> u32 {
    (if width == 8 { count & 63 } else { count & 31 }) as u32
}

/// `v` rotated left by `n` among its low `bits` bits.
const fn rotate(v: u128, n: u32, bits: u32) -> u128 {
    v.wrapping_shl(n) | v.wrapping_shr(bits.wrapping_sub(n))
}

/// Bit `n` of `v`.
const fn bit(v: u128, n: u32) -> bool {
    v.wrapping_shr(n) & 1 != 0
}

/// Result and new RFLAGS of a shift or rotate of `a`; `None` for any other operation. A count of zero changes no flag.
pub(super) fn shift(op: Op, a: u64, count: u8, width: u8, rflags: u64) -> Option<(u64, u64)> {
    let bits = bits_of(width);
    let (count, m, sign) = (masked(count, width), mask(width), sign_bit(width));
    let a = a & m;
    if count == 0 {
        return Some((a, rflags));
    }
    let last = count.wrapping_sub(1);
    // Room for the bits that leave on either side.
    let wide = u128::from(a);
    let top = |v: u64| v & sign != 0;
    let rotated = |r: u64, cf: bool, of: bool| {
        let f = rflags & !(CF | OF);
        (r, f | when(cf, CF) | when(of, OF))
    };
    let shifted = |r: u64, cf: bool, of: bool| {
        let f = result_flags(r, width) | when(cf, CF) | when(of, OF);
        (r & m, rflags & !STATUS | f)
    };
    Some(match op {
        Op::Rol => {
            let r = rotate(wide, count % bits, bits) as u64 & m;
            let cf = r & 1 != 0;
            rotated(r, cf, top(r) != cf)
        }
        Op::Ror => {
            let left = bits.wrapping_sub(count % bits) % bits;
            let r = rotate(wide, left, bits) as u64 & m;
            rotated(r, top(r), top(r) != top(r << 1))
        }
        Op::Rcl | Op::Rcr => {
            // The carry is the bit above the operand.
            let all = bits.wrapping_add(1);
            let n = count % all;
            if n == 0 {
                return Some((a, rflags));
            }
            let left = if op == Op::Rcl {
                n
            } else {
                all.wrapping_sub(n)
            };
            let v = u128::from(rflags & CF != 0).wrapping_shl(bits) | wide;
            let v = rotate(v, left, all);
            let (r, cf) = (v as u64 & m, bit(v, bits));
            let next = if op == Op::Rcl { cf } else { top(r << 1) };
            rotated(r, cf, top(r) != next)
        }
        Op::Shl => {
            let v = wide.wrapping_shl(count);
            let (r, cf) = (v as u64 & m, bit(v, bits));
            shifted(r, cf, top(r) != cf)
        }
        Op::Shr => {
            let r = wide.wrapping_shr(count) as u64;
            shifted(r, bit(wide, last), count == 1 && top(a))
        }
        Op::Sar => {
            let v = sign_extend(a, width) as i64 as i128;
            shifted(v.wrapping_shr(count) as u64, bit(v as u128, last), false)
        }
        _ => return None,
    })
}

/// Result and new RFLAGS of SHLD (`left`) or SHRD: bits from `b` come into `a`. Counts above the width, which are
/// undefined, go on with `a` again.
pub(super) fn double(left: bool, a: u64, b: u64, count: u8, width: u8, rflags: u64) -> (u64, u64) {
    let bits = bits_of(width);
    let (count, m, sign) = (masked(count, width), mask(width), sign_bit(width));
    let (a, b) = (a & m, b & m);
    if count == 0 {
        return (a, rflags);
    }
    let back = bits.wrapping_sub(count);
    let (r, cf) = if bits == 64 {
        let (from, to) = if left { (count, back) } else { (back, count) };
        if left {
            (a.wrapping_shl(from) | b.wrapping_shr(to), bit(a.into(), to))
        } else {
            let last = to.wrapping_sub(1);
            (
                a.wrapping_shr(to) | b.wrapping_shl(from),
                bit(a.into(), last),
            )
        }
    } else {
        // Three operands fit.
        let (a, b) = (u128::from(a), u128::from(b));
        let v = (a.wrapping_shl(bits) | b).wrapping_shl(bits) | a;
        if left {
            let v = v.wrapping_shl(count).wrapping_shr(bits.wrapping_mul(2));
            (v as u64, bit(v, bits))
        } else {
            (v.wrapping_shr(count) as u64, bit(v, count.wrapping_sub(1)))
        }
    };
    let r = r & m;
    let f = result_flags(r, width) | when(cf, CF) | when((r ^ a) & sign != 0, OF);
    (r, rflags & !STATUS | f)
}
