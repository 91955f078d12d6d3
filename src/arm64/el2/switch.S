/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The world switch: to a guest at EL1 or EL0, and back when it stops.
 *
 * The vectors and HCR_EL2 are the guest's from a few instructions before the ERET until a few after the exception. What
 * the kernel does in between entries (WARN, kprobes, accesses to user memory) is as if there were no guest.
 */

#include <linux/linkage.h>
#include <asm/alternative.h>
#include <asm/assembler.h>
#include <asm/cpucaps.h>

	.arch	armv8.1-a

/* HCR_EL2 gets `reg`. On AmpereOne no translation may be under way when it does, nor begin before (AC04_CPU_23). */
	.macro	set_hcr reg
alternative_if ARM64_WORKAROUND_AMPERE_AC04_CPU_23
	dsb	nsh
alternative_else_nop_endif
	msr	hcr_el2, \reg
alternative_if ARM64_WORKAROUND_AMPERE_AC04_CPU_23
	isb
alternative_else_nop_endif
	.endm

/*
 * Offset of word n of struct Regs: x0 to x30, SP_EL0, PC, PSTATE, ESR, FAR, HPFAR, HCR, keys of the guest and of the
 * host (src/arm64/el2/mod.rs).
 */
#define REG(n)	[x0, #(8 * (n))]
#define KEYS		38
#define HOST_KEYS	48

/* HCR_EL2.API: the guest has pointer authentication. */
#define HCR_API		41

/* One key of two words: what is there goes to word `save`, and it becomes what word `load` has. */
	.macro switch_key lo hi save load
	mrs	x2, \lo
	mrs	x3, \hi
	stp	x2, x3, REG(\save)
	ldp	x2, x3, REG(\load)
	msr	\lo, x2
	msr	\hi, x3
	.endm

/* APIA, APIB, APDA, APDB, APGA. The kernel signs its own return addresses: nothing is called in between. */
	.macro switch_keys save load
	switch_key s3_0_c2_c1_0, s3_0_c2_c1_1, \save, \load
	switch_key s3_0_c2_c1_2, s3_0_c2_c1_3, \save + 2, \load + 2
	switch_key s3_0_c2_c2_0, s3_0_c2_c2_1, \save + 4, \load + 4
	switch_key s3_0_c2_c2_2, s3_0_c2_c2_3, \save + 6, \load + 6
	switch_key s3_0_c2_c3_0, s3_0_c2_c3_1, \save + 8, \load + 8
	.endm

	.text

/*
 * u64 rvmm_el2_enter(struct Regs *regs, u64 hcr)
 *
 * Why the guest stopped: 0 synchronous exception, 1 IRQ, 2 FIQ, 3 SError. Interrupts are off, and debug exceptions are
 * masked, as in the whole stay; SError is on again when it returns, as everywhere in the kernel.
 */
	.p2align 4
	.global	rvmm_el2_enter
	.type	rvmm_el2_enter, %function
