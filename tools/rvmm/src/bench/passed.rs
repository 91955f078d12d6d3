// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Rows about devices of the host in the hands of a guest.

use anyhow::Context as _;
use rvmm_vm::pci::Address;

use super::device::{self, Device, Messages};
use super::guest::{self, Routine};
use super::machine::{Machine, Work, PAGES};
use super::nvme;
use super::region::Region;
use super::report::Ticks;
use super::rows::{ticks, Bench};
use crate::pci::Taken;

/// QEMU's edu, whose registers raise an interrupt: vendor and device.
const EDU: &str = "0x1234:0x11e8";
/// Class of NVMe controllers.
const NVME: &str = "0x010802";

/// Times that memory is mapped, the first of which does not count.
const MAP_ROUNDS: usize = 4;
const GIB: u128 = 1 << 30;

fn sysfs(address: Address, file: &str) -> anyhow::Result<String> {
    let path = format!("/sys/bus/pci/devices/{address}/{file}");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().to_owned())
}

/// Measures the rows that the device is good for.
pub fn rows(bench: &mut Bench, address: Address, overhead: u64) -> anyhow::Result<()> {
    let id = format!(
        "{}:{}",
        sysfs(address, "vendor")?,
        sysfs(address, "device")?
    );
    let class = sysfs(address, "class")?;
    let _taken = Taken::by(address, device::driver(&bench.kvm))?;
    if id == EDU {
        for (large, map, unmap) in [
            (false, "dma_map_4k", "dma_unmap_4k"),
            (true, "dma_map_2m", "dma_unmap_2m"),
        ] {
            let mut unmapped = None;
            bench.row(map, |bench| {
                let (there, back) = dma(bench, address, large)?;
                unmapped = Some(back);
                Ok(there)
            });
            if let Some(back) = unmapped {
                bench.row(unmap, |_| Ok(back));
            }
        }
        bench.row("device_read", |bench| read(bench, address, overhead));
        bench.row("device_irq", |bench| interrupt(bench, address));
    }
    if class == NVME {
        bench.row("nvme_read", |bench| nvme(bench, address));
    }
    Ok(())
}

/// A machine that has the device, which reaches its low memory.
fn machine(bench: &Bench, address: Address) -> anyhow::Result<(Machine, Device)> {
    let mut machine = Machine::new(&bench.kvm, true)?;
    let device = Device::take(&bench.kvm, &machine.vm, address)?;
    device.map(0, machine.memory().0)?;
    Ok((machine, device))
}

/// Ticks of the host to let the device reach memory, and to take it away, each per GiB. With VFIO the memory is a slot
/// already; by RVMM_ASSIGN_DEVICE it becomes one in the same call.
fn dma(bench: &Bench, address: Address, large: bool) -> anyhow::Result<(Ticks, Ticks)> {
    let region = Region::new(bench.args.dma as usize, large).context("memory")?;
    anyhow::ensure!(
        !large || region.is_large(),
        "the host gives no large pages (/sys/kernel/mm/transparent_hugepage/enabled)"
    );
    let (machine, device) = machine(bench, address)?;
    let own = !device.needs_mapping();
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for round in 0..MAP_ROUNDS {
        if !own {
            machine.give_pages(&region)?;
        }
        let start = ticks();
        if own {
            machine.give_pages(&region)?;
        } else {
            device.map(PAGES, &region)?;
        }
        let mapped = ticks();
        if own {
            machine.take_pages()?;
        } else {
            device.unmap(PAGES, &region)?;
        }
        let end = ticks();
        if !own {
            machine.take_pages()?;
        }
        if round != 0 {
            let per_gib = |t: u64| (u128::from(t) * GIB / u128::from(bench.args.dma)) as u64;
            there.push(per_gib(mapped - start));
            back.push(per_gib(end - mapped));
        }
    }
    Ticks::of(&there, 0)
        .zip(Ticks::of(&back, 0))
        .context("no samples")
}

/// Ticks of a read of the device's first register, which must not be an exit.
fn read(bench: &Bench, address: Address, overhead: u64) -> anyhow::Result<Ticks> {
    let (machine, device) = machine(bench, address)?;
    let mut machine = machine.with_registers(device.registers(4096)?)?;
    let work = Work::new(Routine::MmioRead, bench.count());
    machine.run(work)?;
    let before = machine.exits()?;
    let samples = machine.run(work)?;
    let exits = machine.exits()? - before;
    // The end of the routine, and the host's own interrupts.
    anyhow::ensure!(
        exits < 8 + bench.count() as u64 / 10,
        "{exits} exits for {} accesses",
        bench.count()
    );
    Ticks::of(&samples, overhead).context("no samples")
}

/// Ticks from the guest's store that makes the device raise its interrupt to the guest's handler.
fn interrupt(bench: &Bench, address: Address) -> anyhow::Result<Ticks> {
    let (machine, device) = machine(bench, address)?;
    device.set_message(&machine.vm, Messages::Msi, guest::VECTOR_X2)?;
    device.set_master()?;
    let mut machine = machine.with_registers(device.registers(4096)?)?;
    let samples = machine.run(Work::new(Routine::DeviceIrq, bench.count()))?;
    Ticks::of(&samples, 0).context("no samples")
}

/// Ticks of a read by the guest: command, interrupt, completion.
fn nvme(bench: &Bench, address: Address) -> anyhow::Result<Ticks> {
    let (machine, device) = machine(bench, address)?;
    device.set_master()?;
    let mut machine = machine.with_registers(device.registers(nvme::REGISTERS)?)?;
    device.set_message(&machine.vm, Messages::MsiX, guest::VECTOR_DEVICE)?;
    if let (memory, Some(registers)) = machine.memory() {
        nvme::start(registers, memory)?;
    }
    let samples = machine.run(Work {
        delay: 1,
        ..Work::new(Routine::NvmeRead, bench.count())
    });
    if let (_, Some(registers)) = machine.memory() {
        nvme::stop(registers)?;
    }
    let samples = samples?;
    anyhow::ensure!(
        samples.iter().all(|s| *s < 1 << 63),
        "the device did not answer as expected"
    );
    Ticks::of(&samples, 0).context("no samples")
}
