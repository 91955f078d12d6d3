// SPDX-License-Identifier: GPL-2.0
//! A virtual CPU.
//!
//! All state is behind one mutex, which KVM_RUN holds for as long as it runs: an ioctl from another thread waits until it
//! returns, or until it is killed.

pub(crate) mod abi;
pub(crate) mod debug;
pub(crate) mod emulate;
pub(crate) mod state;

use crate::abi::ledger::VcpuLedger;
use crate::abi::uapi::k;
use crate::linux::boot_cpu;
use crate::linux::hrtimer::{self, Timer, TimerCallback};
use crate::linux::killable_mutex::KillableMutex;
use crate::linux::mmap::SharedPages;
use crate::x86::irqchip::lapic::timer::TimerArm;
use crate::x86::irqchip::lapic::Action;
use crate::x86::run;
use crate::x86::shared::{request, VcpuShared};
use crate::x86::vcpu::state::State;
use crate::x86::vendor::VcpuBackend;
use crate::x86::vm::Vm;
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::sync::Arc;

/// KVM_GET_VCPU_MMAP_SIZE: `kvm_run`, the port data page, the coalesced-MMIO ring.
pub(crate) const MMAP_BYTES: usize = (OWN_PAGES + 1) * 4096;
/// Of these the pages of one vCPU; the ring is the VM's.
const OWN_PAGES: usize = 2;
/// They: `kvm_run`, and the data of port accesses, which is there from the first KVM_RUN on.
pub(crate) type RunPages = SharedPages<{ OWN_PAGES - 1 }>;
const _: () = assert!(k::KVM_COALESCED_MMIO_PAGE_OFFSET as usize == OWN_PAGES);

const _: () = {
    assert!(offset_of!(k::kvm_run, immediate_exit__unsafe) == run::off::IMMEDIATE_EXIT);
    assert!(offset_of!(k::kvm_run, exit_reason) == run::off::EXIT_REASON);
    assert!(offset_of!(k::kvm_run, ready_for_interrupt_injection) == run::off::READY_FOR_INTERRUPT);
    assert!(offset_of!(k::kvm_run, if_flag) == run::off::IF_FLAG);
    assert!(offset_of!(k::kvm_run, flags) == run::off::FLAGS);
    assert!(offset_of!(k::kvm_run, cr8) == run::off::CR8);
    assert!(offset_of!(k::kvm_run, apic_base) == run::off::APIC_BASE);
    assert!(offset_of!(k::kvm_run, __bindgen_anon_1) == run::off::UNION);
    assert!(offset_of!(k::kvm_run, kvm_valid_regs) == run::off::VALID_REGS);
    assert!(offset_of!(k::kvm_run, kvm_dirty_regs) == run::off::DIRTY_REGS);
    assert!(offset_of!(k::kvm_run, s) == run::off::SYNC_REGS);
};

/// The APIC timer of a vCPU: asks the vCPU to look at its local APIC.
pub(crate) struct ApicTimer(Arc<VcpuShared>);

impl TimerCallback for ApicTimer {
    fn expired(&self) -> Option<u64> {
        self.0.request(request::TIMER);
        None
    }
}

/// A vCPU.
#[pin_data]
pub(crate) struct Vcpu {
    /// What other CPUs may touch.
    pub(crate) shared: Arc<VcpuShared>,
    /// `kvm_run` and the other pages that user space maps.
    pub(crate) run: Arc<RunPages>,
    /// Exit ledger.
    pub(crate) stats: Arc<VcpuLedger>,
    timer: Timer<ApicTimer>,
    #[pin]
    pub(crate) state: KillableMutex<State>,
}

