/* SPDX-License-Identifier: GPL-2.0 */
/* A guest that accesses memory as it is told, for tests of memory that comes when it is accessed. */
#ifndef LAZY_H
#define LAZY_H

#include "vm.h"

#define TEST_SLOT 5
#define TEST_GPA 0x8000000ull	/* identity-mapped, away from slot 0 */
#define TEST_PAGES 16
#define TEST_BYTES (TEST_PAGES * 4096ull)

/* cells: 0 address, 1 what to do (enum lazy_op), 2 value or source, 3 result. One OUT to port 0x10 after each. */
enum lazy_op { LAZY_READ = 1, LAZY_WRITE, LAZY_OUTS, LAZY_MOVS, LAZY_CALL };

/* A VM that runs that guest, with this memory in TEST_SLOT at TEST_GPA. */
void lazy_vm(struct vm *vm, unsigned int flags, void *memory);
/* Tells the guest what to do next. */
void lazy_tell(struct vm *vm, enum lazy_op op, uint64_t address, uint64_t value);
/* Lets it do that; its cell 3. */
uint64_t lazy_do(struct vm *vm, enum lazy_op op, uint64_t address, uint64_t value);
/* A guest address that is translated by a page table at `table`, which holds nothing but LAZY_TABLE_WORD. */
uint64_t lazy_behind_table(struct vm *vm, uint64_t table, uint64_t gpa);
#define LAZY_TABLE_WORD 0xe7ull	/* 2 MiB from 0 on */
/* A statistic of a VM or vCPU, by its file descriptor; skips the test where there is none. */
uint64_t lazy_statistic(int fd, const char *name);

/* A thread's KVM_RUN: its VM and what became of it. */
struct runner {
	struct vm *vm;
	int error;
};
void *run_once(void *runner);

#endif
