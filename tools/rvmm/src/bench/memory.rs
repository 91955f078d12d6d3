// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Rows of memory: nested faults, the dirty log, slots, the host's changes underneath, and what machines take of it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context as _;
use kvm_bindings::{
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_enable_cap, kvm_mp_state, kvm_regs,
    KVMIO, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_MP_STATE_RUNNABLE,
};
use kvm_ioctls::{Cap, VcpuExit, VcpuFd, VmFd};
use rvmm_vm::vm;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::guest::Routine;
use super::machine::{failed, set_slot, Machine, Work, PAGES, PAGES_SLOT};
use super::region::Region;
use super::report::Ticks;
use super::rows::{ticks, Bench};

/// Bytes of a small and of a large page.
const PAGE: usize = 4 << 10;
const LARGE: usize = 2 << 20;
/// Rounds of what is measured over many pages at once, after one that does not count.
const ROUNDS: usize = 3;
/// Pages of a slot whose log is read, and of memory that is taken away.
const LOGGED: usize = 8192;
/// Slots that exist when another one comes and goes.
const SLOTS: usize = 8000;
/// Slots that come and go.
const CHANGES: usize = 50;
/// The first of these slots.
const FIRST_SLOT: u32 = PAGES_SLOT + 1;
/// Ticks after which the row of all slots gives up.
const TOO_LONG: u64 = 10_000_000_000;
/// Pages that vCPUs touch in all.
const TOUCHED: usize = 16384;
/// Machines, and vCPUs of one machine, whose memory is counted.
const MACHINES: usize = 64;
const VCPUS: u64 = 64;
/// vCPUs that fault at the same time, and the row's name.
const FAULTS: [(u8, &str); 4] = [
    (1, "faults_1"),
    (4, "faults_4"),
    (16, "faults_16"),
    (64, "faults_64"),
];
/// The same while the host changes memory.
const WAITS: [(u8, &str); 4] = [
    (1, "waits_1"),
    (4, "waits_4"),
    (16, "waits_16"),
    (64, "waits_64"),
];

#[allow(missing_docs)]
mod numbers {
    use super::{kvm_clear_dirty_log, KVMIO};

    vmm_sys_util::ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
}

/// Measures all of them.
pub fn rows(bench: &mut Bench, overhead: u64) {
    bench.row("fault_4k", |bench| bench.touch(false, overhead));
    bench.row("fault_2m", |bench| bench.touch(true, overhead));
    let asked = !bench.args.rows.is_empty();
    if asked || free_gigabytes() > 0 {
        bench.row("fault_1g", |bench| bench.touch_gigabyte(overhead));
    }
    let processors = thread::available_parallelism().map_or(1, usize::from);
    if asked || processors >= 4 {
        for (cpus, name) in FAULTS {
            bench.row(name, |bench| bench.faults(cpus, processors.min(4)));
        }
        if WAITS.iter().any(|(_, name)| bench.wants(name)) && bench.counts_waits() {
            for (cpus, name) in WAITS {
                bench.row(name, |bench| bench.waits(cpus, processors.min(4)));
            }
        }
    }
    bench.row("log_write_4k", |bench| bench.log_write(overhead));
    bench.rows(["log_start_2m", "log_write_2m"], |bench| {
        bench.log_large(overhead)
    });
    bench.row("log_get", |bench| {
        bench.log_read(Routine::Touch4k, LOGGED, false)
    });
    bench.row("log_get_half", |bench| {
        bench.log_read(Routine::Touch8k, LOGGED / 2, false)
    });
    bench.row("log_clear", |bench| {
        bench.log_read(Routine::Touch4k, LOGGED, true)
    });
    bench.row("dontneed_4k", Bench::discard);
    bench.rows(["slot_add", "slot_delete", "notify_slots"], Bench::slots);
    bench.row("slots_all", Bench::all_slots);
    bench.row("vm_bytes", Bench::machine_bytes);
    bench.row("vcpu_bytes", Bench::vcpu_bytes);
}

/// A total over many pages or machines, in ticks or bytes, for each.
fn each(totals: &[u64], count: usize) -> anyhow::Result<Ticks> {
    let each: Vec<_> = totals.iter().map(|total| total / count as u64).collect();
    Ticks::of(&each, 0).context("no samples")
}

