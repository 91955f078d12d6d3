// SPDX-License-Identifier: GPL-2.0
//! VMRUN's consistency checks, run in software over the VMCB about to be used (APM 2 15.5.1, 15.20, 15.25).
//!
//! Emulators accept more states than processors do; this check refuses what the manual refuses.
#![forbid(unsafe_code)]

use crate::x86::cpu::msr::pat_valid;
use crate::x86::cpu::regs::{cr0, cr4, efer};
use crate::x86::cpu::violation::{rules, Violation};

/// What the processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SvmCaps {
    /// Physical-address width (CPUID 80000008H:EAX\[7:0\]).
    pub phys_bits: u8,
    /// Number of ASIDs (CPUID 8000000AH:EBX).
    pub asids: u32,
    /// Flush-by-ASID (CPUID 8000000AH:EDX\[6\]).
    pub flush_by_asid: bool,
    /// Nested paging (CPUID 8000000AH:EDX\[0\]).
    pub nested_paging: bool,
    /// LBR virtualisation (CPUID 8000000AH:EDX\[1\]).
    pub lbr_virt: bool,
    /// EFER bits that may be set, SVME included.
    pub efer_mask: u64,
    /// CR4 bits that may be set.
    pub cr4_mask: u64,
}

/// The fields of a VMCB that VMRUN checks, by the names of APM 2 appendix B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct VmcbView {
    /// Clean bits (offset 0C0h).
    pub clean: u64,
    /// Groups of fields, by clean bit, that the processor has not kept, or not with the values that they have now.
    pub stale: u64,
    /// Intercept vector 4 (offset 010h); bit 0 is VMRUN.
    pub intercept_misc2: u32,
    pub iopm_base_pa: u64,
    pub msrpm_base_pa: u64,
    /// IOIO_PROT is intercepted: the I/O permission map is used.
    pub ioio_prot: bool,
    /// MSR_PROT is intercepted: the MSR permission map is used.
    pub msr_prot: bool,
    pub asid: u32,
    pub tlb_control: u8,
    /// Offset 090h.
    pub nested_control: u64,
    pub n_cr3: u64,
    /// Offset 0B8h.
    pub virt_ext: u64,
    pub event_inj: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub dr6: u64,
    pub dr7: u64,
    pub efer: u64,
    pub g_pat: u64,
    /// CS attributes in the VMCB's 12-bit form (bit 9 L, bit 10 D).
    pub cs_attrib: u16,
}

const VMRUN_INTERCEPT: u32 = 1 << 0;
const NP_ENABLE: u64 = 1 << 0;
const LBR_ENABLE: u64 = 1 << 0;
const ATTRIB_L: u16 = 1 << 9;
const ATTRIB_D: u16 = 1 << 10;

const STATE: &str = "APM 2 15.5.1";
const INJECT: &str = "APM 2 15.20";
const NESTED: &str = "APM 2 15.25.3";
const TLB: &str = "APM 2 15.16.2";

/// Bytes of the I/O permission map.
const IOPM_SIZE: u64 = 12 << 10;
/// Bytes of the MSR permission map.
const MSRPM_SIZE: u64 = 8 << 10;

/// Checks everything that makes VMRUN exit with VMEXIT_INVALID, and that it will not use old values instead of those
/// that the VMCB has.
///
/// # Errors
///
/// The first rule that is broken.
pub fn check(v: &VmcbView, caps: &SvmCaps) -> Result<(), Violation> {
    check_state(v, caps)?;
    check_control(v, caps)?;
    check_event(v.event_inj)?;
    rules! { "APM 2 15.15.3";
        "a group of fields that has been written must not be marked clean" =>
            v.clean & v.stale == 0, v.clean & v.stale;
    }
    Ok(())
}

