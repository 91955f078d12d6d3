// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A source of entropy (Virtual I/O Device 1.2, 5.4): the host's.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};

use super::saved::Saved;
use super::{drain, Backend, Broken, Guest, Ring};

/// Entries of the queue.
const ENTRIES: u16 = 64;
/// The most bytes for one request; a driver gets fewer than it asks for, and asks again.
const MOST: usize = 4096;

/// The device.
pub struct Rng(File);

impl Rng {
    /// The device.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn new() -> io::Result<Self> {
        Ok(Self(File::open("/dev/urandom")?))
    }
}

impl Backend for Rng {
    fn kind(&self) -> (u16, u32) {
        (4, 0xff_00_00)
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn saved(&self, _: &mut Vec<File>) -> io::Result<Saved> {
        Ok(Saved::Rng)
    }

    fn serve(&mut self, index: usize, rings: &mut [Ring], guest: &Guest) -> Result<(), Broken> {
        let Some(ring) = rings.get_mut(index) else {
            return Ok(());
        };
        drain(ring, guest, |chain| {
            let mut writer = chain.writer(&*guest.memory)?;
            let mut bytes = [0; MOST];
            let wanted = &mut bytes[..writer.available_bytes().min(MOST)];
            self.0.read_exact(wanted)?;
            writer.write_all(wanted)?;
            Ok(wanted.len() as u32)
        })
    }
}
