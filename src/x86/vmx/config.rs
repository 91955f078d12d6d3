// SPDX-License-Identifier: GPL-2.0
//! What this processor's VMX can do and the controls chosen from it (SDM 3D appendix A).
//!
//! Every group of controls is computed by masks against its capability MSR, whose low half names the
//! bits that must be 1 and whose high half those that may be 1 (SDM 3D A.2).
//!
//! It is made at module load and on each CPU that comes, which has to agree; after that it is only read.

use super::bits::{entry, ept_cap, exit, pin, proc, proc2};
use super::check::{Allowed, VmxCaps};
use super::quirks;
use crate::linux::bindings::X86_FEATURE_INTEL_PT;
use crate::linux::{boot_cpu, cpuid, cr, msr, vectors};
use crate::x86::cpu::cpuid::leaf7_ecx;
use crate::x86::cpu::index;
use crate::x86::cpu::regs::{cr4, efer};
use crate::x86::paging::gwalk::PDPTE_RESERVED;
use crate::x86::vendor::{ApicMode, HwCaps, NestedFormat};
use kernel::prelude::*;

/// Bits of IA32_FEATURE_CONTROL (SDM 3C 24.7).
const FEATURE_CONTROL_LOCK: u64 = 1 << 0;
const FEATURE_CONTROL_VMX: u64 = 1 << 2;

/// EPTP: write-back memory type and a page walk of four levels (SDM 3C table 25-9).
const EPTP_WB_4_LEVELS: u64 = 6 | 3 << 3;
/// Bits of the TSC multiplier behind the point (SDM 3C 25.6.5).
pub(super) const TSC_FRACTION: u32 = 48;

/// IA32_VMX_MISC: Intel PT can be used in VMX operation (SDM 3D A.6).
const MISC_PT_IN_VMX: u64 = 1 << 14;

/// EPTP: accessed and dirty flags (SDM 3C table 25-9).
const EPTP_ACCESSED_DIRTY: u64 = 1 << 6;

/// Abilities of IA32_VMX_EPT_VPID_CAP that are made use of where they exist.
const EPT_VPID_USED: u64 = ept_cap::PAGES_2M
    | ept_cap::PAGES_1G
    | ept_cap::ACCESSED_DIRTY
    | ept_cap::INVEPT_SINGLE
    | ept_cap::INVVPID_SINGLE;

/// What probing found: the controls to use and the abilities that vary, but for those that nothing depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VmcsConfig {
    /// VMCS revision identifier.
    pub(super) revision: u32,
    /// Pin-based controls.
    pub(super) pin: u32,
    /// Primary processor-based controls, without windows.
    pub(super) proc: u32,
    /// Secondary processor-based controls.
    pub(super) proc2: u32,
    /// VM-exit controls.
    pub(super) exit: u32,
    /// VM-entry controls, without "IA-32e mode guest".
    pub(super) entry: u32,
    /// The processor can virtualise local APICs, in memory and by MSRs, and deliver their interrupts (SDM 3C 30), and
    /// the module parameter lets it.
    pub(super) apicv: bool,
    /// The processor can keep the guest's TPR, so that CR8 accesses need no exit (SDM 3C 30.3).
    pub(super) tpr_shadow: bool,
    /// The processor can log the pages whose dirty flags it sets in EPT (SDM 3C 29.3.6), and the module parameter lets
    /// it.
    pub(super) pml: bool,
    /// The preemption timer counts once in two to this power ticks of the TSC (SDM 3D A.6), where there is one.
    pub(super) timer_rate: Option<u32>,
    /// With it the processor can take posted interrupts, notified by this vector.
    pub(super) posted: Option<u8>,
    /// Bits of CR0 that must be 1 in VMX operation; PE and PG are exempt in the guest.
    pub(super) cr0_fixed0: u64,
    /// Bits of CR4 that must be 1 in VMX operation.
    pub(super) cr4_fixed0: u64,
    /// The processor lacks CR4.UMIP, and exits stand in for it.
    pub(super) umip_exits: bool,
    /// Low bits of every EPT pointer.
    pub(super) eptp_flags: u64,
    /// Root operation may be our own: it does not stop the host's Intel PT, of which only KVM can tell the kernel.
    pub(super) own_root: bool,
    /// What there is to hold the host's PEBS, where the processor has that.
    pub(super) pebs: Option<PebsCaps>,
    /// IA32_VMX_EPT_VPID_CAP, in the bits of [`EPT_VPID_USED`].
    ept_vpid: u64,
}

