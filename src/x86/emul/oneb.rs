// SPDX-License-Identifier: GPL-2.0
//! One-byte opcode map (SDM 2D table A-2, APM 3 table A-1).
#![forbid(unsafe_code)]

use super::decode::Decoder;
use super::insn::{DecodeError, Op, Operand, Rep};
use crate::x86::cpu::regs::{Gpr, Seg};
use DecodeError::{Undefined, Unsupported};

/// Group 1 and the opcode rows 00-3F, in the order of bits 5:3.
const fn arithmetic(n: u8) -> Op {
    match n & 7 {
        0 => Op::Add,
        1 => Op::Or,
        2 => Op::Adc,
        3 => Op::Sbb,
        4 => Op::And,
        5 => Op::Sub,
        6 => Op::Xor,
        _ => Op::Cmp,
    }
}

/// Decodes an instruction of the one-byte opcode map (SDM 2D A.3).
pub(super) fn decode(d: &mut Decoder<'_>, opcode: u8) -> Result<(), DecodeError> {
    match opcode {
        // op r/m, r and op r, r/m.
        0x00..=0x3f if opcode & 7 < 4 => rm_reg(d, opcode, arithmetic(opcode >> 3)),
        0x63 if d.long() => movsxd(d),
        0x6c..=0x6f => port_string(d, opcode),
        0x80..=0x83 => group1(d, opcode),
        0x84 | 0x85 => rm_reg(d, opcode & 1, Op::Test),
        0x86 | 0x87 => rm_reg(d, opcode & 1, Op::Xchg),
        0x88..=0x8b => rm_reg(d, opcode, Op::Mov),
        0x8f => {
            let m = d.modrm()?;
            if m.ext() != 0 {
                // XOP, or undefined.
                return Err(Unsupported);
            }
            stack(d, &m, Op::Pop)
        }
        0x90 if d.pfx.rep == Rep::Rep && d.pfx.rex_b() == 0 => d.plain(Op::Pause),
        0xa0..=0xa3 => {
            let width = d.bv(opcode);
            d.moffs()?;
            let (dst, src) = order(opcode & 2 == 0, Operand::Reg(Gpr::Rax), Operand::Mem);
            d.set(Op::Mov, dst, src, width);
            Ok(())
        }
        0xa4..=0xa7 | 0xaa..=0xaf => string(d, opcode),
        0xc6 | 0xc7 => {
            let m = d.modrm()?;
            if m.ext() != 0 {
                // XABORT and XBEGIN are /7 with r/m 0.
                return Err(if m.byte == 0xf8 {
                    Unsupported
                } else {
                    Undefined
                });
            }
            let width = d.bv(opcode);
            let dst = d.rm(&m, width);
            d.set(Op::Mov, dst, Operand::Imm, width);
            d.immediate(width)
        }
        0xe4..=0xe7 | 0xec..=0xef => port(d, opcode),
        0xf4 => d.plain(Op::Hlt),
        0xf6 | 0xf7 => group3(d, opcode),
        0xfe | 0xff => group45(d, opcode),
        _ => Err(Unsupported),
    }
}

fn order(swap: bool, a: Operand, b: Operand) -> (Operand, Operand) {
    if swap {
        (a, b)
    } else {
        (b, a)
    }
}

/// Bit 0 selects byte operands, bit 1 the direction.
fn rm_reg(d: &mut Decoder<'_>, opcode: u8, op: Op) -> Result<(), DecodeError> {
    let m = d.modrm()?;
    let width = d.bv(opcode);
    let (dst, src) = order(opcode & 2 == 0, d.rm(&m, width), d.reg(&m, width));
    d.set(op, dst, src, width);
    Ok(())
}

/// MOVSXD; with a 16-bit operand size the source is 16 bits, too (SDM 2B MOVSX).
fn movsxd(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    let m = d.modrm()?;
    let width = d.opsize();
    let src_width = width.min(4);
    let (dst, src) = (d.reg(&m, width), d.rm(&m, src_width));
    d.set(Op::Movsx, dst, src, width);
    d.insn.src_width = src_width;
    Ok(())
}

