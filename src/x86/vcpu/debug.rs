// SPDX-License-Identifier: GPL-2.0
//! What KVM_SET_GUEST_DEBUG has asked for, and what it has come to (api.rst 4.87).
//!
//! As in KVM, a single step is RFLAGS.TF in the guest's own register, hidden from KVM_GET_REGS; and while user space
//! has breakpoints of its own, the debug registers that the guest reads and writes are kept apart from those in force.
//!
//! It is part of the vCPU's state: its ioctls and the handlers of exits use it, under its mutex.
#![forbid(unsafe_code)]

use crate::abi::uapi::k;
pub(crate) use crate::x86::cpu::regs::dr6::{
    BD as GENERAL_DETECT, BS as SINGLE_STEP, RESET as DR6_NONE,
};

/// Bits of `kvm_guest_debug.control` (KVM_CAP_SET_GUEST_DEBUG2).
pub(crate) const CONTROLS: u32 = k::KVM_GUESTDBG_ENABLE
    | k::KVM_GUESTDBG_SINGLESTEP
    | k::KVM_GUESTDBG_USE_HW_BP
    | k::KVM_GUESTDBG_USE_SW_BP
    | k::KVM_GUESTDBG_INJECT_BP
    | k::KVM_GUESTDBG_INJECT_DB
    | k::KVM_GUESTDBG_BLOCKIRQ;

/// What KVM_SET_GUEST_DEBUG has asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Debug {
    /// KVM_GUESTDBG_* bits; zero without KVM_GUESTDBG_ENABLE.
    pub(super) control: u32,
    /// Linear address at which single-stepping was asked for.
    pub(super) step_at: u64,
    /// DR0 to DR3 and DR7 of the guest, while user space's are in force.
    pub(super) own: Option<([u64; 4], u64)>,
    /// An instruction carried out in software was the step: exit before the next one.
    pub(super) due: bool,
    /// RIP of a stepped instruction whose interrupt shadow was taken away.
    pub(super) shadow_at: Option<u64>,
    /// RIP and length of the INT3 that user space was told of last.
    pub(super) breakpoint: Option<(u64, u8)>,
}

impl Debug {
    /// Anything is on.
    #[inline]
    pub(crate) fn active(&self) -> bool {
        self.control != 0
    }

    /// Debug exceptions go to user space.
    pub(crate) fn takes_debug(&self) -> bool {
        self.control & (k::KVM_GUESTDBG_SINGLESTEP | k::KVM_GUESTDBG_USE_HW_BP) != 0
    }

    /// KVM_GUESTDBG_SINGLESTEP.
    pub(super) fn stepping(&self) -> bool {
        self.control & k::KVM_GUESTDBG_SINGLESTEP != 0
    }

    /// KVM_GUESTDBG_USE_SW_BP.
    pub(super) fn has_soft_breakpoints(&self) -> bool {
        self.control & k::KVM_GUESTDBG_USE_SW_BP != 0
    }

    /// KVM_GUESTDBG_BLOCKIRQ.
    pub(crate) fn blocks_interrupts(&self) -> bool {
        self.control & k::KVM_GUESTDBG_BLOCKIRQ != 0
    }

    /// Interrupts and NMIs are held back at `rip`.
    pub(crate) fn holds_interrupts(&self, rip: u64) -> bool {
        self.control & k::KVM_GUESTDBG_BLOCKIRQ != 0 || self.active() && self.shadow_at == Some(rip)
    }

    /// A step is over: the next entry has to wait for user space.
    pub(crate) fn is_due(&self) -> bool {
        self.due
    }

    /// An instruction was carried out in software, with RFLAGS.TF set.
    pub(crate) fn stepped(&mut self) {
        self.due = true;
    }

    /// The step has been reported, or is reported by another exit.
    pub(crate) fn reported(&mut self) {
        self.due = false;
    }
}
