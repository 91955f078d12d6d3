// SPDX-License-Identifier: GPL-2.0

//! Zeroed kernel pages for hardware structures, and conversions between addresses.
//!
//! C header: [`include/linux/gfp.h`](srctree/include/linux/gfp.h)

use core::ptr::{null_mut, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use kernel::page::{PAGE_SHIFT, PAGE_SIZE};
use kernel::prelude::*;
use kernel::sync::rcu;

use super::bindings;

pub use super::direct_map::{phys_to_virt, virt_to_phys};

/// `1 << order` physically contiguous pages, zeroed when allocated, in the kernel's direct map.
///
/// The memory is shared with hardware or other CPUs as its user sees fit; this type only owns it.
///
/// # Invariants
///
/// `page` is the head of an allocation of order `order` that this value owns; `addr` is its address.
pub struct Pages {
    page: NonNull<bindings::page>,
    addr: NonNull<u8>,
    order: u32,
}

// SAFETY: Pages belong to no CPU or task.
unsafe impl Send for Pages {}
// SAFETY: Shared references only hand out addresses.
unsafe impl Sync for Pages {}

impl Pages {
    /// Allocates `1 << order` zeroed pages, charged to the current memory cgroup. May sleep.
    ///
    /// Errors: `ENOMEM`.
    pub fn new(order: u32) -> Result<Self> {
        let flags = bindings::GFP_KERNEL_ACCOUNT | bindings::__GFP_ZERO;
        // SAFETY: There are no requirements beyond a context that may sleep.
        let page = unsafe { bindings::alloc_pages(flags, order) };
        let page = NonNull::new(page).ok_or(ENOMEM)?;
        // SAFETY: The page was just allocated.
        let addr = unsafe { bindings::rvmm_page_address(page.as_ptr()) };
        let Some(addr) = NonNull::new(addr.cast::<u8>()) else {
            // Only highmem has no address. SAFETY: The page is ours, of this order.
            unsafe { bindings::__free_pages(page.as_ptr(), order) };
            return Err(EINVAL);
        };
        // INVARIANT: Freshly allocated with this order.
        Ok(Self { page, addr, order })
    }

    /// Size in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        PAGE_SIZE << self.order
    }

    /// Address of the first byte; valid for [`Pages::len`] bytes while `self` lives.
    #[inline(always)]
    pub fn as_ptr<T>(&self) -> *mut T {
        self.addr.as_ptr().cast()
    }

    /// Physical address of the first byte.
    #[inline(always)]
    pub fn phys(&self) -> u64 {
        virt_to_phys(self.addr.as_ptr())
    }

    /// Address of the first byte, as [`Pages::as_ptr`].
    #[inline(always)]
    pub fn address(&self) -> NonNull<u8> {
        self.addr
    }

    /// Allocates as [`Pages::new`] does, and has `fill` write the bytes before anybody else can have the address.
    pub fn filled(order: u32, fill: impl FnOnce(&mut [u8])) -> Result<Self> {
        let pages = Self::new(order)?;
        // SAFETY: The memory is owned and initialised, and nobody has been given its address yet.
        fill(unsafe { core::slice::from_raw_parts_mut(pages.addr.as_ptr(), pages.len()) });
        Ok(pages)
    }

    /// Gives the pages away as their physical address; [`Pages::from_phys`] takes them back.
    pub fn into_phys(self) -> u64 {
        let phys = self.phys();
        core::mem::forget(self);
        phys
    }

    /// Takes back what [`Pages::into_phys`] gave away.
    ///
    /// # Safety
    ///
    /// `phys` came from `into_phys` of pages of order `order`, and is taken back only once.
    pub unsafe fn from_phys(phys: u64, order: u32) -> Self {
        // SAFETY: The address of an allocated page is not null.
        let addr = unsafe { NonNull::new_unchecked(phys_to_virt(phys)) };
        // SAFETY: The frame is RAM that we own, so it has a page structure, which is not at null.
        let page = unsafe { NonNull::new_unchecked(page_of(addr)) };
        Self { page, addr, order }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: By the invariant the allocation is ours and of this order.
        unsafe { bindings::__free_pages(self.page.as_ptr(), self.order) };
    }
}

/// Single pages on their way back, as many as there are: linked through their page structures.
///
/// # Invariants
///
/// `first` is null or the first of a row of pages, each from [`Pages::into_phys`] of one page and owned by this value.
pub struct PageChain {
    first: *mut bindings::page,
}

