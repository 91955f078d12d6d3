// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A network card (Virtual I/O Device 1.2, 5.1) on a tap interface of the host, or on a network in user mode: whole
//! frames, nothing offloaded.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{MutexGuard, PoisonError};

use super::saved::Saved;
use super::user::{self, Network, UserNetwork};
use super::{come, drain, Backend, Broken, Guest, Inflow, Ring};
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
const MOST: usize = HEADER + user::MOST;
/// Frames that are received before queues are looked at again.
const BATCH: usize = 64;

/// An address by chance, of those that are given locally.
pub(crate) fn random_address() -> io::Result<[u8; 6]> {
    let mut mac: [u8; 6] = sys::random()?;
    mac[0] = mac[0] & 0xfc | 2;
    Ok(mac)
}

/// What a card is on.
enum Link {
    /// A file that gives and takes a frame with each call, and the name of its tap interface.
    File(File, Option<String>),
    /// A network in user mode.
    User(Network),
}

fn lock(network: &Network) -> MutexGuard<'_, UserNetwork> {
    network.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file, _) => file.read(frame),
            Self::User(network) => lock(network).receive(frame),
        }
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file, _) => file.write(frame).map(drop),
            Self::User(network) => lock(network).send(frame),
        }
    }
}

/// The card.
pub struct Net {
    link: Link,
    mac: [u8; 6],
    buffer: Vec<u8>,
    inflow: Inflow,
}

impl Net {
    /// A card on the tap interface of that name, which is made if it is not there. Without an address it gets one by
    /// chance, of those that are given locally.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn tap(name: &str, mac: Option<[u8; 6]>) -> io::Result<Self> {
        Self::on(Link::File(sys::open_tap(name)?, Some(name.to_owned())), mac)
    }

    /// A card on a network in user mode, with an address as with [`Self::tap`].
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn user(network: Network, mac: Option<[u8; 6]>) -> io::Result<Self> {
        Self::on(Link::User(network), mac)
    }

    /// A card on a file that gives and takes a frame with each call.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn new(file: File, mac: Option<[u8; 6]>) -> io::Result<Self> {
        Self::on(Link::File(file, None), mac)
    }

    fn on(link: Link, mac: Option<[u8; 6]>) -> io::Result<Self> {
        let mac = match mac {
            Some(mac) => mac,
            None => random_address()?,
        };
        Ok(Self {
            link,
            mac,
            buffer: vec![0; MOST],
            inflow: Inflow::default(),
        })
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
        self.inflow.look_again();
    }

    fn serve(&mut self, index: usize, rings: &mut [Ring], guest: &Guest) -> Result<(), Broken> {
        match (index, rings.get_mut(index)) {
            (RECEIVE, Some(_)) => self.inflow.look_again(),
            (SEND, Some(ring)) => drain(ring, guest, |chain| {
                let mut reader = chain.reader(&*guest.memory)?;
                let length = reader.available_bytes();
                if (HEADER + 1..=MOST).contains(&length) {
                    reader.read_exact(&mut self.buffer[..length])?;
                    // As on a wire: what cannot be sent is lost.
                    let _ = self.link.send(&self.buffer[HEADER..length]);
                }
                Ok(0)
            })?,
            _ => {}
        }
        Ok(())
    }

    fn saved(&self, _: &mut Vec<File>) -> io::Result<Saved> {
        let mac = self.mac;
        match &self.link {
            Link::File(_, Some(tap)) => Ok(Saved::Net {
                tap: tap.clone(),
                mac,
            }),
            Link::File(_, None) => Err(super::cannot_be_saved()),
            Link::User(network) => Ok(Saved::UserNet {
                forwards: lock(network).forwards().to_vec(),
                mac,
            }),
        }
    }

    fn source(&self) -> Option<RawFd> {
        Some(match &self.link {
            Link::File(file, _) => file.as_raw_fd(),
            Link::User(network) => lock(network).source(),
        })
    }

    fn listens(&self) -> bool {
        self.inflow.listens()
    }

    fn ready(&mut self, rings: &mut [Ring], guest: &Guest) -> Result<(), Broken> {
        let ring = rings.get_mut(RECEIVE);
        self.inflow.pass_on(ring, guest, BATCH, |writer| {
            let received = self.link.receive(&mut self.buffer[HEADER..]);
            let Some(length) = come("network", received)?.filter(|length| *length > 0) else {
                return Ok(None);
            };
            self.buffer[..HEADER].fill(0);
            // One buffer.
            self.buffer[10] = 1;
            // A frame that does not fit is lost.
            if writer.available_bytes() < HEADER + length {
                return Ok(Some(0));
            }
            writer.write_all(&self.buffer[..HEADER + length])?;
            Ok(Some(HEADER + length))
        })
    }
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
