// SPDX-License-Identifier: GPL-2.0
//! Calls of the guest's by HVC and SMC (SMCCC 1.1, Arm DEN 0028): which there are, and those for random numbers
//! (Arm DEN 0098) and stolen time (Arm DEN 0057), and the vendor's, which is KVM (kernel document
//! virt/kvm/arm/hypercalls.rst).
#![forbid(unsafe_code)]

use crate::arm64::mitigate::Levels;
use crate::arm64::psci::{self, Answer, NOT_SUPPORTED, SUCCESS};
use core::cmp::Ordering;

/// KVM_REG_ARM_STD_BMAP, STD_HYP_BMAP, VENDOR_HYP_BMAP, VENDOR_HYP_BMAP_2: bitmaps of calls that user space may take
/// away.
pub const BITMAPS: usize = 4;
/// Bits that each can have.
pub const BITMAP_BITS: [u64; BITMAPS] = [TRNG, PV_TIME, FEATURES | PTP, IMPLEMENTATION];
/// What each is at first.
pub const BITMAP_RESET: [u64; BITMAPS] = [TRNG, PV_TIME, FEATURES | PTP, 0];

const TRNG: u64 = 1 << 0;
const PV_TIME: u64 = 1 << 0;
const FEATURES: u64 = 1 << 0;
const PTP: u64 = 1 << 1;
/// What user space answers itself: the versions of implementations, and their CPUs.
const IMPLEMENTATION: u64 = 3;

// Functions.
const ARCH_FEATURES: u32 = 0x8000_0001;
const TRNG_VERSION: u32 = 0x8400_0050;
const TRNG_FEATURES: u32 = 0x8400_0051;
const TRNG_GET_UUID: u32 = 0x8400_0052;
const TRNG_RND32: u32 = 0x8400_0053;
const TRNG_RND64: u32 = 0xc400_0053;
const PV_TIME_FEATURES: u32 = 0xc500_0020;
const PV_TIME_ST: u32 = 0xc500_0021;
const VENDOR_FEATURES: u32 = 0x8600_0000;
const VENDOR_PTP: u32 = 0x8600_0001;
const VENDOR_UID: u32 = 0x8600_ff01;

/// TRNG: a parameter that cannot be.
const INVALID_PARAMETER: u64 = -2i64 as u64;
/// The version of TRNG, 1.0.
const TRNG_1_0: u64 = 1 << 16;
/// Who answers TRNG's calls, and the vendor's: the UUIDs of KVM's, in words.
const TRNG_UUID: [u64; 4] = [0x00e0_210d, 0xeb11_8443, 0x4452_7080, 0x4c5a_4e55];
const VENDOR_UUID: [u64; 4] = [0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d];

/// What user space has chosen, and what there is.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Of PSCI. `None`: the vCPU has none.
    pub psci: Option<psci::Policy>,
    /// [`BITMAPS`].
    pub bitmaps: [u64; BITMAPS],
    /// What guests are told of workarounds.
    pub levels: Levels,
    /// Where stolen time is told.
    pub stolen_time: Option<u64>,
}

impl Policy {
    fn has(&self, bitmap: usize, bit: u64) -> bool {
        self.bitmaps.get(bitmap).is_some_and(|b| b & bit != 0)
    }

    /// An optional call that is there.
    fn offers(&self, function: u32) -> bool {
        match function {
            TRNG_VERSION | TRNG_FEATURES | TRNG_GET_UUID | TRNG_RND32 | TRNG_RND64 => {
                self.has(0, TRNG)
            }
            PV_TIME_FEATURES | PV_TIME_ST => self.has(1, PV_TIME),
            VENDOR_FEATURES | VENDOR_UID => self.has(2, FEATURES),
            VENDOR_PTP => self.has(2, PTP),
            _ => false,
        }
    }
}

/// Whether a number can be one of these calls.
#[inline]
pub fn is_call(function: u32) -> bool {
    matches!(
        function,
        0x8000_0000..=0x8000_ffff
            | TRNG_VERSION..=TRNG_RND32
            | TRNG_RND64
            | PV_TIME_FEATURES..=PV_TIME_ST
            | 0x8600_0000..=0x8600_ffff
    )
}

