// SPDX-License-Identifier: GPL-2.0
//! The state of a GICv3's interrupts, and which of them is a vCPU's next (Arm IHI 0069, chapters 4 and 12).
//!
//! Interrupts stand in banks of 32, a bit for each: SGIs and PPIs in one bank of each vCPU, SPIs in shared banks, and
//! LPIs in others like them, which are made when the first one of them is mapped. The two security states are one
//! (GICD_CTLR.DS), affinity routing is always on.
//!
//! While a vCPU runs, the processor has the state of those that are in its list registers (`lists`): they are
//! *resident*. What others change of such an interrupt meanwhile is noted and holds when the vCPU's are read back.
#![forbid(unsafe_code)]

use crate::nospec::Nospec;

/// Interrupts of a bank.
pub const BANK: u32 = 32;
/// Software generated ones are below this, private ones of peripherals below [`BANK`].
pub const SGIS: u32 = 16;
/// More than the largest number of an SPI.
pub const MAX_INTIDS: u32 = 1024;
/// vCPUs that can be addressed.
pub const MAX_CPUS: usize = 512;
/// The number of the first LPI.
pub const FIRST_LPI: u32 = 8192;
/// More than the largest number of an LPI.
pub const MAX_LPIS: u32 = 1 << 16;
/// Banks of LPIs.
pub const LPI_BANKS: usize = ((MAX_LPIS - FIRST_LPI) / BANK) as usize;
/// The first bank of LPIs, among the shared ones.
const FIRST_LPI_BANK: usize = (FIRST_LPI / BANK - 1) as usize;
/// GICR_PROPBASER and GICR_PENDBASER after reset: write-back, inner shareable.
pub const TABLE_RESET: u64 = 3 << 7 | 1 << 10;

/// No vCPU.
pub const NOBODY: u16 = u16::MAX;

/// Bits of an affinity: levels 0, 1 and 2. There is no level 3.
pub const AFFINITY: u64 = 0xff_ffff;

/// 32 interrupts.
#[derive(Clone, Debug)]
pub struct Bank {
    /// Forwarded.
    pub enabled: u32,
    /// Pending by an edge or because it was written so.
    pub latch: u32,
    /// Level of the input.
    pub line: u32,
    /// Being handled.
    pub active: u32,
    /// An edge makes it pending, not a level.
    pub edge: u32,
    /// Of group 1, else of group 0.
    pub group1: u32,
    /// Priorities; the lower, the more urgent.
    pub priority: [u8; BANK as usize],
    /// In list registers of a vCPU that runs.
    pub resident: u32,
    /// Of those: the ones whose pending state, and active state, was written since they got there.
    pub pending_written: u32,
    /// See above.
    pub active_written: u32,
}

impl Bank {
    /// After reset, with these edge-triggered and these of group 1.
    const fn new(edge: u32, enabled: u32) -> Self {
        Self {
            enabled,
            latch: 0,
            line: 0,
            active: 0,
            edge,
            group1: u32::MAX,
            priority: [0; BANK as usize],
            resident: 0,
            pending_written: 0,
            active_written: 0,
        }
    }

    /// Those that are pending.
    #[inline]
    pub fn pending(&self) -> u32 {
        self.latch | self.line & !self.edge
    }

    /// Those that a vCPU could get: pending, enabled, not being handled.
    #[inline]
    pub fn ready(&self) -> u32 {
        self.pending() & self.enabled & !self.active
    }
}

/// What a vCPU has to itself.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// SGIs and PPIs.
    pub bank: Bank,
    /// Affinity, as routing registers have it.
    pub affinity: u32,
    /// Number of the processor, as ITSs have it.
    pub number: u32,
    /// GICR_CTLR.EnableLPIs.
    pub takes_lpis: bool,
    /// GICR_PENDBASER.
    pub pending_table: u64,
    /// Its redistributor is the last one of a contiguous row.
    pub last: bool,
    /// PPIs whose ends the processor passes on to interrupts of the host's, and the numbers of those.
    pub mapped: u32,
    /// See above.
    pub host_intids: [u16; BANK as usize],
}

impl Cpu {
    /// After reset: SGIs are edge-triggered and enabled.
    pub const fn new(affinity: u32, number: u32) -> Self {
        Self {
            bank: Bank::new(0xffff, 0xffff),
            affinity,
            number,
            takes_lpis: false,
            pending_table: TABLE_RESET,
            last: false,
            mapped: 0,
            host_intids: [0; BANK as usize],
        }
    }
}

