// SPDX-License-Identifier: GPL-2.0
//! MSR policy: existence, ownership, value checks.

use rvmm_logic::x86::cpu::cpuid::{GuestFeatures, Vendor};
use rvmm_logic::x86::cpu::{index as ix, mce::*, msr::*, reset};

const GP: Result<Written, MsrError> = Err(MsrError::Invalid);
const NONE: Result<Written, MsrError> = Err(MsrError::Unknown);
const OK: Result<Written, MsrError> = Ok(Written::Stored);

struct T {
    file: MsrFile,
    guest: GuestFeatures,
    host: GuestFeatures,
}

fn features(vendor: Vendor) -> GuestFeatures {
    GuestFeatures {
        vendor,
        maxphyaddr: 40,
        x2apic: true,
        tsc_deadline: true,
        tsc_adjust: true,
        rdtscp: true,
        xsaves: true,
        osvw: true,
        arch_capabilities: vendor == Vendor::Intel,
        signature: 0x0060_0f20,
        spec_ctrl: 7,
        pred_cmd: 1,
        kvm_features: 0x9,
        ..GuestFeatures::default()
    }
}

fn new(vendor: Vendor) -> T {
    let file = MsrFile::new(&Config {
        arch_capabilities: !0,
        platform_info: 0,
        lfence_serializing: true,
        vendor,
    });
    T {
        file,
        guest: features(vendor),
        host: features(vendor),
    }
}

impl T {
    fn access(&self, host_initiated: bool) -> Access<'_> {
        Access {
            guest: &self.guest,
            host: &self.host,
            host_initiated,
            enforce_pv: false,
        }
    }
    fn get(&self, msr: u32) -> Result<Read, MsrError> {
        self.file.get(msr, &self.access(false))
    }
    fn host_get(&self, msr: u32) -> Result<Read, MsrError> {
        self.file.get(msr, &self.access(true))
    }
    fn write(&mut self, msr: u32, v: u64, host: bool) -> Result<Written, MsrError> {
        let mut f = self.file.clone();
        let r = f.set(msr, v, &self.access(host));
        self.file = f;
        r
    }
    fn set(&mut self, msr: u32, v: u64) -> Result<Written, MsrError> {
        self.write(msr, v, false)
    }
    fn host_set(&mut self, msr: u32, v: u64) -> Result<Written, MsrError> {
        self.write(msr, v, true)
    }
    fn value(&self, msr: u32) -> u64 {
        match self.get(msr) {
            Ok(Read::Value(v)) => v,
            r => panic!("{msr:x} {r:?}"),
        }
    }
}

fn to(class: Class, v: u64) -> Result<Written, MsrError> {
    Ok(Written::Delegate(class, v))
}

#[test]
fn unknown_is_unknown() {
    for v in [Vendor::Intel, Vendor::Amd] {
        let mut t = new(v);
        // Performance counters, debug interface, P-states, SVM virtual keys.
        for msr in [
            0x309,
            0x38d,
            0xc001_0061,
            0xc80,
            0xc000_2000,
            0xc001_0118,
            0x4b56_4d20,
            !0,
        ] {
            assert_eq!(t.get(msr), Err(MsrError::Unknown), "{msr:x}");
            assert_eq!(t.host_get(msr), Err(MsrError::Unknown), "{msr:x}");
            assert_eq!(t.set(msr, 0), NONE, "{msr:x}");
            assert_eq!(t.host_set(msr, 0), NONE, "{msr:x}");
        }
    }
}

