// SPDX-License-Identifier: GPL-2.0
//! Memory slots: rules of KVM_SET_USER_MEMORY_REGION (api.rst 4.35), look-up by guest-physical address and
//! translation of host-virtual ranges.
//!
//! All functions work on a slice sorted by `gpa` without overlaps; an element is a [`Slot`] or holds one. The
//! owner replaces the whole slice on a change, so that readers under RCU never see a half-made one.
#![forbid(unsafe_code)]

use core::cmp;

use crate::mem::addr::{Gpa, GpaRange, Hva, Level, PAGE_OFFSET_MASK, PAGE_SHIFT, PAGE_SIZE};

/// KVM_MEM_LOG_DIRTY_PAGES.
pub const LOG_DIRTY_PAGES: u32 = 1 << 0;
/// KVM_MEM_READONLY.
pub const READONLY: u32 = 1 << 1;
/// Largest number of pages in a slot (KVM_MEM_MAX_NR_PAGES): a bitmap index fits in an `int`.
pub const MAX_PAGES: u64 = (1 << 31) - 1;

/// One memory slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// First guest-physical address, a multiple of 4 KiB.
    pub gpa: Gpa,
    /// Length in 4 KiB pages, not zero.
    pub npages: u64,
    /// Host-virtual address of the first page, a multiple of 4 KiB.
    pub hva: Hva,
    /// [`LOG_DIRTY_PAGES`] and [`READONLY`].
    pub flags: u32,
    /// Number given by user space, with the address space in bits 31:16.
    pub id: u32,
}

impl AsRef<Slot> for Slot {
    #[inline]
    fn as_ref(&self) -> &Slot {
        self
    }
}

impl Slot {
    /// Length in bytes.
    #[inline]
    pub const fn len(&self) -> u64 {
        self.npages.wrapping_shl(PAGE_SHIFT)
    }

    /// Whether the slot holds no page: never true of a slot that [`validate`] let through.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.npages == 0
    }

    /// Whether guest writes are refused (they become MMIO exits).
    #[inline]
    pub const fn is_readonly(&self) -> bool {
        self.flags & READONLY != 0
    }

    /// Whether writes are to be logged.
    #[inline]
    pub const fn is_logging(&self) -> bool {
        self.flags & LOG_DIRTY_PAGES != 0
    }

    /// Guest-physical range; empty if it would wrap, which [`validate`] excludes.
    #[inline]
    pub fn range(&self) -> GpaRange {
        GpaRange::new(self.gpa, self.len()).unwrap_or_default()
    }

    /// Whether `gpa` lies in the slot.
    #[inline]
    pub const fn contains(&self, gpa: Gpa) -> bool {
        gpa.0.wrapping_sub(self.gpa.0) < self.len()
    }

    /// Host-virtual address of `gpa`, if it lies in the slot.
    #[inline]
    pub const fn hva(&self, gpa: Gpa) -> Option<Hva> {
        let offset = gpa.0.wrapping_sub(self.gpa.0);
        if offset < self.len() {
            Some(self.hva.wrapping_add(offset))
        } else {
            None
        }
    }

    /// Number of the page in the slot (bit in its dirty bitmap) that holds `gpa`, if it lies in the slot.
    #[inline]
    pub const fn page_index(&self, gpa: Gpa) -> Option<u64> {
        let offset = gpa.0.wrapping_sub(self.gpa.0);
        if offset < self.len() {
            Some(offset >> PAGE_SHIFT)
        } else {
            None
        }
    }

    /// Bytes from `gpa` to the end of the slot; 0 if `gpa` lies outside.
    #[inline]
    pub const fn bytes_from(&self, gpa: Gpa) -> u64 {
        let offset = gpa.0.wrapping_sub(self.gpa.0);
        self.len().saturating_sub(offset)
    }

    /// Largest leaf that may map `gpa`: its page lies in the slot as a whole and is aligned in guest-physical
    /// and host-virtual space alike; 4 KiB while writes are logged.
    #[inline]
    pub fn max_level(&self, gpa: Gpa) -> Level {
        let fits = |level: Level| {
            let base = gpa.align_down(level);
            (self.gpa.0 ^ self.hva.0) & level.offset_mask() == 0
                && base.0 >= self.gpa.0
                && base.0.wrapping_sub(self.gpa.0) < self.len()
                && self.len().wrapping_sub(base.0.wrapping_sub(self.gpa.0)) >= level.size()
        };
        if self.is_logging() || !fits(Level::L2) {
            Level::L1
        } else if fits(Level::L3) {
            Level::L3
        } else {
            Level::L2
        }
    }
}

