// SPDX-License-Identifier: GPL-2.0
//! One counter of an 8254 (Intel 8254 data sheet, "Mode definitions").
#![forbid(unsafe_code)]

/// Input clock in Hz.
pub const HZ: u64 = 1_193_182;
const NS: u64 = 1_000_000_000;

/// Byte-sequencing states of `kvm_pit_channel_state`: low byte, high byte, first and second of a word.
mod rw {
    pub const NONE: u8 = 0;
    pub const LSB: u8 = 1;
    pub const MSB: u8 = 2;
    pub const WORD0: u8 = 3;
    pub const WORD1: u8 = 4;
}

/// Mode of a counter that was never programmed.
const UNPROGRAMMED: u8 = 0xff;

/// Whole clock ticks in `ns` nanoseconds.
pub(super) const fn ns_to_ticks(ns: u64) -> u64 {
    // 128-bit division is not to be had in the kernel; the parts fit 64 bits.
    (ns / NS)
        .wrapping_mul(HZ)
        .wrapping_add((ns % NS).wrapping_mul(HZ) / NS)
}

/// Nanoseconds until `ticks` ticks are complete, rounded up.
pub(super) const fn ticks_to_ns(ticks: u64) -> u64 {
    let part = (ticks % HZ).wrapping_mul(NS).wrapping_add(HZ - 1) / HZ;
    (ticks / HZ).saturating_mul(NS).saturating_add(part)
}

/// Saved counter; the fields of `struct kvm_pit_channel_state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ChannelState {
    /// Initial count, 1 to 65536.
    pub count: u32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
    /// Nanoseconds on the owner's clock.
    pub count_load_time: i64,
}

/// A counter.
#[derive(Clone, Debug, Default)]
pub(super) struct Channel {
    count: u32,
    latched_count: u16,
    count_latched: u8,
    status_latched: bool,
    status: u8,
    read_state: u8,
    write_state: u8,
    write_latch: u8,
    rw_mode: u8,
    mode: u8,
    bcd: bool,
    gate: bool,
    /// Time of tick 0 of the running count.
    loaded_at: u64,
    /// Counting has begun (a count was written and, in modes 1 and 5, the gate rose).
    running: bool,
    /// A count was written since the control word.
    has_count: bool,
    /// Ticks done when a low gate stopped the count (modes 0 and 4).
    stopped: Option<u64>,
}

impl Channel {
    /// A counter in reset state with its gate at `gate`.
    pub(super) fn new(gate: bool) -> Self {
        Self {
            count: 0x10000,
            mode: UNPROGRAMMED,
            gate,
            ..Self::default()
        }
    }

    /// Counting goes on as if it were `ns` nanoseconds earlier.
    pub(super) fn delay(&mut self, ns: u64) {
        self.loaded_at = self.loaded_at.wrapping_add(ns);
    }

    /// Level of the gate.
    pub(super) fn gate(&self) -> bool {
        self.gate
    }

    /// Rate generator or square wave.
    pub(super) fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Initial count, never zero.
    fn initial(&self) -> u64 {
        u64::from(self.count.max(1))
    }

    /// Ticks since the count began.
    fn elapsed(&self, now: u64) -> u64 {
        self.stopped
            .unwrap_or_else(|| ns_to_ticks(now.saturating_sub(self.loaded_at)))
    }

    /// Whole counts that were over by `now`.
    pub(super) fn periods(&self, now: u64) -> u64 {
        self.elapsed(now) / self.initial()
    }

    /// Time after `now` of the next rising edge of OUT.
    pub(super) fn next_rise(&self, now: u64) -> Option<u64> {
        if !self.running || self.stopped.is_some() || self.is_periodic() && !self.gate {
            return None;
        }
        let n = self.initial();
        let done = self.elapsed(now);
        let at = match self.mode {
            // Rises at terminal count and stays.
            0 | 1 => (done < n).then_some(n)?,
            // Rises at the end of every period.
            2 | 3 => (done / n).saturating_add(1).saturating_mul(n),
            // Low for one tick at terminal count.
            4 | 5 => (done <= n).then_some(n.saturating_add(1))?,
            _ => return None,
        };
        Some(self.loaded_at.saturating_add(ticks_to_ns(at)))
    }

