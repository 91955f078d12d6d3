// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm bench`: ticks per operation as a guest's TSC sees them, the same on any device with KVM's
//! ABI.

mod device;
mod guest;
mod machine;
mod nvme;
mod passed;
mod report;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use kvm_bindings::{
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, KvmIrqRouting,
    KVM_IRQ_ROUTING_MSI,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch};
use rvmm_vm::pci::Address;
use rvmm_vm::{size, vm, Console, Exit, StopHandle, Vm, DEFAULT_DEVICE};

use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

use crate::status::{self, Status};
use guest::Routine;
use machine::{Machine, Region, Work, NOTHING};
use report::{Report, Ticks};

/// Options of `rvmm bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Hypervisor's device node.
    #[arg(long, value_name = "NODE", default_value = DEFAULT_DEVICE)]
    device: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Iterations per row (the timer and large-page rows use fewer).
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    iterations: u32,
    /// Measure machines without interrupt controllers in the kernel (skips the timer's row).
    #[arg(long)]
    no_irqchip: bool,
    /// Only these rows.
    #[arg(long, value_name = "ROW,...", value_delimiter = ',')]
    rows: Vec<String>,
    /// Measure the rows of this PCI device of the host instead: QEMU's edu, or an NVMe disk. May be repeated. The device is
    /// taken from its driver and given back.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["kernel", "no_irqchip"])]
    pci: Vec<Address>,
    /// Memory that the rows of DMA map.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size::parse, requires = "pci")]
    dma: u64,
    /// Also time the boot of this kernel until its console shows the greeting.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial ramdisk for --kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Words added to the command line for --kernel.
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        default_value = "quiet"
    )]
    append: String,
    /// Memory for --kernel.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    memory: u64,
    /// Text on the guest's console that ends its boot.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "rvmm guest: userland is up"
    )]
    greeting: String,
    /// Compare two files of --json instead: the second beside the first.
    #[arg(long, num_args = 2, value_names = ["BASE", "OTHER"])]
    compare: Option<Vec<PathBuf>>,
    /// With --compare: fail if a row's ratio is above this.
    #[arg(long, value_name = "RATIO", requires = "compare")]
    at_most: Option<f64>,
}

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

fn compare(base: &Path, other: &Path, at_most: Option<f64>) -> anyhow::Result<Status> {
    let load = |path: &Path| -> anyhow::Result<Report> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        // A console may have added lines around the report.
        let line = text
            .lines()
            .find(|line| line.starts_with('{'))
            .unwrap_or(&text);
        serde_json::from_str(line)
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

/// Reads the time-stamp counter.
fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and Linux lets user space execute it.
    unsafe { std::arch::x86_64::_rdtsc() }
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

struct Bench<'a> {
    args: &'a Args,
    kvm: Kvm,
    report: Report,
}

