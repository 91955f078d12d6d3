// SPDX-License-Identifier: GPL-2.0
//! Interrupt messages: decoding and destination matching (SDM 3A 11.6.2, 11.11, 11.12.10).
#![forbid(unsafe_code)]

use rvmm_logic::x86::irqchip::msg::*;

fn xapic(id: u8, ldr: u8, dfr: Dfr) -> ApicAddr {
    ApicAddr {
        id: id.into(),
        xapic_id: id,
        ldr,
        dfr,
        x2apic: false,
        hw_enabled: true,
        sw_enabled: true,
    }
}

fn x2apic(id: u32) -> ApicAddr {
    ApicAddr {
        id,
        xapic_id: id as u8,
        x2apic: true,
        ..xapic(0, 0, Dfr::FLAT)
    }
}

fn logical(dest: u32) -> Message {
    Message {
        dest_mode: DestMode::Logical,
        dest_is_8bit: true,
        ..Message::fixed(dest, Vector(0x40))
    }
}

#[test]
fn msi_fields() {
    let m = Message::from_msi(
        0xfee0_0000 | 0x12 << 12 | 1 << 2 | 1 << 3,
        0xaabb_cc00,
        0x8131,
        MsiFormat::default(),
    );
    assert_eq!(m.dest, 0x12);
    assert_eq!(m.dest_mode, DestMode::Logical);
    assert!(m.redirection_hint && m.to_one_only());
    assert_eq!(m.delivery, DeliveryMode::LowestPriority);
    assert_eq!(m.trigger, TriggerMode::Level);
    assert_eq!(m.vector, Vector(0x31));
    let wide = MsiFormat {
        ids_32bit: true,
        ..Default::default()
    };
    assert_eq!(
        Message::from_msi(0xfee1_2000, 0xaabb_cc00, 0, wide).dest,
        0xaabb_cc12
    );
    let ext = MsiFormat {
        ext_dest_id: true,
        ..Default::default()
    };
    assert_eq!(
        Message::from_msi(0xfee1_2000 | 0x55 << 5, 0, 0, ext).dest,
        0x5512
    );
    assert_eq!(
        Message::from_msi(0xfee1_2000 | 0x55 << 5, 0, 0, MsiFormat::default()).dest,
        0x12
    );
}

#[test]
fn rte_and_icr_fields() {
    let m = Message::from_rte(0x0300_0000_0000_a830);
    assert_eq!((m.dest, m.dest_mode), (3, DestMode::Logical));
    assert_eq!((m.trigger, m.vector), (TriggerMode::Level, Vector(0x30)));
    let m = Message::from_icr(0x000c_4641, 0x0700_0000, false);
    assert_eq!((m.dest, m.shorthand), (7, Shorthand::AllButSelf));
    assert_eq!((m.delivery, m.level), (DeliveryMode::StartUp, true));
    let m = Message::from_icr(0x0000_4500, 0x0700_0001, true);
    assert_eq!((m.dest, m.delivery), (0x0700_0001, DeliveryMode::Init));
    assert!(!m.is_init_deassert());
    assert!(Message::from_icr(0x0000_8500, 0, true).is_init_deassert());
}

#[test]
fn physical() {
    let m = Message::fixed(5, Vector(0x40));
    assert!(m.matches(None, &xapic(5, 0, Dfr::FLAT)));
    assert!(!m.matches(None, &xapic(4, 0, Dfr::FLAT)));
    assert!(m.matches(None, &x2apic(5)));
    assert!(!m.matches(None, &x2apic(0x105)));
    let moved = ApicAddr {
        xapic_id: 9,
        ..xapic(5, 0, Dfr::FLAT)
    };
    assert!(!m.matches(None, &moved));
    assert!(Message::fixed(9, Vector(0x40)).matches(None, &moved));
    // An APIC beyond 8 bits is reachable before it is in x2APIC mode, by its whole ID only.
    let high = ApicAddr {
        id: 0x105,
        xapic_id: 5,
        ..xapic(5, 0, Dfr::FLAT)
    };
    assert!(Message::fixed(0x105, Vector(0x40)).matches(None, &high));
    let off = ApicAddr {
        hw_enabled: false,
        ..xapic(5, 0, Dfr::FLAT)
    };
    assert!(!m.matches(None, &off));
    assert!(!Message {
        shorthand: Shorthand::All,
        ..m
    }
    .matches(None, &off));
}

#[test]
fn broadcast() {
    let all = [
        xapic(1, 0, Dfr::FLAT),
        xapic(2, 0, Dfr::CLUSTER),
        x2apic(3),
        x2apic(0xff),
        x2apic(300),
    ];
    let eight = Message {
        dest_is_8bit: true,
        ..Message::fixed(0xff, Vector(0x40))
    };
    let wide = Message::fixed(0xffff_ffff, Vector(0x40));
    for to in &all {
        assert!(eight.matches(None, to));
        assert!(wide.matches(None, to));
        let mode = DestMode::Logical;
        assert!(Message {
            dest_mode: mode,
            ..eight
        }
        .matches(None, to));
    }
    // In x2APIC format 0xff is one APIC.
    let one = Message::fixed(0xff, Vector(0x40));
    assert!(one.matches(None, &x2apic(0xff)));
    assert!(!one.matches(None, &x2apic(3)));
    assert_eq!(eight.single_physical(), None);
    assert_eq!(wide.single_physical(), None);
    assert_eq!(Message::fixed(3, Vector(0x40)).single_physical(), Some(3));
    assert_eq!(logical(3).single_physical(), None);
}