/// 32 SPIs or LPIs, which any vCPU can get.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Their state.
    pub bank: Bank,
    /// GICD_IROUTER: an affinity.
    pub route: [u32; BANK as usize],
    /// The index of the vCPU that has it, or [`NOBODY`].
    pub target: [u16; BANK as usize],
    /// The vCPU on which it is active or in whose list registers it is, or [`NOBODY`].
    pub holder: [u16; BANK as usize],
    /// Those whose ends somebody wants to know of, and those that have ended since.
    pub watched: u32,
    /// See above.
    pub ended: u32,
    /// LPIs that an event leads to.
    pub mapped: u32,
}

impl Shared {
    /// After reset, with affinity 0 the vCPU with this index. All are edges, as KVM has them.
    pub const fn new(target: u16) -> Self {
        Self {
            bank: Bank::new(u32::MAX, 0),
            route: [0; BANK as usize],
            target: [target; BANK as usize],
            holder: [NOBODY; BANK as usize],
            watched: 0,
            ended: 0,
            mapped: 0,
        }
    }

    /// Level-triggered interrupts `which` have ended. Returns whether anybody wants to know.
    pub fn end(&mut self, which: u32) -> bool {
        let ended = which & self.watched & !self.bank.edge;
        self.ended |= ended;
        ended != 0
    }

    /// Whether vCPU `cpu`, whose priority mask is `mask`, has one here that would wake it.
    #[inline(always)]
    fn wakes(&self, cpu: usize, mask: u8) -> bool {
        let ready = self.bank.ready();
        ready != 0 && urgent(&self.bank, Gic::targeted(self, cpu, ready), mask)
    }

    /// Whose SPI `n` is: of the vCPU that holds it, else of the one that it is for. [`NOBODY`].
    #[inline]
    pub fn owner(&self, n: u32) -> u16 {
        let of = |list: &[u16]| list.get_nospec(n as usize).copied().unwrap_or(NOBODY);
        match of(&self.holder) {
            NOBODY => of(&self.target),
            holder => holder,
        }
    }
}

/// Whether one of `which` has a priority above `mask`.
#[inline(always)]
fn urgent(bank: &Bank, which: u32, mask: u8) -> bool {
    bits(which).any(|bit| {
        let priority = bank.priority.get_nospec(bit as usize);
        priority.is_some_and(|p| *p < mask)
    })
}

/// vCPUs, as bits of their indices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuMask([u64; MAX_CPUS / 64]);

impl CpuMask {
    /// Adds one.
    #[inline]
    pub fn insert(&mut self, cpu: usize) {
        if let Some(word) = self.0.get_nospec_mut(cpu / 64) {
            *word |= 1 << (cpu % 64);
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..)
            .zip(self.0.iter())
            .flat_map(|(n, word)| bits64(*word).map(move |bit| n * 64 + bit))
    }
}

fn bits64(mut word: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}

/// The bits that are set.
pub fn bits(word: u32) -> impl Iterator<Item = u32> {
    bits64(word.into())
}

/// Number and place of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// One of a vCPU's own.
    Private(usize, u32),
    /// An SPI: which bank, which bit.
    Shared(usize, u32),
}

/// Banks of LPIs, by number from 0.
pub trait LpiBanks {
    /// A bank, if there is one.
    fn bank(&self, n: usize) -> Option<&Shared>;
    /// The same, to be changed.
    fn bank_mut(&mut self, n: usize) -> Option<&mut Shared>;
}

/// What is to be known of all LPIs.
#[derive(Clone, Debug)]
pub struct Lpis {
    /// There is an ITS.
    pub offered: bool,
    /// GICR_PROPBASER, one for all vCPUs.
    pub properties: u64,
    /// Banks in which something is pending.
    pub busy: [u64; LPI_BANKS / 64],
    /// Words of that which are not zero.
    pub busy_words: u32,
}

impl Lpis {
    /// After reset.
    pub const RESET: Self = Self {
        offered: false,
        properties: TABLE_RESET,
        busy: [0; LPI_BANKS / 64],
        busy_words: 0,
    };

