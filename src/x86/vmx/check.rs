// SPDX-License-Identifier: GPL-2.0
//! VM entry's checks on controls, host state and guest state, run in software over the VMCS about to be used
//! (SDM 3C 27.2, 27.3.1).
//!
//! Three functions, one per group of the manual: [`check_controls`] (27.2.1), [`check_host`] (27.2.2 to 27.2.4),
//! [`check_guest`] (27.3.1). Emulators accept more states than processors do; this check refuses what the manual refuses.
//! Entry controls for state that rvmm never loads (performance counters, BNDCFGS, processor trace, CET, LBR, user interrupts,
//! PKRS, FRED) are refused outright, so their fields need no rules here.
#![forbid(unsafe_code)]

use crate::x86::cpu::canonical::is_canonical;
use crate::x86::cpu::msr::pat_valid;
use crate::x86::cpu::regs::{cr0, cr4, efer, rflags};
use crate::x86::cpu::violation::{require, Violation};

/// Pin-based VM-execution controls (SDM 3C table 25-5).
#[allow(missing_docs)]
pub mod pin {
    pub const EXTERNAL_INTERRUPT: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 3;
    pub const VIRTUAL_NMI: u32 = 1 << 5;
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
    pub const POSTED_INTERRUPTS: u32 = 1 << 7;
}

/// Primary processor-based VM-execution controls (SDM 3C table 25-6).
#[allow(missing_docs)]
pub mod proc1 {
    pub const IRQ_WINDOW: u32 = 1 << 2;
    pub const TSC_OFFSETTING: u32 = 1 << 3;
    pub const HLT: u32 = 1 << 7;
    pub const CR3_LOAD: u32 = 1 << 15;
    pub const CR3_STORE: u32 = 1 << 16;
    pub const TERTIARY: u32 = 1 << 17;
    pub const TPR_SHADOW: u32 = 1 << 21;
    pub const NMI_WINDOW: u32 = 1 << 22;
    pub const IO_BITMAPS: u32 = 1 << 25;
    pub const MONITOR_TRAP: u32 = 1 << 27;
    pub const MSR_BITMAPS: u32 = 1 << 28;
    pub const SECONDARY: u32 = 1 << 31;
}

/// Secondary processor-based VM-execution controls (SDM 3C table 25-7).
#[allow(missing_docs)]
pub mod proc2 {
    pub const APIC_ACCESS: u32 = 1 << 0;
    pub const EPT: u32 = 1 << 1;
    pub const X2APIC_MODE: u32 = 1 << 4;
    pub const VPID: u32 = 1 << 5;
    pub const UNRESTRICTED_GUEST: u32 = 1 << 7;
    pub const APIC_REGISTERS: u32 = 1 << 8;
    pub const VIRTUAL_INTERRUPTS: u32 = 1 << 9;
    pub const VM_FUNCTIONS: u32 = 1 << 13;
    pub const VMCS_SHADOWING: u32 = 1 << 14;
    pub const PML: u32 = 1 << 17;
    pub const EPT_VE: u32 = 1 << 18;
    pub const MODE_BASED_EXECUTE: u32 = 1 << 22;
    pub const SUB_PAGE_WRITE: u32 = 1 << 23;
    pub const PT_GUEST_PHYSICAL: u32 = 1 << 24;
    pub const TSC_SCALING: u32 = 1 << 25;
}

/// VM-exit controls (SDM 3C table 25-13).
#[allow(missing_docs)]
pub mod exit_ctl {
    pub const HOST_ADDRESS_SPACE: u32 = 1 << 9;
    pub const ACK_INTERRUPT: u32 = 1 << 15;
    pub const LOAD_PAT: u32 = 1 << 19;
    pub const LOAD_EFER: u32 = 1 << 21;
    pub const SAVE_PREEMPTION_TIMER: u32 = 1 << 22;
    /// Loads of state that rvmm does not keep in the VMCS: PERF_GLOBAL_CTRL, CET, PKRS.
    pub const UNUSED_LOADS: u32 = (1 << 12) | (1 << 28) | (1 << 29);
}