impl Bench<'_> {
    /// Ticks of the first store to a page of the guest, small or large.
    fn touch(&self, large: bool, overhead: u64) -> anyhow::Result<Ticks> {
        let (routine, page, count) = if large {
            (Routine::Touch2m, LARGE, self.count().min(24))
        } else {
            (Routine::Touch4k, PAGE, self.count())
        };
        let warm = count / 10 + 1;
        let region = resident((warm + count) * page, large)?;
        let mut machine = Machine::new(&self.kvm, self.irqchip())?.with_pages(region)?;
        let samples = machine.run(Work {
            warm,
            ..Work::new(routine, count)
        })?;
        Ticks::of(&samples, overhead).context("no samples")
    }

    /// Ticks of the first store to a page of 1 GiB (hugetlb), which the host has resident. Each sample is of the same
    /// page in a new slot.
    fn touch_gigabyte(&self, overhead: u64) -> anyhow::Result<Ticks> {
        let region = Region::gigabyte().context("no page of 1 GiB (hugepagesz=1G hugepages=1)")?;
        let mut machine = Machine::new(&self.kvm, self.irqchip())?.with_pages(region)?;
        let mut samples = Vec::new();
        for round in 0..24 {
            let work = Work {
                warm: 0,
                ..Work::new(Routine::Touch2m, 1)
            };
            let sample = machine.run(work)?;
            if round >= 4 {
                samples.extend(sample);
            }
            machine.renew_pages()?;
        }
        Ticks::of(&samples, overhead).context("no samples")
    }

    /// A machine whose vCPUs touch [`TOUCHED`] resident small pages in all, and what each does.
    fn touching(&self, cpus: u8) -> anyhow::Result<(Machine, Work)> {
        let region = resident(TOUCHED * PAGE, false)?;
        let machine = Machine::with_cpus(&self.kvm, self.irqchip(), cpus)?;
        let work = Work {
            warm: 0,
            ..Work::new(Routine::Touch4k, TOUCHED / usize::from(cpus))
        };
        Ok((machine.with_pages(region)?, work))
    }

    /// Ticks of a fault on resident memory in small pages while so many vCPUs fault, each in a part of its own, their
    /// threads on the host's processors in turn: from the first one's start to the last one's end, by all faults.
    /// Where processors take turns and count together (amd with --icount) that is what all of them do for one.
    fn faults(&self, cpus: u8, processors: usize) -> anyhow::Result<Ticks> {
        let (mut machine, work) = self.touching(cpus)?;
        let mut totals = Vec::new();
        for round in 0..=ROUNDS {
            machine.renew_pages()?;
            let total = machine.run_all(work, PAGE as u64, processors)?;
            if round > 0 {
                totals.push(total);
            }
        }
        each(&totals, work.count * usize::from(cpus))
    }

    /// Whether the device tells what [`Bench::waits`] is about.
    fn counts_waits(&self) -> bool {
        let machine = Machine::new(&self.kvm, self.irqchip());
        machine.is_ok_and(|m| m.fault_waits().is_ok_and(|waits| waits.is_some()))
    }

    /// While so many vCPUs fault as in [`Bench::faults`], another thread takes a page of the same VM away and brings it
    /// back, again and again: how many of a thousand such changes waited for a vCPU that was about to map a page.
    fn waits(&self, cpus: u8, processors: usize) -> anyhow::Result<Ticks> {
        let (mut machine, work) = self.touching(cpus)?;
        let other = Region::reserve(PAGE).context("memory")?;
        let gpa = PAGES + ((TOUCHED + 1) * PAGE) as u64;
        set_slot(&machine.vm, FIRST_SLOT, gpa, other.address(), PAGE as u64)?;
        let over = AtomicBool::new(false);
        let changes = thread::scope(|scope| {
            let changer = scope.spawn(|| -> anyhow::Result<u64> {
                let mut changes = 0;
                while !over.load(Ordering::Relaxed) {
                    other.populate().context("MADV_POPULATE_WRITE")?;
                    other.discard().context("MADV_DONTNEED")?;
                    changes += 1;
                }
                Ok(changes)
            });
            let mut run = || -> anyhow::Result<()> {
                for _ in 0..ROUNDS {
                    machine.renew_pages()?;
                    machine.run_all(work, PAGE as u64, processors)?;
                }
                Ok(())
            };
            let ran = run();
            over.store(true, Ordering::Relaxed);
            let Ok(changes) = changer.join() else {
                anyhow::bail!("a thread panicked");
            };
            ran.and(changes)
        })?;
        let waits = machine.fault_waits()?.context("waits are not counted")?;
        anyhow::ensure!(changes > 0, "the host has changed nothing meanwhile");
        Ticks::of(&[waits * 1000 / changes], 0).context("no samples")
    }

    /// Ticks of a store to a small page that has been taken from the log.
    fn log_write(&self, overhead: u64) -> anyhow::Result<Ticks> {
        let work = Work::new(Routine::Touch4k, self.count());
        let region = resident((work.warm + work.count) * PAGE, false)?;
        let mut machine = Machine::new(&self.kvm, self.irqchip())?.with_pages(region)?;
        machine.run(work)?;
        machine.log_pages(true)?;
        machine.run(work)?;
        dirty_log(&machine)?;
        let samples = machine.run(work)?;
        Ticks::of(&samples, overhead).context("no samples")
    }

    /// Ticks of the call that begins to log memory which the guest has in large pages, for each of these, and of the
    /// first store to each then.
    fn log_large(&self, overhead: u64) -> anyhow::Result<[Ticks; 2]> {
        let count = self.count().min(24);
        let work = Work {
            warm: 1,
            ..Work::new(Routine::Touch2m, count)
        };
        let pages = work.warm + work.count;
        let region = resident(pages * LARGE, true)?;
        let mut machine = Machine::new(&self.kvm, self.irqchip())?.with_pages(region)?;
        let (mut starts, mut writes) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            machine.renew_pages()?;
            machine.run(work)?;
            let start = ticks();
            machine.log_pages(true)?;
            let end = ticks();
            let samples = machine.run(work)?;
            if round > 0 {
                starts.push(end - start);
                writes.extend(samples);
            }
        }
        let writes = Ticks::of(&writes, overhead).context("no samples")?;
        Ok([each(&starts, pages)?, writes])
    }

    /// Ticks for each page that the guest has written of [`LOGGED`] ones: of KVM_GET_DIRTY_LOG, or, where that leaves
    /// them writable (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE), of KVM_CLEAR_DIRTY_LOG of all.
    fn log_read(&self, routine: Routine, dirty: usize, clear: bool) -> anyhow::Result<Ticks> {
        let region = resident(LOGGED * PAGE, false)?;
        let mut machine = Machine::new(&self.kvm, self.irqchip())?.with_pages(region)?;
        if clear {
            let manual = kvm_enable_cap {
                cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                args: [KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.into(), 0, 0, 0],
                ..Default::default()
            };
            machine.vm.enable_cap(&manual).context("KVM_ENABLE_CAP")?;
        }
        machine.log_pages(true)?;
        let work = Work {
            warm: 0,
            ..Work::new(routine, dirty)
        };
        let mut totals = Vec::new();
        for round in 0..=ROUNDS {
            machine.run(work)?;
            let start = ticks();
            let log = dirty_log(&machine)?;
            let mut total = ticks() - start;
            let found: u32 = log.iter().map(|word| word.count_ones()).sum();
            anyhow::ensure!(found as usize == dirty, "{found} pages in the log");
            if clear {
                let start = ticks();
                clear_dirty_log(&machine, &log)?;
                total = ticks() - start;
            }
            if round > 0 {
                totals.push(total);
            }
        }
        each(&totals, dirty)
    }

    /// Ticks of MADV_DONTNEED for each small page that the guest has mapped, over [`LOGGED`] of them.
    fn discard(&self) -> anyhow::Result<Ticks> {
        let region = resident(LOGGED * PAGE, false)?;
        let mut machine = Machine::new(&self.kvm, self.irqchip())?.with_pages(region)?;
        let work = Work {
            warm: 0,
            ..Work::new(Routine::Touch4k, LOGGED)
        };
        let mut totals = Vec::new();
        for round in 0..=ROUNDS {
            machine.run(work)?;
            let region = machine.pages().context("no pages")?;
            let start = ticks();
            region.discard().context("MADV_DONTNEED")?;
            let end = ticks();
            region.populate().context("MADV_POPULATE_WRITE")?;
            if round > 0 {
                totals.push(end - start);
            }
        }
        each(&totals, LOGGED)
    }

    /// Ticks to add a slot of one page, and to delete it, when [`SLOTS`] exist, at addresses all over them; and of
    /// MADV_DONTNEED of a page that is in none of them.
    fn slots(&self) -> anyhow::Result<[Ticks; 3]> {
        let region = Region::reserve((SLOTS + 1) * PAGE).context("memory")?;
        let outside = Region::reserve(PAGE).context("memory")?;
        let mut machine = Machine::new(&self.kvm, self.irqchip())?;
        machine.run(Work::new(Routine::Nothing, 1))?;
        for slot in 0..SLOTS {
            add_slot(&machine.vm, &region, slot)?;
        }
        let (mut added, mut deleted, mut notified) = (Vec::new(), Vec::new(), Vec::new());
        let host = region.address() + (SLOTS * PAGE) as u64;
        let number = FIRST_SLOT + SLOTS as u32;
        for round in 0..CHANGES {
            // The page between two slots.
            let gpa = PAGES + ((round * 997 % SLOTS * 2 + 1) * PAGE) as u64;
            let start = ticks();
            set_slot(&machine.vm, number, gpa, host, PAGE as u64)?;
            let middle = ticks();
            set_slot(&machine.vm, number, gpa, host, 0)?;
            let end = ticks();
            outside.populate().context("MADV_POPULATE_WRITE")?;
            let discard = ticks();
            outside.discard().context("MADV_DONTNEED")?;
            added.push(middle - start);
            deleted.push(end - middle);
            notified.push(ticks() - discard);
        }
        let all = [added, deleted, notified].map(|samples| Ticks::of(&samples, 0));
        let [Some(added), Some(deleted), Some(notified)] = all else {
            anyhow::bail!("no samples");
        };
        Ok([added, deleted, notified])
    }

    /// Ticks to add all slots that there may be, one page each.
    fn all_slots(&self) -> anyhow::Result<Ticks> {
        let most = self.kvm.check_extension_int(Cap::NrMemslots);
        // Slot 0 is the machine's, the fault rows' one is free.
        let count = usize::try_from(most)?.saturating_sub(FIRST_SLOT as usize);
        let region = Region::reserve(count * PAGE).context("memory")?;
        let machine = Machine::new(&self.kvm, self.irqchip())?;
        let start = ticks();
        for slot in 0..count {
            add_slot(&machine.vm, &region, slot)?;
            let took = ticks() - start;
            anyhow::ensure!(
                took < TOO_LONG,
                "{slot} slots after {took} ticks, and {count} are to come"
            );
        }
        Ticks::of(&[ticks() - start], 0).context("no samples")
    }

    /// Bytes that a machine takes of the host's memory: interrupt controllers, one slot, a vCPU that has run. The
    /// guest's own memory does not count.
    fn machine_bytes(&self) -> anyhow::Result<Ticks> {
        let low = low_memory()?;
        let mut machines = Vec::new();
        let mut before = 0;
        for number in 0..MACHINES + 8 {
            if number == 8 {
                before = free_bytes()?;
            }
            let vm = self.small_machine(&low)?;
            machines.push((run_once(&vm, 0)?, vm));
        }
        let after = free_bytes()?;
        each(&[before.saturating_sub(after)], MACHINES)
    }

    /// Bytes that another vCPU of a machine takes of the host's memory, once it has run.
    fn vcpu_bytes(&self) -> anyhow::Result<Ticks> {
        let low = low_memory()?;
        let vm = self.small_machine(&low)?;
        let mut vcpus = vec![run_once(&vm, 0)?];
        let before = free_bytes()?;
        for id in 1..VCPUS {
            vcpus.push(run_once(&vm, id)?);
        }
        let after = free_bytes()?;
        each(&[before.saturating_sub(after)], VCPUS as usize - 1)
    }

    /// A machine without a vCPU, with memory from address 0 on.
    fn small_machine(&self, low: &Region) -> anyhow::Result<VmFd> {
        let vm = vm::create_vm(&self.kvm)?;
        if self.irqchip() {
            vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        }
        set_slot(&vm, 0, 0, low.address(), low.length() as u64)?;
        Ok(vm)
    }
}

