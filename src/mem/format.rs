// SPDX-License-Identifier: GPL-2.0
//! What the walker of nested page tables wants to know of an entry: the trait that each format implements.
#![forbid(unsafe_code)]

use core::fmt;

use crate::mem::addr::{Hpa, Level};

/// Access rights of a mapping.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Perm(u8);

impl Perm {
    /// Read.
    pub const R: Self = Self(1);
    /// Write.
    pub const W: Self = Self(2);
    /// Instruction fetch.
    pub const X: Self = Self(4);
    /// Read and write.
    pub const RW: Self = Self(3);
    /// Read and fetch.
    pub const RX: Self = Self(5);
    /// Read, write and fetch.
    pub const RWX: Self = Self(7);

    /// Rights from bits 0 (read), 1 (write) and 2 (fetch); other bits are ignored.
    #[inline]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 7)
    }

    /// Bits 0 (read), 1 (write) and 2 (fetch).
    #[inline]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all rights of `other` are included.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These rights less those of `other`.
    #[inline]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Debug for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "---",
            1 => "r--",
            2 => "-w-",
            3 => "rw-",
            4 => "--x",
            5 => "r-x",
            6 => "-wx",
            _ => "rwx",
        })
    }
}

/// What lies behind a mapping. The format chooses the memory type by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemType {
    /// Ordinary memory: cached, whatever the guest's own page tables say.
    Ram,
    /// Ordinary memory that a device reaches past the caches: cached unless the guest's own page tables say otherwise.
    GuestTyped,
    /// Registers or memory of a device: not cached, unless the guest's own page tables may say otherwise.
    Device,
}

/// What a leaf entry shall say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Host-physical address, aligned to the leaf's level.
    pub hpa: Hpa,
    /// Access rights.
    pub perm: Perm,
    /// What is behind it.
    pub mem_type: MemType,
    /// Initial accessed bit: set it when the guest is about to touch the page, this spares the processor a
    /// locked update.
    pub accessed: bool,
    /// Initial dirty bit: set it for a write access.
    pub dirty: bool,
}

/// Bits of one kind of nested page table. Functions on an entry are pure; `entry` is any 64-bit value.
/// [`Format::child`] of [`Format::table`] is the table's address.
pub trait Format {
    /// How one present entry gives way to another that has another address or size: by one write, or, if this is set,
    /// it is made invalid, every processor forgets what it has cached of it, and only then it is written ("break before
    /// make"). In between the guest may fault on what the entry maps. Rights may always be changed in place.
    const BREAK_FIRST: bool = false;

    /// Fewest levels and most levels, the root's included.
    const LEVELS: (u8, u8);

    /// Whether an entry that points to a table takes rights from all that lies below it, so that
    /// [`Format::set_perm`] may be asked to narrow it.
    const TABLE_RIGHTS: bool = true;

    /// Tables that lie in a row and are the root together: each maps what follows the one before.
    const ROOT_TABLES: u64 = 1;

    /// Whether the processor maintains accessed and dirty bits. Without, a leaf counts as accessed, and as
    /// dirty if writable, from the moment it is mapped.
    const HAS_AD: bool;

    /// Accessed bit of an entry.
    const ACCESSED: u64;

    /// Dirty bit of a leaf.
    const DIRTY: u64;

    /// Address of a table or page in an entry, where each bit of it has its own place.
    const ADDR: u64;

    /// Value of an entry that maps nothing; also the content of a fresh table, hence zero.
    const NON_PRESENT: u64 = 0;

    /// Entry that maps nothing and never will: of a table that has been taken out.
    const FROZEN: u64 = 1 << 58;

    /// Entry that maps nothing at the moment: who has broken it ([`Format::BREAK_FIRST`]) makes another one soon.
    const BROKEN: u64 = 1 << 57;

    /// Entry that points to the next table, with all rights, so that leaves alone decide.
    fn table(child: Hpa) -> u64;

    /// Leaf entry of `level`; `level` is [`Level::L1`], `L2` or `L3` and the address is aligned to it.
    fn leaf(level: Level, leaf: &Leaf) -> u64;

    /// Whether the format has a leaf with exactly these rights.
    fn can_express(perm: Perm) -> bool;

    /// Whether `entry` maps something or points to a table.
    fn present(entry: u64) -> bool;

    /// Whether a present `entry` of `level` is a leaf.
    fn is_leaf(entry: u64, level: Level) -> bool;

    /// Table that a present non-leaf `entry` points to.
    #[inline]
    fn child(entry: u64) -> Hpa {
        Hpa(entry & Self::ADDR)
    }

    /// Address of the page that a leaf `entry` of `level` maps.
    #[inline]
    fn addr(entry: u64, level: Level) -> Hpa {
        Hpa(entry & Self::ADDR & !level.offset_mask())
    }

    /// Rights given by `entry` itself.
    fn perm(entry: u64) -> Perm;

    /// `entry` with other rights, which [`Format::can_express`].
    fn set_perm(entry: u64, perm: Perm) -> u64;

    /// What [`Format::leaf`] was told to be behind the leaf.
    fn mem_type(entry: u64, level: Level) -> MemType;

    /// Whether the accessed bit of `entry` is set.
    #[inline]
    fn accessed(entry: u64) -> bool {
        entry & Self::ACCESSED != 0
    }

    /// Whether the dirty bit of a leaf is set.
    #[inline]
    fn dirty(entry: u64) -> bool {
        entry & Self::DIRTY != 0
    }

    /// `entry` with the accessed and dirty bits set where the argument is true, unchanged where false.
    #[inline]
    fn set_ad(entry: u64, accessed: bool, dirty: bool) -> u64 {
        let a = if accessed { Self::ACCESSED } else { 0 };
        entry | a | if dirty { Self::DIRTY } else { 0 }
    }

    /// The leaf `entry` with the dirty bit clear.
    #[inline]
    fn clear_dirty(entry: u64) -> u64 {
        entry & !Self::DIRTY
    }

    /// `entry` with the accessed bit clear.
    #[inline]
    fn clear_accessed(entry: u64) -> u64 {
        entry & !Self::ACCESSED
    }
}
