// SPDX-License-Identifier: GPL-2.0
/* Modes of operation: real, big real, protected, paging in all its forms, long, compatibility, virtual-8086. */
#define _GNU_SOURCE
#include "vm.h"
#include <pthread.h>

/* Offset of a label from the start of its guest; linear address of it. */
#define OFF(guest, label) "(" #label "-" #guest ")"
#define LIN(guest, label) "(" #label "-" #guest "+" STR(G_CODE) ")"

static void outputs(struct vm *vm, const uint32_t *want, size_t n, unsigned int end)
{
	uint32_t have[32] = { 0 };
	size_t count;
	unsigned int reason = vm_collect(vm, have, ARRAY_SIZE(have), &count);

	if (reason != end) {
		struct kvm_regs r = vm_regs(vm);

		FAIL("the guest ended with %s at %#llx", exit_name(reason), r.rip);
	}
	for (size_t i = 0; i < n; i++) {
		if (i >= count) {
			FAIL("value %zu, %#x, is missing", i, want[i]);
			break;
		}
		if (have[i] != want[i])
			FAIL("value %zu is %#x, %#x expected", i, have[i], want[i]);
	}
	if (count > n)
		FAIL("%zu values, %zu expected: %#x", count, n, have[n]);
}

#define OUTPUTS(vm, end, ...) do {								\
	static const uint32_t want_[] = { __VA_ARGS__ };					\
	outputs(vm, want_, ARRAY_SIZE(want_), end);						\
} while (0)

/* The guest starts at the reset vector, with nothing set by user space. */
GUEST16(from_reset, "ljmp $0x1000, $0\n");
GUEST16(first_steps, "mov %cs, %ax; out %ax, $0x10; mov $0x1234, %ax; out %ax, $0x10; hlt\n");

TEST(reset_vector)
{
	uint8_t *rom = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vm vm;

	vm_new(&vm, MIB);
	memcpy(rom + 0xfff0, from_reset, from_reset_end - from_reset);
	memcpy(vm.mem + G_CODE, first_steps, first_steps_end - first_steps);
	vm_slot(&vm, 1, KVM_MEM_READONLY, 0xffff0000, 0x10000, rom);
	OUTPUTS(&vm, KVM_EXIT_HLT, 0x1000, 0x1234);
}

/* Real mode: segments, far calls, the interrupt table, flags. */
GUEST16(real_mode,
	"mov $0x2000, %ax; mov %ax, %ds; movw $0xbeef, 0x34\n"
	"mov $0x1fff, %ax; mov %ax, %es; mov %es:0x44, %ax; out %ax, $0x10\n"
	"xor %ax, %ax; mov %ax, %ss; mov $0x8000, %sp; mov %ax, %ds\n"
	"movw $" OFF(real_mode, 1f) ", 0x21*4; movw %cs, 0x21*4+2\n"
	"int $0x21; out %ax, $0x10\n"
	"movw $" OFF(real_mode, 2f) ", 0; movw %cs, 2\n"		/* #DE */
	"xor %bl, %bl; div %bl\n"
	"lcall $" STR(G_CODE) ">>4, $" OFF(real_mode, 3f) "; out %ax, $0x10\n"
	"xor %ax, %ax; push %ax; popf; pushf; pop %ax; out %ax, $0x10\n"
	"hlt\n"
	"1: mov $0x2121, %ax; iret\n"
	"2: mov $0xdede, %ax; out %ax, $0x10; mov %sp, %bp; addw $2, (%bp); iret\n"
	"3: mov $0xfa11, %ax; lret\n");

TEST(real_mode)
{
	struct vm vm;

	vm_new(&vm, MIB);
	VM_REAL(&vm, real_mode);
	*(uint16_t *)vm.mem = 0;
	OUTPUTS(&vm, KVM_EXIT_HLT, 0xbeef, 0x2121, 0xdede, 0xfa11, 0x2);
}