/// A processor with PEBS (SDM 3B 20.6.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PebsCaps {
    /// VM entries and exits can load IA32_PERF_GLOBAL_CTRL.
    pub(super) loads: bool,
    /// A counter that stands still in a guest stores no record there.
    pub(super) isolated: bool,
}

impl PebsCaps {
    /// Those of the calling CPU: CPUID.1:EDX.DS and not IA32_MISC_ENABLE "PEBS unavailable".
    fn of_this_cpu() -> Option<Self> {
        /// Models (CPUID.1:EAX without stepping) whose exits may clear bits 34:32 of IA32_PERF_GLOBAL_CTRL: Nehalem and
        /// Westmere (AAK155, AAP115, AAT100, BC86, AAY89, BD102, BA97).
        const LOAD_ERRATA: [u32; 5] = [0x1_06a0, 0x1_06e0, 0x2_0650, 0x2_06c0, 0x2_06e0];
        let features = cpuid::cpuid_checked(1, 0);
        let version = cpuid::cpuid_checked(0xa, 0).eax & 0xff;
        let exists = features.edx & (1 << 21) != 0
            && msr::read_safe(index::MISC_ENABLE).is_ok_and(|v| v & (1 << 12) == 0)
            && msr::read_safe(index::PEBS_ENABLE).is_ok();
        exists.then(|| Self {
            loads: version >= 2
                && may(index::VMX_TRUE_EXIT_CTLS, exit::LOAD_PERF_GLOBAL)
                && may(index::VMX_TRUE_ENTRY_CTLS, entry::LOAD_PERF_GLOBAL)
                && !LOAD_ERRATA.contains(&(features.eax & 0x0fff_3ff0)),
            // As the kernel decides, which knows microcode for some older processors as well.
            isolated: version >= 5,
        })
    }
}

/// Fails with `errno` and a line in the log, a sentence with the remedy, at the first demand that is not met. The
/// number helps to report it: an MSR's value or the missing control bits.
macro_rules! demand {
    ($errno:expr; $($text:expr => $met:expr, $number:expr;)+) => {
        $(if !$met {
            pr_err!("{} (detail {:#x})\n", $text, $number);
            return Err($errno);
        })+
    };
}

/// One group of controls: what has to be set, what is set when it can be, what has to be clear.
struct Wanted {
    must: u32,
    wish: u32,
    off: u32,
}

impl Wanted {
    /// The value to use, chosen by capability MSR `index`; refused in the words of `text`.
    fn choose(&self, index: u32, text: &str) -> Result<u32> {
        let capability = capability(index);
        let (must_be_1, may_be_1) = (capability as u32, (capability >> 32) as u32);
        let wrong = (self.must & !may_be_1) | (self.off & must_be_1);
        demand! { EOPNOTSUPP; text => wrong == 0, wrong; }
        Ok((self.must | self.wish | must_be_1) & may_be_1)
    }
}

const PIN: Wanted = Wanted {
    must: pin::EXTERNAL_INTERRUPT_EXITING | pin::NMI_EXITING | pin::VIRTUAL_NMIS,
    wish: 0,
    off: pin::PREEMPTION_TIMER | pin::POSTED_INTERRUPTS,
};

