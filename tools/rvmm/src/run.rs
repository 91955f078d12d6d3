// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm run`: boots a Linux kernel.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rvmm_vm::{
    restore_terminal, size, stats, Console, Exit, StopHandle, Vm, DEFAULT_DEVICE, ESCAPE_HELP,
};

use crate::status::{report, Status, TABLE};

/// Options of `rvmm run`.
#[derive(clap::Args)]
#[command(after_help = TABLE, after_long_help = TABLE)]
pub struct Args {
    /// Linux kernel: bzImage, or ELF vmlinux.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial ramdisk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line instead of the default one.
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Words added to the command line.
    #[arg(long, value_name = "TEXT")]
    append: Option<String>,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: usize,
    /// Guest memory, such as 512M or 2G.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    memory: u64,
    /// Hypervisor's device node.
    #[arg(long, value_name = "NODE", default_value = DEFAULT_DEVICE)]
    device: PathBuf,
    /// PCI device of the host for the guest, such as 0000:00:04.0 (see `rvmm pci`); may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    pci: Vec<rvmm_vm::pci::Address>,
    /// What a guest's reset does.
    #[arg(long, value_enum, default_value_t = OnReset::Exit)]
    on_reset: OnReset,
    /// Print the machine's statistics at its end.
    #[arg(long)]
    stats: bool,
}

/// What a guest's reset does.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnReset {
    /// Ends the launcher with status 0.
    Exit,
    /// Boots the machine again.
    Restart,
}

/// Runs the command.
pub fn main(args: Args) -> Status {
    restore_terminal_on_panic();
    let running = Running::default();
    if let Err(error) = block_signals().and_then(|()| stop_on_signal(running.clone())) {
        eprintln!("rvmm: signals: {error}");
        return Status::Other;
    }
    loop {
        let exit = match boot(&args, &running) {
            Ok(exit) => exit,
            Err(error) => return report(&error),
        };
        match &exit {
            Exit::Reset if args.on_reset == OnReset::Restart => {
                eprintln!("rvmm: guest reset: starting again");
                continue;
            }
            Exit::Reset => eprintln!("rvmm: guest reset: exiting"),
            Exit::PowerOff => eprintln!("rvmm: guest powered off"),
            other => eprintln!("rvmm: {other}"),
        }
        return Status::from(&exit);
    }
}

/// The machine that a signal has to end, once there is one.
type Running = Arc<Mutex<Option<StopHandle>>>;

fn boot(args: &Args, running: &Running) -> rvmm_vm::Result<Exit> {
    let mut builder = Vm::builder()
        .device(&args.device)
        .memory(args.memory)
        .cpus(args.cpus)
        .kernel(&args.kernel);
    if let Some(path) = &args.initrd {
        builder = builder.initrd(path);
    }
    for address in &args.pci {
        builder = builder.pci(*address);
    }
    if let Some(text) = &args.cmdline {
        builder = builder.cmdline(text);
    }
    if let Some(text) = &args.append {
        builder = builder.append(text);
    }
    let console = Console::stdio().map_err(|source| rvmm_vm::Error::Os {
        what: "console",
        source,
    })?;
    if console.is_terminal() {
        eprint!("rvmm: {ESCAPE_HELP}\r\n");
    }
    let vm = builder.console(console).build()?;
    *running.lock().unwrap_or_else(PoisonError::into_inner) = Some(vm.stop_handle());
    let files = if args.stats {
        Some(vm.stats_files())
    } else {
        None
    };
    let exit = vm.run()?;
    if let Some(files) = files {
        print_stats(files);
    }
    Ok(exit)
}

fn print_stats(files: io::Result<Vec<(String, std::fs::File)>>) {
    match files {
        Ok(files) if files.is_empty() => eprintln!("rvmm: the hypervisor keeps no statistics"),
        Ok(files) => {
            for (name, file) in files {
                match stats::read(&file) {
                    Ok(stats) => eprintln!("rvmm: {name}: {}", stats::table(&stats)),
                    Err(error) => eprintln!("rvmm: statistics of {name}: {error}"),
                }
            }
        }
        Err(error) => eprintln!("rvmm: statistics: {error}"),
    }
}

fn restore_terminal_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore_terminal();
        report(info);
    }));
}

/// Signals that end the machine.
const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Keeps the ending signals from every thread, for [`stop_on_signal`] to fetch.
fn block_signals() -> io::Result<()> {
    for signal in ENDING {
        vmm_sys_util::signal::block_signal(signal)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
    }
    Ok(())
}

/// Stops the machine at the first ending signal; leaves at the second, or if there is none.
fn stop_on_signal(running: Running) -> io::Result<()> {
    let set = vmm_sys_util::signal::create_sigset(&ENDING)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    let wait = move || loop {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right type.
        if unsafe { libc::sigwait(&set, &mut signal) } != 0 {
            return;
        }
        match running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            Some(stop) => stop.stop(),
            None => {
                restore_terminal();
                std::process::exit(Status::Other as i32);
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(wait)
        .map(drop)
}
