// SPDX-License-Identifier: GPL-2.0
//! The nested page-table walker and its formats against a plain model, with a processor that sets accessed and
//! dirty bits in between and with allocation failures at every point.

use std::collections::BTreeMap;

use rvmm_logic::mem::addr::{Gpa, GpaRange, Hpa, Level};
use rvmm_logic::mem::format::{Format, Leaf, MemType, Perm};
use rvmm_logic::mem::walk::{Allow, Change, Cursor, MapError, PageTable};
use rvmm_logic::null::{self, Stage2};
use rvmm_logic::tables::{ept_malformed, npt_malformed, Hardware, Mem, Rng};
use rvmm_logic::x86::paging::fmt_ept::{Ept, EptNoAd};
use rvmm_logic::x86::paging::fmt_npt::Npt;

fn leaf(hpa: u64, perm: Perm) -> Leaf {
    Leaf {
        hpa: Hpa(hpa),
        perm,
        mem_type: MemType::Ram,
        accessed: false,
        dirty: false,
    }
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

fn basics<F: Format>(levels: u8, bad: fn(u64, Level) -> bool) {
    let mut m = Mem::<F>::new();
    let pt: PageTable<F, _> = m.create(levels).unwrap();
    let g = 0x1_4020_3000;
    assert_eq!(m.lookup(&pt, Gpa(g)), None);
    assert_eq!(
        pt.map(
            &mut m,
            Gpa(g),
            Level::L1,
            &leaf(0x5000, Perm::RX),
            Allow::Any
        ),
        Ok(Change::New)
    );
    assert_eq!(m.live(), levels as usize - 1);
    let found = m.lookup(&pt, Gpa(g + 0x123)).unwrap();
    assert_eq!(
        (found.hpa, found.level, found.perm),
        (Hpa(0x5123), Level::L1, Perm::RX)
    );
    assert_eq!(m.lookup(&pt, Gpa(g + 0x1000)), None);

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
    assert_eq!(m.lookup(&pt, Gpa(g + 0x1000)).unwrap().hpa, Hpa(0x8000));
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
    assert!(m.unmap(&pt, range(g + 0x1000, 0x1000)));
    assert!(m.unmap(&pt, range(huge, 0x20_0000)));
    m.removed.clear();

    // Fewer rights of the same page: nothing changes. More: upgrade. Other rights: replaced.
    assert_eq!(
        pt.map(
            &mut m,
            Gpa(g),
            Level::L1,
            &leaf(0x5000, Perm::R),
            Allow::Any
        ),
        Ok(Change::Spurious)
    );
    assert_eq!(
        pt.map(
            &mut m,
            Gpa(g),
            Level::L1,
            &leaf(0x5000, Perm::RWX),
            Allow::Any
        ),
        Ok(Change::Upgraded)
    );
    assert!(m.write_protect(&pt, range(g, 0x1000)));
    assert!(!m.write_protect(&pt, range(g, 0x1000)));
    assert_eq!(m.lookup(&pt, Gpa(g)).unwrap().perm, Perm::RX);
    assert_eq!(
        pt.map(
            &mut m,
            Gpa(g),
            Level::L1,
            &leaf(0x5000, Perm::RW),
            Allow::Any
        ),
        Ok(Change::Replaced)
    );
    assert_eq!(m.lookup(&pt, Gpa(g)).unwrap().perm, Perm::RW);
    assert!(m.removed.is_empty());

    // Another page or memory type.
    assert_eq!(
        pt.map(
            &mut m,
            Gpa(g),
            Level::L1,
            &leaf(0x6000, Perm::RW),
            Allow::Any
        ),
        Ok(Change::Replaced)
    );
    assert_eq!(m.removed.len(), 1);
    assert_eq!((m.removed[0].gpa, m.removed[0].hpa), (Gpa(g), Hpa(0x5000)));
    let uc = Leaf {
        mem_type: MemType::Device,
        ..leaf(0x6000, Perm::RW)
    };
    assert_eq!(
        pt.map(&mut m, Gpa(g), Level::L1, &uc, Allow::Any),
        Ok(Change::Replaced)
    );
    let raw = m.lookup(&pt, Gpa(g)).unwrap().raw;
    assert_eq!(F::mem_type(raw, Level::L1), MemType::Device);

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
        (
            g,
            Level::L1,
            leaf(0x5000, Perm::from_bits(0)),
            MapError::Perm,
        ),
        (g, Level::L1, leaf(0x5000, Perm::W), MapError::Perm),
        (
            g,
            Level::L1,
            leaf(0x5000, Perm::from_bits(6)),
            MapError::Perm,
        ),
    ] {
        assert_eq!(pt.map(&mut m, Gpa(gpa), level, &l, Allow::Any), Err(e));
    }
    assert_eq!(m.lookup(&pt, Gpa(lim)), None);
    assert_eq!(m.lookup(&pt, Gpa(!0)), None);

    // The last page of the space, and an unmap beyond it.
    let last = lim - 0x1000;
    assert_eq!(
        pt.map(
            &mut m,
            Gpa(last),
            Level::L1,
            &leaf(0x7000, Perm::RWX),
            Allow::Any
        ),
        Ok(Change::New)
    );
    m.check(&pt, &bad);
    assert!(m.unmap(&pt, GpaRange::between(Gpa(0), Gpa(!0)).unwrap()));
    assert_eq!(m.live(), 0);
    assert!(!m.unmap(&pt, GpaRange::between(Gpa(0), Gpa(!0)).unwrap()));
    m.destroy(pt, true);
    for levels in [F::LEVELS.0 - 1, F::LEVELS.1 + 1] {
        assert!(m.create(levels).is_err());
    }
}

