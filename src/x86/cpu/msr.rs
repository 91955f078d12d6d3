// SPDX-License-Identifier: GPL-2.0
//! Model-specific registers: which exist for a guest, where each lives, what may be written
//! (SDM 4, APM 2 appendix A, api.rst 4.3 KVM_GET_MSR_INDEX_LIST and 4.18 KVM_SET_MSRS).
//!
//! Anything not named here does not exist: the guest gets #GP, user space's GET/SET stops there. MSRs with a home elsewhere
//! (local APIC, TSC, the vendor's control structure) are validated here and delegated by [`Class`].
#![forbid(unsafe_code)]

use crate::x86::cpu::canonical::{is_canonical, sign_extend};
use crate::x86::cpu::cpuid::{kvm_feature, GuestFeatures, Vendor};
use crate::x86::cpu::index as ix;

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
    /// The vendor's control structure: SYSENTER, STAR, LSTAR, CSTAR, FMASK, FS/GS/KERNEL_GS base, PAT, TSC_AUX, DEBUGCTL, SPEC_CTRL.
    /// A value to write is valid for the hardware.
    Backend,
    /// IA32_PRED_CMD, write-only: do these barriers on the vCPU's behalf.
    PredictionBarrier,
    /// A KVM paravirtual MSR whose feature bit is offered.
    Paravirt,
}

/// Why an access fails. For the guest both are #GP(0); user space learns the difference (KVM_MSR_EXIT_REASON_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrError {
    /// There is no such MSR for this vCPU.
    Unknown,
    /// The MSR exists; the value or the direction is not allowed.
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
    /// Done; memory types of the guest changed.
    StoredMtrr,
    /// Done; IA32_XSS changed: CPUID leaf 0DH and the state to switch.
    StoredXss,
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
    /// IA32_XSS bits that may be set.
    pub xss_allowed: u64,
    /// Paravirtual MSRs need the guest's CPUID bits, also for user space (KVM_CAP_ENFORCE_PV_FEATURE_CPUID); else it is enough that
    /// they are offered.
    pub enforce_pv: bool,
}

impl Access<'_> {
    /// The features that govern this access.
    #[inline]
    fn features(&self) -> &GuestFeatures {
        if self.host_initiated {
            self.host
        } else {
            self.guest
        }
    }

    fn amd(&self) -> bool {
        self.guest.vendor == Vendor::Amd || self.host_initiated && self.host.vendor == Vendor::Amd
    }

    fn paravirt(&self, msr: u32) -> bool {
        let bit = match msr {
            ix::KVM_WALL_CLOCK | ix::KVM_SYSTEM_TIME => kvm_feature::CLOCKSOURCE,
            ix::KVM_WALL_CLOCK_NEW | ix::KVM_SYSTEM_TIME_NEW => kvm_feature::CLOCKSOURCE2,
            ix::KVM_ASYNC_PF_EN => kvm_feature::ASYNC_PF,
            ix::KVM_STEAL_TIME => kvm_feature::STEAL_TIME,
            ix::KVM_PV_EOI_EN => kvm_feature::PV_EOI,
            ix::KVM_POLL_CONTROL => kvm_feature::POLL_CONTROL,
            ix::KVM_ASYNC_PF_INT | ix::KVM_ASYNC_PF_ACK => kvm_feature::ASYNC_PF_INT,
            ix::KVM_MIGRATION_CONTROL => kvm_feature::MIGRATION_CONTROL,
            _ => return false,
        };
        let has = |f: &GuestFeatures| f.kvm_features & bit != 0;
        has(self.host) && (!self.enforce_pv || has(self.guest))
    }
}

/// What an MSR file starts with at power-up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// IA32_ARCH_CAPABILITIES of the host, reduced to [`ARCH_CAPABILITIES_ALLOWED`] by [`MsrFile::reset`].
    pub arch_capabilities: u64,
    /// MSR_PLATFORM_INFO: 0 or [`PLATFORM_CPUID_FAULT`].
    pub platform_info: u64,
    /// LFENCE is dispatch serialising (AMD): DE_CFG\[1\] reads as one.
    pub lfence_serializing: bool,
    /// Vendor of the host.
    pub vendor: Vendor,
}

