// SPDX-License-Identifier: GPL-2.0
//! What other CPUs may touch of a vCPU: whether it runs and where, what is asked of it, what interrupts wait for it.
//!
//! # Leaving the guest
//!
//! A vCPU announces with [`VcpuShared::enter_stay`] that it is about to enter, and reads requests, posted interrupts
//! and the TLB generation after that. Whoever wants something sets it first and looks for the announcement second.
//! Between their store and their loads both have a sequentially consistent fence. Fences have one order, and the side
//! whose fence comes second loads what the other stored before its own: the vCPU does not enter, or it gets an IPI,
//! which makes it exit.

use crate::bus::recorder::Wanted;
use crate::linux::irqflags::ThisCpu;
use crate::linux::once::Once;
use crate::linux::page::AtomicLine;
use crate::linux::preempt;
use crate::linux::sched::Worker;
use crate::linux::smp::{self, CpuSet};
use crate::linux::spin_irq::RawSpin;
use crate::linux::wait::WaitCell;
use crate::mem::invalidations::Gate;
use crate::mem::ports::StopRunning;
use crate::nospec::Nospec;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::sync::{Arc, ArcBorrow};

/// The states of all these vCPUs, none of which runs; `lock` gives one, or nothing at once. EBUSY: one runs, or is in
/// an ioctl.
pub(crate) fn hold<'a, V, G>(
    vcpus: &'a [Arc<V>],
    lock: impl Fn(&'a V) -> Option<G>,
) -> Result<KVec<G>> {
    let mut held = KVec::with_capacity(vcpus.len(), GFP_KERNEL_ACCOUNT)?;
    for vcpu in vcpus {
        held.push_within_capacity(lock(vcpu).ok_or(EBUSY)?)
            .map_err(|_| ENOMEM)?;
    }
    Ok(held)
}

/// vCPUs that a VM may have.
pub(crate) const MAX_VCPUS: usize = 1024;
/// vCPU ids (APIC ids) are below this. An id above 254 can be addressed in x2APIC mode only.
pub(crate) const MAX_VCPU_ID: u32 = 4096;

/// vCPUs for which every VM has room; there is room for more in pieces of [`PIECE`], each made with its first vCPU.
const FIRST: usize = 16;
const PIECE: usize = 64;

/// No more vCPUs than this are gone through with interrupts off for something that a guest does.
pub(crate) const IN_ONE_GO: u32 = 64;

/// Word of [`VcpuShared::line`] that holds the requests.
const REQUESTS: usize = 8;

const OUTSIDE: u32 = 0;
const IN_STAY: u32 = 1;

/// The shared part of a vCPU.
#[pin_data]
pub(crate) struct VcpuShared<A> {
    /// APIC id at creation.
    pub(crate) id: u32,
    /// Number in order of creation.
    pub(crate) index: u32,
    mode: AtomicU32,
    cpu: AtomicU32,
    /// One cache line of words that others set: [`REQUESTS`] says what is asked of the vCPU, the other words are the
    /// architecture's. On a page of its own where the processor reads it.
    line: AtomicLine,
    /// Whether the vCPU's thread is about to map memory.
    pub(crate) gate: Gate,
    /// The thread in KVM_RUN.
    #[pin]
    pub(crate) worker: Worker,
    /// The vCPU could run the guest, but another thread has its CPU.
    ready: AtomicBool,
    /// The vCPU looks for somebody to give its turn to, because its guest does nothing but wait.
    spinning: AtomicBool,
    /// Where the vCPU's thread sleeps in HLT or waiting for SIPI.
    #[pin]
    pub(crate) wait: WaitCell,
    /// Where what it does is to be recorded.
    #[pin]
    pub(crate) recording: Wanted,
    /// What the architecture shares of a vCPU.
    pub(crate) arch: A,
}

