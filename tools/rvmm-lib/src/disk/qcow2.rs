// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Disks in QEMU's format qcow2 (docs/interop/qcow2.rst of QEMU): any image is read; what is written is an overlay of
//! our own making.
//!
//! Read are versions 2 and 3, with zlib-compressed clusters. Refused are encryption, external data files, extended L2
//! entries, zstd, and backing files that the caller does not give: an image must not name files of the host.
//!
//! An overlay only grows: clusters are taken at the end of the file, each with one user. While it is open its dirty
//! bit is set and it has no reference counts; when it is closed they are written behind everything else, and are
//! taken away again when it is opened the next time.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use vmm_sys_util::fallocate::{fallocate, FallocateMode};

use super::{Origin, Storage};

/// First four bytes of every image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of a header of version 3.
const HEADER: usize = 104;
/// Bits of the incompatible features.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const COMPRESSION: u64 = 1 << 3;
/// Bits of a table's entry that are an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit of an entry: the cluster has one user.
const COPIED: u64 = 1 << 63;
/// Bit of an L2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bit of an L2 entry: the cluster reads as zeroes.
const ZERO: u64 = 1;
/// Header extension: the backing file's format.
const EXTENSION_FORMAT: u32 = 0xe279_2aca;
/// Cluster size of overlays, as a power of two.
const CLUSTER_BITS: u32 = 16;
/// Bits of a reference count, as a power of two.
const REFCOUNT_ORDER: u32 = 4;
/// Tables of second level that are kept in memory: of 64 KiB each, they describe 256 GiB.
const MOST_TABLES: usize = 512;
/// The most bytes of a table of first level.
const MOST_L1: u64 = 32 << 20;
/// The largest disk, so that offsets never overflow.
const MOST_SIZE: u64 = 1 << 50;

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    (bytes.get(at..at + 4)).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

/// What an image is, by its header.
#[derive(Debug)]
struct Header {
    version: u32,
    backing: Option<String>,
    cluster_bits: u32,
    size: u64,
    l1_entries: u32,
    l1: u64,
    refcounts: u64,
    snapshots: u32,
    incompatible: u64,
}

impl Header {
    fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; HEADER + 8];
        let mut got = 0;
        // A header of version 2 may be all there is.
        while let count @ 1.. = file.read_at(&mut bytes[got..], got as u64)? {
            got += count;
        }
        if got < 72 || bytes[..4] != MAGIC {
            return Err(bad("not a qcow2 image"));
        }
        let version = be32(&bytes, 4);
        if !matches!(version, 2 | 3) {
            return Err(bad(format!("version {version} of qcow2 is not known")));
        }
        let v3 = version == 3;
        let (name, length) = (be64(&bytes, 8), be32(&bytes, 16));
        let backing = if name == 0 || length == 0 {
            None
        } else if length > 1023 {
            return Err(bad("the name of the backing file is too long"));
        } else {
            let mut text = vec![0; length as usize];
            file.read_exact_at(&mut text, name)?;
            Some(String::from_utf8_lossy(&text).into_owned())
        };
        let header = Self {
            version,
            backing,
            cluster_bits: be32(&bytes, 20),
            size: be64(&bytes, 24),
            l1_entries: be32(&bytes, 36),
            l1: be64(&bytes, 40),
            refcounts: be64(&bytes, 48),
            snapshots: be32(&bytes, 60),
            incompatible: if v3 { be64(&bytes, 72) } else { 0 },
        };
        header.check(
            be32(&bytes, 32),
            v3 && bytes[HEADER] == 1 && be32(&bytes, 100) > 104,
        )?;
        Ok(header)
    }

    fn check(&self, encryption: u32, zstd: bool) -> io::Result<()> {
        if encryption != 0 {
            return Err(bad("the image is encrypted"));
        }
        let unknown = self.incompatible & !(DIRTY | CORRUPT | COMPRESSION);
        if unknown & 4 != 0 {
            return Err(bad(
                "its data is in another file (convert it with qemu-img)",
            ));
        }
        if unknown != 0 {
            return Err(bad(format!(
                "it has features that are not known here, {unknown:#x} (convert it with qemu-img)"
            )));
        }
        if self.incompatible & COMPRESSION != 0 && zstd {
            return Err(bad("it is compressed with zstd (convert it with qemu-img)"));
        }
        if self.incompatible & CORRUPT != 0 {
            return Err(bad("it is marked as corrupt (see qemu-img check)"));
        }
        if !(9..=21).contains(&self.cluster_bits) || self.size > MOST_SIZE {
            return Err(bad("clusters or disk of an impossible size"));
        }
        let covers = u64::from(self.l1_entries) << (2 * self.cluster_bits - 3);
        if covers < self.size || u64::from(self.l1_entries) * 8 > MOST_L1 {
            return Err(bad("a table of the wrong size"));
        }
        Ok(())
    }
}

