// SPDX-License-Identifier: GPL-2.0
//! The nested page-table walker and its formats against a plain model, with a processor that sets accessed and
//! dirty bits in between and with allocation failures at every point.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use rvmm_logic::mem::addr::{Gpa, GpaRange, Hpa, Level};
use rvmm_logic::mem::walk::{
    Change, Cursor, Format, Leaf, MapError, MemType, PageTable, Perm, Removed, Tables,
};
use rvmm_logic::x86::paging::fmt_ept;
use rvmm_logic::x86::paging::fmt_ept::{Caps, Ept, EptNoAd};
use rvmm_logic::x86::paging::fmt_npt;
use rvmm_logic::x86::paging::fmt_npt::Npt;

/// xorshift64*: reproducible, no dependency.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What the "processor" of [`Mem`] does each time an entry is read: nothing, or a write to a random page.
#[derive(Default)]
struct Hardware {
    rng: u64,
    top: u8,
    root: u64,
    gpas: Vec<u64>,
    /// Pages written by the guest, and not reported as dirty so far, as (gpa, hpa).
    written: BTreeSet<(u64, u64)>,
    /// Paging-structure cache: tables of 4 KiB leaves by the 2 MiB area they map, kept until the next flush.
    cached: BTreeMap<u64, Hpa>,
}

/// Address of the first table.
const BASE: u64 = 0x10_0000_0000;

/// Table memory.
struct Mem<F> {
    /// Table `n` lies at `BASE + n * 4096`; its content is gone after free and flush.
    tables: Vec<Option<Vec<Cell<u64>>>>,
    /// Freed tables: their content must stay until the next flush.
    freed: BTreeSet<u64>,
    /// Allocations left before failure.
    quota: u64,
    removed: Vec<Removed>,
    hw: RefCell<Option<Hardware>>,
    loads: Cell<u64>,
    _f: std::marker::PhantomData<F>,
}

impl<F: Format> Mem<F> {
    fn new() -> Self {
        Self {
            tables: Vec::new(),
            freed: BTreeSet::new(),
            quota: u64::MAX,
            removed: Vec::new(),
            hw: RefCell::new(None),
            loads: Cell::new(0),
            _f: std::marker::PhantomData,
        }
    }

    fn table(&self, table: Hpa) -> &[Cell<u64>] {
        let n = ((table.0 - BASE) >> 12) as usize;
        self.tables[n]
            .as_ref()
            .expect("access to a table that does not exist")
    }

    /// Tables allocated and not yet reusable.
    fn held(&self) -> usize {
        self.tables.iter().flatten().count()
    }

    fn live(&self) -> usize {
        self.held() - self.freed.len()
    }

    fn flush(&mut self) {
        if let Some(hw) = self.hw.get_mut() {
            hw.cached.clear();
        }
        for t in std::mem::take(&mut self.freed) {
            self.tables[((t - BASE) >> 12) as usize] = None;
        }
    }

    /// The guest writes a random page, if its mapping allows.
    fn hardware(&self) {
        let mut hw = self.hw.borrow_mut();
        let Some(hw) = hw.as_mut() else { return };
        let mut rng = Rng(hw.rng);
        if rng.below(4) != 0 {
            hw.rng = rng.0;
            return;
        }
        let gpa = hw.gpas[rng.below(hw.gpas.len() as u64) as usize];
        hw.rng = rng.0;
        let (mut table, mut level) = match hw.cached.get(&(gpa >> 21)) {
            Some(&t) => (t, Level::L1),
            None => (Hpa(hw.root), Level::from_u8(hw.top).unwrap()),
        };
        loop {
            let cell = &self.table(table)[level.index(gpa)];
            let e = cell.get();
            if !F::present(e) {
                return;
            }
            if F::is_leaf(e, level) {
                if F::perm(e).contains(Perm::W) {
                    if F::HAS_AD {
                        cell.set(F::set_ad(e, true, true));
                    }
                    let hpa = F::addr(e, level).0 + (gpa & level.offset_mask());
                    hw.written.insert((gpa, hpa));
                }
                return;
            }
            assert!(
                !self.freed.contains(&F::child(e).0),
                "reachable table was freed"
            );
            table = F::child(e);
            level = level.down().unwrap();
            if level == Level::L1 {
                hw.cached.insert(gpa >> 21, table);
            }
        }
    }
}

impl<F: Format> Tables for Mem<F> {
    fn load(&self, table: Hpa, index: usize) -> u64 {
        self.loads.set(self.loads.get() + 1);
        let v = self.table(table)[index].get();
        self.hardware();
        v
    }

    fn store(&self, table: Hpa, index: usize, value: u64) {
        self.table(table)[index].set(value);
        self.hardware();
    }

    fn cmpxchg(&self, table: Hpa, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let cell = &self.table(table)[index];
        if cell.get() != old {
            return Err(cell.get());
        }
        cell.set(new);
        self.hardware();
        Ok(())
    }

    fn alloc(&mut self) -> Option<Hpa> {
        if self.quota == 0 {
            return None;
        }
        self.quota -= 1;
        self.tables.push(Some(vec![Cell::new(0); 512]));
        Some(Hpa(BASE + ((self.tables.len() as u64 - 1) << 12)))
    }

    fn free(&mut self, table: Hpa) {
        self.table(table);
        assert!(self.freed.insert(table.0), "double free");
    }

    fn removed(&mut self, r: &Removed) {
        if r.dirty {
            if let Some(hw) = self.hw.borrow_mut().as_mut() {
                hw.written.retain(|&(gpa, hpa)| {
                    gpa < r.gpa.0
                        || gpa >= r.gpa.0 + r.level.size()
                        || hpa.wrapping_sub(r.hpa.0) != gpa - r.gpa.0
                });
            }
        }
        self.removed.push(*r);
    }
}

