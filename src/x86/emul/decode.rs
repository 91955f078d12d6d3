// SPDX-License-Identifier: GPL-2.0
//! Decoder: prefixes, a row of the opcode maps, operands (SDM 2A 2, SDM 2D A).
#![forbid(unsafe_code)]

use super::insn::{DecodeError, Insn, Mem, Op, Operand, MAX_LEN};
use super::modrm::ModRm;
use super::prefix::{Cursor, Prefixes};
use super::table::{flag, Arg, Def, Row, NOP, ONE_BYTE, PAUSE, THREE_BYTE_38, TWO_BYTE};
use crate::x86::cpu::regs::{Gpr, Mode, Seg};
use DecodeError::{Undefined, Unsupported};

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
        vector: 16,
        modrm: None,
        insn: Insn::EMPTY,
    };
    d.insn.addr_size = d.addr_size();
    d.insn.rep = pfx.rep;
    d.insn.lock = pfx.lock;
    let row = d.row(opcode)?;
    let def = d.resolve(row)?;
    d.operands(&def)?;
    let mut insn = d.insn;
    if insn.lock && !(insn.op.is_lockable() && insn.dst == Operand::Mem) {
        return Err(Undefined);
    }
    insn.len = d.cur.pos().min(MAX_LEN) as u8;
    for (to, from) in insn.raw.iter_mut().zip(d.cur.consumed()) {
        *to = *from;
    }
    Ok(insn)
}

/// An instruction under way.
struct Decoder<'a> {
    /// Bytes not yet consumed.
    cur: Cursor<'a>,
    /// Prefixes found.
    pfx: Prefixes,
    /// Mode that the bytes are decoded for.
    mode: Mode,
    /// Width of vector operands in bytes.
    vector: u8,
    /// ModRM with what follows it, once it has been read.
    modrm: Option<ModRm>,
    /// The result as far as it is known.
    insn: Insn,
}

