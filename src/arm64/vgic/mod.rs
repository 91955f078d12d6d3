// SPDX-License-Identifier: GPL-2.0
//! The interrupt controller of a VM: a GICv3 whose distributor and redistributors are software, and whose interfaces
//! are the processor's, with list registers; and interrupt translation services for messages of devices.

pub(crate) mod chip;
pub(crate) mod its;
pub mod lists;
pub mod lpis;
pub mod mmio;
pub mod registers;
pub mod state;
pub mod table;
pub(crate) mod tables;
pub mod translation;
