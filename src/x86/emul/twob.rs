// SPDX-License-Identifier: GPL-2.0
//! Two-byte (0F) and three-byte (0F 38) opcode maps (SDM 2D tables, APM 3 table A-2).
#![forbid(unsafe_code)]

use super::decode::Decoder;
use super::insn::{DecodeError, Op, Operand, Rep};
use super::modrm::ModRm;
use DecodeError::{Undefined, Unsupported};

/// Decodes an instruction of the two-byte map and beyond (SDM 2D A.3).
pub(super) fn decode(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    let opcode = d.cur.u8()?;
    match opcode {
        0x01 => group7(d),
        0x06 => d.plain(Op::Clts),
        0x08 => d.plain(Op::Invd),
        0x09 => d.plain(Op::Wbinvd),
        0x20..=0x23 => mov_cr_dr(d, opcode),
        0x30 => d.plain(Op::Wrmsr),
        0x32 => d.plain(Op::Rdmsr),
        0x38 => movbe(d),
        0xa2 => d.plain(Op::Cpuid),
        0xa3 => bit_reg(d, Op::Bt),
        0xaa => d.plain(Op::Rsm),
        0xab => bit_reg(d, Op::Bts),
        0xb0 | 0xb1 => rm_reg(d, opcode, Op::Cmpxchg),
        0xb3 => bit_reg(d, Op::Btr),
        0xb6 | 0xb7 => extend(d, opcode, Op::Movzx),
        0xba => group8(d),
        0xbb => bit_reg(d, Op::Btc),
        0xbe | 0xbf => extend(d, opcode, Op::Movsx),
        0xc0 | 0xc1 => rm_reg(d, opcode, Op::Xadd),
        0xc3 => movnti(d),
        0xc7 => group9(d),
        _ => Err(Unsupported),
    }
}

/// An operation without operands that takes no 66, F2 or F3.
fn np(d: &mut Decoder<'_>, op: Op) -> Result<(), DecodeError> {
    if d.pfx.none() {
        d.plain(op)
    } else {
        Err(Unsupported)
    }
}

/// `op r/m, r`; bit 0 of the opcode clear means byte operands.
fn rm_reg(d: &mut Decoder<'_>, opcode: u8, op: Op) -> Result<(), DecodeError> {
    let m = d.modrm()?;
    let width = d.bv(opcode);
    let (dst, src) = (d.rm(&m, width), d.reg(&m, width));
    d.set(op, dst, src, width);
    Ok(())
}

fn bit_reg(d: &mut Decoder<'_>, op: Op) -> Result<(), DecodeError> {
    rm_reg(d, 1, op)
}

/// MOVZX and MOVSX.
fn extend(d: &mut Decoder<'_>, opcode: u8, op: Op) -> Result<(), DecodeError> {
    let m = d.modrm()?;
    let width = d.opsize();
    let src_width = 1 + (opcode & 1);
    let (dst, src) = (d.reg(&m, width), d.rm(&m, src_width));
    d.set(op, dst, src, width);
    d.insn.src_width = src_width;
    Ok(())
}

fn movnti(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    if !d.pfx.none() {
        return Err(Unsupported);
    }
    let m = d.modrm()?;
    if m.mem.is_none() {
        return Err(Undefined);
    }
    let width = if d.pfx.rex_w() { 8 } else { 4 };
    let src = d.reg(&m, width);
    d.set(Op::Movnti, Operand::Mem, src, width);
    Ok(())
}

/// BT, BTS, BTR and BTC with imm8.
fn group8(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    let m = d.modrm()?;
    let op = match m.ext() {
        4 => Op::Bt,
        5 => Op::Bts,
        6 => Op::Btr,
        7 => Op::Btc,
        _ => return Err(Undefined),
    };
    let width = d.opsize();
    let dst = d.rm(&m, width);
    d.set(op, dst, Operand::Imm, width);
    d.insn.imm = d.cur.unsigned(1)?;
    Ok(())
}

fn group7(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    let m = d.modrm()?;
    match (m.ext(), m.byte) {
        (4, _) => {
            // 16 bits to memory, the operand size to a register.
            let width = if m.mem.is_some() { 2 } else { d.opsize() };
            let dst = d.rm(&m, width);
            d.set(Op::Smsw, dst, Operand::None, width);
            Ok(())
        }
        (6, _) => {
            let src = d.rm(&m, 2);
            d.set(Op::Lmsw, Operand::None, src, 2);
            Ok(())
        }
        (_, 0xc1) => np(d, Op::Vmcall),
        (_, 0xc8) => np(d, Op::Monitor),
        (_, 0xc9) => np(d, Op::Mwait),
        (_, 0xd1) => np(d, Op::Xsetbv),
        // With F2 or F3 this is VMGEXIT, which is VMMCALL in a guest without SEV-ES (APM 3 VMGEXIT).
        (_, 0xd9) => d.plain(Op::Vmmcall),
        _ => Err(Unsupported),
    }
}

/// MOV CRn and MOV DRn: ModRM.mod is ignored, the operand is always a register (SDM 2B MOV).
fn mov_cr_dr(d: &mut Decoder<'_>, opcode: u8) -> Result<(), DecodeError> {
    let byte = d.cur.u8()?;
    let m = ModRm { byte, mem: None };
    let width = if d.long() { 8 } else { 4 };
    let gpr = d.rm(&m, width);
    let n = m.ext() | d.pfx.rex_r();
    let (op, special) = if opcode & 1 == 0 {
        // LOCK with CR0 reaches CR8 outside 64-bit mode, too (APM 3 MOV CRn).
        let n = if d.pfx.lock && n == 0 {
            d.insn.lock = false;
            8
        } else {
            n
        };
        if !matches!(n, 0 | 2 | 3 | 4 | 8) {
            return Err(Undefined);
        }
        (Op::MovCr, Operand::Cr(n))
    } else {
        if n > 7 {
            return Err(Undefined);
        }
        (Op::MovDr, Operand::Dr(n))
    };
    if opcode & 2 == 0 {
        d.set(op, gpr, special, width);
    } else {
        d.set(op, special, gpr, width);
    }
    Ok(())
}

/// CMPXCHG8B and CMPXCHG16B.
fn group9(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    let m = d.modrm()?;
    if m.mem.is_none() || m.ext() != 1 {
        return Err(Unsupported);
    }
    let width = if d.pfx.rex_w() { 16 } else { 8 };
    d.set(Op::Cmpxchg8b, Operand::Mem, Operand::None, width);
    Ok(())
}

/// MOVBE; F2 makes it CRC32.
fn movbe(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    let opcode = d.cur.u8()?;
    if opcode & !1 != 0xf0 || d.pfx.rep != Rep::None {
        return Err(Unsupported);
    }
    let m = d.modrm()?;
    if m.mem.is_none() {
        return Err(Undefined);
    }
    let width = d.opsize();
    let reg = d.reg(&m, width);
    if opcode == 0xf0 {
        d.set(Op::Movbe, reg, Operand::Mem, width);
    } else {
        d.set(Op::Movbe, Operand::Mem, reg, width);
    }
    Ok(())
}
