// SPDX-License-Identifier: GPL-2.0
//! VM-entry checks: a valid baseline, then one broken thing per rule.

use rvmm_logic::x86::cpu::regs::{cr0, cr4, efer, rflags};
use rvmm_logic::x86::cpu::violation::Violation;
use rvmm_logic::x86::vmx::bits::{activity, blocking, entry, exit, pin, proc, proc2, rights};
use rvmm_logic::x86::vmx::check::{self, *};

fn check(v: &VmcsView, caps: &VmxCaps) -> Result<(), Violation> {
    check::check(v, caps, true)
}

fn allowed(must: u32, may: u32) -> Allowed {
    Allowed((u64::from(may) << 32) | u64::from(must))
}

/// A processor with everything.
fn caps() -> VmxCaps {
    VmxCaps {
        basic: 0x00da_0400_0000_0012,
        pin: allowed(0x16, 0xff),
        proc1: allowed(0x0400_6172, 0xfff9_fffe),
        proc2: allowed(0, 0x7fff_ffff),
        exit: allowed(0x0003_6dfb, 0x11ff_ffff),
        entry: allowed(0x0000_11fb, 0x003f_ffff),
        misc: 0x0004_01e0,
        ept_vpid: (1 << 6) | (1 << 8) | (1 << 14) | (1 << 16) | (1 << 17) | (1 << 21),
        cr0_fixed: [0x8000_0021, 0xffff_ffff],
        cr4_fixed: [0x2000, 0x0077_2fff],
        phys_bits: 39,
        linear_bits: 48,
        efer_mask: efer::SCE | efer::LME | efer::LMA | efer::NX,
        debugctl_mask: 3,
    }
}

fn seg(selector: u16, rights: u32) -> GuestSegment {
    GuestSegment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
        rights,
    }
}

/// A 64-bit guest at CPL 0 under a 64-bit host.
fn long() -> VmcsView {
    VmcsView {
        controls: Controls {
            pin: 0x16 | pin::EXTERNAL_INTERRUPT_EXITING | pin::NMI_EXITING | pin::VIRTUAL_NMIS,
            proc1: 0x0400_6172 | proc::HLT_EXITING | proc::MSR_BITMAPS | proc::SECONDARY,
            proc2: proc2::EPT | proc2::VPID | proc2::UNRESTRICTED_GUEST,
            exit: 0x0003_6dfb | exit::HOST_64BIT | exit::LOAD_EFER | exit::LOAD_PAT,
            entry: 0x0000_11fb
                | entry::IA32E_GUEST
                | entry::LOAD_EFER
                | entry::LOAD_PAT
                | entry::LOAD_DEBUG,
            msr_bitmap: 0x3000,
            virtual_apic: 0x4000,
            apic_access: 0x5000,
            posted_descriptor: 0x6040,
            posted_vector: 0xf2,
            vpid: 1,
            eptp: 0x7000 | (3 << 3) | 6 | (1 << 6),
            tsc_multiplier: 1 << 48,
            ..Controls::default()
        },
        host: Host {
            cr0: 0x8005_0033,
            cr3: 0x10_0000,
            cr4: cr4::PAE | cr4::VMXE,
            rip: 0xffff_ffff_8100_0000,
            cs: 0x10,
            ss: 0x18,
            tr: 0x40,
            gs_base: 0xffff_8880_0000_0000,
            gdtr_base: 0xffff_fe00_0000_1000,
            idtr_base: 0xffff_fe00_0000_0000,
            tr_base: 0xffff_fe00_0000_3000,
            pat: 0x0407_0506_0007_0106,
            efer: efer::SCE | efer::LME | efer::LMA | efer::NX,
            ..Host::default()
        },
        guest: Guest {
            cr0: 0x8005_0033,
            cr3: 0x1000,
            cr4: cr4::PAE | cr4::VMXE,
            dr7: 0x400,
            rip: 0xffff_ffff_8100_0000,
            rflags: 0x202,
            es: seg(0, 1 << 16),
            cs: seg(0x10, 0xa09b),
            ss: seg(0x18, 0xc093),
            ds: seg(0x18, 0xc093),
            fs: seg(0x18, 0xc093),
            gs: seg(0x18, 0xc093),
            ldtr: seg(0, 1 << 16),
            tr: GuestSegment {
                limit: 0x67,
                ..seg(0x40, 0x8b)
            },
            gdtr_limit: 0xffff,
            idtr_limit: 0xfff,
            pat: 0x0007_0406_0007_0406,
            efer: efer::LME | efer::LMA | efer::SCE,
            link_pointer: !0,
            ..Guest::default()
        },
    }
}