#[test]
fn reads_never_panic_and_lists_keep_their_promise() {
    for v in [Vendor::Intel, Vendor::Amd] {
        let mut t = new(v);
        for msr in (0..0x2000)
            .chain(0xc000_0000..0xc000_0200)
            .chain(0xc001_0000..0xc001_1100)
            .chain(0x4b56_4d00..0x4b56_4e00)
        {
            let _ = t.get(msr);
            for val in [0, 1, !0] {
                let _ = t.set(msr, val);
                let _ = t.host_set(msr, val);
            }
        }
        let mut t = new(v);
        let mut list = [0u32; 256];
        let n = index_list(&t.host, |_| true, &mut list).unwrap();
        for &msr in &list[..n] {
            match t.host_get(msr) {
                Ok(Read::Value(v)) => {
                    let r = t.host_set(msr, v);
                    assert!(r.is_ok() || (r, v) == (NONE, 0), "{msr:x}");
                }
                Ok(Read::Delegate(_)) => assert!(t.host_set(msr, 0).is_ok(), "{msr:x}"),
                // Those that this vCPU does not have: user space reads 0 and may write 0.
                Err(MsrError::Unknown) => {}
                e => panic!("{msr:x} {e:?}"),
            }
            assert_eq!(list[..n].iter().filter(|&&m| m == msr).count(), 1);
        }
        assert_eq!(index_list(&t.host, |_| true, &mut list[..3]), Err(n));
        let fewer = index_list(&t.host, |_| false, &mut list).unwrap();
        assert!(fewer < n && !list[..fewer].contains(&ix::VM_HSAVE_PA));
        index_list(&t.host, |_| true, &mut list).unwrap();
        for msr in [
            0x10,
            0x174,
            0x175,
            0x176,
            0x277,
            0xc000_0081,
            0xc000_0102,
            0xc000_0103,
            0x1a0,
            0x3b,
            0x6e0,
            0x17a,
            0x17b,
            0x4b56_4d00,
            0x4b56_4d01,
        ] {
            assert!(list[..n].contains(&msr), "{msr:x}");
        }
        let bare = GuestFeatures::default();
        let n = index_list(&bare, |_| false, &mut list).unwrap();
        for msr in [0x48, 0xda0, 0xc000_0103, 0x11, 0x4b56_4d00] {
            assert!(!list[..n].contains(&msr), "{msr:x}");
        }
    }
}

#[test]
fn delegation() {
    let mut t = new(Vendor::Intel);
    for (msr, class) in [
        (ix::EFER, Class::Efer),
        (ix::APIC_BASE, Class::ApicBase),
        (ix::TSC, Class::Tsc),
        (ix::TSC_ADJUST, Class::TscAdjust),
        (ix::TSC_DEADLINE, Class::TscDeadline),
        (0x800, Class::X2apic),
        (0x8ff, Class::X2apic),
        (ix::STAR, Class::Backend),
        (ix::TSC_AUX, Class::Backend),
        (ix::KVM_SYSTEM_TIME_NEW, Class::Paravirt),
        (ix::KVM_WALL_CLOCK, Class::Paravirt),
    ] {
        assert_eq!(t.get(msr), Ok(Read::Delegate(class)), "{msr:x}");
        assert_eq!(t.set(msr, 0), to(class, 0), "{msr:x}");
    }
    assert_eq!(t.get(ix::PRED_CMD), Err(MsrError::Unknown), "write-only");
    assert_eq!(t.set(ix::PRED_CMD, 1), to(Class::PredictionBarrier, 1));
    assert_eq!(t.set(ix::PRED_CMD, 2), GP);
    assert_eq!(
        t.get(ix::KVM_STEAL_TIME),
        Err(MsrError::Unknown),
        "not offered"
    );
}

#[test]
fn guest_cpuid_gates_the_guest() {
    let mut t = new(Vendor::Intel);
    t.guest = GuestFeatures::default();
    for msr in [ix::TSC_AUX, ix::SPEC_CTRL] {
        assert_eq!(t.get(msr), Err(MsrError::Invalid), "{msr:x}");
        assert_eq!(t.set(msr, 0), GP, "{msr:x}");
        assert!(t.host_get(msr).is_ok(), "{msr:x}");
        assert!(t.host_set(msr, 0).is_ok(), "{msr:x}");
    }
    // What the vCPU does not have, user space cannot write, beyond the zeros of what is listed.
    assert_eq!(t.host_get(ix::XSS), Ok(Read::Value(0)));
    assert_eq!(t.host_set(ix::XSS, 0), NONE);
    assert_eq!(t.host_get(ix::ARCH_CAPABILITIES), Err(MsrError::Unknown));
    assert_eq!(t.host_set(ix::ARCH_CAPABILITIES, 0), NONE);
    // KVM does not ask CPUID for these.
    for msr in [ix::TSC_DEADLINE, ix::TSC_ADJUST, 0x808] {
        assert!(t.get(msr).is_ok(), "{msr:x}");
        assert!(t.set(msr, 0).is_ok(), "{msr:x}");
    }
    assert_eq!(t.set(ix::TSC_ADJUST, 5), OK, "dropped");
}

