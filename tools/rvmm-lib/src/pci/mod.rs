// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A PCI bus for devices of the host that the guest is given: a host bridge, and configuration mechanism 1 (PCI Local Bus
//! Specification 3.0, 3.2.2.3.2).
//!
//! A device's configuration space is a copy. The guest's writes change the copy only, except for what they mean: decoding maps
//! the registers into the guest or takes them away, bus mastering is passed on, MSI and MSI-X become routes of the
//! hypervisor's, and the pin goes to the IOAPIC. The table of MSI-X is emulated. There are no I/O ports.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::str::FromStr;
use std::sync::Arc;

use kvm_bindings::{
    kvm_irq_routing_entry, kvm_userspace_memory_region, KvmIrqRouting, KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI,
};
use kvm_ioctls::VmFd;

use crate::bus::Device;
use crate::error::{Error, Result};
use crate::layout;
use crate::sys::{self, DeviceInfo, DeviceVector};

/// First port of configuration mechanism 1: address, and data at +4.
pub const PORT: u64 = 0xcf8;
/// Its ports.
pub const PORTS: u64 = 8;
/// Guest-physical addresses for registers of devices.
pub const WINDOW: u64 = 0xe000_0000;
/// Their end.
pub const WINDOW_END: u64 = 0xfe00_0000;

/// Offset of the data port.
const DATA: u64 = 4;
/// The bit of the address port that makes the data port configuration space.
const ENABLE: u32 = 1 << 31;
/// First GSI of messages, above all pins.
const FIRST_GSI: u32 = 64;
/// First memory slot of registers, above those of RAM.
const FIRST_SLOT: u32 = 64;
/// Pins of the IOAPIC.
const IOAPIC_PINS: u32 = 24;
/// The first of its pins that no ISA interrupt has.
const FIRST_PIN: u8 = 16;

/// How the pins of `functions` functions behind the bridge are wired: device on bus 0, and pin of the IOAPIC.
pub(crate) fn wiring(functions: usize) -> Vec<(u8, u8)> {
    (0..functions.min(31) as u8)
        .map(|n| (n + 1, FIRST_PIN + n % (IOAPIC_PINS as u8 - FIRST_PIN)))
        .collect()
}
const PAGE: u64 = 4096;

/// Registers of configuration space.
mod reg {
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const CACHE_LINE: usize = 0x0c;
    pub const BAR0: usize = 0x10;
    pub const ROM: usize = 0x30;
    pub const CAPABILITIES: usize = 0x34;
    pub const IRQ_LINE: usize = 0x3c;
}

/// Bits of the command register.
const MEMORY: u8 = 1 << 1;
const MASTER: u8 = 1 << 2;
/// In its second byte: the pin is off.
const INTERRUPT_DISABLE: u8 = 1 << 2;
/// Bit of the status register: the device would assert its pin.
const INTERRUPT_STATUS: u8 = 1 << 3;

/// Capabilities whose writable bits the copy has.
mod cap {
    pub const PM: u8 = 0x01;
    pub const MSI: u8 = 0x05;
    pub const PCIE: u8 = 0x10;
    pub const MSIX: u8 = 0x11;
}

/// Address of a PCI function: `0000:00:04.0`, or without the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// PCI segment ("domain").
    pub segment: u16,
    /// Bus.
    pub bus: u8,
    /// Device on the bus, below 32.
    pub slot: u8,
    /// Function of the device, below 8.
    pub function: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.segment, self.bus, self.slot, self.function
        )
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let mut parts = rest.rsplit(':');
            let hex = |part: Option<&str>| u16::from_str_radix(part?, 16).ok();
            let slot = hex(parts.next())?;
            let bus = hex(parts.next())?;
            let segment = match parts.next() {
                None => 0,
                part => hex(part)?,
            };
            let function = hex(Some(function))?;
            if parts.next().is_some() || slot > 31 || function > 7 {
                return None;
            }
            Some(Self {
                segment,
                bus: u8::try_from(bus).ok()?,
                slot: slot as u8,
                function: function as u8,
            })
        };
        parse().ok_or_else(|| format!("{text} is no PCI address such as 0000:00:04.0"))
    }
}

