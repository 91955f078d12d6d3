// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Images of disks, qcow2 or raw, and overlays that take what is written.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::qcow2::{Qcow2, MAGIC};
use super::{RawFile, Storage};
use crate::sys;

/// Opens an image to read it, and says its format. What does not begin like a qcow2 image is raw.
///
/// # Errors
///
/// Those of the system; [`io::ErrorKind::InvalidData`] for an image that cannot be used.
pub fn open_image(path: &Path) -> io::Result<(Box<dyn Storage>, &'static str)> {
    let mut file = File::open(path)?;
    let mut magic = [0; 4];
    if file.read_exact(&mut magic).is_ok() && magic == MAGIC {
        return Ok((Box::new(Qcow2::open(file)?), "qcow2"));
    }
    Ok((Box::new(RawFile::new(file, true)?), "raw"))
}

/// An overlay of the image at `path`: in the file `keep`, which is made unless it is there, or in a file without a name
/// below `directory`, which nobody sees and which goes with the launcher.
///
/// # Errors
///
/// As [`open_image`]; a file `keep` that is not an overlay of this image.
pub fn overlay(path: &Path, keep: Option<&Path>, directory: &Path) -> io::Result<Qcow2> {
    let (image, format) = open_image(path)?;
    let name = path.canonicalize()?;
    let name = name.to_string_lossy();
    let Some(keep) = keep else {
        let file = vmm_sys_util::tempfile::TempFile::new_in(directory)?.into_file();
        return Qcow2::create(file, image, &name, format);
    };
    let mut options = File::options();
    options.read(true).write(true);
    match options.clone().create_new(true).open(keep) {
        Ok(file) => {
            sys::lock_file(&file)?;
            Qcow2::create(file, image, &name, format)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let file = options.open(keep)?;
            sys::lock_file(&file)?;
            Qcow2::reopen(file, image, &name)
        }
        Err(error) => Err(error),
    }
}
