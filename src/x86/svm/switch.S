/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The world switch of SVM: VMRUN (APM 2 15.5) and, after the #VMEXIT (APM 2 15.6), all that has to be done before the
 * host may return from a function, branch where a predictor says, or take an NMI. tools/switches holds the module
 * against that.
 */

#include <linux/linkage.h>
#include "../../../rust/x86/speculation.h"
#include "../vendor/switch.h"

	.section .noinstr.text, "ax"

/*
 * RDI: the guest's `Regs`. RSI: its `SpecCtrl`. R8: physical address of its VMCB. R9: that of the page where the host's
 * part of VMSAVE is. Keeps RBX, RBP and RSP only.
 */
SYM_FUNC_START(rvmm_svm_switch)
	push	%rbp
	push	%rbx
	push	%rsi
	push	%r9
	push	%rdi
	/* NMIs wait too. While GIF is clear, IF only says that an interrupt ends the guest (APM 2 15.21.1). */
	clgi
	sti
	SPEC_CTRL_TO_GUEST %rsi
	CLEAR_DIVIDER
	movq	%r8, %rax
	vmload	%rax
	LOAD_GUEST_REGS
	CLEAR_BUFFERS_BEFORE_ENTRY
	vmrun	%rax
	/* The only register that is the host's. */
	vmsave	%rax
	pop	%rax
	movq	%rdi, REGS_RDI(%rax)
	STORE_GUEST_REGS %rax
	pop	%rax
	pop	%rdi
	/* From here on GS is the host's. */
	vmload	%rax
	cli
	CLEAR_GUEST_REGS
	xorl	%ebx, %ebx
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT
	SPEC_CTRL_TO_HOST %rdi
	CALL_UNTRAIN_RET
	IBPB_AFTER_EXIT
	pop	%rbx
	pop	%rbp
	/* NMIs are delivered, interrupts pending. */
	stgi
	RET
SYM_FUNC_END(rvmm_svm_switch)
