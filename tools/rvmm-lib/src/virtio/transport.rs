// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The common configuration structure of a modern virtio device on PCI (Virtual I/O Device 1.2, 4.1.4.3): what the
//! driver selects, negotiates and enables. Registers only: it neither sees guest memory nor serves a queue.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// "No vector" for configuration changes or for a queue (4.1.4.3).
pub const NO_VECTOR: u16 = 0xffff;
/// Bytes of the structure.
pub const LENGTH: u64 = 0x38;

/// Bits of the device status (2.1).
pub mod status {
    /// The driver has set up the device.
    pub const DRIVER_OK: u8 = 4;
    /// The driver has accepted features that fit.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on.
    pub const NEEDS_RESET: u8 = 64;
}

/// Feature bit 32: a device of virtio 1.0 or later, which drivers have to accept here.
pub const VERSION_1: u64 = 1 << 32;

/// What a write to the registers asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// The driver has set everything up: start.
    Start,
    /// Stop, and forget everything.
    Reset,
}

/// Which vector somebody sends; changed by the driver while the device's thread reads it.
#[derive(Clone)]
pub struct Vector(Arc<AtomicU16>);

impl Vector {
    fn new() -> Self {
        Self(Arc::new(AtomicU16::new(NO_VECTOR)))
    }

    /// The number of the vector, or [`NO_VECTOR`].
    pub fn get(&self) -> u16 {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, vector: u16) {
        self.0.store(vector, Ordering::Release);
    }
}

/// One queue as the driver has described it.
#[derive(Clone)]
pub struct QueueRegisters {
    /// The most entries.
    pub most: u16,
    /// Entries that the driver wants.
    pub size: u16,
    /// The driver has enabled the queue.
    pub enabled: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// What is sent when entries have been used.
    pub vector: Vector,
}

impl QueueRegisters {
    fn new(most: u16) -> Self {
        Self {
            most,
            size: most,
            enabled: false,
            descriptors: 0,
            available: 0,
            used: 0,
            vector: Vector::new(),
        }
    }
}

/// The registers, saved.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TransportState {
    accepted: u64,
    /// Which half of the features, of the device's and of the driver's.
    selects: (u32, u32),
    /// The status, with that of a device that has stopped.
    status: u8,
    selected: u16,
    config_vector: u16,
    queues: Vec<QueueState>,
}

/// A queue, saved.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct QueueState {
    size: u16,
    enabled: bool,
    vector: u16,
    /// Descriptors, available ring, used ring.
    addresses: [u64; 3],
}

/// The registers.
pub struct Transport {
    offered: u64,
    accepted: u64,
    offered_select: u32,
    accepted_select: u32,
    status: u8,
    selected: u16,
    vectors: u16,
    /// The queues, in the device's order.
    pub queues: Vec<QueueRegisters>,
    /// What is sent when the configuration has changed.
    pub config_vector: Vector,
    /// Set by the device's thread when the driver has broken the rules.
    pub broken: Arc<AtomicBool>,
}

impl Transport {
    /// Registers of a device that offers `features`, with queues of at most so many entries, and `vectors` vectors.
    pub fn new(features: u64, queues: &[u16], vectors: u16) -> Self {
        Self {
            offered: features | VERSION_1,
            accepted: 0,
            offered_select: 0,
            accepted_select: 0,
            status: 0,
            selected: 0,
            vectors,
            queues: queues
                .iter()
                .map(|most| QueueRegisters::new(*most))
                .collect(),
            config_vector: Vector::new(),
            broken: Arc::default(),
        }
    }

    /// The features that the driver has accepted; of worth after [`Action::Start`].
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// The device status, as the driver reads it.
    pub fn status(&self) -> u8 {
        let broken = self.broken.load(Ordering::Acquire);
        self.status | if broken { status::NEEDS_RESET } else { 0 }
    }

    /// The registers as they are.
    pub fn state(&self) -> TransportState {
        let queue = |queue: &QueueRegisters| QueueState {
            size: queue.size,
            enabled: queue.enabled,
            vector: queue.vector.get(),
            addresses: [queue.descriptors, queue.available, queue.used],
        };
        TransportState {
            accepted: self.accepted,
            selects: (self.offered_select, self.accepted_select),
            status: self.status(),
            selected: self.selected,
            config_vector: self.config_vector.get(),
            queues: self.queues.iter().map(queue).collect(),
        }
    }

    /// Makes the registers what they were; false if they do not fit this device.
    pub fn restore(&mut self, state: &TransportState) -> bool {
        let offered = state.accepted & !self.offered == 0;
        if !offered || state.queues.len() != self.queues.len() {
            return false;
        }
        self.accepted = state.accepted;
        (self.offered_select, self.accepted_select) = state.selects;
        self.status = state.status & !status::NEEDS_RESET;
        let broken = state.status & status::NEEDS_RESET != 0;
        self.broken.store(broken, Ordering::Release);
        self.selected = state.selected;
        self.config_vector.set(self.checked(state.config_vector));
        let vectors: Vec<u16> = (state.queues.iter())
            .map(|queue| self.checked(queue.vector))
            .collect();
        for ((queue, was), vector) in self.queues.iter_mut().zip(&state.queues).zip(vectors) {
            if !was.size.is_power_of_two() || was.size > queue.most {
                return false;
            }
            (queue.size, queue.enabled) = (was.size, was.enabled);
            [queue.descriptors, queue.available, queue.used] = was.addresses;
            queue.vector.set(vector);
        }
        true
    }