/// Bits of IA32_ARCH_CAPABILITIES that state a fact or a control that a guest can use. Hidden: TSX_CTRL, MISC_PACKAGE_CTLS,
/// energy filtering, DOITM, MCU control, overclocking, xAPIC disable (their MSRs are not virtualised).
pub const ARCH_CAPABILITIES_ALLOWED: u64 = arch_capabilities::RDCL_NO
    | arch_capabilities::IBRS_ALL
    | arch_capabilities::RSBA
    | arch_capabilities::SKIP_L1DFL_VMENTRY
    | arch_capabilities::SSB_NO
    | arch_capabilities::MDS_NO
    | arch_capabilities::IF_PSCHANGE_MC_NO
    | arch_capabilities::TAA_NO
    | arch_capabilities::SBDR_SSDP_NO
    | arch_capabilities::FBSDP_NO
    | arch_capabilities::PSDP_NO
    | arch_capabilities::FB_CLEAR
    | arch_capabilities::RRSBA
    | arch_capabilities::BHI_NO
    | arch_capabilities::PBRSB_NO
    | arch_capabilities::GDS_NO
    | arch_capabilities::RFDS_NO
    | arch_capabilities::RFDS_CLEAR
    | arch_capabilities::ITS_NO;

/// Bits of IA32_ARCH_CAPABILITIES (SDM 4 table 2-2).
#[allow(missing_docs)]
pub mod arch_capabilities {
    pub const RDCL_NO: u64 = 1 << 0;
    pub const IBRS_ALL: u64 = 1 << 1;
    pub const RSBA: u64 = 1 << 2;
    pub const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    pub const SSB_NO: u64 = 1 << 4;
    pub const MDS_NO: u64 = 1 << 5;
    pub const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
    pub const TAA_NO: u64 = 1 << 8;
    pub const SBDR_SSDP_NO: u64 = 1 << 13;
    pub const FBSDP_NO: u64 = 1 << 14;
    pub const PSDP_NO: u64 = 1 << 15;
    pub const FB_CLEAR: u64 = 1 << 17;
    pub const RRSBA: u64 = 1 << 19;
    pub const BHI_NO: u64 = 1 << 20;
    pub const PBRSB_NO: u64 = 1 << 24;
    pub const GDS_NO: u64 = 1 << 26;
    pub const RFDS_NO: u64 = 1 << 27;
    pub const RFDS_CLEAR: u64 = 1 << 28;
    pub const ITS_NO: u64 = 1 << 62;
}

/// IA32_MCG_CAP bits besides the bank count that KVM_X86_SETUP_MCE may ask for: MCG_CTL_P, MCG_SER_P.
pub const MCE_CAP_SUPPORTED: u64 = (1 << 8) | (1 << 24);
/// IA32_MCG_CAP: number of extended state registers; only kept.
const MCG_EXT_CNT: u64 = 0xff << 16;
/// Machine-check banks at most (KVM_CAP_MCE).
pub const MCE_BANKS: usize = 32;

/// IA32_MTRRCAP: 8 variable ranges, fixed ranges, write-combining.
pub const MTRR_CAP_VALUE: u64 = 0x508;
const MTRR_FIXED: usize = 11;
const MTRR_VARIABLE: usize = 16;

/// IA32_PAT after RESET (SDM 3A 12.12.4).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// IA32_MISC_ENABLE bit that a guest's write does not change: performance monitoring available.
const MISC_IGNORED: u64 = 1 << 7;
/// IA32_MISC_ENABLE.MWAIT (ENABLE MONITOR FSM).
pub const MISC_MWAIT: u64 = 1 << 18;
/// Read-only ones; a guest that changes them gets #GP, as KVM does it.
const MISC_BTS_PEBS_UNAVAILABLE: u64 = (1 << 11) | (1 << 12);

/// MSR_PLATFORM_INFO: CPUID faulting is there.
pub const PLATFORM_CPUID_FAULT: u64 = 1 << 31;

/// HWCR bits that are kept: McStatusWrEn, TscFreqSel.
const HWCR_KEPT: u64 = (1 << 18) | (1 << 24);
/// HWCR bits that may be written without effect: TlbCacheDis, FFDIS, IgnneEm.
const HWCR_IGNORED: u64 = (1 << 3) | (1 << 6) | (1 << 8);
const HWCR_MC_STATUS_WR_EN: u64 = 1 << 18;

/// DE_CFG: LFENCE is dispatch serialising.
const DE_CFG_LFENCE: u64 = 1 << 1;

/// VM_CR: LOCK and SVMDIS. Nested virtualisation is off and cannot be switched on.
const VM_CR_DISABLED: u64 = (1 << 3) | (1 << 4);

/// IA32_MCG_STATUS: a machine check is being handled.
const MCG_STATUS_MCIP: u64 = 1 << 2;

/// IA32_MCi_STATUS (SDM 3B 16.3.2.2).
mod mci_status {
    pub(super) const VAL: u64 = 1 << 63;
    pub(super) const OVER: u64 = 1 << 62;
    pub(super) const UC: u64 = 1 << 61;
    pub(super) const PCC: u64 = 1 << 57;
    pub(super) const S: u64 = 1 << 56;
    pub(super) const AR: u64 = 1 << 55;
}

