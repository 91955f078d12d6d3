// SPDX-License-Identifier: GPL-2.0
//! Exceptions: those that are intercepted, and those that handlers raise (SDM 3A 7; APM 2 8), and KVM_EXIT_DEBUG.
//!
//! Handlers call, with the vCPU's mutex held, inside a stay or outside. Nothing here sleeps.

use super::{off, Runner, Step};
use crate::abi::uapi::k;
use crate::linux::mmap::Shared;
use crate::x86::cpu::events;
use crate::x86::exit::{EventKind, Exception};
use crate::x86::vcpu::debug;
use kernel::prelude::*;

impl Runner<'_> {
    pub(super) fn raise(&mut self, e: Exception) -> Step {
        if self.s.raise(e) {
            Step::Again
        } else {
            let _ = self.triple_fault();
            Step::User
        }
    }

    pub(super) fn raise_gp(&mut self) -> Step {
        self.raise(events::exception(events::vector::GP, Some(0)))
    }

    /// KVM_EXIT_SHUTDOWN.
    pub(super) fn triple_fault(&mut self) -> Result<isize> {
        self.set_exit(k::KVM_EXIT_SHUTDOWN);
        Ok(0)
    }

    /// An intercepted exception goes to the guest, combined with what was being delivered.
    pub(super) fn exception(&mut self, e: &Exception) -> Step {
        if self.s.debug.active()
            && (e.vector == events::vector::BP
                || e.vector == events::vector::DB && self.s.debug.takes_debug())
        {
            return self.debug_exit(e);
        }
        let interrupted = self.s.events.interrupted.take();
        match events::raise_during(interrupted, *e) {
            Ok(e) => {
                if let (Some(ev), true) = (
                    interrupted,
                    e.vector == events::vector::DB || e.vector == events::vector::AC,
                ) {
                    // The event comes back after the exception's handler returns only if it was not one itself.
                    if ev.kind != EventKind::Exception {
                        self.s.events.interrupted = Some(ev);
                    }
                }
                self.s.events.exception = Some(e);
                if e.vector == events::vector::PF {
                    self.s.cpu.sregs.cr2 = e.payload;
                }
                Step::Again
            }
            Err(events::TripleFault) => {
                let _ = self.triple_fault();
                Step::User
            }
        }
    }

    /// KVM_EXIT_DEBUG (api.rst 5). What was being delivered stays pending.
    #[cold]
    pub(super) fn debug_exit(&mut self, e: &Exception) -> Step {
        if e.vector == events::vector::BP {
            self.s.breakpoint_reported();
        }
        self.s.debug.reported();
        let (dr6, dr7) = (
            e.payload & !debug::DR6_NONE | debug::DR6_NONE,
            self.s.cpu.dr7,
        );
        let pc = self.s.linear_rip();
        self.set_exit(k::KVM_EXIT_DEBUG);
        let _ = self.run.write(off::UNION, u32::from(e.vector));
        let _ = self.run.write(off::UNION + 8, pc);
        let _ = self.run.write(off::UNION + 16, dr6);
        let _ = self.run.write(off::UNION + 24, dr7);
        Step::User
    }
}
