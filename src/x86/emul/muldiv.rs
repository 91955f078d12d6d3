// SPDX-License-Identifier: GPL-2.0
//! Multiplication, division and bit scans (SDM 2A BSF, BSR, DIV, IDIV, IMUL; SDM 2B MUL).
//!
//! Flags that the manual calls undefined are left alone.
#![forbid(unsafe_code)]

use super::alu::{sign_bit, when};
use super::env::{Env, Stop};
use super::exec::Context;
use super::insn::{Op, Operand};
use super::operand::{mask, merge, sign_extend};
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::rflags::{CF, OF, ZF};
use crate::x86::cpu::regs::Gpr;

/// Low and high part of the product of two values of `width` bytes, and whether the high part says more than the low.
fn product(signed: bool, a: u64, b: u64, width: u8) -> (u64, u64, bool) {
    let bits = u32::from(width).wrapping_mul(8);
    let m = mask(width);
    let wide = if signed {
        let (a, b) = (sign_extend(a, width) as i64, sign_extend(b, width) as i64);
        i128::from(a).wrapping_mul(i128::from(b)) as u128
    } else {
        u128::from(a).wrapping_mul(u128::from(b))
    };
    let (low, high) = (wide as u64 & m, wide.wrapping_shr(bits) as u64 & m);
    let implied = if signed && low & sign_bit(width) != 0 {
        m
    } else {
        0
    };
    (low, high, high != implied)
}

/// Quotient and remainder of `high`:`low` by `b`, all of `width` bytes; `None` where it is undefined or does not fit.
fn divide(high: u64, low: u64, b: u64, width: u8) -> Option<(u64, u64)> {
    if high >= b {
        return None;
    }
    if width < 8 {
        let bits = u32::from(width).wrapping_mul(8);
        let a = high.wrapping_shl(bits) | low;
        return Some((a.checked_div(b)?, a.checked_rem(b)?));
    }
    // Bit by bit: the kernel has no division of 128 bits.
    let (mut rest, mut quotient) = (high, 0u64);
    let mut low = low;
    for _ in 0..64 {
        let carry = rest >> 63 != 0;
        rest = rest << 1 | low >> 63;
        low <<= 1;
        quotient <<= 1;
        if carry || rest >= b {
            rest = rest.wrapping_sub(b);
            quotient |= 1;
        }
    }
    Some((quotient, rest))
}

/// [`divide`] of signed values; rounds to zero.
fn divide_signed(high: u64, low: u64, b: u64, width: u8) -> Option<(u64, u64)> {
    let (m, sign) = (mask(width), sign_bit(width));
    let negative = |v: u64| v & sign != 0;
    let (mut h, mut l, mut divisor) = (high, low, b);
    if negative(high) {
        l = low.wrapping_neg() & m;
        h = (!high).wrapping_add(u64::from(low == 0)) & m;
    }
    if negative(b) {
        divisor = b.wrapping_neg() & m;
    }
    let (q, r) = divide(h, l, divisor, width)?;
    let minus = negative(high) != negative(b);
    if q > sign.wrapping_sub(u64::from(!minus)) {
        return None;
    }
    let signed = |v: u64, minus: bool| if minus { v.wrapping_neg() & m } else { v };
    Some((signed(q, minus), signed(r, negative(high))))
}

impl<E: Env + ?Sized> Context<'_, E> {
    /// MUL, IMUL, DIV, IDIV, BSF, BSR, TZCNT and LZCNT.
    #[inline(never)]
    pub(super) fn multiply(&mut self) -> Result<(), Stop> {
        let insn = self.insn;
        let width = insn.width;
        let b = self.load(insn.src, width)?;
        let op = match insn.op {
            Op::Tzcnt if !self.env.has_tzcnt() => Op::Bsf,
            Op::Lzcnt if !self.env.has_lzcnt() => Op::Bsr,
            op => op,
        };
        match op {
            Op::Bsf | Op::Bsr => {
                let zero = b == 0;
                self.regs.rflags = self.regs.rflags & !ZF | when(zero, ZF);
                if zero {
                    return Ok(());
                }
                let bit = if op == Op::Bsf {
                    b.trailing_zeros()
                } else {
                    63u32.wrapping_sub(b.leading_zeros())
                };
                self.store(insn.dst, width, bit.into())
            }
            Op::Tzcnt | Op::Lzcnt => {
                let bits = u32::from(width).wrapping_mul(8);
                let n = if op == Op::Tzcnt {
                    b.trailing_zeros().min(bits)
                } else {
                    bits.wrapping_sub(64u32.wrapping_sub(b.leading_zeros()))
                };
                let flags = when(b == 0, CF) | when(n == 0, ZF);
                self.regs.rflags = self.regs.rflags & !(CF | ZF) | flags;
                self.store(insn.dst, width, n.into())
            }
            Op::Imul => {
                let factor = match insn.third {
                    Operand::None => insn.dst,
                    other => other,
                };
                let a = self.load(factor, width)?;
                let (low, _, more) = product(true, a, b, width);
                self.overflow(more);
                self.store(insn.dst, width, low)
            }
            Op::Mul | Op::ImulAcc => {
                let a = self.load(Operand::Reg(Gpr::Rax), width)?;
                let (low, high, more) = product(insn.op == Op::ImulAcc, a, b, width);
                self.overflow(more);
                self.set_pair(low, high)
            }
            _ => {
                let low = self.load(Operand::Reg(Gpr::Rax), width)?;
                let high = match width {
                    1 => self.load(Operand::High(Gpr::Rax), 1)?,
                    _ => self.load(Operand::Reg(Gpr::Rdx), width)?,
                };
                let result = if insn.op == Op::Idiv {
                    divide_signed(high, low, b, width)
                } else {
                    divide(high, low, b, width)
                };
                let (quotient, rest) = result.ok_or(self.exception(vector::DE))?;
                self.set_pair(quotient, rest)
            }
        }
    }

    fn overflow(&mut self, set: bool) {
        self.regs.rflags = self.regs.rflags & !(CF | OF) | when(set, CF | OF);
    }

    /// Sets AL and AH, or rAX and rDX.
    fn set_pair(&mut self, low: u64, high: u64) -> Result<(), Stop> {
        let width = self.insn.width;
        let rax = self.regs.get(Gpr::Rax);
        if width == 1 {
            return self.set(Gpr::Rax, merge(rax, high << 8 | low, 2));
        }
        let rdx = self.regs.get(Gpr::Rdx);
        self.set(Gpr::Rax, merge(rax, low, width))?;
        self.set(Gpr::Rdx, merge(rdx, high, width))
    }
}
