// SPDX-License-Identifier: GPL-2.0
//! Exits of a virtualised local APIC, and what any access to it entails (SDM 3A 12, SDM 3C 30; APM 2 15.29), and
//! KVM_EXIT_IOAPIC_EOI.
//!
//! Dispatch and handlers call, with the vCPU's mutex held, inside a stay or outside. Nothing here sleeps.

use super::{Runner, Step};
use crate::abi::exits;
use crate::linux::hrtimer;
use crate::x86::hyperv;
use crate::x86::irqchip::lapic::{Action, Eoi};
use crate::x86::irqchip::msg::Vector;
use crate::x86::pv::{eoi, vapic};
use crate::x86::vendor::Stay;

exits::exits! {
    /// An EOI that the IOAPIC of user space waits for.
    IoapicEoi = KVM_EXIT_IOAPIC_EOI, eoi: kvm_run__bindgen_ty_1__bindgen_ty_21 {
        vector: u8 = vector,
    }
    /// An access to the TPR's register in memory, by the instruction at `rip`, as user space wished to know.
    TprAccess = KVM_EXIT_TPR_ACCESS, tpr_access: kvm_run__bindgen_ty_1__bindgen_ty_9 {
        rip: u64 = rip,
        is_write: u32 = is_write,
    }
}

impl Runner<'_> {
    /// An EOI that the processor carried out (SDM 3C 30.1.4).
    pub(super) fn virtual_eoi(&mut self, vector: u8) -> Step {
        let action = match &mut self.s.apic.lapic {
            Some(l) => l.ended(Vector(vector)),
            None => Action::NONE,
        };
        self.apply(action)
    }

    /// A write that the processor carried out, at this offset of the page (SDM 3C 30.4.3.3).
    pub(super) fn apic_write(&mut self, offset: u16) -> Step {
        let action = match &mut self.s.apic.lapic {
            Some(l) => l.write_stored(offset.into(), hrtimer::ktime_get_ns()),
            None => Action::NONE,
        };
        self.apply(action)
    }

    /// After an exit: takes what the guest may have left for its local APIC in memory. False if that has to sleep; it
    /// can be called again then.
    #[cold]
    #[inline(never)]
    pub(super) fn take_shared(&mut self, stay: Option<&Stay<'_>>) -> bool {
        let ended = !self.s.pv.eoi_offered() || eoi::take(self.vm, self.s, stay);
        ended && vapic::take(self.vm, self.s, stay)
    }

    /// Before an entry, in a stay: the guest finds in memory what its task priority holds back.
    #[cold]
    #[inline(never)]
    pub(super) fn offer_vapic(&mut self) {
        if !vapic::offer(self.vm, self.s) {
            // The outer loop writes it.
            self.end_entry_at_once();
        }
    }

    /// An emulated instruction at `rip` has accessed the TPR's register, which user space wants to know.
    pub(super) fn tpr_access(&self, rip: u64, write: bool) -> Step {
        let is_write = write.into();
        self.ask(&TprAccess { rip, is_write })
    }

    /// Carries out what the local APIC asks for.
    pub(super) fn apply(&mut self, action: Action) -> Step {
        if action.is_none() {
            return Step::Again;
        }
        if !self.vcpu.apply(self.vm, self.s, &action) {
            // Interrupts may be off; the outer loop sends it.
            self.unsent = action.ipi;
            return Step::Leave;
        }
        match &action.eoi {
            Some(eoi) => self.eoi(eoi),
            None => Step::Again,
        }
    }

    /// Sends the interrupt that goes to many. Interrupts are on.
    #[cold]
    pub(super) fn send_unsent(&mut self) {
        if let Some(message) = self.unsent.take() {
            let _ = self.vm.chip.deliver(&message, self.vcpu.shared.id);
        }
    }

    /// Passes an EOI on to the IOAPIC, in the kernel or in user space.
    fn eoi(&mut self, eoi: &Eoi) -> Step {
        let vector = eoi.vector.0;
        if let Some(hv) = &self.s.hv {
            hyperv::messages::ended(self.vm, &self.vcpu.shared, hv, vector);
        }
        let chip = &self.vm.chip;
        let user = if eoi.level {
            eoi.broadcast && chip.eoi(vector)
        } else {
            chip.edge_eoi(vector) && !eoi.suppressed
        };
        if user {
            return self.ask(&IoapicEoi { vector });
        }
        Step::Again
    }
}
