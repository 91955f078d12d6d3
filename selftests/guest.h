/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Guests of the tests: their memory map, and macros for code that is assembled into the test and copied to guest
 * memory.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdint.h>

/* Guest-physical addresses, identity-mapped in 64-bit guests (first and fourth GiB, 2 MiB pages). */
#define G_PML4		0x1000
#define G_PDPT		0x2000
#define G_PD0		0x3000	/* 0 to 1 GiB */
#define G_PD3		0x4000	/* 3 to 4 GiB: local APIC, IOAPIC */
#define G_GDT		0x5000
#define G_TSS		0x5800
#define G_IDT		0x6000
#define G_STUBS		0x7000	/* 16 bytes for each of 256 vectors */
#define G_HANDLER	0x8000
#define G_LOG		0x9000	/* struct guest_log */
#define G_CELLS		0xb000	/* words shared between test and guest */
#define G_STACK		0xe000	/* top */
#define G_IST		0xf000	/* top of the stack for IST 1 */
#define G_CODE		0x10000
#define G_DATA		0x20000	/* free for the test, up to the end of memory */
#define G_MMIO		0x10000000	/* nothing there, but mapped in 64-bit guests */

/* Selectors in the GDT. */
#define SEL_CODE64	0x08
#define SEL_DATA	0x10
#define SEL_CODE32	0x18
#define SEL_CODE16	0x20
#define SEL_TSS		0x28	/* two entries */
#define SEL_USER_DATA	0x3b
#define SEL_USER_CODE64	0x43
#define SEL_DATA16	0x48

/* Exception or interrupt as the guest's handler saw it. */
struct guest_event {
	uint64_t vector, error, rip, cs, rflags, rsp, cr2, dr6;
};

/*
 * What the guest's handler wrote. After an exception the handler returns to `resume`, once, when that is not zero,
 * else to where it came from.
 */
struct guest_log {
	uint64_t count, resume, eoi /* address to write 0 to after an interrupt, if not 0 */, unused[5];
	struct guest_event event[100];
};

#define STR_(x) #x
#define STR(x) STR_(x)

/*
 * Code of a guest: `name` to `name`_end. Labels are the assembler's; code runs at G_CODE (real mode: at offset 0 of
 * segment G_CODE >> 4).
 */
#define GUEST(name, mode, body)						\
	extern const unsigned char name[], name##_end[];		\
	asm(".pushsection .rodata\n.balign 16\n" #name ":\n" mode "\n"	\
	    body "\n" #name "_end:\n.code64\n.popsection")

#define GUEST16(name, body) GUEST(name, ".code16", body)
#define GUEST32(name, body) GUEST(name, ".code32", body)
#define GUEST64(name, body) GUEST(name, ".code64", body)

#endif
