// SPDX-License-Identifier: GPL-2.0

//! A mutex whose waiter gives up when it is killed.
//!
//! C header: [`include/linux/mutex.h`](srctree/include/linux/mutex.h)
//!
//! For locks that are held as long as somebody likes, such as a vCPU's during KVM_RUN: a waiter in
//! uninterruptible sleep would count as a hung task.

use kernel::c_str;
use kernel::ffi::c_char;
use kernel::prelude::*;
use kernel::sync::lock::mutex::MutexBackend;
use kernel::sync::lock::{Backend, Guard, Lock};
use kernel::sync::LockClassKey;

use super::bindings;

/// A `struct mutex` whose `try_lock` waits, killably.
pub struct KillableBackend;

// SAFETY: A `struct mutex` excludes; the functions are those of the kernel crate's backend, but for `try_lock`, which
// says that it has the lock only when `mutex_lock_killable` has taken it.
unsafe impl Backend for KillableBackend {
    type State = <MutexBackend as Backend>::State;
    type GuardState = ();

    unsafe fn init(
        ptr: *mut Self::State,
        name: *const c_char,
        key: *mut kernel::bindings::lock_class_key,
    ) {
        // SAFETY: The caller keeps the contract of this trait, which is that of the kernel crate's backend.
        unsafe { MutexBackend::init(ptr, name, key) }
    }

    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: The caller keeps the contract of this trait, which is that of the kernel crate's backend.
        unsafe { MutexBackend::lock(ptr) }
    }

    unsafe fn unlock(ptr: *mut Self::State, guard: &Self::GuardState) {
        // SAFETY: The caller keeps the contract of this trait, which is that of the kernel crate's backend.
        unsafe { MutexBackend::unlock(ptr, guard) }
    }

    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        // SAFETY: The caller promises an initialised mutex, and may sleep, as whoever uses `KillableMutex`.
        (unsafe { bindings::rvmm_mutex_lock_killable(ptr) } == 0).then_some(())
    }

    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: The caller keeps the contract of this trait, which is that of the kernel crate's backend.
        unsafe { MutexBackend::assert_is_held(ptr) }
    }
}

/// Data behind a mutex that is taken killably.
#[pin_data]
pub struct KillableMutex<T> {
    #[pin]
    lock: Lock<T, KillableBackend>,
}

impl<T> KillableMutex<T> {
    /// A free lock around `data`.
    pub fn new(data: impl PinInit<T>, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            lock <- Lock::new(data, c_str!("KillableMutex"), key),
        })
    }

    /// Takes the lock; sleeps. Errors: `EINTR` when the task is killed meanwhile.
    #[inline]
    pub fn lock(&self) -> Result<Guard<'_, T, KillableBackend>> {
        self.lock.try_lock().ok_or(EINTR)
    }

    /// Takes the lock if it is free. Several of them may be held so at once.
    pub fn lock_now(&self) -> Option<Guard<'_, T, KillableBackend>> {
        let lock = (&raw const self.lock).cast_mut();
        // SAFETY: The type is `repr(C)` and begins with the mutex, which its constructor has initialised; the kernel
        // changes it behind shared references.
        unsafe { MutexBackend::try_lock(lock.cast()) }?;
        // SAFETY: Just taken; both backends give it back in the same way.
        Some(unsafe { Guard::new(&self.lock, ()) })
    }
}
