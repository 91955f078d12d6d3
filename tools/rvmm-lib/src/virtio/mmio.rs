// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A virtio device in memory (Virtual I/O Device 1.2, 4.2): registers of 32 bits, and one interrupt.
//!
//! The interrupt is an edge by an event (`KVM_IRQFD`) from the device's thread, which sees no registers. So the
//! register that says why always says that queues may have been used; a driver then looks at all of them.

use std::sync::Arc;

#[cfg(target_arch = "aarch64")]
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::transport::{status, Action, Transport};
use super::worker::{event, State};
use super::{Backend, EVENT_IDX, INDIRECT};
#[cfg(target_arch = "aarch64")]
use crate::arm64::layout;
use crate::bus::Device;
#[cfg(target_arch = "aarch64")]
use crate::error::Error;
use crate::error::Result;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// The vendor of the devices: Red Hat's number, as on PCI.
const VENDOR: u32 = 0x1af4;
/// Registers that are not those of the structure on PCI.
const QUEUE_MOST: u64 = 0x34;
const DOORBELL: u64 = 0x50;
const INTERRUPT: u64 = 0x60;
const GENERATION: u64 = 0xfc;
const CONFIG: u64 = 0x100;
/// Why there was an interrupt: queues have been used, the configuration has changed.
const USED: u32 = 1;
const CHANGED: u32 = 2;

/// Where [`Transport`], which has the structure's layout on PCI, has a register, and how many bytes of it.
fn common(offset: u64) -> Option<(u64, usize)> {
    Some(match offset {
        0x10 => (0x04, 4),
        0x14 => (0x00, 4),
        0x20 => (0x0c, 4),
        0x24 => (0x08, 4),
        0x30 => (0x16, 2),
        0x38 => (0x18, 2),
        0x44 => (0x1c, 2),
        0x70 => (0x14, 1),
        0x80 | 0x84 => (0x20 + (offset & 4), 4),
        0x90 | 0x94 => (0x28 + (offset & 4), 4),
        0xa0 | 0xa4 => (0x30 + (offset & 4), 4),
        _ => return None,
    })
}

/// The registers, and what is behind them.
pub(crate) struct Mmio {
    memory: Arc<GuestMemoryMmap>,
    kind: u32,
    transport: Transport,
    config: Vec<u8>,
    state: State,
    kicks: Vec<EventFd>,
    events: Arc<Vec<EventFd>>,
}

