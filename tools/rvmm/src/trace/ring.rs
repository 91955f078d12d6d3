// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A vCPU's ring of records, as uapi/rvmm.h has it, and its reader.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::ioctl::ioctl_with_ref;

/// Type of rvmm's ioctls.
const RVMM_IOC: u32 = 0xbb;
vmm_sys_util::ioctl_iow_nr!(RVMM_RECORD, RVMM_IOC, 0x40, Wanted);

/// `struct rvmm_record_ring`.
#[repr(C)]
struct Wanted {
    records: u32,
    flags: u32,
}

const MAGIC: u64 = u64::from_le_bytes(*b"rvmmrec1");
/// 64-bit words of a record, and of the header.
const WORDS: usize = 8;
/// Words of the page that the header has.
const FIRST: usize = 512;

/// What an exit was about, and what came of it: `struct rvmm_record`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub tsc: u64,
    pub rip: u64,
    pub address: u64,
    pub value: u64,
    pub cycles: u32,
    pub guest: u32,
    pub kind: u8,
    pub class: u8,
    pub decision: u8,
    pub path: u8,
    pub cpu: u16,
    pub flags: u16,
    pub inject: u32,
    pub error_code: u32,
    pub reason: u32,
    pub detail: u32,
}

/// `Record::kind`.
pub const EXIT: u8 = 1;
#[cfg(test)]
pub const ENTRY: u8 = 2;

impl Record {
    /// Takes the words of a record apart.
    pub fn of(words: [u64; WORDS]) -> Self {
        let [tsc, rip, address, value, times, about, injected, last] = words;
        let halves = |word: u64| (word as u32, (word >> 32) as u32);
        let ((cycles, guest), (inject, error_code)) = (halves(times), halves(injected));
        let (reason, detail) = halves(last);
        let [kind, class, decision, path, cpu @ .., flags0, flags1] = about.to_le_bytes();
        Self {
            tsc,
            rip,
            address,
            value,
            cycles,
            guest,
            kind,
            class,
            decision,
            path,
            cpu: u16::from_le_bytes(cpu),
            flags: u16::from_le_bytes([flags0, flags1]),
            inject,
            error_code,
            reason,
            detail,
        }
    }

    /// Whether it is an exit, not the first entry of a stay.
    pub fn is_exit(&self) -> bool {
        self.kind == EXIT
    }
}

/// The ring of one vCPU, mapped. The vCPU writes; this reads.
pub struct Ring {
    words: NonNull<AtomicU64>,
    bytes: usize,
    records: u64,
    /// The next one to be read.
    next: u64,
    /// Records that were overwritten before they could be read.
    pub lost: u64,
    /// The vCPU's id.
    pub vcpu: u32,
    /// The host's TSC.
    pub tsc_khz: u64,
}

