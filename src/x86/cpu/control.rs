// SPDX-License-Identifier: GPL-2.0
//! Rules for loading CR0, CR3, CR4 and EFER, by the guest (MOV, WRMSR) and by user space (KVM_SET_SREGS)
//! (SDM 3A 2.5, 4.1.1, 4.10.1, 10.8.5; SDM 2B MOV-control registers; APM 2 3.1, 14.6).
#![forbid(unsafe_code)]

use crate::x86::cpu::cpuid::GuestFeatures;
use crate::x86::cpu::regs::{cr0, cr4, efer, Seg, Sregs};

/// The instruction faults with #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

const fn bits(on: bool, mask: u64) -> u64 {
    if on {
        mask
    } else {
        0
    }
}

/// CR4 bits that this vCPU may set.
pub const fn cr4_allowed(f: &GuestFeatures) -> u64 {
    cr4::BASE
        | bits(f.umip, cr4::UMIP)
        | bits(f.la57, cr4::LA57)
        | bits(f.fsgsbase, cr4::FSGSBASE)
        | bits(f.pcid, cr4::PCIDE)
        | bits(f.xsave, cr4::OSXSAVE)
        | bits(f.smep, cr4::SMEP)
        | bits(f.smap, cr4::SMAP)
        | bits(f.pku, cr4::PKE)
}

/// CR4 bits that are reserved for this vCPU.
pub const fn cr4_reserved_bits(f: &GuestFeatures) -> u64 {
    !cr4_allowed(f)
}

/// EFER bits that this vCPU may set (LMA is read-only, but may be written with its value).
pub const fn efer_allowed(f: &GuestFeatures) -> u64 {
    efer::SCE
        | bits(f.lm, efer::LME | efer::LMA)
        | bits(f.nx, efer::NX)
        | bits(f.fxsr_opt, efer::FFXSR)
        | bits(f.auto_ibrs, efer::AUTOIBRS)
}

/// CR3 bits that must be zero when it is loaded in long mode: those above MAXPHYADDR (SDM 3A 4.5). Bit 63 of the
/// source operand is the no-flush hint with PCIDs and is never stored.
pub const fn cr3_reserved_bits(f: &GuestFeatures) -> u64 {
    f.reserved_phys_bits()
}

/// What MOV to CR0 (or LMSW, CLTS) leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr0Write {
    /// The value to store: reserved bits dropped, ET set.
    pub cr0: u64,
    /// EFER with LMA following CR0.PG (SDM 3A 10.8.5).
    pub efer: u64,
    /// PAE paging (not long mode) goes on: the caller has to load the PDPTEs and may fault.
    pub load_pdptes: bool,
}

/// CR0 after LMSW, which cannot clear PE. Valid whenever `cr0` was.
pub const fn with_machine_status(cr0: u64, word: u16) -> u64 {
    cr0 & !0xe | (word & 0xf) as u64
}

/// Checks a guest's write of `new` to CR0.
///
/// # Errors
///
/// [`Gp`] as in SDM 2B "MOV-Move to/from Control Registers".
pub fn cr0_write_check(
    old: u64,
    new: u64,
    cr4: u64,
    efer: u64,
    cs_l: bool,
) -> Result<Cr0Write, Gp> {
    if new >> 32 != 0 {
        return Err(Gp);
    }
    let new = new & cr0::DEFINED | cr0::ET;
    if new & cr0::PG != 0 && new & cr0::PE == 0 {
        return Err(Gp);
    }
    if new & cr0::NW != 0 && new & cr0::CD == 0 {
        return Err(Gp);
    }
    if new & cr0::WP == 0 && cr4 & cr4::CET != 0 {
        return Err(Gp);
    }
    let mut new_efer = efer;
    let mut load_pdptes = false;
    if new & cr0::PG != 0 && old & cr0::PG == 0 {
        if efer & efer::LME != 0 {
            if cr4 & cr4::PAE == 0 || cs_l {
                return Err(Gp);
            }
            new_efer |= efer::LMA;
        } else {
            load_pdptes = cr4 & cr4::PAE != 0;
        }
    } else if new & cr0::PG == 0 && old & cr0::PG != 0 {
        if cr4 & cr4::PCIDE != 0 || (efer & efer::LMA != 0 && cs_l) {
            return Err(Gp);
        }
        new_efer &= !efer::LMA;
    } else if new & cr0::PG != 0 && efer & efer::LMA == 0 && cr4 & cr4::PAE != 0 {
        // With PAE paging, changing CD, NW or PG reloads the PDPTEs (SDM 3A 4.4.1).
        load_pdptes = (old ^ new) & (cr0::CD | cr0::NW) != 0;
    }
    Ok(Cr0Write {
        cr0: new,
        efer: new_efer,
        load_pdptes,
    })
}

/// What MOV to CR4 leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr4Write {
    /// The value to store.
    pub cr4: u64,
    /// A paging bit changed: all translations of the vCPU go (SDM 3A 4.10.4.1).
    pub flush: bool,
    /// CPUID output changed (OSXSAVE, PKE).
    pub cpuid_changed: bool,
    /// PAE paging is on and a bit changed that reloads the PDPTEs (SDM 3A 4.4.1).
    pub load_pdptes: bool,
}

