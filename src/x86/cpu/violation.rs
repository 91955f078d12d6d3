// SPDX-License-Identifier: GPL-2.0
//! A broken rule of a processor manual, as the entry checks report it.
#![forbid(unsafe_code)]

/// A rule of the manual that the state to be entered breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// Section of the manual.
    pub manual: &'static str,
    /// The offending value.
    pub value: u64,
}

/// Fails with a [`Violation`] unless `ok`.
///
/// # Errors
///
/// The violation of `rule` by `value`.
#[inline]
pub const fn require(
    ok: bool,
    rule: &'static str,
    manual: &'static str,
    value: u64,
) -> Result<(), Violation> {
    if ok {
        Ok(())
    } else {
        Err(Violation {
            rule,
            manual,
            value,
        })
    }
}
