// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The small machine that a row runs in: one or two CPUs in 64-bit mode, local APICs in the kernel, a
//! few megabytes of memory.

use std::fmt::Debug;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{mpsc, Barrier};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use kvm_bindings::{
    kvm_mp_state, kvm_regs, kvm_userspace_memory_region, KVM_MAX_CPUID_ENTRIES,
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MP_STATE_RUNNABLE,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use rvmm_vm::boot::Entry;
use rvmm_vm::cpu::{self, Topology};
use rvmm_vm::paging::Mode;
use rvmm_vm::{layout, paging, vm};

use super::device::Registers;
use super::guest::{self, Routine};
use super::nvme;
use super::region::Region;
use super::rows::ticks;

/// Guest-physical address of the guest's code.
const CODE: u64 = 0x2_0000;
/// Guest-physical address of the interrupt descriptor table.
const IDT: u64 = 0x3000;
/// Guest-physical address of the byte that ends an echo.
const STOP: u64 = 0x4000;
/// Guest-physical address of the results.
const RESULTS: u64 = 0x10_0000;
/// Bytes of low memory.
const LOW: usize = 2 << 20;
/// Guest-physical address of the memory that fault rows touch, and that is mapped for devices.
pub const PAGES: u64 = 0x4000_0000;
/// Number of its slot.
pub const PAGES_SLOT: u32 = 1;
/// Guest-physical address where there is nothing: accesses go to user space.
pub const NOTHING: u64 = 0x8000_0000;
/// Guest-physical address of a device's registers.
const DEVICE: u64 = 0xe000_0000;

fn slot(vm: &VmFd, number: u32, at: u64, region: &Region) -> rvmm_vm::Result<()> {
    set_slot(vm, number, at, region.address(), region.length() as u64)
}

/// A slot without a dirty log; see [`set_slot_with`].
pub(super) fn set_slot(
    vm: &VmFd,
    number: u32,
    at: u64,
    host: u64,
    length: u64,
) -> rvmm_vm::Result<()> {
    set_slot_with(vm, number, at, host, length, 0)
}

/// The memory at `host`, accessed by copies and volatile accesses only, becomes a slot that lasts no longer than the
/// memory does; without a length the slot goes.
pub(super) fn set_slot_with(
    vm: &VmFd,
    number: u32,
    at: u64,
    host: u64,
    length: u64,
    flags: u32,
) -> rvmm_vm::Result<()> {
    let slot = kvm_userspace_memory_region {
        slot: number,
        guest_phys_addr: at,
        memory_size: length,
        userspace_addr: host,
        flags,
    };
    // SAFETY: what is mapped there belongs to the caller, which keeps it as long as the slot.
    unsafe { vm.set_user_memory_region(slot) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))
}

pub(super) fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> rvmm_vm::Error {
    move |error| rvmm_vm::Error::Ioctl {
        call,
        errno: error.errno(),
    }
}

/// A machine.
pub struct Machine {
    pub(super) vcpus: Vec<VcpuFd>,
    /// The virtual machine.
    pub vm: VmFd,
    pub(super) low: Region,
    pages: Option<Region>,
    registers: Option<Registers>,
}

/// How a row is run.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// The routine.
    pub routine: Routine,
    /// Iterations whose ticks are dropped.
    pub warm: usize,
    /// Iterations whose ticks are returned.
    pub count: usize,
    /// Ticks until the timer fires.
    pub delay: u64,
    /// Guest-physical address of the first page to touch.
    pub pages: u64,
    /// Results of other CPUs that come before this one's.
    pub skip: usize,
}

impl Work {
    /// `count` iterations of a routine, after a tenth as many to warm up.
    pub fn new(routine: Routine, count: usize) -> Self {
        Self {
            routine,
            warm: count / 10 + 1,
            count,
            delay: 0,
            pages: PAGES,
            skip: 0,
        }
    }
}