/// The call `x[0]` with its arguments.
pub fn call(x: &[u64; 4], p: &Policy) -> Answer {
    let (function, x1) = (x[0] as u32, x[1] as u32);
    let value = match function {
        ARCH_FEATURES => match x1 {
            PV_TIME_FEATURES if p.offers(x1) => SUCCESS,
            _ => return psci::smccc(x, &p.levels),
        },
        f if p.offers(f) => match f {
            TRNG_VERSION => TRNG_1_0,
            TRNG_FEATURES => match x1 {
                TRNG_VERSION | TRNG_FEATURES | TRNG_GET_UUID | TRNG_RND32 | TRNG_RND64 => SUCCESS,
                _ => NOT_SUPPORTED,
            },
            TRNG_GET_UUID => return Answer::Values(TRNG_UUID),
            TRNG_RND32 if x1 <= 96 => {
                return Answer::Random {
                    bits: x1,
                    wide: false,
                }
            }
            TRNG_RND64 if x1 <= 192 => {
                return Answer::Random {
                    bits: x1,
                    wide: true,
                }
            }
            TRNG_RND32 | TRNG_RND64 => return Answer::Values([INVALID_PARAMETER, 0, 0, 0]),
            PV_TIME_FEATURES => match x1 {
                PV_TIME_FEATURES | PV_TIME_ST if p.stolen_time.is_some() => SUCCESS,
                _ => NOT_SUPPORTED,
            },
            PV_TIME_ST => match p.stolen_time {
                Some(at) => return Answer::StolenTime(at),
                None => NOT_SUPPORTED,
            },
            VENDOR_FEATURES => {
                let [_, _, first, second] = p.bitmaps;
                return Answer::Values([first, 0, second, 0]);
            }
            VENDOR_UID => return Answer::Values(VENDOR_UUID),
            VENDOR_PTP => match x1 {
                0 => return Answer::Clock { physical: false },
                1 => return Answer::Clock { physical: true },
                _ => NOT_SUPPORTED,
            },
            _ => NOT_SUPPORTED,
        },
        _ => match &p.psci {
            Some(psci) => return psci::call(x, psci),
            None => return psci::smccc(x, &p.levels),
        },
    };
    Answer::Values([value, 0, 0, 0])
}

/// X0 to X3 of so many random bits, of which `words` has more.
pub fn random(words: &[u64; 3], bits: u32, wide: bool) -> [u64; 4] {
    let mut w = *words;
    for (n, word) in w.iter_mut().enumerate() {
        let here = bits.saturating_sub(64 * n as u32).min(64);
        *word &= u64::MAX.checked_shr(64 - here).unwrap_or(0);
    }
    let [low, middle, high] = w;
    if wide {
        [SUCCESS, high, middle, low]
    } else {
        [SUCCESS, middle & 0xffff_ffff, low >> 32, low & 0xffff_ffff]
    }
}

/// X0 to X3 of a moment: CLOCK_REALTIME in nanoseconds, and a counter.
pub fn clock(real_ns: u64, counter: u64) -> [u64; 4] {
    let halves = |v: u64| (v >> 32, v & 0xffff_ffff);
    let ((a, b), (c, d)) = (halves(real_ns), halves(counter));
    [a, b, c, d]
}

/// What user space wants done with calls (KVM_ARM_VM_SMCCC_FILTER).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// As without a filter.
    Handle,
    /// The guest is told that there is none.
    Deny,
    /// They are user space's.
    Forward,
}

/// Calls from the first to the last of these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
    /// What is done with them.
    pub action: Action,
}

impl Range {
    /// `count` from `first` on. `None`: none, or more than there are numbers.
    pub fn new(first: u32, count: u32, action: u8) -> Option<Self> {
        let last = first.checked_add(count.checked_sub(1)?)?;
        let action = match action {
            0 => Action::Handle,
            1 => Action::Deny,
            2 => Action::Forward,
            _ => return None,
        };
        Some(Self {
            first,
            last,
            action,
        })
    }

    /// Functions of the architecture, which nobody may filter, are among them.
    fn is_reserved(&self) -> bool {
        [0x8000_0000u32, 0xc000_0000]
            .iter()
            .any(|first| self.first <= first + 0xffff && self.last >= *first)
    }
}

/// Where `new` belongs in `ranges`, which are in order. `None`: some of its calls have been filtered already, or cannot
/// be.
pub fn place(ranges: &[Range], new: &Range) -> Option<usize> {
    let at = ranges.partition_point(|r| r.last < new.first);
    let meets = ranges.get(at).is_some_and(|r| r.first <= new.last);
    (!meets && !new.is_reserved()).then_some(at)
}

