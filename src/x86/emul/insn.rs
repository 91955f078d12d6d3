// SPDX-License-Identifier: GPL-2.0
//! A decoded instruction: operation, operands, effective-address form (SDM 2A 2.1, APM 3 1.2).
#![forbid(unsafe_code)]

use crate::x86::cpu::regs::{Gpr, Seg};

/// Longest legal instruction in bytes (SDM 2A 2.3.11).
pub const MAX_LEN: usize = 15;

/// Why bytes did not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The instruction goes on after the given bytes; fetch more and try again.
    Truncated,
    /// More than [`MAX_LEN`] bytes: the processor raises #GP(0).
    TooLong,
    /// Not in the supported set (it may well be a valid instruction).
    Unsupported,
    /// The processor raises #UD, for instance for LOCK where it is not allowed.
    Undefined,
}

/// Operation, named as in the manuals. Operands and widths are in [`Insn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Op {
    // Executable by `execute`: general-purpose instructions with a memory operand.
    Mov,
    Movzx,
    /// MOVSX and MOVSXD.
    Movsx,
    Movbe,
    Movnti,
    Xchg,
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
    Test,
    Inc,
    Dec,
    Not,
    Neg,
    Bt,
    Bts,
    Btr,
    Btc,
    Cmpxchg,
    /// CMPXCHG8B; CMPXCHG16B when the width is 16 (decoded only).
    Cmpxchg8b,
    Xadd,
    Push,
    Pop,
    // Executable shifts and rotates, in the order of group 2.
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
    Shld,
    Shrd,
    /// MUL of the accumulator.
    Mul,
    /// IMUL of the accumulator.
    ImulAcc,
    /// IMUL with two or three operands.
    Imul,
    Div,
    Idiv,
    Bsf,
    Bsr,
    /// TZCNT and LZCNT, as processors that have them take BSF and BSR with F3.
    Tzcnt,
    Lzcnt,
    /// CMOVcc; the condition is [`Insn::cond`].
    Cmov,
    /// SETcc.
    Setcc,
    Xlat,
    // Executable, on the stack.
    Pusha,
    Popa,
    Pushf,
    Popf,
    Enter,
    Leave,
    PushSeg,
    PopSeg,
    // Executable transfers of control.
    Jcc,
    /// JMP near, relative or through memory or a register.
    Jmp,
    Call,
    Ret,
    JmpFar,
    CallFar,
    RetFar,
    /// INT3, INT n and INTO; only in real mode.
    Int,
    /// INTO.
    Into,
    /// Only in real mode.
    Iret,
    /// LOOP, LOOPE, LOOPNE and JrCXZ, by [`Insn::cond`].
    Loop,
    // Executable, on segment registers and descriptor tables.
    /// MOV to memory or a register from a segment register.
    Store,
    /// MOV to a segment register.
    Load,
    /// LDS, LES, LFS, LGS and LSS.
    LoadFar,
    Sldt,
    Str,
    Lldt,
    Ltr,
    Sgdt,
    Sidt,
    Lgdt,
    Lidt,
    // Executable, on vector registers and the FPU.
    /// MOVAPS and the others that move 16 or 32 bytes as they are.
    Movv,
    /// MOVQ of MMX.
    Movq,
    Fnstcw,
    Fnstsw,
    Fxsave,
    Fxrstor,
    // Executable without memory or with an operand that is not used: met where page tables are in read-only memory.
    /// CLFLUSH and CLFLUSHOPT, which read a byte.
    Clflush,
    /// NOP, prefetches, FNINIT's like.
    Nop,
    /// INVLPG, which takes all translations away.
    Invlpg,
    Lea,
    /// CBW, CWDE and CDQE.
    Cbw,
    /// CWD, CDQ and CQO.
    Cwd,
    Bswap,
    Sahf,
    Lahf,
    Das,
    Aam,
    Aad,
    Salc,
    Cmc,
    Clc,
    Stc,
    Cli,
    Sti,
    Cld,
    Std,
    // Executable string instructions.
    Movs,
    Cmps,
    Stos,
    Lods,
    Scas,
    Ins,
    Outs,
    // Decoded for length and operands only.
    In,
    Out,
    Cpuid,
    Rdmsr,
    Wrmsr,
    Hlt,
    Pause,
    Invd,
    /// WBINVD and WBNOINVD.
    Wbinvd,
    /// MOV to or from a control register; the CR operand tells the direction.
    MovCr,
    /// MOV to or from a debug register; the DR operand tells the direction.
    MovDr,
    Clts,
    Lmsw,
    Smsw,
    Xsetbv,
    Rsm,
    Monitor,
    Mwait,
    Vmcall,
    Vmmcall,
    // Those of src/x86/syscall.rs.
    Syscall,
    Sysenter,
    Sysexit,
}

impl Op {
    /// True for what has one operand in memory and uses memory for nothing else: neither the stack nor a table.
    pub const fn has_one_place(self) -> bool {
        (self as u8) < Self::Push as u8 || matches!(self as u8, ROL..=SETCC)
    }

    /// True for MOVS, CMPS, STOS, LODS, SCAS, INS and OUTS.
    pub const fn is_string(self) -> bool {
        matches!(
            self,
            Self::Movs | Self::Cmps | Self::Stos | Self::Lods | Self::Scas | Self::Ins | Self::Outs
        )
    }