/* Limits of 4 GiB kept from protected mode. */
GUEST16(big_real,
	"cli; lgdtl %cs:" OFF(big_real, 8f) "\n"
	"mov %cr0, %eax; or $1, %al; mov %eax, %cr0\n"
	"mov $0x10, %bx; mov %bx, %ds\n"
	"and $0xfe, %al; mov %eax, %cr0\n"
	"ljmp $" STR(G_CODE) ">>4, $" OFF(big_real, 1f) "\n"
	"1: xor %ax, %ax; mov %ax, %ds\n"
	"mov $0x200000, %ebx; movl $0x600df00d, (%ebx); mov (%ebx), %eax; out %eax, $0x10\n"
	"mov $" STR(G_MMIO) ", %ebx; mov (%ebx), %eax; out %eax, $0x10\n"
	"hlt\n"
	".balign 8\n"
	"8: .word 23; .long " LIN(big_real, 9f) "\n"
	"9: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff\n");

TEST(big_real_mode)
{
	struct vm vm;

	vm_new(&vm, 4 * MIB);
	VM_REAL(&vm, big_real);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x600df00d);
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm.run->mmio.phys_addr, G_MMIO);
	*(uint32_t *)vm.run->mmio.data = 0xb16;
	OUTPUTS(&vm, KVM_EXIT_HLT, 0xb16);
}

/* The whole way up, as a boot loader goes it, with a value from each stop; and down again. */
#define P32 0x30000	/* 32-bit page directory, one table */
#define PAE 0x34000	/* PDPT, PD, PT */
#define P64 0x38000	/* PML4, PDPT, PD */

GUEST16(way_up,
	"cli; mov $0x1111, %eax; out %eax, $0x10\n"
	"lgdtl %cs:" OFF(way_up, gdtr) "\n"
	"mov %cr0, %eax; or $1, %al; mov %eax, %cr0\n"
	"ljmpl $0x18, $" LIN(way_up, prot) "\n"
	".code32\n"
	"prot: mov $0x10, %eax; mov %eax, %ds; mov %eax, %es\n"
	"mov %eax, %ss; mov $" STR(G_STACK) ", %esp\n"
	"mov $0x2222, %eax; out %eax, $0x10\n"
	/* 32-bit paging, and an address that only paging gives */
	"mov $" STR(P32) ", %eax; mov %eax, %cr3\n"
	"mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0; jmp 1f\n1:\n"
	"mov 0x3ff000, %eax; out %eax, $0x10\n"
	"invlpg 0x3ff000\n"
	/* 4 MiB pages */
	"mov %cr4, %eax; or $0x10, %eax; mov %eax, %cr4\n"
	"movl $0x83, " STR(P32) "+4*16; mov %cr3, %eax; mov %eax, %cr3\n"
	"mov 0x4000000+" STR(G_DATA) ", %eax; out %eax, $0x10\n"
	/* Paging goes off, then PAE comes on. */
	"mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0; jmp 1f\n1:\n"
	"mov $" STR(PAE) ", %eax; mov %eax, %cr3\n"
	"mov %cr4, %eax; and $~0x10, %eax; or $0x20, %eax; mov %eax, %cr4\n"
	"mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0; jmp 1f\n1:\n"
	"mov 0x40000000, %eax; out %eax, $0x10\n"
	/* A new PDPTE counts only after CR3 is written (SDM 3A 4.4.1) */
	"movl $" STR(PAE) "+0x1001, " STR(PAE) "+16; movl $0, " STR(PAE) "+20\n"
	"mov %cr3, %eax; mov %eax, %cr3\n"
	"mov 0x80000000+" STR(G_DATA) ", %eax; out %eax, $0x10\n"
	/* Paging goes off, then long mode comes on. */
	"mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0; jmp 1f\n1:\n"
	"mov $" STR(P64) ", %eax; mov %eax, %cr3\n"
	"mov $0xc0000080, %ecx; rdmsr; or $0x100, %eax; wrmsr\n"
	"mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0\n"
	"rdmsr; out %eax, $0x10\n"	/* LMA is on; this is compatibility mode */
	"ljmp $0x08, $" LIN(way_up, long_) "\n"
	".code64\n"
	"long_: mov $0x3333, %eax; out %eax, $0x10\n"
	"mov $0xffff800000000000+" STR(G_DATA) ", %rbx; mov (%rbx), %eax; out %eax, $0x10\n"
	/* The guest goes to compatibility mode and out of long mode. */
	"push $0x18; push $" LIN(way_up, compat) "; lretq\n"
	".code32\n"
	"compat: mov $0x4444, %eax; out %eax, $0x10\n"
	"mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0; jmp 1f\n1:\n"
	"rdmsr; and $~0x100, %eax; wrmsr; rdmsr; out %eax, $0x10\n"
	/* 16-bit protected mode, then real mode */
	"ljmp $0x20, $" OFF(way_up, prot16) "\n"
	".code16\n"
	"prot16: mov $0x30, %ax; mov %ax, %ds; mov %ax, %ss; mov $0x5555, %eax; out %eax, $0x10\n"
	"mov %cr0, %eax; and $0xfe, %al; mov %eax, %cr0\n"
	"ljmp $" STR(G_CODE) ">>4, $" OFF(way_up, real) "\n"
	"real: mov $0x6666, %eax; out %eax, $0x10; hlt\n"
	".balign 8\n"
	"gdtr: .word 55; .long " LIN(way_up, gdt) "\n"
	/* null, code64, data, code32, code16 with base, unused, data16 */
	"gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff\n"
	".quad 0x00009b010000ffff, 0, 0x000093000000ffff\n");

