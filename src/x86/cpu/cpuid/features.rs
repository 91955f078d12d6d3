// SPDX-License-Identifier: GPL-2.0
//! Features of a vCPU, taken from its CPUID table.
#![forbid(unsafe_code)]

use super::bits::*;
use super::table::{find, CpuidEntry, CpuidIndex, Vendor};

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
            vendor: index.vendor(),
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
