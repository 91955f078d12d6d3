// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The interrupt controller, a GICv3 in the hypervisor (Documentation/virt/kvm/devices/arm-vgic-v3.rst).

use kvm_bindings::{
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::layout;
use crate::error::{Error, Result};

/// Makes the controller for `cpus` CPUs, which are there already.
pub(crate) fn create(vm: &VmFd, cpus: usize) -> Result<DeviceFd> {
    let mut request = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        fd: 0,
        flags: 0,
    };
    let gic = vm
        .create_device(&mut request)
        .map_err(Error::ioctl("KVM_CREATE_DEVICE of a GICv3"))?;
    let set = |group: u32, attr: u32, address: u64| {
        gic.set_device_attr(&kvm_device_attr {
            flags: 0,
            group,
            attr: attr.into(),
            addr: address,
        })
        .map_err(Error::ioctl("KVM_SET_DEVICE_ATTR of a GICv3"))
    };
    let at = |value: *const u64| value as u64;
    let distributor = layout::DISTRIBUTOR;
    // How many there are, where, and the number of this region.
    let redistributors = (cpus as u64) << 52 | layout::REDISTRIBUTORS;
    let interrupts = u64::from(layout::INTERRUPTS);
    set(
        KVM_DEV_ARM_VGIC_GRP_ADDR,
        KVM_VGIC_V3_ADDR_TYPE_DIST,
        at(&distributor),
    )?;
    set(
        KVM_DEV_ARM_VGIC_GRP_ADDR,
        KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
        at(&redistributors),
    )?;
    // A word of 32 bits, the lower half of this one.
    set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, at(&interrupts))?;
    set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0)?;
    Ok(gic)
}
