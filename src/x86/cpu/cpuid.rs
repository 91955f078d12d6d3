// SPDX-License-Identifier: GPL-2.0
//! CPUID policy: what is offered to a guest (an allow-list), look-up in a vCPU's table, and the features derived from it
//! (SDM 2A CPUID, APM 3 appendix E, api.rst 4.46 and 4.50, kernel document virt/kvm/x86/cpuid.rst).
//!
//! A bit reaches the guest only if it is named in an `ALLOWED` mask below *and* the host has it, or if it is in an `EMULATED`
//! mask, that is, provided by the hypervisor whatever the host has. A feature of a future CPU is therefore hidden until somebody
//! has thought about the state it adds.
#![forbid(unsafe_code)]

use crate::x86::cpu::regs::cr4;
use crate::x86::cpu::xsave;

/// KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the entry answers only for its own sub-leaf.
pub const FLAG_SIGNIFICANT_INDEX: u32 = 1;

/// Largest number of entries that KVM_SET_CPUID2 accepts.
pub const MAX_ENTRIES: usize = 256;

/// One CPUID leaf: `struct kvm_cpuid_entry2`, field by field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct CpuidEntry {
    pub function: u32,
    pub index: u32,
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub padding: [u32; 3],
}

const _: () = assert!(core::mem::size_of::<CpuidEntry>() == 40);

impl CpuidEntry {
    /// Whether this entry answers for `leaf` and `subleaf`.
    #[inline]
    pub const fn answers(&self, leaf: u32, subleaf: u32) -> bool {
        self.function == leaf && (self.flags & FLAG_SIGNIFICANT_INDEX == 0 || self.index == subleaf)
    }

    /// EAX, EBX, ECX, EDX.
    #[inline]
    pub const fn values(&self) -> [u32; 4] {
        [self.eax, self.ebx, self.ecx, self.edx]
    }
}

/// The host's CPUID instruction.
pub trait HostCpuid {
    /// EAX, EBX, ECX, EDX of the host for `leaf` and `subleaf`.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];
}

/// Which manual a CPU follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vendor {
    /// GenuineIntel and everything that is not AMD or Hygon.
    #[default]
    Intel,
    /// AuthenticAMD, HygonGenuine.
    Amd,
}

impl Vendor {
    /// From the vendor string of leaf 0: `[eax, ebx, ecx, edx]`.
    pub const fn from_leaf0(r: [u32; 4]) -> Self {
        let amd = r[1] == 0x6874_7541 && r[3] == 0x6974_6e65 && r[2] == 0x444d_4163;
        let hygon = r[1] == 0x6f67_7948 && r[3] == 0x6e65_476e && r[2] == 0x656e_6975;
        if amd || hygon {
            Self::Amd
        } else {
            Self::Intel
        }
    }
}

/// CPUID.01H:ECX.
#[allow(missing_docs)]
pub mod leaf1_ecx {
    pub const SSE3: u32 = 1 << 0;
    pub const PCLMULQDQ: u32 = 1 << 1;
    pub const MONITOR: u32 = 1 << 3;
    pub const VMX: u32 = 1 << 5;
    pub const SSSE3: u32 = 1 << 9;
    pub const FMA: u32 = 1 << 12;
    pub const CMPXCHG16B: u32 = 1 << 13;
    pub const PCID: u32 = 1 << 17;
    pub const SSE4_1: u32 = 1 << 19;
    pub const SSE4_2: u32 = 1 << 20;
    pub const X2APIC: u32 = 1 << 21;
    pub const MOVBE: u32 = 1 << 22;
    pub const POPCNT: u32 = 1 << 23;
    pub const TSC_DEADLINE: u32 = 1 << 24;
    pub const AES: u32 = 1 << 25;
    pub const XSAVE: u32 = 1 << 26;
    pub const OSXSAVE: u32 = 1 << 27;
    pub const AVX: u32 = 1 << 28;
    pub const F16C: u32 = 1 << 29;
    pub const RDRAND: u32 = 1 << 30;
    pub const HYPERVISOR: u32 = 1 << 31;

    /// Hidden: DTES64, DS-CPL, PDCM (performance monitoring and debug store are not virtualised), MONITOR (guest MWAIT would hold
    /// the CPU), VMX (no nesting), SMX, EST, TM2, CNXT-ID, SDBG, xTPR, DCA (platform controls).
    pub const ALLOWED: u32 = SSE3
        | PCLMULQDQ
        | SSSE3
        | FMA
        | CMPXCHG16B
        | PCID
        | SSE4_1
        | SSE4_2
        | MOVBE
        | POPCNT
        | AES
        | XSAVE
        | AVX
        | F16C
        | RDRAND;
}

/// CPUID.01H:EDX.
#[allow(missing_docs)]
pub mod leaf1_edx {
    pub const FPU: u32 = 1 << 0;
    pub const VME: u32 = 1 << 1;
    pub const DE: u32 = 1 << 2;
    pub const PSE: u32 = 1 << 3;
    pub const TSC: u32 = 1 << 4;
    pub const MSR: u32 = 1 << 5;
    pub const PAE: u32 = 1 << 6;
    pub const MCE: u32 = 1 << 7;
    pub const CX8: u32 = 1 << 8;
    pub const APIC: u32 = 1 << 9;
    pub const SEP: u32 = 1 << 11;
    pub const MTRR: u32 = 1 << 12;
    pub const PGE: u32 = 1 << 13;
    pub const MCA: u32 = 1 << 14;
    pub const CMOV: u32 = 1 << 15;
    pub const PAT: u32 = 1 << 16;
    pub const PSE36: u32 = 1 << 17;
    pub const CLFSH: u32 = 1 << 19;
    pub const MMX: u32 = 1 << 23;
    pub const FXSR: u32 = 1 << 24;
    pub const SSE: u32 = 1 << 25;
    pub const SSE2: u32 = 1 << 26;
    pub const SS: u32 = 1 << 27;
    pub const HTT: u32 = 1 << 28;

    /// Hidden: PSN, DS, ACPI and TM (thermal MSRs), PBE. HTT describes the VM's topology: the client sets it.
    pub const ALLOWED: u32 = FPU
        | VME
        | DE
        | PSE
        | TSC
        | MSR
        | PAE
        | CX8
        | SEP
        | PGE
        | CMOV
        | PAT
        | PSE36
        | CLFSH
        | MMX
        | FXSR
        | SSE
        | SSE2
        | SS;
    /// Models of our own, whatever the host has.
    pub const EMULATED: u32 = MCE | MCA | MTRR;
}

/// CPUID.06H:EAX.
#[allow(missing_docs)]
pub mod leaf6_eax {
    /// The emulated APIC timer never stops. All the rest (thermal, turbo, HWP) belongs to the host.
    pub const ARAT: u32 = 1 << 2;
}

