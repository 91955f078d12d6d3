// SPDX-License-Identifier: GPL-2.0
//! Host build of the hypervisor's pure logic.
//!
//! Every module below is the very file that is compiled into `rvmm.ko`; it uses only `core`, so the same
//! source is unit-tested and fuzzed here. Module paths are the same as in the kernel module's crate.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

#[path = "../../../src/exit.rs"]
pub mod exit;

#[path = "../../../src/stats.rs"]
pub mod stats;

#[path = "../../../src/assign"]
pub mod assign {
    //! Devices handed to a guest.
    pub mod burst;
    pub mod config;
    pub mod intx;
}

#[path = "../../../src/svm"]
pub mod svm {
    //! AMD-V.
    pub mod check;
}

#[path = "../../../src/vmx"]
pub mod vmx {
    //! VT-x.
    pub mod check;
}

#[path = "../../../src/cpu"]
pub mod cpu {
    //! CPU model: registers, CPUID and MSR policy.
    pub mod canonical;
    pub mod control;
    pub mod cpuid;
    pub mod events;
    pub mod msr;
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
    pub mod fmt_ept;
    pub mod fmt_npt;
    pub mod gwalk;
    pub mod slots;
    pub mod walk;
}

#[path = "../../../src/irq"]
pub mod irq {
    //! Interrupt controllers.
    pub mod ioapic;
    pub mod lapic;
    pub mod lapic_defs;
    pub mod lapic_reg;
    pub mod lapic_timer;
    pub mod line;
    pub mod msg;
    pub mod pic;
    pub mod pit;
    pub mod pit_channel;
    pub mod route;
}

#[path = "../../../src/emul/mod.rs"]
pub mod emul;
