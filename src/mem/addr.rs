// SPDX-License-Identifier: GPL-2.0
//! Addresses of the four spaces as distinct types, page-table levels and guest-physical ranges.
//!
//! All arithmetic is checked or wraps by name: addresses come from guests and from user space.
#![forbid(unsafe_code)]

use core::fmt;

/// Binary logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Size in bytes of the smallest page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Bits of an address that select a byte inside its 4 KiB page.
pub const PAGE_OFFSET_MASK: u64 = PAGE_SIZE - 1;
/// Number of entries in one page table, at every level.
pub const TABLE_ENTRIES: usize = 512;
/// Widest physical address of the architecture in bits (SDM 3A 4.1.4, APM 2 5.1).
pub const MAX_PHYS_BITS: u32 = 52;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address! {
    /// Guest-physical address.
    Gpa
}
address! {
    /// Host-physical address.
    Hpa
}
address! {
    /// Guest-virtual (linear) address.
    Gva
}
address! {
    /// Host-virtual address in the user space of the VM's owner (`userspace_addr` of a memory slot).
    Hva
}

/// What is done with addresses of these spaces in bytes and 4 KiB pages.
macro_rules! in_pages {
    ($($name:ident),*) => { $(
        impl $name {
            /// Address `bytes` above, or `None` past the end of the 64-bit space.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(a) => Some(Self(a)),
                    None => None,
                }
            }

            /// Address `bytes` above, modulo 2^64.
            #[inline]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// First byte of the 4 KiB page that holds this address.
            #[inline]
            pub const fn page(self) -> Self {
                Self(self.0 & !PAGE_OFFSET_MASK)
            }

            /// Whether this is the first byte of a 4 KiB page.
            #[inline]
            pub const fn is_page_aligned(self) -> bool {
                self.0 & PAGE_OFFSET_MASK == 0
            }
        }
    )* };
}

/// What is done with physical addresses at the levels of page tables.
macro_rules! in_levels {
    ($($name:ident),*) => { $(
        impl $name {
            /// First byte of the `level`-sized page that holds this address.
            #[inline]
            pub const fn align_down(self, level: Level) -> Self {
                Self(self.0 & !level.offset_mask())
            }

            /// Whether this is the first byte of a `level`-sized page.
            #[inline]
            pub const fn is_aligned(self, level: Level) -> bool {
                self.0 & level.offset_mask() == 0
            }
        }
    )* };
}

in_pages!(Gpa, Hva);
in_levels!(Gpa, Hpa);

/// Level of a page-table entry: what one entry of a table at that level spans (SDM 3A 4.2, APM 2 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// PTE: 4 KiB.
    L1 = 1,
    /// PDE: 2 MiB.
    L2 = 2,
    /// PDPTE: 1 GiB.
    L3 = 3,
    /// PML4E: 512 GiB, never a leaf.
    L4 = 4,
    /// PML5E: 256 TiB, never a leaf.
    L5 = 5,
}

impl Level {
    /// Level `n` (1 to 5).
    #[inline]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::L1),
            2 => Some(Self::L2),
            3 => Some(Self::L3),
            4 => Some(Self::L4),
            5 => Some(Self::L5),
            _ => None,
        }
    }

    /// Next level towards the pages, or `None` at [`Level::L1`].
    #[inline]
    pub const fn down(self) -> Option<Self> {
        Self::from_u8((self as u8).wrapping_sub(1))
    }

    /// Next level towards the root, or `None` at [`Level::L5`].
    #[inline]
    pub const fn up(self) -> Option<Self> {
        Self::from_u8((self as u8).wrapping_add(1))
    }

    /// Binary logarithm of [`Level::size`].
    #[inline]
    pub const fn shift(self) -> u32 {
        (self as u32).wrapping_mul(9).wrapping_add(3)
    }

    /// Bytes spanned by one entry.
    #[inline]
    pub const fn size(self) -> u64 {
        1u64.wrapping_shl(self.shift())
    }

    /// Address bits below the span of one entry.
    #[inline]
    pub const fn offset_mask(self) -> u64 {
        self.size().wrapping_sub(1)
    }

    /// Index (0 to 511) of the entry for address `a` in a table of this level.
    #[inline]
    pub const fn index(self, a: u64) -> usize {
        (a.wrapping_shr(self.shift()) & (TABLE_ENTRIES as u64 - 1)) as usize
    }

    /// Bytes spanned by a whole table of this level.
    #[inline]
    pub const fn table_size(self) -> u64 {
        self.size().wrapping_shl(9)
    }
}

/// Range of guest-physical addresses: `start` included, `end` excluded; `start <= end` always holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpaRange {
    start: Gpa,
    end: Gpa,
}

impl GpaRange {
    /// `len` bytes from `start`, or `None` if the end does not fit in 64 bits.
    #[inline]
    pub const fn new(start: Gpa, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// From `start` (included) to `end` (excluded), or `None` if they are reversed.
    #[inline]
    pub const fn between(start: Gpa, end: Gpa) -> Option<Self> {
        if start.0 <= end.0 {
            Some(Self { start, end })
        } else {
            None
        }
    }

    /// First address.
    #[inline]
    pub const fn start(&self) -> Gpa {
        self.start
    }

    /// Address after the last one.
    #[inline]
    pub const fn end(&self) -> Gpa {
        self.end
    }

    /// Whether the range holds no address.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.start.0 == self.end.0
    }

    /// Whether an address lies in both.
    #[inline]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start.0 < other.end.0
            && other.start.0 < self.end.0
            && !self.is_empty()
            && !other.is_empty()
    }
}

const _: () = {
    assert!(Level::L1.size() == PAGE_SIZE && Level::L2.size() == 2 << 20);
    assert!(Level::L3.size() == 1 << 30 && Level::L5.table_size() == 1 << 57);
    assert!(Level::L1.index(0x1ff_f000) == 511 && Level::L4.index(!0) == 511);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        assert_eq!(Level::L1.down(), None);
        assert_eq!(Level::L5.up(), None);
        assert_eq!(Level::L3.down(), Some(Level::L2));
        let a = 0x0000_1234_5678_9abc_u64;
        for n in 1..=5 {
            let l = Level::from_u8(n).unwrap();
            assert_eq!(
                l.index(a),
                ((a >> (12 + 9 * (n as u32 - 1))) & 511) as usize
            );
            assert_eq!(Gpa(a).align_down(l).0 + (a & l.offset_mask()), a);
        }
    }

    #[test]
    fn ranges() {
        let range = |start, len| GpaRange::new(Gpa(start), len).unwrap();
        let r = range(0x1000, 0x3000);
        assert_eq!((r.start(), r.end()), (Gpa(0x1000), Gpa(0x4000)));
        let s = range(0x4000, 0x1000);
        assert!(!r.overlaps(&s) && !s.overlaps(&r));
        let t = range(0x3000, 0x8000);
        assert!(r.overlaps(&t) && t.overlaps(&s));
        let empty = range(0x2000, 0);
        assert!(empty.is_empty() && !r.overlaps(&empty) && !empty.overlaps(&r));
        assert_eq!(GpaRange::new(Gpa(!0), 2), None);
        assert_eq!(GpaRange::between(Gpa(2), Gpa(1)), None);
    }

    #[test]
    fn arithmetic() {
        assert_eq!(Gpa(!0).checked_add(1), None);
        assert_eq!(Gpa(!0).wrapping_add(2), Gpa(1));
        assert_eq!(std::format!("{:?}", Hpa(0x10)), "Hpa(0x10)");
    }
}
