// SPDX-License-Identifier: GPL-2.0
//! Faults on pages that the host has to wait for, in a guest that can do something else meanwhile (MSR_KVM_ASYNC_PF_EN;
//! kernel document virt/kvm/x86/msr.rst).
//!
//! The outer loop calls, and the nested fault's handler outside of stays, with the vCPU's mutex held.

use super::{Runner, Step};
use crate::abi::uapi::k;
use crate::mem::addr::Gpa;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::cr0;
use crate::x86::exit::{Exception, NestedFault};
use crate::x86::irqchip::msg::Vector;
use crate::x86::pv::asked::{area, Fault, Known, Way};
use crate::x86::pv::steal;
use crate::x86::shared::request;
use crate::x86::vcpu::state::MpState;
use crate::x86::vendor::{Groups, VcpuBackend};

impl Runner<'_> {
    /// How a fault goes on where the host has to wait for the page.
    fn way_of_fault(&mut self) -> Way {
        if self.s.apic.lapic.is_none() || self.s.smm.is_active() {
            return Way::Synchronous;
        }
        let e = &self.s.events;
        let busy = e.interrupted.is_some() || e.exception.is_some() || e.held.is_some();
        let busy = busy || e.held_nmi;
        self.s.load(Groups::CTRL);
        let hlt = u64::from(k::KVM_X86_DISABLE_EXITS_HLT);
        let fault = Fault {
            enable: self.s.pv.async_pf_en(),
            interruptible: self.s.gate().interrupt_open(),
            busy,
            paging: self.s.cpu.sregs.cr0 & cr0::PG != 0,
            cpl: self.s.cpl(),
            never_halts: self.vm.caps.disabled_exits() & hlt != 0,
        };
        fault.way()
    }

    /// The host has to wait for the page of `f`, which is at user address `hva`: has it brought, and the guest goes on
    /// meanwhile. False: the vCPU has to wait for it.
    #[cold]
    pub(super) fn send_for(&mut self, f: &NestedFault, hva: usize) -> bool {
        let way = self.way_of_fault();
        if way == Way::Synchronous {
            return false;
        }
        let frame = f.gpa.0 >> 12;
        match self.s.apf.look(frame) {
            Known::Unavailable => return false,
            Known::Coming => {
                self.s.mp_state = MpState::AwaitsPage;
                return true;
            }
            Known::Nothing => {}
        }
        let at = (self.vm.mm(), hva);
        let sent = self.s.apf.send(&self.vcpu.shared, frame, at, f.write);
        let Some((place, token)) = sent else {
            return false;
        };
        let fault = Exception {
            vector: vector::PF,
            error_code: Some(0),
            payload: token.into(),
        };
        if way == Way::Tell && self.put_absent() && self.s.raise(fault) {
            self.s.apf.tell(place);
        } else {
            self.s.mp_state = MpState::AwaitsPage;
        }
        true
    }

    /// Writes that the next page fault is not one of the guest's own. Sleeps.
    fn put_absent(&self) -> bool {
        let view = self.vm.memory.view_of(&self.s.ring);
        let at = self.s.pv.async_pf_area().wrapping_add(area::FLAGS);
        view.write(at, &area::NOT_PRESENT.to_le_bytes()).is_ok()
    }

    /// Somebody is back who was sent for a page, or the guest can be told of the next one. `Some`: KVM_RUN ends
    /// instead.
    #[cold]
    pub(super) fn take_pages(&mut self) -> Option<Step> {
        let news = self.s.apf.collect();
        // Whichever page that is: another fault tells.
        if self.s.mp_state == MpState::AwaitsPage {
            self.s.mp_state = MpState::Runnable;
        }
        let lapic = self.s.apic.lapic.as_ref();
        if !news || !lapic.is_some_and(|l| l.hw_enabled() && l.sw_enabled()) {
            return None;
        }
        let area = self.s.pv.async_pf_area();
        let step = self.bring_in(area, true);
        if step.is_some() {
            self.vcpu.shared.request_self(request::ASYNC_PF);
            return step;
        }
        if self.put_ready(area) {
            let vector = self.s.pv.async_pf_vector();
            let (word, bit) = Vector(vector).word_bit();
            let watched = self.vm.chip.edge_eoi_vectors(word) & bit != 0;
            let _ = self.vcpu.shared.post(vector, false, watched);
        }
        None
    }

    /// Writes which page is ready, unless the guest has not seen to the last one; it will acknowledge that. Sleeps.
    fn put_ready(&mut self, area: Gpa) -> bool {
        let view = self.vm.memory.view_of(&self.s.ring);
        let at = area.wrapping_add(area::TOKEN);
        let mut token = [0; 4];
        if view.read(at, &mut token).is_err() || token != [0; 4] {
            return false;
        }
        let next = self.s.apf.next();
        next.is_some_and(|token| view.write(at, &token.to_le_bytes()).is_ok())
    }

    /// The vCPU halts, though its guest does not know, until something is to be done.
    #[cold]
    pub(super) fn await_page(&mut self) {
        // It does not run: the guest's other vCPUs need not wait for it.
        steal::set_preempted(self.vm, self.s, true);
        self.vcpu.timer.sleep(self.s);
        let shared = &self.vcpu.shared;
        // Whoever calls looks for signals.
        let _ = self.block(|| shared.requests() != 0);
        self.vcpu.timer.wake(self.s);
        self.s.hw.set_spinning(false);
    }
}
