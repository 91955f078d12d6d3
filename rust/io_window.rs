// SPDX-License-Identifier: GPL-2.0

//! Device memory that user space maps through a file, and that can be taken away again at any time.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

use kernel::mm::virt::{flags as vm_flags, VmaNew};
use kernel::page::PAGE_SHIFT;
use kernel::prelude::*;
use kernel::sync::{new_mutex, Arc, Mutex};

use super::bindings;
use super::vm_area::{serve, Backing, SIGBUS};

/// Device memory at a place in the file.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// First page in the file.
    pub file_page: usize,
    /// Pages.
    pub pages: usize,
    /// Frame of the first one.
    pub pfn: u64,
}

/// Device memory behind one file with an inode of its own. Pages appear at the first access.
#[pin_data]
pub struct IoWindow {
    parts: KVec<Part>,
    /// Of the file; set when it is first mapped.
    mapping: AtomicPtr<bindings::address_space>,
    /// Pages may be mapped. Held while one is, and while all are taken away.
    #[pin]
    open: Mutex<bool>,
}

impl IoWindow {
    /// An open window with these parts.
    pub fn new(parts: KVec<Part>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                parts,
                mapping: AtomicPtr::new(null_mut()),
                open <- new_mutex!(true),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    fn pfn(&self, file_page: usize) -> Option<u64> {
        self.parts.iter().find_map(|p| {
            let offset = file_page.checked_sub(p.file_page)?;
            (offset < p.pages).then(|| p.pfn.checked_add(offset as u64))?
        })
    }

    /// Serves `vma`, shared, uncached and not inherited by children. The file outlives the area, and is always the
    /// same one.
    ///
    /// Errors: `EINVAL` when the area is private, or not within one part.
    pub fn map(self: &Arc<Self>, vma: &VmaNew) -> Result {
        let area = vma.as_ptr();
        // SAFETY: The area is being set up by this task, nobody else looks at it; it has a file.
        let (start, end, first, mapping) = unsafe {
            (
                vma_start(area),
                vma_end(area),
                (*area).vm_pgoff,
                (*(*area).vm_file).f_mapping,
            )
        };
        let pages = end.checked_sub(start).ok_or(EINVAL)? >> PAGE_SHIFT;
        let fits = |p: &Part| {
            first
                .checked_sub(p.file_page)
                .and_then(|offset| offset.checked_add(pages))
                .is_some_and(|last| last <= p.pages)
        };
        if vma.flags() & vm_flags::SHARED == 0 || !self.parts.iter().any(fits) {
            return Err(EINVAL);
        }
        self.mapping.store(mapping, Ordering::Release);
        // SAFETY: The area is being set up by this call alone.
        unsafe { bindings::rvmm_vma_set_device(area) };
        serve(self.clone(), vma);
        Ok(())
    }

    /// Takes every page away, runs `f`, and lets them come back. Accesses wait meanwhile. Sleeps.
    ///
    /// The file is not released yet.
    pub fn without<R>(&self, f: impl FnOnce() -> R) -> R {
        let _open = self.open.lock();
        self.zap();
        f()
    }

    /// Takes every page away for good: an access is SIGBUS from now on. Sleeps.
    ///
    /// The file is not released yet.
    pub fn shut(&self) {
        let mut open = self.open.lock();
        *open = false;
        self.zap();
    }

    /// The caller holds `open`.
    fn zap(&self) {
        let mapping = self.mapping.load(Ordering::Acquire);
        if !mapping.is_null() {
            // SAFETY: The file that the pointer came from is not released, by the callers' contracts, so its inode
            // lives. The inode is the file's own: no other file's areas are met.
            unsafe { bindings::unmap_mapping_range(mapping, 0, 0, 1) };
        }
    }
}

/// # Safety
///
/// `area` is live and not changing.
unsafe fn vma_start(area: *mut bindings::vm_area_struct) -> usize {
    // SAFETY: The caller promises a live area.
    unsafe { (*area).__bindgen_anon_1.__bindgen_anon_1.vm_start }
}

/// # Safety
///
/// As for `vma_start`.
unsafe fn vma_end(area: *mut bindings::vm_area_struct) -> usize {
    // SAFETY: The caller promises a live area.
    unsafe { (*area).__bindgen_anon_1.__bindgen_anon_1.vm_end }
}

impl Backing for IoWindow {
    unsafe fn fault(&self, vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The caller promises a fault that is being served.
        let at = unsafe { &(*vmf).__bindgen_anon_1 };
        let open = self.open.lock();
        let (true, Some(pfn)) = (*open, self.pfn(at.pgoff)) else {
            return SIGBUS;
        };
        // SAFETY: The area is one for device memory, the address is in it, and the frame belongs to the device. With
        // `open` held it is still to be mapped, and whoever takes it away comes after.
        unsafe { bindings::vmf_insert_pfn(at.vma, at.address, pfn as usize) }
    }
}
