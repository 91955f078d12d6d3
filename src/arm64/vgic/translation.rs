// SPDX-License-Identifier: GPL-2.0
//! An interrupt translation service as pure logic: its frame of registers, its commands, and what its tables hold when
//! they are saved (Arm IHI 0069 12.18, 5.3; kernel document virt/kvm/devices/arm-vgic-its.rst).
#![forbid(unsafe_code)]

use crate::arm64::vgic::table::{self, Kind, Table, ENTRY, NUMBERS, VALID};

/// Bytes of both frames: registers, and the one for messages.
pub const FRAMES: u64 = 0x2_0000;
/// Bytes of a command.
pub const COMMAND: usize = 32;

/// Of no vCPU, or no collection.
pub const NONE: u32 = u32::MAX;

const CTLR: u64 = 0;
const IIDR: u64 = 4;
const TYPER: u64 = 8;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;
const BASER: u64 = 0x100;
const IDS: u64 = 0xffd0;

/// GITS_CTLR: enabled, and nothing left to do.
const ENABLE: u64 = 1;
const QUIESCENT: u64 = 1 << 31;
/// KVM's, with its layout of tables of revision 0.
const IIDR_VALUE: u64 = 0x4b << 24 | 0x43b;
/// Physical LPIs; entries of 8 bytes; numbers of events and of devices have 16 bits.
const TYPER_VALUE: u64 = 1 | (ENTRY - 1) << 4 | 15 << 8 | 15 << 13;

/// What a write has to be followed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// There may be commands.
    Commands,
    /// A table is another one: nothing of this kind is mapped any more.
    Gone(Kind),
}

/// Why user space cannot write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is enabled.
    Busy,
    /// It cannot have that value.
    Invalid,
}

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    /// GITS_CTLR.Enabled.
    pub enabled: bool,
    /// GITS_CBASER.
    pub commands: u64,
    /// GITS_CREADR, GITS_CWRITER.
    pub read: u64,
    /// See above.
    pub write: u64,
    /// GITS_BASER0, GITS_BASER1.
    pub devices: Table,
    /// See above.
    pub collections: Table,
}

impl Registers {
    /// When it is made.
    pub const NEW: Self = Self {
        enabled: false,
        commands: 0,
        read: 0,
        write: 0,
        devices: Table::reset(Kind::Devices),
        collections: Table::reset(Kind::Collections),
    };

    /// KVM_DEV_ARM_ITS_CTRL_RESET: tables are not valid any more.
    pub fn reset(&mut self) {
        *self = Self {
            devices: Table(self.devices.0 & !VALID),
            collections: Table(self.collections.0 & !VALID),
            ..Self::NEW
        };
    }

    /// Whether user space finds a register there. `None`: not aligned.
    pub fn exists(at: u64) -> Option<bool> {
        let mask = if (TYPER..IDS).contains(&at) { 7 } else { 3 };
        (at & mask == 0).then_some(matches!(
            at,
            0..0x10 | CBASER..0x98 | BASER..0x140 | IDS..0x1_0000
        ))
    }

    /// How many bytes user space's accesses have there.
    pub fn width(at: u64) -> usize {
        if (TYPER..IDS).contains(&at) {
            8
        } else {
            4
        }
    }

    /// Reads `len` bytes at `at`.
    pub fn get(&self, at: u64, len: usize) -> u64 {
        if !matches!(len, 4 | 8) || at % len as u64 != 0 {
            return 0;
        }
        let whole = match at & !7 {
            CTLR if len == 4 => {
                let quiet = if self.read == self.write {
                    QUIESCENT
                } else {
                    0
                };
                quiet | u64::from(self.enabled) | IIDR_VALUE << 32
            }
            TYPER => TYPER_VALUE,
            CBASER => self.commands,
            CWRITER => self.write,
            CREADR => self.read,
            BASER => self.devices.0,
            0x108 => self.collections.0,
            IDS.. if len == 4 => {
                return match at {
                    0xffd0 => 0x40,
                    0xffe0 => 0x92,
                    0xffe4 => 0xb4,
                    0xffe8 => 0x3b,
                    0xfff0 => 0x0d,
                    0xfff4 => 0xf0,
                    0xfff8 => 0x05,
                    0xfffc => 0xb1,
                    _ => 0,
                }
            }
            _ => 0,
        };
        table::part(whole, at, len)
    }

