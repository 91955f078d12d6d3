// SPDX-License-Identifier: GPL-2.0
//! The ID registers of a VM: what [`idreg`] allows, or less, where user space has said so before a vCPU has run.

use crate::arm64::el2;
use crate::arm64::esr::SysReg;
use crate::arm64::idreg::{self, COUNT};
use crate::nospec::Nospec;
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::prelude::*;

/// Those of a VM.
pub(crate) struct Ids([AtomicU64; COUNT]);

/// The most that a VM can have.
pub(crate) fn limit(reg: SysReg) -> u64 {
    idreg::limit(reg, el2::host_id(reg))
}

impl Ids {
    /// All that there is.
    pub(crate) fn new() -> Self {
        let ids = Self([const { AtomicU64::new(0) }; COUNT]);
        for (value, reg) in ids.0.iter().zip(idreg::all()) {
            value.store(limit(reg), Ordering::Relaxed);
        }
        ids
    }

    /// What a guest reads of `reg`.
    #[inline]
    pub(crate) fn get(&self, reg: SysReg) -> u64 {
        let value = idreg::index(reg).and_then(|n| self.0.get_nospec(n));
        value.map_or(0, |v| v.load(Ordering::Relaxed))
    }

    /// User space's value. EINVAL: more than there is; EBUSY: another one, after a vCPU has run.
    pub(crate) fn set(&self, reg: SysReg, value: u64, has_run: bool) -> Result {
        if value == self.get(reg) {
            return Ok(());
        }
        let place = idreg::index(reg).and_then(|n| self.0.get_nospec(n));
        let place = place.ok_or(EINVAL)?;
        if has_run {
            return Err(EBUSY);
        }
        if !idreg::allows(reg, limit(reg), value) {
            return Err(EINVAL);
        }
        place.store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Whether there is an interrupt controller with registers in the processor.
    pub(crate) fn set_gic(&self, there: bool) {
        if let Some(v) = self.0.get_nospec(idreg::PFR0_INDEX) {
            v.fetch_and(!idreg::PFR0_GIC, Ordering::Relaxed);
            if there {
                v.fetch_or(idreg::PFR0_GIC, Ordering::Relaxed);
            }
        }
    }
}
