// SPDX-License-Identifier: GPL-2.0
//! One architecture: processors of Intel and AMD, and the machine around them.
//!
//! This file is the seam. What stands in the list below is all that the storeys above and the ground name of x86; the rest is
//! its own business.

pub(crate) mod cpu;
pub(crate) mod emul;
pub(crate) mod enabled;
pub(crate) mod exit;
pub(crate) mod irqchip;
pub(crate) mod mitigate;
pub(crate) mod paging;
pub(crate) mod pv;
pub(crate) mod run;
pub(crate) mod shared;
pub(crate) mod svm;
pub(crate) mod vcpu;
pub(crate) mod vendor;
pub(crate) mod vm;
pub(crate) mod vmx;

/// What all vCPUs of a VM share; and what is fixed once there is a vCPU.
pub(crate) use vm::{Setup, Vm};

/// A vCPU; the pages that user space maps of it; its registers, events and what else only its thread touches.
pub(crate) use vcpu::state::{MpState, State};
pub(crate) use vcpu::{Vcpu, MMAP_BYTES};

/// KVM_RUN.
pub(crate) use run::Runner;

/// A vCPU's state as user space reads and writes it; debugging by user space.
pub(crate) use vcpu::{abi, debug};

/// What others ask of a vCPU, and how APIC ids are written.
pub(crate) use shared::{request, x2apic_api};

/// The CPU that guests may see: CPUID, MSRs, XSAVE.
pub(crate) use cpu::cpuid::CpuidEntry;
pub(crate) use cpu::model::{lists_msr, model};
pub(crate) use cpu::regs::{dr6, dr7};
pub(crate) use cpu::{cpuid, mce, msr, xsave};

/// Time.
pub(crate) use pv::clock_page::guest_stopped;
pub(crate) use vcpu::tsc::wanted_tsc_khz;

/// GSIs that a VM has.
pub(crate) use irqchip::route::MAX_ROUTES;

/// Interrupt controllers, as those see them who raise interrupts.
pub(crate) use irqchip::chip::IrqChip;
pub(crate) use irqchip::controllers::{Controllers, Resampler};

/// Nested page tables, and what addresses there are.
pub(crate) use paging::nested::{address_limits, NestedTable};
pub(crate) use vendor::HwCaps;

/// What the processor offers.
pub(crate) use vendor::choose::caps as hardware;
