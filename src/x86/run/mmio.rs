// SPDX-License-Identifier: GPL-2.0
//! Instructions that are emulated: accesses to devices in memory, INS and OUTS (KVM_EXIT_MMIO, KVM_EXIT_IO).
//!
//! Dispatch calls, with the vCPU's mutex held and interrupts on: guest memory may have to be faulted in.

use super::{Runner, Step};
use crate::abi::exits;
use crate::abi::stats::VcpuCounter;
use crate::abi::uapi::k;
use crate::x86::emul::{Insn, Kind, Move, Op, Pending};
use crate::x86::exit::NestedFault;
use crate::x86::vcpu::mmio::Emulated;
use crate::x86::vcpu::state::Completion;

impl Runner<'_> {
    /// Emulates the instruction that exited, by nested fault `fault` if by one; `fetched` if that is known already.
    pub(super) fn decode_and_emulate(
        &mut self,
        fetched: Option<Insn>,
        fault: Option<&NestedFault>,
        expected: impl Fn(Op) -> bool,
    ) -> Step {
        match fetched.map_or_else(|| self.fetch(None), Ok) {
            // Processors with MOVBE do not ask whether the guest's CPUID has it.
            Ok(insn) if insn.op == Op::Movbe && !self.s.cpuid.features.movbe => self.raise_ud(),
            Ok(insn) if expected(insn.op) => {
                self.s.pending.replay.clear();
                self.s.apic.tpr_access = None;
                self.emulate(&insn, fault)
            }
            // Another instruction than the one that exited: it was changed meanwhile, or it is not one of ours.
            Ok(insn) => self.not_emulated(&insn),
            Err(step) => step,
        }
    }

    pub(super) fn emulate(&mut self, insn: &Insn, fault: Option<&NestedFault>) -> Step {
        self.stats.add(VcpuCounter::Emulations, 1);
        let rip = self.s.cpu.regs.rip;
        let (result, actions) = loop {
            let done = {
                let view = self.memory().view_of(&self.s.ring);
                self.s.emulate(self.vm, &view, self.run, insn, fault)
            };
            let Emulated::Missing(page) = done.0 else {
                break done;
            };
            if let Some(step) = self.report_missing(page, false) {
                self.s.pending.insn = Some(*insn);
                self.s.pending.completion = Completion::Resume;
                return step;
            }
        };
        let mut step = Step::Again;
        for action in actions {
            match self.apply(action) {
                Step::User => step = Step::User,
                // Outside stays: there may be another one to send.
                Step::Leave => self.send_unsent(),
                _ => {}
            }
        }
        match result {
            Emulated::Done if self.s.pending.replay.next_posted() => {
                self.ask_access(Completion::Posted)
            }
            Emulated::Done => match (step, self.s.apic.tpr_access.take()) {
                (Step::Again, Some(write)) => self.tpr_access(rip, write),
                _ => step,
            },
            Emulated::TripleFault => self.shutdown(),
            // Dealt with above.
            Emulated::Missing(_) => Step::Again,
            Emulated::Unsupported => self.not_emulated(insn),
            Emulated::User => {
                self.s.pending.insn = Some(*insn);
                self.ask_access(Completion::Emulate)
            }
        }
    }

    /// Asks user space for the access that the emulation waits for, or tells it of one that it does not wait for.
    fn ask_access(&mut self, completion: Completion) -> Step {
        self.s.pending.completion = completion;
        match self.s.pending.replay.pending() {
            Some(Pending::Memory(f)) => {
                let mmio = exits::Mmio {
                    gpa: f.gpa,
                    data: f.data,
                    len: f.len.into(),
                    is_write: (f.kind == Kind::Write).into(),
                };
                self.ask(&mmio)
            }
            Some(Pending::PortIn(r)) => {
                let (width, port, count) = (r.width, r.port, r.count);
                self.ask_io(true, width, port, count)
            }
            Some(Pending::PortOut(r)) => {
                let (width, port, count) = (r.width, r.port, r.count);
                self.ask_io(false, width, port, count)
            }
            None => {
                self.s.pending.completion = Completion::Nothing;
                Step::User
            }
        }
    }

    /// User space has carried out the access of a plain load.
    pub(super) fn move_done(&mut self, m: &Move) -> Step {
        let data = self.run.get(exits::Mmio::DATA);
        self.s.finish_move(m, u64::from_le_bytes(data));
        Step::Again
    }

    /// User space has carried out an access of an emulated instruction, which goes on.
    pub(super) fn access_done(&mut self) -> Step {
        let data = self.run.get(exits::Mmio::DATA);
        if !self.s.pending.replay.complete(&data) {
            return Step::Again;
        }
        self.resume_emulation()
    }

    /// User space has been told of something that an emulated instruction has done; there may be more.
    pub(super) fn posted_done(&mut self) -> Step {
        let replay = &mut self.s.pending.replay;
        replay.complete(&[]);
        if replay.next_posted() {
            return self.ask_access(Completion::Posted);
        }
        Step::Again
    }

    /// User space has been told of memory that an emulated instruction misses; the instruction goes on.
    pub(super) fn resume_emulation(&mut self) -> Step {
        match self.s.pending.insn {
            Some(insn) => self.emulate(&insn, None),
            None => Step::Again,
        }
    }

    /// [`Runner::emulation_failed`] for an instruction that was decoded.
    pub(super) fn not_emulated(&mut self, insn: &Insn) -> Step {
        self.emulation_failed(insn.bytes(), insn.len())
    }

    /// The guest gets #UD; KVM_EXIT_INTERNAL_ERROR with the instruction's bytes
    /// (KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) instead or before, unless it is the fault of an
    /// application alone.
    pub(super) fn emulation_failed(&mut self, bytes: &[u8], len: u8) -> Step {
        if !self.vm.caps.exit_on_emulation_failure() {
            let step = self.raise_ud();
            if self.s.cpl() != 0 {
                self.s.pending.replay.clear();
                return step;
            }
        }
        // The length, then the bytes.
        let mut insn = [len; 16];
        for (i, to) in insn.iter_mut().skip(1).enumerate() {
            *to = bytes.get(i).copied().unwrap_or(0);
        }
        self.s.pending.replay.clear();
        self.ask(&exits::EmulationFailure {
            suberror: k::KVM_INTERNAL_ERROR_EMULATION,
            ndata: 4,
            flags: k::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES.into(),
            insn,
        })
    }
}