TEST(way_up)
{
	uint32_t *pd32, *pt32;
	uint64_t *pae, *p64;
	struct vm vm;

	vm_new(&vm, 4 * MIB);
	VM_REAL(&vm, way_up);
	*(uint32_t *)(vm.mem + G_DATA) = 0xda7a;
	*(uint32_t *)(vm.mem + G_DATA + 0x1000) = 0xda7a1;
	*(uint32_t *)(vm.mem + G_DATA + 0x2000) = 0xda7a2;
	pd32 = (uint32_t *)(vm.mem + P32);
	pt32 = pd32 + 1024;
	memset(pd32, 0, 8192);
	pd32[0] = (P32 + 0x1000) | 3;
	for (uint32_t i = 0; i < 1024; i++)
		pt32[i] = i << 12 | 3;
	pt32[0x3ff] = (G_DATA + 0x1000) | 3;
	pae = (uint64_t *)(vm.mem + PAE);
	memset(pae, 0, 3 * 4096);
	pae[0] = (PAE + 0x1000) | 1;
	pae[1] = (PAE + 0x1000) | 1;	/* the same at 1 GiB, but see the table of the first 2 MiB */
	pae[512] = 0x83;
	p64 = (uint64_t *)(vm.mem + P64);
	memset(p64, 0, 3 * 4096);
	p64[0] = (P64 + 0x1000) | 3;
	p64[256] = (P64 + 0x1000) | 3;
	p64[512] = (P64 + 0x2000) | 3;
	p64[1024] = 0x83;
	*(uint32_t *)vm.mem = 0xfee1;
	OUTPUTS(&vm, KVM_EXIT_HLT, 0x1111, 0x2222, 0xda7a1, 0xda7a, 0xfee1, 0xda7a, 0x500, 0x3333, 0xda7a, 0x4444, 0,
		0x5555, 0x6666);
}

/* Protected mode: exceptions with error codes through a 32-bit IDT. */
GUEST32(prot_exceptions,
	"lidt " LIN(prot_exceptions, 8f) "\n"
	"mov $0x1234, %eax; mov %eax, %ds\n"			/* #GP: beyond the GDT */
	"1: ud2\n"
	"2: mov $0x10, %eax; mov %eax, %ds; mov $7, %eax; out %eax, $0x10; hlt\n"
	"13: pop %eax; out %eax, $0x10; addl $2, (%esp); iret\n"
	"6: mov $0x666, %eax; out %eax, $0x10; addl $2, (%esp); iret\n"
	".balign 8\n"
	"8: .word 14*8-1; .long " STR(G_DATA) "\n"
	".globl gate_ud, gate_gp\n.set gate_ud, 6b; .set gate_gp, 13b\n");
extern const unsigned char gate_ud[], gate_gp[];

TEST(protected_mode)
{
	struct vm vm;
	uint64_t *idt;

	vm_new(&vm, MIB);
	VM_PROT(&vm, prot_exceptions);
	idt = (uint64_t *)(vm.mem + G_DATA);
	memset(idt, 0, 14 * 8);
	uint64_t ud = G_CODE + (gate_ud - prot_exceptions), gp = G_CODE + (gate_gp - prot_exceptions);

	idt[6] = (ud & 0xffff) | (uint64_t)SEL_CODE32 << 16 | 0x8e00ull << 32 | (ud >> 16) << 48;
	idt[13] = (gp & 0xffff) | (uint64_t)SEL_CODE32 << 16 | 0x8e00ull << 32 | (gp >> 16) << 48;
	OUTPUTS(&vm, KVM_EXIT_HLT, 0x1234 & 0xfffc, 0x666, 7);
}