impl Mmio {
    /// The `number`th device of a machine.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn new(
        vm: &VmFd,
        memory: &Arc<GuestMemoryMmap>,
        backend: Box<dyn Backend>,
        number: u32,
    ) -> Result<Self> {
        let device = Self::unplugged(memory, backend)?;
        let doorbell = IoEventAddress::Mmio(layout::virtio(number) + DOORBELL);
        for (index, kick) in (0u32..).zip(&device.kicks) {
            vm.register_ioevent(kick, &doorbell, index)
                .map_err(Error::ioctl("KVM_IOEVENTFD"))?;
        }
        for interrupt in &*device.events {
            vm.register_irqfd(interrupt, layout::VIRTIO_SPI + number)
                .map_err(Error::ioctl("KVM_IRQFD"))?;
        }
        Ok(device)
    }

    /// A device without a hypervisor: its doorbells come as accesses, and nobody hears its interrupt.
    fn unplugged(memory: &Arc<GuestMemoryMmap>, backend: Box<dyn Backend>) -> Result<Self> {
        let queues = backend.queues();
        let features = backend.features() | INDIRECT | EVENT_IDX;
        Ok(Self {
            memory: memory.clone(),
            kind: backend.kind().0.into(),
            transport: Transport::new(features, &queues, 1),
            config: backend.config(),
            state: State::Idle(backend),
            kicks: queues.iter().map(|_| event()).collect::<Result<_>>()?,
            events: Arc::new(vec![event()?]),
        })
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.kind,
            0x0c => VENDOR,
            QUEUE_MOST => {
                let queue = self.transport.queues.get(usize::from(self.selected()));
                queue.map_or(0, |queue| queue.most.into())
            }
            INTERRUPT if self.transport.status() & status::NEEDS_RESET != 0 => USED | CHANGED,
            INTERRUPT => USED,
            // The configuration is constant.
            GENERATION => 0,
            // No shared memory: its length is all ones.
            0xb0 | 0xb4 => u32::MAX,
            _ => match common(offset) {
                Some((at, length)) => {
                    let mut bytes = [0; 4];
                    self.transport.read(at, &mut bytes[..length]);
                    u32::from_le_bytes(bytes)
                }
                None => 0,
            },
        }
    }

    fn selected(&self) -> u16 {
        let mut bytes = [0; 2];
        self.transport.read(0x16, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Every queue, and the configuration, has the one interrupt that there is.
    fn connect(&mut self) {
        let selected = self.selected();
        self.transport.write(0x10, &[0, 0]);
        for index in 0..self.transport.queues.len() as u16 {
            self.transport.write(0x16, &index.to_le_bytes());
            self.transport.write(0x1a, &[0, 0]);
        }
        self.transport.write(0x16, &selected.to_le_bytes());
    }

    fn start(&mut self) {
        self.connect();
        let (kicks, events) = (&self.kicks, &self.events);
        self.state
            .start(&self.transport, &self.memory, kicks, events, None, None);
    }

    /// Ends the device's thread, and forgets what it had been asked for.
    fn stop(&mut self) {
        self.state.stop();
        for kick in &self.kicks {
            let _ = kick.read();
        }
    }
}

impl Device for Mmio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            for (n, byte) in data.iter_mut().enumerate() {
                *byte = self.config.get(at as usize + n).copied().unwrap_or(0);
            }
        } else if data.len() == 4 {
            data.copy_from_slice(&self.register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            return;
        };
        if offset == DOORBELL {
            // The hypervisor takes those of queues that there are.
            if let Some(kick) = self.kicks.get(u32::from_le_bytes(bytes) as usize) {
                let _ = kick.write(1);
            }
        } else if let Some((at, length)) = common(offset) {
            match self.transport.write(at, &bytes[..length]) {
                Action::None => {}
                Action::Reset => self.stop(),
                Action::Start => self.start(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::rng::Rng;

    /// What the driver has in memory: the queue of 4, and behind it what a request is for.
    const RING: u64 = 0x1000;
    const BUFFER: u64 = 0x2000;

    fn device() -> (Mmio, Arc<GuestMemoryMmap>) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]);
        let memory = Arc::new(memory.unwrap());
        let backend = Box::new(Rng::new().unwrap());
        (Mmio::unplugged(&memory, backend).unwrap(), memory)
    }

    fn get(device: &mut Mmio, offset: u64) -> u32 {
        let mut bytes = [0xff; 4];
        device.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn put(device: &mut Mmio, offset: u64, value: u32) {
        device.write(offset, &value.to_le_bytes());
    }

    /// Up to the start, with the queue at [`RING`].
    fn set_up(device: &mut Mmio) {
        for (register, value) in [
            (0x70, 3),
            (0x24, 1),
            (0x20, 1),
            (0x70, 11),
            (0x30, 0),
            (0x38, 4),
            (0x80, RING as u32),
            (0x90, RING as u32 + 0x100),
            (0xa0, RING as u32 + 0x200),
            (0x44, 1),
            (0x70, 15),
        ] {
            put(device, register, value);
        }
    }

    #[test]
    fn a_driver_finds_and_uses_it() {
        let (mut device, memory) = device();
        assert_eq!(get(&mut device, 0), 0x7472_6976);
        let about = [4, 8, QUEUE_MOST, 0x44].map(|register| get(&mut device, register));
        assert_eq!(about, [2, 4, 64, 0]);
        put(&mut device, 0x14, 1);
        assert_eq!(get(&mut device, 0x10), 1, "a device of version 1");
        set_up(&mut device);
        assert_eq!((get(&mut device, 0x70), get(&mut device, 0x44)), (15, 1));
        assert_eq!(get(&mut device, QUEUE_MOST), 64);
        // One request, for 16 bytes.
        let descriptor = [BUFFER, 16 | 2 << 32];
        for (n, word) in (0..).zip(descriptor) {
            memory.write_obj(word, GuestAddress(RING + 8 * n)).unwrap();
        }
        memory.write_obj(1u16, GuestAddress(RING + 0x102)).unwrap();
        put(&mut device, DOORBELL, 0);
        let used = || memory.read_obj::<u16>(GuestAddress(RING + 0x202)).unwrap();
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while used() != 1 || device.events[0].read().is_err() {
            assert!(std::time::Instant::now() < patience);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(get(&mut device, INTERRUPT), USED);
        let bytes = memory.read_obj::<u128>(GuestAddress(BUFFER)).unwrap();
        assert_ne!(bytes, 0);
        put(&mut device, 0x70, 0);
        assert_eq!((get(&mut device, 0x70), get(&mut device, 0x44)), (0, 0));
    }

    #[test]
    fn a_driver_that_breaks_the_rules_is_told() {
        let (mut device, _) = device();
        put(&mut device, 0x84, 1);
        set_up(&mut device);
        // The queue is beside the memory.
        assert_eq!(get(&mut device, 0x70), 15 | 64);
        assert_eq!(get(&mut device, INTERRUPT), USED | CHANGED);
    }

    #[test]
    fn any_access_is_survived() {
        let mut seed = 1u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
            seed >> 33
        };
        let (mut device, _) = device();
        for _ in 0..20_000 {
            let (offset, length) = (random() % 0x208, (random() % 9) as usize);
            let value = (random() << 32 | random()).to_le_bytes();
            device.write(offset & !3, &value[..4]);
            device.write(offset, &value[..length]);
            device.read(random() % 0x208, &mut [0; 8][..(random() % 9) as usize]);
        }
        device.read(u64::MAX, &mut [0; 8]);
    }
}
