// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a machine with virtio devices is described by: ACPI tables (ACPI 6.5, chapter 5), and the registers of a fixed
//! power button (4.8.3).

mod aml;

use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::bus::Device;
use crate::pci::{WINDOW, WINDOW_END};
use crate::sys;
use crate::virtio::{ECAM, ECAM_LENGTH};
use crate::{layout, platform, serial};

/// First port of the power management events: status, and enable at +2. The control register follows
/// ([`platform::POWER_PORT`]).
pub const EVENT_PORT: u64 = 0x600;
/// Number of ports of the power management events.
pub const EVENT_PORTS: u64 = 4;
/// Interrupt of the power management events.
const SCI: u32 = 9;
/// Interrupt, an edge, of another generation.
const GENERATION_IRQ: u32 = 5;
/// The sleep type that `\_S5` has; the control register powers off whatever the type.
const S5: u32 = 5;

/// Bit of event status and enable: the power button.
const POWER_BUTTON: u16 = 1 << 8;
/// Bits of event status and enable that are there: timer, global lock, buttons, clock.
const EVENTS: u16 = 0x0721;

/// Bytes of a table's header.
const HEADER: usize = 36;
/// Bytes of the root pointer.
const POINTER: usize = 36;

fn sum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

/// A table with its header and checksum (5.2.6).
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(&[revision, 0]);
    bytes.extend_from_slice(b"RVMM  RVMMVM  ");
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(b"RVMM");
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes[9] = sum(&bytes);
    bytes
}

