/* SPDX-License-Identifier: GPL-2.0 */
/* Random instructions, and the machine state that they start from. */
#ifndef EMUL_RANDOM_H
#define EMUL_RANDOM_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * The window: a page of memory, one of a device, one of memory. In modes of 16 bits data segments start with it. The
 * rest of memory is one slot from 0 on and, in 64-bit mode, the page tables.
 */
#define WINDOW		0x10000000ull
#define WINDOW_BYTES	0x3000
#define WINDOW_DEVICE	0x1000

/* Real mode; protected mode, segments of 16 and of 32 bits; 64-bit mode, and that at privilege level 3. */
enum random_mode { REAL, PROT16, PROT32, LONG, USER, MODES };

struct random_insn {
	enum random_mode mode;
	/* Page tables cannot be written, and accessed bits are missing: of the window, of everything. */
	bool tables, all_tables;
	uint8_t bytes[18], length;
	/* Where memory operands are meant to be, from WINDOW on, and what is there. */
	uint32_t target;
	uint8_t content[32];
	uint64_t rip, cr0_set, cr4_clear;
	struct kvm_regs regs;
};

/* The instruction with this number among those of the seed. */
void random_insn(struct random_insn *insn, uint64_t seed, uint64_t number);
/* What is at an address that nobody has written to. */
uint8_t random_byte(uint64_t address);

#endif
