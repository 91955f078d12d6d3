// SPDX-License-Identifier: GPL-2.0
//! Dispatch: each exit to the function of its name, and what handlers have in common.
//!
//! The stay's loop and the outer loop call, with the vCPU's mutex held. The stay's hands its [`Stay`] down, with which
//! nothing may sleep.

use super::{Runner, Step};
use crate::abi::exits;
use crate::abi::exits::Ask;
use crate::abi::stats::ExitClass;
use crate::linux::cache;
use crate::pr_warn_ratelimited;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::Mode;
use crate::x86::emul::Insn;
use crate::x86::exit::Exit;
use crate::x86::vcpu::fetch::{FetchError, Known};
use crate::x86::vcpu::state::Completion;
use crate::x86::vendor::{Stay, VcpuBackend};
use kernel::prelude::*;

impl Runner<'_> {
    /// Handles an exit inside the stay, the frequent ones without searching all kinds twice.
    #[inline(always)]
    pub(super) fn handle_frequent(&mut self, exit: &Exit, stay: &Stay<'_>) -> (ExitClass, Step) {
        match exit {
            Exit::HostInterrupt => (ExitClass::ExternalInterrupt, Step::Leave),
            Exit::Cpuid => (ExitClass::Cpuid, self.cpuid(Some(stay))),
            Exit::Rdmsr => (ExitClass::Rdmsr, self.rdmsr(Some(stay))),
            Exit::Wrmsr => (ExitClass::Wrmsr, self.wrmsr(Some(stay))),
            Exit::Hypercall => (ExitClass::Hypercall, self.hypercall(Some(stay))),
            Exit::Hlt => (ExitClass::Hlt, self.hlt(Some(stay))),
            Exit::Io(io) if !io.string => (ExitClass::Io, self.io(io, Some(stay))),
            Exit::NestedFault(f) => self.short_fault(f, stay),
            other => (other.class(), self.handle(other, Some(stay))),
        }
    }

    /// Handles an exit, whichever it is: one without an arm does not compile.
    #[inline(never)]
    pub(super) fn handle(&mut self, exit: &Exit, stay: Option<&Stay<'_>>) -> Step {
        match exit {
            Exit::HostInterrupt => Step::Leave,
            Exit::HostNmi | Exit::NmiWindow | Exit::SplitLock => Step::Again,
            // The new TPR has been taken over, and with it perhaps an interrupt let in.
            Exit::TprBelowThreshold => Step::Again,
            // The end of the stay is where the kernel handles it; its task work comes next.
            Exit::HostMachineCheck | Exit::EntryMachineCheck(_) if stay.is_some() => Step::Slow,
            Exit::HostMachineCheck => Step::Leave,
            Exit::EntryMachineCheck(reason) => self.entry_failure(*reason, stay),
            Exit::PreemptionTimer => self.preemption_timer(),
            Exit::IrqWindow => self.irq_window(),
            Exit::Cpuid => self.cpuid(stay),
            Exit::Rdmsr => self.rdmsr(stay),
            Exit::Wrmsr => self.wrmsr(stay),
            Exit::Hypercall => self.hypercall(stay),
            Exit::Hlt => self.hlt(stay),
            Exit::Pause => self.pause(stay),
            Exit::CacheInvalidate => self.write_back_caches(stay),
            Exit::MonitorMwait => self.monitor_mwait(stay),
            // VMX and SVM instructions do not exist for the guest.
            Exit::Undefined => self.raise_ud(),
            Exit::Rdpmc => self.raise_gp(),
            Exit::Xsetbv => self.xsetbv(stay),
            Exit::Io(io) => self.io(io, stay),
            Exit::NestedFault(f) => self.nested_fault(f, stay),
            Exit::LogFull => self.log_full(stay),
            Exit::CrAccess(c) => self.cr_access(c, stay),
            Exit::DrAccess => self.dr_access(stay),
            Exit::Exception(e) if e.vector == vector::UD => self.undefined(e, stay),
            Exit::Exception(e) => self.exception(e),
            Exit::DescriptorTable => self.descriptor_table(stay),
            Exit::Rsm => self.rsm(stay),
            Exit::TripleFault => self.processor_shutdown(stay),
            Exit::TaskSwitch(t) => self.task_switch(t, stay),
            Exit::VirtualEoi(vector) => self.virtual_eoi(*vector),
            Exit::ApicWrite(offset) => self.apic_write(*offset),
            Exit::EntryFailure(reason) => self.entry_failure(*reason, stay),
            Exit::Unknown(reason) => self.unknown(*reason, stay),
        }
    }

    /// Finishes what the last exit to user space left open, unless the vCPU is at another instruction now (KVM does
    /// so for IN and OUT).
    pub(super) fn complete(&mut self) -> Step {
        if let Some(la) = self.s.pending.came_from.take() {
            let over = self.s.pending.completion == Completion::Posted;
            if !over && la != self.s.linear_rip() {
                self.s.pending.clear();
            }
        }
        match core::mem::replace(&mut self.s.pending.completion, Completion::Nothing) {
            Completion::Nothing => Step::Again,
            Completion::PortOut => self.skip(&Known::OUT, None),
            Completion::PortIn(width) => self.port_in_done(width),
            Completion::Move(m) => self.move_done(&m),
            Completion::Rdmsr => self.rdmsr_done(),
            Completion::Wrmsr => self.wrmsr_done(),
            Completion::Hypercall => self.hypercall_done(),
            Completion::HypervCall => self.hyperv_call_done(),
            Completion::HypervDebug => self.hyperv_debug_done(),
            Completion::Emulate => self.access_done(),
            Completion::Posted => self.posted_done(),
            Completion::Resume => self.resume_emulation(),
        }
    }

    /// Returns to user space with `exit`.
    #[inline(always)]
    pub(super) fn ask<E: Ask>(&self, exit: &E) -> Step {
        let page = self.run.first();
        page.put(exits::EXIT_REASON, E::REASON);
        exit.put(page);
        Step::User
    }

    /// KVM_EXIT_INTERNAL_ERROR: an exit that is not handled, for the reason `suberror`.
    #[cold]
    pub(super) fn unhandled(&mut self, suberror: u32, stay: Option<&Stay<'_>>) -> Step {
        if stay.is_some() {
            return Step::Slow;
        }
        self.ask(&exits::InternalError::new(suberror, &[]))
    }

    /// KVM_EXIT_UNKNOWN.
    #[cold]
    fn unknown(&mut self, reason: u64, stay: Option<&Stay<'_>>) -> Step {
        if stay.is_some() {
            return Step::Slow;
        }
        let id = self.vcpu.shared.id;
        pr_warn_ratelimited!("vCPU {}: unknown exit reason {:#x}\n", id, reason);
        self.ask(&exits::Unknown { reason })
    }

    /// Steps over the current instruction, which is one of those that `known` describes.
    #[inline(always)]
    pub(super) fn skip(&mut self, known: &Known, stay: Option<&Stay<'_>>) -> Step {
        if let Some(n) = self.s.hw.insn_len() {
            self.s.advance(n);
            return Step::Again;
        }
        self.skip_decoded(known, stay)
    }

    #[inline(never)]
    fn skip_decoded(&mut self, known: &Known, stay: Option<&Stay<'_>>) -> Step {
        // Reads alone need no dirty ring.
        if self.s.skip_known(&self.memory().view(), known) {
            return Step::Again;
        }
        self.skip_fetched(known, stay)
    }

    /// [`Runner::skip`] where the instruction has prefixes, or its code is not to be had in a hurry.
    #[cold]
    #[inline(never)]
    fn skip_fetched(&mut self, known: &Known, stay: Option<&Stay<'_>>) -> Step {
        let view = self.memory().view_of(&self.s.ring);
        match self.s.skip(&view, stay, known) {
            Ok(()) => Step::Again,
            Err(e) => {
                drop(view);
                self.fetch_failed(e)
            }
        }
    }

    /// Nothing has to be written back unless a device of the guest reaches memory past the caches. Then it may lie in
    /// those of any CPU that the vCPU was on. INVD, which would lose it, writes back too.
    #[inline(never)]
    pub(super) fn write_back_caches(&mut self, stay: Option<&Stay<'_>>) -> Step {
        if self.vm.memory.is_incoherent() {
            if stay.is_some() {
                return Step::Slow;
            }
            cache::write_back_all();
        }
        self.skip(&Known::INVALIDATE, stay)
    }

    /// The bits of a general register that an instruction moves whose operand is 64 bits wide in 64-bit code and 32
    /// bits elsewhere. Code segment and control registers are loaded.
    pub(super) fn operand_mask(&self) -> u64 {
        match self.s.cpu.sregs.mode(self.s.cpu.regs.rflags) {
            Mode::Long => u64::MAX,
            _ => 0xffff_ffff,
        }
    }

    /// The instruction at RIP; else what its fetch comes to.
    pub(super) fn fetch(&mut self, stay: Option<&Stay<'_>>) -> Result<Insn, Step> {
        let fetched = {
            let view = self.memory().view_of(&self.s.ring);
            self.s.fetch(&view, stay).copied()
        };
        fetched.map_err(|e| self.fetch_failed(e))
    }

    pub(super) fn fetch_failed(&mut self, e: FetchError) -> Step {
        match e {
            FetchError::Sleep => Step::Slow,
            FetchError::Reenter | FetchError::Fault(_) => Step::Again,
            FetchError::Unsupported(bytes, n) => self.emulation_failed(&bytes, n),
        }
    }
}
