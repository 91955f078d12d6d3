// SPDX-License-Identifier: GPL-2.0
//! The guest page walk against tables built for each paging mode: rights, reserved bits, page sizes, accessed
//! and dirty bits, and memory that changes or is not there.

use std::collections::BTreeMap;

use rvmm_logic::mem::addr::{Gpa, Gva};
use rvmm_logic::tables::Rng;
use rvmm_logic::x86::cpu::regs;
use rvmm_logic::x86::cpu::regs::{cr0, cr4, efer};
use rvmm_logic::x86::paging::fetch::Code;
use rvmm_logic::x86::paging::gwalk::{
    pfec, Access, Features, GuestRead, Paging, WalkError, PDPTE_RESERVED,
};

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const G: u64 = 0x100;
const XD: u64 = 1 << 63;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Bits32,
    Pae,
    Long4,
    Long5,
}

use Mode::{Bits32, Long4, Long5, Pae};

const MODES: [Mode; 4] = [Bits32, Pae, Long4, Long5];

impl Mode {
    fn levels(self) -> usize {
        match self {
            Bits32 => 2,
            Pae => 3,
            Long4 => 4,
            Long5 => 5,
        }
    }

    fn entry_bytes(self) -> u64 {
        if self == Bits32 {
            4
        } else {
            8
        }
    }

    /// Lowest address bit that indexes a table of this level (1 = page table).
    fn shift(self, level: usize) -> u32 {
        let bits = if self == Bits32 { 10 } else { 9 };
        12 + bits * (level as u32 - 1)
    }

    fn index(self, level: usize, gva: u64) -> u64 {
        let entries = match (self, level) {
            (Bits32, _) => 1024,
            (Pae, 3) => 4,
            _ => 512,
        };
        gva >> self.shift(level) & (entries - 1)
    }
}

/// Guest memory in words of 4 bytes.
#[derive(Default, Clone)]
struct Mem {
    words: BTreeMap<u64, u32>,
    reads: usize,
    /// Accesses that fail.
    absent: Option<u64>,
    /// `set_ad` reports that the entry changed, so many times.
    races: usize,
}

impl Mem {
    fn get(&self, gpa: u64, bytes: u64) -> u64 {
        let word = |a| *self.words.get(&a).unwrap_or(&0) as u64;
        if bytes == 4 {
            word(gpa)
        } else {
            word(gpa) | word(gpa + 4) << 32
        }
    }

    fn put(&mut self, gpa: u64, value: u64, bytes: u64) {
        self.words.insert(gpa, value as u32);
        if bytes == 8 {
            self.words.insert(gpa + 4, (value >> 32) as u32);
        }
    }
}

impl GuestRead for Mem {
    type Error = u64;

    fn read_u32(&mut self, gpa: Gpa) -> Result<u32, u64> {
        assert_eq!(gpa.0 & 3, 0);
        self.reads += 1;
        if self.absent == Some(gpa.0) {
            return Err(gpa.0);
        }
        Ok(self.get(gpa.0, 4) as u32)
    }

    fn read_u64(&mut self, gpa: Gpa) -> Result<u64, u64> {
        assert_eq!(gpa.0 & 7, 0);
        self.reads += 1;
        if self.absent == Some(gpa.0) {
            return Err(gpa.0);
        }
        Ok(self.get(gpa.0, 8))
    }

    fn set_ad(&mut self, gpa: Gpa, old: u64, new: u64, bytes: u8) -> Result<bool, u64> {
        assert_eq!(
            old & !(A | D),
            new & !(A | D),
            "only accessed and dirty may change"
        );
        assert_eq!(old & !new, 0, "bits may only be set");
        if self.races > 0 {
            self.races -= 1;
            return Ok(false);
        }
        if self.get(gpa.0, bytes as u64) != old {
            return Ok(false);
        }
        self.put(gpa.0, new, bytes as u64);
        Ok(true)
    }
}

/// A machine with one mapping.
#[derive(Clone)]
struct Machine {
    mode: Mode,
    gva: u64,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    pkru: u32,
    features: Features,
    mem: Mem,
    /// Address of the entry of each level, `[0]` unused.
    at: [u64; 6],
}

