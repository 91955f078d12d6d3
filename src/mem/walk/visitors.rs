// SPDX-License-Identifier: GPL-2.0
//! What [`super::PageTable`] does to the entries of a range.
#![forbid(unsafe_code)]

use core::marker::PhantomData;

use super::split::{split, Split};
use super::table::{gone, Cursor, MappedLeaf, Table, Tables};
use crate::mem::addr::{Gpa, Level};
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

/// Where a scan goes on.
pub(super) enum Next {
    /// Behind the entry.
    On,
    /// In the table that the entry points to.
    Down,
    /// At the entry, which is another one by now.
    Again,
    /// Nowhere for now: no table could be allocated.
    Stop,
}

impl Next {
    /// On, if the entry could be changed.
    #[inline]
    fn on_if<E>(changed: Result<(), E>) -> Self {
        match changed {
            Ok(()) => Self::On,
            Err(_) => Self::Again,
        }
    }
}

/// What to do with the entries of a range.
pub(super) trait Visitor<T: Tables> {
    /// The visitor takes entries away, so that tables may be empty when it is done with them.
    const UNLINKS: bool = false;
    /// Nobody else uses the tree.
    const ALONE: bool = false;

    /// A leaf; it may begin before the range or end after it.
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) -> Next;

    /// A pointer to a table of 4 KiB leaves that the range covers.
    #[inline]
    fn table(&mut self, _t: &mut T, _cur: &mut Cursor, _at: &Entry<T::Page>) -> Next {
        Next::Down
    }

    /// A pointer to a table for 1 GiB that the range covers.
    #[inline]
    fn upper(&mut self, _t: &mut T, _cur: &mut Cursor, _at: &Entry<T::Page>) -> Next {
        Next::Down
    }
}

/// Takes leaves and tables away.
pub(super) struct Unmap<F>(pub(super) PhantomData<F>);

impl<F: Format> Unmap<F> {
    /// Takes the entry away and reports what it led to.
    #[inline]
    fn take<T: Tables>(t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        let taken = t.cmpxchg(&at.table, at.index, at.value, F::NON_PRESENT);
        if taken.is_ok() {
            cur.flush = true;
            cur.hit = true;
            gone::<F, T>(t, at.value, at.level, Gpa(at.base));
        }
        Next::on_if(taken)
    }
}

impl<F: Format, T: Tables> Visitor<T> for Unmap<F> {
    const UNLINKS: bool = true;

    #[inline]
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        Self::take(t, cur, at)
    }

    fn table(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        Self::take(t, cur, at)
    }
}

/// Frees tables, of which nobody makes use any more, and reports nothing.
pub(super) struct Clear<F>(pub(super) PhantomData<F>);

impl<F: Format, T: Tables> Visitor<T> for Clear<F> {
    const UNLINKS: bool = true;
    const ALONE: bool = true;

    #[inline]
    fn leaf(&mut self, t: &mut T, _cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        t.store(&at.table, at.index, F::NON_PRESENT);
        Next::On
    }

    fn table(&mut self, t: &mut T, _cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        t.store(&at.table, at.index, F::NON_PRESENT);
        t.free(Table::child::<F>(at.value));
        Next::On
    }
}

/// Clears accessed bits; leaves go where there are none.
pub(super) struct Age<F>(pub(super) PhantomData<F>);

impl<F: Format, T: Tables> Visitor<T> for Age<F> {
    #[inline]
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        if !F::HAS_AD {
            return Unmap::<F>::take(t, cur, at);
        }
        if !F::accessed(at.value) {
            return Next::On;
        }
        let idle = F::clear_accessed(at.value);
        let changed = t.cmpxchg(&at.table, at.index, at.value, idle);
        cur.hit |= changed.is_ok();
        Next::on_if(changed)
    }
}

/// Looks for an accessed leaf.
pub(super) struct TestAccessed<F>(pub(super) PhantomData<F>);

impl<F: Format, T: Tables> Visitor<T> for TestAccessed<F> {
    #[inline]
    fn leaf(&mut self, _t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        if F::accessed(at.value) {
            cur.hit = true;
            cur.pos = cur.end;
        }
        Next::On
    }
}

