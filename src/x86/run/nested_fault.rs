// SPDX-License-Identifier: GPL-2.0
//! Nested-paging faults: guest memory that is not mapped, and devices (SDM 3C 30.3.3; APM 2 15.25.6).
//!
//! Dispatch calls, with the vCPU's mutex held: [`Runner::short_fault`] in a stay, [`Runner::nested_fault`] outside.

use super::{Runner, Step};
use crate::abi::exits;
use crate::abi::stats::ExitClass;
use crate::abi::uapi::k;
use crate::mem::addr::{Gpa, PAGE_SIZE};
use crate::mem::fault::FaultOutcome;
use crate::x86::emul::Op;
use crate::x86::exit::NestedFault;
use crate::x86::irqchip::lapic::base;
use crate::x86::vcpu::mmio::Accessed;
use crate::x86::vcpu::state::Completion;
use crate::x86::vendor::{Stay, VcpuBackend};
use kernel::prelude::*;

impl Runner<'_> {
    /// The short ways of a nested fault, in a stay: resident memory, and a device access by a plain move, which is an
    /// exit of another class. [`Step::Slow`] where they do not go.
    #[inline]
    pub(super) fn short_fault(&mut self, f: &NestedFault, stay: &Stay<'_>) -> (ExitClass, Step) {
        const SLOW: (ExitClass, Step) = (ExitClass::NestedFault, Step::Slow);
        if f.gpa.page().0 == base::DEFAULT_ADDRESS && self.s.wants_apic_page(self.vm) {
            return SLOW;
        }
        let accessed = {
            // What is written by its help goes to devices: no dirty ring.
            let memory = self.memory();
            let view = memory.view();
            if let Some(entry) = view.memory_at(f.gpa, f.write) {
                let by = &mut self.s.faulting(&self.vcpu.shared);
                let how = (f.write, f.fetch);
                let mapped = memory.fault_resident(entry, by, f.gpa, how, stay.own_mm());
                return if mapped {
                    (ExitClass::NestedFault, Step::Resume)
                } else {
                    SLOW
                };
            }
            if self.s.events.interrupted.is_some() {
                drop(view);
                return (ExitClass::NestedFault, self.vectoring_failed(f));
            }
            self.s.access_device(self.vm, &view, f)
        };
        let step = match accessed {
            Accessed::Other => return SLOW,
            Accessed::Done(action) => self.apply(action),
            // Whom that woke asks by a request.
            Accessed::Signalled => Step::Resume,
            Accessed::User(d) => {
                if !d.completion.is_store() {
                    self.s.pending.completion = Completion::Move(d.completion);
                }
                self.ask(&exits::Mmio {
                    gpa: f.gpa.0,
                    data: d.value.to_le_bytes(),
                    len: d.completion.size().into(),
                    is_write: d.completion.is_store().into(),
                })
            }
        };
        (ExitClass::Mmio, step)
    }

    /// A fault in the nested page tables. The stay's loop tries the short ways by itself.
    pub(super) fn nested_fault(&mut self, f: &NestedFault, stay: Option<&Stay<'_>>) -> Step {
        if stay.is_some() {
            return Step::Slow;
        }
        let fetched = core::mem::take(&mut self.s.pending.fetched);
        let insn = self.s.pending.insn.filter(|_| fetched);
        if f.gpa.page().0 == base::DEFAULT_ADDRESS && self.s.wants_apic_page(self.vm) {
            if let Err(e) = self.vm.memory.pin_page(f.gpa.page()) {
                return Step::Fail(e);
            }
            return Step::Again;
        }
        if insn.is_none() {
            if let Some(step) = self.map(f) {
                return step;
            }
        }
        self.to_device = true;
        self.s.pending.io_port = None;
        if f.walk {
            return self.interpret(f);
        }
        self.decode_and_emulate(insn, Some(f), |op| !matches!(op, Op::Ins | Op::Outs))
    }

    /// The processor's log of written pages is full.
    #[cold]
    pub(super) fn log_full(&mut self, stay: Option<&Stay<'_>>) -> Step {
        // At the end of the stay it has been emptied.
        if let Some(stay) = stay {
            self.collect_write_log(stay);
        }
        Step::Again
    }

    /// Takes what the processor has logged over to the dirty logs.
    #[inline(always)]
    pub(super) fn collect_write_log(&mut self, stay: &Stay<'_>) {
        if self.s.write_log {
            self.take_write_log(stay);
        }
    }

    #[inline(never)]
    fn take_write_log(&mut self, stay: &Stay<'_>) {
        let memory = self.memory();
        let view = memory.view_of(&self.s.ring);
        self.s
            .hw
            .take_write_log(stay, |page| memory.note_written(&view, page));
    }

    /// Has the processor log writes, or no more, as the slots want it. ENOMEM.
    #[cold]
    pub(super) fn follow_write_log(&mut self) -> Result {
        let on = self.memory().logs_writes();
        self.s.hw.set_write_log(on)?;
        self.s.write_log = on;
        Ok(())
    }

    /// Maps the memory that is missing; `None`: it is a device, and an instruction has accessed it.
    fn map(&mut self, f: &NestedFault) -> Option<Step> {
        // What SMM sees besides reports nothing.
        if !self.s.smm.is_active() {
            if let Some(step) = self.bring_in(f.gpa, f.write) {
                return Some(step);
            }
        }
        let mut outcome = self.fault(f, !self.s.pv.async_pf_is_on());
        if let Ok(FaultOutcome::Awaited(hva)) = outcome {
            if self.send_for(f, hva) {
                return Some(Step::Again);
            }
            outcome = self.fault(f, true);
        }
        let step = match outcome {
            Ok(
                FaultOutcome::Mapped
                | FaultOutcome::Retry
                | FaultOutcome::Awaited(_)
                | FaultOutcome::Poisoned,
            ) => Step::Again,
            Ok(FaultOutcome::BadUserMemory) => self.memory_fault(f.gpa, 0, EFAULT),
            Ok(FaultOutcome::Unsaved) => self.unsaved(f.gpa),
            Ok(FaultOutcome::Mmio) if self.s.events.interrupted.is_some() => {
                self.vectoring_failed(f)
            }
            Ok(FaultOutcome::Mmio) => return None,
            Err(e) => Step::Fail(e),
        };
        Some(step)
    }

    fn fault(&mut self, f: &NestedFault, may_wait: bool) -> Result<FaultOutcome> {
        let memory = self.memory();
        let mut by = self.s.faulting(&self.vcpu.shared);
        by.may_wait = may_wait;
        memory.fault(self.vm.mm(), &mut by, f.gpa, f.write, f.fetch)
    }

    /// So much has been written since the reset point that no more can be put back.
    #[cold]
    pub(super) fn unsaved(&mut self, gpa: Gpa) -> Step {
        self.memory_fault(gpa, 0, ENOSPC)
    }

    /// KVM_RUN fails with `error` because of the page at `gpa`: KVM_EXIT_MEMORY_FAULT tells which.
    #[cold]
    pub(super) fn memory_fault(&mut self, gpa: Gpa, flags: u64, error: Error) -> Step {
        let _ = self.ask(&exits::MemoryFault {
            flags,
            gpa: gpa.page().0,
            size: PAGE_SIZE,
        });
        Step::Fail(error)
    }

    /// The IDT, a descriptor or the stack of an event's delivery is in device memory: no instruction stands for the
    /// access.
    #[cold]
    fn vectoring_failed(&mut self, f: &NestedFault) -> Step {
        // KVM's order: second and first piece of information about the exit with its reason between them, address, CPU.
        let known = [0, 0, 0, f.gpa.0, self.s.last_stay.cpu.into()];
        let suberror = k::KVM_INTERNAL_ERROR_DELIVERY_EV;
        self.ask(&exits::InternalError::new(suberror, &known))
    }
}
