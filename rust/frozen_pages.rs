// SPDX-License-Identifier: GPL-2.0

//! Pages that are not written any more, which user space maps privately: who writes gets a copy of its own, from the
//! kernel's usual fault.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use core::marker::PhantomData;
use core::ptr::NonNull;

use kernel::error::to_result;
use kernel::mm::virt::{flags as vm_flags, VmaNew};
use kernel::mm::Mm;
use kernel::prelude::*;
use kernel::sync::Arc;

use super::bindings;
use super::page::DataPage;
use super::vm_area::{is_served, serve, table, Backing, OOM, SIGBUS};

/// A page that is not written any more. Mappings may outlive the value.
pub struct FrozenPage(DataPage);

impl FrozenPage {
    /// The page, as it is now.
    pub fn new(page: DataPage) -> Self {
        Self(page)
    }

    /// A reference for a mapping.
    pub fn grant(&self) -> Grant {
        Grant(self.0.share())
    }
}

/// A reference to a [`FrozenPage`]. It goes to the mapping; one that is dropped instead is given back.
pub struct Grant(NonNull<bindings::page>);

impl Grant {
    /// Gives the reference away.
    fn into_page(self) -> *mut bindings::page {
        let page = self.0.as_ptr();
        core::mem::forget(self);
        page
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        // SAFETY: The value owns one reference, from `DataPage::share`.
        unsafe { bindings::rvmm_put_page(self.0.as_ptr()) };
    }
}

/// Where pages come from.
pub trait Origin: Send + Sync + Sized {
    /// The page with this number. `once`: it is copied right away, and not mapped itself. Sleeps.
    ///
    /// Errors: `ENOMEM`; all others mean that there is none.
    fn page(&self, number: usize, once: bool, fault: &Fault<'_>) -> Result<Grant>;
}

/// A fault under way: the mmap lock of its address space is held.
pub struct Fault<'a> {
    mm: *mut bindings::mm_struct,
    /// Operations of areas that nothing may be copied from, which would be another fault of this kind.
    except: *const bindings::vm_operations_struct,
    _area: PhantomData<&'a ()>,
}

impl Fault<'_> {
    /// Whether it is a fault of this address space.
    pub fn is_of(&self, mm: &Mm) -> bool {
        core::ptr::eq(self.mm, mm.as_raw())
    }

    /// Copies the page at `hva` of the address space, faulted in where needed. Sleeps. `EFAULT`: there is none, or it
    /// lies in an area of the same kind as the fault; `EHWPOISON`, `ENOMEM`.
    pub fn copy(&self, hva: usize, to: &mut DataPage) -> Result {
        let to = to.bytes_mut().as_mut_ptr().cast();
        // SAFETY: `to` is a page; the kernel holds the mmap lock of the area's address space while it handles a fault
        // in an area whose operations have no `map_pages`.
        to_result(unsafe { bindings::rvmm_copy_user_page(to, self.mm, hva, self.except) })
    }
}

/// An [`Origin`] that areas are served from.
pub struct FrozenPages<T: Origin>(T);

impl<T: Origin> FrozenPages<T> {
    /// Pages of `origin`.
    pub fn new(origin: T) -> Result<Arc<Self>> {
        Ok(Arc::new(Self(origin), GFP_KERNEL_ACCOUNT)?)
    }

    /// Where they come from.
    pub fn origin(&self) -> &T {
        &self.0
    }

    /// Serves `vma`, which holds a reference. Errors: `EINVAL` when it is shared.
    pub fn map(self: &Arc<Self>, vma: &VmaNew) -> Result {
        if vma.flags() & vm_flags::SHARED != 0 {
            return Err(EINVAL);
        }
        vma.set_dontexpand();
        serve(self.clone(), vma);
        Ok(())
    }

    /// Whether an area of `mm` between `start` and `end` is served from pages of this kind. Sleeps.
    pub fn meets(mm: &Mm, start: usize, end: usize) -> bool {
        is_served::<Self>(mm, start, end)
    }
}

impl<T: Origin> Backing for FrozenPages<T> {
    unsafe fn fault(&self, vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The caller promises a fault that is being served; its area lives as long, and has an address space.
        let (number, once, mm) = unsafe {
            let about = &(*vmf).__bindgen_anon_1;
            // There when a private copy is about to be made.
            let once = !(*vmf).cow_page.is_null();
            (about.pgoff, once, (*about.vma).vm_mm)
        };
        let fault = Fault {
            mm,
            except: table::<Self>(),
            _area: PhantomData,
        };
        match self.0.page(number, once, &fault) {
            Ok(grant) => {
                // SAFETY: As above. The kernel takes the reference over with the page.
                unsafe { (*vmf).page = grant.into_page() };
                0
            }
            Err(e) if e == ENOMEM => OOM,
            Err(_) => SIGBUS,
        }
    }
}