#[test]
fn paravirtual_msrs_need_the_guests_bits_only_when_that_is_enforced() {
    let mut t = new(Vendor::Intel);
    t.guest = GuestFeatures::default();
    for host in [false, true] {
        let get = |enforce_pv| {
            t.file.get(
                ix::KVM_WALL_CLOCK_NEW,
                &Access {
                    enforce_pv,
                    ..t.access(host)
                },
            )
        };
        assert_eq!(get(false), Ok(Read::Delegate(Class::Paravirt)));
        assert_eq!(get(true), Err(MsrError::Unknown));
    }
}

#[test]
fn canonical_addresses() {
    let bad = 1u64 << 47;
    for v in [Vendor::Intel, Vendor::Amd] {
        let mut t = new(v);
        for msr in [
            ix::LSTAR,
            ix::CSTAR,
            ix::FS_BASE,
            ix::GS_BASE,
            ix::KERNEL_GS_BASE,
        ] {
            assert_eq!(t.set(msr, bad), GP, "{msr:x}");
            assert_eq!(t.host_set(msr, bad), GP, "{msr:x}");
            assert_eq!(t.set(msr, bad - 1), to(Class::Backend, bad - 1));
        }
    }
    assert_eq!(new(Vendor::Intel).set(ix::SYSENTER_EIP, bad), GP);
    let canonical = to(Class::Backend, 0xffff_8000_0000_0000);
    assert_eq!(
        new(Vendor::Intel).host_set(ix::SYSENTER_EIP, bad),
        canonical
    );
    assert_eq!(
        new(Vendor::Amd).set(ix::SYSENTER_EIP, bad | 5),
        to(Class::Backend, 5)
    );
    let mut other = new(Vendor::Amd);
    other.guest.vendor = Vendor::Intel;
    assert_eq!(other.set(ix::SYSENTER_EIP, bad), canonical);
}

#[test]
fn backend_values() {
    let mut t = new(Vendor::Intel);
    assert_eq!(t.set(ix::PAT, reset::PAT), to(Class::Backend, reset::PAT));
    for bad in [2u64, 3, 8, 0x80] {
        for byte in 0..8 {
            assert_eq!(t.set(ix::PAT, bad << (8 * byte)), GP, "{bad} in {byte}");
        }
    }
    for good in [0u64, 1, 4, 5, 6, 7] {
        assert!(t.set(ix::PAT, good << 56).is_ok());
    }
    assert_eq!(t.set(ix::TSC_AUX, 1 << 32), GP);
    assert_eq!(
        new(Vendor::Amd).set(ix::TSC_AUX, (1 << 32) | 5),
        to(Class::Backend, 5)
    );
    assert_eq!(t.set(ix::SPEC_CTRL, 8), GP);
    assert_eq!(t.set(ix::SPEC_CTRL, 7), to(Class::Backend, 7));
    assert_eq!(t.set(ix::PRED_CMD, 1), to(Class::PredictionBarrier, 1));
    assert_eq!(t.set(ix::PRED_CMD, 1 << 7), GP, "SBPB");
    assert_eq!(t.set(ix::FLUSH_CMD, 0), GP, "not offered");
    t.guest.flush_l1d = true;
    assert_eq!(t.set(ix::FLUSH_CMD, 1), to(Class::L1dFlush, 1));
    assert_eq!(t.set(ix::FLUSH_CMD, 2), GP);
    assert_eq!(t.get(ix::FLUSH_CMD), Err(MsrError::Unknown));
    assert_eq!(t.get(ix::PRED_CMD), Err(MsrError::Unknown));
    t.guest.pred_cmd = 0x80;
    assert_eq!(t.set(ix::PRED_CMD, 1), GP, "IBPB");
    assert_eq!(
        t.set(ix::PRED_CMD, 1 << 7),
        to(Class::PredictionBarrier, 1 << 7)
    );
    // LBR and BTF may be set, and are not.
    assert_eq!(t.set(ix::DEBUGCTL, 3), OK);
    assert_eq!(t.value(ix::DEBUGCTL), 0);
    assert_eq!(t.set(ix::DEBUGCTL, 1 << 6), GP);
    assert_eq!(t.set(ix::FMASK, 0x1_0004_7700), GP);
    assert_eq!(t.set(ix::FMASK, 0x4_7700), to(Class::Backend, 0x4_7700));
    assert_eq!(new(Vendor::Amd).set(ix::DEBUGCTL, !0), OK);
}

