// SPDX-License-Identifier: GPL-2.0
//! The processor below, as the pure parts ask for it.
#![forbid(unsafe_code)]

/// The host's CPUID instruction.
pub trait HostCpuid {
    /// EAX, EBX, ECX, EDX of the host for `leaf` and `subleaf`.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];
}
