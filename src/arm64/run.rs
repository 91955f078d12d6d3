// SPDX-License-Identifier: GPL-2.0
//! KVM_RUN: enter the guest, handle what it exits for, until user space is needed (api.rst 4.10, 5).
//!
//! Two loops, as on x86: the inner one, [`Runner::stay`], with interrupts off, goes around for what needs neither sleep
//! nor host interrupts; the outer one handles the rest with interrupts on.

use crate::abi::exits::{self, exits as declare_exits, Ask};
use crate::abi::stats::{ExitClass, VcpuCounter, VcpuStats};
use crate::abi::uapi::k;
use crate::arm64::context::Reg;
use crate::arm64::debug;
use crate::arm64::el2::{self, Stay};
use crate::arm64::esr::{self, Exit, NestedFault, Place, SysReg};
use crate::arm64::ids::Identity;
use crate::arm64::inject::{self, Kind};
use crate::arm64::paging::most_address_bits;
use crate::arm64::shared::{affinity_info, switch_on, RING_FULL, STOP};
use crate::arm64::vcpu::{Pending, State, Vcpu};
use crate::arm64::vgic::chip::Vgic;
use crate::arm64::vgic::its::InMemory;
use crate::arm64::vgic::mmio::By;
use crate::arm64::vm::Vm;
use crate::arm64::{caches, events, idreg, paging, psci, smccc, stage1};
use crate::bus::ioeventfd::Bus;
use crate::bus::set::IN_ONE_GO;
use crate::linux::clock;
use crate::linux::irqflags::{IrqGuard, ThisCpu};
use crate::linux::neon::KernelNeon;
use crate::linux::random;
use crate::linux::sched;
use crate::mem::addr::Gpa;
use crate::mem::fault::FaultOutcome;
use crate::mem::mmu::InOwnMm;
use crate::params;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::ArcBorrow;

declare_exits! {
    /// The guest wants the machine off, reset or suspended, or something wakes it.
    SystemEvent = KVM_EXIT_SYSTEM_EVENT, system_event: kvm_run__bindgen_ty_1__bindgen_ty_19 {
        kind: u32 = type_,
        ndata: u32 = ndata,
        data: [u64; 16] = __bindgen_anon_1.bindgen_union_field,
    }
    /// A breakpoint, watchpoint or step of user space's.
    Debug = KVM_EXIT_DEBUG, debug: kvm_run__bindgen_ty_1__bindgen_ty_5 {
        esr: u32 = arch.hsr,
        esr_high: u32 = arch.hsr_high,
        far: u64 = arch.far,
    }
    /// An access to device memory that the processor does not describe.
    Undescribed = KVM_EXIT_ARM_NISV, arm_nisv: kvm_run__bindgen_ty_1__bindgen_ty_22 {
        iss: u64 = esr_iss,
        gpa: u64 = fault_ipa,
    }
}

/// Entries of nested page tables whose pages are cleaned between two chances to reschedule.
const CLEANED_AT_ONCE: u32 = 256;
/// KVM_HYPERCALL_EXIT_SMC. KVM_HYPERCALL_EXIT_16BIT is for an instruction of 16 bits, which a guest of 64 bits has not.
const HYPERCALL_SMC: u64 = 1 << 0;
/// PSTATE.nRW: EL0 of 32 bits.
const PSTATE_32BIT: u64 = 1 << 4;

impl SystemEvent {
    /// With what is known about it.
    fn of(kind: u32, known: &[u64]) -> Self {
        let mut data = [0; 16];
        for (to, from) in data.iter_mut().zip(known) {
            *to = *from;
        }
        Self {
            kind,
            ndata: known.len() as u32,
            data,
        }
    }
}

/// What a handler achieved.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Enter the guest again.
    Again,
    /// Leave the stay, look at what waits, then enter again.
    Leave,
    /// Return to user space; `kvm_run` is filled in.
    User,
    /// KVM_RUN fails.
    Fail(Error),
}

