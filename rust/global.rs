// SPDX-License-Identifier: GPL-2.0

//! Counted values that a module has from its init to its exit.
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

use kernel::prelude::*;
use kernel::sync::{rcu, Arc, ArcBorrow};

/// Where a value is found by code that has not been handed a reference to it, as long as its [`Owner`] lives.
///
/// # Invariants
///
/// The pointer is null or came from `Arc::into_raw`, with the reference that this value owns. That reference is dropped
/// only after a grace period that began when the pointer was here no more.
pub struct Global<T: Send + Sync + 'static>(AtomicPtr<T>);

impl<T: Send + Sync + 'static> Global<T> {
    /// Holds nothing.
    pub const fn new() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }

    /// Stores the value until the owner is dropped. Errors: `EBUSY` if there is one already, `ENOMEM`.
    pub fn set(&'static self, value: T) -> Result<Owner> {
        let new = Arc::into_raw(Arc::new(value, GFP_KERNEL)?).cast_mut();
        // INVARIANT: Nothing has to be dropped when null is replaced.
        let old = self
            .0
            .compare_exchange(null_mut(), new, Ordering::AcqRel, Ordering::Relaxed);
        if old.is_err() {
            // SAFETY: From `into_raw` above, and in nobody's hands.
            drop(unsafe { Arc::from_raw(new) });
            return Err(EBUSY);
        }
        Ok(Owner(self))
    }

    /// A reference to the value, if it is set.
    pub fn get(&self) -> Option<Arc<T>> {
        let _reader = rcu::read_lock();
        let p = self.0.load(Ordering::Acquire);
        if p.is_null() {
            return None;
        }
        // SAFETY: By the invariant the pointer's own reference is not dropped before this read section ends, since the
        // pointer was still here when it had begun; so the count is not zero while the borrow lives.
        Some(unsafe { ArcBorrow::from_raw(p) }.into())
    }
}

trait Clear: Sync {
    fn clear(&self);
}

impl<T: Send + Sync + 'static> Clear for Global<T> {
    fn clear(&self) {
        let p = self.0.swap(null_mut(), Ordering::AcqRel);
        if !p.is_null() {
            rcu::synchronize_rcu();
            // SAFETY: By the invariant `p` carries a reference, which the swap took over, and the grace period is past.
            drop(unsafe { Arc::from_raw(p) });
        }
    }
}

/// Keeps a [`Global`] set. Dropping it sleeps; the value goes with the last reference to it.
#[must_use = "the value goes when this is dropped"]
pub struct Owner(&'static dyn Clear);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.clear();
    }
}
