// SPDX-License-Identifier: GPL-2.0
//! The partition's reference time, and the page by which guests tell it from their TSC (TLFS 12.6, 12.7).
//!
//! Called under the vCPU's mutex, outside stays.

use crate::mem::addr::Gpa;
use crate::x86::cpu::tsc;
use crate::x86::hyperv::defs::PAGE_ENABLED;
use crate::x86::hyperv::partition::Registers;
use crate::x86::hyperv::tsc_page::{next_sequence, PageState, Reference, BYTES};
use crate::x86::vcpu::state::State;
use crate::x86::vm::Vm;
use kernel::prelude::*;

/// The reference counter, in units of 100 ns: as the page tells it, if there is one.
pub(super) fn now(vm: &Vm, s: &State) -> u64 {
    if vm.hyperv.has_page() {
        let r = vm.hyperv.lock().registers;
        if r.page_state == PageState::Set {
            return r.reference.at(s.tsc());
        }
    }
    vm.clock.now().ns / 100
}

/// The reference TSC page, if there is one.
pub(crate) fn page(vm: &Vm) -> Option<Gpa> {
    vm.hyperv
        .has_page()
        .then(|| Gpa(vm.hyperv.lock().registers.tsc_page & !0xfff))
}

/// The VM's clock or the vCPU's TSC may have changed: the page follows. May sleep.
#[inline]
pub(crate) fn refresh(vm: &Vm, s: &State) {
    if vm.hyperv.has_page() {
        refresh_page(vm, s);
    }
}

#[cold]
fn refresh_page(vm: &Vm, s: &State) {
    let inner = &mut *vm.hyperv.lock();
    let r = &mut inner.registers;
    if r.tsc_page & PAGE_ENABLED == 0 {
        return;
    }
    r.page_state = match write_page(vm, s, r) {
        Ok(()) => PageState::Set,
        // Until the clock changes again: the guest reads the MSR.
        Err(_) => PageState::Broken,
    };
}

/// Writes the page, if it does not say what it has to.
fn write_page(vm: &Vm, s: &State, r: &mut Registers) -> Result {
    let view = vm.memory.view_of(&s.ring);
    let gpa = Gpa(r.tsc_page & !0xfff);
    let mut bytes = [0; BYTES];
    view.read(gpa, &mut bytes)?;
    let (sequence, there) = Reference::parse(&bytes);
    // A guest that waits for the end of TSC emulation counts on a page that stays as it is (TLFS 12.8).
    if sequence != 0 && r.emulation_control != 0 && r.page_state != PageState::New {
        r.reference = there;
        return Ok(());
    }
    let clock = vm.clock.reference();
    let rate = tsc::tsc_to_ns(s.tsc_rate_khz());
    let new = Reference::new(rate, s.tsc_at(clock.host_tsc), clock.ns);
    let new = new.filter(|_| clock.common);
    if r.page_state == PageState::Set && sequence != 0 && new == Some(there) {
        return Ok(());
    }
    // From here to the last write the guest reads the MSR.
    view.write(gpa, &0u32.to_le_bytes())?;
    r.reference = new.ok_or(EIO)?;
    view.write(gpa, &r.reference.bytes(0))?;
    view.write(gpa, &next_sequence(sequence).to_le_bytes())?;
    Ok(())
}
