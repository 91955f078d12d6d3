// SPDX-License-Identifier: GPL-2.0
//! The reset point of guest memory: `RVMM_RESET_POINT`, `RVMM_RESET`, `RVMM_TOUCH`.
//!
//! While there is a point, pages are mapped read-only until their contents have been saved: a write faults, and
//! [`GuestMemory::fault`] saves the page before it maps it writable. What the kernel writes on behalf of a guest asks
//! [`MemoryView::hva_to_write`] for the address, which saves as well.
//!
//! A user page may be behind several guest pages. Of those the one that is written first is saved first; copies come
//! back in the opposite order, so that the first one stays.
//!
//! The point is set and memory is put back while no vCPU runs, that is, with the mutexes of all of them held, and under
//! `GuestMemory.update`: so no write of the kernel for a guest is between its look-up and its end. A change of slots
//! takes the point away.
//!
//! Faults are kept apart from it by the handshake of `rounds`: behind the protection no leaf has the write right whose
//! page has not been saved in this round. That does not need the mutexes.
//!
//! [`MemoryView::hva_to_write`]: crate::mem::memory::MemoryView::hva_to_write

use crate::linux::page::DataPage;
use crate::linux::{gup, sched};
use crate::mem::addr::{GpaRange, Hva, PAGE_SIZE};
use crate::mem::memory::GuestMemory;
use crate::mem::saved::{Point, Store};
use crate::mem::slots::Slot;
use crate::mem::writer::{NotSaved, Writer};
use kernel::mm::Mm;
use kernel::prelude::*;
use kernel::uaccess::{UserPtr, UserSlice};

impl GuestMemory {
    /// Memory can be put back to what it is now, from now on; `limit` pages may be written between two resets. The
    /// caller keeps all vCPUs from running. EBUSY: a device reaches the memory, and what it writes is not seen here; or
    /// the VM has forks. EINVAL: too many pages; writes are logged in dirty rings alone, which have no place for what
    /// no vCPU writes.
    pub(crate) fn set_reset_point(&self, limit: u64) -> Result {
        let update = self.update.lock();
        if update.dma.as_ref().is_some_and(|d| d.is_used()) || self.has_forks() {
            return Err(EBUSY);
        }
        if !self.rings.have_bitmaps() {
            return Err(EINVAL);
        }
        let store = Store::new(&self.slots.read(), limit)?;
        let store = KBox::new(store, GFP_KERNEL_ACCOUNT)?;
        let old = self.reset.replace(Point::Taken);
        // In this order: see `rounds`.
        self.await_faults();
        let mut removing = self.removing();
        match &old {
            // What it has not saved cannot be written without a fault already.
            Point::There(old) => old
                .latest_first()
                .filter_map(|s| GpaRange::new(s.gpa, PAGE_SIZE))
                .for_each(|range| removing.write_protect(range)),
            _ => store
                .slots()
                .filter_map(Slot::range)
                .for_each(|range| removing.write_protect(range)),
        }
        // Flushes.
        drop(removing);
        drop(self.reset.replace(Point::There(store)));
        drop(old);
        Ok(())
    }

    /// There is no reset point any more; huge leaves may come back. `mm` is the VM's, in which the caller runs.
    pub(crate) fn drop_reset_point(&self, mm: &Mm) {
        let _update = self.update.lock();
        let old = self.reset.replace(Point::Never);
        if !matches!(old, Point::Never) {
            self.slots.read().each(|slot| self.join(mm, slot));
        }
    }

    /// The reset point is void.
    pub(crate) fn lose_reset_point(&self) {
        let _update = self.update.lock();
        self.reset.lose();
    }

    /// Whether so much has been saved that the guest must not go on.
    #[inline(always)]
    pub(crate) fn is_reset_overdue(&self) -> bool {
        self.reset.is_over()
    }

    /// ENODATA, ESTALE: there is no reset point, or it has been lost.
    pub(crate) fn check_reset_point(&self) -> Result {
        self.reset.check()
    }

    /// Puts memory back to the reset point; the number of pages that had been written. The caller keeps all vCPUs from
    /// running. ENODATA, ESTALE: there is no point, or it has been lost. EFAULT: user memory of a page is not there.
    /// EINTR. After the last two nothing is lost, and it may be called again.
    pub(crate) fn put_back(&self) -> Result<u64> {
        let _update = self.update.lock();
        let mut store = self.reset.take()?;
        self.await_faults();
        let view = self.view();
        let mut removing = self.removing();
        let mut result = Ok(());
        for saved in store.latest_first() {
            if sched::fatal_signal_pending() {
                result = Err(EINTR);
                break;
            }
            result = store
                .hva(saved.gpa)
                .ok_or(EFAULT)
                .and_then(|hva| put_back_page(hva, &saved.page));
            // Also when a part of it may have been put back.
            view.mark_dirty(saved.gpa);
            if result.is_err() {
                break;
            }
            if let Some(range) = GpaRange::new(saved.gpa, PAGE_SIZE) {
                removing.write_protect(range);
            }
        }
        // Flushes.
        drop(removing);
        drop(view);
        let pages = store.used() as u64;
        if result.is_ok() {
            store.forget();
        }
        drop(self.reset.replace(Point::There(store)));
        result.map(|()| pages)
    }

    /// User space is going to write to `range` by itself: saves its pages, for the reset point or for forks, but for
    /// those that are missing: what user space brings is what they are. The address space is the VM's. ENODATA, ESTALE,
    /// where there are no forks; EFAULT: no slot, or no user memory; ENOSPC: the limit has been reached; ENOMEM, EINTR.
    /// Some of the pages may be saved then.
    pub(crate) fn touch(&self, range: GpaRange) -> Result {
        let _update = self.update.lock();
        if !self.has_forks() {
            self.check_reset_point()?;
        }
        let view = self.view();
        let mut at = range.start();
        while at < range.end() {
            if sched::signal_pending() {
                return Err(EINTR);
            }
            let hva = view.hva(at, false)?;
            if view.check_present(at).is_ok() {
                self.reset
                    .save(at, hva, Writer::Limited)
                    .map_err(|e| match e {
                        NotSaved::Full => ENOSPC,
                        NotSaved::NoMemory => ENOMEM,
                        NotSaved::Fault => EFAULT,
                    })?;
            }
            at = at.page().checked_add(PAGE_SIZE).ok_or(EINVAL)?;
            sched::cond_resched();
        }
        Ok(())
    }
}

/// Writes a page back to where it was.
fn put_back_page(hva: Hva, page: &DataPage) -> Result {
    let hva = usize::try_from(hva.0)?;
    match gup::get_user_page(hva, true) {
        Ok(found) if found.fill(page) => Ok(()),
        Err(e) if e == EINTR => Err(e),
        // Memory without a page structure.
        _ => UserSlice::new(UserPtr::from_addr(hva), PAGE_SIZE as usize)
            .writer()
            .write_slice(page.bytes()),
    }
}
