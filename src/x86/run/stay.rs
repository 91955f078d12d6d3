// SPDX-License-Identifier: GPL-2.0
//! A stay: the guest's state is loaded, interrupts are off, and exits that need neither sleep nor host interrupts are handled
//! (SDM 3C 27, 28; APM 2 15.5, 15.6).
//!
//! The outer loop calls [`Runner::stay`], with the vCPU's mutex held and interrupts on.

use super::{Runner, Stayed, Step};
use crate::abi::stats::{ExitClass, VcpuCounter};
use crate::linux::fpu::KernelFpu;
use crate::linux::irqflags::IrqGuard;
use crate::linux::{boot_cpu, cr, fpu, msr, preempt, sched};
use crate::x86::cpu::{index, xsave};
use crate::x86::exit::Exit;
use crate::x86::mitigate;
use crate::x86::pv::eoi;
use crate::x86::shared::request;
use crate::x86::vendor::{EntryParams, VcpuBackend};
use kernel::prelude::*;

impl Runner<'_> {
    /// Runs the guest until something needs the outer loop.
    pub(super) fn stay(&mut self) -> Result<Stayed> {
        // Interrupts first: what the FPU's owner has to keep out is then kept out already.
        let irq = IrqGuard::new();
        // SAFETY: `irq` is dropped after it.
        let fpu_guard = unsafe { KernelFpu::begin_irqs_off() };
        let host_pkru = if self.s.model.pku {
            // SAFETY: `pku` says that CR4.PKE is set.
            unsafe { fpu::rdpkru() }
        } else {
            0
        };
        // The image has been checked when it came from user space; a torn one is refused here.
        fpu_guard.restore(&self.s.xstate.area, self.s.model.host_xcr0 & !xsave::PKRU)?;
        let swap_xcr0 = self.s.model.has_xsave && self.s.xstate.xcr0 != self.s.model.host_xcr0;
        if swap_xcr0 {
            // SAFETY: A value that XSETBV accepts: checked against the host's when the guest or user space set it. Restored below, with
            // interrupts off throughout.
            unsafe { cr::xsetbv(0, self.s.xstate.xcr0) };
        }
        // XSAVES and XRSTORS cannot be intercepted everywhere, and would reach the host's supervisor state (shadow stacks, PASID).
        let swap_xss = self.s.model.host_xss != self.s.msrs.xss;
        if swap_xss {
            // SAFETY: The MSR exists if the host's value is not zero, and the guest's is a subset of what the CPU has (none, up to
            // now). The kernel does not use XSAVES with interrupts off in a stay.
            unsafe { msr::write(index::XSS, self.s.msrs.xss) };
        }
        if self.s.model.pku && self.s.xstate.pkru != host_pkru {
            // SAFETY: As above. In force for the stay only; accesses to user memory that it forbids fail and are done outside.
            unsafe { fpu::wrpkru(self.s.xstate.pkru) };
        }
        sched::guest_enter(&irq);
        let result = self.stay_inner(preempt::raw_cpu());
        if self.s.model.pku {
            // SAFETY: As above.
            self.s.xstate.pkru = unsafe { fpu::rdpkru() };
            if self.s.xstate.pkru != host_pkru {
                // SAFETY: As above; the value that the task had.
                unsafe { fpu::wrpkru(host_pkru) };
            }
        }
        if self.s.model.has_xsave && self.s.xstate.xcr0 != self.s.model.host_xcr0 {
            // SAFETY: The value in force before the stay.
            unsafe { cr::xsetbv(0, self.s.model.host_xcr0) };
        }
        if swap_xss || self.s.model.host_xss != self.s.msrs.xss {
            // SAFETY: The value in force before the stay.
            unsafe { msr::write(index::XSS, self.s.model.host_xss) };
        }
        fpu_guard.save(
            &mut self.s.xstate.area,
            self.s.model.host_xcr0 & !xsave::PKRU,
        );
        drop(fpu_guard);
        if matches!(result, Ok(Stayed::Ended(Step::Leave))) {
            // Each tick of the host comes by here, and so a guest that does not leave by itself keeps no grace period waiting.
            // SAFETY: `irq` keeps interrupts off, and whoever calls KVM_RUN reads nothing under RCU.
            unsafe { sched::guest_quiescent() };
        }
        self.s.hw.after_stay();
        drop(irq);
        sched::guest_exit();
        result
    }

    fn stay_inner(&mut self, cpu: u32) -> Result<Stayed> {
        let shared = &self.vcpu.shared;
        shared.enter_stay(cpu);
        if let Err(e) = self.s.hw.begin_stay(cpu) {
            shared.leave_stay();
            return Err(e);
        }
        mitigate::begin_stay(self.s.token, cpu);
        let exit = self.enter_loop(cpu);
        self.s.hw.end_stay();
        shared.leave_stay();
        Ok(exit)
    }

    /// The inner loop.
    #[inline(never)]
    fn enter_loop(&mut self, cpu: u32) -> Stayed {
        let shared = &self.vcpu.shared;
        let mut since: Option<(ExitClass, u64)> = None;
        // Every iteration but the first enters with the exit before it handled.
        loop {
            let r = shared.requests();
            if r != 0 {
                const QUICK: u32 = request::NOTIFIED
                    | request::POSTED
                    | request::NMI
                    | request::TIMER
                    | request::UNHALT;
                if r & !QUICK != 0 {
                    return Stayed::Ended(Step::Leave);
                }
                let taken = shared.take_requests(QUICK);
                self.take_interrupts(taken);
            }
            if sched::xfer_to_guest_pending() {
                return Stayed::Ended(Step::Leave);
            }
            if let Some(deadline) = self.s.timer.due.take() {
                self.await_deadline(deadline);
            }
            if self.s.debug.active() && !self.s.prepare_debug() {
                return Stayed::Ended(Step::Leave);
            }
            let generation = self.vm.memory.tlb_generation();
            let flush =
                generation != self.s.last_stay.tlb_generation || cpu != self.s.last_stay.cpu;
            let (inject, irq_window, nmi_window) = self.choose_event();
            let params = EntryParams {
                nested_root: self.vm.memory.root(),
                flush,
                irq_window,
                nmi_window,
                tpr: self.s.cr8(),
                tpr_threshold: self.s.cr8_threshold(),
                apic_status: self.s.take_apic_status(),
                inject,
                check: self.s.check_entry,
            };
            let now = boot_cpu::rdtsc();
            if let Some((class, start)) = since {
                self.stats.exit(class, now.wrapping_sub(start));
            }
            self.stats.add(VcpuCounter::Entries, 1);
            if flush {
                self.stats.add(VcpuCounter::TlbFlushes, 1);
                if cpu != self.s.last_stay.cpu {
                    self.stats.add(VcpuCounter::Migrations, 1);
                }
            }
            // Nothing that a repetition of this entry would have to do differently.
            let plain = inject.is_none()
                && !(irq_window | nmi_window | params.check)
                && !self.s.debug.active();
            let mut exit = self.s.hw.enter(&mut self.s.cpu, Some(&params));
            self.s.last_stay.tlb_generation = generation;
            self.s.last_stay.cpu = cpu;
            if matches!(exit, Exit::EntryFailure(_)) {
                self.refused = inject;
                // The flush that the entry was to bring has perhaps not happened either.
                self.s.last_stay.tlb_generation = 0;
            }
            loop {
                let start = boot_cpu::rdtsc();
                self.s.guest_ran();
                if self.s.hw.was_interrupted() || self.s.events.interrupted.is_some() {
                    self.note_interrupted(&exit);
                }
                let mut calm = plain;
                match self.s.hw.tpr() {
                    Some(tpr) if tpr != params.tpr => {
                        self.s.set_cr8(tpr);
                        calm = false;
                    }
                    _ => {}
                }
                if self.s.pv.eoi_offered() {
                    if !eoi::take(self.vm, self.s, true) {
                        return Stayed::Slow(exit);
                    }
                    calm = false;
                }
                let (class, step) = self.handle_frequent(&exit);
                let resume = match step {
                    Step::Again => Self::is_quiet(class),
                    Step::Resume => true,
                    _ => false,
                };
                match step {
                    // The frequent ways around: neither event nor interrupt controller nor host has anything new to say.
                    _ if resume && calm && self.undisturbed(generation) => {
                        self.stats
                            .exit(class, boot_cpu::rdtsc().wrapping_sub(start));
                        self.stats.add(VcpuCounter::Entries, 1);
                        exit = self.s.hw.enter(&mut self.s.cpu, None);
                        if matches!(exit, Exit::EntryFailure(_)) {
                            self.refused = None;
                            self.s.last_stay.tlb_generation = 0;
                        }
                    }
                    Step::Again | Step::Resume => {
                        since = Some((class, start));
                        break;
                    }
                    // Recorded when it has been handled.
                    Step::Slow => return Stayed::Slow(exit),
                    step => {
                        self.stats
                            .exit(class, boot_cpu::rdtsc().wrapping_sub(start));
                        return Stayed::Ended(step);
                    }
                }
            }
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
            && self.vm.memory.tlb_generation() == generation
            && self.s.events.exception.is_none()
            && self.s.events.interrupted.is_none()
    }
}
