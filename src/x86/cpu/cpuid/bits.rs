// SPDX-License-Identifier: GPL-2.0
//! Bits of the CPUID leaves, and which of them guests may see (SDM 2A CPUID, APM 3 appendix E).
//!
//! A bit reaches the guest only if it is named in an `ALLOWED` mask *and* the host has it, or if it is in an `EMULATED`
//! mask, that is, provided by the hypervisor whatever the host has. A feature of a future CPU is therefore hidden until
//! somebody has thought about the state it adds.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

use crate::x86::cpu::masks::bits;

/// CPUID.01H:ECX.
pub mod leaf1_ecx {
    super::bits! { u32;
        /// Hidden: DTES64, DS-CPL, PDCM (performance monitoring and debug store are not virtualised), MONITOR (guest
        /// MWAIT would hold the CPU), VMX (no nesting), SMX, EST, TM2, CNXT-ID, SDBG, xTPR, DCA (platform controls).
        ALLOWED {
            SSE3 = 0;
            PCLMULQDQ = 1;
            SSSE3 = 9;
            FMA = 12;
            CMPXCHG16B = 13;
            PCID = 17;
            SSE4_1 = 19;
            SSE4_2 = 20;
            MOVBE = 22;
            POPCNT = 23;
            AES = 25;
            XSAVE = 26;
            AVX = 28;
            F16C = 29;
            RDRAND = 30;
        }
        {
            MONITOR = 3;
            X2APIC = 21;
            TSC_DEADLINE = 24;
            OSXSAVE = 27;
            HYPERVISOR = 31;
        }
    }
}

/// CPUID.01H:EDX.
pub mod leaf1_edx {
    super::bits! { u32;
        /// Allowed ones that 80000001H:EDX repeats on AMD.
        REPEATED {
            FPU = 0;
            VME = 1;
            DE = 2;
            PSE = 3;
            TSC = 4;
            MSR = 5;
            PAE = 6;
            CX8 = 8;
            PGE = 13;
            CMOV = 15;
            PAT = 16;
            PSE36 = 17;
            MMX = 23;
            FXSR = 24;
        }
        /// Hidden: PSN, DS, ACPI and TM (thermal MSRs), PBE. HTT describes the VM's topology: the client sets it.
        ALLOWED | REPEATED {
            SEP = 11;
            CLFSH = 19;
            SSE = 25;
            SSE2 = 26;
            SS = 27;
        }
        /// Models of our own, whatever the host has.
        EMULATED {
            MCE = 7;
            APIC = 9;
            MTRR = 12;
            MCA = 14;
        }
    }
}

/// CPUID.06H:EAX.
pub mod leaf6_eax {
    /// The emulated APIC timer never stops. All the rest (thermal, turbo, HWP) belongs to the host.
    pub const ARAT: u32 = 1 << 2;
}

/// CPUID.(07H,0):EBX.
pub mod leaf7_ebx {
    super::bits! { u32;
        /// Bits that make sense only with all of AVX-512's state.
        AVX512 {
            AVX512F = 16;
            AVX512DQ = 17;
            AVX512IFMA = 21;
            AVX512CD = 28;
            AVX512BW = 30;
            AVX512VL = 31;
        }
        /// Hidden: SGX, HLE and RTM (TSX control MSR not virtualised), MPX (removed from Linux), resource director,
        /// processor trace.
        ALLOWED | AVX512 {
            FSGSBASE = 0;
            BMI1 = 3;
            AVX2 = 5;
            FDP_EXCPTN_ONLY = 6;
            SMEP = 7;
            BMI2 = 8;
            ERMS = 9;
            INVPCID = 10;
            ZERO_FCS_FDS = 13;
            RDSEED = 18;
            ADX = 19;
            SMAP = 20;
            CLFLUSHOPT = 23;
            CLWB = 24;
            SHA = 29;
        }
        {
            TSC_ADJUST = 1;
        }
    }
}

/// CPUID.(07H,0):ECX.
pub mod leaf7_ecx {
    super::bits! { u32;
        AVX {
            VAES = 9;
            VPCLMULQDQ = 10;
        }
        AVX512 {
            AVX512VBMI = 1;
            AVX512VBMI2 = 6;
            AVX512VNNI = 11;
            AVX512BITALG = 12;
            AVX512VPOPCNTDQ = 14;
        }
        /// Hidden: WAITPKG (UMWAIT would hold the CPU), CET, PKS, key locker (new state), TME,
        /// bus-lock detection, ENQCMD, SGX launch control. LA57 is shown also where the host's kernel does not use it.
        ALLOWED | AVX | AVX512 {
            UMIP = 2;
            PKU = 3;
            GFNI = 8;
            RDPID = 22;
            CLDEMOTE = 25;
            MOVDIRI = 27;
            MOVDIR64B = 28;
        }
        {
            OSPKE = 4;
            LA57 = 16;
        }
    }
}

/// CPUID.(07H,0):EDX.
pub mod leaf7_edx {
    super::bits! { u32;
        AVX512 {
            AVX512_4VNNIW = 2;
            AVX512_4FMAPS = 3;
            AVX512_VP2INTERSECT = 8;
            AVX512_FP16 = 23;
        }
        SPECULATION {
            SPEC_CTRL = 26;
            STIBP = 27;
            SSBD = 31;
        }
        /// Hidden: user interrupts, TSX variants, hybrid, PCONFIG, architectural LBR, CET-IBT, AMX (state too large to
        /// switch for now), core capabilities.
        ALLOWED | SPECULATION | AVX512 {
            FSRM = 4;
            MD_CLEAR = 10;
            SERIALIZE = 14;
            FLUSH_L1D = 28;
        }
        /// Models of our own, whatever the host has.
        EMULATED {
            ARCH_CAPABILITIES = 29;
        }
    }
}

