// SPDX-License-Identifier: GPL-2.0
//! Programmable interval timer 8254 with port 61h (Intel 8254 data sheet; state as in `struct kvm_pit_state2`).
//!
//! Time is the owner's clock in nanoseconds. Channel 0 drives interrupt line 0: the owner waits until
//! [`Pit::next_irq`], calls [`Pit::timer_fired`] and pulses the line if told so.
//!
//! Simplification, as in KVM: a count takes effect when it is written, also where the chip would finish the
//! running period first.
#![forbid(unsafe_code)]

pub mod channel;

use crate::x86::irqchip::pit::channel::Channel;
pub use crate::x86::irqchip::pit::channel::ChannelState;

/// Shortest interval between two interrupts in nanoseconds; protects the host against interrupt storms.
pub const MIN_INTERVAL_NS: u64 = 200_000;
/// Upper bound of ticks that wait for re-injection.
const MAX_PENDING: u32 = 0xffff;
/// How long after the end of an interrupt the next missed tick comes, in nanoseconds. The guest's work goes on
/// meanwhile, however many ticks it has missed: with the next one at the end of each it would not before all are made
/// up.
pub const REINJECT_NS: u64 = 100_000;

/// I/O ports.
#[allow(missing_docs)]
pub mod port {
    pub const CHANNEL0: u16 = 0x40;
    pub const CHANNEL1: u16 = 0x41;
    pub const CHANNEL2: u16 = 0x42;
    pub const CONTROL: u16 = 0x43;
    /// NMI status and control: gate and output of channel 2, speaker, refresh toggle.
    pub const SPEAKER: u16 = 0x61;
}

/// KVM_PIT_FLAGS_HPET_LEGACY: the HPET has taken over interrupt line 0.
pub const FLAG_HPET_LEGACY: u32 = 1;
/// KVM_PIT_FLAGS_SPEAKER_DATA_ON: port 61h bit 1.
pub const FLAG_SPEAKER_DATA_ON: u32 = 2;

/// State as saved and restored; the fields of `struct kvm_pit_state2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The three channels.
    pub channels: [ChannelState; 3],
    /// [`FLAG_HPET_LEGACY`], [`FLAG_SPEAKER_DATA_ON`].
    pub flags: u32,
}

/// A programmable interval timer.
#[derive(Clone, Debug)]
pub struct Pit {
    channels: [Channel; 3],
    speaker_data: bool,
    hpet_legacy: bool,
    /// Next rising edge of channel 0's output.
    next_irq: Option<u64>,
    /// Ticks that found the previous interrupt unacknowledged are delivered later.
    reinject: bool,
    /// Ticks due, with the one in flight.
    pending: u32,
    /// The guest has acknowledged the last interrupt.
    acked: bool,
    /// When the next missed tick is due.
    again: Option<u64>,
}

