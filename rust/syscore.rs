// SPDX-License-Identifier: GPL-2.0

//! Callbacks for system sleep and shutdown.
//!
//! C header: [`include/linux/syscore_ops.h`](srctree/include/linux/syscore_ops.h)

use kernel::error::from_result;
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;
use kernel::types::Opaque;

use super::bindings;

/// What to do around system sleep and before shutdown.
pub trait SyscoreOps: Send + Sync + 'static {
    /// The system goes to sleep: only the boot CPU is left, interrupts are off. An error stops it.
    fn suspend(&self) -> Result {
        Ok(())
    }

    /// The system woke up: on the boot CPU, interrupts off.
    fn resume(&self) {}

    /// The system is going to halt, reboot or start another kernel: on one CPU, interrupts on.
    fn shutdown(&self) {}
}

#[pin_data]
struct Inner<T> {
    #[pin]
    syscore: Opaque<bindings::syscore>,
    data: T,
}

/// A registered set of callbacks; dropping it takes them back.
pub struct Registration<T: SyscoreOps> {
    inner: Pin<KBox<Inner<T>>>,
}

// SAFETY: Nothing of it belongs to a task; the data is `Send`.
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

    /// Registers the callbacks of `data`. Errors: `ENOMEM`.
    pub fn register(data: T) -> Result<Self> {
        let inner = KBox::pin_init(
            pin_init!(Inner {
                syscore: Opaque::zeroed(),
                data,
            }),
            GFP_KERNEL,
        )?;
        let syscore = inner.syscore.get();
        // SAFETY: The structure is pinned memory that nobody else knows yet; it stays until drop, and so does
        // the data that it points to.
        unsafe {
            (*syscore).ops = Self::ops();
            (*syscore).data = core::ptr::from_ref(&inner.data).cast_mut().cast();
            bindings::register_syscore(syscore);
        }
        Ok(Self { inner })
    }
}

impl<T: SyscoreOps> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: Registered by `register`.
        unsafe { bindings::unregister_syscore(self.inner.syscore.get()) };
    }
}

/// # Safety
///
/// Called by the kernel with the pointer that [`Registration::register`] set.
unsafe extern "C" fn suspend<T: SyscoreOps>(data: *mut c_void) -> c_int {
    // SAFETY: `register` set the pointer to data that lives while it is registered.
    from_result(|| unsafe { &*data.cast::<T>() }.suspend().map(|()| 0))
}

/// # Safety
///
/// Called by the kernel with the pointer that [`Registration::register`] set.
unsafe extern "C" fn resume<T: SyscoreOps>(data: *mut c_void) {
    // SAFETY: `register` set the pointer to data that lives while it is registered.
    unsafe { &*data.cast::<T>() }.resume();
}

/// # Safety
///
/// Called by the kernel with the pointer that [`Registration::register`] set.
unsafe extern "C" fn shutdown<T: SyscoreOps>(data: *mut c_void) {
    // SAFETY: `register` set the pointer to data that lives while it is registered.
    unsafe { &*data.cast::<T>() }.shutdown();
}
