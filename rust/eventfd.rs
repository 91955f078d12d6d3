// SPDX-License-Identifier: GPL-2.0

//! Event counters shared with user space: signalling them, and being told of their signals.
//!
//! C header: [`include/linux/eventfd.h`](srctree/include/linux/eventfd.h)

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use kernel::error::from_err_ptr;
use kernel::ffi::{c_int, c_uint, c_void};
use kernel::fs::LocalFile;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::types::Opaque;

use super::bindings;

/// A counted reference to an eventfd's counter.
pub struct EventFdCtx {
    ctx: NonNull<bindings::eventfd_ctx>,
}

// SAFETY: The counter locks itself.
unsafe impl Send for EventFdCtx {}
// SAFETY: The counter locks itself.
unsafe impl Sync for EventFdCtx {}

impl EventFdCtx {
    /// The eventfd behind descriptor `fd` of the current process.
    ///
    /// Errors: `EBADF` when there is none, `EINVAL` when it is another kind of file.
    pub fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: Any number may be asked for; success returns a reference.
        let ctx = from_err_ptr(unsafe { bindings::eventfd_ctx_fdget(fd) })?;
        Ok(Self {
            ctx: NonNull::new(ctx).ok_or(EBADF)?,
        })
    }

    /// Adds one to the counter and wakes who waits for it. Any context.
    #[inline]
    pub fn signal(&self) {
        // SAFETY: The reference keeps the counter.
        unsafe { bindings::eventfd_signal_mask(self.ctx.as_ptr(), 0) };
    }

    /// Takes the counter's value, leaving zero.
    fn take_locked(&self) -> u64 {
        let mut count = 0;
        // SAFETY: The caller holds the counter's wait-queue lock.
        unsafe { bindings::eventfd_ctx_do_read(self.ctx.as_ptr(), &mut count) };
        count
    }
}

impl PartialEq for EventFdCtx {
    fn eq(&self, other: &Self) -> bool {
        self.ctx == other.ctx
    }
}

impl Eq for EventFdCtx {}

impl Drop for EventFdCtx {
    fn drop(&mut self) {
        // SAFETY: The value owns one reference.
        unsafe { bindings::eventfd_ctx_put(self.ctx.as_ptr()) };
    }
}

/// What happens when a hooked eventfd is signalled.
pub trait EventFdHook: Send + Sync + 'static {
    /// The eventfd was signalled; its counter has been taken. Runs in the signaller's context, with a
    /// spinlock held and interrupts off: it must not sleep, signal the same eventfd or drop the hook.
    fn wake(&self);

    /// The last reference of user space to the eventfd is gone. Runs like [`EventFdHook::wake`]; have a
    /// work item drop the hook.
    fn hangup(&self);
}

#[repr(C)]
#[pin_data]
struct Inner<H> {
    /// First, so that the C pointer is also the pointer to `Inner`.
    #[pin]
    entry: Opaque<bindings::wait_queue_entry>,
    #[pin]
    table: Opaque<bindings::poll_table_struct>,
    /// Whether `entry` is on the queue.
    queued: AtomicBool,
    ctx: EventFdCtx,
    hook: Arc<H>,
}

/// A hook on an eventfd. Dropping it removes the hook; no callback runs after that.
pub struct Hook<H: EventFdHook> {
    inner: core::pin::Pin<KBox<Inner<H>>>,
}

// SAFETY: The wait queue locks itself; the hook is `Send`.
unsafe impl<H: EventFdHook> Send for Hook<H> {}
// SAFETY: Shared references reach the hook only, which is `Sync`.
unsafe impl<H: EventFdHook> Sync for Hook<H> {}

