// SPDX-License-Identifier: GPL-2.0
//! The ioctls on memory slots: KVM_SET_USER_MEMORY_REGION and the dirty logs (api.rst 4.35, 4.8, 4.117).
//!
//! Called by ioctls of the VM's file. Each takes `GuestMemory.update`, so they run one after the other.

use crate::mem::addr::{GpaRange, PAGE_SIZE};
use crate::mem::dirty;
use crate::mem::memory::{GuestMemory, BUDGET};
use crate::mem::mmu::Mmu;
use crate::mem::slot_table::{DirtyBitmap, SlotTable};
use crate::mem::slots::{self, Change, Slot, SlotError};
use crate::mem::walk::Cursor;
use crate::nospec::Nospec;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::uaccess::{UserPtr, UserSlice};

/// A change of slots that has been checked and prepared.
struct Plan {
    next: KBox<SlotTable>,
    /// The slot that is deleted or moved away.
    leaving: Option<Slot>,
    /// The slot is new, or new at its place.
    arrives: bool,
    /// Logging begins where pages are mapped writable already.
    protect: Option<GpaRange>,
}

impl GuestMemory {
    /// KVM_SET_USER_MEMORY_REGION (api.rst 4.35). `wanted.npages == 0` deletes.
    pub(crate) fn set_slot(&self, wanted: Slot) -> Result {
        let update = self.update.lock();
        self.make_room(&update, &wanted);
        let Some(plan) = self.plan(&wanted)? else {
            return Ok(());
        };
        // When the devices have followed, nothing else fails.
        if plan.arrives {
            match (&update.dma, &plan.leaving) {
                (Some(dma), Some(old)) => dma.relocate(old, &wanted)?,
                (Some(dma), None) => dma.add(&wanted)?,
                (None, _) => {}
            }
        }
        self.mmu.lock().leaving = plan.leaving;
        drop(self.slots.replace(plan.next));
        if let Some(range) = plan.leaving.as_ref().and_then(Slot::range) {
            self.unmap(range, true);
        }
        self.mmu.lock().leaving = None;
        if let (Some(dma), Some(old), false) = (&update.dma, &plan.leaving, plan.arrives) {
            dma.remove(old);
        }
        if plan.protect.is_some_and(|range| self.write_protect(range)) {
            self.flush();
        }
        Ok(())
    }

    /// What [`GuestMemory::set_slot`] has to do; `None`: nothing.
    fn plan(&self, wanted: &Slot) -> Result<Option<Plan>> {
        let current = self.slots.read();
        let change =
            slots::validate(&current.slots, wanted, &self.limits).map_err(|e| match e {
                SlotError::Overlap => EEXIST,
                _ => EINVAL,
            })?;
        if matches!(change, Change::None) {
            return Ok(None);
        }
        let old = slots::index_of(&current.slots, wanted.id);
        let old_slot = old.and_then(|i| current.slots.get(i)).copied();
        let mut next = current.copy_with_room()?;
        next.remove_id(wanted.id);
        let mut plan = Plan {
            next: KBox::new(next, GFP_KERNEL_ACCOUNT)?,
            leaving: old_slot.filter(|_| matches!(change, Change::Delete | Change::Move)),
            arrives: matches!(change, Change::Create | Change::Move),
            protect: None,
        };
        if matches!(change, Change::Delete) {
            return Ok(Some(plan));
        }
        let kept = old
            .and_then(|i| current.dirty.get(i))
            .and_then(Clone::clone);
        // Pages whose bits are set already are protected when the bits are cleared.
        let full = self.initially_set.load(Ordering::Relaxed);
        let dirty = match (wanted.is_logging(), kept) {
            (false, _) => None,
            (true, Some(log)) => Some(log),
            (true, None) => {
                let log = DirtyBitmap::new(wanted.npages)?;
                if full {
                    log.fill(wanted.npages);
                }
                Some(log)
            }
        };
        if dirty.is_some() && !full && matches!(change, Change::FlagsOnly) {
            plan.protect = wanted.range();
        }
        plan.next.insert(*wanted, dirty)?;
        Ok(Some(plan))
    }

    /// Runs `f` with the slots, which do not change meanwhile.
    pub(crate) fn with_slots<R>(&self, f: impl FnOnce(&[Slot]) -> R) -> R {
        let _update = self.update.lock();
        f(&self.slots.read().slots)
    }

