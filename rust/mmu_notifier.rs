// SPDX-License-Identifier: GPL-2.0

//! Notification of changes to a user address space, for those who cache its translations.
//!
//! C header: [`include/linux/mmu_notifier.h`](srctree/include/linux/mmu_notifier.h)

use core::marker::PhantomData;
use core::ops::Deref;

use kernel::error::to_result;
use kernel::ffi::{c_int, c_ulong};
use kernel::mm::Mm;
use kernel::prelude::*;
use kernel::types::Opaque;

use super::bindings;

/// A range of user addresses whose translations change.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// Whether the callback may sleep.
    pub may_sleep: bool,
}

/// Callbacks of an address space.
///
/// They run in the context of whoever changes the address space, concurrently with each other.
pub trait MmuNotifierOps: Send + Sync + 'static {
    /// Translations in `range` go away: when this returns, nobody uses or creates any until the matching
    /// [`MmuNotifierOps::invalidate_range_end`]. Several ranges may be open at a time, also overlapping
    /// ones. It sleeps only where the range says so (the OOM reaper may call it), and it cannot fail.
    fn invalidate_range_start(&self, range: &Range);

    /// The change that [`MmuNotifierOps::invalidate_range_start`] announced is done.
    fn invalidate_range_end(&self, range: &Range);

    /// Tests and clears the accessed mark of `start..end`, flushing so that a later access is seen.
    fn clear_flush_young(&self, start: usize, end: usize) -> bool {
        self.clear_young(start, end)
    }

    /// Tests and clears the accessed mark of `start..end`; a cached translation may hide later accesses.
    fn clear_young(&self, _start: usize, _end: usize) -> bool {
        false
    }

    /// Tests the accessed mark of the page at `addr`.
    fn test_young(&self, _addr: usize) -> bool {
        false
    }

    /// The address space dies or the notifier is unregistered: drop all translations and make no more.
    fn release(&self);
}

#[repr(C)]
#[pin_data]
struct Inner<T> {
    /// First, so that the C pointer is also the pointer to `Inner`.
    #[pin]
    notifier: Opaque<bindings::mmu_notifier>,
    data: T,
}

/// A registered notifier. Dropping it unregisters and waits for running callbacks, which sleeps.
///
/// # Invariants
///
/// The notifier of `inner` is registered.
pub struct MmuNotifier<T: MmuNotifierOps> {
    inner: Pin<KBox<Inner<T>>>,
}

// SAFETY: Unregistering works from any task, and the data is `Send`.
unsafe impl<T: MmuNotifierOps> Send for MmuNotifier<T> {}
// SAFETY: Shared references only reach the data, which is `Sync`.
unsafe impl<T: MmuNotifierOps> Sync for MmuNotifier<T> {}

impl<T: MmuNotifierOps> MmuNotifier<T> {
    /// Registers callbacks of `data` with `mm`. Sleeps; the caller does not hold the mmap lock.
    ///
    /// Errors: `ESRCH` when `mm` is not the current task's, `ENOMEM`, `EINTR`.
    pub fn register(mm: &Mm, data: T) -> Result<Self> {
        if !super::sched::is_current_mm(mm) {
            return Err(ESRCH);
        }
        let inner = KBox::pin_init(
            pin_init!(Inner {
                notifier: Opaque::zeroed(),
                data,
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let notifier = inner.notifier.get();
        // SAFETY: Nobody else knows the notifier until the registration. `mm` has a user, the current task, and the
        // notifier stays where it is until it is unregistered.
        to_result(unsafe {
            (*notifier).ops = Ops::<T>::table();
            bindings::mmu_notifier_register(notifier, mm.as_raw())
        })?;
        Ok(Self { inner })
    }
}

impl<T: MmuNotifierOps> Deref for MmuNotifier<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner.data
    }
}

impl<T: MmuNotifierOps> Drop for MmuNotifier<T> {
    fn drop(&mut self) {
        let notifier = self.inner.notifier.get();
        // SAFETY: By the invariant it is registered; the call keeps the `mm_struct` until it is done and
        // returns when no callback runs any more.
        unsafe { bindings::mmu_notifier_unregister(notifier, (*notifier).mm) };
    }
}

struct Ops<T>(PhantomData<T>);

impl<T: MmuNotifierOps> Ops<T> {
    /// # Safety
    ///
    /// `notifier` is the first field of a live `Inner<T>`.
    #[inline(always)]
    unsafe fn data<'a>(notifier: *mut bindings::mmu_notifier) -> &'a T {
        // SAFETY: `Inner` starts with the notifier; callbacks only run while it lives.
        unsafe { &(*notifier.cast::<Inner<T>>()).data }
    }