impl<H: EventFdHook> Hook<H> {
    /// Hooks the eventfd behind descriptor `fd` of the current process. If it is signalled already, the
    /// hook is called at once (in the caller's context, without the lock). It is called before all other waiters, and
    /// takes the counter away from them.
    ///
    /// Errors: `EBADF`, `EINVAL`, `ENOMEM`; `EBUSY` when the eventfd has such a waiter already, whoever that is.
    pub fn register(fd: i32, hook: Arc<H>) -> Result<Self> {
        let file = LocalFile::fget(u32::try_from(fd).map_err(|_| EBADF)?)?;
        // SAFETY: The file is live; success returns a reference to its counter.
        let ctx = from_err_ptr(unsafe { bindings::eventfd_ctx_fileget(file.as_ptr()) })?;
        let ctx = EventFdCtx {
            ctx: NonNull::new(ctx).ok_or(EINVAL)?,
        };
        let inner = KBox::pin_init(
            pin_init!(Inner {
                entry <- Opaque::ffi_init(|slot| {
                    // SAFETY: `slot` is pinned memory for the entry.
                    unsafe { bindings::rvmm_init_waitqueue_func(slot, Some(wake::<H>)) }
                }),
                table <- Opaque::ffi_init(|slot| {
                    // SAFETY: `slot` is memory for the table.
                    unsafe { bindings::rvmm_init_poll_funcptr(slot, Some(queue::<H>)) }
                }),
                queued: AtomicBool::new(false),
                ctx,
                hook,
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let this = Self { inner };
        let inner = &this.inner;
        // SAFETY: The file is live; the table's function adds `entry`, which stays until drop.
        let events = unsafe { bindings::rvmm_vfs_poll(file.as_ptr(), inner.table.get()) };
        if !inner.queued.load(Ordering::Relaxed) {
            return Err(EBUSY);
        }
        if events & bindings::RVMM_EPOLLIN != 0 {
            inner.hook.wake();
        }
        // No reference to the file stays: the hang-up has to be seen. `ctx` keeps the wait queue.
        Ok(this)
    }

    /// The hook.
    pub fn hook(&self) -> &Arc<H> {
        &self.inner.hook
    }

    /// The eventfd that is hooked.
    pub fn eventfd(&self) -> &EventFdCtx {
        &self.inner.ctx
    }
}

impl<H: EventFdHook> Drop for Hook<H> {
    fn drop(&mut self) {
        if !self.inner.queued.load(Ordering::Relaxed) {
            return;
        }
        let mut count = 0;
        // SAFETY: The entry was added by `register` and is removed once; the call takes the queue's lock, so that
        // no callback runs after it.
        unsafe {
            bindings::eventfd_ctx_remove_wait_queue(
                self.inner.ctx.ctx.as_ptr(),
                self.inner.entry.get(),
                &mut count,
            )
        };
    }
}

/// # Safety
///
/// Called by `vfs_poll` with the table of a live `Inner<H>`.
unsafe extern "C" fn queue<H: EventFdHook>(
    _file: *mut bindings::file,
    head: *mut bindings::wait_queue_head,
    table: *mut bindings::poll_table_struct,
) {
    let offset = core::mem::offset_of!(Inner<H>, table);
    // SAFETY: `table` is the field of a live `Inner<H>`.
    let inner = unsafe { &*table.cast::<u8>().sub(offset).cast::<Inner<H>>() };
    // Once on the queue is enough, and all that the entry can stand.
    if inner.queued.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: The entry is pinned, not on a queue yet, and stays there until it is removed by drop.
    let result = unsafe { bindings::add_wait_queue_priority_exclusive(head, inner.entry.get()) };
    inner.queued.store(result == 0, Ordering::Relaxed);
}

/// # Safety
///
/// Called by the wait queue with the entry of a live `Inner<H>`, the queue's lock held.
unsafe extern "C" fn wake<H: EventFdHook>(
    entry: *mut bindings::wait_queue_entry,
    _mode: c_uint,
    _sync: c_int,
    key: *mut c_void,
) -> c_int {
    // SAFETY: `Inner` starts with the entry and lives while the entry is on the queue.
    let inner = unsafe { &*entry.cast::<Inner<H>>() };
    let events = key as usize as u32;
    if events & bindings::RVMM_EPOLLIN != 0 {
        // The queue's lock is held here, which is what taking the count wants.
        inner.ctx.take_locked();
        inner.hook.wake();
    }
    if events & bindings::RVMM_EPOLLHUP != 0 {
        inner.hook.hangup();
    }
    // As an exclusive waiter it has been woken by a count that nobody else finds any more.
    (events & bindings::RVMM_EPOLLIN != 0).into()
}
