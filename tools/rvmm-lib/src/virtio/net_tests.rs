// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of net.rs: frames both ways, between guest memory and a pair of sockets in place of a tap interface.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::virtio::transport::Transport;

/// Where the rings of a queue are: table, available, used.
fn places(queue: usize) -> (u64, u64, u64) {
    let base = 0x1000 + 0x3000 * queue as u64;
    (base, base + 0x1000, base + 0x2000)
}

struct Bench {
    net: Net,
    host: UnixDatagram,
    rings: Vec<Ring>,
    guest: Guest,
    next: [u16; 2],
}

impl Bench {
    fn new() -> Self {
        let (tap, host) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        host.set_nonblocking(true).unwrap();
        let ring = |n: usize| {
            let (table, available, used) = places(n);
            let mut queue = Queue::new(16).unwrap();
            queue.set_desc_table_address(Some(table as u32), None);
            queue.set_avail_ring_address(Some(available as u32), None);
            queue.set_used_ring_address(Some(used as u32), None);
            queue.set_ready(true);
            Ring {
                queue,
                vector: Transport::new(0, &[16], 1).config_vector.clone(),
                events: Arc::new(vec![EventFd::new(0).unwrap()]),
            }
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        Self {
            net: Net::new(File::from(OwnedFd::from(tap)), None).unwrap(),
            host,
            rings: vec![ring(0), ring(1)],
            guest: Guest {
                memory: Arc::new(memory),
                stop: Arc::default(),
                leave: Arc::default(),
                forked: None,
            },
            next: [0; 2],
        }
    }

    /// Offers a buffer at 0x8000 in a queue.
    fn offer(&mut self, queue: usize, length: u32, flags: u16) {
        let (table, available, _) = places(queue);
        let slot = u64::from(self.next[queue] % 16);
        let put = |at, bytes: &[u8]| {
            self.guest
                .memory
                .write_slice(bytes, GuestAddress(at))
                .unwrap()
        };
        put(table + 16 * slot, &0x8000u64.to_le_bytes());
        put(table + 16 * slot + 8, &length.to_le_bytes());
        put(table + 16 * slot + 12, &flags.to_le_bytes());
        put(available + 4 + 2 * slot, &(slot as u16).to_le_bytes());
        self.next[queue] += 1;
        put(available + 2, &self.next[queue].to_le_bytes());
        self.net.serve(queue, &mut self.rings, &self.guest).unwrap();
    }

    fn used(&self, queue: usize) -> u16 {
        self.guest
            .memory
            .read_obj(GuestAddress(places(queue).2 + 2))
            .unwrap()
    }

    fn ready(&mut self) {
        self.net.ready(&mut self.rings, &self.guest).unwrap();
    }
}

#[test]
fn frames_go_both_ways() {
    let mut bench = Bench::new();
    let mut frame = [0; 64];
    bench
        .guest
        .memory
        .write_slice(&[7; 60], GuestAddress(0x8000 + 12))
        .unwrap();
    bench.offer(SEND, 72, 0);
    assert_eq!(
        (bench.host.recv(&mut frame).unwrap(), frame[..60] == [7; 60]),
        (60, true)
    );
    bench.offer(RECEIVE, 2048, 2);
    bench.ready();
    assert_eq!(bench.used(RECEIVE), 0, "there is no frame");
    bench.host.send(&[9; 100]).unwrap();
    bench.ready();
    let mut got = [0; 112];
    bench
        .guest
        .memory
        .read_slice(&mut got, GuestAddress(0x8000))
        .unwrap();
    assert_eq!(
        (bench.used(RECEIVE), got[10], &got[12..]),
        (1, 1, &[9; 100][..])
    );
}

#[test]
fn without_room_the_card_does_not_listen() {
    let mut bench = Bench::new();
    bench.host.send(&[9; 100]).unwrap();
    assert!(bench.net.listens());
    bench.ready();
    assert!(!bench.net.listens());
    bench.offer(RECEIVE, 50, 2);
    assert!(bench.net.listens());
    bench.ready();
    assert_eq!(bench.used(RECEIVE), 1, "it did not fit");
}

#[test]
fn frames_that_are_none_are_lost() {
    let mut bench = Bench::new();
    for length in [0, 1, 12, 70_000] {
        bench.offer(SEND, length, 0);
    }
    assert_eq!(bench.used(SEND), 4);
    assert!(bench.host.recv(&mut [0; 8]).is_err());
}
