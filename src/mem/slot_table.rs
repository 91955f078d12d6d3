// SPDX-License-Identifier: GPL-2.0
//! The slots of a VM with their dirty bitmaps, as one value that is replaced as a whole.
//!
//! Readers hold it under SRCU; `GuestMemory.update` serialises those who publish a new one.

use crate::mem::addr::Gpa;
use crate::mem::dirty;
use crate::mem::slots::{self, ByHva, Slot};
use crate::nospec::Nospec;
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;

/// One bit per page of a slot.
pub(crate) struct DirtyBitmap {
    pub(super) words: KVVec<AtomicU64>,
}

impl DirtyBitmap {
    pub(super) fn new(npages: u64) -> Result<Arc<Self>> {
        let n = usize::try_from(dirty::words(npages))?;
        let mut words = KVVec::with_capacity(n, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..n {
            words
                .push_within_capacity(AtomicU64::new(0))
                .map_err(|_| ENOMEM)?;
        }
        Ok(Arc::new(Self { words }, GFP_KERNEL_ACCOUNT)?)
    }

    /// All pages dirty.
    pub(super) fn fill(&self, npages: u64) {
        for (w, mask) in dirty::masks(0..npages) {
            if let Some(word) = self.words.get_nospec(w as usize) {
                word.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn set(&self, page: u64) {
        let (word, bit) = dirty::bit(page);
        if let Some(w) = self.words.get_nospec(word as usize) {
            if w.load(Ordering::Relaxed) & bit == 0 {
                w.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }
}

/// The slots, sorted by guest-physical address and by user address.
pub(crate) struct SlotTable {
    pub(super) slots: KVVec<Slot>,
    /// The same by user address.
    pub(super) by_hva: KVVec<ByHva>,
    /// Same index as `slots`; none at all while no slot is logged.
    pub(super) dirty: KVVec<Option<Arc<DirtyBitmap>>>,
}

impl SlotTable {
    pub(super) const fn empty() -> Self {
        Self {
            slots: KVVec::new(),
            by_hva: KVVec::new(),
            dirty: KVVec::new(),
        }
    }

    pub(super) fn copy_with_room(&self) -> Result<Self> {
        let mut slots = KVVec::with_capacity(self.slots.len() + 1, GFP_KERNEL_ACCOUNT)?;
        slots.extend_from_slice(&self.slots, GFP_KERNEL_ACCOUNT)?;
        let mut by_hva = KVVec::with_capacity(self.slots.len() + 1, GFP_KERNEL_ACCOUNT)?;
        by_hva.extend_from_slice(&self.by_hva, GFP_KERNEL_ACCOUNT)?;
        let mut table = Self {
            slots,
            by_hva,
            dirty: KVVec::new(),
        };
        if !self.dirty.is_empty() {
            table.make_logs(self.dirty.iter().cloned())?;
        }
        Ok(table)
    }

    /// Fills `dirty`, with room for one more.
    fn make_logs(&mut self, logs: impl Iterator<Item = Option<Arc<DirtyBitmap>>>) -> Result {
        self.dirty
            .reserve(self.slots.len() + 1, GFP_KERNEL_ACCOUNT)?;
        for log in logs {
            self.dirty.push_within_capacity(log).map_err(|_| ENOMEM)?;
        }
        Ok(())
    }

    pub(super) fn remove_id(&mut self, id: u32) {
        if let Some(i) = slots::index_of(&self.slots, id) {
            let _ = self.slots.remove(i);
            let _ = self.dirty.remove(i);
        }
        if let Some(i) = ByHva::index_of(&self.by_hva, id) {
            let _ = self.by_hva.remove(i);
            ByHva::settle(&mut self.by_hva);
        }
    }

    /// Inserts in order; there is room.
    pub(super) fn insert(&mut self, slot: Slot, dirty: Option<Arc<DirtyBitmap>>) -> Result {
        if self.dirty.is_empty() && dirty.is_some() {
            self.make_logs((0..self.slots.len()).map(|_| None))?;
        }
        let at = slots::insert_position(&self.slots, slot.gpa);
        if dirty.is_some() || !self.dirty.is_empty() {
            self.dirty
                .insert_within_capacity(at, dirty)
                .map_err(|_| ENOMEM)?;
        }
        let (by_hva, entry) = ByHva::new(&self.by_hva, slot);
        self.by_hva
            .insert_within_capacity(by_hva, entry)
            .map_err(|_| ENOMEM)?;
        ByHva::settle(&mut self.by_hva);
        self.slots
            .insert_within_capacity(at, slot)
            .map_err(|_| ENOMEM)
    }

    pub(super) fn find(&self, gpa: Gpa) -> Option<(usize, &Slot)> {
        let i = slots::find_index(&self.slots, gpa)?;
        Some((i, self.slots.get(i)?))
    }

    pub(super) fn mark_dirty(&self, index: usize, slot: &Slot, gpa: Gpa) {
        if let (Some(d), Some(page)) = (self.bitmap(index), slot.page_index(gpa)) {
            d.set(page);
        }
    }

    /// The log of the slot at `index`, if its writes are logged.
    #[inline]
    pub(super) fn bitmap(&self, index: usize) -> Option<&DirtyBitmap> {
        self.dirty.get(index)?.as_deref()
    }

    /// The slot with number `id` and its log. ENOENT without one.
    pub(super) fn log_of(&self, id: u32) -> Result<(&Slot, &DirtyBitmap)> {
        let i = slots::index_of(&self.slots, id).ok_or(ENOENT)?;
        let slot = self.slots.get(i).ok_or(ENOENT)?;
        Ok((slot, self.bitmap(i).ok_or(ENOENT)?))
    }
}
