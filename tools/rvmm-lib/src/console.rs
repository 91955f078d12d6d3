// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where the guest's serial port leads: this process's terminal, or any writer.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Escape character of a terminal console: Ctrl-a.
const ESCAPE: u8 = 0x01;
/// After the escape: end the machine.
const QUIT: u8 = b'x';

/// How to leave a guest, for the user to read.
pub const ESCAPE_HELP: &str = "Ctrl-a x ends the machine, Ctrl-a Ctrl-a sends Ctrl-a";

/// Where the guest's serial port leads.
pub struct Console {
    pub(crate) input: Option<File>,
    pub(crate) escape: bool,
    pub(crate) output: Box<dyn Write + Send>,
    /// Set when the machine ends, for the output not to wait any longer.
    pub(crate) ended: Arc<AtomicBool>,
    /// Set while the machine shall stand still, for the output to wait without holding up a vCPU.
    pub(crate) held: Arc<AtomicBool>,
    terminal: Option<Terminal>,
}

impl Console {
    /// Standard input and output. A terminal is put in raw mode, with an escape to quit
    /// ([`ESCAPE_HELP`]), until the console is dropped. When input from a pipe or a file has ended,
    /// and was not empty, the guest gets what ends input at a terminal (Ctrl-d) whenever it falls silent.
    /// Output waits for who reads it, but not beyond the machine's end; when nobody can, it is lost.
    ///
    /// # Errors
    ///
    /// If the descriptors cannot be duplicated or the terminal refuses.
    pub fn stdio() -> io::Result<Self> {
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let terminal = if io::stdin().is_terminal() {
            Some(Terminal::raw()?)
        } else {
            None
        };
        let (ended, held) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let output = Output {
            file: output,
            ended: ended.clone(),
            held: held.clone(),
            left: Vec::new(),
        };
        Ok(Self {
            input: Some(input),
            escape: terminal.is_some(),
            output: Box::new(output),
            ended,
            held,
            terminal,
        })
    }

    /// Standard output, line by line with `prefix` before each, and no input.
    ///
    /// # Errors
    ///
    /// If the descriptor cannot be duplicated.
    pub fn lines(prefix: &str) -> io::Result<Self> {
        let (ended, held) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let output = Output {
            file: File::from(io::stdout().as_fd().try_clone_to_owned()?),
            ended: ended.clone(),
            held: held.clone(),
            left: Vec::new(),
        };
        let lines = Lines {
            line: prefix.into(),
            prefix: prefix.len(),
            output,
        };
        let made = Self::output(lines);
        Ok(Self {
            ended,
            held,
            ..made
        })
    }

    /// Output to `writer`, no input.
    pub fn output(writer: impl Write + Send + 'static) -> Self {
        Self {
            input: None,
            escape: false,
            output: Box::new(writer),
            ended: Arc::default(),
            held: Arc::default(),
            terminal: None,
        }
    }

    /// Whether this is a terminal in raw mode.
    pub fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Lets `watcher` see every write of the guest before it goes out.
    pub fn watch(mut self, watcher: impl FnMut(&[u8]) + Send + 'static) -> Self {
        self.output = Box::new(Watched {
            watcher,
            output: self.output,
        });
        self
    }

    /// Takes the terminal out, which has to outlive the rest.
    pub(crate) fn take_terminal(&mut self) -> Option<Terminal> {
        self.terminal.take()
    }
}

