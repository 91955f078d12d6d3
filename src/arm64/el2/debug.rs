// SPDX-License-Identifier: GPL-2.0
//! Breakpoints and watchpoints in the processor: the host's, and in a stay perhaps others.

use crate::arm64::debug::{Debug, Points, POINTS};
use core::arch::asm;

/// Calls `$then` with the number and the four registers of each point.
macro_rules! points {
    ($then:ident) => {
        $then! {
            0 "dbgbvr0_el1" "dbgbcr0_el1" "dbgwvr0_el1" "dbgwcr0_el1";
            1 "dbgbvr1_el1" "dbgbcr1_el1" "dbgwvr1_el1" "dbgwcr1_el1";
            2 "dbgbvr2_el1" "dbgbcr2_el1" "dbgwvr2_el1" "dbgwcr2_el1";
            3 "dbgbvr3_el1" "dbgbcr3_el1" "dbgwvr3_el1" "dbgwcr3_el1";
            4 "dbgbvr4_el1" "dbgbcr4_el1" "dbgwvr4_el1" "dbgwcr4_el1";
            5 "dbgbvr5_el1" "dbgbcr5_el1" "dbgwvr5_el1" "dbgwcr5_el1";
            6 "dbgbvr6_el1" "dbgbcr6_el1" "dbgwvr6_el1" "dbgwcr6_el1";
            7 "dbgbvr7_el1" "dbgbcr7_el1" "dbgwvr7_el1" "dbgwcr7_el1";
            8 "dbgbvr8_el1" "dbgbcr8_el1" "dbgwvr8_el1" "dbgwcr8_el1";
            9 "dbgbvr9_el1" "dbgbcr9_el1" "dbgwvr9_el1" "dbgwcr9_el1";
            10 "dbgbvr10_el1" "dbgbcr10_el1" "dbgwvr10_el1" "dbgwcr10_el1";
            11 "dbgbvr11_el1" "dbgbcr11_el1" "dbgwvr11_el1" "dbgwcr11_el1";
            12 "dbgbvr12_el1" "dbgbcr12_el1" "dbgwvr12_el1" "dbgwcr12_el1";
            13 "dbgbvr13_el1" "dbgbcr13_el1" "dbgwvr13_el1" "dbgwcr13_el1";
            14 "dbgbvr14_el1" "dbgbcr14_el1" "dbgwvr14_el1" "dbgwcr14_el1";
            15 "dbgbvr15_el1" "dbgbcr15_el1" "dbgwvr15_el1" "dbgwcr15_el1";
        }
    };
}

/// How many breakpoints and watchpoints there are (ID_AA64DFR0_EL1.BRPs, WRPs).
pub(crate) fn counts() -> (usize, usize) {
    let dfr0 = read!("id_aa64dfr0_el1");
    let count = |at: u32| ((dfr0 >> at & 0xf) as usize + 1).min(POINTS);
    (count(12), count(20))
}

/// What there is of them in the processor.
fn read() -> Points {
    let (breakpoints, watchpoints) = counts();
    let mut p = Points::NONE;
    macro_rules! each {
        ($($n:literal $bvr:literal $bcr:literal $wvr:literal $wcr:literal;)*) => { $(
            if $n < breakpoints {
                p.bvr[$n] = read!($bvr);
                p.bcr[$n] = read!($bcr);
            }
            if $n < watchpoints {
                p.wvr[$n] = read!($wvr);
                p.wcr[$n] = read!($wcr);
            }
        )* };
    }
    points!(each);
    p
}

/// Puts `p` into the processor.
///
/// # Safety
///
/// Debug exceptions are masked until what was there is put back, or it is what was there.
unsafe fn write(p: &Points, control: impl Fn(u64) -> u64) {
    let (breakpoints, watchpoints) = counts();
    macro_rules! each {
        ($($n:literal $bvr:literal $bcr:literal $wvr:literal $wcr:literal;)*) => { $(
            if $n < breakpoints {
                // SAFETY: Registers that the processor has; the caller sees to what they do.
                unsafe {
                    write!($bvr, p.bvr[$n]);
                    write!($bcr, control(p.bcr[$n]));
                }
            }
            if $n < watchpoints {
                // SAFETY: As above.
                unsafe {
                    write!($wvr, p.wvr[$n]);
                    write!($wcr, control(p.wcr[$n]));
                }
            }
        )* };
    }
    points!(each);
}

/// What a stay has loaded.
pub(super) struct Loaded {
    mdscr: u64,
    ours: bool,
    /// There is something.
    is_on: bool,
    /// DAIF as it was.
    masks: u64,
    /// The host's.
    host: Option<Points>,
}

impl Loaded {
    /// A stay of a guest with `debug` begins; interrupts are off. MDSCR_EL1 is the caller's to write, and to put back
    /// before [`Loaded::end`].
    #[inline]
    pub(super) fn begin(debug: &Debug) -> Self {
        let masks = read!("daif");
        // SAFETY: Until `end`. With that, no address or step of the guest's choice stops the kernel at EL2, which
        // meets what is loaded here between entries.
        unsafe { asm!("msr daifset, #8", options(nostack, preserves_flags)) };
        match debug.loaded() {
            None => Self {
                mdscr: 0,
                ours: false,
                is_on: false,
                masks,
                host: None,
            },
            Some(wanted) => Self::begin_with(&wanted, masks),
        }
    }

    #[cold]
    #[inline(never)]
    fn begin_with(wanted: &crate::arm64::debug::Loaded<'_>, masks: u64) -> Self {
        let host = wanted.points.map(|points| {
            let host = read();
            // SAFETY: Debug exceptions are masked, and none of these matches at EL2; `end` puts the host's back.
            unsafe { write(points, Debug::control_register) };
            host
        });
        Self {
            mdscr: wanted.mdscr,
            ours: wanted.ours,
            is_on: true,
            masks,
            host,
        }
    }

    /// There is something.
    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// What MDSCR_EL1 is to be.
    pub(super) fn mdscr(&self) -> u64 {
        self.mdscr
    }

    /// Debug exceptions of the guest come to EL2.
    pub(super) fn is_ours(&self) -> bool {
        self.ours
    }

    /// The stay ends.
    #[inline]
    pub(super) fn end(self) {
        if let Some(host) = &self.host {
            // SAFETY: What was there before.
            unsafe {
                write(host, |control| control);
                asm!("isb", options(nostack, preserves_flags));
            }
        }
        // SAFETY: What was there before. The host's registers are back, MDSCR_EL1 among them.
        unsafe { write!("daif", self.masks) };
    }
}
