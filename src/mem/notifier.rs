// SPDX-License-Identifier: GPL-2.0
//! The host's changes underneath guest memory: the MMU notifier's callbacks.
//!
//! Called by whoever changes the VM's address space, concurrently with each other and with faults; `memory` has the
//! protocol.

use crate::abi::stats::VmCounter;
use crate::linux::mmu_notifier::{MmuNotifierOps, Range};
use crate::mem::addr::{Gpa, GpaRange, Hva};
use crate::mem::memory::GuestMemory;
use crate::mem::mmu::Mmu;
use kernel::sync::Arc;

/// The MMU notifier's end of a VM's memory.
pub(crate) struct Notifier(pub(crate) Arc<GuestMemory>);

impl MmuNotifierOps for Notifier {
    fn invalidate_range_start(&self, range: &Range) {
        self.0.stats.add(VmCounter::Invalidations, 1);
        let (start, end) = (range.start as u64, range.end as u64);
        self.0.mmu.lock().begin_invalidation(start, end);
        // Work is bounded per lock hold and never sleeps, so a range that is not blockable needs no other path.
        self.0
            .for_each_range(start, end, |r| self.0.unmap(r, false));
        // In this order: a slot that was gone from the table above is named here until it is unmapped.
        let leaving = self.0.mmu.lock().leaving;
        if let Some(r) = leaving.and_then(|slot| slot.gpa_range(Hva(start), Hva(end))) {
            self.0.unmap(r, false);
        }
    }

    fn invalidate_range_end(&self, _range: &Range) {
        self.0.mmu.lock().end_invalidation();
    }

    fn clear_flush_young(&self, start: usize, end: usize) -> bool {
        self.age(start, end)
    }

    fn clear_young(&self, start: usize, end: usize) -> bool {
        self.age(start, end)
    }

    fn test_young(&self, addr: usize) -> bool {
        let mut young = false;
        self.0
            .for_each_range(addr as u64, (addr as u64).saturating_add(1), |r| {
                let mut mmu = self.0.mmu.lock();
                let Mmu { table, pool, .. } = &mut *mmu;
                young |= table.test_accessed(pool, r);
            });
        young
    }

    fn release(&self) {
        // The address space is going: no user page may stay reachable.
        if let Some(all) = GpaRange::between(Gpa(0), Gpa(1 << 52)) {
            self.0.unmap(all, false);
        }
    }
}

impl Notifier {
    /// Clears accessed bits. Where there are none the leaves go, and their translations with them also for a caller
    /// that needs no flush: a later invalidation finds nothing left to flush for.
    fn age(&self, start: usize, end: usize) -> bool {
        let mut young = false;
        self.0.for_each_range(start as u64, end as u64, |r| {
            let mut mmu = self.0.mmu.lock();
            let Mmu { table, pool, .. } = &mut *mmu;
            let aged = table.age(pool, r);
            young |= aged.accessed;
            if aged.flush {
                self.0.flush();
            }
            pool.release();
        });
        young
    }
}