/* EFER.LME first: paging stays off until CR4.PAE is there (APM 2 14.6.1). */
GUEST32(lme_first,
	"lidt " LIN(lme_first, 8f) "\n"
	"mov $0xc0000080, %ecx; rdmsr; or $0x100, %eax; wrmsr\n"
	"rdmsr; out %eax, $0x10\n"
	"mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0; hlt\n"	/* #GP */
	"13: pop %eax; out %eax, $0x10; mov %cr0, %eax; shr $31, %eax; out %eax, $0x10\n"
	"clts; mov $1, %eax; lmsw %ax; mov %cr0, %eax; and $0xf, %eax; out %eax, $0x10\n"
	"mov %cr4, %eax; or $0x20, %eax; mov %eax, %cr4; rdmsr; out %eax, $0x10; hlt\n"
	".balign 8\n"
	"8: .word 14*8-1; .long " STR(G_DATA) "\n"
	".globl lme_gp\n.set lme_gp, 13b\n");
extern const unsigned char lme_gp[];

TEST(lme_before_pae)
{
	struct vm vm;
	uint64_t *idt, gp = G_CODE + (lme_gp - lme_first);

	if (!is_rvmm() && is_amd())
		skip("QEMU's emulation of SVM ends a host that does not hide LME");
	vm_new(&vm, MIB);
	VM_PROT(&vm, lme_first);
	idt = (uint64_t *)(vm.mem + G_DATA);
	memset(idt, 0, 14 * 8);
	idt[13] = (gp & 0xffff) | (uint64_t)SEL_CODE32 << 16 | 0x8e00ull << 32 | (gp >> 16) << 48;
	OUTPUTS(&vm, KVM_EXIT_HLT, 0x100, 0, 0, 1, 0x100);
}

/*
 * CR0.CD and NW, set as after RESET: every way to read CR0 shows them, whatever the processor runs with, until the
 * guest clears them. And when it sets CD again.
 */
GUEST64(cache_disable,
	"mov %cr0, %rax; mov $-1, %rcx; smsw %rcx; mov $-1, %rdx; smsw %edx; mov $-1, %rsi; smsw %si\n"
	"smsw " STR(G_CELLS) "; clts; lmsw %si; mov %cr0, %rdi; out %al, $0x10\n"
	"mov %rax, %cr0; mov %cr0, %rdi; out %al, $0x10\n"
	"btr $29, %rax; btr $30, %rax; mov %rax, %cr0; mov %cr0, %rdi; smsw %edx; out %al, $0x10\n"
	"bts $30, %rax; mov %rax, %cr0; mov %cr0, %rdi; smsw %edx; out %al, $0x10; hlt\n");

TEST(cache_disable)
{
	static const uint64_t bits[] = { 3 << 29, 3 << 29, 0, 1 << 30 };

	for (int quirk = 1; quirk >= 0; quirk--) {
		struct kvm_sregs s;
		struct kvm_regs r;
		uint64_t cr0;
		struct vm vm;

		vm_new(&vm, 4 * MIB);
		if (!quirk)
			OK(enable_cap(vm.fd, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_CD_NW_CLEARED));
		VM_LONG(&vm, cache_disable);
		s = vm_sregs(&vm);
		cr0 = s.cr0;
		s.cr0 |= bits[0];
		vm_set_sregs(&vm, &s);
		for (unsigned int i = 0; i < 4; i++) {
			uint64_t want = cr0 | bits[i];

			vm_expect_out(&vm, 0x10);
			r = vm_regs(&vm);
			CHECK_EQ(vm_sregs(&vm).cr0, want);
			CHECK_EQ(r.rdi, want);
			if (i == 0) {
				CHECK_EQ(r.rax, want);
				CHECK_EQ(r.rcx, want);
				CHECK_EQ(r.rsi, -1ull << 16 | (want & 0xffff));
				CHECK_EQ(vm_cells(&vm)[0] & 0xffff, want & 0xffff);
			}
			CHECK_EQ(r.rdx, want);
		}
		vm_free(&vm);
	}
}

