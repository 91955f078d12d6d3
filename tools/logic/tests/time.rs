// SPDX-License-Identifier: GPL-2.0
//! Clock arithmetic, the paravirtual clock, synchronised TSCs.

use rvmm_logic::x86::cpu::tsc;
use rvmm_logic::x86::cpu::tsc::{Rate, TscGroup, TscWrite};
use rvmm_logic::x86::pv::kvmclock;
use rvmm_logic::x86::pv::kvmclock::{Point, TimeInfo, VmClock};

const NS: u64 = 1_000_000_000;

#[test]
fn rates_are_exact_to_one_part_in_2_30() {
    for khz in [
        1,
        7,
        1000,
        32_768,
        999_999,
        1_000_000,
        1_000_001,
        2_593_530,
        4_999_999,
        u32::MAX,
    ] {
        let hz = u64::from(khz) * 1000;
        for (to, from) in [(NS, hz), (hz, NS)] {
            let r = Rate::new(to, from);
            assert!(r.mul >= 1 << 31, "{to} {from} {r:?}");
            for count in [0, 1, from / 3, from, from * 17, from * 3600] {
                let want = u128::from(count) * u128::from(to) / u128::from(from);
                let have = u128::from(r.apply(count));
                // The fraction is rounded down, a shift to the right drops bits.
                let slack =
                    want / (1 << 30) + 2 + (1u128 << r.shift.max(0)) + to as u128 / from as u128;
                assert!(
                    have <= want && have + slack >= want,
                    "{to} {from} {count}: {have} {want}"
                );
            }
        }
    }
    assert_eq!(
        Rate::new(NS, NS),
        Rate {
            mul: 1 << 31,
            shift: 1
        }
    );
    assert_eq!(
        Rate::new(NS, 2_500_000_000),
        Rate {
            mul: 0xcccc_cccc,
            shift: -1
        }
    );
    // Nothing panics.
    for a in [0, 1, 1 << 31, 1 << 32, 1 << 61, 1 << 62, u64::MAX] {
        for b in [0, 1, 3, 1 << 31, 1 << 62, u64::MAX] {
            let _ = Rate::new(a, b).apply(u64::MAX);
        }
    }
}

#[test]
fn ratios() {
    for fraction in [32, 40, 48] {
        assert_eq!(
            tsc::ratio(2_000_000, 2_000_000, fraction),
            Some(1 << fraction)
        );
        assert_eq!(
            tsc::ratio(1_000_000, 2_000_000, fraction),
            Some(1 << (fraction - 1))
        );
        assert_eq!(tsc::ratio(0, 2_000_000, fraction), None);
        assert_eq!(tsc::ratio(5, 0, fraction), None);
        let r = tsc::ratio(2_693_530, 2_593_530, fraction).unwrap();
        let want = u128::from(2_693_530u32) << fraction;
        assert_eq!(u128::from(r), want / 2_593_530);
        assert_eq!(tsc::scale(1 << 60, 1 << fraction, fraction), 1 << 60);
        assert_eq!(tsc::scale(6, 3 << (fraction - 1), fraction), 9);
        assert_eq!(tsc::scale(u64::MAX, 1 << fraction, fraction), u64::MAX);
    }
    assert_eq!(tsc::ratio(u32::MAX, 1, 48), None);
    assert_eq!(tsc::ratio(u32::MAX, 1, 32), Some(u64::from(u32::MAX) << 32));
    assert_eq!(tsc::ratio(1, 1, 31), None);
    assert!(tsc::within_tolerance(1_000_250, 1_000_000));
    assert!(!tsc::within_tolerance(1_000_251, 1_000_000));
    assert!(!tsc::within_tolerance(999_749, 1_000_000));
}

fn write(value: u64, now_ns: u64, by_user: bool) -> TscWrite {
    TscWrite {
        value,
        now_ns,
        // A host whose TSC counts nanoseconds from 5000 on.
        host: now_ns + 5000,
        lost: 0,
        khz: 1_000_000,
        stable: true,
        by_user,
    }
}

#[test]
fn vcpus_are_created_together() {
    let mut g = TscGroup::default();
    let (mut a, mut b, mut c) = (0, 0, 0);
    let offset = g.write(&mut a, &write(0, 100, false));
    assert_eq!(offset, 5100u64.wrapping_neg());
    assert!(g.all(1) && !g.all(2) && !g.all(0));
    assert_eq!(g.write(&mut b, &write(0, 50 * NS, false)), offset);
    assert!(g.all(2));
    // Another frequency: not together.
    let w = TscWrite {
        khz: 2_000_000,
        ..write(0, 60 * NS, false)
    };
    assert_ne!(g.write(&mut c, &w), offset);
    assert!(!g.all(3));
}

