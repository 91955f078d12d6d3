// SPDX-License-Identifier: GPL-2.0
//! Opcode maps, in the notation of the manual (SDM 2D A.2, tables; APM 3 A.1).
//!
//! One row per opcode: operation and operands. What is not listed is not emulated.
#![forbid(unsafe_code)]

use super::insn::Op;
use super::insn::Op::*;
use Arg::*;

/// Operand types (SDM 2D A.2.1, A.2.2): where an operand is, and how wide.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Arg {
    /// No operand.
    No,
    /// General register or memory by ModRM.r/m: a byte, a word, a doubleword of at most the operand size, the operand
    /// size.
    Eb,
    Ew,
    Ed,
    Ev,
    /// Memory by ModRM.r/m, a word; or a register of the operand size.
    MwRv,
    /// Memory alone: a byte, a word, a doubleword or quadword by REX.W, the operand size, twice a doubleword or
    /// quadword, a far pointer, no access.
    Mb,
    Mw,
    My,
    Mv,
    Mdq,
    Mp,
    M,
    /// General register by ModRM.reg.
    Gb,
    Gy,
    Gv,
    /// General register by the low bits of the opcode.
    Zb,
    Zv,
    /// Register by ModRM.r/m whatever ModRM.mod says: a doubleword, or a quadword in 64-bit mode.
    Ry,
    /// Control and debug register by ModRM.reg.
    Cy,
    Dy,
    /// Segment register by ModRM.reg.
    Sw,
    /// Immediate: a byte zero-extended and sign-extended, a word, the operand size but at most a doubleword, the whole
    /// operand size, a word and a byte, a far pointer.
    Ib,
    Is,
    Iw,
    Iz,
    Iv,
    IwIb,
    Ap,
    /// Relative to the next instruction.
    Jb,
    Jz,
    /// Memory at an absolute offset.
    Ob,
    Ov,
    /// Memory of a string's source and destination.
    Xb,
    Xv,
    Xz,
    Yb,
    Yv,
    Yz,
    /// AL; the accumulator of the operand size, and of at most a doubleword; CL; DX; the constant 1.
    Al,
    Ax,
    Az,
    Cl,
    Dx,
    One,
    /// Segment registers.
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    /// XMM or YMM register by ModRM.reg, and the same or memory by ModRM.r/m.
    Vx,
    Wx,
    /// MMX register by ModRM.reg, and the same or memory by ModRM.r/m.
    Pq,
    Qq,
}

/// Properties of a row.
#[allow(missing_docs)]
pub(super) mod flag {
    /// The operand size is 64 bits by default, or always, in 64-bit mode ("d64", "f64").
    pub(in super::super) const D64: u8 = 1;
    pub(in super::super) const F64: u8 = 2;
    /// Undefined in 64-bit mode, and outside it ("i64", "o64").
    pub(in super::super) const I64: u8 = 4;
    pub(in super::super) const O64: u8 = 8;
    /// There is a form with VEX.
    pub(in super::super) const VEX: u8 = 16;
    /// Memory has to be aligned.
    pub(in super::super) const ALIGNED: u8 = 32;
    /// Only without 66, F2 and F3.
    pub(in super::super) const NP: u8 = 64;
}
use flag::*;

/// An instruction.
#[derive(Clone, Copy)]
pub(super) struct Def {
    pub(super) op: Op,
    pub(super) args: [Arg; 3],
    pub(super) flags: u8,
}