rvmm_el2_enter:
	stp	x29, x30, [sp, #-16]!
	stp	x27, x28, [sp, #-16]!
	stp	x25, x26, [sp, #-16]!
	stp	x23, x24, [sp, #-16]!
	stp	x21, x22, [sp, #-16]!
	stp	x19, x20, [sp, #-16]!
	msr	daifset, #0xf
	mrs	x3, sp_el0		/* The kernel's `current`. */
	mrs	x4, vbar_el1		/* At EL2 with E2H: VBAR_EL2. */
	stp	x3, x4, [sp, #-16]!
	mrs	x5, hcr_el2
	stp	x0, x5, [sp, #-16]!
	ldr	x6, REG(32)
	msr	elr_el2, x6
	ldr	x6, REG(33)
	msr	spsr_el2, x6
	ldr	x6, REG(31)
	msr	sp_el0, x6
	tbz	x1, #HCR_API, 1f
	switch_keys HOST_KEYS, KEYS
1:
	adr_l	x6, rvmm_el2_vectors
	msr	vbar_el1, x6
	set_hcr	x1
	/* ERET is a context synchronization event. */
	ldp	x2, x3, REG(2)
	ldp	x4, x5, REG(4)
	ldp	x6, x7, REG(6)
	ldp	x8, x9, REG(8)
	ldp	x10, x11, REG(10)
	ldp	x12, x13, REG(12)
	ldp	x14, x15, REG(14)
	ldp	x16, x17, REG(16)
	ldp	x18, x19, REG(18)
	ldp	x20, x21, REG(20)
	ldp	x22, x23, REG(22)
	ldp	x24, x25, REG(24)
	ldp	x26, x27, REG(26)
	ldp	x28, x29, REG(28)
	ldr	x30, REG(30)
	ldp	x0, x1, REG(0)
	eret
	/* Nothing behind it is executed speculatively. */
	dsb	nsh
	isb

/* The guest has stopped: x1 says why; its x0 and x1 are on the stack, on top of what rvmm_el2_enter has put there. */
.Lexit:
	ldr	x0, [sp, #16]
	stp	x2, x3, REG(2)
	stp	x4, x5, REG(4)
	stp	x6, x7, REG(6)
	stp	x8, x9, REG(8)
	stp	x10, x11, REG(10)
	stp	x12, x13, REG(12)
	stp	x14, x15, REG(14)
	stp	x16, x17, REG(16)
	stp	x18, x19, REG(18)
	stp	x20, x21, REG(20)
	stp	x22, x23, REG(22)
	stp	x24, x25, REG(24)
	stp	x26, x27, REG(26)
	stp	x28, x29, REG(28)
	str	x30, REG(30)
	ldp	x2, x3, [sp], #16
	stp	x2, x3, REG(0)
	/* Before any branch that is predicted: what the guest has taught the predictors is forgotten. */
	adr_l	x2, rvmm_el2_clearing
	ldp	w3, w4, [x2]
	cbnz	w3, .Lclear
.Lcleared:
	mrs	x2, sp_el0
	str	x2, REG(31)
	mrs	x2, elr_el2
	mrs	x3, spsr_el2
	stp	x2, x3, REG(32)
	mrs	x2, esr_el2
	mrs	x3, far_el2
	stp	x2, x3, REG(34)
	mrs	x2, hpfar_el2
	mrs	x3, hcr_el2
	stp	x2, x3, REG(36)
	tbz	x3, #HCR_API, 1f
	switch_keys KEYS, HOST_KEYS
1:
	ldp	x0, x5, [sp], #16
	ldp	x3, x4, [sp], #16
	set_hcr	x5
	msr	vbar_el1, x4
	msr	sp_el0, x3
	isb
	msr	pan, #1
	msr	daifclr, #0x4
	/* Registers that the caller does not expect back hold what the guest left there. */
	mov	x6, xzr
	mov	x7, xzr
	mov	x8, xzr
	mov	x9, xzr
	mov	x10, xzr
	mov	x11, xzr
	mov	x12, xzr
	mov	x13, xzr
	mov	x14, xzr
	mov	x15, xzr
	mov	x16, xzr
	mov	x17, xzr
	mov	x18, xzr
	ldp	x19, x20, [sp], #16
	ldp	x21, x22, [sp], #16
	ldp	x23, x24, [sp], #16
	ldp	x25, x26, [sp], #16
	ldp	x27, x28, [sp], #16
	ldp	x29, x30, [sp], #16
	mov	x0, x1
	ret

	/* How: w3; how many, or which call: w4 (mitigate.rs). x0 and x1 stay. */
.Lclear:
	cmp	w3, #2
	b.eq	.Lclear_instruction
	b.hi	.Lclear_firmware
1:	b	. + 4
	subs	w4, w4, #1
	b.ne	1b
	dsb	nsh
	isb
	b	.Lcleared
.Lclear_instruction:
	hint	#22		/* CLRBHB */
	isb
	b	.Lcleared
.Lclear_firmware:
	stp	x0, x1, [sp, #-16]!
	mov	w0, w4
	.inst	0xd4000003	/* SMC #0, which keeps all but X0 to X3 (SMCCC 1.1). */
	ldp	x0, x1, [sp], #16
	b	.Lcleared
	.size	rvmm_el2_enter, . - rvmm_el2_enter

	.pushsection .data
	.p2align 3
	.global	rvmm_el2_clearing
rvmm_el2_clearing:
	.long	0, 0
	.popsection

	.macro	from_guest why
	.p2align 7
	stp	x0, x1, [sp, #-16]!
	mov	x1, #\why
	b	.Lexit
	.endm

	/* An exception of our own code, which has none while these vectors are in force. There is no stack to trust. */
	.macro	never
	.p2align 7
	b	.
	.endm

	.p2align 11
rvmm_el2_vectors:
	.rept	8
	never
	.endr
	from_guest 0
	from_guest 1
	from_guest 2
	from_guest 3
	/*
	 * For an EL1 of 32 bits, which guests have not (HCR_EL2.RW). An EL0 of 32 bits, to which EL1 can return where
	 * the processor has it, comes by those above: what counts is the level below EL2.
	 */
	.rept	4
	never
	.endr

	.arch	armv8.1-a+fp+simd

	.macro	vectors op
	\op	q0, q1, [x0, #0]
	\op	q2, q3, [x0, #32]
	\op	q4, q5, [x0, #64]
	\op	q6, q7, [x0, #96]
	\op	q8, q9, [x0, #128]
	\op	q10, q11, [x0, #160]
	\op	q12, q13, [x0, #192]
	\op	q14, q15, [x0, #224]
	\op	q16, q17, [x0, #256]
	\op	q18, q19, [x0, #288]
	\op	q20, q21, [x0, #320]
	\op	q22, q23, [x0, #352]
	\op	q24, q25, [x0, #384]
	\op	q26, q27, [x0, #416]
	\op	q28, q29, [x0, #448]
	\op	q30, q31, [x0, #480]
	.endm

/* void rvmm_vectors_save(struct user_fpsimd_state *to): V0 to V31, FPSR, FPCR. */
	.global	rvmm_vectors_save
	.type	rvmm_vectors_save, %function
rvmm_vectors_save:
	vectors	stp
	mrs	x1, fpsr
	mrs	x2, fpcr
	str	w1, [x0, #512]
	str	w2, [x0, #516]
	ret
	.size	rvmm_vectors_save, . - rvmm_vectors_save

/* void rvmm_vectors_load(const struct user_fpsimd_state *from) */
	.global	rvmm_vectors_load
	.type	rvmm_vectors_load, %function
rvmm_vectors_load:
	vectors	ldp
	ldr	w1, [x0, #512]
	ldr	w2, [x0, #516]
	msr	fpsr, x1
	msr	fpcr, x2
	ret
	.size	rvmm_vectors_load, . - rvmm_vectors_load
