// SPDX-License-Identifier: GPL-2.0
//! Task switches, which VMX leaves to the hypervisor (SDM 3C 26.4.2). SVM's processors do them.
//!
//! Dispatch calls, with the vCPU's mutex held, outside stays: guest memory may have to be faulted in.

use super::{Runner, Step};
use crate::abi::uapi::k;
use crate::x86::emul::Stop;
use crate::x86::exit::{EventKind, Exception, TaskSwitch, TaskSwitchBy};
use crate::x86::task::Failed;
use crate::x86::vcpu::task::Switched;
use crate::x86::vendor::{Stay, VcpuBackend};

impl Runner<'_> {
    /// A task switch, by an instruction or by the delivery of an event through a task gate.
    #[cold]
    pub(super) fn task_switch(&mut self, t: &TaskSwitch, stay: Option<&Stay<'_>>) -> Step {
        if stay.is_some() {
            return Step::Slow;
        }
        let event = match t.by {
            TaskSwitchBy::Gate => self.s.events.interrupted,
            _ => None,
        };
        // What an instruction asks for comes after it.
        let skip = match event {
            None => self.s.hw.insn_len().unwrap_or(0),
            Some(e) => e.insn_len,
        };
        let code = event
            .filter(|e| e.kind == EventKind::Exception)
            .and_then(|e| e.error_code);
        let switched = {
            let view = self.memory().view_of(&self.s.ring);
            self.s.switch_task(self.vm, &view, t, skip, code)
        };
        let stop = match switched {
            Switched::Missing(page) => {
                return self.report_missing(page, false).unwrap_or(Step::Again)
            }
            Switched::Failed(Failed::Before(stop)) => {
                return match Self::exception_of(stop) {
                    // The event's delivery is what has failed.
                    Some(e) if event.is_some() => self.exception(&e),
                    Some(e) => self.raise(e),
                    None => self.unhandled(k::KVM_INTERNAL_ERROR_EMULATION, None),
                };
            }
            Switched::Failed(Failed::After(stop)) => Some(stop),
            Switched::Done => None,
        };
        let mut i = self.s.hw.interruptibility();
        match (t.by, event) {
            (TaskSwitchBy::Iret, _) => i.nmi = false,
            (_, Some(e)) => {
                self.s.events.interrupted = None;
                i.nmi |= e.kind == EventKind::Nmi;
            }
            _ => {}
        }
        self.s.hw.set_interruptibility(i);
        match stop.and_then(Self::exception_of) {
            Some(e) => self.raise(e),
            None => Step::Again,
        }
    }

    pub(super) fn exception_of(stop: Stop) -> Option<Exception> {
        match stop {
            Stop::Exception {
                vector,
                error_code,
                cr2,
            } => Some(Exception {
                vector,
                error_code,
                payload: cr2.unwrap_or(0),
            }),
            _ => None,
        }
    }
}
