// SPDX-License-Identifier: GPL-2.0
//! What is offered to guests: KVM_GET_SUPPORTED_CPUID (api.rst 4.46).
#![forbid(unsafe_code)]

use super::bits::*;
use super::table::{CpuidEntry, Vendor, FLAG_SIGNIFICANT_INDEX};
use crate::x86::cpu::host::HostCpuid;
use crate::x86::cpu::xsave;

/// Highest basic leaf offered (0x1f: V2 extended topology).
const MAX_BASIC: u32 = 0x1f;
/// Highest extended leaf offered on AMD.
const MAX_EXT_AMD: u32 = 0x8000_0022;
/// Highest extended leaf offered on Intel.
const MAX_EXT_INTEL: u32 = 0x8000_0008;

/// What the hypervisor and its backend can carry, for [`supported`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Host vendor: which leaves exist.
    pub vendor: Vendor,
    /// XCR0 bits that guests may use (already a subset of the host's); 0 hides XSAVE.
    pub xcr0: u64,
    /// RDTSCP and RDPID work (VMX: "enable RDTSCP"; TSC_AUX is switched).
    pub rdtscp: bool,
    /// INVPCID works (VMX: "enable INVPCID").
    pub invpcid: bool,
    /// UMIP works where the processor lacks it, but for SMSW.
    pub umip: bool,
    /// XSAVES/XRSTORS work (VMX: "enable XSAVES/XRSTORS") and IA32_XSS is switched.
    pub xsaves: bool,
    /// PKRU is switched.
    pub pku: bool,
    /// The processor walks five levels of a guest's page tables.
    pub la57: bool,
    /// IA32_SPEC_CTRL is there and virtualised; IA32_PRED_CMD is then, too.
    pub spec_ctrl: bool,
    /// IA32_PRED_CMD is there.
    pub pred_cmd: bool,
    /// What the kernel knows of an AMD processor, whether its CPUID says so or not.
    pub known: Known,
    /// Guest TSC frequency in kHz when it is known and constant; 0 hides leaves 15H and 16H.
    pub tsc_khz: u32,
    /// Frequency of the emulated APIC timer before division, in Hz: the "core crystal clock" of leaf 15H.
    pub apic_hz: u32,
    /// KVM paravirtual features (40000001H:EAX). 0: signature only.
    pub kvm_features: u32,
}

/// Bits of AMD's leaves that the kernel knows to hold: older processors do not tell, or an intermediate hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Known {
    /// 80000008H:EBX.
    pub ext8_ebx: u32,
    /// 80000021H:EAX.
    pub ext21_eax: u32,
    /// 80000021H:ECX.
    pub ext21_ecx: u32,
}

/// Output that counts past its end, so that the caller learns the size it needs.
struct Sink<'a> {
    out: &'a mut [CpuidEntry],
    count: usize,
}

impl Sink<'_> {
    fn put(&mut self, function: u32, index: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) {
        if let Some(slot) = self.out.get_mut(self.count) {
            *slot = CpuidEntry {
                function,
                index: index.unwrap_or(0),
                flags: index.map_or(0, |_| FLAG_SIGNIFICANT_INDEX),
                eax,
                ebx,
                ecx,
                edx,
                padding: [0; 3],
            };
        }
        self.count = self.count.saturating_add(1);
    }
}

/// Fills `out` with the leaves offered to guests (KVM_GET_SUPPORTED_CPUID) and returns how many there are, less than
/// 100.
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
    let [b, c, d] = KVM_SIGNATURE;
    s.put(KVM_SIGNATURE_LEAF, None, [KVM_FEATURES_LEAF, b, c, d]);
    s.put(KVM_FEATURES_LEAF, None, [p.kvm_features, 0, 0, 0]);
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