/// An unrestricted guest as after RESET.
fn real() -> VmcsView {
    let mut v = long();
    v.controls.entry &= !entry::IA32E_GUEST;
    let data = GuestSegment {
        selector: 0,
        base: 0,
        limit: 0xffff,
        rights: 0x93,
    };
    v.guest = Guest {
        cr0: 0x6000_0030,
        cr4: cr4::VMXE,
        rip: 0xfff0,
        rflags: 2,
        cs: GuestSegment {
            selector: 0xf000,
            base: 0xffff_0000,
            limit: 0xffff,
            rights: 0x9b,
        },
        es: data,
        ss: data,
        ds: data,
        fs: data,
        gs: data,
        ldtr: GuestSegment {
            rights: 0x82,
            ..data
        },
        tr: GuestSegment {
            rights: 0x8b,
            ..data
        },
        efer: 0,
        cr3: 0,
        ..v.guest
    };
    v
}

/// 32-bit protected mode with PAE paging, CPL 3.
fn user32() -> VmcsView {
    let mut v = long();
    v.controls.entry &= !entry::IA32E_GUEST;
    v.guest.efer = 0;
    v.guest.rip = 0x40_0000;
    v.guest.cs = seg(0x23, 0xc0fb);
    v.guest.ss = seg(0x2b, 0xc0f3);
    v.guest.ds = seg(0x2b, 0xc0f3);
    v.guest.fs = seg(0, 1 << 16);
    v.guest.gs = seg(0, 1 << 16);
    v.guest.pdpte = [0x2001, 0, 0x3001, 0xffe];
    v
}

/// Virtual-8086 mode.
fn v86() -> VmcsView {
    let mut v = user32();
    v.guest.rflags |= rflags::VM;
    let s = GuestSegment {
        selector: 0x1234,
        base: 0x1_2340,
        limit: 0xffff,
        rights: 0xf3,
    };
    for x in [
        &mut v.guest.es,
        &mut v.guest.cs,
        &mut v.guest.ss,
        &mut v.guest.ds,
        &mut v.guest.fs,
        &mut v.guest.gs,
    ] {
        *x = s;
    }
    v.guest.rip = 0x100;
    v
}

#[track_caller]
fn breaks_from(base: VmcsView, words: &str, change: impl Fn(&mut VmcsView)) {
    assert_eq!(check(&base, &caps()), Ok(()), "baseline");
    let mut v = base;
    change(&mut v);
    let e = check(&v, &caps()).expect_err(words);
    assert!(
        e.rule.contains(words),
        "expected {words}, got {} = {:x}",
        e.rule,
        e.value
    );
    assert!(e.manual.starts_with("SDM 3C 2"));
}

#[track_caller]
fn breaks(words: &str, change: impl Fn(&mut VmcsView)) {
    breaks_from(long(), words, change);
}

const VALID: u32 = 1 << 31;

fn restricted(v: &mut VmcsView) {
    v.controls.proc2 &= !proc2::UNRESTRICTED_GUEST;
}

#[test]
fn baselines() {
    for (name, v) in [
        ("long", long()),
        ("real", real()),
        ("user32", user32()),
        ("v86", v86()),
    ] {
        assert_eq!(check(&v, &caps()), Ok(()), "{name}");
    }
}

#[test]
fn execution_controls() {
    breaks("pin-based", |v| v.controls.pin &= !2);
    breaks("pin-based", |v| v.controls.pin |= 1 << 8);
    breaks("primary", |v| v.controls.proc1 &= !2);
    breaks("primary", |v| v.controls.proc1 |= 1);
    breaks("secondary", |v| v.controls.proc2 |= 1 << 31);
}