/// CPUID.(07H,1).
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
pub mod leaf7_2_edx {
    super::bits! { u32;
        SPECULATION {
            PSFD = 0;
            IPRED_CTRL = 1;
            RRSBA_CTRL = 2;
            DDPD_U = 3;
            BHI_CTRL = 4;
        }
        {
            /// A property of the CPU, no control.
            MCDT_NO = 5;
        }
    }
}

/// CPUID.(0DH,1):EAX.
pub mod leafd_1_eax {
    super::bits! { u32;
        /// Hidden: XFD (only AMX uses it).
        ALLOWED {
            XSAVEOPT = 0;
            XSAVEC = 1;
            XGETBV_ECX1 = 2;
            XSAVES = 3;
        }
    }
}

/// CPUID.80000001H:ECX.
pub mod ext1_ecx {
    super::bits! { u32;
        /// Hidden: SVM (no nesting), ExtApicSpace, IBS, SKINIT, WDT, LWP, TCE, performance counters, data breakpoint
        /// extension, MONITORX.
        ALLOWED {
            LAHF_LM = 0;
            CMP_LEGACY = 1;
            CR8_LEGACY = 4;
            ABM = 5;
            SSE4A = 6;
            MISALIGNSSE = 7;
            PREFETCHW = 8;
            OSVW = 9;
            XOP = 11;
            FMA4 = 16;
            TBM = 21;
            TOPOEXT = 22;
        }
    }
}

/// CPUID.80000001H:EDX, but for the bits that repeat leaf 1 on AMD.
pub mod ext1_edx {
    super::bits! { u32;
        ALLOWED {
            SYSCALL = 11;
            NX = 20;
            MMXEXT = 22;
            FXSR_OPT = 25;
            PDPE1GB = 26;
            RDTSCP = 27;
            LM = 29;
            _3DNOWEXT = 30;
            _3DNOW = 31;
        }
    }
}

/// CPUID.80000007H:EDX.
pub mod ext7_edx {
    pub const INVARIANT_TSC: u32 = 1 << 8;
}

/// CPUID.80000008H:EBX (AMD).
pub mod ext8_ebx {
    super::bits! { u32;
        /// What IA32_SPEC_CTRL is for.
        SPEC_CTRL {
            IBRS = 14;
            STIBP = 15;
            IBRS_ALWAYS = 16;
            STIBP_ALWAYS = 17;
            IBRS_SAME_MODE = 19;
            SSBD = 24;
            PSFD = 28;
        }
        /// What IA32_PRED_CMD is for.
        PRED_CMD {
            IBPB = 12;
            IBPB_RET = 30;
        }
        /// Hidden: INVLPGB, RDPRU (APERF/MPERF), MCOMMIT, INT_WBINVD, PPIN, VIRT_SPEC_CTRL (its SSBD is in
        /// IA32_SPEC_CTRL), CPPC.
        ALLOWED | SPEC_CTRL | PRED_CMD {
            CLZERO = 0;
            XSAVEERPTR = 2;
            WBNOINVD = 9;
            /// EFER.LMSLE cannot be set.
            LMSLE_MBZ = 20;
            SSB_NO = 26;
            BTC_NO = 29;
        }
    }
}

/// CPUID.80000021H:EAX (AMD).
pub mod ext21_eax {
    super::bits! { u32;
        /// What IA32_PRED_CMD is for.
        PRED_CMD {
            SBPB = 27;
            IBPB_BRTYPE = 28;
        }
        /// Hidden: UpperAddressIgnore (EFER bit), prefetch control MSR, workload classification, ERAPS.
        ALLOWED | PRED_CMD {
            NO_NESTED_DATA_BP = 0;
            FSGS_BASE_NON_SERIALIZING = 1;
            LFENCE_SERIALIZING = 2;
            VERW_CLEAR = 5;
            NULL_SELECTOR_CLEARS_BASE = 6;
            AUTO_IBRS = 8;
            SRSO_NO = 29;
            SRSO_USER_KERNEL_NO = 30;
        }
        /// True of every guest.
        EMULATED {
            NO_SMM_CTL_MSR = 9;
            /// HWCR\[35\].
            GP_ON_USER_CPUID = 17;
        }
    }
}

/// CPUID.80000021H:ECX (AMD).
pub mod ext21_ecx {
    super::bits! { u32;
        ALLOWED {
            TSA_SQ_NO = 1;
            TSA_L1_NO = 2;
            TSA_FILL_NO = 7;
        }
    }
}

/// First hypervisor leaf.
pub const KVM_SIGNATURE_LEAF: u32 = 0x4000_0000;
/// Paravirtual feature leaf.
pub const KVM_FEATURES_LEAF: u32 = 0x4000_0001;
/// "KVMKVMKVM\0\0\0" in EBX, ECX, EDX.
pub const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];

/// KVM_FEATURE_*: bits of 40000001H:EAX (kernel document virt/kvm/x86/cpuid.rst).
pub mod kvm_feature {
    super::bits! { u32;
        /// What guests are offered.
        OFFERED {
            CLOCKSOURCE = 0;
            NOP_IO_DELAY = 1;
            CLOCKSOURCE2 = 3;
            ASYNC_PF = 4;
            STEAL_TIME = 5;
            PV_EOI = 6;
            PV_UNHALT = 7;
            PV_TLB_FLUSH = 9;
            ASYNC_PF_VMEXIT = 10;
            PV_SEND_IPI = 11;
            POLL_CONTROL = 12;
            PV_SCHED_YIELD = 13;
            ASYNC_PF_INT = 14;
            CLOCKSOURCE_STABLE = 24;
        }
    }
}
