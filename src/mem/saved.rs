// SPDX-License-Identifier: GPL-2.0
//! What guest pages held before they were first written after the reset point (`reset` has the rest of it).
//!
//! # Ordering
//!
//! A copy is made without a lock and then entered under `point`, in the round in which it was made. Whoever writes has
//! seen the page entered before, so the copy that is entered holds nothing of any write: later copies of the same page
//! are dropped.
//!
//! Every point and every reset begins another [`Round`]: what a fault has found out about its page in one it does not
//! act on in the next.
//!
//! Called by vCPU threads, in a stay (what does not sleep) and outside of one, and by ioctls. Nothing else is locked
//! under `point`, which is held for a few steps.

use crate::linux::page::DataPage;
use crate::linux::uaccess;
use crate::mem::addr::{Gpa, Hva, PAGE_OFFSET_MASK, PAGE_SIZE};
use crate::mem::dirty;
use crate::mem::forks::{Core, Forks};
use crate::mem::rounds::{Round, Rounds};
use crate::mem::slot_table::SlotTable;
use crate::mem::slots::Slot;
use crate::mem::writer::{NotSaved, Writer};
use crate::nospec;
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_spinlock, Arc, SpinLock};
use kernel::uaccess::{UserPtr, UserSlice};

/// Pages that may be saved beyond the limit, for writes of the kernel: an instruction that is half done goes on to its
/// end, and KVM_RUN ends after it.
const RESERVE: usize = 1024;

/// Largest limit: what keeps track of so many pages is one allocation.
const MAX_LIMIT: u64 = 1 << 25;

/// The pages of one slot.
struct Area {
    slot: Slot,
    /// Which of its pages are saved.
    bits: KVVec<u64>,
}

/// A page as it was.
pub(super) struct Saved {
    pub(super) gpa: Gpa,
    pub(super) page: DataPage,
}

/// What has been saved since the point.
pub(super) struct Store {
    /// The slots at the point, by guest-physical address.
    areas: KVVec<Area>,
    /// First `used` pages in the order in which they were saved, then spare ones. There is room for `limit` and
    /// [`RESERVE`].
    pages: KVVec<Saved>,
    used: usize,
    limit: usize,
}

/// What [`Store::begin`] says about a page.
enum Begun {
    /// It is saved, or needs not be.
    Done,
    /// To be copied into this page, or a new one.
    Copy(Option<DataPage>),
}

impl Store {
    /// EINVAL: the limit is too high for these slots.
    pub(super) fn new(slots: &SlotTable, limit: u64) -> Result<Self> {
        let (mut count, mut all) = (0usize, 0u64);
        slots.each(|s| {
            count = count.saturating_add(1);
            all = all.saturating_add(s.npages);
        });
        let limit = Some(limit.min(all))
            .filter(|n| *n <= MAX_LIMIT)
            .ok_or(EINVAL)?;
        let limit = usize::try_from(limit)?;
        let mut areas = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        let mut room_is_there = Ok(());
        slots.each(|slot| {
            let area = Area {
                slot: *slot,
                bits: KVVec::new(),
            };
            room_is_there = room_is_there.and(areas.push_within_capacity(area).map_err(|_| ENOMEM));
        });
        room_is_there?;
        for area in areas.iter_mut() {
            let words = usize::try_from(dirty::words(area.slot.npages))?;
            area.bits.resize(words, 0, GFP_KERNEL_ACCOUNT)?;
        }
        let room = limit.saturating_add(RESERVE);
        Ok(Self {
            areas,
            pages: KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?,
            used: 0,
            limit,
        })
    }

    /// Where the last area is that does not begin after `gpa`.
    fn index(&self, gpa: Gpa) -> Option<usize> {
        let after = self.areas.partition_point(|a| a.slot.gpa <= gpa);
        after.checked_sub(1)
    }

    /// The area that holds `gpa`, and the page's number in it.
    fn area(&mut self, gpa: Gpa) -> Option<(&mut Area, u64)> {
        let index = self.index(gpa)?;
        let area = self.areas.get_mut(index)?;
        let page = area.slot.page_index(gpa)?;
        Some((area, page))
    }

    /// The word and bit that say whether the page is saved. `None`: no slot.
    fn bit(&mut self, gpa: Gpa) -> Option<(&mut u64, u64)> {
        let (area, page) = self.area(gpa)?;
        let (word, bit) = dirty::bit(page);
        let words = area.bits.len();
        let word = nospec::clamp(word as usize, words);
        Some((area.bits.get_mut(word)?, bit))
    }

    fn holds(&mut self, gpa: Gpa) -> bool {
        self.bit(gpa).is_none_or(|(word, bit)| *word & bit != 0)
    }

