// SPDX-License-Identifier: GPL-2.0
//! Checks on the VM-execution, VM-exit and VM-entry control fields (SDM 3C 27.2.1).
#![forbid(unsafe_code)]

use super::fields::*;
use crate::x86::cpu::regs::cr0;
use crate::x86::cpu::violation::{rules, Violation};
use crate::x86::vmx::bits::{entry, ept_cap, exit, intr, pin, proc, proc2};

const EXEC: &str = "SDM 3C 27.2.1.1";
const EXIT: &str = "SDM 3C 27.2.1.2";
const ENTRY: &str = "SDM 3C 27.2.1.3";

/// Primary processor-based controls whose fields rvmm does not fill.
const PROC_UNUSED: u32 = proc::TERTIARY | proc::IO_BITMAPS;

/// Secondary processor-based controls whose fields rvmm does not fill.
const PROC2_UNUSED: u32 = proc2::VM_FUNCTIONS
    | proc2::VMCS_SHADOWING
    | proc2::EPT_VE
    | proc2::MODE_BASED_EXECUTE
    | proc2::SUB_PAGE_WRITE
    | proc2::PT_GUEST_PHYSICAL;

/// Exit controls that load state which rvmm does not keep in the VMCS.
const EXIT_UNUSED_LOADS: u32 = exit::LOAD_CET | exit::LOAD_PKRS;

/// Entry controls that load state which rvmm does not keep in the VMCS.
const ENTRY_UNUSED_LOADS: u32 = entry::LOAD_BNDCFGS
    | entry::LOAD_RTIT
    | entry::LOAD_UINV
    | entry::LOAD_CET
    | entry::LOAD_LBR
    | entry::LOAD_PKRS
    | entry::LOAD_FRED;

/// Whether it is a page-aligned physical address within the width.
const fn page(address: u64, caps: &VmxCaps) -> bool {
    address & (0xfff | caps.field_reserved()) == 0
}

/// Checks on the VM-execution, VM-exit and VM-entry control fields (27.2.1). A failure is VMfailValid(7) on a
/// processor.
///
/// # Errors
///
/// The first rule that is broken.
pub(super) fn check(c: &Controls, g: &Guest, caps: &VmxCaps) -> Result<(), Violation> {
    execution_reserved(c, caps)?;
    execution_apic(c, caps)?;
    execution_memory(c, caps)?;
    exit_controls(c, caps)?;
    entry_controls(c, g, caps)
}

fn execution_reserved(c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    rules! { EXEC;
        "reserved bits of the pin-based controls must be set properly" =>
            caps.pin.fits(c.pin), c.pin;
        "reserved bits of the primary processor-based controls must be set properly" =>
            caps.proc1.fits(c.proc1), c.proc1;
        "reserved bits of the secondary processor-based controls must be set properly" =>
            c.proc1 & proc::SECONDARY == 0 || caps.proc2.fits(c.proc2), c.proc2;
        "primary controls must not be activated whose fields rvmm does not fill" =>
            c.proc1 & PROC_UNUSED == 0, c.proc1;
        "secondary controls must not be activated whose fields rvmm does not fill" =>
            c.secondary() & PROC2_UNUSED == 0, c.proc2;
        "the CR3-target count must not be greater than 4" =>
            c.cr3_target_count <= 4, c.cr3_target_count;
        "the MSR-bitmap address must be page-aligned and within the width" =>
            c.proc1 & proc::MSR_BITMAPS == 0 || page(c.msr_bitmap, caps), c.msr_bitmap;
        "\"virtual NMIs\" needs \"NMI exiting\"" =>
            c.pin & pin::NMI_EXITING != 0 || c.pin & pin::VIRTUAL_NMIS == 0, c.pin;
        "\"NMI-window exiting\" needs \"virtual NMIs\"" =>
            c.pin & pin::VIRTUAL_NMIS != 0 || c.proc1 & proc::NMI_WINDOW == 0, c.proc1;
    }
    Ok(())
}

