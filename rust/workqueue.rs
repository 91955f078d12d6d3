// SPDX-License-Identifier: GPL-2.0

//! Functions that threads of the kernel call once, for modules that may be unloaded.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use kernel::prelude::*;
use kernel::str::CStr;
use kernel::sync::Arc;
use kernel::workqueue::Queue;

use super::bindings;

/// A reference to this module: it is not unloaded meanwhile.
struct Pinned;

impl Pinned {
    /// The caller's code is pinned already, by an open file for example.
    fn new() -> Self {
        // SAFETY: The module is live, since it calls.
        unsafe { bindings::rvmm_module_get() };
        Self
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: Gives back the reference of `new`.
        unsafe { bindings::rvmm_module_put() };
    }
}

/// A place among those that may be in work.
struct Place(Arc<AtomicU32>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A queue of functions, each of which may sleep for as long as it likes without keeping others waiting.
///
/// # Invariants
///
/// The pointer is that of a workqueue which nobody else destroys.
pub struct WorkQueue {
    raw: NonNull<bindings::workqueue_struct>,
    most: u32,
    busy: Arc<AtomicU32>,
}

// SAFETY: Workqueues may be used by any thread.
unsafe impl Send for WorkQueue {}
// SAFETY: Workqueues lock themselves.
unsafe impl Sync for WorkQueue {}

impl WorkQueue {
    /// A queue in which `most` functions may be at once, `1..=1024`. ENOMEM.
    pub fn new(name: &CStr, most: u16) -> Result<Self> {
        let busy = Arc::new(AtomicU32::new(0), GFP_KERNEL)?;
        // SAFETY: The name is copied. So many may run on one CPU at once that none waits for another.
        let raw = unsafe { bindings::rvmm_alloc_workqueue(name.as_char_ptr(), most.into()) };
        // INVARIANT: It is new.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            most: most.into(),
            busy,
        })
    }

    fn place(&self) -> Result<Place> {
        let busy = self.busy.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.busy.clone());
        if busy < self.most {
            Ok(place)
        } else {
            Err(EBUSY)
        }
    }

    /// Has a thread of the kernel call `f` soon. Until it has returned, and what it owned is dropped, the module stays.
    ///
    /// Called by code that pins the module. Errors: EBUSY: there are as many as may be; ENOMEM. Then `f` is dropped.
    pub fn call(&self, f: impl FnOnce() + Send + 'static) -> Result {
        let place = self.place()?;
        let pinned = Pinned::new();
        // SAFETY: The queue lives as long as `self`; see `drop`.
        let queue: &Queue = unsafe { Queue::from_raw(self.raw.as_ptr()) };
        queue.try_spawn(GFP_KERNEL_ACCOUNT, move || {
            f();
            drop(place);
            // What follows is a few instructions, for whose end the queue's end waits.
            drop(pinned);
        })?;
        Ok(())
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: By the invariant. It waits for what is still in work, down to the return of the function.
        unsafe { bindings::destroy_workqueue(self.raw.as_ptr()) };
    }
}
