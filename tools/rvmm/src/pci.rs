// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm pci`: which devices of the host a guest can have, and who has them, by sysfs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rvmm_vm::pci::Address;

use crate::refused;
use crate::status::Status;

/// The driver of the module.
const DRIVER: &str = "rvmm";
const BUS: &str = "/sys/bus/pci";

/// Options of `rvmm pci`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show devices, their IOMMU groups and drivers, and why one cannot be given to a guest; and which of
    /// them the IOMMU has refused accesses, as far as the kernel's log tells.
    List,
    /// Take a device from its driver, for guests.
    Bind {
        /// PCI address, such as 0000:00:04.0.
        address: Address,
    },
    /// Give a device back to its driver.
    Unbind {
        /// PCI address.
        address: Address,
    },
}

/// Runs the command.
pub fn main(args: &Args) -> Status {
    let done = match &args.command {
        Command::List => list(Path::new(BUS)).map(|text| {
            print!("{text}");
            // The log may be root's.
            for (device, what) in refused::by_device().unwrap_or_default() {
                println!(
                    "{device}: DMA refused, lines in the kernel's log: {}; the last one: {} {:#x}",
                    what.lines,
                    if what.write { "write to" } else { "read of" },
                    what.address
                );
            }
        }),
        Command::Bind { address } => bind(Path::new(BUS), &address.to_string()),
        Command::Unbind { address } => unbind(Path::new(BUS), &address.to_string()),
    };
    match done {
        Ok(()) => Status::Done,
        Err(error) => {
            eprintln!("rvmm: {error}");
            Status::Refused
        }
    }
}

/// Last part of what a link in a device's directory points at.
fn link(device: &Path, name: &str) -> Option<String> {
    let target = fs::read_link(device.join(name)).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

fn text(device: &Path, name: &str) -> String {
    fs::read_to_string(device.join(name)).map_or_else(|_| String::new(), |t| t.trim().to_owned())
}

/// Names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

/// Drivers that do no DMA of their own: a group may have their devices (bridges).
fn is_harmless(driver: &str) -> bool {
    matches!(driver, DRIVER | "pcieport" | "vfio-pci" | "pci-stub")
}

/// Why a guest cannot have the device, or what there is to do first.
fn verdict(bus: &Path, device: &Path) -> String {
    if text(device, "class").starts_with("0x06") {
        return "a bridge".into();
    }
    if link(device, "iommu_group").is_none() {
        return "no IOMMU (intel_iommu=on, amd_iommu=on)".into();
    }
    let others: Vec<String> = names(&device.join("iommu_group/devices"))
        .into_iter()
        .filter(|name| Some(name.as_str()) != device.file_name().and_then(|n| n.to_str()))
        .filter_map(|name| {
            let driver = link(&bus.join("devices").join(&name), "driver")?;
            (!is_harmless(&driver)).then(|| format!("{name} ({driver})"))
        })
        .collect();
    if !others.is_empty() {
        return format!("shares its group with {}", others.join(", "));
    }
    match link(device, "driver").as_deref() {
        Some(DRIVER) => "ready".into(),
        Some(_) => "in use by the host; `rvmm pci bind` takes it".into(),
        None => "free; `rvmm pci bind` takes it".into(),
    }
}

fn list(bus: &Path) -> io::Result<String> {
    let mut lines = format!(
        "{:12}  {:9}  {:8}  {:>5}  {:12}  {}\n",
        "address", "device", "class", "group", "driver", "for a guest"
    );
    let directory = bus.join("devices");
    fs::metadata(&directory)?;
    for name in names(&directory) {
        let device = directory.join(&name);
        let hex = |file| text(&device, file).trim_start_matches("0x").to_owned();
        lines.push_str(&format!(
            "{:12}  {:9}  {:8}  {:>5}  {:12}  {}\n",
            name,
            format!("{}:{}", hex("vendor"), hex("device")),
            hex("class"),
            link(&device, "iommu_group").unwrap_or_else(|| "-".into()),
            link(&device, "driver").unwrap_or_else(|| "-".into()),
            verdict(bus, &device)
        ));
    }
    Ok(lines)
}

fn write(path: PathBuf, value: &str) -> io::Result<()> {
    fs::write(&path, value)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn directory(bus: &Path, name: &str) -> io::Result<PathBuf> {
    let device = bus.join("devices").join(name);
    if device.exists() {
        Ok(device)
    } else {
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no PCI device {name}"),
        ))
    }
}

