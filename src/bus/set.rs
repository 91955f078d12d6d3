// SPDX-License-Identifier: GPL-2.0
//! What other CPUs may touch of a vCPU: whether it runs and where, what is asked of it, what interrupts wait for it.
//!
//! # Leaving the guest
//!
//! A vCPU announces with [`VcpuShared::enter_stay`] that it is about to enter, and reads requests, posted interrupts and the TLB generation after
//! that. Whoever wants something sets it first and looks for the announcement second. Between their store and their loads both
//! have a sequentially consistent fence. Fences have one order, and the side whose fence comes second loads what the other stored before
//! its own: the vCPU does not enter, or it gets an IPI, which makes it exit.

use crate::linux::once::Once;
use crate::linux::page::AtomicLine;
use crate::linux::preempt;
use crate::linux::sched::Worker;
use crate::linux::smp;
use crate::linux::wait::WaitCell;
use crate::x86::irqchip::msg::{ApicAddr, MsiFormat};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// vCPUs that a VM may have.
pub(crate) const MAX_VCPUS: usize = 64;
/// vCPU ids (APIC ids) are below this. An id above 254 can be addressed in x2APIC mode only.
pub(crate) const MAX_VCPU_ID: u32 = 4096;

/// How APIC ids are written, chosen by user space (KVM_CAP_X2APIC_API); bits of [`VcpuSet::x2apic_api`].
pub(crate) mod x2apic_api {
    /// KVM_X2APIC_API_USE_32BIT_IDS.
    pub(crate) const IDS_32BIT: u32 = 1 << 0;
    /// KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK.
    pub(crate) const NO_BROADCAST_QUIRK: u32 = 1 << 1;
    /// KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST.
    pub(crate) const SUPPRESS_EOI: u32 = 1 << 2;
    /// KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST.
    pub(crate) const NO_SUPPRESS_EOI: u32 = 1 << 3;
    pub(crate) const VALID: u32 = IDS_32BIT | NO_BROADCAST_QUIRK | SUPPRESS_EOI | NO_SUPPRESS_EOI;
}

/// Requests to a vCPU, handled before it enters the guest.
#[allow(missing_docs)]
pub(crate) mod request {
    /// Vectors wait in the descriptor's PIR. This is the descriptor's bit ON, which the processor clears when it takes them.
    pub(crate) const NOTIFIED: u32 = 1 << 0;
    /// An NMI waits in `nmi`.
    pub(crate) const NMI: u32 = 1 << 1;
    /// INIT arrived.
    pub(crate) const INIT: u32 = 1 << 2;
    /// SIPI arrived; the vector is in `sipi`.
    pub(crate) const SIPI: u32 = 1 << 3;
    /// The APIC timer fired.
    pub(crate) const TIMER: u32 = 1 << 4;
    /// The 8259s' INTR line may be up.
    pub(crate) const EXTINT: u32 = 1 << 5;
    /// Vectors wait in the posted bitmaps.
    pub(crate) const POSTED: u32 = 1 << 6;
    /// The filter of MSR accesses changed.
    pub(crate) const MSR_FILTER: u32 = 1 << 16;
    /// The VM's clock changed: write the pvclock page again.
    pub(crate) const CLOCK: u32 = 1 << 8;
    /// Another vCPU asks this one to go on after its HLT (KVM_HC_KICK_CPU).
    pub(crate) const UNHALT: u32 = 1 << 9;
}

/// What LINT0 of a local APIC is connected to.
mod lint0 {
    pub(super) const EXTINT: u32 = 1 << 0;
    pub(super) const NMI: u32 = 1 << 1;
}

const OUTSIDE: u32 = 0;
const IN_STAY: u32 = 1;

