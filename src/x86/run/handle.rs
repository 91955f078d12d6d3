// SPDX-License-Identifier: GPL-2.0
//! Dispatch: each exit to the function of its name, and what handlers have in common.
//!
//! The stay's loop and the outer loop call, with the vCPU's mutex held; `atomic` says that it is the stay's, where interrupts are off.

use super::{off, Runner, Step};
use crate::abi::stats::ExitClass;
use crate::abi::uapi::k;
use crate::linux::hrtimer;
use crate::linux::mmap::Shared;
use crate::pr_warn_ratelimited;
use crate::x86::cpu::events;
use crate::x86::cpu::regs::{Gpr, Mode};
use crate::x86::emul::Insn;
use crate::x86::exit::Exit;
use crate::x86::irqchip::lapic::Action;
use crate::x86::irqchip::msg::Vector;
use crate::x86::shared::request;
use crate::x86::vcpu::fetch::{FetchError, Known};
use crate::x86::vcpu::mmio::PIO_PAGE;
use crate::x86::vcpu::state::Completion;
use crate::x86::vendor::VcpuBackend;
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

    /// Finishes what the last exit to user space left open.
    pub(super) fn complete(&mut self) -> Step {
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

    pub(super) fn unhandled(&mut self, atomic: bool, suberror: u32) -> Step {
        if atomic {
            return Step::Slow;
        }
        self.set_exit(k::KVM_EXIT_INTERNAL_ERROR);
        let _ = self.run.write(off::UNION, suberror);
        let _ = self.run.write(off::UNION + 4, 0u32);
        Step::User
    }
}