    /// The shared banks in which something is pending.
    #[inline]
    fn busy_banks(&self) -> impl Iterator<Item = usize> + '_ {
        bits(self.busy_words).flat_map(|n| {
            let word = self.busy.get_nospec(n as usize).copied().unwrap_or(0);
            bits64(word).map(move |bit| FIRST_LPI_BANK + (n * 64 + bit) as usize)
        })
    }

    /// Something is pending in the bank, or not.
    fn set_busy(&mut self, n: usize, busy: bool) {
        if let Some(word) = self.busy.get_nospec_mut(n / 64) {
            let bit = 1 << (n % 64);
            *word = if busy { *word | bit } else { *word & !bit };
            let words = 1 << (n / 64);
            self.busy_words = match *word {
                0 => self.busy_words & !words,
                _ => self.busy_words | words,
            };
        }
    }
}

/// The interrupts of a VM.
pub struct Gic<'a> {
    /// GICD_CTLR.EnableGrp1.
    pub enabled: &'a mut bool,
    /// By index.
    pub cpus: &'a mut [Cpu],
    /// SPIs 32 to 63, 64 to 95, and so on.
    pub shared: &'a mut [Shared],
    /// LPIs.
    pub lpis: &'a mut Lpis,
    /// Their banks.
    pub lpi_banks: &'a mut dyn LpiBanks,
    /// vCPUs that have to look, because there is something for them.
    pub look: &'a mut CpuMask,
    /// Some of [`Shared::ended`] are set.
    pub ended: &'a mut bool,
}

