// SPDX-License-Identifier: GPL-2.0
//! Statistics in KVM's binary format, and the exit ledger: how often each kind of exit happened and how long it took
//! (api.rst 4.133 KVM_GET_STATS_FD).
//!
//! The statistics file is never built as a whole: [`StatsFile::read`] computes the bytes asked for from constant
//! descriptors and from live counters.
#![forbid(unsafe_code)]

use core::cell::OnceCell;
use core::ffi::CStr;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a name, and of the id string (`name_size` of the header).
pub const NAME_SIZE: usize = 48;
/// Bytes of `struct kvm_stats_header`.
pub const HEADER_SIZE: usize = 24;
/// Bytes of `struct kvm_stats_desc` with its name.
pub const DESC_SIZE: usize = 16 + NAME_SIZE;
/// Offset of the first descriptor.
pub const DESC_OFFSET: usize = HEADER_SIZE + NAME_SIZE;

/// Buckets of a histogram; the last one takes all of 2^30 cycles and more.
pub const BUCKETS: usize = 32;

const TYPE_CUMULATIVE: u32 = 0;
const TYPE_INSTANT: u32 = 1;
const TYPE_LOG_HIST: u32 = 4;
const UNIT_NONE: u32 = 0 << 4;
const UNIT_SECONDS: u32 = 2 << 4;
const UNIT_CYCLES: u32 = 3 << 4;
const UNIT_BOOLEAN: u32 = 4 << 4;

/// One statistic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desc {
    /// Name, shorter than [`NAME_SIZE`].
    pub name: &'static str,
    /// KVM_STATS_TYPE_* | KVM_STATS_UNIT_* | KVM_STATS_BASE_*.
    pub flags: u32,
    /// The values are in units of ten to this power.
    pub exponent: i16,
    /// Number of 64-bit values.
    pub size: u16,
}

impl Desc {
    /// A count that only grows.
    pub const fn cumulative(name: &'static str) -> Self {
        Self::new(name, TYPE_CUMULATIVE | UNIT_NONE, 1)
    }

    /// A quantity as it is now.
    pub const fn instant(name: &'static str) -> Self {
        Self::new(name, TYPE_INSTANT | UNIT_NONE, 1)
    }

    /// Whether something is so now: 0 or 1.
    pub const fn flag(name: &'static str) -> Self {
        Self::new(name, TYPE_INSTANT | UNIT_BOOLEAN, 1)
    }

    /// Nanoseconds, which only grow.
    pub const fn nanoseconds(name: &'static str) -> Self {
        Self::new(name, TYPE_CUMULATIVE | UNIT_SECONDS, 1).in_nano()
    }

    /// A log2 histogram of cycles: of the TSC, or on Arm64 of the counter CNTPCT.
    pub const fn cycles_histogram(name: &'static str) -> Self {
        Self::new(name, TYPE_LOG_HIST | UNIT_CYCLES, BUCKETS as u16)
    }

    /// A log2 histogram of nanoseconds.
    pub const fn nanoseconds_histogram(name: &'static str) -> Self {
        Self::new(name, TYPE_LOG_HIST | UNIT_SECONDS, BUCKETS as u16).in_nano()
    }

    const fn in_nano(self) -> Self {
        Self {
            exponent: -9,
            ..self
        }
    }

    const fn new(name: &'static str, flags: u32, size: u16) -> Self {
        assert!(name.len() < NAME_SIZE);
        Self {
            name,
            flags,
            exponent: 0,
            size,
        }
    }
}

macro_rules! exit_classes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Kind of an exit, for statistics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum ExitClass {
            $($(#[$doc])* $variant,)*
        }

        impl ExitClass {
            /// All classes, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// Number of classes.
            pub const COUNT: usize = Self::ALL.len();

            /// Its name.
            pub const fn name(self) -> &'static CStr {
                match self {
                    $(Self::$variant => const {
                        match CStr::from_bytes_with_nul(concat!($name, "\0").as_bytes()) {
                            Ok(name) => name,
                            Err(_) => panic!("a name ends within"),
                        }
                    },)*
                }
            }
        }

        const EXIT_COUNTS: [Desc; ExitClass::COUNT] =
            [$(Desc::cumulative(concat!("exit_", $name)),)*];
        const EXIT_CYCLES: [Desc; ExitClass::COUNT] =
            [$(Desc::cycles_histogram(concat!("exit_", $name, "_cycles")),)*];
    };
}