#[test]
fn unused_controls() {
    let mut c = caps();
    c.proc1 = allowed(0x0400_6172, !0);
    for bit in [proc::TERTIARY, proc::IO_BITMAPS] {
        let mut v = long();
        v.controls.proc1 |= bit;
        assert!(check(&v, &c)
            .unwrap_err()
            .rule
            .contains("primary controls must not"));
    }
    for bit in [
        proc2::VM_FUNCTIONS,
        proc2::VMCS_SHADOWING,
        proc2::EPT_VE,
        proc2::MODE_BASED_EXECUTE,
        proc2::SUB_PAGE_WRITE,
        proc2::PT_GUEST_PHYSICAL,
    ] {
        breaks("secondary controls must not", |v| v.controls.proc2 |= bit);
    }
    breaks("VM-exit MSR", |v| v.controls.exit_msr_store_count = 1);
    breaks("VM-exit MSR", |v| v.controls.exit_msr_load_count = 1);
    breaks("VM-entry MSR", |v| v.controls.entry_msr_load_count = 1);
}

#[test]
fn write_log() {
    let with = |address| {
        let mut v = long();
        v.controls.proc2 |= proc2::PML;
        v.controls.pml_address = address;
        v
    };
    assert_eq!(check(&with(0x5000), &caps()), Ok(()));
    for bad in [0x5001, 1 << 39] {
        let e = check(&with(bad), &caps()).unwrap_err();
        assert!(e.rule.contains("PML address"), "{}", e.rule);
    }
}

#[test]
fn bitmaps() {
    breaks("CR3-target", |v| v.controls.cr3_target_count = 5);
    for bad in [0x1001, 1 << 39] {
        breaks("MSR-bitmap", |v| v.controls.msr_bitmap = bad);
    }
    breaks("virtual NMIs", |v| v.controls.pin &= !pin::NMI_EXITING);
    breaks("NMI-window", |v| {
        v.controls.pin &= !pin::VIRTUAL_NMIS;
        v.controls.proc1 |= proc::NMI_WINDOW;
    });
}

/// APIC virtualisation complete: TPR shadow, registers, delivery, posted interrupts.
fn apicv() -> VmcsView {
    let mut v = long();
    v.controls.proc1 |= proc::TPR_SHADOW;
    v.controls.proc2 |= proc2::APIC_ACCESSES | proc2::APIC_REGISTERS | proc2::VIRTUAL_INTERRUPTS;
    v.controls.pin |= pin::POSTED_INTERRUPTS;
    v.controls.exit |= exit::ACK_INTERRUPT;
    v
}

#[test]
fn apic_controls() {
    let no_delivery = |v: &mut VmcsView| {
        v.controls.proc2 &= !(proc2::VIRTUAL_INTERRUPTS | proc2::APIC_ACCESSES);
        v.controls.pin &= !pin::POSTED_INTERRUPTS;
    };
    breaks_from(apicv(), "virtual-APIC", |v| {
        v.controls.virtual_apic = 0x4008
    });
    breaks_from(apicv(), "31:4", |v| {
        no_delivery(v);
        v.controls.tpr_threshold = 16;
    });
    breaks_from(apicv(), "VTPR", |v| {
        no_delivery(v);
        v.controls.tpr_threshold = 3;
        v.controls.vtpr = 0x2f;
    });
    breaks_from(apicv(), "need \"use TPR shadow\"", |v| {
        v.controls.proc1 &= !proc::TPR_SHADOW
    });
    breaks_from(apicv(), "APIC-access", |v| v.controls.apic_access = 1 << 40);
    breaks_from(apicv(), "excludes", |v| {
        v.controls.proc2 |= proc2::X2APIC_MODE
    });
    breaks_from(apicv(), "external-interrupt", |v| {
        v.controls.pin &= !pin::EXTERNAL_INTERRUPT_EXITING;
    });
    breaks_from(apicv(), "need virtual-interrupt delivery", |v| {
        v.controls.proc2 &= !proc2::VIRTUAL_INTERRUPTS;
    });
    breaks_from(apicv(), "acknowledge interrupt", |v| {
        v.controls.exit &= !exit::ACK_INTERRUPT;
    });
    breaks_from(apicv(), "notification vector", |v| {
        v.controls.posted_vector = 256
    });
    breaks_from(apicv(), "64-byte", |v| {
        v.controls.posted_descriptor = 0x6020
    });
    let mut v = apicv();
    no_delivery(&mut v);
    v.controls.tpr_threshold = 2;
    v.controls.vtpr = 0x20;
    assert_eq!(check(&v, &caps()), Ok(()));
}