fn leaf(hpa: u64, perm: Perm) -> Leaf {
    Leaf {
        hpa: Hpa(hpa),
        perm,
        mem_type: MemType::Wb,
        ignore_pat: false,
        accessed: false,
        dirty: false,
    }
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

/// Every entry reachable from `root` is one that a processor accepts.
fn check_entries<F: Format>(
    m: &Mem<F>,
    table: Hpa,
    level: Level,
    bad: &dyn Fn(u64, Level) -> bool,
) -> usize {
    let mut tables = 1;
    assert!(!m.freed.contains(&table.0), "a freed table is still linked");
    for c in m.table(table) {
        let e = c.get();
        assert!(!bad(e, level), "entry {e:#x} of {level:?} is malformed");
        if F::present(e) {
            if !F::is_leaf(e, level) {
                tables += check_entries(m, F::child(e), level.down().unwrap(), bad);
            }
        } else {
            assert_eq!(e, F::NON_PRESENT);
        }
    }
    tables
}

const EPT_CAPS: Caps = Caps {
    ept_vpid_cap: Caps::WALK_4
        | Caps::WALK_5
        | Caps::EPTP_WB
        | Caps::PAGE_2M
        | Caps::PAGE_1G
        | Caps::AD,
    max_phys_bits: 46,
};

fn ept_bad(e: u64, l: Level) -> bool {
    fmt_ept::misconfigured(e, l, &EPT_CAPS)
}

fn npt_bad(e: u64, l: Level) -> bool {
    fmt_npt::reserved_bits(e, l, 46, true)
}

fn basics<F: Format>(levels: u8, bad: fn(u64, Level) -> bool) {
    let mut m = Mem::<F>::new();
    let pt = PageTable::<F>::create(&mut m, levels).unwrap();
    let g = 0x1_4020_3000;
    assert_eq!(pt.lookup(&m, Gpa(g)), None);
    assert_eq!(
        pt.map(&mut m, Gpa(g), Level::L1, &leaf(0x5000, Perm::RX)),
        Ok(Change::New)
    );
    assert_eq!(m.live(), levels as usize);
    let found = pt.lookup(&m, Gpa(g + 0x123)).unwrap();
    assert_eq!(
        (found.hpa, found.level, found.perm),
        (Hpa(0x5123), Level::L1, Perm::RX)
    );
    assert_eq!(pt.lookup(&m, Gpa(g + 0x1000)), None);

    // Only into an empty entry; nothing is replaced, neither a leaf nor a table nor a part of a huge leaf.
    let new = leaf(0x8000, Perm::RWX);
    assert_eq!(
        pt.map_new(&mut m, Gpa(g), Level::L1, &new),
        Err(MapError::Present)
    );
    assert_eq!(
        pt.map_new(&mut m, Gpa(g & !0x1f_ffff), Level::L2, &leaf(0, Perm::RWX)),
        Err(MapError::Present)
    );
    assert_eq!(pt.map_new(&mut m, Gpa(g + 0x1000), Level::L1, &new), Ok(()));
    assert_eq!(pt.lookup(&m, Gpa(g + 0x1000)).unwrap().hpa, Hpa(0x8000));
    let huge = (g & !0x1f_ffff) + 0x20_0000;
    assert_eq!(
        pt.map_new(&mut m, Gpa(huge), Level::L2, &leaf(0x20_0000, Perm::RWX)),
        Ok(())
    );
    assert_eq!(
        pt.map_new(&mut m, Gpa(huge + 0x1000), Level::L1, &new),
        Err(MapError::Present)
    );
    assert_eq!(
        pt.map_new(&mut m, Gpa(g + 0x1010), Level::L1, &new),
        Err(MapError::Misaligned)
    );
    assert!(pt.unmap(&mut m, range(g + 0x1000, 0x1000)));
    assert!(pt.unmap(&mut m, range(huge, 0x20_0000)));
    m.removed.clear();

    // Fewer rights of the same page: nothing changes. More: upgrade. Other rights: replaced.
    assert_eq!(
        pt.map(&mut m, Gpa(g), Level::L1, &leaf(0x5000, Perm::R)),
        Ok(Change::Spurious)
    );
    assert_eq!(
        pt.map(&mut m, Gpa(g), Level::L1, &leaf(0x5000, Perm::RWX)),
        Ok(Change::Upgraded)
    );
    assert!(pt.write_protect(&mut m, range(g, 0x1000)));
    assert!(!pt.write_protect(&mut m, range(g, 0x1000)));
    assert_eq!(pt.lookup(&m, Gpa(g)).unwrap().perm, Perm::RX);
    assert_eq!(
        pt.map(&mut m, Gpa(g), Level::L1, &leaf(0x5000, Perm::RW)),
        Ok(Change::Replaced)
    );
    assert_eq!(pt.lookup(&m, Gpa(g)).unwrap().perm, Perm::RW);
    assert!(m.removed.is_empty());

    // Another page or memory type.
    assert_eq!(
        pt.map(&mut m, Gpa(g), Level::L1, &leaf(0x6000, Perm::RW)),
        Ok(Change::Replaced)
    );
    assert_eq!(m.removed.len(), 1);
    assert_eq!((m.removed[0].gpa, m.removed[0].hpa), (Gpa(g), Hpa(0x5000)));
    let uc = Leaf {
        mem_type: MemType::Uc,
        ..leaf(0x6000, Perm::RW)
    };
    assert_eq!(pt.map(&mut m, Gpa(g), Level::L1, &uc), Ok(Change::Replaced));
    let raw = pt.lookup(&m, Gpa(g)).unwrap().raw;
    assert_eq!(F::mem_type(raw, Level::L1).0, MemType::Uc);

    // Errors.
    let lim = pt.limit().0;
    for (gpa, level, l, e) in [
        (
            g + 1,
            Level::L1,
            leaf(0x5000, Perm::R),
            MapError::Misaligned,
        ),
        (g, Level::L1, leaf(0x5001, Perm::R), MapError::Misaligned),
        (
            0x20_0000,
            Level::L2,
            leaf(0x5000, Perm::R),
            MapError::Misaligned,
        ),
        (0, Level::L4, leaf(0, Perm::R), MapError::Misaligned),
        (lim, Level::L1, leaf(0x5000, Perm::R), MapError::OutOfRange),
        (g, Level::L1, leaf(1 << 52, Perm::R), MapError::OutOfRange),
        (g, Level::L1, leaf(0x5000, Perm::NONE), MapError::Perm),
        (g, Level::L1, leaf(0x5000, Perm::W), MapError::Perm),
        (
            g,
            Level::L1,
            leaf(0x5000, Perm::W.union(Perm::X)),
            MapError::Perm,
        ),
    ] {
        assert_eq!(pt.map(&mut m, Gpa(gpa), level, &l), Err(e));
    }
    assert_eq!(pt.lookup(&m, Gpa(lim)), None);
    assert_eq!(pt.lookup(&m, Gpa(!0)), None);

    // The last page of the space, and an unmap beyond it.
    let last = lim - 0x1000;
    assert_eq!(
        pt.map(&mut m, Gpa(last), Level::L1, &leaf(0x7000, Perm::RWX)),
        Ok(Change::New)
    );
    check_entries(&m, pt.root(), pt.top(), &bad);
    assert!(pt.unmap(&mut m, GpaRange::between(Gpa(0), Gpa(!0)).unwrap()));
    assert_eq!(m.live(), 1);
    assert!(!pt.unmap(&mut m, GpaRange::between(Gpa(0), Gpa(!0)).unwrap()));
    pt.destroy(&mut m, true);
    m.flush();
    assert_eq!(m.held(), 0);
    assert!(PageTable::<F>::create(&mut m, 3).is_err());
}

#[test]
fn basics_all_formats() {
    for levels in [4, 5] {
        basics::<Ept>(levels, ept_bad);
        basics::<EptNoAd>(levels, ept_bad);
        basics::<Npt>(levels, npt_bad);
    }
}

fn huge<F: Format>(bad: fn(u64, Level) -> bool) {
    let mut m = Mem::<F>::new();
    let pt = PageTable::<F>::create(&mut m, 4).unwrap();
    let g = 0x8000_0000;
    let big = Leaf {
        mem_type: MemType::Wt,
        accessed: true,
        dirty: true,
        ..leaf(0x40_0000_0000, Perm::RW)
    };
    assert_eq!(pt.map(&mut m, Gpa(g), Level::L3, &big), Ok(Change::New));
    let at = pt.lookup(&m, Gpa(g + 0x1234_5678)).unwrap();
    assert_eq!((at.hpa, at.level), (Hpa(0x40_1234_5678), Level::L3));
    // A small page in the middle splits twice; all else stays as it was.
    let hole = g + 0x1234_5000;
    assert_eq!(
        pt.map(&mut m, Gpa(hole), Level::L1, &leaf(0x9000, Perm::RX)),
        Ok(Change::Replaced)
    );
    assert_eq!(m.live(), 4);
    for (off, level) in [
        (0, Level::L3),
        (0x1234_4fff, Level::L1),
        (0x1234_6000, Level::L1),
        (0x1220_0000, Level::L1),
        (0x121f_ffff, Level::L2),
        (0x1240_0000, Level::L2),
        (0x3fff_ffff, Level::L2),
    ] {
        let at = pt.lookup(&m, Gpa(g + off)).unwrap();
        assert_eq!(at.hpa, Hpa(0x40_0000_0000 + off));
        assert_eq!(at.perm, Perm::RW);
        if off != 0 {
            assert_eq!(at.level, level, "{off:#x}");
        }
        assert_eq!(F::mem_type(at.raw, at.level).0, MemType::Wt);
        assert!(F::accessed(at.raw) && F::dirty(at.raw));
    }
    assert_eq!(pt.lookup(&m, Gpa(hole)).unwrap().hpa, Hpa(0x9000));
    assert_eq!(m.removed.len(), 1);
    check_entries(&m, pt.root(), pt.top(), &bad);

    // Back to huge: the tables below go, each leaf is reported.
    m.removed.clear();
    assert_eq!(
        pt.map(&mut m, Gpa(g), Level::L3, &big),
        Ok(Change::Replaced)
    );
    assert_eq!(m.removed.len(), 511 + 512);
    assert_eq!(m.live(), 2);
    assert_eq!(pt.lookup(&m, Gpa(hole)).unwrap().hpa, Hpa(0x40_1234_5000));

    // A page out of a huge leaf takes the leaf with it.
    m.removed.clear();
    assert!(pt.unmap(&mut m, range(hole, 0x1000)));
    assert_eq!(m.removed.len(), 1);
    assert_eq!((m.removed[0].gpa, m.removed[0].level), (Gpa(g), Level::L3));
    assert_eq!(pt.lookup(&m, Gpa(g)), None);
    // Mapping smaller than what write protection left splits.
    assert_eq!(
        pt.map(&mut m, Gpa(g), Level::L2, &leaf(0x20_0000, Perm::RW)),
        Ok(Change::New)
    );
    assert!(pt.write_protect(&mut m, range(g + 0x5000, 0x1000)));
    assert_eq!(
        pt.map(
            &mut m,
            Gpa(g + 0x5000),
            Level::L1,
            &leaf(0x20_5000, Perm::RW)
        ),
        Ok(Change::Replaced)
    );
    assert_eq!(pt.lookup(&m, Gpa(g + 0x4000)).unwrap().perm, Perm::R);
    assert_eq!(pt.lookup(&m, Gpa(g + 0x5000)).unwrap().perm, Perm::RW);
    assert_eq!(pt.lookup(&m, Gpa(g + 0x5000)).unwrap().level, Level::L1);
    // A split alone, with the same page and enough rights, is to be flushed too.
    assert_eq!(
        pt.map(
            &mut m,
            Gpa(g + 0x20_0000),
            Level::L2,
            &leaf(0x40_0000, Perm::RW)
        ),
        Ok(Change::New)
    );
    let c = pt.map(
        &mut m,
        Gpa(g + 0x20_3000),
        Level::L1,
        &leaf(0x40_3000, Perm::R),
    );
    assert_eq!(c, Ok(Change::Replaced));
    pt.destroy(&mut m, false);
    m.flush();
    assert_eq!(m.held(), 0);
}

fn parts<F: Format>(bad: fn(u64, Level) -> bool) {
    let mut m = Mem::<F>::new();
    let pt = PageTable::<F>::create(&mut m, 4).unwrap();
    let g = 0x8000_0000;
    let big = leaf(0x40_0020_0000, Perm::RW);
    let all = leaf(0x40_0020_0000, Perm::RWX);
    let small = leaf(0x9000, Perm::RW);
    let whole = |m: &Mem<F>, perm: Perm| {
        for off in [0, 0x1000, 0x12_3000, 0x1f_f000] {
            let at = pt.lookup(m, Gpa(g + off + 0x10)).unwrap();
            assert_eq!(at.hpa, Hpa(0x40_0020_0010 + off));
            assert_eq!((at.level, at.perm), (Level::L1, perm));
        }
        assert_eq!(pt.lookup(m, Gpa(g - 1)), None);
        assert_eq!(pt.lookup(m, Gpa(g + 0x20_0000)), None);
    };
    assert!(!pt.has_parts(&m, Gpa(g)));
    assert_eq!(pt.map_parts(&mut m, Gpa(g), &all, true), Ok(Change::New));
    whole(&m, Perm::RWX);
    assert!(pt.has_parts(&m, Gpa(g + 0x5000)) && !pt.has_parts(&m, Gpa(g + 0x20_0000)));
    assert_eq!(m.live(), 4);
    check_entries(&m, pt.root(), pt.top(), &bad);
    // There is a table already.
    for only_new in [true, false] {
        assert_eq!(
            pt.map_parts(&mut m, Gpa(g), &all, only_new),
            Err(MapError::Present)
        );
    }
    assert!(pt.unmap(&mut m, range(g, 0x20_0000)));
    m.flush();
    // A huge leaf is there: it goes, and is reported.
    m.removed.clear();
    assert_eq!(pt.map(&mut m, Gpa(g), Level::L2, &big), Ok(Change::New));
    assert_eq!(
        pt.map_parts(&mut m, Gpa(g), &all, true),
        Err(MapError::Present)
    );
    assert_eq!(pt.lookup(&m, Gpa(g)).unwrap().level, Level::L2);
    assert_eq!(
        pt.map_parts(&mut m, Gpa(g), &all, false),
        Ok(Change::Replaced)
    );
    whole(&m, Perm::RWX);
    assert_eq!(m.removed.len(), 1);
    assert_eq!((m.removed[0].gpa, m.removed[0].level), (Gpa(g), Level::L2));
    check_entries(&m, pt.root(), pt.top(), &bad);
    // Nonsense, and no memory.
    let h = Gpa(g + 0x4000_0000);
    assert_eq!(
        pt.map_parts(&mut m, Gpa(g + 0x1000), &all, true),
        Err(MapError::Misaligned)
    );
    assert_eq!(
        pt.map_parts(&mut m, h, &small, true),
        Err(MapError::Misaligned)
    );
    for quota in 0..2 {
        m.quota = quota;
        assert!(matches!(
            pt.map_parts(&mut m, h, &all, false),
            Err(MapError::NoMemory { flush: false })
        ));
        assert_eq!(pt.lookup(&m, h), None);
    }
    m.quota = 1;
    assert_eq!(pt.map_parts(&mut m, h, &all, false), Ok(Change::New));
    // Parts of a page of 1 GiB do not exist.
    let giant = leaf(0x80_0000_0000, Perm::RW);
    m.quota = u64::MAX;
    pt.map(&mut m, Gpa(0x1_0000_0000), Level::L3, &giant)
        .unwrap();
    assert_eq!(
        pt.map_parts(&mut m, Gpa(0x1_0000_0000), &all, false),
        Err(MapError::Present)
    );
    pt.destroy(&mut m, false);
    m.flush();
    assert_eq!(m.held(), 0);
}

#[test]
fn huge_pages_in_parts() {
    parts::<Ept>(ept_bad);
    parts::<EptNoAd>(ept_bad);
    parts::<Npt>(npt_bad);
}

#[test]
fn huge_leaves() {
    huge::<Ept>(ept_bad);
    huge::<EptNoAd>(ept_bad);
    huge::<Npt>(npt_bad);
}

#[test]
fn tables_are_freed_with_the_range() {
    let mut m = Mem::<Ept>::new();
    let pt = PageTable::<Ept>::create(&mut m, 4).unwrap();
    for i in 0..512 {
        let g = 0x4000_0000 + i * 0x20_0000 + 0x3000;
        pt.map(&mut m, Gpa(g), Level::L1, &leaf(0x1000 * (i + 1), Perm::RW))
            .unwrap();
    }
    assert_eq!(m.live(), 3 + 512);
    // One page less than a whole 2 MiB: the table stays.
    pt.unmap(&mut m, range(0x4000_0000, 0x1f_f000));
    assert_eq!(m.live(), 3 + 512);
    assert_eq!(m.removed.len(), 1);
    // In bounded pieces, with new mappings between them behind the position.
    let mut cur = Cursor::new(range(0x4000_0000, 0x4000_0000));
    let mut pieces = 0;
    loop {
        let before = m.loads.get();
        let done = pt.unmap_some(&mut m, &mut cur, 1024);
        assert!(
            m.loads.get() - before < 1024 + 512 * 3 + 64,
            "a piece is not bounded"
        );
        pieces += 1;
        assert!(done || cur.take_flush());
        m.flush();
        if done {
            break;
        }
        if pieces == 3 {
            pt.map(
                &mut m,
                Gpa(0x4000_0000),
                Level::L1,
                &leaf(0x77_0000, Perm::R),
            )
            .unwrap();
        }
    }
    assert!(pieces > 100);
    // Three on the way to the new page and its own; all others are gone.
    assert_eq!(m.live(), 4);
    assert_eq!(pt.lookup(&m, Gpa(0x4000_0000)).unwrap().hpa, Hpa(0x77_0000));
    assert!(pt.unmap(&mut m, range(0, 1 << 40)));
    assert_eq!(m.live(), 1);
    // Empty tables alone make a flush necessary too.
    pt.map(&mut m, Gpa(0), Level::L1, &leaf(0x1000, Perm::R))
        .unwrap();
    assert!(pt.unmap(&mut m, range(0, 0x1000)));
    m.flush();
    assert_eq!(m.live(), 4);
    assert!(pt.unmap(&mut m, range(0, 1 << 39)));
    assert_eq!(m.live(), 1);
}

#[test]
fn aging() {
    let mut m = Mem::<Ept>::new();
    let pt = PageTable::<Ept>::create(&mut m, 4).unwrap();
    let touched = Leaf {
        accessed: true,
        ..leaf(0x1000, Perm::RW)
    };
    pt.map(&mut m, Gpa(0x1000), Level::L1, &touched).unwrap();
    pt.map(&mut m, Gpa(0x2000), Level::L1, &leaf(0x2000, Perm::RW))
        .unwrap();
    assert!(!pt.test_accessed(&mut m, range(0x2000, 0x10_0000)));
    assert!(pt.test_accessed(&mut m, range(0, 1 << 48)));
    let a = pt.age(&mut m, range(0, 1 << 48));
    assert!(a.accessed && !a.flush);
    let a = pt.age(&mut m, range(0, 1 << 48));
    assert!(!a.accessed && !a.flush);
    assert!(!pt.test_accessed(&mut m, range(0, 1 << 48)));
    assert!(pt.lookup(&m, Gpa(0x1000)).is_some());
    pt.destroy(&mut m, false);

    // Without accessed bits: the leaf goes.
    let mut m = Mem::<EptNoAd>::new();
    let pt = PageTable::<EptNoAd>::create(&mut m, 4).unwrap();
    pt.map(&mut m, Gpa(0x1000), Level::L1, &leaf(0x1000, Perm::RW))
        .unwrap();
    assert!(pt.test_accessed(&mut m, range(0x1000, 0x1000)));
    let a = pt.age(&mut m, range(0, 1 << 48));
    assert!(a.accessed && a.flush);
    assert_eq!(pt.lookup(&m, Gpa(0x1000)), None);
    assert!(m.removed[0].dirty && m.removed[0].writable);
    assert!(!pt.age(&mut m, range(0, 1 << 48)).accessed);
}

#[test]
fn dirty_harvest() {
    let mut m = Mem::<Npt>::new();
    let pt = PageTable::<Npt>::create(&mut m, 4).unwrap();
    for i in 0..20u64 {
        let l = Leaf {
            dirty: i % 3 == 0,
            ..leaf(i << 12, Perm::RW)
        };
        pt.map(&mut m, Gpa(i << 12), Level::L1, &l).unwrap();
    }
    let mut got = Vec::new();
    let mut cur = Cursor::new(range(0x1000, 0x10_0000));
    while !pt.clear_dirty_some(&mut m, &mut cur, 5, |g, l| got.push((g.0 >> 12, l))) {}
    assert!(cur.flush);
    assert_eq!(got, [3, 6, 9, 12, 15, 18].map(|i| (i, Level::L1)));
    let mut cur = Cursor::new(range(0x1000, 0x10_0000));
    assert!(pt.clear_dirty_some(&mut m, &mut cur, 5000, |_, _| panic!()));
    assert!(!cur.flush);
    assert!(Npt::dirty(pt.lookup(&m, Gpa(0)).unwrap().raw));
}

#[test]
fn bit_positions() {
    // A 2 MiB write-back leaf with ignore-PAT, accessed and dirty, as SDM 3C table 29-5 has it.
    let l = Leaf {
        ignore_pat: true,
        accessed: true,
        dirty: true,
        ..leaf(0x1234_0020_0000, Perm::RWX)
    };
    assert_eq!(
        Ept::leaf(Level::L2, &l),
        0x1234_0020_0000 | 0x3f7 | 0x80 & 0xff7
    );
    assert_eq!(Ept::leaf(Level::L1, &leaf(0x3000, Perm::R)), 0x3031);
    assert_eq!(EptNoAd::leaf(Level::L1, &leaf(0x3000, Perm::R)), 0x3131);
    assert_eq!(EptNoAd::leaf(Level::L1, &leaf(0x3000, Perm::RW)), 0x3333);
    assert_eq!(Ept::table(Hpa(0x3000)), 0x3107);
    assert_eq!(Npt::table(Hpa(0x3000)), 0x3027);
    assert_eq!(
        Npt::leaf(Level::L1, &leaf(0x3000, Perm::RW)),
        0x8000_0000_0000_3007
    );
    assert_eq!(Npt::leaf(Level::L2, &l), 0x1234_0020_0000 | 0xe7);
    let wp = Leaf {
        mem_type: MemType::Wp,
        ..leaf(0x20_0000, Perm::RX)
    };
    assert_eq!(Npt::leaf(Level::L2, &wp), 0x20_1000 | 0x80 | 8 | 5);
    assert_eq!(
        Npt::addr(Npt::leaf(Level::L2, &wp), Level::L2),
        Hpa(0x20_0000)
    );
    assert_eq!(Npt::leaf(Level::L1, &wp), 0x20_0000 | 0x80 | 8 | 5);
    for mt in [
        MemType::Uc,
        MemType::Wc,
        MemType::Wt,
        MemType::Wp,
        MemType::Wb,
    ] {
        for perm in [Perm::R, Perm::RW, Perm::RX, Perm::RWX] {
            for level in [Level::L1, Level::L2, Level::L3] {
                let l = Leaf {
                    mem_type: mt,
                    ..leaf(0x40_4000_0000, perm)
                };
                for (e, back, p) in [
                    (
                        Ept::leaf(level, &l),
                        Ept::mem_type as fn(u64, Level) -> _,
                        Ept::perm as fn(u64) -> _,
                    ),
                    (Npt::leaf(level, &l), Npt::mem_type, Npt::perm),
                ] {
                    assert_eq!(back(e, level), (mt, false));
                    assert_eq!(p(e), perm);
                }
                assert!(!ept_bad(Ept::leaf(level, &l), level));
                assert!(!npt_bad(Npt::leaf(level, &l), level));
            }
        }
    }
}

#[test]
fn misconfigurations() {
    let none = Caps {
        ept_vpid_cap: 0,
        max_phys_bits: 39,
    };
    let bad = |e, l| fmt_ept::misconfigured(e, l, &EPT_CAPS);
    assert!(
        !bad(0, Level::L1) && !bad(0xffff_0000, Level::L4),
        "absent entries are never malformed"
    );
    assert!(
        bad(0x1032, Level::L1) && bad(0x1036, Level::L1),
        "write without read"
    );
    assert!(
        bad(0x1034, Level::L1),
        "execute-only without the capability"
    );
    let exec = Caps {
        ept_vpid_cap: Caps::EXEC_ONLY,
        ..EPT_CAPS
    };
    assert!(!fmt_ept::misconfigured(0x1034, Level::L1, &exec));
    assert!(
        bad(1 << 46 | 0x31, Level::L1) && !bad(1 << 45 | 0x31, Level::L1),
        "MAXPHYADDR"
    );
    for t in 0..8 {
        assert_eq!(bad(0x1001 | t << 3, Level::L1), matches!(t, 2 | 3 | 7));
    }
    assert!(
        bad(0x1087, Level::L4) && bad(0x1087, Level::L5),
        "no leaf at level 4 and 5"
    );
    assert!(
        bad(0x100f, Level::L3) && bad(0x1047, Level::L2),
        "reserved bits of a pointer"
    );
    assert!(!bad(0x1107, Level::L4));
    assert!(
        bad(0x10_00b7, Level::L2) && !bad(0x20_00b7, Level::L2),
        "misaligned 2 MiB leaf"
    );
    assert!(
        bad(0x2000_00b7, Level::L3) && !bad(0x4000_00b7, Level::L3),
        "misaligned 1 GiB leaf"
    );
    assert!(fmt_ept::misconfigured(0x20_00b7, Level::L2, &none));
    assert!(fmt_ept::misconfigured(0x4000_00b7, Level::L3, &none));

    let root = Hpa(0x1234_5000);
    assert!(fmt_ept::eptp_valid(
        fmt_ept::eptp(root, Level::L4, true),
        &EPT_CAPS
    ));
    assert!(fmt_ept::eptp_valid(
        fmt_ept::eptp(root, Level::L5, false),
        &EPT_CAPS
    ));
    let e = fmt_ept::eptp(root, Level::L4, false);
    assert!(!fmt_ept::eptp_valid(e, &none));
    for wrong in [
        e & !7,
        e | 7,
        e ^ 8,
        e | 0x80,
        e | 0x800,
        e | 1 << 46,
        e | 1 << 63,
    ] {
        assert!(!fmt_ept::eptp_valid(wrong, &EPT_CAPS), "{wrong:#x}");
    }
    let no_ad = Caps {
        ept_vpid_cap: EPT_CAPS.ept_vpid_cap & !Caps::AD,
        ..EPT_CAPS
    };
    assert!(!fmt_ept::eptp_valid(
        fmt_ept::eptp(root, Level::L4, true),
        &no_ad
    ));

    assert!(fmt_npt::nested_cr3_valid(fmt_npt::nested_cr3(root), 40));
    assert!(!fmt_npt::nested_cr3_valid(1 << 40, 40) && fmt_npt::nested_cr3_valid(1 << 51, 52));
    let bad = |e, l| fmt_npt::reserved_bits(e, l, 40, false);
    assert!(!bad(!1, Level::L1) && bad(1 << 40 | 7, Level::L1) && !bad(1 << 39 | 7, Level::L1));
    assert!(bad(0x1087, Level::L4) && bad(0x4000_0087, Level::L3) && bad(0x10_2087, Level::L2));
    assert!(!bad(0x20_1087, Level::L2) && !bad(0x1007, Level::L3));
}

/// One page of the model: where it points and with which rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    hpa: u64,
    perm: Perm,
}

