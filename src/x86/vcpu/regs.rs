// SPDX-License-Identifier: GPL-2.0
//! Registers of a vCPU: loading and marking groups of system registers, and what follows from them.
//!
//! This file adds to [`State`] what the run loop, the emulator and the vCPU's ioctls use under the vCPU's mutex, in a
//! stay or outside. System registers stay in the VMCS or VMCB until a [`Groups`] of them is loaded.

use crate::mem::addr::Gpa;
use crate::mem::memory::MemError;
use crate::x86::cpu::regs::cr0;
use crate::x86::vcpu::state::State;
use crate::x86::vendor::{choose, Groups, Stay, VcpuBackend};
use crate::x86::vm::Vm;
use kernel::prelude::*;

impl State {
    /// Makes groups of system registers valid.
    #[inline]
    pub(crate) fn load(&mut self, groups: Groups) {
        if !self.cpu.avail.contains(groups) {
            self.hw.load(&mut self.cpu, groups);
        }
    }

    /// Marks groups as changed; they are valid.
    pub(crate) fn dirty(&mut self, groups: Groups) {
        self.cpu.dirty = self.cpu.dirty.union(groups);
    }

    /// Current privilege level.
    pub(crate) fn cpl(&mut self) -> u8 {
        if self.cpu.dirty.is_empty() {
            if let Some(cpl) = self.hw.cpl() {
                return cpl;
            }
        }
        self.load(Groups::CODE.union(Groups::CTRL));
        self.cpu.sregs.cpl(self.cpu.regs.rflags)
    }

    /// Whether exceptions push error codes.
    pub(crate) fn protected(&mut self) -> bool {
        self.load(Groups::CTRL);
        self.cpu.sregs.cr0 & cr0::PE != 0
    }

    /// Reads the PDPTEs at `cr3` (SDM 3A 4.4.1). `NotRam` also when reserved bits of a present one are set, which is
    /// #GP(0).
    pub(crate) fn read_pdptes(
        &self,
        vm: &Vm,
        cr3: u64,
        stay: Option<&Stay<'_>>,
    ) -> Result<[u64; 4], MemError> {
        let view = self.memory(vm).view();
        let mut bytes = [0u8; 32];
        let gpa = Gpa(cr3 & 0xffff_ffe0);
        if stay.is_some() {
            view.try_read(gpa, &mut bytes)?;
        } else {
            view.read(gpa, &mut bytes)?;
        }
        let reserved = self.cpuid.features.reserved_phys_bits() | choose::pdpte_reserved();
        let mut pdptes = [0u64; 4];
        for (p, b) in pdptes.iter_mut().zip(bytes.chunks_exact(8)) {
            *p = b.try_into().map_or(0, u64::from_le_bytes);
            if *p & 1 != 0 && *p & reserved != 0 {
                return Err(MemError::NotRam);
            }
        }
        Ok(pdptes)
    }
}