impl<A> VcpuShared<A> {
    /// Outside the guest, nothing asked for. `own_page`: the processor reads [`VcpuShared::line`].
    pub(crate) fn new(id: u32, index: u32, own_page: bool, arch: A) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                id,
                index,
                mode: AtomicU32::new(OUTSIDE),
                cpu: AtomicU32::new(0),
                line: AtomicLine::new(own_page)?,
                gate: Gate::new(),
                worker <- Worker::new(),
                ready: AtomicBool::new(false),
                spinning: AtomicBool::new(false),
                wait <- WaitCell::new(),
                recording <- Wanted::new(),
                arch,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Announces a stay on this CPU. Requests and generations have to be read after this.
    #[inline]
    pub(crate) fn enter_stay(&self, this_cpu: ThisCpu<'_>) {
        self.cpu.store(this_cpu.number(), Ordering::Relaxed);
        self.ready.store(false, Ordering::Relaxed);
        // After the number of the CPU: who sees the announcement sends its IPI there.
        self.mode.store(IN_STAY, Ordering::Release);
        // Orders the announcement before all that is read from now on; pairs with the fences of `kick` and
        // `stop_running`.
        core::sync::atomic::fence(Ordering::SeqCst);
    }

    /// The stay is over.
    #[inline]
    pub(crate) fn leave_stay(&self) {
        self.mode.store(OUTSIDE, Ordering::Release);
    }

    /// The line that holds the requests.
    #[inline(always)]
    pub(crate) fn line(&self) -> &AtomicLine {
        &self.line
    }

    /// The request word.
    #[inline(always)]
    fn control(&self) -> &AtomicU32 {
        &self.line.words()[REQUESTS]
    }

    /// Requests that wait.
    #[inline]
    pub(crate) fn requests(&self) -> u32 {
        self.control().load(Ordering::SeqCst)
    }

    /// Takes the requests in `mask`.
    #[inline]
    pub(crate) fn take_requests(&self, mask: u32) -> u32 {
        if self.control().load(Ordering::Acquire) & mask == 0 {
            return 0;
        }
        self.control().fetch_and(!mask, Ordering::SeqCst) & mask
    }

    /// Asks for something and makes the vCPU notice. From any context.
    pub(crate) fn request(&self, bits: u32) {
        self.request_self(bits);
        self.kick();
    }

    /// Asks for something of the calling thread's own vCPU, which looks before it enters: nobody is told. Returns which
    /// of `bits` were asked for before.
    #[inline]
    pub(crate) fn request_self(&self, bits: u32) -> u32 {
        self.control().fetch_or(bits, Ordering::SeqCst) & bits
    }

    /// Takes back requests that nobody waits for any more.
    pub(crate) fn clear_requests(&self, bits: u32) {
        self.control().fetch_and(!bits, Ordering::SeqCst);
    }

    /// Wakes the vCPU's thread, or makes it leave the guest.
    pub(crate) fn kick(&self) {
        self.interrupt(smp::send_reschedule);
    }

    /// Wakes the vCPU's thread, or interrupts its CPU during a stay by `send`.
    #[inline]
    pub(crate) fn interrupt(&self, send: impl FnOnce(u32)) {
        core::sync::atomic::fence(Ordering::SeqCst);
        if self.mode.load(Ordering::SeqCst) == IN_STAY {
            let cpu = self.cpu.load(Ordering::Relaxed);
            // Interrupts are off during a stay: on its CPU nobody but the stay itself gets here, and it looks at
            // requests before it enters.
            if cpu != preempt::raw_cpu() {
                send(cpu);
            }
        } else if self.wait.wake() {
            self.set_ready();
        }
    }

    /// The vCPU's thread has something to do, but not yet a CPU. A hint; a stay ends it.
    #[inline]
    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Gives the calling thread's turn to this vCPU, if it waits for a CPU. Sleeps. As [`Worker::yield_to`].
    pub(crate) fn take_turn(&self) -> Option<bool> {
        if self.ready.load(Ordering::Relaxed) {
            self.worker.yield_to()
        } else {
            Some(false)
        }
    }
}

/// Where a vCPU stands.
type Place<A> = Once<Arc<VcpuShared<A>>>;

