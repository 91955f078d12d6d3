// SPDX-License-Identifier: GPL-2.0
//! A fork of guest memory: `RVMM_FORK`. What comes after it is in `forks`.
//!
//! Called with the mutexes of all vCPUs held, and under `GuestMemory.update`: so no write of the kernel for a guest is
//! between its look-up and its end. Faults are kept apart by the handshake of `rounds`, as for reset points.

use crate::mem::forks::{ForkMemory, ForkOrigin};
use crate::mem::memory::GuestMemory;
use crate::mem::mmu::TablePool;
use kernel::mm::Mm;
use kernel::prelude::*;
use kernel::sync::{rcu, Arc};

impl GuestMemory {
    /// Whether there are forks, which have to see writes.
    pub(crate) fn has_forks(&self) -> bool {
        !self.reset.forks().is_empty()
    }

    /// The memory as it is now. The caller keeps all vCPUs from running, and runs in `mm`, which is the VM's. EBUSY: a
    /// device reaches the memory, or there is a reset point. EINVAL: memory of the VM comes from a fork itself. ENOSPC:
    /// there are too many forks. ENOMEM.
    pub(crate) fn fork(&self, mm: &Mm) -> Result<Arc<ForkMemory>> {
        let update = self.update.lock();
        if update.dma.as_ref().is_some_and(|d| d.is_used()) || self.reset.has_point() {
            return Err(EBUSY);
        }
        let slots = (*self.slots.read()).clone();
        // Pages of pages would have to be found by a fault within a fault within a fault.
        slots.try_each(|slot| {
            let (start, end) = (slot.hva.0, slot.hva.0.wrapping_add(slot.len()));
            match ForkMemory::meets(mm, start as usize, end as usize) {
                true => Err(EINVAL),
                false => Ok(()),
            }
        })?;
        let memory = ForkMemory::new(ForkOrigin::new(mm, slots, self.reset.forks())?)?;
        self.reset.add_fork(memory.origin().core())?;
        // In this order: see `rounds`.
        self.await_faults();
        {
            let mut tables = TablePool::new();
            // After `tables`, as everywhere: flushes first.
            let mut flushing = self.flushing();
            let _tables_stay = rcu::read_lock();
            flushing.needed |= self.table.freeze(&mut tables);
            flushing.is_for(&tables);
        }
        self.thaw_pinned(&update);
        Ok(memory)
    }
}
