// SPDX-License-Identifier: GPL-2.0
//! Calls of the guest's by HVC: PSCI 1.1 (Arm DEN 0022) and what SMCCC 1.1 (Arm DEN 0028) has of its own.
#![forbid(unsafe_code)]

/// What comes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// X0 holds this, and the guest goes on.
    Value(u64),
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
    /// The machine is to be switched off: user space is told.
    SystemOff,
    /// The machine is to be reset: user space is told.
    SystemReset,
}

use Answer::Value;

const NOT_SUPPORTED: u64 = -1i64 as u64;
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

/// PSCI 1.1 and SMCCC 1.1.
const VERSION: u64 = 1 << 16 | 1;
/// MIGRATE_INFO_TYPE: there is no trusted OS that would have to be moved.
const NOT_REQUIRED: u64 = 2;

// SMCCC.
const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
// PSCI; with bit 30 the calls of 64 bits.
const PSCI_VERSION: u32 = 0x8400_0000;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0x8400_0003;
const AFFINITY_INFO: u32 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const PSCI_FEATURES: u32 = 0x8400_000a;
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

/// The call `x[0]` with its arguments.
pub fn call(x: &[u64; 4]) -> Answer {
    let function = x[0] as u32;
    let [_, x1, x2, x3] = if function & CALL64 != 0 {
        *x
    } else {
        x.map(|arg| arg & 0xffff_ffff)
    };
    let target = x1 & AFFINITY;
    match function {
        SMCCC_VERSION => Value(VERSION),
        SMCCC_ARCH_FEATURES => Value(match x[1] as u32 {
            SMCCC_VERSION | SMCCC_ARCH_FEATURES => 0,
            _ => NOT_SUPPORTED,
        }),
        PSCI_VERSION => Value(VERSION),
        PSCI_FEATURES => Value(if is_known(x[1] as u32) {
            0
        } else {
            NOT_SUPPORTED
        }),
        CPU_OFF => Answer::CpuOff,
        f if f & !CALL64 == CPU_ON => Answer::CpuOn {
            target,
            entry: x2,
            context: x3,
        },
        f if f & !CALL64 == AFFINITY_INFO => match u32::try_from(x2) {
            Ok(level @ 0..=3) => Answer::AffinityInfo { target, level },
            _ => Value(INVALID_PARAMETERS),
        },
        MIGRATE_INFO_TYPE => Value(NOT_REQUIRED),
        SYSTEM_OFF => Answer::SystemOff,
        SYSTEM_RESET => Answer::SystemReset,
        _ => Value(NOT_SUPPORTED),
    }
}

/// PSCI_FEATURES.
fn is_known(function: u32) -> bool {
    matches!(
        function,
        SMCCC_VERSION
            | PSCI_VERSION
            | PSCI_FEATURES
            | CPU_OFF
            | MIGRATE_INFO_TYPE
            | SYSTEM_OFF
            | SYSTEM_RESET
    ) || matches!(function & !CALL64, CPU_ON | AFFINITY_INFO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(function: u32, x1: u64, x2: u64) -> Answer {
        call(&[function.into(), x1, x2, 0])
    }

    #[test]
    fn calls() {
        assert_eq!(ask(PSCI_VERSION, 0, 0), Value(0x1_0001));
        assert_eq!(ask(SMCCC_VERSION, 0, 0), Value(0x1_0001));
        assert_eq!(ask(SYSTEM_OFF, 0, 0), Answer::SystemOff);
        assert_eq!(ask(SYSTEM_RESET, 0, 0), Answer::SystemReset);
        assert_eq!(ask(CPU_OFF, 0, 0), Answer::CpuOff);
        assert_eq!(ask(0x8400_00ff, 0, 0), Value(NOT_SUPPORTED));
        // What has no 64-bit form is not there in it.
        assert_eq!(ask(SYSTEM_OFF | CALL64, 0, 0), Value(NOT_SUPPORTED));
    }

    #[test]
    fn features_are_what_is_answered() {
        for function in (0x8400_0000..=0x8400_0020).chain(0xc400_0000..=0xc400_0020) {
            let known = ask(PSCI_FEATURES, u64::from(function), 0) == Value(0);
            assert_eq!(
                known,
                ask(function, PSCI_VERSION.into(), 0) != Value(NOT_SUPPORTED),
                "{function:#x}"
            );
        }
    }

    #[test]
    fn others() {
        let on = |target, entry| Answer::CpuOn {
            target,
            entry,
            context: 0,
        };
        assert_eq!(ask(CPU_ON | CALL64, 0x101, 1 << 40), on(0x101, 1 << 40));
        // Bits that are not affinity do not matter; a call of 32 bits has arguments of 32 bits.
        assert_eq!(ask(CPU_ON, 1 << 31 | 1 << 32 | 2, 1 << 40), on(2, 0));
        let info = |target, level| Answer::AffinityInfo { target, level };
        assert_eq!(ask(AFFINITY_INFO | CALL64, 1 << 32, 1), info(1 << 32, 1));
        assert_eq!(ask(AFFINITY_INFO, 3, 4), Value(INVALID_PARAMETERS));
        assert_eq!(level_mask(1) & 0x1ff, 0x100);
        assert_eq!(level_mask(3), 0xff_0000_0000);
    }
}
