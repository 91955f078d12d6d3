// SPDX-License-Identifier: GPL-2.0
//! What user space has said of the calls of a VM's guest: bitmaps and filter ([`smccc`]).

use crate::arm64::smccc::{self, Range, BITMAPS, BITMAP_BITS, BITMAP_RESET};
use crate::nospec::Nospec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_mutex, Mutex};

/// Ranges that a filter can have.
const MAX_RANGES: usize = 4096;

/// Of a VM.
#[pin_data]
pub(crate) struct Calls {
    bitmaps: [AtomicU64; BITMAPS],
    #[pin]
    filter: Mutex<KVec<Range>>,
}

impl Calls {
    /// All calls that there are.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            bitmaps: BITMAP_RESET.map(AtomicU64::new),
            filter <- new_mutex!(KVec::new()),
        })
    }

    /// Which optional calls there are.
    pub(crate) fn bitmaps(&self) -> [u64; BITMAPS] {
        self.bitmaps.each_ref().map(|b| b.load(Ordering::Relaxed))
    }

    /// One of them. EINVAL: calls that there are not; EBUSY: another one, after a vCPU has run.
    pub(crate) fn set_bitmap(&self, n: usize, value: u64, has_run: bool) -> Result {
        let bitmap = self.bitmaps.get_nospec(n).ok_or(ENOENT)?;
        if value & !BITMAP_BITS.get_nospec(n).ok_or(ENOENT)? != 0 {
            return Err(EINVAL);
        }
        if has_run && bitmap.load(Ordering::Relaxed) != value {
            return Err(EBUSY);
        }
        bitmap.store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Adds to the filter. EBUSY: a vCPU has run; EEXIST: some of the calls are filtered already, or cannot be; ENOSPC.
    pub(crate) fn add_filter(&self, range: Range, has_run: &AtomicBool) -> Result {
        let mut filter = self.filter.lock();
        if has_run.load(Ordering::Acquire) {
            return Err(EBUSY);
        }
        let at = smccc::place(&filter, &range).ok_or(EEXIST)?;
        if filter.len() >= MAX_RANGES {
            return Err(ENOSPC);
        }
        filter.reserve(1, GFP_KERNEL_ACCOUNT)?;
        filter.insert_within_capacity(at, range).map_err(|_| ENOMEM)
    }

    /// The filter, for a vCPU of a VM of which one has run.
    pub(crate) fn filter(&self) -> Result<KVec<Range>> {
        let filter = self.filter.lock();
        let mut copy = KVec::with_capacity(filter.len(), GFP_KERNEL_ACCOUNT)?;
        copy.extend_from_slice(&filter, GFP_KERNEL_ACCOUNT)?;
        Ok(copy)
    }
}