/// CPUID.(07H,0):EBX.
#[allow(missing_docs)]
pub mod leaf7_ebx {
    pub const FSGSBASE: u32 = 1 << 0;
    pub const TSC_ADJUST: u32 = 1 << 1;
    pub const BMI1: u32 = 1 << 3;
    pub const AVX2: u32 = 1 << 5;
    pub const FDP_EXCPTN_ONLY: u32 = 1 << 6;
    pub const SMEP: u32 = 1 << 7;
    pub const BMI2: u32 = 1 << 8;
    pub const ERMS: u32 = 1 << 9;
    pub const INVPCID: u32 = 1 << 10;
    pub const ZERO_FCS_FDS: u32 = 1 << 13;
    pub const AVX512F: u32 = 1 << 16;
    pub const AVX512DQ: u32 = 1 << 17;
    pub const RDSEED: u32 = 1 << 18;
    pub const ADX: u32 = 1 << 19;
    pub const SMAP: u32 = 1 << 20;
    pub const AVX512IFMA: u32 = 1 << 21;
    pub const CLFLUSHOPT: u32 = 1 << 23;
    pub const CLWB: u32 = 1 << 24;
    pub const AVX512CD: u32 = 1 << 28;
    pub const SHA: u32 = 1 << 29;
    pub const AVX512BW: u32 = 1 << 30;
    pub const AVX512VL: u32 = 1 << 31;

    /// Bits that make sense only with all of AVX-512's state.
    pub const AVX512: u32 = AVX512F | AVX512DQ | AVX512IFMA | AVX512CD | AVX512BW | AVX512VL;
    /// Hidden: SGX, HLE and RTM (TSX control MSR not virtualised), MPX (removed from Linux), resource director, processor trace.
    pub const ALLOWED: u32 = FSGSBASE
        | BMI1
        | AVX2
        | FDP_EXCPTN_ONLY
        | SMEP
        | BMI2
        | ERMS
        | INVPCID
        | ZERO_FCS_FDS
        | RDSEED
        | ADX
        | SMAP
        | CLFLUSHOPT
        | CLWB
        | SHA
        | AVX512;
}

/// CPUID.(07H,0):ECX.
#[allow(missing_docs)]
pub mod leaf7_ecx {
    pub const AVX512VBMI: u32 = 1 << 1;
    pub const UMIP: u32 = 1 << 2;
    pub const PKU: u32 = 1 << 3;
    pub const OSPKE: u32 = 1 << 4;
    pub const AVX512VBMI2: u32 = 1 << 6;
    pub const GFNI: u32 = 1 << 8;
    pub const VAES: u32 = 1 << 9;
    pub const VPCLMULQDQ: u32 = 1 << 10;
    pub const AVX512VNNI: u32 = 1 << 11;
    pub const AVX512BITALG: u32 = 1 << 12;
    pub const AVX512VPOPCNTDQ: u32 = 1 << 14;
    pub const LA57: u32 = 1 << 16;
    pub const RDPID: u32 = 1 << 22;
    pub const CLDEMOTE: u32 = 1 << 25;
    pub const MOVDIRI: u32 = 1 << 27;
    pub const MOVDIR64B: u32 = 1 << 28;

    pub const AVX: u32 = VAES | VPCLMULQDQ;
    pub const AVX512: u32 = AVX512VBMI | AVX512VBMI2 | AVX512VNNI | AVX512BITALG | AVX512VPOPCNTDQ;
    /// Hidden: WAITPKG (UMWAIT would hold the CPU), CET, PKS, key locker (new state), LA57 (4-level guests only), TME, bus-lock
    /// detection, ENQCMD, SGX launch control.
    pub const ALLOWED: u32 =
        UMIP | PKU | GFNI | RDPID | CLDEMOTE | MOVDIRI | MOVDIR64B | AVX | AVX512;
}

/// CPUID.(07H,0):EDX.
#[allow(missing_docs)]
pub mod leaf7_edx {
    pub const AVX512_4VNNIW: u32 = 1 << 2;
    pub const AVX512_4FMAPS: u32 = 1 << 3;
    pub const FSRM: u32 = 1 << 4;
    pub const AVX512_VP2INTERSECT: u32 = 1 << 8;
    pub const MD_CLEAR: u32 = 1 << 10;
    pub const SERIALIZE: u32 = 1 << 14;
    pub const AVX512_FP16: u32 = 1 << 23;
    pub const SPEC_CTRL: u32 = 1 << 26;
    pub const STIBP: u32 = 1 << 27;
    pub const ARCH_CAPABILITIES: u32 = 1 << 29;
    pub const SSBD: u32 = 1 << 31;

    pub const AVX512: u32 = AVX512_4VNNIW | AVX512_4FMAPS | AVX512_VP2INTERSECT | AVX512_FP16;
    pub const SPECULATION: u32 = SPEC_CTRL | STIBP | SSBD;
    /// Hidden: user interrupts, TSX variants, hybrid, PCONFIG, architectural LBR, CET-IBT, AMX (state too large to switch for now),
    /// L1D_FLUSH (the hypervisor flushes by itself), core capabilities.
    pub const ALLOWED: u32 = FSRM | MD_CLEAR | SERIALIZE | ARCH_CAPABILITIES | SPECULATION | AVX512;
}

/// CPUID.(07H,1).
#[allow(missing_docs)]
pub mod leaf7_1 {
    pub const SHA512: u32 = 1 << 0;
    pub const SM3: u32 = 1 << 1;
    pub const SM4: u32 = 1 << 2;
    pub const AVX_VNNI: u32 = 1 << 4;
    pub const AVX512_BF16: u32 = 1 << 5;
    pub const CMPCCXADD: u32 = 1 << 7;
    pub const FZLRM: u32 = 1 << 10;
    pub const FSRS: u32 = 1 << 11;
    pub const FSRC: u32 = 1 << 12;
    pub const AVX_IFMA: u32 = 1 << 23;

    pub const EAX_AVX: u32 = SHA512 | SM3 | SM4 | AVX_VNNI | AVX_IFMA;
    pub const EAX_AVX512: u32 = AVX512_BF16;
    /// Hidden: FRED and LKGS (new event delivery), AMX, LAM (CR3 layout), HRESET, MSRLIST, WRMSRNS.
    pub const EAX_ALLOWED: u32 = CMPCCXADD | FZLRM | FSRS | FSRC | EAX_AVX | EAX_AVX512;

    pub const AVX_VNNI_INT8: u32 = 1 << 4;
    pub const AVX_NE_CONVERT: u32 = 1 << 5;
    pub const AVX_VNNI_INT16: u32 = 1 << 10;
    pub const PREFETCHI: u32 = 1 << 14;
    pub const EDX_AVX: u32 = AVX_VNNI_INT8 | AVX_NE_CONVERT | AVX_VNNI_INT16;
    /// Hidden: AMX-COMPLEX, user timer, AVX10, CET-SSS, APX.
    pub const EDX_ALLOWED: u32 = PREFETCHI | EDX_AVX;
}

/// CPUID.(07H,2):EDX: further speculation controls in IA32_SPEC_CTRL.
#[allow(missing_docs)]
pub mod leaf7_2_edx {
    pub const PSFD: u32 = 1 << 0;
    pub const IPRED_CTRL: u32 = 1 << 1;
    pub const RRSBA_CTRL: u32 = 1 << 2;
    pub const DDPD_U: u32 = 1 << 3;
    pub const BHI_CTRL: u32 = 1 << 4;
    /// A property of the CPU, no control.
    pub const MCDT_NO: u32 = 1 << 5;
    pub const SPECULATION: u32 = PSFD | IPRED_CTRL | RRSBA_CTRL | DDPD_U | BHI_CTRL;
}

