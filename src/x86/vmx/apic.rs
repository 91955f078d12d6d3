// SPDX-License-Identifier: GPL-2.0
//! APIC virtualisation (SDM 3C 30): the processor keeps the vCPU's local APIC registers in a page, delivers their
//! interrupts and takes posted ones. Where it can do no more, it keeps the TPR there (SDM 3C 30.3).
//!
//! The vCPU calls this under its mutex; a function that takes [`Current`] touches the VMCS, with interrupts off.

use super::bits::{exit, pin};
use super::config::VmcsConfig;
use super::insn::Current;
use super::shared::Shared;
use super::vmcs::*;
use crate::mem::addr::Hpa;
use crate::x86::vendor::{ApicMode, ApicPages};

/// A TPR that the processor keeps in the page of APIC registers, where it can do no more.
pub(super) struct TprShadow {
    registers: Hpa,
    threshold: u8,
}

impl TprShadow {
    /// The one in the page `registers`, which lives as long as the vCPU.
    pub(super) const fn new(registers: Hpa) -> Self {
        Self {
            registers,
            threshold: 0,
        }
    }

    /// Writes the fields, once per VMCS. Writes of CR8 do not exit.
    pub(super) fn set_up(&self, vm: Current<'_>) {
        // SAFETY: The page is the vCPU's, and lives as long.
        unsafe {
            vm.write_control(VIRTUAL_APIC_ADDR, self.registers.0);
            vm.write_control(TPR_THRESHOLD, self.threshold.into());
        }
    }

    /// Has writes of CR8 exit, behind the instruction, that are less than `threshold`.
    #[inline(always)]
    pub(super) fn set_threshold(&mut self, vm: Current<'_>, threshold: u8) {
        if threshold != self.threshold {
            // SAFETY: More exits do no harm.
            unsafe { vm.write_control(TPR_THRESHOLD, threshold.into()) };
            self.threshold = threshold;
        }
    }
}

/// How a local APIC is virtualised.
pub(super) struct Apic {
    pages: ApicPages,
    pub(super) mode: ApicMode,
    pub(super) eoi_exits: [u32; 8],
    /// `mode` or `eoi_exits` has to be written.
    pub(super) dirty: bool,
}

impl Apic {
    /// A local APIC in xAPIC mode whose registers are in `pages`.
    pub(super) const fn new(pages: ApicPages) -> Self {
        Self {
            pages,
            mode: ApicMode::Xapic,
            eoi_exits: [0; 8],
            dirty: true,
        }
    }

    /// Writes the fields that never change, once per VMCS. Returns the pin-based controls.
    pub(super) fn set_up(&self, vm: Current<'_>, config: &VmcsConfig) -> u32 {
        TprShadow::new(self.pages.registers).set_up(vm);
        // SAFETY: The page is the VM's, and lives as long as its vCPUs do.
        unsafe { vm.write_control(APIC_ACCESS_ADDR, self.pages.access.0) };
        vm.write(GUEST_INTERRUPT_STATUS, 0);
        let Some(vector) = config.posted else {
            return config.pin;
        };
        let pin = config.pin | pin::POSTED_INTERRUPTS;
        // SAFETY: The descriptor is the vCPU's and lives as long. Exits by interrupts acknowledge them now, and
        // `VmxVcpu::after_stay` hands them on.
        unsafe {
            vm.write_control(POSTED_VECTOR, vector.into());
            vm.write_control(POSTED_DESCRIPTOR, self.pages.descriptor.0);
            vm.write_control(PIN_CONTROLS, pin);
            vm.write_control(EXIT_CONTROLS, config.exit | exit::ACK_INTERRUPT);
        }
        pin
    }

    /// Writes the fields that depend on the mode, all but the MSR bitmap. Returns the secondary processor-based
    /// controls, among which are `more`.
    pub(super) fn write(&mut self, vm: Current<'_>, shared: &Shared, more: u32) -> u32 {
        self.dirty = false;
        let proc2 = shared.config.apicv_controls(self.mode) | more;
        let [a, b, c, d, e, f, g, h] = self.eoi_exits.map(u64::from);
        // SAFETY: The controls of the configuration; with them the guest reaches its own registers only. Those of
        // `more` have their fields written: `VmxVcpu::write_proc2` does both, and at the set-up there are none. The
        // APIC-access page is mapped only while every vCPU of the VM virtualises accesses to it: the core's promise.
        // More exits by EOI do no harm.
        unsafe {
            vm.write_control(PROC2_CONTROLS, proc2);
            vm.write_control(EOI_EXIT_BITMAP0, a | b << 32);
            vm.write_control(EOI_EXIT_BITMAP1, c | d << 32);
            vm.write_control(EOI_EXIT_BITMAP2, e | f << 32);
            vm.write_control(EOI_EXIT_BITMAP3, g | h << 32);
        }
        proc2
    }
}
