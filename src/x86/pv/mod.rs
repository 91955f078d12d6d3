// SPDX-License-Identifier: GPL-2.0
//! What guests know of the hypervisor: clocks, hypercalls and the memory that they share with it.

pub(crate) mod asked;
pub(crate) mod async_pf;
pub(crate) mod clock;
pub(crate) mod clock_page;
pub(crate) mod eoi;
pub(crate) mod hypercall;
pub(crate) mod kvmclock;
pub(crate) mod msrs;
pub(crate) mod paravirt;
pub(crate) mod steal;
pub(crate) mod vapic;
