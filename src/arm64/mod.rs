// SPDX-License-Identifier: GPL-2.0
//! One architecture: processors with Armv8-A's virtualisation, under a kernel that runs at EL2 (VHE).
//!
//! This file is the seam, as `x86/mod.rs` is x86's. What it does not re-export is Arm64's own business.

mod caches;
mod calls;
mod context;
mod debug;
mod el2;
mod esr;
mod events;
mod forgotten;
mod host;
mod host_irqs;
mod idreg;
mod ids;
mod inject;
mod interrupts;
mod last;
mod leaving;
mod mitigate;
mod one_reg;
mod paging;
mod psci;
mod run;
mod shared;
mod smccc;
mod stage1;
mod stage2;
mod stolen;
mod timer;
mod vcpu;
mod vgic;
mod vm;

// Ground: what guest memory keeps its translations in.

/// The nested page table that the processor walks, whether it logs what it sets dirty there, how far guest-physical and
/// user addresses reach, how all processors forget what they have cached of it, and which changes of an entry they have
/// to forget, where that is checked; what caches want when a page has left.
pub(crate) use paging::{
    forget_translations, processor_logs, takes_away, LeavingPages, NestedTable, FORGETS,
};

// Face: what the files of user space are made of.

/// What all vCPUs of a VM share, how wide its addresses are, and what is fixed once there is a vCPU.
pub(crate) use paging::{most_address_bits, ADDRESS_BITS};
pub(crate) use vm::{Setup, Vm};

/// vCPUs of a VM, and their ids: each has a redistributor.
pub(crate) const MAX_VCPUS: u32 = vgic::state::MAX_CPUS as u32;

/// The interrupt controller, what user space says of it, and how its registers are read and written.
pub(crate) use el2::gic_kind;
pub(crate) use esr::SysReg;
pub(crate) use vgic::chip::{Message, Region, Vgic, MAX_GSIS, NOWHERE, PINS};
pub(crate) use vgic::its::InMemory;
pub(crate) use vgic::mmio::{By, Frame, FRAME, REDISTRIBUTOR};
pub(crate) use vgic::registers::Interface;
pub(crate) use vgic::state::{Gic, AFFINITY, BANK, MAX_INTIDS};
pub(crate) use vgic::tables::Its;
pub(crate) use vgic::translation::FRAMES as ITS_FRAMES;

/// A vCPU; the pages that user space maps of it; what only its thread touches; KVM_RUN.
pub(crate) use run::Runner;
pub(crate) use vcpu::{State, Vcpu, MMAP_BYTES};

/// Errors of memory that user space tells the guest; pointer authentication.
pub(crate) use el2::{has_keys, has_ras};
pub(crate) use events::{get as get_events, set as set_events};

/// Which bits of ID registers user space may change.
pub(crate) use idreg::{all as all_ids, writable as writable_id};

/// Calls that user space filters.
pub(crate) use smccc::Range as CallRange;

/// Breakpoints and steps of user space's.
pub(crate) use debug::{Points, VALID as GUEST_DEBUG};
pub(crate) use el2::debug::counts as debug_counts;

/// Registers as user space reads and writes them.
pub(crate) use one_reg::{get as get_one_reg, list as list_regs, set as set_one_reg};

// Root: what load, unload, CPU hot-plug, sleep and shutdown call.

pub(crate) mod load;
