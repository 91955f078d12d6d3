// SPDX-License-Identifier: GPL-2.0
//! What guests may see of this processor, found once at load.

use crate::linux::bindings as b;
use crate::linux::boot_cpu::{self, bug, Bug};
use crate::linux::fpu::HostControls;
use crate::linux::global::{Global, Owner};
use crate::x86::cpu::cpuid::{
    self, ext21_eax, ext21_ecx, ext8_ebx, leaf7_ecx, CpuidEntry, CpuidIndex, GuestFeatures,
    HostCpuid, Known, Policy, Vendor,
};
use crate::x86::cpu::{index, msr, xsave};
use crate::x86::vendor::choose;
use kernel::prelude::*;
use kernel::sync::{Arc, SetOnce};

/// The host's CPUID instruction as far as its kernel agrees: what an erratum, firmware or the command line took from
/// the kernel is kept from guests as well, as KVM does.
struct Host;

impl HostCpuid for Host {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        boot_cpu::cpuid_in_use(leaf, subleaf)
    }
}

/// What guests may see, found once at load.
pub(crate) struct Model {
    /// What the hypervisor carries on this host.
    pub(crate) features: GuestFeatures,
    /// Host vendor.
    pub(crate) vendor: Vendor,
    /// XCR0 bits that guests may set.
    pub(crate) xcr0: u64,
    /// XCR0, IA32_XSS and PKRU outside the guest.
    pub(crate) host: HostControls,
    /// Offsets and sizes of the standard XSAVE format.
    pub(crate) layout: xsave::Layout,
    /// MXCSR bits that exist.
    pub(crate) mxcsr_mask: u32,
    /// IA32_ARCH_CAPABILITIES of a fresh vCPU.
    pub(crate) arch_capabilities: u64,
    /// LFENCE serialises dispatch.
    pub(crate) lfence_serializing: bool,
    /// The host's microcode revision.
    ucode_rev: u64,
}

impl Model {
    /// The host runs with CR4.OSXSAVE, and so may guests.
    pub(crate) fn has_xsave(&self) -> bool {
        self.host.xcr0() != 0
    }

    /// What KVM_GET_MSRS gives on the device, where a fresh vCPU has `fresh`. The microcode's revision is the host's,
    /// which clients may hand on, and a constant in a vCPU.
    pub(crate) fn device_msr(&self, index: u32, fresh: u64) -> u64 {
        if index == index::UCODE_REV {
            self.ucode_rev
        } else {
            fresh
        }
    }

    /// What a fresh vCPU's MSRs start with.
    pub(crate) fn msr_config(&self) -> msr::Config {
        msr::Config {
            arch_capabilities: self.arch_capabilities,
            platform_info: msr::PLATFORM_CPUID_FAULT,
            lfence_serializing: self.lfence_serializing,
            vendor: self.vendor,
        }
    }
}

static MODEL: SetOnce<Model> = SetOnce::new();

/// The CPU model. Set by `init` before any file can be opened.
pub(crate) fn model() -> Result<&'static Model> {
    MODEL.as_ref().ok_or(ENODEV)
}

/// The same as user space asks for it.
pub(crate) struct Lists {
    /// KVM_GET_SUPPORTED_CPUID.
    pub(crate) supported: KVec<CpuidEntry>,
    /// KVM_GET_MSR_INDEX_LIST.
    pub(crate) msrs: KVec<u32>,
}

static LISTS: Global<Lists> = Global::new();

/// The lists. Set by `init` before any file can be opened.
pub(crate) fn lists() -> Result<Arc<Lists>> {
    LISTS.get().ok_or(ENODEV)
}

/// What a guest need not fear on this CPU (SDM 4 table 2-2): what the CPU says of itself, and what the kernel knows of
/// CPUs that came before the MSR. Without SPEC_CTRL nothing is offered that is used through it.
fn arch_capabilities(spec_ctrl: bool) -> u64 {
    use msr::arch_capabilities as bit;
    let mut v = if boot_cpu::has(b::X86_FEATURE_ARCH_CAPABILITIES) {
        crate::linux::msr::read_safe(index::ARCH_CAPABILITIES).unwrap_or(0)
    } else {
        0
    };
    for (flaw, no) in [
        (Bug::Meltdown, bit::RDCL_NO),
        (Bug::SpecStoreBypass, bit::SSB_NO),
        (Bug::Mds, bit::MDS_NO),
        (Bug::Taa, bit::TAA_NO),
        (Bug::Gds, bit::GDS_NO),
        (Bug::Rfds, bit::RFDS_NO),
        (Bug::Its, bit::ITS_NO),
    ] {
        if !bug(flaw) {
            v |= no;
        }
    }
    // Entries flush where that is needed, unless the owner of the machine does without (see `mitigate`).
    if !bug(Bug::L1tf) || !boot_cpu::mitigations_off() {
        v |= bit::SKIP_L1DFL_VMENTRY;
    }
    // The host keeps guests from the page-size machine check (see `GuestMemory::fault`).
    v |= bit::IF_PSCHANGE_MC_NO;
    if !boot_cpu::has(b::X86_FEATURE_RTM) {
        // Nothing to abort asynchronously; TSX_CTRL stays for guests that come from a host with TSX (as in KVM).
        v &= !bit::TAA_NO;
    }
    if !spec_ctrl {
        v &= !(bit::IBRS_ALL | bit::RSBA | bit::RRSBA);
    }
    v & bit::ALLOWED
}

