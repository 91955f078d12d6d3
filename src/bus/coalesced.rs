// SPDX-License-Identifier: GPL-2.0
//! Writes to device registers that wait in a ring for user space's next exit (api.rst 4.116,
//! KVM_REGISTER_COALESCED_MMIO).

use crate::abi::uapi;
use crate::abi::uapi::k;
use crate::bus::ioeventfd::Bus;
use crate::linux::mmap::Shared;
use crate::linux::once::Once;
use crate::linux::page::LazyPage;
use crate::linux::spin_irq::RawSpin;
use crate::linux::version_cell::VersionCell;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{fence, AtomicU32, Ordering};
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::sync::Arc;

/// Devices that a bus may have, those of the kernel included (KVM's NR_IOBUS_DEVS).
const MAX_DEVICES: u32 = 1000;

/// `struct kvm_coalesced_mmio_ring`: `first`, which user space advances, `last`, and the entries.
mod ring {
    use super::*;

    pub(super) const FIRST: usize = 0;
    pub(super) const LAST: usize = 4;
    pub(super) const ENTRIES: usize = size_of::<k::kvm_coalesced_mmio_ring>();
    pub(super) const ENTRY: usize = size_of::<k::kvm_coalesced_mmio>();
    pub(super) const ADDR: usize = offset_of!(k::kvm_coalesced_mmio, phys_addr);
    pub(super) const LEN: usize = offset_of!(k::kvm_coalesced_mmio, len);
    pub(super) const PIO: usize = offset_of!(k::kvm_coalesced_mmio, __bindgen_anon_1);
    pub(super) const DATA: usize = offset_of!(k::kvm_coalesced_mmio, data);
    /// KVM_COALESCED_MMIO_MAX.
    pub(super) const MAX: u32 = ((PAGE_SIZE - ENTRIES) / ENTRY) as u32;
}

const _: () = assert!(ring::ENTRIES == 8 && ring::ENTRY == 24 && ring::DATA == 16);

/// Addresses whose writes are put into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Zone {
    bus: Bus,
    addr: u64,
    size: u32,
}

impl Zone {
    /// `pio` decides between ports and memory. EINVAL.
    fn from_user(args: &uapi::CoalescedZone) -> Result<Self> {
        let bus = match args.pio {
            0 => Bus::Mmio,
            1 => Bus::Pio,
            _ => return Err(EINVAL),
        };
        Ok(Self {
            bus,
            addr: args.addr,
            size: args.size,
        })
    }

    /// Whether the zone holds all of `len` bytes at `addr`; one that wraps around holds nothing.
    fn contains(&self, bus: Bus, addr: u64, len: u64) -> bool {
        let end = self.addr.wrapping_add(self.size.into());
        bus == self.bus
            && addr >= self.addr
            && addr.checked_add(len).is_some_and(|last| last <= end)
    }
}

type Zones = KVVec<Zone>;

/// The ring of a VM and the zones that fill it.
#[pin_data]
pub(crate) struct Coalesced {
    /// One page, which user space maps behind every vCPU's; there with the first zone.
    ring: Arc<LazyPage>,
    /// Writers of the ring exclude each other.
    #[pin]
    lock: RawSpin<()>,
    /// Made with the first zone.
    zones: Once<KBox<VersionCell<Zones>>>,
    /// Numbers of zones: most VMs have none.
    mmio: AtomicU32,
    pio: AtomicU32,
}