/// `struct kvm_userspace_memory_region`, as user space gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Request {
    pub slot: u32,
    pub flags: u32,
    pub guest_phys_addr: u64,
    pub memory_size: u64,
    pub userspace_addr: u64,
}

/// What this host and this VM allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Slots are numbered below this (KVM_CAP_NR_MEMSLOTS).
    pub slots: u32,
    /// Number of address spaces (KVM_CAP_MULTI_ADDRESS_SPACE, at least 1).
    pub address_spaces: u32,
    /// First guest-physical address that cannot be mapped.
    pub gpa_end: u64,
    /// First address past user space (TASK_SIZE_MAX).
    pub hva_end: u64,
}

/// What a valid request means. `index` points into the slice given to [`validate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new slot, to be inserted before the element `at`.
    Create {
        /// Position that keeps the slice sorted.
        at: usize,
    },
    /// The slot goes away.
    Delete {
        /// Position of the slot.
        index: usize,
    },
    /// Another guest-physical address, the rest (but perhaps LOG_DIRTY_PAGES) unchanged: take the slot out of
    /// its position, then insert it where [`insert_position`] says.
    Move {
        /// Position of the slot.
        index: usize,
    },
    /// Only LOG_DIRTY_PAGES changes.
    Flags {
        /// Position of the slot.
        index: usize,
    },
    /// The request repeats what is there.
    Nothing,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// Unknown flag.
    Flag,
    /// Size, guest-physical or user address is not a multiple of the page size.
    Misaligned,
    /// The user address range does not lie in user space.
    UserRange,
    /// The slot number or address space does not exist.
    Number,
    /// The guest-physical range wraps, is too long or is wider than the guest's addresses.
    GuestRange,
    /// Deletion of a slot that does not exist.
    Absent,
    /// An existing slot may not change size, user address or READONLY.
    Immutable,
    /// The guest-physical range overlaps another slot.
    Overlap,
}

impl SlotError {
    /// Error number for user space, positive (EINVAL or EEXIST).
    pub const fn errno(self) -> i32 {
        match self {
            Self::Overlap => 17,
            _ => 22,
        }
    }
}

/// Checks `req` against the slots of its address space. On success returns what to do and the slot as it shall
/// be (for a deletion: as it was).
///
/// # Errors
///
/// In the order in which KVM looks: see [`SlotError`].
pub fn validate<S: AsRef<Slot>>(
    slots: &[S],
    req: &Request,
    limits: &Limits,
) -> Result<(Change, Slot), SlotError> {
    if req.flags & !(LOG_DIRTY_PAGES | READONLY) != 0 {
        return Err(SlotError::Flag);
    }
    if (req.memory_size | req.guest_phys_addr | req.userspace_addr) & PAGE_OFFSET_MASK != 0 {
        return Err(SlotError::Misaligned);
    }
    match req.userspace_addr.checked_add(req.memory_size) {
        Some(end) if end <= limits.hva_end => {}
        _ => return Err(SlotError::UserRange),
    }
    if req.slot >> 16 >= limits.address_spaces || req.slot & 0xffff >= limits.slots {
        return Err(SlotError::Number);
    }
    let Some(gpa_end) = req.guest_phys_addr.checked_add(req.memory_size) else {
        return Err(SlotError::GuestRange);
    };
    let npages = req.memory_size >> PAGE_SHIFT;
    if npages > MAX_PAGES {
        return Err(SlotError::GuestRange);
    }
    let old = slots
        .iter()
        .enumerate()
        .map(|(i, s)| (i, *s.as_ref()))
        .find(|(_, s)| s.id == req.slot);
    if npages == 0 {
        return match old {
            Some((index, slot)) => Ok((Change::Delete { index }, slot)),
            None => Err(SlotError::Absent),
        };
    }
    let slot = Slot {
        gpa: Gpa(req.guest_phys_addr),
        npages,
        hva: Hva(req.userspace_addr),
        flags: req.flags,
        id: req.slot,
    };
    let change = match old {
        None => Change::Create {
            at: insert_position(slots, slot.gpa),
        },
        Some((index, old)) => {
            if old.hva != slot.hva
                || old.npages != slot.npages
                || (old.flags ^ slot.flags) & READONLY != 0
            {
                return Err(SlotError::Immutable);
            }
            if old.gpa != slot.gpa {
                Change::Move { index }
            } else if old.flags != slot.flags {
                return Ok((Change::Flags { index }, slot));
            } else {
                return Ok((Change::Nothing, slot));
            }
        }
    };
    // Only a change of place can collide with another slot or leave the guest's address space.
    if gpa_end > limits.gpa_end {
        return Err(SlotError::GuestRange);
    }
    let range = slot.range();
    if slots.iter().any(|s| {
        let s = s.as_ref();
        s.id != slot.id && s.range().overlaps(&range)
    }) {
        return Err(SlotError::Overlap);
    }
    Ok((change, slot))
}

