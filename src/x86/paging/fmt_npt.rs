// SPDX-License-Identifier: GPL-2.0
//! Entries of AMD's nested page tables (APM 2 15.25): long-mode page tables of the host (APM 2 5.3) that are
//! always walked as user accesses (15.25.5).
#![forbid(unsafe_code)]

use crate::mem::{
    addr::{Hpa, Level, MAX_PHYS_BITS},
    walk::{Format, Leaf, MemType, Perm},
};

/// Present; also the right to read.
pub const PRESENT: u64 = 1 << 0;
/// Write access.
pub const WRITE: u64 = 1 << 1;
/// User access: every access of a guest is one (APM 2 15.25.5).
pub const USER: u64 = 1 << 2;
/// Page-level write-through: bit 0 of the PAT index.
pub const PWT: u64 = 1 << 3;
/// Page-level cache disable: bit 1 of the PAT index.
pub const PCD: u64 = 1 << 4;
/// Accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Dirty, in a leaf.
pub const DIRTY: u64 = 1 << 6;
/// Leaf above the last level.
pub const PAGE: u64 = 1 << 7;
/// Bit 2 of the PAT index in a 4 KiB leaf.
pub const PAT_4K: u64 = 1 << 7;
/// Global, in a leaf; without effect in nested tables.
pub const GLOBAL: u64 = 1 << 8;
/// Bit 2 of the PAT index in a larger leaf.
pub const PAT_LARGE: u64 = 1 << 12;
/// Address of a table or page.
pub const ADDR: u64 = ((1 << MAX_PHYS_BITS) - 1) & !0xfff;
/// No execute; needs EFER.NXE in the host.
pub const NO_EXEC: u64 = 1 << 63;

/// IA32_PAT of the host for which [`Npt`] chooses indices: WB WC UC- UC WB WP UC- WT. Nested leaves are looked
/// up in the host's PAT (APM 2 15.25.8): compare it with the register before nested paging is used.
pub const HOST_PAT: u64 = 0x0407_0506_0007_0106;

/// PAT index for a memory type under [`HOST_PAT`].
const fn pat_index(t: MemType) -> u64 {
    match t {
        MemType::Wb => 0,
        MemType::Wc => 1,
        MemType::Uc => 3,
        MemType::Wp => 5,
        MemType::Wt => 7,
    }
}

/// NPT entries.
pub struct Npt;

impl Format for Npt {
    const HAS_AD: bool = true;

    #[inline]
    fn table(child: Hpa) -> u64 {
        (child.0 & ADDR) | PRESENT | WRITE | USER | ACCESSED
    }

    #[inline]
    fn leaf(level: Level, leaf: &Leaf) -> u64 {
        let index = pat_index(leaf.mem_type);
        let mut e = (leaf.hpa.0 & ADDR & !level.offset_mask()) | USER;
        e |= (index & 3) << PWT.trailing_zeros();
        let pat = index & 4 != 0;
        if level > Level::L1 {
            e |= PAGE | if pat { PAT_LARGE } else { 0 };
        } else if pat {
            e |= PAT_4K;
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
    fn child(entry: u64) -> Hpa {
        Hpa(entry & ADDR)
    }

    #[inline]
    fn addr(entry: u64, level: Level) -> Hpa {
        Hpa(entry & ADDR & !level.offset_mask())
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
    fn mem_type(entry: u64, level: Level) -> (MemType, bool) {
        let pat = if level > Level::L1 { PAT_LARGE } else { PAT_4K };
        let t = match (entry & pat != 0, entry & PCD != 0, entry & PWT != 0) {
            (false, false, true) => MemType::Wc,
            (_, true, false) | (false, true, true) => MemType::Uc,
            (true, false, true) => MemType::Wp,
            (true, true, true) => MemType::Wt,
            (_, false, false) => MemType::Wb,
        };
        (t, false)
    }

    #[inline]
    fn accessed(entry: u64) -> bool {
        entry & ACCESSED != 0
    }

    #[inline]
    fn dirty(entry: u64) -> bool {
        entry & DIRTY != 0
    }

    #[inline]
    fn set_ad(entry: u64, accessed: bool, dirty: bool) -> u64 {
        entry | if accessed { ACCESSED } else { 0 } | if dirty { DIRTY } else { 0 }
    }

    #[inline]
    fn clear_accessed(entry: u64) -> u64 {
        entry & !ACCESSED
    }

    #[inline]
    fn clear_dirty(entry: u64) -> u64 {
        entry & !DIRTY
    }
}

/// Nested CR3, N_CR3 of the VMCB: the root table, itself cached as write-back (PWT and PCD clear).
#[inline]
pub const fn nested_cr3(root: Hpa) -> u64 {
    root.0 & ADDR
}

/// Whether VMRUN accepts `ncr3` (APM 2 15.25.3): no reserved bit set, for a processor with `max_phys_bits`.
pub const fn nested_cr3_valid(ncr3: u64, max_phys_bits: u8) -> bool {
    ncr3 & (!(ADDR | 0xfff) | reserved_addr(max_phys_bits)) == 0
}

/// Physical-address bits that the processor does not have, below bit 52.
const fn reserved_addr(max_phys_bits: u8) -> u64 {
    if max_phys_bits as u32 >= MAX_PHYS_BITS {
        0
    } else {
        ADDR & !1u64.wrapping_shl(max_phys_bits as u32).wrapping_sub(1)
    }
}

/// Whether `entry` of `level` raises a nested page fault for a reserved bit (APM 2 5.3.3, 5.4).
/// `pages_1g`: CPUID 8000_0001h EDX[26].
pub const fn reserved_bits(entry: u64, level: Level, max_phys_bits: u8, pages_1g: bool) -> bool {
    if entry & PRESENT == 0 {
        return false;
    }
    if entry & reserved_addr(max_phys_bits) != 0 {
        return true;
    }
    match level {
        Level::L1 => false,
        Level::L2 | Level::L3 => {
            let page = entry & PAGE != 0;
            let below = level.offset_mask() & ADDR & !PAT_LARGE;
            page && (entry & below != 0 || (matches!(level, Level::L3) && !pages_1g))
        }
        Level::L4 | Level::L5 => entry & (PAGE | GLOBAL) != 0,
    }
}

const _: () = {
    assert!(PRESENT == Perm::R.bits() as u64);
    assert!(WRITE == Perm::W.bits() as u64);
    assert!(ADDR == 0x000f_ffff_ffff_f000);
    assert!(PCD == PWT << 1);
    // Each type that is chosen by an index is what the host's PAT holds there.
    let types = [
        MemType::Uc,
        MemType::Wc,
        MemType::Wt,
        MemType::Wp,
        MemType::Wb,
    ];
    let mut i = 0;
    while i < types.len() {
        assert!((HOST_PAT >> (8 * pat_index(types[i]))) & 0xff == types[i] as u64);
        i += 1;
    }
    assert!(<Npt as Format>::NON_PRESENT == 0);
};