/// VM-entry controls (SDM 3C table 25-16).
#[allow(missing_docs)]
pub mod entry_ctl {
    pub const LOAD_DEBUG: u32 = 1 << 2;
    pub const IA32E_GUEST: u32 = 1 << 9;
    pub const ENTRY_TO_SMM: u32 = 1 << 10;
    pub const DEACTIVATE_DUAL_MONITOR: u32 = 1 << 11;
    pub const LOAD_PAT: u32 = 1 << 14;
    pub const LOAD_EFER: u32 = 1 << 15;
    /// Loads of state that rvmm does not keep in the VMCS: PERF_GLOBAL_CTRL, BNDCFGS, RTIT_CTL, UINV, CET, LBR_CTL, PKRS, FRED.
    pub const UNUSED_LOADS: u32 = (1 << 13)
        | (1 << 16)
        | (1 << 18)
        | (1 << 19)
        | (1 << 20)
        | (1 << 21)
        | (1 << 22)
        | (1 << 23);
}

/// An allowed-0/allowed-1 capability MSR: low half must be set, high half may be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed(pub u64);

impl Allowed {
    /// Whether `controls` sets all that must be and nothing that may not be set.
    pub const fn fits(self, controls: u32) -> bool {
        let must = self.0 as u32;
        let may = (self.0 >> 32) as u32;
        controls & must == must && controls & !may == 0
    }
}

/// What the processor has (SDM 3D appendix A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmxCaps {
    /// IA32_VMX_BASIC.
    pub basic: u64,
    /// IA32_VMX_TRUE_PINBASED_CTLS (or PINBASED_CTLS).
    pub pin: Allowed,
    /// IA32_VMX_TRUE_PROCBASED_CTLS (or PROCBASED_CTLS).
    pub proc1: Allowed,
    /// IA32_VMX_PROCBASED_CTLS2.
    pub proc2: Allowed,
    /// IA32_VMX_TRUE_EXIT_CTLS (or EXIT_CTLS).
    pub exit: Allowed,
    /// IA32_VMX_TRUE_ENTRY_CTLS (or ENTRY_CTLS).
    pub entry: Allowed,
    /// IA32_VMX_MISC.
    pub misc: u64,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept_vpid: u64,
    /// IA32_VMX_VMFUNC.
    pub vmfunc: u64,
    /// IA32_VMX_CR0_FIXED0, FIXED1.
    pub cr0_fixed: [u64; 2],
    /// IA32_VMX_CR4_FIXED0, FIXED1.
    pub cr4_fixed: [u64; 2],
    /// Physical-address width.
    pub phys_bits: u8,
    /// Linear-address width (48, or 57 with 5-level paging).
    pub linear_bits: u8,
    /// EFER bits that may be set.
    pub efer_mask: u64,
    /// IA32_DEBUGCTL bits that may be set.
    pub debugctl_mask: u64,
}

impl VmxCaps {
    const fn phys_reserved(&self) -> u64 {
        u64::MAX << (self.phys_bits & 63)
    }

    /// Width of a physical address in a VMCS field: 32 bits if IA32_VMX_BASIC\[48\] says so.
    const fn field_reserved(&self) -> u64 {
        if self.basic & (1 << 48) != 0 {
            u64::MAX << 32
        } else {
            self.phys_reserved()
        }
    }
}

/// A VM-exit or VM-entry MSR area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MsrArea {
    pub count: u32,
    pub address: u64,
}

/// Control fields (SDM 3C 25.6 to 25.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Controls {
    pub pin: u32,
    pub proc1: u32,
    pub proc2: u32,
    pub exit: u32,
    pub entry: u32,
    pub cr3_target_count: u32,
    pub io_bitmap_a: u64,
    pub io_bitmap_b: u64,
    pub msr_bitmap: u64,
    pub virtual_apic: u64,
    pub tpr_threshold: u32,
    /// Byte 80H of the virtual-APIC page (VTPR).
    pub vtpr: u8,
    pub apic_access: u64,
    pub posted_vector: u16,
    pub posted_descriptor: u64,
    pub vpid: u16,
    pub eptp: u64,
    pub pml_address: u64,
    pub sppt_pointer: u64,
    pub vm_function_controls: u64,
    pub eptp_list: u64,
    pub vmread_bitmap: u64,
    pub vmwrite_bitmap: u64,
    pub ve_information: u64,
    pub tsc_multiplier: u64,
    pub exit_msr_store: MsrArea,
    pub exit_msr_load: MsrArea,
    pub entry_msr_load: MsrArea,
    pub entry_interruption: u32,
    pub entry_error_code: u32,
    pub entry_instruction_length: u32,
}

