// SPDX-License-Identifier: GPL-2.0
//! A stay: the guest's state is loaded, interrupts are off, and exits that need neither sleep nor host interrupts are
//! handled (SDM 3C 27, 28; APM 2 15.5, 15.6).
//!
//! The outer loop calls [`Runner::stay`], with the vCPU's mutex held and interrupts on.

use super::{Runner, Stayed, Step};
use crate::abi::record::{Entry, Path};
use crate::abi::stats::{ExitClass, VcpuCounter};
use crate::linux::fpu::{Controls, KernelFpu};
use crate::linux::irqflags::ThisCpu;
use crate::linux::preempt::PreemptGuard;
use crate::linux::{boot_cpu, events, mce, preempt, sched, smp};
use crate::mem::mmu::InOwnMm;
use crate::x86::exit::Exit;
use crate::x86::mitigate;
use crate::x86::shared::request;
use crate::x86::vendor::{EntryParams, Stay, VcpuBackend};
use kernel::prelude::*;

impl Runner<'_> {
    /// Runs the guest until something needs the outer loop.
    pub(super) fn stay(&mut self) -> Result<Stayed> {
        if events::are_heard() != self.s.heard {
            self.follow_recorder();
        }
        // Interrupts first: what the FPU's owner has to keep out is then kept out already.
        let irq = self.s.hw.irqs_off();
        let own_mm = InOwnMm::new(self.vm.mm(), irq.token()).ok_or(EIO)?;
        let fpu = KernelFpu::begin_irqs_off(&irq);
        let host = &self.s.model.host;
        // The image has been checked when it came from user space; a torn one is refused here.
        fpu.restore(&self.s.xstate.area, host.xcr0())?;
        // XCR0 has been checked against the host's when the guest or user space set it. IA32_XSS matters although
        // guests have no component in it: XSAVES and XRSTORS cannot be intercepted everywhere, and would reach the
        // host's supervisor state (shadow stacks, PASID).
        let mut own = Controls {
            xcr0: self.s.xstate.xcr0,
            xss: 0,
            pkru: self.s.xstate.pkru,
        };
        let result = fpu.with_controls(host, &mut own, || {
            sched::guest_enter(&irq);
            self.stay_inner(irq.this_cpu(), own_mm)
        });
        self.s.xstate.pkru = own.pkru;
        fpu.save(&mut self.s.xstate.area, self.s.model.host.xcr0());
        drop(fpu);
        if matches!(result, Ok(Stayed::Ended(Step::Leave))) {
            // Each tick of the host comes by here, and so a guest that does not leave by itself keeps no grace period
            // waiting. Whoever calls KVM_RUN reads nothing under RCU.
            sched::guest_quiescent(&irq);
        }
        if let Ok(Stayed::Slow(Exit::HostMachineCheck | Exit::EntryMachineCheck(_))) = result {
            // An error in the guest's memory costs this thread no more than a signal.
            mce::from_user(&irq);
        }
        // With interrupts comes perhaps the one that gives the thread's turn to another, which is told of first. Not in
        // the middle of an instruction: see `set_preempted`.
        let turn = matches!(result, Ok(Stayed::Ended(Step::Leave))).then(PreemptGuard::new);
        self.s.hw.after_stay(irq);
        sched::guest_exit();
        if turn.is_some() && sched::xfer_to_guest_pending() {
            self.tell_others(false);
        }
        result
    }

    fn stay_inner<'irq>(
        &mut self,
        this_cpu: ThisCpu<'irq>,
        own_mm: InOwnMm<'irq>,
    ) -> Result<Stayed> {
        self.vcpu.shared.enter_stay(this_cpu);
        let result = Stay::hold(
            this_cpu,
            own_mm,
            self,
            |r| &mut r.s.hw,
            |r, stay| {
                if mitigate::begin_stay(&mut r.s.token, this_cpu) {
                    r.stats.add(VcpuCounter::BranchBarriers, 1);
                }
                let stayed = r.enter_loop(stay, this_cpu.number());
                // Before the vCPU counts as out of the guest: who has stopped it reads the log next.
                r.collect_write_log(stay);
                mitigate::end_stay(this_cpu.irqs_off());
                stayed
            },
        );
        self.vcpu.shared.leave_stay();
        result
    }

    /// The inner loop, on CPU `cpu`.
    #[inline(never)]
    fn enter_loop(&mut self, stay: &Stay<'_>, cpu: u32) -> Stayed {
        let mut since: Option<(ExitClass, u64)> = None;
        // Every iteration but the first enters with the exit before it handled.
        loop {
            if !self.may_enter() {
                return self.leave(since);
            }
            let generation = self.memory().tlb_generation();
            let flush =
                generation != self.s.last_stay.tlb_generation || cpu != self.s.last_stay.cpu;
            if flush && self.memory().logs_writes() != self.s.write_log {
                return self.leave(since);
            }
            let params = self.entry_params(flush);
            let now = boot_cpu::rdtsc();
            if let Some((class, start)) = since {
                self.stats.exit(class, now.wrapping_sub(start));
            }
            if self.s.recorder.is_some() {
                self.record_entry(now, cpu, since.map(|s| s.0), &params);
            }
            self.stats.add(VcpuCounter::Entries, 1);
            if flush {
                self.stats.add(VcpuCounter::TlbFlushes, 1);
                if cpu != self.s.last_stay.cpu {
                    self.stats.add(VcpuCounter::Migrations, 1);
                }
            }
            // Nothing that a repetition of this entry would have to do differently.
            let plain = params.inject.is_none()
                && !(params.irq_window | params.nmi_window | params.check)
                && !self.s.debug.active()
                && !self.s.tsc.catch_up;
            let exit = self.s.hw.enter(stay, &mut self.s.cpu, Some(&params));
            self.s.last_stay.tlb_generation = generation;
            self.s.last_stay.cpu = cpu;
            if matches!(exit, Exit::EntryFailure(_)) {
                self.refused = params.inject;
                // The flush that the entry was to bring has perhaps not happened either.
                self.s.last_stay.tlb_generation = 0;
            }
            match self.go_around(stay, exit, &params, plain, generation) {
                Ok(handled) => since = Some(handled),
                Err(end) => return end,
            }
        }
    }

    /// The stay ends before an entry; the last exit, and when it came, have still to be counted.
    #[cold]
    fn leave(&mut self, since: Option<(ExitClass, u64)>) -> Stayed {
        if let Some((class, start)) = since {
            let now = boot_cpu::rdtsc();
            self.stats.exit(class, now.wrapping_sub(start));
            self.record(now, class, &Step::Leave, Path::Stay, Entry::default());
        }
        Stayed::Ended(Step::Leave)
    }

    /// Handles `exit`, and those of the entries that repeat the last one. Gives the last exit's class and the time at
    /// which it happened, or how the stay ends.
    #[inline(always)]
    fn go_around(
        &mut self,
        stay: &Stay<'_>,
        mut exit: Exit,
        params: &EntryParams,
        plain: bool,
        generation: u64,
    ) -> Result<(ExitClass, u64), Stayed> {
        loop {
            let start = boot_cpu::rdtsc();
            self.s.guest_ran();
            if self.s.recorder.is_some() {
                self.record_exit(start, &exit);
            }
            if self.s.hw.was_interrupted() || self.s.events.interrupted.is_some() {
                self.note_interrupted(&exit);
            }
            let mut calm = plain;
            match self.s.guest_cr8() {
                Some(tpr) if tpr != params.tpr => {
                    self.s.set_cr8(tpr);
                    calm = false;
                }
                _ => {}
            }
            if self.s.pv.is_watched() {
                if !self.take_shared(Some(stay)) {
                    return Err(Stayed::Slow(exit));
                }
                calm = false;
            }
            let (class, step) = self.handle_frequent(&exit, stay);
            let resume = match step {
                Step::Again => Self::is_quiet(class),
                Step::Resume => true,
                _ => false,
            };
            if matches!(step, Step::Again | Step::Resume) && !Self::is_quiet(class) {
                mitigate::handled_exit(&self.s.token);
            }
            match step {
                // The frequent ways around: neither event nor interrupt controller nor host has anything new to say.
                _ if resume && calm && self.undisturbed(generation) => {
                    let now = boot_cpu::rdtsc();
                    self.stats.exit(class, now.wrapping_sub(start));
                    if self.s.recorder.is_some() {
                        self.record_repeated(now, class, matches!(step, Step::Resume));
                    }
                    self.stats.add(VcpuCounter::Entries, 1);
                    exit = self.s.hw.enter(stay, &mut self.s.cpu, None);
                    if matches!(exit, Exit::EntryFailure(_)) {
                        self.refused = None;
                        self.s.last_stay.tlb_generation = 0;
                    }
                }
                Step::Again | Step::Resume => return Ok((class, start)),
                // Whoever handles it records it.
                Step::Slow => return Err(Stayed::Slow(exit)),
                step => {
                    let now = boot_cpu::rdtsc();
                    self.stats.exit(class, now.wrapping_sub(start));
                    if self.s.recorder.is_some() {
                        self.record(now, class, &step, Path::Stay, Entry::default());
                    }
                    return Err(Stayed::Ended(step));
                }
            }
        }
    }

    /// Takes the requests that are quick to serve, and looks whether the guest can be entered. False: the stay has to
    /// end.
    #[inline(always)]
    fn may_enter(&mut self) -> bool {
        const IN_STAY: u32 = request::NOTIFIED
            | request::POSTED
            | request::NMI
            | request::TIMER
            | request::UNHALT
            | request::FLUSH;
        let shared = &self.vcpu.shared;
        let r = shared.requests();
        if r != 0 {
            if r & !IN_STAY != 0 {
                return false;
            }
            let taken = shared.take_requests(IN_STAY);
            self.take_interrupts(taken);
        }
        if sched::xfer_to_guest_pending() {
            return false;
        }
        if let Some(deadline) = self.s.timer.due.take() {
            self.await_deadline(deadline);
        }
        self.s.catch_up_tsc();
        !self.s.debug.active() || self.s.prepare_debug()
    }

    /// In a stay: the coming entry delivers what it has to deliver, and the stay ends.
    #[cold]
    pub(super) fn end_entry_at_once(&self) {
        smp::send_reschedule(preempt::raw_cpu());
    }

    /// What the next entry is told.
    #[inline(always)]
    fn entry_params(&mut self, flush: bool) -> EntryParams {
        let (inject, irq_window, nmi_window) = self.choose_event();
        if self.s.pv.vapic().is_some() {
            self.offer_vapic();
        }
        EntryParams {
            nested_root: self.memory().root(),
            flush,
            irq_window,
            nmi_window,
            tpr: self.s.cr8(),
            tpr_threshold: self.s.cr8_threshold(),
            apic_status: self.s.take_apic_status(),
            inject,
            check: self.s.check_entry,
        }
    }

    /// Takes the event whose delivery the last exit interrupted, in place of what the one before it left.
    #[cold]
    #[inline(never)]
    fn note_interrupted(&mut self, exit: &Exit) {
        if !matches!(exit, Exit::EntryFailure(_)) {
            self.s.events.interrupted = self.s.hw.take_interrupted();
        }
    }

    /// Exits whose handling changes general registers at most, or asks for more by a request or an exception.
    #[inline(always)]
    fn is_quiet(class: ExitClass) -> bool {
        matches!(
            class,
            ExitClass::Cpuid | ExitClass::Rdmsr | ExitClass::Hypercall | ExitClass::Io
        )
    }

    /// Since the last entry nothing has come up that the next one has to look at.
    #[inline(always)]
    fn undisturbed(&self, generation: u64) -> bool {
        self.vcpu.shared.requests() == 0
            && !sched::xfer_to_guest_pending()
            && self.memory().tlb_generation() == generation
            && self.s.events.exception.is_none()
            && self.s.events.interrupted.is_none()
    }
}
