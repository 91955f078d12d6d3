// SPDX-License-Identifier: GPL-2.0
//! Whom a message may address in a large VM: nobody whom it does address is missing, and not many more are found.
#![forbid(unsafe_code)]

use rvmm_logic::x86::irqchip::addressees::*;
use rvmm_logic::x86::irqchip::msg::*;

/// Numbers that are the same in every run (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) as u32) % limit
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }
}

fn initial(id: u32) -> ApicAddr {
    ApicAddr {
        id,
        xapic_id: id as u8,
        ldr: 0,
        dfr: Dfr::FLAT,
        x2apic: false,
        hw_enabled: true,
        sw_enabled: true,
    }
}

fn message(r: &mut Random) -> Message {
    let dest = match r.below(6) {
        0 => 0xff,
        1 => 0xffff_ffff,
        2 => r.below(IDS / 16) << 16 | r.below(1 << 16),
        3 => r.below(256),
        _ => r.below(IDS + 100),
    };
    Message {
        dest_mode: DestMode::from_bit(r.one_in(2)),
        dest_is_8bit: r.one_in(3),
        ..Message::fixed(dest, Vector(0x40))
    }
}

fn change(r: &mut Random, a: &mut ApicAddr) {
    match r.below(6) {
        0 => a.x2apic = !a.x2apic,
        1 => a.ldr = 1 << r.below(8),
        2 => a.ldr = r.below(256) as u8,
        3 => a.xapic_id = r.below(256) as u8,
        4 => a.dfr = Dfr(r.below(2) as u8 * 15),
        _ => a.hw_enabled = !a.hw_enabled,
    }
    if a.x2apic {
        a.xapic_id = a.id as u8;
    }
}

#[test]
fn nobody_is_missing() {
    let mut r = Random(1);
    for round in 0..40 {
        // Ids with gaps in some of the VMs.
        let step = 1 + round % 3;
        let mut vcpus: Vec<_> = (0..600).map(|n| initial(n * step)).collect();
        let noted = Noted::new();
        for (n, a) in vcpus.iter().enumerate() {
            noted.add(n as u32, a);
        }
        for _ in 0..200 {
            for _ in 0..20 {
                let n = r.below(600);
                let a = &mut vcpus[n as usize];
                change(&mut r, a);
                noted.note(n, a);
            }
            let m = message(&mut r);
            let index_of = |id: u32| (id % step == 0 && id / step < 600).then_some(id / step);
            let Some(found) = noted.find(&m, index_of) else {
                continue;
            };
            let found: Vec<_> = found.iter().collect();
            for (n, a) in vcpus.iter().enumerate() {
                let n = n as u32;
                assert!(!m.matches(None, a) || found.contains(&n), "{m:?} {a:?}");
            }
        }
    }
}

/// A VM as guests set it up: all in x2APIC mode.
#[test]
fn few_are_found() {
    let noted = Noted::new();
    for n in 0..INDICES as u32 {
        noted.add(n, &initial(n));
        noted.note(
            n,
            &ApicAddr {
                x2apic: true,
                ..initial(n)
            },
        );
    }
    let index_of = |id: u32| (id < INDICES as u32).then_some(id);
    let found = |m: Message| {
        noted
            .find(&m, index_of)
            .map(|f| f.iter().collect::<Vec<_>>())
    };
    let physical = |dest| Message::fixed(dest, Vector(0x40));
    let logical = |dest| Message {
        dest_mode: DestMode::Logical,
        ..physical(dest)
    };
    assert_eq!(found(physical(700)), Some(vec![700]));
    assert_eq!(found(physical(5000)), Some(vec![]));
    assert_eq!(found(physical(5)), Some(vec![5, 261, 517, 773]));
    assert_eq!(found(physical(0xff)), Some(vec![255, 511, 767, 1023]));
    assert_eq!(found(logical(0xff)), Some((0..8).collect()));
    assert_eq!(found(logical(20 << 16 | 0x8001)), Some(vec![320, 335]));
    assert_eq!(found(logical(0xffff_fffe)), Some(vec![]));
    for all in [
        physical(0xffff_ffff),
        logical(0xffff_ffff),
        Message {
            dest_is_8bit: true,
            ..physical(0xff)
        },
        Message {
            shorthand: Shorthand::AllButSelf,
            ..physical(0)
        },
    ] {
        assert_eq!(found(all), None);
    }
}

#[test]
fn indices() {
    let noted = Noted::new();
    let moved = |id: u32| ApicAddr {
        xapic_id: 7,
        ..initial(id)
    };
    for n in [0, 63, 64, 1000, 1023] {
        noted.add(n, &moved(n));
    }
    // Beyond the last one nothing is kept.
    noted.add(1024, &moved(1024));
    let found = noted
        .find(&Message::fixed(7, Vector(0x40)), |_| None)
        .unwrap();
    assert_eq!(found.iter().collect::<Vec<_>>(), [0, 63, 64, 1000, 1023]);
    assert_eq!(found.count(), 5);
}

/// Of several one is chosen by the vector alone: the same one always, and different ones in turn.
#[test]
fn chosen_by_vector() {
    let mut some = Addressees::NONE;
    assert_eq!(some.chosen(Vector(0x41)), None);
    for index in [1, 70, 900] {
        some.insert(index);
    }
    for v in 0..=255u8 {
        let want = [1, 70, 900][usize::from(v) % 3];
        assert_eq!(some.chosen(Vector(v)), Some(want));
    }
}
