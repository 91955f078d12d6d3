// SPDX-License-Identifier: GPL-2.0
/* Debugging of guests from user space: KVM_SET_GUEST_DEBUG and KVM_EXIT_DEBUG (api.rst 4.87). */
#define _GNU_SOURCE
#include "vm.h"
#include <pthread.h>

#define CONTROLS (KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_USE_SW_BP | \
		  KVM_GUESTDBG_INJECT_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_BLOCKIRQ)

#define DR6_NONE 0xffff0ff0ull
#define DR6_BD (1ull << 13)
#define DR6_BS (1ull << 14)
#define DR7_GD (1ull << 13)
#define TF 0x100ull
#define IF 0x200ull

static int debug_control(struct vm *vm, uint32_t control, uint64_t dr0, uint64_t dr7)
{
	struct kvm_guest_debug d = { .control = control };

	d.arch.debugreg[0] = dr0;
	d.arch.debugreg[7] = dr7;
	return ioctl(vm->vcpu, KVM_SET_GUEST_DEBUG, &d);
}

static void debug_set(struct vm *vm, uint32_t control, uint64_t dr0, uint64_t dr7)
{
	OK(debug_control(vm, control, dr0, dr7));
}

static void step_on(struct vm *vm)
{
	debug_set(vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, 0, 0);
}

static void debug_off(struct vm *vm)
{
	debug_set(vm, 0, 0, 0);
}

/* KVM_RUN ends with KVM_EXIT_DEBUG in front of the instruction at `pc`. */
static void expect_debug(struct vm *vm, unsigned int exception, uint64_t pc, uint64_t dr6)
{
	vm_expect(vm, KVM_EXIT_DEBUG);
	CHECK_EQ(vm->run->debug.arch.exception, exception);
	CHECK_EQ(vm->run->debug.arch.pc, pc);
	if (exception == 1)
		CHECK_EQ(vm->run->debug.arch.dr6, dr6);
}

static void expect_step(struct vm *vm, uint64_t pc)
{
	expect_debug(vm, 1, pc, DR6_NONE | DR6_BS);
}

TEST(capabilities)
{
	int kvm = device_open();

	CHECK_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_SET_GUEST_DEBUG), 1);
	CHECK_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_ROBUST_SINGLESTEP), 1);
	CHECK_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_SET_GUEST_DEBUG2), CONTROLS);
}

/* Every instruction by itself, those that run in the kernel's software and in user space included. */
GUEST64(steps,
	"nop\n"					/* 0 */
	"mov $1, %eax\n"			/* 1 */
	"xor %ecx, %ecx\n"			/* 6 */
	"cpuid\n"				/* 8 */
	"mov $0xc0000080, %ecx\n"		/* 10 */
	"rdmsr\n"				/* 15 */
	"wrmsr\n"				/* 17 */
	"out %al, $0x10\n"			/* 19 */
	"mov %cr4, %rax\n"			/* 21 */
	"mov %dr7, %rax\n"			/* 24 */
	"mov " STR(G_MMIO) ", %ebx\n"		/* 27 */
	"incl " STR(G_CELLS) "\n"		/* 34 */
	"jmp 1f\n"				/* 41 */
	"nop; nop\n"
	"1: hlt\n");				/* 45 */

TEST(step)
{
	static const unsigned int at[] = { 1, 6, 8, 10, 15, 17, 19, 21, 24, 27, 34, 41, 45 };
	struct vm vm;

	VM_NEW_LONG(&vm, steps);
	step_on(&vm);
	for (unsigned int i = 0; i < ARRAY_SIZE(at); i++) {
		if (at[i] == 21) {
			vm_expect_out(&vm, 0x10);
		} else if (at[i] == 34) {
			vm_expect(&vm, KVM_EXIT_MMIO);
			*(uint32_t *)vm.run->mmio.data = 0x1234;
		}
		/* A load of a device register ends the step of KVM's emulator in the middle: it forgets TF. */
		if (i)
			step_on(&vm);
		expect_step(&vm, G_CODE + at[i]);
		CHECK_EQ(vm_regs(&vm).rip, G_CODE + at[i]);
		CHECK_EQ(vm_regs(&vm).rflags & TF, 0);
	}
	CHECK_EQ(vm_regs(&vm).rbx, 0x1234);
	CHECK_EQ(vm_cells(&vm)[0], 1);
	debug_off(&vm);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 0);
	CHECK_EQ(vm_regs(&vm).rflags & TF, 0);
}

