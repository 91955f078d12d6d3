// SPDX-License-Identifier: GPL-2.0
//! What the ID registers say to guests: an allow-list (Arm ARM D24.2).
//!
//! A field is shown as the host has it, up to a value that is known here, if nothing has to be switched or trapped for
//! what it announces. What is not listed reads as zero, which says that it is not there.
#![forbid(unsafe_code)]

use crate::arm64::esr::SysReg;

/// How a field of four bits is shown, and what user space may make of it.
#[derive(Clone, Copy)]
enum Field {
    /// What the host has, but at most this; less may be said.
    UpTo(u8),
    /// The same, but at least this.
    Within(u8, u8),
    /// What the host has: all values are understood.
    Same,
    /// What the host has, or less, of which 0xf is the least: not there.
    OrNone,
    /// What the host has, or more, which says that less can be relied on.
    OrMore,
    /// About stage 2, which guests do not have: 0, or 1, which says so.
    Stage2,
    /// What the host has, but at most this, if vCPUs have asked for pointer authentication; else nothing.
    Keys(u8),
}

use Field::{Keys, OrMore, OrNone, Same, Stage2, UpTo, Within};

/// Guests do not have it.
const HIDDEN: Field = UpTo(0);

/// The lowest bit of a field, and how it is shown.
type Row = (u8, Field);

/// ID_AA64PFR0_EL1: EL0 and EL1 of 64 bits, no EL2, FP, AdvSIMD, DIT, CSV2, CSV3. Neither RAS, SVE, SEL2, nor AMU.
const PFR0: &[Row] = &[
    (0, Within(1, 1)),
    (4, Within(1, 1)),
    (8, HIDDEN),
    (12, HIDDEN),
    (16, Same),
    (20, Same),
    (36, HIDDEN),
    (48, UpTo(1)),
    (56, UpTo(1)),
    (60, UpTo(1)),
];
/// ID_AA64PFR1_EL1: BT, CSV2_frac. Neither SSBS nor DF2.
const PFR1: &[Row] = &[(0, UpTo(1)), (4, HIDDEN), (32, UpTo(1)), (56, HIDDEN)];
/// ID_AA64ZFR0_EL1: no SVE.
const ZFR0: &[Row] = &[
    (0, HIDDEN),
    (4, HIDDEN),
    (16, HIDDEN),
    (20, HIDDEN),
    (32, HIDDEN),
    (40, HIDDEN),
    (44, HIDDEN),
    (52, HIDDEN),
    (56, HIDDEN),
];
/// ID_AA64DFR0_EL1: Armv8 debug with as many breakpoints and watchpoints as there are, and no performance counters.
const DFR0: &[Row] = &[
    (0, Within(6, 6)),
    (8, HIDDEN),
    (12, Same),
    (20, UpTo(15)),
    (28, Same),
    (36, OrNone),
];
/// ID_AA64ISAR0_EL1: instructions alone, but for TME and RNDR.
const ISAR0: &[Row] = &[
    (4, UpTo(2)),
    (8, UpTo(1)),
    (12, UpTo(2)),
    (16, UpTo(1)),
    (20, UpTo(2)),
    (28, UpTo(1)),
    (32, UpTo(1)),
    (36, UpTo(1)),
    (40, UpTo(1)),
    (44, UpTo(1)),
    (48, UpTo(1)),
    (52, UpTo(2)),
    (56, UpTo(2)),
    (60, HIDDEN),
];
/// ID_AA64ISAR1_EL1: DPB, pointer authentication, JSCVT, FCMA, LRCPC, FRINTTS, SB, SPECRES, BF16, DGH, I8MM. Neither XS
/// nor LS64.
const ISAR1: &[Row] = &[
    (0, UpTo(2)),
    (4, Keys(5)),
    (8, Keys(5)),
    (24, Keys(1)),
    (28, Keys(1)),
    (12, UpTo(1)),
    (16, UpTo(1)),
    (20, UpTo(2)),
    (32, UpTo(1)),
    (36, UpTo(1)),
    (40, UpTo(1)),
    (44, UpTo(1)),
    (48, UpTo(1)),
    (52, UpTo(1)),
    (56, HIDDEN),
    (60, HIDDEN),
];
/// ID_AA64ISAR2_EL1: pointer authentication, BC, CLRBHB. Neither WFxT nor RPRES.
const ISAR2: &[Row] = &[
    (0, HIDDEN),
    (4, HIDDEN),
    (8, Keys(1)),
    (12, Keys(5)),
    (20, UpTo(1)),
    (28, UpTo(1)),
];
/// ID_AA64ISAR3_EL1: nothing.
const ISAR3: &[Row] = &[
    (4, HIDDEN),
    (16, HIDDEN),
    (20, HIDDEN),
    (24, HIDDEN),
    (28, HIDDEN),
];
/// ID_AA64MMFR0_EL1: as many physical address bits as guest memory can have (48), ASIDs, granules.
const MMFR0: &[Row] = &[
    (0, UpTo(5)),
    (4, UpTo(2)),
    (8, HIDDEN),
    (12, UpTo(1)),
    (16, UpTo(1)),
    (20, UpTo(1)),
    (24, OrNone),
    (28, OrNone),
    (32, Stage2),
    (36, Stage2),
    (40, Stage2),
    (44, HIDDEN),
    (60, HIDDEN),
];
/// ID_AA64MMFR1_EL1: access flag and dirty state in stage 1, HPDS, PAN, SpecSEI, ETS.
const MMFR1: &[Row] = &[
    (0, UpTo(2)),
    (12, UpTo(1)),
    (16, HIDDEN),
    (20, UpTo(2)),
    (24, OrMore),
    (32, HIDDEN),
    (36, UpTo(3)),
    (40, HIDDEN),
    (44, HIDDEN),
    (52, HIDDEN),
];
/// ID_AA64MMFR2_EL1: CNP, UAO, addresses of 52 bits and small tables in stage 1, AT, TTL hints, BBM, E0PD.
const MMFR2: &[Row] = &[
    (0, UpTo(1)),
    (4, UpTo(1)),
    (8, HIDDEN),
    (12, HIDDEN),
    (16, UpTo(1)),
    (28, UpTo(1)),
    (32, UpTo(1)),
    (48, UpTo(1)),
    (52, UpTo(2)),
    (60, UpTo(1)),
];
/// ID_AA64MMFR3_EL1: nothing.
const MMFR3: &[Row] = &[(0, HIDDEN), (4, HIDDEN), (8, HIDDEN), (16, HIDDEN)];