impl Controls {
    /// Secondary controls as they count: zero unless activated.
    pub const fn secondary(&self) -> u32 {
        if self.proc1 & proc1::SECONDARY != 0 {
            self.proc2
        } else {
            0
        }
    }

    const fn unrestricted(&self) -> bool {
        self.secondary() & proc2::UNRESTRICTED_GUEST != 0
    }
}

/// Host-state area (SDM 3C 25.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Host {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub rip: u64,
    pub es: u16,
    pub cs: u16,
    pub ss: u16,
    pub ds: u16,
    pub fs: u16,
    pub gs: u16,
    pub tr: u16,
    pub fs_base: u64,
    pub gs_base: u64,
    pub tr_base: u64,
    pub gdtr_base: u64,
    pub idtr_base: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub efer: u64,
}

/// A guest segment register (SDM 3C 25.4.1); `rights` in the VMCS's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct GuestSegment {
    pub selector: u16,
    pub base: u64,
    pub limit: u32,
    pub rights: u32,
}

/// Fields of a segment's access rights (SDM 3C table 25-2).
#[allow(missing_docs)]
pub mod rights {
    pub const TYPE: u32 = 0xf;
    pub const S: u32 = 1 << 4;
    pub const P: u32 = 1 << 7;
    pub const L: u32 = 1 << 13;
    pub const DB: u32 = 1 << 14;
    pub const G: u32 = 1 << 15;
    pub const UNUSABLE: u32 = 1 << 16;
    /// Bits 11:8 and 31:17.
    pub const RESERVED: u32 = 0xfffe_0f00;
}

impl GuestSegment {
    const fn typ(&self) -> u32 {
        self.rights & rights::TYPE
    }
    const fn dpl(&self) -> u32 {
        (self.rights >> 5) & 3
    }
    const fn rpl(&self) -> u32 {
        self.selector as u32 & 3
    }
    const fn usable(&self) -> bool {
        self.rights & rights::UNUSABLE == 0
    }
    /// G agrees with the limit: any zero in bits 11:0 needs G = 0, any one in bits 31:20 needs G = 1.
    const fn granularity_ok(&self) -> bool {
        let g = self.rights & rights::G != 0;
        (self.limit & 0xfff == 0xfff || !g) && (self.limit >> 20 == 0 || g)
    }
}

/// Activity states (SDM 3C 25.4.2).
#[allow(missing_docs)]
pub mod activity {
    pub const ACTIVE: u32 = 0;
    pub const HLT: u32 = 1;
    pub const SHUTDOWN: u32 = 2;
    pub const WAIT_FOR_SIPI: u32 = 3;
}

/// Interruptibility-state bits (SDM 3C table 25-3).
#[allow(missing_docs)]
pub mod interruptibility {
    pub const STI: u32 = 1 << 0;
    pub const MOV_SS: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    pub const NMI: u32 = 1 << 3;
}

/// Guest-state area (SDM 3C 25.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Guest {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub dr7: u64,
    pub rip: u64,
    pub rflags: u64,
    pub es: GuestSegment,
    pub cs: GuestSegment,
    pub ss: GuestSegment,
    pub ds: GuestSegment,
    pub fs: GuestSegment,
    pub gs: GuestSegment,
    pub ldtr: GuestSegment,
    pub tr: GuestSegment,
    pub gdtr_base: u64,
    pub gdtr_limit: u32,
    pub idtr_base: u64,
    pub idtr_limit: u32,
    pub debugctl: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub efer: u64,
    pub activity: u32,
    pub interruptibility: u32,
    pub pending_debug: u64,
    pub link_pointer: u64,
    pub pdpte: [u64; 4],
}

/// Everything that VM entry looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct VmcsView {
    pub controls: Controls,
    pub host: Host,
    pub guest: Guest,
}

