// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What machines on Arm64 do not have yet, as far as others name it. Nothing of it can be made.

use std::convert::Infallible;
use std::io;

/// A power button.
#[derive(Clone)]
pub struct PowerButton(pub(crate) Infallible);

impl PowerButton {
    /// Presses it.
    pub fn press(&self) {
        match self.0 {}
    }
}

/// A machine as it was when it was saved.
pub struct Snapshot(pub(crate) Infallible);

impl Snapshot {
    /// Its CPUs.
    pub fn cpus(&self) -> usize {
        match self.0 {}
    }

    /// Bytes of its memory.
    pub fn memory_size(&self) -> u64 {
        match self.0 {}
    }
}

/// A moment of a machine's, from which others go on.
pub struct Fork(pub(crate) Infallible);

impl Fork {
    /// One of them.
    ///
    /// # Errors
    ///
    /// None: there is no such moment.
    pub fn machine(&self, _: u32) -> io::Result<Snapshot> {
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
    use std::path::PathBuf;
    use std::{fmt, io, str::FromStr};

    /// Where one would connect.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Address {
        /// Anywhere.
        Other(String),
        /// At a socket of this name, which nothing is taken for.
        Unix(PathBuf),
    }

    impl FromStr for Address {
        type Err = Infallible;

        fn from_str(text: &str) -> Result<Self, Infallible> {
            Ok(Self::Other(text.into()))
        }
    }

    impl fmt::Display for Address {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self {
                Self::Other(text) => f.write_str(text),
                Self::Unix(path) => path.display().fmt(f),
            }
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
