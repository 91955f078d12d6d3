// SPDX-License-Identifier: GPL-2.0

//! Files of other modules, kept and told apart.
//!
//! C header: [`include/linux/file.h`](srctree/include/linux/file.h)

use core::ptr::NonNull;

use kernel::prelude::*;

use super::bindings;

/// A counted reference to an open file of which nothing is used but its identity.
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

    /// Whether the file's operations belong to the loadable module of this name.
    pub fn is_of_module(&self, name: &CStr) -> bool {
        // SAFETY: The file is live, so are its operations and the module that they pin.
        unsafe { bindings::rvmm_file_is_of_module(self.0.as_ptr(), name.as_char_ptr()) }
    }
}

impl Drop for FileRef {
    fn drop(&mut self) {
        // SAFETY: The value owns one reference.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}
