// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A file, or a block device, whose bytes are the disk's.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vmm_sys_util::fallocate::{fallocate, FallocateMode};

use super::{Origin, Storage};
use crate::sys;

/// The file.
pub struct RawFile {
    file: File,
    size: u64,
    read_only: bool,
    /// Where it is; none: nowhere, and nobody writes to it.
    path: Option<PathBuf>,
    /// Its bytes can be saved with a machine.
    kept: bool,
}

impl RawFile {
    /// Opens a file, to write unless `read_only`; then nobody else who asks may have it.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        if !read_only {
            sys::lock_file(&file)?;
        }
        let mut opened = Self::new(file, read_only)?;
        (opened.path, opened.kept) = (Some(path.canonicalize()?), true);
        Ok(opened)
    }

    /// Takes a file without a name, which nobody writes to any more.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn in_memory(file: File) -> io::Result<Self> {
        let mut opened = Self::new(file, true)?;
        opened.kept = true;
        Ok(opened)
    }

    /// Takes an open file.
    ///
    /// # Errors
    ///
    /// Those of the system; a file that has no size.
    pub fn new(mut file: File, read_only: bool) -> io::Result<Self> {
        // Of a block device metadata does not tell it.
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            size,
            read_only,
            path: None,
            kept: false,
        })
    }

    fn check_write(&self, at: u64, length: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.check(at, length)
    }

    fn check(&self, at: u64, length: u64) -> io::Result<()> {
        match at.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "beyond the end of the disk",
            )),
        }
    }
}

impl Storage for RawFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&mut self, at: u64, data: &mut [u8]) -> io::Result<()> {
        self.check(at, data.len() as u64)?;
        self.file.read_exact_at(data, at)
    }

    fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        self.check_write(at, data.len() as u64)?;
        self.file.write_all_at(data, at)
    }

    fn zero(&mut self, at: u64, length: u64) -> io::Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        self.check_write(at, length)?;
        if length == 0 || fallocate(&self.file, FallocateMode::PunchHole, true, at, length).is_ok()
        {
            return Ok(());
        }
        // Not every file system has holes.
        let (mut at, mut left) = (at, length);
        while left > 0 {
            let part = left.min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..part as usize], at)?;
            at += part;
            left -= part;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn origin(&self) -> Option<Origin<'_>> {
        match &self.path {
            Some(path) => Some(Origin::File(path)),
            None => self.kept.then_some(Origin::Memory(&self.file)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_and_nothing_is_beyond_the_end() {
        let path = std::env::temp_dir().join(format!("rvmm-raw-{}", std::process::id()));
        std::fs::write(&path, vec![7; 8192]).unwrap();
        let mut disk = RawFile::open(&path, false).unwrap();
        let mut data = [0; 4];
        disk.write(8188, &[1, 2, 3, 4]).unwrap();
        disk.read(8188, &mut data).unwrap();
        assert_eq!((disk.size(), data), (8192, [1, 2, 3, 4]));
        disk.zero(4096, 4096).unwrap();
        disk.read(8188, &mut data).unwrap();
        assert_eq!(data, [0; 4]);
        disk.flush().unwrap();
        for at in [8189, 8192, u64::MAX - 1] {
            assert!(disk.read(at, &mut data).is_err());
            assert!(disk.write(at, &data).is_err());
            assert!(disk.zero(at, 4).is_err());
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
        assert!(RawFile::open(&path, true).unwrap().write(0, &data).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
