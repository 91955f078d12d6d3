// SPDX-License-Identifier: GPL-2.0
//! What exists for emulators of VMX processors only: it is not needed on silicon, and asked for at module load.

use crate::linux::msr;
use crate::x86::cpu::index;

/// Whether this is an emulator: no microcode was ever loaded, and no processor of silicon with VMX runs without
/// (SDM 3A 10.11.7).
fn is_emulated() -> bool {
    msr::read_safe(index::UCODE_REV).is_ok_and(|v| v >> 32 == 0)
}

/// Whether local APICs are virtualised when the module parameter says nothing. Bochs 3.0 delivers virtual interrupts
/// while RFLAGS.IF is clear when an interrupt for the host arrives.
pub(super) fn apicv_by_default() -> bool {
    !is_emulated()
}