// CR8 accesses exit: without a TPR shadow they would reach the host's own TPR.
const PROC: Wanted = Wanted {
    must: proc::TSC_OFFSETTING
        | proc::HLT_EXITING
        | proc::MWAIT_EXITING
        | proc::RDPMC_EXITING
        | proc::CR8_LOAD_EXITING
        | proc::CR8_STORE_EXITING
        | proc::MOV_DR_EXITING
        | proc::UNCONDITIONAL_IO
        | proc::MSR_BITMAPS
        | proc::MONITOR_EXITING
        | proc::SECONDARY,
    wish: 0,
    off: proc::INTERRUPT_WINDOW
        | proc::INVLPG_EXITING
        | proc::RDTSC_EXITING
        | proc::CR3_LOAD_EXITING
        | proc::CR3_STORE_EXITING
        | proc::TERTIARY
        | proc::TPR_SHADOW
        | proc::NMI_WINDOW
        | proc::IO_BITMAPS
        | proc::MONITOR_TRAP
        | proc::PAUSE_EXITING,
};

const PROC2_MUST: u32 = proc2::EPT | proc2::UNRESTRICTED_GUEST | proc2::WBINVD_EXITING;
const PROC2_WISH: u32 = proc2::VPID
    | proc2::RDTSCP
    | proc2::INVPCID
    | proc2::ENCLS_EXITING
    | proc2::XSAVES
    | proc2::TSC_SCALING
    | proc2::PAUSE_LOOP_EXITING;
const PROC2: Wanted = Wanted {
    must: PROC2_MUST,
    wish: PROC2_WISH,
    off: !(PROC2_MUST | PROC2_WISH),
};

/// Secondary controls that APIC virtualisation takes turns with: registers and delivery always, the accesses by mode.
const APICV: u32 =
    proc2::APIC_REGISTERS | proc2::VIRTUAL_INTERRUPTS | proc2::APIC_ACCESSES | proc2::X2APIC_MODE;

// Debug controls: exits clear DR7 and DEBUGCTL in any case, so the guest's are kept in the VMCS.
// EFER and PAT need no saving, because the guest's writes to them exit.
const EXIT: Wanted = Wanted {
    must: exit::SAVE_DEBUG | exit::HOST_64BIT | exit::LOAD_PAT | exit::LOAD_EFER,
    wish: 0,
    off: exit::LOAD_PERF_GLOBAL
        | exit::ACK_INTERRUPT
        | exit::SAVE_PAT
        | exit::SAVE_EFER
        | exit::SAVE_PREEMPTION_TIMER
        | exit::CLEAR_BNDCFGS
        | exit::CLEAR_RTIT
        | exit::CLEAR_LBR
        | exit::LOAD_CET
        | exit::LOAD_PKRS
        | exit::SAVE_PERF_GLOBAL
        | exit::SECONDARY,
};

const ENTRY: Wanted = Wanted {
    must: entry::LOAD_DEBUG | entry::LOAD_PAT | entry::LOAD_EFER,
    wish: 0,
    off: entry::IA32E_GUEST
        | entry::SMM
        | entry::DUAL_MONITOR
        | entry::LOAD_PERF_GLOBAL
        | entry::LOAD_BNDCFGS
        | entry::LOAD_RTIT
        | entry::LOAD_CET
        | entry::LOAD_LBR
        | entry::LOAD_PKRS,
};

/// Processors whose preemption timer does not run as it should (CPUID.1:EAX without its reserved bits), by their
/// specification updates; KVM has the same list.
const TIMER_ERRATA: [u32; 9] = [
    0x2_06e6, // Xeon 7500 (BA86)
    0x2_0652, // Xeon L3406 (AAX65), Core i3 to i7, 300 to 600 series (AAT59, AAU65)
    0x2_0655, // Core i3 and i5, 500 and 600 series (AAU65)
    0x1_06e5, // Xeon 3400 (AAO95), Core i5 and i7, 700 to 900 series (AAN92, AAP86)
    0x1_06a0, // Xeon 3500 (AAM126)
    0x1_06a1, // Xeon 3500 (AAM126)
    0x1_06a4, // Core i7, 900 series (AAJ124)
    0x1_06a5, // Xeon 3500 and 5500 (AAM126, AAK139), Core i7, 900 series (AAJ124)
    0x3_06a8, // Xeon E3-1220 v2
];

/// Whether the processor has a preemption timer that can be relied on.
fn has_timer() -> bool {
    may(index::VMX_TRUE_PINBASED_CTLS, pin::PREEMPTION_TIMER)
        && !TIMER_ERRATA.contains(&(cpuid::cpuid(1, 0).eax & 0x0fff_3fff))
}

