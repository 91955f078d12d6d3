// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm stat`: the exit ledger of running machines, any process's that keeps statistics
//! descriptors open.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;

use rvmm_vm::stats;

use crate::processes::{copy, descriptors, processes, same_file};
use crate::status::{say, Status};

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
        let found = match statistics(pid) {
            Ok(found) => found,
            Err(error) if wanted.is_some() => {
                say!("rvmm: process {pid}: {error}");
                if error.kind() == io::ErrorKind::PermissionDenied {
                    say!("      only its owner and root may look: sudo rvmm stat {pid}");
                }
                return Status::Other;
            }
            Err(_) => continue,
        };
        for (name, file) in found {
            match file.and_then(|file| stats::read(&file)) {
                Ok(stats) => {
                    println!("process {pid} {name}: {}", stats::table(&stats));
                    shown += 1;
                }
                Err(error) => {
                    say!("rvmm: process {pid} {name}: {error}");
                    if error.kind() == io::ErrorKind::PermissionDenied {
                        say!("      copying its descriptor takes the right to trace it: sudo");
                    }
                }
            }
        }
    }
    if shown == 0 {
        match wanted {
            Some(pid) => say!("rvmm: process {pid} shows no statistics (see `rvmm run`)"),
            None => say!("rvmm: no process shows statistics of a virtual machine"),
        }
        return Status::Other;
    }
    Status::Done
}

/// Names and copies of the statistics descriptors of a process, one for each file.
fn statistics(pid: u32) -> io::Result<Vec<(String, io::Result<File>)>> {
    let mut found: Vec<(String, RawFd)> = descriptors(pid)?
        .into_iter()
        .filter_map(|(fd, link)| Some((statistics_name(link.to_str()?)?.to_owned(), fd)))
        .collect();
    found.sort_by(|a, b| order(&a.0).cmp(&order(&b.0)));
    found.dedup_by(|a, b| a.0 == b.0 && same_file(pid, a.1, b.1));
    Ok(found
        .into_iter()
        .map(|(name, fd)| (name, copy(pid, fd)))
        .collect())
}

/// `kvm-vm-stats`, or `kvm-vcpu-stats:3`, from the link of a statistics descriptor.
fn statistics_name(link: &str) -> Option<&str> {
    let name = link.strip_prefix("anon_inode:")?;
    let name = name.trim_start_matches('[').trim_end_matches(']');
    (name.ends_with("-vm-stats") || name.contains("-vcpu-stats:")).then_some(name)
}

/// Machines before vCPUs, and these by their numbers.
fn order(name: &str) -> (bool, &str, u32) {
    let (kind, number) = name.split_once(':').unwrap_or((name, ""));
    let number = number.parse().ok();
    (number.is_some(), kind, number.unwrap_or(0))
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
            statistics_name("anon_inode:[kvm-vcpu-stats:12]"),
            Some("kvm-vcpu-stats:12")
        );
        for other in [
            "anon_inode:kvm-vm",
            "anon_inode:kvm-vcpu:0",
            "anon_inode:kvm-vcpu-stats",
            "/dev/null",
            "anon_inode:[eventfd]",
        ] {
            assert_eq!(statistics_name(other), None);
        }
    }

    #[test]
    fn numbers_are_in_order() {
        let mut names = [
            "kvm-vcpu-stats:10",
            "kvm-vcpu-stats:2",
            "kvm-vm-stats",
            "kvm-vcpu-stats:0",
        ];
        names.sort_by(|a, b| order(a).cmp(&order(b)));
        assert_eq!(
            names,
            [
                "kvm-vm-stats",
                "kvm-vcpu-stats:0",
                "kvm-vcpu-stats:2",
                "kvm-vcpu-stats:10"
            ]
        );
    }
}
