// SPDX-License-Identifier: GPL-2.0
//! The recorder: a ring of what a vCPU did, in memory that user space maps for reading (uapi/rvmm.h, RVMM_RECORD).
//!
//! The vCPU's thread alone writes, under the vCPU's mutex, in a stay and outside; it takes no lock, waits for nobody.
//! It counts what it has written by itself and never reads what user space could have had a hand in, but how far the
//! reader has come, which decides no more than whether a record is lost. A record is complete before the header's head
//! says that it is there. Who reads one looks at the head again afterwards: the slot of record `head` is being written,
//! and what has been there before is void.
//!
//! Whether there is a ring, the file says by [`Wanted`]; the vCPU takes that over between two stays. The same records
//! go to the module's tracepoints while somebody listens there, with a ring or without.

use crate::abi::record::{
    self, about, header, narrow, outcome, pair, Decision, Entry, Kind, Line, Outcome, Path, Subject,
};
use crate::abi::stats::ExitClass;
use crate::linux::events;
use crate::linux::lines::Lines;
use crate::linux::spin_irq::RawSpin;
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::static_lock_class;
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

    /// Whether there is room for record number `n` in a ring that stops.
    fn has_room(&self, n: u64) -> bool {
        n.wrapping_sub(self.consumed.load(Ordering::Relaxed)) <= self.mask
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
            ring <- RawSpin::new(None, c"Recorder.ring", static_lock_class!()),
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

/// Where a record goes that is lost: there is no such line.
const NOWHERE: usize = usize::MAX;

/// An exit under way: its line, and of the words that are written at its end what is known by now.
#[derive(Default)]
struct Open {
    at: usize,
    times: u64,
    about: u64,
    last: u64,
}

/// What a vCPU writes to.
pub(crate) struct Recorder {
    /// The vCPU's id.
    id: u32,
    ring: Option<Arc<Ring>>,
    // The next three are of the ring, nearer by.
    lines: Option<Arc<Lines>>,
    mask: u64,
    stops: bool,
    /// Somebody listens to the tracepoints.
    heard: bool,
    /// Records written.
    head: u64,
    /// Records lost.
    lost: u64,
    /// When the guest was entered last, it exited last, or the last exit was done with, whichever came last.
    since: u64,
    /// The exit under way.
    open: Open,
    /// What the tracepoints are told.
    words: [u64; record::WORDS],
}

impl Recorder {
    /// To `ring`, which nobody has written to, from now on, and, if they are heard, to the tracepoints.
    pub(crate) fn new(id: u32, ring: Option<Arc<Ring>>, heard: bool, now: u64) -> Self {
        Self {
            id,
            lines: ring.as_ref().map(|ring| ring.lines.clone()),
            mask: ring.as_ref().map_or(0, |ring| ring.mask),
            stops: ring.as_ref().is_some_and(|ring| ring.stops),
            ring,
            heard,
            head: 0,
            lost: 0,
            since: now,
            open: Open::default(),
            words: [0; record::WORDS],
        }
    }

    /// Whether it writes to this one.
    pub(crate) fn is_to(&self, ring: &Option<Arc<Ring>>) -> bool {
        match (&self.ring, ring) {
            (Some(own), Some(ring)) => Arc::ptr_eq(own, ring),
            (own, ring) => own.is_none() && ring.is_none(),
        }
    }

    /// Whether the tracepoints are heard.
    pub(crate) fn set_heard(&mut self, heard: bool) {
        self.heard = heard;
    }

    /// The guest has exited, at `now` by the host's TSC, on CPU `cpu`.
    #[inline(always)]
    pub(crate) fn exited(&mut self, now: u64, cpu: u32, rip: u64, subject: Subject, flags: u16) {
        let guest = now.wrapping_sub(self.since) as u32;
        self.since = now;
        let at = self.begin(now, rip, subject.address, subject.value);
        self.open = Open {
            at,
            times: pair(0, guest),
            about: about(Kind::Exit, cpu, flags),
            last: pair(0, subject.detail),
        };
    }

    /// The exit under way has been dealt with, at `now`: the shortest way, by repeating the entry before.
    #[inline(always)]
    pub(crate) fn repeated(&mut self, now: u64, class: ExitClass, decision: Decision) {
        let cycles = now.wrapping_sub(self.since) as u32;
        self.since = now;
        let open = &self.open;
        let about = open.about | outcome(class, decision, Path::Short);
        let (at, times, last) = (open.at, open.times | u64::from(cycles), open.last);
        self.end(at, [times, about, 0, last], Some(class));
    }

    /// The exit under way has been dealt with, at `now`; `entry` comes at once, if any.
    #[inline(always)]
    pub(crate) fn handled(&mut self, now: u64, result: &Outcome, entry: Entry) {
        let cycles = narrow(now.wrapping_sub(self.since));
        self.since = now;
        let open = &self.open;
        let known = open.about | u64::from(entry.flags) << 48;
        let about = known | outcome(result.class, result.decision, result.path);
        let event = pair(entry.inject, entry.error_code);
        let last = open.last | u64::from(result.reason);
        let (at, times) = (open.at, open.times | u64::from(cycles));
        self.end(at, [times, about, event, last], Some(result.class));
    }

    /// The guest is entered, at `now`, by the first entry of a stay.
    #[inline(never)]
    pub(crate) fn entered(&mut self, now: u64, cpu: u32, rip: u64, entry: Entry) {
        let outside = narrow(now.wrapping_sub(self.since));
        self.since = now;
        let at = self.begin(now, rip, 0, 0);
        let about = about(Kind::Entry, cpu, entry.flags);
        let event = pair(entry.inject, entry.error_code);
        self.end(at, [outside.into(), about, event, 0], None);
    }

    /// Writes the first half of a record; gives its line.
    #[inline(always)]
    fn begin(&mut self, now: u64, rip: u64, address: u64, value: u64) -> usize {
        if self.heard {
            self.words = [now, rip, address, value, 0, 0, 0, 0];
        }
        let at = if self.stops && !self.has_room() {
            NOWHERE
        } else {
            record::LINES_PER_PAGE.wrapping_add((self.head & self.mask) as usize)
        };
        let line = self.lines.as_ref().and_then(|lines| lines.get(at));
        if let Some([w0, w1, w2, w3, ..]) = line {
            w0.store(now, Ordering::Relaxed);
            w1.store(rip, Ordering::Relaxed);
            w2.store(address, Ordering::Relaxed);
            w3.store(value, Ordering::Relaxed);
        }
        at
    }

    #[cold]
    fn has_room(&self) -> bool {
        self.ring
            .as_ref()
            .is_some_and(|ring| ring.has_room(self.head))
    }

    /// Writes the second half of the record at `at`, and says that it is there.
    #[inline(always)]
    fn end(&mut self, at: usize, half: [u64; 4], class: Option<ExitClass>) {
        let lines = self.lines.as_ref();
        match lines.and_then(|lines| Some((lines.get(at)?, lines.get(0)?))) {
            Some(([.., w4, w5, w6, w7], first)) => {
                w4.store(half[0], Ordering::Relaxed);
                w5.store(half[1], Ordering::Relaxed);
                w6.store(half[2], Ordering::Relaxed);
                w7.store(half[3], Ordering::Relaxed);
                self.head = self.head.wrapping_add(1);
                first[header::WORD_HEAD].store(self.head, Ordering::Release);
            }
            None => self.lose(),
        }
        if self.heard {
            self.tell(half, class);
        }
    }

    /// There was no room for a record, or there is no ring.
    #[cold]
    fn lose(&mut self) {
        self.lost = self.lost.wrapping_add(1);
        if let Some(first) = self.lines.as_ref().and_then(|lines| lines.get(0)) {
            first[header::WORD_LOST].store(self.lost, Ordering::Release);
        }
    }

    /// Tells those who listen to the tracepoints.
    #[cold]
    fn tell(&mut self, half: [u64; 4], class: Option<ExitClass>) {
        let [.., w4, w5, w6, w7] = &mut self.words;
        [*w4, *w5, *w6, *w7] = half;
        match class {
            Some(class) => events::exit(self.id, class.name(), &self.words),
            None => events::entry(self.id, &self.words),
        }
    }
}
