// SPDX-License-Identifier: GPL-2.0

//! Raw C items: this module's bindgen output over the `kernel` crate's bindings.
//!
//! Outside this folder only the user-space types and constants (`kvm_*`, `KVM_*`) are of use.

#![allow(
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::missing_safety_doc,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports
)]

use kernel::ffi;
use pin_init::MaybeZeroable;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes};

pub use kernel::bindings::*;

include!(env!("RVMM_BINDINGS"));
