// SPDX-License-Identifier: GPL-2.0
//! The host's PEBS (SDM 3B 20.6.2.4) around a stay: its counters stand still in guests, where a record would be stored
//! at a guest's address.
//!
//! VM entries stop the counters by IA32_PERF_GLOBAL_CTRL, and exits let them go on. Where that does not keep a record
//! from being stored after the entry, or where the VMCS lacks the register, IA32_PEBS_ENABLE is clear in the stay.
//! [`super::host::HostState`] and the vCPU call this with interrupts off.

use super::bits::{entry, exit};
use super::config::PebsCaps;
use super::insn::Current;
use super::vmcs::*;
use crate::linux::msr;
use crate::x86::cpu::index;

/// Bits of IA32_PEBS_ENABLE that number a counter as IA32_PERF_GLOBAL_CTRL does, on every processor.
const GENERAL_COUNTERS: u64 = 0xffff_ffff;

/// What a stay does about the host's PEBS.
#[derive(Debug, Default)]
pub(super) struct HostPebs {
    caps: Option<PebsCaps>,
    /// Entries and exits load IA32_PERF_GLOBAL_CTRL.
    loads: bool,
    /// IA32_PEBS_ENABLE as found, while it is clear for the stay; else 0.
    cleared: u64,
}

impl HostPebs {
    /// A stay begins on another CPU, which has these.
    pub(super) fn move_to_this_cpu(&mut self, caps: Option<PebsCaps>) {
        self.caps = caps;
    }

    /// A stay begins.
    #[inline]
    pub(super) fn begin_stay(&mut self, vm: Current<'_>) {
        if let Some(caps) = self.caps {
            // SAFETY: `caps` says that it exists.
            let enabled = unsafe { msr::read(index::PEBS_ENABLE) };
            if enabled != 0 || self.loads {
                self.stop(vm, caps, enabled);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn stop(&mut self, vm: Current<'_>, caps: PebsCaps, enabled: u64) {
        if caps.loads {
            // SAFETY: `caps` says that it exists. The kernel changes it only for a moment, but for interrupts.
            let global = unsafe { msr::read(index::PERF_GLOBAL_CTRL) };
            let counters = if caps.isolated {
                enabled
            } else {
                enabled & GENERAL_COUNTERS
            };
            vm.write(GUEST_PERF_GLOBAL_CTRL, global & !counters);
            // SAFETY: The value in force, which exits bring back.
            unsafe { vm.write_host(HOST_PERF_GLOBAL_CTRL, global) };
            if !self.loads {
                self.loads = true;
                let exit = vm.read(EXIT_CONTROLS) | exit::LOAD_PERF_GLOBAL;
                let entry = vm.read(ENTRY_CONTROLS) | entry::LOAD_PERF_GLOBAL;
                // SAFETY: `caps` says that the processor has the two. Guests have no counters.
                unsafe {
                    vm.write_control(EXIT_CONTROLS, exit);
                    vm.write_control(ENTRY_CONTROLS, entry);
                }
            }
        }
        if !(caps.loads && caps.isolated) {
            self.clear(enabled);
        }
    }

    /// The VM-entry control that is on besides those of the configuration.
    #[inline]
    pub(super) fn entry_controls(&self) -> u32 {
        if self.loads {
            entry::LOAD_PERF_GLOBAL
        } else {
            0
        }
    }

    fn clear(&mut self, enabled: u64) {
        self.cleared = enabled;
        if enabled != 0 {
            // SAFETY: The host's profiling pauses until the end of the stay.
            unsafe { msr::write(index::PEBS_ENABLE, 0) };
        }
    }

    /// Gives an NMI's handler the register as the kernel left it; [`HostPebs::pause`] follows if that takes anything.
    #[inline]
    pub(super) fn resume(&self) -> bool {
        let paused = self.cleared != 0;
        if paused {
            // SAFETY: The value found at the begin; no guest runs meanwhile.
            unsafe { msr::write(index::PEBS_ENABLE, self.cleared) };
        }
        paused
    }

    /// Clears the register again, in which the handler may have stopped counters.
    #[cold]
    pub(super) fn pause(&mut self) {
        // SAFETY: It exists, having been read at the begin.
        self.clear(unsafe { msr::read(index::PEBS_ENABLE) });
    }

    /// The stay ends.
    #[inline]
    pub(super) fn end_stay(&mut self) {
        let enabled = core::mem::take(&mut self.cleared);
        // An NMI that came between two guest turns may have set it: then it is the kernel's again.
        //
        // SAFETY: It exists, having been read at the begin; the value is the one found there.
        if enabled != 0 && unsafe { msr::read(index::PEBS_ENABLE) } == 0 {
            // SAFETY: As above.
            unsafe { msr::write(index::PEBS_ENABLE, enabled) };
        }
    }
}
