// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The machine on Arm64: GICv3 and timers in the hypervisor, PSCI by HVC, a 16550 and a PL031, all told by a device
//! tree. What has no hypervisor in it is tested on every architecture.

mod fdt;
mod image;
pub mod layout;

#[cfg(target_arch = "aarch64")]
mod absent;
#[cfg(target_arch = "aarch64")]
pub mod boot;
#[cfg(target_arch = "aarch64")]
pub(crate) mod clock;
#[cfg(target_arch = "aarch64")]
pub(crate) mod cpu;
#[cfg(target_arch = "aarch64")]
pub(crate) mod gic;
#[cfg(target_arch = "aarch64")]
pub(crate) mod pause;

#[cfg(target_arch = "aarch64")]
pub use absent::{gdb, pci, Fork, PowerButton, Snapshot};