/// Part of a base address register that the guest reaches without an exit.
struct Part {
    offset: u64,
    length: u64,
    /// Where it is mapped in this process.
    host: *mut libc::c_void,
    slot: u32,
}

impl Drop for Part {
    fn drop(&mut self) {
        // SAFETY: mapped by `Function::map_part` with this length; the slot that used it is gone or dies with the VM, whose
        // vCPUs do not run any more.
        unsafe { libc::munmap(self.host, self.length as usize) };
    }
}

/// A base address register over memory.
struct Bar {
    index: usize,
    size: u64,
    /// Takes the next register as upper half.
    wide: bool,
    parts: Vec<Part>,
    /// Where the guest has it now.
    at: Option<u64>,
}

/// The MSI-X capability.
struct MsiX {
    /// Offset in configuration space.
    cap: usize,
    bar: usize,
    offset: u64,
    entries: Vec<[u32; 4]>,
    /// The host sends messages.
    active: bool,
}

/// The MSI capability, with one message.
struct Msi {
    cap: usize,
    active: bool,
}

/// The interrupt pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pin {
    /// Not in use: there is none, the device is not, or it sends messages.
    Unused,
    /// Switched off by the command register.
    Off,
    On,
}

/// Bit of a table entry's last word.
const ENTRY_MASKED: u32 = 1;

struct Function {
    file: File,
    config: [u8; 256],
    /// Bits of the copy that the guest can change.
    writable: [u8; 256],
    bars: Vec<Bar>,
    msix: Option<MsiX>,
    msi: Option<Msi>,
    gsi: u32,
    /// GSI of the pin, if there is one.
    pin_gsi: Option<u32>,
    pin: Pin,
    master: bool,
}

// SAFETY: the pointers of parts are only mapped and unmapped.
unsafe impl Send for Function {}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(to) = bytes.get_mut(at..at + 4) {
        to.copy_from_slice(&value.to_le_bytes());
    }
}

impl Function {
    /// Takes over the device. `window` is the next free address for registers, `slot` the next free memory slot.
    fn new(
        vm: &VmFd,
        address: Address,
        gsi: u32,
        pin_gsi: u32,
        window: &mut u64,
        slot: &mut u32,
    ) -> Result<Self> {
        let file = sys::assign_device(vm, address).map_err(|(errno, reason)| Error::Assign {
            address: address.to_string(),
            reason,
            errno,
        })?;
        let info = sys::device_info(&file).map_err(Error::os("RVMM_DEVICE_GET_INFO"))?;
        let mut config = [0; 256];
        for at in (0..256).step_by(4) {
            let value =
                sys::config_read(&file, at as u32).map_err(Error::os("RVMM_DEVICE_CONFIG_READ"))?;
            put32(&mut config, at, value);
        }
        let mut this = Self {
            file,
            config,
            writable: [0; 256],
            bars: Vec::new(),
            msix: None,
            msi: None,
            gsi,
            pin_gsi: (info.intx != 0).then_some(pin_gsi),
            pin: Pin::Unused,
            master: false,
        };
        this.prepare_header();
        this.prepare_capabilities(&info);
        this.prepare_bars(&info, window, slot)?;
        Ok(this)
    }

    fn prepare_header(&mut self) {
        self.config[reg::COMMAND..reg::COMMAND + 2].fill(0);
        self.writable[reg::COMMAND] = 0x47;
        self.writable[reg::COMMAND + 1] = 0x05;
        self.writable[reg::CACHE_LINE] = 0xff;
        self.writable[reg::CACHE_LINE + 1] = 0xff;
        put32(&mut self.config, reg::ROM, 0);
        // The IOAPIC's pin, which the MP table has as well; and which of the function's pins: INTA#.
        self.config[reg::IRQ_LINE] = self.pin_gsi.map_or(0, |gsi| gsi as u8);
        self.writable[reg::IRQ_LINE] = 0xff;
        self.config[reg::IRQ_LINE + 1] = u8::from(self.pin_gsi.is_some());
    }

