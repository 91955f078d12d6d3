// SPDX-License-Identifier: GPL-2.0
//! A synthetic timer (TLFS 12.3). Times are those of the reference counter, in 100 ns.
#![forbid(unsafe_code)]

/// Bits of STIMERx_CONFIG.
const ENABLE: u64 = 1 << 0;
const PERIODIC: u64 = 1 << 1;
const AUTO_ENABLE: u64 = 1 << 3;
const DIRECT: u64 = 1 << 12;

/// How an expiry is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// By an interrupt of this vector.
    Vector(u8),
    /// By a message on this SINT; a periodic timer does not wait until there is room for it.
    Message {
        /// The SINT.
        sint: u8,
        /// When the timer expired.
        expired: u64,
        /// A message that finds no room is lost.
        once: bool,
    },
}

/// What the timer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing.
    Off,
    /// This time.
    Until(u64),
    /// It has expired already: look at it again.
    Over,
}

/// A synthetic timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stimer {
    config: u64,
    count: u64,
    /// When it expires; 0: it has not been started.
    expires: u64,
    /// It has expired, and the message has found no room yet.
    undelivered: bool,
}

impl Stimer {
    /// STIMERx_CONFIG.
    pub const fn config(&self) -> u64 {
        self.config
    }

    /// STIMERx_COUNT.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// It runs.
    pub const fn enabled(&self) -> bool {
        self.config & ENABLE != 0
    }

    /// STIMERx_CONFIG asks for interrupts instead of messages.
    pub const fn is_direct(config: u64) -> bool {
        config & DIRECT != 0
    }

    const fn sint(&self) -> u8 {
        (self.config >> 16) as u8 & 15
    }

    /// A message waits for room at this SINT.
    pub const fn waits_for(&self, sint: usize) -> bool {
        self.undelivered
            && self.enabled()
            && !Self::is_direct(self.config)
            && self.sint() as usize == sint
    }

    fn stop(&mut self) {
        self.expires = 0;
        self.undelivered = false;
    }

    /// Writes STIMERx_CONFIG; the timer stops, and has to be looked at if it is enabled.
    pub fn set_config(&mut self, config: u64) {
        let was_enabled = self.enabled();
        self.stop();
        self.config = config;
        // SINT 0 is none (TLFS 12.3.1).
        if was_enabled && !Self::is_direct(config) && self.sint() == 0 {
            self.config &= !ENABLE;
        }
    }

    /// Writes STIMERx_COUNT; the timer stops, and has to be looked at if it is enabled.
    pub fn set_count(&mut self, count: u64, by_host: bool) {
        self.stop();
        self.count = count;
        if by_host {
            return;
        }
        if count == 0 {
            self.config &= !ENABLE;
        } else if self.config & AUTO_ENABLE != 0 {
            self.config |= ENABLE;
        }
    }

    /// How to tell that it has expired, if it has by `now`. [`Stimer::told`] has to follow.
    pub fn due(&mut self, now: u64) -> Option<Told> {
        if !self.enabled() || self.expires == 0 || now < self.expires {
            return None;
        }
        self.undelivered = true;
        Some(if Self::is_direct(self.config) {
            Told::Vector((self.config >> 4) as u8)
        } else {
            Told::Message {
                sint: self.sint(),
                expired: self.expires,
                once: self.config & PERIODIC != 0,
            }
        })
    }

    /// It has been told.
    pub fn told(&mut self) {
        self.undelivered = false;
        if self.config & PERIODIC == 0 {
            self.config &= !ENABLE;
        }
    }

    /// Starts it, if it is enabled.
    pub fn start(&mut self, now: u64) -> Wait {
        if !self.enabled() || self.count == 0 {
            self.stop();
            return Wait::Off;
        }
        if self.undelivered {
            return Wait::Off;
        }
        if self.config & PERIODIC == 0 {
            self.expires = self.count;
            // In the past: at once (TLFS 12.3.1).
            return if now >= self.count {
                Wait::Over
            } else {
                Wait::Until(self.count)
            };
        }
        if self.expires == 0 {
            self.expires = now.saturating_add(self.count);
        } else if let Some(late) = now.checked_sub(self.expires) {
            let into = late.checked_rem(self.count).unwrap_or(0);
            self.expires = now.saturating_add(self.count.wrapping_sub(into));
        }
        Wait::Until(self.expires)
    }
}

/// Size of a message (HV_MESSAGE, TLFS 11.10), and how much of one a timer fills.
pub const MESSAGE: u64 = 256;
/// Header and payload of a timer's message.
pub const TIMER_MESSAGE: usize = 40;

/// HvMessageTimerExpired of timer `n`, which expired at `expired` and is told so at `now` (TLFS 12.4).
pub fn message(n: u32, expired: u64, now: u64) -> [u8; TIMER_MESSAGE] {
    const TIMER_EXPIRED: u64 = 0x8000_0010;
    const PAYLOAD: u64 = 24;
    let words = [TIMER_EXPIRED | PAYLOAD << 32, 0, u64::from(n), expired, now];
    let mut bytes = [0; TIMER_MESSAGE];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
