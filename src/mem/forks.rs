// SPDX-License-Identifier: GPL-2.0
//! The memory of a VM as it was at a fork: `RVMM_FORK`.
//!
//! A fork keeps no copy of memory. It remembers which user addresses were behind slots, and a page comes into it, as
//! it was at the fork, by whichever comes first: before the VM writes it, or when somebody looks at it through a
//! mapping of the fork. Until then it is the VM's own page. Pages go by user address, so memory behind several slots is
//! one memory in the fork, too, and slots of the VM may change.
//!
//! Mappings of a fork are private: who writes there has a copy from the kernel's own fault. So a page of a fork never
//! changes, and any number of VMs have their memory from one fork.
//!
//! # Ordering
//!
//! As for reset points (`saved`): a copy is made without a lock and then entered, unless there is one already; whoever
//! writes has seen one entered before. So a copy that gets entered holds nothing of any write, and neither does one
//! that was made before there was found to be none.
//!
//! A fork begins a new round (`rounds`), so that no fault maps a page writable by what it knew before.
//!
//! # Locks
//!
//! mmap_lock > `Core.entering` > that of `Core.pages`. `Forks.list` > that of `Core.pages`. In a stay the last two are
//! taken with interrupts off, and otherwise with them on: no interrupt handler takes them.

use crate::linux::frozen_pages::{Fault, FrozenPage, FrozenPages, Grant, Origin};
use crate::linux::page::DataPage;
use crate::linux::uaccess;
use crate::mem::addr::{Hva, PAGE_SHIFT, PAGE_SIZE};
use crate::mem::slot_table::SlotTable;
use crate::mem::writer::{NotSaved, Writer};
use core::sync::atomic::{fence, Ordering};
use kernel::mm::Mm;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SpinLock};
use kernel::uaccess::{UserPtr, UserSlice};
use kernel::xarray::{AllocKind, XArray};

/// Forks of one VM that may be there at once.
const MAX_FORKS: usize = 16;

/// What a fork is to the VM that it was made of.
#[pin_data]
pub(super) struct Core {
    /// The VM's address space.
    mm: ARef<Mm>,
    /// The VM's slots at the fork.
    slots: SlotTable,
    /// Its pages as far as they have come, by user address. None is taken away.
    #[pin]
    pages: XArray<KBox<FrozenPage>>,
    /// Held from the look whether there is a page until one is entered.
    #[pin]
    entering: Mutex<()>,
}

impl Core {
    fn new(mm: &Mm, slots: SlotTable) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                mm: mm.into(),
                slots,
                pages <- XArray::new(AllocKind::Alloc),
                entering <- new_mutex!(()),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Whether the page is in the fork, or will never be. Any context.
    fn is_done(&self, hva: usize) -> bool {
        !self.covers(hva) || self.pages.lock().get(hva >> PAGE_SHIFT).is_some()
    }

    /// Whether a slot had this user address.
    fn covers(&self, hva: usize) -> bool {
        let start = Hva(hva as u64);
        let found = self
            .slots
            .try_each_range(start, start.wrapping_add(1), |_| Err(()));
        found.is_err()
    }

    /// A reference to the page with this number.
    fn grant(&self, number: usize) -> Option<Grant> {
        self.pages.lock().get(number).map(FrozenPage::grant)
    }

    /// Enters `page`, a copy of the page with this number, if there is none yet.
    fn enter(&self, number: usize, page: DataPage) -> Result {
        let page = KBox::new(FrozenPage::new(page), GFP_KERNEL_ACCOUNT)?;
        // Storing may let go of the other lock.
        let _one = self.entering.lock();
        let mut pages = self.pages.lock();
        if pages.get(number).is_some() {
            return Ok(());
        }
        pages
            .store(number, page, GFP_KERNEL_ACCOUNT)
            .map(|_| ())
            .map_err(|_| ENOMEM)
    }