/// The vCPUs of a VM, in order of creation. Grows only.
#[pin_data]
pub(crate) struct VcpuSet<A: 'static, S> {
    first: [Place<A>; FIRST],
    /// The others; the places of the first ones are empty here.
    more: [Once<KBox<[Place<A>; PIECE]>>; MAX_VCPUS / PIECE],
    /// For ids that are not indices: the index plus one, else zero. Made for the first such id.
    by_id: Once<KBox<[AtomicU16; MAX_VCPU_ID as usize]>>,
    len: AtomicU32,
    /// Index of the last one that was given a turn.
    boosted: AtomicU32,
    /// Where `others_wait` goes on in large sets.
    looked: AtomicU32,
    /// Where `stop_running` notes CPUs.
    #[pin]
    stopped: RawSpin<CpuSet>,
    /// What the architecture keeps for all of them.
    pub(crate) arch: S,
}

impl<A: 'static, S> VcpuSet<A, S> {
    /// No vCPU, room for [`MAX_VCPUS`].
    pub(crate) fn new(arch: S) -> Result<Arc<Self>> {
        let cpus = CpuSet::new()?;
        let set = pin_init!(Self {
            first: [const { Once::new() }; FIRST],
            more: [const { Once::new() }; MAX_VCPUS / PIECE],
            by_id: Once::new(),
            len: AtomicU32::new(0),
            boosted: AtomicU32::new(0),
            looked: AtomicU32::new(0),
            stopped <- RawSpin::new(cpus, c"VcpuSet.stopped", static_lock_class!()),
            arch,
        });
        Arc::pin_init(set, GFP_KERNEL_ACCOUNT)
    }

    /// Number of vCPUs.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.len.load(Ordering::Acquire)
    }

    /// Adds one, whose index is [`VcpuSet::len`]; the caller excludes other additions. Sleeps. EINVAL when full,
    /// ENOMEM.
    pub(crate) fn push(&self, v: Arc<VcpuShared<A>>) -> Result {
        let n = self.len.load(Ordering::Relaxed);
        let (id, index) = (v.id, n as usize);
        if v.index != n {
            return Err(EINVAL);
        }
        let number = if id == n {
            None
        } else {
            let table = self.by_id.get_or_make(|| {
                let zeros = pin_init::init_array_from_fn(|_| AtomicU16::new(0));
                KBox::init(zeros, GFP_KERNEL_ACCOUNT)
            })?;
            Some(table.get_nospec(id as usize).ok_or(EINVAL)?)
        };
        let place = match self.first.get(index) {
            Some(place) => place,
            None => {
                let piece = self.more.get(index / PIECE).ok_or(EINVAL)?;
                let piece = piece.get_or_make(|| {
                    let places = [const { Once::new() }; PIECE];
                    Ok(KBox::new(places, GFP_KERNEL_ACCOUNT)?)
                })?;
                piece.get(index % PIECE).ok_or(EINVAL)?
            }
        };
        if !place.set(v) {
            return Err(EINVAL);
        }
        if let Some(number) = number {
            number.store(n as u16 + 1, Ordering::Release);
        }
        // Sequentially consistent for `await_faults`: one that does not see the vCPU began before its first fault.
        self.len.store(n + 1, Ordering::SeqCst);
        Ok(())
    }

    /// All of them.
    #[inline]
    pub(crate) fn iter(&self) -> impl Iterator<Item = ArcBorrow<'_, VcpuShared<A>>> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// The one that was created as number `index`, which is the id of most.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<ArcBorrow<'_, VcpuShared<A>>> {
        match self.first.get_nospec(index as usize) {
            Some(place) => place.get(),
            None => self.get_more(index as usize),
        }
    }

    #[inline(never)]
    fn get_more(&self, index: usize) -> Option<ArcBorrow<'_, VcpuShared<A>>> {
        let piece = self.more.get_nospec(index / PIECE)?.get()?;
        piece.get_nospec(index % PIECE)?.get()
    }

    /// The one with this id.
    #[inline]
    pub(crate) fn with_id(&self, id: u32) -> Option<ArcBorrow<'_, VcpuShared<A>>> {
        match self.get(id) {
            Some(v) if v.id == id => Some(v),
            _ => self.with_other_id(id),
        }
    }

    #[inline(never)]
    fn with_other_id(&self, id: u32) -> Option<ArcBorrow<'_, VcpuShared<A>>> {
        let numbers = self.by_id.get()?;
        let number = numbers.get_nospec(id as usize)?;
        self.get(u32::from(number.load(Ordering::Acquire)).checked_sub(1)?)
    }

    /// Whether a vCPU other than `spinner` waits for a CPU, as far as is known. Looks at no more than [`IN_ONE_GO`];
    /// the next call looks at the next ones.
    pub(crate) fn others_wait(&self, spinner: &VcpuShared<A>) -> bool {
        let waits = |v: ArcBorrow<'_, VcpuShared<A>>| {
            v.ready.load(Ordering::Relaxed)
                && !v.spinning.load(Ordering::Relaxed)
                && !core::ptr::eq(&*v, spinner)
        };
        let n = self.len();
        if n <= IN_ONE_GO {
            return self.iter().any(waits);
        }
        let from = self.looked.fetch_add(IN_ONE_GO, Ordering::Relaxed);
        (0..IN_ONE_GO).any(|k| {
            let index = from.wrapping_add(k).checked_rem(n).unwrap_or(0);
            self.get(index).is_some_and(waits)
        })
    }

    /// `spinner` waits in a loop, perhaps for one that has no CPU: gives its turn to the next vCPU of which that may be
    /// so. One that waits in a loop itself is not it. Returns whether one got it. Sleeps.
    pub(crate) fn yield_from(&self, spinner: &VcpuShared<A>) -> bool {
        let n = self.len();
        let last = self.boosted.load(Ordering::Relaxed);
        spinner.spinning.store(true, Ordering::Relaxed);
        let (mut futile, mut given) = (0, false);
        for k in 1..=n {
            let index = last.wrapping_add(k).checked_rem(n).unwrap_or(0);
            let Some(v) = self.get(index) else { continue };
            if core::ptr::eq(&*v, spinner) || v.spinning.load(Ordering::Relaxed) {
                continue;
            }
            match v.take_turn() {
                Some(true) => {
                    self.boosted.store(index, Ordering::Relaxed);
                    given = true;
                    break;
                }
                Some(false) => {}
                None if futile == 2 => break,
                None => futile += 1,
            }
        }
        spinner.spinning.store(false, Ordering::Relaxed);
        given
    }

    /// Makes every vCPU notice `bits`.
    pub(crate) fn request_all(&self, bits: u32) {
        for v in self.iter() {
            v.request(bits);
        }
    }
}

