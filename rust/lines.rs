// SPDX-License-Identifier: GPL-2.0

//! Lines of 64 bytes that the kernel writes and user space may read through a file, in one row of addresses.
//!
//! C headers: [`include/linux/vmalloc.h`](srctree/include/linux/vmalloc.h),
//! [`include/linux/mm.h`](srctree/include/linux/mm.h)

use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use kernel::alloc::allocator::Vmalloc;
use kernel::mm::virt::{flags as vm_flags, VmaNew};
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::Arc;

use super::bindings;
use super::vm_area::{serve, Backing, SIGBUS};

/// A line.
type Line = [AtomicU64; 8];

/// Lines that user space can map for reading, and only so: what is there has been written by the kernel.
///
/// # Invariants
///
/// They fill whole pages.
pub struct Lines(VVec<Line>);

impl Lines {
    const PER_PAGE: usize = PAGE_SIZE / size_of::<Line>();

    /// Zeroed lines that fill `pages` pages, charged to the current memory cgroup. May sleep. Errors: `ENOMEM`.
    pub fn new(pages: usize) -> Result<Self> {
        let count = pages.checked_mul(Self::PER_PAGE).ok_or(ENOMEM)?;
        let mut lines = VVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            lines
                .push_within_capacity([const { AtomicU64::new(0) }; 8])
                .map_err(|_| ENOMEM)?;
        }
        // INVARIANT: `count` lines are `pages` pages.
        Ok(Self(lines))
    }

    /// Line `n`, if there is one.
    #[inline(always)]
    pub fn get(&self, n: usize) -> Option<&Line> {
        self.0.get(n)
    }

    /// Serves `vma` from these lines: file page 0 is the first one. An access beyond the last page is SIGBUS. The area
    /// cannot grow, can never be made writable or executable, and holds a reference to the lines.
    ///
    /// Errors: `EINVAL` when it is private, writable or executable.
    pub fn map(this: &Arc<Self>, vma: &VmaNew) -> Result {
        if vma.flags() & vm_flags::SHARED == 0 {
            return Err(EINVAL);
        }
        vma.try_clear_maywrite()?;
        vma.try_clear_mayexec()?;
        vma.set_dontexpand();
        vma.set_dontdump();
        serve(this.clone(), vma);
        Ok(())
    }
}

impl Backing for Lines {
    unsafe fn fault(&self, vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The caller promises a fault that is being served.
        let pgoff = unsafe { (*vmf).__bindgen_anon_1.pgoff };
        let first = pgoff.checked_mul(Self::PER_PAGE);
        let Some(line) = first.and_then(|first| self.0.get(first)) else {
            return SIGBUS;
        };
        // SAFETY: By the invariant the line is the first one of a page of the `Vmalloc` allocation, which lives as long
        // as `self`; the mapping takes a reference to the page of its own.
        unsafe {
            let page = Vmalloc::to_page(NonNull::from(line).cast());
            let page = page.as_ptr().cast::<bindings::page>();
            bindings::rvmm_get_page(page);
            (*vmf).page = page;
        }
        0
    }
}
