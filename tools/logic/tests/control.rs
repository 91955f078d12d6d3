// SPDX-License-Identifier: GPL-2.0
//! Control-register and EFER rules: one test per rule.

use rvmm_logic::x86::cpu::control::*;
use rvmm_logic::x86::cpu::cpuid::GuestFeatures;
use rvmm_logic::x86::cpu::regs::{cr0, cr4, efer, Seg, Sregs};

fn full() -> GuestFeatures {
    GuestFeatures {
        maxphyaddr: 40,
        pcid: true,
        xsave: true,
        fsgsbase: true,
        smep: true,
        smap: true,
        umip: true,
        pku: true,
        nx: true,
        lm: true,
        ..GuestFeatures::default()
    }
}

const PROT: u64 = cr0::PE | cr0::ET;
const PAGED: u64 = PROT | cr0::PG;
const LONG: u64 = efer::LME | efer::LMA;

#[test]
fn cr0_values() {
    let ok = |v| cr0_write_check(cr0::ET, v, 0, 0, false);
    assert_eq!(ok(1 << 32), Err(Gp));
    assert_eq!(ok(cr0::PG), Err(Gp), "PG without PE");
    assert_eq!(ok(cr0::NW), Err(Gp), "NW without CD");
    assert!(ok(cr0::NW | cr0::CD).is_ok());
    let w = ok(0x6).unwrap();
    assert_eq!(w.cr0, 0x16, "ET is set");
    assert_eq!(
        ok(1 << 10).unwrap().cr0,
        cr0::ET,
        "reserved bits are dropped"
    );
    assert_eq!(cr0_write_check(PROT, PROT, cr4::CET, 0, false), Err(Gp));
}

#[test]
fn entering_and_leaving_long_mode() {
    let on = |c4, cs_l| cr0_write_check(PROT, PAGED, c4, efer::LME, cs_l);
    assert_eq!(on(0, false), Err(Gp), "needs PAE");
    assert_eq!(on(cr4::PAE, true), Err(Gp), "CS.L must be 0");
    let w = on(cr4::PAE, false).unwrap();
    assert_eq!(w.efer, LONG);
    assert!(!w.load_pdptes);
    let off = |c4, cs_l| cr0_write_check(PAGED, PROT, c4, LONG, cs_l);
    assert_eq!(off(cr4::PAE, true), Err(Gp), "from 64-bit code");
    assert_eq!(off(cr4::PAE | cr4::PCIDE, false), Err(Gp), "PCIDE");
    assert_eq!(off(cr4::PAE, false).unwrap().efer, efer::LME);
}

#[test]
fn pae_paging_loads_pdptes() {
    let w = cr0_write_check(PROT, PAGED, cr4::PAE, 0, false).unwrap();
    assert!(w.load_pdptes && w.efer == 0);
    assert!(
        !cr0_write_check(PROT, PAGED, 0, 0, false)
            .unwrap()
            .load_pdptes
    );
    assert!(
        cr0_write_check(PAGED, PAGED | cr0::CD, cr4::PAE, 0, false)
            .unwrap()
            .load_pdptes
    );
    assert!(
        !cr0_write_check(PAGED, PAGED | cr0::TS, cr4::PAE, 0, false)
            .unwrap()
            .load_pdptes
    );
    assert!(
        !cr0_write_check(PAGED, PAGED | cr0::CD, cr4::PAE, LONG, false)
            .unwrap()
            .load_pdptes
    );
}

#[test]
fn cr4_values() {
    let f = full();
    let set = |old, new, e, c3| cr4_write_check(old, new, PAGED, c3, e, &f);
    for (bit, name) in [
        (cr4::VMXE, "VMXE"),
        (1 << 14, "SMXE"),
        (cr4::LA57, "LA57"),
        (cr4::CET, "CET"),
        (1 << 24, "PKS"),
        (1 << 15, "15"),
        (1 << 33, "33"),
    ] {
        assert_eq!(set(0, bit, 0, 0), Err(Gp), "{name}");
    }
    let none = GuestFeatures::default();
    for bit in [
        cr4::UMIP,
        cr4::FSGSBASE,
        cr4::PCIDE,
        cr4::OSXSAVE,
        cr4::SMEP,
        cr4::SMAP,
        cr4::PKE,
    ] {
        assert_eq!(cr4_reserved_bits(&none) & bit, bit);
        assert_eq!(cr4_reserved_bits(&f) & bit, 0);
        assert_eq!(cr4_write_check(0, bit, PROT, 0, 0, &none), Err(Gp));
    }
    assert_eq!(set(cr4::PAE, 0, LONG, 0), Err(Gp), "PAE stays in long mode");
    let pae = cr4::PAE;
    assert_eq!(
        set(pae, pae | cr4::PCIDE, 0, 0),
        Err(Gp),
        "PCIDE needs long mode"
    );
    assert_eq!(
        set(pae, pae | cr4::PCIDE, LONG, 0x1001),
        Err(Gp),
        "CR3[11:0]"
    );
    assert!(set(pae, pae | cr4::PCIDE, LONG, 0x1000).unwrap().flush);
    assert!(set(pae | cr4::PCIDE, pae | cr4::PCIDE | cr4::TSD, LONG, 0x1001).is_ok());
    let la = GuestFeatures { la57: true, ..f };
    assert_eq!(
        cr4_write_check(pae, pae | cr4::LA57, PAGED, 0, LONG, &la),
        Err(Gp)
    );
    assert!(cr4_write_check(pae, pae | cr4::LA57, PROT, 0, efer::LME, &la).is_ok());
    let w = set(pae, pae | cr4::OSXSAVE, LONG, 0).unwrap();
    assert!(w.cpuid_changed && !w.flush && !w.load_pdptes);
    assert!(set(pae, pae | cr4::PGE, 0, 0).unwrap().load_pdptes);
    assert!(!set(pae, pae | cr4::PGE, LONG, 0).unwrap().load_pdptes);
}

