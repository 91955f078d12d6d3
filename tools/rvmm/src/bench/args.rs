// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The options of `rvmm bench`.

use std::path::PathBuf;

use rvmm_vm::pci::Address;
use rvmm_vm::{size, DEFAULT_DEVICE};

/// Options of `rvmm bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Hypervisor's device node.
    #[arg(long, value_name = "NODE", default_value = DEFAULT_DEVICE)]
    pub device: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// With --json: also every iteration, for `rvmm compare`.
    #[arg(long, requires = "json")]
    pub samples: bool,
    /// Iterations per row (the timer and large-page rows use fewer).
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub iterations: u32,
    /// Measure machines without interrupt controllers in the kernel (skips the timer's row).
    #[arg(long)]
    pub no_irqchip: bool,
    /// Only these rows. Rows of modes are FORM.MODE, such as movzx.pae32; MODE or .FORM stands for all of them.
    #[arg(long, value_name = "ROW,...", value_delimiter = ',')]
    pub rows: Vec<String>,
    /// Measure the rows of this PCI device of the host instead: QEMU's edu, or an NVMe disk. May be repeated.
    /// The device is taken from its driver and given back.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["kernel", "no_irqchip"])]
    pub pci: Vec<Address>,
    /// Memory that the rows of DMA map.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size::parse, requires = "pci")]
    pub dma: u64,
    /// Also time the boot of this kernel until its console shows the greeting.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial ramdisk for --kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Words added to the command line for --kernel.
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        default_value = "quiet"
    )]
    pub append: String,
    /// Memory for --kernel.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    pub memory: u64,
    /// Text on the guest's console that ends its boot.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "rvmm guest: userland is up"
    )]
    pub greeting: String,
    /// Compare two files of --json instead: the second beside the first.
    #[arg(long, num_args = 2, value_names = ["BASE", "OTHER"])]
    pub compare: Option<Vec<PathBuf>>,
    /// With --compare: fail if a row's ratio is above this.
    #[arg(long, value_name = "RATIO", requires = "compare")]
    pub at_most: Option<f64>,
}
