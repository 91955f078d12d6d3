// SPDX-License-Identifier: GPL-2.0
/* Exits for accesses to memory that is not there. */
#define _GNU_SOURCE
#include "vm.h"

static void mmio(struct vm *vm, bool write, uint64_t address, unsigned int size, uint64_t value)
{
	struct kvm_run *run = vm->run;
	uint64_t have = 0;

	vm_expect(vm, KVM_EXIT_MMIO);
	memcpy(&have, run->mmio.data, 8);
	if (run->mmio.is_write != write || run->mmio.phys_addr != address || run->mmio.len != size)
		DIE("MMIO %s %#llx, %u bytes; %s %#llx, %u bytes expected", run->mmio.is_write ? "write" : "read",
		    run->mmio.phys_addr, run->mmio.len, write ? "write" : "read", (unsigned long long)address, size);
	if (write) {
		if (size < 8)
			have &= (1ull << 8 * size) - 1;
		CHECK_EQ(have, value);
	} else {
		memcpy(run->mmio.data, &value, size);
	}
}

#define M STR(G_MMIO)

GUEST64(mmio_mov,
	"mov $" M ", %ebx; mov $0x1122334455667788, %rax\n"
	"mov %al, (%rbx); mov %ax, 2(%rbx); mov %eax, 4(%rbx); mov %rax, 8(%rbx)\n"
	"mov $-1, %rcx; mov (%rbx), %cl\n"
	"mov $-1, %rdx; mov (%rbx), %dx\n"
	"mov $-1, %rsi; mov (%rbx), %esi\n"
	"mov $-1, %rdi; mov (%rbx), %rdi\n"
	"movb $0x12, (%rbx); movw $0x1234, (%rbx); movl $0x12345678, (%rbx); movq $-2, (%rbx)\n"
	"mov $4, %r8d; mov %r15d, 0x10(%rbx,%r8,8); mov (%ebx), %r9d; mov %ah, 1(%rbx)\n"
	"movabs " M "+0x100, %al; movabs %eax, " M "+0x104\n"
	"hlt\n");

TEST(mmio_mov)
{
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, mmio_mov);
	r = vm_regs(&vm);
	r.r15 = 0xfeedface;
	vm_set_regs(&vm, &r);
	mmio(&vm, true, G_MMIO, 1, 0x88);
	mmio(&vm, true, G_MMIO + 2, 2, 0x7788);
	mmio(&vm, true, G_MMIO + 4, 4, 0x55667788);
	mmio(&vm, true, G_MMIO + 8, 8, 0x1122334455667788);
	mmio(&vm, false, G_MMIO, 1, 0xa1);
	mmio(&vm, false, G_MMIO, 2, 0xb1b2);
	mmio(&vm, false, G_MMIO, 4, 0xc1c2c3c4);
	mmio(&vm, false, G_MMIO, 8, 0xd1d2d3d4d5d6d7d8);
	mmio(&vm, true, G_MMIO, 1, 0x12);
	mmio(&vm, true, G_MMIO, 2, 0x1234);
	mmio(&vm, true, G_MMIO, 4, 0x12345678);
	mmio(&vm, true, G_MMIO, 8, -2ull);
	mmio(&vm, true, G_MMIO + 0x30, 4, 0xfeedface);
	mmio(&vm, false, G_MMIO, 4, 0x31323334);
	mmio(&vm, true, G_MMIO + 1, 1, 0x77);
	mmio(&vm, false, G_MMIO + 0x100, 1, 0x99);
	mmio(&vm, true, G_MMIO + 0x104, 4, 0x55667799);
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.rcx, 0xffffffffffffffa1);
	CHECK_EQ(r.rdx, 0xffffffffffffb1b2);
	CHECK_EQ(r.rsi, 0xc1c2c3c4);
	CHECK_EQ(r.rdi, 0xd1d2d3d4d5d6d7d8);
	CHECK_EQ(r.r9, 0x31323334);
}