/// An image.
pub struct Qcow2 {
    file: File,
    cluster_bits: u32,
    size: u64,
    l1_at: u64,
    l1: Vec<u64>,
    tables: HashMap<u64, Vec<u64>>,
    /// The compressed cluster that was read last: its entry, and what it unpacks to.
    unpacked: (u64, Vec<u8>),
    backing: Option<Box<dyn Storage>>,
    /// The image that an overlay is of.
    name: Option<PathBuf>,
    /// Where an overlay grows; none for an image that is only read.
    end: Option<u64>,
}

/// What is at a place of the disk.
enum Place {
    /// Nothing: what the backing file has.
    Hole,
    Zero,
    At(u64),
    /// The entry.
    Compressed(u64),
}

impl Qcow2 {
    /// Opens an image to read it.
    ///
    /// # Errors
    ///
    /// Those of the system; [`io::ErrorKind::InvalidData`] with a sentence where the image is not one of those above.
    pub fn open(file: File) -> io::Result<Self> {
        let header = Header::read(&file)?;
        if let Some(name) = header.backing {
            return Err(bad(format!(
                "it is an overlay of {name}; give that one as image, and this one with --keep"
            )));
        }
        Self::from_header(file, &header, None, None)
    }

    fn from_header(
        file: File,
        header: &Header,
        backing: Option<Box<dyn Storage>>,
        end: Option<u64>,
    ) -> io::Result<Self> {
        let mut bytes = vec![0; header.l1_entries as usize * 8];
        file.read_exact_at(&mut bytes, header.l1)?;
        Ok(Self {
            file,
            cluster_bits: header.cluster_bits,
            size: header.size,
            l1_at: header.l1,
            l1: bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect(),
            tables: HashMap::new(),
            unpacked: (0, Vec::new()),
            backing,
            name: header.backing.as_ref().map(PathBuf::from),
            end,
        })
    }

    /// Makes an overlay in an empty file, of `backing`, which has that name and format ("raw" or "qcow2").
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn create(
        file: File,
        backing: Box<dyn Storage>,
        name: &str,
        format: &str,
    ) -> io::Result<Self> {
        let size = backing.size();
        let l1_entries = size.div_ceil(1 << (2 * CLUSTER_BITS - 3));
        if size > MOST_SIZE || l1_entries * 8 > MOST_L1 || name.len() > 1023 {
            return Err(bad("too large for an overlay"));
        }
        let cluster = 1u64 << CLUSTER_BITS;
        let mut bytes = vec![0; cluster as usize];
        let mut extensions = Vec::new();
        extensions.extend_from_slice(&EXTENSION_FORMAT.to_be_bytes());
        extensions.extend_from_slice(&(format.len() as u32).to_be_bytes());
        extensions.extend_from_slice(format.as_bytes());
        extensions.resize(extensions.len().next_multiple_of(8) + 8, 0);
        let name_at = HEADER + extensions.len();
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC);
        put(4, &3u32.to_be_bytes());
        put(8, &(name_at as u64).to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(20, &CLUSTER_BITS.to_be_bytes());
        put(24, &size.to_be_bytes());
        put(36, &(l1_entries as u32).to_be_bytes());
        put(40, &cluster.to_be_bytes());
        put(72, &DIRTY.to_be_bytes());
        put(96, &REFCOUNT_ORDER.to_be_bytes());
        put(100, &(HEADER as u32).to_be_bytes());
        put(HEADER, &extensions);
        put(name_at, name.as_bytes());
        let end = cluster + (l1_entries * 8).next_multiple_of(cluster).max(cluster);
        file.set_len(0)?;
        file.set_len(end)?;
        file.write_all_at(&bytes, 0)?;
        let header = Header::read(&file)?;
        Self::from_header(file, &header, Some(backing), Some(end))
    }

