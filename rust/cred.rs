// SPDX-License-Identifier: GPL-2.0

//! What the current task may do.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use super::bindings;

/// Whether the current task has CAP_SYS_ADMIN in the first user namespace.
pub fn is_admin() -> bool {
    // SAFETY: Process context; the number is a capability's.
    unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as i32) }
}

/// Whether the current task has CAP_SYS_BOOT in the first user namespace.
pub fn may_reboot() -> bool {
    // SAFETY: Process context; the number is a capability's.
    unsafe { bindings::capable(bindings::CAP_SYS_BOOT as i32) }
}
