// SPDX-License-Identifier: GPL-2.0
//! VMCS fields with their areas and widths, grouped as SDM 3D appendix B groups them.
//!
//! The area is part of the type: any field can be read, guest-state fields can be written safely (the
//! processor checks them and they act inside the guest only), control and host-state fields only by
//! `unsafe` calls, because they decide what the guest can reach and where the host continues.

use core::marker::PhantomData;

/// Access type of a field: bits 11:10 of its encoding (SDM 3D table B-1).
pub(super) trait Area: Copy {
    /// Value of bits 11:10.
    const CODE: u32;
}

/// Width of a field: bits 14:13 of its encoding (SDM 3D table B-1).
pub(super) trait Width: Copy {
    /// Value of bits 14:13.
    const CODE: u32;
    /// Rust type of the value.
    type Value: Copy;
    /// Extends a value to what VMWRITE takes.
    fn widen(v: Self::Value) -> u64;
    /// Cuts what VMREAD gives.
    fn narrow(v: u64) -> Self::Value;
}

macro_rules! area {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name;
        impl Area for $name {
            const CODE: u32 = $code;
        }
    )* };
}

area! {
    /// Control fields.
    Control = 0;
    /// Read-only data fields (VM-exit information).
    Info = 1;
    /// Guest-state fields.
    Guest = 2;
    /// Host-state fields.
    Host = 3;
}

