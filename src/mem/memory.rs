// SPDX-License-Identifier: GPL-2.0
//! Guest memory of one VM: memory slots, nested page tables, and the host's changes underneath them.
//!
//! Nothing is pinned. A nested fault takes the page that the host's page tables hold at this moment, and the MMU
//! notifier takes the translation away before the host changes its mind (munmap, mprotect, COW, swap, KSM, migration).
//!
//! # Ordering
//!
//! A fault reads `invalidations`, looks the page up without a lock, then takes `mmu` and maps only if no invalidation
//! of that address is under way and none has ended since. An invalidation counts itself in and unmaps under the same
//! lock. So either the fault sees the invalidation and retries, or the invalidation sees the mapping and removes it.
//!
//! Translations are flushed before `mmu` is released: whoever finds a page unmapped may rely on no CPU using it.
//!
//! A slot change publishes the new table, waits for every reader of the old one (a fault that still maps from it), and
//! only then unmaps. When it returns nothing uses the old slot. Until then an invalidation, which looks into the new
//! table, has to know the slot that goes: its pages are still mapped. `Mmu::leaving` names it from before the
//! publication to after the unmapping, and an invalidation looks there after it has looked into the table.
//!
//! # Lock order
//!
//! `update` (mutex) > SRCU read section > `mmu` (spin lock). User memory is never touched under `mmu`.

use crate::abi::stats::{VmCounter, VmStats};
use crate::arch::{address_limits, NestedTable};
use crate::linux::page;
use crate::linux::srcu_cell::SrcuCell;
use crate::mem::addr::{Gpa, GpaRange, Hpa, Hva, Level, PAGE_SIZE};
use crate::mem::format::{Leaf, MemType, Perm};
use crate::mem::mmu::{Mmu, TablePool};
use crate::mem::ports::{DmaView, StopRunning};
use crate::mem::slot_table::SlotTable;
use crate::mem::slots::{Limits, Slot, MAX_SLOTS};
use crate::mem::touches::Touches;
pub(crate) use crate::mem::view::{MemError, MemoryView};
use crate::mem::walk::{Cursor, MapError};
use core::convert::Infallible;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::rbtree::RBTree;
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SetOnce, SpinLock};

/// Entries visited between two chances to reschedule while unmapping.
pub(super) const BUDGET: u32 = 16 * 1024;

/// Slots that are created without waiting for the readers of the version before, between two that wait.
const RETIRED: usize = 16;

/// The VM's own page is neither mapped nor barred.
const UNPINNED: u32 = 0;
/// The VM's own page is mapped.
const PINNED: u32 = 1;
/// The VM's own page is never mapped again.
const BARRED: u32 = 2;

/// What leaves of 2 MiB may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HugePages {
    /// The processor has none.
    None,
    /// Data: code that runs from one may machine-check the host (CVE-2018-12207).
    Data,
    /// Data and code.
    All,
}

/// What `GuestMemory.update` protects.
pub(super) struct Update {
    /// What assigned devices see of the memory, if there have been any; it follows slot changes.
    pub(super) dma: Option<Arc<dyn DmaView>>,
    /// Where the VM's own page is mapped, or was to be.
    pinned_at: Option<Gpa>,
    /// Where the slots are, by number.
    pub(super) numbers: RBTree<u32, Gpa>,
}

/// All of a VM's guest memory.
#[pin_data(PinnedDrop)]
pub(crate) struct GuestMemory {
    #[pin]
    pub(super) update: Mutex<Update>,
    #[pin]
    pub(super) slots: SrcuCell<SlotTable, RETIRED>,
    #[pin]
    pub(super) mmu: SpinLock<Mmu>,
    /// Bumped whenever translations have to go; a vCPU compares it before each entry.
    tlb_generation: AtomicU64,
    /// The vCPUs to be stopped for a flush.
    vcpus: Arc<dyn StopRunning>,
    root: Hpa,
    /// A page of the VM that is in no slot, for VMs that use it.
    own_page: SetOnce<page::Pages>,
    /// Changes under `update`.
    pin_state: AtomicU32,
    /// No huge leaf may be executable.
    pub(super) nx_huge: AtomicBool,
    /// KVM_GET_DIRTY_LOG leaves the log alone, KVM_CLEAR_DIRTY_LOG starts it afresh.
    pub(super) manual_protect: AtomicBool,
    /// New logs say that all pages are dirty.
    pub(super) initially_set: AtomicBool,
    /// A device reaches the memory past the caches.
    incoherent: AtomicBool,
    pub(super) stats: Arc<VmStats>,
    /// The order of first touches.
    pub(crate) touches: Touches,
    /// The processor has leaves of 2 MiB.
    pub(super) huge_pages: bool,
    pub(super) limits: Limits,
}