/*
 * Where CR0.CD is set, SMSW of an application exits too, on AMD (APM 2 15.8.1). Another of its threads makes MOV to CR4
 * of it meanwhile, and back: that is not done for an application.
 */
GUEST64(app_smsw, "smsw %eax; out %al, $0x10\n");

static bool swapped_enough;

static void *swap_instruction(void *smsw)
{
	while (!__atomic_load_n(&swapped_enough, __ATOMIC_RELAXED))
		__atomic_fetch_xor((uint8_t *)smsw + 1, 0x01 ^ 0x22, __ATOMIC_RELAXED);
	return NULL;
}

TEST(swapped_smsw)
{
	pthread_t thread;
	struct kvm_sregs s;
	struct vm vm;

	VM_NEW_LONG(&vm, app_smsw);
	s = vm_sregs(&vm);
	s.cr0 |= 1 << 30;
	s.cs.selector = SEL_USER_CODE64;
	s.ss.selector = SEL_USER_DATA;
	s.cs.dpl = s.ss.dpl = 3;
	vm_set_sregs(&vm, &s);
	REQUIRE(!pthread_create(&thread, NULL, swap_instruction, vm.mem + G_CODE));
	for (unsigned int i = 0; i < 500; i++) {
		struct kvm_regs r = { .rip = G_CODE, .rax = s.cr4 | 4, .rsp = G_STACK, .rflags = 0x3002 };

		vm_log(&vm)->resume = G_CODE + 3;
		vm_set_regs(&vm, &r);
		vm_expect_out(&vm, 0x10);
		REQUIRE(vm_sregs(&vm).cr4 == s.cr4);
	}
	__atomic_store_n(&swapped_enough, true, __ATOMIC_RELAXED);
	REQUIRE(!pthread_join(thread, NULL));
}

/*
 * User-mode instruction prevention (SDM 3A 2.5, CR4.UMIP): SGDT, SIDT, SLDT and STR of an application fault, whether
 * the processor has it or exits stand in, where SMSW is left out. Each instruction is 8 bytes long.
 */
GUEST64(umip,
	"sgdt " STR(G_CELLS) "; sidt " STR(G_CELLS) "+16; sldt " STR(G_CELLS) "+32; str " STR(G_CELLS) "+40\n"
	"out %al, $0x10\n");

TEST(user_mode_instruction_prevention)
{
	struct kvm_cpuid2 *table;
	struct kvm_sregs s;
	uint16_t told[4];
	struct vm vm;

	VM_NEW_LONG(&vm, umip);
	table = supported_cpuid(vm.kvm);
	if (!(cpuid_entry(table, 7, 0)->ecx & 1 << 2))
		skip("no UMIP");
	free(table);
	set_supported_cpuid(vm.kvm, vm.vcpu);
	for (int i = 0; i < 6; i++) {
		bool user = i & 1, on = i > 1 && i < 4;

		s = vm_sregs(&vm);
		s.cr4 = (s.cr4 & ~(1ull << 11)) | (uint64_t)on << 11;
		s.cs.selector = user ? SEL_USER_CODE64 : SEL_CODE64;
		s.ss.selector = user ? SEL_USER_DATA : SEL_DATA;
		s.cs.dpl = s.ss.dpl = user ? 3 : 0;
		vm_set_sregs(&vm, &s);
		memcpy(told, (uint16_t[]) { s.gdt.limit, s.idt.limit, s.ldt.selector, s.tr.selector }, sizeof(told));
		for (unsigned int n = 0; n < 4; n++) {
			struct kvm_regs r = { .rip = G_CODE + n * 8, .rsp = G_STACK, .rflags = 0x3002 };
			static const uint8_t place[] = { 0, 16, 32, 40 }, bytes[] = { 10, 10, 2, 2 };
			uint8_t *stored = (uint8_t *)vm_cells(&vm) + place[n];
			uint64_t base = 0;
			uint16_t first;

			memset((uint8_t *)vm_cells(&vm), 0xee, 64);
			vm_log(&vm)->count = 0;
			vm_log(&vm)->resume = G_CODE + 32;
			vm_set_regs(&vm, &r);
			vm_expect_out(&vm, 0x10);
			memcpy(&first, stored, 2);
			CHECK_EQ(vm_log(&vm)->count, user && on);
			CHECK_EQ(stored[bytes[n]], 0xee);
			if (user && on) {
				CHECK_EQ(vm_log(&vm)->event[0].vector, 13);
				CHECK_EQ(vm_log(&vm)->event[0].error, 0);
				CHECK_EQ(vm_log(&vm)->event[0].rip, r.rip);
				CHECK_EQ(first, 0xeeee);
				continue;
			}
			memcpy(&base, stored + 2, 8);
			CHECK_EQ(first, told[n]);
			if (n < 2)
				CHECK_EQ(base, n ? s.idt.base : s.gdt.base);
		}
		CHECK_EQ(vm_sregs(&vm).cr4, s.cr4);
	}
}