#[cfg(CONFIG_ARM64)]
exit_classes! {
    /// HVC.
    Hvc = "hvc",
    /// SMC.
    Smc = "smc",
    /// WFI.
    Wfi = "wfi",
    /// WFE.
    Wfe = "wfe",
    /// MRS or MSR.
    SystemRegister = "system_register",
    /// A stage-2 fault that was answered by mapping a page.
    NestedFault = "nested_fault",
    /// An access to a device in the kernel.
    MmioKernel = "mmio_kernel",
    /// An access to a device of user space's.
    MmioUser = "mmio_user",
    /// Host interrupt.
    HostInterrupt = "host_interrupt",
    /// A breakpoint, watchpoint or step of user space's.
    Debug = "debug",
    /// Something that guests do not have.
    Absent = "absent",
    /// Anything else.
    Other = "other",
}

#[cfg(not(CONFIG_ARM64))]
exit_classes! {
    /// CPUID.
    Cpuid = "cpuid",
    /// RDMSR.
    Rdmsr = "rdmsr",
    /// WRMSR.
    Wrmsr = "wrmsr",
    /// IN, OUT.
    Io = "io",
    /// INS, OUTS.
    IoString = "io_string",
    /// A nested-paging fault that was answered by mapping a page.
    NestedFault = "nested_fault",
    /// A nested-paging fault on a device address.
    Mmio = "mmio",
    /// HLT.
    Hlt = "hlt",
    /// VMCALL, VMMCALL.
    Hypercall = "hypercall",
    /// Control-register access.
    CrAccess = "cr_access",
    /// Debug-register access.
    DrAccess = "dr_access",
    /// Host interrupt.
    ExternalInterrupt = "external_interrupt",
    /// Host NMI or machine check.
    Nmi = "nmi",
    /// Interrupt window.
    IrqWindow = "irq_window",
    /// NMI window.
    NmiWindow = "nmi_window",
    /// Intercepted exception.
    Exception = "exception",
    /// Triple fault.
    TripleFault = "triple_fault",
    /// PAUSE loop.
    Pause = "pause",
    /// WBINVD, WBNOINVD, INVD.
    Wbinvd = "wbinvd",
    /// XSETBV.
    Xsetbv = "xsetbv",
    /// INVLPG.
    Invlpg = "invlpg",
    /// Task switch.
    TaskSwitch = "task_switch",
    /// RDTSC, RDTSCP, RDPMC.
    Rdtsc = "rdtsc",
    /// MONITOR, MWAIT.
    Mwait = "mwait",
    /// APIC virtualisation: EOI, write, TPR threshold.
    Apic = "apic",
    /// Entry refused by the processor.
    EntryFailure = "entry_failure",
    /// Anything else.
    Other = "other",
}

