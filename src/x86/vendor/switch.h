/* SPDX-License-Identifier: GPL-2.0 */
/*
 * General registers in a world switch: all but RAX and RSP, for which each vendor has a place of its own. `Regs`
 * (src/x86/cpu/regs.rs) has them by their encoding.
 */
#ifndef RVMM_SWITCH_H
#define RVMM_SWITCH_H

#define REGS_RAX	(0 * 8)
#define REGS_RDI	(7 * 8)

/* From the `Regs` that RDI points to. */
.macro LOAD_GUEST_REGS
	movq	(1 * 8)(%rdi), %rcx
	movq	(2 * 8)(%rdi), %rdx
	movq	(3 * 8)(%rdi), %rbx
	movq	(5 * 8)(%rdi), %rbp
	movq	(6 * 8)(%rdi), %rsi
	movq	(8 * 8)(%rdi), %r8
	movq	(9 * 8)(%rdi), %r9
	movq	(10 * 8)(%rdi), %r10
	movq	(11 * 8)(%rdi), %r11
	movq	(12 * 8)(%rdi), %r12
	movq	(13 * 8)(%rdi), %r13
	movq	(14 * 8)(%rdi), %r14
	movq	(15 * 8)(%rdi), %r15
	movq	REGS_RDI(%rdi), %rdi
.endm

/* To the `Regs` at \regs, all but RDI. */
.macro STORE_GUEST_REGS regs:req
	movq	%rcx, (1 * 8)(\regs)
	movq	%rdx, (2 * 8)(\regs)
	movq	%rbx, (3 * 8)(\regs)
	movq	%rbp, (5 * 8)(\regs)
	movq	%rsi, (6 * 8)(\regs)
	movq	%r8, (8 * 8)(\regs)
	movq	%r9, (9 * 8)(\regs)
	movq	%r10, (10 * 8)(\regs)
	movq	%r11, (11 * 8)(\regs)
	movq	%r12, (12 * 8)(\regs)
	movq	%r13, (13 * 8)(\regs)
	movq	%r14, (14 * 8)(\regs)
	movq	%r15, (15 * 8)(\regs)
.endm

/* Leaves no value of the guest's that speculation could use as an address, in all but RAX, RBX, RSP and RDI. */
.macro CLEAR_GUEST_REGS
	.irp	reg, ecx, edx, ebp, esi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d
	xorl	%\reg, %\reg
	.endr
.endm

#endif
