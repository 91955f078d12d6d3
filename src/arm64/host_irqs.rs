// SPDX-License-Identifier: GPL-2.0
//! The interrupts of the host that guests need: of the virtual and the physical timer of EL1, which guests have to
//! themselves, and of the virtual interface, which tells that list registers run empty.
//!
//! None is ever handled in the host: they stop a guest, whose stay makes their cause go away before interrupts come
//! on. Where KVM lives in the kernel they are its own and on; else they are taken and switched on here.

use crate::linux::global::{Global, Owner};
use crate::linux::percpu_irq::{PerCpuIrq, Ppi};
use kernel::prelude::*;
use kernel::sync::Arc;

/// All of them.
pub(crate) struct HostIrqs {
    /// Of the virtual and the physical timer ([`VIRTUAL`](crate::arm64::timer::VIRTUAL)).
    pub(crate) timers: [PerCpuIrq; 2],
    maintenance: PerCpuIrq,
}

static IRQS: Global<HostIrqs> = Global::new();

/// Finds them. Errors: `EOPNOTSUPP`, and the log says why.
pub(crate) fn init() -> Result<Owner> {
    let find = |which, what: &str| {
        PerCpuIrq::new(which).map_err(|e| {
            pr_err!(
                "guests cannot run here: neither a device tree nor ACPI has the interrupt of the {what} ({e:?})\n"
            );
            EOPNOTSUPP
        })
    };
    let timers = [
        find(Ppi::VirtualTimer, "virtual timer")?,
        find(Ppi::PhysicalTimer, "physical timer")?,
    ];
    let maintenance = find(Ppi::Maintenance, "virtual interrupt interface")?;
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
