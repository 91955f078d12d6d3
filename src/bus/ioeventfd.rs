// SPDX-License-Identifier: GPL-2.0
//! Eventfds that are signalled by the guest's writes (api.rst 4.59, KVM_IOEVENTFD).

use crate::abi::uapi::k;
use crate::linux::eventfd::EventFdCtx;
use crate::linux::once::Once;
use crate::linux::version_cell::VersionCell;
use core::sync::atomic::{AtomicU32, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;

/// `KVM_IOEVENTFD_FLAG_*`.
mod flag {
    pub(super) const DATAMATCH: u32 = 1 << 0;
    pub(super) const PIO: u32 = 1 << 1;
    pub(super) const DEASSIGN: u32 = 1 << 2;
    pub(super) const VIRTIO_CCW_NOTIFY: u32 = 1 << 3;
    pub(super) const VALID: u32 = DATAMATCH | PIO | DEASSIGN | VIRTIO_CCW_NOTIFY;
}

/// Where an address counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bus {
    /// Guest-physical addresses.
    Mmio,
    /// I/O ports.
    Pio,
    /// s390 channels: accepted as KVM does, never written to here.
    Ccw,
}

#[derive(Clone)]
struct Event {
    bus: Bus,
    addr: u64,
    /// Width of the write, 0 for any.
    len: u32,
    datamatch: Option<u64>,
    fd: Arc<EventFdCtx>,
}

impl Event {
    fn from_user(args: &k::kvm_ioeventfd, fd: EventFdCtx) -> Result<Self> {
        Ok(Self {
            bus: match args.flags {
                f if f & flag::PIO != 0 => Bus::Pio,
                f if f & flag::VIRTIO_CCW_NOTIFY != 0 => Bus::Ccw,
                _ => Bus::Mmio,
            },
            addr: args.addr,
            len: args.len,
            datamatch: (args.flags & flag::DATAMATCH != 0).then_some(args.datamatch),
            fd: Arc::new(fd, GFP_KERNEL_ACCOUNT)?,
        })
    }

    fn key(&self) -> (Bus, u64) {
        (self.bus, self.addr)
    }

    fn order(&self) -> Order {
        (self.key(), self.len, self.datamatch)
    }

    fn is_hit(&self, len: usize, value: u64) -> bool {
        self.len == 0 || self.len as usize == len && self.datamatch.is_none_or(|d| d == value)
    }

    /// Whether some write would hit both.
    fn collides(&self, other: &Self) -> bool {
        let data = match (self.datamatch, other.datamatch) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        self.key() == other.key()
            && (self.len == 0 || other.len == 0 || self.len == other.len && data)
    }

    fn is_same(&self, other: &Self) -> bool {
        self.key() == other.key()
            && self.len == other.len
            && self.datamatch == other.datamatch
            && *self.fd == *other.fd
    }
}

/// By bus and address, then by width, then by value, "any" first.
type Order = ((Bus, u64), u32, Option<u64>);

/// Sorted.
type List = KVVec<Event>;

fn position(list: &[Event], order: Order) -> usize {
    list.partition_point(|e| e.order() < order)
}

/// The event that a write of `len` bytes hits. There is one at most, among any number of one address.
fn find(list: &[Event], key: (Bus, u64), len: usize, value: u64) -> Option<&Event> {
    let here = list.get(list.partition_point(|e| e.key() < key)..)?;
    let first = here.first().filter(|e| e.key() == key)?;
    if first.is_hit(len, value) {
        return Some(first);
    }
    [None, Some(value)].iter().find_map(|datamatch| {
        let order = (key, len as u32, *datamatch);
        here.get(position(here, order))
            .filter(|e| e.order() == order)
    })
}

/// The ioeventfds of a VM.
pub(crate) struct IoEventFds {
    /// Made with the first one.
    list: Once<KBox<VersionCell<List>>>,
    /// Numbers of MMIO and port events: most VMs have few, most exits need not look for them.
    mmio: AtomicU32,
    pio: AtomicU32,
}

impl IoEventFds {
    /// None.
    pub(crate) fn new() -> Self {
        Self {
            list: Once::new(),
            mmio: AtomicU32::new(0),
            pio: AtomicU32::new(0),
        }
    }

    /// Signals the eventfd that a write to `addr` hits. Any context. Returns whether there is one.
    #[inline(always)]
    pub(crate) fn signal(&self, bus: Bus, addr: u64, data: &[u8]) -> bool {
        let number = match bus {
            Bus::Mmio => &self.mmio,
            _ => &self.pio,
        };
        number.load(Ordering::Acquire) != 0 && self.find_and_signal(bus, addr, data)
    }

    #[inline(never)]
    fn find_and_signal(&self, bus: Bus, addr: u64, data: &[u8]) -> bool {
        let Some(list) = self.list.get() else {
            return false;
        };
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u64::from_le_bytes(bytes);
        let list = list.read();
        match find(&list, (bus, addr), data.len(), value) {
            Some(e) => {
                e.fd.signal();
                true
            }
            None => false,
        }
    }

    /// KVM_IOEVENTFD. The caller excludes other calls. EBADF, EINVAL, EEXIST, ENOENT.
    pub(crate) fn ioctl(&self, args: &k::kvm_ioeventfd) -> Result {
        if args.flags & flag::DEASSIGN != 0 {
            let event = Event::from_user(args, EventFdCtx::from_fd(args.fd)?)?;
            return self.remove(&event);
        }
        if !matches!(args.len, 0 | 1 | 2 | 4 | 8)
            || args.addr.checked_add(args.len.into()).is_none()
            || args.flags & !flag::VALID != 0
            || args.len == 0 && args.flags & flag::DATAMATCH != 0
        {
            return Err(EINVAL);
        }
        self.add(Event::from_user(args, EventFdCtx::from_fd(args.fd)?)?)
    }

    fn add(&self, event: Event) -> Result {
        let cell = self.list.get_or_make(|| VersionCell::boxed(List::new()))?;
        let mut new = List::new();
        {
            let old = cell.read();
            if old.iter().any(|e| e.collides(&event)) {
                return Err(EEXIST);
            }
            new.reserve(old.len().saturating_add(1), GFP_KERNEL_ACCOUNT)?;
            for e in old.iter() {
                new.push_within_capacity(e.clone()).map_err(|_| ENOMEM)?;
            }
        }
        let at = position(&new, event.order());
        new.insert_within_capacity(at, event).map_err(|_| ENOMEM)?;
        self.replace(cell, new)
    }

    fn remove(&self, event: &Event) -> Result {
        let cell = self.list.get().ok_or(ENOENT)?;
        let mut new = List::new();
        {
            let old = cell.read();
            let found = old.iter().position(|e| e.is_same(event)).ok_or(ENOENT)?;
            new.reserve(old.len(), GFP_KERNEL_ACCOUNT)?;
            for (_, e) in old.iter().enumerate().filter(|(i, _)| *i != found) {
                new.push_within_capacity(e.clone()).map_err(|_| ENOMEM)?;
            }
        }
        self.replace(cell, new)
    }

    fn replace(&self, cell: &VersionCell<List>, new: List) -> Result {
        let number =
            |bus| u32::try_from(new.iter().filter(|e| e.bus == bus).count()).unwrap_or(u32::MAX);
        let (mmio, pio) = (number(Bus::Mmio), number(Bus::Pio));
        drop(cell.replace(KBox::new(new, GFP_KERNEL_ACCOUNT)?));
        self.mmio.store(mmio, Ordering::Release);
        self.pio.store(pio, Ordering::Release);
        Ok(())
    }
}
