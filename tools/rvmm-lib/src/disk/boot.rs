// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a disk would boot: the kernel, initrd and command line that its boot loader's menu names first. The disk is
//! only read, and nothing of it is executed here.
//!
//! Partitions are those of a GPT (UEFI 2.10, 5.3) or of an MBR, or the disk is one file system; file systems are ext2
//! to ext4; the menu is GRUB's. Without one it is the newest kernel there is.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use ext4_view::{Ext4, Ext4Read};

use super::Storage;

/// What to boot.
pub struct Bootable {
    /// Path of the kernel in its file system.
    pub name: String,
    /// The kernel's file.
    pub kernel: Vec<u8>,
    /// The initrd's file.
    pub initrd: Option<Vec<u8>>,
    /// The command line.
    pub cmdline: String,
}

/// The largest kernel or initrd.
const MOST_BYTES: u64 = 1 << 30;
/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Entries of a GPT that are looked at.
const MOST_PARTITIONS: u32 = 128;

type Disk = Arc<Mutex<dyn Storage>>;

/// Part of the disk.
#[derive(Clone)]
struct Partition {
    disk: Disk,
    start: u64,
    length: u64,
    /// How the kernel's `root=` names it.
    name: String,
}

impl Partition {
    fn read_at(&self, at: u64, data: &mut [u8]) -> std::io::Result<()> {
        let end = at.checked_add(data.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        disk.read(self.start + at, data)
    }
}

impl Ext4Read for Partition {
    fn read(
        &mut self,
        at: u64,
        data: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        Ok(self.read_at(at, data)?)
    }
}

fn le(bytes: &[u8], at: usize, length: usize) -> u64 {
    let bytes = bytes.get(at..at + length).unwrap_or_default();
    bytes
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// A GUID as Linux writes it: the first three fields are little-endian.
fn guid(bytes: &[u8; 16]) -> String {
    let big = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let (d, e) = (big(&bytes[8..10]), big(&bytes[10..16]));
    let (a, b, c) = (le(bytes, 0, 4), le(bytes, 4, 2), le(bytes, 6, 2));
    format!("{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
}

/// The disk's partitions; the whole disk where there is no table.
fn partitions(disk: &Disk) -> std::io::Result<Vec<Partition>> {
    let size = disk.lock().unwrap_or_else(PoisonError::into_inner).size();
    let whole = Partition {
        disk: disk.clone(),
        start: 0,
        length: size,
        name: "/dev/vda".into(),
    };
    let mut head = [0; 2 * SECTOR as usize];
    if size < head.len() as u64 {
        return Ok(Vec::new());
    }
    whole.read_at(0, &mut head)?;
    // First sector, sectors, name.
    let part = |first: u64, count: u64, name: String| {
        let (start, length) = (first.checked_mul(SECTOR)?, count.checked_mul(SECTOR)?);
        let fits = length > 0 && start.checked_add(length).is_some_and(|end| end <= size);
        fits.then(|| Partition {
            start,
            length,
            name,
            ..whole.clone()
        })
    };
    let gpt = &head[SECTOR as usize..];
    if gpt.starts_with(b"EFI PART") {
        let (at, count, entry) = (le(gpt, 72, 8), le(gpt, 80, 4) as u32, le(gpt, 84, 4));
        if !(128..=4096).contains(&entry) {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for n in 0..count.min(MOST_PARTITIONS) {
            let mut bytes = [0; 128];
            let place = at
                .checked_mul(SECTOR)
                .and_then(|at| at.checked_add(u64::from(n) * entry));
            whole.read_at(place.unwrap_or(u64::MAX), &mut bytes)?;
            let (first, last) = (le(&bytes, 32, 8), le(&bytes, 40, 8));
            let mut unique = [0; 16];
            unique.copy_from_slice(&bytes[16..32]);
            if bytes[..16] != [0; 16] && first <= last {
                let count = (last - first).saturating_add(1);
                let name = format!("PARTUUID={}", guid(&unique));
                found.extend(part(first, count, name));
            }
        }
        return Ok(found);
    }
    if head[510..512] == [0x55, 0xaa] {
        let signature = le(&head, 440, 4);
        let entries = (1..)
            .zip(head[446..510].chunks(16))
            .filter(|(_, entry)| entry[4] != 0);
        let found: Vec<_> = entries
            .filter_map(|(n, entry)| {
                let name = format!("PARTUUID={signature:08x}-{n:02x}");
                part(le(entry, 8, 4), le(entry, 12, 4), name)
            })
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(vec![whole])
}

/// What a menu's entry starts.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    kernel: String,
    initrd: Option<String>,
    words: Vec<String>,
}

/// The first entry of GRUB's menu. Words with GRUB's variables are left out: nobody here knows their values.
fn first_entry(menu: &str) -> Option<Entry> {
    let mut entry: Option<Entry> = None;
    for line in menu.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), &mut entry) {
            (Some("linux" | "linux16" | "linuxefi"), None) => {
                entry = Some(Entry {
                    kernel: words.next()?.into(),
                    initrd: None,
                    words: words
                        .filter(|word| !word.contains('$'))
                        .map(str::to_owned)
                        .collect(),
                });
            }
            (Some("initrd" | "initrd16" | "initrdefi"), Some(entry)) => {
                entry.initrd = words.next().map(str::to_owned);
                break;
            }
            // An entry without an initrd.
            (Some("}"), Some(_)) => break,
            _ => {}
        }
    }
    entry
}

/// What versions are compared by: numbers as numbers, the rest as text.
fn version(text: &str) -> Vec<(u64, String)> {
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .map(|part| (part.parse().unwrap_or(0), part.to_owned()))
        .collect()
}

/// The newest kernel of a directory.
fn newest(system: &Ext4, directory: &str) -> Option<Entry> {
    let names = system.read_dir(format!("{directory}/").as_str()).ok()?;
    let names = names.filter_map(|entry| Some(entry.ok()?.file_name().as_str().ok()?.to_owned()));
    let kernels = names.filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()));
    let release = kernels.max_by_key(|release| version(release))?;
    Some(Entry {
        kernel: format!("{directory}/vmlinuz-{release}"),
        initrd: Some(format!("{directory}/initrd.img-{release}")),
        words: vec!["ro".into()],
    })
}