fn check_state(v: &VmcbView, caps: &SvmCaps) -> Result<(), Violation> {
    rules! { STATE;
        "EFER.SVME must be set in the guest's EFER" => v.efer & efer::SVME != 0, v.efer;
        "EFER must not have must-be-zero bits set" => v.efer & !caps.efer_mask == 0, v.efer;
        "CR0.NW must not be set while CR0.CD is clear" =>
            v.cr0 & cr0::CD != 0 || v.cr0 & cr0::NW == 0, v.cr0;
        "CR0 bits 63:32 must be zero" => v.cr0 >> 32 == 0, v.cr0;
        "CR3 must not have bits set above the physical address width" =>
            v.cr3 & phys_reserved(caps) == 0, v.cr3;
        "CR4 must not have must-be-zero bits set" => v.cr4 & !caps.cr4_mask == 0, v.cr4;
        "CR4.CET must not be set while CR0.WP is clear" =>
            v.cr4 & cr4::CET == 0 || v.cr0 & cr0::WP != 0, v.cr4;
        "DR6 bits 63:32 must be zero" => v.dr6 >> 32 == 0, v.dr6;
        "DR7 bits 63:32 must be zero" => v.dr7 >> 32 == 0, v.dr7;
    }
    let long = v.efer & efer::LME != 0 && v.cr0 & cr0::PG != 0;
    if long {
        rules! { STATE;
            "CR4.PAE must be set when EFER.LME and CR0.PG are set" => v.cr4 & cr4::PAE != 0, v.cr4;
            "CR0.PE must be set when EFER.LME and CR0.PG are set" => v.cr0 & cr0::PE != 0, v.cr0;
            "CS.L and CS.D must not both be set in long mode" =>
                v.cs_attrib & ATTRIB_L == 0 || v.cs_attrib & ATTRIB_D == 0, v.cs_attrib;
        }
    }
    Ok(())
}

fn check_control(v: &VmcbView, caps: &SvmCaps) -> Result<(), Violation> {
    rules! { STATE;
        "the VMRUN intercept must be set" =>
            v.intercept_misc2 & VMRUN_INTERCEPT != 0, v.intercept_misc2;
        "ASID must not be zero" => v.asid != 0, v.asid;
    }
    rules! { "APM 2 15.16";
        "ASID must be below the number of ASIDs that CPUID 8000000AH reports" =>
            v.asid < caps.asids, v.asid;
    }
    rules! { STATE;
        "the I/O permission map must lie below the maximum physical address" =>
            !v.ioio_prot || within(v.iopm_base_pa, IOPM_SIZE, caps), v.iopm_base_pa;
        "the MSR permission map must lie below the maximum physical address" =>
            !v.msr_prot || within(v.msrpm_base_pa, MSRPM_SIZE, caps), v.msrpm_base_pa;
    }
    rules! { TLB;
        "TLB_CONTROL must be 0, 1, or, with flush-by-ASID, 3 or 7" =>
            match v.tlb_control {
                0 | 1 => true,
                3 | 7 => caps.flush_by_asid,
                _ => false,
            }, v.tlb_control;
    }
    rules! { "APM 2 15.23";
        "LBR virtualisation must not be enabled where CPUID does not report it" =>
            v.virt_ext & LBR_ENABLE == 0 || caps.lbr_virt, v.virt_ext;
    }
    if v.nested_control & NP_ENABLE != 0 {
        rules! { NESTED;
            "nested paging must not be enabled where CPUID does not report it" =>
                caps.nested_paging, v.nested_control;
            // The host runs in long mode: bits 11:5 and 2:0 are reserved, ignored; only the address is checked.
            "nCR3 must not have must-be-zero bits set" =>
                v.n_cr3 & phys_reserved(caps) == 0, v.n_cr3;
        }
        rules! { "APM 2 15.25.8";
            "G_PAT must hold only defined memory types" => pat_valid(v.g_pat), v.g_pat;
        }
    }
    Ok(())
}