/// How many ID registers show something.
pub const COUNT: usize = SHOWN.len();
/// Of those, which is ID_AA64PFR0_EL1.
pub const PFR0_INDEX: usize = 0;

/// ID registers that show something, or of which user space may say that they do not, and how.
const SHOWN: &[(SysReg, &[Row])] = &[
    (id(4, 0), PFR0),
    (id(4, 1), PFR1),
    (id(4, 4), ZFR0),
    (id(5, 0), DFR0),
    (id(6, 0), ISAR0),
    (id(6, 1), ISAR1),
    (id(6, 2), ISAR2),
    (id(6, 3), ISAR3),
    (id(7, 0), MMFR0),
    (id(7, 1), MMFR1),
    (id(7, 2), MMFR2),
    (id(7, 3), MMFR3),
];

const fn id(crm: u16, op2: u16) -> SysReg {
    SysReg::new(3, 0, 0, crm, op2)
}

/// Whether `reg` is an ID register in the space that is set aside for them (HCR_EL2.TID3): CRm 1 to 7.
pub fn is_id(reg: SysReg) -> bool {
    let (op0, op1, crn, crm, _) = reg.parts();
    (op0, op1, crn) == (3, 0, 0) && (1..=7).contains(&crm)
}

/// ID_AA64PFR0_EL1.GIC: the interrupt controller has registers in the processor.
pub const PFR0_GIC: u64 = 1 << 24;

/// Where `reg` is among those that show something.
#[inline]
pub fn index(reg: SysReg) -> Option<usize> {
    SHOWN.iter().position(|(r, _)| *r == reg)
}

/// The most that a guest may be shown of `reg`, which the host reads as `host`.
pub fn limit(reg: SysReg, host: u64) -> u64 {
    let gic = if reg == id(4, 0) { PFR0_GIC } else { 0 };
    rows(reg).iter().fold(gic, |value, &(at, field)| {
        let has = (host >> at & 0xf) as u8;
        let shows = match field {
            UpTo(most) | Keys(most) => has.min(most),
            Within(least, most) => has.min(most).max(least),
            Same | OrNone | OrMore => has,
            Stage2 => 0,
        };
        value | u64::from(shows) << at
    })
}

fn rows(reg: SysReg) -> &'static [Row] {
    index(reg)
        .and_then(|n| SHOWN.get(n))
        .map_or(&[], |(_, rows)| *rows)
}

