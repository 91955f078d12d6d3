// SPDX-License-Identifier: GPL-2.0
//! Events and the state of running (api.rst 4.31, 4.32, 4.39).
//!
//! The vCPU's ioctls call it under the vCPU's mutex, outside stays.

use crate::abi::uapi;
use crate::abi::uapi::k;
use crate::x86::cpu::events;
use crate::x86::exit::{Event, EventKind, Exception};
use crate::x86::shared::request;
use crate::x86::vcpu::state::{MpState, State};
use crate::x86::vcpu::Vcpu;
use crate::x86::vendor::VcpuBackend;
use crate::x86::vm::Vm;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// KVM_SET_MP_STATE (api.rst 4.39).
pub(crate) fn set_mp_state(vcpu: &Vcpu, s: &mut State, value: u32) -> Result {
    let state = match value {
        k::KVM_MP_STATE_RUNNABLE => MpState::Runnable,
        // The others exist only with a local APIC in the kernel (api.rst 4.39).
        _ if s.apic.lapic.is_none() => return Err(EINVAL),
        // INIT waits for the end of SMM, and an SMI would be lost.
        k::KVM_MP_STATE_INIT_RECEIVED | k::KVM_MP_STATE_SIPI_RECEIVED
            if s.smm.is_active() || s.smm.pending =>
        {
            return Err(EINVAL);
        }
        k::KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        k::KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
        k::KVM_MP_STATE_HALTED => MpState::Halted,
        k::KVM_MP_STATE_SIPI_RECEIVED => {
            s.mp_state = MpState::InitReceived;
            s.hw.wake();
            vcpu.shared.request_self(request::SIPI);
            return Ok(());
        }
        _ => return Err(EINVAL),
    };
    s.mp_state = state;
    s.hw.wake();
    Ok(())
}

/// KVM_GET_VCPU_EVENTS (api.rst 4.31).
pub(crate) fn get_events(vm: &Vm, vcpu: &Vcpu, s: &mut State) -> k::kvm_vcpu_events {
    let i = s.hw.interruptibility();
    let mut e = uapi::zeroed::<k::kvm_vcpu_events>();
    let payloads = vm.exception_payload.load(Ordering::Relaxed);
    if !payloads {
        s.deliver_payload();
    }
    let exception = s.events.exception.map(|x| (x.vector, x.error_code));
    let (mut injected, mut interrupt) = (exception, None);
    match s.events.interrupted {
        Some(Event {
            kind: EventKind::ExternalInterrupt,
            vector,
            ..
        }) => interrupt = Some((vector, false)),
        Some(Event {
            kind: EventKind::SoftwareInterrupt,
            vector,
            ..
        }) => interrupt = Some((vector, true)),
        Some(Event {
            kind: EventKind::Nmi,
            ..
        }) => e.nmi.injected = 1,
        Some(Event {
            vector, error_code, ..
        }) => injected = Some((vector, error_code)),
        None => {}
    }
    if let Some((nr, code)) = injected {
        // Where payloads are asked for, an exception that is yet to be delivered is told apart from one whose delivery
        // was interrupted.
        let pending = payloads && s.events.interrupted.is_none();
        e.exception.injected = u8::from(!pending);
        e.exception.pending = pending.into();
        if let (true, Some(x)) = (pending, s.events.exception) {
            e.exception_has_payload = x.has_payload().into();
            e.exception_payload = x.payload;
        }
        e.exception.nr = nr;
        e.exception.has_error_code = code.is_some().into();
        e.exception.error_code = code.unwrap_or(0);
    }
    let interrupt = interrupt.or(s.events.held.map(|v| (v, false)));
    if let Some((nr, soft)) = interrupt {
        e.interrupt.injected = u8::from(!soft);
        e.interrupt.soft = soft.into();
        e.interrupt.nr = nr;
    }
    e.interrupt.shadow = u8::from(i.sti) * k::KVM_X86_SHADOW_INT_STI as u8
        | u8::from(i.mov_ss) * k::KVM_X86_SHADOW_INT_MOV_SS as u8;
    e.nmi.pending = s
        .events
        .nmis
        .saturating_add(vcpu.shared.arch.nmi.load(Ordering::Relaxed).min(2) as u8)
        .min(if i.nmi { 1 } else { 2 });
    e.nmi.masked = i.nmi.into();
    if s.events.held_nmi {
        (e.nmi.injected, e.nmi.masked) = (1, 1);
        e.nmi.pending = e.nmi.pending.saturating_sub(1);
    }
    e.flags = k::KVM_VCPUEVENT_VALID_NMI_PENDING
        | k::KVM_VCPUEVENT_VALID_SHADOW
        | k::KVM_VCPUEVENT_VALID_SMM;
    if payloads {
        e.flags |= k::KVM_VCPUEVENT_VALID_PAYLOAD;
    }
    e.smi.smm = s.smm.is_active().into();
    e.smi.pending = s.smm.pending.into();
    e.smi.smm_inside_nmi = s.smm.inside_nmi.into();
    let init = vcpu.shared.requests() & request::INIT != 0;
    e.smi.latched_init = (init || s.smm.latched_init).into();
    if vm.triple_fault_event.load(Ordering::Relaxed) {
        e.flags |= k::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        e.triple_fault.pending = s.events.triple_fault.into();
    }
    e
}

/// Whether an exception is yet to be delivered, for a user space that tells it apart from one whose delivery was
/// interrupted.
fn has_pending_exception(e: &k::kvm_vcpu_events) -> bool {
    e.flags & k::KVM_VCPUEVENT_VALID_PAYLOAD != 0 && e.exception.pending != 0
}

