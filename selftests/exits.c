// SPDX-License-Identifier: GPL-2.0
/* Every reason for which a guest exits, to user space or only to the kernel. */
#define _GNU_SOURCE
#include "vm.h"


/* Ports. */

GUEST16(port_widths,
	"mov $0x11223344, %eax; mov $0x3f8, %dx\n"
	"outb %al, %dx; outw %ax, %dx; outl %eax, %dx\n"
	"outb %al, $0x80; outw %ax, $0x82; outl %eax, $0x84\n"
	"mov $-1, %eax; inb %dx, %al; mov %eax, %ebx\n"
	"mov $-1, %eax; inw %dx, %ax; mov %eax, %ecx\n"
	"mov $-1, %eax; inl %dx, %eax; mov %eax, %esi\n"
	"mov $-1, %eax; inb $0x71, %al\n"
	"hlt\n");

static void io_exit(struct vm *vm, bool in, unsigned int port, unsigned int size, uint32_t value)
{
	struct kvm_run *run = vm->run;

	vm_expect(vm, KVM_EXIT_IO);
	CHECK_EQ(run->io.direction, in ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT);
	CHECK_EQ(run->io.port, port);
	CHECK_EQ(run->io.size, size);
	CHECK_EQ(run->io.count, 1);
	CHECK(run->io.data_offset + size <= vm->run_bytes);
	if (in)
		memcpy(io_data(vm), &value, size);
	else
		CHECK(!memcmp(io_data(vm), &value, size));
}

TEST(port_io)
{
	struct kvm_regs r;
	struct vm vm;

	vm_new(&vm, MIB);
	VM_REAL(&vm, port_widths);
	io_exit(&vm, false, 0x3f8, 1, 0x11223344);
	io_exit(&vm, false, 0x3f8, 2, 0x11223344);
	io_exit(&vm, false, 0x3f8, 4, 0x11223344);
	io_exit(&vm, false, 0x80, 1, 0x11223344);
	io_exit(&vm, false, 0x82, 2, 0x11223344);
	io_exit(&vm, false, 0x84, 4, 0x11223344);
	io_exit(&vm, true, 0x3f8, 1, 0xa1a2a3a4);
	io_exit(&vm, true, 0x3f8, 2, 0xb1b2b3b4);
	io_exit(&vm, true, 0x3f8, 4, 0xc1c2c3c4);
	io_exit(&vm, true, 0x71, 1, 0xd1d2d3d4);
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.rbx, 0xffffffa4);
	CHECK_EQ(r.rcx, 0xffffb3b4);
	CHECK_EQ(r.rsi, 0xc1c2c3c4);
	CHECK_EQ(r.rax, 0xffffffd4);
	CHECK_EQ(r.rip, port_widths_end - port_widths);
}

/* 32-bit IN clears the upper half of RAX in 64-bit mode; narrower ones keep it. */
GUEST64(port_upper,
	"mov $-1, %rax; in $0x10, %eax; mov %rax, %rbx\n"
	"mov $-1, %rax; in $0x10, %al; mov %rax, %rcx\n"
	"hlt\n");

TEST(port_io_64)
{
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, port_upper);
	io_exit(&vm, true, 0x10, 4, 0x12345678);
	io_exit(&vm, true, 0x10, 1, 0x9a);
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.rbx, 0x12345678);
	CHECK_EQ(r.rcx, 0xffffffffffffff9a);
}

/* String I/O: bytes go to and come from guest memory in order, whatever the exits' counts are. */
GUEST64(port_strings,
	"cld\n"
	"mov $" STR(G_DATA) ", %esi; mov $300, %ecx; mov $0x20, %edx; rep outsb\n"
	"mov %rcx, %r8; mov %rsi, %r9\n"
	"mov $" STR(G_DATA) "+0x2ff0, %edi; mov $100, %ecx; mov $0x22, %edx; rep insl\n"	/* over a page boundary */
	"mov %rcx, %r10; mov %rdi, %r11\n"
	"std\n"
	"mov $" STR(G_DATA) "+0x5010, %edi; mov $20, %ecx; rep insw\n"
	"mov %rdi, %r12\n"
	"mov $" STR(G_DATA) "+8, %esi; mov $0x20, %edx; outsw\n"
	"cld; xor %ecx, %ecx; rep outsb\n"
	"hlt\n");

