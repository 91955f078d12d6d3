/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Boot sector of the Intel bed: reads an unpacked 64-bit Linux kernel, its initramfs and its parameters from
 * the first ATA disk, and enters the kernel by Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst,
 * "64-bit Boot Protocol"): long mode, identity mapping, interrupts off, flat selectors 0x10 (code) and 0x18
 * (data), RSI pointing at boot_params. An emulated boot loader and decompressor take ten times as long.
 *
 * bochs.py fills in `entry` and `areas` and puts the page tables and boot_params among what is read.
 */
	.equ	BOOT_PARAMS, 0x20000
	.equ	PML4, 0x21000

	/* ATA: ACS-3, PIO data-in protocol; registers of the primary channel. */
	.equ	ATA_DATA, 0x1f0		/* +2 count, +3..5 LBA, +6 device, +7 command and status */
	.equ	ATA_CONTROL, 0x3f6
	.equ	READ_SECTORS, 0x20
	.equ	STATUS_BSY, 0x80
	.equ	STATUS_DRQ, 0x08

	.code16
	.globl	_start
_start:
	cli
	cld
	xorw	%ax, %ax
	movw	%ax, %ds
	inb	$0x92, %al		/* A20 on, the "fast" way that this chipset has */
	orb	$2, %al
	andb	$0xfe, %al
	outb	%al, $0x92
	movb	$0xff, %al		/* both 8259s masked */
	outb	%al, $0x21
	outb	%al, $0xa1
	lgdtl	gdt_pointer
	movl	%cr0, %eax
	orb	$1, %al			/* CR0.PE */
	movl	%eax, %cr0
	ljmpl	$0x08, $protected

	.code32
protected:
	movl	$0x18, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$0x7c00, %esp
	movw	$ATA_CONTROL, %dx	/* nIEN: polled */
	movb	$2, %al
	outb	%al, %dx

	movl	$areas, %esi
next_area:
	movl	(%esi), %ebx		/* first sector */
	movl	4(%esi), %ebp		/* sectors left */
	movl	8(%esi), %edi		/* address */
	addl	$12, %esi
	testl	%ebp, %ebp
	jz	all_read
next_command:
	testl	%ebp, %ebp
	jz	next_area
	call	wait_idle
	movl	%ebp, %ecx
	cmpl	$255, %ecx
	jbe	1f
	movl	$255, %ecx
1:	subl	%ecx, %ebp
	movw	$ATA_DATA + 2, %dx
	movb	%cl, %al
	outb	%al, %dx
	movl	%ebx, %eax
	incw	%dx
	outb	%al, %dx		/* LBA 0..7 */
	shrl	$8, %eax
	incw	%dx
	outb	%al, %dx		/* LBA 8..15 */
	shrl	$8, %eax
	incw	%dx
	outb	%al, %dx		/* LBA 16..23 */
	movb	%ah, %al
	andb	$0x0f, %al
	orb	$0xe0, %al		/* LBA mode, device 0, LBA 24..27 */
	incw	%dx
	outb	%al, %dx
	addl	%ecx, %ebx
	movb	$READ_SECTORS, %al
	incw	%dx
	outb	%al, %dx
next_sector:
	pushl	%ecx
	call	wait_idle
	testb	$STATUS_DRQ, %al
	jz	stuck
	movw	$ATA_DATA, %dx
	movl	$128, %ecx
	rep	insl
	popl	%ecx
	decl	%ecx
	jnz	next_sector
	jmp	next_command

wait_idle:
	movw	$ATA_DATA + 7, %dx
1:	inb	%dx, %al
	testb	$STATUS_BSY, %al
	jnz	1b
	ret

stuck:	hlt				/* the run's time-out tells */
	jmp	stuck

all_read:
	movl	$0x20, %eax		/* CR4.PAE */
	movl	%eax, %cr4
	movl	$PML4, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx	/* EFER.LME */
	rdmsr
	orl	$0x100, %eax
	wrmsr
	movl	$0x80000011, %eax	/* CR0: PG, ET, PE; caches on */
	movl	%eax, %cr0
	ljmpl	$0x10, $long_mode

	.code64
long_mode:
	movl	$BOOT_PARAMS, %esi
	movl	entry, %eax
	jmp	*%rax

	.balign	8
gdt:
	.quad	0
	.quad	0x00cf9a000000ffff	/* 0x08: 32-bit code */
	.quad	0x00af9a000000ffff	/* 0x10: 64-bit code */
	.quad	0x00cf92000000ffff	/* 0x18: data */
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt

	.org	440
entry:	.long	0			/* the kernel's entry point */
	.org	448
areas:	.fill	12, 4, 0		/* first sector, sectors, address; zero sectors end the list */
	.org	510
	.word	0xaa55
