// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Devices of a saved machine: what they are made of again, and the state of their functions.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::balloon::Balloon;
use super::block::Block;
use super::console::Console;
use super::net::Net;
use super::rng::Rng;
use super::transport::TransportState;
use super::user::{Forward, Network, UserNetwork};
use super::vsock::Vsock;
use super::Backend;
use crate::disk::qcow2::Qcow2;
use crate::disk::{open_image, Origin, RawFile, Storage};
use crate::error::{Error, Result};

/// The bus with its functions, and the power management events (status, enabled).
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VirtioState {
    pub(crate) selected: u32,
    pub(crate) functions: Vec<FunctionState>,
    pub(crate) events: (u16, u16),
}

/// A function.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FunctionState {
    pub(crate) device: Saved,
    pub(crate) config: Vec<u8>,
    pub(crate) transport: TransportState,
    /// Entries of MSI-X, and its control register.
    pub(crate) table: (Vec<[u32; 4]>, u16),
    /// Where each queue is, available and used, of a device that its driver has started.
    pub(crate) positions: Option<Vec<(u16, u16)>>,
}

/// How a device is made again.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub enum Saved {
    /// A disk.
    Disk {
        /// Its queues.
        queues: u16,
        /// Its name for the driver.
        name: String,
        /// What is behind it.
        content: Content,
    },
    /// A network card.
    Net {
        /// Its tap interface.
        tap: String,
        /// Its address.
        mac: [u8; 6],
    },
    /// A network card on a network in user mode of its own.
    UserNet {
        /// Ports of the host.
        forwards: Vec<Forward>,
        /// Its address.
        mac: [u8; 6],
    },
    /// A source of entropy.
    Rng,
    /// A console.
    Console {
        /// Where the link to its terminal is.
        path: PathBuf,
    },
    /// Sockets of a guest with this CID.
    Vsock {
        /// The CID.
        cid: u32,
    },
    /// A balloon, of so many pages.
    Balloon {
        /// How many the host wants.
        wanted: u32,
        /// How many the guest has given.
        actual: u32,
    },
}

/// What is behind a disk.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub enum Content {
    /// An overlay, which is this part of the saved machine's file, of an image.
    Overlay {
        /// Number of the part.
        part: usize,
        /// The image.
        image: Named,
    },
    /// This part, which cannot be written to.
    Part(usize),
    /// A file.
    File {
        /// The file.
        file: Named,
        /// It cannot be written to.
        read_only: bool,
    },
}

/// A file that has to be what it was.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Named {
    path: PathBuf,
    size: u64,
    /// When it was written to: seconds, nanoseconds.
    modified: (i64, i64),
}

impl Named {
    /// # Errors
    ///
    /// Those of the system; a device, which does not tell when it was written to.
    fn new(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let about = path.metadata()?;
        if !about.is_file() {
            let cause = format!("{} is no regular file, and cannot be saved", path.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, cause));
        }
        Ok(Self {
            path: path.into(),
            size: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
        })
    }

    fn check(&self) -> io::Result<&Path> {
        if Self::new(&self.path)? != *self {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it has been written to since the machine was saved",
            ));
        }
        Ok(&self.path)
    }
}

impl Content {
    /// What `storage` is; a file to be a part is added to `parts`.
    ///
    /// # Errors
    ///
    /// Those of the system; a sentence if it cannot be saved.
    pub(crate) fn of(storage: &Mutex<dyn Storage>, parts: &mut Vec<File>) -> io::Result<Self> {
        let mut storage = storage.lock().unwrap_or_else(PoisonError::into_inner);
        if !storage.read_only() {
            storage.flush()?;
        }
        let read_only = storage.read_only();
        let mut part = |file: &File| -> io::Result<usize> {
            parts.push(file.try_clone()?);
            Ok(parts.len() - 1)
        };
        Ok(match storage.origin() {
            Some(Origin::Overlay { file, image }) => Self::Overlay {
                image: Named::new(image)?,
                part: part(file)?,
            },
            Some(Origin::Memory(file)) => Self::Part(part(file)?),
            Some(Origin::File(path)) => Self::File {
                file: Named::new(path)?,
                read_only,
            },
            None => return Err(super::cannot_be_saved()),
        })
    }

    fn open(
        &self,
        parts: &dyn Fn(usize) -> io::Result<File>,
    ) -> io::Result<Arc<Mutex<dyn Storage>>> {
        Ok(match self {
            Self::Overlay { part, image } => {
                let path = image.check()?;
                let (backing, _) = open_image(path)?;
                let name = path.to_string_lossy();
                Arc::new(Mutex::new(Qcow2::reopen(parts(*part)?, backing, &name)?))
            }
            Self::Part(part) => Arc::new(Mutex::new(RawFile::in_memory(parts(*part)?)?)),
            Self::File { file, read_only } => {
                // Locked before it is looked at.
                let opened = RawFile::open(&file.path, *read_only)?;
                file.check()?;
                Arc::new(Mutex::new(opened))
            }
        })
    }

