// SPDX-License-Identifier: GPL-2.0
//! VM entry's checks on controls, host state and guest state, run in software over the VMCS about to be used
//! (SDM 3C 27.2, 27.3.1).
//!
//! `controls` has the rules of 27.2.1, `host` those of 27.2.2 to 27.2.4, `guest` those of 27.3.1, each rule a sentence
//! with its section; `fields` is what they look at. Emulators accept more states than processors do; this check
//! refuses what the manual refuses. Controls that rvmm never sets are refused outright, so their fields need no rules
//! here: entry controls for state that it does not load (performance counters, BNDCFGS, processor trace, CET, LBR, user
//! interrupts, PKRS, FRED), MSR areas, and execution controls with structures of their own (I/O bitmaps, VM
//! functions, VMCS shadowing, #VE, sub-page permissions).
//!
//! All of it is pure: the caller reads the VMCS (`super::view`) and the capability MSRs (`super::config`).
#![forbid(unsafe_code)]

mod controls;
mod fields;
mod guest;
mod host;

use crate::x86::cpu::violation::Violation;

pub use fields::*;

/// All groups, in the processor's order; the host's only `with_host`.
///
/// # Errors
///
/// The first rule that is broken.
pub fn check(v: &VmcsView, caps: &VmxCaps, with_host: bool) -> Result<(), Violation> {
    controls::check(&v.controls, &v.guest, caps)?;
    if with_host {
        host::check(&v.host, &v.controls, caps)?;
    }
    guest::check(&v.guest, &v.controls, caps)
}
