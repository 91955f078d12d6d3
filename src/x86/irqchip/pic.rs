// SPDX-License-Identifier: GPL-2.0
//! Two cascaded 8259A interrupt controllers with edge/level control registers (Intel 8259A data sheet, 82371AB 4.1;
//! state as in `struct kvm_pic_state`).
//!
//! Deviations, as in KVM: an edge request stays latched when its line drops before it is acknowledged (the chip
//! would deliver a spurious IR7), and ICW1's LTIM and SNGL bits are ignored in favour of ELCR and the fixed cascade
//! on IR2.
#![forbid(unsafe_code)]

use crate::bus::line::{Lines, Source};
use crate::x86::irqchip::msg::{number, Vector};

/// Number of lines of both chips.
pub const LINES: usize = 16;
/// Cascade input of the master.
const CASCADE: u8 = 1 << 2;
/// Lines that can be level-triggered: not the timer, keyboard, cascade, RTC and FPU error.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// I/O ports.
#[allow(missing_docs)]
pub mod port {
    pub const MASTER_COMMAND: u16 = 0x20;
    pub const MASTER_DATA: u16 = 0x21;
    pub const SLAVE_COMMAND: u16 = 0xa0;
    pub const SLAVE_DATA: u16 = 0xa1;
    pub const MASTER_ELCR: u16 = 0x4d0;
    pub const SLAVE_ELCR: u16 = 0x4d1;
}

number! {
    /// Number of a line.
    Irq(u8), below LINES
}

/// Which of the two chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chip {
    /// Lines 0-7, `KVM_IRQCHIP_PIC_MASTER`.
    Master,
    /// Lines 8-15, `KVM_IRQCHIP_PIC_SLAVE`.
    Slave,
}

/// Outcome of a line change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// The line is down, now or still.
    Lowered,
    /// The request was pending already.
    Coalesced,
    /// The line is up as before, and edge-triggered: no request.
    NoEdge,
    /// The request is noted but masked.
    Masked,
    /// The request is noted.
    Pending,
}

/// Where the initialisation sequence stands (data sheet figure 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Init {
    /// Operational.
    #[default]
    Done,
    /// The next data byte is ICW2.
    Icw2,
    /// ICW3.
    Icw3,
    /// ICW4.
    Icw4,
}

#[derive(Clone, Debug, Default)]
struct Pic8259 {
    /// Line levels, for edge detection.
    last_irr: u8,
    irr: u8,
    imr: u8,
    isr: u8,
    /// Line with the highest priority.
    priority_add: u8,
    irq_base: u8,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    init: Init,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    /// ICW1 announced an ICW4.
    init4: bool,
    elcr: u8,
    /// Lines that may be level-triggered. User space may load another mask.
    elcr_mask: u8,
}

impl Pic8259 {
    /// Vector of a line. ICW2 leaves the low bits clear, user space need not.
    fn vector(&self, line: u8) -> u8 {
        self.irq_base.wrapping_add(line)
    }

    /// Highest-priority line in `mask`, as distance from the highest priority.
    fn priority(&self, mask: u8) -> Option<u8> {
        let rotated = mask.rotate_right(u32::from(self.priority_add & 7));
        (rotated != 0).then(|| rotated.trailing_zeros() as u8)
    }

    fn line_of(&self, priority: u8) -> u8 {
        priority.wrapping_add(self.priority_add) & 7
    }

    /// The request that raises INT now, if any.
    fn request(&self, is_master: bool) -> Option<u8> {
        let wanted = self.priority(self.irr & !self.imr)?;
        let mut busy = self.isr;
        if self.special_mask {
            busy &= !self.imr;
        }
        if self.special_fully_nested && is_master {
            busy &= !CASCADE;
        }
        match self.priority(busy) {
            Some(current) if wanted >= current => None,
            _ => Some(self.line_of(wanted)),
        }
    }

    fn set_line(&mut self, line: u8, level: bool) -> Raised {
        let bit = 1u8 << (line & 7);
        let rises = level && self.last_irr & bit == 0;
        if level {
            self.last_irr |= bit;
        } else {
            self.last_irr &= !bit;
        }
        let old = self.irr;
        if self.elcr & bit != 0 {
            self.irr = if level { old | bit } else { old & !bit };
        } else if rises {
            self.irr |= bit;
        }
        if !level {
            Raised::Lowered
        } else if !rises && self.elcr & bit == 0 {
            Raised::NoEdge
        } else if old & bit != 0 {
            Raised::Coalesced
        } else if self.imr & bit != 0 {
            Raised::Masked
        } else {
            Raised::Pending
        }
    }