// SAFETY: Pages belong to no CPU or task.
unsafe impl Send for PageChain {}
// SAFETY: Shared references give out nothing.
unsafe impl Sync for PageChain {}

impl PageChain {
    /// None.
    pub const fn new() -> Self {
        Self { first: null_mut() }
    }

    /// Adds a page. Its content stays as it is.
    ///
    /// # Safety
    ///
    /// `phys` came from [`Pages::into_phys`] of one page, and is not taken back otherwise.
    pub unsafe fn push(&mut self, phys: u64) {
        // SAFETY: As the caller promises, the page is owned and in the direct map, which is not at null.
        let page = unsafe { page_of(NonNull::new_unchecked(phys_to_virt(phys))) };
        // SAFETY: The owner of a page may use the word in its structure; the next page's structure is aligned, so that
        // bit 0, which has a meaning there, is clear.
        unsafe { bindings::rvmm_page_set_next(page, self.first) };
        // INVARIANT: The page is this value's now, and the others follow it.
        self.first = page;
    }

    /// Takes the first page off.
    fn pop(&mut self) -> Option<NonNull<bindings::page>> {
        let page = NonNull::new(self.first)?;
        // SAFETY: By the invariant the page is owned, and the word is what `push` wrote.
        self.first = unsafe { bindings::rvmm_page_next(page.as_ptr()) };
        Some(page)
    }

    /// Frees the pages, each after the read sections of RCU that have begun, among which are regions with preemption or
    /// interrupts off. Any context. A module waits by [`FreedPages`] before it goes.
    #[inline]
    pub fn free_after_readers(&mut self) {
        while let Some(page) = self.pop() {
            // SAFETY: The page was owned and is the callee's now, which uses its structure until it is freed.
            unsafe { bindings::rvmm_page_free_rcu(page.as_ptr()) };
        }
    }

    /// Frees the pages now: nobody else uses them.
    pub fn free(&mut self) {
        while let Some(page) = self.pop() {
            // SAFETY: The page was owned, of order 0.
            unsafe { bindings::__free_pages(page.as_ptr(), 0) };
        }
    }
}

impl Drop for PageChain {
    fn drop(&mut self) {
        self.free_after_readers();
    }
}

/// Goes when the module does: dropping it waits for the pages of [`PageChain::free_after_readers`], which are freed by
/// code of the module. Sleeps.
pub struct FreedPages;

impl Drop for FreedPages {
    fn drop(&mut self) {
        rcu::rcu_barrier();
    }
}

/// One zeroed page of 32-bit words, which belongs to its owner but while the owner lets hardware have it.
///
/// # Invariants
///
/// Nothing but this value and what got its physical address knows the page.
pub struct WordPage(Pages);

impl WordPage {
    /// Number of words.
    const LEN: usize = PAGE_SIZE / size_of::<u32>();

    /// All words zero. May sleep. Errors: `ENOMEM`.
    pub fn new() -> Result<Self> {
        Ok(Self(Pages::new(0)?))
    }

    /// Physical address.
    pub fn phys(&self) -> u64 {
        self.0.phys()
    }

    #[inline(always)]
    fn word(&self, index: usize) -> *mut u32 {
        self.0.as_ptr::<u32>().wrapping_add(index % Self::LEN)
    }

    /// The word at `index`, counted around at the end of the page.
    #[inline(always)]
    pub fn get(&self, index: usize) -> u32 {
        // SAFETY: The remainder is within the page, which this value owns, which was zeroed, and whose words are
        // aligned. By the invariant other code writes it only by `set`, which `&self` excludes; hardware may, and the
        // access is volatile.
        unsafe { self.word(index).read_volatile() }
    }

    /// Sets the word at `index`, counted around at the end of the page.
    #[inline(always)]
    pub fn set(&mut self, index: usize, value: u32) {
        // SAFETY: As for `get`; `&mut self` excludes all other accesses of code.
        unsafe { self.word(index).write_volatile(value) }
    }
}

/// One page of bytes that belongs to its owner alone.
///
/// # Invariants
///
/// Nobody else has been given the page's address.
pub struct DataPage(Pages);

impl DataPage {
    /// Zeroes, charged to the current memory cgroup. May sleep. Errors: `ENOMEM`.
    pub fn new() -> Result<Self> {
        Ok(Self(Pages::new(0)?))
    }

