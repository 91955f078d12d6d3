// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A disk (Virtual I/O Device 1.2, 5.2): reads, writes, flushes, discards, zeroes, by several queues and one thread.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_queue::{DescriptorChain, Reader, Writer};
use vm_memory::GuestMemoryMmap;

use super::saved::{Content, Saved};
use super::{drain, Backend, Broken, Guest, Ring};
use crate::disk::Storage;

/// Feature bits (5.2.3).
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const MQ: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// Request types (5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const DO_FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DO_DISCARD: u32 = 11;
const DO_ZEROES: u32 = 13;

/// Request status.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Unit of all numbers of sectors.
const SECTOR: u64 = 512;
/// Entries of a queue.
const ENTRIES: u16 = 256;
/// Bytes that go through the buffer at once.
const CHUNK: usize = 128 << 10;
/// Segments of one discard.
const MOST_SEGMENTS: usize = 16;
/// Sectors of one segment of a discard: 1 GiB.
const MOST_DISCARDED: u32 = 1 << 21;

/// A disk.
pub struct Block {
    storage: Arc<Mutex<dyn Storage>>,
    sectors: u64,
    read_only: bool,
    queues: u16,
    id: [u8; 20],
    buffer: Vec<u8>,
}

impl Block {
    /// A disk with `storage` behind it, with so many queues, and with a name that its driver can ask for.
    pub fn new(storage: Arc<Mutex<dyn Storage>>, queues: u16, name: &str) -> Self {
        let lock = storage.lock().unwrap_or_else(PoisonError::into_inner);
        let (sectors, read_only) = (lock.size() / SECTOR, lock.read_only());
        drop(lock);
        let mut id = [0; 20];
        for (to, from) in id.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Self {
            storage,
            sectors,
            read_only,
            queues: queues.max(1),
            id,
            buffer: vec![0; CHUNK],
        }
    }

    /// Bytes `sector` to `sector + length / 512`, if the disk has them.
    fn range(&self, sector: u64, length: u64) -> Option<u64> {
        let end = sector.checked_add(length.div_ceil(SECTOR))?;
        (length % SECTOR == 0 && end <= self.sectors).then_some(sector * SECTOR)
    }

    /// Executes a request; bytes that were written to the guest, the status among them.
    fn execute(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        guest: &Guest,
    ) -> Result<u32, Broken> {
        let mut reader = chain.clone().reader(&*guest.memory)?;
        let mut writer = chain.writer(&*guest.memory)?;
        // The last byte that the device writes is the status.
        let room = writer.available_bytes();
        let Some(data) = room.checked_sub(1) else {
            return Err(Broken("a request without a status".into()));
        };
        let mut status_byte = writer.split_at(data).map_err(|e| Broken(e.to_string()))?;
        let mut header = [0; 16];
        let status = if reader.read_exact(&mut header).is_err() {
            return Err(Broken("a request without a header".into()));
        } else {
            let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
            let sector = header[8..]
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            self.carry_out(kind, sector, &mut reader, &mut writer, guest)
        };
        let status = status.unwrap_or_else(|error| {
            tracing::debug!(%error, "disk");
            IO_ERROR
        });
        status_byte.write_all(&[status])?;
        Ok((writer.bytes_written() + 1) as u32)
    }

    fn carry_out(
        &mut self,
        kind: u32,
        sector: u64,
        reader: &mut Reader,
        writer: &mut Writer,
        guest: &Guest,
    ) -> io::Result<u8> {
        let storage = self.storage.clone();
        let mut storage = storage.lock().unwrap_or_else(PoisonError::into_inner);
        if self.read_only && matches!(kind, OUT | DO_DISCARD | DO_ZEROES) {
            return Ok(IO_ERROR);
        }
        match kind {
            IN => {
                let mut left = writer.available_bytes();
                let Some(mut at) = self.range(sector, left as u64) else {
                    return Ok(IO_ERROR);
                };
                while left > 0 && !guest.stopping() {
                    let part = &mut self.buffer[..left.min(CHUNK)];
                    storage.read(at, part)?;
                    writer.write_all(part)?;
                    at += part.len() as u64;
                    left -= part.len();
                }
            }
            OUT => {
                let mut left = reader.available_bytes();
                let Some(mut at) = self.range(sector, left as u64) else {
                    return Ok(IO_ERROR);
                };
                while left > 0 && !guest.stopping() {
                    let part = &mut self.buffer[..left.min(CHUNK)];
                    reader.read_exact(part)?;
                    storage.write(at, part)?;
                    at += part.len() as u64;
                    left -= part.len();
                }
            }
            DO_FLUSH => storage.flush()?,
            GET_ID => {
                let room = writer.available_bytes().min(self.id.len());
                writer.write_all(&self.id[..room])?;
            }
            DO_DISCARD | DO_ZEROES => return self.segments(kind, reader, &mut *storage),
            _ => return Ok(UNSUPPORTED),
        }
        Ok(OK)
    }

