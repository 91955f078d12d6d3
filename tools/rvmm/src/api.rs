// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm run --api`: what a running machine can be asked through a socket, one JSON object a line
//! (docs/api.schema.json).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rvmm_vm::size;
use rvmm_vm::stats::{self, Stats};
use rvmm_vm::virtio::balloon;
use rvmm_vm::{sandbox, sys, Pause, PowerButton, StopHandle};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use crate::forks::Running;
use crate::status::say;

/// The longest line that is read.
pub const MOST_LINE: u64 = 4096;
/// The most machines that are made at once.
pub const MOST_CLONES: u32 = 1000;
/// Connections at one time.
const MOST_CONNECTIONS: usize = 16;
/// How long somebody may take to read an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a machine can be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Say what it is, and whether it runs.
    Status,
    /// Stop its CPUs.
    Pause,
    /// Let them go on.
    Resume,
    /// Save it to a file.
    Snapshot,
    /// Have others go on from where it is.
    Fork,
    /// Leave the guest so much memory.
    Balloon,
    /// Give its statistics.
    Stats,
    /// Press its power button.
    PowerButton,
    /// End it.
    Quit,
}

/// A line to the machine.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// The file that `snapshot` makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The bytes of memory that `balloon` leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// How many machines `fork` makes: one, if that is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Which of the machines that `fork` has made is meant, if not the first of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone: Option<u32>,
}

/// A line from the machine.
#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Answer {
    /// It is done; an object.
    Result(Value),
    /// It is not, and why.
    Error(String),
}

/// A machine that runs, as signals and the socket have it.
pub struct Machine {
    /// Ends it.
    pub stop: StopHandle,
    /// Its power button, if it has ACPI.
    pub button: Option<PowerButton>,
    /// Pauses it, if that was asked for.
    pub pause: Option<Pause>,
    /// Its balloon, if it has one.
    pub balloon: Option<balloon::Handle>,
    /// Its statistics, if they were asked for.
    pub stats: io::Result<Vec<(String, File)>>,
    /// What `status` says of it, an object.
    pub about: Value,
}

/// What to say of a machine without ACPI.
#[cfg(target_arch = "x86_64")]
pub const NO_BUTTON: &str =
    "the machine has no power button: it needs a disk or another virtio device";
/// The same on Arm64.
#[cfg(target_arch = "aarch64")]
pub const NO_BUTTON: &str = "on Arm64 the machine has no power button yet";

/// The socket's name, as long as it is of use.
pub struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens at `path`, for whoever may connect there: the user alone.
///
/// # Errors
///
/// Those of the system.
pub fn serve(path: &Path, running: Running) -> io::Result<Socket> {
    let listener = sys::bind_unix(path)?;
    let socket = Socket(path.into());
    std::thread::Builder::new()
        .name("api".into())
        .spawn(move || {
            sandbox::enter(sandbox::Kind::Commands);
            accept(&listener, &running);
        })?;
    Ok(socket)
}

fn accept(listener: &UnixListener, running: &Running) {
    let connections = Arc::new(());
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "socket of commands");
                // Descriptors may be there again then.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let (running, one) = (running.clone(), connections.clone());
        if Arc::strong_count(&connections) > MOST_CONNECTIONS + 1 {
            let _ = reply(
                &stream,
                &Answer::Error("there are too many connections".into()),
            );
            continue;
        }
        let work = move || {
            let _one = one;
            if let Err(error) = converse(&stream, &running, quit) {
                tracing::debug!(%error, "socket of commands");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("api".into()).spawn(work) {
            tracing::warn!(%error, "socket of commands");
        }
    }
}

/// Ends the launcher as a signal does, whatever it is at.
fn quit() {
    // SAFETY: a call with numbers. Every thread keeps the signal for the one that waits for it.
    unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
}

/// Answers line by line; `quit` is called where that was asked for.
fn converse(stream: &UnixStream, running: &Running, quit: fn()) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut reader).take(MOST_LINE).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        if line.last() != Some(&b'\n') && line.len() as u64 == MOST_LINE {
            let cause = format!("a line has {MOST_LINE} bytes at most");
            return reply(stream, &Answer::Error(cause));
        }
        let request = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => request,
            Err(error) => {
                reply(stream, &Answer::Error(error.to_string()))?;
                continue;
            }
        };
        if request.is_only(Command::Quit) {
            // After that nobody may be left to answer.
            let done = reply(stream, &Answer::Result(json!({})));
            quit();
            return done;
        }
        let answer = match answer(&request, running) {
            Ok(value) => Answer::Result(value),
            Err(cause) => Answer::Error(cause),
        };
        reply(stream, &answer)?;
    }
}

impl Request {
    /// Whether it is this command, with nothing else said.
    fn is_only(&self, command: Command) -> bool {
        let none = self.file.is_none() && self.size.is_none() && self.count.is_none();
        self.command == command && none && self.clone.is_none()
    }
}

