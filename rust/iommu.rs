// SPDX-License-Identifier: GPL-2.0

//! DMA of devices that are given away: ownership of their groups, and domains in which they see user memory.
//!
//! C header: [`include/linux/iommu.h`](srctree/include/linux/iommu.h)
//!
//! # Why no page stays reachable after it was given back
//!
//! A page gets into a [`Domain`] only by [`Domain::map`], which pins it first (long-term, writable) and writes the
//! translation second; it leaves by [`Domain::unmap`] or with the domain, which remove the translation and flush the
//! IOMMU's caches first and drop the pin second. So every page that a translation names is pinned. A pinned page
//! belongs to whoever had it, whatever becomes of the mapping in user space (munmap, exit, swap, migration): it
//! cannot reach the page allocator. Should a translation fail to go, its pages are never unpinned: they are lost, not
//! shared.
//!
//! A device translates through the domain only while it is attached. Between [`Domain::claim`] and
//! [`Domain::attach`], and between [`Domain::detach`] and the end of the ownership, the group is in the kernel's
//! blocking domain.

use core::fmt::Write;
use core::ptr::{null_mut, NonNull};

use kernel::error::{from_err_ptr, to_result};
use kernel::ffi::{c_int, c_ulong, c_void};
use kernel::mm::Mm;
use kernel::page::{PAGE_SHIFT, PAGE_SIZE};
use kernel::prelude::*;
use kernel::str::CStr;
use kernel::sync::aref::ARef;
use kernel::sync::Arc;

use super::bindings;
use super::pci::{Device, Locked};

/// Pages pinned at a time: as many as a page of pointers holds, and a 2 MiB leaf.
const BATCH: usize = 512;
/// Most pages of a run, and of a call of the IOMMU's: 1 GiB, its largest leaf. Runs end where such a leaf would.
const MOST_RUN: usize = 1 << 18;
/// Pages unpinned between two chances to reschedule.
const UNPIN_STEP: u64 = 1 << 14;

/// A range of DMA addresses, `start` to `last` included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Last address.
    pub last: u64,
}

impl Range {
    /// Whether an address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.last && other.start <= self.last
    }
}

/// A counted reference to an IOMMU group: the devices that cannot be told apart.
pub struct Group(NonNull<bindings::iommu_group>);

// SAFETY: The reference belongs to no task.
unsafe impl Send for Group {}
// SAFETY: The kernel locks what is reached through it.
unsafe impl Sync for Group {}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: The value owns one reference.
        unsafe { bindings::iommu_group_put(self.0.as_ptr()) };
    }
}

impl Group {
    /// The group of `device`; none without an IOMMU.
    pub fn of(device: &Device) -> Option<Self> {
        // SAFETY: The device lives; the result is a reference.
        NonNull::new(unsafe { bindings::iommu_group_get(device.dev()) }).map(Self)
    }

    /// Its number in `/sys/kernel/iommu_groups`.
    pub fn id(&self) -> i32 {
        // SAFETY: The group lives.
        unsafe { bindings::iommu_group_id(self.0.as_ptr()) }
    }

    /// Whether messages of its devices raise no interrupts but those that the host has set up for them.
    pub fn has_isolated_msi(&self) -> bool {
        // SAFETY: The group lives.
        unsafe { bindings::iommu_group_has_isolated_msi(self.0.as_ptr()) }
    }

    /// DMA addresses that the hardware treats by itself: the window of messages, and what firmware reserves.
    pub fn reserved(&self) -> Result<KVec<Range>> {
        let mut list = bindings::list_head {
            next: null_mut(),
            prev: null_mut(),
        };
        let head = &raw mut list;
        let mut ranges = KVec::new();
        let mut result = Ok(());
        // SAFETY: The list is initialised, and stays here until its regions are freed; each of its entries is a region.
        unsafe {
            list.next = head;
            list.prev = head;
            let code = bindings::iommu_get_group_resv_regions(self.0.as_ptr(), head);
            let mut at = (*head).next;
            while !core::ptr::eq(at, head) {
                let next = (*at).next;
                let region = at
                    .cast::<u8>()
                    .sub(core::mem::offset_of!(bindings::iommu_resv_region, list))
                    .cast::<bindings::iommu_resv_region>();
                let (start, length) = ((*region).start, (*region).length as u64);
                // Firmware's wish for its own use of the device, over when somebody else uses it.
                let relaxable =
                    (*region).type_ == bindings::iommu_resv_type_IOMMU_RESV_DIRECT_RELAXABLE;
                if let (Some(rest), false) = (length.checked_sub(1), relaxable) {
                    let range = Range {
                        start,
                        last: start.saturating_add(rest),
                    };
                    result = result.and(ranges.push(range, GFP_KERNEL).map_err(|_| ENOMEM));
                }
                at = next;
            }
            // The list's regions are copies that belong to no device.
            bindings::iommu_put_resv_regions(null_mut(), head);
            to_result(code)?;
        }
        result?;
        Ok(ranges)
    }