/// CPUID.(0DH,1):EAX.
#[allow(missing_docs)]
pub mod leafd_1_eax {
    pub const XSAVEOPT: u32 = 1 << 0;
    pub const XSAVEC: u32 = 1 << 1;
    pub const XGETBV_ECX1: u32 = 1 << 2;
    pub const XSAVES: u32 = 1 << 3;
    /// Hidden: XFD (only AMX uses it).
    pub const ALLOWED: u32 = XSAVEOPT | XSAVEC | XGETBV_ECX1 | XSAVES;
}

/// CPUID.80000001H:ECX.
#[allow(missing_docs)]
pub mod ext1_ecx {
    pub const LAHF_LM: u32 = 1 << 0;
    pub const CMP_LEGACY: u32 = 1 << 1;
    pub const SVM: u32 = 1 << 2;
    pub const CR8_LEGACY: u32 = 1 << 4;
    pub const ABM: u32 = 1 << 5;
    pub const SSE4A: u32 = 1 << 6;
    pub const MISALIGNSSE: u32 = 1 << 7;
    pub const PREFETCHW: u32 = 1 << 8;
    pub const OSVW: u32 = 1 << 9;
    pub const XOP: u32 = 1 << 11;
    pub const FMA4: u32 = 1 << 16;
    pub const TBM: u32 = 1 << 21;
    pub const TOPOEXT: u32 = 1 << 22;

    /// Hidden: SVM (no nesting), ExtApicSpace, IBS, SKINIT, WDT, LWP, TCE, performance counters, data breakpoint extension,
    /// MONITORX. CMP_LEGACY describes the VM's topology: the client sets it.
    pub const ALLOWED: u32 = LAHF_LM
        | CR8_LEGACY
        | ABM
        | SSE4A
        | MISALIGNSSE
        | PREFETCHW
        | OSVW
        | XOP
        | FMA4
        | TBM
        | TOPOEXT;
}

/// CPUID.80000001H:EDX. On AMD most low bits repeat leaf 1.
#[allow(missing_docs)]
pub mod ext1_edx {
    use super::leaf1_edx as l1;
    pub const SYSCALL: u32 = 1 << 11;
    pub const NX: u32 = 1 << 20;
    pub const MMXEXT: u32 = 1 << 22;
    pub const FXSR_OPT: u32 = 1 << 25;
    pub const PDPE1GB: u32 = 1 << 26;
    pub const RDTSCP: u32 = 1 << 27;
    pub const LM: u32 = 1 << 29;
    pub const _3DNOWEXT: u32 = 1 << 30;
    pub const _3DNOW: u32 = 1 << 31;

    pub const ALLOWED: u32 =
        SYSCALL | NX | MMXEXT | FXSR_OPT | PDPE1GB | RDTSCP | LM | _3DNOWEXT | _3DNOW;
    /// Bits that repeat leaf 1 on AMD.
    pub const COMMON: u32 = l1::FPU
        | l1::VME
        | l1::DE
        | l1::PSE
        | l1::TSC
        | l1::MSR
        | l1::PAE
        | l1::MCE
        | l1::CX8
        | l1::APIC
        | l1::MTRR
        | l1::PGE
        | l1::MCA
        | l1::CMOV
        | l1::PAT
        | l1::PSE36
        | l1::MMX
        | l1::FXSR;
}

/// CPUID.80000007H:EDX.
#[allow(missing_docs)]
pub mod ext7_edx {
    pub const INVARIANT_TSC: u32 = 1 << 8;
}

/// CPUID.80000008H:EBX (AMD).
#[allow(missing_docs)]
pub mod ext8_ebx {
    pub const CLZERO: u32 = 1 << 0;
    pub const XSAVEERPTR: u32 = 1 << 2;
    pub const WBNOINVD: u32 = 1 << 9;
    pub const IBPB: u32 = 1 << 12;
    pub const IBRS: u32 = 1 << 14;
    pub const STIBP: u32 = 1 << 15;
    pub const IBRS_ALWAYS: u32 = 1 << 16;
    pub const STIBP_ALWAYS: u32 = 1 << 17;
    pub const SSBD: u32 = 1 << 24;
    pub const SSB_NO: u32 = 1 << 26;
    pub const PSFD: u32 = 1 << 28;
    pub const BTC_NO: u32 = 1 << 29;
    pub const IBPB_RET: u32 = 1 << 30;
    pub const SPECULATION: u32 =
        IBPB | IBRS | STIBP | IBRS_ALWAYS | STIBP_ALWAYS | SSBD | PSFD | IBPB_RET;
    /// Hidden: INVLPGB, RDPRU (APERF/MPERF), MCOMMIT, INT_WBINVD, LMSLE, PPIN, CPPC.
    pub const ALLOWED: u32 = CLZERO | XSAVEERPTR | WBNOINVD | SSB_NO | BTC_NO | SPECULATION;
}

/// CPUID.80000021H:EAX (AMD).
#[allow(missing_docs)]
pub mod ext21_eax {
    pub const NO_NESTED_DATA_BP: u32 = 1 << 0;
    pub const FSGS_BASE_NON_SERIALIZING: u32 = 1 << 1;
    pub const LFENCE_SERIALIZING: u32 = 1 << 2;
    pub const VERW_CLEAR: u32 = 1 << 5;
    pub const NULL_SELECTOR_CLEARS_BASE: u32 = 1 << 6;
    pub const AUTO_IBRS: u32 = 1 << 8;
    pub const NO_SMM_CTL_MSR: u32 = 1 << 9;
    pub const SBPB: u32 = 1 << 27;
    pub const IBPB_BRTYPE: u32 = 1 << 28;
    pub const SRSO_NO: u32 = 1 << 29;
    pub const SPECULATION: u32 = AUTO_IBRS | SBPB | IBPB_BRTYPE;
    /// Hidden: UpperAddressIgnore (EFER bit), prefetch control MSR, CPUID user disable, workload classification, ERAPS.
    pub const ALLOWED: u32 = NO_NESTED_DATA_BP
        | FSGS_BASE_NON_SERIALIZING
        | LFENCE_SERIALIZING
        | VERW_CLEAR
        | NULL_SELECTOR_CLEARS_BASE
        | NO_SMM_CTL_MSR
        | SRSO_NO
        | SPECULATION;
}

/// First hypervisor leaf.
pub const KVM_SIGNATURE_LEAF: u32 = 0x4000_0000;
/// Paravirtual feature leaf.
pub const KVM_FEATURES_LEAF: u32 = 0x4000_0001;
/// "KVMKVMKVM\0\0\0" in EBX, ECX, EDX.
pub const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];

/// KVM_FEATURE_*: bits of 40000001H:EAX (kernel document virt/kvm/x86/cpuid.rst).
#[allow(missing_docs)]
pub mod kvm_feature {
    pub const CLOCKSOURCE: u32 = 1 << 0;
    pub const NOP_IO_DELAY: u32 = 1 << 1;
    pub const CLOCKSOURCE2: u32 = 1 << 3;
    pub const ASYNC_PF: u32 = 1 << 4;
    pub const STEAL_TIME: u32 = 1 << 5;
    pub const PV_EOI: u32 = 1 << 6;
    pub const PV_UNHALT: u32 = 1 << 7;
    pub const PV_TLB_FLUSH: u32 = 1 << 9;
    pub const PV_SEND_IPI: u32 = 1 << 11;
    pub const POLL_CONTROL: u32 = 1 << 12;
    pub const PV_SCHED_YIELD: u32 = 1 << 13;
    pub const ASYNC_PF_INT: u32 = 1 << 14;
    pub const MIGRATION_CONTROL: u32 = 1 << 17;
    pub const CLOCKSOURCE_STABLE: u32 = 1 << 24;
}

