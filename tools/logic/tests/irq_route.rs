// SPDX-License-Identifier: GPL-2.0
//! GSI routing rules (api.rst 4.52).
#![forbid(unsafe_code)]

use rvmm_logic::x86::irqchip::msg::{MsiFormat, Vector};
use rvmm_logic::x86::irqchip::route::*;
use rvmm_logic::x86::irqchip::{ioapic, pic};

const FULL: Chips = Chips {
    full: true,
    ids_32bit: false,
};
const SPLIT: Chips = Chips {
    full: false,
    ids_32bit: false,
};

fn raw(gsi: u32, kind: u32, flags: u32, u: [u32; 3]) -> [u32; RAW_WORDS] {
    [gsi, kind, flags, 0, u[0], u[1], u[2], 0, 0, 0, 0, 0]
}

fn entry(gsi: u32, kind: u32, u: [u32; 3]) -> Entry {
    Entry::parse(&raw(gsi, kind, 0, u), FULL).unwrap()
}

#[test]
fn parse_chips() {
    let ok = |u| Entry::parse(&raw(5, 1, 0, u), FULL).map(|e| e.route);
    assert_eq!(ok([0, 7, 0]), Ok(Route::Pic(pic::Irq::new(7).unwrap())));
    assert_eq!(ok([1, 7, 0]), Ok(Route::Pic(pic::Irq::new(15).unwrap())));
    assert_eq!(
        ok([2, 23, 0]),
        Ok(Route::Ioapic(ioapic::Pin::new(23).unwrap()))
    );
    for bad in [
        [0, 8, 0],
        [1, 8, 0],
        [2, 24, 0],
        [3, 0, 0],
        [2, u32::MAX, 0],
        [0, u32::MAX, 0],
    ] {
        assert_eq!(ok(bad), Err(Invalid));
    }
    assert_eq!(Entry::parse(&raw(5, 1, 0, [2, 1, 0]), SPLIT), Err(Invalid));
    assert_eq!(Entry::parse(&raw(5, 1, 1, [2, 1, 0]), FULL), Err(Invalid));
    assert_eq!(
        Entry::parse(&raw(4096, 1, 0, [2, 1, 0]), FULL),
        Err(Invalid)
    );
    for kind in [0, 3, 5, 6, u32::MAX] {
        assert_eq!(Entry::parse(&raw(5, kind, 0, [0; 3]), FULL), Err(Invalid));
    }
}

#[test]
fn parse_sint() {
    let e = Entry::parse(&raw(7, 4, 0, [3, 2, 0]), SPLIT).map(|e| e.route);
    assert_eq!(e, Ok(Route::Sint { vp: 3, sint: 2 }));
    assert_eq!(Entry::parse(&raw(7, 4, 1, [3, 2, 0]), SPLIT), Err(Invalid));
}

#[test]
fn parse_msi() {
    let e = Entry::parse(&raw(4095, 2, 0, [0xfee0_3000, 0x100, 0x41]), SPLIT).unwrap();
    assert_eq!(e.gsi.number(), 4095);
    let m = e.route.message(MsiFormat::default()).unwrap();
    assert_eq!((m.dest, m.vector), (3, Vector(0x41)));
    let wide = Chips {
        ids_32bit: true,
        ..SPLIT
    };
    assert!(Entry::parse(&raw(0, 2, 0, [0, 0x100, 0]), wide).is_ok());
    assert_eq!(
        Entry::parse(&raw(0, 2, 0, [0, 0x101, 0]), wide),
        Err(Invalid)
    );
    assert!(Entry::parse(&raw(0, 2, 0, [0, 0x101, 0]), SPLIT).is_ok());
    assert!(Entry::parse(&raw(0, 2, 1, [0; 3]), SPLIT).is_ok());
    assert_eq!(Entry::parse(&raw(0, 2, 2, [0; 3]), SPLIT), Err(Invalid));
    assert_eq!(
        entry(1, 1, [0, 1, 0]).route.message(MsiFormat::default()),
        None
    );
}

#[test]
fn build_rules() {
    let pic0 = entry(3, 1, [0, 3, 0]);
    let pic1 = entry(3, 1, [1, 3, 0]);
    let io = entry(3, 1, [2, 3, 0]);
    let msi = entry(3, 2, [0xfee0_0000, 0, 0x31]);
    let mut good = [io, pic0, pic1];
    assert_eq!(build(&mut good), Ok(()));
    assert_eq!(build(&mut [io, entry(3, 1, [2, 4, 0])]), Err(Invalid));
    assert_eq!(build(&mut [msi, io]), Err(Invalid));
    assert_eq!(build(&mut [pic0, msi]), Err(Invalid));
    assert_eq!(build(&mut [msi, msi]), Err(Invalid));
    // Two GSIs may share a pin.
    assert_eq!(
        build(&mut [io, entry(4, 1, [2, 3, 0]), entry(5, 2, [0; 3])]),
        Ok(())
    );
    assert_eq!(build(&mut []), Ok(()));
}

#[test]
fn sorted_lookup() {
    let mut x = 12345u64;
    for len in [1usize, 2, 3, 10, 100, 1000] {
        let mut table: Vec<Entry> = Vec::new();
        let mut used = std::collections::HashSet::new();
        while table.len() < len {
            x = x
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let gsi = (x >> 33) as u32 % 4096;
            if used.insert(gsi) {
                table.push(entry(gsi, 2, [0xfee0_0000, 0, gsi]));
            }
        }
        build(&mut table).unwrap();
        assert!(table.windows(2).all(|w| w[0].gsi < w[1].gsi));
        for gsi in 0..4096 {
            let found = lookup(&table, Gsi::new(gsi).unwrap());
            assert_eq!(found.len(), usize::from(used.contains(&gsi)));
            assert!(found.iter().all(|e| e.gsi.number() == gsi));
        }
    }
    assert!(lookup(&[], Gsi::new(0).unwrap()).is_empty());
}

#[test]
fn default_table() {
    let mut table: Vec<Entry> = (0..).map_while(default_entry).collect();
    assert_eq!(table.len(), DEFAULT_LEN);
    assert_eq!(build(&mut table), Ok(()));
    for n in 0..24 {
        let routes: Vec<Route> = lookup(&table, Gsi::new(n).unwrap())
            .iter()
            .map(|e| e.route)
            .collect();
        let pin = ioapic::Pin::new(n).unwrap();
        assert!(routes.contains(&Route::Ioapic(pin)));
        assert_eq!(routes.len(), if n < 16 { 2 } else { 1 });
        if let Some(irq) = pic::Irq::new(n) {
            assert!(routes.contains(&Route::Pic(irq)));
        }
    }
    assert!(lookup(&table, Gsi::new(24).unwrap()).is_empty());
    assert_eq!(default_entry(usize::MAX), None);
    assert_eq!(Gsi::new(4096), None);
}
