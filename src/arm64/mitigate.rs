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

#[cfg(test)]
mod tests {
    use super::*;

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
