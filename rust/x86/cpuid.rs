// SPDX-License-Identifier: GPL-2.0

//! The CPUID instruction of the running CPU (SDM 2A "CPUID", APM 3 E).

use core::arch::x86_64::__cpuid_count;

/// What CPUID returns in its four registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Executes CPUID with EAX = `leaf` and ECX = `subleaf`.
///
/// Leaves beyond the CPU's maximum return what the vendor's manual says, not an error.
pub fn cpuid(leaf: u32, subleaf: u32) -> Leaf {
    // SAFETY: Every 64-bit CPU has CPUID and it has no side effect beyond serialising.
    let r = unsafe { __cpuid_count(leaf, subleaf) };
    Leaf {
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
    }
}

/// The highest basic leaf.
pub fn max_basic() -> u32 {
    cpuid(0, 0).eax
}

/// The highest extended leaf (`0x8000_xxxx`), or 0 when there are none.
pub fn max_extended() -> u32 {
    match cpuid(0x8000_0000, 0).eax {
        max if max >> 16 == 0x8000 => max,
        _ => 0,
    }
}

/// Width of physical addresses, in bits; 0 where CPUID does not say.
pub fn phys_bits() -> u8 {
    cpuid_checked(0x8000_0008, 0).eax as u8
}

/// Executes CPUID, or returns zeroes when `leaf` lies beyond its range's maximum.
pub fn cpuid_checked(leaf: u32, subleaf: u32) -> Leaf {
    let max = if leaf >> 16 == 0x8000 {
        max_extended()
    } else {
        max_basic()
    };
    if leaf > max {
        return Leaf::default();
    }
    cpuid(leaf, subleaf)
}
