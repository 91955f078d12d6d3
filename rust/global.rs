// SPDX-License-Identifier: GPL-2.0
//! Module-wide state that is there from module init to module exit.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use kernel::prelude::*;

/// A value set once at init and dropped at exit.
///
/// # Invariants
///
/// The pointer is null or comes from `KBox::into_raw` of a `KBox<T>` that nothing else owns.
pub(crate) struct Global<T> {
    ptr: AtomicPtr<T>,
}

impl<T: Send + Sync + 'static> Global<T> {
    /// Holds nothing.
    pub(crate) const fn new() -> Self {
        Self {
            ptr: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Stores the value. EBUSY if there is one already.
    pub(crate) fn set(&self, value: T) -> Result {
        let raw = KBox::into_raw(KBox::new(value, GFP_KERNEL)?);
        if self
            .ptr
            .compare_exchange(ptr::null_mut(), raw, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // SAFETY: `raw` was made above and not shared.
            drop(unsafe { KBox::from_raw(raw) });
            return Err(EBUSY);
        }
        Ok(())
    }

    /// The value, if it is set.
    #[inline]
    pub(crate) fn get(&self) -> Option<&'static T> {
        // SAFETY: By the invariant null or valid; it stays so until `clear`, whose caller vouches that no reference
        // is left.
        unsafe { self.ptr.load(Ordering::Acquire).as_ref() }
    }

    /// Drops the value.
    ///
    /// # Safety
    ///
    /// No reference that `get` returned is in use or will be used.
    pub(crate) unsafe fn clear(&self) {
        let raw = self.ptr.swap(ptr::null_mut(), Ordering::AcqRel);
        if !raw.is_null() {
            // SAFETY: By the invariant; nothing refers to it any more by the contract.
            drop(unsafe { KBox::from_raw(raw) });
        }
    }
}
