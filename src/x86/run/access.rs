// SPDX-License-Identifier: GPL-2.0
//! Exits for ports and memory: devices, and guest memory that is not mapped.

use super::{off, Runner, Step};
use crate::abi::stats::{ExitClass, VcpuCounter};
use crate::abi::uapi::k;
use crate::linux::mmap::Shared;
use crate::mem::memory::FaultOutcome;
use crate::mem::mmu::InOwnMm;
use crate::x86::cpu::events;
use crate::x86::cpu::regs::Gpr;
use crate::x86::emul::{mask, Op, Pending};
use crate::x86::exit::{Io, NestedFault};
use crate::x86::irqchip::lapic::base;
use crate::x86::vcpu::fetch::Known;
use crate::x86::vcpu::mmio::{Accessed, Emulated, PIO_PAGE};
use crate::x86::vcpu::state::Completion;
use kernel::prelude::*;

impl Runner<'_> {
    pub(super) fn io(&mut self, io: &Io, atomic: bool) -> Step {
        if io.string {
            if atomic {
                return Step::Slow;
            }
            self.s.pending.io_port = Some((io.port, io.width));
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
            let value = (self.s.cpu.regs.get(Gpr::Rax) & mask(io.width)) as u32;
            // RIP moves only after the write, but the fetch that may have to sleep comes first.
            let claimed = self.vm.chip.claims_port(io.port, io.width);
            if claimed {
                let step = self.skip(atomic, &Known::OUT);
                if matches!(step, Step::Again) {
                    let _ = self.vm.pio_write(io.port, io.width, value);
                }
                return step;
            }
            if self.vm.pio_event(io.port, io.width, value) {
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
        self.s.pending.completion = if io.input {
            Completion::PortIn(io.width)
        } else {
            Completion::PortOut
        };
        Step::User
    }

    pub(super) fn fill_io(&self, input: bool, width: u8, port: u16, count: u32) {
        let direction = if input {
            k::KVM_EXIT_IO_IN
        } else {
            k::KVM_EXIT_IO_OUT
        } as u8;
        let run = self.run.first();
        let _ = run.write(off::UNION, direction);
        let _ = run.write(off::UNION + 1, width);
        let _ = run.write(off::UNION + 2, port);
        let _ = run.write(off::UNION + 4, count);
        let _ = run.write(off::UNION + 8, PIO_PAGE as u64);
    }

    /// The short ways of a nested fault, in a stay: resident memory, and a device access by a plain move. `None` where they do not
    /// go.
    #[inline]
    pub(super) fn short_fault(&mut self, f: &NestedFault) -> Option<Step> {
        if f.gpa.page().0 == base::DEFAULT_ADDRESS && self.s.wants_apic_page(self.vm) {
            return None;
        }
        let accessed = {
            let view = self.vm.memory.view();
            if !view.is_device(f.gpa, f.write) {
                // SAFETY: In a stay interrupts are off; KVM_RUN is refused outside the VM's mm.
                let inside = unsafe { InOwnMm::new() };
                let mapped = self
                    .vm
                    .memory
                    .fault_resident(&view, f.gpa, f.fetch, &inside);
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
                Some(self.apply(action))
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
                self.s.pending.completion = Completion::Move(d.completion);
                Some(Step::User)
            }
        }
    }

    /// The IDT, a descriptor or the stack of an event's delivery is in device memory: no instruction stands for the access.
    #[cold]
    pub(super) fn vectoring_failed(&mut self, f: &NestedFault) -> Step {
        self.set_exit(k::KVM_EXIT_INTERNAL_ERROR);
        let _ = self
            .run
            .write(off::UNION, k::KVM_INTERNAL_ERROR_DELIVERY_EV);
        let _ = self.run.write(off::UNION + 4, 5u32);
        // KVM's order: second and first piece of information about the exit with its reason between them, address, CPU.
        for (i, v) in [0, 0, 0, f.gpa.0, u64::from(self.s.last_stay.cpu)]
            .into_iter()
            .enumerate()
        {
            let _ = self.run.write(off::UNION + 8 + 8 * i, v);
        }
        Step::User
    }

    pub(super) fn nested_fault(&mut self, f: &NestedFault) -> Step {
        if f.gpa.page().0 == base::DEFAULT_ADDRESS && self.s.wants_apic_page(self.vm) {
            if let Err(e) = self.vm.memory.pin_page(f.gpa.page()) {
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
                self.s.pending.io_port = None;
                self.decode_and_emulate(|op| !matches!(op, Op::Ins | Op::Outs))
            }
            Err(e) => Step::Fail(e),
        }
    }

    pub(super) fn decode_and_emulate(&mut self, expected: impl Fn(Op) -> bool) -> Step {
        match self.fetch(false) {
            Ok(insn) if expected(insn.op) => {
                self.s.pending.replay.clear();
                self.emulate(&insn)
            }
            // Another instruction than the one that exited: it was changed meanwhile, or it is not one of ours.
            Ok(insn) => self.not_emulated(&insn),
            Err(step) => step,
        }
    }

    pub(super) fn emulate(&mut self, insn: &crate::x86::emul::Insn) -> Step {
        self.stats.add(VcpuCounter::Emulations, 1);
        let (result, actions) = {
            let view = self.vm.memory.view();
            self.s.emulate(self.vm, &view, self.run, insn)
        };
        let mut step = Step::Again;
        for action in actions {
            if let Step::User = self.apply(action) {
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
                self.s.pending.insn = Some(*insn);
                self.s.pending.completion = Completion::Emulate;
                match self.s.pending.replay.pending() {
                    Some(Pending::Memory(f)) => {
                        let _ = self.run.write(off::UNION, f.gpa);
                        let _ = self.run.copy_in(off::UNION + 8, &f.data);
                        let _ = self.run.write(off::UNION + 16, u32::from(f.len));
                        let _ = self.run.write(
                            off::UNION + 20,
                            u8::from(f.kind == crate::x86::emul::Kind::Write),
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
                    None => self.s.pending.completion = Completion::Nothing,
                }
                Step::User
            }
        }
    }

    /// [`Runner::emulation_failed`] for an instruction that was decoded.
    pub(super) fn not_emulated(&mut self, insn: &crate::x86::emul::Insn) -> Step {
        let mut bytes = [0; 15];
        for (to, from) in bytes.iter_mut().zip(insn.bytes()) {
            *to = *from;
        }
        self.emulation_failed(&bytes, insn.len())
    }

    /// The guest gets #UD; KVM_EXIT_INTERNAL_ERROR with the instruction's bytes
    /// (KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) instead or before, unless it is the fault of an application alone.
    pub(super) fn emulation_failed(&mut self, bytes: &[u8; 15], len: u8) -> Step {
        if !self.vm.caps.exit_on_emulation_failure() {
            let step = self.raise(events::exception(events::vector::UD, None));
            if self.s.cpl() != 0 {
                self.s.pending.replay.clear();
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
        self.s.pending.replay.clear();
        Step::User
    }
}
