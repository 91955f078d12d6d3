// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How each row is measured.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use kvm_bindings::{
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, KvmIrqRouting,
    KVM_IRQ_ROUTING_MSI,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch};
use rvmm_vm::{vm, Console, Exit, StopHandle, Vm};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

use super::args::Args;
use super::guest::{self, Routine};
use super::machine::{Machine, Work};
use super::report::{self, Report, Ticks};
use crate::status::Status;

/// Reads the time-stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and Linux lets user space execute it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// A run of the benchmark.
pub struct Bench<'a> {
    /// What is wanted.
    pub args: &'a Args,
    /// The hypervisor.
    pub kvm: Kvm,
    /// What has been measured.
    pub report: Report,
}

impl Bench<'_> {
    /// Measures a row, unless it is not wanted.
    pub fn row(&mut self, name: &str, measured: impl FnOnce(&Self) -> anyhow::Result<Ticks>) {
        if self.wants(name) {
            self.measure_row(name, measured);
        }
    }

    /// Whether a row is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.args.rows.is_empty() || self.args.rows.iter().any(|row| row == name)
    }

    /// Measures rows that come of one another, if any of them is wanted.
    pub fn rows<const N: usize>(
        &mut self,
        names: [&str; N],
        measured: impl FnOnce(&Self) -> anyhow::Result<[Ticks; N]>,
    ) {
        let Some(first) = names.iter().find(|name| self.wants(name)) else {
            return;
        };
        match measured(self) {
            Ok(all) => {
                for (name, ticks) in names.iter().zip(all) {
                    self.row(name, |_| Ok(ticks));
                }
            }
            Err(error) => self.measure_row(first, |_| Err(error)),
        }
    }

    /// Measures a row.
    pub fn measure_row(
        &mut self,
        name: &str,
        measured: impl FnOnce(&Self) -> anyhow::Result<Ticks>,
    ) {
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
    pub fn finish(&mut self) -> anyhow::Result<Status> {
        if !self.args.samples {
            for ticks in self.report.rows.values_mut() {
                ticks.samples = Vec::new();
            }
        }
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

    /// Whether machines have interrupt controllers in the kernel.
    pub fn irqchip(&self) -> bool {
        !self.args.no_irqchip
    }

    /// Iterations per row.
    pub fn count(&self) -> usize {
        self.args.iterations as usize
    }

    /// Ticks of a routine that needs nothing but the machine.
    pub fn routine(&self, routine: Routine, overhead: u64) -> anyhow::Result<Ticks> {
        let work = Work::new(routine, self.count());
        let samples = Machine::new(&self.kvm, self.irqchip())?.run(work)?;
        Ticks::of(&samples, overhead).context("no samples")
    }

    /// Ticks from the timer's deadline to its handler, with the guest in HLT.
    pub fn hlt_wake(&self) -> anyhow::Result<Ticks> {
        anyhow::ensure!(
            self.kvm.check_extension(Cap::TscDeadlineTimer),
            "no KVM_CAP_TSC_DEADLINE_TIMER"
        );
        // Long enough for the guest to be asleep by then: about a millisecond at 3 GHz.
        let count = (self.count() / 4).max(1);
        let work = Work {
            delay: 3_000_000,
            ..Work::new(Routine::HltWake, count)
        };
        let samples = Machine::new(&self.kvm, self.irqchip())?.run(work)?;
        anyhow::ensure!(
            samples.iter().all(|late| *late < 1 << 63),
            "an interrupt came early"
        );
        Ticks::of(&samples, 0).context("no samples")
    }

    /// Ticks of arming the timer once more, far from its deadline.
    pub fn deadline(&self, overhead: u64) -> anyhow::Result<Ticks> {
        anyhow::ensure!(
            self.kvm.check_extension(Cap::TscDeadlineTimer),
            "no KVM_CAP_TSC_DEADLINE_TIMER"
        );
        let samples = Machine::new(&self.kvm, true)?.run(Work {
            delay: 1 << 34,
            ..Work::new(Routine::Deadline, self.count())
        })?;
        Ticks::of(&samples, overhead).context("no samples")
    }

    /// Ticks from the guest's store or OUT, which signals an eventfd, to its next instruction.
    pub fn doorbell(
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
        let work = Work::new(routine, count);
        let samples = machine.run(work)?;
        anyhow::ensure!(
            bell.read().context("eventfd")? == (work.warm + count) as u64,
            "the doorbell did not ring each time"
        );
        Ticks::of(&samples, overhead).context("no samples")
    }

    /// Ticks from a call in user space to the guest's handler, with `trip` ticks for the way to user space and back.
    pub fn raise(&self, irqfd: bool, trip: u64) -> anyhow::Result<Ticks> {
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
        let work = Work::new(Routine::Raise, self.count());
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
    pub fn ipi(
        &self,
        routine: Routine,
        echo: Routine,
        processors: [usize; 2],
    ) -> anyhow::Result<Ticks> {
        let count = self.count();
        let work = Work {
            warm: count / 4 + 1,
            ..Work::new(routine, count)
        };
        let samples = Machine::with_cpus(&self.kvm, true, 2)?.run_pair(work, echo, processors)?;
        Ticks::of(&samples, 0).context("no samples")
    }

    /// Ticks of the host to create a VM with one vCPU, and nothing else.
    pub fn create(&self) -> anyhow::Result<Ticks> {
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
    pub fn create_full(&self) -> anyhow::Result<(Ticks, Ticks)> {
        let (mut made, mut closed) = (Vec::new(), Vec::new());
        for round in 0..CREATE_WARM + CREATE_COUNT {
            let memory = vm::allocate(LEAST_MEMORY, false)?;
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
    pub fn boot(&self, kernel: &Path) -> anyhow::Result<Ticks> {
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
/// Machines that are created before the first that counts.
const CREATE_WARM: usize = 3;
/// Machines that count.
const CREATE_COUNT: usize = 20;
/// Bytes of memory of each.
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
