// SPDX-License-Identifier: GPL-2.0
//! Cascaded 8259A pair against the data sheet.
#![forbid(unsafe_code)]

use rvmm_logic::bus::line::Source;
use rvmm_logic::x86::irqchip::msg::Vector;
use rvmm_logic::x86::irqchip::pic::*;

fn irq(n: u32) -> Irq {
    Irq::new(n).unwrap()
}

/// Initialised as a PC does: vectors 0x30 and 0x38, all lines unmasked, `icw4` for both.
fn pc_with(icw4: u8) -> Pic {
    let mut p = Pic::new();
    for (command, base, wiring) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
        p.write(command, 0x11);
        p.write(command + 1, base);
        p.write(command + 1, wiring);
        p.write(command + 1, icw4);
    }
    assert_eq!((p.read(0x21), p.read(0xa1)), (0, 0));
    let _ = p.take_acked();
    p
}

fn pc() -> Pic {
    pc_with(1)
}

fn pulse(p: &mut Pic, n: u32) -> Raised {
    let r = p.set_irq(irq(n), Source::USER, true);
    assert_eq!(p.set_irq(irq(n), Source::USER, false), Raised::Lowered);
    r
}

#[test]
fn simple_edge() {
    let mut p = pc();
    assert!(!p.output());
    assert_eq!(pulse(&mut p, 4), Raised::Pending);
    assert!(p.output());
    assert_eq!(p.read(0x20), 0x10);
    assert_eq!(p.ack(), Vector(0x34));
    assert!(!p.output());
    p.write(0x20, 0x0b);
    assert_eq!(p.read(0x20), 0x10, "in service");
    p.write(0x20, 0x0a);
    assert_eq!(p.read(0x20), 0);
    assert_eq!(p.take_acked(), 0);
    p.write(0x20, 0x20);
    assert_eq!(p.take_acked(), 0x10);
    p.write(0x20, 0x20);
    assert_eq!(p.take_acked(), 0);
}

#[test]
fn edge_needs_an_edge() {
    let mut p = pc();
    assert_eq!(p.set_irq(irq(3), Source::USER, true), Raised::Pending);
    assert_eq!(p.set_irq(irq(3), Source::USER, true), Raised::NoEdge);
    let _ = p.set_irq(irq(3), Source::USER, false);
    assert_eq!(p.set_irq(irq(3), Source::USER, true), Raised::Coalesced);
    assert_eq!(p.ack(), Vector(0x33));
    p.write(0x20, 0x63);
    assert_eq!(p.set_irq(irq(3), Source::USER, true), Raised::NoEdge);
    assert!(!p.output());
    // Two sources share the line.
    let _ = p.set_irq(irq(3), Source::PIT, true);
    assert_eq!(p.set_irq(irq(3), Source::USER, false), Raised::NoEdge);
    assert_eq!(p.set_irq(irq(3), Source::PIT, false), Raised::Lowered);
    assert_eq!(p.set_irq(irq(3), Source::PIT, true), Raised::Pending);
}

#[test]
fn priorities_and_nesting() {
    let mut p = pc();
    let _ = pulse(&mut p, 5);
    let _ = pulse(&mut p, 1);
    assert_eq!(p.ack(), Vector(0x31));
    assert!(!p.output(), "a lower one waits");
    let _ = pulse(&mut p, 0);
    assert!(p.output(), "a higher one nests");
    assert_eq!(p.ack(), Vector(0x30));
    p.write(0x20, 0x20);
    assert_eq!(p.take_acked(), 1);
    p.write(0x20, 0x20);
    assert_eq!(p.take_acked(), 2);
    assert_eq!(p.ack(), Vector(0x35));
}

#[test]
fn cascade() {
    let mut p = pc();
    assert_eq!(pulse(&mut p, 12), Raised::Pending);
    assert_eq!(p.read(0x20), 4);
    assert_eq!(p.ack(), Vector(0x3c));
    assert!(!p.output());
    // IRQ 3 is lower than the cascade, IRQ 8 higher on the slave, but the master holds IR2.
    let _ = pulse(&mut p, 8);
    let _ = pulse(&mut p, 3);
    assert!(!p.output());
    p.write(0xa0, 0x20);
    assert!(!p.output());
    p.write(0x20, 0x20);
    assert_eq!(p.take_acked(), 0x1004);
    assert_eq!(p.ack(), Vector(0x38));
    p.write(0xa0, 0x20);
    p.write(0x20, 0x20);
    assert_eq!(p.ack(), Vector(0x33));
    // The cascade input itself has no line.
    let mut p = pc();
    assert_eq!(pulse(&mut p, 2), Raised::Lowered);
    assert!(!p.output());
}

#[test]
fn special_fully_nested() {
    let mut p = pc_with(0x11);
    let _ = pulse(&mut p, 12);
    assert_eq!(p.ack(), Vector(0x3c));
    let _ = pulse(&mut p, 8);
    assert!(p.output(), "a higher slave request passes the busy cascade");
    assert_eq!(p.ack(), Vector(0x38));
}

