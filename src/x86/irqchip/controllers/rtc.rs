// SPDX-License-Identifier: GPL-2.0
//! The end of the real-time clock's interrupt, which user space is told of though it is edge-triggered, and what of it
//! outlives another state of a local APIC.

use super::{Controllers, RTC_PIN};
use crate::x86::irqchip::ioapic::Pin;
use crate::x86::irqchip::msg::{ApicAddr, Vector};

impl Controllers {
    /// A local APIC begins anew: no end is waited for any more.
    pub(crate) fn forget_rtc(&self) {
        self.core.lock_irqsave().rtc = (0, 0);
    }

    /// The local APIC with this address has been given another state. `before` and `after` say which vectors were and
    /// are requested or in service there.
    pub(crate) fn restore_rtc(&self, addr: &ApicAddr, before: &[u32; 8], after: &[u32; 8]) {
        let has = |words: &[u32; 8], vector: u8| {
            let (word, bit) = Vector(vector).word_bit();
            words.get(word).is_some_and(|w| w & bit != 0)
        };
        self.with(|s| {
            let message = s.core.ioapic.as_ref().zip(Pin::new(RTC_PIN));
            let Some(message) = message.map(|(ioapic, pin)| ioapic.message(pin)) else {
                return;
            };
            if !message.matches(None, addr) {
                return;
            }
            let (pending, vector) = s.core.rtc;
            let before = pending > 0 && has(before, vector);
            let after = has(after, message.vector.0);
            let vector = if after { message.vector.0 } else { vector };
            s.core.rtc = (
                (pending + i32::from(after) - i32::from(before)).max(0),
                vector,
            );
            s.publish();
        });
    }
}
