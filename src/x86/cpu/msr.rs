// SPDX-License-Identifier: GPL-2.0
//! Model-specific registers: which exist for a guest, where each lives, what may be written
//! (SDM 4, APM 2 appendix A, api.rst 4.3 KVM_GET_MSR_INDEX_LIST and 4.18 KVM_SET_MSRS).
//!
//! An MSR is one row of the table below, besides its number in [`ix`]. What has no row does not exist: the guest gets
//! #GP, user space's GET/SET stops there. MSRs with a home elsewhere (local APIC, TSC, the vendor's control structure)
//! are validated here and delegated by [`Class`]. The vCPU's thread calls [`MsrFile::get`] and [`MsrFile::set`] for
//! RDMSR, WRMSR, KVM_GET_MSRS and KVM_SET_MSRS.
#![forbid(unsafe_code)]

mod access;

pub use access::*;

use crate::nospec::Nospec;
use crate::x86::cpu::cpuid::kvm_feature::*;
use crate::x86::cpu::cpuid::{GuestFeatures, Vendor};
use crate::x86::cpu::index as ix;
use crate::x86::cpu::mce::{Mce, MCE_BANKS};

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

/// HWCR\[35\], CpuidUserDis: CPUID faults above CPL 0.
const HWCR_CPUID_USER_DIS: u64 = 1 << 35;

/// VM_CR bits that may be written; the last two, LOCK and SVMDIS, stay once SVMDIS is set (APM 2 15.30.1).
const VM_CR_VALID: u64 = 0x1f;
const VM_CR_LOCK: u64 = 1 << 3;
const VM_CR_SVMDIS: u64 = 1 << 4;

/// IA32_FEATURE_CONTROL: LOCK, and what user space may set besides: VMX inside and outside SMX, SGX and its launch
/// control, LMCE. The last alone is in guests.
const FEATURE_LOCK: u64 = 1 << 0;
const FEATURE_VALID: u64 = 0x16_0007;
const FEATURE_LMCE: u64 = 1 << 20;

/// VIRT_SPEC_CTRL.SSBD.
const VIRT_SSBD: u64 = 1 << 2;
/// TSC_RATIO: no scaling.
const TSC_RATIO_ONE: u64 = 1 << 32;
/// Where SMM starts at power-up (SDM 3C 32.4).
const SMBASE_RESET: u64 = 0x3_0000;
/// BBL_CR_CTL3: an L2 cache of 256 KiB, configured and enabled, as KVM gives it.
const BBL_CR_CTL3_VALUE: u64 = 0xbe70_2111;
/// IA32_PERF_STATUS: a multiplier of 4, as KVM gives it.
const PERF_STATUS_VALUE: u64 = 4 << 40 | 1000;
/// K7's clock control: the ramp-up count, as KVM gives it.
const K7_CLK_CTL_VALUE: u64 = 0x2000_0000;

