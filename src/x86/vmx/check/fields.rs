// SPDX-License-Identifier: GPL-2.0
//! What VM entry looks at, and what the processor has.
#![forbid(unsafe_code)]

use crate::x86::vmx::bits::{entry, proc, proc2, rights};

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
    pub(super) const fn phys_reserved(&self) -> u64 {
        u64::MAX << (self.phys_bits & 63)
    }

    /// Width of a physical address in a VMCS field: 32 bits if IA32_VMX_BASIC\[48\] says so.
    pub(super) const fn field_reserved(&self) -> u64 {
        if self.basic & (1 << 48) != 0 {
            u64::MAX << 32
        } else {
            self.phys_reserved()
        }
    }
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
    pub tsc_multiplier: u64,
    pub pml_address: u64,
    pub exit_msr_store_count: u32,
    pub exit_msr_load_count: u32,
    pub entry_msr_load_count: u32,
    pub entry_interruption: u32,
    pub entry_error_code: u32,
    pub entry_instruction_length: u32,
}

impl Controls {
    /// Secondary controls as they count: zero unless activated.
    pub const fn secondary(&self) -> u32 {
        if self.proc1 & proc::SECONDARY != 0 {
            self.proc2
        } else {
            0
        }
    }

    pub(super) const fn ia32e(&self) -> bool {
        self.entry & entry::IA32E_GUEST != 0
    }

    pub(super) const fn unrestricted(&self) -> bool {
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

impl GuestSegment {
    pub(super) const fn typ(&self) -> u32 {
        self.rights & rights::TYPE
    }
    pub(super) const fn dpl(&self) -> u32 {
        (self.rights >> 5) & 3
    }
    pub(super) const fn rpl(&self) -> u32 {
        self.selector as u32 & 3
    }
    pub(super) const fn usable(&self) -> bool {
        self.rights & rights::UNUSABLE == 0
    }
    /// G agrees with the limit: any zero in bits 11:0 needs G = 0, any one in bits 31:20 needs G = 1.
    pub(super) const fn granularity_ok(&self) -> bool {
        let g = self.rights & rights::G != 0;
        (self.limit & 0xfff == 0xfff || !g) && (self.limit >> 20 == 0 || g)
    }
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

pub(super) fn fixed(value: u64, fixed: &[u64; 2], ignore: u64) -> bool {
    let must = fixed[0] & !ignore;
    let never = !fixed[1] & !ignore;
    value & must == must && value & never == 0
}

pub(super) const fn int_kind(info: u32) -> u32 {
    (info >> 8) & 7
}
