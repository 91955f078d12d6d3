// SPDX-License-Identifier: GPL-2.0
//! What an entry writes to the VMCS, where it differs from what is there (SDM 3C 25, 27).
//!
//! This file adds to [`VmxVcpu`] what `enter` and the entry checks call, with interrupts off and the VMCS current.

use super::VmxVcpu;
use crate::x86::cpu::regs::{cr4, efer};
use crate::x86::vendor::{CpuState, EntryParams, Groups};
use crate::x86::vmx::bits::{activity, dr7, entry, proc, proc2};
use crate::x86::vmx::insn::Current;
use crate::x86::vmx::state;
use crate::x86::vmx::vmcs::*;
use crate::x86::vmx::written::ALWAYS_INTERCEPTED;

impl VmxVcpu {
    /// Writes dirty system registers.
    #[inline(never)]
    pub(super) fn write_dirty(&mut self, vm: Current<'_>, cpu: &CpuState) {
        let config = &self.shared.config;
        state::write(vm, config, &mut self.control, &cpu.sregs, cpu.dirty);
        if cpu.dirty.contains(Groups::CTRL) {
            let mode = if self.control.efer & efer::LMA != 0 {
                entry::IA32E_GUEST
            } else {
                0
            };
            let controls = config.entry | mode | self.host.pebs.entry_controls();
            // SAFETY: The controls of `config`, the guest's mode, and what holds the host's PEBS.
            unsafe { vm.write_control(ENTRY_CONTROLS, controls) };
            // The guest's own write would have flushed what depends on the changed bits.
            self.flush.linear = true;
            self.stale = true;
        }
    }

    /// Writes what the parameters of an entry ask for, where it differs from the last one.
    #[inline(always)]
    pub(super) fn write_params(&mut self, vm: Current<'_>, cpu: &CpuState, params: &EntryParams) {
        let mut proc = self.proc & !self.proc_off;
        if params.irq_window {
            proc |= proc::INTERRUPT_WINDOW;
        }
        if params.nmi_window {
            proc |= proc::NMI_WINDOW;
        }
        if proc != self.written.proc {
            // SAFETY: The controls of `config`, and windows, which only add exits.
            unsafe { vm.write_control(PROC_CONTROLS, proc) };
            self.written.proc = proc;
        }
        if let Some(tpr) = &mut self.tpr {
            tpr.set_threshold(vm, params.tpr_threshold);
        }
        if let Some(status) = params.apic_status {
            vm.write(GUEST_INTERRUPT_STATUS, status);
        }
        let eptp = params.nested_root.0 | self.config().eptp_flags;
        if eptp != self.written.eptp {
            // SAFETY: The core's nested page table with the flags of `config`.
            unsafe { vm.write_control(EPT_POINTER, eptp) };
            self.written.eptp = eptp;
            self.flush.root = true;
            self.stale = true;
        }
        if cpu.dr7 != self.written.dr7 || cpu.dr7 & dr7::ENABLES != 0 {
            self.write_debug(vm, cpu);
        }
        if self.stale | params.flush {
            self.flush.root |= params.flush;
            self.write_stale(vm, cpu);
        }
    }

    /// Writes DR7, and the breakpoint addresses when it enables some.
    #[cold]
    #[inline(never)]
    fn write_debug(&mut self, vm: Current<'_>, cpu: &CpuState) {
        if cpu.dr7 != self.written.dr7 {
            vm.write(GUEST_DR7, dr7_for_entry(cpu.dr7));
            self.written.dr7 = cpu.dr7;
        }
        if self.in_stay && cpu.dr7 & dr7::ENABLES != 0 && self.written.dr != Some(cpu.dr) {
            self.host.load_breakpoints(&cpu.dr);
            self.written.dr = Some(cpu.dr);
        }
    }

    /// Writes what has been set since the last entry, and flushes translations.
    #[cold]
    #[inline(never)]
    pub(super) fn write_stale(&mut self, vm: Current<'_>, cpu: &CpuState) {
        self.stale = false;
        let exceptions = self.exceptions | ALWAYS_INTERCEPTED;
        if exceptions != self.written.exceptions {
            // SAFETY: Intercepts beyond the fixed ones only add exits.
            unsafe { vm.write_control(EXCEPTION_BITMAP, exceptions) };
            self.written.exceptions = exceptions;
        }
        if self.tsc_offset != self.written.tsc_offset {
            // SAFETY: Only the guest sees its TSC.
            unsafe { vm.write_control(TSC_OFFSET, self.tsc_offset) };
            self.written.tsc_offset = self.tsc_offset;
        }
        if self.tsc_ratio != self.written.tsc_ratio {
            // SAFETY: As above; the core sets it only where the control is on, and never to zero.
            unsafe { vm.write_control(TSC_MULTIPLIER, self.tsc_ratio) };
            self.written.tsc_ratio = self.tsc_ratio;
        }
        self.write_proc2(vm);
        let spec_ctrl = self.msrs.spec_ctrl.is_passed();
        let bitmap = self
            .shared
            .msr_bitmap(self.x2apic(), self.exits.all_msrs, spec_ctrl);
        if bitmap != self.written.msr_bitmap {
            // SAFETY: The guest reaches MSRs that are switched, and the local APIC's if the controls above say x2APIC.
            unsafe { vm.write_control(MSR_BITMAP, bitmap) };
            self.written.msr_bitmap = bitmap;
        }
        self.pause.write(vm);
        self.blocking.write(vm, cpu.regs.rflags);
        if let Some(pdptes) = self.pdptes.take() {
            for (n, value) in (0..).zip(pdptes) {
                vm.write(GUEST_PDPTE0.nth(n), value);
            }
        }
        if self.activity_dirty {
            vm.write(GUEST_ACTIVITY_STATE, activity::ACTIVE);
            self.activity_dirty = false;
        }
        if self.in_stay {
            self.flush
                .carry_out(vm, &self.shared.config, self.written.eptp);
        } else {
            // Only checking: the entry may come on another CPU, and that one has to flush.
            self.stale |= self.flush.root | self.flush.linear;
        }
    }

    /// Writes the secondary controls, and fields that go with them, if they have changed.
    fn write_proc2(&mut self, vm: Current<'_>) {
        if self.log.stale {
            self.log.write(vm);
        }
        let config = &self.shared.config;
        let umip = config.umip_exits && self.control.cr4_shadow & cr4::UMIP != 0;
        let mut more = self.log.controls();
        if umip {
            more |= proc2::DESCRIPTOR_EXITING;
        }
        let changed = more != self.written.more_proc2;
        self.written.more_proc2 = more;
        match &mut self.apic {
            Some(apic) if changed || apic.dirty => {
                apic.write(vm, &self.shared, more);
            }
            None if changed => {
                let proc2 = config.proc2 | more;
                // SAFETY: The controls of `config`, the log, whose fields have been written, and exits.
                unsafe { vm.write_control(PROC2_CONTROLS, proc2) };
            }
            _ => {}
        }
    }
}

/// DR7 as VM entry accepts it: bits 63:32 clear (SDM 3C 27.3.1.1), bit 10 set, general detect clear because
/// debug-register accesses exit anyway.
const fn dr7_for_entry(dr7: u64) -> u64 {
    (dr7 & 0xffff_0bff & !dr7::GENERAL_DETECT) | dr7::FIXED
}
