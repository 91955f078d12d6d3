// SPDX-License-Identifier: GPL-2.0
//! Execution of the instructions with one memory operand (SDM 2A-2C, APM 3 3).
#![forbid(unsafe_code)]

use super::addr::{bit_string_address, effective_address, linear_address, Access};
use super::alu;
use super::env::{Env, Outcome, Stop};
use super::insn::{Insn, Op, Operand};
use super::operand::{gpr, mask, merge, merge_high, read_reg, set_gpr, sign_extend};
use super::shift;
use super::string;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::{rflags, Gpr, Mode, Regs, Seg, Sregs};

/// Executes `insn`, which was decoded at `regs.rip`, at privilege level `cpl`.
///
/// On `Err` and on [`Outcome::Again`] registers hold the last completed iteration (REP) or are unchanged; RIP is
/// unchanged then. Operations that have no emulation (those listed in [`Op`] as decoded only, and 16-byte CMPXCHG16B)
/// give [`Stop::Unsupported`].
pub fn execute<E: Env + ?Sized>(
    insn: &Insn,
    regs: &mut Regs,
    sregs: &Sregs,
    cpl: u8,
    env: &mut E,
) -> Result<Outcome, Stop> {
    let mode = sregs.mode(regs.rflags);
    if insn.op.is_string() {
        return string::execute(insn, regs, sregs, mode, cpl, env);
    }
    let rflags = regs.rflags;
    let mut cx = Context {
        insn,
        regs,
        sregs,
        mode,
        cpl,
        env,
        undo: [(Gpr::Rax, 0); UNDO],
        writes: 0,
        target: None,
    };
    let stored = match cx.step() {
        Ok(true) => {
            advance(cx.regs, insn.len(), mode);
            if let Some(rip) = cx.target {
                cx.regs.rip = rip;
            }
            true
        }
        Ok(false) => {
            cx.restore(rflags);
            false
        }
        Err(stop) => {
            cx.restore(rflags);
            return Err(stop);
        }
    };
    cx.env.commit();
    Ok(if stored {
        Outcome::Done
    } else {
        Outcome::Again
    })
}

/// Completes an instruction of `len` bytes: RIP moves on (32 bits outside 64-bit mode), RFLAGS.RF is cleared (SDM 3B
/// 18.3.1.1).
pub fn advance(regs: &mut Regs, len: u8, mode: Mode) {
    let rip = regs.rip.wrapping_add(u64::from(len));
    regs.rip = if mode == Mode::Long {
        rip
    } else {
        rip & 0xffff_ffff
    };
    regs.rflags &= !rflags::RF;
}

/// Most register writes of one instruction: XCHG, XADD, CMPXCHG8B and POP make two.
const UNDO: usize = 2;

/// One attempt at one instruction. Registers are written in place and put back if the attempt does not succeed; a copy
/// of all of them would cost more than the rest.
pub(super) struct Context<'a, E: ?Sized> {
    pub(super) insn: &'a Insn,
    pub(super) regs: &'a mut Regs,
    pub(super) sregs: &'a Sregs,
    pub(super) mode: Mode,
    pub(super) cpl: u8,
    pub(super) env: &'a mut E,
    /// Old values of the first `writes` registers written.
    undo: [(Gpr, u64); UNDO],
    writes: usize,
    /// Where control goes, if not to the next instruction.
    pub(super) target: Option<u64>,
}

