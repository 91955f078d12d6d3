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
        0x00 => group6(d),
        0x01 => group7(d),
        0x06 => d.plain(Op::Clts),
        0x08 => d.plain(Op::Invd),
        0x09 => d.plain(Op::Wbinvd),
        0x20..=0x23 => mov_cr_dr(d, opcode),
        0x30 => d.plain(Op::Wrmsr),
        0x31 => d.plain(Op::Rdtsc),
        0x32 => d.plain(Op::Rdmsr),
        0x33 => d.plain(Op::Rdpmc),
        0x37 => np(d, Op::Getsec),
        0x38 => three_byte(d),
        0x78 | 0x79 => vmread_vmwrite(d, opcode),
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

/// A single memory operand of `width` bytes; 0 when the instruction defines its size.
fn mem_only(d: &mut Decoder<'_>, op: Op, width: u8) -> Result<(), DecodeError> {
    d.set(op, Operand::Mem, Operand::None, width);
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

fn group6(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    let m = d.modrm()?;
    match m.ext() {
        0 => store_word(d, &m, Op::Sldt),
        1 => store_word(d, &m, Op::Str),
        2 => load_word(d, &m, Op::Lldt),
        3 => load_word(d, &m, Op::Ltr),
        _ => Err(Unsupported),
    }
}

/// SLDT, STR and SMSW: 16 bits to memory, the operand size to a register.
fn store_word(d: &mut Decoder<'_>, m: &ModRm, op: Op) -> Result<(), DecodeError> {
    let width = if m.mem.is_some() { 2 } else { d.opsize() };
    let dst = d.rm(m, width);
    d.set(op, dst, Operand::None, width);
    Ok(())
}

/// LLDT, LTR and LMSW: 16 bits.
fn load_word(d: &mut Decoder<'_>, m: &ModRm, op: Op) -> Result<(), DecodeError> {
    let src = d.rm(m, 2);
    d.set(op, Operand::None, src, 2);
    Ok(())
}

fn group7(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    let m = d.modrm()?;
    match m.ext() {
        4 => return store_word(d, &m, Op::Smsw),
        6 => return load_word(d, &m, Op::Lmsw),
        _ => {}
    }
    if m.mem.is_some() {
        return match m.ext() {
            0 => mem_only(d, Op::Sgdt, 0),
            1 => mem_only(d, Op::Sidt, 0),
            2 => mem_only(d, Op::Lgdt, 0),
            3 => mem_only(d, Op::Lidt, 0),
            7 => mem_only(d, Op::Invlpg, 0),
            _ => Err(Unsupported),
        };
    }
    match m.byte {
        0xc1 => np(d, Op::Vmcall),
        0xc2 => np(d, Op::Vmlaunch),
        0xc3 => np(d, Op::Vmresume),
        0xc4 => np(d, Op::Vmxoff),
        0xc8 => np(d, Op::Monitor),
        0xc9 => np(d, Op::Mwait),
        0xd0 => np(d, Op::Xgetbv),
        0xd1 => np(d, Op::Xsetbv),
        0xd4 => np(d, Op::Vmfunc),
        0xd8 => d.plain(Op::Vmrun),
        // With F2 or F3 this is VMGEXIT, which is VMMCALL in a guest without SEV-ES (APM 3 VMGEXIT).
        0xd9 => d.plain(Op::Vmmcall),
        0xda => d.plain(Op::Vmload),
        0xdb => d.plain(Op::Vmsave),
        0xdc => d.plain(Op::Stgi),
        0xdd => d.plain(Op::Clgi),
        0xde => d.plain(Op::Skinit),
        0xdf => d.plain(Op::Invlpga),
        0xf9 => d.plain(Op::Rdtscp),
        0xfa => np(d, Op::Monitorx),
        0xfb => np(d, Op::Mwaitx),
        0xfd => np(d, Op::Rdpru),
        0xfe => np(d, Op::Invlpgb),
        0xff => np(d, Op::Tlbsync),
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

fn vmread_vmwrite(d: &mut Decoder<'_>, opcode: u8) -> Result<(), DecodeError> {
    if !d.pfx.none() {
        // EXTRQ and INSERTQ.
        return Err(Unsupported);
    }
    let m = d.modrm()?;
    let width = if d.long() { 8 } else { 4 };
    let (rm, reg) = (d.rm(&m, width), d.reg(&m, width));
    if opcode == 0x78 {
        d.set(Op::Vmread, rm, reg, width);
    } else {
        d.set(Op::Vmwrite, reg, rm, width);
    }
    Ok(())
}

fn group9(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    let m = d.modrm()?;
    let p = d.pfx;
    if m.mem.is_some() {
        return match (m.ext(), p.rep, p.opsize) {
            (1, _, _) => {
                let width = if p.rex_w() { 16 } else { 8 };
                mem_only(d, Op::Cmpxchg8b, width)
            }
            (3, Rep::None, false) => mem_only(d, Op::Xrstors, 0),
            (5, Rep::None, false) => mem_only(d, Op::Xsaves, 0),
            (6, Rep::None, false) => mem_only(d, Op::Vmptrld, 8),
            (6, Rep::None, true) => mem_only(d, Op::Vmclear, 8),
            (6, Rep::Rep, _) => mem_only(d, Op::Vmxon, 8),
            (7, Rep::None, false) => mem_only(d, Op::Vmptrst, 8),
            _ => Err(Unsupported),
        };
    }
    let op = match (m.ext(), p.rep) {
        (6, Rep::None) => Op::Rdrand,
        (7, Rep::None) => Op::Rdseed,
        _ => return Err(Unsupported),
    };
    let width = d.opsize();
    let dst = d.rm(&m, width);
    d.set(op, dst, Operand::None, width);
    Ok(())
}

fn three_byte(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    let opcode = d.cur.u8()?;
    let op = match opcode {
        0x80 => Op::Invept,
        0x81 => Op::Invvpid,
        0x82 => Op::Invpcid,
        0xf0 | 0xf1 => return movbe(d, opcode),
        _ => return Err(Unsupported),
    };
    if !d.pfx.opsize || d.pfx.rep != Rep::None {
        return Err(Unsupported);
    }
    let m = d.modrm()?;
    if m.mem.is_none() {
        return Err(Undefined);
    }
    let reg = d.reg(&m, if d.long() { 8 } else { 4 });
    // The width is that of the descriptor.
    d.set(op, reg, Operand::Mem, 16);
    Ok(())
}

/// MOVBE; F2 makes it CRC32.
fn movbe(d: &mut Decoder<'_>, opcode: u8) -> Result<(), DecodeError> {
    if d.pfx.rep != Rep::None {
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
