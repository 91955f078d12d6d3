// SPDX-License-Identifier: GPL-2.0
//! Guest memory read and written by the kernel, through the user addresses behind it.
//!
//! Called by vCPU threads, in a stay (what does not sleep) and outside of one, and by ioctls.

use crate::linux::gup;
use crate::linux::uaccess;
use crate::linux::version_cell::Version;
use crate::mem::addr::{Gpa, Hva, PAGE_OFFSET_MASK, PAGE_SIZE};
use crate::mem::missing::Absent;
use crate::mem::ring::Ring;
use crate::mem::saved::Reset;
use crate::mem::slot_table::{Entry, SlotTable};
use crate::mem::slots::Slot;
use crate::mem::writer::Writer;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::uaccess::{UserPtr, UserSlice};

/// Why guest memory could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemError {
    /// No slot, or a write to a read-only one.
    NotRam,
    /// The slot's user memory is not there.
    Fault,
    /// Nor is this page of it, and the slot says that user space brings it: it has not been touched.
    Missing(Absent),
}

impl From<MemError> for Error {
    fn from(_: MemError) -> Self {
        EFAULT
    }
}

/// Guest memory as one set of slots shows it; a read-side section.
pub(crate) struct MemoryView<'a> {
    pub(super) slots: Version<'a, SlotTable>,
    /// That of the vCPU for which it is used.
    pub(super) ring: Option<Arc<Ring>>,
    pub(super) reset: &'a Reset,
}