impl<E: Env + ?Sized> Context<'_, E> {
    /// Replaces a register and remembers its old value.
    pub(super) fn set(&mut self, r: Gpr, value: u64) -> Result<(), Stop> {
        let slot = self.undo.get_mut(self.writes).ok_or(Stop::Unsupported)?;
        *slot = (r, gpr(self.regs, r));
        self.writes = self.writes.wrapping_add(1);
        set_gpr(self.regs, r, value);
        Ok(())
    }

    /// Puts registers and flags back.
    fn restore(&mut self, rflags: u64) {
        for &(r, old) in self.undo.iter().take(self.writes).rev() {
            set_gpr(self.regs, r, old);
        }
        self.regs.rflags = rflags;
    }

    /// Executes; false when a locked update has to be tried again.
    fn step(&mut self) -> Result<bool, Stop> {
        let insn = self.insn;
        let width = insn.width;
        match insn.op {
            Op::Mov | Op::Movnti => {
                let v = self.load(insn.src, width)?;
                self.store(insn.dst, width, v)?;
            }
            Op::Movzx => {
                let v = self.load(insn.src, insn.src_width)?;
                self.store(insn.dst, width, v)?;
            }
            Op::Movsx => {
                let v = self.load(insn.src, insn.src_width)?;
                self.store(insn.dst, width, sign_extend(v, insn.src_width))?;
            }
            Op::Movbe => {
                let v = self.load(insn.src, width)?;
                let unused = 64u32.wrapping_sub(u32::from(width).wrapping_mul(8)) & 63;
                self.store(insn.dst, width, v.swap_bytes() >> unused)?;
            }
            Op::Cmp | Op::Test => {
                let a = self.load(insn.dst, width)?;
                let b = self.load(insn.src, width)?;
                self.arithmetic(insn.op, a, b)?;
            }
            Op::Add | Op::Or | Op::Adc | Op::Sbb | Op::And | Op::Sub | Op::Xor => {
                if insn.src == Operand::Mem {
                    let a = self.load(insn.dst, width)?;
                    let b = self.load(insn.src, width)?;
                    let r = self.arithmetic(insn.op, a, b)?;
                    self.store(insn.dst, width, r)?;
                } else {
                    let b = self.load(insn.src, width)?;
                    return self.update(insn.lock, |cx, a| cx.arithmetic(insn.op, a, b));
                }
            }
            Op::Inc | Op::Dec | Op::Not | Op::Neg => {
                return self.update(insn.lock, |cx, a| cx.arithmetic(insn.op, a, 0));
            }
            Op::Xchg => {
                // XCHG with memory locks by itself.
                let b = self.load(insn.src, width)?;
                return self.update(true, |cx, a| {
                    cx.store(insn.src, width, a)?;
                    Ok(b)
                });
            }
            Op::Xadd => {
                let b = self.load(insn.src, width)?;
                return self.update(insn.lock, |cx, a| {
                    let sum = cx.arithmetic(insn.op, a, b)?;
                    cx.store(insn.src, width, a)?;
                    Ok(sum)
                });
            }
            Op::Cmpxchg => return self.cmpxchg(),
            Op::Cmpxchg8b if width == 8 => return self.cmpxchg8b(),
            // Not emulated, but where it is misaligned.
            Op::Cmpxchg8b => {
                let la = self.address(width, Access::Write)?;
                let aligned = la & u64::from(width.wrapping_sub(1)) == 0;
                return Err(if aligned {
                    Stop::Unsupported
                } else {
                    self.fault(vector::GP, 0)
                });
            }
            Op::Bt | Op::Bts | Op::Btr | Op::Btc => return self.bit(),
            Op::Push => self.push()?,
            Op::Pop => self.pop()?,
            Op::Rol | Op::Ror | Op::Rcl | Op::Rcr | Op::Shl | Op::Shr | Op::Sar => {
                let count = self.load(insn.src, insn.src_width)? as u8;
                return self.update(false, |cx, a| {
                    let (r, f) = shift::shift(insn.op, a, count, width, cx.regs.rflags)
                        .ok_or(Stop::Unsupported)?;
                    cx.regs.rflags = f;
                    Ok(r)
                });
            }
            Op::Shld | Op::Shrd => {
                let count = self.load(insn.third, 1)? as u8;
                let b = self.load(insn.src, width)?;
                return self.update(false, |cx, a| {
                    let left = insn.op == Op::Shld;
                    let (r, f) = shift::double(left, a, b, count, width, cx.regs.rflags);
                    cx.regs.rflags = f;
                    Ok(r)
                });
            }
            Op::Cmov => {
                let v = self.load(insn.src, width)?;
                if alu::condition(insn.cond, self.regs.rflags) {
                    self.store(insn.dst, width, v)?;
                } else if width == 4 {
                    // The upper half is cleared all the same.
                    let old = self.load(insn.dst, width)?;
                    self.store(insn.dst, width, old)?;
                }
            }
            Op::Setcc => {
                let set = alu::condition(insn.cond, self.regs.rflags);
                self.store(insn.dst, width, u64::from(set))?;
            }
            Op::Mul
            | Op::ImulAcc
            | Op::Imul
            | Op::Div
            | Op::Idiv
            | Op::Bsf
            | Op::Bsr
            | Op::Tzcnt
            | Op::Lzcnt => {
                self.multiply()?;
            }
            _ => self.other()?,
        }
        Ok(true)
    }

    /// The rarer instructions.
    #[inline(never)]
    fn other(&mut self) -> Result<(), Stop> {
        match self.insn.op {
            Op::Pusha
            | Op::Popa
            | Op::Pushf
            | Op::Popf
            | Op::Enter
            | Op::Leave
            | Op::PushSeg
            | Op::PopSeg => self.stack(),
            Op::Jcc
            | Op::Jmp
            | Op::Call
            | Op::Ret
            | Op::JmpFar
            | Op::CallFar
            | Op::RetFar
            | Op::Int
            | Op::Into
            | Op::Iret
            | Op::Loop => self.transfer(),
            Op::Store
            | Op::Load
            | Op::LoadFar
            | Op::Sldt
            | Op::Str
            | Op::Lldt
            | Op::Ltr
            | Op::Sgdt
            | Op::Sidt
            | Op::Lgdt
            | Op::Lidt
            | Op::Smsw
            | Op::Lmsw => self.system(),
            Op::Movv | Op::Movq | Op::Fnstcw | Op::Fnstsw | Op::Fxsave | Op::Fxrstor => {
                self.vector()
            }
            _ => self.simple(),
        }
    }

    /// An exception with error code `code`, which there is only outside real mode.
    pub(super) fn fault(&self, vector: u8, code: u32) -> Stop {
        Stop::Exception {
            vector,
            error_code: (self.mode != Mode::Real).then_some(code),
            cr2: None,
        }
    }

    /// An exception without error code.
    pub(super) fn exception(&self, vector: u8) -> Stop {
        Stop::Exception {
            vector,
            error_code: None,
            cr2: None,
        }
    }

    /// Result of an operation; sets the flags.
    pub(super) fn arithmetic(&mut self, op: Op, a: u64, b: u64) -> Result<u64, Stop> {
        let (r, f) = alu::arithmetic(op, a, b, self.insn.width, self.regs.rflags)
            .ok_or(Stop::Unsupported)?;
        self.regs.rflags = f;
        Ok(r)
    }

    /// Linear address of the memory operand.
    pub(super) fn address(&self, width: u8, access: Access) -> Result<u64, Stop> {
        let ea = effective_address(self.insn, self.regs);
        self.linear(self.insn.mem.seg, ea, width, access)
    }

    pub(super) fn linear(&self, seg: Seg, ea: u64, width: u8, access: Access) -> Result<u64, Stop> {
        linear_address(seg, ea, u32::from(width), access, self.mode, self.sregs)
    }

    pub(super) fn load(&mut self, operand: Operand, width: u8) -> Result<u64, Stop> {
        match operand {
            Operand::Imm => Ok(self.insn.imm & mask(width)),
            Operand::Mem => {
                let la = self.address(width, Access::Read)?;
                self.read(la, width)
            }
            _ => read_reg(self.regs, operand, width).ok_or(Stop::Unsupported),
        }
    }

    pub(super) fn store(&mut self, operand: Operand, width: u8, value: u64) -> Result<(), Stop> {
        if operand == Operand::Mem {
            let la = self.address(width, Access::Write)?;
            return write(self.env, self.mode, la, width, value);
        }
        match operand {
            Operand::Reg(r) => self.set(r, merge(gpr(self.regs, r), value, width)),
            Operand::High(r) => self.set(r, merge_high(gpr(self.regs, r), value)),
            _ => Err(Stop::Unsupported),
        }
    }

    pub(super) fn read(&mut self, la: u64, width: u8) -> Result<u64, Stop> {
        read(self.env, self.mode, la, width)
    }

    /// Read-modify-write of the destination operand by `f`.
    pub(super) fn update(
        &mut self,
        locked: bool,
        f: impl FnOnce(&mut Self, u64) -> Result<u64, Stop>,
    ) -> Result<bool, Stop> {
        let (dst, width) = (self.insn.dst, self.insn.width);
        if dst != Operand::Mem {
            let old = self.load(dst, width)?;
            let new = f(self, old)?;
            self.store(dst, width, new)?;
            return Ok(true);
        }
        let la = self.address(width, Access::Write)?;
        self.update_at(la, locked, f)
    }

    /// Read-modify-write at a linear address that was checked for writing.
    fn update_at(
        &mut self,
        la: u64,
        locked: bool,
        f: impl FnOnce(&mut Self, u64) -> Result<u64, Stop>,
    ) -> Result<bool, Stop> {
        let width = self.insn.width;
        self.env.probe_write(la, width)?;
        let old = self.read(la, width)?;
        let new = f(self, old)?;
        if locked {
            if wraps(self.mode, la, width) {
                return Err(Stop::Unsupported);
            }
            return self.env.cmpxchg(la, old, new & mask(width), width);
        }
        write(self.env, self.mode, la, width, new)?;
        Ok(true)
    }

    /// A memory destination is written in both cases, with its old value when the comparison fails (SDM 2A CMPXCHG); a
    /// register is not.
    fn cmpxchg(&mut self) -> Result<bool, Stop> {
        let insn = self.insn;
        let width = insn.width;
        let acc = Operand::Reg(Gpr::Rax);
        let new = self.load(insn.src, width)?;
        let expected = self.load(acc, width)?;
        if insn.dst != Operand::Mem {
            let old = self.load(insn.dst, width)?;
            self.arithmetic(Op::Cmp, expected, old)?;
            if expected == old {
                self.store(insn.dst, width, new)?;
            } else {
                self.store(acc, width, old)?;
            }
            return Ok(true);
        }
        self.update(insn.lock, |cx, old| {
            cx.arithmetic(Op::Cmp, expected, old)?;
            if expected == old {
                return Ok(new);
            }
            cx.store(acc, width, old)?;
            Ok(old)
        })
    }

    fn cmpxchg8b(&mut self) -> Result<bool, Stop> {
        let pair = |hi: u64, lo: u64| (hi << 32) | (lo & 0xffff_ffff);
        let r = &*self.regs;
        let expected = pair(r.get(Gpr::Rdx), r.get(Gpr::Rax));
        let new = pair(r.get(Gpr::Rcx), r.get(Gpr::Rbx));
        self.update(self.insn.lock, |cx, old| {
            if old == expected {
                cx.regs.rflags |= rflags::ZF;
                return Ok(new);
            }
            cx.regs.rflags &= !rflags::ZF;
            cx.set(Gpr::Rax, old & 0xffff_ffff)?;
            cx.set(Gpr::Rdx, old >> 32)?;
            Ok(old)
        })
    }

    /// BT, BTS, BTR, BTC. With a register offset a memory operand is a bit string.
    fn bit(&mut self) -> Result<bool, Stop> {
        let insn = self.insn;
        let width = insn.width;
        let offset = self.load(insn.src, width)?;
        let apply = |cx: &mut Self, a: u64| {
            let (r, f) =
                alu::bit(insn.op, a, offset, width, cx.regs.rflags).ok_or(Stop::Unsupported)?;
            cx.regs.rflags = f;
            Ok(r)
        };
        let memory = insn.dst == Operand::Mem;
        let ea = if insn.src == Operand::Imm {
            effective_address(insn, self.regs)
        } else {
            bit_string_address(insn, self.regs, offset)
        };
        if insn.op == Op::Bt {
            // BT does not write its operand, not even the upper half of a register.
            let a = if memory {
                let la = self.linear(insn.mem.seg, ea, width, Access::Read)?;
                self.read(la, width)?
            } else {
                self.load(insn.dst, width)?
            };
            apply(self, a)?;
            return Ok(true);
        }
        if !memory {
            return self.update(false, apply);
        }
        let la = self.linear(insn.mem.seg, ea, width, Access::Write)?;
        self.update_at(la, insn.lock, apply)
    }

    /// Width of the stack pointer: 8 in 64-bit mode, else by SS.B (SDM 1 6.2.3).
    pub(super) fn stack_width(&self) -> u8 {
        match (self.mode, self.sregs.seg(Seg::Ss).db) {
            (Mode::Long, _) => 8,
            (_, true) => 4,
            (_, false) => 2,
        }
    }

    /// PUSH r/m. The address uses RSP before the push (SDM 2B PUSH); the stack is probed first so that a fault there
    /// cannot follow a device read.
    fn push(&mut self) -> Result<(), Stop> {
        let (insn, width, sw) = (self.insn, self.insn.width, self.stack_width());
        let rsp = self.regs.get(Gpr::Rsp);
        let top = rsp.wrapping_sub(u64::from(width)) & mask(sw);
        if insn.src == Operand::Mem {
            self.address(width, Access::Read)?;
        }
        let la = self.linear(Seg::Ss, top, width, Access::Write)?;
        self.env.probe_write(la, width)?;
        let v = self.load(insn.src, width)?;
        write(self.env, self.mode, la, width, v)?;
        self.set(Gpr::Rsp, merge(rsp, top, sw))
    }

    /// POP r/m. The address uses RSP after the pop (SDM 2B POP).
    fn pop(&mut self) -> Result<(), Stop> {
        let (insn, width, sw) = (self.insn, self.insn.width, self.stack_width());
        let rsp = self.regs.get(Gpr::Rsp);
        let la = self.linear(Seg::Ss, rsp & mask(sw), width, Access::Read)?;
        let v = self.read(la, width)?;
        let next = rsp.wrapping_add(u64::from(width));
        self.set(Gpr::Rsp, merge(rsp, next, sw))?;
        self.store(insn.dst, width, v)
    }
}

