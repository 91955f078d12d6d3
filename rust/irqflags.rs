// SPDX-License-Identifier: GPL-2.0

//! Local interrupt masking as a guard.
//!
//! C header: [`include/linux/irqflags.h`](srctree/include/linux/irqflags.h)
//!
//! The instructions are inline (`interrupts` of the architecture): a call to a shim would cost more than the work
//! itself. Kernels that trace the interrupt flag (`CONFIG_TRACE_IRQFLAGS`) are told through shims instead.

use core::marker::PhantomData;

use super::interrupts;
use super::preempt::{raw_cpu, PinsCpu};

/// Interrupts are off on this CPU while the guard lives; the earlier state comes back on drop.
///
/// Guards nest and must be dropped in reverse order of creation, which scopes do by themselves.
///
/// # Invariants
///
/// Maskable interrupts are off on the CPU that created the guard, and the task cannot leave that CPU.
#[must_use = "the guard turns interrupts back on when dropped"]
pub struct IrqGuard {
    flags: u64,
    /// The saved flags belong to one CPU and one task.
    _not_send: PhantomData<*mut ()>,
}

impl IrqGuard {
    /// Turns maskable interrupts off (`local_irq_save`).
    #[inline(always)]
    pub fn new() -> Self {
        let flags = interrupts::flags();
        disable();
        // INVARIANT: `disable` has just turned them off.
        Self {
            flags,
            _not_send: PhantomData,
        }
    }

    /// Whether dropping this guard turns interrupts on.
    #[inline(always)]
    pub fn restores_enabled(&self) -> bool {
        interrupts::are_on(self.flags)
    }
}

/// Says that an [`IrqGuard`] lives, and is nothing at run time.
#[derive(Clone, Copy)]
pub struct IrqsOff<'a>(PhantomData<&'a IrqGuard>);

impl IrqGuard {
    /// What says so to those who are not handed the guard.
    #[inline(always)]
    pub fn token(&self) -> IrqsOff<'_> {
        IrqsOff(PhantomData)
    }

    /// The same, with the number of the CPU.
    #[inline(always)]
    pub fn this_cpu(&self) -> ThisCpu<'_> {
        // INVARIANT: By the invariant of `self` the task stays on the CPU that runs this.
        ThisCpu {
            number: raw_cpu(),
            irqs_off: self.token(),
        }
    }
}

/// The CPU that runs the task for `'a`, in which interrupts are off.
///
/// # Invariants
///
/// `number` is the number of that CPU.
#[derive(Clone, Copy)]
pub struct ThisCpu<'a> {
    number: u32,
    irqs_off: IrqsOff<'a>,
}

impl<'a> ThisCpu<'a> {
    /// Its number.
    #[inline(always)]
    pub fn number(self) -> u32 {
        self.number
    }

    /// What says so without the number.
    #[inline(always)]
    pub fn irqs_off(self) -> IrqsOff<'a> {
        self.irqs_off
    }
}

impl Default for IrqGuard {
    #[inline(always)]
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for IrqGuard {
    #[inline(always)]
    fn drop(&mut self) {
        if self.restores_enabled() {
            // SAFETY: Interrupts were on when the guard was made, so the context allows them.
            unsafe { enable() };
        }
    }
}

// SAFETY: With interrupts off nothing can preempt the task, so it stays on its CPU.
unsafe impl PinsCpu for IrqGuard {}

/// Whether maskable interrupts are on on this CPU.
#[inline(always)]
pub fn enabled() -> bool {
    interrupts::are_on(interrupts::flags())
}

/// Turns maskable interrupts off (`local_irq_disable`).
///
/// Whoever calls this has to turn them on again; leaving them off stalls the CPU but is memory-safe.
#[inline(always)]
pub fn disable() {
    interrupts::off();
    #[cfg(CONFIG_TRACE_IRQFLAGS)]
    // SAFETY: Interrupts are off, which is what the tracer is told.
    unsafe {
        super::bindings::rvmm_trace_hardirqs_off()
    };
}

/// Turns maskable interrupts on (`local_irq_enable`).
///
/// # Safety
///
/// No live [`IrqGuard`] or interrupt-safe lock guard of this CPU relies on interrupts being off, and
/// the code does not run in hard-interrupt context.
#[inline(always)]
pub unsafe fn enable() {
    #[cfg(CONFIG_TRACE_IRQFLAGS)]
    // SAFETY: Interrupts are about to come on.
    unsafe {
        super::bindings::rvmm_trace_hardirqs_on()
    };
    // SAFETY: The caller promises that interrupts may come on here.
    unsafe { interrupts::on() };
}
