// SPDX-License-Identifier: GPL-2.0

//! An owning pointer that is set at most once.
//!
//! The kernel's `SetOnce` calls a C function for every look at it, and these looks are on the way of exits.

use core::ffi::c_void;
use core::marker::PhantomData;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

use kernel::prelude::*;
use kernel::types::ForeignOwnable;

/// A [`KBox`](kernel::alloc::KBox) or an [`Arc`](kernel::sync::Arc) that may not be there yet. Once it is there it
/// stays.
///
/// # Invariants
///
/// The pointer is null or came from `P::into_foreign`, and changes only once.
pub struct Once<P: ForeignOwnable>(AtomicPtr<c_void>, PhantomData<P>);

// SAFETY: It owns a `P`, and nothing else.
unsafe impl<P: ForeignOwnable + Send> Send for Once<P> {}
// SAFETY: A shared reference gives borrows of the `P`, and takes one over from any thread.
unsafe impl<P: ForeignOwnable + Send + Sync> Sync for Once<P> {}

impl<P: ForeignOwnable> Once<P> {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(AtomicPtr::new(null_mut()), PhantomData)
    }

    /// What has been set.
    #[inline(always)]
    pub fn get(&self) -> Option<P::Borrowed<'_>> {
        let p = self.0.load(Ordering::Acquire);
        // SAFETY: By the invariant from `into_foreign`; it is taken back only when `self` is dropped.
        (!p.is_null()).then(|| unsafe { P::borrow(p.cast()) })
    }

    /// Sets it; false, and `value` is dropped, if that has happened before.
    pub fn set(&self, value: P) -> bool {
        let new = value.into_foreign();
        let old =
            self.0
                .compare_exchange(null_mut(), new.cast(), Ordering::AcqRel, Ordering::Relaxed);
        if old.is_err() {
            // SAFETY: From `into_foreign` above, and in nobody's hands.
            drop(unsafe { P::from_foreign(new) });
        }
        old.is_ok()
    }

    /// What has been set, or else what `make` gives, which is set now. Errors: those of `make`.
    #[inline]
    pub fn get_or_make(&self, make: impl FnOnce() -> Result<P>) -> Result<P::Borrowed<'_>> {
        if let Some(value) = self.get() {
            return Ok(value);
        }
        self.set(make()?);
        self.get().ok_or(ENOMEM)
    }
}

impl<P: ForeignOwnable> Drop for Once<P> {
    fn drop(&mut self) {
        let p = *self.0.get_mut();
        if !p.is_null() {
            // SAFETY: By the invariant; all borrows have ended.
            drop(unsafe { P::from_foreign(p.cast()) });
        }
    }
}
