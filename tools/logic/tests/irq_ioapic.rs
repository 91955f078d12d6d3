// SPDX-License-Identifier: GPL-2.0
//! I/O APIC against the 82093AA data sheet.
#![forbid(unsafe_code)]

use rvmm_logic::bus::line::Source;
use rvmm_logic::x86::irqchip::ioapic::*;
use rvmm_logic::x86::irqchip::msg::*;

const MASK: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const REMOTE_IRR: u32 = 1 << 14;

fn pin(n: u32) -> Pin {
    Pin::new(n).unwrap()
}

fn get(io: &mut Ioapic, select: u32) -> u32 {
    let _ = io.write(mmio::REGSEL, select);
    io.read(mmio::WIN)
}

fn set(io: &mut Ioapic, select: u32, value: u32) -> Written {
    let _ = io.write(mmio::REGSEL, select);
    io.write(mmio::WIN, value)
}

fn up(io: &mut Ioapic, n: u32) -> Option<Message> {
    match io.set_irq(pin(n), Source::USER, true) {
        Raised::Message(m) => Some(m),
        _ => None,
    }
}

fn down(io: &mut Ioapic, n: u32) {
    assert_eq!(io.set_irq(pin(n), Source::USER, false), Raised::Lowered);
}

#[test]
fn registers() {
    let mut io = Ioapic::default();
    assert_eq!(io.base_address(), 0xfec0_0000);
    assert_eq!(get(&mut io, 1), 0x0017_0011);
    let _ = set(&mut io, 0, 0xff00_0000);
    assert_eq!(get(&mut io, 0), 0x0f00_0000);
    assert_eq!(get(&mut io, 2), 0x0f00_0000);
    let _ = set(&mut io, 1, 0);
    assert_eq!(get(&mut io, 1), 0x0017_0011);
    for n in 0..24 {
        assert_eq!(get(&mut io, 0x10 + 2 * n), MASK);
        assert_eq!(get(&mut io, 0x11 + 2 * n), 0);
    }
    let _ = set(&mut io, 0x12, 0xffff_ffff);
    let _ = set(&mut io, 0x13, 0xab12_3456);
    assert_eq!(
        get(&mut io, 0x12),
        0x1ffff & !(REMOTE_IRR | 1 << 12),
        "status bits are read-only"
    );
    assert_eq!(get(&mut io, 0x13), 0xab00_0000);
    assert_eq!(get(&mut io, 0x40), 0xffff_ffff);
    assert_eq!(set(&mut io, 0x40, 0), Written::Nothing);
    assert_eq!(get(&mut io, 0xff), 0xffff_ffff);
    assert_eq!(get(&mut io, 3), 0xffff_ffff);
    assert_eq!(io.read(0x20), 0);
    assert_eq!(io.write(0x40, 0x30), Written::Nothing, "no EOI register");
}

#[test]
fn edge() {
    let mut io = Ioapic::default();
    let _ = set(&mut io, 0x19, 0x0200_0000);
    assert_eq!(
        set(&mut io, 0x18, 0x0831),
        Written::Entry {
            pin: pin(4),
            mask_changed: true,
            waiting: false
        }
    );
    let m = up(&mut io, 4).unwrap();
    assert_eq!(
        (m.vector, m.dest, m.dest_mode, m.trigger),
        (Vector(0x31), 2, DestMode::Logical, TriggerMode::Edge)
    );
    // Still up: no edge.
    assert_eq!(io.set_irq(pin(4), Source::USER, true), Raised::Coalesced);
    down(&mut io, 4);
    assert!(up(&mut io, 4).is_some());
    assert_eq!(get(&mut io, 0x18) & REMOTE_IRR, 0);
    // An edge while masked is lost (82093AA 3.2.4), also for the unmasking.
    down(&mut io, 4);
    let _ = set(&mut io, 0x18, 0x31 | MASK);
    assert_eq!(io.set_irq(pin(4), Source::USER, true), Raised::Masked);
    assert_eq!(
        set(&mut io, 0x18, 0x31),
        Written::Entry {
            pin: pin(4),
            mask_changed: true,
            waiting: false
        }
    );
    assert_eq!(io.service(pin(4)), None);
    // Listeners hear of the EOI.
    assert_eq!(io.eoi(Vector(0x31), false), Pins(1 << 4));
    assert_eq!(io.service(pin(4)), None);
}

#[test]
fn level() {
    let mut io = Ioapic::default();
    let _ = set(&mut io, 0x1a, 0x42 | LEVEL);
    assert_eq!(up(&mut io, 5).unwrap().trigger, TriggerMode::Level);
    assert_ne!(get(&mut io, 0x1a) & REMOTE_IRR, 0);
    assert_eq!(io.set_irq(pin(5), Source::USER, true), Raised::Coalesced);
    // Edge-type EOI of the same vector ends nothing.
    assert_eq!(io.eoi(Vector(0x42), false), Pins(1 << 5));
    assert_ne!(get(&mut io, 0x1a) & REMOTE_IRR, 0);
    assert_eq!(io.eoi(Vector(0x41), true), Pins(0));
    // Line still up at the EOI: delivered again.
    assert_eq!(io.eoi(Vector(0x42), true), Pins(1 << 5));
    assert_eq!(get(&mut io, 0x1a) & REMOTE_IRR, 0);
    assert_eq!(io.service(pin(5)).unwrap().vector, Vector(0x42));
    assert_eq!(io.service(pin(5)), None);
    // Line down before the EOI: quiet.
    down(&mut io, 5);
    assert_eq!(io.eoi(Vector(0x42), true), Pins(1 << 5));
    assert_eq!(io.service(pin(5)), None);
    // Nobody accepted: can be sent again.
    assert!(up(&mut io, 5).is_some());
    io.not_accepted(pin(5));
    assert!(io.service(pin(5)).is_some());
}

