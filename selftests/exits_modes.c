// SPDX-License-Identifier: GPL-2.0
/*
 * Exits from 16-bit and 32-bit code with segments that are not flat, below every kind of page tables: CPUID, OUT, and
 * accesses to memory that is not there.
 */
#define _GNU_SOURCE
#include "vm.h"

/* Where page tables put the guest's memory and G_MMIO; tables; the last byte of the data segments. */
#define LINEAR		0x40000000ull
#define LINEAR_MMIO	0x50000000ull
#define TABLES		0x100000
#define LIMIT		0xfff

enum tables { NONE, BITS32_4K, BITS32_4M, PAE_4K, PAE_2M, LEVELS4_4K, LEVELS4_2M };

struct mode {
	const char *name;
	bool protected, code32;
	enum tables tables;
};

static const struct mode modes[] = {
	{ "real mode", false, false, NONE },
	{ "16-bit protected mode", true, false, NONE },
	{ "32-bit protected mode", true, true, NONE },
	{ "16-bit code, 32-bit paging", true, false, BITS32_4K },
	{ "32-bit code, 32-bit paging", true, true, BITS32_4K },
	{ "32-bit code, 4 MiB pages", true, true, BITS32_4M },
	{ "16-bit code, PAE", true, false, PAE_4K },
	{ "32-bit code, PAE", true, true, PAE_4K },
	{ "32-bit code, PAE, 2 MiB pages", true, true, PAE_2M },
	{ "16-bit compatibility mode", true, false, LEVELS4_4K },
	{ "32-bit compatibility mode", true, true, LEVELS4_4K },
	{ "32-bit compatibility mode, 2 MiB pages", true, true, LEVELS4_2M },
};

/* The data segments are the device; the last access is one byte too long for them. */
#define BODY(b)									\
	"xor %eax, %eax; xor %ecx, %ecx; cpuid; xor %ebx, %ebx\n"			\
	"mov (" b "), %eax; out %eax, $0x10\n"					\
	"mov %al, 1(" b "); mov %ah, 2(" b "); mov %ax, 4(" b "); mov %eax, 8(" b ")\n"	\
	"movzbl 3(" b "), %eax; out %eax, $0x10\n"				\
	"movswl 6(" b "), %eax; out %eax, $0x10\n"				\
	"mov 0x10, %eax; out %eax, $0x10; mov %ax, 0x14\n"			\
	"movw $0x1234, 0x18(" b "); movl $0x12345678, 0x1c(" b ")\n"		\
	"pushl 0x20(" b "); pop %eax; out %eax, $0x10\n"				\
	"pushl $0x77; popl 0x24(" b ")\n"						\
	"orl %eax, %es:0x28(" b ")\n"						\
	"mov $2, %ecx; mov $0x30, %edi; mov $0x99, %al; rep stosb\n"		\
	"mov %al, 0xfff(" b ")\n"						\
	"mov 0xffd(" b "), %eax\n"

GUEST16(code16, BODY("%bx"));
GUEST32(code32, BODY("%ebx"));

static void entry4(struct vm *vm, uint32_t table, uint64_t linear, uint32_t value)
{
	((uint32_t *)(vm->mem + table))[linear & 1023] = value;
}

static void entry8(struct vm *vm, uint32_t table, uint64_t linear, uint64_t value)
{
	((uint64_t *)(vm->mem + table))[linear & 511] = value;
}