/// A machine-check error (`struct kvm_x86_mce`).
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct MachineCheck {
    pub status: u64,
    pub addr: u64,
    pub misc: u64,
    pub mcg_status: u64,
    pub bank: u8,
}

/// What a machine-check error does to the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineCheckEffect {
    /// Nothing beyond what is in the bank.
    Recorded,
    /// #MC.
    Exception,
    /// Shutdown: a second #MC, or #MC while CR4.MCE is off.
    Shutdown,
}

/// One machine-check bank: CTL, STATUS, ADDR, MISC.
type Bank = [u64; 4];

/// MSRs that are plain storage of a vCPU. All zeros is a valid bit pattern; call [`MsrFile::reset`] before use.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct MsrFile {
    pub misc_enable: u64,
    pub feature_control: u64,
    pub ucode_rev: u64,
    pub platform_info: u64,
    pub misc_features: u64,
    pub power_ctl: u64,
    pub arch_capabilities: u64,
    pub xss: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; MTRR_FIXED],
    /// Base, mask, base, mask …
    pub mtrr_variable: [u64; MTRR_VARIABLE],
    pub mcg_cap: u64,
    pub mcg_status: u64,
    pub mcg_ctl: u64,
    banks: [Bank; MCE_BANKS],
    pub hwcr: u64,
    pub de_cfg: u64,
    de_cfg_allowed: u64,
    pub osvw_id_length: u64,
    pub osvw_status: u64,
}

impl MsrFile {
    /// All zeros, before [`MsrFile::reset`].
    pub const ZERO: Self = Self {
        misc_enable: 0,
        feature_control: 0,
        ucode_rev: 0,
        platform_info: 0,
        misc_features: 0,
        power_ctl: 0,
        arch_capabilities: 0,
        xss: 0,
        mtrr_def_type: 0,
        mtrr_fixed: [0; MTRR_FIXED],
        mtrr_variable: [0; MTRR_VARIABLE],
        mcg_cap: 0,
        mcg_status: 0,
        mcg_ctl: 0,
        banks: [[0; 4]; MCE_BANKS],
        hwcr: 0,
        de_cfg: 0,
        de_cfg_allowed: 0,
        osvw_id_length: 0,
        osvw_status: 0,
    };

    /// Power-up values, of a file that is all zeros. INIT leaves all of these alone (SDM 3A table 11-1).
    pub fn reset(&mut self, c: &Config) {
        // KVM's value; firmware, or whoever takes its place, allows fast strings.
        self.misc_enable = MISC_BTS_PEBS_UNAVAILABLE;
        // Locked with VMX off: firmware has decided.
        self.feature_control = 1;
        self.ucode_rev = match c.vendor {
            // KVM's values: no guest takes the revision of a hypervisor seriously.
            Vendor::Intel => 1 << 32,
            Vendor::Amd => 0x0100_0065,
        };
        self.platform_info = c.platform_info;
        self.arch_capabilities = c.arch_capabilities & ARCH_CAPABILITIES_ALLOWED;
        self.mcg_cap = MCE_BANKS as u64;
        self.de_cfg_allowed = if c.lfence_serializing {
            DE_CFG_LFENCE
        } else {
            0
        };
        self.de_cfg = self.de_cfg_allowed;
        // Errata 0 to 3 are known and fixed.
        self.osvw_id_length = 4;
    }

    /// CPUID faults above CPL 0 (CPUID faulting, SDM 3B 2.8 "MISC_FEATURES_ENABLES").
    #[inline]
    pub const fn cpuid_faults(&self) -> bool {
        self.misc_features & 1 != 0
    }

    /// IA32_MISC_ENABLE.MWAIT.
    pub const fn mwait(&self) -> bool {
        self.misc_enable & MISC_MWAIT != 0
    }

    /// KVM_X86_SETUP_MCE: number of banks in bits 7:0, [`MCE_CAP_SUPPORTED`] above.
    ///
    /// # Errors
    ///
    /// [`MsrError::Invalid`] (EINVAL) for no bank, too many, or an unknown capability.
    pub fn setup_mce(&mut self, mcg_cap: u64, vendor: Vendor) -> Result<(), MsrError> {
        let n = mcg_cap & 0xff;
        if n == 0
            || n > MCE_BANKS as u64
            || mcg_cap & !(0xff | MCG_EXT_CNT | MCE_CAP_SUPPORTED) != 0
        {
            return Err(MsrError::Invalid);
        }
        self.mcg_cap = match vendor {
            Vendor::Intel => mcg_cap,
            // AMD's register has no more than the number of banks and MCG_CTL_P (APM 2 9.3.1.1).
            Vendor::Amd => mcg_cap & 0x1ff,
        };
        if mcg_cap & (1 << 8) != 0 {
            self.mcg_ctl = u64::MAX;
        }
        for b in self.banks.iter_mut().take(n as usize) {
            b[0] = u64::MAX;
        }
        Ok(())
    }

