// SPDX-License-Identifier: GPL-2.0
//! Routing of global system interrupts to interrupt-controller pins and MSIs (api.rst 4.52, KVM_SET_GSI_ROUTING).
//!
//! A table is a slice of [`Entry`] sorted by GSI; the owner keeps the memory.
#![forbid(unsafe_code)]

use crate::x86::irqchip::ioapic;
use crate::x86::irqchip::msg::{number, Message, MsiFormat};
use crate::x86::irqchip::pic;

/// Number of GSIs and upper bound of table entries (KVM_CAP_IRQ_ROUTING).
pub const MAX_ROUTES: u32 = 4096;
/// Size of `struct kvm_irq_routing_entry` in 32-bit words.
pub const RAW_WORDS: usize = 12;

/// `kvm_irq_routing_entry.type`: a pin of an interrupt controller.
pub const TYPE_IRQCHIP: u32 = 1;
/// `kvm_irq_routing_entry.type`: an MSI.
pub const TYPE_MSI: u32 = 2;
/// `kvm_irq_routing_entry.type`: a SINT of Hyper-V's SynIC.
pub const TYPE_HV_SINT: u32 = 4;

/// Entry `flags`: `devid` is valid. There is no device ID on x86, so that it changes nothing.
const FLAG_MSI_DEVID: u32 = 1;

number! {
    /// Global system interrupt: index into the routing table.
    Gsi(u16), below MAX_ROUTES
}

impl Gsi {
    /// Number zero.
    pub const FIRST: Self = Self(0);
}

/// Where an interrupt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Line of the 8259A pair (0-15).
    Pic(pic::Irq),
    /// Pin of the I/O APIC.
    Ioapic(ioapic::Pin),
    /// Message-signalled interrupt.
    Msi {
        /// Address bits 31:0.
        address_lo: u32,
        /// Address bits 63:32.
        address_hi: u32,
        /// Data.
        data: u32,
    },
    /// Synthetic interrupt source of a virtual processor of Hyper-V's.
    Sint {
        /// VP_INDEX.
        vp: u32,
        /// Number of the SINT.
        sint: u32,
    },
}

impl Route {
    /// `KVM_IRQCHIP_*` number for a controller pin (master 0, slave 1, I/O APIC 2), none for the others.
    fn chip(&self) -> Option<u8> {
        match self {
            Self::Pic(irq) if irq.number() < 8 => Some(0),
            Self::Pic(_) => Some(1),
            Self::Ioapic(_) => Some(2),
            Self::Msi { .. } | Self::Sint { .. } => None,
        }
    }

    /// The message of an MSI route.
    pub fn message(&self, format: MsiFormat) -> Option<Message> {
        match *self {
            Self::Msi {
                address_lo,
                address_hi,
                data,
            } => Some(Message::from_msi(address_lo, address_hi, data, format)),
            _ => None,
        }
    }
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The interrupt.
    pub gsi: Gsi,
    /// Its destination; a GSI may go to several controllers.
    pub route: Route,
}

/// The table or an entry is not valid (EINVAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// What the virtual machine has, for checking entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chips {
    /// PIC and I/O APIC are in the kernel (KVM_CREATE_IRQCHIP); false for a split irqchip.
    pub full: bool,
    /// MSI addresses carry 32-bit destinations (KVM_X2APIC_API_USE_32BIT_IDS).
    pub ids_32bit: bool,
}

impl Entry {
    /// Decodes `struct kvm_irq_routing_entry`: gsi, type, flags, pad, then the union.
    ///
    /// # Errors
    /// [`Invalid`] for a GSI or pin out of range, unknown types, chips and flags, a chip that is not in the
    /// kernel, and reserved MSI address bits in the 32-bit format.
    pub fn parse(raw: &[u32; RAW_WORDS], chips: Chips) -> Result<Self, Invalid> {
        let [gsi, kind, flags, _pad, u0, u1, u2, ..] = *raw;
        let gsi = Gsi::new(gsi).ok_or(Invalid)?;
        let route = match (kind, flags) {
            (TYPE_IRQCHIP, 0) if chips.full => match (u0, u1) {
                (0, pin @ 0..=7) => pic::Irq::new(pin).map(Route::Pic),
                (1, pin @ 0..=7) => pic::Irq::new(pin | 8).map(Route::Pic),
                (2, pin) => ioapic::Pin::new(pin).map(Route::Ioapic),
                _ => None,
            }
            .ok_or(Invalid)?,
            (TYPE_MSI, 0 | FLAG_MSI_DEVID) => {
                if chips.ids_32bit && u1 & 0xff != 0 {
                    return Err(Invalid);
                }
                Route::Msi {
                    address_lo: u0,
                    address_hi: u1,
                    data: u2,
                }
            }
            (TYPE_HV_SINT, 0) => Route::Sint { vp: u0, sint: u1 },
            _ => return Err(Invalid),
        };
        Ok(Self { gsi, route })
    }
}

