/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The world switch of VMX: VM entry (SDM 3C 27) and, after the VM exit (SDM 3C 28), all that has to be done before the
 * host may return from a function or branch where a predictor says. tools/switches holds the module against that.
 */

#include <linux/linkage.h>
#include <linux/objtool.h>
#include <asm/unwind_hints.h>
#include "../../../rust/x86/speculation.h"
#include "../vendor/switch.h"

/* SDM 3D B.4.4. */
#define HOST_RSP	0x6c14

/* How it came back, as `Outcome` of entry.rs has it. */
#define VM_EXIT		0
#define FAIL_INVALID	1
#define FAIL_VALID	2

	.section .noinstr.text, "ax"

/*
 * RDI: the guest's `Regs`. RSI: its `SpecCtrl`. R8: where HOST_RSP is kept as the VMCS has it. R9D: 1 if the VMCS is
 * launched. Returns the outcome in EAX. Keeps RBX, RBP and RSP only.
 */
SYM_FUNC_START(rvmm_vmx_switch)
	push	%rbp
	push	%rbx
	push	%rsi
	push	%rdi
	cmpq	%rsp, (%r8)
	jne	.Lwrite_host_rsp
.Lhost_rsp_written:
	SPEC_CTRL_TO_GUEST %rsi
	/* CF, which VERW leaves alone. */
	bt	$0, %r9d
	movq	REGS_RAX(%rdi), %rax
	LOAD_GUEST_REGS
	CLEAR_BUFFERS_BEFORE_ENTRY
	jnc	.Llaunch
	/* An exit comes back at rvmm_vmx_exit, with RSP as it is here. */
	UNWIND_HINT_SAVE
	vmresume
	jmp	.Lfailed
.Llaunch:
	vmlaunch
	jmp	.Lfailed

/* HOST_RIP. RFLAGS are clear but for bit 1 (SDM 3C 28.5.3). */
SYM_INNER_LABEL_ALIGN(rvmm_vmx_exit, SYM_L_GLOBAL)
	UNWIND_HINT_RESTORE
	ENDBR
	push	%rdi
	movq	8(%rsp), %rdi
	movq	%rax, REGS_RAX(%rdi)
	STORE_GUEST_REGS %rdi
	pop	REGS_RDI(%rdi)
	movl	$VM_EXIT, %ebx
.Lback:
	CLEAR_GUEST_REGS
	xorl	%eax, %eax
	pop	%rdi
	pop	%rdi
	/* Before SPEC_CTRL: with the host's IBRS set again, one call at least has to come before a return. */
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT, X86_FEATURE_RSB_VMEXIT_LITE
	SPEC_CTRL_TO_HOST %rdi
	IBPB_AFTER_EXIT
	ALTERNATIVE "", "call rvmm_clear_branch_history", X86_FEATURE_CLEAR_BHB_VMEXIT
	movl	%ebx, %eax
	pop	%rbx
	pop	%rbp
	RET

.Lwrite_host_rsp:
	movl	$HOST_RSP, %eax
	vmwrite	%rsp, %rax
	movq	%rsp, (%r8)
	jmp	.Lhost_rsp_written

/* VMfailInvalid sets CF, VMfailValid ZF (SDM 3C 31.2). */
.Lfailed:
	movl	$FAIL_INVALID, %ebx
	jc	.Lback
	movl	$FAIL_VALID, %ebx
	jmp	.Lback
SYM_FUNC_END(rvmm_vmx_switch)

/*
 * clear_bhb_loop of the kernel, which is KVM's alone: so many branches that none of the guest's is left in the branch
 * history (BHI). Calls and returns are there for the sake of the loop stream detector, the gaps to have each RET in the
 * upper half of a cache line (ITS). Clobbers RAX, RCX.
 */
SYM_FUNC_START(rvmm_clear_branch_history)
	push	%rbp
	movq	%rsp, %rbp
	movl	$5, %ecx
	ANNOTATE_INTRA_FUNCTION_CALL
	call	1f
	jmp	5f
	.align	64, 0xcc
	.skip	32 - (.Lfirst_ret - 1f), 0xcc
	ANNOTATE_INTRA_FUNCTION_CALL
1:	call	2f
.Lfirst_ret:
	RET
	.align	64, 0xcc
	.skip	32 - 18, 0xcc
2:	movl	$5, %eax
3:	jmp	4f
	nop
4:	sub	$1, %eax
	jnz	3b
	sub	$1, %ecx
	jnz	1b
	RET
5:	lfence
	pop	%rbp
	RET
SYM_FUNC_END(rvmm_clear_branch_history)
STACK_FRAME_NON_STANDARD(rvmm_clear_branch_history)
