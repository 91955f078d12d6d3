// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's copy of a function's configuration space (PCI Local Bus Specification 3.0, 6.1), and its registers.

/// Registers of configuration space.
pub mod reg {
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const CACHE_LINE: usize = 0x0c;
    pub const BAR0: usize = 0x10;
    pub const ROM: usize = 0x30;
    pub const CAPABILITIES: usize = 0x34;
    pub const IRQ_LINE: usize = 0x3c;
}

/// Bit of the command register: the function decodes memory accesses.
pub const MEMORY: u8 = 1 << 1;
/// Bit of the command register: the function may master the bus.
pub const MASTER: u8 = 1 << 2;
/// Bit of the command register's second byte: the pin is off.
pub const INTERRUPT_DISABLE: u8 = 1 << 2;
/// Bit of the status register: the device would assert its pin.
pub const INTERRUPT_STATUS: u8 = 1 << 3;

/// Capabilities whose writable bits the copy has.
pub mod cap {
    pub const PM: u8 = 0x01;
    pub const MSI: u8 = 0x05;
    pub const PCIE: u8 = 0x10;
    pub const MSIX: u8 = 0x11;
}

/// The four bytes at an offset, 0 beyond the end.
pub fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Changes the four bytes at an offset, nothing beyond the end.
pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(to) = bytes.get_mut(at..at + 4) {
        to.copy_from_slice(&value.to_le_bytes());
    }
}

/// A copy of 256 bytes of configuration space.
pub struct Config {
    /// What the guest reads.
    pub bytes: [u8; 256],
    /// Bits that the guest can change.
    writable: [u8; 256],
}

impl Config {
    /// A copy of which the guest can change nothing yet.
    pub fn new(bytes: [u8; 256]) -> Self {
        Self {
            bytes,
            writable: [0; 256],
        }
    }

    /// The register at an offset.
    pub fn get(&self, at: usize) -> u32 {
        le32(&self.bytes, at)
    }

    /// Sets the register at an offset.
    pub fn set(&mut self, at: usize, value: u32) {
        put32(&mut self.bytes, at, value);
    }

    /// Lets the guest change these bits of the register as well.
    pub fn allow(&mut self, at: usize, mask: u32) {
        let old = le32(&self.writable, at);
        put32(&mut self.writable, at, old | mask);
    }

    /// The guest's write, of which the copy takes what the guest can change.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        let places = self.bytes.iter_mut().zip(&self.writable).skip(at);
        for ((to, mask), byte) in places.zip(data) {
            *to = *to & !mask | byte & mask;
        }
    }
}
