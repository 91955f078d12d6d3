// SPDX-License-Identifier: GPL-2.0
//! Host build of the hypervisor's pure logic.
//!
//! Every module below is the very file that is compiled into `rvmm.ko`; it uses only `core`, so the same
//! source is unit-tested and fuzzed here. Module paths are the same as in the kernel module's crate. Only `null`, an
//! architecture that shows the ground to be neutral, `tables`, memory for its page tables, `interleave`, a scheduler of
//! threads, and `linux`, what stands for
//! the kernel, are the host's own.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod interleave;
pub mod linux;
pub mod null;
pub mod tables;

#[path = "../../../src/nospec.rs"]
pub mod nospec;

#[path = "../../../src/abi"]
pub mod abi {
    //! What user space sees.
    pub mod record;
    pub mod stats;
}

#[path = "../../../src/assign"]
pub mod assign {
    //! Devices handed to a guest.
    pub mod burst;
    pub mod config;
    pub mod intx;
}

#[path = "../../../src/bus"]
pub mod bus {
    //! What reaches a VM from outside its vCPUs.
    pub mod line;
}

#[path = "../../../src/mem"]
pub mod mem {
    //! Guest-physical memory: addresses, slots, the walker of nested page tables.
    pub mod addr;
    pub mod audit;
    pub mod dirty;
    pub mod flushes;
    pub mod format;
    pub mod index;
    pub mod invalidations;
    pub mod parts;
    pub mod rounds;
    pub mod slot_set;
    pub mod slots;
    pub mod walk;
}

#[path = "../../../src/arm64"]
pub mod arm64 {
    //! Processors with Armv8-A's virtualisation, under a kernel at EL2.
    pub mod caches;
    pub mod context;
    pub mod debug;
    pub mod esr;
    pub mod forgotten;
    pub mod host;
    pub mod idreg;
    pub mod inject;
    pub mod leaving;
    pub mod mitigate;
    pub mod psci;
    pub mod smccc;
    pub mod stage1;
    pub mod stage2;
    pub mod timer;

    pub mod vgic {
        //! The interrupt controller.
        pub mod lists;
        pub mod lpis;
        pub mod mmio;
        pub mod registers;
        pub mod state;
        pub mod table;
        pub mod translation;
    }
}

#[path = "../../../src/x86"]
pub mod x86 {
    //! Processors of Intel and AMD, and the machine around them.
    pub mod adapt;
    pub mod emul;
    pub mod exit;
    pub mod syscall;
    pub mod task;

    pub mod cpu {
        //! CPU model: registers, CPUID and MSR policy.
        pub mod canonical;
        pub mod control;
        pub mod cpuid;
        pub mod events;
        pub mod host;
        pub mod index;
        pub mod masks;
        pub mod mce;
        pub mod msr;
        pub mod regs;
        pub mod reset;
        pub mod smram;
        pub mod tsc;
        pub mod violation;
        pub mod xsave;
    }

    pub mod hyperv {
        //! Hyper-V's interface.
        pub mod cpuid;
        pub mod defs;
        pub mod input;
        pub mod stimer;
        pub mod synic;
        pub mod tsc_page;
    }

    pub mod irqchip {
        //! Interrupt controllers.
        pub mod addressees;
        pub mod ioapic;
        pub mod lapic;
        pub mod msg;
        pub mod pic;
        pub mod pit;
        pub mod route;
    }

    pub mod paging {
        //! Page-table formats, and the guest's own page tables.
        pub mod fetch;
        pub mod fmt_ept;
        pub mod fmt_npt;
        pub mod gwalk;
    }

    pub mod pv {
        //! What guests know of the hypervisor.
        pub mod asked;
        pub mod kvmclock;
    }

    pub mod svm {
        //! AMD-V.
        pub mod check;
    }

    pub mod vmx {
        //! VT-x.
        pub mod bits;
        pub mod check;
    }
}
