// SPDX-License-Identifier: GPL-2.0
//! Checks on the guest-state area (SDM 3C 27.3.1).
#![forbid(unsafe_code)]

use super::fields::*;
use crate::x86::cpu::canonical::is_canonical;
use crate::x86::cpu::msr::pat_valid;
use crate::x86::cpu::regs::{cr0, cr4, efer, rflags};
use crate::x86::cpu::violation::{rules, Violation};
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
    // CD and NW are not changed by VM entry and not checked; PE and PG are free for an unrestricted guest.
    let mut ignore = cr0::CD | cr0::NW;
    if c.unrestricted() {
        ignore |= cr0::PE | cr0::PG;
    }
    rules! { G_CR;
        "guest CR0 must not set a bit to a value that VMX does not support" =>
            fixed(g.cr0, &caps.cr0_fixed, ignore), g.cr0;
        "guest CR0.PE must be set when CR0.PG is set" =>
            g.cr0 & cr0::PG == 0 || g.cr0 & cr0::PE != 0, g.cr0;
        "guest CR4 must not set a bit to a value that VMX does not support" =>
            fixed(g.cr4, &caps.cr4_fixed, 0), g.cr4;
        "guest CR0.WP must be set when CR4.CET is set" =>
            g.cr4 & cr4::CET == 0 || g.cr0 & cr0::WP != 0, g.cr0;
    }
    if c.entry & entry::LOAD_DEBUG != 0 {
        rules! { G_CR;
            "reserved bits of guest IA32_DEBUGCTL must be zero" =>
                g.debugctl & !caps.debugctl_mask == 0, g.debugctl;
            "bits 63:32 of guest DR7 must be zero" => g.dr7 >> 32 == 0, g.dr7;
        }
    }
    rules! { G_CR;
        "guest CR0.PG must be set in IA-32e mode" => !c.ia32e() || g.cr0 & cr0::PG != 0, g.cr0;
        "guest CR4.PAE must be set in IA-32e mode" => !c.ia32e() || g.cr4 & cr4::PAE != 0, g.cr4;
        "guest CR4.PCIDE must be clear outside IA-32e mode" =>
            c.ia32e() || g.cr4 & cr4::PCIDE == 0, g.cr4;
        "guest CR3 must lie within the physical-address width" =>
            g.cr3 & caps.phys_reserved() == 0, g.cr3;
    }
    Ok(())
}

fn guest_msrs(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    rules! { G_CR;
        "guest IA32_SYSENTER_ESP must be canonical" =>
            is_canonical(g.sysenter_esp, caps.linear_bits), g.sysenter_esp;
        "guest IA32_SYSENTER_EIP must be canonical" =>
            is_canonical(g.sysenter_eip, caps.linear_bits), g.sysenter_eip;
        "guest IA32_PAT must hold only defined memory types" =>
            c.entry & entry::LOAD_PAT == 0 || pat_valid(g.pat), g.pat;
    }
    if c.entry & entry::LOAD_EFER != 0 {
        rules! { G_CR;
            "reserved bits of guest IA32_EFER must be zero" =>
                g.efer & !caps.efer_mask == 0, g.efer;
            "guest EFER.LMA must equal \"IA-32e mode guest\"" =>
                (g.efer & efer::LMA != 0) == c.ia32e(), g.efer;
            "guest EFER.LMA must equal EFER.LME when CR0.PG is set" =>
                g.cr0 & cr0::PG == 0 || (g.efer & efer::LMA != 0) == (g.efer & efer::LME != 0), g.efer;
        }
    }
    Ok(())
}

fn guest_segments_v86(g: &Guest) -> Result<(), Violation> {
    for s in [&g.cs, &g.ss, &g.ds, &g.es, &g.fs, &g.gs] {
        rules! { G_SEG;
            "in virtual-8086 mode a segment base must be the selector times 16" =>
                s.base == (s.selector as u64) << 4, s.base;
            "in virtual-8086 mode a segment limit must be FFFFH" => s.limit == 0xffff, s.limit;
            "in virtual-8086 mode access rights must be F3H" => s.rights == 0xf3, s.rights;
        }
    }
    Ok(())
}

/// Rules common to code and data segments outside virtual-8086 mode.
fn code_or_data(s: &GuestSegment) -> Result<(), Violation> {
    rules! { G_SEG;
        "S must be set in code and data segments" => s.rights & rights::S != 0, s.rights;
        "P must be set in code segments and usable data segments" => s.rights & rights::P != 0, s.rights;
        "reserved access-rights bits must be zero" => s.rights & rights::RESERVED == 0, s.rights;
        "G must agree with the segment limit" => s.granularity_ok(), s.limit;
    }
    Ok(())
}

