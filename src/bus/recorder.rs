// SPDX-License-Identifier: GPL-2.0
//! The recorder: a ring of what a vCPU did, in memory that user space maps for reading (uapi/rvmm.h, RVMM_RECORD).
//!
//! The vCPU's thread alone writes, under the vCPU's mutex, in a stay and outside; it takes no lock and waits for nobody.
//! It counts what it has written by itself and never reads what user space could have had a hand in, but how far the
//! reader has come, which decides no more than whether a record is lost. A record is complete before the header's head
//! says that it is there. Who reads one looks at the head again afterwards: the slot of record `head` is being written,
//! and what has been there before is void.
//!
//! Whether there is a ring, the file says by [`Wanted`]; the vCPU takes that over between two stays.

use crate::abi::record::{self, about, header, narrow, pair, Entry, Kind, Line, Outcome, Subject};
use crate::linux::lines::Lines;
use crate::linux::spin_irq::RawSpin;
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;

/// The ring of one vCPU.
pub(crate) struct Ring {
    lines: Arc<Lines>,
    /// Number of records, less one; a power of two before that.
    mask: u64,
    /// What comes is lost when it is full, not what is there.
    stops: bool,
    /// So many have been read, as the reader says.
    consumed: AtomicU64,
}

impl Ring {
    /// For `records` records of vCPU `id`. EINVAL: their number, or the flags. ENOMEM.
    pub(crate) fn new(id: u32, records: u32, flags: u32, tsc_khz: u32) -> Result<Arc<Self>> {
        let sizes = record::LEAST..=record::MOST;
        if !records.is_power_of_two() || !sizes.contains(&records) || flags & !record::STOP != 0 {
            return Err(EINVAL);
        }
        let lines = Lines::new(records as usize / record::LINES_PER_PAGE + 1)?;
        let head = lines.get(0).ok_or(EINVAL)?;
        for (word, value) in [
            (header::WORD_MAGIC, header::MAGIC),
            (header::WORD_SHAPE, pair(size_of::<Line>() as u32, records)),
            (header::WORD_VCPU, pair(id, flags)),
            (header::WORD_TSC_KHZ, tsc_khz.into()),
        ] {
            head[word & (record::WORDS - 1)].store(value, Ordering::Relaxed);
        }
        let ring = Self {
            lines: Arc::new(lines, GFP_KERNEL_ACCOUNT)?,
            mask: u64::from(records) - 1,
            stops: flags & record::STOP != 0,
            consumed: AtomicU64::new(0),
        };
        Ok(Arc::new(ring, GFP_KERNEL_ACCOUNT)?)
    }

    /// What user space maps.
    pub(crate) fn lines(&self) -> &Arc<Lines> {
        &self.lines
    }

    /// The reader has no use any more for the first `count` records.
    pub(crate) fn consume(&self, count: u64) {
        self.consumed.store(count, Ordering::Relaxed);
    }

    /// Where record number `n` goes; 0, the header's place, when it is lost.
    #[inline(always)]
    fn place(&self, n: u64) -> usize {
        if self.stops && n.wrapping_sub(self.consumed.load(Ordering::Relaxed)) > self.mask {
            return 0;
        }
        record::LINES_PER_PAGE.wrapping_add((n & self.mask) as usize)
    }

    /// A word of the header.
    #[inline(always)]
    fn publish(&self, word: usize, value: u64) {
        if let Some(head) = self.lines.get(0) {
            head[word & (record::WORDS - 1)].store(value, Ordering::Release);
        }
    }
}

/// The ring that user space wants of a vCPU.
#[pin_data]
pub(crate) struct Wanted {
    #[pin]
    ring: RawSpin<Option<Arc<Ring>>>,
}

impl Wanted {
    /// None.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            ring <- RawSpin::new(None),
        })
    }

    /// The one that is wanted.
    pub(crate) fn get(&self) -> Option<Arc<Ring>> {
        self.ring.lock().clone()
    }

    /// `ring` is wanted. EBUSY: another one is.
    pub(crate) fn set(&self, ring: Arc<Ring>) -> Result {
        let mut wanted = self.ring.lock();
        if wanted.is_some() {
            return Err(EBUSY);
        }
        *wanted = Some(ring);
        Ok(())
    }

    /// None is wanted any more. Sleeps, perhaps.
    pub(crate) fn clear(&self) {
        let ring = self.ring.lock().take();
        drop(ring);
    }
}

