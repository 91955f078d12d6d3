// SPDX-License-Identifier: GPL-2.0
//! Bits of the CPUID leaves, and which of them guests may see (SDM 2A CPUID, APM 3 appendix E).
//!
//! A bit reaches the guest only if it is named in an `ALLOWED` mask *and* the host has it, or if it is in an `EMULATED`
//! mask, that is, provided by the hypervisor whatever the host has. A feature of a future CPU is therefore hidden until
//! somebody has thought about the state it adds.
#![forbid(unsafe_code)]

/// CPUID.01H:ECX.
#[allow(missing_docs)]
pub mod leaf1_ecx {
    pub const SSE3: u32 = 1 << 0;
    pub const PCLMULQDQ: u32 = 1 << 1;
    pub const MONITOR: u32 = 1 << 3;
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

    /// Hidden: DTES64, DS-CPL, PDCM (performance monitoring and debug store are not virtualised), MONITOR (guest MWAIT
    /// would hold the CPU), VMX (no nesting), SMX, EST, TM2, CNXT-ID, SDBG, xTPR, DCA (platform controls).
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
    /// Hidden: SGX, HLE and RTM (TSX control MSR not virtualised), MPX (removed from Linux), resource director,
    /// processor trace.
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
    /// Hidden: WAITPKG (UMWAIT would hold the CPU), CET, PKS, key locker (new state), LA57 (4-level guests only), TME,
    /// bus-lock detection, ENQCMD, SGX launch control.
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
    /// Hidden: user interrupts, TSX variants, hybrid, PCONFIG, architectural LBR, CET-IBT, AMX (state too large to
    /// switch for now), L1D_FLUSH (the hypervisor flushes by itself), core capabilities.
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

    /// Hidden: SVM (no nesting), ExtApicSpace, IBS, SKINIT, WDT, LWP, TCE, performance counters, data breakpoint
    /// extension, MONITORX. CMP_LEGACY describes the VM's topology: the client sets it.
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