static void string_io(struct vm *vm, bool in, unsigned int port, unsigned int size, unsigned int total, uint8_t *bytes)
{
	struct kvm_run *run = vm->run;

	for (unsigned int done = 0; done < total; ) {
		vm_expect(vm, KVM_EXIT_IO);
		REQUIRE_EQ(run->io.direction, in ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT);
		REQUIRE_EQ(run->io.port, port);
		REQUIRE_EQ(run->io.size, size);
		REQUIRE(run->io.count >= 1 && run->io.count <= total - done);
		REQUIRE(run->io.data_offset + run->io.count * size <= vm->run_bytes);
		if (in)
			memcpy(io_data(vm), bytes + done * size, run->io.count * size);
		else
			memcpy(bytes + done * size, io_data(vm), run->io.count * size);
		done += run->io.count;
	}
}

TEST(port_strings)
{
	uint8_t bytes[400];
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, port_strings);
	for (int i = 0; i < 300; i++)
		vm.mem[G_DATA + i] = i * 7;
	string_io(&vm, false, 0x20, 1, 300, bytes);
	CHECK(!memcmp(bytes, vm.mem + G_DATA, 300));
	for (int i = 0; i < 400; i++)
		bytes[i] = i * 13;
	string_io(&vm, true, 0x22, 4, 100, bytes);
	uint16_t words[20];
	for (int i = 0; i < 20; i++)
		words[i] = 0x1000 + i;
	string_io(&vm, true, 0x22, 2, 20, (uint8_t *)words);
	CHECK(!memcmp(bytes, vm.mem + G_DATA + 0x2ff0, 400));
	string_io(&vm, false, 0x20, 2, 1, bytes);
	for (int i = 0; i < 20; i++)
		CHECK_EQ(*(uint16_t *)(vm.mem + G_DATA + 0x5010 - 2 * i), 0x1000 + i);
	CHECK(!memcmp(bytes, vm.mem + G_DATA + 8, 2));
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.r8, 0);
	CHECK_EQ(r.r9, G_DATA + 300);
	CHECK_EQ(r.r10, 0);
	CHECK_EQ(r.r11, G_DATA + 0x2ff0 + 400);
	CHECK_EQ(r.r12, G_DATA + 0x5010 - 40);
}

/* A page fault in the middle of REP INS: what came before stays, and after the handler it goes on. */
GUEST64(port_string_fault,
	"mov $0x40000000-8, %rdi; mov $16, %ecx; mov $0x22, %edx; cld; rep insb\n"
	"hlt\n");

TEST(port_string_fault)
{
	uint8_t bytes[16];
	struct vm vm;

	vm_new(&vm, 4 * MIB);
	VM_LONG(&vm, port_string_fault);
	/* The last page below 1 GiB is memory; above is a second GiB's directory, not present. */
	uint64_t *pd = (uint64_t *)(vm.mem + G_PD0), *pt = (uint64_t *)(vm.mem + 0x30000);

	memset(pt, 0, 4096);
	for (int i = 0; i < 512; i++)
		pt[i] = 0;
	pt[511] = G_DATA | 0x67;
	pd[511] = 0x30000 | 0x67;
	for (int i = 0; i < 16; i++)
		bytes[i] = 0x80 + i;
	string_io(&vm, true, 0x22, 1, 8, bytes);
	/* The handler would return to the same instruction: end the run there. */
	vm_log(&vm)->resume = G_CODE + (port_string_fault_end - port_string_fault) - 1;
	if (!is_rvmm()) {
		/* KVM asks for data ahead of the fault, and drops it. */
		uint8_t ahead[16] = { 0 };

		string_io(&vm, true, 0x22, 1, 8, ahead);
	}
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 14);
	CHECK_EQ(vm_log(&vm)->event[0].cr2, 0x40000000);
	CHECK_EQ(vm_log(&vm)->event[0].error, 2);
	CHECK_EQ(vm_regs(&vm).rcx, 8);
	CHECK_EQ(vm_regs(&vm).rdi, 0x40000000);
	CHECK(!memcmp(vm.mem + G_DATA + 0xff8, bytes, 8));
}

/* MMIO. */

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

/* Half memory, half not. */
GUEST64(mmio_edge,
	"mov $0x400000, %ebx; mov $0x1122334455667788, %rax; mov %rax, -4(%rbx); mov -2(%rbx), %ecx; hlt\n");

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

/* Code in the middle of nowhere. */
GUEST64(jump_nowhere, "mov $" M ", %eax; jmp *%rax\n");