/* Virtual-8086 mode: port I/O by bitmap, INT n to the monitor. */
GUEST32(vm86,
	"mov $" STR(SEL_TSS) ", %eax; ltr %ax\n"
	"lidt " LIN(vm86, 8f) "\n"
	"push $0; push $0; push $0; push $0; push $0x1000; push $0x1000\n"
	"push $0x20002; push $" STR(G_CODE) ">>4; push $" OFF(vm86, 1f) "\n"
	"iret\n"
	".code16\n"
	"1: mov $0x8686, %ax; out %ax, $0x10\n"
	"mov %cs, %ax; out %ax, $0x10\n"
	"int $0x21\n"
	"hlt\n"
	".code32\n"
	/* #GP from INT n with IOPL 0: say so, and stop */
	"2: mov $0x9999, %eax; out %eax, $0x10; pop %eax; out %eax, $0x10\n"
	"mov 8(%esp), %eax; shr $16, %eax; out %eax, $0x10; hlt\n"
	".balign 8\n"
	"8: .word 14*8-1; .long " STR(G_DATA) "\n"
	".globl vm86_gp\n.set vm86_gp, 2b\n");
extern const unsigned char vm86_gp[];

TEST(vm86)
{
	uint64_t gp = G_CODE + (vm86_gp - vm86), *gdt, *idt;
	struct vm vm;
	uint8_t *tss;

	vm_new(&vm, MIB);
	VM_PROT(&vm, vm86);
	tss = vm.mem + 0x30000;
	memset(tss, 0, 0x2100);
	*(uint32_t *)(tss + 4) = G_STACK - 0x800;
	*(uint16_t *)(tss + 8) = SEL_DATA;
	*(uint16_t *)(tss + 0x66) = 0x88;	/* I/O bitmap after the interrupt redirection bitmap */
	tss[0x88 + 0x2000] = 0xff;
	gdt = (uint64_t *)(vm.mem + G_GDT);
	gdt[SEL_TSS >> 3] = 0x0000890300002088;
	idt = (uint64_t *)(vm.mem + G_DATA);
	memset(idt, 0, 14 * 8);
	idt[13] = (gp & 0xffff) | (uint64_t)SEL_CODE32 << 16 | 0x8e00ull << 32 | (gp >> 16) << 48;
	OUTPUTS(&vm, KVM_EXIT_HLT, 0x8686, G_CODE >> 4, 0x9999, 0, 3 /* VM, RF */);
}

/* 64-bit: SYSCALL and SYSRET, SWAPGS, and the registers that they use. */
GUEST64(system_call,
	"mov $" STR(SEL_TSS) ", %eax; ltr %ax\n"
	"mov $" STR(G_CODE) "+" OFF(system_call, 2f) ", %ecx\n"
	"mov $0x202, %r11d; and $~0x200, %r11d\n"
	"sysretq\n"
	"2: mov $0x1111, %eax; mov %gs:0, %ebx\n"		/* ring 3 */
	"mov $0x77, %edi; syscall\n"
	"mov %eax, %esi; ud2\n"
	".balign 16\n.globl system_entry\nsystem_entry:\n"
	"swapgs; mov %gs:0, %r8d; swapgs; mov %rcx, %r9; mov %r11, %r10; mov $0x2222, %eax\n"
	"cmp $0x77, %edi; jne 1f; mov $0x78, %edi; sysretq\n"
	"1: hlt\n");
extern const unsigned char system_entry[];