/// Resident memory in pages of one size.
fn resident(length: usize, large: bool) -> anyhow::Result<Region> {
    let region = Region::new(length, large).context("memory")?;
    anyhow::ensure!(
        !large || region.is_large(),
        "the host gives no large pages (/sys/kernel/mm/transparent_hugepage/enabled)"
    );
    Ok(region)
}

/// What KVM_GET_DIRTY_LOG says of the fault rows' memory.
fn dirty_log(machine: &Machine) -> anyhow::Result<Vec<u64>> {
    let length = machine.pages().context("no pages")?.length();
    let log = machine.vm.get_dirty_log(PAGES_SLOT, length);
    log.context("KVM_GET_DIRTY_LOG")
}

/// KVM_CLEAR_DIRTY_LOG of all pages in `log` (api.rst 4.119).
fn clear_dirty_log(machine: &Machine, log: &[u64]) -> anyhow::Result<()> {
    let clear = kvm_clear_dirty_log {
        slot: PAGES_SLOT,
        num_pages: log.len() as u32 * 64,
        first_page: 0,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: log.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: the ioctl reads the structure and, at its pointer, a bit for each of `num_pages` pages.
    match unsafe { ioctl_with_ref(&machine.vm, numbers::KVM_CLEAR_DIRTY_LOG(), &clear) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).context("KVM_CLEAR_DIRTY_LOG"),
    }
}