    /// Writes `len` bytes at `at`.
    pub fn set(&mut self, at: u64, len: usize, value: u64) -> Then {
        if !matches!(len, 4 | 8) || at % len as u64 != 0 {
            return Then::Nothing;
        }
        match at & !7 {
            CTLR if at == CTLR && len == 4 => {
                let on = value & ENABLE != 0;
                let valid = self.devices.0 & self.collections.0 & self.commands & VALID != 0;
                if self.enabled || !on || valid {
                    self.enabled = on;
                    return Then::Commands;
                }
            }
            CBASER if !self.enabled => {
                let new = table::updated(self.commands, at, len, value);
                self.commands = table::commands(new);
                (self.read, self.write) = (0, 0);
            }
            CWRITER => {
                let new = table::updated(self.write, at, len, value) & 0xf_ffe0;
                if new < table::commands_size(self.commands) {
                    self.write = new;
                    return Then::Commands;
                }
            }
            BASER if !self.enabled => {
                let new = table::updated(self.devices.0, at, len, value);
                let new = Table::written(Kind::Devices, new);
                if core::mem::replace(&mut self.devices, new) != new {
                    return Then::Gone(Kind::Devices);
                }
            }
            0x108 if !self.enabled => {
                let new = table::updated(self.collections.0, at, len, value);
                let new = Table::written(Kind::Collections, new);
                if core::mem::replace(&mut self.collections, new) != new {
                    return Then::Gone(Kind::Collections);
                }
            }
            _ => {}
        }
        Then::Nothing
    }

    /// User space writes the register at `at`: GITS_CREADR as well, and GITS_IIDR, which says the tables' layout.
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn restore(&mut self, at: u64, value: u64) -> Result<Then, Refused> {
        match at {
            IIDR if value >> 12 & 0xf != 0 => return Err(Refused::Invalid),
            CREADR => {
                let new = value & 0xf_ffe0;
                if self.enabled {
                    return Err(Refused::Busy);
                }
                if new >= table::commands_size(self.commands) {
                    return Err(Refused::Invalid);
                }
                self.read = new;
            }
            _ => return Ok(self.set(at, Self::width(at), value)),
        }
        Ok(Then::Nothing)
    }

    /// Where the next command is, if there is one.
    pub fn next(&self) -> Option<u64> {
        let more = self.enabled && self.read != self.write;
        more.then(|| table::commands_at(self.commands).wrapping_add(self.read))
    }

    /// It has been carried out.
    pub fn advance(&mut self) {
        self.read = self.read.wrapping_add(COMMAND as u64);
        if self.read >= table::commands_size(self.commands) {
            self.read = 0;
        }
    }
}

/// A command. Devices, events, LPIs, collections and processors are numbers as the guest has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// MAPD: the events of a device have a table of its own, or none.
    Device {
        device: u32,
        map: Option<(u64, u32)>,
    },
    /// MAPC: a collection has a processor, or none.
    Collection {
        collection: u32,
        target: Option<u32>,
    },
    /// MAPTI, MAPI.
    Event {
        device: u32,
        event: u32,
        lpi: u32,
        collection: u32,
    },
    /// MOVI.
    Move {
        device: u32,
        event: u32,
        collection: u32,
    },
    /// DISCARD.
    Discard(u32, u32),
    /// CLEAR.
    Clear(u32, u32),
    /// INT.
    Raise(u32, u32),
    /// INV.
    Look(u32, u32),
    /// INVALL.
    LookAll(u32),
    /// MOVALL.
    MoveAll(u32, u32),
    /// SYNC: everything is done already.
    Sync,
}

