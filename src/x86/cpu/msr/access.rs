// SPDX-License-Identifier: GPL-2.0
//! In whose name an MSR is accessed, what comes of it, and which values are valid (SDM 4, APM 2 appendix A).
//!
//! The table of [`super`] is written in these terms.
#![forbid(unsafe_code)]

use crate::x86::cpu::canonical::{is_canonical, sign_extend};
use crate::x86::cpu::cpuid::{GuestFeatures, Vendor};
use crate::x86::cpu::masks::bits;

/// Who keeps an MSR that does not live in [`MsrFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// EFER: a register of the vCPU; check a write with [`crate::x86::cpu::control::efer_write_check`].
    Efer,
    /// IA32_APIC_BASE: the local APIC (or a variable where user space has the APIC).
    ApicBase,
    /// IA32_TSC_DEADLINE: the local APIC's timer.
    TscDeadline,
    /// 800H to 8FFH: the local APIC in x2APIC mode; #GP in other modes.
    X2apic,
    /// IA32_TIME_STAMP_COUNTER: the TSC offset.
    Tsc,
    /// IA32_TSC_ADJUST: the TSC offset; a guest's write moves the TSC.
    TscAdjust,
    /// The vendor's control structure: SYSENTER, STAR, LSTAR, CSTAR, FMASK, FS/GS/KERNEL_GS base, PAT, TSC_AUX,
    /// SPEC_CTRL. A value to write is valid for the hardware.
    Backend,
    /// IA32_PRED_CMD, write-only: do these barriers on the vCPU's behalf.
    PredictionBarrier,
    /// IA32_FLUSH_CMD, write-only: flush the L1 data cache, if the value is not 0.
    L1dFlush,
    /// A KVM paravirtual MSR whose feature bit is offered.
    Paravirt,
    /// One of Hyper-V's: its keeper knows whether the guest may have it.
    HyperV,
}

/// Why an access fails. For the guest both are #GP(0); user space learns the difference (KVM_MSR_EXIT_REASON_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrError {
    /// There is no such MSR for this vCPU.
    Unknown,
    /// The MSR exists, or is one of a kind that is known; the value, the direction or who asks is not right.
    Invalid,
}

/// Result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The value.
    Value(u64),
    /// Ask its keeper.
    Delegate(Class),
}

/// Result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Done.
    Stored,
    /// Hand this (validated, sanitised) value to the keeper.
    Delegate(Class, u64),
}

/// In whose name an access is made.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// The vCPU's features (already reduced to what the host carries).
    pub guest: &'a GuestFeatures,
    /// What the hypervisor carries on this host: governs user space's accesses.
    pub host: &'a GuestFeatures,
    /// KVM_GET_MSRS and KVM_SET_MSRS: may write read-only values and does not need the guest's CPUID bits.
    pub host_initiated: bool,
    /// Paravirtual MSRs need the guest's CPUID bits, also for user space (KVM_CAP_ENFORCE_PV_FEATURE_CPUID); else it
    /// is enough that they are offered.
    pub enforce_pv: bool,
}

impl Access<'_> {
    /// The features that govern this access.
    #[inline]
    pub(super) fn features(&self) -> &GuestFeatures {
        if self.host_initiated {
            self.host
        } else {
            self.guest
        }
    }

    /// The guest takes itself to be on AMD.
    pub(super) fn amd_guest(&self) -> bool {
        self.guest.vendor == Vendor::Amd
    }

    /// The vCPU runs by SVM: KVM has some MSRs on hosts of one vendor only, whatever the guest's is.
    pub(super) fn svm(&self) -> bool {
        self.host.vendor == Vendor::Amd
    }

    /// The vCPU runs by VMX.
    pub(super) fn vmx(&self) -> bool {
        self.host.vendor == Vendor::Intel
    }

    /// Whether the paravirtual feature `bit` is offered.
    pub(super) fn offers(&self, bit: u32) -> bool {
        let has = |f: &GuestFeatures| f.kvm_features & bit != 0;
        has(self.host) && (!self.enforce_pv || has(self.guest))
    }

    /// Width that base addresses are checked against.
    pub(super) fn linear_width(&self) -> u8 {
        self.host.linear_width().max(self.guest.linear_width())
    }

    /// Only user space may write it.
    pub(super) fn by_host(&self, value: u64) -> Result<u64, MsrError> {
        ok(self.host_initiated, value)
    }

    /// A base address.
    pub(super) fn canonical(&self, value: u64) -> Result<u64, MsrError> {
        ok(is_canonical(value, self.linear_width()), value)
    }

    /// SYSENTER's addresses: a guest's write is checked by a processor of Intel's, AMD having no 64-bit SYSENTER. What
    /// user space writes is made canonical, which VM entries want.
    pub(super) fn sysenter(&self, value: u64) -> Result<u64, MsrError> {
        if self.svm() && self.amd_guest() {
            Ok(value & 0xffff_ffff)
        } else if self.svm() || self.host_initiated {
            Ok(sign_extend(value, self.linear_width()))
        } else {
            self.canonical(value)
        }
    }

    /// A variable-range MTRR: bases have even numbers, masks odd ones (SDM 3A 12.11.2.3).
    #[cold]
    pub(super) fn mtrr_variable(&self, msr: u32, value: u64) -> Result<u64, MsrError> {
        let is_mask = msr & 1 != 0;
        let low_reserved = if is_mask { 0x7ff } else { 0xf00 };
        // Before KVM_SET_CPUID2 the width is not known: user space may use the host's.
        let reserved = if self.host_initiated {
            self.host.reserved_phys_bits() & self.guest.reserved_phys_bits()
        } else {
            self.guest.reserved_phys_bits()
        };
        ok(
            value & (reserved | low_reserved) == 0 && (is_mask || mtrr_type_valid(value as u8)),
            value,
        )
    }
}