/// Windows of the guest-physical space that the random test plays in: two 2 MiB areas on either side of a
/// 1 GiB border, and the top of the space.
fn windows(levels: u8) -> Vec<u64> {
    let top = if levels == 4 { 1u64 << 48 } else { 1 << 57 };
    vec![0x3fe0_0000, 0x4000_0000, 0x4020_0000, top - 0x20_0000]
}

fn random<F: Format>(seed: u64, levels: u8, bad: fn(u64, Level) -> bool, failures: bool) {
    let mut rng = Rng(seed | 1);
    let mut m = Mem::<F>::new();
    let pt = PageTable::<F>::create(&mut m, levels).unwrap();
    let wins = windows(levels);
    let pages: Vec<u64> = wins
        .iter()
        .flat_map(|w| (0..512).map(move |i| w + i * 0x1000))
        .collect();
    *m.hw.borrow_mut() = Some(Hardware {
        rng: seed ^ 0x9e37_79b9_7f4a_7c15,
        top: levels,
        root: pt.root().0,
        gpas: pages.clone(),
        ..Hardware::default()
    });
    // What must be mapped if anything is: the table may hold less (it is a cache), never anything else.
    let mut model: BTreeMap<u64, Page> = BTreeMap::new();
    let mut exact = 0;
    for step in 0..160 {
        let w = wins[rng.below(4) as usize];
        let perm = [Perm::R, Perm::RW, Perm::RX, Perm::RWX][rng.below(4) as usize];
        if failures {
            m.quota = rng.below(5);
        }
        match rng.below(10) {
            0..=3 => {
                let g = w + rng.below(512) * 0x1000;
                let hpa = if rng.below(2) == 0 {
                    0x100_0000_0000 + g % (1 << 30)
                } else {
                    rng.below(1 << 20) << 12
                };
                let before = pt.lookup(&m, Gpa(g));
                match pt.map(&mut m, Gpa(g), Level::L1, &leaf(hpa, perm)) {
                    Ok(c) => {
                        let p = match before {
                            Some(b) if b.hpa.0 == hpa && b.perm.contains(perm) => b.perm,
                            _ => perm,
                        };
                        assert_eq!(c == Change::New, before.is_none());
                        model.insert(g, Page { hpa, perm: p });
                        let now = pt.lookup(&m, Gpa(g)).unwrap();
                        assert_eq!((now.hpa.0, now.perm, now.level), (hpa, p, Level::L1));
                    }
                    Err(MapError::NoMemory { .. }) if failures => {}
                    Err(e) => panic!("{e:?}"),
                }
            }
            4..=5 => {
                let hpa = if rng.below(2) == 0 {
                    0x100_0000_0000 + w % (1 << 30)
                } else {
                    rng.below(1 << 10) << 21
                };
                let before = pt.lookup(&m, Gpa(w)).filter(|b| b.level == Level::L2);
                if rng.below(3) == 0 {
                    match pt.map_parts(&mut m, Gpa(w), &leaf(hpa, perm), false) {
                        Ok(c) => {
                            assert_eq!(c == Change::New, before.is_none());
                            for i in (0..512).map(|i| i * 0x1000) {
                                model.insert(w + i, Page { hpa: hpa + i, perm });
                            }
                        }
                        Err(MapError::Present) => assert!(pt.has_parts(&m, Gpa(w))),
                        Err(MapError::NoMemory { .. }) if failures => {}
                        Err(e) => panic!("{e:?}"),
                    }
                    continue;
                }
                match pt.map(&mut m, Gpa(w), Level::L2, &leaf(hpa, perm)) {
                    Ok(_) => {
                        let p = match before {
                            Some(b) if b.hpa.0 == hpa && b.perm.contains(perm) => b.perm,
                            _ => perm,
                        };
                        for i in 0..512 {
                            model.insert(
                                w + i * 0x1000,
                                Page {
                                    hpa: hpa + i * 0x1000,
                                    perm: p,
                                },
                            );
                        }
                        assert_eq!(pt.lookup(&m, Gpa(w)).unwrap().level, Level::L2);
                    }
                    Err(MapError::NoMemory { .. }) if failures => {}
                    Err(e) => panic!("{e:?}"),
                }
            }
            6..=7 => {
                // Whatever is removed has to be in the range or in a huge leaf that meets it.
                let start = w + rng.below(512) * 0x1000;
                let len = [0x1000, 0x1_0000, 0x20_0000, 0x60_0000][rng.below(4) as usize];
                let start = if rng.below(3) == 0 { w } else { start };
                m.removed.clear();
                let mut cur = Cursor::new(range(start, len));
                let budget = [1, 7, 600, u32::MAX][rng.below(4) as usize];
                while !pt.unmap_some(&mut m, &mut cur, budget) {}
                for r in &m.removed {
                    assert!(range(r.gpa.0, r.level.size()).overlaps(&range(start, len)));
                    for i in 0..r.level.pages() {
                        let g = r.gpa.0 + i * 0x1000;
                        assert_eq!(model.remove(&g).unwrap().hpa, r.hpa.0 + i * 0x1000);
                    }
                }
                assert!(cur.flush || m.removed.is_empty());
                assert!(
                    model.range(start..start + len).next().is_none(),
                    "left behind in the range"
                );
                // Until the flush the freed tables are unreachable yet present.
                if cur.flush {
                    m.flush();
                }
            }
            8 => {
                let start = w + rng.below(512) * 0x1000;
                let len = 0x1000 << rng.below(8);
                // A huge leaf loses the right as a whole.
                let hit: Vec<_> = pages
                    .iter()
                    .filter(|&&g| {
                        pt.lookup(&m, Gpa(g)).is_some_and(|x| {
                            range(g & !x.level.offset_mask(), x.level.size())
                                .overlaps(&range(start, len))
                        })
                    })
                    .copied()
                    .collect();
                pt.write_protect(&mut m, range(start, len));
                for g in hit {
                    let p = model.get_mut(&g).unwrap();
                    p.perm = p.perm.without(Perm::W);
                }
            }
            _ => {
                if F::HAS_AD {
                    // A processor's own write may follow at once, so only what is certain is asked.
                    pt.age(&mut m, range(w, 0x20_0000));
                } else {
                    pt.test_accessed(&mut m, range(w, 0x20_0000));
                }
            }
        }
        if step % 4 != 0 && step > 16 {
            m.flush();
            continue;
        }
        // The table says exactly what the model says.
        let hw = m.hw.take();
        for &g in &pages {
            let got = pt.lookup(&m, Gpa(g + 0x10)).map(|x| Page {
                hpa: x.hpa.0 - 0x10,
                perm: x.perm,
            });
            assert_eq!(got, model.get(&g).copied(), "at {g:#x}");
            exact += got.is_some() as u32;
        }
        // No table leaked, none linked twice, all entries well-formed.
        assert_eq!(check_entries(&m, pt.root(), pt.top(), &bad), m.live());
        // Each page that the guest wrote is still known as dirty, here or by a report.
        for &(g, hpa) in &hw.as_ref().unwrap().written {
            let x = pt
                .lookup(&m, Gpa(g))
                .expect("a dirty page vanished unreported");
            assert_eq!(x.hpa.0, hpa, "a dirty page was replaced unreported");
            assert!(F::dirty(x.raw), "dirty bit lost at {g:#x}");
        }
        *m.hw.borrow_mut() = hw;
        m.flush();
    }
    assert!(exact > 1000, "the test has to have mapped something");
    m.hw.take();
    pt.destroy(&mut m, rng.below(2) == 0);
    m.flush();
    assert_eq!(m.held(), 0, "tables leaked");
}

