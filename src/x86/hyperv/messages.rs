// SPDX-License-Identifier: GPL-2.0
//! Interrupts and messages of the SynIC, and the timers that send them (TLFS 11, 12).
//!
//! Called under the vCPU's mutex. [`process`] and [`acknowledge_all`] are for outside stays, [`ended`] for any place.

use crate::linux::hrtimer::ktime_get_ns;
use crate::mem::addr::Gpa;
use crate::mem::memory::MemError;
use crate::mem::missing::Absent;
use crate::x86::hyperv::defs::{PAGE_ENABLED, SINTS, TIMERS};
use crate::x86::hyperv::stimer::{self, Told, Wait};
use crate::x86::hyperv::synic::vector_of;
use crate::x86::hyperv::time;
use crate::x86::hyperv::vcpu::HypervVcpu;
use crate::x86::irqchip::deliver::deliver_vector;
use crate::x86::shared::{request, VcpuShared};
use crate::x86::vcpu::state::State;
use crate::x86::vm::Vm;

/// What is due: synthetic timers; and CPUID follows TSC_INVARIANT_CONTROL. May sleep.
#[cold]
pub(crate) fn process(vm: &Vm, shared: &VcpuShared, s: &mut State) {
    if s.hv.is_none() {
        return;
    }
    let exposed = vm.hyperv.lock().registers.invariant_control != 0;
    if let Some(hv) = &mut s.hv {
        if hv.registers.invariant_exposed != exposed {
            hv.registers.invariant_exposed = exposed;
            s.refresh_dynamic();
        }
    }
    let Some(published) = shared.synic() else {
        return;
    };
    let due = published.take_due();
    for n in (0..TIMERS).filter(|n| due >> n & 1 != 0) {
        look_at(vm, shared, s, n);
    }
}

/// Timer `n` has expired, or is to be started.
fn look_at(vm: &Vm, shared: &VcpuShared, s: &mut State, n: usize) {
    let registers = s.hv.as_ref().map(|hv| &hv.registers);
    let Some(mut t) = registers.and_then(|r| r.timers.get(n)).copied() else {
        return;
    };
    // One that is over as soon as it starts is told at once.
    for _ in 0..2 {
        let now = time::now(vm, s);
        if let Some(told) = t.due(now) {
            let done = match told {
                Told::Vector(vector) => deliver_vector(shared, vector),
                Told::Message {
                    sint,
                    expired,
                    once,
                } => {
                    let message = stimer::message(n as u32, expired, now);
                    match deliver(vm, shared, s, sint.into(), &message, once) {
                        Ok(done) => done,
                        Err(page) => {
                            wait_for(shared, s, n, page);
                            return;
                        }
                    }
                }
            };
            if done {
                t.told();
            }
        }
        let wait = t.start(now);
        let host = s.hv.as_ref().and_then(|hv| hv.host_timers.get(n));
        match (wait, host) {
            (Wait::Over, _) => continue,
            (Wait::Until(at), Some(host)) => {
                let ns = at.saturating_sub(now).saturating_mul(100);
                host.start_abs_ns(ktime_get_ns().saturating_add(ns));
            }
            // When it fires nevertheless, it is found to be off.
            (_, Some(host)) => {
                let _ = host.try_cancel();
            }
            (_, None) => {}
        }
        break;
    }
    if let Some(to) = s.hv.as_mut().and_then(|hv| hv.registers.timers.get_mut(n)) {
        *to = t;
    }
}

/// The page of messages has to be brought before timer `n` can tell: the timer stays as it is, and is looked at again.
#[cold]
fn wait_for(shared: &VcpuShared, s: &mut State, n: usize, page: Absent) {
    if let (Some(hv), Some(published)) = (&mut s.hv, shared.synic()) {
        hv.missing = Some(page.gpa);
        published.set_due(n as u32);
        shared.request_self(request::HYPERV);
    }
}

/// Offset of the flags in a message; the first: more messages wait.
const FLAGS: u64 = 5;
const MORE: u8 = 1;

/// Puts a message into the slot of a SINT and sends the SINT's interrupt. False if it has to be tried again, after the
/// next end of a message. `once`: where the slot is full it is lost. Fails where user space brings the page.
fn deliver(
    vm: &Vm,
    shared: &VcpuShared,
    s: &State,
    sint: usize,
    message: &[u8],
    once: bool,
) -> Result<bool, Absent> {
    let Some(hv) = &s.hv else { return Ok(false) };
    let synic = &hv.registers.synic;
    if synic.message_page & PAGE_ENABLED == 0 {
        return Ok(false);
    }
    let slot = Gpa(synic.message_page & !0xfff).wrapping_add(stimer::MESSAGE * sint as u64);
    let view = vm.memory.view_of(&s.ring);
    let put = || -> Result<bool, MemError> {
        let mut kind = [0; 4];
        view.read(slot, &mut kind)?;
        // The vCPU does not run: nothing comes between the look and the write.
        if kind == [0; 4] {
            view.write(slot, message)?;
            return Ok(true);
        }
        if !once {
            view.write(slot.wrapping_add(FLAGS), &[MORE])?;
        }
        Ok(false)
    };
    match put() {
        Ok(true) => Ok(vector_of(synic.sint(sint)).is_some_and(|v| deliver_vector(shared, v))),
        Ok(false) => Ok(once),
        Err(MemError::Missing(page)) => Err(page),
        Err(_) => Ok(false),
    }
}

/// The guest has done with what SINT number `n` told: messages that wait may have room.
fn acknowledge(vm: &Vm, shared: &VcpuShared, hv: &HypervVcpu, n: usize) {
    let Some(published) = shared.synic() else {
        return;
    };
    for (k, t) in (0..).zip(&hv.registers.timers) {
        if t.waits_for(n) {
            published.set_due(k);
            shared.request_self(request::HYPERV);
        }
    }
    vm.chip.sint_ended(shared.vp_index(), n as u32);
}

/// EOM: the guest has emptied slots.
pub(super) fn acknowledge_all(vm: &Vm, shared: &VcpuShared, hv: &HypervVcpu) {
    for n in 0..SINTS {
        acknowledge(vm, shared, hv, n);
    }
}

/// An interrupt of this vector has ended. Any context of the vCPU.
pub(crate) fn ended(vm: &Vm, shared: &VcpuShared, hv: &HypervVcpu, vector: u8) {
    if !hv.has_vector(vector) {
        return;
    }
    for (n, sint) in hv.registers.synic.sints().iter().enumerate() {
        if vector_of(*sint) == Some(vector) {
            acknowledge(vm, shared, hv, n);
        }
    }
}