#[test]
fn masks() {
    let mut p = pc();
    p.write(0x21, 0x10);
    assert_eq!(p.read(0x21), 0x10);
    assert!(p.is_masked(irq(4)) && !p.is_masked(irq(5)));
    assert_eq!(pulse(&mut p, 4), Raised::Masked);
    assert!(!p.output());
    p.write(0x21, 0);
    assert!(p.output(), "latched while masked");
    let mut p = pc();
    p.write(0xa1, 0x02);
    assert!(p.is_masked(irq(9)));
    let _ = pulse(&mut p, 9);
    assert!(!p.output());
}

#[test]
fn spurious() {
    let mut p = pc();
    assert_eq!(p.ack(), Vector(0x37));
    p.write(0x20, 0x0b);
    assert_eq!(p.read(0x20), 0, "no in-service bit");
    // Slave request withdrawn in between: the master's IR2 goes with it.
    p.write(0x4d1, 0x02);
    let _ = p.set_irq(irq(9), Source::USER, true);
    let _ = p.set_irq(irq(9), Source::USER, false);
    assert!(!p.output());
}

#[test]
fn level_lines() {
    let mut p = pc();
    p.write(0x4d0, 0xff);
    p.write(0x4d1, 0xff);
    assert_eq!((p.read(0x4d0), p.read(0x4d1)), (0xf8, 0xde));
    let _ = p.set_irq(irq(11), Source::USER, true);
    assert_eq!(p.ack(), Vector(0x3b));
    p.write(0xa0, 0x20);
    p.write(0x20, 0x20);
    assert!(p.output(), "still up");
    assert_eq!(p.ack(), Vector(0x3b));
    assert_eq!(p.set_irq(irq(11), Source::USER, false), Raised::Lowered);
    p.write(0xa0, 0x20);
    p.write(0x20, 0x20);
    assert!(!p.output());
    // Becoming level-triggered makes the line's level the request.
    let mut p = pc();
    let _ = pulse(&mut p, 5);
    p.write(0x4d0, 0x20);
    assert!(!p.output());
}

#[test]
fn auto_eoi() {
    let mut p = pc_with(3);
    let _ = pulse(&mut p, 4);
    let _ = pulse(&mut p, 6);
    assert_eq!(p.ack(), Vector(0x34));
    assert_eq!(p.take_acked(), 0x10);
    assert_eq!(p.ack(), Vector(0x36));
    // Rotation in automatic EOI mode: the one served becomes the lowest.
    p.write(0x20, 0x80);
    let _ = pulse(&mut p, 4);
    let _ = pulse(&mut p, 6);
    assert_eq!(p.ack(), Vector(0x34));
    let _ = pulse(&mut p, 4);
    assert_eq!(p.ack(), Vector(0x36));
    p.write(0x20, 0x00);
    assert_eq!(p.ack(), Vector(0x34));
}

#[test]
fn rotation() {
    let mut p = pc();
    // Set priority: IR4 lowest, so IR5 is the highest.
    p.write(0x20, 0xc4);
    let _ = pulse(&mut p, 0);
    let _ = pulse(&mut p, 5);
    let _ = pulse(&mut p, 4);
    assert_eq!(p.ack(), Vector(0x35));
    // Rotate on specific EOI: IR5 lowest, IR6 highest.
    p.write(0x20, 0xe5);
    assert_eq!(p.take_acked(), 0x20);
    let _ = pulse(&mut p, 5);
    assert_eq!(p.ack(), Vector(0x30));
    // Rotate on non-specific EOI.
    p.write(0x20, 0xa0);
    assert_eq!(p.take_acked(), 1);
    let _ = pulse(&mut p, 0);
    assert_eq!(p.ack(), Vector(0x34));
    // No operation.
    p.write(0x20, 0x40);
    assert_eq!(p.take_acked(), 0);
}

#[test]
fn special_mask_mode() {
    let mut p = pc();
    let _ = pulse(&mut p, 3);
    assert_eq!(p.ack(), Vector(0x33));
    let _ = pulse(&mut p, 5);
    assert!(!p.output());
    p.write(0x21, 0x08);
    assert!(!p.output());
    p.write(0x20, 0x68);
    assert!(p.output(), "the masked one in service holds back nobody");
    assert_eq!(p.ack(), Vector(0x35));
    // A non-specific EOI does not end the masked one.
    p.write(0x20, 0x20);
    assert_eq!(p.take_acked(), 0x20);
    p.write(0x20, 0x20);
    assert_eq!(p.take_acked(), 0);
    p.write(0x20, 0x48);
    p.write(0x20, 0x20);
    assert_eq!(p.take_acked(), 0x08);
}