fn execution_apic(c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let s = c.secondary();
    let delivery = s & proc2::VIRTUAL_INTERRUPTS != 0;
    let accesses = s & proc2::APIC_ACCESSES != 0;
    if c.proc1 & proc::TPR_SHADOW != 0 {
        rules! { EXEC;
            "the virtual-APIC address must be page-aligned and within the width" =>
                page(c.virtual_apic, caps), c.virtual_apic;
            "bits 31:4 of the TPR threshold must be zero" =>
                delivery || c.tpr_threshold >> 4 == 0, c.tpr_threshold;
            "the TPR threshold must not be greater than VTPR[7:4]" =>
                delivery || accesses || c.tpr_threshold <= (c.vtpr >> 4) as u32, c.tpr_threshold;
        }
    } else {
        rules! { EXEC;
            "x2APIC mode, APIC-register virtualisation and virtual-interrupt delivery need \"use TPR shadow\"" =>
                s & (proc2::X2APIC_MODE | proc2::APIC_REGISTERS | proc2::VIRTUAL_INTERRUPTS) == 0, s;
        }
    }
    rules! { EXEC;
        "the APIC-access address must be page-aligned and within the width" =>
            !accesses || page(c.apic_access, caps), c.apic_access;
        "\"virtualize x2APIC mode\" excludes \"virtualize APIC accesses\"" =>
            !accesses || s & proc2::X2APIC_MODE == 0, s;
        "virtual-interrupt delivery needs \"external-interrupt exiting\"" =>
            !delivery || c.pin & pin::EXTERNAL_INTERRUPT_EXITING != 0, c.pin;
    }
    if c.pin & pin::POSTED_INTERRUPTS != 0 {
        rules! { EXEC;
            "posted interrupts need virtual-interrupt delivery" => delivery, s;
            "posted interrupts need \"acknowledge interrupt on exit\"" =>
                c.exit & exit::ACK_INTERRUPT != 0, c.exit;
            "the posted-interrupt notification vector must be 0 to 255" =>
                c.posted_vector <= 255, c.posted_vector;
            "the posted-interrupt descriptor must be 64-byte aligned and within the width" =>
                c.posted_descriptor & (0x3f | caps.field_reserved()) == 0, c.posted_descriptor;
        }
    }
    Ok(())
}

fn execution_memory(c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let s = c.secondary();
    let ept = s & proc2::EPT != 0;
    rules! { EXEC;
        "VPID must not be zero" => s & proc2::VPID == 0 || c.vpid != 0, c.vpid;
        "\"unrestricted guest\" needs EPT" => ept || s & proc2::UNRESTRICTED_GUEST == 0, s;
    }
    rules! { "SDM 3C 25.6.5";
        "the TSC multiplier must not be zero" =>
            s & proc2::TSC_SCALING == 0 || c.tsc_multiplier != 0, c.tsc_multiplier;
    }
    if s & proc2::PML != 0 {
        rules! { EXEC;
            "\"enable PML\" needs EPT" => ept, s;
            "the PML address must be page-aligned and within the width" =>
                page(c.pml_address, caps), c.pml_address;
        }
    }
    if ept {
        check_eptp(c.eptp, caps)?;
    }
    Ok(())
}

/// Checks the format of an EPT pointer (SDM 3C 25.6.11, 27.2.1.1).
///
/// # Errors
///
/// The rule that is broken.
fn check_eptp(eptp: u64, caps: &VmxCaps) -> Result<(), Violation> {
    let cap = |bit: u64| caps.ept_vpid & bit != 0;
    rules! { EXEC;
        "the EPT memory type must be one that IA32_VMX_EPT_VPID_CAP reports" =>
            match eptp & 7 {
                0 => cap(ept_cap::UNCACHEABLE),
                6 => cap(ept_cap::WRITE_BACK),
                _ => false,
            }, eptp;
        "the EPT page-walk length must be one that IA32_VMX_EPT_VPID_CAP reports" =>
            match (eptp >> 3) & 7 {
                3 => cap(ept_cap::LEVELS_4),
                4 => cap(ept_cap::LEVELS_5),
                _ => false,
            }, eptp;
        "EPT accessed and dirty flags must be supported to be enabled" =>
            eptp & (1 << 6) == 0 || cap(ept_cap::ACCESSED_DIRTY), eptp;
        "EPT supervisor shadow-stack control must be supported to be enabled" =>
            eptp & (1 << 7) == 0 || cap(ept_cap::SHADOW_STACK), eptp;
        "reserved bits of the EPT pointer must be zero" =>
            eptp & (0xf00 | caps.phys_reserved()) == 0, eptp;
    }
    Ok(())
}