/// Clears PV_UNHALT where the hypervisor's leaves are KVM's: the HLT of this VM's guests does not exit.
pub fn hide_pv_unhalt(table: &mut [CpuidEntry]) {
    let kvm =
        |e: &CpuidEntry| e.function == KVM_SIGNATURE_LEAF && [e.ebx, e.ecx, e.edx] == KVM_SIGNATURE;
    if table.iter().any(kvm) {
        for e in table.iter_mut().filter(|e| e.function == KVM_FEATURES_LEAF) {
            e.eax &= !kvm_feature::PV_UNHALT;
        }
    }
}

/// Highest basic leaf offered (0x1f: V2 extended topology).
const MAX_BASIC: u32 = 0x1f;
/// Highest extended leaf offered on AMD.
const MAX_EXT_AMD: u32 = 0x8000_0021;
/// Highest extended leaf offered on Intel.
const MAX_EXT_INTEL: u32 = 0x8000_0008;

/// What the hypervisor and its backend can carry, for [`supported`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Host vendor: which leaves exist.
    pub vendor: Vendor,
    /// XCR0 bits that guests may use (already a subset of the host's); 0 hides XSAVE.
    pub xcr0: u64,
    /// IA32_XSS bits that guests may use.
    pub xss: u64,
    /// Upper bound of MAXPHYADDR given to guests; 0 means the host's.
    pub max_phys_bits: u8,
    /// A local APIC exists in the kernel: offers 1:EDX\[9\].
    pub apic: bool,
    /// x2APIC mode of the local APIC is emulated.
    pub x2apic: bool,
    /// TSC-deadline mode of the local APIC's timer is emulated.
    pub tsc_deadline: bool,
    /// IA32_TSC_ADJUST is emulated.
    pub tsc_adjust: bool,
    /// RDTSCP and RDPID work (VMX: "enable RDTSCP"; TSC_AUX is switched).
    pub rdtscp: bool,
    /// INVPCID works (VMX: "enable INVPCID").
    pub invpcid: bool,
    /// XSAVES/XRSTORS work (VMX: "enable XSAVES/XRSTORS") and IA32_XSS is switched.
    pub xsaves: bool,
    /// PKRU is switched.
    pub pku: bool,
    /// Speculation-control MSRs (SPEC_CTRL, PRED_CMD) are virtualised.
    pub spec_ctrl: bool,
    /// IA32_ARCH_CAPABILITIES is offered (Intel).
    pub arch_capabilities: bool,
    /// LFENCE is dispatch serialising on this host (AMD; DE_CFG\[1\]).
    pub lfence_serializing: bool,
    /// Guest TSC frequency in kHz when it is known and constant; 0 hides leaves 15H and 16H.
    pub tsc_khz: u32,
    /// Frequency of the emulated APIC timer before division, in Hz: the "core crystal clock" of leaf 15H.
    pub apic_hz: u32,
    /// KVM paravirtual features (40000001H:EAX). 0: signature only.
    pub kvm_features: u32,
    /// KVM hints (40000001H:EDX).
    pub kvm_hints: u32,
}

/// Output that counts past its end, so that the caller learns the size it needs.
struct Sink<'a> {
    out: &'a mut [CpuidEntry],
    count: usize,
}

impl Sink<'_> {
    fn put(&mut self, function: u32, index: Option<u32>, r: [u32; 4]) {
        if let Some(slot) = self.out.get_mut(self.count) {
            *slot = CpuidEntry {
                function,
                index: index.unwrap_or(0),
                flags: if index.is_some() {
                    FLAG_SIGNIFICANT_INDEX
                } else {
                    0
                },
                eax: r[0],
                ebx: r[1],
                ecx: r[2],
                edx: r[3],
                padding: [0; 3],
            };
        }
        self.count = self.count.saturating_add(1);
    }
}

/// Fills `out` with the leaves offered to guests (KVM_GET_SUPPORTED_CPUID) and returns how many there are, less than 100.
///
/// # Errors
///
/// The number of entries needed when `out` is too short (E2BIG); `out` is filled as far as it goes.
pub fn supported<H: HostCpuid + ?Sized>(
    host: &H,
    p: &Policy,
    out: &mut [CpuidEntry],
) -> Result<usize, usize> {
    let room = out.len();
    let mut s = Sink { out, count: 0 };
    basic_leaves(host, p, &mut s);
    s.put(
        KVM_SIGNATURE_LEAF,
        None,
        [
            KVM_FEATURES_LEAF,
            KVM_SIGNATURE[0],
            KVM_SIGNATURE[1],
            KVM_SIGNATURE[2],
        ],
    );
    s.put(KVM_FEATURES_LEAF, None, [p.kvm_features, 0, 0, p.kvm_hints]);
    extended_leaves(host, p, &mut s);
    if s.count > room {
        Err(s.count)
    } else {
        Ok(s.count)
    }
}

const fn when(cond: bool, bits: u32) -> u32 {
    if cond {
        bits
    } else {
        0
    }
}

