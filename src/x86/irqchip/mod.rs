// SPDX-License-Identifier: GPL-2.0
//! Interrupt controllers: models without locks, and `chip`, which owns and connects them.

pub(crate) mod addressees;
pub(crate) mod chip;
pub(crate) mod controllers;
pub(crate) mod deliver;
pub(crate) mod ioapic;
pub(crate) mod ioctl;
pub(crate) mod lapic;
pub(crate) mod lapic_page;
pub(crate) mod msg;
pub(crate) mod pic;
pub(crate) mod pit;
pub(crate) mod pit_timer;
pub(crate) mod route;
pub(crate) mod routing;