#[test]
fn memory_controls() {
    breaks("VPID", |v| v.controls.vpid = 0);
    breaks("EPT memory type", |v| {
        v.controls.eptp = 0x7000 | (3 << 3) | 1
    });
    breaks("walk length", |v| v.controls.eptp = 0x7000 | (4 << 3) | 6);
    breaks("walk length", |v| v.controls.eptp = 0x7000 | 6);
    breaks("shadow-stack", |v| v.controls.eptp |= 1 << 7);
    breaks("EPT pointer", |v| v.controls.eptp |= 1 << 8);
    breaks("EPT pointer", |v| v.controls.eptp |= 1 << 39);
    let mut c = caps();
    c.ept_vpid &= !(1 << 21);
    assert!(check(&long(), &c)
        .unwrap_err()
        .rule
        .contains("accessed and dirty"));
    c.ept_vpid = (1 << 6) | (1 << 8);
    assert!(check(&long(), &c).unwrap_err().rule.contains("memory type"));
    breaks("unrestricted guest", |v| v.controls.proc2 &= !proc2::EPT);
    breaks("TSC multiplier", |v| {
        v.controls.proc2 |= proc2::TSC_SCALING;
        v.controls.tsc_multiplier = 0;
    });
    // Without "activate secondary controls" their field does not count.
    let mut v = user32();
    v.controls.proc1 &= !proc::SECONDARY;
    v.controls.proc2 = !0;
    assert_eq!(check(&v, &caps()), Ok(()));
}

#[test]
fn exit_controls() {
    breaks("VM-exit controls must be set", |v| v.controls.exit &= !1);
    breaks("does not keep", |v| v.controls.exit |= 1 << 28);
    breaks("preemption timer", |v| {
        v.controls.exit |= exit::SAVE_PREEMPTION_TIMER
    });
}

#[test]
fn entry_controls() {
    breaks("VM-entry controls must be set", |v| v.controls.entry &= !1);
    breaks("does not keep", |v| v.controls.entry |= 1 << 16);
    breaks("SMM", |v| v.controls.entry |= entry::SMM);
    breaks("SMM", |v| v.controls.entry |= entry::DUAL_MONITOR);
}

#[test]
fn event_injection() {
    let inject = |info: u32| move |v: &mut VmcsView| v.controls.entry_interruption = VALID | info;
    breaks("type must not be reserved", inject(1 << 8));
    breaks("agree", inject((2 << 8) | 3));
    breaks("agree", inject((3 << 8) | 32));
    breaks("agree", inject((7 << 8) | 1));
    breaks("protected mode", inject((1 << 11) | 0x30));
    breaks_from(real(), "protected mode", inject((3 << 8) | (1 << 11) | 13));
    breaks("exactly for", inject((3 << 8) | 13));
    breaks("exactly for", inject((3 << 8) | (1 << 11) | 6));
    breaks("reserved bits of the VM-entry", inject((1 << 12) | 0x30));
    breaks("31:16", |v| {
        inject((3 << 8) | (1 << 11) | 14)(v);
        v.controls.entry_error_code = 1 << 16;
    });
    for kind in [4, 5, 6] {
        for len in [0, 16] {
            breaks("instruction length", |v| {
                inject((kind << 8) | 3)(v);
                v.controls.entry_instruction_length = len;
            });
        }
        let mut v = long();
        inject((kind << 8) | 3)(&mut v);
        v.controls.entry_instruction_length = 1;
        assert_eq!(check(&v, &caps()), Ok(()));
    }
    let mut c = caps();
    c.proc1 = allowed(0x0400_6172, 0xf7f9_fffe);
    let mut v = long();
    inject(7 << 8)(&mut v);
    assert!(check(&v, &c)
        .unwrap_err()
        .rule
        .contains("type must not be reserved"));
    assert_eq!(check(&v, &caps()), Ok(()));
    c = caps();
    c.basic |= 1 << 56;
    inject((3 << 8) | 13)(&mut v);
    assert_eq!(check(&v, &c), Ok(()), "IA32_VMX_BASIC[56]");
    for info in [0x30, (2 << 8) | 2, (3 << 8) | (1 << 11) | 14, (3 << 8) | 6] {
        inject(info)(&mut v);
        assert_eq!(check(&v, &caps()), Ok(()), "{info:x}");
    }
    let mut v = real();
    inject((3 << 8) | 13)(&mut v);
    assert_eq!(check(&v, &caps()), Ok(()), "no error code in real mode");
}

