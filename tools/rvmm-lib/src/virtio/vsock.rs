// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sockets between guest and host (Virtual I/O Device 1.2, 5.10): the host's kernel has them, and serves their queues.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::saved::Saved;
use super::vhost::Vhost;
use super::{next, Backend, Broken, Guest, Ring};

/// Feature bit: sockets for packets whose order stays.
const SEQPACKET: u64 = 1 << 1;
/// Entries of each queue.
const ENTRIES: u16 = 128;
/// Queues that the kernel serves: to the guest, and from it. The third is for events.
const SERVED: usize = 2;
/// The event that connections are gone, and the CID another one (`VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`).
const RESET: u32 = 0;
/// Whose the kernel's end is.
pub const NODE: &str = "/dev/vhost-vsock";

/// The device.
pub struct Vsock {
    vhost: Vhost,
    cid: u32,
    features: u64,
    /// What the driver has accepted.
    accepted: u64,
    /// The driver has to be told that connections are gone.
    anew: bool,
}

impl Vsock {
    /// Sockets of a guest with this CID, from 3 on, which is nobody else's.
    ///
    /// # Errors
    ///
    /// Those of the system; a sentence where the host has no such sockets, or the CID is another machine's.
    pub fn new(cid: u32) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(NODE);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(format!(
                "the host has no {NODE}: its module has to be loaded (modprobe vhost_vsock)"
            )),
            kind => io::Error::new(kind, format!("{NODE}: {error}")),
        })?;
        let vhost = Vhost::vsock(file, cid).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => io::Error::other(format!("CID {cid} is another machine's")),
            _ => error,
        })?;
        let features = vhost.features()? & SEQPACKET;
        Ok(Self {
            vhost,
            cid,
            features,
            accepted: 0,
            anew: false,
        })
    }

    /// Those of a machine that goes on, whose connections are gone.
    pub(crate) fn anew(cid: u32) -> io::Result<Self> {
        let mut made = Self::new(cid)?;
        made.anew = true;
        Ok(made)
    }
}

impl Backend for Vsock {
    fn kind(&self) -> (u16, u32) {
        (19, 0x07_80_00)
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; SERVED + 1]
    }

    /// `struct virtio_vsock_config` (5.10.4).
    fn config(&self) -> Vec<u8> {
        u64::from(self.cid).to_le_bytes().to_vec()
    }

    fn start(&mut self, features: u64) {
        self.accepted = features;
    }

    fn served_outside(&self) -> usize {
        SERVED
    }

    fn hand_over(
        &mut self,
        rings: &[Ring],
        kicks: &[EventFd],
        guest: &Guest,
    ) -> Result<(), Broken> {
        self.vhost.start(self.accepted, rings, kicks, guest)
    }

    fn take_back(&mut self, rings: &mut [Ring], memory: &GuestMemoryMmap) -> Result<(), Broken> {
        self.vhost.stop(rings, memory)
    }

    fn serve(&mut self, index: usize, rings: &mut [Ring], guest: &Guest) -> Result<(), Broken> {
        let memory = &*guest.memory;
        let Some(ring) = rings.get_mut(index).filter(|_| self.anew) else {
            return Ok(());
        };
        if let Some(chain) = next(ring, guest)? {
            let head = chain.head_index();
            let event = RESET.to_le_bytes();
            chain.writer(memory)?.write_all(&event)?;
            ring.queue.add_used(memory, head, event.len() as u32)?;
            ring.notify(guest)?;
            self.anew = false;
        }
        Ok(())
    }

    fn saved(&self, _: &mut Vec<File>) -> io::Result<Saved> {
        Ok(Saved::Vsock { cid: self.cid })
    }
}