/// Output that may have to wait for its reader. Signals come to the thread when the machine has ended, or shall stand
/// still: then what is left to be written waits for the next time.
struct Output {
    file: File,
    ended: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
    /// What has been taken and not written.
    left: Vec<u8>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        self.left.extend_from_slice(bytes);
        self.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.left.is_empty() {
            if self.ended.load(Ordering::Acquire) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            match self.file.write(&self.left) {
                Ok(written) => drop(self.left.drain(..written)),
                Err(_) if self.held.load(Ordering::Acquire) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(),
                Err(error) => {
                    // Nobody will ever read it.
                    self.left.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl Output {
    /// Waits until there is room in a file whose owner does not want writes to wait.
    fn wait(&self) {
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: one structure is given, for the length of the call. A signal ends the wait, and any error.
        unsafe { libc::poll(&mut poll, 1, 100) };
    }
}

/// The longest line that is kept until it has ended.
const MOST_LINE: usize = 4096;

/// Output whose lines go out as wholes, each with the same before it.
struct Lines<W> {
    line: Vec<u8>,
    /// The length of what is before each.
    prefix: usize,
    output: W,
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() >= MOST_LINE {
                if *byte != b'\n' {
                    self.line.push(b'\n');
                }
                let written = self.output.write_all(&self.line);
                self.line.truncate(self.prefix);
                written?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

struct Watched<F> {
    watcher: F,
    output: Box<dyn Write + Send>,
}

impl<F: FnMut(&[u8])> Write for Watched<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        (self.watcher)(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// The terminal's settings from before raw mode, for [`restore_terminal`].
static SAVED: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Raw mode of the terminal on standard input; ends with the value.
pub(crate) struct Terminal(());

impl Terminal {
    fn raw() -> io::Result<Self> {
        let fd = io::stdin().as_raw_fd();
        let mut saved = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: `tcgetattr` fills the structure that it is given, on success entirely.
        let saved = unsafe {
            if libc::tcgetattr(fd, saved.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            saved.assume_init()
        };
        let mut raw = saved;
        // SAFETY: both calls only read or change the structure given, which is a valid one.
        let done = unsafe {
            libc::cfmakeraw(&mut raw);
            libc::tcsetattr(fd, libc::TCSANOW, &raw)
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        Ok(Self(()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// Puts the terminal back as it was before raw mode, if it is in raw mode. For exits that skip
/// destructors: a panic hook, a signal.
pub fn restore_terminal() {
    if let Some(saved) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // SAFETY: `saved` is what `tcgetattr` returned for this descriptor.
        unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSANOW, &saved) };
    }
}

/// The same where nothing may be waited for.
pub(crate) fn restore_from_handler() {
    if let Some(saved) = SAVED.try_lock().ok().and_then(|mut saved| saved.take()) {
        // SAFETY: as above.
        unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSANOW, &saved) };
    }
}

/// Finds the escape in typed input.
#[derive(Default)]
pub(crate) struct Escape {
    armed: bool,
}

impl Escape {
    /// What of `typed` goes to the guest, and whether the user wants to quit.
    pub(crate) fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut through = Vec::with_capacity(typed.len());
        for &byte in typed {
            match (self.armed, byte) {
                (false, ESCAPE) => self.armed = true,
                (true, QUIT) => return (through, true),
                (true, ESCAPE) => {
                    self.armed = false;
                    through.push(ESCAPE);
                }
                (true, other) => {
                    self.armed = false;
                    through.extend([ESCAPE, other]);
                }
                (false, other) => through.push(other),
            }
        }
        (through, false)
    }
}

/// Whether input ends where it comes from, a pipe or a file, so that its end tells something.
pub(crate) fn is_finite(input: &File) -> bool {
    let kind = input.metadata().map(|about| about.file_type());
    kind.is_ok_and(|kind| kind.is_fifo() || kind.is_file() || kind.is_socket())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn output_that_nobody_reads_ends_with_the_machine() {
        let (reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let ended = Arc::<AtomicBool>::default();
        let mut output = Output {
            file: File::from(std::os::fd::OwnedFd::from(writer)),
            ended: ended.clone(),
            held: Arc::default(),
            left: Vec::new(),
        };
        let writing = std::thread::spawn(move || loop {
            if let Err(error) = output.write(&[b'x'; 4096]) {
                return error.kind();
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!writing.is_finished());
        ended.store(true, Ordering::Release);
        assert_eq!(writing.join().unwrap(), io::ErrorKind::BrokenPipe);
        drop(reader);
    }

    #[test]
    fn output_that_nobody_reads_lets_a_machine_stand_still() {
        use std::io::Read;
        let (mut reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let held = Arc::<AtomicBool>::default();
        let mut output = Output {
            file: File::from(std::os::fd::OwnedFd::from(writer)),
            ended: Arc::default(),
            held: held.clone(),
            left: Vec::new(),
        };
        let writing = std::thread::spawn(move || {
            let mut count = 0;
            while !output.held.load(Ordering::Acquire) {
                output.write_all(&[b'x'; 4096]).unwrap();
                count += 4096;
            }
            (output, count)
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!writing.is_finished());
        held.store(true, Ordering::Release);
        let (mut output, count) = writing.join().unwrap();
        held.store(false, Ordering::Release);
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes.len()
        });
        output.flush().unwrap();
        drop(output);
        assert_eq!(reading.join().unwrap(), count, "nothing is lost");
    }

    #[test]
    fn ends_of_input() {
        assert!(!is_finite(&File::open("/dev/null").unwrap()));
        assert!(is_finite(&File::open("/proc/self/exe").unwrap()));
        let (reader, _writer) = UnixStream::pair().unwrap();
        assert!(is_finite(&File::from(std::os::fd::OwnedFd::from(reader))));
    }

    #[test]
    fn escape_quits_even_across_reads() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ls\r\x01"), (b"ls\r".to_vec(), false));
        assert_eq!(escape.filter(b"x"), (vec![], true));
    }

    #[test]
    fn escape_can_be_sent() {
        assert_eq!(
            Escape::default().filter(b"a\x01\x01x"),
            (b"a\x01x".to_vec(), false)
        );
        assert_eq!(
            Escape::default().filter(b"\x01c"),
            (b"\x01c".to_vec(), false)
        );
    }
}