TEST(fetch_from_nowhere)
{
	struct vm vm;

	VM_NEW_LONG(&vm, jump_nowhere);
	vm_expect(&vm, KVM_EXIT_INTERNAL_ERROR);
	CHECK_EQ(vm.run->internal.suberror, KVM_INTERNAL_ERROR_EMULATION);
}

GUEST64(halt_twice, "hlt; mov $7, %eax; hlt\n");

TEST(hlt)
{
	struct vm vm;

	VM_NEW_LONG(&vm, halt_twice);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rip, G_CODE + 1);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rax, 7);
	CHECK_EQ(vm.run->if_flag, 0);
	CHECK_EQ(vm.run->apic_base, 0xfee00900);
}

GUEST64(shutdown, "lidt 1f(%rip); ud2; 1: .quad 0, 0\n");

TEST(triple_fault)
{
	struct vm vm;

	VM_NEW_LONG(&vm, shutdown);
	vm_expect(&vm, KVM_EXIT_SHUTDOWN);
}

/* A state that no CPU enters. */
static void refused_entry(struct vm *vm)
{
	struct rvmm_entry_failure failure;

	vm_expect(vm, KVM_EXIT_FAIL_ENTRY);
	CHECK(vm->run->fail_entry.hardware_entry_failure_reason != 0);
	CHECK(vm->run->fail_entry.cpu < 64);
	if (!is_rvmm())
		return;
	OK(ioctl(vm->vcpu, RVMM_GET_ENTRY_FAILURE, &failure));
	CHECK_EQ(failure.reason, vm->run->fail_entry.hardware_entry_failure_reason);
	CHECK(memchr(failure.rule, 0, sizeof(failure.rule)));
	CHECK(strlen(failure.rule) > 20);
	CHECK(strstr(failure.rule, is_amd() ? "APM" : "SDM"));
	note("rule: %.200s", failure.rule);
}

