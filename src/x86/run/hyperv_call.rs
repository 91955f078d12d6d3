// SPDX-License-Identifier: GPL-2.0
//! Hyper-V's hypercalls, and what writes of its MSRs make known to user space: KVM_EXIT_HYPERV and
//! KVM_EXIT_SYSTEM_EVENT (api.rst 5).
//!
//! The handlers of VMCALL and WRMSR call, with the vCPU's mutex held.

use super::{Runner, Step};
use crate::abi::exits;
use crate::abi::uapi::k;
use crate::linux::mmap::Field;
use crate::mem::addr::Gpa;
use crate::x86::cpu::regs::Mode;
use crate::x86::hyperv::calls::{self, Outcome};
use crate::x86::hyperv::vcpu::Owed;
use crate::x86::vcpu::fetch::Known;
use crate::x86::vcpu::state::Completion;
use crate::x86::vendor::{Groups, Stay};

exits::exits! {
    /// Something of Hyper-V's that is user space's business. The words are those of `kind`'s structure.
    Hyperv = KVM_EXIT_HYPERV, hyperv: kvm_hyperv_exit {
        kind: u32 = type_,
        pad: u32 = pad1,
        words: [u64; 6] = u.bindgen_union_field,
    }
    /// The guest has crashed, or wants to be reset.
    SystemEvent = KVM_EXIT_SYSTEM_EVENT, system_event: kvm_run__bindgen_ty_1__bindgen_ty_19 {
        kind: u32 = type_,
        ndata: u32 = ndata,
    }
}

impl Hyperv {
    const WORDS: Field<[u64; 6]> = exits::union_field!(kvm_hyperv_exit, u.bindgen_union_field);

    fn new(kind: u32, from: &[u64]) -> Self {
        let mut words = [0; 6];
        for (to, from) in words.iter_mut().zip(from) {
            *to = *from;
        }
        Self {
            kind,
            pad: 0,
            words,
        }
    }
}

impl Runner<'_> {
    /// A hypercall of a guest that has said that it runs on Hyper-V.
    #[cold]
    pub(super) fn hyperv_call(&mut self, stay: Option<&Stay<'_>>) -> Step {
        if stay.is_some() {
            return Step::Slow;
        }
        self.s.load(Groups::CTRL.union(Groups::CODE));
        if self.s.cpl() != 0 || self.s.cpu.sregs.mode(self.s.cpu.regs.rflags) == Mode::Real {
            return self.raise_ud();
        }
        let input = calls::input_of(self.s);
        if !input.fast() {
            // Input does not cross pages (TLFS 3.5).
            if let Some(step) = self.bring_in(Gpa(input.first), false) {
                return step;
            }
        }
        match calls::make(self.vm, &self.vcpu.shared, self.s, &input) {
            Outcome::Undefined => self.raise_ud(),
            Outcome::Done(result) => self.hyperv_result(result),
            Outcome::ToUser(i) => {
                self.s.pending.completion = Completion::HypervCall;
                let words = [i.control, 0, i.first, i.second];
                self.ask(&Hyperv::new(k::KVM_EXIT_HYPERV_HCALL, &words))
            }
        }
    }

    fn hyperv_result(&mut self, result: u64) -> Step {
        let step = self.skip(&Known::HYPERCALL, None);
        if matches!(step, Step::Again) {
            calls::set_result(self.s, result);
        }
        step
    }

    /// User space has answered a hypercall.
    pub(super) fn hyperv_call_done(&mut self) -> Step {
        let [_, result, ..] = self.run.get(Hyperv::WORDS);
        self.s.load(Groups::CTRL.union(Groups::CODE));
        self.hyperv_result(result)
    }

    /// User space has done what SYNDBG_CONTROL asked for.
    pub(super) fn hyperv_debug_done(&mut self) -> Step {
        let [_, _, status, ..] = self.run.get(Hyperv::WORDS);
        calls::debug_done(self.vm, status);
        Step::Again
    }

    /// The guest has written one of Hyper-V's MSRs, outside the stay: user space may have to know.
    #[cold]
    pub(super) fn hyperv_written(&mut self) -> Step {
        let owed = self.s.hv.as_mut().and_then(|hv| hv.take_owed());
        match owed {
            None => Step::Again,
            Some(Owed::Synic(msr)) => {
                let [control, events, messages] = calls::synic_pages(self.s);
                let words = [msr.into(), control, events, messages];
                self.ask(&Hyperv::new(k::KVM_EXIT_HYPERV_SYNIC, &words))
            }
            Some(Owed::Debug(msr)) => {
                if msr == crate::x86::cpu::index::HV_SYNDBG_CONTROL {
                    self.s.pending.completion = Completion::HypervDebug;
                }
                let [control, status, send, receive, pending] = calls::debug_registers(self.vm);
                let words = [msr.into(), control, status, send, receive, pending];
                self.ask(&Hyperv::new(k::KVM_EXIT_HYPERV_SYNDBG, &words))
            }
            Some(Owed::Crash) => self.system_event(k::KVM_SYSTEM_EVENT_CRASH),
            Some(Owed::Reset) => self.system_event(k::KVM_SYSTEM_EVENT_RESET),
        }
    }

    fn system_event(&self, kind: u32) -> Step {
        self.ask(&SystemEvent { kind, ndata: 0 })
    }
}
