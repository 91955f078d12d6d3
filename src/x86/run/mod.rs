// SPDX-License-Identifier: GPL-2.0
//! KVM_RUN: enter the guest, handle what it exits for, until user space is needed (api.rst 4.10, 5).
//!
//! Two loops. The inner one, [`Runner::stay`], keeps interrupts off and the guest's FPU loaded, and goes around for everything that needs
//! neither sleep nor host interrupts. The outer one handles the rest with interrupts on.
//!
//! Handlers are the same for both: called with `atomic` they return [`Step::Slow`] before any side effect when they would have to
//! sleep, and are called again outside.

use crate::abi::stats::{ExitClass, VcpuCounter, VcpuStats};
use crate::abi::uapi::k;
use crate::linux::mmap::Shared;
use crate::linux::{boot_cpu, sched};
use crate::x86::cpu::events;
use crate::x86::cpu::regs::rflags;
use crate::x86::exit::Exception;
use crate::x86::exit::Exit;
use crate::x86::pv::{clock_page, eoi, steal};
use crate::x86::vcpu::state::{MpState, State};
use crate::x86::vcpu::{abi, debug, RunPages, Vcpu};
use crate::x86::vm::Vm;
use kernel::prelude::*;

mod apic;
mod cpuid;
mod cr;
mod dr;
mod entry_failure;
mod event;
mod exception;
mod handle;
mod hlt;
mod hypercall;
mod mmio;
mod msr;
mod nested_fault;
mod port;
mod start;
mod stay;

/// Offsets in `struct kvm_run` (api.rst 5), asserted against the header in `vcpu`.
pub(crate) mod off {
    pub(crate) const REQUEST_INTERRUPT_WINDOW: usize = 0;
    pub(crate) const IMMEDIATE_EXIT: usize = 1;
    pub(crate) const EXIT_REASON: usize = 8;
    pub(crate) const READY_FOR_INTERRUPT: usize = 12;
    pub(crate) const IF_FLAG: usize = 13;
    pub(crate) const FLAGS: usize = 14;
    pub(crate) const CR8: usize = 16;
    pub(crate) const APIC_BASE: usize = 24;
    pub(crate) const UNION: usize = 32;
    /// `hypercall.ret`.
    pub(crate) const HYPERCALL_RET: usize = UNION + 56;
    pub(crate) const VALID_REGS: usize = 288;
    pub(crate) const DIRTY_REGS: usize = 296;
    pub(crate) const SYNC_REGS: usize = 304;
}

/// What a handler achieved.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Enter the guest again.
    Again,
    /// The same, and there is no event or interrupt that there was not before.
    Resume,
    /// Leave the stay, look at requests, then enter again.
    Leave,
    /// Call the handler again outside the stay.
    Slow,
    /// Return to user space; `kvm_run` is filled in.
    User,
    /// KVM_RUN fails.
    Fail(Error),
}

/// How a stay ended.
enum Stayed {
    /// With this step; the exit has been handled.
    Ended(Step),
    /// With an exit whose handler has to sleep, and has done nothing yet.
    Slow(Exit),
}

/// One KVM_RUN.
pub(crate) struct Runner<'a> {
    vm: &'a Vm,
    vcpu: &'a Vcpu,
    s: &'a mut State,
    run: &'a RunPages,
    stats: &'a VcpuStats,
    /// Event of the entry that the processor refused.
    refused: Option<crate::x86::exit::Event>,
}

impl<'a> Runner<'a> {
    /// Errors: ENOMEM.
    #[inline]
    pub(crate) fn new(vm: &'a Vm, vcpu: &'a Vcpu, s: &'a mut State) -> Result<Self> {
        Ok(Self {
            vm,
            vcpu,
            s,
            run: &vcpu.run,
            stats: vcpu.stats.counters()?,
            refused: None,
        })
    }

    /// KVM_RUN. Not inlined: its stack frame is not for the other ioctls.
    #[inline(never)]
    pub(crate) fn run(&mut self) -> Result<isize> {
        let result = self.run_inner();
        self.stats.add(VcpuCounter::UserExits, 1);
        self.publish();
        if let Ok(valid @ 1..) = self.run.read::<u64>(off::VALID_REGS) {
            abi::sync_to(self.vm, self.vcpu, self.s, valid);
        }
        result
    }

    /// The fields of `kvm_run` that are valid after every return.
    fn publish(&mut self) {
        let cr8 = self.s.cr8();
        let apic_base = self
            .s
            .apic
            .lapic
            .as_ref()
            .map_or(self.s.apic.base, |l| l.apic_base());
        let gate = self.s.gate();
        let ready = self.vm.chip.has_pic() || self.ready_for_injection(&gate);
        let run = self.run.first();
        let _ = run.write(off::IF_FLAG, u8::from(gate.if_flag));
        let _ = run.write(off::FLAGS, 0u16);
        let _ = run.write(off::CR8, u64::from(cr8));
        let _ = run.write(off::APIC_BASE, apic_base);
        let _ = run.write(off::READY_FOR_INTERRUPT, u8::from(ready));
    }

    /// User space may use KVM_INTERRUPT now and the guest will take it at once.
    fn ready_for_injection(&self, gate: &events::Gate) -> bool {
        gate.interrupt_open()
            && self.s.events.external.is_none()
            && self.s.events.interrupted.is_none()
            && self.s.events.exception.is_none()
            && self.s.accepts_external()
    }

