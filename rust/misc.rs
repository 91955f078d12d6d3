// SPDX-License-Identifier: GPL-2.0

//! Misc devices with a minor number of their own.
//!
//! C header: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h)

use kernel::bindings;
use kernel::error::to_result;
use kernel::miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration};
use kernel::prelude::*;

/// KVM_MINOR.
pub const KVM_MINOR: i32 = 232;

/// As [`MiscDeviceRegistration::register`], with a fixed minor number. EBUSY when it is taken.
pub fn register_with_minor<T: MiscDevice>(
    options: MiscDeviceOptions,
    minor: i32,
) -> impl PinInit<MiscDeviceRegistration<T>, Error> {
    let init = move |slot: *mut MiscDeviceRegistration<T>| {
        // The registration is a transparent wrapper around the C structure.
        let device = slot.cast::<bindings::miscdevice>();
        let mut raw = options.into_raw::<T>();
        raw.minor = minor;
        // SAFETY: `slot` is valid for writes, pinned, and its owner's `drop` deregisters the device. After a failure
        // it counts as uninitialised, which is true of the C structure as well: it is in no list.
        unsafe {
            device.write(raw);
            to_result(bindings::misc_register(device))
        }
    };
    // SAFETY: On success the slot holds what the type's invariants ask for: a structure made by `into_raw` and
    // registered.
    unsafe { pin_init::pin_init_from_closure(init) }
}