const EXEC: &str = "SDM 3C 27.2.1.1";
const EXIT: &str = "SDM 3C 27.2.1.2";
const ENTRY: &str = "SDM 3C 27.2.1.3";
const HOST_CR: &str = "SDM 3C 27.2.2";
const HOST_SEG: &str = "SDM 3C 27.2.3";
const HOST_SIZE: &str = "SDM 3C 27.2.4";
const G_CR: &str = "SDM 3C 27.3.1.1";
const G_SEG: &str = "SDM 3C 27.3.1.2";
const G_TABLE: &str = "SDM 3C 27.3.1.3";
const G_RIP: &str = "SDM 3C 27.3.1.4";
const G_STATE: &str = "SDM 3C 27.3.1.5";
const G_PDPTE: &str = "SDM 3C 27.3.1.6";

/// All groups, in the processor's order.
///
/// # Errors
///
/// The first rule that is broken.
pub fn check(v: &VmcsView, caps: &VmxCaps) -> Result<(), Violation> {
    check_controls(&v.controls, &v.guest, caps)?;
    check_host(&v.host, &v.controls, caps)?;
    check_guest(&v.guest, &v.controls, caps)
}

/// A page-aligned physical address within the width.
fn page(
    address: u64,
    rule: &'static str,
    manual: &'static str,
    caps: &VmxCaps,
) -> Result<(), Violation> {
    require(
        address & 0xfff == 0 && address & caps.field_reserved() == 0,
        rule,
        manual,
        address,
    )
}

/// Checks on the VM-execution, VM-exit and VM-entry control fields (27.2.1). A failure is VMfailValid(7) on a processor.
///
/// # Errors
///
/// The first rule that is broken.
pub fn check_controls(c: &Controls, g: &Guest, caps: &VmxCaps) -> Result<(), Violation> {
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
        c.proc1 & proc1::SECONDARY == 0 || caps.proc2.fits(c.proc2),
        "reserved bits of the secondary processor-based controls must be set properly",
        EXEC,
        c.proc2 as u64,
    )?;
    require(
        c.proc1 & proc1::TERTIARY == 0,
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
    if c.proc1 & proc1::IO_BITMAPS != 0 {
        const RULE: &str = "I/O-bitmap addresses must be page-aligned and within the width";
        page(c.io_bitmap_a, RULE, EXEC, caps)?;
        page(c.io_bitmap_b, RULE, EXEC, caps)?;
    }
    if c.proc1 & proc1::MSR_BITMAPS != 0 {
        page(
            c.msr_bitmap,
            "the MSR-bitmap address must be page-aligned and within the width",
            EXEC,
            caps,
        )?;
    }
    require(
        c.pin & pin::NMI != 0 || c.pin & pin::VIRTUAL_NMI == 0,
        "\"virtual NMIs\" needs \"NMI exiting\"",
        EXEC,
        c.pin as u64,
    )?;
    require(
        c.pin & pin::VIRTUAL_NMI != 0 || c.proc1 & proc1::NMI_WINDOW == 0,
        "\"NMI-window exiting\" needs \"virtual NMIs\"",
        EXEC,
        c.proc1 as u64,
    )
}

fn execution_apic(c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let s = c.secondary();
    let delivery = s & proc2::VIRTUAL_INTERRUPTS != 0;
    if c.proc1 & proc1::TPR_SHADOW != 0 {
        page(
            c.virtual_apic,
            "the virtual-APIC address must be page-aligned and within the width",
            EXEC,
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
                s & proc2::APIC_ACCESS != 0 || c.tpr_threshold <= (c.vtpr >> 4) as u32,
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
    if s & proc2::APIC_ACCESS != 0 {
        page(
            c.apic_access,
            "the APIC-access address must be page-aligned and within the width",
            EXEC,
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
        !delivery || c.pin & pin::EXTERNAL_INTERRUPT != 0,
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
            c.exit & exit_ctl::ACK_INTERRUPT != 0,
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
            EXEC,
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
            EXEC,
            caps,
        )?;
    }
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
                EXEC,
                caps,
            )?;
        }
    }
    if s & proc2::VMCS_SHADOWING != 0 {
        const RULE: &str =
            "VMREAD- and VMWRITE-bitmap addresses must be page-aligned and within the width";
        page(c.vmread_bitmap, RULE, EXEC, caps)?;
        page(c.vmwrite_bitmap, RULE, EXEC, caps)?;
    }
    if s & proc2::EPT_VE != 0 {
        page(
            c.ve_information,
            "the virtualization-exception information address must be page-aligned and within the width",
            EXEC,
            caps,
        )?;
    }
    require(
        s & proc2::TSC_SCALING == 0 || c.tsc_multiplier != 0,
        "the TSC multiplier must not be zero",
        "SDM 3C 25.6.5",
        c.tsc_multiplier,
    )
}