impl Decoder<'_> {
    /// In 64-bit mode.
    fn long(&self) -> bool {
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
    fn opsize(&self) -> u8 {
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

    /// The row of the opcode that begins with `opcode`.
    fn row(&mut self, opcode: u8) -> Result<&'static Row, DecodeError> {
        self.insn.cond = opcode & 15;
        match opcode {
            0x0f => {
                let second = self.cur.u8()?;
                if second == 0x38 {
                    let third = self.cur.u8()?;
                    self.insn.cond = third & 15;
                    return Ok(&THREE_BYTE_38[usize::from(third)]);
                }
                self.insn.cond = second & 15;
                Ok(&TWO_BYTE[usize::from(second)])
            }
            0x90 if self.pfx.rep_is_f3() => Ok(&PAUSE),
            0x90 if self.pfx.rex_b() == 0 => Ok(&NOP),
            // Outside 64-bit mode LES and LDS with a register operand, which they do not have.
            0xc4 | 0xc5 if self.long() || self.cur.peek()? >= 0xc0 => self.vex(opcode),
            _ => Ok(&ONE_BYTE[usize::from(opcode)]),
        }
    }

    /// The row of an instruction with a VEX prefix, of which the first byte has been read (SDM 2A 2.3.5).
    fn vex(&mut self, first: u8) -> Result<&'static Row, DecodeError> {
        let none = matches!(self.mode, Mode::Real | Mode::Vm86);
        if none || !self.pfx.none() || self.pfx.rex != 0 || self.pfx.lock {
            return Err(Undefined);
        }
        let second = self.cur.u8()?;
        // Bits of the three-byte form: R, X, B (inverted) and the map; W, vvvv (inverted), L and pp.
        let (rxb_map, last) = if first == 0xc5 {
            (second & 0x80 | 0x61, second & 0x7f)
        } else {
            (second, self.cur.u8()?)
        };
        if self.long() {
            let rex = (!rxb_map >> 5) & 7 | (last >> 4) & 8;
            self.pfx.rex = 0x40 | rex;
        }
        self.pfx.set_pp(last & 3);
        self.insn.rep = self.pfx.rep;
        self.insn.vex = true;
        self.vector = if last & 4 == 0 { 16 } else { 32 };
        let opcode = self.cur.u8()?;
        let map = match rxb_map & 0x1f {
            1 => &TWO_BYTE,
            2 => &THREE_BYTE_38,
            3 => return Err(Unsupported),
            _ => return Err(Undefined),
        };
        // None of those that are known has a register in vvvv.
        match (&map[usize::from(opcode)], (last >> 3) & 15) {
            (Row::Other, _) => Err(Unsupported),
            (row, 15) => Ok(row),
            _ => Err(Unsupported),
        }
    }

    /// Reads ModRM, unless it has been, and remembers its memory form.
    fn modrm(&mut self) -> Result<ModRm, DecodeError> {
        if let Some(m) = self.modrm {
            return Ok(m);
        }
        let long = self.long();
        let m = ModRm::read(&mut self.cur, &self.pfx, self.insn.addr_size, long)?;
        if let Some(mem) = m.mem {
            self.insn.mem = mem;
        }
        self.modrm = Some(m);
        Ok(m)
    }

    /// Follows groups to the instruction.
    fn resolve(&mut self, mut row: &'static Row) -> Result<Def, DecodeError> {
        loop {
            row = match row {
                Row::Other => return Err(Unsupported),
                Row::Undefined => return Err(Undefined),
                Row::Insn(def) => {
                    self.permitted(def)?;
                    return Ok(*def);
                }
                Row::Group(rows) => &rows[usize::from(self.modrm()?.ext() & 7)],
                Row::Rm(rows) => &rows[usize::from(self.modrm()?.rm() & 7)],
                Row::Mod(rows) => &rows[usize::from(self.modrm()?.mem.is_none())],
                Row::Prefix(rows) => &rows[self.pfx.mandatory() & 3],
            };
        }
    }

    /// Whether the mode and the prefixes permit the instruction.
    fn permitted(&self, def: &Def) -> Result<(), DecodeError> {
        let has = |f| def.flags & f != 0;
        if self.insn.vex && !has(flag::VEX) || !self.pfx.none() && has(flag::NP) {
            return Err(Unsupported);
        }
        match self.long() {
            // D5 in 64-bit mode may become a prefix.
            true if has(flag::I64) && def.op == Op::Aad => Err(Unsupported),
            true if has(flag::I64) => Err(Undefined),
            false if has(flag::O64) => Err(Unsupported),
            _ => Ok(()),
        }
    }

    /// Operation, operands and their widths.
    fn operands(&mut self, def: &Def) -> Result<(), DecodeError> {
        let size = match self.opsize() {
            _ if self.long() && def.flags & flag::F64 != 0 => 8,
            4 if self.long() && def.flags & flag::D64 != 0 => 8,
            size => size,
        };
        let [a, b, c] = def.args;
        let (dst, width) = self.operand(a, size)?;
        let (src, src_width) = self.operand(b, size)?;
        let (third, _) = self.operand(c, size)?;
        let insn = &mut self.insn;
        insn.op = def.op;
        insn.aligned = def.flags & flag::ALIGNED != 0;
        (insn.dst, insn.src, insn.third) = (dst, src, third);
        insn.width = match (a, b) {
            // Where no operand tells it the stack's or the operand size is meant.
            (Arg::No, _) if def.flags & (flag::F64 | flag::D64) != 0 => size,
            (Arg::No, Arg::No | Arg::Iw | Arg::IwIb | Arg::Ib | Arg::M) => match def.op {
                Op::RetFar | Op::Iret | Op::Int | Op::Into | Op::Lgdt | Op::Lidt => size,
                _ => 0,
            },
            (Arg::No, _) => src_width,
            (Arg::Dx | Arg::Ib | Arg::Sw | Arg::Cy | Arg::Dy, _) => src_width,
            _ => width,
        };
        insn.src_width = match b {
            Arg::Eb | Arg::Ew | Arg::Ed | Arg::Cl => src_width,
            _ => insn.width,
        };
        Ok(())
    }

    /// The operand of type `arg`, and its width where the operand size is `size`.
    fn operand(&mut self, arg: Arg, size: u8) -> Result<(Operand, u8), DecodeError> {
        use Operand::{Imm, Reg, StrDst, StrSrc};
        let z = size.min(4);
        let y = if self.pfx.rex_w() { 8 } else { 4 };
        let native = if self.long() { 8 } else { 4 };
        Ok(match arg {
            Arg::No => (Operand::None, 0),
            Arg::Eb => self.rm(1)?,
            Arg::Ew => self.rm(2)?,
            Arg::Ed => self.rm(z)?,
            Arg::Ev => self.rm(size)?,
            Arg::MwRv => match self.modrm()?.mem {
                Some(_) => (Operand::Mem, 2),
                None => self.rm(size)?,
            },
            Arg::Mb => self.memory(1)?,
            Arg::Mw => self.memory(2)?,
            Arg::My => self.memory(y)?,
            Arg::Mv | Arg::Mp | Arg::M => self.memory(size)?,
            Arg::Mdq => self.memory(2 * y)?,
            Arg::Gb => self.reg(1)?,
            Arg::Gy => self.reg(y)?,
            Arg::Gv => self.reg(size)?,
            Arg::Zb => (self.low_register(1), 1),
            Arg::Zv => (self.low_register(size), size),
            Arg::Ry => {
                let m = self.register_modrm()?;
                (self.gpr(m.rm() | self.pfx.rex_b(), native), native)
            }
            Arg::Cy => (self.control_register()?, native),
            Arg::Dy => match self.register_modrm()?.ext() | self.pfx.rex_r() {
                n @ 0..=7 => (Operand::Dr(n), native),
                _ => return Err(Undefined),
            },
            Arg::Sw => match Seg::segment(self.modrm()?.ext()) {
                Some(Seg::Cs) if self.insn.cond == 0xe => return Err(Undefined),
                Some(s) => (Operand::Seg(s), 2),
                None => return Err(Undefined),
            },
            Arg::Ib => self.immediate(1, false, 1)?,
            Arg::Is => self.immediate(1, true, size)?,
            Arg::Iw => self.immediate(2, false, 2)?,
            Arg::Iz => self.immediate(z, true, size)?,
            Arg::Iv => self.immediate(size, true, size)?,
            Arg::IwIb => {
                let frame = self.cur.unsigned(2)?;
                self.insn.imm = self.cur.unsigned(1)? << 16 | frame;
                (Imm, size)
            }
            Arg::Ap => {
                let offset = self.cur.unsigned(z)?;
                self.insn.imm = self.cur.unsigned(2)? << 32 | offset;
                (Imm, size)
            }
            Arg::Jb => self.immediate(1, true, size)?,
            Arg::Jz => self.immediate(z, true, size)?,
            Arg::Ob => (self.moffs()?, 1),
            Arg::Ov => (self.moffs()?, size),
            Arg::Xb => (self.string(StrSrc), 1),
            Arg::Xv => (self.string(StrSrc), size),
            Arg::Xz => (self.string(StrSrc), z),
            Arg::Yb => (self.string(StrDst), 1),
            Arg::Yv => (self.string(StrDst), size),
            Arg::Yz => (self.string(StrDst), z),
            Arg::Al => (Reg(Gpr::Rax), 1),
            Arg::Ax => (Reg(Gpr::Rax), size),
            Arg::Az => (Reg(Gpr::Rax), z),
            Arg::Cl => (Reg(Gpr::Rcx), 1),
            Arg::Dx => (Operand::Dx, 2),
            Arg::One => {
                self.insn.imm = 1;
                (Imm, 1)
            }
            Arg::Es => (Operand::Seg(Seg::Es), size),
            Arg::Cs => (Operand::Seg(Seg::Cs), size),
            Arg::Ss => (Operand::Seg(Seg::Ss), size),
            Arg::Ds => (Operand::Seg(Seg::Ds), size),
            Arg::Fs => (Operand::Seg(Seg::Fs), size),
            Arg::Gs => (Operand::Seg(Seg::Gs), size),
            Arg::Vx => {
                let n = self.modrm()?.ext() | self.pfx.rex_r();
                (Operand::Vec(n & 15), self.vector)
            }
            Arg::Wx => {
                let m = self.modrm()?;
                let reg = Operand::Vec((m.rm() | self.pfx.rex_b()) & 15);
                (m.mem.map_or(reg, |_| Operand::Mem), self.vector)
            }
            Arg::Pq => (Operand::Mm(self.modrm()?.ext() & 7), 8),
            Arg::Qq => {
                let m = self.modrm()?;
                (m.mem.map_or(Operand::Mm(m.rm() & 7), |_| Operand::Mem), 8)
            }
        })
    }

    /// General-purpose register operand `n` (with its REX bit) of `width` bytes.
    fn gpr(&self, n: u8, width: u8) -> Operand {
        if width == 1 && self.pfx.rex == 0 && (4..8).contains(&n) {
            Operand::High(Gpr::from_bits(n.wrapping_sub(4)))
        } else {
            Operand::Reg(Gpr::from_bits(n))
        }
    }

    /// The operand in ModRM.reg.
    fn reg(&mut self, width: u8) -> Result<(Operand, u8), DecodeError> {
        let m = self.modrm()?;
        Ok((self.gpr(m.ext() | self.pfx.rex_r(), width), width))
    }

    /// The operand in ModRM.r/m.
    fn rm(&mut self, width: u8) -> Result<(Operand, u8), DecodeError> {
        let m = self.modrm()?;
        let reg = self.gpr(m.rm() | self.pfx.rex_b(), width);
        Ok((m.mem.map_or(reg, |_| Operand::Mem), width))
    }

    /// The operand in ModRM.r/m, which has to be memory.
    fn memory(&mut self, width: u8) -> Result<(Operand, u8), DecodeError> {
        match self.modrm()?.mem {
            Some(_) => Ok((Operand::Mem, width)),
            None => Err(Undefined),
        }
    }

    /// ModRM of MOV CRn and MOV DRn: ModRM.mod is ignored, the operand is always a register (SDM 2B MOV).
    fn register_modrm(&mut self) -> Result<ModRm, DecodeError> {
        if let Some(m) = self.modrm {
            return Ok(m);
        }
        let byte = self.cur.u8()?;
        let m = ModRm { byte, mem: None };
        self.modrm = Some(m);
        Ok(m)
    }

    /// The control register in ModRM.reg.
    fn control_register(&mut self) -> Result<Operand, DecodeError> {
        let n = self.register_modrm()?.ext() | self.pfx.rex_r();
        // LOCK with CR0 reaches CR8 outside 64-bit mode, too (APM 3 MOV CRn).
        let n = if self.pfx.lock && n == 0 {
            self.insn.lock = false;
            8
        } else {
            n
        };
        match n {
            0 | 2 | 3 | 4 | 8 => Ok(Operand::Cr(n)),
            _ => Err(Undefined),
        }
    }

    /// The register in the low bits of the opcode.
    fn low_register(&self, width: u8) -> Operand {
        self.gpr(self.insn.cond & 7 | self.pfx.rex_b(), width)
    }

    /// Reads an immediate of `bytes` bytes for an operand of `width`.
    fn immediate(
        &mut self,
        bytes: u8,
        signed: bool,
        width: u8,
    ) -> Result<(Operand, u8), DecodeError> {
        self.insn.imm = if signed {
            self.cur.signed(bytes)?
        } else {
            self.cur.unsigned(bytes)?
        };
        Ok((Operand::Imm, width))
    }

    /// A string in memory.
    fn string(&mut self, operand: Operand) -> Operand {
        self.insn.mem.seg = self.pfx.seg.unwrap_or(Seg::Ds);
        operand
    }

    /// The absolute-address operand of MOV A0-A3.
    fn moffs(&mut self) -> Result<Operand, DecodeError> {
        let disp = self.cur.unsigned(self.insn.addr_size)?;
        self.insn.mem = Mem {
            disp,
            seg: self.pfx.seg.unwrap_or(Seg::Ds),
            ..self.insn.mem
        };
        Ok(Operand::Mem)
    }
}