    fn prepare_capabilities(&mut self, info: &DeviceInfo) {
        let mut at = usize::from(self.config[reg::CAPABILITIES]) & !3;
        // A list of a broken device may have a loop.
        for _ in 0..48 {
            if !(0x40..0xfc).contains(&at) {
                break;
            }
            let mut allow = |offset: usize, mask: u32| {
                let old = le32(&self.writable, at + offset);
                put32(&mut self.writable, at + offset, old | mask);
            };
            match self.config[at] {
                cap::PM => allow(4, 0x3),
                cap::PCIE => allow(8, 0x7fff),
                cap::MSIX if info.msix != 0 && self.msix.is_none() => {
                    allow(0, 0xc000_0000);
                    // Off, whatever the host had.
                    self.config[at + 3] &= !0xc0;
                    self.msix = Some(MsiX {
                        cap: at,
                        bar: info.msix_bar as usize,
                        offset: info.msix_offset,
                        entries: vec![[0, 0, 0, ENTRY_MASKED]; info.msix as usize],
                        active: false,
                    });
                }
                cap::MSI if info.msi != 0 && self.msi.is_none() => {
                    // One message, without mask bits.
                    self.config[at + 2] &= 0x80;
                    self.config[at + 3] &= !0x01;
                    allow(0, 1 << 16);
                    allow(4, !3);
                    if self.config[at + 2] & 0x80 != 0 {
                        allow(8, !0);
                        allow(12, 0xffff);
                    } else {
                        allow(8, 0xffff);
                    }
                    self.msi = Some(Msi {
                        cap: at,
                        active: false,
                    });
                }
                _ => {}
            }
            at = usize::from(self.config[at + 1]) & !3;
        }
    }

    fn prepare_bars(&mut self, info: &DeviceInfo, window: &mut u64, slot: &mut u32) -> Result<()> {
        let mut index = 0;
        while index < info.regions.len() {
            let region = &info.regions[index];
            let at = reg::BAR0 + 4 * index;
            let kind = le32(&self.config, at) & 0xf;
            put32(&mut self.config, at, 0);
            let memory = region.size != 0 && region.flags & sys::REGION_MEMORY != 0;
            if !memory || region.size < PAGE {
                if region.size != 0 {
                    tracing::warn!(
                        index,
                        size = region.size,
                        "a region that the guest does not get"
                    );
                }
                index += 1;
                continue;
            }
            let wide = kind & 6 == 4;
            let base = window.next_multiple_of(region.size);
            if base + region.size > WINDOW_END {
                return Err(Error::Os {
                    what: "addresses for the device's registers",
                    source: std::io::ErrorKind::OutOfMemory.into(),
                });
            }
            *window = base + region.size;
            put32(&mut self.config, at, base as u32 | kind);
            put32(&mut self.writable, at, !(region.size as u32 - 1) & !0xf);
            if wide {
                put32(&mut self.config, at + 4, 0);
                put32(
                    &mut self.writable,
                    at + 4,
                    (!(region.size - 1) >> 32) as u32,
                );
            }
            let mut bar = Bar {
                index,
                size: region.size,
                wide,
                parts: Vec::new(),
                at: None,
            };
            let hole = match &self.msix {
                Some(m) if m.bar == index => {
                    let end = m.offset + 16 * m.entries.len() as u64;
                    (m.offset & !(PAGE - 1), end.next_multiple_of(PAGE))
                }
                _ => (region.size, region.size),
            };
            for (from, to) in [(0, hole.0), (hole.1, region.size)] {
                if from < to {
                    bar.parts
                        .push(self.map_part(region.offset, from, to - from, *slot)?);
                    *slot += 1;
                }
            }
            self.bars.push(bar);
            index += if wide { 2 } else { 1 };
        }
        Ok(())
    }

