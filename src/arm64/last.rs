// SPDX-License-Identifier: GPL-2.0
//! The vCPU that each CPU ran last: all have one VMID, and what a CPU has cached of one is not another's.

use crate::linux::global::{Global, Owner};
use crate::linux::irqflags::ThisCpu;
use crate::linux::percpu::PerCpu;
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;

/// The tokens of vCPUs; only the CPU itself uses its own, with interrupts off.
pub(crate) struct Last(PerCpu<AtomicU64>);

static LAST: Global<Last> = Global::new();

/// New vCPUs find it as long as the owner lives.
pub(crate) fn init() -> Result<Owner> {
    LAST.set(Last(PerCpu::new(|_| Ok(AtomicU64::new(0)))?))
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
        let other = last.load(Ordering::Relaxed) != token;
        if other {
            last.store(token, Ordering::Relaxed);
        }
        other
    }
}
