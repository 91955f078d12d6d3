// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device tree that tells a guest what its machine has (Devicetree Specification 0.4; bindings of Linux).
#![forbid(unsafe_code)]

use vm_fdt::{Error, FdtWriter};

use super::layout;
use crate::serial;

/// Handles of nodes that others name.
const GIC: u32 = 1;
const CLOCK_SOURCE: u32 = 2;
/// Kinds of interrupts: shared ones, and each CPU's own.
const SPI: u32 = 0;
const PPI: u32 = 1;
/// How they come.
const RISING: u32 = 1;
const HIGH: u32 = 4;

/// What the tree says beside what all machines have.
pub(crate) struct Machine<'a> {
    /// Affinity fields of each CPU's MPIDR_EL1, the boot CPU's first.
    pub(crate) cpus: &'a [u64],
    /// Bytes of RAM.
    pub(crate) memory: u64,
    /// The kernel's command line.
    pub(crate) cmdline: &'a str,
    /// First byte of the initrd, and the one behind it.
    pub(crate) initrd: Option<(u64, u64)>,
    /// Virtio devices.
    pub(crate) virtio: u32,
    /// Bytes by chance, for the kernel's addresses and for its random numbers.
    pub(crate) random: [u8; 40],
}

/// The tree.
///
/// # Errors
///
/// A command line with a zero in it.
pub(crate) fn build(machine: &Machine) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    chosen(&mut fdt, machine)?;
    let node = fdt.begin_node(&format!("memory@{:x}", layout::RAM))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[layout::RAM, machine.memory])?;
    fdt.end_node(node)?;
    cpus(&mut fdt, machine.cpus)?;
    interrupts(&mut fdt, machine.cpus.len() as u64)?;
    devices(&mut fdt, machine.virtio)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, machine: &Machine) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", machine.cmdline)?;
    fdt.property_string("stdout-path", &format!("/serial@{:x}", layout::SERIAL))?;
    if let Some((start, end)) = machine.initrd {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", end)?;
    }
    let (kaslr, rng) = machine.random.split_at(8);
    fdt.property("kaslr-seed", kaslr)?;
    fdt.property("rng-seed", rng)?;
    fdt.end_node(node)
}

fn cpus(fdt: &mut FdtWriter, affinities: &[u64]) -> Result<(), Error> {
    let all = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for affinity in affinities {
        let node = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", *affinity)?;
        fdt.end_node(node)?;
    }
    fdt.end_node(all)?;
    let node = fdt.begin_node("psci")?;
    let versions = ["arm,psci-1.0", "arm,psci-0.2"].map(String::from);
    fdt.property_string_list("compatible", versions.into())?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

/// The interrupt controller, and the timers of each CPU.
fn interrupts(fdt: &mut FdtWriter, cpus: u64) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", layout::DISTRIBUTOR))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    let regions = [
        layout::DISTRIBUTOR,
        layout::DISTRIBUTOR_SIZE,
        layout::REDISTRIBUTORS,
        layout::REDISTRIBUTOR_SIZE * cpus,
    ];
    fdt.property_array_u64("reg", &regions)?;
    fdt.property_phandle(GIC)?;
    fdt.end_node(node)?;
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    // Secure and non-secure physical timer, virtual timer, the hypervisor's.
    let of_cpu = [13, 14, 11, 10].map(|number| [PPI, number, HIGH]);
    fdt.property_array_u32("interrupts", of_cpu.as_flattened())?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