GUEST64(mmio_extend,
	"mov $" M ", %ebx\n"
	"mov $-1, %rax; movzbl (%rbx), %eax\n"
	"mov $-1, %rcx; movzwl (%rbx), %ecx\n"
	"xor %edx, %edx; movsbq (%rbx), %rdx\n"
	"xor %esi, %esi; movswl (%rbx), %esi\n"
	"xor %edi, %edi; movslq (%rbx), %rdi\n"
	"mov $-1, %r8; movzbw (%rbx), %r8w\n"
	"hlt\n");

TEST(mmio_extend)
{
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, mmio_extend);
	mmio(&vm, false, G_MMIO, 1, 0x80);
	mmio(&vm, false, G_MMIO, 2, 0x8001);
	mmio(&vm, false, G_MMIO, 1, 0x81);
	mmio(&vm, false, G_MMIO, 2, 0x8002);
	mmio(&vm, false, G_MMIO, 4, 0x80000003);
	mmio(&vm, false, G_MMIO, 1, 0x84);
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.rax, 0x80);
	CHECK_EQ(r.rcx, 0x8001);
	CHECK_EQ(r.rdx, 0xffffffffffffff81);
	CHECK_EQ(r.rsi, 0xffff8002);
	CHECK_EQ(r.rdi, 0xffffffff80000003);
	CHECK_EQ(r.r8, 0xffffffffffff0084);
}

/* Read-modify-write: a read, then a write, and flags. */
GUEST64(mmio_rmw,
	"mov $" M ", %ebx\n"
	"mov $5, %eax; add %eax, (%rbx); pushfq; pop %r8\n"
	"orb $0x0f, (%rbx)\n"
	"mov $0xff, %ecx; and %cx, (%rbx)\n"
	"xorq $-1, (%rbx)\n"
	"subl $1, (%rbx); pushfq; pop %r9\n"
	"mov $0x1234, %edx; xchg %edx, (%rbx)\n"
	"btsl $5, (%rbx); pushfq; pop %r10\n"
	"lock btrl $0, (%rbx)\n"
	"add (%rbx), %rax; cmp (%rbx), %edx; pushfq; pop %r11\n"
	"testl $1, (%rbx); pushfq; pop %r12\n"
	"cmpb $3, (%rbx); pushfq; pop %r13\n"
	"hlt\n");

TEST(mmio_rmw)
{
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, mmio_rmw);
	mmio(&vm, false, G_MMIO, 4, 0xfffffffb);
	mmio(&vm, true, G_MMIO, 4, 0);
	mmio(&vm, false, G_MMIO, 1, 0x50);
	mmio(&vm, true, G_MMIO, 1, 0x5f);
	mmio(&vm, false, G_MMIO, 2, 0x1234);
	mmio(&vm, true, G_MMIO, 2, 0x34);
	mmio(&vm, false, G_MMIO, 8, 0x00ff00ff00ff00ff);
	mmio(&vm, true, G_MMIO, 8, 0xff00ff00ff00ff00);
	mmio(&vm, false, G_MMIO, 4, 0);
	mmio(&vm, true, G_MMIO, 4, 0xffffffff);
	mmio(&vm, false, G_MMIO, 4, 0x9999);
	mmio(&vm, true, G_MMIO, 4, 0x1234);
	mmio(&vm, false, G_MMIO, 4, 0x20);
	if (is_rvmm()) {
		mmio(&vm, true, G_MMIO, 4, 0x20);
		mmio(&vm, false, G_MMIO, 4, 1);
		mmio(&vm, true, G_MMIO, 4, 0);
	} else {
		/* KVM does not write what has not changed. */
		vm_expect(&vm, KVM_EXIT_MMIO);
		if (vm.run->mmio.is_write)
			vm_expect(&vm, KVM_EXIT_MMIO);
		*(uint64_t *)vm.run->mmio.data = 1;
		mmio(&vm, true, G_MMIO, 4, 0);
	}
	mmio(&vm, false, G_MMIO, 8, 0x100000000);
	mmio(&vm, false, G_MMIO, 4, 0x9999);
	mmio(&vm, false, G_MMIO, 4, 2);
	mmio(&vm, false, G_MMIO, 1, 4);
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.r8 & 0x8d5, 0x55);		/* ZF PF AF CF */
	CHECK_EQ(r.r9 & 0x8d5, 0x95);		/* SF PF AF CF */
	CHECK_EQ(r.r10 & 1, 1);
	CHECK_EQ(r.rdx, 0x9999);
	CHECK_EQ(r.rax, 0x100000005);
	CHECK_EQ(r.r11 & 0x8d5, 0x44);		/* ZF PF */
	CHECK_EQ(r.r12 & 0x8d5, 0x44);
	CHECK_EQ(r.r13 & 0x8d5, 0);		/* 1: nothing */
}

