// SPDX-License-Identifier: GPL-2.0

//! Interrupts that each CPU has of its own (PPIs), by what the firmware says of them.
//!
//! C header: [`include/linux/interrupt.h`](srctree/include/linux/interrupt.h)

use kernel::prelude::*;

use crate::linux::bindings;
use crate::linux::irqflags::ThisCpu;

/// Which there are.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Ppi {
    /// Of EL1's virtual timer.
    VirtualTimer = 0,
    /// Of EL1's physical timer.
    PhysicalTimer = 1,
    /// Of the virtual interface of the interrupt controller.
    Maintenance = 2,
}

/// One of them, which somebody in the kernel handles, or else this value: then nothing is done when it comes.
pub struct PerCpuIrq {
    irq: u32,
    own: bool,
}

impl PerCpuIrq {
    /// This one, by the device tree, or else by ACPI. If nobody handles it yet, it is taken; it is off on all CPUs
    /// then. Errors: `ENODEV`, the firmware names none; those of taking it. Sleeps.
    pub fn new(which: Ppi) -> Result<Self> {
        // SAFETY: Reads what the firmware says.
        let irq = unsafe { bindings::rvmm_firmware_irq(which as u32) };
        if irq == 0 {
            return Err(ENODEV);
        }
        // SAFETY: A number that the kernel has given.
        let own = !unsafe { bindings::rvmm_irq_is_taken(irq) };
        if own {
            // SAFETY: Given back when the value is dropped.
            match unsafe { bindings::rvmm_take_percpu_irq(irq) } {
                0 => {}
                e => return Err(Error::from_errno(e)),
            }
        }
        Ok(Self { irq, own })
    }

    /// Whether nobody else handles it.
    pub fn is_own(&self) -> bool {
        self.own
    }

    /// The interrupt controller's number of it.
    pub fn hardware_number(&self) -> u32 {
        // SAFETY: A number that the kernel has given.
        unsafe { bindings::rvmm_irq_hardware_number(self.irq) as u32 }
    }

    /// It comes on this CPU from now on, if it is its own. Of a thread that stays on its CPU.
    pub fn on(&self) {
        if self.own {
            // SAFETY: Taken, and not given back before `self` is dropped.
            unsafe { bindings::rvmm_enable_percpu_irq(self.irq) };
        }
    }

    /// Undoes [`PerCpuIrq::on`].
    pub fn off(&self) {
        if self.own {
            // SAFETY: As above.
            unsafe { bindings::rvmm_disable_percpu_irq(self.irq) };
        }
    }

    /// On this CPU it counts as being handled, or as not: while it does it does not come.
    pub fn set_active(&self, _cpu: ThisCpu<'_>, active: bool) {
        // SAFETY: A number that the kernel has given; any context.
        unsafe { bindings::rvmm_set_irq_active(self.irq, active) };
    }
}

impl Drop for PerCpuIrq {
    fn drop(&mut self) {
        if self.own {
            // SAFETY: Taken in `new`, and off on all CPUs.
            unsafe { bindings::rvmm_give_percpu_irq(self.irq) };
        }
    }
}
