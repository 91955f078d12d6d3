// SPDX-License-Identifier: GPL-2.0
//! VMCALL and VMMCALL (the kernel's Documentation/virt/kvm/x86/hypercalls.rst), and KVM_EXIT_HYPERCALL.
//!
//! Dispatch calls, with the vCPU's mutex held, inside a stay or outside.

use super::{Runner, Step};
use crate::abi::exits;
use crate::x86::cpu::regs::Gpr;
use crate::x86::pv::hypercall;
use crate::x86::vcpu::fetch::Known;
use crate::x86::vcpu::state::Completion;
use crate::x86::vendor::{Groups, Stay};
use crate::x86::vm_caps::HC_MAP_GPA_RANGE;

impl Runner<'_> {
    /// VMCALL, VMMCALL.
    pub(super) fn hypercall(&mut self, stay: Option<&Stay<'_>>) -> Step {
        if self.s.has_hyperv() && self.vm.hyperv.is_identified() {
            return self.hyperv_call(stay);
        }
        let number = self.s.cpu.regs.get(Gpr::Rax);
        if stay.is_some() && hypercall::may_take_long(self.vm, &self.s.cpu.regs) {
            return Step::Slow;
        }
        if self.vm.caps.hypercall_exits(number & 0xffff_ffff) && self.s.cpl() == 0 {
            if stay.is_some() {
                return Step::Slow;
            }
            if let Some(step) = self.map_gpa_range() {
                return step;
            }
        }
        if let (None, Some(gpa)) = (stay, hypercall::page_of(self.s, number)) {
            if let Some(step) = self.bring_in(gpa, true) {
                return step;
            }
        }
        let step = self.skip(&Known::HYPERCALL, stay);
        if matches!(step, Step::Again) {
            let result = if self.s.cpl() == 0 {
                hypercall::call(self.vm, &self.vcpu.shared, self.s, number)
            } else {
                hypercall::error::PERM
            };
            self.s.cpu.regs.set(Gpr::Rax, result as u64);
        }
        step
    }

    /// KVM_HC_MAP_GPA_RANGE, which user space answers (KVM_CAP_EXIT_HYPERCALL). `None`: the arguments are wrong.
    #[cold]
    fn map_gpa_range(&mut self) -> Option<Step> {
        self.s.load(Groups::CTRL.union(Groups::CODE));
        let mask = self.operand_mask();
        let regs = &self.s.cpu.regs;
        let [nr, gpa, pages, attributes] =
            [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|g| regs.get(g) & mask);
        if nr != HC_MAP_GPA_RANGE {
            return None;
        }
        if gpa & 0xfff != 0 || pages == 0 || (gpa >> 12).checked_add(pages).is_none() {
            const KVM_EINVAL: i64 = 22;
            let step = self.skip(&Known::HYPERCALL, None);
            if matches!(step, Step::Again) {
                self.s
                    .cpu
                    .regs
                    .set(Gpr::Rax, KVM_EINVAL.wrapping_neg() as u64 & mask);
            }
            return Some(step);
        }
        self.s.pending.completion = Completion::Hypercall;
        Some(self.ask(&exits::Hypercall {
            nr,
            args: [gpa, pages, attributes, 0, 0, 0],
            ret: 0,
            // KVM_EXIT_HYPERCALL_LONG_MODE.
            flags: u64::from(mask == u64::MAX),
        }))
    }

    /// User space has answered a hypercall.
    pub(super) fn hypercall_done(&mut self) -> Step {
        let result = self.run.get(exits::Hypercall::RET);
        let step = self.skip(&Known::HYPERCALL, None);
        if matches!(step, Step::Again) {
            self.s.cpu.regs.set(Gpr::Rax, result);
        }
        step
    }
}
