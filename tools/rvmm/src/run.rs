// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm run`: boots a Linux kernel.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rvmm_vm::disk::{self, Storage};
use rvmm_vm::sandbox::{self, Files};
use rvmm_vm::virtio::vsock;
use rvmm_vm::{
    gdb, restore_terminal, size, stats, Builder, Console, Exit, Vm, DEFAULT_DEVICE, ESCAPE_HELP,
};

use crate::api::{self, Machine};
use crate::devices;
use crate::forks::Running;
use crate::status::{report, say, Status, TABLE};

/// Options of `rvmm run`.
#[derive(clap::Args)]
#[command(after_help = TABLE)]
pub struct Args {
    /// Image of a disk, qcow2 or raw, whose kernel is booted; what is written is thrown away.
    #[arg(value_name = "IMAGE", required_unless_present = "kernel")]
    image: Option<PathBuf>,
    /// Keep what is written to IMAGE in this qcow2 overlay.
    #[arg(long, value_name = "FILE", requires = "image")]
    keep: Option<PathBuf>,
    /// Linux kernel: bzImage, or ELF vmlinux; on Arm64 an Image.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
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
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = count,
        allow_negative_numbers = true
    )]
    cpus: usize,
    /// Guest memory, such as 512M or 2G.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse, allow_negative_numbers = true)]
    memory: u64,
    /// Hypervisor's device node.
    #[arg(long, value_name = "NODE", default_value = DEFAULT_DEVICE)]
    device: PathBuf,
    /// PCI device of the host (`rvmm pci`); may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    pci: Vec<rvmm_vm::pci::Address>,
    /// Raw file or block device as a disk; may be repeated.
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// What cloud-init in the guest shall do, on a disk of its own.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    #[command(flatten)]
    devices: devices::Args,
    /// What a guest's reset does [of an IMAGE: restart].
    #[arg(
        long,
        value_enum,
        value_name = "exit|restart",
        hide_possible_values = true
    )]
    on_reset: Option<OnReset>,
    /// Wait for gdb at [HOST]:PORT or a socket's path.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "on_reset")]
    gdb: Option<gdb::Address>,
    /// Make a socket for commands (`rvmm ctl`).
    #[arg(long, value_name = "SOCKET", conflicts_with = "gdb")]
    api: Option<PathBuf>,
    /// Print the machine's statistics at its end.
    #[arg(long)]
    stats: bool,
    /// Let the launcher do whatever its user may.
    #[arg(long)]
    no_sandbox: bool,
}

fn count(text: &str) -> Result<usize, String> {
    text.parse()
        .map_err(|_| "give a number of CPUs, 1 or more".into())
}

/// What a guest's reset does.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnReset {
    // No documentation comments: each would become a paragraph of --help.
    Exit,
    Restart,
}

impl Args {
    /// A file that is none that can be read again: a FIFO, say; if it matters.
    fn read_once(&self) -> Option<&Path> {
        let mut files = self.kernel.iter().chain(&self.initrd);
        let once = |path: &&PathBuf| path.metadata().is_ok_and(|about| !about.is_file());
        if self.on_reset() != OnReset::Restart {
            return None;
        }
        files.find(once).map(PathBuf::as_path)
    }

    fn on_reset(&self) -> OnReset {
        self.on_reset.unwrap_or(match self.image {
            Some(_) if self.gdb.is_none() => OnReset::Restart,
            _ => OnReset::Exit,
        })
    }
}