#[test]
fn host_state() {
    breaks("host CR0 must not", |v| v.host.cr0 &= !cr0::NE);
    breaks("host CR0 must not", |v| v.host.cr0 |= 1 << 32);
    breaks("host CR4 must not", |v| v.host.cr4 &= !cr4::VMXE);
    breaks("host CR4 must not", |v| v.host.cr4 |= 1 << 31);
    breaks("host CR3", |v| v.host.cr3 |= 1 << 39);
    let bad = 1 << 47;
    breaks("SYSENTER_ESP", |v| v.host.sysenter_esp = bad);
    breaks("SYSENTER_EIP", |v| v.host.sysenter_eip = bad);
    breaks("host IA32_PAT", |v| v.host.pat = 2);
    breaks("reserved bits of host IA32_EFER", |v| v.host.efer |= 1 << 9);
    breaks("host address-space size", |v| v.host.efer &= !efer::LMA);
    breaks("host address-space size", |v| v.host.efer &= !efer::LME);
    for bits in 1..8u16 {
        breaks("RPL and TI", |v| v.host.es |= bits);
        breaks("RPL and TI", |v| v.host.cs |= bits);
        breaks("RPL and TI", |v| v.host.ss |= bits);
        breaks("RPL and TI", |v| v.host.ds |= bits);
        breaks("RPL and TI", |v| v.host.fs |= bits);
        breaks("RPL and TI", |v| v.host.gs |= bits);
        breaks("RPL and TI", |v| v.host.tr |= bits);
    }
    breaks("host CS", |v| v.host.cs = 0);
    breaks("host TR", |v| v.host.tr = 0);
    breaks("host bases", |v| v.host.fs_base = bad);
    breaks("host bases", |v| v.host.gs_base = bad);
    breaks("host bases", |v| v.host.tr_base = bad);
    breaks("host bases", |v| v.host.gdtr_base = bad);
    breaks("host bases", |v| v.host.idtr_base = bad);
    breaks("host RIP", |v| v.host.rip = bad);
    breaks("host CR4.PAE", |v| v.host.cr4 &= !cr4::PAE);
    breaks("must be 1 when the processor", |v| {
        v.controls.exit &= !exit::HOST_64BIT;
        v.host.efer = 0;
    });
    breaks("host SS", |v| {
        v.controls.exit &= !exit::HOST_64BIT;
        v.host.efer = 0;
        v.host.ss = 0;
    });
    let mut c = caps();
    c.cr4_fixed[1] |= cr4::CET;
    let mut v = long();
    v.host.cr4 |= cr4::CET;
    v.host.cr0 &= !cr0::WP;
    assert!(check(&v, &c).unwrap_err().rule.contains("host CR0.WP"));
    let mut v = long();
    v.guest.cr4 |= cr4::CET;
    v.guest.cr0 &= !cr0::WP;
    assert!(check(&v, &c).unwrap_err().rule.contains("guest CR0.WP"));
}

#[test]
fn guest_control_registers() {
    breaks("guest CR0 must not", |v| v.guest.cr0 &= !cr0::NE);
    breaks("guest CR0 must not", |v| v.guest.cr0 |= 1 << 32);
    breaks("guest CR0 must not", |v| {
        restricted(v);
        v.guest.cr0 &= !cr0::PG;
    });
    breaks_from(real(), "CR0.PE must be set", |v| v.guest.cr0 |= cr0::PG);
    breaks("guest CR4 must not", |v| v.guest.cr4 &= !cr4::VMXE);
    breaks("DEBUGCTL", |v| v.guest.debugctl = 1 << 6);
    breaks("DR7", |v| v.guest.dr7 = 1 << 32);
    breaks("CR0.PG must be set in", |v| v.guest.cr0 &= !cr0::PG);
    breaks("CR4.PAE must be set in", |v| v.guest.cr4 &= !cr4::PAE);
    breaks_from(user32(), "PCIDE", |v| v.guest.cr4 |= cr4::PCIDE);
    breaks("guest CR3", |v| v.guest.cr3 = 1 << 39);
    breaks("guest IA32_SYSENTER_ESP", |v| {
        v.guest.sysenter_esp = 1 << 47
    });
    breaks("guest IA32_SYSENTER_EIP", |v| {
        v.guest.sysenter_eip = 1 << 47
    });
    breaks("guest IA32_PAT", |v| v.guest.pat = 3 << 40);
    breaks("reserved bits of guest IA32_EFER", |v| {
        v.guest.efer |= efer::SVME
    });
    breaks("must equal \"IA-32e", |v| v.guest.efer = efer::LME);
    breaks_from(user32(), "must equal \"IA-32e", |v| {
        v.guest.efer = efer::LMA | efer::LME
    });
    breaks("LMA must equal EFER.LME", |v| v.guest.efer = efer::LMA);
    breaks_from(user32(), "LMA must equal EFER.LME", |v| {
        v.guest.efer = efer::LME
    });
    let mut v = real();
    v.guest.efer = efer::LME;
    assert_eq!(check(&v, &caps()), Ok(()), "LME before paging");
    v.guest.cr0 |= cr0::NW;
    v.guest.cr0 &= !cr0::CD;
    assert_eq!(check(&v, &caps()), Ok(()), "CD and NW are not checked");
}

