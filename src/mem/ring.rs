// SPDX-License-Identifier: GPL-2.0
//! Dirty rings: each vCPU's list of the pages that it has written, in memory that user space maps (api.rst 8.29).
//!
//! An entry goes around: the vCPU writes it and marks it dirty, user space reads it and marks it for a reset,
//! KVM_RESET_DIRTY_RINGS protects its page again and frees it.
//!
//! The vCPU's thread alone calls [`Ring::push`], under the vCPU's mutex, in a stay and outside; KVM_RESET_DIRTY_RINGS
//! alone takes entries, under `GuestMemory.update`. User space can write any byte of a ring at any time: how far the
//! two have come is counted outside of it, and what an entry says is checked against the slots when it is taken.

use crate::abi::uapi::k;
use crate::linux::mmap::{Further, PageList, Shared};
use crate::mem::dirty::{self, RingSize};
use crate::mem::ports::RingFull;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{fence, AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::{new_mutex, Arc, Mutex};

const _: () = {
    assert!(size_of::<k::kvm_dirty_gfn>() as u64 == dirty::RING_ENTRY);
    assert!(offset_of!(k::kvm_dirty_gfn, flags) == 0 && offset_of!(k::kvm_dirty_gfn, slot) == 4);
    assert!(offset_of!(k::kvm_dirty_gfn, offset) == 8);
};

/// `flags` of an entry: its page is dirty (KVM_DIRTY_GFN_F_DIRTY).
const DIRTY: u32 = 1 << 0;
/// User space has taken note of it (KVM_DIRTY_GFN_F_RESET).
const RESET: u32 = 1 << 1;
const _: () = assert!(k::KVM_DIRTY_GFN_F_MASK == DIRTY | RESET);

/// One vCPU's ring.
pub(crate) struct Ring {
    entries: Arc<PageList>,
    /// Number of entries, a power of two.
    size: u32,
    /// So many entries in use make the ring count as full.
    soft_limit: u32,
    /// Entries pushed, modulo 2^32.
    pushed: AtomicU32,
    /// Entries taken, modulo 2^32: never ahead of `pushed`.
    taken: AtomicU32,
    /// The last entry pushed.
    last: (AtomicU32, AtomicU64),
    /// Who is told when the ring counts as full.
    owner: Arc<dyn RingFull>,
}

impl Ring {
    /// Where entry number `n` is.
    #[inline]
    fn at(&self, n: u32) -> usize {
        (n & self.size.wrapping_sub(1)) as usize * size_of::<k::kvm_dirty_gfn>()
    }

    /// Entries in use.
    #[inline]
    fn used(&self) -> u32 {
        self.pushed
            .load(Ordering::Acquire)
            .wrapping_sub(self.taken.load(Ordering::Acquire))
    }

    /// Whether the vCPU must not go on before user space has emptied the ring.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.used() >= self.soft_limit
    }

    /// The vCPU has written page `page` of slot `slot`. False if there is no room at all. Any context.
    #[inline(never)]
    pub(super) fn push(&self, slot: u32, page: u64) -> bool {
        // The write comes before the look at what has been taken: who takes the last entry after that look, in order to
        // read the page, finds the write there.
        fence(Ordering::SeqCst);
        let used = self.used();
        let last = (&self.last.0, &self.last.1);
        let again =
            last.0.load(Ordering::Relaxed) == slot && last.1.load(Ordering::Relaxed) == page;
        if used != 0 && again {
            return true;
        }
        if used >= self.size {
            return false;
        }
        last.0.store(slot, Ordering::Relaxed);
        last.1.store(page, Ordering::Relaxed);
        let n = self.pushed.load(Ordering::Relaxed);
        let at = self.at(n);
        let put = || -> Result {
            self.entries.write(at + 4, slot)?;
            self.entries.write(at + 8, page)?;
            // First, or a reset would pass over what user space has taken note of already.
            self.pushed.store(n.wrapping_add(1), Ordering::Release);
            // User space reads the flags before the rest.
            fence(Ordering::Release);
            self.entries.write(at, DIRTY)
        };
        if put().is_err() {
            return false;
        }
        if self.is_full() {
            self.owner.ring_full();
        }
        true
    }

    /// The oldest entry, as slot and page, if user space has taken note of it. It is free then.
    fn take(&self) -> Option<(u32, u64)> {
        let n = self.taken.load(Ordering::Relaxed);
        if n == self.pushed.load(Ordering::Acquire) {
            return None;
        }
        let at = self.at(n);
        let flags: u32 = self.entries.read(at).ok()?;
        if flags & RESET == 0 {
            return None;
        }
        fence(Ordering::Acquire);
        let slot = self.entries.read(at + 4).ok()?;
        let page = self.entries.read(at + 8).ok()?;
        self.entries.write(at, 0u32).ok()?;
        // Only now the vCPU may use it again.
        self.taken.store(n.wrapping_add(1), Ordering::SeqCst);
        Some((slot, page))
    }

    /// Takes entries that user space has taken note of: no more than the ring has, while the vCPU goes on.
    pub(super) fn take_all(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        (0..self.size).map_while(|_| self.take())
    }

    /// The entries, as user space maps them.
    pub(crate) fn pages(&self) -> Further {
        Further {
            first: k::KVM_DIRTY_LOG_PAGE_OFFSET as usize,
            pages: self.entries.clone(),
        }
    }
}