    /// # Safety
    ///
    /// `range` is valid.
    #[inline(always)]
    unsafe fn range(range: *const bindings::mmu_notifier_range) -> Range {
        // SAFETY: The caller promises a valid range.
        let range = unsafe { &*range };
        Range {
            start: range.start,
            end: range.end,
            may_sleep: range.flags & bindings::MMU_NOTIFIER_RANGE_BLOCKABLE != 0,
        }
    }

    /// # Safety
    ///
    /// Called by the kernel with the notifier of a registered `Inner<T>`.
    unsafe extern "C" fn start(
        notifier: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) -> c_int {
        // SAFETY: Called with a registered notifier of this table and a valid range.
        unsafe { Self::data(notifier).invalidate_range_start(&Self::range(range)) };
        0
    }

    /// # Safety
    ///
    /// Called by the kernel with the notifier of a registered `Inner<T>`.
    unsafe extern "C" fn end(
        notifier: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) {
        // SAFETY: The kernel calls with a registered notifier of this table and a valid range.
        unsafe { Self::data(notifier).invalidate_range_end(&Self::range(range)) };
    }

    /// # Safety
    ///
    /// Called by the kernel with the notifier of a registered `Inner<T>`.
    unsafe extern "C" fn clear_flush_young(
        notifier: *mut bindings::mmu_notifier,
        _mm: *mut bindings::mm_struct,
        start: c_ulong,
        end: c_ulong,
    ) -> bool {
        // SAFETY: Called with a registered notifier of this table.
        unsafe { Self::data(notifier) }.clear_flush_young(start, end)
    }

    /// # Safety
    ///
    /// Called by the kernel with the notifier of a registered `Inner<T>`.
    unsafe extern "C" fn clear_young(
        notifier: *mut bindings::mmu_notifier,
        _mm: *mut bindings::mm_struct,
        start: c_ulong,
        end: c_ulong,
    ) -> bool {
        // SAFETY: The kernel calls with a registered notifier of this table.
        unsafe { Self::data(notifier) }.clear_young(start, end)
    }

    /// # Safety
    ///
    /// Called by the kernel with the notifier of a registered `Inner<T>`.
    unsafe extern "C" fn test_young(
        notifier: *mut bindings::mmu_notifier,
        _mm: *mut bindings::mm_struct,
        addr: c_ulong,
    ) -> bool {
        // SAFETY: The kernel calls with a registered notifier of this table.
        unsafe { Self::data(notifier) }.test_young(addr)
    }

    /// # Safety
    ///
    /// Called by the kernel with the notifier of a registered `Inner<T>`.
    unsafe extern "C" fn release(
        notifier: *mut bindings::mmu_notifier,
        _mm: *mut bindings::mm_struct,
    ) {
        // SAFETY: The kernel calls with a registered notifier of this table.
        unsafe { Self::data(notifier) }.release();
    }

    const TABLE: bindings::mmu_notifier_ops = bindings::mmu_notifier_ops {
        release: Some(Self::release),
        clear_flush_young: Some(Self::clear_flush_young),
        clear_young: Some(Self::clear_young),
        test_young: Some(Self::test_young),
        invalidate_range_start: Some(Self::start),
        invalidate_range_end: Some(Self::end),
        ..pin_init::zeroed()
    };

    fn table() -> &'static bindings::mmu_notifier_ops {
        &Self::TABLE
    }
}
