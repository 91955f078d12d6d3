// SPDX-License-Identifier: GPL-2.0
//! CPUID policy: what is offered to a guest, look-up in a vCPU's table, and the features derived from it (SDM 2A CPUID,
//! APM 3 appendix E, api.rst 4.46 and 4.50, kernel document virt/kvm/x86/cpuid.rst).
#![forbid(unsafe_code)]

mod bits;
mod features;
mod policy;
mod table;

pub use crate::x86::cpu::host::HostCpuid;
pub use bits::*;
pub use features::*;
pub use policy::*;
pub use table::*;