/// Checks the format of an EPT pointer (SDM 3C 25.6.11, 27.2.1.1).
///
/// # Errors
///
/// The rule that is broken.
pub fn check_eptp(eptp: u64, caps: &VmxCaps) -> Result<(), Violation> {
    let cap = |bit: u32| caps.ept_vpid & (1 << bit) != 0;
    require(
        match eptp & 7 {
            0 => cap(8),
            6 => cap(14),
            _ => false,
        },
        "the EPT memory type must be one that IA32_VMX_EPT_VPID_CAP reports",
        EXEC,
        eptp,
    )?;
    require(
        match (eptp >> 3) & 7 {
            3 => cap(6),
            4 => cap(7),
            _ => false,
        },
        "the EPT page-walk length must be one that IA32_VMX_EPT_VPID_CAP reports",
        EXEC,
        eptp,
    )?;
    require(
        eptp & (1 << 6) == 0 || cap(21),
        "EPT accessed and dirty flags must be supported to be enabled",
        EXEC,
        eptp,
    )?;
    require(
        eptp & (1 << 7) == 0 || cap(23),
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
        c.exit & exit_ctl::UNUSED_LOADS == 0,
        "VM-exit controls must not load state that rvmm does not keep",
        EXIT,
        c.exit as u64,
    )?;
    require(
        c.pin & pin::PREEMPTION_TIMER != 0 || c.exit & exit_ctl::SAVE_PREEMPTION_TIMER == 0,
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

/// Interruption types (SDM 3C table 25-17).
mod int_type {
    pub(super) const EXTERNAL: u32 = 0;
    pub(super) const NMI: u32 = 2;
    pub(super) const HARDWARE_EXCEPTION: u32 = 3;
    pub(super) const SOFTWARE_INTERRUPT: u32 = 4;
    pub(super) const SOFTWARE_EXCEPTION: u32 = 6;
    pub(super) const OTHER: u32 = 7;
}

const INT_VALID: u32 = 1 << 31;
const INT_ERROR_CODE: u32 = 1 << 11;

const fn int_kind(info: u32) -> u32 {
    (info >> 8) & 7
}

fn entry_controls(c: &Controls, g: &Guest, caps: &VmxCaps) -> Result<(), Violation> {
    require(
        caps.entry.fits(c.entry),
        "reserved bits of the VM-entry controls must be set properly",
        ENTRY,
        c.entry as u64,
    )?;
    require(
        c.entry & entry_ctl::UNUSED_LOADS == 0,
        "VM-entry controls must not load state that rvmm does not keep",
        ENTRY,
        c.entry as u64,
    )?;
    require(
        c.entry & (entry_ctl::ENTRY_TO_SMM | entry_ctl::DEACTIVATE_DUAL_MONITOR) == 0,
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
    let info = c.entry_interruption;
    if info & INT_VALID == 0 {
        return Ok(());
    }
    let vector = info & 0xff;
    let kind = int_kind(info);
    require(
        kind != 1
            && (kind != int_type::OTHER || (caps.proc1.0 >> 32) as u32 & proc1::MONITOR_TRAP != 0),
        "the interruption type must not be reserved",
        ENTRY,
        info as u64,
    )?;
    require(
        match kind {
            int_type::NMI => vector == 2,
            int_type::HARDWARE_EXCEPTION => vector <= 31,
            int_type::OTHER => vector == 0,
            _ => true,
        },
        "the vector must agree with the interruption type",
        ENTRY,
        info as u64,
    )?;
    let error_code = info & INT_ERROR_CODE != 0;
    let protected = !c.unrestricted() || g.cr0 & cr0::PE != 0;
    require(
        !error_code || (kind == int_type::HARDWARE_EXCEPTION && protected),
        "an error code can be delivered only with a hardware exception in protected mode",
        ENTRY,
        info as u64,
    )?;
    // IA32_VMX_BASIC[56]: hardware exceptions may be delivered with or without an error code, whatever the vector.
    if caps.basic & (1 << 56) == 0 && kind == int_type::HARDWARE_EXCEPTION && protected {
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
    if (int_type::SOFTWARE_INTERRUPT..=int_type::SOFTWARE_EXCEPTION).contains(&kind) {
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

fn fixed(value: u64, fixed: &[u64; 2], ignore: u64) -> bool {
    let must = fixed[0] & !ignore;
    let never = !fixed[1] & !ignore;
    value & must == must && value & never == 0
}

/// Checks on the host-state area (27.2.2 to 27.2.4). A failure is VMfailValid(8) on a processor. The host is in 64-bit mode.
///
/// # Errors
///
/// The first rule that is broken.
pub fn check_host(h: &Host, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let width = caps.linear_bits;
    let canonical = |a: u64| is_canonical(a, width);
    require(
        fixed(h.cr0, &caps.cr0_fixed, 0),
        "host CR0 must not set a bit to a value that VMX does not support",
        HOST_CR,
        h.cr0,
    )?;
    require(
        fixed(h.cr4, &caps.cr4_fixed, 0),
        "host CR4 must not set a bit to a value that VMX does not support",
        HOST_CR,
        h.cr4,
    )?;
    require(
        h.cr4 & cr4::CET == 0 || h.cr0 & cr0::WP != 0,
        "host CR0.WP must be set when host CR4.CET is set",
        HOST_CR,
        h.cr0,
    )?;
    require(
        h.cr3 & caps.phys_reserved() == 0,
        "host CR3 must lie within the physical-address width",
        HOST_CR,
        h.cr3,
    )?;
    require(
        canonical(h.sysenter_esp),
        "host IA32_SYSENTER_ESP must be canonical",
        HOST_CR,
        h.sysenter_esp,
    )?;
    require(
        canonical(h.sysenter_eip),
        "host IA32_SYSENTER_EIP must be canonical",
        HOST_CR,
        h.sysenter_eip,
    )?;
    require(
        c.exit & exit_ctl::LOAD_PAT == 0 || pat_valid(h.pat),
        "host IA32_PAT must hold only defined memory types",
        HOST_CR,
        h.pat,
    )?;
    let wide = c.exit & exit_ctl::HOST_ADDRESS_SPACE != 0;
    if c.exit & exit_ctl::LOAD_EFER != 0 {
        require(
            h.efer & !caps.efer_mask == 0,
            "reserved bits of host IA32_EFER must be zero",
            HOST_CR,
            h.efer,
        )?;
        require(
            (h.efer & efer::LMA != 0) == wide && (h.efer & efer::LME != 0) == wide,
            "host EFER.LMA and LME must equal \"host address-space size\"",
            HOST_CR,
            h.efer,
        )?;
    }
    for s in [h.es, h.cs, h.ss, h.ds, h.fs, h.gs, h.tr] {
        require(
            s & 7 == 0,
            "RPL and TI of host selectors must be zero",
            HOST_SEG,
            s as u64,
        )?;
    }
    require(h.cs != 0, "host CS must not be null", HOST_SEG, 0)?;
    require(h.tr != 0, "host TR must not be null", HOST_SEG, 0)?;
    require(
        wide || h.ss != 0,
        "host SS must not be null for a 32-bit host",
        HOST_SEG,
        0,
    )?;
    for base in [h.fs_base, h.gs_base, h.gdtr_base, h.idtr_base, h.tr_base] {
        require(
            canonical(base),
            "host bases of FS, GS, GDTR, IDTR and TR must be canonical",
            HOST_SEG,
            base,
        )?;
    }
    require(
        wide,
        "\"host address-space size\" must be 1 when the processor is in IA-32e mode",
        HOST_SIZE,
        c.exit as u64,
    )?;
    require(
        h.cr4 & cr4::PAE != 0,
        "host CR4.PAE must be set for a 64-bit host",
        HOST_SIZE,
        h.cr4,
    )?;
    require(
        canonical(h.rip),
        "host RIP must be canonical",
        HOST_SIZE,
        h.rip,
    )
}

/// Checks on the guest-state area (27.3.1). A failure is a VM exit with reason 33 on a processor.
///
/// # Errors
///
/// The first rule that is broken.
pub fn check_guest(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    guest_registers(g, c, caps)?;
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

fn guest_registers(g: &Guest, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let ia32e = c.entry & entry_ctl::IA32E_GUEST != 0;
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
    if c.entry & entry_ctl::LOAD_DEBUG != 0 {
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
    )?;
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
        c.entry & entry_ctl::LOAD_PAT == 0 || pat_valid(g.pat),
        "guest IA32_PAT must hold only defined memory types",
        G_CR,
        g.pat,
    )?;
    if c.entry & entry_ctl::LOAD_EFER != 0 {
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
        c.entry & entry_ctl::IA32E_GUEST == 0
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
        tr.typ() == 11 || (tr.typ() == 3 && c.entry & entry_ctl::IA32E_GUEST == 0),
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

/// Sign-extends from bit `width`, so that bits 63:width must be equal: RIP may be one past the last canonical address of the lower
/// half (SDM 3C 27.3.1.4).
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
    let ia32e = c.entry & entry_ctl::IA32E_GUEST != 0;
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
        info & INT_VALID == 0 || int_kind(info) != int_type::EXTERNAL || g.rflags & rflags::IF != 0,
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
        a == activity::ACTIVE
            || g.interruptibility & (interruptibility::STI | interruptibility::MOV_SS) == 0,
        "blocking by STI or MOV SS needs activity state active",
        G_STATE,
        a as u64,
    )?;
    let info = c.entry_interruption;
    if info & INT_VALID != 0 {
        let vector = info & 0xff;
        let kind = int_kind(info);
        require(
            match a {
                activity::ACTIVE => true,
                activity::HLT => match kind {
                    int_type::EXTERNAL | int_type::NMI | int_type::OTHER => true,
                    int_type::HARDWARE_EXCEPTION => vector == 1 || vector == 18,
                    _ => false,
                },
                activity::SHUTDOWN => {
                    kind == int_type::NMI || (kind == int_type::HARDWARE_EXCEPTION && vector == 18)
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
    let sti = i & interruptibility::STI != 0;
    let mov_ss = i & interruptibility::MOV_SS != 0;
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
        i & interruptibility::SMI == 0,
        "blocking by SMI must be clear outside SMM",
        G_STATE,
        i as u64,
    )?;
    let info = c.entry_interruption;
    if info & INT_VALID != 0 {
        let kind = int_kind(info);
        require(
            kind != int_type::EXTERNAL || !(sti || mov_ss),
            "an external interrupt must not be injected while STI or MOV SS blocks",
            G_STATE,
            i as u64,
        )?;
        require(
            kind != int_type::NMI || !(sti || mov_ss),
            "an NMI must not be injected while STI or MOV SS blocks",
            G_STATE,
            i as u64,
        )?;
        require(
            kind != int_type::NMI
                || c.pin & pin::VIRTUAL_NMI == 0
                || i & interruptibility::NMI == 0,
            "an NMI must not be injected while virtual NMIs are blocked",
            G_STATE,
            i as u64,
        )?;
    }
    Ok(())
}

fn guest_pending_debug(g: &Guest) -> Result<(), Violation> {
    const BS: u64 = 1 << 14;
    const BTF: u64 = 1 << 1;
    let p = g.pending_debug;
    // Bits 3:0 (B3-B0), 12 (enabled breakpoint) and 14 (BS) are defined; 16 (RTM) needs TSX, which guests do not have.
    require(
        p & !(0xf | (1 << 12) | BS) == 0,
        "reserved bits of the pending debug exceptions must be zero",
        G_STATE,
        p,
    )?;
    let blocked = g.interruptibility & (interruptibility::STI | interruptibility::MOV_SS) != 0
        || g.activity == activity::HLT;
    if blocked {
        let step = g.rflags & rflags::TF != 0 && g.debugctl & BTF == 0;
        require(
            (p & BS != 0) == step,
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
    let pae =
        g.cr0 & cr0::PG != 0 && g.cr4 & cr4::PAE != 0 && c.entry & entry_ctl::IA32E_GUEST == 0;
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
