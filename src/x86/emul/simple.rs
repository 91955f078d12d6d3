// SPDX-License-Identifier: GPL-2.0
//! Instructions that use no memory, or one byte of it. They are met where memory that the processor needs for fetching
//! them is read-only.
#![forbid(unsafe_code)]

use super::addr::{effective_address, Access};
use super::alu;
use super::env::{Env, Stop};
use super::exec::Context;
use super::insn::{Op, Operand};
use super::operand::{mask, merge, sign_extend};
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::rflags::{AF, CF, DF, IF, IOPL, PF, SF, ZF};
use crate::x86::cpu::regs::{Gpr, Mode};

impl<E: Env + ?Sized> Context<'_, E> {
    /// What has no better place.
    pub(super) fn simple(&mut self) -> Result<(), Stop> {
        let insn = self.insn;
        let width = insn.width;
        let rflags = self.regs.rflags;
        match insn.op {
            Op::Nop => {}
            Op::Invlpg => {
                if self.cpl != 0 {
                    return Err(self.fault(vector::GP, 0));
                }
                let machine = self.env.machine().ok_or(Stop::Unsupported)?;
                machine.forget_translations();
            }
            Op::Clflush => {
                self.load(Operand::Mem, 1)?;
            }
            Op::Xlat => {
                let rax = self.regs.get(Gpr::Rax);
                let ea = self.regs.get(Gpr::Rbx).wrapping_add(rax & 0xff) & mask(insn.addr_size);
                let la = self.linear(insn.mem.seg, ea, 1, Access::Read)?;
                let v = self.read(la, 1)?;
                self.set(Gpr::Rax, merge(rax, v, 1))?;
            }
            Op::Lea => {
                let ea = effective_address(insn, self.regs);
                self.store(insn.dst, width, ea)?;
            }
            Op::Cbw => {
                let v = self.load(insn.dst, width)?;
                self.store(insn.dst, width, sign_extend(v, width / 2))?;
            }
            Op::Cwd => {
                let v = self.load(insn.dst, width)?;
                let rdx = self.regs.get(Gpr::Rdx);
                let high = if v & alu::sign_bit(width) != 0 {
                    u64::MAX
                } else {
                    0
                };
                self.set(Gpr::Rdx, merge(rdx, high, width))?;
            }
            Op::Bswap => {
                // A word becomes zero: undefined (SDM 2A BSWAP), and what processors and KVM do.
                let v = self.load(insn.dst, width)?;
                let v = match width {
                    8 => v.swap_bytes(),
                    _ => u64::from((v as u32).swap_bytes()),
                };
                self.store(insn.dst, width, v)?;
            }
            Op::Sahf => {
                const LOADED: u64 = CF | PF | AF | ZF | SF;
                let ah = self.regs.get(Gpr::Rax) >> 8;
                self.regs.rflags = rflags & !LOADED | ah & LOADED;
            }
            Op::Lahf => self.store(Operand::High(Gpr::Rax), 1, rflags & 0xff)?,
            Op::Das | Op::Aam | Op::Aad | Op::Salc => self.decimal()?,
            Op::Cmc => self.regs.rflags = rflags ^ CF,
            Op::Clc => self.regs.rflags = rflags & !CF,
            Op::Stc => self.regs.rflags = rflags | CF,
            Op::Cld => self.regs.rflags = rflags & !DF,
            Op::Std => self.regs.rflags = rflags | DF,
            Op::Cli | Op::Sti => {
                let iopl = (rflags & IOPL) >> 12;
                let privileged = match self.mode {
                    Mode::Vm86 => iopl == 3,
                    _ => u64::from(self.cpl) <= iopl,
                };
                if !privileged {
                    return Err(self.fault(vector::GP, 0));
                }
                if insn.op == Op::Cli {
                    self.regs.rflags = rflags & !IF;
                    return Ok(());
                }
                let machine = self.env.machine().ok_or(Stop::Unsupported)?;
                if rflags & IF == 0 {
                    machine.hold_interrupts(false);
                }
                self.regs.rflags = rflags | IF;
            }
            _ => return Err(Stop::Unsupported),
        }
        Ok(())
    }

    /// Decimal adjustments (SDM 2A AAD, AAM, DAS), and SALC.
    fn decimal(&mut self) -> Result<(), Stop> {
        let rflags = self.regs.rflags;
        let rax = self.regs.get(Gpr::Rax);
        let (al, ah, base) = (rax as u8, (rax >> 8) as u8, self.insn.imm as u8);
        let (al, ah, extra) = match self.insn.op {
            Op::Salc => {
                let v = if rflags & CF != 0 { 0xff } else { 0 };
                return self.set(Gpr::Rax, merge(rax, v, 1));
            }
            Op::Aam => {
                let (Some(q), Some(r)) = (al.checked_div(base), al.checked_rem(base)) else {
                    return Err(self.exception(vector::DE));
                };
                (r, q, 0)
            }
            Op::Aad => (al.wrapping_add(ah.wrapping_mul(base)), 0, 0),
            _ => {
                let (mut v, mut f) = (al, 0);
                if al & 0xf > 9 || rflags & AF != 0 {
                    v = v.wrapping_sub(6);
                    f = AF | alu::when(rflags & CF != 0 || al < 6, CF);
                }
                if al > 0x99 || rflags & CF != 0 {
                    v = v.wrapping_sub(0x60);
                    f |= CF;
                }
                (v, ah, f)
            }
        };
        self.regs.rflags = rflags & !alu::STATUS | alu::result_flags(al.into(), 1) | extra;
        self.set(Gpr::Rax, merge(rax, u64::from(ah) << 8 | u64::from(al), 2))
    }
}
