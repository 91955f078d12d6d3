// SPDX-License-Identifier: GPL-2.0
/* Hardware task switches: every kind of them, TSSs of 32 and 16 bits. */
#define _GNU_SOURCE
#include "vm.h"

/* Selectors. */
#define A 0x50
#define B 0x58
#define C16 0x60
#define GATE 0x68
#define LOW_CODE 0x78	/* base G_CODE */
#define ABSENT 0x80
#define F 0x88
#define J 0x90
#define H 0x98

#define TSS(selector) (G_DATA + 0x80 * ((selector) - A) / 8)
#define OTHER_TABLES 0x31000
#define TABLES 0x30000
#define WINDOW "0x800500"
#define S(x) STR(x)

/*
 * Task A asks, the others answer: a byte of their own, then what they see through a window that each address space has
 * at another place.
 */
GUEST32(tasks,
	"mov $0xa1a2a3a4, %ebp\n"
	"lcall $" S(B) ", $0\n"
	"out %al, $0x10; mov " WINDOW ", %al; out %al, $0x10\n"
	"lcall $" S(GATE) ", $0\n"
	"ljmp $" S(J) ", $0\n"
	"int $0x30\n"
	"mov $0x33, %cl; ud2; mov %cl, %al; out %al, $0x10\n"
	"mov $0x1000, %ax; mov %ax, %ds; mov $0x44, %al; out %al, $0x10\n"
	"hlt; mov $0x55, %al; out %al, $0x10\n"
	"mov %cr0, %eax; shr $3, %eax; and $1, %al; out %al, $0x10\n"
	"pushf; pop %eax; mov %ah, %al; out %al, $0x10\n"
	"cmp $0xa1a2a3a4, %ebp; sete %al; out %al, $0x10\n"
	"hlt\n"
	/* B */
	".org tasks + 0x100\n"
	"1: mov $0xb1, %al; out %al, $0x10; mov " WINDOW ", %al; out %al, $0x10; iret; jmp 1b\n"
	/* F: for #GP. The instruction after is where A goes on. */
	".org tasks + 0x180\n"
	"1: pop %eax; mov %ah, %al; out %al, $0x10; addl $2, " S(TSS(A)) "+0x20; iret; jmp 1b\n"
	/* J */
	".org tasks + 0x1c0\n"
	"1: mov $0xd1, %al; out %al, $0x10; ljmp $" S(A) ", $0; jmp 1b\n"
	/* H: for #UD */
	".org tasks + 0x200\n"
	"1: mov $0xe1, %al; out %al, $0x10; addl $2, " S(TSS(A)) "+0x20; iret; jmp 1b\n");

static uint64_t descriptor(uint64_t base, uint64_t limit, uint64_t type, uint64_t flags)
{
	return (limit & 0xffff) | (base & 0xffffff) << 16 | type << 40 | flags << 52 | (base >> 24) << 56;
}

static void put(struct vm *vm, uint64_t at, uint32_t value)
{
	memcpy(vm->mem + at, &value, 4);
}

static uint32_t get(struct vm *vm, uint64_t at)
{
	uint32_t value;

	memcpy(&value, vm->mem + at, 4);
	return value;
}

static void tss32(struct vm *vm, uint64_t at, uint32_t eip, uint32_t esp, uint32_t ds)
{
	put(vm, at + 0x1c, OTHER_TABLES);
	put(vm, at + 0x20, eip);
	put(vm, at + 0x24, 2);
	put(vm, at + 0x38, esp);
	for (int seg = 0; seg < 6; seg++)
		put(vm, at + 0x48 + 4 * seg, seg == 1 ? SEL_CODE32 : seg == 3 ? ds : SEL_DATA);
}

static void task_gate(struct vm *vm, int vector, uint16_t selector)
{
	uint64_t gate = (uint64_t)selector << 16 | 0x85ull << 40;

	memcpy(vm->mem + G_IDT + 8 * vector, &gate, 8);
}