fn guest_code_segment(g: &Guest, c: &Controls) -> Result<(), Violation> {
    let cs = &g.cs;
    rules! { G_SEG;
        "CS must be accessed code (or accessed read/write data for an unrestricted guest)" =>
            matches!(cs.typ(), 9 | 11 | 13 | 15) || (cs.typ() == 3 && c.unrestricted()), cs.rights;
    }
    code_or_data(cs)?;
    rules! { G_SEG;
        "CS.DPL must be 0 for data, equal SS.DPL for non-conforming and not exceed it for conforming code" =>
            match cs.typ() {
                3 => cs.dpl() == 0,
                9 | 11 => cs.dpl() == g.ss.dpl(),
                _ => cs.dpl() <= g.ss.dpl(),
            }, cs.rights;
        "CS.D must be clear in 64-bit mode" =>
            !c.ia32e() || cs.rights & rights::L == 0 || cs.rights & rights::DB == 0, cs.rights;
        "bits 63:32 of the CS base must be zero" => cs.base >> 32 == 0, cs.base;
    }
    Ok(())
}

fn guest_stack_segment(g: &Guest, c: &Controls) -> Result<(), Violation> {
    let ss = &g.ss;
    if !c.unrestricted() {
        rules! { G_SEG;
            "SS.RPL must equal CS.RPL" => ss.rpl() == g.cs.rpl(), ss.selector;
            "SS.DPL must equal SS.RPL" => ss.dpl() == ss.rpl(), ss.rights;
        }
    }
    rules! { G_SEG;
        "SS.DPL must be 0 in real mode and when CS is a data segment" =>
            ss.dpl() == 0 || (g.cs.typ() != 3 && g.cr0 & cr0::PE != 0), ss.rights;
    }
    if ss.usable() {
        rules! { G_SEG;
            "SS must be accessed read/write data" => matches!(ss.typ(), 3 | 7), ss.rights;
        }
        code_or_data(ss)?;
        rules! { G_SEG;
            "bits 63:32 of the SS base must be zero" => ss.base >> 32 == 0, ss.base;
        }
    }
    Ok(())
}

fn guest_data_segments(g: &Guest, c: &Controls) -> Result<(), Violation> {
    for s in [&g.ds, &g.es, &g.fs, &g.gs] {
        if !s.usable() {
            continue;
        }
        rules! { G_SEG;
            "DS, ES, FS and GS must be accessed" => s.typ() & 1 != 0, s.rights;
            "DS, ES, FS and GS must be readable" => s.typ() & 8 == 0 || s.typ() & 2 != 0, s.rights;
        }
        code_or_data(s)?;
        rules! { G_SEG;
            "DPL of DS, ES, FS and GS must not be less than RPL" =>
                c.unrestricted() || s.typ() > 11 || s.dpl() >= s.rpl(), s.rights;
        }
    }
    for s in [&g.ds, &g.es] {
        rules! { G_SEG;
            "bits 63:32 of the DS and ES bases must be zero" =>
                !s.usable() || s.base >> 32 == 0, s.base;
        }
    }
    Ok(())
}

fn guest_system_segments(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let canonical = |a: u64| is_canonical(a, caps.linear_bits);
    for s in [&g.fs, &g.gs] {
        rules! { G_SEG;
            "FS and GS bases must be canonical" => canonical(s.base), s.base;
        }
    }
    let tr = &g.tr;
    rules! { G_SEG;
        "TR must not refer to the LDT" => tr.selector & 4 == 0, tr.selector;
        "the TR base must be canonical" => canonical(tr.base), tr.base;
        "TR must be a busy TSS (of 64-bit type in IA-32e mode)" =>
            tr.typ() == 11 || (tr.typ() == 3 && !c.ia32e()), tr.rights;
        "TR must be a present, usable system segment without reserved bits" =>
            tr.rights & (rights::S | rights::RESERVED | rights::UNUSABLE) == 0
                && tr.rights & rights::P != 0, tr.rights;
        "G of TR must agree with its limit" => tr.granularity_ok(), tr.limit;
    }
    let l = &g.ldtr;
    if l.usable() {
        rules! { G_SEG;
            "LDTR must not refer to the LDT" => l.selector & 4 == 0, l.selector;
            "the LDTR base must be canonical" => canonical(l.base), l.base;
            "LDTR must be of LDT type" => l.typ() == 2, l.rights;
            "LDTR must be a present system segment without reserved bits" =>
                l.rights & (rights::S | rights::RESERVED) == 0 && l.rights & rights::P != 0, l.rights;
            "G of LDTR must agree with its limit" => l.granularity_ok(), l.limit;
        }
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
        rules! { G_TABLE;
            "GDTR and IDTR bases must be canonical" => is_canonical(base, caps.linear_bits), base;
        }
    }
    for limit in [g.gdtr_limit, g.idtr_limit] {
        rules! { G_TABLE;
            "bits 31:16 of GDTR and IDTR limits must be zero" => limit >> 16 == 0, limit;
        }
    }
    let wide = c.ia32e() && g.cs.rights & rights::L != 0;
    let info = c.entry_interruption;
    rules! { G_RIP;
        "upper bits of RIP must be identical in 64-bit mode" =>
            !wide || rip_ok(g.rip, caps.linear_bits), g.rip;
        "bits 63:32 of RIP must be zero outside 64-bit mode" => wide || g.rip >> 32 == 0, g.rip;
        "reserved bits of RFLAGS must be set properly" =>
            g.rflags & (!0x3f_ffff | 0x8028) == 0 && g.rflags & rflags::FIXED != 0, g.rflags;
        "RFLAGS.VM must be clear in IA-32e mode and in real mode" =>
            g.rflags & rflags::VM == 0 || (!c.ia32e() && g.cr0 & cr0::PE != 0), g.rflags;
        "RFLAGS.IF must be set to inject an external interrupt" =>
            info & intr::VALID == 0
                || int_kind(info) != intr::EXTERNAL
                || g.rflags & rflags::IF != 0, g.rflags;
    }
    Ok(())
}

