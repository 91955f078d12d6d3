// SPDX-License-Identifier: GPL-2.0
//! The local APIC of a vCPU, with its registers in a page of its own, as a processor that virtualises it wants them (SDM 3C 30.1).

use crate::linux::page::Pages;
use crate::x86::irqchip::lapic::{Lapic, Registers};
use kernel::prelude::*;

/// A local APIC whose registers are in a page.
pub(crate) type LocalApic = Lapic<RegisterPage>;

/// Register number `n` is the 32-bit word at byte `16 n`: the layout of the xAPIC page.
///
/// The processor writes the page too, but only while it runs the guest, which takes the vCPU's `&mut`.
pub(crate) struct RegisterPage(Pages);

impl RegisterPage {
    /// All registers zero.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Pages::new(0)?))
    }

    /// Physical address of the page.
    pub(crate) fn phys(&self) -> u64 {
        self.0.phys()
    }

    #[inline(always)]
    fn at(&self, n: usize) -> *mut u32 {
        self.0.as_ptr::<u32>().wrapping_add((n & 63) * 4)
    }
}

impl Registers for RegisterPage {
    #[inline(always)]
    fn get(&self, n: usize) -> u32 {
        // SAFETY: Within the page, which this value owns and which is initialised; aligned. Nobody writes meanwhile: the
        // processor does only while it runs the guest, other code only by `&mut self`.
        unsafe { self.at(n).read_volatile() }
    }

    #[inline(always)]
    fn set(&mut self, n: usize, value: u32) {
        // SAFETY: As above; `&mut self` keeps other code out.
        unsafe { self.at(n).write_volatile(value) }
    }
}