/* Intel: TR must be usable (SDM 3C 27.3.1.2). */
TEST(fail_entry_segment)
{
	struct rvmm_entry_failure failure;
	struct kvm_sregs s, good;
	struct vm vm;

	if (is_amd())
		skip("SVM does not look at TR");
	VM_NEW_LONG(&vm, halt_twice);
	if (is_rvmm())
		CHECK_ERRNO(ioctl(vm.vcpu, RVMM_GET_ENTRY_FAILURE, &failure), ENODATA);
	good = s = vm_sregs(&vm);
	s.tr.unusable = 1;
	vm_set_sregs(&vm, &s);
	refused_entry(&vm);
	/* Put right, it runs. */
	vm_set_sregs(&vm, &good);
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* Refused as often as it is tried, without losing the state; then mended. */
GUEST16(halt16, "hlt\n");

TEST(fail_entry_again)
{
	struct kvm_sregs sregs, again;
	struct vm vm;

	vm_new(&vm, MIB);
	VM_REAL(&vm, halt16);
	OK(ioctl(vm.vcpu, KVM_GET_SREGS, &sregs));
	sregs.cr3 = 1ull << 60;
	OK(ioctl(vm.vcpu, KVM_SET_SREGS, &sregs));
	if (!is_rvmm())
		skip("KVM's answer depends on the vendor");
	for (int i = 0; i < 3; i++) {
		refused_entry(&vm);
		OK(ioctl(vm.vcpu, KVM_GET_SREGS, &again));
		CHECK(!memcmp(&again, &sregs, sizeof(sregs)));
	}
	sregs.cr3 = 0;
	OK(ioctl(vm.vcpu, KVM_SET_SREGS, &sregs));
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* AMD: an exception to inject whose vector is none (APM 2 15.20). */
TEST(fail_entry_event)
{
	struct rvmm_entry_failure failure;
	struct kvm_vcpu_events e;
	struct vm vm;

	if (!is_amd())
		skip("any vector is an exception on VMX");
	VM_NEW_LONG(&vm, halt_twice);
	if (is_rvmm())
		CHECK_ERRNO(ioctl(vm.vcpu, RVMM_GET_ENTRY_FAILURE, &failure), ENODATA);
	e = vm_events(&vm);
	e.exception.injected = 1;
	e.exception.nr = 31;
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	refused_entry(&vm);
}

/* Instructions that exit only to the kernel. The handler's log says what faulted. */


/* Runs `code` (one instruction at the start) in a 64-bit guest with registers; the vector of its exception, or 256 for none. */
static unsigned int one(struct vm *vm, const char *bytes, size_t n, struct kvm_regs *r)
{
	struct guest_log *log = vm_log(vm);
	unsigned int reason;

	memcpy(vm->mem + G_CODE, bytes, n);
	vm->mem[G_CODE + n] = 0xf4;
	log->count = 0;
	log->resume = G_CODE + n;
	r->rip = G_CODE;
	r->rsp = G_STACK;
	r->rflags = 2;
	vm_set_regs(vm, r);
	reason = vm_run(vm);
	if (reason != KVM_EXIT_HLT)
		return 1000 + reason;
	*r = vm_regs(vm);
	CHECK(log->count <= 1);
	if (log->count == 0)
		return 256;
	CHECK_EQ(log->event[0].rip, G_CODE);
	return log->event[0].vector;
}

#define ONE(vm, bytes, r) one(vm, bytes, sizeof(bytes) - 1, r)

#define FAULTS(bytes, expected) do {							\
	struct kvm_regs r_ = { 0 };							\
	CHECK_EQ(ONE(&vm, bytes, &r_), expected);					\
} while (0)

#define RDMSR "\x0f\x32"
#define WRMSR "\x0f\x30"

TEST(msr_instructions)
{
	struct kvm_regs r;
	struct vm vm;
	uint64_t v;

	VM_NEW_LONG(&vm, halt_twice);
	r = (struct kvm_regs) { .rcx = 0x12345678 };
	CHECK_EQ(ONE(&vm, RDMSR, &r), 13);
	CHECK_EQ(vm_log(&vm)->event[0].error, 0);
	r = (struct kvm_regs) { .rcx = 0x12345678 };
	CHECK_EQ(ONE(&vm, WRMSR, &r), 13);
	r = (struct kvm_regs) { .rcx = 0xffffffff };
	CHECK_EQ(ONE(&vm, RDMSR, &r), 13);
	/* The index is ECX; RAX and RDX lose their upper halves. */
	CHECK(set_msr(&vm, 0xc0000082, 0xffffffff81234567));
	r = (struct kvm_regs) { .rcx = 0xabcdef01c0000082, .rax = ~0ull, .rdx = ~0ull };
	CHECK_EQ(ONE(&vm, RDMSR, &r), 256);
	CHECK_EQ(r.rax, 0x81234567);
	CHECK_EQ(r.rdx, 0xffffffff);
	static const struct {
		uint32_t index;
		uint64_t value;
		unsigned int vector;
	} table[] = {
		{ 0xc0000081, 0x0013000800000000, 256 }, { 0xc0000082, 0xffff800000001000, 256 },
		{ 0xc0000084, 0x47700, 256 }, { 0xc0000100, 0x7f0000001000, 256 }, { 0xc0000101, 0xffff888000000000, 256 },
		{ 0xc0000102, 0x7f0000002000, 256 }, { 0x174, 0x10, 256 }, { 0x175, 0x12345000, 256 }, { 0x176, 0x12346000, 256 },
		{ 0x277, 0x0007040600010406, 256 }, { 0x277, 0x0007040600020406, 13 },
		{ 0xc0000080, 0xd01, 256 }, { 0xc0000080, 0x400000d01, 13 }, { 0xc0000080, 0x401, 13 /* LME with paging on */ },
		{ 0x1b, 0xfee00900, 256 }, { 0x2ff, 0xc06, 256 }, { 0x10, 0x100000000, 256 },
		/* The emulated AMD CPU accepts any address. */
		{ 0xc0000082, 0x0080000000000000, 13 }, { 0xc0000102, 0x8000000000000000, 13 },
	};
	for (size_t i = 0; i < ARRAY_SIZE(table) - 2 * is_tcg(); i++) {
		unsigned int have;

		r = (struct kvm_regs) { .rcx = table[i].index, .rax = table[i].value & 0xffffffff, .rdx = table[i].value >> 32 };
		have = ONE(&vm, WRMSR, &r);
		if (have != table[i].vector)
			FAIL("WRMSR %#x, %#llx: vector %u, %u expected", table[i].index, (unsigned long long)table[i].value, have,
			     table[i].vector);
		if (have != 256 || table[i].index == 0x10)
			continue;
		CHECK(get_msr(&vm, table[i].index, &v));
		if (table[i].index == 0xc0000080)
			v &= ~0ull;
		if (v != table[i].value)
			FAIL("MSR %#x reads %#llx after WRMSR of %#llx", table[i].index, (unsigned long long)v,
			     (unsigned long long)table[i].value);
		r = (struct kvm_regs) { .rcx = table[i].index };
		CHECK_EQ(ONE(&vm, RDMSR, &r), 256);
		CHECK_EQ(r.rax | r.rdx << 32, table[i].value);
	}
}

TEST(instructions)
{
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, halt_twice);
	/* Hypercalls: none is there. */
	r = (struct kvm_regs) { .rax = 9999 };
	CHECK_EQ(is_amd() ? ONE(&vm, "\x0f\x01\xd9", &r) : ONE(&vm, "\x0f\x01\xc1", &r), 256);
	CHECK_EQ((int64_t)r.rax, -1000);
	/* Caches. */
	FAULTS("\x0f\x08", 256);	/* INVD */
	FAULTS("\x0f\x09", 256);	/* WBINVD */
	FAULTS("\xf3\x90", 256);	/* PAUSE */
	FAULTS("\x0f\x01\x38", 256);	/* INVLPG (%rax) */
	/* No performance counters. */
	r = (struct kvm_regs) { .rcx = 0x3fffff };
	CHECK_EQ(ONE(&vm, "\x0f\x33", &r), 13);
	/* RDTSC runs. */
	r = (struct kvm_regs) { 0 };
	CHECK_EQ(ONE(&vm, "\x0f\x31", &r), 256);
	CHECK_EQ((r.rax | r.rdx) >> 32, 0);
	FAULTS("\x0f\x0b", 6);		/* UD2 */
	/* VMX and SVM instructions do not exist. */
	FAULTS("\x0f\x01\xd8", 6);	/* VMRUN */
	FAULTS("\x0f\x01\xda", 6);	/* VMLOAD */
	FAULTS("\x0f\x01\xdb", 6);	/* VMSAVE */
	FAULTS("\x0f\x01\xdc", 6);	/* STGI */
	FAULTS("\x0f\x01\xdd", 6);	/* CLGI */
	FAULTS("\x0f\x01\xc2", 6);	/* VMLAUNCH */
	FAULTS("\x0f\x01\xc3", 6);	/* VMRESUME */
	FAULTS("\x0f\x01\xc4", 6);	/* VMXOFF */
	r = (struct kvm_regs) { .rax = G_DATA };
	CHECK_EQ(ONE(&vm, "\xf3\x0f\xc7\x30", &r), 6);	/* VMXON (%rax) */
	r = (struct kvm_regs) { .rax = G_DATA };
	CHECK_EQ(ONE(&vm, "\x0f\xc7\x30", &r), 6);		/* VMPTRLD (%rax) */
	r = (struct kvm_regs) { .rax = 0 };
	CHECK_EQ(ONE(&vm, "\x0f\x78\xc3", &r), 6);		/* VMREAD */
	/* Not in CPUID, but let pass as NOPs until user space says otherwise (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS). */
	r = (struct kvm_regs) { .rax = G_DATA };
	CHECK_EQ(ONE(&vm, "\x0f\x01\xc8", &r), 0x100);	/* MONITOR */
	r = (struct kvm_regs) { .rax = 0 };
	CHECK_EQ(ONE(&vm, "\x0f\x01\xc9", &r), 0x100);	/* MWAIT */
}