    /// KVM_X86_SET_MCE: an error is reported by bank `m.bank`; `enabled` is CR4.MCE (SDM 3B 16.3.2, as far as KVM goes).
    ///
    /// # Errors
    ///
    /// [`MsrError::Invalid`] (EINVAL): no such bank, or a status that is not valid.
    pub fn machine_check(
        &mut self,
        m: &MachineCheck,
        enabled: bool,
    ) -> Result<MachineCheckEffect, MsrError> {
        use mci_status::{AR, OVER, PCC, S, UC, VAL};
        let has_ctl = self.mcg_cap & (1 << 8) != 0;
        let mcg_ctl = self.mcg_ctl;
        let in_progress = self.mcg_status & MCG_STATUS_MCIP != 0;
        if u64::from(m.bank) >= self.mcg_cap & 0xff || m.status & VAL == 0 {
            return Err(MsrError::Invalid);
        }
        let bank = self
            .banks
            .get_mut(usize::from(m.bank))
            .ok_or(MsrError::Invalid)?;
        let uncorrected = m.status & UC != 0;
        // Uncorrected, and nothing that has to be done about it now: recorded. (CMCI, which would tell, is not offered.)
        if m.mcg_status == 0 && uncorrected && m.status & (PCC | S | AR) == 0 {
            *bank = [bank[0], m.status, m.addr, m.misc];
            self.mcg_status = 0;
            return Ok(MachineCheckEffect::Recorded);
        }
        let over = if bank[1] & VAL != 0 { OVER } else { 0 };
        if uncorrected {
            if has_ctl && mcg_ctl != u64::MAX || bank[0] != u64::MAX {
                return Ok(MachineCheckEffect::Recorded);
            }
            if in_progress || !enabled {
                return Ok(MachineCheckEffect::Shutdown);
            }
            *bank = [bank[0], m.status | over, m.addr, m.misc];
            self.mcg_status = m.mcg_status;
            return Ok(MachineCheckEffect::Exception);
        }
        // A corrected error does not overwrite an uncorrected one.
        if bank[1] & VAL == 0 || bank[1] & UC == 0 {
            *bank = [bank[0], m.status | over, m.addr, m.misc];
        } else {
            bank[1] |= OVER;
        }
        Ok(MachineCheckEffect::Recorded)
    }

    /// Bank number and register (0 CTL, 1 STATUS, 2 ADDR, 3 MISC) of a machine-check MSR that this vCPU has.
    fn bank_of(&self, msr: u32) -> Option<(usize, usize)> {
        let off = msr.checked_sub(ix::MC0_CTL)?;
        let bank = (off / 4) as usize;
        if bank < MCE_BANKS && (bank as u64) < self.mcg_cap & 0xff {
            Some((bank, (off % 4) as usize))
        } else {
            None
        }
    }

    /// The fixed-range MTRR behind `msr`, in address order.
    fn fixed_of(msr: u32) -> Option<usize> {
        match msr {
            ix::MTRR_FIX64K_00000 => Some(0),
            ix::MTRR_FIX16K_80000 => Some(1),
            ix::MTRR_FIX16K_A0000 => Some(2),
            ix::MTRR_FIX4K_C0000..=ix::MTRR_FIX4K_F8000 => {
                Some(3 + (msr - ix::MTRR_FIX4K_C0000) as usize)
            }
            _ => None,
        }
    }

