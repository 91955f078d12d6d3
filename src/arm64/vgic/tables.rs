// SPDX-License-Identifier: GPL-2.0
//! What an interrupt translation service remembers: its registers, devices, collections, and which LPI each event leads
//! to.
//!
//! Commands, under `state`, change everything. A message looks up its event alone, in any context, under a spin lock of
//! its own: events stand in order of their numbers in one array. There are no more of them than LPIs, and each array is
//! in memory of the VM's owner.

use crate::arm64::vgic::translation::{Collection, Device, Event, Registers};
use crate::linux::spin_irq::RawSpin;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::sync::{new_mutex, Arc, Mutex};

/// Events that there is room for at first.
const ROOM: usize = 32;

/// What commands change.
pub(crate) struct State {
    pub(crate) registers: Registers,
    /// In order of their numbers.
    pub(crate) devices: KVVec<Device>,
    /// Likewise.
    pub(crate) collections: KVVec<Collection>,
}

/// An interrupt translation service.
#[pin_data]
pub(crate) struct Its {
    base: AtomicU64,
    /// As in its registers.
    enabled: AtomicBool,
    #[pin]
    pub(crate) state: Mutex<State>,
    #[pin]
    events: RawSpin<KVVec<Event>>,
}

impl Its {
    /// That user space has not said.
    pub(crate) const UNDEFINED: u64 = u64::MAX;

    /// One that is nowhere yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                base: AtomicU64::new(Self::UNDEFINED),
                enabled: AtomicBool::new(false),
                state <- new_mutex!(State {
                    registers: Registers::NEW,
                    devices: KVVec::new(),
                    collections: KVVec::new(),
                }),
                events <- RawSpin::new(KVVec::new(), c"Tables.events", static_lock_class!()),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Where it is in guest memory.
    #[inline]
    pub(crate) fn base(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }

    /// Says where it is. EEXIST: that has been said.
    pub(crate) fn set_base(&self, base: u64) -> Result {
        let (from, how) = (Self::UNDEFINED, Ordering::Relaxed);
        let old = self.base.compare_exchange(from, base, how, how);
        old.map(|_| ()).map_err(|_| EEXIST)
    }

    /// Whether messages are translated. Any context.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// They are, or not, as the registers say.
    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Release);
    }

    /// Where an event leads. Any context.
    pub(crate) fn event(&self, key: u32) -> Option<Event> {
        let events = self.events.lock_irqsave();
        let at = events.binary_search_by_key(&key, |e| e.key).ok()?;
        events.get(at).copied()
    }

    /// The first event whose key is `key` or more. Under `state` nobody else changes them.
    pub(crate) fn event_from(&self, key: u32) -> Option<Event> {
        let events = self.events.lock_irqsave();
        let at = events.partition_point(|e| e.key < key);
        events.get(at).copied()
    }

    /// Those whose keys are in `first..=last`, one by one, without the lock. Under `state`.
    pub(crate) fn for_each(&self, first: u32, last: u32, mut f: impl FnMut(Event)) {
        let mut next = Some(first);
        while let Some(e) = next.and_then(|key| self.event_from(key)) {
            if e.key > last {
                break;
            }
            f(e);
            next = e.key.checked_add(1);
        }
    }

    /// Adds an event, or changes the one that has this key. Under `state`. ENOMEM.
    pub(crate) fn put(&self, event: Event) -> Result {
        let mut spare = KVVec::new();
        loop {
            let mut events = self.events.lock_irqsave();
            let list = &mut *events;
            match list.binary_search_by_key(&event.key, |e| e.key) {
                Ok(at) => {
                    if let Some(e) = list.get_mut(at) {
                        *e = event;
                    }
                    return Ok(());
                }
                Err(at) => {
                    if list.len() < list.capacity() {
                        return list.insert_within_capacity(at, event).map_err(|_| ENOMEM);
                    }
                }
            }
            if spare.capacity() > list.len() {
                for e in list.iter() {
                    spare.push_within_capacity(*e).map_err(|_| ENOMEM)?;
                }
                // What was there is freed without the lock.
                core::mem::swap(list, &mut spare);
                drop(events);
                spare = KVVec::new();
                continue;
            }
            let room = list.len().saturating_mul(2).max(ROOM);
            drop(events);
            spare = KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?;
        }
    }

    /// Removes those whose keys are in `first..=last`. Under `state`.
    pub(crate) fn remove(&self, first: u32, last: u32) {
        let mut events = self.events.lock_irqsave();
        let from = events.partition_point(|e| e.key < first);
        let to = events.partition_point(|e| e.key <= last);
        let left = events.len().saturating_sub(to.saturating_sub(from));
        if from < to {
            events.copy_within(to.., from);
            events.truncate(left);
        }
    }
}

impl State {
    /// A device.
    pub(crate) fn device(&self, number: u32) -> Option<Device> {
        let at = self.devices.binary_search_by_key(&number, |d| d.number);
        self.devices.get(at.ok()?).copied()
    }

    /// Adds a device of which there is none. ENOMEM.
    pub(crate) fn add_device(&mut self, device: Device) -> Result {
        let at = self.devices.partition_point(|d| d.number < device.number);
        self.devices.reserve(1, GFP_KERNEL_ACCOUNT)?;
        let put = self.devices.insert_within_capacity(at, device);
        put.map_err(|_| ENOMEM)
    }

    /// Removes a device.
    pub(crate) fn remove_device(&mut self, number: u32) {
        self.devices.retain(|d| d.number != number);
    }

    /// A collection.
    pub(crate) fn collection(&self, number: u32) -> Option<Collection> {
        let list = &self.collections;
        let at = list.binary_search_by_key(&number, |c| c.number);
        list.get(at.ok()?).copied()
    }

    /// Adds a collection, or changes the one that has this number. ENOMEM.
    pub(crate) fn put_collection(&mut self, collection: Collection) -> Result {
        let list = &mut self.collections;
        match list.binary_search_by_key(&collection.number, |c| c.number) {
            Ok(at) => {
                if let Some(c) = list.get_mut(at) {
                    *c = collection;
                }
                Ok(())
            }
            Err(at) => {
                list.reserve(1, GFP_KERNEL_ACCOUNT)?;
                let put = list.insert_within_capacity(at, collection);
                put.map_err(|_| ENOMEM)
            }
        }
    }

    /// Removes a collection.
    pub(crate) fn remove_collection(&mut self, number: u32) {
        self.collections.retain(|c| c.number != number);
    }
}
