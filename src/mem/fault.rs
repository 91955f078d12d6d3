// SPDX-License-Identifier: GPL-2.0
//! Nested faults: from a guest-physical address to a leaf of the nested page table.
//!
//! Called by vCPU threads: [`GuestMemory::fault_resident`] in a stay, with interrupts off, [`GuestMemory::fault`]
//! outside of one.

use crate::abi::stats::VmCounter;
use crate::linux::preempt::PreemptGuard;
use crate::linux::{gup, sched};
use crate::mem::addr::{Gpa, Hpa, Level};
use crate::mem::format::{Leaf, MemType, Perm};
use crate::mem::invalidations::{Gate, Section};
use crate::mem::memory::GuestMemory;
use crate::mem::mmu::{self, InOwnMm, TablePool};
use crate::mem::ring::Ring;
use crate::mem::rounds::Round;
use crate::mem::slot_table::Entry;
use crate::mem::slots::Slot;
use crate::mem::walk::{Allow, Change, MapError};
use crate::mem::writer::{NotSaved, Writer};
use core::sync::atomic::Ordering;
use kernel::mm::Mm;
use kernel::prelude::*;
use kernel::sync::rcu;

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
    /// Mapped: enter the guest.
    Mapped,
    /// The host's change of the page, another fault or a signal came in between: enter the guest, which tries again.
    Retry,
    /// No memory there, or a write to read-only memory: an MMIO access.
    Mmio,
    /// The slot's user memory is not there: KVM_RUN fails with EFAULT.
    BadUserMemory,
    /// The host has to wait for the page at this user address, which whoever asked did not want.
    Awaited(usize),
    /// The memory behind the page is broken: the thread has been sent SIGBUS, which tells where.
    Poisoned,
    /// As many pages have been written since the reset point as it allows: KVM_RUN fails with ENOSPC.
    Unsaved,
}

/// A vCPU whose thread handles a nested fault.
pub(crate) struct Faulting<'a> {
    /// Of the vCPU.
    pub(crate) gate: &'a Gate,
    /// The vCPU's.
    pub(crate) tables: &'a mut TablePool,
    /// The vCPU's dirty ring, if it has one.
    pub(crate) ring: Option<&'a Ring>,
    /// The thread may wait for the page. Else a page that the host has to wait for is [`FaultOutcome::Awaited`].
    pub(crate) may_wait: bool,
}

impl GuestMemory {
    /// The largest leaf for `gpa`, where the host has one of level `host`.
    #[inline]
    fn largest(&self, slot: &Slot, gpa: Gpa, host: Level) -> Level {
        if host == Level::L1 || self.largest == Level::L1 || self.touches.is_on() {
            Level::L1
        } else {
            host.min(self.largest).min(slot.max_level(gpa))
        }
    }

    /// How to map the page behind `gpa`, which may have a leaf of `level`.
    ///
    /// A huge page that code runs from can machine-check the host on some CPUs when the guest changes it under a fetch
    /// (CVE-2018-12207): there huge leaves are for data only, and from the first fetch on the page is mapped in parts.
    #[inline]
    fn how(&self, tables: &TablePool, gpa: Gpa, level: Level, fetch: bool) -> Mapped {
        if level == Level::L1 || !self.nx_huge.load(Ordering::Relaxed) {
            Mapped::Leaf(level)
        } else if self.table.has_parts(tables, gpa, Level::L2) {
            Mapped::Leaf(Level::L1)
        } else if fetch {
            Mapped::Parts
        } else if level == Level::L3 && self.table.has_parts(tables, gpa, level) {
            Mapped::Leaf(Level::L2)
        } else {
            Mapped::Leaf(level)
        }
    }

    /// What remains of `perm` in a leaf of `level`; see [`GuestMemory::how`].
    #[inline]
    fn perm_at(&self, level: Level, perm: Perm) -> Perm {
        if self.nx_huge.load(Ordering::Relaxed) && level != Level::L1 {
            perm.without(Perm::X)
        } else {
            perm
        }
    }

