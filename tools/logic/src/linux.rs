// SPDX-License-Identifier: GPL-2.0
//! What pure logic needs of the kernel's interfaces: functions that the module has as instructions.

#[path = "../../../rust/readers.rs"]
pub mod readers;

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

/// Atomic words, before each access to which another thread may come ([`crate::interleave`]).
pub mod atomic {
    use core::sync::atomic::{self, Ordering};

    use crate::interleave;

    /// Waits for another thread.
    pub fn spin_loop() {
        interleave::wait();
    }

    macro_rules! word {
        ($(#[$doc:meta])* $name:ident, $value:ty) => {
            $(#[$doc])*
            pub struct $name(atomic::$name);

            #[allow(missing_docs)]
            impl $name {
                pub const fn new(value: $value) -> Self {
                    Self(atomic::$name::new(value))
                }

                pub fn load(&self, order: Ordering) -> $value {
                    interleave::step();
                    self.0.load(order)
                }

                pub fn store(&self, value: $value, order: Ordering) {
                    interleave::step();
                    self.0.store(value, order);
                }

                pub fn swap(&self, value: $value, order: Ordering) -> $value {
                    interleave::step();
                    self.0.swap(value, order)
                }

                pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                    interleave::step();
                    self.0.fetch_add(value, order)
                }

                pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                    interleave::step();
                    self.0.fetch_sub(value, order)
                }

                pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                    interleave::step();
                    self.0.fetch_or(value, order)
                }

                pub fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                    interleave::step();
                    self.0.fetch_and(value, order)
                }
            }
        };
    }

    word! {
        /// 32 bits.
        AtomicU32, u32
    }
    word! {
        /// 64 bits.
        AtomicU64, u64
    }
}