/// How a stay ended.
enum Stayed {
    /// With this step.
    Ended(Step),
    /// With a fault at this guest-physical address whose handling may sleep.
    Fault(Gpa, NestedFault),
    /// With a write to this register of the interrupt controller, after which many vCPUs are told.
    Told(SysReg, u8),
}

/// One KVM_RUN.
pub(crate) struct Runner<'a> {
    pub(super) vm: &'a Vm,
    pub(super) vcpu: &'a Vcpu,
    pub(super) s: &'a mut State,
    pub(super) stats: &'a VcpuStats,
    /// What the exit that is being handled counts as.
    class: ExitClass,
}

impl<'a> Runner<'a> {
    /// Of a vCPU whose state is locked. ENOMEM.
    pub(crate) fn new(vm: &'a Vm, vcpu: &'a Vcpu, s: &'a mut State) -> Result<Self> {
        let stats = vcpu.stats.counters()?;
        let class = ExitClass::Other;
        Ok(Self {
            vm,
            vcpu,
            s,
            stats,
            class,
        })
    }

    /// KVM_RUN.
    #[inline(never)]
    pub(crate) fn run(&mut self) -> Result<isize> {
        self.s.check_initialized()?;
        self.first_run()?;
        self.stats.add(VcpuCounter::UserExits, 1);
        let g = &mut self.s.guest;
        g.regs.pstate = g.debug.begin(g.regs.pstate);
        let ended = self.run_guest();
        let g = &mut self.s.guest;
        g.regs.pstate = g.debug.end(g.regs.pstate);
        ended
    }

    /// The same, with the bit for steps in its place.
    fn run_guest(&mut self) -> Result<isize> {
        self.complete();
        self.look_at_physical();
        if self.vcpu.run.get(exits::IMMEDIATE_EXIT) != 0 {
            self.stats.add(VcpuCounter::SignalExits, 1);
            return Err(EINTR);
        }
        self.vcpu.run.put(exits::EXIT_REASON, k::KVM_EXIT_UNKNOWN);
        self.vcpu.shared.worker.set_current();
        loop {
            if self.vm.memory.is_broken() {
                return Err(EIO);
            }
            self.s.take_requests(&self.vcpu.shared);
            self.s.stolen.tell(&self.vm.memory, &self.s.ring);
            if core::mem::take(&mut self.s.cleans) {
                self.vm.memory.show_leaves(CLEANED_AT_ONCE, paging::clean);
            }
            let step = if self.ring_is_full() {
                self.ask(&exits::DirtyRingFull)
            } else if self.s.off {
                self.wait_until_on()
            } else if self.s.suspended {
                self.s.halted = true;
                match self.wait_for_interrupt() {
                    // It stays so until user space says otherwise.
                    Step::Leave if !self.s.halted => {
                        self.ask(&SystemEvent::of(k::KVM_SYSTEM_EVENT_WAKEUP, &[]))
                    }
                    step => step,
                }
            } else if self.s.halted {
                self.wait_for_interrupt()
            } else {
                self.enter()?
            };
            match step {
                Step::Again | Step::Leave => {}
                Step::User => return Ok(0),
                Step::Fail(e) => return Err(e),
            }
            if sched::xfer_to_guest_pending() && sched::xfer_to_guest_handle().is_err() {
                self.s.halted = false;
                return Err(self.interrupted());
            }
        }
    }

    /// Finishes the last exit.
    fn complete(&mut self) {
        let r = &mut self.s.guest.regs;
        match core::mem::replace(&mut self.s.pending, Pending::Nothing) {
            Pending::Nothing => return,
            Pending::Load(access) => {
                let data = u64::from_le_bytes(self.vcpu.run.get(exits::Mmio::DATA));
                r.set_x(access.register, access.loaded(data));
            }
            Pending::Store => {}
        }
        r.skip();
    }

    /// Fills in `kvm_run`.
    fn ask<A: Ask>(&self, what: &A) -> Step {
        let page = self.vcpu.run.first();
        what.put(page);
        page.put(exits::EXIT_REASON, A::REASON);
        Step::User
    }

