// SPDX-License-Identifier: GPL-2.0
//! Numbers that a guest or user space chose, as indices (Spectre v1; kernel document admin-guide/hw-vuln/spectre.rst).
//!
//! A processor that predicts a bounds check wrongly executes loads with an index beyond the table, and what they loaded
//! leaves traces in caches. So the index itself is made to depend on the comparison: beyond the table it is zero.
//! `outside_numbers_are_masked`, in `tools/logic/tests/nospec.rs`, looks for indices that are not.
#![forbid(unsafe_code)]

use crate::linux::nospec::index_mask;

/// `index` if it is below `len`; else zero, also where a check that found it to be below was predicted.
#[inline(always)]
pub fn clamp(index: usize, len: usize) -> usize {
    index & index_mask(index, len)
}

/// `index` if it is below `len`, for whoever looks into a table of this length later.
#[inline(always)]
pub fn below(index: usize, len: usize) -> Option<usize> {
    if index < len {
        Some(clamp(index, len))
    } else {
        None
    }
}

/// Look-ups by a number from outside.
pub trait Nospec<T> {
    /// The element at `index`, if there is one.
    fn get_nospec(&self, index: usize) -> Option<&T>;
    /// The same, to be changed.
    fn get_nospec_mut(&mut self, index: usize) -> Option<&mut T>;
}

impl<T> Nospec<T> for [T] {
    #[inline(always)]
    fn get_nospec(&self, index: usize) -> Option<&T> {
        self.get(below(index, self.len())?)
    }

    #[inline(always)]
    fn get_nospec_mut(&mut self, index: usize) -> Option<&mut T> {
        self.get_mut(below(index, self.len())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked() {
        let numbers = [
            0,
            1,
            5,
            6,
            7,
            usize::MAX / 2,
            usize::MAX / 2 + 1,
            usize::MAX,
        ];
        for len in numbers {
            for i in numbers {
                let inside = i < len;
                assert_eq!(clamp(i, len), if inside { i } else { 0 }, "{i} {len}");
                assert_eq!(below(i, len), inside.then_some(i), "{i} {len}");
            }
        }
        let mut table = [10, 11, 12, 13, 14, 15];
        for i in numbers {
            assert_eq!(table.get_nospec(i).copied(), table.get(i).copied());
            assert_eq!(table.get_nospec_mut(i).copied(), table.get(i).copied());
        }
    }
}
