// SPDX-License-Identifier: GPL-2.0
//! Host build of the hypervisor's pure logic.
//!
//! Every module below is the very file that is compiled into `rvmm.ko`; it uses only `core`, so the same
//! source is unit-tested and fuzzed here. Module paths are the same as in the kernel module's crate.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

#[path = "../../../src/x86/exit.rs"]
pub mod exit;

#[path = "../../../src/abi/stats.rs"]
pub mod stats;

#[path = "../../../src/assign"]
pub mod assign {
    //! Devices handed to a guest.
    pub mod burst;
    pub mod config;
    pub mod intx;
}

#[path = "../../../src/x86/svm"]
pub mod svm {
    //! AMD-V.
    pub mod check;
}

#[path = "../../../src/x86/vmx"]
pub mod vmx {
    //! VT-x.
    pub mod check;
}

#[path = "../../../src/x86/cpu"]
pub mod cpu {
    //! CPU model: registers, CPUID and MSR policy.
    pub mod canonical;
    pub mod control;
    pub mod cpuid;
    pub mod events;
    pub mod msr;
    #[path = "../pv/kvmclock.rs"]
    pub mod pvclock;
    pub mod regs;
    pub mod tsc;
    pub mod violation;
    pub mod xsave;
}

#[path = "../../../src/mem"]
pub mod mem {
    //! Guest-physical memory: addresses, page-table formats, walkers.
    pub mod addr;
    pub mod dirty;
    #[path = "../x86/paging/fmt_ept.rs"]
    pub mod fmt_ept;
    #[path = "../x86/paging/fmt_npt.rs"]
    pub mod fmt_npt;
    #[path = "../x86/paging/gwalk.rs"]
    pub mod gwalk;
    pub mod slots;
    pub mod walk;
}

#[path = "../../../src/x86/irqchip"]
pub mod irq {
    //! Interrupt controllers.
    pub mod ioapic;
    #[path = "lapic/mod.rs"]
    pub mod lapic;
    #[path = "lapic/defs.rs"]
    pub mod lapic_defs;
    #[path = "lapic/regs.rs"]
    pub mod lapic_reg;
    #[path = "lapic/timer.rs"]
    pub mod lapic_timer;
    #[path = "../../bus/line.rs"]
    pub mod line;
    pub mod msg;
    pub mod pic;
    #[path = "pit/mod.rs"]
    pub mod pit;
    #[path = "pit/channel.rs"]
    pub mod pit_channel;
    pub mod route;
}

#[path = "../../../src/x86/emul/mod.rs"]
pub mod emul;
