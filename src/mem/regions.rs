// SPDX-License-Identifier: GPL-2.0
//! The ioctls on memory slots: KVM_SET_USER_MEMORY_REGION and the dirty logs (api.rst 4.35, 4.8, 4.117).
//!
//! Called by ioctls of the VM's file. Each takes `GuestMemory.update`, so they run one after the other.

use crate::assign::space::Space;
use crate::mem::addr::{Gpa, GpaRange, PAGE_SIZE};
use crate::mem::dirty;
use crate::mem::memory::{GuestMemory, Mmu, APIC_PAGE, BUDGET};
use crate::mem::slot_table::DirtyBitmap;
use crate::mem::slots::{self, Change, Slot, LOG_DIRTY_PAGES};
use crate::mem::walk::Cursor;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::uaccess::{UserPtr, UserSlice};

impl GuestMemory {
    /// KVM_SET_USER_MEMORY_REGION (api.rst 4.35). `wanted.npages == 0` deletes.
    pub(crate) fn set_slot(&self, wanted: Slot) -> Result {
        let mut update = self.update.lock();
        if wanted.contains(Gpa(APIC_PAGE)) {
            self.exclude_apic_locked();
        }
        let (next, leaving, created, protect) =
            {
                let current = self.slots.read();
                let change = slots::validate(&current.slots, &wanted, &self.limits)
                    .map_err(|e| if e.errno() == 17 { EEXIST } else { EINVAL })?;
                let old = current.slots.iter().position(|s| s.id == wanted.id);
                let old_slot = old.and_then(|i| current.slots.get(i)).copied();
                let mut next = current.copy_with_room()?;
                match change {
                    Change::None => return Ok(()),
                    Change::Delete => {
                        next.remove_id(wanted.id);
                        (next, old_slot, false, None)
                    }
                    Change::Create | Change::Move | Change::FlagsOnly => {
                        let kept = old
                            .and_then(|i| current.dirty.get(i))
                            .and_then(Clone::clone);
                        let starts = kept.is_none();
                        let dirty = match (wanted.flags & LOG_DIRTY_PAGES != 0, kept) {
                            (false, _) => None,
                            (true, Some(d)) => Some(d),
                            (true, None) => Some(DirtyBitmap::new(wanted.npages)?),
                        };
                        // Pages whose bits are set already are protected when the bits are cleared.
                        let full = self.initially_set.load(Ordering::Relaxed);
                        if let (true, Some(d), true) = (full, &dirty, starts) {
                            d.fill(wanted.npages);
                        }
                        let starts_logging =
                            dirty.is_some() && !full && matches!(change, Change::FlagsOnly);
                        next.remove_id(wanted.id);
                        next.insert(wanted, dirty)?;
                        let leaving = if matches!(change, Change::Move) {
                            old_slot
                        } else {
                            None
                        };
                        (
                            next,
                            leaving,
                            !matches!(change, Change::FlagsOnly),
                            if starts_logging { wanted.range() } else { None },
                        )
                    }
                }
            };
        let next = KBox::new(next, GFP_KERNEL_ACCOUNT)?;
        // From here on nothing else fails.
        if let (Some(dma), true) = ((*update).as_mut(), created) {
            match &leaving {
                Some(old) => dma.relocate(old, &wanted)?,
                None => dma.add(&wanted)?,
            }
        }
        self.mmu.lock().leaving = leaving;
        drop(self.slots.replace(next));
        if let Some(range) = leaving.as_ref().and_then(Slot::range) {
            self.unmap(range, true);
        }
        self.mmu.lock().leaving = None;
        if let (Some(dma), Some(old), false) = ((*update).as_mut(), &leaving, created) {
            dma.remove(old);
        }
        if let Some(range) = protect {
            self.write_protect(range);
        }
        Ok(())
    }

    /// Runs `f` with what assigned devices see of the memory and with the slots, which do not change meanwhile.
    pub(crate) fn with_dma<R>(&self, f: impl FnOnce(&mut Option<Space>, &[Slot]) -> R) -> R {
        let mut dma = self.update.lock();
        f(&mut dma, &self.slots.read().slots)
    }