/// An exit under way.
#[derive(Default)]
struct Open {
    /// Where it goes.
    at: usize,
    /// Cycles that the guest had before it.
    guest: u32,
    detail: u32,
    flags: u16,
}

/// What a vCPU writes to.
pub(crate) struct Recorder {
    ring: Arc<Ring>,
    /// Records written.
    head: u64,
    /// Records lost.
    lost: u64,
    /// When the guest was entered last, it exited last, or the last exit was done with, whichever came last.
    since: u64,
    /// The exit under way.
    open: Open,
}

impl Recorder {
    /// To `ring`, which nobody has written to, from now on.
    pub(crate) fn new(ring: Arc<Ring>, now: u64) -> Self {
        Self {
            ring,
            head: 0,
            lost: 0,
            since: now,
            open: Open::default(),
        }
    }

    /// Whether it writes to this one.
    pub(crate) fn is_to(&self, ring: &Arc<Ring>) -> bool {
        Arc::ptr_eq(&self.ring, ring)
    }

    /// The guest has exited, at `now` by the host's TSC.
    #[inline(always)]
    pub(crate) fn exited(&mut self, now: u64, rip: u64, subject: Subject, flags: u16) {
        let guest = narrow(now.wrapping_sub(self.since));
        self.since = now;
        let at = self.ring.place(self.head);
        self.open = Open {
            at,
            guest,
            detail: subject.detail,
            flags,
        };
        if at != 0 {
            self.begin(at, now, rip, subject.address, subject.value);
        }
    }

    /// The exit under way has been dealt with, at `now`, on CPU `cpu`; `entry` comes at once, if any.
    #[inline(always)]
    pub(crate) fn handled(&mut self, now: u64, cpu: u32, outcome: &Outcome, entry: Entry) {
        let cycles = narrow(now.wrapping_sub(self.since));
        self.since = now;
        let open = &self.open;
        let word = about(Kind::Exit, Some(outcome), cpu, entry.flags | open.flags);
        let last = pair(outcome.reason, open.detail);
        self.end(open.at, pair(cycles, open.guest), word, &entry, last);
    }

    /// The guest is entered, at `now`, by the first entry of a stay.
    #[inline(never)]
    pub(crate) fn entered(&mut self, now: u64, cpu: u32, rip: u64, entry: Entry) {
        let outside = narrow(now.wrapping_sub(self.since));
        self.since = now;
        let at = self.ring.place(self.head);
        if at != 0 {
            self.begin(at, now, rip, 0, 0);
        }
        let word = about(Kind::Entry, None, cpu, entry.flags);
        self.end(at, pair(outside, 0), word, &entry, 0);
    }

    #[inline(always)]
    fn begin(&self, at: usize, now: u64, rip: u64, address: u64, value: u64) {
        if let Some([w0, w1, w2, w3, ..]) = self.ring.lines.get(at) {
            w0.store(now, Ordering::Relaxed);
            w1.store(rip, Ordering::Relaxed);
            w2.store(address, Ordering::Relaxed);
            w3.store(value, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn end(&mut self, at: usize, times: u64, about: u64, entry: &Entry, last: u64) {
        if at == 0 {
            self.lost = self.lost.wrapping_add(1);
            self.ring.publish(header::WORD_LOST, self.lost);
            return;
        }
        if let Some([.., w4, w5, w6, w7]) = self.ring.lines.get(at) {
            w4.store(times, Ordering::Relaxed);
            w5.store(about, Ordering::Relaxed);
            w6.store(pair(entry.inject, entry.error_code), Ordering::Relaxed);
            w7.store(last, Ordering::Relaxed);
        }
        self.head = self.head.wrapping_add(1);
        self.ring.publish(header::WORD_HEAD, self.head);
    }
}
