// SPDX-License-Identifier: GPL-2.0
//! KVM's paravirtual MSRs. None is offered yet, so none can be reached by a guest.

use crate::state::State;
use crate::vm::Vm;

/// Whether a write of this MSR may have to touch guest memory.
pub(crate) fn is_mine(index: u32) -> bool {
    matches!(index, 0x11 | 0x12 | 0x4b56_4d00..=0x4b56_4d08)
}

/// RDMSR.
pub(crate) fn read(_vm: &Vm, _s: &State, _index: u32) -> Option<u64> {
    None
}

/// WRMSR; false raises #GP.
pub(crate) fn write(_vm: &Vm, _s: &mut State, _index: u32, _value: u64, _by_host: bool) -> bool {
    false
}

/// The VM's clock was set.
pub(crate) fn update_clock(_vm: &Vm, _s: &mut State) {}