    /// Writes the group's devices with their drivers to `out`: `0000:00:1f.2 (ahci), ...`.
    pub fn list(&self, out: &mut dyn Write) {
        struct List<'a> {
            out: &'a mut dyn Write,
            any: bool,
        }

        /// # Safety
        ///
        /// Called by `iommu_group_for_each_dev` with a live device and the `List` that it was given.
        unsafe extern "C" fn one(dev: *mut bindings::device, data: *mut c_void) -> c_int {
            // SAFETY: Device and list are live by the contract; a driver's name is valid while it is bound or being
            // unbound (RCU is not needed for a diagnostic: the kernel prints it in the same way).
            let (list, name, driver) = unsafe {
                (
                    &mut *data.cast::<List<'_>>(),
                    CStr::from_char_ptr(bindings::rvmm_dev_name(dev)),
                    CStr::from_char_ptr(bindings::dev_driver_string(dev)),
                )
            };
            let comma = if list.any { ", " } else { "" };
            list.any = true;
            let text = |c: &'static CStr| c.to_str().unwrap_or("?");
            let _ = write!(list.out, "{comma}{} ({})", text(name), text(driver));
            0
        }

        let mut list = List { out, any: false };
        // SAFETY: The callback gets what it expects.
        unsafe {
            bindings::iommu_group_for_each_dev(
                self.0.as_ptr(),
                (&raw mut list).cast::<c_void>(),
                Some(one),
            )
        };
    }
}

/// The right to decide where a device's DMA goes. While it exists no host driver can bind to the group's other
/// devices, and until the device is attached its DMA is blocked.
pub struct Ownership {
    device: Device,
    group: Group,
}

impl Drop for Ownership {
    fn drop(&mut self) {
        // SAFETY: Claimed by `Domain::claim`, once for each value; the device is bound to the driver that claimed it.
        unsafe { bindings::iommu_device_release_dma_owner(self.device.dev()) };
    }
}

/// Physically contiguous pages, pinned.
#[derive(Clone, Copy)]
struct Run {
    pfn: u64,
    pages: u64,
}

/// User memory at a DMA address.
struct Mapping {
    range: Range,
    /// Bytes from the start on that have a translation.
    mapped: usize,
    /// In the order of the addresses; they may reach beyond `mapped`.
    runs: KVVec<Run>,
    /// The last run has no translation yet, and may grow.
    open: bool,
    /// Pages charged.
    charged: usize,
}

/// Translations for devices: pinned user memory of one address space, and nothing else.
///
/// # Invariants
///
/// Every page with a translation in `domain` is pinned by a run of `mappings`. `attached` are attached to `domain`.
pub struct Domain<R: Refusals> {
    domain: NonNull<bindings::iommu_domain>,
    mm: ARef<Mm>,
    mappings: KVVec<Mapping>,
    attached: KVec<Ownership>,
    batch: KVec<*mut bindings::page>,
    /// The IOMMU's driver has a pointer to it.
    refusals: Arc<R>,
}

// SAFETY: The domain belongs to no task; the pointers in `batch` are used within calls only.
unsafe impl<R: Refusals> Send for Domain<R> {}
// SAFETY: Shared references only read numbers.
unsafe impl<R: Refusals> Sync for Domain<R> {}

/// Which device: only for comparisons.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Source(usize);

impl From<&Device> for Source {
    fn from(device: &Device) -> Self {
        Self(device.dev() as usize)
    }
}

/// An access that the IOMMU refused.
#[derive(Clone, Copy, Default)]
pub struct Refusal {
    /// DMA address.
    pub iova: u64,
    /// A write.
    pub write: bool,
}

/// Who is told of the refused accesses of a domain's devices, where the IOMMU's driver tells: AMD's does, Intel's
/// only logs them.
pub trait Refusals: Send + Sync + 'static {
    /// The device `source`, called `name`, was refused. It is not logged by anybody else. Called by the threaded
    /// interrupt handler of the IOMMU's driver; must not sleep.
    fn refused(&self, source: Source, name: &CStr, what: Refusal);
}

