// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Virtio devices on a PCI bus (Virtual I/O Device 1.2): modern ones, with MSI-X and without a pin; on Arm64 in memory.
//!
//! A device is a [`Backend`], served by one thread once its driver has started it. Doorbells reach that thread as
//! events (`KVM_IOEVENTFD`), and it interrupts by events (`KVM_IRQFD`): neither leaves the guest for the launcher's
//! vCPU threads, which only see registers.
//!
//! - [`transport`], `msix`: registers, without a machine.
//! - `function`: a device as a PCI function; `host`: the bus; `worker`: the thread.
//! - `mmio`: a device in memory.
//! - [`balloon`]: memory back to the host; [`block`]: a disk; [`console`]: a terminal; [`net`]: a network card, on a
//!   tap interface or a network in user mode ([`user`]); [`rng`]: entropy; [`share`]: a directory of the host's;
//!   [`vsock`]: sockets, whose rings the kernel serves (`vhost`).
//! - [`saved`]: how they come back.

pub mod balloon;
pub mod block;
pub mod console;
#[cfg(target_arch = "x86_64")]
mod function;
#[cfg(target_arch = "x86_64")]
mod host;
#[cfg(any(target_arch = "aarch64", test))]
pub(crate) mod mmio;
#[cfg(target_arch = "x86_64")]
mod msix;
pub mod net;
pub mod rng;
pub mod saved;
pub mod share;
pub mod transport;
pub mod user;
mod vhost;
pub mod vsock;
mod worker;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm, VmFd};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT, Writer};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

#[cfg(target_arch = "x86_64")]
pub(crate) use self::host::{Host, Window, ECAM, ECAM_LENGTH, PORT, PORTS};
use self::saved::Saved;
use self::transport::Vector;
use crate::sys;
use crate::vm::check_extensions;

/// Feature bit 28: descriptors may be in tables of their own.
pub const INDIRECT: u64 = 1 << 28;
/// Feature bit 29: both sides say from which entry on they want to be told.
pub const EVENT_IDX: u64 = 1 << 29;

/// A device, without its registers.
pub trait Backend: Send {
    /// Device type (5), and PCI class code (base class, subclass, interface).
    fn kind(&self) -> (u16, u32);

    /// Features beside those of rings.
    fn features(&self) -> u64;

    /// The most entries of each queue.
    fn queues(&self) -> Vec<u16>;

    /// The device-specific configuration, which is constant unless there are [`Self::registers`].
    fn config(&self) -> Vec<u8>;

    /// The device-specific configuration of a device whose changes or is written to.
    fn registers(&self) -> Option<Arc<dyn Registers>> {
        None
    }

    /// The host's end of a balloon.
    fn balloon(&self) -> Option<balloon::Handle> {
        None
    }

    /// The driver has accepted these features, and starts.
    fn start(&mut self, features: u64) {
        let _ = features;
    }

    /// The number of first queues that others serve, the kernel or a program, once they are handed to it.
    fn served_outside(&self) -> usize {
        0
    }

    /// Hands these queues over to who serves them and waits for their doorbells.
    ///
    /// # Errors
    ///
    /// [`Broken`], with the device as it was.
    fn hand_over(
        &mut self,
        rings: &[Ring],
        kicks: &[EventFd],
        guest: &Guest,
    ) -> Result<(), Broken> {
        let _ = (rings, kicks, guest);
        Ok(())
    }

    /// Takes them back, as they have been left.
    ///
    /// # Errors
    ///
    /// [`Broken`] if that cannot be known.
    fn take_back(&mut self, rings: &mut [Ring], memory: &GuestMemoryMmap) -> Result<(), Broken> {
        let _ = (rings, memory);
        Ok(())
    }

    /// Serves a queue whose doorbell was rung.
    ///
    /// # Errors
    ///
    /// The driver has broken the rules: the device stops until it is reset.
    fn serve(&mut self, index: usize, rings: &mut [Ring], guest: &Guest) -> Result<(), Broken>;

    /// How it is made again where its machine is restored; what a file has that is to be saved as well is added to
    /// `parts`. Called while the device stands still.
    ///
    /// # Errors
    ///
    /// Those of the system; a sentence if it cannot be saved.
    fn saved(&self, parts: &mut Vec<File>) -> io::Result<Saved> {
        let _ = parts;
        Err(cannot_be_saved())
    }

