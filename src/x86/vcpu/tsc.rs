// SPDX-License-Identifier: GPL-2.0
//! The time stamp counter of a vCPU: offset, scale and frequency (SDM 3B 19.17, 3C 27.3; api.rst 4.55, 4.56).
//!
//! This file adds to [`State`] what exits and the vCPU's ioctls call under the vCPU's mutex. What [`Vm::clock`]
//! synchronises takes the clock's spin lock below it and is called outside stays only.

use crate::linux::boot_cpu;
use crate::x86::cpu::tsc;
use crate::x86::cpu::tsc::Scale;
use crate::x86::vcpu::state::State;
use crate::x86::vendor::VcpuBackend;
use crate::x86::vm::Vm;
use kernel::prelude::*;

/// The scale for a TSC of `khz`. EINVAL: not the host's frequency, or near to it, and the processor cannot scale so.
pub(crate) fn tsc_scale(khz: u32) -> Result<Scale> {
    let host = boot_cpu::tsc_khz();
    if tsc::within_tolerance(khz, host) {
        return Ok(Scale::ONE);
    }
    let caps = crate::x86::vendor::choose::caps().ok_or(ENODEV)?;
    Scale::new(khz, host, caps.tsc_fraction, caps.tsc_ratio_max).ok_or(EINVAL)
}

/// The frequency that KVM_SET_TSC_KHZ asks for, on a VM or a vCPU. EINVAL: not to be had.
pub(crate) fn wanted_tsc_khz(arg: usize) -> Result<u32> {
    let khz = match arg as u32 {
        0 => boot_cpu::tsc_khz(),
        khz => khz,
    };
    tsc_scale(khz).map(|_| khz)
}

impl State {
    /// Guest TSC now.
    pub(crate) fn tsc(&self) -> u64 {
        self.tsc_at(boot_cpu::rdtsc())
    }

    /// Guest TSC at this host TSC.
    pub(crate) fn tsc_at(&self, host: u64) -> u64 {
        self.tsc.scale.apply(host).wrapping_add(self.tsc.offset)
    }

    /// The frequency at which the guest's TSC really counts, kHz; [`State::tsc_khz`] is what it is taken for.
    pub(crate) fn tsc_rate_khz(&self) -> u32 {
        match self.tsc.scale.apply(boot_cpu::tsc_khz().into()) {
            0 => 1,
            khz => u32::try_from(khz).unwrap_or(u32::MAX),
        }
    }

    /// Sets the TSC's frequency (KVM_SET_TSC_KHZ). EINVAL: the processor cannot have it so.
    pub(crate) fn set_tsc_khz(&mut self, khz: u32) -> Result {
        let scale = tsc_scale(khz)?;
        self.tsc.khz = khz;
        if scale != self.tsc.scale {
            self.tsc.scale = scale;
            let fraction = crate::x86::vendor::choose::caps().map_or(0, |c| c.tsc_fraction);
            self.hw.set_tsc_ratio(scale.ratio(fraction));
        }
        self.pv.clock_stale = true;
        Ok(())
    }

    /// User space writes IA32_TSC, or the vCPU is new: the vCPU's TSC runs together with the others' if it seems meant
    /// to.
    pub(crate) fn synchronize_tsc(&mut self, vm: &Vm, value: u64, by_user: bool) {
        let vcpus = &vm.vcpus;
        let scale = self.tsc.scale;
        let offset = vm.clock.write_tsc(
            vcpus,
            &mut self.tsc.member,
            value,
            self.tsc.khz,
            by_user,
            |host| scale.apply(host),
        );
        self.set_tsc_offset(offset);
    }

    /// User space sets the TSC's offset as such (KVM_VCPU_TSC_OFFSET).
    pub(crate) fn restore_tsc_offset(&mut self, vm: &Vm, offset: u64) {
        let scale = self.tsc.scale;
        vm.clock.set_tsc_offset(
            &vm.vcpus,
            &mut self.tsc.member,
            offset,
            self.tsc.khz,
            |host| scale.apply(host),
        );
        self.set_tsc_offset(offset);
    }

    /// The host's TSC has started anew: it has lost `lost` ticks in all.
    #[cold]
    pub(super) fn follow_host_tsc(&mut self, lost: u64) {
        let before = self.tsc.scale.apply(self.tsc.lost);
        let by = self.tsc.scale.apply(lost).wrapping_sub(before);
        self.tsc.lost = lost;
        self.set_tsc_offset(self.tsc.offset.wrapping_add(by));
    }

    /// Changes the TSC offset.
    pub(crate) fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc.offset = offset;
        self.hw.set_tsc_offset(offset);
        // Its page says how time follows from the TSC.
        self.pv.clock_stale = true;
    }

    /// A write of IA32_TSC. A guest's shows in TSC_ADJUST (SDM 3B 19.17.3).
    pub(super) fn write_tsc(&mut self, vm: &Vm, value: u64, by_host: bool) {
        if by_host {
            self.synchronize_tsc(vm, value, true);
        } else {
            let by = value.wrapping_sub(self.tsc());
            self.tsc.adjust = self.tsc.adjust.wrapping_add(by);
            self.set_tsc_offset(self.tsc.offset.wrapping_add(by));
        }
    }

    /// A write of IA32_TSC_ADJUST. A guest's moves the TSC.
    pub(super) fn write_tsc_adjust(&mut self, value: u64, by_host: bool) {
        if !by_host {
            let by = value.wrapping_sub(self.tsc.adjust);
            self.set_tsc_offset(self.tsc.offset.wrapping_add(by));
        }
        self.tsc.adjust = value;
    }
}
