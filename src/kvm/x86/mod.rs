// SPDX-License-Identifier: GPL-2.0
//! The ioctls that only x86 has.

pub(super) mod extensions;
pub(super) mod system;
pub(super) mod vcpu;
pub(super) mod vm;
