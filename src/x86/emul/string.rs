// SPDX-License-Identifier: GPL-2.0
//! String instructions, repeated or not (SDM 1 7.3.9, SDM 2B REP, APM 3 1.2.6).
#![forbid(unsafe_code)]

use super::addr::{linear_address, Access};
use super::alu;
use super::env::{Env, Outcome, PortRequest, Stop};
use super::exec::{advance, read, write};
use super::insn::{Insn, Op, Operand, Rep};
use super::operand::{mask, merge, read_reg, write_reg};
use crate::x86::cpu::regs::{rflags, Gpr, Mode, Regs, Seg, Sregs};

/// Iterations of a repeated instruction per call, so that a call stays short and interrupts get their turn.
const BUDGET: u32 = 64;

/// Executes up to [`BUDGET`] iterations, each committed to `regs` when it is complete, or one batch of port items.
#[inline(never)]
pub(super) fn execute<E: Env + ?Sized>(
    insn: &Insn,
    regs: &mut Regs,
    sregs: &Sregs,
    mode: Mode,
    cpl: u8,
    env: &mut E,
) -> Result<Outcome, Stop> {
    let s = Strings {
        insn,
        sregs,
        mode,
        step: step(insn, regs),
        amask: mask(insn.addr_size),
    };
    if s.repeated() && s.count(regs) == 0 {
        if insn.addr_size == 4 && mode == Mode::Long && env.extends_idle_strings() {
            s.extend(regs);
        }
        advance(regs, insn.len(), mode);
        env.commit();
        return Ok(Outcome::Done);
    }
    if matches!(insn.op, Op::Ins | Op::Outs) {
        return s.port(regs, cpl, env);
    }
    let budget = if regs.rflags & rflags::TF != 0 {
        1
    } else {
        BUDGET
    };
    for _ in 0..budget {
        s.iterate(regs, env)?;
        let again = s.repeated() && s.consume(regs, 1) && s.condition(regs);
        env.commit();
        // Also after the last iteration, as in KVM: with a count of 0 the guest ends the instruction by itself.
        if s.repeated() && env.has_posted() {
            break;
        }
        if !again {
            advance(regs, insn.len(), mode);
            return Ok(Outcome::Done);
        }
    }
    Ok(Outcome::Again)
}

/// Index increment: the width, negative when RFLAGS.DF is set.
fn step(insn: &Insn, regs: &Regs) -> u64 {
    let width = u64::from(insn.width);
    if regs.rflags & rflags::DF != 0 {
        width.wrapping_neg()
    } else {
        width
    }
}

/// What stays the same over the iterations.
struct Strings<'a> {
    insn: &'a Insn,
    sregs: &'a Sregs,
    mode: Mode,
    step: u64,
    amask: u64,
}

