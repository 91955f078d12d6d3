// SPDX-License-Identifier: GPL-2.0
//! Nested page tables changed by whatever a byte string says, against a plain model, and a guest walk over the
//! same bytes taken for page tables.
//!
//! Shared by the libFuzzer target and by the bounded random test.

use std::collections::BTreeMap;

use rvmm_logic::mem::addr::Level;
use rvmm_logic::mem::addr::{Gpa, GpaRange, Gva, Hpa};
use rvmm_logic::mem::format::{Format, Leaf, MemType, Perm};
use rvmm_logic::mem::walk::{Allow, Cursor, MapError, PageTable};
use rvmm_logic::null::{self, Stage2};
use rvmm_logic::tables::{ept_malformed, npt_malformed, Mem};
use rvmm_logic::x86::paging::fmt_ept::{Ept, EptNoAd};
use rvmm_logic::x86::paging::fmt_npt::Npt;
use rvmm_logic::x86::paging::gwalk::{
    Access, Features, GuestRead, Paging, WalkError, PDPTE_RESERVED,
};

/// Values drawn from the input; zeroes when it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u8(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => 0,
        }
    }

    fn u64(&mut self) -> u64 {
        (0..8).fold(0, |v, _| v << 8 | u64::from(self.u8()))
    }
}

/// For each page of interest that is mapped, where to, and with which rights.
type Model = BTreeMap<u64, (u64, Perm)>;

/// Unmaps, protects or ages the range at `gpa` that `what` says.
fn change_range<F: Format>(m: &mut Mem<F>, pt: &PageTable<F, Mem<F>>, gpa: Gpa, op: u8, what: u8) {
    let len = [0x1000, 0x3000, 0x20_0000, 0x4000_0000, 1 << 39][usize::from(what % 5)];
    let range = GpaRange::new(gpa, len).expect("far from the end");
    let mut cur = Cursor::new(range);
    let budget = 1 + u32::from(what) * 8;
    match op & 15 {
        10..=12 => {
            while !pt.unmap_some(m, &mut cur, budget) {}
            assert!(cur.flush || m.removed.is_empty());
            for off in [0, len / 2, len - 1] {
                assert_eq!(m.lookup(pt, Gpa(gpa.0.saturating_add(off))), None);
            }
        }
        13 => while !pt.write_protect_some(m, &mut cur, budget) {},
        14 => while !pt.clean_some(m, &mut cur, budget) {},
        _ => while !pt.age_some(m, &mut cur, budget) {},
    }
}

/// Holds what is mapped now against `model`, which is what was mapped before, and brings that up to date. `mapped`: the
/// change was a mapping.
fn compare<F: Format>(
    m: &Mem<F>,
    pt: &PageTable<F, Mem<F>>,
    windows: [u64; 4],
    mapped: bool,
    model: &mut Model,
) {
    for r in &m.removed {
        assert!(r.gpa.is_aligned(r.level) && r.hpa.is_aligned(r.level));
    }
    // What is mapped now, at the places of interest, was there before, or has just come, or has gone.
    for w in windows {
        for page in [0, 1, 255, 256, 510, 511] {
            let g = w + page * 0x1000;
            let now = m.lookup(pt, Gpa(g)).map(|x| (x.hpa.0, x.perm));
            let before = model.get(&g).copied();
            let gone = m
                .removed
                .iter()
                .any(|r| g.wrapping_sub(r.gpa.0) < r.level.size());
            match (before, now) {
                (Some(b), None) => assert!(gone, "{g:#x} {b:?} went unreported"),
                (None, Some(_)) => assert!(mapped, "{g:#x} came from nowhere"),
                (Some(b), Some(n)) if b.0 != n.0 => assert!(mapped && gone),
                (Some(b), Some(n)) if b.1 != n.1 => {
                    assert!(mapped || b.1.contains(n.1))
                }
                _ => {}
            }
            match now {
                Some(n) => model.insert(g, n),
                None => model.remove(&g),
            };
        }
    }
}