impl<'g> Gic<'g> {
    /// Shared banks of LPIs in which something is pending.
    #[inline]
    pub fn busy_banks<'s>(&'s self) -> impl Iterator<Item = (usize, &'s Shared)> + use<'s, 'g> {
        let lpis = self.lpis.busy_banks();
        lpis.filter_map(|index| Some((index, self.shared_at(index)?)))
    }

    /// How many numbers of interrupts there are.
    pub fn intids(&self) -> u32 {
        BANK.wrapping_add(BANK.wrapping_mul(self.shared.len() as u32))
    }

    /// Where `intid` of vCPU `cpu` is.
    #[inline]
    pub fn place(&self, cpu: usize, intid: u32) -> Option<Place> {
        let bit = intid % BANK;
        if intid < BANK {
            return (cpu < self.cpus.len()).then_some(Place::Private(cpu, bit));
        }
        let index = (intid / BANK - 1) as usize;
        self.shared_at(index).map(|_| Place::Shared(index, bit))
    }

    /// A shared bank: of SPIs, or of LPIs.
    #[inline]
    pub fn shared_at(&self, index: usize) -> Option<&Shared> {
        match index.checked_sub(FIRST_LPI_BANK) {
            None => self.shared.get_nospec(index),
            Some(n) => self.lpi_banks.bank(n),
        }
    }

    /// The same, to be changed.
    #[inline]
    pub fn shared_at_mut(&mut self, index: usize) -> Option<&mut Shared> {
        match index.checked_sub(FIRST_LPI_BANK) {
            None => self.shared.get_nospec_mut(index),
            Some(n) => self.lpi_banks.bank_mut(n),
        }
    }

    /// Of LPIs it is known which banks have one that is pending: this one has been changed.
    #[inline]
    pub fn note_busy(&mut self, index: usize) {
        let Some(n) = index.checked_sub(FIRST_LPI_BANK) else {
            return;
        };
        let busy = self.lpi_banks.bank(n).is_some_and(|s| s.bank.latch != 0);
        self.lpis.set_busy(n, busy);
    }

    /// The bank of an interrupt.
    #[inline]
    pub fn bank(&mut self, place: Place) -> Option<&mut Bank> {
        match place {
            Place::Private(cpu, _) => self.cpus.get_nospec_mut(cpu).map(|c| &mut c.bank),
            Place::Shared(index, _) => self.shared_at_mut(index).map(|s| &mut s.bank),
        }
    }

    /// The vCPU with this affinity.
    pub fn with_affinity(&self, affinity: u64) -> Option<usize> {
        // Those of most VMs are in order.
        let guess = (affinity & 0xf | affinity >> 4 & 0xff0 | affinity >> 4 & 0xf_f000) as usize;
        let is = |c: &Cpu| u64::from(c.affinity) == affinity;
        if self.cpus.get_nospec(guess).is_some_and(is) {
            return Some(guess);
        }
        self.cpus.iter().position(is)
    }

    /// The input of an interrupt gets `level`. False: there is no such interrupt.
    pub fn set_line(&mut self, cpu: usize, intid: u32, level: bool) -> bool {
        let Some(place) = self.place(cpu, intid) else {
            return false;
        };
        let bit = 1 << (intid % BANK);
        let Some(b) = self.bank(place) else {
            return false;
        };
        // As on KVM each 1 is an edge, whether 0 came in between or not.
        let comes = level && (b.edge & bit != 0 || b.line & bit == 0);
        if level {
            b.line |= bit;
        } else {
            b.line &= !bit;
        }
        if comes {
            b.latch |= bit & b.edge;
            self.notice(place, bit);
        }
        true
    }

    /// Interrupts of this bank may have become somebody's next: those who have to know, look.
    pub fn notice(&mut self, place: Place, changed: u32) {
        if !*self.enabled {
            return;
        }
        if let Some(b) = self.bank(place) {
            let which = b.pending() & b.enabled & changed;
            self.call_owners(place, which);
        }
    }

    /// Those look to whom these interrupts of a bank belong.
    pub fn call_owners(&mut self, place: Place, which: u32) {
        match place {
            Place::Private(cpu, _) if which != 0 => self.look.insert(cpu),
            Place::Private(..) => {}
            Place::Shared(index, _) => {
                // As `shared_at`, which would borrow all.
                let s = match index.checked_sub(FIRST_LPI_BANK) {
                    None => self.shared.get_nospec(index),
                    Some(n) => self.lpi_banks.bank(n),
                };
                let Some(s) = s else {
                    return;
                };
                for owner in bits(which).map(|bit| s.owner(bit)) {
                    if owner != NOBODY {
                        self.look.insert(owner.into());
                    }
                }
            }
        }
    }

    /// Everybody looks.
    pub fn notice_all(&mut self) {
        for cpu in 0..self.cpus.len() {
            self.look.insert(cpu);
        }
    }

    /// Of the shared bank `index`, those that vCPU `cpu` would get if they are in `wanted`.
    #[inline]
    pub fn targeted(s: &Shared, cpu: usize, wanted: u32) -> u32 {
        bits(wanted)
            .filter(|bit| usize::from(s.owner(*bit)) == cpu)
            .fold(0, |found, bit| found | 1 << bit)
    }

    /// Whether vCPU `cpu`, whose priority mask is `mask`, has an interrupt that would wake it.
    pub fn wakes(&self, cpu: usize, mask: u8) -> bool {
        if !*self.enabled {
            return false;
        }
        let own = self.cpus.get_nospec(cpu).is_some_and(|c| {
            let b = &c.bank;
            urgent(b, b.ready(), mask)
        });
        own || self.shared.iter().any(|s| s.wakes(cpu, mask))
            || self.lpis.busy_words != 0 && self.lpis_wake(cpu, mask)
    }

    #[inline(never)]
    fn lpis_wake(&self, cpu: usize, mask: u8) -> bool {
        self.busy_banks().any(|(_, s)| s.wakes(cpu, mask))
    }

    /// A write of `value` to ICC_SGI1R_EL1 (IHI 0069 12.2.16), or with `group1` clear to ICC_SGI0R_EL1, by vCPU `cpu`.
    pub fn generate(&mut self, cpu: usize, value: u64, group1: bool) {
        let bit = 1u32 << (value >> 24 & 0xf);
        if value >> 40 & 1 != 0 {
            for other in 0..self.cpus.len() {
                if other != cpu {
                    self.generate_one(other, bit, group1);
                }
            }
            return;
        }
        let cluster = (value >> 16 & 0xff) << 8 | (value >> 32 & 0xff) << 16;
        // There is no affinity level 3.
        if value >> 48 & 0xff != 0 {
            return;
        }
        let first = (value >> 44 & 0xf) * 16;
        for n in bits(value as u32 & 0xffff) {
            if let Some(other) = self.with_affinity(cluster | first + u64::from(n)) {
                self.generate_one(other, bit, group1);
            }
        }
    }

    fn generate_one(&mut self, cpu: usize, bit: u32, group1: bool) {
        let Some(c) = self.cpus.get_nospec_mut(cpu) else {
            return;
        };
        // One of group 1 is not sent by ICC_SGI0R_EL1; with one security state ICC_SGI1R_EL1 sends both.
        if group1 || c.bank.group1 & bit == 0 {
            c.bank.latch |= bit;
            self.notice(Place::Private(cpu, 0), bit);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// Some banks of LPIs.
    pub struct Banks(pub Vec<Shared>);

    impl LpiBanks for Banks {
        fn bank(&self, n: usize) -> Option<&Shared> {
            self.0.get(n)
        }

        fn bank_mut(&mut self, n: usize) -> Option<&mut Shared> {
            self.0.get_mut(n)
        }
    }

    /// A GIC that owns what [`Gic`] borrows.
    pub struct Machine {
        pub enabled: bool,
        pub cpus: Vec<Cpu>,
        pub shared: Vec<Shared>,
        pub lpis: Lpis,
        pub banks: Banks,
        pub look: CpuMask,
        pub ended: bool,
    }

    impl Machine {
        pub fn new(cpus: u32) -> Self {
            let affinity = |n: u32| n & 0xf | (n >> 4) << 8;
            let mut shared = Shared::new(0);
            shared.bank.edge = 0;
            Self {
                enabled: true,
                cpus: (0..cpus).map(|n| Cpu::new(affinity(n), n)).collect(),
                shared: vec![shared; 2],
                lpis: Lpis::RESET,
                banks: Banks(vec![Shared::new(NOBODY); 2]),
                look: CpuMask::default(),
                ended: false,
            }
        }

        pub fn gic(&mut self) -> Gic<'_> {
            Gic {
                enabled: &mut self.enabled,
                cpus: &mut self.cpus,
                shared: &mut self.shared,
                lpis: &mut self.lpis,
                lpi_banks: &mut self.banks,
                look: &mut self.look,
                ended: &mut self.ended,
            }
        }

        pub fn looks(&mut self) -> Vec<u32> {
            let all = self.look.iter().collect();
            self.look = CpuMask::default();
            all
        }
    }

    #[test]
    fn lines() {
        let mut m = Machine::new(2);
        m.shared[0].bank.enabled = 2;
        // SPI 33, a level.
        assert!(m.gic().set_line(0, 33, true));
        assert_eq!(m.looks(), [0]);
        assert!(m.gic().wakes(0, 0xf0));
        assert!(!m.gic().wakes(1, 0xf0));
        assert!(m.gic().set_line(0, 33, false));
        assert!(!m.gic().wakes(0, 0xf0));
        // An edge stays.
        m.shared[0].bank.edge = 2;
        m.shared[0].target[1] = 1;
        assert!(m.gic().set_line(0, 33, true) && m.gic().set_line(0, 33, false));
        assert_eq!(m.looks(), [1]);
        assert!(m.gic().wakes(1, 0xf0));
        // Not below the mask, not if disabled.
        m.shared[0].bank.priority[1] = 0xf0;
        assert!(!m.gic().wakes(1, 0xf0));
        m.shared[0].bank.enabled = 0;
        m.shared[0].bank.priority[1] = 0;
        assert!(!m.gic().wakes(1, 0xf0));
        assert!(!m.gic().set_line(0, 96, true));
        assert!(!m.gic().set_line(2, 27, true));
    }

    #[test]
    fn software_generated() {
        let mut m = Machine::new(20);
        // SGI 3 to CPUs 1 and 2.
        m.gic().generate(0, 3 << 24 | 6, true);
        assert_eq!(m.looks(), [1, 2]);
        assert_eq!(m.cpus[1].bank.latch, 8);
        // To affinity 1.1, which is the 18th.
        m.gic().generate(0, 3 << 24 | 1 << 16 | 2, true);
        assert_eq!(m.looks(), [17]);
        // To all others.
        m.gic().generate(4, 1 << 40, true);
        assert_eq!(m.looks().len(), 19);
        // Of the other group, to nobody, to a cluster that is not there.
        m.gic().generate(0, 2, false);
        m.gic().generate(0, 0, true);
        m.gic().generate(0, 1 << 48 | 1, true);
        m.gic().generate(0, 9 << 16 | 1, true);
        assert!(m.looks().is_empty());
    }

    #[test]
    fn affinities() {
        let mut m = Machine::new(20);
        assert_eq!(m.gic().with_affinity(0x103), Some(19));
        assert_eq!(m.gic().with_affinity(0x104), None);
        m.cpus.swap(3, 5);
        assert_eq!(m.gic().with_affinity(3), Some(5));
    }
}