fn guest_activity(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let a = g.activity;
    rules! { G_STATE;
        "the activity state must be one that IA32_VMX_MISC reports" =>
            a == activity::ACTIVE
                || (a <= activity::WAIT_FOR_SIPI && caps.misc & (1 << (5 + a as u64)) != 0), a;
        "activity state HLT needs SS.DPL 0" => a != activity::HLT || g.ss.dpl() == 0, a;
        "blocking by STI or MOV SS needs activity state active" =>
            a == activity::ACTIVE || g.interruptibility & (blocking::STI | blocking::MOV_SS) == 0, a;
    }
    let info = c.entry_interruption;
    if info & intr::VALID != 0 {
        let vector = info & 0xff;
        let kind = int_kind(info);
        rules! { G_STATE;
            "the event injected must be possible in the activity state" =>
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
                }, info;
        }
    }
    Ok(())
}

fn guest_interruptibility(g: &Guest, c: &Controls) -> Result<(), Violation> {
    let i = g.interruptibility;
    let sti = i & blocking::STI != 0;
    let mov_ss = i & blocking::MOV_SS != 0;
    rules! { G_STATE;
        "reserved interruptibility bits must be zero" => i >> 4 == 0, i;
        "blocking by STI and by MOV SS exclude each other" => !(sti && mov_ss), i;
        "blocking by STI needs RFLAGS.IF" => !sti || g.rflags & rflags::IF != 0, i;
        "blocking by SMI must be clear outside SMM" => i & blocking::SMI == 0, i;
    }
    let info = c.entry_interruption;
    if info & intr::VALID != 0 {
        let kind = int_kind(info);
        rules! { G_STATE;
            "an external interrupt must not be injected while STI or MOV SS blocks" =>
                kind != intr::EXTERNAL || !(sti || mov_ss), i;
            "an NMI must not be injected while STI or MOV SS blocks" =>
                kind != intr::NMI || !(sti || mov_ss), i;
            "an NMI must not be injected while virtual NMIs are blocked" =>
                kind != intr::NMI || c.pin & pin::VIRTUAL_NMIS == 0 || i & blocking::NMI == 0, i;
        }
    }
    Ok(())
}

fn guest_pending_debug(g: &Guest) -> Result<(), Violation> {
    let p = g.pending_debug;
    // Bits 3:0 (B3-B0), 12 (enabled breakpoint) and 14 (BS) are defined; 16 (RTM) needs TSX, which guests do not have.
    rules! { G_STATE;
        "reserved bits of the pending debug exceptions must be zero" =>
            p & !(0xf | (1 << 12) | PENDING_DEBUG_BS) == 0, p;
    }
    let blocked =
        g.interruptibility & (blocking::STI | blocking::MOV_SS) != 0 || g.activity == activity::HLT;
    if blocked {
        let step = g.rflags & rflags::TF != 0 && g.debugctl & DEBUGCTL_BTF == 0;
        rules! { G_STATE;
            "pending BS must reflect TF and BTF while blocking by STI or MOV SS, or in HLT" =>
                (p & PENDING_DEBUG_BS != 0) == step, p;
        }
    }
    Ok(())
}

fn guest_pointers(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    // rvmm has no shadow VMCSs.
    rules! { G_STATE;
        "the VMCS link pointer must be all ones" => g.link_pointer == u64::MAX, g.link_pointer;
    }
    let pae = g.cr0 & cr0::PG != 0 && g.cr4 & cr4::PAE != 0 && !c.ia32e();
    if pae && c.secondary() & proc2::EPT != 0 {
        for e in g.pdpte {
            rules! { G_PDPTE;
                // Present: bits 2:1 and 8:5 and those above the width are reserved.
                "reserved bits of a present PDPTE must be zero" =>
                    e & 1 == 0 || e & (0x1e6 | caps.phys_reserved()) == 0, e;
            }
        }
    }
    Ok(())
}
