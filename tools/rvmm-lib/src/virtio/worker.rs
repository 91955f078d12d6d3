// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The thread of a device that its driver has started.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::transport::{QueueRegisters, Vector};
use super::{send, Backend, Broken, Guest, Ring};
use crate::error::{Error, Result};
use crate::sandbox;

/// Whom the thread tells that the device has stopped.
pub(crate) struct Alarm {
    pub(crate) broken: Arc<AtomicBool>,
    pub(crate) vector: Vector,
    pub(crate) events: Arc<Vec<EventFd>>,
}

/// A device whose thread has ended, and the rings as it left them.
pub(crate) type Parked = (Box<dyn Backend>, Vec<Ring>);

/// A device at work.
pub(crate) struct Worker {
    thread: Option<JoinHandle<Parked>>,
    memory: Arc<GuestMemoryMmap>,
    stop: Arc<AtomicBool>,
    leave: Arc<AtomicBool>,
    end: EventFd,
}

/// The device, wherever it is.
pub(crate) enum State {
    /// The driver has not started it.
    Idle(Box<dyn Backend>),
    /// Its thread has it.
    Running(Worker),
    /// Its thread has panicked.
    Gone,
}

impl State {
    /// Ends the device's thread, if there is one.
    pub(crate) fn stop(&mut self) {
        if let Self::Running(worker) = self {
            let stopped = worker.stop();
            *self = stopped.map_or(Self::Gone, |(backend, _)| Self::Idle(backend));
        }
    }
}

/// An event between a device, its driver and its thread.
pub(crate) fn event() -> Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::os("eventfd"))
}

impl Ring {
    /// The queue that the driver has described; an error if it is not in the guest's memory.
    pub(crate) fn new(
        memory: &GuestMemoryMmap,
        events: &Arc<Vec<EventFd>>,
        registers: &QueueRegisters,
        event_idx: bool,
    ) -> std::result::Result<Self, Broken> {
        let mut queue = Queue::new(registers.most)?;
        if registers.enabled {
            queue.try_set_size(registers.size)?;
            queue.try_set_desc_table_address(GuestAddress(registers.descriptors))?;
            queue.try_set_avail_ring_address(GuestAddress(registers.available))?;
            queue.try_set_used_ring_address(GuestAddress(registers.used))?;
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
            if !queue.is_valid(memory) {
                return Err(Broken("a ring beside the memory".into()));
            }
        }
        Ok(Self {
            queue,
            vector: registers.vector.clone(),
            events: events.clone(),
        })
    }
}

/// The token of the event that ends the thread, and of the device's own source; queues have their numbers.
const END: u64 = u64::MAX;
const SOURCE: u64 = u64::MAX - 1;

struct Job {
    backend: Box<dyn Backend>,
    rings: Vec<Ring>,
    kicks: Vec<EventFd>,
    guest: Guest,
    epoll: Epoll,
}

impl Worker {
    /// Starts a thread that serves `rings`, whose doorbells are `kicks`.
    pub(crate) fn start(
        backend: Box<dyn Backend>,
        rings: Vec<Ring>,
        kicks: Vec<EventFd>,
        guest: Guest,
        alarm: Alarm,
    ) -> Result<Self> {
        let end = event()?;
        let epoll = Epoll::new().map_err(Error::os("epoll"))?;
        let mut waits = vec![(end.as_raw_fd(), END)];
        waits.extend(backend.source().map(|fd| (fd, SOURCE)));
        // Others are the kernel's to wait for.
        let ours = (0..).zip(&kicks).skip(backend.served_by_kernel());
        waits.extend(ours.map(|(n, kick)| (kick.as_raw_fd(), n)));
        for (fd, token) in waits {
            epoll
                .ctl(
                    ControlOperation::Add,
                    fd,
                    EpollEvent::new(EventSet::IN, token),
                )
                .map_err(Error::os("epoll"))?;
        }
        let (stop, leave) = (guest.stop.clone(), guest.leave.clone());
        let memory = guest.memory.clone();
        let mut job = Job {
            backend,
            rings,
            kicks,
            guest,
            epoll,
        };
        let work = move || {
            sandbox::enter(sandbox::Kind::Device);
            if let Err(broken) = job.run() {
                tracing::warn!(%broken, "a virtio device has stopped");
                alarm.broken.store(true, Ordering::Release);
                send(&alarm.events, &alarm.vector);
            }
            (job.backend, job.rings)
        };
        let thread = std::thread::Builder::new()
            .name("virtio".into())
            .spawn(work)
            .map_err(Error::os("thread of a device"))?;
        Ok(Self {
            thread: Some(thread),
            memory,
            stop,
            leave,
            end,
        })
    }

    /// Ends the thread in the midst of what it is at, and gives the device back; none if it panicked.
    pub(crate) fn stop(&mut self) -> Option<Parked> {
        self.stop.store(true, Ordering::Release);
        self.leave()
    }

    /// Ends the thread when it has done what it is at, and gives the device back; none if it panicked.
    pub(crate) fn leave(&mut self) -> Option<Parked> {
        self.leave.store(true, Ordering::Release);
        let _ = self.end.write(1);
        let (mut backend, mut rings) = self.thread.take()?.join().ok()?;
        let served = backend.served_by_kernel();
        if let Err(broken) = backend.take_back(&mut rings[..served], &self.memory) {
            tracing::warn!(%broken, "queues that the kernel has served");
        }
        Some((backend, rings))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Job {
    /// Serves the queues until the end.
    fn run(&mut self) -> std::result::Result<(), Broken> {
        // What was there before the thread.
        for index in self.backend.served_by_kernel()..self.rings.len() {
            self.serve(index)?;
        }
        let mut events = [EpollEvent::default(); 8];
        let mut listening = true;
        loop {
            if let Some(source) = self
                .backend
                .source()
                .filter(|_| self.backend.listens() != listening)
            {
                listening = !listening;
                let set = if listening {
                    EventSet::IN
                } else {
                    EventSet::empty()
                };
                let event = EpollEvent::new(set, SOURCE);
                self.epoll.ctl(ControlOperation::Modify, source, event)?;
            }
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            for event in events.iter().take(count) {
                if self.guest.leaving() {
                    return Ok(());
                }
                match event.data() {
                    END => return Ok(()),
                    SOURCE => self.backend.ready(&mut self.rings, &self.guest)?,
                    index => {
                        let index = index as usize;
                        if let Some(kick) = self.kicks.get(index) {
                            let _ = kick.read();
                        }
                        self.serve(index)?;
                    }
                }
            }
        }
    }

    fn serve(&mut self, index: usize) -> std::result::Result<(), Broken> {
        if self.rings.get(index).is_some_and(Ring::enabled) {
            self.backend.serve(index, &mut self.rings, &self.guest)?;
        }
        Ok(())
    }
}