/// Reads a VMX capability MSR; zero when it does not exist, which the masks then refuse.
fn capability(index: u32) -> u64 {
    msr::read_safe(index).unwrap_or(0)
}

/// Whether the controls of capability MSR `index` may all be 1 that `bits` has.
fn may(index: u32, bits: u32) -> bool {
    (capability(index) >> 32) as u32 & bits == bits
}

/// Whether the processor shows VMX and the host leaves it to us.
fn check_vmx() -> Result {
    demand! { ENODEV;
        "this processor shows no VMX; under another hypervisor, enable nested virtualisation there" =>
            cpuid::cpuid_checked(1, 0).ecx & (1 << 5) != 0, 0u64;
    }
    demand! { EOPNOTSUPP;
        "FRED is on, with which host NMIs cannot be handed on yet; boot the host with fred=off" =>
            cr::cr4() & cr4::FRED == 0, 0u64;
    }
    Ok(())
}

/// Whether the firmware lets VMXON work (SDM 3C 24.7).
///
/// An unlocked register is left alone: the kernel sets and locks it at boot where it may.
fn check_feature_control() -> Result {
    let read = msr::read_safe(index::FEATURE_CONTROL);
    let value = read.unwrap_or(0);
    demand! { EOPNOTSUPP;
        "IA32_FEATURE_CONTROL cannot be read; an outer hypervisor hides VMX halfway" => read.is_ok(), 0u64;
        "IA32_FEATURE_CONTROL is not locked, so VMXON would fault; neither firmware nor kernel has set VT-x up, \
        enable it in the firmware setup" =>
            value & FEATURE_CONTROL_LOCK != 0, value;
        "VMX is switched off by the firmware; enable Intel Virtualization Technology (VT-x) in the firmware setup \
        and power-cycle" =>
            value & FEATURE_CONTROL_VMX != 0, value;
    }
    Ok(())
}

/// IA32_VMX_BASIC (SDM 3D A.1).
fn basic() -> Result<u64> {
    let basic = capability(index::VMX_BASIC);
    demand! { EOPNOTSUPP;
        "VMX lacks the TRUE capability MSRs, so CR3 accesses cannot be left to guests; a newer processor is needed" =>
            basic & (1 << 55) != 0, basic;
        "VMX asks for a VMCS that is not one write-back page; this processor is not supported" =>
            (basic >> 50) & 15 == 6 && (basic >> 32) & 0x1fff <= 4096, basic;
    }
    Ok(basic)
}

/// The secondary processor-based controls.
fn secondary() -> Result<u32> {
    const INDEX: u32 = index::VMX_PROCBASED_CTLS2;
    demand! { EOPNOTSUPP;
        "VMX lacks EPT (nested page tables); a processor with EPT is needed, or an outer hypervisor that shows it" =>
            may(INDEX, proc2::EPT), capability(INDEX);
        "VMX lacks unrestricted guest (real mode in guests); a processor with it is needed, or an outer hypervisor \
        that shows it" =>
            may(INDEX, proc2::UNRESTRICTED_GUEST), capability(INDEX);
    }
    PROC2.choose(
        INDEX,
        "VMX lacks WBINVD exiting or forces a secondary control that is not supported",
    )
}

/// IA32_VMX_EPT_VPID_CAP (SDM 3D A.10).
fn ept_vpid() -> Result<u64> {
    const MUST: u64 = ept_cap::LEVELS_4 | ept_cap::WRITE_BACK | ept_cap::INVEPT;
    let ept_vpid = capability(index::VMX_EPT_VPID_CAP);
    let invept = ept_vpid & (ept_cap::INVEPT_SINGLE | ept_cap::INVEPT_ALL) != 0;
    demand! { EOPNOTSUPP;
        "EPT lacks four-level walks, write-back tables or INVEPT; a newer processor is needed" =>
            ept_vpid & MUST == MUST && invept, ept_vpid;
    }
    Ok(ept_vpid)
}