/* Off again before the first instruction; registers written while a step is asked for. */
TEST(step_withdrawn)
{
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, steps);
	step_on(&vm);
	debug_off(&vm);
	CHECK_EQ(vm_regs(&vm).rflags & TF, 0);
	vm_expect_out(&vm, 0x10);
	step_on(&vm);
	r = vm_regs(&vm);
	vm_set_regs(&vm, &r);
	expect_step(&vm, G_CODE + 21);
	r = vm_regs(&vm);
	r.rip = G_CODE + 41;
	vm_set_regs(&vm, &r);
	step_on(&vm);
	expect_step(&vm, G_CODE + 45);
	/* Without KVM_GUESTDBG_ENABLE nothing is on. */
	debug_set(&vm, KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP, 0, 0);
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* STI and MOV SS: the step after them ends after one instruction, not before it. */
GUEST64(shadow,
	"mov %ss, %eax\n"	/* 0 */
	"sti\n"			/* 2 */
	"nop\n"			/* 3 */
	"mov %eax, %ss\n"	/* 4 */
	"nop\n"			/* 6 */
	"nop\n"			/* 7 */
	"hlt\n");		/* 8 */

TEST(step_shadow)
{
	struct vm vm;

	VM_NEW_LONG(&vm, shadow);
	step_on(&vm);
	expect_step(&vm, G_CODE + 2);
	expect_step(&vm, G_CODE + 3);
	expect_step(&vm, G_CODE + 4);
	/* The trap of MOV SS itself is held back until after the next instruction. */
	vm_expect(&vm, KVM_EXIT_DEBUG);
	CHECK(vm.run->debug.arch.pc == G_CODE + 6 || vm.run->debug.arch.pc == G_CODE + 7);
	if (vm.run->debug.arch.pc == G_CODE + 6)
		expect_step(&vm, G_CODE + 7);
	expect_step(&vm, G_CODE + 8);
	debug_off(&vm);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 0);
}

/* Interrupts wait for as long as they are held. */
GUEST64(interruptible, "sti; nop; nop; nop; hlt\n");

TEST(block_interrupts)
{
	struct kvm_interrupt irq = { 0x41 };
	struct vm vm;

	VM_NEW_LONG(&vm, interruptible);
	debug_set(&vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ, 0, 0);
	expect_step(&vm, G_CODE + 1);
	expect_step(&vm, G_CODE + 2);
	if (!is_rvmm()) {
		debug_off(&vm);	/* KVM injects what KVM_INTERRUPT gives it */
		vm_expect(&vm, KVM_EXIT_HLT);
		return;
	}
	OK(ioctl(vm.vcpu, KVM_INTERRUPT, &irq));
	OK(ioctl(vm.vcpu, KVM_NMI, 0));
	expect_step(&vm, G_CODE + 3);
	expect_step(&vm, G_CODE + 4);
	CHECK_EQ(vm_log(&vm)->count, 0);
	debug_off(&vm);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 2);
}

/* Held interrupts are also those of the local APIC, which the processor may deliver by itself. */
GUEST64(interruptible_apic, "sti; nop; nop; nop; out %al, $0x10; hlt\n");

TEST(block_interrupts_of_apic)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x51 };
	struct vm vm;

	VM_NEW_LONG_IRQCHIP(&vm, interruptible_apic);
	vm_enable_lapic(&vm);
	debug_set(&vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ, 0, 0);
	expect_step(&vm, G_CODE + 1);
	expect_step(&vm, G_CODE + 2);
	REQUIRE_EQ(ioctl(vm.fd, KVM_SIGNAL_MSI, &msi), 1);
	expect_step(&vm, G_CODE + 3);
	expect_step(&vm, G_CODE + 4);
	CHECK_EQ(vm_log(&vm)->count, 0);
	debug_off(&vm);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 0x51);
	CHECK_EQ(vm_log(&vm)->event[0].rip, G_CODE + 4);
}

/* Held interrupts are also those that come while the guest runs. */
GUEST64(busy,
	"sti; 1: incq " STR(G_CELLS) "; cmpq $0, " STR(G_CELLS) "+8\n"
	"je 1b; out %al, $0x10; nop; nop; out %al, $0x11\n");

static void *run_busy(void *argument)
{
	vm_expect_out(argument, 0x10);
	return NULL;
}

