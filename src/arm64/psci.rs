// SPDX-License-Identifier: GPL-2.0
//! PSCI 1.3 (Arm DEN 0022). User space may choose an older version.
#![forbid(unsafe_code)]

use crate::arm64::mitigate::{Levels, WORKAROUND_1, WORKAROUND_2, WORKAROUND_3};

/// What comes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// X0 holds this, X1 to X3 zero, and the guest goes on.
    Value(u64),
    /// X0 to X3 hold these.
    Values([u64; 4]),
    /// So many random bits, in registers of 64 bits (`wide`) or 32.
    Random {
        /// At most 192, or 96.
        bits: u32,
        /// See above.
        wide: bool,
    },
    /// The time, with a counter.
    Clock {
        /// The physical one.
        physical: bool,
    },
    /// Stolen time is told at this address from now on, which X0 holds.
    StolenTime(u64),
    /// The vCPU with this affinity is to be switched on, to begin at `entry` with `context` in X0.
    CpuOn {
        /// Affinity fields, as MPIDR_EL1 has them.
        target: u64,
        /// An address.
        entry: u64,
        /// Any value.
        context: u64,
    },
    /// Whether one is on, of those whose affinity has the same fields from this level on.
    AffinityInfo {
        /// Affinity fields.
        target: u64,
        /// 0 to 3.
        level: u32,
    },
    /// The vCPU is off from now on.
    CpuOff,
    /// The vCPU waits for an interrupt, as by WFI, and goes on with [`SUCCESS`].
    CpuSuspend,
    /// The machine is to be switched off: user space is told, with these flags.
    SystemOff(u64),
    /// The machine is to be reset: user space is told, with these flags.
    SystemReset(u64),
    /// The machine is to be suspended: user space is told, and reads the arguments itself.
    SystemSuspend,
}

use Answer::Value;

/// There is no such call.
pub const NOT_SUPPORTED: u64 = -1i64 as u64;
/// There is no such vCPU, or no such level.
pub const INVALID_PARAMETERS: u64 = -2i64 as u64;
/// The vCPU is on.
pub const ALREADY_ON: u64 = -4i64 as u64;
/// Done.
pub const SUCCESS: u64 = 0;
/// AFFINITY_INFO: one is on; all are off.
pub const ON: u64 = 0;
/// See above.
pub const OFF: u64 = 1;

/// What a machine that was switched off or reset finds, should it go on.
pub const INTERNAL_FAILURE: u64 = -6i64 as u64;

/// SMCCC 1.1.
const SMCCC_1_1: u64 = 1 << 16 | 1;
/// Versions of PSCI that user space may choose: 0.2, 1.0 to 1.3.
pub const VERSIONS: &[u32] = &[2, 1 << 16, 1 << 16 | 1, 1 << 16 | 2, NEWEST];
/// The version without that.
pub const NEWEST: u32 = 1 << 16 | 3;
/// MIGRATE_INFO_TYPE: there is no trusted OS that would have to be moved.
const NOT_REQUIRED: u64 = 2;

// SMCCC.
const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
// PSCI; with bit 30 the calls of 64 bits.
const PSCI_VERSION: u32 = 0x8400_0000;
const CPU_SUSPEND: u32 = 0x8400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0x8400_0003;
const AFFINITY_INFO: u32 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const PSCI_FEATURES: u32 = 0x8400_000a;
const SYSTEM_SUSPEND: u32 = 0x8400_000e;
const SYSTEM_RESET2: u32 = 0x8400_0012;
const SYSTEM_OFF2: u32 = 0x8400_0015;
const CALL64: u32 = 1 << 30;

/// Affinity fields of MPIDR_EL1.
pub const AFFINITY: u64 = 0xff_00ff_ffff;

/// Which affinity fields have to be the same from this level on.
pub const fn level_mask(level: u32) -> u64 {
    match level {
        0 => AFFINITY,
        1 => AFFINITY & !0xff,
        2 => AFFINITY & !0xffff,
        _ => AFFINITY & !0xff_ffff,
    }
}

/// SYSTEM_RESET2: from here on types are the vendor's.
const VENDOR_RESET: u32 = 1 << 31;
/// SYSTEM_OFF2: HIBERNATE_OFF.
const HIBERNATE: u64 = 1;
/// KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2 and KVM_SYSTEM_EVENT_SHUTDOWN_FLAG_PSCI_OFF2.
const OF_SECOND_KIND: u64 = 1;

/// What user space has chosen.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// One of [`VERSIONS`].
    pub version: u32,
    /// SYSTEM_SUSPEND is there (KVM_CAP_ARM_SYSTEM_SUSPEND).
    pub suspends: bool,
    /// What guests are told of workarounds for the processor.
    pub levels: Levels,
}

