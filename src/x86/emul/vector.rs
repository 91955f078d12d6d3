// SPDX-License-Identifier: GPL-2.0
//! Moves of vector and MMX registers, and stores of the FPU's words (SDM 2A FSTCW, FSTSW; SDM 2B MOVAPS to MOVUPS;
//! SDM 3A table 15-1).
#![forbid(unsafe_code)]

use super::addr::Access;
use super::env::{Env, Machine, Stop};
use super::exec::{read_bytes, write_bytes, Context};
use super::insn::{Op, Operand};
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::{cr0, cr4};
use crate::x86::cpu::xsave;

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
            _ => return Err(Stop::Unsupported),
        }
        Ok(())
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
            Op::Fnstcw | Op::Fnstsw if cr0 & (cr0::TS | cr0::EM) != 0 => return Err(nm),
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
