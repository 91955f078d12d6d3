// SPDX-License-Identifier: GPL-2.0
//! Guest memory: addresses, slots, the walker of nested page tables.

pub(crate) mod addr;
pub(crate) mod dirty;
pub(crate) mod memory;
pub(crate) mod ports;
pub(crate) mod slots;
pub(crate) mod walk;
