// SPDX-License-Identifier: GPL-2.0
//! Extensions: what is there, and what has to be enabled (api.rst 4.4 KVM_CHECK_EXTENSION, 4.37 KVM_ENABLE_CAP, 7, 8).
//!
//! An extension that is an ioctl stands in that ioctl's row instead, and is looked for there first
//! ([`super::vm::check_extension`]). What stands nowhere is not there.

use crate::abi::uapi::{self, k};
use crate::arch::{Setup, Vm, MAX_ROUTES};
use crate::bus::set::{MAX_VCPUS, MAX_VCPU_ID};
use crate::kvm::arch;
use crate::kvm::memory::enable_manual_protect;
use crate::kvm::table::extensions;
use crate::linux::smp;
use crate::mem::dirty::RING_BYTES;
use crate::mem::slots::{ADDRESS_SPACES, MAX_SLOTS};
use kernel::prelude::*;

extensions! {
    (vm, setup, value) else arch::extensions::check, arch::extensions::enable;
    k::KVM_CAP_CHECK_EXTENSION_VM: 1;
    k::KVM_CAP_DESTROY_MEMORY_REGION_WORKS: 1;
    k::KVM_CAP_JOIN_MEMORY_REGIONS_WORKS: 1;
    k::KVM_CAP_SYNC_MMU: 1;
    k::KVM_CAP_READONLY_MEM: 1;
    k::KVM_CAP_NR_MEMSLOTS: MAX_SLOTS;
    k::KVM_CAP_MULTI_ADDRESS_SPACE: ADDRESS_SPACES;
    k::KVM_CAP_MEMORY_FAULT_INFO: 1;
    k::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: k::KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | k::KVM_DIRTY_LOG_INITIALLY_SET,
        enable enable_manual_protect(vm, value);
    k::KVM_CAP_DIRTY_LOG_RING: RING_BYTES,
        enable enable_rings(vm, setup, value);
    k::KVM_CAP_DIRTY_LOG_RING_ACQ_REL: RING_BYTES,
        enable enable_rings(vm, setup, value);
    k::KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP: 1,
        enable vm.add_bitmaps();
    k::KVM_CAP_NR_VCPUS: (smp::num_online() as usize).min(MAX_VCPUS);
    k::KVM_CAP_MAX_VCPUS: MAX_VCPUS;
    k::KVM_CAP_MAX_VCPU_ID: MAX_VCPU_ID,
        enable vm.caps.limit_vcpu_ids(value, vm.boot_cpu());
    k::KVM_CAP_IMMEDIATE_EXIT: 1;
    k::KVM_CAP_HALT_POLL: 1,
        enable vm.caps.set_halt_poll(value);
    k::KVM_CAP_INTERNAL_ERROR_DATA: 1;
    k::KVM_CAP_IRQFD_RESAMPLE: 1;
    k::KVM_CAP_IOEVENTFD_NO_LENGTH: 1;
    k::KVM_CAP_IOEVENTFD_ANY_LENGTH: 1;
    k::KVM_CAP_COALESCED_MMIO: k::KVM_COALESCED_MMIO_PAGE_OFFSET;
    k::KVM_CAP_COALESCED_PIO: 1;
    k::KVM_CAP_IRQ_ROUTING: MAX_ROUTES;
    uapi::RVMM_CAP_ENTRY_FAILURE: 1;
    uapi::RVMM_CAP_ASSIGN_DEVICE: 1;
    uapi::RVMM_CAP_RESET_POINT: 1;
    uapi::RVMM_CAP_FORK: 1;
    uapi::RVMM_CAP_MISSING: 1,
        enable {
            if value != 1 {
                return Err(EINVAL);
            }
            vm.enable_missing()
        };
    uapi::RVMM_CAP_TOUCHES: 1;
    uapi::RVMM_CAP_RECORD: 1;
}

/// KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL (api.rst 8.29).
fn enable_rings(vm: &Vm, setup: &Setup, bytes: u64) -> Result {
    vm.memory.enable_rings(bytes, setup.has_vcpus())
}