    /// Level of OUT.
    pub(super) fn out(&self, now: u64) -> bool {
        if !self.running {
            return self.mode != 0;
        }
        let n = self.initial();
        let done = self.elapsed(now);
        match self.mode {
            0 | 1 => done >= n,
            2 | 3 if !self.gate => true,
            2 => done % n != n.wrapping_sub(1),
            3 => done % n < n.div_ceil(2),
            4 | 5 => done != n,
            _ => true,
        }
    }

    /// Present value of the counting element, as read.
    fn value(&self, now: u64) -> u16 {
        let n = self.initial();
        let done = if self.running { self.elapsed(now) } else { 0 };
        let modulus: u64 = if self.bcd { 10_000 } else { 0x10000 };
        let value = match self.mode {
            2 => n.wrapping_sub(done % n),
            3 => {
                // Counts down by two, twice per period; an odd count loses its lowest bit.
                let half = n.div_ceil(2);
                let phase = done % n;
                let into = if phase < half {
                    phase
                } else {
                    phase.wrapping_sub(half)
                };
                (n & !1).saturating_sub(into.wrapping_mul(2))
            }
            // Wraps around at zero and goes on.
            _ => (n % modulus)
                .wrapping_add(modulus)
                .wrapping_sub(done % modulus),
        } % modulus;
        let value = value as u16;
        if self.bcd {
            to_bcd(value)
        } else {
            value
        }
    }

    /// The guest wrote a control word for this counter.
    pub(super) fn program(&mut self, control: u8) {
        let access = (control >> 4) & 3;
        self.rw_mode = access;
        self.read_state = access;
        self.write_state = access;
        // Modes 6 and 7 are 2 and 3.
        self.mode = match (control >> 1) & 7 {
            mode @ 0..=5 => mode,
            mode => mode & 3,
        };
        self.bcd = control & 1 != 0;
        self.count_latched = rw::NONE;
        self.status_latched = false;
        self.running = false;
        self.has_count = false;
        self.stopped = None;
    }

    fn load(&mut self, count: u16, now: u64) {
        self.count = match (count, self.bcd) {
            (0, false) => 0x10000,
            (0, true) => 10_000,
            (n, false) => n.into(),
            (n, true) => from_bcd(n),
        };
        self.has_count = true;
        self.loaded_at = now;
        self.stopped = None;
        match self.mode {
            // Started by the gate; a running one-shot goes on.
            1 | 5 => {}
            0 | 4 => {
                self.running = true;
                if !self.gate {
                    self.stopped = Some(0);
                }
            }
            _ => self.running = true,
        }
    }

