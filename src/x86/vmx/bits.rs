// SPDX-License-Identifier: GPL-2.0
//! Bits of VMCS fields and of capability MSRs, and the basic exit reasons, under the manual's headings.
//!
//! The code that fills the VMCS and the checker of `check` share this table. What the checker has of its own is the
//! rules: it judges the values that the fields hold, not how they came about.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

/// Bits of the pin-based VM-execution controls (SDM 3C table 25-5).
pub mod pin {
    pub const EXTERNAL_INTERRUPT_EXITING: u32 = 1 << 0;
    pub const NMI_EXITING: u32 = 1 << 3;
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
    pub const POSTED_INTERRUPTS: u32 = 1 << 7;
}

/// Bits of the primary processor-based VM-execution controls (SDM 3C table 25-6).
pub mod proc {
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    pub const TSC_OFFSETTING: u32 = 1 << 3;
    pub const HLT_EXITING: u32 = 1 << 7;
    pub const INVLPG_EXITING: u32 = 1 << 9;
    pub const MWAIT_EXITING: u32 = 1 << 10;
    pub const RDPMC_EXITING: u32 = 1 << 11;
    pub const RDTSC_EXITING: u32 = 1 << 12;
    pub const CR3_LOAD_EXITING: u32 = 1 << 15;
    pub const CR3_STORE_EXITING: u32 = 1 << 16;
    pub const TERTIARY: u32 = 1 << 17;
    pub const CR8_LOAD_EXITING: u32 = 1 << 19;
    pub const CR8_STORE_EXITING: u32 = 1 << 20;
    pub const TPR_SHADOW: u32 = 1 << 21;
    pub const NMI_WINDOW: u32 = 1 << 22;
    pub const MOV_DR_EXITING: u32 = 1 << 23;
    pub const UNCONDITIONAL_IO: u32 = 1 << 24;
    pub const IO_BITMAPS: u32 = 1 << 25;
    pub const MONITOR_TRAP: u32 = 1 << 27;
    pub const MSR_BITMAPS: u32 = 1 << 28;
    pub const MONITOR_EXITING: u32 = 1 << 29;
    pub const PAUSE_EXITING: u32 = 1 << 30;
    pub const SECONDARY: u32 = 1 << 31;
}

/// Bits of the secondary processor-based VM-execution controls (SDM 3C table 25-7).
pub mod proc2 {
    pub const APIC_ACCESSES: u32 = 1 << 0;
    pub const EPT: u32 = 1 << 1;
    pub const DESCRIPTOR_EXITING: u32 = 1 << 2;
    pub const RDTSCP: u32 = 1 << 3;
    pub const X2APIC_MODE: u32 = 1 << 4;
    pub const VPID: u32 = 1 << 5;
    pub const WBINVD_EXITING: u32 = 1 << 6;
    pub const UNRESTRICTED_GUEST: u32 = 1 << 7;
    pub const APIC_REGISTERS: u32 = 1 << 8;
    pub const VIRTUAL_INTERRUPTS: u32 = 1 << 9;
    pub const PAUSE_LOOP_EXITING: u32 = 1 << 10;
    pub const INVPCID: u32 = 1 << 12;
    pub const VM_FUNCTIONS: u32 = 1 << 13;
    pub const VMCS_SHADOWING: u32 = 1 << 14;
    pub const ENCLS_EXITING: u32 = 1 << 15;
    pub const PML: u32 = 1 << 17;
    pub const EPT_VE: u32 = 1 << 18;
    pub const XSAVES: u32 = 1 << 20;
    pub const MODE_BASED_EXECUTE: u32 = 1 << 22;
    pub const SUB_PAGE_WRITE: u32 = 1 << 23;
    pub const PT_GUEST_PHYSICAL: u32 = 1 << 24;
    pub const TSC_SCALING: u32 = 1 << 25;
}

/// Bits of the primary VM-exit controls (SDM 3C table 25-14).
pub mod exit {
    pub const SAVE_DEBUG: u32 = 1 << 2;
    pub const HOST_64BIT: u32 = 1 << 9;
    pub const LOAD_PERF_GLOBAL: u32 = 1 << 12;
    pub const ACK_INTERRUPT: u32 = 1 << 15;
    pub const SAVE_PAT: u32 = 1 << 18;
    pub const LOAD_PAT: u32 = 1 << 19;
    pub const SAVE_EFER: u32 = 1 << 20;
    pub const LOAD_EFER: u32 = 1 << 21;
    pub const SAVE_PREEMPTION_TIMER: u32 = 1 << 22;
    pub const CLEAR_BNDCFGS: u32 = 1 << 23;
    pub const CLEAR_RTIT: u32 = 1 << 25;
    pub const CLEAR_LBR: u32 = 1 << 26;
    pub const LOAD_CET: u32 = 1 << 28;
    pub const LOAD_PKRS: u32 = 1 << 29;
    pub const SAVE_PERF_GLOBAL: u32 = 1 << 30;
    pub const SECONDARY: u32 = 1 << 31;
}

/// Bits of the VM-entry controls (SDM 3C table 25-17).
pub mod entry {
    pub const LOAD_DEBUG: u32 = 1 << 2;
    pub const IA32E_GUEST: u32 = 1 << 9;
    pub const SMM: u32 = 1 << 10;
    pub const DUAL_MONITOR: u32 = 1 << 11;
    pub const LOAD_PERF_GLOBAL: u32 = 1 << 13;
    pub const LOAD_PAT: u32 = 1 << 14;
    pub const LOAD_EFER: u32 = 1 << 15;
    pub const LOAD_BNDCFGS: u32 = 1 << 16;
    pub const LOAD_RTIT: u32 = 1 << 18;
    pub const LOAD_UINV: u32 = 1 << 19;
    pub const LOAD_CET: u32 = 1 << 20;
    pub const LOAD_LBR: u32 = 1 << 21;
    pub const LOAD_PKRS: u32 = 1 << 22;
    pub const LOAD_FRED: u32 = 1 << 23;
}

