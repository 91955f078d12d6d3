// SPDX-License-Identifier: GPL-2.0
/*
 * Every reason for which a guest exits: here ports, HLT, shutdown and refused entries, in exits_mmio.c MMIO, and in
 * exits_instructions.c what exits only to the kernel.
 */
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
	/* over a page boundary */
	"mov $" STR(G_DATA) "+0x2ff0, %edi; mov $100, %ecx; mov $0x22, %edx; rep insl\n"
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

/*
 * A refused entry leaves nothing behind: registers of all kinds are what they were, however often it is tried, and the
 * guest has them when the cause is gone. CS is of 64-bit and of 32-bit code at once, which neither vendor's entries
 * take (SDM 3C 27.3.1.2; APM 2 15.5.1).
 */
TEST(fail_entry_state)
{
	static const uint32_t msrs[] = { 0xc0000081, 0xc0000082, 0xc0000084, 0xc0000102, 0x175, 0x176, 0x277 };
	static const uint64_t values[] = { 0x23001000000000, 0xffff800000001000, 0x40700, 0x7ffff0001000,
					   0x2000, 0x3000, 0x0007010600070106 };
	struct kvm_debugregs debug = { .db = { 0x1000, 0x2000, 0x3000, 0x4000 }, .dr6 = 0xffff0ff1, .dr7 = 0x400 };
	struct kvm_sregs s, sregs;
	struct kvm_regs r, regs;
	struct kvm_debugregs d;
	struct kvm_xsave x, xsave;
	struct vm vm;

	if (!is_rvmm() && is_tcg())
		skip("TCG's refused VMRUN writes the host's state into the VMCB");
	VM_NEW_LONG(&vm, halt_twice);
	r = vm_regs(&vm);
	for (uint64_t i = 0, *gpr = (uint64_t *)&r; i < 16; i++)
		if (gpr + i != (uint64_t *)&r.rsp)
			gpr[i] = 0x0101010101010101 * (i + 1);
	vm_set_regs(&vm, &r);
	r = vm_regs(&vm);
	OK(ioctl(vm.vcpu, KVM_GET_XSAVE, &x));
	/* XMM0 to XMM15, and XSTATE_BV, which says that they are there (SDM 1 13.4). */
	memset((uint8_t *)&x + 160, 0x5a, 256);
	*((uint8_t *)&x + 512) |= 2;
	OK(ioctl(vm.vcpu, KVM_SET_XSAVE, &x));
	OK(ioctl(vm.vcpu, KVM_SET_DEBUGREGS, &debug));
	for (unsigned int i = 0; i < ARRAY_SIZE(msrs); i++)
		REQUIRE(set_msr(&vm, msrs[i], values[i]));
	s = vm_sregs(&vm);
	s.cr2 = 0x123456789;
	s.cs.db = 1;
	vm_set_sregs(&vm, &s);
	s = vm_sregs(&vm);
	for (int tries = 0; tries < 4; tries++) {
		if (tries < 3) {
			refused_entry(&vm);
		} else {
			s.cs.db = 0;
			vm_set_sregs(&vm, &s);
			vm_expect(&vm, KVM_EXIT_HLT);
			r.rip++;
		}
		regs = vm_regs(&vm);
		CHECK(!memcmp(&regs, &r, sizeof(r)));
		sregs = vm_sregs(&vm);
		CHECK_EQ(sregs.cr0, s.cr0);
		CHECK_EQ(sregs.cr2, s.cr2);
		CHECK_EQ(sregs.cr3, s.cr3);
		CHECK_EQ(sregs.cr4, s.cr4);
		CHECK_EQ(sregs.efer, s.efer);
		CHECK(!memcmp(&sregs.cs, &s.cs, sizeof(s.cs)));
		CHECK(!memcmp(&sregs.gs, &s.gs, sizeof(s.gs)));
		CHECK(!memcmp(&sregs.tr, &s.tr, sizeof(s.tr)));
		CHECK(!memcmp(&sregs.gdt, &s.gdt, sizeof(s.gdt)));
		OK(ioctl(vm.vcpu, KVM_GET_XSAVE, &xsave));
		CHECK(!memcmp((uint8_t *)&xsave + 160, (uint8_t *)&x + 160, 256));
		OK(ioctl(vm.vcpu, KVM_GET_DEBUGREGS, &d));
		CHECK(!memcmp(&d, &debug, sizeof(d)));
		for (unsigned int i = 0; i < ARRAY_SIZE(msrs); i++) {
			uint64_t value = 0;

			CHECK(get_msr(&vm, msrs[i], &value));
			CHECK_EQ(value, values[i]);
		}
	}
}

/*
 * The entry that a flush was due at is refused: the flush is due at the next one. The page below an address that the
 * guest has read is another one when it reads again.
 */
GUEST64(read_twice,
	"mov $" STR(G_DATA) ", %ebx; mov (%rbx), %rax; hlt; mov (%rbx), %rax; hlt\n");

TEST(fail_entry_flush)
{
	uint64_t *page;
	struct kvm_sregs s;
	struct vm vm;

	if (!is_rvmm() && is_tcg())
		skip("TCG's refused VMRUN writes the host's state into the VMCB");
	VM_NEW_LONG(&vm, read_twice);
	page = (uint64_t *)(vm.mem + G_DATA);
	*page = 1;
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rax, 1);
	REQUIRE(mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page);
	*page = 2;
	s = vm_sregs(&vm);
	s.cs.db = 1;
	vm_set_sregs(&vm, &s);
	refused_entry(&vm);
	s.cs.db = 0;
	vm_set_sregs(&vm, &s);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rax, 2);
}
