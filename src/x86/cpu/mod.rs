// SPDX-License-Identifier: GPL-2.0
//! The CPU that a guest sees.

pub(crate) mod canonical;
pub(crate) mod control;
pub(crate) mod cpuid;
pub(crate) mod events;
pub(crate) mod host;
pub(crate) mod index;
pub(crate) mod masks;
pub(crate) mod mce;
pub(crate) mod model;
pub(crate) mod msr;
pub(crate) mod regs;
pub(crate) mod reset;
pub(crate) mod smm;
pub(crate) mod smram;
pub(crate) mod tsc;
pub(crate) mod violation;
pub(crate) mod xsave;