/// Position at which a slot that begins at `gpa` keeps the slice sorted.
#[inline]
pub fn insert_position<S: AsRef<Slot>>(slots: &[S], gpa: Gpa) -> usize {
    slots.partition_point(|s| s.as_ref().gpa < gpa)
}

/// Position of the slot with number `id`.
#[inline]
pub fn index_of<S: AsRef<Slot>>(slots: &[S], id: u32) -> Option<usize> {
    slots.iter().position(|s| s.as_ref().id == id)
}

/// Position of the slot that holds `gpa`.
#[inline]
pub fn find<S: AsRef<Slot>>(slots: &[S], gpa: Gpa) -> Option<usize> {
    let after = slots.partition_point(|s| s.as_ref().gpa <= gpa);
    let index = after.checked_sub(1)?;
    slots.get(index)?.as_ref().contains(gpa).then_some(index)
}

/// The slot that holds `gpa`. `hint` is the position of the last hit, of this or another slice: one comparison
/// when the same slot is hit again.
#[inline]
pub fn find_cached<'a, S: AsRef<Slot>>(
    slots: &'a [S],
    gpa: Gpa,
    hint: &mut usize,
) -> Option<&'a S> {
    if let Some(s) = slots.get(*hint) {
        if s.as_ref().contains(gpa) {
            return Some(s);
        }
    }
    let index = find(slots, gpa)?;
    *hint = index;
    slots.get(index)
}

