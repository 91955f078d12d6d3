// SPDX-License-Identifier: GPL-2.0
//! Delivery of interrupt messages to local APICs (SDM 3A 11.6, 11.11).
//!
//! Nothing is locked: a sender matches the message against the addresses that vCPUs publish, and posts. It works in any
//! context, also with spin locks held. In a large VM not all vCPUs are asked ([`crate::x86::irqchip::addressees`]).

use crate::bus::set::IN_ONE_GO;
use crate::x86::irqchip::addressees::Addressees;
use crate::x86::irqchip::msg::{ApicAddr, DeliveryMode, Message, Shorthand, TriggerMode, Vector};
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
    match deliver_to_known(vcpus, message, source, watched) {
        Some(accepted) => accepted,
        None => deliver_to(vcpus, addressed(vcpus, message), message, source, watched),
    }
}

/// As [`deliver`] for a local APIC that sends with interrupts off. `None`: nothing was sent, since that may take long.
pub(crate) fn deliver_quickly(vcpus: &VcpuSet, message: &Message, source: u32) -> Option<u32> {
    let source = Some(source);
    if let Some(accepted) = deliver_to_known(vcpus, message, source, false) {
        return Some(accepted);
    }
    let among = addressed(vcpus, message);
    if among.as_ref().map_or(vcpus.len(), Addressees::count) > IN_ONE_GO {
        return None;
    }
    Some(deliver_to(vcpus, among, message, source, false))
}

/// Sends `message` to the vCPU that was created with this id, whatever the message's destination is.
pub(crate) fn deliver_to_id(vcpus: &VcpuSet, id: u32, message: &Message) -> u32 {
    vcpus
        .with_id(id)
        .map_or(0, |v| accept(&v, &v.apic_addr(), message, false).into())
}

/// Sends an interrupt of this vector, whose end concerns Hyper-V's SynIC if there is one, to `v`. False if its local
/// APIC does not take it.
pub(crate) fn deliver_vector(v: &VcpuShared, vector: u8) -> bool {
    let message = Message::fixed(v.id, Vector(vector));
    accept(v, &v.apic_addr(), &message, v.synic().is_some())
}

/// Sends the interrupt of SINT number `sint` of the vCPU that is Hyper-V's processor `vp`. `None`: there is none, or it
/// is masked.
pub(crate) fn deliver_to_sint(vcpus: &VcpuSet, vp: u32, sint: u32) -> Option<bool> {
    let is_meant = |v: &VcpuShared| v.vp_index() == vp;
    let first = vcpus.get(vp).filter(|v| is_meant(v));
    let v = first.or_else(|| vcpus.iter().find(|v| is_meant(v)))?;
    let vector = v.synic()?.vector(sint as usize)?;
    Some(deliver_vector(&v, vector))
}

/// Whether many have to be asked, or told, to find whom `message` addresses.
pub(crate) fn addresses_many(vcpus: &VcpuSet, message: &Message) -> bool {
    let many = |among: Option<Addressees>| {
        among.as_ref().map_or(vcpus.len(), Addressees::count) > IN_ONE_GO
    };
    vcpus.len() > IN_ONE_GO && many(addressed(vcpus, message))
}

/// Calls `f` for those whom `message`, which no local APIC sends, addresses.
pub(crate) fn for_each_addressed(vcpus: &VcpuSet, message: &Message, f: impl Fn(&VcpuShared)) {
    visit(vcpus, addressed(vcpus, message), |v| {
        if message.matches(None, &v.apic_addr()) {
            f(v);
        }
    });
}

/// One local APIC, known by its ID: the common case.
#[inline]
fn deliver_to_known(
    vcpus: &VcpuSet,
    message: &Message,
    source: Option<u32>,
    watched: bool,
) -> Option<u32> {
    let (id, physical) = match message.shorthand {
        Shorthand::Myself => (source?, false),
        _ => (message.single_physical()?, true),
    };
    let v = vcpus.with_id(id)?;
    let addr = v.apic_addr();
    // As `Message::matches` of one whose x2APIC ID it is, with fewer questions.
    (addr.hw_enabled && (!physical || addr.has_initial_id()))
        .then(|| accept(&v, &addr, message, watched).into())
}

/// Those among which all are that `message` addresses; `None`: all.
fn addressed(vcpus: &VcpuSet, message: &Message) -> Option<Addressees> {
    vcpus
        .noted()?
        .find(message, |id| vcpus.with_id(id).map(|v| v.index))
}

fn visit(vcpus: &VcpuSet, among: Option<Addressees>, mut f: impl FnMut(&VcpuShared)) {
    match among {
        None => vcpus.iter().for_each(|v| f(&v)),
        Some(some) => {
            for index in some.iter() {
                if let Some(v) = vcpus.get(index) {
                    f(&v);
                }
            }
        }
    }
}

/// Sends `message` to those `among` all or some whom it addresses.
fn deliver_to(
    vcpus: &VcpuSet,
    among: Option<Addressees>,
    message: &Message,
    source: Option<u32>,
    watched: bool,
) -> u32 {
    if !message.to_one_only() {
        let mut accepted = 0u32;
        visit(vcpus, among, |v| {
            let addr = v.apic_addr();
            if message.matches(source, &addr) {
                accepted = accepted.wrapping_add(accept(v, &addr, message, watched).into());
            }
        });
        return accepted;
    }
    // Lowest-priority delivery, and MSIs with a redirection hint (SDM 3A 11.6.2.4, 11.11.1).
    let mut able = Addressees::NONE;
    visit(vcpus, among, |v| {
        let addr = v.apic_addr();
        if addr.accepts(message.delivery) && message.matches(source, &addr) {
            able.insert(v.index);
        }
    });
    let chosen = able
        .chosen(message.vector)
        .and_then(|index| vcpus.get(index));
    chosen.map_or(0, |v| accept(&v, &v.apic_addr(), message, watched).into())
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
        DeliveryMode::Smi => v.request(request::SMI),
        DeliveryMode::Reserved => return false,
    }
    true
}
