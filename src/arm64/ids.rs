// SPDX-License-Identifier: GPL-2.0
//! The ID registers of a VM: what [`idreg`] allows, or less, where user space has said so before a vCPU has run.

use crate::arm64::el2;
use crate::arm64::esr::SysReg;
use crate::arm64::idreg::{self, COUNT, IDENTITY, IMPLEMENTATION};
use crate::nospec::Nospec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};
use kernel::prelude::*;

/// Those of a VM.
pub(crate) struct Ids {
    values: [AtomicU64; COUNT],
    /// Whether there is pointer authentication: not decided, no, yes.
    keys: AtomicU8,
}

const UNDECIDED: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;

/// The most that a VM can have, with pointer authentication or without.
pub(crate) fn limit(reg: SysReg, keys: bool) -> u64 {
    let all = idreg::limit(reg, el2::host_id(reg));
    if keys {
        all
    } else {
        all & !idreg::of_keys(reg)
    }
}

impl Ids {
    /// All that there is, but for what vCPUs have to ask for.
    pub(crate) fn new() -> Self {
        let ids = Self {
            values: [const { AtomicU64::new(0) }; COUNT],
            keys: AtomicU8::new(UNDECIDED),
        };
        for (value, reg) in ids.values.iter().zip(idreg::all()) {
            value.store(limit(reg, false), Ordering::Relaxed);
        }
        ids
    }

    /// Whether there is pointer authentication, which the first vCPU decides. EINVAL: it has decided otherwise.
    pub(crate) fn set_keys(&self, there: bool) -> Result {
        let (new, how) = (if there { YES } else { NO }, Ordering::Relaxed);
        match self.keys.compare_exchange(UNDECIDED, new, how, how) {
            Ok(_) => {
                // What user space has written before stays as it is.
                for (value, reg) in self.values.iter().zip(idreg::all()) {
                    if there {
                        value.fetch_or(limit(reg, true) & idreg::of_keys(reg), how);
                    }
                }
                Ok(())
            }
            Err(old) if old == new => Ok(()),
            Err(_) => Err(EINVAL),
        }
    }

    /// What a guest reads of `reg`.
    #[inline]
    pub(crate) fn get(&self, reg: SysReg) -> u64 {
        let value = idreg::index(reg).and_then(|n| self.values.get_nospec(n));
        value.map_or(0, |v| v.load(Ordering::Relaxed))
    }

    /// User space's value. EINVAL: more than there is; EBUSY: another one, after a vCPU has run.
    pub(crate) fn set(&self, reg: SysReg, value: u64, has_run: bool) -> Result {
        if value == self.get(reg) || idreg::is_of_aarch32(reg) {
            return Ok(());
        }
        let place = idreg::index(reg).and_then(|n| self.values.get_nospec(n));
        let place = place.ok_or(EINVAL)?;
        if has_run {
            return Err(EBUSY);
        }
        if !idreg::allows(reg, self.limit(reg), value) {
            return Err(EINVAL);
        }
        place.store(value, Ordering::Relaxed);
        Ok(())
    }

    fn limit(&self, reg: SysReg) -> u64 {
        limit(reg, self.keys.load(Ordering::Relaxed) == YES)
    }

    /// Whether there is an interrupt controller with registers in the processor.
    pub(crate) fn set_gic(&self, there: bool) {
        if let Some(v) = self.values.get_nospec(idreg::PFR0_INDEX) {
            v.fetch_and(!idreg::PFR0_GIC, Ordering::Relaxed);
            if there {
                v.fetch_or(idreg::PFR0_GIC, Ordering::Relaxed);
            }
        }
    }
}

/// What a VM's guests are told of the implementation ([`IDENTITY`]), where that is not the processor's own.
pub(crate) struct Identity {
    values: [AtomicU64; IDENTITY.len()],
    /// A bit for each that has been said.
    changed: AtomicU32,
    /// KVM_CAP_ARM_WRITABLE_IMP_ID_REGS is enabled.
    writable: AtomicBool,
}

impl Identity {
    /// The processor's own.
    pub(crate) fn new() -> Self {
        Self {
            values: [const { AtomicU64::new(0) }; IDENTITY.len()],
            changed: AtomicU32::new(0),
            writable: AtomicBool::new(false),
        }
    }

    /// Which of them `reg` is.
    #[inline]
    pub(crate) fn index(reg: SysReg) -> Option<usize> {
        IDENTITY.iter().position(|r| *r == reg)
    }

    fn has(&self, n: usize) -> bool {
        self.changed.load(Ordering::Relaxed) & 1 << (n & 7) != 0
    }

    /// What a guest reads, on this processor.
    pub(crate) fn get(&self, n: usize) -> u64 {
        match self.values.get_nospec(n) {
            Some(value) if self.has(n) => value.load(Ordering::Relaxed),
            _ => el2::host_identity(n),
        }
    }

    /// User space's value. EINVAL: it cannot be, or only with the capability; EBUSY: another one, after a vCPU has run.
    pub(crate) fn set(&self, n: usize, value: u64, has_run: bool) -> Result {
        if value == self.get(n) {
            return Ok(());
        }
        let fixed = IMPLEMENTATION.contains(&n) && !self.writable.load(Ordering::Relaxed);
        if fixed || !idreg::allows_identity(n, el2::host_identity(n), value) {
            return Err(EINVAL);
        }
        if has_run {
            return Err(EBUSY);
        }
        let place = self.values.get_nospec(n).ok_or(EINVAL)?;
        place.store(value, Ordering::Relaxed);
        self.changed.fetch_or(1 << (n & 7), Ordering::Relaxed);
        Ok(())
    }

    /// KVM_CAP_ARM_WRITABLE_IMP_ID_REGS.
    pub(crate) fn make_writable(&self) {
        self.writable.store(true, Ordering::Relaxed);
    }

    /// Which reads have to trap: of REVIDR_EL1 and AIDR_EL1, of those about caches.
    pub(crate) fn traps(&self) -> (bool, bool) {
        (self.has(1) || self.has(2), self.has(3) || self.has(4))
    }
}
