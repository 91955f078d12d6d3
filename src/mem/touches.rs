// SPDX-License-Identifier: GPL-2.0
//! Which pages a guest touches first, and in which order (`RVMM_RECORD_TOUCHES`, uapi/rvmm.h).
//!
//! Faults that fill an empty entry of the nested table record the page, in a stay as well: two atomic operations.

use crate::mem::addr::{Gpa, PAGE_SHIFT};
use crate::nospec::Nospec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::SetOnce;

/// Most pages that a record may have room for: 128 MiB of it.
const MAX_ROOM: usize = 1 << 24;

/// Page numbers plus 1, in the order of touches; 0: not written yet.
struct Log {
    pages: KVVec<AtomicU64>,
    /// Touches, also those that found no room.
    count: AtomicU64,
}

/// A VM's record; it has one at most.
pub(crate) struct Touches {
    on: AtomicBool,
    log: SetOnce<Log>,
}

impl Touches {
    /// Nothing is recorded.
    pub(super) const fn new() -> Self {
        Self {
            on: AtomicBool::new(false),
            log: SetOnce::new(),
        }
    }

    /// Touches are being recorded: page by page, so that none hides behind a huge leaf.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Starts, with room for `room` pages. EINVAL: none, or too much. EEXIST: there was a record before.
    pub(super) fn start(&self, room: usize) -> Result {
        if room == 0 || room > MAX_ROOM {
            return Err(EINVAL);
        }
        if self.log.as_ref().is_some() {
            return Err(EEXIST);
        }
        let mut pages = KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..room {
            pages
                .push_within_capacity(AtomicU64::new(0))
                .map_err(|_| ENOMEM)?;
        }
        let count = AtomicU64::new(0);
        if !self.log.populate(Log { pages, count }) {
            return Err(EEXIST);
        }
        self.on.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Stops; the record stays.
    pub(super) fn stop(&self) {
        self.on.store(false, Ordering::Relaxed);
    }

    /// The page at `gpa` has been mapped, which it was not. Any context.
    #[inline]
    pub(super) fn record(&self, gpa: Gpa) {
        if self.is_on() {
            self.add(gpa);
        }
    }

    #[cold]
    fn add(&self, gpa: Gpa) {
        let Some(log) = self.log.as_ref() else { return };
        let at = log.count.fetch_add(1, Ordering::Relaxed);
        if let Some(page) = log.pages.get_nospec(at as usize) {
            page.store((gpa.0 >> PAGE_SHIFT).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// Hands `put` the page numbers from the touch numbered `first` on, `room` at most; how many, and how many touches
    /// there have been in all. ENODATA: there is no record.
    pub(crate) fn read(
        &self,
        first: u64,
        room: u64,
        mut put: impl FnMut(u64) -> Result,
    ) -> Result<(u64, u64)> {
        let log = self.log.as_ref().ok_or(ENODATA)?;
        let mut done = 0;
        while done < room {
            let at = usize::try_from(first.saturating_add(done))?;
            // Who has counted a touch writes its page a little later.
            match log.pages.get_nospec(at).map(|p| p.load(Ordering::Relaxed)) {
                None | Some(0) => break,
                Some(page) => put(page.wrapping_sub(1))?,
            }
            done += 1;
        }
        Ok((done, log.count.load(Ordering::Relaxed)))
    }
}
