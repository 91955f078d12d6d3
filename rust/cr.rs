// SPDX-License-Identifier: GPL-2.0

//! Control, debug and extended control registers of the running CPU (SDM 3A 2.5, 2.6, 18.2).

use core::arch::asm;

macro_rules! reg {
    ($(#[$doc:meta])* $read:ident, $r:literal, $write:ident, $w:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $read() -> u64 {
            let value: u64;
            // SAFETY: Reading the register at CPL 0 has no side effect.
            unsafe { asm!($r, out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// The CPU accepts `value`, and the kernel keeps working with it until the old value is back.
        #[inline(always)]
        pub unsafe fn $write(value: u64) {
            // SAFETY: The caller answers for the value. Not `nomem`: the register can change what memory
            // means.
            unsafe { asm!($w, in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}

reg!(
    /// CR0.
    cr0, "mov {}, cr0", write_cr0, "mov cr0, {}");
reg!(
    /// CR2, the last page-fault address.
    cr2, "mov {}, cr2", write_cr2, "mov cr2, {}");
reg!(
    /// CR3 with its PCID bits.
    cr3, "mov {}, cr3", write_cr3, "mov cr3, {}");
reg!(
    /// CR4, from the register itself. The kernel keeps a shadow that it writes back from: a change made
    /// here must be gone before interrupts are on again.
    cr4, "mov {}, cr4", write_cr4, "mov cr4, {}");
reg!(
    /// CR8, the task-priority register.
    cr8, "mov {}, cr8", write_cr8, "mov cr8, {}");
reg!(
    /// Debug register 0.
    dr0, "mov {}, dr0", write_dr0, "mov dr0, {}");
reg!(
    /// Debug register 1.
    dr1, "mov {}, dr1", write_dr1, "mov dr1, {}");
reg!(
    /// Debug register 2.
    dr2, "mov {}, dr2", write_dr2, "mov dr2, {}");
reg!(
    /// Debug register 3.
    dr3, "mov {}, dr3", write_dr3, "mov dr3, {}");
reg!(
    /// Debug status register.
    dr6, "mov {}, dr6", write_dr6, "mov dr6, {}");
reg!(
    /// Debug control register.
    dr7, "mov {}, dr7", write_dr7, "mov dr7, {}");

/// Reads extended control register `index` (XGETBV).
///
/// # Safety
///
/// CR4.OSXSAVE is set and the CPU implements `index`.
#[inline(always)]
pub unsafe fn xgetbv(index: u32) -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: The caller promises that the register exists.
    unsafe {
        asm!("xgetbv", in("ecx") index, out("eax") lo, out("edx") hi,
             options(nomem, nostack, preserves_flags))
    };
    u64::from(hi) << 32 | u64::from(lo)
}

/// Writes extended control register `index` (XSETBV).
///
/// # Safety
///
/// CR4.OSXSAVE is set, the CPU accepts `value`, and the kernel's own value is put back before the kernel
/// uses extended state again.
#[inline(always)]
pub unsafe fn xsetbv(index: u32, value: u64) {
    // SAFETY: The caller answers for the value.
    unsafe {
        asm!("xsetbv", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags))
    };
}

/// Clears CR0.TS (CLTS).
///
/// # Safety
///
/// The kernel expects no #NM on the next FPU instruction.
#[inline(always)]
pub unsafe fn clts() {
    // SAFETY: The caller answers for it.
    unsafe { asm!("clts", options(nostack, preserves_flags)) };
}

/// Reads the time-stamp counter (RDTSC), not serialised.
#[inline(always)]
pub fn rdtsc() -> u64 {
    // SAFETY: RDTSC at CPL 0 always works.
    unsafe { core::arch::x86_64::_rdtsc() }
}
