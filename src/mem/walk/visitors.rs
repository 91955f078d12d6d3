// SPDX-License-Identifier: GPL-2.0
//! What [`super::PageTable`] does to the entries of a range.
#![forbid(unsafe_code)]

use core::marker::PhantomData;

use super::table::{update, Cursor, Removed, Table, Tables};
use crate::mem::addr::{Gpa, Level, TABLE_ENTRIES};
use crate::mem::format::{Format, Perm};

/// A present entry seen by a scan.
pub(super) struct Entry<P> {
    pub(super) table: Table<P>,
    pub(super) index: usize,
    pub(super) value: u64,
    pub(super) level: Level,
    /// First address that the entry spans.
    pub(super) base: u64,
}

/// What to do with the entries of a range.
pub(super) trait Visitor<T: Tables> {
    /// The visitor takes entries away, so that tables may be empty when it is done with them.
    const UNLINKS: bool = false;

    /// A leaf; it may begin before the range or end after it.
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>);

    /// A pointer to a table of 4 KiB leaves that the range covers; true when done with it.
    #[inline]
    fn table(&mut self, _t: &mut T, _cur: &mut Cursor, _at: &Entry<T::Page>) -> bool {
        false
    }
}

/// Takes leaves and tables away.
pub(super) struct Unmap<F> {
    /// Whether [`Tables::removed`] is told.
    pub(super) report: bool,
    pub(super) format: PhantomData<F>,
}

impl<F: Format, T: Tables> Visitor<T> for Unmap<F> {
    const UNLINKS: bool = true;

    #[inline]
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) {
        let old = t.swap(&at.table, at.index, F::NON_PRESENT);
        cur.flush = true;
        cur.hit = true;
        if self.report {
            t.removed(&Removed::of::<F>(old, at.level, Gpa(at.base)));
        }
    }

    fn table(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) -> bool {
        let child = Table::child::<F>(t.swap(&at.table, at.index, F::NON_PRESENT));
        cur.flush = true;
        if self.report {
            for i in 0..TABLE_ENTRIES {
                if F::present(t.load(&child, i)) {
                    // A processor may hold the table in its paging-structure cache and still set a dirty bit:
                    // only the exchange tells the last word.
                    let old = t.swap(&child, i, F::NON_PRESENT);
                    let gpa = Gpa(at.base | (i as u64).wrapping_shl(Level::L1.shift()));
                    cur.hit = true;
                    t.removed(&Removed::of::<F>(old, Level::L1, gpa));
                }
            }
        }
        t.free(child);
        true
    }
}

/// Clears accessed bits; leaves go where there are none.
pub(super) struct Age<F>(pub(super) PhantomData<F>);

impl<F: Format, T: Tables> Visitor<T> for Age<F> {
    #[inline]
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) {
        if !F::HAS_AD {
            let old = t.swap(&at.table, at.index, F::NON_PRESENT);
            cur.flush = true;
            cur.hit = true;
            t.removed(&Removed::of::<F>(old, at.level, Gpa(at.base)));
        } else if F::accessed(at.value) {
            update(t, &at.table, at.index, at.value, F::clear_accessed);
            cur.hit = true;
        }
    }
}

/// Looks for an accessed leaf.
pub(super) struct TestAccessed<F>(pub(super) PhantomData<F>);

impl<F: Format, T: Tables> Visitor<T> for TestAccessed<F> {
    #[inline]
    fn leaf(&mut self, _t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) {
        if F::accessed(at.value) {
            cur.hit = true;
            cur.pos = cur.end;
        }
    }
}

/// Takes the write right away.
pub(super) struct WriteProtect<F>(pub(super) PhantomData<F>);

impl<F: Format, T: Tables> Visitor<T> for WriteProtect<F> {
    #[inline]
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) {
        let perm = F::perm(at.value);
        if perm.contains(Perm::W) {
            let less = perm.without(Perm::W);
            update(t, &at.table, at.index, at.value, |e| F::set_perm(e, less));
            cur.flush = true;
            cur.hit = true;
        }
    }
}
