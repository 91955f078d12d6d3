// SPDX-License-Identifier: GPL-2.0

//! Open files, kept and told apart.
//!
//! C headers: [`include/linux/file.h`](srctree/include/linux/file.h),
//! [`include/linux/vfio.h`](srctree/include/linux/vfio.h)

use core::ptr::NonNull;

use kernel::error::from_err_ptr;
use kernel::prelude::*;

use super::bindings;

/// A counted reference to an open file, of which its identity is used, its content, or what VFIO says of it.
#[derive(PartialEq, Eq)]
pub struct FileRef(NonNull<bindings::file>);

// SAFETY: The count is atomic, and nothing of the file belongs to the task that opened it.
unsafe impl Send for FileRef {}
// SAFETY: Shared references compare the address, read what no file changes, or read as any number of tasks may.
unsafe impl Sync for FileRef {}

impl FileRef {
    /// Opens `path` for reading, in the current task's name space and with its rights. Sleeps. Errors: as open(2).
    pub fn open(path: &CStr) -> Result<Self> {
        // SAFETY: The path is a string that outlives the call. Success returns a reference, failure an error.
        let file = from_err_ptr(unsafe {
            bindings::filp_open(path.as_char_ptr(), bindings::O_RDONLY as i32, 0)
        })?;
        NonNull::new(file).map(Self).ok_or(ENOENT)
    }

    /// Whether the content can be read and begins with `text`. Sleeps.
    pub fn begins_with<const N: usize>(&self, text: &[u8; N]) -> bool {
        let (mut bytes, mut position) = ([0u8; N], 0);
        // SAFETY: The buffer has as many bytes; the file is live and checks whether it can be read.
        let read = unsafe {
            bindings::kernel_read(self.0.as_ptr(), bytes.as_mut_ptr().cast(), N, &mut position)
        };
        read == N as isize && bytes == *text
    }

    /// The file behind descriptor `fd` of the current process. Errors: `EBADF`.
    pub fn from_fd(fd: i32) -> Result<Self> {
        let fd = u32::try_from(fd).map_err(|_| EBADF)?;
        // SAFETY: Any number may be asked for; success returns a reference.
        NonNull::new(unsafe { bindings::fget(fd) })
            .map(Self)
            .ok_or(EBADF)
    }

    /// Whether the file's operations belong to the loadable module of this name.
    pub fn is_of_module(&self, name: &CStr) -> bool {
        // SAFETY: The file is live, so are its operations and the module that they pin.
        unsafe { bindings::rvmm_file_is_of_module(self.0.as_ptr(), name.as_char_ptr()) }
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