#[test]
fn a_second_of_slack_once_user_space_has_written() {
    let mut g = TscGroup::default();
    let (mut a, mut b) = (0, 0);
    let start = g.write(&mut a, &write(0, 0, false));
    g.write(&mut b, &write(0, 0, false));
    // The first write by user space is not corrected, however near.
    let moved = g.write(&mut a, &write(500, 1000, true));
    assert_ne!(moved, start);
    assert!(!g.all(2));
    // The second is: what vCPU A has now is 500 + elapsed.
    assert_eq!(g.write(&mut b, &write(500, NS, true)), moved);
    assert!(g.all(2));
    // Again by the same vCPU: still two.
    assert_eq!(g.write(&mut b, &write(500 + NS, 2 * NS, true)), moved);
    assert!(g.all(2));
    // Just outside of a second.
    let far = g.write(&mut b, &write(500 + 3 * NS + 1, 2 * NS, true));
    assert_ne!(far, moved);
    assert!(!g.all(2));
    assert_eq!(g.write(&mut a, &write(0, 3 * NS, true)), far);
    assert!(g.all(2));
}

#[test]
fn an_unstable_host_gets_the_time_that_passed() {
    let mut g = TscGroup::default();
    let (mut a, mut b) = (0, 0);
    let w = |value, now| TscWrite {
        stable: false,
        ..write(value, now, true)
    };
    g.write(&mut a, &w(1000, 0));
    let offset = g.write(&mut b, &w(1000, 700));
    let now = offset.wrapping_add(700 + 5000);
    assert!((1690..=1700).contains(&now), "{now}");
    assert!(g.all(2));
}

#[test]
fn offsets_set_as_such() {
    let mut g = TscGroup::default();
    let (mut a, mut b) = (0, 0);
    g.write(&mut a, &write(0, 0, false));
    g.write(&mut b, &write(0, 0, false));
    g.set_offset(&mut a, 77, &write(0, 10, true));
    assert!(!g.all(2));
    g.set_offset(&mut b, 77, &write(0, 20, true));
    assert!(g.all(2));
    g.set_offset(&mut b, 78, &write(0, 30, true));
    assert!(!g.all(2));
}

#[test]
fn a_clock_goes_on_when_its_kind_changes() {
    let rate = Rate::new(NS, 2 * NS);
    let at = |ns: u64| Point {
        base_ns: ns,
        tsc: 2 * ns + 12345,
    };
    let mut c = VmClock::new(at(1000));
    assert_eq!(c.at(at(1500), rate), 500);
    c.set_common(true, at(2000), rate);
    assert!(c.is_common());
    assert_eq!(c.at(at(2500), rate), 1500);
    assert_eq!(c.point(at(9999)), (at(2000).tsc, 1000));
    // The host's clock and its TSC drift apart by 100: the VM's follows the TSC.
    let drifted = Point {
        base_ns: 4100,
        tsc: at(4000).tsc,
    };
    assert_eq!(c.at(drifted, rate), 3000);
    // Common already: the point stays.
    c.set_common(true, drifted, rate);
    assert_eq!(c.point(drifted), (at(2000).tsc, 1000));
    c.set_common(false, drifted, rate);
    assert_eq!(c.at(drifted, rate), 3000);
    assert_eq!(c.point(drifted), (drifted.tsc, 3000));
    c.set(50, drifted);
    assert_eq!(c.at(drifted, rate), 50);
    c.set_common(true, drifted, rate);
    c.set(u64::MAX - 5, drifted);
    assert_eq!(c.point(at(7)), (drifted.tsc, u64::MAX - 5));
    let later = Point {
        base_ns: 0,
        tsc: drifted.tsc + 20,
    };
    assert_eq!(c.at(later, rate), 4);
}

/// The host slept: its clock counts that time, its TSC, which counts twice as fast, begins at 500 again.
#[test]
fn a_tsc_that_starts_anew() {
    let rate = Rate::new(NS, 2 * NS);
    let at = |base_ns: u64, tsc: u64| Point { base_ns, tsc };
    let mut c = VmClock::new(at(0, 0));
    c.set_common(true, at(1000, 2000), rate);
    assert_eq!(c.at(at(11_000, 22_000), rate), 11_000);
    let lost = 22_000 - 500;
    // As long as nobody says so the time is nonsense.
    assert_ne!(c.at(at(91_000, 500), rate), 91_000);
    let mut asleep = c;
    asleep.follow_host(lost, at(91_000, 500), rate);
    assert_eq!(asleep.point(at(0, 0)), (500, 91_000));
    assert_eq!(asleep.at(at(91_100, 700), rate), 91_100);
    // The TSC is fast, and the VM's time was ahead of the host's by more than the sleep: no step back.
    let mut ahead = c;
    ahead.follow_host(lost, at(10_500, 600), rate);
    assert_eq!(ahead.at(at(10_500, 600), rate), 11_050);
    // Each page has a point of its own: nothing hangs on the TSC.
    let mut own = VmClock::new(at(0, 0));
    own.follow_host(lost, at(91_000, 500), rate);
    assert_eq!(own.at(at(91_000, 500), rate), 91_000);

    let mut g = TscGroup::default();
    let (mut a, mut b, mut late) = (0, 0, 0);
    let before = g.write(&mut a, &write(0, 0, false));
    assert_eq!(g.write(&mut b, &write(0, 0, false)), before);
    let slept = TscWrite {
        lost,
        ..write(0, 60 * NS, false)
    };
    // One that comes afterwards runs together with those that have moved their offsets.
    assert_eq!(g.write(&mut late, &slept), before.wrapping_add(lost));
    assert!(g.all(3));
    g.set_offset(&mut a, before.wrapping_add(lost), &slept);
    assert!(g.all(3));
}