#[test]
fn cr3_values() {
    let f = full();
    assert_eq!(cr3_write_check(1 << 40, 0, LONG, &f), Err(Gp));
    assert!(
        cr3_write_check(1 << 40, 0, 0, &f).is_ok(),
        "only in long mode"
    );
    assert_eq!(cr3_write_check(1 << 63, 0, LONG, &f), Err(Gp));
    for value in [0x1005, (1 << 63) | 0x1005] {
        assert_eq!(cr3_write_check(value, cr4::PCIDE, LONG, &f), Ok(0x1005));
    }
}

#[test]
fn efer_values() {
    let a = efer_allowed(&full());
    assert_eq!(efer_write_check(0, efer::SVME, 0, a), Err(Gp));
    assert_eq!(efer_write_check(0, efer::FFXSR, 0, a), Err(Gp));
    assert_eq!(efer_write_check(0, 1 << 63, 0, a), Err(Gp));
    assert_eq!(
        efer_write_check(0, efer::LME, PAGED, a),
        Err(Gp),
        "LME while paging"
    );
    assert_eq!(efer_write_check(LONG, efer::LMA, PAGED, a), Err(Gp));
    assert_eq!(
        efer_write_check(LONG, efer::LME | efer::NX, PAGED, a),
        Ok(LONG | efer::NX),
        "LMA stays"
    );
    assert_eq!(
        efer_write_check(0, LONG, PROT, a),
        Ok(efer::LME),
        "LMA is not writable"
    );
    let none = efer_allowed(&GuestFeatures::default());
    assert_eq!(efer_write_check(0, efer::NX, 0, none), Err(Gp));
    assert_eq!(efer_write_check(0, efer::LME, 0, none), Err(Gp));
    assert_eq!(efer_write_check(0, efer::SCE, 0, none), Ok(efer::SCE));
}

#[test]
fn sregs() {
    let f = full();
    let valid = |s: &Sregs| sregs_valid(s, &f);
    let reset = Sregs {
        cr0: 0x6000_0010,
        ..Sregs::default()
    };
    assert_eq!(valid(&reset), Ok(()));
    let mut long = Sregs {
        cr0: PAGED,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: LONG,
        ..Sregs::default()
    };
    long.seg_mut(Seg::Cs).l = true;
    assert_eq!(valid(&long), Ok(()));
    let broken = |name: &str, change: &dyn Fn(&mut Sregs)| {
        let mut s = long;
        change(&mut s);
        assert!(valid(&s).is_err(), "{name}");
    };
    broken("CR0 upper half", &|s| s.cr0 |= 1 << 32);
    broken("PG without PE", &|s| s.cr0 &= !cr0::PE);
    broken("NW without CD", &|s| s.cr0 |= cr0::NW);
    broken("CR4 reserved", &|s| s.cr4 |= cr4::VMXE);
    broken("EFER reserved", &|s| s.efer |= efer::SVME);
    broken("no PAE", &|s| s.cr4 = 0);
    broken("no LMA", &|s| s.efer = efer::LME);
    broken("LMA without LME", &|s| s.efer = efer::LMA);
    broken("LMA without PG", &|s| s.cr0 = PROT);
    broken("CR3 too wide", &|s| s.cr3 = 1 << 40);
    broken("CS.L outside", &|s| {
        s.efer = 0;
        s.cr4 = 0;
    });
    // RSM takes less.
    assert!(sregs_loadable(&long, &f));
    let refused = |name: &str, change: &dyn Fn(&mut Sregs)| {
        let mut s = reset;
        change(&mut s);
        assert_eq!(valid(&s), Ok(()), "{name}");
        assert!(!sregs_loadable(&s, &f), "{name}");
    };
    refused("CR3 too wide", &|s| s.cr3 = 1 << 62);
    refused("PCIDs outside long mode", &|s| s.cr4 = cr4::PCIDE);
    // Without CPUID there is no long mode.
    assert!(sregs_valid(&long, &GuestFeatures::default()).is_err());
    // What KVM lets through, for the entry to refuse.
    let mut odd = long;
    odd.seg_mut(Seg::Cs).db = true;
    odd.seg_mut(Seg::Fs).base = 1 << 47;
    odd.gdt.base = 1 << 47;
    assert_eq!(valid(&odd), Ok(()));
}
