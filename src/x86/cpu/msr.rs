// SPDX-License-Identifier: GPL-2.0
//! Model-specific registers: which exist for a guest, where each lives, what may be written
//! (SDM 4, APM 2 appendix A, api.rst 4.3 KVM_GET_MSR_INDEX_LIST and 4.18 KVM_SET_MSRS).
//!
//! An MSR is one row of the table below, besides its number in [`ix`]. What has no row does not exist: the guest gets
//! #GP, user space's GET/SET stops there. MSRs with a home elsewhere (local APIC, TSC, the vendor's control structure)
//! are validated here and delegated by [`Class`]. The vCPU's thread calls [`MsrFile::get`] and [`MsrFile::set`] for
//! RDMSR, WRMSR, KVM_GET_MSRS and KVM_SET_MSRS.
#![forbid(unsafe_code)]

use crate::nospec::Nospec;
use crate::x86::cpu::canonical::{is_canonical, sign_extend};
use crate::x86::cpu::cpuid::kvm_feature::*;
use crate::x86::cpu::cpuid::{GuestFeatures, Vendor};
use crate::x86::cpu::index as ix;
use crate::x86::cpu::masks::bits;
use crate::x86::cpu::mce::{Mce, MCE_BANKS};

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

    /// Whether the paravirtual feature `bit` is offered.
    fn offers(&self, bit: u32) -> bool {
        let has = |f: &GuestFeatures| f.kvm_features & bit != 0;
        has(self.host) && (!self.enforce_pv || has(self.guest))
    }

    /// Width that base addresses are checked against.
    fn linear_width(&self) -> u8 {
        self.host.linear_width().max(self.guest.linear_width())
    }

    /// Only user space may write it.
    fn by_host(&self, value: u64) -> Result<u64, MsrError> {
        ok(self.host_initiated, value)
    }

    /// A base address.
    fn canonical(&self, value: u64) -> Result<u64, MsrError> {
        ok(is_canonical(value, self.linear_width()), value)
    }

    /// SYSENTER's addresses: AMD does not check them, having no 64-bit SYSENTER; Intel's VM entry does.
    fn sysenter(&self, value: u64) -> Result<u64, MsrError> {
        if self.amd() {
            Ok(sign_extend(value, self.linear_width()))
        } else {
            self.canonical(value)
        }
    }

    /// A variable-range MTRR: bases have even numbers, masks odd ones (SDM 3A 12.11.2.3).
    #[cold]
    fn mtrr_variable(&self, msr: u32, value: u64) -> Result<u64, MsrError> {
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
    const fn de_cfg(&self) -> u64 {
        if self.lfence_serializing {
            DE_CFG_LFENCE
        } else {
            0
        }
    }

    /// KVM's values: no guest takes the revision of a hypervisor seriously.
    const fn ucode_rev(&self) -> u64 {
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
        /// They state a fact or a control that a guest can use. Hidden: TSX_CTRL, MISC_PACKAGE_CTLS, energy filtering,
        /// DOITM, MCU control, overclocking, xAPIC disable (their MSRs are not virtualised).
        ALLOWED {
            RDCL_NO = 0;
            IBRS_ALL = 1;
            RSBA = 2;
            SKIP_L1DFL_VMENTRY = 3;
            SSB_NO = 4;
            MDS_NO = 5;
            IF_PSCHANGE_MC_NO = 6;
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

/// IA32_MTRRCAP: 8 variable ranges, fixed ranges, write-combining.
pub const MTRR_CAP_VALUE: u64 = 0x508;
const MTRR_FIXED: usize = 11;
const MTRR_VARIABLE: usize = 16;

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

/// MSRs that are plain storage of a vCPU. Those that the table names have its comments.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct MsrFile {
    pub misc_enable: u64,
    feature_control: u64,
    pub ucode_rev: u64,
    pub platform_info: u64,
    misc_features: u64,
    power_ctl: u64,
    pub arch_capabilities: u64,
    mtrr_def_type: u64,
    mtrr_fixed: [u64; MTRR_FIXED],
    /// Base, mask, base, mask …
    mtrr_variable: [u64; MTRR_VARIABLE],
    pub mce: Mce,
    hwcr: u64,
    pub de_cfg: u64,
    /// DE_CFG bits that may be set.
    de_cfg_allowed: u64,
    osvw_id_length: u64,
    osvw_status: u64,
}

impl MsrFile {
    /// What the table's power-up values are written into.
    const ZERO: Self = Self {
        misc_enable: 0,
        feature_control: 0,
        ucode_rev: 0,
        platform_info: 0,
        misc_features: 0,
        power_ctl: 0,
        arch_capabilities: 0,
        mtrr_def_type: 0,
        mtrr_fixed: [0; MTRR_FIXED],
        mtrr_variable: [0; MTRR_VARIABLE],
        mce: Mce::ZERO,
        hwcr: 0,
        de_cfg: 0,
        de_cfg_allowed: 0,
        osvw_id_length: 0,
        osvw_status: 0,
    };

    /// CPUID faults above CPL 0 (CPUID faulting, SDM 3B 2.8 "MISC_FEATURES_ENABLES").
    #[inline]
    pub const fn cpuid_faults(&self) -> bool {
        self.misc_features & 1 != 0
    }

    /// IA32_MISC_ENABLE.MWAIT.
    pub const fn mwait(&self) -> bool {
        self.misc_enable & MISC_MWAIT != 0
    }

    /// MSR_MISC_FEATURES_ENABLES bits that may be set.
    const fn misc_features_allowed(&self) -> u64 {
        (self.platform_info & PLATFORM_CPUID_FAULT != 0) as u64
    }

    /// MSR_PLATFORM_INFO after a write of `value`: CPUID faulting cannot go while it is in use.
    fn platform_info_write(&self, value: u64, a: &Access<'_>) -> Result<u64, MsrError> {
        let kept = value & PLATFORM_CPUID_FAULT != 0 || !self.cpuid_faults();
        ok(a.host_initiated && kept, value)
    }

    /// The microcode revision after a write of `value`. A guest's write of 0 asks CPUID(1) to load the revision:
    /// nothing to load.
    fn ucode_rev_write(&self, value: u64, a: &Access<'_>) -> Result<u64, MsrError> {
        Ok(if a.host_initiated {
            value
        } else {
            self.ucode_rev
        })
    }

    /// IA32_MISC_ENABLE after a write of `value`.
    fn misc_enable_write(&self, value: u64, a: &Access<'_>) -> Result<u64, MsrError> {
        if a.host_initiated {
            return Ok(value);
        }
        ok(
            (self.misc_enable ^ value) & MISC_BTS_PEBS_UNAVAILABLE == 0,
            value & !MISC_IGNORED | self.misc_enable & MISC_IGNORED,
        )
    }

    /// A machine-check bank's register after a write of `value`.
    #[cold]
    fn bank_write(&self, msr: u32, value: u64, a: &Access<'_>) -> Result<u64, MsrError> {
        let status_write = self.hwcr & HWCR_MC_STATUS_WR_EN != 0;
        ok(
            a.host_initiated || Mce::writable(msr, value, a.amd(), status_write),
            value,
        )
    }
}

/// `value`, if it may be written.
const fn ok(good: bool, value: u64) -> Result<u64, MsrError> {
    if good {
        Ok(value)
    } else {
        Err(MsrError::Invalid)
    }
}

/// `value`, if all its bits are among `allowed`.
const fn only(value: u64, allowed: u64) -> Result<u64, MsrError> {
    ok(value & !allowed == 0, value)
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

/// A fixed-range MTRR: eight memory types.
#[cold]
fn mtrr_fixed(value: u64) -> Result<u64, MsrError> {
    ok(value.to_le_bytes().into_iter().all(mtrr_type_valid), value)
}

/// Whether KVM_GET_MSR_INDEX_LIST and KVM_GET_MSR_FEATURE_INDEX_LIST name an MSR.
#[derive(Clone, Copy)]
enum Listed {
    /// Neither list names it.
    No,
    /// The first, where the host has it.
    Index,
    /// The first, on Intel.
    IndexIntel,
    /// The second.
    Feature,
    /// The second, on AMD.
    FeatureAmd,
    /// Both.
    Both,
}

impl Listed {
    const fn is_feature(self, amd: bool) -> bool {
        matches!(self, Self::Feature | Self::Both) || amd && matches!(self, Self::FeatureAmd)
    }

    const fn in_index(self, vendor: Vendor) -> bool {
        match self {
            Self::Index | Self::Both => true,
            Self::IndexIntel => matches!(vendor, Vendor::Intel),
            Self::No | Self::Feature | Self::FeatureAmd => false,
        }
    }
}

/// Numbers of a row, and which lists name them.
struct Row {
    first: u32,
    last: u32,
    listed: Listed,
}

/// What a row's MSR reads as.
macro_rules! read {
    ($s:ident, keeper($class:ident)) => { Ok(Read::Delegate(Class::$class)) };
    ($s:ident, command($class:ident)) => { Err(MsrError::Invalid) };
    ($s:ident, constant($value:expr)) => { Ok(Read::Value($value)) };
    ($s:ident, discarded()) => { Err(MsrError::Unknown) };
    ($s:ident, file($($field:ident).+ [$i:expr])) => {
        $s.$($field).+.get_nospec(($i) as usize).map_or(Err(MsrError::Unknown), |v| Ok(Read::Value(*v)))
    };
    ($s:ident, file($($field:ident).+ $(= $reset:expr)?)) => { Ok(Read::Value($s.$($field).+)) };
}

/// Puts a checked value where a row's MSR is.
macro_rules! store {
    ($s:ident, $v:expr, keeper($class:ident)) => { Ok(Written::Delegate(Class::$class, $v)) };
    ($s:ident, $v:expr, command($class:ident)) => { Ok(Written::Delegate(Class::$class, $v)) };
    ($s:ident, $v:expr, constant($value:expr)) => {{ let _: u64 = $v; Ok(Written::Stored) }};
    ($s:ident, $v:expr, discarded()) => {{ let _: u64 = $v; Ok(Written::Stored) }};
    ($s:ident, $v:expr, file($($field:ident).+ [$i:expr])) => {{
        let value = $v;
        *$s.$($field).+.get_nospec_mut(($i) as usize).ok_or(MsrError::Unknown)? = value;
        Ok(Written::Stored)
    }};
    ($s:ident, $v:expr, file($($field:ident).+ $(= $reset:expr)?)) => {{ $s.$($field).+ = $v; Ok(Written::Stored) }};
}

/// Gives a row's MSR its power-up value, if that is not zero.
macro_rules! power_up {
    ($file:ident, file($($field:ident).+ = $reset:expr)) => { $file.$($field).+ = $reset; };
    ($file:ident, $home:ident($($place:tt)*)) => {};
}

/// Makes the table's rows into one `match` for reads, one for writes, the power-up values, and the lists.
macro_rules! msrs {
    (($s:ident, $a:ident, $f:ident, $msr:ident, $v:ident, $c:ident)
     $($first:ident $(..= $last:ident)? $(| $more:ident)* if $exists:expr
       => $home:ident $place:tt, $write:expr, $listed:ident;)*) => {
        impl MsrFile {
            /// The MSRs at power-up. INIT leaves all of these alone (SDM 3A table 11-1).
            pub fn new($c: &Config) -> Self {
                let mut file = Self { de_cfg_allowed: $c.de_cfg(), ..Self::ZERO };
                $(power_up!(file, $home $place);)*
                file
            }

            /// Reads `msr`.
            ///
            /// # Errors
            ///
            /// See [`MsrError`].
            pub fn get(&$s, $msr: u32, $a: &Access<'_>) -> Result<Read, MsrError> {
                let $f = $a.features();
                match $msr {
                    $(ix::$first $(..= ix::$last)? $(| ix::$more)* => {
                        if $exists { read!($s, $home $place) } else { Err(MsrError::Unknown) }
                    })*
                    _ => Err(MsrError::Unknown),
                }
            }

            /// Writes `msr`. Nothing changes on failure.
            ///
            /// # Errors
            ///
            /// See [`MsrError`].
            pub fn set(&mut $s, $msr: u32, $v: u64, $a: &Access<'_>) -> Result<Written, MsrError> {
                let $f = $a.features();
                match $msr {
                    $(ix::$first $(..= ix::$last)? $(| ix::$more)* => {
                        if $exists { store!($s, $write?, $home $place) } else { Err(MsrError::Unknown) }
                    })*
                    _ => Err(MsrError::Unknown),
                }
            }
        }

        static ROWS: &[Row] = &[
            $(msrs!(@row $listed, $first $(..= $last)?), $(msrs!(@row $listed, $more),)*)*
        ];
    };
    (@row $listed:ident, $msr:ident) => { msrs!(@row $listed, $msr ..= $msr) };
    (@row $listed:ident, $first:ident ..= $last:ident) => {
        Row { first: ix::$first, last: ix::$last, listed: Listed::$listed }
    };
}

// A row has the MSR or MSRs; who has it; where it is kept; what a write of `v` leaves there, or an error; which lists
// name it. `a` is the access, `f` the features that govern it, `c` the configuration at power-up.
//
// An MSR is kept by a `keeper` elsewhere, is in the `file` (with a power-up value if that is not zero), or is a
// `constant`. A write of a `command` acts, a read faults. A write of a `discarded` one has no effect, and a read does
// not find it.
#[rustfmt::skip]
msrs! { (self, a, f, msr, v, c)
    // The first range is found first, and these are written most.
    X2APIC_FIRST..=X2APIC_LAST if f.x2apic          => keeper(X2apic), Ok(v), No;

    // Guests read these without a fault handler; zero says "nothing here".
    P5_MC_ADDR | P5_MC_TYPE | PLATFORM_ID | EBL_CR_POWERON if true => constant(0), only(v, 0), No;
    TSC                     if true                 => keeper(Tsc), Ok(v), Index;
    KVM_WALL_CLOCK          if a.offers(CLOCKSOURCE) => keeper(Paravirt), Ok(v), Index;
    KVM_SYSTEM_TIME         if a.offers(CLOCKSOURCE) => keeper(Paravirt), Ok(v), Index;
    APIC_BASE               if true                 => keeper(ApicBase), Ok(v), No;
    // Firmware has decided: locked with VMX off.
    FEATURE_CONTROL         if true                 => file(feature_control = 1), a.by_host(v), IndexIntel;
    TSC_ADJUST              if f.tsc_adjust         => keeper(TscAdjust), Ok(v), Index;
    SPEC_CTRL               if f.spec_ctrl != 0     => keeper(Backend), only(v, f.spec_ctrl), Index;
    PRED_CMD                if f.pred_cmd != 0      => command(PredictionBarrier), only(v, f.pred_cmd), No;
    // Microcode updates are the host's business.
    UCODE_WRITE             if true                 => discarded(), Ok(v), No;
    UCODE_REV               if true                 => file(ucode_rev = c.ucode_rev()),
                                                       self.ucode_rev_write(v, a), Both;
    // P6 and, below, K7 had counters and selectors without a CPUID leaf for them: there is no PMU, so they read as
    // zero and writes are ignored, as in KVM.
    P6_PERFCTR0..=P6_PERFCTR1 if true               => constant(0), Ok(v), No;
    PLATFORM_INFO           if true                 => file(platform_info = c.platform_info),
                                                       self.platform_info_write(v, a), Both;
    // User space may write back what it read.
    MTRR_CAP                if true                 => constant(MTRR_CAP_VALUE),
                                                       ok(a.host_initiated && v == MTRR_CAP_VALUE, v), No;
    ARCH_CAPABILITIES       if f.arch_capabilities
                            => file(arch_capabilities = c.arch_capabilities & arch_capabilities::ALLOWED),
                               ok(a.host_initiated && v & !arch_capabilities::ALLOWED == 0, v), Both;
    MISC_FEATURES_ENABLES   if true                 => file(misc_features),
                                                       only(v, self.misc_features_allowed()), Index;
    SYSENTER_CS             if true                 => keeper(Backend), Ok(v & 0xffff_ffff), Index;
    SYSENTER_ESP            if true                 => keeper(Backend), a.sysenter(v), Index;
    SYSENTER_EIP            if true                 => keeper(Backend), a.sysenter(v), Index;
    MCG_CAP                 if true                 => file(mce.cap = MCE_BANKS as u64), Err(MsrError::Invalid), No;
    // RIPV, EIPV, MCIP and LMCE_S exist.
    MCG_STATUS              if true                 => file(mce.status), ok(a.host_initiated || v <= 0xf, v), Index;
    MCG_CTL                 if a.host_initiated || self.mce.has_ctl()
                                                    => file(mce.ctl), ok(v == 0 || v == u64::MAX, v), Index;
    P6_EVNTSEL0..=P6_EVNTSEL1 if true               => constant(0), Ok(v), No;
    // The value is KVM's; firmware, or whoever takes its place, allows fast strings.
    MISC_ENABLE             if true                 => file(misc_enable = MISC_BTS_PEBS_UNAVAILABLE),
                                                       self.misc_enable_write(v, a), Index;
    // LBR and BTF may be written without effect, as in KVM: branch records and branch steps are the host's. The rest
    // needs facilities that are hidden.
    DEBUGCTL                if true                 => constant(0), only(v, 3), Index;
    // The value is kept and has no effect.
    POWER_CTL               if true                 => file(power_ctl), Ok(v), Index;
    MTRR_PHYS_BASE0..=MTRR_PHYS_LAST if true        => file(mtrr_variable[msr - ix::MTRR_PHYS_BASE0]),
                                                       a.mtrr_variable(msr, v), Index;
    MTRR_FIX64K_00000       if true                 => file(mtrr_fixed[0]), mtrr_fixed(v), Index;
    MTRR_FIX16K_80000       if true                 => file(mtrr_fixed[1]), mtrr_fixed(v), Index;
    MTRR_FIX16K_A0000       if true                 => file(mtrr_fixed[2]), mtrr_fixed(v), Index;
    MTRR_FIX4K_C0000..=MTRR_FIX4K_F8000 if true     => file(mtrr_fixed[3 + (msr - ix::MTRR_FIX4K_C0000)]),
                                                       mtrr_fixed(v), Index;
    PAT                     if true                 => keeper(Backend), ok(pat_valid(v), v), Index;
    MTRR_DEF_TYPE           if true                 => file(mtrr_def_type),
                                                       ok(v & !0xcff == 0 && mtrr_type_valid(v as u8), v), Index;
    // User space may ask for it; no vCPU has a PMU.
    PERF_CAPABILITIES       if false                => constant(0), only(v, 0), Feature;
    MC0_CTL..=MC31_MISC     if self.mce.has(msr)    => file(mce.banks[msr - ix::MC0_CTL]),
                                                       self.bank_write(msr, v, a), No;
    TSC_DEADLINE            if f.tsc_deadline       => keeper(TscDeadline), Ok(v), Index;
    // No state of XSAVES is offered.
    XSS                     if f.xsaves             => constant(0), only(v, 0), Index;

    KVM_WALL_CLOCK_NEW      if a.offers(CLOCKSOURCE2) => keeper(Paravirt), Ok(v), Index;
    KVM_SYSTEM_TIME_NEW     if a.offers(CLOCKSOURCE2) => keeper(Paravirt), Ok(v), Index;
    KVM_ASYNC_PF_EN         if a.offers(ASYNC_PF)   => keeper(Paravirt), Ok(v), Index;
    KVM_STEAL_TIME          if a.offers(STEAL_TIME) => keeper(Paravirt), Ok(v), Index;
    KVM_PV_EOI_EN           if a.offers(PV_EOI)     => keeper(Paravirt), Ok(v), Index;
    KVM_POLL_CONTROL        if a.offers(POLL_CONTROL) => keeper(Paravirt), Ok(v), Index;
    KVM_ASYNC_PF_INT        if a.offers(ASYNC_PF_INT) => keeper(Paravirt), Ok(v), Index;
    KVM_ASYNC_PF_ACK        if a.offers(ASYNC_PF_INT) => keeper(Paravirt), Ok(v), Index;
    KVM_MIGRATION_CONTROL   if a.offers(MIGRATION_CONTROL) => keeper(Paravirt), Ok(v), Index;

    EFER                    if true                 => keeper(Efer), Ok(v), No;
    STAR                    if true                 => keeper(Backend), Ok(v), Index;
    LSTAR                   if true                 => keeper(Backend), a.canonical(v), Index;
    CSTAR                   if true                 => keeper(Backend), a.canonical(v), Index;
    FMASK                   if true                 => keeper(Backend), Ok(v & 0xffff_ffff), Index;
    FS_BASE                 if true                 => keeper(Backend), a.canonical(v), No;
    GS_BASE                 if true                 => keeper(Backend), a.canonical(v), No;
    KERNEL_GS_BASE          if true                 => keeper(Backend), a.canonical(v), Index;
    TSC_AUX                 if f.rdtscp || f.rdpid  => keeper(Backend),
                                                       ok(a.amd() || v >> 32 == 0, v & 0xffff_ffff), Index;

    K7_EVNTSEL0..=K7_PERFCTR3 if true               => constant(0), Ok(v), No;
    // KVM has it for both vendors.
    HWCR                    if true                 => file(hwcr),
                                                       only(v, HWCR_KEPT | HWCR_IGNORED).map(|v| v & HWCR_KEPT), Index;
    PATCH_LOADER            if a.amd()              => discarded(), Ok(v), No;
    // LOCK and SVMDIS cannot change, the rest is zero.
    VM_CR                   if a.amd()              => constant(VM_CR_DISABLED), ok(v == VM_CR_DISABLED, v), No;
    // Errata 0 to 3 are known and fixed.
    OSVW_ID_LENGTH          if a.amd() && f.osvw    => file(osvw_id_length = 4), a.by_host(v), No;
    OSVW_STATUS             if a.amd() && f.osvw    => file(osvw_status), a.by_host(v), No;
    DE_CFG                  if a.amd()              => file(de_cfg = c.de_cfg()),
                                                       only(v, self.de_cfg_allowed), FeatureAmd;
    // These configure system, northbridge and P-states of a machine that has none of it.
    SYSCFG | NB_CFG | INT_PENDING_MSG | MMIO_CONF_BASE | TSEG_ADDR | TSEG_MASK | VM_HSAVE_PA | DC_CFG | TW_CFG
        | BU_CFG2 | EX_CFG  if a.amd()              => constant(0), only(v, 0), No;
    PSTATE_LIMIT..=PSTATE7  if a.amd()              => constant(0), only(v, 0), No;
}

/// Number of MSRs that tell features.
const fn features_count(amd: bool) -> usize {
    let (mut i, mut n) = (0, 0);
    while i < ROWS.len() {
        n += ROWS[i].listed.is_feature(amd) as usize;
        i += 1;
    }
    n
}

/// The MSRs that tell features.
const fn features<const N: usize>(amd: bool) -> [u32; N] {
    let mut out = [0; N];
    let (mut i, mut n) = (0, 0);
    while i < ROWS.len() {
        if ROWS[i].listed.is_feature(amd) {
            out[n] = ROWS[i].first;
            n += 1;
        }
        i += 1;
    }
    out
}

/// MSRs that say what there is, as CPUID does: for KVM_GET_MSR_FEATURE_INDEX_LIST and KVM_GET_MSRS on the device,
/// which give what a fresh vCPU has.
pub fn feature_list(host: &GuestFeatures) -> &'static [u32] {
    const INTEL: [u32; features_count(false)] = features(false);
    const AMD: [u32; features_count(true)] = features(true);
    match host.vendor {
        Vendor::Intel => &INTEL,
        Vendor::Amd => &AMD,
    }
}

/// Fills `out` for KVM_GET_MSR_INDEX_LIST: MSRs that user space can read and write back on this host (`host`: what
/// the hypervisor carries). Clients take a listed MSR for a promise, so nothing else is listed.
///
/// # Errors
///
/// The number of indices when `out` is too short (E2BIG).
pub fn index_list(host: &GuestFeatures, out: &mut [u32]) -> Result<usize, usize> {
    let a = Access {
        guest: host,
        host,
        host_initiated: true,
        enforce_pv: false,
    };
    let mut count = 0usize;
    for row in ROWS.iter().filter(|r| r.listed.in_index(host.vendor)) {
        for msr in row.first..=row.last {
            if MsrFile::ZERO.get(msr, &a) == Err(MsrError::Unknown) {
                continue;
            }
            if let Some(slot) = out.get_mut(count) {
                *slot = msr;
            }
            count = count.saturating_add(1);
        }
    }
    if count > out.len() {
        Err(count)
    } else {
        Ok(count)
    }
}
