// SPDX-License-Identifier: GPL-2.0

//! Model-specific registers of the running CPU (SDM 4 2.1, APM 2 A).
//!
//! C header: [`arch/x86/include/asm/msr.h`](srctree/arch/x86/include/asm/msr.h)

use core::arch::asm;

use kernel::prelude::*;

use crate::linux::bindings;

/// Reads MSR `msr`.
///
/// # Safety
///
/// The running CPU implements `msr` (else #GP kills the kernel), and the read has no side effect that
/// the kernel does not expect.
#[inline(always)]
pub unsafe fn read(msr: u32) -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: The caller promises that the MSR exists.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") lo, out("edx") hi, options(nostack, preserves_flags))
    };
    u64::from(hi) << 32 | u64::from(lo)
}

/// Writes `value` to MSR `msr`.
///
/// # Safety
///
/// The running CPU implements `msr` and accepts `value`, and the kernel keeps working with the new
/// value until the old one is put back.
#[inline(always)]
pub unsafe fn write(msr: u32, value: u64) {
    // SAFETY: The caller promises that the CPU accepts the value and that the kernel survives it.
    unsafe {
        asm!(
            "wrmsr",
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
