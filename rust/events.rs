// SPDX-License-Identifier: GPL-2.0

//! The module's own tracepoints (`shim/events.h`), each of a few words and a name.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

use kernel::prelude::*;

use super::bindings;

/// Whether somebody listens to one of them. A hint: it may have changed by now.
#[inline(always)]
pub fn are_heard() -> bool {
    // SAFETY: A word that is only ever replaced as a whole.
    unsafe { core::ptr::addr_of!(bindings::rvmm_listeners).read_volatile() != 0 }
}

/// `rvmm_exit`. Any context that RCU watches, with interrupts on or off.
pub fn exit(number: u32, name: &CStr, words: &[u64; 8]) {
    // SAFETY: The name is terminated, and there are as many words as the event reads; both are copied.
    unsafe { bindings::rvmm_tell_exit(number, name.as_char_ptr(), words.as_ptr()) };
}

/// `rvmm_entry`. As [`exit`].
pub fn entry(number: u32, words: &[u64; 8]) {
    // SAFETY: As above.
    unsafe { bindings::rvmm_tell_entry(number, words.as_ptr()) };
}
