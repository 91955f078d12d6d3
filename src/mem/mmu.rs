// SPDX-License-Identifier: GPL-2.0
//! The pages that nested page tables are made of, and the look at the host's page tables that a resident page is found
//! by.
//!
//! The only file outside of `rust/` and the vendors with unsafe code: page tables are memory that hardware reads, and
//! resident pages are used without a reference. Called by faults, slot changes and notifier callbacks, all at a time.

use crate::arch::{self, LeavingPages};
use crate::linux::gup;
use crate::linux::irqflags::IrqsOff;
use crate::linux::page::{self, PageChain, Pages};
use crate::linux::sched::is_current_mm;
use crate::mem::addr::{Hpa, Level, TABLE_ENTRIES};
use crate::mem::flushes::Removals;
use crate::mem::invalidations::{Invalidations, Section};
use crate::mem::walk::{MappedLeaf, Page, Table, Tables, MAX_ALLOC_PER_MAP};
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::mm::Mm;
use kernel::prelude::*;

/// Spare tables of a vCPU: two `map`s' worth, which serve at least five areas of 2 MiB one after the other.
const SPARE: usize = 2 * MAX_ALLOC_PER_MAP;

/// One zeroed page that becomes a table, or several that are a root together.
pub(crate) struct TablePage(Pages);

impl TablePage {
    /// Allocates the page. Sleeps.
    pub(crate) fn new() -> Result<Self> {
        Self::row(0)
    }

    /// Allocates `1 << order` pages in a row, aligned to their size, for a root. Sleeps.
    pub(crate) fn row(order: u32) -> Result<Self> {
        Ok(Self(Pages::new(order)?))
    }

    /// Takes back what [`Page::into_hpa`] gave away.
    ///
    /// # Safety
    ///
    /// `hpa` came from `into_hpa`, and is taken back only once.
    unsafe fn from_hpa(hpa: Hpa) -> Self {
        // SAFETY: `into_hpa` gave away one page, by `Pages::into_phys`; the caller takes it back once.
        Self(unsafe { Pages::from_phys(hpa.0, 0) })
    }
}

impl Page for TablePage {
    fn tables(&self) -> u64 {
        (self.0.len() as u64) >> Level::L1.shift()
    }

    fn hpa(&self) -> Hpa {
        Hpa(self.0.phys())
    }

    /// Of a row, which the walker keeps as it is, only the first would come back.
    fn into_hpa(self) -> Hpa {
        Hpa(self.0.into_phys())
    }
}

/// Table pages of one caller: spare ones, and unlinked ones that processors and other callers may still walk.
///
/// # Invariants
///
/// Every address came from [`Page::into_hpa`] of a [`TablePage`] and is in no table.
pub(crate) struct TablePool {
    spare: [Hpa; SPARE],
    spares: usize,
    unlinked: PageChain,
    /// Pages of leaves that have gone, where caches want something of them.
    leaving: LeavingPages,
    /// Number of the last removal by this caller, where that is kept.
    removed: Cell<u64>,
}

/// What has been removed from nested page tables, where that is kept.
pub(crate) static REMOVALS: Removals = Removals::new();

impl TablePool {
    /// Empty.
    pub(crate) const fn new() -> Self {
        Self {
            spare: [Hpa(0); SPARE],
            spares: 0,
            unlinked: PageChain::new(),
            leaving: LeavingPages::new(),
            removed: Cell::new(0),
        }
    }

    /// An entry has been changed.
    #[inline]
    fn note(&self, old: u64, new: u64) {
        if arch::takes_away(old, new) {
            self.removed.set(REMOVALS.note());
        }
    }

    /// Number of the last removal by this caller; 0: none, or it is not kept.
    #[inline]
    pub(super) fn last_removal(&self) -> u64 {
        self.removed.get()
    }

    /// Fewer spares than one `map` may need.
    #[inline]
    pub(super) fn is_low(&self) -> bool {
        self.spares < MAX_ALLOC_PER_MAP
    }

    /// Allocates spares until there is no room for more. Sleeps. Not in the frame of its caller, on which host page
    /// faults and reclaim are stacked.
    #[inline(never)]
    pub(super) fn top_up(&mut self) -> Result {
        while self.spares < SPARE {
            self.put_spare(TablePage::new()?);
        }
        Ok(())
    }

    fn put_spare(&mut self, page: TablePage) {
        if let Some(s) = self.spare.get_mut(self.spares) {
            *s = page.into_hpa();
            self.spares += 1;
        }
    }

    /// Frees the unlinked tables, as soon as nobody walks them. Translations have been flushed since they were
    /// unlinked, and since pages have left.
    #[inline]
    pub(super) fn release(&mut self) {
        self.leaving.finish();
        self.unlinked.free_after_readers();
    }

    /// Frees the unlinked tables now. No processor and nobody else uses the tree any more.
    pub(crate) fn release_now(&mut self) {
        self.unlinked.free();
    }
}

