// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The memory map handed to the guest kernel in the zero page (boot.rst, `e820_table`).

use crate::layout;

/// Memory the kernel may use.
pub const RAM: u32 = 1;
/// Memory the kernel must leave alone.
pub const RESERVED: u32 = 2;

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First byte, guest-physical.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// [`RAM`] or [`RESERVED`].
    pub kind: u32,
}

/// The map of a machine with `size` bytes of RAM, ordered and without overlap.
///
/// Conventional memory up to 639 KiB is RAM, from there to 1 MiB reserved (the MP table is there),
/// RAM from 1 MiB to the hole below 4 GiB, the rest from 4 GiB.
pub fn map(size: u64) -> Vec<Entry> {
    let mut entries = vec![
        Entry {
            start: 0,
            length: layout::LOW_RAM_END,
            kind: RAM,
        },
        Entry {
            start: layout::LOW_RAM_END,
            length: layout::HIGH_RAM - layout::LOW_RAM_END,
            kind: RESERVED,
        },
    ];
    for (start, length) in layout::ram_ranges(size) {
        let from = start.max(layout::HIGH_RAM);
        if start + length > from {
            entries.push(Entry {
                start: from,
                length: start + length - from,
                kind: RAM,
            });
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable(entries: &[Entry]) -> u64 {
        entries
            .iter()
            .filter(|e| e.kind == RAM)
            .map(|e| e.length)
            .sum()
    }

    #[test]
    fn ordered_without_overlap() {
        for size in [64 << 20, 3 << 30, (3 << 30) + 4096, 8u64 << 30] {
            let entries = map(size);
            for pair in entries.windows(2) {
                assert!(
                    pair[0].start + pair[0].length <= pair[1].start,
                    "{entries:x?}"
                );
            }
            assert_eq!(
                usable(&entries),
                size - (layout::HIGH_RAM - layout::LOW_RAM_END)
            );
        }
    }

    #[test]
    fn nothing_in_the_hole() {
        for entry in map(8 << 30) {
            let end = entry.start + entry.length;
            assert!(
                end <= layout::HOLE_START || entry.start >= layout::HOLE_END,
                "{entry:x?}"
            );
        }
    }
}
