// SPDX-License-Identifier: GPL-2.0

//! Atomic changes of user memory that never sleep, as the accesses of [`uaccess`](crate::linux::uaccess).
//!
//! C header: [`include/linux/uaccess.h`](srctree/include/linux/uaccess.h)

use crate::linux::bindings;
use kernel::prelude::*;

macro_rules! exchange {
    ($cmpxchg:ident, $ty:ty, $ccmpxchg:ident) => {
        /// Atomically replaces `old` by `new` at user address `addr`.
        ///
        /// `Ok(Ok(old))` when it was replaced, `Ok(Err(found))` when something else was there. Errors:
        /// `EFAULT`; `EINVAL` when `addr` is not naturally aligned (a split lock stalls the whole machine).
        #[inline]
        pub fn $cmpxchg(addr: usize, old: $ty, new: $ty) -> Result<core::result::Result<$ty, $ty>> {
            if addr % core::mem::size_of::<$ty>() != 0 {
                return Err(EINVAL);
            }
            let mut found = old;
            // SAFETY: The shim checks the address and catches the fault; `found` has room.
            match unsafe { bindings::$ccmpxchg(addr, &mut found, new) } {
                0 => Ok(Ok(old)),
                1 => Ok(Err(found)),
                _ => Err(EFAULT),
            }
        }
    };
}

exchange!(cmpxchg_u8, u8, rvmm_cmpxchg_user_u8);
exchange!(cmpxchg_u16, u16, rvmm_cmpxchg_user_u16);
exchange!(cmpxchg_u32, u32, rvmm_cmpxchg_user_u32);
exchange!(cmpxchg_u64, u64, rvmm_cmpxchg_user_u64);
