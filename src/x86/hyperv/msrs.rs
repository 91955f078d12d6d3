// SPDX-License-Identifier: GPL-2.0
//! Hyper-V's MSRs (TLFS appendix F).
//!
//! `State::read_msr` and `State::write_msr` call [`read`] and [`write`], under the vCPU's mutex.

use crate::bus::set::MAX_VCPUS;
use crate::linux::hrtimer::ktime_get_ns;
use crate::mem::addr::{Gpa, PAGE_SIZE};
use crate::mem::memory::{MemError, MemoryView};
use crate::nospec::Nospec;
use crate::x86::cpu::cpuid::Vendor;
use crate::x86::cpu::index as ix;
use crate::x86::hyperv::defs::{CRASH_NOTIFY, EXPOSE_INVARIANT_TSC, PAGE_ENABLED};
use crate::x86::hyperv::messages;
use crate::x86::hyperv::partition::Registers;
use crate::x86::hyperv::stimer::Stimer;
use crate::x86::hyperv::time;
use crate::x86::hyperv::tsc_page::PageState;
use crate::x86::hyperv::vcpu::{HypervVcpu, Owed};
use crate::x86::irqchip::lapic::{reg, Action};
use crate::x86::shared::request;
use crate::x86::vcpu::state::State;
use crate::x86::vm::Vm;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// Whether an access has to be made outside stays. The APIC's registers need not.
#[inline]
pub(crate) fn may_sleep(index: u32) -> bool {
    (ix::HV_FIRST..=ix::HV_LAST).contains(&index)
        && !matches!(index, ix::HV_EOI..=ix::HV_TPR | ix::HV_VP_INDEX)
}

/// The page that a write makes the vCPU write, if one.
pub(crate) fn page_of(index: u32, value: u64) -> Option<Gpa> {
    let has_page = matches!(
        index,
        ix::HV_HYPERCALL
            | ix::HV_REFERENCE_TSC
            | ix::HV_VP_ASSIST_PAGE
            | ix::HV_SIEFP
            | ix::HV_SIMP
    );
    (has_page && value & PAGE_ENABLED != 0).then_some(Gpa(value & !0xfff))
}

impl State {
    /// The vCPU's part, made if it is not there. ENOMEM.
    pub(crate) fn hyperv(&mut self) -> Result<&mut HypervVcpu> {
        if self.hv.is_none() {
            self.hv = Some(HypervVcpu::new()?);
        }
        Ok(self.hv.as_mut().ok_or(ENOMEM)?)
    }

    /// Whether the guest has Hyper-V's interface.
    #[inline]
    pub(crate) fn has_hyperv(&self) -> bool {
        self.hv.as_ref().is_some_and(|hv| hv.granted.enabled)
    }

    /// Whether the guest may access this MSR.
    fn may_access(&self, index: u32) -> bool {
        self.hv
            .as_ref()
            .is_some_and(|hv| hv.granted.enabled && (!hv.enforce || hv.granted.has_msr(index)))
    }
}

/// RDMSR.
pub(crate) fn read(vm: &Vm, s: &mut State, index: u32, by_host: bool) -> Option<u64> {
    if !by_host && !s.may_access(index) {
        return None;
    }
    match index {
        ix::HV_VP_INDEX => {
            let v = vm.vcpus.with_id(s.id)?;
            return Some(v.arch.vp_index.load(Ordering::Relaxed).into());
        }
        ix::HV_EOI..=ix::HV_TPR => return read_apic(s, index),
        ix::HV_TIME_REF_COUNT => return Some(time::now(vm, s)),
        ix::HV_TSC_FREQUENCY => return Some(u64::from(s.tsc.khz).wrapping_mul(1000)),
        ix::HV_APIC_FREQUENCY => {
            return 1_000_000_000u64.checked_div(vm.caps.bus_cycle_ns().into());
        }
        _ => {}
    }
    let hv = s.hyperv().ok()?;
    let r = &hv.registers;
    Some(match index {
        ix::HV_VP_ASSIST_PAGE => r.assist_page,
        ix::HV_VP_RUNTIME => r.run_time(),
        ix::HV_SCONTROL..=ix::HV_EOM | ix::HV_SINT0..=ix::HV_SINT15 => {
            if !r.synic.active && !by_host {
                return None;
            }
            r.synic.get(index)?
        }
        ix::HV_STIMER0_CONFIG..=ix::HV_STIMER3_COUNT => {
            let n = index - ix::HV_STIMER0_CONFIG;
            let t = r.timers.get_nospec((n / 2) as usize)?;
            if n & 1 == 0 {
                t.config()
            } else {
                t.count()
            }
        }
        ix::HV_SYNDBG_CONTROL..=ix::HV_SYNDBG_OPTIONS if !by_host && !hv.granted.debugs() => {
            return None;
        }
        _ => read_shared(&vm.hyperv.lock().registers, index)?,
    })
}

