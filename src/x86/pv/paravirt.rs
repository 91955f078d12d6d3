// SPDX-License-Identifier: GPL-2.0
//! KVM's paravirtual MSRs: guest memory in which the hypervisor tells the guest the time, and in which the guest
//! ends interrupts (kernel document virt/kvm/x86/msr.rst).
//!
//! Pages are written outside stays, on [`request::CLOCK`]. An address without memory is nobody's error: nothing is written.

use crate::linux::{gup, sched, uaccess};
use crate::mem::addr::{Gpa, PAGE_SIZE};
use crate::mem::memory::MemoryView;
use crate::x86::cpu::cpuid::{kvm_feature, GuestFeatures};
use crate::x86::cpu::index as ix;
use crate::x86::cpu::tsc;
use crate::x86::irqchip::msg::Vector;
use crate::x86::pv::kvmclock;
use crate::x86::pv::kvmclock::TimeInfo;
use crate::x86::shared::request;
use crate::x86::vcpu::state::State;
use crate::x86::vm::Vm;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// A vCPU's part.
#[derive(Debug, Default)]
pub(crate) struct Paravirt {
    /// KVM_CAP_ENFORCE_PV_FEATURE_CPUID.
    pub(crate) enforce: bool,
    /// MSR_KVM_SYSTEM_TIME(_NEW).
    system_time: u64,
    /// The TSC's offset or rate changed after the clock's page was written.
    pub(crate) clock_stale: bool,
    /// KVM_KVMCLOCK_CTRL: to be told with the next writing of the page.
    stopped: bool,
    /// MSR_KVM_STEAL_TIME.
    steal_time: u64,
    /// The thread's waiting time that the guest has been told of.
    steal_told: u64,
    /// To be told whether or not the thread has waited.
    pub(crate) steal_stale: bool,
    /// The guest has been told that this vCPU does not run, and may have left a flush of its translations to the next entry.
    preempted: bool,
    /// MSR_KVM_POLL_CONTROL. No halted vCPU polls, so it is only kept.
    no_poll: bool,
    /// KVM_HC_KICK_CPU came: the next HLT, or the present one, is over.
    pub(crate) unhalted: bool,
    /// MSR_KVM_PV_EOI_EN.
    eoi: u64,
    /// The guest may end its interrupt by clearing the bit, and has not been seen to have done so.
    eoi_offered: bool,
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

    /// Whether the guest may have ended an interrupt in memory.
    #[inline]
    pub(crate) fn eoi_offered(&self) -> bool {
        self.eoi_offered
    }

    /// The `struct kvm_steal_time`: where, if it is switched on.
    fn steal_page(&self) -> Gpa {
        Gpa(self.steal_time & !0x3f)
    }

    /// The clock's page: where, if it is switched on.
    fn clock_page(&self) -> Option<Gpa> {
        let gpa = self.system_time & !1;
        let inside = gpa & (PAGE_SIZE - 1) <= PAGE_SIZE - kvmclock::TIME_INFO as u64;
        (self.system_time & 1 != 0 && inside).then_some(Gpa(gpa))
    }
}

/// Whether a write of this MSR may have to touch guest memory: pages are written with user accesses that may sleep, and the clock's
/// page follows the TSC.
pub(crate) fn may_sleep(index: u32) -> bool {
    matches!(
        index,
        ix::TSC | ix::TSC_ADJUST | ix::KVM_WALL_CLOCK | ix::KVM_SYSTEM_TIME | ix::KVM_FIRST
            ..=ix::KVM_MIGRATION_CONTROL
    )
}

/// RDMSR.
pub(crate) fn read(vm: &Vm, s: &State, index: u32) -> Option<u64> {
    match index {
        ix::KVM_WALL_CLOCK | ix::KVM_WALL_CLOCK_NEW => {
            Some(vm.clock.wall_clock.load(Ordering::Relaxed))
        }
        ix::KVM_SYSTEM_TIME | ix::KVM_SYSTEM_TIME_NEW => Some(s.pv.system_time),
        ix::KVM_STEAL_TIME => Some(s.pv.steal_time),
        ix::KVM_PV_EOI_EN => Some(s.pv.eoi),
        ix::KVM_POLL_CONTROL => Some((!s.pv.no_poll).into()),
        _ => None,
    }
}

