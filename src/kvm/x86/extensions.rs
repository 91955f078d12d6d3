// SPDX-License-Identifier: GPL-2.0
//! The extensions that only x86 has.

use crate::abi::uapi::{self, k};
use crate::kvm::table::extensions;
use crate::x86::{
    abi, debug, hardware, model, request, root, x2apic_api, Setup, Vm, VmCaps, MCE_BANKS,
};
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// Nothing more is there.
fn none(_vm: Option<&Vm>, _capability: u32) -> isize {
    0
}

/// Nothing more can be enabled.
fn unknown(_vm: &Vm, _setup: &mut Setup, _capability: u32, _value: u64) -> Result {
    Err(EINVAL)
}

extensions! {
    (vm, setup, value) else none, unknown;
    // Processors and their state.
    uapi::RVMM_CAP_ROOT: root();
    k::KVM_CAP_HLT: 1;
    k::KVM_CAP_NOP_IO_DELAY: 1;
    k::KVM_CAP_VM_TYPES: 1;
    k::KVM_CAP_XSAVE2: 4096;
    k::KVM_CAP_XCRS: model().is_ok_and(|m| m.has_xsave());
    k::KVM_CAP_MCE: MCE_BANKS;
    k::KVM_CAP_SET_GUEST_DEBUG2: debug::CONTROLS;
    k::KVM_CAP_X86_ROBUST_SINGLESTEP: 1;
    k::KVM_CAP_SYNC_REGS: abi::SYNC_REGS;
    k::KVM_CAP_STEAL_TIME: 1;
    k::KVM_CAP_ASYNC_PF: 1;
    k::KVM_CAP_ASYNC_PF_INT: 1;
    k::KVM_CAP_EXCEPTION_PAYLOAD: 1,
        enable {
            vm.exception_payload.store(value != 0, Ordering::Relaxed);
            Ok(())
        };
    k::KVM_CAP_X86_TRIPLE_FAULT_EVENT: 1,
        enable {
            vm.triple_fault_event.store(value != 0, Ordering::Relaxed);
            Ok(())
        };
    k::KVM_CAP_DISABLE_QUIRKS: 1,
        enable {
            vm.caps.disable_quirks(value);
            vm.vcpus.request_all(request::EXITS);
            Ok(())
        };
    k::KVM_CAP_DISABLE_QUIRKS2: VmCaps::QUIRKS,
        enable {
            vm.caps.disable_known_quirks(value)?;
            vm.vcpus.request_all(request::EXITS);
            Ok(())
        };
    k::KVM_CAP_EXIT_ON_EMULATION_FAILURE: 1,
        enable vm.caps.set_exit_on_emulation_failure(value);
    k::KVM_CAP_X86_DISABLE_EXITS: VmCaps::EXITS,
        enable vm.caps.disable_exits(value, setup.has_vcpus());
    k::KVM_CAP_EXIT_HYPERCALL: VmCaps::HYPERCALLS,
        enable vm.caps.set_hypercall_exits(value);
    k::KVM_CAP_VM_DISABLE_NX_HUGE_PAGES: 1,
        enable vm.disable_nx_huge_pages(value, setup);
    // MSRs.
    k::KVM_CAP_X86_USER_SPACE_MSR: 1,
        enable vm.caps.set_user_space_msr(value);
    k::KVM_CAP_MSR_PLATFORM_INFO: 1,
        enable vm.caps.set_platform_info(value);
    // Interrupt controllers.
    k::KVM_CAP_SPLIT_IRQCHIP: 1,
        enable vm.chip.create_split(value, setup.has_vcpus());
    k::KVM_CAP_X2APIC_API: vm.map_or(x2apic_api::VALID, |vm| vm.chip.x2apic_api_flags()),
        enable vm.chip.enable_x2apic_api(value);
    k::KVM_CAP_X86_APIC_BUS_CYCLES_NS: vm.map_or(1, |vm| vm.caps.bus_cycle_ns()),
        enable vm.caps.set_bus_cycle(value, setup.has_vcpus(), vm.chip.has_lapic());
    // Hyper-V's interface.
    k::KVM_CAP_HYPERV: 1;
    k::KVM_CAP_HYPERV_VAPIC: 1;
    k::KVM_CAP_HYPERV_SPIN: 1;
    k::KVM_CAP_HYPERV_TIME: 1;
    k::KVM_CAP_HYPERV_SYNIC: 1;
    k::KVM_CAP_HYPERV_SYNIC2: 1;
    k::KVM_CAP_HYPERV_VP_INDEX: 1;
    k::KVM_CAP_HYPERV_TLBFLUSH: 1;
    k::KVM_CAP_HYPERV_SEND_IPI: 1;
    k::KVM_CAP_HYPERV_ENFORCE_CPUID: 1;
    // Time.
    k::KVM_CAP_TSC_CONTROL: hardware().is_some_and(|h| h.tsc_fraction != 0);
    k::KVM_CAP_VM_TSC_CONTROL: hardware().is_some_and(|h| h.tsc_fraction != 0);
    k::KVM_CAP_TSC_DEADLINE_TIMER: 1;
    k::KVM_CAP_CLOCKSOURCE: 1;
    k::KVM_CAP_ADJUST_CLOCK: k::KVM_CLOCK_TSC_STABLE | k::KVM_CLOCK_REALTIME | k::KVM_CLOCK_HOST_TSC;
}
