// SPDX-License-Identifier: GPL-2.0

//! Model-specific registers of the running CPU (SDM 4 2.1, APM 2 A).
//!
//! C header: [`arch/x86/include/asm/msr.h`](srctree/arch/x86/include/asm/msr.h)

use core::arch::asm;

use kernel::prelude::*;

use crate::linux::bindings;
use crate::linux::irqflags::IrqsOff;

/// Assembler for "an exception at label 2 goes on at label 3, by the handler for `{kind}`": `_ASM_EXTABLE_TYPE` of
/// asm/asm.h.
macro_rules! extable {
    () => {
        ".pushsection __ex_table, \"a\"\n\
         .balign 4\n\
         .long 2b - .\n\
         .long 3b - .\n\
         .long {kind}\n\
         .popsection"
    };
}

/// Whether another module has left a value of its own in an MSR that the kernel uses in user space only, and will put
/// the kernel's back when this CPU returns there (`user_return_notifier_register`).
#[inline]
pub fn user_return_pending(_irqs_off: IrqsOff<'_>) -> bool {
    // SAFETY: Reads a flag of the current task. The flag goes from task to task with the CPU, which stays the same
    // while interrupts are off.
    unsafe { bindings::rvmm_user_return_pending() }
}

/// Reads MSR `msr`; 0, with a warning in the log, where the CPU answers with #GP.
///
/// # Safety
///
/// The read has no side effect that the kernel does not expect.
#[inline(always)]
pub unsafe fn read(msr: u32) -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: The instruction changes the two registers; its #GP is fixed up. The caller answers for side effects.
    unsafe {
        asm!(
            "2: rdmsr",
            "3:",
            extable!(),
            kind = const bindings::EX_TYPE_RDMSR,
            in("ecx") msr,
            out("eax") lo,
            out("edx") hi,
            options(nostack, preserves_flags),
        )
    };
    u64::from(hi) << 32 | u64::from(lo)
}

/// Writes `value` to MSR `msr`; not done, with a warning in the log, where the CPU answers with #GP.
///
/// # Safety
///
/// The kernel keeps working with the new value until the old one is put back.
#[inline(always)]
pub unsafe fn write(msr: u32, value: u64) {
    // SAFETY: The instruction changes no register and its #GP is fixed up. The caller promises that the kernel survives
    // what the value does.
    unsafe {
        asm!(
            "2: wrmsr",
            "3:",
            extable!(),
            kind = const bindings::EX_TYPE_WRMSR,
            in("ecx") msr,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags),
        )
    };
}

/// Reads MSR `msr`, or returns `EIO` when the CPU answers with #GP.
pub fn read_safe(msr: u32) -> Result<u64> {
    let mut value = 0;
    // SAFETY: The shim writes one `u64` through the pointer and catches the fault.
    match unsafe { bindings::rvmm_rdmsr_safe(msr, &mut value) } {
        0 => Ok(value),
        _ => Err(EIO),
    }
}
