// SPDX-License-Identifier: GPL-2.0
//! The current VMCS as the plain view that `super::check` judges. The vCPU asks for it before an entry that is checked.

use super::bits::{pin, proc, proc2};
use super::check::{self, Controls, Guest, GuestSegment, Host, VmcsView, VmxCaps};
use super::insn::Current;
use super::state;
use super::vmcs::*;
use crate::x86::cpu::regs::Seg;
use crate::x86::vendor::EntryViolation;

/// Runs the entry checks over the current VMCS, where `tpr` is CR8; over the host's part where `host` says so.
#[inline(never)]
pub(super) fn check(
    vm: Current<'_>,
    rules: &VmxCaps,
    tpr: u8,
    host: bool,
) -> Result<(), EntryViolation> {
    let mut v = VmcsView::default();
    read(vm, rules, &mut v);
    v.controls.vtpr = tpr << 4;
    check::check(&v, rules, host)
}

/// Reads every field that an entry of this backend depends on. Fields of controls that are off stay zero.
///
/// About 800 bytes: not to be copied around.
fn read(vm: Current<'_>, caps: &VmxCaps, out: &mut VmcsView) {
    controls(vm, caps, &mut out.controls);
    host(vm, &mut out.host);
    guest(vm, &mut out.guest);
}

fn controls(vm: Current<'_>, caps: &VmxCaps, c: &mut Controls) {
    c.pin = vm.read(PIN_CONTROLS);
    c.proc1 = vm.read(PROC_CONTROLS);
    c.proc2 = vm.read(PROC2_CONTROLS);
    c.exit = vm.read(EXIT_CONTROLS);
    c.entry = vm.read(ENTRY_CONTROLS);
    c.cr3_target_count = vm.read(CR3_TARGET_COUNT);
    c.msr_bitmap = vm.read(MSR_BITMAP);
    if caps.proc2.0 >> 32 & u64::from(proc2::VPID) != 0 {
        c.vpid = vm.read(VPID);
    }
    if c.proc1 & proc::TPR_SHADOW != 0 {
        c.virtual_apic = vm.read(VIRTUAL_APIC_ADDR);
        c.tpr_threshold = vm.read(TPR_THRESHOLD);
    }
    if c.proc2 & proc2::APIC_ACCESSES != 0 {
        c.apic_access = vm.read(APIC_ACCESS_ADDR);
    }
    if c.proc2 & proc2::TSC_SCALING != 0 {
        c.tsc_multiplier = vm.read(TSC_MULTIPLIER);
    }
    if c.proc2 & proc2::PML != 0 {
        c.pml_address = vm.read(PML_ADDRESS);
    }
    if c.pin & pin::POSTED_INTERRUPTS != 0 {
        c.posted_vector = vm.read(POSTED_VECTOR);
        c.posted_descriptor = vm.read(POSTED_DESCRIPTOR);
    }
    c.eptp = vm.read(EPT_POINTER);
    c.exit_msr_store_count = vm.read(EXIT_MSR_STORE_COUNT);
    c.exit_msr_load_count = vm.read(EXIT_MSR_LOAD_COUNT);
    c.entry_msr_load_count = vm.read(ENTRY_MSR_LOAD_COUNT);
    c.entry_interruption = vm.read(ENTRY_INTR_INFO);
    c.entry_error_code = vm.read(ENTRY_EXCEPTION_ERROR_CODE);
    c.entry_instruction_length = vm.read(ENTRY_INSTRUCTION_LEN);
}

fn host(vm: Current<'_>, h: &mut Host) {
    h.cr0 = vm.read(HOST_CR0);
    h.cr3 = vm.read(HOST_CR3);
    h.cr4 = vm.read(HOST_CR4);
    h.rip = vm.read(HOST_RIP);
    h.es = vm.read(HOST_ES_SELECTOR);
    h.cs = vm.read(HOST_CS_SELECTOR);
    h.ss = vm.read(HOST_SS_SELECTOR);
    h.ds = vm.read(HOST_DS_SELECTOR);
    h.fs = vm.read(HOST_FS_SELECTOR);
    h.gs = vm.read(HOST_GS_SELECTOR);
    h.tr = vm.read(HOST_TR_SELECTOR);
    h.fs_base = vm.read(HOST_FS_BASE);
    h.gs_base = vm.read(HOST_GS_BASE);
    h.tr_base = vm.read(HOST_TR_BASE);
    h.gdtr_base = vm.read(HOST_GDTR_BASE);
    h.idtr_base = vm.read(HOST_IDTR_BASE);
    h.sysenter_esp = vm.read(HOST_SYSENTER_ESP);
    h.sysenter_eip = vm.read(HOST_SYSENTER_EIP);
    h.pat = vm.read(HOST_PAT);
    h.efer = vm.read(HOST_EFER);
}

fn segment(vm: Current<'_>, seg: Seg) -> GuestSegment {
    let n = seg as u32;
    GuestSegment {
        selector: vm.read(GUEST_ES_SELECTOR.nth(n)),
        base: vm.read(GUEST_ES_BASE.nth(n)),
        limit: vm.read(GUEST_ES_LIMIT.nth(n)),
        rights: vm.read(GUEST_ES_ACCESS_RIGHTS.nth(n)),
    }
}

fn guest(vm: Current<'_>, g: &mut Guest) {
    g.cr0 = vm.read(GUEST_CR0);
    g.cr3 = vm.read(GUEST_CR3);
    g.cr4 = vm.read(GUEST_CR4);
    g.dr7 = vm.read(GUEST_DR7);
    g.rip = vm.read(GUEST_RIP);
    g.rflags = vm.read(GUEST_RFLAGS);
    g.es = segment(vm, Seg::Es);
    g.cs = segment(vm, Seg::Cs);
    g.ss = segment(vm, Seg::Ss);
    g.ds = segment(vm, Seg::Ds);
    g.fs = segment(vm, Seg::Fs);
    g.gs = segment(vm, Seg::Gs);
    g.ldtr = segment(vm, Seg::Ldtr);
    g.tr = segment(vm, Seg::Tr);
    g.gdtr_base = vm.read(GUEST_GDTR_BASE);
    g.gdtr_limit = vm.read(GUEST_GDTR_LIMIT);
    g.idtr_base = vm.read(GUEST_IDTR_BASE);
    g.idtr_limit = vm.read(GUEST_IDTR_LIMIT);
    g.debugctl = vm.read(GUEST_DEBUGCTL);
    g.sysenter_esp = vm.read(GUEST_SYSENTER_ESP);
    g.sysenter_eip = vm.read(GUEST_SYSENTER_EIP);
    g.pat = vm.read(GUEST_PAT);
    g.efer = vm.read(GUEST_EFER);
    g.activity = vm.read(GUEST_ACTIVITY_STATE);
    g.interruptibility = vm.read(GUEST_INTERRUPTIBILITY);
    g.pending_debug = vm.read(GUEST_PENDING_DEBUG);
    g.link_pointer = vm.read(VMCS_LINK_POINTER);
    g.pdpte = state::pdptes(vm);
}
