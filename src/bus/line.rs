// SPDX-License-Identifier: GPL-2.0
//! Interrupt lines that several sources share: the level is the OR of all sources (api.rst 4.25, 4.75).
#![forbid(unsafe_code)]

/// Who drives a line; a line is up while any source holds it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(u8);

impl Source {
    /// KVM_IRQ_LINE and irqfds without resampling.
    pub const USER: Self = Self(0);
    /// Irqfds with resampling, which are asserted until the guest's EOI.
    pub const RESAMPLE: Self = Self(1);
    /// The programmable interval timer.
    pub const PIT: Self = Self(2);
}

/// Levels of `N` lines, at most 32.
#[derive(Clone, Debug)]
pub struct Lines<const N: usize> {
    held: [u64; N],
}

impl<const N: usize> Default for Lines<N> {
    fn default() -> Self {
        Self { held: [0; N] }
    }
}

impl<const N: usize> Lines<N> {
    /// Sets what `source` drives onto `line` and returns the line's level; `None` if there is no such line.
    pub fn set(&mut self, line: usize, source: Source, level: bool) -> Option<bool> {
        let held = self.held.get_mut(line)?;
        let bit = 1u64 << (source.0 & 63);
        if level {
            *held |= bit;
        } else {
            *held &= !bit;
        }
        Some(*held != 0)
    }
}