    /// KVM_RUN ends for a signal.
    #[cold]
    pub(super) fn interrupted(&self) -> Error {
        self.stats.add(VcpuCounter::SignalExits, 1);
        let _ = self.ask(&exits::Intr);
        EINTR
    }

    /// Whether user space has to empty the dirty ring first. It is asked again as long as that is so.
    fn ring_is_full(&self) -> bool {
        let Some(ring) = &self.s.ring else {
            return false;
        };
        let shared = &self.vcpu.shared;
        shared.take_requests(RING_FULL);
        let full = ring.is_full();
        if full {
            shared.request_self(RING_FULL);
        }
        full
    }

    /// Waits for another vCPU to switch this one on, or for a signal.
    fn wait_until_on(&mut self) -> Step {
        let shared = &self.vcpu.shared;
        match shared.wait.wait_interruptible(|| shared.requests() != 0) {
            Ok(_) => Step::Leave,
            Err(_) => Step::Fail(self.interrupted()),
        }
    }

    /// A stay, and what has to be done about its end.
    fn enter(&mut self) -> Result<Step> {
        match self.stay()? {
            Stayed::Ended(step) => Ok(step),
            Stayed::Fault(gpa, fault) => self.slow_fault(gpa, &fault),
            Stayed::Told(reg, register) => {
                self.interrupt_register(reg, false, register);
                self.s.guest.regs.skip();
                Ok(Step::Again)
            }
        }
    }

    /// Runs the guest until something needs the outer loop.
    fn stay(&mut self) -> Result<Stayed> {
        let (vm, vcpu) = (self.vm, self.vcpu);
        let room = self.s.room.take().ok_or(EBUSY)?;
        let neon = KernelNeon::begin(room);
        let irq = IrqGuard::new();
        let Some(own_mm) = InOwnMm::new(vm.mm(), irq.token()) else {
            drop(irq);
            self.s.room = Some(neon.end());
            return Err(EIO);
        };
        sched::guest_enter(&irq);
        // This processor's, unless user space has said another.
        self.s.guest.midr = vm.identity.get(0);
        self.begin_interrupts(vm);
        vcpu.shared.enter_stay(irq.this_cpu());
        let root = (vm.memory.root(), vm.address_bits);
        let stayed = Stay::hold(
            irq.this_cpu(),
            own_mm,
            root,
            self,
            |r| &mut r.s.guest,
            |r, stay| {
                let how = r.enter_loop(stay, irq.this_cpu());
                r.end_interrupts(irq.this_cpu());
                how
            },
        );
        vcpu.shared.leave_stay();
        if matches!(stayed, Stayed::Ended(Step::Leave)) {
            // A guest that never leaves by itself keeps no grace period waiting for longer than a tick.
            sched::guest_quiescent(&irq);
        }
        drop(irq);
        self.s.room = Some(neon.end());
        sched::guest_exit();
        Ok(stayed)
    }

    /// The inner loop.
    fn enter_loop(&mut self, stay: &Stay<'_>, this_cpu: ThisCpu<'_>) -> Stayed {
        let cpu = this_cpu.number();
        loop {
            if self.vcpu.shared.requests() != 0 || sched::xfer_to_guest_pending() {
                return Stayed::Ended(Step::Leave);
            }
            let generation = self.vm.memory.tlb_generation();
            // In this order: the CPU has to learn in any case who is its last vCPU.
            let other = self.s.last.replace(this_cpu, self.s.token);
            if other || generation != self.s.tlb_generation || cpu != self.s.cpu {
                self.s.last.flush(this_cpu, stay);
                self.stats.add(VcpuCounter::TlbFlushes, 1);
                if cpu != self.s.cpu {
                    self.stats.add(VcpuCounter::Migrations, 1);
                }
                self.s.tlb_generation = generation;
                self.s.cpu = cpu;
            }
            if params::check_flushes() && self.has_stale_translations(this_cpu) {
                return Stayed::Ended(Step::Fail(EIO));
            }
            self.put_interrupts(stay, this_cpu);
            let exit = stay.enter(&mut self.s.guest);
            let start = el2::ticks();
            self.take_interrupts(stay);
            let stayed = self.handle(exit, stay, this_cpu);
            self.stats.add(VcpuCounter::Entries, 1);
            let ticks = el2::ticks().wrapping_sub(start);
            self.stats.exit(self.class, ticks);
            match stayed {
                Stayed::Ended(Step::Again) => {}
                end => return end,
            }
        }
    }

