// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of qcow2.rs: overlays against a model, images made by hand, images with bytes changed.

use std::path::PathBuf;

use super::*;
use crate::disk::RawFile;

/// A file of a test's, which goes with it.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("rvmm-qcow2-{name}-{}", std::process::id())))
    }

    fn file(&self) -> File {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.open(&self.0).unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

const SIZE: u64 = (5 << 16) + 512;

fn base(of: &Temporary) -> Box<dyn Storage> {
    Box::new(RawFile::new(of.file(), true).unwrap())
}

fn read_all(disk: &mut Qcow2) -> Vec<u8> {
    let mut all = vec![0; SIZE as usize];
    disk.read(0, &mut all).unwrap();
    all
}

#[test]
fn an_overlay_is_what_was_written_and_the_image_below() {
    let (image, top) = (Temporary::new("base"), Temporary::new("top"));
    let mut model: Vec<u8> = (0..SIZE).map(|n| (n / 512 % 255) as u8 + 1).collect();
    std::fs::write(&image.0, &model).unwrap();
    let mut disk = Qcow2::create(top.file(), base(&image), "base", "raw").unwrap();
    // Clusters that have never been written.
    disk.zero(1 << 16, 2 << 16).unwrap();
    model[1 << 16..3 << 16].fill(0);
    assert!(read_all(&mut disk) == model);
    disk.write((2 << 16) + 5, &[6; 7]).unwrap();
    model[(2 << 16) + 5..][..7].fill(6);
    assert!(read_all(&mut disk) == model);
    let mut random = Random(7);
    for round in 0..400 {
        let at = random.below(SIZE);
        let length = (random.below(3 << 16) + 1).min(SIZE - at);
        let range = at as usize..(at + length) as usize;
        if random.below(3) == 0 {
            disk.zero(at, length).unwrap();
            model[range].fill(0);
        } else {
            let data = vec![round as u8; length as usize];
            disk.write(at, &data).unwrap();
            model[range].copy_from_slice(&data);
        }
        if round % 50 == 49 {
            assert!(read_all(&mut disk) == model, "round {round}");
            if round % 100 == 99 {
                drop(disk);
                disk = Qcow2::reopen(top.file(), base(&image), "base").unwrap();
            }
        }
    }
    disk.flush().unwrap();
    drop(disk);
    check_counts(&top.file());
    assert!(
        std::fs::read(&image.0).unwrap()[..3] == [1, 1, 1],
        "the image stays"
    );
}

/// Every cluster of a closed overlay has exactly one user and a count of one.
fn check_counts(file: &File) {
    let header = Header::read(file).unwrap();
    assert_eq!(header.incompatible & DIRTY, 0);
    let length = file.metadata().unwrap().len();
    let mut users = vec![0; (length >> 16) as usize];
    let read = |at: u64, length: u64| {
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    let mut used = vec![0, header.l1, header.refcounts];
    for l1 in read(header.l1, u64::from(header.l1_entries) * 8).chunks(8) {
        let table = be64(l1, 0) & OFFSET;
        if table != 0 {
            used.push(table);
            used.extend(
                read(table, 1 << 16)
                    .chunks(8)
                    .map(|e| be64(e, 0) & OFFSET)
                    .filter(|at| *at != 0),
            );
        }
    }
    let block = be64(&read(header.refcounts, 8), 0);
    used.push(block);
    for at in used {
        users[(at >> 16) as usize] += 1;
    }
    let counts = read(block, 2 * users.len() as u64);
    assert!(users.iter().all(|count| *count == 1), "{users:?}");
    assert!(counts.chunks(2).all(|count| count == [0, 1]));
}

#[test]
fn an_overlay_of_another_image_is_refused() {
    let (image, top) = (Temporary::new("base2"), Temporary::new("top2"));
    std::fs::write(&image.0, vec![1; SIZE as usize]).unwrap();
    drop(Qcow2::create(top.file(), base(&image), "base", "raw").unwrap());
    let refused = |name: &str| {
        Qcow2::reopen(top.file(), base(&image), name)
            .err()
            .unwrap()
            .to_string()
    };
    assert!(refused("other").contains("no overlay of other, but of base"));
    let error = Qcow2::open(top.file()).err().unwrap().to_string();
    assert!(error.contains("--keep"), "{error}");
    // A cluster behind the counts: another program has written to it.
    let file = top.file();
    let length = file.metadata().unwrap().len();
    file.set_len(length + (1 << 16)).unwrap();
    assert!(refused("base").contains("another program"));
    file.set_len(length).unwrap();
    drop(Qcow2::reopen(top.file(), base(&image), "base").unwrap());
    check_counts(&top.file());
}

/// An image of two clusters of 512 bytes: the first one compressed, the second one zeroes.
fn by_hand() -> Vec<u8> {
    let packed = miniz_oxide::deflate::compress_to_vec(&[0x5a; 512], 6);
    let mut bytes = vec![0; 2048];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &MAGIC);
    put(4, &3u32.to_be_bytes());
    put(20, &9u32.to_be_bytes());
    put(24, &1024u64.to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &512u64.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    put(512, &(1024 | COPIED).to_be_bytes());
    put(1024, &(1540 | COMPRESSED).to_be_bytes());
    put(1032, &ZERO.to_be_bytes());
    put(1540, &packed);
    bytes
}

#[test]
fn compressed_clusters_are_read() {
    let image = Temporary::new("packed");
    std::fs::write(&image.0, by_hand()).unwrap();
    let mut disk = Qcow2::open(image.file()).unwrap();
    let mut data = [1; 600];
    disk.read(256, &mut data).unwrap();
    assert!(
        data[..256].iter().all(|byte| *byte == 0x5a) && data[256..].iter().all(|byte| *byte == 0)
    );
    assert!(disk.read_only() && disk.write(0, &data).is_err());
}

#[test]
fn what_is_not_known_is_refused_with_a_sentence() {
    let image = Temporary::new("refused");
    for (at, value, word) in [
        (0, 0x51u8, ""),
        (1, 0, "not a qcow2"),
        (7, 4, "version 4"),
        (23, 8, "impossible size"),
        (35, 1, "encrypted"),
        (79, 4, "another file"),
        (79, 0x10, "not known here"),
        (79, 2, "corrupt"),
        (30, 0xff, "wrong size"),
    ] {
        let mut bytes = by_hand();
        bytes[at] = value;
        std::fs::write(&image.0, &bytes).unwrap();
        let error = Qcow2::open(image.file())
            .err()
            .map_or(String::new(), |e| e.to_string());
        assert!(
            error.contains(word) && error.is_empty() == word.is_empty(),
            "{at}: {error}"
        );
    }
}

#[test]
fn changed_bytes_are_survived() {
    let image = Temporary::new("changed");
    let mut random = Random(3);
    for _ in 0..1500 {
        let mut bytes = by_hand();
        for _ in 0..random.below(4) + 1 {
            let at = random.below(1600) as usize;
            bytes[at] = random.below(256) as u8;
        }
        bytes.truncate(random.below(2048) as usize + 512);
        std::fs::write(&image.0, &bytes).unwrap();
        if let Ok(mut disk) = Qcow2::open(image.file()) {
            let end = disk.size();
            for at in [0, 512, end / 2 & !511, end.saturating_sub(512)] {
                let _ = disk.read(at, &mut [0; 512]);
            }
        }
    }
}