    /// Returns whether writes go on until a flush. Nothing has been unlinked or freed that would have to wait for it.
    #[must_use]
    fn write_protect(&self, range: GpaRange) -> bool {
        let mut cursor = Cursor::new(range);
        let mut flush = false;
        loop {
            let done = {
                let mut mmu = self.mmu.lock();
                let Mmu { table, pool, .. } = &mut *mmu;
                table.write_protect_some(pool, &mut cursor, BUDGET)
            };
            flush |= cursor.take_flush();
            if done {
                return flush;
            }
            crate::linux::sched::cond_resched();
        }
    }

    /// Write-protects the pages of `slot` that are set in `bits`, word `w` of a bitmap. The bits are taken out of the
    /// log before: a write in between sets its bit again. As [`GuestMemory::write_protect`].
    #[must_use]
    fn protect_word(&self, slot: &Slot, w: u64, bits: u64) -> bool {
        let mut flush = false;
        for (page, n) in dirty::runs(w, bits) {
            let start = slot.gpa.wrapping_add(page.wrapping_mul(PAGE_SIZE));
            if let Some(range) = GpaRange::new(start, n.wrapping_mul(PAGE_SIZE)) {
                flush |= self.write_protect(range);
            }
        }
        flush
    }

    /// Runs `f`, which sets its argument when it has write-protected pages: all of them wait for one flush. User space
    /// looks at the pages when the ioctl has returned.
    fn flush_after(&self, f: impl FnOnce(&mut bool) -> Result) -> Result {
        let mut flush = false;
        let result = f(&mut flush);
        if flush {
            self.flush();
        }
        result
    }

    /// KVM_GET_DIRTY_LOG (api.rst 4.8): copies slot `id`'s bitmap to `user` and starts afresh.
    pub(crate) fn dirty_log(&self, id: u32, user: UserPtr) -> Result {
        let _update = self.update.lock();
        let slots = self.slots.read();
        let (slot, bitmap) = slots.log_of(id)?;
        let manual = self.manual_protect.load(Ordering::Relaxed);
        let mut out = UserSlice::new(user, bitmap.words.len() * 8).writer();
        self.flush_after(|flush| {
            for (w, word) in bitmap.words.iter().enumerate() {
                let mut bits = word.load(Ordering::Relaxed);
                if bits != 0 && !manual {
                    bits = word.swap(0, Ordering::SeqCst);
                    *flush |= self.protect_word(slot, w as u64, bits);
                }
                out.write(&bits)?;
            }
            Ok(())
        })
    }

    /// KVM_CLEAR_DIRTY_LOG (api.rst 4.117): forgets the pages named in `user`, a bitmap of pages `first` to `first +
    /// count`.
    pub(crate) fn clear_dirty_log(&self, id: u32, first: u64, count: u32, user: UserPtr) -> Result {
        if first % dirty::WORD_PAGES != 0 {
            return Err(EINVAL);
        }
        let _update = self.update.lock();
        let slots = self.slots.read();
        let (slot, bitmap) = slots.log_of(id)?;
        let range = dirty::clear_range(first, count, slot.npages).ok_or(EINVAL)?;
        let at = range.start / dirty::WORD_PAGES;
        let words = dirty::words(range.end.saturating_sub(range.start));
        let mut input = UserSlice::new(user, usize::try_from(words)?.saturating_mul(8)).reader();
        self.flush_after(|flush| {
            for w in at..at.saturating_add(words) {
                let mask: u64 = input.read()?;
                let Some(word) = bitmap.words.get_nospec(w as usize) else {
                    break;
                };
                if mask == 0 || word.load(Ordering::Relaxed) & mask == 0 {
                    continue;
                }
                // Bits beyond the slot's end are never set.
                let bits = word.fetch_and(!mask, Ordering::SeqCst) & mask;
                *flush |= self.protect_word(slot, w, bits);
            }
            Ok(())
        })
    }

    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
    pub(crate) fn set_manual_protect(&self, on: bool, initially_set: bool) {
        self.manual_protect.store(on, Ordering::Relaxed);
        self.initially_set.store(initially_set, Ordering::Relaxed);
    }
}
