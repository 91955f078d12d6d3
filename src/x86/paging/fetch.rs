// SPDX-License-Identifier: GPL-2.0
//! The walk for a fetch of code in a straight line (SDM 3A 4.3 to 4.5, APM 2 5.2 and 5.3): what most exits need, to
//! step over their instruction.
//!
//! It wants no [`Paging`](super::gwalk::Paging) to be worked out first. That it agrees with the general walk is the
//! test `fast_fetch_is_the_general_walk` in tools/logic/tests/mem_gwalk.rs. The vCPU's thread calls it, with
//! interrupts off or on: it never sleeps if `read` does not.
#![forbid(unsafe_code)]

use crate::mem::addr::Gpa;
use crate::x86::cpu::canonical::is_canonical48;
use crate::x86::cpu::regs::{cr0, cr4, efer, Mode};

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
/// Bits of a 4 MiB page below its address, but for the PAT bit: address bits above 4 GiB, and a reserved one.
const LOW_4M: u64 = 0x3f_e000;

/// What decides about fetches of the code that runs.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// Mode of the code.
    pub mode: Mode,
    /// Privilege level of the code.
    pub cpl: u8,
    /// CR0; of interest is PG.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4; of interest are PSE, PAE, LA57 and SMEP.
    pub cr4: u64,
    /// IA32_EFER; of interest is LMA.
    pub efer: u64,
    /// Base of CS, outside 64-bit mode.
    pub base: u64,
}

impl Code {
    /// Linear address of the code at `rip`.
    #[inline(always)]
    pub fn linear(&self, rip: u64) -> u64 {
        if self.mode == Mode::Long {
            rip
        } else {
            self.base.wrapping_add(rip) & 0xffff_ffff
        }
    }

    /// Whether the guest is in IA-32e mode: [`Code::translate`] else [`Code::translate_legacy`].
    #[inline(always)]
    pub fn ia32e(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// Guest-physical address of the code at linear address `la` in IA-32e mode, in the common case: 4-level paging,
    /// pages of 4 KiB or 2 MiB, and entries that the processor would not have to change. `read` gives the 8 bytes at an
    /// aligned address; physical-address bits that do not exist for the guest are `reserved`. `None` says no more than
    /// that it is not this case.
    #[inline(always)]
    pub fn translate(
        &self,
        la: u64,
        reserved: u64,
        mut read: impl FnMut(Gpa) -> Option<u64>,
    ) -> Option<Gpa> {
        if self.cr4 & cr4::LA57 != 0 || !is_canonical48(la) {
            return None;
        }
        let bad = reserved & ADDR | NO_EXEC;
        let e4 = entry(self.cr3, la >> 39, bad, &mut read)?;
        let e3 = entry(e4, la >> 30, bad, &mut read)?;
        // In the fourth level the bit is reserved; pages of 1 GiB are rare.
        if (e4 | e3) & LARGE != 0 {
            return None;
        }
        self.lowest_levels(e3, la, bad, e4 & e3, &mut read)
    }

    /// The last two levels of tables with entries of 8 bytes; `user` has the bit of the levels above.
    #[inline(always)]
    fn lowest_levels(
        &self,
        e3: u64,
        la: u64,
        bad: u64,
        user: u64,
        read: &mut impl FnMut(Gpa) -> Option<u64>,
    ) -> Option<Gpa> {
        let e2 = entry(e3, la >> 21, bad, read)?;
        if e2 & LARGE != 0 {
            let gpa = Gpa(e2 & ADDR_2M | la & 0x1f_ffff);
            return (e2 & LOW_2M == 0 && self.allows(user & e2)).then_some(gpa);
        }
        let e1 = entry(e2, la >> 12, bad, read)?;
        self.allows(user & e2 & e1)
            .then_some(Gpa(e1 & ADDR | la & 0xfff))
    }

    /// [`Code::translate`] outside IA-32e mode: no paging, 32-bit paging, PAE paging, in whose PDPTEs the bits
    /// `pdpte_reserved` are reserved as well.
    #[inline(always)]
    pub fn translate_legacy(
        &self,
        la: u64,
        reserved: u64,
        pdpte_reserved: u64,
        mut read: impl FnMut(Gpa) -> Option<u64>,
    ) -> Option<Gpa> {
        let la = la & 0xffff_ffff;
        if self.cr0 & cr0::PG == 0 {
            return Some(Gpa(la));
        }
        if self.cr4 & cr4::PAE != 0 {
            // No bit above the address is ignored.
            let bad = reserved & ADDR | !(ADDR | 0xfff);
            let e3 = read(Gpa(self.cr3 & 0xffff_ffe0 | la >> 30 << 3))?;
            if (e3 ^ PRESENT) & (bad | pdpte_reserved | PRESENT) != 0 {
                return None;
            }
            return self.lowest_levels(e3, la, bad, USER, &mut read);
        }
        let mut entry = |table: u64, bits: u64| -> Option<u64> {
            let at = table & 0xffff_f000 | (bits & 1023) << 2;
            let e = read(Gpa(at & !7))? >> (8 * (at & 4)) & 0xffff_ffff;
            (!e & WANT == 0).then_some(e)
        };
        let e2 = entry(self.cr3, la >> 22)?;
        if e2 & LARGE != 0 && self.cr4 & cr4::PSE != 0 {
            let gpa = Gpa(e2 & 0xffc0_0000 | la & 0x3f_ffff);
            return (e2 & LOW_4M == 0 && self.allows(e2)).then_some(gpa);
        }
        let e1 = entry(e2, la >> 12)?;
        self.allows(e2 & e1)
            .then_some(Gpa(e1 & 0xffff_f000 | la & 0xfff))
    }

    /// Whether pages may be executed whose entries have these bits in common.
    #[inline(always)]
    fn allows(&self, user: u64) -> bool {
        if self.cpl == 3 {
            user & USER != 0
        } else {
            user & USER == 0 || self.cr4 & cr4::SMEP == 0
        }
    }
}

/// The entry of `table` that the low `bits` of an address select, if it is there, marked, and has no `bad` bit.
#[inline(always)]
fn entry(
    table: u64,
    bits: u64,
    bad: u64,
    read: &mut impl FnMut(Gpa) -> Option<u64>,
) -> Option<u64> {
    let e = read(Gpa(table & ADDR | (bits & 511) << 3))?;
    ((e ^ WANT) & (bad | WANT) == 0).then_some(e)
}