#[test]
fn level_waits_for_unmasking() {
    let mut io = Ioapic::default();
    let _ = set(&mut io, 0x1a, 0x42 | LEVEL | MASK);
    assert_eq!(io.set_irq(pin(5), Source::USER, true), Raised::Masked);
    assert_eq!(io.service(pin(5)), None);
    assert_eq!(
        set(&mut io, 0x1a, 0x42 | LEVEL),
        Written::Entry {
            pin: pin(5),
            mask_changed: true,
            waiting: true
        }
    );
    assert!(io.service(pin(5)).is_some());
    // While in service the entry does not wait.
    assert_eq!(
        set(&mut io, 0x1b, 0),
        Written::Entry {
            pin: pin(5),
            mask_changed: false,
            waiting: false
        }
    );
    // Edge for a moment: ends the interrupt (how Linux does it without an EOI register).
    let _ = set(&mut io, 0x1a, 0x42 | MASK);
    assert_eq!(
        set(&mut io, 0x1a, 0x42 | LEVEL),
        Written::Entry {
            pin: pin(5),
            mask_changed: true,
            waiting: true
        }
    );
    assert!(io.service(pin(5)).is_some());
}

#[test]
fn shared_line() {
    let mut io = Ioapic::default();
    let _ = set(&mut io, 0x10, 0x42 | LEVEL);
    assert!(up(&mut io, 0).is_some());
    assert_eq!(
        io.set_irq(pin(0), Source::RESAMPLE, true),
        Raised::Coalesced
    );
    assert_eq!(io.set_irq(pin(0), Source::USER, false), Raised::Coalesced);
    let _ = io.eoi(Vector(0x42), true);
    assert!(io.service(pin(0)).is_some());
    let _ = io.eoi(Vector(0x42), true);
    assert_eq!(io.set_irq(pin(0), Source::RESAMPLE, false), Raised::Lowered);
    assert_eq!(io.service(pin(0)), None);
}

#[test]
fn vectors_of_interest() {
    let mut io = Ioapic::default();
    let _ = set(&mut io, 0x10, 0x42 | LEVEL);
    let _ = set(&mut io, 0x12, 0x63);
    assert_eq!(io.vectors(Pins(0)), [0, 0, 4, 0, 0, 0, 0, 0]);
    assert_eq!(io.vectors(Pins(2)), [0, 0, 4, 8, 0, 0, 0, 0]);
    assert_eq!(
        (io.trigger(pin(0)), io.trigger(pin(1))),
        (TriggerMode::Level, TriggerMode::Edge)
    );
}

#[test]
fn state() {
    let mut io = Ioapic::default();
    let _ = set(&mut io, 0x1a, 0x42 | LEVEL);
    let _ = set(&mut io, 0x18, 0x31);
    assert!(up(&mut io, 5).is_some() && up(&mut io, 4).is_some());
    let saved = io.get_state();
    assert_eq!(saved.irr, 1 << 5, "a delivered edge is not pending");
    assert_eq!(saved.ioregsel, 0x18);
    let mut copy = Ioapic::default();
    let pins: Vec<_> = copy.set_state(&saved).collect();
    assert_eq!(pins, [pin(5)]);
    // Level in service: nothing to send now.
    assert_eq!(copy.reassert(pin(5)), None);
    assert_eq!(copy.get_state(), saved);
    // A pending edge is sent by the restore.
    let mut edge = saved;
    edge.irr = 1 << 4 | 0xff00_0000;
    let pins: Vec<_> = copy.set_state(&edge).collect();
    assert_eq!(pins, [pin(4)]);
    assert_eq!(copy.reassert(pin(4)).unwrap().vector, Vector(0x31));
}

#[test]
fn hostile() {
    assert_eq!(Pin::new(24), None);
    assert_eq!(Pin::new(u32::MAX), None);
    let mut io = Ioapic::default();
    let state = State {
        base_address: u64::MAX,
        ioregsel: u32::MAX,
        id: u32::MAX,
        irr: u32::MAX,
        redirtbl: [u64::MAX; 24],
    };
    for p in io.set_state(&state) {
        let _ = io.reassert(p);
    }
    let mut x = 88172645463325252u64;
    for _ in 0..200_000 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let v = (x >> 32) as u32;
        match x & 7 {
            0 => drop(io.read(v & 0xff)),
            1 => drop(io.write(mmio::REGSEL, v & 0x3f)),
            2 => drop(io.write(mmio::WIN, v & 0x1ffff)),
            3 => drop(io.write(v, v)),
            4 => drop(io.eoi(Vector(v as u8), v & 0x100 != 0)),
            5 => {
                for p in io.eoi(Vector(v as u8), true) {
                    if let Some(m) = io.service(p) {
                        assert_eq!(m.trigger, TriggerMode::Level);
                        assert!(!io.is_masked(p));
                    }
                }
            }
            _ => {
                let p = pin(v % 24);
                let masked = io.is_masked(p);
                if let Raised::Message(m) = io.set_irq(
                    p,
                    [Source::USER, Source::RESAMPLE, Source::PIT][v as usize / 32 % 3],
                    v & 0x8000 != 0,
                ) {
                    assert!(!masked);
                    let entry = io.get_state().redirtbl[p.number() as usize];
                    assert_eq!(m, Message::from_rte(entry));
                    let level = m.trigger == TriggerMode::Level;
                    assert_eq!(entry & u64::from(REMOTE_IRR) != 0, level);
                }
            }
        }
        for e in io.get_state().redirtbl {
            let e = e as u32;
            assert!(e & REMOTE_IRR == 0 || e & LEVEL != 0);
        }
    }
}
