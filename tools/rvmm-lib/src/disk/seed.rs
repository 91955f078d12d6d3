// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A disk that tells an image's cloud-init what to set up: its data source NoCloud takes a FAT file system with the
//! label CIDATA (<https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>).

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

use super::{RawFile, CRC};
use crate::sys;

/// The most bytes of user data.
const MOST: usize = 16 << 20;
/// Bytes of the file system beside them.
const ROOM: usize = 1 << 20;

/// A disk with this user data, which nobody can write to. Other data are another instance to cloud-init, which sets up
/// each once.
///
/// # Errors
///
/// Those of the system; more than 16 MiB.
pub fn seed(from: impl Read) -> io::Result<RawFile> {
    let mut user_data = Vec::new();
    // A device may never end.
    from.take(MOST as u64 + 1).read_to_end(&mut user_data)?;
    let user_data = &user_data[..];
    if user_data.len() > MOST {
        return Err(io::Error::other("user data of more than 16M"));
    }
    let size = (user_data.len() + ROOM).next_multiple_of(1 << 20);
    let (mut file, _) = sys::memory_file(&vec![0; size])?;
    let name = instance(user_data);
    let meta_data = format!("instance-id: {name}\nlocal-hostname: {name}\n");
    fill(
        &mut file,
        &[
            ("user-data", user_data),
            ("meta-data", meta_data.as_bytes()),
        ],
    )?;
    RawFile::in_memory(file)
}

/// A name that these data alone have.
fn instance(user_data: &[u8]) -> String {
    format!("rvmm-{:016x}", CRC.checksum(user_data))
}

fn fill(file: &mut File, files: &[(&str, &[u8])]) -> io::Result<()> {
    file.rewind()?;
    fatfs::format_volume(
        &mut *file,
        FormatVolumeOptions::new().volume_label(*b"CIDATA     "),
    )?;
    let system = FileSystem::new(file, FsOptions::new())?;
    for (name, bytes) in files {
        let mut file = system.root_dir().create_file(name)?;
        file.write_all(bytes)?;
        file.flush()?;
    }
    system.unmount()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::disk::Storage;

    #[test]
    fn cloud_init_finds_its_files() {
        for length in [0, 100, 3 << 20] {
            let data: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let mut disk = seed(&data[..]).unwrap();
            assert!(disk.read_only() && disk.write(0, &[0]).is_err());
            assert_eq!(disk.size() % 512, 0);
            let mut bytes = vec![0; disk.size() as usize];
            disk.read(0, &mut bytes).unwrap();
            let system = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
            assert_eq!(system.volume_label_as_bytes(), b"CIDATA");
            let read = |name: &str| {
                let mut bytes = Vec::new();
                let mut file = system.root_dir().open_file(name).unwrap();
                file.read_to_end(&mut bytes).unwrap();
                bytes
            };
            assert_eq!(read("user-data"), data);
            let meta = String::from_utf8(read("meta-data")).unwrap();
            assert!(meta.starts_with("instance-id: rvmm-"), "{meta}");
        }
        assert_ne!(instance(b"a"), instance(b"b"));
        assert!(seed(std::io::repeat(0)).is_err());
    }
}
