// SPDX-License-Identifier: GPL-2.0
//! A virtual machine: what its vCPUs share.
//!
//! # Lock order
//!
//! `setup` > `irqfds` > a vCPU's `state` > the interrupt controller's `config` > `memory.update`.

use crate::abi::stats::{Mapped, VmStats};
use crate::arm64::calls::Calls;
use crate::arm64::el2;
use crate::arm64::ids::{Identity, Ids};
use crate::arm64::paging::{largest_leaf, NestedTable};
use crate::arm64::psci;
use crate::arm64::shared::VcpuSet;
use crate::arm64::vcpu::Vcpu;
use crate::arm64::vgic::chip::Vgic;
use crate::bus::irqfd::Irqfds;
use crate::bus::EventBus;
use crate::linux::mmu_notifier::MmuNotifier;
use crate::linux::once::Once;
use crate::linux::sched::is_current_mm;
use crate::mem::memory::{GuestMemory, HugePages};
use crate::mem::notifier::Notifier;
use crate::mem::slots::MAX_SLOTS;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::mm::Mm;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::{new_mutex, Arc, ArcBorrow, Mutex};

/// The PPIs of the timers where user space does not say others.
const TIMER_INTID: u32 = 27;
const PHYSICAL_TIMER_INTID: u32 = 30;

/// What creation steps have been taken.
pub(crate) struct Setup {
    /// The vCPUs, in order of creation.
    pub(crate) vcpus: KVec<Arc<Vcpu>>,
}

/// A virtual machine.
#[pin_data]
pub(crate) struct Vm {
    /// The address space that created it, the only one that may use it.
    mm: ARef<Mm>,
    /// Bits of a guest-physical address.
    pub(crate) address_bits: u32,
    /// Unregistered, and no callback runs any more, before the memory goes.
    _notifier: MmuNotifier<Notifier>,
    pub(crate) vcpus: Arc<VcpuSet>,
    pub(crate) ids: Ids,
    pub(crate) identity: Identity,
    /// Which calls guests have of it.
    #[pin]
    pub(crate) calls: Calls,
    pub(crate) stats: Arc<VmStats>,
    pub(crate) memory: Arc<GuestMemory>,
    /// ioeventfds and coalesced zones.
    #[pin]
    pub(crate) bus: EventBus,
    #[pin]
    pub(crate) setup: Mutex<Setup>,
    /// How far the VM's counter is behind the physical one: what that was when the VM was made.
    pub(crate) counter_offset: AtomicU64,
    /// The same of its physical counter: nothing, unless user space says so.
    pub(crate) physical_offset: AtomicU64,
    /// User space has said both (KVM_ARM_SET_COUNTER_OFFSET), and counters that it sets have no effect.
    pub(crate) offsets_fixed: AtomicBool,
    /// The interrupt controller.
    vgic: Once<Arc<Vgic>>,
    #[pin]
    pub(crate) irqfds: Mutex<Irqfds<Vgic>>,
    /// The PPI of the virtual timer.
    pub(crate) timer_intid: AtomicU32,
    /// That of the physical timer.
    pub(crate) physical_intid: AtomicU32,
    /// A vCPU has run.
    pub(crate) has_run: AtomicBool,
    /// KVM_CAP_ARM_NISV_TO_USER is enabled.
    nisv_to_user: AtomicBool,
    /// KVM_CAP_ARM_SYSTEM_SUSPEND is enabled.
    suspends: AtomicBool,
    /// Which version of PSCI guests find.
    psci_version: AtomicU32,
}

