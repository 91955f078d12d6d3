// SPDX-License-Identifier: GPL-2.0
//! A virtual CPU.

pub(crate) mod abi;
pub(crate) mod debug;
pub(crate) mod emulate;
pub(crate) mod state;
