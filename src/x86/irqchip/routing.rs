// SPDX-License-Identifier: GPL-2.0
//! The GSI routing table of a VM (api.rst 4.52, KVM_SET_GSI_ROUTING).

use crate::abi::uapi;
use crate::x86::irqchip::msg::{MsiFormat, TriggerMode};
use crate::x86::irqchip::route;
use crate::x86::irqchip::route::{Chips, Entry, Gsi, MAX_ROUTES};
use crate::x86::irqchip::{ioapic, pic};
use kernel::prelude::*;

/// A routing table; never changed, only replaced.
pub(crate) struct Table {
    /// Sorted by GSI.
    entries: KVVec<Entry>,
    /// GSI of each IOAPIC pin.
    pins: [Option<Gsi>; ioapic::PINS],
    /// GSI of each 8259 line.
    irqs: [Option<Gsi>; pic::LINES],
    /// There are routes to SINTs.
    has_sints: bool,
}

impl Table {
    /// No routes.
    pub(crate) fn empty() -> Self {
        Self {
            entries: KVVec::new(),
            pins: [None; ioapic::PINS],
            irqs: [None; pic::LINES],
            has_sints: false,
        }
    }

    /// What KVM_CREATE_IRQCHIP sets up.
    pub(crate) fn new_default() -> Result<Self> {
        let mut entries = KVVec::with_capacity(route::DEFAULT_LEN, GFP_KERNEL_ACCOUNT)?;
        for e in (0..route::DEFAULT_LEN).map_while(route::default_entry) {
            entries.push(e, GFP_KERNEL_ACCOUNT)?;
        }
        Self::new(entries)
    }

    /// Reads a `struct kvm_irq_routing`, of which `header` has been read. EFAULT, EINVAL.
    pub(crate) fn from_user(arg: usize, header: u64, chips: Chips) -> Result<Self> {
        let users = uapi::routing_entries(arg, header, MAX_ROUTES)?;
        let mut entries = KVVec::with_capacity(users.len(), GFP_KERNEL_ACCOUNT)?;
        for raw in users.iter() {
            let entry = Entry::parse(raw, chips).map_err(|_| EINVAL)?;
            entries.push(entry, GFP_KERNEL_ACCOUNT)?;
        }
        Self::new(entries)
    }

    fn new(mut entries: KVVec<Entry>) -> Result<Self> {
        route::build(&mut entries).map_err(|_| EINVAL)?;
        let mut table = Self {
            entries,
            ..Self::empty()
        };
        for e in table.entries.iter() {
            match e.route {
                route::Route::Pic(irq) => {
                    if let Some(gsi) = table.irqs.get_mut(irq.number() as usize) {
                        *gsi = Some(e.gsi);
                    }
                }
                route::Route::Ioapic(pin) => {
                    if let Some(gsi) = table.pins.get_mut(pin.number() as usize) {
                        *gsi = Some(e.gsi);
                    }
                }
                route::Route::Msi { .. } => {}
                route::Route::Sint { .. } => table.has_sints = true,
            }
        }
        Ok(table)
    }

    /// Where `gsi` goes.
    #[inline]
    pub(crate) fn routes(&self, gsi: Gsi) -> &[Entry] {
        route::lookup(&self.entries, gsi)
    }

    /// The GSI that reaches `pin` of the IOAPIC.
    #[inline]
    pub(crate) fn gsi_of_pin(&self, pin: ioapic::Pin) -> Option<Gsi> {
        self.pins.get(pin.number() as usize).copied().flatten()
    }

    /// The GSI that reaches line `irq` of the 8259s.
    #[inline]
    pub(crate) fn gsi_of_irq(&self, irq: pic::Irq) -> Option<Gsi> {
        self.irqs.get(irq.number() as usize).copied().flatten()
    }

    /// GSIs that reach this SINT of Hyper-V's.
    pub(crate) fn gsis_of_sint(&self, vp: u32, sint: u32) -> impl Iterator<Item = Gsi> + '_ {
        let entries = if self.has_sints {
            &self.entries[..]
        } else {
            &[]
        };
        let wanted = route::Route::Sint { vp, sint };
        let found = entries.iter().filter(move |e| e.route == wanted);
        found.map(|e| e.gsi)
    }

    /// Vectors of level-triggered MSIs that GSIs below `pins` send: the interrupts of an IOAPIC in user space.
    pub(crate) fn level_vectors(&self, pins: u32) -> [u32; 8] {
        // The vector does not depend on how destinations are written.
        let format = MsiFormat::default();
        let mut vectors = [0u32; 8];
        for e in self.entries.iter().take_while(|e| e.gsi.number() < pins) {
            if let Some(m) = e.route.message(format) {
                let (word, bit) = m.vector.word_bit();
                if m.trigger == TriggerMode::Level {
                    if let Some(w) = vectors.get_mut(word) {
                        *w |= bit;
                    }
                }
            }
        }
        vectors
    }
}