/// The shared part of a vCPU.
#[pin_data]
pub(crate) struct VcpuShared {
    /// APIC id at creation.
    pub(crate) id: u32,
    mode: AtomicU32,
    cpu: AtomicU32,
    /// Posted-interrupt descriptor (SDM 3C table 30-1): PIR, then the word with bit ON, whose other bits the processor leaves to
    /// software: all of them are the requests. On a page of its own where the processor uses it.
    descriptor: AtomicLine,
    /// The processor takes interrupts from the descriptor while the guest runs, when it is notified.
    direct: AtomicBool,
    /// Interrupt requests by vector, not yet taken into IRR: those that the vCPU has to look at before the guest gets them,
    /// because they are level-triggered or somebody waits for their end; where interrupts are not taken directly all of them.
    posted: [AtomicU32; 8],
    /// Of those the level-triggered ones.
    posted_level: [AtomicU32; 8],
    /// NMIs not yet taken (at most two matter).
    pub(crate) nmi: AtomicU32,
    /// Last SIPI vector.
    pub(crate) sipi: AtomicU32,
    /// Where the local APIC can be reached, as `ApicAddr` bits.
    apic_addr: AtomicU64,
    /// What LINT0 lets in: bits of [`lint0`].
    lint0: AtomicU32,
    /// The thread in KVM_RUN.
    #[pin]
    pub(crate) worker: Worker,
    /// It could run the guest, but another thread has its CPU.
    ready: AtomicBool,
    /// It looks for somebody to give its turn to, because its guest does nothing but wait.
    spinning: AtomicBool,
    /// Where the vCPU's thread sleeps in HLT or waiting for SIPI.
    #[pin]
    pub(crate) wait: WaitCell,
}

impl VcpuShared {
    /// Outside the guest, nothing asked for.
    pub(crate) fn new(id: u32) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                id,
                mode: AtomicU32::new(OUTSIDE),
                cpu: AtomicU32::new(0),
                descriptor: AtomicLine::new(crate::x86::vendor::choose::caps().is_some_and(|c| c.posted))?,
                direct: AtomicBool::new(false),
                posted: [const { AtomicU32::new(0) }; 8],
                posted_level: [const { AtomicU32::new(0) }; 8],
                nmi: AtomicU32::new(0),
                sipi: AtomicU32::new(0),
                apic_addr: AtomicU64::new(0),
                lint0: AtomicU32::new(0),
                worker <- Worker::new(),
                ready: AtomicBool::new(false),
                spinning: AtomicBool::new(false),
                wait <- WaitCell::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Announces a stay on `cpu`. Interrupts are off. Requests and generations have to be read after this.
    #[inline]
    pub(crate) fn enter_stay(&self, cpu: u32) {
        self.cpu.store(cpu, Ordering::Relaxed);
        self.ready.store(false, Ordering::Relaxed);
        // After the number of the CPU: who sees the announcement sends its IPI there.
        self.mode.store(IN_STAY, Ordering::Release);
        // Orders the announcement before all that is read from now on; pairs with the fences of `kick` and `stop_running`.
        core::sync::atomic::fence(Ordering::SeqCst);
    }

    /// The stay is over.
    #[inline]
    pub(crate) fn leave_stay(&self) {
        self.mode.store(OUTSIDE, Ordering::Release);
    }

    /// The request word of the descriptor.
    #[inline(always)]
    fn control(&self) -> &AtomicU32 {
        &self.descriptor.words()[8]
    }

    /// Physical address of the posted-interrupt descriptor.
    pub(crate) fn descriptor(&self) -> u64 {
        self.descriptor.phys()
    }

    /// Whether the processor takes interrupts from the descriptor from now on.
    pub(crate) fn set_direct(&self, on: bool) {
        self.direct.store(on, Ordering::Relaxed);
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
        self.control().fetch_or(bits, Ordering::SeqCst);
        self.kick();
    }

    /// Asks for something of the calling thread's own vCPU, which looks before it enters.
    #[inline]
    pub(crate) fn request_self(&self, bits: u32) {
        self.control().fetch_or(bits, Ordering::SeqCst);
    }

    /// INIT: what a start-up message before it asked for is void.
    pub(crate) fn request_init(&self) {
        self.control().fetch_and(!request::SIPI, Ordering::SeqCst);
        self.request(request::INIT);
    }

    /// Wakes the vCPU's thread, or makes it leave the guest.
    pub(crate) fn kick(&self) {
        self.interrupt(smp::send_reschedule);
    }

