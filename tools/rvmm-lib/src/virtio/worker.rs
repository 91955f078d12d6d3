// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The thread of a device that its driver has started.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use kvm_ioctls::VmFd;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::transport::{QueueRegisters, Transport, Vector};
use super::{send, Backend, Broken, Guest, Ring, EVENT_IDX};
use crate::error::{Error, Result};
use crate::sandbox;

/// Whom the thread tells that the device has stopped.
struct Alarm {
    broken: Arc<AtomicBool>,
    vector: Vector,
    events: Arc<Vec<EventFd>>,
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
    /// Starts the device's thread, whose queues are where they have been if `positions` (available, used) says so. The
    /// driver is told if that cannot be. A machine that has been `forked` is told what is written to.
    pub(crate) fn start(
        &mut self,
        transport: &Transport,
        memory: &Arc<GuestMemoryMmap>,
        kicks: &[EventFd],
        events: &Arc<Vec<EventFd>>,
        forked: Option<Arc<VmFd>>,
        positions: Option<&[(u16, u16)]>,
    ) {
        let guest = Guest {
            memory: memory.clone(),
            stop: Arc::default(),
            leave: Arc::default(),
            forked,
        };
        if let Err(broken) = self.try_start(transport, kicks, events, guest, positions) {
            tracing::warn!(%broken, "a virtio device does not start");
            transport.broken.store(true, Ordering::Release);
        }
    }

    fn try_start(
        &mut self,
        transport: &Transport,
        kicks: &[EventFd],
        events: &Arc<Vec<EventFd>>,
        guest: Guest,
        positions: Option<&[(u16, u16)]>,
    ) -> std::result::Result<(), Broken> {
        let features = transport.accepted();
        let event_idx = features & EVENT_IDX != 0;
        let rings = transport.queues.iter();
        let rings = rings.map(|registers| Ring::new(&guest.memory, events, registers, event_idx));
        let mut rings = rings.collect::<std::result::Result<Vec<_>, _>>()?;
        for (ring, (available, used)) in rings.iter_mut().zip(positions.unwrap_or_default()) {
            ring.queue.set_next_avail(*available);
            ring.queue.set_next_used(*used);
        }
        let kicks = kicks.iter().map(EventFd::try_clone);
        let kicks = kicks.collect::<std::io::Result<Vec<_>>>()?;
        let Self::Idle(mut backend) = std::mem::replace(self, Self::Gone) else {
            return Err(Broken("the device is gone".into()));
        };
        backend.start(features);
        for ring in rings.iter().filter(|ring| ring.enabled()) {
            // Flags, index, entries, and the event that the device asks for.
            let length = 6 + 8 * u64::from(ring.queue.size());
            guest.before_write(ring.queue.used_ring(), length)?;
        }
        let served = backend.served_outside();
        if let Err(broken) = backend.hand_over(&rings[..served], &kicks, &guest) {
            *self = Self::Idle(backend);
            return Err(broken);
        }
        let alarm = Alarm {
            broken: transport.broken.clone(),
            vector: transport.config_vector.clone(),
            events: events.clone(),
        };
        let worker = Worker::start(backend, rings, kicks, guest, alarm);
        *self = Self::Running(worker.map_err(|error| Broken(error.to_string()))?);
        Ok(())
    }

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
    fn new(
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
    fn start(
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
        let ours = (0..).zip(&kicks).skip(backend.served_outside());
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
        let served = backend.served_outside();
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
        for index in self.backend.served_outside()..self.rings.len() {
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
