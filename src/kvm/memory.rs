// SPDX-License-Identifier: GPL-2.0
//! The vm ioctls that are about guest memory.

use crate::abi::uapi::{self, k};
use crate::arch::Vm;
use crate::mem::slots::{self, Slot};
use kernel::prelude::*;
use kernel::uaccess::UserPtr;

/// ENXIO: dirty pages are in the vCPUs' rings alone.
fn check_bitmaps(vm: &Vm) -> Result {
    if vm.memory.rings.have_bitmaps() {
        Ok(())
    } else {
        Err(ENXIO)
    }
}

/// KVM_GET_DIRTY_LOG (api.rst 4.8).
pub(super) fn dirty_log(vm: &Vm, log: &uapi::DirtyLog) -> Result {
    check_bitmaps(vm)?;
    let memory = vm.memory_of_slot(log.slot)?;
    let bitmap = UserPtr::from_addr(log.bitmap as usize);
    memory.dirty_log(log.slot, bitmap)
}

/// KVM_CLEAR_DIRTY_LOG (api.rst 4.119).
pub(super) fn clear_dirty_log(vm: &Vm, log: &uapi::ClearDirtyLog) -> Result {
    check_bitmaps(vm)?;
    let memory = vm.memory_of_slot(log.slot)?;
    let bitmap = UserPtr::from_addr(log.bitmap as usize);
    memory.clear_dirty_log(log.slot, log.first_page, log.num_pages, bitmap)
}

/// KVM_SET_USER_MEMORY_REGION2 (api.rst 4.140), without guest_memfd the same as the older one.
pub(super) fn set_memory2(vm: &Vm, r: &k::kvm_userspace_memory_region2) -> Result {
    let region = k::kvm_userspace_memory_region {
        slot: r.slot,
        flags: r.flags,
        guest_phys_addr: r.guest_phys_addr,
        memory_size: r.memory_size,
        userspace_addr: r.userspace_addr,
    };
    set_memory(vm, &region)
}

/// KVM_SET_USER_MEMORY_REGION (api.rst 4.35).
pub(super) fn set_memory(vm: &Vm, r: &k::kvm_userspace_memory_region) -> Result {
    let memory = vm.memory_for_slot(r.slot, r.memory_size != 0)?;
    if r.flags & slots::MISSING != 0 && !vm.reports_missing(r.slot) {
        return Err(EINVAL);
    }
    let (gpa, size) = (r.guest_phys_addr, r.memory_size);
    let slot = Slot::from_region(r.slot, r.flags, gpa, size, r.userspace_addr);
    memory.set_slot(vm.mm(), slot.map_err(|_| EINVAL)?)
}

/// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (api.rst 7.18).
pub(super) fn enable_manual_protect(vm: &Vm, value: u64) -> Result {
    const ENABLE: u64 = k::KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE as u64;
    const INITIALLY_SET: u64 = k::KVM_DIRTY_LOG_INITIALLY_SET as u64;
    let (enable, initially_set) = (value & ENABLE != 0, value & INITIALLY_SET != 0);
    if value & !(ENABLE | INITIALLY_SET) != 0 || initially_set && !enable {
        return Err(EINVAL);
    }
    vm.for_each_memory(|memory| memory.set_manual_protect(enable, initially_set));
    Ok(())
}
