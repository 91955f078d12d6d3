// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Puts a Linux kernel, its initrd, command line and zero page into guest memory
//! (Documentation/arch/x86/boot.rst, 64-bit boot protocol).

use std::path::{Path, PathBuf};

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{load_cmdline, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::error::{Error, Result};
use crate::kernel::{self, Format, Source};
use crate::paging::Mode;
use crate::{acpi, e820, layout, mptable, paging};

/// Command line for a kernel without one of its own: console on the serial port, no devices that
/// this machine does not have, and a reset (which ends it) at reboot and panic.
///
/// - `reboot=panic_warm,k panic=-1`: reset by the keyboard controller, at once after a panic, and then by a warm
///   reset, which tells a panic from a reboot ([`Exit::Panic`](crate::Exit::Panic)).
/// - `acpi=off pci=off`: there is neither; do not look.
/// - `no_timer_check tsc=reliable`: the timers are the hypervisor's, no need to test them.
/// - `random.trust_cpu=on`: no wait for entropy.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=panic_warm,k panic=-1 acpi=off pci=off \
                                   no_timer_check tsc=reliable random.trust_cpu=on \
                                   8250.nr_uarts=1";

/// What to boot.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// bzImage or ELF vmlinux.
    pub kernel: PathBuf,
    /// Initial ramdisk.
    pub initrd: Option<PathBuf>,
    /// Command line.
    pub cmdline: String,
    /// 64-bit code instead of a kernel, at [`layout::HIGH_RAM`].
    pub code: Option<Vec<u8>>,
}

/// Command line for a machine with ACPI: what [`DEFAULT_CMDLINE`] says, but for what the tables tell.
pub const ACPI_CMDLINE: &str =
    "console=ttyS0 panic=-1 no_timer_check tsc=reliable random.trust_cpu=on";

/// The tables that describe the machine.
#[derive(Clone, Copy, Debug)]
pub enum Tables<'a> {
    /// An MP table ([`mptable::build`]).
    Mp {
        /// CPUID leaf 1: EAX, EDX.
        cpu: (u32, u32),
        /// How devices' pins are wired.
        pci: &'a [(u8, u8)],
    },
    /// ACPI's ([`acpi::build`]).
    Acpi,
}

/// `setup_header.xloadflags`: the image has a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1;
/// Offset of that entry point.
const ENTRY_64: u64 = 0x200;
/// The oldest boot protocol that tells how much memory a kernel needs while it unpacks itself.
const PROTOCOL_INIT_SIZE: u16 = 0x020a;
/// Boot loader id "undefined".
const LOADER_UNDEFINED: u8 = 0xff;
const PAGE: u64 = 4096;

/// Where the boot CPU starts, and how.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Guest-physical address of the first instruction.
    pub address: u64,
    /// The mode it is written for.
    pub mode: Mode,
}

struct Kernel {
    entry: Entry,
    header: setup_header,
    /// First byte above the memory the kernel uses before it knows its memory map.
    end: u64,
}

fn load_kernel(memory: &GuestMemoryMmap, path: &Path, low: u64) -> Result<Kernel> {
    let bad = |cause: String| Error::Kernel {
        path: path.into(),
        cause,
    };
    let (mut file, size) = Source::open(path, low)?;
    if layout::HIGH_RAM + size > low {
        return Err(Error::TooSmall {
            what: "kernel image",
            needs: layout::HIGH_RAM + size,
            has: low,
        });
    }
    let high = Some(GuestAddress(layout::HIGH_RAM));
    if kernel::format(&mut file, size).map_err(bad)? == Format::Elf {
        let loaded =
            Elf::load(memory, None, &mut file, high).map_err(|error| bad(format!("{error}")))?;
        let header = setup_header {
            boot_flag: 0xaa55,
            header: 0x5372_6448,
            version: 0x020c,
            kernel_alignment: 0x20_0000,
            initrd_addr_max: 0x7fff_ffff,
            ..Default::default()
        };
        return Ok(Kernel {
            entry: Entry {
                address: loaded.kernel_load.0,
                mode: Mode::Long,
            },
            header,
            end: loaded.kernel_end,
        });
    }
    let loaded =
        BzImage::load(memory, None, &mut file, high).map_err(|error| bad(format!("{error}")))?;
    let header = loaded
        .setup_header
        .ok_or_else(|| bad("no setup header".into()))?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < PROTOCOL_INIT_SIZE {
        return Err(bad(format!("boot protocol {version:#x} is too old")));
    }
    let entry = if version >= 0x020c && flags & XLF_KERNEL_64 != 0 {
        Entry {
            address: loaded.kernel_load.0 + ENTRY_64,
            mode: Mode::Long,
        }
    } else {
        Entry {
            address: loaded.kernel_load.0,
            mode: Mode::Protected,
        }
    };
    let (preferred, init_size) = (header.pref_address, header.init_size);
    let end = preferred
        .max(loaded.kernel_load.0)
        .saturating_add(u64::from(init_size));
    if end > low {
        return Err(Error::TooSmall {
            what: "unpacked kernel",
            needs: end,
            has: low,
        });
    }
    Ok(Kernel { entry, header, end })
}