#[test]
fn poll() {
    let mut p = pc();
    p.write(0x20, 0x0c);
    assert_eq!(p.read(0x20), 0);
    assert_eq!(p.read(0x20), 0);
    let _ = pulse(&mut p, 6);
    p.write(0x20, 0x0c);
    assert_eq!(p.read(0x21), 0x86, "either port");
    assert_eq!(p.read(0x21), 0);
    assert!(!p.output());
    p.write(0x20, 0x0b);
    assert_eq!(p.read(0x20), 0x40, "polling put it in service");
    p.write(0x20, 0x20);
    assert_eq!(p.take_acked(), 0x40);
    let _ = pulse(&mut p, 10);
    p.write(0xa0, 0x0c);
    assert_eq!(p.read(0xa0), 0x82);
}

#[test]
fn initialisation() {
    let mut p = pc();
    let _ = p.set_irq(irq(1), Source::USER, true);
    let _ = pulse(&mut p, 4);
    assert_eq!(p.ack(), Vector(0x31));
    p.write(0x21, 0xff);
    p.write(0x20, 0x10);
    assert_eq!(
        p.take_acked(),
        0x12,
        "what was pending or in service is over"
    );
    assert_eq!(p.read(0x20), 0);
    assert_eq!(p.read(0x21), 0);
    // Without ICW4 two more bytes, then OCW1.
    p.write(0x21, 0x57);
    p.write(0x21, 0x04);
    p.write(0x21, 0xfe);
    assert_eq!(p.read(0x21), 0xfe);
    // A line that is up needs a new edge.
    p.write(0x21, 0);
    let _ = p.set_irq(irq(1), Source::USER, true);
    assert!(!p.output());
    let _ = p.set_irq(irq(1), Source::USER, false);
    let _ = p.set_irq(irq(1), Source::USER, true);
    assert_eq!(p.ack(), Vector(0x51), "ICW2 has five bits");
}

#[test]
fn state() {
    let mut p = pc();
    p.write(0x4d1, 0x0c);
    p.write(0x21, 0x80);
    let _ = p.set_irq(irq(10), Source::USER, true);
    let _ = pulse(&mut p, 1);
    let _ = p.ack();
    p.write(0x20, 0xc3);
    p.write(0xa0, 0x0b);
    let (m, s) = (p.get_state(Chip::Master), p.get_state(Chip::Slave));
    assert_eq!(m, [0, 4, 0x80, 2, 4, 0x30, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0xf8]);
    assert_eq!(s, [4, 4, 0, 0, 0, 0x38, 1, 0, 0, 0, 0, 0, 0, 1, 0x0c, 0xde]);
    let mut q = Pic::new();
    q.set_state(Chip::Master, &m);
    q.set_state(Chip::Slave, &s);
    assert_eq!(
        (q.get_state(Chip::Master), q.get_state(Chip::Slave)),
        (m, s)
    );
    assert_eq!(q.output(), p.output());
    q.set_state(Chip::Master, &[0xff; 16]);
    assert_eq!(q.get_state(Chip::Master)[4], 7);
    assert_eq!(q.get_state(Chip::Master)[5], 0xff);
    // As loaded, also what no register gives. A guest's own ELCR obeys the mask.
    let loaded = [0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3];
    let mut q = Pic::new();
    q.set_state(Chip::Master, &loaded);
    assert_eq!(q.get_state(Chip::Master), loaded);
    q.write(0x4d0, 0xff);
    assert_eq!(q.read(0x4d0), 3);
    let _ = pulse(&mut q, 6);
    assert_eq!(q.ack(), Vector(16), "as KVM: the line is added");
}

#[test]
fn hostile() {
    assert_eq!(Irq::new(16), None);
    let mut p = Pic::new();
    assert_eq!(p.read(0x60), 0xff);
    p.write(0x60, 1);
    let ports = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];
    let mut x = 0x1234_5678_9abc_def1u64;
    for _ in 0..300_000 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let v = (x >> 40) as u8;
        let port = ports[(x >> 8) as usize % 6];
        match x & 7 {
            0 | 1 => p.write(port, v),
            2 => drop(p.read(port)),
            3 => {
                let before = p.output();
                let isr = p.get_state(Chip::Master)[3] & !p.get_state(Chip::Master)[2];
                let v = p.ack();
                assert!(before || v.0 & 7 == 7);
                assert!(p.get_state(Chip::Master)[3] & isr == isr);
            }
            4 => drop(p.take_acked()),
            5 if x & 0xf000 == 0 => {
                p.set_state(Chip::Slave, &x.to_le_bytes().repeat(2).try_into().unwrap())
            }
            _ => drop(p.set_irq(irq(u32::from(v & 15)), Source::USER, v & 16 != 0)),
        }
        let (m, s) = (p.get_state(Chip::Master), p.get_state(Chip::Slave));
        assert!(m[4] < 8 && s[4] < 8);
        assert_eq!(m[5] & 7, 0);
        // Level-triggered requests follow their lines, the cascade follows the slave.
        assert_eq!(s[1] & s[14], s[0] & s[14]);
        assert!(!p.output() || m[1] & !m[2] != 0);
    }
}