impl Bench<'_> {
    fn row(&mut self, name: &str, measured: impl FnOnce(&Self) -> anyhow::Result<Ticks>) {
        if !self.args.rows.is_empty() && !self.args.rows.iter().any(|row| row == name) {
            return;
        }
        match measured(self) {
            Ok(ticks) => {
                self.report.rows.insert(name.into(), ticks);
            }
            Err(error) => {
                eprintln!("rvmm: {name}: {error:#}");
                self.report
                    .skipped
                    .insert(name.into(), format!("{error:#}"));
            }
        }
    }

    /// Prints the report.
    fn finish(&self) -> anyhow::Result<Status> {
        if self.args.json {
            println!("{}", serde_json::to_string(&self.report)?);
        } else {
            print!("{}", report::table(&self.report));
        }
        Ok(if self.report.skipped.is_empty() {
            Status::Done
        } else {
            Status::Other
        })
    }

    fn irqchip(&self) -> bool {
        !self.args.no_irqchip
    }

    fn count(&self) -> usize {
        self.args.iterations as usize
    }

    /// Ticks of a routine that needs nothing but the machine.
    fn routine(&self, routine: Routine, overhead: u64) -> anyhow::Result<Ticks> {
        let count = self.count();
        let work = Work {
            routine,
            warm: count / 10 + 1,
            count,
            delay: 0,
        };
        let samples = Machine::new(&self.kvm, self.irqchip())?.run(work)?;
        Ticks::of(&samples, overhead).context("no samples")
    }

    fn hlt_wake(&self) -> anyhow::Result<Ticks> {
        anyhow::ensure!(
            self.kvm.check_extension(Cap::TscDeadlineTimer),
            "no KVM_CAP_TSC_DEADLINE_TIMER"
        );
        // Long enough for the guest to be asleep by then: about a millisecond at 3 GHz.
        let count = (self.count() / 4).max(1);
        let work = Work {
            routine: Routine::HltWake,
            warm: count / 10 + 1,
            count,
            delay: 3_000_000,
        };
        let samples = Machine::new(&self.kvm, self.irqchip())?.run(work)?;
        anyhow::ensure!(
            samples.iter().all(|late| *late < 1 << 63),
            "an interrupt came early"
        );
        Ticks::of(&samples, 0).context("no samples")
    }

    /// Ticks of arming the timer once more, far from its deadline.
    fn deadline(&self, overhead: u64) -> anyhow::Result<Ticks> {
        anyhow::ensure!(
            self.kvm.check_extension(Cap::TscDeadlineTimer),
            "no KVM_CAP_TSC_DEADLINE_TIMER"
        );
        let count = self.count();
        let samples = Machine::new(&self.kvm, true)?.run(Work {
            routine: Routine::Deadline,
            warm: count / 10 + 1,
            count,
            delay: 1 << 34,
        })?;
        Ticks::of(&samples, overhead).context("no samples")
    }

    /// Ticks from the guest's store or OUT, which signals an eventfd, to its next instruction.
    fn doorbell(
        &self,
        routine: Routine,
        address: &IoEventAddress,
        overhead: u64,
    ) -> anyhow::Result<Ticks> {
        let count = self.count();
        let bell = EventFd::new(EFD_NONBLOCK).context("eventfd")?;
        let mut machine = Machine::new(&self.kvm, self.irqchip())?;
        machine
            .vm
            .register_ioevent(&bell, address, NoDatamatch)
            .context("KVM_IOEVENTFD")?;
        let work = Work {
            routine,
            warm: count / 10 + 1,
            count,
            delay: 0,
        };
        let samples = machine.run(work)?;
        anyhow::ensure!(
            bell.read().context("eventfd")? == (work.warm + count) as u64,
            "the doorbell did not ring each time"
        );
        Ticks::of(&samples, overhead).context("no samples")
    }

    /// Ticks from a call in user space to the guest's handler, with `trip` ticks for the way to user space and back.
    fn raise(&self, irqfd: bool, trip: u64) -> anyhow::Result<Ticks> {
        let count = self.count();
        let mut machine = Machine::new(&self.kvm, true)?;
        let bell = EventFd::new(EFD_NONBLOCK).context("eventfd")?;
        if irqfd {
            // Physical destination 0, edge (SDM 3A 11.11).
            let route = kvm_irq_routing_entry {
                gsi: MSI_GSI,
                type_: KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 {
                    msi: kvm_irq_routing_msi {
                        address_lo: 0xfee0_0000,
                        address_hi: 0,
                        data: guest::VECTOR_X2.into(),
                        ..Default::default()
                    },
                },
                ..Default::default()
            };
            let routes = KvmIrqRouting::from_entries(&[route])
                .map_err(|error| anyhow::anyhow!("{error:?}"))?;
            machine
                .vm
                .set_gsi_routing(&routes)
                .context("KVM_SET_GSI_ROUTING")?;
            machine
                .vm
                .register_irqfd(&bell, MSI_GSI)
                .context("KVM_IRQFD")?;
        }
        let work = Work {
            routine: Routine::Raise,
            warm: count / 10 + 1,
            count,
            delay: 0,
        };
        let samples = machine.run_with(work, &mut |vm, up| {
            match (irqfd, up) {
                (true, true) => bell.write(1).context("eventfd")?,
                (true, false) => {}
                (false, level) => vm.set_irq_line(guest::PIN, level).context("KVM_IRQ_LINE")?,
            }
            Ok(())
        })?;
        Ticks::of(&samples, trip).context("no samples")
    }

    /// Ticks from an IPI to the handler of the answer, with the vCPUs' threads on these processors of the host.
    fn ipi(
        &self,
        routine: Routine,
        echo: Routine,
        processors: [usize; 2],
    ) -> anyhow::Result<Ticks> {
        let count = self.count();
        let work = Work {
            routine,
            warm: count / 4 + 1,
            count,
            delay: 0,
        };
        let samples = Machine::with_cpus(&self.kvm, true, 2)?.run_pair(work, echo, processors)?;
        Ticks::of(&samples, 0).context("no samples")
    }

    fn touch(&self, large: bool, overhead: u64) -> anyhow::Result<Ticks> {
        let (routine, page, count) = if large {
            (Routine::Touch2m, 2 << 20, self.count().min(24))
        } else {
            (Routine::Touch4k, 4 << 10, self.count())
        };
        let warm = count / 10 + 1;
        let region = Region::new((warm + count) * page, large).context("memory")?;
        anyhow::ensure!(
            !large || region.is_large(),
            "the host gives no large pages (/sys/kernel/mm/transparent_hugepage/enabled)"
        );
        let mut machine = Machine::new(&self.kvm, self.irqchip())?.with_pages(region)?;
        let samples = machine.run(Work {
            routine,
            warm,
            count,
            delay: 0,
        })?;
        Ticks::of(&samples, overhead).context("no samples")
    }

    /// Ticks of the host to create a VM with one vCPU, and nothing else.
    fn create(&self) -> anyhow::Result<Ticks> {
        let mut samples = Vec::new();
        for round in 0..CREATE_WARM + CREATE_COUNT {
            let start = ticks();
            let vm = vm::create_vm(&self.kvm)?;
            let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
            let end = ticks();
            drop((vcpu, vm));
            if round >= CREATE_WARM {
                samples.push(end - start);
            }
        }
        Ticks::of(&samples, 0).context("no samples")
    }

    /// Ticks of the host to create, and to close, a machine ready to run.
    fn create_full(&self) -> anyhow::Result<(Ticks, Ticks)> {
        let (mut made, mut closed) = (Vec::new(), Vec::new());
        for round in 0..CREATE_WARM + CREATE_COUNT {
            let memory = vm::allocate(LEAST_MEMORY)?;
            let start = ticks();
            let vm = vm::create_vm(&self.kvm)?;
            if self.irqchip() {
                vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
            }
            // SAFETY: the vCPU never runs.
            unsafe { vm::map(&vm, &memory) }?;
            let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
            let ready = ticks();
            drop((vcpu, vm));
            let gone = ticks();
            if round >= CREATE_WARM {
                made.push(ready - start);
                closed.push(gone - ready);
            }
        }
        Ticks::of(&made, 0)
            .zip(Ticks::of(&closed, 0))
            .context("no samples")
    }

    /// Ticks of the host from the start of a guest's first instruction to its greeting.
    fn boot(&self, kernel: &Path) -> anyhow::Result<Ticks> {
        let greeted = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(OnceLock::<StopHandle>::new());
        let mut find = Finder::new(self.args.greeting.as_bytes());
        let watcher = {
            let (greeted, stop) = (greeted.clone(), stop.clone());
            move |bytes: &[u8]| {
                if find.feed(bytes) && greeted.load(Ordering::Relaxed) == 0 {
                    greeted.store(ticks(), Ordering::Relaxed);
                    if let Some(stop) = stop.get() {
                        stop.stop();
                    }
                }
            }
        };
        let mut builder = Vm::builder()
            .device(&self.args.device)
            .memory(self.args.memory)
            .kernel(kernel)
            .append(&self.args.append)
            .console(Console::output(std::io::sink()).watch(watcher));
        if let Some(initrd) = &self.args.initrd {
            builder = builder.initrd(initrd);
        }
        let machine = builder.build()?;
        stop.get_or_init(|| machine.stop_handle());
        let start = ticks();
        let exit = machine.run()?;
        let end = greeted.load(Ordering::Relaxed);
        anyhow::ensure!(
            end != 0 && matches!(exit, Exit::Stopped),
            "the guest ended before \"{}\": {exit}",
            self.args.greeting
        );
        Ticks::of(&[end - start], 0).context("no samples")
    }
}

