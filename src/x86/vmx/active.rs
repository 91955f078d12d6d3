// SPDX-License-Identifier: GPL-2.0
//! VMCSs of ours that stay active on a CPU between stays (SDM 3C 25.1, 25.11.1), where nobody switches VMX off unasked.
//!
//! A VMCS must be active on one CPU at a time, and cleared there by VMCLEAR before VMX is switched off, it is loaded
//! elsewhere or its page is freed. So each CPU has a list of those that are active on it. Only the CPU itself changes
//! the list, with interrupts off; who else wants a VMCS cleared calls [`Cpu::clear`] there. A vCPU remembers its CPU
//! and place, and finds out by a look at the place whether its VMCS still is active.
//!
//! Where no guest's is current, an empty one is. So who finds none current at all knows that somebody else has loaded
//! one and cleared it: another hypervisor's guest has run, and may come back when nothing tells of it any more.
//!
//! [`super::root::Region`] calls this around stays, `Vmx` when CPUs come and go.

use super::insn;
use crate::linux::irqflags::IrqsOff;
use crate::linux::page::Pages;
use crate::pr_err_ratelimited;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// "No VMCS is current" in VMPTRST's words.
pub(super) const NO_VMCS: u64 = u64::MAX;

/// How many stay active on one CPU.
const PLACES: usize = 16;

/// What a CPU has of ours.
///
/// # Invariants
///
/// A place that is not 0 is the physical address of a VMCS of ours that is active on this CPU and on no other, and that
/// stays allocated until the place is 0.
pub(super) struct Cpu {
    /// VMXON region (SDM 3C 25.11.5).
    vmxon: Pages,
    /// The empty VMCS, which while `open` has been cleared at least.
    empty: Pages,
    /// VMCSs may stay active.
    open: AtomicBool,
    /// Another hypervisor's guest may have run here.
    others: AtomicBool,
    places: [AtomicU64; PLACES],
    /// The place that is given next when none is free.
    next: AtomicUsize,
}

impl Cpu {
    pub(super) fn new(vmxon: Pages, empty: Pages) -> Self {
        // INVARIANT: All places are 0.
        Self {
            vmxon,
            empty,
            open: AtomicBool::new(false),
            others: AtomicBool::new(false),
            places: [const { AtomicU64::new(0) }; PLACES],
            next: AtomicUsize::new(0),
        }
    }

    /// Physical address of the VMXON region.
    #[inline]
    pub(super) fn vmxon_region(&self) -> u64 {
        self.vmxon.phys()
    }

    /// From now on VMCSs may stay active on this CPU. `others`: another hypervisor's guest may have run here before.
    ///
    /// # Safety
    ///
    /// This is the calling CPU, in VMX root operation until [`Cpu::close`].
    pub(super) unsafe fn open(&self, others: bool, irqs_off: IrqsOff<'_>) {
        // SAFETY: The VMCS is ours, and only this CPU ever uses it.
        if unsafe { insn::vmclear(self.empty.phys()) }.is_ok() {
            self.open.store(true, Ordering::Relaxed);
            // SAFETY: This is the CPU.
            let free = unsafe { self.fill(irqs_off) };
            self.others.fetch_or(others || !free, Ordering::Relaxed);
        }
    }

    /// Makes the empty VMCS current if none is, and returns whether that was so.
    ///
    /// # Safety
    ///
    /// This is the calling CPU.
    unsafe fn fill(&self, _: IrqsOff<'_>) -> bool {
        let free = self.open.load(Ordering::Relaxed) && insn::vmptrst() == Ok(NO_VMCS);
        if free {
            // SAFETY: The VMCS is ours, has been cleared, and only this CPU uses it.
            let _ = unsafe { insn::vmptrld(self.empty.phys()) };
        }
        free
    }

    /// Another hypervisor's guest has run here.
    pub(super) fn note_others(&self) {
        self.others.store(true, Ordering::Relaxed);
    }

