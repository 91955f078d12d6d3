// SPDX-License-Identifier: GPL-2.0
//! What pure logic needs of the kernel's interfaces: functions that the module has as instructions.

/// Indices under speculation.
pub mod nospec {
    /// All ones if `index` is below `len`, else zero.
    pub fn index_mask(index: usize, len: usize) -> usize {
        usize::from(index < len).wrapping_neg()
    }
}

/// Arrays that have several owners.
pub mod shared {
    extern crate alloc;

    /// A pointer to what has several owners.
    pub type Shared<T> = alloc::sync::Arc<T>;

    /// There is no memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct NoMemory;

    #[cfg(test)]
    std::thread_local! {
        /// Arrays that can still be made before one fails.
        pub static ARRAYS_LEFT: core::cell::Cell<usize> = const { core::cell::Cell::new(usize::MAX) };
    }

    /// An array of `element(0)` to `element(N - 1)`.
    ///
    /// # Errors
    ///
    /// [`NoMemory`] where a test wants it.
    pub fn array<T, const N: usize>(
        element: impl FnMut(usize) -> T,
    ) -> Result<Shared<[T; N]>, NoMemory> {
        #[cfg(test)]
        ARRAYS_LEFT.with(|left| {
            left.set(left.get().checked_sub(1).ok_or(NoMemory)?);
            Ok(())
        })?;
        Ok(Shared::new(core::array::from_fn(element)))
    }
}