macro_rules! counters {
    ($(#[$outer:meta])* $ty:ident, $descs:ident: $($(#[$doc:meta])* $variant:ident = $kind:ident($name:literal),)*) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $ty {
            $($(#[$doc])* $variant,)*
        }

        impl $ty {
            /// Number of counters.
            pub const COUNT: usize = [$(Self::$variant,)*].len();
        }

        const $descs: [Desc; $ty::COUNT] = [$(Desc::$kind($name),)*];
    };
}

#[cfg(CONFIG_ARM64)]
counters! {
    /// Counters of a vCPU besides the exit ledger.
    VcpuCounter, VCPU_COUNTERS:
    /// Entries into the guest.
    Entries = cumulative("entries"),
    /// Returns from KVM_RUN.
    UserExits = cumulative("user_exits"),
    /// KVM_RUN ended by a signal or immediate_exit.
    SignalExits = cumulative("signal_exits"),
    /// Guest translations flushed.
    TlbFlushes = cumulative("tlb_flush"),
    /// WFI ended by an event.
    HaltWakeups = cumulative("halt_wakeup"),
    /// Time slept in WFI.
    HaltWaitNs = nanoseconds("halt_wait_ns"),
    /// The thread sleeps in WFI.
    Blocking = flag("blocking"),
    /// Moved to another CPU.
    Migrations = cumulative("cpu_migrations"),
}

#[cfg(not(CONFIG_ARM64))]
counters! {
    /// Counters of a vCPU besides the exit ledger.
    VcpuCounter, VCPU_COUNTERS:
    /// Entries into the guest.
    Entries = cumulative("entries"),
    /// Returns from KVM_RUN.
    UserExits = cumulative("user_exits"),
    /// KVM_RUN ended by a signal or immediate_exit.
    SignalExits = cumulative("signal_exits"),
    /// External interrupts delivered.
    IrqInjections = cumulative("irq_injections"),
    /// NMIs delivered.
    NmiInjections = cumulative("nmi_injections"),
    /// Exceptions delivered by the hypervisor.
    ExceptionInjections = cumulative("exception_injections"),
    /// Events delivered again because an exit interrupted them.
    Reinjections = cumulative("reinjections"),
    /// Guest translations flushed.
    TlbFlushes = cumulative("tlb_flush"),
    /// Instructions emulated.
    Emulations = cumulative("insn_emulation"),
    /// HLT in the kernel ended by an event.
    HaltWakeups = cumulative("halt_wakeup"),
    /// Of the polls for an event those in which the thread did not have to sleep.
    HaltPollSuccesses = cumulative("halt_successful_poll"),
    /// Polls for an event in HLT.
    HaltPolls = cumulative("halt_attempted_poll"),
    /// Of the polls without sleep those that ended for something that does not end HLT.
    HaltPollsInvalid = cumulative("halt_poll_invalid"),
    /// Time of polls without sleep.
    HaltPollSuccessNs = nanoseconds("halt_poll_success_ns"),
    /// Time of polls before a sleep.
    HaltPollFailNs = nanoseconds("halt_poll_fail_ns"),
    /// Time slept in HLT.
    HaltWaitNs = nanoseconds("halt_wait_ns"),
    /// The thread sleeps in HLT or waits to be started.
    Blocking = flag("blocking"),
    /// Moved to another CPU.
    Migrations = cumulative("cpu_migrations"),
    /// IBPBs because the CPU had run another vCPU, or the vCPU had been on another CPU.
    BranchBarriers = cumulative("branch_barriers"),
    /// 1 when the processor virtualises the local APIC; set by the first KVM_RUN.
    Apicv = instant("apicv"),
}

counters! {
    /// Counters of a VM.
    VmCounter, VM_COUNTERS:
    /// Ranges taken back by the host's memory management.
    Invalidations = cumulative("mmu_invalidations"),
    /// Faults on memory that could not be answered within a stay.
    SlowFaults = cumulative("slow_faults"),
    /// Nested faults given up and tried again, because the host was changing the memory, or had changed it meanwhile.
    FaultRetries = cumulative("mmu_fault_retries"),
    /// vCPUs that an invalidation has waited for, because they were about to map what they had found.
    GateWaits = cumulative("mmu_fault_waits"),
    /// Translations flushed on all vCPUs.
    RemoteFlushes = cumulative("remote_tlb_flush"),
    /// DMA of assigned devices that the IOMMU refused, as far as its driver tells.
    DmaFaults = cumulative("dma_faults"),
}

#[cfg(CONFIG_ARM64)]
counters! {
    /// Histograms of a vCPU besides the exit ledger.
    VcpuHistogram, VCPU_HISTOGRAMS:
    /// Times slept in WFI.
    Sleep = nanoseconds_histogram("halt_wait_hist"),
}

#[cfg(not(CONFIG_ARM64))]
counters! {
    /// Histograms of a vCPU besides the exit ledger.
    VcpuHistogram, VCPU_HISTOGRAMS:
    /// Times of polls without sleep.
    PollSuccess = nanoseconds_histogram("halt_poll_success_hist"),
    /// Times of polls before a sleep.
    PollFailure = nanoseconds_histogram("halt_poll_fail_hist"),
    /// Times slept in HLT.
    Sleep = nanoseconds_histogram("halt_wait_hist"),
}

const fn concat_descs<const N: usize>(parts: &[&[Desc]]) -> [Desc; N] {
    let mut out = [Desc::cumulative(""); N];
    let mut n = 0;
    let mut p = 0;
    while p < parts.len() {
        let mut i = 0;
        while i < parts[p].len() {
            out[n] = parts[p][i];
            n += 1;
            i += 1;
        }
        p += 1;
    }
    assert!(n == N);
    out
}

/// Counters by the names that KVM gives them, computed when they are read.
#[cfg(CONFIG_ARM64)]
const KVM_NAMES: [(&str, &[ExitClass]); 6] = {
    use ExitClass::*;
    [
        ("exits", ExitClass::ALL),
        ("hvc_exit_stat", &[Hvc]),
        ("wfe_exit_stat", &[Wfe]),
        ("wfi_exit_stat", &[Wfi]),
        ("mmio_exit_user", &[MmioUser]),
        ("mmio_exit_kernel", &[MmioKernel]),
    ]
};

/// Counters by the names that KVM gives them, computed when they are read.
#[cfg(not(CONFIG_ARM64))]
const KVM_NAMES: [(&str, &[ExitClass]); 8] = {
    use ExitClass::*;
    [
        ("exits", ExitClass::ALL),
        ("io_exits", &[Io, IoString]),
        ("mmio_exits", &[Mmio]),
        ("irq_exits", &[ExternalInterrupt]),
        ("irq_window_exits", &[IrqWindow]),
        ("nmi_window_exits", &[NmiWindow]),
        ("halt_exits", &[Hlt]),
        ("hypercalls", &[Hypercall]),
    ]
};

const KVM_NAME_DESCS: [Desc; KVM_NAMES.len()] = {
    let mut out = [Desc::cumulative(""); KVM_NAMES.len()];
    let mut i = 0;
    while i < out.len() {
        out[i] = Desc::cumulative(KVM_NAMES[i].0);
        i += 1;
    }
    out
};

const VCPU_DESC_COUNT: usize =
    VcpuCounter::COUNT + 2 * ExitClass::COUNT + VcpuHistogram::COUNT + KVM_NAMES.len();

/// Descriptors of a vCPU's statistics file: counters, exits by class, cycles by class, other histograms, KVM's names.
pub static VCPU_DESCS: [Desc; VCPU_DESC_COUNT] = concat_descs::<VCPU_DESC_COUNT>(&[
    &VCPU_COUNTERS,
    &EXIT_COUNTS,
    &EXIT_CYCLES,
    &VCPU_HISTOGRAMS,
    &KVM_NAME_DESCS,
]);

/// What is counted of a VM's nested page tables when it is read, by the names that KVM gives it.
const MAPPED: [Desc; 4] = [
    Desc::instant("pages_4k"),
    Desc::instant("pages_2m"),
    Desc::instant("pages_1g"),
    Desc::instant("nx_lpage_splits"),
];

/// Leaves of nested page tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    /// Of 4 KiB, 2 MiB and 1 GiB.
    pub leaves: [u64; 3],
    /// Areas of 2 MiB that are mapped in small leaves because code runs there (an estimate).
    pub split: u64,
}

impl Mapped {
    /// Counts those of another table, too.
    pub fn add(&mut self, other: &Self) {
        for (n, more) in self.leaves.iter_mut().zip(&other.leaves) {
            *n = n.wrapping_add(*more);
        }
        self.split = self.split.wrapping_add(other.split);
    }
}

/// Descriptors of a VM's statistics file: counters, leaves of nested page tables.
pub static VM_DESCS: [Desc; VmCounter::COUNT + MAPPED.len()] =
    concat_descs::<{ VmCounter::COUNT + MAPPED.len() }>(&[&VM_COUNTERS, &MAPPED]);

/// Where a statistics file takes its values from.
pub trait Values {
    /// Value number `word`, counted over all descriptors in order; 0 beyond the end.
    fn value(&self, word: usize) -> u64;
}

/// Bucket of `value`: 0 holds 0, bucket n holds 2^(n-1) to 2^n - 1, the last one also everything beyond.
#[inline]
pub const fn bucket(value: u64) -> usize {
    // One bit more than the value has, without the case of zero; `>> 1` keeps the length where the shift would lose a
    // bit.
    let b = ((value | (value >> 1)) << 1 | 1).ilog2() as usize;
    if b < BUCKETS {
        b
    } else {
        BUCKETS - 1
    }
}

/// Statistics of one vCPU. One thread writes (the one that runs the vCPU); any may read at any time. About 8 KiB, so
/// build it in place.
#[derive(Debug)]
pub struct VcpuStats {
    pub(crate) counters: [AtomicU64; VcpuCounter::COUNT],
    pub(crate) exits: [AtomicU64; ExitClass::COUNT],
    pub(crate) cycles: [[AtomicU64; BUCKETS]; ExitClass::COUNT],
    pub(crate) histograms: [[AtomicU64; BUCKETS]; VcpuHistogram::COUNT],
}

/// Adds without a locked instruction: there is only one writer.
#[inline]
fn add(c: Option<&AtomicU64>, n: u64) {
    if let Some(c) = c {
        c.store(c.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }
}

fn load(c: Option<&AtomicU64>) -> u64 {
    c.map_or(0, |c| c.load(Ordering::Relaxed))
}

impl VcpuStats {
    /// Records one exit of `class` whose handling took `cycles` TSC cycles.
    #[inline]
    pub fn exit(&self, class: ExitClass, cycles: u64) {
        let c = class as usize;
        add(self.exits.get(c), 1);
        add(self.cycles.get(c).and_then(|h| h.get(bucket(cycles))), 1);
    }

    /// Adds `n` to a counter.
    #[inline]
    pub fn add(&self, counter: VcpuCounter, n: u64) {
        add(self.counters.get(counter as usize), n);
    }

    /// Notes that something is so, or not.
    pub fn set(&self, flag: VcpuCounter, on: bool) {
        if let Some(c) = self.counters.get(flag as usize) {
            c.store(on.into(), Ordering::Relaxed);
        }
    }

    /// Adds `n` nanoseconds to a counter, and one to the histogram of the same times.
    pub fn time(&self, counter: VcpuCounter, histogram: VcpuHistogram, n: u64) {
        self.add(counter, n);
        let h = self.histograms.get(histogram as usize);
        add(h.and_then(|h| h.get(bucket(n))), 1);
    }

    /// Number of exits of `class`.
    pub fn exits(&self, class: ExitClass) -> u64 {
        load(self.exits.get(class as usize))
    }
}

impl Values for VcpuStats {
    fn value(&self, word: usize) -> u64 {
        let Some(w) = word.checked_sub(VcpuCounter::COUNT) else {
            return load(self.counters.get(word));
        };
        let Some(w) = w.checked_sub(ExitClass::COUNT) else {
            return load(self.exits.get(w));
        };
        let mut histograms = self.cycles.iter().chain(&self.histograms);
        if let Some(n) = w.checked_sub((ExitClass::COUNT + VcpuHistogram::COUNT) * BUCKETS) {
            let classes = KVM_NAMES.get(n).map_or(&[][..], |(_, classes)| classes);
            return classes
                .iter()
                .fold(0, |sum, c| sum.wrapping_add(self.exits(*c)));
        }
        load(histograms.nth(w / BUCKETS).and_then(|h| h.get(w % BUCKETS)))
    }
}

/// Statistics of one VM. Several threads write.
#[derive(Debug)]
pub struct VmStats {
    counters: [AtomicU64; VmCounter::COUNT],
}

impl VmStats {
    /// All zeros.
    #[allow(clippy::declare_interior_mutable_const)]
    pub const ZERO: Self = {
        const Z: AtomicU64 = AtomicU64::new(0);
        Self {
            counters: [Z; VmCounter::COUNT],
        }
    };

    /// Adds `n` (negative to subtract).
    #[inline]
    pub fn add(&self, counter: VmCounter, n: i64) {
        if let Some(c) = self.counters.get(counter as usize) {
            c.fetch_add(n as u64, Ordering::Relaxed);
        }
    }
}

impl Values for VmStats {
    fn value(&self, word: usize) -> u64 {
        load(self.counters.get(word))
    }
}

/// The values of a VM's file during one read: counters, and leaves, which are counted when the first of their values is
/// wanted.
pub struct VmValues<'a, F> {
    stats: &'a VmStats,
    count: F,
    mapped: OnceCell<Mapped>,
}

impl<'a, F: Fn() -> Mapped> VmValues<'a, F> {
    /// Of `stats`, and what `count` finds.
    pub const fn new(stats: &'a VmStats, count: F) -> Self {
        Self {
            stats,
            count,
            mapped: OnceCell::new(),
        }
    }
}

impl<F: Fn() -> Mapped> Values for VmValues<'_, F> {
    fn value(&self, word: usize) -> u64 {
        match word.checked_sub(VmCounter::COUNT) {
            None => self.stats.value(word),
            Some(n) if n < MAPPED.len() => {
                let mapped = self.mapped.get_or_init(&self.count);
                mapped.leaves.get(n).copied().unwrap_or(mapped.split)
            }
            Some(_) => 0,
        }
    }
}