impl Command {
    /// Decodes it. `None`: there is none like that.
    pub fn decode(bytes: &[u8; COMMAND]) -> Option<Self> {
        let word = |n: usize| {
            let at = bytes.iter().skip(8 * n).take(8).rev();
            at.fold(0u64, |word, byte| word << 8 | u64::from(*byte))
        };
        let (w0, w1, w2, w3) = (word(0), word(1), word(2), word(3));
        let (device, event) = ((w0 >> 32) as u32, w1 as u32);
        let collection = w2 as u32 & 0xffff;
        let processor = |word: u64| (word >> 16) as u32;
        let valid = w2 & VALID != 0;
        Some(match w0 & 0xff {
            0x01 => Self::Move {
                device,
                event,
                collection,
            },
            0x03 => Self::Raise(device, event),
            0x04 => Self::Clear(device, event),
            0x05 => Self::Sync,
            0x08 => Self::Device {
                device,
                map: valid.then_some((w2 & 0x000f_ffff_ffff_ff00, (w1 as u32 & 0x1f) + 1)),
            },
            0x09 => Self::Collection {
                collection,
                target: valid.then_some(processor(w2)),
            },
            0x0a => Self::Event {
                device,
                event,
                lpi: (w1 >> 32) as u32,
                collection,
            },
            0x0b => Self::Event {
                device,
                event,
                lpi: event,
                collection,
            },
            0x0c => Self::Look(device, event),
            0x0d => Self::LookAll(collection),
            0x0e => Self::MoveAll(processor(w2), processor(w3)),
            0x0f => Self::Discard(device, event),
            _ => return None,
        })
    }
}

/// A device whose events can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub number: u32,
    /// How many bits numbers of its events have.
    pub bits: u32,
    /// Where its table is.
    pub table: u64,
}

/// A collection of interrupts that have a target in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collection {
    /// Its number.
    pub number: u32,
    /// The number of a processor, or [`NONE`].
    pub target: u32,
}

/// Where an event leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The device's number above the event's.
    pub key: u32,
    /// To which LPI.
    pub lpi: u32,
    /// In which collection, or [`NONE`].
    pub collection: u32,
}

impl Event {
    /// The number among events of all devices. `None`: there is none like that.
    pub fn key(device: u32, event: u32) -> Option<u32> {
        (device < NUMBERS && event < NUMBERS).then_some(device << 16 | event)
    }

    /// The number of the event.
    pub fn number(&self) -> u32 {
        self.key & 0xffff
    }

    /// As an entry of the device's table; the next one is so many further.
    pub fn entry(&self, next: u32) -> u64 {
        u64::from(next.min(0xffff)) << 48
            | u64::from(self.lpi) << 16
            | u64::from(self.collection & 0xffff)
    }

    /// LPI, collection, and how far the next one is, of an entry. `None`: there is nothing.
    pub fn of_entry(entry: u64) -> Option<(u32, u32, u32)> {
        let lpi = (entry >> 16) as u32;
        let parts = (lpi, entry as u32 & 0xffff, (entry >> 48) as u32);
        (lpi != 0).then_some(parts)
    }
}

impl Device {
    /// As an entry of the table of devices; the next one is so many further.
    pub fn entry(&self, next: u32) -> u64 {
        VALID
            | u64::from(next.min(0x3fff)) << 49
            | (self.table >> 8) << 5
            | u64::from(self.bits.wrapping_sub(1) & 0x1f)
    }

    /// The device with this number as an entry has it, and how far the next one is. `None`: there is nothing.
    pub fn of_entry(number: u32, entry: u64) -> Option<(Self, u32)> {
        let device = Self {
            number,
            bits: (entry as u32 & 0x1f) + 1,
            table: (entry >> 5 & ((1 << 44) - 1)) << 8,
        };
        (entry & VALID != 0).then_some((device, (entry >> 49) as u32 & 0x3fff))
    }
}

