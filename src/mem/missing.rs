// SPDX-License-Identifier: GPL-2.0
//! Pages that the host does not have yet, where user space brings them (`RVMM_MEM_MISSING`, uapi/rvmm.h).
//!
//! A vCPU's thread that comes across one reports it, outside stays and outside readers' sections of the slots: either
//! KVM_RUN ends and says so, or, where user space has opened a queue, the thread waits there.
//!
//! The queue is the list of those who wait. So it needs no memory for events, is never full, and loses none: each
//! waiter is told to whoever reads once, and one that stops waiting, for a signal, comes again with the next KVM_RUN.

use crate::mem::addr::{Gpa, Hva};
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::fs::File;
use kernel::new_poll_condvar;
use kernel::prelude::*;
use kernel::sync::poll::{PollCondVar, PollTable};
use kernel::sync::{new_condvar, new_mutex, Arc, CondVar, Mutex};

/// A page that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Absent {
    /// Its guest-physical address.
    pub(crate) gpa: Gpa,
    /// Its user address.
    pub(crate) hva: Hva,
}

/// What a waiter tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// The page.
    pub(crate) page: Absent,
    /// Id of the vCPU.
    pub(crate) vcpu: u32,
    /// It is to be written.
    pub(crate) write: bool,
}

/// How waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// User space has said that the page is to be taken as it is now.
    Answered,
    /// User space has said so, and there is no page to be had.
    Failed,
    /// There is nobody who would be told.
    Nobody,
}

/// A thread that waits for a page.
struct Waiter {
    number: u64,
    event: Event,
    /// It has been told.
    told: bool,
    /// [`Waited::Answered`] or [`Waited::Failed`].
    answer: Option<Waited>,
}

#[derive(Default)]
struct Inner {
    waiters: KVec<Waiter>,
    /// Number of the next waiter.
    next: u64,
    closed: bool,
}

impl Inner {
    fn find(&mut self, number: u64) -> Option<&mut Waiter> {
        self.waiters.iter_mut().find(|w| w.number == number)
    }
}

/// Those who wait for pages of one VM. As many as there are threads in its vCPUs' ioctls.
#[pin_data]
pub(crate) struct Queue {
    #[pin]
    inner: Mutex<Inner>,
    /// Waiters sleep here.
    #[pin]
    answers: CondVar,
    /// Who reads the queue sleeps here.
    #[pin]
    events: PollCondVar,
}

impl Queue {
    /// Nobody waits.
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                inner <- new_mutex!(Inner::default()),
                answers <- new_condvar!(),
                events <- new_poll_condvar!(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Tells `event` and waits until it is answered, or the queue closed. EINTR: a signal came first.
    fn wait(&self, event: Event) -> Result<Waited> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Ok(Waited::Nobody);
        }
        let number = inner.next;
        inner.next = number.wrapping_add(1);
        inner.waiters.push(
            Waiter {
                number,
                event,
                told: false,
                answer: None,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        self.events.notify_all();
        let result = loop {
            let answer = inner.find(number).and_then(|w| w.answer);
            if let Some(answer) = answer {
                break Ok(answer);
            }
            if inner.closed {
                break Ok(Waited::Nobody);
            }
            if self.answers.wait_interruptible(&mut inner) {
                // An answer that came together with the signal counts.
                let answer = inner.find(number).and_then(|w| w.answer);
                break answer.ok_or(EINTR);
            }
        };
        inner.waiters.retain(|w| w.number != number);
        result
    }

    /// The oldest event that has not been told, with its waiter's number.
    pub(crate) fn take(&self) -> Option<(u64, Event)> {
        let mut inner = self.inner.lock();
        let waiter = inner.waiters.iter_mut().find(|w| !w.told)?;
        waiter.told = true;
        Some((waiter.number, waiter.event))
    }

    /// What [`Queue::take`] gave has reached nobody: it is to be told again.
    pub(crate) fn put_back(&self, number: u64) {
        if let Some(w) = self.inner.lock().find(number) {
            w.told = false;
        }
        self.events.notify_all();
    }

    /// Those who wait for a page in `start` to `end` go on; those who wait for `failed` do without.
    pub(crate) fn answer(&self, start: Gpa, end: Gpa, failed: Option<Gpa>) {
        let mut inner = self.inner.lock();
        for w in inner.waiters.iter_mut() {
            let gpa = w.event.page.gpa;
            if failed == Some(gpa) {
                w.answer = Some(Waited::Failed);
            } else if start <= gpa && gpa < end {
                w.answer = Some(Waited::Answered);
            }
        }
        drop(inner);
        self.answers.notify_all();
    }

    /// Whether there is an event to read; `table` is woken when there is one.
    pub(crate) fn poll(&self, file: &File, table: PollTable<'_>) -> bool {
        table.register_wait(file, &self.events);
        self.inner.lock().waiters.iter().any(|w| !w.told)
    }
}

/// A VM's missing pages.
#[pin_data]
pub(crate) struct Missing {
    /// Slots may have the flag.
    enabled: AtomicBool,
    #[pin]
    queue: Mutex<Option<Arc<Queue>>>,
}

impl Missing {
    /// Not enabled, and without a queue.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            enabled: AtomicBool::new(false),
            queue <- new_mutex!(None),
        })
    }

    /// Lets slots have the flag.
    pub(crate) fn enable(&self) {
        self.enabled.store(true, Ordering::Relaxed);
    }

    /// Whether slots may have the flag.
    #[inline]
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Opens the queue. EINVAL: missing pages are not reported. EBUSY: it is open.
    pub(crate) fn open(&self) -> Result<Arc<Queue>> {
        if !self.is_enabled() {
            return Err(EINVAL);
        }
        let mut queue = self.queue.lock();
        if queue.is_some() {
            return Err(EBUSY);
        }
        Ok(queue.insert(Queue::new()?).clone())
    }

    /// Closes the queue: nobody is told any more, and those who wait leave.
    pub(crate) fn close(&self, queue: &Queue) {
        *self.queue.lock() = None;
        queue.inner.lock().closed = true;
        queue.answers.notify_all();
    }

    /// Waits for a page, if there is somebody to bring it. Sleeps. EINTR, ENOMEM.
    pub(crate) fn wait(&self, event: Event) -> Result<Waited> {
        let queue = self.queue.lock().clone();
        match queue {
            Some(queue) => queue.wait(event),
            None => Ok(Waited::Nobody),
        }
    }
}
