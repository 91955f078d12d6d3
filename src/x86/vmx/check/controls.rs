// SPDX-License-Identifier: GPL-2.0
//! Checks on the VM-execution, VM-exit and VM-entry control fields (SDM 3C 27.2.1).
#![forbid(unsafe_code)]

use super::fields::*;
use crate::x86::cpu::regs::cr0;
use crate::x86::cpu::violation::{require, Violation};
use crate::x86::vmx::bits::{entry, ept_cap, exit, intr, pin, proc, proc2};

const EXEC: &str = "SDM 3C 27.2.1.1";
const EXIT: &str = "SDM 3C 27.2.1.2";
const ENTRY: &str = "SDM 3C 27.2.1.3";

/// Exit controls that load state which rvmm does not keep in the VMCS.
const EXIT_UNUSED_LOADS: u32 = exit::LOAD_PERF_GLOBAL | exit::LOAD_CET | exit::LOAD_PKRS;

/// Entry controls that load state which rvmm does not keep in the VMCS.
const ENTRY_UNUSED_LOADS: u32 = entry::LOAD_PERF_GLOBAL
    | entry::LOAD_BNDCFGS
    | entry::LOAD_RTIT
    | entry::LOAD_UINV
    | entry::LOAD_CET
    | entry::LOAD_LBR
    | entry::LOAD_PKRS
    | entry::LOAD_FRED;

/// A page-aligned physical address within the width.
fn page(address: u64, rule: &'static str, caps: &VmxCaps) -> Result<(), Violation> {
    require(
        address & 0xfff == 0 && address & caps.field_reserved() == 0,
        rule,
        EXEC,
        address,
    )
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
    require(
        caps.pin.fits(c.pin),
        "reserved bits of the pin-based controls must be set properly",
        EXEC,
        c.pin as u64,
    )?;
    require(
        caps.proc1.fits(c.proc1),
        "reserved bits of the primary processor-based controls must be set properly",
        EXEC,
        c.proc1 as u64,
    )?;
    require(
        c.proc1 & proc::SECONDARY == 0 || caps.proc2.fits(c.proc2),
        "reserved bits of the secondary processor-based controls must be set properly",
        EXEC,
        c.proc2 as u64,
    )?;
    require(
        c.proc1 & proc::TERTIARY == 0,
        "tertiary controls must not be activated: rvmm does not fill them",
        EXEC,
        c.proc1 as u64,
    )?;
    require(
        c.cr3_target_count <= 4,
        "the CR3-target count must not be greater than 4",
        EXEC,
        c.cr3_target_count as u64,
    )?;
    if c.proc1 & proc::IO_BITMAPS != 0 {
        const RULE: &str = "I/O-bitmap addresses must be page-aligned and within the width";
        page(c.io_bitmap_a, RULE, caps)?;
        page(c.io_bitmap_b, RULE, caps)?;
    }
    if c.proc1 & proc::MSR_BITMAPS != 0 {
        page(
            c.msr_bitmap,
            "the MSR-bitmap address must be page-aligned and within the width",
            caps,
        )?;
    }
    require(
        c.pin & pin::NMI_EXITING != 0 || c.pin & pin::VIRTUAL_NMIS == 0,
        "\"virtual NMIs\" needs \"NMI exiting\"",
        EXEC,
        c.pin as u64,
    )?;
    require(
        c.pin & pin::VIRTUAL_NMIS != 0 || c.proc1 & proc::NMI_WINDOW == 0,
        "\"NMI-window exiting\" needs \"virtual NMIs\"",
        EXEC,
        c.proc1 as u64,
    )
}

fn execution_apic(c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let s = c.secondary();
    let delivery = s & proc2::VIRTUAL_INTERRUPTS != 0;
    if c.proc1 & proc::TPR_SHADOW != 0 {
        page(
            c.virtual_apic,
            "the virtual-APIC address must be page-aligned and within the width",
            caps,
        )?;
        if !delivery {
            require(
                c.tpr_threshold >> 4 == 0,
                "bits 31:4 of the TPR threshold must be zero",
                EXEC,
                c.tpr_threshold as u64,
            )?;
            require(
                s & proc2::APIC_ACCESSES != 0 || c.tpr_threshold <= (c.vtpr >> 4) as u32,
                "the TPR threshold must not be greater than VTPR[7:4]",
                EXEC,
                c.tpr_threshold as u64,
            )?;
        }
    } else {
        require(
            s & (proc2::X2APIC_MODE | proc2::APIC_REGISTERS | proc2::VIRTUAL_INTERRUPTS) == 0,
            "x2APIC mode, APIC-register virtualisation and virtual-interrupt delivery need \"use TPR shadow\"",
            EXEC,
            s as u64,
        )?;
    }
    if s & proc2::APIC_ACCESSES != 0 {
        page(
            c.apic_access,
            "the APIC-access address must be page-aligned and within the width",
            caps,
        )?;
        require(
            s & proc2::X2APIC_MODE == 0,
            "\"virtualize x2APIC mode\" excludes \"virtualize APIC accesses\"",
            EXEC,
            s as u64,
        )?;
    }
    require(
        !delivery || c.pin & pin::EXTERNAL_INTERRUPT_EXITING != 0,
        "virtual-interrupt delivery needs \"external-interrupt exiting\"",
        EXEC,
        c.pin as u64,
    )?;
    if c.pin & pin::POSTED_INTERRUPTS != 0 {
        require(
            delivery,
            "posted interrupts need virtual-interrupt delivery",
            EXEC,
            s as u64,
        )?;
        require(
            c.exit & exit::ACK_INTERRUPT != 0,
            "posted interrupts need \"acknowledge interrupt on exit\"",
            EXEC,
            c.exit as u64,
        )?;
        require(
            c.posted_vector <= 255,
            "the posted-interrupt notification vector must be 0 to 255",
            EXEC,
            c.posted_vector as u64,
        )?;
        require(
            c.posted_descriptor & 0x3f == 0 && c.posted_descriptor & caps.field_reserved() == 0,
            "the posted-interrupt descriptor must be 64-byte aligned and within the width",
            EXEC,
            c.posted_descriptor,
        )?;
    }
    Ok(())
}

