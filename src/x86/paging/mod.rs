// SPDX-License-Identifier: GPL-2.0
//! Page tables of x86: the guest's own, and the formats of the nested ones.

pub(crate) mod fetch;
pub(crate) mod fmt_ept;
pub(crate) mod fmt_npt;
pub(crate) mod gwalk;
pub(crate) mod nested;