#[test]
fn basics_all_formats() {
    for levels in [4, 5] {
        basics::<Ept>(levels, ept_malformed);
        basics::<EptNoAd>(levels, ept_malformed);
        basics::<Npt>(levels, npt_malformed);
    }
    basics::<Stage2>(3, null::malformed);
}

fn huge<F: Format>(levels: u8, bad: fn(u64, Level) -> bool) {
    let mut m = Mem::<F>::new();
    let pt: PageTable<F, _> = m.create(levels).unwrap();
    let g = 0x8000_0000;
    let big = Leaf {
        mem_type: MemType::Device,
        accessed: true,
        dirty: true,
        ..leaf(0x40_0000_0000, Perm::RW)
    };
    assert_eq!(
        pt.map(&mut m, Gpa(g), Level::L3, &big, Allow::Any),
        Ok(Change::New)
    );
    let at = m.lookup(&pt, Gpa(g + 0x1234_5678)).unwrap();
    assert_eq!((at.hpa, at.level), (Hpa(0x40_1234_5678), Level::L3));
    // A small page in the middle splits twice; all else stays as it was.
    let hole = g + 0x1234_5000;
    assert_eq!(
        pt.map(
            &mut m,
            Gpa(hole),
            Level::L1,
            &leaf(0x9000, Perm::RX),
            Allow::Any
        ),
        Ok(Change::Replaced)
    );
    assert_eq!(m.live(), levels as usize - 1);
    for (off, level) in [
        (0, Level::L3),
        (0x1234_4fff, Level::L1),
        (0x1234_6000, Level::L1),
        (0x1220_0000, Level::L1),
        (0x121f_ffff, Level::L2),
        (0x1240_0000, Level::L2),
        (0x3fff_ffff, Level::L2),
    ] {
        let at = m.lookup(&pt, Gpa(g + off)).unwrap();
        assert_eq!(at.hpa, Hpa(0x40_0000_0000 + off));
        assert_eq!(at.perm, Perm::RW);
        if off != 0 {
            assert_eq!(at.level, level, "{off:#x}");
        }
        assert_eq!(F::mem_type(at.raw, at.level), MemType::Device);
        assert!(F::accessed(at.raw) && F::dirty(at.raw));
    }
    assert_eq!(m.lookup(&pt, Gpa(hole)).unwrap().hpa, Hpa(0x9000));
    assert_eq!(m.removed.len(), 1);
    m.check(&pt, &bad);

    // Back to huge: the tables below go, each leaf is reported.
    m.removed.clear();
    assert_eq!(
        pt.map(&mut m, Gpa(g), Level::L3, &big, Allow::Any),
        Ok(Change::Replaced)
    );
    assert_eq!(m.removed.len(), 511 + 512);
    assert_eq!(m.live(), levels as usize - 3);
    assert_eq!(m.lookup(&pt, Gpa(hole)).unwrap().hpa, Hpa(0x40_1234_5000));

    // A page out of a huge leaf takes the leaf with it.
    m.removed.clear();
    assert!(m.unmap(&pt, range(hole, 0x1000)));
    m.flush_all();
    assert_eq!(m.removed.len(), 1);
    assert_eq!((m.removed[0].gpa, m.removed[0].level), (Gpa(g), Level::L3));
    assert_eq!(m.lookup(&pt, Gpa(g)), None);
    // Mapping smaller than what write protection left splits.
    assert_eq!(
        pt.map(
            &mut m,
            Gpa(g),
            Level::L2,
            &leaf(0x20_0000, Perm::RW),
            Allow::Any
        ),
        Ok(Change::New)
    );
    assert!(m.write_protect(&pt, range(g + 0x5000, 0x1000)));
    assert_eq!(
        pt.map(
            &mut m,
            Gpa(g + 0x5000),
            Level::L1,
            &leaf(0x20_5000, Perm::RW),
            Allow::Any
        ),
        Ok(Change::Upgraded)
    );
    assert_eq!(m.lookup(&pt, Gpa(g + 0x4000)).unwrap().perm, Perm::R);
    assert_eq!(m.lookup(&pt, Gpa(g + 0x5000)).unwrap().perm, Perm::RW);
    assert_eq!(m.lookup(&pt, Gpa(g + 0x5000)).unwrap().level, Level::L1);
    // A split alone, with the same page and enough rights, needs no flush.
    assert_eq!(
        pt.map(
            &mut m,
            Gpa(g + 0x20_0000),
            Level::L2,
            &leaf(0x40_0000, Perm::RW),
            Allow::Any
        ),
        Ok(Change::New)
    );
    let c = pt.map(
        &mut m,
        Gpa(g + 0x20_3000),
        Level::L1,
        &leaf(0x40_3000, Perm::R),
        Allow::Any,
    );
    assert_eq!(c, Ok(Change::Spurious));
    m.destroy(pt, false);
}

