// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Devices and a driver that wants to do harm: rings and descriptors are anything. A device serves what makes sense or
//! stops, and comes back.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::transport::Transport;
use super::*;
use crate::disk::RawFile;

/// Bytes of the guest's memory, which has a hole in it.
const MEMORY: u64 = 1 << 16;
const HOLE: u64 = 1 << 15;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Numbers that a check may have forgotten.
    fn odd(&mut self) -> u64 {
        let near = [
            0,
            1,
            12,
            16,
            512,
            4096,
            HOLE,
            MEMORY,
            1 << 31,
            1 << 32,
            u64::MAX,
        ];
        let one = near[self.below(near.len() as u64) as usize];
        match self.below(4) {
            0 => self.below(MEMORY),
            1 => one.wrapping_sub(self.below(20)),
            2 => one.wrapping_add(self.below(20)),
            _ => self.next(),
        }
    }
}

fn devices() -> Vec<Box<dyn Backend>> {
    let (tap, host) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    host.set_nonblocking(true).unwrap();
    for _ in 0..8 {
        host.send(&[5; 100]).unwrap();
    }
    let link = std::env::temp_dir().join(format!("rvmm-hostile-{}", std::process::id()));
    let disk = crate::sys::memory_file(&[7; 1 << 16]).unwrap().0;
    let disk = Arc::new(Mutex::new(RawFile::new(disk, false).unwrap()));
    let mut devices: Vec<Box<dyn Backend>> = vec![
        Box::new(block::Block::new(disk, 2, "disk")),
        Box::new(net::Net::new(File::from(OwnedFd::from(tap)), None).unwrap()),
        Box::new(rng::Rng::new().unwrap()),
        Box::new(balloon::Balloon::new()),
    ];
    // Where the test runs there may be no terminals.
    if let Ok(console) = console::Console::new(&link) {
        devices.push(Box::new(console));
    }
    devices
}

/// Rings wherever the driver puts them; those that the checks at the start refuse are not served.
fn rings(sizes: &[u16], memory: &GuestMemoryMmap, random: &mut Random) -> Vec<Ring> {
    let ring = |most: &u16| {
        let mut queue = Queue::new(*most).unwrap();
        let _ = queue.try_set_size(1 << random.below(9));
        let mut place = || GuestAddress(random.below(MEMORY * 5 / 4) & !15);
        let _ = queue.try_set_desc_table_address(place());
        let _ = queue.try_set_avail_ring_address(place());
        let _ = queue.try_set_used_ring_address(place());
        queue.set_event_idx(random.below(2) == 0);
        queue.set_next_avail(random.next() as u16);
        queue.set_ready(true);
        let valid = queue.is_valid(memory);
        queue.set_ready(valid);
        Ring {
            queue,
            vector: Transport::new(0, &[16], 1).config_vector.clone(),
            events: Arc::new(vec![EventFd::new(libc::EFD_NONBLOCK).unwrap()]),
        }
    };
    sizes.iter().map(ring).collect()
}

#[test]
fn rings_and_descriptors_may_be_anything() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut served, mut stopped) = (0, 0);
    for round in 0..3000 {
        let ranges = [
            (GuestAddress(0), HOLE as usize),
            (GuestAddress(HOLE + 4096), HOLE as usize),
        ];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        for _ in 0..random.below(200) {
            // Words that are addresses, lengths, flags or indices, wherever they fall.
            let _ = memory.write_obj(random.odd(), GuestAddress(random.below(MEMORY) & !7));
        }
        let guest = Guest {
            memory: Arc::new(memory),
            stop: Arc::default(),
            leave: Arc::default(),
            forked: None,
        };
        let mut devices = devices();
        let count = devices.len();
        let device = &mut devices[round % count];
        let mut rings = rings(&device.queues(), &guest.memory, &mut random);
        // A few descriptors that do make sense, in each queue.
        for ring in rings.iter().filter(|ring| ring.enabled()) {
            let (size, next) = (ring.queue.size(), ring.queue.next_avail());
            for n in 0..size.min(4) {
                let at = ring.queue.desc_table() + 16 * u64::from(n);
                let put = |offset, value: u64, length: usize| {
                    let bytes = &value.to_le_bytes()[..length];
                    let _ = guest.memory.write_slice(bytes, GuestAddress(at + offset));
                };
                put(
                    0,
                    if random.below(4) == 0 {
                        random.odd()
                    } else {
                        random.below(MEMORY)
                    },
                    8,
                );
                put(8, random.odd() & 0xffff, 4);
                put(12, random.below(8), 2);
                put(14, random.below(u64::from(size) + 1), 2);
                let slot = ring.queue.avail_ring() + 4 + 2 * u64::from(next.wrapping_add(n) % size);
                let _ = guest.memory.write_obj(n, GuestAddress(slot));
            }
            let index = next.wrapping_add(random.below(u64::from(size) + 2) as u16);
            let _ = guest
                .memory
                .write_obj(index, GuestAddress(ring.queue.avail_ring() + 2));
        }
        device.start(random.next());
        for index in 0..rings.len() + 1 {
            if rings.get(index).is_some_and(|ring| !ring.enabled()) {
                continue;
            }
            match device.serve(index, &mut rings, &guest) {
                Ok(()) => served += 1,
                Err(_) => stopped += 1,
            }
        }
        let _ = device.ready(&mut rings, &guest);
        if let Some(registers) = device.registers() {
            registers.write(
                random.odd(),
                &[random.next() as u8; 9][..random.below(9) as usize],
            );
            assert_eq!(registers.bytes().len(), 8);
        }
    }
    assert!(
        served > 100 && stopped > 100,
        "{served} served, {stopped} stopped"
    );
}
