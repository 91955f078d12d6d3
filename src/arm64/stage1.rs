// SPDX-License-Identifier: GPL-2.0
//! A walk of the guest's own tables, stage 1, as far as it gets: at which level a table is no memory (Arm ARM D8.2).
#![forbid(unsafe_code)]

/// What a walk begins with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1.
    pub ttbr0: u64,
    /// TTBR1_EL1.
    pub ttbr1: u64,
}

/// Bits of an address in a table entry or a TTBR.
const ADDRESS: u64 = (1 << 48) - 1;

/// The level of the first table on the way to `address` that is no memory, by `read`, which gives the entry at a
/// guest-physical address. `None`: there is none, or the tables do not say.
pub fn missing_level(
    address: u64,
    r: &Registers,
    mut read: impl FnMut(u64) -> Option<u64>,
) -> Option<u8> {
    let upper = address >> 55 & 1 != 0;
    let (ttbr, size, granule) = if upper {
        (
            r.ttbr1,
            r.tcr >> 16 & 0x3f,
            [0, 14, 12, 16][(r.tcr >> 30 & 3) as usize],
        )
    } else {
        (
            r.ttbr0,
            r.tcr & 0x3f,
            [12, 16, 14, 0][(r.tcr >> 14 & 3) as usize],
        )
    };
    let bits = 64 - size as u32;
    // As many levels as it takes, of which the first may be a part of one.
    let each = u32::checked_sub(granule, 3)?;
    let levels = bits.checked_sub(granule)?.div_ceil(each);
    let mut level = 4u32.checked_sub(levels)?;
    let others = levels.checked_sub(1)?.checked_mul(each)?;
    let mut width = bits.checked_sub(granule)?.checked_sub(others)?;
    let mut table = ttbr & ADDRESS & !1;
    loop {
        let shift = granule + (3 - level) * each;
        let index = address >> shift & ((1 << width) - 1);
        let at = (table & !((8 << width) - 1)) | index * 8;
        let Some(entry) = read(at) else {
            return Some(level as u8);
        };
        if entry & 3 != 3 || level == 3 {
            return None;
        }
        table = entry & ADDRESS & !((1 << granule) - 1);
        width = each;
        level += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of tables in order, and where a walk looks for them; the one that is looked for next is no memory.
    fn walk(address: u64, tcr: u64, entries: &[(u64, u64)]) -> (Option<u8>, u64) {
        let mut left = entries.iter();
        let mut last = 0;
        let r = Registers {
            tcr,
            ttbr0: 0x4000_0001,
            ttbr1: 0x5000_0000,
        };
        let level = missing_level(address, &r, |at| {
            last = at;
            left.next().map(|(want, entry)| {
                assert_eq!(at, *want);
                *entry
            })
        });
        (level, last)
    }

    #[test]
    fn four_kib() {
        // 48 bits.
        let address = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12;
        let way = [
            (0x4000_0008, 0x6000_0003),
            (0x6000_0010, 0x7000_0003),
            (0x7000_0018, 0x8000_0003),
        ];
        assert_eq!(walk(address, 16, &[]), (Some(0), 0x4000_0008));
        assert_eq!(walk(address, 16, &way[..2]), (Some(2), 0x7000_0018));
        assert_eq!(walk(address, 16, &way), (Some(3), 0x8000_0020));
        // 39 bits begin at level 1, 36 with a part of it.
        assert_eq!(walk(2 << 30, 25, &[]), (Some(1), 0x4000_0010));
        assert_eq!(walk(63 << 30, 28, &[]), (Some(1), 0x4000_01f8));
        // A block ends it.
        assert_eq!(walk(2 << 30, 25, &[(0x4000_0010, 1)]).0, None);
        // The upper half.
        assert_eq!(
            walk(u64::MAX << 48 | 5 << 39, 16 << 16 | 2 << 30, &[]),
            (Some(0), 0x5000_0028)
        );
    }

    #[test]
    fn other_granules() {
        // 64 KiB, 42 bits: levels 2 and 3; 16 KiB, 47 bits: from level 1.
        assert_eq!(walk(3 << 29, 1 << 14 | 22, &[]), (Some(2), 0x4000_0018));
        assert_eq!(walk(3 << 36, 2 << 14 | 17, &[]), (Some(1), 0x4000_0018));
        // Whatever they say, a walk ends.
        for size in 0..0x8_0000u64 {
            let tcr = size & 0x3f | (size >> 6) << 14;
            let address = size.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let r = Registers {
                tcr,
                ..Registers::default()
            };
            let mut reads = 0;
            let level = missing_level(address, &r, |_| {
                reads += 1;
                Some(u64::MAX)
            });
            assert!(level.is_none() && reads <= 5);
        }
    }
}
