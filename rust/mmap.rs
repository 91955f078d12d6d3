// SPDX-License-Identifier: GPL-2.0

//! Kernel pages that user space maps through a file.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use core::marker::PhantomData;
use core::ptr::NonNull;

use kernel::mm::virt::{flags as vm_flags, VmaNew};
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::transmute::{AsBytes, FromBytes};

use super::bindings;
use super::page::{page_of, DataPage, LazyPage, Pages};
use super::vm_area::{serve, Backing, OOM, SIGBUS};

/// Zeroed kernel pages that user space may map and write at any time.
///
/// The kernel's own accesses are volatile and bounds-checked. User space changes the memory behind them:
/// a value read twice may differ, so every value is read once and checked after that.
///
/// # Safety
///
/// What [`Shared::page`] gives has to be a page of memory from then on until `self` is dropped.
pub unsafe trait Shared {
    /// Address of page `index`, valid for one page while `self` lives.
    ///
    /// Errors: `EINVAL` when there is none, `ENOMEM` when it has not been allocated yet.
    fn page(&self, index: usize) -> Result<NonNull<u8>>;

    /// Address of a `T` at byte `offset`, valid while `self` lives.
    ///
    /// User space writes to the memory at any time: use volatile or atomic accesses of plain integers, and
    /// never make a reference to it. Errors: `EINVAL` when the `T` is misaligned or crosses a page,
    /// and those of [`Shared::page`].
    #[inline]
    fn ptr<T>(&self, offset: usize) -> Result<NonNull<T>> {
        let within = offset % PAGE_SIZE;
        let page = self.page(offset / PAGE_SIZE)?;
        if core::mem::size_of::<T>() > PAGE_SIZE - within
            || within % core::mem::align_of::<T>() != 0
        {
            return Err(EINVAL);
        }
        // SAFETY: `within` is less than the page's size.
        Ok(unsafe { page.add(within) }.cast())
    }

    /// Reads a `T` at byte `offset`. Errors: `EINVAL` as for [`Shared::ptr`].
    #[inline]
    fn read<T: FromBytes + Copy>(&self, offset: usize) -> Result<T> {
        let ptr = self.ptr::<T>(offset)?;
        // SAFETY: `ptr` is aligned and in bounds, and any bytes make a `T`. Volatile, since user space may
        // write at the same time.
        Ok(unsafe { ptr.as_ptr().read_volatile() })
    }

    /// Writes a `T` at byte `offset`. Errors: `EINVAL` as for [`Shared::ptr`].
    #[inline]
    fn write<T: AsBytes + Copy>(&self, offset: usize, value: T) -> Result {
        let ptr = self.ptr::<T>(offset)?;
        // SAFETY: `ptr` is aligned and in bounds; `AsBytes` has no padding that could leak. Volatile, since
        // user space may access it at the same time.
        unsafe { ptr.as_ptr().write_volatile(value) };
        Ok(())
    }

    /// Copies `dst.len()` bytes from byte `offset` on; may cross pages.
    ///
    /// Errors: those of [`Shared::page`], with what lies before the page copied.
    fn copy_out(&self, offset: usize, dst: &mut [u8]) -> Result {
        let mut at = offset;
        for byte in dst {
            *byte = self.read(at)?;
            at = at.wrapping_add(1);
        }
        Ok(())
    }

    /// Copies `src` to byte `offset` on; may cross pages.
    ///
    /// Errors: those of [`Shared::page`], with what lies before the page copied.
    fn copy_in(&self, offset: usize, src: &[u8]) -> Result {
        let mut at = offset;
        for byte in src {
            self.write(at, *byte)?;
            at = at.wrapping_add(1);
        }
        Ok(())
    }
}

// SAFETY: The page stays once it is there.
unsafe impl Shared for LazyPage {
    #[inline]
    fn page(&self, index: usize) -> Result<NonNull<u8>> {
        if index != 0 {
            return Err(EINVAL);
        }
        self.get().ok_or(ENOMEM)
    }
}

/// Zeroed pages of memory that user space maps in a row.
pub struct PageList(KVVec<Pages>);

impl PageList {
    /// Allocates `count` pages, charged to the current memory cgroup. May sleep.
    ///
    /// Errors: `ENOMEM`.
    pub fn new(count: usize) -> Result<Self> {
        let mut pages = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            pages
                .push_within_capacity(Pages::new(0)?)
                .map_err(|_| ENOMEM)?;
        }
        Ok(Self(pages))
    }
}

