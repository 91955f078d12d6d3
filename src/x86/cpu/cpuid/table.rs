// SPDX-License-Identifier: GPL-2.0
//! A vCPU's CPUID table: look-up, checks, and the bits that follow its registers (api.rst 4.20 KVM_SET_CPUID2).
#![forbid(unsafe_code)]

use super::bits::*;
use crate::nospec::Nospec;
use crate::x86::cpu::regs::cr4;

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

/// The leaf with KVM's features: where another hypervisor's leaves stand first, KVM's begin at a multiple of 100H above
/// them, below 40010000H (kernel document virt/kvm/x86/cpuid.rst).
pub fn kvm_features_leaf(table: &[CpuidEntry]) -> Option<u32> {
    let is_base = |e: &&CpuidEntry| {
        e.function & 0xffff_00ff == KVM_SIGNATURE_LEAF && [e.ebx, e.ecx, e.edx] == KVM_SIGNATURE
    };
    let base = table.iter().filter(is_base).map(|e| e.function).min()?;
    Some(base | KVM_FEATURES_LEAF & 0xff)
}

/// Clears PV_UNHALT in KVM's leaves: the HLT of this VM's guests does not exit.
pub fn hide_pv_unhalt(table: &mut [CpuidEntry]) {
    if let Some(leaf) = kvm_features_leaf(table) {
        for e in table.iter_mut().filter(|e| e.function == leaf) {
            e.eax &= !kvm_feature::PV_UNHALT;
        }
    }
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
    /// Bytes of a compacted XSAVE area for the current XCR0 ([`xsave::Layout::compacted_size`]).
    pub xsave_compacted_size: u32,
    /// Hyper-V's TSC_INVARIANT_CONTROL is the guest's, and it has not asked for an invariant TSC.
    pub hide_invariant_tsc: bool,
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
            0x8000_0007 if self.hide_invariant_tsc => edx &= !ext7_edx::INVARIANT_TSC,
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

/// Where the entries of a leaf stand in a table: the first one, and the one after the last.
type Span = (u16, u16);

const NONE: Span = (0, 0);
const BASIC_SLOTS: usize = 0x20;
const KVM_SLOTS: usize = 2;
const EXT_SLOTS: usize = 0x23;

/// Where each leaf stands in a table, so that the CPUID exit does not search. Rebuild it whenever the table changes.
#[derive(Clone, Debug)]
pub struct CpuidIndex {
    basic: [Span; BASIC_SLOTS],
    kvm: [Span; KVM_SLOTS],
    ext: [Span; EXT_SLOTS],
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
        for (i, e) in (0..u16::MAX).zip(table) {
            if let Some(slot) = x.slot_mut(e.function) {
                if *slot == NONE {
                    slot.0 = i;
                }
                slot.1 = i.wrapping_add(1);
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
    fn slot_mut(&mut self, leaf: u32) -> Option<&mut Span> {
        match leaf >> 30 {
            0 => self.basic.get_nospec_mut(leaf as usize),
            1 => self.kvm.get_nospec_mut((leaf & 0x3fff_ffff) as usize),
            2 => self.ext.get_nospec_mut((leaf & 0x3fff_ffff) as usize),
            _ => None,
        }
    }

    /// Where the entries of `leaf` stand in `table`, perhaps with others among them.
    #[inline]
    fn span<'a>(&self, table: &'a [CpuidEntry], leaf: u32) -> &'a [CpuidEntry] {
        let slot = match leaf >> 30 {
            0 => self.basic.get_nospec(leaf as usize),
            1 => self.kvm.get_nospec((leaf & 0x3fff_ffff) as usize),
            2 => self.ext.get_nospec((leaf & 0x3fff_ffff) as usize),
            _ => None,
        };
        match slot {
            Some(&(first, end)) => table.get(first.into()..end.into()).unwrap_or(&[]),
            // Not indexed.
            None => table,
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
    let mut span = index.span(table, leaf).iter();
    span.find(|e| e.answers(leaf, subleaf))
}

/// What CPUID returns to a guest: EAX, EBX, ECX, EDX.
///
/// A leaf beyond the limit of its class reads as the highest basic leaf on Intel (SDM 2A CPUID, "information
/// returned") and as zeros on AMD; a leaf within the limits that has no entry reads as zeros.
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
