// SPDX-License-Identifier: GPL-2.0

//! From user addresses to page frames.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use core::ptr::{null_mut, NonNull};

use kernel::error::to_result;
use kernel::mm::Mm;
use kernel::prelude::*;

use super::bindings;
use super::irqflags::IrqsOff;
use super::page::DataPage;
use super::sched::current_mm;

/// A counted reference to a page of user memory, dropped with the value.
///
/// The reference keeps the frame from being reused, not the user mapping from moving on: only the
/// [notifier](super::mmu_notifier) tells about that.
pub struct PageRef {
    page: NonNull<bindings::page>,
    writable: bool,
}

// SAFETY: Page references belong to no task.
unsafe impl Send for PageRef {}
// SAFETY: The page's own flags are atomic.
unsafe impl Sync for PageRef {}

impl PageRef {
    /// Page frame number.
    #[inline]
    pub fn pfn(&self) -> u64 {
        // SAFETY: The reference keeps the page.
        unsafe { bindings::rvmm_page_to_pfn(self.page.as_ptr()) as u64 }
    }

    /// Whether the user mapping allowed writing (nothing was left to copy).
    #[inline]
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// Marks the page dirty: it was or is going to be written behind the user mapping's back. Any context.
    #[inline]
    pub fn set_dirty(&self) {
        // SAFETY: The reference keeps the page.
        unsafe { bindings::rvmm_set_page_dirty(self.page.as_ptr()) };
    }

    /// Overwrites the page, which counts as dirty then. False: it may not be written. Any context.
    ///
    /// User space may access the page at the same time, as with every copy to user memory.
    pub fn fill(&self, from: &DataPage) -> bool {
        if !self.writable {
            return false;
        }
        // SAFETY: The reference keeps the page, which is memory and so in the direct map; a look-up for writing found
        // it. Both are one page long. No reference of this language is made to user memory.
        unsafe { bindings::rvmm_fill_page(self.page.as_ptr(), from.bytes().as_ptr().cast()) };
        self.set_dirty();
        true
    }
}

impl Drop for PageRef {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The value owns one reference.
        unsafe { bindings::rvmm_put_page(self.page.as_ptr()) };
    }
}

/// The page at `hva` in the current address space, if it is resident (and, with `write`, writable as it
/// is). Never sleeps; interrupts may be off.
pub fn get_user_page_fast_only(hva: usize, write: bool) -> Option<PageRef> {
    let flags = if write { bindings::RVMM_FOLL_WRITE } else { 0 };
    let mut page = null_mut();
    // SAFETY: Room for one page; the function checks the address.
    let got = unsafe { bindings::get_user_pages_fast_only(hva, 1, flags, &mut page) };
    if got != 1 {
        return None;
    }
    Some(PageRef {
        page: NonNull::new(page)?,
        writable: write,
    })
}

/// The page at `hva` in the current address space, made resident and, with `write`, writable. Sleeps.
///
/// A read gives a page whose [`PageRef::writable`] is true when that costs nothing.
///
/// Errors: `EFAULT` when nothing is mapped there, it may not be accessed so, or it has no page structure
/// (see [`follow_pfnmap`]); `EHWPOISON`; `EINTR` on a pending signal; `ENOMEM`.
pub fn get_user_page(hva: usize, write: bool) -> Result<PageRef> {
    find_user_page(hva, write, bindings::RVMM_FOLL_INTERRUPTIBLE)?.ok_or(EFAULT)
}

/// As [`get_user_page`], but `None` where that would have to wait: for input, for another task, for user space. What
/// can be done without is done: memory is allocated, but not waited for.
pub fn get_user_page_nowait(hva: usize, write: bool) -> Result<Option<PageRef>> {
    find_user_page(hva, write, bindings::RVMM_FOLL_NOWAIT)
}

/// The page, with `how` of FOLL_* besides; `None`: the kernel has given none.
fn find_user_page(hva: usize, write: bool, how: u32) -> Result<Option<PageRef>> {
    if let Some(page) = get_user_page_fast_only(hva, true) {
        return Ok(Some(page));
    }
    if !write {
        if let Some(page) = get_user_page_fast_only(hva, false) {
            return Ok(Some(page));
        }
    }

    let mut flags = bindings::RVMM_FOLL_HWPOISON | how;
    if write {
        flags |= bindings::RVMM_FOLL_WRITE;
    }
    let mut page = null_mut();
    // SAFETY: Room for one page; the function checks the address and takes the mmap lock.
    let got = unsafe { bindings::get_user_pages_unlocked(hva, 1, &mut page, flags) };
    if got < 0 {
        return Err(match got as i32 {
            // Interrupted: restarting is the system call's business.
            -512 | -4 => EINTR,
            code => Error::from_errno(code),
        });
    }
    let Some(page) = NonNull::new(page) else {
        return Ok(None);
    };
    let page = PageRef {
        page,
        writable: write,
    };
    if !write {
        // The fault may have left a page that can be written as it is.
        if let Some(again) = get_user_page_fast_only(hva, true) {
            return Ok(Some(again));
        }
    }
    Ok(Some(page))
}

