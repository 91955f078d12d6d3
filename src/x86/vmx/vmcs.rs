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
    GUEST_PML_INDEX = 0x0812,
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
    PML_ADDRESS = 0x200e,
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
    GUEST_PERF_GLOBAL_CTRL = 0x2808,
    GUEST_PDPTE0 = 0x280a,
}
fields! { Host, W64:
    HOST_PAT = 0x2c00,
    HOST_EFER = 0x2c02,
    HOST_PERF_GLOBAL_CTRL = 0x2c04,
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
