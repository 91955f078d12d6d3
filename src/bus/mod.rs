// SPDX-License-Identifier: GPL-2.0
//! What reaches a VM from outside its vCPUs, and where their writes go that no device in the kernel takes.

pub(crate) mod coalesced;
pub(crate) mod ioeventfd;
pub(crate) mod irqfd;
pub(crate) mod line;
pub(crate) mod ports;
pub(crate) mod recorder;
pub(crate) mod set;

use crate::abi::uapi::{self, k};
use crate::linux::page::LazyPage;
use coalesced::Coalesced;
use ioeventfd::{Bus, IoEventFds};
use kernel::prelude::*;
use kernel::sync::{new_mutex, Arc, Mutex};

/// The ioeventfds and coalesced zones of a VM. The mutex serialises changes; writes of guests take no lock.
#[pin_data]
pub(crate) struct EventBus {
    events: IoEventFds,
    #[pin]
    coalesced: Coalesced,
    #[pin]
    config: Mutex<()>,
}

impl EventBus {
    /// Nobody waits for a write.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            events: IoEventFds::new(),
            coalesced <- Coalesced::new(),
            config <- new_mutex!(()),
        })
    }

    /// Signals the ioeventfd of a write, if it has one. Any context.
    #[inline]
    pub(crate) fn signal(&self, bus: Bus, addr: u64, data: &[u8]) -> bool {
        self.events.signal(bus, addr, data)
    }

    /// Signals the ioeventfd of a write, or puts the write into the ring. False: nobody waits for it. Any context.
    #[inline]
    pub(crate) fn write(&self, bus: Bus, addr: u64, data: &[u8]) -> bool {
        self.events.signal(bus, addr, data) || self.coalesced.write(bus, addr, data)
    }

    /// KVM_IOEVENTFD (api.rst 4.59).
    pub(crate) fn ioeventfd(&self, args: &k::kvm_ioeventfd) -> Result {
        let _config = self.config.lock();
        self.events.ioctl(args)
    }

    /// KVM_REGISTER_COALESCED_MMIO (api.rst 4.116); `devices`: how many are on a bus.
    pub(crate) fn coalesce(
        &self,
        zone: &uapi::CoalescedZone,
        devices: impl Fn(Bus) -> u32,
    ) -> Result {
        let _config = self.config.lock();
        self.coalesced.register(zone, devices)
    }

    /// KVM_UNREGISTER_COALESCED_MMIO.
    pub(crate) fn uncoalesce(&self, zone: &uapi::CoalescedZone) -> Result {
        let _config = self.config.lock();
        self.coalesced.unregister(zone)
    }

    /// The ring that user space maps behind every vCPU's pages.
    pub(crate) fn ring(&self) -> Arc<LazyPage> {
        self.coalesced.page().clone()
    }
}