    fn map_part(&self, region: u64, offset: u64, length: u64, slot: u32) -> Result<Part> {
        // SAFETY: a new mapping at an address of the system's choice; nothing is replaced.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.file.as_raw_fd(),
                (region + offset) as libc::off_t,
            )
        };
        if host == libc::MAP_FAILED {
            return Err(Error::Os {
                what: "mapping the device's registers",
                source: std::io::Error::last_os_error(),
            });
        }
        Ok(Part {
            offset,
            length,
            host,
            slot,
        })
    }

    /// What a base address register holds.
    fn address(&self, bar: &Bar) -> u64 {
        let at = reg::BAR0 + 4 * bar.index;
        let low = u64::from(le32(&self.config, at) & !0xf);
        if bar.wide {
            low | u64::from(le32(&self.config, at + 4)) << 32
        } else {
            low
        }
    }

    /// Registers where the guest has them, or nowhere.
    fn place(&mut self, vm: &VmFd) {
        let decoding = self.config[reg::COMMAND] & MEMORY != 0;
        let wanted: Vec<_> = self
            .bars
            .iter()
            .map(|bar| decoding.then(|| self.address(bar)))
            .collect();
        for (bar, want) in self.bars.iter_mut().zip(wanted) {
            if bar.at == want {
                continue;
            }
            for part in &bar.parts {
                let region = |address: u64, size| kvm_userspace_memory_region {
                    slot: part.slot,
                    guest_phys_addr: address + part.offset,
                    memory_size: size,
                    userspace_addr: part.host as u64,
                    flags: 0,
                };
                if let Some(old) = bar.at {
                    // SAFETY: takes a slot away.
                    if let Err(error) = unsafe { vm.set_user_memory_region(region(old, 0)) } {
                        tracing::debug!(%error, "registers were not mapped");
                    }
                }
                if let Some(new) = want {
                    let new = region(new, part.length);
                    // SAFETY: the part is mapped as long as `self` lives, which outlives the vCPUs' running.
                    let done = unsafe { vm.set_user_memory_region(new) };
                    if let Err(error) = done {
                        let address = new.guest_phys_addr;
                        tracing::warn!(%error, address, "registers cannot be mapped there");
                    }
                }
            }
            bar.at = want;
        }
    }

    /// Applies what the copy says. True when routes have changed.
    fn apply(&mut self, vm: &VmFd) -> bool {
        self.place(vm);
        let master = self.config[reg::COMMAND] & MASTER != 0;
        if master != self.master {
            self.master = master;
            if let Err(error) = sys::set_master(&self.file, master) {
                tracing::warn!(%error, "bus mastering");
            }
        }
        let mut changed = false;
        if let Some(msix) = &mut self.msix {
            let on = self.config[msix.cap + 3] & 0xc0 == 0x80;
            if on != msix.active {
                msix.active = on;
                let gsis: Vec<u32> = if on {
                    msix.entries
                        .iter()
                        .enumerate()
                        .map(|(i, e)| gsi_of(self.gsi, i, e))
                        .collect()
                } else {
                    Vec::new()
                };
                changed = true;
                if let Err(error) = sys::set_irqs(&self.file, sys::IRQ_MSIX, &gsis) {
                    tracing::warn!(%error, "MSI-X");
                }
            }
        }
        if let Some(msi) = &mut self.msi {
            let on = self.config[msi.cap + 2] & 1 != 0;
            if on != msi.active {
                msi.active = on;
                let gsi = [self.gsi];
                let gsis = if on { &gsi[..] } else { &[] };
                if let Err(error) = sys::set_irqs(&self.file, sys::IRQ_MSI, gsis) {
                    tracing::warn!(%error, "MSI");
                }
            }
            changed |= on;
        }
        self.apply_pin();
        changed
    }

    fn sends_messages(&self) -> bool {
        self.msix.as_ref().is_some_and(|m| m.active) || self.msi.as_ref().is_some_and(|m| m.active)
    }

    /// What the pin should be. Messages take its place (PCI 3.0 6.8.1.3).
    fn wanted_pin(&self) -> Pin {
        // A guest that has not switched the device on listens to no pin.
        let used = self.config[reg::COMMAND] & (MEMORY | MASTER) != 0;
        if self.sends_messages() || !used || self.pin_gsi.is_none() {
            Pin::Unused
        } else if self.config[reg::COMMAND + 1] & INTERRUPT_DISABLE != 0 {
            Pin::Off
        } else {
            Pin::On
        }
    }

    fn apply_pin(&mut self) {
        let (Some(gsi), want) = (self.pin_gsi, self.wanted_pin()) else {
            return;
        };
        let before = std::mem::replace(&mut self.pin, want);
        let gsi = if want == Pin::On { gsi } else { sys::GSI_NONE };
        let done = match (before, want) {
            _ if before == want => Ok(()),
            // Messages have switched it off already.
            (_, Pin::Unused) if self.sends_messages() => Ok(()),
            (_, Pin::Unused) => sys::set_irqs(&self.file, sys::IRQ_INTX, &[]),
            (Pin::Unused, _) => sys::set_irqs(&self.file, sys::IRQ_INTX, &[gsi]),
            _ => sys::set_vector(&self.file, DeviceVector { vector: 0, gsi }),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "interrupt pin");
        }
    }

    fn write_config(&mut self, at: usize, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            if let (Some(to), Some(mask)) = (self.config.get_mut(at + i), self.writable.get(at + i))
            {
                *to = *to & !mask | byte & mask;
            }
        }
    }

    /// Messages that may come: GSI, address, data.
    fn routes(&self) -> Vec<(u32, u64, u32)> {
        let mut routes = Vec::new();
        if let Some(msix) = self.msix.as_ref().filter(|m| m.active) {
            for (i, e) in msix.entries.iter().enumerate() {
                if e[3] & ENTRY_MASKED == 0 {
                    routes.push((
                        self.gsi + i as u32,
                        u64::from(e[1]) << 32 | u64::from(e[0]),
                        e[2],
                    ));
                }
            }
        }
        if let Some(msi) = self.msi.as_ref().filter(|m| m.active) {
            let low = u64::from(le32(&self.config, msi.cap + 4));
            let wide = self.config[msi.cap + 2] & 0x80 != 0;
            let (high, data) = if wide {
                (
                    u64::from(le32(&self.config, msi.cap + 8)),
                    le32(&self.config, msi.cap + 12),
                )
            } else {
                (0, le32(&self.config, msi.cap + 8))
            };
            routes.push((self.gsi, high << 32 | low, data & 0xffff));
        }
        routes
    }

    /// The word of the MSI-X table at a guest-physical address.
    fn table_word(&self, address: u64) -> Option<(usize, usize)> {
        let msix = self.msix.as_ref()?;
        let bar = self.bars.iter().find(|b| b.index == msix.bar)?;
        let offset = address.checked_sub(bar.at? + msix.offset)?;
        let entry = usize::try_from(offset / 16).ok()?;
        (address < bar.at? + bar.size && entry < msix.entries.len())
            .then_some((entry, (offset % 16 / 4) as usize))
    }
}

