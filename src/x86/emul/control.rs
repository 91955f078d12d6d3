// SPDX-License-Identifier: GPL-2.0
//! Transfers of control (SDM 2A CALL, INT n, IRET, Jcc, JMP; SDM 2B LOOP, RET).
//!
//! Registers change after the last access. Not here, as in KVM: gates, returns to another privilege level, and
//! interrupts outside real mode.
#![forbid(unsafe_code)]

use super::addr::Access;
use super::alu;
use super::env::{Env, Stop};
use super::exec::{read_bytes, Context};
use super::insn::{Op, Operand};
use super::operand::{mask, merge, set_gpr};
use super::segment::Transfer;
use crate::x86::cpu::canonical::is_canonical;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::rflags::{
    self, AC, AF, CF, DF, FIXED, ID, IF, IOPL, NT, OF, PF, RF, SF, TF, ZF,
};
use crate::x86::cpu::regs::{efer, Gpr, Mode, Seg, Segment};

/// What IRET loads in real mode.
const IRET: u64 = CF | PF | AF | ZF | SF | TF | IF | DF | OF | IOPL | NT | RF | AC | ID | FIXED;

impl<E: Env + ?Sized> Context<'_, E> {
    /// All of them.
    pub(super) fn transfer(&mut self) -> Result<(), Stop> {
        let insn = self.insn;
        let width = insn.width;
        match insn.op {
            Op::Jcc => {
                if alu::condition(insn.cond, self.regs.rflags) {
                    self.jump_relative()?;
                }
            }
            Op::Loop => self.count()?,
            Op::Jmp if insn.src == Operand::Imm => self.jump_relative()?,
            Op::Jmp => {
                let to = self.load(insn.src, width)?;
                self.target = Some(self.near(to)?);
            }
            Op::Call => {
                let to = match insn.src {
                    Operand::Imm => self.next().wrapping_add(insn.imm),
                    src => self.load(src, width)?,
                };
                let to = self.near(to)?;
                let rsp = self.push_all(&[self.next()], width)?;
                set_gpr(self.regs, Gpr::Rsp, rsp);
                self.target = Some(to);
            }
            Op::Ret => {
                let to = self.popped(0, width)?;
                let to = self.near(to)?;
                let rsp = self.stack_above(u64::from(width).wrapping_add(insn.imm));
                set_gpr(self.regs, Gpr::Rsp, rsp);
                self.target = Some(to);
            }
            Op::JmpFar | Op::CallFar => self.far()?,
            Op::RetFar => {
                let to = self.popped(0, width)?;
                let selector = self.popped(1, width)? as u16;
                let cs = self.segment(Seg::Cs, selector, Transfer::Return)?;
                let to = self.far_target(&cs, to)?;
                let rsp = self.stack_above(u64::from(width).wrapping_mul(2).wrapping_add(insn.imm));
                self.set_segment(Seg::Cs, &cs)?;
                set_gpr(self.regs, Gpr::Rsp, rsp);
                self.target = Some(to);
            }
            _ if self.mode != Mode::Real => return Err(Stop::Unsupported),
            Op::Int if insn.src == Operand::Imm => self.interrupt(insn.imm as u8)?,
            Op::Int => self.interrupt(vector::BP)?,
            Op::Into => {
                if self.regs.rflags & OF != 0 {
                    self.interrupt(vector::OF)?;
                }
            }
            _ => self.iret()?,
        }
        Ok(())
    }

    /// Where the next instruction is.
    fn next(&self) -> u64 {
        self.regs.rip.wrapping_add(u64::from(self.insn.len()))
    }

    fn jump_relative(&mut self) -> Result<(), Stop> {
        let to = self.next().wrapping_add(self.insn.imm);
        self.target = Some(self.near(to)?);
        Ok(())
    }

    /// LOOP and its kin: the count is rCX in the address size.
    fn count(&mut self) -> Result<(), Stop> {
        let insn = self.insn;
        let (rcx, m) = (self.regs.get(Gpr::Rcx), mask(insn.addr_size));
        let zero = self.regs.rflags & ZF != 0;
        let left = rcx.wrapping_sub(1) & m;
        let jump = match insn.cond {
            0 => left != 0 && !zero,
            1 => left != 0 && zero,
            2 => left != 0,
            _ => rcx & m == 0,
        };
        if jump {
            self.jump_relative()?;
        }
        if insn.cond != 3 {
            self.set(Gpr::Rcx, merge(rcx, left, insn.addr_size))?;
        }
        Ok(())
    }

    /// A target in the current code segment; #GP(0) beyond it.
    fn near(&self, to: u64) -> Result<u64, Stop> {
        self.target_in(self.mode, self.sregs.seg(Seg::Cs), to)
    }

    /// A target in the code segment `cs`, which is to be loaded.
    fn far_target(&self, cs: &Segment, to: u64) -> Result<u64, Stop> {
        let long = self.sregs.efer & efer::LMA != 0 && cs.l;
        let mode = if long { Mode::Long } else { Mode::Prot32 };
        self.target_in(mode, cs, to)
    }

    fn target_in(&self, mode: Mode, cs: &Segment, to: u64) -> Result<u64, Stop> {
        let to = to & mask(self.insn.width);
        let valid = if mode == Mode::Long {
            is_canonical(to, self.sregs.linear_width())
        } else {
            to <= u64::from(cs.limit)
        };
        valid.then_some(to).ok_or(self.fault(vector::GP, 0))
    }

    /// The far pointer: offset of the operand size, then selector.
    pub(super) fn pointer(&mut self) -> Result<(u16, u64), Stop> {
        let (insn, width) = (self.insn, self.insn.width);
        if insn.src == Operand::Imm {
            return Ok(((insn.imm >> 32) as u16, insn.imm & 0xffff_ffff));
        }
        let len = width.wrapping_add(2);
        let la = self.address(len, Access::Read)?;
        let mut bytes = [0u8; 16];
        let part = bytes.get_mut(..usize::from(len)).ok_or(Stop::Unsupported)?;
        read_bytes(self.env, self.mode, la, part)?;
        let value = u128::from_le_bytes(bytes);
        let selector = value.wrapping_shr(u32::from(width).wrapping_mul(8));
        Ok((selector as u16, value as u64 & mask(width)))
    }

    /// JMP and CALL to another segment.
    fn far(&mut self) -> Result<(), Stop> {
        let (selector, to) = self.pointer()?;
        let cs = self.segment(Seg::Cs, selector, Transfer::Jump)?;
        let to = self.far_target(&cs, to)?;
        if self.insn.op == Op::CallFar {
            let back = self.sregs.seg(Seg::Cs).selector;
            let rsp = self.push_all(&[back.into(), self.next()], self.insn.width)?;
            self.set_segment(Seg::Cs, &cs)?;
            set_gpr(self.regs, Gpr::Rsp, rsp);
        } else {
            self.set_segment(Seg::Cs, &cs)?;
        }
        self.target = Some(to);
        Ok(())
    }

    /// A software interrupt in real mode (SDM 3B 21.1.4).
    fn interrupt(&mut self, number: u8) -> Result<(), Stop> {
        let idt = self.sregs.idt;
        let at = u64::from(number).wrapping_mul(4);
        if at.wrapping_add(3) > u64::from(idt.limit) {
            return Err(self.fault(vector::GP, 0));
        }
        let mut entry = [0u8; 4];
        let la = idt.base.wrapping_add(at) & 0xffff_ffff;
        self.env.read_system(la, &mut entry)?;
        let [ip, ip_high, cs, cs_high] = entry;
        let (ip, cs) = (
            u16::from_le_bytes([ip, ip_high]),
            u16::from_le_bytes([cs, cs_high]),
        );
        let flags = self.regs.rflags;
        let back = u64::from(self.sregs.seg(Seg::Cs).selector);
        let rsp = self.push_all(&[flags, back, self.next()], 2)?;
        let cs = self.segment(Seg::Cs, cs, Transfer::Jump)?;
        self.set_segment(Seg::Cs, &cs)?;
        set_gpr(self.regs, Gpr::Rsp, rsp);
        self.regs.rflags = flags & !(IF | TF | AC);
        self.target = Some(ip.into());
        Ok(())
    }

    /// IRET in real mode.
    fn iret(&mut self) -> Result<(), Stop> {
        let width = self.insn.width;
        let ip = self.popped(0, width)?;
        let selector = self.popped(1, width)? as u16;
        let flags = self.popped(2, width)?;
        if ip > 0xffff {
            return Err(self.fault(vector::GP, 0));
        }
        let cs = self.segment(Seg::Cs, selector, Transfer::Return)?;
        let rsp = self.stack_above(u64::from(width).wrapping_mul(3));
        self.set_segment(Seg::Cs, &cs)?;
        self.env.machine().ok_or(Stop::Unsupported)?.unblock_nmis();
        set_gpr(self.regs, Gpr::Rsp, rsp);
        let may = IRET & mask(width);
        self.regs.rflags = rflags::FIXED | self.regs.rflags & !may | flags & may;
        self.target = Some(ip);
        Ok(())
    }
}
