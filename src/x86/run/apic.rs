// SPDX-License-Identifier: GPL-2.0
//! What an access to the local APIC entails (SDM 3A 12), and KVM_EXIT_IOAPIC_EOI.
//!
//! Handlers call, with the vCPU's mutex held, inside a stay or outside. Nothing here sleeps.

use super::{off, Runner, Step};
use crate::abi::uapi::k;
use crate::linux::mmap::Shared;
use crate::x86::irqchip::lapic::{Action, Eoi};

impl Runner<'_> {
    /// Carries out what the local APIC asks for.
    pub(super) fn apply(&mut self, action: Action) -> Step {
        if action.is_none() {
            return Step::Again;
        }
        let eoi = action.eoi;
        self.vcpu.apply(self.vm, self.s, action);
        match eoi {
            Some(eoi) => self.eoi(&eoi),
            None => Step::Again,
        }
    }

    /// Passes an EOI on to the IOAPIC, in the kernel or in user space (KVM_EXIT_IOAPIC_EOI).
    fn eoi(&mut self, eoi: &Eoi) -> Step {
        if !eoi.level {
            self.vm.chip.edge_eoi(eoi.vector.0);
        }
        if eoi.broadcast && self.vm.chip.eoi(eoi.vector.0) {
            self.set_exit(k::KVM_EXIT_IOAPIC_EOI);
            let _ = self.run.write(off::UNION, eoi.vector.0);
            return Step::User;
        }
        Step::Again
    }
}