/// The GSI of an entry, none while it is masked.
fn gsi_of(first: u32, index: usize, entry: &[u32; 4]) -> u32 {
    if entry[3] & ENTRY_MASKED != 0 {
        sys::GSI_NONE
    } else {
        first + index as u32
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
        let (mut gsi, mut window, mut slot) = (FIRST_GSI, WINDOW, FIRST_SLOT);
        let mut functions = Vec::new();
        let pins = wiring(addresses.len());
        for (address, (_, pin)) in addresses.iter().zip(pins) {
            let function = Function::new(&vm, *address, gsi, pin.into(), &mut window, &mut slot)?;
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

    fn set_routes(&self) {
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
            // As the default routes, which the MP table describes.
            entries.push(pin(gsi, KVM_IRQCHIP_IOAPIC, gsi));
        }
        for (gsi, address, data) in self.functions.iter().flat_map(Function::routes) {
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
            .and_then(|table| self.vm.set_gsi_routing(&table).map_err(|e| e.to_string()));
        if let Err(error) = done {
            tracing::warn!(error, "KVM_SET_GSI_ROUTING");
        }
    }

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
                Some(function) => &function.config,
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
        function.write_config(at, data);
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

/// A file from a descriptor that an ioctl has made.
pub(crate) fn file_of(fd: libc::c_int) -> File {
    // SAFETY: the ioctl returned a new descriptor that nobody else owns.
    unsafe { File::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |text: &str| text.parse::<Address>().map(|a| a.to_string());
        assert_eq!(parse("00:04.0").unwrap(), "0000:00:04.0");
        assert_eq!(parse("0001:fe:1f.7").unwrap(), "0001:fe:1f.7");
        for bad in [
            "",
            "04.0",
            "00:20.0",
            "00:04.8",
            "0:0:0:0.0",
            "00:04",
            "100:04.0",
            "x:y.z",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    fn function(msi: bool) -> Function {
        let mut config = [0; 256];
        put32(&mut config, 0, 0x11e8_1234);
        config[reg::COMMAND] = 7;
        put32(&mut config, reg::BAR0, 0xfe00_0000);
        config[reg::CAPABILITIES] = 0x40;
        // Enabled by the host, 64 bits, capable of 4, mask bits.
        put32(
            &mut config,
            0x40,
            if msi { 0x0185_0005 } else { 0x8041_0011 },
        );
        let mut this = Function {
            file: File::open("/dev/null").unwrap(),
            config,
            writable: [0; 256],
            bars: Vec::new(),
            msix: None,
            msi: None,
            gsi: 64,
            pin_gsi: Some(17),
            pin: Pin::Unused,
            master: false,
        };
        let mut info = DeviceInfo::default();
        (info.msi, info.msix, info.msix_offset) = (1, 65, 0x2000);
        this.prepare_header();
        this.prepare_capabilities(&info);
        this
    }

    #[test]
    fn the_copy_starts_switched_off() {
        let f = function(true);
        assert_eq!(f.config[reg::COMMAND], 0);
        assert_eq!(le32(&f.config, 0x40), 0x0080_0005);
        let f = function(false);
        assert_eq!(le32(&f.config, 0x40), 0x0041_0011);
        assert_eq!(f.msix.unwrap().entries.len(), 65);
    }

    #[test]
    fn only_what_may_be_written() {
        let mut f = function(true);
        let before = f.config;
        f.write_config(0, &[0xff; 4]);
        f.write_config(0x40, &[0xff; 2]);
        f.write_config(0x34, &[0xff; 1]);
        f.write_config(0x30, &[0xff; 4]);
        f.write_config(0xfe, &[0xff; 4]);
        assert_eq!(f.config, before);
        f.write_config(4, &[0xff; 2]);
        assert_eq!(f.config[4..6], [0x47, 0x05]);
        f.write_config(0x42, &[0x01, 0x00]);
        f.write_config(0x44, &[0x0c, 0x10, 0xe0, 0xfe]);
        f.write_config(0x4c, &[0x41, 0x00]);
        f.msi.as_mut().unwrap().active = true;
        assert_eq!(f.routes(), [(64, 0xfee0_100c, 0x41)]);
    }

    #[test]
    fn the_pin_gives_way_to_messages() {
        let mut f = function(true);
        assert_eq!((f.config[0x3c], f.config[0x3d]), (17, 1));
        assert_eq!(f.wanted_pin(), Pin::Unused);
        f.write_config(4, &[2, 0]);
        assert_eq!(f.wanted_pin(), Pin::On);
        f.write_config(4, &[2, 4]);
        assert_eq!(f.wanted_pin(), Pin::Off);
        f.msi.as_mut().unwrap().active = true;
        assert_eq!(f.wanted_pin(), Pin::Unused);
        f.msi.as_mut().unwrap().active = false;
        f.pin_gsi = None;
        assert_eq!(f.wanted_pin(), Pin::Unused);
        f.prepare_header();
        assert_eq!((f.config[0x3c], f.config[0x3d]), (0, 0));
        assert_eq!(wiring(10)[0], (1, 16));
        assert_eq!(wiring(10)[9], (10, 17));
        assert_eq!(wiring(100).len(), 31);
    }

    #[test]
    fn table_of_msix() {
        let mut f = function(false);
        f.bars.push(Bar {
            index: 0,
            size: 0x4000,
            wide: true,
            parts: Vec::new(),
            at: Some(0xe000_0000),
        });
        assert_eq!(f.table_word(0xe000_1ffc), None);
        assert_eq!(f.table_word(0xe000_2000), Some((0, 0)));
        assert_eq!(f.table_word(0xe000_201c), Some((1, 3)));
        assert_eq!(f.table_word(0xe000_2000 + 65 * 16), None);
        assert!(f.routes().is_empty());
        let msix = f.msix.as_mut().unwrap();
        msix.active = true;
        msix.entries[2] = [0xfee0_0000, 1, 0x31, 0];
        assert_eq!(f.routes(), [(66, 0x1_fee0_0000, 0x31)]);
        assert_eq!(gsi_of(64, 3, &[0, 0, 0, 1]), sys::GSI_NONE);
    }
}
