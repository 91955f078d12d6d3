// SPDX-License-Identifier: GPL-2.0
//! Delivery of interrupt messages to local APICs (SDM 3A 11.6, 11.11).
//!
//! Nothing is locked: a sender matches the message against the addresses that vCPUs publish, and posts. It works in any
//! context, also with spin locks held.

use crate::x86::irqchip::msg::{ApicAddr, Arbiter, DeliveryMode, Message, Shorthand, TriggerMode};
use crate::x86::shared::{request, VcpuSet, VcpuShared};
use core::sync::atomic::Ordering;

/// Sends `message`; `source` is the x2APIC ID of the local APIC that sends it, if one does; `watched`: somebody waits
/// for the end of the interrupt, although it is edge-triggered. Returns how many vCPUs accepted it.
pub(crate) fn deliver(
    vcpus: &VcpuSet,
    message: &Message,
    source: Option<u32>,
    watched: bool,
) -> u32 {
    // One local APIC, known by its ID: the common case.
    let one = match message.shorthand {
        Shorthand::Myself => source,
        _ => message.single_physical(),
    };
    if let Some(v) = one.and_then(|id| vcpus.get(id)) {
        let addr = v.apic_addr();
        if message.matches(source, &addr) {
            return accept(&v, &addr, message, watched).into();
        }
    }
    if message.to_one_only() {
        return deliver_to_one(vcpus, message, source, watched);
    }
    let mut accepted = 0u32;
    for v in vcpus.iter() {
        let addr = v.apic_addr();
        if message.matches(source, &addr) {
            accepted = accepted.wrapping_add(accept(&v, &addr, message, watched).into());
        }
    }
    accepted
}

/// Lowest-priority delivery, and MSIs with a redirection hint (SDM 3A 11.6.2.4, 11.11.1).
fn deliver_to_one(vcpus: &VcpuSet, message: &Message, source: Option<u32>, watched: bool) -> u32 {
    let total = vcpus.len() as usize;
    let mut arbiter = Arbiter::new(message.vector);
    for (i, v) in vcpus.iter().enumerate() {
        let addr = v.apic_addr();
        if addr.accepts(message.delivery) && message.matches(source, &addr) {
            arbiter.offer(i, total, &addr);
        }
    }
    let winner = arbiter
        .winner()
        .and_then(|i| vcpus.get(u32::try_from(i).ok()?));
    winner.map_or(0, |v| accept(&v, &v.apic_addr(), message, watched).into())
}

/// Gives `message` to a local APIC that it addresses. Returns whether that takes it.
fn accept(v: &VcpuShared, addr: &ApicAddr, message: &Message, watched: bool) -> bool {
    if !addr.accepts(message.delivery) {
        return false;
    }
    match message.delivery {
        DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
            let level = message.trigger == TriggerMode::Level;
            if level && !message.level {
                return false;
            }
            // Accepted also if it was posted already: both become one in IRR.
            let _ = v.post(message.vector.0, level, watched);
        }
        DeliveryMode::Nmi => {
            v.arch.nmi.fetch_add(1, Ordering::SeqCst);
            v.request(request::NMI);
        }
        DeliveryMode::Init if message.is_init_deassert() => return false,
        DeliveryMode::Init => v.request_init(),
        DeliveryMode::StartUp => {
            v.arch.sipi.store(message.vector.0.into(), Ordering::SeqCst);
            v.request(request::SIPI);
        }
        DeliveryMode::ExtInt => v.request(request::EXTINT),
        // There is no SMM.
        DeliveryMode::Smi | DeliveryMode::Reserved => return false,
    }
    true
}
