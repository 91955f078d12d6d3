// SPDX-License-Identifier: GPL-2.0
//! What all vCPUs share: the VMCS configuration, MSR bitmaps, what each CPU has. It is made at module load; but for the
//! last it is read only.

use super::active::Cpu;
use super::check::VmxCaps;
use super::config::VmcsConfig;
use super::msr;
use crate::linux::file_ref::FileRef;
use crate::linux::global::Global;
use crate::linux::page::Pages;
use crate::linux::percpu::PerCpu;
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
    /// By CPU number.
    pub(super) cpus: PerCpu<Cpu>,
    /// See [`hold_kvm`].
    pub(super) kvm: Option<FileRef>,
    /// KVM may have had guests when the module was loaded.
    pub(super) kvm_guests: bool,
}

pub(super) static SHARED: Global<Shared> = Global::new();

impl Shared {
    pub(super) fn new(config: VmcsConfig) -> Result<Self> {
        let bitmap = |fill: fn(&mut [u8]), spec_ctrl| {
            Pages::filled(0, |map| {
                fill(map);
                if spec_ctrl {
                    msr::pass_spec_ctrl(map);
                }
            })
        };
        let x2apic = msr::fill_x2apic_bitmap;
        let kvm = hold_kvm();
        Ok(Self {
            rules: config.rules(),
            config,
            msr_bitmaps: [
                bitmap(msr::fill_bitmap, false)?,
                bitmap(msr::fill_bitmap, true)?,
            ],
            x2apic_bitmaps: [bitmap(x2apic, false)?, bitmap(x2apic, true)?],
            x2apic_only_bitmap: Pages::filled(0, msr::fill_x2apic_only_bitmap)?,
            cpus: PerCpu::new(|_| Ok(Cpu::new(revision_page(&config)?, revision_page(&config)?)))?,
            kvm,
            // A VM of KVM's pins the module as well, as do open files; one pin is ours.
            kvm_guests: !has(c"/sys/module/kvm_intel/refcnt", b"1\n"),
        })
    }

    /// Physical address of an MSR bitmap: for a virtualised local APIC in x2APIC mode, if `x2apic`; one where all other
    /// MSRs exit, if `all_exit`; one where SPEC_CTRL does not, if `spec_ctrl`.
    pub(super) fn msr_bitmap(&self, x2apic: bool, all_exit: bool, spec_ctrl: bool) -> u64 {
        let [plain, passing] = match x2apic {
            true if all_exit => return self.x2apic_only_bitmap.phys(),
            true => &self.x2apic_bitmaps,
            false => &self.msr_bitmaps,
        };
        if spec_ctrl { passing } else { plain }.phys()
    }
}

/// Keeps kvm_intel loaded, if it is there and keeps VMX on as long as it is loaded (`enable_virt_at_load`, which cannot
/// be changed later). KVM has its device only while VMX is on on all CPUs, and the open file pins the module.
///
/// With `enable_virt_at_load=0` VMX goes with KVM's last VM, of which nobody is told.
fn hold_kvm() -> Option<FileRef> {
    let kvm = FileRef::open(c"/dev/kvm").ok()?;
    let at_load = has(c"/sys/module/kvm/parameters/enable_virt_at_load", b"Y");
    (kvm.is_of_module(c"kvm_intel") && at_load).then_some(kvm)
}

/// Whether the file `path` begins with `text`.
fn has<const N: usize>(path: &CStr, text: &[u8; N]) -> bool {
    FileRef::open(path).is_ok_and(|f| f.begins_with(text))
}

/// A zeroed page that starts with the VMCS revision identifier: an empty VMCS or a VMXON region.
pub(super) fn revision_page(config: &VmcsConfig) -> Result<Pages> {
    Pages::filled(0, |page| {
        if let Some(head) = page.first_chunk_mut::<4>() {
            *head = config.revision.to_le_bytes();
        }
    })
}