/// WRMSR; false raises #GP.
pub(crate) fn write(vm: &Vm, s: &mut State, index: u32, value: u64, by_host: bool) -> bool {
    match index {
        ix::KVM_WALL_CLOCK | ix::KVM_WALL_CLOCK_NEW => {
            vm.clock.wall_clock.store(value, Ordering::Relaxed);
            if value != 0 {
                let _ = write_wall_clock(vm, Gpa(value));
            }
        }
        ix::KVM_SYSTEM_TIME | ix::KVM_SYSTEM_TIME_NEW => {
            let vcpus = &vm.vcpus;
            if s.id == 0 && !by_host {
                vm.clock.set_old_msr(vcpus, index == ix::KVM_SYSTEM_TIME);
            }
            s.pv.system_time = value;
            s.pv.clock_stale = true;
            if !vm.clock.is_common() {
                // Points that are apart in time say different times: all take a new one.
                vcpus.request_all(request::CLOCK);
            }
        }
        ix::KVM_STEAL_TIME => {
            const RESERVED: u64 = 0x3e;
            if value & RESERVED != 0 {
                return false;
            }
            s.pv.steal_time = value;
            s.pv.steal_stale = true;
            if core::mem::take(&mut s.pv.preempted) {
                s.tlb_seen = 0;
            }
        }
        ix::KVM_POLL_CONTROL => {
            if value & !1 != 0 {
                return false;
            }
            s.pv.no_poll = value == 0;
        }
        ix::KVM_PV_EOI_EN => {
            let gpa = value & !1;
            if gpa & 3 != 0 {
                return false;
            }
            if value & 1 != 0 {
                let Ok(hva) = vm.memory.view().hva(Gpa(gpa), false) else {
                    return false;
                };
                // Inside stays it is written only when it is there.
                let _ = gup::fault_in(hva, true);
            }
            s.pv.eoi = value;
        }
        _ => return false,
    }
    true
}

/// Tells the guest how long its vCPU's thread has waited for a CPU (`struct kvm_steal_time`). May sleep.
#[cold]
pub(crate) fn update_steal_time(vm: &Vm, s: &mut State) {
    s.pv.steal_stale = false;
    let now = sched::run_delay();
    // Another thread may run the vCPU now: it has no common past with the last one.
    let stolen = now.saturating_sub(s.pv.steal_told);
    s.pv.steal_told = now;
    let told = core::mem::take(&mut s.pv.preempted);
    let flush = match write_steal_time(&vm.memory.view(), s.pv.steal_page(), stolen) {
        Ok(preempted) => preempted & FLUSH_TLB != 0,
        // What was left there cannot be read.
        Err(_) => told,
    };
    if flush && s.pv.has(&s.features, kvm_feature::PV_TLB_FLUSH) {
        s.tlb_seen = 0;
    }
}

/// Offset of `preempted` in `struct kvm_steal_time`.
const PREEMPTED: usize = 16;
/// Its bits: the vCPU does not run; another vCPU wants its translations flushed before it does.
const VCPU_PREEMPTED: u8 = 1;
const FLUSH_TLB: u8 = 2;