/// Interrupt controllers (5.2.12).
fn madt(cpus: u8) -> Vec<u8> {
    let mut body = layout::LAPIC.to_le_bytes().to_vec();
    // There are 8259s as well.
    body.extend_from_slice(&1u32.to_le_bytes());
    for id in 0..cpus {
        body.extend_from_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    body.extend_from_slice(&[1, 12, cpus, 0]);
    body.extend_from_slice(&layout::IOAPIC.to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    // Of ISA's interrupts the SCI alone is another than edge and active high: level, active high.
    body.extend_from_slice(&[2, 10, 0, SCI as u8, SCI as u8, 0, 0, 0, 0x0d, 0]);
    // LINT1 takes the NMI on every CPU.
    body.extend_from_slice(&[4, 6, 0xff, 0, 0, 1]);
    table(b"APIC", 5, &body)
}

/// Configuration space in memory (PCI Firmware Specification 3.3, 4.1.2).
fn mcfg() -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend_from_slice(&ECAM.to_le_bytes());
    body.extend_from_slice(&[0; 8]);
    table(b"MCFG", 1, &body)
}

/// Devices that nothing else tells of.
fn dsdt(cpus: u8) -> Vec<u8> {
    let id = |id: &str| aml::name("_HID", &aml::eisa_id(id));
    let uid = |n: u32| aml::name("_UID", &aml::integer(n));
    let mut devices = vec![
        aml::device(
            "PCI0",
            &[
                id("PNP0A03"),
                uid(0),
                aml::resources(&[
                    aml::bus_numbers(0, 0),
                    aml::ports(crate::pci::PORT as u16, crate::pci::PORTS as u8),
                    aml::bridge_memory(WINDOW as u32, (WINDOW_END - 1) as u32),
                ]),
            ],
        ),
        // Linux uses configuration space in memory only where it is reserved.
        aml::device(
            "RES0",
            &[
                id("PNP0C02"),
                uid(0),
                aml::resources(&[aml::memory(ECAM as u32, ECAM_LENGTH as u32)]),
            ],
        ),
        aml::device(
            "COM1",
            &[
                id("PNP0501"),
                uid(0),
                aml::resources(&[
                    aml::ports(serial::PORT as u16, serial::PORTS as u8),
                    aml::irq(serial::IRQ as u8),
                ]),
            ],
        ),
        aml::device(
            "RTC0",
            &[
                id("PNP0B00"),
                aml::resources(&[aml::ports(platform::CMOS_PORT as u16, 2)]),
            ],
        ),
    ];
    // Another machine from the same file has another number there (Virtual Machine Generation ID, 2012).
    let names = ["VM_Gen_Counter", "VMGENCTR"].map(aml::string);
    devices.push(aml::device(
        "VGEN",
        &[
            aml::name("_HID", &aml::string("RVMMVGID")),
            aml::name("_CID", &aml::package(&names)),
            aml::name("_DDN", &names[0]),
            aml::name(
                "ADDR",
                &aml::package(&[layout::GENERATION as u32, 0].map(aml::integer)),
            ),
        ],
    ));
    // The generic event device (5.6.9) tells of it.
    devices.push(aml::device(
        "GED0",
        &[
            aml::name("_HID", &aml::string("ACPI0013")),
            uid(0),
            aml::resources(&[aml::irq(GENERATION_IRQ as u8)]),
            aml::method("_EVT", 1, &aml::notify("VGEN", 0x80)),
        ],
    ));
    devices.extend((0..cpus).map(|cpu| {
        let id = aml::name("_HID", &aml::string("ACPI0007"));
        aml::device(&format!("C{cpu:03X}"), &[id, uid(cpu.into())])
    }));
    let off = aml::package(&[S5, 0, 0, 0].map(aml::integer));
    let body = [aml::system_bus(&devices.concat()), aml::name("_S5", &off)].concat();
    table(b"DSDT", 2, &body)
}

/// The fixed hardware (5.2.9). There is no SMI command: the machine is in ACPI mode from the start.
fn fadt(dsdt: u64, facs: u64) -> Vec<u8> {
    let mut body = vec![0; 276 - HEADER];
    let mut put = |at: usize, bytes: &[u8]| {
        body[at - HEADER..at - HEADER + bytes.len()].copy_from_slice(bytes)
    };
    let events = (EVENT_PORT as u32).to_le_bytes();
    let control = (platform::POWER_PORT as u32).to_le_bytes();
    put(36, &(facs as u32).to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    put(46, &(SCI as u16).to_le_bytes());
    put(56, &events);
    put(64, &control);
    put(88, &[EVENT_PORTS as u8, 2]);
    // No C2 and no C3.
    put(96, &101u16.to_le_bytes());
    put(98, &1001u16.to_le_bytes());
    // The clock's cell of the century.
    put(108, &[0x32]);
    // Legacy devices; no 8042, no VGA, no ASPM.
    put(109, &0x0015u16.to_le_bytes());
    // WBINVD; C1 on all; no sleep button (the power button is fixed); no clock alarm; a reset register; headless.
    put(
        112,
        &(1u32 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 12).to_le_bytes(),
    );
    // An address of ports: space, bits, offset, size of accesses.
    let port =
        |bits: u8, size: u8, port: u64| [&[1, bits, 0, size][..], &port.to_le_bytes()].concat();
    put(116, &port(8, 1, platform::I8042_PORT + 4));
    put(128, &[0xfe]);
    put(131, &[5]);
    put(132, &facs.to_le_bytes());
    put(140, &dsdt.to_le_bytes());
    put(148, &port(32, 2, EVENT_PORT));
    put(172, &port(16, 2, platform::POWER_PORT));
    put(268, b"rvmm");
    table(b"FACP", 6, &body)
}

/// All tables of a machine with so many CPUs, to be placed at `base`; the root pointer is first.
pub fn build(cpus: u8, base: u64) -> Vec<u8> {
    let mut all = vec![0; POINTER];
    let mut place = |table: Vec<u8>| {
        // The FACS wants 64.
        all.resize(all.len().next_multiple_of(64), 0);
        let at = base + all.len() as u64;
        all.extend(table);
        at
    };
    let mut facs = b"FACS".to_vec();
    facs.extend_from_slice(&64u32.to_le_bytes());
    facs.resize(64, 0);
    facs[32] = 2;
    let facs = place(facs);
    let dsdt = place(dsdt(cpus));
    let entries = [place(fadt(dsdt, facs)), place(madt(cpus)), place(mcfg())];
    let entries: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    let xsdt = place(table(b"XSDT", 1, &entries));

    let pointer = &mut all[..POINTER];
    pointer[..8].copy_from_slice(b"RSD PTR ");
    pointer[9..15].copy_from_slice(b"RVMM  ");
    pointer[15] = 2;
    pointer[20] = POINTER as u8;
    pointer[24..32].copy_from_slice(&xsdt.to_le_bytes());
    pointer[8] = sum(&pointer[..20]);
    pointer[32] = sum(pointer);
    all
}

/// Gives a machine a number of 128 bits that no other has.
pub(crate) fn set_generation(memory: &GuestMemoryMmap) -> std::io::Result<()> {
    let number: [u8; 16] = sys::random()?;
    let written = memory.write_slice(&number, GuestAddress(layout::GENERATION));
    written.map_err(std::io::Error::other)
}

/// Tells the guest that its number is another one.
pub(crate) fn tell_generation(vm: &VmFd) {
    for up in [true, false] {
        if let Err(error) = vm.set_irq_line(GENERATION_IRQ, up) {
            tracing::warn!(%error, "KVM_IRQ_LINE");
        }
    }
}

/// The registers of power management events, and the line of their interrupt.
pub(crate) struct PowerEvents {
    vm: Arc<VmFd>,
    status: u16,
    enabled: u16,
    asserted: bool,
}

impl PowerEvents {
    pub(crate) fn new(vm: &Arc<VmFd>) -> Self {
        Self {
            vm: vm.clone(),
            status: 0,
            enabled: 0,
            asserted: false,
        }
    }

    /// Status and enable.
    pub(crate) fn state(&self) -> (u16, u16) {
        (self.status, self.enabled)
    }

    /// Makes the registers what they were.
    pub(crate) fn restore(&mut self, (status, enabled): (u16, u16)) {
        (self.status, self.enabled) = (status & EVENTS, enabled & EVENTS);
        self.update();
    }

    fn update(&mut self) {
        let asserted = self.status & self.enabled != 0;
        if asserted != self.asserted {
            self.asserted = asserted;
            if let Err(error) = self.vm.set_irq_line(SCI, asserted) {
                tracing::warn!(%error, "KVM_IRQ_LINE");
            }
        }
    }
}

impl Device for PowerEvents {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let [a, b] = self.status.to_le_bytes();
        let [c, d] = self.enabled.to_le_bytes();
        let registers = [a, b, c, d];
        for (n, byte) in (offset as usize..).zip(data) {
            *byte = registers.get(n).copied().unwrap_or(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (n, byte) in (offset..).zip(data) {
            let shift = 8 * (n & 1);
            let (bits, mask) = (u16::from(*byte) << shift, 0xff << shift);
            match n {
                // Ones clear (4.8.3.1.1).
                0 | 1 => self.status &= !bits,
                2 | 3 => self.enabled = self.enabled & !mask | bits & EVENTS,
                _ => {}
            }
        }
        self.update();
    }
}

/// The machine's power button.
#[derive(Clone)]
pub struct PowerButton(pub(crate) Arc<Mutex<PowerEvents>>);

impl PowerButton {
    /// Presses it. What the guest does about it is its own.
    pub fn press(&self) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.status |= POWER_BUTTON;
        events.update();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xf_0000;

    fn at(all: &[u8], address: u64) -> &[u8] {
        let table = &all[(address - BASE) as usize..];
        let length = u32::from_le_bytes(table[4..8].try_into().unwrap());
        &table[..length as usize]
    }

    #[test]
    fn every_table_is_found_and_adds_up() {
        for cpus in [1, 2, 254] {
            let all = build(cpus, BASE);
            assert!(all.len() <= layout::TABLES_MAX);
            assert_eq!((sum(&all[..20]), sum(&all[..36])), (0, 0));
            let xsdt = at(&all, u64::from_le_bytes(all[24..32].try_into().unwrap()));
            assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
            let entries = xsdt[HEADER..].chunks(8);
            let entries: Vec<_> = entries
                .map(|entry| at(&all, u64::from_le_bytes(entry.try_into().unwrap())))
                .collect();
            let names: Vec<_> = entries.iter().map(|table| &table[..4]).collect();
            assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
            assert!(entries.iter().all(|table| sum(table) == 0));
            let dsdt = at(
                &all,
                u64::from_le_bytes(entries[0][140..148].try_into().unwrap()),
            );
            assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
            let facs = u64::from_le_bytes(entries[0][132..140].try_into().unwrap());
            assert_eq!((facs % 64, &at(&all, facs)[..4]), (0, &b"FACS"[..]));
            let local = entries[1][HEADER + 8..]
                .chunks(8)
                .take_while(|entry| entry[0] == 0);
            assert_eq!(local.count(), usize::from(cpus));
        }
    }
}
