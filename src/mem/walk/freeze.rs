// SPDX-License-Identifier: GPL-2.0
//! Freezing a whole page table at a cost that does not depend on what it maps, and thawing it way by way.
//!
//! What a leaf lets be done is the AND of the rights of all entries on the way to it ([`Format::TABLE_RIGHTS`]). So
//! taking the write right from the entries of the root freezes everything. A write thaws its way, from the root down:
//! the entries of the table below lose the write right, processors forget what they have cached, and only then the
//! entry above gets it back. At most 512 entries are visited for each level, and not again for what lies next to it.
//!
//! # Several callers
//!
//! Let an entry be *sound* if nothing below it can be written but through leaves that were mapped writable after the
//! freeze. The owner has seen to it that no [`PageTable::map`] and no [`PageTable::thaw_end`] that began before the
//! freeze comes after it. Then entries that have the write right, and lie below such entries only, are sound:
//! [`PageTable::thaw_end`] gives an entry the right when each entry below has lost it at some moment since, and what
//! has got it back by then is a new table, a leaf that was mapped, or what another caller has thawed. A split of a leaf
//! gives its parts the right only if the leaf has it at that moment. Who is late only takes away more than is needed,
//! which the next write finds.
#![forbid(unsafe_code)]

use super::table::{Cursor, Table, Tables};
use super::visitors::Entry;
use super::PageTable;
use crate::mem::addr::{Gpa, Level, TABLE_ENTRIES};
use crate::mem::format::{Format, Perm};

/// What [`PageTable::thaw_begin`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Narrowed {
    /// Level of the entry that is to get the write right.
    pub level: Level,
    /// Entries below it have lost theirs: translations have to be flushed before.
    pub flush: bool,
}

impl<F: Format, T: Tables> PageTable<F, T> {
    /// Takes the write right from `index` of `table`. Whether it had it.
    fn narrow(t: &T, table: &Table<T::Page>, index: usize) -> bool {
        loop {
            let old = t.load(table, index);
            let perm = F::perm(old);
            if !F::present(old) || !perm.contains(Perm::W) {
                return false;
            }
            let new = F::set_perm(old, perm.without(Perm::W));
            if t.cmpxchg(table, index, old, new).is_ok() {
                return true;
            }
        }
    }

    /// Takes the write right from all that is mapped. Where tables have no rights of their own every leaf is visited.
    /// Whether translations have to be flushed.
    pub fn freeze(&self, t: &mut T) -> bool {
        if !F::TABLE_RIGHTS {
            let mut cur = Cursor::new(self.all());
            while !self.write_protect_some(t, &mut cur, u32::MAX) {}
            return cur.flush;
        }
        let mut flush = false;
        for nth in 0..F::ROOT_TABLES {
            let table = self.first_table(nth.wrapping_mul(self.top.table_size()));
            for index in 0..TABLE_ENTRIES {
                flush |= Self::narrow(t, &table, index);
            }
        }
        flush
    }

    /// The first entry on the way to `gpa` that points to a table and lacks the write right.
    fn frozen(&self, t: &T, gpa: Gpa) -> Option<Entry<T::Page>> {
        if !F::TABLE_RIGHTS || gpa >= self.limit() {
            return None;
        }
        self.find_table(t, gpa.0, |value, _| !F::perm(value).contains(Perm::W))
    }

    /// Whether a table on the way to `gpa` is frozen.
    #[inline]
    pub fn is_frozen(&self, t: &T, gpa: Gpa) -> bool {
        self.frozen(t, gpa).is_some()
    }

    /// The first of two steps that thaw one table on the way to `gpa`. `None`: none is frozen. After the flush that it
    /// asks for comes [`PageTable::thaw_end`]; then it begins with the next table.
    pub fn thaw_begin(&self, t: &mut T, gpa: Gpa) -> Option<Narrowed> {
        let at = self.frozen(t, gpa)?;
        let below = Table::child::<F>(at.value);
        let mut flush = false;
        for index in 0..TABLE_ENTRIES {
            flush |= Self::narrow(t, &below, index);
        }
        Some(Narrowed {
            level: at.level,
            flush,
        })
    }

    /// The second step: the first table that is frozen, which is pointed to by an entry of `level`, can be written
    /// through. Another one is left alone.
    pub fn thaw_end(&self, t: &mut T, gpa: Gpa, level: Level) {
        while let Some(at) = self.frozen(t, gpa).filter(|at| at.level == level) {
            let all = F::set_perm(at.value, Perm::RWX);
            if t.cmpxchg(&at.table, at.index, at.value, all).is_ok() {
                return;
            }
        }
    }
}
