// SPDX-License-Identifier: GPL-2.0
//! Signals during KVM_RUN.

use crate::abi::uapi;
use crate::linux::sched::SignalMask;
use kernel::prelude::*;

/// KVM_SET_SIGNAL_MASK (api.rst 4.18): the mask in force during KVM_RUN; a null pointer takes it back.
pub(super) fn set_mask(mask: &mut Option<SignalMask>, arg: usize) -> Result {
    *mask = if arg == 0 {
        None
    } else {
        if uapi::get::<u32>(arg)? as usize != size_of::<u64>() {
            return Err(EINVAL);
        }
        let mask = arg.checked_add(size_of::<u32>()).ok_or(EFAULT)?;
        Some(SignalMask(uapi::get(mask)?))
    };
    Ok(())
}