    /// The frequent case of [`GuestMemory::fault`], inside a stay: memory (anonymous, shmem, hugetlb) that is resident
    /// and writable, an entry of the nested table that is empty or lacks rights to the same page, nobody at work on
    /// either. False if it is not that; nothing that the guest sees has been done then. `entry` is the slot at `gpa`,
    /// read in a section that goes on.
    ///
    /// An invalidation that begins waits until the section here is over, so that what the host's page tables say now is
    /// so until there is a mapping for the invalidation to find.
    pub(crate) fn fault_resident(
        &self,
        entry: &Entry,
        by: &mut Faulting<'_>,
        gpa: Gpa,
        (write, fetch): (bool, bool),
        inside: InOwnMm<'_>,
    ) -> bool {
        let slot = &entry.slot;
        if slot.is_readonly() {
            return false;
        }
        if slot.is_logging() {
            return (write || !self.logs_reads_as_reads(slot))
                && self.logged_resident(entry, by, gpa, inside);
        }
        let section = by.gate.enter();
        let Some((leaf, host)) = self.resident(&section, slot, gpa, inside) else {
            return false;
        };
        let tables = &mut *by.tables;
        // As in `how`, which asks the table first.
        let nx = self.nx_huge.load(Ordering::Relaxed);
        let mut level = self.largest(slot, gpa, host);
        if nx && fetch {
            level = level.min(Level::L2);
        }
        while level > Level::L1 {
            let base = gpa.align_down(level);
            let whole = Leaf {
                hpa: leaf.hpa.align_down(level),
                perm: if nx && !fetch { Perm::RW } else { Perm::RWX },
                ..leaf
            };
            let done = if nx && fetch {
                let done = self.table.map_parts(tables, base, &whole, Allow::New);
                if done.is_ok() {
                    self.parts.came();
                }
                done.is_ok()
            } else {
                self.table.map_new(tables, base, level, &whole).is_ok()
            };
            if done || !nx {
                return done;
            }
            level = level.down().unwrap_or(Level::L1);
        }
        let page = gpa.page();
        let done = self.table.map_new(tables, page, Level::L1, &leaf).is_ok();
        if done {
            self.touches.record(gpa);
        }
        // A page that is still protected from a log which has ended.
        done || write && self.map_more(tables, page, &leaf).is_ok()
    }

    /// A leaf of 4 KiB, with all rights, for the page of `slot` at `gpa`, and the level of the host's, if the page is
    /// resident and may be written without being saved before.
    #[inline(always)]
    fn resident(
        &self,
        section: &Section<'_>,
        slot: &Slot,
        gpa: Gpa,
        inside: InOwnMm<'_>,
    ) -> Option<(Leaf, Level)> {
        let hva = slot.hva_of(gpa)?;
        // In the section: see `rounds`.
        if self.reset.is_armed() {
            return None;
        }
        let (hpa, host) = mmu::resident(&self.invalidations, section, hva.page().0, inside)?;
        let leaf = Leaf {
            hpa,
            perm: Perm::RWX,
            mem_type: self.ram(),
            accessed: true,
            dirty: true,
        };
        Some((leaf, host))
    }

    /// Maps a small page at `gpa`, or adds rights to it. Not in the frame of its callers, whose other ways are shorter.
    #[inline(never)]
    fn map_more(&self, tables: &mut TablePool, gpa: Gpa, leaf: &Leaf) -> Result<Change, MapError> {
        self.table.map(tables, gpa, Level::L1, leaf, Allow::More)
    }

    /// [`GuestMemory::fault_resident`] where writes are logged: the page gets the right to be written, in a leaf of its
    /// own, and is marked. A read does the same, see [`HostPage::find`].
    #[inline(never)]
    fn logged_resident(
        &self,
        entry: &Entry,
        by: &mut Faulting<'_>,
        gpa: Gpa,
        inside: InOwnMm<'_>,
    ) -> bool {
        let section = by.gate.enter();
        let Some((leaf, _)) = self.resident(&section, &entry.slot, gpa, inside) else {
            return false;
        };
        let mapped = self.map_more(by.tables, gpa.page(), &leaf);
        drop(section);
        let Ok(change) = mapped else {
            return false;
        };
        if change == Change::New {
            self.touches.record(gpa);
        }
        // In this order: see `memory`.
        entry.mark_dirty(gpa, by.ring);
        true
    }

