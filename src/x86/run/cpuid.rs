// SPDX-License-Identifier: GPL-2.0
//! CPUID (SDM 2A CPUID; APM 3 appendix E).
//!
//! Dispatch calls, with the vCPU's mutex held, inside a stay or outside.

use super::{Runner, Step};
use crate::x86::cpu::cpuid;
use crate::x86::cpu::regs::Gpr;
use crate::x86::vcpu::fetch::Known;
use crate::x86::vendor::Stay;

impl Runner<'_> {
    /// CPUID.
    pub(super) fn cpuid(&mut self, stay: Option<&Stay<'_>>) -> Step {
        if self.s.msrs.cpuid_faults() && self.s.cpl() != 0 {
            return self.raise_gp();
        }
        let step = self.skip(&Known::CPUID, stay);
        if !matches!(step, Step::Again) {
            return step;
        }
        let s = &mut *self.s;
        let leaf = s.cpu.regs.get(Gpr::Rax) as u32;
        let sub = s.cpu.regs.get(Gpr::Rcx) as u32;
        let [eax, ebx, ecx, edx] =
            cpuid::lookup(&s.cpuid.table, &s.cpuid.index, leaf, sub, &s.cpuid.dynamic);
        s.cpu.regs.set(Gpr::Rax, eax.into());
        s.cpu.regs.set(Gpr::Rbx, ebx.into());
        s.cpu.regs.set(Gpr::Rcx, ecx.into());
        s.cpu.regs.set(Gpr::Rdx, edx.into());
        Step::Again
    }
}