/// True when the access runs past 4 GiB outside 64-bit mode, where linear addresses wrap (SDM 3A 3.3).
fn wraps(mode: Mode, la: u64, width: u8) -> bool {
    mode != Mode::Long && la.wrapping_add(u64::from(width)) > 1 << 32
}

/// Reads `width` (at most 8) bytes, zero-extended.
pub(super) fn read<E: Env + ?Sized>(
    env: &mut E,
    mode: Mode,
    la: u64,
    width: u8,
) -> Result<u64, Stop> {
    let mut buf = [0u8; 8];
    let bytes = buf.get_mut(..usize::from(width)).ok_or(Stop::Unsupported)?;
    read_bytes(env, mode, la, bytes)?;
    Ok(u64::from_le_bytes(buf))
}

/// Reads at most 32 bytes.
pub(super) fn read_bytes<E: Env + ?Sized>(
    env: &mut E,
    mode: Mode,
    la: u64,
    bytes: &mut [u8],
) -> Result<(), Stop> {
    if wraps(mode, la, bytes.len() as u8) {
        let low = (1u64 << 32).wrapping_sub(la) as usize;
        let (a, b) = bytes.split_at_mut_checked(low).ok_or(Stop::Unsupported)?;
        env.read(la, a)?;
        return env.read(0, b);
    }
    env.read(la, bytes)
}

/// Writes the low `width` (at most 8) bytes of `value`.
pub(super) fn write<E: Env + ?Sized>(
    env: &mut E,
    mode: Mode,
    la: u64,
    width: u8,
    value: u64,
) -> Result<(), Stop> {
    let buf = value.to_le_bytes();
    let bytes = buf.get(..usize::from(width)).ok_or(Stop::Unsupported)?;
    write_bytes(env, mode, la, bytes)
}

/// Writes at most 32 bytes.
pub(super) fn write_bytes<E: Env + ?Sized>(
    env: &mut E,
    mode: Mode,
    la: u64,
    bytes: &[u8],
) -> Result<(), Stop> {
    if wraps(mode, la, bytes.len() as u8) {
        let low = (1u64 << 32).wrapping_sub(la) as usize;
        let (a, b) = bytes.split_at_checked(low).ok_or(Stop::Unsupported)?;
        env.probe_write(0, b.len() as u8)?;
        env.write(la, a)?;
        return env.write(0, b);
    }
    env.write(la, bytes)
}