fn read_file(system: &Ext4, path: &str) -> Result<Vec<u8>, String> {
    let problem = |error| format!("{path}: {error}");
    let length = system.metadata(path).map_err(problem)?.len();
    if length > MOST_BYTES {
        return Err(format!("{path} is too large"));
    }
    system.read(path).map_err(problem)
}

/// What a file system would boot; none if there is nothing.
fn look(system: &Ext4, name: &str) -> Option<Result<Bootable, String>> {
    let directories = ["/boot", ""];
    let menu = |directory: &&str| {
        let text = read_file(system, &format!("{directory}/grub/grub.cfg")).ok()?;
        let entry = first_entry(&String::from_utf8_lossy(&text))?;
        system.exists(entry.kernel.as_str()).ok()?.then_some(entry)
    };
    let entry = directories.iter().find_map(menu);
    let entry = entry.or_else(|| {
        directories
            .iter()
            .find_map(|directory| newest(system, directory))
    })?;
    let load = || {
        let mut words = entry.words;
        if !words.iter().any(|word| word.starts_with("root=")) {
            words.insert(0, format!("root={name}"));
        }
        if !words.iter().any(|word| word.starts_with("console=ttyS0")) {
            words.push("console=ttyS0".into());
        }
        let initrd = entry
            .initrd
            .filter(|path| system.exists(path.as_str()).unwrap_or(false));
        Ok(Bootable {
            kernel: read_file(system, &entry.kernel)?,
            initrd: initrd.map(|path| read_file(system, &path)).transpose()?,
            cmdline: words.join(" "),
            name: entry.kernel,
        })
    };
    Some(load())
}

