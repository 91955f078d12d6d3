// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm trace`: each exit of running machines, as it happens, and `rvmm explain`, which says it in sentences.

pub mod attach;
mod filter;
mod format;
pub mod ring;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::explain;
use crate::processes::{copy, descriptors, same_file};
use crate::status::{say, Status};
use attach::{Event, Traced};
use filter::Filter;
use format::{Csv, Json, Perfetto, Text};
use ring::{Record, Ring};

/// Options of `rvmm trace`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Print a JSON object for each record.
    #[arg(long, group = "form")]
    json: bool,
    /// Print comma-separated values.
    #[arg(long, group = "form")]
    csv: bool,
    /// Write a trace in Chrome's JSON format, which ui.perfetto.dev opens.
    #[arg(long, value_name = "FILE", group = "form")]
    perfetto: Option<PathBuf>,
}

/// Options of `rvmm explain`.
#[derive(clap::Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    common: Common,
    /// Explain every exit; otherwise one of each kind, with how many there were and what they cost.
    #[arg(long)]
    each: bool,
    /// Print what is known of all kinds of exits, and record nothing.
    #[arg(long)]
    table: bool,
}

/// What both have.
#[derive(clap::Args)]
struct Common {
    /// Process that runs the machines.
    #[arg(short, long, value_name = "PID", conflicts_with = "command")]
    pid: Option<u32>,
    /// Only exits of these classes (see `rvmm explain --table`); `entry` are entries.
    #[arg(long, value_name = "CLASS,...", value_delimiter = ',')]
    class: Vec<String>,
    /// Only these vCPUs.
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    vcpu: Vec<u32>,
    /// Only this address, or range FIRST-LAST: of memory, port or MSR, as the class has it.
    #[arg(long, value_name = "RANGE", value_parser = filter::range)]
    address: Option<(u64, u64)>,
    /// End after so many records that passed.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Records that a vCPU's ring holds: a power of two from 64 to 262144.
    #[arg(long, value_name = "N", default_value_t = 16384)]
    ring: u32,
    /// Write there, not to standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Program to run, all of whose machines are recorded from their beginning.
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Where a record comes from.
pub struct Origin {
    pub pid: u32,
    pub vcpu: u32,
    pub tsc_khz: u64,
}

/// What is done with records.
pub trait Sink {
    /// One record that passed. `since`: microseconds since the first one.
    ///
    /// # Errors
    ///
    /// Those of writing.
    fn record(&mut self, from: &Origin, record: &Record, since: f64) -> io::Result<()>;