/// A write of a register that has none.
const READ_ONLY: Result<u64, MsrError> = Err(MsrError::Unknown);

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
    pub smbase: u64,
    pub smi_count: u64,
    mcg_ext_ctl: u64,
    umwait_control: u64,
    tsx_ctrl: u64,
    /// The host has TSX_CTRL.
    has_tsx_ctrl: bool,
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
    vm_cr: u64,
    vm_hsave_pa: u64,
    virt_spec_ctrl: u64,
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
        smbase: 0,
        smi_count: 0,
        mcg_ext_ctl: 0,
        umwait_control: 0,
        tsx_ctrl: 0,
        has_tsx_ctrl: false,
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
        vm_cr: 0,
        vm_hsave_pa: 0,
        virt_spec_ctrl: 0,
    };

    /// CPUID faults above CPL 0 (CPUID faulting, SDM 3B 2.8 "MISC_FEATURES_ENABLES"; AMD's CpuidUserDis).
    #[inline]
    pub const fn cpuid_faults(&self) -> bool {
        self.misc_features & 1 != 0 || self.hwcr & HWCR_CPUID_USER_DIS != 0
    }

    /// IA32_MISC_ENABLE.MWAIT.
    pub const fn mwait(&self) -> bool {
        self.misc_enable & MISC_MWAIT != 0
    }

    /// MSR_MISC_FEATURES_ENABLES bits that may be set.
    const fn misc_features_allowed(&self) -> u64 {
        (self.platform_info & PLATFORM_CPUID_FAULT != 0) as u64
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
        let any_status = a.host_initiated || a.amd_guest() && self.hwcr & HWCR_MC_STATUS_WR_EN != 0;
        ok(
            self.mce.has(msr) && Mce::writable(msr, value, any_status),
            value,
        )
    }

    /// IA32_MCG_CTL after a write of `value`. User space may write 0 where there is none.
    fn mcg_ctl_write(&self, value: u64, a: &Access<'_>) -> Result<u64, MsrError> {
        let there = self.mce.has_ctl() || a.host_initiated && value == 0;
        ok(there && (value == 0 || value == u64::MAX), value)
    }

    /// IA32_FEATURE_CONTROL after a write of `value`: firmware locks it, with nothing on but LMCE where that is told.
    fn feature_control_write(&self, value: u64, a: &Access<'_>) -> Result<u64, MsrError> {
        if a.host_initiated {
            return only(value, FEATURE_VALID);
        }
        let valid = if self.mce.has_lmce() {
            FEATURE_LOCK | FEATURE_LMCE
        } else {
            FEATURE_LOCK
        };
        ok(
            self.feature_control & FEATURE_LOCK == 0 && value & !valid == 0,
            value,
        )
    }

    /// Local machine checks are on: user space sends them to one vCPU, or to all.
    const fn lmce(&self) -> bool {
        self.feature_control & FEATURE_LMCE != 0
    }

    /// The guest is told of IA32_TSX_CTRL.
    const fn tsx_ctrl_told(&self) -> bool {
        self.arch_capabilities & arch_capabilities::TSX_CTRL != 0
    }

    /// HWCR after a write of `value`.
    fn hwcr_write(value: u64, a: &Access<'_>) -> Result<u64, MsrError> {
        let user_dis = if a.guest.gp_on_user_cpuid {
            HWCR_CPUID_USER_DIS
        } else {
            0
        };
        only(value & !HWCR_IGNORED, HWCR_KEPT | user_dis)
    }

    /// VM_CR after a write of `value`.
    fn vm_cr_write(&self, value: u64) -> Result<u64, MsrError> {
        let kept = if self.vm_cr & VM_CR_SVMDIS != 0 {
            self.vm_cr & (VM_CR_LOCK | VM_CR_SVMDIS)
        } else {
            0
        };
        let new = if kept != 0 {
            value & !(VM_CR_LOCK | VM_CR_SVMDIS) | kept
        } else {
            value
        };
        ok(value & !VM_CR_VALID == 0, new)
    }

    /// VM_HSAVE_PA after a write of `value`; on Intel it stays 0.
    fn vm_hsave_pa_write(value: u64, a: &Access<'_>) -> Result<u64, MsrError> {
        if !a.svm() {
            return Ok(0);
        }
        let page = value & (0xfff | a.guest.reserved_phys_bits()) == 0;
        ok(a.host_initiated || page, value & !0xfff)
    }

    /// F15H_IC_CFG: models 2 to 1FH of family 15H have had their way prediction switched off.
    const fn ic_cfg(signature: u32) -> u64 {
        let family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
        let model = signature >> 4 & 0xf | signature >> 12 & 0xf0;
        if signature >> 8 & 0xf == 0xf && family == 0x15 && model >= 2 && model < 0x20 {
            0x1e
        } else {
            0
        }
    }
}

/// Whether KVM_GET_MSR_INDEX_LIST and KVM_GET_MSR_FEATURE_INDEX_LIST name an MSR.
#[derive(Clone, Copy)]
enum Listed {
    /// Neither list names it.
    No,
    /// The first, where the host has what it belongs to.
    Index,
    /// The first, where this processor has the register.
    Probed,
    /// The second, on AMD.
    FeatureAmd,
    /// Both.
    Both,
}