fn basic_leaves<H: HostCpuid + ?Sized>(host: &H, p: &Policy, s: &mut Sink<'_>) {
    let intel = p.vendor == Vendor::Intel;
    let l0 = host.cpuid(0, 0);
    let host_max = l0[0];
    // Leaf 0DH must be in range when XSAVE is offered; 15H and 16H are ours when the frequency is known.
    let timing = intel && p.tsc_khz != 0 && p.apic_hz != 0;
    let max = if timing && host_max < 0x16 {
        0x16
    } else {
        host_max.min(MAX_BASIC)
    };
    s.put(0, None, [max, l0[1], l0[2], l0[3]]);

    let xsave = p.xcr0 & xsave::X87_SSE == xsave::X87_SSE;
    let avx = xsave && p.xcr0 & xsave::AVX != 0;
    let avx512 = avx && p.xcr0 & xsave::AVX512 == xsave::AVX512;

    let h1 = host.cpuid(1, 0);
    let mut ecx = h1[2] & leaf1_ecx::ALLOWED;
    if !xsave {
        ecx &= !leaf1_ecx::XSAVE;
    }
    if !avx || ecx & leaf1_ecx::XSAVE == 0 {
        ecx &= !(leaf1_ecx::AVX | leaf1_ecx::FMA | leaf1_ecx::F16C);
    }
    ecx |= leaf1_ecx::HYPERVISOR
        | when(p.x2apic, leaf1_ecx::X2APIC)
        | when(p.tsc_deadline, leaf1_ecx::TSC_DEADLINE);
    let edx = h1[3] & leaf1_edx::ALLOWED | leaf1_edx::EMULATED | when(p.apic, leaf1_edx::APIC);
    // EBX: CLFLUSH line size only. APIC id and thread count describe the vCPU: the client sets them.
    s.put(1, None, [h1[0], h1[1] & 0xff00, ecx, edx]);
    let avx = ecx & leaf1_ecx::AVX != 0;
    let avx512 = avx && avx512;
    let pcid = ecx & leaf1_ecx::PCID != 0;

    if intel {
        if max >= 2 {
            let mut l2 = host.cpuid(2, 0);
            l2[0] = l2[0] & !0xff | 1;
            s.put(2, None, l2);
        }
        if max >= 4 {
            for i in 0..8 {
                let l4 = host.cpuid(4, i);
                s.put(4, Some(i), l4);
                if l4[0] & 0x1f == 0 {
                    break;
                }
            }
        }
    }
    if max >= 6 {
        s.put(6, None, [when(p.apic, leaf6_eax::ARAT), 0, 0, 0]);
    }
    if max >= 7 {
        let h7 = host.cpuid(7, 0);
        let mut ebx = h7[1] & leaf7_ebx::ALLOWED;
        let mut ecx = h7[2] & leaf7_ecx::ALLOWED;
        let mut edx = h7[3] & leaf7_edx::ALLOWED;
        if !avx {
            ebx &= !leaf7_ebx::AVX2;
            ecx &= !leaf7_ecx::AVX;
        }
        if !avx512 {
            ebx &= !leaf7_ebx::AVX512;
            ecx &= !leaf7_ecx::AVX512;
            edx &= !leaf7_edx::AVX512;
        }
        if !(p.invpcid && pcid) {
            ebx &= !leaf7_ebx::INVPCID;
        }
        ebx |= when(p.tsc_adjust, leaf7_ebx::TSC_ADJUST);
        if !(p.pku && p.xcr0 & xsave::PKRU != 0) {
            ecx &= !leaf7_ecx::PKU;
        }
        if !p.rdtscp {
            ecx &= !leaf7_ecx::RDPID;
        }
        if !p.spec_ctrl {
            edx &= !leaf7_edx::SPECULATION;
        }
        if !(p.arch_capabilities && intel) {
            edx &= !leaf7_edx::ARCH_CAPABILITIES;
        }
        let sub_max = h7[0].min(2);
        s.put(7, Some(0), [sub_max, ebx, ecx, edx]);
        if sub_max >= 1 {
            let h = host.cpuid(7, 1);
            let mut eax = h[0] & leaf7_1::EAX_ALLOWED;
            let mut edx = h[3] & leaf7_1::EDX_ALLOWED;
            if !avx {
                eax &= !leaf7_1::EAX_AVX;
                edx &= !leaf7_1::EDX_AVX;
            }
            if !avx512 {
                eax &= !leaf7_1::EAX_AVX512;
            }
            s.put(7, Some(1), [eax, 0, 0, edx]);
        }
        if sub_max >= 2 {
            let h = host.cpuid(7, 2)[3];
            let edx = h & leaf7_2_edx::MCDT_NO | when(p.spec_ctrl, h & leaf7_2_edx::SPECULATION);
            s.put(7, Some(2), [0, 0, 0, edx]);
        }
    }
    if intel && max >= 0xa {
        // No performance monitoring: version 0.
        s.put(0xa, None, [0; 4]);
    }
    if max >= 0xb {
        // One level, nothing in it: the client describes the VM's topology.
        s.put(0xb, Some(0), [0; 4]);
    }
    if max >= 0xd {
        xsave_leaves(host, p, xsave, s);
    }
    if timing {
        let (num, den) = tsc_ratio(p.tsc_khz, p.apic_hz);
        s.put(0x15, None, [den, num, p.apic_hz, 0]);
        let mhz = p.tsc_khz / 1000;
        s.put(0x16, None, [mhz & 0xffff, mhz & 0xffff, 0, 0]);
    }
    if intel && max >= 0x1f {
        s.put(0x1f, Some(0), [0; 4]);
    }
}

fn xsave_leaves<H: HostCpuid + ?Sized>(host: &H, p: &Policy, xsave: bool, s: &mut Sink<'_>) {
    let xcr0 = if xsave { p.xcr0 } else { 0 };
    if xcr0 == 0 {
        return;
    }
    let d1 = host.cpuid(0xd, 1);
    let mut eax1 = d1[0] & leafd_1_eax::ALLOWED;
    if !p.xsaves {
        eax1 &= !leafd_1_eax::XSAVES;
    }
    let xss = if eax1 & leafd_1_eax::XSAVES != 0 {
        p.xss
    } else {
        0
    };
    let mut layout = xsave::Layout::default();
    for i in 2..xsave::MAX_COMPONENTS {
        if (xcr0 | xss) & (1 << i) != 0 {
            let r = host.cpuid(0xd, i);
            layout.set(i, r[0], r[1], r[2]);
        }
    }
    let size = layout.standard_size(xcr0);
    s.put(
        0xd,
        Some(0),
        [
            xcr0 as u32,
            xsave::LEGACY_AND_HEADER,
            size,
            (xcr0 >> 32) as u32,
        ],
    );
    let compact = if eax1 & (leafd_1_eax::XSAVEC | leafd_1_eax::XSAVES) != 0 {
        xsave::LEGACY_AND_HEADER
    } else {
        0
    };
    s.put(
        0xd,
        Some(1),
        [eax1, compact, xss as u32, (xss >> 32) as u32],
    );
    for i in 2..xsave::MAX_COMPONENTS {
        if (xcr0 | xss) & (1 << i) != 0 {
            let mut r = host.cpuid(0xd, i);
            // Bit 0 of ECX says "supervisor", bit 1 "aligned to 64 in compacted form"; XFD (bit 2) is hidden.
            r[2] &= 3;
            r[3] = 0;
            s.put(0xd, Some(i), r);
        }
    }
}

