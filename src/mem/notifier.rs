// SPDX-License-Identifier: GPL-2.0
//! The host's changes underneath guest memory: the MMU notifier's callbacks.
//!
//! Called by whoever changes the VM's address space, concurrently with each other and with faults; `memory` has the
//! protocol.

use crate::abi::stats::VmCounter;
use crate::linux::mmu_notifier::{MmuNotifierOps, Range};
use crate::mem::addr::{Gpa, GpaRange};
use crate::mem::memory::GuestMemory;
use kernel::sync::Arc;

/// The MMU notifier's end of a VM's memory.
pub(crate) struct Notifier(pub(crate) Arc<GuestMemory>);

impl MmuNotifierOps for Notifier {
    fn invalidate_range_start(&self, range: &Range) {
        let memory = &*self.0;
        memory.stats.add(VmCounter::Invalidations, 1);
        let (start, end) = (range.start as u64, range.end as u64);
        let mut removing = None;
        memory.begin_invalidation(start, end, |r| {
            removing
                .get_or_insert_with(|| {
                    memory.await_faults();
                    memory.removing()
                })
                .unmap(r, range.may_sleep);
        });
        drop(removing);
        memory.audit_gone(start, end, range.may_sleep);
    }

    fn invalidate_range_end(&self, range: &Range) {
        self.0
            .end_invalidation(range.start as u64, range.end as u64);
    }

    fn clear_flush_young(&self, start: usize, end: usize) -> bool {
        self.age(start, end)
    }

    fn clear_young(&self, start: usize, end: usize) -> bool {
        self.age(start, end)
    }

    fn test_young(&self, addr: usize) -> bool {
        let (start, end) = (addr as u64, (addr as u64).saturating_add(1));
        let mut young = false;
        self.0
            .for_each_range(start, end, |r| young |= self.0.test_accessed(r));
        young
    }

    fn release(&self) {
        // The address space is going: no user page may stay reachable.
        if let Some(all) = GpaRange::between(Gpa(0), Gpa(1 << 52)) {
            self.0.await_faults();
            self.0.unmap(all, true);
        }
    }
}

impl Notifier {
    /// Clears accessed bits. Where there are none the leaves go, and their translations with them also for a caller
    /// that needs no flush.
    fn age(&self, start: usize, end: usize) -> bool {
        let memory = &*self.0;
        let (start, end) = (start as u64, end as u64);
        let mut young = false;
        if memory.table.has_accessed_bits() {
            memory.for_each_range(start, end, |r| young |= memory.age_in_place(r));
        } else {
            let mut removing = None;
            memory.for_each_range(start, end, |r| {
                young |= removing.get_or_insert_with(|| memory.removing()).age(r);
            });
        }
        young
    }
}
