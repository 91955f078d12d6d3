// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A network in user mode: passt(1) has the guest's connections be its own, and takes and gives frames by a stream
//! socket, each behind its length (32 bits, big-endian).

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::helper;

/// Bytes before each frame.
const LENGTH: usize = 4;
/// The largest frame, as a tap interface has it.
pub(crate) const MOST: usize = 64 << 10;

/// A TCP port of this host (at 127.0.0.1), and that of the guest to which its connections go.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Forward {
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
}

/// A network, which outlives the cards that are one after the other on it.
pub type Network = Arc<Mutex<UserNetwork>>;

/// The launcher's end of one.
pub struct UserNetwork {
    socket: File,
    forwards: Vec<Forward>,
    /// What has come of a frame, with its length.
    received: Vec<u8>,
    /// What is still to go of one.
    unsent: Vec<u8>,
}

impl UserNetwork {
    /// Starts passt, with these ports of the host.
    ///
    /// # Errors
    ///
    /// Those of the system; a sentence if it is not installed.
    pub fn start(forwards: &[Forward]) -> io::Result<Network> {
        helper::may_start()?;
        let (ours, theirs) = UnixStream::pair()?;
        let mut arguments = vec!["--foreground".to_owned(), "--quiet".to_owned()];
        for Forward { host, guest } in forwards {
            arguments.push(format!("--tcp-ports=127.0.0.1/{host}:{guest}"));
        }
        helper::start(&["passt"], "passt", &arguments, &theirs.into())?;
        Ok(Arc::new(Mutex::new(Self::new(ours, forwards)?)))
    }

    /// A network at the other end of this socket.
    fn new(socket: UnixStream, forwards: &[Forward]) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: OwnedFd::from(socket).into(),
            forwards: forwards.to_vec(),
            received: Vec::new(),
            unsent: Vec::new(),
        })
    }

    /// Ports of the host.
    pub(crate) fn forwards(&self) -> &[Forward] {
        &self.forwards
    }

    /// What can be read when there may be a frame.
    pub(crate) fn source(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Receives a frame, of at most [`MOST`] bytes. Nothing of the next one is read, so that the socket tells of it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::WouldBlock`] while there is none as a whole; others if there will be none any more.
    pub(crate) fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        loop {
            let have = self.received.len();
            let wanted = match self.received.first_chunk() {
                None => LENGTH,
                Some(length) => LENGTH + u32::from_be_bytes(*length) as usize,
            };
            if wanted > LENGTH + frame.len().min(MOST) {
                let cause = format!("passt has a frame of {} bytes", wanted - LENGTH);
                return Err(io::Error::new(ErrorKind::InvalidData, cause));
            }
            if have >= LENGTH && have == wanted {
                let length = wanted - LENGTH;
                frame[..length].copy_from_slice(&self.received[LENGTH..]);
                self.received.clear();
                return Ok(length);
            }
            self.received.resize(wanted, 0);
            let read = self.socket.read(&mut self.received[have..]);
            self.received.truncate(have + read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "passt has ended")),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a frame, or loses it where there is no room for it.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub(crate) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let count = self.socket.write(&self.unsent)?;
            self.unsent.drain(..count);
        }
        let length = (frame.len() as u32).to_be_bytes();
        let parts = [IoSlice::new(&length), IoSlice::new(frame)];
        let count = self.socket.write_vectored(&parts)?;
        // What follows would be taken for the rest of it: so that has to go first.
        let whole = length.iter().chain(frame);
        self.unsent.extend(whole.skip(count));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_whole_however_they_come() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut network = UserNetwork::new(ours, &[]).unwrap();
        let mut frame = [0; 100];
        let mut receive = || {
            network
                .receive(&mut frame)
                .map(|count| frame[..count].to_vec())
        };
        let nothing = |got: io::Result<Vec<u8>>| got.unwrap_err().kind() == ErrorKind::WouldBlock;
        for part in [&[0, 0][..], &[0, 3, 7], &[8]] {
            assert!(nothing(receive()));
            theirs.write_all(part).unwrap();
        }
        assert!(nothing(receive()));
        theirs.write_all(&[9, 0, 0, 0, 1, 5, 0, 0, 0, 0]).unwrap();
        assert_eq!(receive().unwrap(), [7, 8, 9]);
        assert_eq!(receive().unwrap(), [5]);
        assert_eq!(receive().unwrap().len(), 0);
        assert!(nothing(receive()));
        theirs.write_all(&101u32.to_be_bytes()).unwrap();
        assert_eq!(receive().unwrap_err().kind(), ErrorKind::InvalidData);
        drop(theirs);
        assert!(receive().is_err());
    }

    #[test]
    fn what_goes_is_whole_frames() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut network = UserNetwork::new(ours, &[]).unwrap();
        // So large that the socket takes a part of one; others are lost.
        let mut sent = 0;
        for number in 0..100u32 {
            let frame = vec![number as u8; 60_000 + number as usize];
            sent += u32::from(network.send(&frame).is_ok());
        }
        assert!((2..100).contains(&sent), "{sent}");
        assert!(!network.unsent.is_empty());
        theirs.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        for _ in 0..100 {
            let _ = theirs.read_to_end(&mut bytes);
            let _ = network.send(&[1; 10]);
        }
        let _ = theirs.read_to_end(&mut bytes);
        let (mut rest, mut got) = (&bytes[..], 0);
        while let Some((length, after)) = rest.split_first_chunk() {
            let (frame, after) = after.split_at(u32::from_be_bytes(*length) as usize);
            assert!(frame.iter().all(|byte| *byte == frame[0]));
            got += u32::from(frame.len() >= 1000);
            rest = after;
        }
        assert_eq!(got, sent);
    }
}
