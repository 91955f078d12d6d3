// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What machines on Arm64 do not have yet, as far as others name it. Nothing of it can be made.

use std::convert::Infallible;

/// A power button.
#[derive(Clone)]
pub struct PowerButton(pub(crate) Infallible);

impl PowerButton {
    /// Presses it.
    pub fn press(&self) {
        match self.0 {}
    }
}

/// Devices of the host.
pub mod pci {
    pub use crate::address::Address;
}

/// Debuggers.
pub mod gdb {
    use std::convert::Infallible;
    use std::{fmt, io, str::FromStr};

    /// Where one would connect.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Address(String);

    impl FromStr for Address {
        type Err = Infallible;

        fn from_str(text: &str) -> Result<Self, Infallible> {
            Ok(Self(text.into()))
        }
    }

    impl fmt::Display for Address {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }

    /// A socket that waits for them.
    pub struct Listener(pub(crate) Infallible);

    impl Listener {
        /// Opens none.
        ///
        /// # Errors
        ///
        /// A sentence.
        pub fn bind(_: &Address) -> io::Result<Self> {
            let cause = "guests on Arm64 cannot be debugged yet: leave out --gdb";
            Err(io::Error::new(io::ErrorKind::Unsupported, cause))
        }

        /// Where to connect to.
        ///
        /// # Errors
        ///
        /// None: there is no such socket.
        pub fn address(&self) -> io::Result<Address> {
            match self.0 {}
        }
    }
}
