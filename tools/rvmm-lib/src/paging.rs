// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tables that the boot protocols want to find: an identity map for 64-bit kernels and a flat GDT
//! (boot.rst, "32-bit Boot Protocol", "64-bit Boot Protocol"; SDM 3A 4.5, 3.4.5).

use crate::layout;

const PRESENT_WRITE: u64 = 0x3;
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 4096;
const ENTRIES: u64 = 512;

/// Gigabytes mapped; the kernel needs itself, the zero page and the command line mapped, and some
/// early code touches the LAPIC below 4 GiB.
pub const GIGABYTES: u64 = 4;
/// Bytes of all tables: PML4, PDPT and one page directory per gigabyte.
pub const LENGTH: usize = ((2 + GIGABYTES) * PAGE) as usize;

/// Tables mapping the first 4 GiB to themselves by 2 MiB pages, to be placed at `base`.
pub fn identity_map(base: u64) -> Vec<u8> {
    let mut tables = Vec::with_capacity(LENGTH);
    let pdpt = base + PAGE;
    let directories = pdpt + PAGE;
    let mut push = |count: u64, entry: &dyn Fn(u64) -> u64| {
        for index in 0..ENTRIES {
            let value = if index < count { entry(index) } else { 0 };
            tables.extend_from_slice(&value.to_le_bytes());
        }
    };
    push(1, &|_| pdpt | PRESENT_WRITE);
    push(GIGABYTES, &|gib| (directories + gib * PAGE) | PRESENT_WRITE);
    for gib in 0..GIGABYTES {
        push(ENTRIES, &|index| {
            ((gib << 30) + (index << 21)) | PRESENT_WRITE | LARGE
        });
    }
    tables
}

/// Selectors that the boot protocol fixes: `__BOOT_CS` and `__BOOT_DS`.
pub const BOOT_CS: u16 = 0x10;
/// See [`BOOT_CS`].
pub const BOOT_DS: u16 = 0x18;
/// Selector of the task-state segment.
pub const BOOT_TSS: u16 = 0x20;

/// The mode in which a kernel's boot CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 32-bit protected mode without paging.
    Protected,
    /// 64-bit mode, memory mapped to itself.
    Long,
}

/// The GDT: null, unused, flat code of the mode, flat data, and a 16-byte busy TSS.
pub fn gdt(mode: Mode) -> [u64; 6] {
    [
        0,
        0,
        match mode {
            Mode::Protected => 0x00cf_9b00_0000_ffff,
            Mode::Long => 0x00af_9b00_0000_ffff,
        },
        0x00cf_9300_0000_ffff,
        0x0000_8b00_0000_0067,
        0,
    ]
}

/// The GDT as bytes, to be placed at [`layout::GDT`].
pub fn gdt_bytes(mode: Mode) -> Vec<u8> {
    gdt(mode)
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

const _: () = assert!(layout::PAGE_TABLES + LENGTH as u64 <= layout::CMDLINE);

#[cfg(test)]
mod tests {
    use super::*;

    /// What the MMU does: four levels down from CR3, large pages at the third.
    fn translate(tables: &[u8], base: u64, address: u64) -> Option<u64> {
        let read = |at: u64| {
            let at = (at - base) as usize;
            u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
        };
        let mut table = base;
        for shift in [39, 30, 21] {
            let entry = read(table + ((address >> shift) & 511) * 8);
            if entry & 1 == 0 {
                return None;
            }
            if entry & LARGE != 0 {
                return Some((entry & !0x1f_ffff) + (address & 0x1f_ffff));
            }
            table = entry & !0xfff;
        }
        None
    }

    #[test]
    fn maps_itself_up_to_the_end() {
        let base = layout::PAGE_TABLES;
        let tables = identity_map(base);
        assert_eq!(tables.len(), LENGTH);
        for address in [
            0,
            0x7000,
            0x10_0000,
            0x3fff_ffff,
            0x4000_0000,
            0xfee0_0020,
            0xffff_ffff,
        ] {
            assert_eq!(translate(&tables, base, address), Some(address));
        }
        assert_eq!(translate(&tables, base, 1 << 32), None);
    }

    #[test]
    fn gdt_selectors() {
        for mode in [Mode::Protected, Mode::Long] {
            let gdt = gdt(mode);
            let (code, data) = (gdt[usize::from(BOOT_CS) / 8], gdt[usize::from(BOOT_DS) / 8]);
            // Code: present, code segment, either long or 32-bit. Data: present, writable.
            assert_eq!((code >> 40) & 0xff, 0x9b);
            assert_eq!((code >> 53) & 1, u64::from(mode == Mode::Long));
            assert_eq!((code >> 54) & 1, u64::from(mode == Mode::Protected));
            assert_eq!((data >> 40) & 0xff, 0x93);
            assert_eq!((gdt[usize::from(BOOT_TSS) / 8] >> 40) & 0xff, 0x8b);
        }
    }
}