/// Adds one of many slots: a page of `region`, with a page that has no slot behind it.
fn add_slot(vm: &VmFd, region: &Region, number: usize) -> rvmm_vm::Result<()> {
    let gpa = PAGES + (number * 2 * PAGE) as u64;
    let host = region.address() + (number * PAGE) as u64;
    set_slot(vm, FIRST_SLOT + number as u32, gpa, host, PAGE as u64)
}

/// Where the code is that [`run_once`] runs.
const CODE: u64 = 0x1000;

/// Memory with that code: OUT to a port below 256.
fn low_memory() -> anyhow::Result<Region> {
    let mut low = Region::new(16 * PAGE, false).context("memory")?;
    low.write(CODE, &[0xe6, 0x10]);
    Ok(low)
}

/// A vCPU that has run one instruction, in real mode.
fn run_once(vm: &VmFd, id: u64) -> anyhow::Result<VcpuFd> {
    let mut vcpu = vm.create_vcpu(id).map_err(failed("KVM_CREATE_VCPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: CODE,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
    if id != 0 {
        let state = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        // Without interrupt controllers it is so already, and may not be said.
        let _ = vcpu.set_mp_state(state);
    }
    match vcpu.run() {
        Ok(VcpuExit::IoOut(0x10, _)) => {}
        other => anyhow::bail!("vCPU {id}: {other:?}"),
    }
    Ok(vcpu)
}

/// Free pages of 1 GiB of the host.
fn free_gigabytes() -> u64 {
    let path = Path::new("/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Free memory of the host, to the page.
fn free_bytes() -> anyhow::Result<u64> {
    // Has the processors' shares of counters added up; for root only.
    let _ = std::fs::write("/proc/sys/vm/stat_refresh", "1");
    let zones = std::fs::read_to_string("/proc/zoneinfo").context("/proc/zoneinfo")?;
    Ok(free_pages(&zones) * PAGE as u64)
}

/// Pages that the text of /proc/zoneinfo calls free: zones' own, and those that processors have at hand.
fn free_pages(zones: &str) -> u64 {
    let mut pages = 0;
    for line in zones.lines() {
        let mut words = line.split_whitespace();
        if let (Some("nr_free_pages" | "count:"), Some(number)) = (words.next(), words.next()) {
            pages += number.parse().unwrap_or(0);
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_pages_are_of_zones_and_of_processors() {
        let zones = "Node 0, zone DMA32\n  pages free     100\n      nr_free_pages 100\n  pagesets\n    cpu: 0\n\
                     \x20             count:    23\n              high:     378\n";
        assert_eq!(free_pages(zones), 123);
    }

    #[test]
    fn totals_are_shared_out() {
        let ticks = each(&[100, 200, 330], 10).unwrap();
        assert_eq!((ticks.mean, ticks.min), (21, 10));
        assert!(each(&[], 10).is_err());
    }

    #[test]
    fn the_ioctl_has_its_number() {
        assert_eq!(numbers::KVM_CLEAR_DIRTY_LOG(), 0xc018_aec0);
    }
}