impl GuestMemory {
    /// No slots; `table` is empty.
    pub(crate) fn new(
        table: NestedTable,
        huge: HugePages,
        stats: Arc<VmStats>,
        vcpus: Arc<dyn StopRunning>,
    ) -> Result<Arc<Self>> {
        let (gpa_end, hva_end) = address_limits();
        Arc::pin_init(
            try_pin_init!(Self {
                update <- new_mutex!(Update { dma: None, pinned_at: None, numbers: RBTree::new() }),
                slots <- SrcuCell::new(SlotTable::new()),
                tlb_generation: AtomicU64::new(1),
                vcpus,
                own_page: SetOnce::new(),
                pin_state: AtomicU32::new(UNPINNED),
                nx_huge: AtomicBool::new(huge == HugePages::Data),
                manual_protect: AtomicBool::new(false),
                initially_set: AtomicBool::new(false),
                incoherent: AtomicBool::new(false),
                stats,
                touches: Touches::new(),
                huge_pages: huge != HugePages::None,
                limits: Limits {
                    slots: MAX_SLOTS,
                    address_spaces: 1,
                    gpa_end,
                    hva_end,
                },
                root: table.root(),
                mmu <- new_spinlock!(Mmu::new(table)),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Root of the nested page tables.
    #[inline]
    pub(crate) fn root(&self) -> Hpa {
        self.root
    }

    /// Generation of translations; to be read after the vCPU has announced that it is about to enter.
    #[inline]
    pub(crate) fn tlb_generation(&self) -> u64 {
        self.tlb_generation.load(Ordering::SeqCst)
    }

    /// Makes every vCPU leave the guest and flush before it enters again. Interrupts are on.
    pub(super) fn flush(&self) {
        self.stats.add(VmCounter::RemoteFlushes, 1);
        self.tlb_generation.fetch_add(1, Ordering::SeqCst);
        self.vcpus.stop_running();
    }

    /// Fills up the spare tables. Sleeps. Not in the frame of [`GuestMemory::fault`], on which host page faults and
    /// reclaim are stacked.
    #[inline(never)]
    pub(super) fn refill(&self) -> Result {
        let mut more = TablePool::new();
        more.top_up()?;
        self.mmu.lock().pool.take_from(&mut more);
        Ok(())
    }

    /// Unmaps `range`, letting others run in between if `may_sleep`.
    pub(super) fn unmap(&self, range: GpaRange, may_sleep: bool) {
        let mut cursor = Cursor::new(range);
        loop {
            let done = {
                let mut mmu = self.mmu.lock();
                self.unmap_chunk(&mut mmu, &mut cursor)
            };
            if done {
                return;
            }
            if may_sleep {
                crate::linux::sched::cond_resched();
            }
        }
    }

    fn unmap_chunk(&self, mmu: &mut Mmu, cursor: &mut Cursor) -> bool {
        let Mmu { table, pool, .. } = mmu;
        let done = table.unmap_some(pool, cursor, BUDGET);
        if cursor.take_flush() {
            self.flush();
        }
        pool.release();
        done
    }

    /// The physical address of the VM's own page, which lives as long as the VM and holds zeroes at first. The caller
    /// excludes other callers.
    pub(crate) fn own_page(&self) -> Result<Hpa> {
        if self.own_page.as_ref().is_none() {
            self.own_page.populate(page::Pages::new(0)?);
        }
        self.own_page.as_ref().map(|p| Hpa(p.phys())).ok_or(ENOMEM)
    }

    /// Whether [`GuestMemory::pin_page`] has something to do.
    #[inline]
    pub(crate) fn may_pin_page(&self) -> bool {
        self.pin_state.load(Ordering::Relaxed) == UNPINNED
    }

    /// Maps the VM's own page at `gpa`, always the same, unless there is memory or [`GuestMemory::unpin_page`] was
    /// called. It goes when a slot comes there.
    pub(crate) fn pin_page(&self, gpa: Gpa) -> Result {
        let mut update = self.update.lock();
        if !self.may_pin_page() {
            return Ok(());
        }
        update.pinned_at = Some(gpa);
        let hpa = match self.own_page.as_ref() {
            Some(p) if self.view().is_device(gpa, false) => Hpa(p.phys()),
            _ => {
                self.pin_state.store(BARRED, Ordering::Relaxed);
                return Ok(());
            }
        };
        self.refill()?;
        let leaf = Leaf {
            hpa,
            perm: Perm::RW,
            mem_type: MemType::Ram,
            accessed: true,
            dirty: true,
        };
        let mut mmu = self.mmu.lock();
        let Mmu { table, pool, .. } = &mut *mmu;
        match table.map(pool, gpa, Level::L1, &leaf) {
            Ok(change) => {
                if change.needs_flush() {
                    self.flush();
                }
                self.pin_state.store(PINNED, Ordering::Relaxed);
            }
            Err(MapError::NoMemory { flush }) => {
                if flush {
                    self.flush();
                }
            }
            Err(_) => self.pin_state.store(BARRED, Ordering::Relaxed),
        }
        pool.release();
        Ok(())
    }

    /// Unmaps the VM's own page for good. When it returns no vCPU reaches the page.
    pub(crate) fn unpin_page(&self) {
        if self.pin_state.load(Ordering::Relaxed) != BARRED {
            self.unpin_locked(&self.update.lock());
        }
    }

    fn unpin_locked(&self, update: &Update) {
        let old = self.pin_state.swap(BARRED, Ordering::Relaxed);
        let range = update.pinned_at.and_then(|at| GpaRange::new(at, PAGE_SIZE));
        if let (PINNED, Some(range)) = (old, range) {
            self.unmap(range, true);
        }
    }

    /// `slot` is about to come: the VM's own page makes room.
    pub(super) fn make_room(&self, update: &Update, slot: &Slot) {
        if update.pinned_at.is_some_and(|at| slot.contains(at)) {
            self.unpin_locked(update);
        }
    }

    /// From now on `dma` follows slot changes: what is there by now it has to learn by [`GuestMemory::with_slots`]. A
    /// VM has one for all its devices.
    pub(crate) fn set_dma_view(&self, dma: Arc<dyn DmaView>) {
        self.update.lock().dma = Some(dma);
    }

    /// KVM_CAP_VM_DISABLE_NX_HUGE_PAGES.
    pub(crate) fn allow_executable_huge_pages(&self) {
        self.nx_huge.store(false, Ordering::Relaxed);
    }

    /// Whether a device reaches the memory past the caches, so that the guest has to write them back itself.
    #[inline]
    pub(crate) fn is_incoherent(&self) -> bool {
        self.incoherent.load(Ordering::Relaxed)
    }

    /// A device reaches the memory past the caches from now on, or does not any more: everything is mapped anew, with
    /// memory types that the guest chooses, or without. Sleeps.
    pub(crate) fn set_incoherent(&self, on: bool) {
        let _update = self.update.lock();
        self.incoherent.store(on, Ordering::Relaxed);
        self.mmu.lock().ram = if on {
            MemType::GuestTyped
        } else {
            MemType::Ram
        };
        self.unmap_slots();
    }

    /// Unmaps all slots: the guest faults anew.
    fn unmap_slots(&self) {
        self.slots.read().each(|slot| {
            if let Some(range) = slot.range() {
                self.unmap(range, true);
            }
        });
    }

    /// Records first touches from now on, with room for `room` of them; 0 ends that. Sleeps. As [`Touches::start`].
    pub(crate) fn record_touches(&self, room: usize) -> Result {
        if room == 0 {
            self.touches.stop();
            return Ok(());
        }
        let _update = self.update.lock();
        self.touches.start(room)?;
        // What is mapped already would not be touched again.
        self.unmap_slots();
        Ok(())
    }

    /// The slots as they are now.
    #[inline]
    pub(crate) fn view(&self) -> MemoryView<'_> {
        MemoryView {
            slots: self.slots.read(),
        }
    }

    /// For each guest-physical range behind the user range `start..end`.
    pub(super) fn for_each_range(&self, start: u64, end: u64, mut f: impl FnMut(GpaRange)) {
        let slots = self.slots.read();
        let _ = slots.try_each_range(Hva(start), Hva(end), |r| {
            f(r);
            Ok::<(), Infallible>(())
        });
    }
}

#[pinned_drop]
impl PinnedDrop for GuestMemory {
    fn drop(self: Pin<&mut Self>) {
        // Nobody runs and nobody else has a reference: no flush is needed before tables are freed.
        let mut mmu = self.mmu.lock();
        let Mmu { table, pool, .. } = &mut *mmu;
        table.clear(pool);
    }
}
