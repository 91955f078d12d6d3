// SPDX-License-Identifier: GPL-2.0

//! Wrappers that only x86 has: registers, descriptor tables, extended state, and what the kernel knows of the CPU.

pub mod boot_cpu;
pub mod cache;
pub mod clock;
pub mod cost;
pub mod cpuid;
pub mod cr;
pub mod desc;
pub mod direct_map;
pub mod fpu;
pub mod interrupts;
pub mod mce;
pub mod msr;
pub mod nospec;
pub mod user_atomic;
pub mod vectors;