/// The vCPU's thread is about to wait: tells the guest that this vCPU does not run, so that others need not wait for it.
///
/// To be called between instructions only: from now on the guest may count on a flush before the next one, and what has been
/// translated for an instruction that is half done would survive that. Not for a halted vCPU: an interrupt to that one is as good
/// as to one that runs, and the guest's scheduler would take its CPU for a bad choice.
pub(crate) fn set_preempted(vm: &Vm, s: &mut State) {
    if s.pv.steal_time & 1 == 0 || s.pv.preempted {
        return;
    }
    let (view, gpa) = (vm.memory.view(), s.pv.steal_page());
    let Ok(hva) = view.hva(gpa, true) else { return };
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
    let hva = view.hva(gpa, true)?;
    let field = |o: usize| hva.checked_add(o).ok_or(EFAULT);
    let (version_at, preempted_at) = (field(VERSION)?, field(PREEMPTED)?);
    // Other vCPUs add to it until it is zero.
    let preempted = resident(hva, || {
        let mut old = uaccess::get_u8(preempted_at)?;
        while let Err(found) = uaccess::cmpxchg_u8(preempted_at, old, 0)? {
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

/// The entry delivers `vector` of the local APIC: lets the guest end it by clearing a bit, without an exit, if nothing else hangs on
/// its end. That is so if no other interrupt is in service or waits, and nobody outside of the local APIC watches the vector.
pub(crate) fn offer_eoi(vm: &Vm, s: &mut State, vector: u8) {
    let Some(l) = &s.lapic else { return };
    let (word, bit) = Vector(vector).word_bit();
    let only = l
        .isr()
        .iter()
        .enumerate()
        .all(|(i, w)| *w == if i == word { bit } else { 0 });
    let level = l.tmr().get(word).is_some_and(|w| w & bit != 0);
    if !only || level || l.highest_irr().is_some() || vm.chip.edge_eoi_vectors(word) & bit != 0 {
        return;
    }
    let view = vm.memory.view();
    let gpa = Gpa(s.pv.eoi & !1);
    if let Ok(hva) = view.hva(gpa, true) {
        s.pv.eoi_offered = uaccess::put_u8(hva, 1).is_ok();
        view.mark_dirty(gpa);
    }
}

/// After an exit: ends the interrupt if the guest has cleared the bit, else takes the offer back. False if that has to sleep.
pub(crate) fn take_eoi(vm: &Vm, s: &mut State, atomic: bool) -> bool {
    let ended = {
        let view = vm.memory.view();
        let gpa = Gpa(s.pv.eoi & !1);
        let swap = |hva: usize| -> Result<bool> {
            let ended = uaccess::get_u8(hva)? & 1 == 0;
            if !ended {
                uaccess::put_u8(hva, 0)?;
            }
            Ok(ended)
        };
        match view.hva(gpa, true) {
            Ok(hva) if atomic => swap(hva).ok(),
            Ok(hva) => resident(hva, || swap(hva)).ok(),
            Err(_) => Some(false),
        }
    };
    if ended.is_none() && atomic {
        return false;
    }
    s.pv.eoi_offered = false;
    if let (Some(true), Some(l)) = (ended, &mut s.lapic) {
        if let Some(e) = l.eoi().eoi {
            vm.chip.edge_eoi(e.vector.0);
        }
    }
    true
}

/// KVM_KVMCLOCK_CTRL. EINVAL without clock page.
pub(crate) fn guest_stopped(s: &mut State) -> Result {
    if s.pv.system_time & 1 == 0 {
        return Err(EINVAL);
    }
    s.pv.stopped = true;
    s.pv.clock_stale = true;
    Ok(())
}

/// Writes the clock's page. May sleep.
#[cold]
pub(crate) fn update_clock(vm: &Vm, s: &mut State) {
    s.pv.clock_stale = false;
    let Some(gpa) = s.pv.clock_page() else { return };
    let r = vm.clock.reference();
    let mut flags = 0;
    if r.common {
        flags |= kvmclock::TSC_STABLE;
    }
    if core::mem::take(&mut s.pv.stopped) {
        flags |= kvmclock::GUEST_STOPPED;
    }
    let info = TimeInfo {
        tsc: s.tsc_at(r.host_tsc),
        system_time: r.ns,
        rate: tsc::tsc_to_ns(s.tsc_rate_khz()),
        flags,
    };
    let _ = write_time_info(&vm.memory.view(), gpa, info);
}

/// Calls `f`, which touches user memory at `hva` without sleeping, until the page is there.
fn resident<T>(hva: usize, mut f: impl FnMut() -> Result<T>) -> Result<T> {
    // The page may go again at once, but hardly three times.
    for _ in 0..3 {
        if let Ok(v) = f() {
            return Ok(v);
        }
        gup::fault_in(hva, true)?;
    }
    f()
}

fn write_time_info(view: &MemoryView<'_>, gpa: Gpa, mut info: TimeInfo) -> Result {
    let hva = view.hva(gpa, true)?;
    let at = hva.checked_add(kvmclock::TIME_INFO_FLAGS).ok_or(EFAULT)?;
    // Another vCPU may read the page meanwhile: the version is odd from the first write to the last. Each is one call out of this
    // language, which keeps their order, as the processor does.
    let version = kvmclock::writing(resident(hva, || uaccess::get_u32(hva))?);
    resident(hva, || uaccess::put_u32(hva, version))?;
    // The guest clears it when it has seen it.
    info.flags |= resident(hva, || uaccess::get_u8(at))? & kvmclock::GUEST_STOPPED;
    let bytes = info.to_bytes(version);
    resident(hva, || uaccess::copy_to(hva, &bytes))?;
    resident(hva, || uaccess::put_u32(hva, version.wrapping_add(1)))?;
    view.mark_dirty(gpa);
    Ok(())
}

/// Writes `struct pvclock_wall_clock` (version, seconds, nanoseconds): when the VM's clock was zero.
fn write_wall_clock(vm: &Vm, gpa: Gpa) -> Result {
    let view = vm.memory.view();
    let mut old = [0; 4];
    view.read(gpa, &mut old)?;
    let version = kvmclock::writing(u32::from_le_bytes(old));
    view.write(gpa, &version.to_le_bytes())?;
    let (seconds, ns) = kvmclock::wall_clock(vm.clock.epoch_ns());
    view.write(gpa.wrapping_add(4), &seconds.to_le_bytes())?;
    view.write(gpa.wrapping_add(8), &ns.to_le_bytes())?;
    view.write(gpa, &version.wrapping_add(1).to_le_bytes())?;
    Ok(())
}
