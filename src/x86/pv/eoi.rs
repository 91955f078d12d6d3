// SPDX-License-Identifier: GPL-2.0
//! Ending interrupts in memory, without an exit (MSR_KVM_PV_EOI_EN; kernel document virt/kvm/x86/msr.rst).
//!
//! The run loop offers it at an entry and takes it back after the exit, in the stay if the page is there, under the
//! vCPU's mutex.

use crate::linux::uaccess;
use crate::mem::addr::Gpa;
use crate::mem::memory::MemError;
use crate::mem::resident::resident;
use crate::x86::irqchip::msg::Vector;
use crate::x86::vcpu::state::State;
use crate::x86::vendor::Stay;
use crate::x86::vm::Vm;
use kernel::prelude::*;

/// The entry delivers `vector` of the local APIC: lets the guest end it by clearing a bit, without an exit, if nothing
/// else hangs on its end. That is so if no other interrupt is in service or waits, and nobody outside of the local APIC
/// watches the vector.
pub(crate) fn offer(vm: &Vm, s: &mut State, vector: u8) {
    let Some(l) = &s.apic.lapic else { return };
    let (word, bit) = Vector(vector).word_bit();
    let only = l
        .isr()
        .iter()
        .enumerate()
        .all(|(i, w)| *w == if i == word { bit } else { 0 });
    if s.hv.as_ref().is_some_and(|hv| hv.has_vector(vector)) {
        return;
    }
    let level = l.tmr().get(word).is_some_and(|w| w & bit != 0);
    if !only || level || l.highest_irr().is_some() || vm.chip.edge_eoi_vectors(word) & bit != 0 {
        return;
    }
    let view = vm.memory.view_of(&s.ring);
    let gpa = Gpa(s.pv.eoi & !1);
    if let Ok(hva) = view.hva_to_write(gpa, false) {
        let offered = uaccess::put_u8(hva, 1).is_ok();
        view.mark_dirty(gpa);
        s.pv.set_eoi_offered(offered);
    }
}

/// After an exit: ends the interrupt if the guest has cleared the bit, else takes the offer back. False if that has to
/// sleep.
pub(crate) fn take(vm: &Vm, s: &mut State, stay: Option<&Stay<'_>>) -> bool {
    let ended = {
        let view = vm.memory.view_of(&s.ring);
        let gpa = Gpa(s.pv.eoi & !1);
        let swap = |hva: usize| -> Result<bool> {
            let ended = uaccess::get_u8(hva)? & 1 == 0;
            if !ended {
                uaccess::put_u8(hva, 0)?;
                view.mark_dirty(gpa);
            }
            Ok(ended)
        };
        match view.hva_to_write(gpa, stay.is_none()) {
            Ok(hva) if stay.is_some() => swap(hva).ok(),
            Ok(hva) => resident(hva, || swap(hva)).ok(),
            Err(MemError::Fault) => None,
            Err(MemError::NotRam | MemError::Missing(_)) => Some(false),
        }
    };
    if ended.is_none() && stay.is_some() {
        return false;
    }
    s.pv.set_eoi_offered(false);
    if let (Some(true), Some(l)) = (ended, &mut s.apic.lapic) {
        if let Some(e) = l.eoi().eoi {
            // Nobody in user space waits for it, or it would not have been offered.
            let _ = vm.chip.edge_eoi(e.vector.0);
        }
    }
    true
}
