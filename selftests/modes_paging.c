// SPDX-License-Identifier: GPL-2.0
/* 32-bit paging in its forms: 4 KiB and 4 MiB pages, addresses of 40 bits (PSE-36), PAE with PDPTEs anywhere. */
#define _GNU_SOURCE
#include "vm.h"

#define TABLES 0x30000		/* page directories and tables, a page each */
#define PDPTES 0x38000
#define X_PAGE 0x60000
#define Y_PAGE 0x61000
#define HIGH 0x280000000ull	/* 10 GiB: 4 MiB of memory */

static void put64(struct vm *vm, uint64_t at, uint64_t value)
{
	memcpy(vm->mem + at, &value, 8);
}

static void put32(struct vm *vm, uint64_t at, uint32_t value)
{
	memcpy(vm->mem + at, &value, 4);
}

static void setup(struct vm *vm, const unsigned char *code, const unsigned char *end)
{
	uint8_t *high;

	vm_new(vm, 4 * MIB);
	high = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(high != MAP_FAILED);
	high[0] = 0x11;
	high[0x5000] = 0x22;
	vm_slot(vm, 1, 0, HIGH, 4 * MIB, high);
	vm->mem[X_PAGE] = 0x33;
	vm->mem[Y_PAGE] = 0x44;
	vm_prot(vm, code, end);
}

static void expect_mmio(struct vm *vm)
{
	vm_expect(vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm->run->mmio.phys_addr, G_MMIO + 4);
	CHECK_EQ(vm->run->mmio.is_write, 1);
}

/* ESI: CR3. EDI: where the PDPTE of the third GiB is; ECX and EBX: what it is in turn. */
GUEST32(pae,
	"mov %esi, %cr3; mov %cr4, %eax; or $0x20, %eax; mov %eax, %cr4\n"
	"mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0; jmp 1f; 1:\n"
	"mov %cr3, %eax; out %eax, $0x11\n"
	"pae_on: mov 0x40000000, %al; out %al, $0x10; mov 0x40201000, %al; out %al, $0x10; mov %al, 0x40400004\n"
	"mov 0x80000000, %al; out %al, $0x10\n"
	"mov %ebx, (%edi); mov %cr3, %eax; mov %eax, %cr3; mov 0x80000000, %al; out %al, $0x10\n"
	"mov %ecx, (%edi); mov %cr4, %eax; xor $0x80, %eax; mov %eax, %cr4; mov 0x80000000, %al; out %al, $0x10\n"
	"mov %ebx, (%edi); mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0; jmp 1f; 1:\n"
	"or $0x80000000, %eax; mov %eax, %cr0; jmp 1f; 1: mov 0x80000000, %al; out %al, $0x10\n"
	"hlt\n");
extern const unsigned char pae_on[];

static void pae_tables(struct vm *vm, uint32_t pdpt)
{
	put64(vm, pdpt, TABLES | 1);
	put64(vm, pdpt + 8, (TABLES + 0x1000) | 1);
	put64(vm, pdpt + 16, (TABLES + 0x2000) | 1);
	put64(vm, pdpt + 24, 0);
	put64(vm, TABLES, 0x83);
	put64(vm, TABLES + 8, 0x200083);
	put64(vm, TABLES + 0x1000, HIGH | 0x83);
	put64(vm, TABLES + 0x1008, (TABLES + 0x3000) | 3);
	put64(vm, TABLES + 0x1010, G_MMIO | 0x83);
	put64(vm, TABLES + 0x3008, (HIGH + 0x5000) | 3);
	put64(vm, TABLES + 0x2000, (TABLES + 0x5000) | 3);
	put64(vm, TABLES + 0x5000, X_PAGE | 3);
	put64(vm, TABLES + 0x4000, (TABLES + 0x6000) | 3);
	put64(vm, TABLES + 0x6000, Y_PAGE | 3);
}

static void pae_registers(struct vm *vm, uint32_t cr3)
{
	struct kvm_regs r = vm_regs(vm);

	r.rsi = cr3;
	r.rdi = (cr3 & ~0x1full) + 16;
	r.rcx = (TABLES + 0x2000) | 1;
	r.rbx = (TABLES + 0x4000) | 1;
	vm_set_regs(vm, &r);
}