#[test]
fn logical_models() {
    assert!(logical(0b0110).matches(None, &xapic(0, 0b0100, Dfr::FLAT)));
    assert!(!logical(0b0110).matches(None, &xapic(0, 0b1000, Dfr::FLAT)));
    assert!(!logical(0b0110).matches(None, &xapic(0, 0, Dfr::FLAT)));
    assert!(logical(0x23).matches(None, &xapic(0, 0x21, Dfr::CLUSTER)));
    assert!(!logical(0x23).matches(None, &xapic(0, 0x31, Dfr::CLUSTER)));
    assert!(!logical(0x23).matches(None, &xapic(0, 0x24, Dfr::CLUSTER)));
    assert!(!logical(0x23).matches(None, &xapic(0, 0x23, Dfr(5))));
    assert!(!logical(0x101).matches(None, &xapic(0, 1, Dfr::FLAT)));
    assert_eq!(x2apic_ldr(0x35), 0x0003_0020);
    assert!(logical(0x0003_0021).matches(None, &x2apic(0x35)));
    assert!(logical(0x0003_0021).matches(None, &x2apic(0x30)));
    assert!(!logical(0x0003_0021).matches(None, &x2apic(0x31)));
    assert!(!logical(0x0002_0021).matches(None, &x2apic(0x35)));
}

#[test]
fn shorthands() {
    let m = Message::fixed(0, Vector(0x40));
    let with = |shorthand| Message { shorthand, ..m };
    assert!(with(Shorthand::Myself).matches(Some(2), &x2apic(2)));
    assert!(!with(Shorthand::Myself).matches(Some(2), &x2apic(0)));
    assert!(with(Shorthand::All).matches(Some(2), &x2apic(2)));
    assert!(with(Shorthand::AllButSelf).matches(Some(2), &x2apic(0)));
    assert!(!with(Shorthand::AllButSelf).matches(Some(2), &x2apic(2)));
}

#[test]
fn software_disabled_takes_only_unvectored() {
    let off = ApicAddr {
        sw_enabled: false,
        ..xapic(0, 0, Dfr::FLAT)
    };
    assert!(!off.accepts(DeliveryMode::Fixed));
    assert!(!off.accepts(DeliveryMode::LowestPriority));
    assert!(
        off.accepts(DeliveryMode::Nmi)
            && off.accepts(DeliveryMode::Init)
            && off.accepts(DeliveryMode::StartUp)
    );
    assert!(!ApicAddr {
        hw_enabled: false,
        ..off
    }
    .accepts(DeliveryMode::Nmi));
}

#[test]
fn packing_round_trip() {
    for n in 0..256u32 {
        let addr = ApicAddr {
            id: n.wrapping_mul(0x0101_0307),
            xapic_id: n as u8,
            ldr: !n as u8,
            dfr: Dfr(n as u8 & 15),
            x2apic: n & 1 != 0,
            hw_enabled: n & 2 != 0,
            sw_enabled: n & 4 != 0,
        };
        assert_eq!(ApicAddr::from_bits(addr.to_bits()), addr);
    }
    assert!(!ApicAddr::from_bits(0).hw_enabled);
}

#[test]
fn physical_broadcast_of_lowest_priority() {
    let lowest = |dest, dest_mode| Message {
        dest_mode,
        delivery: DeliveryMode::LowestPriority,
        ..Message::fixed(dest, Vector(0x40))
    };
    assert!(!lowest(0xff, DestMode::Physical).to_one_only());
    assert!(lowest(0xff, DestMode::Logical).to_one_only());
    assert!(lowest(0xffff_ffff, DestMode::Physical).to_one_only());
    assert!(lowest(3, DestMode::Physical).to_one_only());
    let hint = Message {
        redirection_hint: true,
        ..lowest(0xff, DestMode::Physical)
    };
    assert!(hint.to_one_only());
}

/// The short way to one APIC says what [`Message::matches`] says.
#[test]
fn initial_ids() {
    for id in [3, 44, 255, 256, 300] {
        for xapic_id in [3, 44] {
            for x2apic in [false, true] {
                let addr = ApicAddr {
                    id,
                    xapic_id,
                    x2apic,
                    ..xapic(0, 0, Dfr::FLAT)
                };
                let Some(id) = Message::fixed(id, Vector(0x40)).single_physical() else {
                    continue;
                };
                let m = Message::fixed(id, Vector(0x40));
                assert_eq!(addr.has_initial_id(), m.matches(None, &addr), "{addr:?}");
            }
        }
    }
}
