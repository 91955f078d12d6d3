// SPDX-License-Identifier: GPL-2.0
//! Guest memory of one VM: memory slots, nested page tables, and the host's changes underneath them.
//!
//! Nothing is pinned. A nested fault takes the page that the host's page tables hold at this moment, and the
//! MMU notifier takes the translation away before the host changes its mind (munmap, mprotect, COW, swap, KSM, migration).
//!
//! # Ordering
//!
//! A fault reads `invalidations`, looks the page up without a lock, then takes `mmu` and maps only if no invalidation of that
//! address is under way and none has ended since. An invalidation counts itself in and unmaps under the
//! same lock. So either the fault sees the invalidation and retries, or the invalidation sees the mapping and removes it.
//!
//! Translations are flushed before `mmu` is released: whoever finds a page unmapped may rely on no CPU using it.
//!
//! A slot change publishes the new table, waits for every reader of the old one (a fault that still maps from it), and only
//! then unmaps. When it returns nothing uses the old slot. Until then an invalidation, which looks into the new table, has to
//! know the slot that goes: its pages are still mapped. `Mmu::leaving` names it from before the publication to after the unmapping, and
//! an invalidation looks there after it has looked into the table.
//!
//! # Lock order
//!
//! `update` (mutex) > SRCU read section > `mmu` (spin lock). User memory is never touched under `mmu`.

use crate::abi::stats::{VmCounter, VmStats};
use crate::assign::space::Space;
use crate::linux::boot_cpu;
use crate::linux::page;
use crate::linux::srcu_cell::SrcuCell;
use crate::mem::addr::{Gpa, GpaRange, Hpa, Hva, Level, PAGE_SIZE};
pub(crate) use crate::mem::fault::FaultOutcome;
pub(crate) use crate::mem::notifier::Notifier;
use crate::mem::ports::StopRunning;
use crate::mem::slot_table::SlotTable;
use crate::mem::slots::{self, Limits, Slot};
pub(crate) use crate::mem::view::{MemError, MemoryView};
use crate::mem::walk::{Cursor, Leaf, MapError, MemType, Perm};
use crate::x86::paging::nested::{NestedTable, TablePool};
use crate::x86::vendor::HwCaps;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SetOnce, SpinLock};

/// Entries visited between two chances to reschedule while unmapping.
pub(super) const BUDGET: u32 = 16 * 1024;

/// Guest-physical address of the local APIC after reset.
pub(super) const APIC_PAGE: u64 = crate::x86::irqchip::lapic::base::DEFAULT_ADDRESS;

/// Nested page tables and the state of invalidations.
pub(super) struct Mmu {
    pub(super) table: NestedTable,
    /// Tables that were unlinked and wait for the flush.
    pub(super) pool: TablePool,
    /// Invalidations that ended.
    pub(super) invalidations: u64,
    /// Invalidations under way, and the hull of their ranges.
    pub(super) invalidating: u32,
    pub(super) hull: (u64, u64),
    /// The slot that is being deleted or moved away, as it was: perhaps no longer in the table, but still mapped.
    pub(super) leaving: Option<Slot>,
}

impl Mmu {
    pub(super) fn must_retry(&self, seen: u64, hva: u64) -> bool {
        self.invalidations != seen || self.is_invalidating(hva)
    }

    /// An invalidation that may concern `hva` is under way.
    #[inline]
    pub(super) fn is_invalidating(&self, hva: u64) -> bool {
        self.invalidating != 0 && self.hull.0 <= hva && hva < self.hull.1
    }
}

/// The APIC-access page is neither mapped nor excluded.
const APIC_UNMAPPED: u32 = 0;
/// It is mapped.
const APIC_MAPPED: u32 = 1;
/// It is never mapped again.
const APIC_EXCLUDED: u32 = 2;

