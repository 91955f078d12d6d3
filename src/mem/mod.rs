// SPDX-License-Identifier: GPL-2.0
//! Guest memory: addresses, slots, the walker of nested page tables.

pub(crate) mod addr;
pub(crate) mod audit;
pub(crate) mod dirty;
pub(crate) mod fault;
pub(crate) mod flushes;
mod fork;
pub(crate) mod forks;
pub(crate) mod format;
pub(crate) mod index;
pub(crate) mod invalidations;
pub(crate) mod memory;
pub(crate) mod missing;
pub(crate) mod mmu;
pub(crate) mod notifier;
mod oracle;
pub(crate) mod parts;
pub(crate) mod ports;
mod regions;
mod removing;
mod reset;
pub(crate) mod resident;
pub(crate) mod ring;
pub(crate) mod rounds;
mod saved;
pub(crate) mod slot_set;
pub(crate) mod slot_table;
pub(crate) mod slots;
pub(crate) mod touches;
mod view;
pub(crate) mod walk;
mod writer;