/* Across a page boundary: split, low part first. */
GUEST64(mmio_crossing,
	"mov $" M "+0x1000, %ebx; mov $0x1122334455667788, %rax\n"
	"mov %rax, -3(%rbx)\n"
	"mov -5(%rbx), %rcx\n"
	"mov -1(%rbx), %dx\n"
	"hlt\n");

TEST(mmio_crossing)
{
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, mmio_crossing);
	mmio(&vm, true, G_MMIO + 0xffd, 3, 0x667788);
	mmio(&vm, true, G_MMIO + 0x1000, 5, 0x1122334455);
	mmio(&vm, false, G_MMIO + 0xffb, 5, 0xa5a4a3a2a1);
	mmio(&vm, false, G_MMIO + 0x1000, 3, 0xa8a7a6);
	mmio(&vm, false, G_MMIO + 0xfff, 1, 0xcd);
	mmio(&vm, false, G_MMIO + 0x1000, 1, 0xab);
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.rcx, 0xa8a7a6a5a4a3a2a1);
	CHECK_EQ(r.rdx & 0xffff, 0xabcd);
}

/*
 * The two parts of an access that crosses pages come one after the other. What user space does in between, to the
 * shared page, to the instruction and to what it reads, does not reach the second part: that was read with the first.
 */
GUEST64(mmio_two_parts,
	"mov $" M "+0xffd, %edi; mov $" STR(G_DATA) ", %esi; movsq\n"
	"mov $" M "+0xffd, %edi; mov (%rdi), %rcx\n"
	"hlt\n");

static void between_parts(struct vm *vm, unsigned int insn)
{
	struct kvm_cpuid2 *table = supported_cpuid(vm->kvm);
	struct kvm_lapic_state l;
	struct kvm_xsave x;

	memset(vm->mem + G_DATA, 0xee, 8);
	memset(vm->mem + G_CODE + insn, 0xf4, 2);
	memset(&vm->run->mmio, 0xee, sizeof(vm->run->mmio));
	/* Calls whose frames lie where those of KVM_RUN did. */
	OK(ioctl(vm->vcpu, KVM_GET_XSAVE, &x));
	ioctl(vm->vcpu, KVM_GET_LAPIC, &l);
	vm_sregs(vm);
	vm_events(vm);
	free(table);
}

TEST(mmio_second_part)
{
	uint64_t value = 0x1122334455667788;
	struct vm vm;

	VM_NEW_LONG(&vm, mmio_two_parts);
	memcpy(vm.mem + G_DATA, &value, 8);
	mmio(&vm, true, G_MMIO + 0xffd, 3, 0x667788);
	between_parts(&vm, 10);
	mmio(&vm, true, G_MMIO + 0x1000, 5, 0x1122334455);
	mmio(&vm, false, G_MMIO + 0xffd, 3, 0xa3a2a1);
	/* No more than the 3 bytes are taken. */
	memset(vm.run->mmio.data + 3, 0xee, 5);
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm.run->mmio.phys_addr, G_MMIO + 0x1000);
	CHECK_EQ(vm.run->mmio.len, 5);
	CHECK_EQ(vm.run->mmio.is_write, 0);
	between_parts(&vm, 17);
	memcpy(vm.run->mmio.data, "\xa4\xa5\xa6\xa7\xa8\xee\xee\xee", 8);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rcx, 0xa8a7a6a5a4a3a2a1);
}

