// SPDX-License-Identifier: GPL-2.0
//! The vCPU that each CPU ran last: all have one VMID, and what a CPU has cached of one is not another's. And what each
//! has forgotten, where that is checked.

use crate::arm64::el2::Stay;
use crate::arm64::forgotten::{Forgotten, Refusal};
use crate::linux::global::{Global, Owner};
use crate::linux::irqflags::ThisCpu;
use crate::linux::percpu::PerCpu;
use crate::mem::flushes::Settled;
use crate::mem::mmu::REMOVALS;
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;

/// Of one CPU, which alone uses it, with interrupts off.
#[derive(Default)]
struct OfCpu {
    /// The vCPU's token.
    token: AtomicU64,
    forgotten: Forgotten,
}

/// Of all CPUs.
pub(crate) struct Last(PerCpu<OfCpu>);

static LAST: Global<Last> = Global::new();

/// New vCPUs find it as long as the owner lives.
pub(crate) fn init() -> Result<Owner> {
    LAST.set(Last(PerCpu::new(|_| Ok(OfCpu::default()))?))
}

/// For a new vCPU.
pub(crate) fn get() -> Result<Arc<Last>> {
    LAST.get().ok_or(ENODEV)
}

impl Last {
    /// This CPU's last vCPU is `token` from now on. Returns whether it was another one.
    #[inline]
    pub(crate) fn replace(&self, cpu: ThisCpu<'_>, token: u64) -> bool {
        let Some(last) = self.0.of(cpu.number()) else {
            return true;
        };
        let other = last.token.load(Ordering::Relaxed) != token;
        if other {
            last.token.store(token, Ordering::Relaxed);
        }
        other
    }

    /// This CPU forgets all translations of guests'.
    pub(crate) fn flush(&self, cpu: ThisCpu<'_>, stay: &Stay<'_>) {
        let removed = REMOVALS.last();
        stay.flush();
        if let Some(of) = self.0.of(cpu.number()) {
            of.forgotten.flushed(removed);
        }
    }

    /// vCPU `token`, of a VM of whose removals those `settled` have been flushed, is about to be entered on this CPU.
    #[inline(never)]
    pub(crate) fn check(
        &self,
        cpu: ThisCpu<'_>,
        settled: &Settled,
        token: u64,
    ) -> Result<(), Refusal> {
        match self.0.of(cpu.number()) {
            Some(of) => of.forgotten.enters(&REMOVALS, settled, token),
            None => Ok(()),
        }
    }
}
