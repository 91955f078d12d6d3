// SPDX-License-Identifier: GPL-2.0
//! KVM's paravirtual MSRs (kernel document virt/kvm/x86/msr.rst).
//!
//! `State::read_msr` and `State::write_msr` call [`read`] and [`write`], under the vCPU's mutex.

use crate::linux::gup;
use crate::mem::addr::Gpa;
use crate::x86::cpu::cpuid::kvm_feature;
use crate::x86::cpu::index as ix;
use crate::x86::pv::asked::enable;
use crate::x86::pv::clock_page;
use crate::x86::shared::request;
use crate::x86::vcpu::state::State;
use crate::x86::vm::Vm;
use core::sync::atomic::Ordering;

/// Whether a write of this MSR may have to touch guest memory: pages are written with user accesses that may sleep, and
/// the clock's page follows the TSC.
pub(crate) fn may_sleep(index: u32) -> bool {
    matches!(
        index,
        ix::TSC | ix::TSC_ADJUST | ix::KVM_WALL_CLOCK | ix::KVM_SYSTEM_TIME | ix::KVM_FIRST
            ..=ix::KVM_MIGRATION_CONTROL
    )
}

/// The page that WRMSR itself accesses, if one.
pub(crate) fn page_of(index: u32, value: u64) -> Option<Gpa> {
    match index {
        ix::KVM_WALL_CLOCK | ix::KVM_WALL_CLOCK_NEW if value != 0 => Some(Gpa(value)),
        ix::KVM_PV_EOI_EN if value & 1 != 0 => Some(Gpa(value & !1)),
        _ => None,
    }
}

/// RDMSR.
pub(crate) fn read(vm: &Vm, s: &State, index: u32) -> Option<u64> {
    match index {
        ix::KVM_WALL_CLOCK | ix::KVM_WALL_CLOCK_NEW => {
            Some(vm.clock.wall_clock.load(Ordering::Relaxed))
        }
        ix::KVM_SYSTEM_TIME | ix::KVM_SYSTEM_TIME_NEW => Some(s.pv.system_time),
        ix::KVM_ASYNC_PF_EN => Some(s.pv.async_pf_en),
        ix::KVM_ASYNC_PF_INT => Some(s.pv.async_pf_int),
        ix::KVM_ASYNC_PF_ACK => Some(0),
        ix::KVM_STEAL_TIME => Some(s.pv.steal_time),
        ix::KVM_PV_EOI_EN => Some(s.pv.eoi),
        ix::KVM_POLL_CONTROL => Some((!s.pv.no_poll).into()),
        _ => None,
    }
}

/// The vCPU looks before its next entry whether its guest is to be told of pages.
fn look_at_pages(vm: &Vm, s: &State) {
    if let Some(vcpu) = vm.vcpus.with_id(s.id) {
        vcpu.request_self(request::ASYNC_PF);
    }
}

/// WRMSR; false raises #GP.
pub(crate) fn write(vm: &Vm, s: &mut State, index: u32, value: u64, by_host: bool) -> bool {
    match index {
        ix::KVM_WALL_CLOCK | ix::KVM_WALL_CLOCK_NEW => {
            vm.clock.wall_clock.store(value, Ordering::Relaxed);
            if value != 0 {
                let _ = clock_page::write_wall_clock(vm, s, Gpa(value));
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
        ix::KVM_ASYNC_PF_EN => {
            let f = &s.cpuid.features;
            let has = |bit, feature| value & bit == 0 || s.pv.has(f, feature);
            if value & enable::RESERVED != 0
                || !has(enable::AS_VMEXIT, kvm_feature::ASYNC_PF_VMEXIT)
                || !has(enable::INTERRUPT, kvm_feature::ASYNC_PF_INT)
            {
                return false;
            }
            if s.apic.lapic.is_none() {
                return value == 0;
            }
            let area = Gpa(value & !0x3f);
            let on = enable::is_on(value);
            if on && vm.memory.view().hva(area, false).is_err() {
                return false;
            }
            s.pv.async_pf_en = value;
            if on {
                s.apf.tell_all();
            } else {
                s.apf.clear();
            }
            look_at_pages(vm, s);
        }
        ix::KVM_ASYNC_PF_INT => {
            if value >> 8 != 0 || s.apic.lapic.is_none() {
                return false;
            }
            s.pv.async_pf_int = value;
        }
        // The guest has seen to the page that it was told of.
        ix::KVM_ASYNC_PF_ACK => {
            if value & 1 != 0 {
                look_at_pages(vm, s);
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
                s.last_stay.tlb_generation = 0;
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
                let view = vm.memory.view();
                let Ok(hva) = view.hva(Gpa(gpa), false) else {
                    return false;
                };
                // Inside stays it is written only when it is there. One that user space is yet to bring is left alone.
                if view.check_present(Gpa(gpa)).is_ok() {
                    let _ = gup::fault_in(hva, true);
                }
            }
            s.pv.eoi = value;
        }
        _ => return false,
    }
    true
}
