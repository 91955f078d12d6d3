// SPDX-License-Identifier: GPL-2.0
//! Bits of registers by name, and sets of them.
#![forbid(unsafe_code)]

/// Makes a mask of each bit, given as its number. The bits of a group that has a name are also a set of this name,
/// together with the sets that stand behind it.
macro_rules! bits {
    ($t:ty;) => {};
    ($t:ty; { $($(#[$doc:meta])* $bit:ident = $n:literal;)* } $($rest:tt)*) => {
        $($(#[$doc])* pub const $bit: $t = 1 << $n;)*
        $crate::x86::cpu::masks::bits! { $t; $($rest)* }
    };
    ($t:ty; $(#[$set_doc:meta])* $set:ident $(| $more:ident)* {
        $($(#[$doc:meta])* $bit:ident = $n:literal;)*
    } $($rest:tt)*) => {
        $crate::x86::cpu::masks::bits! { $t; { $($(#[$doc])* $bit = $n;)* } }
        $(#[$set_doc])*
        pub const $set: $t = 0 $(| $more)* $(| $bit)*;
        $crate::x86::cpu::masks::bits! { $t; $($rest)* }
    };
}
pub(crate) use bits;
