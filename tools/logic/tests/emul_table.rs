// SPDX-License-Identifier: GPL-2.0
//! Decoder against hand-written entries from the manuals (SDM 2A-2D, APM 3).

use rvmm_logic::x86::cpu::regs::Gpr;
use rvmm_logic::x86::cpu::regs::Gpr::*;
use rvmm_logic::x86::cpu::regs::Mode;
use rvmm_logic::x86::cpu::regs::Mode::*;
use rvmm_logic::x86::cpu::regs::Seg;
use rvmm_logic::x86::emul::decode::decode;
use rvmm_logic::x86::emul::insn::Rep;
use rvmm_logic::x86::emul::Operand;
use rvmm_logic::x86::emul::Operand::{Cr, Dr, Dx, High, Imm, Reg, StrDst, StrSrc};
use rvmm_logic::x86::emul::{DecodeCache, DecodeError, Insn, Op};

const NONE: Operand = Operand::None;
const M: Operand = Operand::Mem;

fn ok(bytes: &[u8], mode: Mode) -> Insn {
    let insn = decode(bytes, mode).unwrap_or_else(|e| panic!("{bytes:02x?} {mode:?}: {e:?}"));
    assert_eq!(insn.bytes(), bytes, "length of {bytes:02x?} {mode:?}");
    // Whatever is cut off is missed, whatever follows is not.
    for n in 0..bytes.len() {
        assert_eq!(
            decode(&bytes[..n], mode),
            Err(DecodeError::Truncated),
            "{bytes:02x?}[..{n}]"
        );
    }
    let longer = [bytes, &[0xcc; 15]].concat();
    assert_eq!(decode(&longer, mode), Ok(insn));
    insn
}

