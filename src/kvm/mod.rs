// SPDX-License-Identifier: GPL-2.0
//! The face: the files that user space opens, and their ioctls (api.rst 4).
//!
//! `device`, `vm` and `vcpu` are the files, each with the table of those of its ioctls that every architecture has.
//! What is left goes to the architecture's table of the same name in [`x86`].

pub(crate) mod device;
mod extensions;
mod fork;
mod missing;
mod stats;
mod table;
mod vcpu;
mod vm;
mod x86;