impl<A: Send + Sync + 'static, S: Send + Sync> VcpuSet<A, S> {
    /// As [`StopRunning::stop_running`], for those that `wanted` chooses.
    pub(crate) fn stop(&self, wanted: impl Fn(&VcpuShared<A>) -> bool) {
        core::sync::atomic::fence(Ordering::SeqCst);
        let mut in_stay = self
            .iter()
            .filter(|v| v.mode.load(Ordering::SeqCst) == IN_STAY && wanted(v))
            .peekable();
        if in_stay.peek().is_none() {
            return;
        }
        let mut cpus = self.stopped.lock();
        in_stay.for_each(|v| cpus.insert(v.cpu.load(Ordering::Relaxed)));
        // The interrupt is taken only with interrupts on, which means after the stay. A CPU that is offline is in none,
        // nor is this one.
        cpus.interrupt();
    }
}

impl<A: Send + Sync + 'static, S: Send + Sync> StopRunning for VcpuSet<A, S> {
    fn stop_running(&self) {
        self.stop(|_| true);
    }

    fn await_faults(&self) -> u32 {
        core::sync::atomic::fence(Ordering::SeqCst);
        let waits = self.iter().map(|v| u32::from(v.gate.wait()));
        waits.fold(0, u32::wrapping_add)
    }
}