    fn reset(&mut self) {
        let most: Vec<u16> = self.queues.iter().map(|queue| queue.most).collect();
        // Who tells of changes keeps it.
        let vector = self.config_vector.clone();
        vector.set(NO_VECTOR);
        *self = Self::new(self.offered, &most, self.vectors);
        self.config_vector = vector;
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.selected))
    }

    /// The driver reads `data.len()` bytes at `offset`; a register has to be read as a whole, halves of 64 bits apart.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let half = |bits: u64, select: u32| match select {
            0 => bits & 0xffff_ffff,
            1 => bits >> 32,
            _ => 0,
        };
        // A queue that is not there has size 0.
        let queue = |field: fn(&QueueRegisters) -> u64| self.queue().map_or(0, field);
        let value = match (offset, data.len()) {
            (0x00, 4) => self.offered_select.into(),
            (0x04, 4) => half(self.offered, self.offered_select),
            (0x08, 4) => self.accepted_select.into(),
            (0x0c, 4) => half(self.accepted, self.accepted_select),
            (0x10, 2) => self.config_vector.get().into(),
            (0x12, 2) => self.queues.len() as u64,
            (0x14, 1) => self.status().into(),
            (0x15, 1) => 0,
            (0x16, 2) => self.selected.into(),
            (0x18, 2) => queue(|q| q.size.into()),
            (0x1a, 2) => self.queue().map_or(NO_VECTOR, |q| q.vector.get()).into(),
            (0x1c, 2) => queue(|q| q.enabled.into()),
            // Each queue has a doorbell of its own.
            (0x1e, 2) => self.selected.into(),
            (0x20, 4 | 8) => queue(|q| q.descriptors),
            (0x24, 4) => queue(|q| q.descriptors >> 32),
            (0x28, 4 | 8) => queue(|q| q.available),
            (0x2c, 4) => queue(|q| q.available >> 32),
            (0x30, 4 | 8) => queue(|q| q.used),
            (0x34, 4) => queue(|q| q.used >> 32),
            _ => return,
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// The driver writes at `offset`. What comes too late, or is out of range, changes nothing.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        let mut bytes = [0; 8];
        let Some(to) = bytes.get_mut(..data.len()) else {
            return Action::None;
        };
        to.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        match (offset, data.len()) {
            (0x00, 4) => self.offered_select = value as u32,
            (0x08, 4) => self.accepted_select = value as u32,
            (0x0c, 4) => self.accept(value),
            (0x10, 2) => self.config_vector.set(self.checked(value as u16)),
            (0x14, 1) => return self.set_status(value as u8),
            (0x16, 2) => self.selected = value as u16,
            (0x1a, 2) => {
                let vector = self.checked(value as u16);
                if let Some(queue) = self.queue() {
                    queue.vector.set(vector);
                }
            }
            _ => self.write_queue(offset, data.len(), value),
        }
        Action::None
    }

    /// A vector that the device does not have is none (4.1.5.1.2).
    fn checked(&self, vector: u16) -> u16 {
        if vector < self.vectors {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn accept(&mut self, value: u64) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        match self.accepted_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | value,
            1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn set_status(&mut self, value: u8) -> Action {
        if value == 0 {
            self.reset();
            return Action::Reset;
        }
        let mut added = value & !self.status & !status::NEEDS_RESET;
        let fits = self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0;
        if added & status::FEATURES_OK != 0 && !fits {
            added &= !status::FEATURES_OK;
        }
        // Without features there is no start (3.1.1).
        if (self.status | added) & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        self.status |= added;
        if added & status::DRIVER_OK != 0 {
            Action::Start
        } else {
            Action::None
        }
    }

    fn write_queue(&mut self, offset: u64, length: usize, value: u64) {
        let started = self.status & status::DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.selected)) else {
            return;
        };
        if started || queue.enabled {
            return;
        }
        let low = |old: u64| old & !0xffff_ffff | value & 0xffff_ffff;
        let high = |old: u64| old & 0xffff_ffff | value << 32;
        match (offset, length) {
            (0x18, 2) => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.most {
                    queue.size = size;
                }
            }
            (0x1c, 2) => queue.enabled = value == 1,
            (0x20, 8) => queue.descriptors = value,
            (0x20, 4) => queue.descriptors = low(queue.descriptors),
            (0x24, 4) => queue.descriptors = high(queue.descriptors),
            (0x28, 8) => queue.available = value,
            (0x28, 4) => queue.available = low(queue.available),
            (0x2c, 4) => queue.available = high(queue.available),
            (0x30, 8) => queue.used = value,
            (0x30, 4) => queue.used = low(queue.used),
            (0x34, 4) => queue.used = high(queue.used),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(transport: &Transport, offset: u64, length: usize) -> u64 {
        let mut bytes = [0; 8];
        transport.read(offset, &mut bytes[..length]);
        u64::from_le_bytes(bytes)
    }

    fn negotiate(transport: &mut Transport, features: u64) {
        for (select, half) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
            transport.write(0x08, &select.to_le_bytes());
            transport.write(0x0c, &half.to_le_bytes());
        }
    }

    #[test]
    fn a_driver_starts_the_device() {
        let mut t = Transport::new(0x240, &[256, 128], 3);
        assert_eq!((read(&t, 0x12, 2), read(&t, 4, 4)), (2, 0x240));
        t.write(0, &1u32.to_le_bytes());
        assert_eq!(read(&t, 4, 4), 1);
        negotiate(&mut t, VERSION_1 | 0x40);
        assert_eq!(t.write(0x14, &[11]), Action::None);
        assert_eq!(read(&t, 0x14, 1), 11);
        t.write(0x16, &[1, 0]);
        assert_eq!(read(&t, 0x18, 2), 128);
        t.write(0x18, &64u16.to_le_bytes());
        t.write(0x20, &0x1234_5000u32.to_le_bytes());
        t.write(0x24, &1u32.to_le_bytes());
        t.write(0x1a, &2u16.to_le_bytes());
        t.write(0x1c, &[1, 0]);
        assert_eq!(t.write(0x14, &[15]), Action::Start);
        assert_eq!(t.accepted(), VERSION_1 | 0x40);
        let queue = &t.queues[1];
        assert_eq!((queue.size, queue.descriptors), (64, 0x1_1234_5000));
        assert_eq!((queue.vector.get(), queue.enabled), (2, true));
        assert_eq!(t.write(0x14, &[15]), Action::None, "it has started already");
        let mut again = Transport::new(0x240, &[256, 128], 3);
        assert!(again.restore(&t.state()) && again.state() == t.state());
        assert_eq!((again.status(), again.queues[1].vector.get()), (15, 2));
        for other in [
            Transport::new(0x240, &[256], 3),
            Transport::new(0, &[256, 128], 3),
        ] {
            assert!(!{ other }.restore(&t.state()));
        }
        assert_eq!(t.write(0x14, &[0]), Action::Reset);
        assert_eq!((read(&t, 0x14, 1), read(&t, 0x1c, 2)), (0, 0));
    }

    #[test]
    fn features_that_do_not_fit_are_refused() {
        for features in [0x40, VERSION_1 | 0x80, 1 << 63 | VERSION_1] {
            let mut t = Transport::new(0x40, &[2], 1);
            negotiate(&mut t, features);
            t.write(0x14, &[11]);
            assert_eq!(t.status() & status::FEATURES_OK, 0);
            assert_eq!(t.write(0x14, &[15]), Action::None, "no start either");
        }
        let mut t = Transport::new(0x40, &[2], 1);
        negotiate(&mut t, VERSION_1);
        t.write(0x14, &[11]);
        negotiate(&mut t, VERSION_1 | 0x40);
        assert_eq!(t.accepted(), VERSION_1, "too late");
    }

    #[test]
    fn what_is_out_of_range_changes_nothing() {
        let mut t = Transport::new(0, &[256], 2);
        for size in [0, 3, 512, 0xffff] {
            t.write(0x18, &u16::to_le_bytes(size));
            assert_eq!(read(&t, 0x18, 2), 256);
        }
        t.write(0x1a, &[2, 0]);
        assert_eq!(read(&t, 0x1a, 2), u64::from(NO_VECTOR));
        t.write(0x16, &[9, 0]);
        assert_eq!(
            (read(&t, 0x18, 2), read(&t, 0x1a, 2)),
            (0, u64::from(NO_VECTOR))
        );
        t.write(0x1c, &[1, 0]);
        t.write(0x16, &[0, 0]);
        t.write(0x1c, &[1, 0]);
        t.write(0x20, &[0xff; 8]);
        assert_eq!(read(&t, 0x20, 8), 0, "enabled queues stay as they are");
        t.broken.store(true, Ordering::Release);
        assert_eq!(t.status() & status::NEEDS_RESET, status::NEEDS_RESET);
        t.write(0x14, &[0]);
        assert_eq!(t.status(), 0);
    }

    #[test]
    fn any_access_is_survived() {
        let mut seed = 1u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
            seed >> 33
        };
        let mut t = Transport::new(0xff, &[256, 2], 3);
        for _ in 0..100_000 {
            let (offset, length) = (random() % 0x48, (random() % 9) as usize);
            let value = (random() << 32 | random()).to_le_bytes();
            t.write(offset, &value[..length]);
            let mut data = [0; 16];
            t.read(random() % 0x48, &mut data[..(random() % 17) as usize]);
            for queue in &t.queues {
                assert!(queue.size.is_power_of_two() && queue.size <= queue.most);
                assert!(queue.vector.get() == NO_VECTOR || queue.vector.get() < 3);
            }
        }
    }
}
