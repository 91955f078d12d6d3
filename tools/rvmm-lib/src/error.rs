// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What can go wrong before a guest runs, each with its cause and, where there is one, a remedy.

use std::io;
use std::path::{Path, PathBuf};

const ARM64: bool = cfg!(target_arch = "aarch64");

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a virtual machine could not be made or kept running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device node could not be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The device node.
        path: PathBuf,
        /// The error of `open(2)`.
        source: io::Error,
    },
    /// The node is not a hypervisor with KVM's ABI.
    #[error("{} answers KVM_GET_API_VERSION with {version}, not 12", path.display())]
    Version {
        /// The device node.
        path: PathBuf,
        /// What it answered; negative is an error number.
        version: i32,
    },
    /// The hypervisor lacks something the launcher cannot do without.
    #[error("{} lacks {what}", path.display())]
    Missing {
        /// The device node.
        path: PathBuf,
        /// The capability in KVM's words.
        what: &'static str,
    },
    /// More CPUs than the hypervisor or the boot tables carry.
    #[error("{wanted} CPUs wanted, {} takes 1 to {most}", path.display())]
    Cpus {
        /// The device node.
        path: PathBuf,
        /// CPUs asked for.
        wanted: usize,
        /// CPUs possible.
        most: usize,
    },
    /// An ioctl of the hypervisor failed.
    #[error("{call} failed: {}", io::Error::from_raw_os_error(*errno))]
    Ioctl {
        /// The ioctl's name.
        call: &'static str,
        /// The ioctl's error number.
        errno: i32,
    },
    /// The hypervisor took fewer model-specific registers than it was given.
    #[error("KVM_SET_MSRS refused MSR {index:#x}")]
    Msr {
        /// The first register refused.
        index: u32,
    },
    /// Guest memory could not be allocated or has an impossible size.
    #[error("cannot give the guest {} of memory: {cause}", crate::size::show(*size))]
    Memory {
        /// Bytes asked for.
        size: u64,
        /// Why not.
        cause: String,
    },
    /// The guest cannot have as much memory, or as little, or so odd an amount.
    #[error("cannot give the guest {} of memory: it takes {} to {} here, in whole pages of 4K",
            crate::size::show(*wanted), crate::size::show(*least), crate::size::show(*most))]
    MemorySize {
        /// Bytes asked for.
        wanted: u64,
        /// Fewest bytes possible.
        least: u64,
        /// Most bytes possible.
        most: u64,
    },
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The kernel image is not one that can be started.
    #[error("{} is not a kernel that can be started here: {cause}", path.display())]
    Kernel {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// Kernel, initrd and working space do not fit into the guest's memory.
    #[error("{what} does not fit: needs memory up to {}, the guest has {}",
            crate::size::show(*needs), crate::size::show(*has))]
    TooSmall {
        /// What does not fit.
        what: &'static str,
        /// Bytes of memory needed, as far as the launcher can tell.
        needs: u64,
        /// Bytes of memory below the hole.
        has: u64,
    },
    /// The kernel command line cannot be passed on.
    #[error("kernel command line: {0}")]
    Cmdline(String),
    /// A device of the host could not be handed to the guest.
    #[error("cannot give the guest {address}: {}",
            if reason.is_empty() { io::Error::from_raw_os_error(*errno).to_string() } else { reason.clone() })]
    Assign {
        /// The device's PCI address.
        address: String,
        /// The hypervisor's sentence, empty where it has none.
        reason: String,
        /// The hypervisor's error number.
        errno: i32,
    },
    /// A saved machine has CPUs that are not to be had here.
    #[error("the machine was saved with {what}, which is not to be had here")]
    OtherCpu {
        /// What its CPUs have.
        what: String,
    },
    /// The devices of a saved machine cannot be made again.
    #[error("the saved machine's devices are not those that this launcher makes")]
    OtherDevices,
    /// Virtio devices and devices of the host in one machine.
    #[error("a machine has either disks and other virtio devices, or PCI devices of the host")]
    OneBus,
    /// Something that there is on x86 alone so far.
    #[error("machines on Arm64 have no {what} yet")]
    NotOnArm {
        /// What it is.
        what: &'static str,
        /// What to do without it.
        remedy: &'static str,
    },
    /// A disk could not be opened.
    #[error("cannot use {} as a disk: {cause}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// What is behind a device of the guest's could not be had.
    #[error("{what}: {source}")]
    Device {
        /// What it is.
        what: String,
        /// The error of the system.
        source: io::Error,
    },
    /// Anything the operating system refused.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn ioctl(call: &'static str) -> impl FnOnce(vmm_sys_util::errno::Error) -> Error {
        move |error| Error::Ioctl {
            call,
            errno: error.errno(),
        }
    }

    pub(crate) fn os(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Os { what, source }
    }

    /// What a user can do about it, as one or more complete lines.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Error::Open { path, source } => Some(open_remedy(path, source)),
            Error::Version { path, .. } => Some(format!(
                "{} is another kind of device; give the right one with --device",
                path.display()
            )),
            Error::Missing { path, .. } if is_rvmm(path) => {
                Some("rvmm.ko is older than this launcher: rebuild and reload the module".into())
            }
            Error::Missing { .. } => Some("use a newer kernel, or --device /dev/rvmm".into()),
            Error::Cpus { wanted: 0, .. } => Some("use --cpus 1 or more".into()),
            Error::Cpus { most, .. } => Some(format!("use --cpus {most} or fewer")),
            Error::MemorySize {
                wanted,
                least,
                most,
            } => Some(memory_remedy(*wanted, *least, *most)),
            Error::Memory { .. } => {
                Some("give less with --memory, or free memory on the host (see `free -m`)".into())
            }
            Error::Kernel { .. } if ARM64 => {
                Some("give an Image of Arm64, such as Debian's /boot/vmlinuz-*-arm64".into())
            }
            Error::Kernel { .. } => {
                Some("give an x86 bzImage, such as Debian's /boot/vmlinuz-*, or a 64-bit vmlinux".into())
            }
            Error::TooSmall { needs, .. } => Some(format!(
                "give more memory: --memory {}M",
                needs.div_ceil(1 << 20).next_multiple_of(64)
            )),
            Error::Ioctl { errno, .. } if *errno == libc::ENOMEM => {
                Some("free memory on the host (see `free -m`)".into())
            }
            Error::Ioctl {
                call: "KVM_CREATE_VM",
                errno,
            } if *errno == libc::EBUSY => {
                Some("another hypervisor owns the CPU's virtualisation: see `rvmm check`".into())
            }
            Error::Ioctl { .. } | Error::Msr { .. } => {
                Some("`sudo dmesg | tail` may say more".into())
            }
            Error::Assign { errno, .. } if *errno == libc::ENOTTY => {
                Some("devices can be assigned by /dev/rvmm only".into())
            }
            Error::Assign { errno, .. } if *errno == libc::ENOMEM => {
                Some("raise the limit of locked memory (ulimit -l), or give the guest less".into())
            }
            Error::Assign { address, .. } => {
                Some(format!("`rvmm pci list` shows the devices; `rvmm pci bind {address}` takes one from its driver"))
            }
            Error::NotOnArm { remedy, .. } => Some((*remedy).into()),
            Error::OneBus => Some("leave out --pci, or the disks".into()),
            Error::Device { source, .. } if source.raw_os_error() == Some(libc::EPERM) => Some(
                "make the interface as root: ip tuntap add NAME mode tap user $USER".into(),
            ),
            Error::File { .. }
            | Error::Cmdline(_)
            | Error::Disk { .. }
            | Error::Device { .. }
            | Error::OtherCpu { .. }
            | Error::OtherDevices
            | Error::Os { .. } => None,
        }
    }

    /// Whether the host refused: no device, no permission, or not able to do what was asked.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Error::Open { .. }
                | Error::Assign { .. }
                | Error::Version { .. }
                | Error::Missing { .. }
                | Error::Cpus { .. }
                | Error::OtherCpu { .. }
                | Error::NotOnArm { .. }
                | Error::Ioctl {
                    call: "KVM_CREATE_VM",
                    ..
                }
        )
    }
}

