// SPDX-License-Identifier: GPL-2.0
//! Local APIC against SDM 3A chapter 11, and a random walk over its interface.
#![forbid(unsafe_code)]

use rvmm_logic::x86::irqchip::lapic::regs::BadState;
use rvmm_logic::x86::irqchip::lapic::timer::{TimerArm, MIN_PERIOD_NS};
use rvmm_logic::x86::irqchip::lapic::*;
use rvmm_logic::x86::irqchip::msg::*;

const FEATURES: Features = Features {
    x2apic: true,
    tsc_deadline: true,
    suppress_eoi: false,
    honour_suppress_eoi: false,
    phys_bits: 40,
};
const BASE: u64 = base::DEFAULT_ADDRESS | base::ENABLE;
const MASKED: u32 = 1 << 16;

/// Registers in memory of their own.
#[derive(Clone)]
struct Image([u32; 64]);

impl Registers for Image {
    fn get(&self, n: usize) -> u32 {
        self.0[n]
    }
    fn set(&mut self, n: usize, value: u32) {
        self.0[n] = value;
    }
}

fn new(id: u32, bsp: bool, lint0: bool, features: Features, bus_ns: u32) -> Lapic<Image> {
    Lapic::with_registers(Image([0; 64]), id, bsp, lint0, features, bus_ns)
}

fn fresh() -> Lapic<Image> {
    new(1, false, false, FEATURES, 1)
}

/// Software-enabled, in xAPIC mode.
fn xapic() -> Lapic<Image> {
    let mut a = fresh();
    assert!(a.write(reg::SVR, 0x1ff, 0).addr);
    a
}

/// Software-enabled, in x2APIC mode.
fn x2apic() -> Lapic<Image> {
    let mut a = xapic();
    assert!(a.set_apic_base(BASE | base::EXTD, false).unwrap().base);
    a
}

fn eoi_of(action: Action) -> Option<(u8, bool, bool)> {
    action.eoi.map(|e| (e.vector.0, e.level, e.broadcast))
}

#[test]
fn reset_state() {
    let a = new(3, true, true, FEATURES, 1);
    assert_eq!(a.apic_base(), 0xfee0_0900);
    assert_eq!(a.page(), Some(0xfee0_0000));
    for (offset, value) in [
        (reg::ID, 3 << 24),
        (reg::VERSION, 0x50014),
        (reg::TPR, 0),
        (reg::LDR, 0),
        (reg::DFR, 0xffff_ffff),
        (reg::SVR, 0xff),
        (reg::ESR, 0),
        (reg::ICR, 0),
        (reg::LVT_TIMER, MASKED),
        (reg::LVT_PERF, MASKED),
        (reg::LVT_THERMAL, MASKED),
        (reg::LVT_LINT0, 0x700),
        (reg::LVT_LINT1, MASKED),
        (reg::LVT_ERROR, MASKED),
        (reg::INITIAL_COUNT, 0),
        (reg::CURRENT_COUNT, 0),
        (reg::DIVIDE, 0),
    ] {
        assert_eq!(a.read(offset, 0), value, "{offset:#x}");
    }
    assert!(a.lint0_accepts_extint());
    assert!(!fresh().lint0_accepts_extint());
    assert_eq!(fresh().apic_base(), 0xfee0_0800);
}

#[test]
fn init_keeps_id_and_base() {
    let mut a = x2apic();
    assert!(a.accept(Vector(0x50), TriggerMode::Edge));
    let _ = a.init(false);
    assert!(a.is_x2apic());
    assert!(!a.sw_enabled());
    assert_eq!(a.rdmsr(0x802, 0), Ok(1));
    assert_eq!(a.highest_irr(), None);
    let mut a = xapic();
    let _ = a.write(reg::ID, 0x0900_0000, 0);
    let _ = a.init(false);
    assert_eq!(a.read(reg::ID, 0), 0x0900_0000);
    let _ = a.reset(false, false);
    assert_eq!(a.read(reg::ID, 0), 0x0100_0000);
}

#[test]
fn base_transitions() {
    let x2 = BASE | base::EXTD;
    // SDM 3A 11.12.5: from each mode, which are legal for the guest.
    for (from, to, legal) in [
        (BASE, x2, true),
        (BASE, BASE & !base::ENABLE, true),
        (x2, BASE, false),
        (x2, base::DEFAULT_ADDRESS, true),
        (base::DEFAULT_ADDRESS, BASE, true),
        (base::DEFAULT_ADDRESS, x2, false),
        (BASE, base::DEFAULT_ADDRESS | base::EXTD, false),
        (
            base::DEFAULT_ADDRESS,
            base::DEFAULT_ADDRESS | base::EXTD,
            false,
        ),
    ] {
        let mut a = fresh();
        let _ = a.set_apic_base(from, true).unwrap();
        assert_eq!(
            a.set_apic_base(to, false).is_ok(),
            legal,
            "{from:#x} {to:#x}"
        );
        assert_eq!(a.apic_base() == to, legal);
        let host_ok = to & (base::ENABLE | base::EXTD) != base::EXTD;
        assert_eq!(a.set_apic_base(to, true).is_ok(), host_ok);
    }
    let mut a = fresh();
    assert_eq!(a.set_apic_base(BASE | 1 << 40, true), Err(Gp));
    assert_eq!(a.set_apic_base(BASE | 1, true), Err(Gp));
    assert_eq!(a.set_apic_base(BASE | 1 << 9, true), Err(Gp));
    assert!(
        a.set_apic_base(0x12_3456_7000 | base::ENABLE, false)
            .unwrap()
            .base
    );
    assert_eq!(a.page(), Some(0x12_3456_7000));
    a.set_features(Features {
        x2apic: false,
        ..FEATURES
    });
    assert_eq!(a.set_apic_base(x2, true), Err(Gp));
}