#[test]
fn guest_v86_segments() {
    breaks_from(v86(), "times 16", |v| v.guest.gs.base += 16);
    breaks_from(v86(), "FFFFH", |v| v.guest.cs.limit = 0xfffff);
    breaks_from(v86(), "F3H", |v| v.guest.ss.rights = 0x93);
    breaks_from(v86(), "real mode", |v| v.guest.cr0 = 0x30);
}

#[test]
fn guest_code_segment() {
    breaks("CS must be accessed code", |v| v.guest.cs.rights = 0xa09a);
    breaks("CS must be accessed code", |v| v.guest.cs.rights = 0xa097);
    breaks("CS must be accessed code", |v| {
        restricted(v);
        v.guest.cs.rights = 0xc093;
    });
    breaks("S must be set", |v| v.guest.cs.rights &= !rights::S);
    breaks("P must be set", |v| v.guest.cs.rights &= !rights::P);
    breaks("reserved access-rights", |v| v.guest.cs.rights |= 1 << 8);
    breaks("reserved access-rights", |v| v.guest.cs.rights |= 1 << 17);
    breaks("G must agree", |v| v.guest.cs.limit = 0xffff_0fff & !1);
    breaks("G must agree", |v| v.guest.cs.rights &= !rights::G);
    breaks("CS.DPL", |v| v.guest.cs.rights |= 3 << 5);
    breaks_from(user32(), "CS.DPL", |v| v.guest.cs.rights &= !(3 << 5));
    breaks("CS.DPL", |v| v.guest.cs.rights = 0xa0ff);
    breaks("CS.DPL", |v| v.guest.cs.rights = 0xc0b3);
    breaks("CS.D must be clear", |v| v.guest.cs.rights |= rights::DB);
    breaks("CS base", |v| v.guest.cs.base = 1 << 32);
    let mut v = user32();
    v.guest.cs.rights = 0xc09f;
    assert_eq!(
        check(&v, &caps()),
        Ok(()),
        "conforming code may have a lower DPL"
    );
    v.guest.cs.rights = 0xc0ff;
    assert_eq!(check(&v, &caps()), Ok(()), "or the same");
}

#[test]
fn guest_stack_segment() {
    breaks("SS.RPL must equal CS.RPL", |v| {
        restricted(v);
        v.guest.ss.selector |= 3;
    });
    breaks("SS.DPL must equal SS.RPL", |v| {
        restricted(v);
        v.guest.ss.rights |= 3 << 5;
        v.guest.cs.rights |= 3 << 5;
    });
    breaks_from(real(), "SS.DPL must be 0", |v| {
        v.guest.ss.rights |= 3 << 5;
        v.guest.cs.rights |= 3 << 5;
    });
    breaks("SS must be", |v| v.guest.ss.rights = 0xc09b);
    breaks("SS must be", |v| v.guest.ss.rights = 0xc092);
    breaks("S must be set", |v| v.guest.ss.rights &= !rights::S);
    breaks("SS base", |v| v.guest.ss.base = 1 << 32);
    let mut v = long();
    v.guest.ss = GuestSegment {
        selector: 0,
        base: 1 << 40,
        limit: 7,
        rights: rights::UNUSABLE,
    };
    assert_eq!(check(&v, &caps()), Ok(()), "an unusable SS");
}