fn memory_remedy(wanted: u64, least: u64, most: u64) -> String {
    let show = crate::size::show;
    if wanted > most {
        format!("give less: --memory {} at most", show(most))
    } else if wanted < least {
        "give more, such as --memory 512M (a number without a unit counts bytes)".into()
    } else {
        format!(
            "give whole pages: --memory {}",
            show(wanted.next_multiple_of(4096).min(most))
        )
    }
}

fn is_rvmm(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "rvmm")
}

fn open_remedy(path: &Path, source: &io::Error) -> String {
    let node = path.display();
    match source.raw_os_error() {
        Some(libc::ENOENT) if is_rvmm(path) => {
            "the module is not loaded: sudo insmod rvmm.ko (then `sudo dmesg | tail` says why \
             if it refuses)"
                .into()
        }
        Some(libc::ENOENT) if path == Path::new("/dev/kvm") && ARM64 => {
            "the kernel has no KVM, or kvm-arm.mode=none: `sudo dmesg | grep -i kvm` says more"
                .into()
        }
        Some(libc::ENOENT) if path == Path::new("/dev/kvm") => {
            "stock KVM is not loaded: sudo modprobe kvm_intel (or kvm_amd)".into()
        }
        Some(libc::ENOENT) => format!("there is no {node}; give another node with --device"),
        Some(libc::EACCES | libc::EPERM) => format!(
            "you may not use {node}: join the group that owns it (sudo usermod -aG kvm $USER, then \
             log in again), with this udev rule in place:\n  KERNEL==\"rvmm\", GROUP=\"kvm\", \
             MODE=\"0660\""
        ),
        Some(libc::ENXIO | libc::ENODEV) => {
            format!("{node} is a stale node without a driver: load the module again")
        }
        Some(libc::EBUSY) => {
            "another hypervisor owns the CPU's virtualisation: see `rvmm check`".into()
        }
        _ => "see `rvmm check`".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &str, errno: i32) -> Error {
        Error::Open {
            path: path.into(),
            source: io::Error::from_raw_os_error(errno),
        }
    }

    #[test]
    fn a_missing_node_names_the_module() {
        assert!(open("/dev/rvmm", libc::ENOENT)
            .remedy()
            .unwrap()
            .contains("insmod rvmm.ko"));
        assert!(open("/dev/kvm", libc::ENOENT)
            .remedy()
            .unwrap()
            .contains("modprobe"));
        assert!(open("/dev/rvmm", libc::EACCES)
            .remedy()
            .unwrap()
            .contains("0660"));
        assert!(open("/dev/rvmm", libc::EACCES).is_refusal());
    }

    #[test]
    fn remedies_point_the_right_way() {
        let cpus = |wanted| Error::Cpus {
            path: "/dev/rvmm".into(),
            wanted,
            most: 64,
        };
        assert!(cpus(0).remedy().unwrap().contains("--cpus 1 or more"));
        assert!(cpus(65).remedy().unwrap().contains("--cpus 64 or fewer"));
        let memory = |wanted| Error::MemorySize {
            wanted,
            least: 16 << 20,
            most: 1023 << 30,
        };
        for little in [0, 100, 1024, 1 << 20] {
            assert!(memory(little).remedy().unwrap().starts_with("give more"));
        }
        let odd = memory((16 << 20) + 1).remedy().unwrap();
        assert!(odd.ends_with("--memory 16388K"), "{odd}");
        let much = memory(1 << 40);
        assert_eq!(
            much.to_string(),
            "cannot give the guest 1T of memory: it takes 16M to 1023G here, in whole pages of 4K"
        );
        assert!(much.remedy().unwrap().contains("--memory 1023G at most"));
    }

    #[test]
    fn memory_remedy_is_enough() {
        let error = Error::TooSmall {
            what: "initrd",
            needs: (65 << 20) + 1,
            has: 64 << 20,
        };
        assert!(error.remedy().unwrap().contains("--memory 128M"));
        assert!(!error.is_refusal());
    }
}
