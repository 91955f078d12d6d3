// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Other processes and their descriptors, by procfs.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

/// All processes, by number.
pub fn processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut pids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

/// The descriptors of a process, by number, and what they lead to.
///
/// # Errors
///
/// That of reading the directory: no process, or no permission.
pub fn descriptors(pid: u32) -> io::Result<Vec<(RawFd, PathBuf)>> {
    let mut found: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))?
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?))
        })
        .collect();
    found.sort();
    Ok(found)
}

/// Whether two descriptors of a process lead to one open file. Where that cannot be known they do not.
pub fn same_file(pid: u32, one: RawFd, other: RawFd) -> bool {
    /// `KCMP_FILE`.
    const FILE: libc::c_int = 0;
    // SAFETY: the system call takes five numbers, and compares.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, FILE, one, other) == 0 }
}

/// Copies a descriptor of another process.
///
/// # Errors
///
/// Those of `pidfd_open(2)` and `pidfd_getfd(2)`: it takes the right to trace the process.
pub fn copy(pid: u32, fd: RawFd) -> io::Result<File> {
    // SAFETY: the system call takes two numbers and returns a new descriptor or -1.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let process = owned(process)?;
    // SAFETY: as above, with three numbers.
    let file = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    owned(file).map(File::from)
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a system call just returned this as a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_an_own_descriptor() {
        let file = File::open("/dev/null").unwrap();
        let copied = copy(std::process::id(), file.as_raw_fd());
        // A container may forbid the call altogether.
        if let Err(error) = &copied {
            assert!(
                matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)),
                "{error}"
            );
        }
    }

    #[test]
    fn own_descriptors() {
        let pid = std::process::id();
        assert!(processes().contains(&pid));
        let file = File::open("/dev/null").unwrap();
        let again = file.try_clone().unwrap();
        let other = File::open("/dev/null").unwrap();
        let found = descriptors(pid).unwrap();
        let link = PathBuf::from("/dev/null");
        assert!(found.contains(&(file.as_raw_fd(), link)));
        let same = |other: &File| same_file(pid, file.as_raw_fd(), other.as_raw_fd());
        assert!(!same(&other));
        // As above.
        if !same(&again) {
            let error = io::Error::last_os_error().raw_os_error();
            assert!(matches!(error, Some(libc::EPERM | libc::ENOSYS)));
        }
    }
}
