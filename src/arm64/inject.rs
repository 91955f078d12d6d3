// SPDX-License-Identifier: GPL-2.0
//! Exceptions that a guest's EL1 takes from software: where its vectors are entered, and with what PSTATE (Arm ARM
//! D1.3.1, D1.3.2, AArch64.TakeException).
#![forbid(unsafe_code)]

/// What kind of exception: the distance from the first vector of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Synchronous.
    Synchronous = 0,
    /// An SError.
    Error = 0x180,
}

// ESR_EL1.
/// The instruction has 4 bytes.
const LENGTH: u64 = 1 << 25;
/// An undefined instruction: class 0.
pub const UNDEFINED: u64 = LENGTH;
const EC_IABT_LOWER: u64 = 0x20 << 26;
const EC_IABT_SAME: u64 = 0x21 << 26;
const EC_DABT_LOWER: u64 = 0x24 << 26;
const EC_DABT_SAME: u64 = 0x25 << 26;
const EC_ERROR: u64 = 0x2f << 26;
/// Fault status: a synchronous external abort; of a walk, at level 0.
pub const EXTERNAL_ABORT: u64 = 0x10;
/// See above.
pub const EXTERNAL_ABORT_WALK: u64 = 0x14;
/// An address is too wide, at level 0.
pub const ADDRESS_SIZE: u64 = 0;
/// ESR_EL1.ISS.
pub const ISS: u64 = 0x1ff_ffff;
/// Of an SError that is not described: IDS.
pub const NOT_DESCRIBED: u64 = 1 << 24;

// PSTATE as SPSR_EL1 has it.
const MODE: u64 = 0xf;
const IS_32BIT: u64 = 1 << 4;
const EL1H: u64 = 5;
const DAIF: u64 = 0xf << 6;
const MASKS_ERROR: u64 = 1 << 8;
const SSBS: u64 = 1 << 12;
const PAN: u64 = 1 << 22;
const DIT: u64 = 1 << 24;
const FLAGS: u64 = 0xf << 28;

// SCTLR_EL1.
const SPAN: u64 = 1 << 23;
const DSSBS: u64 = 1 << 44;

/// Whether the guest is in EL0.
fn is_user(pstate: u64) -> bool {
    pstate & IS_32BIT != 0 || pstate & MODE == 0
}

/// Whether an SError waits until the guest unmasks it.
pub fn masks_errors(pstate: u64) -> bool {
    pstate & MASKS_ERROR != 0
}

/// How far behind VBAR_EL1 the guest goes on.
pub fn vector(pstate: u64, kind: Kind) -> u64 {
    let from = match pstate & MODE {
        _ if pstate & IS_32BIT != 0 => 0x600,
        0 => 0x400,
        4 => 0,
        _ => 0x200,
    };
    from + kind as u64
}

/// PSTATE in the handler. `sctlr`: SCTLR_EL1; `has_pan`: the guest has PAN.
pub fn entered(pstate: u64, sctlr: u64, has_pan: bool) -> u64 {
    let mut new = pstate & (FLAGS | DIT | PAN) | DAIF | EL1H;
    if has_pan && sctlr & SPAN == 0 {
        new |= PAN;
    }
    if sctlr & DSSBS != 0 {
        new |= SSBS;
    }
    new
}

/// ESR_EL1 of an access, or a fetch (`instruction`), with this fault status.
pub fn abort(pstate: u64, instruction: bool, status: u64) -> u64 {
    let class = match (instruction, is_user(pstate)) {
        (true, true) => EC_IABT_LOWER,
        (true, false) => EC_IABT_SAME,
        (false, true) => EC_DABT_LOWER,
        (false, false) => EC_DABT_SAME,
    };
    class | LENGTH | status
}

/// ESR_EL1 of an SError.
pub fn error(iss: u64) -> u64 {
    EC_ERROR | LENGTH | iss & ISS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors() {
        assert_eq!(vector(0x3c5, Kind::Synchronous), 0x200);
        assert_eq!(vector(0x3c4, Kind::Error), 0x180);
        assert_eq!(vector(0, Kind::Error), 0x580);
        assert_eq!(vector(0x10, Kind::Synchronous), 0x600);
    }

    #[test]
    fn pstate() {
        // NZCV stay; UAO, SS, IL, BTYPE and TCO go.
        assert_eq!(entered(0xf2b0_0c00, 0, false), 0xf000_03c5);
        assert_eq!(entered(0, 0, true), 0x0040_03c5);
        assert_eq!(entered(0, SPAN, true), 0x3c5);
        assert_eq!(entered(PAN, SPAN, true), 0x0040_03c5);
        assert_eq!(entered(SSBS, SPAN, true), 0x3c5);
        assert_eq!(entered(0, SPAN | DSSBS, true), 0x13c5);
    }

    #[test]
    fn syndromes() {
        assert_eq!(abort(0, false, EXTERNAL_ABORT), 0x9200_0010);
        assert_eq!(abort(0x3c5, false, EXTERNAL_ABORT), 0x9600_0010);
        assert_eq!(abort(0x10, false, EXTERNAL_ABORT_WALK + 3), 0x9200_0017);
        assert_eq!(abort(0, true, ADDRESS_SIZE), 0x8200_0000);
        assert_eq!(abort(0x3c5, true, EXTERNAL_ABORT), 0x8600_0010);
        assert_eq!(error(u64::MAX), 0xbfff_ffff);
        assert!(masks_errors(0x3c5) && !masks_errors(0x2c5));
    }
}
