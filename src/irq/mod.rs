// SPDX-License-Identifier: GPL-2.0
//! Interrupt controllers: models without locks, and `chip`, which owns and connects them.

pub(crate) mod chip;
pub(crate) mod ioapic;
pub(crate) mod lapic;
pub(crate) mod lapic_defs;
pub(crate) mod lapic_reg;
pub(crate) mod lapic_timer;
pub(crate) mod line;
pub(crate) mod msg;