/// Sorts entries by GSI, in place and without recursion; entries of one GSI come in any order.
fn sort(entries: &mut [Entry]) {
    // Heap sort: the core library's sorts may use more stack than the kernel can spare.
    let len = entries.len();
    for start in (0..len / 2).rev() {
        sift_down(entries, start);
    }
    for end in (1..len).rev() {
        exchange(entries, 0, end);
        if let Some(heap) = entries.get_mut(..end) {
            sift_down(heap, 0);
        }
    }
}

fn exchange(entries: &mut [Entry], a: usize, b: usize) {
    let (Some(&x), Some(&y)) = (entries.get(a), entries.get(b)) else {
        return;
    };
    if let Some(entry) = entries.get_mut(a) {
        *entry = y;
    }
    if let Some(entry) = entries.get_mut(b) {
        *entry = x;
    }
}

fn sift_down(heap: &mut [Entry], mut at: usize) {
    let key = |heap: &[Entry], n: usize| heap.get(n).map(|e| e.gsi);
    loop {
        let left = at.saturating_mul(2).saturating_add(1);
        let right = left.saturating_add(1);
        // `None` (beyond the heap) is less than any key.
        let child = if key(heap, right) > key(heap, left) {
            right
        } else {
            left
        };
        if key(heap, child) <= key(heap, at) {
            return;
        }
        exchange(heap, at, child);
        at = child;
    }
}

/// Makes a table of `entries`: sorts them and checks what holds between them.
///
/// # Errors
/// [`Invalid`] if a GSI goes to one chip twice, or to an MSI or a SINT and anything else.
pub fn build(entries: &mut [Entry]) -> Result<(), Invalid> {
    // The default routes are in order, and those of user space mostly.
    if !entries.is_sorted_by_key(|e| e.gsi) {
        sort(entries);
    }
    let mut group: Option<(Gsi, u8)> = None;
    for entry in entries.iter() {
        // One bit per chip; an MSI or a SINT excludes all.
        let bits = entry.route.chip().map_or(0xff, |chip| 1u8 << (chip & 7));
        let seen = match group {
            Some((gsi, seen)) if gsi == entry.gsi => seen,
            _ => 0,
        };
        if seen & bits != 0 {
            return Err(Invalid);
        }
        group = Some((entry.gsi, seen | bits));
    }
    Ok(())
}

/// All routes of `gsi` in a table made by [`build`].
pub fn lookup(table: &[Entry], gsi: Gsi) -> &[Entry] {
    let start = table.partition_point(|e| e.gsi < gsi);
    let rest = table.get(start..).unwrap_or(&[]);
    let len = rest.iter().take_while(|e| e.gsi == gsi).count();
    rest.get(..len).unwrap_or(&[])
}

/// Entries of the table that KVM_CREATE_IRQCHIP sets up.
pub const DEFAULT_LEN: usize = 40;

/// Entry `n` of the default table: GSI 0-15 go to the PIC line and the I/O APIC pin of the same number,
/// GSI 16-23 to the I/O APIC only. The PIT raises GSI 0 and so appears on pin 0, as in KVM
/// (`default_routing` in arch/x86/kvm/irq.c); clients that describe IRQ 0 as pin 2 to their guest (QEMU) load
/// a table of their own. `None` from [`DEFAULT_LEN`] on.
pub fn default_entry(n: usize) -> Option<Entry> {
    let n = u32::try_from(n).ok()?;
    let (number, to_pic) = match n {
        0..=31 => (n >> 1, n & 1 != 0),
        32..=39 => (n - 16, false),
        _ => return None,
    };
    let route = if to_pic {
        Route::Pic(pic::Irq::new(number)?)
    } else {
        Route::Ioapic(ioapic::Pin::new(number)?)
    };
    Some(Entry {
        gsi: Gsi::new(number)?,
        route,
    })
}