/// A register that all vCPUs share.
fn read_shared(r: &Registers, index: u32) -> Option<u64> {
    Some(match index {
        ix::HV_GUEST_OS_ID => r.guest_os_id,
        ix::HV_HYPERCALL => r.hypercall,
        ix::HV_RESET => 0,
        ix::HV_REFERENCE_TSC => r.tsc_page,
        ix::HV_CRASH_P0..=ix::HV_CRASH_P4 => {
            *r.crash.get_nospec((index - ix::HV_CRASH_P0) as usize)?
        }
        ix::HV_CRASH_CTL => r.crash_control,
        ix::HV_REENLIGHTENMENT_CONTROL => r.reenlightenment,
        ix::HV_TSC_EMULATION_CONTROL => r.emulation_control,
        ix::HV_TSC_EMULATION_STATUS => r.emulation_status,
        ix::HV_TSC_INVARIANT_CONTROL => r.invariant_control,
        ix::HV_SYNDBG_CONTROL => r.debug.control,
        ix::HV_SYNDBG_STATUS => r.debug.status,
        ix::HV_SYNDBG_SEND_BUFFER => r.debug.send_page,
        ix::HV_SYNDBG_RECV_BUFFER => r.debug.recv_page,
        ix::HV_SYNDBG_PENDING_BUFFER => r.debug.pending_page,
        ix::HV_SYNDBG_OPTIONS => r.debug.options,
        _ => return None,
    })
}

/// The number of the x2APIC MSR that the register at `offset` of the page has.
const fn x2apic(offset: u32) -> u32 {
    ix::X2APIC_FIRST + (offset >> 4)
}

fn read_apic(s: &mut State, index: u32) -> Option<u64> {
    let l = s.apic.lapic.as_mut()?;
    let now = ktime_get_ns();
    match index {
        ix::HV_ICR if l.is_x2apic() => l.rdmsr(x2apic(reg::ICR), now).ok(),
        ix::HV_ICR => {
            let (low, high) = (l.read(reg::ICR, now), l.read(reg::ICR2, now));
            Some(u64::from(low) | u64::from(high) << 32)
        }
        ix::HV_TPR => Some(l.tpr().into()),
        _ => None,
    }
}

/// EOI, ICR and TPR, in any mode of the local APIC (TLFS 10.2).
fn write_apic(s: &mut State, index: u32, value: u64) -> Option<Action> {
    let l = s.apic.lapic.as_mut()?;
    let now = ktime_get_ns();
    let (low, high) = (value as u32, (value >> 32) as u32);
    let offset = match index {
        ix::HV_EOI => reg::EOI,
        ix::HV_ICR => reg::ICR,
        _ => reg::TPR,
    };
    if offset != reg::ICR && high != 0 {
        return None;
    }
    // As x2APIC's MSR in any mode, as in KVM.
    if offset == reg::ICR {
        return l.write_icr(value).ok();
    }
    if !l.is_x2apic() {
        return Some(l.write(offset, low, now));
    }
    match offset {
        // Any value ends an interrupt.
        reg::EOI => Some(l.eoi()),
        _ => l.wrmsr(x2apic(offset), value, now).ok(),
    }
}

