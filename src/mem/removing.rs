// SPDX-License-Identifier: GPL-2.0
//! Taking translations and rights away: walks without a lock, one flush at the end, and only then tables are freed.
//!
//! Called by slot changes, dirty logs and notifier callbacks, any number of them at a time, and by faults that replace
//! what is mapped.

use crate::abi::stats::Mapped;
use crate::linux::sched;
use crate::mem::addr::{Gpa, GpaRange, Level};
use crate::mem::memory::GuestMemory;
use crate::mem::mmu::TablePool;
use crate::mem::walk::{Cursor, MappedLeaf};
use core::cell::Cell;
use kernel::sync::rcu;

/// Entries visited between two chances to reschedule.
const BUDGET: u32 = 16 * 1024;

/// The flush at the end of an operation, if it needs one; see [`Unflushed`](crate::mem::invalidations::Unflushed).
pub(super) struct Flushing<'a> {
    memory: &'a GuestMemory,
    /// The operation has taken something away.
    pub(super) needed: bool,
    /// Number of the last thing that it has taken away, where that is kept.
    removed: u64,
}

impl Flushing<'_> {
    /// The flush is to be good for what was removed by `tables`; `needed` says whether that is so.
    #[inline]
    pub(super) fn is_for(&mut self, tables: &TablePool) {
        self.removed = tables.last_removal();
    }
}

impl Drop for Flushing<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.needed || self.memory.unflushed.others() {
            self.memory.flush();
        }
        self.memory.settled.settle(self.removed);
        self.memory.unflushed.end();
    }
}

/// An operation that takes translations or rights away. When it is dropped no vCPU uses them any more. Interrupts are
/// on; nothing here sleeps where `may_sleep` is not said.
pub(super) struct Removing<'a> {
    // In this order: what has been unlinked is freed after the flush.
    flushing: Flushing<'a>,
    tables: TablePool,
}

impl Removing<'_> {
    /// Repeats `step` until it is done, letting others run in between if `may_sleep`.
    fn walk(
        &mut self,
        cursor: Cursor,
        may_sleep: bool,
        step: impl FnMut(&GuestMemory, &mut TablePool, &mut Cursor) -> bool,
    ) -> bool {
        self.walk_with(cursor, step, |_| {
            if may_sleep {
                sched::cond_resched();
            }
        })
    }

    /// Repeats `step` until it is done, and does `between` in between.
    fn walk_with(
        &mut self,
        mut cursor: Cursor,
        mut step: impl FnMut(&GuestMemory, &mut TablePool, &mut Cursor) -> bool,
        mut between: impl FnMut(&mut TablePool),
    ) -> bool {
        loop {
            let done = {
                let _tables_stay = rcu::read_lock();
                step(self.flushing.memory, &mut self.tables, &mut cursor)
            };
            if done {
                self.flushing.needed |= cursor.flush;
                self.flushing.is_for(&self.tables);
                return cursor.hit;
            }
            between(&mut self.tables);
        }
    }

    /// Unmaps `range`.
    pub(super) fn unmap(&mut self, range: GpaRange, may_sleep: bool) {
        self.walk(Cursor::new(range), may_sleep, |m, tables, cursor| {
            m.table.unmap_some(tables, cursor, BUDGET)
        });
    }

    /// Takes the write right from `range`. Sleeps.
    pub(super) fn write_protect(&mut self, range: GpaRange) {
        self.walk(Cursor::new(range), true, |m, tables, cursor| {
            m.table.write_protect_some(tables, cursor, BUDGET)
        });
    }

    /// Takes the write right from `range`, and splits huge leaves there, so that the next write to one of their pages
    /// is that of a small page; where memory is short they stay, without the right. Sleeps.
    pub(super) fn split(&mut self, range: GpaRange) {
        let clean = self.cleans();
        let may_split = Cell::new(true);
        self.walk_with(
            Cursor::new(range),
            |m, tables, cursor| {
                if may_split.get() {
                    m.table.split_some(tables, cursor, BUDGET, clean)
                } else {
                    m.table.write_protect_some(tables, cursor, BUDGET)
                }
            },
            |tables| {
                // Who is being killed only has to leave what is true.
                let goes_on = may_split.get()
                    && !sched::fatal_signal_pending()
                    && (!tables.is_low() || tables.top_up().is_ok());
                may_split.set(goes_on);
                sched::cond_resched();
            },
        );
    }

    /// Unmaps the areas of 2 MiB or 1 GiB in `range` that are mapped in parts and of which `whole` says that they need
    /// not be. Sleeps.
    pub(super) fn join(&mut self, range: GpaRange, mut whole: impl FnMut(Gpa, Level) -> bool) {
        self.walk(Cursor::new(range), true, |m, tables, cursor| {
            m.table.join_some(tables, cursor, BUDGET, &mut whole)
        });
    }

    /// Whether what is protected stays writable, since the processor logs the next write. While there is a reset point
    /// every write right comes by a fault.
    fn cleans(&self) -> bool {
        let memory = self.flushing.memory;
        memory.logs_writes() && !memory.reset.is_armed()
    }

    /// The next write to a page in `range`, which lies in a slot whose writes are logged, is noticed again: by a fault,
    /// or because the processor logs it. The caller holds `GuestMemory.update`. Sleeps.
    pub(super) fn protect(&mut self, range: GpaRange) {
        self.protect_meant(Cursor::new(range));
    }

    /// As [`Removing::protect`], of no more than 64 pages those with a bit in `pages`.
    pub(super) fn protect_pages(&mut self, range: GpaRange, pages: u64) {
        self.protect_meant(Cursor::of_pages(range, pages));
    }

    fn protect_meant(&mut self, cursor: Cursor) {
        let clean = self.cleans();
        self.walk(cursor, true, |m, tables, cursor| {
            if clean {
                m.table.clean_some(tables, cursor, BUDGET)
            } else {
                m.table.write_protect_some(tables, cursor, BUDGET)
            }
        });
    }

    /// Whether a page in `range` was accessed since mapped or last aged, and makes it count as not accessed. Where the
    /// processor has no accessed bits what is mapped there is unmapped.
    pub(super) fn age(&mut self, range: GpaRange) -> bool {
        self.walk(Cursor::new(range), false, |m, tables, cursor| {
            m.table.age_some(tables, cursor, BUDGET)
        })
    }
}