    /// The bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8; PAGE_SIZE] {
        // SAFETY: The page is owned and was initialised; by the invariant what writes it has `&mut`.
        unsafe { &*self.0.as_ptr() }
    }

    /// A reference to the page beside the value's own, which [`bindings::rvmm_put_page`] gives back. Whoever gets it
    /// only reads.
    pub(super) fn share(&self) -> NonNull<bindings::page> {
        // SAFETY: The page is owned, so that there is a reference already.
        unsafe { bindings::rvmm_get_page(self.0.page.as_ptr()) };
        self.0.page
    }

    /// The bytes, to be written.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        // SAFETY: As above; `&mut self` excludes all other references.
        unsafe { &mut *self.0.as_ptr() }
    }
}

/// One zeroed page that is allocated when it is first needed.
pub struct LazyPage(AtomicPtr<u8>);

impl LazyPage {
    /// No page yet.
    pub const fn new() -> Self {
        Self(AtomicPtr::new(core::ptr::null_mut()))
    }

    /// Address of the page, which stays while `self` lives; `None` before it is there.
    #[inline]
    pub fn get(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.0.load(Ordering::Acquire))
    }

    /// Address of the page, allocated now if there was none and charged to the current memory cgroup. May sleep.
    ///
    /// Errors: `ENOMEM`.
    pub fn get_or_alloc(&self) -> Result<NonNull<u8>> {
        if let Some(page) = self.get() {
            return Ok(page);
        }
        let new = phys_to_virt(Pages::new(0)?.into_phys());
        let none = core::ptr::null_mut();
        match self
            .0
            .compare_exchange(none, new, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => NonNull::new(new).ok_or(ENOMEM),
            Err(other) => {
                // SAFETY: From `into_phys` above; the page came into nobody's hands.
                drop(unsafe { Pages::from_phys(virt_to_phys(new), 0) });
                NonNull::new(other).ok_or(ENOMEM)
            }
        }
    }
}

impl Drop for LazyPage {
    fn drop(&mut self) {
        if let Some(page) = self.get() {
            // SAFETY: From `into_phys` of one page in `get_or_alloc`; nobody uses it any more.
            drop(unsafe { Pages::from_phys(virt_to_phys(page.as_ptr()), 0) });
        }
    }
}

/// Number of words of an [`AtomicLine`].
const LINE: usize = 16;

/// A zeroed and aligned cache line of atomic words, which CPUs and hardware share.
pub struct AtomicLine {
    words: NonNull<[AtomicU32; LINE]>,
    /// The page that holds the words; without it they are an allocation of their own.
    page: Option<Pages>,
}

// SAFETY: The words belong to no CPU or task.
unsafe impl Send for AtomicLine {}
// SAFETY: Shared references only give atomic accesses.
unsafe impl Sync for AtomicLine {}

impl AtomicLine {
    /// All words zero, on a page of their own if `own_page`. May sleep.
    ///
    /// Errors: `ENOMEM`.
    pub fn new(own_page: bool) -> Result<Self> {
        if own_page {
            let page = Pages::new(0)?;
            let words = NonNull::new(page.as_ptr()).ok_or(ENOMEM)?;
            return Ok(Self {
                words,
                page: Some(page),
            });
        }
        let words = KBox::new([const { AtomicU32::new(0) }; LINE], GFP_KERNEL_ACCOUNT)?;
        Ok(Self {
            words: NonNull::new(KBox::into_raw(words)).ok_or(ENOMEM)?,
            page: None,
        })
    }

    /// The words.
    #[inline(always)]
    pub fn words(&self) -> &[AtomicU32; LINE] {
        // SAFETY: The memory is owned, initialised and aligned; everybody uses it by atomic accesses only, as this
        // type gives no other.
        unsafe { self.words.as_ref() }
    }

    /// Physical address.
    pub fn phys(&self) -> u64 {
        // Both a page and memory of this size from kmalloc are in the direct map, the latter aligned to its size.
        virt_to_phys(self.words.as_ptr())
    }
}

impl Drop for AtomicLine {
    fn drop(&mut self) {
        if self.page.is_none() {
            // SAFETY: From `into_raw` in `new`, and not used any more.
            drop(unsafe { KBox::from_raw(self.words.as_ptr()) });
        }
    }
}

/// The page structure of the page at `addr`.
///
/// # Safety
///
/// `addr` is in an allocated page in the direct map.
pub(super) unsafe fn page_of(addr: NonNull<u8>) -> *mut bindings::page {
    // SAFETY: The frame is RAM, as the caller promises.
    unsafe { bindings::rvmm_pfn_to_page((virt_to_phys(addr.as_ptr()) >> PAGE_SHIFT) as usize) }
}