fn extended_leaves<H: HostCpuid + ?Sized>(host: &H, p: &Policy, s: &mut Sink<'_>) {
    let intel = p.vendor == Vendor::Intel;
    let host_max = host.cpuid(0x8000_0000, 0);
    let cap = if intel { MAX_EXT_INTEL } else { MAX_EXT_AMD };
    let max = host_max[0].clamp(0x8000_0000, cap).max(0x8000_0008);
    // AMD's bits of 80000021H describe the vCPU even on a host that is too old for the leaf.
    let max = if !intel && p.lfence_serializing {
        MAX_EXT_AMD
    } else {
        max
    };
    let in_host = |leaf: u32| host_max[0] >= leaf && host_max[0] & 0xffff_0000 == 0x8000_0000;
    let get = |leaf: u32, sub: u32| {
        if in_host(leaf) {
            host.cpuid(leaf, sub)
        } else {
            [0; 4]
        }
    };
    s.put(
        0x8000_0000,
        None,
        if intel {
            [max, 0, 0, 0]
        } else {
            [max, host_max[1], host_max[2], host_max[3]]
        },
    );
    let h1 = get(0x8000_0001, 0);
    let xsave = p.xcr0 & xsave::X87_SSE == xsave::X87_SSE;
    let mut ecx = h1[2] & ext1_ecx::ALLOWED;
    if !(xsave && p.xcr0 & xsave::AVX != 0) {
        ecx &= !(ext1_ecx::XOP | ext1_ecx::FMA4);
    }
    let mut edx = h1[3] & ext1_edx::ALLOWED;
    if !p.rdtscp {
        edx &= !ext1_edx::RDTSCP;
    }
    if !intel {
        let l1 = host.cpuid(1, 0)[3] & leaf1_edx::ALLOWED
            | leaf1_edx::EMULATED
            | when(p.apic, leaf1_edx::APIC);
        edx |= l1 & ext1_edx::COMMON;
    }
    s.put(
        0x8000_0001,
        None,
        [when(!intel, h1[0]), when(!intel, h1[1]), ecx, edx],
    );
    for leaf in 0x8000_0002..=0x8000_0004 {
        s.put(leaf, None, get(leaf, 0));
    }
    s.put(0x8000_0005, None, get(0x8000_0005, 0));
    s.put(0x8000_0006, None, get(0x8000_0006, 0));
    let edx = get(0x8000_0007, 0)[3] & ext7_edx::INVARIANT_TSC;
    s.put(0x8000_0007, None, [0, 0, 0, edx]);

    let h8 = get(0x8000_0008, 0);
    let host_phys = if h8[0] & 0xff != 0 { h8[0] & 0xff } else { 36 };
    let phys = match p.max_phys_bits {
        0 => host_phys,
        n => host_phys.min(n as u32),
    };
    let mut ebx = when(!intel, h8[1] & ext8_ebx::ALLOWED);
    if intel && h8[1] & ext8_ebx::WBNOINVD != 0 {
        ebx |= ext8_ebx::WBNOINVD;
    }
    if !p.spec_ctrl {
        ebx &= !ext8_ebx::SPECULATION;
    }
    // LA57 is hidden: 48 linear-address bits.
    s.put(0x8000_0008, None, [phys | (48 << 8), ebx, 0, 0]);

    if intel {
        return;
    }
    // 8000000AH (SVM) and everything not named here reads as zeros, being in range.
    if max >= 0x8000_0019 {
        s.put(0x8000_0019, None, get(0x8000_0019, 0));
    }
    if max >= 0x8000_001a {
        let r = get(0x8000_001a, 0);
        s.put(0x8000_001a, None, [r[0] & 7, 0, 0, 0]);
    }
    if max >= 0x8000_001d && ecx & ext1_ecx::TOPOEXT != 0 {
        for i in 0..8 {
            let r = get(0x8000_001d, i);
            s.put(0x8000_001d, Some(i), [r[0], r[1], r[2], r[3] & 3]);
            if r[0] & 0x1f == 0 {
                break;
            }
        }
        // Identifiers describe the vCPU: the client sets them.
        s.put(0x8000_001e, None, [0; 4]);
    }
    if max >= 0x8000_0021 {
        let r = get(0x8000_0021, 0);
        let mut eax = r[0] & ext21_eax::ALLOWED;
        if !p.spec_ctrl {
            eax &= !ext21_eax::SPECULATION;
        }
        eax |= when(p.lfence_serializing, ext21_eax::LFENCE_SERIALIZING);
        // ECX[2:1]: not affected by transient scheduler attacks (TSA-SQ, TSA-L1).
        s.put(0x8000_0021, None, [eax, 0, r[2] & 6, 0]);
    }
}

/// Numerator and denominator for leaf 15H, such that `crystal * num / den` is the TSC frequency.
///
/// Guests compute in 32 bits with the crystal in kHz, so the numerator is bounded by 2^32 / kHz; within that bound this is the
/// best approximation (continued fraction), exact whenever an exact one exists. The slower the crystal, the better.
fn tsc_ratio(tsc_khz: u32, crystal_hz: u32) -> (u32, u32) {
    let (tsc, crystal) = (tsc_khz as u64, (crystal_hz / 1000).max(1) as u64);
    let bound = u32::MAX as u64 / crystal;
    let (mut a, mut b) = (tsc, crystal);
    // Consecutive convergents h/k of a/b. All stay below 2^32: k is at most `crystal`, h is checked.
    let (mut h0, mut h1, mut k0, mut k1) = (0u64, 1u64, 1u64, 0u64);
    while b != 0 {
        let q = a / b;
        let h2 = q.wrapping_mul(h1).wrapping_add(h0);
        let k2 = q.wrapping_mul(k1).wrapping_add(k0);
        if h2 > bound {
            // The last step only part of the way: a semiconvergent, if it is nearer than the last convergent.
            let m = bound.wrapping_sub(h0) / h1.max(1);
            let h = m.wrapping_mul(h1).wrapping_add(h0);
            let k = m.wrapping_mul(k1).wrapping_add(k0);
            let error = |h: u64, k: u64| tsc.wrapping_mul(k).abs_diff(h.wrapping_mul(crystal));
            if k1 == 0
                || (error(h, k) as u128) * (k1 as u128) < (error(h1, k1) as u128) * (k as u128)
            {
                (h1, k1) = (h, k);
            }
            break;
        }
        (h0, h1, k0, k1) = (h1, h2, k1, k2);
        (a, b) = (b, a % b);
    }
    (h1 as u32, k1.max(1) as u32)
}

/// State of the vCPU that shows in CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// CR4: OSXSAVE and OSPKE mirror it.
    pub cr4: u64,
    /// IA32_APIC_BASE.EN, when the APIC is in the kernel; `None` leaves the client's bit.
    pub apic_enabled: Option<bool>,
    /// IA32_MISC_ENABLE.MWAIT when it governs 1:ECX\[3\]; `None` leaves the client's bit.
    pub mwait: Option<bool>,
    /// Bytes of a standard-format XSAVE area for the current XCR0 ([`xsave::Layout::standard_size`]).
    pub xsave_size: u32,
    /// Bytes of a compacted XSAVE area for the current XCR0 | IA32_XSS ([`xsave::Layout::compacted_size`]).
    pub xsave_compacted_size: u32,
}

impl Dynamic {
    /// Applies the run-time bits to a copy of `e`: what the guest's CPUID and KVM_GET_CPUID2 show.
    #[inline]
    pub fn apply(&self, e: &CpuidEntry) -> [u32; 4] {
        let [eax, mut ebx, mut ecx, mut edx] = e.values();
        match e.function {
            1 => {
                ecx = set(
                    ecx,
                    leaf1_ecx::OSXSAVE,
                    ecx & leaf1_ecx::XSAVE != 0 && self.cr4 & cr4::OSXSAVE != 0,
                );
                if let Some(on) = self.apic_enabled {
                    edx = set(edx, leaf1_edx::APIC, on);
                }
                if let Some(on) = self.mwait {
                    ecx = set(ecx, leaf1_ecx::MONITOR, on);
                }
            }
            7 if e.index == 0 => {
                ecx = set(
                    ecx,
                    leaf7_ecx::OSPKE,
                    ecx & leaf7_ecx::PKU != 0 && self.cr4 & cr4::PKE != 0,
                );
            }
            0xd if e.index == 0 => ebx = self.xsave_size,
            0xd if e.index == 1 && eax & (leafd_1_eax::XSAVEC | leafd_1_eax::XSAVES) != 0 => {
                ebx = self.xsave_compacted_size;
            }
            _ => {}
        }
        [eax, ebx, ecx, edx]
    }
}

const fn set(v: u32, bit: u32, on: bool) -> u32 {
    if on {
        v | bit
    } else {
        v & !bit
    }
}

const NONE: u16 = u16::MAX;
const BASIC_SLOTS: usize = 0x20;
const KVM_SLOTS: usize = 2;
const EXT_SLOTS: usize = 0x22;