fn parts<F: Format>(levels: u8, bad: fn(u64, Level) -> bool) {
    let mut m = Mem::<F>::new();
    let pt: PageTable<F, _> = m.create(levels).unwrap();
    let g = 0x8000_0000;
    let big = leaf(0x40_0020_0000, Perm::RW);
    let all = leaf(0x40_0020_0000, Perm::RWX);
    let small = leaf(0x9000, Perm::RW);
    let whole = |m: &Mem<F>, pt: &PageTable<F, Mem<F>>, perm: Perm| {
        for off in [0, 0x1000, 0x12_3000, 0x1f_f000] {
            let at = m.lookup(pt, Gpa(g + off + 0x10)).unwrap();
            assert_eq!(at.hpa, Hpa(0x40_0020_0010 + off));
            assert_eq!((at.level, at.perm), (Level::L1, perm));
        }
        assert_eq!(m.lookup(pt, Gpa(g - 1)), None);
        assert_eq!(m.lookup(pt, Gpa(g + 0x20_0000)), None);
    };
    assert!(!pt.has_parts(&m, Gpa(g), Level::L2));
    assert_eq!(
        pt.map_parts(&mut m, Gpa(g), &all, Allow::New),
        Ok(Change::New)
    );
    whole(&m, &pt, Perm::RWX);
    assert!(
        pt.has_parts(&m, Gpa(g + 0x5000), Level::L2)
            && !pt.has_parts(&m, Gpa(g + 0x20_0000), Level::L2)
    );
    assert_eq!(m.live(), levels as usize - 1);
    m.check(&pt, &bad);
    // Parts are not mapped where there is a table already.
    for allow in [Allow::New, Allow::More, Allow::Any] {
        assert_eq!(
            pt.map_parts(&mut m, Gpa(g), &all, allow),
            Err(MapError::Present)
        );
    }
    assert!(m.unmap(&pt, range(g, 0x20_0000)));
    m.flush_all();
    // A huge leaf is there: it goes, and is reported.
    m.removed.clear();
    assert_eq!(
        pt.map(&mut m, Gpa(g), Level::L2, &big, Allow::Any),
        Ok(Change::New)
    );
    assert_eq!(
        pt.map_parts(&mut m, Gpa(g), &all, Allow::New),
        Err(MapError::Present)
    );
    assert_eq!(m.lookup(&pt, Gpa(g)).unwrap().level, Level::L2);
    assert_eq!(
        pt.map_parts(&mut m, Gpa(g), &all, Allow::Any),
        Ok(if F::BREAK_FIRST {
            Change::Replaced
        } else {
            Change::Upgraded
        })
    );
    whole(&m, &pt, Perm::RWX);
    assert_eq!(m.removed.len(), 1);
    assert_eq!((m.removed[0].gpa, m.removed[0].level), (Gpa(g), Level::L2));
    m.check(&pt, &bad);
    // Nonsense, and no memory.
    let h = Gpa(g + 0x4000_0000);
    assert_eq!(
        pt.map_parts(&mut m, Gpa(g + 0x1000), &all, Allow::New),
        Err(MapError::Misaligned)
    );
    assert_eq!(
        pt.map_parts(&mut m, h, &small, Allow::New),
        Err(MapError::Misaligned)
    );
    for quota in 0..2 {
        m.quota = quota;
        assert!(matches!(
            pt.map_parts(&mut m, h, &all, Allow::Any),
            Err(MapError::NoMemory)
        ));
        assert_eq!(m.lookup(&pt, h), None);
    }
    m.quota = 1;
    assert_eq!(pt.map_parts(&mut m, h, &all, Allow::Any), Ok(Change::New));
    // A leaf of 1 GiB gives way to those of 2 MiB around the parts.
    let giant = leaf(0x40_0000_0000, Perm::RW);
    let (base, at) = (0x1_0000_0000, 0x1_0020_0000);
    m.quota = u64::MAX;
    pt.map(&mut m, Gpa(base), Level::L3, &giant, Allow::Any)
        .unwrap();
    assert_eq!(
        pt.map_parts(&mut m, Gpa(at), &all, Allow::New),
        Err(MapError::Present)
    );
    let (allow, change) = if F::BREAK_FIRST {
        (Allow::Any, Change::Replaced)
    } else {
        (Allow::More, Change::Upgraded)
    };
    assert_eq!(pt.map_parts(&mut m, Gpa(at), &all, allow), Ok(change));
    for (off, level, perm) in [
        (0, Level::L2, Perm::RW),
        (0x20_0000, Level::L1, Perm::RWX),
        (0x3f_f000, Level::L1, Perm::RWX),
        (0x40_0000, Level::L2, Perm::RW),
    ] {
        let found = m.lookup(&pt, Gpa(base + off)).unwrap();
        assert_eq!((found.level, found.perm), (level, perm));
        assert_eq!(found.hpa, Hpa(0x40_0000_0000 + off));
    }
    assert!(pt.has_parts(&m, Gpa(base), Level::L3) && !pt.has_parts(&m, Gpa(base), Level::L2));
    assert!(pt.has_parts(&m, Gpa(at), Level::L2));
    m.check(&pt, &bad);
    m.destroy(pt, false);
}

