// SPDX-License-Identifier: GPL-2.0
//! Instructions that are emulated: accesses to devices in memory, INS and OUTS (KVM_EXIT_MMIO, KVM_EXIT_IO).
//!
//! Dispatch calls, with the vCPU's mutex held and interrupts on: guest memory may have to be faulted in.

use super::{off, Runner, Step};
use crate::abi::stats::VcpuCounter;
use crate::abi::uapi::k;
use crate::linux::mmap::Shared;
use crate::x86::cpu::events;
use crate::x86::emul::{Op, Pending};
use crate::x86::vcpu::mmio::Emulated;
use crate::x86::vcpu::state::Completion;

impl Runner<'_> {
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
