// SPDX-License-Identifier: GPL-2.0
//! Extensions on Arm64: what is there, and what has to be enabled. What stands nowhere is not there.

use crate::abi::uapi::k;
use crate::arch::{
    debug_counts, has_keys, has_ras, most_address_bits, Setup, Vm, GUEST_DEBUG, MAX_GSIS, MAX_VCPUS,
};
use crate::kvm::memory::enable_manual_protect;
use crate::kvm::table::extensions;
use crate::linux::smp;
use crate::mem::dirty::RING_BYTES;
use crate::mem::slots::MAX_SLOTS;
use kernel::prelude::*;

/// Nothing more is there.
fn none(_vm: Option<&Vm>, _capability: u32) -> isize {
    0
}

/// Nothing more can be enabled.
fn unknown(_vm: &Vm, _setup: &mut Setup, _capability: u32, _value: u64) -> Result {
    Err(EINVAL)
}

extensions! {
    (vm, setup, value) else none, unknown;
    k::KVM_CAP_CHECK_EXTENSION_VM: 1;
    k::KVM_CAP_DESTROY_MEMORY_REGION_WORKS: 1;
    k::KVM_CAP_JOIN_MEMORY_REGIONS_WORKS: 1;
    k::KVM_CAP_SYNC_MMU: 1;
    k::KVM_CAP_READONLY_MEM: 1;
    k::KVM_CAP_NR_MEMSLOTS: MAX_SLOTS;
    k::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: k::KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | k::KVM_DIRTY_LOG_INITIALLY_SET,
        enable enable_manual_protect(vm, value);
    k::KVM_CAP_DIRTY_LOG_RING_ACQ_REL: RING_BYTES,
        enable vm.memory.enable_rings(value, !setup.vcpus.is_empty());
    k::KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP: 1,
        enable vm.memory.add_bitmaps(None);
    k::KVM_CAP_NR_VCPUS: smp::num_online().min(MAX_VCPUS);
    k::KVM_CAP_MAX_VCPUS: MAX_VCPUS;
    k::KVM_CAP_MAX_VCPU_ID: MAX_VCPUS;
    k::KVM_CAP_IMMEDIATE_EXIT: 1;
    k::KVM_CAP_INTERNAL_ERROR_DATA: 1;
    k::KVM_CAP_SYSTEM_EVENT_DATA: 1;
    k::KVM_CAP_STEAL_TIME: 1;
    k::KVM_CAP_PTP_KVM: 1;
    k::KVM_CAP_SET_GUEST_DEBUG2: GUEST_DEBUG;
    k::KVM_CAP_GUEST_DEBUG_HW_BPS: debug_counts().0;
    k::KVM_CAP_GUEST_DEBUG_HW_WPS: debug_counts().1;
    k::KVM_CAP_IOEVENTFD_NO_LENGTH: 1;
    k::KVM_CAP_IOEVENTFD_ANY_LENGTH: 1;
    k::KVM_CAP_COALESCED_MMIO: k::KVM_COALESCED_MMIO_PAGE_OFFSET;
    k::KVM_CAP_ARM_PSCI: 1;
    k::KVM_CAP_ARM_PSCI_0_2: 1;
    k::KVM_CAP_ARM_VM_IPA_SIZE: most_address_bits();
    k::KVM_CAP_ARM_PTRAUTH_ADDRESS: has_keys();
    k::KVM_CAP_ARM_PTRAUTH_GENERIC: has_keys();
    k::KVM_CAP_IRQ_ROUTING: MAX_GSIS;
    k::KVM_CAP_ARM_IRQ_LINE_LAYOUT_2: 1;
    k::KVM_CAP_MSI_DEVID: vm.and_then(Vm::vgic).is_some_and(|v| v.all_its().next().is_some());
    k::KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES: 1 << k::KVM_ARM_FEATURE_ID_RANGE;
    k::KVM_CAP_ARM_INJECT_SERROR_ESR: has_ras();
    k::KVM_CAP_ARM_SYSTEM_SUSPEND: 1,
        enable {
            vm.add_suspend();
            Ok(())
        };
    k::KVM_CAP_ARM_WRITABLE_IMP_ID_REGS: 1,
        enable {
            // The vCPUs have them from the beginning.
            if !setup.vcpus.is_empty() {
                return Err(EINVAL);
            }
            vm.identity.make_writable();
            Ok(())
        };
    k::KVM_CAP_ARM_NISV_TO_USER: 1,
        enable {
            vm.pass_undescribed();
            Ok(())
        };
}
