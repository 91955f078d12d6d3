// SPDX-License-Identifier: GPL-2.0
//! What each exit does.

use super::{off, Runner, Step};
use crate::abi::stats::ExitClass;
use crate::abi::uapi::k;
use crate::linux::hrtimer;
use crate::linux::mmap::Shared;
use crate::pr_warn_ratelimited;
use crate::x86::cpu::index;
use crate::x86::cpu::msr as msrs;
use crate::x86::cpu::regs::{Gpr, Mode};
use crate::x86::cpu::{cpuid, events};
use crate::x86::emul::Insn;
use crate::x86::enabled::{Direction, HC_MAP_GPA_RANGE};
use crate::x86::exit::{EventKind, Exception, Exit};
use crate::x86::irqchip::lapic::{Action, Eoi};
use crate::x86::irqchip::msg::Vector;
use crate::x86::pv::{self, hypercall};
use crate::x86::shared::request;
use crate::x86::vcpu::debug;
use crate::x86::vcpu::fetch::{FetchError, Known};
use crate::x86::vcpu::state::{Completion, MpState};
use crate::x86::vendor::{EntryParams, Groups, VcpuBackend};
use kernel::prelude::*;

impl Runner<'_> {
    /// Handles an exit inside the stay, the frequent ones without searching all kinds twice.
    #[inline(always)]
    pub(super) fn handle_frequent(&mut self, exit: &Exit) -> (ExitClass, Step) {
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
    pub(super) fn handle(&mut self, exit: &Exit, atomic: bool) -> Step {
        match exit {
            Exit::HostInterrupt => Step::Leave,
            Exit::PreemptionTimer => {
                self.s.timer.exited = true;
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
                self.vm.vcpus.yield_from(&self.vcpu.shared);
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
                let action = match &mut self.s.apic.lapic {
                    Some(l) => l.ended(Vector(*vector)),
                    None => Action::NONE,
                };
                self.apply(action)
            }
            Exit::ApicWrite(offset) => {
                let action = match &mut self.s.apic.lapic {
                    Some(l) => l.write_stored((*offset).into(), hrtimer::ktime_get_ns()),
                    None => Action::NONE,
                };
                self.apply(action)
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
    pub(super) fn skip(&mut self, atomic: bool, known: &Known) -> Step {
        if let Some(n) = self.s.hw.insn_len() {
            self.s.advance(n);
            return Step::Again;
        }
        self.skip_decoded(atomic, known)
    }

    #[inline(never)]
    pub(super) fn skip_decoded(&mut self, atomic: bool, known: &Known) -> Step {
        let view = self.vm.memory.view();
        match self.s.skip(&view, atomic, known) {
            Ok(()) => Step::Again,
            Err(e) => {
                drop(view);
                self.fetch_failed(e)
            }
        }
    }

    /// Whether the guest runs 64-bit code; [`Groups::CODE`] and [`Groups::CTRL`] are loaded.
    pub(super) fn in_64_bit_code(&self) -> bool {
        self.s.cpu.sregs.mode(self.s.cpu.regs.rflags) == Mode::Long
    }

    /// The instruction at RIP; else what its fetch comes to.
    pub(super) fn fetch(&mut self, atomic: bool) -> Result<Insn, Step> {
        let fetched = {
            let view = self.vm.memory.view();
            self.s.fetch(&view, atomic).copied()
        };
        fetched.map_err(|e| self.fetch_failed(e))
    }

    fn fetch_failed(&mut self, e: FetchError) -> Step {
        match e {
            FetchError::Sleep => Step::Slow,
            FetchError::Reenter => Step::Again,
            FetchError::Unsupported(bytes, n) => self.emulation_failed(&bytes, n),
        }
    }

    pub(super) fn raise(&mut self, e: Exception) -> Step {
        if self.s.raise(e) {
            Step::Again
        } else {
            let _ = self.triple_fault();
            Step::User
        }
    }

    pub(super) fn raise_gp(&mut self) -> Step {
        self.raise(events::exception(events::vector::GP, Some(0)))
    }

    /// KVM_EXIT_SHUTDOWN.
    pub(super) fn triple_fault(&mut self) -> Result<isize> {
        self.set_exit(k::KVM_EXIT_SHUTDOWN);
        Ok(0)
    }

    /// MONITOR and MWAIT do nothing, which is always a correct way to wait; they fault only when user space wants that
    /// (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS).
    pub(super) fn mwait_is_nop(&self) -> bool {
        let caps = &self.vm.caps;
        caps.quirk(k::KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS)
            || if caps.quirk(k::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT) {
                self.s.cpuid_leaf1_ecx() & 1 << 3 != 0
            } else {
                self.s.msrs.mwait()
            }
    }

    pub(super) fn cpuid(&mut self, atomic: bool) -> Step {
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
        let [eax, ebx, ecx, edx] =
            cpuid::lookup(&s.cpuid.table, &s.cpuid.index, leaf, sub, &s.cpuid.dynamic);
        s.cpu.regs.set(Gpr::Rax, eax.into());
        s.cpu.regs.set(Gpr::Rbx, ebx.into());
        s.cpu.regs.set(Gpr::Rcx, ecx.into());
        s.cpu.regs.set(Gpr::Rdx, edx.into());
        Step::Again
    }

    /// User space wants a say in this access.
    #[inline]
    pub(super) fn filtered(&self, index: u32, direction: Direction) -> bool {
        self.s
            .msr_filter
            .as_ref()
            .is_some_and(|f| !f.allows(index, direction))
    }

    /// A guest's access to an MSR that fails, for `reason` (KVM_MSR_EXIT_REASON_*): #GP, or user space's decision
    /// (KVM_CAP_X86_USER_SPACE_MSR).
    #[cold]
    pub(super) fn refuse_msr(
        &mut self,
        direction: Direction,
        index: u32,
        data: u64,
        reason: u32,
    ) -> Step {
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
        self.s.pending.completion = completion;
        Step::User
    }

    pub(super) fn rdmsr(&mut self, atomic: bool) -> Step {
        let index = self.s.cpu.regs.get(Gpr::Rcx) as u32;
        if self.filtered(index, Direction::Read) {
            return self.refuse_msr(Direction::Read, index, 0, k::KVM_MSR_EXIT_REASON_FILTER);
        }
        let value = if index != index::PLATFORM_INFO || self.vm.caps.platform_info_readable() {
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

    pub(super) fn wrmsr(&mut self, atomic: bool) -> Step {
        let regs = &self.s.cpu.regs;
        let index = regs.get(Gpr::Rcx) as u32;
        let value = regs.get(Gpr::Rdx) << 32 | regs.get(Gpr::Rax) & 0xffff_ffff;
        if self.filtered(index, Direction::Write) {
            let reason = k::KVM_MSR_EXIT_REASON_FILTER;
            return self.refuse_msr(Direction::Write, index, value, reason);
        }
        if atomic && pv::msrs::may_sleep(index) {
            return Step::Slow;
        }
        // Moving the local APIC may change the nested page tables.
        if atomic && self.s.apic.virtualized && index == index::APIC_BASE {
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
        // What guests write most needs no look at what all the other MSRs are.
        if let Some(l) = &mut self.s.apic.lapic {
            match index {
                index::X2APIC_EOI if value == 0 && l.is_x2apic() => {
                    let action = l.eoi();
                    return self.apply(action);
                }
                index::TSC_DEADLINE if self.s.cpuid.features.tsc_deadline => {
                    if l.set_tsc_deadline(value).timer {
                        self.vcpu.timer.arm(self.s);
                    }
                    return Step::Again;
                }
                _ => {}
            }
        }
        match self.s.write_msr(self.vm, index, value, false) {
            Some(action) => self.apply(action),
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
    pub(super) fn apply(&mut self, action: Action) -> Step {
        if action.is_none() {
            return Step::Again;
        }
        let eoi = action.eoi;
        self.vcpu.apply(self.vm, self.s, action);
        match eoi {
            Some(eoi) => self.eoi(&eoi),
            None => Step::Again,
        }
    }

    /// Passes an EOI on to the IOAPIC, in the kernel or in user space (KVM_EXIT_IOAPIC_EOI).
    pub(super) fn eoi(&mut self, eoi: &Eoi) -> Step {
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
    pub(super) fn hypercall(&mut self, atomic: bool) -> Step {
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
    pub(super) fn map_gpa_range(&mut self) -> Option<Step> {
        self.s.load(Groups::CTRL.union(Groups::CODE));
        let long = self.in_64_bit_code();
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
        self.s.pending.completion = Completion::Hypercall;
        Some(Step::User)
    }

    pub(super) fn hlt(&mut self, atomic: bool) -> Step {
        let step = self.skip(atomic, &Known::HLT);
        if !matches!(step, Step::Again) {
            return step;
        }
        if self.s.apic.lapic.is_some() {
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

    pub(super) fn unhandled(&mut self, atomic: bool, suberror: u32) -> Step {
        if atomic {
            return Step::Slow;
        }
        self.set_exit(k::KVM_EXIT_INTERNAL_ERROR);
        let _ = self.run.write(off::UNION, suberror);
        let _ = self.run.write(off::UNION + 4, 0u32);
        Step::User
    }

    /// An intercepted exception goes to the guest, combined with what was being delivered.
    pub(super) fn exception(&mut self, e: &Exception) -> Step {
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
    pub(super) fn debug_exit(&mut self, e: &Exception) -> Step {
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
    pub(super) fn entry_failure(&mut self, reason: u64) -> Step {
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
        let mut f = crate::abi::uapi::EntryFailure {
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
        let _ = self.run.write(off::UNION + 8, self.s.last_stay.cpu);
        Step::User
    }
}
