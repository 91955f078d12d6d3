// SPDX-License-Identifier: GPL-2.0

//! The kernel's direct map of memory.
//!
//! C header: [`arch/x86/include/asm/page_64.h`](srctree/arch/x86/include/asm/page_64.h)

use crate::linux::bindings;

/// Address of the kernel's direct map.
#[inline(always)]
fn direct_map() -> u64 {
    // SAFETY: Set once while the kernel boots.
    unsafe { bindings::page_offset_base as u64 }
}

/// Address of physical address `phys` in the direct map. Only RAM is mapped there.
#[inline(always)]
pub fn phys_to_virt(phys: u64) -> *mut u8 {
    direct_map().wrapping_add(phys) as *mut u8
}

/// Physical address of `addr`, which must lie in the direct map (allocated pages, kmalloc memory; not
/// vmalloc memory, per-CPU data, the stack or the kernel image).
#[inline(always)]
pub fn virt_to_phys<T>(addr: *const T) -> u64 {
    (addr as u64).wrapping_sub(direct_map())
}