/// All bits, but for `bits` where `cond` does not hold.
const fn only_if(cond: bool, bits: u32) -> u32 {
    !when(!cond, bits)
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
    let mut ecx = h1[2] & leaf1_ecx::ALLOWED & only_if(xsave, leaf1_ecx::XSAVE);
    let avx = avx && ecx & leaf1_ecx::XSAVE != 0;
    ecx &= only_if(avx, leaf1_ecx::AVX | leaf1_ecx::FMA | leaf1_ecx::F16C);
    ecx |= leaf1_ecx::HYPERVISOR | leaf1_ecx::X2APIC | leaf1_ecx::TSC_DEADLINE;
    let edx = h1[3] & leaf1_edx::ALLOWED | leaf1_edx::EMULATED;
    // EBX: CLFLUSH line size only. APIC id and thread count describe the vCPU: the client sets them.
    s.put(1, None, [h1[0], h1[1] & 0xff00, ecx, edx]);
    let avx = ecx & leaf1_ecx::AVX != 0;
    let avx512 = avx && avx512;
    let pcid = ecx & leaf1_ecx::PCID != 0;

    if intel {
        cache_leaves(host, max, s);
    }
    if max >= 6 {
        s.put(6, None, [leaf6_eax::ARAT, 0, 0, 0]);
    }
    if max >= 7 {
        leaf7(host, p, [avx, avx512, pcid], s);
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

/// Leaves 2 and 4 of Intel.
fn cache_leaves<H: HostCpuid + ?Sized>(host: &H, max: u32, s: &mut Sink<'_>) {
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

/// Leaf 7, as far as AVX, AVX-512 and PCIDs are offered.
fn leaf7<H: HostCpuid + ?Sized>(
    host: &H,
    p: &Policy,
    [avx, avx512, pcid]: [bool; 3],
    s: &mut Sink<'_>,
) {
    let h7 = host.cpuid(7, 0);
    let invpcid = p.invpcid && pcid;
    let pku = p.pku && p.xcr0 & xsave::PKRU != 0;
    let intel = p.vendor == Vendor::Intel;
    let ebx = h7[1]
        & leaf7_ebx::ALLOWED
        & only_if(avx, leaf7_ebx::AVX2)
        & only_if(avx512, leaf7_ebx::AVX512)
        & only_if(invpcid, leaf7_ebx::INVPCID)
        | leaf7_ebx::TSC_ADJUST;
    let ecx = h7[2]
        & leaf7_ecx::ALLOWED
        & only_if(avx, leaf7_ecx::AVX)
        & only_if(avx512, leaf7_ecx::AVX512)
        & only_if(pku, leaf7_ecx::PKU)
        & only_if(p.rdtscp, leaf7_ecx::RDPID)
        | when(p.la57, leaf7_ecx::LA57)
        | when(p.umip, leaf7_ecx::UMIP);
    let edx = h7[3]
        & leaf7_edx::ALLOWED
        & only_if(avx512, leaf7_edx::AVX512)
        & only_if(p.spec_ctrl, leaf7_edx::SPECULATION)
        | when(!intel, intel_controls(amd_controls(host, p)))
        | leaf7_edx::EMULATED;
    let sub_max = h7[0].min(2);
    s.put(7, Some(0), [sub_max, ebx, ecx, edx]);
    if sub_max >= 1 {
        let h = host.cpuid(7, 1);
        let eax = h[0]
            & leaf7_1::EAX_ALLOWED
            & only_if(avx, leaf7_1::EAX_AVX)
            & only_if(avx512, leaf7_1::EAX_AVX512);
        let edx = h[3] & leaf7_1::EDX_ALLOWED & only_if(avx, leaf7_1::EDX_AVX);
        s.put(7, Some(1), [eax, 0, 0, edx]);
    }
    if sub_max >= 2 {
        let h = host.cpuid(7, 2)[3];
        let edx = h & leaf7_2_edx::MCDT_NO | when(p.spec_ctrl, h & leaf7_2_edx::SPECULATION);
        s.put(7, Some(2), [0, 0, 0, edx]);
    }
}

/// Speculation controls, and what they are not needed for, as 80000008H:EBX tells them on AMD.
fn amd_controls<H: HostCpuid + ?Sized>(host: &H, p: &Policy) -> u32 {
    let own = host.cpuid(0x8000_0008, 0)[1];
    // A hypervisor below may give an AMD guest the bits that Intel has.
    let intel = if host.cpuid(0, 0)[0] >= 7 {
        host.cpuid(7, 0)[3]
    } else {
        0
    };
    let given = when(intel & leaf7_edx::SPEC_CTRL != 0, SPEC_CTRL)
        | when(intel & leaf7_edx::SSBD != 0, ext8_ebx::SSBD);
    (own | given | p.known.ext8_ebx)
        & ext8_ebx::ALLOWED
        & only_if(p.spec_ctrl, ext8_ebx::SPEC_CTRL)
        & only_if(p.pred_cmd, ext8_ebx::PRED_CMD)
}

/// What Intel's one bit says: its IBPB empties the return predictor as well.
const SPEC_CTRL: u32 = ext8_ebx::IBRS | ext8_ebx::IBPB | ext8_ebx::IBPB_RET;

/// Those that KVM shows on Intel's processors as well, under AMD's names.
const INTEL_AS_AMD: u32 =
    ext8_ebx::IBPB | ext8_ebx::IBRS | ext8_ebx::STIBP | ext8_ebx::SSBD | ext8_ebx::SSB_NO;

/// The same for who looks for Intel's bits (7:EDX).
const fn intel_controls(amd: u32) -> u32 {
    when(amd & SPEC_CTRL == SPEC_CTRL, leaf7_edx::SPEC_CTRL)
        | when(amd & ext8_ebx::STIBP != 0, leaf7_edx::STIBP)
        | when(amd & ext8_ebx::SSBD != 0, leaf7_edx::SSBD)
}

fn xsave_leaves<H: HostCpuid + ?Sized>(host: &H, p: &Policy, xsave: bool, s: &mut Sink<'_>) {
    let xcr0 = if xsave { p.xcr0 } else { 0 };
    if xcr0 == 0 {
        return;
    }
    let eax1 =
        host.cpuid(0xd, 1)[0] & leafd_1_eax::ALLOWED & only_if(p.xsaves, leafd_1_eax::XSAVES);
    let layout = xsave::Layout::from_host(host, xcr0);
    let size = layout.standard_size(xcr0);
    // EBX follows the vCPU's XCR0; here it is that of all components, as KVM has it.
    s.put(0xd, Some(0), [xcr0 as u32, size, size, (xcr0 >> 32) as u32]);
    let compacts = eax1 & (leafd_1_eax::XSAVEC | leafd_1_eax::XSAVES) != 0;
    s.put(
        0xd,
        Some(1),
        [eax1, when(compacts, layout.compacted_size(xcr0)), 0, 0],
    );
    for i in 2..xsave::MAX_COMPONENTS {
        if xcr0 & (1 << i) != 0 {
            let r = host.cpuid(0xd, i);
            // Bit 0 of ECX says "supervisor", bit 1 "aligned to 64 in compacted form"; XFD (bit 2) is hidden.
            s.put(0xd, Some(i), [r[0], r[1], r[2] & 3, 0]);
        }
    }
}

fn extended_leaves<H: HostCpuid + ?Sized>(host: &H, p: &Policy, s: &mut Sink<'_>) {
    let intel = p.vendor == Vendor::Intel;
    let host_max = host.cpuid(0x8000_0000, 0);
    let cap = if intel { MAX_EXT_INTEL } else { MAX_EXT_AMD };
    let max = host_max[0].clamp(0x8000_0000, cap).max(0x8000_0008);
    // AMD's bits of 80000021H describe the vCPU even on a host that is too old for the leaf. Only where there is
    // 8000001DH: clients ask the host itself for that leaf when it is in range.
    let max = if !intel && p.known.ext21_eax != 0 && max >= 0x8000_001d {
        max.max(0x8000_0021)
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
    let [_, b, c, d] = host_max.map(|r| when(!intel, r));
    s.put(0x8000_0000, None, [max, b, c, d]);
    let h1 = get(0x8000_0001, 0);
    let xsave = p.xcr0 & xsave::X87_SSE == xsave::X87_SSE;
    let avx = xsave && p.xcr0 & xsave::AVX != 0;
    let ecx = h1[2] & ext1_ecx::ALLOWED & only_if(avx, ext1_ecx::XOP | ext1_ecx::FMA4);
    let mut edx = h1[3] & ext1_edx::ALLOWED & only_if(p.rdtscp, ext1_edx::RDTSCP);
    if !intel {
        edx |= host.cpuid(1, 0)[3] & leaf1_edx::REPEATED | leaf1_edx::EMULATED;
    }
    let [eax, ebx, ..] = h1.map(|r| when(!intel, r));
    s.put(0x8000_0001, None, [eax, ebx, ecx, edx]);
    for leaf in 0x8000_0002..=0x8000_0006 {
        s.put(leaf, None, get(leaf, 0));
    }
    let edx = get(0x8000_0007, 0)[3] & ext7_edx::INVARIANT_TSC;
    s.put(0x8000_0007, None, [0, 0, 0, edx]);

    let h8 = get(0x8000_0008, 0);
    let phys = if h8[0] & 0xff != 0 { h8[0] & 0xff } else { 36 };
    let ebx = if intel {
        h8[1] & ext8_ebx::WBNOINVD | amd_controls(host, p) & INTEL_AS_AMD
    } else {
        amd_controls(host, p)
    };
    // GuestPhysAddrSize: memory slots end where nested page tables of four levels do, while the guest's own page tables
    // may hold addresses as wide as the processor's.
    let linear = if p.la57 { 57 } else { 48 };
    let eax = phys | (linear << 8) | (phys.min(48) << 16);
    s.put(0x8000_0008, None, [eax, ebx, 0, 0]);

    if !intel {
        amd_leaves(get, max, ecx, p, s);
    }
}

/// Leaves from 80000009H on, which AMD has. `ecx` is that of 80000001H as offered.
fn amd_leaves(
    get: impl Fn(u32, u32) -> [u32; 4],
    max: u32,
    ecx: u32,
    p: &Policy,
    s: &mut Sink<'_>,
) {
    // 8000000AH (SVM), 80000022H (performance monitoring) and everything not named here reads as zeros, being in range.
    if max >= 0x8000_0019 {
        s.put(0x8000_0019, None, get(0x8000_0019, 0));
    }
    if max >= 0x8000_001a {
        let r = get(0x8000_001a, 0);
        s.put(0x8000_001a, None, [r[0] & 7, 0, 0, 0]);
    }
    if max >= 0x8000_001d {
        for i in 0..8 {
            let r = get(0x8000_001d, i);
            s.put(0x8000_001d, Some(i), [r[0], r[1], r[2], r[3] & 3]);
            if r[0] & 0x1f == 0 {
                break;
            }
        }
    }
    if max >= 0x8000_001e && ecx & ext1_ecx::TOPOEXT != 0 {
        // Identifiers describe the vCPU: the client sets them.
        s.put(0x8000_001e, None, [0; 4]);
    }
    if max >= 0x8000_0021 {
        let r = get(0x8000_0021, 0);
        let eax = (r[0] | p.known.ext21_eax)
            & ext21_eax::ALLOWED
            & only_if(p.pred_cmd, ext21_eax::PRED_CMD)
            | ext21_eax::EMULATED;
        let ecx = (r[2] | p.known.ext21_ecx) & ext21_ecx::ALLOWED;
        s.put(0x8000_0021, None, [eax, 0, ecx, 0]);
    }
}

/// Numerator and denominator for leaf 15H, such that `crystal * num / den` is the TSC frequency.
///
/// Guests compute in 32 bits with the crystal in kHz, so the numerator is bounded by 2^32 / kHz; within that bound
/// this is the best approximation (continued fraction), exact whenever an exact one exists. The slower the crystal,
/// the better.
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
