// SPDX-License-Identifier: GPL-2.0
//! Memory slots: rules of KVM_SET_USER_MEMORY_REGION (api.rst 4.35), look-up by guest-physical address and
//! translation of host-virtual ranges.
//!
//! All functions work on a slice sorted by `gpa` without overlaps; an element is a [`Slot`] or holds one. The
//! owner replaces the whole slice on a change, so that readers under RCU never see a half-made one.
#![forbid(unsafe_code)]

use core::cmp;

use crate::mem::addr::{Gpa, GpaRange, Hva, Level, PAGE_OFFSET_MASK, PAGE_SHIFT, PAGE_SIZE};
use crate::nospec;

/// Slots that user space may have (KVM_CAP_NR_MEMSLOTS; as many as KVM offers).
pub const MAX_SLOTS: u32 = 32764;

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
    /// The slot that `struct kvm_userspace_memory_region` describes; with no pages it stands for a deletion.
    ///
    /// # Errors
    ///
    /// [`SlotError::Misaligned`] if the size is not in whole pages; all else is up to [`validate`].
    #[inline]
    pub const fn from_region(
        id: u32,
        flags: u32,
        guest_phys_addr: u64,
        memory_size: u64,
        userspace_addr: u64,
    ) -> Result<Self, SlotError> {
        if memory_size & PAGE_OFFSET_MASK != 0 {
            return Err(SlotError::Misaligned);
        }
        Ok(Self {
            gpa: Gpa(guest_phys_addr),
            npages: memory_size >> PAGE_SHIFT,
            hva: Hva(userspace_addr),
            flags,
            id,
        })
    }

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

    /// Guest-physical range; `None` if it would wrap, which [`validate`] excludes.
    #[inline]
    pub const fn range(&self) -> Option<GpaRange> {
        GpaRange::new(self.gpa, self.len())
    }

    /// Whether `gpa` lies in the slot.
    #[inline]
    pub const fn contains(&self, gpa: Gpa) -> bool {
        gpa.0.wrapping_sub(self.gpa.0) < self.len()
    }

    /// Host-virtual address of `gpa`, if it lies in the slot.
    #[inline]
    pub fn hva_of(&self, gpa: Gpa) -> Option<Hva> {
        self.contains(gpa).then(|| self.hva_inside(gpa))
    }

    /// Host-virtual address of `gpa`, which lies in the slot.
    #[inline]
    pub fn hva_inside(&self, gpa: Gpa) -> Hva {
        self.hva.wrapping_add(self.offset_inside(gpa))
    }

    /// Distance of `gpa`, which lies in the slot, from its begin: guests choose it.
    #[inline]
    fn offset_inside(&self, gpa: Gpa) -> u64 {
        let offset = gpa.0.wrapping_sub(self.gpa.0);
        nospec::clamp(offset as usize, self.len() as usize) as u64
    }

    /// Number of the page in the slot (bit in its dirty bitmap) that holds `gpa`, if it lies in the slot.
    #[inline]
    pub fn page_index(&self, gpa: Gpa) -> Option<u64> {
        self.contains(gpa)
            .then(|| self.offset_inside(gpa) >> PAGE_SHIFT)
    }

    /// Guest-physical range that user addresses `start` (included) to `end` (excluded) back, if there is one. Rounded
    /// outwards to whole pages.
    #[inline]
    pub fn gpa_range(&self, start: Hva, end: Hva) -> Option<GpaRange> {
        let end = end
            .0
            .checked_add(PAGE_SIZE - 1)
            .map_or(u64::MAX, |e| e & !PAGE_OFFSET_MASK);
        let first = cmp::max(start.page().0, self.hva.0);
        let last = cmp::min(end, self.hva.0.checked_add(self.len())?);
        if first >= last {
            return None;
        }
        let gpa = self.gpa.checked_add(first.wrapping_sub(self.hva.0))?;
        GpaRange::new(gpa, last.wrapping_sub(first))
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

/// What a valid request means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new slot.
    Create,
    /// The slot goes away.
    Delete,
    /// Another guest-physical address; LOG_DIRTY_PAGES may change as well.
    Move,
    /// Only LOG_DIRTY_PAGES changes.
    FlagsOnly,
    /// The request repeats what is there.
    None,
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

/// Checks `new` against the slots of its address space and says what it means.
///
/// # Errors
///
/// See [`SlotError`].
pub fn validate<S: AsRef<Slot>>(
    slots: &[S],
    new: &Slot,
    limits: &Limits,
) -> Result<Change, SlotError> {
    if new.flags & !(LOG_DIRTY_PAGES | READONLY) != 0 {
        return Err(SlotError::Flag);
    }
    if !new.gpa.is_page_aligned() || !new.hva.is_page_aligned() {
        return Err(SlotError::Misaligned);
    }
    if new.id >> 16 >= limits.address_spaces || new.id & 0xffff >= limits.slots {
        return Err(SlotError::Number);
    }
    // Checked first: longer slots have no length in bytes.
    if new.npages > MAX_PAGES {
        return Err(SlotError::GuestRange);
    }
    match new.hva.checked_add(new.len()) {
        Some(end) if end.0 <= limits.hva_end => {}
        _ => return Err(SlotError::UserRange),
    }
    let Some(range) = new.range() else {
        return Err(SlotError::GuestRange);
    };
    let old = slots.iter().map(AsRef::as_ref).find(|s| s.id == new.id);
    let change = match old {
        None if new.is_empty() => return Err(SlotError::Absent),
        Some(_) if new.is_empty() => return Ok(Change::Delete),
        None => Change::Create,
        Some(old) => {
            let readonly = (old.flags ^ new.flags) & READONLY;
            if old.hva != new.hva || old.npages != new.npages || readonly != 0 {
                return Err(SlotError::Immutable);
            }
            if old.gpa == new.gpa {
                let same = old.flags == new.flags;
                return Ok(if same {
                    Change::None
                } else {
                    Change::FlagsOnly
                });
            }
            Change::Move
        }
    };
    // Only a change of place can leave the guest's address space or collide with another slot.
    if range.end().0 > limits.gpa_end {
        return Err(SlotError::GuestRange);
    }
    let collides = |s: &Slot| s.id != new.id && s.range().is_some_and(|r| r.overlaps(&range));
    if slots.iter().any(|s| collides(s.as_ref())) {
        return Err(SlotError::Overlap);
    }
    Ok(change)
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
pub fn find_index<S: AsRef<Slot>>(slots: &[S], gpa: Gpa) -> Option<usize> {
    let after = slots.partition_point(|s| s.as_ref().gpa <= gpa);
    let index = after.checked_sub(1)?;
    slots.get(index)?.as_ref().contains(gpa).then_some(index)
}

/// A slot in the order of user addresses.
#[derive(Clone, Copy, Debug)]
pub struct ByHva {
    slot: Slot,
    /// Largest end of this slot and those before it.
    reach: u64,
}

impl ByHva {
    /// The slot with this number.
    pub fn index_of(list: &[Self], id: u32) -> Option<usize> {
        list.iter().position(|e| e.slot.id == id)
    }

    /// `slot`, and the position at which it keeps the list sorted; [`ByHva::settle`] has to follow.
    pub fn new(list: &[Self], slot: Slot) -> (usize, Self) {
        let at = list.partition_point(|e| e.slot.hva < slot.hva);
        (at, Self { slot, reach: 0 })
    }

    /// Makes a list whole that has been changed.
    pub fn settle(list: &mut [Self]) {
        let mut reach = 0;
        for e in list {
            reach = cmp::max(reach, e.slot.hva.0.saturating_add(e.slot.len()));
            e.reach = reach;
        }
    }
}

/// Guest-physical ranges that user addresses `start` (included) to `end` (excluded) back: one for each slot that meets
/// the range, as several slots may map the same memory. Rounded outwards to whole pages.
#[inline]
pub fn gpa_ranges(list: &[ByHva], start: Hva, end: Hva) -> impl Iterator<Item = GpaRange> + '_ {
    let first = list.partition_point(|e| e.reach <= start.0);
    let last = list.partition_point(|e| e.slot.hva < end);
    let candidates = list.get(first..last).unwrap_or(&[]);
    candidates
        .iter()
        .filter_map(move |e| e.slot.gpa_range(start, end))
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

    fn request(
        slots: &[Slot],
        (id, flags, gpa, size, hva): (u32, u32, u64, u64, u64),
    ) -> Result<Change, SlotError> {
        validate(
            slots,
            &Slot::from_region(id, flags, gpa, size, hva)?,
            &LIMITS,
        )
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
            ((9, 4, 1, 0x1000, 1), Err(Flag)),
            ((9, 1 << 31, 0, 0, 0), Err(Flag)),
            ((9, 0, 0x8000, 0x800, 0), Err(Misaligned)),
            ((9, 0, 0x8008, 0x1000, 0), Err(Misaligned)),
            ((9, 0, 0x8000, 0x1000, 0x10), Err(Misaligned)),
            ((9, 0, 0x8000, 0x1000, 0x7fff_ffff_f000), Err(UserRange)),
            (
                (9, 0, 0x8000, 0x1000, 0xffff_8000_0000_0000),
                Err(UserRange),
            ),
            ((9, 0, 0x8000, !0xfff, 0x1000), Err(GuestRange)),
            ((512, 0, 0x8000, 0x1000, 0x1000), Err(Number)),
            ((0x1_0000, 0, 0x8000, 0x1000, 0x1000), Err(Number)),
            ((9, 0, !0xfff, 0x1000, 0x1000), Err(GuestRange)),
            ((9, 0, 1 << 40, 0x1000, 0x1000), Err(GuestRange)),
            ((9, 0, (1 << 40) - 0x1000, 0x2000, 0x1000), Err(GuestRange)),
            ((9, 0, 0, max + 0x1000, 0x1000), Err(GuestRange)),
            ((9, 0, 0, 0, 0), Err(Absent)),
            ((3, 0, 0x1000, 0x2000, 0x10_0000), Err(Immutable)),
            ((3, 0, 0x1000, 0x3000, 0x11_0000), Err(Immutable)),
            ((3, READONLY, 0x1000, 0x3000, 0x10_0000), Err(Immutable)),
            ((7, 0, 0x10_0000, 0x10_0000, 0x30_0000), Err(Immutable)),
            ((9, 0, 0x3000, 0x1000, 0x1000), Err(Overlap)),
            ((9, 0, 0, 0x1000_0000, 0x1000), Err(Overlap)),
            ((9, 0, 0x1f_f000, 0x2000, 0x1000), Err(Overlap)),
            ((3, 0, 0x2000, 0x3000, 0x10_0000), Err(Overlap)),
            ((9, 0, 0, 0x1000, 0x10_0000), Ok(Change::Create)),
            ((9, 3, 0x5000, 0x1000, 0x10_0000), Ok(Change::Create)),
            ((9, 0, 0x20_0000, 0x1000, 0), Ok(Change::Create)),
            ((9, 0, (1 << 40) - 0x1000, 0x1000, 0), Ok(Change::Create)),
            ((0, 0, 0, 0, 0), Ok(Change::Delete)),
            ((7, 0, 0x10_0000, 0, 0x30_0000), Ok(Change::Delete)),
            ((3, 0, 0x5000, 0x3000, 0x10_0000), Ok(Change::Move)),
            ((3, 1, 0x5000, 0x3000, 0x10_0000), Ok(Change::Move)),
            // Onto its own old place.
            ((0, 0, 0x5000, 0x1000, 0x20_0000), Ok(Change::Move)),
            ((7, 2, 0x10_1000, 0x10_0000, 0x30_0000), Ok(Change::Move)),
            ((3, 1, 0x1000, 0x3000, 0x10_0000), Ok(Change::FlagsOnly)),
            (
                (7, 3, 0x10_0000, 0x10_0000, 0x30_0000),
                Ok(Change::FlagsOnly),
            ),
            ((3, 0, 0x1000, 0x3000, 0x10_0000), Ok(Change::None)),
        ];
        for (r, want) in table {
            assert_eq!(request(&s, r), want, "{r:x?}");
        }
        for (gpa, at) in [(0, 0), (0x1000, 0), (0x5000, 2), (0x20_0000, 3)] {
            assert_eq!(insert_position(&s, Gpa(gpa)), at);
        }
    }

    #[test]
    fn look_up() {
        let s = set();
        for page in 0..0x300u64 {
            let gpa = Gpa(page << 12 | 0x234);
            let mut ranges = s.iter().map(|x| x.range().unwrap());
            let want = ranges.position(|r| r.start() <= gpa && gpa < r.end());
            assert_eq!(find_index(&s, gpa), want);
            if let Some(i) = want {
                assert_eq!(
                    s[i].hva_of(gpa),
                    Some(Hva(s[i].hva.0 + (gpa.0 - s[i].gpa.0)))
                );
                assert_eq!(s[i].page_index(gpa), Some((gpa.0 - s[i].gpa.0) >> 12));
            }
        }
        assert_eq!(s[0].hva_of(Gpa(0xfff)), None);
        assert_eq!(s[0].hva_of(Gpa(0x4000)), None);
        assert_eq!(find_index(&s, Gpa(!0)), None);
        assert_eq!(find_index::<Slot>(&[], Gpa(0)), None);
        assert_eq!(index_of(&s, 7), Some(2));
    }

    #[test]
    fn notifier_ranges() {
        let mut s = set();
        // The same memory a second time.
        s.push(slot(8, 0x4000_0000, 2, 0x10_1000));
        // One that reaches over all others.
        s.push(slot(9, 0x8000_0000, 0x400, 0x10_0000));
        let mut list = Vec::new();
        for slot in &s {
            let (at, entry) = ByHva::new(&list, *slot);
            list.insert(at, entry);
            ByHva::settle(&mut list);
        }
        let check = |list: &[ByHva], s: &[Slot]| {
            let borders = [
                0, 0x10_0000, 0x10_0001, 0x10_1000, 0x10_2fff, 0x10_3000, 0x20_0000, 0x20_1000,
                0x30_0000, 0x50_0000, !0,
            ];
            for (a, b) in borders
                .iter()
                .flat_map(|a| borders.map(|b| (Hva(*a), Hva(b))))
            {
                let got: Vec<_> = gpa_ranges(list, a, b).collect();
                let want = s.iter().filter_map(|s| s.gpa_range(a, b));
                assert_eq!(got.len(), want.clone().count(), "{a:?} {b:?}");
                assert!(want.clone().all(|r| got.contains(&r)), "{a:?} {b:?}");
            }
        };
        check(&list, &s);
        let r = |a, n| GpaRange::new(Gpa(a), n);
        assert_eq!(
            s[0].gpa_range(Hva(0x10_0fff), Hva(0x10_1001)),
            r(0x1000, 0x2000)
        );
        assert_eq!(s[0].gpa_range(Hva(0x10_2000), Hva(!0)), r(0x3000, 0x1000));
        assert_eq!(s[0].gpa_range(Hva(0x10_3000), Hva(0x20_0000)), None);
        assert_eq!(s[0].gpa_range(Hva(0x10_1000), Hva(0x10_1000)), None);
        list.remove(ByHva::index_of(&list, 9).unwrap());
        ByHva::settle(&mut list);
        s.pop();
        check(&list, &s);
        assert_eq!(ByHva::index_of(&list, 9), None);
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
