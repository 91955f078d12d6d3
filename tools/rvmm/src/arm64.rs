// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Commands that are of x86 alone so far: on Arm64 each says so.

use std::ffi::OsString;

use crate::status::{say, Status};

/// Words of such a command, which nobody reads.
#[derive(clap::Args)]
pub struct Words {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    words: Vec<OsString>,
}

/// Modules with what `main` calls of those for x86: what is said in place of it, and what does it.
macro_rules! absent {
    ($($name:ident: $what:literal, $remedy:literal;)*) => {$(
        pub mod $name {
            pub use super::Words as Args;

            pub fn main(_: &Args) -> crate::status::Status {
                super::refuse($what, $remedy)
            }
        }
    )*};
}

absent! {
    bench: "does not measure guests", "`tools/bench --bed arm` does, in an emulated machine";
    check: "does not check machines", "load rvmm.ko: `sudo dmesg | tail` says why if it refuses";
    compare: "compares no measurements", "copy the files to a machine of x86";
    pci: "hands out no devices of the host", "use virtio devices of another program's, such as QEMU's";
    report: "writes no report", "send the output of `dmesg` and of the selftests";
    restore: "restores no machines", "boot with `rvmm run`";
}

/// `rvmm trace` and `rvmm explain`.
pub mod trace {
    pub use super::Words as Args;
    pub use super::Words as ExplainArgs;
    use crate::status::Status;

    const REMEDY: &str = "`rvmm stat` counts exits";

    pub fn main(_: &Args) -> Status {
        super::refuse("records no exits", REMEDY)
    }

    pub fn explain(_: &ExplainArgs) -> Status {
        super::refuse("explains no exits", REMEDY)
    }
}

fn refuse(what: &str, remedy: &str) -> Status {
    say!("rvmm: on Arm64 it {what} yet");
    say!("      {remedy}");
    Status::Refused
}
