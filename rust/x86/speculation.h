/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What stands between a guest and the host's speculation, besides the macros of asm/nospec-branch.h, for the files that
 * enter guests. Each is the kernel's own sequence, and in force where the kernel has chosen it: the module loader
 * applies the alternatives.
 */
#ifndef RVMM_SPECULATION_H
#define RVMM_SPECULATION_H

#include <asm/alternative.h>
#include <asm/asm-offsets.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>

/* Where `SpecCtrl` (src/x86/mitigate.rs) has the guest's IA32_SPEC_CTRL, and whether the guest reaches it. */
#define SPEC_CTRL_GUEST		0
#define SPEC_CTRL_PASSED	8

/* write_ibpb of the kernel, which is KVM's alone. Clobbers RAX, RCX, RDX. */
.macro IBPB
	movl	$MSR_IA32_PRED_CMD, %ecx
	movl	$PRED_CMD_IBPB, %eax
	xorl	%edx, %edx
	wrmsr
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_BUG_IBPB_NO_RET
.endm

/* After an exit. Clobbers RAX, RCX, RDX. */
.macro IBPB_AFTER_EXIT
	ALTERNATIVE "jmp .Lno_ibpb_\@", "", X86_FEATURE_IBPB_ON_VMEXIT
	IBPB
.Lno_ibpb_\@:
.endm

/*
 * Overwrites the CPU's buffers. What comes after it may only load, or its stores would be left there. Changes ZF alone.
 * KVM looks on some processors whether the guest reaches device memory, and spares others.
 */
.macro CLEAR_BUFFERS_BEFORE_ENTRY
	ALTERNATIVE_2 "", "verw rvmm_verw_selector(%rip)", X86_FEATURE_CLEAR_CPU_BUF_VM_MMIO, \
		"verw rvmm_verw_selector(%rip)", X86_FEATURE_CLEAR_CPU_BUF_VM
.endm

/* Overwrites what a division has left in the divider, by 0 / 1. Clobbers RAX, RCX, RDX. */
.macro CLEAR_DIVIDER
	ALTERNATIVE "jmp .Lno_division_\@", "", X86_BUG_DIV0
	xorl	%eax, %eax
	xorl	%edx, %edx
	movl	$1, %ecx
	divl	%ecx
.Lno_division_\@:
.endm

/*
 * Loads the guest's IA32_SPEC_CTRL of \spec; with V_SPEC_CTRL the processor does so. No return or indirect branch may
 * come between it and the entry. The entry serialises, so that nothing is predicted past the comparison. Clobbers RAX,
 * RCX, RDX.
 */
.macro SPEC_CTRL_TO_GUEST spec:req
	ALTERNATIVE_2 "jmp .Lguest_has_\@", "", X86_FEATURE_MSR_SPEC_CTRL, \
		"jmp .Lguest_has_\@", X86_FEATURE_V_SPEC_CTRL
	movq	SPEC_CTRL_GUEST(\spec), %rdx
	cmpq	PER_CPU_VAR(x86_spec_ctrl_current), %rdx
	je	.Lguest_has_\@
	movl	%edx, %eax
	shrq	$32, %rdx
	movl	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lguest_has_\@:
.endm

/*
 * Keeps what the guest has set, if it could, and loads the host's value. Legacy IBRS takes effect by the write alone,
 * whatever the value was. Nothing is predicted past the comparison: by LFENCE, as WRMSR here does not. Clobbers RAX,
 * RCX, RDX.
 */
.macro SPEC_CTRL_TO_HOST spec:req
	ALTERNATIVE_2 "jmp .Lhost_has_\@", "", X86_FEATURE_MSR_SPEC_CTRL, \
		"jmp .Lhost_has_\@", X86_FEATURE_V_SPEC_CTRL
	movl	$MSR_IA32_SPEC_CTRL, %ecx
	cmpb	$0, SPEC_CTRL_PASSED(\spec)
	je	.Lkept_\@
	rdmsr
	movl	%eax, SPEC_CTRL_GUEST(\spec)
	movl	%edx, SPEC_CTRL_GUEST + 4(\spec)
.Lkept_\@:
	movq	PER_CPU_VAR(x86_spec_ctrl_current), %rdx
	cmpq	SPEC_CTRL_GUEST(\spec), %rdx
	ALTERNATIVE "je .Lsame_\@", "", X86_FEATURE_KERNEL_IBRS
	movl	%edx, %eax
	shrq	$32, %rdx
	wrmsr
.Lsame_\@:
	ALTERNATIVE "lfence", "", X86_FEATURE_KERNEL_IBRS
.Lhost_has_\@:
.endm

#endif