TEST(block_interrupts_while_running)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x51 };
	pthread_t thread;
	struct vm vm;

	VM_NEW_LONG_IRQCHIP(&vm, busy);
	vm_enable_lapic(&vm);
	debug_set(&vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_BLOCKIRQ, 0, 0);
	REQUIRE(!pthread_create(&thread, NULL, run_busy, &vm));
	for (int i = 0; i < 5; i++) {
		uint64_t turns = vm_cells(&vm)[0];

		while (vm_cells(&vm)[0] < turns + 1000)
			usleep(1000);
		REQUIRE(OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &msi)) >= 0);
	}
	vm_cells(&vm)[1] = 1;
	pthread_join(thread, NULL);
	CHECK_EQ(vm_log(&vm)->count, 0);
	debug_off(&vm);
	vm_expect_out(&vm, 0x11);
	CHECK_EQ(vm_log(&vm)->count, 1);
}

/* Breakpoints in debug registers: code and data. The guest's own registers are not touched. */
GUEST64(points,
	"mov $0x1111, %eax\n"			/* 0 */
	"mov %rax, %dr0\n"			/* 5 */
	"nop\n"					/* 8 */
	"mov %eax, " STR(G_CELLS) "\n"		/* 9 */
	"nop\n"					/* 16 */
	"mov " STR(G_CELLS) ", %ebx\n"		/* 17 */
	"mov %dr0, %rcx\n"			/* 24 */
	"mov %dr7, %rdx\n"			/* 27 */
	"hlt\n");				/* 30 */

TEST(hardware_breakpoints)
{
	struct kvm_debugregs d;
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, points);
	debug_set(&vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, G_CODE + 8, 0x402);
	expect_debug(&vm, 1, G_CODE + 8, DR6_NONE | 1);
	CHECK_EQ(vm.run->debug.arch.dr7, 0x402);
	OK(ioctl(vm.vcpu, KVM_GET_DEBUGREGS, &d));
	CHECK_EQ(d.db[0], 0x1111);
	CHECK_EQ(d.dr7, 0x400);
	CHECK_EQ(d.dr6 & 0xf, 0);
	/* Writes of four bytes. */
	debug_set(&vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, G_CELLS, 0x000d0402);
	expect_debug(&vm, 1, G_CODE + 16, DR6_NONE | 1);
	CHECK_EQ(vm_cells(&vm)[0], 0x1111);
	/* Reads and writes. */
	debug_set(&vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, G_CELLS, 0x000f0402);
	expect_debug(&vm, 1, G_CODE + 24, DR6_NONE | 1);
	d.db[1] = 0x2222;
	OK(ioctl(vm.vcpu, KVM_SET_DEBUGREGS, &d));
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.rcx, 0x1111);
	CHECK_EQ(r.rdx, 0x400);
	debug_off(&vm);
	OK(ioctl(vm.vcpu, KVM_GET_DEBUGREGS, &d));
	CHECK_EQ(d.db[0], 0x1111);
	CHECK_EQ(d.db[1], 0x2222);
	CHECK_EQ(vm_log(&vm)->count, 0);
}

/* Accesses to debug registers, by DR7.GD. */
TEST(general_detect)
{
	struct vm vm;

	VM_NEW_LONG(&vm, points);
	if (!is_rvmm() && is_amd())
		skip("KVM's emulator looks at the guest's DR7");
	debug_set(&vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, 0, 0x400 | DR7_GD);
	expect_debug(&vm, 1, G_CODE + 5, DR6_NONE | DR6_BD);
	debug_off(&vm);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rcx, 0x1111);
}

/* INT3, in the three modes. */
GUEST64(int3_long, "nop; int3; nop; hlt\n");
GUEST32(int3_prot, "nop; int3; nop; hlt\n");

static void software(struct vm *vm)
{
	struct kvm_regs r;

	if (is_tcg())
		skip("QEMU's SVM does not intercept INT3");
	debug_set(vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP, 0, 0);
	expect_debug(vm, 3, G_CODE + 1, 0);
	r = vm_regs(vm);
	CHECK_EQ(r.rip, G_CODE + 1);
	/* As a debugger does: the instruction behind it, then on. */
	r.rip++;
	vm_set_regs(vm, &r);
	vm_expect(vm, KVM_EXIT_HLT);
}