    /// `check_flushes`: this CPU has translations that the vCPU must not meet.
    #[cold]
    fn has_stale_translations(&self, cpu: ThisCpu<'_>) -> bool {
        let s = &self.s;
        let checked = s.last.check(cpu, &self.vm.memory.settled, s.token);
        if let Err(why) = checked {
            let (vcpu, token, cpu) = (s.index, s.token, cpu.number());
            pr_err!("vCPU {vcpu} (token {token}) is not entered on CPU {cpu}, which has not been flushed: {why:?}\n");
        }
        checked.is_err()
    }

    /// Handles an exit in the stay, as far as that goes.
    fn handle(&mut self, exit: Exit, stay: &Stay<'_>, this_cpu: ThisCpu<'_>) -> Stayed {
        let exit = if self.s.guest.regs.pstate & PSTATE_32BIT != 0 {
            Self::of_32bit(exit)
        } else {
            exit
        };
        self.class = match exit {
            Exit::HostInterrupt => ExitClass::HostInterrupt,
            Exit::Hvc(_) => ExitClass::Hvc,
            Exit::Smc(_) => ExitClass::Smc,
            Exit::Wait(false) => ExitClass::Wfi,
            Exit::Wait(true) => ExitClass::Wfe,
            Exit::SysReg { .. } => ExitClass::SystemRegister,
            Exit::NestedFault(_) => ExitClass::NestedFault,
            Exit::Absent => ExitClass::Absent,
            Exit::Debug => ExitClass::Debug,
            Exit::HostError | Exit::Unknown(_) => ExitClass::Other,
        };
        let step = match exit {
            Exit::HostInterrupt => self.host_interrupt(stay, this_cpu),
            // `enter` does not return.
            Exit::HostError => Step::Leave,
            Exit::Hvc(_) => self.hypercall(false),
            Exit::Smc(number) => {
                self.s.guest.regs.skip();
                match number {
                    0 => self.hypercall(true),
                    _ => {
                        self.s.guest.regs.set_x(0, psci::NOT_SUPPORTED);
                        Step::Again
                    }
                }
            }
            Exit::Wait(event) => {
                self.s.guest.regs.skip();
                if event {
                    Step::Again
                } else {
                    self.s.halted = true;
                    Step::Leave
                }
            }
            Exit::SysReg {
                reg,
                read: false,
                register,
            } if self.tells_many() && reg.generates_interrupts() => {
                return Stayed::Told(reg, register);
            }
            Exit::SysReg {
                reg,
                read,
                register,
            } => self.system_register(stay, reg, read, register),
            Exit::NestedFault(f) => {
                let gpa = match f.place {
                    Place::Known(gpa) => Some(gpa),
                    Place::Virtual(address) => stay.translate(address),
                };
                match gpa {
                    Some(gpa) => return self.short_fault(Gpa(gpa), f, stay),
                    // The guest has changed its tables meanwhile, and will fault again.
                    None => Step::Again,
                }
            }
            Exit::Debug => self.debug_exit(),
            Exit::Absent => {
                self.undefined(stay);
                Step::Again
            }
            Exit::Unknown(esr) => self.ask(&exits::Unknown { reason: esr }),
        };
        Stayed::Ended(step)
    }

    /// Guests are told that EL0 has 64 bits, but one of 32 bits that its processor has can be entered. What it does
    /// there is undefined but for accesses to memory.
    fn of_32bit(exit: Exit) -> Exit {
        match exit {
            Exit::HostInterrupt | Exit::HostError => exit,
            Exit::NestedFault(f) => Exit::NestedFault(NestedFault { access: None, ..f }),
            _ => Exit::Absent,
        }
    }