impl Collection {
    /// As an entry of the table of collections.
    pub fn entry(&self) -> u64 {
        VALID | u64::from(self.target) << 16 | u64::from(self.number & 0xffff)
    }

    /// The collection that an entry has. `None`: there is nothing.
    pub fn of_entry(entry: u64) -> Option<Self> {
        let collection = Self {
            number: entry as u32 & 0xffff,
            target: (entry >> 16) as u32,
        };
        (entry & VALID != 0).then_some(collection)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    fn command(words: [u64; 4]) -> Option<Command> {
        let mut bytes = [0; COMMAND];
        for (to, from) in bytes.chunks_mut(8).zip(words) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        Command::decode(&bytes)
    }

    #[test]
    fn commands() {
        let (device, event) = (0x1_0007, 0x2_0005);
        let w0 = u64::from(device) << 32;
        let w1 = 0x2345_0000_0000 | u64::from(event);
        let w2 = VALID | 0x4_0000_1234;
        assert_eq!(
            command([w0 | 8, 0x1f, VALID | 0xfff0_0000_4500_01ff, 0]),
            Some(Command::Device {
                device,
                map: Some((0x4500_0100, 32))
            })
        );
        assert_eq!(
            command([w0 | 8, 3, 0, 0]),
            Some(Command::Device { device, map: None })
        );
        assert_eq!(
            command([9, 0, w2, 0]),
            Some(Command::Collection {
                collection: 0x1234,
                target: Some(0x4_0000)
            })
        );
        assert_eq!(
            command([9, 0, 2, 0]),
            Some(Command::Collection {
                collection: 2,
                target: None
            })
        );
        assert_eq!(
            command([w0 | 0xa, w1, w2, 0]),
            Some(Command::Event {
                device,
                event,
                lpi: 0x2345,
                collection: 0x1234
            })
        );
        assert_eq!(
            command([w0 | 0xb, w1, w2, 0]),
            Some(Command::Event {
                device,
                event,
                lpi: event,
                collection: 0x1234
            })
        );
        assert_eq!(
            command([w0 | 1, w1, w2, 0]),
            Some(Command::Move {
                device,
                event,
                collection: 0x1234
            })
        );
        for (code, is) in [
            (3, Command::Raise(device, event)),
            (4, Command::Clear(device, event)),
            (5, Command::Sync),
            (0xc, Command::Look(device, event)),
            (0xd, Command::LookAll(0x1234)),
            (0xe, Command::MoveAll(0x4_0000, 7)),
            (0xf, Command::Discard(device, event)),
        ] {
            assert_eq!(command([w0 | code, w1, w2, 7 << 16]), Some(is));
        }
        for code in (0..=0xff)
            .filter(|c| !(1..=0xf).contains(c))
            .chain([2, 6, 7])
        {
            assert_eq!(command([code, 0, 0, 0]), None);
        }
    }

    #[test]
    fn registers() {
        let mut r = Registers::NEW;
        assert_eq!(r.get(CTLR, 4), QUIESCENT);
        assert_eq!(r.get(IIDR, 4), 0x4b00_043b);
        assert_eq!(r.get(TYPER, 8), 0x1_ef71);
        assert_eq!(r.get(0xffe8, 4), 0x3b);
        assert_eq!(r.get(BASER, 8) >> 48, 0x1907);
        assert_eq!(r.get(0x110, 8), 0);
        // Nothing without tables.
        assert_eq!(r.set(CTLR, 4, 1), Then::Nothing);
        assert_eq!(
            r.set(BASER, 8, VALID | 0x4400_0000),
            Then::Gone(Kind::Devices)
        );
        assert_eq!(r.set(BASER, 8, VALID | 0x4400_0000), Then::Nothing);
        assert_eq!(r.set(0x10c, 4, 1 << 31), Then::Gone(Kind::Collections));
        assert_eq!(r.set(CTLR, 4, 1), Then::Nothing);
        r.set(CBASER, 8, VALID | 0x4500_0000);
        assert_eq!(r.set(CTLR, 4, 1), Then::Commands);
        assert_eq!(r.next(), None);
        // What cannot be changed now, and what can never be.
        r.set(CBASER, 8, 0);
        r.set(BASER, 8, 0);
        r.set(CREADR, 8, 0x20);
        r.set(CTLR, 8, 0);
        assert!(r.enabled && r.devices.is_valid() && r.read == 0);
        assert_eq!(r.get(CBASER, 8), VALID | 0x4500_0000 | 3 << 59);
        assert_eq!(r.set(CWRITER, 8, 0x47), Then::Commands);
        assert_eq!(r.get(CTLR, 4), ENABLE);
        assert_eq!(r.next(), Some(0x4500_0000));
        r.advance();
        assert_eq!(r.next(), Some(0x4500_0020));
        r.advance();
        assert_eq!((r.next(), r.get(CREADR, 4)), (None, 0x40));
        // Past the end.
        assert_eq!(r.set(CWRITER, 4, 0x1000), Then::Nothing);
        assert_eq!(r.write, 0x40);
        r.read = 0xfe0;
        r.advance();
        assert_eq!(r.read, 0);
        r.reset();
        assert!(!r.enabled && !r.devices.is_valid() && r.devices.base() == 0x4400_0000);
    }

    #[test]
    fn restored() {
        let mut r = Registers::NEW;
        assert_eq!(r.restore(IIDR, 0x4b00_043b), Ok(Then::Nothing));
        assert_eq!(r.restore(IIDR, 0x4b00_143b), Err(Refused::Invalid));
        assert_eq!(r.restore(CREADR, 0xfe0), Ok(Then::Nothing));
        assert_eq!(r.restore(CREADR, 0x1000), Err(Refused::Invalid));
        r.enabled = true;
        assert_eq!(r.restore(CREADR, 0), Err(Refused::Busy));
        assert_eq!(r.read, 0xfe0);
        assert_eq!(Registers::exists(4), Some(true));
        assert_eq!(Registers::exists(0x84), None);
        assert_eq!(Registers::exists(0x98), Some(false));
        assert_eq!(Registers::exists(0xffec), Some(true));
        assert_eq!(Registers::exists(0x1_0040), Some(false));
        assert_eq!(Registers::exists(u64::MAX), None);
    }

    #[test]
    fn any_access() {
        let mut r = Registers::NEW;
        for at in 0..FRAMES {
            for len in [1, 2, 4, 8] {
                r.get(at, len);
                r.set(at, len, u64::MAX);
                let _ = r.restore(at, at);
                if r.next().is_some() {
                    r.advance();
                }
            }
        }
    }

    #[test]
    fn entries() {
        let e = Event {
            key: Event::key(3, 5).unwrap(),
            lpi: 8200,
            collection: 7,
        };
        assert_eq!((e.key, e.number()), (0x3_0005, 5));
        assert_eq!(Event::key(NUMBERS, 0), None);
        assert_eq!(Event::key(0, NUMBERS), None);
        assert_eq!(e.entry(9), 9 << 48 | 8200 << 16 | 7);
        assert_eq!(Event::of_entry(e.entry(1 << 20)), Some((8200, 7, 0xffff)));
        assert_eq!(Event::of_entry(9 << 48 | 7), None);
        let d = Device {
            number: 3,
            bits: 5,
            table: 0x4500_0100,
        };
        assert_eq!(d.entry(2), VALID | 2 << 49 | 0x45_0001 << 5 | 4);
        assert_eq!(Device::of_entry(3, d.entry(1 << 20)), Some((d, 0x3fff)));
        assert_eq!(Device::of_entry(3, d.entry(2) & !VALID), None);
        let c = Collection {
            number: 9,
            target: NONE,
        };
        assert_eq!(c.entry(), VALID | 0xffff_ffff << 16 | 9);
        assert_eq!(Collection::of_entry(c.entry()), Some(c));
        assert_eq!(Collection::of_entry(9), None);
    }
}
