// SPDX-License-Identifier: GPL-2.0

//! Safe wrappers over kernel interfaces that the `kernel` crate lacks.
//!
//! Nothing here knows of hypervisors; each file stands for a C header and could go into the `kernel` crate
//! one day. The C files in `shim` and in the architectures hold functions for what C offers only as inline or macro.

pub mod bindings;

pub mod anon_inode;
pub mod atomic;
pub mod cpuhp;
pub mod cred;
pub mod eventfd;
pub mod events;
pub mod file_ref;
pub mod frozen_pages;
pub mod global;
pub mod gup;
pub mod hrtimer;
pub mod io_window;
pub mod iommu;
pub mod irqflags;
pub mod killable_mutex;
pub mod lines;
pub mod log;
pub mod misc;
pub mod mmap;
pub mod mmu_notifier;
pub mod once;
pub mod page;
pub mod pci;
pub mod pci_irq;
pub mod percpu;
pub mod preempt;
pub mod readers;
pub mod sched;
pub mod shared;
pub mod smp;
pub mod spin_irq;

pub mod syscore;
pub mod uaccess;
pub mod version_cell;
pub mod vm_area;
pub mod wait;
pub mod workqueue;

#[cfg(CONFIG_ARM64)]
pub mod arm64;
#[cfg(CONFIG_X86_64)]
pub mod x86;

// Users name these by `crate::linux` alone, like the wrappers that every architecture has.
#[cfg(CONFIG_ARM64)]
pub use arm64::{clock, direct_map, el2, interrupts, neon, nospec, percpu_irq, random};
#[cfg(CONFIG_X86_64)]
pub use x86::{
    boot_cpu, cache, clock, cost, cpuid, cr, desc, direct_map, fpu, interrupts, mce, msr, nospec,
    user_atomic, vectors,
};