    /// The VM is about to write to the page at `hva`. Sleeps.
    fn separate(&self, hva: usize) -> Result<(), NotSaved> {
        if self.is_done(hva) {
            return Ok(());
        }
        let mut page = DataPage::new().map_err(|_| NotSaved::NoMemory)?;
        let copied = uaccess::copy_from(hva, page.bytes_mut()).or_else(|_| {
            UserSlice::new(UserPtr::from_addr(hva), PAGE_SIZE as usize)
                .reader()
                .read_slice(page.bytes_mut())
        });
        copied.map_err(|_| NotSaved::Fault)?;
        self.enter(hva >> PAGE_SHIFT, page)
            .map_err(|_| NotSaved::NoMemory)
    }
}

/// The forks of a VM that are still there.
#[pin_data]
pub(super) struct Forks {
    #[pin]
    list: SpinLock<[Option<Arc<Core>>; MAX_FORKS]>,
}

impl Forks {
    /// None.
    pub(super) fn new() -> Result<Arc<Self>> {
        let none = [const { None }; MAX_FORKS];
        Arc::pin_init(
            pin_init!(Self { list <- new_spinlock!(none) }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.list.lock().iter().all(Option::is_none)
    }

    /// ENOSPC: there are too many.
    pub(super) fn add(&self, core: Arc<Core>) -> Result {
        let mut list = self.list.lock();
        let free = list.iter_mut().find(|f| f.is_none()).ok_or(ENOSPC)?;
        *free = Some(core);
        Ok(())
    }

    fn remove(&self, core: &Arc<Core>) {
        let is_it = |f: &&mut Option<Arc<Core>>| f.as_ref().is_some_and(|c| Arc::ptr_eq(c, core));
        // Dropped after the lock.
        let _removed = {
            let mut list = self.list.lock();
            list.iter_mut().find(is_it).and_then(Option::take)
        };
    }

    /// Whether the VM may write to the page at `hva` without a word. Any context.
    pub(super) fn are_done(&self, hva: usize) -> bool {
        self.list.lock().iter().flatten().all(|c| c.is_done(hva))
    }

    /// The VM is about to write to the page at `hva`.
    pub(super) fn separate(&self, hva: usize, by: Writer) -> Result<(), NotSaved> {
        if by == Writer::Atomic {
            return self.are_done(hva).then_some(()).ok_or(NotSaved::Fault);
        }
        for n in 0..MAX_FORKS {
            let core = self.list.lock().get(n).cloned().flatten();
            if let Some(core) = core {
                core.separate(hva)?;
            }
        }
        Ok(())
    }
}

/// A fork's memory, which is there as long as somebody has the fork's file or a mapping of it.
pub(crate) struct ForkOrigin {
    core: Arc<Core>,
    among: Arc<Forks>,
}

/// [`ForkOrigin`], as mappings hold it.
pub(crate) type ForkMemory = FrozenPages<ForkOrigin>;

impl ForkOrigin {
    /// The memory of a VM in `mm` with these slots, which is to be one of `among`.
    pub(super) fn new(mm: &Mm, slots: SlotTable, among: &Arc<Forks>) -> Result<Self> {
        Ok(Self {
            core: Core::new(mm, slots)?,
            among: among.clone(),
        })
    }

    /// What the VM has to know.
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Whether it is a fork of a VM of this address space.
    pub(crate) fn is_of(&self, mm: &Mm) -> bool {
        core::ptr::eq(self.core.mm.as_raw(), mm.as_raw())
    }
}

impl Drop for ForkOrigin {
    fn drop(&mut self) {
        self.among.remove(&self.core);
    }
}

impl Origin for ForkOrigin {
    fn page(&self, number: usize, once: bool, fault: &Fault<'_>) -> Result<Grant> {
        let core = &*self.core;
        if let Some(there) = core.grant(number) {
            return Ok(there);
        }
        let hva = number
            .checked_mul(PAGE_SIZE as usize)
            .filter(|hva| core.covers(*hva))
            .ok_or(EFAULT)?;
        if !fault.is_of(&core.mm) {
            return Err(EFAULT);
        }
        let mut page = DataPage::new()?;
        fault.copy(hva, &mut page)?;
        if !once {
            core.enter(number, page)?;
            return core.grant(number).ok_or(EFAULT);
        }
        // The copy is complete before the look.
        fence(Ordering::SeqCst);
        let page = FrozenPage::new(page);
        Ok(core.grant(number).unwrap_or_else(|| page.grant()))
    }
}