// SAFETY: The pages are there from the beginning and belong to this value.
unsafe impl Shared for PageList {
    #[inline]
    fn page(&self, index: usize) -> Result<NonNull<u8>> {
        self.0.get(index).map(Pages::address).ok_or(EINVAL)
    }
}

/// Pages that mappings show from page `first` of the file on. What maps one of them is shared and never executable.
pub struct Further {
    /// Number of the file's page, above those that [`SharedPages`] has.
    pub first: usize,
    /// The pages.
    pub pages: Arc<PageList>,
}

impl Further {
    /// Whether file pages `start` (included) to `end` (excluded) have one of these among them.
    fn meets(&self, start: usize, end: usize) -> bool {
        let last = self.first.saturating_add(self.pages.0.len());
        start < last && end > self.first
    }
}

/// A page and `MORE` others behind it, which are allocated when user space touches them or [`SharedPages::allocate`]
/// is called.
pub struct SharedPages<const MORE: usize> {
    first: Pages,
    more: [LazyPage; MORE],
    /// What mappings show behind these.
    tail: Arc<LazyPage>,
    /// What they show elsewhere.
    further: Option<Further>,
}

impl<const MORE: usize> SharedPages<MORE> {
    /// Allocates the first page, charged to the current memory cgroup. `tail` is behind all pages in every mapping,
    /// but not reached by this object's other functions; no more are those of `further`.
    ///
    /// Errors: `ENOMEM`.
    pub fn new(tail: Arc<LazyPage>, further: Option<Further>) -> Result<Arc<Self>> {
        let pages = Self {
            first: Pages::new(0)?,
            more: [const { LazyPage::new() }; MORE],
            tail,
            further,
        };
        Ok(Arc::new(pages, GFP_KERNEL_ACCOUNT)?)
    }

    /// The first page alone, for several accesses.
    #[inline(always)]
    pub fn first(&self) -> FirstPage<'_> {
        FirstPage(self.first.address(), PhantomData)
    }

    /// Reads a field of the first page, as [`FirstPage::get`].
    #[inline(always)]
    pub fn get<T: FromBytes + Copy>(&self, field: Field<T>) -> T {
        self.first().get(field)
    }

    /// Writes a field of the first page.
    #[inline(always)]
    pub fn put<T: AsBytes + Copy>(&self, field: Field<T>, value: T) {
        self.first().put(field, value);
    }

    /// The pages that are there, of which user space sees the contents, and the tail.
    pub fn pages(&self) -> impl Iterator<Item = UserPage<'_>> {
        let lazy = Iterator::chain(self.more.iter(), [&*self.tail]);
        Iterator::chain(
            [Some(self.first.address())].into_iter(),
            lazy.map(LazyPage::get),
        )
        .enumerate()
        .filter_map(|(n, page)| Some(UserPage(n, page?, PhantomData)))
    }

    /// Makes sure that all pages but the tail are there. May sleep.
    ///
    /// Errors: `ENOMEM`.
    pub fn allocate(&self) -> Result {
        for page in &self.more {
            page.get_or_alloc()?;
        }
        Ok(())
    }

    /// Serves `vma` from these pages: file page 0 is page 0.
    ///
    /// Pages appear on first access; an access beyond the last page is SIGBUS. The area cannot grow and
    /// holds a reference to the pages, so it may outlive the file's object. Errors: `EINVAL` when it is private and
    /// writable, or shows a page of [`Further`] and is private or executable.
    pub fn map(self: &Arc<Self>, vma: &VmaNew) -> Result {
        if vma.flags() & vm_flags::SHARED == 0 && vma.writable() {
            // A private writable copy would silently part from the kernel's pages.
            return Err(EINVAL);
        }
        if let Some(further) = &self.further {
            // SAFETY: The area is being set up by this task, nobody else looks at it.
            let start = unsafe { (*vma.as_ptr()).vm_pgoff };
            let pages = vma.end().saturating_sub(vma.start()) / PAGE_SIZE;
            if further.meets(start, start.saturating_add(pages)) {
                if vma.flags() & vm_flags::SHARED == 0 {
                    return Err(EINVAL);
                }
                vma.try_clear_mayexec()?;
            }
        }
        vma.set_dontexpand();
        vma.set_dontdump();
        serve(self.clone(), vma);
        Ok(())
    }
}

