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
//! The set of instructions is closed, and is that of the opcode maps in `table.rs`: what is not there is
//! [`DecodeError::Unsupported`]. What exits by itself (CPUID, MOV CR ...) is decoded for its length and operands and is
//! [`Stop::Unsupported`] in [`execute()`](exec::execute).
#![forbid(unsafe_code)]

pub mod addr;
mod alu;
mod cache;
mod control;
pub mod decode;
pub mod env;
pub mod exec;
pub mod insn;
mod modrm;
mod moves;
mod muldiv;
pub mod operand;
mod prefix;
pub mod replay;
mod segment;
mod shift;
mod simple;
mod stack;
mod string;
mod table;
mod vector;

pub use addr::{effective_address, linear_in_segment, Access};
pub use cache::DecodeCache;
pub use env::{Machine, Outcome, PortRequest, Stop};
pub use insn::{DecodeError, Insn, Op, Operand};
pub use moves::Move;
pub use operand::mask;
pub use replay::{emulate, Answer, Bus, Kind, Pending, Replay, Swap};
