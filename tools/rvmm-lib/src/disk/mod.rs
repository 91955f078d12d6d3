// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is behind a disk of the guest's.

#![forbid(unsafe_code)]

mod boot;
mod image;
pub mod qcow2;
mod raw;
mod seed;

use std::fs::File;
use std::io;
use std::path::Path;

use crc::{Crc, Table, CRC_64_XZ};

pub use self::boot::{find as find_kernel, Bootable};
pub use self::image::{open_image, overlay};
pub use self::raw::RawFile;
pub use self::seed::seed;

/// Checksums of what is kept in files.
pub(crate) static CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_XZ);

/// Where a disk's bytes are, to save it with its machine.
pub enum Origin<'a> {
    /// In an overlay that only grows, of the image at a path.
    Overlay {
        /// The overlay.
        file: &'a File,
        /// The image.
        image: &'a Path,
    },
    /// In a file without a name, which nobody writes to.
    Memory(&'a File),
    /// In the file at a path.
    File(&'a Path),
}

/// Bytes that stay.
pub trait Storage: Send {
    /// Number of bytes, constant.
    fn size(&self) -> u64;

    /// Whether every write fails.
    fn read_only(&self) -> bool;

    /// Fills `data` with what is at an offset.
    ///
    /// # Errors
    ///
    /// Those of the system; what is beyond the end.
    fn read(&mut self, at: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at an offset.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()>;

    /// Makes `length` bytes zero, and gives their space back where that is possible.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    fn zero(&mut self, at: u64, length: u64) -> io::Result<()>;

    /// Returns when what was written survives a failure of power.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn flush(&mut self) -> io::Result<()>;

    /// Where they are; none if they cannot be saved.
    fn origin(&self) -> Option<Origin<'_>> {
        None
    }
}