/// # Safety
///
/// Called by the IOMMU's driver with a live device, and with the `R` of a live [`Domain`].
unsafe extern "C" fn on_fault<R: Refusals>(
    _domain: *mut bindings::iommu_domain,
    dev: *mut bindings::device,
    iova: c_ulong,
    flags: c_int,
    token: *mut c_void,
) -> c_int {
    let what = Refusal {
        iova: iova as u64,
        write: flags & bindings::IOMMU_FAULT_WRITE as c_int != 0,
    };
    // SAFETY: The IOMMU's core passes a live device and the token that was registered, which lives as long as the
    // domain.
    let (refusals, name) = unsafe {
        (
            &*token.cast::<R>(),
            CStr::from_char_ptr(bindings::rvmm_dev_name(dev)),
        )
    };
    refusals.refused(Source(dev as usize), name, what);
    // Dealt with: the driver does not log it.
    0
}

impl<R: Refusals> Domain<R> {
    /// An empty domain of the kind that `device` needs, for memory of `mm`.
    ///
    /// Errors: `ENODEV` and others when the IOMMU has none.
    pub fn new(device: &Device, mm: &Mm, refusals: Arc<R>) -> Result<Self> {
        let mut batch = KVec::with_capacity(BATCH, GFP_KERNEL_ACCOUNT)?;
        batch.resize(BATCH, null_mut(), GFP_KERNEL_ACCOUNT)?;
        // SAFETY: The device lives.
        let domain = unsafe { bindings::iommu_paging_domain_alloc_flags(device.dev(), 0) };
        let domain = NonNull::new(from_err_ptr(domain)?).ok_or(ENODEV)?;
        // SAFETY: The domain is new; what the handler gets lives longer.
        unsafe {
            bindings::iommu_set_fault_handler(
                domain.as_ptr(),
                Some(on_fault::<R>),
                Arc::as_ptr(&refusals).cast_mut().cast(),
            );
        }
        Ok(Self {
            domain,
            mm: mm.into(),
            mappings: KVVec::new(),
            attached: KVec::new(),
            batch,
            refusals,
        })
    }

    /// Who is told of refused accesses.
    pub fn refusals(&self) -> &R {
        &self.refusals
    }

    /// Bytes pinned.
    pub fn pinned(&self) -> u64 {
        self.mappings
            .iter()
            .map(|m| (m.charged as u64) << PAGE_SHIFT)
            .sum()
    }

    /// Whether addresses up to `last` can be translated.
    pub fn reaches(&self, range: &Range) -> bool {
        let (mut start, mut end) = (0, 0);
        // SAFETY: The domain lives.
        unsafe { bindings::rvmm_iommu_aperture(self.domain.as_ptr(), &mut start, &mut end) };
        start <= range.start && range.last <= end
    }

    /// Takes the ownership of the device's group for this domain; its DMA is blocked from now on.
    ///
    /// Errors: `EPERM` or `EBUSY` when a host driver or another owner uses a device of the group.
    pub fn claim(&self, device: &Locked<'_>) -> Result<Ownership> {
        let group = Group::of(device).ok_or(ENODEV)?;
        // SAFETY: The device is bound to the caller's driver, and the lock keeps it so. The address of the domain
        // stands for the owner: it is nobody else's while an ownership exists.
        to_result(unsafe {
            bindings::iommu_device_claim_dma_owner(device.dev(), self.domain.as_ptr().cast())
        })?;
        Ok(Ownership {
            device: Device::clone(device),
            group,
        })
    }

    fn has(&self, group: &Group) -> bool {
        self.attached.iter().any(|o| o.group.0 == group.0)
    }

    /// From now on the device sees what is mapped here. On failure its DMA stays blocked until the ownership ends.
    pub fn attach(&mut self, ownership: Ownership) -> Result {
        self.attached.reserve(1, GFP_KERNEL)?;
        if !self.has(&ownership.group) {
            // SAFETY: Both live; by the ownership nobody else attaches the group.
            to_result(unsafe {
                bindings::iommu_attach_group(self.domain.as_ptr(), ownership.group.0.as_ptr())
            })?;
        }
        self.attached
            .push_within_capacity(ownership)
            .map_err(|_| ENOMEM)
    }

    /// Undoes `attach`: the device's DMA is blocked. None when the device is not attached.
    pub fn detach(&mut self, device: &Device) -> Option<Ownership> {
        let at = self
            .attached
            .iter()
            .position(|o| o.device.as_ptr() == device.as_ptr())?;
        let ownership = self.attached.remove(at).ok()?;
        if !self.has(&ownership.group) {
            // SAFETY: Attached by `attach`, for the first of the group's devices; this is the last.
            unsafe {
                bindings::iommu_detach_group(self.domain.as_ptr(), ownership.group.0.as_ptr())
            };
        }
        Some(ownership)
    }

