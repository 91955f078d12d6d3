// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm restore`: a machine goes on from the file that it was saved to (`rvmm ctl SOCKET snapshot FILE`).

use std::path::PathBuf;

use rvmm_vm::snapshot::Snapshot;
use rvmm_vm::{Exit, Vm, DEFAULT_DEVICE};

use crate::api::Running;
use crate::run::{about, console, ended, prepare, Start};
use crate::status::{report, say, Status, TABLE};

/// Options of `rvmm restore`.
#[derive(clap::Args)]
#[command(after_help = TABLE)]
pub struct Args {
    /// File of the machine, which stays as it is.
    file: PathBuf,
    /// Hypervisor's device node.
    #[arg(long, value_name = "NODE", default_value = DEFAULT_DEVICE)]
    device: PathBuf,
    /// Make a socket for commands (`rvmm ctl`).
    #[arg(long, value_name = "SOCKET")]
    api: Option<PathBuf>,
    /// Print the machine's statistics at its end.
    #[arg(long)]
    stats: bool,
}

/// Runs the command.
pub fn main(args: &Args) -> Status {
    let snapshot = match Snapshot::open(&args.file) {
        Ok(snapshot) => snapshot,
        Err(error) => {
            say!("rvmm: {}: {error}", args.file.display());
            return Status::Other;
        }
    };
    let (running, _socket) = match prepare(args.api.as_deref()) {
        Ok(prepared) => prepared,
        Err(status) => return status,
    };
    match run(args, snapshot, &running) {
        Ok(exit) => ended(&exit),
        Err(error) => report(&error),
    }
}

fn run(args: &Args, snapshot: Snapshot, running: &Running) -> rvmm_vm::Result<Exit> {
    let start = Start {
        api: args.api.is_some(),
        stats: args.stats,
        about: about(&args.device, snapshot.cpus(), snapshot.memory_size()),
    };
    let builder = Vm::builder().device(&args.device).saved(snapshot);
    start.run(builder.console(console()?), running)
}
