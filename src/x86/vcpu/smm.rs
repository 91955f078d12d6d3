// SPDX-License-Identifier: GPL-2.0
//! What begins and ends for a vCPU with system management mode (SDM 3C 32, APM 2 10).
//!
//! This file adds to [`State`] what the run loop and the vCPU's ioctls use under the vCPU's mutex. A vCPU in SMM sees
//! the second address space of guest memory.

use crate::mem::memory::GuestMemory;
use crate::x86::cpu::smm::Smm;
use crate::x86::vcpu::state::State;
use crate::x86::vendor::{Groups, VcpuBackend};
use crate::x86::vm::Vm;

impl State {
    /// Guest memory as the vCPU sees it.
    #[inline(always)]
    pub(crate) fn memory<'a>(&self, vm: &'a Vm) -> &'a GuestMemory {
        vm.memory_seen(self.smm.is_active())
    }

    /// Enters or leaves SMM as far as memory goes. INIT that waits is up to the caller.
    pub(crate) fn set_smm(&mut self, on: bool) {
        if self.smm.active == on {
            return;
        }
        self.smm.active = on;
        self.smm.inside_nmi &= on;
        // Translations are those of the other address space.
        self.last_stay.tlb_generation = 0;
    }

    /// All registers have been replaced; all system registers are loaded.
    pub(crate) fn registers_replaced(&mut self) {
        self.cpu.avail = Groups::ALL;
        self.cpu.dirty = Groups::ALL;
        self.last_stay.tlb_generation = 0;
        self.hw.wake();
        self.refresh_dynamic();
    }

    /// After RESET or INIT.
    pub(crate) fn reset_smm(&mut self) {
        self.set_smm(false);
        self.smm = Smm::default();
        self.msrs.smi_count = 0;
    }
}
