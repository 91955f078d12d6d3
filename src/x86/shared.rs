// SPDX-License-Identifier: GPL-2.0
//! What other CPUs may touch of an x86 vCPU: the interrupts that wait for it, and how messages find its local APIC.
//!
//! The request word and the words before it are a posted-interrupt descriptor (SDM 3C table 30-1): PIR, then the word
//! with bit ON, whose other bits the processor leaves to software; all of them are requests.

use crate::bus::set::{self, IN_ONE_GO, MAX_VCPUS, MAX_VCPU_ID};
use crate::linux::once::Once;
use crate::linux::vectors;
use crate::mem::ports::RingFull;
use crate::x86::hyperv::published::Published;
use crate::x86::irqchip::addressees::{self, Noted};
use crate::x86::irqchip::msg::{ApicAddr, MsiFormat};
use crate::x86::vendor::choose;
use core::sync::atomic::{fence, AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;

/// What other CPUs may touch of a vCPU.
pub(crate) type VcpuShared = set::VcpuShared<Posted>;

/// The vCPUs of a VM.
pub(crate) type VcpuSet = set::VcpuSet<Posted, Wiring>;

const _: () = assert!(addressees::INDICES == MAX_VCPUS && addressees::IDS == MAX_VCPU_ID);

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
    /// Vectors wait in the descriptor's PIR. This is the descriptor's bit ON, which the processor clears when it takes
    /// them.
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
    /// An SMI arrived.
    pub(crate) const SMI: u32 = 1 << 7;
    /// What the VM says about optional exits, MSR accesses or CR0.CD changed.
    pub(crate) const EXITS: u32 = 1 << 16;
    /// The VM's clock changed: write the pvclock page again.
    pub(crate) const CLOCK: u32 = 1 << 8;
    /// Another vCPU asks this one to go on after its HLT (KVM_HC_KICK_CPU).
    pub(crate) const UNHALT: u32 = 1 << 9;
    /// A synthetic timer of Hyper-V's is to be looked at, or its TSC_INVARIANT_CONTROL changed.
    pub(crate) const HYPERV: u32 = 1 << 12;
    /// Another vCPU wants this one's translations flushed.
    pub(crate) const FLUSH: u32 = 1 << 11;
    /// The dirty ring counts as full, or did so.
    pub(crate) const RING_FULL: u32 = 1 << 10;
    /// Asynchronous page faults: a page has been brought, or the guest can be told of one.
    pub(crate) const ASYNC_PF: u32 = 1 << 13;
    /// What the vCPU does is to be recorded elsewhere, or nowhere.
    pub(crate) const RECORD: u32 = 1 << 14;
    /// Those that only KVM_RUN looks at.
    pub(crate) const AT_ENTRY: u32 = RING_FULL | ASYNC_PF;

    // One bit each.
    const _: () = {
        let all = [
            NOTIFIED, NMI, INIT, SIPI, TIMER, EXTINT, POSTED, SMI, EXITS, CLOCK, UNHALT, HYPERV,
            FLUSH, RING_FULL, ASYNC_PF, RECORD,
        ];
        let (mut seen, mut n) = (0, 0);
        while n < all.len() {
            assert!(all[n].is_power_of_two() && seen & all[n] == 0);
            seen |= all[n];
            n += 1;
        }
    };
}

/// What LINT0 of a local APIC is connected to.
mod lint0 {
    pub(super) const EXTINT: u32 = 1 << 0;
    pub(super) const NMI: u32 = 1 << 1;

    pub(super) fn wires(extint: bool, nmi: bool) -> u32 {
        u32::from(extint) * EXTINT | u32::from(nmi) * NMI
    }
}

/// Interrupts that were sent to a vCPU and not yet taken, and what senders need to know.
pub(crate) struct Posted {
    /// The processor takes interrupts from the descriptor while the guest runs, when it is notified.
    direct: AtomicBool,
    /// Interrupt requests by vector, not yet taken into IRR: those that the vCPU has to look at before the guest gets
    /// them, because they are level-triggered or somebody waits for their end; where interrupts are not taken directly
    /// all of them.
    posted: [AtomicU32; 8],
    /// Vectors that are level-triggered: of those posted, and of those taken the ones that may be so in TMR.
    posted_level: [AtomicU32; 8],
    /// NMIs not yet taken (at most two matter).
    pub(crate) nmi: AtomicU32,
    /// Last SIPI vector.
    pub(crate) sipi: AtomicU32,
    /// Where the local APIC can be reached, as `ApicAddr` bits.
    apic_addr: AtomicU64,
    /// What LINT0 lets in: bits of [`lint0`].
    lint0: AtomicU32,
    /// Hyper-V's VP_INDEX.
    pub(crate) vp_index: AtomicU32,
    /// Hyper-V's SynIC, if it is in use.
    synic: Once<KBox<Published>>,
}