    /// True when LOCK is allowed with a memory destination (SDM 2A 2.1.1, "LOCK prefix").
    pub(super) const fn is_lockable(self) -> bool {
        matches!(
            self,
            Self::Add
                | Self::Adc
                | Self::And
                | Self::Btc
                | Self::Btr
                | Self::Bts
                | Self::Cmpxchg
                | Self::Cmpxchg8b
                | Self::Dec
                | Self::Inc
                | Self::Neg
                | Self::Not
                | Self::Or
                | Self::Sbb
                | Self::Sub
                | Self::Xor
                | Self::Xadd
                | Self::Xchg
        )
    }
}

const ROL: u8 = Op::Rol as u8;
const SETCC: u8 = Op::Setcc as u8;

/// Repeat prefix in force (the last of F2, F3). Meaningful for string instructions only.
#[allow(clippy::enum_variant_names)] // The prefixes' own names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rep {
    /// No repeat prefix.
    #[default]
    None,
    /// F3: REP or REPE.
    Rep,
    /// F2: REPNE (acts as REP for instructions that set no flags).
    Repne,
}

/// One operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Operand {
    /// No operand.
    #[default]
    None,
    /// A general-purpose register, low `width` bytes.
    Reg(Gpr),
    /// Bits 15:8 of RAX, RCX, RDX or RBX (AH, CH, DH, BH).
    High(Gpr),
    /// The memory operand described by [`Insn::mem`].
    Mem,
    /// [`Insn::imm`].
    Imm,
    /// Control register 0, 2, 3, 4 or 8.
    Cr(u8),
    /// Debug register 0 to 7.
    Dr(u8),
    /// A segment register.
    Seg(Seg),
    /// XMM or YMM register 0 to 15.
    Vec(u8),
    /// MMX register 0 to 7.
    Mm(u8),
    /// The port number in DX.
    Dx,
    /// String source: `mem.seg:[rSI]`.
    StrSrc,
    /// String destination: `ES:[rDI]`.
    StrDst,
}

/// Effective-address form: segment:[base + (index << shift) + disp], in `Insn::addr_size` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mem {
    /// Displacement, sign-extended (zero-extended for the absolute address of MOV A0-A3).
    pub disp: u64,
    /// Base register.
    pub base: Option<Gpr>,
    /// Index register.
    pub index: Option<Gpr>,
    /// Shift count of the index: 0 to 3.
    pub shift: u8,
    /// Relative to the next instruction's RIP; then there is no base and no index.
    pub rip_relative: bool,
    /// Segment in force: the override, else SS for an rSP or rBP base, else DS.
    pub seg: Seg,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Immediate operand, sign-extended to 64 bits (zero-extended for port numbers, bit offsets and counts). ENTER's
    /// level is in bits 23:16; a far pointer's selector in bits 47:32.
    pub imm: u64,
    /// Memory operand form. For string instructions only `seg` (the source segment) has a meaning.
    pub mem: Mem,
    /// Operation.
    pub op: Op,
    /// Destination (or first) operand.
    pub dst: Operand,
    /// Source (or second) operand.
    pub src: Operand,
    /// Third operand: the count of SHLD and SHRD, the factor of IMUL.
    pub third: Operand,
    /// The condition of CMOVcc, Jcc and SETcc: the low four bits of the opcode.
    pub cond: u8,
    /// Encoded with VEX.
    pub vex: bool,
    /// A memory operand of 16 bytes or more has to be aligned to its size.
    pub aligned: bool,
    /// Operand width in bytes: 1, 2, 4, 8, 16 or 32; 0 where the operation has none.
    pub width: u8,
    /// Width of the source in bytes; differs from `width` for MOVZX and MOVSX, and is 1 for a count in CL.
    pub src_width: u8,
    /// Address size in bytes: 2, 4 or 8.
    pub addr_size: u8,
    /// Repeat prefix.
    pub rep: Rep,
    /// LOCK prefix present.
    pub lock: bool,
    /// Length in bytes.
    pub(super) len: u8,
    /// The bytes, zeros after `len`.
    pub(super) raw: [u8; MAX_LEN],
}

const _: () = assert!(core::mem::size_of::<Insn>() <= 96);

impl Insn {
    pub(super) const EMPTY: Self = Self {
        imm: 0,
        mem: Mem {
            disp: 0,
            base: None,
            index: None,
            shift: 0,
            rip_relative: false,
            seg: Seg::Ds,
        },
        op: Op::Mov,
        dst: Operand::None,
        src: Operand::None,
        third: Operand::None,
        cond: 0,
        vex: false,
        aligned: false,
        width: 0,
        src_width: 0,
        addr_size: 0,
        rep: Rep::None,
        lock: false,
        len: 0,
        raw: [0; MAX_LEN],
    };

    /// Length in bytes, 1 to 15.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// The instruction's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.raw.get(..usize::from(self.len)).unwrap_or(&self.raw)
    }

    /// True if `bytes` begin with this instruction's. False for [`Self::EMPTY`].
    pub(super) fn begins(&self, bytes: &[u8]) -> bool {
        let own = self.bytes();
        !own.is_empty() && own.len() <= bytes.len() && own.iter().zip(bytes).all(|(a, b)| a == b)
    }
}