    /// There are no more.
    ///
    /// # Errors
    ///
    /// Those of writing.
    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Set by a signal that ends the recording.
static ENDED: AtomicBool = AtomicBool::new(false);

extern "C" fn end(_signal: libc::c_int) {
    ENDED.store(true, Ordering::Relaxed);
}

/// Runs `rvmm trace`.
pub fn main(args: &Args) -> Status {
    let out = match create(args.perfetto.as_ref().or(args.common.output.as_ref())) {
        Ok(out) => out,
        Err(status) => return status,
    };
    let sink: Box<dyn Sink> = if args.perfetto.is_some() {
        Box::new(Perfetto::new(out))
    } else if args.json {
        Box::new(Json(out))
    } else if args.csv {
        Box::new(Csv::new(out))
    } else {
        Box::new(Text(out))
    };
    follow(&args.common, sink)
}

/// Runs `rvmm explain`.
pub fn explain(args: &ExplainArgs) -> Status {
    if args.table {
        print!("{}", explain::table());
        return Status::Done;
    }
    let out = match create(args.common.output.as_ref()) {
        Ok(out) => out,
        Err(status) => return status,
    };
    follow(
        &args.common,
        Box::new(explain::Sentences::new(out, args.each)),
    )
}

/// The file, or standard output.
fn create(path: Option<&PathBuf>) -> Result<Box<dyn Write>, Status> {
    let Some(path) = path else {
        return Ok(Box::new(BufWriter::new(io::stdout())));
    };
    match File::create(path) {
        Ok(file) => Ok(Box::new(BufWriter::new(file))),
        Err(error) => {
            say!("rvmm: {}: {error}", path.display());
            Err(Status::Other)
        }
    }
}

/// Records until the end, into `sink`.
fn follow(common: &Common, mut sink: Box<dyn Sink>) -> Status {
    let filter = match Filter::new(&common.class, &common.vcpu, common.address) {
        Ok(filter) => filter,
        Err(unknown) => {
            say!("rvmm: there is no class {unknown:?}: see `rvmm explain --table`");
            return Status::Other;
        }
    };
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler = end as extern "C" fn(libc::c_int);
        // SAFETY: the handler stores one word.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    let mut recording = match Recording::begin(common) {
        Ok(recording) => recording,
        Err(status) => return status,
    };
    let deadline = common
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut left = common.count.unwrap_or(u64::MAX);
    let mut first = None;
    let status = loop {
        let more = recording.look();
        let batch = match recording.read() {
            Ok(batch) => batch,
            Err(status) => break status,
        };
        let written = batch
            .iter()
            .filter(|(source, record)| filter.passes(&recording.origins[*source], record))
            .try_for_each(|(source, record)| {
                if left == 0 {
                    return Ok(());
                }
                left -= 1;
                let origin = &recording.origins[*source];
                let first = *first.get_or_insert(record.tsc);
                let ticks = record.tsc as i64 - first as i64;
                let since = ticks as f64 * 1000.0 / origin.tsc_khz.max(1) as f64;
                sink.record(origin, record, since)
            });
        if let Err(error) = written {
            break failed(&error);
        }
        match more {
            Next::More if left == 0 || ENDED.load(Ordering::Relaxed) => break Status::Done,
            Next::More if deadline.is_some_and(|end| Instant::now() >= end) => break Status::Done,
            Next::More => std::thread::sleep(Duration::from_millis(2)),
            Next::End(0) => break Status::Done,
            Next::End(status) => {
                say!("rvmm: the command ended with status {status}");
                break Status::Other;
            }
        }
    };
    let ended = sink.end();
    let lost: u64 = recording.rings.iter().map(|ring| ring.lost).sum();
    if lost != 0 {
        say!("rvmm: {lost} records were overwritten before they were read: --ring makes room");
    }
    if recording.rings.is_empty() {
        say!("rvmm: no vCPU was there to be recorded");
        return Status::Other;
    }
    match ended {
        Ok(()) => status,
        Err(error) => failed(&error),
    }
}

fn failed(error: &io::Error) -> Status {
    if error.kind() != io::ErrorKind::BrokenPipe {
        say!("rvmm: {error}");
    }
    Status::Other
}

/// Whether a recording goes on.
enum Next {
    More,
    /// What was recorded has ended, with this status.
    End(u8),
}

/// What is recorded.
struct Recording {
    /// The command, or the process, that is looked at.
    traced: Option<Traced>,
    pid: Option<u32>,
    size: u32,
    rings: Vec<Ring>,
    origins: Vec<Origin>,
    failed: Option<Status>,
}

impl Recording {
    fn begin(common: &Common) -> Result<Self, Status> {
        let mut recording = Self {
            traced: None,
            pid: common.pid,
            size: common.ring,
            rings: Vec::new(),
            origins: Vec::new(),
            failed: None,
        };
        match common.pid {
            Some(pid) => recording.attach(pid)?,
            None if common.command.is_empty() => {
                say!("rvmm: which machines? a process (--pid) or a command (-- CMD)");
                return Err(Status::Other);
            }
            None => {
                let traced = Traced::spawn(&common.command).map_err(|error| {
                    say!("rvmm: {}: {error}", common.command[0].to_string_lossy());
                    Status::Other
                })?;
                recording.traced = Some(traced);
            }
        }
        Ok(recording)
    }

