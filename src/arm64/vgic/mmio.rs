// SPDX-License-Identifier: GPL-2.0
//! Registers of the distributor and of redistributors in memory (Arm IHI 0069 12.9 to 12.11).
//!
//! As in KVM: accesses of a size that a register does not have read as zero and write nothing, and user space reads and
//! writes by words of 32 bits.
#![forbid(unsafe_code)]

use crate::arm64::vgic::state::{
    bits, Gic, Place, Shared, AFFINITY, BANK, MAX_INTIDS, NOBODY, SGIS,
};
use crate::arm64::vgic::table;
use crate::nospec::Nospec;

/// Bytes of the distributor, and of each of a redistributor's two frames.
pub const FRAME: u64 = 0x1_0000;
/// Bytes of a redistributor.
pub const REDISTRIBUTOR: u64 = 2 * FRAME;

/// Who reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A guest.
    Guest,
    /// User space, which saves and restores: what is pending is what is remembered, not the inputs.
    User,
}

/// Whose registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The distributor.
    Distributor,
    /// The first frame of a vCPU's redistributor.
    Control(usize),
    /// The second frame, for SGIs and PPIs.
    Private(usize),
}

/// The implementation: KVM's, the third revision of it.
const IIDR: u32 = 0x4b << 24 | 3 << 12 | 0x43b;
/// GICv3.
const PIDR2: u32 = 0x3b;

/// GICD_CTLR: EnableGrp1, ARE, DS.
const CTLR_ENABLE: u32 = 1 << 1;
const CTLR_FIXED: u32 = 1 << 4 | 1 << 6;
/// GICD_TYPER.IDbits: numbers have ten bits.
const TYPER_IDBITS: u32 = 9 << 19;
/// The same where there are LPIs, whose numbers have 16 bits; GICD_TYPER.LPIS.
const TYPER_LPIS: u32 = 15 << 19 | 1 << 17;
/// GICR_CTLR.EnableLPIs.
const REDIST_ENABLE_LPIS: u64 = 1 << 0;
/// GICR_CTLR: IR, CES.
const REDIST_CTLR: u32 = 1 << 2 | 1 << 1;
/// GICR_TYPER.Last, GICR_TYPER.PLPIS.
const REDIST_LAST: u64 = 1 << 4;
const REDIST_LPIS: u64 = 1 << 0;
/// GICR_PENDBASER.PTZ: the table is empty.
pub const PENDING_ZERO: u64 = 1 << 62;

// Of a redistributor's first frame.
const PROPBASER: u64 = 0x70;
const PENDBASER: u64 = 0x78;
const INVLPIR: u64 = 0xa0;
const INVALLR: u64 = 0xb0;

const IGROUPR: u64 = 0x80;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;
const IROUTER: u64 = 0x6000;
const IROUTER_END: u64 = 0x8000;
const PIDR2_AT: u64 = 0xffe8;

/// What has to be done in guest memory after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// This vCPU's LPIs have been switched on: which are pending is in a table.
    LpisOn(usize),
    /// They have been switched off: none is pending any more.
    LpisOff(usize),
    /// The configuration of this LPI may be another one.
    Look(u32),
    /// That of all LPIs of this vCPU may.
    LookAll(usize),
}

/// What a register of 32 bits, one for each interrupt of a bank, is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Group,
    Enable(bool),
    Pend(bool),
    Active(bool),
}

