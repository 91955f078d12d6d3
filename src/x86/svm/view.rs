// SPDX-License-Identifier: GPL-2.0
//! The VMCB as the plain view that `super::check` judges. The vCPU asks for it before an entry that is checked.

use super::check::{SvmCaps, VmcbView};
use super::vmcb::{misc1, Vmcb};
use crate::linux::boot_cpu;
use crate::x86::cpu::control;
use crate::x86::cpu::cpuid::GuestFeatures;
use crate::x86::cpu::regs::efer;

/// What the processor may have kept of a VMCB at the last #VMEXIT (APM 2 15.15.3).
pub(super) struct Kept {
    /// The coming entry's is wanted.
    pub(super) wanted: bool,
    cpu: u32,
    /// By [`Vmcb::groups`].
    groups: [u64; 11],
}

impl Kept {
    /// It is not known.
    pub(super) const NOTHING: Self = Self {
        wanted: false,
        cpu: u32::MAX,
        groups: [0; 11],
    };

    /// What CPU `cpu` may keep after a #VMEXIT of `v`.
    pub(super) fn of(v: &Vmcb, cpu: u32) -> Self {
        Self {
            wanted: false,
            cpu,
            groups: v.groups(),
        }
    }

    /// The groups, by clean bit, that CPU `cpu` has not kept as `v` has them, as far as that is known.
    fn stale(&self, v: &Vmcb, cpu: u32) -> u64 {
        if self.cpu == u32::MAX {
            return 0;
        }
        if cpu != self.cpu {
            return u64::MAX;
        }
        let differ = v.groups().into_iter().zip(self.groups).rev();
        differ.fold(0, |bits, (now, kept)| bits << 1 | u64::from(now != kept))
    }
}

/// What an entry on CPU `cpu` with this VMCB and EVENTINJ depends on, where the processor has `kept` some of it. The
/// processor clears EVENTINJ on #VMEXIT, a refused entry included, so the field itself does not tell it.
pub(super) fn read(v: &Vmcb, event_inj: u64, kept: &Kept, cpu: u32) -> VmcbView {
    VmcbView {
        clean: v.control.clean.bits(),
        stale: kept.stale(v, cpu),
        intercept_misc2: v.control.intercept_misc2.get(),
        iopm_base_pa: v.control.iopm_base_pa.get(),
        msrpm_base_pa: v.control.msrpm_base_pa.get(),
        ioio_prot: v.control.intercept_misc1.get() & misc1::IOIO_PROT != 0,
        msr_prot: v.control.intercept_misc1.get() & misc1::MSR_PROT != 0,
        asid: v.control.asid.get(),
        tlb_control: v.control.tlb_control,
        nested_control: v.control.nested_control.get(),
        n_cr3: v.control.n_cr3.get(),
        virt_ext: v.control.virt_ext.get(),
        event_inj,
        cr0: v.save.cr0.get(),
        cr3: v.save.cr3.get(),
        cr4: v.save.cr4.get(),
        dr6: v.save.dr6.get(),
        dr7: v.save.dr7.get(),
        efer: v.save.efer.get(),
        g_pat: v.save.g_pat.get(),
        cs_attrib: v.save.cs.get().attrib,
    }
}

/// The processor's side of the rules: it has `asids` ASIDs, and may be given the control-register bits of `features`.
pub(super) fn rules(asids: u32, flush_by_asid: bool, features: &GuestFeatures) -> SvmCaps {
    SvmCaps {
        phys_bits: boot_cpu::phys_bits().min(52) as u8,
        asids,
        flush_by_asid,
        nested_paging: true,
        lbr_virt: false,
        efer_mask: control::efer_allowed(features) | efer::SVME,
        cr4_mask: control::cr4_allowed(features),
    }
}