TEST(xsetbv)
{
	struct kvm_cpuid_entry2 *e;
	struct kvm_sregs s;
	struct kvm_xcrs x;
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, halt_twice);
	e = cpuid_entry(supported_cpuid(vm.kvm), 0xd, 0);
	if (!e)
		skip("no XSAVE");
	if (!is_tcg())	/* XSETBV without OSXSAVE: no #UD there */
		FAULTS("\x0f\x01\xd1", 6);
	s = vm_sregs(&vm);
	s.cr4 |= 1 << 18;
	vm_set_sregs(&vm, &s);
	static const struct {
		uint64_t value;
		uint32_t index;
		unsigned int vector;
	} table[] = {
		{ 1, 0, 256 }, { 3, 0, 256 }, { 0, 0, 13 }, { 2, 0, 13 }, { 5, 0, 13 }, { 1ull << 63 | 1, 0, 13 }, { 3, 1, 13 },
		{ 1ull << 40 | 3, 0, 13 }, { 0x23, 0, 13 }, { 0xb, 0, 13 }, { 3, 0, 256 },
	};
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		r = (struct kvm_regs) { .rax = table[i].value & 0xffffffff, .rdx = table[i].value >> 32, .rcx = table[i].index };
		if (ONE(&vm, "\x0f\x01\xd1", &r) != table[i].vector)
			FAIL("XSETBV %u, %#llx", table[i].index, (unsigned long long)table[i].value);
	}
	OK(ioctl(vm.vcpu, KVM_GET_XCRS, &x));
	CHECK_EQ(x.xcrs[0].value, 3);
	r = (struct kvm_regs) { 0 };
	CHECK_EQ(ONE(&vm, "\x0f\x01\xd0", &r), 256);	/* XGETBV */
	CHECK_EQ(r.rax, 3);
}