/// Bits of `reg` that are about pointer authentication.
pub fn of_keys(reg: SysReg) -> u64 {
    let keys = |row: &&Row| matches!(row.1, Keys(_));
    let keys = rows(reg).iter().filter(keys);
    keys.fold(0, |mask, &(at, _)| mask | 0xf << at)
}

/// Bits of `reg` that user space may change.
pub fn writable(reg: SysReg) -> u64 {
    let gic = if reg == id(4, 0) { PFR0_GIC * 0xf } else { 0 };
    rows(reg)
        .iter()
        .fold(gic, |mask, &(at, field)| match field {
            Same | Keys(_) => mask,
            _ => mask | 0xf << at,
        })
}

/// Whether user space may have `reg` say `value`, with at most what `limit` says.
pub fn allows(reg: SysReg, limit: u64, value: u64) -> bool {
    let mask = writable(reg);
    let part = |word: u64, at: u8| word >> at & 0xf;
    let less = |at, field| match field {
        UpTo(_) => part(value, at) <= part(limit, at),
        Within(least, _) => (u64::from(least)..=part(limit, at)).contains(&part(value, at)),
        OrNone => is_there(part(value, at)) <= is_there(part(limit, at)),
        OrMore => part(value, at) >= part(limit, at),
        Stage2 => part(value, at) <= 1,
        Same | Keys(_) => true,
    };
    let fields = rows(reg).iter().all(|&(at, field)| less(at, field));
    let gic = reg != id(4, 0) || part(value, 24) <= 1;
    value & !mask == limit & !mask && fields && gic
}

/// How much a field says of which 0xf is less than 0.
fn is_there(field: u64) -> u64 {
    (field + 1) & 0xf
}

/// The registers of which [`limit`] may say more than zero.
pub fn all() -> impl Iterator<Item = SysReg> {
    SHOWN.iter().map(|(reg, _)| *reg)
}

/// All that [`is_id`] is true of.
pub fn space() -> impl Iterator<Item = SysReg> {
    (1..8).flat_map(|crm| (0..8).map(move |op2| id(crm, op2)))
}

/// About AArch32, which guests do not have: it reads as zero, and what user space writes is ignored, as in KVM, whose
/// machines have it or not.
pub fn is_of_aarch32(reg: SysReg) -> bool {
    let (.., crm, op2) = reg.parts();
    // Not ID_AFR0_EL1, ID_DFR1_EL1 and two that are reserved.
    is_id(reg) && crm < 4 && !matches!((crm, op2), (1, 3) | (3, 3 | 5 | 7))
}

/// Registers about the implementation: MIDR_EL1, REVIDR_EL1, AIDR_EL1, CTR_EL0, CLIDR_EL1.
pub const IDENTITY: [SysReg; 5] = [
    SysReg::new(3, 0, 0, 0, 0),
    SysReg::new(3, 0, 0, 0, 6),
    SysReg::new(3, 1, 0, 0, 7),
    SysReg::new(3, 3, 0, 0, 1),
    SysReg::new(3, 1, 0, 0, 1),
];
/// Which of [`IDENTITY`] are MIDR_EL1, REVIDR_EL1 and AIDR_EL1: KVM_CAP_ARM_WRITABLE_IMP_ID_REGS.
pub const IMPLEMENTATION: core::ops::Range<usize> = 0..3;