#[test]
fn mtrrs() {
    let mut t = new(Vendor::Intel);
    assert_eq!(t.value(ix::MTRR_CAP), 0x508);
    assert_eq!(t.set(ix::MTRR_CAP, 0x508), NONE);
    assert_eq!(t.host_set(ix::MTRR_CAP, 0x508), NONE);
    assert_eq!(t.set(ix::MTRR_DEF_TYPE, 0xc06), OK);
    assert_eq!(t.value(ix::MTRR_DEF_TYPE), 0xc06);
    for bad in [2, 3, 7, 0x100, 0x1000] {
        assert_eq!(t.set(ix::MTRR_DEF_TYPE, bad), GP, "{bad:x}");
    }
    for (i, msr) in [0x250, 0x258, 0x259]
        .into_iter()
        .chain(0x268..=0x26f)
        .enumerate()
    {
        let v = 0x0606_0606_0606_0000 | if i % 2 == 0 { 0x0505 } else { 0x0404 };
        assert_eq!(t.set(msr, v), OK);
        assert_eq!(t.value(msr), v);
        assert_eq!(t.set(msr, 2 << 24), GP);
    }
    assert_eq!(t.get(0x25a), Err(MsrError::Invalid));
    assert_eq!(t.set(0x25a, 0), GP);
    for msr in 0x200..=0x20f {
        let v = 0x10_0000_0800 | if msr & 1 == 0 { 6 } else { 0 };
        let v = if msr & 1 == 0 { v & !0x800 } else { v };
        assert_eq!(t.set(msr, v), OK, "{msr:x}");
        assert_eq!(t.value(msr), v);
        assert_eq!(t.set(msr, 1 << 40), GP, "above MAXPHYADDR");
    }
    assert_eq!(t.set(0x200, 0x106), GP);
    assert_eq!(t.set(0x200, 2), GP);
    assert_eq!(t.set(0x201, 0x400), GP);
    assert_eq!(t.get(0x210), Err(MsrError::Invalid));
    t.guest.maxphyaddr = 36;
    assert_eq!(t.set(0x201, 1 << 37), GP);
    assert_eq!(t.host_set(0x201, 1 << 37), OK);
}