    /// Interrupt acknowledge for `line`. Returns the in-service lines that ended at once (automatic EOI).
    fn acknowledge(&mut self, line: u8) -> u8 {
        let bit = 1u8 << (line & 7);
        // A level request stays as long as its line is up.
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.priority_add = line.wrapping_add(1) & 7;
            }
            bit
        } else {
            self.isr |= bit;
            0
        }
    }

    /// Ends the in-service interrupt `line`; returns its bit if it was in service.
    fn end(&mut self, line: u8) -> u8 {
        let bit = self.isr & 1 << (line & 7);
        self.isr &= !bit;
        bit
    }

    /// Highest in-service line, as a non-specific EOI sees it: in special mask mode masked lines do not count
    /// (data sheet "Special mask mode").
    fn in_service(&self) -> Option<u8> {
        let mask = if self.special_mask {
            self.isr & !self.imr
        } else {
            self.isr
        };
        Some(self.line_of(self.priority(mask)?))
    }

    /// Writes the command port. Returns the lines that were ended.
    fn command(&mut self, value: u8) -> u8 {
        if value & 0x10 != 0 {
            self.icw1(value)
        } else if value & 0x08 != 0 {
            self.ocw3(value);
            0
        } else {
            self.ocw2(value)
        }
    }

    fn icw1(&mut self, value: u8) -> u8 {
        let edge = self.irr & !self.elcr;
        let ended = self.isr | edge;
        self.irr &= self.elcr;
        self.imr = 0;
        self.isr = 0;
        self.priority_add = 0;
        self.special_mask = false;
        self.read_isr = false;
        self.poll = false;
        self.rotate_on_auto_eoi = false;
        self.init4 = value & 1 != 0;
        if !self.init4 {
            self.special_fully_nested = false;
            self.auto_eoi = false;
        }
        self.init = Init::Icw2;
        ended
    }

    fn ocw2(&mut self, value: u8) -> u8 {
        let level = value & 7;
        let (rotate, specific, eoi) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        let line = match (specific, eoi) {
            (true, _) => Some(level),
            (false, true) => self.in_service(),
            (false, false) => {
                self.rotate_on_auto_eoi = rotate;
                return 0;
            }
        };
        let Some(line) = line else {
            return 0;
        };
        let ended = if eoi { self.end(line) } else { 0 };
        // "Rotate" makes the line the lowest; specific without EOI and rotate is no operation.
        if rotate {
            self.priority_add = line.wrapping_add(1) & 7;
        }
        ended
    }

    fn ocw3(&mut self, value: u8) {
        if value & 0x04 != 0 {
            self.poll = true;
        } else if value & 0x02 != 0 {
            self.read_isr = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn data(&mut self, value: u8) {
        match self.init {
            Init::Done => self.imr = value,
            Init::Icw2 => {
                self.irq_base = value & 0xf8;
                self.init = Init::Icw3;
            }
            Init::Icw3 => self.init = if self.init4 { Init::Icw4 } else { Init::Done },
            Init::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.init = Init::Done;
            }
        }
    }
}

/// The pair of chips.
#[derive(Clone, Debug)]
pub struct Pic {
    chips: [Pic8259; 2],
    lines: Lines<LINES>,
    acked: u16,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// Both chips in reset state.
    pub fn new() -> Self {
        Self {
            chips: ELCR_MASK.map(|elcr_mask| Pic8259 {
                elcr_mask,
                ..Pic8259::default()
            }),
            lines: Lines::default(),
            acked: 0,
        }
    }

    /// Carries the slave's INT over to the master's IR2.
    fn cascade(&mut self) {
        let [master, slave] = &mut self.chips;
        if slave.request(false).is_some() {
            master.irr |= CASCADE;
        } else {
            master.irr &= !CASCADE;
        }
    }

    /// `source` drives `irq` up or down. Look at [`Pic::output`] afterwards.
    pub fn set_irq(&mut self, irq: Irq, source: Source, level: bool) -> Raised {
        let Some(level) = self.lines.set(irq.number() as usize, source, level) else {
            return Raised::Lowered;
        };
        let [master, slave] = &mut self.chips;
        let raised = match irq.0 {
            // IR2 belongs to the slave.
            2 => Raised::Lowered,
            0..=7 => master.set_line(irq.0, level),
            _ => slave.set_line(irq.0 & 7, level),
        };
        self.cascade();
        raised
    }

    /// Level of the INTR line to the processor (to LINT0).
    pub fn output(&self) -> bool {
        self.chips[0].request(true).is_some()
    }

    /// The processor's interrupt acknowledge: the vector. Without a request this is the spurious IR7 of the
    /// chip concerned, which sets no in-service bit (data sheet "Interrupt sequence").
    pub fn ack(&mut self) -> Vector {
        let [master, slave] = &mut self.chips;
        let vector = match master.request(true) {
            None => master.vector(7),
            Some(2) => {
                self.acked |= u16::from(master.acknowledge(2));
                match slave.request(false) {
                    None => slave.vector(7),
                    Some(line) => {
                        self.acked |= u16::from(slave.acknowledge(line)) << 8;
                        slave.vector(line)
                    }
                }
            }
            Some(line) => {
                self.acked |= u16::from(master.acknowledge(line));
                master.vector(line)
            }
        };
        self.cascade();
        Vector(vector)
    }

