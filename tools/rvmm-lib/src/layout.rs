// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where things lie in guest-physical memory.
//!
//! Everything below 1 MiB that the launcher writes is read by the guest kernel before it reserves
//! or reuses low memory, except the machine's tables, which lie in the BIOS area that no kernel allocates.

/// Word in the BIOS data area where a kernel notes what kind of reset it asks for.
pub const RESET_KIND: u64 = 0x472;
/// A reset that leaves memory as it is.
pub const RESET_WARM: u16 = 0x1234;
/// Zero page (`struct boot_params`), 4 KiB.
pub const ZERO_PAGE: u64 = 0x7000;
/// Global descriptor table of the 64-bit boot protocol.
pub const GDT: u64 = 0x500;
/// First page of the identity-mapping page tables: 1 PML4, 1 PDPT, 4 page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// Initial stack pointer; grows down towards the page tables.
pub const STACK_TOP: u64 = 0x8ff0;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line, its final zero included.
pub const CMDLINE_MAX: usize = 0x1_0000;
/// End of conventional memory; from here to 1 MiB lie the legacy video and BIOS areas.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// MP floating pointer structure or ACPI's root pointer, in the BIOS area that both specifications (MP 4, ACPI 5.2.5.1)
/// have scanned.
pub const TABLES: u64 = 0xf_0000;
/// Room for the MP table, or ACPI's tables.
pub const TABLES_MAX: usize = 0x1_0000;
/// The number of the machine's generation, 16 bytes, in the area of option ROMs.
pub const GENERATION: u64 = 0xe_f000;
/// First byte above the legacy areas.
pub const HIGH_RAM: u64 = 0x10_0000;
/// Start of the hole below 4 GiB that holds IOAPIC, LAPIC and the hypervisor's own pages.
pub const HOLE_START: u64 = 0xc000_0000;
/// End of the hole below 4 GiB.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// Three pages for real mode on CPUs without unrestricted guest (api.rst 4.35).
pub const TSS: u64 = 0xfffb_d000;
/// Page below the TSS pages for the real-mode identity map (api.rst 4.40).
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// IOAPIC registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LAPIC: u32 = 0xfee0_0000;

/// Splits `size` bytes of RAM around the hole below 4 GiB: `(start, length)` pairs.
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    if size <= HOLE_START {
        vec![(0, size)]
    } else {
        vec![(0, HOLE_START), (HOLE_END, size - HOLE_START)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_around_the_hole() {
        assert_eq!(ram_ranges(512 << 20), [(0, 512 << 20)]);
        assert_eq!(ram_ranges(3 << 30), [(0, 3 << 30)]);
        assert_eq!(ram_ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }
}