/// Shows leaves.
pub(super) struct Show<'a, F>(
    pub(super) PhantomData<F>,
    pub(super) &'a mut dyn FnMut(&MappedLeaf),
);

impl<F: Format, T: Tables> Visitor<T> for Show<'_, F> {
    #[inline]
    fn leaf(&mut self, _t: &mut T, _cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        (self.1)(&MappedLeaf::of::<F>(at.value, at.level, Gpa(at.base)));
        Next::On
    }
}

/// Clears dirty bits of the smallest leaves; takes the write right from others.
pub(super) struct Clean<F>(pub(super) PhantomData<F>);

impl<F: Format, T: Tables> Visitor<T> for Clean<F> {
    #[inline]
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        if !F::HAS_AD || at.level != Level::L1 {
            return WriteProtect::<F>(PhantomData).leaf(t, cur, at);
        }
        if !F::dirty(at.value) || !cur.means(at.base) {
            return Next::On;
        }
        let clean = F::clear_dirty(at.value);
        let changed = t.cmpxchg(&at.table, at.index, at.value, clean);
        if changed.is_ok() {
            cur.flush = true;
            cur.hit = true;
        }
        Next::on_if(changed)
    }
}

/// Takes the write right away.
pub(super) struct WriteProtect<F>(pub(super) PhantomData<F>);

impl<F: Format, T: Tables> Visitor<T> for WriteProtect<F> {
    #[inline]
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        let perm = F::perm(at.value);
        let meant = at.level != Level::L1 || cur.means(at.base);
        if !perm.contains(Perm::W) || !meant {
            return Next::On;
        }
        let less = F::set_perm(at.value, perm.without(Perm::W));
        let changed = t.cmpxchg(&at.table, at.index, at.value, less);
        if changed.is_ok() {
            cur.flush = true;
            cur.hit = true;
        }
        Next::on_if(changed)
    }
}

/// Takes the write right away, and huge leaves apart; with the flag it does with the smallest leaves as [`Clean`].
pub(super) struct SplitLeaves<F>(pub(super) PhantomData<F>, pub(super) bool);

impl<F: Format, T: Tables> Visitor<T> for SplitLeaves<F> {
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        if at.level == Level::L1 && self.1 {
            return Clean::<F>(PhantomData).leaf(t, cur, at);
        }
        if at.level == Level::L1 {
            return WriteProtect::<F>(PhantomData).leaf(t, cur, at);
        }
        let writable = F::perm(at.value).contains(Perm::W);
        let whole = cur.covers(at.base, at.level.size());
        if !writable && !whole {
            return Next::On;
        }
        let less = if whole { Perm::W } else { Perm::default() };
        let place = (at.index, at.level, Gpa(at.base));
        match split::<F, T>(t, &at.table, place, at.value, less) {
            Split::Done(_) => {
                cur.flush |= writable && whole;
                cur.hit = true;
                // What is in the range in part, or still made of huge leaves, is looked at once more.
                if whole && at.level == Level::L2 {
                    Next::On
                } else {
                    Next::Again
                }
            }
            Split::Changed => Next::Again,
            Split::NoMemory => Next::Stop,
        }
    }
}

/// Takes away the tables in whose place a leaf could be.
pub(super) struct Join<'a, F>(
    pub(super) PhantomData<F>,
    pub(super) &'a mut dyn FnMut(Gpa, Level) -> bool,
);

impl<F: Format> Join<'_, F> {
    /// Takes the table away if a leaf could be there.
    fn join<T: Tables>(
        &mut self,
        t: &mut T,
        cur: &mut Cursor,
        at: &Entry<T::Page>,
        otherwise: Next,
    ) -> Next {
        if (self.1)(Gpa(at.base), at.level) {
            Unmap::<F>::take(t, cur, at)
        } else {
            otherwise
        }
    }
}

impl<F: Format, T: Tables> Visitor<T> for Join<'_, F> {
    #[inline]
    fn leaf(&mut self, _t: &mut T, _cur: &mut Cursor, _at: &Entry<T::Page>) -> Next {
        Next::On
    }

    fn table(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        self.join(t, cur, at, Next::On)
    }

    fn upper(&mut self, t: &mut T, cur: &mut Cursor, at: &Entry<T::Page>) -> Next {
        self.join(t, cur, at, Next::Down)
    }
}