impl VcpuShared {
    /// Outside the guest, nothing asked for.
    pub(crate) fn create(id: u32, index: u32) -> Result<Arc<Self>> {
        let posted = Posted {
            direct: AtomicBool::new(false),
            posted: [const { AtomicU32::new(0) }; 8],
            posted_level: [const { AtomicU32::new(0) }; 8],
            nmi: AtomicU32::new(0),
            sipi: AtomicU32::new(0),
            apic_addr: AtomicU64::new(0),
            lint0: AtomicU32::new(0),
            vp_index: AtomicU32::new(index),
            synic: Once::new(),
        };
        Self::new(id, index, choose::caps().is_some_and(|c| c.posted), posted)
    }

    /// Physical address of the posted-interrupt descriptor.
    pub(crate) fn descriptor(&self) -> u64 {
        self.line().phys()
    }

    /// Hyper-V's number of the vCPU.
    pub(crate) fn vp_index(&self) -> u32 {
        self.arch.vp_index.load(Ordering::Relaxed)
    }

    /// Hyper-V's SynIC, if it is in use.
    #[inline]
    pub(crate) fn synic(&self) -> Option<&Published> {
        self.arch.synic.get()
    }

    /// The same, made if it is not there. ENOMEM.
    pub(crate) fn make_synic(&self) -> Result<&Published> {
        self.arch
            .synic
            .get_or_make(|| Ok(KBox::new(Published::new(), GFP_KERNEL_ACCOUNT)?))
    }

    /// Whether the processor takes interrupts from the descriptor from now on.
    pub(crate) fn set_direct(&self, on: bool) {
        self.arch.direct.store(on, Ordering::Relaxed);
    }

    /// INIT: what a start-up message before it asked for is void.
    pub(crate) fn request_init(&self) {
        self.clear_requests(request::SIPI);
        self.request(request::INIT);
    }

    /// Posts a vector for the local APIC; `watched`: somebody waits for its end. Returns whether it was not posted
    /// already.
    pub(crate) fn post(&self, vector: u8, level: bool, watched: bool) -> bool {
        let (word, bit) = (usize::from(vector >> 5), 1u32 << (vector & 31));
        let (Some(p), Some(l)) = (self.arch.posted.get(word), self.arch.posted_level.get(word))
        else {
            return false;
        };
        // The processor leaves TMR alone: an edge after a level is the vCPU's.
        let plain = !level && !watched && l.load(Ordering::Relaxed) & bit == 0;
        if plain && self.arch.direct.load(Ordering::Relaxed) {
            return self.post_directly(word, bit);
        }
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
        let new = self.line().words()[word & 7].fetch_or(bit, Ordering::SeqCst) & bit == 0;
        // Whoever finds ON set before has no need to notify: that was done, and PIR has not been read since.
        if self.request_self(request::NOTIFIED) == 0 {
            self.interrupt(vectors::send_posted);
        }
        new
    }