/* The first MiB of memory at `at`, the device's page at `device`. */
static void page_tables(struct vm *vm, enum tables kind, uint64_t at, uint64_t device)
{
	const uint32_t pd = TABLES + 0x2000, pt = TABLES + 0x3000, pt_device = TABLES + 0x4000;

	memset(vm->mem + TABLES, 0, 0x5000);
	entry8(vm, TABLES, at >> 39, (TABLES + 0x1000) | 7);
	/* Of PAE paging too. */
	entry8(vm, TABLES + 0x1000, at >> 30, pd | (kind < LEVELS4_4K ? 1 : 7));
	switch (kind) {
	case NONE:
		break;
	case BITS32_4K:
		entry4(vm, pd, at >> 22, pt | 7);
		entry4(vm, pd, device >> 22, ((at ^ device) >> 22 ? pt_device : pt) | 7);
		for (uint32_t i = 0; i < 256; i++)
			entry4(vm, pt, (at >> 12) + i, i << 12 | 7);
		entry4(vm, (at ^ device) >> 22 ? pt_device : pt, device >> 12, G_MMIO | 7);
		break;
	case BITS32_4M:
		entry4(vm, pd, at >> 22, 0x87);
		entry4(vm, pd, device >> 22, G_MMIO | 0x87);
		break;
	case PAE_4K:
	case LEVELS4_4K:
		entry8(vm, pd, at >> 21, pt | 7);
		entry8(vm, pd, device >> 21, pt_device | 7);
		for (uint32_t i = 0; i < 256; i++)
			entry8(vm, pt, i, i << 12 | 7);
		entry8(vm, pt_device, device >> 12, G_MMIO | 7);
		break;
	case PAE_2M:
	case LEVELS4_2M:
		entry8(vm, pd, at >> 21, 0x87);
		entry8(vm, pd, device >> 21, G_MMIO | 0x87);
		break;
	}
}

static void control_registers(struct kvm_sregs *s, const struct mode *m)
{
	s->cr0 = 0x30 | m->protected;
	switch (m->tables) {
	case NONE:
		return;
	case BITS32_4K:
	case BITS32_4M:
		s->cr3 = TABLES + 0x2000;
		s->cr4 |= 0x10;
		break;
	case PAE_4K:
	case PAE_2M:
		s->cr3 = TABLES + 0x1000;
		s->cr4 |= 0x20;
		break;
	case LEVELS4_4K:
	case LEVELS4_2M:
		s->cr3 = TABLES;
		s->cr4 |= 0x20;
		s->efer = 0x500;
		break;
	}
	s->cr0 |= 1u << 31;
}

static struct kvm_segment segment(uint64_t base, uint32_t limit, unsigned int type, bool big)
{
	return (struct kvm_segment){
		.base = base, .limit = limit, .selector = 8, .type = type, .present = 1, .s = 1, .db = big,
	};
}

static void start(struct vm *vm, const struct mode *m)
{
	uint64_t at = m->tables == NONE ? 0 : LINEAR, device = m->tables == NONE ? G_MMIO : LINEAR_MMIO;
	struct kvm_sregs s;
	struct kvm_regs r = { .rflags = 2, .rsp = 0x1000 };

	vm_new(vm, 4 * MIB);
	if (m->code32)
		VM_PROT(vm, code32);
	else
		VM_PROT(vm, code16);
	page_tables(vm, m->tables, at, device);
	s = vm_sregs(vm);
	control_registers(&s, m);
	s.cs = segment(at + G_CODE, 0xffff, 0xb, m->code32);
	s.ss = segment(at + G_STACK - 0x1000, 0xffff, 3, m->code32);
	s.ds = s.es = segment(device, LIMIT, 3, m->code32);
	s.idt.limit = 0;
	vm_set_sregs(vm, &s);
	vm_set_regs(vm, &r);
}

static void mmio(struct vm *vm, bool write, uint64_t offset, unsigned int size, uint32_t value)
{
	struct kvm_run *run = vm->run;
	uint64_t have = 0;

	vm_expect(vm, KVM_EXIT_MMIO);
	if (run->mmio.is_write != write || run->mmio.phys_addr != G_MMIO + offset || run->mmio.len != size)
		DIE("MMIO %s %#llx, %u bytes; %s %#llx, %u bytes expected", run->mmio.is_write ? "write" : "read",
		    run->mmio.phys_addr, run->mmio.len, write ? "write" : "read",
		    (unsigned long long)(G_MMIO + offset), size);
	if (write) {
		memcpy(&have, run->mmio.data, size);
		CHECK_EQ(have, value);
	} else {
		memcpy(run->mmio.data, &value, sizeof(value));
	}
}