    fn write_protect(&self, range: GpaRange) {
        let mut cursor = Cursor::new(range);
        loop {
            let done = {
                let mut mmu = self.mmu.lock();
                let Mmu { table, pool, .. } = &mut *mmu;
                let done = table.write_protect_some(pool, &mut cursor, BUDGET);
                if cursor.take_flush() {
                    self.flush();
                }
                pool.release();
                done
            };
            if done {
                return;
            }
            crate::linux::sched::cond_resched();
        }
    }

    /// KVM_GET_DIRTY_LOG (api.rst 4.8): copies slot `id`'s bitmap to `user` and starts afresh.
    pub(crate) fn dirty_log(&self, id: u32, user: UserPtr) -> Result {
        let _update = self.update.lock();
        let slots = self.slots.read();
        let i = slots.slots.iter().position(|s| s.id == id).ok_or(ENOENT)?;
        let slot = slots.slots.get(i).ok_or(ENOENT)?;
        let bitmap = slots.dirty.get(i).and_then(Option::as_ref).ok_or(ENOENT)?;
        let manual = self.manual_protect.load(Ordering::Relaxed);
        let mut out = UserSlice::new(user, bitmap.words.len() * 8).writer();
        for (w, word) in bitmap.words.iter().enumerate() {
            let bits = if word.load(Ordering::Relaxed) == 0 {
                0
            } else if manual {
                word.load(Ordering::Relaxed)
            } else {
                // The pages are write-protected after the bits are taken: a write in between sets its bit again.
                let bits = word.swap(0, Ordering::SeqCst);
                let first = slot
                    .gpa
                    .0
                    .wrapping_add((w as u64).wrapping_mul(64 * PAGE_SIZE));
                let mut rest = bits;
                while rest != 0 {
                    let n = u64::from(rest.trailing_zeros());
                    let run = u64::from((rest >> n).trailing_ones());
                    if let Some(r) =
                        GpaRange::new(Gpa(first.wrapping_add(n * PAGE_SIZE)), run * PAGE_SIZE)
                    {
                        self.write_protect(r);
                    }
                    rest &= if n + run >= 64 {
                        0
                    } else {
                        u64::MAX << (n + run)
                    };
                }
                bits
            };
            out.write(&bits)?;
        }
        Ok(())
    }

    /// KVM_CLEAR_DIRTY_LOG (api.rst 4.117): forgets the pages named in `user`, a bitmap of pages `first` to `first + count`.
    pub(crate) fn clear_dirty_log(&self, id: u32, first: u64, count: u32, user: UserPtr) -> Result {
        if first % dirty::WORD_PAGES != 0 {
            return Err(EINVAL);
        }
        let _update = self.update.lock();
        let slots = self.slots.read();
        let i = slots.slots.iter().position(|s| s.id == id).ok_or(ENOENT)?;
        let slot = slots.slots.get(i).ok_or(ENOENT)?;
        let bitmap = slots.dirty.get(i).and_then(Option::as_ref).ok_or(ENOENT)?;
        let range = dirty::clear_range(first, count, slot.npages).ok_or(EINVAL)?;
        let at = range.start / dirty::WORD_PAGES;
        let words = dirty::words(range.end.saturating_sub(range.start));
        let mut input = UserSlice::new(user, usize::try_from(words)?.saturating_mul(8)).reader();
        for w in at..at.saturating_add(words) {
            let mask: u64 = input.read()?;
            let Some(word) = usize::try_from(w).ok().and_then(|i| bitmap.words.get(i)) else {
                break;
            };
            if mask == 0 || word.load(Ordering::Relaxed) & mask == 0 {
                continue;
            }
            // As in `dirty_log`. Bits beyond the slot's end are never set.
            let bits = word.fetch_and(!mask, Ordering::SeqCst) & mask;
            for (page, n) in dirty::runs(w, bits) {
                let start = slot.gpa.wrapping_add(page.wrapping_mul(PAGE_SIZE));
                if let Some(r) = GpaRange::new(start, n.wrapping_mul(PAGE_SIZE)) {
                    self.write_protect(r);
                }
            }
        }
        Ok(())
    }

    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
    pub(crate) fn set_manual_protect(&self, on: bool, initially_set: bool) {
        self.manual_protect.store(on, Ordering::Relaxed);
        self.initially_set.store(initially_set, Ordering::Relaxed);
    }
}
