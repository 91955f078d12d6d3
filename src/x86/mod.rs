// SPDX-License-Identifier: GPL-2.0
//! One architecture: processors of Intel and AMD, and the machine around them.
//!
//! This file is the seam. What it re-exports is all that the face, the ground and the module's root name of x86; the
//! rest is x86's own business, and private. Another architecture takes this one's place by giving the same names: the
//! ground and assigned devices say `arch` for it.

mod adapt;
mod cpu;
mod elapsed;
mod emul;
mod exit;
mod host_tsc;
mod hyperv;
mod irqchip;
mod mitigate;
mod paging;
mod pv;
mod run;
mod shared;
mod snapshot;
mod svm;
mod syscall;
mod task;
mod vcpu;
mod vendor;
mod vm;
mod vm_caps;
mod vmx;

// Ground: what guest memory keeps its translations in.

/// The nested page table that the processor walks, whether it logs what it sets dirty there, and how far guest-physical
/// and user addresses reach.
pub(crate) use paging::nested::{processor_logs, NestedTable};

/// All processors forget what they have cached of it, where an entry has to be broken before another is made.
pub(crate) use paging::nested::{forget_translations, takes_away, LeavingPages, FORGETS};

// Face: what the files of user space and assigned devices are made of.

/// What all vCPUs of a VM share; what is fixed once there is a vCPU; what KVM_ENABLE_CAP enables.
pub(crate) use vm::{Setup, Vm};

/// RVMM_RESET_POINT and RVMM_RESET; RVMM_FORK and RVMM_BECOME.
pub(crate) use snapshot::{Fork, ResetPoint};
pub(crate) use vm_caps::VmCaps;

/// A vCPU; the pages that user space maps of it; its registers, events and what else only its thread touches.
pub(crate) use vcpu::state::{MpState, State};
pub(crate) use vcpu::{Vcpu, MMAP_BYTES};

/// KVM_RUN.
pub(crate) use run::Runner;

/// A vCPU's state as user space reads and writes it, and debugging by user space: a function for each ioctl.
pub(crate) use vcpu::{abi, debug};

/// What the instructions cost of which stays are made.
pub(crate) use vcpu::measure;

/// What others ask of a vCPU, and how APIC ids are written.
pub(crate) use shared::{request, x2apic_api, VcpuShared};

/// The CPU that guests may see, for the ioctls of the device: CPUID, MSRs, XSAVE, machine checks.
pub(crate) use cpu::cpuid::CpuidEntry;
pub(crate) use cpu::mce::{mce_cap, MCE_BANKS};
pub(crate) use cpu::model::{lists, lists_msr, model};
pub(crate) use cpu::{cpuid, msr, xsave};

/// What the host's processor offers, and how it comes to run guests (`RVMM_CAP_ROOT`).
pub(crate) use vendor::choose::{caps as hardware, root};

/// Hyper-V's CPUID leaves.
pub(crate) use hyperv::cpuid::supported as hyperv_leaves;

/// Time: the guest has been stopped by user space, and the TSC frequency that user space wants.
pub(crate) use pv::clock_page::guest_stopped;
pub(crate) use vcpu::tsc::{wanted_tsc_khz, wanted_vm_tsc_khz};

/// Whether a guest can have its task priority at an address.
pub(crate) use pv::vapic::is_place as vapic_is_place;

/// Interrupt controllers, as those see them who raise interrupts, and how many GSIs there are.
pub(crate) use irqchip::chip::IrqChip;
pub(crate) use irqchip::controllers::{Controllers, Resampler};
pub(crate) use irqchip::route::MAX_ROUTES;

// Root: what load, unload, CPU hot-plug, sleep and shutdown call.

pub(crate) mod load;