impl GuestMemory {
    /// What has to exist from before something is taken away until the flush, which it makes.
    #[inline]
    pub(super) fn flushing(&self) -> Flushing<'_> {
        self.unflushed.begin();
        Flushing {
            memory: self,
            needed: false,
            removed: 0,
        }
    }

    /// Begins an operation.
    pub(super) fn removing(&self) -> Removing<'_> {
        Removing {
            flushing: self.flushing(),
            tables: TablePool::new(),
        }
    }

    /// Unmaps `range`, letting others run in between if `may_sleep`. When it returns no vCPU uses what was mapped.
    pub(super) fn unmap(&self, range: GpaRange, may_sleep: bool) {
        self.removing().unmap(range, may_sleep);
    }

    /// [`Removing::age`] where the processor has accessed bits: nothing is taken away.
    pub(super) fn age_in_place(&self, range: GpaRange) -> bool {
        let mut cursor = Cursor::new(range);
        let mut none = TablePool::new();
        let _tables_stay = rcu::read_lock();
        while !self.table.age_some(&mut none, &mut cursor, BUDGET) {}
        cursor.hit
    }

    /// How many leaves of each size there are. Others come and go meanwhile. Sleeps.
    pub(crate) fn mapped(&self) -> Mapped {
        let mut leaves = [0; 3];
        self.show_leaves(BUDGET, |leaf| {
            if let Some(n) = leaves.get_mut((leaf.level as usize).wrapping_sub(1)) {
                *n = u64::wrapping_add(*n, 1);
            }
        });
        Mapped {
            leaves,
            split: self.parts.count(),
        }
    }

    /// Shows all leaves, `budget` entries between two chances to reschedule. Others come and go meanwhile. Sleeps.
    pub(crate) fn show_leaves(&self, budget: u32, mut show: impl FnMut(&MappedLeaf)) {
        let mut none = TablePool::new();
        let mut cursor = Cursor::new(self.table.all());
        let mut done = false;
        while !done {
            let tables_stay = rcu::read_lock();
            done = self
                .table
                .show_some(&mut none, &mut cursor, budget, &mut show);
            drop(tables_stay);
            sched::cond_resched();
        }
    }

    /// Whether a page in `range` was accessed since mapped or last aged.
    pub(super) fn test_accessed(&self, range: GpaRange) -> bool {
        let mut none = TablePool::new();
        let _tables_stay = rcu::read_lock();
        self.table.test_accessed(&mut none, range)
    }
}
