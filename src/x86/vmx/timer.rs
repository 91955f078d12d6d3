// SPDX-License-Identifier: GPL-2.0
//! The VMX-preemption timer (SDM 3C 26.5.1, 27.7.4): the guest's turn ends at a value of the host's TSC.
//!
//! The vCPU sets the deadline under its mutex and writes it before every entry, with interrupts off.

use super::bits::pin;
use super::insn::Current;
use super::vmcs::*;
use crate::linux::boot_cpu;

/// The deadline and what the VMCS knows of it.
#[derive(Debug)]
pub(super) struct Timer {
    /// Host TSC at which the timer is to end the guest's turn; `u64::MAX`: none.
    pub(super) deadline: u64,
    /// The timer has been switched on at some time.
    used: bool,
    /// The timer has a deadline in the VMCS.
    set: bool,
}

impl Timer {
    /// Without deadline.
    pub(super) const OFF: Self = Self {
        deadline: u64::MAX,
        used: false,
        set: false,
    };

    /// Whether [`Timer::write`] has something to do.
    #[inline(always)]
    pub(super) const fn is_needed(&self) -> bool {
        self.set | (self.deadline != u64::MAX)
    }

    /// Sets the timer, which counts once in two to the power of `rate` ticks, to what is left until the deadline. It
    /// ends later than that rather than earlier, by less than one count; a value that is too large for it ends in an
    /// exit on the way. `pin` are the other pin-based controls.
    #[inline]
    pub(super) fn write(&mut self, vm: Current<'_>, rate: u32, pin: u32) {
        self.set = self.deadline != u64::MAX;
        let mut counts = u32::MAX;
        if self.set {
            let left = self.deadline.saturating_sub(boot_cpu::rdtsc());
            let whole = left.wrapping_shr(rate);
            let more = u64::from(whole.wrapping_shl(rate) != left);
            counts = u32::try_from(whole.saturating_add(more)).unwrap_or(u32::MAX);
        }
        if !self.used {
            self.used = true;
            // SAFETY: One more reason to exit.
            unsafe { vm.write_control(PIN_CONTROLS, pin | pin::PREEMPTION_TIMER) };
        }
        vm.write(PREEMPTION_TIMER_VALUE, counts);
    }
}