TEST(pae_pointers)
{
	static const uint32_t places[] = { PDPTES, PDPTES + 0x20, PDPTES + 0x7c0, PDPTES + 0xfe0, PDPTES + 0x118 };

	if (!is_rvmm() && is_tcg())
		skip("KVM shuts down, on the processor that QEMU emulates");
	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		/* Enabled by the guest, and by user space. */
		for (int set = 0; set < 2; set++) {
			struct vm vm;

			note("CR3 %#x, %s", places[i], set ? "set" : "loaded");
			setup(&vm, pae, pae_end);
			pae_tables(&vm, places[i] & ~0x1f);
			pae_registers(&vm, places[i]);
			if (set) {
				struct kvm_regs r = vm_regs(&vm);
				struct kvm_sregs s = vm_sregs(&vm);

				s.cr3 = places[i];
				s.cr4 = 0x20;
				s.cr0 |= 0x80000000;
				vm_set_sregs(&vm, &s);
				r.rip = G_CODE + (pae_on - pae);
				vm_set_regs(&vm, &r);
			} else {
				CHECK_EQ(vm_expect_out(&vm, 0x11), places[i]);
			}
			VM_EXPECT_BYTES(&vm, 0x11, 0x22);
			expect_mmio(&vm);
			VM_EXPECT_BYTES(&vm, 0x33, 0x44, 0x33, 0x44);
			vm_expect(&vm, KVM_EXIT_HLT);
			vm_free(&vm);
		}
	}
}

GUEST32(pae_set, "mov 0x80000000, %al; out %al, $0x10; hlt\n");