    /// Whether the user address is in device memory, which cannot be mapped.
    pub fn is_device_memory(&self, hva: u64) -> bool {
        // SAFETY: The reference keeps the `mm_struct`; areas are looked up under its lock.
        unsafe { bindings::rvmm_vma_is_device(self.mm.as_raw(), hva as usize) }
    }

    /// Whether devices that are attached reach the memory that was mapped at `start`.
    pub fn is_mapped(&self, start: u64) -> bool {
        self.mappings.iter().any(|m| m.range.start == start)
    }

    /// Whether no device is attached.
    pub fn is_idle(&self) -> bool {
        self.attached.is_empty()
    }

    /// Lets attached devices read and write the user memory from `hva` on at `range`, which is aligned to pages and
    /// not mapped.
    ///
    /// The caller runs in the domain's address space. Pages are charged to its locked memory. Errors: `ENOMEM` beyond
    /// RLIMIT_MEMLOCK or without memory; `EFAULT` when something is not mapped writable, or cannot be pinned; `EINTR`.
    pub fn map(&mut self, hva: usize, range: Range) -> Result {
        if !super::sched::is_current_mm(&self.mm) {
            return Err(EIO);
        }
        let bytes = range
            .last
            .checked_sub(range.start)
            .and_then(|n| n.checked_add(1))
            .ok_or(EINVAL)?;
        let bytes = usize::try_from(bytes)?;
        if (bytes | hva | range.start as usize) & (PAGE_SIZE - 1) != 0
            || self.mappings.iter().any(|m| m.range.overlaps(&range))
        {
            return Err(EINVAL);
        }
        self.mappings.reserve(1, GFP_KERNEL_ACCOUNT)?;
        let pages = bytes >> PAGE_SHIFT;
        // SAFETY: The address space is the caller's.
        to_result(unsafe { bindings::account_locked_vm(self.mm.as_raw(), pages, true) })?;
        let mut mapping = Mapping {
            range,
            mapped: 0,
            runs: KVVec::new(),
            open: false,
            charged: pages,
        };
        let result = self.fill(hva, pages, &mut mapping);
        if result.is_err() {
            self.take_down(mapping);
            return result;
        }
        self.mappings
            .push_within_capacity(mapping)
            .map_err(|_| ENOMEM)
    }

    /// Pins and maps. What it has done is in `mapping`, also when it fails.
    fn fill(&mut self, hva: usize, pages: usize, mapping: &mut Mapping) -> Result {
        let first = mapping.range.start as usize >> PAGE_SHIFT;
        let mut done = 0;
        while done < pages {
            // Up to the next 2 MiB boundary of DMA addresses.
            let at = first.wrapping_add(done);
            let room = BATCH - at % BATCH;
            let want = room.min(pages - done);
            if at % MOST_RUN == 0 {
                self.map_open(mapping)?;
            }
            mapping.runs.reserve(want, GFP_KERNEL_ACCOUNT)?;
            let at = hva.checked_add(done << PAGE_SHIFT).ok_or(EFAULT)?;
            // SAFETY: Room for a whole batch; the function checks the address.
            let got = unsafe {
                bindings::pin_user_pages_fast(
                    at,
                    want as c_int,
                    bindings::RVMM_FOLL_WRITE | bindings::RVMM_FOLL_LONGTERM,
                    self.batch.as_mut_ptr(),
                )
            };
            let got = match usize::try_from(got) {
                Ok(0) | Err(_) if got == -4 || got == -512 => return Err(EINTR),
                Ok(0) => return Err(EFAULT),
                Ok(n) => n.min(want),
                Err(_) => return Err(Error::from_errno(got)),
            };
            let (mut taken, mut result) = (0, Ok(()));
            while taken < got {
                // SAFETY: Pinned pages, `got` of them at the beginning of the batch.
                let (pfn, pages) = unsafe {
                    let rest = self.batch.as_mut_ptr().add(taken);
                    (
                        bindings::rvmm_page_to_pfn(*rest) as u64,
                        bindings::rvmm_pages_contiguous(rest, got - taken),
                    )
                };
                let pages = pages.clamp(1, got - taken);
                taken += pages;
                match mapping.runs.last_mut() {
                    Some(run) if mapping.open && run.pfn.wrapping_add(run.pages) == pfn => {
                        run.pages = run.pages.wrapping_add(pages as u64);
                    }
                    _ => {
                        // The run before is complete. Should it fail, the rest of the batch is noted all the same: it
                        // is pinned.
                        if result.is_ok() {
                            result = self.map_open(mapping);
                        }
                        let pages = pages as u64;
                        // There is room for a run per page.
                        let _ = mapping.runs.push_within_capacity(Run { pfn, pages });
                        mapping.open = true;
                    }
                }
            }
            result?;
            done += got;
            if super::sched::fatal_signal_pending() {
                return Err(EINTR);
            }
            super::sched::cond_resched();
        }
        self.map_open(mapping)
    }

