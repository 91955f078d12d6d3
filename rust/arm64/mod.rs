// SPDX-License-Identifier: GPL-2.0

//! Wrappers that only Arm64 has: the exception level that the kernel runs at, and what it knows of the CPUs.

pub mod clock;
pub mod direct_map;
pub mod el2;
pub mod interrupts;
pub mod neon;
pub mod nospec;
pub mod percpu_irq;
pub mod random;
