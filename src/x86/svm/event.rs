// SPDX-License-Identifier: GPL-2.0
//! Events: EVENTINJ and EXITINTINFO (APM 2 15.20, 15.7.2).
//!
//! `vcpu` calls this before an entry and after an exit whose cause came in the delivery of an event.

use crate::x86::cpu::events::vector::{BP, OF};
use crate::x86::exit::{Event, EventKind};

const VALID: u64 = 1 << 31;
const ERROR_CODE_VALID: u64 = 1 << 11;
const INTR: u64 = 0;
const NMI: u64 = 2;
const EXCEPTION: u64 = 3;

/// EVENTINJ that delivers `event`, or nothing.
#[inline]
pub(super) fn inject(event: Option<&Event>) -> u64 {
    let Some(ev) = event else { return 0 };
    let kind = match ev.kind {
        EventKind::ExternalInterrupt => INTR,
        EventKind::Nmi => NMI,
        // INT n is not re-injected (see `interrupted`). #BP and #OF are exceptions, INT3 and INTO included.
        _ => EXCEPTION,
    };
    let mut v = VALID | kind << 8 | u64::from(ev.vector);
    if let Some(code) = ev.error_code {
        v |= ERROR_CODE_VALID | u64::from(code) << 32;
    }
    v
}

/// Whether `event` is #BP or #OF. For these the processor pushes the RIP of the next instruction, as INT3 and INTO do
/// (APM 2 15.20).
#[inline]
pub(super) const fn is_trap(event: &Event) -> bool {
    matches!(
        event.kind,
        EventKind::Exception | EventKind::SoftwareException
    ) && matches!(event.vector, BP | OF)
}

/// Whether EXITINTINFO `info` names an event.
#[inline]
pub(super) const fn valid(info: u64) -> bool {
    info & VALID != 0
}

/// The event whose delivery the last exit interrupted, from EXITINTINFO. `trap` is the #BP or #OF that the entry was
/// to deliver, if RIP is still where it was then.
#[inline]
pub(super) fn interrupted(info: u64, trap: Option<Event>) -> Option<Event> {
    if !valid(info) {
        return None;
    }
    let vector = info as u8;
    let kind = match info >> 8 & 7 {
        INTR => EventKind::ExternalInterrupt,
        NMI => EventKind::Nmi,
        // RIP is still at the INT3, INTO or INT n, which simply runs again; if the guest was at one, for it need not be
        // behind an event of ours.
        EXCEPTION if matches!(vector, BP | OF) => return trap.filter(|t| t.vector == vector),
        EXCEPTION => EventKind::Exception,
        _ => return None,
    };
    Some(Event {
        kind,
        vector,
        error_code: (info & ERROR_CODE_VALID != 0).then_some((info >> 32) as u32),
        insn_len: 0,
    })
}
