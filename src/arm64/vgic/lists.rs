// SPDX-License-Identifier: GPL-2.0
//! List registers: which interrupts the processor has while a vCPU runs, and what has become of them (Arm IHI 0069
//! 12.4.9 and 6.3).
#![forbid(unsafe_code)]

use crate::arm64::vgic::state::{bits, Bank, Gic, Place, Shared, BANK, FIRST_LPI, NOBODY};
use crate::nospec::Nospec;

/// More than any processor has.
pub const MAX_LISTS: usize = 16;

// ICH_LR<n>_EL2.
const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 1 << 63;
const STATE: u64 = PENDING | ACTIVE;
const HARDWARE: u64 = 1 << 61;
const GROUP1: u64 = 1 << 60;
/// Tells of the end, which a level needs: its input may still be up.
const TELL_END: u64 = 1 << 41;

// ICH_HCR_EL2.
/// The virtual interface works.
pub const ENABLE: u64 = 1 << 0;
/// A maintenance interrupt where none or one of the list registers is in use.
pub const UNDERFLOW: u64 = 1 << 1;
/// A maintenance interrupt where the end of an interrupt was found in none.
pub const NOT_PRESENT: u64 = 1 << 2;
/// ICC_DIR_EL1 traps.
pub const TRAP_DIR: u64 = 1 << 14;

/// The list registers of a vCPU.
#[derive(Clone, Debug)]
pub struct Lists {
    /// What they hold from an entry to an exit, and the processor's answer.
    pub registers: [u64; MAX_LISTS],
    /// How many are in use.
    pub used: usize,
    /// ICH_HCR_EL2 but for its count.
    pub control: u64,
}

impl Lists {
    /// None in use.
    pub const EMPTY: Self = Self {
        registers: [0; MAX_LISTS],
        used: 0,
        control: ENABLE,
    };

    /// Whether one of them holds this interrupt, pending or active.
    pub fn holds(&self, intid: u32) -> bool {
        self.any(|r| r as u32 == intid && r & STATE != 0)
    }

    /// Whether one of them held this interrupt at the entry, and the guest has ended it.
    pub fn has_ended(&self, intid: u32) -> bool {
        self.any(|r| r as u32 == intid && r & STATE == 0)
    }

    #[inline]
    fn any(&self, is: impl Fn(u64) -> bool) -> bool {
        self.registers.iter().take(self.used).any(|r| is(*r))
    }
}

/// Candidates for list registers, the best first.
struct Best {
    /// Priority above the number of the interrupt.
    list: [u32; MAX_LISTS],
    len: usize,
    room: usize,
    /// There were more.
    over: bool,
}

impl Best {
    fn new(room: usize) -> Self {
        Self {
            list: [0; MAX_LISTS],
            len: 0,
            room: room.min(MAX_LISTS),
            over: false,
        }
    }

    fn insert(&mut self, priority: u8, intid: u32) {
        let key = u32::from(priority) << 16 | intid;
        let mut at = 0;
        while at < self.len && self.list.get(at).is_some_and(|k| *k < key) {
            at = at.wrapping_add(1);
        }
        if self.len == self.room {
            self.over = true;
            if at >= self.room {
                return;
            }
        } else {
            self.len = self.len.wrapping_add(1);
        }
        let tail = self.list.get_mut(at..self.len).unwrap_or(&mut []);
        tail.rotate_right(1);
        if let Some(first) = tail.first_mut() {
            *first = key;
        }
    }

    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.list.iter().take(self.len).map(|key| key & 0xffff)
    }
}

/// Offers interrupts of a bank whose numbers begin at `first`: those that are active, and those that wait.
#[inline(always)]
fn offer(bank: &Bank, first: u32, (a, w): (u32, u32), (active, waiting): (&mut Best, &mut Best)) {
    for bit in bits(a | w) {
        let priority = bank.priority.get_nospec(bit as usize).copied();
        let to = if a >> bit & 1 != 0 {
            &mut *active
        } else {
            &mut *waiting
        };
        to.insert(priority.unwrap_or(0xff), first.wrapping_add(bit));
    }
}

