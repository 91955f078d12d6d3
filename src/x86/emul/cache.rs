// SPDX-License-Identifier: GPL-2.0
//! Recently decoded instructions: a driver's register accesses come from the same few places.
#![forbid(unsafe_code)]

use super::decode::decode;
use super::insn::{DecodeError, Insn};
use crate::x86::cpu::regs::Mode;

/// Direct-mapped, a power of two.
const SLOTS: usize = 8;

/// Decoded instructions of one vCPU, found by RIP and checked against the bytes.
///
/// Decoding depends on nothing but mode and bytes, and not on bytes after the instruction: a hit is right whatever the
/// guest has changed meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct DecodeCache {
    slots: [(Insn, Mode); SLOTS],
}

impl Default for DecodeCache {
    fn default() -> Self {
        Self::new()
    }
}

impl DecodeCache {
    /// An empty cache.
    pub const fn new() -> Self {
        Self {
            slots: [(Insn::EMPTY, Mode::Real); SLOTS],
        }
    }

    /// Same result as [`decode()`]; `rip` only selects where to look.
    pub fn decode(&mut self, rip: u64, bytes: &[u8], mode: Mode) -> Result<&Insn, DecodeError> {
        let i = (rip ^ (rip >> 3) ^ (rip >> 7)) as usize & (SLOTS - 1);
        let slot = &mut self.slots[i];
        if slot.1 != mode || !slot.0.begins(bytes) {
            slot.0 = decode(bytes, mode)?;
            slot.1 = mode;
        }
        Ok(&slot.0)
    }
}
