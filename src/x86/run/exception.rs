// SPDX-License-Identifier: GPL-2.0
//! Exceptions: those that are intercepted, and those that handlers raise (SDM 3A 7; APM 2 8), and KVM_EXIT_DEBUG.
//!
//! Handlers call, with the vCPU's mutex held, inside a stay or outside. Nothing here sleeps.

use super::{Runner, Step};
use crate::abi::exits;
use crate::x86::cpu::events;
use crate::x86::exit::{EventKind, Exception};
use crate::x86::vcpu::debug;
use crate::x86::vendor::{Stay, VcpuBackend};

exits::exits! {
    /// An exception that user space wants to see, because it debugs the guest.
    Debug = KVM_EXIT_DEBUG, debug: kvm_run__bindgen_ty_1__bindgen_ty_5 {
        exception: u32 = arch.exception,
        pc: u64 = arch.pc,
        dr6: u64 = arch.dr6,
        dr7: u64 = arch.dr7,
    }
}

impl Runner<'_> {
    /// The guest meets `e` at its next entry, combined with what it was about to meet.
    pub(super) fn raise(&mut self, e: Exception) -> Step {
        if self.s.raise(e) {
            Step::Again
        } else {
            self.shutdown()
        }
    }

    /// #UD.
    pub(super) fn raise_ud(&mut self) -> Step {
        self.raise(events::exception(events::vector::UD, None))
    }

    /// #GP(0).
    pub(super) fn raise_gp(&mut self) -> Step {
        self.raise(events::exception(events::vector::GP, Some(0)))
    }

    /// The processor has shut down. Where it has not kept the guest's state, that is the state of INIT, as in KVM.
    #[cold]
    pub(super) fn processor_shutdown(&mut self, stay: Option<&Stay<'_>>) -> Step {
        if stay.is_some() {
            return Step::Slow;
        }
        if self.s.hw.lost_state() {
            self.s.reset_registers(true);
            self.init_apic();
        }
        self.shutdown()
    }

    /// KVM_EXIT_SHUTDOWN.
    pub(super) fn shutdown(&mut self) -> Step {
        self.ask(&exits::Shutdown)
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
                self.s.put_exception(e);
                Step::Again
            }
            Err(events::TripleFault) => self.shutdown(),
        }
    }

    /// KVM_EXIT_DEBUG (api.rst 5). What was being delivered stays pending.
    #[cold]
    pub(super) fn debug_exit(&mut self, e: &Exception) -> Step {
        if e.vector == events::vector::BP {
            self.s.breakpoint_reported();
        }
        self.s.debug.reported();
        let pc = self.s.linear_rip();
        self.ask(&Debug {
            exception: e.vector.into(),
            pc,
            dr6: e.payload & !debug::DR6_NONE | debug::DR6_NONE,
            dr7: self.s.cpu.dr7,
        })
    }
}
