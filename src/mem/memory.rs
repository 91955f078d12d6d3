// SPDX-License-Identifier: GPL-2.0
//! Guest memory of one VM: memory slots, nested page tables, and the host's changes underneath them.
//!
//! Nothing is pinned. A nested fault takes the page that the host's page tables hold at this moment, and the MMU
//! notifier takes the translation away before the host changes its mind (munmap, mprotect, COW, swap, KSM, migration).
//!
//! # Ordering
//!
//! No lock is held while entries of the nested page tables change: each changes by compare-and-exchange (`walk`).
//!
//! **Fault against invalidation.** An invalidation registers its range of user addresses (`Invalidations`), looks which
//! slots meet it, and if there is one waits for every vCPU that is in a fault's section (`Gate`) before it unmaps and
//! flushes. A fault enters its section, looks whether its address is in a registered range, and only then maps. If the
//! section began before the registration, the invalidation waits for it and finds what it mapped; if it began later, it
//! sees the range. What a fault looked up before it entered the section may be out of date when the range is not
//! registered any more: an invalidation that ends, and meets a slot then, counts itself in `ended` before it takes the
//! range out, and the fault compares that count with the one from before its look-up, after it has looked for the
//! range.
//!
//! An invalidation that meets no slot disturbs nobody. A slot that is published after it has looked: faults there see
//! the range, which is registered before the look, until the invalidation ends, and it is counted then: slots that come
//! are counted before they are published, and if one has come since the invalidation began the end looks into the slots
//! again.
//!
//! **Who finds nothing.** An operation that finds an entry gone, or already protected, relies on another one's having
//! taken it away, which perhaps is not flushed yet. `Unflushed` counts operations from before they take something away
//! until they have flushed; who finds the count above its own one flushes as well.
//!
//! **Slots.** A slot change publishes the new table, waits for every reader of the old one (a fault that still maps
//! from it), and only then unmaps. When it returns nothing uses the old slot. Until then an invalidation, which looks
//! into the new table, has to know the slot that goes: its pages are still mapped. `leaving` names it from before the
//! publication until it has been unmapped and flushed, and an invalidation looks there after it has looked into the
//! table.
//!
//! **Tables** that have been taken out are freed after the flush, and after the read sections of RCU in which others
//! may still walk them: faults have interrupts or preemption off, all others hold `rcu::read_lock`.
//!
//! **Dirty log.** A page is marked after it has been mapped. A log's reader takes the bits, protects, and flushes. If
//! it takes the bits before the mark, the page is in the next log; if after, the mapping was there before its
//! protection, and what the guest wrote until the flush is in the copy that user space makes afterwards. Marked first,
//! the bit could be taken and the protection be done before the writable mapping comes: its writes would be in no log.
//!
//! # Lock order
//!
//! `update` (mutex) > reading `slots` > `registry`, `leaving` (raw spin locks, each held for a few instructions), the
//! lock of `reset`. User memory is never touched under these.

use crate::abi::stats::{VmCounter, VmStats};
use crate::arch::{processor_logs, NestedTable};
use crate::linux::page;
use crate::linux::spin_irq::RawSpin;
use crate::linux::version_cell::VersionCell;
use crate::mem::addr::{Gpa, GpaRange, Hpa, Hva, Level, PAGE_SIZE};
use crate::mem::dirty;
use crate::mem::flushes::Settled;
use crate::mem::format::{Leaf, MemType, Perm};
use crate::mem::invalidations::{Invalidations, Registry, Unflushed};
use crate::mem::mmu::TablePool;
use crate::mem::parts::Parts;
use crate::mem::ports::{DmaView, StopRunning};
use crate::mem::ring::{Ring, Rings};
use crate::mem::saved::Reset;
use crate::mem::slot_table::SlotTable;
use crate::mem::slots::{Limits, Slot, ADDRESS_SPACES, MAX_SLOTS};
use crate::mem::touches::Touches;
pub(crate) use crate::mem::view::{MemError, MemoryView};
use crate::mem::walk::{Allow, MapError};
use core::convert::Infallible;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::rbtree::RBTree;
use kernel::static_lock_class;
use kernel::sync::{rcu, Arc, LockClassKey, Mutex, SetOnce};

