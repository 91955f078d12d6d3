// SPDX-License-Identifier: GPL-2.0
//! Start-up of processors by INIT and SIPI (SDM 3A 9.4).
//!
//! The outer loop calls, with the vCPU's mutex held and interrupts on.

use super::Runner;
use crate::abi::uapi::k;
use crate::x86::cpu::regs::Seg;
use crate::x86::shared::request;
use crate::x86::vcpu::state::MpState;
use crate::x86::vendor::Groups;
use kernel::prelude::*;

impl Runner<'_> {
    /// Blocks an AP until INIT and SIPI have come. EINTR.
    pub(super) fn wait_for_start(&mut self) -> Result {
        let shared = &self.vcpu.shared;
        self.block(|| shared.requests() & (request::INIT | request::SIPI) != 0)?;
        self.handle_requests();
        Ok(())
    }

    /// INIT of the local APIC, if it is in the kernel.
    pub(super) fn init_apic(&mut self) {
        let shared = &self.vcpu.shared;
        let bsp = shared.id == self.vm.boot_cpu();
        if let Some(l) = &mut self.s.apic.lapic {
            let quirk = k::KVM_X86_QUIRK_LINT0_REENABLED;
            let action = l.init(bsp && self.vm.caps.quirk(quirk));
            let _ = self.vcpu.apply(self.vm, self.s, &action);
            // IRR is empty after INIT, and this belongs to it.
            let _ = (shared.take_direct(), shared.take_posted());
            let _ = self.s.hv.as_mut().map(|hv| hv.take_held());
            self.vm.chip.forget_rtc();
        }
    }

    /// INIT and SIPI (SDM 3A 9.4). In SMM INIT waits for its end, and SIPI is dropped (SDM 3C 32.3).
    pub(super) fn start_up(&mut self, r: u32) {
        let shared = &self.vcpu.shared;
        if self.s.smm.is_active() {
            self.s.smm.latched_init |= r & request::INIT != 0;
            return;
        }
        if r & request::INIT != 0 {
            self.s.reset_registers(true);
            self.init_apic();
            self.s.mp_state = if shared.id == self.vm.boot_cpu() {
                MpState::Runnable
            } else {
                MpState::InitReceived
            };
        }
        if r & request::SIPI != 0 && self.s.mp_state == MpState::InitReceived {
            let vector = shared.arch.sipi.load(core::sync::atomic::Ordering::Relaxed) as u8;
            self.s.load(Groups::CODE);
            let cs = self.s.cpu.sregs.seg_mut(Seg::Cs);
            cs.selector = u16::from(vector) << 8;
            cs.base = u64::from(vector) << 12;
            self.s.cpu.regs.rip = 0;
            self.s.dirty(Groups::CODE);
            self.s.mp_state = MpState::Runnable;
        }
    }
}
