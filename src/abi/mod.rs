// SPDX-License-Identifier: GPL-2.0
//! What user space sees: numbers, structures and counters, without behaviour.

pub(crate) mod exits;
pub(crate) mod ledger;
pub(crate) mod record;
pub(crate) mod stats;
pub(crate) mod uapi;
