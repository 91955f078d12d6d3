// SPDX-License-Identifier: GPL-2.0
/* Instructions that exit only to the kernel; the log of the guest's handler says what faulted. */
#define _GNU_SOURCE
#include "vm.h"

GUEST64(halt, "hlt\n");

/* Runs one instruction in a 64-bit guest with these registers; the vector of its exception, or 256 for none. */
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

	VM_NEW_LONG(&vm, halt);
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
		{ 0xc0000084, 0x47700, 256 }, { 0xc0000100, 0x7f0000001000, 256 },
		{ 0xc0000101, 0xffff888000000000, 256 }, { 0xc0000102, 0x7f0000002000, 256 }, { 0x174, 0x10, 256 },
		{ 0x175, 0x12345000, 256 }, { 0x176, 0x12346000, 256 }, { 0x277, 0x0007040600010406, 256 },
		{ 0x277, 0x0007040600020406, 13 }, { 0xc0000080, 0xd01, 256 }, { 0xc0000080, 0x400000d01, 13 },
		{ 0xc0000080, 0x401, 13 /* LME with paging on */ }, { 0x1b, 0xfee00900, 256 },
		{ 0x2ff, 0xc06, 256 }, { 0x10, 0x100000000, 256 },
		/* The emulated AMD CPU accepts any address. */
		{ 0xc0000082, 0x0080000000000000, 13 }, { 0xc0000102, 0x8000000000000000, 13 },
	};
	for (size_t i = 0; i < ARRAY_SIZE(table) - 2 * is_tcg(); i++) {
		unsigned int have;

		r = (struct kvm_regs) { .rcx = table[i].index, .rax = table[i].value & 0xffffffff,
					.rdx = table[i].value >> 32 };
		have = ONE(&vm, WRMSR, &r);
		if (have != table[i].vector)
			FAIL("WRMSR %#x, %#llx: vector %u, %u expected", table[i].index,
			     (unsigned long long)table[i].value, have,
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

	VM_NEW_LONG(&vm, halt);
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

	VM_NEW_LONG(&vm, halt);
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
		{ 1, 0, 256 }, { 3, 0, 256 }, { 0, 0, 13 }, { 2, 0, 13 }, { 5, 0, 13 }, { 1ull << 63 | 1, 0, 13 },
		{ 3, 1, 13 }, { 1ull << 40 | 3, 0, 13 }, { 0x23, 0, 13 }, { 0xb, 0, 13 }, { 3, 0, 256 },
	};
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		r = (struct kvm_regs) { .rax = table[i].value & 0xffffffff, .rdx = table[i].value >> 32,
					.rcx = table[i].index };
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
	struct kvm_cpuid_entry2 *intel, *amd;
	struct kvm_regs r;
	struct vm vm;
	uint64_t v;

	VM_NEW_LONG(&vm, halt);
	intel = cpuid_entry(supported_cpuid(vm.kvm), 7, 0);
	amd = cpuid_entry(supported_cpuid(vm.kvm), 0x80000008, 0);
	/* IBRS and IBPB: one bit of Intel's, two of AMD's. */
	if (!(intel && intel->edx & 1 << 26) && !(amd && (amd->ebx >> 12 & 5) == 5))
		skip("no IA32_SPEC_CTRL");
	if (!is_rvmm() && is_tcg())
		skip("KVM passes the MSRs through, and TCG has none");
	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		r = (struct kvm_regs) { .rax = values[i], .rcx = 0x48 };
		CHECK_EQ(ONE(&vm, "\x0f\x30", &r), 256);	/* WRMSR */
		r = (struct kvm_regs) { .rax = 7, .rcx = 0x48 };
		CHECK_EQ(ONE(&vm, "\x0f\x32", &r), 256);	/* RDMSR */
		CHECK_EQ(r.rax, values[i]);
		CHECK(get_msr(&vm, 0x48, &v) && v == values[i]);
	}
	r = (struct kvm_regs) { .rdx = 1, .rcx = 0x48 };
	CHECK_EQ(ONE(&vm, "\x0f\x30", &r), 13);
	r = (struct kvm_regs) { .rax = 1, .rcx = 0x49 };
	CHECK_EQ(ONE(&vm, "\x0f\x30", &r), 256);
	r.rax = 2;
	CHECK_EQ(ONE(&vm, "\x0f\x30", &r), 13);
	r = (struct kvm_regs) { .rcx = 0x49 };
	CHECK_EQ(ONE(&vm, "\x0f\x32", &r), 13);	/* IA32_PRED_CMD cannot be read. */
}

