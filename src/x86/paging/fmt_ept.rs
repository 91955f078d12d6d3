// SPDX-License-Identifier: GPL-2.0
//! Entries of Intel's extended page tables (SDM 3C 29.3.2), EPTP (25.6.11) and what the processor rejects
//! (29.3.3.1, 27.2.1.1).
#![forbid(unsafe_code)]

use crate::mem::{
    addr::{Hpa, Level, MAX_PHYS_BITS},
    walk::{Format, Leaf, MemType, Perm},
};

/// Read access.
pub const READ: u64 = 1 << 0;
/// Write access.
pub const WRITE: u64 = 1 << 1;
/// Execute access; with mode-based execute control (off here) for supervisor-mode addresses only.
pub const EXEC: u64 = 1 << 2;
/// Memory type of a leaf, bits 5:3.
pub const MEM_TYPE: u64 = 7 << MEM_TYPE_SHIFT;
/// Position of [`MEM_TYPE`].
pub const MEM_TYPE_SHIFT: u32 = 3;
/// The leaf's memory type overrides the guest's PAT.
pub const IGNORE_PAT: u64 = 1 << 6;
/// Leaf above the last level.
pub const PAGE: u64 = 1 << 7;
/// Accessed, if EPTP bit 6 is set; else ignored.
pub const ACCESSED: u64 = 1 << 8;
/// Dirty, if EPTP bit 6 is set; else ignored.
pub const DIRTY: u64 = 1 << 9;
/// Execute access for user-mode addresses; ignored without mode-based execute control.
pub const EXEC_USER: u64 = 1 << 10;
/// Address of a table or page.
pub const ADDR: u64 = ((1 << MAX_PHYS_BITS) - 1) & !0xfff;
/// An EPT violation here exits instead of becoming a virtualisation exception, if "EPT-violation #VE" is on.
/// That control stays off, so that zero can stand for "not present": with it on, every entry, absent ones
/// included, would need this bit.
pub const SUPPRESS_VE: u64 = 1 << 63;

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

    #[inline]
    fn table(child: Hpa) -> u64 {
        (child.0 & ADDR) | RIGHTS | ACCESSED
    }

    #[inline]
    fn leaf(level: Level, leaf: &Leaf) -> u64 {
        let mut e = (leaf.hpa.0 & ADDR & !level.offset_mask())
            | leaf.perm.bits() as u64
            | (leaf.mem_type as u64) << MEM_TYPE_SHIFT;
        if leaf.ignore_pat {
            e |= IGNORE_PAT;
        }
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
    fn child(entry: u64) -> Hpa {
        Hpa(entry & ADDR)
    }

    #[inline]
    fn addr(entry: u64, level: Level) -> Hpa {
        Hpa(entry & ADDR & !level.offset_mask())
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
    fn mem_type(entry: u64, _level: Level) -> (MemType, bool) {
        let t = match (entry & MEM_TYPE) >> MEM_TYPE_SHIFT {
            1 => MemType::Wc,
            4 => MemType::Wt,
            5 => MemType::Wp,
            6 => MemType::Wb,
            _ => MemType::Uc,
        };
        (t, entry & IGNORE_PAT != 0)
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

/// What the processor's EPT can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// IA32_VMX_EPT_VPID_CAP (SDM 3D A.10).
    pub ept_vpid_cap: u64,
    /// MAXPHYADDR, CPUID.80000008H:EAX bits 7:0.
    pub max_phys_bits: u8,
}

#[allow(missing_docs)]
impl Caps {
    pub const EXEC_ONLY: u64 = 1 << 0;
    pub const WALK_4: u64 = 1 << 6;
    pub const WALK_5: u64 = 1 << 7;
    pub const EPTP_UC: u64 = 1 << 8;
    pub const EPTP_WB: u64 = 1 << 14;
    pub const PAGE_2M: u64 = 1 << 16;
    pub const PAGE_1G: u64 = 1 << 17;
    pub const INVEPT: u64 = 1 << 20;
    pub const AD: u64 = 1 << 21;
    pub const INVEPT_SINGLE: u64 = 1 << 25;
    pub const INVEPT_ALL: u64 = 1 << 26;

    /// Whether all of `bits` are set in IA32_VMX_EPT_VPID_CAP.
    #[inline]
    pub const fn has(&self, bits: u64) -> bool {
        self.ept_vpid_cap & bits == bits
    }

    /// Physical-address bits that the processor does not have, below bit 52.
    #[inline]
    pub const fn reserved_addr(&self) -> u64 {
        if self.max_phys_bits as u32 >= MAX_PHYS_BITS {
            0
        } else {
            ADDR & !1u64.wrapping_shl(self.max_phys_bits as u32).wrapping_sub(1)
        }
    }
}

/// EPTP: memory type of the tables themselves, bits 2:0; write-back.
pub const EPTP_WB: u64 = 6;
/// EPTP: number of levels less one, bits 5:3.
pub const EPTP_WALK_SHIFT: u32 = 3;
/// EPTP: accessed and dirty flags.
pub const EPTP_AD: u64 = 1 << 6;
/// EPTP: supervisor shadow-stack control; with the reserved bits above it never set here.
const EPTP_RESERVED: u64 = 0xf80;

/// EPTP for a root table whose entries are of level `top` (SDM 3C 25.6.11).
#[inline]
pub const fn eptp(root: Hpa, top: Level, ad: bool) -> u64 {
    (root.0 & ADDR)
        | EPTP_WB
        | ((top as u64).wrapping_sub(1)) << EPTP_WALK_SHIFT
        | if ad { EPTP_AD } else { 0 }
}

/// Whether VM entry accepts `eptp` (SDM 3C 27.2.1.1); bit 7, the shadow-stack control, counts as unsupported.
pub const fn eptp_valid(eptp: u64, caps: &Caps) -> bool {
    let mem_type = match eptp & 7 {
        0 => caps.has(Caps::EPTP_UC),
        6 => caps.has(Caps::EPTP_WB),
        _ => false,
    };
    let walk = match eptp >> EPTP_WALK_SHIFT & 7 {
        3 => caps.has(Caps::WALK_4),
        4 => caps.has(Caps::WALK_5),
        _ => false,
    };
    let ad = eptp & EPTP_AD == 0 || caps.has(Caps::AD);
    let reserved = EPTP_RESERVED | caps.reserved_addr() | !(ADDR | 0xfff);
    mem_type && walk && ad && eptp & reserved == 0
}

/// Whether the processor takes an EPT misconfiguration on `entry` of `level` (SDM 3C 29.3.3.1), with
/// mode-based execute control off.
pub const fn misconfigured(entry: u64, level: Level, caps: &Caps) -> bool {
    if entry & RIGHTS == 0 {
        return false;
    }
    if entry & READ == 0 && (entry & WRITE != 0 || !caps.has(Caps::EXEC_ONLY)) {
        return true;
    }
    if entry & caps.reserved_addr() != 0 {
        return true;
    }
    let page = entry & PAGE != 0;
    let leaf = match level {
        Level::L1 => true,
        Level::L2 if page => {
            if !caps.has(Caps::PAGE_2M) {
                return true;
            }
            true
        }
        Level::L3 if page => {
            if !caps.has(Caps::PAGE_1G) {
                return true;
            }
            true
        }
        // Bit 7 of a PML4E or PML5E is reserved.
        Level::L4 | Level::L5 if page => return true,
        _ => false,
    };
    if leaf {
        // Address bits below the page's size are reserved; memory types 2, 3 and 7 are undefined.
        entry & ADDR & level.offset_mask() != 0
            || matches!((entry & MEM_TYPE) >> MEM_TYPE_SHIFT, 2 | 3 | 7)
    } else {
        entry & (MEM_TYPE | IGNORE_PAT) != 0
    }
}

const _: () = {
    assert!(READ == Perm::R.bits() as u64);
    assert!(WRITE == Perm::W.bits() as u64);
    assert!(EXEC == Perm::X.bits() as u64);
    assert!(ADDR == 0x000f_ffff_ffff_f000);
    assert!(MEM_TYPE == 0x38 && (MemType::Wb as u64) << MEM_TYPE_SHIFT == 0x30);
    assert!(eptp(Hpa(0x1234_5000), Level::L4, true) == 0x1234_505e);
    assert!(eptp(Hpa(0x1234_5000), Level::L5, false) == 0x1234_5026);
    assert!(<Ept as Format>::NON_PRESENT == 0);
};
