// SPDX-License-Identifier: GPL-2.0
//! Memory slots: what one is, and the rules of KVM_SET_USER_MEMORY_REGION (api.rst 4.35). `slot_set` holds many.
#![forbid(unsafe_code)]

use core::cmp;

use crate::mem::addr::{Gpa, GpaRange, Hva, Level, PAGE_OFFSET_MASK, PAGE_SHIFT, PAGE_SIZE};
use crate::nospec;

/// Slots that user space may have (KVM_CAP_NR_MEMSLOTS; as many as KVM offers).
pub const MAX_SLOTS: u32 = 32764;

/// Address spaces of a VM (KVM_CAP_MULTI_ADDRESS_SPACE), each with slots of its own; bits 31:16 of a slot's number say
/// which. The first is what guests see; another is for what the architecture has besides.
pub const ADDRESS_SPACES: u32 = 2;

/// KVM_MEM_LOG_DIRTY_PAGES.
pub const LOG_DIRTY_PAGES: u32 = 1 << 0;
/// KVM_MEM_READONLY.
pub const READONLY: u32 = 1 << 1;
/// RVMM_MEM_MISSING, rvmm's own: user space brings pages that are not there.
pub const MISSING: u32 = 1 << 24;
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
    /// [`LOG_DIRTY_PAGES`], [`READONLY`] and [`MISSING`].
    pub flags: u32,
    /// Number given by user space, with the address space in bits 31:16.
    pub id: u32,
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

    /// Whether pages that are not there are reported.
    #[inline]
    pub const fn reports_missing(&self) -> bool {
        self.flags & MISSING != 0
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
    /// Only LOG_DIRTY_PAGES or RVMM_MEM_MISSING changes.
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

/// Checks `new` and says what it means. `old` is the slot with its number; `taken` says whether another slot overlaps
/// a range.
///
/// # Errors
///
/// See [`SlotError`].
pub fn validate(
    new: &Slot,
    old: Option<&Slot>,
    limits: &Limits,
    taken: impl FnOnce(&GpaRange) -> bool,
) -> Result<Change, SlotError> {
    if new.flags & !(LOG_DIRTY_PAGES | READONLY | MISSING) != 0 {
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
    if taken(&range) {
        return Err(SlotError::Overlap);
    }
    Ok(change)
}

#[cfg(test)]
pub(crate) mod tests {
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
        let new = Slot::from_region(id, flags, gpa, size, hva)?;
        let old = slots.iter().find(|s| s.id == id);
        let collides = |s: &Slot, r: &GpaRange| s.id != id && s.range().unwrap().overlaps(r);
        validate(&new, old, &LIMITS, |r| slots.iter().any(|s| collides(s, r)))
    }

    /// A slot without flags.
    pub(crate) fn slot(id: u32, gpa: u64, npages: u64, hva: u64) -> Slot {
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
            (
                (3, MISSING, 0x1000, 0x3000, 0x10_0000),
                Ok(Change::FlagsOnly),
            ),
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
    }

    #[test]
    fn addresses() {
        let s = set();
        for page in 0..0x300u64 {
            let gpa = Gpa(page << 12 | 0x234);
            for s in &s {
                let inside = s.range().unwrap().start() <= gpa && gpa < s.range().unwrap().end();
                let offset = gpa.0.wrapping_sub(s.gpa.0);
                assert_eq!(s.hva_of(gpa), inside.then(|| Hva(s.hva.0 + offset)));
                assert_eq!(s.page_index(gpa), inside.then_some(offset >> 12));
            }
        }
        assert_eq!(s[0].hva_of(Gpa(0xfff)), None);
        assert_eq!(s[0].hva_of(Gpa(0x4000)), None);
    }

    #[test]
    fn ranges_of_user_addresses() {
        let s = set();
        let r = |a, n| GpaRange::new(Gpa(a), n);
        assert_eq!(
            s[0].gpa_range(Hva(0x10_0fff), Hva(0x10_1001)),
            r(0x1000, 0x2000)
        );
        assert_eq!(s[0].gpa_range(Hva(0x10_2000), Hva(!0)), r(0x3000, 0x1000));
        assert_eq!(s[0].gpa_range(Hva(0x10_3000), Hva(0x20_0000)), None);
        assert_eq!(s[0].gpa_range(Hva(0x10_1000), Hva(0x10_1000)), None);
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