    /// Whether a program of its own serves it, which has to see the guest's memory.
    fn shares_memory(&self) -> bool {
        false
    }

    /// What else the thread waits for: calls [`Self::ready`] while it can be read.
    fn source(&self) -> Option<RawFd> {
        None
    }

    /// Whether the device wants to know now that [`Self::source`] can be read.
    fn listens(&self) -> bool {
        true
    }

    /// [`Self::source`] can be read.
    ///
    /// # Errors
    ///
    /// As [`Self::serve`].
    fn ready(&mut self, rings: &mut [Ring], guest: &Guest) -> Result<(), Broken> {
        let _ = (rings, guest);
        Ok(())
    }
}

/// Tells the driver that the configuration has changed.
pub type Tell = Box<dyn Fn() + Send + Sync>;

/// A configuration that changes while the device is at work.
pub trait Registers: Send + Sync {
    /// What it is now.
    fn bytes(&self) -> Vec<u8>;

    /// The driver writes at an offset.
    fn write(&self, at: u64, data: &[u8]);

    /// Takes what tells the driver of changes.
    fn connect(&self, tell: Tell);
}

/// A driver has broken the rules.
#[derive(Debug, thiserror::Error)]
#[error("the driver has broken the rules: {0}")]
pub struct Broken(pub String);

impl From<virtio_queue::Error> for Broken {
    fn from(error: virtio_queue::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// What a device sees of its guest.
pub struct Guest {
    /// The guest's memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// Set when the device has to stop: long work looks at it.
    pub stop: Arc<AtomicBool>,
    /// Set when the device shall stand still: after what it is at.
    pub leave: Arc<AtomicBool>,
    /// The machine, if others have been made of it: its hypervisor does not see what is written here.
    pub forked: Option<Arc<VmFd>>,
}

impl Guest {
    /// To be called before guest memory is written to, or given back.
    ///
    /// # Errors
    ///
    /// The hypervisor has no memory to keep what is there.
    pub fn before_write(&self, gpa: u64, length: u64) -> Result<(), Broken> {
        let Some(vm) = self.forked.as_ref().filter(|_| length > 0) else {
            return Ok(());
        };
        const PAGE: u64 = 4096;
        let start = gpa & !(PAGE - 1);
        let end = gpa
            .saturating_add(length)
            .div_ceil(PAGE)
            .saturating_mul(PAGE);
        loop {
            let touched = sys::touch(&**vm, start, end.saturating_sub(start));
            let Err(error) = touched else { return Ok(()) };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // There are no forks any more, or no such memory, which nobody can write to.
                Some(libc::ENODATA | libc::ESTALE | libc::EFAULT | libc::EINVAL) => return Ok(()),
                _ => return Err(error.into()),
            }
        }
    }

    /// Whether the device has to stop.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether the device shall begin nothing any more.
    pub fn leaving(&self) -> bool {
        self.stopping() || self.leave.load(Ordering::Acquire)
    }
}

/// A queue that the driver has enabled, or an empty one.
pub struct Ring {
    /// The queue.
    pub queue: Queue,
    vector: Vector,
    events: Arc<Vec<EventFd>>,
}

impl Ring {
    /// Whether the driver has enabled the queue.
    pub fn enabled(&self) -> bool {
        self.queue.ready()
    }

    /// What interrupts the guest, if there is a vector for it.
    fn event(&self) -> Option<&EventFd> {
        self.events.get(usize::from(self.vector.get()))
    }

