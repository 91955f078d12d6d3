// SPDX-License-Identifier: GPL-2.0
//! The Intel backend: VMX with EPT, VPID and unrestricted guest (SDM 3C chapters 24 to 31).
//!
//! | file | what |
//! |---|---|
//! | `vmcs` | fields and control bits |
//! | `insn` | VMX instructions |
//! | `caps` | capability MSRs, the controls chosen |
//! | `root` | private and shared root operation |
//! | `host` | host state around a stay |
//! | `entry` | world switch |
//! | `state` | guest state to and from the VMCS |
//! | `event` | injection and interrupted events |
//! | `decode` | exit reasons to [`crate::x86::exit::Exit`] |
//! | `check`, `view` | the entry checks in software, and the VMCS as they see it |
//! | `vcpu` | all of it as [`crate::x86::vendor::VcpuBackend`] |

mod caps;
#[allow(dead_code)] // The tables are complete; the host tests use the rest.
pub(crate) mod check;
mod decode;
mod entry;
mod event;
mod host;
mod insn;
mod root;
mod state;
mod vcpu;
mod view;
mod vmcs;

use crate::linux::global::Global;
use crate::linux::page::Pages;
use crate::linux::smp;
use crate::x86::vendor::{HwCaps, Platform};
use caps::Caps;
use kernel::prelude::*;

pub(crate) use vcpu::VmxVcpu;

/// What all vCPUs share, there from `probe` to `exit`.
struct Shared {
    /// Controls and abilities of the CPU that probed; every other CPU has to agree.
    caps: Caps,
    /// The same, for the software entry checks.
    rules: check::VmxCaps,
    /// MSR bitmap (SDM 3C 25.6.9).
    msr_bitmap: Pages,
    /// The same for guests whose virtualised local APIC is in x2APIC mode.
    x2apic_bitmap: Pages,
    /// The same where every other MSR exits.
    x2apic_only_bitmap: Pages,
    /// VMXON regions by CPU number (SDM 3C 25.11.5).
    vmxon: KVec<Pages>,
}

static SHARED: Global<Shared> = Global::new();

impl Shared {
    fn new(caps: Caps) -> Result<Self> {
        let cpus = smp::nr_cpu_ids();
        let mut vmxon = KVec::with_capacity(cpus as usize, GFP_KERNEL)?;
        for _ in 0..cpus {
            vmxon.push(revision_page(&caps)?, GFP_KERNEL)?;
        }
        Ok(Self {
            rules: caps.rules(),
            caps,
            msr_bitmap: Pages::filled(0, host::fill_msr_bitmap)?,
            x2apic_bitmap: Pages::filled(0, |map| host::fill_x2apic_bitmap(map, false))?,
            x2apic_only_bitmap: Pages::filled(0, |map| host::fill_x2apic_bitmap(map, true))?,
            vmxon,
        })
    }

    /// Physical address of the VMXON region of CPU `cpu`.
    #[inline]
    fn vmxon_region(&self, cpu: u32) -> Option<u64> {
        self.vmxon.get(cpu as usize).map(Pages::phys)
    }
}

/// A zeroed page that starts with the VMCS revision identifier: an empty VMCS or a VMXON region.
fn revision_page(caps: &Caps) -> Result<Pages> {
    Pages::filled(0, |page| {
        if let Some(head) = page.first_chunk_mut::<4>() {
            *head = caps.revision.to_le_bytes();
        }
    })
}

/// The calling CPU's abilities, or the refusal in the log.
fn caps_of_this_cpu() -> Result<Caps> {
    Caps::of_this_cpu().map_err(|refusal| {
        pr_err!("{} (detail {:#x})\n", refusal.text, refusal.detail);
        refusal.errno
    })
}

/// Intel VT-x as a platform.
pub(crate) struct Vmx;

impl Vmx {
    /// Frees the module-wide state.
    ///
    /// # Safety
    ///
    /// No vCPU is left.
    pub(crate) unsafe fn exit() {
        // SAFETY: By the contract no reference is left.
        unsafe { SHARED.clear() };
    }
}

impl Platform for Vmx {
    type Vcpu = VmxVcpu;

    fn probe() -> Result<HwCaps> {
        let caps = caps_of_this_cpu()?;
        SHARED.set(Shared::new(caps)?)?;
        Ok(caps.hw())
    }

    fn cpu_up() -> Result {
        let shared = SHARED.get().ok_or(ENODEV)?;
        if caps_of_this_cpu()? != shared.caps {
            pr_err!("this CPU's VMX differs from that of the CPU that loaded the module; guests cannot move between them\n");
            return Err(EIO);
        }
        // VMX operation lasts for a stay only, so there is nothing to turn on.
        Ok(())
    }

    fn cpu_down() {
        // Stays end before a CPU can go down, so nothing is left on it.
    }
}