impl MemoryView<'_> {
    /// User address of `gpa`, how many bytes follow it in the same page, and the slot.
    #[inline]
    fn resolve(&self, gpa: Gpa, write: bool) -> Result<(usize, usize, &Entry), MemError> {
        let entry = self.slots.find(gpa).ok_or(MemError::NotRam)?;
        if write && entry.slot.is_readonly() {
            return Err(MemError::NotRam);
        }
        let hva = entry.slot.hva_inside(gpa);
        let room = (PAGE_SIZE - (gpa.0 & PAGE_OFFSET_MASK)) as usize;
        Ok((
            usize::try_from(hva.0).map_err(|_| MemError::Fault)?,
            room,
            entry,
        ))
    }

    /// For several look-ups that probably fall into one slot.
    #[inline]
    pub(crate) fn near(&self) -> Near<'_> {
        Near {
            slots: &self.slots,
            slot: &NO_SLOT,
        }
    }

    /// The slot at `gpa`, if an access there is one to memory; see [`MemoryView::is_device`].
    #[inline]
    pub(crate) fn memory_at(&self, gpa: Gpa, write: bool) -> Option<&Entry> {
        let entry = self.slots.find(gpa)?;
        (!write || !entry.slot.is_readonly()).then_some(entry)
    }

    /// Whether an access to `gpa` is one to a device: no slot, or a write to a read-only one.
    #[inline]
    pub(crate) fn is_device(&self, gpa: Gpa, write: bool) -> bool {
        self.memory_at(gpa, write).is_none()
    }

    /// Fails with `Missing` where the page at `gpa` is missing and its slot reports that. The address space is the
    /// VM's. What the host removes right after is not noticed.
    pub(crate) fn check_present(&self, gpa: Gpa) -> Result<(), MemError> {
        let Some(Entry { slot, .. }) = self.slots.find(gpa) else {
            return Ok(());
        };
        let Some(hva) = slot.hva_of(gpa).filter(|_| slot.reports_missing()) else {
            return Ok(());
        };
        let page = Absent {
            gpa: gpa.page(),
            hva: hva.page(),
        };
        if gup::is_absent(page.hva.0 as usize) {
            return Err(MemError::Missing(page));
        }
        Ok(())
    }

    /// User address that backs `gpa`, for reading within its page. `write`: as far as slots go it could be written.
    #[inline]
    pub(crate) fn hva(&self, gpa: Gpa, write: bool) -> Result<usize, MemError> {
        self.resolve(gpa, write).map(|r| r.0)
    }

    /// User address that backs `gpa`, for writing within its page, followed by [`MemoryView::mark_dirty`]. Sleeps if it
    /// may; else `Fault` says that it would have to. Where there is a reset point fails with `Missing` as
    /// [`MemoryView::check_present`].
    #[inline]
    pub(crate) fn hva_to_write(&self, gpa: Gpa, may_sleep: bool) -> Result<usize, MemError> {
        let hva = self.hva(gpa, true)?;
        if self.reset.is_armed() {
            self.save(gpa, hva, may_sleep)?;
        }
        Ok(hva)
    }

    /// The page at `gpa` is going to be written: keeps its contents for a reset. A page that is missing has none.
    #[cold]
    fn save(&self, gpa: Gpa, hva: usize, may_sleep: bool) -> Result<(), MemError> {
        let by = if may_sleep {
            self.check_present(gpa)?;
            Writer::Kernel
        } else {
            Writer::Atomic
        };
        self.reset.save(gpa, hva, by).map_err(|_| MemError::Fault)
    }

    /// Reads an aligned 32-bit word, without sleeping.
    #[inline]
    pub(crate) fn try_read_u32(&self, gpa: Gpa) -> Result<u32, MemError> {
        let (hva, _, _) = self.resolve(gpa, false)?;
        uaccess::get_u32(hva).map_err(|_| MemError::Fault)
    }

    /// Reads an aligned 64-bit word, without sleeping.
    #[inline]
    pub(crate) fn try_read_u64(&self, gpa: Gpa) -> Result<u64, MemError> {
        let (hva, _, _) = self.resolve(gpa, false)?;
        uaccess::get_u64(hva).map_err(|_| MemError::Fault)
    }

    /// Reads 16 bytes inside a page, without sleeping.
    #[inline]
    pub(crate) fn try_read_16(&self, gpa: Gpa) -> Result<[u8; 16], MemError> {
        let (hva, _, _) = self.resolve(gpa, false)?;
        let low = uaccess::get_u64(hva).map_err(|_| MemError::Fault)?;
        let high = uaccess::get_u64(hva.wrapping_add(8)).map_err(|_| MemError::Fault)?;
        Ok((u128::from(high) << 64 | u128::from(low)).to_le_bytes())
    }

    /// Reads within the slots, without sleeping: fails with `Fault` where the host's page is not resident.
    pub(crate) fn try_read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemError> {
        self.read_with(gpa, buf, |_, hva, part| {
            uaccess::copy_from(hva, part).map_err(|_| MemError::Fault)
        })
    }

    /// Reads within the slots, sleeping where it must. Fails with `Missing` as [`MemoryView::check_present`].
    pub(crate) fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemError> {
        self.read_with(gpa, buf, |at, hva, part| {
            if uaccess::copy_from(hva, part).is_ok() {
                return Ok(());
            }
            self.check_present(at)?;
            UserSlice::new(UserPtr::from_addr(hva), part.len())
                .reader()
                .read_slice(part)
                .map_err(|_| MemError::Fault)
        })
    }

    fn read_with(
        &self,
        gpa: Gpa,
        buf: &mut [u8],
        mut copy: impl FnMut(Gpa, usize, &mut [u8]) -> Result<(), MemError>,
    ) -> Result<(), MemError> {
        let mut at = gpa;
        let mut rest = buf;
        while !rest.is_empty() {
            let (hva, room, _) = self.resolve(at, false)?;
            let n = room.min(rest.len());
            let (part, tail) = rest.split_at_mut(n);
            copy(at, hva, part)?;
            rest = tail;
            at = at.wrapping_add(n as u64);
        }
        Ok(())
    }

    /// Writes within the slots, sleeping where it must, and marks the pages dirty. Fails with `Missing` as
    /// [`MemoryView::check_present`].
    pub(crate) fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemError> {
        let mut at = gpa;
        let mut rest = data;
        while !rest.is_empty() {
            let (hva, room, entry) = self.resolve(at, true)?;
            let n = room.min(rest.len());
            let (part, tail) = rest.split_at(n);
            if self.reset.is_armed() {
                self.save(at, hva, true)?;
            }
            if uaccess::copy_to(hva, part).is_err() {
                self.check_present(at)?;
                UserSlice::new(UserPtr::from_addr(hva), n)
                    .writer()
                    .write_slice(part)
                    .map_err(|_| MemError::Fault)?;
            }
            entry.mark_dirty(at, self.ring.as_deref());
            rest = tail;
            at = at.wrapping_add(n as u64);
        }
        Ok(())
    }

    /// Marks the page at `gpa` dirty after an access by its user address.
    pub(crate) fn mark_dirty(&self, gpa: Gpa) {
        if let Some(entry) = self.slots.find(gpa) {
            entry.mark_dirty(gpa, self.ring.as_deref());
        }
    }

    /// Marks the page that was at `gpa` in `slot`, which is leaving, if writes to it go to a dirty ring.
    #[cold]
    pub(super) fn mark_left(&self, slot: &Slot, gpa: Gpa) {
        let page = slot.page_index(gpa).filter(|_| slot.is_logging());
        if let (Some(page), Some(ring)) = (page, self.ring.as_deref()) {
            ring.push(slot.id, page);
        }
    }
}

/// Look-ups that remember the last slot.
pub(crate) struct Near<'a> {
    slots: &'a SlotTable,
    /// Empty at first.
    slot: &'a Slot,
}

/// Holds no address.
static NO_SLOT: Slot = Slot {
    gpa: Gpa(0),
    npages: 0,
    hva: Hva(0),
    flags: 0,
    id: 0,
};

impl Near<'_> {
    /// User address that backs `gpa`, for reading within its page.
    #[inline(always)]
    pub(crate) fn hva(&mut self, gpa: Gpa) -> Option<usize> {
        if !self.slot.contains(gpa) {
            self.slot = &self.slots.find(gpa)?.slot;
        }
        // User addresses have 64 bits here.
        Some(self.slot.hva_inside(gpa).0 as usize)
    }
}
