// SPDX-License-Identifier: GPL-2.0
//! A vCPU's part of Hyper-V's interface. This is data, which the vCPU's state holds; what is done with it stands above.

use crate::linux::hrtimer::{Timer, TimerCallback};
use crate::linux::sched;
use crate::mem::addr::Gpa;
use crate::x86::hyperv::cpuid::Granted;
use crate::x86::hyperv::defs::TIMERS;
use crate::x86::hyperv::published::Published;
use crate::x86::hyperv::stimer::Stimer;
use crate::x86::hyperv::synic::{self, Synic};
use crate::x86::shared::{request, VcpuShared};
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;

/// What the host's timer does for a synthetic one: it asks the vCPU to look at it.
pub(super) struct Expiry {
    shared: Arc<VcpuShared>,
    number: u32,
}

impl TimerCallback for Expiry {
    fn expired(&self) -> Option<u64> {
        if let Some(p) = self.shared.synic() {
            p.set_due(self.number);
            self.shared.request(request::HYPERV);
        }
        None
    }
}

/// What user space is to be told before the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    /// The guest has written this register of the SynIC (KVM_EXIT_HYPERV_SYNIC).
    Synic(u32),
    /// The guest has written this register of synthetic debugging (KVM_EXIT_HYPERV_SYNDBG).
    Debug(u32),
    /// KVM_SYSTEM_EVENT_CRASH.
    Crash,
    /// KVM_SYSTEM_EVENT_RESET.
    Reset,
}

/// What a guest can find out about.
#[derive(Clone, Default)]
pub(super) struct Registers {
    pub(super) synic: Synic,
    pub(super) timers: [Stimer; TIMERS],
    /// VP_ASSIST_PAGE.
    pub(super) assist_page: u64,
    /// Added to the thread's time it makes VP_RUNTIME.
    run_time_offset: u64,
    /// Vectors with automatic EOI that wait to be injected, where the processor delivers the others by itself.
    held: [u32; 8],
    /// The VM's TSC_INVARIANT_CONTROL as this vCPU's CPUID shows it.
    pub(super) invariant_exposed: bool,
}

/// What the calling thread has run, in 100 ns.
fn thread_time() -> u64 {
    sched::run_time() / 100
}

impl Registers {
    /// VP_RUNTIME.
    pub(super) fn run_time(&self) -> u64 {
        thread_time().wrapping_add(self.run_time_offset)
    }

    /// Sets VP_RUNTIME.
    pub(super) fn set_run_time(&mut self, value: u64) {
        self.run_time_offset = value.wrapping_sub(thread_time());
    }
}

/// A vCPU's part.
pub(crate) struct HypervVcpu {
    /// What its CPUID says.
    pub(crate) granted: Granted,
    /// KVM_CAP_HYPERV_ENFORCE_CPUID: what CPUID does not name is not there.
    pub(crate) enforce: bool,
    pub(super) registers: Registers,
    /// What user space is to be told.
    pub(super) owed: Option<Owed>,
    /// The page of messages has to be brought by user space.
    pub(super) missing: Option<Gpa>,
    /// One for each synthetic timer, made with the SynIC.
    pub(super) host_timers: KVec<Timer<Expiry>>,
}

/// A vCPU's part as it was at some moment.
pub(crate) struct Image {
    registers: Registers,
    run_time: u64,
    vp_index: u32,
}

impl Image {
    /// Whether only a vCPU with a SynIC can become this.
    pub(crate) fn has_synic(&self) -> bool {
        self.registers.synic.active
    }
}

impl HypervVcpu {
    /// As after RESET.
    pub(crate) fn new() -> Result<KBox<Self>> {
        Ok(KBox::new(
            Self {
                granted: Granted::default(),
                enforce: false,
                registers: Registers::default(),
                owed: None,
                missing: None,
                host_timers: KVec::new(),
            },
            GFP_KERNEL_ACCOUNT,
        )?)
    }

    /// KVM_CAP_HYPERV_SYNIC, or (`keep_pages`) KVM_CAP_HYPERV_SYNIC2. ENOMEM.
    pub(crate) fn activate_synic(&mut self, shared: &Arc<VcpuShared>, keep_pages: bool) -> Result {
        let published = shared.make_synic()?;
        while self.host_timers.len() < TIMERS {
            let expiry = Expiry {
                shared: shared.clone(),
                number: self.host_timers.len() as u32,
            };
            self.host_timers
                .push(Timer::new(expiry)?, GFP_KERNEL_ACCOUNT)?;
        }
        self.registers.synic.activate(keep_pages);
        self.publish(published);
        Ok(())
    }

