// SPDX-License-Identifier: GPL-2.0
//! Page-modification logging (SDM 3C 29.3.6): the processor notes each page whose dirty flag it sets in EPT, until the
//! buffer is full, which is an exit, or the stay ends.
//!
//! The vCPU calls this under its mutex; a function that takes [`Current`] touches the VMCS, with interrupts off.

use super::bits::proc2;
use super::insn::Current;
use super::vmcs::*;
use crate::linux::page::WordPage;
use crate::mem::addr::Gpa;
use crate::mem::dirty::PROCESSOR_LOG;
use kernel::prelude::*;

/// Index of an empty buffer: the processor fills it from behind.
const EMPTY: u16 = PROCESSOR_LOG as u16 - 1;

/// A vCPU's buffer.
#[derive(Default)]
pub(super) struct WriteLog {
    /// There from the first time that it is wanted.
    page: Option<WordPage>,
    on: bool,
    /// The VMCS says otherwise.
    pub(super) stale: bool,
}

impl WriteLog {
    /// Whether the next entry has it on. Sleeps. Errors: `ENOMEM`.
    pub(super) fn set(&mut self, on: bool) -> Result {
        if on && self.page.is_none() {
            self.page = Some(WordPage::new()?);
        }
        self.stale |= on != self.on;
        self.on = on;
        Ok(())
    }

    /// What it adds to the secondary processor-based controls.
    pub(super) const fn controls(&self) -> u32 {
        if self.on {
            proc2::PML
        } else {
            0
        }
    }

    /// Writes the fields of the control, which the caller writes next.
    pub(super) fn write(&mut self, vm: Current<'_>) {
        self.stale = false;
        if let Some(page) = self.page.as_ref().filter(|_| self.on) {
            // SAFETY: The page is the vCPU's and lives as long.
            unsafe { vm.write_control(PML_ADDRESS, page.phys()) };
            vm.write(GUEST_PML_INDEX, EMPTY);
        }
    }

    /// Empties the buffer: `page` is called for each entry, the oldest first.
    #[inline]
    pub(super) fn take(&mut self, vm: Current<'_>, mut page: impl FnMut(Gpa)) {
        // Before an entry has written the fields there is nothing in the buffer.
        if !self.on || self.stale {
            return;
        }
        let index = vm.read(GUEST_PML_INDEX);
        let Some(buffer) = self.page.as_ref().filter(|_| index != EMPTY) else {
            return;
        };
        // The index is that of the next entry; below 0, it is full.
        let first = if index > EMPTY { 0 } else { index + 1 };
        for n in (first..=EMPTY).rev() {
            let at = 2 * usize::from(n);
            let (low, high) = (buffer.get(at), buffer.get(at + 1));
            page(Gpa(u64::from(high) << 32 | u64::from(low)));
        }
        vm.write(GUEST_PML_INDEX, EMPTY);
    }
}