/// What user space does at the port [`guest::RAISE`] (true) and at [`guest::LOWER`] (false).
pub type Line<'a> = dyn FnMut(&VmFd, bool) -> anyhow::Result<()> + 'a;

impl Machine {
    /// Makes a machine with one CPU, with interrupt controllers in the kernel or without any.
    pub fn new(kvm: &Kvm, irqchip: bool) -> rvmm_vm::Result<Self> {
        Self::with_cpus(kvm, irqchip, 1)
    }

    /// Makes a machine with that many CPUs.
    pub fn with_cpus(kvm: &Kvm, irqchip: bool, cpus: u8) -> rvmm_vm::Result<Self> {
        let os = |source| rvmm_vm::Error::Os {
            what: "memory of the benchmark's guest",
            source,
        };
        let vm = vm::create_vm(kvm)?;
        if irqchip {
            vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
        }
        let mut low = Region::new(LOW, false).map_err(os)?;
        low.write(
            layout::PAGE_TABLES,
            &paging::identity_map(layout::PAGE_TABLES),
        );
        low.write(layout::GDT, &paging::gdt_bytes(Mode::Long));
        low.write(CODE, guest::code());
        for (vector, handler) in [
            (guest::VECTOR, Routine::OnTimer),
            (guest::VECTOR_X2, Routine::OnInterrupt),
            (guest::VECTOR_DEVICE, Routine::OnDevice),
        ] {
            low.write(IDT + u64::from(vector) * 16, &gate(CODE + handler.offset()));
        }
        slot(&vm, 0, 0, &low)?;

        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let deadline = irqchip && vm.check_extension(Cap::TscDeadlineTimer);
        let mut vcpus = Vec::new();
        for id in 0..cpus {
            let vcpu = vm
                .create_vcpu(id.into())
                .map_err(failed("KVM_CREATE_VCPU"))?;
            let topology = Topology { id, cpus };
            cpu::set_cpuid(&vcpu, &cpu::cpuid(supported.as_slice(), topology, deadline))?;
            cpu::set_common(&vcpu)?;
            if irqchip {
                cpu::set_lapic_inputs(&vcpu, id == 0)?;
            }
            let entry = Entry {
                address: CODE,
                mode: Mode::Long,
            };
            cpu::set_entry(&vcpu, entry, 0)?;
            let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
            sregs.idt.base = IDT;
            sregs.idt.limit = 0xfff;
            vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
            if id != 0 {
                // This vCPU does not wait for INIT and SIPI.
                let state = kvm_mp_state {
                    mp_state: KVM_MP_STATE_RUNNABLE,
                };
                vcpu.set_mp_state(state)
                    .map_err(failed("KVM_SET_MP_STATE"))?;
            }
            vcpus.push(vcpu);
        }
        Ok(Self {
            vcpus,
            vm,
            low,
            pages: None,
            registers: None,
        })
    }

    /// Adds registers of a device, at which routines look.
    pub fn with_registers(mut self, registers: Registers) -> rvmm_vm::Result<Self> {
        let length = registers.length() as u64;
        set_slot(&self.vm, 2, DEVICE, registers.address(), length)?;
        self.registers = Some(registers);
        Ok(self)
    }

    /// The low memory, which starts at guest-physical address 0, and the device's registers.
    pub fn memory(&mut self) -> (&mut Region, Option<&Registers>) {
        (&mut self.low, self.registers.as_ref())
    }

    /// Makes `region` memory of the guest, at [`PAGES`], and takes it away in [`Machine::take_pages`].
    pub fn give_pages(&self, region: &Region) -> rvmm_vm::Result<()> {
        slot(&self.vm, PAGES_SLOT, PAGES, region)
    }

    /// See [`Machine::give_pages`].
    pub fn take_pages(&self) -> rvmm_vm::Result<()> {
        set_slot(&self.vm, PAGES_SLOT, PAGES, 0, 0)
    }

