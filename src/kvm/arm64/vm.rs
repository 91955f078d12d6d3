// SPDX-License-Identifier: GPL-2.0
//! VMs, which Arm64 cannot make yet.

use kernel::prelude::*;

/// There is none.
pub(in crate::kvm) enum Vm {}

/// KVM_CREATE_VM. EOPNOTSUPP.
pub(in crate::kvm) fn create_vm(_kind: usize) -> Result<isize> {
    Err(EOPNOTSUPP)
}

/// KVM_CHECK_EXTENSION: an extension is something of VMs.
pub(in crate::kvm) fn check_extension(_vm: Option<&Vm>, _capability: usize) -> isize {
    0
}