fn execution_memory(c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let s = c.secondary();
    let ept = s & proc2::EPT != 0;
    require(
        s & proc2::VPID == 0 || c.vpid != 0,
        "VPID must not be zero",
        EXEC,
        0,
    )?;
    if ept {
        check_eptp(c.eptp, caps)?;
    }
    if s & proc2::PML != 0 {
        require(ept, "page-modification logging needs EPT", EXEC, s as u64)?;
        page(
            c.pml_address,
            "the PML address must be page-aligned and within the width",
            caps,
        )?;
    }
    require(
        ept || s & proc2::UNRESTRICTED_GUEST == 0,
        "\"unrestricted guest\" needs EPT",
        EXEC,
        s as u64,
    )?;
    require(
        ept || s & proc2::MODE_BASED_EXECUTE == 0,
        "mode-based execute control needs EPT",
        EXEC,
        s as u64,
    )?;
    require(
        ept || s & proc2::PT_GUEST_PHYSICAL == 0,
        "\"Intel PT uses guest physical addresses\" needs EPT",
        EXEC,
        s as u64,
    )?;
    if s & proc2::SUB_PAGE_WRITE != 0 {
        require(ept, "sub-page write permissions need EPT", EXEC, s as u64)?;
        page(
            c.sppt_pointer,
            "the sub-page-permission-table pointer must be page-aligned and within the width",
            caps,
        )?;
    }
    execution_optional(c, caps)?;
    require(
        s & proc2::TSC_SCALING == 0 || c.tsc_multiplier != 0,
        "the TSC multiplier must not be zero",
        "SDM 3C 25.6.5",
        c.tsc_multiplier,
    )
}