/* The PDPTEs of KVM_SET_SREGS2: an Intel processor has them, whatever memory says; AMD's look there. */
TEST(pae_pointers_set)
{
	struct kvm_sregs2 s;
	struct vm vm;

	setup(&vm, pae_set, pae_set_end);
	pae_tables(&vm, PDPTES);
	OK(ioctl(vm.vcpu, KVM_GET_SREGS2, &s));
	s.cr3 = PDPTES;
	s.cr4 = 0x20;
	s.cr0 |= 0x80000000;
	s.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
	s.pdptrs[0] = TABLES | 1;
	s.pdptrs[1] = 0;
	s.pdptrs[2] = (TABLES + 0x4000) | 1;
	s.pdptrs[3] = 0;
	OK(ioctl(vm.vcpu, KVM_SET_SREGS2, &s));
	VM_EXPECT_BYTES(&vm, is_amd() ? 0x33 : 0x44);
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* ESI: CR3; EBX: bits for CR4. */
GUEST32(legacy_paging,
	"mov %esi, %cr3; mov %ebx, %cr4\n"
	"mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0; jmp 1f; 1:\n"
	"mov %cr3, %eax; out %eax, $0x11\n"
	"mov 0x801000, %al; out %al, $0x10; mov %al, 0xc00004\n"
	"mov 0x400000, %al; out %al, $0x10\n"
	"hlt\n");

TEST(legacy_paging)
{
	for (int pse = 0; pse < 2; pse++) {
		struct kvm_regs r;
		struct vm vm;

		note("%s", pse ? "PSE-36" : "4 KiB pages");
		setup(&vm, legacy_paging, legacy_paging_end);
		/* What is a page of 4 MiB with PSE is a table without. */
		for (int i = 0; i < 1024; i++)
			put32(&vm, TABLES + 0x1000 + 4 * i, (i << 12) | 3);
		put32(&vm, TABLES, pse ? 0x83 : (TABLES + 0x1000) | 3);
		put32(&vm, TABLES + 4, pse ? (HIGH & 0xffc00000) | HIGH >> 32 << 13 | 0x83 : (TABLES + 0x2000) | 0x83);
		put32(&vm, TABLES + 0x2000, X_PAGE | 3);
		put32(&vm, TABLES + 8, (TABLES + 0x3000) | 3);
		put32(&vm, TABLES + 0x3004, Y_PAGE | 3);
		put32(&vm, TABLES + 12, pse ? G_MMIO | 0x83 : (TABLES + 0x4000) | 3);
		put32(&vm, TABLES + 0x4000, G_MMIO | 3);
		r = vm_regs(&vm);
		r.rsi = TABLES | 0xfff;
		r.rbx = pse ? 0x10 : 0;
		vm_set_regs(&vm, &r);
		CHECK_EQ(vm_expect_out(&vm, 0x11), TABLES | 0xfff);
		VM_EXPECT_BYTES(&vm, 0x44);
		expect_mmio(&vm);
		VM_EXPECT_BYTES(&vm, pse ? 0x11 : 0x33);
		vm_expect(&vm, KVM_EXIT_HLT);
		vm_free(&vm);
	}
}

#define ROM 0x10000000
#define NOWHERE 0x30000000

/* One by one until CR3 is another. The offsets are none of entries, which KVM takes for what is accessed. */
GUEST64(rom,
	"mov $0x11223344, %eax; mov %eax, 0x20234; mov 0x20234, %ecx; inc %ecx; call 1f; hlt\n"
	"1: pop %rdx; push %rcx; pop %rdx; mov %edx, 0x20238; in $0x11, %al; mov %al, 0x2023c\n"
	"lock xadd %ecx, 0x20238; mov %ecx, %esi; mov $0x40000000, %eax; cpuid; mov %ebx, 0x20240; mov %esi, %eax\n"
	"out %eax, $0x10\n"
	"mov %cr3, %rax; out %eax, $0x10; mov $" STR(G_PML4) ", %eax; mov %rax, %cr3; out %eax, $0x10\n"
	"mov 0x40000234, %eax; hlt\n"
	"rom_resume: mov $0x77, %eax; out %eax, $0x10; hlt\n");
extern const unsigned char rom_resume[];

/* Tables of 64-bit guests for ROM: the first GiB in pages of 2 MiB, in entries with these bits. */
static uint64_t *rom_tables(uint64_t bits)
{
	uint64_t *t = mmap(NULL, 0x3000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(t != MAP_FAILED);
	t[0] = (ROM + 0x1000) | bits;
	t[512] = (ROM + 0x2000) | bits;
	for (uint64_t i = 0; i < 512; i++)
		t[1024 + i] = i << 21 | 0x80 | bits;
	return t;
}

/* Tables in read-only memory, where walks that may set accessed bits are writes; and a table that is nowhere. */
TEST(odd_tables)
{
	for (int accessed = 0; accessed < 2; accessed++) {
		uint64_t *t = rom_tables(accessed ? 0x63 : 3), old[0x600];
		struct kvm_sregs s;
		struct vm vm;
		uint32_t d[4];

		note("%s", accessed ? "accessed" : "not accessed");
		memcpy(old, t, sizeof(old));
		VM_NEW_LONG(&vm, rom);
		vm_slot(&vm, 1, KVM_MEM_READONLY, ROM, 0x3000, t);
		put64(&vm, G_PDPT + 8, NOWHERE | 0x63);
		s = vm_sregs(&vm);
		s.cr3 = ROM;
		vm_set_sregs(&vm, &s);
		vm_log(&vm)->resume = G_CODE + rom_resume - rom;
		vm_expect(&vm, KVM_EXIT_IO);
		CHECK_EQ(vm.run->io.port, 0x11);
		*(uint8_t *)io_data(&vm) = 0x5a;
		CHECK_EQ(vm_expect_out(&vm, 0x10), 0x11223345);
		memcpy(d, vm.mem + 0x20234, sizeof(d));
		CHECK_EQ(d[0], 0x11223344);
		CHECK_EQ(d[1], 2 * 0x11223345);
		CHECK_EQ(d[2], 0x5a);
		CHECK_EQ(d[3], cpuid_entry(supported_cpuid(vm.kvm), 0x40000000, 0)->ebx);
		CHECK_EQ(vm_expect_out(&vm, 0x10), ROM);
		CHECK_EQ(vm_expect_out(&vm, 0x10), G_PML4);
		CHECK(!memcmp(old, t, sizeof(old)));
		CHECK_EQ(vm_expect_out(&vm, 0x10), 0x77);
		CHECK_EQ(vm_log(&vm)->count, 1);
		CHECK_EQ(vm_log(&vm)->event[0].vector, 14);
		CHECK_EQ(vm_log(&vm)->event[0].error, 0);
		CHECK_EQ(vm_log(&vm)->event[0].cr2, 0x40000234);
		vm_free(&vm);
		munmap(t, 0x3000);
	}
}

/* System calls and returns from them, likewise one by one: from 64-bit code twice, then from 32-bit code. */
GUEST64(calls,
	"syscall; hlt\n"
	".globl calls_syscall\ncalls_syscall: mov %ecx, %eax; out %eax, $0x10; mov %r11d, %eax; out %eax, $0x10\n"
	"mov $" STR(G_STACK) ", %ecx; test %edi, %edi; jnz 1f\n"
	"inc %edi; lea 2f(%rip), %rdx; sysexitq\n"
	"1: lea 3f(%rip), %rdx; sysexitl\n"
	"2: mov %cs, %eax; out %eax, $0x10; mov %esp, %eax; out %eax, $0x10; syscall; hlt\n"
	".code32; 3: mov %cs, %eax; out %eax, $0x10; sysenter; hlt; .code64\n"
	".globl calls_sysenter\ncalls_sysenter: mov %cs, %eax; out %eax, $0x10\n"
	"mov %esp, %eax; out %eax, $0x10; hlt\n");
extern const unsigned char calls_syscall[], calls_sysenter[];

TEST(calls_below_odd_tables)
{
	for (int accessed = 0; accessed < 2; accessed++) {
		uint64_t *t = rom_tables(accessed ? 0x67 : 7);
		struct kvm_sregs s;
		struct kvm_regs r;
		struct vm vm;

		note("%s", accessed ? "accessed" : "not accessed");
		VM_NEW_LONG(&vm, calls);
		/* Of Intel's, which have SYSENTER in long mode. */
		set_vendor(&vm, "GenuineIntel");
		vm_slot(&vm, 1, KVM_MEM_READONLY, ROM, 0x3000, t);
		CHECK(set_msr(&vm, 0x174, SEL_CODE64));
		CHECK(set_msr(&vm, 0x175, G_STACK - 0x800));
		CHECK(set_msr(&vm, 0x176, G_CODE + (calls_sysenter - calls)));
		CHECK(set_msr(&vm, 0xc0000081, (uint64_t)SEL_CODE64 << 32));
		CHECK(set_msr(&vm, 0xc0000082, G_CODE + (calls_syscall - calls)));
		CHECK(set_msr(&vm, 0xc0000084, 0x40));	/* ZF */
		s = vm_sregs(&vm);
		s.efer |= 1;
		s.cr3 = ROM;
		vm_set_sregs(&vm, &s);
		r = vm_regs(&vm);
		r.rflags = 0x3042;	/* IOPL 3, ZF */
		r.rdi = 0;
		vm_set_regs(&vm, &r);
		CHECK_EQ(vm_expect_out(&vm, 0x10), G_CODE + 2);
		CHECK_EQ(vm_expect_out(&vm, 0x10), 0x3042);
		CHECK(!(vm_regs(&vm).rflags & 0x40));
		CHECK_EQ(vm_expect_out(&vm, 0x10), (SEL_CODE64 + 32) | 3);
		CHECK_EQ(vm_sregs(&vm).ss.dpl, 3);
		CHECK_EQ(vm_expect_out(&vm, 0x10), G_STACK);
		vm_expect_out(&vm, 0x10);
		vm_expect_out(&vm, 0x10);
		CHECK_EQ(vm_sregs(&vm).cs.dpl, 0);
		CHECK_EQ(vm_expect_out(&vm, 0x10), (SEL_CODE64 + 16) | 3);
		CHECK_EQ(vm_sregs(&vm).cs.db, 1);
		CHECK_EQ(vm_expect_out(&vm, 0x10), SEL_CODE64);
		CHECK_EQ(vm_expect_out(&vm, 0x10), G_STACK - 0x800);
		vm_free(&vm);
		munmap(t, 0x3000);
	}
}

/* FXSAVE and FXRSTOR, in turn, of and to what is behind EBX. */
GUEST32(fxsave,
	"fxsave (%ebx); out %eax, $0x10; fxrstor (%ebx); out %eax, $0x10; jmp fxsave\n");

#define FX_IMAGE 0x20240
#define FX_ACROSS 0x20f80	/* over the end of a page */

/* The FPU as FXSAVE has it, below tables that the processor cannot walk; with and without CR4.OSFXSR. */
TEST(fxsave_below_odd_tables)
{
	for (int osfxsr = 0; osfxsr < 2; osfxsr++) {
		uint32_t *t = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		size_t bytes = osfxsr ? 288 : 160;
		uint8_t image[512];
		struct kvm_fpu fpu, got;
		struct kvm_xsave xsave;
		struct kvm_sregs s;
		struct kvm_regs r;
		struct vm vm;

		note("CR4.OSFXSR %d", osfxsr);
		REQUIRE(t != MAP_FAILED);
		t[0] = 0x83;
		vm_new(&vm, 4 * MIB);
		VM_PROT(&vm, fxsave);
		vm_slot(&vm, 1, KVM_MEM_READONLY, ROM, 0x1000, t);
		s = vm_sregs(&vm);
		s.cr3 = ROM;
		s.cr4 = 0x10 | osfxsr << 9;
		s.cr0 |= 1u << 31;
		vm_set_sregs(&vm, &s);
		OK(ioctl(vm.vcpu, KVM_GET_FPU, &fpu));
		fpu.fcw = 0x27f;
		fpu.fsw = 0x3800;
		fpu.ftwx = 0x81;
		fpu.mxcsr = 0x1fa0;
		for (unsigned int i = 0; i < 8; i++)
			memset(fpu.fpr[i], 0x10 + i, 10);
		for (unsigned int i = 0; i < 16; i++)
			memset(fpu.xmm[i], 0x20 + i, 16);
		/* KVM_SET_FPU of KVM leaves out MXCSR, and does not say that any of it is in use. */
		OK(ioctl(vm.vcpu, KVM_GET_XSAVE, &xsave));
		xsave.region[6] = fpu.mxcsr;
		xsave.region[128] |= 3;
		OK(ioctl(vm.vcpu, KVM_SET_XSAVE, &xsave));
		OK(ioctl(vm.vcpu, KVM_SET_FPU, &fpu));
		for (uint64_t at = FX_IMAGE; at <= FX_ACROSS; at += FX_ACROSS - FX_IMAGE) {
			uint8_t *memory = vm.mem + at;

			r = vm_regs(&vm);
			r.rbx = at;
			vm_set_regs(&vm, &r);
			memset(memory, 0xcc, 512);
			vm_expect_out(&vm, 0x10);
			memcpy(image, memory, sizeof(image));
			CHECK_EQ(image[0] | image[1] << 8, fpu.fcw);
			CHECK_EQ(image[2] | image[3] << 8, fpu.fsw);
			CHECK_EQ(image[4], fpu.ftwx);
			CHECK_EQ(image[24] | image[25] << 8, fpu.mxcsr);
			for (unsigned int i = 0; i < 8; i++)
				CHECK(!memcmp(image + 32 + 16 * i, fpu.fpr[i], 10));
			CHECK(!memcmp(image + 160, fpu.xmm, bytes - 160));
			for (size_t i = bytes; i < sizeof(image); i++)
				CHECK_EQ(image[i], 0xcc);
			/* Other values, of which the last registers are not taken. */
			fpu.fcw = image[0] = 0x7f;
			image[1] = 0;
			memset(image + 32, 0x40, 10);
			memset(fpu.fpr[0], 0x40, 10);
			memset(image + 160, 0x51, 16 * 8);
			if (osfxsr)
				memset(fpu.xmm, 0x51, 16 * 8);
			memcpy(memory, image, sizeof(image));
			vm_expect_out(&vm, 0x10);
			OK(ioctl(vm.vcpu, KVM_GET_FPU, &got));
			CHECK_EQ(got.fcw, fpu.fcw);
			CHECK_EQ(got.fsw, fpu.fsw);
			CHECK_EQ(got.ftwx, fpu.ftwx);
			OK(ioctl(vm.vcpu, KVM_GET_XSAVE, &xsave));
			CHECK_EQ(xsave.region[6], fpu.mxcsr);
			for (unsigned int i = 0; i < 8; i++)
				CHECK(!memcmp(got.fpr[i], fpu.fpr[i], 10));
			CHECK(!memcmp(got.xmm, fpu.xmm, sizeof(got.xmm)));
		}
		vm_free(&vm);
		munmap(t, 0x1000);
	}
}
