// SPDX-License-Identifier: GPL-2.0
//! The interrupts of the host that guests need: of the virtual and the physical timer of EL1, which guests have to
//! themselves, and of the virtual interface, which tells that list registers run empty.
//!
//! None is ever handled in the host: they stop a guest, whose stay makes their cause go away before interrupts come
//! on. Where KVM lives in the kernel they are its own and on; else they are taken and switched on here.

use crate::linux::global::{Global, Owner};
use crate::linux::percpu_irq::PerCpuIrq;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Indices of the timers' interrupts in their node (Devicetree binding arm,arch_timer).
const VIRTUAL_TIMER: u32 = 2;
const PHYSICAL_TIMER: u32 = 1;
/// Index of the maintenance interrupt in the interrupt controller's (arm,gic-v3).
const MAINTENANCE: u32 = 0;

/// All of them.
pub(crate) struct HostIrqs {
    /// Of the virtual and the physical timer ([`VIRTUAL`](crate::arm64::timer::VIRTUAL)).
    pub(crate) timers: [PerCpuIrq; 2],
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
    let timer = |index, what| find(c"arm,armv8-timer", index, what);
    let timers = [
        timer(VIRTUAL_TIMER, "virtual timer")?,
        timer(PHYSICAL_TIMER, "physical timer")?,
    ];
    let maintenance = find(c"arm,gic-v3", MAINTENANCE, "virtual interrupt interface")?;
    IRQS.set(HostIrqs {
        timers,
        maintenance,
    })
}

/// For whoever needs them.
pub(crate) fn get() -> Result<Arc<HostIrqs>> {
    IRQS.get().ok_or(ENODEV)
}

impl HostIrqs {
    /// They come on this CPU, whose hot-plug thread calls.
    pub(crate) fn on(&self) {
        self.timers.iter().for_each(PerCpuIrq::on);
        self.maintenance.on();
    }

    /// They come no more.
    pub(crate) fn off(&self) {
        self.timers.iter().for_each(PerCpuIrq::off);
        self.maintenance.off();
    }
}