    fn begin(&mut self, gpa: Gpa, by: Writer) -> Result<Begun, NotSaved> {
        if self.holds(gpa) {
            return Ok(Begun::Done);
        }
        if by == Writer::Limited && self.used >= self.limit || self.used >= self.pages.capacity() {
            return Err(NotSaved::Full);
        }
        let spare = (self.pages.len() > self.used).then(|| self.pages.pop());
        Ok(Begun::Copy(spare.flatten().map(|s| s.page)))
    }

    /// Enters `page`, a copy of the page at `gpa`, if there is none yet; else it is spare, or given back when there is
    /// no room for it.
    fn enter(
        &mut self,
        gpa: Gpa,
        by: Writer,
        page: DataPage,
    ) -> (Result<(), NotSaved>, Option<DataPage>) {
        let done = self.holds(gpa);
        if let Err(e) = self.pages.push_within_capacity(Saved { gpa, page }) {
            let full = if done { Ok(()) } else { Err(NotSaved::Full) };
            return (full, Some(e.0.page));
        }
        if done {
            return (Ok(()), None);
        }
        if by == Writer::Limited && self.used >= self.limit {
            return (Err(NotSaved::Full), None);
        }
        let last = self.pages.len().saturating_sub(1);
        self.pages.swap(self.used, last);
        self.used = self.used.saturating_add(1);
        if let Some((word, bit)) = self.bit(gpa) {
            *word |= bit;
        }
        (Ok(()), None)
    }

    /// The pages that were saved, the last one first.
    pub(super) fn latest_first(&self) -> impl Iterator<Item = &Saved> {
        self.pages.iter().take(self.used).rev()
    }

    /// Nothing is saved any more; the pages are spare.
    pub(super) fn forget(&mut self) {
        for n in 0..self.used {
            let Some(gpa) = self.pages.get(n).map(|s| s.gpa) else {
                break;
            };
            if let Some((word, bit)) = self.bit(gpa) {
                *word &= !bit;
            }
        }
        self.used = 0;
    }

    /// The slots at the point.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.areas.iter().map(|a| &a.slot)
    }

    /// How many pages are saved.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// User address of the page at `gpa`.
    pub(super) fn hva(&self, gpa: Gpa) -> Option<Hva> {
        self.areas.get(self.index(gpa)?)?.slot.hva_of(gpa)
    }
}

/// Whether there is a point.
pub(super) enum Point {
    Never,
    /// Slots have changed since, or a device came.
    Lost,
    /// Somebody under `GuestMemory.update` has it.
    Taken,
    There(KBox<Store>),
}

/// The reset point of a VM's memory, and its forks: who has to see pages before they are written.
#[pin_data]
pub(super) struct Reset {
    /// Change under `point`, and while no vCPU runs, but when the point is lost or the last fork has gone.
    rounds: Rounds,
    forks: Arc<Forks>,
    forked: AtomicBool,
    /// More than the limit has been saved.
    over: AtomicBool,
    #[pin]
    point: SpinLock<Point>,
}

impl Reset {
    /// No point, and no forks.
    pub(super) fn new() -> Result<impl PinInit<Self>> {
        let forks = Forks::new()?;
        Ok(pin_init!(Self {
            rounds: Rounds::new(),
            forks,
            forked: AtomicBool::new(false),
            over: AtomicBool::new(false),
            point <- new_spinlock!(Point::Never),
        }))
    }

    /// The forks that are there.
    pub(super) fn forks(&self) -> &Arc<Forks> {
        &self.forks
    }

    /// Adds a fork; a new round begins. ENOSPC: there are too many.
    pub(super) fn add_fork(&self, fork: &Arc<Core>) -> Result {
        let _point = self.point.lock();
        self.forks.add(fork.clone())?;
        self.forked.store(true, Ordering::Relaxed);
        self.rounds.begin(true);
        Ok(())
    }

    /// Whether there is a point.
    pub(super) fn has_point(&self) -> bool {
        matches!(&*self.point.lock(), Point::There(_) | Point::Taken)
    }

    /// Whether there has ever been a fork.
    #[inline(always)]
    pub(super) fn has_forked(&self) -> bool {
        self.forked.load(Ordering::Relaxed)
    }

    /// Nobody has to be told of writes, if there is neither a point nor a fork any more.
    fn settle(&self) {
        let point = self.point.lock();
        let armed = self.is_armed() && self.forks.is_empty();
        if armed && matches!(*point, Point::Never | Point::Lost) {
            self.rounds.begin(false);
        }
    }

    /// The present round.
    #[inline(always)]
    pub(super) fn round(&self) -> Round {
        self.rounds.now()
    }

    /// Whether writes have to be told before they happen.
    #[inline(always)]
    pub(super) fn is_armed(&self) -> bool {
        self.round().is_armed()
    }