#[test]
fn huge_pages_in_parts() {
    parts::<Ept>(4, ept_malformed);
    parts::<EptNoAd>(4, ept_malformed);
    parts::<Npt>(4, npt_malformed);
    parts::<Stage2>(3, null::malformed);
}

#[test]
fn huge_leaves() {
    huge::<Ept>(4, ept_malformed);
    huge::<EptNoAd>(4, ept_malformed);
    huge::<Npt>(4, npt_malformed);
    huge::<Stage2>(3, null::malformed);
}

#[test]
fn tables_are_freed_with_the_range() {
    let mut m = Mem::<Ept>::new();
    let pt: PageTable<Ept, _> = m.create(4).unwrap();
    for i in 0..512 {
        let g = 0x4000_0000 + i * 0x20_0000 + 0x3000;
        pt.map(
            &mut m,
            Gpa(g),
            Level::L1,
            &leaf(0x1000 * (i + 1), Perm::RW),
            Allow::Any,
        )
        .unwrap();
    }
    assert_eq!(m.live(), 2 + 512);
    // One page less than a whole 2 MiB: the table stays.
    m.unmap(&pt, range(0x4000_0000, 0x1f_f000));
    assert_eq!(m.live(), 2 + 512);
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
        assert!(done || std::mem::take(&mut cur.flush));
        m.flush_all();
        if done {
            break;
        }
        if pieces == 3 {
            pt.map(
                &mut m,
                Gpa(0x4000_0000),
                Level::L1,
                &leaf(0x77_0000, Perm::R),
                Allow::Any,
            )
            .unwrap();
        }
    }
    assert!(pieces > 100);
    // Three on the way to the new page and its own; all others are gone.
    assert_eq!(m.live(), 3);
    assert_eq!(m.lookup(&pt, Gpa(0x4000_0000)).unwrap().hpa, Hpa(0x77_0000));
    assert!(m.unmap(&pt, range(0, 1 << 40)));
    assert_eq!(m.live(), 0);
    // Empty tables alone make a flush necessary too.
    pt.map(
        &mut m,
        Gpa(0),
        Level::L1,
        &leaf(0x1000, Perm::R),
        Allow::Any,
    )
    .unwrap();
    assert!(m.unmap(&pt, range(0, 0x1000)));
    m.flush_all();
    assert_eq!(m.live(), 3);
    assert!(m.unmap(&pt, range(0, 1 << 39)));
    assert_eq!(m.live(), 0);
}

#[test]
fn counting() {
    let mut m = Mem::<Ept>::new();
    let pt: PageTable<Ept, _> = m.create(4).unwrap();
    let pages = [
        (0x1000, Level::L1),
        (0x2000, Level::L1),
        (0x20_0000, Level::L2),
        (0x4000_0000, Level::L3),
        (1 << 40, Level::L1),
    ];
    for (gpa, level) in pages {
        pt.map(&mut m, Gpa(gpa), level, &leaf(0, Perm::RW), Allow::Any)
            .unwrap();
    }
    // However small the pieces are.
    for budget in [1, 7, u32::MAX] {
        let mut leaves = [0; 3];
        let mut cur = Cursor::new(pt.all());
        while !pt.show_some(&mut m, &mut cur, budget, &mut |leaf| {
            leaves[leaf.level as usize - 1] += 1;
        }) {}
        assert_eq!(leaves, [3, 1, 1]);
        assert!(!cur.flush);
    }
    m.destroy(pt, false);
}

#[test]
fn aging() {
    let mut m = Mem::<Ept>::new();
    let pt: PageTable<Ept, _> = m.create(4).unwrap();
    let touched = Leaf {
        accessed: true,
        ..leaf(0x1000, Perm::RW)
    };
    pt.map(&mut m, Gpa(0x1000), Level::L1, &touched, Allow::Any)
        .unwrap();
    pt.map(
        &mut m,
        Gpa(0x2000),
        Level::L1,
        &leaf(0x2000, Perm::RW),
        Allow::Any,
    )
    .unwrap();
    assert!(!pt.test_accessed(&mut m, range(0x2000, 0x10_0000)));
    assert!(pt.test_accessed(&mut m, range(0, 1 << 48)));
    let (accessed, flush) = m.age(&pt, range(0, 1 << 48));
    assert!(accessed && !flush);
    let (accessed, flush) = m.age(&pt, range(0, 1 << 48));
    assert!(!accessed && !flush);
    assert!(!pt.test_accessed(&mut m, range(0, 1 << 48)));
    assert!(m.lookup(&pt, Gpa(0x1000)).is_some());
    m.destroy(pt, false);

    // Without accessed bits: the leaf goes.
    let mut m = Mem::<EptNoAd>::new();
    let pt: PageTable<EptNoAd, _> = m.create(4).unwrap();
    pt.map(
        &mut m,
        Gpa(0x1000),
        Level::L1,
        &leaf(0x1000, Perm::RW),
        Allow::Any,
    )
    .unwrap();
    assert!(pt.test_accessed(&mut m, range(0x1000, 0x1000)));
    let (accessed, flush) = m.age(&pt, range(0, 1 << 48));
    assert!(accessed && flush);
    assert_eq!(m.lookup(&pt, Gpa(0x1000)), None);
    assert!(m.removed[0].dirty && m.removed[0].perm.contains(Perm::W));
    assert!(!m.age(&pt, range(0, 1 << 48)).0);
}

