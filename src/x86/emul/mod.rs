// SPDX-License-Identifier: GPL-2.0
//! Instruction decoder and emulator for MMIO, string port I/O and intercepted instructions (SDM 2A 2, APM 3 1).
//!
//! Three layers, none of which knows the hypervisor around it:
//!
//! * [`decode()`] turns at most fifteen instruction bytes into an [`Insn`];
//! * [`execute()`] carries out an [`Insn`] that reads or writes memory, on a [`Regs`](crate::x86::cpu::regs::Regs),
//!   through an [`Env`];
//! * [`Replaying`] is an [`Env`] over a [`Bus`] of guest-physical memory that survives exits to user space: every
//!   completed access is kept in a [`Replay`] and answered from there when the instruction is executed again.
//!
//! The set of instructions is closed: what is not listed in [`Op`] is [`DecodeError::Unsupported`], what is listed but
//! has no memory semantics (CPUID, MOV CR ...) is decoded for its length and operands and is [`Stop::Unsupported`] in
//! [`execute()`].
#![forbid(unsafe_code)]

mod addr;
mod alu;
mod cache;
mod decode;
mod env;
mod exec;
mod insn;
mod modrm;
mod moves;
mod oneb;
mod operand;
mod prefix;
mod replay;
mod string;
mod twob;

pub use addr::{effective_address, linear_address, segment_base, Access};
pub use cache::DecodeCache;
pub use decode::decode;
pub use env::{Env, Outcome, PortRequest, Stop};
pub use exec::{advance, execute};
pub use insn::{DecodeError, Insn, Mem, Op, Operand, Rep, MAX_LEN};
pub use moves::Move;
pub use operand::{mask, read_reg, write_reg};
pub use replay::{emulate, Answer, Bus, Fragment, Kind, Next, Pending, Replay, Replaying, Swap};
