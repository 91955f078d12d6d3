// SPDX-License-Identifier: GPL-2.0
//! The slots of a VM with their dirty bitmaps: versions that share structure.
//!
//! Readers hold one by its `VersionCell`; `GuestMemory.update` serialises those who publish the next.

use crate::mem::addr::Gpa;
use crate::mem::dirty;
use crate::mem::ring::Ring;
use crate::mem::slot_set::{self, SlotSet};
use crate::nospec::Nospec;
use core::sync::atomic::{fence, AtomicU64, Ordering};
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

    /// Whether the page counts as dirty.
    pub(super) fn has(&self, page: u64) -> bool {
        let (word, bit) = dirty::bit(page);
        let word = self.words.get_nospec(word as usize);
        word.is_some_and(|w| w.load(Ordering::Relaxed) & bit != 0)
    }

    pub(super) fn set(&self, page: u64) {
        let (word, bit) = dirty::bit(page);
        // A bit that is seen set must not have been taken before the write.
        fence(Ordering::SeqCst);
        if let Some(w) = self.words.get_nospec(word as usize) {
            if w.load(Ordering::Relaxed) & bit == 0 {
                w.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }
}

/// A slot, with its log if its writes are logged.
pub(crate) type Entry = slot_set::Entry<Option<Arc<DirtyBitmap>>>;

/// The slots of a VM and their logs.
pub(crate) type SlotTable = SlotSet<Option<Arc<DirtyBitmap>>>;

impl Entry {
    /// The log, if writes are logged.
    #[inline]
    pub(super) fn bitmap(&self) -> Option<&DirtyBitmap> {
        self.log.as_deref()
    }

    /// The page at `gpa`, which lies in the slot, has been written, by the vCPU with this ring if it has one.
    #[inline]
    pub(super) fn mark_dirty(&self, gpa: Gpa, ring: Option<&Ring>) {
        if !self.slot.is_logging() {
            return;
        }
        let Some(page) = self.slot.page_index(gpa) else {
            return;
        };
        if ring.is_some_and(|r| r.push(self.slot.id, page)) {
            return;
        }
        match self.bitmap() {
            Some(d) => d.set(page),
            None => {
                kernel::pr_warn_once!("a write found neither room in a dirty ring nor a bitmap\n")
            }
        }
    }
}