/// Without leave to flush only rights are added, and leaves split for it.
fn allowed<F: Format>(levels: u8, bad: fn(u64, Level) -> bool) {
    let mut m = Mem::<F>::new();
    let pt: PageTable<F, _> = m.create(levels).unwrap();
    let g = Gpa(0x8000_0000);
    let map = |m: &mut Mem<F>, gpa, level, leaf: &Leaf, allow| pt.map(m, gpa, level, leaf, allow);
    let ro = leaf(0x4000, Perm::R);
    let rw = leaf(0x4000, Perm::RW);
    let rx = leaf(0x4000, Perm::RX);
    let other = leaf(0x5000, Perm::RW);
    for allow in [Allow::New, Allow::More] {
        m.flush_all();
        assert_eq!(map(&mut m, g, Level::L1, &ro, allow), Ok(Change::New));
        assert_eq!(map(&mut m, g, Level::L1, &ro, allow), Ok(Change::Spurious));
        let (up, fewer) = (Ok(Change::Upgraded), Err(MapError::Present));
        let more = if allow == Allow::More { up } else { fewer };
        assert_eq!(map(&mut m, g, Level::L1, &rw, allow), more);
        let before = m.lookup(&pt, g);
        for l in [&rx, &other] {
            let got = map(&mut m, g, Level::L1, l, allow);
            if more == up || l.hpa != rw.hpa {
                assert_eq!(got, Err(MapError::Present));
                assert_eq!(m.lookup(&pt, g), before);
            }
        }
        let huge = leaf(0x4020_0000, Perm::RX);
        let h = Gpa(g.0 + 0x20_0000);
        assert_eq!(map(&mut m, h, Level::L2, &huge, allow), Ok(Change::New));
        let part = leaf(0x4020_3000, Perm::RWX);
        let want = if F::BREAK_FIRST { fewer } else { more };
        assert_eq!(
            map(&mut m, Gpa(h.0 + 0x3000), Level::L1, &part, allow),
            want
        );
        assert_eq!(m.lookup(&pt, Gpa(h.0 + 0x4000)).unwrap().perm, Perm::RX);
        m.check(&pt, &bad);
        let parts = leaf(0x4040_0000, Perm::RWX);
        let q = Gpa(g.0 + 0x40_0000);
        for (have, want) in [(Perm::RW, want), (Perm::RWX, want)] {
            assert_eq!(
                map(&mut m, q, Level::L2, &leaf(0x4040_0000, have), allow),
                Ok(Change::New)
            );
            let else_where = leaf(0x4060_0000, Perm::RWX);
            assert_eq!(pt.map_parts(&mut m, q, &else_where, allow), fewer);
            assert_eq!(pt.map_parts(&mut m, q, &parts, allow), want);
            assert!(m.unmap(&pt, range(q.0, 0x20_0000)));
            m.flush_all();
        }
        assert_eq!(m.breaks, 0);
        assert!({
            let all = pt.all();
            m.unmap(&pt, all)
        });
    }
    m.destroy(pt, false);
}

#[test]
fn allowed_changes() {
    allowed::<Ept>(4, ept_malformed);
    allowed::<EptNoAd>(5, ept_malformed);
    allowed::<Npt>(4, npt_malformed);
    allowed::<Stage2>(3, null::malformed);
}

fn cleaning<F: Format>(levels: u8, bad: fn(u64, Level) -> bool) {
    let mut m = Mem::<F>::new();
    let pt: PageTable<F, _> = m.create(levels).unwrap();
    let written = Leaf {
        dirty: true,
        ..leaf(0x5000, Perm::RWX)
    };
    let g = 0x4000_0000;
    for n in 0..4 {
        let part = Leaf {
            hpa: Hpa(0x5000 + 0x1000 * n),
            ..written
        };
        let gpa = Gpa(g + 0x1000 * n);
        let done = pt.map(&mut m, gpa, Level::L1, &part, Allow::New);
        assert_eq!(done, Ok(Change::New));
    }
    let big = Leaf {
        hpa: Hpa(0x20_0000),
        ..written
    };
    let huge = g + 0x20_0000;
    let done = pt.map(&mut m, Gpa(huge), Level::L2, &big, Allow::New);
    assert_eq!(done, Ok(Change::New));
    // Two of the four; they stay writable where the processor tells of the next write, and the others as they are.
    assert!(m.clean(&pt, range(g + 0x1000, 0x2000)));
    assert!(!m.clean(&pt, range(g + 0x1000, 0x2000)));
    for n in 0..4 {
        let at = m.lookup(&pt, Gpa(g + 0x1000 * n)).unwrap();
        let cleaned = n == 1 || n == 2;
        assert_eq!(F::dirty(at.raw), !(cleaned && F::HAS_AD), "{n}");
        let perm = if cleaned && !F::HAS_AD {
            Perm::RX
        } else {
            Perm::RWX
        };
        assert_eq!(at.perm, perm, "{n}");
    }
    // A huge leaf would hide which of its pages is written.
    assert!(m.clean(&pt, range(huge + 0x3000, 0x1000)));
    assert_eq!(m.lookup(&pt, Gpa(huge)).unwrap().perm, Perm::RX);
    // Mapped again on a write fault it counts as written, and so do the parts that nobody has cleaned since.
    let part = Leaf {
        hpa: Hpa(0x20_3000),
        ..written
    };
    let done = pt.map(&mut m, Gpa(huge + 0x3000), Level::L1, &part, Allow::More);
    assert_eq!(done, Ok(Change::Upgraded));
    let at = m.lookup(&pt, Gpa(huge + 0x3000)).unwrap();
    assert!(at.perm == Perm::RWX && F::dirty(at.raw));
    let at = m.lookup(&pt, Gpa(huge + 0x4000)).unwrap();
    assert!(at.perm == Perm::RX && F::dirty(at.raw));
    m.check(&pt, &bad);
    m.destroy(pt, true);
}