impl Pit {
    /// A timer in reset state; re-injection is on, as after KVM_CREATE_PIT2.
    pub fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            speaker_data: false,
            hpet_legacy: false,
            next_irq: None,
            reinject: true,
            pending: 0,
            acked: true,
            again: None,
        }
    }

    /// Time of the next interrupt; `None` if none is due.
    pub fn next_irq(&self) -> Option<u64> {
        self.next_irq.filter(|_| !self.hpet_legacy)
    }

    /// The time of [`Pit::next_irq`] was reached (an early call does no harm). Returns whether to pulse
    /// interrupt line 0; wait for the new [`Pit::next_irq`] afterwards.
    pub fn timer_fired(&mut self, now: u64) -> bool {
        let Some(due) = self.next_irq() else {
            return false;
        };
        if now < due {
            return false;
        }
        let [channel, ..] = &self.channels;
        let (next, missed) = match channel.next_rise(now) {
            Some(rise) => {
                let periods = channel.periods(now).saturating_sub(channel.periods(due));
                let missed = periods.min(now.wrapping_sub(due) / MIN_INTERVAL_NS);
                (
                    Some(rise.max(due.saturating_add(MIN_INTERVAL_NS)).max(now)),
                    missed,
                )
            }
            None => (None, 0),
        };
        self.next_irq = next;
        if !self.reinject {
            return true;
        }
        let ticks = u32::try_from(missed)
            .unwrap_or(MAX_PENDING)
            .saturating_add(1);
        self.pending = self.pending.saturating_add(ticks).min(MAX_PENDING);
        core::mem::take(&mut self.acked)
    }

    /// The guest ended the interrupt of line 0 (in the PIC or the I/O APIC). Returns when to call
    /// [`Pit::again_fired`] for a tick that was missed.
    pub fn irq_acked(&mut self, now: u64) -> Option<u64> {
        if !self.reinject {
            return None;
        }
        self.pending = self.pending.saturating_sub(1);
        self.acked = self.pending == 0;
        self.again = (!self.acked).then_some(now.saturating_add(REINJECT_NS));
        self.again
    }

    /// When the next missed tick is due.
    pub fn next_again(&self) -> Option<u64> {
        self.again
    }

    /// The time of [`Pit::next_again`] was reached (an early call does no harm). Returns whether to pulse interrupt
    /// line 0.
    pub fn again_fired(&mut self, now: u64) -> bool {
        let due = self.again.is_some_and(|at| at <= now);
        if due {
            self.again = None;
        }
        due
    }

    /// Counting goes on as if it were `ns` nanoseconds earlier. Wait for the new [`Pit::next_irq`] afterwards.
    pub fn delay(&mut self, ns: u64) {
        self.next_irq = self.next_irq.map(|at| at.wrapping_add(ns));
        self.again = self.again.map(|at| at.wrapping_add(ns));
        for channel in &mut self.channels {
            channel.delay(ns);
        }
    }

    /// Forgets missed ticks; for when line 0 is unmasked in an interrupt controller, and for resets.
    pub fn reset_reinject(&mut self) {
        self.pending = 0;
        self.acked = true;
        self.again = None;
    }

    /// Whether missed ticks are re-injected (KVM_REINJECT_CONTROL).
    pub fn set_reinject(&mut self, reinject: bool) {
        if reinject != self.reinject {
            self.reset_reinject();
            self.reinject = reinject;
        }
    }

    fn restart_irq(&mut self, now: u64) {
        let [channel, ..] = &self.channels;
        self.next_irq = channel.next_rise(now).map(|rise| {
            rise.max(now.saturating_add(if channel.is_periodic() {
                MIN_INTERVAL_NS
            } else {
                0
            }))
        });
        self.reset_reinject();
    }

    fn channel(&mut self, n: u16) -> &mut Channel {
        let [a, b, c] = &mut self.channels;
        match n & 3 {
            0 => a,
            1 => b,
            _ => c,
        }
    }

    /// Reads a port of [`port`]; others read as all ones.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        match port {
            port::CHANNEL0..=port::CHANNEL2 => self.channel(port & 3).read(now),
            port::CONTROL => 0,
            port::SPEAKER => {
                let [_, _, channel] = &self.channels;
                // Bit 4 toggles with every memory refresh, about 15 us.
                let refresh = (now >> 14) as u8 & 1;
                u8::from(channel.gate())
                    | u8::from(self.speaker_data) << 1
                    | refresh << 4
                    | u8::from(channel.out(now)) << 5
            }
            _ => 0xff,
        }
    }

    /// Writes a port of [`port`]. Returns whether [`Pit::next_irq`] changed.
    pub fn write(&mut self, port: u16, value: u8, now: u64) -> bool {
        match port {
            port::CHANNEL0 => {
                let loaded = self.channel(0).write(value, now);
                if loaded {
                    self.restart_irq(now);
                }
                loaded
            }
            port::CHANNEL1 | port::CHANNEL2 => {
                self.channel(port & 3).write(value, now);
                false
            }
            port::CONTROL => self.control(value, now),
            port::SPEAKER => {
                self.speaker_data = value & 2 != 0;
                self.channel(2).set_gate(value & 1 != 0, now);
                false
            }
            _ => false,
        }
    }

    fn control(&mut self, value: u8, now: u64) -> bool {
        if value >> 6 == 3 {
            // Read-back command (data sheet figure 11).
            for n in 0..3 {
                if value & 2 << n != 0 {
                    let channel = self.channel(n);
                    if value & 0x20 == 0 {
                        channel.latch_count(now);
                    }
                    if value & 0x10 == 0 {
                        channel.latch_status(now);
                    }
                }
            }
            return false;
        }
        let n = u16::from(value >> 6);
        if value & 0x30 == 0 {
            self.channel(n).latch_count(now);
            return false;
        }
        self.channel(n).program(value);
        if n == 0 {
            // Counting, and with it the interrupts, begins with the next count.
            self.next_irq = None;
        }
        n == 0
    }

    /// State to save (KVM_GET_PIT2).
    pub fn get_state(&self) -> State {
        let [a, b, c] = &self.channels;
        let hpet = if self.hpet_legacy {
            FLAG_HPET_LEGACY
        } else {
            0
        };
        let speaker = if self.speaker_data {
            FLAG_SPEAKER_DATA_ON
        } else {
            0
        };
        State {
            channels: [a.get_state(), b.get_state(), c.get_state()],
            flags: hpet | speaker,
        }
    }

    /// Loads a saved state (KVM_SET_PIT2): channel 0 starts its period anew at `now`, the others continue.
    /// Wait for the new [`Pit::next_irq`] afterwards.
    pub fn set_state(&mut self, state: &State, now: u64) {
        let mut first = true;
        for (channel, saved) in self.channels.iter_mut().zip(&state.channels) {
            channel.set_state(saved, first, now);
            first = false;
        }
        self.hpet_legacy = state.flags & FLAG_HPET_LEGACY != 0;
        self.speaker_data = state.flags & FLAG_SPEAKER_DATA_ON != 0;
        self.restart_irq(now);
    }
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}
