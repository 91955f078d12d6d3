// SPDX-License-Identifier: GPL-2.0
//! I/O APIC with 24 pins (Intel 82093AA data sheet; state as in `struct kvm_ioapic_state`).
//!
//! The owner turns line changes into messages with [`Ioapic::set_irq`] and passes EOI broadcasts to
//! [`Ioapic::eoi`]. Two deviations from the 82093AA, as in KVM: the polarity bit is stored but not used (levels
//! are logical), and writing an entry as edge-triggered clears its remote IRR (as the 82093AA does in practice:
//! Linux ends an interrupt that way when there is no EOI register).
#![forbid(unsafe_code)]

use crate::bus::line::{Lines, Source};
use crate::x86::irqchip::msg::{number, Message, TriggerMode, Vector};

/// Number of pins.
pub const PINS: usize = 24;
/// Guest-physical address after reset.
pub const DEFAULT_ADDRESS: u64 = 0xfec0_0000;
/// Length of the MMIO window in bytes.
pub const WINDOW: u64 = 0x100;

/// MMIO register offsets (82093AA 3.1).
#[allow(missing_docs)]
pub mod mmio {
    pub const REGSEL: u32 = 0x00;
    pub const WIN: u32 = 0x10;
}

/// Redirection table entry bits (82093AA 3.2.4).
mod rte {
    pub const STATUS: u64 = 1 << 12;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASK: u64 = 1 << 16;
    pub const READ_ONLY: u64 = STATUS | REMOTE_IRR;
    pub const VALID: u64 = 0xff00_0000_0001_ffff;
}

number! {
    /// Number of a pin.
    Pin(u8), below PINS
}

impl Pin {
    const fn bit(self) -> u32 {
        1 << (self.0 & 31)
    }
}

/// A set of pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins(pub u32);

impl Iterator for Pins {
    type Item = Pin;

    fn next(&mut self) -> Option<Pin> {
        let n = self.0.trailing_zeros();
        let pin = Pin::new(n)?;
        self.0 &= !pin.bit();
        Some(pin)
    }
}

/// State as saved and restored; the fields of `struct kvm_ioapic_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Guest-physical address of the window.
    pub base_address: u64,
    /// Selected register.
    pub ioregsel: u32,
    /// Identification, 4 bits.
    pub id: u32,
    /// Pins whose line is up and, if edge-triggered, whose interrupt is not delivered yet.
    pub irr: u32,
    /// Redirection table.
    pub redirtbl: [u64; PINS],
}

/// Outcome of a line change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// The line is down, now or still.
    Lowered,
    /// Masked, or the previous interrupt is not finished: nothing new (KVM_IRQ_LINE_STATUS reports 0 or -1).
    Coalesced,
    /// Masked: the interrupt is ignored (edge) or waits (level).
    Masked,
    /// Deliver this message.
    Message(Message),
}

/// What the owner does after a register write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Written {
    /// Nothing.
    Nothing,
    /// A redirection entry changed: routes and [`Ioapic::vectors`] have to be recomputed. If `mask_changed`,
    /// tell the mask listeners. If `waiting`, a level-triggered interrupt waited for this: let resample
    /// listeners re-evaluate the pin, then call [`Ioapic::service`].
    Entry {
        /// The entry's pin.
        pin: Pin,
        /// The mask bit toggled.
        mask_changed: bool,
        /// The pin is unmasked now, level-triggered and up.
        waiting: bool,
    },
}

/// An I/O APIC.
#[derive(Clone, Debug)]
pub struct Ioapic {
    base_address: u64,
    ioregsel: u32,
    id: u32,
    /// Pins whose line is up.
    irr: u32,
    /// Of those: edge-triggered and delivered.
    delivered: u32,
    redirtbl: [u64; PINS],
    lines: Lines<PINS>,
}

impl Default for Ioapic {
    /// An I/O APIC in reset state.
    fn default() -> Self {
        Self {
            base_address: DEFAULT_ADDRESS,
            ioregsel: 0,
            id: 0,
            irr: 0,
            delivered: 0,
            redirtbl: [rte::MASK; PINS],
            lines: Lines::default(),
        }
    }
}

impl Ioapic {
    /// Guest-physical address of the window.
    pub const fn base_address(&self) -> u64 {
        self.base_address
    }

