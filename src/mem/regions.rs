// SPDX-License-Identifier: GPL-2.0
//! The ioctls on memory slots: KVM_SET_USER_MEMORY_REGION and the dirty logs (api.rst 4.35, 4.8, 4.117,
//! 4.129).
//!
//! Called by ioctls of the VM's file. Each takes `GuestMemory.update`, so they run one after the other.

use crate::linux::sched;
use crate::mem::addr::{Gpa, GpaRange, PAGE_SIZE};
use crate::mem::dirty::{self, Batch};
use crate::mem::memory::{GuestMemory, Update};
use crate::mem::removing::Removing;
use crate::mem::slot_table::{DirtyBitmap, Entry, SlotTable};
use crate::mem::slots::{self, Change, Slot, SlotError};
use crate::nospec::Nospec;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::rbtree::RBTreeNode;
use kernel::uaccess::{UserPtr, UserSlice};

/// A change of slots that has been checked and prepared.
struct Plan {
    next: KBox<SlotTable>,
    change: Change,
    /// The slot as it was, but for a new one.
    old: Option<Slot>,
    /// The new slot's number.
    number: Option<RBTreeNode<u32, Gpa>>,
    /// Logging begins where pages are mapped writable already.
    protect: Option<GpaRange>,
}

impl Plan {
    /// The slot that is deleted or moved away.
    fn leaving(&self) -> Option<Slot> {
        self.old
            .filter(|_| matches!(self.change, Change::Delete | Change::Move))
    }
}

impl Update {
    /// Whether there is none.
    fn has_no_slots(&self) -> bool {
        self.numbers.iter().next().is_none()
    }

    /// The slot with number `id` in `table`, the present version.
    fn entry<'a>(&self, table: &'a SlotTable, id: u32) -> Option<&'a Entry> {
        table.find(*self.numbers.get(&id)?)
    }

    /// The slot with number `id` and its log. ENOENT without one.
    fn log<'a>(&self, table: &'a SlotTable, id: u32) -> Result<(&'a Slot, &'a DirtyBitmap)> {
        let entry = self.entry(table, id).ok_or(ENOENT)?;
        Ok((&entry.slot, entry.bitmap().ok_or(ENOENT)?))
    }

    /// `wanted` is where it is to be: no allocation, cannot fail.
    fn note(&mut self, change: Change, wanted: &Slot, number: Option<RBTreeNode<u32, Gpa>>) {
        match (change, number) {
            (Change::Create, Some(number)) => {
                self.numbers.insert(number);
            }
            (Change::Delete, _) => {
                self.numbers.remove(&wanted.id);
            }
            (Change::Move, _) => {
                if let Some(gpa) = self.numbers.get_mut(&wanted.id) {
                    *gpa = wanted.gpa;
                }
            }
            _ => {}
        }
    }
}

impl GuestMemory {
    /// KVM_SET_USER_MEMORY_REGION (api.rst 4.35). `wanted.npages == 0` deletes.
    pub(crate) fn set_slot(&self, wanted: Slot) -> Result {
        let mut update = self.update.lock();
        // Devices reach pages that have been pinned, which brings all of them.
        if wanted.reports_missing()
            && !wanted.is_empty()
            && update.dma.as_ref().is_some_and(|d| d.is_used())
        {
            return Err(EBUSY);
        }
        let Some(plan) = self.plan(&update, &wanted)? else {
            return Ok(());
        };
        self.make_room(&update, &wanted);
        // When the devices have followed, nothing else fails.
        match (&update.dma, plan.change, &plan.old) {
            (Some(dma), Change::Create, _) => dma.add(&wanted)?,
            (Some(dma), Change::Move, Some(old)) => dma.relocate(old, &wanted)?,
            _ => {}
        }
        if plan.change != Change::FlagsOnly {
            self.reset.lose();
        }
        let leaving = plan.leaving();
        update.note(plan.change, &wanted, plan.number);
        if plan.change == Change::Create {
            // Whoever still reads the version before takes an access to the new slot for one that came earlier.
            self.slots.replace_later(plan.next);
            return Ok(());
        }
        if leaving.is_some() {
            self.set_leaving(leaving);
        }
        drop(self.slots.replace(plan.next));
        if let Some(range) = leaving.as_ref().and_then(Slot::range) {
            self.unmap(range, true);
            self.set_leaving(None);
        }
        if let (Some(dma), Change::Delete, Some(old)) = (&update.dma, plan.change, &leaving) {
            dma.remove(old);
        }
        if let Some(range) = plan.protect {
            self.removing().write_protect(range);
        }
        Ok(())
    }

    /// What [`GuestMemory::set_slot`] has to do; `None`: nothing.
    fn plan(&self, update: &Update, wanted: &Slot) -> Result<Option<Plan>> {
        let current = self.slots.read();
        let old = update.entry(&current, wanted.id);
        let old_slot = old.map(|e| e.slot);
        let taken = |range: &GpaRange| current.overlaps(range, wanted.id);
        let change = slots::validate(wanted, old_slot.as_ref(), &self.limits, taken).map_err(
            |e| match e {
                SlotError::Overlap => EEXIST,
                _ => EINVAL,
            },
        )?;
        // Pages whose bits are set already are protected when the bits are cleared.
        let full = self.initially_set.load(Ordering::Relaxed);
        let log = match old.and_then(|e| e.log.clone()) {
            _ if !wanted.is_logging() || change == Change::Delete => None,
            Some(log) => Some(log),
            None if !self.rings.have_bitmaps() => None,
            None => {
                let log = DirtyBitmap::new(wanted.npages)?;
                if full {
                    log.fill(wanted.npages);
                }
                Some(log)
            }
        };
        let full = full && log.is_some();
        let protects = wanted.is_logging() && !full && change == Change::FlagsOnly;
        let mut number = None;
        let next = match (change, &old_slot) {
            (Change::None, _) => return Ok(None),
            (Change::Create, _) => {
                number = Some(RBTreeNode::new(wanted.id, wanted.gpa, GFP_KERNEL_ACCOUNT)?);
                current.with(wanted, log)?
            }
            (Change::Delete, Some(old)) => current.without(old)?,
            (Change::Move, Some(old)) => current.without(old)?.with(wanted, log)?,
            (Change::FlagsOnly, Some(_)) => current.with_flags(wanted, log)?,
            // Not without a slot.
            (Change::Delete | Change::Move | Change::FlagsOnly, None) => return Err(EINVAL),
        };
        Ok(Some(Plan {
            next: KBox::new(next, GFP_KERNEL_ACCOUNT)?,
            change,
            old: old_slot,
            number,
            protect: wanted.range().filter(|_| protects),
        }))
    }

