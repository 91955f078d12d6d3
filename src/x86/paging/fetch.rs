// SPDX-License-Identifier: GPL-2.0
//! The walk for the fetch of 64-bit code in a straight line (SDM 3A 4.5, APM 2 5.3): what most exits need, to step over
//! their instruction.
//!
//! It wants no [`Paging`](super::gwalk::Paging) to be worked out first. That it agrees with the general walk is the
//! test `fast_fetch_is_the_general_walk` in tools/logic/tests/mem_gwalk.rs. The vCPU's thread calls it, with
//! interrupts off or on: it never sleeps if `read` does not.
#![forbid(unsafe_code)]

use crate::mem::addr::Gpa;
use crate::x86::cpu::canonical::is_canonical48;
use crate::x86::cpu::regs::cr4;

const PRESENT: u64 = 1 << 0;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const LARGE: u64 = 1 << 7;
const NO_EXEC: u64 = 1 << 63;
const ADDR: u64 = 0x000f_ffff_ffff_f000;
const WANT: u64 = PRESENT | ACCESSED;
/// Address bits of a 2 MiB page; below them only the PAT bit may be set.
const ADDR_2M: u64 = 0x000f_ffff_ffe0_0000;
const LOW_2M: u64 = 0x1f_e000;

/// What decides about fetches of 64-bit code.
#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    /// Privilege level of the code.
    pub cpl: u8,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// Physical-address bits that do not exist for the guest.
    pub reserved: u64,
}

impl Fetch {
    /// Guest-physical address of the code at linear address `la` in the common case: 4-level paging, pages of 4 KiB or
    /// 2 MiB, and entries that the processor would not have to change. `read` gives the table entry at an address.
    /// `None` says no more than that it is not this case.
    #[inline(always)]
    pub fn translate(&self, la: u64, mut read: impl FnMut(Gpa) -> Option<u64>) -> Option<Gpa> {
        if self.cr4 & cr4::LA57 != 0 || !is_canonical48(la) {
            return None;
        }
        let bad = self.reserved & ADDR | NO_EXEC | WANT;
        // One step: `bits` of the address select the entry of `table`.
        let mut entry = |table: u64, bits: u64| -> Option<u64> {
            let e = read(Gpa(table & ADDR | (bits & 511) << 3))?;
            ((e ^ WANT) & bad == 0).then_some(e)
        };
        let e4 = entry(self.cr3, la >> 39)?;
        let e3 = entry(e4, la >> 30)?;
        // In the fourth level the bit is reserved; pages of 1 GiB are rare.
        if (e4 | e3) & LARGE != 0 {
            return None;
        }
        let e2 = entry(e3, la >> 21)?;
        let mut user = e4 & e3 & e2;
        let gpa = if e2 & LARGE != 0 {
            if e2 & LOW_2M != 0 {
                return None;
            }
            e2 & ADDR_2M | la & 0x1f_ffff
        } else {
            let e1 = entry(e2, la >> 12)?;
            user &= e1;
            e1 & ADDR | la & 0xfff
        };
        let allowed = if self.cpl == 3 {
            user & USER != 0
        } else {
            user & USER == 0 || self.cr4 & cr4::SMEP == 0
        };
        allowed.then_some(Gpa(gpa))
    }
}