    fn entry(&self, pin: Pin) -> u64 {
        self.redirtbl
            .get(pin.number() as usize)
            .copied()
            .unwrap_or(rte::MASK)
    }

    fn entry_mut(&mut self, pin: Pin) -> Option<&mut u64> {
        self.redirtbl.get_mut(pin.number() as usize)
    }

    /// `source` drives the line of `pin` up or down.
    ///
    /// With [`Raised::Message`] on a level-triggered pin remote IRR is set; if no local APIC took the message,
    /// call [`Ioapic::not_accepted`].
    pub fn set_irq(&mut self, pin: Pin, source: Source, level: bool) -> Raised {
        match self.lines.set(pin.number() as usize, source, level) {
            Some(level) => self.set_level(pin, level),
            None => Raised::Lowered,
        }
    }

    fn set_level(&mut self, pin: Pin, level: bool) -> Raised {
        if !level {
            self.irr &= !pin.bit();
            self.delivered &= !pin.bit();
            return Raised::Lowered;
        }
        let was_up = self.irr & pin.bit() != 0;
        self.irr |= pin.bit();
        let entry = self.entry(pin);
        if entry & rte::LEVEL == 0 && was_up {
            return Raised::Coalesced;
        }
        if entry & rte::MASK != 0 {
            return Raised::Masked;
        }
        match self.fire(pin) {
            Some(message) => Raised::Message(message),
            None => Raised::Coalesced,
        }
    }

    /// What the entry of `pin` sends.
    pub fn message(&self, pin: Pin) -> Message {
        Message::from_rte(self.entry(pin))
    }

    /// Builds the message of an unmasked pin that is up.
    fn fire(&mut self, pin: Pin) -> Option<Message> {
        let entry = self.entry(pin);
        if entry & rte::MASK != 0 || self.irr & pin.bit() == 0 {
            return None;
        }
        if entry & rte::LEVEL != 0 {
            if entry & rte::REMOTE_IRR != 0 {
                return None;
            }
            *self.entry_mut(pin)? |= rte::REMOTE_IRR;
        } else {
            self.delivered |= pin.bit();
        }
        Some(Message::from_rte(entry))
    }

    /// Delivers the interrupt of a level-triggered pin that is up and unmasked, unless one is in service.
    /// Call it for the pins of [`Ioapic::eoi`] and after [`Written::Entry`] with `waiting`.
    pub fn service(&mut self, pin: Pin) -> Option<Message> {
        if self.entry(pin) & rte::LEVEL == 0 {
            return None;
        }
        self.fire(pin)
    }

    /// Whether `pin` is level-triggered, unmasked and up, and no interrupt of it is in service.
    pub fn waits(&self, pin: Pin) -> bool {
        self.entry(pin) & (rte::MASK | rte::LEVEL | rte::REMOTE_IRR) == rte::LEVEL
            && self.irr & pin.bit() != 0
    }

    /// No local APIC accepted the message of `pin`: remote IRR is taken back, so that it can be sent again.
    pub fn not_accepted(&mut self, pin: Pin) {
        if let Some(entry) = self.entry_mut(pin) {
            *entry &= !rte::REMOTE_IRR;
        }
    }

    /// An EOI of `vector`, broadcast by a local APIC, or of an edge-triggered interrupt if `level` is false.
    /// Returns the pins with that vector. The owner tells the ack listeners of these pins (resampling irqfds, PIT),
    /// then calls [`Ioapic::service`] for each.
    pub fn eoi(&mut self, vector: Vector, level: bool) -> Pins {
        let mut pins = Pins(0);
        for (n, entry) in (0..PINS as u32).zip(&mut self.redirtbl) {
            if *entry as u8 != vector.0 {
                continue;
            }
            if level && *entry & rte::LEVEL != 0 {
                *entry &= !rte::REMOTE_IRR;
            }
            pins.0 |= 1 << (n & 31);
        }
        pins
    }

    /// Reads from the window at `offset`, 32 bits; registers that do not exist read as zero.
    pub fn read(&self, offset: u32) -> u32 {
        match offset {
            mmio::REGSEL => self.ioregsel,
            mmio::WIN => self.read_selected(),
            _ => 0,
        }
    }