/// Checks the EVENTINJ field.
///
/// # Errors
///
/// The rule that is broken.
pub fn check_event(event_inj: u64) -> Result<(), Violation> {
    const VALID: u64 = 1 << 31;
    if event_inj & VALID == 0 {
        return Ok(());
    }
    let vector = (event_inj & 0xff) as u8;
    let kind = (event_inj >> 8) & 7;
    rules! { INJECT;
        "EVENTINJ.TYPE must not be reserved" =>
            matches!(kind, 0 | 2 | 3 | 4), event_inj;
        "EVENTINJ with type 3 must name the vector of an exception" =>
            kind != 3 || is_exception(vector), event_inj;
        // Bits 30:12 are reserved; bit 11 (EV) says that the error code in bits 63:32 is valid.
        "EVENTINJ reserved bits must be zero" => event_inj & 0x7fff_f000 == 0, event_inj;
    }
    Ok(())
}

/// Vectors that are exceptions (APM 2 table 8-1): not NMI, not the reserved ones.
const fn is_exception(vector: u8) -> bool {
    matches!(vector, 0 | 1 | 3..=8 | 10..=14 | 16..=19 | 21 | 28..=30)
}

const fn phys_reserved(caps: &SvmCaps) -> u64 {
    u64::MAX << (caps.phys_bits & 63)
}