TEST(control_registers)
{
	struct kvm_regs r;
	struct kvm_sregs s;
	struct vm vm;

	VM_NEW_LONG(&vm, halt);
	r = (struct kvm_regs) { 0 };
	CHECK_EQ(ONE(&vm, "\x0f\x20\xc0", &r), 256);		/* mov %cr0, %rax */
	CHECK_EQ(r.rax, 0x80010033);
	CHECK_EQ(ONE(&vm, "\x0f\x20\xe0", &r), 256);		/* mov %cr4, %rax */
	/* KVM on SVM lets the host's MCE shine through; TCG reads CR4 without an exit */
	CHECK_EQ(r.rax & ~(is_rvmm() && !is_tcg() ? 0 : 0x40ull), 0x220);
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
	*(uint16_t *)(vm.mem + G_DATA) = 0xd;
	r.rax = G_DATA;
	CHECK_EQ(ONE(&vm, "\x0f\x01\x30", &r), 256);		/* lmsw (%rax) */
	CHECK_EQ(vm_sregs(&vm).cr0, 0x8001003d);
	r.rax = 3;
	CHECK_EQ(ONE(&vm, "\x0f\x01\xf0", &r), 256);
	FAULTS("\x0f\x06", 256);
	CHECK_EQ(vm_sregs(&vm).cr0, 0x80010033);
	/* What no processor decodes. */
	FAULTS("\xf0\x90", 6);					/* lock nop */
	FAULTS("\xf0\x89\xc0", 6);				/* lock mov %eax, %eax */
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
	/* CR1 and CR7 do not exist. */
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

	VM_NEW_LONG(&vm, halt);
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

	VM_NEW_LONG(&vm, halt);
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
	/* General detect makes the next access of a debug register fault. */
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
	"push $" STR(SEL_USER_DATA) "\n"
	"push $" STR(G_STACK) "-0x2000; push $2\n"
	"push $" STR(SEL_USER_CODE64) "\n"
	"push $" STR(G_CODE) "+0x800; iretq\n");

TEST(user_mode)
{
	static const char *const forbidden[] = {
		"\xf4", "\x0f\x32", "\x0f\x30", "\x0f\x20\xd8", "\x0f\x22\xd8", "\x0f\x21\xf8", "\x0f\x06",
		"\xe4\x10", "\xfa",
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
		/*
		 * The handler's return goes to an HLT, whose fault ends it: resume is spent, so it would repeat
		 * for ever.
		 */
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

/* SYSENTER's addresses have 64 bits where the guest believes in a processor of Intel's, whichever the host's is. */
GUEST64(sysenter_addresses,
	"mov $0x175, %ecx; mov $0x11223344, %eax; mov $0xffff8765, %edx; wrmsr\n"
	"mov $0x176, %ecx; mov $0x55667788, %eax; mov $0xffff8432, %edx; wrmsr\n"
	"rdmsr; mov %eax, %esi; mov %edx, %edi; mov $0x175, %ecx; rdmsr; hlt\n");

TEST(sysenter_addresses)
{
	struct kvm_regs r;
	uint64_t value;
	struct vm vm;

	VM_NEW_LONG(&vm, sysenter_addresses);
	set_vendor(&vm, "GenuineIntel");
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.rdx << 32 | r.rax, 0xffff876511223344);
	CHECK_EQ(r.rdi << 32 | r.rsi, 0xffff843255667788);
	CHECK(get_msr(&vm, 0x176, &value));
	CHECK_EQ(value, 0xffff843255667788);
}
