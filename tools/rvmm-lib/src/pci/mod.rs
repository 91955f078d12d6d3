// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A PCI bus for devices of the host that the guest is given: a host bridge, and configuration
//! mechanism 1 (PCI Local Bus Specification 3.0, 3.2.2.3.2).
//!
//! A device's configuration space is a copy. The guest's writes change the copy only, except for what
//! they mean: decoding maps the registers into the guest or takes them away, bus mastering is passed on,
//! MSI and MSI-X become routes of the hypervisor's, and the pin goes to the IOAPIC. The table of MSI-X is
//! emulated. There are no I/O ports.

mod bars;
pub(crate) mod config;
mod function;
mod messages;

use std::sync::Arc;

use kvm_bindings::{
    kvm_irq_routing_entry, KvmIrqRouting, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI,
};
use kvm_ioctls::VmFd;

use self::bars::Room;
pub use self::bars::{WINDOW, WINDOW_END};
use self::config::{le32, put32, reg, INTERRUPT_STATUS};
use self::function::Function;
use self::messages::{gsi_of, ENTRY_MASKED};
pub use crate::address::Address;
use crate::bus::Device;
use crate::error::Result;
use crate::layout;
use crate::sys::{self, DeviceVector};

/// First port of configuration mechanism 1: address, and data at +4.
pub const PORT: u64 = 0xcf8;
/// Number of ports of configuration mechanism 1.
pub const PORTS: u64 = 8;

/// Offset of the data port.
const DATA: u64 = 4;
/// The bit of the address port that makes the data port configuration space.
const ENABLE: u32 = 1 << 31;
/// First GSI of messages, above all pins.
pub(crate) const FIRST_GSI: u32 = 64;
/// Pins of the IOAPIC.
const IOAPIC_PINS: u32 = 24;
/// The first of the IOAPIC's pins that no ISA interrupt has.
const FIRST_PIN: u8 = 16;

/// How the pins of `functions` functions behind the bridge are wired: device on bus 0, and pin of the IOAPIC.
pub(crate) fn wiring(functions: usize) -> Vec<(u8, u8)> {
    (0..functions.min(31) as u8)
        .map(|n| (n + 1, FIRST_PIN + n % (IOAPIC_PINS as u8 - FIRST_PIN)))
        .collect()
}

