// SPDX-License-Identifier: GPL-2.0
//! What of the ioctls only Arm64 has, and what it has of those of all architectures.

pub(super) mod system;
pub(super) mod vm;