/* An access is half to memory, half to a device. */
GUEST64(mmio_edge,
	"mov $0x400000, %ebx; mov $0x1122334455667788, %rax\n"
	"mov %rax, -4(%rbx); mov -2(%rbx), %ecx; hlt\n");

TEST(mmio_edge)
{
	struct vm vm;

	VM_NEW_LONG(&vm, mmio_edge);
	mmio(&vm, true, 0x400000, 4, 0x11223344);
	CHECK_EQ(*(uint32_t *)(vm.mem + 0x3ffffc), 0x55667788);
	mmio(&vm, false, 0x400000, 2, 0xbeef);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rcx, 0xbeef5566);
}

GUEST64(mmio_strings,
	"cld; mov $" M ", %edi; mov $" STR(G_DATA) ", %esi; mov $3, %ecx; rep movsl\n"	/* memory to device */
	"mov $" M ", %esi; mov $" STR(G_DATA) "+0x100, %edi; mov $2, %ecx; rep movsb\n"	/* device to memory */
	"mov $0x5a5a, %eax; mov $" M ", %edi; mov $2, %ecx; rep stosw\n"
	"mov $" M ", %esi; lodsq\n"
	"mov %rdi, %r8; mov %rsi, %r9\n"
	"mov $" M ", %esi; mov $" STR(G_DATA) ", %edi; cmpsl; pushfq; pop %r10\n"
	"mov $7, %eax; mov $" M ", %edi; mov $5, %ecx; repne scasb; mov %rcx, %r11\n"
	"hlt\n");

TEST(mmio_strings)
{
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, mmio_strings);
	for (int i = 0; i < 3; i++)
		((uint32_t *)(vm.mem + G_DATA))[i] = 0x100 + i;
	for (int i = 0; i < 3; i++)
		mmio(&vm, true, G_MMIO + 4 * i, 4, 0x100 + i);
	mmio(&vm, false, G_MMIO, 1, 0x61);
	mmio(&vm, false, G_MMIO + 1, 1, 0x62);
	mmio(&vm, true, G_MMIO, 2, 0x5a5a);
	mmio(&vm, true, G_MMIO + 2, 2, 0x5a5a);
	mmio(&vm, false, G_MMIO, 8, 0x0807060504030201);
	mmio(&vm, false, G_MMIO, 4, 0x100);
	mmio(&vm, false, G_MMIO, 1, 1);
	mmio(&vm, false, G_MMIO + 1, 1, 7);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK(!memcmp(vm.mem + G_DATA + 0x100, "ab", 2));
	r = vm_regs(&vm);
	CHECK_EQ(r.r8, G_MMIO + 4);
	CHECK_EQ(r.r9, G_MMIO + 8);
	CHECK_EQ(r.r10 & 0x40, 0x40);
	CHECK_EQ(r.r11, 3);
}

/* 16-bit code: segments, and 16- and 32-bit addresses. */
GUEST16(mmio_16,
	"mov $0xf000, %ax; mov %ax, %ds; mov $0x9000, %ax; mov %ax, %es\n"
	"movw $0x1234, 0x10\n"
	"mov $0x20, %bx; mov $4, %si; mov (%bx,%si), %cl\n"
	"movl $0xabcdef01, %es:(0x8)\n"
	"mov $0xf0100, %ebx; xor %ax, %ax; mov %ax, %ds\n"
	"hlt\n");

TEST(mmio_real_mode)
{
	struct vm vm;

	vm_new(&vm, 0x80000);
	VM_REAL(&vm, mmio_16);
	mmio(&vm, true, 0xf0010, 2, 0x1234);
	mmio(&vm, false, 0xf0024, 1, 0x77);
	mmio(&vm, true, 0x90008, 4, 0xabcdef01);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rcx & 0xff, 0x77);
}

