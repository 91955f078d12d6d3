// SPDX-License-Identifier: GPL-2.0
//! The ioctls of Arm64, but for those of the device that every architecture has.

mod device;
mod extensions;
mod its;
mod routing;
pub(super) mod system;
mod vcpu;
mod vgic;
pub(super) mod vm;