/// What the kernel knows of an AMD processor beside its CPUID (KVM's `kvm_initialize_cpu_caps`): what it has derived
/// from the model, switched on in an MSR, or found by trying.
fn known() -> Known {
    let find = |features: &[(u32, u32)]| {
        let had = features
            .iter()
            .filter(|(feature, _)| boot_cpu::has(*feature));
        had.fold(0, |bits, (_, bit)| bits | bit)
    };
    let not = |flaw, bit| if bug(flaw) { 0 } else { bit };
    Known {
        ext8_ebx: not(Bug::SpecStoreBypass, ext8_ebx::SSB_NO)
            | find(&[
                (b::X86_FEATURE_IBPB, ext8_ebx::IBPB),
                (b::X86_FEATURE_IBRS, ext8_ebx::IBRS),
                (b::X86_FEATURE_STIBP, ext8_ebx::STIBP),
            ]),
        ext21_eax: not(Bug::NullSeg, ext21_eax::NULL_SELECTOR_CLEARS_BASE)
            | find(&[
                (b::X86_FEATURE_LFENCE_RDTSC, ext21_eax::LFENCE_SERIALIZING),
                (b::X86_FEATURE_VERW_CLEAR, ext21_eax::VERW_CLEAR),
                (b::X86_FEATURE_SBPB, ext21_eax::SBPB),
                (b::X86_FEATURE_IBPB_BRTYPE, ext21_eax::IBPB_BRTYPE),
                (b::X86_FEATURE_SRSO_NO, ext21_eax::SRSO_NO),
            ]),
        ext21_ecx: find(&[
            (b::X86_FEATURE_TSA_SQ_NO, ext21_ecx::TSA_SQ_NO),
            (b::X86_FEATURE_TSA_L1_NO, ext21_ecx::TSA_L1_NO),
            (b::X86_FEATURE_TSA_FILL_NO, ext21_ecx::TSA_FILL_NO),
        ]),
    }
}

/// Finds out what guests may see. The lists are found as long as the owner lives.
pub(crate) fn init() -> Result<Owner> {
    let caps = choose::caps().ok_or(ENODEV)?;
    let host_controls = HostControls::probe();
    let host_xcr0 = host_controls.xcr0();
    let l0 = Host.cpuid(0, 0);
    let pku = host_controls.pku();
    let mut xcr0 = host_xcr0 & xsave::CARRIED;
    if !pku {
        xcr0 &= !xsave::PKRU;
    }
    let vendor = Vendor::from_leaf0(l0);
    let lfence_serializing = vendor == Vendor::Amd && boot_cpu::has(b::X86_FEATURE_LFENCE_RDTSC);
    let spec_ctrl = crate::x86::mitigate::has_spec_ctrl();
    let policy = Policy {
        vendor,
        xcr0,
        rdtscp: caps.rdtscp,
        invpcid: caps.invpcid,
        umip: caps.umip_exits,
        xsaves: caps.xsaves,
        pku,
        // Nested paging does not ask what the host's own page tables are like.
        la57: crate::linux::cpuid::cpuid(7, 0).ecx & leaf7_ecx::LA57 != 0,
        spec_ctrl,
        pred_cmd: boot_cpu::has(b::X86_FEATURE_IBPB),
        known: known(),
        tsc_khz: boot_cpu::tsc_khz(),
        apic_hz: 1_000_000_000,
        kvm_features: cpuid::kvm_feature::OFFERED,
    };
    let mut supported = KVec::with_capacity(cpuid::MAX_ENTRIES, GFP_KERNEL)?;
    let mut buf: KVec<CpuidEntry> =
        KVec::from_elem(CpuidEntry::default(), cpuid::MAX_ENTRIES, GFP_KERNEL)?;
    let n = cpuid::supported(&Host, &policy, &mut buf).map_err(|_| E2BIG)?;
    supported.extend_from_slice(buf.get(..n).ok_or(EINVAL)?, GFP_KERNEL)?;
    let features = GuestFeatures::from_table(&supported, &CpuidIndex::new(&supported));
    let mut list = KVec::from_elem(0u32, 256, GFP_KERNEL)?;
    let probe = |msr| crate::linux::msr::read_safe(msr).is_ok();
    let n = msr::index_list(&features, probe, &mut list).map_err(|_| E2BIG)?;
    let mut msrs = KVec::with_capacity(n, GFP_KERNEL)?;
    msrs.extend_from_slice(list.get(..n).ok_or(EINVAL)?, GFP_KERNEL)?;
    let model = Model {
        features,
        vendor,
        xcr0,
        host: host_controls,
        layout: xsave::Layout::from_host(&Host, host_xcr0),
        mxcsr_mask: crate::linux::fpu::mxcsr_mask(),
        lfence_serializing,
        arch_capabilities: arch_capabilities(spec_ctrl),
        ucode_rev: crate::linux::msr::read_safe(index::UCODE_REV).unwrap_or(0),
    };
    if !MODEL.populate(model) {
        return Err(EBUSY);
    }
    LISTS.set(Lists { supported, msrs })
}

/// Whether KVM_GET_MSR_INDEX_LIST or KVM_GET_MSR_FEATURE_INDEX_LIST names the MSR.
pub(crate) fn lists_msr(index: u32) -> bool {
    lists().is_ok_and(|l| l.msrs.contains(&index))
        || model().is_ok_and(|m| msr::feature_list(&m.features).contains(&index))
}

/// Whether the MSR says what the vCPU is, so that it is fixed once the vCPU has run. The microcode revision is not.
pub(crate) fn is_fixed_msr(index: u32) -> bool {
    index != index::UCODE_REV
        && model().is_ok_and(|m| msr::feature_list(&m.features).contains(&index))
}