/// Where each leaf starts in a table, so that the CPUID exit does not search. Rebuild it whenever the table changes.
#[derive(Clone, Debug)]
pub struct CpuidIndex {
    basic: [u16; BASIC_SLOTS],
    kvm: [u16; KVM_SLOTS],
    ext: [u16; EXT_SLOTS],
    /// Highest basic leaf; `None` without leaf 0.
    max_basic: Option<u32>,
    vendor: Vendor,
}

impl Default for CpuidIndex {
    fn default() -> Self {
        Self::empty()
    }
}

impl CpuidIndex {
    /// The index of an empty table.
    pub const fn empty() -> Self {
        Self {
            basic: [NONE; BASIC_SLOTS],
            kvm: [NONE; KVM_SLOTS],
            ext: [NONE; EXT_SLOTS],
            max_basic: None,
            vendor: Vendor::Intel,
        }
    }

    /// Indexes `table`.
    pub fn new(table: &[CpuidEntry]) -> Self {
        let mut x = Self::empty();
        for (i, e) in table.iter().enumerate().take(NONE as usize) {
            if let Some(slot) = x.slot_mut(e.function) {
                if *slot == NONE {
                    *slot = i as u16;
                }
            }
        }
        if let Some(e) = find(table, &x, 0, 0) {
            x.max_basic = Some(e.eax);
            x.vendor = Vendor::from_leaf0(e.values());
        }
        x
    }

    /// Vendor named by leaf 0.
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    #[inline]
    fn slot_mut(&mut self, leaf: u32) -> Option<&mut u16> {
        match leaf >> 30 {
            0 => self.basic.get_mut(leaf as usize),
            1 => self.kvm.get_mut((leaf & 0x3fff_ffff) as usize),
            2 => self.ext.get_mut((leaf & 0x3fff_ffff) as usize),
            _ => None,
        }
    }

    /// Position of the first entry of `leaf`: `Ok(None)` when there is none, `Err` when the leaf is not indexed.
    #[inline]
    fn start(&self, leaf: u32) -> Result<Option<usize>, ()> {
        let slot = match leaf >> 30 {
            0 => self.basic.get(leaf as usize),
            1 => self.kvm.get((leaf & 0x3fff_ffff) as usize),
            2 => self.ext.get((leaf & 0x3fff_ffff) as usize),
            _ => None,
        };
        match slot {
            Some(&NONE) => Ok(None),
            Some(&i) => Ok(Some(i as usize)),
            None => Err(()),
        }
    }
}

/// The entry of `table` that answers exactly for `leaf` and `subleaf`.
#[inline]
pub fn find<'a>(
    table: &'a [CpuidEntry],
    index: &CpuidIndex,
    leaf: u32,
    subleaf: u32,
) -> Option<&'a CpuidEntry> {
    let start = match index.start(leaf) {
        Ok(Some(i)) => i,
        Ok(None) => return None,
        Err(()) => 0,
    };
    table
        .get(start..)?
        .iter()
        .find(|e| e.answers(leaf, subleaf))
}

/// What CPUID returns to a guest: EAX, EBX, ECX, EDX.
///
/// A leaf beyond the limit of its class reads as the highest basic leaf on Intel (SDM 2A CPUID, "information returned") and as
/// zeros on AMD; a leaf within the limits that has no entry reads as zeros.
#[inline]
pub fn lookup(
    table: &[CpuidEntry],
    index: &CpuidIndex,
    leaf: u32,
    subleaf: u32,
    dynamic: &Dynamic,
) -> [u32; 4] {
    match find(table, index, leaf, subleaf) {
        Some(e) => dynamic.apply(e),
        None => lookup_missing(table, index, leaf, subleaf, dynamic),
    }
}

#[cold]
fn lookup_missing(
    table: &[CpuidEntry],
    index: &CpuidIndex,
    leaf: u32,
    subleaf: u32,
    dynamic: &Dynamic,
) -> [u32; 4] {
    let mut leaf = leaf;
    if let (Some(max_basic), Vendor::Intel) = (index.max_basic, index.vendor) {
        let class = match leaf {
            0x4000_0000..=0x4fff_ffff => leaf & 0xffff_ff00,
            0xc000_0000.. => 0xc000_0000,
            _ => leaf & 0x8000_0000,
        };
        let within = find(table, index, class, 0).is_some_and(|c| leaf <= c.eax);
        if !within {
            leaf = max_basic;
            if let Some(e) = find(table, index, leaf, subleaf) {
                return dynamic.apply(e);
            }
        }
    }
    // Topology leaves: a sub-leaf past the last one still echoes its number and the x2APIC id.
    if matches!(leaf, 0xb | 0x1f) {
        if let Some(e) = find(table, index, leaf, 0) {
            return [0, 0, subleaf & 0xff, e.edx];
        }
    }
    [0; 4]
}

/// Why KVM_SET_CPUID2 refuses a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// More than [`MAX_ENTRIES`] entries (E2BIG).
    TooMany,
    /// 80000008H names a linear-address width other than 48, 57 or 0 (EINVAL).
    LinearWidth,
}

/// Checks a table given by a client.
///
/// # Errors
///
/// See [`TableError`].
pub fn check_table(table: &[CpuidEntry]) -> Result<(), TableError> {
    if table.len() > MAX_ENTRIES {
        return Err(TableError::TooMany);
    }
    match table.iter().find(|e| e.answers(0x8000_0008, 0)) {
        Some(e) if !matches!((e.eax >> 8) & 0xff, 0 | 48 | 57) => Err(TableError::LinearWidth),
        _ => Ok(()),
    }
}

/// Features of a vCPU that change the behaviour of the hypervisor, taken from its CPUID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct GuestFeatures {
    /// Vendor that the guest believes in (not the host's).
    pub vendor: Vendor,
    /// Physical-address width.
    pub maxphyaddr: u8,
    pub pcid: bool,
    pub x2apic: bool,
    pub tsc_deadline: bool,
    pub xsave: bool,
    pub mtrr: bool,
    pub pat: bool,
    pub mca: bool,
    pub sep: bool,
    pub fsgsbase: bool,
    pub tsc_adjust: bool,
    pub smep: bool,
    pub smap: bool,
    pub invpcid: bool,
    pub umip: bool,
    pub pku: bool,
    pub la57: bool,
    pub rdpid: bool,
    pub xsaves: bool,
    pub nx: bool,
    pub lm: bool,
    pub gbpages: bool,
    pub rdtscp: bool,
    pub syscall: bool,
    pub fxsr_opt: bool,
    pub auto_ibrs: bool,
    pub osvw: bool,
    pub arch_capabilities: bool,
    /// IA32_SPEC_CTRL bits the guest may set; 0: the MSR does not exist for it.
    pub spec_ctrl: u64,
    /// IA32_PRED_CMD bits the guest may set; 0: the MSR does not exist for it.
    pub pred_cmd: u64,
    /// KVM paravirtual features (40000001H:EAX), 0 without KVM's signature.
    pub kvm_features: u32,
}

impl Default for GuestFeatures {
    /// A vCPU before KVM_SET_CPUID2.
    fn default() -> Self {
        Self::from_table(&[], &CpuidIndex::empty())
    }
}