    /// Takes all vectors of the descriptor, after [`request::NOTIFIED`] has been taken.
    pub(crate) fn take_direct(&self) -> [u32; 8] {
        let mut irr = [0; 8];
        for (to, from) in irr.iter_mut().zip(self.line().words()) {
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
            .arch
            .posted
            .iter()
            .zip(self.arch.posted_level.iter())
            .zip(irr.iter_mut().zip(level.iter_mut()))
        {
            if p.load(Ordering::Relaxed) != 0 {
                *i = p.swap(0, Ordering::SeqCst);
                *m = l.load(Ordering::SeqCst) & *i;
            }
        }
        (irr, level)
    }

    /// TMR was set to this by its owner. What is posted stays what it is.
    pub(crate) fn set_level(&self, tmr: &[u32; 8]) {
        for (to, from) in self.arch.posted_level.iter().zip(tmr) {
            to.fetch_or(*from, Ordering::SeqCst);
        }
    }

    /// The local APIC's address for message routing.
    #[inline]
    pub(crate) fn apic_addr(&self) -> ApicAddr {
        ApicAddr::from_bits(self.arch.apic_addr.load(Ordering::Acquire))
    }

    /// Where the local APIC of a new vCPU can be reached, and what its LINT0 lets in: the 8259s' interrupts, the 8254
    /// as NMI. Before [`VcpuSet::add`].
    pub(crate) fn set_initial(&self, addr: &ApicAddr, extint: bool, nmi: bool) {
        self.set_apic_addr(addr);
        self.arch
            .lint0
            .store(lint0::wires(extint, nmi), Ordering::SeqCst);
    }

    fn set_apic_addr(&self, addr: &ApicAddr) {
        self.arch.apic_addr.store(addr.to_bits(), Ordering::Release);
    }
}

impl RingFull for VcpuShared {
    fn ring_full(&self) {
        self.request_self(request::RING_FULL);
    }
}

/// What the local APICs of a VM have in common, and how they are found.
pub(crate) struct Wiring {
    /// How APIC ids are written: bits of [`x2apic_api`].
    api: AtomicU32,
    /// Where messages to some of many vCPUs look; there with the first vCPU beyond [`IN_ONE_GO`].
    noted: Once<KBox<Noted>>,
    /// vCPUs whose LINT0 lets the 8259s' interrupts in.
    extint: AtomicU32,
    /// vCPUs whose LINT0 is an NMI.
    nmi: AtomicU32,
}

impl Wiring {
    /// A vCPU's LINT0 is wired in another way.
    fn count_wires(&self, old: u32, new: u32) {
        for (bit, count) in [(lint0::EXTINT, &self.extint), (lint0::NMI, &self.nmi)] {
            if new & !old & bit != 0 {
                count.fetch_add(1, Ordering::SeqCst);
            } else if old & !new & bit != 0 {
                count.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}

impl VcpuSet {
    /// No vCPU, and KVM's defaults.
    pub(crate) fn create() -> Result<Arc<Self>> {
        Self::new(Wiring {
            api: AtomicU32::new(0),
            noted: Once::new(),
            extint: AtomicU32::new(0),
            nmi: AtomicU32::new(0),
        })
    }

    /// Adds a vCPU; as [`VcpuSet::push`].
    pub(crate) fn add(&self, v: Arc<VcpuShared>) -> Result {
        let n = self.len();
        if n >= IN_ONE_GO {
            let noted = self
                .arch
                .noted
                .get_or_make(|| Ok(KBox::new(Noted::new(), GFP_KERNEL_ACCOUNT)?))?;
            if n == IN_ONE_GO {
                // Whoever publishes an address looks for the notes after that. Either that one finds them or its
                // address is seen here; pairs with the fence of `publish_addr`.
                fence(Ordering::SeqCst);
                for other in self.iter() {
                    noted.add(other.index, &other.apic_addr());
                }
            }
            noted.add(v.index, &v.apic_addr());
        }
        let wires = v.arch.lint0.load(Ordering::Relaxed);
        self.arch.count_wires(0, wires);
        self.push(v)
            .inspect_err(|_| self.arch.count_wires(wires, 0))
    }

    /// Where messages to some of many vCPUs look, in large VMs.
    #[inline]
    pub(crate) fn noted(&self) -> Option<&Noted> {
        self.arch.noted.get()
    }

    /// Publishes the address of the local APIC of `v`.
    pub(crate) fn publish_addr(&self, v: &VcpuShared, addr: &ApicAddr) {
        v.set_apic_addr(addr);
        fence(Ordering::SeqCst);
        if let Some(noted) = self.noted() {
            noted.note(v.index, addr);
        }
    }

    /// Publishes what LINT0 of the local APIC of `v` lets in: the 8259s' interrupts, the 8254 as NMI.
    pub(crate) fn publish_lint0(&self, v: &VcpuShared, extint: bool, nmi: bool) {
        let wires = lint0::wires(extint, nmi);
        self.arch
            .count_wires(v.arch.lint0.swap(wires, Ordering::SeqCst), wires);
    }

    /// The vCPUs whose LINT0 has `wire`, of which there are `count`.
    #[inline]
    fn wired(&self, wire: u32, count: &AtomicU32, f: impl Fn(&VcpuShared)) {
        let mut rest = count.load(Ordering::SeqCst);
        if rest == 0 {
            return;
        }
        for v in self.iter() {
            if v.arch.lint0.load(Ordering::SeqCst) & wire != 0 {
                f(&v);
                rest = rest.saturating_sub(1);
                if rest == 0 {
                    break;
                }
            }
        }
    }

    /// The 8259s' INTR rises. Any context.
    pub(crate) fn intr_rises(&self) {
        self.wired(lint0::EXTINT, &self.arch.extint, |v| {
            v.request(request::EXTINT)
        });
    }

    /// The 8254 ticks: an NMI where LINT0 is wired that way, for watchdogs. Any context.
    pub(crate) fn watchdog_tick(&self) {
        self.wired(lint0::NMI, &self.arch.nmi, |v| {
            v.arch.nmi.fetch_add(1, Ordering::SeqCst);
            v.request(request::NMI);
        });
    }

    /// How APIC ids are written: bits of [`x2apic_api`].
    #[inline]
    pub(crate) fn x2apic_api(&self) -> u32 {
        self.arch.api.load(Ordering::Acquire)
    }

    /// Sets bits of [`x2apic_api`]; what `clear` has is taken back first.
    pub(crate) fn set_x2apic_api(&self, clear: u32, set: u32) {
        self.arch.api.fetch_and(!clear, Ordering::AcqRel);
        self.arch.api.fetch_or(set, Ordering::AcqRel);
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
}
