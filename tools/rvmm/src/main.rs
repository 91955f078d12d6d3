// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm`: runs virtual machines on rvmm or KVM, checks the machine, shows statistics, measures.

mod api;
#[cfg(target_arch = "aarch64")]
mod arm64;
#[cfg(target_arch = "x86_64")]
mod bench;
#[cfg(target_arch = "x86_64")]
mod check;
#[cfg(target_arch = "x86_64")]
mod clones;
#[cfg(target_arch = "x86_64")]
mod compare;
#[cfg(target_arch = "x86_64")]
mod costs;
mod devices;
mod exec;
#[cfg(target_arch = "x86_64")]
mod explain;
mod forks;
mod list;
mod manual;
#[cfg(target_arch = "x86_64")]
mod pci;
mod processes;
#[cfg(target_arch = "x86_64")]
mod refused;
#[cfg(target_arch = "x86_64")]
mod report;
#[cfg(target_arch = "x86_64")]
mod restore;
mod run;
mod stat;
mod status;
#[cfg(target_arch = "x86_64")]
mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[cfg(target_arch = "aarch64")]
use arm64::{bench, check, compare, pci, report, restore, trace};

/// Virtual machines on /dev/rvmm (or any device with KVM's ABI).
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more about what the launcher itself does (repeat for more).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
#[cfg_attr(target_arch = "aarch64", allow(clippy::large_enum_variant))]
enum Command {
    /// Boot a Linux kernel in a virtual machine.
    Run(run::Args),
    /// Let a machine go on that was saved (`ctl SOCKET snapshot FILE`).
    Restore(restore::Args),
    /// Say whether this machine can run rvmm, and what is missing.
    Check(check::Args),
    /// Write a file about this machine and how rvmm does on it, to send back.
    Report(report::Args),
    /// Show the host's PCI devices, and take them for guests or give them back.
    Pci(pci::Args),
    /// Run a program that sees /dev/rvmm as its /dev/kvm.
    Exec(exec::Args),
    /// Show which virtual machines run, whoever started them.
    List,
    /// Ask something of a running machine that has a socket for that (`run --api`).
    Ctl(api::CtlArgs),
    /// Show what running machines exited for, and how long that took.
    Stat(stat::Args),
    /// Record each exit of running machines, as it happens.
    Trace(trace::Args),
    /// Say in sentences what machines exited for, and why that took so long.
    Explain(trace::ExplainArgs),
    /// Measure what guests' operations cost.
    Bench(bench::Args),
    /// Set two runs of `bench` side by side, with what is chance and what is not.
    Compare(compare::Args),
    /// The numbers of the system calls that each kind of the launcher's threads makes.
    #[command(hide = true)]
    Calls,
    /// Write a shell's completions of these commands.
    Completions(manual::CompletionArgs),
    /// Write the man page of all commands, or of one.
    Man(manual::ManArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .init();
    if !matches!(
        cli.command,
        Command::Run(_) | Command::Restore(_) | Command::Ctl(_)
    ) {
        // A reader of the output that has seen enough (`| head`) ends the command, as it does others.
        // SAFETY: no thread or handler of this program's depends on the signal.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    if matches!(
        cli.command,
        Command::Run(_) | Command::Restore(_) | Command::Bench(_)
    ) {
        allow_files();
    }
    match cli.command {
        Command::Run(args) => run::main(args),
        Command::Restore(args) => restore::main(&args),
        Command::Pci(args) => pci::main(&args),
        Command::Exec(args) => return exec::main(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
        Command::List => list::main(),
        Command::Calls => run::calls(),
        Command::Ctl(args) => api::ctl(&args),
        Command::Stat(args) => stat::main(&args),
        Command::Trace(args) => trace::main(&args),
        Command::Explain(args) => trace::explain(&args),
        Command::Compare(args) => compare::main(&args),
        Command::Check(args) => check::main(&args),
        Command::Report(args) => report::main(&args),
        Command::Bench(args) => bench::main(&args),
    }
    .into()
}

/// Has this process have as many open files as it may: each machine that it makes takes a dozen.
fn allow_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get the structure, which lives. Where one fails, the limit is what it was.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