fn exit_controls(c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    rules! { EXIT;
        "reserved bits of the VM-exit controls must be set properly" =>
            caps.exit.fits(c.exit), c.exit;
        "VM-exit controls must not load state that rvmm does not keep" =>
            c.exit & EXIT_UNUSED_LOADS == 0, c.exit;
        "\"save VMX-preemption timer value\" needs \"activate VMX-preemption timer\"" =>
            c.pin & pin::PREEMPTION_TIMER != 0 || c.exit & exit::SAVE_PREEMPTION_TIMER == 0, c.exit;
        "VM-exit MSR areas must be empty: rvmm does not fill them" =>
            c.exit_msr_store_count | c.exit_msr_load_count == 0, c.exit_msr_load_count;
    }
    Ok(())
}

fn entry_controls(c: &Controls, g: &Guest, caps: &VmxCaps) -> Result<(), Violation> {
    rules! { ENTRY;
        "reserved bits of the VM-entry controls must be set properly" =>
            caps.entry.fits(c.entry), c.entry;
        "VM-entry controls must not load state that rvmm does not keep" =>
            c.entry & ENTRY_UNUSED_LOADS == 0, c.entry;
        "SMM entry controls must be zero outside SMM" =>
            c.entry & (entry::SMM | entry::DUAL_MONITOR) == 0, c.entry;
        "the VM-entry MSR area must be empty: rvmm does not fill it" =>
            c.entry_msr_load_count == 0, c.entry_msr_load_count;
    }
    entry_event(c, g, caps)
}

/// Event injection.
fn entry_event(c: &Controls, g: &Guest, caps: &VmxCaps) -> Result<(), Violation> {
    let info = c.entry_interruption;
    if info & intr::VALID == 0 {
        return Ok(());
    }
    let vector = info & 0xff;
    let kind = int_kind(info);
    rules! { ENTRY;
        "the interruption type must not be reserved" =>
            kind != 1 && (kind != intr::OTHER || (caps.proc1.0 >> 32) as u32 & proc::MONITOR_TRAP != 0), info;
        "the vector must agree with the interruption type" =>
            match kind {
                intr::NMI => vector == 2,
                intr::HARDWARE_EXCEPTION => vector <= 31,
                intr::OTHER => vector == 0,
                _ => true,
            }, info;
    }
    let error_code = info & intr::ERROR_CODE != 0;
    let protected = !c.unrestricted() || g.cr0 & cr0::PE != 0;
    rules! { ENTRY;
        "an error code can be delivered only with a hardware exception in protected mode" =>
            !error_code || (kind == intr::HARDWARE_EXCEPTION && protected), info;
    }
    // IA32_VMX_BASIC[56]: hardware exceptions may be delivered with or without an error code, whatever the vector.
    if caps.basic & (1 << 56) == 0 && kind == intr::HARDWARE_EXCEPTION && protected {
        let wants = matches!(vector, 8 | 10 | 11 | 12 | 13 | 14 | 17);
        rules! { ENTRY;
            "an error code must be delivered exactly for the vectors that have one" =>
                error_code == wants || vector == 21, info;
        }
    }
    rules! { ENTRY;
        "reserved bits of the VM-entry interruption information must be zero" =>
            info & 0x7fff_f000 == 0, info;
        "bits 31:16 of the VM-entry exception error code must be zero" =>
            !error_code || c.entry_error_code >> 16 == 0, c.entry_error_code;
    }
    if (intr::SOFTWARE_INTERRUPT..=intr::SOFTWARE_EXCEPTION).contains(&kind) {
        let len = c.entry_instruction_length;
        rules! { ENTRY;
            "the VM-entry instruction length must be 1 to 15 (0 where IA32_VMX_MISC[30] is set)" =>
                len <= 15 && (len != 0 || caps.misc & (1 << 30) != 0), len;
        }
    }
    Ok(())
}
