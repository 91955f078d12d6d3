// SPDX-License-Identifier: GPL-2.0
//! Checks on the guest-state area (SDM 3C 27.3.1).
#![forbid(unsafe_code)]

use super::fields::*;
use crate::x86::cpu::canonical::is_canonical;
use crate::x86::cpu::msr::pat_valid;
use crate::x86::cpu::regs::{cr0, cr4, efer, rflags};
use crate::x86::cpu::violation::{require, Violation};
use crate::x86::vmx::bits::{
    activity, blocking, entry, intr, pin, proc2, rights, DEBUGCTL_BTF, PENDING_DEBUG_BS,
};

const G_CR: &str = "SDM 3C 27.3.1.1";
const G_SEG: &str = "SDM 3C 27.3.1.2";
const G_TABLE: &str = "SDM 3C 27.3.1.3";
const G_RIP: &str = "SDM 3C 27.3.1.4";
const G_STATE: &str = "SDM 3C 27.3.1.5";
const G_PDPTE: &str = "SDM 3C 27.3.1.6";

/// Checks on the guest-state area (27.3.1). A failure is a VM exit with reason 33 on a processor.
///
/// # Errors
///
/// The first rule that is broken.
pub(super) fn check(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    guest_control_registers(g, c, caps)?;
    guest_msrs(g, c, caps)?;
    if g.rflags & rflags::VM != 0 {
        guest_segments_v86(g)?;
    } else {
        guest_code_segment(g, c)?;
        guest_stack_segment(g, c)?;
        guest_data_segments(g, c)?;
    }
    guest_system_segments(g, c, caps)?;
    guest_tables_and_flags(g, c, caps)?;
    guest_activity(g, c, caps)?;
    guest_interruptibility(g, c)?;
    guest_pending_debug(g)?;
    guest_pointers(g, c, caps)
}

fn guest_control_registers(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let ia32e = c.entry & entry::IA32E_GUEST != 0;
    // CD and NW are not changed by VM entry and not checked; PE and PG are free for an unrestricted guest.
    let mut ignore = cr0::CD | cr0::NW;
    if c.unrestricted() {
        ignore |= cr0::PE | cr0::PG;
    }
    require(
        fixed(g.cr0, &caps.cr0_fixed, ignore),
        "guest CR0 must not set a bit to a value that VMX does not support",
        G_CR,
        g.cr0,
    )?;
    require(
        g.cr0 & cr0::PG == 0 || g.cr0 & cr0::PE != 0,
        "guest CR0.PE must be set when CR0.PG is set",
        G_CR,
        g.cr0,
    )?;
    require(
        fixed(g.cr4, &caps.cr4_fixed, 0),
        "guest CR4 must not set a bit to a value that VMX does not support",
        G_CR,
        g.cr4,
    )?;
    require(
        g.cr4 & cr4::CET == 0 || g.cr0 & cr0::WP != 0,
        "guest CR0.WP must be set when CR4.CET is set",
        G_CR,
        g.cr0,
    )?;
    if c.entry & entry::LOAD_DEBUG != 0 {
        require(
            g.debugctl & !caps.debugctl_mask == 0,
            "reserved bits of guest IA32_DEBUGCTL must be zero",
            G_CR,
            g.debugctl,
        )?;
        require(
            g.dr7 >> 32 == 0,
            "bits 63:32 of guest DR7 must be zero",
            G_CR,
            g.dr7,
        )?;
    }
    if ia32e {
        require(
            g.cr0 & cr0::PG != 0,
            "guest CR0.PG must be set in IA-32e mode",
            G_CR,
            g.cr0,
        )?;
        require(
            g.cr4 & cr4::PAE != 0,
            "guest CR4.PAE must be set in IA-32e mode",
            G_CR,
            g.cr4,
        )?;
    } else {
        require(
            g.cr4 & cr4::PCIDE == 0,
            "guest CR4.PCIDE must be clear outside IA-32e mode",
            G_CR,
            g.cr4,
        )?;
    }
    require(
        g.cr3 & caps.phys_reserved() == 0,
        "guest CR3 must lie within the physical-address width",
        G_CR,
        g.cr3,
    )
}

