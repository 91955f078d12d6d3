// SPDX-License-Identifier: GPL-2.0
//! Registers that say where tables in guest memory are: of LPIs (Arm IHI 0069 12.11.35, 12.11.36) and of an ITS
//! (12.19.1, 12.19.3). As in KVM: pages have 64 KiB, memory is cached, and shared by the inner domain at most.
#![forbid(unsafe_code)]

/// Bytes of a page of a table.
pub const PAGE: u64 = 1 << 16;
/// Bytes of an entry of any table of an ITS.
pub const ENTRY: u64 = 8;
/// The table is there, or the entry.
pub const VALID: u64 = 1 << 63;
/// Of devices: entries are addresses of pages of the table.
pub const INDIRECT: u64 = 1 << 62;
/// GITS_BASER<n>.Type: devices, collections.
const TYPES: [u64; 2] = [1 << 56, 4 << 56];
/// Devices, events of a device, and collections are numbers below this.
pub const NUMBERS: u32 = 1 << 16;

/// Bits `high` to `low`.
const fn bits(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// `old` after a write of `len` bytes, 4 or 8, at `at`, one of which is that of the register.
pub fn updated(old: u64, at: u64, len: usize, value: u64) -> u64 {
    let low = bits(31, 0);
    match (len, at & 4) {
        (8, _) => value,
        (_, 0) => old & !low | value & low,
        _ => old & low | value << 32,
    }
}

/// What a read of `len` bytes at `at` gives.
pub fn part(value: u64, at: u64, len: usize) -> u64 {
    match len {
        8 => value,
        _ => value >> (8 * (at & 4)) & bits(31, 0),
    }
}

/// Attributes of memory that there are: shareability at bit 10, inner and outer cacheability at these.
fn cached(value: u64, inner: u32, outer: u32) -> u64 {
    let field = |at: u32, bits: u64| value >> at & bits;
    let mut v = value;
    if field(10, 3) == 2 {
        v = v & !(3 << 10) | 1 << 10;
    }
    if field(inner, 7) <= 1 {
        v = v & !(7 << inner) | 3 << inner;
    }
    if field(outer, 7) > 1 {
        v &= !(7 << outer);
    }
    v
}

/// What becomes of a value written to GICR_PROPBASER.
pub fn properties(value: u64) -> u64 {
    cached(value, 7, 56) & !(bits(63, 59) | bits(55, 52) | bits(6, 5))
}

/// What becomes of a value written to GICR_PENDBASER.
pub fn pending(value: u64) -> u64 {
    cached(value, 7, 56) & !(VALID | bits(61, 59) | bits(55, 52) | bits(15, 12) | bits(6, 0))
}

/// The numbers of LPIs that have a configuration end here.
pub fn end_of_lpis(properties: u64) -> u64 {
    1 << ((properties & 0x1f) + 1).min(16)
}

/// Where the configuration of LPIs begins.
pub fn properties_at(properties: u64) -> u64 {
    properties & bits(51, 12)
}

/// Where the pending bits of a vCPU begin.
pub fn pending_at(pending: u64) -> u64 {
    pending & bits(51, 16)
}

/// What becomes of a value written to GITS_CBASER.
pub fn commands(value: u64) -> u64 {
    cached(value, 59, 53) & !bits(15, 12)
}

/// Where the commands are.
pub fn commands_at(commands: u64) -> u64 {
    commands & bits(51, 12)
}

/// Bytes of them.
pub fn commands_size(commands: u64) -> u64 {
    ((commands & 0xff) + 1) << 12
}

/// Which table of an ITS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// GITS_BASER0.
    Devices,
    /// GITS_BASER1.
    Collections,
}

/// GITS_BASER<n>: a table of an ITS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table(pub u64);

/// Where the entry of a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// There.
    At(u64),
    /// So many bytes into the page that the word there names.
    In(u64, u64),
}

impl Table {
    /// After reset.
    pub const fn reset(kind: Kind) -> Self {
        let inner = 3 << 59;
        Self(inner | TYPES[kind as usize] | (ENTRY - 1) << 48 | 1 << 10 | 2 << 8)
    }

    /// After `value` has been written.
    pub fn written(kind: Kind, value: u64) -> Self {
        let fixed = bits(52, 48) | bits(58, 56) | bits(9, 8);
        let mut v = value & !fixed | Self::reset(kind).0 & fixed;
        if kind == Kind::Collections {
            v &= !INDIRECT;
        }
        Self(cached(v, 59, 53))
    }