impl Gic<'_> {
    /// Fills the list registers of vCPU `cpu`, of which there are `count`, for an entry. None is in use.
    pub fn fill(&mut self, cpu: usize, count: usize, lists: &mut Lists, traps_dir: bool) {
        lists.used = 0;
        lists.control = ENABLE;
        let mut waiting = Best::new(count);
        let mut active = Best::new(count);
        self.candidates(cpu, &mut active, &mut waiting);
        if active.len == 0 && waiting.len == 0 {
            return;
        }
        // What is handled goes first, because its end is looked for there; one is left for what is more urgent.
        if waiting.len > 0 && active.len == active.room {
            active.len = active.len.wrapping_sub(1);
            active.over = true;
        }
        let room = count.min(MAX_LISTS).wrapping_sub(active.len);
        let over = waiting.over || waiting.len > room;
        for intid in Iterator::chain(active.iter(), waiting.iter().take(room)) {
            let Some(register) = self.enter(cpu, intid) else {
                continue;
            };
            if let Some(place) = lists.registers.get_mut(lists.used) {
                *place = register;
                lists.used = lists.used.wrapping_add(1);
            }
        }
        if over {
            lists.control |= UNDERFLOW;
        }
        if active.over {
            lists.control |= NOT_PRESENT | if traps_dir { TRAP_DIR } else { 0 };
        }
    }

    fn candidates(&self, cpu: usize, active: &mut Best, waiting: &mut Best) {
        if let Some(c) = self.cpus.get_nospec(cpu) {
            let b = &c.bank;
            let ready = if *self.enabled { b.ready() } else { 0 };
            offer(b, 0, (b.active, ready), (active, waiting));
        }
        for (index, s) in self.shared.iter().enumerate() {
            self.offer_shared(index, s, cpu, (active, waiting));
        }
        if self.lpis.busy_words != 0 {
            self.offer_lpis(cpu, active, waiting);
        }
    }

    #[inline(never)]
    fn offer_lpis(&self, cpu: usize, active: &mut Best, waiting: &mut Best) {
        for (index, s) in self.busy_banks() {
            self.offer_shared(index, s, cpu, (active, waiting));
        }
    }

    #[inline(always)]
    fn offer_shared(&self, index: usize, s: &Shared, cpu: usize, to: (&mut Best, &mut Best)) {
        let b = &s.bank;
        let ready = if *self.enabled {
            b.ready() & !b.resident
        } else {
            0
        };
        if ready | b.active == 0 {
            return;
        }
        let mine = Self::targeted(s, cpu, ready | b.active);
        let first = BANK.wrapping_add((index as u32).wrapping_mul(BANK));
        offer(b, first, (b.active & !b.resident & mine, ready & mine), to);
    }

    /// Takes an interrupt into a list register, and says what it holds.
    fn enter(&mut self, cpu: usize, intid: u32) -> Option<u64> {
        let place = self.place(cpu, intid)?;
        let enabled = *self.enabled;
        let (mapped, host) = match place {
            Place::Private(..) => {
                let c = self.cpus.get_nospec(cpu)?;
                let host = c.host_intids.get_nospec(intid as usize).copied();
                (c.mapped >> (intid % BANK) & 1 != 0, host.unwrap_or(0))
            }
            Place::Shared(index, bit) => {
                let s = self.shared_at_mut(index)?;
                *s.holder.get_nospec_mut(bit as usize)? = cpu as u16;
                (false, 0)
            }
        };
        let n = intid % BANK;
        let bit = 1 << n;
        let b = self.bank(place)?;
        let edge = b.edge & bit != 0 && !mapped;
        let active = b.active & bit != 0;
        // What is both would be pending again at its end, whatever its input is then.
        let pending = enabled && b.pending() & b.enabled & bit != 0 && (edge || !active);
        let mut r = u64::from(intid) | u64::from(*b.priority.get_nospec(n as usize)?) << 48;
        if b.group1 & bit != 0 {
            r |= GROUP1;
        }
        if mapped {
            r |= HARDWARE | u64::from(host) << 32;
        } else if !edge {
            r |= TELL_END;
        }
        if active {
            r |= ACTIVE;
        }
        if pending {
            r |= PENDING;
            if edge {
                b.latch &= !bit;
            }
        }
        b.resident |= bit;
        b.pending_written &= !bit;
        b.active_written &= !bit;
        if let Place::Shared(index, _) = place {
            self.note_busy(index);
        }
        Some(r)
    }

    /// Takes back what the list registers of vCPU `cpu` hold after an exit; `ends` of interrupts were found in none.
    /// None is in use after that.
    pub fn fold(&mut self, cpu: usize, lists: &mut Lists, ends: u32) {
        let used = core::mem::replace(&mut lists.used, 0);
        for r in lists.registers.iter().take(used) {
            self.leave(cpu, *r as u32, *r);
        }
        for _ in 0..ends.min(31) {
            if let Some(intid) = self.most_urgent_active(cpu) {
                self.deactivate(cpu, intid);
            }
        }
    }

    /// An interrupt leaves its list register.
    fn leave(&mut self, cpu: usize, intid: u32, r: u64) -> Option<()> {
        let place = self.place(cpu, intid)?;
        let bit = 1 << (intid % BANK);
        let b = self.bank(place)?;
        let pending = r & PENDING != 0;
        if b.active_written & bit == 0 {
            // An LPI is never active. A processor may say so of it, and does not want it back at the end.
            if r & ACTIVE != 0 && intid < FIRST_LPI {
                b.active |= bit;
            } else {
                b.active &= !bit;
            }
        }
        if b.pending_written & bit == 0 {
            if b.edge & bit != 0 && r & (TELL_END | HARDWARE) == 0 {
                if pending {
                    b.latch |= bit;
                }
            } else if !pending {
                // What was written pending has been seen.
                b.latch &= !bit;
            }
        }
        b.resident &= !bit;
        b.pending_written &= !bit;
        b.active_written &= !bit;
        let active = b.active & bit != 0;
        if let Place::Shared(index, n) = place {
            self.note_busy(index);
            let s = self.shared_at_mut(index)?;
            if r & (STATE | TELL_END) == TELL_END {
                let told = s.end(bit);
                *self.ended |= told;
            }
            let s = self.shared_at_mut(index)?;
            if !active {
                *s.holder.get_nospec_mut(n as usize)? = NOBODY;
                let target = s.target.get_nospec(n as usize).copied().unwrap_or(NOBODY);
                // It may have got another target meanwhile.
                if usize::from(target) != cpu {
                    self.notice(place, bit);
                }
            }
        }
        Some(())
    }

    fn most_urgent_active(&self, cpu: usize) -> Option<u32> {
        let mut best = Best::new(1);
        let mut none = Best::new(0);
        self.candidates(cpu, &mut best, &mut none);
        let first = best.iter().next();
        first
    }

    /// The end of an interrupt that is in no list register of vCPU `cpu`.
    pub fn deactivate(&mut self, cpu: usize, intid: u32) {
        let Some(place) = self.place(cpu, intid) else {
            return;
        };
        let bit = 1 << (intid % BANK);
        if let Place::Shared(index, n) = place {
            let mut told = false;
            if let Some(s) = self.shared_at_mut(index) {
                if s.bank.active & bit != 0 && s.bank.resident & bit == 0 {
                    told = s.end(bit);
                    if let Some(holder) = s.holder.get_nospec_mut(n as usize) {
                        *holder = NOBODY;
                    }
                }
            }
            *self.ended |= told;
        }
        if let Some(b) = self.bank(place) {
            b.active &= !bit;
            // Of another vCPU's list register as well, when that is read back.
            b.active_written |= bit & b.resident;
        }
        self.notice(place, bit);
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::Machine;
    use super::*;

    const COUNT: usize = 4;

    fn fill(m: &mut Machine, cpu: usize) -> Lists {
        let mut lists = Lists::EMPTY;
        m.gic().fill(cpu, COUNT, &mut lists, true);
        lists
    }

    /// The processor acknowledges, and ends.
    fn acknowledge(lists: &mut Lists, n: usize) {
        assert!(lists.registers[n] & PENDING != 0);
        lists.registers[n] = lists.registers[n] & !PENDING | ACTIVE;
    }

    #[test]
    fn an_edge() {
        let mut m = Machine::new(2);
        m.cpus[1].bank.latch = 1 << 5;
        let mut lists = fill(&mut m, 1);
        assert_eq!(lists.used, 1);
        assert_eq!(lists.registers[0], 5 | GROUP1 | PENDING);
        assert_eq!((m.cpus[1].bank.latch, m.cpus[1].bank.resident), (0, 1 << 5));
        // Not seen: it is pending as before.
        m.gic().fold(1, &mut lists, 0);
        assert_eq!((lists.used, m.cpus[1].bank.latch), (0, 1 << 5));
        let mut lists = fill(&mut m, 1);
        acknowledge(&mut lists, 0);
        // Again while it is handled.
        m.gic().generate(0, 5 << 24 | 2, true);
        m.gic().fold(1, &mut lists, 0);
        assert_eq!((m.cpus[1].bank.active, m.cpus[1].bank.latch), (32, 32));
        let mut lists = fill(&mut m, 1);
        assert_eq!(lists.registers[0], 5 | GROUP1 | PENDING | ACTIVE);
        lists.registers[0] &= !STATE;
        m.gic().fold(1, &mut lists, 0);
        assert_eq!((m.cpus[1].bank.active, m.cpus[1].bank.latch), (0, 0));
        assert_eq!(fill(&mut m, 1).used, 0);
    }

    #[test]
    fn a_level() {
        let mut m = Machine::new(2);
        m.shared[0].bank.enabled = 1;
        m.gic().set_line(0, 32, true);
        assert_eq!(fill(&mut m, 1).used, 0);
        let mut lists = fill(&mut m, 0);
        assert_eq!(lists.registers[0], 32 | GROUP1 | PENDING | TELL_END);
        acknowledge(&mut lists, 0);
        m.gic().fold(0, &mut lists, 0);
        // Handled, with the input still up: not pending at the same time, and not on another vCPU.
        m.shared[0].target[0] = 1;
        assert_eq!(fill(&mut m, 1).used, 0);
        let mut lists = fill(&mut m, 0);
        assert_eq!(lists.registers[0], 32 | GROUP1 | ACTIVE | TELL_END);
        lists.registers[0] &= !STATE;
        m.looks();
        m.gic().fold(0, &mut lists, 0);
        // Still up, and now the other's.
        assert_eq!(m.looks(), [1]);
        assert_eq!(fill(&mut m, 0).used, 0);
        assert_eq!(fill(&mut m, 1).used, 1);
    }

    #[test]
    fn ends_are_told() {
        let mut m = Machine::new(1);
        let s = &mut m.shared[0];
        (s.bank.enabled, s.bank.edge, s.watched) = (7, 4, 5);
        for intid in 32..35 {
            m.gic().set_line(0, intid, true);
        }
        let mut lists = fill(&mut m, 0);
        for n in 0..3 {
            acknowledge(&mut lists, n);
        }
        m.gic().fold(0, &mut lists, 0);
        assert!(!m.ended);
        let mut lists = fill(&mut m, 0);
        for n in 0..3 {
            lists.registers[n] &= !STATE;
        }
        m.gic().fold(0, &mut lists, 0);
        // Neither of the one that nobody has asked for, nor of the edge.
        assert!(m.ended);
        assert_eq!(m.shared[0].ended, 1);
        // By ICC_DIR_EL1, and not where it was not active.
        m.shared[0].ended = 0;
        m.gic().deactivate(0, 32);
        assert_eq!(m.shared[0].ended, 0);
        m.shared[0].bank.active = 1;
        m.gic().deactivate(0, 32);
        assert_eq!(m.shared[0].ended, 1);
    }

    #[test]
    fn written_while_there() {
        let mut m = Machine::new(1);
        m.cpus[0].bank.latch = 1;
        let mut lists = fill(&mut m, 0);
        acknowledge(&mut lists, 0);
        let b = &mut m.cpus[0].bank;
        (b.active_written, b.pending_written) = (1, 1);
        m.gic().fold(0, &mut lists, 0);
        assert_eq!((m.cpus[0].bank.active, m.cpus[0].bank.latch), (0, 0));
    }

    #[test]
    fn more_than_there_is_room_for() {
        let mut m = Machine::new(1);
        m.cpus[0].bank.latch = 0xff;
        for n in 0..8 {
            m.cpus[0].bank.priority[n] = 0x80 - n as u8 * 8;
        }
        let mut lists = fill(&mut m, 0);
        let first: std::vec::Vec<u32> = lists.registers[..4].iter().map(|r| *r as u32).collect();
        assert_eq!(first, [7, 6, 5, 4]);
        assert_eq!(lists.control, ENABLE | UNDERFLOW);
        // All are acknowledged, one in another; something else is pending: one place is left for it.
        for n in 0..4 {
            acknowledge(&mut lists, n);
        }
        m.gic().fold(0, &mut lists, 0);
        let mut lists = fill(&mut m, 0);
        let ids: std::vec::Vec<u32> = lists.registers[..4].iter().map(|r| *r as u32).collect();
        assert_eq!(ids, [7, 6, 5, 3]);
        assert_eq!(lists.control, ENABLE | UNDERFLOW | NOT_PRESENT | TRAP_DIR);
        // The three end, and the one that is not there: its end is counted.
        for n in 0..3 {
            lists.registers[n] &= !STATE;
        }
        m.gic().fold(0, &mut lists, 1);
        assert_eq!(m.cpus[0].bank.active, 0);
        assert_eq!(m.cpus[0].bank.pending(), 0xf);
    }

    #[test]
    fn mapped() {
        let mut m = Machine::new(1);
        let c = &mut m.cpus[0];
        (c.mapped, c.bank.enabled) = (1 << 27 | 1 << 20, 1 << 27 | 1 << 20);
        (c.host_intids[27], c.host_intids[20]) = (27, 30);
        m.gic().set_line(0, 27, true);
        let mut lists = fill(&mut m, 0);
        assert_eq!(
            lists.registers[0],
            27 | GROUP1 | PENDING | HARDWARE | 27 << 32
        );
        assert!(lists.holds(27) && !lists.holds(26));
        acknowledge(&mut lists, 0);
        assert!(lists.holds(27) && !lists.has_ended(27) && !lists.has_ended(26));
        m.gic().fold(0, &mut lists, 0);
        // Each has the host's own.
        m.gic().set_line(0, 20, true);
        let mut lists = fill(&mut m, 0);
        assert_eq!(lists.registers[0] & STATE, ACTIVE);
        assert_eq!(
            lists.registers[1],
            20 | GROUP1 | PENDING | HARDWARE | 30 << 32
        );
        lists.registers[0] &= !STATE;
        assert!(lists.has_ended(27) && !lists.holds(27) && lists.holds(20));
    }

    #[test]
    fn off() {
        let mut m = Machine::new(1);
        m.cpus[0].bank.latch = 1;
        m.enabled = false;
        assert_eq!(fill(&mut m, 0).used, 0);
        assert!(!m.gic().wakes(0, 0xff));
        // What is handled is still there.
        m.cpus[0].bank.active = 2;
        assert_eq!(fill(&mut m, 0).used, 1);
    }
}
