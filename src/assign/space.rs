// SPDX-License-Identifier: GPL-2.0
//! What assigned devices see of a VM's memory: its slots, at their guest-physical addresses.
//!
//! It follows slot changes one by one, called under `GuestMemory.update`. A new slot is pinned and mapped before it
//! is published: nothing has been promised yet when that fails. A deleted slot leaves the domain after the vCPUs have
//! lost it, and before the ioctl returns: from then on no device reaches it either. `linux::iommu` says why a page
//! cannot go back earlier.
//!
//! Not in the domain: read-only slots, and slots over device memory (registers of this or another assigned device): no
//! device writes to ROM or to another device.
//!
//! No IOMMU tells what is written: a dirty log has all pages of a slot in the domain, as long as there is a device and
//! once more after the last one has gone ([`GuestMemory::dirty_log`], [`GuestMemory::detach_device`]).
//!
//! [`GuestMemory::dirty_log`]: crate::mem::memory::GuestMemory::dirty_log
//! [`GuestMemory::detach_device`]: crate::mem::memory::GuestMemory::detach_device

use crate::abi::stats::VmStats;
use crate::abi::uapi::Reason;
use crate::assign::refused::Refused;
use crate::linux::iommu::{Domain, Group, Range, Refusal};
use crate::linux::pci::{Device, Locked};
use crate::mem::ports::DmaView;
use crate::mem::slot_table::SlotTable;
use crate::mem::slots::Slot;
use core::fmt::Write;
use kernel::mm::Mm;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::{new_mutex, Arc, Mutex};

/// What the devices of a VM see of its memory.
#[pin_data]
pub(crate) struct Space {
    /// The address space that the slots' memory is in.
    mm: ARef<Mm>,
    stats: Arc<VmStats>,
    /// While there are devices.
    #[pin]
    mapped: Mutex<Option<Mapped>>,
}

/// The domain of a VM that has devices.
struct Mapped {
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
    /// Of a VM without devices.
    pub(crate) fn new(mm: ARef<Mm>, stats: Arc<VmStats>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                mm,
                stats,
                mapped <- new_mutex!(None),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Attaches `device` and returns the number of bytes pinned; with the first one the slots are mapped. `slots` do
    /// not change meanwhile. `blocked` runs when the device's DMA is blocked. When it fails everything is as before,
    /// and `reason` may say why.
    pub(super) fn attach(
        &self,
        device: &Locked<'_>,
        group: &Group,
        slots: &SlotTable,
        reason: &mut Reason,
        blocked: impl FnOnce() -> Result,
    ) -> Result<u64> {
        let mut mapped = self.mapped.lock();
        if let Some(mapped) = &mut *mapped {
            mapped.attach(device, group, slots, false, reason, blocked)?;
            return Ok(mapped.domain.pinned());
        }
        let domain = Domain::new(device, &self.mm, Refused::new(self.stats.clone())?)
            .map_err(|e| reason.refuse(e, format_args!("its IOMMU offers no translation")))?;
        let mut new = Mapped {
            domain,
            reserved: KVec::new(),
        };
        new.attach(device, group, slots, true, reason, blocked)?;
        Ok(mapped.insert(new).domain.pinned())
    }

    /// Detaches `device`. With the last one the slots' memory is unmapped and unpinned. Slots do not change meanwhile.
    pub(super) fn detach(&self, device: &Device) {
        let mut mapped = self.mapped.lock();
        let Some(space) = &mut *mapped else { return };
        // The device's DMA is blocked before its group goes back to the host.
        drop(space.domain.detach(device));
        space.domain.refusals().end(device);
        if space.domain.is_idle() {
            *mapped = None;
        }
    }

    /// Bytes pinned; how often DMA of the device was refused, as far as the IOMMU's driver tells, and what was the last
    /// time.
    pub(super) fn state_of(&self, device: &Device) -> Option<(u64, u64, Refusal)> {
        let mapped = self.mapped.lock();
        let domain = &mapped.as_ref()?.domain;
        let (refused, last) = domain.refusals().of(device);
        Some((domain.pinned(), refused, last))
    }
}

impl DmaView for Space {
    fn is_used(&self) -> bool {
        self.mapped.lock().is_some()
    }

    fn writes(&self, slot: &Slot) -> bool {
        let mapped = self.mapped.lock();
        mapped
            .as_ref()
            .is_some_and(|space| space.domain.is_mapped(slot.gpa.0))
    }

    /// EINVAL at reserved addresses; ENOMEM, EFAULT, EINTR when the slot's memory cannot be pinned.
    fn add(&self, slot: &Slot) -> Result {
        let mut mapped = self.mapped.lock();
        let Some(space) = &mut *mapped else {
            return Ok(());
        };
        space.check(slot, &space.reserved)?;
        space.map(slot)
    }

    fn remove(&self, slot: &Slot) {
        if let Some(space) = &mut *self.mapped.lock() {
            space.domain.unmap(slot.gpa.0);
        }
    }

    fn relocate(&self, old: &Slot, new: &Slot) -> Result {
        let mut mapped = self.mapped.lock();
        let Some(space) = &mut *mapped else {
            return Ok(());
        };
        space.check(new, &space.reserved)?;
        space.domain.unmap(old.gpa.0);
        space.map(new).inspect_err(|_| {
            if space.map(old).is_err() {
                pr_warn!("a memory slot is lost to assigned devices\n");
            }
        })
    }
}

impl Mapped {
    /// See [`Space::attach`]; `first`: no device has been attached yet, and nothing is mapped.
    fn attach(
        &mut self,
        device: &Locked<'_>,
        group: &Group,
        slots: &SlotTable,
        first: bool,
        reason: &mut Reason,
        blocked: impl FnOnce() -> Result,
    ) -> Result {
        let reserved = group.reserved()?;
        slots.try_each(|slot| {
            self.check(slot, &reserved).map_err(|e| {
                let at = slot.gpa.0;
                reason.refuse(
                    e,
                    format_args!(
                        "the memory slot at {at:#x} lies at addresses that the IOMMU reserves"
                    ),
                )
            })
        })?;
        let ownership = match self.domain.claim(device) {
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
            slots.try_each(|slot| {
                self.map(slot).map_err(|e| match e {
                    e if e == ENOMEM => reason.refuse(
                        e,
                        format_args!(
                            "the guest's memory cannot be pinned: RLIMIT_MEMLOCK is too small, \
                             or memory is short"
                        ),
                    ),
                    e => {
                        let at = slot.gpa.0;
                        reason.refuse(
                            e,
                            format_args!("the memory slot at {at:#x} cannot be pinned"),
                        )
                    }
                })
            })?;
        }
        blocked().map_err(|e| reason.refuse(e, format_args!("it could not be reset")))?;
        let known = self.reserved.len();
        self.reserved
            .extend_from_slice(&reserved, GFP_KERNEL_ACCOUNT)?;
        self.domain.refusals().begin(device)?;
        if let Err(e) = self.domain.attach(ownership) {
            self.domain.refusals().end(device);
            self.reserved.truncate(known);
            return Err(reason.refuse(
                e,
                format_args!("its IOMMU cannot use the translations of the VM's other devices"),
            ));
        }
        Ok(())
    }

    /// Whether devices see the slot.
    fn is_mapped(&self, slot: &Slot) -> bool {
        !slot.is_readonly() && !self.domain.is_device_memory(slot.hva.0)
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
}