#[test]
fn machine_check() {
    let mut t = new(Vendor::Intel);
    assert_eq!(t.value(ix::MCG_CAP), 32);
    assert_eq!(t.get(ix::MCG_CTL), Err(MsrError::Invalid), "no MCG_CTL_P");
    assert_eq!(t.set(ix::MCG_CTL, 0), GP);
    assert_eq!(t.host_set(ix::MCG_CTL, 0), OK);
    assert_eq!(t.host_set(ix::MCG_CTL, !0), GP);
    for bad in [0, 33, 0x100_0000_000a, 0x20a] {
        assert_eq!(
            t.file.mce.setup(bad, Vendor::Intel),
            Err(Refused),
            "{bad:x}"
        );
    }
    t.file.mce.setup(0x100_010a, Vendor::Intel).unwrap();
    assert_eq!(t.value(ix::MCG_CAP), 0x100_010a);
    assert_eq!(t.value(ix::MCG_CTL), !0);
    assert_eq!(t.value(0x400), !0);
    assert_eq!(t.value(0x424), !0, "bank 9");
    assert_eq!(t.get(0x428), Err(MsrError::Invalid), "bank 10");
    assert_eq!(t.host_set(0x428, 0), GP, "bank 10");
    assert_eq!(
        (t.host_set(0x289, 0), t.host_set(0x28a, 0)),
        (OK, GP),
        "CTL2 of banks 9, 10"
    );
    assert_eq!(t.get(0x280), Err(MsrError::Invalid), "no CMCI");
    assert_eq!(t.set(0x400, 0), OK);
    assert_eq!(t.set(0x400, !0), OK);
    assert_eq!(t.set(0x400, !1), OK, "bank 0 erratum");
    assert_eq!(t.set(0x400, 5), GP);
    assert_eq!(t.set(0x401, 1), GP);
    assert_eq!(t.set(0x401, 0), OK);
    assert_eq!(t.host_set(0x401, 1 << 63), OK);
    assert_eq!(t.value(0x401), 1 << 63);
    assert_eq!(t.set(0x402, 1), OK, "as in KVM");
    assert_eq!(t.host_set(0x400, 5), GP);
    assert_eq!(t.host_set(0x403, 77), OK);
    assert_eq!(t.value(0x403), 77);
    assert_eq!(t.set(ix::MCG_CAP, 0), NONE);
    assert_eq!(t.host_set(ix::MCG_CAP, 0), NONE);
    assert_eq!(t.set(ix::MCG_CTL, 5), GP);
    assert_eq!(t.set(ix::MCG_STATUS, 4), OK);
    assert_eq!(t.set(ix::MCG_STATUS, !0), OK, "as in KVM");
    let mut a = new(Vendor::Amd);
    assert_eq!(a.set(0x401, 1), GP);
    assert_eq!(a.set(ix::HWCR, 1 << 18), OK);
    assert_eq!(a.set(0x401, 1), OK, "McStatusWrEn");
}

#[test]
fn local_machine_checks() {
    const LMCE_P: u64 = 1 << 27;
    const LOCK_AND_LMCE: u64 = 1 << 20 | 1;
    let mut t = new(Vendor::Intel);
    assert_eq!(t.set(ix::FEATURE_CONTROL, LOCK_AND_LMCE), GP, "not told");
    t.file.mce.setup(LMCE_P | 10, Vendor::Intel).unwrap();
    assert_eq!(t.value(ix::MCG_CAP), LMCE_P | 10);
    assert_eq!(t.set(ix::MCG_EXT_CTL, 1), GP, "firmware has not allowed it");
    assert_eq!(t.set(ix::FEATURE_CONTROL, LOCK_AND_LMCE | 4), GP, "no VMX");
    assert_eq!(t.set(ix::FEATURE_CONTROL, LOCK_AND_LMCE), OK);
    assert_eq!(t.set(ix::MCG_EXT_CTL, 3), GP);
    assert_eq!(t.set(ix::MCG_EXT_CTL, 1), OK);
    assert_eq!(t.value(ix::MCG_EXT_CTL), 1);
    let mut a = new(Vendor::Amd);
    assert_eq!(a.file.mce.setup(LMCE_P | 10, Vendor::Amd), Err(Refused));
}