impl Ring {
    /// Begins to record the vCPU behind this descriptor.
    ///
    /// # Errors
    ///
    /// Those of `RVMM_RECORD`, and of mapping.
    pub fn of_vcpu(vcpu: &File, records: u32) -> io::Result<Self> {
        let wanted = Wanted { records, flags: 0 };
        // SAFETY: the ioctl reads the structure, whose layout is the header's.
        let fd = unsafe { ioctl_with_ref(vcpu, RVMM_RECORD(), &wanted) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the ioctl just made this descriptor, which nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        Self::map(&file, records)
    }

    fn map(file: &File, records: u32) -> io::Result<Self> {
        let bytes = (FIRST + records as usize * WORDS) * 8;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        let words = match NonNull::new(at.cast::<AtomicU64>()) {
            Some(words) if at != libc::MAP_FAILED => words,
            _ => return Err(io::Error::last_os_error()),
        };
        let mut ring = Self {
            words,
            bytes,
            records: records.into(),
            next: 0,
            lost: 0,
            vcpu: 0,
            tsc_khz: 0,
        };
        let shape = u64::from(records) << 32 | (WORDS * 8) as u64;
        if ring.word(0) != MAGIC || ring.word(1) != shape {
            return Err(io::ErrorKind::InvalidData.into());
        }
        ring.vcpu = ring.word(4) as u32;
        ring.tsc_khz = ring.word(5);
        Ok(ring)
    }

    /// A word of the mapping; 0 beyond it.
    fn word(&self, n: usize) -> u64 {
        if n >= self.bytes / 8 {
            return 0;
        }
        // SAFETY: within the mapping, which lives as long as `self`. The kernel writes whole words there.
        unsafe { self.words.add(n).as_ref() }.load(Ordering::Acquire)
    }

    /// Appends what has been recorded since the last call.
    pub fn read(&mut self, to: &mut Vec<Record>) {
        let head = self.word(2);
        let begin = to.len();
        // One place may be in the middle of being written.
        let oldest = (head + 1).saturating_sub(self.records);
        self.skip(oldest);
        let first = self.next;
        for n in first..head {
            let at = FIRST + (n % self.records) as usize * WORDS;
            to.push(Record::of(std::array::from_fn(|word| self.word(at + word))));
        }
        self.next = head.max(first);
        // What was overwritten meanwhile is void.
        let oldest = (self.word(2) + 1).saturating_sub(self.records);
        let void = oldest.min(self.next).saturating_sub(first);
        to.drain(begin..begin + void as usize);
        self.lost += void;
    }

    fn skip(&mut self, oldest: u64) {
        if oldest > self.next {
            self.lost += oldest - self.next;
            self.next = oldest;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nobody has a reference into it.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::OwnedFd;

    /// A ring in memory of this process, with this head; record n has n as its time.
    fn ring(head: u64) -> (File, Ring) {
        // SAFETY: the name is terminated, and the flags are none.
        let fd = unsafe { libc::memfd_create(c"ring".as_ptr(), 0) };
        assert!(fd >= 0);
        // SAFETY: a new descriptor, which nobody else owns.
        let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut words = vec![0u64; FIRST + 64 * WORDS];
        words[..6].copy_from_slice(&[MAGIC, 64 << 32 | 64, 0, 0, 3, 1000]);
        words[2] = head;
        for n in head.saturating_sub(64)..head {
            words[FIRST + (n % 64) as usize * WORDS] = n;
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        file.write_all(&bytes).unwrap();
        let ring = Ring::map(&file, 64).unwrap();
        (file, ring)
    }

    fn times(ring: &mut Ring) -> Vec<u64> {
        let mut records = Vec::new();
        ring.read(&mut records);
        records.iter().map(|record| record.tsc).collect()
    }

    #[test]
    fn reads_what_is_new_and_counts_what_is_lost() {
        let (_file, mut three) = ring(3);
        assert_eq!((three.vcpu, three.tsc_khz), (3, 1000));
        assert_eq!(times(&mut three), [0, 1, 2]);
        assert!(times(&mut three).is_empty());
        let (_file, mut many) = ring(200);
        // The place of record 136 may be in use for record 200.
        assert_eq!(times(&mut many), (137..200).collect::<Vec<_>>());
        assert_eq!(many.lost, 137);
    }

    #[test]
    fn another_file_is_refused() {
        let (file, _) = ring(0);
        assert!(Ring::map(&file, 128).is_err());
    }

    #[test]
    fn fields() {
        let words = [
            1,
            2,
            3,
            4,
            0x6_0000_0005,
            0x0008_0007_0304_0901,
            0x2_8000_0202,
            0xb_0000_000a,
        ];
        let record = Record::of(words);
        assert!(record.is_exit());
        assert_eq!((record.cycles, record.guest), (5, 6));
        assert_eq!((record.class, record.decision, record.path), (9, 4, 3));
        assert_eq!((record.cpu, record.flags), (7, 8));
        assert_eq!((record.inject, record.error_code), (0x8000_0202, 2));
        assert_eq!((record.reason, record.detail), (10, 11));
    }
}