/// Of 64 pages those that a word of a log names, and no others.
fn pages_of_a_word<F: Format>(levels: u8) {
    let g = 0x4000_0000;
    for (clean, word) in [
        (false, 0x8000_0000_0000_0005u64),
        (true, 0xa),
        (false, !0),
        (true, !0),
    ] {
        let mut m = Mem::<F>::new();
        let pt: PageTable<F, _> = m.create(levels).unwrap();
        for n in 0..64 {
            let page = Leaf {
                dirty: true,
                ..leaf(0x10_0000 + 0x1000 * n, Perm::RWX)
            };
            let done = pt.map(&mut m, Gpa(g + 0x1000 * n), Level::L1, &page, Allow::New);
            assert_eq!(done, Ok(Change::New));
        }
        let mut cursor = Cursor::of_pages(range(g, 64 * 0x1000), word);
        let done = if clean {
            pt.clean_some(&mut m, &mut cursor, u32::MAX)
        } else {
            pt.write_protect_some(&mut m, &mut cursor, u32::MAX)
        };
        assert!(done && cursor.flush);
        for n in 0..64 {
            let at = m.lookup(&pt, Gpa(g + 0x1000 * n)).unwrap();
            let changed = if clean && F::HAS_AD {
                !F::dirty(at.raw)
            } else {
                at.perm == Perm::RX
            };
            assert_eq!(changed, word >> n & 1 != 0, "{clean} {word:#x} {n}");
        }
    }
}

#[test]
fn pages_of_a_word_all_formats() {
    pages_of_a_word::<Ept>(4);
    pages_of_a_word::<EptNoAd>(4);
    pages_of_a_word::<Npt>(4);
}

#[test]
fn cleaning_all_formats() {
    cleaning::<Ept>(4, ept_malformed);
    cleaning::<EptNoAd>(4, ept_malformed);
    cleaning::<Npt>(4, npt_malformed);
}

#[test]
fn bit_positions() {
    // 2 MiB of memory, accessed and dirty, as SDM 3C table 29-5 has it: write-back, ignore-PAT.
    let l = Leaf {
        accessed: true,
        dirty: true,
        ..leaf(0x1234_0020_0000, Perm::RWX)
    };
    let device = |hpa, perm| Leaf {
        mem_type: MemType::Device,
        ..leaf(hpa, perm)
    };
    assert_eq!(Ept::leaf(Level::L2, &l), 0x1234_0020_0000 | 0x3f7);
    assert_eq!(Ept::leaf(Level::L1, &device(0x3000, Perm::R)), 0x3001);
    assert_eq!(EptNoAd::leaf(Level::L1, &leaf(0x3000, Perm::R)), 0x3171);
    assert_eq!(EptNoAd::leaf(Level::L1, &leaf(0x3000, Perm::RW)), 0x3373);
    assert_eq!(Ept::table(Hpa(0x3000)), 0x3107);
    assert_eq!(Npt::table(Hpa(0x3000)), 0x3027);
    let rw = leaf(0x3000, Perm::RW);
    assert_eq!(Npt::leaf(Level::L1, &rw), 0x8000_0000_0000_3007);
    assert_eq!(Npt::leaf(Level::L2, &l), 0x1234_0020_0000 | 0xe7);
    assert_eq!(
        Npt::leaf(Level::L2, &device(0x20_0000, Perm::RX)),
        0x20_009d
    );
    assert_eq!(Npt::leaf(Level::L1, &device(0x3000, Perm::RX)), 0x301d);
    assert_eq!(Stage2::table(Hpa(0x3000)), 0x3003);
    assert_eq!(
        Stage2::leaf(Level::L2, &l) & !(3 << 55),
        0x1234_0020_0000 | 0x7fd
    );
    assert_eq!(Stage2::leaf(Level::L1, &rw) & !(3 << 55), 1 << 54 | 0x37ff);
    round_trip::<Ept>(ept_malformed);
    round_trip::<EptNoAd>(ept_malformed);
    round_trip::<Npt>(npt_malformed);
    round_trip::<Stage2>(null::malformed);
}