/// A name or id, padded with zeros, and its length.
struct Padded([u8; NAME_SIZE], usize);

impl Write for Padded {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = self.0.get_mut(self.1..).ok_or(fmt::Error)?;
        room.get_mut(..s.len())
            .ok_or(fmt::Error)?
            .copy_from_slice(s.as_bytes());
        self.1 += s.len();
        Ok(())
    }
}

/// An id string: "kvm-PID" for a VM, "kvm-PID/vcpu-N" for a vCPU, padded with zeros to [`NAME_SIZE`].
pub fn id_string(pid: u32, vcpu: Option<u32>) -> [u8; NAME_SIZE] {
    let mut id = Padded([0; NAME_SIZE], 0);
    // Both numbers fit.
    let _ = match vcpu {
        None => write!(id, "kvm-{pid}"),
        Some(n) => write!(id, "kvm-{pid}/vcpu-{n}"),
    };
    id.0
}

/// The bytes of a statistics file: header, id, descriptors, values.
#[derive(Clone, Copy)]
pub struct StatsFile<'a, V: Values + ?Sized> {
    /// Id string.
    pub id: &'a [u8; NAME_SIZE],
    /// Descriptors; values follow in the same order.
    pub descs: &'a [Desc],
    /// The values.
    pub values: &'a V,
}