#[test]
fn disabling_keeps_registers() {
    let mut a = xapic();
    assert!(a.accept(Vector(0x50), TriggerMode::Edge));
    let _ = a.write(reg::LVT_TIMER, 0x4_0040, 0);
    let _ = a.write(reg::DFR, 0, 0);
    let _ = a.write(reg::ID, 0x0900_0000, 0);
    assert!(a.set_tsc_deadline(77).timer);
    let _ = a.set_apic_base(base::DEFAULT_ADDRESS, false).unwrap();
    assert_eq!(a.page(), None);
    assert_eq!(a.pending(), None);
    assert_eq!((a.timer_arm(), a.tsc_deadline()), (TimerArm::Off, 0));
    assert!(!a.accept(Vector(0x51), TriggerMode::Edge));
    assert!(a.lint0_accepts_extint());
    let _ = a.set_apic_base(BASE, false).unwrap();
    assert_eq!(a.read(reg::SVR, 0), 0x1ff);
    assert_eq!(a.read(reg::DFR, 0), 0x0fff_ffff);
    // The ID alone begins anew.
    assert_eq!(a.read(reg::ID, 0), 0x0100_0000);
    assert_eq!(a.pending(), Some(Vector(0x50)));
    assert_eq!((a.timer_arm(), a.tsc_deadline()), (TimerArm::AtTsc(77), 77));
}

#[test]
fn nesting_by_priority() {
    let mut a = xapic();
    assert!(a.accept(Vector(0x35), TriggerMode::Edge));
    assert!(a.accept(Vector(0x31), TriggerMode::Edge));
    assert_eq!(a.pending(), Some(Vector(0x35)));
    a.ack(Vector(0x35));
    assert_eq!(a.ppr(), 0x30);
    // A vector of the class in service waits.
    assert_eq!(a.pending(), None);
    assert!(a.accept(Vector(0x40), TriggerMode::Edge));
    assert_eq!(a.pending(), Some(Vector(0x40)));
    a.ack(Vector(0x40));
    assert_eq!((a.ppr(), a.highest_isr()), (0x40, Some(Vector(0x40))));
    assert_eq!(eoi_of(a.write(reg::EOI, 0, 0)), Some((0x40, false, false)));
    assert_eq!(a.pending(), None);
    assert_eq!(eoi_of(a.write(reg::EOI, 0, 0)), Some((0x35, false, false)));
    assert_eq!(a.pending(), Some(Vector(0x31)));
    a.ack(Vector(0x31));
    assert!(a.write(reg::EOI, 0, 0).eoi.is_some());
    assert!(a.write(reg::EOI, 0, 0).is_none());
    assert_eq!((a.irr(), a.isr()), ([0; 8], [0; 8]));
}

#[test]
fn every_vector_through() {
    let mut a = xapic();
    for v in 16..=255u8 {
        assert!(a.accept(Vector(v), TriggerMode::Edge));
        assert_eq!(a.read(reg::IRR + u32::from(v / 32) * 16, 0), 1 << (v & 31));
        assert_eq!(a.pending(), Some(Vector(v)));
        a.ack(Vector(v));
        assert_eq!(a.read(reg::ISR + u32::from(v / 32) * 16, 0), 1 << (v & 31));
        assert_eq!(eoi_of(a.eoi()), Some((v, false, false)));
    }
}

#[test]
fn tpr_cr8_ppr() {
    let mut a = xapic();
    assert!(a.accept(Vector(0x45), TriggerMode::Edge));
    assert!(a.write(reg::TPR, 0x4f, 0).pending);
    assert_eq!((a.cr8(), a.ppr(), a.pending()), (4, 0x4f, None));
    assert_eq!(a.cr8_threshold(), 4);
    a.set_cr8(3);
    assert_eq!(
        (a.tpr(), a.pending(), a.cr8_threshold()),
        (0x30, Some(Vector(0x45)), 0)
    );
    a.ack(Vector(0x45));
    // PPR: task priority wins only with a class at least as high.
    assert_eq!(a.ppr(), 0x40);
    let _ = a.write(reg::TPR, 0x41, 0);
    assert_eq!(a.ppr(), 0x41);
    a.set_cr8(0xff);
    assert_eq!(a.ppr(), 0xf0);
    let _ = a.write(reg::TPR, 0xffff_ff12, 0);
    assert_eq!(a.read(reg::TPR, 0), 0x12);
}

#[test]
fn level_eoi_and_suppression() {
    let mut a = xapic();
    assert!(a.accept(Vector(0x61), TriggerMode::Level));
    a.ack(Vector(0x61));
    assert_eq!(a.tmr()[3], 2);
    assert_eq!(eoi_of(a.eoi()), Some((0x61, true, true)));
    // An edge on the same vector takes the TMR bit back.
    assert!(a.accept(Vector(0x61), TriggerMode::Edge));
    assert_eq!(a.tmr()[3], 0);
    let mut a = new(
        1,
        false,
        false,
        Features {
            suppress_eoi: true,
            honour_suppress_eoi: true,
            ..FEATURES
        },
        1,
    );
    assert_eq!(a.read(reg::VERSION, 0), 0x0105_0014);
    let _ = a.write(reg::SVR, 0x11ff, 0);
    assert!(a.accept(Vector(0x61), TriggerMode::Level));
    a.ack(Vector(0x61));
    assert_eq!(eoi_of(a.eoi()), Some((0x61, true, false)));
    // Where suppression is not offered the bit does not stick.
    let mut a = fresh();
    let _ = a.write(reg::SVR, 0xffff_ffff, 0);
    assert_eq!(a.read(reg::SVR, 0), 0x3ff);
}

#[test]
fn bitmap_accept() {
    let mut a = xapic();
    let mut irr = [0u32; 8];
    let mut level = [0u32; 8];
    irr[1] = 1 << 3 | 1;
    irr[7] = 1 << 31;
    level[1] = 1 << 3 | 1 << 9;
    a.accept_bitmap(&irr, &level);
    assert_eq!(a.irr(), irr);
    assert_eq!(a.tmr()[1], 1 << 3);
    assert_eq!(a.pending(), Some(Vector(255)));
    // When a vector comes as an edge, its EOI stays inside again.
    a.accept_bitmap(&irr, &[0; 8]);
    assert_eq!(a.tmr(), [0; 8]);
    // What was accepted before software disabled the APIC is not lost.
    let mut off = xapic();
    let _ = off.write(reg::SVR, 0xff, 0);
    off.accept_bitmap(&irr, &level);
    assert_eq!(off.irr(), irr);
}

