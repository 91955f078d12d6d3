// SPDX-License-Identifier: GPL-2.0
//! KVM_SET_GSI_ROUTING (api.rst 4.52), KVM_IRQFD (4.75) and KVM_SIGNAL_MSI (4.71).

use crate::abi::uapi::{self, k};
use crate::arch::{Message, Vgic, Vm, MAX_GSIS, NOWHERE, PINS};
use crate::linux::eventfd::EventFdCtx;
use crate::nospec::Nospec;
use kernel::prelude::*;
use kernel::sync::Arc;

/// KVM_SET_GSI_ROUTING. EINVAL: too many, flags, a pin that cannot be, a GSI twice.
#[inline(never)]
pub(super) fn set_gsi_routing(vm: &Vm, arg: usize) -> Result {
    let entries = uapi::routing_entries(arg, uapi::get(arg)?, MAX_GSIS)?;
    let mut routes = KVVec::with_capacity(MAX_GSIS as usize, GFP_KERNEL_ACCOUNT)?;
    routes.resize(MAX_GSIS as usize, NOWHERE, GFP_KERNEL_ACCOUNT)?;
    let mut messages = KVVec::new();
    let mut used = KVVec::with_capacity(MAX_GSIS as usize, GFP_KERNEL_ACCOUNT)?;
    used.resize(MAX_GSIS as usize, false, GFP_KERNEL_ACCOUNT)?;
    for &[gsi, kind, flags, _, u0, u1, u2, u3, ..] in entries.iter() {
        let number = gsi;
        let gsi = gsi as usize;
        let known = used.get_nospec_mut(gsi).ok_or(EINVAL)?;
        if core::mem::replace(known, true) {
            return Err(EINVAL);
        }
        match kind {
            k::KVM_IRQ_ROUTING_IRQCHIP if flags == 0 && u0 == 0 && u1 < PINS => {
                *routes.get_nospec_mut(gsi).ok_or(EINVAL)? = u1 as u16;
            }
            // Without a device's number it leads nowhere: there is nobody to take it.
            k::KVM_IRQ_ROUTING_MSI if flags == 0 => {}
            k::KVM_IRQ_ROUTING_MSI if flags == k::KVM_MSI_VALID_DEVID => {
                let message = Message {
                    gsi: number,
                    address: u64::from(u1) << 32 | u64::from(u0),
                    event: u2,
                    device: u3,
                };
                let at = messages.partition_point(|m: &Message| m.gsi < number);
                messages.reserve(1, GFP_KERNEL_ACCOUNT)?;
                let put = messages.insert_within_capacity(at, message);
                put.map_err(|_| ENOMEM)?;
            }
            _ => return Err(EINVAL),
        }
    }
    match vm.vgic() {
        Some(vgic) => vgic.set_routes(routes, messages),
        None => Ok(()),
    }
}

/// KVM_SIGNAL_MSI: 1, or 0 where the guest has not mapped it. EINVAL: no interrupt controller, flags, no device's
/// number, or not an ITS's address; ENODEV: there is no ITS; EBUSY: the guest has it switched off.
pub(super) fn signal_msi(vm: &Vm, msi: &k::kvm_msi) -> Result<isize> {
    let vgic = vm.vgic().ok_or(EINVAL)?;
    if msi.flags & !k::KVM_MSI_VALID_DEVID != 0 {
        return Err(EINVAL);
    }
    if vgic.all_its().next().is_none() {
        return Err(ENODEV);
    }
    if msi.flags & k::KVM_MSI_VALID_DEVID == 0 {
        return Err(EINVAL);
    }
    let message = Message {
        gsi: 0,
        address: u64::from(msi.address_hi) << 32 | u64::from(msi.address_lo),
        event: msi.data,
        device: msi.devid,
    };
    vgic.signal(&message).map(isize::from)
}

/// KVM_IRQFD. EAGAIN: there is no interrupt controller that is initialised.
pub(super) fn irqfd(vm: &Vm, r: &k::kvm_irqfd) -> Result {
    if r.flags & !(k::KVM_IRQFD_FLAG_DEASSIGN | k::KVM_IRQFD_FLAG_RESAMPLE) != 0 {
        return Err(EINVAL);
    }
    let vgic = vm.vgic().map(Arc::<Vgic>::from);
    let mut irqfds = vm.irqfds.lock();
    match vgic {
        Some(vgic) if r.flags & k::KVM_IRQFD_FLAG_DEASSIGN != 0 => irqfds.deassign(&vgic, r),
        Some(vgic) if vgic.is_ready() => irqfds.assign(&vgic, r),
        // Nothing has been connected.
        None if r.flags & k::KVM_IRQFD_FLAG_DEASSIGN != 0 => {
            EventFdCtx::from_fd(r.fd as i32).map(|_| ())
        }
        _ => Err(EAGAIN),
    }
}
