// SPDX-License-Identifier: GPL-2.0
//! Instruction decoder and emulator for MMIO, string port I/O and intercepted instructions (SDM 2A 2, APM 3 1).
//!
//! Three layers, none of which knows the hypervisor around it:
//!
//! * [`decode()`](decode::decode) turns at most fifteen instruction bytes into an [`Insn`];
//! * [`execute()`](exec::execute) carries out an [`Insn`] that reads or writes memory, on a
//!   [`Regs`](crate::x86::cpu::regs::Regs), through an [`Env`](env::Env);
//! * [`Replaying`](replay::Replaying) is an [`Env`](env::Env) over a [`Bus`] of guest-physical memory that survives
//!   exits to user space: every completed access is kept in a [`Replay`] and answered from there when the instruction
//!   is executed again.
//!
//! The set of instructions is closed: what is not listed in [`Op`] is [`DecodeError::Unsupported`], what is listed but
//! has no memory semantics (CPUID, MOV CR ...) is decoded for its length and operands and is [`Stop::Unsupported`] in
//! [`execute()`](exec::execute).
#![forbid(unsafe_code)]

pub mod addr;
mod alu;
mod cache;
pub mod decode;
pub mod env;
pub mod exec;
pub mod insn;
mod modrm;
mod moves;
mod oneb;
pub mod operand;
mod prefix;
pub mod replay;
mod string;
mod twob;

pub use addr::{effective_address, linear_in_segment, Access};
pub use cache::DecodeCache;
pub use env::{Outcome, PortRequest, Stop};
pub use insn::{DecodeError, Insn, Op, Operand};
pub use moves::Move;
pub use operand::mask;
pub use replay::{emulate, Answer, Bus, Kind, Pending, Replay, Swap};