/// Runs the command.
pub fn main(args: Args) -> Status {
    if let Some(path) = args.read_once() {
        say!(
            "rvmm: {} can be read only once, but --on-reset restart needs it at every reset",
            path.display()
        );
        say!("      copy it to a file first");
        return Status::Other;
    }
    let opened = Disks::open(&args).and_then(|disks| Ok((disks, args.devices.start()?)));
    let (disks, helpers) = match opened {
        Ok(opened) => opened,
        Err(error) => return report(&error),
    };
    // Devices of the host are reached by more than is known here.
    if !args.no_sandbox && args.pci.is_empty() {
        let kernel = args.kernel.iter().chain(&args.initrd).cloned();
        let mut files = Files {
            read: kernel.collect(),
            make: args.devices.directories(),
            ..Files::default()
        };
        if args.api.is_some() {
            // Machines that go on from this one have copies of its disks.
            files.read.extend(args.image.clone());
            files.make.push(std::env::temp_dir());
        }
        let socket = match &args.gdb {
            Some(gdb::Address::Unix(path)) => Some(path.as_path()),
            _ => args.api.as_deref(),
        };
        limit(files, &args.device, socket);
    }
    let (running, _socket) = match prepare(args.api.as_deref()) {
        Ok(prepared) => prepared,
        Err(status) => return status,
    };
    loop {
        let exit = match boot(&args, &disks, &helpers, &running) {
            Ok(exit) => exit,
            Err(error) => return report(&error),
        };
        match &exit {
            Exit::Reset if args.on_reset() == OnReset::Restart => {
                say!("rvmm: {exit}: starting again");
                continue;
            }
            // Of an image only if that was asked for: it would panic again and again.
            Exit::Panic if args.on_reset == Some(OnReset::Restart) => {
                say!("rvmm: {exit}: starting again");
                continue;
            }
            _ => {
                let status = ended(&exit);
                running.wait_for_clones();
                return status;
            }
        }
    }
}

/// The directory that a file is in.
pub fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent.as_os_str().is_empty() => ".".into(),
        parent => parent.unwrap_or(file).into(),
    }
}

/// Limits the launcher to what a machine needs: these files, the hypervisor's device and those behind the guest's, and
/// the directory of its socket. That there are no limits is said, and no reason to end.
pub fn limit(mut files: Files, device: &Path, socket: Option<&Path>) {
    files.read.push("/dev/urandom".into());
    let host = ["/dev/net/tun", vsock::NODE, "/dev/ptmx", "/dev/pts"].map(Path::new);
    let devices = host.into_iter().chain([device]);
    files.write.extend(devices.map(Path::to_path_buf));
    files.make.extend(socket.map(directory));
    if let Err(error) = sandbox::enable(&files) {
        say!("rvmm: without a sandbox: {error}");
    }
}

/// Writes the numbers of the system calls that each kind of thread makes, for a test to compare.
pub fn calls() -> Status {
    use std::io::Write;
    for kind in sandbox::Kind::ALL {
        for call in kind.listed() {
            let _ = writeln!(io::stdout(), "{kind:?} {call}");
        }
    }
    Status::Done
}

/// Says how a machine has ended.
pub fn ended(exit: &Exit) -> Status {
    say!("rvmm: {}", said(exit));
    Status::from(exit)
}

/// How a machine has ended, in words.
pub fn said(exit: &Exit) -> String {
    match exit {
        Exit::Reset => "guest reset: exiting".into(),
        Exit::PowerOff => "guest powered off".into(),
        other => other.to_string(),
    }
}

/// Makes signals and a socket reach the machine that will run, as long as the socket is kept.
///
/// # Errors
///
/// The status to leave with; why has been said.
pub fn prepare(api: Option<&Path>) -> Result<(Running, Option<api::Socket>), Status> {
    restore_terminal_on_panic();
    let running = Running::default();
    if let Err(error) = block_signals().and_then(|()| stop_on_signal(running.clone())) {
        say!("rvmm: signals: {error}");
        return Err(Status::Other);
    }
    let Some(path) = api else {
        return Ok((running, None));
    };
    if let Err(error) = running.start_maker() {
        say!("rvmm: threads: {error}");
        return Err(Status::Other);
    }
    match api::serve(path, running.clone()) {
        Ok(socket) => Ok((running, Some(socket))),
        Err(error) => {
            say!("rvmm: {}: {error}", path.display());
            Err(Status::Other)
        }
    }
}

/// The disks, which outlive a reset.
struct Disks {
    image: Option<Disk>,
    others: Vec<Disk>,
}

type Disk = Arc<Mutex<dyn Storage>>;