    /// Records all vCPUs that a process has.
    fn attach(&mut self, pid: u32) -> Result<(), Status> {
        let found = descriptors(pid).map_err(|error| refused(pid, &error))?;
        let mut vcpus: Vec<i32> = Vec::new();
        for (fd, link) in &found {
            let is_vcpu = link.to_str().is_some_and(is_vcpu);
            if is_vcpu && !vcpus.iter().any(|other| same_file(pid, *fd, *other)) {
                vcpus.push(*fd);
            }
        }
        for fd in vcpus {
            let file = copy(pid, fd).map_err(|error| refused(pid, &error))?;
            self.add(pid, &file)?;
        }
        Ok(())
    }

    fn add(&mut self, pid: u32, vcpu: &File) -> Result<(), Status> {
        let ring = Ring::of_vcpu(vcpu, self.size).map_err(|error| refused(pid, &error))?;
        self.origins.push(Origin {
            pid,
            vcpu: ring.vcpu,
            tsc_khz: ring.tsc_khz,
        });
        self.rings.push(ring);
        Ok(())
    }

    /// Takes new vCPUs in. What comes after the end is in the rings already.
    fn look(&mut self) -> Next {
        while let Some(event) = self.traced.as_mut().and_then(Traced::next) {
            match event {
                Event::Ended(status) => return Next::End(status),
                Event::Vcpu(pid, file) => {
                    let added = match file {
                        Ok(file) => self.add(pid, &file),
                        Err(error) => Err(refused(pid, &error)),
                    };
                    self.failed = self.failed.or(added.err());
                }
            }
        }
        match self.pid {
            // SAFETY: signal 0 is none.
            Some(pid) if unsafe { libc::kill(pid as i32, 0) } != 0 => {
                match io::Error::last_os_error().raw_os_error() {
                    Some(libc::ESRCH) => Next::End(0),
                    _ => Next::More,
                }
            }
            _ => Next::More,
        }
    }

    /// What is new in all rings, in the order of time, each with the number of its ring.
    fn read(&mut self) -> Result<Vec<(usize, Record)>, Status> {
        if let Some(status) = self.failed {
            return Err(status);
        }
        let mut batch = Vec::new();
        let mut records = Vec::new();
        for (source, ring) in self.rings.iter_mut().enumerate() {
            ring.read(&mut records);
            batch.extend(records.drain(..).map(|record| (source, record)));
        }
        batch.sort_by_key(|(_, record)| record.tsc);
        Ok(batch)
    }
}

/// Says why the vCPUs of a process cannot be recorded.
fn refused(pid: u32, error: &io::Error) -> Status {
    say!("rvmm: process {pid}: {error}");
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            say!("      recording takes the right to trace the process: sudo");
            Status::Refused
        }
        Some(libc::EBUSY) => {
            say!("      somebody records it already");
            Status::Refused
        }
        // KVM's answer to another process, and to a number that it does not know.
        Some(libc::EIO | libc::ENOTTY) => {
            say!("      its machine is not rvmm's, or that rvmm is too old to record");
            Status::Refused
        }
        Some(libc::EINVAL) => {
            say!("      --ring is a power of two from 64 to 262144");
            Status::Other
        }
        _ => Status::Other,
    }
}

/// Whether a link of a descriptor is to a vCPU.
fn is_vcpu(link: &str) -> bool {
    link.strip_prefix("anon_inode:")
        .is_some_and(|name| name.trim_start_matches('[').starts_with("kvm-vcpu:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_vcpus() {
        assert!(is_vcpu("anon_inode:kvm-vcpu:3"));
        assert!(is_vcpu("anon_inode:[kvm-vcpu:0]"));
        assert!(!is_vcpu("anon_inode:kvm-vcpu-stats:3"));
        assert!(!is_vcpu("anon_inode:kvm-vm"));
    }
}