impl Gic<'_> {
    /// Reads `len` bytes at `at` of `frame`.
    pub fn read(&mut self, frame: Frame, at: u64, len: usize, by: By) -> u64 {
        if at % len.max(1) as u64 != 0 {
            return 0;
        }
        match (frame, at, len) {
            (_, _, 4) => self.read32(frame, at, by).into(),
            (Frame::Distributor | Frame::Private(_), IPRIORITYR..0x800, 1) => {
                let word = self.read32(frame, at & !3, by);
                u64::from(word >> (8 * (at & 3)) & 0xff)
            }
            (Frame::Distributor, IROUTER..IROUTER_END, 8) => self.read32(frame, at, by).into(),
            (Frame::Control(cpu), 8, 8) => self.redist_typer(cpu),
            (Frame::Control(cpu), PROPBASER | PENDBASER, 8) => self.table(cpu, at),
            _ => 0,
        }
    }

    /// Writes the lowest `len` bytes of `value` at `at` of `frame`.
    pub fn write(&mut self, frame: Frame, at: u64, len: usize, value: u64, by: By) -> Then {
        if at % len.max(1) as u64 != 0 {
            return Then::Nothing;
        }
        match (frame, at, len) {
            (Frame::Control(cpu), _, 4 | 8) => return self.write_control(cpu, at, len, value),
            (_, _, 4) => self.write32(frame, at, value as u32, by),
            (Frame::Distributor | Frame::Private(_), IPRIORITYR..0x800, 1) => {
                let shift = 8 * (at & 3);
                let old = self.read32(frame, at & !3, by) & !(0xff << shift);
                self.write32(frame, at & !3, old | (value as u32 & 0xff) << shift, by);
            }
            (Frame::Distributor, IROUTER..IROUTER_END, 8) => {
                self.write32(frame, at, value as u32, by);
            }
            _ => {}
        }
        Then::Nothing
    }

    /// Whether a write there may want what only one who sleeps can do.
    pub fn needs_sleep(frame: Frame, at: u64) -> bool {
        matches!(frame, Frame::Control(_)) && matches!(at, 0 | INVLPIR | INVALLR)
    }

    /// GICR_PROPBASER or GICR_PENDBASER.
    fn table(&self, cpu: usize, at: u64) -> u64 {
        if at & !7 == PROPBASER {
            return self.lpis.properties;
        }
        let c = self.cpus.get_nospec(cpu);
        c.map_or(0, |c| c.pending_table & !PENDING_ZERO)
    }

    /// A write to the first frame of a redistributor. What is about LPIs counts while they are on, but where their
    /// tables are cannot be changed then.
    fn write_control(&mut self, cpu: usize, at: u64, len: usize, value: u64) -> Then {
        let Some(c) = self.cpus.get_nospec_mut(cpu) else {
            return Then::Nothing;
        };
        match (at, len) {
            (0, 4) if self.lpis.offered => {
                let on = value & REDIST_ENABLE_LPIS != 0;
                match (core::mem::replace(&mut c.takes_lpis, on), on) {
                    (false, true) => return Then::LpisOn(cpu),
                    (true, false) => return Then::LpisOff(cpu),
                    _ => {}
                }
            }
            (0x70 | 0x74, _) if !c.takes_lpis => {
                let new = table::updated(self.lpis.properties, at, len, value);
                self.lpis.properties = table::properties(new);
            }
            (0x78 | 0x7c, _) if !c.takes_lpis => {
                let new = table::updated(c.pending_table, at, len, value);
                c.pending_table = table::pending(new);
            }
            (INVLPIR, _) if c.takes_lpis => return Then::Look(value as u32),
            (INVALLR, _) if c.takes_lpis => return Then::LookAll(cpu),
            _ => {}
        }
        Then::Nothing
    }

    /// Whether user space finds a register there.
    pub fn exists(frame: Frame, at: u64) -> bool {
        if at % 4 != 0 || at >= FRAME {
            return false;
        }
        match frame {
            Frame::Control(_) => {
                matches!(at, 0..=0x14 | 0x70..=0x7c | 0xa0..=0xb4 | 0xc0 | 0xffd0..)
            }
            Frame::Distributor => matches!(
                at,
                0..=0x10 | 0x80..0xd80 | IROUTER..IROUTER_END | 0xffd0..
            ),
            Frame::Private(_) => matches!(
                at,
                0x80 | 0x100 | 0x180 | 0x200 | 0x280 | 0x300 | 0x380 | 0x400
                    ..0x420 | 0xc00 | 0xc04 | 0xd00 | 0xe00
            ),
        }
    }

    /// The line levels of the 32 interrupts from `intid` on (KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO).
    pub fn levels(&mut self, cpu: usize, intid: u32) -> u32 {
        let place = self.place(cpu, intid);
        place
            .and_then(|p| self.bank(p))
            .map_or(0, |b| b.line & !b.edge)
    }

    /// Sets them.
    pub fn set_levels(&mut self, cpu: usize, intid: u32, levels: u32) {
        // SGIs have no inputs. An edge is not made by this: whether it is pending is in another register.
        let Some(place) = self.place(cpu, intid).filter(|_| intid % BANK == 0) else {
            return;
        };
        let inputs = match place {
            // The timer's is the timer's.
            Place::Private(cpu, _) => {
                let mapped = self.cpus.get_nospec(cpu).map_or(0, |c| c.mapped);
                !0xffff & !mapped
            }
            Place::Shared(..) => !0,
        };
        if let Some(b) = self.bank(place) {
            b.line = b.line & !inputs | levels & inputs;
        }
        self.notice(place, inputs);
    }

    /// The place of the first interrupt of a register, `per` of which have a word at `at` bytes behind the first one.
    fn at(&self, frame: Frame, at: u64, per: u64) -> Option<Place> {
        let intid = u32::try_from(at / 4 * per)
            .ok()
            .filter(|n| *n < MAX_INTIDS)?;
        match frame {
            Frame::Private(cpu) if intid < BANK => self.place(cpu, intid),
            // Of private ones the distributor has nothing.
            Frame::Distributor if intid >= BANK => self.place(0, intid),
            _ => None,
        }
    }

    fn word(at: u64) -> Option<(Word, u64)> {
        let word = match at {
            IGROUPR..0x100 => Word::Group,
            0x100..0x180 => Word::Enable(true),
            0x180..0x200 => Word::Enable(false),
            0x200..0x280 => Word::Pend(true),
            0x280..0x300 => Word::Pend(false),
            0x300..0x380 => Word::Active(true),
            0x380..IPRIORITYR => Word::Active(false),
            _ => return None,
        };
        Some((word, at & 0x7f))
    }

    fn redist_typer(&self, cpu: usize) -> u64 {
        self.cpus.get_nospec(cpu).map_or(0, |c| {
            u64::from(c.affinity) << 32
                | (u64::from(c.number) & 0xffff) << 8
                | if c.last { REDIST_LAST } else { 0 }
                | if self.lpis.offered { REDIST_LPIS } else { 0 }
        })
    }

    fn read32(&mut self, frame: Frame, at: u64, by: By) -> u32 {
        match (frame, at) {
            (_, PIDR2_AT) => return PIDR2,
            (Frame::Control(cpu), _) => {
                return match at {
                    0 => {
                        let c = self.cpus.get_nospec(cpu);
                        REDIST_CTLR | u32::from(c.is_some_and(|c| c.takes_lpis))
                    }
                    4 => IIDR,
                    8 => self.redist_typer(cpu) as u32,
                    0xc => (self.redist_typer(cpu) >> 32) as u32,
                    PROPBASER | PENDBASER => self.table(cpu, at) as u32,
                    0x74 | 0x7c => (self.table(cpu, at) >> 32) as u32,
                    _ => 0,
                }
            }
            (Frame::Distributor, 0) => {
                return CTLR_FIXED | if *self.enabled { CTLR_ENABLE } else { 0 }
            }
            (Frame::Distributor, 4) => {
                let lpis = if self.lpis.offered {
                    TYPER_LPIS
                } else {
                    TYPER_IDBITS
                };
                return lpis | self.intids() / BANK - 1;
            }
            (Frame::Distributor, 8) => return IIDR,
            (Frame::Distributor, 0x10) => return u32::MAX,
            _ => {}
        }
        if let Some((word, offset)) = Self::word(at) {
            let place = self.at(frame, offset, 32);
            let Some(b) = place.and_then(|p| self.bank(p)) else {
                return 0;
            };
            return match word {
                Word::Group => b.group1,
                Word::Enable(_) => b.enabled,
                Word::Pend(true) if by == By::User => b.latch,
                Word::Pend(false) if by == By::User => 0,
                Word::Pend(_) => b.pending(),
                Word::Active(_) if by == By::User => b.active,
                Word::Active(_) => {
                    // Those in list registers of running vCPUs may be, and count as that until their vCPUs have said,
                    // which is soon: who waits for a handler to end may wait too long, but not too short.
                    let (active, open) = (b.active, b.resident & !b.active_written);
                    if let Some(place) = place {
                        self.call_owners(place, open);
                    }
                    active | open
                }
            };
        }
        match at {
            IPRIORITYR..0x800 => {
                let place = self.at(frame, at - IPRIORITYR, 4);
                let Some((b, first)) = place.and_then(|p| Some((self.bank(p)?, first_bit(p))))
                else {
                    return 0;
                };
                let four = b.priority.iter().skip(first as usize).take(4);
                four.rev().fold(0, |word, p| word << 8 | u32::from(*p))
            }
            ICFGR..0xd00 => {
                let place = self.at(frame, at - ICFGR, 16);
                let Some((b, first)) = place.and_then(|p| Some((self.bank(p)?, first_bit(p))))
                else {
                    return 0;
                };
                bits(b.edge >> first & 0xffff).fold(0, |word, bit| word | 2 << (2 * bit))
            }
            // The upper words are affinity level 3, of which there is none.
            IROUTER..IROUTER_END if at & 4 == 0 => match self.router(frame, at) {
                Some((s, n)) => s.route.get(n).copied().unwrap_or(0),
                None => 0,
            },
            _ => 0,
        }
    }

    fn router(&mut self, frame: Frame, at: u64) -> Option<(&mut Shared, usize)> {
        let intid = u32::try_from((at - IROUTER) / 8).ok()?;
        match self.place(0, intid)? {
            Place::Shared(index, bit) if frame == Frame::Distributor => {
                Some((self.shared_at_mut(index)?, bit as usize))
            }
            _ => None,
        }
    }

    fn write32(&mut self, frame: Frame, at: u64, value: u32, by: By) {
        if let (Frame::Distributor, 0) = (frame, at) {
            *self.enabled = value & CTLR_ENABLE != 0;
            self.notice_all();
            return;
        }
        if let Some((word, offset)) = Self::word(at) {
            if let Some(place) = self.at(frame, offset, 32) {
                self.write_word(place, word, value, by);
            }
            return;
        }
        match at {
            IPRIORITYR..0x800 => {
                if let Some(place) = self.at(frame, at - IPRIORITYR, 4) {
                    let first = first_bit(place);
                    if let Some(b) = self.bank(place) {
                        let four = b.priority.iter_mut().skip(first as usize).take(4);
                        for (to, from) in four.zip(value.to_le_bytes()) {
                            // The virtual interface has at least five bits of priority.
                            *to = from & 0xf8;
                        }
                    }
                    self.notice(place, u32::MAX);
                }
            }
            ICFGR..0xd00 => {
                let Some(place) = self.at(frame, at - ICFGR, 16) else {
                    return;
                };
                // SGIs are edges.
                if matches!(place, Place::Private(_, bit) if bit < SGIS) {
                    return;
                }
                let first = first_bit(place);
                let edges = (0..16).filter(|n| value >> (2 * n) & 2 != 0);
                let edges = edges.fold(0u32, |word, n| word | 1 << n) << first;
                if let Some(b) = self.bank(place) {
                    b.edge = b.edge & !(0xffff << first) | edges;
                }
            }
            IROUTER..IROUTER_END if at & 4 == 0 => {
                let route = u64::from(value) & AFFINITY;
                let target = self.with_affinity(route).map_or(NOBODY, |n| n as u16);
                if let Some((s, n)) = self.router(frame, at) {
                    if let (Some(r), Some(t)) = (s.route.get_mut(n), s.target.get_mut(n)) {
                        *r = route as u32;
                        *t = target;
                    }
                }
                let intid = ((at - IROUTER) / 8) as u32;
                if let Some(place) = self.place(0, intid) {
                    self.notice(place, 1 << (intid % BANK));
                }
            }
            _ => {}
        }
    }

    fn write_word(&mut self, place: Place, word: Word, value: u32, by: By) {
        // Whose they become that are written active; SPIs that are not have nobody.
        let of = match place {
            Place::Private(..) => None,
            Place::Shared(index, _) => Some(index),
        };
        let Some(b) = self.bank(place) else {
            return;
        };
        match word {
            Word::Group => b.group1 = value,
            Word::Enable(true) => b.enabled |= value,
            Word::Enable(false) => b.enabled &= !value,
            Word::Pend(true) if by == By::User => b.latch = value,
            Word::Pend(false) if by == By::User => {}
            Word::Pend(true) => {
                b.latch |= value;
                b.pending_written |= value & b.resident;
            }
            Word::Pend(false) => {
                b.latch &= !value;
                b.pending_written |= value & b.resident;
            }
            Word::Active(true) => {
                b.active |= value;
                b.active_written |= value & b.resident;
            }
            Word::Active(false) => {
                b.active &= !value;
                b.active_written |= value & b.resident;
            }
        }
        if let (Word::Active(set), Some(s)) = (word, of.and_then(|i| self.shared_at_mut(i))) {
            for bit in bits(value & !s.bank.resident) {
                let n = bit as usize;
                if let (Some(h), Some(t)) = (s.holder.get_mut(n), s.target.get(n)) {
                    *h = if set { *t } else { NOBODY };
                }
            }
        }
        self.notice(place, value);
    }
}

