// SPDX-License-Identifier: GPL-2.0
//! A virtual CPU.
//!
//! All state is behind one mutex, which KVM_RUN holds for as long as it runs: an ioctl from another thread waits until
//! it returns, or until it is killed.

pub(crate) mod abi;
mod apic;
mod cpuid;
pub(crate) mod debug;
mod events;
pub(crate) mod fetch;
mod guest_debug;
pub(crate) mod guest_mem;
pub(crate) mod image;
mod measure;
pub(crate) mod mmio;
pub(crate) mod msr;
mod regs;
mod smm;
pub(crate) mod state;
pub(crate) mod task;
mod timer;
pub(crate) mod tsc;

pub(crate) use measure::measure;

use crate::abi::ledger::VcpuLedger;
use crate::abi::uapi::k;
use crate::linux::killable_mutex::{KillableBackend, KillableMutex};
use crate::linux::mmap::SharedPages;
use crate::x86::host_tsc;
use crate::x86::irqchip::lapic::Action;
use crate::x86::shared::VcpuShared;
use crate::x86::vcpu::state::State;
use crate::x86::vcpu::timer::ApicTimer;
use crate::x86::vm::Vm;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::sync::lock::Guard;
use kernel::sync::Arc;

/// KVM_GET_VCPU_MMAP_SIZE: `kvm_run`, the port data page, the coalesced-MMIO ring.
pub(crate) const MMAP_BYTES: usize = (OWN_PAGES + 1) * 4096;
/// Of these the pages of one vCPU; the ring is the VM's.
const OWN_PAGES: usize = 2;
/// They: `kvm_run`, and the data of port accesses, which is there from the first KVM_RUN on.
pub(crate) type RunPages = SharedPages<{ OWN_PAGES - 1 }>;
const _: () = assert!(k::KVM_COALESCED_MMIO_PAGE_OFFSET as usize == OWN_PAGES);

/// A vCPU.
#[pin_data]
pub(crate) struct Vcpu {
    /// What other CPUs may touch.
    pub(crate) shared: Arc<VcpuShared>,
    /// `kvm_run` and the other pages that user space maps.
    pub(crate) run: Arc<RunPages>,
    /// Exit ledger.
    pub(crate) stats: Arc<VcpuLedger>,
    /// The timer of the local APIC.
    pub(crate) timer: ApicTimer,
    #[pin]
    state: KillableMutex<State>,
}

impl Vcpu {
    /// A vCPU in RESET state.
    #[inline(never)]
    pub(crate) fn new(vm: &Vm, id: u32) -> Result<Arc<Self>> {
        let shared = VcpuShared::create(id, vm.vcpus.len())?;
        let ring = vm.memory.rings.create(shared.clone())?;
        let run = RunPages::new(vm.bus.ring(), ring.as_ref().map(|r| r.pages()))?;
        let stats = VcpuLedger::new(id)?;
        let timer = ApicTimer::new(shared.clone())?;
        Arc::pin_init(
            try_pin_init!(Self {
                state <- KillableMutex::new(State::new(vm, &shared, ring)?, static_lock_class!()),
                run,
                stats,
                timer,
                shared,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// The state; waits for a KVM_RUN under way. EINTR when the task is killed meanwhile.
    pub(crate) fn lock(&self) -> Result<Guard<'_, State, KillableBackend>> {
        let mut s = self.state.lock()?;
        self.follow_host_tsc(&mut s);
        Ok(s)
    }

    /// The state if nobody has it: the vCPU neither runs nor is in an ioctl. Those of several vCPUs may be held.
    pub(crate) fn lock_now(&self) -> Option<Guard<'_, State, KillableBackend>> {
        let mut s = self.state.lock_now()?;
        self.follow_host_tsc(&mut s);
        Some(s)
    }

    /// The guest's TSC goes on where it was, if the host's has started anew.
    #[inline]
    pub(crate) fn follow_host_tsc(&self, s: &mut State) {
        let lost = host_tsc::lost();
        if lost != s.tsc.lost {
            s.follow_host_tsc(lost);
            // A deadline in the guest is one of the host's TSC.
            self.timer.arm(s);
        }
    }

    /// Sets a new vCPU's TSC going, together with the others'.
    pub(crate) fn start_tsc(&self, vm: &Vm) -> Result {
        let mut s = self.lock()?;
        // As in KVM not an error: the host may have lost the frequency since user space chose it.
        let _ = s.set_tsc_khz(vm.tsc_khz.load(Ordering::Relaxed));
        s.synchronize_tsc(vm, 0, false);
        Ok(())
    }

    /// Carries out what the local APIC asks for, but for EOIs, which may have to go to user space. All that an
    /// [`Action`] comes from ends here. False: its interrupt goes to many, and is still to be sent with interrupts on.
    pub(crate) fn apply(&self, vm: &Vm, s: &mut State, action: &Action) -> bool {
        if action.timer {
            self.timer.arm(s);
        }
        let Some(l) = &s.apic.lapic else { return true };
        if action.addr || action.base {
            vm.vcpus.publish_addr(&self.shared, &l.addr());
        }
        if action.lint0 {
            let (extint, nmi) = (l.lint0_accepts_extint(), l.lint0_is_nmi());
            vm.vcpus.publish_lint0(&self.shared, extint, nmi);
        }
        let sent = match &action.ipi {
            Some(message) => vm.chip.deliver_quickly(message, l.id()).is_some(),
            None => true,
        };
        if action.base {
            s.apic_moved(vm);
            s.refresh_dynamic();
        }
        sent
    }

    /// As [`Vcpu::apply`], interrupts on: the interrupt is sent, whomever it goes to.
    pub(crate) fn apply_all(&self, vm: &Vm, s: &mut State, action: &Action) {
        if let (false, Some(message)) = (self.apply(vm, s, action), &action.ipi) {
            let _ = vm.chip.deliver(message, self.shared.id);
        }
    }
}
