// SPDX-License-Identifier: GPL-2.0
//! Entries of nested page tables: stage 2 with a granule of 4 KiB (Arm ARM D8.3). An entry has to be broken before
//! another is made (D8.16.1).
//!
//! Up to 40 bits of guest-physical address have three levels and two concatenated tables at the root, up to 48 four
//! levels, whose second table at the root nothing leads to.
#![forbid(unsafe_code)]

use crate::mem::addr::{Hpa, Level};
use crate::mem::format::{Format, Leaf, MemType, Perm};
use core::sync::atomic::{AtomicBool, Ordering};

/// Bit 0 of every entry that is there.
pub const VALID: u64 = 1 << 0;
/// A table or, at the last level, a page; clear in a block.
pub const TABLE: u64 = 1 << 1;
/// MemAttr of a leaf: normal memory, write-back; Device-nGnRE, with HCR_EL2.FWB as without.
const WRITE_BACK: u64 = 0xf << 2;
const DEVICE: u64 = 1 << 2;
/// Write-back whatever stage 1 says, with HCR_EL2.FWB.
const FORCED_WRITE_BACK: u64 = 6 << 2;
/// S2AP: read, write.
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
/// Inner shareable.
const SHARED: u64 = 3 << 8;
/// Access flag. It is always set: a clear one would fault.
pub const ACCESS: u64 = 1 << 10;
/// XN: no fetches.
const NO_EXEC: u64 = 1 << 54;
/// Software's, from bits 58:55: the leaf counts as accessed; as written.
const ACCESSED: u64 = 1 << 55;
const DIRTY: u64 = 1 << 56;
/// Output address.
pub const ADDR: u64 = ((1 << 48) - 1) & !0xfff;

/// HCR_EL2.FWB is set while guests run. Before there is a table.
static FORCED: AtomicBool = AtomicBool::new(false);

/// Says that.
pub fn force_write_back() {
    FORCED.store(true, Ordering::Relaxed);
}

/// Whether it is so.
#[inline]
pub fn forces_write_back() -> bool {
    FORCED.load(Ordering::Relaxed)
}

/// Bits of a guest-physical address that there can be.
pub const LEAST_BITS: u32 = 32;
/// See above.
pub const MOST_BITS: u32 = 48;
/// Bits for which three levels are enough.
const THREE_LEVELS: u32 = 40;

/// Levels of the table for so many bits.
pub const fn levels(bits: u32) -> u8 {
    if bits <= THREE_LEVELS {
        3
    } else {
        4
    }
}

/// VTCR_EL2 for so many bits, in write-back memory that is shared inside; `range`: ID_AA64MMFR0_EL1.PARange, how wide
/// the addresses of memory are (Arm ARM D24.2.187).
pub const fn control(bits: u32, range: u64) -> u64 {
    const RES1: u64 = 1 << 31;
    // The first level that is looked up: 1 is level 1, 2 is level 0.
    let start = if levels(bits) == 3 { 1 << 6 } else { 2 << 6 };
    // 48 bits, which is what entries have.
    let range = if range < 5 { range } else { 5 };
    RES1 | range << 16 | 3 << 12 | 1 << 10 | 1 << 8 | start | (64 - bits) as u64
}

/// Whether a processor that still has `old` in its TLB goes elsewhere than by `new`, or may do more there.
pub const fn narrows(old: u64, new: u64) -> bool {
    const SOFTWARE: u64 = 0xf << 55;
    if old & VALID == 0 {
        return false;
    }
    let elsewhere = (old ^ new) & !(SOFTWARE | READ | WRITE | NO_EXEC) != 0;
    elsewhere || old & !new & (READ | WRITE) != 0 || new & !old & NO_EXEC != 0
}

/// Stage 2 without hardware management of access flag and dirty state.
pub struct Stage2;

impl Format for Stage2 {
    const TABLE_RIGHTS: bool = false;
    const HAS_AD: bool = false;
    const BREAK_FIRST: bool = true;
    const LEVELS: (u8, u8) = (3, 4);
    const ROOT_TABLES: u64 = 2;
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const ADDR: u64 = ADDR;

    fn table(child: Hpa) -> u64 {
        (child.0 & ADDR) | TABLE | VALID
    }

    fn leaf(level: Level, leaf: &Leaf) -> u64 {
        let mut e = (leaf.hpa.0 & ADDR & !level.offset_mask()) | VALID | ACCESS | SHARED;
        if level == Level::L1 {
            e |= TABLE;
        }
        e |= match leaf.mem_type {
            MemType::Ram | MemType::GuestTyped if forces_write_back() => FORCED_WRITE_BACK,
            MemType::Ram | MemType::GuestTyped => WRITE_BACK,
            MemType::Device => DEVICE,
        };
        let dirty = leaf.dirty || leaf.perm.contains(Perm::W);
        Self::set_ad(Self::set_perm(e, leaf.perm), true, dirty)
    }

    fn can_express(perm: Perm) -> bool {
        perm.contains(Perm::R)
    }

    fn present(entry: u64) -> bool {
        entry & VALID != 0
    }

    fn is_leaf(entry: u64, level: Level) -> bool {
        level == Level::L1 || entry & TABLE == 0
    }

    fn perm(entry: u64) -> Perm {
        let x = if entry & NO_EXEC == 0 { 4 } else { 0 };
        Perm::from_bits((entry >> 6 & 3) as u8 | x)
    }

    fn set_perm(entry: u64, perm: Perm) -> u64 {
        let rw = u64::from(perm.bits() & 3) << 6;
        let xn = if perm.contains(Perm::X) { 0 } else { NO_EXEC };
        (entry & !(READ | WRITE | NO_EXEC)) | rw | xn
    }

    fn mem_type(entry: u64, _level: Level) -> MemType {
        if entry & WRITE_BACK == DEVICE {
            MemType::Device
        } else {
            MemType::Ram
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_narrows() {
        let leaf = |hpa, perm, mem_type| {
            Stage2::leaf(
                Level::L1,
                &Leaf {
                    hpa: Hpa(hpa),
                    perm,
                    mem_type,
                    accessed: true,
                    dirty: false,
                },
            )
        };
        let perms = [Perm::R, Perm::RW, Perm::RX, Perm::RWX];
        for old in perms {
            let e = leaf(0x1000, old, MemType::Ram);
            for new in perms {
                let less = !new.contains(old);
                assert_eq!(narrows(e, leaf(0x1000, new, MemType::Ram)), less);
                assert!(narrows(e, leaf(0x2000, new, MemType::Ram)));
                assert!(narrows(e, leaf(0x1000, new, MemType::Device)));
            }
            for gone in [
                0,
                Stage2::FROZEN,
                Stage2::BROKEN,
                Stage2::table(Hpa(0x1000)),
            ] {
                assert!(narrows(e, gone) && !narrows(gone & !VALID, e));
            }
            assert!(!narrows(e, Stage2::set_ad(e, false, false)));
        }
        assert!(narrows(Stage2::table(Hpa(0x1000)), 0));
    }
}