/* An instruction that is not decoded, on MMIO: its bytes go to user space. */
GUEST64(mmio_unknown,
	"mov $" M ", %ebx\n"
	"aesenc (%rbx), %xmm0\n"
	"hlt\n");

TEST(internal_error)
{
	static const uint8_t want[] = { 0x66, 0x0f, 0x38, 0xdc, 0x03 };
	struct kvm_run *run;
	struct vm vm;

	VM_NEW_LONG(&vm, mmio_unknown);
	vm_expect(&vm, KVM_EXIT_INTERNAL_ERROR);
	run = vm.run;
	CHECK_EQ(run->emulation_failure.suberror, KVM_INTERNAL_ERROR_EMULATION);
	CHECK(run->emulation_failure.ndata >= 3);
	CHECK(run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
	CHECK(run->emulation_failure.insn_size >= sizeof(want));
	CHECK(!memcmp(run->emulation_failure.insn_bytes, want, sizeof(want)));
	CHECK_EQ(vm_regs(&vm).rip, G_CODE + 5);
}

/* The guest jumps where there is no memory. */
GUEST64(jump_nowhere, "mov $" M ", %eax; jmp *%rax\n");

TEST(fetch_from_nowhere)
{
	struct vm vm;

	VM_NEW_LONG(&vm, jump_nowhere);
	vm_expect(&vm, KVM_EXIT_INTERNAL_ERROR);
	CHECK_EQ(vm.run->internal.suberror, KVM_INTERNAL_ERROR_EMULATION);
}

#define D STR(G_DATA)

/* Two operands at the same place of their pages: only one is the device's. */
GUEST64(mmio_same_place,
	"mov $" D "+0x100, %esi; mov $" M "+0x100, %edi; movsl\n"
	"mov $" M "+0x200, %esi; mov $" D "+0x200, %edi; movsl\n"
	"mov $" M "+0x300, %esi; mov $" D "+0x300, %edi; cmpsl; setz %al\n"
	"mov $" D "+0x400, %esi; mov $" M "+0x400, %edi; cmpsl; setz %ah\n"
	"mov $" D "+0x508, %esp; pushq " M "+0x500\n"
	"mov $" D "+0x600, %esp; popq " M "+0x600\n"
	"mov $" D "+0x708, %esi; mov $" M "+0xffc, %edi; mov $2, %ecx; rep movsl\n"
	"mov $" M "+0x808, %esp; pushq " D "+0x800\n"
	"hlt\n");

TEST(mmio_same_place)
{
	uint32_t *data;
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, mmio_same_place);
	data = (uint32_t *)(vm.mem + G_DATA);
	for (uint32_t i = 0; i < 0x1000 / 4; i++)
		data[i] = i;
	mmio(&vm, true, G_MMIO + 0x100, 4, 0x40);
	mmio(&vm, false, G_MMIO + 0x200, 4, 0x11223344);
	mmio(&vm, false, G_MMIO + 0x300, 4, 0xc0);
	mmio(&vm, false, G_MMIO + 0x400, 4, 0xbad);
	mmio(&vm, false, G_MMIO + 0x500, 8, 0x5152535455565758);
	mmio(&vm, true, G_MMIO + 0x600, 8, 0x18100000180);
	mmio(&vm, true, G_MMIO + 0xffc, 4, 0x1c2);
	mmio(&vm, true, G_MMIO + 0x1000, 4, 0x1c3);
	mmio(&vm, true, G_MMIO + 0x800, 8, 0x20100000200);
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.rax & 0xffff, 1);
	CHECK_EQ(data[0x200 / 4], 0x11223344);
	CHECK_EQ(*(uint64_t *)&data[0x500 / 4], 0x5152535455565758);
	for (uint32_t i = 0; i < 0x1000 / 4; i++)
		if (i != 0x200 / 4 && i / 2 != 0x500 / 8)
			CHECK_EQ(data[i], i);
}