/// Operation, operands and width.
#[test]
fn operations() {
    type Entry = (&'static [u8], Mode, Op, Operand, Operand, u8);
    #[rustfmt::skip]
    let table: &[Entry] = &[
        (&[0x88, 0x07], Long, Op::Mov, M, Reg(Rax), 1),
        (&[0x88, 0x27], Long, Op::Mov, M, High(Rax), 1),
        (&[0x40, 0x88, 0x27], Long, Op::Mov, M, Reg(Rsp), 1),
        (&[0x44, 0x88, 0x27], Long, Op::Mov, M, Reg(R12), 1),
        (&[0x89, 0x07], Long, Op::Mov, M, Reg(Rax), 4),
        (&[0x66, 0x89, 0x07], Long, Op::Mov, M, Reg(Rax), 2),
        (&[0x48, 0x89, 0x07], Long, Op::Mov, M, Reg(Rax), 8),
        (&[0x66, 0x48, 0x89, 0x07], Long, Op::Mov, M, Reg(Rax), 8),
        // REX before another prefix is ignored.
        (&[0x48, 0x66, 0x89, 0x07], Long, Op::Mov, M, Reg(Rax), 2),
        (&[0x89, 0x07], Real, Op::Mov, M, Reg(Rax), 2),
        (&[0x66, 0x89, 0x07], Real, Op::Mov, M, Reg(Rax), 4),
        (&[0x89, 0x07], Vm86, Op::Mov, M, Reg(Rax), 2),
        (&[0x89, 0x07], Prot16, Op::Mov, M, Reg(Rax), 2),
        (&[0x89, 0x07], Prot32, Op::Mov, M, Reg(Rax), 4),
        (&[0x8b, 0x0f], Prot32, Op::Mov, Reg(Rcx), M, 4),
        (&[0x8a, 0x2f], Prot32, Op::Mov, High(Rcx), M, 1),
        (&[0xc6, 0x07, 0x80], Long, Op::Mov, M, Imm, 1),
        (&[0xc7, 0x07, 1, 2, 3, 4], Long, Op::Mov, M, Imm, 4),
        (&[0x66, 0xc7, 0x07, 1, 2], Long, Op::Mov, M, Imm, 2),
        (&[0x48, 0xc7, 0x07, 1, 2, 3, 0x84], Long, Op::Mov, M, Imm, 8),
        (&[0xa0, 1, 2, 3, 4, 5, 6, 7, 8], Long, Op::Mov, Reg(Rax), M, 1),
        (&[0x48, 0xa3, 1, 2, 3, 4, 5, 6, 7, 8], Long, Op::Mov, M, Reg(Rax), 8),
        (&[0x67, 0xa1, 1, 2, 3, 4], Long, Op::Mov, Reg(Rax), M, 4),
        (&[0xa2, 1, 2], Real, Op::Mov, M, Reg(Rax), 1),
        (&[0xa1, 1, 2, 3, 4], Prot32, Op::Mov, Reg(Rax), M, 4),
        (&[0x0f, 0xb6, 0x07], Long, Op::Movzx, Reg(Rax), M, 4),
        (&[0x48, 0x0f, 0xbf, 0x07], Long, Op::Movsx, Reg(Rax), M, 8),
        (&[0x48, 0x63, 0x07], Long, Op::Movsx, Reg(Rax), M, 8),
        (&[0x0f, 0xc3, 0x07], Long, Op::Movnti, M, Reg(Rax), 4),
        (&[0x0f, 0x38, 0xf0, 0x07], Long, Op::Movbe, Reg(Rax), M, 4),
        (&[0x66, 0x0f, 0x38, 0xf1, 0x07], Long, Op::Movbe, M, Reg(Rax), 2),
        (&[0x87, 0x07], Long, Op::Xchg, M, Reg(Rax), 4),
        (&[0x01, 0x0f], Long, Op::Add, M, Reg(Rcx), 4),
        (&[0x0a, 0x0f], Long, Op::Or, Reg(Rcx), M, 1),
        (&[0x80, 0x17, 0xff], Long, Op::Adc, M, Imm, 1),
        (&[0x81, 0x1f, 1, 0, 0, 0], Long, Op::Sbb, M, Imm, 4),
        (&[0x83, 0x27, 0xff], Long, Op::And, M, Imm, 4),
        (&[0x82, 0x2f, 0xff], Prot32, Op::Sub, M, Imm, 1),
        (&[0x31, 0x0f], Long, Op::Xor, M, Reg(Rcx), 4),
        (&[0x3b, 0x0f], Long, Op::Cmp, Reg(Rcx), M, 4),
        (&[0x84, 0x0f], Long, Op::Test, M, Reg(Rcx), 1),
        (&[0xf7, 0x07, 1, 0, 0, 0], Long, Op::Test, M, Imm, 4),
        (&[0xf6, 0x0f, 1], Long, Op::Test, M, Imm, 1),
        (&[0xf6, 0x17], Long, Op::Not, M, NONE, 1),
        (&[0xf7, 0x1f], Long, Op::Neg, M, NONE, 4),
        (&[0xff, 0x07], Long, Op::Inc, M, NONE, 4),
        (&[0xfe, 0x0f], Long, Op::Dec, M, NONE, 1),
        (&[0xff, 0x37], Long, Op::Push, NONE, M, 8),
        (&[0xff, 0x37], Prot32, Op::Push, NONE, M, 4),
        (&[0x66, 0x8f, 0x07], Long, Op::Pop, M, NONE, 2),
        (&[0x0f, 0xa3, 0x07], Long, Op::Bt, M, Reg(Rax), 4),
        (&[0xf0, 0x0f, 0xab, 0x07], Long, Op::Bts, M, Reg(Rax), 4),
        (&[0x0f, 0xba, 0x37, 3], Long, Op::Btr, M, Imm, 4),
        (&[0x48, 0x0f, 0xba, 0x3f, 63], Long, Op::Btc, M, Imm, 8),
        (&[0xf0, 0x0f, 0xb1, 0x0f], Long, Op::Cmpxchg, M, Reg(Rcx), 4),
        (&[0x0f, 0xc0, 0x0f], Long, Op::Xadd, M, Reg(Rcx), 1),
        (&[0x0f, 0xc7, 0x0f], Long, Op::Cmpxchg8b, M, NONE, 8),
        (&[0x48, 0x0f, 0xc7, 0x0f], Long, Op::Cmpxchg8b, M, NONE, 16),
        (&[0xa4], Long, Op::Movs, StrDst, StrSrc, 1),
        (&[0x48, 0xa5], Long, Op::Movs, StrDst, StrSrc, 8),
        (&[0xa7], Real, Op::Cmps, StrSrc, StrDst, 2),
        (&[0xab], Prot32, Op::Stos, StrDst, Reg(Rax), 4),
        (&[0xac], Prot32, Op::Lods, Reg(Rax), StrSrc, 1),
        (&[0x66, 0xaf], Prot32, Op::Scas, Reg(Rax), StrDst, 2),
        (&[0x6c], Long, Op::Ins, StrDst, Dx, 1),
        (&[0x48, 0x6d], Long, Op::Ins, StrDst, Dx, 4),
        (&[0x66, 0x6f], Long, Op::Outs, Dx, StrSrc, 2),
        (&[0xe4, 0x71], Long, Op::In, Reg(Rax), Imm, 1),
        (&[0xef], Real, Op::Out, Dx, Reg(Rax), 2),
        (&[0x0f, 0xa2], Long, Op::Cpuid, NONE, NONE, 0),
        (&[0x66, 0x2e, 0x0f, 0xa2], Long, Op::Cpuid, NONE, NONE, 0),
        (&[0x0f, 0x32], Long, Op::Rdmsr, NONE, NONE, 0),
        (&[0x0f, 0x30], Long, Op::Wrmsr, NONE, NONE, 0),
        (&[0xf4], Long, Op::Hlt, NONE, NONE, 0),
        (&[0x0f, 0xaa], Real, Op::Rsm, NONE, NONE, 0),
        (&[0x0f, 0x01, 0xd9], Long, Op::Vmmcall, NONE, NONE, 0),
        (&[0x0f, 0x01, 0xc1], Long, Op::Vmcall, NONE, NONE, 0),
        (&[0x0f, 0x08], Long, Op::Invd, NONE, NONE, 0),
        (&[0x0f, 0x09], Long, Op::Wbinvd, NONE, NONE, 0),
        (&[0xf3, 0x0f, 0x09], Long, Op::Wbinvd, NONE, NONE, 0),
        (&[0xf3, 0x90], Long, Op::Pause, NONE, NONE, 0),
        (&[0x0f, 0x20, 0xc3], Long, Op::MovCr, Reg(Rbx), Cr(0), 8),
        (&[0x0f, 0x22, 0xdb], Prot32, Op::MovCr, Cr(3), Reg(Rbx), 4),
        // ModRM.mod does not matter and brings no SIB byte.
        (&[0x0f, 0x22, 0x04], Long, Op::MovCr, Cr(0), Reg(Rsp), 8),
        (&[0x44, 0x0f, 0x22, 0xc0], Long, Op::MovCr, Cr(8), Reg(Rax), 8),
        (&[0xf0, 0x0f, 0x22, 0xc0], Prot32, Op::MovCr, Cr(8), Reg(Rax), 4),
        (&[0x41, 0x0f, 0x23, 0xf8], Long, Op::MovDr, Dr(7), Reg(R8), 8),
        (&[0x0f, 0x21, 0xf0], Long, Op::MovDr, Reg(Rax), Dr(6), 8),
        (&[0x0f, 0x06], Long, Op::Clts, NONE, NONE, 0),
        (&[0x0f, 0x01, 0xf0], Real, Op::Lmsw, NONE, Reg(Rax), 2),
        (&[0x0f, 0x01, 0x36, 0x34, 0x12], Real, Op::Lmsw, NONE, M, 2),
        (&[0x0f, 0x01, 0xe3], Prot32, Op::Smsw, Reg(Rbx), NONE, 4),
        (&[0x0f, 0x01, 0xd1], Long, Op::Xsetbv, NONE, NONE, 0),
        (&[0x0f, 0x01, 0xc8], Long, Op::Monitor, NONE, NONE, 0),
        (&[0x0f, 0x01, 0xc9], Long, Op::Mwait, NONE, NONE, 0),
        // Shifts, products, conditions.
        (&[0xc0, 0x07, 3], Long, Op::Rol, M, Imm, 1),
        (&[0x48, 0xc1, 0x0f, 3], Long, Op::Ror, M, Imm, 8),
        (&[0xd1, 0x17], Prot32, Op::Rcl, M, Imm, 4),
        (&[0xd2, 0x1f], Real, Op::Rcr, M, Reg(Rcx), 1),
        (&[0xd3, 0x27], Real, Op::Shl, M, Reg(Rcx), 2),
        (&[0xd3, 0x37], Real, Op::Shl, M, Reg(Rcx), 2),
        (&[0xd3, 0x2f], Prot32, Op::Shr, M, Reg(Rcx), 4),
        (&[0xd3, 0x3f], Long, Op::Sar, M, Reg(Rcx), 4),
        (&[0x0f, 0xa4, 0x0f, 9], Long, Op::Shld, M, Reg(Rcx), 4),
        (&[0x66, 0x0f, 0xad, 0x0f], Long, Op::Shrd, M, Reg(Rcx), 2),
        (&[0xf6, 0x27], Long, Op::Mul, NONE, M, 1),
        (&[0x48, 0xf7, 0x2f], Long, Op::ImulAcc, NONE, M, 8),
        (&[0xf7, 0x37], Real, Op::Div, NONE, M, 2),
        (&[0xf7, 0x3f], Prot32, Op::Idiv, NONE, M, 4),
        (&[0x0f, 0xaf, 0x0f], Long, Op::Imul, Reg(Rcx), M, 4),
        (&[0x69, 0x0f, 1, 0], Real, Op::Imul, Reg(Rcx), M, 2),
        (&[0x48, 0x6b, 0x0f, 0xff], Long, Op::Imul, Reg(Rcx), M, 8),
        (&[0x0f, 0xbc, 0x0f], Long, Op::Bsf, Reg(Rcx), M, 4),
        (&[0x48, 0x0f, 0xbd, 0x0f], Long, Op::Bsr, Reg(Rcx), M, 8),
        (&[0xf3, 0x0f, 0xbc, 0x0f], Long, Op::Tzcnt, Reg(Rcx), M, 4),
        (&[0xf3, 0x0f, 0xbd, 0x0f], Long, Op::Lzcnt, Reg(Rcx), M, 4),
        (&[0x0f, 0x44, 0x0f], Long, Op::Cmov, Reg(Rcx), M, 4),
        (&[0x0f, 0x9f, 0x07], Long, Op::Setcc, M, NONE, 1),
        // The stack and control.
        (&[0x50], Long, Op::Push, NONE, Reg(Rax), 8),
        (&[0x41, 0x5f], Long, Op::Pop, Reg(R15), NONE, 8),
        (&[0x66, 0x6a, 0xff], Long, Op::Push, NONE, Imm, 2),
        (&[0x68, 1, 2, 3, 4], Prot32, Op::Push, NONE, Imm, 4),
        (&[0x1e], Real, Op::PushSeg, NONE, Operand::Seg(Seg::Ds), 2),
        (&[0x17], Prot32, Op::PopSeg, Operand::Seg(Seg::Ss), NONE, 4),
        (&[0x0f, 0xa1], Long, Op::PopSeg, Operand::Seg(Seg::Fs), NONE, 8),
        (&[0x0f, 0xa8], Long, Op::PushSeg, NONE, Operand::Seg(Seg::Gs), 8),
        (&[0x9c], Long, Op::Pushf, Reg(Rax), NONE, 8),
        (&[0xc8, 0x10, 0, 1], Long, Op::Enter, NONE, Imm, 8),
        (&[0xc9], Real, Op::Leave, NONE, NONE, 2),
        (&[0xff, 0x17], Long, Op::Call, NONE, M, 8),
        (&[0xff, 0x27], Prot32, Op::Jmp, NONE, M, 4),
        (&[0xff, 0x1f], Long, Op::CallFar, NONE, M, 4),
        (&[0x48, 0xff, 0x2f], Long, Op::JmpFar, NONE, M, 8),
        (&[0xea, 1, 2, 3, 4], Real, Op::JmpFar, NONE, Imm, 2),
        (&[0xe8, 0, 0, 0, 0], Long, Op::Call, NONE, Imm, 8),
        (&[0xeb, 0xfe], Long, Op::Jmp, NONE, Imm, 8),
        (&[0x75, 0xfe], Real, Op::Jcc, NONE, Imm, 2),
        (&[0xc2, 4, 0], Prot32, Op::Ret, NONE, Imm, 4),
        (&[0xc3], Long, Op::Ret, NONE, NONE, 8),
        (&[0xcb], Long, Op::RetFar, NONE, NONE, 4),
        (&[0xcd, 0x10], Real, Op::Int, NONE, Imm, 2),
        (&[0xcf], Real, Op::Iret, NONE, NONE, 2),
        (&[0xe2, 0xfe], Real, Op::Loop, NONE, Imm, 2),
        // Segments and tables.
        (&[0x8c, 0x1f], Long, Op::Store, M, Operand::Seg(Seg::Ds), 2),
        (&[0x48, 0x8c, 0xd8], Long, Op::Store, Reg(Rax), Operand::Seg(Seg::Ds), 8),
        (&[0x8e, 0x17], Long, Op::Load, Operand::Seg(Seg::Ss), M, 2),
        (&[0xc4, 0x07], Real, Op::LoadFar, Reg(Rax), M, 2),
        (&[0xc5, 0x3f], Prot32, Op::LoadFar, Reg(Rdi), M, 4),
        (&[0x48, 0x0f, 0xb2, 0x07], Long, Op::LoadFar, Reg(Rax), M, 8),
        (&[0x0f, 0x00, 0x07], Long, Op::Sldt, M, NONE, 2),
        (&[0x0f, 0x00, 0x1f], Long, Op::Ltr, NONE, M, 2),
        (&[0x0f, 0x01, 0x07], Long, Op::Sgdt, M, NONE, 4),
        (&[0x0f, 0x01, 0x1f], Real, Op::Lidt, NONE, M, 2),
        (&[0xd7], Long, Op::Xlat, Reg(Rax), StrSrc, 1),
        // Vectors.
        (&[0x0f, 0x10, 0x07], Long, Op::Movv, Operand::Vec(0), M, 16),
        (&[0x66, 0x44, 0x0f, 0x7f, 0x07], Long, Op::Movv, M, Operand::Vec(8), 16),
        (&[0xf3, 0x0f, 0x6f, 0x0f], Prot32, Op::Movv, Operand::Vec(1), M, 16),
        (&[0x0f, 0x6f, 0x0f], Prot32, Op::Movq, Operand::Mm(1), M, 8),
        (&[0x66, 0x0f, 0x38, 0x2a, 0x0f], Long, Op::Movv, Operand::Vec(1), M, 16),
        (&[0xc5, 0xf8, 0x10, 0x07], Long, Op::Movv, Operand::Vec(0), M, 16),
        (&[0xc5, 0x7e, 0x6f, 0x07], Long, Op::Movv, Operand::Vec(8), M, 32),
        (&[0xc4, 0xc1, 0x7d, 0x7f, 0x07], Long, Op::Movv, M, Operand::Vec(0), 32),
        (&[0xc5, 0xfd, 0xe7, 0x07], Prot32, Op::Movv, M, Operand::Vec(0), 32),
        (&[0xc4, 0xe2, 0x7d, 0x2a, 0x07], Long, Op::Movv, Operand::Vec(0), M, 32),
        (&[0xd9, 0x3f], Long, Op::Fnstcw, M, NONE, 2),
        (&[0xdd, 0x3f], Real, Op::Fnstsw, M, NONE, 2),
        (&[0x0f, 0xae, 0x07], Prot32, Op::Fxsave, M, NONE, 4),
        (&[0x48, 0x0f, 0xae, 0x07], Long, Op::Fxsave, M, NONE, 8),
        (&[0x0f, 0xae, 0x0f], Long, Op::Fxrstor, NONE, M, 4),
        (&[0x0f, 0xae, 0x3f], Long, Op::Clflush, NONE, M, 1),
        (&[0x0f, 0x01, 0x3f], Long, Op::Invlpg, NONE, M, 0),
        (&[0x66, 0x0f, 0xae, 0x3f], Long, Op::Clflush, NONE, M, 1),
        // 90 is no XCHG, with REX.B it is.
        (&[0x90], Long, Op::Nop, NONE, NONE, 0),
        (&[0x41, 0x90], Long, Op::Xchg, Reg(R8), Reg(Rax), 4),
        (&[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8], Long, Op::Mov, Reg(Rax), Imm, 8),
    ];
    for &(bytes, mode, op, dst, src, width) in table {
        let i = ok(bytes, mode);
        assert_eq!(
            (i.op, i.dst, i.src, i.width),
            (op, dst, src, width),
            "{bytes:02x?} {mode:?}"
        );
    }
}

/// Effective-address forms, on opcode 8B.
#[test]
fn addressing() {
    type Form = (
        &'static [u8],
        Mode,
        Option<Gpr>,
        Option<Gpr>,
        u8,
        i64,
        Seg,
        u8,
    );
    #[rustfmt::skip]
    let table: &[Form] = &[
        // 16-bit.
        (&[0x00], Real, Some(Rbx), Some(Rsi), 0, 0, Seg::Ds, 2),
        (&[0x01], Real, Some(Rbx), Some(Rdi), 0, 0, Seg::Ds, 2),
        (&[0x02], Real, Some(Rbp), Some(Rsi), 0, 0, Seg::Ss, 2),
        (&[0x03], Real, Some(Rbp), Some(Rdi), 0, 0, Seg::Ss, 2),
        (&[0x04], Real, Some(Rsi), None, 0, 0, Seg::Ds, 2),
        (&[0x05], Real, Some(Rdi), None, 0, 0, Seg::Ds, 2),
        (&[0x06, 0x34, 0xf2], Real, None, None, 0, -0xdcc, Seg::Ds, 2),
        (&[0x07], Real, Some(Rbx), None, 0, 0, Seg::Ds, 2),
        (&[0x46, 0x80], Real, Some(Rbp), None, 0, -128, Seg::Ss, 2),
        (&[0x86, 0x80, 0x00], Prot16, Some(Rbp), None, 0, 128, Seg::Ss, 2),
        // 32-bit.
        (&[0x00], Prot32, Some(Rax), None, 0, 0, Seg::Ds, 4),
        (&[0x05, 1, 0, 0, 0x80], Prot32, None, None, 0, -0x7fff_ffff, Seg::Ds, 4),
        (&[0x45, 0xff], Prot32, Some(Rbp), None, 0, -1, Seg::Ss, 4),
        (&[0x04, 0x24], Prot32, Some(Rsp), None, 0, 0, Seg::Ss, 4),
        (&[0x04, 0x65, 1, 0, 0, 0], Prot32, None, None, 0, 1, Seg::Ds, 4),
        (&[0x04, 0x6d, 1, 0, 0, 0], Prot32, None, Some(Rbp), 1, 1, Seg::Ds, 4),
        (&[0x44, 0xb5, 2], Prot32, Some(Rbp), Some(Rsi), 2, 2, Seg::Ss, 4),
        (&[0x84, 0xd9, 0, 1, 0, 0], Prot32, Some(Rcx), Some(Rbx), 3, 256, Seg::Ds, 4),
        // 64-bit.
        (&[0x04, 0x25, 1, 0, 0, 0x80], Long, None, None, 0, -0x7fff_ffff, Seg::Ds, 8),
        (&[0x44, 0x24, 8], Long, Some(Rsp), None, 0, 8, Seg::Ss, 8),
    ];
    for &(tail, mode, base, index, shift, disp, seg, addr_size) in table {
        let bytes = [&[0x8b], tail].concat();
        let i = ok(&bytes, mode);
        assert_eq!(i.src, M);
        let m = i.mem;
        assert_eq!(
            (
                m.base,
                m.index,
                m.shift,
                m.disp as i64,
                m.seg,
                i.addr_size,
                m.rip_relative
            ),
            (base, index, shift, disp, seg, addr_size, false),
            "{bytes:02x?} {mode:?}"
        );
    }
}

#[test]
fn addressing_with_prefixes() {
    let i = ok(&[0x8b, 0x05, 0xfe, 0xff, 0xff, 0xff], Long);
    assert!(i.mem.rip_relative && i.mem.base.is_none() && i.mem.disp as i64 == -2);
    // RIP-relative whatever REX.B says; with 67, EIP-relative.
    let i = ok(&[0x67, 0x41, 0x8b, 0x05, 0, 0, 0, 0], Long);
    assert!(i.mem.rip_relative && i.addr_size == 4);
    // R13 needs a displacement, R12 a SIB byte; neither selects SS.
    let i = ok(&[0x41, 0x8b, 0x45, 0x00], Long);
    assert_eq!((i.mem.base, i.mem.seg), (Some(R13), Seg::Ds));
    let i = ok(&[0x41, 0x8b, 0x04, 0x24], Long);
    assert_eq!(
        (i.mem.base, i.mem.index, i.mem.seg),
        (Some(R12), None, Seg::Ds)
    );
    // R12 can be an index, RSP cannot.
    let i = ok(&[0x42, 0x8b, 0x04, 0xe0], Long);
    assert_eq!(
        (i.mem.base, i.mem.index, i.mem.shift),
        (Some(Rax), Some(R12), 3)
    );
    let i = ok(&[0x43, 0x8b, 0x44, 0xbd, 1], Long);
    assert_eq!((i.mem.base, i.mem.index), (Some(R13), Some(R15)));
    // Overrides: the last one counts, in 64-bit mode only FS and GS.
    assert_eq!(ok(&[0x64, 0x26, 0x8b, 0x45, 0], Prot32).mem.seg, Seg::Es);
    assert_eq!(ok(&[0x64, 0x26, 0x8b, 0x45, 0], Long).mem.seg, Seg::Fs);
    assert_eq!(ok(&[0x2e, 0x8b, 0x45, 0], Long).mem.seg, Seg::Ss);
    assert_eq!(ok(&[0x65, 0xa4], Long).mem.seg, Seg::Gs);
    assert_eq!(ok(&[0x2e, 0xa4], Real).mem.seg, Seg::Cs);
    // Address-size override.
    let i = ok(&[0x67, 0x8b, 0x04, 0x24], Real);
    assert_eq!((i.mem.base, i.addr_size, i.width), (Some(Rsp), 4, 2));
    let i = ok(&[0x67, 0x8b, 0x40, 0x01], Prot32);
    assert_eq!(
        (i.mem.base, i.mem.index, i.addr_size),
        (Some(Rbx), Some(Rsi), 2)
    );
}

#[test]
fn immediates() {
    assert_eq!(ok(&[0x83, 0x07, 0x80], Long).imm as i64, -128);
    assert_eq!(
        ok(&[0x48, 0x81, 0x07, 0, 0, 0, 0x80], Long).imm as i64,
        -0x8000_0000
    );
    assert_eq!(ok(&[0x0f, 0xba, 0x27, 0xff], Long).imm, 255);
    assert_eq!(ok(&[0xe6, 0xff], Long).imm, 255);
    assert_eq!(
        ok(&[0xa1, 0xff, 0xff, 0xff, 0xff], Prot32).mem.disp,
        0xffff_ffff
    );
    assert_eq!(ok(&[0x0f, 0xb7, 0x07], Long).src_width, 2);
    assert_eq!(ok(&[0x48, 0x63, 0x07], Long).src_width, 4);
}

#[test]
fn repeat() {
    assert_eq!(ok(&[0xf3, 0xa4], Long).rep, Rep::Rep);
    assert_eq!(ok(&[0xf2, 0xae], Long).rep, Rep::Repne);
    assert_eq!(ok(&[0xf2, 0xf3, 0xae], Long).rep, Rep::Rep);
    assert_eq!(ok(&[0xae], Long).rep, Rep::None);
}

#[test]
fn errors() {
    use DecodeError::*;
    #[rustfmt::skip]
    let table: &[(&[u8], Mode, DecodeError)] = &[
        (&[], Long, Truncated),
        (&[0x66; 14], Long, Truncated),
        (&[0x66; 15], Long, TooLong),
        (&[0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x8b, 0x05, 0, 0, 0, 0, 0], Long, TooLong),
        // LOCK on what cannot be locked.
        (&[0xf0, 0x8b, 0x07], Long, Undefined),
        (&[0xf0, 0x01, 0xc8], Long, Undefined),
        (&[0xf0, 0x03, 0x07], Long, Undefined),
        (&[0xf0, 0x39, 0x07], Long, Undefined),
        (&[0xf0, 0x0f, 0xa3, 0x07], Long, Undefined),
        (&[0xf0, 0xa4], Long, Undefined),
        (&[0xf0, 0x0f, 0xa2], Long, Undefined),
        (&[0xf0, 0xf4], Long, Undefined),
        (&[0xf0, 0x0f, 0x22, 0xd8], Long, Undefined),
        // Registers that do not exist.
        (&[0x0f, 0x22, 0xc8], Long, Undefined),
        (&[0x44, 0x0f, 0x22, 0xc8], Long, Undefined),
        (&[0x44, 0x0f, 0x21, 0xc0], Long, Undefined),
        // Opcodes that 64-bit mode took away.
        (&[0x82, 0x07, 0x00], Long, Undefined),
        // Reserved extensions.
        (&[0x0f, 0xba, 0x07, 0x00], Long, Undefined),
        (&[0xc7, 0x0f, 0, 0, 0, 0], Long, Undefined),
        (&[0xfe, 0x17], Long, Undefined),
        (&[0xff, 0x3f], Long, Undefined),
        (&[0x0f, 0xc3, 0xc0], Long, Undefined),
        (&[0x0f, 0x38, 0xf0, 0xc0], Long, Undefined),
        // Outside the set.
        // No operand in memory, or two registers.
        (&[0xff, 0xdf], Long, Undefined),
        (&[0xc5, 0xff], Real, Undefined),
        (&[0xc5, 0xff], Prot32, Truncated),
        (&[0x06], Long, Undefined),
        (&[0x60], Long, Undefined),
        (&[0x8e, 0x0f], Long, Undefined),
        (&[0x8c, 0x37], Long, Undefined),
        (&[0xf0, 0xd1, 0x27], Long, Undefined),
        (&[0xf0, 0x0f, 0x10, 0x07], Long, Undefined),
        // VEX after another prefix.
        (&[0x66, 0xc5, 0xf8, 0x10, 0x07], Long, Undefined),
        (&[0x0f, 0x0b], Long, Unsupported),
        (&[0xf3, 0x0f, 0x10, 0x07], Long, Unsupported),
        (&[0x0f, 0x58, 0x07], Long, Unsupported),
        (&[0x0f, 0xae, 0x27], Long, Unsupported),
        // VMOVAPS with a register in vvvv, VADDPS, VPBLENDW.
        (&[0xc5, 0xf0, 0x28, 0x07], Long, Unsupported),
        (&[0xc5, 0xf8, 0x58, 0x07], Long, Unsupported),
        (&[0xc4, 0xe3, 0x79, 0x0e, 0x07, 0], Long, Unsupported),
        (&[0x62, 0xf1, 0x7c, 0x48, 0x10, 0x07], Long, Unsupported),
        (&[0x63, 0x07], Prot32, Unsupported),
        (&[0xd5, 0x00, 0x8b, 0x07], Long, Unsupported),
    ];
    for &(bytes, mode, error) in table {
        assert_eq!(decode(bytes, mode), Err(error), "{bytes:02x?} {mode:?}");
    }
}

/// Changing bytes and modes under the same few addresses: always what decoding gives.
#[test]
fn cache() {
    let streams: [&[u8]; 8] = [
        &[0x8b, 0x07, 0x90, 0x90],
        &[0x8b, 0x47, 0x10, 0x90],
        &[0x8b, 0x47, 0x11, 0x90],
        &[0x8b, 0x47],
        &[0x8b],
        &[],
        &[0x90],
        &[0x0f, 0xa2, 0x8b, 0x07],
    ];
    let mut cache = DecodeCache::new();
    let mut x = 1u32;
    for _ in 0..20_000 {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let bytes = streams[(x >> 28) as usize % streams.len()];
        let mode = [Real, Prot32, Long][(x >> 24) as usize % 3];
        let rip = u64::from((x >> 20) & 3);
        assert_eq!(
            cache.decode(rip, bytes, mode).copied(),
            decode(bytes, mode),
            "{bytes:02x?} {mode:?}"
        );
    }
}
