// SPDX-License-Identifier: GPL-2.0
//! Guest memory: addresses, slots, nested page tables, guest page walks.

pub(crate) mod addr;
pub(crate) mod dirty;
#[path = "../x86/paging/fmt_ept.rs"]
pub(crate) mod fmt_ept;
#[path = "../x86/paging/fmt_npt.rs"]
pub(crate) mod fmt_npt;
#[path = "../x86/paging/gwalk.rs"]
pub(crate) mod gwalk;
pub(crate) mod memory;
#[path = "../x86/paging/nested.rs"]
pub(crate) mod nested;
pub(crate) mod slots;
pub(crate) mod walk;
