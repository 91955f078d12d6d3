// SPDX-License-Identifier: GPL-2.0
//! What the processor has to forget of a guest's branches before the kernel goes on: Spectre v2 and branch history
//! (Arm's whitepaper "Spectre-BHB"; the kernel's arch/arm64/kernel/proton-pack.c).
//!
//! Whether anything is needed the kernel has decided, and left in its capability bits. How it does it itself it tells
//! nobody, so that is found out here, once, for the processors that need most.
#![forbid(unsafe_code)]

/// What is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// The kernel knows a processor whose branch predictor EL1 can train for EL2.
    pub predictor: bool,
    /// The kernel knows a processor whose branch history does the same.
    pub history: bool,
    /// The kernel knows a processor that reads memory ahead of writes to it.
    pub bypass: bool,
    /// An exception to EL2 begins with a history of its own (ID_AA64MMFR1_EL1.ECBHB).
    pub own_history: bool,
    /// CLRBHB (ID_AA64ISAR2_EL1.CLRBHB).
    pub instruction: bool,
    /// The firmware offers SMCCC_ARCH_WORKAROUND_1.
    pub workaround_1: bool,
    /// And SMCCC_ARCH_WORKAROUND_3, which does what the first one does as well.
    pub workaround_3: bool,
}

/// What is done after each exit, by the numbers of `switch.S`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clearing {
    /// Nothing.
    Nothing,
    /// So many branches.
    Branches(u32),
    /// CLRBHB.
    Instruction,
    /// This call of the firmware.
    Firmware(u32),
}

/// Calls of the firmware.
pub const WORKAROUND_1: u32 = 0x8000_8000;
/// See above.
pub const WORKAROUND_2: u32 = 0x8000_7fff;
/// See above.
pub const WORKAROUND_3: u32 = 0x8000_3fff;
/// As many as any processor needs that the kernel knows.
const MOST_BRANCHES: u32 = 132;

impl Clearing {
    /// The least that does what is needed.
    pub fn choose(k: &Known) -> Self {
        let history = k.history && !k.own_history;
        if history && !k.predictor && k.instruction {
            Self::Instruction
        } else if (k.predictor || history) && k.workaround_3 {
            Self::Firmware(WORKAROUND_3)
        } else if k.predictor && k.workaround_1 {
            Self::Firmware(WORKAROUND_1)
        } else if history {
            Self::Branches(MOST_BRANCHES)
        } else {
            Self::Nothing
        }
    }

    /// The words that `switch.S` reads: how, and how many or what.
    pub fn words(self) -> [u32; 2] {
        match self {
            Self::Nothing => [0, 0],
            Self::Branches(n) => [1, n],
            Self::Instruction => [2, 0],
            Self::Firmware(call) => [3, call],
        }
    }
}

/// What guests are told of workarounds 1 (branch predictor), 2 (reads ahead of writes) and 3 (branch history), as
/// KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1 to 3 have it: the higher, the better protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels(pub [u32; 3]);

/// Of the second one: not needed. Of the others: the call is there; it is not needed.
const BYPASS_NOT_NEEDED: u32 = 3;
const THERE: u32 = 1;
const NOT_NEEDED: u32 = 2;

impl Levels {
    /// Each exit does what the calls are there for, if that is known here. That reads stay behind writes is not seen
    /// to here, and the firmware's way of it is not passed on.
    pub fn of(k: &Known, clearing: Clearing) -> Self {
        let predictor = match clearing {
            _ if !k.predictor => NOT_NEEDED,
            Clearing::Firmware(_) => THERE,
            _ => 0,
        };
        let history = match clearing {
            _ if !k.history => NOT_NEEDED,
            Clearing::Nothing if !k.own_history => 0,
            _ => THERE,
        };
        let bypass = if k.bypass { 0 } else { BYPASS_NOT_NEEDED };
        Self([predictor, bypass, history])
    }

    /// What SMCCC_ARCH_FEATURES says of a call. `None`: it is not there.
    pub fn feature(&self, call: u32) -> Option<u64> {
        let [predictor, bypass, history] = self.0;
        let level = match call {
            WORKAROUND_1 => predictor,
            WORKAROUND_3 => history,
            // NOT_REQUIRED.
            WORKAROUND_2 if bypass == BYPASS_NOT_NEEDED => return Some(-2i64 as u64),
            _ => return None,
        };
        match level {
            THERE => Some(0),
            NOT_NEEDED => Some(1),
            _ => None,
        }
    }

