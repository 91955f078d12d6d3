// SPDX-License-Identifier: GPL-2.0

//! Caches, where a device does not see them.
//!
//! C header: [`arch/x86/include/asm/smp.h`](srctree/arch/x86/include/asm/smp.h)

use super::super::bindings;

/// Writes back and empties the caches of all CPUs (WBINVD). Interrupts are on.
pub fn write_back_all() {
    // SAFETY: Caches of memory are coherent among CPUs: only what bypasses them sees a difference.
    unsafe { bindings::rvmm_write_back_caches() };
}