#[test]
fn guest_data_segments() {
    type Pick = fn(&mut Guest) -> &mut GuestSegment;
    let all: [Pick; 4] = [|g| &mut g.ds, |g| &mut g.es, |g| &mut g.fs, |g| &mut g.gs];
    for pick in all {
        let set = |r: u32| move |v: &mut VmcsView| *pick(&mut v.guest) = seg(0x18, r);
        breaks("must be accessed", set(0xc092));
        breaks("must be readable", set(0xc099));
        breaks("S must be set", set(0xc083));
        breaks("P must be set", set(0xc013));
        breaks("reserved access-rights", set(0xc193));
        breaks("G must agree", set(0x4093));
        breaks("less than RPL", |v| {
            restricted(v);
            *pick(&mut v.guest) = seg(0x1b, 0xc093);
        });
        let mut v = long();
        *pick(&mut v.guest) = seg(0x1b, 0xc09f);
        restricted(&mut v);
        assert_eq!(
            check(&v, &caps()),
            Ok(()),
            "conforming code has no DPL rule"
        );
    }
    breaks("DS and ES bases", |v| v.guest.ds.base = 1 << 32);
    breaks("DS and ES bases", |v| {
        v.guest.es = seg(0x18, 0xc093);
        v.guest.es.base = 1 << 32;
    });
    breaks("FS and GS", |v| v.guest.fs.base = 1 << 47);
    breaks_from(user32(), "FS and GS", |v| v.guest.gs.base = 1 << 47);
}

#[test]
fn guest_system_segments() {
    breaks("TR must not refer", |v| v.guest.tr.selector |= 4);
    breaks("TR base", |v| v.guest.tr.base = 1 << 47);
    breaks("busy TSS", |v| v.guest.tr.rights = 0x83);
    breaks("busy TSS", |v| v.guest.tr.rights = 0x89);
    for bits in [rights::S, 1 << 8, 1 << 16, 1 << 20] {
        breaks("TR must be a present", |v| v.guest.tr.rights |= bits);
    }
    breaks("TR must be a present", |v| v.guest.tr.rights &= !rights::P);
    breaks("G of TR", |v| v.guest.tr.limit = 1 << 20);
    breaks_from(real(), "LDTR must not refer", |v| v.guest.ldtr.selector = 4);
    breaks_from(real(), "LDTR base", |v| v.guest.ldtr.base = 1 << 47);
    breaks_from(real(), "LDT type", |v| v.guest.ldtr.rights = 0x83);
    breaks_from(real(), "LDTR must be a present", |v| {
        v.guest.ldtr.rights = 0x92
    });
    breaks_from(real(), "LDTR must be a present", |v| {
        v.guest.ldtr.rights = 0x02
    });
    breaks_from(real(), "G of LDTR", |v| v.guest.ldtr.limit = 1 << 20);
    let mut v = real();
    v.guest.tr.rights = 0x83;
    assert_eq!(
        check(&v, &caps()),
        Ok(()),
        "a 16-bit TSS outside IA-32e mode"
    );
}

#[test]
fn guest_tables_and_flags() {
    breaks("GDTR and IDTR bases", |v| v.guest.gdtr_base = 1 << 47);
    breaks("GDTR and IDTR bases", |v| v.guest.idtr_base = 1 << 47);
    breaks("GDTR and IDTR limits", |v| v.guest.gdtr_limit = 1 << 16);
    breaks("GDTR and IDTR limits", |v| v.guest.idtr_limit = 1 << 16);
    breaks("upper bits of RIP", |v| v.guest.rip = 1 << 48);
    breaks("bits 63:32 of RIP", |v| {
        v.guest.cs = seg(0x10, 0xc09b);
        v.guest.rip = 1 << 32;
    });
    breaks_from(user32(), "bits 63:32 of RIP", |v| v.guest.rip = 1 << 32);
    let mut v = long();
    v.guest.rip = 1 << 47;
    assert_eq!(
        check(&v, &caps()),
        Ok(()),
        "one past the lower half is allowed"
    );
    for bit in [3, 5, 15, 22, 63] {
        breaks("RFLAGS must be set properly", |v| {
            v.guest.rflags |= 1 << bit
        });
    }
    breaks("RFLAGS must be set properly", |v| v.guest.rflags &= !2);
    breaks("RFLAGS.IF", |v| {
        v.controls.entry_interruption = VALID | 0x30;
        v.guest.rflags = 2;
    });
    breaks_from(v86(), "RFLAGS.VM must be clear", |v| {
        v.controls.entry |= entry::IA32E_GUEST;
        v.guest.efer = efer::LME | efer::LMA;
    });
}

