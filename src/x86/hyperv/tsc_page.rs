// SPDX-License-Identifier: GPL-2.0
//! The reference TSC page (TLFS 12.7): the reference counter as a function of the guest's TSC.
#![forbid(unsafe_code)]

use crate::x86::cpu::tsc::Rate;

/// Time in units of 100 ns = TSC * scale / 2^64 + offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    /// Ticks to units, times 2^64.
    pub scale: u64,
    /// Units.
    pub offset: u64,
}

/// Size of what is written of the page.
pub const BYTES: usize = 24;

impl Reference {
    /// For a clock that says `ns` when the TSC is `tsc`, and counts it at `rate` to nanoseconds. `None`: so slow a TSC
    /// has no scale.
    pub fn new(rate: Rate, tsc: u64, ns: u64) -> Option<Self> {
        // mul * 2^(32 + shift) / 100, below 2^64 if mul / 100 is below 2^(32 - shift).
        let shift = i32::from(rate.shift).checked_add(32).filter(|s| *s >= 0)?;
        let wide = u128::from(rate.mul).checked_shl(shift as u32)?;
        if shift > 64 || wide >> 64 >= 100 {
            return None;
        }
        // Division by limbs of 32 bits: the kernel has none of 128.
        let (mut scale, mut rest) = (0u64, 0u64);
        for limb in [wide >> 96, wide >> 64, wide >> 32, wide] {
            let part = rest << 32 | limb as u64 & 0xffff_ffff;
            scale = scale << 32 | part / 100;
            rest = part % 100;
        }
        let mut reference = Self { scale, offset: 0 };
        reference.offset = (ns / 100).wrapping_sub(reference.at(tsc));
        Some(reference)
    }

    /// The reference counter when the TSC is `tsc`.
    pub const fn at(&self, tsc: u64) -> u64 {
        ((tsc as u128 * self.scale as u128 >> 64) as u64).wrapping_add(self.offset)
    }

    /// The page, but for its sequence number, which is the first word.
    pub fn bytes(&self, sequence: u32) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let words = [u64::from(sequence), self.scale, self.offset];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What a page holds: its sequence number, and the rest.
    pub fn parse(bytes: &[u8; BYTES]) -> (u32, Self) {
        let mut words = [0; 3];
        for (to, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *to = from.try_into().map_or(0, u64::from_le_bytes);
        }
        let [sequence, scale, offset] = words;
        (sequence as u32, Self { scale, offset })
    }
}

/// The sequence number after `old`; neither 0 nor all ones, which say that the page is not to be used.
pub const fn next_sequence(old: u32) -> u32 {
    match old.wrapping_add(1) {
        0 | u32::MAX => 1,
        n => n,
    }
}

/// Whether the page is valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageState {
    /// There is none.
    #[default]
    Off,
    /// The guest has put it there.
    New,
    /// User space has, or the clock has changed.
    Stale,
    /// It is right.
    Set,
    /// It cannot be written, or the TSC is no clock.
    Broken,
}