/// Guest-physical ranges that user addresses `start` (included) to `end` (excluded) back, with the position of
/// their slot: one for each slot that meets the range, as several slots may map the same memory. Rounded
/// outwards to whole pages.
#[inline]
pub fn gpa_ranges<S: AsRef<Slot>>(
    slots: &[S],
    start: Hva,
    end: Hva,
) -> impl Iterator<Item = (usize, GpaRange)> + '_ {
    let start = start.page().0;
    let end = end
        .0
        .checked_add(PAGE_SIZE - 1)
        .map_or(u64::MAX, |e| e & !PAGE_OFFSET_MASK);
    slots.iter().enumerate().filter_map(move |(i, s)| {
        let s = s.as_ref();
        let first = cmp::max(start, s.hva.0);
        let last = cmp::min(end, s.hva.0.checked_add(s.len())?);
        if first >= last {
            return None;
        }
        let gpa = s.gpa.checked_add(first.wrapping_sub(s.hva.0))?;
        Some((i, GpaRange::new(gpa, last.wrapping_sub(first))?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{vec, vec::Vec};

    const LIMITS: Limits = Limits {
        slots: 512,
        address_spaces: 1,
        gpa_end: 1 << 40,
        hva_end: 0x7fff_ffff_f000,
    };

    fn req(slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> Request {
        Request {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: hva,
        }
    }

    fn slot(id: u32, gpa: u64, npages: u64, hva: u64) -> Slot {
        Slot {
            gpa: Gpa(gpa),
            npages,
            hva: Hva(hva),
            flags: 0,
            id,
        }
    }

    fn set() -> Vec<Slot> {
        vec![
            slot(3, 0x1000, 3, 0x10_0000),
            slot(0, 0x4000, 1, 0x20_0000),
            Slot {
                flags: READONLY,
                ..slot(7, 0x10_0000, 0x100, 0x30_0000)
            },
        ]
    }

    #[test]
    fn rules() {
        use SlotError::*;
        let s = set();
        let max = MAX_PAGES << 12;
        // (request, expected), each line one rule; the first that fails decides.
        let table = [
            (req(9, 4, 1, 1, 1), Err(Flag)),
            (req(9, 1 << 31, 0, 0, 0), Err(Flag)),
            (req(9, 0, 0x8000, 0x800, 0), Err(Misaligned)),
            (req(9, 0, 0x8008, 0x1000, 0), Err(Misaligned)),
            (req(9, 0, 0x8000, 0x1000, 0x10), Err(Misaligned)),
            (req(9, 0, 0x8000, 0x1000, 0x7fff_ffff_f000), Err(UserRange)),
            (
                req(9, 0, 0x8000, 0x1000, 0xffff_8000_0000_0000),
                Err(UserRange),
            ),
            (req(9, 0, 0x8000, !0xfff, 0x1000), Err(UserRange)),
            (req(512, 0, 0x8000, 0x1000, 0x1000), Err(Number)),
            (req(0x1_0000, 0, 0x8000, 0x1000, 0x1000), Err(Number)),
            (req(9, 0, !0xfff, 0x1000, 0x1000), Err(GuestRange)),
            (req(9, 0, 1 << 40, 0x1000, 0x1000), Err(GuestRange)),
            (
                req(9, 0, (1 << 40) - 0x1000, 0x2000, 0x1000),
                Err(GuestRange),
            ),
            (req(9, 0, 0, max + 0x1000, 0x1000), Err(GuestRange)),
            (req(9, 0, 0, 0, 0), Err(Absent)),
            (req(3, 0, 0x1000, 0x2000, 0x10_0000), Err(Immutable)),
            (req(3, 0, 0x1000, 0x3000, 0x11_0000), Err(Immutable)),
            (req(3, READONLY, 0x1000, 0x3000, 0x10_0000), Err(Immutable)),
            (req(7, 0, 0x10_0000, 0x10_0000, 0x30_0000), Err(Immutable)),
            (req(9, 0, 0x3000, 0x1000, 0x1000), Err(Overlap)),
            (req(9, 0, 0, 0x1000_0000, 0x1000), Err(Overlap)),
            (req(9, 0, 0x1f_f000, 0x2000, 0x1000), Err(Overlap)),
            (req(3, 0, 0x2000, 0x3000, 0x10_0000), Err(Overlap)),
            (
                req(9, 0, 0, 0x1000, 0x10_0000),
                Ok(Change::Create { at: 0 }),
            ),
            (
                req(9, 3, 0x5000, 0x1000, 0x10_0000),
                Ok(Change::Create { at: 2 }),
            ),
            (
                req(9, 0, 0x20_0000, 0x1000, 0),
                Ok(Change::Create { at: 3 }),
            ),
            (
                req(9, 0, (1 << 40) - 0x1000, 0x1000, 0),
                Ok(Change::Create { at: 3 }),
            ),
            (req(0, 0, 0, 0, 0), Ok(Change::Delete { index: 1 })),
            (
                req(7, 0, 0x10_0000, 0, 0x30_0000),
                Ok(Change::Delete { index: 2 }),
            ),
            (
                req(3, 0, 0x5000, 0x3000, 0x10_0000),
                Ok(Change::Move { index: 0 }),
            ),
            (
                req(3, 1, 0x5000, 0x3000, 0x10_0000),
                Ok(Change::Move { index: 0 }),
            ),
            // Onto its own old place.
            (
                req(0, 0, 0x5000, 0x1000, 0x20_0000),
                Ok(Change::Move { index: 1 }),
            ),
            (
                req(7, 2, 0x10_1000, 0x10_0000, 0x30_0000),
                Ok(Change::Move { index: 2 }),
            ),
            (
                req(3, 1, 0x1000, 0x3000, 0x10_0000),
                Ok(Change::Flags { index: 0 }),
            ),
            (
                req(7, 3, 0x10_0000, 0x10_0000, 0x30_0000),
                Ok(Change::Flags { index: 2 }),
            ),
            (req(3, 0, 0x1000, 0x3000, 0x10_0000), Ok(Change::Nothing)),
        ];
        for (r, want) in table {
            assert_eq!(validate(&s, &r, &LIMITS).map(|x| x.0), want, "{r:x?}");
        }
        assert_eq!((Overlap.errno(), Absent.errno()), (17, 22));
        let (_, new) = validate(&s, &req(9, 3, 0x5000, 0x1000, 0x10_0000), &LIMITS).unwrap();
        assert_eq!(
            new,
            Slot {
                flags: 3,
                ..slot(9, 0x5000, 1, 0x10_0000)
            }
        );
        assert_eq!(validate(&s, &req(3, 0, 0, 0, 0), &LIMITS).unwrap().1, s[0]);
    }

    #[test]
    fn look_up() {
        let s = set();
        let mut hint = 99;
        for page in 0..0x300u64 {
            let gpa = Gpa(page << 12 | 0x234);
            let want = s.iter().position(|x| x.range().contains(gpa));
            assert_eq!(find(&s, gpa), want);
            assert_eq!(find_cached(&s, gpa, &mut hint), want.map(|i| &s[i]));
            if let Some(i) = want {
                assert_eq!(hint, i);
                assert_eq!(s[i].hva(gpa), Some(Hva(s[i].hva.0 + (gpa.0 - s[i].gpa.0))));
                assert_eq!(s[i].page_index(gpa), Some((gpa.0 - s[i].gpa.0) >> 12));
                assert_eq!(s[i].bytes_from(gpa), s[i].range().end().0 - gpa.0);
            }
        }
        assert_eq!(s[0].hva(Gpa(0xfff)), None);
        assert_eq!(s[0].hva(Gpa(0x4000)), None);
        assert_eq!(s[0].bytes_from(Gpa(0x4000)), 0);
        assert_eq!(s[0].bytes_from(Gpa(0)), 0);
        assert_eq!(find(&s, Gpa(!0)), None);
        assert_eq!(find::<Slot>(&[], Gpa(0)), None);
        assert_eq!(index_of(&s, 7), Some(2));
    }

    #[test]
    fn notifier_ranges() {
        let mut s = set();
        // The same memory a second time.
        s.push(slot(8, 0x4000_0000, 2, 0x10_1000));
        let get = |a, b| gpa_ranges(&s, Hva(a), Hva(b)).collect::<Vec<_>>();
        let r = |a, n| GpaRange::new(Gpa(a), n).unwrap();
        assert_eq!(get(0x10_0000, 0x10_1000), [(0, r(0x1000, 0x1000))]);
        assert_eq!(
            get(0x10_2000, 0x20_0001),
            [
                (0, r(0x3000, 0x1000)),
                (1, r(0x4000, 0x1000)),
                (3, r(0x4000_1000, 0x1000)),
            ]
        );
        assert_eq!(get(0x10_0fff, 0x10_1001)[0], (0, r(0x1000, 0x2000)));
        assert_eq!(get(0, !0).len(), 4);
        assert_eq!(get(0x10_3000, 0x20_0000), []);
        assert_eq!(get(0x10_1000, 0x10_1000), []);
    }

    #[test]
    fn leaf_sizes() {
        let s = slot(0, 0x3fe0_0000, 0x8_0400, 0x7f00_3fe0_0000);
        assert_eq!(s.max_level(Gpa(0x3fe0_1000)), Level::L2);
        assert_eq!(s.max_level(Gpa(0x4000_0000)), Level::L3);
        assert_eq!(s.max_level(Gpa(0x7fff_ffff)), Level::L3);
        assert_eq!(s.max_level(Gpa(0x8000_0000)), Level::L3);
        assert_eq!(s.max_level(Gpa(0xc000_0000)), Level::L2);
        assert_eq!(s.max_level(Gpa(0xc020_0000)), Level::L1);
        let off = slot(0, 0x20_0000, 0x400, 0x7f00_0000_1000);
        assert_eq!(off.max_level(Gpa(0x20_0000)), Level::L1);
        let log = Slot {
            flags: LOG_DIRTY_PAGES,
            ..s
        };
        assert_eq!(log.max_level(Gpa(0x4000_0000)), Level::L1);
        let low = slot(0, 0x1000, 0x400, 0x7f00_0000_1000);
        assert_eq!(low.max_level(Gpa(0x1000)), Level::L1);
        assert_eq!(low.max_level(Gpa(0x20_0000)), Level::L2);
        assert_eq!(low.max_level(Gpa(0x40_0000)), Level::L1);
    }
}
