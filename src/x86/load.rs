// SPDX-License-Identifier: GPL-2.0
//! What the module's root asks of x86: load, CPU hot-plug, sleep, shutdown.

use crate::linux::global::Owner;
use crate::x86::cpu::model;
use crate::x86::pv::async_pf;
use crate::x86::vendor::choose;
use crate::x86::{host_tsc, mitigate};
use kernel::prelude::*;

pub(crate) use crate::x86::vendor::choose::{cpu_down, cpu_up, shutdown};

/// modprobe loads kvm_intel first, where there is one: in root operation that it keeps on, guests cost less than in our
/// own (`x86::vmx::root`). This is MODULE_SOFTDEP of `linux/module.h`.
#[link_section = ".modinfo"]
#[used]
static SOFT_DEPENDENCY: [u8; 23] = *b"softdep=pre: kvm_intel\0";

/// What VMs and vCPUs find; the vendor's part also CPUs that come and go, so it is last.
pub(crate) type State = [Owner; 4];

/// Finds out what there is. The errors are those of [`choose::probe`], and ENOMEM.
pub(crate) fn init() -> Result<State> {
    let (_, vendor) = choose::probe()?;
    Ok([model::init()?, mitigate::init()?, async_pf::init()?, vendor])
}

/// Says in the log that guests can run.
pub(crate) fn announce() {
    let Some(caps) = choose::caps() else {
        return;
    };
    pr_info!(
        "ready on {}, nested pages of {}\n",
        caps.name,
        match (caps.nested_2m, caps.nested_1g) {
            (false, _) => "4 KiB",
            (true, false) => "4 KiB and 2 MiB",
            (true, true) => "4 KiB, 2 MiB and 1 GiB",
        }
    );
}

/// The machine goes to sleep: on the boot CPU, the only one that is left.
pub(crate) fn suspend() {
    cpu_down();
    host_tsc::suspend();
}

/// It has woken up. The errors are those of [`cpu_up`].
pub(crate) fn resume() -> Result {
    host_tsc::resume();
    cpu_up()
}
