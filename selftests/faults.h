/* SPDX-License-Identifier: GPL-2.0 */
/* Calls of a program, in which everything that the module asks the kernel for fails once. */
#ifndef FAULTS_H
#define FAULTS_H

#include "vm.h"

#define FAULTS_BYTES (16 * MIB)

/* What the calls of a test work on; all of it is new before the first call, and gone after the last one. */
struct world {
	struct vm vm;		/* its memory is there from the beginning, in no slot */
	int vcpu2, fd[4], event[2];
	void *map;
	size_t map_bytes;
	uint64_t said;		/* by the guest, with OUT to port 0x11 */
};
extern struct world w;

/* A call: negative with errno, or anything else. After an error it is made again, and has to succeed then. */
struct step {
	const char *name;
	long (*call)(void);
	bool spared;	/* nothing fails in it */
};
#define STEP(name) { #name, name, false }
#define SPARED(name) { #name, name, true }

/*
 * Makes the calls in their order, over and over: of the first call the first allocation fails, then the second one,
 * until it has no more, then those of the second call, and so on; then the same with copies from and to user memory.
 * Every time the call that met the fault has to succeed, or to fail with ENOMEM (of a copy: EFAULT) and to succeed when
 * made again; the calls after it have to succeed; and of all that nothing is left. Where the kernel has no faults to
 * order, the calls are made once, and the test is skipped.
 */
void each_fails(const struct step *steps, size_t count);
#define EACH_FAILS(...) do {								\
	static const struct step steps_[] = { __VA_ARGS__ };				\
	each_fails(steps_, ARRAY_SIZE(steps_));						\
} while (0)

/* Calls that most tests begin with; MACHINE is a vCPU with 4 MiB of memory and no controllers. */
long open_device(void);
long create_vm(void);
long add_slot(void);
long add_irqchip(void);
long add_vcpu(void);
long map_vcpu(void);
long put_cpuid(void);
long small_slot(void);
#define MACHINE SPARED(open_device), SPARED(create_vm), SPARED(small_slot), SPARED(add_vcpu), SPARED(map_vcpu), \
		SPARED(put_cpuid)
/* The vCPU is about to run 64-bit code. To be spared. */
#define ENTERS(code)									\
	static long enter_##code(void)							\
	{										\
		VM_LONG(&w.vm, code);							\
		return 0;								\
	}
/* KVM_RUN until the guest says something with OUT to port 0x11; other reads are answered with 5AH. */
long run(void);
/* A call that may do less than was asked for, which is an error like the one that is expected. */
long in_full(long result, long asked);
/* What the guest has to have said last. */
void check_said(uint64_t value);

/* A mapping of `fd` at w.map. */
long map_file(int fd, size_t bytes, int prot, int flags, off_t offset);

#endif
