// SPDX-License-Identifier: GPL-2.0
//! What guest memory's spin lock protects: the nested page table, the pages it is made of, and which of the host's
//! changes are under way.
//!
//! The only file outside of `rust/` and the vendors with unsafe code: page tables are memory that hardware reads, and
//! resident pages are used without a reference. Called by faults, slot changes and notifier callbacks, always under
//! `GuestMemory.mmu`.

use crate::arch::NestedTable;
use crate::linux::gup;
use crate::linux::irqflags::IrqsOff;
use crate::linux::page::{self, Pages};
use crate::linux::sched::is_current_mm;
use crate::mem::addr::Hpa;
use crate::mem::format::MemType;
use crate::mem::slots::Slot;
use crate::mem::walk::{Page, Table, Tables, MAX_ALLOC_PER_MAP};
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::mm::Mm;
use kernel::prelude::*;

/// Spare tables kept ready: enough for one `map` of each of a few vCPUs.
const SPARE: usize = 4 * MAX_ALLOC_PER_MAP;
/// Tables that one bounded operation can unlink: it visits 32 of them and their parents (see `memory::BUDGET`).
const FREED: usize = 64;

/// One zeroed page that becomes a table.
pub(crate) struct TablePage(Pages);

impl TablePage {
    /// Allocates the page. Sleeps.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Pages::new(0)?))
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
    fn hpa(&self) -> Hpa {
        Hpa(self.0.phys())
    }

    fn into_hpa(self) -> Hpa {
        Hpa(self.0.into_phys())
    }
}

/// Table pages: spare ones, and unlinked ones that a processor may still walk.
///
/// # Invariants
///
/// Every address came from [`Page::into_hpa`] of a [`TablePage`] and is in no table.
pub(crate) struct TablePool {
    spare: [Hpa; SPARE],
    spares: usize,
    freed: [Hpa; FREED],
    freeds: usize,
}

impl TablePool {
    /// Empty.
    pub(super) const fn new() -> Self {
        Self {
            spare: [Hpa(0); SPARE],
            spares: 0,
            freed: [Hpa(0); FREED],
            freeds: 0,
        }
    }

    /// Fewer spares than one `map` may need.
    pub(super) fn is_low(&self) -> bool {
        self.spares < MAX_ALLOC_PER_MAP
    }

    /// Allocates until there is enough for one `map`. Sleeps.
    pub(super) fn top_up(&mut self) -> Result {
        while self.is_low() {
            self.put_spare(TablePage::new()?);
        }
        Ok(())
    }

    /// Moves spares over from `other`.
    pub(super) fn take_from(&mut self, other: &mut Self) {
        while self.spares < SPARE {
            let Some(page) = other.alloc() else { return };
            self.put_spare(page);
        }
    }

    fn put_spare(&mut self, page: TablePage) {
        if let Some(s) = self.spare.get_mut(self.spares) {
            *s = page.into_hpa();
            self.spares += 1;
        }
    }

    /// Frees the unlinked tables. Translations have been flushed, or nothing was unlinked since the last call.
    pub(crate) fn release(&mut self) {
        for t in self.freed.iter().take(self.freeds) {
            // SAFETY: The address came from `into_hpa` by the invariant, and `freeds` is reset below.
            drop(unsafe { TablePage::from_hpa(*t) });
        }
        self.freeds = 0;
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
    // SAFETY: By its invariant a `Table<TablePage>` is a page that came from `TablePage::into_hpa` and has not come
    // back to `free`, which takes the last handle; the reference lives no longer than the handle. The index is cut to
    // the page. Hardware and software access tables by atomic 64-bit accesses only.
    unsafe { AtomicU64::from_ptr(first.add(index & 511)) }
}

impl Tables for TablePool {
    type Page = TablePage;

    #[inline]
    fn load(&self, table: &Table<TablePage>, index: usize) -> u64 {
        entry(table, index).load(Ordering::Relaxed)
    }

    #[inline]
    fn store(&self, table: &Table<TablePage>, index: usize, value: u64) {
        entry(table, index).store(value, Ordering::Release);
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
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
            .map(|_| ())
    }

    fn alloc(&mut self) -> Option<TablePage> {
        let n = self.spares.checked_sub(1)?;
        let hpa = *self.spare.get(n)?;
        self.spares = n;
        // SAFETY: The address came from `into_hpa` by the invariant, and is no spare any more.
        Some(unsafe { TablePage::from_hpa(hpa) })
    }

    fn free(&mut self, table: Table<TablePage>) {
        match self.freed.get_mut(self.freeds) {
            Some(f) => {
                *f = table.hpa();
                self.freeds += 1;
            }
            // The budget rules this out; a lost page is the lesser evil against one that is reused while walked.
            None => kernel::pr_err_once!(
                "more page tables unlinked at once than accounted for; a page is lost\n"
            ),
        }
    }
}

/// Nested page tables and the state of invalidations.
pub(super) struct Mmu {
    pub(super) table: NestedTable,
    /// Tables that were unlinked and wait for the flush.
    pub(super) pool: TablePool,
    /// Invalidations that ended.
    pub(super) invalidations: u64,
    /// Invalidations under way, and the hull of their ranges.
    invalidating: u32,
    hull: (u64, u64),
    /// The slot that is being deleted or moved away, as it was: perhaps no longer in the table, but still mapped.
    pub(super) leaving: Option<Slot>,
    /// How memory is mapped.
    pub(super) ram: MemType,
}

impl Mmu {
    /// Nothing is mapped and no invalidation is under way.
    pub(super) fn new(table: NestedTable) -> impl Init<Self> {
        init!(Self {
            table,
            pool: TablePool::new(),
            invalidations: 0,
            invalidating: 0,
            hull: (0, 0),
            leaving: None,
            ram: MemType::Ram,
        })
    }

    /// An invalidation of user addresses `start` to `end` begins.
    pub(super) fn begin_invalidation(&mut self, start: u64, end: u64) {
        self.hull = if self.invalidating == 0 {
            (start, end)
        } else {
            (self.hull.0.min(start), self.hull.1.max(end))
        };
        self.invalidating = self.invalidating.saturating_add(1);
    }

    /// An invalidation ends.
    pub(super) fn end_invalidation(&mut self) {
        self.invalidations = self.invalidations.wrapping_add(1);
        self.invalidating = self.invalidating.saturating_sub(1);
    }

    /// Whether an invalidation has ended since `seen` were counted, or one that may concern `hva` is under way.
    pub(super) fn must_retry(&self, seen: u64, hva: u64) -> bool {
        self.invalidations != seen || self.is_invalidating(hva)
    }

    /// An invalidation that may concern `hva` is under way.
    #[inline]
    fn is_invalidating(&self, hva: u64) -> bool {
        self.invalidating != 0 && self.hull.0 <= hva && hva < self.hull.1
    }

    /// The frame of memory that the host maps writable at `hva` and that needs no more for a write, unless the mapping
    /// is being invalidated, and whether a huge leaf maps it. The frame stays there while the lock is held.
    #[inline]
    pub(super) fn resident(&mut self, hva: u64, inside: InOwnMm<'_>) -> Option<(Hpa, bool)> {
        if self.is_invalidating(hva) {
            return None;
        }
        // SAFETY: `inside` says that the address space is the VM's. `Notifier` is registered for that one and takes the
        // lock, which `&mut self` shows to be held, at the beginning of an invalidation; none of this address is under
        // way.
        let (pfn, level) = unsafe { gup::mapped_writable(hva as usize, inside.0) }?;
        Some((Hpa(pfn << 12), level != gup::MappingLevel::L4K))
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