fn guest_msrs(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let ia32e = c.entry & entry::IA32E_GUEST != 0;
    require(
        is_canonical(g.sysenter_esp, caps.linear_bits),
        "guest IA32_SYSENTER_ESP must be canonical",
        G_CR,
        g.sysenter_esp,
    )?;
    require(
        is_canonical(g.sysenter_eip, caps.linear_bits),
        "guest IA32_SYSENTER_EIP must be canonical",
        G_CR,
        g.sysenter_eip,
    )?;
    require(
        c.entry & entry::LOAD_PAT == 0 || pat_valid(g.pat),
        "guest IA32_PAT must hold only defined memory types",
        G_CR,
        g.pat,
    )?;
    if c.entry & entry::LOAD_EFER != 0 {
        require(
            g.efer & !caps.efer_mask == 0,
            "reserved bits of guest IA32_EFER must be zero",
            G_CR,
            g.efer,
        )?;
        require(
            (g.efer & efer::LMA != 0) == ia32e,
            "guest EFER.LMA must equal \"IA-32e mode guest\"",
            G_CR,
            g.efer,
        )?;
        require(
            g.cr0 & cr0::PG == 0 || (g.efer & efer::LMA != 0) == (g.efer & efer::LME != 0),
            "guest EFER.LMA must equal EFER.LME when CR0.PG is set",
            G_CR,
            g.efer,
        )?;
    }
    Ok(())
}

fn guest_segments_v86(g: &Guest) -> Result<(), Violation> {
    for s in [&g.cs, &g.ss, &g.ds, &g.es, &g.fs, &g.gs] {
        require(
            s.base == (s.selector as u64) << 4,
            "in virtual-8086 mode a segment base must be the selector times 16",
            G_SEG,
            s.base,
        )?;
        require(
            s.limit == 0xffff,
            "in virtual-8086 mode a segment limit must be FFFFH",
            G_SEG,
            s.limit as u64,
        )?;
        require(
            s.rights == 0xf3,
            "in virtual-8086 mode access rights must be F3H",
            G_SEG,
            s.rights as u64,
        )?;
    }
    Ok(())
}

/// Rules common to code and data segments outside virtual-8086 mode.
fn code_or_data(s: &GuestSegment) -> Result<(), Violation> {
    let r = s.rights as u64;
    require(
        s.rights & rights::S != 0,
        "S must be set in code and data segments",
        G_SEG,
        r,
    )?;
    require(
        s.rights & rights::P != 0,
        "P must be set in code segments and usable data segments",
        G_SEG,
        r,
    )?;
    require(
        s.rights & rights::RESERVED == 0,
        "reserved access-rights bits must be zero",
        G_SEG,
        r,
    )?;
    require(
        s.granularity_ok(),
        "G must agree with the segment limit",
        G_SEG,
        s.limit as u64,
    )
}

fn guest_code_segment(g: &Guest, c: &Controls) -> Result<(), Violation> {
    let cs = &g.cs;
    let r = cs.rights as u64;
    require(
        matches!(cs.typ(), 9 | 11 | 13 | 15) || (cs.typ() == 3 && c.unrestricted()),
        "CS must be accessed code (or accessed read/write data for an unrestricted guest)",
        G_SEG,
        r,
    )?;
    code_or_data(cs)?;
    require(
        match cs.typ() {
            3 => cs.dpl() == 0,
            9 | 11 => cs.dpl() == g.ss.dpl(),
            _ => cs.dpl() <= g.ss.dpl(),
        },
        "CS.DPL must be 0 for data, equal SS.DPL for non-conforming and not exceed it for conforming code",
        G_SEG,
        r,
    )?;
    require(
        c.entry & entry::IA32E_GUEST == 0
            || cs.rights & rights::L == 0
            || cs.rights & rights::DB == 0,
        "CS.D must be clear in 64-bit mode",
        G_SEG,
        r,
    )?;
    require(
        cs.base >> 32 == 0,
        "bits 63:32 of the CS base must be zero",
        G_SEG,
        cs.base,
    )
}

fn guest_stack_segment(g: &Guest, c: &Controls) -> Result<(), Violation> {
    let ss = &g.ss;
    let r = ss.rights as u64;
    if !c.unrestricted() {
        require(
            ss.rpl() == g.cs.rpl(),
            "SS.RPL must equal CS.RPL",
            G_SEG,
            ss.selector as u64,
        )?;
        require(ss.dpl() == ss.rpl(), "SS.DPL must equal SS.RPL", G_SEG, r)?;
    }
    require(
        ss.dpl() == 0 || (g.cs.typ() != 3 && g.cr0 & cr0::PE != 0),
        "SS.DPL must be 0 in real mode and when CS is a data segment",
        G_SEG,
        r,
    )?;
    if ss.usable() {
        require(
            matches!(ss.typ(), 3 | 7),
            "SS must be accessed read/write data",
            G_SEG,
            r,
        )?;
        code_or_data(ss)?;
        require(
            ss.base >> 32 == 0,
            "bits 63:32 of the SS base must be zero",
            G_SEG,
            ss.base,
        )?;
    }
    Ok(())
}

