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

/// Fails with a [`Violation`] at the first rule that does not hold. A rule is what section `manual` demands, whether
/// that is so, and the value that it is about.
macro_rules! rules {
    ($manual:expr; $($rule:expr => $ok:expr, $value:expr;)+) => {
        $(if !$ok {
            return Err($crate::x86::cpu::violation::Violation {
                rule: $rule,
                manual: $manual,
                value: $value.into(),
            });
        })+
    };
}
pub(crate) use rules;
