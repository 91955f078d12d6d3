// SPDX-License-Identifier: GPL-2.0
//! A value that readers see under sleepable RCU while a writer replaces it.
//!
//! C header: [`include/linux/srcu.h`](srctree/include/linux/srcu.h)

use core::ops::Deref;
use core::sync::atomic::{AtomicPtr, Ordering};
use kernel::prelude::*;
use kernel::sync::srcu::{Guard, Srcu};

/// An SRCU-protected `T`. Writers exclude each other by their own lock.
///
/// # Invariants
///
/// `ptr` comes from `KBox::into_raw`; a value that was replaced is dropped only after a grace period of `srcu`.
#[pin_data(PinnedDrop)]
pub(crate) struct SrcuCell<T: Send + Sync> {
    #[pin]
    srcu: Srcu,
    ptr: AtomicPtr<T>,
}

impl<T: Send + Sync> SrcuCell<T> {
    /// A cell that holds `value`.
    pub(crate) fn new(value: T) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            srcu <- kernel::sync::srcu::new_srcu!(),
            ptr: AtomicPtr::new(KBox::into_raw(KBox::new(value, GFP_KERNEL_ACCOUNT)?)),
        })
    }

    /// Starts a read-side section, which may sleep.
    #[inline]
    pub(crate) fn read(&self) -> SrcuRef<'_, T> {
        let guard = self.srcu.read_lock();
        // SAFETY: By the invariant valid; a value that is replaced from now on outlives `guard`.
        let value = unsafe { &*self.ptr.load(Ordering::Acquire) };
        SrcuRef {
            value,
            _guard: guard,
        }
    }

    /// Publishes `value`, waits until nobody reads the old one, and returns that. Sleeps; must not be called from
    /// within a read-side section of this cell.
    pub(crate) fn replace(&self, value: KBox<T>) -> KBox<T> {
        let old = self.ptr.swap(KBox::into_raw(value), Ordering::AcqRel);
        self.srcu.synchronize_expedited();
        // SAFETY: By the invariant; the grace period is over, so no reader has it.
        unsafe { KBox::from_raw(old) }
    }
}

#[pinned_drop]
impl<T: Send + Sync> PinnedDrop for SrcuCell<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: `&mut self`: no reader is left. Nothing uses the pointer after this.
        drop(unsafe { KBox::from_raw(self.ptr.load(Ordering::Relaxed)) });
    }
}

/// A reference that ends its read-side section when dropped.
pub(crate) struct SrcuRef<'a, T> {
    value: &'a T,
    _guard: Guard<'a>,
}

impl<T> Deref for SrcuRef<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.value
    }
}