    /// Wakes the vCPU's thread, or interrupts its CPU during a stay by `send`.
    #[inline]
    fn interrupt(&self, send: impl FnOnce(u32)) {
        core::sync::atomic::fence(Ordering::SeqCst);
        if self.mode.load(Ordering::SeqCst) == IN_STAY {
            let cpu = self.cpu.load(Ordering::Relaxed);
            // Interrupts are off during a stay: on its CPU nobody but the stay itself gets here, and it looks at requests
            // before it enters.
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

    /// Posts a vector for the local APIC; `watched`: somebody waits for its end. Returns whether it was not posted already.
    pub(crate) fn post(&self, vector: u8, level: bool, watched: bool) -> bool {
        let (word, bit) = (usize::from(vector >> 5), 1u32 << (vector & 31));
        if !level && !watched && self.direct.load(Ordering::Relaxed) {
            return self.post_directly(word, bit);
        }
        let (Some(p), Some(l)) = (self.posted.get(word), self.posted_level.get(word)) else {
            return false;
        };
        if level {
            l.fetch_or(bit, Ordering::SeqCst);
        } else {
            l.fetch_and(!bit, Ordering::SeqCst);
        }
        let new = p.fetch_or(bit, Ordering::SeqCst) & bit == 0;
        self.request(request::POSTED);
        new
    }

    /// Posts by the descriptor. A CPU that runs the guest takes the vector without an exit.
    fn post_directly(&self, word: usize, bit: u32) -> bool {
        let new = self.descriptor.words()[word & 7].fetch_or(bit, Ordering::SeqCst) & bit == 0;
        // Whoever finds ON set before has no need to notify: that was done, and PIR has not been read since.
        if self.control().fetch_or(request::NOTIFIED, Ordering::SeqCst) & request::NOTIFIED == 0 {
            self.interrupt(smp::send_posted);
        }
        new
    }

    /// Takes all vectors of the descriptor, after [`request::NOTIFIED`] has been taken.
    pub(crate) fn take_direct(&self) -> [u32; 8] {
        let mut irr = [0; 8];
        for (to, from) in irr.iter_mut().zip(self.descriptor.words()) {
            if from.load(Ordering::Relaxed) != 0 {
                *to = from.swap(0, Ordering::SeqCst);
            }
        }
        irr
    }

    /// Takes all posted vectors: (requests, level-triggered among them).
    pub(crate) fn take_posted(&self) -> ([u32; 8], [u32; 8]) {
        let mut irr = [0; 8];
        let mut level = [0; 8];
        for ((p, l), (i, m)) in self
            .posted
            .iter()
            .zip(self.posted_level.iter())
            .zip(irr.iter_mut().zip(level.iter_mut()))
        {
            if p.load(Ordering::Relaxed) != 0 {
                *i = p.swap(0, Ordering::SeqCst);
                *m = l.load(Ordering::SeqCst) & *i;
            }
        }
        (irr, level)
    }

    /// The local APIC's address for message routing.
    #[inline]
    pub(crate) fn apic_addr(&self) -> ApicAddr {
        ApicAddr::from_bits(self.apic_addr.load(Ordering::Acquire))
    }

    /// Publishes what the local APIC's LINT0 lets in: the 8259s' interrupts, the 8254 as NMI.
    pub(crate) fn set_lint0(&self, extint: bool, nmi: bool) {
        let wires = u32::from(extint) * lint0::EXTINT | u32::from(nmi) * lint0::NMI;
        self.lint0.store(wires, Ordering::SeqCst);
    }

    /// The 8259s' INTR rises. Any context.
    pub(crate) fn intr_rises(&self) {
        if self.lint0.load(Ordering::SeqCst) & lint0::EXTINT != 0 {
            self.request(request::EXTINT);
        }
    }

    /// The 8254 ticks: an NMI where LINT0 is wired that way, for watchdogs. Any context.
    pub(crate) fn watchdog_tick(&self) {
        if self.lint0.load(Ordering::SeqCst) & lint0::NMI != 0 {
            self.nmi.fetch_add(1, Ordering::SeqCst);
            self.request(request::NMI);
        }
    }

    /// Publishes the local APIC's address.
    pub(crate) fn set_apic_addr(&self, a: ApicAddr) {
        self.apic_addr.store(a.to_bits(), Ordering::Release);
    }
}

/// The vCPUs of a VM, in order of creation. Grows only.
pub(crate) struct VcpuSet {
    list: KVec<Once<Arc<VcpuShared>>>,
    len: AtomicU32,
    x2apic_api: AtomicU32,
    /// Index of the last one that was given a turn.
    boosted: AtomicU32,
}

impl VcpuSet {
    /// No vCPU, room for [`MAX_VCPUS`].
    pub(crate) fn new() -> Result<Self> {
        let mut list = KVec::with_capacity(MAX_VCPUS, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..MAX_VCPUS {
            list.push_within_capacity(Once::new()).map_err(|_| ENOMEM)?;
        }
        Ok(Self {
            list,
            len: AtomicU32::new(0),
            x2apic_api: AtomicU32::new(0),
            boosted: AtomicU32::new(0),
        })
    }

    /// How APIC ids are written: bits of [`x2apic_api`].
    #[inline]
    pub(crate) fn x2apic_api(&self) -> u32 {
        self.x2apic_api.load(Ordering::Acquire)
    }

    /// Sets bits of [`x2apic_api`]; what `clear` has is taken back first.
    pub(crate) fn set_x2apic_api(&self, clear: u32, set: u32) {
        self.x2apic_api.fetch_and(!clear, Ordering::AcqRel);
        self.x2apic_api.fetch_or(set, Ordering::AcqRel);
    }

    /// How MSI addresses are read.
    #[inline]
    pub(crate) fn msi_format(&self) -> MsiFormat {
        let api = self.x2apic_api();
        MsiFormat {
            ids_32bit: api & x2apic_api::IDS_32BIT != 0,
            no_broadcast_quirk: api & x2apic_api::NO_BROADCAST_QUIRK != 0,
            ext_dest_id: false,
        }
    }

    /// Number of vCPUs.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.len.load(Ordering::Acquire)
    }

    /// Adds one; the caller excludes other additions. EINVAL when full.
    pub(crate) fn push(&self, v: Arc<VcpuShared>) -> Result {
        let n = self.len.load(Ordering::Relaxed);
        let slot = self.list.get(n as usize).ok_or(EINVAL)?;
        if !slot.set(v) {
            return Err(EINVAL);
        }
        self.len.store(n + 1, Ordering::Release);
        Ok(())
    }

    /// All of them.
    #[inline]
    pub(crate) fn iter(&self) -> impl Iterator<Item = ArcBorrow<'_, VcpuShared>> {
        self.list
            .iter()
            .take(self.len() as usize)
            .filter_map(Once::get)
    }

    /// The one that was created as number `index`, which is the id of most.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<ArcBorrow<'_, VcpuShared>> {
        self.list.get(index as usize)?.get()
    }