    /// Reads `msr`.
    ///
    /// # Errors
    ///
    /// See [`MsrError`].
    pub fn get(&self, msr: u32, a: &Access<'_>) -> Result<Read, MsrError> {
        if let Some(class) = class_of(msr, a)? {
            return if class == Class::PredictionBarrier {
                Err(MsrError::Invalid)
            } else {
                Ok(Read::Delegate(class))
            };
        }
        let f = a.features();
        let value = match msr {
            ix::MISC_ENABLE => self.misc_enable,
            ix::FEATURE_CONTROL => self.feature_control,
            ix::UCODE_REV => self.ucode_rev,
            ix::PLATFORM_INFO => self.platform_info,
            ix::MISC_FEATURES_ENABLES => self.misc_features,
            ix::POWER_CTL => self.power_ctl,
            ix::ARCH_CAPABILITIES if f.arch_capabilities => self.arch_capabilities,
            ix::XSS if f.xsaves => self.xss,
            ix::MTRR_CAP => MTRR_CAP_VALUE,
            ix::MTRR_DEF_TYPE => self.mtrr_def_type,
            ix::MTRR_PHYS_BASE0..=ix::MTRR_PHYS_LAST => {
                let i = (msr - ix::MTRR_PHYS_BASE0) as usize;
                *self.mtrr_variable.get(i).ok_or(MsrError::Unknown)?
            }
            ix::MCG_CAP => self.mcg_cap,
            // KVM has it for both vendors.
            ix::HWCR => self.hwcr,
            ix::MCG_STATUS => self.mcg_status,
            ix::MCG_CTL if self.mcg_cap & (1 << 8) != 0 || a.host_initiated => self.mcg_ctl,
            _ => match (Self::fixed_of(msr), self.bank_of(msr)) {
                (Some(i), _) => *self.mtrr_fixed.get(i).ok_or(MsrError::Unknown)?,
                (_, Some((b, r))) => *self
                    .banks
                    .get(b)
                    .and_then(|bank| bank.get(r))
                    .ok_or(MsrError::Unknown)?,
                _ if counter(msr) => 0,
                _ if a.amd() => return self.get_amd(msr, a).map(Read::Value),
                _ if zero_any(msr) => 0,
                _ => return Err(MsrError::Unknown),
            },
        };
        Ok(Read::Value(value))
    }

    #[cold]
    fn get_amd(&self, msr: u32, a: &Access<'_>) -> Result<u64, MsrError> {
        match msr {
            ix::DE_CFG => Ok(self.de_cfg),
            ix::VM_CR => Ok(VM_CR_DISABLED),
            ix::OSVW_ID_LENGTH if a.features().osvw => Ok(self.osvw_id_length),
            ix::OSVW_STATUS if a.features().osvw => Ok(self.osvw_status),
            _ if zero_amd(msr) || zero_any(msr) => Ok(0),
            _ => Err(MsrError::Unknown),
        }
    }

    /// Writes `msr`. Nothing changes on failure.
    ///
    /// # Errors
    ///
    /// See [`MsrError`].
    pub fn set(&mut self, msr: u32, value: u64, a: &Access<'_>) -> Result<Written, MsrError> {
        if let Some(class) = class_of(msr, a)? {
            return validate(msr, value, a).map(|v| Written::Delegate(class, v));
        }
        let f = *a.features();
        match msr {
            ix::MISC_ENABLE => {
                if a.host_initiated {
                    self.misc_enable = value;
                } else if (self.misc_enable ^ value) & MISC_BTS_PEBS_UNAVAILABLE != 0 {
                    return Err(MsrError::Invalid);
                } else {
                    self.misc_enable = value & !MISC_IGNORED | self.misc_enable & MISC_IGNORED;
                }
            }
            // Locked: only user space can write it.
            ix::FEATURE_CONTROL => self.feature_control = host_only(a, value)?,
            // A guest's write of 0 asks CPUID(1) to load the revision; nothing to load.
            ix::UCODE_REV => {
                if a.host_initiated {
                    self.ucode_rev = value;
                }
            }
            // Microcode updates are the host's business: accepted without effect.
            ix::UCODE_WRITE => {}
            ix::HWCR => {
                if value & !(HWCR_KEPT | HWCR_IGNORED) != 0 {
                    return Err(MsrError::Invalid);
                }
                self.hwcr = value & HWCR_KEPT;
            }
            ix::PLATFORM_INFO => {
                if value & PLATFORM_CPUID_FAULT == 0 && self.misc_features & 1 != 0 {
                    return Err(MsrError::Invalid);
                }
                self.platform_info = host_only(a, value)?;
            }
            // Kept and of no effect.
            ix::POWER_CTL => self.power_ctl = value,
            ix::MISC_FEATURES_ENABLES => {
                let allowed = u64::from(self.platform_info & PLATFORM_CPUID_FAULT != 0);
                if value & !allowed != 0 {
                    return Err(MsrError::Invalid);
                }
                self.misc_features = value;
            }
            ix::ARCH_CAPABILITIES if f.arch_capabilities => {
                if value & !ARCH_CAPABILITIES_ALLOWED != 0 {
                    return Err(MsrError::Invalid);
                }
                self.arch_capabilities = host_only(a, value)?;
            }
            ix::XSS if f.xsaves => {
                if value & !a.xss_allowed != 0 {
                    return Err(MsrError::Invalid);
                }
                self.xss = value;
                return Ok(Written::StoredXss);
            }
            ix::MTRR_CAP => {
                // Read-only; user space may write back what it read.
                if !a.host_initiated || value != MTRR_CAP_VALUE {
                    return Err(MsrError::Invalid);
                }
            }
            ix::MTRR_DEF_TYPE => {
                if value & !0xcff != 0 || !mtrr_type_valid(value as u8) {
                    return Err(MsrError::Invalid);
                }
                self.mtrr_def_type = value;
                return Ok(Written::StoredMtrr);
            }
            ix::MTRR_PHYS_BASE0..=ix::MTRR_PHYS_LAST => {
                let is_mask = msr & 1 != 0;
                let low_reserved = if is_mask { 0x7ff } else { 0xf00 };
                // Before KVM_SET_CPUID2 the width is not known: user space may use the host's.
                let reserved = if a.host_initiated {
                    a.host.reserved_phys_bits() & a.guest.reserved_phys_bits()
                } else {
                    a.guest.reserved_phys_bits()
                };
                if value & (reserved | low_reserved) != 0
                    || (!is_mask && !mtrr_type_valid(value as u8))
                {
                    return Err(MsrError::Invalid);
                }
                let i = (msr - ix::MTRR_PHYS_BASE0) as usize;
                *self.mtrr_variable.get_mut(i).ok_or(MsrError::Unknown)? = value;
                return Ok(Written::StoredMtrr);
            }
            ix::MCG_CAP => return Err(MsrError::Invalid),
            ix::MCG_STATUS => {
                // RIPV, EIPV, MCIP, LMCE_S.
                if value & !0xf != 0 && !a.host_initiated {
                    return Err(MsrError::Invalid);
                }
                self.mcg_status = value;
            }
            ix::MCG_CTL if self.mcg_cap & (1 << 8) != 0 || a.host_initiated => {
                if value != 0 && value != u64::MAX {
                    return Err(MsrError::Invalid);
                }
                self.mcg_ctl = value;
            }
            _ => {
                if let Some(i) = Self::fixed_of(msr) {
                    if !value.to_le_bytes().into_iter().all(mtrr_type_valid) {
                        return Err(MsrError::Invalid);
                    }
                    *self.mtrr_fixed.get_mut(i).ok_or(MsrError::Unknown)? = value;
                    return Ok(Written::StoredMtrr);
                }
                if let Some((b, r)) = self.bank_of(msr) {
                    return self.set_bank(b, r, value, a);
                }
                if counter(msr) {
                    return Ok(Written::Stored);
                }
                if a.amd() {
                    return self.set_amd(msr, value, a);
                }
                return write_zero(zero_any(msr), value);
            }
        }
        Ok(Written::Stored)
    }