    /// The file that has to be there.
    fn name(&self) -> String {
        match self {
            Self::Overlay { image: file, .. } | Self::File { file, .. } => {
                file.path.display().to_string()
            }
            Self::Part(_) => "a part of the file".into(),
        }
    }
}

/// An error about this device.
fn device(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Device { what, source }
}

impl Saved {
    /// The directory in which it makes something.
    pub(crate) fn directory(&self) -> Option<&Path> {
        match self {
            Self::Console { path } => path.parent(),
            _ => None,
        }
    }

    /// The file that it is on, and whether it is written to.
    pub(crate) fn file(&self) -> Option<(&Path, bool)> {
        let Self::Disk { content, .. } = self else {
            return None;
        };
        match content {
            Content::Overlay { image, .. } => Some((&image.path, false)),
            Content::Part(_) => None,
            Content::File { file, read_only } => Some((&file.path, !read_only)),
        }
    }

    /// Starts the network in user mode that it is on, if it is.
    pub(crate) fn network(&self) -> Result<Option<Network>> {
        let Self::UserNet { forwards, .. } = self else {
            return Ok(None);
        };
        let network = UserNetwork::start(forwards);
        network.map(Some).map_err(device("network in user mode"))
    }

    /// Makes the device, on what [`Self::network`] has given; `parts` gives copies of the parts of the machine's file.
    pub(crate) fn make(
        &self,
        network: Option<Network>,
        parts: &dyn Fn(usize) -> io::Result<File>,
    ) -> Result<Box<dyn Backend>> {
        Ok(match self {
            Self::Disk {
                queues,
                name,
                content,
            } => {
                let storage = content.open(parts).map_err(device(content.name()))?;
                Box::new(Block::new(storage, *queues, name))
            }
            Self::Net { tap, mac } => {
                let card = Net::tap(tap, Some(*mac));
                Box::new(card.map_err(device(format!("tap interface {tap}")))?)
            }
            Self::UserNet { mac, .. } => {
                let card = match network {
                    Some(network) => Net::user(network, Some(*mac)),
                    None => Err(super::cannot_be_saved()),
                };
                Box::new(card.map_err(device("network card"))?)
            }
            Self::Balloon { wanted, actual } => Box::new(Balloon::with(*wanted, *actual)),
            Self::Console { path } => {
                let name = path.display().to_string();
                Box::new(Console::new(path).map_err(device(name))?)
            }
            Self::Vsock { cid } => {
                Box::new(Vsock::anew(*cid).map_err(device("sockets (--vsock)"))?)
            }
            Self::Rng => Box::new(Rng::new().map_err(device("source of entropy"))?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_come_back_with_what_was_written() {
        let directory = std::env::temp_dir().join(format!("rvmm-saved-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (image, raw) = (directory.join("image"), directory.join("raw"));
        std::fs::write(&image, vec![7; 1 << 20]).unwrap();
        std::fs::write(&raw, vec![8; 1 << 20]).unwrap();
        let mut overlay = crate::disk::overlay(&image, None, &directory).unwrap();
        overlay.write(65530, &[9; 100]).unwrap();
        let seed = crate::disk::seed(&b"data"[..]).unwrap();
        let raw_disk = RawFile::open(&raw, false).unwrap();
        let disks: [Arc<Mutex<dyn Storage>>; 3] = [
            Arc::new(Mutex::new(overlay)),
            Arc::new(Mutex::new(seed)),
            Arc::new(Mutex::new(raw_disk)),
        ];
        let mut parts = Vec::new();
        let contents = disks
            .iter()
            .map(|disk| Content::of(disk, &mut parts).unwrap());
        let contents: Vec<_> = contents.collect();
        assert_eq!(parts.len(), 2);
        let read = |disk: &Arc<Mutex<dyn Storage>>| {
            let mut disk = disk.lock().unwrap();
            let mut bytes = vec![0; disk.size() as usize];
            disk.read(0, &mut bytes).unwrap();
            (bytes, disk.read_only())
        };
        let before: Vec<_> = disks.iter().map(read).collect();
        // The machine may go on with what nobody else has.
        disks[0].lock().unwrap().write(0, &[1; 10]).unwrap();
        drop(disks);
        let copies: Vec<Vec<u8>> = (parts.iter())
            .map(|part| {
                let mut bytes = vec![0; part.metadata().unwrap().len() as usize];
                std::os::unix::fs::FileExt::read_exact_at(part, &mut bytes, 0).unwrap();
                bytes
            })
            .collect();
        let part = |n: usize| Ok(crate::sys::memory_file(&copies[n])?.0);
        for (content, mut before) in contents.iter().zip(before) {
            if matches!(content, Content::Overlay { .. }) {
                before.0[..10].fill(1);
            }
            assert_eq!(read(&content.open(&part).unwrap()), before);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        for path in [&image, &raw] {
            std::fs::write(path, vec![6; 1 << 20]).unwrap();
        }
        for content in [&contents[0], &contents[2]] {
            let cause = content.open(&part).err().unwrap().to_string();
            assert!(cause.contains("written to since"), "{cause}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
