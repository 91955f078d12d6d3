// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The ioctls that kvm-ioctls does not wrap: the statistics descriptors and rvmm's own extensions.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref};

pub use numbers::{KVM_GET_STATS_FD, RVMM_GET_ENTRY_FAILURE};

#[allow(missing_docs)]
mod numbers {
    use kvm_bindings::KVMIO;

    use super::{RvmmEntryFailure, RVMM_IOC};

    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
    vmm_sys_util::ioctl_ior_nr!(RVMM_GET_ENTRY_FAILURE, RVMM_IOC, 0x01, RvmmEntryFailure);
}

/// ioctl magic of rvmm's extensions (`RVMM_IOC` in uapi/rvmm.h).
const RVMM_IOC: u32 = 0xbb;

/// `struct rvmm_entry_failure` of uapi/rvmm.h.
#[repr(C)]
pub struct RvmmEntryFailure {
    /// `hardware_entry_failure_reason` of the exit that this explains.
    pub reason: u64,
    /// The offending value.
    pub value: u64,
    /// The rule that was broken, zero-terminated ASCII with the manual's section.
    pub rule: [u8; 240],
}

/// Opens the binary statistics of a VM or vCPU (api.rst 4.133).
///
/// # Errors
///
/// The error of the ioctl; ENOTTY where the hypervisor keeps no statistics.
pub fn stats_fd(fd: &impl AsRawFd) -> std::io::Result<File> {
    // SAFETY: the ioctl takes no argument and returns a new descriptor or -1.
    let raw = unsafe { ioctl(fd, KVM_GET_STATS_FD()) };
    if raw < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: `raw` was just returned as a new descriptor that nobody else owns.
    Ok(unsafe { File::from_raw_fd(raw) })
}

/// The sentence for the vCPU's last failed entry, if the hypervisor is rvmm and has one.
pub fn entry_failure(vcpu: &impl AsRawFd) -> Option<(String, u64)> {
    let mut failure = RvmmEntryFailure {
        reason: 0,
        value: 0,
        rule: [0; 240],
    };
    // SAFETY: the ioctl writes at most the size encoded in its number, which is that of `failure`.
    let done = unsafe { ioctl_with_mut_ref(vcpu, RVMM_GET_ENTRY_FAILURE(), &mut failure) };
    if done != 0 {
        return None;
    }
    let text = failure
        .rule
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    (!text.is_empty()).then(|| (String::from_utf8_lossy(text).into_owned(), failure.value))
}
