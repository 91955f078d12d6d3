/* SPDX-License-Identifier: GPL-2.0 */
/* What the sequences of speculation.h refer to, and one of them as a function. */

#include <linux/linkage.h>
#include <asm/segment.h>
#include "speculation.h"

	.section .rodata, "a"

/* A selector that VERW accepts. In memory: the form with a register clears nothing. */
	.balign	2
SYM_DATA(rvmm_verw_selector, .word __KERNEL_DS)

	.text

SYM_FUNC_START(rvmm_ibpb)
	ALTERNATIVE "jmp .Lwithout_ibpb", "", X86_FEATURE_IBPB
	IBPB
.Lwithout_ibpb:
	RET
SYM_FUNC_END(rvmm_ibpb)
