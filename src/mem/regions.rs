// SPDX-License-Identifier: GPL-2.0
//! The ioctls on memory slots: KVM_SET_USER_MEMORY_REGION and the dirty logs (api.rst 4.35, 4.8, 4.117,
//! 4.129).
//!
//! Called by ioctls of the VM's file. Each takes `GuestMemory.update`, so they run one after the other.

use crate::linux::hrtimer::ktime_get_ns;
use crate::linux::version_cell::Version;
use crate::linux::{gup, sched};
use crate::mem::addr::{Gpa, GpaRange, Level, PAGE_SIZE};
use crate::mem::dirty::{self, Batch};
use crate::mem::memory::{GuestMemory, Update};
use crate::mem::mmu;
use crate::mem::removing::Removing;
use crate::mem::slot_table::{DirtyBitmap, Entry, SlotTable};
use crate::mem::slots::{self, Change, Slot, SlotError};
use crate::nospec::Nospec;
use crate::params;
use core::sync::atomic::Ordering;
use kernel::mm::Mm;
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
    /// Logging ends.
    ends: bool,
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

    /// Whether a device may be writing to the slot now.
    fn is_written_by_devices(&self, slot: &Slot) -> bool {
        self.dma.as_ref().is_some_and(|dma| dma.writes(slot))
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

/// What a reset of the dirty rings protects in one address space.
struct Protecting<'a> {
    memory: &'a GuestMemory,
    update: &'a Update,
    // In this order: the flush comes before the slots may go.
    removing: Removing<'a>,
    slots: Version<'a, SlotTable>,
    /// The slot of the last batch: most entries follow others of the same.
    last: Option<Slot>,
}

impl<'a> Protecting<'a> {
    fn new(memory: &'a GuestMemory, update: &'a Update) -> Self {
        Self {
            memory,
            update,
            removing: memory.removing(),
            slots: memory.slots.read(),
            last: None,
        }
    }

    fn protect(&mut self, batch: &Batch) {
        if self.last.is_none_or(|s| s.id != batch.slot) {
            let entry = self.update.entry(&self.slots, batch.slot);
            self.last = entry.map(|e| e.slot);
        }
        if let Some(slot) = &self.last {
            let bits = batch.within(slot.npages);
            self.memory
                .protect_word(&mut self.removing, slot, batch.word, bits);
        }
    }
}

