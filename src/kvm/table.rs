// SPDX-License-Identifier: GPL-2.0
//! The form of the tables in which ioctls and extensions stand.
//!
//! A row of [`ioctls!`] says, from left to right: the number; the lock that is held (`-`: none); what has to hold
//! besides, with the error where it does not; who carries it out, and how the argument travels; the extensions that
//! promise it.
//!
//! | word | the argument is |
//! |---|---|
//! | `call(f)` | whatever `f` makes of it |
//! | `get(f)` | the address to which the structure that `f` makes is copied |
//! | `set(r => f)` | the address of a structure, which is copied in and named `r` |
//! | `swap(r => f)` | that of a structure which is copied in, named `r`, and copied back when `f` has changed it |

use crate::abi::uapi::{self, Uapi};
use kernel::prelude::*;

/// What a handler may return.
pub(super) trait Answer {
    /// As the ioctl's result.
    fn answer(self) -> Result<isize>;
}

impl Answer for () {
    fn answer(self) -> Result<isize> {
        Ok(0)
    }
}

impl Answer for isize {
    fn answer(self) -> Result<isize> {
        Ok(self)
    }
}

impl Answer for Result {
    fn answer(self) -> Result<isize> {
        self.map(|()| 0)
    }
}

impl Answer for Result<isize> {
    fn answer(self) -> Result<isize> {
        self
    }
}

// Each structure is in a stack frame of its own, none in that of the table.

/// Copies out what `f` makes.
#[inline(never)]
pub(super) fn get<T: Uapi>(arg: usize, f: impl FnOnce() -> Result<T>) -> Result<isize> {
    uapi::put(arg, &f()?).answer()
}

/// Hands `f` a copy of the structure at `arg`.
#[inline(never)]
pub(super) fn set<T: Uapi, A: Answer>(arg: usize, f: impl FnOnce(&T) -> A) -> Result<isize> {
    f(&uapi::get(arg)?).answer()
}

/// Hands `f` a copy of the structure at `arg`, and copies back what `f` has made of it.
#[inline(never)]
pub(super) fn swap<T: Uapi, A: Answer>(arg: usize, f: impl FnOnce(&mut T) -> A) -> Result<isize> {
    let mut value = uapi::get(arg)?;
    let answer = f(&mut value).answer()?;
    uapi::put(arg, &value)?;
    Ok(answer)
}

/// Declares a function that carries out ioctls, and the list of extensions that its rows promise.
macro_rules! ioctls {
    (
        $(#[$doc:meta])*
        fn $name:ident($($context:ident: $t:ty),*; $cmd:ident, $arg:ident) else $unknown:expr;
        lock $guard:ident = $lock:expr;
        $(
            $number:ident: $held:tt, $([$condition:expr => $errno:ident])? $word:ident($($handler:tt)*)
                $(, $extension:ident)*;
        )*
    ) => {
        $(#[$doc])*
        pub(in crate::kvm) fn $name($($context: $t,)* $cmd: u32, $arg: usize) -> Result<isize> {
            match $cmd {
                $(uapi::$number => {
                    ioctls!(@lock $held $guard $lock);
                    $(if !($condition) {
                        return Err($errno);
                    })?
                    ioctls!(@$word $arg, $($handler)*)
                })*
                _ => $unknown,
            }
        }

        /// The extensions that the table's ioctls are.
        pub(in crate::kvm) const PROMISED: &[u32] = &[$($(k::$extension,)*)*];
    };
    (@lock - $guard:ident $lock:expr) => {};
    (@lock held $guard:ident $lock:expr) => {
        let mut held = $lock;
        let $guard = &mut *held;
        let _ = &$guard;
    };
    (@call $arg:ident, $handler:expr) => {
        crate::kvm::table::Answer::answer($handler)
    };
    (@get $arg:ident, $handler:expr) => {
        crate::kvm::table::get($arg, || $handler)
    };
    (@set $arg:ident, $value:pat => $handler:expr) => {
        crate::kvm::table::set($arg, |$value| $handler)
    };
    (@swap $arg:ident, $value:pat => $handler:expr) => {
        crate::kvm::table::swap($arg, |$value| $handler)
    };
}
pub(super) use ioctls;

/// Declares `check` (KVM_CHECK_EXTENSION) and `enable` (KVM_ENABLE_CAP on a VM, under the lock of creation) as one
/// table. A row says: the capability; what it answers, on a VM or (`None`) on the device; and what enabling it with a
/// value does.
macro_rules! extensions {
    (
        ($vm:ident, $setup:ident, $value:ident) else $check:expr, $enable:expr;
        $($capability:path: $answer:expr $(, enable $handler:expr)?;)*
    ) => {
        /// What KVM_CHECK_EXTENSION answers.
        pub(in crate::kvm) fn check($vm: Option<&Vm>, capability: u32) -> isize {
            match capability {
                $($capability => ($answer) as isize,)*
                other => $check($vm, other),
            }
        }

        /// KVM_ENABLE_CAP on a VM.
        pub(in crate::kvm) fn enable($vm: &Vm, $setup: &mut Setup, capability: u32, $value: u64) -> Result {
            match capability {
                $($($capability => $handler,)?)*
                other => $enable($vm, $setup, other, $value),
            }
        }
    };
}
pub(super) use extensions;