impl Policy {
    /// Functions that came with version 1.`minor`.
    fn has(&self, minor: u32) -> bool {
        self.version >= 1 << 16 | minor
    }
}

/// The call `x[0]` with its arguments.
pub fn call(x: &[u64; 4], policy: &Policy) -> Answer {
    let function = x[0] as u32;
    let [_, x1, x2, x3] = if function & CALL64 != 0 {
        *x
    } else {
        x.map(|arg| arg & 0xffff_ffff)
    };
    let target = x1 & AFFINITY;
    if features(function, policy).is_none() {
        return Value(NOT_SUPPORTED);
    }
    match function {
        SMCCC_VERSION | SMCCC_ARCH_FEATURES | WORKAROUND_1 | WORKAROUND_2 | WORKAROUND_3 => {
            smccc(x, &policy.levels)
        }
        PSCI_VERSION => Value(policy.version.into()),
        PSCI_FEATURES => Value(match x[1] as u32 {
            // Of SMCCC's, its version alone.
            SMCCC_ARCH_FEATURES | WORKAROUND_1 | WORKAROUND_2 | WORKAROUND_3 => NOT_SUPPORTED,
            other => features(other, policy).unwrap_or(NOT_SUPPORTED),
        }),
        CPU_OFF => Answer::CpuOff,
        MIGRATE_INFO_TYPE => Value(NOT_REQUIRED),
        SYSTEM_OFF => Answer::SystemOff(0),
        SYSTEM_RESET => Answer::SystemReset(0),
        f => match f & !CALL64 {
            CPU_SUSPEND => Answer::CpuSuspend,
            CPU_ON if x1 & !AFFINITY != 0 => Value(INVALID_PARAMETERS),
            CPU_ON => Answer::CpuOn {
                target,
                entry: x2,
                context: x3,
            },
            AFFINITY_INFO => match u32::try_from(x2) {
                Ok(level @ 0..=3) if x1 & !AFFINITY == 0 => Answer::AffinityInfo { target, level },
                _ => Value(INVALID_PARAMETERS),
            },
            SYSTEM_SUSPEND => Answer::SystemSuspend,
            // Types up to 0, the warm reset, and the vendor's.
            SYSTEM_RESET2 if matches!(x1 as u32, 0 | VENDOR_RESET..) => {
                Answer::SystemReset(OF_SECOND_KIND)
            }
            SYSTEM_OFF2 if matches!(x1, 0 | HIBERNATE) && x2 == 0 => {
                Answer::SystemOff(OF_SECOND_KIND)
            }
            _ => Value(INVALID_PARAMETERS),
        },
    }
}

/// Functions of PSCI: nobody filters them by bitmaps.
#[inline]
pub fn is_call(function: u32) -> bool {
    matches!(function & !CALL64, 0x8400_0000..=0x8400_001f)
}

/// The two calls that SMCCC has of its own, and those of workarounds.
pub fn smccc(x: &[u64; 4], levels: &Levels) -> Answer {
    Value(match (x[0] as u32, x[1] as u32) {
        (SMCCC_VERSION, _) => SMCCC_1_1,
        (SMCCC_ARCH_FEATURES, SMCCC_VERSION | SMCCC_ARCH_FEATURES) => 0,
        (SMCCC_ARCH_FEATURES, other) => levels.feature(other).unwrap_or(NOT_SUPPORTED),
        // The exit has done it.
        (WORKAROUND_1 | WORKAROUND_2 | WORKAROUND_3, _) => SUCCESS,
        _ => NOT_SUPPORTED,
    })
}

