// SPDX-License-Identifier: GPL-2.0

//! The exception level that the kernel runs at, and how it masks interrupts and reaches their controller.
//!
//! C header: [`arch/arm64/include/asm/virt.h`](srctree/arch/arm64/include/asm/virt.h)

use crate::linux::bindings;
use core::arch::asm;

/// The exception level that this runs at: 2 with the Virtualization Host Extensions (VHE), else 1 (CurrentEL; Arm ARM
/// C5.2.2).
pub fn current_level() -> u8 {
    let level: u64;
    // SAFETY: MRS only copies the register, which every level but 0 may read.
    unsafe { asm!("mrs {}, currentel", out(reg) level, options(nomem, nostack, preserves_flags)) };
    (level >> 2 & 3) as u8
}

/// How many bits a physical address has (ID_AA64MMFR0_EL1.PARange).
pub fn address_bits() -> u32 {
    let features: u64;
    // SAFETY: MRS only copies the register.
    unsafe {
        asm!("mrs {}, id_aa64mmfr0_el1", out(reg) features, options(nomem, nostack, preserves_flags))
    };
    match features & 0xf {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        6 => 52,
        _ => 56,
    }
}

/// The kernel panics: an SError that may be its own came where it could not see it.
pub fn host_error(esr: u64) -> ! {
    // SAFETY: Does not return.
    unsafe { bindings::rvmm_host_error(esr) }
}

/// Whether the interrupt controller has its registers in the processor (GICv3), and the kernel uses them.
pub fn has_gicv3_registers() -> bool {
    // SAFETY: Reads what the kernel found while it booted.
    unsafe { bindings::rvmm_has_gicv3_registers() }
}

/// Whether the kernel masks interrupts by their priority (pseudo-NMI), not by PSTATE.
pub fn masks_by_priority() -> bool {
    // SAFETY: Reads what the kernel found while it booted.
    unsafe { bindings::rvmm_masks_by_priority() }
}

/// The kernel knows processors whose branch predictor an EL1 can train for EL2 (Spectre v2).
pub fn has_trainable_predictor() -> bool {
    // SAFETY: Reads what the kernel found while it booted.
    unsafe { bindings::rvmm_has_spectre_v2() }
}

/// The kernel knows processors whose branch history an EL1 can train for EL2 (Spectre-BHB).
pub fn has_trainable_history() -> bool {
    // SAFETY: Reads what the kernel found while it booted.
    unsafe { bindings::rvmm_has_spectre_bhb() }
}

/// All processors have pointer authentication, of addresses and generic.
pub fn has_pointer_authentication() -> bool {
    // SAFETY: Reads what the kernel found while it booted.
    unsafe { bindings::rvmm_has_pointer_authentication() }
}

/// CTR_EL0 as it is on all processors.
pub fn cache_type() -> u64 {
    // SAFETY: Reads what the kernel found while it booted.
    unsafe { bindings::rvmm_cache_type() }
}

/// All processors can make guests' memory write-back (FEAT_S2FWB).
pub fn has_forced_write_back() -> bool {
    // SAFETY: Reads what the kernel found while it booted.
    unsafe { bindings::rvmm_has_stage2_fwb() }
}

/// Instructions are fetched from data caches' contents (CTR_EL0.IDC).
pub fn has_coherent_data() -> bool {
    // SAFETY: Reads what the kernel found while it booted.
    unsafe { bindings::rvmm_has_cache_idc() }
}

/// Instruction caches see what is written (CTR_EL0.DIC).
pub fn has_coherent_fetches() -> bool {
    // SAFETY: Reads what the kernel found while it booted.
    unsafe { bindings::rvmm_has_cache_dic() }
}

/// The kernel knows processors that read memory ahead of writes to it (Spectre v4).
pub fn has_speculative_bypass() -> bool {
    // SAFETY: Reads what the kernel found while it booted.
    unsafe { bindings::rvmm_has_spectre_v4() }
}

/// Whether the firmware has a call of SMCCC's architecture range, and says that this processor needs it.
pub fn firmware_offers(function: u32) -> bool {
    // SAFETY: Asks, by a call that changes nothing.
    unsafe { bindings::rvmm_firmware_offers(function) }
}