impl Machine {
    /// Maps `gva` by `flags[level]` at each level down to `leaf`, which points to `target`.
    fn new(mode: Mode, gva: u64, leaf: usize, target: u64, flags: [u64; 6]) -> Self {
        let mut m = Machine {
            mode,
            gva,
            cr0: cr0::PG | cr0::PE | cr0::WP,
            cr3: 0,
            cr4: match mode {
                Bits32 => cr4::PSE,
                Pae | Long4 => cr4::PAE,
                Long5 => cr4::PAE | cr4::LA57,
            },
            efer: match mode {
                Bits32 | Pae => efer::NX,
                _ => efer::NX | efer::LME | efer::LMA,
            },
            pkru: 0,
            features: Features {
                max_phys_bits: 46,
                pages_1g: true,
                pdpte_reserved: PDPTE_RESERVED,
            },
            mem: Mem::default(),
            at: [0; 6],
        };
        // The root is not page-aligned in PAE mode.
        let mut table = if mode == Pae {
            0x1000_0020
        } else {
            0x1000_0000
        };
        m.cr3 = table | 0x18;
        for level in (leaf..=mode.levels()).rev() {
            let at = table + mode.index(level, gva) * mode.entry_bytes();
            m.at[level] = at;
            let next = if level == leaf {
                target
            } else {
                0x1000_0000 + level as u64 * 0x10_0000
            };
            m.mem.put(at, next | flags[level], mode.entry_bytes());
            table = next;
        }
        m
    }

    /// With harmless flags everywhere; a leaf above level 1 gets PS.
    fn plain(mode: Mode, gva: u64, leaf: usize, target: u64) -> Self {
        let mut flags = [P | W | U | A | D; 6];
        for (level, f) in flags.iter_mut().enumerate().skip(2) {
            if level != leaf {
                *f = P | W | U | A;
            } else {
                *f |= PS;
            }
        }
        if mode == Pae {
            flags[3] = P;
        }
        Self::new(mode, gva, leaf, target, flags)
    }

    fn entry(&self, level: usize) -> u64 {
        self.mem.get(self.at[level], self.mode.entry_bytes())
    }

    fn set_entry(&mut self, level: usize, value: u64) {
        self.mem.put(self.at[level], value, self.mode.entry_bytes());
    }

    fn paging(&self) -> Paging {
        Paging::new(
            self.cr0,
            self.cr3,
            self.cr4,
            self.efer,
            self.pkru,
            self.features,
        )
    }

    fn walk(&mut self, access: Access) -> Result<Gpa, WalkError<u64>> {
        let (paging, gva) = (self.paging(), Gva(self.gva));
        paging.translate(&mut self.mem, gva, access)
    }

    fn fault(&mut self, access: Access) -> Option<u32> {
        match self.walk(access) {
            Err(WalkError::PageFault { error_code }) => Some(error_code),
            Ok(_) => None,
            e => panic!("{e:?}"),
        }
    }
}

const READ: Access = Access {
    write: false,
    fetch: false,
    user: false,
    ac: false,
};
const WRITE: Access = Access {
    write: true,
    fetch: false,
    user: false,
    ac: false,
};
const FETCH: Access = Access {
    write: false,
    fetch: true,
    user: false,
    ac: false,
};

fn gva_for(mode: Mode) -> u64 {
    match mode {
        Bits32 | Pae => 0x9abc_d678,
        Long4 => 0xffff_9234_5678_9abc,
        Long5 => 0xff12_3456_789a_bcde,
    }
}