/// Checks a guest's write of `new` to CR4.
///
/// # Errors
///
/// [`Gp`] as in SDM 2B "MOV-Move to/from Control Registers".
pub fn cr4_write_check(
    old: u64,
    new: u64,
    cr0: u64,
    cr3: u64,
    efer: u64,
    f: &GuestFeatures,
) -> Result<Cr4Write, Gp> {
    if new & cr4_reserved_bits(f) != 0 {
        return Err(Gp);
    }
    let long = efer & efer::LMA != 0;
    if long && (new & cr4::PAE == 0 || (old ^ new) & cr4::LA57 != 0) {
        return Err(Gp);
    }
    if new & cr4::PCIDE != 0 && old & cr4::PCIDE == 0 && (!long || cr3 & 0xfff != 0) {
        return Err(Gp);
    }
    if new & cr4::CET != 0 && cr0 & cr0::WP == 0 {
        return Err(Gp);
    }
    let changed = old ^ new;
    const FLUSH: u64 =
        cr4::PGE | cr4::PAE | cr4::PSE | cr4::PCIDE | cr4::LA57 | cr4::SMEP | cr4::SMAP | cr4::PKE;
    const PDPTE: u64 = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
    Ok(Cr4Write {
        cr4: new,
        flush: changed & FLUSH != 0,
        cpuid_changed: changed & (cr4::OSXSAVE | cr4::PKE) != 0,
        load_pdptes: cr0 & cr0::PG != 0 && !long && new & cr4::PAE != 0 && changed & PDPTE != 0,
    })
}

/// Checks a guest's write of `new` to CR3 and returns what to store: bit 63, the hint "no flush", is dropped.
///
/// # Errors
///
/// [`Gp`] when reserved bits are set. In PAE paging without long mode the caller must also load the PDPTEs.
pub fn cr3_write_check(new: u64, cr4: u64, efer: u64, f: &GuestFeatures) -> Result<u64, Gp> {
    const NO_FLUSH: u64 = 1 << 63;
    let mut value = new;
    if cr4 & cr4::PCIDE != 0 {
        value &= !NO_FLUSH;
    }
    if efer & efer::LMA != 0 && value & cr3_reserved_bits(f) != 0 {
        return Err(Gp);
    }
    Ok(value)
}

/// Checks a write of `value` to EFER and returns what to store. `allowed`: [`efer_allowed`] of the guest, or of the
/// host for a write by user space.
///
/// # Errors
///
/// [`Gp`] for reserved bits, or for a change of LME while paging is on (SDM 3A 10.8.5). A write to LMA is ignored.
pub const fn efer_write_check(old: u64, value: u64, cr0: u64, allowed: u64) -> Result<u64, Gp> {
    if value & !(allowed | efer::LMA) != 0 {
        return Err(Gp);
    }
    if cr0 & cr0::PG != 0 && (old ^ value) & efer::LME != 0 {
        return Err(Gp);
    }
    Ok(value & !efer::LMA | old & efer::LMA)
}

/// Checks system registers given by user space (KVM_SET_SREGS, EINVAL) as KVM does: control registers, and what they
/// have to do with each other. An entry can still fail on the rest.
///
/// # Errors
///
/// A sentence that says what is wrong.
pub fn sregs_valid(s: &Sregs, f: &GuestFeatures) -> Result<(), &'static str> {
    if s.cr0 >> 32 != 0 {
        return Err("CR0 has bits above 31");
    }
    if s.cr0 & cr0::PG != 0 && s.cr0 & cr0::PE == 0 {
        return Err("CR0.PG without CR0.PE");
    }
    if s.cr0 & cr0::NW != 0 && s.cr0 & cr0::CD == 0 {
        return Err("CR0.NW without CR0.CD");
    }
    if s.cr4 & cr4_reserved_bits(f) != 0 {
        return Err("CR4 has bits that the vCPU's CPUID does not offer");
    }
    if s.efer & !efer_allowed(f) != 0 {
        return Err("EFER has bits that the vCPU's CPUID does not offer");
    }
    if s.efer & efer::LME != 0 && s.cr0 & cr0::PG != 0 {
        if s.cr4 & cr4::PAE == 0 {
            return Err("long mode without CR4.PAE");
        }
        if s.efer & efer::LMA == 0 {
            return Err("EFER.LME and CR0.PG without EFER.LMA");
        }
        if s.cr3 & cr3_reserved_bits(f) != 0 {
            return Err("CR3 has bits above the physical-address width");
        }
    } else {
        if s.efer & efer::LMA != 0 {
            return Err("EFER.LMA outside long mode");
        }
        if s.seg(Seg::Cs).l {
            return Err("CS.L outside long mode");
        }
    }
    Ok(())
}

/// Whether RSM loads these registers: [`sregs_valid`], and what no mode lets instructions load and no entry takes.
pub fn sregs_loadable(s: &Sregs, f: &GuestFeatures) -> bool {
    sregs_valid(s, f).is_ok()
        && s.cr3 & cr3_reserved_bits(f) == 0
        && (s.cr4 & cr4::PCIDE == 0 || s.efer & efer::LMA != 0)
        && (s.cr4 & cr4::CET == 0 || s.cr0 & cr0::WP != 0)
}