    /// HVC or SMC, already behind the instruction.
    fn hypercall(&mut self, by_smc: bool) -> Step {
        let [x0, x1, x2, x3, ..] = self.s.guest.regs.x;
        let x = [x0, x1, x2, x3];
        if self.s.filter.is_empty() {
            let function = x0 as u32;
            if psci::is_call(function) && self.s.has_psci() {
                let answer = psci::call(&x, &self.vm.psci_policy());
                return self.carry_out(answer);
            }
            if !smccc::is_call(function) {
                return self.answer([psci::NOT_SUPPORTED, 0, 0, 0]);
            }
        }
        self.other_hypercall(&x, by_smc)
    }

    /// One that is none of PSCI's, or that user space may have filtered.
    #[inline(never)]
    fn other_hypercall(&mut self, x: &[u64; 4], by_smc: bool) -> Step {
        let function = x[0] as u32;
        match smccc::action(&self.s.filter, function) {
            smccc::Action::Handle => {}
            smccc::Action::Deny => return self.answer([psci::NOT_SUPPORTED, 0, 0, 0]),
            smccc::Action::Forward => {
                return self.ask(&exits::Hypercall {
                    nr: function.into(),
                    args: [0; 6],
                    ret: 0,
                    flags: if by_smc { HYPERCALL_SMC } else { 0 },
                });
            }
        }
        let policy = smccc::Policy {
            psci: self.s.has_psci().then(|| self.vm.psci_policy()),
            bitmaps: self.vm.calls.bitmaps(),
            levels: el2::levels(),
            stolen_time: self.s.stolen.place(),
        };
        let answer = smccc::call(x, &policy);
        self.carry_out(answer)
    }

    /// What comes of a call.
    fn carry_out(&mut self, answer: psci::Answer) -> Step {
        match answer {
            psci::Answer::Value(value) => self.answer([value, 0, 0, 0]),
            psci::Answer::Values(values) => self.answer(values),
            psci::Answer::Random { bits, wide } => {
                let words = [(); 3].map(|()| random::word());
                self.answer(smccc::random(&words, bits, wide))
            }
            psci::Answer::Clock { physical } => {
                let offset = if physical {
                    &self.vm.physical_offset
                } else {
                    &self.vm.counter_offset
                };
                let behind = offset.load(Ordering::Relaxed);
                self.answer(match clock::snapshot() {
                    Some(s) => smccc::clock(s.real_ns, s.counter.wrapping_sub(behind)),
                    None => [psci::NOT_SUPPORTED, 0, 0, 0],
                })
            }
            psci::Answer::StolenTime(at) => {
                self.s.stolen.begin();
                self.answer([at, 0, 0, 0]);
                // It is written outside of the stay.
                Step::Leave
            }
            psci::Answer::CpuOn {
                target,
                entry,
                context,
            } => {
                let result = switch_on(&self.vm.vcpus, target, entry, context);
                self.s.guest.regs.set_x(0, result);
                Step::Again
            }
            psci::Answer::AffinityInfo { target, level } => {
                let result = affinity_info(&self.vm.vcpus, target, level);
                self.s.guest.regs.set_x(0, result);
                Step::Again
            }
            psci::Answer::CpuOff => {
                self.s.off = true;
                self.vcpu.shared.arch.set_on(false);
                Step::Leave
            }
            psci::Answer::CpuSuspend => {
                self.s.guest.regs.set_x(0, psci::SUCCESS);
                self.s.halted = true;
                Step::Leave
            }
            psci::Answer::SystemOff(flags) => {
                self.stop_all();
                self.ask(&SystemEvent::of(k::KVM_SYSTEM_EVENT_SHUTDOWN, &[flags]))
            }
            psci::Answer::SystemReset(flags) => {
                self.stop_all();
                self.ask(&SystemEvent::of(k::KVM_SYSTEM_EVENT_RESET, &[flags]))
            }
            // The registers stay as they are: user space reads them.
            psci::Answer::SystemSuspend => {
                self.ask(&SystemEvent::of(k::KVM_SYSTEM_EVENT_SUSPEND, &[]))
            }
        }
    }

