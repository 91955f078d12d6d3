// SPDX-License-Identifier: GPL-2.0
//! KVM_CREATE_DEVICE (api.rst 4.79): which devices in the kernel there are.

use crate::abi::uapi::{self, k};
use crate::arch::{Setup, Vm};
use crate::kvm::arm64::{its, vgic};
use kernel::prelude::*;
use kernel::sync::Arc;

/// KVM_CREATE_DEVICE on a VM. ENODEV: another kind of device, or an ITS without an interrupt controller; and what each
/// of them has.
#[inline(never)]
pub(super) fn create(vm: &Arc<Vm>, _setup: &mut Setup, arg: usize) -> Result<isize> {
    let mut request = uapi::get::<k::kvm_create_device>(arg)?;
    let create = match request.type_ {
        k::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3 => vgic::create,
        k::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS => its::create,
        _ => return Err(ENODEV),
    };
    if request.flags & k::KVM_CREATE_DEVICE_TEST != 0 {
        return Ok(0);
    }
    let file = create(vm)?;
    request.fd = file.fd() as u32;
    uapi::put(arg, &request)?;
    file.install();
    Ok(0)
}
