// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The capabilities by which a function sends messages (PCI Local Bus Specification 3.0, 6.8).

use std::ops::Range;

use super::bars::PAGE;
use super::config::Config;
use crate::sys::{DeviceInfo, GSI_NONE};

/// Bit of a table entry's last word.
pub const ENTRY_MASKED: u32 = 1;

/// The MSI-X capability.
pub struct MsiX {
    /// Offset in configuration space.
    pub cap: usize,
    /// Base address register with the table.
    pub bar: usize,
    /// Offset of the table behind that register.
    pub offset: u64,
    /// The guest's table.
    pub entries: Vec<[u32; 4]>,
    /// Whether the host sends messages.
    pub active: bool,
}

impl MsiX {
    /// Takes over the capability at `cap`: off, whatever the host had, with a masked table.
    pub fn new(config: &mut Config, cap: usize, info: &DeviceInfo) -> Self {
        config.allow(cap, 0xc000_0000);
        config.bytes[cap + 3] &= !0xc0;
        Self {
            cap,
            bar: info.msix_bar as usize,
            offset: info.msix_offset,
            entries: vec![[0, 0, 0, ENTRY_MASKED]; info.msix as usize],
            active: false,
        }
    }

    /// The pages that hold the table, within the base address register.
    pub fn pages(&self) -> Range<u64> {
        let end = self.offset + 16 * self.entries.len() as u64;
        self.offset & !(PAGE - 1)..end.next_multiple_of(PAGE)
    }

    /// The GSI of each entry.
    pub fn gsis(&self, first: u32) -> Vec<u32> {
        let entries = self.entries.iter().enumerate();
        entries.map(|(i, e)| gsi_of(first, i, e)).collect()
    }

    /// Messages that may come: GSI, address, data.
    pub fn routes(&self, first: u32) -> impl Iterator<Item = (u32, u64, u32)> + '_ {
        let entries = self.entries.iter().enumerate();
        entries
            .filter(|(_, e)| self.active && e[3] & ENTRY_MASKED == 0)
            .map(move |(i, e)| {
                let address = u64::from(e[1]) << 32 | u64::from(e[0]);
                (first + i as u32, address, e[2])
            })
    }
}

/// The MSI capability, with one message.
pub struct Msi {
    /// Offset in configuration space.
    pub cap: usize,
    /// Whether the host sends messages.
    pub active: bool,
}

impl Msi {
    /// Takes over the capability at `cap`: off, with one message and no mask bits.
    pub fn new(config: &mut Config, cap: usize) -> Self {
        config.bytes[cap + 2] &= 0x80;
        config.bytes[cap + 3] &= !0x01;
        config.allow(cap, 1 << 16);
        config.allow(cap + 4, !3);
        if Self::is_wide(config, cap) {
            config.allow(cap + 8, !0);
            config.allow(cap + 12, 0xffff);
        } else {
            config.allow(cap + 8, 0xffff);
        }
        Self { cap, active: false }
    }

    /// Whether the message has an address of 64 bits.
    fn is_wide(config: &Config, cap: usize) -> bool {
        config.bytes[cap + 2] & 0x80 != 0
    }

    /// The message that may come: address, data.
    pub fn message(&self, config: &Config) -> Option<(u64, u32)> {
        let (mut address, mut data) = (u64::from(config.get(self.cap + 4)), self.cap + 8);
        if Self::is_wide(config, self.cap) {
            address |= u64::from(config.get(data)) << 32;
            data += 4;
        }
        self.active.then(|| (address, config.get(data) & 0xffff))
    }
}

/// The GSI of an entry, none while it is masked.
pub fn gsi_of(first: u32, index: usize, entry: &[u32; 4]) -> u32 {
    if entry[3] & ENTRY_MASKED != 0 {
        GSI_NONE
    } else {
        first + index as u32
    }
}