#[test]
fn storage() {
    let mut t = new(Vendor::Intel);
    assert_eq!(t.value(ix::MISC_ENABLE), 0x1800);
    assert_eq!(t.value(ix::UCODE_REV), 1 << 32, "KVM's");
    assert_eq!(t.set(ix::MISC_ENABLE, 0), GP, "read-only bits stay");
    assert_eq!(t.set(ix::MISC_ENABLE, 0x1881), OK);
    assert_eq!(t.value(ix::MISC_ENABLE), 0x1801, "no EMON");
    assert_eq!(t.host_set(ix::MISC_ENABLE, 1), OK);
    assert_eq!(t.value(ix::MISC_ENABLE), 1);
    assert_eq!(t.set(ix::MISC_ENABLE, 1 << 40), OK, "as in KVM");
    assert_eq!(t.value(ix::FEATURE_CONTROL), 0);
    assert_eq!(t.set(ix::FEATURE_CONTROL, 5), GP, "no VMX");
    assert_eq!(t.set(ix::FEATURE_CONTROL, 1), OK);
    assert_eq!(t.set(ix::FEATURE_CONTROL, 1), GP, "locked");
    assert_eq!(t.host_set(ix::FEATURE_CONTROL, 8), GP);
    assert_eq!(t.host_set(ix::FEATURE_CONTROL, 5), OK);
    let rev = t.value(ix::UCODE_REV);
    assert_eq!(t.set(ix::UCODE_REV, 0), OK);
    assert_eq!(t.value(ix::UCODE_REV), rev, "write ignored");
    assert_eq!(t.host_set(ix::UCODE_REV, 5), OK);
    assert_eq!(t.value(ix::UCODE_REV), 5);
    assert_eq!(t.set(ix::UCODE_WRITE, 0x1234), OK);
    assert_eq!(t.value(ix::ARCH_CAPABILITIES), arch_capabilities::ALLOWED);
    assert_eq!(t.set(ix::ARCH_CAPABILITIES, 1), NONE);
    assert_eq!(t.set(ix::TSX_CTRL, 3), OK);
    assert_eq!(t.set(ix::TSX_CTRL, 4), GP);
    assert_eq!(t.host_set(ix::ARCH_CAPABILITIES, 1), OK);
    assert_eq!(t.get(ix::TSX_CTRL), Err(MsrError::Invalid), "not told");
    assert_eq!(t.host_get(ix::TSX_CTRL), Ok(Read::Value(3)));
    assert_eq!(t.host_set(ix::ARCH_CAPABILITIES, 1 << 7 | 1 << 12), OK);
    assert_eq!(t.set(ix::XSS, 0), Ok(Written::Stored));
    assert_eq!(t.set(ix::XSS, 0x100), GP);
    assert_eq!(t.value(ix::XSS), 0);
    assert_eq!(t.set(ix::PLATFORM_INFO, 0), GP);
    assert_eq!(t.set(ix::MISC_FEATURES_ENABLES, 1), GP, "no CPUID faulting");
    assert_eq!(t.host_set(ix::PLATFORM_INFO, 1 << 31), OK);
    assert_eq!(t.set(ix::MISC_FEATURES_ENABLES, 2), GP);
    assert_eq!(t.set(ix::MISC_FEATURES_ENABLES, 1), OK);
    assert!(t.file.cpuid_faults());
    assert_eq!(t.host_set(ix::PLATFORM_INFO, 0), OK);
    assert!(t.file.cpuid_faults(), "stays");
    assert_eq!(t.set(ix::MISC_FEATURES_ENABLES, 0), OK);
    assert_eq!(t.set(ix::POWER_CTL, 2), OK);
    assert_eq!(t.value(ix::POWER_CTL), 2, "kept, without effect");
    assert_eq!(t.value(ix::PLATFORM_ID), 0);
    assert_eq!(t.set(ix::P5_MC_TYPE, 0), NONE);
    assert_eq!(
        (t.value(ix::FSB_FREQ), t.value(ix::EBC_FREQUENCY_ID)),
        (3, 1 << 24)
    );
    assert_eq!(t.value(0x641), 0, "RAPL");
    assert_eq!(t.set(ix::BBL_CR_CTL3, 1 << 19), OK);
    assert_eq!(t.value(ix::BBL_CR_CTL3), 0xbe70_2111);
    assert_eq!(
        (t.get(ix::SMBASE), t.host_get(ix::SMBASE)),
        (Err(MsrError::Invalid), Ok(Read::Value(0x3_0000)))
    );
    assert_eq!((t.value(ix::SMI_COUNT), t.set(ix::SMI_COUNT, 0)), (0, GP));
    assert_eq!(t.get(0x480), Err(MsrError::Invalid), "VMX");
}