static void try_mode(const struct mode *m)
{
	struct vm vm;

	note("%s", m->name);
	start(&vm, m);
	mmio(&vm, false, 0, 4, 0x81828384);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x81828384);
	mmio(&vm, true, 1, 1, 0x84);
	mmio(&vm, true, 2, 1, 0x83);
	mmio(&vm, true, 4, 2, 0x8384);
	mmio(&vm, true, 8, 4, 0x81828384);
	mmio(&vm, false, 3, 1, 0x1ff);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0xff);
	mmio(&vm, false, 6, 2, 0x8001);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0xffff8001);
	mmio(&vm, false, 0x10, 4, 0xa1a2a3a4);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0xa1a2a3a4);
	mmio(&vm, true, 0x14, 2, 0xa3a4);
	mmio(&vm, true, 0x18, 2, 0x1234);
	mmio(&vm, true, 0x1c, 4, 0x12345678);
	mmio(&vm, false, 0x20, 4, 0xb0);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0xb0);
	mmio(&vm, true, 0x24, 4, 0x77);
	mmio(&vm, false, 0x28, 4, 0x70f);
	mmio(&vm, true, 0x28, 4, 0x7bf);
	mmio(&vm, true, 0x30, 1, 0x99);
	mmio(&vm, true, 0x31, 1, 0x99);
	mmio(&vm, true, LIMIT, 1, 0x99);
	vm_expect(&vm, KVM_EXIT_SHUTDOWN);
	vm_free(&vm);
}

TEST(exits_of_every_mode)
{
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++)
		try_mode(&modes[i]);
}

/* A linear address wraps around at 4 GiB; a stack that expands down has no offsets up to its limit. */
GUEST32(odd_segments,
	"mov %es:0x20000004, %eax; out %eax, $0x10\n"
	"addr16 mov %al, %fs:0x10(%di)\n"
	"mov $" STR(G_MMIO) ", %ebp; movzwl (%ebp), %eax; mov %eax, 4(%ebp)\n"
	"mov -1(%ebp), %eax\n");

TEST(odd_segments)
{
	struct kvm_sregs s;
	struct kvm_regs r;
	struct vm vm;

	vm_new(&vm, MIB);
	VM_PROT(&vm, odd_segments);
	s = vm_sregs(&vm);
	s.es = segment(0xf0000000, 0xffffffff, 3, true);
	s.fs = segment(G_MMIO - 0x10, 0xffff, 3, false);
	s.ss = segment(0, G_MMIO - 1, 7, true);
	s.es.g = s.ss.g = 1;
	s.idt.limit = 0;
	vm_set_sregs(&vm, &s);
	r = vm_regs(&vm);
	r.rdi = 0x10020;
	vm_set_regs(&vm, &r);
	mmio(&vm, false, 4, 4, 0xc1c2c3c4);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0xc1c2c3c4);
	mmio(&vm, true, 0x20, 1, 0xc4);
	mmio(&vm, false, 0, 2, 0xd1d2);
	mmio(&vm, true, 4, 4, 0xd1d2);
	vm_expect(&vm, KVM_EXIT_SHUTDOWN);
}

/* Virtual-8086 mode, whose applications reach no other memory than the device's and their code. */
GUEST16(app8086, "xor %eax, %eax; cpuid; mov 8, %eax; mov %ax, %cs:0x200; mov %ax, 0xffe; hlt\n");

TEST(exits_of_virtual_8086_mode)
{
	static const struct mode m = { "virtual-8086 mode", true, false, BITS32_4K };
	struct kvm_regs r = { .rflags = 0x20002 };
	struct kvm_sregs s;
	struct vm vm;

	vm_new(&vm, 4 * MIB);
	VM_PROT(&vm, app8086);
	page_tables(&vm, m.tables, 0, 0xa0000);
	s = vm_sregs(&vm);
	control_registers(&s, &m);
	s.ds = segment(0xa0000, 0xffff, 3, false);
	s.ds.dpl = 3;
	s.ds.selector = 0xa000;
	s.cs = s.ds;
	s.cs.base = G_CODE;
	s.cs.selector = G_CODE >> 4;
	s.es = s.fs = s.gs = s.ss = s.cs;
	s.idt.limit = 0;
	vm_set_sregs(&vm, &s);
	vm_set_regs(&vm, &r);
	mmio(&vm, false, 8, 4, 0x81828384);
	mmio(&vm, true, 0xffe, 2, 0x8384);
	vm_expect(&vm, KVM_EXIT_SHUTDOWN);
	CHECK_EQ(*(uint16_t *)(vm.mem + G_CODE + 0x200), 0x8384);
}