    /// X0 to X3 of a call.
    fn answer(&mut self, values: [u64; 4]) -> Step {
        let x = &mut self.s.guest.regs.x;
        [x[0], x[1], x[2], x[3]] = values;
        Step::Again
    }

    /// The machine is off, or begins anew when user space says so.
    fn stop_all(&mut self) {
        self.s.off = true;
        self.s.guest.regs.set_x(0, psci::INTERNAL_FAILURE);
        // What user space is told at once; the vCPUs themselves notice by the request.
        self.vm.vcpus.iter().for_each(|v| v.arch.set_on(false));
        self.vm.vcpus.request_all(STOP);
    }

    /// There are so many vCPUs that whoever may have to tell them all does it with interrupts on.
    fn tells_many(&self) -> bool {
        self.s.guest.has_gic && self.vm.vcpus.len() > IN_ONE_GO
    }

    /// MRS or MSR that traps.
    fn system_register(&mut self, stay: &Stay<'_>, reg: SysReg, read: bool, register: u8) -> Step {
        let (op0, op1, crn, crm, op2) = reg.parts();
        if idreg::is_id(reg) && read {
            self.s.guest.regs.set_x(register, self.vm.ids.get(reg));
        } else if self.s.guest.has_gic && self.interrupt_register(reg, read, register) {
            // Of the interrupt controller.
        } else if self.physical_register(reg, read, register) {
            if self.wants_physical() {
                // The next stay has it.
                self.s.guest.regs.skip();
                return Step::Leave;
            }
        } else if let Some(n) = Identity::index(reg).filter(|_| read) {
            let value = self.vm.identity.get(n);
            self.s.guest.regs.set_x(register, value);
        } else if self.cache_register(stay, reg, read, register) {
            // About caches, which trap only if user space has said something of them.
        } else if op0 == 2 {
            return self.debug_register(stay, reg, read, register);
        } else if (op0, op1, crn, crm, op2) == (3, 0, 1, 0, 1) {
            // ACTLR_EL1 reads as zero.
            if read {
                self.s.guest.regs.set_x(register, 0);
            }
        } else if (op0, crn, crm) == (1, 7, 6)
            || (op0, crn, crm) == (1, 7, 10)
            || (op0, crn, crm) == (1, 7, 14)
        {
            // DC ISW, CSW, CISW: caches are nobody's business but the host's, where a guest cannot go past them.
            if !el2::caches().forced && !self.s.guest.watches_caches {
                self.s.guest.watches_caches = true;
                self.s.cleans = true;
                self.s.guest.regs.skip();
                return Step::Leave;
            }
        } else if !read && self.s.guest.watches_caches && caches::is_watched(reg) {
            return self.watched_register(stay, reg, register);
        } else {
            self.undefined(stay);
            return Step::Again;
        }
        self.s.guest.regs.skip();
        Step::Again
    }

    /// MSR of a register by which the guest may switch its caches on or off.
    #[cold]
    fn watched_register(&mut self, stay: &Stay<'_>, reg: SysReg, register: u8) -> Step {
        let g = &mut self.s.guest;
        let (was, is) = stay.write_watched(reg, g.regs.x(register));
        g.regs.skip();
        // What comes later is seen by set and way alone, as in KVM.
        g.watches_caches = !caches::are_on(is);
        self.s.cleans |= caches::are_on(was) != caches::are_on(is);
        match self.s.cleans || !g.watches_caches {
            true => Step::Leave,
            false => Step::Again,
        }
    }

    /// MRS or MSR of a register about caches. False: it is none.
    fn cache_register(&mut self, stay: &Stay<'_>, reg: SysReg, read: bool, register: u8) -> bool {
        let r = &mut self.s.guest.regs;
        let write = (!read).then(|| r.x(register));
        let Some(value) = stay.cache_register(reg, write) else {
            return false;
        };
        if read {
            r.set_x(register, value);
        }
        true
    }

