// SPDX-License-Identifier: GPL-2.0
//! Events of a vCPU: what is pending, what holds it back, and raising exceptions (SDM 3A 7.8, 7.9, APM 2 8.5).
//!
//! This file adds to [`State`] what the run loop asks for before an entry and what handlers of exits raise, under the
//! vCPU's mutex. None of it sleeps.

use crate::x86::cpu::events;
use crate::x86::cpu::events::Gate;
use crate::x86::cpu::regs::rflags;
use crate::x86::exit::Exception;
use crate::x86::vcpu::state::State;
use crate::x86::vendor::VcpuBackend;
use crate::x86::vm::Vm;

impl State {
    /// What holds events back.
    pub(crate) fn gate(&mut self) -> Gate {
        let i = self.hw.interruptibility();
        Gate {
            if_flag: self.cpu.regs.rflags & rflags::IF != 0,
            sti: i.sti,
            mov_ss: i.mov_ss,
            nmi: i.nmi,
        }
    }

    /// Raises an exception in the guest. Returns false when it shuts the guest down.
    #[must_use]
    pub(crate) fn raise(&mut self, e: Exception) -> bool {
        match events::raise(self.events.exception, e) {
            Ok(e) => {
                self.put_exception(e);
                true
            }
            Err(events::TripleFault) => false,
        }
    }

    /// The next entry delivers this exception. RF is set here: AMD's processors do it neither at the exit of an
    /// intercepted fault nor when the event is injected.
    pub(crate) fn put_exception(&mut self, e: Exception) {
        if e.vector == events::vector::PF {
            self.cpu.sregs.cr2 = e.payload;
        }
        if events::reporting(e.vector) == events::Reporting::Fault {
            self.cpu.regs.rflags |= rflags::RF;
        }
        self.events.exception = Some(e);
    }

    /// A #DB that waits changes DR6 now instead of at its delivery: for a user space that saves exceptions without
    /// payload.
    pub(crate) fn deliver_payload(&mut self) {
        if let Some(x) = &mut self.events.exception {
            if x.vector == events::vector::DB {
                self.cpu.dr6 |= core::mem::take(&mut x.payload);
            }
        }
    }

    /// Whether an interrupt of the 8259s, wherever they are, can reach the vCPU.
    #[inline]
    pub(crate) fn accepts_external(&self) -> bool {
        self.apic
            .lapic
            .as_ref()
            .is_none_or(|l| l.lint0_accepts_extint())
    }

    /// Whether something ends HLT, with interrupts let in: an interrupt, however it will be delivered.
    pub(crate) fn interrupt_pending(&self, vm: &Vm) -> bool {
        self.has_interrupt(vm)
            || self.apic.virtualized
                && self
                    .apic
                    .lapic
                    .as_ref()
                    .is_some_and(|l| l.pending().is_some())
    }

    /// Whether an interrupt (not an NMI) waits to be injected when the guest lets interrupts in.
    pub(crate) fn has_interrupt(&self, vm: &Vm) -> bool {
        if self.events.held.is_some() {
            return true;
        }
        if self.events.external.is_some() {
            return self.accepts_external();
        }
        match &self.apic.lapic {
            Some(l) => {
                let waits = if self.apic.virtualized {
                    self.held_vector().is_some()
                } else {
                    l.pending().is_some()
                };
                waits || (vm.chip.pic_output() && l.lint0_accepts_extint())
            }
            None => false,
        }
    }

    /// Acknowledges the interrupt of [`State::has_interrupt`]; its vector.
    pub(crate) fn acknowledge(&mut self, vm: &Vm) -> Option<u8> {
        if let Some(v) = self.events.held.take() {
            return Some(v);
        }
        if self.accepts_external() {
            if let Some(v) = self.events.external.take() {
                return Some(v);
            }
            if self.apic.lapic.is_some() && vm.chip.pic_output() {
                return vm.chip.pic_acknowledge();
            }
        }
        if self.apic.virtualized {
            let v = self.held_vector()?;
            if let Some(hv) = &mut self.hv {
                hv.release(v);
            }
            return Some(v);
        }
        let l = self.apic.lapic.as_mut()?;
        let v = l.pending()?;
        l.ack(v);
        if self.hv.as_ref().is_some_and(|hv| hv.ends_at_once(v.0)) {
            // It is the highest in service.
            let _ = l.eoi();
        }
        Some(v.0)
    }
}
