// SPDX-License-Identifier: GPL-2.0
//! Decoder entry point and the operand helpers that the opcode maps share (SDM 2D A).
#![forbid(unsafe_code)]

use super::insn::{DecodeError, Insn, Mem, Op, Operand, MAX_LEN};
use super::modrm::ModRm;
use super::prefix::{Cursor, Prefixes};
use super::{oneb, twob};
use crate::x86::cpu::regs::{Gpr, Mode, Seg};

/// Decodes the instruction at the start of `bytes` for a processor in `mode`.
///
/// Bytes after the instruction are ignored. [`DecodeError::Truncated`] asks for more bytes: pass up to fifteen to never
/// see it.
pub fn decode(bytes: &[u8], mode: Mode) -> Result<Insn, DecodeError> {
    let mut cur = Cursor::new(bytes);
    let (pfx, opcode) = Prefixes::read(&mut cur, mode)?;
    let mut d = Decoder {
        cur,
        pfx,
        mode,
        insn: Insn::EMPTY,
    };
    d.insn.addr_size = d.addr_size();
    d.insn.rep = pfx.rep;
    d.insn.lock = pfx.lock;
    if opcode == 0x0f {
        twob::decode(&mut d)?;
    } else {
        oneb::decode(&mut d, opcode)?;
    }
    let mut insn = d.insn;
    if insn.lock && !(insn.op.is_lockable() && insn.dst == Operand::Mem) {
        return Err(DecodeError::Undefined);
    }
    insn.len = d.cur.pos().min(MAX_LEN) as u8;
    for (to, from) in insn.raw.iter_mut().zip(d.cur.consumed()) {
        *to = *from;
    }
    Ok(insn)
}

/// An instruction under way.
pub(super) struct Decoder<'a> {
    /// Bytes not yet consumed.
    pub(super) cur: Cursor<'a>,
    /// Prefixes found.
    pub(super) pfx: Prefixes,
    /// Mode that the bytes are decoded for.
    pub(super) mode: Mode,
    /// The result as far as it is known.
    pub(super) insn: Insn,
}

impl Decoder<'_> {
    /// In 64-bit mode.
    pub(super) fn long(&self) -> bool {
        self.mode == Mode::Long
    }

    /// Address size in bytes (SDM 2A 2.1.1, 2.2.1.7).
    fn addr_size(&self) -> u8 {
        match (self.mode, self.pfx.addrsize) {
            (Mode::Long, false) => 8,
            (Mode::Long, true) | (Mode::Prot32, false) => 4,
            (Mode::Prot32, true) => 2,
            (_, false) => 2,
            (_, true) => 4,
        }
    }

    /// Operand size in bytes of the "v" operand types (SDM 2D A.2.2).
    pub(super) fn opsize(&self) -> u8 {
        if self.pfx.rex_w() {
            return 8;
        }
        match (self.mode, self.pfx.opsize) {
            (Mode::Long | Mode::Prot32, false) => 4,
            (Mode::Long | Mode::Prot32, true) => 2,
            (_, false) => 2,
            (_, true) => 4,
        }
    }

    /// 1 for an even opcode, else the operand size: the "b" and "v" forms of one instruction.
    pub(super) fn bv(&self, opcode: u8) -> u8 {
        if opcode & 1 == 0 {
            1
        } else {
            self.opsize()
        }
    }

    /// Reads ModRM and remembers its memory form.
    pub(super) fn modrm(&mut self) -> Result<ModRm, DecodeError> {
        let long = self.long();
        let m = ModRm::read(&mut self.cur, &self.pfx, self.insn.addr_size, long)?;
        if let Some(mem) = m.mem {
            self.insn.mem = mem;
        }
        Ok(m)
    }

    /// General-purpose register operand `n` (with its REX bit) of `width` bytes.
    pub(super) fn gpr(&self, n: u8, width: u8) -> Operand {
        if width == 1 && self.pfx.rex == 0 && (4..8).contains(&n) {
            Operand::High(Gpr::from_bits(n - 4))
        } else {
            Operand::Reg(Gpr::from_bits(n))
        }
    }

    /// The operand in ModRM.reg.
    pub(super) fn reg(&self, m: &ModRm, width: u8) -> Operand {
        self.gpr(m.ext() | self.pfx.rex_r(), width)
    }

    /// The operand in ModRM.r/m.
    pub(super) fn rm(&self, m: &ModRm, width: u8) -> Operand {
        if m.mem.is_some() {
            Operand::Mem
        } else {
            self.gpr(m.rm() | self.pfx.rex_b(), width)
        }
    }

    /// Sets operation, operands and their common width.
    pub(super) fn set(&mut self, op: Op, dst: Operand, src: Operand, width: u8) {
        self.insn.op = op;
        self.insn.dst = dst;
        self.insn.src = src;
        self.insn.width = width;
        self.insn.src_width = width;
    }

    /// An operation without operands.
    pub(super) fn plain(&mut self, op: Op) -> Result<(), DecodeError> {
        self.set(op, Operand::None, Operand::None, 0);
        Ok(())
    }

    /// Immediate of the "z" type for an operand of `width` bytes: at most four bytes, sign-extended.
    pub(super) fn immediate(&mut self, width: u8) -> Result<(), DecodeError> {
        self.insn.imm = self.cur.signed(width.min(4))?;
        Ok(())
    }

    /// The absolute-address operand of MOV A0-A3.
    pub(super) fn moffs(&mut self) -> Result<(), DecodeError> {
        let disp = self.cur.unsigned(self.insn.addr_size)?;
        self.insn.mem = Mem {
            disp,
            seg: self.pfx.seg.unwrap_or(Seg::Ds),
            ..self.insn.mem
        };
        Ok(())
    }
}