    /// MRS or MSR of a register for debugging.
    fn debug_register(&mut self, stay: &Stay<'_>, reg: SysReg, read: bool, register: u8) -> Step {
        let g = &mut self.s.guest;
        let known = if read {
            let value = g.debug.read(reg);
            value.inspect(|v| g.regs.set_x(register, *v)).is_some()
        } else {
            g.debug.write(reg, g.regs.x(register))
        };
        if !known {
            self.undefined(stay);
            return Step::Again;
        }
        g.regs.skip();
        // The next stay loads what has been written.
        if !read && (stay.loads_debug() || g.debug.loaded().is_some()) {
            return Step::Leave;
        }
        Step::Again
    }

    /// KVM_EXIT_DEBUG (api.rst 5).
    fn debug_exit(&mut self) -> Step {
        let r = &mut self.s.guest.regs;
        let far = match r.class() {
            esr::EC_WATCHPOINT_LOWER => r.far(),
            _ => 0,
        };
        if r.class() == esr::EC_STEP_LOWER {
            // It is done.
            r.pstate |= debug::PSTATE_SS;
        }
        let esr = r.esr();
        self.ask(&Debug {
            esr: esr as u32,
            esr_high: (esr >> 32) as u32,
            far,
        })
    }

    /// The instruction is undefined: an exception to the guest's EL1, in a stay (Arm ARM D1.3.1).
    fn undefined(&mut self, stay: &Stay<'_>) {
        let r = &mut self.s.guest.regs;
        let (vbar, sctlr) = stay.raise(r.pc, r.pstate, inject::UNDEFINED);
        r.pc = vbar.wrapping_add(inject::vector(r.pstate, Kind::Synchronous));
        r.pstate = inject::entered(r.pstate, sctlr, events::has_pan());
    }

