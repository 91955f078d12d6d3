// SPDX-License-Identifier: GPL-2.0
//! Hyper-V's interface for guests that want it: Windows, and Linux where it finds it (Hypervisor Top Level Functional
//! Specification, TLFS).
//!
//! A vCPU has it whose CPUID says so; the others pay a look at a pointer in a hypercall. What is the VM's is in
//! [`partition`], what is a vCPU's in [`vcpu`], what other CPUs see of a vCPU in [`published`]: data, below the VM and
//! the vCPU that hold them. What is done with them stands above: [`msrs`], [`time`], [`messages`], [`calls`].

pub(crate) mod calls;
pub(crate) mod cpuid;
pub(crate) mod defs;
pub(crate) mod input;
pub(crate) mod messages;
pub(crate) mod msrs;
pub(crate) mod partition;
pub(crate) mod published;
pub(crate) mod stimer;
pub(crate) mod synic;
pub(crate) mod time;
pub(crate) mod tsc_page;
pub(crate) mod vcpu;
