// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a launcher can still do once it has been told to do no more than it has to: system calls by kind of thread
//! (seccomp; on x86 alone), files (Landlock), no new privileges.
//!
//! A thread has the limits of the one that has made it as well, so a kind is part of its maker's. A call beside the
//! list ends the process with a sentence on standard error: nothing that a machine needs is.

#[cfg(target_arch = "x86_64")]
mod calls;
/// System calls are not limited on other processors yet.
#[cfg(not(target_arch = "x86_64"))]
mod calls {
    use std::io;

    impl super::Kind {
        /// None.
        pub fn listed(self) -> Vec<libc::c_long> {
            Vec::new()
        }
    }

    pub(super) fn try_enter(_: super::Kind) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn install_handler() -> io::Result<()> {
        Ok(())
    }
}

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use landlock::{
    path_beneath_rules, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope, ABI,
};

use self::calls::{install_handler, try_enter};

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The one that makes machines and all other threads.
    Main,
    /// One that takes commands to the machine.
    Commands,
    /// A CPU's, which makes devices' threads when a driver starts them.
    Cpu,
    /// A device's.
    Device,
}

impl Kind {
    /// All kinds, each after those whose calls it has as well.
    pub const ALL: [Self; 4] = [Self::Device, Self::Cpu, Self::Commands, Self::Main];

    fn opens_files(self) -> bool {
        matches!(self, Self::Main | Self::Commands)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Main => "the main thread",
            Self::Commands => "a thread for commands",
            Self::Cpu => "a CPU's thread",
            Self::Device => "a device's thread",
        }
    }
}

static ON: AtomicBool = AtomicBool::new(false);

/// Whether [`enable`] has been called.
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Acquire)
}

/// Limits the calling thread to what its kind does, if [`enable`] has been called; for good.
pub fn enter(kind: Kind) {
    if is_on() {
        if let Err(error) = try_enter(kind) {
            tracing::warn!(%error, ?kind, "seccomp");
        }
    }
}

/// Files that a process has to do with.
#[derive(Default)]
pub struct Files {
    /// Files, devices and directories that are read, with what is in them.
    pub read: Vec<PathBuf>,
    /// Files and devices that are written to.
    pub write: Vec<PathBuf>,
    /// Directories in which files come and go.
    pub make: Vec<PathBuf>,
}

/// Has this process, which has no other threads yet, reach these files alone, and no new privileges; its threads are
/// limited to what their kind does. Where the kernel has no Landlock, files stay as they are.
///
/// # Errors
///
/// Those of the system.
pub fn enable(files: &Files) -> io::Result<()> {
    install_handler()?;
    // Else the allocator looks for the number of CPUs, in files, when there are more threads.
    // SAFETY: a call with numbers, before there are other threads.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 8) };
    restrict(files).map_err(io::Error::other)?;
    ON.store(true, Ordering::Release);
    try_enter(Kind::Main).map_err(io::Error::other)
}

fn restrict(files: &Files) -> Result<(), landlock::RulesetError> {
    let abi = ABI::V6;
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let make =
        write | AccessFs::MakeReg | AccessFs::MakeSock | AccessFs::MakeSym | AccessFs::RemoveFile;
    // What is not there is not reached.
    let there = |paths: &[PathBuf]| -> Vec<PathBuf> {
        paths
            .iter()
            .filter(|path| Path::exists(path))
            .cloned()
            .collect()
    };
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::ConnectTcp)?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules(there(&files.read), read))?
        .add_rules(path_beneath_rules(there(&files.write), write))?
        .add_rules(path_beneath_rules(there(&files.make), make))?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::info!("this kernel has no Landlock: files are limited by permissions alone");
    }
    Ok(())
}
