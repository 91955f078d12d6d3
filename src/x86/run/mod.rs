// SPDX-License-Identifier: GPL-2.0
//! KVM_RUN: enter the guest, handle what it exits for, until user space is needed (api.rst 4.10, 5).
//!
//! Two loops. The inner one, [`Runner::stay`], keeps interrupts off and the guest's FPU loaded, and goes around for
//! everything that needs neither sleep nor host interrupts. The outer one handles the rest with interrupts on.
//!
//! Handlers are the same for both: called with the [`Stay`](crate::x86::vendor::Stay) that goes on they return
//! [`Step::Slow`] before any side effect when they would have to sleep, and are called again without, outside.

use crate::abi::exits;
use crate::abi::record::{Entry, Path};
use crate::abi::stats::{ExitClass, VcpuCounter, VcpuStats};
use crate::abi::uapi::k;
use crate::linux::{boot_cpu, sched};
use crate::mem::addr::Gpa;
use crate::mem::memory::GuestMemory;
use crate::mem::ring::Ring;
use crate::x86::cpu::events;
use crate::x86::exit::{Exception, Exit};
use crate::x86::hyperv;
use crate::x86::irqchip::msg::Message;
use crate::x86::pv::{clock_page, steal, vapic};
use crate::x86::shared::request;
use crate::x86::vcpu::state::{MpState, State};
use crate::x86::vcpu::{abi, debug, RunPages, Vcpu};
use crate::x86::vendor::VcpuBackend;
use crate::x86::vm::Vm;
use kernel::prelude::*;

mod apic;
mod async_pf;
mod cpuid;
mod cr;
mod dr;
mod entry_failure;
mod event;
mod exception;
mod handle;
mod hlt;
mod hypercall;
mod hyperv_call;
mod interpret;
mod missing;
mod mmio;
mod msr;
mod nested_fault;
mod port;
mod record;
mod smm;
mod start;
mod stay;
mod task;
mod undefined;

