// SPDX-License-Identifier: GPL-2.0
//! Interrupt controllers: pure models of the local APIC, I/O APIC, 8259A and 8254, messages and routing.

pub mod ioapic;
pub mod lapic;
pub mod lapic_defs;
pub mod lapic_reg;
pub mod lapic_timer;
pub mod line;
pub mod msg;
pub mod pic;
pub mod pit;
pub mod pit_channel;
pub mod route;