impl GuestFeatures {
    /// Derives the features from a vCPU's table.
    pub fn from_table(table: &[CpuidEntry], index: &CpuidIndex) -> Self {
        let get = |leaf, sub| find(table, index, leaf, sub).map_or([0; 4], |e| e.values());
        let l1 = get(1, 0);
        let l7 = get(7, 0);
        let l7_2 = get(7, 2);
        let ld1 = get(0xd, 1);
        let kvm = get(KVM_SIGNATURE_LEAF, 0);
        let e1 = get(0x8000_0001, 0);
        let e8 = get(0x8000_0008, 0);
        let e21 = get(0x8000_0021, 0);
        let c1 = |b| l1[2] & b != 0;
        let d1 = |b| l1[3] & b != 0;
        let b7 = |b| l7[1] & b != 0;
        let c7 = |b| l7[2] & b != 0;
        let has = |v: u32, b: u32| v & b != 0;

        let bit = |on: bool, n: u32| if on { 1u64 << n } else { 0 };
        let ibrs = has(l7[3], leaf7_edx::SPEC_CTRL) || has(e8[1], ext8_ebx::IBRS);
        let stibp = has(l7[3], leaf7_edx::STIBP) || has(e8[1], ext8_ebx::STIBP);
        let ssbd = has(l7[3], leaf7_edx::SSBD) || has(e8[1], ext8_ebx::SSBD);
        let psfd = has(l7_2[3], leaf7_2_edx::PSFD) || has(e8[1], ext8_ebx::PSFD);
        let ipred = has(l7_2[3], leaf7_2_edx::IPRED_CTRL);
        let rrsba = has(l7_2[3], leaf7_2_edx::RRSBA_CTRL);
        let spec_ctrl = bit(ibrs, 0)
            | bit(stibp, 1)
            | bit(ssbd, 2)
            | bit(ipred, 3)
            | bit(ipred, 4)
            | bit(rrsba, 5)
            | bit(rrsba, 6)
            | bit(psfd, 7)
            | bit(has(l7_2[3], leaf7_2_edx::DDPD_U), 8)
            | bit(has(l7_2[3], leaf7_2_edx::BHI_CTRL), 10);
        let ibpb = has(l7[3], leaf7_edx::SPEC_CTRL) || has(e8[1], ext8_ebx::IBPB);
        let pred_cmd = bit(ibpb, 0) | bit(has(e21[0], ext21_eax::SBPB), 7);

        let maxphyaddr = match (e8[0] & 0xff) as u8 {
            0 => 36,
            n => n.min(52),
        };
        Self {
            vendor: index.vendor,
            maxphyaddr,
            pcid: c1(leaf1_ecx::PCID),
            x2apic: c1(leaf1_ecx::X2APIC),
            tsc_deadline: c1(leaf1_ecx::TSC_DEADLINE),
            xsave: c1(leaf1_ecx::XSAVE),
            mtrr: d1(leaf1_edx::MTRR),
            pat: d1(leaf1_edx::PAT),
            mca: d1(leaf1_edx::MCA),
            sep: d1(leaf1_edx::SEP),
            fsgsbase: b7(leaf7_ebx::FSGSBASE),
            tsc_adjust: b7(leaf7_ebx::TSC_ADJUST),
            smep: b7(leaf7_ebx::SMEP),
            smap: b7(leaf7_ebx::SMAP),
            invpcid: b7(leaf7_ebx::INVPCID),
            umip: c7(leaf7_ecx::UMIP),
            pku: c7(leaf7_ecx::PKU),
            la57: c7(leaf7_ecx::LA57),
            rdpid: c7(leaf7_ecx::RDPID),
            xsaves: has(ld1[0], leafd_1_eax::XSAVES),
            nx: has(e1[3], ext1_edx::NX),
            lm: has(e1[3], ext1_edx::LM),
            gbpages: has(e1[3], ext1_edx::PDPE1GB),
            rdtscp: has(e1[3], ext1_edx::RDTSCP),
            syscall: has(e1[3], ext1_edx::SYSCALL),
            fxsr_opt: has(e1[3], ext1_edx::FXSR_OPT),
            auto_ibrs: has(e21[0], ext21_eax::AUTO_IBRS),
            osvw: has(e1[2], ext1_ecx::OSVW),
            arch_capabilities: has(l7[3], leaf7_edx::ARCH_CAPABILITIES),
            spec_ctrl,
            pred_cmd,
            kvm_features: if [kvm[1], kvm[2], kvm[3]] == KVM_SIGNATURE {
                get(KVM_FEATURES_LEAF, 0)[0]
            } else {
                0
            },
        }
    }

    /// Removes what the hypervisor does not carry on this host: a client may put any bit into CPUID, but it must not be able to make
    /// the hypervisor load a reserved bit. `host` is derived from the table of [`supported`].
    #[must_use]
    pub fn restrict(mut self, host: &Self) -> Self {
        self.maxphyaddr = self.maxphyaddr.min(host.maxphyaddr);
        self.pcid &= host.pcid;
        self.x2apic &= host.x2apic;
        self.tsc_deadline &= host.tsc_deadline;
        self.xsave &= host.xsave;
        self.mtrr &= host.mtrr;
        self.pat &= host.pat;
        self.mca &= host.mca;
        self.sep &= host.sep;
        self.fsgsbase &= host.fsgsbase;
        self.tsc_adjust &= host.tsc_adjust;
        self.smep &= host.smep;
        self.smap &= host.smap;
        self.invpcid &= host.invpcid;
        self.umip &= host.umip;
        self.pku &= host.pku;
        self.la57 &= host.la57;
        self.rdpid &= host.rdpid;
        self.xsaves &= host.xsaves;
        self.nx &= host.nx;
        self.lm &= host.lm;
        self.gbpages &= host.gbpages;
        self.rdtscp &= host.rdtscp;
        self.syscall &= host.syscall;
        self.fxsr_opt &= host.fxsr_opt;
        self.auto_ibrs &= host.auto_ibrs;
        self.osvw &= host.osvw;
        self.arch_capabilities &= host.arch_capabilities;
        self.spec_ctrl &= host.spec_ctrl;
        self.pred_cmd &= host.pred_cmd;
        self.kvm_features &= host.kvm_features;
        self
    }

    /// Width of linear addresses: base registers are checked against it (SDM 4 "canonicality"; LA57 by CPUID, not CR4).
    #[inline]
    pub const fn linear_width(&self) -> u8 {
        if self.la57 {
            crate::x86::cpu::canonical::WIDTH_5LEVEL
        } else {
            crate::x86::cpu::canonical::WIDTH_4LEVEL
        }
    }

    /// Physical-address bits above MAXPHYADDR: reserved in CR3, page tables, MTRRs.
    #[inline]
    pub const fn reserved_phys_bits(&self) -> u64 {
        u64::MAX << (self.maxphyaddr & 63)
    }
}

/// XCR0 bits that the guest may set: those of leaf 0DH that the hypervisor carries (`supported`).
pub fn guest_xcr0(table: &[CpuidEntry], index: &CpuidIndex, supported: u64) -> u64 {
    find(table, index, 0xd, 0).map_or(0, |e| (e.eax as u64 | ((e.edx as u64) << 32)) & supported)
}

/// IA32_XSS bits that the guest may set.
pub fn guest_xss(table: &[CpuidEntry], index: &CpuidIndex, supported: u64) -> u64 {
    find(table, index, 0xd, 1).map_or(0, |e| {
        if e.eax & leafd_1_eax::XSAVES == 0 {
            0
        } else {
            (e.ecx as u64 | ((e.edx as u64) << 32)) & supported
        }
    })
}
