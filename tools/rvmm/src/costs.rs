// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm check --root`: what the instructions cost of which entering a guest is made, on this machine.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use rvmm_vm::{sys, vm};

use crate::status::{self, Status};

/// Runs the command.
pub fn main(device: &Path) -> Status {
    match measure(device) {
        Ok(text) => {
            print!("{text}");
            Status::Done
        }
        Err(error) => match error.downcast_ref::<rvmm_vm::Error>() {
            Some(error) => status::report(error),
            None => {
                eprintln!("rvmm: {error:#}");
                Status::Refused
            }
        },
    }
}

/// Times one instruction after the other, and gives the table.
fn measure(device: &Path) -> anyhow::Result<String> {
    let kvm = vm::open(device)?;
    let machine = vm::create_vm(&kvm)?;
    let vcpu = machine.create_vcpu(0).context("no vCPU")?;
    let khz = vcpu.get_tsc_khz().unwrap_or(0);
    let mut text = format!(
        "TSC: {khz} kHz. Ticks, of which the row \"nothing\" is the looking at the clock.\n\
         {:<24} {:>7} {:>10} {:>10} {:>10}\n",
        "instruction", "rounds", "minimum", "median", "maximum"
    );
    for index in 0.. {
        let cost = match sys::root_cost(&vcpu, index) {
            Ok(cost) => cost,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(refused(device, error)),
        };
        text.push_str(&row(&cost.name, cost.ticks));
    }
    Ok(text)
}

/// The error of the ioctl, with what to do about it.
fn refused(device: &Path, error: std::io::Error) -> anyhow::Error {
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM) => "only root may measure: sudo rvmm check --root",
        Some(libc::ENOTTY | libc::EINVAL) => "this is not rvmm's device, or an older module",
        Some(libc::EBUSY | libc::EIO) => {
            "virtualisation cannot be had on this CPU; `sudo dmesg | tail` says why"
        }
        _ => "try again",
    };
    anyhow::Error::new(error).context(format!("{}: {remedy}", device.display()))
}

/// A line of the table.
fn row(name: &str, mut ticks: Vec<u32>) -> String {
    ticks.sort_unstable();
    let mut text = format!("{name:<24} {:>7}", ticks.len());
    match (ticks.first(), ticks.get(ticks.len() / 2), ticks.last()) {
        (Some(min), Some(median), Some(max)) => {
            let _ = writeln!(text, " {min:>10} {median:>10} {max:>10}");
        }
        _ => text.push_str("  not on this CPU, or not rvmm's to execute\n"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let words =
            |text: String| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        assert_eq!(
            words(row("VMXON", vec![30, 10, 20])),
            ["VMXON", "3", "10", "20", "30"]
        );
        assert!(row("VMXON", vec![]).contains("not on this CPU"));
    }

    #[test]
    fn refusals_say_what_to_do() {
        let error = |number| {
            let error = std::io::Error::from_raw_os_error(number);
            format!("{:#}", refused(Path::new("/dev/rvmm"), error))
        };
        assert!(error(libc::EPERM).contains("sudo"));
        assert!(error(libc::EBUSY).contains("dmesg"));
    }
}