/// Makes `driver` the one that gets the device next, any one if empty, and lets it have it.
fn give(bus: &Path, device: &Path, name: &str, driver: &str) -> io::Result<()> {
    write(device.join("driver_override"), &format!("{driver}\n"))?;
    if link(device, "driver").is_some() {
        write(device.join("driver/unbind"), name)?;
    }
    write(bus.join("drivers_probe"), name)
}

fn bind(bus: &Path, name: &str) -> io::Result<()> {
    let device = directory(bus, name)?;
    if !bus.join("drivers").join(DRIVER).exists() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the module is not loaded: sudo insmod rvmm.ko",
        ));
    }
    if link(&device, "driver").as_deref() == Some(DRIVER) {
        return Ok(());
    }
    give(bus, &device, name, DRIVER)?;
    match link(&device, "driver").as_deref() {
        Some(DRIVER) => Ok(()),
        other => Err(io::Error::other(format!(
            "{name} was not bound (driver: {}); `sudo dmesg | tail` may say more",
            other.unwrap_or("none")
        ))),
    }
}

fn unbind(bus: &Path, name: &str) -> io::Result<()> {
    let device = directory(bus, name)?;
    match link(&device, "driver").as_deref() {
        Some(DRIVER) => give(bus, &device, name, ""),
        other => Err(io::Error::other(format!(
            "{name} is not {DRIVER}'s (driver: {})",
            other.unwrap_or("none")
        ))),
    }
}

/// A device that was taken from its driver for one in this program's hands, and goes back in the end.
pub struct Taken(Address);

impl Taken {
    /// Binds the device to `driver`.
    pub fn by(address: Address, driver: &str) -> io::Result<Self> {
        let (bus, name) = (Path::new(BUS), address.to_string());
        let device = directory(bus, &name)?;
        let this = Self(address);
        give(bus, &device, &name, driver)?;
        match link(&device, "driver") {
            Some(now) if now == driver => Ok(this),
            now => Err(io::Error::other(format!(
                "{name} was not bound to {driver} (driver: {})",
                now.as_deref().unwrap_or("none")
            ))),
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let (bus, name) = (Path::new(BUS), self.0.to_string());
        let back = directory(bus, &name).and_then(|device| give(bus, &device, &name, ""));
        if let Err(error) = back {
            eprintln!("rvmm: {name} was not given back: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn verdicts() {
        let bus = std::env::temp_dir().join(format!("rvmm-pci-{}", std::process::id()));
        let add = |name: &str, class: &str, group: Option<&str>, driver: Option<&str>| {
            let device = bus.join("devices").join(name);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("class"), format!("{class}\n")).unwrap();
            if let Some(group) = group {
                let members = bus.join("groups").join(group).join("devices");
                fs::create_dir_all(&members).unwrap();
                fs::write(members.join(name), "").unwrap();
                symlink(bus.join("groups").join(group), device.join("iommu_group")).unwrap();
            }
            if let Some(driver) = driver {
                symlink(bus.join("drivers").join(driver), device.join("driver")).unwrap();
            }
        };
        add("0000:00:00.0", "0x060000", Some("0"), None);
        add("0000:00:01.0", "0x00ff00", Some("1"), Some("rvmm"));
        add("0000:00:02.0", "0x010802", Some("2"), Some("nvme"));
        add("0000:00:1f.2", "0x010601", Some("3"), Some("ahci"));
        add("0000:00:1f.3", "0x0c0500", Some("3"), None);
        add("0000:01:00.0", "0x020000", None, None);
        let of = |name: &str| verdict(&bus, &bus.join("devices").join(name));
        assert_eq!(of("0000:00:00.0"), "a bridge");
        assert_eq!(of("0000:00:01.0"), "ready");
        assert!(of("0000:00:02.0").starts_with("in use"));
        assert!(of("0000:00:1f.2").starts_with("in use"));
        assert_eq!(
            of("0000:00:1f.3"),
            "shares its group with 0000:00:1f.2 (ahci)"
        );
        assert!(of("0000:01:00.0").starts_with("no IOMMU"));
        assert_eq!(list(&bus).unwrap().lines().count(), 7);
        fs::remove_dir_all(&bus).unwrap();
    }
}