fn devices(fdt: &mut FdtWriter, virtio: u32) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("serial@{:x}", layout::SERIAL))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[layout::SERIAL, layout::PAGE])?;
    fdt.property_u32("clock-frequency", 1_843_200)?;
    // An edge, as an event makes it.
    fdt.property_array_u32("interrupts", &[SPI, serial::IRQ, RISING])?;
    fdt.end_node(node)?;
    let node = fdt.begin_node("clock")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", 24_000_000)?;
    fdt.property_phandle(CLOCK_SOURCE)?;
    fdt.end_node(node)?;
    let node = fdt.begin_node(&format!("rtc@{:x}", layout::CLOCK))?;
    let kinds = ["arm,pl031", "arm,primecell"].map(String::from);
    fdt.property_string_list("compatible", kinds.into())?;
    fdt.property_array_u64("reg", &[layout::CLOCK, layout::PAGE])?;
    // Without an interrupt, so without alarms.
    fdt.property_u32("clocks", CLOCK_SOURCE)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(node)?;
    for number in 0..virtio {
        let at = layout::virtio(number);
        let node = fdt.begin_node(&format!("virtio@{at:x}"))?;
        fdt.property_string("compatible", "virtio,mmio")?;
        fdt.property_array_u64("reg", &[at, layout::VIRTIO_SIZE])?;
        let interrupt = [SPI, layout::VIRTIO_SPI + number, RISING];
        fdt.property_array_u32("interrupts", &interrupt)?;
        fdt.property_null("dma-coherent")?;
        fdt.end_node(node)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> usize {
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    fn text(bytes: &[u8], at: usize) -> String {
        let end = bytes[at..].iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(bytes[at..at + end].into()).unwrap()
    }

    /// Path and value of every property (Devicetree Specification 0.4, 5.4).
    fn properties(tree: &[u8]) -> Vec<(String, Vec<u8>)> {
        assert_eq!((word(tree, 0), word(tree, 4)), (0xd00d_feed, tree.len()));
        let (mut at, strings) = (word(tree, 8), word(tree, 12));
        let (mut path, mut found) = (Vec::new(), Vec::new());
        loop {
            let token = word(tree, at);
            at += 4;
            match token {
                1 => {
                    let name = text(tree, at);
                    at += (name.len() + 1).next_multiple_of(4);
                    path.push(name);
                }
                2 => drop(path.pop()),
                3 => {
                    let length = word(tree, at);
                    let name = text(tree, strings + word(tree, at + 4));
                    let value = tree[at + 8..at + 8 + length].to_vec();
                    found.push((format!("{}/{name}", path.join("/")), value));
                    at += 8 + length.next_multiple_of(4);
                }
                4 => {}
                9 => return found,
                other => panic!("token {other} at {at}"),
            }
        }
    }

    #[test]
    fn a_machine_is_described() {
        let tree = build(&Machine {
            cpus: &[0, 1, 0x100],
            memory: 256 << 20,
            cmdline: "console=ttyS0",
            initrd: Some((0x4800_0000, 0x4800_1234)),
            virtio: 2,
            random: [7; 40],
        });
        let found = properties(&tree.unwrap());
        let value = |path: &str| {
            let one = found.iter().find(|(name, _)| name == path);
            one.unwrap_or_else(|| panic!("{path}")).1.clone()
        };
        let longs = |numbers: &[u64]| -> Vec<u8> {
            numbers
                .iter()
                .flat_map(|number| number.to_be_bytes())
                .collect()
        };
        assert_eq!(value("/chosen/bootargs"), b"console=ttyS0\0");
        assert_eq!(value("/chosen/stdout-path"), b"/serial@9000000\0");
        assert_eq!(value("/chosen/linux,initrd-end"), longs(&[0x4800_1234]));
        assert_eq!(value("/chosen/rng-seed"), [7; 32]);
        assert_eq!(value("/memory@40000000/reg"), longs(&[1 << 30, 256 << 20]));
        assert_eq!(value("/cpus/cpu@100/reg"), longs(&[0x100]));
        assert_eq!(value("/psci/compatible"), b"arm,psci-1.0\0arm,psci-0.2\0");
        let gic = value("/interrupt-controller@8000000/reg");
        assert_eq!(
            gic,
            longs(&[0x800_0000, 0x1_0000, 0x1000_0000, 3 * 0x2_0000])
        );
        let serial: Vec<u8> = [0, serial::IRQ, 1]
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect();
        assert_eq!(value("/serial@9000000/interrupts"), serial);
        assert_eq!(value("/timer/interrupts").len(), 12 * 4);
        assert_eq!(value("/virtio@a000200/reg"), longs(&[0xa00_0200, 0x200]));
        let cpus = found
            .iter()
            .filter(|(name, _)| name.ends_with("enable-method"));
        assert_eq!(cpus.count(), 3);
    }

    #[test]
    fn a_machine_without_an_initrd() {
        let machine = |cmdline| {
            build(&Machine {
                cpus: &[0],
                memory: 1 << 30,
                cmdline,
                initrd: None,
                virtio: 0,
                random: [0; 40],
            })
        };
        let found = properties(&machine("").unwrap());
        assert!(!found.iter().any(|(name, _)| name.contains("initrd")));
        assert!(machine("a\0b").is_err());
    }
}