fn round_trip<F: Format>(bad: fn(u64, Level) -> bool) {
    for nothing in [F::NON_PRESENT, F::FROZEN, F::BROKEN] {
        assert!(!F::present(nothing));
    }
    assert!(F::FROZEN != F::BROKEN && F::FROZEN != F::NON_PRESENT);
    let child = Hpa(0x12_3456_7000);
    assert_eq!(F::child(F::table(child)), child);
    for mem_type in [MemType::Ram, MemType::Device] {
        for perm in [Perm::R, Perm::RW, Perm::RX, Perm::RWX] {
            for level in [Level::L1, Level::L2, Level::L3] {
                let l = Leaf {
                    mem_type,
                    ..leaf(0x40_4000_0000, perm)
                };
                let e = F::leaf(level, &l);
                assert!(F::present(e) && F::is_leaf(e, level) && !bad(e, level));
                assert_eq!((F::addr(e, level), F::perm(e)), (l.hpa, perm));
                assert_eq!(F::mem_type(e, level), mem_type);
            }
        }
    }
}

/// Where a device reaches memory past the caches EPT leaves write-back to the guest's PAT (SDM 3C 29.3.7.2); what is
/// mapped otherwise gives way.
#[test]
fn guest_typed() {
    let typed = Leaf {
        mem_type: MemType::GuestTyped,
        ..leaf(0x40_4000_0000, Perm::RWX)
    };
    let cached = leaf(0x40_4000_0000, Perm::RWX);
    for level in [Level::L1, Level::L2] {
        let e = Ept::leaf(level, &typed);
        assert_eq!(e | 1 << 6, Ept::leaf(level, &cached));
        assert_eq!(e >> 3 & 0xf, 6);
        assert_eq!(Ept::mem_type(e, level), MemType::GuestTyped);
    }
    // The guest's PAT is always in force.
    assert_eq!(Npt::leaf(Level::L1, &typed), Npt::leaf(Level::L1, &cached));
}

/// One page of the model: where it points and with which rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    hpa: u64,
    perm: Perm,
}

/// Windows of the guest-physical space that the random test plays in: two 2 MiB areas on either side of a
/// 1 GiB border, and the top of the space.
fn windows(limit: Gpa) -> Vec<u64> {
    vec![0x3fe0_0000, 0x4000_0000, 0x4020_0000, limit.0 - 0x20_0000]
}

fn random<F: Format>(seed: u64, levels: u8, bad: fn(u64, Level) -> bool, failures: bool) {
    let mut rng = Rng(seed | 1);
    let mut m = Mem::<F>::new();
    let pt: PageTable<F, _> = m.create(levels).unwrap();
    let wins = windows(pt.limit());
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
                let before = m.lookup(&pt, Gpa(g));
                match pt.map(&mut m, Gpa(g), Level::L1, &leaf(hpa, perm), Allow::Any) {
                    Ok(c) => {
                        let p = match before {
                            Some(b) if b.hpa.0 == hpa && b.perm.contains(perm) => b.perm,
                            _ => perm,
                        };
                        assert_eq!(c == Change::New, before.is_none());
                        model.insert(g, Page { hpa, perm: p });
                        let now = m.lookup(&pt, Gpa(g)).unwrap();
                        assert_eq!((now.hpa.0, now.perm, now.level), (hpa, p, Level::L1));
                    }
                    Err(MapError::NoMemory) if failures => {}
                    Err(e) => panic!("{e:?}"),
                }
            }
            4..=5 => {
                let hpa = if rng.below(2) == 0 {
                    0x100_0000_0000 + w % (1 << 30)
                } else {
                    rng.below(1 << 10) << 21
                };
                let before = m.lookup(&pt, Gpa(w)).filter(|b| b.level == Level::L2);
                if rng.below(3) == 0 {
                    match pt.map_parts(&mut m, Gpa(w), &leaf(hpa, perm), Allow::Any) {
                        Ok(c) => {
                            assert_eq!(c == Change::New, before.is_none());
                            for i in (0..512).map(|i| i * 0x1000) {
                                model.insert(w + i, Page { hpa: hpa + i, perm });
                            }
                        }
                        Err(MapError::Present) => assert!(pt.has_parts(&m, Gpa(w), Level::L2)),
                        Err(MapError::NoMemory) if failures => {}
                        Err(e) => panic!("{e:?}"),
                    }
                    m.flush_all();
                    continue;
                }
                match pt.map(&mut m, Gpa(w), Level::L2, &leaf(hpa, perm), Allow::Any) {
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
                        assert_eq!(m.lookup(&pt, Gpa(w)).unwrap().level, Level::L2);
                    }
                    Err(MapError::NoMemory) if failures => {}
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
                    for i in 0..r.level.size() >> 12 {
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
                    m.flush_all();
                }
            }
            8 if !failures && rng.below(2) == 0 => {
                let start = w + rng.below(512) * 0x1000;
                let start = if rng.below(2) == 0 { w } else { start };
                let len = 0x1000 << rng.below(11);
                let mut cur = Cursor::new(range(start, len));
                let budget = [1, 7, 600, u32::MAX][rng.below(4) as usize];
                while !pt.split_some(&mut m, &mut cur, budget, false) {}
                for (_, p) in model.range_mut(start..start + len) {
                    p.perm = p.perm.without(Perm::W);
                }
            }
            8 => {
                let start = w + rng.below(512) * 0x1000;
                let len = 0x1000 << rng.below(8);
                // A huge leaf loses the right as a whole.
                let hit: Vec<_> = pages
                    .iter()
                    .filter(|&&g| {
                        m.lookup(&pt, Gpa(g)).is_some_and(|x| {
                            range(g & !x.level.offset_mask(), x.level.size())
                                .overlaps(&range(start, len))
                        })
                    })
                    .copied()
                    .collect();
                m.write_protect(&pt, range(start, len));
                for g in hit {
                    let p = model.get_mut(&g).unwrap();
                    p.perm = p.perm.without(Perm::W);
                }
            }
            _ => {
                if F::HAS_AD {
                    // A processor's own write may follow at once, so only what is certain is asked.
                    m.age(&pt, range(w, 0x20_0000));
                } else {
                    pt.test_accessed(&mut m, range(w, 0x20_0000));
                }
            }
        }
        if step % 4 != 0 && step > 16 {
            m.flush_all();
            continue;
        }
        // The table says exactly what the model says.
        let hw = m.hw.take();
        for &g in &pages {
            let got = m.lookup(&pt, Gpa(g + 0x10)).map(|x| Page {
                hpa: x.hpa.0 - 0x10,
                perm: x.perm,
            });
            assert_eq!(got, model.get(&g).copied(), "at {g:#x}");
            exact += got.is_some() as u32;
        }
        // No table leaked, none linked twice, all entries well-formed.
        m.check(&pt, &bad);
        // Each page that the guest wrote is still known as dirty, here or by a report.
        for &(g, hpa) in &hw.as_ref().unwrap().written {
            let x = m
                .lookup(&pt, Gpa(g))
                .expect("a dirty page vanished unreported");
            assert_eq!(x.hpa.0, hpa, "a dirty page was replaced unreported");
            assert!(F::dirty(x.raw), "dirty bit lost at {g:#x}");
        }
        *m.hw.borrow_mut() = hw;
        m.flush_all();
    }
    assert!(exact > 1000, "the test has to have mapped something");
    m.hw.take();
    m.destroy(pt, rng.below(2) == 0);
}

