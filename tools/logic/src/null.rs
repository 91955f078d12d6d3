// SPDX-License-Identifier: GPL-2.0
//! An architecture without processors, to show that the ground needs none of x86: nested page tables in the format of
//! Arm's stage 2 (Arm ARM D8.3, 4 KiB granule, three levels, four concatenated tables at the root), where an entry has
//! to be broken before another is made (D8.16.1).

use crate::mem::addr::{Hpa, Level};
use crate::mem::format::{Format, Leaf, MemType, Perm};

/// Bit 0 of every entry that is there.
pub const VALID: u64 = 1 << 0;
/// A table or, at the last level, a page; clear in a block.
pub const TABLE: u64 = 1 << 1;
/// MemAttr of a leaf: normal memory, write-back. Device-nGnRE is 1 << 2.
const WRITE_BACK: u64 = 0xf << 2;
const DEVICE: u64 = 1 << 2;
/// S2AP: read, write.
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
/// Inner shareable.
const SHARED: u64 = 3 << 8;
/// Access flag. It is always set: a clear one would fault.
const ACCESS: u64 = 1 << 10;
/// XN: no fetches.
const NO_EXEC: u64 = 1 << 54;
/// Software's, from bits 58:55: the leaf counts as accessed; as written.
const ACCESSED: u64 = 1 << 55;
const DIRTY: u64 = 1 << 56;
/// Output address.
const ADDR: u64 = ((1 << 48) - 1) & !0xfff;

/// Stage 2 without hardware management of access flag and dirty state.
pub struct Stage2;

impl Format for Stage2 {
    const TABLE_RIGHTS: bool = false;
    const HAS_AD: bool = false;
    const BREAK_FIRST: bool = true;
    const LEVELS: (u8, u8) = (3, 3);
    const ROOT_TABLES: u64 = 4;
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
        if entry & WRITE_BACK == WRITE_BACK {
            MemType::Ram
        } else {
            MemType::Device
        }
    }
}

/// Whether a processor would take `entry` of `level` for malformed: reserved bits, or a block where there are none.
pub fn malformed(entry: u64, level: Level) -> bool {
    if entry & VALID == 0 {
        return false;
    }
    if !Stage2::is_leaf(entry, level) {
        return entry & !(ADDR | TABLE | VALID) != 0;
    }
    level > Level::L3
        || (level == Level::L1) != (entry & TABLE != 0)
        || entry & ADDR & level.offset_mask() != 0
        || entry & ACCESS == 0
}