impl Disks {
    fn open(args: &Args) -> rvmm_vm::Result<Self> {
        let image = |path: &PathBuf| -> rvmm_vm::Result<Disk> {
            let directory = std::env::temp_dir();
            let made = disk::overlay(path, args.keep.as_deref(), &directory);
            // The sentence may be about either of them.
            let of = match &args.keep {
                Some(keep) => format!("{}, kept in {}", path.display(), keep.display()),
                None => path.display().to_string(),
            };
            Ok(Arc::new(Mutex::new(made.map_err(cannot(Path::new(&of)))?)))
        };
        let other = |path: &PathBuf| -> rvmm_vm::Result<Disk> {
            let opened = disk::RawFile::open(path, false).map_err(cannot(path))?;
            Ok(Arc::new(Mutex::new(opened)))
        };
        let seed = |path: &PathBuf| -> rvmm_vm::Result<Disk> {
            let made = std::fs::File::open(path).and_then(disk::seed);
            let made = made.map_err(cannot(path))?;
            Ok(Arc::new(Mutex::new(made)))
        };
        let others = args.disk.iter().map(other);
        let others = others.chain(args.user_data.iter().map(seed));
        Ok(Self {
            image: args.image.as_ref().map(image).transpose()?,
            others: others.collect::<Result<_, _>>()?,
        })
    }
}

fn cannot<T: ToString>(path: &Path) -> impl FnOnce(T) -> rvmm_vm::Error + '_ {
    move |cause| rvmm_vm::Error::Disk {
        path: path.into(),
        cause: cause.to_string(),
    }
}

fn boot(
    args: &Args,
    disks: &Disks,
    helpers: &devices::Helpers,
    running: &Running,
) -> rvmm_vm::Result<Exit> {
    let mut builder = Vm::builder()
        .device(&args.device)
        .memory(args.memory)
        .cpus(args.cpus);
    // Files of the image's, which are read while the machine is built.
    let mut files = Vec::new();
    let mut file = |bytes: &[u8]| -> rvmm_vm::Result<PathBuf> {
        let made = rvmm_vm::sys::memory_file(bytes);
        let (file, path) = made.map_err(|source| rvmm_vm::Error::Os {
            what: "file in memory",
            source,
        })?;
        files.push(file);
        Ok(path)
    };
    if let (Some(disk), Some(path)) = (&disks.image, &args.image) {
        builder = builder.disk(disk.clone());
        if args.kernel.is_none() {
            let found = disk::find_kernel(disk).map_err(cannot(path))?;
            tracing::info!(
                kernel = found.name,
                cmdline = found.cmdline,
                "found in the image"
            );
            builder = builder
                .kernel(file(&found.kernel)?)
                .usual_cmdline(found.cmdline);
            if let Some(initrd) = found.initrd {
                builder = builder.initrd(file(&initrd)?);
            }
        }
    }
    if let Some(path) = &args.kernel {
        builder = builder.kernel(path);
    }
    if let Some(path) = &args.initrd {
        builder = builder.initrd(path);
    }
    for address in &args.pci {
        builder = builder.pci(*address);
    }
    for disk in &disks.others {
        builder = builder.disk(disk.clone());
    }
    for device in args.devices.make(helpers)? {
        builder = builder.virtio(device);
    }
    if let Some(text) = &args.cmdline {
        builder = builder.cmdline(text);
    }
    if let Some(text) = &args.append {
        builder = builder.append(text);
    }
    let console = console()?;
    if let Some(address) = &args.gdb {
        let (listener, shown) = listen(address).map_err(|source| rvmm_vm::Error::Os {
            what: "address for gdb",
            source,
        })?;
        say!("rvmm: waiting for gdb: target remote {shown}\r");
        builder = builder.gdb(listener);
    }
    let machine = Start {
        api: args.api.is_some(),
        stats: args.stats,
        about: about(&args.device, args.cpus, args.memory),
    };
    machine.run(builder.console(console), running)
}

/// What `status` says of a machine.
pub fn about(device: &Path, cpus: usize, memory: u64) -> serde_json::Value {
    serde_json::json!({
        "pid": std::process::id(),
        "device": device.to_string_lossy(),
        "cpus": cpus,
        "memory": memory,
    })
}

/// How a machine is started, whatever it is.
pub struct Start {
    /// It can be told what to do.
    pub api: bool,
    /// Its statistics are printed at its end.
    pub stats: bool,
    /// What `status` says of it.
    pub about: serde_json::Value,
}