TEST(speculation_control)
{
	static const uint64_t values[] = { 1, 0, 1 };
	struct kvm_cpuid_entry2 *e;
	struct kvm_regs r;
	struct vm vm;
	uint64_t v;

	VM_NEW_LONG(&vm, halt_twice);
	e = cpuid_entry(supported_cpuid(vm.kvm), 7, 0);
	if (!e || !(e->edx & 1 << 26))
		skip("no IA32_SPEC_CTRL");
	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		r = (struct kvm_regs) { .rax = values[i], .rcx = 0x48 };
		CHECK_EQ(ONE(&vm, "\x0f\x30", &r), 256);	/* WRMSR */
		r = (struct kvm_regs) { .rax = 7, .rcx = 0x48 };
		CHECK_EQ(ONE(&vm, "\x0f\x32", &r), 256);	/* RDMSR */
		CHECK_EQ(r.rax, values[i]);
		CHECK(get_msr(&vm, 0x48, &v) && v == values[i]);
	}
	r = (struct kvm_regs) { .rax = 1, .rcx = 0x49 };
	CHECK_EQ(ONE(&vm, "\x0f\x30", &r), 256);
	r = (struct kvm_regs) { .rcx = 0x49 };
	CHECK_EQ(ONE(&vm, "\x0f\x32", &r), 13);	/* IA32_PRED_CMD cannot be read. */
}

TEST(control_registers)
{
	struct kvm_regs r;
	struct kvm_sregs s;
	struct vm vm;

	VM_NEW_LONG(&vm, halt_twice);
	r = (struct kvm_regs) { 0 };
	CHECK_EQ(ONE(&vm, "\x0f\x20\xc0", &r), 256);		/* mov %cr0, %rax */
	CHECK_EQ(r.rax, 0x80010033);
	CHECK_EQ(ONE(&vm, "\x0f\x20\xe0", &r), 256);		/* mov %cr4, %rax */
	CHECK_EQ(r.rax & ~(is_rvmm() && !is_tcg() ? 0 : 0x40ull), 0x220);	/* KVM on SVM lets the host's MCE shine through; TCG reads CR4 without an exit */
	CHECK_EQ(ONE(&vm, "\x0f\x20\xd8", &r), 256);		/* mov %cr3, %rax */
	CHECK_EQ(r.rax, G_PML4);
	/* CR0: bits, and combinations that fault. */
	r.rax = 0x8001003b;					/* TS */
	CHECK_EQ(ONE(&vm, "\x0f\x22\xc0", &r), 256);
	CHECK_EQ(vm_sregs(&vm).cr0, 0x8001003b);
	FAULTS("\x0f\x06", 256);				/* clts */
	CHECK_EQ(vm_sregs(&vm).cr0, 0x80010033);
	/* The emulated AMD CPU does not check what is not intercepted, and fails the next entry. */
	bool lax = is_tcg();

	if (!lax) {
		r.rax = 0xa0010033;				/* NW without CD */
		CHECK_EQ(ONE(&vm, "\x0f\x22\xc0", &r), 13);
		r.rax = 0x80010032;				/* PG without PE */
		CHECK_EQ(ONE(&vm, "\x0f\x22\xc0", &r), 13);
		r.rax = 0x180010033;
		CHECK_EQ(ONE(&vm, "\x0f\x22\xc0", &r), 13);
	}
	r.rax = 0xe0010033;					/* CD and NW */
	CHECK_EQ(ONE(&vm, "\x0f\x22\xc0", &r), 256);
	CHECK_EQ(vm_sregs(&vm).cr0, 0xe0010033);
	r.rax = 0x80010033;
	CHECK_EQ(ONE(&vm, "\x0f\x22\xc0", &r), 256);
	/* LMSW, SMSW */
	r.rax = 0xb;
	CHECK_EQ(ONE(&vm, "\x0f\x01\xf0", &r), 256);
	CHECK_EQ(vm_sregs(&vm).cr0, 0x8001003b);
	CHECK_EQ(ONE(&vm, "\x0f\x01\xe1", &r), 256);		/* smsw %ecx */
	CHECK_EQ(r.rcx & 0xffff, 0x3b);
	FAULTS("\x0f\x06", 256);
	/* CR4 */
	r.rax = 0x2a0;						/* PGE */
	CHECK_EQ(ONE(&vm, "\x0f\x22\xe0", &r), 256);
	CHECK_EQ(vm_sregs(&vm).cr4, 0x2a0);
	r.rax = 0x200;						/* PAE off in long mode */
	CHECK_EQ(ONE(&vm, "\x0f\x22\xe0", &r), 13);
	r.rax = 0x80000220;
	CHECK_EQ(ONE(&vm, "\x0f\x22\xe0", &r), 13);
	if (!(cpuid_entry(supported_cpuid(vm.kvm), 1, 0)->ecx & 1 << 5)) {
		r.rax = 0x2220;					/* VMXE */
		CHECK_EQ(ONE(&vm, "\x0f\x22\xe0", &r), 13);
	}
	/* CR3 */
	if (!lax) {
		r.rax = 1ull << 62;
		CHECK_EQ(ONE(&vm, "\x0f\x22\xd8", &r), 13);
	}
	r.rax = G_PML4 | 0x18;
	CHECK_EQ(ONE(&vm, "\x0f\x22\xd8", &r), 256);
	CHECK_EQ(vm_sregs(&vm).cr3, G_PML4 | 0x18);
	/* No such register. */
	FAULTS("\x0f\x20\xc8", 6);				/* mov %cr1, %rax */
	FAULTS("\x0f\x20\xf8", 6);				/* mov %cr7, %rax */
	/* CR2 */
	r.rax = 0x123456789abc;
	CHECK_EQ(ONE(&vm, "\x0f\x22\xd0", &r), 256);
	s = vm_sregs(&vm);
	CHECK_EQ(s.cr2, 0x123456789abc);
}

