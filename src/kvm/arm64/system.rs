// SPDX-License-Identifier: GPL-2.0
//! The system ioctls that only Arm64 has.

use kernel::prelude::*;

/// There is none. EINVAL is KVM's answer to a number that it does not know.
pub(in crate::kvm) fn ioctl(_cmd: u32, _arg: usize) -> Result<isize> {
    Err(EINVAL)
}
