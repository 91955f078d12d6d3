// SPDX-License-Identifier: GPL-2.0
//! What the recorder is told of exits and entries ([`crate::bus::recorder`]).
//!
//! The stay's loop and the outer loop call, with the vCPU's mutex held, and only while somebody records.

use super::{Runner, Step};
use crate::abi::exits;
use crate::abi::record::{flags, Decision, Entry, Outcome, Path};
use crate::abi::stats::ExitClass;
use crate::bus::recorder::Recorder;
use crate::linux::{boot_cpu, events};
use crate::x86::exit::Exit;
use crate::x86::vendor::{EntryParams, VcpuBackend};

impl Runner<'_> {
    /// Begins to record, or ends it, as user space and those who listen to tracepoints want it.
    #[cold]
    pub(super) fn follow_recorder(&mut self) {
        let shared = &self.vcpu.shared;
        let (ring, heard) = (shared.recording.get(), events::are_heard());
        self.s.heard = heard;
        match &mut self.s.recorder {
            _ if ring.is_none() && !heard => self.s.recorder = None,
            Some(recorder) if recorder.is_to(&ring) => recorder.set_heard(heard),
            _ => {
                let now = boot_cpu::rdtsc();
                self.s.recorder = Some(Recorder::new(shared.id, ring, heard, now));
            }
        }
    }

    /// The guest exited at `now`. Registers are what they were then.
    #[inline(never)]
    pub(super) fn record_exit(&mut self, now: u64, exit: &Exit) {
        let regs = &self.s.cpu.regs;
        let subject = exit.subject(regs);
        let cpu = self.s.last_stay.cpu;
        let flags = if self.s.hw.was_interrupted() {
            flags::INTERRUPTED
        } else {
            0
        };
        if let Some(recorder) = &mut self.s.recorder {
            recorder.exited(now, cpu, regs.rip, subject, flags);
        }
    }

    /// The last exit has been dealt with at `now`, and the entry before it is repeated.
    #[inline(never)]
    pub(super) fn record_repeated(&mut self, now: u64, class: ExitClass, resumed: bool) {
        let decision = if resumed {
            Decision::Resume
        } else {
            Decision::Again
        };
        if let Some(recorder) = &mut self.s.recorder {
            recorder.repeated(now, class, decision);
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
        let outcome = Outcome {
            class,
            decision,
            path,
            reason,
        };
        if let Some(recorder) = &mut self.s.recorder {
            recorder.handled(now, &outcome, entry);
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
