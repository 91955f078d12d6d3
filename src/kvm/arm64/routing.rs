// SPDX-License-Identifier: GPL-2.0
//! KVM_SET_GSI_ROUTING (api.rst 4.52) and KVM_IRQFD (4.75).

use crate::abi::uapi::{self, k};
use crate::arch::{Vgic, Vm, MAX_GSIS, NOWHERE, PINS};
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
    // GSIs of messages, which lead nowhere: there is nobody to take those.
    let mut used = KVVec::with_capacity(MAX_GSIS as usize, GFP_KERNEL_ACCOUNT)?;
    used.resize(MAX_GSIS as usize, false, GFP_KERNEL_ACCOUNT)?;
    for &[gsi, kind, flags, _, chip, pin, ..] in entries.iter() {
        let gsi = gsi as usize;
        let known = used.get_nospec_mut(gsi).ok_or(EINVAL)?;
        if core::mem::replace(known, true) {
            return Err(EINVAL);
        }
        match kind {
            k::KVM_IRQ_ROUTING_IRQCHIP if flags == 0 && chip == 0 && pin < PINS => {
                *routes.get_nospec_mut(gsi).ok_or(EINVAL)? = pin as u16;
            }
            k::KVM_IRQ_ROUTING_MSI if flags & !k::KVM_MSI_VALID_DEVID == 0 => {}
            _ => return Err(EINVAL),
        }
    }
    match vm.vgic() {
        Some(vgic) => vgic.set_routes(routes),
        None => Ok(()),
    }
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
