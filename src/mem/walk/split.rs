// SPDX-License-Identifier: GPL-2.0
//! A huge leaf gives way to a table of its parts.
#![forbid(unsafe_code)]

use super::table::{gone, Page, Table, Tables};
use crate::mem::addr::{Gpa, Level, TABLE_ENTRIES};
use crate::mem::format::{Format, Leaf, Perm};

/// What came of a [`split`].
pub(super) enum Split<P> {
    /// The table that has the parts.
    Done(Table<P>),
    /// Another entry is there by now.
    Changed,
    /// There is no table to be had; nothing has changed.
    NoMemory,
}

/// Fills `child` with leaves of `level` that follow each other in memory, the first of them `leaf`.
#[inline]
pub(super) fn fill<F: Format, T: Tables>(t: &T, child: &Table<T::Page>, level: Level, leaf: &Leaf) {
    // They differ in their addresses alone, which stand in the entries as they are (`Format::ADDR`).
    let mut entry = F::leaf(level, leaf);
    for i in 0..TABLE_ENTRIES {
        t.store(child, i, entry);
        entry = entry.wrapping_add(level.size());
    }
}

/// Puts a table, filled with the 512 parts of the huge leaf `entry`, in its place, without the rights `less`; accessed
/// and dirty bits stay.
pub(super) fn split<F: Format, T: Tables>(
    t: &mut T,
    table: &Table<T::Page>,
    (index, level, gpa): (usize, Level, Gpa),
    mut entry: u64,
    less: Perm,
) -> Split<T::Page> {
    let (Some(below), Some(page)) = (level.down(), t.alloc()) else {
        return Split::NoMemory;
    };
    let child = Table::at(page.into_hpa());
    let mut there = entry;
    if F::BREAK_FIRST {
        there = F::BROKEN;
        if t.cmpxchg(table, index, entry, there).is_err() {
            t.unused(child);
            return Split::Changed;
        }
        t.flush();
    }
    loop {
        let part = Leaf {
            hpa: F::addr(entry, level),
            perm: F::perm(entry).without(less),
            mem_type: F::mem_type(entry, level),
            accessed: F::accessed(entry),
            dirty: F::dirty(entry),
        };
        fill::<F, T>(t, &child, below, &part);
        let marked = |e| F::set_ad(e, true, true);
        match t.cmpxchg(table, index, there, F::table(child.hpa())) {
            Ok(()) => return Split::Done(child),
            // The processor has set the accessed or dirty bit meanwhile: the parts inherit it.
            Err(now) if !F::BREAK_FIRST && marked(now) == marked(entry) => {
                (entry, there) = (now, now);
            }
            Err(_) => {
                t.unused(child);
                if F::BREAK_FIRST {
                    gone::<F, T>(t, entry, level, gpa);
                }
                return Split::Changed;
            }
        }
    }
}