impl Strings<'_> {
    fn repeated(&self) -> bool {
        self.insn.rep != Rep::None
    }

    /// Extends what has 32 bits and is idle; see [`Env::extends_idle_strings`].
    fn extend(&self, regs: &mut Regs) {
        let idle: &[Gpr] = match self.insn.op {
            Op::Movs => &[Gpr::Rcx, Gpr::Rsi, Gpr::Rdi],
            Op::Stos => &[Gpr::Rcx, Gpr::Rdi],
            _ => &[Gpr::Rcx],
        };
        for r in idle {
            regs.set(*r, regs.get(*r) & self.amask);
        }
    }

    /// Remaining iterations: rCX in the address size.
    fn count(&self, regs: &Regs) -> u64 {
        regs.get(Gpr::Rcx) & self.amask
    }

    /// Counts `n` iterations as done; true if some remain.
    fn consume(&self, regs: &mut Regs, n: u64) -> bool {
        let left = self.count(regs).saturating_sub(n);
        let rcx = merge(regs.get(Gpr::Rcx), left, self.insn.addr_size);
        regs.set(Gpr::Rcx, rcx);
        left != 0
    }

    /// REPE goes on while ZF is set, REPNE while it is clear; other instructions go on anyway.
    fn condition(&self, regs: &Regs) -> bool {
        let zf = regs.rflags & rflags::ZF != 0;
        match (self.insn.op, self.insn.rep) {
            (Op::Cmps | Op::Scas, Rep::Repne) => !zf,
            (Op::Cmps | Op::Scas, _) => zf,
            _ => true,
        }
    }

    fn linear(&self, seg: Seg, ea: u64, len: u32, access: Access) -> Result<u64, Stop> {
        linear_address(seg, ea, len, access, self.mode, self.sregs)
    }

    /// Linear address of the item at `index` (rSI or rDI).
    fn address(&self, regs: &Regs, index: Gpr, access: Access) -> Result<u64, Stop> {
        let ea = regs.get(index) & self.amask;
        self.linear(self.segment(index), ea, u32::from(self.insn.width), access)
    }

    /// The destination segment cannot be overridden.
    fn segment(&self, index: Gpr) -> Seg {
        if index == Gpr::Rdi {
            Seg::Es
        } else {
            self.insn.mem.seg
        }
    }

    /// Moves an index register by `n` items.
    fn bump(&self, regs: &mut Regs, index: Gpr, n: u64) {
        let old = regs.get(index);
        let new = old.wrapping_add(self.step.wrapping_mul(n));
        regs.set(index, merge(old, new, self.insn.addr_size));
    }

    /// One iteration without the count. Registers change after the last access, so that a failing access leaves them
    /// alone.
    fn iterate<E: Env + ?Sized>(&self, regs: &mut Regs, env: &mut E) -> Result<(), Stop> {
        let (mode, width) = (self.mode, self.insn.width);
        let acc = Operand::Reg(Gpr::Rax);
        match self.insn.op {
            Op::Movs => {
                let from = self.address(regs, Gpr::Rsi, Access::Read)?;
                let to = self.address(regs, Gpr::Rdi, Access::Write)?;
                env.probe_write(to, width)?;
                let v = read(env, mode, from, width)?;
                write(env, mode, to, width, v)?;
                self.bump(regs, Gpr::Rsi, 1);
                self.bump(regs, Gpr::Rdi, 1);
            }
            Op::Stos => {
                let to = self.address(regs, Gpr::Rdi, Access::Write)?;
                let v = read_reg(regs, acc, width).ok_or(Stop::Unsupported)?;
                write(env, mode, to, width, v)?;
                self.bump(regs, Gpr::Rdi, 1);
            }
            Op::Lods => {
                let from = self.address(regs, Gpr::Rsi, Access::Read)?;
                let v = read(env, mode, from, width)?;
                write_reg(regs, acc, width, v);
                self.bump(regs, Gpr::Rsi, 1);
            }
            Op::Cmps => {
                let from = self.address(regs, Gpr::Rsi, Access::Read)?;
                let to = self.address(regs, Gpr::Rdi, Access::Read)?;
                let a = read(env, mode, from, width)?;
                let b = read(env, mode, to, width)?;
                self.compare(regs, a, b)?;
                self.bump(regs, Gpr::Rsi, 1);
                self.bump(regs, Gpr::Rdi, 1);
            }
            Op::Scas => {
                let to = self.address(regs, Gpr::Rdi, Access::Read)?;
                let b = read(env, mode, to, width)?;
                let a = read_reg(regs, acc, width).ok_or(Stop::Unsupported)?;
                self.compare(regs, a, b)?;
                self.bump(regs, Gpr::Rdi, 1);
            }
            _ => return Err(Stop::Unsupported),
        }
        Ok(())
    }

    fn compare(&self, regs: &mut Regs, a: u64, b: u64) -> Result<(), Stop> {
        let (_, f) = alu::arithmetic(Op::Cmp, a, b, self.insn.width, regs.rflags)
            .ok_or(Stop::Unsupported)?;
        regs.rflags = f;
        Ok(())
    }

    /// INS and OUTS: one port request of as many items as one page, the address size and the segment permit.
    fn port<E: Env + ?Sized>(
        &self,
        regs: &mut Regs,
        cpl: u8,
        env: &mut E,
    ) -> Result<Outcome, Stop> {
        let input = self.insn.op == Op::Ins;
        let width = self.insn.width;
        let port = regs.get(Gpr::Rdx) as u16;
        let iopl = (regs.rflags & rflags::IOPL) >> 12;
        if self.mode == Mode::Vm86 || u64::from(cpl) > iopl {
            env.check_port(port, width)?;
        }
        let (index, access) = if input {
            (Gpr::Rdi, Access::Write)
        } else {
            (Gpr::Rsi, Access::Read)
        };
        let la = self.address(regs, index, access)?;
        if self.mode != Mode::Long && la.wrapping_add(u64::from(width)) > 1 << 32 {
            return Err(Stop::Unsupported);
        }
        let down = regs.rflags & rflags::DF != 0;
        let count = self.batch(regs, la, index, access);
        let req = PortRequest {
            la,
            count,
            port,
            width,
            down,
        };
        let done = if input {
            env.port_in(&req)?
        } else {
            env.port_out(&req)?
        };
        let done = u64::from(done.min(count).max(1));
        self.bump(regs, index, done);
        let again = self.repeated() && self.consume(regs, done);
        env.commit();
        if again || self.repeated() && env.has_posted() {
            return Ok(Outcome::Again);
        }
        advance(regs, self.insn.len(), self.mode);
        Ok(Outcome::Done)
    }

    /// Number of items, at least 1, that ascend or descend from `la` and may go into one request. Descending ones are
    /// input alone, as in KVM.
    fn batch(&self, regs: &Regs, la: u64, index: Gpr, access: Access) -> u32 {
        let down = regs.rflags & rflags::DF != 0;
        let single = regs.rflags & rflags::TF != 0 || down && access == Access::Read;
        let width = u64::from(self.insn.width.max(1));
        let (place, ea) = (la & 4095, regs.get(index) & self.amask);
        if !self.repeated() || single || down && place.wrapping_add(width) > 4096 {
            return 1;
        }
        let bytes = if down {
            place.min(ea).wrapping_add(width)
        } else {
            (4096 - place).min(self.amask.wrapping_sub(ea))
        };
        let n = (bytes / width).min(self.count(regs)).max(1) as u32;
        let len = n.wrapping_mul(width as u32);
        let below = if down {
            u64::from(len).wrapping_sub(width)
        } else {
            0
        };
        match self.linear(self.segment(index), ea.wrapping_sub(below), len, access) {
            Ok(_) => n,
            Err(_) => 1,
        }
    }
}
