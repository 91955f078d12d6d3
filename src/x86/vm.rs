// SPDX-License-Identifier: GPL-2.0
//! A virtual machine: what its vCPUs share.
//!
//! # Lifetime
//!
//! A [`Vm`] lives as long as any file of it: its own, its vCPUs', their statistics. Files may be closed in any order. Each
//! file pins the module.
//!
//! # Lock order
//!
//! `setup` (creation of vCPUs and interrupt controllers) > a vCPU's `state` > `memory.update` > the interrupt
//! controllers' spin locks.

use crate::abi::stats::VmStats;
use crate::linux::mmu_notifier::MmuNotifier;
use crate::mem::memory::{GuestMemory, Notifier};
use crate::x86::enabled::VmCaps;
use crate::x86::irqchip::chip::IrqChip;
use crate::x86::pv::clock::Clock;
use crate::x86::shared::VcpuSet;
use crate::x86::vendor::choose;
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

/// A virtual machine.
#[pin_data(PinnedDrop)]
pub(crate) struct Vm {
    /// The address space that created it, the only one that may use it.
    mm: ARef<Mm>,
    /// Unregistered, and no callback runs any more, before the memory goes.
    _notifier: MmuNotifier<Notifier>,
    /// Its vCPUs.
    pub(crate) vcpus: Arc<VcpuSet>,
    /// Guest memory.
    pub(crate) memory: Arc<GuestMemory>,
    /// IOAPIC, 8259s, 8254, routing, irqfds, ioeventfds.
    pub(crate) chip: Arc<IrqChip>,
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
    /// KVM_CAP_EXCEPTION_PAYLOAD is enabled.
    pub(crate) exception_payload: AtomicBool,
    /// KVM_CAP_X86_TRIPLE_FAULT_EVENT is enabled.
    pub(crate) triple_fault_event: AtomicBool,
    /// Exit ledger.
    pub(crate) stats: Arc<VmStats>,
}

impl Vm {
    /// A VM of the calling process, with no memory and no vCPU.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let caps = choose::caps().ok_or(ENODEV)?;
        let mm = crate::linux::sched::current_mm().ok_or(ESRCH)?;
        let stats = Arc::new(VmStats::ZERO, GFP_KERNEL_ACCOUNT)?;
        let vcpus = Arc::new(VcpuSet::create()?, GFP_KERNEL_ACCOUNT)?;
        let memory = GuestMemory::new(*caps, stats.clone(), vcpus.clone())?;
        let notifier = MmuNotifier::register(&mm, Notifier(memory.clone()))?;
        let chip = IrqChip::new(vcpus.clone())?;
        Arc::pin_init(
            try_pin_init!(Self {
                mm,
                _notifier: notifier,
                vcpus,
                memory,
                chip,
                caps <- VmCaps::new(),
                setup <- new_mutex!(Setup { ids: KVec::new() }),
                boot_cpu: AtomicU32::new(0),
                has_vfio: AtomicBool::new(false),
                tsc_khz: AtomicU32::new(crate::linux::boot_cpu::tsc_khz()),
                clock <- Clock::new(),
                exception_payload: AtomicBool::new(false),
                triple_fault_event: AtomicBool::new(false),
                stats,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// The address space.
    pub(crate) fn mm(&self) -> &Mm {
        &self.mm
    }

    /// EIO unless the caller runs in the VM's own address space.
    pub(crate) fn check_mm(&self) -> Result {
        if crate::linux::sched::is_current_mm(&self.mm) {
            Ok(())
        } else {
            Err(EIO)
        }
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