impl Vm {
    /// A VM of the calling process, whose address space is `mm`, with no memory and no vCPU, and so many bits of
    /// guest-physical address. EINVAL: there cannot be so many, or so few.
    pub(crate) fn new(mm: ARef<Mm>, address_bits: u32) -> Result<Arc<Self>> {
        let table = NestedTable::new(address_bits)?;
        let stats = Arc::new(VmStats::ZERO, GFP_KERNEL_ACCOUNT)?;
        let vcpus = VcpuSet::new(())?;
        let huge = HugePages {
            largest: largest_leaf(),
            nx: false,
        };
        let memory = GuestMemory::new(table, huge, stats.clone(), vcpus.clone())?;
        let notifier = MmuNotifier::register(&mm, Notifier(memory.clone()))?;
        Arc::pin_init(
            try_pin_init!(Self {
                mm,
                address_bits,
                _notifier: notifier,
                vcpus,
                ids: Ids::new(),
                identity: Identity::new(),
                calls <- Calls::new(),
                stats,
                memory,
                bus <- EventBus::new(),
                setup <- new_mutex!(Setup { vcpus: KVec::new() }),
                counter_offset: AtomicU64::new(el2::counter()),
                physical_offset: AtomicU64::new(0),
                offsets_fixed: AtomicBool::new(false),
                vgic: Once::new(),
                irqfds <- new_mutex!(Irqfds::new()),
                timer_intid: AtomicU32::new(TIMER_INTID),
                physical_intid: AtomicU32::new(PHYSICAL_TIMER_INTID),
                has_run: AtomicBool::new(false),
                nisv_to_user: AtomicBool::new(false),
                suspends: AtomicBool::new(false),
                psci_version: AtomicU32::new(psci::NEWEST),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// The address space.
    pub(crate) fn mm(&self) -> &Mm {
        &self.mm
    }

    /// Looks whether rules hold ([`crate::mem::oracle`]); nothing without `oracle`. Sleeps.
    pub(crate) fn audit(&self) {
        self.memory.audit();
    }

    /// EIO unless the caller runs in the VM's own address space, and the VM's rules hold as far as is known.
    pub(crate) fn check_mm(&self) -> Result {
        if is_current_mm(&self.mm) && !self.memory.is_broken() {
            Ok(())
        } else {
            Err(EIO)
        }
    }

    /// The memory of the address space that bits 31:16 of a slot's number say, of which there is one. EINVAL.
    pub(crate) fn memory_of_slot(&self, number: u32) -> Result<&GuestMemory> {
        if number < MAX_SLOTS {
            Ok(&self.memory)
        } else {
            Err(EINVAL)
        }
    }

    /// The same, for a slot that is going to be there.
    pub(crate) fn memory_for_slot(&self, number: u32, _make: bool) -> Result<&GuestMemory> {
        self.memory_of_slot(number)
    }

    /// Changes what all address spaces have in common, of which there is one.
    pub(crate) fn for_each_memory(&self, f: impl Fn(&GuestMemory)) {
        f(&self.memory);
    }

    /// Leaves of the nested page tables. Areas that are in parts for no longer than now are joined first. Sleeps.
    pub(crate) fn mapped(&self) -> Mapped {
        if self.check_mm().is_ok() {
            self.memory.recover_parts(&self.mm);
        }
        self.memory.mapped()
    }

    /// User space is not told of missing pages.
    pub(crate) fn reports_missing(&self, _slot: u32) -> bool {
        false
    }

    /// Accesses that the processor does not describe go to user space as they are.
    pub(crate) fn pass_undescribed(&self) {
        self.nisv_to_user.store(true, Ordering::Relaxed);
    }

    /// Whether they do.
    pub(crate) fn passes_undescribed(&self) -> bool {
        self.nisv_to_user.load(Ordering::Relaxed)
    }

    /// Guests may suspend the machine: user space is told.
    pub(crate) fn add_suspend(&self) {
        self.suspends.store(true, Ordering::Relaxed);
    }

    /// What guests find of PSCI.
    pub(crate) fn psci_policy(&self) -> psci::Policy {
        psci::Policy {
            version: self.psci_version.load(Ordering::Relaxed),
            suspends: self.suspends.load(Ordering::Relaxed),
            levels: el2::levels(),
        }
    }

    /// Another version of PSCI. EINVAL: none of those that there are.
    pub(crate) fn set_psci_version(&self, version: u64) -> Result {
        let known = psci::VERSIONS.iter().find(|v| u64::from(**v) == version);
        self.psci_version
            .store(*known.ok_or(EINVAL)?, Ordering::Relaxed);
        Ok(())
    }

    /// The interrupt controller, if there is one.
    #[inline]
    pub(crate) fn vgic(&self) -> Option<ArcBorrow<'_, Vgic>> {
        self.vgic.get()
    }

    /// Makes the interrupt controller. EEXIST: there is one.
    pub(crate) fn make_vgic(&self) -> Result<Arc<Vgic>> {
        let vgic = Vgic::new(self.vcpus.clone())?;
        if self.vgic.set(vgic.clone()) {
            self.ids.set_gic(true);
            Ok(vgic)
        } else {
            Err(EEXIST)
        }
    }
}
