// SPDX-License-Identifier: GPL-2.0

//! Accesses to user memory that never sleep: a page that is not resident is `EFAULT` at once.
//!
//! C header: [`include/linux/uaccess.h`](srctree/include/linux/uaccess.h)
//!
//! They work in any context that has a user address space, also with interrupts off. For accesses that may
//! fault pages in, use [`kernel::uaccess`], or [`fault_in`](super::gup::fault_in) and try again.

use kernel::error::to_result;
use kernel::prelude::*;

use super::bindings;

/// First address that no process of this kernel can have.
pub fn end() -> usize {
    // SAFETY: Constant after boot.
    unsafe { bindings::rvmm_user_end() }
}

macro_rules! access {
    ($get:ident, $put:ident, $ty:ty, $cget:ident, $cput:ident) => {
        /// Reads one value at user address `addr`, in a single access. Errors: `EFAULT`.
        #[inline(always)]
        pub fn $get(addr: usize) -> Result<$ty> {
            let mut value = 0;
            // SAFETY: The shim checks the address and catches the fault; `value` has room.
            match unsafe { bindings::$cget(&mut value, addr) } {
                0 => Ok(value),
                _ => Err(EFAULT),
            }
        }

        /// Writes one value to user address `addr`, in a single access. Errors: `EFAULT`.
        #[inline(always)]
        pub fn $put(addr: usize, value: $ty) -> Result {
            // SAFETY: The shim checks the address and catches the fault.
            match unsafe { bindings::$cput(addr, value) } {
                0 => Ok(()),
                _ => Err(EFAULT),
            }
        }
    };
}

access!(get_u8, put_u8, u8, rvmm_get_user_u8, rvmm_put_user_u8);
access!(get_u32, put_u32, u32, rvmm_get_user_u32, rvmm_put_user_u32);
access!(get_u64, put_u64, u64, rvmm_get_user_u64, rvmm_put_user_u64);

/// Copies from user address `addr`. On `EFAULT` part of `dst` may have been written.
pub fn copy_from(addr: usize, dst: &mut [u8]) -> Result {
    // SAFETY: The shim checks the user range; `dst` has room.
    to_result(unsafe {
        bindings::rvmm_copy_from_user_nofault(dst.as_mut_ptr().cast(), addr, dst.len())
    })
}

/// Copies to user address `addr`. On `EFAULT` part of it may have been written.
pub fn copy_to(addr: usize, src: &[u8]) -> Result {
    // SAFETY: The shim checks the user range.
    to_result(unsafe { bindings::rvmm_copy_to_user_nofault(addr, src.as_ptr().cast(), src.len()) })
}
