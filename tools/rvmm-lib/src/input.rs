// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The calling thread's part in a running machine: typed input to the serial port, and the end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::console::{is_finite, Escape};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::serial::{self, SerialPort};
use crate::vcpu::Control;

/// What a terminal's end of input is to a guest: Ctrl-d.
const END_OF_INPUT: u8 = 0x04;
/// A guest that sends nothing for so many milliseconds, and then again, waits for something.
const SILENCE_MS: i32 = 500;
/// How often a guest is told of the end of input, whenever it has said something and then fallen silent. Once is not
/// enough: a program that turns to reading single characters does not see what has come before as an end.
const MOST_ENDS: u32 = 10;

/// Serves the machine's input until its end. `sent` counts what the guest sends.
///
/// # Errors
///
/// [`Error::Os`] if events cannot be waited for.
pub(crate) fn serve(supervisor: Supervisor, sent: &AtomicU64) -> Result<()> {
    let broken = |error: event_manager::Error| Error::Os {
        what: "event loop",
        source: std::io::Error::other(error),
    };
    let control = supervisor.control.clone();
    let mut manager = EventManager::<Supervisor>::new().map_err(broken)?;
    let id = manager.add_subscriber(supervisor);
    while !control.ended() {
        if manager.run_with_timeout(SILENCE_MS).map_err(broken)? == 0 {
            if let Ok(supervisor) = manager.subscriber_mut(id) {
                supervisor.silence(sent.load(Ordering::Relaxed));
            }
        }
    }
    // The subscriber owns the copy of standard input; drop it with the manager.
    let _ = manager.remove_subscriber(id);
    Ok(())
}

/// The calling thread's part: typed input to the serial port, and the end.
pub(crate) struct Supervisor {
    control: Arc<Control>,
    drained: EventFd,
    serial: Arc<Mutex<SerialPort>>,
    input: Option<File>,
    escape: Option<Escape>,
    pending: VecDeque<u8>,
    polling: bool,
    /// The input cannot be polled, and never makes its reader wait.
    plain: bool,
    /// The end of input tells something.
    finite: bool,
    end: End,
}

/// The end of input from a pipe or a file, as the guest is told it.
#[derive(Default)]
struct End {
    /// There has been some input.
    seen: bool,
    /// There will be no more.
    come: bool,
    /// What the guest had sent when it was last told.
    told_at: Option<u64>,
    /// What it had sent a while ago.
    before: u64,
    told: u32,
}

impl End {
    /// Whether to tell the guest now, which has sent `sent` so far and nothing for a while but that.
    fn is_due(&mut self, sent: u64) -> bool {
        let silent = std::mem::replace(&mut self.before, sent) == sent;
        let due =
            self.seen && self.come && silent && self.told_at != Some(sent) && self.told < MOST_ENDS;
        if due {
            self.told_at = Some(sent);
            self.told += 1;
        }
        due
    }
}

impl Supervisor {
    /// `drained` tells that the port has room again.
    pub(crate) fn new(
        control: Arc<Control>,
        drained: EventFd,
        serial: Arc<Mutex<SerialPort>>,
        input: Option<File>,
        escape: bool,
    ) -> Self {
        Self {
            control,
            drained,
            serial,
            finite: input.as_ref().is_some_and(is_finite),
            input,
            escape: escape.then(Escape::default),
            pending: VecDeque::new(),
            polling: false,
            plain: false,
            end: End::default(),
        }
    }

    /// Hands pending input to the guest as far as it has room; listens for more when it is gone.
    fn pump(&mut self, ops: &mut EventOps) {
        loop {
            self.hand_over();
            self.poll_input(self.pending.is_empty(), ops);
            let more = self.plain && self.input.is_some() && self.pending.is_empty();
            if !more || serial::lock(&self.serial).room() == 0 {
                return;
            }
            self.take_input(ops);
        }
    }

    /// The guest has `sent` so much, and nothing has happened for a while.
    fn silence(&mut self, sent: u64) {
        if self.pending.is_empty() && self.end.is_due(sent) {
            self.pending.push_back(END_OF_INPUT);
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        let mut serial = serial::lock(&self.serial);
        while !self.pending.is_empty() && serial.room() > 0 {
            let taken = serial.enqueue(self.pending.as_slices().0);
            if taken == 0 {
                break;
            }
            self.pending.drain(..taken);
        }
    }

    fn poll_input(&mut self, wanted: bool, ops: &mut EventOps) {
        let Some(input) = &mut self.input else { return };
        // The escape has to be seen even while the guest takes nothing.
        let wanted = wanted || self.escape.is_some();
        if wanted == self.polling || self.plain {
            return;
        }
        let events = Events::new(input, EventSet::IN);
        let done = if wanted {
            ops.add(events)
        } else {
            ops.remove(events)
        };
        match done {
            Ok(()) => self.polling = wanted,
            Err(_) => self.plain = true,
        }
    }

    fn take_input(&mut self, ops: &mut EventOps) {
        /// Typed ahead of a guest that does not listen; more is dropped.
        const MOST_PENDING: usize = 64 << 10;
        let mut buffer = [0; 256];
        let Some(input) = &mut self.input else { return };
        match input.read(&mut buffer) {
            Ok(0) => {
                self.end.come = self.finite;
                self.poll_end(ops);
            }
            Ok(count) => {
                self.end.seen = true;
                let typed = &buffer[..count];
                let (through, quit) = match &mut self.escape {
                    Some(escape) => escape.filter(typed),
                    None => (typed.to_vec(), false),
                };
                if quit {
                    self.control.end(Exit::Stopped);
                }
                if self.pending.len() < MOST_PENDING {
                    self.pending.extend(through);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "standard input");
                self.poll_end(ops);
            }
        }
    }

    /// End of input: the guest goes on without.
    fn poll_end(&mut self, ops: &mut EventOps) {
        if let Some(input) = self.input.take() {
            if self.polling {
                let _ = ops.remove(Events::empty(&input));
            }
        }
    }
}

impl MutEventSubscriber for Supervisor {
    fn init(&mut self, ops: &mut EventOps) {
        for event in [self.control.event(), &self.drained] {
            if let Err(error) = ops.add(Events::new(event, EventSet::IN)) {
                tracing::error!(%error, "event loop");
                self.control.end(Exit::Stopped);
            }
        }
        self.pump(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        if fd == self.drained.as_raw_fd() {
            // Level-triggered: take the count, whatever it is.
            let _ = self.drained.read();
            self.pump(ops);
        } else if self
            .input
            .as_ref()
            .is_some_and(|input| input.as_raw_fd() == fd)
        {
            self.take_input(ops);
            self.pump(ops);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_input_is_told_in_silence() {
        let mut end = End {
            seen: true,
            ..End::default()
        };
        assert!(!end.is_due(5) && !end.is_due(5), "there may be more");
        end.come = true;
        assert!(end.is_due(5));
        assert!(!end.is_due(5), "once for what was said");
        assert!(!end.is_due(6), "it talks");
        assert!(end.is_due(6));
        for sent in 7..20 {
            end.is_due(sent);
            end.is_due(sent);
        }
        assert_eq!(end.told, MOST_ENDS);
        let mut nothing = End {
            come: true,
            ..End::default()
        };
        assert!(!nothing.is_due(0) && !nothing.is_due(0));
    }
}