/// What one of the machines answers.
fn answer(request: &Request, running: &Running) -> Result<Value, String> {
    let (machine, clones) = {
        let machines = running.machines();
        let machine = match &request.clone {
            Some(number) => machines.clones.get(number),
            None => machines.first.as_ref(),
        };
        let clones: Vec<u32> = machines.clones.keys().copied().collect();
        (machine.cloned(), clones)
    };
    let machine = machine.ok_or(match request.clone {
        Some(_) => "there is no machine of that number: it has ended, or never was",
        None => "there is no machine: it has not started yet, or starts again, or has ended",
    })?;
    let mut value = machine.answer(request, running)?;
    if (request.command, request.clone) == (Command::Status, None) && !clones.is_empty() {
        value["clones"] = clones.into();
    }
    Ok(value)
}

fn reply(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

impl Machine {
    fn answer(&self, request: &Request, running: &Running) -> Result<Value, String> {
        let file = match (request.command, &request.file) {
            (Command::Snapshot, Some(file)) => file.as_path(),
            (Command::Snapshot, None) => return Err("which file shall be made?".into()),
            (_, Some(_)) => return Err("a file is for snapshot alone".into()),
            (_, None) => Path::new(""),
        };
        if request.command != Command::Balloon && request.size.is_some() {
            return Err("a size is for balloon alone".into());
        }
        if request.command != Command::Fork && request.count.is_some() {
            return Err("a number of machines is for fork alone".into());
        }
        let pause = || self.pause.as_ref().ok_or("the machine cannot be paused");
        match request.command {
            Command::Status => {
                let paused = self.pause.as_ref().is_some_and(Pause::is_paused);
                let mut about = self.about.clone();
                if let Some(balloon) = &self.balloon {
                    about["balloon"] = balloon.actual().into();
                }
                about["state"] = if paused { "paused" } else { "running" }.into();
                Ok(about)
            }
            Command::Pause => done(pause()?.pause()),
            Command::Resume => done(pause()?.resume()),
            Command::Fork => {
                let count = request.count.unwrap_or(1);
                if !(1..=MOST_CLONES).contains(&count) {
                    return Err(format!("1 to {MOST_CLONES} machines can be made at once"));
                }
                let fork = pause()?.fork(&std::env::temp_dir())?;
                let device = self.about["device"].as_str().unwrap_or_default();
                let made = running.make(fork, count, Path::new(device))?;
                Ok(json!({ "clones": made }))
            }
            Command::Snapshot => pause()?.save(file).map(|()| json!({})),
            Command::Balloon => self.leave(request.size.ok_or("how much memory shall be left?")?),
            Command::Stats => {
                let files = self.stats.as_ref().map_err(ToString::to_string)?;
                let one = |(name, file): &(String, File)| match stats::read(file) {
                    Ok(stats) => Ok((name.clone(), values(&stats))),
                    Err(error) => Err(format!("statistics of {name}: {error}")),
                };
                let all = files.iter().map(one).collect::<Result<_, _>>()?;
                Ok(Value::Object(all))
            }
            Command::PowerButton => match &self.button {
                Some(button) => {
                    button.press();
                    Ok(json!({}))
                }
                None => Err(NO_BUTTON.into()),
            },
            // Of the first one: it came before a machine was looked for.
            Command::Quit => {
                self.stop.stop();
                Ok(json!({}))
            }
        }
    }
}

impl Machine {
    /// Has the guest do without all memory but so many bytes.
    fn leave(&self, size: u64) -> Result<Value, String> {
        const LEAST: u64 = 16 << 20;
        let balloon = self.balloon.as_ref();
        let balloon = balloon.ok_or("the machine has no balloon: it needs --balloon")?;
        let all = self.about["memory"].as_u64().unwrap_or(0);
        match all.checked_sub(size) {
            Some(given) if size >= LEAST => {
                balloon.want(given);
                Ok(json!({}))
            }
            _ => Err(format!("it can be left 16M to {}", size::show(all))),
        }
    }
}

fn done(result: Result<(), impl ToString>) -> Result<Value, String> {
    result
        .map(|()| json!({}))
        .map_err(|error| error.to_string())
}

/// Statistics by name: a number each, or a list of numbers for a histogram.
fn values(stats: &Stats) -> Value {
    let value = |values: &[u64]| match values {
        [one] => json!(one),
        all => json!(all),
    };
    stats
        .stats
        .iter()
        .map(|stat| (stat.name.clone(), value(&stat.values)))
        .collect()
}

/// Asks the machine behind a socket.
///
/// # Errors
///
/// Those of the system; a sentence where the other side speaks something else.
pub fn ask(path: &Path, request: &Request) -> io::Result<Answer> {
    let stream = UnixStream::connect(path)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    // Who does not listen can have said why.
    match (&stream).write_all(&line) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::other("it has ended without an answer"));
    }
    Ok(serde_json::from_str(&line)?)
}