static void setup(struct vm *vm, const unsigned char *code, const unsigned char *end)
{
	uint64_t *gdt;
	struct kvm_sregs s;
	uint8_t *c;

	vm_new(vm, 8 * MIB);
	vm_prot(vm, code, end);
	gdt = (uint64_t *)(vm->mem + G_GDT);
	gdt[A / 8] = descriptor(TSS(A), 0x67, 0x8b, 0);
	for (int selector = B; selector <= H; selector += 8)
		gdt[selector / 8] = descriptor(TSS(selector), 0x67, 0x89, 0);
	gdt[C16 / 8] = descriptor(TSS(C16), 0x2b, 0x81, 0);
	gdt[GATE / 8] = (uint64_t)B << 16 | 0x85ull << 40;
	gdt[LOW_CODE / 8] = descriptor(G_CODE, 0xffff, 0x9b, 4);
	gdt[ABSENT / 8] = descriptor(0, 0xffff, 0x13, 0xc) | 0xfull << 48;
	tss32(vm, TSS(B), G_CODE + 0x100, G_STACK - 0x100, SEL_DATA);
	tss32(vm, TSS(F), G_CODE + 0x180, G_STACK - 0x200, SEL_DATA);
	tss32(vm, TSS(J), G_CODE + 0x1c0, G_STACK - 0x300, SEL_DATA);
	tss32(vm, TSS(H), G_CODE + 0x200, G_STACK - 0x400, SEL_DATA);
	put(vm, TSS(A) + 0x1c, TABLES);
	c = vm->mem + TSS(C16);
	memcpy(c + 0x0e, (uint16_t[]) { 0x140, 2, 0, 0, 0, 0, 0xda00 }, 14);
	memcpy(c + 0x22, (uint16_t[]) { SEL_DATA, LOW_CODE, SEL_DATA, SEL_DATA, 0 }, 10);
	memset(vm->mem + G_IDT, 0, 0x400);
	task_gate(vm, 2, B);
	task_gate(vm, 6, H);
	task_gate(vm, 13, F);
	task_gate(vm, 0x30, B);
	/* 4 MiB pages: all of memory, and a window at 8 MiB. */
	for (int i = 0; i < 2; i++) {
		put(vm, TABLES + 4 * i, 0x83 | i << 22);
		put(vm, OTHER_TABLES + 4 * i, 0x83 | i << 22);
	}
	put(vm, TABLES + 8, 0x83);
	put(vm, OTHER_TABLES + 8, 0x83 | 1 << 22);
	vm->mem[0x500] = 0x0a;
	vm->mem[0x400500] = 0x0b;
	s = vm_sregs(vm);
	s.tr = (struct kvm_segment) { .base = TSS(A), .limit = 0x67, .selector = A, .type = 11, .present = 1 };
	s.idt.base = G_IDT;
	s.idt.limit = 0x3ff;
	s.cr3 = TABLES;
	s.cr4 = 0x10;		/* PSE */
	s.cr0 = 0x80010011;	/* PG, WP, ET, PE */
	vm_set_sregs(vm, &s);
}

static unsigned int type_of(struct vm *vm, int selector)
{
	return vm->mem[G_GDT + selector + 5] & 15;
}

