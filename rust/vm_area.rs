// SPDX-License-Identifier: GPL-2.0

//! User-space areas whose pages an object of the module gives at the first access.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use kernel::mm::virt::VmaNew;
use kernel::mm::Mm;
use kernel::sync::{Arc, ArcBorrow};

use super::bindings;

/// What an access beyond the object's pages gets.
pub const SIGBUS: bindings::vm_fault_t = bindings::RVMM_VM_FAULT_SIGBUS;
/// What an access gets when there is no memory for its page.
pub const OOM: bindings::vm_fault_t = bindings::RVMM_VM_FAULT_OOM;

/// An object that serves areas.
pub trait Backing: Send + Sync + Sized {
    /// Gives the page that `vmf` asks for, and says how as the kernel's handlers do. May sleep.
    ///
    /// # Safety
    ///
    /// `vmf` is a fault that the kernel is handling, in an area that [`serve`] gave to this object.
    unsafe fn fault(&self, vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t;
}

/// Lets `object` serve `vma`, which holds a reference to it as long as it is there, and so does each copy of it.
pub fn serve<T: Backing>(object: Arc<T>, vma: &VmaNew) {
    let area = vma.as_ptr();
    // SAFETY: The area is being set up by this task, nobody else looks at it. The operations and the reference belong
    // together: `close` gives it back.
    unsafe {
        (*area).vm_private_data = Arc::into_raw(object).cast_mut().cast();
        (*area).vm_ops = table::<T>();
    }
}

/// The operations of areas that [`serve`] gives to a `T`.
#[inline(never)]
pub fn table<T: Backing>() -> *const bindings::vm_operations_struct {
    &Operations::<T>::TABLE
}

/// Whether an area of `mm` between `start` and `end` was given to a `T` by [`serve`]. Sleeps.
pub fn is_served<T: Backing>(mm: &Mm, start: usize, end: usize) -> bool {
    // SAFETY: The address space is live; the shim looks at its areas under the mmap lock.
    unsafe { bindings::rvmm_has_area_of(mm.as_raw(), start, end, table::<T>()) }
}

struct Operations<T>(core::marker::PhantomData<T>);

impl<T: Backing> Operations<T> {
    const TABLE: bindings::vm_operations_struct = bindings::vm_operations_struct {
        open: Some(Self::open),
        close: Some(Self::close),
        fault: Some(Self::fault),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `area` was given to a `T` by [`serve`] and is not closed.
    unsafe fn object<'a>(area: *mut bindings::vm_area_struct) -> ArcBorrow<'a, T> {
        // SAFETY: `serve` put the pointer there, with a reference that the area holds until `close`.
        unsafe { ArcBorrow::from_raw((*area).vm_private_data.cast::<T>()) }
    }

    /// # Safety
    ///
    /// Called by the kernel for an area that was given to a `T` by [`serve`].
    unsafe extern "C" fn open(area: *mut bindings::vm_area_struct) {
        // SAFETY: A copy of an area with these operations; the original still holds its reference.
        let reference: Arc<T> = unsafe { Self::object(area) }.into();
        // The copy's own reference, which `close` gives back.
        let _ = Arc::into_raw(reference);
    }

    /// # Safety
    ///
    /// Called by the kernel for an area that was given to a `T` by [`serve`].
    unsafe extern "C" fn close(area: *mut bindings::vm_area_struct) {
        // SAFETY: The area's own reference, from `serve` or `open`.
        drop(unsafe { Arc::from_raw((*area).vm_private_data.cast::<T>()) });
    }

    /// # Safety
    ///
    /// Called by the kernel for an area that was given to a `T` by [`serve`].
    unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The fault's area has these operations and is held for the length of the call.
        unsafe { Self::object((*vmf).__bindgen_anon_1.vma).fault(vmf) }
    }
}
