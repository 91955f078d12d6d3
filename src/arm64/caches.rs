// SPDX-License-Identifier: GPL-2.0
//! What has to happen to caches before a guest gets a page: data that the host has written there, or that was there
//! before, is to be seen by a guest that goes past caches; and instructions by one that fetches them (Arm ARM B2.4.4,
//! D7.5.9; CTR_EL0).
//!
//! Without FEAT_S2FWB a guest that has its caches off writes past them. So a page is cleaned and invalidated again when
//! it leaves ([`leaving`](crate::arm64::leaving)), and all are when the guest switches its caches on or off, which is
//! seen by trapping what it writes to EL1's registers of memory (HCR_EL2.TVM) until they are on, and when it cleans
//! them by set and way, which is meant for a processor's own caches and reaches no others.
#![forbid(unsafe_code)]

use crate::arm64::esr::SysReg;

/// What the processors of this machine need, and how large the lines of their caches are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caches {
    /// Stage 2 makes all memory write-back, whatever a guest thinks of it (HCR_EL2.FWB): nothing goes past caches.
    pub forced: bool,
    /// Data caches are cleaned before a page is mapped; and after it has left, unless stage 2 makes all write-back.
    pub clean: bool,
    /// Instruction caches are invalidated before a page can be fetched from: line by line, or whole ones.
    pub invalidate: Invalidate,
    /// Bytes of the smallest line of a data cache, and of an instruction cache.
    pub data_line: u64,
    /// See above.
    pub fetch_line: u64,
}

/// How instruction caches are invalidated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Invalidate {
    /// Not at all.
    #[default]
    Nothing,
    /// By the host's address of each line.
    Lines,
    /// All of them, because a guest's address may find another line.
    All,
}

/// CTR_EL0.L1Ip: by physical addresses.
const PHYSICAL: u64 = 3;

impl Caches {
    /// By CTR_EL0, as the kernel shows it, and by what it has found on all processors: FEAT_S2FWB; that instructions
    /// need no data cache to be cleaned (IDC), nor their own to be invalidated (DIC).
    pub fn of(ctr: u64, forced: bool, idc: bool, dic: bool) -> Self {
        let line = |at: u32| 4 << (ctr >> at & 0xf);
        Self {
            forced,
            clean: !forced || !idc,
            invalidate: match ctr >> 14 & 3 {
                _ if dic => Invalidate::Nothing,
                PHYSICAL => Invalidate::Lines,
                _ => Invalidate::All,
            },
            data_line: line(16),
            fetch_line: line(0),
        }
    }

    /// How instruction caches are invalidated for so many bytes, of which more than a page would take too long.
    pub fn invalidate(&self, bytes: u64) -> Invalidate {
        match self.invalidate {
            Invalidate::Lines if bytes > 4096 => Invalidate::All,
            how => how,
        }
    }

    /// As one word, for who keeps it.
    pub fn to_bits(self) -> u32 {
        let line = |bytes: u64| bytes.trailing_zeros() & 0x1f;
        u32::from(self.forced)
            | u32::from(self.clean) << 1
            | (self.invalidate as u32) << 2
            | line(self.data_line) << 8
            | line(self.fetch_line) << 16
    }

    /// Of that word.
    #[inline]
    pub fn from_bits(bits: u32) -> Self {
        Self {
            forced: bits & 1 != 0,
            clean: bits & 2 != 0,
            invalidate: match bits >> 2 & 3 {
                0 => Invalidate::Nothing,
                1 => Invalidate::Lines,
                _ => Invalidate::All,
            },
            data_line: 1 << (bits >> 8 & 0x1f),
            fetch_line: 1 << (bits >> 16 & 0x1f),
        }
    }
}

/// Registers of EL1 whose writes trap while a guest's caches are watched (HCR_EL2.TVM).
const WATCHED: [SysReg; 11] = [
    SCTLR,
    SysReg::new(3, 0, 2, 0, 0),
    SysReg::new(3, 0, 2, 0, 1),
    SysReg::new(3, 0, 2, 0, 2),
    SysReg::new(3, 0, 5, 1, 0),
    SysReg::new(3, 0, 5, 1, 1),
    SysReg::new(3, 0, 5, 2, 0),
    SysReg::new(3, 0, 6, 0, 0),
    SysReg::new(3, 0, 10, 2, 0),
    SysReg::new(3, 0, 10, 3, 0),
    SysReg::new(3, 0, 13, 0, 1),
];
/// SCTLR_EL1, and its bits M and C: stage 1 is on, and data caches.
const SCTLR: SysReg = SysReg::new(3, 0, 1, 0, 0);
const ON: u64 = 1 << 0 | 1 << 2;

/// Whether a write to `reg` traps for that: SCTLR_EL1, TTBR0, TTBR1, TCR, AFSR0, AFSR1, ESR, FAR, MAIR, AMAIR or
/// CONTEXTIDR.
pub fn is_watched(reg: SysReg) -> bool {
    WATCHED.contains(&reg)
}

/// Whether a guest with this SCTLR_EL1 uses caches.
pub const fn are_on(sctlr: u64) -> bool {
    sctlr & ON == ON
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of 64 bytes; caches of instructions by physical addresses.
    const CTR: u64 = 1 << 31 | 4 << 16 | 3 << 14 | 4;

    #[test]
    fn what_is_needed() {
        let all = Caches::of(CTR, true, true, true);
        assert!(all.forced && !all.clean && all.invalidate == Invalidate::Nothing);
        let none = Caches::of(CTR, false, false, false);
        assert!(!none.forced && none.clean);
        assert_eq!((none.data_line, none.fetch_line), (64, 64));
        assert_eq!(none.invalidate(4096), Invalidate::Lines);
        assert_eq!(none.invalidate(1 << 21), Invalidate::All);
        let virt = Caches::of(CTR & !(1 << 14), false, true, false);
        assert_eq!(virt.invalidate(4096), Invalidate::All);
        assert!(virt.clean);
        // Write-back for all, but what was written does not reach instructions by itself.
        assert!(Caches::of(CTR, true, false, true).clean);
    }

    #[test]
    fn watched() {
        assert!(is_watched(SCTLR) && is_watched(SysReg::new(3, 0, 13, 0, 1)));
        // CPACR_EL1, VBAR_EL1, TPIDR_EL1.
        for (crn, crm, op2) in [(1, 0, 2), (12, 0, 0), (13, 0, 4)] {
            assert!(!is_watched(SysReg::new(3, 0, crn, crm, op2)));
        }
        assert!(are_on(5) && !are_on(1) && !are_on(4) && !are_on(0));
    }

    #[test]
    fn in_a_word() {
        for ctr in [CTR, 0, u64::MAX, CTR & !(3 << 14)] {
            for n in 0..8 {
                let c = Caches::of(ctr, n & 1 != 0, n & 2 != 0, n & 4 != 0);
                assert_eq!(Caches::from_bits(c.to_bits()), c);
            }
        }
    }
}
