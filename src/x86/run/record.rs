// SPDX-License-Identifier: GPL-2.0
//! What the recorder is told of exits and entries ([`crate::bus::recorder`]).
//!
//! The stay's loop and the outer loop call, with the vCPU's mutex held, and only while somebody records.

use super::{Runner, Step};
use crate::abi::exits;
use crate::abi::record::{flags, Decision, Entry, Outcome, Path};
use crate::abi::stats::ExitClass;
use crate::bus::recorder::Recorder;
use crate::linux::boot_cpu;
use crate::x86::exit::Exit;
use crate::x86::vendor::{EntryParams, VcpuBackend};

impl Runner<'_> {
    /// Begins to record, or ends it, as user space wants it.
    #[cold]
    pub(super) fn follow_recorder(&mut self) {
        let wanted = self.vcpu.shared.recording.get();
        match (&wanted, &self.s.recorder) {
            (Some(ring), Some(recorder)) if recorder.is_to(ring) => {}
            _ => self.s.recorder = wanted.map(|ring| Recorder::new(ring, boot_cpu::rdtsc())),
        }
    }

    /// The guest exited at `now`. Registers are what they were then.
    #[inline(never)]
    pub(super) fn record_exit(&mut self, now: u64, exit: &Exit) {
        let regs = &self.s.cpu.regs;
        let subject = exit.subject(regs);
        let flags = if self.s.hw.was_interrupted() {
            flags::INTERRUPTED
        } else {
            0
        };
        if let Some(recorder) = &mut self.s.recorder {
            recorder.exited(now, regs.rip, subject, flags);
        }
    }

    /// The last exit has been dealt with at `now`: with this result, and `entry` after it.
    #[inline(never)]
    pub(super) fn record(
        &mut self,
        now: u64,
        class: ExitClass,
        step: &Step,
        path: Path,
        entry: Entry,
    ) {
        let (decision, reason) = match step {
            Step::Resume => (Decision::Resume, 0),
            Step::Again | Step::Slow => (Decision::Again, 0),
            Step::Leave => (Decision::Leave, 0),
            Step::User => (Decision::User, self.run.get(exits::EXIT_REASON)),
            Step::Fail(e) => (Decision::Fail, e.to_errno().unsigned_abs()),
        };
        let cpu = self.s.last_stay.cpu;
        let outcome = Outcome {
            class,
            decision,
            path,
            reason,
        };
        if let Some(recorder) = &mut self.s.recorder {
            recorder.handled(now, cpu, &outcome, entry);
        }
    }

    /// The guest is entered at `now`, after an exit of class `since` in the same stay if there was one.
    #[inline(never)]
    pub(super) fn record_entry(
        &mut self,
        now: u64,
        cpu: u32,
        since: Option<ExitClass>,
        params: &EntryParams,
    ) {
        let mut entry = Entry::default();
        for (on, flag) in [
            (params.flush, flags::FLUSH),
            (params.irq_window, flags::IRQ_WINDOW),
            (params.nmi_window, flags::NMI_WINDOW),
        ] {
            if on {
                entry.flags |= flag;
            }
        }
        if let Some(event) = &params.inject {
            entry.inject = event.information();
            entry.error_code = event.error_code.unwrap_or(0);
        }
        match since {
            Some(class) => self.record(now, class, &Step::Again, Path::Stay, entry),
            None => {
                let rip = self.s.cpu.regs.rip;
                if let Some(recorder) = &mut self.s.recorder {
                    recorder.entered(now, cpu, rip, entry);
                }
            }
        }
    }
}
