// SPDX-License-Identifier: GPL-2.0

//! A spinning lock with many readers or one writer. Not for interrupt context.
//!
//! C header: [`include/linux/rwlock.h`](srctree/include/linux/rwlock.h)

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use kernel::prelude::*;
use kernel::types::Opaque;

use super::bindings;
use super::preempt::PinsCpu;

/// Data behind an `rwlock_t`. Holders must not sleep.
#[pin_data]
pub struct RwLock<T> {
    #[pin]
    lock: Opaque<bindings::rwlock_t>,
    data: UnsafeCell<T>,
}

// SAFETY: The lock has no owner task when free; the data is `Send`.
unsafe impl<T: Send> Send for RwLock<T> {}
// SAFETY: Readers share the data, writers have it alone.
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}

impl<T> RwLock<T> {
    /// Makes a free lock around `data`.
    pub fn new(data: T) -> impl PinInit<Self> {
        pin_init!(Self {
            lock <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is memory for a lock.
                unsafe { bindings::rvmm_rwlock_init(slot) }
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Takes the lock for reading.
    #[inline]
    pub fn read(&self) -> ReadGuard<'_, T> {
        // SAFETY: The lock is initialised.
        unsafe { bindings::rvmm_read_lock(self.lock.get()) };
        ReadGuard {
            lock: self,
            _not_send: PhantomData,
        }
    }

    /// Takes the lock for writing.
    #[inline]
    pub fn write(&self) -> WriteGuard<'_, T> {
        // SAFETY: The lock is initialised.
        unsafe { bindings::rvmm_write_lock(self.lock.get()) };
        WriteGuard {
            lock: self,
            _not_send: PhantomData,
        }
    }

    /// Whether a long holder should let go for a moment: others wait, or another task should run.
    #[inline]
    pub fn needs_break(&self) -> bool {
        // SAFETY: The lock is initialised.
        unsafe { bindings::rvmm_rwlock_needbreak(self.lock.get()) }
    }
}

/// The lock is held for reading while the guard lives.
///
/// # Invariants
///
/// This task holds the lock for reading.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ReadGuard<'a, T> {
    lock: &'a RwLock<T>,
    _not_send: PhantomData<*mut ()>,
}

/// The lock is held for writing while the guard lives.
///
/// # Invariants
///
/// This task holds the lock for writing.
#[must_use = "the lock is released when the guard is dropped"]
pub struct WriteGuard<'a, T> {
    lock: &'a RwLock<T>,
    _not_send: PhantomData<*mut ()>,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the invariant there is no writer.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the invariant there is no other holder.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the invariant there is no other holder, and `self` is borrowed exclusively.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the invariant it is held for reading.
        unsafe { bindings::rvmm_read_unlock(self.lock.lock.get()) };
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the invariant it is held for writing.
        unsafe { bindings::rvmm_write_unlock(self.lock.lock.get()) };
    }
}

// SAFETY: A held rwlock keeps preemption off.
unsafe impl<T> PinsCpu for ReadGuard<'_, T> {}
// SAFETY: A held rwlock keeps preemption off.
unsafe impl<T> PinsCpu for WriteGuard<'_, T> {}
