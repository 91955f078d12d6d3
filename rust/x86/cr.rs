// SPDX-License-Identifier: GPL-2.0

//! Control, debug and extended control registers of the running CPU (SDM 3A 2.5, 2.6, 18.2).

use core::arch::asm;

use super::cpuid::cpuid_checked;

macro_rules! read {
    ($($(#[$doc:meta])* $name:ident, $insn:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> u64 {
            let value: u64;
            // SAFETY: Reading the register at CPL 0 has no side effect.
            unsafe { asm!($insn, out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    )*};
}

macro_rules! write {
    ($($(#[$doc:meta])* $name:ident, $insn:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// The CPU accepts `value`, and the kernel keeps working with it until the old value is back.
        #[inline(always)]
        pub unsafe fn $name(value: u64) {
            // SAFETY: The caller answers for the value. The block is not `nomem`: the register can change what memory
            // means.
            unsafe { asm!($insn, in(reg) value, options(nostack, preserves_flags)) };
        }
    )*};
}

read! {
    /// Reads CR0.
    cr0, "mov {}, cr0";
    /// Reads CR2, the last page-fault address.
    cr2, "mov {}, cr2";
    /// Reads CR3 with its PCID bits.
    cr3, "mov {}, cr3";
    /// Reads CR4 from the register itself, not from the kernel's shadow.
    cr4, "mov {}, cr4";
    /// Reads debug register 0.
    dr0, "mov {}, dr0";
    /// Reads debug register 1.
    dr1, "mov {}, dr1";
    /// Reads debug register 2.
    dr2, "mov {}, dr2";
    /// Reads debug register 3.
    dr3, "mov {}, dr3";
    /// Reads the debug control register.
    dr7, "mov {}, dr7";
}

write! {
    /// Writes CR2.
    write_cr2, "mov cr2, {}";
    /// Writes CR4. The kernel keeps a shadow that it writes back from: a change made here must be gone before
    /// interrupts are on again.
    write_cr4, "mov cr4, {}";
    /// Writes debug register 0.
    write_dr0, "mov dr0, {}";
    /// Writes debug register 1.
    write_dr1, "mov dr1, {}";
    /// Writes debug register 2.
    write_dr2, "mov dr2, {}";
    /// Writes debug register 3.
    write_dr3, "mov dr3, {}";
    /// Writes the debug status register.
    write_dr6, "mov dr6, {}";
    /// Writes the debug control register.
    write_dr7, "mov dr7, {}";
}

/// Reads extended control register `index` (XGETBV): 0 is XCR0, 1 is XCR0 without the components in their
/// initial configuration. Returns 0 when the register does not exist or CR4.OSXSAVE is clear.
pub fn xgetbv(index: u32) -> u64 {
    /// CR4.OSXSAVE (SDM 3A 2.5).
    const OSXSAVE: u64 = 1 << 18;
    /// CPUID.(EAX=0DH,ECX=1):EAX bit 2: XGETBV with ECX = 1.
    const XGETBV_1: u32 = 1 << 2;

    let exists = match index {
        0 => true,
        1 => cpuid_checked(0xd, 1).eax & XGETBV_1 != 0,
        _ => false,
    };
    if !exists || cr4() & OSXSAVE == 0 {
        return 0;
    }
    let (lo, hi): (u32, u32);
    // SAFETY: XGETBV is enabled and the register exists.
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

/// DR7 as the kernel has set it on this CPU, but for bits that are fixed (`cpu_dr7` of asm/debugreg.h): the kernel
/// writes the two together, with interrupts off. Reading the register takes longer, and in a virtual machine may exit.
#[inline(always)]
pub fn kernel_dr7() -> u64 {
    let value: u64;
    // SAFETY: Reads a per-CPU word, which GS points to wherever the kernel runs.
    unsafe {
        asm!("mov {}, gs:[rip + cpu_dr7]", out(reg) value,
             options(readonly, nostack, preserves_flags))
    };
    value
}

/// Reads the FS base.
///
/// # Safety
///
/// CR4.FSGSBASE is set.
#[inline(always)]
pub unsafe fn fs_base() -> u64 {
    let value: u64;
    // SAFETY: The caller promises that the instruction exists.
    unsafe { asm!("rdfsbase {}", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads the four breakpoint addresses.
pub fn dr0123() -> [u64; 4] {
    [dr0(), dr1(), dr2(), dr3()]
}

/// Writes the four breakpoint addresses.
///
/// # Safety
///
/// No breakpoint in DR7 is enabled that could hit before the old addresses are back.
#[inline(always)]
pub unsafe fn write_dr0123(dr: [u64; 4]) {
    // SAFETY: The caller answers for the breakpoints.
    unsafe {
        write_dr0(dr[0]);
        write_dr1(dr[1]);
        write_dr2(dr[2]);
        write_dr3(dr[3]);
    }
}

/// Reads the time-stamp counter (RDTSC), not serialised.
#[inline(always)]
pub fn rdtsc() -> u64 {
    // SAFETY: RDTSC at CPL 0 always works.
    unsafe { core::arch::x86_64::_rdtsc() }
}