    fn set_exit(&self, reason: u32) {
        let _ = self.run.write(off::EXIT_REASON, reason);
    }

    fn run_inner(&mut self) -> Result<isize> {
        // Read once: it decides both whether the vCPU waits for its start and whether it enters.
        let immediate_exit = self.run.read::<u8>(off::IMMEDIATE_EXIT)? != 0;
        if self.s.mp_state == MpState::Uninitialized {
            if immediate_exit {
                return Err(EINTR);
            }
            if self.wait_for_start().is_err() {
                return self.interrupted();
            }
            // KVM returns to user space between start-up and the first entry.
            return Err(EAGAIN);
        }
        let valid = self.run.read::<u64>(off::VALID_REGS)?;
        let dirty = self.run.read::<u64>(off::DIRTY_REGS)?;
        if valid | dirty != 0 {
            abi::sync_from(self.vm, self.vcpu, self.s, valid, dirty)?;
        }
        if self.s.apic.lapic.is_none() {
            let cr8 = self.run.read::<u64>(off::CR8)?;
            if cr8 > 15 {
                return Err(EINVAL);
            }
            self.s.apic.cr8 = cr8 as u8;
        }
        match self.complete() {
            Step::User => return Ok(0),
            Step::Fail(e) => return Err(e),
            _ => {}
        }
        if immediate_exit {
            // The last exit's reason and data stay readable.
            return Err(EINTR);
        }
        self.set_exit(k::KVM_EXIT_UNKNOWN);
        if !self.s.has_run {
            self.run.allocate()?;
            self.s.has_run = true;
            self.stats
                .add(VcpuCounter::Apicv, self.s.apic.virtualized.into());
        }
        self.s.pv.steal_stale = true;
        self.vcpu.shared.worker.set_current();
        loop {
            if self.vcpu.shared.requests() != 0 && !self.handle_requests() {
                return self.triple_fault();
            }
            if core::mem::take(&mut self.s.events.triple_fault) {
                return self.triple_fault();
            }
            if self.s.debug.is_due() {
                let _ = self.debug_exit(&Exception {
                    vector: events::vector::DB,
                    error_code: None,
                    payload: debug::SINGLE_STEP,
                });
                return Ok(0);
            }
            match self.s.mp_state {
                MpState::Runnable => {}
                MpState::Halted => {
                    if !self.halt() {
                        if sched::signal_pending() {
                            return self.interrupted();
                        }
                        // Requests that wake nobody may come without end.
                        sched::cond_resched();
                        continue;
                    }
                }
                MpState::Uninitialized | MpState::InitReceived => {
                    if self.wait_for_start().is_err() {
                        return self.interrupted();
                    }
                    continue;
                }
            }
            // Where the 8259s are in user space it may want to know that the guest can be interrupted.
            if !self.vm.chip.has_pic() && self.run.read::<u8>(off::REQUEST_INTERRUPT_WINDOW)? != 0 {
                let gate = self.s.gate();
                if self.ready_for_injection(&gate) {
                    self.set_exit(k::KVM_EXIT_IRQ_WINDOW_OPEN);
                    return Ok(0);
                }
            }
            if self.s.pv.clock_stale {
                clock_page::update(self.vm, self.s);
            }
            if self.s.pv.steal_wanted() {
                steal::update(self.vm, self.s);
            }
            let step = match self.stay()? {
                Stayed::Ended(step) => step,
                Stayed::Slow(exit) => {
                    let start = boot_cpu::rdtsc();
                    if self.s.pv.eoi_offered() {
                        let _ = eoi::take(self.vm, self.s, false);
                    }
                    let step = self.handle(&exit, false);
                    self.stats
                        .exit(ExitClass::of(&exit), boot_cpu::rdtsc().wrapping_sub(start));
                    step
                }
            };
            match step {
                Step::Again | Step::Resume => {}
                Step::Leave => {
                    // The host may have found out that its TSC is no clock.
                    if self.vm.clock.is_common() && !boot_cpu::tsc_stable() {
                        self.vm.clock.update(&self.vm.vcpus);
                    }
                }
                Step::User => return Ok(0),
                Step::Fail(e) => return Err(e),
                // A handler outside the stay that still wants to sleep has met memory that cannot be had.
                Step::Slow => return Err(EFAULT),
            }
            // A stay ends before the guest is entered when there is such work; signals are among it.
            if sched::xfer_to_guest_pending() && !self.give_way() {
                return self.interrupted();
            }
        }
    }

    /// Does what the kernel wants of the thread, and perhaps lets others run first. False if a signal waits.
    #[cold]
    fn give_way(&mut self) -> bool {
        steal::set_preempted(self.vm, self.s);
        self.vcpu.shared.set_ready();
        sched::xfer_to_guest_handle().is_ok()
    }

    /// KVM_RUN ends for a signal.
    #[cold]
    fn interrupted(&mut self) -> Result<isize> {
        self.set_exit(k::KVM_EXIT_INTR);
        self.stats.add(VcpuCounter::SignalExits, 1);
        Err(EINTR)
    }

    /// Takes what others asked for outside KVM_RUN, so that the state user space reads is complete.
    pub(crate) fn settle(&mut self) {
        let _ = self.handle_requests();
    }
}

/// RFLAGS bits that KVM_SET_REGS may set.
pub(crate) fn clean_rflags(v: u64) -> u64 {
    const DEFINED: u64 = 0x003f_7fd5;
    v & DEFINED | rflags::FIXED
}
