// SPDX-License-Identifier: GPL-2.0
//! The host timer that drives the 8254.

use crate::abi::uapi;
use crate::abi::uapi::k;
use crate::linux::hrtimer::{ktime_get_ns, Timer, TimerCallback};
use crate::x86::irqchip::controllers::Controllers;
use crate::x86::irqchip::pit;
use crate::x86::irqchip::pit::State;
use kernel::prelude::*;
use kernel::sync::Arc;

struct Tick(Arc<Controllers>);

impl TimerCallback for Tick {
    fn expired(&self) -> Option<u64> {
        self.0.pit_tick(ktime_get_ns())
    }
}

/// A tick that was missed.
struct Again(Arc<Controllers>);

impl TimerCallback for Again {
    fn expired(&self) -> Option<u64> {
        self.0.pit_again(ktime_get_ns())
    }
}

/// Copies a channel's state from one of its two types, the model's and the ABI's, to the other: their fields are the
/// same.
macro_rules! copy_channel {
    ($to:ident, $from:ident) => {
        copy_channel!(@ $to, $from, count, latched_count, count_latched, status_latched, status, read_state,
            write_state, write_latch, rw_mode, mode, bcd, gate, count_load_time)
    };
    (@ $to:ident, $from:ident, $($field:ident),*) => {
        $($to.$field = $from.$field;)*
    };
}

/// An 8254 with its timer.
pub(crate) struct PitTimer {
    controllers: Arc<Controllers>,
    timer: Timer<Tick>,
    again: Timer<Again>,
    speaker: bool,
}

impl PitTimer {
    /// Adds an 8254 to `controllers`; with port 61h if `speaker`.
    pub(crate) fn new(controllers: Arc<Controllers>, speaker: bool) -> Result<Self> {
        let timer = Timer::new(Tick(controllers.clone()))?;
        let again = Timer::new(Again(controllers.clone()))?;
        controllers.add_pit()?;
        Ok(Self {
            controllers,
            timer,
            again,
            speaker,
        })
    }

    /// How many devices of a bus it is.
    pub(crate) fn devices(&self) -> u32 {
        1 + u32::from(self.speaker)
    }

    /// Whether an access is to the 8254 or port 61h.
    #[inline]
    pub(crate) fn claims(&self, port: u16, width: u8) -> bool {
        (pit::port::CHANNEL0..=pit::port::CONTROL).contains(&port)
            && port.saturating_add(width.into()) <= pit::port::CONTROL + 1
            || self.speaker && port == pit::port::SPEAKER
    }

    /// Reads a port.
    pub(crate) fn read(&self, port: u16) -> u8 {
        self.controllers
            .with_pit(|p| p.read(port, ktime_get_ns()))
            .unwrap_or(0xff)
    }

    /// Writes a port.
    pub(crate) fn write(&self, port: u16, value: u8) {
        if self
            .controllers
            .with_pit(|p| p.write(port, value, ktime_get_ns()))
            == Some(true)
        {
            self.rearm();
        }
    }

    /// Sets the timer to the time of the next interrupt, which has changed.
    pub(super) fn rearm(&self) {
        // A callback under way may still set what the old state said: let it finish first. One that begins later sees
        // the new state.
        self.timer.cancel();
        self.controllers.with_pit(|p| {
            if let Some(when) = p.next_irq() {
                self.timer.start_abs_ns(when);
            }
            if let Some(when) = p.next_again() {
                self.again.start_abs_ns(when);
            }
        });
    }

    /// A missed tick is due at `when`, in nanoseconds of the monotonic clock. Any context.
    pub(super) fn tick_again(&self, when: u64) {
        self.again.start_abs_ns(when);
    }

    /// KVM_GET_PIT2.
    pub(crate) fn get(&self) -> Result<k::kvm_pit_state2> {
        let state = self.controllers.with_pit(|p| p.get_state()).ok_or(ENXIO)?;
        let mut out = uapi::zeroed::<k::kvm_pit_state2>();
        for (to, from) in out.channels.iter_mut().zip(&state.channels) {
            copy_channel!(to, from);
        }
        out.flags = state.flags;
        Ok(out)
    }

    /// KVM_SET_PIT2.
    pub(crate) fn set(&self, saved: &k::kvm_pit_state2) {
        let mut state = State {
            flags: saved.flags,
            ..State::default()
        };
        for (to, from) in state.channels.iter_mut().zip(&saved.channels) {
            copy_channel!(to, from);
        }
        self.controllers
            .with_pit(|p| p.set_state(&state, ktime_get_ns()));
        self.rearm();
    }

    /// KVM_REINJECT_CONTROL.
    pub(crate) fn set_reinject(&self, reinject: bool) {
        self.controllers.with_pit(|p| p.set_reinject(reinject));
    }

    /// Stops the timer, for good or until [`PitTimer::rearm`].
    pub(crate) fn stop(&self) {
        self.timer.cancel();
        self.again.cancel();
    }
}