    fn set_bank(
        &mut self,
        bank: usize,
        reg: usize,
        value: u64,
        a: &Access<'_>,
    ) -> Result<Written, MsrError> {
        let allowed = a.host_initiated
            || match reg {
                // CTL: all or nothing; Linux clears single bits of banks 0 and 4 for old errata.
                0 => value == 0 || value | (1 << 10) | 1 == u64::MAX,
                // STATUS: only zero, unless AMD's McStatusWrEn.
                1 => value == 0 || (a.amd() && self.hwcr & HWCR_MC_STATUS_WR_EN != 0),
                // ADDR and MISC: writing anything but zero faults (SDM 3B 16.3.2.3).
                _ => value == 0 || a.amd(),
            };
        if !allowed {
            return Err(MsrError::Invalid);
        }
        *self
            .banks
            .get_mut(bank)
            .and_then(|b| b.get_mut(reg))
            .ok_or(MsrError::Unknown)? = value;
        Ok(Written::Stored)
    }

    #[cold]
    fn set_amd(&mut self, msr: u32, value: u64, a: &Access<'_>) -> Result<Written, MsrError> {
        match msr {
            ix::DE_CFG => {
                if value & !self.de_cfg_allowed != 0 {
                    return Err(MsrError::Invalid);
                }
                self.de_cfg = value;
            }
            ix::PATCH_LOADER => {}
            // Locked: LOCK and SVMDIS cannot change, the rest is zero.
            ix::VM_CR => {
                if value != VM_CR_DISABLED {
                    return Err(MsrError::Invalid);
                }
            }
            ix::OSVW_ID_LENGTH if a.features().osvw => self.osvw_id_length = host_only(a, value)?,
            ix::OSVW_STATUS if a.features().osvw => self.osvw_status = host_only(a, value)?,
            _ => return write_zero(zero_amd(msr) || zero_any(msr), value),
        }
        Ok(Written::Stored)
    }
}

fn host_only(a: &Access<'_>, value: u64) -> Result<u64, MsrError> {
    if a.host_initiated {
        Ok(value)
    } else {
        Err(MsrError::Invalid)
    }
}

