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

/// Bits behind the point where software scales.
const SOFT_FRACTION: u32 = 40;

/// How a TSC follows the host's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Following {
    scale: Scale,
    /// The processor does not scale: the guest's TSC counts like the host's, and catches up at every entry.
    catch_up: bool,
}

/// How a TSC of `khz` follows the host's. EINVAL: not near to the host's frequency, and the processor cannot scale so,
/// or not at all and it is a lower one, which no catching up gives.
fn following(khz: u32) -> Result<Following> {
    let host = boot_cpu::tsc_khz();
    let (scale, catch_up) = if tsc::within_tolerance(khz, host) {
        (Some(Scale::ONE), false)
    } else {
        match hardware()? {
            (0, _) if khz < host => (None, false),
            (0, _) => (Scale::new(khz, host, SOFT_FRACTION, u64::MAX), true),
            (fraction, max) => (Scale::new(khz, host, fraction, max), false),
        }
    };
    scale
        .map(|scale| Following { scale, catch_up })
        .ok_or(EINVAL)
}

/// Bits behind the point of the ratios by which the processor scales, 0 if it does not; what they are below.
fn hardware() -> Result<(u32, u64)> {
    let caps = crate::x86::vendor::choose::caps().ok_or(ENODEV)?;
    Ok((caps.tsc_fraction, caps.tsc_ratio_max))
}

/// The frequency that an argument of KVM_SET_TSC_KHZ means.
fn frequency(arg: usize) -> u32 {
    match arg as u32 {
        0 => boot_cpu::tsc_khz(),
        khz => khz,
    }
}

/// The frequency that KVM_SET_TSC_KHZ asks for, on a vCPU. EINVAL: not to be had.
pub(crate) fn wanted_tsc_khz(arg: usize) -> Result<u32> {
    let khz = frequency(arg);
    following(khz).map(|_| khz)
}

/// The frequency that KVM_SET_TSC_KHZ asks for, on a VM. EINVAL: not to be had. Where the processor does not scale any
/// is taken, as by KVM; vCPUs whose TSC cannot have it get the host's.
pub(crate) fn wanted_vm_tsc_khz(arg: usize) -> Result<u32> {
    match hardware()? {
        (0, _) => Ok(frequency(arg)),
        _ => wanted_tsc_khz(arg),
    }
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
        let Following { scale, catch_up } = following(khz)?;
        self.tsc.khz = khz;
        if scale != self.tsc.scale {
            self.tsc.scale = scale;
            self.tsc.catch_up = catch_up;
            match hardware()? {
                (0, _) => self.set_tsc_offset(self.tsc.offset),
                (fraction, _) => self.hw.set_tsc_ratio(scale.ratio(fraction)),
            }
        }
        self.pv.clock_stale = true;
        Ok(())
    }

    /// Before an entry: a TSC that the processor does not scale becomes what it would be now.
    #[inline]
    pub(crate) fn catch_up_tsc(&mut self) {
        if self.tsc.catch_up {
            let host = boot_cpu::rdtsc();
            self.hw.set_tsc_offset(self.tsc_at(host).wrapping_sub(host));
        }
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
        self.catch_up_tsc();
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
