// SPDX-License-Identifier: GPL-2.0

//! What keeps speculation from crossing a boundary, on the running CPU.
//!
//! All of it is safe anywhere: the instructions and MSRs change what is predicted and what caches hold, never what the
//! program computes, and an MSR or value that the CPU lacks is passed over (see [`msr::write`]).
//!
//! C header: [`arch/x86/include/asm/nospec-branch.h`](srctree/arch/x86/include/asm/nospec-branch.h)

use core::arch::asm;

use super::msr;
use crate::linux::bindings;
use crate::linux::irqflags::IrqsOff;
use crate::linux::page::Pages;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

// SDM 4 table 2-2.
const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const FLUSH_CMD: u32 = 0x10b;

/// Forgets indirect branch predictions (IA32_PRED_CMD.IBPB; X86_FEATURE_IBPB).
#[inline(always)]
pub fn ibpb() {
    // SAFETY: The bit is a command that empties predictors.
    unsafe { msr::write(PRED_CMD, 1) };
}

/// Has the kernel do [`ibpb`] before this CPU runs user space again (X86_FEATURE_IBPB_EXIT_TO_USER).
#[inline]
pub fn ibpb_exit_to_user(_irqs_off: IrqsOff<'_>) {
    // SAFETY: Sets a flag of this CPU, which interrupts that are off keep.
    unsafe { bindings::rvmm_ibpb_exit_to_user() };
}

/// Writes back and empties the L1 data cache (IA32_FLUSH_CMD.L1D_FLUSH; X86_FEATURE_FLUSH_L1D).
#[inline(always)]
pub fn flush_l1d() {
    // SAFETY: The bit is a command that empties a cache, which stays coherent.
    unsafe { msr::write(FLUSH_CMD, 1) };
}

/// What an L1 data cache is filled with where it cannot be told to empty itself ([`flush_l1d`]).
pub struct L1dFiller(Pages);

impl L1dFiller {
    /// 64 KiB, which is twice such a processor's cache. May sleep. Errors: `ENOMEM`.
    pub fn new() -> Result<Self> {
        // Alike pages might be one under a hypervisor that merges them.
        let pages = Pages::filled(4, |bytes| {
            for (page, i) in bytes.chunks_mut(PAGE_SIZE).zip(1..) {
                page.fill(i);
            }
        })?;
        Ok(Self(pages))
    }

    /// Drives out what the cache held.
    #[cold]
    pub fn fill_l1d(&self) {
        // The translations first, whose look-up would bring in something else.
        self.read(PAGE_SIZE);
        // Serialises.
        super::cpuid::cpuid(0, 0);
        self.read(64);
        speculation_barrier();
    }

    fn read(&self, step: usize) {
        for at in (0..self.0.len()).step_by(step) {
            // SAFETY: The byte is in the pages, which are ours and never written again.
            unsafe { self.0.as_ptr::<u8>().add(at).read_volatile() };
        }
    }
}

/// IA32_SPEC_CTRL (X86_FEATURE_MSR_SPEC_CTRL).
#[inline(always)]
pub fn spec_ctrl() -> u64 {
    // SAFETY: Reading it has no side effect.
    unsafe { msr::read(SPEC_CTRL) }
}

/// Sets IA32_SPEC_CTRL. The kernel remembers its own value per CPU: it has to be put back before interrupts come on.
#[inline(always)]
pub fn set_spec_ctrl(value: u64) {
    // SAFETY: The value restricts speculation more or less; what is computed does not depend on it.
    unsafe { msr::write(SPEC_CTRL, value) };
}

/// Overwrites the CPU's buffers where VERW does so (X86_FEATURE_CLEAR_CPU_BUF).
#[inline(always)]
pub fn clear_cpu_buffers() {
    /// A selector that VERW accepts: the kernel's data segment.
    static SELECTOR: u16 = bindings::__KERNEL_DS as u16;
    // SAFETY: VERW reads the selector and changes ZF, which is not declared preserved.
    unsafe { asm!("verw word ptr [{}]", in(reg) &raw const SELECTOR, options(nostack, readonly)) };
}

/// Overwrites what a division has left in the divider (X86_BUG_DIV0).
#[inline(always)]
pub fn clear_divider() {
    // SAFETY: 0 divided by 1: no #DE, no memory, and RFLAGS is not declared preserved.
    unsafe {
        asm!("div {:e}", in(reg) 1u32, inout("eax") 0u32 => _, inout("edx") 0u32 => _, options(nostack, nomem));
    }
}

/// Nothing after it is executed, not even speculatively, before everything in front of it has been (LFENCE).
#[inline(always)]
pub fn speculation_barrier() {
    // SAFETY: LFENCE changes no register and no memory.
    unsafe { asm!("lfence", options(nostack, nomem, preserves_flags)) };
}