/// All of a VM's guest memory.
#[pin_data(PinnedDrop)]
pub(crate) struct GuestMemory {
    #[pin]
    pub(super) update: Mutex<Option<Space>>,
    #[pin]
    pub(super) slots: SrcuCell<SlotTable>,
    #[pin]
    pub(super) mmu: SpinLock<Mmu>,
    /// Bumped whenever translations have to go; a vCPU compares it before each entry.
    tlb_generation: AtomicU64,
    /// The vCPUs to be stopped for a flush.
    vcpus: Arc<dyn StopRunning>,
    root: Hpa,
    /// The page that a processor takes for the local APIC where it is mapped, for VMs that use it.
    apic_page: SetOnce<page::Pages>,
    /// Changes under `update`.
    apic_state: AtomicU32,
    /// No huge leaf may be executable.
    pub(super) nx_huge: AtomicBool,
    /// KVM_GET_DIRTY_LOG leaves the log alone, KVM_CLEAR_DIRTY_LOG starts it afresh.
    pub(super) manual_protect: AtomicBool,
    /// New logs say that all pages are dirty.
    pub(super) initially_set: AtomicBool,
    pub(super) stats: Arc<VmStats>,
    pub(super) caps: HwCaps,
    pub(super) limits: Limits,
}

impl GuestMemory {
    /// No slots, an empty table.
    pub(crate) fn new(
        caps: HwCaps,
        stats: Arc<VmStats>,
        vcpus: Arc<dyn StopRunning>,
    ) -> Result<Arc<Self>> {
        // The root; the first fault fetches more.
        let root = page::Pages::new(0)?;
        let table = NestedTable::with_root(Hpa(root.phys()), &caps)?;
        Arc::pin_init(
            try_pin_init!(Self {
                update <- new_mutex!(None),
                slots <- SrcuCell::new(SlotTable::empty()),
                tlb_generation: AtomicU64::new(1),
                vcpus,
                apic_page: SetOnce::new(),
                apic_state: AtomicU32::new(APIC_UNMAPPED),
                nx_huge: AtomicBool::new(
                    caps.name == "vmx" && boot_cpu::bug(boot_cpu::Bug::ItlbMultihit),
                ),
                manual_protect: AtomicBool::new(false),
                initially_set: AtomicBool::new(false),
                stats,
                caps,
                limits: Limits {
                    slots: crate::mem::slots::MAX_SLOTS,
                    address_spaces: 1,
                    gpa_end: 1 << crate::linux::boot_cpu::phys_bits().min(48),
                    hva_end: (1 << (crate::linux::boot_cpu::virt_bits().clamp(48, 57) - 1)) - 4096,
                },
                // Last: nothing fails any more, and the root is freed with the table.
                root: Hpa(root.into_phys()),
                mmu <- new_spinlock!(init!(Mmu {
                    table,
                    pool: TablePool::new(),
                    invalidations: 0,
                    invalidating: 0,
                    hull: (0, 0),
                    leaving: None,
                })),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Root of the nested page tables.
    #[inline]
    pub(crate) fn root(&self) -> Hpa {
        self.root
    }

    /// Generation of translations; to be read after the vCPU has announced that it is about to enter.
    #[inline]
    pub(crate) fn tlb_generation(&self) -> u64 {
        self.tlb_generation.load(Ordering::SeqCst)
    }

    /// Makes every vCPU leave the guest and flush before it enters again. Interrupts are on.
    pub(super) fn flush(&self) {
        self.stats.add(VmCounter::RemoteFlushes, 1);
        self.tlb_generation.fetch_add(1, Ordering::SeqCst);
        self.vcpus.stop_running();
    }

    /// Unmaps `range`, letting others run in between if `may_sleep`.
    pub(super) fn unmap(&self, range: GpaRange, may_sleep: bool) {
        let mut cursor = Cursor::new(range);
        loop {
            let done = {
                let mut mmu = self.mmu.lock();
                self.unmap_chunk(&mut mmu, &mut cursor)
            };
            if done {
                return;
            }
            if may_sleep {
                crate::linux::sched::cond_resched();
            }
        }
    }

    fn unmap_chunk(&self, mmu: &mut Mmu, cursor: &mut Cursor) -> bool {
        let Mmu { table, pool, .. } = mmu;
        let done = table.unmap_some(pool, cursor, BUDGET);
        if cursor.take_flush() {
            self.flush();
        }
        pool.release();
        done
    }

    /// The APIC-access page of this VM (SDM 3C 30.4). The caller excludes other callers.
    pub(crate) fn apic_page(&self) -> Result<Hpa> {
        if self.apic_page.as_ref().is_none() {
            self.apic_page.populate(page::Pages::new(0)?);
        }
        self.apic_page.as_ref().map(|p| Hpa(p.phys())).ok_or(ENOMEM)
    }

    /// Whether the APIC-access page may be mapped and is not.
    #[inline]
    pub(crate) fn apic_page_missing(&self) -> bool {
        self.apic_state.load(Ordering::Relaxed) == APIC_UNMAPPED
    }

    /// Maps the APIC-access page at the APIC's default address, unless there is memory or [`GuestMemory::exclude_apic_page`]
    /// was called. Every vCPU of the VM has to virtualise accesses to it.
    pub(crate) fn map_apic_page(&self) -> Result {
        let _update = self.update.lock();
        if !self.apic_page_missing() {
            return Ok(());
        }
        let hpa = match self.apic_page.as_ref() {
            Some(p) if self.view().is_device(Gpa(APIC_PAGE), false) => Hpa(p.phys()),
            _ => {
                self.apic_state.store(APIC_EXCLUDED, Ordering::Relaxed);
                return Ok(());
            }
        };
        self.refill()?;
        let leaf = Leaf {
            hpa,
            perm: Perm::RW,
            mem_type: MemType::Wb,
            ignore_pat: true,
            accessed: true,
            dirty: true,
        };
        let mut mmu = self.mmu.lock();
        let Mmu { table, pool, .. } = &mut *mmu;
        match table.map(pool, Gpa(APIC_PAGE), Level::L1, &leaf) {
            Ok(change) => {
                if change.needs_flush() {
                    self.flush();
                }
                self.apic_state.store(APIC_MAPPED, Ordering::Relaxed);
            }
            Err(MapError::NoMemory { flush }) => {
                if flush {
                    self.flush();
                }
            }
            Err(_) => self.apic_state.store(APIC_EXCLUDED, Ordering::Relaxed),
        }
        pool.release();
        Ok(())
    }

    /// Unmaps the APIC-access page for good: not all vCPUs virtualise accesses to it from now on. When it returns no vCPU
    /// reaches the page.
    pub(crate) fn exclude_apic_page(&self) {
        if self.apic_state.load(Ordering::Relaxed) == APIC_EXCLUDED {
            return;
        }
        let _update = self.update.lock();
        self.exclude_apic_locked();
    }

    /// [`GuestMemory::exclude_apic_page`] under `update`.
    pub(super) fn exclude_apic_locked(&self) {
        if self.apic_state.swap(APIC_EXCLUDED, Ordering::Relaxed) == APIC_MAPPED {
            if let Some(range) = GpaRange::new(Gpa(APIC_PAGE), PAGE_SIZE) {
                self.unmap(range, true);
            }
        }
    }

    /// KVM_CAP_VM_DISABLE_NX_HUGE_PAGES.
    pub(crate) fn allow_executable_huge_pages(&self) {
        self.nx_huge.store(false, Ordering::Relaxed);
    }

    /// The slots as they are now.
    #[inline]
    pub(crate) fn view(&self) -> MemoryView<'_> {
        MemoryView {
            slots: self.slots.read(),
        }
    }

    /// For each guest-physical range behind the user range `start..end`.
    pub(super) fn for_each_range(&self, start: u64, end: u64, mut f: impl FnMut(GpaRange)) {
        let slots = self.slots.read();
        for (_, r) in slots::gpa_ranges(&slots.slots, Hva(start), Hva(end)) {
            f(r);
        }
    }
}

#[pinned_drop]
impl PinnedDrop for GuestMemory {
    fn drop(self: Pin<&mut Self>) {
        // Nobody runs and nobody else has a reference: no flush is needed before tables are freed.
        let mut mmu = self.mmu.lock();
        let Mmu { table, pool, .. } = &mut *mmu;
        table.destroy(pool);
    }
}

/// Kernel address of a page-table page.
pub(crate) fn table_ptr(table: Hpa) -> *mut u64 {
    page::phys_to_virt(table.0).cast()
}
