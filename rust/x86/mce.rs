// SPDX-License-Identifier: GPL-2.0

//! Machine checks.
//!
//! C header: [`arch/x86/include/asm/mce.h`](srctree/arch/x86/include/asm/mce.h)

use crate::linux::bindings;
use crate::linux::irqflags::IrqGuard;

/// Has the kernel handle a machine check (#MC) that this CPU has raised and nobody has handled, as one that came while
/// the current task ran in user mode, which it has not come back from.
///
/// What the kernel then does to the task, SIGBUS among it, is task work. An error that it cannot survive is its panic.
pub fn from_user(_irqs_off: &IrqGuard) {
    // SAFETY: Interrupts are off, and this is a task's own stack: modules have no other. The kernel reads the banks and
    // waits for the other CPUs, without errors in the banks as well.
    unsafe { bindings::rvmm_machine_check_from_user() };
}
