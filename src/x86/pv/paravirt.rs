// SPDX-License-Identifier: GPL-2.0
//! What a vCPU's KVM MSRs have set up, and what its guest has been told (kernel document virt/kvm/x86/msr.rst).
//!
//! This is data; what is done with it stands in `clock_page`, `steal`, `eoi` and `msrs`, above the vCPU's state, which
//! holds it.

use crate::linux::sched;
use crate::mem::addr::{Gpa, PAGE_SIZE};
use crate::x86::cpu::cpuid::GuestFeatures;
use crate::x86::pv::asked::enable;
use crate::x86::pv::kvmclock;

/// A vCPU's part.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paravirt {
    /// KVM_CAP_ENFORCE_PV_FEATURE_CPUID.
    pub(crate) enforce: bool,
    /// MSR_KVM_SYSTEM_TIME(_NEW).
    pub(super) system_time: u64,
    /// The TSC's offset or rate changed after the clock's page was written.
    pub(crate) clock_stale: bool,
    /// KVM_KVMCLOCK_CTRL: to be told with the next writing of the page.
    pub(super) stopped: bool,
    /// MSR_KVM_STEAL_TIME.
    pub(super) steal_time: u64,
    /// The thread's waiting time that the guest has been told of.
    pub(super) steal_told: u64,
    /// To be told whether or not the thread has waited.
    pub(crate) steal_stale: bool,
    /// The guest has been told that this vCPU does not run, and may have left a flush of its translations to the next
    /// entry.
    pub(super) preempted: bool,
    /// MSR_KVM_POLL_CONTROL: the guest polls itself before it halts, so its vCPU does not.
    pub(crate) no_poll: bool,
    /// KVM_HC_KICK_CPU came: the next HLT, or the present one, is over.
    pub(crate) unhalted: bool,
    /// MSR_KVM_ASYNC_PF_EN and MSR_KVM_ASYNC_PF_INT.
    pub(super) async_pf_en: u64,
    pub(super) async_pf_int: u64,
    /// MSR_KVM_PV_EOI_EN.
    pub(super) eoi: u64,
    /// The guest may end its interrupt by clearing the bit, and has not been seen to have done so.
    pub(super) eoi_offered: bool,
    /// KVM_SET_VAPIC_ADDR: where the task priority is; 0: nowhere.
    vapic: u64,
    /// The word there, as it was last read or written.
    pub(super) vapic_seen: Option<u32>,
    /// It is to be written, outside of stays.
    pub(crate) vapic_stale: bool,
    /// After an exit there is something to be taken from memory: an end of interrupt, or the task priority.
    watched: bool,
}

impl Paravirt {
    /// RESET or INIT: everything is switched off.
    pub(crate) fn reset(&mut self) {
        *self = Self {
            enforce: self.enforce,
            no_poll: self.no_poll,
            ..Self::default()
        };
    }

    /// Becomes what it was, but for what user space has configured, and what the thread has waited.
    pub(crate) fn put_back(&mut self, then: &Self) {
        *self = Self {
            enforce: self.enforce,
            steal_told: self.steal_told,
            ..then.clone()
        };
    }

    /// Whether a feature that has no MSR is there for the guest.
    pub(crate) fn has(&self, f: &GuestFeatures, feature: u32) -> bool {
        !self.enforce || f.kvm_features & feature != 0
    }

    /// Whether the guest is to be told of stolen time. (The processor's time, that is: nothing to do with the TSC.)
    #[inline]
    pub(crate) fn steal_wanted(&self) -> bool {
        self.steal_time & 1 != 0
            && (self.steal_stale || self.preempted || sched::run_delay() != self.steal_told)
    }

    /// Whether the guest would like to end interrupts in memory.
    #[inline]
    pub(crate) fn eoi_wanted(&self) -> bool {
        self.eoi & 1 != 0
    }

    /// The word in which the guest may end interrupts is here, with bit 0, or nowhere: Hyper-V's way to say so.
    pub(crate) fn set_eoi_word(&mut self, value: u64) {
        self.eoi = value;
    }

    /// Whether the guest may have ended an interrupt in memory.
    #[inline]
    pub(crate) fn eoi_offered(&self) -> bool {
        self.eoi_offered
    }

    /// The guest may end its interrupt in memory from now on, or no more.
    pub(super) fn set_eoi_offered(&mut self, on: bool) {
        self.eoi_offered = on;
        self.watched = on || self.vapic != 0;
    }

    /// Whether the guest may have ended an interrupt, or changed its task priority, in memory.
    #[inline]
    pub(crate) fn is_watched(&self) -> bool {
        self.watched
    }

    /// Where the task priority is in memory, if it is.
    #[inline]
    pub(crate) fn vapic(&self) -> Option<Gpa> {
        (self.vapic != 0).then_some(Gpa(self.vapic))
    }

    /// The task priority is in memory at `gpa` from now on; 0: nowhere.
    pub(crate) fn set_vapic(&mut self, gpa: u64) {
        self.vapic = gpa;
        self.vapic_seen = None;
        self.vapic_stale = gpa != 0;
        self.watched = self.eoi_offered || gpa != 0;
    }

    /// MSR_KVM_ASYNC_PF_EN: bits of [`enable`].
    #[inline]
    pub(crate) fn async_pf_en(&self) -> u64 {
        self.async_pf_en
    }

    /// Whether page faults may be asynchronous.
    pub(crate) fn async_pf_is_on(&self) -> bool {
        enable::is_on(self.async_pf_en)
    }

    /// The `struct kvm_vcpu_pv_apf_data`: where, if they may.
    pub(crate) fn async_pf_area(&self) -> Gpa {
        Gpa(self.async_pf_en & !0x3f)
    }

    /// The interrupt by which the guest learns that a page is ready.
    pub(crate) fn async_pf_vector(&self) -> u8 {
        self.async_pf_int as u8
    }

    /// The `struct kvm_steal_time`: where, if it is switched on.
    pub(crate) fn steal_page(&self) -> Gpa {
        Gpa(self.steal_time & !0x3f)
    }

    /// The clock's page: where, if it is switched on.
    pub(crate) fn clock_page(&self) -> Option<Gpa> {
        let gpa = self.system_time & !1;
        let inside = gpa & (PAGE_SIZE - 1) <= PAGE_SIZE - kvmclock::TIME_INFO as u64;
        (self.system_time & 1 != 0 && inside).then_some(Gpa(gpa))
    }
}
