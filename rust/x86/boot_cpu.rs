// SPDX-License-Identifier: GPL-2.0

//! What the kernel found out about the CPUs.
//!
//! C header: [`arch/x86/include/asm/processor.h`](srctree/arch/x86/include/asm/processor.h)

use crate::linux::bindings;

pub use super::cr::rdtsc;

/// Whether the kernel considers feature `bit` (`X86_FEATURE_*`) present and in use.
///
/// Features that the command line or a missing dependency turned off are absent here, whatever CPUID says.
pub fn has(bit: u32) -> bool {
    // SAFETY: The shim checks the number.
    unsafe { bindings::rvmm_boot_cpu_has(bit) }
}

/// What CPUID returns for `leaf` and `subleaf` in EAX, EBX, ECX, EDX, without the features that the kernel found
/// unusable on this machine: by an erratum, a firmware setting, the command line or a missing dependency.
///
/// Applies to the leaves that the kernel has a word for in `x86_capability`; others are the processor's.
pub fn cpuid_in_use(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = super::cpuid::cpuid(leaf, subleaf);
    let mut r = [r.eax, r.ebx, r.ecx, r.edx];
    // SAFETY: Clears bits of four words.
    unsafe { bindings::rvmm_cpuid_mask(leaf, subleaf, r.as_mut_ptr()) };
    r
}

/// Hardware bugs that software works around (`X86_BUG_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)] // Named as in asm/cpufeatures.h, which describes them.
pub enum Bug {
    Meltdown = bindings::RVMM_BUG_CPU_MELTDOWN,
    SpectreV2 = bindings::RVMM_BUG_SPECTRE_V2,
    SpecStoreBypass = bindings::RVMM_BUG_SPEC_STORE_BYPASS,
    L1tf = bindings::RVMM_BUG_L1TF,
    Mds = bindings::RVMM_BUG_MDS,
    Taa = bindings::RVMM_BUG_TAA,
    ItlbMultihit = bindings::RVMM_BUG_ITLB_MULTIHIT,
    Gds = bindings::RVMM_BUG_GDS,
    Rfds = bindings::RVMM_BUG_RFDS,
    Its = bindings::RVMM_BUG_ITS,
    SmtRsb = bindings::RVMM_BUG_SMT_RSB,
    NullSeg = bindings::RVMM_BUG_NULL_SEG,
}

/// Whether the kernel found `bug` in this CPU.
pub fn bug(bug: Bug) -> bool {
    has(bug as u32)
}

/// Whether two threads can share a core, now or later.
pub fn smt_possible() -> bool {
    // SAFETY: Reads the kernel's setting.
    unsafe { bindings::rvmm_smt_possible() }
}

/// Whether the command line turned all mitigations of speculative execution off (`mitigations=off`).
pub fn mitigations_off() -> bool {
    // SAFETY: Reads a constant.
    unsafe { bindings::rvmm_mitigations_off() }
}

/// Physical-address width in bits, as the kernel uses it (memory encryption subtracted).
pub fn phys_bits() -> u32 {
    // SAFETY: Reads data that is constant after boot.
    unsafe { bindings::rvmm_phys_bits() }
}

/// Linear-address width in bits.
pub fn virt_bits() -> u32 {
    // SAFETY: Reads data that is constant after boot.
    unsafe { bindings::rvmm_virt_bits() }
}

/// TSC frequency in kHz as calibrated; may be refined within the first seconds after boot.
pub fn tsc_khz() -> u32 {
    // SAFETY: A word that is only ever replaced by a better estimate.
    unsafe { core::ptr::addr_of!(bindings::tsc_khz).read_volatile() }
}

/// Whether the kernel trusts the TSC as a clock.
pub fn tsc_stable() -> bool {
    // SAFETY: Reads a flag.
    unsafe { bindings::rvmm_tsc_stable() }
}

/// Whether the kernel runs with FRED event delivery instead of an IDT.
pub fn fred_enabled() -> bool {
    // SAFETY: Reads a constant.
    unsafe { bindings::rvmm_fred_enabled() }
}

/// Whether the kernel's memory is encrypted by AMD's SME or SEV, which everything that the processor addresses
/// physically would have to say by a bit of the address.
pub fn memory_encrypted() -> bool {
    // SAFETY: Reads a word that is constant after boot.
    unsafe { bindings::rvmm_memory_encrypted() }
}

/// Whether the kernel runs with five-level page tables.
pub fn la57() -> bool {
    // SAFETY: Reads a constant.
    unsafe { bindings::rvmm_la57_enabled() }
}
