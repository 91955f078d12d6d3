// SPDX-License-Identifier: GPL-2.0
//! KVM_RUN: enter the guest, handle what it exits for, until user space is needed (api.rst 4.10, 5).
//!
//! Two loops. The inner one, [`Runner::stay`], keeps interrupts off and the guest's FPU loaded, and goes around for everything that needs
//! neither sleep nor host interrupts. The outer one handles the rest with interrupts on.
//!
//! Handlers are the same for both: called with `atomic` they return [`Step::Slow`] before any side effect when they would have to
//! sleep, and are called again outside.

use crate::backend::{EntryParams, Groups, Interruptibility, VcpuBackend};
use crate::caps::{Direction, HC_MAP_GPA_RANGE};
use crate::cpu::control;
use crate::cpu::cpuid;
use crate::cpu::events::{self, Inject};
use crate::cpu::msr as msrs;
use crate::cpu::regs::{cr4, rflags, Gpr, Seg};
use crate::cpu::xsave;
use crate::cpu::{hypercall, paravirt};
use crate::debug;
use crate::emul::{Op, Operand, Pending};
use crate::emulate::{Accessed, Emulated, FetchError, Known, PIO_PAGE};
use crate::exit::{CrAccess, CrOp, EventKind, Exception, Exit, Io, NestedFault};
use crate::irq::lapic::{base, Action, Eoi};
use crate::irq::msg::Vector;
use crate::ledger::VcpuLedger;
use crate::linux::fpu::{self, KernelFpu};
use crate::linux::irqflags::IrqGuard;
use crate::linux::mmap::SharedPages;
use crate::linux::{boot_cpu, cr, hrtimer, msr, preempt, sched};
use crate::mem::memory::{FaultOutcome, MemError};
use crate::mitigate;
use crate::pr_warn_ratelimited;
use crate::state::{Completion, MpState, State, MAX_ADVANCE_NS};
use crate::stats::{ExitClass, VcpuCounter};
use crate::uapi::k;
use crate::vcpu::Vcpu;
use crate::vcpu_set::request;
use crate::vcpu_state;
use crate::vm::Vm;
use kernel::prelude::*;

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
    run: &'a SharedPages,
    stats: &'a VcpuLedger,
    /// Event of the entry that the processor refused.
    refused: Option<crate::exit::Event>,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(vm: &'a Vm, vcpu: &'a Vcpu, s: &'a mut State) -> Self {
        Self {
            vm,
            vcpu,
            s,
            run: &vcpu.run,
            stats: &vcpu.stats,
            refused: None,
        }
    }

    /// KVM_RUN. Not inlined: its stack frame is not for the other ioctls.
    #[inline(never)]
    pub(crate) fn run(&mut self) -> Result<isize> {
        let result = self.run_inner();
        self.stats.add(VcpuCounter::UserExits, 1);
        self.publish();
        if let Ok(valid @ 1..) = self.run.read::<u64>(off::VALID_REGS) {
            vcpu_state::sync_to(self.vm, self.vcpu, self.s, valid);
        }
        result
    }

    /// The fields of `kvm_run` that are valid after every return.
    fn publish(&mut self) {
        let cr8 = self.s.cr8();
        let apic_base = self
            .s
            .lapic
            .as_ref()
            .map_or(self.s.apic_base, |l| l.apic_base());
        let gate = self.s.gate();
        let ready = self.vm.chip.has_pic() || self.ready_for_injection(&gate);
        let _ = self.run.write(off::IF_FLAG, u8::from(gate.if_flag));
        let _ = self.run.write(off::FLAGS, 0u16);
        let _ = self.run.write(off::CR8, u64::from(cr8));
        let _ = self.run.write(off::APIC_BASE, apic_base);
        let _ = self.run.write(off::READY_FOR_INTERRUPT, u8::from(ready));
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
            vcpu_state::sync_from(self.vm, self.vcpu, self.s, valid, dirty)?;
        }
        if self.s.lapic.is_none() {
            let cr8 = self.run.read::<u64>(off::CR8)?;
            if cr8 > 15 {
                return Err(EINVAL);
            }
            self.s.cr8 = cr8 as u8;
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
            self.s.has_run = true;
            self.stats.add(VcpuCounter::Apicv, self.s.apicv.into());
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
            // Signals are among the work.
            if sched::xfer_to_guest_maybe_pending() && !self.give_way() {
                return self.interrupted();
            }
            if self.s.pv.clock_stale {
                paravirt::update_clock(self.vm, self.s);
            }
            if self.s.pv.steal_wanted() {
                paravirt::update_steal_time(self.vm, self.s);
            }
            let step = match self.stay()? {
                Stayed::Ended(step) => step,
                Stayed::Slow(exit) => {
                    let start = boot_cpu::rdtsc();
                    if self.s.pv.eoi_offered() {
                        let _ = paravirt::take_eoi(self.vm, self.s, false);
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
                        self.vm.clock.update(&self.vm.memory.vcpus);
                    }
                }
                Step::User => return Ok(0),
                Step::Fail(e) => return Err(e),
                // A handler outside the stay that still wants to sleep has met memory that cannot be had.
                Step::Slow => return Err(EFAULT),
            }
        }
    }

    /// Does what the kernel wants of the thread, and perhaps lets others run first. False if a signal waits.
    #[cold]
    fn give_way(&mut self) -> bool {
        paravirt::set_preempted(self.vm, self.s);
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
        match core::mem::replace(&mut self.s.completion, Completion::Nothing) {
            Completion::Nothing => Step::Again,
            Completion::PortOut => self.skip(false, &Known::OUT),
            Completion::PortIn(width) => {
                let step = self.skip(false, &Known::IN);
                if matches!(step, Step::Again) {
                    let mut b = [0u8; 4];
                    let n = usize::from(width).min(4);
                    if let Some(part) = b.get_mut(..n) {
                        if self.run.copy_out(PIO_PAGE, part).is_err() {
                            return Step::Fail(EFAULT);
                        }
                    }
                    self.set_accumulator(width, u32::from_le_bytes(b));
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
                if !self.s.replay.complete(&data) {
                    return Step::Again;
                }
                match self.s.insn {
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
            self.vcpu.sleep_timer(self.s);
            // A rise of the 8259s' INTR is a request as well.
            let woken = shared.wait.wait_interruptible(|| shared.requests() != 0);
            self.vcpu.wake_timer(self.s);
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
            paravirt::update_clock(self.vm, self.s);
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
            if let Some(l) = &mut self.s.lapic {
                let _ = l.accept_bitmap(&irr, &[0; 8]);
            }
        }
        if r & request::POSTED != 0 {
            let (irr, level) = shared.take_posted();
            if let Some(l) = &mut self.s.lapic {
                let _ = l.accept_bitmap(&irr, &level);
            }
            if self.s.apicv {
                self.s.refresh_eoi_exits(self.vm, &irr);
            }
        }
        if r & request::UNHALT != 0 {
            self.s.pv.unhalted = true;
        }
        if r & request::NMI != 0 {
            let n = shared.nmi.swap(0, core::sync::atomic::Ordering::Relaxed);
            self.s.events.nmis = self.s.events.nmis.saturating_add(n.min(2) as u8).min(2);
        }
        if r & request::TIMER != 0 {
            let tsc = self.s.tsc();
            let advance = self.s.timer_advance.max(self.s.exit_advance);
            if let Some(l) = &mut self.s.lapic {
                let now = hrtimer::ktime_get_ns();
                let deadline = l.tsc_deadline();
                if deadline == 0 {
                    let _ = l.timer_expired(now, tsc);
                } else if deadline.wrapping_sub(tsc) <= advance {
                    // Early on purpose: the entry waits for the rest.
                    let _ = l.timer_expired(now, deadline);
                    self.s.timer_due = Some(deadline);
                } else if l.timer_expired(now, tsc) {
                    self.s.timer_due = Some(deadline);
                }
                self.vcpu.arm_timer(self.s);
            }
        }
    }

    /// Holds the entry until `deadline`, whose interrupt has been posted already, and learns how early the next timer has to be.
    /// Short: the timer was early by [`State::timer_advance`] at most.
    #[cold]
    #[inline(never)]
    fn await_deadline(&mut self, deadline: u64) {
        let s = &mut *self.s;
        let limit = MAX_ADVANCE_NS * u64::from(s.tsc_khz) / 1_000_000;
        let exited = core::mem::take(&mut s.timer_exited);
        let early = deadline.wrapping_sub(s.tsc()) as i64;
        let by = early.unsigned_abs();
        // Later than any advance could make up for: the host was busy, which says nothing about the way here.
        if by > limit {
            return;
        }
        let advance = if exited {
            &mut s.exit_advance
        } else {
            &mut s.timer_advance
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
            if let Some(l) = &mut self.s.lapic {
                let action = l.init(false);
                self.vcpu.act(self.vm, self.s, &action);
            }
            self.s.mp_state = if bsp {
                MpState::Runnable
            } else {
                MpState::InitReceived
            };
        }
        if r & request::SIPI != 0 && self.s.mp_state == MpState::InitReceived {
            let vector = shared.sipi.load(core::sync::atomic::Ordering::Relaxed) as u8;
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
        fpu_guard.restore(&self.s.fpu, self.s.model.host_xcr0 & !xsave::PKRU)?;
        let swap_xcr0 = self.s.model.has_xsave && self.s.xcr0 != self.s.model.host_xcr0;
        if swap_xcr0 {
            // SAFETY: A value that XSETBV accepts: checked against the host's when the guest or user space set it. Restored below, with
            // interrupts off throughout.
            unsafe { cr::xsetbv(0, self.s.xcr0) };
        }
        // XSAVES and XRSTORS cannot be intercepted everywhere, and would reach the host's supervisor state (shadow stacks, PASID).
        let swap_xss = self.s.model.host_xss != self.s.msrs.xss;
        if swap_xss {
            // SAFETY: The MSR exists if the host's value is not zero, and the guest's is a subset of what the CPU has (none, up to
            // now). The kernel does not use XSAVES with interrupts off in a stay.
            unsafe { msr::write(msrs::index::XSS, self.s.msrs.xss) };
        }
        if self.s.model.pku && self.s.pkru != host_pkru {
            // SAFETY: As above. In force for the stay only; accesses to user memory that it forbids fail and are done outside.
            unsafe { fpu::wrpkru(self.s.pkru) };
        }
        let result = self.stay_inner(preempt::raw_cpu());
        if self.s.model.pku {
            // SAFETY: As above.
            self.s.pkru = unsafe { fpu::rdpkru() };
            if self.s.pkru != host_pkru {
                // SAFETY: As above; the value that the task had.
                unsafe { fpu::wrpkru(host_pkru) };
            }
        }
        if self.s.model.has_xsave && self.s.xcr0 != self.s.model.host_xcr0 {
            // SAFETY: The value in force before the stay.
            unsafe { cr::xsetbv(0, self.s.model.host_xcr0) };
        }
        if swap_xss || self.s.model.host_xss != self.s.msrs.xss {
            // SAFETY: The value in force before the stay.
            unsafe { msr::write(msrs::index::XSS, self.s.model.host_xss) };
        }
        fpu_guard.save(&mut self.s.fpu, self.s.model.host_xcr0 & !xsave::PKRU);
        drop(fpu_guard);
        self.s.hw.after_stay();
        drop(irq);
        result
    }

    fn stay_inner(&mut self, cpu: u32) -> Result<Stayed> {
        let shared = &self.vcpu.shared;
        shared.enter_stay(cpu);
        if let Err(e) = self.s.hw.begin_stay() {
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
            if sched::xfer_to_guest_maybe_pending() {
                return Stayed::Ended(Step::Leave);
            }
            if let Some(deadline) = self.s.timer_due.take() {
                self.await_deadline(deadline);
            }
            if self.s.debug.active() && !self.s.prepare_debug() {
                return Stayed::Ended(Step::Leave);
            }
            let generation = self.vm.memory.tlb_generation();
            let flush = generation != self.s.tlb_seen || cpu != self.s.last_cpu;
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
                if cpu != self.s.last_cpu {
                    self.stats.add(VcpuCounter::Migrations, 1);
                }
            }
            // Nothing that a repetition of this entry would have to do differently.
            let plain = inject.is_none()
                && !(irq_window | nmi_window | params.check)
                && !self.s.debug.active();
            let mut exit = self.s.hw.enter(&mut self.s.cpu, Some(&params));
            self.s.tlb_seen = generation;
            self.s.last_cpu = cpu;
            if matches!(exit, Exit::EntryFailure(_)) {
                self.refused = inject;
                // The flush that the entry was to bring has perhaps not happened either.
                self.s.tlb_seen = 0;
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
                    if !paravirt::take_eoi(self.vm, self.s, true) {
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
                            self.s.tlb_seen = 0;
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
            && !sched::xfer_to_guest_maybe_pending()
            && self.vm.memory.tlb_generation() == generation
            && self.s.events.exception.is_none()
            && self.s.events.interrupted.is_none()
    }

    /// What the entry delivers, and the windows it asks for.
    fn choose_event(&mut self) -> (Option<crate::exit::Event>, bool, bool) {
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
                    paravirt::offer_eoi(self.vm, self.s, v);
                }
                vector.map(events::interrupt_event)
            }
        };
        let more = d.irq_window || user_window || !held && self.s.has_interrupt(self.vm);
        (event, more, d.nmi_window)
    }

    /// Handles an exit inside the stay, the frequent ones without searching all kinds twice.
    #[inline(always)]
    fn handle_frequent(&mut self, exit: &Exit) -> (ExitClass, Step) {
        match exit {
            Exit::HostInterrupt => (ExitClass::ExternalInterrupt, Step::Leave),
            Exit::Cpuid => (ExitClass::Cpuid, self.cpuid(true)),
            Exit::Rdmsr => (ExitClass::Rdmsr, self.rdmsr(true)),
            Exit::Wrmsr => (ExitClass::Wrmsr, self.wrmsr(true)),
            Exit::Hypercall => (ExitClass::Hypercall, self.hypercall(true)),
            Exit::Hlt => (ExitClass::Hlt, self.hlt(true)),
            Exit::Io(io) if !io.string => (ExitClass::Io, self.io(io, true)),
            Exit::NestedFault(f) => {
                let step = self.short_fault(f).unwrap_or(Step::Slow);
                (ExitClass::NestedFault, step)
            }
            other => (ExitClass::of(other), self.handle(other, true)),
        }
    }

    /// Handles an exit.
    #[inline(never)]
    fn handle(&mut self, exit: &Exit, atomic: bool) -> Step {
        match exit {
            Exit::HostInterrupt => Step::Leave,
            Exit::PreemptionTimer => {
                self.s.timer_exited = true;
                self.take_interrupts(request::TIMER);
                Step::Again
            }
            Exit::HostNmi | Exit::HostMachineCheck => Step::Again,
            Exit::IrqWindow if self.vm.chip.has_pic() => Step::Again,
            // User space may have asked for it.
            Exit::IrqWindow => Step::Leave,
            Exit::NmiWindow => Step::Again,
            Exit::Cpuid => self.cpuid(atomic),
            Exit::Rdmsr => self.rdmsr(atomic),
            Exit::Wrmsr => self.wrmsr(atomic),
            Exit::Hypercall => self.hypercall(atomic),
            Exit::Hlt => self.hlt(atomic),
            // Caches are coherent and the guest has no device that is not: nothing to write back.
            Exit::CacheInvalidate => self.skip(atomic, &Known::INVALIDATE),
            // A loop that waits, perhaps for a vCPU whose turn it is not.
            Exit::Pause if atomic => Step::Slow,
            Exit::Pause => {
                let step = self.skip(false, &Known::PAUSE);
                self.vm.memory.vcpus.yield_from(&self.vcpu.shared);
                step
            }
            Exit::MonitorMwait if self.mwait_is_nop() => self.skip(atomic, &Known::MWAIT),
            // VMX and SVM instructions do not exist for the guest.
            Exit::MonitorMwait | Exit::Undefined => {
                self.raise(events::exception(events::vector::UD, None))
            }
            Exit::Rdpmc => self.raise_gp(),
            Exit::Xsetbv => self.xsetbv(atomic),
            Exit::Io(io) => self.io(io, atomic),
            Exit::NestedFault(f) => {
                if atomic {
                    self.short_fault(f).unwrap_or(Step::Slow)
                } else {
                    self.nested_fault(f)
                }
            }
            Exit::CrAccess(c) => self.cr_access(c, atomic),
            Exit::DrAccess => self.dr_access(atomic),
            Exit::Exception(e) => self.exception(e),
            Exit::TripleFault => {
                let _ = self.triple_fault();
                Step::User
            }
            Exit::TaskSwitch => self.unhandled(atomic, k::KVM_INTERNAL_ERROR_EMULATION),
            Exit::VirtualEoi(vector) => {
                let action = match &mut self.s.lapic {
                    Some(l) => l.ended(Vector(*vector)),
                    None => Action::NONE,
                };
                self.act(&action)
            }
            Exit::ApicWrite(offset) => {
                let action = match &mut self.s.lapic {
                    Some(l) => l.write_stored((*offset).into(), hrtimer::ktime_get_ns()),
                    None => Action::NONE,
                };
                self.act(&action)
            }
            // Not switched on by any vendor code: virtual interrupts need no threshold.
            Exit::TprBelowThreshold => {
                self.unhandled(atomic, k::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON)
            }
            Exit::EntryFailure(reason) => {
                if atomic {
                    Step::Slow
                } else {
                    self.entry_failure(*reason)
                }
            }
            Exit::Unknown(reason) => {
                self.set_exit(k::KVM_EXIT_UNKNOWN);
                let _ = self.run.write(off::UNION, *reason);
                if atomic {
                    Step::Slow
                } else {
                    pr_warn_ratelimited!(
                        "vCPU {}: unknown exit reason {:#x}\n",
                        self.vcpu.shared.id,
                        *reason
                    );
                    Step::User
                }
            }
        }
    }

    /// Steps over the current instruction, which is one of those that `known` describes.
    #[inline(always)]
    fn skip(&mut self, atomic: bool, known: &Known) -> Step {
        if let Some(n) = self.s.hw.insn_len() {
            self.s.advance(n);
            return Step::Again;
        }
        self.skip_decoded(atomic, known)
    }

    #[inline(never)]
    fn skip_decoded(&mut self, atomic: bool, known: &Known) -> Step {
        let view = self.vm.memory.view();
        match self.s.skip(&view, atomic, known) {
            Ok(()) => Step::Again,
            Err(e) => {
                drop(view);
                self.fetch_failed(e)
            }
        }
    }

    fn fetch_failed(&mut self, e: FetchError) -> Step {
        match e {
            FetchError::Sleep => Step::Slow,
            FetchError::Reenter => Step::Again,
            FetchError::Unsupported(bytes, n) => self.emulation_failed(&bytes, n),
        }
    }

    fn raise(&mut self, e: Exception) -> Step {
        if self.s.raise(e) {
            Step::Again
        } else {
            let _ = self.triple_fault();
            Step::User
        }
    }

    fn raise_gp(&mut self) -> Step {
        self.raise(events::exception(events::vector::GP, Some(0)))
    }

    /// KVM_EXIT_SHUTDOWN.
    fn triple_fault(&mut self) -> Result<isize> {
        self.set_exit(k::KVM_EXIT_SHUTDOWN);
        Ok(0)
    }

    /// MONITOR and MWAIT do nothing, which is always a correct way to wait; they fault only when user space wants that
    /// (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS).
    fn mwait_is_nop(&self) -> bool {
        let caps = &self.vm.caps;
        caps.quirk(k::KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS)
            || if caps.quirk(k::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT) {
                self.s.cpuid_leaf1_ecx() & 1 << 3 != 0
            } else {
                self.s.msrs.mwait()
            }
    }

    fn cpuid(&mut self, atomic: bool) -> Step {
        if self.s.msrs.cpuid_faults() && self.s.cpl() != 0 {
            return self.raise_gp();
        }
        let step = self.skip(atomic, &Known::CPUID);
        if !matches!(step, Step::Again) {
            return step;
        }
        let s = &mut *self.s;
        let leaf = s.cpu.regs.get(Gpr::Rax) as u32;
        let sub = s.cpu.regs.get(Gpr::Rcx) as u32;
        let [eax, ebx, ecx, edx] = cpuid::lookup(&s.cpuid, &s.cpuid_index, leaf, sub, &s.dynamic);
        s.cpu.regs.set(Gpr::Rax, eax.into());
        s.cpu.regs.set(Gpr::Rbx, ebx.into());
        s.cpu.regs.set(Gpr::Rcx, ecx.into());
        s.cpu.regs.set(Gpr::Rdx, edx.into());
        Step::Again
    }

    /// User space wants a say in this access.
    #[inline]
    fn filtered(&self, index: u32, direction: Direction) -> bool {
        self.s
            .msr_filter
            .as_ref()
            .is_some_and(|f| !f.allows(index, direction))
    }

    /// A guest's access to an MSR that fails, for `reason` (KVM_MSR_EXIT_REASON_*): #GP, or user space's decision
    /// (KVM_CAP_X86_USER_SPACE_MSR).
    #[cold]
    fn refuse_msr(&mut self, direction: Direction, index: u32, data: u64, reason: u32) -> Step {
        if !self.vm.caps.user_space_msr(reason) {
            return self.raise_gp();
        }
        let (exit, completion) = match direction {
            Direction::Read => (k::KVM_EXIT_X86_RDMSR, Completion::Rdmsr),
            Direction::Write => (k::KVM_EXIT_X86_WRMSR, Completion::Wrmsr),
        };
        // error and padding, reason, index, data.
        let _ = self.run.write(off::UNION, 0u64);
        let _ = self.run.write(off::UNION + 8, reason);
        let _ = self.run.write(off::UNION + 12, index);
        let _ = self.run.write(off::UNION + 16, data);
        self.set_exit(exit);
        self.s.completion = completion;
        Step::User
    }

    fn rdmsr(&mut self, atomic: bool) -> Step {
        let index = self.s.cpu.regs.get(Gpr::Rcx) as u32;
        if self.filtered(index, Direction::Read) {
            return self.refuse_msr(Direction::Read, index, 0, k::KVM_MSR_EXIT_REASON_FILTER);
        }
        let value = if index != msrs::index::PLATFORM_INFO || self.vm.caps.platform_info_readable()
        {
            self.s.read_msr(self.vm, index, false)
        } else {
            None
        };
        let Some(v) = value else {
            let reason = self.s.msr_failure(index);
            return self.refuse_msr(Direction::Read, index, 0, reason);
        };
        let step = self.skip(atomic, &Known::RDMSR);
        if matches!(step, Step::Again) {
            self.s.cpu.regs.set(Gpr::Rax, v & 0xffff_ffff);
            self.s.cpu.regs.set(Gpr::Rdx, v >> 32);
        }
        step
    }

    fn wrmsr(&mut self, atomic: bool) -> Step {
        let regs = &self.s.cpu.regs;
        let index = regs.get(Gpr::Rcx) as u32;
        let value = regs.get(Gpr::Rdx) << 32 | regs.get(Gpr::Rax) & 0xffff_ffff;
        if self.filtered(index, Direction::Write) {
            let reason = k::KVM_MSR_EXIT_REASON_FILTER;
            return self.refuse_msr(Direction::Write, index, value, reason);
        }
        if atomic && paravirt::may_sleep(index) {
            return Step::Slow;
        }
        // Moving the local APIC may change the nested page tables.
        if atomic && self.s.apicv && index == msrs::index::APIC_BASE {
            return Step::Slow;
        }
        // Fetch first: the write may change what the address translates to.
        let before = (
            self.s.cpu.regs.rip,
            self.s.cpu.regs.rflags,
            self.s.events.exception,
        );
        let step = self.skip(atomic, &Known::WRMSR);
        if !matches!(step, Step::Again) {
            return step;
        }
        match self.s.write_msr(self.vm, index, value, false) {
            Some(action) => self.act(&action),
            None => {
                self.s.cpu.regs.rip = before.0;
                self.s.cpu.regs.rflags = before.1;
                self.s.events.exception = before.2;
                self.s.debug.reported();
                let reason = self.s.msr_failure(index);
                self.refuse_msr(Direction::Write, index, value, reason)
            }
        }
    }

    /// Carries out what the local APIC asks for.
    fn act(&mut self, action: &Action) -> Step {
        if action.is_none() {
            return Step::Again;
        }
        self.vcpu.act(self.vm, self.s, action);
        match action.eoi {
            Some(eoi) => self.eoi(&eoi),
            None => Step::Again,
        }
    }

    /// Passes an EOI on to the IOAPIC, in the kernel or in user space (KVM_EXIT_IOAPIC_EOI).
    fn eoi(&mut self, eoi: &Eoi) -> Step {
        if !eoi.level {
            self.vm.chip.edge_eoi(eoi.vector.0);
        }
        if eoi.broadcast && self.vm.chip.eoi(eoi.vector.0) {
            self.set_exit(k::KVM_EXIT_IOAPIC_EOI);
            let _ = self.run.write(off::UNION, eoi.vector.0);
            return Step::User;
        }
        Step::Again
    }

    /// VMCALL, VMMCALL.
    fn hypercall(&mut self, atomic: bool) -> Step {
        let number = self.s.cpu.regs.get(Gpr::Rax);
        if atomic && hypercall::may_sleep(number) {
            return Step::Slow;
        }
        if self.vm.caps.hypercall_exits(number & 0xffff_ffff) && self.s.cpl() == 0 {
            if atomic {
                return Step::Slow;
            }
            if let Some(step) = self.map_gpa_range() {
                return step;
            }
        }
        let step = self.skip(atomic, &Known::HYPERCALL);
        if matches!(step, Step::Again) {
            let result = if self.s.cpl() == 0 {
                hypercall::call(self.vm, &self.vcpu.shared, self.s, number)
            } else {
                hypercall::error::PERM
            };
            self.s.cpu.regs.set(Gpr::Rax, result as u64);
        }
        step
    }

    /// KVM_HC_MAP_GPA_RANGE, which user space answers (KVM_CAP_EXIT_HYPERCALL). `None`: the arguments are wrong.
    #[cold]
    fn map_gpa_range(&mut self) -> Option<Step> {
        self.s.load(Groups::CTRL.union(Groups::CODE));
        let long = self.s.cpu.sregs.mode(self.s.cpu.regs.rflags) == crate::cpu::regs::Mode::Long;
        let regs = &self.s.cpu.regs;
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        let [nr, gpa, pages, attributes] =
            [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|g| regs.get(g) & mask);
        if nr != HC_MAP_GPA_RANGE {
            return None;
        }
        if gpa & 0xfff != 0 || pages == 0 || (gpa >> 12).checked_add(pages).is_none() {
            const KVM_EINVAL: i64 = 22;
            let step = self.skip(false, &Known::HYPERCALL);
            if matches!(step, Step::Again) {
                self.s
                    .cpu
                    .regs
                    .set(Gpr::Rax, KVM_EINVAL.wrapping_neg() as u64 & mask);
            }
            return Some(step);
        }
        let _ = self.run.write(off::UNION, nr);
        for (i, v) in [gpa, pages, attributes, 0, 0, 0].into_iter().enumerate() {
            let _ = self.run.write(off::UNION + 8 + 8 * i, v);
        }
        let _ = self.run.write(off::HYPERCALL_RET, 0u64);
        // KVM_EXIT_HYPERCALL_LONG_MODE.
        let _ = self.run.write(off::HYPERCALL_RET + 8, u64::from(long));
        self.set_exit(k::KVM_EXIT_HYPERCALL);
        self.s.completion = Completion::Hypercall;
        Some(Step::User)
    }

    fn hlt(&mut self, atomic: bool) -> Step {
        let step = self.skip(atomic, &Known::HLT);
        if !matches!(step, Step::Again) {
            return step;
        }
        if self.s.lapic.is_some() {
            if !self.wakes() {
                self.s.mp_state = MpState::Halted;
                return Step::Leave;
            }
            self.s.pv.unhalted = false;
            return Step::Again;
        }
        self.s.debug.reported();
        self.set_exit(k::KVM_EXIT_HLT);
        Step::User
    }

    fn xsetbv(&mut self, atomic: bool) -> Step {
        let regs = &self.s.cpu.regs;
        let index = regs.get(Gpr::Rcx) as u32;
        let value = regs.get(Gpr::Rdx) << 32 | regs.get(Gpr::Rax) & 0xffff_ffff;
        if !self.s.osxsave() {
            return self.raise(events::exception(events::vector::UD, None));
        }
        if self.s.cpl() != 0 || index != 0 || !xsave::xcr0_valid(value, self.s.allowed_xcr0()) {
            return self.raise_gp();
        }
        let step = self.skip(atomic, &Known::XSETBV);
        if matches!(step, Step::Again) {
            self.s.xcr0 = value;
            self.s.refresh_dynamic();
            if atomic {
                // SAFETY: In a stay, whose end restores the host's value; checked above.
                unsafe { cr::xsetbv(0, value) };
            }
        }
        step
    }

    fn io(&mut self, io: &Io, atomic: bool) -> Step {
        if io.string {
            if atomic {
                return Step::Slow;
            }
            self.s.io_port = Some((io.port, io.width));
            return self.decode_and_emulate(|op| matches!(op, Op::Ins | Op::Outs));
        }
        if io.input {
            if let Some(value) = self.vm.chip.pio_read(io.port, io.width) {
                let step = self.skip(atomic, &Known::IN);
                if matches!(step, Step::Again) {
                    self.set_accumulator(io.width, value);
                }
                return step;
            }
        } else {
            let value = self.s.cpu.regs.get(Gpr::Rax) as u32
                & (u32::MAX >> (32 - 8 * u32::from(io.width.clamp(1, 4))));
            // RIP moves only after the write, but the fetch that may have to sleep comes first.
            let claimed = self.vm.chip.claims_port(io.port, io.width);
            if claimed {
                let step = self.skip(atomic, &Known::OUT);
                if matches!(step, Step::Again) {
                    let _ = self.vm.chip.pio_write(io.port, io.width, value);
                }
                return step;
            }
            if self.vm.chip.pio_event(io.port, io.width, value) {
                return self.skip(atomic, &Known::OUT);
            }
            // In one piece: user space looks at the first `width` bytes only, and the rest is zero.
            let _ = self.run.write(PIO_PAGE, value);
        }
        if !io.input && io.port == 0x7e && self.vm.caps.quirk(k::KVM_X86_QUIRK_OUT_7E_INC_RIP) {
            // The BIOS's port: the instruction is over before user space sees it.
            let step = self.skip(atomic, &Known::OUT);
            if !matches!(step, Step::Again) {
                return step;
            }
            self.set_exit(k::KVM_EXIT_IO);
            self.fill_io(false, io.width, io.port, 1);
            return Step::User;
        }
        self.set_exit(k::KVM_EXIT_IO);
        self.fill_io(io.input, io.width, io.port, 1);
        self.s.completion = if io.input {
            Completion::PortIn(io.width)
        } else {
            Completion::PortOut
        };
        Step::User
    }

    fn fill_io(&self, input: bool, width: u8, port: u16, count: u32) {
        let direction = if input {
            k::KVM_EXIT_IO_IN
        } else {
            k::KVM_EXIT_IO_OUT
        } as u8;
        let _ = self.run.write(off::UNION, direction);
        let _ = self.run.write(off::UNION + 1, width);
        let _ = self.run.write(off::UNION + 2, port);
        let _ = self.run.write(off::UNION + 4, count);
        let _ = self.run.write(off::UNION + 8, PIO_PAGE as u64);
    }

    /// The short ways of a nested fault, in a stay: resident memory, and a device access by a plain move. `None` where they do not
    /// go.
    #[inline]
    fn short_fault(&mut self, f: &NestedFault) -> Option<Step> {
        if f.gpa.page().0 == base::DEFAULT_ADDRESS && self.s.wants_apic_page(self.vm) {
            return None;
        }
        let accessed = {
            let view = self.vm.memory.view();
            if !view.is_device(f.gpa, f.write) {
                // SAFETY: In a stay interrupts are off; KVM_RUN is refused outside the VM's mm.
                let mapped = unsafe { self.vm.memory.fault_resident(&view, f.gpa, f.fetch) };
                return mapped.then_some(Step::Resume);
            }
            if self.s.events.interrupted.is_some() {
                drop(view);
                return Some(self.vectoring_failed(f));
            }
            self.s.access_device(self.vm, &view, f)
        };
        match accessed {
            Accessed::Other => None,
            Accessed::Done(action) => {
                self.stats.exit(ExitClass::Mmio, 0);
                Some(self.act(&action))
            }
            // Whom that woke asks by a request.
            Accessed::Signalled => {
                self.stats.exit(ExitClass::Mmio, 0);
                Some(Step::Resume)
            }
            Accessed::User(d) => {
                self.stats.exit(ExitClass::Mmio, 0);
                let _ = self.run.write(off::UNION, f.gpa.0);
                let _ = self.run.write(off::UNION + 8, d.value);
                let _ = self
                    .run
                    .write(off::UNION + 16, u32::from(d.completion.size()));
                let _ = self
                    .run
                    .write(off::UNION + 20, u8::from(d.completion.is_store()));
                self.set_exit(k::KVM_EXIT_MMIO);
                self.s.completion = Completion::Move(d.completion);
                Some(Step::User)
            }
        }
    }

    /// The IDT, a descriptor or the stack of an event's delivery is in device memory: no instruction stands for the access.
    #[cold]
    fn vectoring_failed(&mut self, f: &NestedFault) -> Step {
        self.set_exit(k::KVM_EXIT_INTERNAL_ERROR);
        let _ = self
            .run
            .write(off::UNION, k::KVM_INTERNAL_ERROR_DELIVERY_EV);
        let _ = self.run.write(off::UNION + 4, 5u32);
        // KVM's order: second and first piece of information about the exit with its reason between them, address, CPU.
        for (i, v) in [0, 0, 0, f.gpa.0, u64::from(self.s.last_cpu)]
            .into_iter()
            .enumerate()
        {
            let _ = self.run.write(off::UNION + 8 + 8 * i, v);
        }
        Step::User
    }

    fn nested_fault(&mut self, f: &NestedFault) -> Step {
        if f.gpa.page().0 == base::DEFAULT_ADDRESS && self.s.wants_apic_page(self.vm) {
            if let Err(e) = self.vm.memory.map_apic_page() {
                return Step::Fail(e);
            }
            return Step::Again;
        }
        match self.vm.memory.fault(self.vm.mm(), f.gpa, f.write, f.fetch) {
            Ok(FaultOutcome::Resume) => Step::Again,
            Ok(FaultOutcome::BadUserMemory) => {
                self.set_exit(k::KVM_EXIT_MEMORY_FAULT);
                // Flags, address, size.
                let _ = self.run.write(off::UNION, 0u64);
                let _ = self.run.write(off::UNION + 8, f.gpa.page().0);
                let _ = self.run.write(off::UNION + 16, 4096u64);
                Step::Fail(EFAULT)
            }
            // A page table in MMIO space has no meaning; KVM fails likewise.
            Ok(FaultOutcome::Mmio) if f.walk && f.write => {
                self.unhandled(false, k::KVM_INTERNAL_ERROR_EMULATION)
            }
            Ok(FaultOutcome::Mmio) if self.s.events.interrupted.is_some() => {
                self.vectoring_failed(f)
            }
            Ok(FaultOutcome::Mmio) => {
                self.stats.exit(ExitClass::Mmio, 0);
                self.s.io_port = None;
                self.decode_and_emulate(|op| !matches!(op, Op::Ins | Op::Outs))
            }
            Err(e) => Step::Fail(e),
        }
    }

    fn decode_and_emulate(&mut self, expected: impl Fn(Op) -> bool) -> Step {
        let fetched = {
            let view = self.vm.memory.view();
            self.s.fetch(&view, false).copied()
        };
        match fetched {
            Ok(insn) if expected(insn.op) => {
                self.s.replay.clear();
                self.emulate(&insn)
            }
            // Another instruction than the one that exited: it was changed meanwhile, or it is not one of ours.
            Ok(insn) => self.not_emulated(&insn),
            Err(e) => self.fetch_failed(e),
        }
    }

    fn emulate(&mut self, insn: &crate::emul::Insn) -> Step {
        self.stats.add(VcpuCounter::Emulations, 1);
        let (result, actions) = {
            let view = self.vm.memory.view();
            self.s.emulate(self.vm, &view, self.run, insn)
        };
        let mut step = Step::Again;
        for a in &actions {
            if let Step::User = self.act(a) {
                step = Step::User;
            }
        }
        match result {
            Emulated::Done => step,
            Emulated::TripleFault => {
                let _ = self.triple_fault();
                Step::User
            }
            Emulated::Unsupported => self.not_emulated(insn),
            Emulated::User => {
                self.s.insn = Some(*insn);
                self.s.completion = Completion::Emulate;
                match self.s.replay.pending() {
                    Some(Pending::Memory(f)) => {
                        let _ = self.run.write(off::UNION, f.gpa);
                        let _ = self.run.copy_in(off::UNION + 8, &f.data);
                        let _ = self.run.write(off::UNION + 16, u32::from(f.len));
                        let _ = self.run.write(
                            off::UNION + 20,
                            u8::from(f.kind == crate::emul::Kind::Write),
                        );
                        self.set_exit(k::KVM_EXIT_MMIO);
                    }
                    Some(Pending::PortIn(r)) => {
                        self.set_exit(k::KVM_EXIT_IO);
                        self.fill_io(true, r.width, r.port, r.count);
                    }
                    Some(Pending::PortOut(r)) => {
                        self.set_exit(k::KVM_EXIT_IO);
                        self.fill_io(false, r.width, r.port, r.count);
                    }
                    None => self.s.completion = Completion::Nothing,
                }
                Step::User
            }
        }
    }

    /// [`Runner::emulation_failed`] for an instruction that was decoded.
    fn not_emulated(&mut self, insn: &crate::emul::Insn) -> Step {
        let mut bytes = [0; 15];
        for (to, from) in bytes.iter_mut().zip(insn.bytes()) {
            *to = *from;
        }
        self.emulation_failed(&bytes, insn.len())
    }

    /// The guest gets #UD; KVM_EXIT_INTERNAL_ERROR with the instruction's bytes
    /// (KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) instead or before, unless it is the fault of an application alone.
    fn emulation_failed(&mut self, bytes: &[u8; 15], len: u8) -> Step {
        if !self.vm.caps.exit_on_emulation_failure() {
            let step = self.raise(events::exception(events::vector::UD, None));
            if self.s.cpl() != 0 {
                self.s.replay.clear();
                return step;
            }
        }
        self.set_exit(k::KVM_EXIT_INTERNAL_ERROR);
        let _ = self.run.write(off::UNION, k::KVM_INTERNAL_ERROR_EMULATION);
        let _ = self.run.write(off::UNION + 4, 4u32);
        let _ = self.run.write(
            off::UNION + 8,
            u64::from(k::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES),
        );
        let _ = self.run.write(off::UNION + 16, len);
        let _ = self.run.copy_in(off::UNION + 17, bytes);
        self.s.replay.clear();
        Step::User
    }

    fn unhandled(&mut self, atomic: bool, suberror: u32) -> Step {
        if atomic {
            return Step::Slow;
        }
        self.set_exit(k::KVM_EXIT_INTERNAL_ERROR);
        let _ = self.run.write(off::UNION, suberror);
        let _ = self.run.write(off::UNION + 4, 0u32);
        Step::User
    }

    /// MOV CR, CLTS, LMSW.
    fn cr_access(&mut self, c: &CrAccess, atomic: bool) -> Step {
        self.s.load(Groups::CTRL.union(Groups::CODE));
        let (cr, write, op, gpr) = match c.op {
            CrOp::Decode => {
                let fetched = {
                    let view = self.vm.memory.view();
                    self.s.fetch(&view, atomic).copied()
                };
                let insn = match fetched {
                    Ok(i) => i,
                    Err(e) => return self.fetch_failed(e),
                };
                match (insn.op, insn.dst, insn.src) {
                    (Op::MovCr, Operand::Cr(n), Operand::Reg(g)) => (n, true, CrOp::Mov, Some(g)),
                    (Op::MovCr, Operand::Reg(g), Operand::Cr(n)) => (n, false, CrOp::Mov, Some(g)),
                    (Op::Clts, _, _) => (0, true, CrOp::Clts, None),
                    (Op::Lmsw, _, Operand::Reg(g)) => {
                        (0, true, CrOp::Lmsw(self.s.cpu.regs.get(g) as u16), None)
                    }
                    _ => {
                        return self.not_emulated(&insn);
                    }
                }
            }
            op => (c.cr, c.write, op, c.gpr),
        };
        let long = self.s.cpu.sregs.mode(self.s.cpu.regs.rflags) == crate::cpu::regs::Mode::Long;
        if !write {
            let value = match cr {
                0 => self.s.cpu.sregs.cr0,
                3 => self.s.cpu.sregs.cr3,
                4 => self.s.cpu.sregs.cr4,
                _ => u64::from(self.s.cr8()),
            };
            let step = self.skip(atomic, &Known::CR);
            if matches!(step, Step::Again) {
                if let Some(g) = gpr {
                    self.s
                        .cpu
                        .regs
                        .set(g, if long { value } else { value & 0xffff_ffff });
                }
            }
            return step;
        }
        let source = gpr.map_or(0, |g| self.s.cpu.regs.get(g));
        let source = if long { source } else { source & 0xffff_ffff };
        let old = self.s.cpu.sregs;
        let new_value = match op {
            CrOp::Clts => old.cr0 & !crate::cpu::regs::cr0::TS,
            // LMSW cannot clear PE.
            CrOp::Lmsw(v) => old.cr0 & !0xe | u64::from(v & 0xf),
            _ => source,
        };
        // Validate, then fetch (which may have to sleep), then change.
        enum New {
            Cr0(u64, u64),
            Cr3(u64),
            Cr4(u64, bool, bool),
            Cr8(u8),
        }
        let mut load_pdptes = None;
        let new = match cr {
            0 => match control::cr0_write_check(
                old.cr0,
                new_value,
                old.cr4,
                old.efer,
                old.seg(Seg::Cs).l,
            ) {
                Ok(w) => {
                    load_pdptes = w.load_pdptes.then_some(old.cr3);
                    New::Cr0(w.cr0, w.efer)
                }
                Err(_) => return self.raise_gp(),
            },
            3 => match control::cr3_write_check(new_value, old.cr4, old.efer, &self.s.features) {
                Ok(w) => {
                    load_pdptes = old.pae_paging().then_some(w.cr3);
                    New::Cr3(w.cr3)
                }
                Err(_) => return self.raise_gp(),
            },
            4 => match control::cr4_write_check(
                old.cr4,
                new_value,
                old.cr0,
                old.cr3,
                old.efer,
                &self.s.features,
            ) {
                Ok(w) => {
                    load_pdptes = w.load_pdptes.then_some(old.cr3);
                    New::Cr4(w.cr4, w.flush, w.cpuid_changed)
                }
                Err(_) => return self.raise_gp(),
            },
            8 if new_value >> 4 == 0 => New::Cr8(new_value as u8),
            8 => return self.raise_gp(),
            _ => return self.raise(events::exception(events::vector::UD, None)),
        };
        let pdptes = match load_pdptes.map(|cr3| self.s.read_pdptes(self.vm, cr3, atomic)) {
            None => None,
            Some(Ok(p)) => Some(p),
            Some(Err(MemError::Fault)) if atomic => return Step::Slow,
            Some(Err(_)) => return self.raise_gp(),
        };
        let step = self.skip(atomic, &Known::CR);
        if !matches!(step, Step::Again) {
            return step;
        }
        if let Some(p) = pdptes {
            self.s.hw.set_pdptes(p);
        }
        match new {
            New::Cr0(cr0, efer) => {
                self.s.cpu.sregs.cr0 = cr0;
                self.s.cpu.sregs.efer = efer;
                self.s.dirty(Groups::CTRL);
                self.s.tlb_seen = 0;
            }
            New::Cr3(cr3) => {
                self.s.cpu.sregs.cr3 = cr3;
                self.s.dirty(Groups::CTRL);
                self.s.tlb_seen = 0;
            }
            New::Cr4(value, flush, cpuid_changed) => {
                self.s.cpu.sregs.cr4 = value;
                self.s.dirty(Groups::CTRL);
                if flush {
                    self.s.tlb_seen = 0;
                }
                if cpuid_changed || (value ^ old.cr4) & cr4::OSXSAVE != 0 {
                    self.s.refresh_dynamic();
                } else {
                    self.s.dynamic.cr4 = value;
                }
            }
            New::Cr8(v) => match &mut self.s.lapic {
                Some(l) => l.set_cr8(v),
                None => {
                    let lower = v < self.s.cr8;
                    self.s.cr8 = v;
                    if lower {
                        // User space's local APIC has to look whether something can be delivered now.
                        self.set_exit(k::KVM_EXIT_SET_TPR);
                        return Step::User;
                    }
                }
            },
        }
        Step::Again
    }

    /// MOV DR (SDM 3B 19.2).
    fn dr_access(&mut self, atomic: bool) -> Step {
        let fetched = {
            let view = self.vm.memory.view();
            self.s.fetch(&view, atomic).copied()
        };
        let insn = match fetched {
            Ok(i) => i,
            Err(e) => return self.fetch_failed(e),
        };
        let (n, g, write) = match (insn.op, insn.dst, insn.src) {
            (Op::MovDr, Operand::Dr(n), Operand::Reg(g)) => (n, g, true),
            (Op::MovDr, Operand::Reg(g), Operand::Dr(n)) => (n, g, false),
            _ => {
                return self.not_emulated(&insn);
            }
        };
        self.s.load(Groups::CTRL.union(Groups::CODE));
        // The instruction's own faults come before the intercept (CPL, CR4.DE) on VMX and SVM, but DR7.GD is ours.
        let debugged = self.s.debug.takes_debug() && self.s.cpu.dr7 & debug::GENERAL_DETECT != 0;
        let (mut dr, mut dr7) = self.s.guest_breakpoints();
        if debugged || dr7 & debug::GENERAL_DETECT != 0 {
            let db = Exception {
                vector: events::vector::DB,
                error_code: None,
                payload: debug::GENERAL_DETECT,
            };
            return if debugged {
                self.debug_exit(&db)
            } else {
                self.raise(db)
            };
        }
        if self.s.cpl() != 0 {
            return self.raise_gp();
        }
        let n = match n {
            4 | 5 if self.s.cpu.sregs.cr4 & cr4::DE != 0 => {
                return self.raise(events::exception(events::vector::UD, None));
            }
            4 | 5 => n + 2,
            n => n & 7,
        };
        let long = self.s.cpu.sregs.mode(self.s.cpu.regs.rflags) == crate::cpu::regs::Mode::Long;
        let cpu = &mut self.s.cpu;
        if write {
            let v = cpu.regs.get(g);
            let v = if long { v } else { v & 0xffff_ffff };
            if n >= 6 && v >> 32 != 0 {
                return self.raise_gp();
            }
            match n {
                6 => cpu.dr6 = v & 0x1e00f | 0xffff_0ff0,
                7 => dr7 = v & 0xffff_2bff | 0x400,
                n => {
                    if let Some(d) = dr.get_mut(usize::from(n)) {
                        *d = v;
                    }
                }
            }
            self.s.set_guest_breakpoints(dr, dr7);
        } else {
            let v = match n {
                6 => cpu.dr6,
                7 => dr7,
                n => dr.get(usize::from(n)).copied().unwrap_or(0),
            };
            cpu.regs.set(g, if long { v } else { v & 0xffff_ffff });
        }
        self.s.advance(insn.len());
        // Breakpoint registers are loaded at the start of a stay.
        Step::Leave
    }

    /// An intercepted exception goes to the guest, combined with what was being delivered.
    fn exception(&mut self, e: &Exception) -> Step {
        if self.s.debug.active()
            && (e.vector == events::vector::BP
                || e.vector == events::vector::DB && self.s.debug.takes_debug())
        {
            return self.debug_exit(e);
        }
        let interrupted = self.s.events.interrupted.take();
        match events::raise_during(interrupted, *e) {
            Ok(e) => {
                if let (Some(ev), true) = (
                    interrupted,
                    e.vector == events::vector::DB || e.vector == events::vector::AC,
                ) {
                    // The event comes back after the exception's handler returns only if it was not one itself.
                    if ev.kind != EventKind::Exception {
                        self.s.events.interrupted = Some(ev);
                    }
                }
                self.s.events.exception = Some(e);
                if e.vector == events::vector::PF {
                    self.s.cpu.sregs.cr2 = e.payload;
                }
                Step::Again
            }
            Err(events::TripleFault) => {
                let _ = self.triple_fault();
                Step::User
            }
        }
    }

    /// KVM_EXIT_DEBUG (api.rst 5). What was being delivered stays pending.
    #[cold]
    fn debug_exit(&mut self, e: &Exception) -> Step {
        if e.vector == events::vector::BP {
            self.s.breakpoint_reported();
        }
        self.s.debug.reported();
        let (dr6, dr7) = (
            e.payload & !debug::DR6_NONE | debug::DR6_NONE,
            self.s.cpu.dr7,
        );
        let pc = self.s.linear_rip();
        self.set_exit(k::KVM_EXIT_DEBUG);
        let _ = self.run.write(off::UNION, u32::from(e.vector));
        let _ = self.run.write(off::UNION + 8, pc);
        let _ = self.run.write(off::UNION + 16, dr6);
        let _ = self.run.write(off::UNION + 24, dr7);
        Step::User
    }

    /// KVM_EXIT_FAIL_ENTRY, with the rule that the state breaks, if the manual has one.
    fn entry_failure(&mut self, reason: u64) -> Step {
        let params = EntryParams {
            nested_root: self.vm.memory.root(),
            flush: false,
            irq_window: false,
            nmi_window: false,
            tpr: 0,
            tpr_threshold: 0,
            apic_status: None,
            inject: self.refused,
            check: true,
        };
        let mut f = crate::uapi::EntryFailure {
            reason,
            value: 0,
            rule: [0; 240],
        };
        let text = match self.s.hw.check_entry(&mut self.s.cpu, &params) {
            Err(v) => {
                f.value = v.value;
                pr_warn_ratelimited!(
                    "vCPU {}: entry refused: {} ({}), value {:#x}\n",
                    self.vcpu.shared.id,
                    v.rule,
                    v.manual,
                    v.value
                );
                (v.rule, v.manual)
            }
            Ok(()) => {
                pr_warn_ratelimited!(
                    "vCPU {}: entry refused, reason {:#x}\n",
                    self.vcpu.shared.id,
                    reason
                );
                ("The processor refused the entry for a reason that the entry checks do not know", "")
            }
        };
        let parts = [
            text.0.as_bytes(),
            if text.1.is_empty() { b"" } else { b" (" },
            text.1.as_bytes(),
            if text.1.is_empty() { b"" } else { b")" },
        ];
        // The last byte stays zero.
        for (to, from) in f.rule.iter_mut().take(239).zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        self.s.entry_failure = Some(f);
        self.set_exit(k::KVM_EXIT_FAIL_ENTRY);
        let _ = self.run.write(off::UNION, reason);
        let _ = self.run.write(off::UNION + 8, self.s.last_cpu);
        Step::User
    }
}

/// RFLAGS bits that KVM_SET_REGS may set.
pub(crate) fn clean_rflags(v: u64) -> u64 {
    const DEFINED: u64 = 0x003f_7fd5;
    v & DEFINED | rflags::FIXED
}