    /// Drives the gate.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        match self.mode {
            0 | 4 if rises => {
                if let Some(done) = self.stopped.take() {
                    self.loaded_at = now.saturating_sub(ticks_to_ns(done));
                }
            }
            0 | 4 if falls && self.running => self.stopped = Some(self.elapsed(now)),
            1 | 2 | 3 | 5 if rises && self.has_count => {
                self.running = true;
                self.loaded_at = now;
            }
            _ => {}
        }
    }

    /// Counter latch command.
    pub(super) fn latch_count(&mut self, now: u64) {
        if self.count_latched == rw::NONE {
            self.latched_count = self.value(now);
            self.count_latched = self.rw_mode;
        }
    }

    /// Status latch of the read-back command (data sheet figure 13).
    pub(super) fn latch_status(&mut self, now: u64) {
        if !self.status_latched {
            self.status = u8::from(self.out(now)) << 7
                | u8::from(!self.has_count) << 6
                | (self.rw_mode & 3) << 4
                | (self.mode & 7) << 1
                | u8::from(self.bcd);
            self.status_latched = true;
        }
    }

    /// The guest reads the counter's port.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        if self.status_latched {
            self.status_latched = false;
            return self.status;
        }
        let (latched, value) = (self.count_latched, self.latched_count);
        let [low, high] = value.to_le_bytes();
        match latched {
            rw::LSB => {
                self.count_latched = rw::NONE;
                return low;
            }
            rw::MSB => {
                self.count_latched = rw::NONE;
                return high;
            }
            rw::WORD0 => {
                self.count_latched = rw::MSB;
                return low;
            }
            _ => {}
        }
        let [low, high] = self.value(now).to_le_bytes();
        match self.read_state {
            rw::MSB => high,
            rw::WORD0 => {
                self.read_state = rw::WORD1;
                low
            }
            rw::WORD1 => {
                self.read_state = rw::WORD0;
                high
            }
            _ => low,
        }
    }

    /// The guest writes the counter's port. Returns whether a new count is loaded.
    pub(super) fn write(&mut self, value: u8, now: u64) -> bool {
        match self.write_state {
            rw::LSB => self.load(value.into(), now),
            rw::MSB => self.load(u16::from(value) << 8, now),
            rw::WORD0 => {
                self.write_latch = value;
                self.write_state = rw::WORD1;
                return false;
            }
            rw::WORD1 => {
                self.write_state = rw::WORD0;
                self.load(u16::from_le_bytes([self.write_latch, value]), now);
            }
            _ => return false,
        }
        true
    }

    /// Counter to save.
    pub(super) fn get_state(&self) -> ChannelState {
        ChannelState {
            count: self.count,
            latched_count: self.latched_count,
            count_latched: self.count_latched,
            status_latched: self.status_latched.into(),
            status: self.status,
            read_state: self.read_state,
            write_state: self.write_state,
            write_latch: self.write_latch,
            rw_mode: self.rw_mode,
            mode: self.mode,
            bcd: self.bcd.into(),
            gate: self.gate.into(),
            count_load_time: self.loaded_at as i64,
        }
    }

    /// Loads a saved counter; `restart`: the count begins at `now` instead of the saved time.
    pub(super) fn set_state(&mut self, saved: &ChannelState, restart: bool, now: u64) {
        let seq = |state: u8| if state <= rw::WORD1 { state } else { rw::NONE };
        let programmed = saved.mode <= 5;
        let began = u64::try_from(saved.count_load_time).unwrap_or(0).min(now);
        *self = Self {
            count: match saved.count {
                0 => 0x10000,
                count => count.min(0x10000),
            },
            latched_count: saved.latched_count,
            count_latched: seq(saved.count_latched),
            status_latched: saved.status_latched != 0,
            status: saved.status,
            read_state: seq(saved.read_state),
            write_state: seq(saved.write_state),
            write_latch: saved.write_latch,
            rw_mode: saved.rw_mode & 3,
            mode: if programmed { saved.mode } else { UNPROGRAMMED },
            bcd: saved.bcd != 0,
            gate: saved.gate != 0,
            loaded_at: if restart { now } else { began },
            running: programmed && (!matches!(saved.mode, 1 | 5) || saved.gate != 0),
            has_count: programmed,
            stopped: None,
        };
        if matches!(self.mode, 0 | 4) && !self.gate {
            self.stopped = Some(self.elapsed(now));
        }
    }
}

/// Four decimal digits; digits above nine count as written.
fn from_bcd(n: u16) -> u32 {
    let digit = |shift: u32| u32::from(n >> shift & 15);
    digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0)
}

/// Encodes 0 to 9999.
fn to_bcd(n: u16) -> u16 {
    ((n / 1000 % 10) << 12) | ((n / 100 % 10) << 8) | ((n / 10 % 10) << 4) | (n % 10)
}