    /// How often a change of the host's has waited for a vCPU that was about to map a page. `None` where that is not
    /// counted: rvmm alone has no lock to wait for instead.
    pub fn fault_waits(&self) -> anyhow::Result<Option<u64>> {
        let stats = rvmm_vm::stats::read(&rvmm_vm::sys::stats_fd(&self.vm)?)?;
        let waits = stats
            .stats
            .iter()
            .find(|stat| stat.name == "mmu_fault_waits");
        Ok(waits.map(|stat| stat.total()))
    }

    /// Exits of CPU 0 so far.
    pub fn exits(&self) -> anyhow::Result<u64> {
        let vcpu = self.vcpus.first().context("no CPU")?;
        let stats = rvmm_vm::stats::read(&rvmm_vm::sys::stats_fd(vcpu)?)?;
        let exits = stats.stats.iter().find(|stat| stat.name == "exits");
        Ok(exits.context("no statistics of exits")?.total())
    }

    /// The memory for the fault rows, if there is any.
    pub fn pages(&self) -> Option<&Region> {
        self.pages.as_ref()
    }

    /// Makes the fault rows' memory a slot anew, without a log: nothing is mapped any more.
    pub fn renew_pages(&self) -> anyhow::Result<()> {
        self.take_pages()?;
        Ok(self.give_pages(self.pages().context("no pages")?)?)
    }

    /// Begins to log what is written to the fault rows' memory (KVM_MEM_LOG_DIRTY_PAGES), or ends it.
    pub fn log_pages(&self, log: bool) -> anyhow::Result<()> {
        let region = self.pages().context("no pages")?;
        let flags = if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        let (host, length) = (region.address(), region.length() as u64);
        Ok(set_slot_with(
            &self.vm, PAGES_SLOT, PAGES, host, length, flags,
        )?)
    }

    /// Adds memory for the fault rows.
    pub fn with_pages(mut self, pages: Region) -> rvmm_vm::Result<Self> {
        slot(&self.vm, PAGES_SLOT, PAGES, &pages)?;
        self.pages = Some(pages);
        Ok(self)
    }

    /// Runs a routine to its end and returns the ticks of each counted iteration.
    pub fn run(&mut self, work: Work) -> anyhow::Result<Vec<u64>> {
        self.run_with(work, &mut |_, _| Ok(()))
    }

    /// Does what [`Machine::run`] does for a routine that has user space raise something.
    pub fn run_with(&mut self, work: Work, line: &mut Line) -> anyhow::Result<Vec<u64>> {
        let vcpu = self.vcpus.first_mut().context("no CPU")?;
        set_up(vcpu, &work, self.registers.is_some())?;
        drive(vcpu, &work, |port| match port {
            guest::RAISE => line(&self.vm, true),
            guest::LOWER => line(&self.vm, false),
            _ => Ok(()),
        })?;
        Ok(self.results(&work))
    }