    /// Whether there is one.
    pub fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// Where it begins.
    pub fn base(self) -> u64 {
        self.0 & bits(47, 16) | (self.0 >> 12 & 0xf) << 48
    }

    /// Its bytes.
    pub fn size(self) -> u64 {
        ((self.0 & 0xff) + 1) * PAGE
    }

    /// Whether its entries are addresses of pages.
    pub fn is_indirect(self) -> bool {
        self.0 & INDIRECT != 0
    }

    /// Where the entry of `number` is; `None`: it has none.
    pub fn entry(self, number: u32) -> Option<Entry> {
        let at = u64::from(number) * ENTRY;
        if number >= NUMBERS {
            return None;
        }
        if !self.is_indirect() {
            return (at < self.size()).then(|| Entry::At(self.base().wrapping_add(at)));
        }
        let word = at / PAGE * ENTRY;
        let page = (word < self.size()).then(|| self.base().wrapping_add(word))?;
        Some(Entry::In(page, at % PAGE))
    }

    /// The page that a word of an indirect table names.
    pub fn page(word: u64) -> Option<u64> {
        (word & VALID != 0).then_some(word & bits(51, 16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        let v = 0x1122_3344_5566_7788;
        assert_eq!(part(v, 0x70, 8), v);
        assert_eq!(part(v, 0x70, 4), 0x5566_7788);
        assert_eq!(part(v, 0x74, 4), 0x1122_3344);
        assert_eq!(updated(v, 0x70, 8, 5), 5);
        assert_eq!(updated(v, 0x70, 4, u64::MAX), 0x1122_3344_ffff_ffff);
        assert_eq!(updated(v, 0x74, 4, 0xaabb_ccdd), 0xaabb_ccdd_5566_7788);
    }

    #[test]
    fn attributes() {
        // Outer shareable, not cached.
        assert_eq!(properties(2 << 10 | 15), 1 << 10 | 3 << 7 | 15);
        assert_eq!(properties(u64::MAX) >> 52, 0);
        assert_eq!(properties(1 << 56 | 7 << 7) >> 56, 1);
        assert_eq!(pending(u64::MAX) & 0xffff, 0xf80);
        assert_eq!(pending(1 << 62) >> 62, 1);
        assert_eq!(pending_at(pending(0x4123_f000)), 0x4123_0000);
        assert_eq!(properties_at(properties(0x4123_f00f)), 0x4123_f000);
        assert_eq!(end_of_lpis(13), 1 << 14);
        assert_eq!(end_of_lpis(0x1f), 1 << 16);
        assert_eq!(commands(0x4123_f00f) & 0xffff_ffff, 0x4123_000f);
        assert_eq!(commands_size(commands(0x0f)), 0x1_0000);
        assert_eq!(commands_size(0xff), 1 << 20);
    }

    #[test]
    fn tables() {
        let d = Table::written(Kind::Devices, u64::MAX & !(0xff));
        assert!(d.is_valid() && d.is_indirect());
        assert_eq!(d.0 >> 48 & 0x71f, 0x107);
        assert_eq!(d.0 >> 8 & 3, 2);
        assert_eq!(d.size(), PAGE);
        let c = Table::written(Kind::Collections, u64::MAX);
        assert!(!c.is_indirect());
        assert_eq!(c.0 >> 56 & 7, 4);
        assert_eq!(c.size(), 256 * PAGE);
        assert_eq!(c.base(), bits(51, 16));
        let shared = Table::written(Kind::Devices, 2 << 10);
        assert_eq!(shared, Table::reset(Kind::Devices));
        // Direct: 8192 entries in a page.
        let d = Table::written(Kind::Devices, VALID | 0x4400_0000);
        assert_eq!(d.entry(3), Some(Entry::At(0x4400_0018)));
        assert_eq!(d.entry(8191), Some(Entry::At(0x4400_fff8)));
        assert_eq!(d.entry(8192), None);
        let d = Table::written(Kind::Devices, VALID | INDIRECT | 0x4400_0000);
        assert_eq!(d.entry(8193), Some(Entry::In(0x4400_0008, 8)));
        assert_eq!(d.entry(0xffff), Some(Entry::In(0x4400_0038, 0xfff8)));
        assert_eq!(d.entry(NUMBERS), None);
        assert_eq!(Table::page(0x4500_1234), None);
        assert_eq!(Table::page(VALID | 0x4500_1234), Some(0x4500_0000));
    }
}
