/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Calls an interrupt handler as the processor's own delivery would have, had interrupts just been enabled: the
 * handler ends with IRET, which takes the frame built here and comes back behind the call, with interrupts on. RDI:
 * the address in the handler's gate. Interrupts are off.
 *
 * A frame with interrupts off would be wrong: the kernel leaves work (the rearming of its timers) for the return to
 * where they are on.
 */

#include <linux/linkage.h>
#include <asm/nospec-branch.h>
#include <asm/processor-flags.h>
#include <asm/segment.h>

	.text

SYM_FUNC_START(rvmm_call_gate)
	push	%rbp
	mov	%rsp, %rbp
	/* Delivery aligns the stack (SDM 3A 7.14.2). */
	and	$-16, %rsp
	push	$__KERNEL_DS
	push	%rbp
	pushf
	orl	$X86_EFLAGS_IF, (%rsp)
	push	$__KERNEL_CS
	/* Pushes RIP. */
	CALL_NOSPEC rdi
	/* As IRET has left it, which objtool cannot know. */
	mov	%rbp, %rsp
	pop	%rbp
	RET
SYM_FUNC_END(rvmm_call_gate)
