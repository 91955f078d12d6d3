/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Fills the return-stack buffer with entries that lead nowhere, by the kernel's own sequences, which exist
 * only as assembler macros: all entries, or the one that stops the processors which may otherwise return by an entry
 * of before the exit (X86_FEATURE_RSB_VMEXIT_LITE). The return from here is predicted by one of them and corrected.
 */

#include <linux/linkage.h>
#include <asm/asm-offsets.h>
#include <asm/nospec-branch.h>

	.text

SYM_FUNC_START(rvmm_fill_rsb)
	__FILL_RETURN_BUFFER(%rax, RSB_CLEAR_LOOPS)
	RET
SYM_FUNC_END(rvmm_fill_rsb)

SYM_FUNC_START(rvmm_fill_rsb_one)
	__FILL_ONE_RETURN
	RET
SYM_FUNC_END(rvmm_fill_rsb_one)