    /// Translates the last run, if it has no translation yet; all others have one.
    fn map_open(&self, mapping: &mut Mapping) -> Result {
        let Some(run) = mapping.runs.last().filter(|_| mapping.open) else {
            return Ok(());
        };
        let size = (run.pages as usize) << PAGE_SHIFT;
        // SAFETY: The pages are pinned, and by the type's invariant stay so as long as the translation. Nothing else
        // is mapped there.
        to_result(unsafe {
            bindings::iommu_map(
                self.domain.as_ptr(),
                (mapping.range.start as usize).wrapping_add(mapping.mapped),
                run.pfn << PAGE_SHIFT,
                size,
                (bindings::IOMMU_READ | bindings::IOMMU_WRITE | bindings::IOMMU_CACHE) as c_int,
                bindings::RVMM_GFP_KERNEL_ACCOUNT,
            )
        })?;
        mapping.mapped = mapping.mapped.wrapping_add(size);
        mapping.open = false;
        Ok(())
    }

    /// Undoes [`Domain::map`] of the range that starts at `start`. When it returns no device reaches the memory, and
    /// its pages are given back. False if there is none. Any task; sleeps.
    pub fn unmap(&mut self, start: u64) -> bool {
        let Some(at) = self.mappings.iter().position(|m| m.range.start == start) else {
            return false;
        };
        if let Ok(mapping) = self.mappings.remove(at) {
            self.take_down(mapping);
        }
        true
    }

    /// Translations first, pins second.
    fn take_down(&self, mapping: Mapping) {
        let mut at = mapping.range.start as usize;
        let mut left = mapping.mapped;
        while left > 0 {
            // No leaf crosses the end of a step.
            let size = left.min((MOST_RUN << PAGE_SHIFT) - at % (MOST_RUN << PAGE_SHIFT));
            // SAFETY: Mapped by `map_open`. The call flushes the IOMMU's caches before it returns.
            let gone = unsafe { bindings::iommu_unmap(self.domain.as_ptr(), at, size) };
            if gone < size {
                // Leaked: what the IOMMU still may reach must not go back.
                pr_err!("an IOMMU translation did not go away: its pages are lost\n");
                return;
            }
            at = at.wrapping_add(gone);
            left = left.saturating_sub(gone);
            super::sched::cond_resched();
        }
        for run in mapping.runs.iter() {
            let mut done = 0;
            while done < run.pages {
                let pages = (run.pages - done).min(UNPIN_STEP);
                // SAFETY: Pinned by `fill`, once, and contiguous; no translation is left. The device may have written
                // to them.
                unsafe {
                    bindings::unpin_user_page_range_dirty_lock(
                        bindings::rvmm_pfn_to_page(run.pfn.wrapping_add(done) as usize),
                        pages as usize,
                        true,
                    )
                };
                done += pages;
                super::sched::cond_resched();
            }
        }
        // SAFETY: The reference keeps the `mm_struct`; charged by `map`.
        let _ = unsafe { bindings::account_locked_vm(self.mm.as_raw(), mapping.charged, false) };
    }
}

impl<R: Refusals> Drop for Domain<R> {
    fn drop(&mut self) {
        while let Some(device) = self.attached.first().map(|o| o.device.clone()) {
            drop(self.detach(&device));
        }
        while let Some(start) = self.mappings.first().map(|m| m.range.start) {
            self.unmap(start);
        }
        // SAFETY: No device is attached and nothing is mapped; the handler is not called after this.
        unsafe { bindings::iommu_domain_free(self.domain.as_ptr()) };
    }
}

/// Whether DMA of the device is coherent with the CPUs' caches when translated.
pub fn is_coherent(device: &Device) -> bool {
    // SAFETY: The device lives.
    unsafe {
        bindings::device_iommu_capable(device.dev(), bindings::iommu_cap_IOMMU_CAP_CACHE_COHERENCY)
    }
}
