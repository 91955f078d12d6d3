// SPDX-License-Identifier: GPL-2.0
//! CPUID policy: what is shown, what is hidden, how look-ups behave.

use rvmm_logic::x86::cpu::cpuid::*;
use rvmm_logic::x86::cpu::regs::cr4;
use rvmm_logic::x86::cpu::xsave;

/// A host whose every feature bit is set.
struct Full {
    vendor: Vendor,
}

impl HostCpuid for Full {
    fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4] {
        let amd = self.vendor == Vendor::Amd;
        match (leaf, sub) {
            (0, _) if amd => [0x20, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            (0, _) => [0x24, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
            (2, _) => [0x00fe_ff01, 0xf0, 0, 0],
            (4, 0..=3) => [0x121 + sub, 0x01c0_003f, 0x3f, 0],
            (4, _) => [0; 4],
            (7, 0) => [2, !0, !0, !0],
            (0xd, 0) => [0x602e7, 0xa88, 0x2b00, 0],
            (0xd, 1) => [0x1f, 0xa88, !0, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 5) => [64, 1088, 0, 0],
            (0xd, 6) => [512, 1152, 0, 0],
            (0xd, 7) => [1024, 1664, 0, 0],
            (0xd, 9) => [8, 2688, 0, 0],
            (0xd, 17) => [64, 2752, 2, 0],
            (0xd, 18) => [8192, 2816, 6, 0],
            (0xd, _) => [0; 4],
            (0x8000_0000, _) if amd => [0x8000_0028, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
            (0x8000_0008, _) => [0x3934, !0, !0, !0],
            (0x8000_001d, 0..=3) => [0x121 + sub, 0x01c0_003f, 0x3f, 0],
            (0x8000_001d, _) => [0; 4],
            _ => [!0; 4],
        }
    }
}

fn policy(vendor: Vendor) -> Policy {
    Policy {
        vendor,
        xcr0: xsave::CARRIED,
        rdtscp: true,
        invpcid: true,
        umip: false,
        xsaves: true,
        pku: true,
        la57: false,
        spec_ctrl: true,
        pred_cmd: true,
        known: Known::default(),
        tsc_khz: 0,
        apic_hz: 1_000_000_000,
        kvm_features: 9,
    }
}

fn table(vendor: Vendor, p: &Policy) -> Vec<CpuidEntry> {
    let mut out = [CpuidEntry::default(); 100];
    let n = supported(&Full { vendor }, p, &mut out).expect("fewer than 100 entries");
    out[..n].to_vec()
}

fn get(t: &[CpuidEntry], leaf: u32, sub: u32) -> [u32; 4] {
    t.iter()
        .find(|e| e.answers(leaf, sub))
        .unwrap_or_else(|| panic!("{leaf:x}.{sub}"))
        .values()
}

fn has(t: &[CpuidEntry], leaf: u32) -> bool {
    t.iter().any(|e| e.function == leaf)
}

#[test]
fn everything_named_is_shown_and_nothing_else() {
    let t = table(Vendor::Intel, &policy(Vendor::Intel));
    let l1 = get(&t, 1, 0);
    assert_eq!(
        l1[2],
        leaf1_ecx::ALLOWED | leaf1_ecx::HYPERVISOR | leaf1_ecx::X2APIC | leaf1_ecx::TSC_DEADLINE
    );
    assert_eq!(l1[3], leaf1_edx::ALLOWED | leaf1_edx::EMULATED);
    assert_eq!(l1[1], 0xff00, "no host APIC id");
    let hidden = [
        (1, 2, 1 << 5 | leaf1_ecx::MONITOR | (1 << 15)),
        (
            7,
            1,
            (1 << 2) | (1 << 4) | (1 << 11) | (1 << 14) | (1 << 25),
        ),
        (
            7,
            2,
            leaf7_ecx::LA57 | (1 << 7) | (1 << 5) | (1 << 31) | (1 << 24),
        ),
        (
            7,
            3,
            (1 << 20) | (1 << 22) | (1 << 24) | (1 << 25) | (1 << 5) | (1 << 30),
        ),
    ];
    for (leaf, reg, bits) in hidden {
        assert_eq!(
            get(&t, leaf, 0)[reg] & bits,
            0,
            "leaf {leaf} register {reg}"
        );
    }
    assert_eq!(
        get(&t, 7, 1)[0] & ((1 << 17) | (1 << 18) | (1 << 26)),
        0,
        "FRED, LKGS, LAM"
    );
    assert_eq!(get(&t, 6, 0), [4, 0, 0, 0]);
    assert_eq!(get(&t, 0xa, 0), [0; 4], "no PMU");
    assert_eq!(get(&t, 0x8000_0001, 0)[2] & (1 << 2), 0);
    for leaf in [0x10, 0x12, 0x14, 0x15, 0x18, 0x19, 0x1d, 0x1e, 0x20, 0x24] {
        assert!(!has(&t, leaf), "{leaf:x}");
    }
}

#[test]
fn leaves_that_clients_insist_on() {
    for v in [Vendor::Intel, Vendor::Amd] {
        let t = table(v, &policy(v));
        for leaf in [
            0,
            1,
            6,
            7,
            0xd,
            0x4000_0000,
            0x4000_0001,
            0x8000_0000,
            0x8000_0001,
            0x8000_0002,
            0x8000_0003,
            0x8000_0004,
            0x8000_0005,
            0x8000_0006,
            0x8000_0007,
            0x8000_0008,
        ] {
            assert!(has(&t, leaf), "{v:?} {leaf:x}");
        }
        assert!(t.len() < 100);
        for e in &t {
            assert_eq!(e.padding, [0; 3]);
            let same = t
                .iter()
                .filter(|o| o.function == e.function && o.index == e.index)
                .count();
            assert_eq!(same, 1, "{:x}.{} twice", e.function, e.index);
        }
    }
    let t = table(Vendor::Intel, &policy(Vendor::Intel));
    assert!(has(&t, 2) && has(&t, 4) && has(&t, 0xa));
}

#[test]
fn amd_leaves() {
    let mut p = policy(Vendor::Amd);
    let t = table(Vendor::Amd, &p);
    assert!(!has(&t, 0x8000_000a), "no nested SVM");
    assert!(!has(&t, 0x8000_001f), "no memory encryption");
    assert!(has(&t, 0x8000_001d) && has(&t, 0x8000_001e));
    let e1 = get(&t, 0x8000_0001, 0);
    assert_ne!(e1[3] & leaf1_edx::APIC, 0, "leaf 1's bits are repeated");
    let l21 = get(&t, 0x8000_0021, 0);
    assert_eq!(l21[0], ext21_eax::ALLOWED | ext21_eax::EMULATED);
    assert_eq!(l21[2], ext21_ecx::ALLOWED);
    assert_eq!(get(&t, 0x8000_0008, 0)[1], ext8_ebx::ALLOWED);
    p.spec_ctrl = false;
    let t = table(Vendor::Amd, &p);
    assert_eq!(
        get(&t, 0x8000_0008, 0)[1],
        ext8_ebx::ALLOWED & !ext8_ebx::SPEC_CTRL
    );
    assert_eq!(get(&t, 7, 0)[3] & leaf7_edx::SPECULATION, 0);
    assert_ne!(get(&t, 7, 0)[3] & leaf7_edx::ARCH_CAPABILITIES, 0);
    p.pred_cmd = false;
    let t = table(Vendor::Amd, &p);
    let features = GuestFeatures::from_table(&t, &CpuidIndex::new(&t));
    assert_eq!((features.spec_ctrl, features.pred_cmd), (0, 0));
}

/// An AMD processor with nothing but the speculation controls of 80000008H:EBX and 7:EDX that are given.
struct Controls {
    amd: u32,
    intel: u32,
    /// Highest extended leaf.
    max: u32,
}

impl HostCpuid for Controls {
    fn cpuid(&self, leaf: u32, _: u32) -> [u32; 4] {
        match leaf {
            0 => [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            7 => [0, 0, 0, self.intel],
            0x8000_0000 => [self.max, 0, 0, 0],
            0x8000_0008 => [48, self.amd, 0, 0],
            _ => [0; 4],
        }
    }
}

impl Controls {
    /// 7:EDX, 80000008H:EBX, 80000021H as offered where the kernel knows this much, and what may be written.
    fn offered(&self, known: Known) -> (u32, u32, Option<[u32; 4]>, (u64, u64)) {
        let p = Policy {
            known,
            ..policy(Vendor::Amd)
        };
        let mut out = [CpuidEntry::default(); 100];
        let n = supported(self, &p, &mut out).expect("fewer than 100 entries");
        let t = &out[..n];
        let f = GuestFeatures::from_table(t, &CpuidIndex::new(t));
        (
            get(t, 7, 0)[3] & !leaf7_edx::EMULATED,
            get(t, 0x8000_0008, 0)[1],
            has(t, 0x8000_0021).then(|| get(t, 0x8000_0021, 0)),
            (f.spec_ctrl, f.pred_cmd),
        )
    }
}

#[test]
fn amd_speculation_controls() {
    use ext8_ebx::{IBPB, IBPB_RET, IBRS, SSBD, SSB_NO, STIBP};
    let zen1 = Controls {
        amd: IBPB,
        intel: 0,
        max: 0x8000_001f,
    };
    let nothing = Known::default();
    assert_eq!(zen1.offered(nothing), (0, IBPB, None, (0, 1)));
    // Zen 3, with what its kernel has found out.
    let zen3 = Controls {
        amd: IBPB | IBRS | STIBP | SSBD,
        max: 0x8000_0021,
        ..zen1
    };
    let known = Known {
        ext8_ebx: IBPB | IBRS | STIBP,
        ext21_eax: ext21_eax::LFENCE_SERIALIZING
            | ext21_eax::VERW_CLEAR
            | ext21_eax::SBPB
            | ext21_eax::IBPB_BRTYPE,
        ext21_ecx: ext21_ecx::TSA_L1_NO,
    };
    let intel = leaf7_edx::STIBP | leaf7_edx::SSBD;
    let (l7, l8, l21, msrs) = zen3.offered(known);
    assert_eq!((l7, l8, msrs), (intel, zen3.amd, (7, 0x81)));
    let eax = known.ext21_eax | ext21_eax::EMULATED;
    assert_eq!(l21, Some([eax, 0, ext21_ecx::TSA_L1_NO, 0]));
    // A barrier that empties the return predictor too is what Intel's is.
    let zen4 = Controls {
        amd: zen3.amd | IBPB_RET,
        ..zen3
    };
    assert_eq!(zen4.offered(known).0, intel | leaf7_edx::SPEC_CTRL);
    // The leaf is there for what the kernel knows, however old the processor.
    assert_eq!(zen1.offered(known).2, l21);
    // But for one that has not 8000001DH.
    let old = Controls {
        max: 0x8000_000a,
        ..zen1
    };
    assert_eq!(old.offered(known).2, None);
    // In a guest that was given Intel's bits alone.
    let inner = Controls {
        amd: 0,
        intel: leaf7_edx::SPEC_CTRL | leaf7_edx::SSBD,
        ..zen1
    };
    let known = Known {
        ext8_ebx: IBPB | IBRS | SSB_NO,
        ..nothing
    };
    let (l7, l8, _, msrs) = inner.offered(known);
    let amd = IBPB | IBPB_RET | IBRS | SSBD | SSB_NO;
    assert_eq!((l7, l8), (inner.intel, amd));
    assert_eq!(msrs, (5, 1));
}

#[test]
fn features_follow_the_backend() {
    let base = policy(Vendor::Intel);
    let without = |f: &dyn Fn(&mut Policy)| {
        let mut p = base;
        f(&mut p);
        table(Vendor::Intel, &p)
    };
    let t = without(&|p| p.rdtscp = false);
    assert_eq!(get(&t, 0x8000_0001, 0)[3] & ext1_edx::RDTSCP, 0);
    assert_eq!(get(&t, 7, 0)[2] & leaf7_ecx::RDPID, 0);
    let t = without(&|p| p.invpcid = false);
    assert_eq!(get(&t, 7, 0)[1] & leaf7_ebx::INVPCID, 0);
    let t = without(&|p| p.xsaves = false);
    assert_eq!(get(&t, 0xd, 1)[0] & leafd_1_eax::XSAVES, 0);
    let t = without(&|p| p.pku = false);
    assert_eq!(get(&t, 7, 0)[2] & leaf7_ecx::PKU, 0);
    let t = without(&|p| p.xcr0 = 3);
    assert_eq!(get(&t, 1, 0)[2] & (leaf1_ecx::AVX | leaf1_ecx::FMA), 0);
    assert_eq!(get(&t, 7, 0)[1] & (leaf7_ebx::AVX2 | leaf7_ebx::AVX512), 0);
    let t = without(&|p| p.xcr0 = 7);
    assert_ne!(get(&t, 7, 0)[1] & leaf7_ebx::AVX2, 0);
    assert_eq!(get(&t, 7, 0)[1] & leaf7_ebx::AVX512, 0);
    let t = without(&|p| p.xcr0 = 0);
    assert!(!has(&t, 0xd));
    assert_eq!(get(&t, 1, 0)[2] & (leaf1_ecx::XSAVE | leaf1_ecx::AVX), 0);
}

#[test]
fn xsave_leaf() {
    let t = table(Vendor::Intel, &policy(Vendor::Intel));
    assert_eq!(get(&t, 0xd, 0), [0x2e7, 2696, 2696, 0], "no AMX");
    assert_eq!(get(&t, 0xd, 1)[0], 0xf, "no XFD");
    assert_eq!(get(&t, 0xd, 1)[2..], [0, 0]);
    let subs: Vec<u32> = t
        .iter()
        .filter(|e| e.function == 0xd)
        .map(|e| e.index)
        .collect();
    assert_eq!(subs, [0, 1, 2, 5, 6, 7, 9]);
}

#[test]
fn too_small_a_buffer_tells_the_size() {
    let p = policy(Vendor::Intel);
    let n = table(Vendor::Intel, &p).len();
    let host = Full {
        vendor: Vendor::Intel,
    };
    for room in [0, 1, n - 1] {
        let mut out = vec![CpuidEntry::default(); room];
        assert_eq!(supported(&host, &p, &mut out), Err(n));
    }
    let mut out = vec![CpuidEntry::default(); n];
    assert_eq!(supported(&host, &p, &mut out), Ok(n));
}

#[test]
fn physical_width() {
    let p = policy(Vendor::Intel);
    assert_eq!(
        get(&table(Vendor::Intel, &p), 0x8000_0008, 0)[0],
        (48 << 16) | (48 << 8) | 52
    );
    let five = Policy {
        la57: true,
        ..policy(Vendor::Intel)
    };
    let t = table(Vendor::Intel, &five);
    assert_eq!(get(&t, 0x8000_0008, 0)[0] >> 8 & 0xff, 57);
    assert_ne!(get(&t, 7, 0)[2] & leaf7_ecx::LA57, 0);
    // Intel's speculation controls under AMD's names as well.
    assert_eq!(get(&t, 0x8000_0008, 0)[1] >> 12 & 0xf, 0b1101);
}

#[test]
fn tsc_leaf_is_accurate_in_32_bits() {
    let mut p = policy(Vendor::Intel);
    for apic_hz in [1_000_000_000u32, 24_000_000, 25_000_000] {
        for khz in [
            1_000_000u32,
            1_999_999,
            2_400_000,
            2_399_997,
            3_792_881,
            999_983,
            4_200_123,
        ] {
            p.tsc_khz = khz;
            p.apic_hz = apic_hz;
            let [den, num, crystal, _] = get(&table(Vendor::Intel, &p), 0x15, 0);
            assert_eq!(crystal, apic_hz);
            // The guest's computation must not overflow. Its accuracy depends on how much room 32 bits leave.
            let limit = if apic_hz > 100_000_000 { 1.2e-4 } else { 2e-6 };
            let product = (crystal / 1000).checked_mul(num).expect("fits 32 bits");
            let got = (product / den) as f64;
            assert!((got / khz as f64 - 1.0).abs() < limit, "{khz} {got}");
            assert_eq!(get(&table(Vendor::Intel, &p), 0x16, 0)[0], khz / 1000);
        }
    }
    let t = table(
        Vendor::Amd,
        &Policy {
            vendor: Vendor::Amd,
            ..p
        },
    );
    assert!(!has(&t, 0x15));
}

#[test]
fn a_small_host() {
    /// Pentium-like: only leaves 0 and 1.
    struct Small;
    impl HostCpuid for Small {
        fn cpuid(&self, leaf: u32, _: u32) -> [u32; 4] {
            match leaf {
                0 => [1, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
                1 => [0x633, 0, 0, 1],
                _ => [1, 2, 3, 4],
            }
        }
    }
    let mut out = [CpuidEntry::default(); 100];
    let n = supported(&Small, &Policy::default(), &mut out).unwrap();
    let t = &out[..n];
    assert!(!has(t, 7) && !has(t, 0xd));
    assert_eq!(get(t, 0x8000_0000, 0), [0x8000_0008, 0, 0, 0]);
    assert_eq!(get(t, 0x8000_0001, 0), [0; 4]);
    assert_eq!(get(t, 0x8000_0008, 0)[0], (36 << 16) | (48 << 8) | 36);
}

#[test]
fn leaves_end_where_the_host_ends() {
    struct Upto(u32);
    impl HostCpuid for Upto {
        fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4] {
            match leaf {
                0 => [self.0, 0, 0, 0],
                l if l > self.0 && l < 0x8000_0000 => panic!("leaf {l:x} read beyond {:x}", self.0),
                _ => Full {
                    vendor: Vendor::Intel,
                }
                .cpuid(leaf, sub),
            }
        }
    }
    for max in [1, 2, 4, 6, 7, 0xa, 0xb, 0xd, 0x1f] {
        let mut out = [CpuidEntry::default(); 100];
        let n = supported(&Upto(max), &policy(Vendor::Intel), &mut out).unwrap();
        let t = &out[..n];
        assert_eq!(get(t, 0, 0)[0], max);
        for leaf in [1, 2, 4, 6, 7, 0xa, 0xb, 0xd, 0x1f] {
            assert_eq!(has(t, leaf), leaf <= max, "leaf {leaf:x} of {max:x}");
        }
    }
}

fn look(t: &[CpuidEntry], leaf: u32, sub: u32) -> [u32; 4] {
    lookup(t, &CpuidIndex::new(t), leaf, sub, &Dynamic::default())
}

fn e(function: u32, index: u32, flags: u32, r: [u32; 4]) -> CpuidEntry {
    CpuidEntry {
        function,
        index,
        flags,
        eax: r[0],
        ebx: r[1],
        ecx: r[2],
        edx: r[3],
        padding: [0; 3],
    }
}

const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];

fn small_table(v: [u32; 3]) -> Vec<CpuidEntry> {
    vec![
        e(0x8000_0000, 0, 0, [0x8000_0008, 0, 0, 0]),
        e(
            0x4000_0000,
            0,
            0,
            [
                0x4000_0001,
                KVM_SIGNATURE[0],
                KVM_SIGNATURE[1],
                KVM_SIGNATURE[2],
            ],
        ),
        e(0x4000_0001, 0, 0, [9, 0, 0, 0]),
        e(0, 0, 0, [0x16, v[0], v[1], v[2]]),
        e(1, 0, 0, [1, 1, 1, 1]),
        e(4, 0, 1, [40, 0, 0, 0]),
        e(4, 1, 1, [41, 0, 0, 0]),
        e(0xb, 0, 1, [1, 2, 0x100, 7]),
        e(0xb, 1, 1, [3, 4, 0x201, 7]),
        e(0x16, 0, 0, [16, 17, 18, 19]),
    ]
}

#[test]
fn missing_leaves() {
    let t = small_table(INTEL);
    assert_eq!(look(&t, 0x16, 5), [16, 17, 18, 19], "index not significant");
    assert_eq!(look(&t, 4, 1), [41, 0, 0, 0]);
    assert_eq!(look(&t, 4, 2), [0; 4], "in range, no such sub-leaf");
    assert_eq!(look(&t, 5, 0), [0; 4], "in range");
    assert_eq!(
        look(&t, 0x17, 0),
        [16, 17, 18, 19],
        "beyond: highest basic leaf"
    );
    assert_eq!(look(&t, 0x7fff_ffff, 9), [16, 17, 18, 19]);
    assert_eq!(look(&t, 0x8000_0002, 0), [0; 4]);
    assert_eq!(look(&t, 0x8000_0009, 0), [16, 17, 18, 19]);
    assert_eq!(look(&t, 0xc000_0000, 0), [16, 17, 18, 19]);
    assert_eq!(look(&t, 0x4000_0002, 0), [16, 17, 18, 19]);
    assert_eq!(look(&t, 0x4000_0100, 0), [16, 17, 18, 19]);
    assert_eq!(
        look(&t, 0xb, 9),
        [0, 0, 9, 7],
        "topology echoes the sub-leaf"
    );
    let t = small_table(AMD);
    assert_eq!(look(&t, 0x17, 0), [0; 4]);
    assert_eq!(look(&t, 0x8000_0009, 0), [0; 4]);
    assert_eq!(look(&t, 0xb, 9), [0, 0, 9, 7]);
    assert_eq!(look(&[], 0, 0), [0; 4]);
    assert_eq!(look(&[], 0x17, 0), [0; 4]);
}

#[test]
fn index_agrees_with_search() {
    for v in [Vendor::Intel, Vendor::Amd] {
        let mut t = table(v, &policy(v));
        t.reverse();
        t.push(e(0x4000_0100, 0, 0, [5, 6, 7, 8]));
        t.push(e(0x21, 0, 0, [9; 4]));
        let x = CpuidIndex::new(&t);
        for leaf in (0..0x30)
            .chain(0x4000_0000..0x4000_0110)
            .chain(0x8000_0000..0x8000_0030)
            .chain([0xc000_0000, !0])
        {
            for sub in 0..24 {
                assert_eq!(
                    find(&t, &x, leaf, sub),
                    t.iter().find(|e| e.answers(leaf, sub)),
                    "{leaf:x}.{sub}"
                );
            }
        }
    }
    let full = vec![e(3, 0, 0, [0; 4]); 70_000];
    CpuidIndex::new(&full);
}

#[test]
fn dynamic_bits() {
    let t = table(Vendor::Intel, &policy(Vendor::Intel));
    let x = CpuidIndex::new(&t);
    let mut d = Dynamic {
        xsave_size: 832,
        xsave_compacted_size: 840,
        ..Dynamic::default()
    };
    assert_eq!(lookup(&t, &x, 1, 0, &d)[2] & leaf1_ecx::OSXSAVE, 0);
    assert_ne!(lookup(&t, &x, 1, 0, &d)[3] & leaf1_edx::APIC, 0);
    assert_eq!(lookup(&t, &x, 7, 0, &d)[2] & leaf7_ecx::OSPKE, 0);
    assert_eq!(lookup(&t, &x, 0xd, 0, &d)[1], 832);
    assert_eq!(lookup(&t, &x, 0xd, 1, &d)[1], 840);
    assert_eq!(lookup(&t, &x, 0xd, 2, &d)[1], 576);
    d.cr4 = cr4::OSXSAVE | cr4::PKE;
    d.apic_enabled = Some(false);
    assert_ne!(lookup(&t, &x, 1, 0, &d)[2] & leaf1_ecx::OSXSAVE, 0);
    assert_eq!(lookup(&t, &x, 1, 0, &d)[3] & leaf1_edx::APIC, 0);
    assert_ne!(lookup(&t, &x, 7, 0, &d)[2] & leaf7_ecx::OSPKE, 0);
    assert_eq!(lookup(&t, &x, 7, 1, &d)[2] & leaf7_ecx::OSPKE, 0);
    d.mwait = Some(true);
    assert_ne!(lookup(&t, &x, 1, 0, &d)[2] & leaf1_ecx::MONITOR, 0);
    // A stale OSXSAVE given by a client does not survive without XSAVE or CR4.OSXSAVE.
    let t = [e(1, 0, 0, [0, 0, leaf1_ecx::OSXSAVE, 0])];
    assert_eq!(
        lookup(&t, &CpuidIndex::new(&t), 1, 0, &d)[2] & leaf1_ecx::OSXSAVE,
        0
    );
}

#[test]
fn client_tables() {
    assert_eq!(check_table(&[]), Ok(()));
    assert_eq!(check_table(&[e(0, 0, 0, [0; 4]); 256]), Ok(()));
    assert_eq!(
        check_table(&[e(0, 0, 0, [0; 4]); 257]),
        Err(TableError::TooMany)
    );
    for (width, ok) in [(0, true), (48, true), (57, true), (47, false), (64, false)] {
        let t = [e(0x8000_0008, 0, 0, [(width << 8) | 40, 0, 0, 0])];
        assert_eq!(check_table(&t).is_ok(), ok, "{width}");
    }
}

#[test]
fn features() {
    let none = GuestFeatures::default();
    assert!(!none.lm && !none.xsave);
    assert_eq!(none.maxphyaddr, 36);
    let t = table(Vendor::Intel, &policy(Vendor::Intel));
    let host = GuestFeatures::from_table(&t, &CpuidIndex::new(&t));
    assert!(
        host.lm && host.nx && host.pcid && host.smep && host.umip && host.xsaves && host.rdtscp
    );
    assert!(!host.la57);
    assert_eq!(host.maxphyaddr, 52);
    assert_eq!(host.spec_ctrl, 0x5ff);
    assert_eq!(host.pred_cmd, 1);
    assert_eq!(host.kvm_features, 9);
    assert_eq!(host.reserved_phys_bits(), !0 << 52);
    // A client that invents LA57 and a wider address does not get them.
    let mut c = t.clone();
    for x in &mut c {
        if x.function == 7 && x.index == 0 {
            x.ecx |= leaf7_ecx::LA57;
        }
        if x.function == 0x8000_0008 {
            x.eax = (57 << 8) | 52;
        }
        if x.function == 1 {
            x.ecx &= !leaf1_ecx::PCID;
        }
    }
    let g = GuestFeatures::from_table(&c, &CpuidIndex::new(&c));
    assert!(g.la57);
    let g = g.restrict(&host);
    assert!(!g.la57 && !g.pcid && g.smep);
    assert_eq!(g.maxphyaddr, 52);
    let x = CpuidIndex::new(&t);
    assert_eq!(guest_xcr0(&t, &x, !0), 0x2e7);
    assert_eq!(guest_xcr0(&t, &x, 7), 7);
    let ta = table(Vendor::Amd, &policy(Vendor::Amd));
    let a = GuestFeatures::from_table(&ta, &CpuidIndex::new(&ta));
    assert_eq!(a.vendor, Vendor::Amd);
    assert!(a.auto_ibrs && a.fxsr_opt && a.osvw);
    assert_eq!(a.pred_cmd, 0x81);
}
