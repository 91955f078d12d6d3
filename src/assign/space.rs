// SPDX-License-Identifier: GPL-2.0
//! What assigned devices see of a VM's memory: its slots, at their guest-physical addresses.
//!
//! All of it is protected by `GuestMemory.update`, so it follows slot changes one by one. A new slot is pinned and mapped before it
//! is published: nothing has been promised yet when that fails. A deleted slot leaves the domain after the vCPUs have lost it, and
//! before the ioctl returns: from then on no device reaches it either. `linux::iommu` says why a page cannot
//! go back earlier.
//!
//! Not in the domain: read-only slots, and slots over device memory (registers of this or another assigned device): no device
//! writes to ROM or to another device. DMA does not appear in dirty logs.

use crate::abi::uapi::Reason;
use crate::assign::refused::Refused;
use crate::linux::iommu::{Domain, Group, Range, Refusal};
use crate::linux::pci::{Device, Locked};
use crate::mem::slots::Slot;
use crate::x86::vm::Vm;
use core::fmt::Write;
use kernel::prelude::*;

/// `KVM_MEM_READONLY`.
const READONLY: u32 = 2;

/// The domain of a VM that has devices.
pub(crate) struct Space {
    domain: Domain<Refused>,
    /// Addresses that some attached device's IOMMU treats by itself.
    reserved: KVec<Range>,
}

fn range_of(slot: &Slot) -> Option<Range> {
    Some(Range {
        start: slot.gpa.0,
        last: slot.gpa.0.checked_add(slot.len())?.checked_sub(1)?,
    })
}

impl Space {
    /// Attaches `device`; with the first one the slots are mapped. `blocked` runs when the device's DMA is blocked. When it
    /// fails everything is as before, and `reason` may say why.
    pub(crate) fn attach(
        this: &mut Option<Self>,
        vm: &Vm,
        device: &Locked<'_>,
        group: &Group,
        slots: &[Slot],
        reason: &mut Reason,
        blocked: impl FnOnce() -> Result,
    ) -> Result {
        let mut new = None;
        let first = this.is_none();
        let space = match this {
            Some(space) => space,
            None => new.insert(Self {
                domain: Domain::new(device, vm.mm(), Refused::new(vm.stats.clone())?)
                    .map_err(|e| say(reason, e, format_args!("its IOMMU offers no translation")))?,
                reserved: KVec::new(),
            }),
        };
        let reserved = group.reserved()?;
        for slot in slots {
            space.check(slot, &reserved).map_err(|e| {
                let at = slot.gpa.0;
                say(
                    reason,
                    e,
                    format_args!(
                        "the memory slot at {at:#x} lies at addresses that the IOMMU reserves"
                    ),
                )
            })?;
        }
        let ownership = match space.domain.claim(device) {
            Ok(ownership) => ownership,
            Err(e) => {
                let _ = write!(
                    reason,
                    "its IOMMU group {} is not free: every device in it has to be without a driver, or with rvmm: ",
                    group.id()
                );
                group.list(reason);
                return Err(if e == EPERM { EBUSY } else { e });
            }
        };
        if first {
            for slot in slots {
                space.map(slot).map_err(|e| match e {
                    e if e == ENOMEM => say(
                        reason,
                        e,
                        format_args!("the guest's memory cannot be pinned: RLIMIT_MEMLOCK is too small, or memory is short"),
                    ),
                    e => {
                        let at = slot.gpa.0;
                        say(reason, e, format_args!("the memory slot at {at:#x} cannot be pinned"))
                    }
                })?;
            }
        }
        blocked().map_err(|e| say(reason, e, format_args!("it could not be reset")))?;
        let known = space.reserved.len();
        space
            .reserved
            .extend_from_slice(&reserved, GFP_KERNEL_ACCOUNT)?;
        space.domain.refusals().begin(device)?;
        if let Err(e) = space.domain.attach(ownership) {
            space.domain.refusals().end(device);
            space.reserved.truncate(known);
            return Err(say(
                reason,
                e,
                format_args!("its IOMMU cannot use the translations of the VM's other devices"),
            ));
        }
        if new.is_some() {
            *this = new;
        }
        Ok(())
    }

    /// Detaches `device`. With the last one the slots' memory is unmapped and unpinned.
    pub(crate) fn detach(this: &mut Option<Self>, device: &Device) {
        let Some(space) = this else { return };
        // The device's DMA is blocked before its group goes back to the host.
        drop(space.domain.detach(device));
        space.domain.refusals().end(device);
        if space.domain.is_idle() {
            *this = None;
        }
    }

    /// Bytes pinned.
    pub(crate) fn pinned(&self) -> u64 {
        self.domain.pinned()
    }

    /// How often DMA of the device was refused, as far as the IOMMU's driver tells, and what was the last time.
    pub(crate) fn refused(&self, device: &Device) -> (u64, Refusal) {
        self.domain.refusals().of(device)
    }

    /// Whether devices see the slot.
    fn is_mapped(&self, slot: &Slot) -> bool {
        slot.flags & READONLY == 0 && !self.domain.is_device_memory(slot.hva.0)
    }

    fn check(&self, slot: &Slot, reserved: &[Range]) -> Result {
        let range = range_of(slot).ok_or(EINVAL)?;
        let clear = self.domain.reaches(&range) && !reserved.iter().any(|r| r.overlaps(&range));
        if clear || !self.is_mapped(slot) {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }

    fn map(&mut self, slot: &Slot) -> Result {
        if !self.is_mapped(slot) {
            return Ok(());
        }
        self.domain
            .map(usize::try_from(slot.hva.0)?, range_of(slot).ok_or(EINVAL)?)
    }

    /// A slot is going to be published. EINVAL at reserved addresses; ENOMEM, EFAULT, EINTR when its memory cannot be pinned.
    pub(crate) fn add(&mut self, slot: &Slot) -> Result {
        self.check(slot, &self.reserved)?;
        self.map(slot)
    }

    /// A slot has been taken from the guest.
    pub(crate) fn remove(&mut self, slot: &Slot) {
        self.domain.unmap(slot.gpa.0);
    }

    /// A slot is going to another place, which may overlap the old one. When it fails it is where it was.
    pub(crate) fn relocate(&mut self, old: &Slot, new: &Slot) -> Result {
        self.check(new, &self.reserved)?;
        self.remove(old);
        self.map(new).inspect_err(|_| {
            if self.map(old).is_err() {
                pr_warn!("a memory slot is lost to assigned devices\n");
            }
        })
    }
}

fn say(reason: &mut Reason, error: Error, text: core::fmt::Arguments<'_>) -> Error {
    let _ = reason.write_fmt(text);
    error
}
