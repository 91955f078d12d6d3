// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Programs of the host's that serve a device: each has a socket to the launcher, and ends when that is closed.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::sandbox;
use crate::sys;

/// Whether a program can be started.
///
/// # Errors
///
/// A sentence: the sandbox is on, in which that, and a socket pair, would end the launcher.
pub(crate) fn may_start() -> io::Result<()> {
    if sandbox::is_on() {
        let cause = "no program can be started for it in the sandbox (--no-sandbox)";
        return Err(io::Error::new(io::ErrorKind::Unsupported, cause));
    }
    Ok(())
}

/// Starts the first of these programs that there is, which finds its end of the socket under the number of `--fd`.
///
/// # Errors
///
/// A sentence: where none is installed, it names Debian's package.
pub(crate) fn start(
    programs: &[&str],
    package: &str,
    arguments: &[String],
    end: &OwnedFd,
) -> io::Result<()> {
    for program in programs {
        let fd = end.as_raw_fd();
        let mut command = Command::new(program);
        command.args(arguments).arg(format!("--fd={fd}"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: one call with numbers, which allocates nothing; the descriptor is open until the program has started.
        unsafe { command.pre_exec(move || sys::keep_open(fd)) };
        match command.spawn() {
            // It is left to itself: nobody waits for it.
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{program}: {error}"))),
        }
    }
    let cause =
        format!("it takes the program {package}, which is not installed (apt install {package})");
    Err(io::Error::new(io::ErrorKind::NotFound, cause))
}
