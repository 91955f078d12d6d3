// SPDX-License-Identifier: GPL-2.0
//! What guest memory asks of others. It names none of them; they come in through these traits.

use crate::mem::slots::Slot;
use kernel::prelude::*;

/// The vCPUs whose translations guest memory changes.
pub(crate) trait StopRunning: Send + Sync {
    /// Returns after every vCPU that was in the guest has left it. Interrupts are on; may be called under a spin lock.
    fn stop_running(&self);

    /// Returns after every vCPU that was about to map what it found ([`Gate`](crate::mem::invalidations::Gate)) has
    /// done so, and says how many were. Sleeps not; may be called under a spin lock that those do not take.
    fn await_faults(&self) -> u32;
}

/// A vCPU with a dirty ring.
pub(crate) trait RingFull: Send + Sync {
    /// The ring counts as full: the vCPU has to leave to user space before it enters again. Called by its own thread,
    /// in any context.
    fn ring_full(&self);
}

/// What devices of the VM see of guest memory. Called under `GuestMemory.update`, so in the order of slot changes.
pub(crate) trait DmaView: Send + Sync {
    /// Whether a device sees the memory now.
    fn is_used(&self) -> bool;

    /// Whether a device may write to the memory of the slot.
    fn writes(&self, slot: &Slot) -> bool;

    /// A slot is going to be published. When it fails nothing has changed.
    fn add(&self, slot: &Slot) -> Result;

    /// A slot has been taken from the guest.
    fn remove(&self, slot: &Slot);

    /// A slot is going to another place, which may overlap the old one. When it fails it is where it was.
    fn relocate(&self, old: &Slot, new: &Slot) -> Result;
}