macro_rules! width {
    ($($(#[$doc:meta])* $name:ident = $code:literal: $value:ty;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name;
        impl Width for $name {
            const CODE: u32 = $code;
            type Value = $value;
            #[inline(always)]
            #[allow(clippy::useless_conversion)] // For the widths that are 64 bits already.
            fn widen(v: $value) -> u64 {
                u64::from(v)
            }
            #[inline(always)]
            fn narrow(v: u64) -> $value {
                v as $value
            }
        }
    )* };
}

width! {
    /// 16 bits.
    W16 = 0: u16;
    /// 64 bits.
    W64 = 1: u64;
    /// 32 bits.
    W32 = 2: u32;
    /// Natural width: 64 bits here.
    Nat = 3: u64;
}

/// One VMCS field.
#[derive(Clone, Copy)]
pub(super) struct Field<A, W>(u32, PhantomData<(A, W)>);

impl<A: Area, W: Width> Field<A, W> {
    /// The field with this encoding; fails to compile when area or width do not match it.
    const fn new(encoding: u32) -> Self {
        assert!((encoding >> 10) & 3 == A::CODE, "area");
        assert!((encoding >> 13) & 3 == W::CODE, "width");
        assert!(encoding & 1 == 0, "full access");
        Self(encoding, PhantomData)
    }

    /// Operand of VMREAD and VMWRITE.
    #[inline(always)]
    pub(super) const fn encoding(self) -> u32 {
        self.0
    }
}

impl<W: Width> Field<Guest, W> {
    /// The field `n` places further in the same group (SDM 3D table B-1: index in bits 9:1), for groups
    /// indexed by segment register or PDPTE number.
    #[inline(always)]
    pub(super) const fn nth(self, n: u32) -> Self {
        Self(self.0 + 2 * (n & 15), PhantomData)
    }
}

macro_rules! fields {
    ($area:ty, $width:ty: $($name:ident = $enc:literal,)*) => {
        $(pub(super) const $name: Field<$area, $width> = Field::new($enc);)*
    };
}

// B.1 16-bit fields.
fields! { Control, W16:
    VPID = 0x0000,
    POSTED_VECTOR = 0x0002,
}
fields! { Guest, W16:
    GUEST_ES_SELECTOR = 0x0800,
    GUEST_INTERRUPT_STATUS = 0x0810,
}
fields! { Host, W16:
    HOST_ES_SELECTOR = 0x0c00,
    HOST_CS_SELECTOR = 0x0c02,
    HOST_SS_SELECTOR = 0x0c04,
    HOST_DS_SELECTOR = 0x0c06,
    HOST_FS_SELECTOR = 0x0c08,
    HOST_GS_SELECTOR = 0x0c0a,
    HOST_TR_SELECTOR = 0x0c0c,
}

// B.2 64-bit fields.
fields! { Control, W64:
    MSR_BITMAP = 0x2004,
    EXIT_MSR_STORE_ADDR = 0x2006,
    EXIT_MSR_LOAD_ADDR = 0x2008,
    ENTRY_MSR_LOAD_ADDR = 0x200a,
    TSC_OFFSET = 0x2010,
    VIRTUAL_APIC_ADDR = 0x2012,
    APIC_ACCESS_ADDR = 0x2014,
    POSTED_DESCRIPTOR = 0x2016,
    EPT_POINTER = 0x201a,
    EOI_EXIT_BITMAP0 = 0x201c,
    EOI_EXIT_BITMAP1 = 0x201e,
    EOI_EXIT_BITMAP2 = 0x2020,
    EOI_EXIT_BITMAP3 = 0x2022,
    XSS_EXITING_BITMAP = 0x202c,
    ENCLS_EXITING_BITMAP = 0x202e,
    TSC_MULTIPLIER = 0x2032,
}
fields! { Info, W64:
    GUEST_PHYSICAL_ADDRESS = 0x2400,
}
fields! { Guest, W64:
    VMCS_LINK_POINTER = 0x2800,
    GUEST_DEBUGCTL = 0x2802,
    GUEST_PAT = 0x2804,
    GUEST_EFER = 0x2806,
    GUEST_PDPTE0 = 0x280a,
}
fields! { Host, W64:
    HOST_PAT = 0x2c00,
    HOST_EFER = 0x2c02,
}

// B.3 32-bit fields.
fields! { Control, W32:
    PIN_CONTROLS = 0x4000,
    PROC_CONTROLS = 0x4002,
    EXCEPTION_BITMAP = 0x4004,
    PF_ERROR_CODE_MASK = 0x4006,
    PF_ERROR_CODE_MATCH = 0x4008,
    CR3_TARGET_COUNT = 0x400a,
    EXIT_CONTROLS = 0x400c,
    EXIT_MSR_STORE_COUNT = 0x400e,
    EXIT_MSR_LOAD_COUNT = 0x4010,
    ENTRY_CONTROLS = 0x4012,
    ENTRY_MSR_LOAD_COUNT = 0x4014,
    ENTRY_INTR_INFO = 0x4016,
    ENTRY_EXCEPTION_ERROR_CODE = 0x4018,
    ENTRY_INSTRUCTION_LEN = 0x401a,
    TPR_THRESHOLD = 0x401c,
    PROC2_CONTROLS = 0x401e,
    PLE_GAP = 0x4020,
    PLE_WINDOW = 0x4022,
}
fields! { Info, W32:
    INSTRUCTION_ERROR = 0x4400,
    EXIT_REASON = 0x4402,
    EXIT_INTR_INFO = 0x4404,
    EXIT_INTR_ERROR_CODE = 0x4406,
    IDT_VECTORING_INFO = 0x4408,
    IDT_VECTORING_ERROR_CODE = 0x440a,
    EXIT_INSTRUCTION_LEN = 0x440c,
}
fields! { Guest, W32:
    GUEST_ES_LIMIT = 0x4800,
    GUEST_GDTR_LIMIT = 0x4810,
    GUEST_IDTR_LIMIT = 0x4812,
    GUEST_ES_ACCESS_RIGHTS = 0x4814,
    GUEST_INTERRUPTIBILITY = 0x4824,
    GUEST_ACTIVITY_STATE = 0x4826,
    GUEST_SYSENTER_CS = 0x482a,
    PREEMPTION_TIMER_VALUE = 0x482e,
}
fields! { Host, W32:
    HOST_SYSENTER_CS = 0x4c00,
}

// B.4 natural-width fields.
fields! { Control, Nat:
    CR0_MASK = 0x6000,
    CR4_MASK = 0x6002,
    CR0_SHADOW = 0x6004,
    CR4_SHADOW = 0x6006,
}
fields! { Info, Nat:
    EXIT_QUALIFICATION = 0x6400,
}
fields! { Guest, Nat:
    GUEST_CR0 = 0x6800,
    GUEST_CR3 = 0x6802,
    GUEST_CR4 = 0x6804,
    GUEST_ES_BASE = 0x6806,
    GUEST_GDTR_BASE = 0x6816,
    GUEST_IDTR_BASE = 0x6818,
    GUEST_DR7 = 0x681a,
    GUEST_RSP = 0x681c,
    GUEST_RIP = 0x681e,
    GUEST_RFLAGS = 0x6820,
    GUEST_PENDING_DEBUG = 0x6822,
    GUEST_SYSENTER_ESP = 0x6824,
    GUEST_SYSENTER_EIP = 0x6826,
}
fields! { Host, Nat:
    HOST_CR0 = 0x6c00,
    HOST_CR3 = 0x6c02,
    HOST_CR4 = 0x6c04,
    HOST_FS_BASE = 0x6c06,
    HOST_GS_BASE = 0x6c08,
    HOST_TR_BASE = 0x6c0a,
    HOST_GDTR_BASE = 0x6c0c,
    HOST_IDTR_BASE = 0x6c0e,
    HOST_SYSENTER_ESP = 0x6c10,
    HOST_SYSENTER_EIP = 0x6c12,
    HOST_RSP = 0x6c14,
    HOST_RIP = 0x6c16,
}

/// Base of segment register FS in the guest-state area; GS follows.
pub(super) const GUEST_FS_BASE: Field<Guest, Nat> = GUEST_ES_BASE.nth(4);
/// Base of segment register GS in the guest-state area.
pub(super) const GUEST_GS_BASE: Field<Guest, Nat> = GUEST_ES_BASE.nth(5);

// The groups indexed by segment register run ES, CS, SS, DS, FS, GS, LDTR, TR, which is the order of
// `crate::x86::cpu::regs::Seg` (SDM 3D B.1.2, B.3.3, B.4.3).
const _: () = {
    assert!(crate::x86::cpu::regs::Seg::Tr as u32 == 7);
    assert!(GUEST_ES_SELECTOR.nth(7).encoding() == 0x080e);
    assert!(GUEST_ES_LIMIT.nth(7).encoding() == 0x480e);
    assert!(GUEST_ES_ACCESS_RIGHTS.nth(7).encoding() == 0x4822);
    assert!(GUEST_ES_BASE.nth(7).encoding() == 0x6814);
    assert!(GUEST_PDPTE0.nth(3).encoding() == 0x2810);
};

/// Bits of the pin-based VM-execution controls (SDM 3C table 25-5).
pub(super) mod pin {
    pub(in crate::x86::vmx) const EXTERNAL_INTERRUPT_EXITING: u32 = 1 << 0;
    pub(in crate::x86::vmx) const NMI_EXITING: u32 = 1 << 3;
    pub(in crate::x86::vmx) const VIRTUAL_NMIS: u32 = 1 << 5;
    pub(in crate::x86::vmx) const PREEMPTION_TIMER: u32 = 1 << 6;
    pub(in crate::x86::vmx) const POSTED_INTERRUPTS: u32 = 1 << 7;
}

/// Bits of the primary processor-based VM-execution controls (SDM 3C table 25-6).
pub(super) mod proc {
    pub(in crate::x86::vmx) const INTERRUPT_WINDOW: u32 = 1 << 2;
    pub(in crate::x86::vmx) const TSC_OFFSETTING: u32 = 1 << 3;
    pub(in crate::x86::vmx) const HLT_EXITING: u32 = 1 << 7;
    pub(in crate::x86::vmx) const INVLPG_EXITING: u32 = 1 << 9;
    pub(in crate::x86::vmx) const MWAIT_EXITING: u32 = 1 << 10;
    pub(in crate::x86::vmx) const RDPMC_EXITING: u32 = 1 << 11;
    pub(in crate::x86::vmx) const RDTSC_EXITING: u32 = 1 << 12;
    pub(in crate::x86::vmx) const CR3_LOAD_EXITING: u32 = 1 << 15;
    pub(in crate::x86::vmx) const CR3_STORE_EXITING: u32 = 1 << 16;
    pub(in crate::x86::vmx) const TERTIARY: u32 = 1 << 17;
    pub(in crate::x86::vmx) const CR8_LOAD_EXITING: u32 = 1 << 19;
    pub(in crate::x86::vmx) const CR8_STORE_EXITING: u32 = 1 << 20;
    pub(in crate::x86::vmx) const TPR_SHADOW: u32 = 1 << 21;
    pub(in crate::x86::vmx) const NMI_WINDOW: u32 = 1 << 22;
    pub(in crate::x86::vmx) const MOV_DR_EXITING: u32 = 1 << 23;
    pub(in crate::x86::vmx) const UNCONDITIONAL_IO: u32 = 1 << 24;
    pub(in crate::x86::vmx) const IO_BITMAPS: u32 = 1 << 25;
    pub(in crate::x86::vmx) const MONITOR_TRAP: u32 = 1 << 27;
    pub(in crate::x86::vmx) const MSR_BITMAPS: u32 = 1 << 28;
    pub(in crate::x86::vmx) const MONITOR_EXITING: u32 = 1 << 29;
    pub(in crate::x86::vmx) const PAUSE_EXITING: u32 = 1 << 30;
    pub(in crate::x86::vmx) const SECONDARY: u32 = 1 << 31;
}

/// Bits of the secondary processor-based VM-execution controls (SDM 3C table 25-7).
pub(super) mod proc2 {
    pub(in crate::x86::vmx) const APIC_ACCESSES: u32 = 1 << 0;
    pub(in crate::x86::vmx) const EPT: u32 = 1 << 1;
    pub(in crate::x86::vmx) const RDTSCP: u32 = 1 << 3;
    pub(in crate::x86::vmx) const X2APIC_MODE: u32 = 1 << 4;
    pub(in crate::x86::vmx) const VPID: u32 = 1 << 5;
    pub(in crate::x86::vmx) const WBINVD_EXITING: u32 = 1 << 6;
    pub(in crate::x86::vmx) const UNRESTRICTED_GUEST: u32 = 1 << 7;
    pub(in crate::x86::vmx) const APIC_REGISTERS: u32 = 1 << 8;
    pub(in crate::x86::vmx) const VIRTUAL_INTERRUPTS: u32 = 1 << 9;
    pub(in crate::x86::vmx) const PAUSE_LOOP_EXITING: u32 = 1 << 10;
    pub(in crate::x86::vmx) const INVPCID: u32 = 1 << 12;
    pub(in crate::x86::vmx) const ENCLS_EXITING: u32 = 1 << 15;
    pub(in crate::x86::vmx) const XSAVES: u32 = 1 << 20;
    pub(in crate::x86::vmx) const TSC_SCALING: u32 = 1 << 25;
}

/// Bits of the primary VM-exit controls (SDM 3C table 25-14).
pub(super) mod exit {
    pub(in crate::x86::vmx) const SAVE_DEBUG: u32 = 1 << 2;
    pub(in crate::x86::vmx) const HOST_64BIT: u32 = 1 << 9;
    pub(in crate::x86::vmx) const LOAD_PERF_GLOBAL: u32 = 1 << 12;
    pub(in crate::x86::vmx) const ACK_INTERRUPT: u32 = 1 << 15;
    pub(in crate::x86::vmx) const SAVE_PAT: u32 = 1 << 18;
    pub(in crate::x86::vmx) const LOAD_PAT: u32 = 1 << 19;
    pub(in crate::x86::vmx) const SAVE_EFER: u32 = 1 << 20;
    pub(in crate::x86::vmx) const LOAD_EFER: u32 = 1 << 21;
    pub(in crate::x86::vmx) const SAVE_PREEMPTION_TIMER: u32 = 1 << 22;
    pub(in crate::x86::vmx) const CLEAR_BNDCFGS: u32 = 1 << 23;
    pub(in crate::x86::vmx) const CLEAR_RTIT: u32 = 1 << 25;
    pub(in crate::x86::vmx) const CLEAR_LBR: u32 = 1 << 26;
    pub(in crate::x86::vmx) const LOAD_CET: u32 = 1 << 28;
    pub(in crate::x86::vmx) const LOAD_PKRS: u32 = 1 << 29;
    pub(in crate::x86::vmx) const SAVE_PERF_GLOBAL: u32 = 1 << 30;
    pub(in crate::x86::vmx) const SECONDARY: u32 = 1 << 31;
}

/// Bits of the VM-entry controls (SDM 3C table 25-17).
pub(super) mod entry {
    pub(in crate::x86::vmx) const LOAD_DEBUG: u32 = 1 << 2;
    pub(in crate::x86::vmx) const IA32E_GUEST: u32 = 1 << 9;
    pub(in crate::x86::vmx) const SMM: u32 = 1 << 10;
    pub(in crate::x86::vmx) const DUAL_MONITOR: u32 = 1 << 11;
    pub(in crate::x86::vmx) const LOAD_PERF_GLOBAL: u32 = 1 << 13;
    pub(in crate::x86::vmx) const LOAD_PAT: u32 = 1 << 14;
    pub(in crate::x86::vmx) const LOAD_EFER: u32 = 1 << 15;
    pub(in crate::x86::vmx) const LOAD_BNDCFGS: u32 = 1 << 16;
    pub(in crate::x86::vmx) const LOAD_RTIT: u32 = 1 << 18;
    pub(in crate::x86::vmx) const LOAD_CET: u32 = 1 << 20;
    pub(in crate::x86::vmx) const LOAD_LBR: u32 = 1 << 21;
    pub(in crate::x86::vmx) const LOAD_PKRS: u32 = 1 << 22;
}

/// Interruption information: entry, exit and IDT-vectoring (SDM 3C tables 25-18, 25-20, 25-21).
pub(super) mod intr {
    pub(in crate::x86::vmx) const VALID: u32 = 1 << 31;
    pub(in crate::x86::vmx) const ERROR_CODE: u32 = 1 << 11;
    /// Exit information only: the exit came in the course of an IRET that had unblocked NMIs.
    pub(in crate::x86::vmx) const NMI_UNBLOCKED: u32 = 1 << 12;
    pub(in crate::x86::vmx) const TYPE_SHIFT: u32 = 8;
    pub(in crate::x86::vmx) const EXTERNAL: u32 = 0;
    pub(in crate::x86::vmx) const NMI: u32 = 2;
    pub(in crate::x86::vmx) const HARDWARE_EXCEPTION: u32 = 3;
    pub(in crate::x86::vmx) const SOFTWARE_INTERRUPT: u32 = 4;
    pub(in crate::x86::vmx) const PRIVILEGED_SOFTWARE_EXCEPTION: u32 = 5;
    pub(in crate::x86::vmx) const SOFTWARE_EXCEPTION: u32 = 6;
}

/// Guest interruptibility state (SDM 3C table 25-3).
pub(super) mod blocking {
    pub(in crate::x86::vmx) const STI: u32 = 1 << 0;
    pub(in crate::x86::vmx) const MOV_SS: u32 = 1 << 1;
    pub(in crate::x86::vmx) const NMI: u32 = 1 << 3;
}

/// Pending debug exceptions, bit BS: a single-step trap (SDM 3C table 25-4).
pub(super) const PENDING_DEBUG_BS: u64 = 1 << 14;

/// Basic exit reasons (SDM 3D table C-1).
pub(super) mod reason {
    pub(in crate::x86::vmx) const EXCEPTION_OR_NMI: u32 = 0;
    pub(in crate::x86::vmx) const EXTERNAL_INTERRUPT: u32 = 1;
    pub(in crate::x86::vmx) const TRIPLE_FAULT: u32 = 2;
    pub(in crate::x86::vmx) const INTERRUPT_WINDOW: u32 = 7;
    pub(in crate::x86::vmx) const NMI_WINDOW: u32 = 8;
    pub(in crate::x86::vmx) const TASK_SWITCH: u32 = 9;
    pub(in crate::x86::vmx) const CPUID: u32 = 10;
    pub(in crate::x86::vmx) const GETSEC: u32 = 11;
    pub(in crate::x86::vmx) const HLT: u32 = 12;
    pub(in crate::x86::vmx) const INVD: u32 = 13;
    pub(in crate::x86::vmx) const RDPMC: u32 = 15;
    pub(in crate::x86::vmx) const VMCALL: u32 = 18;
    pub(in crate::x86::vmx) const VMCLEAR: u32 = 19;
    pub(in crate::x86::vmx) const VMXON: u32 = 27;
    pub(in crate::x86::vmx) const CR_ACCESS: u32 = 28;
    pub(in crate::x86::vmx) const DR_ACCESS: u32 = 29;
    pub(in crate::x86::vmx) const IO: u32 = 30;
    pub(in crate::x86::vmx) const RDMSR: u32 = 31;
    pub(in crate::x86::vmx) const WRMSR: u32 = 32;
    pub(in crate::x86::vmx) const MWAIT: u32 = 36;
    pub(in crate::x86::vmx) const MONITOR: u32 = 39;
    pub(in crate::x86::vmx) const PAUSE: u32 = 40;
    pub(in crate::x86::vmx) const MACHINE_CHECK_ENTRY: u32 = 41;
    pub(in crate::x86::vmx) const TPR_BELOW_THRESHOLD: u32 = 43;
    pub(in crate::x86::vmx) const APIC_ACCESS: u32 = 44;
    pub(in crate::x86::vmx) const VIRTUAL_EOI: u32 = 45;
    pub(in crate::x86::vmx) const INVALID_GUEST_STATE: u32 = 33;
    pub(in crate::x86::vmx) const EPT_VIOLATION: u32 = 48;
    pub(in crate::x86::vmx) const EPT_MISCONFIG: u32 = 49;
    pub(in crate::x86::vmx) const INVEPT: u32 = 50;
    pub(in crate::x86::vmx) const PREEMPTION_TIMER: u32 = 52;
    pub(in crate::x86::vmx) const INVVPID: u32 = 53;
    pub(in crate::x86::vmx) const WBINVD: u32 = 54;
    pub(in crate::x86::vmx) const XSETBV: u32 = 55;
    pub(in crate::x86::vmx) const APIC_WRITE: u32 = 56;
    pub(in crate::x86::vmx) const INVPCID: u32 = 58;
    pub(in crate::x86::vmx) const VMFUNC: u32 = 59;
    pub(in crate::x86::vmx) const ENCLS: u32 = 60;
    pub(in crate::x86::vmx) const PML_FULL: u32 = 62;
    /// Bit 31 of the exit reason: the entry failed (SDM 3C 25.9.1).
    pub(in crate::x86::vmx) const ENTRY_FAILURE: u32 = 1 << 31;
}