    /// The SINTs have changed.
    pub(super) fn publish(&self, published: &Published) {
        let synic = &self.registers.synic;
        published.publish(synic.active, synic.sints());
    }

    /// Whether CPUID is not to tell of an invariant TSC.
    pub(crate) fn hides_invariant_tsc(&self) -> bool {
        self.granted.controls_invariant_tsc() && !self.registers.invariant_exposed
    }

    /// Vectors of SINTs, whose ends concern the SynIC: a word of the set.
    pub(crate) fn watched(&self, word: usize) -> u32 {
        let vectors = &self.registers.synic.vectors;
        vectors.get(word).copied().unwrap_or(0)
    }

    /// Whether interrupts of this vector end when they are delivered.
    pub(crate) fn ends_at_once(&self, vector: u8) -> bool {
        self.registers.synic.ends_at_once(vector)
    }

    /// Whether a SINT has this vector.
    pub(crate) fn has_vector(&self, vector: u8) -> bool {
        self.registers.synic.has_vector(vector)
    }

    /// Whether some vector's interrupts end when they are delivered, which no processor does by itself.
    pub(crate) fn uses_auto_eoi(&self) -> bool {
        self.registers.synic.uses_auto_eoi()
    }

    /// Takes those out of `irr` whose vectors have automatic EOI: they are injected.
    pub(crate) fn hold(&mut self, irr: &mut [u32; 8]) {
        let r = &mut self.registers;
        for ((new, auto), held) in irr.iter_mut().zip(&r.synic.auto_eoi).zip(r.held.iter_mut()) {
            *held |= *new & auto;
            *new &= !auto;
        }
    }

    /// Vectors that wait to be injected: they count as requested.
    pub(crate) fn held(&self) -> &[u32; 8] {
        &self.registers.held
    }

    /// Vectors whose interrupts end when they are delivered.
    pub(crate) fn auto_eoi(&self) -> &[u32; 8] {
        &self.registers.synic.auto_eoi
    }

    /// Takes all that wait to be injected.
    pub(crate) fn take_held(&mut self) -> [u32; 8] {
        core::mem::take(&mut self.registers.held)
    }

    /// The vector to be injected, if the processor's priority class is below its own.
    #[inline]
    pub(crate) fn held_above(&self, class: u8) -> Option<u8> {
        synic::highest_above(&self.registers.held, class)
    }

    /// `vector` is injected.
    pub(crate) fn release(&mut self, vector: u8) {
        if let Some(w) = self.registers.held.get_mut(usize::from(vector >> 5)) {
            *w &= !(1 << (vector & 31));
        }
    }

    /// What user space is to be told, once.
    pub(crate) fn take_owed(&mut self) -> Option<Owed> {
        self.owed.take()
    }

    /// The page that user space has to bring before messages can be told, once.
    pub(crate) fn take_missing(&mut self) -> Option<Gpa> {
        self.missing.take()
    }

    /// All of it as it is now.
    pub(crate) fn image(&self, shared: &VcpuShared) -> Image {
        Image {
            registers: self.registers.clone(),
            run_time: self.registers.run_time(),
            vp_index: shared.arch.vp_index.load(Ordering::Relaxed),
        }
    }

    /// Whether it can become this: there are timers if those of a SynIC may run.
    pub(crate) fn fits(&self, image: &Image) -> bool {
        self.registers.synic.active || !image.has_synic()
    }

    /// Becomes what it was (`None`: not there yet); the timers are looked at before the guest runs.
    pub(crate) fn put_back(&mut self, shared: &VcpuShared, image: Option<&Image>) {
        let before = &self.registers.synic;
        let (active, keep_pages) = (before.active, before.keep_pages);
        let vp_index = match image {
            Some(image) => {
                self.registers.clone_from(&image.registers);
                self.registers.set_run_time(image.run_time);
                image.vp_index
            }
            None => {
                self.registers = Registers::default();
                shared.index
            }
        };
        // User space's choice.
        if active && !self.registers.synic.active {
            self.registers.synic.activate(keep_pages);
        }
        shared.arch.vp_index.store(vp_index, Ordering::Relaxed);
        self.owed = None;
        if let Some(published) = shared.synic() {
            self.publish(published);
            let _ = published.take_due();
            for (n, t) in (0..).zip(&self.registers.timers) {
                if let Some(host) = self.host_timers.get(n as usize) {
                    let _ = host.try_cancel();
                }
                if t.enabled() {
                    published.set_due(n);
                }
            }
            shared.request_self(request::HYPERV);
        }
    }
}
