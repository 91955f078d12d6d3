// SPDX-License-Identifier: GPL-2.0
//! Exits of loops of PAUSE (SDM 3C 26.1.3): for how long such a loop may last.
//!
//! The vCPU calls this under its mutex; a function that takes [`Current`] touches the VMCS, with interrupts off.

use super::insn::Current;
use super::vmcs::*;

/// PAUSEs that are no more ticks apart are a loop, as in KVM.
const GAP: u32 = 128;
/// Ticks for which a loop may last at first, as in KVM.
const WINDOW: u32 = 4096;

/// Ticks for which a loop may last before it exits.
pub(super) struct PauseWindow {
    wanted: u32,
    written: u32,
}

impl PauseWindow {
    /// As at first.
    pub(super) const NEW: Self = Self {
        wanted: WINDOW,
        written: WINDOW,
    };

    /// Writes the fields in the first use of a VMCS, where loops of PAUSE can exit. `exits`: they are to.
    pub(super) fn set_up(vm: Current<'_>, exits: bool) {
        let window = if exits { WINDOW } else { u32::MAX };
        // SAFETY: The fields only say when there are exits; they are there, as the caller says.
        unsafe {
            vm.write_control(PLE_GAP, GAP);
            vm.write_control(PLE_WINDOW, window);
        }
    }

    /// Twice as long, or as at first. Returns whether that is to be written.
    #[inline]
    pub(super) fn adapt(&mut self, longer: bool) -> bool {
        self.wanted = if longer {
            self.wanted.saturating_mul(2)
        } else {
            WINDOW
        };
        self.wanted != self.written
    }

    /// Writes what has changed.
    pub(super) fn write(&mut self, vm: Current<'_>) {
        if self.wanted != self.written {
            // SAFETY: The field only says when there are exits. It is there: a loop has exited.
            unsafe { vm.write_control(PLE_WINDOW, self.wanted) };
            self.written = self.wanted;
        }
    }
}
