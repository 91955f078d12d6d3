// SPDX-License-Identifier: GPL-2.0
//! Who is going to write to a page that somebody wants to see before: a reset point (`saved`) or a fork (`forks`).
#![forbid(unsafe_code)]

/// Who is going to write to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// The guest or user space: not beyond the limit. May sleep.
    Limited,
    /// The kernel on behalf of the guest. May sleep.
    Kernel,
    /// The same where nothing may sleep.
    Atomic,
}

/// Why a page could not be saved. It must not be written then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotSaved {
    /// The limit has been reached.
    Full,
    /// No memory.
    NoMemory,
    /// The page is not there, or it would take sleep.
    Fault,
}
