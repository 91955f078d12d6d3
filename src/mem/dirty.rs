// SPDX-License-Identifier: GPL-2.0
//! Dirty logs: arithmetic of bitmaps, KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG (api.rst 4.8, 4.117), and of dirty
//! rings (8.29).
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

/// Bytes of an entry of a dirty ring (`struct kvm_dirty_gfn`).
pub const RING_ENTRY: u64 = 16;
/// Most entries of a dirty ring (KVM_DIRTY_RING_MAX_ENTRIES).
pub const RING_ENTRIES: u64 = 65536;
/// Most bytes of a dirty ring.
pub const RING_BYTES: u64 = RING_ENTRIES * RING_ENTRY;
/// Entries that are kept free in a ring that counts as full, for what is written on the way to user space
/// (KVM_DIRTY_RING_RSVD_ENTRIES).
pub const RING_RESERVE: u32 = 64;

/// Most pages that a processor has logged when it comes to the vCPU's thread (SDM 3C 29.3.6).
pub const PROCESSOR_LOG: u32 = 512;

/// Why a ring cannot have the size that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingSize {
    /// Not a power of two, less than a page, or no more than what has to stay free.
    Wrong,
    /// More than [`RING_ENTRIES`].
    TooLarge,
}

/// Entries of a ring of `bytes`, of which `reserve` are kept free.
///
/// # Errors
///
/// See [`RingSize`].
pub const fn ring_entries(bytes: u64, reserve: u32) -> Result<u32, RingSize> {
    let least = (reserve as u64).wrapping_mul(RING_ENTRY);
    if !bytes.is_power_of_two() || bytes < 4096 || bytes <= least {
        return Err(RingSize::Wrong);
    }
    let entries = bytes / RING_ENTRY;
    if entries > RING_ENTRIES {
        return Err(RingSize::TooLarge);
    }
    Ok(entries as u32)
}

/// Pages of one slot that share a word of a bitmap: what entries of rings that follow each other are gathered into, so
/// that neighbours are protected together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Number of the slot, as user space gave it.
    pub slot: u32,
    /// Number of the word.
    pub word: u64,
    /// The pages; none: the batch is empty.
    pub bits: u64,
}

impl Batch {
    /// Adds page `page` of slot `slot`. Where it does not belong to the others these are returned, and the batch has
    /// the page alone.
    #[inline]
    pub fn add(&mut self, slot: u32, page: u64) -> Option<Self> {
        let (word, bits) = bit(page);
        if (self.slot, self.word) == (slot, word) || self.bits == 0 {
            (self.slot, self.word) = (slot, word);
            self.bits |= bits;
            return None;
        }
        Some(core::mem::replace(self, Self { slot, word, bits }))
    }

    /// What has been gathered, less what lies beyond a slot of `npages`: user space can write any page into a ring.
    #[inline]
    pub fn within(&self, npages: u64) -> u64 {
        let left = npages.saturating_sub(self.word.saturating_mul(WORD_PAGES));
        self.bits & mask(0, left)
    }
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
    fn ring_sizes() {
        use RingSize::*;
        for (bytes, reserve, want) in [
            (0, 64, Err(Wrong)),
            (2048, 64, Err(Wrong)),
            (4096, 64, Ok(256)),
            (4097, 64, Err(Wrong)),
            (12288, 64, Err(Wrong)),
            (8192, 576, Err(Wrong)),
            (8192, 512, Err(Wrong)),
            (16384, 576, Ok(1024)),
            (1 << 20, 64, Ok(65536)),
            (1 << 21, 64, Err(TooLarge)),
            (1 << 63, 64, Err(TooLarge)),
            (u64::MAX, 64, Err(Wrong)),
        ] {
            assert_eq!(ring_entries(bytes, reserve), want, "{bytes} {reserve}");
        }
    }

    #[test]
    fn batches() {
        let mut b = Batch::default();
        // Neighbours in any order, the same page twice.
        for page in [65, 64, 127, 65] {
            assert_eq!(b.add(7, page), None);
        }
        let first = Batch {
            slot: 7,
            word: 1,
            bits: 1 << 63 | 3,
        };
        assert_eq!(b.add(7, 128), Some(first));
        let second = Batch {
            slot: 7,
            word: 2,
            bits: 1,
        };
        assert_eq!(b.add(8, 128), Some(second));
        assert_eq!((b.slot, b.word, b.bits), (8, 2, 1));
        // The slot's end cuts off what user space has made up.
        assert_eq!(first.within(1 << 20), 1 << 63 | 3);
        assert_eq!(first.within(128), 1 << 63 | 3);
        assert_eq!(first.within(127), 3);
        assert_eq!(first.within(65), 1);
        assert_eq!(first.within(64), 0);
        assert_eq!(first.within(0), 0);
        let mut far = Batch::default();
        assert_eq!(far.add(0, u64::MAX), None);
        assert_eq!(far.within((1 << 31) - 1), 0);
        assert_eq!(far.within(u64::MAX), 0);
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
