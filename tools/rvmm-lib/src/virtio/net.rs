// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A network card (Virtual I/O Device 1.2, 5.1) on a tap interface of the host: whole frames, nothing offloaded.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use virtio_queue::{QueueOwnedT, QueueT};

use super::saved::Saved;
use super::{drain, next, Backend, Broken, Guest, Ring};
use crate::sys;

/// Feature bit: the configuration has a hardware address.
const MAC: u64 = 1 << 5;
/// Entries of each queue.
const ENTRIES: u16 = 256;
/// Queues: for frames to the guest, and from it.
const RECEIVE: usize = 0;
const SEND: usize = 1;
/// Bytes before each frame (`struct virtio_net_hdr_v1`).
const HEADER: usize = 12;
/// The largest frame, with its header.
const MOST: usize = HEADER + (64 << 10);
/// Frames that are received before queues are looked at again.
const BATCH: usize = 64;

/// An address by chance, of those that are given locally.
pub(crate) fn random_address() -> io::Result<[u8; 6]> {
    let mut mac: [u8; 6] = sys::random()?;
    mac[0] = mac[0] & 0xfc | 2;
    Ok(mac)
}

/// The card.
pub struct Net {
    tap: File,
    /// The interface's name.
    name: Option<String>,
    mac: [u8; 6],
    buffer: Vec<u8>,
    /// The guest has given no room for frames.
    starved: bool,
}

impl Net {
    /// A card on the tap interface of that name, which is made if it is not there. Without an address it gets one by
    /// chance, of those that are given locally.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn tap(name: &str, mac: Option<[u8; 6]>) -> io::Result<Self> {
        let mut card = Self::new(sys::open_tap(name)?, mac)?;
        card.name = Some(name.to_owned());
        Ok(card)
    }

    /// A card on a file that gives and takes a frame with each call.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn new(tap: File, mac: Option<[u8; 6]>) -> io::Result<Self> {
        let mac = match mac {
            Some(mac) => mac,
            None => random_address()?,
        };
        Ok(Self {
            tap,
            name: None,
            mac,
            buffer: vec![0; MOST],
            starved: false,
        })
    }

    /// Receives one frame; false when there is none, or no room.
    fn receive(&mut self, ring: &mut Ring, guest: &Guest) -> Result<bool, Broken> {
        let memory = &*guest.memory;
        let Some(chain) = next(ring, guest)? else {
            self.starved = true;
            return Ok(false);
        };
        let length = match self.tap.read(&mut self.buffer[HEADER..]) {
            Ok(length @ 1..) => HEADER + length,
            Err(error)
                if error.kind() != ErrorKind::WouldBlock
                    && error.kind() != ErrorKind::Interrupted =>
            {
                return Err(Broken(format!("tap: {error}")));
            }
            _ => {
                ring.queue.go_to_previous_position();
                return Ok(false);
            }
        };
        self.buffer[..HEADER].fill(0);
        // One buffer.
        self.buffer[10] = 1;
        let head = chain.head_index();
        let mut writer = chain.writer(memory)?;
        // A frame that does not fit is lost.
        let used = if writer.available_bytes() < length {
            0
        } else {
            writer.write_all(&self.buffer[..length])?;
            length
        };
        ring.queue.add_used(memory, head, used as u32)?;
        ring.notify(guest)?;
        Ok(true)
    }
}

impl Backend for Net {
    fn kind(&self) -> (u16, u32) {
        (1, 0x02_00_00)
    }

    fn features(&self) -> u64 {
        MAC
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; 2]
    }

    fn config(&self) -> Vec<u8> {
        self.mac.to_vec()
    }

    fn start(&mut self, _features: u64) {
        self.starved = false;
    }

    fn serve(&mut self, index: usize, rings: &mut [Ring], guest: &Guest) -> Result<(), Broken> {
        match (index, rings.get_mut(index)) {
            (RECEIVE, Some(_)) => self.starved = false,
            (SEND, Some(ring)) => drain(ring, guest, |chain| {
                let mut reader = chain.reader(&*guest.memory)?;
                let length = reader.available_bytes();
                if (HEADER + 1..=MOST).contains(&length) {
                    reader.read_exact(&mut self.buffer[..length])?;
                    // As on a wire: what cannot be sent is lost.
                    let _ = self.tap.write(&self.buffer[HEADER..length]);
                }
                Ok(0)
            })?,
            _ => {}
        }
        Ok(())
    }

    fn saved(&self, _: &mut Vec<File>) -> io::Result<Saved> {
        let tap = self.name.clone().ok_or_else(super::cannot_be_saved)?;
        Ok(Saved::Net { tap, mac: self.mac })
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.tap.as_raw_fd())
    }

    fn listens(&self) -> bool {
        !self.starved
    }

    fn ready(&mut self, rings: &mut [Ring], guest: &Guest) -> Result<(), Broken> {
        let Some(ring) = rings.get_mut(RECEIVE).filter(|ring| ring.enabled()) else {
            self.starved = true;
            return Ok(());
        };
        for _ in 0..BATCH {
            if guest.leaving() || !self.receive(ring, guest)? {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
