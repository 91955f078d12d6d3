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
const FLUSH_CMD: u32 = 0x10b;

/// Forgets branch predictions, the return stack's too (IA32_PRED_CMD.IBPB). Does nothing without X86_FEATURE_IBPB.
#[inline(always)]
pub fn ibpb() {
    // SAFETY: A function of the C calling convention that takes nothing; the command empties predictors.
    unsafe { bindings::rvmm_ibpb() };
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

extern "C" {
    /// Per CPU (asm/nospec-branch.h).
    static x86_spec_ctrl_current: u64;
}

/// What the kernel has in IA32_SPEC_CTRL on this CPU while it runs this thread; 0 where there is no such MSR.
#[inline(always)]
pub fn spec_ctrl_current(_irqs_off: IrqsOff<'_>) -> u64 {
    let value;
    // SAFETY: In the kernel GS is the base of this CPU's variables, of which this is one (asm/percpu.h).
    unsafe {
        asm!("mov {}, gs:[rip + {}]", out(reg) value, sym x86_spec_ctrl_current,
            options(nostack, readonly, preserves_flags));
    }
    value
}

/// All ones if `index` is below `len`, else zero: found by arithmetic, so that no prediction makes it another value
/// (`array_index_mask_nospec`).
#[inline(always)]
pub fn index_mask(index: usize, len: usize) -> usize {
    let mask;
    // SAFETY: The carry of a comparison is spread over a register; RFLAGS is not declared preserved.
    unsafe {
        asm!(
            "cmp {index}, {len}",
            "sbb {mask}, {mask}",
            index = in(reg) index,
            len = in(reg) len,
            mask = lateout(reg) mask,
            options(nomem, nostack),
        );
    }
    mask
}

/// Nothing after it is executed, not even speculatively, before everything in front of it has been (LFENCE).
#[inline(always)]
pub fn speculation_barrier() {
    // SAFETY: LFENCE changes no register and no memory.
    unsafe { asm!("lfence", options(nostack, nomem, preserves_flags)) };
}