impl VmcsConfig {
    /// Reads the calling CPU's abilities and chooses the controls; the log says why there are none.
    pub(super) fn of_this_cpu() -> Result<Self> {
        check_vmx()?;
        check_feature_control()?;
        let basic = basic()?;
        let pin = PIN.choose(
            index::VMX_TRUE_PINBASED_CTLS,
            "VMX lacks virtual NMIs or another needed pin-based control; a newer processor is needed",
        )?;
        let proc = PROC.choose(
            index::VMX_TRUE_PROCBASED_CTLS,
            "VMX lacks MSR bitmaps, secondary controls or another needed processor-based control; a newer \
            processor is needed",
        )?;
        let mut proc2 = secondary()?;
        let exit = EXIT.choose(
            index::VMX_TRUE_EXIT_CTLS,
            "VMX cannot switch IA32_EFER and IA32_PAT at exits, or lacks another needed exit control; a newer \
            processor is needed",
        )?;
        let entry = ENTRY.choose(
            index::VMX_TRUE_ENTRY_CTLS,
            "VMX cannot switch IA32_EFER and IA32_PAT at entries, or lacks another needed entry control; a newer \
            processor is needed",
        )?;
        let ept_vpid = ept_vpid()?;
        // A VPID without a way to flush it would be worse than none.
        if ept_vpid & ept_cap::INVVPID == 0
            || ept_vpid & (ept_cap::INVVPID_SINGLE | ept_cap::INVVPID_ALL) == 0
        {
            proc2 &= !proc2::VPID;
        }
        let tpr_shadow = may(index::VMX_TRUE_PROCBASED_CTLS, proc::TPR_SHADOW);
        let apicv = crate::params::enable_apicv().unwrap_or_else(quirks::apicv_by_default)
            && tpr_shadow
            && may(index::VMX_PROCBASED_CTLS2, APICV);
        Ok(Self {
            revision: basic as u32 & 0x7fff_ffff,
            pin,
            proc,
            proc2,
            exit,
            entry,
            apicv,
            tpr_shadow,
            pml: crate::params::pml()
                && ept_vpid & ept_cap::ACCESSED_DIRTY != 0
                && may(index::VMX_PROCBASED_CTLS2, proc2::PML),
            posted: vectors::posted_vector().filter(|_| {
                apicv
                    && may(index::VMX_TRUE_PINBASED_CTLS, pin::POSTED_INTERRUPTS)
                    && may(index::VMX_TRUE_EXIT_CTLS, exit::ACK_INTERRUPT)
            }),
            timer_rate: has_timer().then(|| capability(index::VMX_MISC) as u32 & 31),
            cr0_fixed0: capability(index::VMX_CR0_FIXED0),
            cr4_fixed0: capability(index::VMX_CR4_FIXED0),
            umip_exits: cpuid::cpuid_checked(7, 0).ecx & leaf7_ecx::UMIP == 0
                && may(index::VMX_PROCBASED_CTLS2, proc2::DESCRIPTOR_EXITING),
            eptp_flags: if ept_vpid & ept_cap::ACCESSED_DIRTY != 0 {
                EPTP_WB_4_LEVELS | EPTP_ACCESSED_DIRTY
            } else {
                EPTP_WB_4_LEVELS
            },
            own_root: !boot_cpu::has(X86_FEATURE_INTEL_PT)
                || capability(index::VMX_MISC) & MISC_PT_IN_VMX != 0,
            pebs: PebsCaps::of_this_cpu(),
            ept_vpid: ept_vpid & EPT_VPID_USED,
        })
    }

    /// The primary processor-based controls for a vCPU whose TPR is in its page of APIC registers: CR8 accesses reach
    /// it there.
    pub(super) const fn tpr_controls(&self) -> u32 {
        self.proc & !(proc::CR8_LOAD_EXITING | proc::CR8_STORE_EXITING) | proc::TPR_SHADOW
    }

