// SPDX-License-Identifier: GPL-2.0

//! Atomic words of protocols that are tried in all interleavings on the host.
//!
//! There, `tools/logic/src/linux.rs` has the same names, and a scheduler of threads in between.

pub use core::hint::spin_loop;
pub use core::sync::atomic::{AtomicU32, AtomicU64};