#[test]
fn amd() {
    let mut a = new(Vendor::Amd);
    let mut i = new(Vendor::Intel);
    for msr in [ix::VM_CR, ix::DE_CFG, ix::IC_CFG] {
        assert!(a.get(msr).is_ok(), "{msr:x}");
        assert_eq!(i.get(msr), Err(MsrError::Unknown), "{msr:x}");
        assert_eq!(i.host_set(msr, 0), NONE, "{msr:x}");
    }
    for t in [&mut a, &mut i] {
        // Guests set single bits without a fault handler.
        for msr in [ix::NB_CFG, ix::DC_CFG, ix::TW_CFG, ix::BU_CFG2, ix::EX_CFG] {
            assert_eq!(t.set(msr, 1 << 46), OK, "{msr:x}");
            assert_eq!(t.value(msr), 0, "{msr:x}");
        }
        for msr in [ix::SYSCFG, ix::TSEG_ADDR, ix::INT_PENDING_MSG] {
            assert_eq!((t.value(msr), t.set(msr, 0)), (0, NONE), "{msr:x}");
        }
        assert_eq!(t.set(ix::MMIO_CONF_BASE, 0), OK);
        assert_eq!(t.set(ix::MMIO_CONF_BASE, 1), GP);
        assert_eq!(t.set(ix::K7_CLK_CTL, 1), OK);
        assert_eq!(t.value(ix::K7_CLK_CTL), 0x2000_0000);
        assert_eq!(t.set(ix::PATCH_LOADER, 1), OK);
        assert_eq!(t.get(ix::PATCH_LOADER), Err(MsrError::Unknown));
    }
    assert_eq!((a.value(ix::HWCR), i.value(ix::HWCR)), (0, 0));
    for bit in 0..64 {
        let v = 1u64 << bit;
        let r = a.set(ix::HWCR, v);
        match bit {
            18 | 24 => assert_eq!((r, a.value(ix::HWCR)), (OK, v)),
            3 | 6 | 8 => assert_eq!((r, a.value(ix::HWCR)), (OK, 0)),
            _ => assert_eq!(r, GP, "{bit}"),
        }
    }
    a.guest.gp_on_user_cpuid = true;
    assert!(!a.file.cpuid_faults());
    assert_eq!(a.set(ix::HWCR, 1 << 35), OK);
    assert!(a.file.cpuid_faults());
    assert_eq!(a.value(ix::DE_CFG), 2);
    assert_eq!(a.set(ix::DE_CFG, 2), OK);
    assert_eq!(a.set(ix::DE_CFG, 4), GP);
    // LOCK and SVMDIS stay once SVM is disabled.
    assert_eq!(a.set(ix::VM_CR, 0x20), GP);
    assert_eq!(a.set(ix::VM_CR, 0x8), OK);
    assert_eq!(a.set(ix::VM_CR, 0x11), OK);
    assert_eq!(a.value(ix::VM_CR), 0x11);
    assert_eq!(a.set(ix::VM_CR, 0xe), OK);
    assert_eq!(a.value(ix::VM_CR), 0x16);
    assert_eq!(a.value(ix::IC_CFG), 0x1e, "15h, model 2");
    a.guest.signature = 0x0066_0f01;
    assert_eq!(a.value(ix::IC_CFG), 0, "15h, model 60h");
    assert_eq!(a.set(ix::VM_HSAVE_PA, 0x1234), GP);
    assert_eq!(a.set(ix::VM_HSAVE_PA, 1 << 40), GP, "above MAXPHYADDR");
    assert_eq!(a.set(ix::VM_HSAVE_PA, 0x5000), OK);
    assert_eq!(a.value(ix::VM_HSAVE_PA), 0x5000);
    assert_eq!(i.set(ix::VM_HSAVE_PA, 0x1234), OK);
    assert_eq!(i.value(ix::VM_HSAVE_PA), 0);
    assert_eq!(a.host_get(ix::TSC_RATIO), Ok(Read::Value(1 << 32)));
    assert_eq!(a.get(ix::TSC_RATIO), Err(MsrError::Invalid));
    assert_eq!(a.host_set(ix::VIRT_SPEC_CTRL, 4), OK);
    assert_eq!(a.host_set(ix::VIRT_SPEC_CTRL, 1), GP);
    assert_eq!(a.value(ix::OSVW_ID_LENGTH), 4);
    assert_eq!(a.set(ix::OSVW_ID_LENGTH, 9), OK, "as in KVM");
    assert_eq!(a.value(ix::OSVW_ID_LENGTH), 9);
    a.guest.osvw = false;
    assert_eq!(a.get(ix::OSVW_ID_LENGTH), Err(MsrError::Invalid));
}

