// SPDX-License-Identifier: GPL-2.0
//! The first use of a VMCS: fields that never change, and a defined value for all others (SDM 3C 25).
//!
//! `VmxVcpu` calls this in its first stay, with interrupts off and the VMCS current.

use super::bits::proc2;
use super::config::TSC_FRACTION;
use super::insn::Current;
use super::pause::PauseWindow;
use super::shared::Shared;
use super::vmcs::*;
use super::written::{Written, ALWAYS_INTERCEPTED};
use crate::pr_err_ratelimited;
use crate::x86::cpu::reset::PAT as PAT_RESET;
use kernel::prelude::*;

/// Writes the control fields. `proc` are the primary processor-based controls; `pause` makes loops of PAUSE exit.
pub(super) fn controls(vm: Current<'_>, shared: &Shared, proc: u32, vpid: u16, pause: bool) {
    let config = &shared.config;
    // SAFETY: The controls are those of the configuration, computed to confine the guest; the address is of a page
    // of ours; zero counts refer to nothing.
    unsafe {
        vm.write_control(PIN_CONTROLS, config.pin);
        vm.write_control(PROC_CONTROLS, proc);
        vm.write_control(PROC2_CONTROLS, config.proc2);
        vm.write_control(EXIT_CONTROLS, config.exit);
        vm.write_control(ENTRY_CONTROLS, config.entry);
        vm.write_control(EXCEPTION_BITMAP, ALWAYS_INTERCEPTED);
        if config.proc2 & proc2::PAUSE_LOOP_EXITING != 0 {
            PauseWindow::set_up(vm, pause);
        }
        for field in [
            PF_ERROR_CODE_MASK,
            PF_ERROR_CODE_MATCH,
            CR3_TARGET_COUNT,
            EXIT_MSR_STORE_COUNT,
            EXIT_MSR_LOAD_COUNT,
            ENTRY_MSR_LOAD_COUNT,
            ENTRY_INTR_INFO,
        ] {
            vm.write_control(field, 0);
        }
        for field in [
            EXIT_MSR_STORE_ADDR,
            EXIT_MSR_LOAD_ADDR,
            ENTRY_MSR_LOAD_ADDR,
            TSC_OFFSET,
        ] {
            vm.write_control(field, 0);
        }
        if config.proc2 & proc2::TSC_SCALING != 0 {
            vm.write_control(TSC_MULTIPLIER, 1 << TSC_FRACTION);
        }
        if config.vpid() {
            vm.write_control(VPID, vpid);
        }
        if config.proc2 & proc2::XSAVES != 0 {
            vm.write_control(XSS_EXITING_BITMAP, 0);
        }
        if config.proc2 & proc2::ENCLS_EXITING != 0 {
            // SGX is not offered: every leaf exits and becomes #UD.
            vm.write_control(ENCLS_EXITING_BITMAP, u64::MAX);
        }
    }
}

/// Writes the guest-state fields that [`CpuState`](crate::x86::vendor::CpuState) does not hold, and those that the vCPU
/// writes when they differ from [`Written::RESET`].
pub(super) fn guest(vm: Current<'_>) {
    vm.write(VMCS_LINK_POINTER, u64::MAX);
    vm.write(GUEST_DEBUGCTL, 0);
    vm.write(GUEST_PAT, PAT_RESET);
    for field in [
        GUEST_INTERRUPTIBILITY,
        GUEST_ACTIVITY_STATE,
        GUEST_SYSENTER_CS,
    ] {
        vm.write(field, 0);
    }
    for field in [GUEST_PENDING_DEBUG, GUEST_SYSENTER_ESP, GUEST_SYSENTER_EIP] {
        vm.write(field, 0);
    }
    for n in 0..4 {
        vm.write(GUEST_PDPTE0.nth(n), 0);
    }
    let reset = Written::RESET;
    vm.write(GUEST_RIP, reset.rip);
    vm.write(GUEST_RSP, reset.rsp);
    vm.write(GUEST_RFLAGS, reset.rflags);
    vm.write(GUEST_DR7, reset.dr7);
}

/// Refuses a processor that has not taken the fields: such a one would read back wrong, and the last one of each kind
/// stands for all. `proc2` are the secondary controls that were written.
pub(super) fn verify(vm: Current<'_>, proc2: u32) -> Result {
    if vm.read(PROC2_CONTROLS) != proc2 || vm.read(VMCS_LINK_POINTER) != u64::MAX {
        pr_err_ratelimited!(
            "the processor does not take the VMCS fields that its capability MSRs promise\n"
        );
        return Err(EIO);
    }
    Ok(())
}
