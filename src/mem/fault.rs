// SPDX-License-Identifier: GPL-2.0
//! Nested faults: from a guest-physical address to a leaf of the nested page table.
//!
//! Called by vCPU threads: [`GuestMemory::fault_resident`] in a stay, with interrupts off, [`GuestMemory::fault`] outside of one.

use crate::linux::gup;
use crate::mem::addr::{Gpa, Hpa, Level};
use crate::mem::memory::{GuestMemory, Mmu};
use crate::mem::slots::{Slot, READONLY};
use crate::mem::view::MemoryView;
use crate::mem::walk::{Leaf, MapError, MemType, Perm};
use crate::x86::paging::nested::{NestedTable, TablePool};
use core::sync::atomic::Ordering;
use kernel::mm::Mm;
use kernel::prelude::*;

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

impl GuestMemory {
    /// Fills up the spare tables. Sleeps. Not in `fault`'s frame, on which host page faults and reclaim are stacked.
    #[inline(never)]
    pub(super) fn refill(&self) -> Result {
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
}