#[test]
fn page_sizes() {
    for mode in MODES {
        let gva = gva_for(mode);
        let leaves: &[(usize, u64)] = match mode {
            Bits32 => &[(1, 0x8765_4000), (2, 0x8740_0000)],
            Pae => &[(1, 0x2abc_8765_4000), (2, 0x2abc_8760_0000)],
            _ => &[
                (1, 0x2abc_8765_4000),
                (2, 0x2abc_8760_0000),
                (3, 0x2abc_8000_0000),
            ],
        };
        for &(leaf, target) in leaves {
            let mut m = Machine::plain(mode, gva, leaf, target);
            let t = m.walk(READ).unwrap();
            let shift = mode.shift(leaf);
            let inside = gva & ((1 << shift) - 1);
            assert_eq!(t.0, target | inside, "{mode:?} {leaf}");
            // Once, but twice where the straight line of 4-level paging gave up.
            let once = mode.levels() - leaf + 1;
            let passes = if (mode, leaf) == (Long4, 3) { 2 } else { 1 };
            assert_eq!(m.mem.reads, once * passes);
            let e = m.entry(leaf);
            m.set_entry(leaf, e & !(W | U) | G);
            assert_eq!(m.walk(READ), Ok(t), "rights and G do not lead elsewhere");
        }
    }
    // Without paging.
    let mut m = Machine::plain(Bits32, 0x1_2345_6789, 1, 0x1000);
    m.cr0 = cr0::PE;
    let t = m.walk(WRITE).unwrap();
    assert_eq!((t.0, m.mem.reads), (0x2345_6789, 0));
    // PSE-36: address bits 39:32 in bits 20:13.
    let mut m = Machine::plain(Bits32, 0x9abc_d678, 2, 0x8740_0000 | 0xa5 << 13);
    assert_eq!(
        m.walk(READ).unwrap().0,
        0xa5_8740_0000 | (0x9abc_d678 & 0x3f_ffff)
    );
    m.features.max_phys_bits = 39;
    assert_eq!(m.fault(READ), Some(pfec::P | pfec::RSVD));
    // PS means nothing with CR4.PSE clear: the entry points to a table (of zeroes).
    m.cr4 = 0;
    assert_eq!(m.fault(READ), Some(0));
    // Without 1 GiB pages PS is reserved in a PDPTE.
    let mut m = Machine::plain(Long4, gva_for(Long4), 3, 0x4000_0000);
    m.features.pages_1g = false;
    assert_eq!(m.fault(READ), Some(pfec::P | pfec::RSVD));
}

/// SDM 3A 4.6.1, sentence by sentence, for a page with `u`, `w` in all entries and `xd` in one.
fn allowed(m: &Machine, u: bool, w: bool, xd: bool, a: Access) -> bool {
    let wp = m.cr0 & cr0::WP != 0;
    let smep = m.cr4 & cr4::SMEP != 0;
    let smap = m.cr4 & cr4::SMAP != 0;
    match (a.user, a.fetch, a.write) {
        // Supervisor-mode accesses.
        (false, false, false) => !u || !smap || a.ac,
        (false, false, true) => {
            let by_mode = !u || !smap || a.ac;
            by_mode && (!wp || w)
        }
        (false, true, _) => match (u, smep) {
            (true, true) => false,
            _ => !xd,
        },
        // User-mode accesses.
        (true, false, false) => u,
        (true, false, true) => u && w,
        (true, true, _) => u && !xd,
    }
}

/// SDM 3A 4.6.2.
fn allowed_by_key(m: &Machine, u: bool, key: u32, a: Access) -> bool {
    if m.cr4 & cr4::PKE == 0 || !u || a.fetch {
        return true;
    }
    let ad = m.pkru >> (2 * key) & 1 != 0;
    let wd = m.pkru >> (2 * key + 1) & 1 != 0;
    let wp = m.cr0 & cr0::WP != 0;
    !(ad || (a.write && wd && (a.user || wp)))
}