/// Interruption information: entry, exit and IDT-vectoring (SDM 3C tables 25-18, 25-20, 25-21).
pub mod intr {
    pub const VALID: u32 = 1 << 31;
    pub const ERROR_CODE: u32 = 1 << 11;
    /// Exit information only: the exit came in the course of an IRET that had unblocked NMIs.
    pub const NMI_UNBLOCKED: u32 = 1 << 12;
    pub const TYPE_SHIFT: u32 = 8;
    pub const EXTERNAL: u32 = 0;
    pub const NMI: u32 = 2;
    pub const HARDWARE_EXCEPTION: u32 = 3;
    pub const SOFTWARE_INTERRUPT: u32 = 4;
    pub const PRIVILEGED_SOFTWARE_EXCEPTION: u32 = 5;
    pub const SOFTWARE_EXCEPTION: u32 = 6;
    pub const OTHER: u32 = 7;
}

/// Guest interruptibility state (SDM 3C table 25-3).
pub mod blocking {
    pub const STI: u32 = 1 << 0;
    pub const MOV_SS: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    pub const NMI: u32 = 1 << 3;
}

/// Pending debug exceptions, bit BS: a single-step trap (SDM 3C table 25-4).
pub const PENDING_DEBUG_BS: u64 = 1 << 14;

/// IA32_DEBUGCTL: single-step on branches.
pub const DEBUGCTL_BTF: u64 = 1 << 1;

/// Basic exit reasons (SDM 3D table C-1); those of mere instructions stand in `src/x86/exit.rs`.
pub mod reason {
    pub const EXCEPTION_OR_NMI: u32 = 0;
    pub const EXTERNAL_INTERRUPT: u32 = 1;
    pub const TRIPLE_FAULT: u32 = 2;
    pub const INIT: u32 = 3;
    pub const INTERRUPT_WINDOW: u32 = 7;
    pub const NMI_WINDOW: u32 = 8;
    pub const TASK_SWITCH: u32 = 9;
    pub const CR_ACCESS: u32 = 28;
    pub const DR_ACCESS: u32 = 29;
    pub const IO: u32 = 30;
    pub const MACHINE_CHECK_ENTRY: u32 = 41;
    pub const TPR_BELOW_THRESHOLD: u32 = 43;
    pub const APIC_ACCESS: u32 = 44;
    pub const VIRTUAL_EOI: u32 = 45;
    pub const INVALID_GUEST_STATE: u32 = 33;
    pub const EPT_VIOLATION: u32 = 48;
    pub const EPT_MISCONFIG: u32 = 49;
    pub const PREEMPTION_TIMER: u32 = 52;
    pub const APIC_WRITE: u32 = 56;
    pub const PML_FULL: u32 = 62;
    /// Bit 31 of the exit reason: the entry failed (SDM 3C 25.9.1).
    pub const ENTRY_FAILURE: u32 = 1 << 31;
}

/// Activity states (SDM 3C 25.4.2).
pub mod activity {
    pub const ACTIVE: u32 = 0;
    pub const HLT: u32 = 1;
    pub const SHUTDOWN: u32 = 2;
    pub const WAIT_FOR_SIPI: u32 = 3;
}

/// Fields of a segment's access rights (SDM 3C table 25-2).
pub mod rights {
    pub const TYPE: u32 = 0xf;
    pub const S: u32 = 1 << 4;
    pub const P: u32 = 1 << 7;
    pub const AVL: u32 = 1 << 12;
    pub const L: u32 = 1 << 13;
    pub const DB: u32 = 1 << 14;
    pub const G: u32 = 1 << 15;
    pub const UNUSABLE: u32 = 1 << 16;
    /// Bits 11:8 and 31:17.
    pub const RESERVED: u32 = 0xfffe_0f00;
}

/// Bits of IA32_VMX_EPT_VPID_CAP (SDM 3D A.10).
pub mod ept_cap {
    pub const LEVELS_4: u64 = 1 << 6;
    pub const LEVELS_5: u64 = 1 << 7;
    pub const UNCACHEABLE: u64 = 1 << 8;
    pub const WRITE_BACK: u64 = 1 << 14;
    pub const PAGES_2M: u64 = 1 << 16;
    pub const PAGES_1G: u64 = 1 << 17;
    pub const INVEPT: u64 = 1 << 20;
    pub const ACCESSED_DIRTY: u64 = 1 << 21;
    pub const SHADOW_STACK: u64 = 1 << 23;
    pub const INVEPT_SINGLE: u64 = 1 << 25;
    pub const INVEPT_ALL: u64 = 1 << 26;
    pub const INVVPID: u64 = 1 << 32;
    pub const INVVPID_SINGLE: u64 = 1 << 41;
    pub const INVVPID_ALL: u64 = 1 << 42;
}

/// DR7 (SDM 3A 19.2.4).
pub mod dr7 {
    /// Local and global enables of the four breakpoints.
    pub const ENABLES: u64 = 0xff;
    /// Always 1; alone as after RESET and after a VM exit (SDM 3C 28.5.1).
    pub const FIXED: u64 = 1 << 10;
    pub const GENERAL_DETECT: u64 = 1 << 13;
}
