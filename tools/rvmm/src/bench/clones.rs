// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Rows of machines that go on from a running one: by a fork, which on KVM is a file without a name, and from a file.

use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context;
use rvmm_vm::snapshot::Snapshot;
use rvmm_vm::{Console, StopHandle, Vm};

use super::report::Ticks;
use super::rows::{ticks, Bench};

/// Bytes of memory of each machine; 8 MiB of it are written to.
const MEMORY: u64 = 128 << 20;
/// Machines of the row of many.
const MANY: u32 = 100;
/// Machines of other rows.
const FEW: u32 = 10;

/// mov edi, 16 MiB; mov ecx, 2048; 1: mov [rdi], rdi; add rdi, 4096; loop 1b; mov dx, 0x3f8; mov al, 'x';
/// 2: out dx, al; mov ecx, 1 << 20; 3: dec ecx; jnz 3b; jmp 2b
const CODE: &[u8] = &[
    0xbf, 0x00, 0x00, 0x00, 0x01, 0xb9, 0x00, 0x08, 0x00, 0x00, 0x48, 0x89, 0x3f, 0x48, 0x81, 0xc7,
    0x00, 0x10, 0x00, 0x00, 0xe2, 0xf4, 0x66, 0xba, 0xf8, 0x03, 0xb0, 0x78, 0xee, 0xb9, 0x00, 0x00,
    0x10, 0x00, 0xff, 0xc9, 0x75, 0xfc, 0xeb, 0xf4,
];

/// Output that tells when it comes first, and then keeps the machine waiting if that is wanted.
struct First {
    told: Option<Sender<u64>>,
    waits: Option<Arc<Mutex<()>>>,
}

impl Write for First {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(told) = self.told.take() {
            let _ = told.send(ticks());
        }
        if let Some(waits) = &self.waits {
            drop(waits.lock().unwrap_or_else(PoisonError::into_inner));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A machine that runs.
struct Running {
    stop: StopHandle,
    thread: JoinHandle<()>,
    told: Receiver<u64>,
}

impl Running {
    fn start(vm: Vm, told: Receiver<u64>) -> Self {
        let stop = vm.stop_handle();
        let thread = std::thread::spawn(move || drop(vm.run()));
        Self { stop, thread, told }
    }

    /// When it wrote first.
    fn first(&self) -> anyhow::Result<u64> {
        self.told.recv().context("a machine has written nothing")
    }

    fn end(self) {
        self.stop.stop();
        let _ = self.thread.join();
    }
}

fn console(waits: Option<Arc<Mutex<()>>>) -> (Console, Receiver<u64>) {
    let (tell, told) = channel();
    let first = First {
        told: Some(tell),
        waits,
    };
    (Console::output(first), told)
}

/// Bytes of memory that the host could still give.
fn available() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib = kib.and_then(|kib| kib.parse::<u64>().ok());
    Ok(kib.context("no MemAvailable")? << 10)
}

impl Bench<'_> {
    fn go_on(&self, from: Snapshot, waits: Option<Arc<Mutex<()>>>) -> anyhow::Result<Running> {
        let (console, told) = console(waits);
        let builder = Vm::builder().device(&self.args.device).saved(from);
        Ok(Running::start(builder.console(console).build()?, told))
    }

    /// What [`NAMES`] says.
    fn clones(&self) -> anyhow::Result<[Ticks; 6]> {
        let (console, told) = console(None);
        let builder = Vm::builder().device(&self.args.device).memory(MEMORY);
        let vm = builder.code(CODE).pausable().console(console).build()?;
        let pause = vm.pause().context("a machine that cannot be paused")?;
        let parent = Running::start(vm, told);
        parent.first()?;
        let directory = std::env::temp_dir();
        let file = directory.join(format!("rvmm-bench-{}", std::process::id()));

        let (mut paused, mut first) = (Vec::new(), Vec::new());
        let (mut saved, mut restored) = (Vec::new(), Vec::new());
        let words = anyhow::Error::msg::<String>;
        for number in 0..FEW {
            let start = ticks();
            let fork = pause.fork(&directory).map_err(words)?;
            paused.push(ticks() - start);
            pause.pause()?;
            let start = ticks();
            let machine = self.go_on(fork.machine(number)?, None)?;
            first.push(machine.first()? - start);
            machine.end();
            drop(fork);
            pause.resume().map_err(words)?;
        }
        for _ in 0..FEW {
            let start = ticks();
            pause.save(&file).map_err(words)?;
            saved.push(ticks() - start);
            pause.pause()?;
            let start = ticks();
            let machine = self.go_on(Snapshot::open(Path::new(&file))?, None)?;
            restored.push(machine.first()? - start);
            machine.end();
            pause.resume().map_err(words)?;
        }
        std::fs::remove_file(&file)?;

        pause.pause()?;
        let waits = Arc::new(Mutex::new(()));
        let held = waits.lock().unwrap_or_else(PoisonError::into_inner);
        let before = available()?;
        let start = ticks();
        let fork = pause.fork(&directory).map_err(words)?;
        let mut machines = Vec::new();
        for number in 0..MANY {
            machines.push(self.go_on(fork.machine(number)?, Some(waits.clone()))?);
        }
        let last = machines.iter().map(Running::first);
        let last = last.collect::<anyhow::Result<Vec<_>>>()?;
        let all = last.into_iter().max().unwrap_or(start) - start;
        let each = before.saturating_sub(available()?) / u64::from(MANY);
        drop(held);
        machines.into_iter().for_each(Running::end);
        parent.end();

        let samples = [paused, first, vec![all], vec![each], saved, restored];
        let of = |samples: &Vec<u64>| Ticks::of(samples, 0).context("no samples");
        let rows = samples.iter().map(of).collect::<anyhow::Result<Vec<_>>>()?;
        rows.try_into().ok().context("six rows")
    }
}

/// Rows: a machine is forked while it runs, and goes on; another goes on from the fork, to its first instruction; so do
/// a hundred; bytes that each of them takes; it is written to a file; another is made of the file.
pub const NAMES: [&str; 6] = [
    "fork",
    "fork_first",
    "fork_100",
    "fork_bytes",
    "save",
    "restore_first",
];

/// Measures them.
pub fn rows(bench: &mut Bench) {
    if bench.irqchip() {
        bench.rows(NAMES, Bench::clones);
    }
}