    /// Returns after every vCPU that was in the guest has left it. Interrupts are on; may be called under a spin lock.
    pub(crate) fn stop_running(&self) {
        core::sync::atomic::fence(Ordering::SeqCst);
        for v in self.iter() {
            if v.mode.load(Ordering::SeqCst) == IN_STAY {
                // The IPI is taken only with interrupts on, which means after the stay. An error means that the CPU is
                // offline, and so not in a stay.
                let _ = smp::call_on_cpu(v.cpu.load(Ordering::Relaxed), || {});
            }
        }
    }

    /// `spinner` waits in a loop, perhaps for one that has no CPU: gives its turn to the next vCPU of which that may be so. One that
    /// waits in a loop itself is not it. Sleeps.
    pub(crate) fn yield_from(&self, spinner: &VcpuShared) {
        let n = self.len();
        let last = self.boosted.load(Ordering::Relaxed);
        spinner.spinning.store(true, Ordering::Relaxed);
        let mut futile = 0;
        for k in 1..=n {
            let index = last.wrapping_add(k).checked_rem(n).unwrap_or(0);
            let Some(v) = self.get(index) else { continue };
            if core::ptr::eq(&*v, spinner) || v.spinning.load(Ordering::Relaxed) {
                continue;
            }
            match v.take_turn() {
                Some(true) => {
                    self.boosted.store(index, Ordering::Relaxed);
                    break;
                }
                Some(false) => {}
                None if futile == 2 => break,
                None => futile += 1,
            }
        }
        spinner.spinning.store(false, Ordering::Relaxed);
    }

    /// Makes every vCPU notice `bits`.
    pub(crate) fn request_all(&self, bits: u32) {
        for v in self.iter() {
            v.request(bits);
        }
    }
}
