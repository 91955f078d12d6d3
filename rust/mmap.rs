// SPDX-License-Identifier: GPL-2.0

//! Kernel pages that user space maps through a file.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use core::ptr::NonNull;

use kernel::mm::virt::{flags as vm_flags, VmaNew};
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::transmute::{AsBytes, FromBytes};

use super::bindings;
use super::page::Pages;
use super::vm_area::{serve, Backing, SIGBUS};

/// A number of zeroed kernel pages that user space may map and write at any time.
///
/// The kernel's own accesses are volatile and bounds-checked. User space changes the memory behind them:
/// a value read twice may differ, so every value is read once and checked after that.
pub struct SharedPages {
    /// Address of the first of `pages`.
    first: NonNull<u8>,
    pages: KVec<Pages>,
    /// Pages of another object that mappings show behind these.
    tail: Option<Arc<SharedPages>>,
}

// SAFETY: `first` is an address of memory that belongs to `pages`.
unsafe impl Send for SharedPages {}
// SAFETY: As above; shared references only hand out addresses.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// Allocates `count` zeroed pages, charged to the current memory cgroup.
    ///
    /// Errors: `EINVAL` for none, `ENOMEM`.
    pub fn new(count: usize) -> Result<Arc<Self>> {
        Self::with_tail(count, None)
    }

    /// As [`SharedPages::new`], with the pages of `tail` behind these in every mapping. They are not reached by the other
    /// functions, and `tail`'s own tail is not mapped.
    ///
    /// Errors: as for [`SharedPages::new`].
    pub fn with_tail(count: usize, tail: Option<Arc<Self>>) -> Result<Arc<Self>> {
        if count == 0 {
            return Err(EINVAL);
        }
        let mut pages = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            pages.push(Pages::alloc(0)?, GFP_KERNEL)?;
        }
        let first = pages
            .first()
            .and_then(|p| NonNull::new(p.as_ptr()))
            .ok_or(EINVAL)?;
        Ok(Arc::new(Self { first, pages, tail }, GFP_KERNEL)?)
    }

    /// Number of pages.
    pub fn count(&self) -> usize {
        self.pages.len()
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

    /// Never: there is at least one page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Address of page `index`, valid for one page while `self` lives.
    #[inline]
    pub fn page_ptr(&self, index: usize) -> Option<*mut u8> {
        self.pages.get(index).map(Pages::as_ptr)
    }

    /// Physical address of page `index`.
    #[inline]
    pub fn phys(&self, index: usize) -> Option<u64> {
        self.pages.get(index).map(Pages::phys)
    }

    /// Address of a `T` at byte `offset`, valid while `self` lives.
    ///
    /// User space writes to the memory at any time: use volatile or atomic accesses of plain integers, and
    /// never make a reference to it. Errors: `EINVAL` when the `T` is misaligned or crosses a page.
    #[inline]
    pub fn ptr<T>(&self, offset: usize) -> Result<NonNull<T>> {
        let within = offset % PAGE_SIZE;
        let page = if offset < PAGE_SIZE {
            self.first.as_ptr()
        } else {
            let page = self.pages.get(offset / PAGE_SIZE).ok_or(EINVAL)?;
            page.as_ptr::<u8>()
        };
        if core::mem::size_of::<T>() > PAGE_SIZE - within
            || within % core::mem::align_of::<T>() != 0
        {
            return Err(EINVAL);
        }
        // SAFETY: `within` is less than the page's size.
        let ptr = unsafe { page.add(within) };
        NonNull::new(ptr.cast()).ok_or(EINVAL)
    }

    /// Reads a `T` at byte `offset`. Errors: `EINVAL` as for [`SharedPages::ptr`].
    #[inline]
    pub fn read<T: FromBytes + Copy>(&self, offset: usize) -> Result<T> {
        let ptr = self.ptr::<T>(offset)?;
        // SAFETY: `ptr` is aligned and in bounds, and any bytes make a `T`. Volatile, since user space may
        // write at the same time.
        Ok(unsafe { ptr.as_ptr().read_volatile() })
    }

    /// Writes a `T` at byte `offset`. Errors: `EINVAL` as for [`SharedPages::ptr`].
    #[inline]
    pub fn write<T: AsBytes + Copy>(&self, offset: usize, value: T) -> Result {
        let ptr = self.ptr::<T>(offset)?;
        // SAFETY: `ptr` is aligned and in bounds; `AsBytes` has no padding that could leak. Volatile, since
        // user space may access it at the same time.
        unsafe { ptr.as_ptr().write_volatile(value) };
        Ok(())
    }

    /// Copies `dst.len()` bytes from byte `offset` on; may cross pages. Errors: `EINVAL` out of bounds.
    pub fn copy_out(&self, offset: usize, dst: &mut [u8]) -> Result {
        self.check(offset, dst.len())?;
        let mut at = offset;
        for byte in dst {
            *byte = self.read(at)?;
            at += 1;
        }
        Ok(())
    }

    /// Copies `src` to byte `offset` on; may cross pages. Errors: `EINVAL` out of bounds.
    pub fn copy_in(&self, offset: usize, src: &[u8]) -> Result {
        self.check(offset, src.len())?;
        let mut at = offset;
        for byte in src {
            self.write(at, *byte)?;
            at += 1;
        }
        Ok(())
    }

    fn check(&self, offset: usize, len: usize) -> Result {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(EINVAL),
        }
    }

    /// Serves `vma` from these pages: file page 0 is page 0.
    ///
    /// Pages appear on first access; an access beyond the last page is SIGBUS. The area cannot grow and
    /// holds a reference to the pages, so it may outlive the file's object.
    pub fn map(self: &Arc<Self>, vma: &VmaNew) -> Result {
        self.map_at(vma, 0)
    }

    /// As [`SharedPages::map`], with page 0 at file page `first`.
    ///
    /// Errors: `EINVAL` when the area starts below `first`, or is private and writable.
    pub fn map_at(self: &Arc<Self>, vma: &VmaNew, first: usize) -> Result {
        let area = vma.as_ptr();
        // SAFETY: The area is being set up by this task, nobody else looks at it.
        let pgoff = unsafe { (*area).vm_pgoff };
        let start = pgoff.checked_sub(first).ok_or(EINVAL)?;
        if vma.flags() & vm_flags::SHARED == 0 && vma.writable() {
            // A private writable copy would silently part from the kernel's pages.
            return Err(EINVAL);
        }
        vma.set_dontexpand();
        vma.set_dontdump();
        // SAFETY: As above. File page `first` is taken off for good, so that `fault` need not know it.
        unsafe { (*area).vm_pgoff = start };
        serve(self.clone(), vma);
        Ok(())
    }
}

impl Backing for SharedPages {
    unsafe fn fault(&self, vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: As the caller promises.
        let pgoff = unsafe { (*vmf).__bindgen_anon_1.pgoff };
        let page = match (self.pages.get(pgoff), &self.tail) {
            (None, Some(tail)) => tail.pages.get(pgoff.wrapping_sub(self.pages.len())),
            (page, _) => page,
        };
        let Some(page) = page else {
            return SIGBUS;
        };
        // SAFETY: The page is owned by `self`; the mapping takes a reference of its own, so that the memory lives as
        // long as any mapping of it.
        unsafe {
            bindings::rvmm_get_page(page.page());
            (*vmf).page = page.page();
        }
        0
    }
}
