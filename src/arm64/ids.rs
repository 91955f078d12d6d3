// SPDX-License-Identifier: GPL-2.0
//! The ID registers of a VM: what [`idreg`] allows, or less, where user space has said so before a vCPU has run.

use crate::arm64::el2;
use crate::arm64::esr::SysReg;
use crate::arm64::idreg::{self, COUNT};
use crate::nospec::Nospec;
use core::sync::atomic::{AtomicU64, AtomicU8, Ordering};
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
        if value == self.get(reg) {
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