impl Drop for TablePool {
    fn drop(&mut self) {
        self.release();
        while self.alloc().is_some() {}
    }
}

/// The entry at `index` of `table`.
#[inline]
fn entry(table: &Table<TablePage>, index: usize) -> &AtomicU64 {
    let first = page::phys_to_virt(table.hpa().0).cast::<u64>();
    // SAFETY: By its invariant a `Table<TablePage>` is a page that came from `TablePage::into_hpa`; the reference lives
    // no longer than the handle. The page is allocated as long as that: each operation of the walker runs in a read
    // section of RCU (`rcu::read_lock`, or preemption or interrupts off), or nobody else uses the tree, and a page that
    // came to `free`, after the last entry that pointed to it was gone, is freed by `PageChain::free_after_readers`.
    // The index is cut to the page. Hardware and software access tables by atomic 64-bit accesses only.
    unsafe { AtomicU64::from_ptr(first.add(index & 511)) }
}

impl Tables for TablePool {
    type Page = TablePage;

    const FLUSHES: bool = arch::FORGETS;

    #[inline]
    fn flush(&mut self) {
        let last = REMOVALS.last();
        arch::forget_translations();
        REMOVALS.forgotten_everywhere(last);
    }

    #[inline]
    fn reports(&self) -> bool {
        LeavingPages::are_wanted()
    }

    #[inline]
    fn removed(&mut self, leaf: &MappedLeaf) {
        if !self.leaving.put(leaf) {
            self.flush();
            self.leaving.finish();
            self.leaving.put(leaf);
        }
    }

    #[inline]
    fn load(&self, table: &Table<TablePage>, index: usize) -> u64 {
        entry(table, index).load(Ordering::Acquire)
    }

    #[inline]
    fn store(&self, table: &Table<TablePage>, index: usize, value: u64) {
        entry(table, index).store(value, Ordering::Relaxed);
    }

    #[inline]
    fn swap(&self, table: &Table<TablePage>, index: usize, new: u64) -> u64 {
        let old = entry(table, index).swap(new, Ordering::AcqRel);
        self.note(old, new);
        old
    }

    #[inline]
    fn cmpxchg(
        &self,
        table: &Table<TablePage>,
        index: usize,
        old: u64,
        new: u64,
    ) -> Result<(), u64> {
        entry(table, index)
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| self.note(old, new))
    }

    fn alloc(&mut self) -> Option<TablePage> {
        let n = self.spares.checked_sub(1)?;
        let hpa = *self.spare.get(n)?;
        self.spares = n;
        // SAFETY: The address came from `into_hpa` by the invariant, and is no spare any more.
        Some(unsafe { TablePage::from_hpa(hpa) })
    }

    #[cold]
    fn unused(&mut self, table: Table<TablePage>) {
        for i in 0..TABLE_ENTRIES {
            self.store(&table, i, 0);
        }
        // SAFETY: The walker has it from `alloc`, and hands it back once; it was never linked.
        self.put_spare(unsafe { TablePage::from_hpa(table.hpa()) });
    }

    fn free(&mut self, table: Table<TablePage>) {
        // SAFETY: The address came from `into_hpa`, of what `alloc` gave, and is handed back once.
        unsafe { self.unlinked.push(table.hpa().0) };
    }
}

/// The frame of memory that the host maps writable at `hva` and that needs no more for a write, unless the mapping is
/// being invalidated, and the size of the leaf that maps it. The frame stays there until the section ends.
#[inline]
pub(super) fn resident(
    invalidations: &Invalidations,
    section: &Section<'_>,
    hva: u64,
    inside: InOwnMm<'_>,
) -> Option<(Hpa, Level)> {
    if invalidations.covers(section, hva) {
        return None;
    }
    // SAFETY: `inside` says that the address space is the VM's. `Notifier` is registered for that one. None of its
    // invalidations of this address is under way, as has just been seen inside of the section; one that begins from now
    // on waits until the section has ended (`Gate::wait`).
    let (pfn, level) = unsafe { gup::mapped_writable(hva as usize, inside.0) }?;
    Some((Hpa(pfn << 12), self::level(level)))
}

/// The level of leaves of that size.
#[inline]
pub(super) const fn level(host: gup::MappingLevel) -> Level {
    match host {
        gup::MappingLevel::L4K => Level::L1,
        gup::MappingLevel::L2M => Level::L2,
        gup::MappingLevel::L1G => Level::L3,
    }
}

/// A proof that, for `'a`, interrupts are off and the current address space is that of the VM at hand.
#[derive(Clone, Copy)]
pub(crate) struct InOwnMm<'a>(IrqsOff<'a>);

impl<'a> InOwnMm<'a> {
    /// `mm` is that of the VM whose memory the proof is shown to. `None`: the caller runs in another one.
    #[inline(always)]
    pub(crate) fn new(mm: &Mm, irqs_off: IrqsOff<'a>) -> Option<Self> {
        is_current_mm(mm).then_some(Self(irqs_off))
    }
}
