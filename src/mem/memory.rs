// SPDX-License-Identifier: GPL-2.0
//! Guest memory of one VM: memory slots, nested page tables, and the host's changes underneath them.
//!
//! Nothing is pinned. A nested fault takes the page that the host's page tables hold at this moment, and the
//! MMU notifier takes the translation away before the host changes its mind (munmap, mprotect, COW, swap, KSM, migration).
//!
//! # Ordering
//!
//! A fault reads `invalidations`, looks the page up without a lock, then takes `mmu` and maps only if no invalidation of that
//! address is under way and none has ended since. An invalidation counts itself in and unmaps under the
//! same lock. So either the fault sees the invalidation and retries, or the invalidation sees the mapping and removes it.
//!
//! Translations are flushed before `mmu` is released: whoever finds a page unmapped may rely on no CPU using it.
//!
//! A slot change publishes the new table, waits for every reader of the old one (a fault that still maps from it), and only
//! then unmaps. When it returns nothing uses the old slot. Until then an invalidation, which looks into the new table, has to
//! know the slot that goes: its pages are still mapped. `Mmu::leaving` names it from before the publication to after the unmapping, and
//! an invalidation looks there after it has looked into the table.
//!
//! # Lock order
//!
//! `update` (mutex) > SRCU read section > `mmu` (spin lock). User memory is never touched under `mmu`.

use crate::abi::stats::{VmCounter, VmStats};
use crate::assign::space::Space;
use crate::linux::boot_cpu;
use crate::linux::gup;
use crate::linux::mmu_notifier::{MmuNotifierOps, Range};
use crate::linux::page;
use crate::linux::srcu_cell::{SrcuCell, SrcuRef};
use crate::linux::uaccess;
use crate::mem::addr::{Gpa, GpaRange, Hpa, Hva, Level, PAGE_SIZE};
use crate::mem::dirty;
use crate::mem::ports::StopRunning;
use crate::mem::slots::{self, Change, Limits, Slot};
use crate::mem::walk::{Cursor, Leaf, MapError, MemType, Perm};
use crate::x86::paging::nested::{NestedTable, TablePool};
use crate::x86::vendor::HwCaps;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::mm::Mm;
use kernel::prelude::*;
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SetOnce, SpinLock};
use kernel::uaccess::{UserPtr, UserSlice};

/// Entries visited between two chances to reschedule while unmapping.
const BUDGET: u32 = 16 * 1024;

/// Guest-physical address of the local APIC after reset.
const APIC_PAGE: u64 = crate::x86::irqchip::lapic::base::DEFAULT_ADDRESS;

/// `KVM_MEM_LOG_DIRTY_PAGES`.
const LOG_DIRTY: u32 = 1;
/// `KVM_MEM_READONLY`.
const READONLY: u32 = 2;

/// One bit per page of a slot.
pub(crate) struct DirtyBitmap {
    words: KVVec<AtomicU64>,
}

