// SPDX-License-Identifier: GPL-2.0
//! Dirty bitmaps: arithmetic of KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG (api.rst 4.8, 4.117).
//!
//! Bit `n` of a bitmap stands for page `n` of the slot; the bitmap is made of 64-bit words and what user space
//! sees is the same, little-endian, rounded up to a whole word.
#![forbid(unsafe_code)]

use core::ops::Range;

/// Pages in one word.
pub const WORD_PAGES: u64 = 64;

/// Words of the bitmap for `npages` pages.
#[inline]
pub const fn words(npages: u64) -> u64 {
    npages.div_ceil(WORD_PAGES)
}

/// Word and mask of page `n`.
#[inline]
pub const fn bit(n: u64) -> (u64, u64) {
    (n / WORD_PAGES, 1u64.wrapping_shl((n % WORD_PAGES) as u32))
}

/// Mask with bit `n` and all above set; empty from 64 on.
#[inline]
const fn bits_from(n: u64) -> u64 {
    if n >= WORD_PAGES {
        0
    } else {
        u64::MAX.wrapping_shl(n as u32)
    }
}

/// Mask with bits `from` (included) to `to` (excluded) set.
#[inline]
const fn mask(from: u64, to: u64) -> u64 {
    bits_from(from) & !bits_from(to)
}

/// Words and masks that cover the pages of `range`; nothing if it is empty.
#[inline]
pub fn masks(range: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let Range { start, end } = range;
    let first = start / WORD_PAGES;
    let last = if start < end { words(end) } else { first };
    (first..last).map(move |w| {
        let base = w.wrapping_mul(WORD_PAGES);
        let from = start.saturating_sub(base).min(WORD_PAGES);
        let to = end.saturating_sub(base).min(WORD_PAGES);
        (w, mask(from, to))
    })
}

/// Runs of consecutive pages marked in word number `index`: each the first page and the number of pages. The
/// owner protects each run with one walk.
#[inline]
pub fn runs(index: u64, word: u64) -> impl Iterator<Item = (u64, u64)> {
    let base = index.wrapping_mul(WORD_PAGES);
    let mut rest = word;
    core::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let first = rest.trailing_zeros() as u64;
        let len = (!(rest >> first)).trailing_zeros() as u64;
        rest &= !mask(first, first.wrapping_add(len));
        Some((base.wrapping_add(first), len))
    })
}

/// Page range of KVM_CLEAR_DIRTY_LOG in a slot of `npages`: starts at a multiple of 64 and ends at another or
/// at the slot's end. `None` stands for EINVAL.
#[inline]
pub const fn clear_range(first_page: u64, num_pages: u32, npages: u64) -> Option<Range<u64>> {
    let num = num_pages as u64;
    if first_page % WORD_PAGES != 0 || first_page > npages {
        return None;
    }
    let left = npages.wrapping_sub(first_page);
    if num > left || (num < left && num % WORD_PAGES != 0) {
        return None;
    }
    Some(first_page..first_page.wrapping_add(num))
}

const _: () = {
    assert!(words(0) == 0 && words(1) == 1 && words(64) == 1 && words(65) == 2);
    assert!(mask(0, 64) == !0 && mask(3, 5) == 0x18 && mask(64, 64) == 0);
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::{vec, vec::Vec};

    #[test]
    fn masks_and_runs_agree_with_single_bits() {
        let ranges = [
            0..0,
            0..1,
            0..64,
            5..64,
            5..65,
            63..64,
            63..130,
            64..128,
            70..71,
            Range {
                start: 100,
                end: 90,
            },
        ];
        for r in ranges {
            let mut by_mask = vec![0u64; 3];
            for (w, m) in masks(r.clone()) {
                assert_ne!(m, 0);
                by_mask[w as usize] |= m;
            }
            let mut by_bit = vec![0u64; 3];
            for n in r.clone() {
                let (w, m) = bit(n);
                by_bit[w as usize] |= m;
            }
            assert_eq!(by_mask, by_bit, "{r:?}");
            let count: u32 = by_mask.iter().map(|w| w.count_ones()).sum();
            assert_eq!(u64::from(count), r.end.saturating_sub(r.start));
        }
        let got: Vec<_> = runs(2, 0xf000_0000_0000_00e5).collect();
        assert_eq!(got, [(128, 1), (130, 1), (133, 3), (188, 4)]);
        assert_eq!(runs(0, !0).collect::<Vec<_>>(), [(0, 64)]);
        assert_eq!(runs(7, 0).next(), None);
        // Ends of the number space.
        assert_eq!(
            masks(u64::MAX - 1..u64::MAX).collect::<Vec<_>>(),
            [(u64::MAX / 64, 1 << 62)]
        );
        assert_eq!(words(u64::MAX), 1 << 58);
    }

    #[test]
    fn clear_rules() {
        assert_eq!(clear_range(0, 100, 100), Some(0..100));
        assert_eq!(clear_range(64, 36, 100), Some(64..100));
        assert_eq!(clear_range(0, 64, 100), Some(0..64));
        assert_eq!(clear_range(64, 0, 100), Some(64..64));
        for (first, num) in [
            (1, 64),
            (0, 63),
            (64, 35),
            (64, 37),
            (128, 0),
            (0, 128),
            (!63, 64),
        ] {
            assert_eq!(clear_range(first, num, 100), None, "{first} {num}");
        }
    }
}
