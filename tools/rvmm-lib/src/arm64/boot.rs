// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Puts a Linux kernel, its initrd and the device tree into guest memory (Documentation/arch/arm64/booting.rst).

use std::path::{Path, PathBuf};

use linux_loader::loader::pe::PE;
use linux_loader::loader::KernelLoader;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use super::fdt::{self, Machine};
use super::image::image;
use super::layout;
use crate::error::{Error, Result};
use crate::kernel::Source;
use crate::sys;

/// Command line for a kernel without one of its own: console on the serial port, and a reset (which ends the machine)
/// at once after a panic. It is a warm one then, which tells a panic from a reboot
/// ([`Exit::Panic`](crate::Exit::Panic)).
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=panic_warm panic=-1";

/// The longest command line that a kernel takes, its final zero included.
const CMDLINE_MAX: usize = 2048;
const PAGE: u64 = 4096;

/// What to boot.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// Image.
    pub kernel: PathBuf,
    /// Initial ramdisk.
    pub initrd: Option<PathBuf>,
    /// Command line.
    pub cmdline: String,
    /// Code instead of a kernel, at [`layout::KERNEL`].
    pub code: Option<Vec<u8>>,
}

/// Where the boot CPU starts.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Guest-physical address of the first instruction.
    pub address: u64,
    /// That of the device tree.
    pub tree: u64,
}

/// Loads everything. `affinities` name the CPUs; there are so many `virtio` devices.
///
/// # Errors
///
/// [`Error::File`], [`Error::Kernel`], [`Error::TooSmall`] or [`Error::Cmdline`].
pub fn load(
    memory: &GuestMemoryMmap,
    boot: &Boot,
    size: u64,
    affinities: &[u64],
    virtio: u32,
) -> Result<Entry> {
    let put = |address: u64, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|error| Error::Memory {
                size,
                cause: error.to_string(),
            })
    };
    let low = size.min(layout::LOW_SIZE);
    let tree = layout::RAM + (low - layout::TREE_SIZE) / layout::TREE_SIZE * layout::TREE_SIZE;
    let (address, end) = match &boot.code {
        Some(code) => {
            put(layout::KERNEL, code)?;
            (layout::KERNEL, layout::KERNEL + code.len() as u64)
        }
        None => load_kernel(memory, &boot.kernel, tree)?,
    };
    let initrd = match &boot.initrd {
        Some(path) => Some(load_initrd(memory, path, end, tree)?),
        None => None,
    };
    if boot.cmdline.len() >= CMDLINE_MAX {
        return Err(Error::Cmdline(format!(
            "{} bytes, the kernel takes {}",
            boot.cmdline.len(),
            CMDLINE_MAX - 1
        )));
    }
    let machine = Machine {
        cpus: affinities,
        memory: size,
        cmdline: &boot.cmdline,
        initrd,
        virtio,
        random: sys::random().map_err(Error::os("random numbers"))?,
    };
    let bytes = fdt::build(&machine).map_err(|error| Error::Cmdline(error.to_string()))?;
    if bytes.len() as u64 > layout::TREE_SIZE {
        return Err(Error::Cmdline("the device tree is too long".into()));
    }
    put(tree, &bytes)?;
    Ok(Entry { address, tree })
}

/// Where the kernel begins, and the first byte above the memory that it uses before it knows which there is.
fn load_kernel(memory: &GuestMemoryMmap, path: &Path, limit: u64) -> Result<(u64, u64)> {
    let bad = |cause: String| Error::Kernel {
        path: path.into(),
        cause,
    };
    let (mut file, size) = Source::open(path, limit - layout::RAM)?;
    let kernel = image(&mut file, size).map_err(bad)?;
    let end = layout::KERNEL.checked_add(kernel.offset);
    let end = end.and_then(|start| start.checked_add(kernel.memory.max(size)));
    match end {
        Some(end) if end <= limit => {}
        _ => {
            return Err(Error::TooSmall {
                what: "kernel",
                needs: needed(end.unwrap_or(u64::MAX)),
                has: limit - layout::RAM,
            })
        }
    }
    let loaded = PE::load(memory, Some(GuestAddress(layout::KERNEL)), &mut file, None)
        .map_err(|error| bad(error.to_string()))?;
    let start = loaded.kernel_load.0;
    Ok((start, start + kernel.memory.max(size)))
}

/// Bytes of memory that a machine needs for what ends there, and the device tree.
fn needed(end: u64) -> u64 {
    (end - layout::RAM).saturating_add(2 * layout::TREE_SIZE)
}

/// Where the initrd begins and ends: below the device tree.
fn load_initrd(
    memory: &GuestMemoryMmap,
    path: &Path,
    kernel_end: u64,
    tree: u64,
) -> Result<(u64, u64)> {
    let (mut file, size) = Source::open(path, tree - layout::RAM)?;
    let address = tree.checked_sub(size).map(|at| at & !(PAGE - 1));
    let Some(address) = address.filter(|at| *at >= kernel_end) else {
        return Err(Error::TooSmall {
            what: "initrd",
            needs: needed(kernel_end + size + PAGE),
            has: tree - layout::RAM,
        });
    };
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
        .map_err(|error| Error::File {
            path: path.into(),
            source: std::io::Error::other(error),
        })?;
    Ok((address, address + size))
}
