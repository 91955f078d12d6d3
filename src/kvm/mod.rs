// SPDX-License-Identifier: GPL-2.0
//! The face: the files that user space opens, and their ioctls (api.rst 4).
//!
//! `device`, `vm` and `vcpu` are the files, each with the table of those of its ioctls that every architecture has.
//! What is left goes to the architecture's table of the same name: `arch` is `x86` or `arm64`, which has tables of its
//! own for VMs and vCPUs, without what it has not yet.

#[cfg(CONFIG_ARM64)]
mod arm64;
pub(crate) mod device;
#[cfg(CONFIG_X86_64)]
mod extensions;
#[cfg(CONFIG_X86_64)]
mod fork;
mod memory;
#[cfg(CONFIG_X86_64)]
mod missing;
#[cfg(CONFIG_X86_64)]
mod record;
mod signals;
mod stats;
#[cfg_attr(CONFIG_ARM64, allow(dead_code, unused_imports, unused_macros))]
mod table;
#[cfg(CONFIG_X86_64)]
mod vcpu;
#[cfg(CONFIG_X86_64)]
mod vm;
#[cfg(CONFIG_X86_64)]
mod x86;

#[cfg(CONFIG_ARM64)]
use arm64 as arch;
#[cfg(CONFIG_ARM64)]
use arm64::vm;
#[cfg(CONFIG_X86_64)]
use x86 as arch;
