// SPDX-License-Identifier: GPL-2.0

//! What keeps speculation from crossing a boundary, on the running CPU.
//!
//! C header: [`arch/arm64/include/asm/barrier.h`](srctree/arch/arm64/include/asm/barrier.h)

use core::arch::asm;

/// All ones if `index` is below `len`, else zero: found by arithmetic, and not used by what is predicted before it is
/// known (CSDB), so that no prediction makes it another value (`array_index_mask_nospec`).
#[inline(always)]
pub fn index_mask(index: usize, len: usize) -> usize {
    let mask;
    // SAFETY: The borrow of a comparison is spread over a register; the flags are not declared preserved.
    unsafe {
        asm!(
            "cmp {index}, {len}",
            "sbc {mask}, xzr, xzr",
            "csdb",
            index = in(reg) index,
            len = in(reg) len,
            mask = lateout(reg) mask,
            options(nomem, nostack),
        );
    }
    mask
}