/// EINVAL: unknown flags, flags of capabilities that are not enabled, SMM or an SMI where the vCPU (`s`) waits for its
/// start, or an exception that does not exist.
fn check_events(vm: &Vm, s: &State, e: &k::kvm_vcpu_events) -> Result {
    const KNOWN: u32 = k::KVM_VCPUEVENT_VALID_NMI_PENDING
        | k::KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | k::KVM_VCPUEVENT_VALID_SHADOW
        | k::KVM_VCPUEVENT_VALID_SMM
        | k::KVM_VCPUEVENT_VALID_PAYLOAD
        | k::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    let flag = |f: u32| e.flags & f != 0;
    let smm = e.smi.smm | e.smi.pending != 0;
    if flag(!KNOWN)
        || flag(k::KVM_VCPUEVENT_VALID_PAYLOAD) && !vm.exception_payload.load(Ordering::Relaxed)
        || flag(k::KVM_VCPUEVENT_VALID_TRIPLE_FAULT)
            && !vm.triple_fault_event.load(Ordering::Relaxed)
        || flag(k::KVM_VCPUEVENT_VALID_SMM) && smm && s.mp_state == MpState::InitReceived
    {
        return Err(EINVAL);
    }
    let exception = e.exception.injected != 0 || has_pending_exception(e);
    if exception && (e.exception.nr > 31 || e.exception.nr == events::vector::NMI) {
        return Err(EINVAL);
    }
    Ok(())
}

/// The event whose delivery was interrupted, and the exception, of KVM_SET_VCPU_EVENTS.
fn set_exception(s: &mut State, e: &k::kvm_vcpu_events) {
    let pending = has_pending_exception(e);
    let exception = e.exception.injected != 0 || pending;
    // One comes first, as by KVM: the exception, the NMI, the interrupt. The others are not lost over it.
    let (nmi, interrupt) = (e.nmi.injected != 0, e.interrupt.injected != 0);
    s.events.interrupted = if exception {
        None
    } else if nmi {
        Some(events::nmi_event())
    } else if interrupt {
        Some(events::interrupt_event(e.interrupt.nr))
    } else {
        None
    };
    s.events.held = (interrupt && (exception || nmi)).then_some(e.interrupt.nr);
    s.events.held_nmi = nmi && exception;
    s.events.exception = exception.then(|| Exception {
        vector: e.exception.nr,
        error_code: (e.exception.has_error_code != 0).then_some(e.exception.error_code),
        payload: match e.exception.nr {
            _ if pending && e.exception_has_payload != 0 => e.exception_payload,
            events::vector::PF => s.cpu.sregs.cr2,
            _ => 0,
        },
    });
    if let Some(x) = s
        .events
        .exception
        .filter(|x| x.vector == events::vector::PF)
    {
        s.cpu.sregs.cr2 = x.payload;
    }
}

/// The part of KVM_SET_VCPU_EVENTS that tells of SMM. An SMI that has been sent and not been seen by user space stays.
fn set_smm(vcpu: &Vcpu, s: &mut State, smi: &k::kvm_vcpu_events__bindgen_ty_4) {
    s.set_smm(smi.smm != 0);
    s.smm.pending = smi.pending != 0;
    s.smm.inside_nmi = smi.smm != 0 && smi.smm_inside_nmi != 0;
    if s.apic.lapic.is_none() {
        return;
    }
    s.smm.latched_init = false;
    if smi.latched_init != 0 {
        vcpu.shared.request_self(request::INIT);
    } else {
        let _ = vcpu.shared.take_requests(request::INIT);
    }
}

/// KVM_SET_VCPU_EVENTS (api.rst 4.32).
pub(crate) fn set_events(vm: &Vm, vcpu: &Vcpu, s: &mut State, e: &k::kvm_vcpu_events) -> Result {
    check_events(vm, s, e)?;
    let flag = |f: u32| e.flags & f != 0;
    if flag(k::KVM_VCPUEVENT_VALID_SMM) && e.smi.smm != 0 {
        vm.make_smm_memory()?;
    }
    let mut i = s.hw.interruptibility();
    set_exception(s, e);
    if flag(k::KVM_VCPUEVENT_VALID_TRIPLE_FAULT) {
        s.events.triple_fault = e.triple_fault.pending != 0;
    }
    if flag(k::KVM_VCPUEVENT_VALID_SMM) {
        set_smm(vcpu, s, &e.smi);
    }
    if flag(k::KVM_VCPUEVENT_VALID_SHADOW) {
        i.sti = u32::from(e.interrupt.shadow) & k::KVM_X86_SHADOW_INT_STI != 0;
        i.mov_ss = u32::from(e.interrupt.shadow) & k::KVM_X86_SHADOW_INT_MOV_SS != 0;
    }
    i.nmi = e.nmi.masked != 0 && !s.events.held_nmi;
    s.hw.set_interruptibility(i);
    if flag(k::KVM_VCPUEVENT_VALID_NMI_PENDING) {
        vcpu.shared.arch.nmi.store(0, Ordering::Relaxed);
        s.events.nmis = e.nmi.pending;
    }
    s.events.nmis = s
        .events
        .nmis
        .saturating_add(s.events.held_nmi.into())
        .min(2);
    if flag(k::KVM_VCPUEVENT_VALID_SIPI_VECTOR) && s.apic.lapic.is_some() {
        vcpu.shared
            .arch
            .sipi
            .store(e.sipi_vector, Ordering::Relaxed);
    }
    Ok(())
}