/* CR8 without a local APIC in the kernel: user space hears of a lower priority (KVM_EXIT_SET_TPR). */
TEST(cr8)
{
	struct kvm_regs r = { .rax = 9 };
	struct vm vm;

	VM_NEW_LONG(&vm, halt_twice);
	CHECK_EQ(ONE(&vm, "\x44\x0f\x22\xc0", &r), 256);
	CHECK_EQ(vm.run->cr8, 9);
	r.rax = 3;
	CHECK_EQ(ONE(&vm, "\x44\x0f\x22\xc0", &r), 1000 + KVM_EXIT_SET_TPR);
	CHECK_EQ(vm.run->cr8, 3);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(ONE(&vm, "\x44\x0f\x20\xc0", &r), 256);	/* mov %cr8, %rax */
	CHECK_EQ(r.rax, 3);
	r.rax = 16;
	CHECK_EQ(ONE(&vm, "\x44\x0f\x22\xc0", &r), 13);
	/* User space's value counts. */
	vm.run->cr8 = 7;
	CHECK_EQ(ONE(&vm, "\x44\x0f\x20\xc0", &r), 256);
	CHECK_EQ(r.rax, 7);
}

TEST(debug_registers)
{
	struct kvm_debugregs d;
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, halt_twice);
	r = (struct kvm_regs) { .rax = 0xffff800012345000 };
	CHECK_EQ(ONE(&vm, "\x0f\x23\xc0", &r), 256);		/* mov %rax, %dr0 */
	r.rax = 0x2000;
	CHECK_EQ(ONE(&vm, "\x0f\x23\xd8", &r), 256);		/* mov %rax, %dr3 */
	r.rax = 0x2;
	CHECK_EQ(ONE(&vm, "\x0f\x23\xf8", &r), 256);		/* mov %rax, %dr7 */
	r.rax = 0x1;
	CHECK_EQ(ONE(&vm, "\x0f\x23\xf0", &r), 256);		/* mov %rax, %dr6 */
	OK(ioctl(vm.vcpu, KVM_GET_DEBUGREGS, &d));
	CHECK_EQ(d.db[0], 0xffff800012345000);
	CHECK_EQ(d.db[3], 0x2000);
	CHECK_EQ(d.dr7, 0x402);
	CHECK_EQ(d.dr6, 0xffff0ff1);
	CHECK_EQ(ONE(&vm, "\x0f\x21\xc3", &r), 256);		/* mov %dr0, %rbx */
	CHECK_EQ(r.rbx, 0xffff800012345000);
	CHECK_EQ(ONE(&vm, "\x0f\x21\xfb", &r), 256);		/* mov %dr7, %rbx */
	CHECK_EQ(r.rbx, 0x402);
	CHECK_EQ(ONE(&vm, "\x0f\x21\xeb", &r), 256);		/* mov %dr5, %rbx is DR7 */
	CHECK_EQ(r.rbx, 0x402);
	CHECK_EQ(ONE(&vm, "\x0f\x21\xf3", &r), 256);		/* mov %dr6, %rbx */
	CHECK_EQ(r.rbx, 0xffff0ff1);
	r.rax = 1ull << 32;
	CHECK_EQ(ONE(&vm, "\x0f\x23\xf8", &r), 13);
	/* With CR4.DE, DR4 and DR5 are gone. */
	r.rax = 0x228;
	CHECK_EQ(ONE(&vm, "\x0f\x22\xe0", &r), 256);
	CHECK_EQ(ONE(&vm, "\x0f\x21\xeb", &r), 6);
	/* General detect. */
	r.rax = 0x2400;
	CHECK_EQ(ONE(&vm, "\x0f\x23\xf8", &r), 256);
	r = (struct kvm_regs) { 0 };
	CHECK_EQ(ONE(&vm, "\x0f\x21\xc3", &r), 1);
	OK(ioctl(vm.vcpu, KVM_GET_DEBUGREGS, &d));
	CHECK(d.dr6 & 1 << 13);
	CHECK_EQ(d.dr7 & 1 << 13, 0);
}