    /// Handles a nested fault at `gpa`. Runs in the VM's own mm, may sleep.
    pub(crate) fn fault(
        &self,
        mm: &Mm,
        by: &mut Faulting<'_>,
        gpa: Gpa,
        write: bool,
        fetch: bool,
    ) -> Result<FaultOutcome> {
        let slots = self.slots.read();
        let Some(entry) = slots.find(gpa) else {
            return Ok(FaultOutcome::Mmio);
        };
        let slot = &entry.slot;
        self.stats.add(VmCounter::SlowFaults, 1);
        if write && slot.is_readonly() {
            return Ok(FaultOutcome::Mmio);
        }
        let Some(hva) = slot.hva_of(gpa) else {
            return Ok(FaultOutcome::Mmio);
        };
        let hva = usize::try_from(hva.page().0)?;
        if by.tables.is_low() {
            by.tables.top_up()?;
        }
        let seen = self.invalidations.ended();
        let round = self.reset.round();
        let how = Access {
            write,
            readonly: slot.is_readonly(),
            may_wait: by.may_wait,
        };
        let page = match HostPage::find(mm, hva, how)? {
            Ok(page) => page,
            Err(outcome) => return Ok(outcome),
        };
        let writable = match self.save_before(round, gpa, hva, write, &page) {
            Ok(writable) => writable,
            Err(NotSaved::NoMemory) => return Err(ENOMEM),
            Err(NotSaved::Full) => return Ok(FaultOutcome::Unsaved),
            Err(NotSaved::Fault) => return Ok(FaultOutcome::Retry),
        };
        let frozen = writable && self.reset.has_forked() && self.is_frozen(by.tables, gpa);
        if frozen && write {
            self.thaw_way(by, gpa, round);
        }
        let keeps = frozen || self.logs_reads_as_reads(slot);
        let page = HostPage {
            writable: writable && (write || !keeps),
            ..page
        };
        let fault = Fault {
            gpa,
            fetch,
            hva,
            slot,
            logging: slot.is_logging() || round.is_armed(),
            round,
        };
        let mapped = self.map_page(mm, by, &fault, &page, seen);
        // In this order: see `memory`.
        if mapped.is_ok() && page.writable {
            entry.mark_dirty(gpa, by.ring);
        }
        Ok(mapped.err().unwrap_or(FaultOutcome::Mapped))
    }

    /// Whether what is only read must not be mapped writable, because the processor does not say later whether it has
    /// been written, and so it would have to count as that at once.
    #[inline]
    fn logs_reads_as_reads(&self, slot: &Slot) -> bool {
        slot.is_logging() && !self.table.has_accessed_bits()
    }

    /// Whether `page` may be mapped writable at `gpa` as far as the reset point goes. A write saves it first.
    #[inline]
    fn save_before(
        &self,
        round: Round,
        gpa: Gpa,
        hva: usize,
        write: bool,
        page: &HostPage,
    ) -> Result<bool, NotSaved> {
        // Device memory is not put back.
        if !round.is_armed() || !page.writable || !page.ram {
            return Ok(page.writable);
        }
        if !write {
            return Ok(self.reset.is_saved(gpa, hva));
        }
        self.reset.save(gpa, hva, Writer::Limited).map(|()| true)
    }

    #[cold]
    fn is_frozen(&self, tables: &TablePool, gpa: Gpa) -> bool {
        let _tables_stay = rcu::read_lock();
        self.table.is_frozen(tables, gpa)
    }

    /// The page at `gpa` is about to be written, and has been saved in this round.
    #[cold]
    fn thaw_way(&self, by: &mut Faulting<'_>, gpa: Gpa, round: Round) {
        let gate = by.gate;
        self.thaw(by.tables, gpa, |end| {
            let _pinned = PreemptGuard::new();
            let _section = gate.enter();
            let same = self.reset.round() == round;
            if same {
                end();
            }
            same
        });
    }

