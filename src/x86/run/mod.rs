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
use crate::linux::fpu::KernelFpu;
use crate::linux::irqflags::IrqGuard;
use crate::linux::mmap::Shared;
use crate::linux::{boot_cpu, cr, fpu, hrtimer, msr, preempt, sched};
use crate::x86::cpu::events::Inject;
use crate::x86::cpu::index;
use crate::x86::cpu::msr as msrs;
use crate::x86::cpu::regs::{rflags, Gpr, Seg};
use crate::x86::cpu::{events, xsave};
use crate::x86::exit::{EventKind, Exception, Exit};
use crate::x86::mitigate;
use crate::x86::pv::{clock_page, eoi, steal};
use crate::x86::shared::request;
use crate::x86::vcpu::fetch::Known;
use crate::x86::vcpu::mmio::PIO_PAGE;
use crate::x86::vcpu::state::{Completion, MpState, State, MAX_ADVANCE_NS};
use crate::x86::vcpu::{abi, debug};
use crate::x86::vcpu::{RunPages, Vcpu};
use crate::x86::vendor::{EntryParams, Groups, Interruptibility, VcpuBackend};
use crate::x86::vm::Vm;
use kernel::prelude::*;

mod access;
mod handle;
mod registers;

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

    /// Finishes what the last exit to user space left open.
    fn complete(&mut self) -> Step {
        match core::mem::replace(&mut self.s.pending.completion, Completion::Nothing) {
            Completion::Nothing => Step::Again,
            Completion::PortOut => self.skip(false, &Known::OUT),
            Completion::PortIn(width) => {
                let step = self.skip(false, &Known::IN);
                if matches!(step, Step::Again) {
                    let Ok(value) = self.run.read::<u32>(PIO_PAGE) else {
                        return Step::Fail(EFAULT);
                    };
                    self.set_accumulator(width, value);
                }
                step
            }
            Completion::Move(m) => match self.run.read::<u64>(off::UNION + 8) {
                Ok(data) => {
                    self.s.finish_move(&m, data);
                    Step::Again
                }
                Err(_) => Step::Fail(EFAULT),
            },
            Completion::Rdmsr => {
                if !matches!(self.run.read::<u8>(off::UNION), Ok(0)) {
                    return self.raise_gp();
                }
                let Ok(v) = self.run.read::<u64>(off::UNION + 16) else {
                    return Step::Fail(EFAULT);
                };
                let step = self.skip(false, &Known::RDMSR);
                if matches!(step, Step::Again) {
                    self.s.cpu.regs.set(Gpr::Rax, v & 0xffff_ffff);
                    self.s.cpu.regs.set(Gpr::Rdx, v >> 32);
                }
                step
            }
            Completion::Wrmsr => {
                if !matches!(self.run.read::<u8>(off::UNION), Ok(0)) {
                    return self.raise_gp();
                }
                self.skip(false, &Known::WRMSR)
            }
            Completion::Hypercall => {
                let Ok(v) = self.run.read::<u64>(off::HYPERCALL_RET) else {
                    return Step::Fail(EFAULT);
                };
                let step = self.skip(false, &Known::HYPERCALL);
                if matches!(step, Step::Again) {
                    self.s.cpu.regs.set(Gpr::Rax, v);
                }
                step
            }
            Completion::Emulate => {
                let mut data = [0u8; 8];
                if self.run.copy_out(off::UNION + 8, &mut data).is_err() {
                    return Step::Fail(EFAULT);
                }
                if !self.s.pending.replay.complete(&data) {
                    return Step::Again;
                }
                match self.s.pending.insn {
                    Some(insn) => self.emulate(&insn),
                    None => Step::Again,
                }
            }
        }
    }

    fn set_accumulator(&mut self, width: u8, value: u32) {
        let rax = &mut self.s.cpu.regs.gpr[Gpr::Rax as usize];
        *rax = match width {
            1 => *rax & !0xff | u64::from(value & 0xff),
            2 => *rax & !0xffff | u64::from(value & 0xffff),
            _ => u64::from(value),
        };
    }

    /// Blocks an AP until INIT and SIPI have come. EINTR.
    fn wait_for_start(&mut self) -> Result {
        let shared = &self.vcpu.shared;
        shared
            .wait
            .wait_interruptible(|| shared.requests() & (request::INIT | request::SIPI) != 0)?;
        let _ = self.handle_requests();
        Ok(())
    }

    /// HLT: sleeps until there is something to do. False if a signal or request has to be looked at first.
    fn halt(&mut self) -> bool {
        let shared = &self.vcpu.shared;
        if !self.wakes() {
            self.vcpu.timer.sleep(self.s);
            // A rise of the 8259s' INTR is a request as well.
            let woken = shared.wait.wait_interruptible(|| shared.requests() != 0);
            self.vcpu.timer.wake(self.s);
            if woken.is_err() {
                return false;
            }
            if !self.handle_requests() {
                return false;
            }
        }
        if self.wakes() {
            self.s.mp_state = MpState::Runnable;
            self.s.pv.unhalted = false;
            self.stats.add(VcpuCounter::HaltWakeups, 1);
            return true;
        }
        false
    }

    /// Whether something ends HLT.
    fn wakes(&mut self) -> bool {
        let gate = self.s.gate();
        self.s.events.nmis != 0 && !gate.nmi
            || self.s.events.exception.is_some()
            || self.s.pv.unhalted
            || gate.if_flag && self.s.interrupt_pending(self.vm)
    }

    /// Takes what others asked for. False when the vCPU was shut down.
    fn handle_requests(&mut self) -> bool {
        let shared = &self.vcpu.shared;
        let mut r = shared.take_requests(!0);
        if r == 0 {
            return true;
        }
        if r & (request::INIT | request::SIPI) != 0 {
            self.start_up(r);
            r &= !(request::INIT | request::SIPI);
        }
        self.take_interrupts(r);
        if r & request::MSR_FILTER != 0 {
            self.s.take_exits(self.vm);
        }
        if r & request::CLOCK != 0 {
            clock_page::update(self.vm, self.s);
        }
        true
    }

    /// Takes what others asked for outside KVM_RUN, so that the state user space reads is complete.
    pub(crate) fn settle(&mut self) {
        let _ = self.handle_requests();
    }

    /// Interrupt requests; also inside a stay.
    fn take_interrupts(&mut self, r: u32) {
        let shared = &self.vcpu.shared;
        if r & request::NOTIFIED != 0 {
            let irr = shared.take_direct();
            if let Some(l) = &mut self.s.apic.lapic {
                let _ = l.accept_bitmap(&irr, &[0; 8]);
            }
        }
        if r & request::POSTED != 0 {
            let (irr, level) = shared.take_posted();
            if let Some(l) = &mut self.s.apic.lapic {
                let _ = l.accept_bitmap(&irr, &level);
            }
            if self.s.apic.virtualized {
                self.s.refresh_eoi_exits(self.vm, &irr);
            }
        }
        if r & request::UNHALT != 0 {
            self.s.pv.unhalted = true;
        }
        if r & request::NMI != 0 {
            let n = shared
                .arch
                .nmi
                .swap(0, core::sync::atomic::Ordering::Relaxed);
            self.s.events.nmis = self.s.events.nmis.saturating_add(n.min(2) as u8).min(2);
        }
        if r & request::TIMER != 0 {
            let tsc = self.s.tsc();
            let advance = self.s.timer.advance.max(self.s.timer.exit_advance);
            if let Some(l) = &mut self.s.apic.lapic {
                let now = hrtimer::ktime_get_ns();
                let deadline = l.tsc_deadline();
                if deadline == 0 {
                    let _ = l.timer_expired(now, tsc);
                } else if deadline.wrapping_sub(tsc) <= advance {
                    // Early on purpose: the entry waits for the rest.
                    let _ = l.timer_expired(now, deadline);
                    self.s.timer.due = Some(deadline);
                } else if l.timer_expired(now, tsc) {
                    self.s.timer.due = Some(deadline);
                }
                self.vcpu.timer.arm(self.s);
            }
        }
    }

    /// Holds the entry until `deadline`, whose interrupt has been posted already, and learns how early the next timer has to be.
    /// Short: the timer was early by [`State::timer_advance`] at most.
    #[cold]
    #[inline(never)]
    fn await_deadline(&mut self, deadline: u64) {
        let s = &mut *self.s;
        let limit = MAX_ADVANCE_NS * u64::from(s.tsc.khz) / 1_000_000;
        let exited = core::mem::take(&mut s.timer.exited);
        let early = deadline.wrapping_sub(s.tsc()) as i64;
        let by = early.unsigned_abs();
        // Later than any advance could make up for: the host was busy, which says nothing about the way here.
        if by > limit {
            return;
        }
        let advance = if exited {
            &mut s.timer.exit_advance
        } else {
            &mut s.timer.advance
        };
        if early <= 0 {
            *advance = advance.saturating_add(by / 2).min(limit);
            return;
        }
        *advance = advance.saturating_sub(by / 8);
        while (deadline.wrapping_sub(s.tsc()) as i64) > 0 {
            core::hint::spin_loop();
        }
    }

    /// INIT and SIPI (SDM 3A 9.4).
    fn start_up(&mut self, r: u32) {
        let shared = &self.vcpu.shared;
        if r & request::INIT != 0 {
            self.s.reset_registers(true);
            let bsp = shared.id == self.vm.boot_cpu();
            if let Some(l) = &mut self.s.apic.lapic {
                let action = l.init(false);
                self.vcpu.apply(self.vm, self.s, action);
            }
            self.s.mp_state = if bsp {
                MpState::Runnable
            } else {
                MpState::InitReceived
            };
        }
        if r & request::SIPI != 0 && self.s.mp_state == MpState::InitReceived {
            let vector = shared.arch.sipi.load(core::sync::atomic::Ordering::Relaxed) as u8;
            self.s.load(Groups::CODE);
            let cs = self.s.cpu.sregs.seg_mut(Seg::Cs);
            cs.selector = u16::from(vector) << 8;
            cs.base = u64::from(vector) << 12;
            self.s.cpu.regs.rip = 0;
            self.s.dirty(Groups::CODE);
            self.s.mp_state = MpState::Runnable;
        }
    }

    /// Runs the guest until something needs the outer loop.
    fn stay(&mut self) -> Result<Stayed> {
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

    /// What the entry delivers, and the windows it asks for.
    fn choose_event(&mut self) -> (Option<crate::x86::exit::Event>, bool, bool) {
        let interrupt = self.s.has_interrupt(self.vm);
        // A window of no use to user space would open at every entry.
        let user_window = !self.vm.chip.has_pic()
            && self.s.accepts_external()
            && self
                .run
                .read::<u8>(off::REQUEST_INTERRUPT_WINDOW)
                .is_ok_and(|v| v != 0);
        let e = &self.s.events;
        if !interrupt
            && !user_window
            && e.nmis == 0
            && e.exception.is_none()
            && e.interrupted.is_none()
        {
            return (None, false, false);
        }
        let gate = self.s.gate();
        if gate.nmi {
            // Only one more is latched while NMIs are blocked (SDM 3A 7.7.1).
            self.s.events.nmis = self.s.events.nmis.min(1);
        }
        let held = self.s.debug.holds_interrupts(self.s.cpu.regs.rip);
        let p = events::Pending {
            interrupted: self.s.events.interrupted,
            exception: self.s.events.exception,
            nmis: if held { 0 } else { self.s.events.nmis },
            interrupt: interrupt && !held,
        };
        let d = events::decide(&gate, &p);
        let event = match d.inject {
            Inject::Nothing => None,
            Inject::Again(ev) => {
                self.s.events.interrupted = None;
                if ev.kind == EventKind::Nmi {
                    // Its own injection blocks NMIs again.
                    self.s.hw.set_interruptibility(Interruptibility {
                        nmi: false,
                        sti: gate.sti,
                        mov_ss: gate.mov_ss,
                    });
                }
                self.stats.add(VcpuCounter::Reinjections, 1);
                Some(ev)
            }
            Inject::Exception => {
                self.stats.add(VcpuCounter::ExceptionInjections, 1);
                let protected = self.s.protected();
                self.s.events.exception.take().map(|x| {
                    match x.vector {
                        events::vector::DB => self.s.deliver_debug(x.payload),
                        events::vector::BP => self.s.deliver_breakpoint(),
                        _ => {}
                    }
                    events::exception_event(x, protected)
                })
            }
            Inject::Nmi => {
                self.stats.add(VcpuCounter::NmiInjections, 1);
                self.s.events.nmis -= 1;
                Some(events::nmi_event())
            }
            Inject::Interrupt => {
                self.stats.add(VcpuCounter::IrqInjections, 1);
                let vector = self.s.acknowledge(self.vm);
                if let (true, Some(v)) = (self.s.pv.eoi_wanted(), vector) {
                    eoi::offer(self.vm, self.s, v);
                }
                vector.map(events::interrupt_event)
            }
        };
        let more = d.irq_window || user_window || !held && self.s.has_interrupt(self.vm);
        (event, more, d.nmi_window)
    }
}

/// RFLAGS bits that KVM_SET_REGS may set.
pub(crate) fn clean_rflags(v: u64) -> u64 {
    const DEFINED: u64 = 0x003f_7fd5;
    v & DEFINED | rflags::FIXED
}