fn first_bit(place: Place) -> u32 {
    match place {
        Place::Private(_, bit) | Place::Shared(_, bit) => bit,
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::Machine;
    use super::*;

    const D: Frame = Frame::Distributor;
    const G: By = By::Guest;

    #[test]
    fn identification() {
        let mut m = Machine::new(20);
        m.cpus[19].last = true;
        let mut g = m.gic();
        assert_eq!(g.read(D, 4, 4, G), 9 << 19 | 2);
        assert_eq!(g.read(D, 8, 4, G), 0x4b00_343b);
        assert_eq!(g.read(D, PIDR2_AT, 4, G) >> 4 & 0xf, 3);
        assert_eq!(g.read(Frame::Control(0), PIDR2_AT, 4, G) >> 4 & 0xf, 3);
        assert_eq!(g.read(Frame::Control(17), 8, 8, G), 0x101 << 32 | 17 << 8);
        assert_eq!(
            g.read(Frame::Control(19), 8, 8, G),
            0x103 << 32 | 19 << 8 | 16
        );
        assert_eq!(g.read(Frame::Control(19), 12, 4, G), 0x103);
        // It never sleeps.
        assert_eq!(g.read(Frame::Control(0), 0x14, 4, G), 0);
        g.write(D, 0, 4, 0, G);
        assert_eq!(g.read(D, 0, 4, G), 0x50);
        g.write(D, 0, 4, 0x12, G);
        assert_eq!(g.read(D, 0, 4, G), 0x52);
    }

    #[test]
    fn lpis() {
        let mut m = Machine::new(2);
        const C: Frame = Frame::Control(1);
        // There are none.
        assert_eq!(m.gic().write(C, 0, 4, 1, G), Then::Nothing);
        assert_eq!(m.gic().read(C, 0, 4, G), 6);
        m.lpis.offered = true;
        let mut g = m.gic();
        assert_eq!(g.read(D, 4, 4, G), 15 << 19 | 1 << 17 | 2);
        assert_eq!(g.read(C, 8, 8, G) & 1, 1);
        g.write(C, PROPBASER, 8, 0x4123_000f, G);
        g.write(C, PENDBASER + 4, 4, 1 << 30 | 1, G);
        g.write(C, PENDBASER, 4, 0x4500_0000, G);
        assert_eq!(g.read(Frame::Control(0), PROPBASER, 8, G), 0x4123_018f);
        assert_eq!(g.read(C, PENDBASER, 8, G), 0x1_4500_0180);
        assert_eq!(g.cpus[1].pending_table, 1 << 62 | 0x1_4500_0180);
        // Nothing before they are on; while they are, nobody else's table.
        assert_eq!(g.write(C, INVALLR, 8, 0, G), Then::Nothing);
        assert_eq!(g.write(C, 0, 4, 1, G), Then::LpisOn(1));
        assert_eq!(g.write(C, 0, 4, 1, G), Then::Nothing);
        assert_eq!(g.read(C, 0, 4, G), 7);
        g.write(C, PROPBASER, 8, 0, G);
        g.write(C, PENDBASER, 8, 0, G);
        assert_eq!(g.read(C, PROPBASER, 4, G), 0x4123_018f);
        assert_eq!(g.read(C, PENDBASER + 4, 4, G), 1);
        assert_eq!(g.write(C, INVLPIR, 8, 8200, G), Then::Look(8200));
        assert_eq!(g.write(C, INVLPIR + 4, 4, 8200, G), Then::Nothing);
        assert_eq!(g.write(C, INVALLR, 4, 0, G), Then::LookAll(1));
        assert_eq!(g.write(C, 0, 4, 0, G), Then::LpisOff(1));
        for at in [0, INVLPIR, INVALLR] {
            assert!(Gic::needs_sleep(C, at));
        }
        assert!(!Gic::needs_sleep(D, 0) && !Gic::needs_sleep(C, PROPBASER));
    }

    #[test]
    fn words() {
        let mut m = Machine::new(2);
        let mut g = m.gic();
        g.write(D, 0x104, 4, 0xf0, G);
        g.write(D, 0x184, 4, 0x30, G);
        assert_eq!(g.read(D, 0x104, 4, G), 0xc0);
        assert_eq!(g.read(D, 0x184, 4, G), 0xc0);
        // Private ones are in redistributors.
        g.write(D, 0x100, 4, 0xffff_0000, G);
        assert_eq!(g.read(D, 0x100, 4, G), 0);
        g.write(Frame::Private(1), 0x100, 4, 0x0801_0000, G);
        assert_eq!(g.read(Frame::Private(1), 0x100, 4, G), 0x0801_ffff);
        assert_eq!(g.read(Frame::Private(0), 0x100, 4, G), 0xffff);
        assert_eq!(g.read(Frame::Private(0), 0x104, 4, G), 0);
        // Not there: past the last one, and of other sizes.
        g.write(D, 0x10c, 4, 1, G);
        assert_eq!(g.read(D, 0x10c, 4, G), 0);
        assert_eq!(g.read(D, 0x104, 8, G), 0);
        assert_eq!(g.read(D, 0x104, 1, G), 0);
        assert_eq!(g.read(D, 0x106, 4, G), 0);
    }

    #[test]
    fn pending() {
        let mut m = Machine::new(1);
        let mut g = m.gic();
        g.write(D, 0x104, 4, 3, G);
        g.set_line(0, 32, true);
        g.write(D, 0x204, 4, 2, G);
        assert_eq!(g.read(D, 0x204, 4, G), 3);
        assert_eq!(g.read(D, 0x204, 4, By::User), 2);
        assert_eq!(g.levels(0, 32), 1);
        g.write(D, 0x284, 4, 3, G);
        assert_eq!(g.read(D, 0x284, 4, G), 1);
        g.write(D, 0x204, 4, 8, By::User);
        assert_eq!(g.read(D, 0x204, 4, By::User), 8);
        g.set_levels(0, 32, 4);
        assert_eq!(g.levels(0, 32), 4);
        assert_eq!(m.looks(), [0]);
    }

    #[test]
    fn others() {
        let mut m = Machine::new(2);
        let mut g = m.gic();
        g.write(D, 0x424, 4, 0xa0b0_c0d7, G);
        assert_eq!(g.read(D, 0x424, 4, G), 0xa0b0_c0d0);
        g.write(D, 0x425, 1, 0x48, G);
        assert_eq!(g.read(D, 0x424, 4, G), 0xa0b0_48d0);
        assert_eq!(g.read(D, 0x425, 1, G), 0x48);
        g.write(D, 0xc0c, 4, 0x8000_0002, G);
        assert_eq!(g.read(D, 0xc0c, 4, G), 0x8000_0002);
        assert_eq!(g.shared[0].bank.edge, 0x8001_0000);
        // SGIs stay edges.
        g.write(Frame::Private(0), 0xc00, 4, 0, G);
        assert_eq!(g.read(Frame::Private(0), 0xc00, 4, G), 0xaaaa_aaaa);
        g.write(Frame::Private(0), 0xc04, 4, 2, G);
        assert_eq!(g.read(Frame::Private(0), 0xc04, 4, G), 2);
        g.write(D, 0x6000 + 8 * 40, 8, 1, G);
        assert_eq!(g.read(D, 0x6000 + 8 * 40, 8, G), 1);
        assert_eq!(g.shared[0].target[8], 1);
        g.write(D, 0x6000 + 8 * 40, 8, 7, G);
        assert_eq!(g.shared[0].target[8], NOBODY);
        assert_eq!(g.read(D, 0x6000 + 8 * 31, 8, G), 0);
    }

    #[test]
    fn active() {
        let mut m = Machine::new(2);
        let mut g = m.gic();
        g.write(D, 0x6000 + 8 * 32, 8, 1, G);
        g.write(D, 0x304, 4, 1, G);
        assert_eq!(g.read(D, 0x384, 4, G), 1);
        assert_eq!(g.shared[0].holder[0], 1);
        g.write(D, 0x384, 4, 1, G);
        assert_eq!(g.shared[0].holder[0], NOBODY);
        assert_eq!(g.read(D, 0x304, 4, G), 0);
    }

    #[test]
    fn any_access() {
        let mut m = Machine::new(2);
        let mut g = m.gic();
        for frame in [D, Frame::Control(1), Frame::Private(1), Frame::Private(9)] {
            for at in 0..FRAME {
                for len in [1, 2, 4, 8] {
                    g.read(frame, at, len, G);
                    g.write(frame, at, len, u64::MAX, G);
                    g.write(frame, at, len, at, By::User);
                }
            }
        }
    }
}
