/* SPDX-License-Identifier: GPL-2.0 */
/* A guest that makes use of all that there is of a machine, and all that user space can read of it. */
#ifndef WHOLE_H
#define WHOLE_H

#include "vm.h"

#define PAGES		50
#define PAGE		4096
#define G_PAGES		0x100000	/* what guests write to */
#define G_PV		0x200000	/* paravirtual pages */
#define MEMORY		(4 * MIB)

#define MSR_LSTAR		0xc0000082
#define MSR_KERNEL_GS_BASE	0xc0000102

/* Adds up the first words of PAGES pages and adds 1 to each. */
#define WRITE_PAGES									\
	"mov $" STR(G_PAGES) ", %edi; mov $" STR(PAGES) ", %ecx\n"			\
	"8: add (%rdi), %rbp; incq (%rdi); add $" STR(PAGE) ", %rdi; loop 8b\n"

/* Adds MSR `index` to the sum and 64 to it. */
#define USE_MSR(index)									\
	"mov $" STR(index) ", %ecx; rdmsr; add %eax, %ebp; add $64, %eax; wrmsr\n"

#define SET_MSR(index, value)								\
	"mov $" STR(index) ", %ecx; mov $" STR(value) ", %eax; xor %edx, %edx; wrmsr\n"

/* Sums up what there is of state, and changes all of it. */
GUEST64(everything,
	"mov $0xfee00000, %ebx; mov $0x1234567, %eax; movq %rax, %xmm3; fninit; fld1\n"
	"out %al, $0x10\n"
	"xor %ebp, %ebp\n" WRITE_PAGES
	"movq %xmm3, %rax; add %rax, %rbp; paddq %xmm3, %xmm3; movq %rax, %xmm5\n"
	"fld1; faddp; fists " STR(G_CELLS) "; add " STR(G_CELLS) ", %ebp\n"
	USE_MSR(MSR_LSTAR) USE_MSR(MSR_KERNEL_GS_BASE) USE_MSR(0x174)
	"mov $0x250, %ecx; rdmsr; add %eax, %ebp\n" SET_MSR(0x250, 0x06060606)
	"mov $0x277, %ecx; rdmsr; add %eax, %ebp\n" SET_MSR(0x277, 0x00070401)
	"mov %dr0, %rax; add %rax, %rbp; inc %rax; mov %rax, %dr0\n"
	"mov %cr8, %rax; add %rax, %rbp; mov $5, %eax; mov %rax, %cr8\n"
	"mov %cr4, %rax; add %rax, %rbp; xor $4, %rax; mov %rax, %cr4\n"	/* TSD */
	"mov %cr2, %rax; add %rax, %rbp; movq $0x777, %rax; mov %rax, %cr2\n"
	/* The local APIC: timer far away, an interrupt of its own that waits, another vector for errors. */
	"add 0x370(%rbx), %ebp; movl $0x10055, 0x370(%rbx); movl $0x35, 0x320(%rbx); movl $0x7fffffff, 0x380(%rbx)\n"
	"add 0x210(%rbx), %ebp; movl $0x40031, 0x300(%rbx)\n"
	"add 0x80(%rbx), %ebp\n"
	/* 8254, 8259, IOAPIC. */
	"in $0x21, %al; add %al, %bpl; xor $0xff, %al; out %al, $0x21\n"
	"mov $0x34, %al; out %al, $0x43; mov $0x11, %al; out %al, $0x40; out %al, $0x40\n"
	"mov $0xfec00000, %esi; movl $0x12, (%rsi); add 0x10(%rsi), %ebp; movl $0x1a5a5, 0x10(%rsi)\n"
	/* Pages that the hypervisor writes. */
	"add " STR(G_PV) ", %ebp; add " STR(G_PV) " + 0x1000, %ebp; add " STR(G_PV) " + 0x2000, %ebp\n"
	"add " STR(G_PV) " + 0x3000, %ebp\n"
	SET_MSR(0x4b564d00, G_PV) SET_MSR(0x4b564d01, G_PV + 0x1001) SET_MSR(0x4b564d03, G_PV + 0x2001)
	SET_MSR(0x4b564d04, G_PV + 0x3001)
	"mov %ebp, %eax; out %eax, $0x11\n"
	/* An interrupt, which may be ended in memory. */
	"xor %eax, %eax; mov %rax, %cr8; sti; nop; nop; cli\n"
	"out %al, $0x12; hlt\n");

/* All that user space can read of a VM with one vCPU, but for what time changes. */
struct blob {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_debugregs debugregs;
	struct kvm_fpu fpu;
	struct kvm_xsave xsave;
	struct kvm_xcrs xcrs;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp;
	struct kvm_lapic_state lapic;
	struct kvm_irqchip chip[3];
	struct kvm_pit_state2 pit;
	uint64_t msr[512];
	uint8_t run[PAGE];
	uint64_t memory;
};