impl<V: Values + ?Sized> StatsFile<'_, V> {
    fn data_offset(&self) -> usize {
        DESC_OFFSET.saturating_add(self.descs.len().saturating_mul(DESC_SIZE))
    }

    /// Bytes of the whole file.
    pub fn size(&self) -> usize {
        let words = self
            .descs
            .iter()
            .fold(0usize, |n, d| n.saturating_add(d.size as usize));
        self.data_offset().saturating_add(words.saturating_mul(8))
    }

    /// Copies from position `pos` into `buf`; returns how many bytes, 0 at the end of the file.
    pub fn read(&self, pos: u64, buf: &mut [u8]) -> usize {
        let len = self.size();
        let mut at = match usize::try_from(pos) {
            Ok(p) if p < len => p,
            _ => return 0,
        };
        let mut done = 0usize;
        while at < len {
            let mut block = [0u8; DESC_SIZE];
            let (start, size) = self.block(at, &mut block);
            let room = buf.iter_mut().skip(done);
            let part = block.iter().take(size).skip(at.saturating_sub(start));
            let n = room.zip(part).map(|(to, from)| *to = *from).count();
            if n == 0 {
                break;
            }
            at = at.saturating_add(n);
            done = done.saturating_add(n);
        }
        done
    }

    /// Fills `b` with the block (header, id, one descriptor or one value) that holds position `at`; returns its start
    /// and size.
    fn block(&self, at: usize, b: &mut [u8; DESC_SIZE]) -> (usize, usize) {
        let data = self.data_offset();
        if at < HEADER_SIZE {
            let count = self.descs.len();
            for (i, field) in [0, NAME_SIZE, count, HEADER_SIZE, DESC_OFFSET, data]
                .into_iter()
                .enumerate()
            {
                put(b, 4 * i, &(field as u32).to_le_bytes());
            }
            (0, HEADER_SIZE)
        } else if at < DESC_OFFSET {
            put(b, 0, self.id);
            (HEADER_SIZE, NAME_SIZE)
        } else if at < data {
            let i = at.saturating_sub(DESC_OFFSET) / DESC_SIZE;
            let before = self
                .descs
                .iter()
                .take(i)
                .fold(0u32, |n, d| n.saturating_add(d.size as u32));
            if let Some(d) = self.descs.get(i) {
                put(b, 0, &d.flags.to_le_bytes());
                put(b, 4, &d.exponent.to_le_bytes());
                put(b, 6, &d.size.to_le_bytes());
                // bucket_size, which follows, is for linear histograms only.
                put(b, 8, &before.saturating_mul(8).to_le_bytes());
                put(b, 16, d.name.as_bytes());
            }
            (
                DESC_OFFSET.saturating_add(i.saturating_mul(DESC_SIZE)),
                DESC_SIZE,
            )
        } else {
            let word = at.saturating_sub(data) / 8;
            put(b, 0, &self.values.value(word).to_le_bytes());
            (data.saturating_add(word.saturating_mul(8)), 8)
        }
    }
}