/// Finds what a disk would boot.
///
/// # Errors
///
/// A sentence that says what is missing.
pub fn find(disk: &Disk) -> Result<Bootable, String> {
    let partitions = partitions(disk).map_err(|error| format!("its partition table: {error}"))?;
    let (mut systems, mut why) = (0, String::new());
    for partition in &partitions {
        match Ext4::load(Box::new(partition.clone())) {
            Ok(system) => {
                systems += 1;
                match look(&system, &partition.name) {
                    Some(Ok(found)) => return Ok(found),
                    Some(Err(error)) => why = error,
                    None => {}
                }
            }
            Err(error) => tracing::debug!(%error, name = partition.name, "no ext4"),
        }
    }
    Err(match (systems, why.is_empty()) {
        (_, false) => why,
        (0, _) => format!("no ext4 file system in its {} partitions", partitions.len()),
        _ => "no kernel in /boot of its file systems".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk in memory.
    struct Bytes(Vec<u8>);

    impl Storage for Bytes {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_only(&self) -> bool {
            true
        }
        fn read(&mut self, at: u64, data: &mut [u8]) -> std::io::Result<()> {
            let from = self.0.get(at as usize..at as usize + data.len());
            data.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
        fn write(&mut self, _: u64, _: &[u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
        }
        fn zero(&mut self, _: u64, _: u64) -> std::io::Result<()> {
            Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn disk(bytes: Vec<u8>) -> Disk {
        Arc::new(Mutex::new(Bytes(bytes)))
    }

    fn gpt() -> Vec<u8> {
        let mut bytes = vec![0; 64 * 512];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(512, b"EFI PART");
        put(512 + 72, &2u64.to_le_bytes());
        put(512 + 80, &128u32.to_le_bytes());
        put(512 + 84, &128u32.to_le_bytes());
        put(1024 + 128, &[1; 16]);
        put(
            1024 + 144,
            &[
                0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 9, 10, 11, 12, 13, 14, 15, 16,
            ],
        );
        put(1024 + 160, &40u64.to_le_bytes());
        put(1024 + 168, &49u64.to_le_bytes());
        bytes
    }

    #[test]
    fn a_gpt_names_its_partitions() {
        let found = partitions(&disk(gpt())).unwrap();
        assert_eq!(
            (found.len(), found[0].start, found[0].length),
            (1, 40 * 512, 10 * 512)
        );
        assert_eq!(
            found[0].name,
            "PARTUUID=44332211-6655-8877-090a-0b0c0d0e0f10"
        );
        assert!(found[0].read_at(10 * 512 - 1, &mut [0; 2]).is_err());
        let error = find(&disk(gpt())).err().unwrap();
        assert_eq!(error, "no ext4 file system in its 1 partitions");
    }

    #[test]
    fn changed_tables_are_survived() {
        let mut seed = 5u64;
        let mut random = move |below: usize| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) as usize % below
        };
        for round in 0..2000 {
            let mut bytes = gpt();
            if round % 2 == 0 {
                bytes[512] = 0;
                bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
                bytes[450] = 0x83;
            }
            for _ in 0..6 {
                let at = random(1500);
                bytes[at] = random(256) as u8;
            }
            bytes.truncate(random(bytes.len()));
            let disk = disk(bytes);
            if let Ok(found) = partitions(&disk) {
                let size = disk.lock().unwrap().size();
                assert!(found.iter().all(|part| part.start + part.length <= size));
            }
            assert!(find(&disk).is_err());
        }
    }

    #[test]
    fn the_first_entry_of_the_menu_counts() {
        let menu = "set default=0\nmenuentry 'Debian' {\n\tload_video\n\tlinux\t/boot/vmlinuz-6.12 \
                    root=UUID=1 ro  console=ttyS0,115200 ${extra}\n\tinitrd\t/boot/initrd.img-6.12\n}\n\
                    menuentry 'old' {\n\tlinux /boot/vmlinuz-6.1 root=x\n\tinitrd /boot/initrd.img-6.1\n}\n";
        let entry = first_entry(menu).unwrap();
        assert_eq!(entry.kernel, "/boot/vmlinuz-6.12");
        assert_eq!(entry.initrd.as_deref(), Some("/boot/initrd.img-6.12"));
        assert_eq!(entry.words, ["root=UUID=1", "ro", "console=ttyS0,115200"]);
        assert_eq!(
            first_entry("linux /k\n}\ninitrd /other\n").unwrap().initrd,
            None
        );
        assert_eq!(first_entry("set x=linux\nlinux"), None);
    }

    #[test]
    fn newer_is_by_number() {
        assert!(version("6.12.9-amd64") > version("6.12.8-amd64"));
        assert!(version("6.12.10+deb13-amd64") > version("6.12.9+deb13-amd64"));
        assert!(version("7.3.4") > version("6.99.99"));
    }
}