    /// A stage-2 fault in the stay: resident memory, or a device.
    fn short_fault(&mut self, gpa: Gpa, f: NestedFault, stay: &Stay<'_>) -> Stayed {
        let vm = self.vm;
        let view = vm.memory.view();
        let Some(entry) = view.memory_at(gpa, f.write) else {
            drop(view);
            // What the guest has to be told of is written to registers that are loaded now.
            if f.instruction || f.walk || gpa.0 >> vm.address_bits != 0 {
                return Stayed::Fault(gpa, f);
            }
            let outside = |v: ArcBorrow<'_, Vgic>| {
                v.needs_sleep(gpa.0, f.write) || self.tells_many() && v.at(gpa.0).is_some()
            };
            if vm.vgic().is_some_and(outside) {
                return Stayed::Fault(gpa, f);
            }
            return Stayed::Ended(self.device(gpa, &f, false));
        };
        // Cache maintenance that wants the right to write, which it will not get: nothing has been written there.
        if f.maintenance && entry.slot.is_readonly() {
            self.s.guest.regs.skip();
            return Stayed::Ended(Step::Again);
        }
        let by = &mut self.s.faulting(&self.vcpu.shared);
        let how = (f.write, f.fetch);
        if vm.memory.fault_resident(entry, by, gpa, how, stay.own_mm()) {
            return Stayed::Ended(Step::Again);
        }
        Stayed::Fault(gpa, f)
    }

    /// A stage-2 fault outside of the stay.
    fn slow_fault(&mut self, gpa: Gpa, f: &NestedFault) -> Result<Step> {
        let by = &mut self.s.faulting(&self.vcpu.shared);
        let outcome = self
            .vm
            .memory
            .fault(self.vm.mm(), by, gpa, f.write, f.fetch)?;
        Ok(match outcome {
            FaultOutcome::Mapped | FaultOutcome::Retry | FaultOutcome::Awaited(_) => Step::Again,
            FaultOutcome::Mmio => self.device(gpa, f, true),
            FaultOutcome::BadUserMemory => Step::Fail(EFAULT),
            // The signal ends KVM_RUN.
            FaultOutcome::Poisoned => Step::Leave,
            FaultOutcome::Unsaved => Step::Fail(ENOSPC),
        })
    }

    /// No access to a device, but a fetch from what is no memory, or a table there, or an address that the guest does
    /// not have: an abort, which its EL1 takes. Outside of a stay.
    #[cold]
    fn abort(&mut self, gpa: Gpa, f: &NestedFault) -> Step {
        let status = if gpa.0 >> most_address_bits() != 0 {
            inject::ADDRESS_SIZE
        } else if f.walk {
            let c = &self.s.guest.context;
            let r = stage1::Registers {
                tcr: c.get(Reg::Tcr),
                ttbr0: c.get(Reg::Ttbr0),
                ttbr1: c.get(Reg::Ttbr1),
            };
            let view = self.vm.memory.view();
            let level = stage1::missing_level(self.s.guest.regs.far(), &r, |at| {
                let mut entry = [0; 8];
                view.read(Gpa(at), &mut entry).ok()?;
                Some(u64::from_le_bytes(entry))
            });
            // A table that is there now and cannot be written: its level is not looked for.
            inject::EXTERNAL_ABORT_WALK + u64::from(level.unwrap_or(3))
        } else {
            inject::EXTERNAL_ABORT
        };
        self.s.guest.abort(f.instruction, status);
        Step::Again
    }

    /// An access to what is no memory. `outside`: of a stay, where it may sleep. What wants that and has come there
    /// since it was asked is not there yet.
    fn device(&mut self, gpa: Gpa, f: &NestedFault, outside: bool) -> Step {
        self.class = ExitClass::MmioKernel;
        if f.instruction || f.walk || gpa.0 >> self.vm.address_bits != 0 {
            return self.abort(gpa, f);
        }
        // Of what is no memory nothing is in a cache.
        if f.maintenance {
            self.s.guest.regs.skip();
            return Step::Again;
        }
        let Some(access) = f.access else {
            if !self.vm.passes_undescribed() {
                return Step::Fail(ENOSYS);
            }
            let iss = self.s.guest.regs.iss();
            return self.ask(&Undescribed { iss, gpa: gpa.0 });
        };
        let len = usize::from(access.len);
        if let Some(vgic) = self.vm.vgic() {
            let tables = InMemory {
                vgic: &vgic,
                memory: &self.vm.memory,
                ring: &self.s.ring,
            };
            let r = &mut self.s.guest.regs;
            if let Some((its, at)) = vgic.its_at(gpa.0).filter(|_| outside) {
                if !f.write {
                    let data = tables.read_its(&its, at, len);
                    r.set_x(access.register, access.loaded(data));
                } else if !tables.write_its(&its, at, len, r.x(access.register)) {
                    // Once more, when what waits is done.
                    return Step::Again;
                }
                r.skip();
                return Step::Again;
            }
            if let Some((frame, at)) = vgic.at(gpa.0) {
                if f.write && outside {
                    tables.write(frame, at, len, r.x(access.register), By::Guest);
                } else if f.write {
                    vgic.write(frame, at, len, r.x(access.register), By::Guest);
                } else {
                    let data = vgic.read(frame, at, len, By::Guest);
                    r.set_x(access.register, access.loaded(data));
                }
                r.skip();
                return Step::Again;
            }
        }
        let data = self.s.guest.regs.x(access.register).to_le_bytes();
        let written = data.get(..len).unwrap_or(&data);
        if f.write && self.vm.bus.write(Bus::Mmio, gpa.0, written) {
            self.s.guest.regs.skip();
            return Step::Again;
        }
        self.class = ExitClass::MmioUser;
        let mut bytes = [0; 8];
        if f.write {
            for (to, from) in bytes.iter_mut().zip(written) {
                *to = *from;
            }
        }
        self.s.pending = if f.write {
            Pending::Store
        } else {
            Pending::Load(access)
        };
        self.ask(&exits::Mmio {
            gpa: gpa.0,
            data: bytes,
            len: access.len.into(),
            is_write: f.write.into(),
        })
    }
}
