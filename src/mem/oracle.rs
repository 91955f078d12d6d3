// SPDX-License-Identifier: GPL-2.0
//! `oracle=1`: after each ioctl of a VM its nested page tables are compared with its slots, and after each invalidation
//! the pages of its range with what has to be gone. What does not hold stops the VM: every ioctl is EIO from then on.
//!
//! # Ordering
//!
//! Under `update` slots and logs do not change but for marks that come. What faults have mapped and not marked yet is
//! marked when nobody reads the slots any more who read them at that time: a fault reads them from before it maps until
//! it has marked. What the processor has logged is marked at the end of its stay. So a leaf that breaks a rule is
//! looked at again when both are over, and only what breaks it then as well counts.
//!
//! An invalidation that has unmapped looks under the same version of the slots: as long as it reads them no other slot
//! comes where one of them is. Huge leaves are passed over. One that is mapped for a page beside the range goes when
//! the host takes its own huge page apart, before it changes anything.

use crate::linux::sched;
use crate::mem::addr::{Gpa, GpaRange, Hva, Level};
use crate::mem::audit::{self, Breach, Rules};
use crate::mem::memory::GuestMemory;
use crate::mem::mmu::TablePool;
use crate::mem::slot_table::SlotTable;
use crate::mem::walk::{Cursor, MappedLeaf};
use crate::params;
use core::convert::Infallible;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::rcu;

/// Entries visited between two chances to reschedule.
const BUDGET: u32 = 16 * 1024;
/// Leaves that are looked at again.
const SUSPECTS: usize = 32;

impl GuestMemory {
    /// Whether a rule was found broken: the VM is over.
    #[inline]
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Says what is wrong, and stops the VM.
    fn breaks(&self, gpa: Gpa, breach: Breach) {
        self.broken.store(true, Ordering::Relaxed);
        pr_err!(
            "oracle: guest-physical {:#x} {}; the VM is stopped\n",
            gpa.0,
            breach.text()
        );
        self.flush();
    }

    fn rules(&self) -> Rules {
        Rules {
            processor_logs: self.logs_writes(),
            nx_huge: self.nx_huge.load(Ordering::Relaxed),
            largest: Some(self.largest),
        }
    }

    /// What `seen` breaks.
    fn breach(
        &self,
        slots: &SlotTable,
        rules: &Rules,
        pinned: Option<Gpa>,
        seen: &MappedLeaf,
    ) -> Option<Breach> {
        // The VM's own page is in no slot.
        if pinned == Some(seen.gpa) && seen.level == Level::L1 {
            return None;
        }
        let entry = slots.find(seen.gpa);
        // What is in rings, and who has taken what from them, is not known here.
        let rings = self.rings.exist();
        let logged = |gpa| {
            let log = entry.and_then(|e| Some((e.bitmap()?, e.slot.page_index(gpa)?)));
            rings || log.is_none_or(|(log, page)| log.has(page))
        };
        audit::leaf(seen, entry.map(|e| &e.slot), rules, logged).err()
    }

    /// Calls `f` for the leaves in `range`. Sleeps if `may_sleep`.
    fn each_leaf(&self, range: GpaRange, may_sleep: bool, f: &mut dyn FnMut(&MappedLeaf)) {
        let mut none = TablePool::new();
        let mut cursor = Cursor::new(range);
        let mut done = false;
        while !done {
            {
                let _tables_stay = rcu::read_lock();
                done = self.table.show_some(&mut none, &mut cursor, BUDGET, f);
            }
            if may_sleep {
                sched::cond_resched();
            }
        }
    }

    /// Compares all that is mapped with the slots. Nothing without `oracle`. Sleeps.
    pub(crate) fn audit(&self) {
        if !params::oracle() || self.is_broken() {
            return;
        }
        let update = self.update.lock();
        let rules = self.rules();
        let mut suspects = [Gpa(0); SUSPECTS];
        let mut found = 0;
        {
            let slots = self.slots.read();
            self.each_leaf(self.table.all(), true, &mut |seen| {
                if self
                    .breach(&slots, &rules, update.pinned_at(), seen)
                    .is_some()
                {
                    if let Some(place) = suspects.get_mut(found) {
                        *place = seen.gpa;
                        found += 1;
                    }
                }
            });
        }
        if found == 0 {
            return;
        }
        self.slots.settle();
        self.vcpus.stop_running();
        let slots = self.slots.read();
        for gpa in suspects.into_iter().take(found) {
            let mut broken = None;
            if let Some(range) = GpaRange::new(gpa, 1) {
                self.each_leaf(range, true, &mut |seen| {
                    broken = broken.or(self.breach(&slots, &rules, update.pinned_at(), seen));
                });
            }
            if let Some(breach) = broken {
                self.breaks(gpa, breach);
                return;
            }
        }
    }

    /// An invalidation of the user addresses `start` to `end` has unmapped: nothing of it is mapped until it ends.
    /// Nothing without `oracle`.
    pub(super) fn audit_gone(&self, start: u64, end: u64, may_sleep: bool) {
        if !params::oracle() || self.is_broken() {
            return;
        }
        let slots = self.slots.read();
        let mut left = None;
        let _ = slots.try_each_range(Hva(start), Hva(end), |range| {
            self.each_leaf(range, may_sleep, &mut |seen| {
                let small = |s| matches!(s, Some(Level::L1));
                let largest = slots.find(seen.gpa).map(|e| e.slot.max_level(seen.gpa));
                if seen.level == Level::L1 && small(largest) {
                    left = Some(seen.gpa);
                }
            });
            Ok::<(), Infallible>(())
        });
        if let Some(gpa) = left {
            self.breaks(gpa, Breach::Invalidated);
        }
    }
}
