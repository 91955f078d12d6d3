// SPDX-License-Identifier: GPL-2.0
//! The CPU that a guest sees.

pub(crate) mod canonical;
pub(crate) mod control;
pub(crate) mod cpuid;
pub(crate) mod events;
pub(crate) mod host;
pub(crate) mod index;
pub(crate) mod mce;
pub(crate) mod model;
pub(crate) mod msr;
pub(crate) mod regs;
pub(crate) mod reset;
pub(crate) mod tsc;
pub(crate) mod violation;
pub(crate) mod xsave;

/// KVM_FEATURE_* bits that are offered (Documentation/virt/kvm/x86/cpuid.rst).
pub(crate) const KVM_FEATURES: u32 = {
    use cpuid::kvm_feature as f;
    f::CLOCKSOURCE
        | f::NOP_IO_DELAY
        | f::CLOCKSOURCE2
        | f::STEAL_TIME
        | f::PV_EOI
        | f::PV_UNHALT
        | f::PV_TLB_FLUSH
        | f::PV_SEND_IPI
        | f::POLL_CONTROL
        | f::PV_SCHED_YIELD
        | f::CLOCKSOURCE_STABLE
};