/// A row of a map.
#[derive(Clone, Copy)]
pub(super) enum Row {
    /// Not in the set.
    Other,
    /// #UD.
    Undefined,
    /// An instruction.
    Insn(Def),
    /// By ModRM.reg.
    Group(&'static [Row; 8]),
    /// By ModRM.r/m.
    Rm(&'static [Row; 8]),
    /// By ModRM.mod: memory, register.
    Mod(&'static [Row; 2]),
    /// By the last of the prefixes: none, 66, F3, F2.
    Prefix(&'static [Row; 4]),
}

const O: Row = Row::Other;
const U: Row = Row::Undefined;

const fn i3(op: Op, a: Arg, b: Arg, c: Arg) -> Row {
    Row::Insn(Def {
        op,
        args: [a, b, c],
        flags: 0,
    })
}

const fn i2(op: Op, a: Arg, b: Arg) -> Row {
    i3(op, a, b, No)
}

const fn i1(op: Op, a: Arg) -> Row {
    i3(op, a, No, No)
}

const fn i0(op: Op) -> Row {
    i3(op, No, No, No)
}

impl Row {
    /// The row with properties.
    const fn with(self, flags: u8) -> Self {
        match self {
            Self::Insn(d) => Self::Insn(Def {
                flags: d.flags | flags,
                ..d
            }),
            other => other,
        }
    }
}

/// Rows by a part of ModRM or by the prefixes.
macro_rules! group {
    ($($row:expr),*) => { Row::Group(const { &[$($row),*] }) };
}
macro_rules! rm {
    ($($row:expr),*) => { Row::Rm(const { &[$($row),*] }) };
}
macro_rules! mem_or_reg {
    ($($row:expr),*) => { Row::Mod(const { &[$($row),*] }) };
}
macro_rules! prefix {
    ($($row:expr),*) => { Row::Prefix(const { &[$($row),*] }) };
}

/// A map from rows `first ..= last => row`, or `opcode => row`.
macro_rules! map {
    ($(#[$doc:meta])* $name:ident { $($first:literal $(..= $last:literal)? => $row:expr,)* }) => {
        $(#[$doc])*
        pub(super) static $name: [Row; 256] = {
            let mut map = [O; 256];
            $(
                let mut at = $first as usize;
                let end = last!($first $(, $last)?);
                while at <= end {
                    map[at] = $row;
                    at += 1;
                }
            )*
            map
        };
    };
}
macro_rules! last {
    ($first:literal) => {
        $first as usize
    };
    ($first:literal, $last:literal) => {
        $last as usize
    };
}

map! {
    /// One-byte opcodes (SDM 2D table A-2).
    ONE_BYTE {
        0x00 => i2(Add, Eb, Gb), 0x01 => i2(Add, Ev, Gv), 0x02 => i2(Add, Gb, Eb), 0x03 => i2(Add, Gv, Ev),
        0x04 => i2(Add, Al, Ib), 0x05 => i2(Add, Ax, Iz),
        0x06 => i2(PushSeg, No, Es).with(I64), 0x07 => i1(PopSeg, Es).with(I64),
        0x08 => i2(Or, Eb, Gb), 0x09 => i2(Or, Ev, Gv), 0x0a => i2(Or, Gb, Eb), 0x0b => i2(Or, Gv, Ev),
        0x0c => i2(Or, Al, Ib), 0x0d => i2(Or, Ax, Iz),
        0x0e => i2(PushSeg, No, Cs).with(I64),
        0x10 => i2(Adc, Eb, Gb), 0x11 => i2(Adc, Ev, Gv), 0x12 => i2(Adc, Gb, Eb), 0x13 => i2(Adc, Gv, Ev),
        0x14 => i2(Adc, Al, Ib), 0x15 => i2(Adc, Ax, Iz),
        0x16 => i2(PushSeg, No, Ss).with(I64), 0x17 => i1(PopSeg, Ss).with(I64),
        0x18 => i2(Sbb, Eb, Gb), 0x19 => i2(Sbb, Ev, Gv), 0x1a => i2(Sbb, Gb, Eb), 0x1b => i2(Sbb, Gv, Ev),
        0x1c => i2(Sbb, Al, Ib), 0x1d => i2(Sbb, Ax, Iz),
        0x1e => i2(PushSeg, No, Ds).with(I64), 0x1f => i1(PopSeg, Ds).with(I64),
        0x20 => i2(And, Eb, Gb), 0x21 => i2(And, Ev, Gv), 0x22 => i2(And, Gb, Eb), 0x23 => i2(And, Gv, Ev),
        0x24 => i2(And, Al, Ib), 0x25 => i2(And, Ax, Iz),
        0x28 => i2(Sub, Eb, Gb), 0x29 => i2(Sub, Ev, Gv), 0x2a => i2(Sub, Gb, Eb), 0x2b => i2(Sub, Gv, Ev),
        0x2c => i2(Sub, Al, Ib), 0x2d => i2(Sub, Ax, Iz),
        0x2f => i0(Das).with(I64),
        0x30 => i2(Xor, Eb, Gb), 0x31 => i2(Xor, Ev, Gv), 0x32 => i2(Xor, Gb, Eb), 0x33 => i2(Xor, Gv, Ev),
        0x34 => i2(Xor, Al, Ib), 0x35 => i2(Xor, Ax, Iz),
        0x38 => i2(Cmp, Eb, Gb), 0x39 => i2(Cmp, Ev, Gv), 0x3a => i2(Cmp, Gb, Eb), 0x3b => i2(Cmp, Gv, Ev),
        0x3c => i2(Cmp, Al, Ib), 0x3d => i2(Cmp, Ax, Iz),
        // In 64-bit mode these are REX prefixes.
        0x40..=0x47 => i1(Inc, Zv), 0x48..=0x4f => i1(Dec, Zv),
        0x50..=0x57 => i2(Push, No, Zv).with(D64), 0x58..=0x5f => i1(Pop, Zv).with(D64),
        0x60 => i1(Pusha, Ax).with(I64), 0x61 => i1(Popa, Ax).with(I64),
        0x63 => i2(Movsx, Gv, Ed).with(O64),
        0x68 => i2(Push, No, Iz).with(D64), 0x69 => i3(Imul, Gv, Ev, Iz),
        0x6a => i2(Push, No, Is).with(D64), 0x6b => i3(Imul, Gv, Ev, Is),
        0x6c => i2(Ins, Yb, Dx), 0x6d => i2(Ins, Yz, Dx), 0x6e => i2(Outs, Dx, Xb), 0x6f => i2(Outs, Dx, Xz),
        0x70..=0x7f => i2(Jcc, No, Jb).with(F64),
        0x80 => Row::Group(&GROUP_1[0]), 0x81 => Row::Group(&GROUP_1[1]),
        0x82 => Row::Group(&GROUP_1[2]), 0x83 => Row::Group(&GROUP_1[3]),
        0x84 => i2(Test, Eb, Gb), 0x85 => i2(Test, Ev, Gv), 0x86 => i2(Xchg, Eb, Gb), 0x87 => i2(Xchg, Ev, Gv),
        0x88 => i2(Mov, Eb, Gb), 0x89 => i2(Mov, Ev, Gv), 0x8a => i2(Mov, Gb, Eb), 0x8b => i2(Mov, Gv, Ev),
        0x8c => i2(Store, MwRv, Sw), 0x8d => i2(Lea, Gv, M), 0x8e => i2(Load, Sw, Ew),
        // Other extensions are XOP's.
        0x8f => group![i1(Pop, Ev).with(D64), O, O, O, O, O, O, O],
        0x90..=0x97 => i2(Xchg, Zv, Ax),
        0x98 => i1(Cbw, Ax), 0x99 => i1(Cwd, Ax), 0x9a => i2(CallFar, No, Ap).with(I64),
        0x9c => i1(Pushf, Ax).with(D64), 0x9d => i1(Popf, Ax).with(D64), 0x9e => i0(Sahf), 0x9f => i0(Lahf),
        0xa0 => i2(Mov, Al, Ob), 0xa1 => i2(Mov, Ax, Ov), 0xa2 => i2(Mov, Ob, Al), 0xa3 => i2(Mov, Ov, Ax),
        0xa4 => i2(Movs, Yb, Xb), 0xa5 => i2(Movs, Yv, Xv), 0xa6 => i2(Cmps, Xb, Yb), 0xa7 => i2(Cmps, Xv, Yv),
        0xa8 => i2(Test, Al, Ib), 0xa9 => i2(Test, Ax, Iz),
        0xaa => i2(Stos, Yb, Al), 0xab => i2(Stos, Yv, Ax), 0xac => i2(Lods, Al, Xb), 0xad => i2(Lods, Ax, Xv),
        0xae => i2(Scas, Al, Yb), 0xaf => i2(Scas, Ax, Yv),
        0xb0..=0xb7 => i2(Mov, Zb, Ib), 0xb8..=0xbf => i2(Mov, Zv, Iv),
        0xc0 => Row::Group(&GROUP_2[0]), 0xc1 => Row::Group(&GROUP_2[1]),
        0xc2 => i2(Ret, No, Iw).with(F64), 0xc3 => i0(Ret).with(F64),
        // Or VEX.
        0xc4 => i3(LoadFar, Gv, Mp, Es).with(I64), 0xc5 => i3(LoadFar, Gv, Mp, Ds).with(I64),
        0xc6 => Row::Group(&GROUP_11[0]), 0xc7 => Row::Group(&GROUP_11[1]),
        0xc8 => i2(Enter, No, IwIb).with(D64), 0xc9 => i0(Leave).with(D64),
        0xca => i2(RetFar, No, Iw), 0xcb => i0(RetFar),
        0xcc => i0(Int), 0xcd => i2(Int, No, Ib), 0xce => i0(Into).with(I64), 0xcf => i0(Iret),
        0xd0 => Row::Group(&GROUP_2[2]), 0xd1 => Row::Group(&GROUP_2[3]),
        0xd2 => Row::Group(&GROUP_2[4]), 0xd3 => Row::Group(&GROUP_2[5]),
        0xd4 => i2(Aam, No, Ib).with(I64), 0xd5 => i2(Aad, No, Ib).with(I64), 0xd6 => i0(Salc).with(I64),
        0xd7 => i2(Xlat, Al, Xb),
        0xd9 => mem_or_reg![group![O, O, O, O, O, O, O, i1(Fnstcw, Mw)], O],
        0xdd => mem_or_reg![group![O, O, O, O, O, O, O, i1(Fnstsw, Mw)], O],
        0xe0..=0xe3 => i2(Loop, No, Jb).with(F64),
        0xe4 => i2(In, Al, Ib), 0xe5 => i2(In, Az, Ib), 0xe6 => i2(Out, Ib, Al), 0xe7 => i2(Out, Ib, Az),
        0xe8 => i2(Call, No, Jz).with(F64), 0xe9 => i2(Jmp, No, Jz).with(F64), 0xea => i2(JmpFar, No, Ap).with(I64),
        0xeb => i2(Jmp, No, Jb).with(F64),
        0xec => i2(In, Al, Dx), 0xed => i2(In, Az, Dx), 0xee => i2(Out, Dx, Al), 0xef => i2(Out, Dx, Az),
        0xf4 => i0(Hlt), 0xf5 => i0(Cmc), 0xf6 => Row::Group(&GROUP_3[0]), 0xf7 => Row::Group(&GROUP_3[1]),
        0xf8 => i0(Clc), 0xf9 => i0(Stc), 0xfa => i0(Cli), 0xfb => i0(Sti), 0xfc => i0(Cld), 0xfd => i0(Std),
        0xfe => group![i1(Inc, Eb), i1(Dec, Eb), U, U, U, U, U, U],
        0xff => Row::Group(&GROUP_5),
    }
}

/// 90, which is no XCHG, and F3 90.
pub(super) static NOP: Row = i0(Nop);
pub(super) static PAUSE: Row = i0(Pause);

map! {
    /// Opcodes after 0F (SDM 2D table A-3).
    TWO_BYTE {
        0x00 => group![i1(Sldt, MwRv), i1(Str, MwRv), i2(Lldt, No, Ew), i2(Ltr, No, Ew), O, O, O, O],
        0x01 => mem_or_reg![Row::Group(&GROUP_7), Row::Group(&GROUP_7_REG)],
        0x05 => i0(Syscall), 0x06 => i0(Clts), 0x08 => i0(Invd), 0x09 => i0(Wbinvd),
        // Prefetches and hints do nothing.
        0x0d => i2(Nop, No, Ev), 0x18 => i2(Nop, No, Ev), 0x19 => i2(Nop, No, Ev), 0x1c..=0x1f => i2(Nop, No, Ev),
        0x10 => prefix![i2(Movv, Vx, Wx).with(VEX), i2(Movv, Vx, Wx).with(VEX), O, O],
        0x11 => prefix![i2(Movv, Wx, Vx).with(VEX), i2(Movv, Wx, Vx).with(VEX), O, O],
        0x20 => i2(MovCr, Ry, Cy), 0x21 => i2(MovDr, Ry, Dy), 0x22 => i2(MovCr, Cy, Ry), 0x23 => i2(MovDr, Dy, Ry),
        0x28 => prefix![i2(Movv, Vx, Wx).with(VEX | ALIGNED), i2(Movv, Vx, Wx).with(VEX | ALIGNED), O, O],
        0x29 => prefix![i2(Movv, Wx, Vx).with(VEX | ALIGNED), i2(Movv, Wx, Vx).with(VEX | ALIGNED), O, O],
        0x2b => mem_or_reg![prefix![STREAM, STREAM, O, O], U],
        0x30 => i0(Wrmsr), 0x32 => i0(Rdmsr), 0x34 => i0(Sysenter), 0x35 => i0(Sysexit),
        0x40..=0x4f => i2(Cmov, Gv, Ev),
        0x6f => prefix![i2(Movq, Pq, Qq), i2(Movv, Vx, Wx).with(VEX | ALIGNED), i2(Movv, Vx, Wx).with(VEX), O],
        0x7f => prefix![i2(Movq, Qq, Pq), i2(Movv, Wx, Vx).with(VEX | ALIGNED), i2(Movv, Wx, Vx).with(VEX), O],
        0x80..=0x8f => i2(Jcc, No, Jz).with(F64),
        0x90..=0x9f => i1(Setcc, Eb),
        0xa0 => i2(PushSeg, No, Fs).with(D64), 0xa1 => i1(PopSeg, Fs).with(D64),
        0xa2 => i0(Cpuid),
        0xa3 => i2(Bt, Ev, Gv), 0xa4 => i3(Shld, Ev, Gv, Ib), 0xa5 => i3(Shld, Ev, Gv, Cl),
        0xa8 => i2(PushSeg, No, Gs).with(D64), 0xa9 => i1(PopSeg, Gs).with(D64),
        0xaa => i0(Rsm), 0xab => i2(Bts, Ev, Gv), 0xac => i3(Shrd, Ev, Gv, Ib), 0xad => i3(Shrd, Ev, Gv, Cl),
        0xae => mem_or_reg![group![FXSAVE, FXRSTOR, O, O, O, O, O, prefix![FLUSH, FLUSH, O, O]], O],
        0xaf => i2(Imul, Gv, Ev),
        0xb0 => i2(Cmpxchg, Eb, Gb), 0xb1 => i2(Cmpxchg, Ev, Gv),
        0xb2 => i3(LoadFar, Gv, Mp, Ss), 0xb3 => i2(Btr, Ev, Gv),
        0xb4 => i3(LoadFar, Gv, Mp, Fs), 0xb5 => i3(LoadFar, Gv, Mp, Gs),
        0xb6 => i2(Movzx, Gv, Eb), 0xb7 => i2(Movzx, Gv, Ew),
        0xba => group![U, U, U, U, i2(Bt, Ev, Ib), i2(Bts, Ev, Ib), i2(Btr, Ev, Ib), i2(Btc, Ev, Ib)],
        0xbb => i2(Btc, Ev, Gv),
        0xbc => prefix![i2(Bsf, Gv, Ev), i2(Bsf, Gv, Ev), i2(Tzcnt, Gv, Ev), i2(Bsf, Gv, Ev)],
        0xbd => prefix![i2(Bsr, Gv, Ev), i2(Bsr, Gv, Ev), i2(Lzcnt, Gv, Ev), i2(Bsr, Gv, Ev)],
        0xbe => i2(Movsx, Gv, Eb), 0xbf => i2(Movsx, Gv, Ew),
        0xc0 => i2(Xadd, Eb, Gb), 0xc1 => i2(Xadd, Ev, Gv),
        0xc3 => mem_or_reg![i2(Movnti, My, Gy).with(NP), U],
        0xc7 => mem_or_reg![group![O, i1(Cmpxchg8b, Mdq), O, O, O, O, O, O], O],
        0xc8..=0xcf => i1(Bswap, Zv),
        0xe7 => mem_or_reg![prefix![O, STREAM, O, O], U],
    }
}

map! {
    /// Opcodes after 0F 38 (SDM 2D table A-4).
    THREE_BYTE_38 {
        0x2a => mem_or_reg![prefix![O, i2(Movv, Vx, Wx).with(VEX | ALIGNED), O, O], U],
        // With F2 these are CRC32.
        0xf0 => prefix![mem_or_reg![MOVBE[0], U], mem_or_reg![MOVBE[0], U], O, O],
        0xf1 => prefix![mem_or_reg![MOVBE[1], U], mem_or_reg![MOVBE[1], U], O, O],
    }
}

/// MOVNTPS, MOVNTPD, MOVNTDQ.
const STREAM: Row = i2(Movv, Wx, Vx).with(VEX | ALIGNED);
const FLUSH: Row = i2(Clflush, No, Mb);
const FXSAVE: Row = i1(Fxsave, My).with(NP);
const FXRSTOR: Row = i2(Fxrstor, No, My).with(NP);
const MOVBE: [Row; 2] = [i2(Movbe, Gv, Mv), i2(Movbe, Mv, Gv)];

/// ADD to CMP with an immediate.
const fn group_1(e: Arg, i: Arg, flags: u8) -> [Row; 8] {
    let ops = [Add, Or, Adc, Sbb, And, Sub, Xor, Cmp];
    group(ops, e, i, flags)
}

const fn group(ops: [Op; 8], a: Arg, b: Arg, flags: u8) -> [Row; 8] {
    let mut rows = [O; 8];
    let mut n = 0;
    while n < 8 {
        rows[n] = i2(ops[n], a, b).with(flags);
        n += 1;
    }
    rows
}

static GROUP_1: [[Row; 8]; 4] = [
    group_1(Eb, Ib, 0),
    group_1(Ev, Iz, 0),
    group_1(Eb, Ib, I64),
    group_1(Ev, Is, 0),
];

/// Shifts and rotates. Extension 6 is SHL, too.
const fn group_2(e: Arg, count: Arg) -> [Row; 8] {
    group([Rol, Ror, Rcl, Rcr, Shl, Shr, Shl, Sar], e, count, 0)
}

static GROUP_2: [[Row; 8]; 6] = [
    group_2(Eb, Ib),
    group_2(Ev, Ib),
    group_2(Eb, One),
    group_2(Ev, One),
    group_2(Eb, Cl),
    group_2(Ev, Cl),
];

/// Unary operations.
const fn group_3(e: Arg, i: Arg) -> [Row; 8] {
    [
        i2(Test, e, i),
        i2(Test, e, i),
        i1(Not, e),
        i1(Neg, e),
        i2(Mul, No, e),
        i2(ImulAcc, No, e),
        i2(Div, No, e),
        i2(Idiv, No, e),
    ]
}

static GROUP_3: [[Row; 8]; 2] = [group_3(Eb, Ib), group_3(Ev, Iz)];

static GROUP_5: [Row; 8] = [
    i1(Inc, Ev),
    i1(Dec, Ev),
    i2(Call, No, Ev).with(F64),
    mem_or_reg![i2(CallFar, No, Mp), U],
    i2(Jmp, No, Ev).with(F64),
    mem_or_reg![i2(JmpFar, No, Mp), U],
    i2(Push, No, Ev).with(D64),
    U,
];

/// Memory operands.
static GROUP_7: [Row; 8] = [
    i1(Sgdt, M),
    i1(Sidt, M),
    i2(Lgdt, No, M),
    i2(Lidt, No, M),
    i1(Smsw, MwRv),
    O,
    i2(Lmsw, No, Ew),
    i2(Invlpg, No, M),
];

/// Register operands.
static GROUP_7_REG: [Row; 8] = [
    rm![O, i0(Vmcall).with(NP), O, O, O, O, O, O],
    rm![i0(Monitor).with(NP), i0(Mwait).with(NP), O, O, O, O, O, O],
    rm![O, i0(Xsetbv).with(NP), O, O, O, O, O, O],
    // With F2 or F3 this is VMGEXIT, which is VMMCALL in a guest without SEV-ES (APM 3 VMGEXIT).
    rm![O, i0(Vmmcall), O, O, O, O, O, O],
    i1(Smsw, MwRv),
    O,
    i2(Lmsw, No, Ew),
    O,
];

/// MOV with an immediate. XABORT and XBEGIN are /7 with r/m 0.
const fn group_11(e: Arg, i: Arg) -> [Row; 8] {
    const TSX: Row = mem_or_reg![U, rm![O, U, U, U, U, U, U, U]];
    [i2(Mov, e, i), U, U, U, U, U, U, TSX]
}

static GROUP_11: [[Row; 8]; 2] = [group_11(Eb, Ib), group_11(Ev, Iz)];