/// Whether `size` bytes from `base` lie below the maximum physical address.
const fn within(base: u64, size: u64, caps: &SvmCaps) -> bool {
    match (base & !0xfff).checked_add(size - 1) {
        Some(last) => last & phys_reserved(caps) == 0,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps() -> SvmCaps {
        SvmCaps {
            phys_bits: 40,
            asids: 16,
            flush_by_asid: false,
            nested_paging: true,
            lbr_virt: false,
            efer_mask: efer::SCE | efer::LME | efer::LMA | efer::NX | efer::SVME,
            cr4_mask: 0x3f_07ff | cr4::CET,
        }
    }

    fn valid() -> VmcbView {
        VmcbView {
            clean: 0x1fdf,
            stale: 1 << 5,
            intercept_misc2: 0x27ff,
            iopm_base_pa: 0x10_0000,
            msrpm_base_pa: 0x20_0000,
            ioio_prot: true,
            msr_prot: true,
            asid: 1,
            tlb_control: 0,
            nested_control: 1,
            n_cr3: 0x30_0000,
            virt_ext: 0,
            event_inj: 0,
            cr0: 0x8005_0033,
            cr3: 0x1000,
            cr4: cr4::PAE,
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            efer: efer::SVME | efer::LME | efer::LMA | efer::SCE,
            g_pat: 0x0007_0406_0007_0406,
            cs_attrib: 0xa9b,
        }
    }

    /// Breaks one thing and expects a rule that contains `words`.
    fn breaks(words: &str, change: impl Fn(&mut VmcbView)) {
        let mut v = valid();
        change(&mut v);
        let e = check(&v, &caps()).expect_err(words);
        assert!(e.rule.contains(words), "expected {words}, got {}", e.rule);
        assert!(e.manual.starts_with("APM 2 15."));
    }

    #[test]
    fn baseline() {
        assert_eq!(check(&valid(), &caps()), Ok(()));
        let real = VmcbView {
            cr0: 0x6000_0010,
            cr3: 0,
            cr4: 0,
            efer: efer::SVME,
            cs_attrib: 0x9b,
            ..valid()
        };
        assert_eq!(check(&real, &caps()), Ok(()));
        // Paged real mode is legal (APM 2 15.19).
        let paged = VmcbView {
            cr0: 0xe000_0010,
            ..real
        };
        assert_eq!(check(&paged, &caps()), Ok(()));
    }

    #[test]
    fn every_rule() {
        breaks("EFER.SVME", |v| v.efer &= !efer::SVME);
        breaks("EFER must not have", |v| v.efer |= 1 << 9);
        breaks("CR0.NW", |v| v.cr0 |= cr0::NW);
        breaks("CR0 bits 63:32", |v| v.cr0 |= 1 << 32);
        breaks("CR4 must not have", |v| v.cr4 |= (1 << 23) | (1 << 31));
        breaks("CR4.CET", |v| {
            v.cr4 |= cr4::CET;
            v.cr0 &= !cr0::WP;
        });
        breaks("DR6", |v| v.dr6 |= 1 << 32);
        breaks("DR7", |v| v.dr7 |= 1 << 32);
        breaks("CR4.PAE", |v| v.cr4 = 0);
        breaks("CR0.PE", |v| v.cr0 &= !cr0::PE);
        breaks("CS.L and CS.D", |v| v.cs_attrib |= ATTRIB_D);
        breaks("CR3", |v| v.cr3 = 1 << 40);
        breaks("CR3", |v| {
            v.cr0 = 0x10;
            v.cr3 = 1 << 40;
        });
        breaks("VMRUN intercept", |v| v.intercept_misc2 &= !1);
        breaks("ASID must not be zero", |v| v.asid = 0);
        breaks("number of ASIDs", |v| v.asid = 16);
        breaks("I/O permission map", |v| {
            v.iopm_base_pa = (1 << 40) - 0x2000;
        });
        breaks("MSR permission map", |v| {
            v.msrpm_base_pa = (1 << 40) - 0x1000;
        });
        breaks("MSR permission map", |v| v.msrpm_base_pa = !0);
        breaks("TLB_CONTROL", |v| v.tlb_control = 2);
        breaks("TLB_CONTROL", |v| v.tlb_control = 3);
        breaks("LBR virtualisation", |v| v.virt_ext = 1);
        breaks("nCR3", |v| v.n_cr3 |= 1 << 40);
        for byte in 0..8 {
            breaks("G_PAT", |v| v.g_pat |= 0x0a << (8 * byte));
        }
        breaks("marked clean", |v| v.stale |= 1 << 2);
        breaks("marked clean", |v| v.clean |= 1 << 5);
        breaks("EVENTINJ.TYPE", |v| v.event_inj = (1 << 31) | (1 << 8));
        breaks("vector of an exception", |v| {
            v.event_inj = (1 << 31) | (3 << 8) | 2;
        });
        breaks("vector of an exception", |v| {
            v.event_inj = (1 << 31) | (3 << 8) | 32;
        });
        breaks("EVENTINJ reserved", |v| {
            v.event_inj = (1 << 31) | (1 << 12) | 0x20;
        });
    }

    #[test]
    fn nested_paging_needs_support() {
        let c = SvmCaps {
            nested_paging: false,
            ..caps()
        };
        let e = check(&valid(), &c).unwrap_err();
        assert!(e.rule.contains("nested paging"));
        let v = VmcbView {
            nested_control: 0,
            g_pat: !0,
            n_cr3: !0,
            ..valid()
        };
        assert_eq!(check(&v, &c), Ok(()), "not used, not checked");
    }

    #[test]
    fn legal_events() {
        let v = 1u64 << 31;
        for e in [
            v | 0x30,
            v | (2 << 8) | 2,
            v | (3 << 8) | 14 | (1 << 11) | (7 << 32),
            v | (4 << 8) | 0x80,
            v | (3 << 8) | 3,
            !v,
        ] {
            assert_eq!(check_event(e), Ok(()), "{e:x}");
        }
        let c = SvmCaps {
            flush_by_asid: true,
            ..caps()
        };
        for t in [0, 1, 3, 7] {
            let x = VmcbView {
                tlb_control: t,
                ..valid()
            };
            assert_eq!(check(&x, &c), Ok(()));
        }
    }

    #[test]
    fn maps_that_are_not_used_are_not_checked() {
        let v = VmcbView {
            ioio_prot: false,
            msr_prot: false,
            iopm_base_pa: !0,
            msrpm_base_pa: !0,
            ..valid()
        };
        assert_eq!(check(&v, &caps()), Ok(()));
    }
}