impl DirtyBitmap {
    fn new(npages: u64) -> Result<Arc<Self>> {
        let n = usize::try_from(npages.div_ceil(64))?;
        let mut words = KVVec::with_capacity(n, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..n {
            words
                .push_within_capacity(AtomicU64::new(0))
                .map_err(|_| ENOMEM)?;
        }
        Ok(Arc::new(Self { words }, GFP_KERNEL)?)
    }

    /// All pages dirty.
    fn fill(&self, npages: u64) {
        for (w, mask) in dirty::masks(0..npages) {
            if let Some(word) = usize::try_from(w).ok().and_then(|i| self.words.get(i)) {
                word.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    fn set(&self, page: u64) {
        if let Some(w) = usize::try_from(page / 64)
            .ok()
            .and_then(|i| self.words.get(i))
        {
            let bit = 1u64 << (page % 64);
            if w.load(Ordering::Relaxed) & bit == 0 {
                w.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }
}

/// The slots, sorted by guest-physical address.
pub(crate) struct SlotTable {
    slots: KVVec<Slot>,
    /// Same index as `slots`.
    dirty: KVVec<Option<Arc<DirtyBitmap>>>,
}

impl SlotTable {
    const fn empty() -> Self {
        Self {
            slots: KVVec::new(),
            dirty: KVVec::new(),
        }
    }

    fn copy_with_room(&self) -> Result<Self> {
        let mut slots = KVVec::with_capacity(self.slots.len() + 1, GFP_KERNEL_ACCOUNT)?;
        let mut dirty = KVVec::with_capacity(self.slots.len() + 1, GFP_KERNEL_ACCOUNT)?;
        for (s, d) in self.slots.iter().zip(self.dirty.iter()) {
            slots.push_within_capacity(*s).map_err(|_| ENOMEM)?;
            dirty.push_within_capacity(d.clone()).map_err(|_| ENOMEM)?;
        }
        Ok(Self { slots, dirty })
    }

    fn remove_id(&mut self, id: u32) {
        if let Some(i) = self.slots.iter().position(|s| s.id == id) {
            let _ = self.slots.remove(i);
            let _ = self.dirty.remove(i);
        }
    }

    /// Inserts in order; there is room.
    fn insert(&mut self, slot: Slot, dirty: Option<Arc<DirtyBitmap>>) -> Result {
        let at = self
            .slots
            .iter()
            .position(|s| s.gpa.0 > slot.gpa.0)
            .unwrap_or(self.slots.len());
        self.slots
            .insert_within_capacity(at, slot)
            .map_err(|_| ENOMEM)?;
        self.dirty
            .insert_within_capacity(at, dirty)
            .map_err(|_| ENOMEM)?;
        Ok(())
    }

    fn find(&self, gpa: Gpa) -> Option<(usize, &Slot)> {
        let i = slots::find_index(&self.slots, gpa)?;
        Some((i, self.slots.get(i)?))
    }

    fn mark_dirty(&self, index: usize, slot: &Slot, gpa: Gpa) {
        if let Some(Some(d)) = self.dirty.get(index) {
            d.set(gpa.0.wrapping_sub(slot.gpa.0) / PAGE_SIZE);
        }
    }
}

/// Nested page tables and the state of invalidations.
pub(crate) struct Mmu {
    table: NestedTable,
    /// Tables that were unlinked and wait for the flush.
    pool: TablePool,
    /// Invalidations that ended.
    invalidations: u64,
    /// Invalidations under way, and the hull of their ranges.
    invalidating: u32,
    hull: (u64, u64),
    /// The slot that is being deleted or moved away, as it was: perhaps no longer in the table, but still mapped.
    leaving: Option<Slot>,
}

impl Mmu {
    fn must_retry(&self, seen: u64, hva: u64) -> bool {
        self.invalidations != seen || self.is_invalidating(hva)
    }

    /// An invalidation that may concern `hva` is under way.
    #[inline]
    fn is_invalidating(&self, hva: u64) -> bool {
        self.invalidating != 0 && self.hull.0 <= hva && hva < self.hull.1
    }
}

/// How a page comes into the nested table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapped {
    /// By one leaf.
    Leaf(Level),
    /// 2 MiB by 512 leaves.
    Parts,
}

impl Mapped {
    /// Level of the leaves.
    const fn level(self) -> Level {
        match self {
            Self::Leaf(level) => level,
            Self::Parts => Level::L1,
        }
    }

    /// Level whose pages have the size of what gets mapped.
    const fn span(self) -> Level {
        match self {
            Self::Leaf(level) => level,
            Self::Parts => Level::L2,
        }
    }
}

/// What a nested fault turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultOutcome {
    /// Mapped, or to be tried again: enter the guest.
    Resume,
    /// No memory there, or a write to read-only memory: an MMIO access.
    Mmio,
    /// The slot's user memory is not there: KVM_RUN fails with EFAULT.
    BadUserMemory,
}

/// Why guest memory could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemError {
    /// No slot, or a write to a read-only one.
    NotRam,
    /// The slot's user memory is not there.
    Fault,
}

impl From<MemError> for Error {
    fn from(_: MemError) -> Self {
        EFAULT
    }
}

/// The APIC-access page is neither mapped nor excluded.
const APIC_UNMAPPED: u32 = 0;
/// It is mapped.
const APIC_MAPPED: u32 = 1;
/// It is never mapped again.
const APIC_EXCLUDED: u32 = 2;

/// All of a VM's guest memory.
#[pin_data(PinnedDrop)]
pub(crate) struct GuestMemory {
    #[pin]
    update: Mutex<Option<Space>>,
    #[pin]
    slots: SrcuCell<SlotTable>,
    #[pin]
    mmu: SpinLock<Mmu>,
    /// Bumped whenever translations have to go; a vCPU compares it before each entry.
    tlb_generation: AtomicU64,
    /// The vCPUs to be stopped for a flush.
    vcpus: Arc<dyn StopRunning>,
    root: Hpa,
    /// The page that a processor takes for the local APIC where it is mapped, for VMs that use it.
    apic_page: SetOnce<page::Pages>,
    /// Changes under `update`.
    apic_state: AtomicU32,
    /// No huge leaf may be executable.
    nx_huge: AtomicBool,
    /// KVM_GET_DIRTY_LOG leaves the log alone, KVM_CLEAR_DIRTY_LOG starts it afresh.
    manual_protect: AtomicBool,
    /// New logs say that all pages are dirty.
    initially_set: AtomicBool,
    stats: Arc<VmStats>,
    caps: HwCaps,
    limits: Limits,
}

impl GuestMemory {
    /// No slots, an empty table.
    pub(crate) fn new(
        caps: HwCaps,
        stats: Arc<VmStats>,
        vcpus: Arc<dyn StopRunning>,
    ) -> Result<Arc<Self>> {
        // The root; the first fault fetches more.
        let root = page::Pages::new(0)?;
        let table = NestedTable::with_root(Hpa(root.phys()), &caps)?;
        Arc::pin_init(
            try_pin_init!(Self {
                update <- new_mutex!(None),
                slots <- SrcuCell::new(SlotTable::empty()),
                tlb_generation: AtomicU64::new(1),
                vcpus,
                apic_page: SetOnce::new(),
                apic_state: AtomicU32::new(APIC_UNMAPPED),
                nx_huge: AtomicBool::new(
                    caps.name == "vmx" && boot_cpu::bug(boot_cpu::Bug::ItlbMultihit),
                ),
                manual_protect: AtomicBool::new(false),
                initially_set: AtomicBool::new(false),
                stats,
                caps,
                limits: Limits {
                    slots: crate::mem::slots::MAX_SLOTS,
                    address_spaces: 1,
                    gpa_end: 1 << crate::linux::boot_cpu::phys_bits().min(48),
                    hva_end: (1 << (crate::linux::boot_cpu::virt_bits().clamp(48, 57) - 1)) - 4096,
                },
                // Last: nothing fails any more, and the root is freed with the table.
                root: Hpa(root.into_phys()),
                mmu <- new_spinlock!(init!(Mmu {
                    table,
                    pool: TablePool::new(),
                    invalidations: 0,
                    invalidating: 0,
                    hull: (0, 0),
                    leaving: None,
                })),
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
    fn flush(&self) {
        self.stats.add(VmCounter::RemoteFlushes, 1);
        self.tlb_generation.fetch_add(1, Ordering::SeqCst);
        self.vcpus.stop_running();
    }

    /// Unmaps `range`, letting others run in between if `may_sleep`.
    fn unmap(&self, range: GpaRange, may_sleep: bool) {
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
                        let dirty = match (wanted.flags & LOG_DIRTY != 0, kept) {
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

    /// The APIC-access page of this VM (SDM 3C 30.4). The caller excludes other callers.
    pub(crate) fn apic_page(&self) -> Result<Hpa> {
        if self.apic_page.as_ref().is_none() {
            self.apic_page.populate(page::Pages::new(0)?);
        }
        self.apic_page.as_ref().map(|p| Hpa(p.phys())).ok_or(ENOMEM)
    }

    /// Whether the APIC-access page may be mapped and is not.
    #[inline]
    pub(crate) fn apic_page_missing(&self) -> bool {
        self.apic_state.load(Ordering::Relaxed) == APIC_UNMAPPED
    }

    /// Maps the APIC-access page at the APIC's default address, unless there is memory or [`GuestMemory::exclude_apic_page`]
    /// was called. Every vCPU of the VM has to virtualise accesses to it.
    pub(crate) fn map_apic_page(&self) -> Result {
        let _update = self.update.lock();
        if !self.apic_page_missing() {
            return Ok(());
        }
        let hpa = match self.apic_page.as_ref() {
            Some(p) if self.view().is_device(Gpa(APIC_PAGE), false) => Hpa(p.phys()),
            _ => {
                self.apic_state.store(APIC_EXCLUDED, Ordering::Relaxed);
                return Ok(());
            }
        };
        self.refill()?;
        let leaf = Leaf {
            hpa,
            perm: Perm::RW,
            mem_type: MemType::Wb,
            ignore_pat: true,
            accessed: true,
            dirty: true,
        };
        let mut mmu = self.mmu.lock();
        let Mmu { table, pool, .. } = &mut *mmu;
        match table.map(pool, Gpa(APIC_PAGE), Level::L1, &leaf) {
            Ok(change) => {
                if change.needs_flush() {
                    self.flush();
                }
                self.apic_state.store(APIC_MAPPED, Ordering::Relaxed);
            }
            Err(MapError::NoMemory { flush }) => {
                if flush {
                    self.flush();
                }
            }
            Err(_) => self.apic_state.store(APIC_EXCLUDED, Ordering::Relaxed),
        }
        pool.release();
        Ok(())
    }

    /// Unmaps the APIC-access page for good: not all vCPUs virtualise accesses to it from now on. When it returns no vCPU
    /// reaches the page.
    pub(crate) fn exclude_apic_page(&self) {
        if self.apic_state.load(Ordering::Relaxed) == APIC_EXCLUDED {
            return;
        }
        let _update = self.update.lock();
        self.exclude_apic_locked();
    }

    /// [`GuestMemory::exclude_apic_page`] under `update`.
    fn exclude_apic_locked(&self) {
        if self.apic_state.swap(APIC_EXCLUDED, Ordering::Relaxed) == APIC_MAPPED {
            if let Some(range) = GpaRange::new(Gpa(APIC_PAGE), PAGE_SIZE) {
                self.unmap(range, true);
            }
        }
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

    /// KVM_CAP_VM_DISABLE_NX_HUGE_PAGES.
    pub(crate) fn allow_executable_huge_pages(&self) {
        self.nx_huge.store(false, Ordering::Relaxed);
    }

    /// Fills up the spare tables. Sleeps. Not in `fault`'s frame, on which host page faults and reclaim are stacked.
    #[inline(never)]
    fn refill(&self) -> Result {
        let mut more = TablePool::new();
        more.top_up()?;
        self.mmu.lock().pool.take_from(&mut more);
        Ok(())
    }

    /// Whether a huge page may be behind `gpa`, as far as the slot and the processor go.
    #[inline]
    fn may_be_huge(&self, slot: &Slot, gpa: Gpa) -> bool {
        self.caps.nested_2m && slot.max_level(gpa) != Level::L1
    }

    /// How to map the huge page behind `gpa`.
    ///
    /// A huge page that code runs from can machine-check the host on some CPUs when the guest changes it under a
    /// fetch (CVE-2018-12207): there huge leaves are for data only, and from the first fetch on the page is mapped in parts.
    #[inline]
    fn huge(&self, table: &NestedTable, pool: &TablePool, gpa: Gpa, fetch: bool) -> Mapped {
        if !self.nx_huge.load(Ordering::Relaxed) {
            Mapped::Leaf(Level::L2)
        } else if table.has_parts(pool, gpa) {
            Mapped::Leaf(Level::L1)
        } else if fetch {
            Mapped::Parts
        } else {
            Mapped::Leaf(Level::L2)
        }
    }

    /// What remains of `perm` in a leaf of `level`; see [`GuestMemory::huge`].
    #[inline]
    fn perm_at(&self, level: Level, perm: Perm) -> Perm {
        if self.nx_huge.load(Ordering::Relaxed) && level != Level::L1 {
            perm.without(Perm::X)
        } else {
            perm
        }
    }

    /// The frequent case of [`GuestMemory::fault`], inside a stay: anonymous memory that is resident and writable, an entry of
    /// the nested table that is empty, nobody at work on either. False if it is not that; nothing has been done then.
    ///
    /// `mmu` is only tried: its holder may be waiting for this CPU to leave the guest. Holding it keeps invalidations from beginning,
    /// so that what the host's page tables say now is so until there is a mapping for the invalidation to find.
    ///
    /// # Safety
    ///
    /// Interrupts are off. Runs in the VM's own mm.
    pub(crate) unsafe fn fault_resident(
        &self,
        view: &MemoryView<'_>,
        gpa: Gpa,
        fetch: bool,
    ) -> bool {
        let Some((index, slot)) = view.slots.find(gpa) else {
            return false;
        };
        let logging = view.slots.dirty.get(index).is_some_and(Option::is_some);
        if logging || slot.flags & READONLY != 0 {
            return false;
        }
        let Some(hva) = slot.hva_of(gpa) else {
            return false;
        };
        let hva = hva.page().0;
        let Some(mut mmu) = self.mmu.try_lock() else {
            return false;
        };
        if mmu.is_invalidating(hva) {
            return false;
        }
        // SAFETY: Interrupts are off and the address space is the VM's, by the contract. `Notifier` is registered for that one and
        // takes `mmu` at the beginning of an invalidation; none of this address is under way.
        let Some((pfn, host)) = (unsafe { gup::mapped_anon(hva as usize) }) else {
            return false;
        };
        let Mmu { table, pool, .. } = &mut *mmu;
        let leaf = Leaf {
            hpa: Hpa(pfn << 12),
            perm: Perm::RWX,
            mem_type: MemType::Wb,
            ignore_pat: true,
            accessed: true,
            dirty: true,
        };
        if host != gup::MappingLevel::L4K && self.may_be_huge(slot, gpa) {
            let nx = self.nx_huge.load(Ordering::Relaxed);
            let base = gpa.align_down(Level::L2);
            let whole = Leaf {
                hpa: leaf.hpa.align_down(Level::L2),
                perm: if nx && !fetch { Perm::RW } else { Perm::RWX },
                ..leaf
            };
            // As in `huge`, which asks the table first.
            let done = if nx && fetch {
                table.map_parts(pool, base, &whole, true).is_ok()
            } else {
                table.map_new(pool, base, Level::L2, &whole).is_ok()
            };
            if done || !nx {
                return done;
            }
        }
        table.map_new(pool, gpa.page(), Level::L1, &leaf).is_ok()
    }

    /// Handles a nested fault at `gpa`. Runs in the VM's own mm, may sleep.
    pub(crate) fn fault(
        &self,
        mm: &Mm,
        gpa: Gpa,
        write: bool,
        fetch: bool,
    ) -> Result<FaultOutcome> {
        let slots = self.slots.read();
        let Some((index, slot)) = slots.find(gpa) else {
            return Ok(FaultOutcome::Mmio);
        };
        let readonly = slot.flags & READONLY != 0;
        if write && readonly {
            return Ok(FaultOutcome::Mmio);
        }
        let Some(hva) = slot.hva_of(gpa) else {
            return Ok(FaultOutcome::Mmio);
        };
        let hva_page = usize::try_from(hva.page().0)?;
        let logging = slots.dirty.get(index).is_some_and(Option::is_some);

        let seen = {
            let mut mmu = self.mmu.lock();
            if mmu.pool.is_low() {
                drop(mmu);
                self.refill()?;
                mmu = self.mmu.lock();
            }
            mmu.invalidations
        };

        // A page that is writable anyway is mapped so on a read too: no second fault. Where writes are logged it counts as dirty
        // then, as in KVM: programs rely on the page of code that ran being in the log.
        let want_write = write || !readonly;
        let fast = if want_write {
            gup::get_user_page_fast_only(hva_page, true)
        } else {
            None
        };
        let page = match fast {
            Some(p) => Ok(p),
            None => gup::get_user_page(hva_page, write),
        };
        let (pfn, writable, ram) = match &page {
            Ok(p) => (p.pfn(), p.writable() && want_write, true),
            Err(e) if *e == EINTR => return Ok(FaultOutcome::Resume),
            Err(_) => match gup::follow_pfnmap(mm, hva_page, write) {
                Ok(m) => (m.pfn, m.writable && want_write, gup::is_ram(m.pfn)),
                Err(_) => return Ok(FaultOutcome::BadUserMemory),
            },
        };

        let mut mmu = self.mmu.lock();
        if mmu.must_retry(seen, hva_page as u64) {
            return Ok(FaultOutcome::Resume);
        }
        let Mmu { table, pool, .. } = &mut *mmu;
        let how = if page.is_ok() && !logging && self.may_be_huge(slot, gpa) {
            match gup::host_mapping_level(mm, hva_page) {
                gup::MappingLevel::L4K => Mapped::Leaf(Level::L1),
                _ => self.huge(table, pool, gpa, fetch),
            }
        } else {
            Mapped::Leaf(Level::L1)
        };
        let perm = if writable { Perm::RWX } else { Perm::RX };
        let span = how.span();
        let leaf = Leaf {
            hpa: Hpa(pfn << 12).align_down(span),
            perm: self.perm_at(how.level(), perm),
            mem_type: if ram { MemType::Wb } else { MemType::Uc },
            ignore_pat: ram,
            accessed: true,
            dirty: writable && !logging,
        };
        let start = gpa.align_down(span);
        let mapped = match how {
            Mapped::Leaf(level) => table.map(pool, start, level, &leaf),
            Mapped::Parts => table.map_parts(pool, start, &leaf, false),
        };
        match mapped {
            Ok(change) => {
                if change.needs_flush() {
                    self.flush();
                }
            }
            Err(MapError::NoMemory { flush }) => {
                // Another vCPU used the pool up: again, with a fresh one.
                if flush {
                    self.flush();
                }
                pool.release();
                return Ok(FaultOutcome::Resume);
            }
            Err(_) => {
                pool.release();
                return Ok(FaultOutcome::BadUserMemory);
            }
        }
        pool.release();
        if writable {
            slots.mark_dirty(index, slot, gpa);
            if let Ok(p) = &page {
                p.set_dirty();
            }
        }
        Ok(FaultOutcome::Resume)
    }

    /// The slots as they are now.
    #[inline]
    pub(crate) fn view(&self) -> MemoryView<'_> {
        MemoryView {
            slots: self.slots.read(),
        }
    }

    /// For each guest-physical range behind the user range `start..end`.
    fn for_each_range(&self, start: u64, end: u64, mut f: impl FnMut(GpaRange)) {
        let slots = self.slots.read();
        for (_, r) in slots::gpa_ranges(&slots.slots, Hva(start), Hva(end)) {
            f(r);
        }
    }
}

#[pinned_drop]
impl PinnedDrop for GuestMemory {
    fn drop(self: Pin<&mut Self>) {
        // Nobody runs and nobody else has a reference: no flush is needed before tables are freed.
        let mut mmu = self.mmu.lock();
        let Mmu { table, pool, .. } = &mut *mmu;
        table.destroy(pool);
    }
}

/// Guest memory as one set of slots shows it; a read-side section.
pub(crate) struct MemoryView<'a> {
    slots: SrcuRef<'a, SlotTable>,
}

impl MemoryView<'_> {
    /// User address of `gpa` and how many bytes follow it in the same page.
    #[inline]
    fn resolve(&self, gpa: Gpa, write: bool) -> Result<(usize, usize, usize), MemError> {
        let (i, slot) = self.slots.find(gpa).ok_or(MemError::NotRam)?;
        if write && slot.flags & READONLY != 0 {
            return Err(MemError::NotRam);
        }
        let hva = slot.hva_of(gpa).ok_or(MemError::NotRam)?;
        let room = (PAGE_SIZE - gpa.page_offset()) as usize;
        Ok((
            usize::try_from(hva.0).map_err(|_| MemError::Fault)?,
            room,
            i,
        ))
    }

    /// For several look-ups that probably fall into one slot.
    #[inline]
    pub(crate) fn near(&self) -> Near<'_> {
        Near {
            slots: &self.slots.slots,
            slot: Slot::default(),
        }
    }

    /// Whether an access to `gpa` is one to a device: no slot, or a write to a read-only one.
    #[inline]
    pub(crate) fn is_device(&self, gpa: Gpa, write: bool) -> bool {
        self.slots
            .find(gpa)
            .is_none_or(|(_, s)| write && s.flags & READONLY != 0)
    }

    /// User address that backs `gpa`, for reading or writing within its page.
    #[inline]
    pub(crate) fn hva(&self, gpa: Gpa, write: bool) -> Result<usize, MemError> {
        self.resolve(gpa, write).map(|r| r.0)
    }

    /// Reads an aligned 64-bit word, without sleeping.
    #[inline]
    pub(crate) fn try_read_u64(&self, gpa: Gpa) -> Result<u64, MemError> {
        let (hva, _, _) = self.resolve(gpa, false)?;
        uaccess::get_u64(hva).map_err(|_| MemError::Fault)
    }

    /// Reads 16 bytes inside a page, without sleeping.
    #[inline]
    pub(crate) fn try_read_16(&self, gpa: Gpa) -> Result<[u8; 16], MemError> {
        let (hva, _, _) = self.resolve(gpa, false)?;
        let low = uaccess::get_u64(hva).map_err(|_| MemError::Fault)?;
        let high = uaccess::get_u64(hva.wrapping_add(8)).map_err(|_| MemError::Fault)?;
        Ok((u128::from(high) << 64 | u128::from(low)).to_le_bytes())
    }

    /// Reads within the slots, without sleeping: fails with `Fault` where the host's page is not resident.
    pub(crate) fn try_read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemError> {
        self.read_with(gpa, buf, |hva, part| {
            uaccess::copy_from(hva, part).map_err(|_| MemError::Fault)
        })
    }

    /// Reads within the slots, sleeping where it must.
    pub(crate) fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemError> {
        self.read_with(gpa, buf, |hva, part| {
            if uaccess::copy_from(hva, part).is_ok() {
                return Ok(());
            }
            UserSlice::new(UserPtr::from_addr(hva), part.len())
                .reader()
                .read_slice(part)
                .map_err(|_| MemError::Fault)
        })
    }

    fn read_with(
        &self,
        gpa: Gpa,
        buf: &mut [u8],
        mut copy: impl FnMut(usize, &mut [u8]) -> Result<(), MemError>,
    ) -> Result<(), MemError> {
        let mut at = gpa;
        let mut rest = buf;
        while !rest.is_empty() {
            let (hva, room, _) = self.resolve(at, false)?;
            let n = room.min(rest.len());
            let (part, tail) = rest.split_at_mut(n);
            copy(hva, part)?;
            rest = tail;
            at = at.wrapping_add(n as u64);
        }
        Ok(())
    }

    /// Writes within the slots, sleeping where it must, and marks the pages dirty.
    pub(crate) fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemError> {
        let mut at = gpa;
        let mut rest = data;
        while !rest.is_empty() {
            let (hva, room, index) = self.resolve(at, true)?;
            let n = room.min(rest.len());
            let (part, tail) = rest.split_at(n);
            if uaccess::copy_to(hva, part).is_err() {
                UserSlice::new(UserPtr::from_addr(hva), n)
                    .writer()
                    .write_slice(part)
                    .map_err(|_| MemError::Fault)?;
            }
            if let Some(slot) = self.slots.slots.get(index) {
                self.slots.mark_dirty(index, slot, at);
            }
            rest = tail;
            at = at.wrapping_add(n as u64);
        }
        Ok(())
    }

    /// Marks the page at `gpa` dirty after an access by its user address.
    pub(crate) fn mark_dirty(&self, gpa: Gpa) {
        if let Some((i, slot)) = self.slots.find(gpa) {
            self.slots.mark_dirty(i, slot, gpa);
        }
    }
}

/// Look-ups that remember the last slot.
pub(crate) struct Near<'a> {
    slots: &'a [Slot],
    /// Empty at first.
    slot: Slot,
}

impl Near<'_> {
    /// User address that backs `gpa`, for reading within its page.
    #[inline(always)]
    pub(crate) fn hva(&mut self, gpa: Gpa) -> Option<usize> {
        if !self.slot.contains(gpa) {
            let i = slots::find_index(self.slots, gpa)?;
            self.slot = *self.slots.get(i)?;
        }
        let offset = gpa.0.wrapping_sub(self.slot.gpa.0);
        // User addresses have 64 bits here.
        Some(self.slot.hva.0.wrapping_add(offset) as usize)
    }
}

/// The MMU notifier's end of a VM's memory.
pub(crate) struct Notifier(pub(crate) Arc<GuestMemory>);

impl MmuNotifierOps for Notifier {
    fn invalidate_range_start(&self, range: &Range) {
        self.0.stats.add(VmCounter::Invalidations, 1);
        let (start, end) = (range.start as u64, range.end as u64);
        {
            let mut mmu = self.0.mmu.lock();
            mmu.hull = if mmu.invalidating == 0 {
                (start, end)
            } else {
                (mmu.hull.0.min(start), mmu.hull.1.max(end))
            };
            mmu.invalidating = mmu.invalidating.saturating_add(1);
        }
        // Work is bounded per lock hold and never sleeps, so a range that is not blockable needs no other path.
        self.0
            .for_each_range(start, end, |r| self.0.unmap(r, false));
        // In this order: a slot that was gone from the table above is named here until it is unmapped.
        let leaving = self.0.mmu.lock().leaving;
        if let Some(slot) = leaving {
            for (_, r) in slots::gpa_ranges(&[slot], Hva(start), Hva(end)) {
                self.0.unmap(r, false);
            }
        }
    }

    fn invalidate_range_end(&self, _range: &Range) {
        let mut mmu = self.0.mmu.lock();
        mmu.invalidations = mmu.invalidations.wrapping_add(1);
        mmu.invalidating = mmu.invalidating.saturating_sub(1);
    }

    fn clear_flush_young(&self, start: usize, end: usize) -> bool {
        self.age(start, end)
    }

    fn clear_young(&self, start: usize, end: usize) -> bool {
        self.age(start, end)
    }

    fn test_young(&self, addr: usize) -> bool {
        let mut young = false;
        self.0
            .for_each_range(addr as u64, (addr as u64).saturating_add(1), |r| {
                let mut mmu = self.0.mmu.lock();
                let Mmu { table, pool, .. } = &mut *mmu;
                young |= table.test_accessed(pool, r);
            });
        young
    }

    fn release(&self) {
        // The address space is going: no user page may stay reachable.
        if let Some(all) = GpaRange::between(Gpa(0), Gpa(1 << 52)) {
            self.0.unmap(all, false);
        }
    }
}

impl Notifier {
    /// Clears accessed bits. Where there are none the leaves go, and their translations with them also for a caller that needs
    /// no flush: a later invalidation finds nothing left to flush for.
    fn age(&self, start: usize, end: usize) -> bool {
        let mut young = false;
        self.0.for_each_range(start as u64, end as u64, |r| {
            let mut mmu = self.0.mmu.lock();
            let Mmu { table, pool, .. } = &mut *mmu;
            let aged = table.age(pool, r);
            young |= aged.accessed;
            if aged.flush {
                self.0.flush();
            }
            pool.release();
        });
        young
    }
}

/// Kernel address of a page-table page.
pub(crate) fn table_ptr(table: Hpa) -> *mut u64 {
    page::phys_to_virt(table.0).cast()
}
