// SPDX-License-Identifier: GPL-2.0
//! Stolen time: how long a vCPU's thread has waited for a CPU, and whether it runs (MSR_KVM_STEAL_TIME,
//! `struct kvm_steal_time`; kernel document virt/kvm/x86/msr.rst).
//!
//! The run loop calls these outside stays, under the vCPU's mutex.

use crate::linux::{sched, uaccess, user_atomic};
use crate::mem::addr::Gpa;
use crate::mem::memory::MemoryView;
use crate::mem::resident::resident;
use crate::x86::cpu::cpuid::kvm_feature;
use crate::x86::pv::kvmclock;
use crate::x86::vcpu::state::State;
use crate::x86::vm::Vm;
use kernel::prelude::*;

/// Tells the guest how long its vCPU's thread has waited for a CPU (`struct kvm_steal_time`). May sleep.
#[cold]
pub(crate) fn update(vm: &Vm, s: &mut State) {
    s.pv.steal_stale = false;
    let now = sched::run_delay();
    // Another thread may run the vCPU now: it has no common past with the last one.
    let stolen = now.saturating_sub(s.pv.steal_told);
    s.pv.steal_told = now;
    let told = core::mem::take(&mut s.pv.preempted);
    let flush = match write_steal_time(&vm.memory.view_of(&s.ring), s.pv.steal_page(), stolen) {
        Ok(preempted) => preempted & FLUSH_TLB != 0,
        // What was left there cannot be read.
        Err(_) => told,
    };
    if flush && s.pv.has(&s.cpuid.features, kvm_feature::PV_TLB_FLUSH) {
        s.last_stay.tlb_generation = 0;
    }
}

/// Offset of `preempted` in `struct kvm_steal_time`.
const PREEMPTED: usize = 16;
/// Its bits: the vCPU does not run; another vCPU wants its translations flushed before it does.
const VCPU_PREEMPTED: u8 = 1;
const FLUSH_TLB: u8 = 2;

/// The vCPU's thread is about to wait: tells the guest that this vCPU does not run, so that others need not wait for
/// it.
///
/// To be called between instructions only: from now on the guest may count on a flush before the next one, and what has
/// been translated for an instruction that is half done would survive that. Not for a halted vCPU: an interrupt to that
/// one is as good as to one that runs, and the guest's scheduler would take its CPU for a bad choice.
///
/// Sleeps if that is allowed and what was there has to be saved first; where it is not, the guest may not be told.
pub(crate) fn set_preempted(vm: &Vm, s: &mut State, may_sleep: bool) {
    if s.pv.steal_time & 1 == 0 || s.pv.preempted {
        return;
    }
    let (view, gpa) = (vm.memory.view_of(&s.ring), s.pv.steal_page());
    let Ok(hva) = view.hva_to_write(gpa, may_sleep) else {
        return;
    };
    // Aligned to 64 bytes, so the sum is in the same page.
    if uaccess::put_u8(hva.wrapping_add(PREEMPTED), VCPU_PREEMPTED).is_ok() {
        s.pv.preempted = true;
        view.mark_dirty(gpa);
    }
}

/// What `preempted` was.
fn write_steal_time(view: &MemoryView<'_>, gpa: Gpa, stolen: u64) -> Result<u8> {
    const VERSION: usize = 8;
    // Aligned to its size of 64 bytes: in one page.
    let hva = view.hva_to_write(gpa, true)?;
    let field = |o: usize| hva.checked_add(o).ok_or(EFAULT);
    let (version_at, preempted_at) = (field(VERSION)?, field(PREEMPTED)?);
    // Other vCPUs add to it until it is zero.
    let preempted = resident(hva, || {
        let mut old = uaccess::get_u8(preempted_at)?;
        while let Err(found) = user_atomic::cmpxchg_u8(preempted_at, old, 0)? {
            old = found;
        }
        Ok(old)
    })?;
    let version = kvmclock::writing(resident(hva, || uaccess::get_u32(version_at))?);
    resident(hva, || uaccess::put_u32(version_at, version))?;
    let steal = resident(hva, || uaccess::get_u64(hva))?.wrapping_add(stolen);
    resident(hva, || uaccess::put_u64(hva, steal))?;
    resident(hva, || {
        uaccess::put_u32(version_at, version.wrapping_add(1))
    })?;
    view.mark_dirty(gpa);
    Ok(preempted)
}