    /// Maps the page that was found, unless the host has changed its mind since `seen` was counted, or another round
    /// has begun since it was asked whether the page is saved.
    #[inline]
    fn map_page(
        &self,
        mm: &Mm,
        by: &mut Faulting<'_>,
        fault: &Fault<'_>,
        page: &HostPage,
        seen: u64,
    ) -> Result<(), FaultOutcome> {
        let Fault { gpa, logging, .. } = *fault;
        let pinned = PreemptGuard::new();
        let section = by.gate.enter();
        // In this order: what is not under way any more has been counted.
        if self.invalidations.covers(&section, fault.hva as u64)
            || self.invalidations.ended() != seen
            || self.reset.round() != fault.round
        {
            self.stats.add(VmCounter::FaultRetries, 1);
            return Err(FaultOutcome::Retry);
        }
        // Here, because from now on until it is mapped no writeback begins: it would not see the mark for a new one.
        if let Some(p) = page.counted.as_ref().filter(|_| page.writable) {
            p.set_dirty();
        }
        let tables = &mut *by.tables;
        let how = if page.counted.is_some() && !logging && self.largest != Level::L1 {
            let host = mmu::level(gup::host_mapping_level(mm, fault.hva));
            let level = self.largest(fault.slot, gpa, host);
            self.how(tables, gpa, level, fault.fetch)
        } else {
            Mapped::Leaf(Level::L1)
        };
        let perm = if page.writable { Perm::RWX } else { Perm::RX };
        let span = how.span();
        let leaf = Leaf {
            hpa: page.hpa.align_down(span),
            perm: self.perm_at(how.level(), perm),
            mem_type: if page.ram {
                self.ram()
            } else {
                MemType::Device
            },
            accessed: true,
            dirty: page.writable,
        };
        let start = gpa.align_down(span);
        let mut map = |allow| match how {
            Mapped::Leaf(level) => self.table.map(tables, start, level, &leaf, allow),
            Mapped::Parts => self.table.map_parts(tables, start, &leaf, allow),
        };
        let mut mapped = map(Allow::More);
        if mapped == Err(MapError::Present) {
            let mut flushing = self.flushing();
            mapped = map(Allow::Any);
            flushing.needed = mapped.is_ok_and(|change| change.needs_flush());
            flushing.is_for(tables);
            // A flush waits for other CPUs, which may wait for this section.
            drop((section, pinned));
            drop(flushing);
            tables.release();
        }
        match mapped {
            Ok(change) => {
                if change == Change::New {
                    self.touches.record(gpa);
                }
                if how == Mapped::Parts {
                    self.parts.came();
                }
                Ok(())
            }
            // There is no spare table left, or another vCPU was faster.
            Err(MapError::NoMemory | MapError::Busy | MapError::Present | MapError::Frozen) => {
                Err(FaultOutcome::Retry)
            }
            Err(_) => Err(FaultOutcome::BadUserMemory),
        }
    }
}

/// A nested fault on memory.
struct Fault<'a> {
    gpa: Gpa,
    fetch: bool,
    /// User address of the page.
    hva: usize,
    slot: &'a Slot,
    /// Each page of 4 KiB has a leaf of its own: writes are logged, or there is a reset point.
    logging: bool,
    /// When it was asked whether the page is saved.
    round: Round,
}

/// An access to a page of the host's.
#[derive(Clone, Copy)]
struct Access {
    write: bool,
    /// The guest may not write there.
    readonly: bool,
    /// See [`Faulting`].
    may_wait: bool,
}

/// What the host has at a user address.
struct HostPage {
    /// The reference to memory that has one.
    counted: Option<gup::PageRef>,
    hpa: Hpa,
    /// May be mapped writable.
    writable: bool,
    /// Memory, not a device.
    ram: bool,
}

impl HostPage {
    /// Finds the page, as a write by user space would if `write`. Otherwise the fault is over. Sleeps. ENOMEM.
    ///
    /// A page that is writable anyway is mapped so on a read too: no second fault. Where writes are logged it counts as
    /// dirty then, as in KVM: programs rely on the page of code that ran being in the log.
    #[inline]
    fn find(mm: &Mm, hva: usize, how: Access) -> Result<Result<Self, FaultOutcome>> {
        let write = how.write;
        let want_write = write || !how.readonly;
        let fast = if want_write {
            gup::get_user_page_fast_only(hva, true)
        } else {
            None
        };
        let page = match fast {
            Some(p) => Ok(p),
            None if how.may_wait => gup::get_user_page(hva, write),
            None => match gup::get_user_page_nowait(hva, write).transpose() {
                Some(page) => page,
                None => return Ok(Err(FaultOutcome::Awaited(hva))),
            },
        };
        let (counted, pfn, writable, ram) = match page {
            Ok(p) => {
                let (pfn, writable) = (p.pfn(), p.writable());
                (Some(p), pfn, writable, true)
            }
            Err(e) if e == ENOMEM => return Err(e),
            Err(e) if e == EINTR => return Ok(Err(FaultOutcome::Retry)),
            Err(e) if e == EHWPOISON => {
                sched::signal_poisoned(hva);
                return Ok(Err(FaultOutcome::Poisoned));
            }
            Err(_) => match gup::follow_pfnmap(mm, hva, write) {
                Ok(m) => (None, m.pfn, m.writable, gup::is_ram(m.pfn)),
                // As in KVM: what user space lets be read is for it to write.
                Err(e) if e == EROFS => return Ok(Err(FaultOutcome::Mmio)),
                Err(_) => return Ok(Err(FaultOutcome::BadUserMemory)),
            },
        };
        Ok(Ok(Self {
            counted,
            hpa: Hpa(pfn << 12),
            writable: writable && want_write,
            ram,
        }))
    }
}
