// SPDX-License-Identifier: GPL-2.0
//! Numbers of Hyper-V's interface (Hypervisor Top Level Functional Specification, TLFS). MSRs stand in
//! [`crate::x86::cpu::index`].
#![forbid(unsafe_code)]
#![allow(missing_docs)]

/// CPUID leaves (TLFS 2).
pub mod leaf {
    pub const VENDOR: u32 = 0x4000_0000;
    pub const INTERFACE: u32 = 0x4000_0001;
    pub const VERSION: u32 = 0x4000_0002;
    pub const FEATURES: u32 = 0x4000_0003;
    pub const HINTS: u32 = 0x4000_0004;
    pub const LIMITS: u32 = 0x4000_0005;
    pub const NESTED: u32 = 0x4000_000a;
    pub const DEBUG_VENDOR: u32 = 0x4000_0080;
    pub const DEBUG_INTERFACE: u32 = 0x4000_0081;
    pub const DEBUG_CAPABILITIES: u32 = 0x4000_0082;
}

/// `Hv#1`, in EAX of [`leaf::INTERFACE`].
pub const INTERFACE: u32 = 0x3123_7648;

/// EAX of [`leaf::FEATURES`].
pub mod access {
    pub const VP_RUNTIME: u32 = 1 << 0;
    pub const TIME_REF_COUNT: u32 = 1 << 1;
    pub const SYNIC: u32 = 1 << 2;
    pub const TIMERS: u32 = 1 << 3;
    pub const APIC: u32 = 1 << 4;
    pub const HYPERCALL: u32 = 1 << 5;
    pub const VP_INDEX: u32 = 1 << 6;
    pub const RESET: u32 = 1 << 7;
    pub const REFERENCE_TSC: u32 = 1 << 9;
    pub const FREQUENCIES: u32 = 1 << 11;
    pub const REENLIGHTENMENT: u32 = 1 << 13;
    pub const TSC_INVARIANT: u32 = 1 << 15;
}

/// EBX of [`leaf::FEATURES`].
pub mod privilege {
    pub const POST_MESSAGES: u32 = 1 << 4;
    pub const SIGNAL_EVENTS: u32 = 1 << 5;
    pub const DEBUGGING: u32 = 1 << 11;
    pub const EXTENDED_HYPERCALLS: u32 = 1 << 20;
}

/// EDX of [`leaf::FEATURES`].
pub mod feature {
    pub const GUEST_DEBUGGING: u32 = 1 << 1;
    pub const XMM_INPUT: u32 = 1 << 4;
    pub const FREQUENCIES: u32 = 1 << 8;
    pub const CRASH: u32 = 1 << 10;
    pub const DEBUG: u32 = 1 << 11;
    pub const EXTENDED_FLUSH: u32 = 1 << 14;
    pub const DIRECT_TIMERS: u32 = 1 << 19;
}

/// EAX of [`leaf::HINTS`].
pub mod hint {
    pub const REMOTE_FLUSH: u32 = 1 << 2;
    pub const APIC: u32 = 1 << 3;
    pub const RELAXED_TIMING: u32 = 1 << 5;
    pub const NO_AUTO_EOI: u32 = 1 << 9;
    pub const CLUSTER_IPI: u32 = 1 << 10;
    pub const EX_PROCESSOR_MASKS: u32 = 1 << 11;
    pub const NO_CORE_SHARING: u32 = 1 << 18;
}

/// EAX of [`leaf::NESTED`].
pub mod nested {
    pub const MSR_BITMAP: u32 = 1 << 19;
}

/// EAX of [`leaf::DEBUG_CAPABILITIES`].
pub mod debug {
    pub const KERNEL_DEBUGGING: u32 = 1 << 1;
    /// HV_X64_MSR_SYNDBG_OPTIONS: by hypercalls.
    pub const BY_HYPERCALLS: u64 = 1 << 2;
}

/// Call codes (TLFS appendix A).
pub mod call {
    pub const FLUSH_SPACE: u16 = 0x02;
    pub const FLUSH_LIST: u16 = 0x03;
    pub const LONG_SPIN_WAIT: u16 = 0x08;
    pub const SEND_IPI: u16 = 0x0b;
    pub const FLUSH_SPACE_EX: u16 = 0x13;
    pub const FLUSH_LIST_EX: u16 = 0x14;
    pub const SEND_IPI_EX: u16 = 0x15;
    pub const POST_MESSAGE: u16 = 0x5c;
    pub const SIGNAL_EVENT: u16 = 0x5d;
    pub const POST_DEBUG_DATA: u16 = 0x69;
    pub const RETRIEVE_DEBUG_DATA: u16 = 0x6a;
    pub const RESET_DEBUG_SESSION: u16 = 0x6b;
    /// HvExtCallQueryCapabilities, and the last of the 64 that it tells of.
    pub const EXTENDED_FIRST: u16 = 0x8001;
    pub const EXTENDED_LAST: u16 = 0x8001 + 64;
}

/// Results (TLFS appendix B).
pub mod status {
    pub const SUCCESS: u16 = 0;
    pub const INVALID_CODE: u16 = 2;
    pub const INVALID_INPUT: u16 = 3;
    pub const INVALID_ALIGNMENT: u16 = 4;
    pub const INVALID_PARAMETER: u16 = 5;
    pub const ACCESS_DENIED: u16 = 6;
    pub const OPERATION_DENIED: u16 = 8;
    pub const INVALID_PORT: u16 = 0x11;
}

/// The bit of an MSR with a page's address that says that the page is used.
pub const PAGE_ENABLED: u64 = 1;
/// SINTs of a vCPU.
pub const SINTS: usize = 16;
/// Timers of a vCPU.
pub const TIMERS: usize = 4;
/// HV_X64_MSR_CRASH_CTL: tell of the crash.
pub const CRASH_NOTIFY: u64 = 1 << 63;
/// HV_X64_MSR_TSC_INVARIANT_CONTROL: CPUID shows that the TSC is invariant.
pub const EXPOSE_INVARIANT_TSC: u64 = 1;