    /// Whether another hypervisor's guest may run here next that has run here before.
    pub(super) fn others_follow(&self) -> bool {
        !self.open.load(Ordering::Relaxed) || self.others.load(Ordering::Relaxed)
    }

    /// Whether the VMCS is active on this CPU, in this place. Only its owner may ask, from any CPU: nobody else can
    /// turn the answer from no to yes.
    #[inline(always)]
    pub(super) fn has(&self, place: usize, vmcs: u64) -> bool {
        // Acquire: whoever finds the place empty finds the VMCS in memory.
        self.places
            .get(place)
            .is_some_and(|p| p.load(Ordering::Acquire) == vmcs)
    }

    /// Whether a VMCS of ours that is active on this CPU has this address.
    pub(super) fn is_ours(&self, vmcs: u64) -> bool {
        vmcs == self.empty.phys()
            || self
                .places
                .iter()
                .any(|p| p.load(Ordering::Relaxed) == vmcs)
    }

    /// A place for a VMCS that is active here; `None` where it has to be cleared at the end of the stay. When all are
    /// taken, another VMCS is cleared.
    ///
    /// # Safety
    ///
    /// This is the calling CPU, in VMX root operation, and `vmcs` the physical address of its current VMCS. Who frees
    /// it calls [`Cpu::clear`] before.
    #[cold]
    pub(super) unsafe fn place(&self, vmcs: u64, irqs_off: IrqsOff<'_>) -> Option<usize> {
        if !self.open.load(Ordering::Relaxed) {
            return None;
        }
        let free = self
            .places
            .iter()
            .position(|p| p.load(Ordering::Relaxed) == 0);
        let n = free.unwrap_or_else(|| {
            let n = self.next.load(Ordering::Relaxed) % PLACES;
            self.next.store(n + 1, Ordering::Relaxed);
            n
        });
        let place = self.places.get(n)?;
        // SAFETY: This is the CPU.
        unsafe { self.clear_place(place, irqs_off) };
        // INVARIANT: By the caller's promise.
        place.store(vmcs, Ordering::Relaxed);
        Some(n)
    }

    /// Clears the VMCS if it is active on this CPU, in this place.
    ///
    /// # Safety
    ///
    /// This is the calling CPU.
    pub(super) unsafe fn clear(&self, place: usize, vmcs: u64, irqs_off: IrqsOff<'_>) {
        if let Some(place) = self
            .places
            .get(place)
            .filter(|p| p.load(Ordering::Relaxed) == vmcs)
        {
            // SAFETY: By the caller's promise.
            unsafe { self.clear_place(place, irqs_off) };
        }
    }

    /// Clears all, and lets no other stay active: VMX may be switched off next.
    ///
    /// # Safety
    ///
    /// This is the calling CPU.
    pub(super) unsafe fn close(&self, irqs_off: IrqsOff<'_>) {
        if !self.open.swap(false, Ordering::Relaxed) {
            return;
        }
        for place in &self.places {
            // SAFETY: By the caller's promise.
            unsafe { self.clear_place(place, irqs_off) };
        }
        // SAFETY: The VMCS is ours, and active here only, if at all.
        let _ = unsafe { insn::vmclear(self.empty.phys()) };
    }

    /// # Safety
    ///
    /// `place` is one of the calling CPU's.
    unsafe fn clear_place(&self, place: &AtomicU64, irqs_off: IrqsOff<'_>) {
        let vmcs = place.load(Ordering::Relaxed);
        if vmcs == 0 {
            return;
        }
        let current = insn::vmptrst() == Ok(vmcs);
        // SAFETY: By the type's invariant, and because no stay goes on that uses it: interrupts are off here, and in
        // stays.
        if unsafe { insn::vmclear(vmcs) }.is_err() {
            pr_err_ratelimited!(
                "VMCLEAR failed: VMX was switched off with a VMCS of a guest active\n"
            );
        }
        // Release: see `has`. VMCLEAR has written the VMCS to memory, or VMX is off.
        place.store(0, Ordering::Release);
        if current {
            // SAFETY: By the caller's promise.
            unsafe { self.fill(irqs_off) };
        }
    }
}