#[test]
fn guest_activity() {
    breaks("activity state must be one", |v| v.guest.activity = 4);
    let mut c = caps();
    c.misc &= !(1 << 6);
    let mut v = long();
    v.guest.activity = activity::HLT;
    assert_eq!(check(&v, &caps()), Ok(()));
    assert!(check(&v, &c)
        .unwrap_err()
        .rule
        .contains("activity state must be one"));
    breaks_from(user32(), "HLT needs", |v| v.guest.activity = activity::HLT);
    breaks("needs activity state active", |v| {
        v.guest.activity = activity::HLT;
        v.guest.interruptibility = blocking::STI;
    });
    let events = [
        0x30,
        (2 << 8) | 2,
        (3 << 8) | 1,
        (3 << 8) | 18,
        7 << 8,
        (3 << 8) | 6,
        (4 << 8) | 0x80,
    ];
    let expect = [
        (activity::ACTIVE, [true; 7]),
        (activity::HLT, [true, true, true, true, true, false, false]),
        (
            activity::SHUTDOWN,
            [false, true, false, true, false, false, false],
        ),
        (activity::WAIT_FOR_SIPI, [false; 7]),
    ];
    for (state, allowed) in expect {
        for (info, ok) in events.into_iter().zip(allowed) {
            let mut v = long();
            v.guest.activity = state;
            v.controls.entry_interruption = VALID | info;
            v.controls.entry_instruction_length = 2;
            let r = check(&v, &caps());
            assert_eq!(r.is_ok(), ok, "state {state} event {info:x}");
            if let Err(e) = r {
                assert!(e.rule.contains("possible in the activity state"));
            }
        }
    }
}

#[test]
fn guest_interruptibility() {
    use blocking::{MOV_SS, NMI, SMI, STI};
    breaks("reserved interruptibility", |v| {
        v.guest.interruptibility = 1 << 5
    });
    breaks("exclude each other", |v| {
        v.guest.interruptibility = STI | MOV_SS
    });
    breaks("needs RFLAGS.IF", |v| {
        v.guest.interruptibility = STI;
        v.guest.rflags = 2;
    });
    breaks("by SMI", |v| v.guest.interruptibility = SMI);
    for b in [STI, MOV_SS] {
        breaks("external interrupt must not", |v| {
            v.guest.interruptibility = b;
            v.controls.entry_interruption = VALID | 0x30;
        });
        breaks("an NMI must not", |v| {
            v.guest.interruptibility = b;
            v.controls.entry_interruption = VALID | (2 << 8) | 2;
        });
    }
    breaks("virtual NMIs are blocked", |v| {
        v.guest.interruptibility = NMI;
        v.controls.entry_interruption = VALID | (2 << 8) | 2;
    });
    let mut v = long();
    v.guest.interruptibility = NMI | STI;
    v.controls.entry_interruption = VALID | (3 << 8) | 6;
    assert_eq!(check(&v, &caps()), Ok(()), "exceptions are not blocked");
}

#[test]
fn guest_pending_debug() {
    for bit in [4, 11, 13, 15, 16, 17, 63] {
        breaks("pending debug", |v| v.guest.pending_debug = 1 << bit);
    }
    const BS: u64 = 1 << 14;
    breaks("BS must reflect", |v| {
        v.guest.interruptibility = blocking::STI;
        v.guest.rflags |= rflags::TF;
    });
    breaks("BS must reflect", |v| {
        v.guest.interruptibility = blocking::MOV_SS;
        v.guest.pending_debug = BS;
    });
    breaks("BS must reflect", |v| {
        v.guest.activity = activity::HLT;
        v.guest.rflags |= rflags::TF;
        v.guest.debugctl = 2;
        v.guest.pending_debug = BS;
    });
    let mut v = long();
    v.guest.interruptibility = blocking::STI;
    v.guest.rflags |= rflags::TF;
    v.guest.pending_debug = BS;
    assert_eq!(check(&v, &caps()), Ok(()));
}

#[test]
fn guest_pointers() {
    breaks("link pointer", |v| v.guest.link_pointer = 0);
    for i in 0..4 {
        for bit in [1, 2, 5, 8, 39, 63] {
            breaks_from(user32(), "PDPTE", |v| v.guest.pdpte[i] = 1 | (1 << bit));
        }
    }
    let mut v = long();
    v.guest.pdpte = [!0; 4];
    assert_eq!(check(&v, &caps()), Ok(()), "only with PAE paging");
}