impl Vcpu {
    /// A vCPU in RESET state.
    #[inline(never)]
    pub(crate) fn new(vm: &Vm, id: u32) -> Result<Arc<Self>> {
        let shared = VcpuShared::create(id)?;
        let run = RunPages::new(vm.bus.ring())?;
        let stats = VcpuLedger::new(id)?;
        let timer = Timer::new(ApicTimer(shared.clone()))?;
        Arc::pin_init(
            try_pin_init!(Self {
                state <- KillableMutex::new(State::new(vm, &shared)?, static_lock_class!()),
                run,
                stats,
                timer,
                shared,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Sets a new vCPU's TSC going, together with the others'.
    pub(crate) fn start_tsc(&self, vm: &Vm) -> Result {
        let mut s = self.state.lock()?;
        // As in KVM not an error: the host may have lost the frequency since user space chose it.
        let _ = s.set_tsc_khz(vm.tsc_khz.load(Ordering::Relaxed));
        s.synchronize_tsc(vm, 0, false);
        Ok(())
    }

    /// Arms the APIC timer as the local APIC wants it.
    pub(crate) fn arm_timer(&self, s: &mut State) {
        let Some(l) = &s.lapic else { return };
        let arm = l.timer_arm();
        if s.guest_timer {
            if let TimerArm::AtTsc(deadline) = arm {
                self.stop_host_timer(s);
                let left = deadline
                    .saturating_sub(s.tsc())
                    .saturating_sub(s.exit_advance);
                if left == 0 {
                    s.hw.set_deadline(u64::MAX);
                    self.shared.request_self(request::TIMER);
                } else {
                    let now = boot_cpu::rdtsc();
                    let left = Self::scaled(left, s.tsc_rate_khz(), boot_cpu::tsc_khz().into());
                    s.hw.set_deadline(now.saturating_add(left));
                }
                return;
            }
            s.hw.set_deadline(u64::MAX);
        }
        self.arm_host_timer(s, arm);
    }

    /// `count` ticks of a clock of `khz`, counted by one of `other` per millisecond, without a product that overflows.
    fn scaled(count: u64, khz: u32, other: u64) -> u64 {
        let khz = u64::from(khz).max(1);
        if khz == other {
            return count;
        }
        // The remainder is below 2^32, as the other rate is.
        (count / khz)
            .saturating_mul(other)
            .saturating_add((count % khz).saturating_mul(other) / khz)
    }

    /// Arms the host's timer.
    fn arm_host_timer(&self, s: &mut State, arm: TimerArm) {
        match arm {
            TimerArm::Off => self.stop_host_timer(s),
            TimerArm::AtNs(ns) => {
                s.host_timer = true;
                self.timer.start_abs_ns(ns);
            }
            TimerArm::AtTsc(deadline) => {
                // Early by what the way from the timer's interrupt to the guest takes.
                let left = deadline
                    .saturating_sub(s.tsc())
                    .saturating_sub(s.timer_advance);
                if left == 0 {
                    self.shared.request_self(request::TIMER);
                    return;
                }
                let ns = Self::scaled(left, s.tsc_rate_khz(), 1_000_000);
                s.host_timer = true;
                self.timer
                    .start_abs_ns(hrtimer::ktime_get_ns().saturating_add(ns.min(u64::MAX / 4)));
            }
        }
    }

    /// The host's timer is not needed. If it fires meanwhile the vCPU finds that its own has not.
    fn stop_host_timer(&self, s: &mut State) {
        if core::mem::take(&mut s.host_timer) {
            let _ = self.timer.try_cancel();
        }
    }

    /// The vCPU is about to sleep in HLT: a deadline that would end the guest's turn has to wake it.
    pub(crate) fn sleep_timer(&self, s: &mut State) {
        let arm = match &s.lapic {
            Some(l) if s.guest_timer => l.timer_arm(),
            _ => return,
        };
        if let TimerArm::AtTsc(_) = arm {
            self.arm_host_timer(s, arm);
        }
    }

    /// It has woken.
    pub(crate) fn wake_timer(&self, s: &mut State) {
        if s.guest_timer && s.lapic.as_ref().is_some_and(|l| l.tsc_deadline() != 0) {
            self.stop_host_timer(s);
        }
    }

    /// Carries out what the local APIC asks for, but for EOIs.
    pub(crate) fn act(&self, vm: &Vm, s: &mut State, action: &Action) {
        if action.timer {
            self.arm_timer(s);
        }
        let Some(l) = &s.lapic else { return };
        if action.addr || action.base {
            self.shared.set_apic_addr(l.addr());
        }
        if action.lint0 {
            self.shared
                .set_lint0(l.lint0_accepts_extint(), l.lint0_is_nmi());
        }
        if let Some(message) = &action.ipi {
            let source = l.id();
            let _ = vm.chip.deliver(message, source);
        }
        if action.base {
            s.apic_moved(vm);
            s.refresh_dynamic();
        }
    }
}
