// SPDX-License-Identifier: GPL-2.0
//! The device: /dev/rvmm and, on request, /dev/kvm. System ioctls (api.rst 4, "system ioctls").

use crate::abi::uapi::{self, k};
use crate::arch::MMAP_BYTES;
use crate::kvm::arch;
use crate::kvm::table::ioctls;
use crate::kvm::vm::{check_extension, create_vm};
use crate::linux::misc;
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::fs::File;
use kernel::miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration};
use kernel::prelude::*;

/// The module's init has succeeded.
static READY: AtomicBool = AtomicBool::new(false);

/// Lets files be opened.
pub(crate) fn set_ready() {
    READY.store(true, Ordering::Release);
}

/// KVM_CHECK_EXTENSION (api.rst 4.4).
fn check(capability: usize) -> isize {
    // A VM gives the same answers, and does not look into the table below: it must promise nothing.
    const { assert!(PROMISED.is_empty()) };
    check_extension(None, capability)
}

ioctls! {
    /// The system ioctls of every architecture (api.rst 4), then those of this one.
    fn ioctl(; cmd, arg) else arch::system::ioctl(cmd, arg);
    lock _none = ();

    KVM_GET_API_VERSION:    -, [arg == 0 => EINVAL] call(k::KVM_API_VERSION as isize);
    KVM_CREATE_VM:          -, call(create_vm(arg));
    KVM_CHECK_EXTENSION:    -, call(check(arg));
    KVM_GET_VCPU_MMAP_SIZE: -, [arg == 0 => EINVAL] call(MMAP_BYTES as isize);
}

/// /dev/rvmm.
#[derive(Clone, Copy)]
pub(crate) struct RvmmDevice;

/// /dev/kvm, another name of /dev/rvmm.
#[derive(Clone, Copy)]
pub(crate) struct KvmNode;

/// Registration of /dev/rvmm.
pub(crate) fn options() -> MiscDeviceOptions {
    MiscDeviceOptions { name: c"rvmm" }
}

/// Registration of /dev/kvm, free while no KVM vendor module is loaded.
pub(crate) fn register_kvm_node() -> impl PinInit<MiscDeviceRegistration<KvmNode>, Error> {
    // Under KVM's number, which static nodes and jails that make their own node use.
    misc::register_with_minor(MiscDeviceOptions { name: c"kvm" }, misc::KVM_MINOR)
}

macro_rules! misc_device {
    ($t:ty) => {
        #[vtable]
        impl MiscDevice for $t {
            // Nothing is kept per open file.
            type Ptr = KBox<Self>;

            fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
                if !READY.load(Ordering::Acquire) {
                    return Err(ENODEV);
                }
                Ok(KBox::new(Self, GFP_KERNEL)?)
            }

            fn ioctl(_device: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
                ioctl(cmd, arg)
            }

            #[cfg(CONFIG_COMPAT)]
            fn compat_ioctl(_device: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
                ioctl(cmd, arg)
            }
        }
    };
}

misc_device!(RvmmDevice);
misc_device!(KvmNode);
