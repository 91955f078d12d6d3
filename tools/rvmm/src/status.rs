// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The exit status of `rvmm`, one number per way to end.

use std::process::ExitCode;

/// A line on standard error, for those who can still read it: `eprintln` ends the program when nobody can.
macro_rules! say {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($what)*);
    }};
}
pub(crate) use say;

use rvmm_vm::{Error, Exit};

/// Exit statuses, as the help text lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The guest powered off or reset itself; or a command did what it should.
    Done = 0,
    /// Anything else: ended from outside, a file that is missing, a check that found something.
    Other = 1,
    /// The guest crashed: triple fault, internal error, a memory access that the host cannot serve.
    Crash = 3,
    /// The host refused: no device, no permission, no such ability.
    Refused = 4,
    /// The CPU refused the VM entry.
    EntryFailure = 5,
    /// The guest's kernel panicked, and reset the machine.
    Panic = 6,
}

/// For `--help`; usage errors are clap's 2.
pub const TABLE: &str = "\
Exit status (2: usage): 0  powered off, or reset  1  ended from outside (signal), or another error
  3  it crashed (triple fault, internal)    4  refused: device, permission, ability
  5  the CPU refused the VM entry           6  the guest's kernel panicked, and reset the machine";

impl Status {
    /// That of another `rvmm`, which has ended with this code if a signal has not ended it.
    pub fn from_code(code: Option<i32>) -> Self {
        let all = [
            Self::Done,
            Self::Crash,
            Self::Refused,
            Self::EntryFailure,
            Self::Panic,
        ];
        let its = all.into_iter().find(|status| Some(*status as i32) == code);
        its.unwrap_or(Self::Other)
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status as u8)
    }
}

impl From<&Exit> for Status {
    fn from(exit: &Exit) -> Self {
        match exit {
            Exit::PowerOff | Exit::Reset => Status::Done,
            Exit::Crash(_) => Status::Crash,
            Exit::Panic => Status::Panic,
            Exit::EntryFailure(_) => Status::EntryFailure,
            _ => Status::Other,
        }
    }
}

/// Prints an error with its cause and remedy, and gives its status.
pub fn report(error: &Error) -> Status {
    say!("rvmm: {error}");
    if let Some(remedy) = error.remedy() {
        say!("      {}", remedy.replace('\n', "\n      "));
    }
    if error.is_refusal() {
        Status::Refused
    } else {
        Status::Other
    }
}