    /// Whether more than the limit has been saved.
    #[inline(always)]
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// ENODATA, ESTALE: there is no point, or it has been lost.
    pub(super) fn check(&self) -> Result {
        match &*self.point.lock() {
            Point::There(_) | Point::Taken => Ok(()),
            Point::Lost => Err(ESTALE),
            Point::Never => Err(ENODATA),
        }
    }

    /// Whether the guest may write to the page at `gpa`, behind user address `hva`, without a word.
    pub(super) fn is_saved(&self, gpa: Gpa, hva: usize) -> bool {
        if !self.is_armed() {
            return true;
        }
        match &mut *self.point.lock() {
            Point::There(store) => store.holds(gpa),
            Point::Taken => false,
            Point::Never | Point::Lost => self.forks.are_done(hva),
        }
    }

    /// Saves the page at `gpa`, behind user address `hva`, unless that has been done, for the reset point or forks,
    /// which exclude each other.
    pub(super) fn save(&self, gpa: Gpa, hva: usize, by: Writer) -> Result<(), NotSaved> {
        if !self.is_armed() {
            return Ok(());
        }
        let gpa = gpa.page();
        let hva = hva & !(PAGE_OFFSET_MASK as usize);
        if !self.forks.is_empty() {
            return self.forks.separate(hva, by);
        }
        if by != Writer::Atomic {
            self.settle();
        }
        self.save_for_reset(gpa, hva, by)
    }

    fn save_for_reset(&self, gpa: Gpa, hva: usize, by: Writer) -> Result<(), NotSaved> {
        let (begun, round) = {
            let mut point = match by {
                Writer::Atomic => self.point.try_lock().ok_or(NotSaved::Fault)?,
                _ => self.point.lock(),
            };
            match &mut *point {
                Point::There(store) => (store.begin(gpa, by)?, self.round()),
                Point::Taken => return Err(NotSaved::Fault),
                Point::Never | Point::Lost => return Ok(()),
            }
        };
        let mut page = match begun {
            Begun::Done => return Ok(()),
            Begun::Copy(Some(page)) => page,
            Begun::Copy(None) if by == Writer::Atomic => return Err(NotSaved::Fault),
            Begun::Copy(None) => DataPage::new().map_err(|_| NotSaved::NoMemory)?,
        };
        let copied = match uaccess::copy_from(hva, page.bytes_mut()) {
            Err(_) if by != Writer::Atomic => {
                UserSlice::new(UserPtr::from_addr(hva), PAGE_SIZE as usize)
                    .reader()
                    .read_slice(page.bytes_mut())
            }
            copied => copied,
        };
        // A page that is left over is freed after the lock.
        let (result, _left) = {
            let mut point = self.point.lock();
            match &mut *point {
                // A copy from another round may hold writes that have been undone since.
                Point::There(store) if copied.is_ok() && self.round() == round => {
                    let entered = store.enter(gpa, by, page);
                    if store.used > store.limit {
                        self.over.store(true, Ordering::Relaxed);
                    }
                    entered
                }
                Point::There(store) => {
                    let left = store.spare(page);
                    (Err(NotSaved::Fault), left)
                }
                Point::Taken => (Err(NotSaved::Fault), Some(page)),
                Point::Never | Point::Lost => (Ok(()), Some(page)),
            }
        };
        result
    }

    /// The point is void: something has changed that it does not hold. Sleeps.
    pub(super) fn lose(&self) {
        if self.has_point() {
            drop(self.replace(Point::Lost));
        }
    }

    /// Puts another point in place; a new round begins. What it was is to be dropped outside of spin locks.
    pub(super) fn replace(&self, point: Point) -> Point {
        let there = matches!(point, Point::There(_) | Point::Taken);
        let mut current = self.point.lock();
        self.rounds.begin(there || !self.forks.is_empty());
        if let Point::There(store) = &point {
            self.over.store(store.used > store.limit, Ordering::Relaxed);
        } else if !there {
            self.over.store(false, Ordering::Relaxed);
        }
        core::mem::replace(&mut *current, point)
    }

    /// Takes what has been saved away for a while. ENODATA: there is no point; ESTALE: it has been lost.
    pub(super) fn take(&self) -> Result<KBox<Store>> {
        match self.replace(Point::Taken) {
            Point::There(store) => Ok(store),
            none => {
                let error = if matches!(none, Point::Lost) {
                    ESTALE
                } else {
                    ENODATA
                };
                let _ = self.replace(none);
                Err(error)
            }
        }
    }
}

impl Store {
    /// Takes back a page that was not needed. Some: there is no room for it.
    fn spare(&mut self, page: DataPage) -> Option<DataPage> {
        let gpa = Gpa(0);
        let full = self.pages.push_within_capacity(Saved { gpa, page });
        full.err().map(|e| e.0.page)
    }
}
