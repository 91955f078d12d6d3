// SPDX-License-Identifier: GPL-2.0
//! The two interrupts of the host that guests need: of the virtual timer, which guests have to themselves, and of the
//! virtual interface, which tells that list registers run empty.
//!
//! Neither is ever handled in the host: both stop a guest, whose stay makes their cause go away before interrupts come
//! on. Where KVM lives in the kernel they are its own and on; else they are taken and switched on here.

use crate::linux::global::{Global, Owner};
use crate::linux::percpu_irq::PerCpuIrq;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Index of the virtual timer's interrupt in its node (Devicetree binding arm,arch_timer).
const VIRTUAL_TIMER: u32 = 2;
/// Index of the maintenance interrupt in the interrupt controller's (arm,gic-v3).
const MAINTENANCE: u32 = 0;

/// Both of them.
pub(crate) struct HostIrqs {
    pub(crate) timer: PerCpuIrq,
    maintenance: PerCpuIrq,
}

static IRQS: Global<HostIrqs> = Global::new();

/// Finds them. Errors: `EOPNOTSUPP`, and the log says why.
pub(crate) fn init() -> Result<Owner> {
    let find = |name: &CStr, index, what: &str| {
        PerCpuIrq::new(name, index).map_err(|e| {
            pr_err!(
                "guests cannot run here: no interrupt of the {what} in the device tree ({e:?})\n"
            );
            EOPNOTSUPP
        })
    };
    let timer = find(c"arm,armv8-timer", VIRTUAL_TIMER, "virtual timer")?;
    let maintenance = find(c"arm,gic-v3", MAINTENANCE, "virtual interrupt interface")?;
    IRQS.set(HostIrqs { timer, maintenance })
}

/// For whoever needs them.
pub(crate) fn get() -> Result<Arc<HostIrqs>> {
    IRQS.get().ok_or(ENODEV)
}

impl HostIrqs {
    /// They come on this CPU, whose hot-plug thread calls.
    pub(crate) fn on(&self) {
        self.timer.on();
        self.maintenance.on();
    }

    /// They come no more.
    pub(crate) fn off(&self) {
        self.timer.off();
        self.maintenance.off();
    }
}