/// Vectors below 16 are taken and wait; nothing is noted of them or of registers that do not exist.
#[test]
fn vectors_that_nobody_delivers() {
    let mut a = xapic();
    let _ = a.write(reg::LVT_ERROR, 0x44, 0);
    for v in 0..16u8 {
        assert!(a.accept(Vector(v), TriggerMode::Edge));
        assert_eq!(a.pending(), None);
    }
    assert_eq!(a.irr(), [0xffff, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(a.cr8_threshold(), 0);
    let _ = a.write(reg::LVT_TIMER, 0x5, 0);
    let _ = a.write(reg::INITIAL_COUNT, 10, 0);
    assert!(a.timer_expired(1000, 0));
    assert_eq!(
        a.write(reg::ICR, 0x0000_4005, 0).ipi.unwrap().vector,
        Vector(5)
    );
    for offset in (0..0x1000).step_by(16) {
        let _ = a.read(offset, 0);
        let known = (0x20..=0x3f0).contains(&offset);
        if !known || [0x40, 0x50, 0x60, 0x70, 0x290, 0x2f0, 0x3a0, 0x3f0].contains(&offset) {
            assert_eq!(a.read(offset, 0), 0, "{offset:#x}");
            assert!(a.write(offset, 0x50, 0).is_none(), "{offset:#x}");
        }
    }
    assert!(a.write(reg::ESR, 0x1234, 0).is_none());
    assert_eq!((a.read(reg::ESR, 0), a.pending()), (0, None));
    // One that a state brings stays.
    let mut image = a.get_state(false, 0);
    image[0x28] = 0x40;
    let _ = a.set_state(&image, false, 0).unwrap();
    let _ = a.write(reg::ESR, 0, 0);
    assert_eq!(a.read(reg::ESR, 0), 0x40);
}

#[test]
fn narrow_reads() {
    let a = {
        let mut a = xapic();
        let _ = a.write(reg::ID, 0x0500_0000, 0);
        a
    };
    let read = |offset: u32, len: usize| {
        let mut bytes = [0x5a; 8];
        a.read_bytes(offset, &mut bytes[..len], 0);
        assert!(bytes[len..].iter().all(|b| *b == 0x5a));
        bytes[..len]
            .iter()
            .rev()
            .fold(0u64, |v, b| v << 8 | u64::from(*b))
    };
    assert_eq!(
        (read(0x23, 1), read(0x22, 2), read(0x20, 4)),
        (5, 0x500, 0x500_0000)
    );
    assert_eq!(
        (read(0x30, 1), read(0x32, 1), read(0x30, 2), read(0x31, 2)),
        (0x14, 5, 0x14, 0x500)
    );
    // Across a register's end, or beyond it, there is nothing.
    assert_eq!(
        (
            read(0x23, 2),
            read(0x22, 4),
            read(0x24, 1),
            read(0x20, 8),
            read(0x2f, 1)
        ),
        (0, 0, 0, 0, 0)
    );
    let mut off = xapic();
    let _ = off.set_apic_base(base::DEFAULT_ADDRESS, false).unwrap();
    let mut bytes = [0; 8];
    off.read_bytes(0x20, &mut bytes, 0);
    assert_eq!(bytes, [0xff; 8]);
}

#[test]
fn software_disable_masks_lvt() {
    let mut a = xapic();
    let _ = a.write(reg::LVT_LINT0, 0x700, 0);
    assert!(a.lint0_accepts_extint());
    assert!(a.accept(Vector(0x50), TriggerMode::Edge));
    let action = a.write(reg::SVR, 0xff, 0);
    assert!(action.addr && action.lint0 && action.timer);
    assert_eq!(a.read(reg::LVT_LINT0, 0), 0x700 | MASKED);
    // What is in IRR stays deliverable; nothing new is accepted.
    assert_eq!(a.pending(), Some(Vector(0x50)));
    assert!(!a.accept(Vector(0x51), TriggerMode::Edge));
    let _ = a.write(reg::LVT_ERROR, 0x44, 0);
    assert_eq!(a.read(reg::LVT_ERROR, 0), 0x44 | MASKED);
    let _ = a.write(reg::SVR, 0x1ff, 0);
    // The masks stay until software clears them.
    assert_eq!(a.read(reg::LVT_LINT0, 0), 0x700 | MASKED);
}

#[test]
fn lvt_masks() {
    let mut a = xapic();
    for (offset, value) in [
        (reg::LVT_TIMER, 0x0007_00ff),
        (reg::LVT_THERMAL, 0x0001_07ff),
        (reg::LVT_PERF, 0x0001_07ff),
        (reg::LVT_LINT0, 0x0001_a7ff),
        (reg::LVT_LINT1, 0x0001_a7ff),
        (reg::LVT_ERROR, 0x0001_00ff),
    ] {
        let _ = a.write(offset, 0xffff_ffff, 0);
        assert_eq!(a.read(offset, 0), value, "{offset:#x}");
    }
    a.set_features(Features {
        tsc_deadline: false,
        ..FEATURES
    });
    let _ = a.write(reg::LVT_TIMER, 0xffff_ffff, 0);
    assert_eq!(a.read(reg::LVT_TIMER, 0), 0x0003_00ff);
}

#[test]
fn icr_sends() {
    let mut a = xapic();
    assert!(a.write(reg::ICR2, 0x0512_3456, 0).is_none());
    let m = a.write(reg::ICR, 0x0000_5841, 0).ipi.unwrap();
    assert_eq!((m.dest, m.dest_mode), (5, DestMode::Logical));
    assert_eq!(
        (m.delivery, m.vector, m.dest_is_8bit),
        (DeliveryMode::Fixed, Vector(0x41), true)
    );
    assert_eq!(a.read(reg::ICR, 0), 0x4841, "delivery status reads idle");
    assert_eq!(a.read(reg::ICR2, 0), 0x0500_0000);
    // INIT, de-assert, start-up.
    assert_eq!(
        a.write(reg::ICR, 0x000c_c500, 0).ipi.unwrap().delivery,
        DeliveryMode::Init
    );
    assert!(a.write(reg::ICR, 0x000c_8500, 0).is_none());
    let m = a.write(reg::ICR, 0x000c_4609, 0).ipi.unwrap();
    assert_eq!(
        (m.delivery, m.vector, m.shorthand),
        (DeliveryMode::StartUp, Vector(9), Shorthand::AllButSelf)
    );
    // A level is one; to oneself it goes the long way, too.
    let m = a.write(reg::ICR, 0x0000_c041, 0).ipi.unwrap();
    assert_eq!((m.trigger, m.level), (TriggerMode::Level, true));
    let m = a.write(reg::ICR, 0x0004_8041, 0).ipi.unwrap();
    assert_eq!((m.trigger, m.level), (TriggerMode::Level, false));
    // Reserved bits stay.
    let _ = a.write(reg::ICR, 0xfff3_2041, 0);
    assert_eq!(a.read(reg::ICR, 0), 0xfff3_2041);
    // To oneself.
    let action = a.write(reg::ICR, 0x0004_4077, 0);
    assert!(action.pending && action.ipi.is_none());
    assert_eq!(a.pending(), Some(Vector(0x77)));
    let nmi = a.write(reg::ICR, 0x0004_4400, 0).ipi.unwrap();
    assert_eq!(
        (nmi.delivery, nmi.shorthand),
        (DeliveryMode::Nmi, Shorthand::Myself)
    );
}

#[test]
fn x2apic_registers() {
    let mut a = new(0x123, false, false, FEATURES, 1);
    assert_eq!(a.rdmsr(0x802, 0), Err(Gp));
    assert_eq!(a.wrmsr(0x80b, 0, 0), Err(Gp));
    let _ = a.set_apic_base(BASE | base::EXTD, false).unwrap();
    assert_eq!(a.page(), None);
    assert_eq!(a.rdmsr(0x802, 0), Ok(0x123));
    assert_eq!(a.rdmsr(0x80d, 0), Ok(0x0012_0008));
    let _ = a.wrmsr(0x80f, 0x1ff, 0).unwrap();
    let m = a
        .wrmsr(0x830, 0x0000_0456_0000_0841, 0)
        .unwrap()
        .ipi
        .unwrap();
    assert_eq!((m.dest, m.dest_is_8bit), (0x456, false));
    assert_eq!(a.rdmsr(0x830, 0), Ok(0x0000_0456_0000_0841));
    let _ = a.wrmsr(0x830, 0x1041, 0).unwrap();
    assert_eq!(
        a.rdmsr(0x830, 0),
        Ok(0x41),
        "delivery status is dropped, not a fault"
    );
    assert!(a.wrmsr(0x83f, 0x99, 0).unwrap().pending);
    assert_eq!(a.pending(), Some(Vector(0x99)));
    a.ack(Vector(0x99));
    assert_eq!(a.rdmsr(0x814, 0), Ok(1 << 25));
    assert_eq!(
        eoi_of(a.wrmsr(0x80b, 0, 0).unwrap()),
        Some((0x99, false, false))
    );
    assert!(a.wrmsr(0x83f, 0x5, 0).unwrap().pending);
    assert_eq!(a.rdmsr(0x820, 0), Ok(1 << 5));
    let _ = a.wrmsr(0x828, 0, 0).unwrap();
    assert_eq!(a.rdmsr(0x828, 0), Ok(0));
}

#[test]
fn x2apic_faults() {
    let mut a = x2apic();
    // SDM 3A table 11-6: what can be read and written.
    let readable = [
        0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f, 0x828, 0x830, 0x832, 0x833, 0x834, 0x835, 0x836,
        0x837, 0x838, 0x839, 0x83e,
    ];
    let writable = [
        0x808, 0x80b, 0x80f, 0x828, 0x830, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x838, 0x83e,
        0x83f,
    ];
    for msr in 0x7f0..0x910 {
        let bitmap = (0x810..0x828).contains(&msr);
        assert_eq!(
            a.rdmsr(msr, 0).is_ok(),
            bitmap || readable.contains(&msr),
            "read {msr:#x}"
        );
        let value = if msr == 0x83f { 0x20 } else { 0 };
        assert_eq!(
            a.wrmsr(msr, value, 0).is_ok(),
            writable.contains(&msr),
            "write {msr:#x}"
        );
    }
    let mut a = x2apic();
    for (msr, value) in [
        (0x808, 1 << 32),
        (0x80b, 1 << 63),
        (0x80f, 1 << 32),
        (0x828, 1),
        (0x830, 1 << 13),
        (0x830, 1 << 16),
        (0x830, 1 << 20),
        (0x832, 1 << 32),
        (0x838, 1 << 32),
        (0x83e, 1 << 32),
        (0x83f, 0x100),
    ] {
        assert_eq!(a.wrmsr(msr, value, 0), Err(Gp), "{msr:#x} {value:#x}");
    }
    // Elsewhere reserved and read-only bits are dropped.
    for (msr, value) in [
        (0x808, 0xff),
        (0x80f, 0x3ff),
        (0x832, 0x7_00ff),
        (0x833, 0x1_07ff),
        (0x835, 0x1_a7ff),
        (0x837, 0x1_00ff),
        (0x83e, 0xb),
    ] {
        assert!(a.wrmsr(msr, 0xffff_ffff, 0).is_ok(), "{msr:#x}");
        assert_eq!(a.rdmsr(msr, 0), Ok(value), "{msr:#x}");
    }
    assert!(a.wrmsr(0x80b, 1, 0).unwrap().is_none());
    assert_eq!(a.rdmsr(u32::MAX, 0), Err(Gp));
    assert_eq!(a.rdmsr(0, 0), Err(Gp));
}

#[test]
fn xapic_addressing_registers() {
    let mut a = xapic();
    assert!(a.write(reg::LDR, 0x02ff_ffff, 0).addr);
    assert_eq!(a.read(reg::LDR, 0), 0x0200_0000);
    assert!(a.write(reg::DFR, 0, 0).addr);
    assert_eq!(a.read(reg::DFR, 0), 0x0fff_ffff);
    let addr = a.addr();
    assert_eq!(
        (addr.ldr, addr.dfr, addr.xapic_id, addr.id),
        (2, Dfr::CLUSTER, 1, 1)
    );
    assert!(addr.hw_enabled && addr.sw_enabled && !addr.x2apic);
    for offset in [
        reg::VERSION,
        reg::PPR,
        reg::CURRENT_COUNT,
        reg::ISR,
        reg::TMR,
        0x270,
        0x90,
        0xc0,
    ] {
        assert!(a.write(offset, 0xffff_ffff, 0).is_none(), "{offset:#x}");
    }
    assert_eq!((a.irr(), a.isr(), a.tmr()), ([0; 8], [0; 8], [0; 8]));
    assert_eq!(a.read(reg::EOI, 0), 0);
    let _ = a.write(reg::ESR, 0, 0);
    assert_eq!(a.read(reg::ESR, 0), 0);
}

#[test]
fn one_shot_timer() {
    let mut a = xapic();
    let _ = a.write(reg::LVT_TIMER, 0x40, 0);
    let _ = a.write(reg::DIVIDE, 0b1011, 0);
    assert!(a.write(reg::INITIAL_COUNT, 1000, 500).timer);
    assert_eq!(a.timer_arm(), TimerArm::AtNs(1500));
    assert_eq!(a.read(reg::CURRENT_COUNT, 500), 1000);
    assert_eq!(a.read(reg::CURRENT_COUNT, 1499), 1);
    assert_eq!(a.read(reg::CURRENT_COUNT, 1500), 0);
    assert!(!a.timer_expired(1499, 0));
    assert_eq!(a.timer_arm(), TimerArm::AtNs(1500));
    assert!(a.timer_expired(1501, 0));
    assert_eq!(a.pending(), Some(Vector(0x40)));
    assert_eq!(a.timer_arm(), TimerArm::Off);
    assert!(!a.timer_expired(3000, 0));
    // Count 0 stops.
    let _ = a.write(reg::INITIAL_COUNT, 1000, 2000);
    let _ = a.write(reg::INITIAL_COUNT, 0, 2100);
    assert_eq!(
        (a.timer_arm(), a.read(reg::CURRENT_COUNT, 2100)),
        (TimerArm::Off, 0)
    );
}

#[test]
fn a_saved_count_that_is_over() {
    let mut a = xapic();
    let _ = a.write(reg::LVT_TIMER, 0x40, 0);
    let _ = a.write(reg::DIVIDE, 0b1011, 0);
    let _ = a.write(reg::INITIAL_COUNT, 1000, 500);
    assert!(a.timer_expired(1500, 0));
    let image = a.get_state(true, 2000);
    let mut b = xapic();
    let _ = b.set_state(&image, true, 7000).unwrap();
    assert_eq!(b.timer_arm(), TimerArm::AtNs(7000));
    assert!(b.timer_expired(7000, 0));
    assert_eq!(b.timer_arm(), TimerArm::Off);
}

#[test]
fn divide_configuration() {
    for (dcr, divisor) in [
        (0, 2),
        (1, 4),
        (2, 8),
        (3, 16),
        (8, 32),
        (9, 64),
        (10, 128),
        (11, 1),
    ] {
        let mut a = new(0, false, false, FEATURES, 10);
        let _ = a.write(reg::SVR, 0x1ff, 0);
        let _ = a.write(reg::LVT_TIMER, 0x40, 0);
        let _ = a.write(reg::DIVIDE, dcr, 0);
        let _ = a.write(reg::INITIAL_COUNT, 100, 7);
        assert_eq!(a.timer_arm(), TimerArm::AtNs(7 + 1000 * divisor));
    }
    // Changing it on the way stretches the rest.
    let mut a = xapic();
    let _ = a.write(reg::LVT_TIMER, 0x40, 0);
    let _ = a.write(reg::DIVIDE, 0b1011, 0);
    let _ = a.write(reg::INITIAL_COUNT, 1000, 0);
    assert!(a.write(reg::DIVIDE, 0, 400).timer);
    assert_eq!(a.timer_arm(), TimerArm::AtNs(400 + 1200));
    assert_eq!(a.read(reg::CURRENT_COUNT, 400), 600);
}

#[test]
fn periodic_timer() {
    let mut a = xapic();
    let _ = a.write(reg::LVT_TIMER, 0x2_0040, 0);
    let _ = a.write(reg::DIVIDE, 0b1011, 0);
    let _ = a.write(reg::INITIAL_COUNT, 1_000_000, 0);
    assert!(a.timer_expired(1_000_001, 0));
    assert_eq!(a.timer_arm(), TimerArm::AtNs(2_000_000));
    // Late by several periods: one interrupt, the phase stays.
    assert!(a.timer_expired(7_500_000, 0));
    assert_eq!(a.timer_arm(), TimerArm::AtNs(8_000_000));
    assert_eq!(a.read(reg::CURRENT_COUNT, 7_600_000), 400_000);
    assert_eq!(a.read(reg::CURRENT_COUNT, 8_600_000), 400_000);
    // Storm protection.
    let _ = a.write(reg::INITIAL_COUNT, 1, 1_000_000);
    assert_eq!(a.timer_arm(), TimerArm::AtNs(1_000_000 + MIN_PERIOD_NS));
    assert_eq!(a.read(reg::CURRENT_COUNT, 1_000_000), 1);
}

#[test]
fn masked_timer_loses_expiries() {
    let mut a = xapic();
    let _ = a.write(reg::DIVIDE, 0b1011, 0);
    let _ = a.write(reg::LVT_TIMER, MASKED | 0x40, 0);
    let _ = a.write(reg::INITIAL_COUNT, 100_000, 0);
    assert_eq!(a.timer_arm(), TimerArm::Off);
    assert!(a.write(reg::LVT_TIMER, 0x40, 50_000).timer);
    assert_eq!(a.timer_arm(), TimerArm::AtNs(100_000));
    let _ = a.write(reg::LVT_TIMER, MASKED | 0x40, 60_000);
    assert!(!a.timer_expired(100_000, 0));
    let _ = a.write(reg::LVT_TIMER, 0x40, 150_000);
    assert_eq!(a.timer_arm(), TimerArm::Off);
    let _ = a.write(reg::LVT_TIMER, MASKED | 0x2_0040, 150_000);
    let _ = a.write(reg::INITIAL_COUNT, 100_000, 200_000);
    let _ = a.write(reg::LVT_TIMER, 0x2_0040, 550_000);
    assert_eq!(a.timer_arm(), TimerArm::AtNs(600_000));
}

#[test]
fn tsc_deadline() {
    let mut a = xapic();
    // Ignored in other modes (SDM 3A 11.5.4.1).
    assert!(a.set_tsc_deadline(77).is_none());
    assert_eq!(a.tsc_deadline(), 0);
    let _ = a.write(reg::LVT_TIMER, 0x2_0040, 0);
    let _ = a.write(reg::INITIAL_COUNT, 100_000, 0);
    // Entering the mode disarms.
    assert!(a.write(reg::LVT_TIMER, 0x4_0040, 0).timer);
    assert_eq!(a.timer_arm(), TimerArm::Off);
    assert_eq!(
        (a.read(reg::INITIAL_COUNT, 0), a.read(reg::CURRENT_COUNT, 0)),
        (0, 0)
    );
    assert!(a.write(reg::INITIAL_COUNT, 55, 0).is_none());
    assert_eq!(a.read(reg::INITIAL_COUNT, 0), 0);
    assert!(a.set_tsc_deadline(5000).timer);
    assert_eq!(
        (a.timer_arm(), a.tsc_deadline()),
        (TimerArm::AtTsc(5000), 5000)
    );
    assert!(!a.timer_expired(u64::MAX, 4999));
    assert!(a.timer_expired(0, 5000));
    assert_eq!((a.timer_arm(), a.tsc_deadline()), (TimerArm::Off, 0));
    assert_eq!(a.pending(), Some(Vector(0x40)));
    // Masked at expiry: disarmed without an interrupt.
    let _ = a.set_tsc_deadline(6000);
    let _ = a.write(reg::LVT_TIMER, MASKED | 0x4_0041, 0);
    assert_eq!(a.timer_arm(), TimerArm::AtTsc(6000));
    assert!(!a.timer_expired(0, 6000));
    assert_eq!(a.tsc_deadline(), 0);
    // Zero disarms, leaving the mode disarms.
    let _ = a.set_tsc_deadline(7000);
    let _ = a.set_tsc_deadline(0);
    assert_eq!(a.timer_arm(), TimerArm::Off);
    let _ = a.set_tsc_deadline(7000);
    let _ = a.write(reg::LVT_TIMER, 0x40, 0);
    assert_eq!((a.timer_arm(), a.tsc_deadline()), (TimerArm::Off, 0));
}

#[test]
fn timer_extremes_do_not_overflow() {
    let mut a = new(0, false, false, FEATURES, u32::MAX);
    let _ = a.write(reg::SVR, 0x1ff, 0);
    let _ = a.write(reg::LVT_TIMER, 0x2_0040, 0);
    let _ = a.write(reg::DIVIDE, 0b1010, 0);
    let _ = a.write(reg::INITIAL_COUNT, u32::MAX, u64::MAX - 1);
    assert!(matches!(a.timer_arm(), TimerArm::AtNs(_)));
    let _ = a.timer_expired(u64::MAX, u64::MAX);
    let _ = a.read(reg::CURRENT_COUNT, 0);
    let _ = a.read(reg::CURRENT_COUNT, u64::MAX);
    let mut a = new(0, false, false, FEATURES, 0);
    let _ = a.write(reg::SVR, 0x1ff, 0);
    let _ = a.write(reg::LVT_TIMER, 0x2_0040, 0);
    let _ = a.write(reg::INITIAL_COUNT, u32::MAX, 5);
    let _ = a.timer_expired(u64::MAX, 0);
    let _ = a.read(reg::CURRENT_COUNT, 7);
}

/// What LINT0 lets through to the processor.
#[test]
fn lint0() {
    let mut a = xapic();
    let _ = a.write(reg::LVT_LINT0, 0x700, 0);
    assert!(a.lint0_accepts_extint() && !a.lint0_is_nmi());
    let _ = a.write(reg::LVT_LINT0, 0x400, 0);
    assert!(a.lint0_is_nmi() && !a.lint0_accepts_extint());
    let _ = a.write(reg::LVT_LINT0, 0x8055, 0);
    assert!(!a.lint0_is_nmi() && !a.lint0_accepts_extint());
}

/// Remote IRR of a level-triggered LINT0, which a state may bring, ends with the EOI.
#[test]
fn remote_irr() {
    let mut a = xapic();
    assert!(a.accept(Vector(0x55), TriggerMode::Level));
    a.ack(Vector(0x55));
    let mut image = a.get_state(false, 0);
    image[0x35] = 0xc055;
    let _ = a.set_state(&image, false, 0).unwrap();
    assert_eq!(a.read(reg::LVT_LINT0, 0), 0xc055);
    let _ = a.eoi();
    assert_eq!(a.read(reg::LVT_LINT0, 0), 0x8055);
}

#[test]
fn state_round_trip() {
    let mut a = xapic();
    let _ = a.write(reg::LVT_TIMER, 0x2_0040, 0);
    let _ = a.write(reg::DIVIDE, 0b1011, 0);
    let _ = a.write(reg::INITIAL_COUNT, 1_000_000, 0);
    assert!(a.accept(Vector(0x50), TriggerMode::Level));
    assert!(a.accept(Vector(0x90), TriggerMode::Edge));
    a.ack(Vector(0x90));
    let image = a.get_state(false, 30_000);
    assert_eq!(image[0x39], 970_000);
    let mut b = fresh();
    assert!(b.set_state(&image, false, 1_000_000).unwrap().timer);
    assert_eq!(b.timer_arm(), TimerArm::AtNs(1_970_000));
    assert_eq!(b.get_state(false, 1_000_000), image);
    assert_eq!(
        (b.highest_isr(), b.ppr(), b.pending()),
        (Some(Vector(0x90)), 0x90, None)
    );
    let _ = b.eoi();
    assert_eq!(b.pending(), Some(Vector(0x50)));
    // A deadline is not part of it, and stays while the mode does; the mode may be there before the model has it.
    let mut a = xapic();
    let _ = a.write(reg::LVT_TIMER, 0x4_0040, 0);
    let image = a.get_state(false, 0);
    assert!(a.set_tsc_deadline(5000).timer);
    assert!(a.set_state(&image, false, 0).unwrap().timer);
    assert_eq!(
        (a.timer_arm(), a.tsc_deadline()),
        (TimerArm::AtTsc(5000), 5000)
    );
    let _ = a.set_state(&xapic().get_state(false, 0), false, 0).unwrap();
    assert_eq!((a.timer_arm(), a.tsc_deadline()), (TimerArm::Off, 0));
    let plain = Features {
        tsc_deadline: false,
        ..FEATURES
    };
    let mut b = new(1, false, false, plain, 1);
    let _ = b.set_state(&image, false, 0).unwrap();
    assert_eq!(b.get_state(false, 0)[0x32], 0x4_0040);
    assert!(b.set_tsc_deadline(6000).is_none());
    b.set_features(FEATURES);
    assert!(b.set_tsc_deadline(6000).timer);
}

/// A one-shot countdown that is over before its owner has taken notice: the image still brings the interrupt.
#[test]
fn state_of_a_due_timer() {
    let mut a = xapic();
    let _ = a.write(reg::LVT_TIMER, 0x40, 0);
    let _ = a.write(reg::DIVIDE, 0b1011, 0);
    let _ = a.write(reg::INITIAL_COUNT, 1000, 0);
    let image = a.get_state(false, 5000);
    assert_eq!((image[0x39], image[0x22]), (1, 0));
    let mut b = fresh();
    assert!(b.set_state(&image, false, 9000).unwrap().timer);
    assert_eq!(b.timer_arm(), TimerArm::AtNs(9001));
    assert!(b.timer_expired(9001, 0));
    assert_eq!(b.pending(), Some(Vector(0x40)));
    // Noticed, or masked: it is over.
    assert!(a.timer_expired(5001, 0));
    let image = a.get_state(false, 5002);
    assert_eq!((image[0x39], image[0x22]), (0, 1));
    let mut c = xapic();
    let _ = c.write(reg::LVT_TIMER, 0x1_0040, 0);
    let _ = c.write(reg::INITIAL_COUNT, 1000, 0);
    assert_eq!(c.get_state(false, 5000)[0x39], 0);
}

#[test]
fn state_id_formats() {
    let mut a = new(0x123, false, false, FEATURES, 1);
    assert_eq!(a.get_state(true, 0)[2], 0x2300_0000);
    let _ = a.set_apic_base(BASE | base::EXTD, false).unwrap();
    let wide = a.get_state(true, 0);
    let narrow = a.get_state(false, 0);
    assert_eq!((wide[2], wide[0xd]), (0x123, 0x0012_0008));
    assert_eq!(narrow[2], 0x2300_0000);
    assert!(a.set_state(&wide, true, 0).is_ok());
    assert_eq!(a.set_state(&narrow, true, 0), Err(BadState));
    let mut odd = narrow;
    odd[2] = 0x7700_0000;
    assert!(a.set_state(&odd, false, 0).is_ok());
    assert_eq!(a.rdmsr(0x802, 0), Ok(0x123));
    // ICR in x2APIC mode: upper half in the ICR2 word.
    let _ = a.wrmsr(0x830, 0x89ab_cdef_0000_0041, 0).unwrap();
    assert_eq!(a.get_state(true, 0)[0x31], 0x89ab_cdef);
}

#[test]
fn state_of_disabled_apic_keeps_extint() {
    // Clients patch LINT0 and LINT1 before the guest runs.
    let mut a = fresh();
    let mut image = a.get_state(false, 0);
    image[0x35] = 0x700;
    image[0x36] = 0x400;
    let _ = a.set_state(&image, false, 0).unwrap();
    assert!(a.lint0_accepts_extint());
    assert_eq!(a.get_state(false, 0)[0x36], 0x400);
}

#[test]
fn hostile_state_is_sanitised() {
    let mut a = x2apic();
    let _ = a.set_state(&[u32::MAX; 64], false, 0).unwrap();
    let image = a.get_state(false, 0);
    assert_eq!((image[0x10], image[0x20]), (u32::MAX, u32::MAX));
    assert_eq!(image[0x30], !0x1000);
    assert_eq!(image[0x0f], 0x3ff);
    assert_eq!(image[3], 0x50014);
    assert_eq!(image[0x32], 0x0007_00ff);
    assert_eq!((image[0], image[0x3f]), (0, 0));
    assert_eq!(a.highest_irr(), Some(Vector(255)));
}

/// xorshift64* generator.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn naive_highest(words: [u32; 8]) -> Option<Vector> {
    (0..=255u8)
        .rev()
        .find(|v| words[usize::from(v / 32)] >> (v & 31) & 1 != 0)
        .map(Vector)
}

fn check(a: &Lapic<Image>) {
    assert_eq!(a.highest_irr(), naive_highest(a.irr()));
    assert_eq!(a.highest_isr(), naive_highest(a.isr()));
    let isr = a.highest_isr().map_or(0, |v| v.0);
    let ppr = if a.tpr() >> 4 >= isr >> 4 {
        a.tpr()
    } else {
        isr & 0xf0
    };
    assert_eq!(a.ppr(), ppr);
    if let Some(v) = a.pending() {
        assert!(v.0 >> 4 > ppr >> 4 && a.hw_enabled());
    }
    assert_eq!(ApicAddr::from_bits(a.addr().to_bits()), a.addr());
    if let TimerArm::AtTsc(t) = a.timer_arm() {
        assert_eq!(t, a.tsc_deadline());
    }
}

#[test]
fn random_walk() {
    for seed in 1..9u64 {
        let mut r = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let features = Features {
            suppress_eoi: seed & 1 != 0,
            honour_suppress_eoi: seed & 1 != 0,
            tsc_deadline: seed & 2 != 0,
            ..FEATURES
        };
        let mut a = new(seed as u32, seed & 4 != 0, false, features, 1);
        let mut now = 0u64;
        for _ in 0..20_000 {
            let x = r.next();
            let y = r.next();
            now = if x & 0xfff == 0 {
                y
            } else {
                now.wrapping_add(y & 0xffff)
            };
            let value = if x & 0x1_0000 != 0 {
                y as u32
            } else {
                y as u32 & 0x7_ffff
            };
            match x >> 60 {
                0 | 1 => {
                    let offset = (x as u32 & 0xff) << 4;
                    let _ = a.read(offset, now);
                }
                2..=4 => {
                    let offset = if x & 0x2_0000 != 0 {
                        x as u32
                    } else {
                        (x as u32 & 0x3f) << 4
                    };
                    let _ = a.write(offset, value, now);
                }
                5 => drop(a.rdmsr(0x800 + (x as u32 & 0x7f), now)),
                6 => drop(a.wrmsr(0x800 + (x as u32 & 0x3f), y >> (x >> 8 & 63), now)),
                7 | 8 => drop(a.accept(Vector(x as u8), TriggerMode::from_bit(x & 0x100 != 0))),
                9 => {
                    let words = [(y & x) as u32; 8];
                    a.accept_bitmap(&words, &[x as u32; 8]);
                }
                10 | 11 => {
                    if let Some(v) = a.pending() {
                        a.ack(v);
                        assert!(a.highest_isr() == Some(v));
                    }
                }
                12 => {
                    let before = a.highest_isr();
                    assert_eq!(a.eoi().eoi.map(|e| e.vector), before);
                }
                13 => {
                    let _ = a.timer_expired(now, y);
                    let _ = a.set_tsc_deadline(y >> 1);
                }
                14 if x & 0xf0 == 0 => {
                    let _ = a.set_apic_base(y & 0xfd00 | base::DEFAULT_ADDRESS, x & 1 != 0);
                    let _ = a.write(reg::SVR, 0x1ff, now);
                }
                14 => drop(a.eoi()),
                _ => {
                    let image = a.get_state(x & 1 != 0, now);
                    if x & 0xff00 == 0 {
                        let mut noisy = image;
                        noisy[x as usize & 63] ^= y as u32;
                        let _ = a.set_state(&noisy, x & 1 != 0, now);
                    } else {
                        let mut b = a.clone();
                        let _ = b.set_state(&image, x & 1 != 0, now).unwrap();
                        let mut copy = b.get_state(x & 1 != 0, now);
                        if image[0x39] == 0 {
                            // A finished countdown restarts if it was made periodic since.
                            copy[0x39] = 0;
                        }
                        assert_eq!(copy, image);
                    }
                }
            }
            check(&a);
        }
    }
}

/// A processor that virtualises the APIC carries requests, EOIs and plain writes out in the page; the model follows.
#[test]
fn virtualised() {
    let mut a = xapic();
    assert_eq!(a.take_status(), Some(0));
    assert_eq!(a.take_status(), None);
    assert!(a.accept(Vector(0x51), TriggerMode::Level));
    assert!(a.accept(Vector(0x42), TriggerMode::Edge));
    assert_eq!(a.take_status(), Some(0x51));

    // The processor delivers 51H, and the guest ends it: all that is left is what follows the EOI.
    let mut image = a.get_state(false, 0);
    image[(reg::IRR >> 4) as usize + 2] &= !(1 << 17);
    let _ = a.set_state(&image, false, 0).unwrap();
    a.guest_ran();
    assert_eq!(a.highest_isr(), None);
    let eoi = a.ended(Vector(0x51)).eoi.unwrap();
    assert!(eoi.level && eoi.broadcast && eoi.vector == Vector(0x51));
    assert_eq!(a.highest_irr(), Some(Vector(0x42)));
    assert_eq!(a.take_status(), Some(0x42));

    // A software EOI moves the status too.
    a.ack(Vector(0x42));
    assert_eq!(a.take_status(), Some(0x4200));
    let _ = a.eoi();
    assert_eq!(a.take_status(), Some(0));
}

/// A page of registers that somebody else writes too.
#[derive(Clone)]
struct Shared(std::rc::Rc<std::cell::RefCell<[u32; 64]>>);

impl rvmm_logic::x86::irqchip::lapic::Registers for Shared {
    fn get(&self, n: usize) -> u32 {
        self.0.borrow()[n]
    }
    fn set(&mut self, n: usize, value: u32) {
        self.0.borrow_mut()[n] = value;
    }
}

/// Writes that the processor has stored already have the effects of those that exit before they happen.
#[test]
fn stored_writes() {
    let page = Shared(std::rc::Rc::new(std::cell::RefCell::new([0; 64])));
    let mut a = Lapic::with_registers(page.clone(), 1, false, false, FEATURES, 1);
    let mut plain = fresh();
    let writes = [
        (reg::SVR, 0x1ff),
        (reg::LVT_TIMER, !(1 << 18)),
        (reg::DIVIDE, 0xff),
        (reg::LDR, 0x0123_4567),
        (reg::DFR, 0x0),
        (reg::LVT_LINT0, 0x0001_8740),
        (reg::INITIAL_COUNT, 1000),
        (reg::ICR2, 0x0200_00ff),
        (reg::ICR, 0x0000_40f1),
        (reg::ESR, 7),
        (reg::SVR, 0xff),
    ];
    for (offset, value) in writes {
        let wanted = plain.write(offset, value, 5);
        page.0.borrow_mut()[(offset >> 4) as usize] = value;
        if offset != reg::ICR2 {
            assert_eq!(a.write_stored(offset, 5), wanted, "{offset:#x}");
        }
    }
    assert_eq!(a.get_state(false, 9), plain.get_state(false, 9));
}

#[test]
fn put_back() {
    const LATER: u64 = 123_456;
    let mut a = xapic();
    let _ = a.write(reg::LVT_TIMER, 0x40, 0);
    let _ = a.write(reg::DIVIDE, 0xb, 0);
    let _ = a.write(reg::INITIAL_COUNT, 50_000, 1000);
    assert!(a.accept(Vector(0x55), TriggerMode::Level));
    a.ack(Vector(0x55));
    assert!(a.accept(Vector(0x66), TriggerMode::Edge));
    let image = a.image();
    let (state, arm) = (a.get_state(false, 2000), a.timer_arm());
    let _ = a.eoi();
    let _ = a.write(reg::TPR, 0x80, 3000);
    let _ = a.write(reg::INITIAL_COUNT, 0, 3000);
    let _ = a.set_apic_base(BASE | base::EXTD, false);
    assert_ne!(a.get_state(false, 2000 + LATER), state);
    a.put_back(&image, LATER);
    assert_eq!(a.get_state(false, 2000 + LATER), state);
    assert!(
        matches!((arm, a.timer_arm()), (TimerArm::AtNs(then), TimerArm::AtNs(now)) if now == then + LATER)
    );
    assert_eq!(
        (a.highest_isr(), a.highest_irr()),
        (Some(Vector(0x55)), Some(Vector(0x66)))
    );
    assert_eq!(a.take_status(), Some(0x5566));
}

#[test]
fn withdrawn_requests() {
    let mut a = xapic();
    for vector in [0x31, 0x71, 0x72] {
        assert!(a.accept(Vector(vector), TriggerMode::Edge));
    }
    let mut asked = [0; 8];
    asked[3] = 1 << 17 | 1 << 3;
    let mut there = [0; 8];
    there[3] = 1 << 17;
    assert_eq!(a.withdraw(&asked), there);
    assert_eq!(a.withdraw(&asked), [0; 8]);
    assert_eq!(a.highest_irr(), Some(Vector(0x72)));
    asked[3] = 1 << 18;
    a.withdraw(&asked);
    assert_eq!(a.highest_irr(), Some(Vector(0x31)));
}
