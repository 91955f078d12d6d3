// SPDX-License-Identifier: GPL-2.0

//! Callbacks for system sleep and shutdown.
//!
//! C header: [`include/linux/syscore_ops.h`](srctree/include/linux/syscore_ops.h)

use core::marker::PhantomData;

use kernel::error::from_result;
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;
use kernel::types::Opaque;

use super::bindings;

/// What to do around system sleep and before shutdown.
pub trait SyscoreOps: 'static {
    /// The system goes to sleep: only the boot CPU is left, interrupts are off. An error stops it.
    fn suspend() -> Result {
        Ok(())
    }

    /// The system woke up: on the boot CPU, interrupts off.
    fn resume() {}

    /// The system is going to halt, reboot or start another kernel: on one CPU, interrupts on.
    fn shutdown() {}
}

/// A registered set of callbacks; dropping it takes them back.
#[pin_data(PinnedDrop)]
pub struct Registration<T: SyscoreOps> {
    #[pin]
    inner: Opaque<bindings::syscore>,
    _ops: PhantomData<fn() -> T>,
}

// SAFETY: Nothing of it belongs to a task.
unsafe impl<T: SyscoreOps> Send for Registration<T> {}
// SAFETY: There is nothing to reach through a shared reference.
unsafe impl<T: SyscoreOps> Sync for Registration<T> {}

impl<T: SyscoreOps> Registration<T> {
    const OPS: bindings::syscore_ops = bindings::syscore_ops {
        suspend: Some(suspend::<T>),
        resume: Some(resume::<T>),
        shutdown: Some(shutdown::<T>),
    };

    fn ops() -> &'static bindings::syscore_ops {
        &Self::OPS
    }

    /// Registers the callbacks.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot: *mut bindings::syscore| {
                // SAFETY: `slot` is pinned memory for the structure; it stays linked until drop.
                unsafe {
                    core::ptr::write_bytes(slot, 0, 1);
                    (*slot).ops = Self::ops();
                    bindings::register_syscore(slot);
                }
            }),
            _ops: PhantomData,
        })
    }
}

#[pinned_drop]
impl<T: SyscoreOps> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by `new`.
        unsafe { bindings::unregister_syscore(self.inner.get()) };
    }
}

unsafe extern "C" fn suspend<T: SyscoreOps>(_data: *mut c_void) -> c_int {
    from_result(|| T::suspend().map(|()| 0))
}

unsafe extern "C" fn resume<T: SyscoreOps>(_data: *mut c_void) {
    T::resume();
}

unsafe extern "C" fn shutdown<T: SyscoreOps>(_data: *mut c_void) {
    T::shutdown();
}
