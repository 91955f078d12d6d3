// SPDX-License-Identifier: GPL-2.0
//! The walker takes huge leaves apart ahead of writes, and tables away in whose place a leaf could be.

use rvmm_logic::mem::addr::{Gpa, GpaRange, Hpa, Level};
use rvmm_logic::mem::format::{Format, Leaf, MemType, Perm};
use rvmm_logic::mem::walk::{Allow, Change, Cursor, PageTable};
use rvmm_logic::null::{self, Stage2};
use rvmm_logic::tables::{ept_malformed, npt_malformed, Mem};
use rvmm_logic::x86::paging::fmt_ept::{Ept, EptNoAd};
use rvmm_logic::x86::paging::fmt_npt::Npt;

type Table<F> = PageTable<F, Mem<F>>;

const G: u64 = 0x8000_0000;
const H: u64 = 0x40_0000_0000;
const MIB_2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

fn leaf(hpa: u64, perm: Perm, accessed: bool, dirty: bool) -> Leaf {
    Leaf {
        hpa: Hpa(hpa),
        perm,
        mem_type: MemType::Ram,
        accessed,
        dirty,
    }
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

/// A tree with one leaf.
fn tree<F: Format>(levels: u8, level: Level, leaf: &Leaf) -> (Mem<F>, Table<F>) {
    let mut m = Mem::<F>::new();
    let pt = m.create(levels).unwrap();
    let mapped = pt.map(&mut m, Gpa(G), level, leaf, Allow::New);
    assert_eq!(mapped, Ok(Change::New));
    (m, pt)
}

/// Splits `range`; what has to be flushed, and whether it got to the end.
fn split<F: Format>(m: &mut Mem<F>, pt: &Table<F>, range: GpaRange) -> (bool, bool) {
    let mut cur = Cursor::new(range);
    let done = pt.split_some(m, &mut cur, u32::MAX, false);
    (cur.flush, done)
}

/// The page at `off` lies where it has to, in a leaf of that level and with these rights and marks.
fn expect<F: Format>(
    m: &Mem<F>,
    pt: &Table<F>,
    off: u64,
    level: Level,
    perm: Perm,
    ad: (bool, bool),
) {
    let at = m.lookup(pt, Gpa(G + off)).unwrap();
    assert_eq!(at.hpa, Hpa(H + off), "{off:#x}");
    assert_eq!((at.level, at.perm), (level, perm), "{off:#x}");
    if F::HAS_AD {
        assert_eq!((F::accessed(at.raw), F::dirty(at.raw)), ad, "{off:#x}");
    }
}

/// A test of one format: levels, and which entries are malformed.
type Test = fn(u8, fn(u64, Level) -> bool);

fn all_formats(test: [Test; 4]) {
    test[0](4, ept_malformed);
    test[1](4, ept_malformed);
    test[2](5, npt_malformed);
    test[3](3, null::malformed);
}

/// A huge leaf in the range: parts without the right to write, with the marks of the whole.
fn whole<F: Format>(levels: u8, bad: fn(u64, Level) -> bool) {
    for ad in [(false, false), (true, false), (true, true)] {
        let (mut m, pt) = tree::<F>(levels, Level::L2, &leaf(H, Perm::RWX, ad.0, ad.1));
        let live = m.live();
        assert_eq!(split(&mut m, &pt, range(G, MIB_2)), (true, true));
        assert_eq!(m.live(), live + 1);
        for off in [0, 0x1000, 0x12_3000, 0x1f_f000] {
            expect(&m, &pt, off, Level::L1, Perm::RX, ad);
        }
        assert!(m.removed.is_empty());
        m.check(&pt, &bad);
        // Nothing is left to do.
        assert_eq!(split(&mut m, &pt, range(G, MIB_2)), (false, true));
        // The write that comes then only adds the right.
        let part = leaf(H + 0x5000, Perm::RWX, true, true);
        let more = pt.map(&mut m, Gpa(G + 0x5000), Level::L1, &part, Allow::More);
        assert_eq!(more, Ok(Change::Upgraded));
        expect(&m, &pt, 0x5000, Level::L1, Perm::RWX, (true, true));
        assert_eq!(split(&mut m, &pt, range(G + 0x4000, 0x2000)), (true, true));
        expect(&m, &pt, 0x5000, Level::L1, Perm::RX, (true, true));
        expect(&m, &pt, 0x6000, Level::L1, Perm::RX, ad);
        m.destroy(pt, true);
    }
}

#[test]
fn whole_leaves() {
    all_formats([
        whole::<Ept>,
        whole::<EptNoAd>,
        whole::<Npt>,
        whole::<Stage2>,
    ]);
}

/// A huge leaf of which a part is in the range: the others stay writable.
fn partly<F: Format>(levels: u8, bad: fn(u64, Level) -> bool) {
    let ad = (true, true);
    let (mut m, pt) = tree::<F>(levels, Level::L2, &leaf(H, Perm::RW, true, true));
    assert_eq!(
        split(&mut m, &pt, range(G + 0x4_0000, 0x4_0000)),
        (true, true)
    );
    for (off, perm) in [
        (0, Perm::RW),
        (0x3_f000, Perm::RW),
        (0x4_0000, Perm::R),
        (0x7_f000, Perm::R),
        (0x8_0000, Perm::RW),
        (0x1f_f000, Perm::RW),
    ] {
        expect(&m, &pt, off, Level::L1, perm, ad);
    }
    m.check(&pt, &bad);
    m.destroy(pt, true);
    // One that is protected already stays, a whole one is taken apart without a flush.
    let (mut m, pt) = tree::<F>(levels, Level::L2, &leaf(H, Perm::R, true, true));
    assert_eq!(split(&mut m, &pt, range(G + 0x1000, 0x1000)), (false, true));
    expect(&m, &pt, 0x1000, Level::L2, Perm::R, ad);
    assert_eq!(split(&mut m, &pt, range(G, MIB_2)), (false, true));
    expect(&m, &pt, 0x1000, Level::L1, Perm::R, ad);
    m.destroy(pt, true);
}

#[test]
fn leaves_partly_in_the_range() {
    all_formats([
        partly::<Ept>,
        partly::<EptNoAd>,
        partly::<Npt>,
        partly::<Stage2>,
    ]);
}

/// 1 GiB, with tables for a few areas at a time, and with none for the rest.
fn giant<F: Format>(levels: u8, bad: fn(u64, Level) -> bool) {
    let ad = (true, false);
    let (mut m, pt) = tree::<F>(levels, Level::L3, &leaf(H, Perm::RWX, true, false));
    // A part of it is protected with the whole.
    assert!(m.write_protect(&pt, range(G + 0x5000, 0x1000)));
    expect(&m, &pt, 0x3000_0000, Level::L3, Perm::RX, ad);
    let all = leaf(H, Perm::RWX, true, false);
    assert_eq!(
        pt.map(&mut m, Gpa(G), Level::L3, &all, Allow::More),
        Ok(Change::Upgraded)
    );
    // A small range takes apart what leads to it.
    assert_eq!(split(&mut m, &pt, range(G + MIB_2, 0x1000)), (true, true));
    expect(&m, &pt, 0, Level::L2, Perm::RWX, ad);
    expect(&m, &pt, MIB_2, Level::L1, Perm::RX, ad);
    expect(&m, &pt, MIB_2 + 0x1000, Level::L1, Perm::RWX, ad);
    m.check(&pt, &bad);
    let mut cur = Cursor::new(range(G, GIB));
    let mut pieces = 0;
    loop {
        m.quota = 8;
        if pieces == 10 || pt.split_some(&mut m, &mut cur, 600, false) {
            break;
        }
        pieces += 1;
    }
    assert_eq!(pieces, 10);
    while !pt.write_protect_some(&mut m, &mut cur, 600) {}
    assert!(cur.flush);
    let levels_found = |level| {
        let count = |n: &u64| m.lookup(&pt, Gpa(G + n * MIB_2)).unwrap().level == level;
        (0..512u64).filter(count).count()
    };
    let small = levels_found(Level::L1);
    assert!((9..=81).contains(&small) && levels_found(Level::L2) == 512 - small);
    for n in 0..512u64 {
        let at = m.lookup(&pt, Gpa(G + n * MIB_2 + 0x7000)).unwrap();
        assert_eq!((at.hpa.0, at.perm), (H + n * MIB_2 + 0x7000, Perm::RX));
        assert!(!F::HAS_AD || F::accessed(at.raw));
    }
    m.check(&pt, &bad);
    m.destroy(pt, true);
}

#[test]
fn leaves_of_one_gibibyte() {
    all_formats([
        giant::<Ept>,
        giant::<EptNoAd>,
        giant::<Npt>,
        giant::<Stage2>,
    ]);
}

/// Ageing looks at parts and wholes alike, and a split makes no page older or younger.
#[test]
fn accessed_bits() {
    let (mut m, pt) = tree::<Npt>(4, Level::L3, &leaf(H, Perm::RW, true, false));
    // A part of a leaf of 1 GiB stands for the whole.
    assert!(pt.test_accessed(&mut m, range(G + 0x1234_5000, 0x1000)));
    assert_eq!(m.age(&pt, range(G + 0x1234_5000, 0x1000)), (true, false));
    assert!(!pt.test_accessed(&mut m, range(G, GIB)));
    split(&mut m, &pt, range(G, 2 * MIB_2));
    assert!(!pt.test_accessed(&mut m, range(G, GIB)));
    m.destroy(pt, true);
    let (mut m, pt) = tree::<Npt>(4, Level::L2, &leaf(H, Perm::RW, true, false));
    split(&mut m, &pt, range(G, MIB_2));
    assert_eq!(m.age(&pt, range(G + 0x5000, 0x1000)), (true, false));
    assert_eq!(m.age(&pt, range(G + 0x5000, 0x1000)), (false, false));
    assert!(pt.test_accessed(&mut m, range(G + 0x6000, 0x1000)));
    // One leaf again, by the access that it is made for.
    let all = leaf(H, Perm::RW, true, true);
    assert_eq!(
        pt.map(&mut m, Gpa(G), Level::L2, &all, Allow::Any),
        Ok(Change::Replaced)
    );
    assert!(pt.test_accessed(&mut m, range(G + 0x5000, 0x1000)));
    m.flush_all();
    m.destroy(pt, true);
}

fn join<F: Format>(
    m: &mut Mem<F>,
    pt: &Table<F>,
    range: GpaRange,
    mut whole: impl FnMut(Gpa, Level) -> bool,
) -> bool {
    let mut cur = Cursor::new(range);
    while !pt.join_some(m, &mut cur, 600, &mut whole) {}
    cur.flush
}

/// Tables go where a leaf could be, and nothing else.
fn joined<F: Format>(levels: u8, bad: fn(u64, Level) -> bool) {
    let (mut m, pt) = tree::<F>(levels, Level::L3, &leaf(H, Perm::RW, true, true));
    split(&mut m, &pt, range(G + MIB_2, 4 * MIB_2));
    m.flush_all();
    let live = m.live();
    assert!(!join(&mut m, &pt, range(G, GIB), |_, _| false));
    // An area that is in the range in part is none of it.
    let part = range(G + MIB_2 + 0x1000, MIB_2);
    assert!(!join(&mut m, &pt, part, |_, _| true));
    assert_eq!((m.live(), m.removed.len()), (live, 0));
    let two = |gpa: Gpa, level| level == Level::L2 && gpa.0 <= G + 2 * MIB_2;
    assert!(join(&mut m, &pt, range(G, GIB), two));
    assert_eq!((m.live(), m.removed.len()), (live - 2, 1024));
    m.flush_all();
    for (n, level) in [
        (0, Some(Level::L2)),
        (1, None),
        (2, None),
        (3, Some(Level::L1)),
        (4, Some(Level::L1)),
        (5, Some(Level::L2)),
    ] {
        let at = m.lookup(&pt, Gpa(G + n * MIB_2));
        assert_eq!(at.map(|a| a.level), level, "{n}");
    }
    m.check(&pt, &bad);
    let huge = leaf(H + MIB_2, Perm::RW, true, true);
    assert_eq!(pt.map_new(&mut m, Gpa(G + MIB_2), Level::L2, &huge), Ok(()));
    // The whole of it.
    assert!(join(&mut m, &pt, range(G, GIB), |_, level| level == Level::L3));
    m.flush_all();
    assert_eq!(m.lookup(&pt, Gpa(G + 3 * MIB_2)), None);
    let giant = leaf(H, Perm::RW, true, true);
    assert_eq!(pt.map_new(&mut m, Gpa(G), Level::L3, &giant), Ok(()));
    expect(&m, &pt, 3 * MIB_2, Level::L3, Perm::RW, (true, true));
    m.check(&pt, &bad);
    m.destroy(pt, true);
}

#[test]
fn tables_give_way() {
    all_formats([
        joined::<Ept>,
        joined::<EptNoAd>,
        joined::<Npt>,
        joined::<Stage2>,
    ]);
}