TEST(system_call)
{
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, system_call);
	((uint64_t *)(vm.mem + G_GDT))[SEL_TSS >> 3] &= ~(2ull << 40);
	CHECK(set_msr(&vm, 0xc0000081, (uint64_t)SEL_CODE64 << 32 | (uint64_t)0x33 << 48));
	CHECK(set_msr(&vm, 0xc0000082, G_CODE + (system_entry - system_call)));
	CHECK(set_msr(&vm, 0xc0000084, 0x200));
	CHECK(set_msr(&vm, 0xc0000101, G_DATA));
	CHECK(set_msr(&vm, 0xc0000102, G_DATA + 0x1000));
	*(uint32_t *)(vm.mem + G_DATA) = 0xaaaa;
	*(uint32_t *)(vm.mem + G_DATA + 0x1000) = 0xbbbb;
	/* #UD ends the ring-3 part: straight to the kernel's HLT. */
	vm_log(&vm)->resume = 0;
	uint64_t halt = G_CODE + (system_call_end - system_call) - 1;

	vm_gate(&vm, 6, 0, halt);
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.rbx, 0xaaaa);
	CHECK_EQ(r.r8, 0xbbbb);
	CHECK_EQ(r.rsi, 0x2222);
	CHECK_EQ(r.rdi, 0x78);
	CHECK_EQ(r.rsp, G_STACK - 0x1000 - 40);
	CHECK_EQ(vm_sregs(&vm).gs.base, G_DATA);
}

/*
 * Compatibility mode, and the way out of it that this processor does not have, but the one that the guest believes in:
 * SYSCALL on Intel, SYSENTER on AMD (SDM 2B and APM 3, under their names).
 */
GUEST64(foreign_call,
	".code32; nop; .byte 0x0f, 0x05; nop; hlt; .code64\n"
	".balign 16\n.globl foreign_entry\nforeign_entry:\n"
	"mov %cs, %eax; mov %ss, %ebx; mov %rsp, %rdx; pushfq; pop %r8; hlt\n"
	".balign 16\n.globl foreign_undefined\nforeign_undefined:\n"
	"mov $0xbad, %eax; hlt\n");
extern const unsigned char foreign_entry[], foreign_undefined[];

/* The guest's vendor is the other one, or this processor's own, whose #UD the guest gets then. */
static void call_from_compatibility_mode(bool other)
{
	const uint64_t entry = G_CODE + (foreign_entry - foreign_call);
	struct kvm_sregs sregs;
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, foreign_call);
	set_vendor(&vm, is_amd() == other ? "GenuineIntel" : "AuthenticAMD");
	vm_gate(&vm, 6, 0, G_CODE + (foreign_undefined - foreign_call));
	if (is_amd()) {
		vm.mem[G_CODE + 2] = 0x34;
		CHECK(set_msr(&vm, 0x174, SEL_CODE64));
		CHECK(set_msr(&vm, 0x175, G_STACK - 0x800));
		CHECK(set_msr(&vm, 0x176, entry));
	} else {
		CHECK(set_msr(&vm, 0xc0000081, (uint64_t)SEL_CODE64 << 32));
		CHECK(set_msr(&vm, 0xc0000083, entry));
		CHECK(set_msr(&vm, 0xc0000084, 1));	/* CF */
	}
	sregs = vm_sregs(&vm);
	sregs.efer |= 1;
	sregs.cs.selector = SEL_CODE32;
	sregs.cs.l = 0;
	sregs.cs.db = 1;
	vm_set_sregs(&vm, &sregs);
	r = vm_regs(&vm);
	r.rflags |= 0x41;	/* ZF, CF */
	vm_set_regs(&vm, &r);
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	if (!other) {
		CHECK_EQ(r.rax, 0xbad);
		return;
	}
	CHECK_EQ(r.rax, SEL_CODE64);
	CHECK_EQ(r.rbx, SEL_DATA);
	CHECK(vm_sregs(&vm).cs.l);
	if (is_amd()) {
		CHECK_EQ(r.rdx, G_STACK - 0x800);
		CHECK_EQ(r.r8, 0x43);
	} else {
		CHECK_EQ(r.rcx, G_CODE + 3);
		CHECK_EQ(r.r11, 0x43);
		CHECK_EQ(r.r8, 0x42);
	}
}

TEST(system_call_of_the_other_vendor)
{
	call_from_compatibility_mode(true);
	/* AMD's processors of the emulators have both in compatibility mode. */
	if (!is_tcg() && !(is_amd() && is_bochs()))
		call_from_compatibility_mode(false);
}

