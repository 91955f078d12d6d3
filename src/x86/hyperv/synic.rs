// SPDX-License-Identifier: GPL-2.0
//! The synthetic interrupt controller's registers (TLFS 11).
#![forbid(unsafe_code)]

use crate::nospec::Nospec;
use crate::x86::cpu::index as ix;
use crate::x86::hyperv::defs::SINTS;

/// SINTx: no interrupt.
pub const MASKED: u64 = 1 << 16;
/// SINTx: the interrupt ends when it is delivered.
const AUTO_EOI: u64 = 1 << 17;

/// The vector of a SINTx register that is not masked.
pub const fn vector_of(sint: u64) -> Option<u8> {
    if sint & MASKED == 0 {
        Some(sint as u8)
    } else {
        None
    }
}

/// A vCPU's SynIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synic {
    /// KVM_CAP_HYPERV_SYNIC or KVM_CAP_HYPERV_SYNIC2 was enabled.
    pub active: bool,
    /// The second: the guest zeroes its pages itself.
    pub keep_pages: bool,
    control: u64,
    version: u64,
    /// SIEFP.
    pub event_page: u64,
    /// SIMP.
    pub message_page: u64,
    sint: [u64; SINTS],
    /// Vectors of SINTs.
    pub vectors: [u32; 8],
    /// Of those the ones whose interrupts end when they are delivered.
    pub auto_eoi: [u32; 8],
}

impl Default for Synic {
    fn default() -> Self {
        Self {
            active: false,
            keep_pages: false,
            control: 0,
            version: 1,
            event_page: 0,
            message_page: 0,
            sint: [MASKED; SINTS],
            vectors: [0; 8],
            auto_eoi: [0; 8],
        }
    }
}

impl Synic {
    /// Switches it on.
    pub fn activate(&mut self, keep_pages: bool) {
        self.active = true;
        self.keep_pages = keep_pages;
        self.control = 1;
    }

    /// SCONTROL.
    pub const fn control(&self) -> u64 {
        self.control
    }

    /// SINT number `n`.
    pub fn sint(&self, n: usize) -> u64 {
        self.sint.get_nospec(n).copied().unwrap_or(MASKED)
    }

    /// All SINTs.
    pub const fn sints(&self) -> &[u64; SINTS] {
        &self.sint
    }

    /// The register's value.
    pub fn get(&self, index: u32) -> Option<u64> {
        Some(match index {
            ix::HV_SCONTROL => self.control,
            ix::HV_SVERSION => self.version,
            ix::HV_SIEFP => self.event_page,
            ix::HV_SIMP => self.message_page,
            ix::HV_EOM => 0,
            ix::HV_SINT0..=ix::HV_SINT15 => self.sint((index - ix::HV_SINT0) as usize),
            _ => return None,
        })
    }

    /// Writes a register. The effects are the caller's. `None`: #GP, and nothing has changed.
    pub fn set(&mut self, index: u32, value: u64, by_host: bool) -> Option<()> {
        if !self.active && (!by_host || value != 0) {
            return None;
        }
        match index {
            ix::HV_SCONTROL => self.control = value,
            ix::HV_SVERSION if by_host => self.version = value,
            ix::HV_SIEFP => self.event_page = value,
            ix::HV_SIMP => self.message_page = value,
            ix::HV_EOM => {}
            ix::HV_SINT0..=ix::HV_SINT15 => {
                // Vectors of exceptions are none, but as a value to start with.
                if (value as u8) < 16 && !by_host && value & MASKED == 0 {
                    return None;
                }
                *self.sint.get_nospec_mut((index - ix::HV_SINT0) as usize)? = value;
                self.collect();
            }
            _ => return None,
        }
        Some(())
    }

    /// What vectors the SINTs have.
    fn collect(&mut self) {
        (self.vectors, self.auto_eoi) = ([0; 8], [0; 8]);
        for sint in self.sint {
            let Some(v) = vector_of(sint).filter(|v| *v >= 16) else {
                continue;
            };
            let (word, bit) = (usize::from(v >> 5), 1u32 << (v & 31));
            self.vectors[word & 7] |= bit;
            if sint & AUTO_EOI != 0 {
                self.auto_eoi[word & 7] |= bit;
            }
        }
    }

    /// Whether a SINT has this vector.
    pub fn has_vector(&self, vector: u8) -> bool {
        self.vectors[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    /// Whether interrupts of this vector end when they are delivered.
    pub fn ends_at_once(&self, vector: u8) -> bool {
        self.auto_eoi[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    /// Whether some vector's interrupts do.
    pub fn uses_auto_eoi(&self) -> bool {
        self.auto_eoi != [0; 8]
    }
}

/// The highest vector of a set whose class is above `class`, that of the processor's priority.
pub fn highest_above(set: &[u32; 8], class: u8) -> Option<u8> {
    let (word, bits) = set.iter().enumerate().rev().find(|(_, w)| **w != 0)?;
    let vector = (word as u32 * 32 + (31 ^ bits.leading_zeros() & 31)) as u8;
    (vector >> 4 > class).then_some(vector)
}
