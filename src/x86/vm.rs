// SPDX-License-Identifier: GPL-2.0
//! A virtual machine: what its vCPUs share.
//!
//! # Lifetime
//!
//! A [`Vm`] lives as long as any file of it: its own, its vCPUs', their statistics. Files may be closed in any order.
//! Each file pins the module.
//!
//! # Lock order
//!
//! `setup` (creation of vCPUs and interrupt controllers) > a vCPU's `state` > `spaces` > `memory.update`, that of the
//! first address space first > the interrupt controllers' spin locks.

use crate::abi::stats::{Mapped, VmStats};
use crate::bus::ioeventfd::Bus;
use crate::bus::EventBus;
use crate::linux::cred;
use crate::linux::mmu_notifier::MmuNotifier;
use crate::linux::once::Once;
use crate::mem::addr::{Gpa, Level};
use crate::mem::memory::{GuestMemory, HugePages, MemError};
use crate::mem::missing::{Absent, Missing};
use crate::mem::notifier::Notifier;
use crate::mem::slots::MAX_SLOTS;
use crate::params;
use crate::x86::hyperv::partition::Partition;
use crate::x86::irqchip::chip::IrqChip;
use crate::x86::paging::nested::NestedTable;
use crate::x86::pv::clock::Clock;
use crate::x86::shared::VcpuSet;
use crate::x86::vendor::choose;
use crate::x86::vm_caps::VmCaps;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use kernel::mm::Mm;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::{new_mutex, Arc, Mutex};

/// What creation steps have been taken.
pub(crate) struct Setup {
    /// Ids of the vCPUs that exist, in order of creation.
    pub(crate) ids: KVec<u32>,
}

impl Setup {
    /// Whether there is a vCPU, after which much is fixed.
    pub(crate) fn has_vcpus(&self) -> bool {
        !self.ids.is_empty()
    }
}

/// The address space in which vCPUs in SMM run.
struct SmmMemory {
    /// Unregistered, and no callback runs any more, before the memory goes.
    _notifier: MmuNotifier<Notifier>,
    memory: Arc<GuestMemory>,
}

/// A virtual machine.
#[pin_data(PinnedDrop)]
pub(crate) struct Vm {
    /// The address space that created it, the only one that may use it.
    mm: ARef<Mm>,
    /// Unregistered, and no callback runs any more, before the memory goes.
    _notifier: MmuNotifier<Notifier>,
    /// Its vCPUs.
    pub(crate) vcpus: Arc<VcpuSet>,
    /// Guest memory: the first address space.
    pub(crate) memory: Arc<GuestMemory>,
    /// The second one, for SMM; there with its first slot.
    smm_memory: Once<KBox<SmmMemory>>,
    /// Held while the second address space is made, around changes of what it takes over from the first, and while
    /// what excludes it is made.
    #[pin]
    spaces: Mutex<()>,
    /// Pages of it that user space brings when they are asked for.
    #[pin]
    pub(crate) missing: Missing,
    /// ioeventfds and coalesced zones.
    #[pin]
    pub(crate) bus: EventBus,
    /// IOAPIC, 8259s, 8254, routing, irqfds.
    #[pin]
    pub(crate) chip: IrqChip,
    /// What KVM_ENABLE_CAP has set.
    #[pin]
    pub(crate) caps: VmCaps,
    #[pin]
    pub(crate) setup: Mutex<Setup>,
    /// vCPU that starts as BSP.
    pub(crate) boot_cpu: AtomicU32,
    /// A VFIO device exists.
    pub(crate) has_vfio: AtomicBool,
    /// TSC frequency of new vCPUs, kHz.
    pub(crate) tsc_khz: AtomicU32,
    /// The VM's clock.
    #[pin]
    pub(crate) clock: Clock,
    /// Hyper-V's interface.
    #[pin]
    pub(crate) hyperv: Partition,
    /// KVM_CAP_EXCEPTION_PAYLOAD is enabled.
    pub(crate) exception_payload: AtomicBool,
    /// KVM_CAP_X86_TRIPLE_FAULT_EVENT is enabled.
    pub(crate) triple_fault_event: AtomicBool,
    /// Exit ledger.
    pub(crate) stats: Arc<VmStats>,
}

impl Vm {
    /// The page at `gpa` of the first address space, if it is missing and user space is to bring it.
    #[inline]
    pub(crate) fn missing_at(&self, gpa: Gpa) -> Option<Absent> {
        if self.missing.is_enabled() {
            self.find_missing(gpa)
        } else {
            None
        }
    }

