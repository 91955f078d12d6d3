// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm bench`: ticks per operation as a guest's TSC sees them, the same on any device with KVM's
//! ABI.

mod args;
mod clones;
mod device;
mod environment;
mod guest;
mod machine;
mod memory;
mod modes;
mod nvme;
mod passed;
mod region;
pub mod report;
mod rows;

use std::path::Path;

use anyhow::Context;
use kvm_ioctls::IoEventAddress;
use rvmm_vm::vm;

pub use self::args::Args;
use self::guest::Routine;
use self::machine::NOTHING;
use self::report::Report;
use self::rows::Bench;
use crate::status::{self, Status};

/// Runs the command.
pub fn main(args: &Args) -> Status {
    let result = match &args.compare {
        Some(files) => compare(&files[0], &files[1], args.at_most),
        None => measure(args),
    };
    result.unwrap_or_else(|error| match error.downcast_ref::<rvmm_vm::Error>() {
        Some(error) => status::report(error),
        None => {
            eprintln!("rvmm: {error:#}");
            Status::Other
        }
    })
}

/// The report in what `--json` printed. A console may have added lines around it.
pub fn parse(text: &str) -> serde_json::Result<Report> {
    let line = text.lines().find(|line| line.starts_with('{'));
    serde_json::from_str(line.unwrap_or(text))
}

/// The rows' means in what `--json` printed.
pub fn means(text: &str) -> Option<Vec<(String, u64)>> {
    let rows = parse(text).ok()?.rows.into_iter();
    Some(rows.map(|(row, ticks)| (row, ticks.mean)).collect())
}

/// Prints the second report beside the first.
fn compare(base: &Path, other: &Path, at_most: Option<f64>) -> anyhow::Result<Status> {
    let load = |path: &Path| -> anyhow::Result<Report> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        parse(&text)
            .with_context(|| format!("{} is not a report of `rvmm bench --json`", path.display()))
    };
    let (text, worst) = report::compare(&load(base)?, &load(other)?);
    print!("{text}");
    if let Some(limit) = at_most {
        if worst > limit {
            eprintln!("rvmm: a row's ratio is {worst:.2}, above {limit:.2}");
            return Ok(Status::Other);
        }
    }
    Ok(Status::Done)
}

/// Whether this CPU's hypercall instruction is AMD's VMMCALL (CPUID leaf 0, EBX "Auth" or "Hygo").
fn is_amd() -> bool {
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 CPU has CPUID leaf 0.
    let vendor = unsafe { std::arch::x86_64::__cpuid(0) }.ebx;
    [*b"Auth", *b"Hygo"]
        .map(u32::from_le_bytes)
        .contains(&vendor)
}

/// Measures all rows that are wanted.
fn measure(args: &Args) -> anyhow::Result<Status> {
    let kvm = vm::open(&args.device)?;
    let mut device = args.device.display().to_string();
    if args.no_irqchip {
        device.push_str(" bare");
    }
    let mut bench = Bench {
        args,
        kvm,
        report: Report {
            device,
            environment: environment::of_host(),
            ..Report::default()
        },
    };
    let overhead = bench.routine(Routine::Nothing, 0)?.min;
    if !args.pci.is_empty() {
        for address in &args.pci {
            passed::rows(&mut bench, *address, overhead)?;
        }
        return bench.finish();
    }
    exits(&mut bench, overhead);
    modes::rows(&mut bench);
    if bench.irqchip() {
        interrupts(&mut bench, overhead)?;
    }
    doorbells(&mut bench, overhead);
    memory::rows(&mut bench, overhead);
    machines(&mut bench);
    clones::rows(&mut bench);
    bench.finish()
}

/// Rows of one exit each.
fn exits(bench: &mut Bench, overhead: u64) {
    let hypercall = if is_amd() {
        Routine::Vmmcall
    } else {
        Routine::Vmcall
    };
    for (name, routine) in [
        ("cpuid", Routine::Cpuid),
        ("hypercall", hypercall),
        ("rdmsr", Routine::Rdmsr),
        ("port_in", Routine::PortIn),
        ("port_out", Routine::PortOut),
        ("mmio_read", Routine::MmioRead),
        ("mmio_write", Routine::MmioWrite),
    ] {
        bench.row(name, |bench| bench.routine(routine, overhead));
    }
}

/// Rows of interrupt controllers and timers.
fn interrupts(bench: &mut Bench, overhead: u64) -> anyhow::Result<()> {
    bench.row("hlt_wake", Bench::hlt_wake);
    bench.row("deadline", |bench| bench.deadline(overhead));
    bench.row("tpr", |bench| bench.routine(Routine::Tpr, overhead));
    bench.row("self_ipi", |bench| {
        bench.routine(Routine::SelfIpi, overhead)
    });
    bench.row("x2apic_eoi", |bench| {
        bench.routine(Routine::X2apicEoi, overhead)
    });
    if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) {
        bench.row("ipi_running", |bench| {
            bench.ipi(Routine::IpiRunning, Routine::EchoRunning, [0, 1])
        });
    }
    bench.row("ipi_halted", |bench| {
        bench.ipi(Routine::IpiHalted, Routine::EchoHalted, [0, 0])
    });
    let trip = bench.routine(Routine::PortOut, 0)?.mean;
    bench.row("irq_line", |bench| bench.raise(false, trip));
    bench.row("irqfd", |bench| bench.raise(true, trip));
    Ok(())
}

/// Rows of doorbells.
fn doorbells(bench: &mut Bench, overhead: u64) {
    bench.row("ioeventfd_port", |bench| {
        let address = IoEventAddress::Pio(guest::IDLE.into());
        bench.doorbell(Routine::PortOut, &address, overhead)
    });
    bench.row("ioeventfd_mmio", |bench| {
        let address = IoEventAddress::Mmio(NOTHING);
        bench.doorbell(Routine::MmioWrite, &address, overhead)
    });
}

/// Rows of whole machines: made, closed, booted.
fn machines(bench: &mut Bench) {
    bench.row("create", Bench::create);
    let mut closed = None;
    bench.row("create_full", |bench| {
        let (made, gone) = bench.create_full()?;
        closed = Some(gone);
        Ok(made)
    });
    if let Some(gone) = closed {
        bench.row("close_full", |_| Ok(gone));
    }
    if let Some(kernel) = &bench.args.kernel {
        bench.row("boot", |bench| bench.boot(kernel));
    }
}
