// SPDX-License-Identifier: GPL-2.0
//! The CPUID table that user space gave a vCPU, and what follows from it (api.rst 4.20, 4.88).
//!
//! This file adds to [`State`] what the vCPU's ioctls and the exits of CPUID, XSETBV and CR4 use under the vCPU's
//! mutex.

use crate::x86::cpu::cpuid::{self, CpuidEntry, CpuidIndex, Dynamic, GuestFeatures};
use crate::x86::cpu::regs::cr4;
use crate::x86::cpu::xsave;
use crate::x86::hyperv::cpuid::Granted;
use crate::x86::irqchip::lapic::Features as LapicFeatures;
use crate::x86::vcpu::state::State;
use crate::x86::vendor::Groups;
use crate::x86::vm::Vm;
use kernel::prelude::*;

impl State {
    /// Installs a CPUID table that has been checked.
    pub(crate) fn set_cpuid(&mut self, vm: &Vm, table: KVec<CpuidEntry>) {
        *self.cpuid.index = CpuidIndex::new(&table);
        self.cpuid.features = GuestFeatures::from_table(&table, &self.cpuid.index)
            .restrict(&self.cpuid.host_features);
        self.cpuid.table = table;
        if let Some(hv) = &mut self.hv {
            hv.granted = Granted::from_table(&self.cpuid.table);
        }
        if let Some(l) = &mut self.apic.lapic {
            let (offered, honoured) = vm.chip.eoi_suppression();
            l.set_features(LapicFeatures {
                x2apic: self.cpuid.features.x2apic,
                tsc_deadline: self.cpuid.features.tsc_deadline,
                suppress_eoi: offered && self.cpuid.features.x2apic,
                honour_suppress_eoi: honoured,
                phys_bits: self.cpuid.features.maxphyaddr,
            });
        }
        self.refresh_dynamic();
    }

    /// What CPUID derives from registers.
    pub(crate) fn refresh_dynamic(&mut self) {
        self.load(Groups::CTRL);
        self.cpuid.dynamic = Dynamic {
            cr4: self.cpu.sregs.cr4,
            apic_enabled: self.apic.lapic.as_ref().map(|l| l.hw_enabled()),
            mwait: self.cpuid.mwait_follows.then(|| self.msrs.mwait()),
            xsave_size: self.model.layout.standard_size(self.xstate.xcr0),
            xsave_compacted_size: self.model.layout.compacted_size(self.xstate.xcr0),
            hide_invariant_tsc: self.hv.as_ref().is_some_and(|hv| hv.hides_invariant_tsc()),
        };
    }

    /// CPUID leaf 1, ECX, as the guest reads it.
    pub(crate) fn cpuid_leaf1_ecx(&self) -> u32 {
        cpuid::lookup(
            &self.cpuid.table,
            &self.cpuid.index,
            1,
            0,
            &self.cpuid.dynamic,
        )[2]
    }

    /// Family, model and stepping, as RESET and INIT leave them in EDX (SDM 3A 10.1.2): what CPUID leaf 1 says.
    pub(super) fn signature(&self) -> u32 {
        cpuid::find(&self.cpuid.table, &self.cpuid.index, 1, 0).map_or(0x600, |e| e.eax)
    }

    /// XCR0 bits that the guest may set.
    pub(crate) fn allowed_xcr0(&self) -> u64 {
        // User space sets the x87 bit of a vCPU without XSAVE too (as KVM allows).
        cpuid::guest_xcr0(&self.cpuid.table, &self.cpuid.index, self.model.xcr0) | xsave::X87
    }

    /// Whether CR4.OSXSAVE is on.
    pub(crate) fn osxsave(&self) -> bool {
        self.cpuid.dynamic.cr4 & cr4::OSXSAVE != 0
    }
}
