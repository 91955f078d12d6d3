// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm stat`: the exit ledger of running machines, any process's that keeps statistics
//! descriptors open.

use std::fs::{self, File};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rvmm_vm::stats;

use crate::status::Status;

/// Options of `rvmm stat`.
#[derive(clap::Args)]
pub struct Args {
    /// Process that runs the machine; every process that has statistics open if not given.
    #[arg(value_name = "PID")]
    pid: Option<u32>,
    /// Process that runs the machine, as by a positional PID.
    #[arg(long = "pid", value_name = "PID", conflicts_with = "pid")]
    pid_option: Option<u32>,
}

/// Runs the command.
pub fn main(args: &Args) -> Status {
    let wanted = args.pid.or(args.pid_option);
    let mut shown = 0;
    for pid in wanted.map_or_else(processes, |pid| vec![pid]) {
        let found = match descriptors(pid) {
            Ok(found) => found,
            Err(error) if wanted.is_some() => {
                eprintln!("rvmm: process {pid}: {error}");
                if error.kind() == io::ErrorKind::PermissionDenied {
                    eprintln!("      only its owner and root may look: sudo rvmm stat {pid}");
                }
                return Status::Other;
            }
            Err(_) => continue,
        };
        for (name, fd) in found {
            match copy(pid, fd).and_then(|file| stats::read(&file)) {
                Ok(stats) => {
                    println!("process {pid} {name}: {}", stats::table(&stats));
                    shown += 1;
                }
                Err(error) => {
                    eprintln!("rvmm: process {pid} {name}: {error}");
                    if error.kind() == io::ErrorKind::PermissionDenied {
                        eprintln!("      copying its descriptor takes the right to trace it: sudo");
                    }
                }
            }
        }
    }
    if shown == 0 {
        match wanted {
            Some(pid) => eprintln!("rvmm: process {pid} shows no statistics (see `rvmm run`)"),
            None => eprintln!("rvmm: no process shows statistics of a virtual machine"),
        }
        return Status::Other;
    }
    Status::Done
}

fn processes() -> Vec<u32> {
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

/// Name and number of the statistics descriptors of a process.
fn descriptors(pid: u32) -> io::Result<Vec<(String, RawFd)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let Some(name) = target.to_str().and_then(statistics_name) else {
            continue;
        };
        if let Some(fd) = entry
            .file_name()
            .to_str()
            .and_then(|number| number.parse().ok())
        {
            found.push((name.to_owned(), fd));
        }
    }
    found.sort();
    // One table each, however often the descriptor was duplicated.
    found.dedup_by(|a, b| a.0 == b.0);
    Ok(found)
}

/// `vm` or `vcpu 3` from the link of a statistics descriptor, such as
/// `anon_inode:kvm-vcpu-stats:3`.
fn statistics_name(link: &str) -> Option<&str> {
    let name = link.strip_prefix("anon_inode:")?;
    let name = name.trim_start_matches('[').trim_end_matches(']');
    (name.ends_with("-vm-stats") || name.contains("-vcpu-stats:")).then_some(name)
}

/// Copies a descriptor of another process.
fn copy(pid: u32, fd: RawFd) -> io::Result<File> {
    // SAFETY: the system call takes two numbers and returns a new descriptor or -1.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let process = owned(process)?;
    use std::os::fd::AsRawFd;
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
    fn names_of_statistics_descriptors() {
        assert_eq!(
            statistics_name("anon_inode:kvm-vm-stats"),
            Some("kvm-vm-stats")
        );
        assert_eq!(
            statistics_name("anon_inode:[rvmm-vcpu-stats:12]"),
            Some("rvmm-vcpu-stats:12")
        );
        for other in [
            "anon_inode:kvm-vm",
            "anon_inode:kvm-vcpu:0",
            "/dev/null",
            "anon_inode:[eventfd]",
        ] {
            assert_eq!(statistics_name(other), None);
        }
    }

    #[test]
    fn copies_an_own_descriptor() {
        use std::os::fd::AsRawFd;
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
}