/// The rings of a VM.
#[pin_data]
pub(crate) struct Rings {
    /// Entries of each vCPU's ring; 0: there are bitmaps instead.
    size: AtomicU32,
    /// Of these the ones that are kept free.
    reserve: AtomicU32,
    /// There are bitmaps too, for what no vCPU writes (KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP).
    with_bitmap: AtomicBool,
    /// Those of all vCPUs there have been.
    #[pin]
    pub(super) list: Mutex<KVec<Arc<Ring>>>,
}

impl Rings {
    /// None.
    pub(super) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            size: AtomicU32::new(0),
            reserve: AtomicU32::new(0),
            with_bitmap: AtomicBool::new(false),
            list <- new_mutex!(KVec::new()),
        })
    }

    /// Whether vCPUs have rings.
    #[inline]
    pub(crate) fn exist(&self) -> bool {
        self.size.load(Ordering::Acquire) != 0
    }

    /// Whether slots have bitmaps.
    #[inline]
    pub(crate) fn have_bitmaps(&self) -> bool {
        !self.exist() || self.with_bitmap.load(Ordering::Relaxed)
    }

    /// KVM_CAP_DIRTY_LOG_RING: vCPUs get rings of `bytes`, of which `reserve` entries are kept free. The caller
    /// excludes the creation of vCPUs. EINVAL: not a power of two, too small, set before, or there are vCPUs. E2BIG.
    pub(crate) fn enable(&self, bytes: u64, reserve: u32, has_vcpus: bool) -> Result {
        let size = dirty::ring_entries(bytes, reserve).map_err(|e| match e {
            RingSize::Wrong => EINVAL,
            RingSize::TooLarge => E2BIG,
        })?;
        if self.exist() || has_vcpus {
            return Err(EINVAL);
        }
        self.reserve.store(reserve, Ordering::Relaxed);
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    /// Slots get bitmaps too from now on.
    pub(super) fn add_bitmaps(&self) {
        self.with_bitmap.store(true, Ordering::Relaxed);
    }

    /// The ring of a new vCPU, if vCPUs have rings. `owner` is told when it counts as full.
    pub(crate) fn create(&self, owner: Arc<dyn RingFull>) -> Result<Option<Arc<Ring>>> {
        let size = self.size.load(Ordering::Acquire);
        if size == 0 {
            return Ok(None);
        }
        let bytes = size as usize * size_of::<k::kvm_dirty_gfn>();
        let entries = PageList::new(bytes / PAGE_SIZE)?;
        let ring = Arc::new(
            Ring {
                entries: Arc::new(entries, GFP_KERNEL_ACCOUNT)?,
                size,
                soft_limit: size.saturating_sub(self.reserve.load(Ordering::Relaxed)),
                pushed: AtomicU32::new(0),
                taken: AtomicU32::new(0),
                last: (AtomicU32::new(0), AtomicU64::new(0)),
                owner,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        Ok(Some(ring))
    }

    /// The vCPU of `ring` is there: the ring takes part in resets from now on. ENOMEM.
    pub(crate) fn add(&self, ring: Arc<Ring>) -> Result {
        Ok(self.list.lock().push(ring, GFP_KERNEL_ACCOUNT)?)
    }
}