/// Options of `rvmm ctl`.
#[derive(clap::Args)]
pub struct CtlArgs {
    /// Socket of the machine's, as `rvmm run --api` made it.
    socket: PathBuf,
    /// What the machine shall do.
    command: Command,
    /// File that `snapshot` makes, memory that `balloon` leaves, or how many machines `fork` makes.
    #[arg(value_name = "FILE|SIZE|N", required_if_eq_any([("command", "snapshot"), ("command", "balloon")]))]
    argument: Option<std::ffi::OsString>,
    /// The machine that `fork` has given this number.
    #[arg(long, value_name = "N")]
    clone: Option<u32>,
}

/// Runs `rvmm ctl`.
pub fn ctl(args: &CtlArgs) -> crate::status::Status {
    use crate::status::Status;
    let mut request = Request {
        command: args.command,
        file: None,
        size: None,
        count: None,
        clone: args.clone,
    };
    let given = match (&args.argument, args.command) {
        (Some(text), Command::Balloon) => size::parse(&text.to_string_lossy())
            .map(|size| request.size = Some(size))
            .map_err(io::Error::other),
        (Some(text), Command::Fork) => (text.to_string_lossy().parse())
            .map(|count| request.count = Some(count))
            .map_err(|_| io::Error::other("fork takes a number of machines")),
        // The machine has a directory of its own.
        (Some(file), _) => std::path::absolute(file).map(|file| request.file = Some(file)),
        (None, _) => Ok(()),
    };
    let answer = given.and_then(|()| ask(&args.socket, &request));
    match answer {
        Ok(Answer::Result(value)) => {
            if value != json!({}) {
                // Who has seen enough of it ends nothing.
                let _ = writeln!(io::stdout(), "{value:#}");
            }
            return Status::Done;
        }
        Ok(Answer::Error(cause)) => say!("rvmm: {cause}"),
        Err(error) => say!("rvmm: {}: {error}", args.socket.display()),
    }
    Status::Other
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn talk(sent: &[u8]) -> Vec<Answer> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || converse(&theirs, &Running::default(), || ()));
        (&ours).write_all(sent).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let lines = BufReader::new(&ours).lines();
        let answers = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        let answers = answers.collect();
        server.join().unwrap().unwrap();
        answers
    }

    fn errors(sent: &[u8]) -> Vec<String> {
        let error = |answer| match answer {
            Answer::Error(cause) => cause,
            Answer::Result(value) => panic!("{value}"),
        };
        talk(sent).into_iter().map(error).collect()
    }

    #[test]
    fn every_line_has_an_answer() {
        let sent = b"{\"command\":\"pause\"}\n{}\n\n{\"command\":\"status\",\"more\":1}\n\xff\n[\n\
                     {\"command\":\"fly\"}\n";
        let causes = errors(sent);
        let wanted = [
            "there is no machine",
            "missing field",
            "EOF",
            "unknown field",
            "expected value",
            "EOF",
            "`fly`",
        ];
        assert_eq!(causes.len(), wanted.len(), "{causes:?}");
        for (cause, wanted) in causes.iter().zip(wanted) {
            assert!(cause.contains(wanted), "{cause}: {wanted}");
        }
        assert_eq!(
            errors(b"{\"command\":\"stats\"}").len(),
            1,
            "a last line without its end"
        );
        assert!(talk(b"").is_empty());
        // Ends what comes after it as well.
        let quit = talk(b"{\"command\":\"quit\"}\n{\"command\":\"stats\"}\n");
        assert_eq!(quit, [Answer::Result(json!({}))]);
    }

    #[test]
    fn a_line_too_long_ends_the_conversation() {
        let mut sent = vec![b' '; 10 * MOST_LINE as usize];
        sent.push(b'\n');
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(&sent).unwrap();
        converse(&theirs, &Running::default(), || ()).unwrap();
        drop(theirs);
        let mut line = String::new();
        let _ = BufReader::new(&ours).read_line(&mut line);
        assert!(line.contains("bytes at most"), "{line}");
    }

    #[test]
    fn histograms_are_lists() {
        let stat = |name: &str, values: &[u64]| stats::Stat {
            name: name.into(),
            kind: stats::Kind::Cumulative,
            unit: stats::Unit::None,
            base: 10,
            exponent: 0,
            values: values.into(),
        };
        let stats = Stats {
            id: String::new(),
            stats: vec![stat("exits", &[7]), stat("times", &[1, 2])],
        };
        assert_eq!(values(&stats), json!({"exits": 7, "times": [1, 2]}));
    }

    #[test]
    fn the_schema_has_every_command() {
        let schema: Value =
            serde_json::from_str(include_str!("../../../docs/api.schema.json")).unwrap();
        let named = &schema["$defs"]["request"]["properties"]["command"]["enum"];
        let all: Vec<_> = Command::value_variants()
            .iter()
            .map(|command| json!(command))
            .collect();
        assert_eq!(named, &json!(all));
    }
}