/// Controls of features that rvmm leaves off as yet.
fn execution_optional(c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let s = c.secondary();
    let ept = s & proc2::EPT != 0;
    if s & proc2::VM_FUNCTIONS != 0 {
        require(
            c.vm_function_controls & !caps.vmfunc == 0,
            "reserved VM-function controls must be zero",
            EXEC,
            c.vm_function_controls,
        )?;
        if c.vm_function_controls & 1 != 0 {
            require(ept, "EPTP switching needs EPT", EXEC, s as u64)?;
            page(
                c.eptp_list,
                "the EPTP-list address must be page-aligned and within the width",
                caps,
            )?;
        }
    }
    if s & proc2::VMCS_SHADOWING != 0 {
        const RULE: &str =
            "VMREAD- and VMWRITE-bitmap addresses must be page-aligned and within the width";
        page(c.vmread_bitmap, RULE, caps)?;
        page(c.vmwrite_bitmap, RULE, caps)?;
    }
    if s & proc2::EPT_VE != 0 {
        page(
            c.ve_information,
            "the virtualization-exception information address must be page-aligned and within the width",
            caps,
        )?;
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
    require(
        match eptp & 7 {
            0 => cap(ept_cap::UNCACHEABLE),
            6 => cap(ept_cap::WRITE_BACK),
            _ => false,
        },
        "the EPT memory type must be one that IA32_VMX_EPT_VPID_CAP reports",
        EXEC,
        eptp,
    )?;
    require(
        match (eptp >> 3) & 7 {
            3 => cap(ept_cap::LEVELS_4),
            4 => cap(ept_cap::LEVELS_5),
            _ => false,
        },
        "the EPT page-walk length must be one that IA32_VMX_EPT_VPID_CAP reports",
        EXEC,
        eptp,
    )?;
    require(
        eptp & (1 << 6) == 0 || cap(ept_cap::ACCESSED_DIRTY),
        "EPT accessed and dirty flags must be supported to be enabled",
        EXEC,
        eptp,
    )?;
    require(
        eptp & (1 << 7) == 0 || cap(ept_cap::SHADOW_STACK),
        "EPT supervisor shadow-stack control must be supported to be enabled",
        EXEC,
        eptp,
    )?;
    require(
        eptp & 0xf00 == 0 && eptp & caps.phys_reserved() == 0,
        "reserved bits of the EPT pointer must be zero",
        EXEC,
        eptp,
    )
}

fn msr_area(
    a: &MsrArea,
    align: &'static str,
    width: &'static str,
    manual: &'static str,
    caps: &VmxCaps,
) -> Result<(), Violation> {
    if a.count == 0 {
        return Ok(());
    }
    require(a.address & 15 == 0, align, manual, a.address)?;
    // 16 bytes for each entry: the last byte must be within the width too.
    let last = a.address.checked_add((a.count as u64 * 16).wrapping_sub(1));
    require(
        last.is_some_and(|l| (l | a.address) & caps.field_reserved() == 0),
        width,
        manual,
        a.address,
    )?;
    let limit = (((caps.misc >> 25) & 7) + 1) * 512;
    require(
        a.count as u64 <= limit,
        "an MSR area must not be longer than IA32_VMX_MISC recommends",
        "SDM 3C 25.7.2",
        a.count as u64,
    )
}

fn exit_controls(c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    require(
        caps.exit.fits(c.exit),
        "reserved bits of the VM-exit controls must be set properly",
        EXIT,
        c.exit as u64,
    )?;
    require(
        c.exit & EXIT_UNUSED_LOADS == 0,
        "VM-exit controls must not load state that rvmm does not keep",
        EXIT,
        c.exit as u64,
    )?;
    require(
        c.pin & pin::PREEMPTION_TIMER != 0 || c.exit & exit::SAVE_PREEMPTION_TIMER == 0,
        "\"save VMX-preemption timer value\" needs \"activate VMX-preemption timer\"",
        EXIT,
        c.exit as u64,
    )?;
    msr_area(
        &c.exit_msr_store,
        "the VM-exit MSR-store address must be 16-byte aligned",
        "the VM-exit MSR-store area must lie within the width",
        EXIT,
        caps,
    )?;
    msr_area(
        &c.exit_msr_load,
        "the VM-exit MSR-load address must be 16-byte aligned",
        "the VM-exit MSR-load area must lie within the width",
        EXIT,
        caps,
    )
}

fn entry_controls(c: &Controls, g: &Guest, caps: &VmxCaps) -> Result<(), Violation> {
    require(
        caps.entry.fits(c.entry),
        "reserved bits of the VM-entry controls must be set properly",
        ENTRY,
        c.entry as u64,
    )?;
    require(
        c.entry & ENTRY_UNUSED_LOADS == 0,
        "VM-entry controls must not load state that rvmm does not keep",
        ENTRY,
        c.entry as u64,
    )?;
    require(
        c.entry & (entry::SMM | entry::DUAL_MONITOR) == 0,
        "SMM entry controls must be zero outside SMM",
        ENTRY,
        c.entry as u64,
    )?;
    msr_area(
        &c.entry_msr_load,
        "the VM-entry MSR-load address must be 16-byte aligned",
        "the VM-entry MSR-load area must lie within the width",
        ENTRY,
        caps,
    )?;
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
    require(
        kind != 1 && (kind != intr::OTHER || (caps.proc1.0 >> 32) as u32 & proc::MONITOR_TRAP != 0),
        "the interruption type must not be reserved",
        ENTRY,
        info as u64,
    )?;
    require(
        match kind {
            intr::NMI => vector == 2,
            intr::HARDWARE_EXCEPTION => vector <= 31,
            intr::OTHER => vector == 0,
            _ => true,
        },
        "the vector must agree with the interruption type",
        ENTRY,
        info as u64,
    )?;
    let error_code = info & intr::ERROR_CODE != 0;
    let protected = !c.unrestricted() || g.cr0 & cr0::PE != 0;
    require(
        !error_code || (kind == intr::HARDWARE_EXCEPTION && protected),
        "an error code can be delivered only with a hardware exception in protected mode",
        ENTRY,
        info as u64,
    )?;
    // IA32_VMX_BASIC[56]: hardware exceptions may be delivered with or without an error code, whatever the vector.
    if caps.basic & (1 << 56) == 0 && kind == intr::HARDWARE_EXCEPTION && protected {
        let wants = matches!(vector, 8 | 10 | 11 | 12 | 13 | 14 | 17);
        require(
            error_code == wants || vector == 21,
            "an error code must be delivered exactly for the vectors that have one",
            ENTRY,
            info as u64,
        )?;
    }
    require(
        info & 0x7fff_f000 == 0,
        "reserved bits of the VM-entry interruption information must be zero",
        ENTRY,
        info as u64,
    )?;
    require(
        !error_code || c.entry_error_code >> 16 == 0,
        "bits 31:16 of the VM-entry exception error code must be zero",
        ENTRY,
        c.entry_error_code as u64,
    )?;
    if (intr::SOFTWARE_INTERRUPT..=intr::SOFTWARE_EXCEPTION).contains(&kind) {
        let len = c.entry_instruction_length;
        require(
            len <= 15 && (len != 0 || caps.misc & (1 << 30) != 0),
            "the VM-entry instruction length must be 1 to 15 (0 where IA32_VMX_MISC[30] is set)",
            ENTRY,
            len as u64,
        )?;
    }
    Ok(())
}
