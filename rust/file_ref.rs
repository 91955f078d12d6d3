// SPDX-License-Identifier: GPL-2.0

//! Files of VFIO, kept and told apart.
//!
//! C headers: [`include/linux/file.h`](srctree/include/linux/file.h),
//! [`include/linux/vfio.h`](srctree/include/linux/vfio.h)

use core::ptr::NonNull;

use kernel::prelude::*;

use super::bindings;

/// A counted reference to an open file of which nothing is used but its identity and what VFIO says of it.
#[derive(PartialEq, Eq)]
pub struct FileRef(NonNull<bindings::file>);

// SAFETY: The count is atomic, and nothing else of the file is touched.
unsafe impl Send for FileRef {}
// SAFETY: Shared references only compare the address or read what no file changes.
unsafe impl Sync for FileRef {}

impl FileRef {
    /// The file behind descriptor `fd` of the current process. Errors: `EBADF`.
    pub fn from_fd(fd: i32) -> Result<Self> {
        let fd = u32::try_from(fd).map_err(|_| EBADF)?;
        // SAFETY: Any number may be asked for; success returns a reference.
        NonNull::new(unsafe { bindings::fget(fd) })
            .map(Self)
            .ok_or(EBADF)
    }

    /// Whether VFIO gave the file out for a group or a device.
    pub fn is_vfio(&self) -> bool {
        // SAFETY: The file is live, and VFIO tells its own from others.
        unsafe { bindings::rvmm_file_is_vfio(self.0.as_ptr()) }
    }

    /// Whether VFIO has the IOMMU enforce that no DMA of the group or device goes past the caches. Sleeps.
    pub fn vfio_is_coherent(&self) -> bool {
        // SAFETY: The file is live; VFIO takes any, and locks of its own.
        unsafe { bindings::rvmm_vfio_is_coherent(self.0.as_ptr()) }
    }
}

impl Drop for FileRef {
    fn drop(&mut self) {
        // SAFETY: The value owns one reference.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}