    #[cold]
    #[inline(never)]
    fn find_missing(&self, gpa: Gpa) -> Option<Absent> {
        match self.memory.view().check_present(gpa) {
            Err(MemError::Missing(page)) => Some(page),
            _ => None,
        }
    }

    /// A VM of the calling process, whose address space is `mm`, with no memory and no vCPU.
    pub(crate) fn new(mm: ARef<Mm>) -> Result<Arc<Self>> {
        let caps = choose::caps().ok_or(ENODEV)?;
        let stats = Arc::new(VmStats::ZERO, GFP_KERNEL_ACCOUNT)?;
        let vcpus = VcpuSet::create()?;
        // The root alone; the first fault fetches more.
        let table = NestedTable::new(caps)?;
        let huge = HugePages {
            largest: match (caps.nested_2m, caps.nested_1g) {
                (false, _) => Level::L1,
                (true, false) => Level::L2,
                (true, true) => Level::L3,
            },
            nx: params::nx_huge_pages().unwrap_or(caps.nx_huge),
        };
        let memory = GuestMemory::new(table, huge, stats.clone(), vcpus.clone())?;
        let notifier = MmuNotifier::register(&mm, Notifier(memory.clone()))?;
        Arc::pin_init(
            try_pin_init!(Self {
                mm,
                _notifier: notifier,
                chip <- IrqChip::new(vcpus.clone()),
                vcpus,
                memory,
                smm_memory: Once::new(),
                spaces <- new_mutex!(()),
                missing <- Missing::new(),
                bus <- EventBus::new(),
                caps <- VmCaps::new(),
                setup <- new_mutex!(Setup { ids: KVec::new() }),
                boot_cpu: AtomicU32::new(0),
                has_vfio: AtomicBool::new(false),
                tsc_khz: AtomicU32::new(crate::linux::boot_cpu::tsc_khz()),
                clock <- Clock::new(),
                hyperv <- Partition::new(),
                exception_payload: AtomicBool::new(false),
                triple_fault_event: AtomicBool::new(false),
                stats,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// The second address space of guest memory, if there is one.
    #[inline]
    pub(crate) fn smm_memory(&self) -> Option<&GuestMemory> {
        self.smm_memory.get().map(|m| &*m.memory)
    }

    /// The second address space of guest memory, which is made if there is none. Sleeps. A reset point is void then:
    /// it knows of one alone. EBUSY: the VM has forks, which would not see writes there. ENODEV, ENOMEM, EINTR.
    pub(crate) fn make_smm_memory(&self) -> Result<&GuestMemory> {
        if let Some(memory) = self.smm_memory() {
            return Ok(memory);
        }
        let _spaces = self.spaces.lock();
        if self.memory.has_forks() {
            return Err(EBUSY);
        }
        self.smm_memory.get_or_make(|| {
            let table = NestedTable::new(choose::caps().ok_or(ENODEV)?)?;
            let memory = self.memory.beside(table)?;
            let made = SmmMemory {
                _notifier: MmuNotifier::register(&self.mm, Notifier(memory.clone()))?,
                memory,
            };
            Ok(KBox::new(made, GFP_KERNEL_ACCOUNT)?)
        })?;
        self.memory.lose_reset_point();
        self.smm_memory().ok_or(ENOMEM)
    }

    /// Runs `f` with guest memory, while no second address space comes, nor missing pages. EINVAL: there is one.
    pub(crate) fn with_one_memory<R>(
        &self,
        f: impl FnOnce(&GuestMemory) -> Result<R>,
    ) -> Result<R> {
        let _spaces = self.spaces.lock();
        if self.smm_memory().is_some() {
            return Err(EINVAL);
        }
        f(&self.memory)
    }

    /// Guest memory as a vCPU sees it that is in SMM, or (`in_smm` false) is not.
    #[inline(always)]
    pub(crate) fn memory_seen(&self, in_smm: bool) -> &GuestMemory {
        if in_smm {
            if let Some(memory) = self.smm_memory() {
                return memory;
            }
        }
        &self.memory
    }

    /// The address space that bits 31:16 of a slot's number say. EINVAL: there cannot be such a slot. ENOENT: there is
    /// none, since there is no slot of that address space.
    pub(crate) fn memory_of_slot(&self, number: u32) -> Result<&GuestMemory> {
        if number & 0xffff >= MAX_SLOTS {
            return Err(EINVAL);
        }
        match number >> 16 {
            0 => Ok(&self.memory),
            1 => self.smm_memory().ok_or(ENOENT),
            _ => Err(EINVAL),
        }
    }

    /// [`Vm::memory_of_slot`], which is made if there is none and (`make`) there is going to be a slot. EINVAL.
    pub(crate) fn memory_for_slot(&self, number: u32, make: bool) -> Result<&GuestMemory> {
        match self.memory_of_slot(number) {
            Err(e) if e == ENOENT && make => self.make_smm_memory(),
            Err(_) => Err(EINVAL),
            Ok(memory) => Ok(memory),
        }
    }

    /// Whether user space may be told of pages missing in a slot. It is not told in which address space they are.
    pub(crate) fn reports_missing(&self, slot: u32) -> bool {
        slot >> 16 == 0 && self.missing.is_enabled()
    }

    /// RVMM_CAP_MISSING. EBUSY: the VM has forks, for which pages would come that nobody has brought.
    pub(crate) fn enable_missing(&self) -> Result {
        let _spaces = self.spaces.lock();
        if self.memory.has_forks() {
            return Err(EBUSY);
        }
        self.missing.enable();
        Ok(())
    }

    /// As [`GuestMemory::add_bitmaps`], of all address spaces.
    pub(crate) fn add_bitmaps(&self) -> Result {
        let _spaces = self.spaces.lock();
        self.memory.add_bitmaps(self.smm_memory())
    }

    /// Changes what all address spaces have in common.
    pub(crate) fn for_each_memory(&self, f: impl Fn(&GuestMemory)) {
        let _spaces = self.spaces.lock();
        f(&self.memory);
        if let Some(memory) = self.smm_memory() {
            f(memory);
        }
    }

    /// The address space.
    pub(crate) fn mm(&self) -> &Mm {
        &self.mm
    }

    /// Looks whether rules hold ([`crate::mem::oracle`]); nothing without `oracle`. Sleeps.
    pub(crate) fn audit(&self) {
        self.memory.audit();
        if let Some(other) = self.smm_memory() {
            other.audit();
        }
    }

    /// EIO unless the caller runs in the VM's own address space, and the VM's rules hold as far as is known.
    pub(crate) fn check_mm(&self) -> Result {
        if crate::linux::sched::is_current_mm(&self.mm) && !self.is_broken() {
            Ok(())
        } else {
            Err(EIO)
        }
    }

    /// Whether the oracle has found something.
    #[inline]
    pub(crate) fn is_broken(&self) -> bool {
        self.memory.is_broken() || self.smm_memory().is_some_and(GuestMemory::is_broken)
    }

    /// Leaves of the nested page tables. Areas that are in parts for no longer than now are joined first, which
    /// otherwise waits for the next KVM_RUN. Sleeps.
    pub(crate) fn mapped(&self) -> Mapped {
        let own = self.check_mm().is_ok();
        let mut all = Mapped::default();
        let both = [Some(&*self.memory), self.smm_memory()];
        for memory in both.into_iter().flatten() {
            if own {
                memory.recover_parts(&self.mm);
            }
            all.add(&memory.mapped());
        }
        all
    }

    /// KVM_CAP_VM_DISABLE_NX_HUGE_PAGES. EPERM: who may not reboot the machine may not risk it. EINVAL: a value, or
    /// there are vCPUs.
    pub(crate) fn disable_nx_huge_pages(&self, value: u64, setup: &Setup) -> Result {
        if !cred::may_reboot() {
            return Err(EPERM);
        }
        if value != 0 || setup.has_vcpus() {
            return Err(EINVAL);
        }
        self.for_each_memory(GuestMemory::allow_executable_huge_pages);
        Ok(())
    }

    /// A write to memory that is none: to a device in the kernel, or to who waits for it. False: to user space.
    pub(crate) fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        self.chip.mmio_write(gpa, data) || self.bus.write(Bus::Mmio, gpa, data)
    }

    /// A write to a port that no device in the kernel has: to who waits for it. False: to user space. Any context.
    #[inline]
    pub(crate) fn pio_event(&self, port: u16, width: u8, value: u32) -> bool {
        let data = value.to_le_bytes();
        let data = data.get(..width.into()).unwrap_or(&data);
        self.bus.write(Bus::Pio, port.into(), data)
    }

    /// A write to a port: to a device in the kernel, or to who waits for it. False: to user space. Any context.
    pub(crate) fn pio_write(&self, port: u16, width: u8, value: u32) -> bool {
        self.chip.pio_write(port, width, value) || self.pio_event(port, width, value)
    }

    /// Id of the vCPU that starts as BSP.
    pub(crate) fn boot_cpu(&self) -> u32 {
        self.boot_cpu.load(Ordering::Relaxed)
    }
}

#[pinned_drop]
impl PinnedDrop for Vm {
    fn drop(self: Pin<&mut Self>) {
        self.chip.shutdown();
    }
}
