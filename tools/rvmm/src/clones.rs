// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm restore --clones`: several machines from one file, each a process of its own, whose output comes line by line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use crate::status::{say, Status};

/// The most bytes of a line that are kept until it has ended.
const MOST_LINE: u64 = 4096;

/// A name of a clone's own: the number is put behind it.
pub fn numbered(name: &Path, clone: u32) -> std::path::PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(clone.to_string());
    name.into()
}

/// Runs this command so many times, each with `--clone N` and without input, and gives the first status that is not 0.
pub fn run(count: u32) -> Status {
    let mut children = Vec::new();
    for clone in 0..count {
        match start(clone) {
            Ok(child) => children.push(child),
            Err(error) => {
                say!("rvmm: clone {clone}: {error}");
                for (child, _) in &mut children {
                    // It has no time to do anything yet that would have to be undone.
                    let _ = Child::kill(child);
                }
                break;
            }
        }
    }
    let (children, outputs): (Vec<_>, Vec<_>) = children.into_iter().unzip();
    let complete = children.len() == count as usize;
    let mut status = if complete {
        Status::Done
    } else {
        Status::Other
    };
    for (clone, mut child) in (0..).zip(children) {
        let ended = child.wait().ok().and_then(|ended| ended.code());
        let its = Status::from_code(ended);
        if its != Status::Done {
            say!("rvmm: clone {clone} ended with status {}", its as u8);
        }
        if status == Status::Done {
            status = its;
        }
    }
    for thread in outputs.into_iter().flatten() {
        let _ = thread.join();
    }
    status
}

/// The machine, and the threads that pass on its output.
type Started = (Child, Vec<JoinHandle<()>>);

fn start(clone: u32) -> io::Result<Started> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1));
    command.arg(format!("--clone={clone}"));
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let parent = std::process::id() as libc::pid_t;
    // SAFETY: two calls with numbers, which allocate nothing.
    unsafe {
        command.pre_exec(move || {
            // None stays behind, whatever ends this process.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            if libc::getppid() != parent {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(())
        })
    };
    let mut child = command.spawn()?;
    let output = child.stdout.take();
    let output = output.map(|output| pass_on(clone, output, io::stdout()));
    let errors = child.stderr.take();
    let errors = errors.map(|errors| pass_on(clone, errors, io::stderr()));
    Ok((child, output.into_iter().chain(errors).collect()))
}

/// Writes lines, each with the clone's number before it.
fn pass_on(
    clone: u32,
    from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
) -> JoinHandle<()> {
    let mut from = BufReader::new(from);
    std::thread::spawn(move || loop {
        let mut line = format!("{clone}: ").into_bytes();
        match (&mut from).take(MOST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        // Who does not want to see it does not stop the machine.
        let _ = to.write_all(&line);
    })
}
