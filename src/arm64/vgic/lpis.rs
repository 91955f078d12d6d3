// SPDX-License-Identifier: GPL-2.0
//! LPIs: edges by messages, which are enabled and have a priority in a table in guest memory (Arm IHI 0069 chapter 5).
//!
//! What the tables say is remembered, and read again when the guest says so. An LPI is there as long as an event of an
//! ITS leads to it, and only one does.
#![forbid(unsafe_code)]

use crate::arm64::vgic::state::{bits, Gic, Place, Shared, BANK, FIRST_LPI, NOBODY};
use crate::nospec::Nospec;

/// What has become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The LPI is pending.
    Pending,
    /// It leads nowhere.
    Nowhere,
    /// LPIs are off.
    Off,
}

/// The first LPI of bank `n`.
pub fn first_of(n: usize) -> u32 {
    FIRST_LPI.wrapping_add(BANK.wrapping_mul(n as u32))
}

impl Gic<'_> {
    fn lpi(&mut self, intid: u32) -> Option<(usize, u32, &mut Shared)> {
        if intid < FIRST_LPI {
            return None;
        }
        match self.place(0, intid)? {
            Place::Shared(index, bit) => Some((index, bit, self.shared_at_mut(index)?)),
            Place::Private(..) => None,
        }
    }

    /// A message arrives for an LPI.
    pub fn message(&mut self, intid: u32) -> Sent {
        let Some((index, n, s)) = self.lpi(intid) else {
            return Sent::Nowhere;
        };
        let target = s.target.get_nospec(n as usize).copied().unwrap_or(NOBODY);
        if s.mapped >> n & 1 == 0 || target == NOBODY {
            return Sent::Nowhere;
        }
        let c = self.cpus.get_nospec(target.into());
        if !c.is_some_and(|c| c.takes_lpis) {
            return Sent::Off;
        }
        self.pend(index, 1 << n, 1 << n);
        Sent::Pending
    }

    /// Of the LPIs `which` of a bank, those of `set` are pending now, and the others are not.
    fn pend(&mut self, index: usize, which: u32, set: u32) {
        if let Some(s) = self.shared_at_mut(index) {
            s.bank.latch = s.bank.latch & !which | set & which;
            s.bank.pending_written |= which & !set & s.bank.resident;
        }
        self.note_busy(index);
        self.notice(Place::Shared(index, 0), which & set);
    }

    /// An event leads to an LPI from now on, which is for the vCPU with index `target`. False: one does already, or its
    /// bank is not there.
    pub fn map_lpi(&mut self, intid: u32, target: u16) -> bool {
        let Some((index, n, s)) = self.lpi(intid) else {
            return false;
        };
        let bit = 1 << n;
        if s.mapped & bit != 0 {
            return false;
        }
        s.mapped |= bit;
        s.bank.enabled &= !bit;
        if let (Some(t), Some(p)) = (
            s.target.get_nospec_mut(n as usize),
            s.bank.priority.get_nospec_mut(n as usize),
        ) {
            (*t, *p) = (target, 0);
        }
        self.pend(index, bit, 0);
        true
    }

    /// No event leads to it any more.
    pub fn unmap_lpi(&mut self, intid: u32) {
        if let Some((index, n, s)) = self.lpi(intid) {
            s.mapped &= !(1 << n);
            s.bank.enabled &= !(1 << n);
            self.pend(index, 1 << n, 0);
        }
    }

    /// It is for another vCPU.
    pub fn aim_lpi(&mut self, intid: u32, target: u16) {
        if let Some((index, n, s)) = self.lpi(intid) {
            if let Some(t) = s.target.get_nospec_mut(n as usize) {
                *t = target;
            }
            self.notice(Place::Shared(index, 0), 1 << n);
        }
    }

    /// It is pending, or not.
    pub fn set_lpi(&mut self, intid: u32, pending: bool) {
        if let Some((index, n, _)) = self.lpi(intid) {
            self.pend(index, 1 << n, u32::from(pending) << n);
        }
    }

    /// Whether it is pending, and the vCPU that it is for. `None`: it is not there.
    pub fn lpi_state(&mut self, intid: u32) -> Option<(bool, u16)> {
        let (_, n, s) = self.lpi(intid)?;
        let target = s.target.get_nospec(n as usize).copied()?;
        (s.mapped >> n & 1 != 0).then_some((s.bank.latch >> n & 1 != 0, target))
    }

    /// Which LPIs of bank `n` are there, and which of those are for `cpu`.
    pub fn lpis_of(&self, n: usize, cpu: usize) -> (u32, u32) {
        let Some(s) = self.lpi_banks.bank(n) else {
            return (0, 0);
        };
        let is =
            |bit: &u32| s.target.get_nospec(*bit as usize).copied().map(usize::from) == Some(cpu);
        let own = bits(s.mapped).filter(is);
        (s.mapped, own.fold(0, |word, bit| word | 1 << bit))
    }

    /// Those of bank `n` that are for `cpu`, and are or are not pending in its table.
    pub fn load_pending(&mut self, n: usize, cpu: usize, pending: u32) {
        let (_, own) = self.lpis_of(n, cpu);
        if let Some(Place::Shared(index, _)) = self.place(0, first_of(n)) {
            self.pend(index, own, pending);
        }
    }

    /// Those of bank `n` that are for `from` are for `to`.
    pub fn move_lpis(&mut self, n: usize, from: usize, to: u16) {
        let (_, own) = self.lpis_of(n, from);
        for bit in bits(own) {
            self.aim_lpi(first_of(n).wrapping_add(bit), to);
        }
    }

    /// The configuration of an LPI: bit 0 enables it, bits 7:2 are its priority.
    pub fn configure_lpi(&mut self, intid: u32, byte: u8) {
        let Some((index, n, s)) = self.lpi(intid) else {
            return;
        };
        let bit = 1 << n;
        if s.mapped & bit == 0 {
            return;
        }
        if byte & 1 != 0 {
            s.bank.enabled |= bit;
        } else {
            s.bank.enabled &= !bit;
        }
        if let Some(p) = s.bank.priority.get_nospec_mut(n as usize) {
            *p = byte & 0xfc;
        }
        self.notice(Place::Shared(index, 0), bit);
    }
}

