// SPDX-License-Identifier: Apache-2.0 OR MIT
//! gdb's remote protocol, spoken over a socket: registers, memory, breakpoints of both kinds, watchpoints, single
//! steps, all vCPUs (<https://sourceware.org/gdb/current/onlinedocs/gdb.html/Remote-Protocol.html>).

mod target;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use gdbstub::common::Signal;
use gdbstub::conn::{Connection, ConnectionExt};
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use vm_memory::GuestMemoryMmap;

use crate::exit::Exit;
use crate::hold::Hold;
use crate::sys::bind_unix;
use crate::vcpu::Control;

use target::{tid, Debugged, Fatal};

/// How long a debugger may take to read what it is sent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a debugger connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host and a port; port 0 takes any.
    Tcp(String),
    /// A socket in the file system, which nobody may listen at yet.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    /// `HOST:PORT`, `:PORT` or `PORT` on this host alone, or a path with a slash.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        let port: u16 = port
            .parse()
            .map_err(|_| format!("{text} is neither [HOST]:PORT nor a path with a slash"))?;
        let host = if host.is_empty() { "127.0.0.1" } else { host };
        Ok(Self::Tcp(format!("{host}:{port}")))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A socket that waits for debuggers, one after the other. Whoever connects has the whole guest in hand.
pub struct Listener {
    socket: Socket,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Opens the socket.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)`.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let socket = match address {
            Address::Tcp(address) => Socket::Tcp(TcpListener::bind(address)?),
            Address::Unix(path) => Socket::Unix(bind_unix(path)?, path.clone()),
        };
        Ok(Self { socket })
    }

    /// Where to connect to.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match &self.socket {
            Socket::Tcp(listener) => Address::Tcp(listener.local_addr()?.to_string()),
            Socket::Unix(_, path) => Address::Unix(path.clone()),
        })
    }

    fn accept(&self, control: Arc<Control>) -> io::Result<Link> {
        let stream = match &self.socket {
            Socket::Tcp(listener) => {
                let stream = listener.accept()?.0;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Stream::Tcp(stream)
            }
            Socket::Unix(listener, _) => {
                let stream = listener.accept()?.0;
                stream.set_write_timeout(Some(PATIENCE))?;
                Stream::Unix(stream)
            }
        };
        Ok(Link { stream, control })
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_raw_fd(),
            Socket::Unix(listener, _) => listener.as_raw_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A debugger that has connected.
struct Link {
    stream: Stream,
    /// A read ends with the machine.
    control: Arc<Control>,
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_raw_fd(),
            Stream::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

impl Connection for Link {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.write_all(&[byte])
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => Write::write_all(stream, bytes),
            Stream::Unix(stream) => Write::write_all(stream, bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ConnectionExt for Link {
    fn read(&mut self) -> io::Result<u8> {
        let [ended, _] = readable([self.control.event().as_raw_fd(), self.as_raw_fd()])?;
        if ended {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let mut byte = [0];
        match &mut self.stream {
            Stream::Tcp(stream) => stream.read_exact(&mut byte)?,
            Stream::Unix(stream) => stream.read_exact(&mut byte)?,
        }
        Ok(byte[0])
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(None)
    }
}

/// Waits until one of the descriptors is readable; which are.
fn readable<const N: usize>(descriptors: [RawFd; N]) -> io::Result<[bool; N]> {
    let mut polled = descriptors.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    loop {
        // SAFETY: as many structures are given as the call is told, for its length.
        let done = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, -1) };
        if done >= 0 {
            return Ok(polled.map(|descriptor| descriptor.revents != 0));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// What happens while the guest runs.
enum Loop {}

impl BlockingEventLoop for Loop {
    type Target = Debugged;
    type Connection = Link;
    type StopReason = MultiThreadStopReason<u64>;

    fn wait_for_stop_reason(
        target: &mut Debugged,
        link: &mut Link,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<Fatal, io::Error>> {
        loop {
            let ended = target.hold().control().event().as_raw_fd();
            let hit = target.hold().event().as_raw_fd();
            let [ended, hit, data] = readable([ended, hit, link.as_raw_fd()])
                .map_err(WaitForStopReasonError::Connection)?;
            if ended {
                return Ok(Event::TargetStopped(MultiThreadStopReason::Exited(0)));
            }
            if hit {
                match target.look() {
                    Ok(Some(reason)) => return Ok(Event::TargetStopped(reason)),
                    Ok(None) => {}
                    Err(_) => {
                        return Ok(Event::TargetStopped(MultiThreadStopReason::Exited(0)));
                    }
                }
            } else if data {
                let byte = link.read().map_err(WaitForStopReasonError::Connection)?;
                return Ok(Event::IncomingData(byte));
            }
        }
    }

    fn on_interrupt(target: &mut Debugged) -> Result<Option<Self::StopReason>, Fatal> {
        target.hold().stop().map_err(|_| Fatal)?;
        Ok(Some(MultiThreadStopReason::SignalWithThread {
            tid: tid(0),
            signal: Signal::SIGINT,
        }))
    }
}

/// Serves debuggers until the machine ends.
pub(crate) fn serve(listener: &Listener, hold: Hold, memory: Arc<GuestMemoryMmap>) {
    let mut target = Debugged::new(hold, memory);
    loop {
        let ended = target.hold().control().event().as_raw_fd();
        match readable([ended, listener.as_raw_fd()]) {
            Ok([false, true]) => {}
            Ok([false, false]) => continue,
            _ => return,
        }
        let link = match listener.accept(target.hold().control().clone()) {
            Ok(link) => link,
            Err(error) => {
                tracing::warn!(%error, "debugger");
                continue;
            }
        };
        if target.hold().stop().is_err() {
            return;
        }
        match GdbStub::new(link).run_blocking::<Loop>(&mut target) {
            Ok(DisconnectReason::Kill) => target.hold().control().end(Exit::Stopped),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "debugger"),
        }
        // Whoever leaves, leaves nothing.
        if target.release().is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_was_left_is_taken() {
        let path = std::env::temp_dir().join(format!("rvmm-gdb-{}", std::process::id()));
        drop(UnixListener::bind(&path).unwrap());
        let address = Address::Unix(path.clone());
        let listener = Listener::bind(&address).unwrap();
        assert!(Listener::bind(&address).is_err());
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn addresses() {
        let parse = |text: &str| text.parse::<Address>();
        let tcp = |text: &str| Ok(Address::Tcp(text.into()));
        assert_eq!(parse("1234"), tcp("127.0.0.1:1234"));
        assert_eq!(parse(":1234"), tcp("127.0.0.1:1234"));
        assert_eq!(parse("[::1]:1"), tcp("[::1]:1"));
        assert_eq!(parse("./gdb"), Ok(Address::Unix("./gdb".into())));
        for bad in ["", "gdb", "host:", "host:65536"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
