// SPDX-License-Identifier: GPL-2.0
//! MSRs: the permission maps, the registers that VMLOAD, VMSAVE and the VMCB switch, and the three that a stay switches
//! (APM 2 15.5.2, 15.11, 15.30.5).
//!
//! `platform` makes the maps. `vcpu` calls the rest: registers at any time under the vCPU's mutex, the ends of a stay
//! with interrupts off.

use super::vmcb::Save;
use crate::linux::msr;
use crate::x86::cpu::index;

/// Bits behind the point of a TSC ratio.
pub(super) const TSC_FRACTION: u32 = 32;
/// The highest TSC ratio.
pub(super) const TSC_RATIO_MAX: u64 = (1 << 40) - 1;
/// No scaling; the value of RESET.
pub(super) const TSC_RATIO_ONE: u64 = 1 << TSC_FRACTION;

/// Pages of an MSR-permission map, 8 KiB: two bits per MSR, read then write (APM 2 15.11).
pub(super) const MAP_ORDER: u32 = 1;

/// MSRs that VMLOAD and VMSAVE switch, which the guest may therefore access directly (APM 2 15.5.2). Not the addresses
/// of SYSENTER, of which AMD's processors keep 32 bits: a guest that believes in one of Intel's has 64.
const SWITCHED: [u32; 8] = [
    index::SYSENTER_CS,
    index::STAR,
    index::LSTAR,
    index::CSTAR,
    index::FMASK,
    index::FS_BASE,
    index::GS_BASE,
    index::KERNEL_GS_BASE,
];

/// Fills an MSR-permission map that intercepts everything but [`SWITCHED`].
pub(super) fn fill_map(map: &mut [u8]) {
    map.fill(0xff);
    pass(map, &SWITCHED);
}

/// As [`fill_map`], and the guest reaches SPEC_CTRL, which entries load and exits store.
pub(super) fn fill_map_spec_ctrl(map: &mut [u8]) {
    fill_map(map);
    pass(map, &[index::SPEC_CTRL]);
}

/// Lets the guest reach `msrs`.
fn pass(map: &mut [u8], msrs: &[u32]) {
    for &msr in msrs {
        let (base, first) = match msr {
            0..=0x1fff => (0usize, 0u32),
            0xc000_0000..=0xc000_1fff => (0x800, 0xc000_0000),
            _ => (0x1000, 0xc001_0000),
        };
        let bit = (msr - first) as usize * 2;
        if let Some(b) = map.get_mut(base + bit / 8) {
            *b &= !(3 << (bit % 8));
        }
    }
}

/// Where the VMCB keeps an MSR that no clean bit stands for.
pub(super) fn field(s: &mut Save, index: u32) -> Option<&mut u64> {
    Some(match index {
        index::SYSENTER_CS => &mut s.sysenter_cs,
        index::SYSENTER_ESP => &mut s.sysenter_esp,
        index::SYSENTER_EIP => &mut s.sysenter_eip,
        index::SPEC_CTRL => &mut s.spec_ctrl,
        index::STAR => &mut s.star,
        index::LSTAR => &mut s.lstar,
        index::CSTAR => &mut s.cstar,
        index::FMASK => &mut s.sfmask,
        index::FS_BASE => &mut s.fs.base,
        index::GS_BASE => &mut s.gs.base,
        index::KERNEL_GS_BASE => &mut s.kernel_gs_base,
        _ => return None,
    })
}

/// The guest's values of MSRs that are loaded for a whole stay, and the host's meanwhile.
pub(super) struct Stayed {
    /// TSC_AUX.
    pub(super) tsc_aux: u64,
    /// The ratio by which the guest's TSC is scaled.
    pub(super) tsc_ratio: u64,
    /// The host's DEBUGCTL. VMRUN switches the register only with LBR virtualisation; in a guest the host's bus-lock
    /// traps and branch records have no place.
    host_debugctl: u64,
}

impl Stayed {
    /// As after RESET.
    pub(super) const RESET: Self = Self {
        tsc_aux: 0,
        tsc_ratio: TSC_RATIO_ONE,
        host_debugctl: 0,
    };

    /// Loads the guest's values; its DEBUGCTL is 0. `host_aux` is this CPU's TSC_AUX, if it has one.
    #[inline]
    pub(super) fn begin_stay(&mut self, host_aux: Option<u64>) {
        // SAFETY: Every 64-bit processor has DEBUGCTL.
        self.host_debugctl = unsafe { msr::read(index::DEBUGCTL) };
        if self.host_debugctl != 0 {
            // SAFETY: The kernel needs neither traps nor records of a stay; `end_stay` puts the host's value back.
            unsafe { msr::write(index::DEBUGCTL, 0) };
        }
        if host_aux.is_some_and(|aux| aux != self.tsc_aux) {
            // SAFETY: TSC_AUX is read by user-space RDTSCP and RDPID only; `end_stay` puts the host's value back.
            unsafe { msr::write(index::TSC_AUX, self.tsc_aux) };
        }
        if self.tsc_ratio != TSC_RATIO_ONE {
            // SAFETY: The core sets it only where CPUID has the MSR; in force in guests only, and `end_stay` puts it
            // back.
            unsafe { msr::write(index::TSC_RATIO, self.tsc_ratio) };
        }
    }

    /// Puts the host's values back; `host_aux` as in `begin_stay`.
    #[inline]
    pub(super) fn end_stay(&self, host_aux: Option<u64>) {
        if self.host_debugctl != 0 {
            // SAFETY: The value is the one that this CPU had before the stay.
            unsafe { msr::write(index::DEBUGCTL, self.host_debugctl) };
        }
        if let Some(aux) = host_aux.filter(|aux| *aux != self.tsc_aux) {
            // SAFETY: The value is the one that this CPU had before the stay.
            unsafe { msr::write(index::TSC_AUX, aux) };
        }
        if self.tsc_ratio != TSC_RATIO_ONE {
            // SAFETY: `begin_stay` has written this MSR; the value is that of RESET, which the host has.
            unsafe { msr::write(index::TSC_RATIO, TSC_RATIO_ONE) };
        }
    }

    /// Sets the guest's TSC_AUX; `live` says that the register holds the guest's value, in a stay on a CPU that has it.
    pub(super) fn set_tsc_aux(&mut self, value: u64, live: bool) {
        self.tsc_aux = value;
        if live {
            // SAFETY: By `live` the CPU has the register and a stay is open, whose `end_stay` restores the host's
            // value.
            unsafe { msr::write(index::TSC_AUX, value) };
        }
    }
}
