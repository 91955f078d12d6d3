// SPDX-License-Identifier: GPL-2.0
//! What has to happen to caches before a guest gets a page: data that the host has written there, or that was there
//! before, is to be seen by a guest that goes past caches; and instructions by one that fetches them (Arm ARM B2.4.4,
//! D7.5.9; CTR_EL0).
#![forbid(unsafe_code)]

/// What the processors of this machine need, and how large the lines of their caches are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caches {
    /// Stage 2 makes all memory write-back, whatever a guest thinks of it (HCR_EL2.FWB): nothing goes past caches.
    pub forced: bool,
    /// Data caches are cleaned before a page is mapped.
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
    fn in_a_word() {
        for ctr in [CTR, 0, u64::MAX, CTR & !(3 << 14)] {
            for n in 0..8 {
                let c = Caches::of(ctr, n & 1 != 0, n & 2 != 0, n & 4 != 0);
                assert_eq!(Caches::from_bits(c.to_bits()), c);
            }
        }
    }
}
