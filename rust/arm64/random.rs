// SPDX-License-Identifier: GPL-2.0

//! Random numbers.
//!
//! C header: [`include/linux/random.h`](srctree/include/linux/random.h)

use crate::linux::bindings;

/// 64 random bits. Any context.
pub fn word() -> u64 {
    // SAFETY: Can be called anywhere.
    unsafe { bindings::rvmm_random_word() }
}