#[test]
fn random_against_model() {
    for seed in 1..=5 {
        for failures in [false, true] {
            random::<Ept>(seed * 7919, 4, ept_bad, failures);
            random::<Npt>(seed * 104_729, 5, npt_bad, failures);
            random::<EptNoAd>(seed * 1_299_709, 4, ept_bad, failures);
        }
    }
}

#[test]
fn allocation_failure_at_every_point() {
    // From each of three starting states, fail the n-th allocation of one map, then retry.
    for start in 0..3 {
        for quota in 0..5 {
            let mut m = Mem::<Ept>::new();
            let pt = PageTable::<Ept>::create(&mut m, 5).unwrap();
            if start == 1 {
                pt.map(&mut m, Gpa(0), Level::L3, &leaf(0x4000_0000, Perm::RW))
                    .unwrap();
            }
            if start == 2 {
                pt.map(
                    &mut m,
                    Gpa(0x20_0000),
                    Level::L2,
                    &leaf(0x4020_0000, Perm::RW),
                )
                .unwrap();
            }
            m.quota = quota;
            let g = Gpa(0x20_3000);
            let r = pt.map(&mut m, g, Level::L1, &leaf(0x8000, Perm::RW));
            let need = [4, 2, 1][start];
            assert_eq!(r.is_ok(), quota >= need);
            if let Err(e) = r {
                // The split of 1 GiB went through before the one of 2 MiB failed.
                assert_eq!(
                    e,
                    MapError::NoMemory {
                        flush: start == 1 && quota == 1
                    }
                );
                let old = pt.lookup(&m, g).map(|x| x.hpa.0);
                assert_eq!(old, [None, Some(0x4020_3000), Some(0x4020_3000)][start]);
                m.quota = u64::MAX;
                pt.map(&mut m, g, Level::L1, &leaf(0x8000, Perm::RW))
                    .unwrap();
            }
            assert_eq!(pt.lookup(&m, g).unwrap().hpa, Hpa(0x8000));
            assert_eq!(check_entries(&m, pt.root(), pt.top(), &ept_bad), m.live());
            pt.destroy(&mut m, false);
            m.flush();
            assert!(m.held() == 0);
        }
    }
}

#[test]
fn destroy_in_pieces() {
    let mut m = Mem::<Npt>::new();
    let pt = PageTable::<Npt>::create(&mut m, 5).unwrap();
    for i in 0..300u64 {
        let g = (i % 3) << 50 | (i % 7) << 40 | i << 21;
        pt.map(&mut m, Gpa(g), Level::L1, &leaf(0x1000 * (i + 1), Perm::RW))
            .unwrap();
    }
    let all = m.live();
    assert!(all > 320);
    let mut cur = Cursor::new(pt.all());
    loop {
        let (before, loads) = (m.live(), m.loads.get());
        let done = pt.destroy_some(&mut m, &mut cur, 8 * 512);
        assert!(before - m.live() <= 16, "tables freed by one piece");
        assert!(m.loads.get() - loads < 4 * 8 * 512);
        m.flush();
        if done {
            break;
        }
    }
    assert_eq!(m.held(), 0);
    assert!(m.removed.is_empty());
    assert!(m.loads.get() < 100_000, "tables of leaves need not be read");
}