    /// The secondary processor-based controls for a vCPU whose local APIC is virtualised, reached as `mode` says.
    pub(super) const fn apicv_controls(&self, mode: ApicMode) -> u32 {
        let accesses = match mode {
            ApicMode::Xapic => proc2::APIC_ACCESSES,
            ApicMode::X2apic => proc2::X2APIC_MODE,
            ApicMode::Other => 0,
        };
        self.proc2 | proc2::APIC_REGISTERS | proc2::VIRTUAL_INTERRUPTS | accesses
    }

    /// Whether VPIDs are in use.
    pub(super) const fn vpid(&self) -> bool {
        self.proc2 & proc2::VPID != 0
    }

    /// Whether INVEPT can flush one EPT pointer.
    pub(super) const fn invept_single(&self) -> bool {
        self.ept_vpid & ept_cap::INVEPT_SINGLE != 0
    }

    /// Whether INVVPID can flush one VPID.
    pub(super) const fn invvpid_single(&self) -> bool {
        self.ept_vpid & ept_cap::INVVPID_SINGLE != 0
    }

    /// Bits of IA32_EFER that may be set in a guest here.
    pub(super) const fn efer_mask(&self) -> u64 {
        efer::SCE | efer::LME | efer::LMA | efer::NX
    }

    /// The processor's side of the software entry checks.
    pub(super) fn rules(&self) -> VmxCaps {
        /// LBR, BTF, TR, BTS, BTINT, BTS_OFF_OS, BTS_OFF_USR, the freezes, RTM (SDM 3B figure 18-3).
        const DEBUGCTL_MASK: u64 = 0xdfc3;
        let allowed = |index| Allowed(capability(index));
        let narrow = |bits: u32| u8::try_from(bits).unwrap_or(0);
        VmxCaps {
            basic: capability(index::VMX_BASIC),
            pin: allowed(index::VMX_TRUE_PINBASED_CTLS),
            proc1: allowed(index::VMX_TRUE_PROCBASED_CTLS),
            proc2: allowed(index::VMX_PROCBASED_CTLS2),
            exit: allowed(index::VMX_TRUE_EXIT_CTLS),
            entry: allowed(index::VMX_TRUE_ENTRY_CTLS),
            misc: capability(index::VMX_MISC),
            ept_vpid: capability(index::VMX_EPT_VPID_CAP),
            cr0_fixed: [self.cr0_fixed0, capability(index::VMX_CR0_FIXED1)],
            cr4_fixed: [self.cr4_fixed0, capability(index::VMX_CR4_FIXED1)],
            phys_bits: narrow(boot_cpu::phys_bits()),
            linear_bits: narrow(boot_cpu::virt_bits()),
            efer_mask: self.efer_mask(),
            debugctl_mask: DEBUGCTL_MASK,
        }
    }

    /// The part that the neutral core uses.
    pub(super) fn hw(&self) -> HwCaps {
        HwCaps {
            name: "vmx",
            nested_format: NestedFormat::Ept,
            nested_2m: self.ept_vpid & ept_cap::PAGES_2M != 0,
            nested_1g: self.ept_vpid & ept_cap::PAGES_1G != 0,
            nx_huge: boot_cpu::bug(boot_cpu::Bug::ItlbMultihit),
            nested_ad: self.ept_vpid & ept_cap::ACCESSED_DIRTY != 0,
            write_log: self.pml,
            insn_len: true,
            rdtscp: self.proc2 & proc2::RDTSCP != 0,
            invpcid: self.proc2 & proc2::INVPCID != 0,
            umip_exits: self.umip_exits,
            xsaves: self.proc2 & proc2::XSAVES != 0,
            tsc_fraction: if self.proc2 & proc2::TSC_SCALING != 0 {
                TSC_FRACTION
            } else {
                0
            },
            tsc_ratio_max: u64::MAX,
            pause_exit: self.proc2 & proc2::PAUSE_LOOP_EXITING != 0,
            apicv: self.apicv,
            posted: self.posted.is_some(),
            guest_timer: self.timer_rate.is_some(),
            nested_levels: 4,
            phys_bits: cpuid::phys_bits(),
            pdpte_reserved: PDPTE_RESERVED,
            cr2_exits: false,
        }
    }
}