/// DE_CFG: LFENCE is dispatch serialising.
const DE_CFG_LFENCE: u64 = 1 << 1;

/// What an MSR file starts with at power-up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// IA32_ARCH_CAPABILITIES of the host, reduced to [`arch_capabilities::ALLOWED`] by [`MsrFile::new`].
    pub arch_capabilities: u64,
    /// MSR_PLATFORM_INFO: 0 or [`PLATFORM_CPUID_FAULT`].
    pub platform_info: u64,
    /// LFENCE is dispatch serialising (AMD): DE_CFG\[1\] reads as one.
    pub lfence_serializing: bool,
    /// Vendor of the host.
    pub vendor: Vendor,
}

impl Config {
    /// DE_CFG, all of whose bits may be written.
    pub(super) const fn de_cfg(&self) -> u64 {
        if self.lfence_serializing {
            DE_CFG_LFENCE
        } else {
            0
        }
    }

    /// OSVW_ID_LENGTH, which Intel does not have.
    pub(super) const fn osvw_id_length(&self) -> u64 {
        match self.vendor {
            Vendor::Intel => 0,
            Vendor::Amd => 4,
        }
    }

    /// KVM's values: no guest takes the revision of a hypervisor seriously.
    pub(super) const fn ucode_rev(&self) -> u64 {
        match self.vendor {
            Vendor::Intel => 1 << 32,
            Vendor::Amd => 0x0100_0065,
        }
    }
}

/// Bits of IA32_ARCH_CAPABILITIES (SDM 4 table 2-2).
#[allow(missing_docs)]
pub mod arch_capabilities {
    super::bits! { u64;
        /// They state a fact or a control that a guest can use. Hidden: MISC_PACKAGE_CTLS, energy filtering, DOITM, MCU
        /// control, overclocking, xAPIC disable (their MSRs are not virtualised).
        ALLOWED {
            RDCL_NO = 0;
            IBRS_ALL = 1;
            RSBA = 2;
            SKIP_L1DFL_VMENTRY = 3;
            SSB_NO = 4;
            MDS_NO = 5;
            IF_PSCHANGE_MC_NO = 6;
            TSX_CTRL = 7;
            TAA_NO = 8;
            SBDR_SSDP_NO = 13;
            FBSDP_NO = 14;
            PSDP_NO = 15;
            FB_CLEAR = 17;
            RRSBA = 19;
            BHI_NO = 20;
            PBRSB_NO = 24;
            GDS_NO = 26;
            RFDS_NO = 27;
            RFDS_CLEAR = 28;
            ITS_NO = 62;
        }
    }
}

/// `value`, if it may be written.
pub(super) const fn ok(good: bool, value: u64) -> Result<u64, MsrError> {
    if good {
        Ok(value)
    } else {
        Err(MsrError::Invalid)
    }
}

/// `value`, if all its bits are among `allowed`.
pub(super) const fn only(value: u64, allowed: u64) -> Result<u64, MsrError> {
    ok(value & !allowed == 0, value)
}

/// Memory types that an MTRR may hold: UC, WC, WT, WP, WB (SDM 3A table 12-8).
pub(super) const fn mtrr_type_valid(t: u8) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6)
}

/// Whether every entry of a PAT is UC, WC, WT, WP, WB or UC- (SDM 3A 12.12.2).
pub const fn pat_valid(pat: u64) -> bool {
    // Bits 7:3 of each byte are reserved; types 2 and 3 (bit 1 set, bit 2 clear) too.
    pat & 0xf8f8_f8f8_f8f8_f8f8 == 0
        && (pat & 0x0202_0202_0202_0202) & !((pat & 0x0404_0404_0404_0404) >> 1) == 0
}

/// A fixed-range MTRR: eight memory types.
#[cold]
pub(super) fn mtrr_fixed(value: u64) -> Result<u64, MsrError> {
    ok(value.to_le_bytes().into_iter().all(mtrr_type_valid), value)
}
