// SPDX-License-Identifier: GPL-2.0
//! Arm64's nested page tables as the tests of the ground use them, which so show that it needs nothing of x86.

use crate::arm64::stage2::{ACCESS, ADDR, TABLE, VALID};
use crate::mem::addr::Level;
use crate::mem::format::Format;

pub use crate::arm64::stage2::Stage2;

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