    /// Interrupts the guest, if it wants to know what has been used.
    ///
    /// # Errors
    ///
    /// [`Broken`] if the ring cannot be read.
    pub fn notify(&mut self, guest: &Guest) -> Result<(), Broken> {
        if self.queue.needs_notification(&*guest.memory)? {
            send(&self.events, &self.vector);
        }
        Ok(())
    }
}

/// Serves every request of a ring: `serve` gives the bytes that it has written to the guest.
///
/// # Errors
///
/// Those of `serve` and [`next`].
pub fn drain(
    ring: &mut Ring,
    guest: &Guest,
    mut serve: impl FnMut(DescriptorChain<&GuestMemoryMmap>) -> Result<u32, Broken>,
) -> Result<(), Broken> {
    let memory = &*guest.memory;
    ring.queue.disable_notification(memory)?;
    while let Some(chain) = next(ring, guest)? {
        let head = chain.head_index();
        let length = serve(chain)?;
        ring.queue.add_used(memory, head, length)?;
        ring.notify(guest)?;
        if guest.leaving() {
            break;
        }
    }
    Ok(())
}

/// What comes from the host goes to the guest, as far as it has given room.
#[derive(Default)]
pub(crate) struct Inflow {
    /// The guest has given no room.
    starved: bool,
}

impl Inflow {
    /// The guest may have given room.
    pub(crate) fn look_again(&mut self) {
        self.starved = false;
    }

    /// Whether more is wanted.
    pub(crate) fn listens(&self) -> bool {
        !self.starved
    }

    /// Passes on at most so much: `fill` has a request written to, and gives the bytes of it; none if nothing has come.
    ///
    /// # Errors
    ///
    /// Those of `fill` and [`next`].
    pub(crate) fn pass_on(
        &mut self,
        ring: Option<&mut Ring>,
        guest: &Guest,
        most: usize,
        mut fill: impl FnMut(&mut Writer<'_>) -> Result<Option<usize>, Broken>,
    ) -> Result<(), Broken> {
        let Some(ring) = ring.filter(|ring| ring.enabled()) else {
            self.starved = true;
            return Ok(());
        };
        for _ in 0..most {
            if guest.leaving() {
                break;
            }
            let Some(chain) = next(ring, guest)? else {
                self.starved = true;
                break;
            };
            let head = chain.head_index();
            let Some(count) = fill(&mut chain.writer(&*guest.memory)?)? else {
                ring.queue.go_to_previous_position();
                break;
            };
            ring.queue.add_used(&*guest.memory, head, count as u32)?;
            ring.notify(guest)?;
        }
        Ok(())
    }
}

/// Reads what has come from the host, if it has.
///
/// # Errors
///
/// [`Broken`] if nothing will come any more.
pub(crate) fn come(what: &str, read: io::Result<usize>) -> Result<Option<usize>, Broken> {
    match read {
        Ok(count) => Ok(Some(count)),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(Broken(format!("{what}: {error}"))),
        },
    }
}

/// The next request of a ring, which may be answered; where there is none, the driver rings when there is.
///
/// # Errors
///
/// [`Broken`] if the ring cannot be read, or says that it has more than it can have.
pub fn next<'a>(
    ring: &mut Ring,
    guest: &'a Guest,
) -> Result<Option<DescriptorChain<&'a GuestMemoryMmap>>, Broken> {
    let memory = &*guest.memory;
    for _ in 0..2 {
        if let Some(chain) = ring.queue.pop_descriptor_chain(memory) {
            if guest.forked.is_some() {
                for part in chain.clone().writable() {
                    guest.before_write(part.addr().0, part.len().into())?;
                }
            }
            return Ok(Some(chain));
        }
        if !ring.queue.enable_notification(memory)? {
            return Ok(None);
        }
        // A request has come just now; nobody finds what is not there twice.
        ring.queue.disable_notification(memory)?;
    }
    Err(Broken("a ring with more than it can have".into()))
}

/// What is said of a device that nobody can make again.
fn cannot_be_saved() -> io::Error {
    let cause = "it has a device that cannot be saved";
    io::Error::new(io::ErrorKind::Unsupported, cause)
}

/// Checks that a hypervisor has what these devices need.
pub(crate) fn check(kvm: &Kvm, path: &Path) -> crate::error::Result<()> {
    let needed = [
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    ];
    check_extensions(kvm, path, &needed)
}

/// Sends a message, if there is a vector for it.
fn send(events: &[EventFd], vector: &Vector) {
    if let Some(event) = events.get(usize::from(vector.get())) {
        // Fails only if the counter is full, and then the message is pending anyway.
        let _ = event.write(1);
    }
}

#[cfg(test)]
mod hostile_tests;