    /// Runs a routine on CPU 0 and `echo` on CPU 1, their threads on these processors of the host.
    pub fn run_pair(
        &mut self,
        work: Work,
        echo: Routine,
        processors: [usize; 2],
    ) -> anyhow::Result<Vec<u64>> {
        let [first, second] = &mut self.vcpus[..] else {
            anyhow::bail!("not two CPUs");
        };
        let echo = Work {
            routine: echo,
            ..work
        };
        set_up(first, &work, false)?;
        set_up(second, &echo, false)?;
        let before = Affinity::of_this_thread()?;
        let over = AtomicBool::new(false);
        let thread = AtomicU64::new(0);
        let (listens, listening) = mpsc::channel();
        thread::scope(|scope| {
            let (over, thread) = (&over, &thread);
            let other = thread::Builder::new().spawn_scoped(scope, move || {
                // SAFETY: No preconditions.
                thread.store(unsafe { libc::pthread_self() }, Ordering::Relaxed);
                Affinity::one(processors[1]).set()?;
                drive_until(second, &echo.routine, over, |port| {
                    if port == guest::READY {
                        let _ = listens.send(());
                    }
                    Ok(())
                })
            })?;
            let result = listening
                .recv_timeout(Duration::from_secs(60))
                .context("the other CPU does not start")
                .and_then(|()| {
                    Affinity::one(processors[0]).set()?;
                    drive(first, &work, |_| Ok(()))
                });
            if result.is_err() {
                over.store(true, Ordering::Relaxed);
                vmm_sys_util::signal::register_signal_handler(libc::SIGUSR1, on_signal)
                    .context("sigaction")?;
                while !other.is_finished() {
                    let thread = thread.load(Ordering::Relaxed);
                    if thread != 0 {
                        // SAFETY: The thread has not been joined.
                        unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                    }
                    thread::sleep(Duration::from_millis(10));
                }
            }
            let echoed = other.join().unwrap_or_else(|_| Ok(()));
            result.and(echoed)
        })?;
        before.set()?;
        Ok(self.results(&work))
    }

    /// Runs a routine on all CPUs at once, each on its own part of the fault rows' memory, their threads on the host's
    /// first `processors` in turn; the ticks from the first one's start to the last one's end, by the host's clock.
    pub fn run_all(&mut self, work: Work, page: u64, processors: usize) -> anyhow::Result<u64> {
        let total = work.warm + work.count;
        let start = Barrier::new(self.vcpus.len());
        let spans = thread::scope(|scope| {
            let start = &start;
            let mut threads = Vec::new();
            for (index, vcpu) in self.vcpus.iter_mut().enumerate() {
                let own = Work {
                    pages: work.pages + (index * total) as u64 * page,
                    skip: index * total,
                    ..work
                };
                threads.push(scope.spawn(move || -> anyhow::Result<(u64, u64)> {
                    let ready = Affinity::one(index % processors)
                        .set()
                        .context("sched_setaffinity")
                        .and_then(|()| set_up(vcpu, &own, false));
                    start.wait();
                    ready?;
                    let begin = ticks();
                    drive(vcpu, &own, |_| Ok(()))?;
                    Ok((begin, ticks()))
                }));
            }
            let spans = threads.into_iter().map(|thread| match thread.join() {
                Ok(span) => span,
                Err(_) => anyhow::bail!("a thread panicked"),
            });
            spans.collect::<anyhow::Result<Vec<_>>>()
        })?;
        let begin = spans.iter().map(|(begin, _)| *begin).min();
        let end = spans.iter().map(|(_, end)| *end).max();
        Ok(end
            .context("no CPU")?
            .saturating_sub(begin.context("no CPU")?))
    }