/// Tells the hypervisor of all routes: the default ones, which guests' tables describe, and those of messages (GSI,
/// address, data).
pub(crate) fn set_routes(vm: &VmFd, messages: impl Iterator<Item = (u32, u64, u32)>) {
    let pin = |gsi: u32, chip: u32, pin: u32| {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip.irqchip = chip;
        entry.u.irqchip.pin = pin;
        entry
    };
    let mut entries = Vec::new();
    for gsi in 0..16 {
        let chip = if gsi < 8 {
            KVM_IRQCHIP_PIC_MASTER
        } else {
            KVM_IRQCHIP_PIC_SLAVE
        };
        entries.push(pin(gsi, chip, gsi % 8));
    }
    for gsi in 0..IOAPIC_PINS {
        entries.push(pin(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    }
    for (gsi, address, data) in messages {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        entry.u.msi.address_lo = address as u32;
        entry.u.msi.address_hi = (address >> 32) as u32;
        entry.u.msi.data = data;
        entries.push(entry);
    }
    let done = KvmIrqRouting::from_entries(&entries)
        .map_err(|error| format!("{error:?}"))
        .and_then(|table| vm.set_gsi_routing(&table).map_err(|e| e.to_string()));
    if let Err(error) = done {
        tracing::warn!(error, "KVM_SET_GSI_ROUTING");
    }
}

/// The host bridge and the functions behind it: function `n` is device `n + 1` on bus 0.
pub struct Host {
    vm: Arc<VmFd>,
    functions: Vec<Function>,
    selected: u32,
}

impl Host {
    /// Assigns devices to the VM, whose memory and interrupt controllers are there.
    ///
    /// # Errors
    ///
    /// [`Error::Assign`] when the hypervisor refuses one; [`Error::Os`].
    pub fn new(vm: Arc<VmFd>, addresses: &[Address]) -> Result<Self> {
        let (mut gsi, mut room) = (FIRST_GSI, Room::new());
        let mut functions = Vec::new();
        let pins = wiring(addresses.len());
        for (address, (_, pin)) in addresses.iter().zip(pins) {
            let function = Function::new(&vm, *address, gsi, pin.into(), &mut room)?;
            gsi += function.msix.as_ref().map_or(1, |m| m.entries.len() as u32);
            functions.push(function);
        }
        Ok(Self {
            vm,
            functions,
            selected: 0,
        })
    }

    /// What the data port shows: device and register.
    fn target(&self, offset: u64) -> Option<(usize, usize)> {
        let bus = self.selected >> 16 & 0xff;
        let function = self.selected >> 8 & 7;
        if self.selected & ENABLE == 0 || bus != 0 || function != 0 {
            return None;
        }
        let register = (self.selected & 0xfc) as usize + (offset - DATA) as usize;
        Some(((self.selected >> 11 & 31) as usize, register))
    }

    /// Tells the hypervisor of all routes.
    fn set_routes(&self) {
        set_routes(&self.vm, self.functions.iter().flat_map(Function::routes));
    }

    /// The guest's write to a table of MSI-X.
    fn write_table(&mut self, address: u64, value: u32) {
        let Some((index, entry, word)) = self
            .functions
            .iter()
            .enumerate()
            .find_map(|(i, f)| f.table_word(address).map(|(e, w)| (i, e, w)))
        else {
            return;
        };
        let function = &mut self.functions[index];
        let (first, file) = (function.gsi, &function.file);
        let Some(msix) = &mut function.msix else {
            return;
        };
        let before = msix.entries[entry];
        msix.entries[entry][word] = if word == 3 {
            value & ENTRY_MASKED
        } else {
            value
        };
        let after = msix.entries[entry];
        if !msix.active || before == after || before[3] & after[3] & ENTRY_MASKED != 0 {
            return;
        }
        let vector = DeviceVector {
            vector: entry as u32,
            gsi: gsi_of(first, entry, &after),
        };
        if vector.gsi == sys::GSI_NONE {
            if let Err(error) = sys::set_vector(file, vector) {
                tracing::warn!(%error, "MSI-X");
            }
            return;
        }
        // The route first: a message that waits goes out at once.
        self.set_routes();
        if let Err(error) = sys::set_vector(&self.functions[index].file, vector) {
            tracing::warn!(%error, "MSI-X");
        }
    }
}

/// The ports of configuration mechanism 1.
impl Device for Host {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset < DATA {
            if let (0, 4) = (offset, data.len()) {
                data.copy_from_slice(&self.selected.to_le_bytes());
            }
            return;
        }
        let Some((device, at)) = self.target(offset) else {
            return;
        };
        let bridge = bridge();
        let config = match device.checked_sub(1) {
            None => &bridge,
            Some(n) => match self.functions.get(n) {
                Some(function) => &function.config.bytes,
                None => return,
            },
        };
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = config.get(at + i).copied().unwrap_or(0xff);
        }
        let function = device.checked_sub(1).and_then(|n| self.functions.get(n));
        if let (Some(function), Some(status)) = (
            function.filter(|f| f.pin_gsi.is_some()),
            reg::STATUS.checked_sub(at).and_then(|i| data.get_mut(i)),
        ) {
            // The one bit of the hardware that drivers of shared lines look at.
            let now = sys::config_read(&function.file, reg::COMMAND as u32).unwrap_or(0);
            *status = *status & !INTERRUPT_STATUS | (now >> 16) as u8 & INTERRUPT_STATUS;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset < DATA {
            if let (0, [a, b, c, d]) = (offset, data) {
                self.selected = u32::from_le_bytes([*a, *b, *c, *d]);
            }
            return;
        }
        let Some((device, at)) = self.target(offset) else {
            return;
        };
        let Some(function) = device
            .checked_sub(1)
            .and_then(|n| self.functions.get_mut(n))
        else {
            return;
        };
        function.config.write(at, data);
        if function.apply(&self.vm) {
            self.set_routes();
        }
    }
}

/// Configuration space of the host bridge: Intel's 82441FX, which every kernel knows.
fn bridge() -> [u8; 256] {
    let mut config = [0; 256];
    put32(&mut config, 0, 0x1237_8086);
    put32(&mut config, 8, 0x0600_0002);
    config
}

/// The window's addresses that no slot covers: tables of MSI-X.
pub struct Window(pub Arc<std::sync::Mutex<Host>>);

impl Device for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let host = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for (i, bytes) in data.chunks_exact_mut(4).enumerate() {
            let address = layout::HOLE_START + offset + 4 * i as u64;
            let word = host.functions.iter().find_map(|f| {
                let (entry, word) = f.table_word(address)?;
                Some(f.msix.as_ref()?.entries[entry][word])
            });
            if let Some(word) = word {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut host = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for (i, bytes) in data.chunks_exact(4).enumerate() {
            host.write_table(layout::HOLE_START + offset + 4 * i as u64, le32(bytes, 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_shared_when_there_are_more_functions() {
        assert_eq!(wiring(10)[0], (1, 16));
        assert_eq!(wiring(10)[9], (10, 17));
        assert_eq!(wiring(100).len(), 31);
    }
}