/// What a handler achieved.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Enter the guest again.
    Again,
    /// Enter the guest again: there is no event or interrupt that there was not before.
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
    /// The nested fault that is handled is an access to a device.
    to_device: bool,
    /// An interrupt of the local APIC that goes to many vCPUs; to be sent before anything else.
    unsent: Option<Message>,
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
            to_device: false,
            unsent: None,
        })
    }

    /// Guest memory as the vCPU sees it.
    #[inline(always)]
    fn memory(&self) -> &'a GuestMemory {
        self.s.memory(self.vm)
    }

    /// KVM_RUN. Not inlined: its stack frame is not for the other ioctls.
    #[inline(never)]
    pub(crate) fn run(&mut self) -> Result<isize> {
        let result = self.run_inner();
        self.stats.add(VcpuCounter::UserExits, 1);
        self.publish();
        let valid = self.run.get(exits::VALID_REGS);
        if valid != 0 {
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
        let page = self.run.first();
        page.put(exits::IF_FLAG, gate.if_flag.into());
        page.put(exits::FLAGS, self.s.smm.is_active().into());
        page.put(exits::CR8, cr8.into());
        page.put(exits::APIC_BASE, apic_base);
        page.put(exits::READY_FOR_INTERRUPT, ready.into());
    }

    /// User space may use KVM_INTERRUPT now and the guest will take it at once.
    fn ready_for_injection(&self, gate: &events::Gate) -> bool {
        gate.interrupt_open()
            && self.s.events.external.is_none()
            && self.s.events.held.is_none()
            && self.s.events.interrupted.is_none()
            && self.s.events.exception.is_none()
            && self.s.accepts_external()
    }

    fn run_inner(&mut self) -> Result<isize> {
        // Read once: it decides both whether the vCPU waits for its start and whether it enters.
        let immediate_exit = self.run.get(exits::IMMEDIATE_EXIT) != 0;
        if self.s.mp_state == MpState::Uninitialized {
            if immediate_exit {
                return Err(EINTR);
            }
            if self.wait_for_start().is_err() {
                let _ = self.interrupted();
                return Err(EINTR);
            }
            // KVM returns to user space between start-up and the first entry.
            return Err(EAGAIN);
        }
        self.take_page()?;
        // What completes the last exit may write as well; its data stay where they are.
        if !immediate_exit && self.ring_is_full() {
            self.ask(&exits::DirtyRingFull);
            return Ok(0);
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
        self.run.put(exits::EXIT_REASON, k::KVM_EXIT_UNKNOWN);
        if !self.s.has_run {
            self.run.allocate()?;
            self.s.has_run = true;
            self.stats
                .add(VcpuCounter::Apicv, self.s.apic.virtualized.into());
        }
        self.s.pv.steal_stale = true;
        self.vcpu.shared.worker.set_current();
        loop {
            if self.vm.is_broken() {
                return Err(EIO);
            }
            self.memory().recover_parts(self.vm.mm());
            let step = match self.prepare() {
                Some(step) => step,
                None => self.enter()?,
            };
            match step {
                Step::Again | Step::Resume => {}
                Step::Leave => {
                    if self.unsent.is_some() {
                        self.send_unsent();
                    }
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
                let _ = self.interrupted();
                return Err(EINTR);
            }
        }
    }

    /// Takes what user space has put into the page for this KVM_RUN. EINVAL.
    fn take_page(&mut self) -> Result {
        let page = self.run.first();
        let valid = page.get(exits::VALID_REGS);
        let dirty = page.get(exits::DIRTY_REGS);
        if valid | dirty != 0 {
            abi::sync_from(self.vm, self.vcpu, self.s, valid, dirty)?;
        }
        if self.s.apic.lapic.is_none() {
            let cr8 = page.get(exits::CR8);
            if cr8 > 15 {
                return Err(EINVAL);
            }
            self.s.apic.cr8 = cr8 as u8;
        }
        Ok(())
    }

    /// Does what is due before the guest runs, and sleeps while the vCPU is halted. `Some`: KVM_RUN ends instead.
    #[inline(always)]
    fn prepare(&mut self) -> Option<Step> {
        loop {
            if self.vcpu.shared.requests() != 0 {
                self.handle_requests();
                if self.ring_is_full() {
                    return Some(self.ask(&exits::DirtyRingFull));
                }
                if self.vcpu.shared.take_requests(request::ASYNC_PF) != 0 {
                    if let Some(step) = self.take_pages() {
                        return Some(step);
                    }
                }
                let missing = self.s.hv.as_mut().and_then(|hv| hv.take_missing());
                if let Some(step) = missing.and_then(|gpa| self.bring_in(gpa, true)) {
                    return Some(step);
                }
            }
            if core::mem::take(&mut self.s.events.triple_fault) {
                return Some(self.shutdown());
            }
            if self.vm.memory.is_reset_overdue() {
                return Some(self.unsaved(Gpa(0)));
            }
            if self.s.debug.is_due() {
                return Some(self.debug_exit(&Exception {
                    vector: events::vector::DB,
                    error_code: None,
                    payload: debug::SINGLE_STEP,
                }));
            }
            if self.s.smm.is_due() {
                if let Some(step) = self.take_smi() {
                    return Some(step);
                }
            }
            let state = self.s.mp_state;
            match state {
                MpState::Runnable => break,
                MpState::Halted if self.halt() => {
                    if !self.s.smm.is_due() {
                        break;
                    }
                }
                MpState::Halted if sched::signal_pending() => return Some(self.interrupted()),
                // Requests that wake nobody may come without end.
                MpState::Halted => sched::cond_resched(),
                MpState::AwaitsPage if self.has_event() => self.s.mp_state = MpState::Runnable,
                MpState::AwaitsPage if sched::signal_pending() => return Some(self.interrupted()),
                MpState::AwaitsPage => self.await_page(),
                MpState::Uninitialized | MpState::InitReceived => {
                    if self.wait_for_start().is_err() {
                        return Some(self.interrupted());
                    }
                }
            }
        }
        // Where the 8259s are in user space it may want to know that the guest can be interrupted.
        if !self.vm.chip.has_pic() && self.run.get(exits::REQUEST_INTERRUPT_WINDOW) != 0 {
            let gate = self.s.gate();
            if self.ready_for_injection(&gate) {
                return Some(self.ask(&exits::IrqWindowOpen));
            }
        }
        if self.memory().logs_writes() != self.s.write_log {
            if let Err(e) = self.follow_write_log() {
                return Some(Step::Fail(e));
            }
        }
        self.vcpu.follow_host_tsc(self.s);
        if self.s.pv.clock_stale {
            if let Some(step) = self
                .s
                .pv
                .clock_page()
                .and_then(|gpa| self.bring_in(gpa, true))
            {
                return Some(step);
            }
            if let Some(step) = hyperv::time::page(self.vm).and_then(|gpa| self.bring_in(gpa, true))
            {
                return Some(step);
            }
            clock_page::update(self.vm, self.s);
            hyperv::time::refresh(self.vm, self.s);
        }
        if self.s.pv.vapic_stale {
            let word = self.s.pv.vapic();
            if let Some(step) = word.and_then(|gpa| self.bring_in(gpa, true)) {
                return Some(step);
            }
            vapic::write(self.vm, self.s);
        }
        if self.s.pv.steal_wanted() {
            if let Some(step) = self.bring_in(self.s.pv.steal_page(), true) {
                return Some(step);
            }
            steal::update(self.vm, self.s);
        }
        None
    }

    /// Whether user space has to empty the dirty ring first. It is asked again as long as that is so.
    #[inline]
    fn ring_is_full(&self) -> bool {
        self.s.ring.as_deref().is_some_and(|r| self.is_full(r))
    }

    #[cold]
    fn is_full(&self, ring: &Ring) -> bool {
        let shared = &self.vcpu.shared;
        shared.take_requests(request::RING_FULL);
        let full = ring.is_full();
        if full {
            shared.request_self(request::RING_FULL);
        }
        full
    }

    /// One stay, and the exit that it left to be handled outside.
    #[inline(always)]
    fn enter(&mut self) -> Result<Step> {
        let exit = match self.stay()? {
            Stayed::Ended(step) => return Ok(step),
            Stayed::Slow(exit) => exit,
        };
        let start = boot_cpu::rdtsc();
        if self.s.pv.is_watched() {
            // The page was there at the entry.
            let _ = self.take_shared(None);
        }
        self.to_device = false;
        let step = self.handle(&exit, None);
        let now = boot_cpu::rdtsc();
        let class = if self.to_device {
            ExitClass::Mmio
        } else {
            exit.class()
        };
        self.stats.exit(class, now.wrapping_sub(start));
        if self.s.recorder.is_some() {
            self.record(now, class, &step, Path::Outside, Entry::default());
        }
        Ok(step)
    }

    /// Does what the kernel wants of the thread, and perhaps lets others run first. False if a signal waits.
    #[cold]
    fn give_way(&mut self) -> bool {
        self.tell_others(true);
        sched::xfer_to_guest_handle().is_ok()
    }

    /// The thread will wait for a CPU: the guest and its other vCPUs need not wait for this one.
    #[cold]
    fn tell_others(&mut self, may_sleep: bool) {
        steal::set_preempted(self.vm, self.s, may_sleep);
        self.vcpu.shared.set_ready();
        self.s.hw.set_spinning(false);
    }

    /// KVM_RUN ends for a signal.
    #[cold]
    fn interrupted(&mut self) -> Step {
        self.stats.add(VcpuCounter::SignalExits, 1);
        let _ = self.ask(&exits::Intr);
        Step::Fail(EINTR)
    }
}