/// Write to an MSR that reads as zero: zero is accepted.
fn write_zero(exists: bool, value: u64) -> Result<Written, MsrError> {
    match (exists, value) {
        (false, _) => Err(MsrError::Unknown),
        (true, 0) => Ok(Written::Stored),
        (true, _) => Err(MsrError::Invalid),
    }
}

/// Performance counters and their selectors of processors that had no CPUID leaf for them, P6 and K7: without a PMU they read as
/// zero, and writes are ignored (as in KVM).
const fn counter(msr: u32) -> bool {
    matches!(msr, 0xc1..=0xc2 | 0x186..=0x187 | 0xc001_0000..=0xc001_0007)
}

/// MSRs that guests read without a fault handler and that say "nothing here" with zero, on any vendor.
const fn zero_any(msr: u32) -> bool {
    matches!(
        msr,
        ix::P5_MC_ADDR | ix::P5_MC_TYPE | ix::PLATFORM_ID | ix::EBL_CR_POWERON
    )
}

/// The same on AMD: system, northbridge and P-state configuration of a machine that has none of it.
const fn zero_amd(msr: u32) -> bool {
    matches!(
        msr,
        ix::SYSCFG | ix::NB_CFG | ix::INT_PENDING_MSG | ix::MMIO_CONF_BASE | ix::PSTATE_LIMIT
            ..=ix::PSTATE7
                | ix::TSEG_ADDR
                | ix::TSEG_MASK
                | ix::VM_HSAVE_PA
                | ix::DC_CFG
                | ix::TW_CFG
                | ix::BU_CFG2
                | ix::EX_CFG
    )
}

/// The keeper of `msr`; `None` when it lives in the MSR file (or nowhere).
#[inline]
fn class_of(msr: u32, a: &Access<'_>) -> Result<Option<Class>, MsrError> {
    let f = a.features();
    let gated = |class, on: bool| {
        if on {
            Ok(Some(class))
        } else {
            Err(MsrError::Unknown)
        }
    };
    match msr {
        ix::EFER => Ok(Some(Class::Efer)),
        ix::APIC_BASE => Ok(Some(Class::ApicBase)),
        ix::TSC => Ok(Some(Class::Tsc)),
        ix::TSC_ADJUST => gated(Class::TscAdjust, f.tsc_adjust),
        ix::TSC_DEADLINE => gated(Class::TscDeadline, f.tsc_deadline),
        ix::X2APIC_FIRST..=ix::X2APIC_LAST => gated(Class::X2apic, f.x2apic),
        ix::SYSENTER_CS
        | ix::SYSENTER_ESP
        | ix::SYSENTER_EIP
        | ix::PAT
        | ix::DEBUGCTL
        | ix::STAR
        | ix::LSTAR
        | ix::CSTAR
        | ix::FMASK
        | ix::FS_BASE
        | ix::GS_BASE
        | ix::KERNEL_GS_BASE => Ok(Some(Class::Backend)),
        ix::TSC_AUX => gated(Class::Backend, f.rdtscp || f.rdpid),
        ix::SPEC_CTRL => gated(Class::Backend, f.spec_ctrl != 0),
        ix::PRED_CMD => gated(Class::PredictionBarrier, f.pred_cmd != 0),
        ix::KVM_WALL_CLOCK | ix::KVM_SYSTEM_TIME | ix::KVM_FIRST..=ix::KVM_MIGRATION_CONTROL => {
            gated(Class::Paravirt, a.paravirt(msr))
        }
        _ => Ok(None),
    }
}

/// Checks a value for an MSR that lives elsewhere; returns what the hardware or the keeper may take.
fn validate(msr: u32, value: u64, a: &Access<'_>) -> Result<u64, MsrError> {
    let f = a.features();
    let width = a.host.linear_width().max(a.guest.linear_width());
    let ok = |good: bool| {
        if good {
            Ok(value)
        } else {
            Err(MsrError::Invalid)
        }
    };
    match msr {
        ix::LSTAR | ix::CSTAR | ix::FS_BASE | ix::GS_BASE | ix::KERNEL_GS_BASE => {
            ok(is_canonical(value, width))
        }
        // AMD does not check these, having no 64-bit SYSENTER; Intel's VM entry does.
        ix::SYSENTER_ESP | ix::SYSENTER_EIP if a.amd() => Ok(sign_extend(value, width)),
        ix::SYSENTER_ESP | ix::SYSENTER_EIP => ok(is_canonical(value, width)),
        ix::SYSENTER_CS | ix::FMASK => Ok(value & 0xffff_ffff),
        ix::TSC_AUX if a.amd() => Ok(value & 0xffff_ffff),
        ix::TSC_AUX => ok(value >> 32 == 0),
        ix::PAT => ok(pat_valid(value)),
        // LBR and BTF; the rest needs facilities that are hidden.
        ix::DEBUGCTL => ok(value & !3 == 0),
        ix::SPEC_CTRL => ok(value & !f.spec_ctrl == 0),
        ix::PRED_CMD => ok(value & !f.pred_cmd == 0),
        _ => Ok(value),
    }
}