/// GSI of the MSI route.
const MSI_GSI: u32 = 24;
const CREATE_WARM: usize = 3;
const CREATE_COUNT: usize = 20;
const LEAST_MEMORY: u64 = 16 << 20;

/// Finds a text in a stream that comes in pieces.
struct Finder {
    text: Vec<u8>,
    tail: Vec<u8>,
}

impl Finder {
    fn new(text: &[u8]) -> Self {
        Self {
            text: text.to_vec(),
            tail: Vec::new(),
        }
    }

    /// Whether the text has just been completed by `bytes`.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        self.tail.extend_from_slice(bytes);
        let found =
            !self.text.is_empty() && self.tail.windows(self.text.len()).any(|w| w == self.text);
        let keep = if found {
            0
        } else {
            self.text.len().saturating_sub(1)
        };
        let drop = self.tail.len().saturating_sub(keep);
        self.tail.drain(..drop);
        found
    }
}

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
    if bench.irqchip() {
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
    }
    bench.row("ioeventfd_port", |bench| {
        let address = IoEventAddress::Pio(guest::IDLE.into());
        bench.doorbell(Routine::PortOut, &address, overhead)
    });
    bench.row("ioeventfd_mmio", |bench| {
        let address = IoEventAddress::Mmio(NOTHING);
        bench.doorbell(Routine::MmioWrite, &address, overhead)
    });
    bench.row("fault_4k", |bench| bench.touch(false, overhead));
    bench.row("fault_2m", |bench| bench.touch(true, overhead));
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
    if let Some(kernel) = &args.kernel {
        bench.row("boot", |bench| bench.boot(kernel));
    }
    bench.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finder_sees_a_text_in_pieces() {
        let mut find = Finder::new(b"GUEST:");
        for piece in [&b"xG"[..], b"U", b"ES", b"T"] {
            assert!(!find.feed(piece));
        }
        assert!(find.feed(b": hello"));
        assert!(!find.feed(b"GUEST"));
    }
}