TEST(software_breakpoint)
{
	struct vm vm;

	VM_NEW_LONG(&vm, int3_long);
	software(&vm);
	CHECK_EQ(vm_log(&vm)->count, 0);
}

TEST(software_breakpoint_32)
{
	struct vm vm;

	vm_new(&vm, 4 * MIB);
	VM_PROT(&vm, int3_prot);
	software(&vm);
}

/*
 * A breakpoint of the guest's own goes back to it, by KVM_GUESTDBG_INJECT_BP or by KVM_SET_VCPU_EVENTS; it is a trap.
 */
TEST(breakpoint_of_the_guest)
{
	struct kvm_vcpu_events e;

	if (is_tcg())
		skip("QEMU's SVM does not intercept INT3");
	for (int by_events = 0; by_events < 2; by_events++) {
		struct vm vm;

		VM_NEW_LONG(&vm, int3_long);
		debug_set(&vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP, 0, 0);
		expect_debug(&vm, 3, G_CODE + 1, 0);
		if (by_events) {
			e = vm_events(&vm);
			e.exception.injected = 1;
			e.exception.nr = 3;
			OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
		} else {
			debug_set(&vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_INJECT_BP, 0, 0);
		}
		vm_expect(&vm, KVM_EXIT_HLT);
		CHECK_EQ(vm_log(&vm)->count, 1);
		CHECK_EQ(vm_log(&vm)->event[0].vector, 3);
		CHECK_EQ(vm_log(&vm)->event[0].rip, G_CODE + 2);
		vm_free(&vm);
	}
}

TEST(inject)
{
	struct vm vm;

	VM_NEW_LONG(&vm, int3_long);
	debug_set(&vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB, 0, 0);
	CHECK_ERRNO(debug_control(&vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB, 0, 0), EBUSY);
	CHECK_ERRNO(debug_control(&vm, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP, 0, 0), EBUSY);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 2);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 1);
	CHECK_EQ(vm_log(&vm)->event[0].rip, G_CODE);
	CHECK_EQ(vm_log(&vm)->event[0].dr6, DR6_NONE);
	CHECK_EQ(vm_log(&vm)->event[1].vector, 3);
}

/* The guest single-steps itself, nobody debugs it: nothing of this is seen. */
GUEST64(own_step,
	"pushf; orl $0x100, (%rsp); popf; nop; cpuid\n"
	"pushf; andl $~0x100, (%rsp); popf; hlt\n");

TEST(guest_steps_itself)
{
	struct vm vm;

	VM_NEW_LONG(&vm, own_step);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK(vm_log(&vm)->count >= 4);
	for (unsigned int i = 0; i < vm_log(&vm)->count && i < 4; i++) {
		CHECK_EQ(vm_log(&vm)->event[i].vector, 1);
		CHECK_EQ(vm_log(&vm)->event[i].dr6, DR6_NONE | DR6_BS);
	}
}

/* A breakpoint of the guest's own goes to another place, and takes effect there alone. */
GUEST64(moved_point,
	"movl $1, " STR(G_CELLS) "; mov $" STR(G_CELLS) ", %eax; mov %rax, %dr0\n"
	"mov $0xd0402, %eax; mov %rax, %dr7; mov $" STR(G_CELLS) "+8, %eax; mov %rax, %dr0\n"
	"movl $2, " STR(G_CELLS) "; nop; movl $3, " STR(G_CELLS) "+8; nop; mov %dr0, %rcx\n"
	"mov $0x400, %eax; mov %rax, %dr7; movl $4, " STR(G_CELLS) "+8; hlt\n");

TEST(guest_moves_breakpoint)
{
	struct vm vm;

	VM_NEW_LONG(&vm, moved_point);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 1);
	CHECK_EQ(vm_log(&vm)->event[0].dr6, DR6_NONE | 1);
	CHECK_EQ(vm_regs(&vm).rcx, G_CELLS + 8);
	CHECK_EQ(vm_cells(&vm)[0], 2);
	CHECK_EQ(vm_cells(&vm)[1], 4);
}

TEST(bad_pointer)
{
	struct vm vm;

	VM_NEW_LONG(&vm, steps);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_GUEST_DEBUG, (void *)8), EFAULT);
	/* Unknown bits are ignored, without KVM_GUESTDBG_ENABLE all are. */
	debug_set(&vm, 0x8000000 | KVM_GUESTDBG_SINGLESTEP, 0, 0);
	vm_expect_out(&vm, 0x10);
}