    /// Opens an overlay that [`Self::create`] has made of the same `backing`.
    ///
    /// # Errors
    ///
    /// Those of the system; [`io::ErrorKind::InvalidData`] where it is of another image, or was changed by another
    /// program.
    pub fn reopen(file: File, backing: Box<dyn Storage>, name: &str) -> io::Result<Self> {
        let header = Header::read(&file)?;
        if header.backing.as_deref() != Some(name) || header.size != backing.size() {
            let of = header.backing.as_deref().unwrap_or("nothing");
            return Err(bad(format!("it is no overlay of {name}, but of {of}")));
        }
        let cluster = 1u64 << CLUSTER_BITS;
        let length = file.metadata()?.len();
        let clean = header.incompatible & DIRTY == 0;
        let tail = counts_length(header.refcounts / cluster);
        let ours = header.version == 3
            && header.cluster_bits == CLUSTER_BITS
            && header.snapshots == 0
            && (!clean || header.refcounts.checked_add(tail) == Some(length));
        if !ours {
            return Err(bad("it was made or changed by another program"));
        }
        let end = if clean {
            header.refcounts
        } else {
            length.next_multiple_of(cluster)
        };
        file.write_all_at(&DIRTY.to_be_bytes(), 72)?;
        file.write_all_at(&[0; 12], 48)?;
        file.set_len(end)?;
        Self::from_header(file, &header, Some(backing), Some(end))
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Index into the first table, and into the second one.
    fn indices(&self, at: u64) -> (usize, usize) {
        let entries = self.cluster_bits - 3;
        let cluster = at >> self.cluster_bits;
        (
            (cluster >> entries) as usize,
            (cluster & ((1 << entries) - 1)) as usize,
        )
    }

    /// The second table at an offset.
    fn table(&mut self, at: u64) -> io::Result<&mut Vec<u64>> {
        if self.tables.len() >= MOST_TABLES && !self.tables.contains_key(&at) {
            self.tables.clear();
        }
        match self.tables.entry(at) {
            std::collections::hash_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::hash_map::Entry::Vacant(new) => {
                let mut bytes = vec![0; 1 << self.cluster_bits];
                self.file.read_exact_at(&mut bytes, at)?;
                Ok(new.insert(bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect()))
            }
        }
    }

    /// The entry of the second table for a place of the disk; 0 where there is no table.
    fn entry(&mut self, at: u64) -> io::Result<u64> {
        let (first, second) = self.indices(at);
        match self.l1.get(first).map_or(0, |entry| entry & OFFSET) {
            0 => Ok(0),
            table => Ok(self.table(table)?.get(second).copied().unwrap_or(0)),
        }
    }

    fn place(&mut self, at: u64) -> io::Result<Place> {
        let entry = self.entry(at)?;
        Ok(match entry & OFFSET {
            _ if entry & COMPRESSED != 0 => Place::Compressed(entry),
            _ if entry & ZERO != 0 => Place::Zero,
            0 => Place::Hole,
            offset => Place::At(offset),
        })
    }

    /// Unpacks a compressed cluster: raw deflate, in so many sectors of 512 bytes.
    fn unpack(&mut self, entry: u64) -> io::Result<&[u8]> {
        if self.unpacked.0 != entry {
            let split = 62 - (self.cluster_bits - 8);
            let offset = entry & ((1 << split) - 1);
            let sectors = (entry & !(COPIED | COMPRESSED)) >> split;
            let length = (sectors + 1) * 512 - offset % 512;
            let mut packed = vec![0; length as usize];
            let mut got = 0;
            // The last sector may be beyond the end of the file.
            while let count @ 1.. = self.file.read_at(&mut packed[got..], offset + got as u64)? {
                got += count;
            }
            packed.truncate(got);
            let mut bytes = vec![0; 1 << self.cluster_bits];
            let flags =
                miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
            let mut state = miniz_oxide::inflate::core::DecompressorOxide::new();
            let (_, _, written) =
                miniz_oxide::inflate::core::decompress(&mut state, &packed, &mut bytes, 0, flags);
            if written != bytes.len() {
                return Err(bad("a compressed cluster is damaged"));
            }
            self.unpacked = (entry, bytes);
        }
        Ok(&self.unpacked.1)
    }

    /// Reads what is in one cluster.
    fn read_part(&mut self, at: u64, data: &mut [u8]) -> io::Result<()> {
        let within = at & (self.cluster() - 1);
        match self.place(at)? {
            Place::Zero => data.fill(0),
            Place::At(offset) => {
                // The file may end within its last cluster.
                let mut got = 0;
                while let count @ 1.. = self
                    .file
                    .read_at(&mut data[got..], offset + within + got as u64)?
                {
                    got += count;
                }
                data[got..].fill(0);
            }
            Place::Compressed(entry) => {
                let (from, length) = (within as usize, data.len());
                let bytes = self.unpack(entry)?.get(from..from + length);
                data.copy_from_slice(bytes.ok_or_else(|| bad("beyond a cluster"))?);
            }
            Place::Hole => match &mut self.backing {
                Some(backing) => backing.read(at, data)?,
                None => data.fill(0),
            },
        }
        Ok(())
    }

    /// Takes a cluster at the end of the file; it reads as zeroes.
    fn grow(&mut self) -> io::Result<u64> {
        let cluster = self.cluster();
        let end = self.end.as_mut().ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
        let new = *end;
        self.file.set_len(new + cluster)?;
        *end = new + cluster;
        Ok(new)
    }

    /// Changes the entry of a place of the disk, whose second table is made if need be.
    fn set_entry(&mut self, at: u64, entry: u64) -> io::Result<()> {
        let (first, second) = self.indices(at);
        let mut table = self.l1.get(first).map_or(0, |entry| entry & OFFSET);
        if table == 0 {
            table = self.grow()?;
            let value = table | COPIED;
            self.file
                .write_all_at(&value.to_be_bytes(), self.l1_at + 8 * first as u64)?;
            if let Some(slot) = self.l1.get_mut(first) {
                *slot = value;
            }
        }
        self.file
            .write_all_at(&entry.to_be_bytes(), table + 8 * second as u64)?;
        if let Some(slot) = self.table(table)?.get_mut(second) {
            *slot = entry;
        }
        Ok(())
    }

    /// Writes what is in one cluster.
    fn write_part(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        let cluster = self.cluster();
        let (within, start) = (at & (cluster - 1), at & !(cluster - 1));
        let entry = self.entry(at)?;
        if entry & (COMPRESSED | ZERO) == 0 && entry & OFFSET != 0 {
            return self.file.write_all_at(data, (entry & OFFSET) + within);
        }
        // The rest of the cluster is what it was; the disk may end within.
        let mut whole = vec![0; cluster.min(self.size - start) as usize];
        if data.len() < whole.len() {
            self.read_part(start, &mut whole)?;
        }
        whole[within as usize..within as usize + data.len()].copy_from_slice(data);
        let offset = match entry & OFFSET {
            old if old != 0 && entry & COMPRESSED == 0 => old,
            _ => self.grow()?,
        };
        self.file.write_all_at(&whole, offset)?;
        self.set_entry(start, offset | COPIED)
    }

    /// Calls `part` for what of a range is in each cluster: offset on the disk, and range of bytes.
    fn each(
        &mut self,
        at: u64,
        length: u64,
        mut part: impl FnMut(&mut Self, u64, std::ops::Range<u64>) -> io::Result<()>,
    ) -> io::Result<()> {
        if at.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "beyond the end of the disk",
            ));
        }
        let mut done = 0;
        while done < length {
            let at = at + done;
            let step = (self.cluster() - (at & (self.cluster() - 1))).min(length - done);
            part(self, at, done..done + step)?;
            done += step;
        }
        Ok(())
    }

    /// Writes the reference counts of an overlay, and that it is clean.
    fn close(&mut self) -> io::Result<()> {
        let Some(end) = self.end.take() else {
            return Ok(());
        };
        let cluster = self.cluster();
        let used = end / cluster;
        let length = counts_length(used);
        let (all, per_block) = (used + length / cluster, cluster / 2);
        let blocks = all.div_ceil(per_block);
        let table = (blocks * 8).next_multiple_of(cluster);
        let mut bytes = vec![0; length as usize];
        for block in 0..blocks {
            let at = block as usize * 8;
            bytes[at..at + 8].copy_from_slice(&(end + table + block * cluster).to_be_bytes());
        }
        for n in 0..all as usize {
            let at = table as usize + 2 * n;
            bytes[at..at + 2].copy_from_slice(&1u16.to_be_bytes());
        }
        self.file.write_all_at(&bytes, end)?;
        self.file.write_all_at(&end.to_be_bytes(), 48)?;
        self.file
            .write_all_at(&((table / cluster) as u32).to_be_bytes(), 56)?;
        self.file.sync_data()?;
        self.file.write_all_at(&0u64.to_be_bytes(), 72)
    }
}

