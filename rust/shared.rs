// SPDX-License-Identifier: GPL-2.0
//! Arrays that have several owners, built where they stay.
//!
//! C header: [`include/linux/refcount.h`](srctree/include/linux/refcount.h)

use kernel::alloc::AllocError;
use kernel::prelude::*;
use kernel::sync::Arc;
use pin_init::init_array_from_fn;

/// A pointer to what has several owners.
pub(crate) type Shared<T> = Arc<T>;

/// There is no memory.
pub(crate) type NoMemory = AllocError;

/// An array of `element(0)` to `element(N - 1)`, charged to the current task's memory cgroup. Sleeps.
pub(crate) fn array<T, const N: usize>(
    element: impl FnMut(usize) -> T,
) -> Result<Shared<[T; N]>, NoMemory> {
    Arc::init(init_array_from_fn(element), GFP_KERNEL_ACCOUNT).map_err(|_| AllocError)
}
