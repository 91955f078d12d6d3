// SPDX-License-Identifier: GPL-2.0
//! The machine-check banks of a vCPU, and the errors that user space puts there (SDM 3B 16.3, APM 2 9.3, api.rst 4.104
//! KVM_X86_SETUP_MCE and 4.105 KVM_X86_SET_MCE).
#![forbid(unsafe_code)]

use crate::nospec;
use crate::x86::cpu::cpuid::Vendor;
use crate::x86::cpu::index as ix;

/// IA32_MCG_CAP.MCG_CTL_P: IA32_MCG_CTL exists.
const MCG_CTL_P: u64 = 1 << 8;
/// IA32_MCG_CAP.MCG_SER_P: software error recovery.
const MCG_SER_P: u64 = 1 << 24;
/// IA32_MCG_CAP.MCG_LMCE_P: machine checks of one CPU alone. User space sends them, and sets this bit.
const MCG_LMCE_P: u64 = 1 << 27;
/// IA32_MCG_CAP: number of extended state registers; only kept.
const MCG_EXT_CNT: u64 = 0xff << 16;
/// Machine-check banks at most (KVM_CAP_MCE).
pub const MCE_BANKS: usize = 32;

/// What KVM_X86_SETUP_MCE may ask for on a host of this vendor: the bank count, MCG_CTL_P, MCG_SER_P, on Intel
/// MCG_LMCE_P (KVM_X86_GET_MCE_CAP_SUPPORTED).
pub const fn mce_cap(vendor: Vendor) -> u64 {
    let lmce = match vendor {
        Vendor::Intel => MCG_LMCE_P,
        Vendor::Amd => 0,
    };
    lmce | MCG_SER_P | MCG_CTL_P | MCE_BANKS as u64
}

/// Registers of a bank: CTL, STATUS, ADDR, MISC.
const BANK: usize = 4;

/// IA32_MCG_STATUS: a machine check is being handled.
const MCG_STATUS_MCIP: u64 = 1 << 2;

/// IA32_MCi_STATUS (SDM 3B 16.3.2.2).
mod mci_status {
    pub(super) const VAL: u64 = 1 << 63;
    pub(super) const OVER: u64 = 1 << 62;
    pub(super) const UC: u64 = 1 << 61;
    pub(super) const PCC: u64 = 1 << 57;
    pub(super) const S: u64 = 1 << 56;
    pub(super) const AR: u64 = 1 << 55;
}

/// A machine-check error (`struct kvm_x86_mce`).
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct MachineCheck {
    pub status: u64,
    pub addr: u64,
    pub misc: u64,
    pub mcg_status: u64,
    pub bank: u8,
}

/// What a machine-check error does to the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineCheckEffect {
    /// Nothing beyond what is in the bank.
    Recorded,
    /// #MC.
    Exception,
    /// Shutdown: a second #MC, or #MC while CR4.MCE is off.
    Shutdown,
}

/// The request is not valid (EINVAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Machine-check registers of one vCPU.
#[derive(Clone, Debug)]
pub struct Mce {
    /// IA32_MCG_CAP.
    pub(super) cap: u64,
    /// IA32_MCG_STATUS.
    pub(super) status: u64,
    /// IA32_MCG_CTL.
    pub(super) ctl: u64,
    /// CTL, STATUS, ADDR and MISC of bank 0, of bank 1 …: in the order of the MSRs.
    pub(super) banks: [u64; BANK * MCE_BANKS],
}

impl Mce {
    /// All zeros: no bank.
    pub(super) const ZERO: Self = Self {
        cap: 0,
        status: 0,
        ctl: 0,
        banks: [0; BANK * MCE_BANKS],
    };

    /// IA32_MCG_CTL exists.
    pub(super) const fn has_ctl(&self) -> bool {
        self.cap & MCG_CTL_P != 0
    }

    /// IA32_FEATURE_CONTROL.LMCE_ON may be set.
    pub(super) const fn has_lmce(&self) -> bool {
        self.cap & MCG_LMCE_P != 0
    }

    /// Whether this vCPU has the bank.
    pub(super) const fn has_bank(&self, bank: u32) -> bool {
        (bank as u64) < self.cap & 0xff
    }

