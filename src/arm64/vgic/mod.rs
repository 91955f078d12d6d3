// SPDX-License-Identifier: GPL-2.0
//! The interrupt controller of a VM: a GICv3 whose distributor and redistributors are software, and whose interfaces
//! are the processor's, with list registers.

pub(crate) mod chip;
pub mod lists;
pub mod mmio;
pub mod registers;
pub mod state;