    fn results(&self, work: &Work) -> Vec<u64> {
        (work.warm..work.warm + work.count)
            .map(|n| self.low.read_u64(RESULTS + n as u64 * 8))
            .collect()
    }
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Sets a CPU's registers for a routine.
fn set_up(vcpu: &VcpuFd, work: &Work, device: bool) -> anyhow::Result<()> {
    let total = work.warm + work.count;
    anyhow::ensure!(
        total > 0 && work.skip + total <= (LOW - RESULTS as usize) / 8,
        "too many iterations"
    );
    let echo = matches!(work.routine, Routine::EchoHalted | Routine::EchoRunning);
    let regs = kvm_regs {
        rip: CODE + work.routine.offset(),
        rsp: layout::STACK_TOP - if echo { 0x1000 } else { 0 },
        rflags: 2,
        rdi: match work.routine {
            Routine::HltWake => layout::LAPIC.into(),
            Routine::IpiHalted | Routine::IpiRunning => STOP,
            _ if echo => STOP,
            _ if device => DEVICE,
            _ => NOTHING,
        },
        rsi: nvme::SUBMISSION,
        rbp: match work.routine {
            Routine::NvmeRead => nvme::COMPLETION,
            _ => work.pages,
        },
        r9: RESULTS + work.skip as u64 * 8,
        r10: total as u64,
        r13: work.delay,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
    Ok(())
}

/// Completes a vCPU's last exit (api.rst 5, immediate_exit), so that its registers may be set anew.
fn complete(vcpu: &mut VcpuFd) -> anyhow::Result<()> {
    vcpu.set_kvm_immediate_exit(1);
    let done = vcpu.run().map(|exit| format!("{exit:?}"));
    vcpu.set_kvm_immediate_exit(0);
    match done {
        Err(error) if error.errno() == libc::EINTR => Ok(()),
        other => anyhow::bail!("immediate exit: {other:?}"),
    }
}

/// Runs a CPU to the end of its routine.
fn drive(
    vcpu: &mut VcpuFd,
    work: &Work,
    port: impl FnMut(u16) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    drive_until(vcpu, &work.routine, &AtomicBool::new(false), port)
}

/// Runs a CPU until its code ends.
pub(super) fn drive_to_end(vcpu: &mut VcpuFd) -> anyhow::Result<()> {
    drive_until(vcpu, &"template", &AtomicBool::new(false), |_| Ok(()))
}

/// Runs a CPU to the end of its routine, or until a signal comes when `over` is set.
fn drive_until(
    vcpu: &mut VcpuFd,
    what: &dyn Debug,
    over: &AtomicBool,
    mut port: impl FnMut(u16) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(guest::DONE, _)) => return complete(vcpu),
            Ok(VcpuExit::IoOut(number, _)) => port(number)?,
            Ok(VcpuExit::IoIn(..)) => {}
            Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => {}
            Ok(other) => {
                let exit = format!("{other:?}");
                let at = vcpu.get_regs().map(|regs| regs.rip).unwrap_or_default();
                let rule = rvmm_vm::sys::entry_failure(vcpu);
                let rule = rule
                    .map(|(rule, _)| format!(": {rule}"))
                    .unwrap_or_default();
                anyhow::bail!("{what:?}: unexpected {exit} at {at:#x}{rule}");
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                anyhow::ensure!(!over.load(Ordering::Relaxed), "stopped");
            }
            Err(error) => anyhow::bail!("{what:?}: KVM_RUN: {error}"),
        }
    }
}

/// Processors of the host that a thread may use.
struct Affinity(libc::cpu_set_t);

impl Affinity {
    fn one(processor: usize) -> Self {
        // SAFETY: All zeros is the empty set.
        let mut set = unsafe { mem::zeroed() };
        // SAFETY: CPU_SET ignores numbers beyond the set.
        unsafe { libc::CPU_SET(processor, &mut set) };
        Self(set)
    }

    fn of_this_thread() -> io::Result<Self> {
        // SAFETY: All zeros is the empty set.
        let mut set = unsafe { mem::zeroed() };
        // SAFETY: The set is valid for writes, with its size.
        match unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } {
            0 => Ok(Self(set)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Makes the calling thread use these processors.
    fn set(&self) -> io::Result<()> {
        // SAFETY: The set is valid, with its size.
        match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// A 64-bit interrupt gate to `handler` (SDM 3A 6.14.1).
fn gate(handler: u64) -> [u8; 16] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e00;
    let low = handler & 0xffff
        | (u64::from(paging::BOOT_CS) << 16)
        | (PRESENT_INTERRUPT_GATE << 32)
        | (((handler >> 16) & 0xffff) << 48);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&(handler >> 32).to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_layout() {
        let bytes = gate(0x1122_3344_5566_7788);
        assert_eq!(bytes[..8], [0x88, 0x77, 0x10, 0, 0, 0x8e, 0x66, 0x55]);
        assert_eq!(bytes[8..12], [0x44, 0x33, 0x22, 0x11]);
    }
}
