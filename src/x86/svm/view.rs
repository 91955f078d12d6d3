// SPDX-License-Identifier: GPL-2.0
//! The VMCB as the plain view that `super::check` judges. The vCPU asks for it before an entry that is checked.

use super::check::{SvmCaps, VmcbView};
use super::vmcb::{misc1, Vmcb};
use crate::linux::boot_cpu;
use crate::x86::cpu::control;
use crate::x86::cpu::cpuid::GuestFeatures;
use crate::x86::cpu::regs::efer;

/// What an entry with this VMCB and EVENTINJ depends on. The processor clears EVENTINJ on #VMEXIT, a refused entry
/// included, so the field itself does not tell it.
pub(super) fn read(v: &Vmcb, event_inj: u64) -> VmcbView {
    VmcbView {
        intercept_misc2: v.control.intercept_misc2,
        iopm_base_pa: v.control.iopm_base_pa,
        msrpm_base_pa: v.control.msrpm_base_pa,
        ioio_prot: v.control.intercept_misc1 & misc1::IOIO_PROT != 0,
        msr_prot: v.control.intercept_misc1 & misc1::MSR_PROT != 0,
        asid: v.control.asid,
        tlb_control: v.control.tlb_control,
        nested_control: v.control.nested_control,
        n_cr3: v.control.n_cr3,
        virt_ext: v.control.virt_ext,
        event_inj,
        cr0: v.save.cr0,
        cr3: v.save.cr3,
        cr4: v.save.cr4,
        dr6: v.save.dr6,
        dr7: v.save.dr7,
        efer: v.save.efer,
        g_pat: v.save.g_pat,
        cs_attrib: v.save.cs.attrib,
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
