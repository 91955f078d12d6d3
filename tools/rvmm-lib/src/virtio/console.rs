// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A console (Virtual I/O Device 1.2, 5.3): the guest's hvc0, on a terminal of the host's that anybody can open whom
//! its permissions let.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use super::saved::Saved;
use super::{come, drain, Backend, Broken, Guest, Inflow, Ring};
use crate::sys;

/// Entries of each queue.
const ENTRIES: u16 = 64;
/// Queues: to the guest, and from it.
const RECEIVE: usize = 0;
const SEND: usize = 1;
/// Bytes that go through at once.
const CHUNK: usize = 4096;

/// The console.
pub struct Console {
    terminal: File,
    // Kept open: a terminal that nobody has open is at its end all the time.
    _other: File,
    path: PathBuf,
    /// Where the link leads.
    name: PathBuf,
    inflow: Inflow,
}

impl Console {
    /// A new terminal, with a symbolic link to it at `path`, which goes with the device; one to another terminal gives
    /// way.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn new(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let (terminal, other, name) = sys::open_terminal()?;
        // The number of a terminal that is gone is given again, so that a link which was left tells nothing.
        if std::fs::read_link(&path).is_ok_and(|left| left.parent() == name.parent()) {
            std::fs::remove_file(&path)?;
        }
        std::os::unix::fs::symlink(&name, &path)?;
        Ok(Self {
            terminal,
            _other: other,
            path,
            name,
            inflow: Inflow::default(),
        })
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if std::fs::read_link(&self.path).is_ok_and(|to| to == self.name) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Backend for Console {
    fn kind(&self) -> (u16, u32) {
        (3, 0x07_80_00)
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; 2]
    }

    /// `struct virtio_console_config` (5.3.4): columns, rows, ports, none of which is said.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn start(&mut self, _features: u64) {
        self.inflow.look_again();
    }

    fn serve(&mut self, index: usize, rings: &mut [Ring], guest: &Guest) -> Result<(), Broken> {
        match (index, rings.get_mut(index)) {
            (RECEIVE, Some(_)) => self.inflow.look_again(),
            (SEND, Some(ring)) => drain(ring, guest, |chain| {
                let mut reader = chain.reader(&*guest.memory)?;
                let mut bytes = [0; CHUNK];
                loop {
                    let count = reader.read(&mut bytes)?;
                    // What nobody reads is lost when the terminal is full.
                    if count == 0 || self.terminal.write_all(&bytes[..count]).is_err() {
                        return Ok(0);
                    }
                }
            })?,
            _ => {}
        }
        Ok(())
    }

    fn saved(&self, _: &mut Vec<File>) -> io::Result<Saved> {
        Ok(Saved::Console {
            path: self.path.clone(),
        })
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.terminal.as_raw_fd())
    }

    fn listens(&self) -> bool {
        self.inflow.listens()
    }

    fn ready(&mut self, rings: &mut [Ring], guest: &Guest) -> Result<(), Broken> {
        let ring = rings.get_mut(RECEIVE);
        self.inflow.pass_on(ring, guest, usize::MAX, |writer| {
            let mut bytes = [0; CHUNK];
            let room = writer.available_bytes().min(CHUNK);
            let read = come("terminal", self.terminal.read(&mut bytes[..room]))?;
            let count = read.filter(|count| *count > 0 || room == 0);
            writer.write_all(&bytes[..count.unwrap_or(0)])?;
            Ok(count)
        })
    }
}
