// SPDX-License-Identifier: GPL-2.0
//! A value that readers see, asleep or not, while a writer replaces it.
//!
//! As with SRCU, but that a writer does not wait for a worker thread; see [`readers`](super::readers).

use core::hint::spin_loop;
use core::ops::Deref;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use kernel::prelude::*;
use kernel::time::{delay::fsleep, Delta};

use super::preempt::raw_cpu;
use super::readers::{Counts, Readers, Reading};
use super::smp;

/// A `T` in versions. Writers exclude each other by their own lock. Up to `N` replaced versions wait for the next
/// time that nobody reads them.
///
/// # Invariants
///
/// `ptr`, and the elements of `retired` that are not null, come from `KBox::into_raw`, and no two are the same; a value
/// that was replaced is dropped only after a later [`Readers::wait`].
pub(crate) struct VersionCell<T: Send + Sync, const N: usize = 0> {
    readers: Readers<KVec<Counts>>,
    ptr: AtomicPtr<T>,
    /// Replaced values that somebody may still read.
    retired: [AtomicPtr<T>; N],
}

impl<T: Send + Sync, const N: usize> VersionCell<T, N> {
    /// A cell that holds `value`. Sleeps. Errors: `ENOMEM`.
    pub(crate) fn new(value: T) -> Result<Self> {
        let n = smp::nr_cpu_ids() as usize;
        let mut counts = KVec::with_capacity(n, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..n {
            counts.push(Counts::new(), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self {
            readers: Readers::new(counts),
            ptr: AtomicPtr::new(KBox::into_raw(KBox::new(value, GFP_KERNEL_ACCOUNT)?)),
            retired: [const { AtomicPtr::new(ptr::null_mut()) }; N],
        })
    }

    /// A cell of its own that holds `value`. Sleeps. Errors: `ENOMEM`.
    pub(crate) fn boxed(value: T) -> Result<KBox<Self>> {
        Ok(KBox::new(Self::new(value)?, GFP_KERNEL_ACCOUNT)?)
    }

    /// Begins to read, which may sleep.
    #[inline]
    pub(crate) fn read(&self) -> Version<'_, T> {
        let reading = self.readers.enter(raw_cpu());
        // SAFETY: By the invariant valid. The load comes after the count, both sequentially consistent as `Readers`
        // wants it: a value that is replaced from now on is not dropped before `reading`.
        let value = unsafe { &*self.ptr.load(Ordering::SeqCst) };
        Version {
            value,
            _reading: reading,
        }
    }

    /// Publishes `value`, waits until nobody reads the old one, and returns that. Sleeps; must not be called by one who
    /// reads this cell.
    pub(crate) fn replace(&self, value: KBox<T>) -> KBox<T> {
        let old = self.ptr.swap(KBox::into_raw(value), Ordering::SeqCst);
        self.reclaim();
        // SAFETY: By the invariant; no reader has it since `reclaim` has waited.
        unsafe { KBox::from_raw(old) }
    }

    /// Publishes `value`. Does not wait for those who read the old one, which is dropped later: by the next
    /// [`VersionCell::replace`], or with others when there are more than `N`. May sleep; must not be called by one who
    /// reads this cell.
    pub(crate) fn replace_later(&self, value: KBox<T>) {
        let old = self.ptr.swap(KBox::into_raw(value), Ordering::SeqCst);
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

    /// Waits until whoever reads now has ended. Sleeps; must not be called by one who reads this cell. Writers as in
    /// [`VersionCell::replace`].
    pub(crate) fn settle(&self) {
        self.reclaim();
    }

    /// Waits until nobody reads what has been replaced, and drops what was retired before.
    fn reclaim(&self) {
        let take = |place: &AtomicPtr<T>| place.swap(ptr::null_mut(), Ordering::Acquire);
        let taken: [*mut T; N] =
            core::array::from_fn(|i| self.retired.get(i).map_or(ptr::null_mut(), take));
        let mut looks = 0;
        self.readers.wait(|| pause(&mut looks));
        for old in taken.into_iter().filter(|p| !p.is_null()) {
            // SAFETY: By the invariant from `into_raw`, and taken out above by this thread alone; it had been replaced
            // before the wait, so no reader has it.
            drop(unsafe { KBox::from_raw(old) });
        }
    }
}

/// Lets a reader get on: most are through in a microsecond, some sleep until the host's memory is there.
fn pause(looks: &mut u32) {
    const BUSY: u32 = 100;
    *looks = looks.saturating_add(1);
    match *looks {
        0..BUSY => spin_loop(),
        n => fsleep(Delta::from_micros(i64::from(n.min(1000)))),
    }
}

impl<T: Send + Sync, const N: usize> Drop for VersionCell<T, N> {
    fn drop(&mut self) {
        for old in Iterator::chain(self.retired.iter(), [&self.ptr]) {
            let old = old.load(Ordering::Relaxed);
            if !old.is_null() {
                // SAFETY: `&mut self`: no reader is left. Nothing uses the pointer after this.
                drop(unsafe { KBox::from_raw(old) });
            }
        }
    }
}

/// A value that one reads.
pub(crate) struct Version<'a, T> {
    value: &'a T,
    _reading: Reading<'a>,
}

impl<T> Deref for Version<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.value
    }
}