#[test]
fn machine_checks() {
    const VAL: u64 = 1 << 63;
    const OVER: u64 = 1 << 62;
    const UC: u64 = 1 << 61;
    const PCC: u64 = 1 << 57;
    const MCIP: u64 = 1 << 2;
    use MachineCheckEffect::*;
    let mut t = new(Vendor::Intel);
    t.file.mce.setup(4 | 1 << 8, Vendor::Intel).unwrap();
    let report = |t: &mut T, bank, status, mcg_status, enabled| {
        let m = MachineCheck {
            status,
            addr: 1,
            misc: 2,
            mcg_status,
            bank,
        };
        t.file.mce.report(&m, enabled)
    };
    let status = |t: &T, bank: u32| match t.host_get(0x401 + 4 * bank) {
        Ok(Read::Value(v)) => v,
        r => panic!("{r:?}"),
    };
    assert_eq!(report(&mut t, 4, VAL, 0, true), Err(Refused));
    assert_eq!(report(&mut t, 255, VAL, 0, true), Err(Refused));
    assert_eq!(report(&mut t, 0, UC, 0, true), Err(Refused));
    // Corrected.
    assert_eq!(report(&mut t, 0, VAL | 7, 0, false), Ok(Recorded));
    assert_eq!(status(&t, 0), VAL | 7);
    assert_eq!(report(&mut t, 0, VAL | 8, 0, false), Ok(Recorded));
    assert_eq!(status(&t, 0), VAL | OVER | 8);
    // Uncorrected without a need to act.
    assert_eq!(report(&mut t, 1, VAL | UC, 0, false), Ok(Recorded));
    assert_eq!(status(&t, 1), VAL | UC);
    // A corrected one does not hide it.
    assert_eq!(report(&mut t, 1, VAL | 9, 0, false), Ok(Recorded));
    assert_eq!(status(&t, 1), VAL | UC | OVER);
    // Uncorrected.
    assert_eq!(report(&mut t, 2, VAL | UC | PCC, MCIP, false), Ok(Shutdown));
    assert_eq!(report(&mut t, 2, VAL | UC | PCC, MCIP, true), Ok(Exception));
    assert_eq!(t.value(ix::MCG_STATUS), MCIP);
    assert_eq!(report(&mut t, 3, VAL | UC | PCC, MCIP, true), Ok(Shutdown));
    assert_eq!(status(&t, 3), 0);
    // Switched off.
    assert_eq!(t.host_set(ix::MCG_STATUS, 0), OK);
    assert_eq!(t.host_set(0x40c, 0), OK);
    assert_eq!(report(&mut t, 3, VAL | UC | PCC, MCIP, true), Ok(Recorded));
    assert_eq!(status(&t, 3), 0);
    assert_eq!(t.host_set(ix::MCG_CTL, 0), OK);
    assert_eq!(report(&mut t, 2, VAL | UC | PCC, MCIP, true), Ok(Recorded));
    // AMD's register is smaller.
    assert!(t.file.mce.setup(4 | 1 << 8 | 1 << 24, Vendor::Amd).is_ok());
    assert_eq!(t.value(ix::MCG_CAP), 0x104);
}
