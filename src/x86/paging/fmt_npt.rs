// SPDX-License-Identifier: GPL-2.0
//! Entries of AMD's nested page tables (APM 2 15.25): long-mode page tables of the host (APM 2 5.3) that are
//! always walked as user accesses (15.25.5).
#![forbid(unsafe_code)]

use crate::mem::{
    addr::{Hpa, Level, MAX_PHYS_BITS},
    format::{Format, Leaf, MemType, Perm},
};

/// Present; also the right to read.
pub const PRESENT: u64 = 1 << 0;
/// Write access.
pub const WRITE: u64 = 1 << 1;
/// User access: every access of a guest is one (APM 2 15.25.5).
pub const USER: u64 = 1 << 2;
/// Page-level write-through and cache disable: bits 1:0 of the PAT index. Bit 2 is not used.
pub const PAT_INDEX: u64 = 3 << 3;
/// Index of write-back under [`HOST_PAT`].
pub const WRITE_BACK: u64 = 0 << 3;
/// Index of uncacheable under [`HOST_PAT`].
pub const UNCACHEABLE: u64 = 3 << 3;
/// Accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Dirty, in a leaf.
pub const DIRTY: u64 = 1 << 6;
/// Leaf above the last level.
pub const PAGE: u64 = 1 << 7;
/// Address of a table or page.
pub const ADDR: u64 = ((1 << MAX_PHYS_BITS) - 1) & !0xfff;
/// No execute; needs EFER.NXE in the host.
pub const NO_EXEC: u64 = 1 << 63;

/// IA32_PAT of the host for which [`Npt`] chooses indices: WB WC UC- UC WB WP UC- WT. Nested leaves are looked
/// up in the host's PAT (APM 2 15.25.8): compare it with the register before nested paging is used.
pub const HOST_PAT: u64 = 0x0407_0506_0007_0106;

/// NPT entries.
pub struct Npt;

impl Format for Npt {
    const HAS_AD: bool = true;
    const LEVELS: (u8, u8) = (4, 5);
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const ADDR: u64 = ADDR;

    #[inline]
    fn table(child: Hpa) -> u64 {
        (child.0 & ADDR) | PRESENT | WRITE | USER | ACCESSED
    }

    #[inline]
    fn leaf(level: Level, leaf: &Leaf) -> u64 {
        let mut e = (leaf.hpa.0 & ADDR & !level.offset_mask()) | USER;
        e |= match leaf.mem_type {
            // The guest's PAT is in force in any case (APM 2 15.25.8).
            MemType::Ram | MemType::GuestTyped => WRITE_BACK,
            MemType::Device => UNCACHEABLE,
        };
        if level > Level::L1 {
            e |= PAGE;
        }
        Self::set_ad(Self::set_perm(e, leaf.perm), leaf.accessed, leaf.dirty)
    }

    #[inline]
    fn can_express(perm: Perm) -> bool {
        // The present bit is the right to read.
        perm.contains(Perm::R)
    }

    #[inline]
    fn present(entry: u64) -> bool {
        entry & PRESENT != 0
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
        let rw = (entry & (PRESENT | WRITE)) as u8;
        let x = if entry & NO_EXEC == 0 {
            Perm::X.bits()
        } else {
            0
        };
        Perm::from_bits(rw | x)
    }

    #[inline]
    fn set_perm(entry: u64, perm: Perm) -> u64 {
        let rw = (perm.bits() as u64) & (PRESENT | WRITE);
        let nx = if perm.contains(Perm::X) { 0 } else { NO_EXEC };
        (entry & !(PRESENT | WRITE | NO_EXEC)) | rw | nx
    }

    #[inline]
    fn mem_type(entry: u64, _level: Level) -> MemType {
        if entry & PAT_INDEX == WRITE_BACK {
            MemType::Ram
        } else {
            MemType::Device
        }
    }
}

const _: () = {
    assert!(PRESENT == Perm::R.bits() as u64);
    assert!(WRITE == Perm::W.bits() as u64);
    assert!(ADDR == 0x000f_ffff_ffff_f000);
    // The host's PAT holds at each index what the index stands for: 6 is write-back, 0 uncacheable (SDM 3A 13.11.2).
    assert!((HOST_PAT >> WRITE_BACK) & 0xff == 6);
    assert!((HOST_PAT >> UNCACHEABLE) & 0xff == 0);
    assert!(<Npt as Format>::NON_PRESENT == 0);
};
