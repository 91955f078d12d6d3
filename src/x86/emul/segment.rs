// SPDX-License-Identifier: GPL-2.0
//! Segment registers and descriptor tables (SDM 3A 3.4, 3.5, 6.5 to 6.8; SDM 2A LDS, LGDT, LLDT; SDM 2B MOV, SGDT,
//! STR).
#![forbid(unsafe_code)]

use super::addr::Access;
use super::env::{Env, Stop};
use super::exec::{read_bytes, write_bytes, Context};
use super::insn::{Op, Operand};
use crate::x86::cpu::canonical::is_canonical;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::{cr4, efer, DescTable, Mode, Seg, Segment};

/// What loads a segment register.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Transfer {
    /// An instruction that loads it alone.
    Move,
    /// CALL, JMP or, in real mode, INT.
    Jump,
    /// RET or, in real mode, IRET.
    Return,
}

/// Types of system descriptors.
const LDT: u8 = 2;
const TSS16: u8 = 1;
const TSS32: u8 = 9;
/// The bit of a TSS's type that says it is busy, and of a segment's that it was accessed.
const BUSY: u8 = 2;
const ACCESSED: u8 = 1;
/// Byte of a descriptor that holds type and P.
const TYPE_BYTE: u64 = 5;

impl<E: Env + ?Sized> Context<'_, E> {
    /// Moves between segment registers or descriptor tables and memory or general registers.
    pub(super) fn system(&mut self) -> Result<(), Stop> {
        let insn = self.insn;
        let width = insn.width;
        let privileged = matches!(insn.op, Op::Lldt | Op::Ltr | Op::Lgdt | Op::Lidt | Op::Lmsw);
        let protected = matches!(insn.op, Op::Sldt | Op::Str | Op::Lldt | Op::Ltr);
        let told = matches!(insn.op, Op::Sldt | Op::Str | Op::Sgdt | Op::Sidt | Op::Smsw);
        if protected && matches!(self.mode, Mode::Real | Mode::Vm86) {
            return Err(self.exception(vector::UD));
        }
        // User-mode instruction prevention.
        let umip = told && self.sregs.cr4 & cr4::UMIP != 0;
        if (privileged || umip) && self.cpl != 0 {
            return Err(self.fault(vector::GP, 0));
        }
        match (insn.op, insn.dst, insn.src) {
            (Op::Store, dst, Operand::Seg(seg)) => self.store_selector(dst, seg),
            (Op::Sldt, dst, _) => self.store_selector(dst, Seg::Ldtr),
            (Op::Str, dst, _) => self.store_selector(dst, Seg::Tr),
            (Op::Smsw, dst, _) => self.store(dst, width, self.sregs.cr0),
            (Op::Lmsw, _, src) => {
                let word = self.load(src, 2)? as u16;
                let machine = self.env.machine().ok_or(Stop::Unsupported)?;
                machine.set_machine_status(word);
                Ok(())
            }
            (Op::Load, Operand::Seg(seg), src) => {
                let selector = self.load(src, 2)? as u16;
                self.move_to_segment(seg, selector, Transfer::Move)
            }
            (Op::Lldt, _, src) => {
                let selector = self.load(src, 2)? as u16;
                self.move_to_segment(Seg::Ldtr, selector, Transfer::Move)
            }
            (Op::Ltr, _, src) => {
                let selector = self.load(src, 2)? as u16;
                self.move_to_segment(Seg::Tr, selector, Transfer::Move)
            }
            (Op::LoadFar, dst, _) => {
                let Operand::Seg(seg) = insn.third else {
                    return Err(Stop::Unsupported);
                };
                let (selector, offset) = self.pointer()?;
                self.move_to_segment(seg, selector, Transfer::Move)?;
                self.store(dst, width, offset)
            }
            (Op::Sgdt, _, _) => self.store_table(self.sregs.gdt),
            (Op::Sidt, _, _) => self.store_table(self.sregs.idt),
            (Op::Lgdt | Op::Lidt, _, _) => self.load_table(insn.op == Op::Lidt),
            _ => Err(Stop::Unsupported),
        }
    }

    fn store_selector(&mut self, dst: Operand, seg: Seg) -> Result<(), Stop> {
        let selector = self.sregs.seg(seg).selector;
        self.store(dst, self.insn.width, selector.into())
    }

    /// Bytes of a base address in a descriptor-table operand.
    fn base_bytes(&self) -> usize {
        if self.mode == Mode::Long {
            8
        } else {
            4
        }
    }

    /// SGDT and SIDT. With a 16-bit operand size bits 31:24 of the base are stored as 0.
    fn store_table(&mut self, t: DescTable) -> Result<(), Stop> {
        let len = self.base_bytes().wrapping_add(2);
        let la = self.address(len as u8, Access::Write)?;
        let base = match (self.mode, self.insn.width) {
            (Mode::Long, _) => t.base,
            (_, 2) => t.base & 0xff_ffff,
            _ => t.base & 0xffff_ffff,
        };
        let bytes = (u128::from(base) << 16 | u128::from(t.limit)).to_le_bytes();
        let part = bytes.get(..len).ok_or(Stop::Unsupported)?;
        write_bytes(self.env, self.mode, la, part)
    }

    /// LGDT and LIDT.
    fn load_table(&mut self, idt: bool) -> Result<(), Stop> {
        let len = self.base_bytes().wrapping_add(2);
        let la = self.address(len as u8, Access::Read)?;
        let mut bytes = [0u8; 16];
        let part = bytes.get_mut(..len).ok_or(Stop::Unsupported)?;
        read_bytes(self.env, self.mode, la, part)?;
        let value = u128::from_le_bytes(bytes);
        let base = (value >> 16) as u64;
        let base = match (self.mode, self.insn.width) {
            (Mode::Long, _) if !is_canonical(base, self.sregs.linear_width()) => {
                return Err(self.fault(vector::GP, 0))
            }
            (Mode::Long, _) => base,
            (_, 2) => base & 0xff_ffff,
            _ => base & 0xffff_ffff,
        };
        let table = DescTable {
            base,
            limit: value as u16,
        };
        let machine = self.env.machine().ok_or(Stop::Unsupported)?;
        machine.set_table(idt, &table);
        Ok(())
    }

    /// Puts a segment, which [`Context::segment`] has checked, into a segment register.
    pub(super) fn set_segment(&mut self, seg: Seg, value: &Segment) -> Result<(), Stop> {
        let machine = self.env.machine().ok_or(Stop::Unsupported)?;
        machine.set_segment(seg, value);
        Ok(())
    }

    /// Loads a segment register, LDTR or TR, as the last access of an instruction.
    pub(super) fn move_to_segment(
        &mut self,
        seg: Seg,
        selector: u16,
        how: Transfer,
    ) -> Result<(), Stop> {
        if self.env.machine().is_none() {
            return Err(Stop::Unsupported);
        }
        if seg == Seg::Ss && selector == 3 && self.mode == Mode::Long {
            return Err(self.fault(vector::GP, 0));
        }
        let value = self.segment(seg, selector, how)?;
        self.set_segment(seg, &value)?;
        if seg == Seg::Ss && self.insn.op != Op::LoadFar {
            if let Some(machine) = self.env.machine() {
                machine.hold_interrupts(true);
            }
        }
        Ok(())
    }

    /// The segment that `selector` stands for, checked for `seg`; its descriptor is marked accessed or busy.
    pub(super) fn segment(
        &mut self,
        seg: Seg,
        selector: u16,
        how: Transfer,
    ) -> Result<Segment, Stop> {
        match self.mode {
            // What else the segment register holds stays.
            Mode::Real => {
                return Ok(Segment {
                    base: u64::from(selector) << 4,
                    selector,
                    ..*self.sregs.seg(seg)
                })
            }
            Mode::Vm86 if !matches!(seg, Seg::Ldtr | Seg::Tr) => {
                return Ok(Segment::virtual_8086(selector))
            }
            _ => {}
        }
        if selector & 0xfffc == 0 {
            return self.null(seg, selector);
        }
        let code = u32::from(selector & 0xfffc);
        if seg == Seg::Tr && selector & 4 != 0 {
            return Err(self.fault(vector::GP, 0));
        }
        let la = self.descriptor(selector)?;
        let mut bytes = [0u8; 8];
        self.env.read_system(la, &mut bytes)?;
        let raw = u64::from_le_bytes(bytes);
        let mut s = Segment::of_descriptor(selector, raw);
        let system = matches!(seg, Seg::Ldtr | Seg::Tr);
        if !system && !s.s && how == Transfer::Jump {
            // A gate or a task.
            return Err(Stop::Unsupported);
        }
        if s.s == system || !self.suits(seg, &s, how)? {
            return Err(self.fault(vector::GP, code));
        }
        if !s.present {
            let vector = if seg == Seg::Ss {
                vector::SS
            } else {
                vector::NP
            };
            return Err(self.fault(vector, code));
        }
        if seg == Seg::Cs {
            s.selector = selector & 0xfffc | u16::from(self.cpl);
        }
        if system && self.mode == Mode::Long {
            let mut high = [0u8; 8];
            self.env.read_system(la.wrapping_add(8), &mut high)?;
            s.base |= u64::from_le_bytes(high) << 32;
            if !is_canonical(s.base, self.sregs.linear_width()) {
                return Err(self.fault(vector::GP, code));
            }
        }
        let mark = match seg {
            Seg::Tr => BUSY,
            Seg::Ldtr => 0,
            _ => ACCESSED & !s.typ,
        };
        if mark != 0 {
            s.typ |= mark;
            let byte = (raw >> (8 * TYPE_BYTE)) as u8 | mark;
            self.env.write_system(la.wrapping_add(TYPE_BYTE), &[byte])?;
        }
        Ok(s)
    }

    /// A null selector (SDM 3A 3.4.2).
    fn null(&self, seg: Seg, selector: u16) -> Result<Segment, Stop> {
        let none = Segment {
            selector,
            unusable: true,
            ..Segment::default()
        };
        match seg {
            Seg::Cs | Seg::Tr => Err(self.fault(vector::GP, 0)),
            Seg::Ss if self.mode != Mode::Long || selector & 3 != u16::from(self.cpl) => {
                Err(self.fault(vector::GP, 0))
            }
            // SS.DPL is the privilege level.
            Seg::Ss => Ok(Segment {
                dpl: self.cpl,
                ..none
            }),
            _ => Ok(none),
        }
    }

    /// Linear address of a selector's descriptor.
    fn descriptor(&self, selector: u16) -> Result<u64, Stop> {
        let offset = u64::from(selector & 0xfff8);
        let (base, limit) = if selector & 4 == 0 {
            let t = self.sregs.gdt;
            (t.base, u32::from(t.limit))
        } else {
            let ldt = self.sregs.seg(Seg::Ldtr);
            (ldt.base, if ldt.unusable { 0 } else { ldt.limit })
        };
        if offset.wrapping_add(7) > u64::from(limit) {
            return Err(self.fault(vector::GP, u32::from(selector & 0xfffc)));
        }
        let la = base.wrapping_add(offset);
        Ok(if self.sregs.efer & efer::LMA == 0 {
            la & 0xffff_ffff
        } else {
            la
        })
    }

    /// Whether type and privilege of a descriptor suit the register (SDM 3A 6.5 to 6.8).
    fn suits(&self, seg: Seg, s: &Segment, how: Transfer) -> Result<bool, Stop> {
        let (rpl, cpl) = ((s.selector & 3) as u8, self.cpl);
        let code = s.typ & 8 != 0;
        let conforming = s.typ & 4 != 0;
        Ok(match seg {
            Seg::Ss => rpl == cpl && s.dpl == cpl && s.typ & 10 == 2,
            Seg::Cs if !code => false,
            Seg::Cs if s.db && s.l && self.sregs.efer & efer::LMA != 0 => false,
            Seg::Cs => match how {
                Transfer::Move => false,
                Transfer::Return if rpl < cpl => false,
                // To an outer level.
                Transfer::Return if rpl > cpl => return Err(Stop::Unsupported),
                Transfer::Return if conforming => s.dpl <= rpl,
                Transfer::Return => s.dpl == rpl,
                Transfer::Jump if conforming => s.dpl <= cpl,
                Transfer::Jump => rpl <= cpl && s.dpl == cpl,
            },
            // In IA-32e mode there is no TSS of 16 bits.
            Seg::Tr => s.typ == TSS32 || s.typ == TSS16 && self.sregs.efer & efer::LMA == 0,
            Seg::Ldtr => s.typ == LDT,
            _ => (!code || s.typ & 2 != 0) && (code && conforming || rpl.max(cpl) <= s.dpl),
        })
    }
}