#[cfg(test)]
mod tests {
    use super::super::lists::Lists;
    use super::super::state::tests::Machine;
    use super::*;

    const LPI: u32 = FIRST_LPI + 37;
    const PENDING: u64 = 1 << 62;
    const ACTIVE: u64 = 1 << 63;

    fn machine() -> Machine {
        let mut m = Machine::new(2);
        m.cpus[1].takes_lpis = true;
        m.lpis.offered = true;
        let mut g = m.gic();
        assert!(g.map_lpi(LPI, 1));
        g.configure_lpi(LPI, 0xa1);
        m
    }

    fn fill(m: &mut Machine, cpu: usize) -> Lists {
        let mut lists = Lists::EMPTY;
        m.gic().fill(cpu, 4, &mut lists, true);
        lists
    }

    #[test]
    fn messages() {
        let mut m = machine();
        assert_eq!(m.gic().message(LPI), Sent::Pending);
        assert_eq!(m.looks(), [1]);
        assert!(m.gic().wakes(1, 0xf0) && !m.gic().wakes(1, 0xa0) && !m.gic().wakes(0, 0xf0));
        let mut lists = fill(&mut m, 1);
        assert_eq!(
            lists.registers[0],
            u64::from(LPI) | 1 << 60 | PENDING | 0xa0 << 48
        );
        assert_eq!(m.lpis.busy, [0; 28]);
        // Not seen: it is pending as before.
        m.gic().fold(1, &mut lists, 0);
        assert_eq!(m.lpis.busy[0], 2);
        // Acknowledged: it may come again before its end, and nothing is left of it after that.
        let mut lists = fill(&mut m, 1);
        lists.registers[0] = lists.registers[0] & !PENDING | ACTIVE;
        m.gic().fold(1, &mut lists, 0);
        assert_eq!(m.banks.0[1].bank.active, 0);
        assert_eq!(fill(&mut m, 1).used, 0);
        assert_eq!(m.gic().message(LPI), Sent::Pending);
        assert_eq!(fill(&mut m, 1).registers[0] & (PENDING | ACTIVE), PENDING);
    }

    #[test]
    fn nowhere() {
        let mut m = machine();
        assert_eq!(m.gic().message(LPI + 1), Sent::Nowhere);
        assert_eq!(m.gic().message(FIRST_LPI - 1), Sent::Nowhere);
        assert_eq!(m.gic().message(40), Sent::Nowhere);
        assert_eq!(m.gic().message(FIRST_LPI + 64), Sent::Nowhere);
        assert_eq!(m.gic().message(u32::MAX), Sent::Nowhere);
        assert!(!m.gic().map_lpi(LPI, 0) && !m.gic().map_lpi(FIRST_LPI + 64, 0));
        m.gic().aim_lpi(LPI, NOBODY);
        assert_eq!(m.gic().message(LPI), Sent::Nowhere);
        m.gic().aim_lpi(LPI, 0);
        assert_eq!(m.gic().message(LPI), Sent::Off);
        m.gic().unmap_lpi(LPI);
        assert_eq!(m.gic().message(LPI), Sent::Nowhere);
        assert!(m.gic().map_lpi(LPI, 0));
    }

    #[test]
    fn moved_while_there() {
        let mut m = machine();
        m.cpus[0].takes_lpis = true;
        m.gic().message(LPI);
        let mut lists = fill(&mut m, 1);
        m.looks();
        m.gic().move_lpis(1, 1, 0);
        m.gic().fold(1, &mut lists, 0);
        assert_eq!(m.looks(), [0]);
        assert_eq!(fill(&mut m, 1).used, 0);
        assert_eq!(fill(&mut m, 0).used, 1);
    }

    #[test]
    fn removed_while_there() {
        let mut m = machine();
        m.gic().message(LPI);
        let mut lists = fill(&mut m, 1);
        m.gic().unmap_lpi(LPI);
        m.gic().fold(1, &mut lists, 0);
        assert_eq!(m.banks.0[1].bank.latch, 0);
        assert_eq!(m.lpis.busy, [0; 28]);
    }

    #[test]
    fn tables() {
        let mut m = machine();
        assert_eq!(m.gic().lpis_of(1, 1), (32, 32));
        assert_eq!(m.gic().lpis_of(1, 0), (32, 0));
        m.gic().load_pending(1, 1, u32::MAX);
        assert_eq!(m.gic().lpi_state(LPI), Some((true, 1)));
        assert_eq!(m.banks.0[1].bank.latch, 32);
        m.gic().load_pending(1, 0, 0);
        assert_eq!(m.gic().lpi_state(LPI), Some((true, 1)));
        m.gic().load_pending(1, 1, 0);
        assert_eq!(m.gic().lpi_state(LPI), Some((false, 1)));
        assert_eq!(m.gic().lpi_state(LPI + 1), None);
        m.gic().set_lpi(LPI, true);
        m.gic().configure_lpi(LPI, 0xa0);
        assert!(!m.gic().wakes(1, 0xf0));
    }
}