/// What PSCI_FEATURES says of a function that is there.
fn features(function: u32, policy: &Policy) -> Option<u64> {
    let there = match function {
        SMCCC_VERSION | SMCCC_ARCH_FEATURES | PSCI_VERSION | CPU_OFF | MIGRATE_INFO_TYPE
        | SYSTEM_OFF | SYSTEM_RESET | WORKAROUND_1 | WORKAROUND_2 | WORKAROUND_3 => true,
        PSCI_FEATURES => policy.has(0),
        f => match f & !CALL64 {
            CPU_SUSPEND | CPU_ON | AFFINITY_INFO => true,
            SYSTEM_SUSPEND => policy.has(0) && policy.suspends,
            SYSTEM_RESET2 => policy.has(1),
            SYSTEM_OFF2 if policy.has(3) => return Some(HIBERNATE),
            _ => false,
        },
    };
    there.then_some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Policy = Policy {
        version: NEWEST,
        suspends: true,
        levels: Levels([1, 0, 2]),
    };

    fn ask(function: u32, x1: u64, x2: u64) -> Answer {
        call(&[function.into(), x1, x2, 0], &ALL)
    }

    #[test]
    fn calls() {
        assert_eq!(ask(PSCI_VERSION, 0, 0), Value(0x1_0003));
        assert_eq!(ask(SMCCC_VERSION, 0, 0), Value(0x1_0001));
        assert_eq!(ask(SYSTEM_OFF, 0, 0), Answer::SystemOff(0));
        assert_eq!(ask(SYSTEM_RESET, 0, 0), Answer::SystemReset(0));
        assert_eq!(ask(CPU_OFF, 0, 0), Answer::CpuOff);
        assert_eq!(ask(CPU_SUSPEND, 0, 0), Answer::CpuSuspend);
        assert_eq!(ask(0x8400_00ff, 0, 0), Value(NOT_SUPPORTED));
        // What has no 64-bit form is not there in it.
        assert_eq!(ask(SYSTEM_OFF | CALL64, 0, 0), Value(NOT_SUPPORTED));
    }

    #[test]
    fn features_are_what_is_answered() {
        for function in (0x8400_0000..=0x8400_0020).chain(0xc400_0000..=0xc400_0020) {
            let known = ask(PSCI_FEATURES, u64::from(function), 0) != Value(NOT_SUPPORTED);
            assert_eq!(
                known,
                ask(function, PSCI_VERSION.into(), 0) != Value(NOT_SUPPORTED),
                "{function:#x}"
            );
        }
    }

    #[test]
    fn workarounds() {
        assert_eq!(ask(SMCCC_ARCH_FEATURES, WORKAROUND_1.into(), 0), Value(0));
        let none = Value(NOT_SUPPORTED);
        assert_eq!(ask(SMCCC_ARCH_FEATURES, WORKAROUND_2.into(), 0), none);
        assert_eq!(ask(SMCCC_ARCH_FEATURES, WORKAROUND_3.into(), 0), Value(1));
        assert_eq!(ask(WORKAROUND_1, 0, 0), Value(0));
        assert_eq!(ask(PSCI_FEATURES, WORKAROUND_1.into(), 0), none);
    }

    #[test]
    fn of_the_machine() {
        let bad = Value(INVALID_PARAMETERS);
        assert_eq!(ask(SYSTEM_RESET2, 0, 7), Answer::SystemReset(1));
        assert_eq!(ask(SYSTEM_RESET2, 1, 0), bad);
        assert_eq!(ask(SYSTEM_RESET2, 1 << 31, 0), Answer::SystemReset(1));
        assert_eq!(ask(SYSTEM_OFF2 | CALL64, 1, 0), Answer::SystemOff(1));
        assert_eq!(ask(SYSTEM_OFF2, 0, 1), bad);
        assert_eq!(ask(SYSTEM_OFF2, 2, 0), bad);
        assert_eq!(ask(SYSTEM_SUSPEND, 0, 0), Answer::SystemSuspend);
    }

    #[test]
    fn older_versions() {
        let ask = |version, function| {
            let policy = Policy {
                version,
                suspends: false,
                ..ALL
            };
            call(&[u64::from(function), 0, 0, 0], &policy)
        };
        let none = Value(NOT_SUPPORTED);
        assert_eq!(ask(2, PSCI_VERSION), Value(2));
        assert_eq!(ask(2, PSCI_FEATURES), none);
        assert_eq!(ask(2, SYSTEM_RESET2), none);
        assert_eq!(ask(0x1_0000, SYSTEM_RESET2), none);
        assert_eq!(ask(0x1_0002, SYSTEM_OFF2), none);
        assert_eq!(ask(NEWEST, SYSTEM_SUSPEND), none);
        assert_eq!(ask(0x1_0001, SYSTEM_RESET2), Answer::SystemReset(1));
    }

    #[test]
    fn others() {
        let bad = Value(INVALID_PARAMETERS);
        let on = |target, entry| Answer::CpuOn {
            target,
            entry,
            context: 0,
        };
        assert_eq!(ask(CPU_ON | CALL64, 0x101, 1 << 40), on(0x101, 1 << 40));
        // A call of 32 bits has arguments of 32 bits; what is no affinity is nobody's.
        assert_eq!(ask(CPU_ON, 1 << 32 | 2, 1 << 40), on(2, 0));
        assert_eq!(ask(CPU_ON, 1 << 31 | 2, 0), bad);
        let info = |target, level| Answer::AffinityInfo { target, level };
        assert_eq!(ask(AFFINITY_INFO | CALL64, 1 << 32, 1), info(1 << 32, 1));
        assert_eq!(ask(AFFINITY_INFO, 3, 4), bad);
        assert_eq!(ask(AFFINITY_INFO, 1 << 24, 0), bad);
        assert_eq!(level_mask(1) & 0x1ff, 0x100);
        assert_eq!(level_mask(3), 0xff_0000_0000);
    }
}