/* Ring 3 may do none of it. */
GUEST64(user_mode,
	"mov $" STR(SEL_TSS) ", %eax; ltr %ax\n"
	"push $" STR(SEL_USER_DATA) "; push $" STR(G_STACK) "-0x2000; push $2; push $" STR(SEL_USER_CODE64) "\n"
	"push $" STR(G_CODE) "+0x800; iretq\n");

TEST(user_mode)
{
	static const char *const forbidden[] = {
		"\xf4", "\x0f\x32", "\x0f\x30", "\x0f\x20\xd8", "\x0f\x22\xd8", "\x0f\x21\xf8", "\x0f\x06", "\xe4\x10", "\xfa",
		"\x0f\x01\xd1",
		/* The emulated AMD CPU lets these two pass. */
		"\x0f\x08", "\x0f\x09",
	};
	struct guest_log *log;
	struct kvm_sregs s;
	struct vm vm;
	uint64_t *gdt;

	for (size_t i = 0; i < ARRAY_SIZE(forbidden) - 2 * is_tcg(); i++) {
		size_t n = strlen(forbidden[i]);

		VM_NEW_LONG(&vm, user_mode);
		log = vm_log(&vm);
		gdt = (uint64_t *)(vm.mem + G_GDT);
		gdt[SEL_TSS >> 3] &= ~(2ull << 40);	/* not busy */
		if (forbidden[i][1] == 1) {
			s = vm_sregs(&vm);
			s.cr4 |= 1 << 18;
			vm_set_sregs(&vm, &s);
		}
		memcpy(vm.mem + G_CODE + 0x800, forbidden[i], n);
		/* The handler's return goes to an HLT, whose fault ends it: resume is spent, so it would repeat for ever. */
		memcpy(vm.mem + G_CODE + 0x800 + n, "\x0f\x05", 2);	/* SYSCALL, to kernel's HLT */
		CHECK(set_msr(&vm, 0xc0000081, (uint64_t)SEL_CODE64 << 32 | (uint64_t)0x33 << 48));
		CHECK(set_msr(&vm, 0xc0000082, G_CODE + 0x900));
		vm.mem[G_CODE + 0x900] = 0xf4;
		log->resume = G_CODE + 0x800 + n;
		vm_expect(&vm, KVM_EXIT_HLT);
		CHECK_EQ(log->count, 1);
		if (log->event[0].vector != 13)
			FAIL("instruction %zu: vector %llu", i, (unsigned long long)log->event[0].vector);
		CHECK_EQ(log->event[0].cs, SEL_USER_CODE64);
		vm_free(&vm);
	}
}