/// What is done with a call.
pub fn action(ranges: &[Range], function: u32) -> Action {
    let found = ranges.binary_search_by(|r| match r {
        r if r.last < function => Ordering::Less,
        r if r.first > function => Ordering::Greater,
        _ => Ordering::Equal,
    });
    match found.ok().and_then(|n| ranges.get(n)) {
        Some(r) => r.action,
        None => Action::Handle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arm64::mitigate::WORKAROUND_1;
    use std::vec;

    const ALL: Policy = Policy {
        psci: Some(psci::Policy {
            version: psci::NEWEST,
            suspends: false,
            levels: Levels([1, 0, 2]),
        }),
        bitmaps: BITMAP_RESET,
        levels: Levels([1, 0, 2]),
        stolen_time: Some(0x4000),
    };
    const NONE: Policy = Policy {
        psci: None,
        bitmaps: [0; BITMAPS],
        stolen_time: None,
        ..ALL
    };

    fn value(function: u32, x1: u32, p: &Policy) -> u64 {
        match call(&[function.into(), x1.into(), 0, 0], p) {
            Answer::Value(v) | Answer::Values([v, ..]) => v,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_can_be_taken_away() {
        for (function, x1) in [
            (TRNG_VERSION, 0),
            (TRNG_FEATURES, TRNG_RND64),
            (TRNG_GET_UUID, 0),
            (TRNG_RND32, 97),
            (ARCH_FEATURES, PV_TIME_FEATURES),
            (PV_TIME_FEATURES, PV_TIME_ST),
            (VENDOR_FEATURES, 0),
            (VENDOR_UID, 0),
            (0x8400_0000, 0),
        ] {
            assert_ne!(value(function, x1, &ALL), NOT_SUPPORTED, "{function:#x}");
            assert_eq!(value(function, x1, &NONE), NOT_SUPPORTED, "{function:#x}");
        }
        assert_eq!(value(0x8000_0000, 0, &NONE), 0x1_0001);
        let other = [
            (TRNG_FEATURES, VENDOR_PTP),
            (ARCH_FEATURES, TRNG_RND64),
            (PV_TIME_FEATURES, TRNG_RND64),
            (VENDOR_PTP, 2),
            (0x8600_0002, 0),
        ];
        for (function, x1) in other {
            assert_eq!(value(function, x1, &ALL), NOT_SUPPORTED);
        }
        let ask = |function: u32, x1| call(&[function.into(), x1, 0, 0], &ALL);
        assert_eq!(ask(PV_TIME_ST, 0), Answer::StolenTime(0x4000));
        assert_eq!(ask(VENDOR_PTP, 1), Answer::Clock { physical: true });
        let (bits, wide) = (192, true);
        assert_eq!(ask(TRNG_RND64, 192), Answer::Random { bits, wide });
        assert_eq!(value(TRNG_RND64, 193, &ALL), INVALID_PARAMETER);
    }

    #[test]
    fn what_is_no_call_has_no_answer() {
        let owners = (0..=0xffu32).map(|owner| owner << 24);
        let numbers = owners.flat_map(|o| (0..0x100).chain(0xff00..0x1_0100).map(move |n| o | n));
        for function in numbers.filter(|f| !is_call(*f) && !psci::is_call(*f)) {
            assert_eq!(value(function, 0, &ALL), NOT_SUPPORTED, "{function:#x}");
        }
    }

    #[test]
    fn workarounds() {
        for p in [&ALL, &NONE] {
            assert_eq!(value(ARCH_FEATURES, WORKAROUND_1, p), 0);
            assert_eq!(value(WORKAROUND_1, 0, p), 0);
        }
    }

    #[test]
    fn numbers() {
        let ones = [u64::MAX; 3];
        assert_eq!(random(&ones, 192, true), [0, u64::MAX, u64::MAX, u64::MAX]);
        assert_eq!(random(&ones, 65, true), [0, 0, 1, u64::MAX]);
        assert_eq!(random(&ones, 0, true), [0; 4]);
        assert_eq!(random(&ones, 33, false), [0, 0, 1, 0xffff_ffff]);
        assert_eq!(
            random(&ones, 96, false),
            [0, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff]
        );
        assert_eq!(clock(0x1_0000_0002, 0x3_0000_0004), [1, 2, 3, 4]);
    }

    #[test]
    fn filter() {
        assert_eq!(Range::new(0, 0, 0), None);
        assert_eq!(Range::new(u32::MAX, 2, 0), None);
        assert_eq!(Range::new(1, 1, 3), None);
        let range = |first, count, action| Range::new(first, count, action).unwrap();
        let mut ranges = vec![];
        for new in [
            range(0x100, 16, 1),
            range(0x50, 1, 2),
            range(u32::MAX, 1, 1),
        ] {
            let at = place(&ranges, &new).unwrap();
            ranges.insert(at, new);
        }
        assert!(ranges.is_sorted_by_key(|r| r.first));
        assert_eq!(place(&ranges, &range(0x10f, 1, 0)), None);
        assert_eq!(place(&ranges, &range(0, 0x51, 0)), None);
        assert_eq!(place(&ranges, &range(0x51, 0x200, 0)), None);
        assert_eq!(place(&ranges, &range(0x51, 0xaf, 0)), Some(1));
        assert_eq!(place(&ranges, &range(WORKAROUND_1, 1, 1)), None);
        assert_eq!(place(&ranges, &range(0xc000_0000, 1, 1)), None);
        assert_eq!(place(&ranges, &range(0xbfff_ffff, 2, 1)), None);
        assert_eq!(place(&ranges, &range(0xc001_0000, 1, 1)), Some(2));
        assert_eq!(action(&ranges, 0x10f), Action::Deny);
        assert_eq!(action(&ranges, 0x50), Action::Forward);
        assert_eq!(action(&ranges, 0x110), Action::Handle);
        assert_eq!(action(&[], 0), Action::Handle);
    }
}