/// The highest page-aligned address for `size` bytes of initrd: below `low` (the end of low RAM) and
/// the kernel's own limit, above `kernel_end`; `None` if there is none.
fn initrd_address(size: u64, low: u64, limit: u32, kernel_end: u64) -> Option<u64> {
    let top = low.min(u64::from(limit) + 1);
    let address = top.checked_sub(size)? & !(PAGE - 1);
    (address >= kernel_end).then_some(address)
}

fn load_initrd(
    memory: &GuestMemoryMmap,
    path: &Path,
    low: u64,
    kernel: &Kernel,
) -> Result<(u64, u64)> {
    let (mut file, size) = Source::open(path, low)?;
    let address = initrd_address(size, low, kernel.header.initrd_addr_max, kernel.end).ok_or(
        Error::TooSmall {
            what: "initrd",
            needs: (kernel.end + size).next_multiple_of(PAGE),
            has: low,
        },
    )?;
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
        .map_err(|error| Error::File {
            path: path.into(),
            source: std::io::Error::other(error),
        })?;
    Ok((address, size))
}

/// Loads everything and returns the entry point; `rsi` there has to hold [`layout::ZERO_PAGE`].
///
/// # Errors
///
/// [`Error::File`], [`Error::Kernel`], [`Error::TooSmall`] or [`Error::Cmdline`].
pub fn load(
    memory: &GuestMemoryMmap,
    boot: &Boot,
    size: u64,
    cpus: u8,
    tables: Tables,
) -> Result<Entry> {
    let low = size.min(layout::HOLE_START);
    let put = |address: u64, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|error| Error::Memory {
                size,
                cause: error.to_string(),
            })
    };
    put(
        layout::PAGE_TABLES,
        &paging::identity_map(layout::PAGE_TABLES),
    )?;
    let described = match tables {
        Tables::Mp { cpu, pci } => mptable::build(cpus, cpu.0, cpu.1, pci),
        Tables::Acpi => acpi::build(cpus, layout::TABLES),
    };
    put(layout::TABLES, &described)?;
    if let Some(code) = &boot.code {
        put(layout::HIGH_RAM, code)?;
        put(layout::GDT, &paging::gdt_bytes(Mode::Long))?;
        return Ok(Entry {
            address: layout::HIGH_RAM,
            mode: Mode::Long,
        });
    }
    let kernel = load_kernel(memory, &boot.kernel, low)?;

    let cmdline = Cmdline::try_from(&boot.cmdline, layout::CMDLINE_MAX)
        .map_err(|error| Error::Cmdline(error.to_string()))?;
    let limit = kernel.header.cmdline_size;
    if limit != 0 && boot.cmdline.len() > limit as usize {
        return Err(Error::Cmdline(format!(
            "{} bytes, the kernel takes {limit}",
            boot.cmdline.len()
        )));
    }
    load_cmdline(memory, GuestAddress(layout::CMDLINE), &cmdline)
        .map_err(|error| Error::Cmdline(error.to_string()))?;

    let mut params = boot_params {
        hdr: kernel.header,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.vid_mode = 0xffff;
    if let Some(path) = &boot.initrd {
        let (address, size) = load_initrd(memory, path, low, &kernel)?;
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    let map = e820::map(size);
    params.e820_entries = map.len() as u8;
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.length,
            type_: entry.kind,
        };
    }
    if let Tables::Acpi = tables {
        params.acpi_rsdp_addr = layout::TABLES;
    }
    let params = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, memory)
        .map_err(|error| Error::Cmdline(error.to_string()))?;

    put(layout::GDT, &paging::gdt_bytes(kernel.entry.mode))?;
    Ok(kernel.entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initrd_lies_high_but_within_limits() {
        let mib = 1 << 20;
        assert_eq!(
            initrd_address(mib, 512 * mib, 0x7fff_ffff, 64 * mib),
            Some(511 * mib)
        );
        assert_eq!(
            initrd_address(mib + 1, 512 * mib, 0x7fff_ffff, 0),
            Some(511 * mib - PAGE)
        );
        assert_eq!(
            initrd_address(mib, 3 << 30, 0x37ff_ffff, 0),
            Some(0x3800_0000 - mib)
        );
        assert_eq!(
            initrd_address(448 * mib, 512 * mib, 0x7fff_ffff, 64 * mib),
            Some(64 * mib)
        );
        assert_eq!(
            initrd_address(449 * mib, 512 * mib, 0x7fff_ffff, 64 * mib),
            None
        );
        assert_eq!(initrd_address(513 * mib, 512 * mib, 0x7fff_ffff, 0), None);
    }

    #[test]
    fn a_text_file_is_not_a_kernel() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        let path = std::env::temp_dir().join(format!("rvmm-not-a-kernel-{}", std::process::id()));
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        let error = load_kernel(&memory, &path, 64 << 20).err().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(error, Error::Kernel { .. }), "{error}");
        assert!(error.remedy().unwrap().contains("bzImage"));
    }
}
