// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm list`: the virtual machines of this host, on rvmm and on KVM, whoever started them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rvmm_vm::{size, DEFAULT_DEVICE};

use crate::processes::{descriptors, processes};
use crate::status::{say, Status};

/// Longest command that is shown whole.
const COMMAND: usize = 60;
/// KVM's device number, 10:232.
const KVM: u64 = libc::makedev(10, 232);

/// A process with virtual machines.
struct Owner {
    pid: u32,
    machines: usize,
    vcpus: usize,
    device: String,
    resident: Option<u64>,
    command: String,
}

/// Runs the command.
pub fn main() -> Status {
    let mut hidden = false;
    let mut owners = Vec::new();
    for pid in processes() {
        match descriptors(pid) {
            Ok(found) => owners.extend(owner(pid, &found)),
            Err(error) => hidden |= error.kind() == std::io::ErrorKind::PermissionDenied,
        }
    }
    if owners.is_empty() {
        println!("no virtual machine runs");
    } else {
        println!(
            "{:>8}  {:>3} {:>5} {:>8}  {:10}  COMMAND",
            "PID", "VMS", "VCPUS", "RESIDENT", "DEVICE"
        );
    }
    for owner in owners {
        println!(
            "{:>8}  {:>3} {:>5} {:>8}  {:10}  {}",
            owner.pid,
            owner.machines,
            owner.vcpus,
            owner
                .resident
                .map_or("?".into(), |bytes| size::show(bytes >> 20 << 20)),
            owner.device,
            owner.command
        );
    }
    if hidden {
        say!("rvmm: processes of other users are not looked at: root sees all");
    }
    Status::Done
}

/// What a process has of virtual machines, if it has one.
fn owner(pid: u32, found: &[(i32, PathBuf)]) -> Option<Owner> {
    // A descriptor may be there several times, and of a vCPU the mapping alone.
    let links = || found.iter().filter_map(|(_, link)| link.to_str());
    let machines = links().filter(|link| is(link, "kvm-vm")).count();
    let vcpus = links().filter(|link| is(link, "kvm-vcpu")).count();
    if machines == 0 {
        return None;
    }
    let device = found.iter().find_map(|(fd, _)| {
        let device = fs::metadata(format!("/proc/{pid}/fd/{fd}")).ok()?.rdev();
        let rvmm = fs::metadata(DEFAULT_DEVICE).ok().map(|about| about.rdev());
        if Some(device) == rvmm {
            Some(DEFAULT_DEVICE)
        } else if device == KVM {
            Some("/dev/kvm")
        } else {
            None
        }
    });
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    Some(Owner {
        pid,
        machines,
        vcpus,
        device: device.unwrap_or("?").into(),
        resident: resident(&status),
        command: command(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()),
    })
}

/// Whether a link is to an anonymous file of this name, numbered or not.
fn is(link: &str, kind: &str) -> bool {
    let name = link.strip_prefix("anon_inode:").unwrap_or_default();
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.split_once(':').map_or(name, |(name, _)| name) == kind
}

/// Bytes in memory, from `/proc/PID/status`.
fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// A command line for people: what could do something to a terminal is left out.
fn command(words: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(words)
        .trim_end_matches('\0')
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    match text.char_indices().nth(COMMAND) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_and_vcpus_of_a_process() {
        let links = [
            "/dev/null",
            "anon_inode:kvm-vm",
            "anon_inode:kvm-vcpu:0",
            "anon_inode:[kvm-vcpu:1]",
            "anon_inode:kvm-vm-stats",
            "anon_inode:kvm-vcpu-stats:0",
        ];
        let found = links.map(|link| (0, PathBuf::from(link)));
        let owner = owner(std::process::id(), &found).unwrap();
        assert_eq!((owner.machines, owner.vcpus), (1, 2));
        assert!(owner.resident.is_some_and(|bytes| bytes > 0));
        assert!(!owner.command.is_empty());
        assert!(super::owner(1, &found[..1]).is_none());
    }

    #[test]
    fn commands_are_harmless() {
        assert_eq!(command(b"rvmm\0run\0\x1b[2J\0"), "rvmm run  [2J");
        let long = command(&[b'x'; 1000]);
        assert_eq!(long.len(), COMMAND + 3);
    }
}
