// SPDX-License-Identifier: GPL-2.0
//! Guest memory: addresses, slots, nested page tables, guest page walks.

pub(crate) mod addr;
pub(crate) mod dirty;
pub(crate) mod fmt_ept;
pub(crate) mod fmt_npt;
pub(crate) mod gwalk;
pub(crate) mod memory;
pub(crate) mod nested;
pub(crate) mod slots;
pub(crate) mod walk;
