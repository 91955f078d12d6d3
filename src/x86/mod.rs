// SPDX-License-Identifier: GPL-2.0
//! One architecture: processors of Intel and AMD, and the machine around them.

pub(crate) mod cpu;
pub(crate) mod emul;
pub(crate) mod enabled;
pub(crate) mod exit;
pub(crate) mod irqchip;
pub(crate) mod mitigate;
pub(crate) mod paging;
pub(crate) mod pv;
pub(crate) mod run;
pub(crate) mod shared;
pub(crate) mod svm;
pub(crate) mod vcpu;
pub(crate) mod vendor;
pub(crate) mod vm;
pub(crate) mod vmx;
