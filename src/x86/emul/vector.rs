// SPDX-License-Identifier: GPL-2.0
//! Moves of vector and MMX registers, stores of the FPU's words, and FXSAVE and FXRSTOR (SDM 2A FSTCW, FSTSW, FXSAVE;
//! SDM 2B MOVAPS to MOVUPS; SDM 3A table 15-1).
#![forbid(unsafe_code)]

use super::addr::{effective_address, linear_address, Access};
use super::env::{Env, Machine, Stop};
use super::exec::{read_bytes, write_bytes, Context};
use super::insn::{Op, Operand};
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::{cr0, cr4, Mode};
use crate::x86::cpu::xsave::{self, fxsave_bytes, FXSAVE};

/// FPU status word: an unmasked exception waits.
const ES: u16 = 1 << 7;

impl<E: Env + ?Sized> Context<'_, E> {
    fn machine(&mut self) -> Result<&mut dyn Machine, Stop> {
        self.env.machine().ok_or(Stop::Unsupported)
    }

    /// All of them.
    pub(super) fn vector(&mut self) -> Result<(), Stop> {
        self.available()?;
        let insn = self.insn;
        match (insn.op, insn.dst, insn.src) {
            (Op::Movv, dst, src) => {
                let value = match src {
                    Operand::Vec(n) => self.vector_register(n)?,
                    _ => self.load_vector()?,
                };
                match dst {
                    Operand::Vec(n) => self.machine()?.set_vector(n, &value, insn.vex),
                    _ => return self.store_vector(&value),
                }
            }
            (Op::Movq, Operand::Mm(n), src) => {
                let value = match src {
                    Operand::Mm(m) => self.machine()?.mmx(m),
                    _ => self.load(src, 8)?,
                };
                self.machine()?.enter_mmx(Some((n, value)));
            }
            (Op::Movq, dst, Operand::Mm(n)) => {
                let value = self.machine()?.mmx(n);
                self.store(dst, 8, value)?;
                self.machine()?.enter_mmx(None);
            }
            (Op::Fnstcw, dst, _) => {
                let (control, _) = self.machine()?.fpu_words();
                self.store(dst, 2, control.into())?;
            }
            (Op::Fnstsw, dst, _) => {
                let (_, status) = self.machine()?.fpu_words();
                self.store(dst, 2, status.into())?;
            }
            (Op::Fxsave, ..) => {
                let (bytes, wide) = self.fxsave_form();
                let la = self.fxsave_area(bytes, Access::Write)?;
                let image = self.machine()?.fxsave(wide);
                let image = image.get(..bytes).ok_or(Stop::Unsupported)?;
                self.env.write_area(la, image)?;
            }
            (Op::Fxrstor, ..) => {
                let (bytes, wide) = self.fxsave_form();
                let la = self.fxsave_area(bytes, Access::Read)?;
                let mut image = [0; FXSAVE];
                let image = image.get_mut(..bytes).ok_or(Stop::Unsupported)?;
                self.env.read_area(la, image)?;
                if !self.machine()?.fxrstor(image, wide) {
                    return Err(self.fault(vector::GP, 0));
                }
            }
            _ => return Err(Stop::Unsupported),
        }
        Ok(())
    }

    /// Bytes that FXSAVE and FXRSTOR access, none of which are registers that there are not or that are not switched
    /// on; and whether they have REX.W.
    fn fxsave_form(&self) -> (usize, bool) {
        let registers = match self.mode {
            Mode::Long => 16,
            _ if self.sregs.cr4 & cr4::OSFXSR != 0 => 8,
            _ => 0,
        };
        (fxsave_bytes(registers), self.insn.width == 8)
    }

    /// Linear address of the area of FXSAVE and FXRSTOR.
    fn fxsave_area(&self, bytes: usize, access: Access) -> Result<u64, Stop> {
        let insn = self.insn;
        let ea = effective_address(insn, self.regs);
        let len = bytes as u32;
        let la = linear_address(insn.mem.seg, ea, len, access, self.mode, self.sregs)?;
        if la & 15 != 0 {
            return Err(self.fault(vector::GP, 0));
        }
        Ok(la)
    }

    /// Whether control registers permit the instruction: #UD or #NM; #MF by one before.
    fn available(&mut self) -> Result<(), Stop> {
        let (cr0, cr4) = (self.sregs.cr0, self.sregs.cr4);
        let (ud, nm) = (self.exception(vector::UD), self.exception(vector::NM));
        let off = cr0 & cr0::TS != 0;
        match self.insn.op {
            Op::Movv | Op::Movq if cr0 & cr0::EM != 0 => return Err(ud),
            Op::Movv if self.insn.vex => {
                let on = cr4 & cr4::OSXSAVE != 0 && self.machine()?.xcr0() & xsave::AVX != 0;
                if !on {
                    return Err(ud);
                }
            }
            Op::Movv if cr4 & cr4::OSFXSR == 0 => return Err(ud),
            Op::Fnstcw | Op::Fnstsw | Op::Fxsave | Op::Fxrstor
                if cr0 & (cr0::TS | cr0::EM) != 0 =>
            {
                return Err(nm)
            }
            _ => {}
        }
        if off {
            return Err(nm);
        }
        if self.insn.op == Op::Movq && self.machine()?.fpu_words().1 & ES != 0 {
            return Err(self.exception(vector::MF));
        }
        Ok(())
    }

    /// Linear address of the operand in memory, which may have to be aligned.
    fn vector_address(&mut self, access: Access) -> Result<u64, Stop> {
        let width = self.insn.width;
        let la = self.address(width, access)?;
        if self.insn.aligned && la & u64::from(width).wrapping_sub(1) != 0 {
            return Err(self.fault(vector::GP, 0));
        }
        Ok(la)
    }

    /// A source register, of which a move of 16 bytes with VEX takes zeros above these.
    fn vector_register(&mut self, n: u8) -> Result<[u8; 32], Stop> {
        let mut value = self.machine()?.vector(n);
        let above = value.get_mut(usize::from(self.insn.width)..);
        above.ok_or(Stop::Unsupported)?.fill(0);
        Ok(value)
    }

    fn load_vector(&mut self) -> Result<[u8; 32], Stop> {
        let la = self.vector_address(Access::Read)?;
        let mut value = [0u8; 32];
        let len = usize::from(self.insn.width);
        let part = value.get_mut(..len).ok_or(Stop::Unsupported)?;
        read_bytes(self.env, self.mode, la, part)?;
        Ok(value)
    }

    fn store_vector(&mut self, value: &[u8; 32]) -> Result<(), Stop> {
        let la = self.vector_address(Access::Write)?;
        let len = usize::from(self.insn.width);
        let part = value.get(..len).ok_or(Stop::Unsupported)?;
        write_bytes(self.env, self.mode, la, part)
    }
}