    /// Segments to discard, or to fill with zeroes: sector, number of sectors, flags (bit 0: unmap).
    fn segments(
        &self,
        kind: u32,
        reader: &mut Reader,
        storage: &mut dyn Storage,
    ) -> io::Result<u8> {
        let length = reader.available_bytes();
        if length % 16 != 0 || length == 0 || length / 16 > MOST_SEGMENTS {
            return Ok(IO_ERROR);
        }
        let mut segments = Vec::new();
        for _ in 0..length / 16 {
            let mut segment = [0; 16];
            reader.read_exact(&mut segment)?;
            let [_, _, _, _, _, _, _, _, a, b, c, d, flags, f, g, h] = segment;
            let sector = segment[..8]
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            let count = u32::from_le_bytes([a, b, c, d]);
            // Unmap has no meaning for discards, and there are no other flags (5.2.6.2).
            if flags & !1 != 0 || (f, g, h) != (0, 0, 0) || kind == DO_DISCARD && flags != 0 {
                return Ok(UNSUPPORTED);
            }
            let bytes = u64::from(count) * SECTOR;
            match self.range(sector, bytes) {
                Some(at) if count <= MOST_DISCARDED => segments.push((at, bytes)),
                _ => return Ok(IO_ERROR),
            }
        }
        for (at, bytes) in segments {
            storage.zero(at, bytes)?;
        }
        Ok(OK)
    }
}

impl Backend for Block {
    fn kind(&self) -> (u16, u32) {
        (2, 0x01_80_00)
    }

    fn features(&self) -> u64 {
        let writes = if self.read_only {
            READ_ONLY
        } else {
            DISCARD | WRITE_ZEROES
        };
        SEG_MAX | BLK_SIZE | FLUSH | MQ | writes
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; self.queues.into()]
    }

    /// `struct virtio_blk_config` (5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut bytes = vec![0; 60];
        let mut put = |at: usize, value: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(at).zip(value) {
                *to = *from;
            }
        };
        put(0, &self.sectors.to_le_bytes());
        put(12, &u32::from(ENTRIES - 2).to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        let most = MOST_DISCARDED.to_le_bytes();
        let segments = (MOST_SEGMENTS as u32).to_le_bytes();
        // Discards: sectors, segments, alignment in sectors; then the same of zeroes, which may unmap.
        put(36, &most);
        put(40, &segments);
        put(44, &8u32.to_le_bytes());
        put(48, &most);
        put(52, &segments);
        put(56, &[1]);
        bytes
    }

    fn saved(&self, parts: &mut Vec<File>) -> io::Result<Saved> {
        let length = self.id.iter().position(|byte| *byte == 0);
        let name = &self.id[..length.unwrap_or(self.id.len())];
        Ok(Saved::Disk {
            queues: self.queues,
            name: String::from_utf8_lossy(name).into_owned(),
            content: Content::of(&*self.storage, parts)?,
        })
    }

    fn serve(&mut self, index: usize, rings: &mut [Ring], guest: &Guest) -> Result<(), Broken> {
        let Some(ring) = rings.get_mut(index) else {
            return Ok(());
        };
        drain(ring, guest, |chain| self.execute(chain, guest))
    }
}

/// The disks come first, in order; each has a queue for every CPU, up to a few.
pub(crate) fn with_disks(
    devices: Vec<Box<dyn Backend>>,
    disks: Vec<Arc<Mutex<dyn Storage>>>,
    cpus: u8,
) -> Vec<Box<dyn Backend>> {
    const MOST_QUEUES: u8 = 4;
    let queues = cpus.min(MOST_QUEUES).into();
    let disk = |(n, storage)| -> Box<dyn Backend> {
        Box::new(Block::new(storage, queues, &format!("rvmm-disk{n}")))
    };
    (0..).zip(disks).map(disk).chain(devices).collect()
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