impl Start {
    /// Runs a machine to its end, in the reach of signals and commands.
    ///
    /// # Errors
    ///
    /// Those of [`rvmm_vm::Builder::build`] and [`Vm::run`].
    pub fn run(self, builder: Builder, running: &Running) -> rvmm_vm::Result<Exit> {
        let stats = self.stats;
        let (vm, machine) = self.build(builder)?;
        running.machines().first = Some(machine.clone());
        let exit = vm.run();
        // What is left needs nobody's stop: a signal ends it.
        running.machines().first = None;
        let exit = exit?;
        if stats {
            print_stats(&machine.stats);
        }
        Ok(exit)
    }

    /// Makes a machine, and what others reach it by.
    ///
    /// # Errors
    ///
    /// Those of [`rvmm_vm::Builder::build`].
    pub fn build(self, mut builder: Builder) -> rvmm_vm::Result<(Vm, Arc<Machine>)> {
        if self.api {
            builder = builder.pausable();
        }
        let vm = builder.build()?;
        let machine = Arc::new(Machine {
            stop: vm.stop_handle(),
            button: vm.power_button(),
            pause: vm.pause(),
            balloon: vm.balloon(),
            stats: if self.stats || self.api {
                vm.stats_files()
            } else {
                Ok(Vec::new())
            },
            about: self.about,
        });
        Ok((vm, machine))
    }
}

/// The launcher's own console.
///
/// # Errors
///
/// Those of the system.
pub fn console() -> rvmm_vm::Result<Console> {
    let console = Console::stdio().map_err(|source| rvmm_vm::Error::Os {
        what: "console",
        source,
    })?;
    if console.is_terminal() {
        say!("rvmm: {ESCAPE_HELP}\r");
    }
    Ok(console)
}

fn listen(address: &gdb::Address) -> io::Result<(gdb::Listener, gdb::Address)> {
    let listener = gdb::Listener::bind(address)?;
    let shown = listener.address()?;
    Ok((listener, shown))
}

fn print_stats(files: &io::Result<Vec<(String, std::fs::File)>>) {
    match files {
        Ok(files) if files.is_empty() => say!("rvmm: the hypervisor keeps no statistics"),
        Ok(files) => {
            for (name, file) in files {
                match stats::read(file) {
                    Ok(stats) => say!("rvmm: {name}: {}", stats::table(&stats)),
                    Err(error) => say!("rvmm: statistics of {name}: {error}"),
                }
            }
        }
        Err(error) => say!("rvmm: statistics: {error}"),
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

/// The signal that presses the machine's power button.
const BUTTON: libc::c_int = libc::SIGUSR1;

/// Keeps these signals from every thread, for [`stop_on_signal`] to fetch.
fn block_signals() -> io::Result<()> {
    for signal in ENDING.into_iter().chain([BUTTON]) {
        vmm_sys_util::signal::block_signal(signal)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
    }
    Ok(())
}

/// How long a machine may take to stop before the launcher leaves without it, in seconds.
const PATIENCE: libc::time_t = 20;

/// Stops the machine at the first ending signal; leaves at the second, or if there is none, or when it does not stop.
fn stop_on_signal(running: Running) -> io::Result<()> {
    let set = |signals: &[libc::c_int]| {
        vmm_sys_util::signal::create_sigset(signals)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    };
    let (ending, all) = (set(&ENDING)?, set(&[&ENDING[..], &[BUTTON]].concat())?);
    let wait = move || loop {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right type.
        if unsafe { libc::sigwait(&all, &mut signal) } != 0 {
            return;
        }
        if signal == BUTTON {
            match &running.machines().first {
                Some(machine) => match &machine.button {
                    Some(button) => button.press(),
                    None => say!("rvmm: {}", api::NO_BUTTON),
                },
                None => say!("rvmm: there is no machine yet"),
            }
            continue;
        }
        if running.stop() {
            let patience = libc::timespec {
                tv_sec: PATIENCE,
                tv_nsec: 0,
            };
            // SAFETY: as above; what kind of signal came is not asked for.
            unsafe { libc::sigtimedwait(&ending, std::ptr::null_mut(), &patience) };
        }
        restore_terminal();
        std::process::exit(Status::Other as i32);
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(wait)
        .map(drop)
}
