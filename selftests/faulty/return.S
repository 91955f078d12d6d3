/* SPDX-License-Identifier: GPL-2.0 */
#include <linux/linkage.h>
#include <linux/objtool.h>

/* In place of a function that has not begun: back to its caller. Nobody gets here by an indirect branch. */
SYM_FUNC_START(rvmm_faults_return)
	ANNOTATE_NOENDBR
	RET
SYM_FUNC_END(rvmm_faults_return)