    /// Whether a guest that knows this of workaround `n`, from 0, can run here.
    pub fn accepts(&self, n: usize, value: u64) -> bool {
        let Some(have) = self.0.get(n) else {
            return false;
        };
        let wanted = match (n, value) {
            // Switched on by the firmware, which only counts where that has it.
            (1, 0 | 1) => 0,
            (1, 2 | 3 | 0x12) => BYPASS_NOT_NEEDED,
            (1, _) | (_, 0x10..) => return false,
            (_, level) => level as u32,
        };
        *have >= wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_guests_are_told() {
        let none = Known::default();
        let l = Levels::of(&none, Clearing::Nothing);
        assert_eq!(l, Levels([2, 3, 2]));
        assert_eq!(l.feature(WORKAROUND_1), Some(1));
        assert_eq!(l.feature(WORKAROUND_2), Some(-2i64 as u64));
        assert_eq!(l.feature(WORKAROUND_3), Some(1));
        assert_eq!(l.feature(1), None);
        let all = Known {
            predictor: true,
            history: true,
            bypass: true,
            ..none
        };
        let l = Levels::of(&all, Clearing::Nothing);
        assert_eq!(l, Levels([0; 3]));
        assert_eq!(l.feature(WORKAROUND_1), None);
        assert_eq!(l.feature(WORKAROUND_2), None);
        assert_eq!(l.feature(WORKAROUND_3), None);
        let l = Levels::of(&all, Clearing::Branches(132));
        assert_eq!(l, Levels([0, 0, 1]));
        assert_eq!(l.feature(WORKAROUND_3), Some(0));
        let own = Known {
            own_history: true,
            ..all
        };
        assert_eq!(Levels::of(&own, Clearing::Nothing), Levels([0, 0, 1]));
        assert_eq!(
            Levels::of(&all, Clearing::Firmware(WORKAROUND_3)),
            Levels([1, 0, 1])
        );
    }

    #[test]
    fn what_guests_may_know() {
        let l = Levels([1, 3, 2]);
        for (n, most) in [(0, 1), (2, 2)] {
            for value in 0..0x40 {
                assert_eq!(l.accepts(n, value), value <= most, "{n} {value}");
            }
        }
        for value in 0..0x40 {
            assert_eq!(l.accepts(1, value), matches!(value, 0..=3 | 0x12));
            assert_eq!(Levels([0; 3]).accepts(1, value), value < 2);
        }
        assert!(!l.accepts(3, 0));
    }

    #[test]
    fn the_least_that_does() {
        let none = Known::default();
        let history = Known {
            history: true,
            ..none
        };
        assert_eq!(Clearing::choose(&none), Clearing::Nothing);
        assert_eq!(Clearing::choose(&history), Clearing::Branches(132));
        let k = Known {
            instruction: true,
            ..history
        };
        assert_eq!(Clearing::choose(&k), Clearing::Instruction);
        let k = Known {
            own_history: true,
            ..history
        };
        assert_eq!(Clearing::choose(&k), Clearing::Nothing);
        // Both, and the firmware does both.
        let both = Known {
            predictor: true,
            workaround_1: true,
            workaround_3: true,
            ..history
        };
        assert_eq!(Clearing::choose(&both), Clearing::Firmware(WORKAROUND_3));
        let k = Known {
            predictor: true,
            workaround_1: true,
            ..none
        };
        assert_eq!(Clearing::choose(&k), Clearing::Firmware(WORKAROUND_1));
        // What nobody offers is not done; the kernel says vulnerable.
        let k = Known {
            predictor: true,
            ..none
        };
        assert_eq!(Clearing::choose(&k), Clearing::Nothing);
        // What is not needed is not done, whatever is offered.
        let k = Known {
            workaround_1: true,
            workaround_3: true,
            instruction: true,
            ..none
        };
        assert_eq!(Clearing::choose(&k).words(), [0, 0]);
    }
}