fn put(b: &mut [u8; DESC_SIZE], at: usize, bytes: &[u8]) {
    if let Some(d) = b.get_mut(at..at.saturating_add(bytes.len())) {
        d.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// All zeros.
    fn zeros() -> VcpuStats {
        VcpuStats {
            counters: [const { AtomicU64::new(0) }; VcpuCounter::COUNT],
            exits: [const { AtomicU64::new(0) }; ExitClass::COUNT],
            cycles: [const { [const { AtomicU64::new(0) }; BUCKETS] }; ExitClass::COUNT],
            histograms: [const { [const { AtomicU64::new(0) }; BUCKETS] }; VcpuHistogram::COUNT],
        }
    }

    /// Number of 64-bit values that `descs` describe.
    fn data_words(descs: &[Desc]) -> usize {
        descs.iter().map(|d| usize::from(d.size)).sum()
    }

    fn whole<V: Values>(f: &StatsFile<'_, V>) -> Vec<u8> {
        let mut out = vec![0xee; f.size() + 10];
        let n = f.read(0, &mut out);
        assert_eq!(n, f.size());
        out.truncate(n);
        out
    }

    fn u32_at(b: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
    }

    /// Reads a file as a client does: name to (flags, values).
    fn parse(b: &[u8]) -> Vec<(std::string::String, u32, Vec<u64>)> {
        let name_size = u32_at(b, 4) as usize;
        let n = u32_at(b, 8) as usize;
        let desc = u32_at(b, 16) as usize;
        let data = u32_at(b, 20) as usize;
        assert_eq!(u32_at(b, 0), 0);
        assert_eq!(u32_at(b, 12) as usize, HEADER_SIZE);
        (0..n)
            .map(|i| {
                let d = &b[desc + i * (16 + name_size)..];
                let size = u16::from_le_bytes(d[6..8].try_into().unwrap()) as usize;
                let off = u32_at(d, 8) as usize;
                assert_eq!(u32_at(d, 12), 0);
                let nano = u32_at(d, 0) & 0xf0 == UNIT_SECONDS;
                assert_eq!(&d[4..6], if nano { &[0xf7, 0xff] } else { &[0, 0] });
                let name = &d[16..16 + name_size];
                let end = name.iter().position(|&c| c == 0).expect("terminated");
                let name = std::string::String::from_utf8(name[..end].to_vec()).unwrap();
                let v = (0..size)
                    .map(|k| {
                        let at = data + off + 8 * k;
                        u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
                    })
                    .collect();
                (name, u32_at(d, 0), v)
            })
            .collect()
    }

    #[test]
    fn vcpu_file() {
        let s = zeros();
        s.exit(ExitClass::Cpuid, 700);
        s.exit(ExitClass::Cpuid, 0);
        s.exit(ExitClass::Other, u64::MAX);
        s.add(VcpuCounter::Entries, 3);
        s.time(VcpuCounter::HaltWaitNs, VcpuHistogram::Sleep, 900);
        s.set(VcpuCounter::Blocking, true);
        let id = id_string(1234, Some(7));
        let f = StatsFile {
            id: &id,
            descs: &VCPU_DESCS,
            values: &s,
        };
        let b = whole(&f);
        assert_eq!(&b[24..24 + 16], b"kvm-1234/vcpu-7\0");
        let p = parse(&b);
        assert_eq!(p.len(), VCPU_DESC_COUNT);
        let kvm = |name: &str| p.iter().find(|x| x.0 == name).map(|x| x.2.clone());
        assert_eq!(kvm("exits"), Some(vec![3]));
        assert_eq!(kvm("halt_exits"), Some(vec![0]));
        let get = |n: &str| p.iter().find(|x| x.0 == n).unwrap_or_else(|| panic!("{n}"));
        assert_eq!(get("exit_cpuid").2, [2]);
        assert_eq!(get("exit_cpuid").1, 0);
        assert_eq!(get("entries").2, [3]);
        let h = get("exit_cpuid_cycles");
        assert_eq!(h.1, 4 | (3 << 4));
        assert_eq!(h.2.len(), BUCKETS);
        assert_eq!((h.2[0], h.2[10], h.2.iter().sum::<u64>()), (1, 1, 2));
        assert_eq!(get("exit_other_cycles").2[BUCKETS - 1], 1);
        assert_eq!(
            (get("halt_wait_ns").1, get("halt_wait_ns").2[0]),
            (2 << 4, 900)
        );
        let h = get("halt_wait_hist");
        assert_eq!((h.1, h.2[10], h.2.iter().sum::<u64>()), (4 | 2 << 4, 1, 1));
        assert_eq!((get("blocking").1, get("blocking").2[0]), (1 | 4 << 4, 1));
        for (i, x) in p.iter().enumerate() {
            assert!(p[..i].iter().all(|y| y.0 != x.0), "{} twice", x.0);
            assert!(x
                .0
                .bytes()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_'));
        }
        for d in EXIT_COUNTS {
            let _ = get(d.name);
            let _ = get(&std::format!("{}_cycles", d.name));
        }
    }

    #[test]
    fn vm_file() {
        let s = VmStats::ZERO;
        s.add(VmCounter::RemoteFlushes, 5);
        s.add(VmCounter::RemoteFlushes, -2);
        let id = id_string(0, None);
        let counted = core::cell::Cell::new(0);
        let values = VmValues::new(&s, || {
            counted.set(counted.get() + 1);
            Mapped {
                leaves: [7, 8, 9],
                split: 10,
            }
        });
        let f = StatsFile {
            id: &id,
            descs: &VM_DESCS,
            values: &values,
        };
        // Not for the descriptors.
        assert_eq!(f.read(0, &mut [0; DESC_OFFSET + 8]), DESC_OFFSET + 8);
        assert_eq!(counted.get(), 0);
        let b = whole(&f);
        assert_eq!(counted.get(), 1);
        assert_eq!(&b[24..30], b"kvm-0\0");
        let p = parse(&b);
        let get = |name| {
            let x = p.iter().find(|x| x.0 == name).unwrap();
            (x.1, x.2[0])
        };
        assert_eq!(get("remote_tlb_flush"), (0, 3));
        assert_eq!((get("pages_4k"), get("pages_2m")), ((1, 7), (1, 8)));
        assert_eq!((get("pages_1g"), get("nx_lpage_splits")), ((1, 9), (1, 10)));
        assert_eq!(values.value(VM_DESCS.len()), 0);
    }

    #[test]
    fn pieces_make_the_whole() {
        let s = zeros();
        for (i, c) in ExitClass::ALL.iter().enumerate() {
            s.exit(*c, 1 << i);
        }
        let id = id_string(u32::MAX, Some(u32::MAX));
        let f = StatsFile {
            id: &id,
            descs: &VCPU_DESCS,
            values: &s,
        };
        let all = whole(&f);
        for step in [1usize, 7, 8, 63, 64, 65, 1000] {
            let mut got = Vec::new();
            let mut buf = vec![0u8; step];
            loop {
                let n = f.read(got.len() as u64, &mut buf);
                if n == 0 {
                    break;
                }
                got.extend_from_slice(&buf[..n]);
            }
            assert!(got == all, "step {step}");
        }
        assert_eq!(f.read(all.len() as u64, &mut [0; 8]), 0);
        assert_eq!(f.read(u64::MAX, &mut [0; 8]), 0);
        assert_eq!(f.read(0, &mut []), 0);
        assert_eq!(&id[..27], b"kvm-4294967295/vcpu-4294967");
    }

    #[test]
    fn buckets() {
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(1), 1);
        assert_eq!(bucket(2), 2);
        assert_eq!(bucket(3), 2);
        assert_eq!(bucket(4), 3);
        assert_eq!(bucket((1 << 30) - 1), 30);
        assert_eq!(bucket(1 << 30), 31);
        assert_eq!(bucket(u64::MAX), 31);
    }

    #[test]
    fn values_match_descriptors() {
        assert_eq!(
            data_words(&VCPU_DESCS),
            VcpuCounter::COUNT
                + ExitClass::COUNT * (1 + BUCKETS)
                + VcpuHistogram::COUNT * BUCKETS
                + KVM_NAMES.len()
        );
        let s = zeros();
        assert_eq!(s.value(data_words(&VCPU_DESCS)), 0);
        assert_eq!(s.value(usize::MAX), 0);
    }
}
