// SPDX-License-Identifier: GPL-2.0
//! Times that a vCPU adapts to its guest, as KVM does.

use rvmm_logic::x86::adapt::{HaltPoll, PollLimits};

/// KVM's defaults.
const KVM: PollLimits = PollLimits {
    max: 200_000,
    grow: 2,
    grow_start: 10_000,
    shrink: 2,
};

/// The lengths of the polls that come after halts of so many nanoseconds.
fn polls(limits: &PollLimits, halts: &[u64]) -> Vec<u32> {
    let mut poll = HaltPoll::default();
    let after = |&halt| {
        poll.end(limits, halt, true);
        poll.begin(limits)
    };
    halts.iter().map(after).collect()
}

#[test]
fn short_halts_make_polls_longer() {
    assert_eq!(
        polls(&KVM, &[150_000; 7]),
        [10_000, 20_000, 40_000, 80_000, 160_000, 160_000, 160_000]
    );
    assert_eq!(polls(&KVM, &[199_999; 7])[5..], [200_000, 200_000]);
    // A poll was long enough.
    assert_eq!(
        polls(&KVM, &[5_000, 5_000, 10_000, 10_001]),
        [10_000, 10_000, 10_000, 20_000]
    );
}

#[test]
fn long_halts_make_them_shorter() {
    let halts = [
        150_000,
        150_000,
        150_000,
        200_000,
        200_001,
        1 << 40,
        1 << 40,
        1 << 40,
    ];
    assert_eq!(
        polls(&KVM, &halts),
        [10_000, 20_000, 40_000, 40_000, 20_000, 10_000, 0, 0]
    );
    let at_once = PollLimits { shrink: 0, ..KVM };
    assert_eq!(
        polls(&at_once, &[1, 20_000, 1 << 40, 1]),
        [10_000, 20_000, 0, 10_000]
    );
}

#[test]
fn limits() {
    assert_eq!(polls(&PollLimits { max: 0, ..KVM }, &[1, 1, 1]), [0, 0, 0]);
    assert_eq!(polls(&PollLimits { grow: 0, ..KVM }, &[1, 1, 1]), [0, 0, 0]);
    assert_eq!(
        polls(&PollLimits { max: 5_000, ..KVM }, &[1, 4_000]),
        [5_000, 5_000]
    );
    let wide = PollLimits {
        max: u32::MAX,
        grow: u32::MAX,
        ..KVM
    };
    assert_eq!(polls(&wide, &[1 << 31; 3]), [10_000, u32::MAX, u32::MAX]);
    // A limit that is lowered meanwhile counts from the next poll on.
    let mut poll = HaltPoll::default();
    (0..5).for_each(|_| poll.end(&KVM, 190_000, true));
    assert_eq!(poll.begin(&KVM), 160_000);
    assert_eq!(poll.begin(&PollLimits { max: 30_000, ..KVM }), 30_000);
    poll.end(&PollLimits { max: 0, ..KVM }, 1, true);
    assert_eq!(poll.begin(&PollLimits { max: 0, ..KVM }), 0);
}

#[test]
fn what_was_not_meant_for_the_guest() {
    let mut poll = HaltPoll::default();
    (0..3).for_each(|_| poll.end(&KVM, 190_000, true));
    poll.end(&KVM, 1, false);
    assert_eq!(poll.begin(&KVM), 20_000);
}
