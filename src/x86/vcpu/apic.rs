// SPDX-License-Identifier: GPL-2.0
//! The local APIC of a vCPU as its thread uses it: CR8, APIC virtualisation, and where the APIC's page is (SDM 3A 12,
//! 3C 31).
//!
//! This file adds to [`State`] what the run loop and the handlers of exits call under the vCPU's mutex. The model
//! itself is [`crate::x86::irqchip::lapic`].

use crate::x86::irqchip::lapic::base;
use crate::x86::vcpu::state::State;
use crate::x86::vendor::{ApicMode, VcpuBackend};
use crate::x86::vm::Vm;

impl State {
    /// CR8: the priority class of the local APIC's TPR, wherever that is.
    #[inline]
    pub(crate) fn cr8(&self) -> u8 {
        self.apic.lapic.as_ref().map_or(self.apic.cr8, |l| l.cr8())
    }

    /// CR8 as the guest left it, where it was written without an exit and the model does not know yet.
    #[inline]
    pub(crate) fn guest_cr8(&self) -> Option<u8> {
        self.hw.tpr().or_else(|| {
            // The processor wrote the register itself; what follows from it is still to be found.
            let lapic = self
                .apic
                .lapic
                .as_ref()
                .filter(|_| self.apic.tpr_shadowed)?;
            Some(lapic.cr8())
        })
    }

    /// CR8 writes of less than this concern us: they let an interrupt in, or user space wants to know of all of them.
    #[inline]
    pub(crate) fn cr8_threshold(&self) -> u8 {
        if self.apic.virtualized {
            return 0;
        }
        self.apic.lapic.as_ref().map_or(16, |l| l.cr8_threshold())
    }

    /// The guest wrote CR8, without consequences.
    #[inline(never)]
    pub(crate) fn set_cr8(&mut self, class: u8) {
        match &mut self.apic.lapic {
            Some(l) => l.set_cr8(class),
            None => self.apic.cr8 = class & 15,
        }
    }

    /// Guest interrupt status that the next entry has to load.
    #[inline]
    pub(crate) fn take_apic_status(&mut self) -> Option<u16> {
        if !self.apic.virtualized {
            return None;
        }
        let lapic = self.apic.lapic.as_mut()?;
        if self.debug.active() && self.debug.holds_interrupts(self.cpu.regs.rip) {
            return Some(lapic.hold_status());
        }
        lapic.take_status()
    }

    /// The guest ran.
    #[inline]
    pub(crate) fn guest_ran(&mut self) {
        if self.apic.virtualized {
            if let Some(l) = &mut self.apic.lapic {
                l.guest_ran();
            }
        }
    }

    /// How the guest reaches its local APIC.
    fn apic_mode(&self) -> ApicMode {
        match &self.apic.lapic {
            Some(l) if l.is_x2apic() => ApicMode::X2apic,
            Some(l) if l.page() == Some(base::DEFAULT_ADDRESS) => ApicMode::Xapic,
            _ => ApicMode::Other,
        }
    }

    /// IA32_APIC_BASE changed. Not in a stay.
    pub(crate) fn apic_moved(&mut self, vm: &Vm) {
        if !self.apic.virtualized {
            return;
        }
        let mode = self.apic_mode();
        if mode != ApicMode::Xapic {
            vm.memory.unpin_page();
        }
        self.hw.set_apic_mode(mode);
        self.refresh_eoi_exits(vm, &[u32::MAX; 8]);
    }

    /// Whether the nested page tables should map the APIC-access page for this vCPU. In SMM they have none.
    #[inline]
    pub(crate) fn wants_apic_page(&self, vm: &Vm) -> bool {
        self.apic.virtualized
            && vm.memory.may_pin_page()
            && self.apic_mode() == ApicMode::Xapic
            && !self.smm.is_active()
    }

    /// Vectors in `irr` were accepted, or state was set: decides anew which of them exit at their end. Those do that
    /// are level-triggered, and those for whose end somebody waits.
    pub(crate) fn refresh_eoi_exits(&mut self, vm: &Vm, irr: &[u32; 8]) {
        let Some(l) = &self.apic.lapic else { return };
        let tmr = l.tmr();
        let mut changed = false;
        for (n, (exits, (new, tmr))) in self
            .apic
            .eoi_exits
            .iter_mut()
            .zip(irr.iter().zip(tmr))
            .enumerate()
        {
            if *new == 0 {
                continue;
            }
            let sints = self.hv.as_ref().map_or(0, |hv| hv.watched(n));
            let wanted = *exits & !new | (tmr | vm.chip.edge_eoi_vectors(n) | sints) & new;
            changed |= wanted != *exits;
            *exits = wanted;
        }
        if changed {
            self.hw.set_eoi_exits(&self.apic.eoi_exits);
        }
    }

    /// Whether the processor may take interrupts from the posted-interrupt descriptor by itself.
    pub(crate) fn takes_direct(&self) -> bool {
        self.apic.posted
            && !self.debug.blocks_interrupts()
            && !self.hv.as_ref().is_some_and(|hv| hv.uses_auto_eoi())
    }

    /// IRR or the SINTs have been given another state: vectors that wait for the guest do so where they have to.
    pub(crate) fn sort_held(&mut self) {
        let virtualized = self.apic.virtualized;
        let (Some(hv), Some(l)) = (&mut self.hv, &mut self.apic.lapic) else {
            return;
        };
        if virtualized {
            l.accept_bitmap(&hv.take_held(), &[0; 8]);
            let mut waiting = l.withdraw(hv.auto_eoi());
            hv.hold(&mut waiting);
        }
    }

    /// A vector that has to be injected although the processor delivers the others by itself: its interrupt ends when
    /// it is delivered, which is Hyper-V's invention. It comes when the processor's priority lets it.
    #[inline]
    pub(crate) fn held_vector(&self) -> Option<u8> {
        let hv = self.hv.as_ref()?;
        let l = self.apic.lapic.as_ref().filter(|l| l.hw_enabled())?;
        hv.held_above(l.ppr() >> 4)
    }

    /// Whether IA32_APIC_BASE may have this value.
    pub(crate) fn check_apic_base(&self, value: u64) -> Option<()> {
        let f = &self.cpuid.features;
        base::valid(value, f.maxphyaddr, f.x2apic).then_some(())
    }
}
