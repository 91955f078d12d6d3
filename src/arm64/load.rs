// SPDX-License-Identifier: GPL-2.0
//! What the module's root asks of Arm64: load, CPU hot-plug, sleep, shutdown.
//!
//! The kernel is at EL2 on every CPU already. What a guest needs of a CPU is set up when its vCPU comes to it and put
//! back when it leaves. CPUs that come and go get what is missing of the host's interrupts (`host_irqs`).

use crate::arm64::host::Host;
use crate::arm64::{el2 as own_el2, host_irqs, last};
use crate::linux::el2;
use crate::linux::global::Owner;
use crate::linux::percpu_irq::PerCpuIrq;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

/// What all vCPUs share.
pub(crate) type State = [Owner; 2];

/// Finds out what there is. Errors: `EOPNOTSUPP`, and the log says why; `ENOMEM`.
pub(crate) fn init() -> Result<State> {
    let host = Host {
        level: el2::current_level(),
        gicv3: el2::has_gicv3_registers(),
        masks_by_priority: el2::masks_by_priority(),
        page_size: PAGE_SIZE,
        address_bits: el2::address_bits(),
    };
    match host.refusal() {
        None => {
            let state = [last::init()?, host_irqs::init()?];
            let clearing = own_el2::init_clearing();
            let caches = own_el2::init_caches();
            pr_info!("{caches:?}\n");
            pr_info!("branch predictors after each exit: {clearing:?}\n");
            Ok(state)
        }
        Some(why) => {
            pr_err!("guests cannot run here: {why}\n");
            Err(EOPNOTSUPP)
        }
    }
}

/// Says in the log what is there.
pub(crate) fn announce() {
    let irqs = host_irqs::get().ok();
    let whose = match irqs.is_some_and(|i| i.timers.iter().all(PerCpuIrq::is_own)) {
        true => "our own",
        false => "the kernel's, with KVM alive",
    };
    pr_info!("ready at EL2, nested pages of 4 KiB, 2 MiB and 1 GiB, GICv3; interrupts of guests' timers are {whose}\n");
}

/// A CPU has come.
pub(crate) fn cpu_up() -> Result {
    host_irqs::get()?.on();
    Ok(())
}

/// A CPU goes.
pub(crate) fn cpu_down() {
    if let Ok(irqs) = host_irqs::get() {
        irqs.off();
    }
}

/// The machine goes to sleep.
pub(crate) fn suspend() {}

/// It has woken up.
pub(crate) fn resume() -> Result {
    Ok(())
}

/// It shuts down.
pub(crate) fn shutdown() {}
