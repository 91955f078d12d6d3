// SPDX-License-Identifier: GPL-2.0
//! Entries of Intel's extended page tables (SDM 3C 29.3.2).
#![forbid(unsafe_code)]

use crate::mem::{
    addr::{Hpa, Level, MAX_PHYS_BITS},
    format::{Format, Leaf, MemType, Perm},
};

/// Read access.
pub const READ: u64 = 1 << 0;
/// Write access.
pub const WRITE: u64 = 1 << 1;
/// Execute access; with mode-based execute control (off here) for supervisor-mode addresses only.
pub const EXEC: u64 = 1 << 2;
/// Memory type of a leaf, bits 5:3, in the encoding of MTRRs and PAT (SDM 3A 13.11.2). The processor combines it with
/// the guest's PAT unless [`IGNORE_PAT`] is set.
pub const MEM_TYPE: u64 = 7 << 3;
/// Write-back, in [`MEM_TYPE`]. Uncacheable is zero.
pub const WRITE_BACK: u64 = 6 << 3;
/// The leaf's memory type overrides the guest's PAT.
pub const IGNORE_PAT: u64 = 1 << 6;
/// Leaf above the last level.
pub const PAGE: u64 = 1 << 7;
/// Accessed, if EPTP bit 6 is set; else ignored.
pub const ACCESSED: u64 = 1 << 8;
/// Dirty, if EPTP bit 6 is set; else ignored.
pub const DIRTY: u64 = 1 << 9;
/// Address of a table or page.
pub const ADDR: u64 = ((1 << MAX_PHYS_BITS) - 1) & !0xfff;
/// Bits that a leaf keeps when its rights change.
const RIGHTS: u64 = READ | WRITE | EXEC;

/// EPT entries; `AD`: the processor maintains accessed and dirty flags (EPTP bit 6 is set). Without, the two
/// bits are software's: set when the leaf is made.
pub struct EptFormat<const AD: bool>;

/// EPT with accessed and dirty flags.
pub type Ept = EptFormat<true>;
/// EPT without accessed and dirty flags.
pub type EptNoAd = EptFormat<false>;

impl<const AD: bool> Format for EptFormat<AD> {
    const HAS_AD: bool = AD;
    const LEVELS: (u8, u8) = (4, 5);
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const ADDR: u64 = ADDR;

    #[inline]
    fn table(child: Hpa) -> u64 {
        (child.0 & ADDR) | RIGHTS | ACCESSED
    }

    #[inline]
    fn leaf(level: Level, leaf: &Leaf) -> u64 {
        let mut e = (leaf.hpa.0 & ADDR & !level.offset_mask()) | leaf.perm.bits() as u64;
        e |= match leaf.mem_type {
            MemType::Ram => WRITE_BACK | IGNORE_PAT,
            MemType::GuestTyped => WRITE_BACK,
            MemType::Device => 0,
        };
        if level > Level::L1 {
            e |= PAGE;
        }
        if AD {
            Self::set_ad(e, leaf.accessed, leaf.dirty)
        } else {
            Self::set_ad(e, true, leaf.dirty || leaf.perm.contains(Perm::W))
        }
    }

    #[inline]
    fn can_express(perm: Perm) -> bool {
        // Execute-only is optional in the processor and of no use here.
        perm.contains(Perm::R)
    }

    #[inline]
    fn present(entry: u64) -> bool {
        entry & RIGHTS != 0
    }

    #[inline]
    fn is_leaf(entry: u64, level: Level) -> bool {
        match level {
            Level::L1 => true,
            Level::L2 | Level::L3 => entry & PAGE != 0,
            Level::L4 | Level::L5 => false,
        }
    }

    #[inline]
    fn perm(entry: u64) -> Perm {
        Perm::from_bits((entry & RIGHTS) as u8)
    }

    #[inline]
    fn set_perm(entry: u64, perm: Perm) -> u64 {
        (entry & !RIGHTS) | perm.bits() as u64
    }

    #[inline]
    fn mem_type(entry: u64, _level: Level) -> MemType {
        match (entry & MEM_TYPE, entry & IGNORE_PAT) {
            (WRITE_BACK, 0) => MemType::GuestTyped,
            (WRITE_BACK, _) => MemType::Ram,
            _ => MemType::Device,
        }
    }
}

const _: () = {
    assert!(READ == Perm::R.bits() as u64);
    assert!(WRITE == Perm::W.bits() as u64);
    assert!(EXEC == Perm::X.bits() as u64);
    assert!(ADDR == 0x000f_ffff_ffff_f000);
    assert!(MEM_TYPE == 0x38 && WRITE_BACK == 0x30);
    assert!(<Ept as Format>::NON_PRESENT == 0);
};
