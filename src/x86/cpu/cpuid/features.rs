// SPDX-License-Identifier: GPL-2.0
//! Features of a vCPU, taken from its CPUID table.
#![forbid(unsafe_code)]

use super::bits::*;
use super::table::{find, kvm_features_leaf, CpuidEntry, CpuidIndex, Vendor};
use crate::x86::cpu::canonical;

/// Makes the features that are bits of a leaf: the type, its derivation from a table, and what two have in common.
macro_rules! features {
    ($($(#[$doc:meta])* $name:ident: $leaf:expr, $sub:expr, $reg:ident, $bit:expr;)*) => {
        /// Features of a vCPU that change the behaviour of the hypervisor, taken from its CPUID table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub struct GuestFeatures {
            /// Vendor that the guest believes in (not the host's).
            pub vendor: Vendor,
            /// Physical-address width.
            pub maxphyaddr: u8,
            $(pub $name: bool,)*
            /// IA32_SPEC_CTRL bits the guest may set; 0: the MSR does not exist for it.
            pub spec_ctrl: u64,
            /// IA32_PRED_CMD bits the guest may set; 0: the MSR does not exist for it.
            pub pred_cmd: u64,
            /// KVM paravirtual features (40000001H:EAX or above), 0 without KVM's signature.
            pub kvm_features: u32,
            /// Family, model and stepping (1:EAX).
            pub signature: u32,
        }

        impl GuestFeatures {
            /// Derives the features from a vCPU's table.
            pub fn from_table(table: &[CpuidEntry], index: &CpuidIndex) -> Self {
                let get = |leaf, sub| find(table, index, leaf, sub).map_or([0; 4], |e| e.values());
                Self {
                    vendor: index.vendor(),
                    maxphyaddr: match (get(0x8000_0008, 0)[0] & 0xff) as u8 {
                        0 => 36,
                        n => n.min(52),
                    },
                    $($name: get($leaf, $sub)[Reg::$reg as usize] & $bit != 0,)*
                    spec_ctrl: spec_ctrl(get),
                    pred_cmd: pred_cmd(get),
                    kvm_features: kvm_features_leaf(table).map_or(0, |leaf| get(leaf, 0)[0]),
                    signature: get(1, 0)[0],
                }
            }

            /// Removes what the hypervisor does not carry on this host: a client may put any bit into CPUID, but it
            /// must not be able to make the hypervisor load a reserved bit. `host` is derived from the table of
            /// [`supported`](super::supported).
            #[must_use]
            pub fn restrict(self, host: &Self) -> Self {
                Self {
                    vendor: self.vendor,
                    maxphyaddr: self.maxphyaddr.min(host.maxphyaddr),
                    $($name: self.$name & host.$name,)*
                    spec_ctrl: self.spec_ctrl & host.spec_ctrl,
                    pred_cmd: self.pred_cmd & host.pred_cmd,
                    kvm_features: self.kvm_features & host.kvm_features,
                    signature: self.signature,
                }
            }
        }
    };
}

/// Registers that CPUID returns, in order.
enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

features! {
    pcid: 1, 0, Ecx, leaf1_ecx::PCID;
    x2apic: 1, 0, Ecx, leaf1_ecx::X2APIC;
    tsc_deadline: 1, 0, Ecx, leaf1_ecx::TSC_DEADLINE;
    movbe: 1, 0, Ecx, leaf1_ecx::MOVBE;
    xsave: 1, 0, Ecx, leaf1_ecx::XSAVE;
    pat: 1, 0, Edx, leaf1_edx::PAT;
    fsgsbase: 7, 0, Ebx, leaf7_ebx::FSGSBASE;
    tsc_adjust: 7, 0, Ebx, leaf7_ebx::TSC_ADJUST;
    smep: 7, 0, Ebx, leaf7_ebx::SMEP;
    smap: 7, 0, Ebx, leaf7_ebx::SMAP;
    invpcid: 7, 0, Ebx, leaf7_ebx::INVPCID;
    umip: 7, 0, Ecx, leaf7_ecx::UMIP;
    pku: 7, 0, Ecx, leaf7_ecx::PKU;
    la57: 7, 0, Ecx, leaf7_ecx::LA57;
    rdpid: 7, 0, Ecx, leaf7_ecx::RDPID;
    flush_l1d: 7, 0, Edx, leaf7_edx::FLUSH_L1D;
    arch_capabilities: 7, 0, Edx, leaf7_edx::ARCH_CAPABILITIES;
    xsaves: 0xd, 1, Eax, leafd_1_eax::XSAVES;
    osvw: 0x8000_0001, 0, Ecx, ext1_ecx::OSVW;
    nx: 0x8000_0001, 0, Edx, ext1_edx::NX;
    lm: 0x8000_0001, 0, Edx, ext1_edx::LM;
    gbpages: 0x8000_0001, 0, Edx, ext1_edx::PDPE1GB;
    rdtscp: 0x8000_0001, 0, Edx, ext1_edx::RDTSCP;
    fxsr_opt: 0x8000_0001, 0, Edx, ext1_edx::FXSR_OPT;
    auto_ibrs: 0x8000_0021, 0, Eax, ext21_eax::AUTO_IBRS;
    gp_on_user_cpuid: 0x8000_0021, 0, Eax, ext21_eax::GP_ON_USER_CPUID;
}

/// IA32_SPEC_CTRL bits of the leaves that `get` gives.
fn spec_ctrl(get: impl Fn(u32, u32) -> [u32; 4]) -> u64 {
    let (l7, l7_2, amd) = (get(7, 0)[3], get(7, 2)[3], get(0x8000_0008, 0)[1]);
    [
        (l7 & leaf7_edx::SPEC_CTRL | amd & ext8_ebx::IBRS, 1 << 0),
        (l7 & leaf7_edx::STIBP | amd & ext8_ebx::STIBP, 1 << 1),
        (l7 & leaf7_edx::SSBD | amd & ext8_ebx::SSBD, 1 << 2),
        (l7_2 & leaf7_2_edx::IPRED_CTRL, 3 << 3),
        (l7_2 & leaf7_2_edx::RRSBA_CTRL, 3 << 5),
        (l7_2 & leaf7_2_edx::PSFD | amd & ext8_ebx::PSFD, 1 << 7),
        (l7_2 & leaf7_2_edx::DDPD_U, 1 << 8),
        (l7_2 & leaf7_2_edx::BHI_CTRL, 1 << 10),
    ]
    .into_iter()
    .fold(
        0,
        |all, (has, bits)| if has != 0 { all | bits } else { all },
    )
}

/// IA32_PRED_CMD bits of the leaves that `get` gives: IBPB, SBPB.
fn pred_cmd(get: impl Fn(u32, u32) -> [u32; 4]) -> u64 {
    let ibpb = get(7, 0)[3] & leaf7_edx::SPEC_CTRL | get(0x8000_0008, 0)[1] & ext8_ebx::IBPB;
    let sbpb = get(0x8000_0021, 0)[0] & ext21_eax::SBPB;
    u64::from(ibpb != 0) | u64::from(sbpb != 0) << 7
}

impl Default for GuestFeatures {
    /// A vCPU before KVM_SET_CPUID2.
    fn default() -> Self {
        Self::from_table(&[], &CpuidIndex::empty())
    }
}

impl GuestFeatures {
    /// Width of linear addresses: base registers are checked against it (SDM 4 "canonicality"; LA57 by CPUID, not CR4).
    #[inline]
    pub const fn linear_width(&self) -> u8 {
        if self.la57 {
            canonical::WIDTH_5LEVEL
        } else {
            canonical::WIDTH_4LEVEL
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
