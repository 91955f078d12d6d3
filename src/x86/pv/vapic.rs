// SPDX-License-Identifier: GPL-2.0
//! The task priority in guest memory (KVM_SET_VAPIC_ADDR), for guests whose accesses to the local APIC's register were
//! patched away by user space (KVM_EXIT_TPR_ACCESS): 32-bit Windows.
//!
//! A word holds the TPR in its low byte, which is the guest's to write, and for it to compare with: the class of the
//! highest vector in service in bits 15:8, and the highest vector that waits in bits 31:24. The run loop takes the TPR
//! after each exit, and writes the word before an entry if it is another one, under the vCPU's mutex.

use crate::linux::uaccess;
use crate::mem::addr::Gpa;
use crate::mem::memory::MemError;
use crate::x86::vcpu::state::State;
use crate::x86::vendor::Stay;
use crate::x86::vm::Vm;

/// After an exit: the guest's TPR becomes that of the local APIC. False if that has to sleep.
pub(crate) fn take(vm: &Vm, s: &mut State, stay: Option<&Stay<'_>>) -> bool {
    let Some(gpa) = s.pv.vapic() else { return true };
    let mut word = [0; 4];
    let read = {
        let view = vm.memory.view();
        if stay.is_some() {
            view.try_read(gpa, &mut word)
        } else {
            view.read(gpa, &mut word)
        }
    };
    match read {
        Ok(()) => {
            let word = u32::from_le_bytes(word);
            s.pv.vapic_seen = Some(word);
            if let Some(l) = &mut s.apic.lapic {
                l.set_guest_tpr(word as u8);
            }
            true
        }
        Err(MemError::Fault) => stay.is_none(),
        // An address without memory is nobody's error.
        Err(_) => true,
    }
}

/// The word as the local APIC has it.
fn word(s: &State) -> Option<u32> {
    let l = s.apic.lapic.as_ref()?;
    let isr = l.highest_isr().map_or(0, |v| u32::from(v.0));
    let irr = l.highest_irr().map_or(0, |v| u32::from(v.0));
    Some(u32::from(l.tpr()) | (isr & 0xf0) << 8 | irr << 24)
}

/// Before an entry, in a stay: writes the word. False if that has to sleep: [`write`] does.
pub(crate) fn offer(vm: &Vm, s: &mut State) -> bool {
    let (Some(gpa), Some(word)) = (s.pv.vapic(), word(s)) else {
        return true;
    };
    if s.pv.vapic_seen == Some(word) {
        return true;
    }
    let view = vm.memory.view_of(&s.ring);
    let written = match view.hva_to_write(gpa, false) {
        // Two pages may be of two slots.
        _ if gpa.page() != Gpa(gpa.0.wrapping_add(3)).page() => false,
        Ok(hva) => uaccess::copy_to(hva, &word.to_le_bytes()).is_ok(),
        Err(MemError::Fault) => false,
        Err(_) => return true,
    };
    if written {
        view.mark_dirty(gpa);
        s.pv.vapic_seen = Some(word);
    }
    s.pv.vapic_stale = !written;
    written
}

/// Writes the word outside of a stay. Where that fails it counts as written: the guest goes on without, as in KVM.
pub(crate) fn write(vm: &Vm, s: &mut State) {
    s.pv.vapic_stale = false;
    let (Some(gpa), Some(word)) = (s.pv.vapic(), word(s)) else {
        return;
    };
    let view = vm.memory.view_of(&s.ring);
    let _ = view.write(gpa, &word.to_le_bytes());
    s.pv.vapic_seen = Some(word);
}

/// Whether the word can be at `gpa`, of any alignment: all of it is in memory.
pub(crate) fn is_place(vm: &Vm, gpa: u64) -> bool {
    let view = vm.memory.view();
    let mut ends = [Some(gpa), gpa.checked_add(3)].into_iter();
    ends.all(|end| end.is_some_and(|end| view.hva(Gpa(end), false).is_ok()))
}
