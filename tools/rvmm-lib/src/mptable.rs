// SPDX-License-Identifier: Apache-2.0 OR MIT
//! MultiProcessor configuration table (Intel MultiProcessor Specification 1.4, chapter 4), which
//! tells a guest without ACPI about its CPUs, its IOAPIC and how ISA interrupts reach it.

use crate::layout;

/// Bytes of the floating pointer structure (4.1).
pub const POINTER_LEN: usize = 16;
/// Bytes of the configuration table header (4.2).
pub const HEADER_LEN: usize = 44;
/// ISA interrupt that is the cascade of the second PIC and never reaches the IOAPIC.
const CASCADE: u8 = 2;
/// Version reported by the LAPIC and IOAPIC models.
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;

/// Interrupt types of 4.3.4.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// The byte that makes the sum of `bytes` and itself zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// Floating pointer and configuration table for `cpus` CPUs with APIC ids 0 to `cpus - 1`, to be
/// placed at [`layout::TABLES`].
///
/// `signature` and `features` are EAX and EDX of CPUID leaf 1. The IOAPIC's id is `cpus`. `pci` has the
/// devices on PCI bus 0 and the pin of the IOAPIC that their INTA# goes to; without any there is no PCI bus.
pub fn build(cpus: u8, signature: u32, features: u32, pci: &[(u8, u8)]) -> Vec<u8> {
    let ioapic_id = cpus;
    let mut body = Vec::new();
    let mut entries = 0u16;

    for id in 0..cpus {
        let bsp = u8::from(id == 0) << 1;
        body.extend_from_slice(&[0, id, LAPIC_VERSION, 1 | bsp]);
        body.extend_from_slice(&signature.to_le_bytes());
        body.extend_from_slice(&features.to_le_bytes());
        body.extend_from_slice(&[0; 8]);
        entries += 1;
    }

    // A PCI bus has its own number (D.2); ISA comes last.
    let isa = u8::from(!pci.is_empty());
    if !pci.is_empty() {
        body.extend_from_slice(&[1, 0]);
        body.extend_from_slice(b"PCI   ");
        entries += 1;
    }
    body.extend_from_slice(&[1, isa]);
    body.extend_from_slice(b"ISA   ");
    entries += 1;

    body.extend_from_slice(&[2, ioapic_id, IOAPIC_VERSION, 1]);
    body.extend_from_slice(&layout::IOAPIC.to_le_bytes());
    entries += 1;

    // Polarity and trigger 0: as the bus says, which for ISA is active high, edge. GSI n is pin n.
    for irq in (0..16).filter(|irq| *irq != CASCADE) {
        body.extend_from_slice(&[3, INT, 0, 0, isa, irq, ioapic_id, irq]);
        entries += 1;
    }
    // Level-triggered, as that bus says; its interrupts are numbered by device and pin (D.3).
    for (device, pin) in pci {
        body.extend_from_slice(&[3, INT, 0, 0, 0, device << 2, ioapic_id, *pin]);
        entries += 1;
    }

    // LINT0 takes the PIC on the boot CPU, LINT1 the NMI on every CPU (0xff).
    body.extend_from_slice(&[4, EXT_INT, 0, 0, isa, 0, 0, 0]);
    body.extend_from_slice(&[4, NMI, 0, 0, isa, 0, 0xff, 1]);
    entries += 2;

    let length = (HEADER_LEN + body.len()) as u16;
    let mut table = Vec::with_capacity(POINTER_LEN + usize::from(length));

    table.extend_from_slice(b"_MP_");
    table.extend_from_slice(&(layout::TABLES as u32 + POINTER_LEN as u32).to_le_bytes());
    // Length in 16-byte units, revision 1.4, checksum, feature bytes (no default configuration,
    // virtual-wire mode).
    table.extend_from_slice(&[1, 4, 0, 0, 0, 0, 0, 0]);
    table[10] = checksum(&table[..POINTER_LEN]);

    table.extend_from_slice(b"PCMP");
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[4, 0]);
    table.extend_from_slice(b"RVMM    ");
    table.extend_from_slice(b"VM          ");
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&entries.to_le_bytes());
    table.extend_from_slice(&layout::LAPIC.to_le_bytes());
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&body);
    table[POINTER_LEN + 7] = checksum(&table[POINTER_LEN..]);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn checksums_are_zero() {
        for cpus in [1, 2, 8, 254] {
            let table = build(cpus, 0x0006_06a6, 0x0783_fbff, &crate::pci::wiring(31));
            assert_eq!(sum(&table[..POINTER_LEN]), 0);
            assert_eq!(sum(&table[POINTER_LEN..]), 0);
            assert!(table.len() <= layout::TABLES_MAX);
        }
    }

    #[test]
    fn checksums_lie_where_the_specification_says() {
        let table = build(2, 0, 0, &[]);
        assert_eq!(table[8..10], [1, 4]);
        assert_ne!(table[10], 0);
        assert_eq!(
            table[11..16],
            [0; 5],
            "no default configuration, virtual-wire mode"
        );
        assert_eq!(table[POINTER_LEN + 6], 4);
        assert_eq!(table[POINTER_LEN + 8..POINTER_LEN + 16], *b"RVMM    ");
    }

    #[test]
    fn header_agrees_with_the_entries() {
        let cpus = 4;
        let table = build(cpus, 1, 2, &[(1, 16), (2, 17)]);
        let header = &table[POINTER_LEN..POINTER_LEN + HEADER_LEN];
        assert_eq!(
            u16::from_le_bytes([header[4], header[5]]) as usize,
            table.len() - POINTER_LEN
        );
        let mut counts = [0u16; 5];
        let mut at = POINTER_LEN + HEADER_LEN;
        while at < table.len() {
            let kind = table[at];
            counts[usize::from(kind)] += 1;
            at += if kind == 0 { 20 } else { 8 };
        }
        assert_eq!(at, table.len());
        assert_eq!(counts, [u16::from(cpus), 2, 1, 17, 2]);
        assert_eq!(
            u16::from_le_bytes([header[34], header[35]]),
            counts.iter().sum::<u16>()
        );
    }

    #[test]
    fn one_boot_cpu() {
        let table = build(3, 0, 0, &[]);
        let first = POINTER_LEN + HEADER_LEN;
        let flags: Vec<u8> = (0..3).map(|cpu| table[first + 20 * cpu + 3]).collect();
        assert_eq!(flags, [3, 1, 1]);
    }

    #[test]
    fn pointer_points_at_the_table() {
        let table = build(1, 0, 0, &[]);
        let at = u32::from_le_bytes(table[4..8].try_into().unwrap());
        assert_eq!(u64::from(at), layout::TABLES + POINTER_LEN as u64);
        assert_eq!(&table[POINTER_LEN..POINTER_LEN + 4], b"PCMP");
    }
}