    fn read_selected(&self) -> u32 {
        match self.ioregsel {
            // Identification and arbitration ID.
            0 | 2 => self.id << 24,
            // Version and highest entry.
            1 => (PINS as u32 - 1) << 16 | 0x11,
            select => match selected_pin(select) {
                Some((pin, true)) => (self.entry(pin) >> 32) as u32,
                Some((pin, false)) => self.entry(pin) as u32,
                None => u32::MAX,
            },
        }
    }

    /// Writes 32 bits into the window at `offset`.
    pub fn write(&mut self, offset: u32, value: u32) -> Written {
        match offset {
            mmio::REGSEL => {
                self.ioregsel = value & 0xff;
                Written::Nothing
            }
            mmio::WIN => self.write_selected(value),
            _ => Written::Nothing,
        }
    }

    fn write_selected(&mut self, value: u32) -> Written {
        if self.ioregsel == 0 {
            self.id = (value >> 24) & 0xf;
            return Written::Nothing;
        }
        let Some((pin, high)) = selected_pin(self.ioregsel) else {
            return Written::Nothing;
        };
        let old = self.entry(pin);
        let mut new = if high {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            let writable = u64::from(value) & !rte::READ_ONLY;
            old & (0xffff_ffff_0000_0000 | rte::READ_ONLY) | writable
        } & rte::VALID;
        if new & rte::LEVEL == 0 {
            new &= !rte::REMOTE_IRR;
        }
        if let Some(entry) = self.entry_mut(pin) {
            *entry = new;
        }
        Written::Entry {
            pin,
            mask_changed: (old ^ new) & rte::MASK != 0,
            waiting: self.waits(pin),
        }
    }

    /// Vectors whose EOI matters here: those of level-triggered entries, and of the edge-triggered entries of the
    /// pins in `listened` (pins with an ack listener). Masked entries count, their last interrupt may be in service.
    pub fn vectors(&self, listened: Pins) -> [u32; 8] {
        let mut vectors = [0u32; 8];
        for (n, entry) in (0..PINS as u32).zip(&self.redirtbl) {
            if entry & rte::LEVEL != 0 || listened.0 & (1 << (n & 31)) != 0 {
                let (word, bit) = Vector(*entry as u8).word_bit();
                vectors[word & 7] |= bit;
            }
        }
        vectors
    }

    /// Whether `pin` is masked.
    pub fn is_masked(&self, pin: Pin) -> bool {
        self.entry(pin) & rte::MASK != 0
    }

    /// Trigger mode of `pin`.
    pub fn trigger(&self, pin: Pin) -> TriggerMode {
        TriggerMode::from_bit(self.entry(pin) & rte::LEVEL != 0)
    }

    /// State to save (KVM_GET_IRQCHIP).
    pub fn get_state(&self) -> State {
        State {
            base_address: self.base_address,
            ioregsel: self.ioregsel,
            id: self.id,
            irr: self.irr & !self.delivered,
            redirtbl: self.redirtbl,
        }
    }

    /// Loads a saved state (KVM_SET_IRQCHIP). Returns the pins that were up: the owner calls
    /// [`Ioapic::reassert`] for each and delivers what comes of it.
    pub fn set_state(&mut self, state: &State) -> Pins {
        self.base_address = state.base_address;
        self.ioregsel = state.ioregsel & 0xff;
        self.id = state.id & 0xf;
        self.irr = 0;
        self.delivered = 0;
        for (entry, value) in self.redirtbl.iter_mut().zip(state.redirtbl) {
            *entry = value & rte::VALID;
            if *entry & rte::LEVEL == 0 {
                *entry &= !rte::REMOTE_IRR;
            }
        }
        Pins(state.irr & ((1 << PINS) - 1))
    }

    /// The line of `pin` is up, says a loaded state.
    pub fn reassert(&mut self, pin: Pin) -> Option<Message> {
        match self.set_level(pin, true) {
            Raised::Message(message) => Some(message),
            _ => None,
        }
    }
}

/// Pin of an indirect register 0x10-0x3f, and whether it is the upper half.
fn selected_pin(select: u32) -> Option<(Pin, bool)> {
    let n = select.checked_sub(0x10)?;
    Some((Pin::new(n >> 1)?, n & 1 != 0))
}
