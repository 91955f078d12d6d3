// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Holding virtual CPUs: a holder's thread, a debugger's for instance, stops them all, has each do something, and lets
//! them go.
//!
//! Only the thread that runs a vCPU touches it: what the holder wants done is sent there and done while the vCPU is
//! held. All are held or none.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvm_bindings::kvm_debug_exit_arch;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::EventFd;

use crate::vcpu::{self, Control};

/// How long a thread waits before it looks whether the machine has ended.
const LOOK: Duration = Duration::from_millis(50);

type Job = Box<dyn FnOnce(&mut VcpuFd) + Send>;

enum Order {
    Do(Job),
    Go,
}

/// A debug exit (`KVM_EXIT_DEBUG`).
#[derive(Clone, Copy)]
pub(crate) struct Hit {
    pub(crate) vcpu: usize,
    pub(crate) info: kvm_debug_exit_arch,
}

/// What the holder's thread and those of the vCPUs share.
struct Shared {
    hits: Mutex<VecDeque<Hit>>,
    /// Written with each hit.
    event: EventFd,
    /// Threads of the vCPUs, by number, once they run.
    threads: Mutex<Vec<Option<libc::pthread_t>>>,
    control: Arc<Control>,
}

/// The vCPU's end.
pub(crate) struct Held {
    id: usize,
    orders: Receiver<Order>,
    shared: Arc<Shared>,
}

/// The holder's end.
pub(crate) struct Hold {
    orders: Vec<Sender<Order>>,
    shared: Arc<Shared>,
}

/// The machine has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine has ended")]
pub struct Ended;

/// Both ends, for so many vCPUs, which may be `held` from the beginning.
pub(crate) fn new(
    vcpus: usize,
    held: bool,
    control: Arc<Control>,
) -> io::Result<(Hold, Vec<Held>)> {
    control.held.store(held, Ordering::Release);
    let shared = Arc::new(Shared {
        hits: Mutex::default(),
        event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        threads: Mutex::new(vec![None; vcpus]),
        control,
    });
    let (senders, ends) = (0..vcpus)
        .map(|id| {
            let (sender, orders) = mpsc::channel();
            let shared = shared.clone();
            (sender, Held { id, orders, shared })
        })
        .unzip();
    let hold = Hold {
        orders: senders,
        shared,
    };
    Ok((hold, ends))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Held {
    /// To be called once by the thread that runs the vCPU, and again when it will not any more.
    pub(crate) fn set_thread(&self, runs: bool) {
        // SAFETY: the call only asks which thread this is.
        let thread = runs.then(|| unsafe { libc::pthread_self() });
        if let Some(slot) = lock(&self.shared.threads).get_mut(self.id) {
            *slot = thread;
        }
    }

    /// Whether the vCPU shall not run.
    pub(crate) fn is_wanted(&self) -> bool {
        self.shared.control.held.load(Ordering::Acquire)
    }

    /// Does what the holder wants until it lets the vCPU go, or the machine ends.
    pub(crate) fn serve(&self, fd: &mut VcpuFd) {
        loop {
            match self.orders.recv_timeout(LOOK) {
                Ok(Order::Do(job)) => job(fd),
                Ok(Order::Go) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) if self.shared.control.ended() => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The vCPU has come upon something. All are to be held.
    pub(crate) fn hit(&self, info: kvm_debug_exit_arch) {
        self.shared.control.held.store(true, Ordering::Release);
        lock(&self.shared.hits).push_back(Hit {
            vcpu: self.id,
            info,
        });
        let _ = self.shared.event.write(1);
    }
}

impl Hold {
    /// Number of vCPUs.
    pub(crate) fn vcpus(&self) -> usize {
        self.orders.len()
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.shared.control
    }

    /// Readable when there has been a hit.
    pub(crate) fn event(&self) -> &EventFd {
        &self.shared.event
    }

    /// The next hit.
    pub(crate) fn next_hit(&self) -> Option<Hit> {
        let mut hits = lock(&self.shared.hits);
        let hit = hits.pop_front();
        if hits.is_empty() {
            let _ = self.shared.event.read();
        }
        hit
    }

    /// Forgets hits: the vCPUs will come upon them again.
    pub(crate) fn forget_hits(&self, which: impl Fn(&Hit) -> bool) {
        lock(&self.shared.hits).retain(|hit| !which(hit));
    }

    /// Holds all vCPUs.
    pub(crate) fn stop(&self) -> Result<(), Ended> {
        self.shared.control.held.store(true, Ordering::Release);
        (0..self.vcpus()).try_for_each(|id| self.on(id, |_| ()))
    }

    /// Lets all vCPUs go.
    pub(crate) fn go(&self) {
        self.shared.control.held.store(false, Ordering::Release);
        for order in &self.orders {
            let _ = order.send(Order::Go);
        }
    }

    /// Has a vCPU's thread do something with it, and waits for that; it is held, or on its way to be.
    pub(crate) fn on<R: Send + 'static>(
        &self,
        id: usize,
        job: impl FnOnce(&mut VcpuFd) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        let (answer, answered) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |fd| {
            let _ = answer.send(job(fd));
        });
        let order = self.orders.get(id).ok_or(Ended)?;
        order.send(Order::Do(job)).map_err(|_| Ended)?;
        loop {
            // It may have been about to enter the guest: each time anew.
            if let Some(Some(thread)) = lock(&self.shared.threads).get(id) {
                vcpu::kick_thread(*thread);
            }
            match answered.recv_timeout(LOOK) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(Ended),
                Err(RecvTimeoutError::Timeout) if self.shared.control.ended() => return Err(Ended),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