TEST(task_switches)
{
	struct kvm_sregs s;
	struct vm vm;

	setup(&vm, tasks, tasks_end);
	VM_EXPECT_BYTES(&vm, 0xb1, 0x0b);
	/* What the others see while B runs. */
	CHECK_EQ(type_of(&vm, A), 11);
	CHECK_EQ(type_of(&vm, B), 11);
	CHECK_EQ(get(&vm, TSS(B)) & 0xffff, A);
	CHECK_EQ(get(&vm, TSS(A) + 0x20), G_CODE + 12);
	CHECK_EQ(get(&vm, TSS(A) + 0x3c), 0xa1a2a3a4);
	s = vm_sregs(&vm);
	CHECK_EQ(s.cr3, OTHER_TABLES);
	CHECK_EQ(s.tr.selector, B);
	CHECK_EQ(s.tr.base, TSS(B));
	CHECK_EQ(s.tr.type, 11);
	CHECK_EQ(s.cr0 & 8, 8);
	CHECK_EQ(vm_regs(&vm).rflags & 0x4000, 0x4000);
	/* A again: AL as it was, and its own memory. */
	VM_EXPECT_BYTES(&vm, 0, 0x0a);
	CHECK_EQ(type_of(&vm, B), 9);
	CHECK_EQ(vm_regs(&vm).rflags & 0x4000, 0);
	VM_EXPECT_BYTES(&vm, 0xb1, 0x0b);	/* CALL by gate */
	VM_EXPECT_BYTES(&vm, 0xd1);		/* JMP */
	CHECK_EQ(type_of(&vm, A), 9);
	CHECK_EQ(type_of(&vm, J), 11);
	VM_EXPECT_BYTES(&vm, 0xb1, 0x0b);	/* INT */
	CHECK_EQ(type_of(&vm, A), 11);
	CHECK_EQ(type_of(&vm, J), 9);
	VM_EXPECT_BYTES(&vm, 0xe1, 0x33);	/* #UD */
	VM_EXPECT_BYTES(&vm, 0x10, 0x44);	/* #GP with its error code */
	vm_expect(&vm, KVM_EXIT_HLT);
	OK(ioctl(vm.vcpu, KVM_NMI));
	VM_EXPECT_BYTES(&vm, 0xb1, 0x0b);
	CHECK_EQ(vm_events(&vm).nmi.masked, 1);
	VM_EXPECT_BYTES(&vm, 0x55, 1);
	VM_EXPECT_BYTES(&vm, vm_regs(&vm).rflags >> 8 & 0xff);
	VM_EXPECT_BYTES(&vm, 1);
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* A TSS of 16 bits, and back by IRET and by JMP. */
GUEST32(tasks_16,
	"mov $0x12345678, %esi\n"
	"lcall $" S(C16) ", $0\n"
	"mov $0x11, %al; out %al, $0x10; ljmp $" S(C16) ", $0\n"
	"mov $0x22, %al; out %al, $0x10; cmp $0x12345678, %esi; sete %al; out %al, $0x10; hlt\n"
	".org tasks_16 + 0x140\n"
	"mov $0xc1, %al; out %al, $0x10; mov %esp, %eax; mov %ah, %al; out %al, $0x10; iret\n"
	"mov $0xc2, %al; out %al, $0x10; ljmp $" S(A) ", $0\n");

TEST(task_switches_16)
{
	struct vm vm;

	if (!is_rvmm() && !is_amd())
		skip("KVM saves a task of 16 bits as one of 32 where it goes to one of 32");
	setup(&vm, tasks_16, tasks_16_end);
	VM_EXPECT_BYTES(&vm, 0xc1, 0xda);
	CHECK_EQ(type_of(&vm, C16), 3);
	VM_EXPECT_BYTES(&vm, 0x11);
	CHECK_EQ(type_of(&vm, C16), 1);
	CHECK_EQ(vm.mem[TSS(C16) + 0x0e], 0x4b);
	VM_EXPECT_BYTES(&vm, 0xc2, 0x22, 1);
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* A segment of the new task is not there: it meets #NP, and goes on when the segment has come. */
GUEST32(task_fault,
	"lcall $" S(B) ", $0\n"
	"mov $0x11, %al; out %al, $0x10; hlt\n"
	".org task_fault + 0x100\n"
	"mov $0x22, %al; out %al, $0x10; iret\n"
	".org task_fault + 0x140\n"
	"pop %eax; out %al, $0x10; orb $0x80, %es:" S(G_GDT) "+" S(ABSENT) "+5\n"
	"mov $" S(ABSENT) ", %ax; mov %ax, %ds; iret\n");

TEST(task_fault)
{
	uint64_t gate = ((G_CODE + 0x140) & 0xffff) | (uint64_t)SEL_CODE32 << 16 | 0x8eull << 40 |
			(uint64_t)(G_CODE >> 16) << 48;
	struct vm vm;

	/* Where the processor switches tasks itself, which is QEMU's or Bochs' here. */
	if (is_tcg() || (is_amd() && is_bochs()))
		skip("the emulator shuts down");
	if (!is_rvmm() && !is_amd())
		skip("KVM's task switches do not raise the exceptions that they meet");
	setup(&vm, task_fault, task_fault_end);
	put(&vm, TSS(B) + 0x54, ABSENT);
	memcpy(vm.mem + G_IDT + 8 * 11, &gate, 8);
	VM_EXPECT_BYTES(&vm, ABSENT, 0x22, 0x11);
	vm_expect(&vm, KVM_EXIT_HLT);
}
