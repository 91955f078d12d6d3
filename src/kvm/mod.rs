// SPDX-License-Identifier: GPL-2.0
//! The face: the files that user space opens, and their ioctls (api.rst 4).

pub(crate) mod device;
pub(crate) mod stats;
pub(crate) mod vcpu;
pub(crate) mod vm;
