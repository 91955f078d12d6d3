// SPDX-License-Identifier: GPL-2.0

//! The kernel's direct map of memory.
//!
//! C header: [`arch/arm64/include/asm/memory.h`](srctree/arch/arm64/include/asm/memory.h)

use crate::linux::bindings;

/// Address of the direct map (`PAGE_OFFSET`).
const BEGIN: u64 = u64::MAX << bindings::RVMM_VA_BITS;

/// Physical address of what is at [`BEGIN`] (`PHYS_OFFSET`); negative where the processor has less of virtual addresses
/// than the kernel was built for.
#[inline(always)]
fn first() -> u64 {
    // SAFETY: Set once while the kernel boots.
    unsafe { bindings::memstart_addr as u64 }
}

/// Address of physical address `phys` in the direct map. Only RAM is mapped there.
#[inline(always)]
pub fn phys_to_virt(phys: u64) -> *mut u8 {
    (phys.wrapping_sub(first()) | BEGIN) as *mut u8
}

/// Physical address of `addr`, which must lie in the direct map (allocated pages, kmalloc memory; not
/// vmalloc memory, per-CPU data, the stack or the kernel image).
#[inline(always)]
pub fn virt_to_phys<T>(addr: *const T) -> u64 {
    (addr as u64).wrapping_sub(BEGIN).wrapping_add(first())
}