    /// Runs `f` with the slots, which do not change meanwhile.
    pub(crate) fn with_slots<R>(&self, f: impl FnOnce(&SlotTable) -> R) -> R {
        let _update = self.update.lock();
        f(&self.slots.read())
    }

    /// Write-protects the pages of `slot` that are set in `bits`, word `w` of a bitmap. The bits are taken out of the
    /// log before: a write in between sets its bit again. User space looks at the pages when the ioctl has returned,
    /// and `removing` has flushed by then, once for all of them.
    fn protect_word(removing: &mut Removing<'_>, slot: &Slot, w: u64, bits: u64) {
        for (page, n) in dirty::runs(w, bits) {
            let start = slot.gpa.wrapping_add(page.wrapping_mul(PAGE_SIZE));
            if let Some(range) = GpaRange::new(start, n.wrapping_mul(PAGE_SIZE)) {
                removing.write_protect(range);
            }
        }
    }

    /// KVM_RESET_DIRTY_RINGS (api.rst 4.129): frees the entries that user space has taken note of and protects their
    /// pages again. Gives their number. EINVAL: there are no rings.
    pub(crate) fn reset_rings(&self) -> Result<isize> {
        if !self.rings.exist() {
            return Err(EINVAL);
        }
        let update = self.update.lock();
        let slots = self.slots.read();
        let mut count: isize = 0;
        // The slot of the last batch: most entries follow others of the same.
        let mut last: Option<&Slot> = None;
        let mut removing = self.removing();
        let mut protect = |batch: &Batch| {
            if last.is_none_or(|s| s.id != batch.slot) {
                last = update.entry(&slots, batch.slot).map(|e| &e.slot);
            }
            if let Some(slot) = last {
                let bits = batch.within(slot.npages);
                Self::protect_word(&mut removing, slot, batch.word, bits);
            }
        };
        let mut batch = Batch::default();
        'all: for ring in self.rings.list.lock().iter() {
            if sched::signal_pending() {
                break;
            }
            sched::cond_resched();
            for (slot, page) in ring.take_all() {
                count = count.saturating_add(1);
                if let Some(full) = batch.add(slot, page) {
                    protect(&full);
                    if sched::signal_pending() {
                        break 'all;
                    }
                }
            }
        }
        protect(&batch);
        Ok(count)
    }

    /// KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP. EINVAL: there are no rings, or there are slots already.
    pub(crate) fn add_bitmaps(&self) -> Result {
        let update = self.update.lock();
        if !self.rings.exist() || !update.has_no_slots() {
            return Err(EINVAL);
        }
        self.rings.add_bitmaps();
        Ok(())
    }

    /// KVM_GET_DIRTY_LOG (api.rst 4.8): copies slot `id`'s bitmap to `user` and starts afresh.
    pub(crate) fn dirty_log(&self, id: u32, user: UserPtr) -> Result {
        let update = self.update.lock();
        let slots = self.slots.read();
        let (slot, bitmap) = update.log(&slots, id)?;
        let manual = self.manual_protect.load(Ordering::Relaxed);
        let mut out = UserSlice::new(user, bitmap.words.len() * 8).writer();
        let mut removing = self.removing();
        for (w, word) in bitmap.words.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            if bits != 0 && !manual {
                bits = word.swap(0, Ordering::SeqCst);
                Self::protect_word(&mut removing, slot, w as u64, bits);
            }
            out.write(&bits)?;
        }
        Ok(())
    }

    /// KVM_CLEAR_DIRTY_LOG (api.rst 4.117): forgets the pages named in `user`, a bitmap of pages `first` to `first +
    /// count`.
    pub(crate) fn clear_dirty_log(&self, id: u32, first: u64, count: u32, user: UserPtr) -> Result {
        if first % dirty::WORD_PAGES != 0 {
            return Err(EINVAL);
        }
        let update = self.update.lock();
        let slots = self.slots.read();
        let (slot, bitmap) = update.log(&slots, id)?;
        let range = dirty::clear_range(first, count, slot.npages).ok_or(EINVAL)?;
        let at = range.start / dirty::WORD_PAGES;
        let words = dirty::words(range.end.saturating_sub(range.start));
        let mut input = UserSlice::new(user, usize::try_from(words)?.saturating_mul(8)).reader();
        let mut removing = self.removing();
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
            Self::protect_word(&mut removing, slot, w, bits);
        }
        Ok(())
    }

    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
    pub(crate) fn set_manual_protect(&self, on: bool, initially_set: bool) {
        self.manual_protect.store(on, Ordering::Relaxed);
        self.initially_set.store(initially_set, Ordering::Relaxed);
    }
}
