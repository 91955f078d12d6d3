// SPDX-License-Identifier: GPL-2.0
//! What others may touch of a vCPU: whether its next interrupt may be another one, whether it is on (PSCI).

use crate::arm64::psci;
use crate::bus::set;
use crate::mem::ports::RingFull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The vCPU begins: another one has called CPU_ON.
pub(crate) const START: u32 = 1 << 0;
/// The vCPU stops: another one has switched the machine off.
pub(crate) const STOP: u32 = 1 << 1;
/// Its dirty ring counts as full.
pub(crate) const RING_FULL: u32 = 1 << 2;

/// What others may touch of a vCPU that only Arm64 has.
pub(crate) struct Others {
    mpidr: AtomicU64,
    /// Its next interrupt may be another one than it was.
    look: AtomicBool,
    /// On, or about to be (PSCI).
    on: AtomicBool,
    /// Where it begins and with what in X0; of whoever has switched it on, until [`START`] is requested.
    entry: AtomicU64,
    context: AtomicU64,
}

impl Others {
    /// Of the vCPU with this id: MPIDR_EL1 as KVM numbers them, 16 in a cluster.
    pub(crate) fn new(id: u32) -> Self {
        let id = u64::from(id);
        Self {
            mpidr: AtomicU64::new(
                1 << 31 | id & 0xf | (id >> 4 & 0xff) << 8 | (id >> 12 & 0xff) << 16,
            ),
            look: AtomicBool::new(false),
            on: AtomicBool::new(true),
            entry: AtomicU64::new(0),
            context: AtomicU64::new(0),
        }
    }

    /// MPIDR_EL1.
    pub(crate) fn mpidr(&self) -> u64 {
        self.mpidr.load(Ordering::Relaxed)
    }

    /// User space says another one. No vCPU has run.
    pub(crate) fn set_mpidr(&self, value: u64) {
        self.mpidr.store(value, Ordering::Relaxed);
    }

    /// Says that there may be another interrupt. The vCPU has to be kicked.
    pub(crate) fn set_look(&self) {
        self.look.store(true, Ordering::Release);
    }

    /// Whether that has been said.
    #[inline]
    pub(crate) fn looks(&self) -> bool {
        self.look.load(Ordering::Acquire)
    }

    /// The same, and it is dealt with.
    #[inline]
    pub(crate) fn take_look(&self) -> bool {
        self.looks() && self.look.swap(false, Ordering::AcqRel)
    }

    /// On or off by its own doing, or user space's.
    pub(crate) fn set_on(&self, on: bool) {
        self.on.store(on, Ordering::Release);
    }

    /// Whether it is on.
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Where it begins and with what, when [`START`] is requested.
    pub(crate) fn beginning(&self) -> (u64, u64) {
        let load = |word: &AtomicU64| word.load(Ordering::Acquire);
        (load(&self.entry), load(&self.context))
    }
}

/// What other CPUs may touch of a vCPU.
pub(crate) type VcpuShared = set::VcpuShared<Others>;
/// The vCPUs of a VM.
pub(crate) type VcpuSet = set::VcpuSet<Others, ()>;

impl RingFull for VcpuShared {
    fn ring_full(&self) {
        self.request_self(RING_FULL);
    }
}

/// CPU_ON (PSCI 5.6): what the caller gets.
pub(crate) fn switch_on(vcpus: &VcpuSet, target: u64, entry: u64, context: u64) -> u64 {
    let found = vcpus
        .iter()
        .find(|v| v.arch.mpidr() & psci::AFFINITY == target);
    let Some(v) = found else {
        return psci::INVALID_PARAMETERS;
    };
    let o = &v.arch;
    let was_off =
        o.on.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire);
    if was_off.is_err() {
        return psci::ALREADY_ON;
    }
    o.entry.store(entry, Ordering::Relaxed);
    o.context.store(context, Ordering::Relaxed);
    v.request(START);
    psci::SUCCESS
}

/// AFFINITY_INFO (PSCI 5.7).
pub(crate) fn affinity_info(vcpus: &VcpuSet, target: u64, level: u32) -> u64 {
    let mask = psci::level_mask(level);
    let like = || {
        vcpus
            .iter()
            .filter(|v| (v.arch.mpidr() ^ target) & mask == 0)
    };
    if like().any(|v| v.arch.is_on()) {
        psci::ON
    } else if like().next().is_some() {
        psci::OFF
    } else {
        psci::INVALID_PARAMETERS
    }
}