/// WRMSR; `None` raises #GP.
pub(crate) fn write(
    vm: &Vm,
    s: &mut State,
    index: u32,
    value: u64,
    by_host: bool,
) -> Option<Action> {
    if !by_host && !s.may_access(index) {
        return None;
    }
    match index {
        ix::HV_EOI..=ix::HV_TPR => return write_apic(s, index, value),
        ix::HV_VP_INDEX => {
            let vp = value as u32;
            let v = vm.vcpus.with_id(s.id)?;
            if !by_host || vp as usize >= MAX_VCPUS {
                return None;
            }
            v.arch.vp_index.store(vp, Ordering::Relaxed);
        }
        // Read-only. User space may put back what it has read.
        ix::HV_TIME_REF_COUNT | ix::HV_TSC_FREQUENCY | ix::HV_APIC_FREQUENCY if by_host => {}
        ix::HV_VP_RUNTIME if by_host => {
            s.hyperv().ok()?.registers.set_run_time(value);
        }
        ix::HV_VP_ASSIST_PAGE => write_assist_page(vm, s, value, by_host)?,
        ix::HV_SCONTROL..=ix::HV_EOM | ix::HV_SINT0..=ix::HV_SINT15 => {
            write_synic(vm, s, index, value, by_host)?;
        }
        ix::HV_STIMER0_CONFIG..=ix::HV_STIMER3_COUNT => {
            write_timer(vm, s, index - ix::HV_STIMER0_CONFIG, value, by_host)?;
        }
        ix::HV_HYPERCALL => write_hypercall(vm, s, value, by_host)?,
        _ => write_shared(vm, s, index, value, by_host)?,
    }
    Some(Action::NONE)
}

/// Writes into a register's page. Where user space restores the register it may bring the page later, as it was.
fn put(view: &MemoryView<'_>, gpa: Gpa, bytes: &[u8], by_host: bool) -> Option<()> {
    match view.write(gpa, bytes) {
        Err(MemError::Missing(_)) if by_host => Some(()),
        written => written.ok(),
    }
}

/// The page whose first word says that an interrupt needs no EOI (TLFS 10.3.5); the rest is for nested hypervisors.
fn write_assist_page(vm: &Vm, s: &mut State, value: u64, by_host: bool) -> Option<()> {
    let mut eoi = 0;
    if value & PAGE_ENABLED != 0 {
        let gpa = Gpa(value & !0xfff);
        // The rest stays: after a migration it is the guest's.
        let view = vm.memory.view_of(&s.ring);
        put(&view, gpa, &0u32.to_le_bytes(), by_host)?;
        eoi = gpa.0 | 1;
    }
    s.hyperv().ok()?.registers.assist_page = value;
    s.pv.set_eoi_word(eoi);
    Some(())
}

fn write_synic(vm: &Vm, s: &mut State, index: u32, value: u64, by_host: bool) -> Option<()> {
    let shared = vm.vcpus.with_id(s.id)?;
    let synic = &s.hyperv().ok()?.registers.synic;
    let zeroed = matches!(index, ix::HV_SIEFP | ix::HV_SIMP)
        && value & PAGE_ENABLED != 0
        && !by_host
        && synic.active
        && !synic.keep_pages;
    if zeroed {
        const ZEROS: [u8; 512] = [0; 512];
        let view = vm.memory.view_of(&s.ring);
        for at in (0..PAGE_SIZE).step_by(ZEROS.len()) {
            let gpa = Gpa(value & !0xfff).wrapping_add(at);
            view.write(gpa, &ZEROS).ok()?;
        }
    }
    let hv = s.hyperv().ok()?;
    let before = hv.registers.synic.vectors;
    hv.registers.synic.set(index, value, by_host)?;
    match index {
        ix::HV_SCONTROL | ix::HV_SIEFP | ix::HV_SIMP if !by_host => {
            hv.owed = Some(Owed::Synic(index));
        }
        ix::HV_EOM => messages::acknowledge_all(vm, &shared, hv),
        ix::HV_SINT0..=ix::HV_SINT15 => {
            if let Some(published) = shared.synic() {
                hv.publish(published);
            }
            let mut changed = hv.registers.synic.vectors;
            for (w, old) in changed.iter_mut().zip(before) {
                *w |= old;
            }
            shared.set_direct(s.takes_direct());
            s.sort_held();
            if s.apic.virtualized {
                s.refresh_eoi_exits(vm, &changed);
            }
        }
        _ => {}
    }
    Some(())
}

/// STIMERx_CONFIG and STIMERx_COUNT, `n` after the first of them.
fn write_timer(vm: &Vm, s: &mut State, n: u32, value: u64, by_host: bool) -> Option<()> {
    let shared = vm.vcpus.with_id(s.id)?;
    let hv = s.hyperv().ok()?;
    let number = n / 2;
    if !hv.registers.synic.active && (!by_host || value != 0) {
        return None;
    }
    let direct = n & 1 == 0 && Stimer::is_direct(value);
    if direct && !by_host && hv.enforce && !hv.granted.direct_timers() {
        return None;
    }
    let t = hv.registers.timers.get_nospec_mut(number as usize)?;
    if n & 1 == 0 {
        t.set_config(value);
    } else {
        t.set_count(value, by_host);
    }
    if let Some(published) = shared.synic() {
        // Started or stopped before the guest goes on.
        published.set_due(number);
        shared.request_self(request::HYPERV);
    }
    Some(())
}

