// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory of this process that a guest or a device may be given.

use std::io;
use std::ptr;

/// An anonymous mapping, aligned to 2 MiB.
pub struct Region {
    base: *mut u8,
    length: usize,
    mapped: (*mut libc::c_void, usize),
}

// SAFETY: No method with a shared reference changes a field or writes to the mapping but through the kernel, which
// excludes its own callers; what a guest writes meanwhile is read by volatile accesses.
unsafe impl Sync for Region {}

impl Region {
    const ALIGN: usize = 2 << 20;

    /// Maps `length` bytes, small pages only or large ones wherever possible, all resident.
    pub fn new(length: usize, large: bool) -> io::Result<Self> {
        let region = Self::reserve(length)?;
        region.advise(if large {
            libc::MADV_HUGEPAGE
        } else {
            libc::MADV_NOHUGEPAGE
        })?;
        region.populate()?;
        Ok(region)
    }

    /// Maps `length` bytes of addresses; no page is there yet.
    pub fn reserve(length: usize) -> io::Result<Self> {
        let total = length + Self::ALIGN;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                total,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let pad = (mapped as usize).next_multiple_of(Self::ALIGN) - mapped as usize;
        // SAFETY: `pad` is less than `ALIGN`, by which the mapping is longer than `length`.
        let base = unsafe { mapped.cast::<u8>().add(pad) };
        Ok(Self {
            base,
            length,
            mapped: (mapped, total),
        })
    }

    /// Maps a page of 1 GiB (hugetlb), resident.
    pub fn gigabyte() -> io::Result<Self> {
        let length = 1 << 30;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_1GB,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let region = Self {
            base: mapped.cast(),
            length,
            mapped: (mapped, length),
        };
        region.populate()?;
        Ok(region)
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range lies within the mapping made above, to which no reference exists. No guest or device but
        // the benchmark's own uses it, and these bear changes.
        match unsafe { libc::madvise(self.base.cast(), self.length, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Makes all of it resident.
    pub fn populate(&self) -> io::Result<()> {
        self.advise(libc::MADV_POPULATE_WRITE)
    }

    /// Gives all its pages back to the kernel: it reads as zeros then.
    pub fn discard(&self) -> io::Result<()> {
        self.advise(libc::MADV_DONTNEED)
    }

    /// Whether the kernel really gave large pages for all of it.
    pub fn is_large(&self) -> bool {
        let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else {
            return false;
        };
        large_bytes(
            &maps,
            self.base as u64,
            self.base as u64 + self.length as u64,
        ) >= self.length as u64
    }

    /// Where the region is in this process.
    pub fn address(&self) -> u64 {
        self.base as u64
    }

    /// Bytes of the region.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Copies bytes to an offset.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let at = at as usize;
        assert!(at + bytes.len() <= self.length, "beyond the region");
        // SAFETY: the range was just checked, and no reference into the region exists.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(at), bytes.len()) };
    }

    /// Eight bytes at an offset.
    pub fn read_u64(&self, at: u64) -> u64 {
        let at = at as usize;
        assert!(at + 8 <= self.length, "beyond the region");
        // SAFETY: in range by the check; volatile because a guest wrote it.
        unsafe { self.base.add(at).cast::<u64>().read_volatile() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`, which nothing refers to any more: the VM that
        // used it is closed before (field order in `Machine`), and a hypervisor follows unmapping.
        unsafe { libc::munmap(self.mapped.0, self.mapped.1) };
    }
}

/// Bytes in large pages of the mappings that overlap `start..end`, from the text of a `smaps` file.
fn large_bytes(maps: &str, start: u64, end: u64) -> u64 {
    let mut inside = false;
    let mut total = 0;
    for line in maps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((from, to)) = first.split_once('-') {
            let range = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16));
            inside = matches!(range, (Ok(from), Ok(to)) if from < end && to > start);
        } else if inside && first == "AnonHugePages:" {
            let kib = line
                .split_whitespace()
                .nth(1)
                .and_then(|text| text.parse::<u64>().ok());
            total += kib.unwrap_or(0) << 10;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaps_are_summed_by_range() {
        let maps = "1000-3000 rw-p 0 0 0\nSize: 8 kB\nAnonHugePages:   2048 kB\n\
                    3000-4000 rw-p 0 0 0\nAnonHugePages:   4096 kB\n";
        assert_eq!(large_bytes(maps, 0x1000, 0x3000), 2 << 20);
        assert_eq!(large_bytes(maps, 0x2000, 0x3800), 6 << 20);
        assert_eq!(large_bytes(maps, 0x4000, 0x5000), 0);
    }

    #[test]
    fn regions_are_aligned_and_resident() {
        let mut region = Region::new(1 << 20, false).unwrap();
        assert_eq!(region.base as usize % Region::ALIGN, 0);
        region.write(8, &7u64.to_le_bytes());
        assert_eq!(region.read_u64(8), 7);
        assert!(!region.is_large());
    }
}