/// Memory types that an MTRR may hold: UC, WC, WT, WP, WB (SDM 3A table 12-8).
const fn mtrr_type_valid(t: u8) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6)
}

/// Whether every entry of a PAT is UC, WC, WT, WP, WB or UC- (SDM 3A 12.12.2).
pub const fn pat_valid(pat: u64) -> bool {
    // Bits 7:3 of each byte are reserved; types 2 and 3 (bit 1 set, bit 2 clear) too.
    pat & 0xf8f8_f8f8_f8f8_f8f8 == 0
        && (pat & 0x0202_0202_0202_0202) & !((pat & 0x0404_0404_0404_0404) >> 1) == 0
}

/// MSRs that are always listed.
const LISTED: [u32; 20] = [
    ix::TSC,
    ix::SYSENTER_CS,
    ix::SYSENTER_ESP,
    ix::SYSENTER_EIP,
    ix::STAR,
    ix::LSTAR,
    ix::CSTAR,
    ix::FMASK,
    ix::KERNEL_GS_BASE,
    ix::PAT,
    ix::DEBUGCTL,
    ix::MISC_ENABLE,
    ix::MCG_STATUS,
    ix::MCG_CTL,
    ix::UCODE_REV,
    ix::PLATFORM_INFO,
    ix::MISC_FEATURES_ENABLES,
    ix::POWER_CTL,
    ix::MTRR_DEF_TYPE,
    ix::HWCR,
];

/// MSRs that say what there is, as CPUID does: for KVM_GET_MSR_FEATURE_INDEX_LIST and KVM_GET_MSRS on the device, which give what a
/// fresh vCPU has.
pub fn feature_list(host: &GuestFeatures) -> &'static [u32] {
    match host.vendor {
        Vendor::Amd => &[
            ix::DE_CFG,
            ix::UCODE_REV,
            ix::ARCH_CAPABILITIES,
            ix::PERF_CAPABILITIES,
            ix::PLATFORM_INFO,
        ],
        Vendor::Intel => &[
            ix::UCODE_REV,
            ix::ARCH_CAPABILITIES,
            ix::PERF_CAPABILITIES,
            ix::PLATFORM_INFO,
        ],
    }
}

/// Fills `out` for KVM_GET_MSR_INDEX_LIST: MSRs that user space can read and write back on this host (`host`: what the hypervisor
/// carries). Clients take a listed MSR for a promise, so nothing else is listed.
///
/// # Errors
///
/// The number of indices when `out` is too short (E2BIG).
pub fn index_list(host: &GuestFeatures, out: &mut [u32]) -> Result<usize, usize> {
    let mut count = 0usize;
    let room = out.len();
    let mut put = |msr: u32| {
        if let Some(slot) = out.get_mut(count) {
            *slot = msr;
        }
        count = count.saturating_add(1);
    };
    for msr in LISTED {
        put(msr);
    }
    for msr in ix::MTRR_PHYS_BASE0..=ix::MTRR_PHYS_LAST {
        put(msr);
    }
    put(ix::MTRR_FIX64K_00000);
    put(ix::MTRR_FIX16K_80000);
    put(ix::MTRR_FIX16K_A0000);
    for msr in ix::MTRR_FIX4K_C0000..=ix::MTRR_FIX4K_F8000 {
        put(msr);
    }
    for (msr, on) in [
        (ix::TSC_ADJUST, host.tsc_adjust),
        (ix::TSC_DEADLINE, host.tsc_deadline),
        (ix::TSC_AUX, host.rdtscp || host.rdpid),
        (ix::SPEC_CTRL, host.spec_ctrl != 0),
        (ix::ARCH_CAPABILITIES, host.arch_capabilities),
        (ix::XSS, host.xsaves),
        (ix::FEATURE_CONTROL, host.vendor == Vendor::Intel),
    ] {
        if on {
            put(msr);
        }
    }
    let a = Access {
        guest: host,
        host,
        host_initiated: true,
        xss_allowed: 0,
        enforce_pv: false,
    };
    for msr in [ix::KVM_WALL_CLOCK, ix::KVM_SYSTEM_TIME]
        .into_iter()
        .chain(ix::KVM_FIRST..=ix::KVM_MIGRATION_CONTROL)
    {
        if a.paravirt(msr) {
            put(msr);
        }
    }
    if count > room {
        Err(count)
    } else {
        Ok(count)
    }
}