/// Bytes of the reference counts of an overlay with so many other clusters: a table, then blocks.
fn counts_length(used: u64) -> u64 {
    let cluster = 1u64 << CLUSTER_BITS;
    let per_block = cluster / 2;
    let mut own = 2;
    loop {
        let blocks = (used + own).div_ceil(per_block);
        let needed = blocks + (blocks * 8).div_ceil(cluster);
        if needed <= own {
            return own * cluster;
        }
        own = needed;
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "an overlay could not be closed");
        }
    }
}

impl Storage for Qcow2 {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.end.is_none()
    }

    fn read(&mut self, at: u64, data: &mut [u8]) -> io::Result<()> {
        self.each(at, data.len() as u64, |this, at, range| {
            this.read_part(at, &mut data[range.start as usize..range.end as usize])
        })
    }

    fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        self.each(at, data.len() as u64, |this, at, range| {
            this.write_part(at, &data[range.start as usize..range.end as usize])
        })
    }

    fn zero(&mut self, at: u64, length: u64) -> io::Result<()> {
        self.each(at, length, |this, at, range| {
            let length = range.end - range.start;
            if length < this.cluster() {
                return this.write_part(at, &vec![0; length as usize]);
            }
            let entry = this.entry(at)?;
            if entry & ZERO != 0 && entry & COMPRESSED == 0 {
                return Ok(());
            }
            let offset = if entry & COMPRESSED == 0 {
                entry & OFFSET
            } else {
                0
            };
            this.set_entry(at, offset | if offset != 0 { COPIED } else { 0 } | ZERO)?;
            if offset != 0 {
                // Space only: the flag says what is read.
                let _ = fallocate(&this.file, FallocateMode::PunchHole, true, offset, length);
            }
            Ok(())
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn origin(&self) -> Option<Origin<'_>> {
        let image = self.name.as_deref().filter(|_| self.end.is_some())?;
        let file = &self.file;
        Some(Origin::Overlay { file, image })
    }
}

#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod tests;