impl Listed {
    const fn is_feature(self, amd: bool) -> bool {
        matches!(self, Self::Both) || amd && matches!(self, Self::FeatureAmd)
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
    ($s:ident, command($class:ident)) => { Err(MsrError::Unknown) };
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
     $($first:ident $(..= $last:ident)? $(| $more:ident $(..= $more_last:ident)?)*
       if $exists:expr $(, readable $readable:expr)?
       => $home:ident $place:tt, $write:expr, $listed:ident;)*) => {
        impl MsrFile {
            /// The MSRs at power-up. INIT leaves all of these alone (SDM 3A table 11-1).
            pub fn new($c: &Config) -> Self {
                let mut file = Self {
                    de_cfg_allowed: $c.de_cfg(),
                    has_tsx_ctrl: $c.arch_capabilities & arch_capabilities::TSX_CTRL != 0,
                    ..Self::ZERO
                };
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
                    $(ix::$first $(..= ix::$last)? $(| ix::$more $(..= ix::$more_last)?)* => {
                        if !$exists {
                            return Err(MsrError::Unknown);
                        }
                        $(if !$readable {
                            return Err(MsrError::Invalid);
                        })?
                        read!($s, $home $place)
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
                    $(ix::$first $(..= ix::$last)? $(| ix::$more $(..= ix::$more_last)?)* => {
                        if $exists { store!($s, $write?, $home $place) } else { Err(MsrError::Unknown) }
                    })*
                    _ => Err(MsrError::Unknown),
                }
            }
        }

        static ROWS: &[Row] = &[
            $(msrs!(@row $listed, $first $(..= $last)?), $(msrs!(@row $listed, $more $(..= $more_last)?),)*)*
        ];
    };
    (@row $listed:ident, $msr:ident) => { msrs!(@row $listed, $msr ..= $msr) };
    (@row $listed:ident, $first:ident ..= $last:ident) => {
        Row { first: ix::$first, last: ix::$last, listed: Listed::$listed }
    };
}

// A row has the MSR or MSRs; who has it; who may read it, if not everybody who has it; where it is kept; what a write
// of `v` leaves there, or an error; which lists name it. `a` is the access, `f` the features that govern it, `c` the
// configuration at power-up.
//
// An MSR is kept by a `keeper` elsewhere, is in the `file` (with a power-up value if that is not zero), or is a
// `constant`. A write of a `command` acts, a read faults. A write of a `discarded` one has no effect, and a read does
// not find it. What one vendor's guests have, KVM gives all, if its host is that vendor's: so here.
#[rustfmt::skip]
msrs! { (self, a, f, msr, v, c)
    // The first range is found first, and these are written most.
    X2APIC_FIRST..=X2APIC_LAST if true              => keeper(X2apic), Ok(v), No;

    // Guests read these without a fault handler.
    P5_MC_ADDR | P5_MC_TYPE | PLATFORM_ID | EBL_CR_POWERON | PERF_CTL | RAPL_POWER_UNIT | PKG_ENERGY_STATUS
        | DRAM_ENERGY_STATUS | PP0_ENERGY_STATUS | PP1_ENERGY_STATUS if true => constant(0), READ_ONLY, No;
    EBC_FREQUENCY_ID        if true                 => constant(1 << 24), READ_ONLY, No;
    FSB_FREQ                if true                 => constant(3), READ_ONLY, No;
    PERF_STATUS             if true                 => constant(PERF_STATUS_VALUE), READ_ONLY, No;
    BBL_CR_CTL3             if true                 => constant(BBL_CR_CTL3_VALUE), Ok(v), No;

    TSC                     if true                 => keeper(Tsc), Ok(v), Index;
    KVM_WALL_CLOCK          if a.offers(CLOCKSOURCE) => keeper(Paravirt), Ok(v), Index;
    KVM_SYSTEM_TIME         if a.offers(CLOCKSOURCE) => keeper(Paravirt), Ok(v), Index;
    APIC_BASE               if true                 => keeper(ApicBase), Ok(v), No;
    FEATURE_CONTROL         if a.vmx()              => file(feature_control), self.feature_control_write(v, a), Probed;
    SMI_COUNT               if true                 => file(smi_count), a.by_host(v), Index;
    SMBASE                  if true, readable a.host_initiated
                                                    => file(smbase = SMBASE_RESET), a.by_host(v), Index;
    TSC_ADJUST              if true                 => keeper(TscAdjust),
                                                       if a.guest.tsc_adjust { Ok(v) }
                                                       else { return Ok(Written::Stored) }, Index;
    SPEC_CTRL               if true, readable a.host_initiated || f.spec_ctrl != 0 => keeper(Backend),
                                                       if a.host_initiated && f.spec_ctrl == 0 { READ_ONLY }
                                                       else { ok(f.spec_ctrl != 0 && v & !f.spec_ctrl == 0, v) },
                                                       Probed;
    PRED_CMD                if true                 => command(PredictionBarrier),
                                                       ok((a.host_initiated || f.pred_cmd != 0)
                                                          && v & !f.pred_cmd == 0, v), No;
    FLUSH_CMD               if true                 => command(L1dFlush), ok(f.flush_l1d && v & !1 == 0, v), No;
    // Microcode updates are the host's business.
    UCODE_WRITE             if true                 => discarded(), Ok(v), No;
    UCODE_REV               if true                 => file(ucode_rev = c.ucode_rev()),
                                                       self.ucode_rev_write(v, a), Both;
    // No UMWAIT, no SGX, MPX, Intel PT, nested VMX: user space keeps the first for who restores it.
    UMWAIT_CONTROL          if a.vmx(), readable a.host_initiated => file(umwait_control),
                                                       ok(a.host_initiated && v & !0xffff_fffd == 0, v), No;
    SGX_KEY_HASH0..=SGX_KEY_HASH3 | VMX_BASIC..=VMX_VMFUNC | RTIT_OUTPUT_BASE..=RTIT_OUTPUT_MASK
        | RTIT_CTL..=RTIT_CR3_MATCH | RTIT_ADDR0_A..=RTIT_ADDR3_B | BNDCFGS
                            if a.vmx(), readable false => constant(0), Err(MsrError::Invalid), No;
    // P6 and, below, K7 had counters and selectors without a CPUID leaf for them: there is no PMU, so they read as
    // zero and writes are ignored, as in KVM.
    P6_PERFCTR0..=P6_PERFCTR1 if true               => constant(0), Ok(v), No;
    PLATFORM_INFO           if true                 => file(platform_info = c.platform_info), a.by_host(v), Both;
    MTRR_CAP                if true                 => constant(MTRR_CAP_VALUE), READ_ONLY, No;
    // Any value: it is the truth only as far as user space wants.
    ARCH_CAPABILITIES       if a.guest.arch_capabilities
                            => file(arch_capabilities = c.arch_capabilities & arch_capabilities::ALLOWED),
                               if a.host_initiated { Ok(v) } else { READ_ONLY }, Both;
    // Guests see no TSX, so it makes no difference.
    TSX_CTRL                if a.vmx() && (self.has_tsx_ctrl || !a.host_initiated && !self.tsx_ctrl_told()),
                            readable a.host_initiated || self.tsx_ctrl_told() => file(tsx_ctrl),
                               ok((a.host_initiated || self.tsx_ctrl_told()) && v & !3 == 0, v), Index;
    MISC_FEATURES_ENABLES   if true                 => file(misc_features),
                                                       only(v, self.misc_features_allowed()), Index;
    SYSENTER_CS             if true                 => keeper(Backend),
                                                       Ok(if a.svm() { v } else { v & 0xffff_ffff }), Index;
    SYSENTER_ESP            if true                 => keeper(Backend), a.sysenter(v), Index;
    SYSENTER_EIP            if true                 => keeper(Backend), a.sysenter(v), Index;
    MCG_CAP                 if true                 => file(mce.cap = MCE_BANKS as u64), READ_ONLY, No;
    MCG_STATUS              if true                 => file(mce.status), Ok(v), Index;
    MCG_CTL                 if true, readable a.host_initiated || self.mce.has_ctl()
                                                    => file(mce.ctl), self.mcg_ctl_write(v, a), Index;
    MCG_EXT_CTL             if a.vmx(), readable a.host_initiated || self.lmce()
                                                    => file(mcg_ext_ctl),
                                                       ok((a.host_initiated || self.lmce()) && v & !1 == 0, v), Index;
    P6_EVNTSEL0..=P6_EVNTSEL1 if true               => constant(0), Ok(v), No;
    // The value is KVM's; firmware, or whoever takes its place, allows fast strings.
    MISC_ENABLE             if true                 => file(misc_enable = MISC_BTS_PEBS_UNAVAILABLE),
                                                       self.misc_enable_write(v, a), Index;
    XFD | XFD_ERR           if true, readable a.host_initiated => constant(0), ok(a.host_initiated && v == 0, v), No;
    // LBR and BTF may be written without effect, as in KVM: branch records and branch steps are the host's. The rest
    // needs facilities that are hidden. On AMD, KVM lets everything pass.
    DEBUGCTL                if true                 => constant(0), ok(a.svm() || v & !3 == 0, v), Probed;
    LAST_BRANCH_FROM..=LAST_INT_TO if true          => constant(0), READ_ONLY, Probed;
    // The value is kept and has no effect.
    POWER_CTL               if true                 => file(power_ctl), Ok(v), Index;
    MTRR_PHYS_BASE0..=MTRR_PHYS_LAST if true        => file(mtrr_variable[msr - ix::MTRR_PHYS_BASE0]),
                                                       a.mtrr_variable(msr, v), No;
    MTRR_FIX64K_00000       if true                 => file(mtrr_fixed[0]), mtrr_fixed(v), No;
    MTRR_FIX16K_80000       if true                 => file(mtrr_fixed[1]), mtrr_fixed(v), No;
    MTRR_FIX16K_A0000       if true                 => file(mtrr_fixed[2]), mtrr_fixed(v), No;
    MTRR_FIX4K_C0000..=MTRR_FIX4K_F8000 if true     => file(mtrr_fixed[3 + (msr - ix::MTRR_FIX4K_C0000)]),
                                                       mtrr_fixed(v), No;
    // Between them there is nothing.
    MTRR_HOLE_FIRST..=MTRR_HOLE_LAST if true, readable false => constant(0), Err(MsrError::Invalid), No;
    PAT                     if true                 => keeper(Backend), ok(pat_valid(v), v), Index;
    // No CMCI.
    MC0_CTL2..=MC31_CTL2    if true, readable a.host_initiated && self.mce.has_bank(msr - ix::MC0_CTL2)
                            => constant(0),
                               ok(a.host_initiated && v == 0 && self.mce.has_bank(msr - ix::MC0_CTL2), v), No;
    MTRR_DEF_TYPE           if true                 => file(mtrr_def_type),
                                                       ok(v & !0xcff == 0 && mtrr_type_valid(v as u8), v), No;
    // User space may ask for it; no vCPU has a PMU.
    PERF_CAPABILITIES       if false                => constant(0), READ_ONLY, Both;
    MC0_CTL..=MC31_MISC     if true, readable self.mce.has(msr) => file(mce.banks[msr - ix::MC0_CTL]),
                                                       self.bank_write(msr, v, a), No;
    TSC_DEADLINE            if true                 => keeper(TscDeadline), Ok(v), Index;
    // No state of XSAVES is offered.
    XSS                     if true, readable a.host_initiated || f.xsaves => constant(0),
                                                       if a.guest.xsaves { only(v, 0) } else { READ_ONLY }, No;

    // Whether a guest may use them is its CPUID's matter, and their keeper's. The lists name what KVM's name: of the
    // SynIC and of the timers one each, which stands for all.
    HV_EOI..=HV_TPR         if true                 => keeper(HyperV), Ok(v), No;
    HV_GUEST_OS_ID..=HV_RESET if true               => keeper(HyperV), Ok(v), Index;
    HV_VP_RUNTIME           if true                 => keeper(HyperV), Ok(v), Index;
    HV_TIME_REF_COUNT..=HV_APIC_FREQUENCY if true   => keeper(HyperV), Ok(v), Index;
    HV_VP_ASSIST_PAGE       if true                 => keeper(HyperV), Ok(v), Index;
    HV_SCONTROL             if true                 => keeper(HyperV), Ok(v), Index;
    HV_SVERSION..=HV_EOM    if true                 => keeper(HyperV), Ok(v), No;
    HV_SINT0..=HV_SINT15    if true                 => keeper(HyperV), Ok(v), No;
    HV_STIMER0_CONFIG       if true                 => keeper(HyperV), Ok(v), Index;
    HV_STIMER0_COUNT..=HV_STIMER3_COUNT if true     => keeper(HyperV), Ok(v), No;
    HV_SYNDBG_CONTROL..=HV_SYNDBG_PENDING_BUFFER if true => keeper(HyperV), Ok(v), Index;
    HV_SYNDBG_OPTIONS       if true                 => keeper(HyperV), Ok(v), Index;
    HV_CRASH_P0..=HV_TSC_EMULATION_STATUS if true   => keeper(HyperV), Ok(v), Index;
    HV_TSC_INVARIANT_CONTROL if true                => keeper(HyperV), Ok(v), Index;

    KVM_WALL_CLOCK_NEW      if a.offers(CLOCKSOURCE2) => keeper(Paravirt), Ok(v), Index;
    KVM_SYSTEM_TIME_NEW     if a.offers(CLOCKSOURCE2) => keeper(Paravirt), Ok(v), Index;
    KVM_ASYNC_PF_EN         if a.offers(ASYNC_PF)   => keeper(Paravirt), Ok(v), Index;
    KVM_STEAL_TIME          if a.offers(STEAL_TIME) => keeper(Paravirt), Ok(v), Index;
    KVM_PV_EOI_EN           if a.offers(PV_EOI)     => keeper(Paravirt), Ok(v), Index;
    KVM_POLL_CONTROL        if a.offers(POLL_CONTROL) => keeper(Paravirt), Ok(v), Index;
    KVM_ASYNC_PF_INT        if a.offers(ASYNC_PF_INT) => keeper(Paravirt), Ok(v), Index;
    KVM_ASYNC_PF_ACK        if a.offers(ASYNC_PF_INT) => keeper(Paravirt), Ok(v), Index;

    EFER                    if true                 => keeper(Efer), Ok(v), No;
    STAR                    if true                 => keeper(Backend), Ok(v), Index;
    LSTAR                   if true                 => keeper(Backend), a.canonical(v), Index;
    CSTAR                   if true                 => keeper(Backend), a.canonical(v), Index;
    // Intel's processors take no more than 32 bits.
    FMASK                   if true                 => keeper(Backend), ok(a.svm() || v >> 32 == 0, v), Index;
    FS_BASE                 if true                 => keeper(Backend), a.canonical(v), No;
    GS_BASE                 if true                 => keeper(Backend), a.canonical(v), No;
    KERNEL_GS_BASE          if true                 => keeper(Backend), a.canonical(v), Index;
    TSC_AUX                 if true, readable f.rdtscp || f.rdpid
                            => keeper(Backend),
                               ok((f.rdtscp || f.rdpid) && (a.amd_guest() || v >> 32 == 0), v & 0xffff_ffff), Index;
    // The ratio is user space's, by KVM_SET_TSC_KHZ.
    TSC_RATIO               if a.svm(), readable a.host_initiated => constant(TSC_RATIO_ONE),
                                                       ok(a.host_initiated && (v == 0 || v == TSC_RATIO_ONE), v), Index;

    K7_EVNTSEL0..=K7_PERFCTR3 if true               => constant(0), Ok(v), No;
    HWCR                    if true                 => file(hwcr), Self::hwcr_write(v, a), Index;
    K7_CLK_CTL              if true                 => constant(K7_CLK_CTL_VALUE), Ok(v), No;
    PATCH_LOADER            if true                 => discarded(), Ok(v), No;
    VM_CR                   if a.svm()              => file(vm_cr), self.vm_cr_write(v), No;
    VM_IGNNE                if a.svm()              => discarded(), Ok(v), No;
    VM_HSAVE_PA             if true                 => file(vm_hsave_pa), Self::vm_hsave_pa_write(v, a), Probed;
    VIRT_SPEC_CTRL          if a.svm(), readable a.host_initiated => file(virt_spec_ctrl),
                                                       ok(a.host_initiated && v & !VIRT_SSBD == 0, v), Index;
    // Errata 0 to 3 are known and fixed.
    OSVW_ID_LENGTH          if true, readable a.guest.osvw => file(osvw_id_length = c.osvw_id_length()),
                                                       ok(a.guest.osvw, v), No;
    OSVW_STATUS             if true, readable a.guest.osvw => file(osvw_status), ok(a.guest.osvw, v), No;
    DE_CFG                  if a.svm()              => file(de_cfg = c.de_cfg()),
                                                       only(v, self.de_cfg_allowed), FeatureAmd;
    // These configure a machine that has none of it. Guests set single bits in some.
    IC_CFG                  if a.svm() && a.guest.signature != 0
                                                    => constant(Self::ic_cfg(a.guest.signature)), READ_ONLY, No;
    SYSCFG | INT_PENDING_MSG | TSEG_ADDR | TSEG_MASK if true => constant(0), READ_ONLY, No;
    MMIO_CONF_BASE          if true                 => constant(0), only(v, 0), No;
    NB_CFG | DC_CFG | TW_CFG | BU_CFG2 | EX_CFG if true => constant(0), Ok(v), No;
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
/// the hypervisor carries; `probe`: whether this processor has a register). Clients take a listed MSR for a promise, so
/// nothing else is listed.
///
/// # Errors
///
/// The number of indices when `out` is too short (E2BIG).
pub fn index_list(
    host: &GuestFeatures,
    probe: impl Fn(u32) -> bool,
    out: &mut [u32],
) -> Result<usize, usize> {
    let a = Access {
        guest: host,
        host,
        host_initiated: true,
        enforce_pv: false,
    };
    // Of what is not there user space reads zeros, and may write them, because it is listed.
    let named = |row: &Row, msr| match row.listed {
        Listed::Index => MsrFile::ZERO.get(msr, &a).is_ok(),
        Listed::Both => true,
        Listed::Probed => probe(msr),
        Listed::No | Listed::FeatureAmd => false,
    };
    let mut count = 0usize;
    for row in ROWS {
        for msr in row.first..=row.last {
            if !named(row, msr) {
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