/// Whether user space may have number `n` of [`IDENTITY`], which the host reads as `host`, say `value`.
pub fn allows_identity(n: usize, host: u64, value: u64) -> bool {
    match n {
        0 => value >> 32 == 0,
        1 | 2 => true,
        // CTR_EL0: DIC and IDC may go, lines may be said to be shorter.
        3 => {
            const FIELDS: [(u32, u64); 4] = [(29, 1), (28, 1), (16, 0xf), (0, 0xf)];
            let mask = FIELDS.iter().fold(0, |mask, (at, bits)| mask | bits << at);
            let part = |word: u64, at: u32, bits: u64| word >> at & bits;
            value & !mask == host & !mask
                && FIELDS
                    .iter()
                    .all(|&(at, bits)| part(value, at, bits) <= part(host, at, bits))
        }
        // CLIDR_EL1: bits that mean something.
        4 => value >> 47 == 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allow_list() {
        assert_eq!(SHOWN[PFR0_INDEX].0, id(4, 0));
        // Neither SVE (35:32), RAS (31:28), AMU, MPAM, nor EL2 and EL3 (15:8).
        assert_eq!(limit(id(4, 0), u64::MAX), 0x1101_0000_01ff_0011);
        assert_eq!(limit(id(4, 0), 0), 0x0100_0011);
        assert_eq!(limit(id(4, 1), 0), 0);
        // Pointer authentication (7:4, 11:8, 27:24, 31:28), which user space cannot change here.
        assert_eq!(limit(id(6, 1), u64::MAX) & 0xff00_0ff0, 0x1100_0550);
        assert_eq!(of_keys(id(6, 1)), 0xff00_0ff0);
        assert_eq!(of_keys(id(6, 2)), 0xff00);
        assert_eq!(writable(id(6, 1)) & of_keys(id(6, 1)), 0);
        assert!(!allows(id(6, 1), 0x50, 0));
        // Physical address widths up to 48 bits.
        assert_eq!(limit(id(7, 0), 0x0000_0000_0f00_0006) & 0xf, 5);
        assert_eq!(limit(id(7, 0), 0x0000_0000_0f00_0001) & 0xf, 1);
        // That a granule of 64 KiB is not there is said by 0xf.
        assert_eq!(limit(id(7, 0), 0x0000_0000_0f00_0005) >> 24 & 0xf, 0xf);
        // No VHE in a guest (MMFR1 11:8).
        assert_eq!(limit(id(7, 1), u64::MAX) & 0xf00, 0);
    }

    #[test]
    fn the_rest_is_zero() {
        assert_eq!(limit(id(4, 1), u64::MAX), 0x1_0000_0001);
        assert_eq!(limit(id(4, 4), u64::MAX), 0);
        assert_eq!(limit(id(1, 0), u64::MAX), 0);
        assert!(allows(id(4, 4), 0, 0) && !allows(id(4, 4), 0, 1));
    }

    #[test]
    fn less_than_there_is() {
        let pfr0 = limit(id(4, 0), 0x1100_0000_0011_0011);
        assert!(allows(id(4, 0), pfr0, pfr0));
        assert!(allows(id(4, 0), pfr0, pfr0 & !PFR0_GIC));
        assert!(!allows(id(4, 0), pfr0, pfr0 + PFR0_GIC));
        // CSV3, but not EL0 or FP.
        assert!(allows(id(4, 0), pfr0, pfr0 & !(0xf << 60)));
        assert!(!allows(id(4, 0), pfr0, pfr0 & !1));
        assert!(!allows(id(4, 0), pfr0, pfr0 | 0xf << 16));
        // What is not in the list.
        assert!(!allows(id(4, 0), pfr0, pfr0 | 1 << 32));
        let isar0 = limit(id(6, 0), 0x0000_1000_0020_0000);
        assert!(allows(id(6, 0), isar0, 0));
        assert!(allows(id(6, 0), isar0, 0x10_0000));
        assert!(!allows(id(6, 0), isar0, 0x30_0000));
        let mmfr0 = limit(id(7, 0), 0x0f00_0005);
        assert!(allows(id(7, 0), mmfr0, mmfr0 | 0xf000_0000));
        assert!(!allows(id(7, 0), mmfr0, mmfr0 & !0x0f00_0000));
        assert!(allows(id(7, 0), mmfr0, mmfr0 | 0x111_0000_0000));
        assert!(!allows(id(7, 0), mmfr0, mmfr0 | 0x2_0000_0000));
        let mmfr1 = limit(id(7, 1), 0x100_0000);
        assert!(allows(id(7, 1), mmfr1, 0x200_0000) && !allows(id(7, 1), mmfr1, 0));
        assert!(!allows(id(5, 0), 6, 5) && !allows(id(5, 0), 6, 7));
    }

    #[test]
    fn identity() {
        let ctr = 0x3444_c004;
        assert!(allows_identity(3, ctr, ctr) && allows_identity(3, ctr, 0x0443_c003));
        assert!(!allows_identity(3, ctr, ctr + 1) && !allows_identity(3, ctr, ctr ^ 1 << 14));
        assert!(!allows_identity(3, ctr & !(1 << 28), ctr));
        assert!(allows_identity(0, 0, 0x410f_d0c1) && !allows_identity(0, 0, 1 << 32));
        assert!(!allows_identity(4, 0, 1 << 47) && !allows_identity(5, 0, 0));
        assert_eq!(space().count(), 56);
        assert_eq!(space().filter(|r| is_of_aarch32(*r)).count(), 20);
    }
}