impl Coalesced {
    /// An empty ring, no zones.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            ring: Arc::new(LazyPage::new(), GFP_KERNEL_ACCOUNT)?,
            lock <- RawSpin::new((), c"Coalesced.lock", static_lock_class!()),
            zones: Once::new(),
            mmio: AtomicU32::new(0),
            pio: AtomicU32::new(0),
        })
    }

    /// The page of the ring.
    pub(crate) fn page(&self) -> &Arc<LazyPage> {
        &self.ring
    }

    fn number(&self, bus: Bus) -> &AtomicU32 {
        match bus {
            Bus::Mmio => &self.mmio,
            _ => &self.pio,
        }
    }

    /// Puts a write into the ring if a zone holds it. False if none does, or the ring is full. Any context.
    #[inline]
    pub(crate) fn write(&self, bus: Bus, addr: u64, data: &[u8]) -> bool {
        self.number(bus).load(Ordering::Acquire) != 0 && self.find_and_write(bus, addr, data)
    }

    #[inline(never)]
    fn find_and_write(&self, bus: Bus, addr: u64, data: &[u8]) -> bool {
        let Some(zones) = self.zones.get() else {
            return false;
        };
        let len = data.len();
        if len > size_of::<u64>()
            || !zones
                .read()
                .iter()
                .any(|z| z.contains(bus, addr, len as u64))
        {
            return false;
        }
        self.insert(bus, addr, data).is_ok()
    }

    /// EBUSY when the ring is full, or user space has spoilt it.
    fn insert(&self, bus: Bus, addr: u64, data: &[u8]) -> Result {
        let _lock = self.lock.lock_irqsave();
        let last = self.ring.read::<u32>(ring::LAST)?;
        if last >= ring::MAX {
            return Err(EBUSY);
        }
        // One entry stays free: a full ring differs from an empty one.
        let next = if last == ring::MAX - 1 { 0 } else { last + 1 };
        if next == self.ring.read::<u32>(ring::FIRST)? {
            return Err(EBUSY);
        }
        let at = ring::ENTRIES + last as usize * ring::ENTRY;
        self.ring.write(at + ring::ADDR, addr)?;
        self.ring.write(at + ring::LEN, data.len() as u32)?;
        self.ring
            .write(at + ring::PIO, u32::from(bus == Bus::Pio))?;
        self.ring.copy_in(at + ring::DATA, data)?;
        // Who sees the new index sees the entry.
        fence(Ordering::Release);
        self.ring.write(ring::LAST, next)
    }

    /// KVM_REGISTER_COALESCED_MMIO; `devices`: what the kernel has on the zone's bus. The caller excludes other calls.
    /// EINVAL, ENOSPC.
    pub(crate) fn register(
        &self,
        args: &uapi::CoalescedZone,
        devices: impl Fn(Bus) -> u32,
    ) -> Result {
        let zone = Zone::from_user(args)?;
        let number = self.number(zone.bus).load(Ordering::Relaxed);
        if number.saturating_add(devices(zone.bus)) >= MAX_DEVICES {
            return Err(ENOSPC);
        }
        self.ring.get_or_alloc()?;
        let cell = self
            .zones
            .get_or_make(|| VersionCell::boxed(Zones::new()))?;
        let mut new = Zones::new();
        {
            let old = cell.read();
            new.reserve(old.len().saturating_add(1), GFP_KERNEL_ACCOUNT)?;
            new.extend_from_slice(&old, GFP_KERNEL_ACCOUNT)?;
        }
        new.push_within_capacity(zone).map_err(|_| ENOMEM)?;
        self.replace(cell, new)
    }

    /// KVM_UNREGISTER_COALESCED_MMIO: removes the zones that hold all of this one. None is no error. The caller
    /// excludes other calls. EINVAL.
    pub(crate) fn unregister(&self, args: &uapi::CoalescedZone) -> Result {
        let zone = Zone::from_user(args)?;
        let Some(cell) = self.zones.get() else {
            return Ok(());
        };
        // The length is signed in KVM's comparison.
        let goes = |z: &Zone| {
            i32::try_from(zone.size).is_ok_and(|len| z.contains(zone.bus, zone.addr, len as u64))
        };
        let mut new = Zones::new();
        {
            let old = cell.read();
            if !old.iter().any(goes) {
                return Ok(());
            }
            new.reserve(old.len(), GFP_KERNEL_ACCOUNT)?;
            for z in old.iter().filter(|z| !goes(z)) {
                new.push_within_capacity(*z).map_err(|_| ENOMEM)?;
            }
        }
        self.replace(cell, new)
    }

    fn replace(&self, cell: &VersionCell<Zones>, new: Zones) -> Result {
        let count =
            |bus| u32::try_from(new.iter().filter(|z| z.bus == bus).count()).unwrap_or(u32::MAX);
        let (mmio, pio) = (count(Bus::Mmio), count(Bus::Pio));
        drop(cell.replace(KBox::new(new, GFP_KERNEL_ACCOUNT)?));
        self.mmio.store(mmio, Ordering::Release);
        self.pio.store(pio, Ordering::Release);
        Ok(())
    }
}