    /// Lines whose interrupt ended since the last call, one bit each: for ack listeners (PIT, resampling irqfds).
    /// Ask after every [`Pic::write`], [`Pic::read`] and [`Pic::ack`].
    pub fn take_acked(&mut self) -> u16 {
        core::mem::take(&mut self.acked)
    }

    /// Whether `irq` is masked in IMR.
    pub fn is_masked(&self, irq: Irq) -> bool {
        let [master, slave] = &self.chips;
        let imr = u16::from(master.imr) | u16::from(slave.imr) << 8;
        imr & 1 << (irq.0 & 15) != 0
    }

    /// Reads a port of [`port`]; others read as all ones.
    pub fn read(&mut self, port: u16) -> u8 {
        let [master, slave] = &mut self.chips;
        let (chip, shift) = match port {
            port::MASTER_COMMAND | port::MASTER_DATA => (master, 0),
            port::SLAVE_COMMAND | port::SLAVE_DATA => (slave, 8),
            port::MASTER_ELCR => return master.elcr,
            port::SLAVE_ELCR => return slave.elcr,
            _ => return 0xff,
        };
        if core::mem::take(&mut chip.poll) {
            // A poll read acts as an interrupt acknowledge (data sheet "Poll command").
            let Some(line) = chip.request(shift == 0) else {
                return 0;
            };
            self.acked |= u16::from(chip.acknowledge(line)) << shift;
            self.cascade();
            return 0x80 | line;
        }
        match port & 1 {
            0 if chip.read_isr => chip.isr,
            0 => chip.irr,
            _ => chip.imr,
        }
    }

    /// Writes a port of [`port`]. Look at [`Pic::output`] and [`Pic::take_acked`] afterwards.
    pub fn write(&mut self, port: u16, value: u8) {
        let [master, slave] = &mut self.chips;
        match port {
            port::MASTER_COMMAND => self.acked |= u16::from(master.command(value)),
            port::MASTER_DATA => master.data(value),
            port::SLAVE_COMMAND => self.acked |= u16::from(slave.command(value)) << 8,
            port::SLAVE_DATA => slave.data(value),
            port::MASTER_ELCR => set_elcr(master, value & master.elcr_mask),
            port::SLAVE_ELCR => set_elcr(slave, value & slave.elcr_mask),
            _ => {}
        }
        self.cascade();
    }

    /// State of a chip in the order of `struct kvm_pic_state`: last_irr, irr, imr, isr, priority_add, irq_base,
    /// read_reg_select, poll, special_mask, init_state, auto_eoi, rotate_on_auto_eoi,
    /// special_fully_nested_mode, init4, elcr, elcr_mask.
    pub fn get_state(&self, chip: Chip) -> [u8; 16] {
        let [master, slave] = &self.chips;
        let c = match chip {
            Chip::Master => master,
            Chip::Slave => slave,
        };
        [
            c.last_irr,
            c.irr,
            c.imr,
            c.isr,
            c.priority_add,
            c.irq_base,
            c.read_isr.into(),
            c.poll.into(),
            c.special_mask.into(),
            c.init as u8,
            c.auto_eoi.into(),
            c.rotate_on_auto_eoi.into(),
            c.special_fully_nested.into(),
            c.init4.into(),
            c.elcr,
            c.elcr_mask,
        ]
    }

    /// Loads the state of a chip; values that no register holds are reduced to ones that do.
    pub fn set_state(&mut self, chip: Chip, state: &[u8; 16]) {
        let &[last_irr, irr, imr, isr, priority_add, irq_base, read_isr, poll, ref rest @ ..] =
            state;
        let [special_mask, init, auto_eoi, rotate, nested, init4, elcr, elcr_mask] = *rest;
        let [master, slave] = &mut self.chips;
        let target = match chip {
            Chip::Master => master,
            Chip::Slave => slave,
        };
        *target = Pic8259 {
            last_irr,
            // A level request is the line's level.
            irr: irr & !elcr | last_irr & elcr,
            imr,
            isr,
            priority_add: priority_add & 7,
            irq_base,
            read_isr: read_isr != 0,
            poll: poll != 0,
            special_mask: special_mask != 0,
            init: match init {
                1 => Init::Icw2,
                2 => Init::Icw3,
                3 => Init::Icw4,
                _ => Init::Done,
            },
            auto_eoi: auto_eoi != 0,
            rotate_on_auto_eoi: rotate != 0,
            special_fully_nested: nested != 0,
            init4: init4 != 0,
            elcr,
            elcr_mask,
        };
        self.cascade();
    }
}

/// Changes which lines are level-triggered: their requests follow the line from now on.
fn set_elcr(chip: &mut Pic8259, elcr: u8) {
    chip.elcr = elcr;
    chip.irr = chip.irr & !elcr | chip.last_irr & elcr;
}
