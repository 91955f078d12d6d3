// SPDX-License-Identifier: GPL-2.0

//! Zeroed kernel pages for hardware structures, and conversions between addresses.
//!
//! C header: [`include/linux/gfp.h`](srctree/include/linux/gfp.h)

use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;

use kernel::page::{PAGE_SHIFT, PAGE_SIZE};
use kernel::prelude::*;

use super::bindings;

/// `1 << order` physically contiguous pages, zeroed when allocated, in the kernel's direct map.
///
/// The memory is shared with hardware or other CPUs as its user sees fit; this type only owns it.
///
/// # Invariants
///
/// `page` is the head of an allocation of order `order` that this value owns; `addr` is its address.
pub struct Pages {
    page: NonNull<bindings::page>,
    addr: NonNull<u8>,
    order: u32,
}

// SAFETY: Pages belong to no CPU or task.
unsafe impl Send for Pages {}
// SAFETY: Shared references only hand out addresses.
unsafe impl Sync for Pages {}

impl Pages {
    /// Allocates `1 << order` zeroed pages, charged to the current memory cgroup. May sleep.
    ///
    /// Errors: `ENOMEM`.
    pub fn alloc(order: u32) -> Result<Self> {
        Self::with_flags(order, bindings::GFP_KERNEL_ACCOUNT)
    }

    /// The same as [`Pages::alloc`].
    pub fn new(order: u32) -> Result<Self> {
        Self::with_flags(order, bindings::GFP_KERNEL_ACCOUNT)
    }

    /// Allocates one zeroed page without sleeping.
    pub fn alloc_atomic() -> Result<Self> {
        Self::with_flags(0, bindings::GFP_ATOMIC)
    }

    /// Allocates `1 << order` zeroed pages, charged to nobody: for what belongs to the whole system. May
    /// sleep.
    pub fn alloc_unaccounted(order: u32) -> Result<Self> {
        Self::with_flags(order, bindings::GFP_KERNEL)
    }

    fn with_flags(order: u32, flags: bindings::gfp_t) -> Result<Self> {
        // SAFETY: There are no requirements beyond a context that suits the flags.
        let page = unsafe { bindings::alloc_pages(flags | bindings::__GFP_ZERO, order) };
        let page = NonNull::new(page).ok_or(ENOMEM)?;
        // SAFETY: The page was just allocated.
        let addr = unsafe { bindings::rvmm_page_address(page.as_ptr()) };
        let Some(addr) = NonNull::new(addr.cast::<u8>()) else {
            // Only highmem has no address. SAFETY: The page is ours, of this order.
            unsafe { bindings::__free_pages(page.as_ptr(), order) };
            return Err(EINVAL);
        };
        // INVARIANT: Freshly allocated with this order.
        Ok(Self { page, addr, order })
    }

    /// Size in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        PAGE_SIZE << self.order
    }

    /// Never: there is at least one page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Address of the first byte; valid for [`Pages::len`] bytes while `self` lives.
    #[inline(always)]
    pub fn as_ptr<T>(&self) -> *mut T {
        self.addr.as_ptr().cast()
    }

    /// Physical address of the first byte.
    #[inline(always)]
    pub fn phys(&self) -> u64 {
        virt_to_phys(self.addr.as_ptr())
    }

    /// The first page's structure.
    #[inline(always)]
    pub(super) fn page(&self) -> *mut bindings::page {
        self.page.as_ptr()
    }

    /// The bytes, for a phase in which neither hardware nor another CPU uses them.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: The memory is owned, initialised, and `&mut self` keeps other Rust users out.
        unsafe { core::slice::from_raw_parts_mut(self.addr.as_ptr(), self.len()) }
    }

    /// Gives the pages away as their physical address; [`Pages::from_phys`] takes them back.
    pub fn into_phys(self) -> u64 {
        let phys = self.phys();
        core::mem::forget(self);
        phys
    }

    /// Takes back what [`Pages::into_phys`] gave away.
    ///
    /// # Safety
    ///
    /// `phys` came from `into_phys` of pages of order `order`, and is taken back only once.
    pub unsafe fn from_phys(phys: u64, order: u32) -> Self {
        let addr = phys_to_virt(phys);
        // SAFETY: The frame is RAM that we own, so it has a page structure.
        let page = unsafe { bindings::rvmm_pfn_to_page((phys >> PAGE_SHIFT) as usize) };
        Self {
            // SAFETY: Neither the page structure nor the address of an allocated page is null.
            page: unsafe { NonNull::new_unchecked(page) },
            // SAFETY: As above.
            addr: unsafe { NonNull::new_unchecked(addr) },
            order,
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: By the invariant the allocation is ours and of this order.
        unsafe { bindings::__free_pages(self.page.as_ptr(), self.order) };
    }
}

/// A zeroed page of atomic words, which CPUs and hardware share.
pub struct AtomicPage(Pages);

impl AtomicPage {
    /// All words zero. May sleep.
    ///
    /// Errors: `ENOMEM`.
    pub fn new() -> Result<Self> {
        Ok(Self(Pages::new(0)?))
    }

    /// The words.
    #[inline(always)]
    pub fn words(&self) -> &[AtomicU32; PAGE_SIZE / 4] {
        // SAFETY: The page is owned, initialised and aligned; everybody uses it by atomic accesses only, as this type gives
        // no other.
        unsafe { &*self.0.as_ptr() }
    }

    /// Physical address.
    pub fn phys(&self) -> u64 {
        self.0.phys()
    }
}

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

/// Address of page frame `pfn` in the direct map. Only RAM is mapped there (see [`super::gup::is_ram`]).
#[inline(always)]
pub fn pfn_to_virt(pfn: u64) -> *mut u8 {
    phys_to_virt(pfn.wrapping_shl(PAGE_SHIFT as u32))
}
