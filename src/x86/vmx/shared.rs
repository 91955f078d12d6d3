// SPDX-License-Identifier: GPL-2.0
//! What all vCPUs share: the VMCS configuration, MSR bitmaps, VMXON regions. It is made at module load and read only.

use super::check::VmxCaps;
use super::config::VmcsConfig;
use super::msr;
use crate::linux::global::Global;
use crate::linux::irqflags::ThisCpu;
use crate::linux::page::Pages;
use crate::linux::smp;
use kernel::prelude::*;

/// What all vCPUs share. They hold it; new ones, and CPUs that come, find it from `probe` to the module's exit.
pub(super) struct Shared {
    /// Controls and abilities of the CPU that probed; every other CPU has to agree.
    pub(super) config: VmcsConfig,
    /// Controls and abilities as the software entry checks want them.
    pub(super) rules: VmxCaps,
    /// MSR bitmaps (SDM 3C 25.6.9): the second one lets the guest reach SPEC_CTRL.
    msr_bitmaps: [Pages; 2],
    /// MSR bitmaps of guests whose virtualised local APIC is in x2APIC mode, so too.
    x2apic_bitmaps: [Pages; 2],
    /// MSR bitmap of such guests where every other MSR exits.
    x2apic_only_bitmap: Pages,
    /// VMXON regions by CPU number (SDM 3C 25.11.5).
    vmxon: KVec<Pages>,
}

pub(super) static SHARED: Global<Shared> = Global::new();

impl Shared {
    pub(super) fn new(config: VmcsConfig) -> Result<Self> {
        let cpus = smp::nr_cpu_ids();
        let mut vmxon = KVec::with_capacity(cpus as usize, GFP_KERNEL)?;
        for _ in 0..cpus {
            vmxon.push(revision_page(&config)?, GFP_KERNEL)?;
        }
        let bitmap = |fill: fn(&mut [u8]), spec_ctrl| {
            Pages::filled(0, |map| {
                fill(map);
                if spec_ctrl {
                    msr::pass_spec_ctrl(map);
                }
            })
        };
        let x2apic = msr::fill_x2apic_bitmap;
        Ok(Self {
            rules: config.rules(),
            config,
            msr_bitmaps: [
                bitmap(msr::fill_bitmap, false)?,
                bitmap(msr::fill_bitmap, true)?,
            ],
            x2apic_bitmaps: [bitmap(x2apic, false)?, bitmap(x2apic, true)?],
            x2apic_only_bitmap: Pages::filled(0, msr::fill_x2apic_only_bitmap)?,
            vmxon,
        })
    }

    /// Physical address of an MSR bitmap: for a virtualised local APIC in x2APIC mode, if `x2apic`, where all other MSRs
    /// exit, if `all_exit`, and where SPEC_CTRL does not, if `spec_ctrl`.
    pub(super) fn msr_bitmap(&self, x2apic: bool, all_exit: bool, spec_ctrl: bool) -> u64 {
        let [plain, passing] = match x2apic {
            true if all_exit => return self.x2apic_only_bitmap.phys(),
            true => &self.x2apic_bitmaps,
            false => &self.msr_bitmaps,
        };
        if spec_ctrl { passing } else { plain }.phys()
    }

    /// Physical address of this CPU's VMXON region.
    #[inline]
    pub(super) fn vmxon_region(&self, this_cpu: ThisCpu<'_>) -> Option<u64> {
        let region = self.vmxon.get(this_cpu.number() as usize);
        region.map(Pages::phys)
    }
}

/// A zeroed page that starts with the VMCS revision identifier: an empty VMCS or a VMXON region.
pub(super) fn revision_page(config: &VmcsConfig) -> Result<Pages> {
    Pages::filled(0, |page| {
        if let Some(head) = page.first_chunk_mut::<4>() {
            *head = config.revision.to_le_bytes();
        }
    })
}