impl GuestMemory {
    /// KVM_SET_USER_MEMORY_REGION (api.rst 4.35). `wanted.npages == 0` deletes. `mm` is the VM's.
    pub(crate) fn set_slot(&self, mm: &Mm, wanted: Slot) -> Result {
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
        // Before the slot is there to be written.
        self.count_logged(&mut update, &plan, &wanted);
        update.note(plan.change, &wanted, plan.number);
        if matches!(plan.change, Change::Create | Change::Move) {
            self.invalidations.slot_comes();
        }
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
        if plan.change == Change::Move && self.logs_writes() {
            // What processors have logged by the old addresses finds no slot.
            let slots = self.slots.read();
            if let Some(log) = update.entry(&slots, wanted.id).and_then(Entry::bitmap) {
                log.fill(wanted.npages);
            }
        }
        if let (Some(dma), Change::Delete, Some(old)) = (&update.dma, plan.change, &leaving) {
            dma.remove(old);
        }
        if let Some(range) = plan.protect {
            self.begin_log(&mut self.removing(), range);
        }
        if plan.ends {
            self.join(mm, &wanted);
        }
        if update.logged == 0 {
            // vCPUs follow when they come by.
            self.processor_log.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A log begins: as [`Removing::protect`], but without write rights and in small leaves if huge ones are to be
    /// split ahead of writes.
    fn begin_log(&self, removing: &mut Removing<'_>, range: GpaRange) {
        if self.largest != Level::L1 && params::eager_page_split() {
            removing.split(range);
        } else {
            removing.protect(range);
        }
    }

    /// Huge leaves may come back to `slot`, whose writes are not logged or saved any more: where the host has huge
    /// pages the tables of small leaves go. Nothing happens while writes are logged.
    pub(super) fn join(&self, mm: &Mm, slot: &Slot) {
        let Some(range) = slot.range().filter(|_| self.largest != Level::L1) else {
            return;
        };
        self.removing()
            .join(range, |gpa, level| self.may_be_leaf(mm, slot, gpa, level));
    }

    /// Whether a leaf of `level` could map what begins at `gpa`. The host may change its mind at any time: then the
    /// next access finds small pages, or the leaf goes again.
    fn may_be_leaf(&self, mm: &Mm, slot: &Slot, gpa: Gpa, level: Level) -> bool {
        level <= self.largest
            && level <= slot.max_level(gpa)
            && slot
                .hva_of(gpa)
                .and_then(|hva| usize::try_from(hva.0).ok())
                .is_some_and(|hva| level <= mmu::level(gup::host_mapping_level(mm, hva)))
    }

    /// Lets some of the areas that are mapped in parts be huge leaves for data again, if that is due: code may not run
    /// there any more. `mm` is the VM's, in which the caller runs. Sleeps.
    #[inline]
    pub(crate) fn recover_parts(&self, mm: &Mm) {
        if self.parts.any() && !self.reset.is_armed() {
            self.recover_due(mm);
        }
    }

    #[cold]
    fn recover_due(&self, mm: &Mm) {
        let (ratio, period) = params::nx_huge_pages_recovery();
        let Some(mut round) = self.parts.begin(ktime_get_ns(), ratio, period) else {
            return;
        };
        let slots = self.slots.read();
        let mut removing = self.removing();
        let (from, end) = (round.from(), Gpa(self.limits.gpa_end));
        for (start, end) in [(from, end), (Gpa(0), from)] {
            let Some(range) = GpaRange::between(start, end) else {
                continue;
            };
            removing.join(range, |gpa, level| {
                let entry = slots.find(gpa).filter(|_| level == Level::L2);
                entry.is_some_and(|e| round.looks(gpa) && self.may_be_leaf(mm, &e.slot, gpa, level))
                    && round.meets(gpa)
            });
        }
        drop(removing);
        self.parts.end(&round);
    }

    /// `plan` is about to be done: counts the slots whose writes are logged. With the first one has the processor log
    /// the writes of vCPUs, if it can, from before the first dirty bit of theirs is cleared: a write that sets a dirty
    /// bit while nothing is logged would hide all that follow. A vCPU looks after it has seen the new generation
    /// ([`GuestMemory::logs_writes`]).
    fn count_logged(&self, update: &mut Update, plan: &Plan, wanted: &Slot) {
        let logs = |slot: &Slot| u32::from(slot.is_logging() && !slot.is_empty());
        let before = plan.old.as_ref().map_or(0, logs);
        let others = update.logged.wrapping_sub(before);
        update.logged = others.wrapping_add(logs(wanted));
        if update.logged != 0 && self.processor_logs && !self.logs_writes() {
            self.processor_log.store(true, Ordering::SeqCst);
            self.flush();
        }
    }

    /// What vCPUs have written so far is in the logs when this returns: what their processors have logged goes there at
    /// the end of each stay.
    fn complete_log(&self) {
        if self.logs_writes() {
            self.vcpus.stop_running();
        }
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
        let was_logging = old_slot.is_some_and(|old| old.is_logging());
        let toggles = change == Change::FlagsOnly && was_logging != wanted.is_logging();
        // What may not be written is mapped for reads only.
        let protects = toggles && !was_logging && !full && !wanted.is_readonly();
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
            ends: toggles && was_logging,
        }))
    }

    /// Runs `detach`, after which a device does not reach the memory any more: what it has written is in the logs.
    pub(crate) fn detach_device(&self, detach: impl FnOnce()) {
        let update = self.update.lock();
        let slots = self.slots.read();
        // Before or after is the same: nobody takes a bit meanwhile.
        slots.each(|slot| {
            let log = slots.find(slot.gpa).and_then(Entry::bitmap);
            if let Some(log) = log.filter(|_| update.is_written_by_devices(slot)) {
                log.fill(slot.npages);
            }
        });
        detach();
    }

    /// Runs `f` with the slots, which do not change meanwhile.
    pub(crate) fn with_slots<R>(&self, f: impl FnOnce(&SlotTable) -> R) -> R {
        let _update = self.update.lock();
        f(&self.slots.read())
    }

    /// Protects the pages of `slot` that are set in `bits`, word `w` of a bitmap. The bits are taken out of the log
    /// before: a write in between sets its bit again. User space looks at the pages when the ioctl has returned,
    /// and `removing` has flushed by then, once for all of them.
    fn protect_word(&self, removing: &mut Removing<'_>, slot: &Slot, w: u64, bits: u64) {
        let first = bits.trailing_zeros();
        let count = u64::BITS
            .saturating_sub(bits.leading_zeros())
            .saturating_sub(first);
        // Where a log begins with all pages set their huge leaves are still writable.
        if !self.initially_set.load(Ordering::Relaxed) {
            let page = w.wrapping_mul(dirty::WORD_PAGES).wrapping_add(first.into());
            let start = slot.gpa.wrapping_add(page.wrapping_mul(PAGE_SIZE));
            if let Some(range) = GpaRange::new(start, u64::from(count).wrapping_mul(PAGE_SIZE)) {
                removing.protect_pages(range, bits.wrapping_shr(first));
            }
            return;
        }
        for (page, n) in dirty::runs(w, bits) {
            let start = slot.gpa.wrapping_add(page.wrapping_mul(PAGE_SIZE));
            if let Some(range) = GpaRange::new(start, n.wrapping_mul(PAGE_SIZE)) {
                self.begin_log(removing, range);
            }
        }
    }

    /// KVM_RESET_DIRTY_RINGS (api.rst 4.129): frees the entries that user space has taken note of and protects their
    /// pages again, in this address space and in `second`, the VM's other one, if it has one. Gives their number.
    /// EINVAL: there are no rings.
    pub(crate) fn reset_rings(&self, second: Option<&Self>) -> Result<isize> {
        if !self.rings.exist() {
            return Err(EINVAL);
        }
        // In this order everywhere.
        let first = self.update.lock();
        let other = second.map(|m| (m, m.update.lock()));
        let mut first = Protecting::new(self, &first);
        let mut other = other.as_ref().map(|(m, update)| Protecting::new(m, update));
        let mut count: isize = 0;
        let mut protect = |batch: &Batch| match batch.slot >> 16 {
            0 => first.protect(batch),
            _ => other.iter_mut().for_each(|o| o.protect(batch)),
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

    /// KVM_CAP_DIRTY_LOG_RING: as [`Rings::enable`]; the reset point, which takes bitmaps, is void. EBUSY: there are
    /// devices.
    ///
    /// [`Rings::enable`]: crate::mem::ring::Rings::enable
    pub(crate) fn enable_rings(&self, bytes: u64, has_vcpus: bool) -> Result {
        let update = self.update.lock();
        if update.dma.as_ref().is_some_and(|d| d.is_used()) {
            return Err(EBUSY);
        }
        self.rings.enable(bytes, self.ring_reserve(), has_vcpus)?;
        self.reset.lose();
        Ok(())
    }

    /// KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP; `second` as in [`GuestMemory::reset_rings`]. EINVAL: there are no rings, or
    /// there are slots already.
    pub(crate) fn add_bitmaps(&self, second: Option<&Self>) -> Result {
        let first = self.update.lock();
        let other = second.map(|m| m.update.lock());
        let empty = first.has_no_slots() && other.as_ref().is_none_or(|o| o.has_no_slots());
        if !self.rings.exist() || !empty {
            return Err(EINVAL);
        }
        self.rings.add_bitmaps();
        Ok(())
    }

    /// KVM_GET_DIRTY_LOG (api.rst 4.8): copies slot `id`'s bitmap to `user` and starts afresh. Where devices write,
    /// they may have written every page.
    pub(crate) fn dirty_log(&self, id: u32, user: UserPtr) -> Result {
        let update = self.update.lock();
        let slots = self.slots.read();
        let (slot, bitmap) = update.log(&slots, id)?;
        let manual = self.manual_protect.load(Ordering::Relaxed);
        let devices = update.is_written_by_devices(slot);
        self.complete_log();
        let mut out = UserSlice::new(user, bitmap.words.len() * 8).writer();
        let mut removing = self.removing();
        for (word, (w, all)) in bitmap.words.iter().zip(dirty::masks(0..slot.npages)) {
            let mut bits = word.load(Ordering::Relaxed);
            if bits != 0 && !manual {
                bits = word.swap(0, Ordering::SeqCst);
                self.protect_word(&mut removing, slot, w, bits);
            }
            // Nothing is protected from devices: the next log has the pages again.
            if devices {
                bits |= all;
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
            self.protect_word(&mut removing, slot, w, bits);
        }
        Ok(())
    }

    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
    pub(crate) fn set_manual_protect(&self, on: bool, initially_set: bool) {
        self.manual_protect.store(on, Ordering::Relaxed);
        self.initially_set.store(initially_set, Ordering::Relaxed);
    }
}