/// Size of the leaf in the host's page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MappingLevel {
    /// 4 KiB, or nothing is mapped.
    L4K,
    /// 2 MiB.
    L2M,
    /// 1 GiB.
    L1G,
}

/// The size of the leaf that maps `hva` in `mm`.
///
/// Lockless. The answer counts only if no invalidation of the address is under way, and one that begins waits for the
/// caller.
pub fn host_mapping_level(mm: &Mm, hva: usize) -> MappingLevel {
    // SAFETY: The `mm_struct` is live, and with interrupts off (in the shim) so are its page tables; the
    // top-level table lives as long as the `mm_struct`.
    match unsafe { bindings::rvmm_host_mapping_level(mm.as_raw(), hva) } {
        2 => MappingLevel::L2M,
        3 => MappingLevel::L1G,
        _ => MappingLevel::L4K,
    }
}

/// The frame of anonymous, shmem or hugetlb memory that the current address space maps writable at `hva`, and the size
/// of the leaf that maps it. The page is marked dirty. `None` for everything else, which [`get_user_page`] may know.
///
/// # Safety
///
/// No invalidation of `hva` in this address space is under way, and the [notifier](super::mmu_notifier)'s callback for
/// one that begins waits until the caller is done with the frame: then nothing is unmapped, and no frame freed, until
/// then.
#[inline]
pub unsafe fn mapped_writable(hva: usize, _irqs_off: IrqsOff<'_>) -> Option<(u64, MappingLevel)> {
    let mut pfn = 0;
    // SAFETY: The caller holds off the unmapping; with interrupts off page tables cannot be freed, as for GUP-fast.
    let level = match unsafe { bindings::rvmm_mapped_writable(hva, &mut pfn) } {
        1 => MappingLevel::L4K,
        2 => MappingLevel::L2M,
        3 => MappingLevel::L1G,
        _ => return None,
    };
    Some((pfn as u64, level))
}

/// Whether the current address space has nothing at `hva`: no page, none that is swapped out or on its way elsewhere.
/// Any context. Only a hint: the host may change it at once.
pub fn is_absent(hva: usize) -> bool {
    // SAFETY: The shim walks the tables of the current task with interrupts off, which keeps them.
    unsafe { bindings::rvmm_is_absent(hva) }
}

/// A frame without a counted reference, from a `VM_IO` or `VM_PFNMAP` area.
#[derive(Clone, Copy, Debug)]
pub struct Pfnmap {
    /// Page frame number; need not be RAM.
    pub pfn: u64,
    /// Whether the user mapping allows writing.
    pub writable: bool,
}

/// The frame behind `hva` in a `VM_IO` or `VM_PFNMAP` area of `mm`, faulted in when needed. Sleeps.
///
/// Nothing keeps the frame: use it only under the notifier's sequence check. Errors: `EFAULT`, `EINTR`; `EROFS` when
/// the area may only be read.
pub fn follow_pfnmap(mm: &Mm, hva: usize, write: bool) -> Result<Pfnmap> {
    let mm = mm.mmget_not_zero().ok_or(EFAULT)?;
    let mut pfn = 0;
    let mut writable = false;
    // SAFETY: The address space has users and the results have room.
    to_result(unsafe {
        bindings::rvmm_follow_pfnmap(mm.as_raw(), hva, write, &mut pfn, &mut writable)
    })?;
    Ok(Pfnmap {
        pfn: pfn as u64,
        writable,
    })
}

/// Makes `hva` resident and, with `write`, writable in the current address space, as an access by user
/// space would. Sleeps. Errors: `EFAULT`, `EINTR`, `ENOMEM`, `EHWPOISON`.
pub fn fault_in(hva: usize, write: bool) -> Result {
    fault_in_of(&*current_mm().ok_or(EFAULT)?, hva, write)
}

/// [`fault_in`] in any address space. `EFAULT` too when all its tasks have ended.
pub fn fault_in_of(mm: &Mm, hva: usize, write: bool) -> Result {
    let mm = mm.mmget_not_zero().ok_or(EFAULT)?;
    // SAFETY: The address space has users; the shim looks the area up under the mmap lock.
    to_result(unsafe { bindings::rvmm_fault_in(mm.as_raw(), hva, write) })
}

/// Whether `pfn` is ordinary memory: it has a page structure and is not reserved (firmware, device).
pub fn is_ram(pfn: u64) -> bool {
    // SAFETY: The shim checks the number before it looks at the page.
    unsafe { bindings::rvmm_pfn_is_ram(pfn as usize) }
}
