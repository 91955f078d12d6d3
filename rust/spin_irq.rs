// SPDX-License-Identifier: GPL-2.0

//! A raw spinlock, usable with interrupts off and in hard-interrupt context.
//!
//! C header: [`include/linux/spinlock.h`](srctree/include/linux/spinlock.h)

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use kernel::prelude::*;
use kernel::str::{CStr, CStrExt};
use kernel::sync::LockClassKey;
use kernel::types::Opaque;

use super::bindings;
use super::preempt::PinsCpu;

/// Data behind a `raw_spinlock_t`.
///
/// Either all users take it by [`RawSpin::lock_irqsave`], or none of them is in interrupt context:
/// otherwise an interrupt on the holder's CPU waits for ever.
#[pin_data]
pub struct RawSpin<T> {
    #[pin]
    lock: Opaque<bindings::raw_spinlock_t>,
    data: UnsafeCell<T>,
}

// SAFETY: The lock has no owner task when free; the data is `Send`.
unsafe impl<T: Send> Send for RawSpin<T> {}
// SAFETY: The lock lets one CPU at the data at a time.
unsafe impl<T: Send> Sync for RawSpin<T> {}

impl<T> RawSpin<T> {
    /// Makes a free lock around `data`, of a class for lockdep: one for each kind of data, as each has its own order
    /// and contexts ([`kernel::static_lock_class`]).
    pub fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            lock <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is memory for a lock; name and key are static.
                unsafe { bindings::rvmm_raw_spin_lock_init(slot, name.as_char_ptr(), key.as_ptr()) }
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Takes the lock; the interrupt flag stays as it is.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        // SAFETY: The lock is initialised.
        unsafe { bindings::rvmm_raw_spin_lock(self.lock.get()) };
        self.guard(None)
    }

    /// Takes the lock if it is free; the interrupt flag stays as it is.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        // SAFETY: The lock is initialised.
        unsafe { bindings::rvmm_raw_spin_trylock(self.lock.get()) }.then(|| self.guard(None))
    }

    /// Turns interrupts off and takes the lock.
    #[inline]
    pub fn lock_irqsave(&self) -> Guard<'_, T> {
        // SAFETY: The lock is initialised.
        let flags = unsafe { bindings::rvmm_raw_spin_lock_irqsave(self.lock.get()) };
        self.guard(Some(flags))
    }

    /// The lock has just been taken; `flags` are those from before if interrupts were turned off for it.
    #[inline(always)]
    fn guard(&self, flags: Option<usize>) -> Guard<'_, T> {
        // INVARIANT: As the callers say.
        Guard {
            lock: self,
            flags,
            _not_send: PhantomData,
        }
    }
}

/// The lock is held while the guard lives.
///
/// # Invariants
///
/// This CPU holds the lock; `flags` are those from before if interrupts were turned off for it.
#[must_use = "the lock is released when the guard is dropped"]
pub struct Guard<'a, T> {
    lock: &'a RawSpin<T>,
    flags: Option<usize>,
    _not_send: PhantomData<*mut ()>,
}

// SAFETY: A shared guard gives out shared references to the data only.
unsafe impl<T: Sync> Sync for Guard<'_, T> {}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the invariant the lock is held.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the invariant the lock is held, and `self` is borrowed exclusively.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let lock = self.lock.lock.get();
        match self.flags {
            // SAFETY: By the invariant the lock is held, and these are the flags from before.
            Some(flags) => unsafe { bindings::rvmm_raw_spin_unlock_irqrestore(lock, flags) },
            // SAFETY: By the invariant the lock is held.
            None => unsafe { bindings::rvmm_raw_spin_unlock(lock) },
        }
    }
}

// SAFETY: A held spinlock keeps preemption off.
unsafe impl<T> PinsCpu for Guard<'_, T> {}