#[test]
fn rights() {
    let mut cases = 0;
    for mode in MODES {
        // Rights in one upper entry and in the leaf; a PDPTE of PAE paging has none.
        for upper in 0..8u64 {
            for low in 0..8u64 {
                let bits = |n: u64| (n & 1) << 1 | (n & 2) << 1 | (n >> 2) << 63;
                let (up, lo) = (bits(upper), bits(low));
                if mode == Bits32 && (up | lo) & XD != 0 {
                    continue;
                }
                let u = up & lo & U != 0;
                let w = up & lo & W != 0;
                for key in [0u64, 5] {
                    let mut m = Machine::plain(mode, gva_for(mode), 1, 0x5000);
                    let flags = m.entry(2) & !(U | W) | up;
                    m.set_entry(2, flags);
                    let long = matches!(mode, Long4 | Long5);
                    let key = if long { key } else { 0 };
                    m.set_entry(1, 0x5000 | P | A | D | lo | key << 59);
                    let base = m.clone();
                    for regs in 0..64 {
                        let mut m = base.clone();
                        m.cr0 = if regs & 1 != 0 {
                            m.cr0
                        } else {
                            m.cr0 & !cr0::WP
                        };
                        m.cr4 |= if regs & 2 != 0 { cr4::SMEP } else { 0 };
                        m.cr4 |= if regs & 4 != 0 { cr4::SMAP } else { 0 };
                        m.efer &= if regs & 8 != 0 { !0 } else { !efer::NX };
                        m.cr4 |= if regs & 0x30 != 0 { cr4::PKE } else { 0 };
                        // Key 0 allows all, key 5 denies data or writes.
                        m.pkru = [0, 1, 2, 3][regs >> 4] << 10;
                        if !long {
                            m.cr4 &= !cr4::PKE;
                        }
                        let nxe = m.efer & efer::NX != 0;
                        for n in 0..12 {
                            let a = Access {
                                write: n % 3 == 1,
                                fetch: n % 3 == 2,
                                user: (n / 3) & 1 != 0,
                                ac: (n / 6) & 1 != 0,
                            };
                            let xd = (up | lo) & XD != 0;
                            let key_ok = allowed_by_key(&m, u, key as u32, a);
                            let mut code = (a.write as u32 * pfec::W) | (a.user as u32 * pfec::U);
                            let tell = m.cr4 & cr4::SMEP != 0 || (mode != Bits32 && nxe);
                            code |= (a.fetch && tell) as u32 * pfec::I;
                            let want = if xd && !nxe {
                                Some(code | pfec::P | pfec::RSVD)
                            } else if !allowed(&m, u, w, xd, a) || !key_ok {
                                Some(code | pfec::P | (!key_ok as u32 * pfec::PK))
                            } else {
                                None
                            };
                            assert_eq!(m.fault(a), want, "{mode:?} {up:x} {lo:x} {regs:x} {a:?}");
                            cases += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(cases > 200_000);
}

#[test]
fn rights_by_hand() {
    // (flags of PDE, flags of PTE, CR4, access, error code): cases anyone can check with the manual in hand.
    let user = |a: Access| Access { user: true, ..a };
    let ac = |a: Access| Access { ac: true, ..a };
    let table = [
        (P | W | U, P | W | U, 0, user(WRITE), None),
        (P | U, P | W | U, 0, user(WRITE), Some(7)),
        (P | W | U, P | W, 0, user(READ), Some(5)),
        (P | W | U, P | W, 0, READ, None),
        (P | W | U, P | U, 0, WRITE, Some(3)),
        (P | W | U, P | W | U, cr4::SMEP, FETCH, Some(0x11)),
        (P | W | U, P | W | U, cr4::SMEP, user(FETCH), None),
        (P | W | U, P | W | U, cr4::SMAP, READ, Some(1)),
        (P | W | U, P | W | U, cr4::SMAP, ac(READ), None),
        (P | W | U, P | W | U, cr4::SMAP, ac(FETCH), None),
        (P | W | U, P | W | U | XD, 0, FETCH, Some(0x11)),
        (P | W | U | XD, P | W | U, 0, user(FETCH), Some(0x15)),
        (P | W | U, P | W | U | XD, 0, user(READ), None),
        (W | U, P | W | U, 0, user(WRITE), Some(6)),
        (P | W | U, W | U, 0, FETCH, Some(0x10)),
        (P | W | U | 1 << 47, P, 0, READ, Some(9)),
    ];
    for (pde, pte, c4, access, want) in table {
        let mut m = Machine::plain(Long4, gva_for(Long4), 1, 0x5000);
        m.set_entry(2, m.entry(2) & !(P | W | U) | pde);
        m.set_entry(1, 0x5000 | pte);
        m.cr4 |= c4;
        assert_eq!(m.fault(access), want, "{pde:x} {pte:x} {c4:x} {access:?}");
    }
    assert_eq!(Access::fetch(3), user(FETCH));
    assert_eq!(Access::fetch(0), FETCH);
    assert_eq!(Access::data(true, 0, true), ac(WRITE));
    assert_eq!(Access::implicit(false), READ);
}

/// Reserved bits of an entry with 46 physical-address bits (SDM 3A tables 4-4 to 4-20).
fn reserved(mode: Mode, level: usize, leaf: bool, nxe: bool) -> u64 {
    let span = |hi: u32, lo: u32| (!0u64 >> (63 - hi)) & (!0u64 << lo);
    let xd = if nxe { 0 } else { XD };
    match (mode, level, leaf) {
        (Bits32, 2, true) => 1 << 21,
        (Bits32, ..) => 0,
        (Pae, 3, _) => span(63, 46) | span(8, 5) | span(2, 1),
        (Pae, 2, true) => span(62, 46) | xd | span(20, 13),
        (Pae, ..) => span(62, 46) | xd,
        (_, 4 | 5, _) => span(51, 46) | xd | PS,
        (_, 3, true) => span(51, 46) | xd | span(29, 13),
        (_, 2, true) => span(51, 46) | xd | span(20, 13),
        _ => span(51, 46) | xd,
    }
}

#[test]
fn reserved_bits() {
    for mode in MODES {
        for leaf in 1..=3.min(mode.levels()) {
            if mode == Pae && leaf == 3 {
                continue;
            }
            for level in leaf..=mode.levels() {
                for nxe in [false, true] {
                    for bit in 0..mode.entry_bytes() as u32 * 8 {
                        let mut m = Machine::plain(mode, gva_for(mode), leaf, 0);
                        m.efer &= if nxe { !0 } else { !efer::NX };
                        let good = m.entry(level);
                        if good >> bit & 1 != 0 || (level > leaf && 1 << bit == PS && level < 4) {
                            continue;
                        }
                        // Another address: what is read there is no matter of this test.
                        let is_addr = (12..46).contains(&bit);
                        m.set_entry(level, good | 1 << bit);
                        let want = reserved(mode, level, level == leaf, nxe) >> bit & 1 != 0;
                        let got = m.fault(READ);
                        if want {
                            let e = Some(pfec::P | pfec::RSVD);
                            assert_eq!(got, e, "{mode:?} {leaf} {level} bit {bit}");
                        } else if level == leaf || !is_addr {
                            assert_eq!(got, None, "{mode:?} {leaf} {level} bit {bit} {nxe}");
                        } else {
                            assert_eq!(got, Some(0));
                        }
                        // Absent entries have no reserved bits.
                        m.set_entry(level, (good | 1 << bit) & !P);
                        assert_eq!(m.fault(READ), Some(0));
                    }
                }
            }
        }
    }
    // All 52 bits exist: nothing is reserved below.
    let mut m = Machine::plain(Long4, gva_for(Long4), 1, 0xf_ffff_ffff_f000);
    m.features.max_phys_bits = 52;
    assert_eq!(m.walk(READ).unwrap().0, 0xf_ffff_ffff_fabc);
    m.features.max_phys_bits = 255;
    assert!(m.walk(READ).is_ok());
}

#[test]
fn absent_at_each_level() {
    for mode in MODES {
        for level in 1..=mode.levels() {
            let mut m = Machine::plain(mode, gva_for(mode), 1, 0x5000);
            m.set_entry(level, m.entry(level) & !P);
            assert_eq!(m.fault(READ), Some(0));
            assert_eq!(
                m.fault(Access {
                    user: true,
                    ..WRITE
                }),
                Some(pfec::W | pfec::U)
            );
        }
    }
}

#[test]
fn canonical() {
    let bad = Err(WalkError::NonCanonical);
    for (mode, gva, ok) in [
        (Long4, 0x0000_7fff_ffff_ffff, true),
        (Long4, 0x0000_8000_0000_0000, false),
        (Long4, 0xffff_7fff_ffff_ffff, false),
        (Long4, 0xffff_8000_0000_0000, true),
        (Long4, 0x0100_0000_0000_0000, false),
        (Long5, 0x00ff_ffff_ffff_ffff, true),
        (Long5, 0x0100_0000_0000_0000, false),
        (Long5, 0xfeff_ffff_ffff_ffff, false),
        (Long5, 0xff00_0000_0000_0000, true),
        (Pae, 0xdead_beef_0000_1000, true),
    ] {
        let mut m = Machine::plain(mode, gva, 1, 0x5000);
        if mode == Pae {
            m = Machine::plain(mode, gva & 0xffff_ffff, 1, 0x5000);
            m.gva = gva;
        }
        let got = m.walk(READ);
        assert_eq!(got == bad, !ok, "{mode:?} {gva:#x} {got:?}");
        assert_eq!(got.is_ok(), ok);
        assert_eq!(m.paging().is_canonical(Gva(gva)), ok);
    }
}

#[test]
fn accessed_and_dirty() {
    for mode in MODES {
        for leaf in 1..=2 {
            let target = 0x40_0000;
            let mut flags = [P | W | U; 6];
            flags[leaf] |= if leaf == 2 { PS } else { 0 };
            if mode == Pae {
                flags[3] = P;
            }
            let fresh = Machine::new(mode, gva_for(mode), leaf, target, flags);
            let top = if mode == Pae { 2 } else { mode.levels() };

            let mut m = fresh.clone();
            let (paging, gva) = (m.paging(), Gva(m.gva));
            let t = paging.probe(&mut m.mem, gva, WRITE).unwrap();
            assert_eq!(m.mem.words, fresh.mem.words, "a probe leaves no trace");

            // The result is the same with and without bits to set.
            assert_eq!(m.walk(READ), Ok(t));
            for level in leaf..=top {
                assert_eq!(m.entry(level), fresh.entry(level) | A);
            }
            assert_eq!(m.walk(WRITE), Ok(t));
            assert_eq!(m.entry(leaf), fresh.entry(leaf) | A | D);
            if mode == Pae {
                assert_eq!(m.entry(3), fresh.entry(3), "a PDPTE has no accessed bit");
                flags[3] |= A;
                let mut tcg = Machine::new(mode, gva_for(mode), leaf, target, flags);
                assert_eq!(tcg.fault(READ), Some(pfec::P | pfec::RSVD));
                tcg.features.pdpte_reserved &= !A;
                assert_eq!(tcg.walk(READ), Ok(t), "but QEMU's TCG sets one");
            }
            if leaf < top {
                assert_eq!(
                    m.entry(top),
                    fresh.entry(top) | A,
                    "dirty belongs to the leaf"
                );
            }
            m.mem.reads = 0;
            assert_eq!(m.walk(WRITE), Ok(t));
            assert_eq!(
                m.mem.reads,
                mode.levels() - leaf + 1,
                "one pass when nothing is to be set"
            );

            // A fault marks nothing in the leaf.
            let mut m = fresh.clone();
            m.set_entry(leaf, m.entry(leaf) & !W);
            let before = m.entry(leaf);
            assert!(m.fault(WRITE).is_some());
            assert_eq!(m.entry(leaf), before);
            // A supervisor write to a read-only page with WP clear makes it dirty.
            m.cr0 &= !cr0::WP;
            assert_eq!(m.fault(WRITE), None);
            assert_eq!(m.entry(leaf), before | A | D);

            // Entries that change in between: again, but not for ever.
            let mut m = fresh.clone();
            m.mem.races = 3;
            assert_eq!(m.walk(WRITE), Ok(t));
            assert_eq!(m.entry(leaf), fresh.entry(leaf) | A | D);
            let mut m = fresh.clone();
            m.mem.races = usize::MAX;
            assert_eq!(m.walk(READ), Err(WalkError::Busy));
        }
    }
}

#[test]
fn missing_memory() {
    for mode in MODES {
        for level in 1..=mode.levels() {
            let mut m = Machine::plain(mode, gva_for(mode), 1, 0x5000);
            m.mem.absent = Some(m.at[level]);
            assert_eq!(m.walk(READ), Err(WalkError::Access(m.at[level])));
        }
    }
}

#[test]
fn garbage_terminates() {
    /// Memory full of noise that changes with each read.
    struct Noise(u64, usize);
    impl GuestRead for Noise {
        type Error = ();
        fn read_u32(&mut self, gpa: Gpa) -> Result<u32, ()> {
            self.read_u64(gpa).map(|x| x as u32)
        }
        fn read_u64(&mut self, gpa: Gpa) -> Result<u64, ()> {
            self.1 += 1;
            self.0 = (self.0 ^ gpa.0)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29);
            // Mostly valid entries, else no walk gets deep.
            Ok(self.0 & 0x8000_3fff_ffff_ff7f | 3)
        }
        fn set_ad(&mut self, _: Gpa, old: u64, _: u64, _: u8) -> Result<bool, ()> {
            Ok(old & 0x1000 != 0)
        }
    }
    let mut noise = Noise(1, 0);
    let mut ok = 0;
    for n in 0..200_000u64 {
        let x = n.wrapping_mul(0xd134_2543_de82_ef95);
        let f = Features {
            max_phys_bits: (x >> 50) as u8,
            pages_1g: x & 1 != 0,
            pdpte_reserved: PDPTE_RESERVED,
        };
        let c4 = x.rotate_left(7) & (cr4::PAE | cr4::PSE | cr4::LA57 | cr4::SMAP | cr4::PKE);
        let e = x.rotate_left(9) & (efer::NX | efer::LMA);
        let p = Paging::new(x & cr0::WP | cr0::PG, x, c4, e, x as u32, f);
        let a = Access {
            write: n & 1 != 0,
            fetch: n & 6 == 6,
            user: n & 8 != 0,
            ac: n & 16 != 0,
        };
        noise.1 = 0;
        ok += p
            .translate(&mut noise, Gva((x as i64 >> 17) as u64), a)
            .is_ok() as u32;
        assert!(noise.1 <= 45);
    }
    assert!(ok > 1000, "{ok}");
}

#[test]
fn every_level_counts() {
    // One level alone forbids: writing, user access, fetching.
    for mode in [Pae, Long4, Long5] {
        let top = if mode == Pae { 2 } else { mode.levels() };
        for leaf in 1..=2 {
            for level in leaf..=top {
                let user = Access { user: true, ..READ };
                for (clear, set, access, code) in
                    [(W, 0, WRITE, 3), (U, 0, user, 5), (0, XD, FETCH, 0x11)]
                {
                    let mut m = Machine::plain(mode, gva_for(mode), leaf, 0x40_0000);
                    assert_eq!(m.fault(access), None);
                    m.set_entry(level, m.entry(level) & !clear | set);
                    assert_eq!(m.fault(access), Some(code), "{mode:?} {leaf} {level}");
                }
            }
        }
    }
}

fn one_in(random: &mut Rng, n: u64) -> bool {
    random.below(n) == 0
}

/// A machine with 4-level tables (5-level ones now and then) whose bits are mostly, but not always, harmless.
fn machine(random: &mut Rng) -> Machine {
    let mode = [Long5, Long4, Long4, Long4, Long4, Pae, Pae, Bits32][(random.next() % 8) as usize];
    let half = if one_in(random, 2) { 0 } else { !0 << 47 };
    let gva = match mode {
        Bits32 | Pae => random.next() & 0xffff_ffff,
        _ => random.next() & 0x7fff_ffff_ffff | half,
    };
    let leaves = if mode == Bits32 || mode == Pae { 4 } else { 5 };
    let leaf = [1, 1, 2, 2, 3][(random.next() % leaves) as usize];
    let target = random.next() & 0x000f_ffff_ffff_f000 & !((1 << mode.shift(leaf)) - 1);
    let target = if one_in(random, 8) {
        target
    } else {
        target & 0x3fff_ffff_ffff
    };
    let mut flags = [P | W | U | A | D; 6];
    for (level, f) in flags.iter_mut().enumerate() {
        if level == leaf && leaf > 1 {
            *f |= PS;
        }
        if level == 3 && mode == Pae {
            *f = P;
        }
        for bit in [
            P,
            W,
            U,
            A,
            D,
            PS,
            G,
            XD,
            1 << 12,
            1 << 13,
            1 << 20,
            1 << 50,
            1 << 59,
        ] {
            if one_in(random, 64) {
                *f ^= bit;
            }
        }
    }
    let mut m = Machine::new(mode, gva, leaf, target, flags);
    for bit in [
        cr4::SMEP,
        cr4::SMAP,
        cr4::PKE,
        cr4::PCIDE,
        cr4::PGE,
        cr4::PSE,
    ] {
        if one_in(random, 2) {
            m.cr4 ^= bit;
        }
    }
    if one_in(random, 2) {
        m.cr0 ^= cr0::WP;
    }
    if one_in(random, 4) {
        m.efer ^= efer::NX;
    }
    m.cr3 |= random.next() & if mode == Pae { 0x1f } else { 0xfff };
    if one_in(random, 32) {
        m.cr0 &= !cr0::PG;
        m.efer &= !efer::LMA;
    }
    m.pkru = random.next() as u32;
    m.features.max_phys_bits = [36, 40, 46, 52][(random.next() % 4) as usize];
    m.features.pages_1g = one_in(random, 2);
    if one_in(random, 64) {
        m.gva ^= 1 << 50;
    }
    m
}

#[test]
fn straight_line_is_the_general_walk() {
    let mut r = Rng(0x9e37_79b9_7f4a_7c15);
    let mut same = 0;
    for _ in 0..20_000 {
        let m = machine(&mut r);
        let bits = r.next();
        let access = Access {
            write: bits & 1 != 0,
            fetch: bits & 3 == 2,
            user: bits & 4 != 0,
            ac: bits & 8 != 0,
        };
        let p = m.paging();
        // `probe` never takes the straight line.
        let (mut general, mut fast) = (m.mem.clone(), m.mem.clone());
        let want = p.probe(&mut general, Gva(m.gva), access);
        assert_eq!(
            p.translate(&mut fast, Gva(m.gva), access),
            want,
            "{access:?}"
        );
        same += usize::from(want.is_ok() && fast.words == general.words);
    }
    assert!(same > 2_000, "{same}");
}

#[test]
fn fast_fetch_is_the_general_walk() {
    let mut r = Rng(0x2545_f491_4f6c_dd1d);
    let (mut hits, mut off, mut others) = ([0; MODES.len()], 0, 0);
    for _ in 0..40_000 {
        let m = machine(&mut r);
        let cpl = if one_in(&mut r, 2) { 3 } else { 0 };
        let code = Code {
            mode: regs::Mode::Prot32,
            cpl,
            cr0: m.cr0,
            cr3: m.cr3,
            cr4: m.cr4,
            efer: m.efer,
            base: 0,
        };
        let mut mem = m.mem.clone();
        let reserved = !0 << m.features.max_phys_bits;
        let read = |at| mem.read_u64(at).ok();
        let got = if code.ia32e() {
            code.translate(m.gva, reserved, read)
        } else {
            code.translate_legacy(m.gva, reserved, m.features.pdpte_reserved, read)
        };
        let p = m.paging();
        let mut mem = m.mem.clone();
        let want = p.translate(&mut mem, Gva(m.gva), Access::fetch(cpl));
        if let Some(gpa) = got {
            assert_eq!(want, Ok(gpa));
            assert_eq!(mem.words, m.mem.words, "nothing had to be marked");
            hits[m.mode as usize] += 1;
            off += usize::from(m.cr0 & cr0::PG == 0);
        } else if want.is_ok() {
            // What it leaves to the general walk: marking, pages of 1 GiB, five levels.
            others += 1;
        }
    }
    assert!(
        hits[..3].iter().all(|n| *n > 1_000) && off > 100 && others > 200,
        "{hits:?} {off} {others}"
    );
}