/// Writes the page by which guests make hypercalls (TLFS 3.13): the processor's instruction, and RET.
fn write_hypercall(vm: &Vm, s: &mut State, value: u64, by_host: bool) -> Option<()> {
    let r = &mut vm.hyperv.lock().registers;
    // A guest that has not said who it is makes none.
    if r.guest_os_id == 0 {
        return Some(());
    }
    if value & PAGE_ENABLED != 0 {
        let code = match s.model.vendor {
            Vendor::Intel => [0x0f, 0x01, 0xc1, 0xc3],
            Vendor::Amd => [0x0f, 0x01, 0xd9, 0xc3],
        };
        let view = vm.memory.view_of(&s.ring);
        put(&view, Gpa(value & !0xfff), &code, by_host)?;
    }
    r.hypercall = value;
    Some(())
}

/// A register that all vCPUs share.
fn write_shared(vm: &Vm, s: &mut State, index: u32, value: u64, by_host: bool) -> Option<()> {
    let hv = s.hyperv().ok()?;
    let debugs = by_host || hv.granted.debugs();
    let mut owed = None;
    let inner = &mut *vm.hyperv.lock();
    let r = &mut inner.registers;
    match index {
        ix::HV_GUEST_OS_ID => {
            r.guest_os_id = value;
            if value == 0 {
                r.hypercall &= !PAGE_ENABLED;
            }
        }
        ix::HV_REFERENCE_TSC => {
            r.tsc_page = value;
            r.page_state = match (value & PAGE_ENABLED != 0, by_host) {
                (false, _) => PageState::Off,
                (true, false) => PageState::New,
                (true, true) => PageState::Stale,
            };
            // Written before the guest goes on.
            s.pv.clock_stale = true;
        }
        ix::HV_RESET => {
            if value == 1 {
                owed = Some(Owed::Reset);
            }
        }
        ix::HV_CRASH_P0..=ix::HV_CRASH_P4 => {
            *r.crash.get_nospec_mut((index - ix::HV_CRASH_P0) as usize)? = value;
        }
        ix::HV_CRASH_CTL if by_host => r.crash_control = value & CRASH_NOTIFY,
        ix::HV_CRASH_CTL => {
            if value & CRASH_NOTIFY != 0 {
                owed = Some(Owed::Crash);
            }
        }
        ix::HV_REENLIGHTENMENT_CONTROL => r.reenlightenment = value,
        ix::HV_TSC_EMULATION_CONTROL => r.emulation_control = value,
        ix::HV_TSC_EMULATION_STATUS if by_host || value == 0 => r.emulation_status = value,
        ix::HV_TSC_INVARIANT_CONTROL => {
            let taken_back = !by_host && r.invariant_control != 0 && value == 0;
            if value & !EXPOSE_INVARIANT_TSC != 0 || taken_back {
                return None;
            }
            r.invariant_control = value;
            hv.registers.invariant_exposed = value != 0;
            s.refresh_dynamic();
            vm.vcpus.request_all(request::HYPERV);
        }
        ix::HV_SYNDBG_CONTROL if debugs => {
            r.debug.control = value;
            owed = Some(Owed::Debug(index));
        }
        ix::HV_SYNDBG_STATUS if debugs => r.debug.status = value,
        ix::HV_SYNDBG_SEND_BUFFER if debugs => r.debug.send_page = value,
        ix::HV_SYNDBG_RECV_BUFFER if debugs => r.debug.recv_page = value,
        ix::HV_SYNDBG_PENDING_BUFFER if debugs => {
            r.debug.pending_page = value;
            owed = Some(Owed::Debug(index));
        }
        ix::HV_SYNDBG_OPTIONS if debugs => r.debug.options = value,
        _ => return None,
    }
    vm.hyperv.publish(r);
    if let (Some(hv), Some(owed), false) = (&mut s.hv, owed, by_host) {
        hv.owed = Some(owed);
    }
    Some(())
}
