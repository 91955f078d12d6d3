// SPDX-License-Identifier: GPL-2.0
/* The guest of the tests of memory that comes when it is accessed. */
#define _GNU_SOURCE
#include "lazy.h"

GUEST64(lazy_guest,
	"mov $" STR(G_CELLS) ", %ebx\n"
	"1: mov (%rbx), %rsi; mov 8(%rbx), %rax\n"
	"cmp $1, %rax; je 2f; cmp $2, %rax; je 3f; cmp $3, %rax; je 4f; cmp $4, %rax; je 5f; cmp $5, %rax; je 6f\n"
	"hlt; jmp 1b\n"
	"2: mov (%rsi), %rcx; mov %rcx, 24(%rbx); out %al, $0x10; jmp 1b\n"
	"3: mov 16(%rbx), %rcx; mov %rcx, (%rsi); out %al, $0x10; jmp 1b\n"
	"4: mov $0x11, %edx; outsb; out %al, $0x10; jmp 1b\n"
	"5: mov %rsi, %rdi; mov 16(%rbx), %rsi; movsq; out %al, $0x10; jmp 1b\n"
	"6: call *%rsi; out %al, $0x10; jmp 1b\n");

void lazy_vm(struct vm *vm, unsigned int flags, void *memory)
{
	VM_NEW_LONG(vm, lazy_guest);
	vm_slot(vm, TEST_SLOT, flags, TEST_GPA, TEST_BYTES, memory);
}

void lazy_tell(struct vm *vm, enum lazy_op op, uint64_t address, uint64_t value)
{
	volatile uint64_t *cell = vm_cells(vm);

	cell[0] = address;
	cell[1] = op;
	cell[2] = value;
}

uint64_t lazy_do(struct vm *vm, enum lazy_op op, uint64_t address, uint64_t value)
{
	lazy_tell(vm, op, address, value);
	vm_expect_out(vm, 0x10);
	return vm_cells(vm)[3];
}

uint64_t lazy_behind_table(struct vm *vm, uint64_t table, uint64_t gpa)
{
	((uint64_t *)(vm->mem + G_PDPT))[1] = table | 7;
	return 0x40000000 + gpa;
}

uint64_t lazy_statistic(int fd, const char *name)
{
	int file = ioctl(fd, KVM_GET_STATS_FD, NULL);
	struct kvm_stats_header header;
	uint64_t value;

	if (file < 0)
		skip("no statistics");
	REQUIRE_EQ(pread(file, &header, sizeof(header), 0), sizeof(header));
	for (unsigned int i = 0; i < header.num_desc; i++) {
		char text[sizeof(struct kvm_stats_desc) + header.name_size + 1] __attribute__((aligned(8)));
		struct kvm_stats_desc *d = (struct kvm_stats_desc *)text;
		size_t bytes = sizeof(text) - 1;

		text[bytes] = 0;
		REQUIRE_EQ(pread(file, text, bytes, header.desc_offset + i * bytes), bytes);
		if (!strcmp(d->name, name)) {
			REQUIRE_EQ(pread(file, &value, 8, header.data_offset + d->offset), 8);
			close(file);
			return value;
		}
	}
	DIE("there is no %s", name);
}
