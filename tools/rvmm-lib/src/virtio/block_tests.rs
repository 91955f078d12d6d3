// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of block.rs: requests in guest memory, as drivers write them and as they must not.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::virtio::transport::Transport;

const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const MEMORY: usize = 1 << 20;
const SIZE: usize = 64 << 10;

/// A disk in memory, with the flushes it has seen.
struct Memory {
    bytes: Vec<u8>,
    flushes: u32,
}

impl Storage for Memory {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&mut self, at: u64, data: &mut [u8]) -> io::Result<()> {
        data.copy_from_slice(&self.bytes[at as usize..][..data.len()]);
        Ok(())
    }
    fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        self.bytes[at as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn zero(&mut self, at: u64, length: u64) -> io::Result<()> {
        self.bytes[at as usize..][..length as usize].fill(0);
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        Ok(())
    }
}

struct Bench {
    disk: Arc<Mutex<Memory>>,
    block: Block,
    rings: Vec<Ring>,
    guest: Guest,
    next: u16,
}

impl Bench {
    fn new() -> Self {
        let disk = Arc::new(Mutex::new(Memory {
            bytes: (0..SIZE).map(|n| (n / 512) as u8).collect(),
            flushes: 0,
        }));
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let mut queue = Queue::new(16).unwrap();
        queue.set_desc_table_address(Some(TABLE as u32), None);
        queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_size(16);
        queue.set_ready(true);
        let ring = Ring {
            queue,
            vector: Transport::new(0, &[16], 1).config_vector.clone(),
            events: Arc::new(vec![EventFd::new(0).unwrap()]),
        };
        Self {
            block: Block::new(disk.clone(), 1, "disk"),
            disk,
            rings: vec![ring],
            guest: Guest {
                memory: Arc::new(memory),
                stop: Arc::default(),
                leave: Arc::default(),
                forked: None,
            },
            next: 0,
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.guest
            .memory
            .write_slice(bytes, GuestAddress(at))
            .unwrap();
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.guest
            .memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    fn descriptor(&self, n: u64, address: u64, length: u32, flags: u16, next: u16) {
        let at = TABLE + 16 * n;
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &length.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Makes the chain that begins with descriptor `head` available, and serves.
    fn offer(&mut self, head: u16) -> Result<(), Broken> {
        self.put(
            AVAILABLE + 4 + 2 * u64::from(self.next % 16),
            &head.to_le_bytes(),
        );
        self.next = self.next.wrapping_add(1);
        self.put(AVAILABLE + 2, &self.next.to_le_bytes());
        self.block.serve(0, &mut self.rings, &self.guest)
    }

    /// A request with one buffer at 0x8000; its status, and the bytes that were written.
    fn request(&mut self, kind: u32, sector: u64, length: u32, to_guest: bool) -> (u8, u32) {
        self.put(0x7000, &kind.to_le_bytes());
        self.put(0x7008, &sector.to_le_bytes());
        self.put(0x7800, &[0xee]);
        self.descriptor(0, 0x7000, 16, 1, 1);
        self.descriptor(1, 0x8000, length, if to_guest { 3 } else { 1 }, 2);
        self.descriptor(2, 0x7800, 1, 2, 0);
        self.offer(0).unwrap();
        let used = USED + 4 + 8 * u64::from((self.next - 1) % 16);
        (
            self.get::<1>(0x7800)[0],
            u32::from_le_bytes(self.get(used + 4)),
        )
    }
}

#[test]
fn a_driver_reads_and_writes() {
    let mut bench = Bench::new();
    assert_eq!(bench.request(IN, 3, 1024, true), (OK, 1025));
    assert_eq!((bench.get(0x8000), bench.get(0x8200)), ([3], [4]));
    bench.put(0x8000, &[0x77; 512]);
    assert_eq!(bench.request(OUT, 5, 512, false), (OK, 1));
    assert_eq!(
        bench.disk.lock().unwrap().bytes[5 * 512..][..512],
        [0x77; 512]
    );
    assert_eq!(bench.request(DO_FLUSH, 0, 0, false).0, OK);
    assert_eq!(bench.disk.lock().unwrap().flushes, 1);
    assert_eq!(bench.request(GET_ID, 0, 20, true), (OK, 21));
    assert_eq!(bench.get(0x8000), *b"disk\0");
    let mut segment = [0; 16];
    segment[0] = 6;
    segment[8] = 2;
    bench.put(0x8000, &segment);
    assert_eq!(bench.request(DO_DISCARD, 0, 16, false).0, OK);
    assert_eq!(
        bench.disk.lock().unwrap().bytes[6 * 512..][..1024],
        [0; 1024]
    );
    segment[12] = 1;
    bench.put(0x8000, &segment);
    assert_eq!(bench.request(DO_DISCARD, 0, 16, false).0, UNSUPPORTED);
    assert_eq!(bench.request(DO_ZEROES, 0, 16, false).0, OK);
}

#[test]
fn what_the_disk_has_not_is_an_error() {
    let mut bench = Bench::new();
    for (kind, sector, length) in [
        (IN, 128, 512),
        (IN, 127, 1024),
        (IN, u64::MAX, 512),
        (IN, 0, 511),
        (OUT, u64::MAX / 512, 1024),
    ] {
        assert_eq!(
            bench.request(kind, sector, length, kind == IN).0,
            IO_ERROR,
            "{sector}"
        );
    }
    assert_eq!(bench.request(99, 0, 512, true).0, UNSUPPORTED);
    let mut segment = [0xff; 16];
    segment[12..].fill(0);
    bench.put(0x8000, &segment);
    assert_eq!(bench.request(DO_DISCARD, 0, 16, false).0, IO_ERROR);
    assert_eq!(bench.request(DO_DISCARD, 0, 15, false).0, IO_ERROR);
}

#[test]
fn a_chain_without_header_or_status_breaks_the_device() {
    let mut bench = Bench::new();
    bench.descriptor(0, 0x7000, 16, 0, 0);
    assert!(bench.offer(0).is_err());
    let mut bench = Bench::new();
    bench.descriptor(0, 0x7000, 8, 1, 1);
    bench.descriptor(1, 0x7800, 1, 2, 0);
    assert!(bench.offer(0).is_err());
    let mut bench = Bench::new();
    bench.descriptor(0, MEMORY as u64 - 4, 16, 1, 1);
    bench.descriptor(1, 0x7800, 1, 2, 0);
    assert!(bench.offer(0).is_err(), "beyond the memory");
}

#[test]
fn any_chain_is_survived() {
    let mut seed = 11u64;
    let mut random = move |below: u64| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    let mut bench = Bench::new();
    for _ in 0..1500 {
        for n in 0..4 {
            let address =
                [0x7000, 0x8000, 0x9000, MEMORY as u64 - 8, random(1 << 33)][random(5) as usize];
            let length = [0, 1, 16, 512, 4096, random(1 << 32)][random(6) as usize] as u32;
            bench.descriptor(n, address, length, random(8) as u16, random(6) as u16);
        }
        bench.put(0x7000, &[random(14) as u8, 0, 0, 0]);
        bench.put(0x7008, &random(140).to_le_bytes());
        if bench.offer(random(5) as u16).is_err() {
            let disk = std::mem::replace(&mut bench, Bench::new()).disk;
            assert_eq!(disk.lock().unwrap().bytes.len(), SIZE);
        }
    }
}