fn group1(d: &mut Decoder<'_>, opcode: u8) -> Result<(), DecodeError> {
    if opcode == 0x82 && d.long() {
        return Err(Undefined);
    }
    let m = d.modrm()?;
    let width = d.bv(opcode);
    let dst = d.rm(&m, width);
    d.set(arithmetic(m.ext()), dst, Operand::Imm, width);
    d.immediate(if opcode == 0x83 { 1 } else { width })
}

fn group3(d: &mut Decoder<'_>, opcode: u8) -> Result<(), DecodeError> {
    let m = d.modrm()?;
    let width = d.bv(opcode);
    let dst = d.rm(&m, width);
    match m.ext() {
        0 | 1 => {
            d.set(Op::Test, dst, Operand::Imm, width);
            d.immediate(width)?;
        }
        2 => d.set(Op::Not, dst, Operand::None, width),
        3 => d.set(Op::Neg, dst, Operand::None, width),
        _ => return Err(Unsupported),
    }
    Ok(())
}

fn group45(d: &mut Decoder<'_>, opcode: u8) -> Result<(), DecodeError> {
    let m = d.modrm()?;
    let width = d.bv(opcode);
    let dst = d.rm(&m, width);
    match m.ext() {
        0 => d.set(Op::Inc, dst, Operand::None, width),
        1 => d.set(Op::Dec, dst, Operand::None, width),
        6 if opcode == 0xff => return stack(d, &m, Op::Push),
        2..=5 if opcode == 0xff => return Err(Unsupported),
        _ => return Err(Undefined),
    }
    Ok(())
}

/// PUSH and POP r/m: 64-bit by default in 64-bit mode (SDM 2D A.2.5, "d64").
fn stack(d: &mut Decoder<'_>, m: &super::modrm::ModRm, op: Op) -> Result<(), DecodeError> {
    let width = match d.opsize() {
        4 if d.long() => 8,
        w => w,
    };
    let operand = d.rm(m, width);
    if op == Op::Push {
        d.set(op, Operand::None, operand, width);
    } else {
        d.set(op, operand, Operand::None, width);
    }
    Ok(())
}

fn string(d: &mut Decoder<'_>, opcode: u8) -> Result<(), DecodeError> {
    use Operand::{StrDst, StrSrc};
    let rax = Operand::Reg(Gpr::Rax);
    let (op, dst, src) = match opcode & 0xfe {
        0xa4 => (Op::Movs, StrDst, StrSrc),
        0xa6 => (Op::Cmps, StrSrc, StrDst),
        0xaa => (Op::Stos, StrDst, rax),
        0xac => (Op::Lods, rax, StrSrc),
        _ => (Op::Scas, rax, StrDst),
    };
    let width = d.bv(opcode);
    d.set(op, dst, src, width);
    d.insn.mem.seg = d.pfx.seg.unwrap_or(Seg::Ds);
    Ok(())
}

/// INS and OUTS.
fn port_string(d: &mut Decoder<'_>, opcode: u8) -> Result<(), DecodeError> {
    let width = d.bv(opcode).min(4);
    if opcode < 0x6e {
        d.set(Op::Ins, Operand::StrDst, Operand::Dx, width);
    } else {
        d.set(Op::Outs, Operand::Dx, Operand::StrSrc, width);
    }
    d.insn.mem.seg = d.pfx.seg.unwrap_or(Seg::Ds);
    Ok(())
}

/// IN and OUT.
fn port(d: &mut Decoder<'_>, opcode: u8) -> Result<(), DecodeError> {
    let width = d.bv(opcode).min(4);
    let rax = Operand::Reg(Gpr::Rax);
    let port = if opcode & 8 == 0 {
        d.insn.imm = d.cur.unsigned(1)?;
        Operand::Imm
    } else {
        Operand::Dx
    };
    if opcode & 2 == 0 {
        d.set(Op::In, rax, port, width);
    } else {
        d.set(Op::Out, port, rax, width);
    }
    Ok(())
}
