// SPDX-License-Identifier: GPL-2.0
//! KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS (api.rst 4.31, 4.32): errors of memory that user space tells the guest.

use crate::abi::uapi::{self, k};
use crate::arm64::context::Reg;
use crate::arm64::el2::{self, Guest};
use crate::arm64::esr::SysReg;
use crate::arm64::ids;
use crate::arm64::inject::{self, Kind};
use crate::arm64::vcpu::{Pending, State};
use kernel::prelude::*;

/// ID_AA64MMFR1_EL1.
const MMFR1: SysReg = SysReg::new(3, 0, 0, 7, 1);

/// The guest has PAN.
pub(crate) fn has_pan() -> bool {
    ids::limit(MMFR1, false) >> 20 & 0xf != 0
}

impl Guest {
    /// EL1 takes an abort at the address of the last exit, with this fault status. Outside of a stay.
    pub(crate) fn abort(&mut self, instruction: bool, status: u64) {
        let far = self.regs.far();
        self.context.set(Reg::Far, far);
        let esr = inject::abort(self.regs.pstate, instruction, status);
        self.take(Kind::Synchronous, esr);
    }

    /// EL1 takes an exception, outside of a stay.
    fn take(&mut self, kind: Kind, esr: u64) {
        let (c, r) = (&mut self.context, &mut self.regs);
        c.set(Reg::Elr, r.pc);
        c.set(Reg::Spsr, r.pstate);
        c.set(Reg::Esr, esr);
        r.pc = c
            .get(Reg::Vbar)
            .wrapping_add(inject::vector(r.pstate, kind));
        r.pstate = inject::entered(r.pstate, c.get(Reg::Sctlr), has_pan());
    }
}

/// KVM_GET_VCPU_EVENTS.
pub(crate) fn get(s: &State) -> k::kvm_vcpu_events {
    let mut events = uapi::zeroed::<k::kvm_vcpu_events>();
    let e = &mut events.exception;
    e.serror_has_esr = el2::has_ras().into();
    if let Some(iss) = s.guest.error {
        e.serror_pending = 1;
        if el2::has_ras() {
            e.serror_esr = iss;
        }
    }
    events
}

/// KVM_SET_VCPU_EVENTS. EINVAL: a syndrome that the processor cannot give, or of more than ESR_EL1.ISS. One that waits
/// is not taken back, as in KVM.
pub(crate) fn set(s: &mut State, events: &k::kvm_vcpu_events) -> Result {
    let e = &events.exception;
    let pending = e.serror_pending != 0;
    let iss = if e.serror_has_esr != 0 {
        Some(e.serror_esr)
    } else {
        None
    };
    if e.ext_dabt_pending != 0 {
        // What was asked of user space has failed.
        s.pending = Pending::Nothing;
        s.guest.abort(false, inject::EXTERNAL_ABORT);
    }
    if !pending {
        return Ok(());
    }
    if iss.is_some_and(|iss| !el2::has_ras() || iss & !inject::ISS != 0) {
        return Err(EINVAL);
    }
    let iss = iss.unwrap_or(inject::NOT_DESCRIBED);
    if inject::masks_errors(s.guest.regs.pstate) {
        s.guest.error = Some(iss);
    } else {
        s.pending = Pending::Nothing;
        s.guest.take(Kind::Error, inject::error(iss));
    }
    Ok(())
}
