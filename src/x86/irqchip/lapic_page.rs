// SPDX-License-Identifier: GPL-2.0
//! The local APIC of a vCPU, with its registers in a page of its own, as a processor that virtualises it wants them
//! (SDM 3C 30.1).

use crate::linux::page::WordPage;
use crate::x86::irqchip::lapic::{Lapic, Registers};
use kernel::prelude::*;

/// A local APIC whose registers are in a page.
pub(crate) type LocalApic = Lapic<RegisterPage>;

/// Register number `n` is the 32-bit word at byte `16 n`: the layout of the xAPIC page.
///
/// The processor writes the page too, but only while it runs the guest, which takes the vCPU's `&mut`.
pub(crate) struct RegisterPage(WordPage);

impl RegisterPage {
    /// All registers zero.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(WordPage::new()?))
    }

    /// Physical address of the page.
    pub(crate) fn phys(&self) -> u64 {
        self.0.phys()
    }
}

impl Registers for RegisterPage {
    #[inline(always)]
    fn get(&self, n: usize) -> u32 {
        self.0.get((n & 63) * 4)
    }

    #[inline(always)]
    fn set(&mut self, n: usize, value: u32) {
        self.0.set((n & 63) * 4, value);
    }
}