fn guest_data_segments(g: &Guest, c: &Controls) -> Result<(), Violation> {
    for s in [&g.ds, &g.es, &g.fs, &g.gs] {
        if !s.usable() {
            continue;
        }
        let r = s.rights as u64;
        require(
            s.typ() & 1 != 0,
            "DS, ES, FS and GS must be accessed",
            G_SEG,
            r,
        )?;
        require(
            s.typ() & 8 == 0 || s.typ() & 2 != 0,
            "DS, ES, FS and GS must be readable",
            G_SEG,
            r,
        )?;
        code_or_data(s)?;
        require(
            c.unrestricted() || s.typ() > 11 || s.dpl() >= s.rpl(),
            "DPL of DS, ES, FS and GS must not be less than RPL",
            G_SEG,
            r,
        )?;
    }
    for s in [&g.ds, &g.es] {
        require(
            !s.usable() || s.base >> 32 == 0,
            "bits 63:32 of the DS and ES bases must be zero",
            G_SEG,
            s.base,
        )?;
    }
    Ok(())
}

fn guest_system_segments(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let canonical = |a: u64| is_canonical(a, caps.linear_bits);
    for s in [&g.fs, &g.gs] {
        require(
            canonical(s.base),
            "FS and GS bases must be canonical",
            G_SEG,
            s.base,
        )?;
    }
    let tr = &g.tr;
    let r = tr.rights as u64;
    require(
        tr.selector & 4 == 0,
        "TR must not refer to the LDT",
        G_SEG,
        tr.selector as u64,
    )?;
    require(
        canonical(tr.base),
        "the TR base must be canonical",
        G_SEG,
        tr.base,
    )?;
    require(
        tr.typ() == 11 || (tr.typ() == 3 && c.entry & entry::IA32E_GUEST == 0),
        "TR must be a busy TSS (of 64-bit type in IA-32e mode)",
        G_SEG,
        r,
    )?;
    require(
        tr.rights & (rights::S | rights::RESERVED | rights::UNUSABLE) == 0
            && tr.rights & rights::P != 0,
        "TR must be a present, usable system segment without reserved bits",
        G_SEG,
        r,
    )?;
    require(
        tr.granularity_ok(),
        "G of TR must agree with its limit",
        G_SEG,
        tr.limit as u64,
    )?;
    let l = &g.ldtr;
    if l.usable() {
        let r = l.rights as u64;
        require(
            l.selector & 4 == 0,
            "LDTR must not refer to the LDT",
            G_SEG,
            l.selector as u64,
        )?;
        require(
            canonical(l.base),
            "the LDTR base must be canonical",
            G_SEG,
            l.base,
        )?;
        require(l.typ() == 2, "LDTR must be of LDT type", G_SEG, r)?;
        require(
            l.rights & (rights::S | rights::RESERVED) == 0 && l.rights & rights::P != 0,
            "LDTR must be a present system segment without reserved bits",
            G_SEG,
            r,
        )?;
        require(
            l.granularity_ok(),
            "G of LDTR must agree with its limit",
            G_SEG,
            l.limit as u64,
        )?;
    }
    Ok(())
}

/// Sign-extends from bit `width`, so that bits 63:width must be equal: RIP may be one past the last canonical address
/// of the lower half (SDM 3C 27.3.1.4).
fn rip_ok(rip: u64, width: u8) -> bool {
    is_canonical(rip, width.saturating_add(1))
}

fn guest_tables_and_flags(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    for base in [g.gdtr_base, g.idtr_base] {
        require(
            is_canonical(base, caps.linear_bits),
            "GDTR and IDTR bases must be canonical",
            G_TABLE,
            base,
        )?;
    }
    for limit in [g.gdtr_limit, g.idtr_limit] {
        require(
            limit >> 16 == 0,
            "bits 31:16 of GDTR and IDTR limits must be zero",
            G_TABLE,
            limit as u64,
        )?;
    }
    let ia32e = c.entry & entry::IA32E_GUEST != 0;
    if ia32e && g.cs.rights & rights::L != 0 {
        require(
            rip_ok(g.rip, caps.linear_bits),
            "upper bits of RIP must be identical in 64-bit mode",
            G_RIP,
            g.rip,
        )?;
    } else {
        require(
            g.rip >> 32 == 0,
            "bits 63:32 of RIP must be zero outside 64-bit mode",
            G_RIP,
            g.rip,
        )?;
    }
    require(
        g.rflags >> 22 == 0 && g.rflags & 0x8028 == 0 && g.rflags & rflags::FIXED != 0,
        "reserved bits of RFLAGS must be set properly",
        G_RIP,
        g.rflags,
    )?;
    require(
        g.rflags & rflags::VM == 0 || (!ia32e && g.cr0 & cr0::PE != 0),
        "RFLAGS.VM must be clear in IA-32e mode and in real mode",
        G_RIP,
        g.rflags,
    )?;
    let info = c.entry_interruption;
    require(
        info & intr::VALID == 0 || int_kind(info) != intr::EXTERNAL || g.rflags & rflags::IF != 0,
        "RFLAGS.IF must be set to inject an external interrupt",
        G_RIP,
        g.rflags,
    )
}