/* The memory of `vm` becomes the first 2 MiB of what it was, in one page if the host gives it one. */
static __attribute__((unused)) void make_huge(struct vm *vm)
{
	const uint64_t bytes = 2 * MIB;
	uint8_t *area = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(area != MAP_FAILED);
	area = (uint8_t *)(((uintptr_t)area + bytes - 1) & -bytes);
	madvise(area, bytes, MADV_HUGEPAGE);
	memcpy(area, vm->mem, bytes);
	vm_slot(vm, 0, 0, 0, 0, vm->mem);
	vm_slot(vm, 0, 0, 0, bytes, area);
	vm->mem = area;
	vm->bytes = bytes;
}

static __attribute__((unused)) uint64_t vm_clock(struct vm *vm)
{
	struct kvm_clock_data data = { 0 };

	OK(ioctl(vm->fd, KVM_GET_CLOCK, &data));
	return data.clock;
}

/* A thread that runs a guest once. */
static __attribute__((unused)) void *halted(void *vm)
{
	vm_try_run(vm);
	return NULL;
}

static __attribute__((unused)) uint64_t checksum(struct vm *vm)
{
	uint64_t sum = 0;

	for (uint64_t *p = (uint64_t *)vm->mem; p < (uint64_t *)(vm->mem + vm->bytes); p++)
		sum = sum * 0x9e3779b97f4a7c15 + *p;
	return sum;
}

static __attribute__((unused)) void read_blob(struct vm *vm, struct blob *b, bool chips)
{
	struct {
		struct kvm_msr_list header;
		uint32_t index[512];
	} list = { .header.nmsrs = 512 };

	memset(b, 0, sizeof(*b));
	OK(ioctl(vm->vcpu, KVM_GET_REGS, &b->regs));
	OK(ioctl(vm->vcpu, KVM_GET_SREGS, &b->sregs));
	OK(ioctl(vm->vcpu, KVM_GET_DEBUGREGS, &b->debugregs));
	OK(ioctl(vm->vcpu, KVM_GET_FPU, &b->fpu));
	OK(ioctl(vm->vcpu, KVM_GET_XSAVE, &b->xsave));
	OK(ioctl(vm->vcpu, KVM_GET_XCRS, &b->xcrs));
	OK(ioctl(vm->vcpu, KVM_GET_VCPU_EVENTS, &b->events));
	OK(ioctl(vm->vcpu, KVM_GET_MP_STATE, &b->mp));
	if (chips) {
		OK(ioctl(vm->vcpu, KVM_GET_LAPIC, &b->lapic));
		memset(b->lapic.regs + 0x390, 0, 4);	/* current count */
		for (int i = 0; i < 3; i++) {
			b->chip[i].chip_id = i;
			OK(ioctl(vm->fd, KVM_GET_IRQCHIP, &b->chip[i]));
		}
		OK(ioctl(vm->fd, KVM_GET_PIT2, &b->pit));
		for (int i = 0; i < 3; i++)
			b->pit.channels[i].count_load_time = 0;
		/* Its line goes by time. */
		b->chip[0].chip.pic.irr &= ~1;
		b->chip[0].chip.pic.last_irr &= ~1;
		b->chip[2].chip.ioapic.irr &= ~5;
	}
	OK(ioctl(vm->kvm, KVM_GET_MSR_INDEX_LIST, &list));
	for (unsigned int i = 0; i < list.header.nmsrs; i++)
		/* Not those that count: TSC, Hyper-V's run time and reference time. */
		if (list.index[i] != 0x10 && list.index[i] != 0x40000010 && list.index[i] != 0x40000020)
			get_msr(vm, list.index[i], &b->msr[i]);
	memcpy(b->run, vm->run, PAGE);
	b->memory = checksum(vm);
}

static size_t difference(const void *a, const void *b, size_t bytes)
{
	size_t n = 0;

	while (n < bytes && ((const uint8_t *)a)[n] == ((const uint8_t *)b)[n])
		n++;
	return n;
}

#define SAME(a, b, part) do {									\
	if (memcmp(&(a)->part, &(b)->part, sizeof((a)->part)))					\
		FAIL("round %d: %s differs, at %zu", round, #part,				\
		     difference(&(a)->part, &(b)->part, sizeof((a)->part)));			\
} while (0)

static __attribute__((unused)) void compare(const struct blob *a, const struct blob *b, int round)
{
	SAME(a, b, regs);
	SAME(a, b, sregs);
	SAME(a, b, debugregs);
	SAME(a, b, fpu);
	SAME(a, b, xsave);
	SAME(a, b, xcrs);
	SAME(a, b, events);
	SAME(a, b, mp);
	SAME(a, b, lapic);
	SAME(a, b, chip);
	SAME(a, b, pit);
	SAME(a, b, msr);
	SAME(a, b, run);
	SAME(a, b, memory);
}

#endif
