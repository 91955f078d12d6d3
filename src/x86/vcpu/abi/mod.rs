// SPDX-License-Identifier: GPL-2.0
//! The state of a vCPU as user space reads and writes it: KVM_GET_* and KVM_SET_* (api.rst 4), and the shared page
//! (api.rst 5).
//!
//! One file for each chapter. The vCPU's ioctls call, under its mutex and outside stays. Values of user space are
//! checked here; what they are set to is [`crate::x86::vcpu::state::State`].

mod cpuid;
mod events;
mod msrs;
mod regs;
mod sync;
mod xstate;

pub(crate) use super::msr::ignored as ignored_msr;
pub(crate) use cpuid::{read_cpuid, set_cpuid};
pub(crate) use events::{get_events, set_events, set_mp_state};
pub(crate) use msrs::{each_msr, get_msrs, set_mce, set_msrs};
pub(crate) use regs::{
    get_debugregs, get_regs, get_sregs, get_sregs2, set_debugregs, set_regs, set_sregs, set_sregs2,
    translate,
};
pub(crate) use sync::{sync_from, sync_to, SYNC_REGS};
pub(crate) use xstate::{get_xsave, set_xcrs, set_xsave};