/* NX, WP, SMEP and SMAP in the guest's own paging. */
GUEST64(protections,
	"mov $" STR(G_DATA) ", %ebx; movb $0xc3, (%rbx); call *%rbx; mov $1, %r8d\n"
	"mov $0xc0000080, %ecx; rdmsr; or $0x800, %eax; wrmsr\n"
	"hlt\n"
	"call *%rbx\n"
	"mov $2, %r9d; hlt\n");

TEST(no_execute)
{
	struct guest_event *e;
	struct vm vm;
	uint64_t *pt;

	VM_NEW_LONG(&vm, protections);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).r8, 1);
	/* The first 2 MiB in small pages, the data page not executable. */
	pt = (uint64_t *)(vm.mem + 0x30000);
	for (uint64_t i = 0; i < 512; i++)
		pt[i] = i << 12 | 0x63;
	pt[G_DATA >> 12] |= 1ull << 63;
	*(uint64_t *)(vm.mem + G_PD0) = 0x30000 | 0x63;
	struct kvm_sregs s = vm_sregs(&vm);
	vm_set_sregs(&vm, &s);	/* flushes */
	vm_log(&vm)->resume = G_CODE + (protections_end - protections) - 7;
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).r9, 2);
	CHECK_EQ(vm_log(&vm)->count, 1);
	e = &vm_log(&vm)->event[0];
	CHECK_EQ(e->vector, 14);
	CHECK_EQ(e->error, 0x11);
	CHECK_EQ(e->rip, G_DATA);
	CHECK_EQ(e->cr2, G_DATA);
}

/* Five levels of page tables: address 2^48 is that of the fourth level's tables again, and so is 0. */
#define G_PML5 0x30000
#define TOP "0x1000000000000"

GUEST64(five_levels,
	"movabs $" TOP "+" STR(G_DATA) ", %rbx; movl $0x57, (%rbx); mov (%rbx), %eax; out %eax, $0x10\n"
	"movabs $" TOP "+" STR(G_MMIO) ", %rcx; mov (%rcx), %eax; out %eax, $0x10\n"
	/* From there on code and stack are up there. */
	"movabs $" TOP ", %rdx; add %rdx, %rsp; lea 1f(%rip), %rax; add %rdx, %rax; jmp *%rax\n"
	"1: push %rax; pop %rbx; lea (%rip), %rsi; shr $32, %rsi; mov %esi, %eax; out %eax, $0x10\n"
	"xor %eax, %eax; cpuid; movabs $" TOP "+" STR(G_MMIO) ", %rcx; movb $7, (%rcx); mov $0xc0000101, %ecx\n"
	"xor %eax, %eax; mov $0x10000, %edx; wrmsr; rdmsr; mov %edx, %eax; out %eax, $0x10; hlt\n");

TEST(five_levels)
{
	struct kvm_translation t = { .linear_address = (1ull << 48) + G_DATA };
	struct kvm_sregs s;
	struct kvm_cpuid2 *table;
	struct vm vm;
	uint64_t *pml5;

	vm_new(&vm, 4 * MIB);
	table = supported_cpuid(vm.kvm);
	if (!(cpuid_entry(table, 7, 0)->ecx & 1u << 16))
		skip("no LA57");
	if (is_bochs())
		skip("Bochs ends at an entry that changes CR4.LA57, on KVM as well");
	free(table);
	VM_LONG(&vm, five_levels);
	pml5 = (uint64_t *)(vm.mem + G_PML5);
	pml5[0] = pml5[1] = G_PML4 | 3;
	s = vm_sregs(&vm);
	s.cr3 = G_PML5;
	s.cr4 |= 1 << 12;
	vm_set_sregs(&vm, &s);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x57);
	CHECK_EQ(*(uint32_t *)(vm.mem + G_DATA), 0x57);
	OK(ioctl(vm.vcpu, KVM_TRANSLATE, &t));
	CHECK(t.valid);
	CHECK_EQ(t.physical_address, G_DATA);
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm.run->mmio.phys_addr, G_MMIO);
	*(uint32_t *)vm.run->mmio.data = 0x1234;
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x1234);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x10000);
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK(vm.run->mmio.is_write);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x10000);
	vm_expect(&vm, KVM_EXIT_HLT);
}
