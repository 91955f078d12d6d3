// SPDX-License-Identifier: GPL-2.0
//! A value that readers see under sleepable RCU while a writer replaces it.
//!
//! C header: [`include/linux/srcu.h`](srctree/include/linux/srcu.h)

use core::ops::Deref;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use kernel::prelude::*;
use kernel::sync::srcu::{Guard, Srcu};

/// An SRCU-protected `T`. Writers exclude each other by their own lock. Up to `N` replaced values wait for the next
/// grace period.
///
/// # Invariants
///
/// `ptr`, and the elements of `retired` that are not null, come from `KBox::into_raw`, and no two are the same; a value
/// that was replaced is dropped only after a grace period of `srcu`.
#[pin_data(PinnedDrop)]
pub(crate) struct SrcuCell<T: Send + Sync, const N: usize = 0> {
    #[pin]
    srcu: Srcu,
    ptr: AtomicPtr<T>,
    /// Replaced values that somebody may still read.
    retired: [AtomicPtr<T>; N],
}

impl<T: Send + Sync, const N: usize> SrcuCell<T, N> {
    /// A cell that holds `value`.
    pub(crate) fn new(value: T) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            srcu <- kernel::sync::srcu::new_srcu!(),
            ptr: AtomicPtr::new(KBox::into_raw(KBox::new(value, GFP_KERNEL_ACCOUNT)?)),
            retired: [const { AtomicPtr::new(ptr::null_mut()) }; N],
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
        self.reclaim();
        // SAFETY: By the invariant; the grace period that `reclaim` waited for is over, so no reader has it.
        unsafe { KBox::from_raw(old) }
    }

    /// Publishes `value`. Does not wait for those who read the old one, which is dropped later: by the next
    /// [`SrcuCell::replace`], or with others when there are more than `N`. May sleep; must not be called from within a
    /// read-side section of this cell.
    pub(crate) fn replace_later(&self, value: KBox<T>) {
        let old = self.ptr.swap(KBox::into_raw(value), Ordering::AcqRel);
        let free = self.retired.iter().find(|place| {
            let null = ptr::null_mut();
            place
                .compare_exchange(null, old, Ordering::Release, Ordering::Relaxed)
                .is_ok()
        });
        if free.is_none() {
            self.reclaim();
            // SAFETY: As in `replace`.
            drop(unsafe { KBox::from_raw(old) });
        }
    }

    /// Waits for a grace period and drops what was retired before.
    fn reclaim(&self) {
        let take = |place: &AtomicPtr<T>| place.swap(ptr::null_mut(), Ordering::Acquire);
        let taken: [*mut T; N] =
            core::array::from_fn(|i| self.retired.get(i).map_or(ptr::null_mut(), take));
        self.srcu.synchronize_expedited();
        for old in taken.into_iter().filter(|p| !p.is_null()) {
            // SAFETY: By the invariant from `into_raw`, and taken out above by this thread alone; it had been replaced
            // before the grace period, so no reader has it.
            drop(unsafe { KBox::from_raw(old) });
        }
    }
}

#[pinned_drop]
impl<T: Send + Sync, const N: usize> PinnedDrop for SrcuCell<T, N> {
    fn drop(self: Pin<&mut Self>) {
        for old in Iterator::chain(self.retired.iter(), [&self.ptr]) {
            let old = old.load(Ordering::Relaxed);
            if !old.is_null() {
                // SAFETY: `&mut self`: no reader is left. Nothing uses the pointer after this.
                drop(unsafe { KBox::from_raw(old) });
            }
        }
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