/// Slots that are created without waiting for the readers of the version before, between two that wait.
const RETIRED: usize = 16;

/// The VM's own page is neither mapped nor barred.
const UNPINNED: u32 = 0;
/// The VM's own page is mapped.
const PINNED: u32 = 1;
/// The VM's own page is never mapped again.
const BARRED: u32 = 2;

/// Which leaves of more than 4 KiB there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HugePages {
    /// The largest ones that the processor has; [`Level::L1`]: none.
    pub(crate) largest: Level,
    /// For data only: code that runs from one may machine-check the host (CVE-2018-12207).
    pub(crate) nx: bool,
}

/// What `GuestMemory.update` protects.
pub(super) struct Update {
    /// What assigned devices see of the memory, if there have been any; it follows slot changes.
    pub(super) dma: Option<Arc<dyn DmaView>>,
    /// Where the VM's own page is mapped, or was to be.
    pinned_at: Option<Gpa>,
    /// Where the slots are, by number.
    pub(super) numbers: RBTree<u32, Gpa>,
    /// Slots whose writes are logged.
    pub(super) logged: u32,
}

impl Update {
    /// Where the VM's own page may be mapped.
    pub(super) fn pinned_at(&self) -> Option<Gpa> {
        self.pinned_at
    }
}

/// All of a VM's guest memory.
#[pin_data(PinnedDrop)]
pub(crate) struct GuestMemory {
    #[pin]
    pub(super) update: Mutex<Update>,
    pub(super) slots: VersionCell<SlotTable, RETIRED>,
    pub(super) table: NestedTable,
    /// The host's changes under way.
    pub(super) invalidations: Invalidations,
    #[pin]
    registry: RawSpin<Registry>,
    /// The slot that is being deleted or moved away, as it was: perhaps no longer in the table, but still mapped.
    #[pin]
    leaving: RawSpin<Option<Slot>>,
    /// There is one in `leaving`. Set before the table without it is published, cleared when it has been flushed.
    is_leaving: AtomicBool,
    /// Operations whose flush is still to come.
    pub(super) unflushed: Unflushed,
    /// Removals that have been flushed, where that is kept.
    pub(crate) settled: Settled,
    /// What pages held before they were written.
    #[pin]
    pub(super) reset: Reset,
    /// Bumped whenever translations have to go; a vCPU compares it before each entry.
    tlb_generation: AtomicU64,
    /// The vCPUs to be stopped for a flush.
    pub(super) vcpus: Arc<dyn StopRunning>,
    root: Hpa,
    /// The oracle has found something.
    pub(super) broken: AtomicBool,
    /// A page of the VM that is in no slot, for VMs that use it.
    own_page: SetOnce<page::Pages>,
    /// Changes under `update`.
    pin_state: AtomicU32,
    /// No huge leaf may be executable.
    pub(super) nx_huge: AtomicBool,
    /// Areas that are mapped in small leaves for that reason.
    pub(super) parts: Parts,
    /// KVM_GET_DIRTY_LOG leaves the log alone, KVM_CLEAR_DIRTY_LOG starts it afresh.
    pub(super) manual_protect: AtomicBool,
    /// New logs say that all pages are dirty.
    pub(super) initially_set: AtomicBool,
    /// The processor can log the pages that a guest writes, by their dirty bits.
    pub(super) processor_logs: bool,
    /// It has to: there are slots whose writes are logged.
    pub(super) processor_log: AtomicBool,
    /// What vCPUs log their writes in, in place of bitmaps; of all address spaces of the VM.
    pub(crate) rings: Arc<Rings>,
    /// A device reaches the memory past the caches.
    incoherent: AtomicBool,
    pub(super) stats: Arc<VmStats>,
    /// The order of first touches.
    pub(crate) touches: Touches,
    /// The largest leaves that the processor has.
    pub(super) largest: Level,
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
        let rings = Arc::pin_init(Rings::new(), GFP_KERNEL_ACCOUNT)?;
        Self::build(table, huge, stats, vcpus, rings, static_lock_class!())
    }

    /// Another address space of the same VM, with the same vCPUs, rings and settings, no slots, and `table`, which is
    /// empty. The caller excludes changes of settings.
    pub(crate) fn beside(&self, table: NestedTable) -> Result<Arc<Self>> {
        let huge = HugePages {
            largest: self.largest,
            nx: self.nx_huge.load(Ordering::Relaxed),
        };
        let (stats, vcpus, rings) = (self.stats.clone(), self.vcpus.clone(), self.rings.clone());
        let other = Self::build(table, huge, stats, vcpus, rings, static_lock_class!())?;
        other.set_manual_protect(
            self.manual_protect.load(Ordering::Relaxed),
            self.initially_set.load(Ordering::Relaxed),
        );
        other
            .incoherent
            .store(self.is_incoherent(), Ordering::SeqCst);
        Ok(other)
    }

    /// `class`: of the lock `update`, which is held for two address spaces of a VM at a time.
    fn build(
        table: NestedTable,
        huge: HugePages,
        stats: Arc<VmStats>,
        vcpus: Arc<dyn StopRunning>,
        rings: Arc<Rings>,
        class: Pin<&'static LockClassKey>,
    ) -> Result<Arc<Self>> {
        let (gpa_end, hva_end) = table.address_limits();
        Arc::pin_init(
            try_pin_init!(Self {
                update <- Mutex::new(
                    Update {
                        dma: None,
                        pinned_at: None,
                        numbers: RBTree::new(),
                        logged: 0,
                    },
                    c"GuestMemory.update",
                    class,
                ),
                slots: VersionCell::new(SlotTable::new())?,
                tlb_generation: AtomicU64::new(1),
                vcpus,
                own_page: SetOnce::new(),
                pin_state: AtomicU32::new(UNPINNED),
                nx_huge: AtomicBool::new(huge.nx),
                parts: Parts::new(),
                manual_protect: AtomicBool::new(false),
                initially_set: AtomicBool::new(false),
                processor_logs: processor_logs(),
                processor_log: AtomicBool::new(false),
                rings,
                incoherent: AtomicBool::new(false),
                stats,
                touches: Touches::new(),
                largest: huge.largest,
                limits: Limits {
                    slots: MAX_SLOTS,
                    address_spaces: ADDRESS_SPACES,
                    gpa_end,
                    hva_end,
                },
                root: table.root(),
                broken: AtomicBool::new(false),
                table,
                invalidations: Invalidations::new(),
                registry <- RawSpin::new(Registry::new(), c"GuestMemory.registry", static_lock_class!()),
                leaving <- RawSpin::new(None, c"GuestMemory.leaving", static_lock_class!()),
                is_leaving: AtomicBool::new(false),
                unflushed: Unflushed::new(),
                settled: Settled::new(),
                reset <- Reset::new()?,
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

    /// Whether vCPUs have to enter with the processor's log on. A vCPU that enters reads it after the generation of
    /// translations, where that has changed.
    #[inline]
    pub(crate) fn logs_writes(&self) -> bool {
        self.processor_log.load(Ordering::SeqCst)
    }

    /// Entries that a dirty ring which counts as full has left.
    pub(crate) fn ring_reserve(&self) -> u32 {
        let logged = if self.processor_logs {
            dirty::PROCESSOR_LOG
        } else {
            0
        };
        dirty::RING_RESERVE + logged
    }

    /// Makes every vCPU leave the guest and flush before it enters again. Interrupts are on.
    pub(super) fn flush(&self) {
        self.stats.add(VmCounter::RemoteFlushes, 1);
        self.tlb_generation.fetch_add(1, Ordering::SeqCst);
        self.vcpus.stop_running();
    }

    /// The vCPUs that are about to map what they have found do so, and return to where they look for invalidations.
    pub(super) fn await_faults(&self) {
        let waits = self.vcpus.await_faults();
        if waits != 0 {
            self.stats.add(VmCounter::GateWaits, waits.into());
        }
    }

    /// A change of user addresses `start` to `end` begins: runs `unmap` for each guest-physical range behind them.
    pub(super) fn begin_invalidation(&self, start: u64, end: u64, mut unmap: impl FnMut(GpaRange)) {
        self.registry.lock().begin(&self.invalidations, start, end);
        let mut met = false;
        self.for_each_range(start, end, |r| {
            met = true;
            unmap(r);
        });
        if met {
            self.registry.lock().met(&self.invalidations, start, end);
        }
    }

    /// A change of user addresses `start` to `end` is done.
    pub(super) fn end_invalidation(&self, start: u64, end: u64) {
        if self
            .registry
            .lock()
            .end_calm(&self.invalidations, start, end)
        {
            return;
        }
        let mut concerned = false;
        self.for_each_range(start, end, |_| concerned = true);
        if concerned {
            self.invalidations.count_ended();
        }
        self.registry.lock().end(&self.invalidations, start, end);
    }

    /// Names the slot that is about to go, or no more.
    pub(super) fn set_leaving(&self, slot: Option<Slot>) {
        *self.leaving.lock() = slot;
        self.is_leaving.store(slot.is_some(), Ordering::SeqCst);
    }

    /// How memory is mapped. To be asked in a fault's section, see [`GuestMemory::set_incoherent`].
    #[inline]
    pub(super) fn ram(&self) -> MemType {
        if self.incoherent.load(Ordering::SeqCst) {
            MemType::GuestTyped
        } else {
            MemType::Ram
        }
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
        if self.own_page.as_ref().is_none() || !self.view().is_device(gpa, false) {
            self.pin_state.store(BARRED, Ordering::Relaxed);
            return Ok(());
        }
        match self.map_own_page(gpa)? {
            Ok(()) => self.pin_state.store(PINNED, Ordering::Relaxed),
            // The guest faults again.
            Err(MapError::NoMemory | MapError::Busy | MapError::Frozen) => {}
            Err(_) => self.pin_state.store(BARRED, Ordering::Relaxed),
        }
        Ok(())
    }

    /// Maps the VM's own page at `gpa`. The caller holds `update`.
    fn map_own_page(&self, gpa: Gpa) -> Result<core::result::Result<(), MapError>> {
        let Some(page) = self.own_page.as_ref() else {
            return Ok(Err(MapError::Perm));
        };
        let hpa = Hpa(page.phys());
        let leaf = Leaf {
            hpa,
            perm: Perm::RW,
            mem_type: MemType::Ram,
            accessed: true,
            dirty: true,
        };
        let mut tables = TablePool::new();
        tables.top_up()?;
        self.thaw(&mut tables, gpa, |end| {
            end();
            true
        });
        // After `tables`, so that what was unlinked is freed after the flush.
        let mut flushing = self.flushing();
        let mapped = {
            let _tables_stay = rcu::read_lock();
            self.table
                .map(&mut tables, gpa, Level::L1, &leaf, Allow::Any)
        };
        flushing.needed = mapped.is_ok_and(|change| change.needs_flush());
        flushing.is_for(&tables);
        Ok(mapped.map(|_| ()))
    }

    /// Lets the page at `gpa` be mapped writable, if what is mapped has been frozen. `end` calls its argument where no
    /// other round can begin, and says whether to go on. Sleeps no more than a flush does.
    pub(super) fn thaw(
        &self,
        tables: &mut TablePool,
        gpa: Gpa,
        mut end: impl FnMut(&mut dyn FnMut()) -> bool,
    ) {
        loop {
            let level = {
                let mut flushing = self.flushing();
                let _tables_stay = rcu::read_lock();
                let Some(narrowed) = self.table.thaw_begin(tables, gpa) else {
                    return;
                };
                flushing.needed |= narrowed.flush;
                flushing.is_for(tables);
                narrowed.level
            };
            let done = end(&mut || {
                let _tables_stay = rcu::read_lock();
                self.table.thaw_end(tables, gpa, level);
            });
            if !done {
                return;
            }
        }
    }

    /// Unmaps the VM's own page for good. When it returns no vCPU reaches the page.
    pub(crate) fn unpin_page(&self) {
        if self.pin_state.load(Ordering::Acquire) != BARRED {
            self.unpin_locked(&self.update.lock());
        }
    }

    /// What was mapped has been frozen: the VM's own page can be written again, if it is mapped. Another write of the
    /// guest to it is emulated.
    pub(super) fn thaw_pinned(&self, update: &Update) {
        let (Some(gpa), PINNED) = (update.pinned_at, self.pin_state.load(Ordering::Relaxed)) else {
            return;
        };
        let _ = self.map_own_page(gpa);
    }

    fn unpin_locked(&self, update: &Update) {
        let old = self.pin_state.load(Ordering::Relaxed);
        let range = update.pinned_at.and_then(|at| GpaRange::new(at, PAGE_SIZE));
        if let (PINNED, Some(range)) = (old, range) {
            self.unmap(range, true);
        }
        // Last: who finds it barred does not wait.
        self.pin_state.store(BARRED, Ordering::Release);
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
        let mut update = self.update.lock();
        // What the device writes is not seen.
        self.reset.lose();
        update.dma = Some(dma);
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
        self.incoherent.store(on, Ordering::SeqCst);
        // What they map by the old answer is found.
        self.await_faults();
        self.unmap_slots();
    }

    /// Unmaps all slots: the guest faults anew.
    fn unmap_slots(&self) {
        let mut removing = self.removing();
        self.slots.read().each(|slot| {
            if let Some(range) = slot.range() {
                removing.unmap(range, true);
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
        // Faults that map a huge leaf still are over, and found.
        self.await_faults();
        // What is mapped already would not be touched again.
        self.unmap_slots();
        Ok(())
    }

    /// The slots as they are now, for one who reads.
    #[inline]
    pub(crate) fn view(&self) -> MemoryView<'_> {
        self.view_of(&None)
    }

    /// The slots as they are now, for the vCPU with this dirty ring, if it has one.
    #[inline]
    pub(crate) fn view_of(&self, ring: &Option<Arc<Ring>>) -> MemoryView<'_> {
        MemoryView {
            slots: self.slots.read(),
            ring: ring.clone(),
            reset: &self.reset,
        }
    }

    /// For each guest-physical range behind the user range `start..end`, that of a slot that is leaving included.
    pub(super) fn for_each_range(&self, start: u64, end: u64, mut f: impl FnMut(GpaRange)) {
        let slots = self.slots.read();
        let _ = slots.try_each_range(Hva(start), Hva(end), |r| {
            f(r);
            Ok::<(), Infallible>(())
        });
        // After the table.
        let leaving = self.leaving();
        if let Some(r) = leaving.and_then(|slot| slot.gpa_range(Hva(start), Hva(end))) {
            f(r);
        }
    }

    /// The slot that is leaving, if one is. A slot that was gone from the table that the caller has read before is
    /// named here until it is unmapped and flushed.
    #[inline]
    fn leaving(&self) -> Option<Slot> {
        if self.is_leaving.load(Ordering::SeqCst) {
            *self.leaving.lock()
        } else {
            None
        }
    }

    /// The processor has logged a write to the page at `gpa`, for the vCPU of `view`. While a slot moves it may have
    /// been to the page's old place, of which `view` knows nothing: the flush that ends the move waits for this. (For
    /// bitmaps `set_slot` marks all pages then.)
    pub(crate) fn note_written(&self, view: &MemoryView<'_>, gpa: Gpa) {
        view.mark_dirty(gpa);
        // After the table.
        if let Some(slot) = self.leaving() {
            view.mark_left(&slot, gpa);
        }
    }
}

#[pinned_drop]
impl PinnedDrop for GuestMemory {
    fn drop(self: Pin<&mut Self>) {
        // Nobody runs and nobody else has a reference: no flush is needed before tables are freed.
        self.project().table.clear();
    }
}