fn nested<F: Format>(input: &mut Input<'_>, bad: fn(u64, Level) -> bool) {
    let (fewest, most) = F::LEVELS;
    let levels = fewest + (input.u8() & 1) % (most - fewest + 1);
    let mut m = Mem::<F>::new();
    let pt = m.create(levels).expect("the format has that many levels");
    let windows = [0, 0x3fe0_0000, 0x4000_0000, pt.limit().0 - 0x20_0000];
    let mut model = Model::new();
    let mut ops = 0;
    while !input.0.is_empty() && ops < 64 {
        ops += 1;
        let op = input.u8();
        let at = input.u8();
        let what = input.u8();
        let window = windows[usize::from(at & 3)];
        // Few pages, at both ends of the window and in its middle.
        let page = [0, 1, 2, 255, 256, 509, 510, 511][usize::from(at >> 2 & 7)];
        let gpa = Gpa(window + page * 0x1000);
        let perm = [Perm::R, Perm::RW, Perm::RX, Perm::RWX][usize::from(what & 3)];
        m.quota = if op & 0x80 != 0 {
            u64::from(op >> 4 & 7)
        } else {
            u64::MAX
        };
        let leaf = |hpa| Leaf {
            hpa: Hpa(hpa),
            perm,
            mem_type: if what & 4 == 0 {
                MemType::Ram
            } else {
                MemType::Device
            },
            accessed: what & 16 != 0,
            dirty: what & 32 != 0,
        };
        m.removed.clear();
        let level = match op & 15 {
            0..=5 => Some(Level::L1),
            6..=8 => Some(Level::L2),
            9 => Some(Level::L3),
            _ => None,
        };
        if let Some(level) = level {
            let gpa = if level == Level::L1 {
                gpa
            } else {
                gpa.align_down(level)
            };
            let hpa = (u64::from(what >> 6) << 36) + gpa.0 % (1 << 36);
            let allow = [Allow::Any, Allow::Any, Allow::More, Allow::New][usize::from(at >> 5 & 3)];
            match pt.map(&mut m, gpa, level, &leaf(hpa), allow) {
                Ok(change) => {
                    assert!(allow == Allow::Any || !change.needs_flush());
                    let now = m.lookup(&pt, gpa).expect("just mapped");
                    assert!(now.level == level && now.hpa.0 == hpa && now.perm.contains(perm));
                }
                Err(MapError::NoMemory) if m.quota == 0 => {}
                Err(MapError::Present) if allow != Allow::Any => {}
                Err(e) => panic!("{e:?}"),
            }
        } else {
            change_range(&mut m, &pt, gpa, op, what);
        }
        compare(&m, &pt, windows, level.is_some(), &mut model);
        m.check(&pt, &bad);
        m.flush_all();
    }
    m.destroy(pt, input.u8() & 1 != 0);
}

/// Guest memory: the input, over and over; an entry's value depends on its address.
struct Guest<'a> {
    data: &'a [u8],
    reads: u32,
}

impl GuestRead for Guest<'_> {
    type Error = ();

    fn read_u32(&mut self, gpa: Gpa) -> Result<u32, ()> {
        self.read_u64(gpa).map(|x| x as u32)
    }

    fn read_u64(&mut self, gpa: Gpa) -> Result<u64, ()> {
        self.reads += 1;
        let n = self.data.len().max(1);
        let byte = |i: u64| u64::from(*self.data.get((gpa.0 % 509 + i) as usize % n).unwrap_or(&0));
        let v = (0..8).fold(0, |v, i| v << 8 | byte(i));
        // Mostly present: a walk that ends at once shows little.
        Ok(if v & 0x700 == 0 { v } else { v | 1 })
    }

    fn set_ad(&mut self, gpa: Gpa, old: u64, new: u64, bytes: u8) -> Result<bool, ()> {
        assert!(
            old & !new == 0 && new & !old & !0x60 == 0 && old != new && (bytes == 4 || bytes == 8)
        );
        match gpa.0 >> 12 & 3 {
            0 => Err(()),
            1 => Ok(false),
            _ => Ok(true),
        }
    }
}

fn guest(input: &mut Input<'_>) {
    let (cr0, cr3, cr4) = (input.u64(), input.u64(), input.u64());
    let (efer, pkru, gva) = (input.u64(), input.u64() as u32, input.u64());
    let bits = input.u8();
    let a = input.u8();
    let features = Features {
        max_phys_bits: bits,
        pages_1g: a & 16 != 0,
        pdpte_reserved: PDPTE_RESERVED,
    };
    let access = Access {
        write: a & 3 == 1,
        fetch: a & 2 != 0,
        user: a & 4 != 0,
        ac: a & 8 != 0,
    };
    let paging = Paging::new(cr0 | 1 << 31, cr3, cr4, efer, pkru, features);
    let gva = Gva(if a & 32 != 0 {
        gva
    } else {
        (gva as i64 >> 20) as u64
    });
    let mut mem = Guest {
        data: input.0,
        reads: 0,
    };
    let probe = paging.probe(&mut mem, gva, access);
    assert!(mem.reads <= 5);
    let got = paging.translate(&mut mem, gva, access);
    assert!(mem.reads <= 5 + 5 * 9);
    match (probe, got) {
        (Ok(p), Ok(t)) => assert_eq!(p, t),
        (Ok(_), Err(WalkError::Access(()) | WalkError::Busy)) => {}
        (Ok(p), Err(e)) => panic!("{p:?} {e:?}"),
        (Err(p), t) => assert_eq!(t, Err(p)),
    }
    if let Ok(t) = probe {
        assert!(t.0 >> 52 == 0);
    }
}

/// Does what `data` says; panics when something is wrong.
pub fn drive(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() % 5 {
        0 => nested::<Ept>(&mut input, ept_malformed),
        1 => nested::<Npt>(&mut input, npt_malformed),
        2 => nested::<EptNoAd>(&mut input, ept_malformed),
        3 => nested::<Stage2>(&mut input, null::malformed),
        _ => guest(&mut input),
    }
}
