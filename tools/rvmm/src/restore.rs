// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm restore`: a machine goes on from the file that it was saved to (`rvmm ctl SOCKET snapshot FILE`).

use std::path::PathBuf;

use rvmm_vm::sandbox::Files;
use rvmm_vm::snapshot::Snapshot;
use rvmm_vm::{Exit, Vm, DEFAULT_DEVICE};

use crate::forks::Running;
use crate::run::{about, console, ended, limit, prepare, Start};
use crate::status::{report, say, Status, TABLE};
use crate::{clones, devices};

/// Options of `rvmm restore`.
#[derive(clap::Args)]
#[command(after_help = TABLE)]
pub struct Args {
    /// File of the machine, which stays as it is.
    file: PathBuf,
    /// Hypervisor's device node.
    #[arg(long, value_name = "NODE", default_value = DEFAULT_DEVICE)]
    device: PathBuf,
    /// Tap interface for a network card instead of the one that it had; may be repeated.
    #[arg(long, value_name = "tap=NAME", value_parser = devices::tap)]
    net: Vec<String>,
    /// CID instead of the one that it had, or followed it.
    #[arg(long, value_name = "CID", value_parser = devices::cid)]
    vsock: Option<u32>,
    /// Make a socket for commands (`rvmm ctl`).
    #[arg(long, value_name = "SOCKET")]
    api: Option<PathBuf>,
    /// Print the machine's statistics at its end.
    #[arg(long)]
    stats: bool,
    /// Let the launcher do whatever its user may.
    #[arg(long)]
    no_sandbox: bool,
    /// As many machines, the number of each put behind its SOCKET and the names of its taps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    clones: Option<u32>,
    /// The number of one of them.
    #[arg(long, hide = true)]
    clone: Option<u32>,
}

/// Runs the command.
pub fn main(args: &Args) -> Status {
    if let (Some(count), None) = (args.clones, args.clone) {
        return clones::run(count);
    }
    let opened = Snapshot::open(&args.file).and_then(|mut snapshot| {
        let set = snapshot.set_taps(&args.net);
        set.map_err(std::io::Error::other)?;
        if let Some(clone) = args.clone {
            snapshot.make_clone(clone)?;
        }
        if let Some(cid) = args.vsock {
            let cid = cid.saturating_add(args.clone.unwrap_or(0));
            let set = snapshot.set_cid(cid);
            set.map_err(std::io::Error::other)?;
        }
        Ok(snapshot)
    });
    let mut snapshot = match opened {
        Ok(snapshot) => snapshot,
        Err(error) => {
            say!("rvmm: {}: {error}", args.file.display());
            return Status::Other;
        }
    };
    if let Err(error) = snapshot.start_networks() {
        return report(&error);
    }
    if !args.no_sandbox {
        let named = |written| {
            let files = snapshot.files().filter(move |file| file.1 == written);
            files.map(|file| file.0.to_path_buf())
        };
        let files = Files {
            read: named(false).collect(),
            write: named(true).collect(),
            // Copies of disks are made there.
            make: (snapshot.directories().map(Into::into))
                .chain([std::env::temp_dir()])
                .collect(),
        };
        limit(files, &args.device, args.api.as_deref());
    }
    let api = args.api.as_deref().map(|path| match args.clone {
        Some(clone) => clones::numbered(path, clone),
        None => path.into(),
    });
    let (running, _socket) = match prepare(api.as_deref()) {
        Ok(prepared) => prepared,
        Err(status) => return status,
    };
    match run(args, snapshot, &running) {
        Ok(exit) => {
            let status = ended(&exit);
            running.wait_for_clones();
            status
        }
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
