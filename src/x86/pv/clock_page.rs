// SPDX-License-Identifier: GPL-2.0
//! The pages in which the hypervisor tells a guest the time (MSR_KVM_SYSTEM_TIME, MSR_KVM_WALL_CLOCK; kernel document
//! virt/kvm/x86/msr.rst).
//!
//! The run loop writes them outside stays, on [`crate::x86::shared::request::CLOCK`], under the vCPU's mutex; it may
//! sleep.

use crate::linux::uaccess;
use crate::mem::addr::Gpa;
use crate::mem::memory::MemoryView;
use crate::mem::resident::resident;
use crate::x86::cpu::tsc;
use crate::x86::pv::kvmclock;
use crate::x86::pv::kvmclock::TimeInfo;
use crate::x86::vcpu::state::State;
use crate::x86::vm::Vm;
use kernel::prelude::*;

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
pub(crate) fn update(vm: &Vm, s: &mut State) {
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
    let _ = write_time_info(&vm.memory.view_of(&s.ring), gpa, info);
}

fn write_time_info(view: &MemoryView<'_>, gpa: Gpa, mut info: TimeInfo) -> Result {
    let hva = view.hva_to_write(gpa, true)?;
    let at = hva.checked_add(kvmclock::TIME_INFO_FLAGS).ok_or(EFAULT)?;
    // Another vCPU may read the page meanwhile: the version is odd from the first write to the last. Each is one call
    // out of this language, which keeps their order, as the processor does.
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
pub(super) fn write_wall_clock(vm: &Vm, s: &State, gpa: Gpa) -> Result {
    let view = vm.memory.view_of(&s.ring);
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