#[test]
fn layouts() {
    let info = TimeInfo {
        tsc: 0x0807_0605_0403_0201,
        system_time: 0x1817_1615_1413_1211,
        rate: Rate {
            mul: 0x2423_2221,
            shift: -2,
        },
        flags: 3,
    };
    let b = info.to_bytes(0x3433_3231);
    assert_eq!(
        b,
        [
            0x31, 0x32, 0x33, 0x34, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14,
            0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24, 0xfe, 3, 0, 0
        ]
    );
    assert_eq!(b[kvmclock::TIME_INFO_FLAGS], 3);
    assert_eq!(kvmclock::writing(0), 1);
    assert_eq!(kvmclock::writing(1), 3);
    assert_eq!(kvmclock::writing(2), 3);
    assert_eq!(kvmclock::writing(u32::MAX), 1);
    assert_eq!(
        kvmclock::wall_clock(1_700_000_000_123_456_789),
        (1_700_000_000, 123_456_789)
    );
}

#[test]
fn clock_pairing_layout() {
    let b = kvmclock::clock_pairing(5 * NS + 7, 0x0102_0304);
    assert_eq!(b[..8], 5u64.to_le_bytes());
    assert_eq!(b[8..16], 7u64.to_le_bytes());
    assert_eq!(b[16..24], 0x0102_0304u64.to_le_bytes());
    assert!(b[24..].iter().all(|v| *v == 0));
}

#[test]
fn scales() {
    use rvmm_logic::x86::cpu::tsc::Scale;
    assert_eq!(Scale::ONE.apply(u64::MAX), u64::MAX);
    assert_eq!(Scale::ONE.ratio(48), 1 << 48);
    for (fraction, max) in [(48, u64::MAX), (32, (1 << 40) - 1)] {
        let half = Scale::new(1_000_000, 2_000_000, fraction, max).unwrap();
        assert_eq!(half.apply(1000), 500);
        assert_eq!(half.ratio(fraction), 1 << (fraction - 1));
        let three = Scale::new(6_000_000, 2_000_000, fraction, max).unwrap();
        assert_eq!(three.apply(1 << 62), (1 << 62) * 3);
        assert_eq!(three.apply(u64::MAX), u64::MAX.wrapping_mul(3));
        assert_eq!(Scale::new(0x7fff_ffff, 2_000_000, fraction, max), None);
        assert_eq!(Scale::new(0, 2_000_000, fraction, max), None);
    }
    // 256 times: more than AMD's ratio holds.
    assert_eq!(Scale::new(256_000_000, 1_000_000, 32, (1 << 40) - 1), None);
    assert!(Scale::new(255_000_000, 1_000_000, 32, (1 << 40) - 1).is_some());
    // A processor without scaling has no ratio.
    assert_eq!(Scale::new(1_000_000, 2_000_000, 0, 0), None);
}

/// As if the time from one moment to another had not been.
#[test]
fn delayed() {
    let rate = Rate::new(NS, 2 * NS);
    let at = |base_ns: u64, tsc: u64| Point { base_ns, tsc };
    let by = at(5000, 10_003);
    for common in [false, true] {
        let mut c = VmClock::new(at(0, 0));
        c.set(70, at(100, 200));
        c.set_common(common, at(1000, 2000), rate);
        let then = c;
        c.delay(by);
        let later = |p: Point| at(p.base_ns + by.base_ns, p.tsc + by.tsc);
        let p = at(3000, 6000);
        assert_eq!(c.at(later(p), rate), then.at(p, rate));
        let (tsc, ns) = then.point(p);
        assert_eq!(c.point(later(p)), (tsc + by.tsc, ns));
    }

    let mut g = TscGroup::default();
    let (mut a, mut b) = (0, 0);
    let offset = g.write(&mut a, &write(1_000_000, 0, true));
    g.delay(NS, 3 * NS, 0);
    // The same TSC, and a second later on the host.
    let late = TscWrite {
        host: 3 * NS,
        ..write(1_000_000, NS, true)
    };
    assert_eq!(g.write(&mut b, &late), offset.wrapping_sub(3 * NS));
    assert!(g.all(2));
}