// SAFETY: The first page is there from the beginning, the others stay once they are there.
unsafe impl<const MORE: usize> Shared for SharedPages<MORE> {
    #[inline]
    fn page(&self, index: usize) -> Result<NonNull<u8>> {
        match index.checked_sub(1) {
            None => Ok(self.first.address()),
            Some(n) => self.more.get(n).ok_or(EINVAL)?.get().ok_or(ENOMEM),
        }
    }
}

/// One of the pages of [`SharedPages`], by its number.
pub struct UserPage<'a>(usize, NonNull<u8>, PhantomData<&'a ()>);

impl UserPage<'_> {
    /// 64-bit words in a page.
    const WORDS: usize = PAGE_SIZE / size_of::<u64>();

    /// Which page of the mapping it is.
    pub fn number(&self) -> usize {
        self.0
    }

    /// Copies the contents, word by word.
    pub fn save(&self, to: &mut DataPage) {
        let words = self.1.cast::<u64>();
        for (n, to) in to.bytes_mut().chunks_exact_mut(8).enumerate() {
            // SAFETY: Within the page, which is aligned and lives as long as what it was borrowed from. Volatile, since
            // user space may write at the same time.
            let word = unsafe { words.add(n % Self::WORDS).read_volatile() };
            to.copy_from_slice(&word.to_ne_bytes());
        }
    }

    /// Overwrites the contents.
    pub fn load(&self, from: &DataPage) {
        let words = self.1.cast::<u64>();
        for (n, from) in from.bytes().chunks_exact(8).enumerate() {
            let mut word = [0; 8];
            word.copy_from_slice(from);
            // SAFETY: As for `save`.
            unsafe {
                words
                    .add(n % Self::WORDS)
                    .write_volatile(u64::from_ne_bytes(word))
            };
        }
    }
}

/// The first page of [`SharedPages`].
#[derive(Clone, Copy)]
pub struct FirstPage<'a>(NonNull<u8>, PhantomData<&'a ()>);

impl FirstPage<'_> {
    /// Reads a field. User space may write at the same time: what is read once is checked after that.
    #[inline(always)]
    pub fn get<T: FromBytes + Copy>(self, field: Field<T>) -> T {
        // SAFETY: By the invariant of `Field` the `T` is aligned and in the page, which lives as long as the pages
        // that it was borrowed from; any bytes make a `T`.
        unsafe { self.0.add(field.0).cast::<T>().read_volatile() }
    }

    /// Writes a field.
    #[inline(always)]
    pub fn put<T: AsBytes + Copy>(self, field: Field<T>, value: T) {
        // SAFETY: As for `get`; `AsBytes` has no padding that could leak.
        unsafe { self.0.add(field.0).cast::<T>().write_volatile(value) };
    }
}

/// Where a `T` is in [`FirstPage`].
///
/// # Invariants
///
/// The `T` is aligned and ends within the page.
#[derive(Clone, Copy)]
pub struct Field<T>(usize, PhantomData<T>);

impl<T> Field<T> {
    /// The field at byte `offset`. A constant that does not fit the page does not compile.
    pub const fn at(offset: usize) -> Self {
        assert!(offset % align_of::<T>() == 0);
        assert!(offset < PAGE_SIZE && size_of::<T>() <= PAGE_SIZE - offset);
        // INVARIANT: Just checked.
        Self(offset, PhantomData)
    }
}

impl<const MORE: usize> Backing for SharedPages<MORE> {
    unsafe fn fault(&self, vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The caller promises a fault that is being served.
        let pgoff = unsafe { (*vmf).__bindgen_anon_1.pgoff };
        let found = match pgoff.checked_sub(1) {
            None => Ok(self.first.address()),
            Some(n) if n == MORE => self.tail.get_or_alloc(),
            Some(n) => match self.more.get(n) {
                Some(page) => page.get_or_alloc(),
                None => match &self.further {
                    Some(f) if pgoff >= f.first => f.pages.page(pgoff - f.first),
                    _ => return SIGBUS,
                },
            },
        };
        let address = match found {
            Ok(address) => address,
            Err(e) if e == ENOMEM => return OOM,
            Err(_) => return SIGBUS,
        };
        // SAFETY: The page is owned by `self`, its tail or what is further on; the mapping takes a reference of its
        // own, so that the memory lives as long as any mapping of it.
        unsafe {
            let page = page_of(address);
            bindings::rvmm_get_page(page);
            (*vmf).page = page;
        }
        0
    }
}