fn guest_activity(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let a = g.activity;
    require(
        a == activity::ACTIVE
            || (a <= activity::WAIT_FOR_SIPI && caps.misc & (1 << (5 + a as u64)) != 0),
        "the activity state must be one that IA32_VMX_MISC reports",
        G_STATE,
        a as u64,
    )?;
    require(
        a != activity::HLT || g.ss.dpl() == 0,
        "activity state HLT needs SS.DPL 0",
        G_STATE,
        a as u64,
    )?;
    require(
        a == activity::ACTIVE || g.interruptibility & (blocking::STI | blocking::MOV_SS) == 0,
        "blocking by STI or MOV SS needs activity state active",
        G_STATE,
        a as u64,
    )?;
    let info = c.entry_interruption;
    if info & intr::VALID != 0 {
        let vector = info & 0xff;
        let kind = int_kind(info);
        require(
            match a {
                activity::ACTIVE => true,
                activity::HLT => match kind {
                    intr::EXTERNAL | intr::NMI | intr::OTHER => true,
                    intr::HARDWARE_EXCEPTION => vector == 1 || vector == 18,
                    _ => false,
                },
                activity::SHUTDOWN => {
                    kind == intr::NMI || (kind == intr::HARDWARE_EXCEPTION && vector == 18)
                }
                _ => false,
            },
            "the event injected must be possible in the activity state",
            G_STATE,
            info as u64,
        )?;
    }
    Ok(())
}

fn guest_interruptibility(g: &Guest, c: &Controls) -> Result<(), Violation> {
    let i = g.interruptibility;
    let sti = i & blocking::STI != 0;
    let mov_ss = i & blocking::MOV_SS != 0;
    require(
        i >> 4 == 0,
        "reserved interruptibility bits must be zero",
        G_STATE,
        i as u64,
    )?;
    require(
        !(sti && mov_ss),
        "blocking by STI and by MOV SS exclude each other",
        G_STATE,
        i as u64,
    )?;
    require(
        !sti || g.rflags & rflags::IF != 0,
        "blocking by STI needs RFLAGS.IF",
        G_STATE,
        i as u64,
    )?;
    require(
        i & blocking::SMI == 0,
        "blocking by SMI must be clear outside SMM",
        G_STATE,
        i as u64,
    )?;
    let info = c.entry_interruption;
    if info & intr::VALID != 0 {
        let kind = int_kind(info);
        require(
            kind != intr::EXTERNAL || !(sti || mov_ss),
            "an external interrupt must not be injected while STI or MOV SS blocks",
            G_STATE,
            i as u64,
        )?;
        require(
            kind != intr::NMI || !(sti || mov_ss),
            "an NMI must not be injected while STI or MOV SS blocks",
            G_STATE,
            i as u64,
        )?;
        require(
            kind != intr::NMI || c.pin & pin::VIRTUAL_NMIS == 0 || i & blocking::NMI == 0,
            "an NMI must not be injected while virtual NMIs are blocked",
            G_STATE,
            i as u64,
        )?;
    }
    Ok(())
}

fn guest_pending_debug(g: &Guest) -> Result<(), Violation> {
    let p = g.pending_debug;
    // Bits 3:0 (B3-B0), 12 (enabled breakpoint) and 14 (BS) are defined; 16 (RTM) needs TSX, which guests do not have.
    require(
        p & !(0xf | (1 << 12) | PENDING_DEBUG_BS) == 0,
        "reserved bits of the pending debug exceptions must be zero",
        G_STATE,
        p,
    )?;
    let blocked =
        g.interruptibility & (blocking::STI | blocking::MOV_SS) != 0 || g.activity == activity::HLT;
    if blocked {
        let step = g.rflags & rflags::TF != 0 && g.debugctl & DEBUGCTL_BTF == 0;
        require(
            (p & PENDING_DEBUG_BS != 0) == step,
            "pending BS must reflect TF and BTF while blocking by STI or MOV SS, or in HLT",
            G_STATE,
            p,
        )?;
    }
    Ok(())
}

fn guest_pointers(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    // rvmm has no shadow VMCSs.
    require(
        g.link_pointer == u64::MAX,
        "the VMCS link pointer must be all ones",
        G_STATE,
        g.link_pointer,
    )?;
    let pae = g.cr0 & cr0::PG != 0 && g.cr4 & cr4::PAE != 0 && c.entry & entry::IA32E_GUEST == 0;
    if pae && c.secondary() & proc2::EPT != 0 {
        for e in g.pdpte {
            // Present: bits 2:1 and 8:5 and those above the width are reserved.
            require(
                e & 1 == 0 || e & (0x1e6 | caps.phys_reserved()) == 0,
                "reserved bits of a present PDPTE must be zero",
                G_PDPTE,
                e,
            )?;
        }
    }
    Ok(())
}