    /// Whether `msr`, not below IA32_MC0_CTL, belongs to a bank that this vCPU has.
    pub(super) const fn has(&self, msr: u32) -> bool {
        self.has_bank((msr - ix::MC0_CTL) / BANK as u32)
    }

    /// Whether `value` may be written to the bank register `msr`. `any_status`: by user space, or AMD's
    /// HWCR.McStatusWrEn is set. Unlike Intel's processors, KVM takes any ADDR and MISC.
    pub(super) const fn writable(msr: u32, value: u64, any_status: bool) -> bool {
        match msr % BANK as u32 {
            // CTL: all or nothing; Linux clears single bits of banks 0 and 4 for old errata.
            0 => value == 0 || value | (1 << 10) | 1 == u64::MAX,
            // STATUS: only zero, unless AMD's bit allows more.
            1 => value == 0 || any_status,
            _ => true,
        }
    }

    /// KVM_X86_SETUP_MCE: number of banks in bits 7:0, those of [`mce_cap`] above; `vendor` is the
    /// host's.
    ///
    /// # Errors
    ///
    /// [`Refused`] for no bank, too many, or an unknown capability.
    pub fn setup(&mut self, mcg_cap: u64, vendor: Vendor) -> Result<(), Refused> {
        let n = mcg_cap & 0xff;
        let valid = 0xff | MCG_EXT_CNT | mce_cap(vendor);
        if n == 0 || n > MCE_BANKS as u64 || mcg_cap & !valid != 0 {
            return Err(Refused);
        }
        self.cap = match vendor {
            Vendor::Intel => mcg_cap,
            // AMD's register has no more than the number of banks and MCG_CTL_P (APM 2 9.3.1.1).
            Vendor::Amd => mcg_cap & (0xff | MCG_CTL_P),
        };
        if mcg_cap & MCG_CTL_P != 0 {
            self.ctl = u64::MAX;
        }
        for ctl in self.banks.iter_mut().step_by(BANK).take(n as usize) {
            *ctl = u64::MAX;
        }
        Ok(())
    }

    /// KVM_X86_SET_MCE: an error is reported by bank `m.bank`; `enabled` is CR4.MCE (SDM 3B 16.3.2, as far as KVM
    /// goes).
    ///
    /// # Errors
    ///
    /// [`Refused`]: no such bank, or a status that is not valid.
    pub fn report(
        &mut self,
        m: &MachineCheck,
        enabled: bool,
    ) -> Result<MachineCheckEffect, Refused> {
        use mci_status::{AR, OVER, PCC, S, UC, VAL};
        let switched_off = self.has_ctl() && self.ctl != u64::MAX;
        let in_progress = self.status & MCG_STATUS_MCIP != 0;
        let n = nospec::below(m.bank.into(), (self.cap & 0xff) as usize).ok_or(Refused)?;
        if m.status & VAL == 0 {
            return Err(Refused);
        }
        let first = n * BANK;
        let bank = self.banks.get_mut(first..first + BANK).ok_or(Refused)?;
        let bank: &mut [u64; BANK] = bank.try_into().map_err(|_| Refused)?;
        let uncorrected = m.status & UC != 0;
        // Uncorrected, and nothing that has to be done about it now: recorded. (CMCI, which would tell, is not
        // offered.)
        if m.mcg_status == 0 && uncorrected && m.status & (PCC | S | AR) == 0 {
            *bank = [bank[0], m.status, m.addr, m.misc];
            self.status = 0;
            return Ok(MachineCheckEffect::Recorded);
        }
        let over = if bank[1] & VAL != 0 { OVER } else { 0 };
        if uncorrected {
            if switched_off || bank[0] != u64::MAX {
                return Ok(MachineCheckEffect::Recorded);
            }
            if in_progress || !enabled {
                return Ok(MachineCheckEffect::Shutdown);
            }
            *bank = [bank[0], m.status | over, m.addr, m.misc];
            self.status = m.mcg_status;
            return Ok(MachineCheckEffect::Exception);
        }
        // A corrected error does not overwrite an uncorrected one.
        if bank[1] & VAL == 0 || bank[1] & UC == 0 {
            *bank = [bank[0], m.status | over, m.addr, m.misc];
        } else {
            bank[1] |= OVER;
        }
        Ok(MachineCheckEffect::Recorded)
    }
}
