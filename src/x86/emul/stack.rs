// SPDX-License-Identifier: GPL-2.0
//! Instructions on the stack beyond PUSH and POP of one operand (SDM 2A ENTER, LEAVE; SDM 2B POPA, POPF, PUSHA, PUSHF).
//!
//! Registers change after the last access.
#![forbid(unsafe_code)]

use super::addr::Access;
use super::env::{Env, Stop};
use super::exec::{read, write, Context};
use super::insn::{Op, Operand};
use super::operand::{mask, merge, set_gpr};
use super::segment::Transfer;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::rflags::{self, AC, AF, CF, DF, ID, IF, IOPL, NT, OF, PF, SF, TF, ZF};
use crate::x86::cpu::regs::{Gpr, Mode, Seg};

/// PUSHA's order; POPA's is the reverse and leaves rSP out.
const ALL: [Gpr; 8] = [
    Gpr::Rax,
    Gpr::Rcx,
    Gpr::Rdx,
    Gpr::Rbx,
    Gpr::Rsp,
    Gpr::Rbp,
    Gpr::Rsi,
    Gpr::Rdi,
];

/// What POPF may change at any privilege level.
const POPF: u64 = CF | PF | AF | ZF | SF | OF | TF | DF | NT | AC | ID;

impl<E: Env + ?Sized> Context<'_, E> {
    /// Writes `values` of `width` bytes below the stack's top, the first one first; answers what rSP is then. A stack
    /// that cannot be written is found before the first is.
    pub(super) fn push_all(&mut self, values: &[u64], width: u8) -> Result<u64, Stop> {
        let sw = self.stack_width();
        let rsp = self.regs.get(Gpr::Rsp);
        let below = |top: u64| top.wrapping_sub(u64::from(width)) & mask(sw);
        let mut top = rsp;
        for _ in values {
            top = below(top);
            let la = self.linear(Seg::Ss, top, width, Access::Write)?;
            self.env.probe_write(la, width)?;
        }
        top = rsp;
        for &value in values {
            top = below(top);
            let la = self.linear(Seg::Ss, top, width, Access::Write)?;
            write(self.env, self.mode, la, width, value)?;
        }
        Ok(merge(rsp, top, sw))
    }

    /// Reads `width` bytes `offset` bytes above `top`.
    fn stack_at(&mut self, top: u64, offset: u64, width: u8) -> Result<u64, Stop> {
        let ea = top.wrapping_add(offset) & mask(self.stack_width());
        let la = self.linear(Seg::Ss, ea, width, Access::Read)?;
        read(self.env, self.mode, la, width)
    }

    /// The value of `width` bytes that lies `n` values above the stack's top.
    pub(super) fn popped(&mut self, n: u64, width: u8) -> Result<u64, Stop> {
        let top = self.regs.get(Gpr::Rsp);
        self.stack_at(top, n.wrapping_mul(width.into()), width)
    }

    /// rSP moved up by `bytes`.
    pub(super) fn stack_above(&self, bytes: u64) -> u64 {
        let rsp = self.regs.get(Gpr::Rsp);
        merge(rsp, rsp.wrapping_add(bytes), self.stack_width())
    }

    /// PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE, PUSH and POP of segment registers.
    pub(super) fn stack(&mut self) -> Result<(), Stop> {
        let insn = self.insn;
        let width = insn.width;
        let rsp = match insn.op {
            Op::Pusha => self.push_all(&ALL.map(|r| self.regs.get(r)), width)?,
            Op::Popa => return self.popa(),
            Op::Pushf => {
                let flags = self.regs.rflags & !(rflags::VM | rflags::RF);
                self.virtual_8086_stack()?;
                self.push_all(&[flags], width)?
            }
            Op::Popf => {
                self.virtual_8086_stack()?;
                let value = self.popped(0, width)?;
                let may = self.popf_mask() & mask(width);
                self.regs.rflags = self.regs.rflags & !may | value & may;
                self.stack_above(width.into())
            }
            Op::Enter => return self.enter(),
            Op::Leave => {
                let rbp = self.regs.get(Gpr::Rbp);
                let value = self.stack_at(rbp, 0, width)?;
                let above = rbp.wrapping_add(width.into());
                let rsp = merge(self.regs.get(Gpr::Rsp), above, self.stack_width());
                self.set(Gpr::Rbp, merge(rbp, value, width))?;
                rsp
            }
            Op::PushSeg => self.push_segment()?,
            _ => {
                let Operand::Seg(seg) = insn.dst else {
                    return Err(Stop::Unsupported);
                };
                let selector = self.popped_selector()?;
                self.move_to_segment(seg, selector, Transfer::Move)?;
                self.stack_above(width.into())
            }
        };
        set_gpr(self.regs, Gpr::Rsp, rsp);
        Ok(())
    }

    /// PUSHF and POPF in virtual-8086 mode want IOPL 3.
    fn virtual_8086_stack(&self) -> Result<(), Stop> {
        if self.mode == Mode::Vm86 && self.regs.rflags & IOPL != IOPL {
            return Err(self.fault(vector::GP, 0));
        }
        Ok(())
    }

    fn popf_mask(&self) -> u64 {
        let iopl = (self.regs.rflags & IOPL) >> 12;
        match self.mode {
            Mode::Real => POPF | IOPL | IF,
            Mode::Vm86 => POPF | IF,
            _ if self.cpl == 0 => POPF | IOPL | IF,
            _ if u64::from(self.cpl) <= iopl => POPF | IF,
            _ => POPF,
        }
    }

    fn popa(&mut self) -> Result<(), Stop> {
        let width = self.insn.width;
        let mut values = [0u64; 8];
        for (n, value) in values.iter_mut().enumerate() {
            // rSP's is not read.
            if n != 3 {
                *value = self.popped(n as u64, width)?;
            }
        }
        let above = self.stack_above(u64::from(width).wrapping_mul(8));
        for (r, value) in ALL.iter().rev().zip(values) {
            if *r != Gpr::Rsp {
                let new = merge(self.regs.get(*r), value, width);
                set_gpr(self.regs, *r, new);
            }
        }
        set_gpr(self.regs, Gpr::Rsp, above);
        Ok(())
    }

    /// ENTER without nesting; with it KVM has none either.
    fn enter(&mut self) -> Result<(), Stop> {
        let (frame, level) = (self.insn.imm & 0xffff, self.insn.imm >> 16 & 31);
        if level != 0 {
            return Err(Stop::Unsupported);
        }
        let (rbp, sw) = (self.regs.get(Gpr::Rbp), self.stack_width());
        let rsp = self.push_all(&[rbp], self.insn.width)?;
        self.set(Gpr::Rbp, merge(rbp, rsp, sw))?;
        self.set(Gpr::Rsp, merge(rsp, rsp.wrapping_sub(frame), sw))
    }

    /// A selector of 32 bits is written as 16 of them, as newer processors do (SDM 2B PUSH).
    fn push_segment(&mut self) -> Result<u64, Stop> {
        let (Operand::Seg(seg), width) = (self.insn.src, self.insn.width) else {
            return Err(Stop::Unsupported);
        };
        let selector = u64::from(self.sregs.seg(seg).selector);
        if width != 4 {
            return self.push_all(&[selector], width);
        }
        let (rsp, sw) = (self.regs.get(Gpr::Rsp), self.stack_width());
        let top = rsp.wrapping_sub(4) & mask(sw);
        let la = self.linear(Seg::Ss, top, 2, Access::Write)?;
        write(self.env, self.mode, la, 2, selector)?;
        Ok(merge(rsp, top, sw))
    }

    /// Of a selector on the stack no more than 16 bits are read.
    fn popped_selector(&mut self) -> Result<u16, Stop> {
        let top = self.regs.get(Gpr::Rsp);
        Ok(self.stack_at(top, 0, 2)? as u16)
    }
}
