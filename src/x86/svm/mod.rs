// SPDX-License-Identifier: GPL-2.0
//! The AMD backend: SVM with nested paging (APM 2 chapter 15).
//!
//! | file | what |
//! |---|---|
//! | `vmcb` | the control block: fields, intercepts, exit codes |
//! | `platform` | SVM on each CPU: probe, EFER.SVME, what all vCPUs share |
//! | `entry` | world switch |
//! | `asid` | address-space identifiers and TLB flushes |
//! | `state` | guest state to and from the VMCB |
//! | `msr` | MSRs that the VMCB or a stay switches |
//! | `breakpoints` | debug registers around a stay |
//! | `event` | injection and interrupted events |
//! | `nmi` | NMI blocking, which SVM leaves to software |
//! | `decode` | exit codes to [`crate::x86::exit::Exit`] |
//! | `check`, `view` | the entry checks in software, and the VMCB as they see it |
//! | `quirks` | what exists only for an emulator |
//! | `vcpu` | all of it as [`crate::x86::vendor::VcpuBackend`] |
//! | `measure` | what the instructions cost |

mod asid;
mod breakpoints;
pub(crate) mod check;
mod decode;
mod entry;
mod event;
mod measure;
mod msr;
mod nmi;
mod platform;
mod quirks;
mod state;
mod vcpu;
mod view;
mod vmcb;

use crate::linux::global::Owner;
use crate::x86::vendor::{HwCaps, Platform};
use kernel::prelude::*;

pub(crate) use vcpu::SvmVcpu;

/// AMD SVM as a platform.
pub(crate) struct Svm;

impl Svm {
    /// Whether this CPU claims SVM.
    pub(crate) fn present() -> bool {
        platform::present()
    }
}

impl Platform for Svm {
    type Vcpu = SvmVcpu;

    fn probe() -> Result<(HwCaps, Owner)> {
        platform::probe()
    }

    fn cpu_up() -> Result {
        platform::cpu_up()
    }

    fn cpu_down() {
        platform::cpu_down();
    }
}
