// SPDX-License-Identifier: GPL-2.0
//! One architecture: processors with Armv8-A's virtualisation, under a kernel that runs at EL2 (VHE).
//!
//! This file is the seam, as `x86/mod.rs` is x86's. What it does not re-export is Arm64's own business.

mod host;

// Face: what the files of user space are made of.

/// Length of a vCPU's mapping: `struct kvm_run`, and the ring of coalesced writes.
pub(crate) const MMAP_BYTES: usize = 2 * kernel::page::PAGE_SIZE;

// Root: what load, unload, CPU hot-plug, sleep and shutdown call.

pub(crate) mod load;