#[test]
fn random_against_model() {
    for seed in 1..=5 {
        for failures in [false, true] {
            random::<Ept>(seed * 7919, 4, ept_malformed, failures);
            random::<Npt>(seed * 104_729, 5, npt_malformed, failures);
            random::<EptNoAd>(seed * 1_299_709, 4, ept_malformed, failures);
            random::<Stage2>(seed * 15_485_863, 3, null::malformed, failures);
        }
    }
}

#[test]
fn allocation_failure_at_every_point() {
    // From each of three starting states, fail the n-th allocation of one map, then retry.
    for start in 0..3 {
        for quota in 0..5 {
            let mut m = Mem::<Ept>::new();
            let pt: PageTable<Ept, _> = m.create(5).unwrap();
            if start == 1 {
                pt.map(
                    &mut m,
                    Gpa(0),
                    Level::L3,
                    &leaf(0x4000_0000, Perm::RW),
                    Allow::Any,
                )
                .unwrap();
            }
            if start == 2 {
                pt.map(
                    &mut m,
                    Gpa(0x20_0000),
                    Level::L2,
                    &leaf(0x4020_0000, Perm::RW),
                    Allow::Any,
                )
                .unwrap();
            }
            m.quota = quota;
            let g = Gpa(0x20_3000);
            let r = pt.map(&mut m, g, Level::L1, &leaf(0x8000, Perm::RW), Allow::Any);
            let need = [4, 2, 1][start];
            assert_eq!(r.is_ok(), quota >= need);
            if let Err(e) = r {
                // The split of 1 GiB went through before the one of 2 MiB failed.
                assert_eq!(e, MapError::NoMemory);
                let old = m.lookup(&pt, g).map(|x| x.hpa.0);
                assert_eq!(old, [None, Some(0x4020_3000), Some(0x4020_3000)][start]);
                m.quota = u64::MAX;
                pt.map(&mut m, g, Level::L1, &leaf(0x8000, Perm::RW), Allow::Any)
                    .unwrap();
            }
            assert_eq!(m.lookup(&pt, g).unwrap().hpa, Hpa(0x8000));
            m.check(&pt, &ept_malformed);
            m.destroy(pt, false);
        }
    }
}

#[test]
fn destroy_in_pieces() {
    let mut m = Mem::<Npt>::new();
    let pt: PageTable<Npt, _> = m.create(5).unwrap();
    for i in 0..300u64 {
        let g = (i % 3) << 50 | (i % 7) << 40 | i << 21;
        pt.map(
            &mut m,
            Gpa(g),
            Level::L1,
            &leaf(0x1000 * (i + 1), Perm::RW),
            Allow::Any,
        )
        .unwrap();
    }
    let all = m.live();
    assert!(all > 320);
    let mut cur = Cursor::new(pt.all());
    loop {
        let (before, loads) = (m.live(), m.loads.get());
        let done = pt.clear_some(&mut m, &mut cur, 8 * 512);
        assert!(before - m.live() <= 16, "tables freed by one piece");
        assert!(m.loads.get() - loads < 4 * 8 * 512);
        m.flush_all();
        if done {
            break;
        }
    }
    assert_eq!(m.held(), 0);
    assert!(m.removed.is_empty());
    assert!(m.loads.get() < 100_000, "tables of leaves need not be read");
}
