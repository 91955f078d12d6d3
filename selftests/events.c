// SPDX-License-Identifier: GPL-2.0
/* Exceptions, interrupts and NMIs on their way into a guest, without interrupt controllers in the kernel. */
#define _GNU_SOURCE
#include "vm.h"

static void interrupt(struct vm *vm, unsigned int vector)
{
	struct kvm_interrupt irq = { vector };

	OK(ioctl(vm->vcpu, KVM_INTERRUPT, &irq));
}

static void load_vm(struct vm *vm, const unsigned char *code, const unsigned char *end)
{
	vm_new(vm, 4 * MIB);
	vm_long(vm, code, end);
}

#define LOAD(vm, code) load_vm(vm, code, code##_end)

static void check_event(struct vm *vm, unsigned int i, unsigned int vector, uint64_t error, uint64_t rip)
{
	struct guest_event *e = &vm_log(vm)->event[i];

	if (vm_log(vm)->count <= i) {
		FAIL("event %u (vector %u) has not come", i, vector);
		return;
	}
	if (e->vector != vector || e->error != error || (rip && e->rip != rip))
		FAIL("event %u is vector %llu, error %#llx at %#llx; vector %u, error %#llx at %#llx expected", i,
		     (unsigned long long)e->vector, (unsigned long long)e->error, (unsigned long long)e->rip, vector,
		     (unsigned long long)error, (unsigned long long)rip);
}

/* Interrupts by KVM_INTERRUPT. */

GUEST64(interruptible,
	"out %al, $0x10; sti; nop; out %al, $0x11; cli; out %al, $0x12; sti; nop; hlt; hlt\n");

TEST(interrupt)
{
	struct vm vm;

	LOAD(&vm, interruptible);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm.run->if_flag, 0);
	CHECK_EQ(vm.run->ready_for_interrupt_injection, 0);
	vm_expect_out(&vm, 0x11);
	CHECK_EQ(vm.run->if_flag, 1);
	CHECK_EQ(vm.run->ready_for_interrupt_injection, 1);
	interrupt(&vm, 0x41);
	vm_expect_out(&vm, 0x12);
	CHECK_EQ(vm_log(&vm)->count, 1);
	check_event(&vm, 0, 0x41, 0, G_CODE + 6);
	if (!is_rvmm())
		return;	/* KVM injects what it is given, whatever IF says */
	/* Not while IF is 0; taken as soon as it is 1. */
	interrupt(&vm, 0xff);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 2);
	check_event(&vm, 1, 0xff, 0, 0);
	CHECK(vm_log(&vm)->event[1].rflags & 0x200);
}

/*
 * An exception beside an interrupt or an NMI, each on its way already: the exception comes first, and the other is not
 * lost. KVM keeps both until it enters the guest.
 */
static void check_beside(bool nmi)
{
	struct kvm_vcpu_events e;
	struct vm vm;

	LOAD(&vm, interruptible);
	vm_expect_out(&vm, 0x10);
	vm_expect_out(&vm, 0x11);
	e = vm_events(&vm);
	e.exception.injected = 1;
	e.exception.nr = 6;
	e.nmi.injected = e.nmi.masked = nmi;
	e.interrupt.injected = !nmi;
	e.interrupt.nr = nmi ? 0 : 0x41;
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	e = vm_events(&vm);
	CHECK_EQ(e.exception.injected, 1);
	CHECK_EQ(e.exception.nr, 6);
	CHECK_EQ(e.nmi.injected, nmi);
	CHECK_EQ(e.nmi.masked, nmi);
	CHECK_EQ(e.nmi.pending, 0);
	CHECK_EQ(e.interrupt.injected, !nmi);
	if (!nmi)
		CHECK_EQ(e.interrupt.nr, 0x41);
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	vm_expect_out(&vm, 0x12);
	/* The NMI interrupts the exception's handler before that writes the log. */
	check_event(&vm, nmi && is_rvmm(), 6, 0, G_CODE + 6);
	if (is_rvmm()) {
		check_event(&vm, !nmi, nmi ? 2 : 0x41, 0, 0);
		CHECK_EQ(vm_log(&vm)->count, 2);
	}
	e = vm_events(&vm);
	CHECK(!e.exception.injected && !e.nmi.injected && !e.interrupt.injected && !e.nmi.masked);
}

TEST(beside_an_exception)
{
	check_beside(false);
	check_beside(true);
}

TEST(interrupt_window)
{
	struct vm vm;

	LOAD(&vm, interruptible);
	vm_expect_out(&vm, 0x10);
	vm.run->request_interrupt_window = 1;
	vm_expect(&vm, KVM_EXIT_IRQ_WINDOW_OPEN);
	CHECK_EQ(vm.run->ready_for_interrupt_injection, 1);
	CHECK_EQ(vm.run->if_flag, 1);
	/* After STI and the instruction in its shadow. */
	CHECK_EQ(vm_regs(&vm).rip, G_CODE + 4);
	interrupt(&vm, 0x50);
	vm.run->request_interrupt_window = 0;
	vm_expect_out(&vm, 0x11);
	check_event(&vm, 0, 0x50, 0, G_CODE + 4);
	/* Asked for while open: at once. */
	vm.run->request_interrupt_window = 1;
	vm_expect(&vm, KVM_EXIT_IRQ_WINDOW_OPEN);
	vm.run->request_interrupt_window = 0;
	vm_expect_out(&vm, 0x12);
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* STI and MOV SS hold interrupts back for one instruction. */
GUEST64(sti_shadow, "cli; out %al, $0x10; sti; out %al, $0x11; nop; hlt\n");
GUEST64(mov_ss_shadow,
	"mov %ss, %eax; cli; out %al, $0x10; sti; nop\n"
	"mov %eax, %ss; out %al, $0x11; nop; hlt\n");

TEST(sti_shadow)
{
	struct vm vm;

	if (!is_rvmm())
		skip("KVM injects what it is given");
	LOAD(&vm, sti_shadow);
	vm_expect_out(&vm, 0x10);
	interrupt(&vm, 0x60);
	vm_expect_out(&vm, 0x11);
	CHECK_EQ(vm_log(&vm)->count, 0);
	vm_expect(&vm, KVM_EXIT_HLT);
	check_event(&vm, 0, 0x60, 0, G_CODE + 6);
}

TEST(mov_ss_shadow)
{
	struct kvm_vcpu_events e;
	struct vm vm;

	if (!is_rvmm())
		skip("KVM injects what it is given");
	LOAD(&vm, mov_ss_shadow);
	vm_expect_out(&vm, 0x10);
	vm_expect_out(&vm, 0x11);
	/* The OUT has used the shadow up. */
	e = vm_events(&vm);
	vm_expect(&vm, KVM_EXIT_HLT);
	e = vm_events(&vm);
	CHECK_EQ(e.interrupt.shadow, 0);
	/* Put in from outside: an interrupt waits for one more instruction. */
	struct kvm_regs r = vm_regs(&vm);

	r.rip = G_CODE + (mov_ss_shadow_end - mov_ss_shadow) - 2;	/* nop; hlt */
	r.rflags |= 0x200;
	vm_set_regs(&vm, &r);
	e.interrupt.shadow = KVM_X86_SHADOW_INT_MOV_SS;
	e.flags = KVM_VCPUEVENT_VALID_SHADOW;
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	CHECK_EQ(vm.run->ready_for_interrupt_injection, 1);
	interrupt(&vm, 0x61);
	vm_expect(&vm, KVM_EXIT_HLT);
	check_event(&vm, 0, 0x61, 0, r.rip + 1);
}

/* An event whose delivery itself meets memory that is not there yet: it must not be lost, nor come twice. */
GUEST64(cold_stack, "1: hlt; jmp 1b; int3; jmp 1b\n");

TEST(cold_delivery)
{
	uint8_t *pages = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_regs r;
	struct kvm_sregs s;
	struct vm vm;

	LOAD(&vm, cold_stack);
	vm_expect(&vm, KVM_EXIT_HLT);
	madvise(pages, 16 * 4096, MADV_NOHUGEPAGE);
	vm_slot(&vm, 1, 0, 0x800000, 16 * 4096, pages);
	/*
	 * Page 8 holds a copy of the IDT, page 4 of the handlers' stubs: untouched by the guest until the event
	 * comes.
	 */
	memcpy(pages + 8 * 4096, vm.mem + G_IDT, 4096);
	for (unsigned int i = 0; i < 4; i++) {
		struct kvm_guest_debug d = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP };
		uint64_t rip = G_CODE, next = G_CODE;
		struct kvm_vcpu_events e;

		if (i == 3) {
			if (!is_rvmm() && !is_amd())
				break;	/* KVM knows no length of an INT3 that has not exited */
			rip = G_CODE + 3;
			next = rip + 1;
		}

		for (int j = 0; j < 16; j++)
			if (j != 8)
				REQUIRE(!madvise(pages + j * 4096, 4096, MADV_DONTNEED));
		/* Move the IDT's page away and back: what the guest had mapped is gone, the content is not. */
		uint8_t *copy = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		memcpy(copy, vm.mem + G_IDT, 4096);
		REQUIRE(mremap(copy, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, pages + 8 * 4096) == pages + 8 * 4096);
		r = vm_regs(&vm);
		s = vm_sregs(&vm);
		s.idt.base = 0x808000;
		vm_set_sregs(&vm, &s);
		/* The frame of 48 bytes lies across two pages. */
		r.rsp = 0x802020;
		r.rip = rip;
		r.rflags = 0x202;
		vm_set_regs(&vm, &r);
		switch (i) {
		case 0:
			interrupt(&vm, 0x70);
			break;
		case 1:
			OK(ioctl(vm.vcpu, KVM_NMI, 0));
			break;
		case 2:
			e = vm_events(&vm);
			e.exception.injected = 1;
			e.exception.nr = 13;
			e.exception.has_error_code = 1;
			e.exception.error_code = 0x1234;
			e.flags = 0;
			OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
			break;
		case 3:
			OK(ioctl(vm.vcpu, KVM_SET_GUEST_DEBUG, &d));
			break;
		}
		vm_expect(&vm, KVM_EXIT_HLT);
		CHECK_EQ(vm_log(&vm)->count, i + 1);
		check_event(&vm, i, i == 0 ? 0x70 : i == 1 ? 2 : i == 2 ? 13 : 3, i == 2 ? 0x1234 : 0, next);
		CHECK_EQ(vm_regs(&vm).rsp, 0x802020);
		e = vm_events(&vm);
		CHECK(!e.exception.injected && !e.interrupt.injected && !e.nmi.injected && !e.nmi.pending &&
		      !e.nmi.masked);
	}
}

/* INT n and INT3, the same way: they must not be skipped, nor done twice. */
GUEST64(cold_software,
	"int $0x80; mov $1, %r8d; int3; mov $2, %r9d; hlt\n");

TEST(cold_software_interrupt)
{
	uint8_t *pages = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_regs r;
	struct vm vm;

	LOAD(&vm, cold_software);
	madvise(pages, 16 * 4096, MADV_NOHUGEPAGE);
	vm_slot(&vm, 1, 0, 0x800000, 16 * 4096, pages);
	r = vm_regs(&vm);
	r.rsp = 0x802020;
	vm_set_regs(&vm, &r);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 2);
	check_event(&vm, 0, 0x80, 0, G_CODE + 2);
	check_event(&vm, 1, 3, 0, G_CODE + 2 + 6 + 1);
	r = vm_regs(&vm);
	CHECK_EQ(r.r8, 1);
	CHECK_EQ(r.r9, 2);
	CHECK_EQ(r.rsp, 0x802020);
}

/* NMIs: at once, whatever IF says; not again until IRET; one more is kept. */
GUEST64(nmi_guest,
	"out %al, $0x10; nop; out %al, $0x11; hlt; hlt\n"
	/* At +0x100: a handler of its own for vector 2 */
	"9: .skip 0x100-(9b-nmi_guest), 0x90\n"
	"push %rax; incq " STR(G_CELLS) "; mov " STR(G_CELLS) ", %rax\n"
	"out %al, $0x20; out %al, $0x21; pop %rax; iretq\n");

static void nmi_handler(struct vm *vm)
{
	vm_gate(vm, 2, 0, G_CODE + 0x100);
}

TEST(nmi)
{
	struct vm vm;

	LOAD(&vm, nmi_guest);
	nmi_handler(&vm);
	vm_expect_out(&vm, 0x10);
	OK(ioctl(vm.vcpu, KVM_NMI, 0));
	CHECK_EQ(vm_expect_out(&vm, 0x20) & 0xff, 1);
	CHECK_EQ(vm_events(&vm).nmi.masked, 1);
	/* Inside the handler: two more, of which one is kept. */
	OK(ioctl(vm.vcpu, KVM_NMI, 0));
	OK(ioctl(vm.vcpu, KVM_NMI, 0));
	CHECK_EQ(vm_events(&vm).nmi.pending, 1);
	CHECK_EQ(vm_expect_out(&vm, 0x21) & 0xff, 1);
	CHECK_EQ(vm_cells(&vm)[0], 1);
	/* After IRET the second one comes, before the next instruction of the program. */
	CHECK_EQ(vm_expect_out(&vm, 0x20) & 0xff, 2);
	vm_expect_out(&vm, 0x21);
	vm_expect_out(&vm, 0x11);
	CHECK_EQ(vm_cells(&vm)[0], 2);
	CHECK_EQ(vm_events(&vm).nmi.masked, 0);
	CHECK_EQ(vm_events(&vm).nmi.pending, 0);
	vm_expect(&vm, KVM_EXIT_HLT);
	/* HLT without interrupts enabled ends with an NMI, too. */
	OK(ioctl(vm.vcpu, KVM_NMI, 0));
	vm_expect_out(&vm, 0x20);
	vm_expect_out(&vm, 0x21);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rip, G_CODE + 7);
}

/* An NMI and an interrupt at the same time: NMI first. */
TEST(nmi_and_interrupt)
{
	struct kvm_regs r;
	struct vm vm;

	LOAD(&vm, nmi_guest);
	nmi_handler(&vm);
	vm_expect_out(&vm, 0x10);
	r = vm_regs(&vm);
	r.rflags |= 0x200;
	vm_set_regs(&vm, &r);
	OK(ioctl(vm.vcpu, KVM_NMI, 0));
	interrupt(&vm, 0x44);
	vm_expect_out(&vm, 0x20);
	CHECK_EQ(vm_log(&vm)->count, 0);
	vm_expect_out(&vm, 0x21);
	vm_expect_out(&vm, 0x11);
	check_event(&vm, 0, 0x44, 0, 0);
	CHECK_EQ(vm_cells(&vm)[0], 1);
}

/* An NMI that comes with an exception: right behind it. The exception's frame is as if it had come alone. */
TEST(nmi_and_exception)
{
	struct kvm_vcpu_events e;
	struct vm vm;

	LOAD(&vm, nmi_guest);
	nmi_handler(&vm);
	for (unsigned int i = 0; i < 2; i++) {
		vm_expect_out(&vm, 0x10 + i);
		e = vm_events(&vm);
		e.exception.injected = 1;
		e.exception.nr = 13;
		e.exception.has_error_code = 1;
		e.exception.error_code = 0x10;
		e.nmi.pending = 1;
		e.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
		OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
		CHECK_EQ(vm_expect_out(&vm, 0x20) & 0xff, i + 1);
		CHECK_EQ(vm_log(&vm)->count, i);
		vm_expect_out(&vm, 0x21);
	}
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 2);
	check_event(&vm, 0, 13, 0x10, 0);
	check_event(&vm, 1, 13, 0x10, 0);
	/* No single step of the hypervisor's. */
	CHECK_EQ(vm_log(&vm)->event[0].rflags & 0x100, 0);
	CHECK_EQ(vm_log(&vm)->event[1].rflags & 0x100, 0);
}

/* Exceptions that the guest causes: vector, error code, address. */

static void faults(const char *what, const char *bytes, size_t n, struct kvm_regs r, unsigned int vector,
		   uint64_t error, uint64_t cr2,
		   int after)
{
	struct guest_log *log;
	struct vm vm;

	vm_new(&vm, 4 * MIB);
	vm_long(&vm, (const unsigned char *)bytes, (const unsigned char *)bytes + n);
	vm.mem[G_CODE + n] = 0xf4;
	/* From 32 MiB on: not present, read-only, user, reserved bits. */
	uint64_t *pd = (uint64_t *)(vm.mem + G_PD0);

	pd[16] = 0;
	pd[17] = 0x81;
	pd[18] = 0x87 | 1ull << 51 | 1ull << 50;
	log = vm_log(&vm);
	log->resume = G_CODE + n;
	r.rip = G_CODE;
	r.rsp = G_STACK;
	r.rflags = 2;
	vm_set_regs(&vm, &r);
	vm_expect(&vm, KVM_EXIT_HLT);
	if (log->count != 1 || log->event[0].vector != vector || log->event[0].error != error ||
	    log->event[0].rip != G_CODE + after ||
	    (vector == 14 && log->event[0].cr2 != cr2))
		FAIL("%s: %llu events, vector %llu, error %#llx, rip %#llx, cr2 %#llx", what,
		     (unsigned long long)log->count,
		     (unsigned long long)log->event[0].vector, (unsigned long long)log->event[0].error,
		     (unsigned long long)log->event[0].rip, (unsigned long long)log->event[0].cr2);
	vm_free(&vm);
}

#define FAULTS(what, bytes, vector, error, cr2, after, ...) \
	faults(what, bytes, sizeof(bytes) - 1, (struct kvm_regs) { __VA_ARGS__ }, vector, error, cr2, after)

TEST(exceptions)
{
	FAULTS("#DE", "\xf7\xf1", 0, 0, 0, 0, .rcx = 0);
	FAULTS("INT3", "\xcc", 3, 0, 0, 1, .rax = 0);
	FAULTS("INT 0x30", "\xcd\x30", 0x30, 0, 0, 2, .rax = 0);
	FAULTS("INT1", "\xf1", 1, 0, 0, 1, .rax = 0);
	FAULTS("#UD", "\x0f\x0b", 6, 0, 0, 0, .rax = 0);
	FAULTS("#GP selector", "\x8e\xd8", 13, 0xfff8 & 0xfffc, 0, 0, .rax = 0xfff8);
	FAULTS("#GP not canonical", "\x8b\x03", 13, 0, 0, 0, .rbx = 0x800000000000);
	FAULTS("#PF read", "\x8b\x03", 14, 0, 0x2000123, 0, .rbx = 0x2000123);
	FAULTS("#PF write", "\x89\x03", 14, 2, 0x2000456, 0, .rbx = 0x2000456);
	FAULTS("#PF read-only", "\x89\x03", 14, 3, 0x2200000, 0, .rbx = 0x2200000);
	FAULTS("#PF upper half", "\x8b\x03", 14, 0, 0xffff800000000000, 0, .rbx = 0xffff800000000000);
	/* The emulated AMD CPU has a #GP here, and no P in the error code there. */
	if (is_tcg())
		return;
	FAULTS("#SS not canonical", "\x8b\x45\x00", 12, 0, 0, 0, .rbp = 0x800000000000);
	FAULTS("#PF reserved bit", "\x8b\x03", 14, 9, 0x2400000, 0, .rbx = 0x2400000);
}

/* #AC: ring 3, CR0.AM, EFLAGS.AC. */
GUEST64(alignment,
	"mov $" STR(SEL_TSS) ", %eax; ltr %ax\n"
	"push $" STR(SEL_USER_DATA) "; push $" STR(G_STACK) "-0x2000\n"
	"push $0x40002; push $" STR(SEL_USER_CODE64) "\n"
	"lea 1f(%rip), %rax; push %rax; iretq\n"
	"1: mov " STR(G_DATA) "+1, %eax; 2: jmp 2b\n");

TEST(alignment_check)
{
	struct kvm_sregs s;
	uint64_t halt;
	struct vm vm;

	if (is_tcg())
		skip("no alignment checks on the emulated AMD CPU");
	LOAD(&vm, alignment);
	((uint64_t *)(vm.mem + G_GDT))[SEL_TSS >> 3] &= ~(2ull << 40);
	s = vm_sregs(&vm);
	s.cr0 |= 1 << 18;
	vm_set_sregs(&vm, &s);
	/* The gate goes to an HLT. */
	halt = G_CODE + 0x500;
	vm.mem[halt] = 0xf4;
	vm_gate(&vm, 17, 0, halt);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rip, halt + 1);
	CHECK_EQ(*(uint64_t *)(vm.mem + G_STACK - 0x1000 - 48), 0);
	CHECK_EQ(*(uint64_t *)(vm.mem + G_STACK - 0x1000 - 40), G_CODE + (alignment_end - alignment) - 9);
}

/* A fault while delivering a fault is #DF; a fault then is shutdown. */
GUEST64(double_fault, "mov $0x2000000, %esp; ud2; hlt\n");

TEST(double_fault)
{
	uint64_t *idt, halt;
	struct vm vm;

	LOAD(&vm, double_fault);
	((uint64_t *)(vm.mem + G_PD0))[16] = 0;
	((uint64_t *)(vm.mem + G_PD0))[15] = 0;
	/* #DF on its own stack. */
	idt = (uint64_t *)(vm.mem + G_IDT);
	halt = G_CODE + 0x500;
	vm.mem[halt] = 0xf4;
	idt[16] = (halt & 0xffff) | (uint64_t)SEL_CODE64 << 16 | 0x8e01ull << 32 | (halt >> 16) << 48;
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rip, halt + 1);
	CHECK_EQ(vm_regs(&vm).rsp, G_IST - 48);
	CHECK_EQ(*(uint64_t *)(vm.mem + G_IST - 48), 0);
	CHECK_EQ(*(uint64_t *)(vm.mem + G_IST - 40), G_CODE + 5);
}

/* Without a stack for #DF there is a triple fault. */
TEST(triple_fault)
{
	struct vm vm;

	LOAD(&vm, double_fault);
	((uint64_t *)(vm.mem + G_PD0))[16] = 0;
	((uint64_t *)(vm.mem + G_PD0))[15] = 0;
	vm_expect(&vm, KVM_EXIT_SHUTDOWN);
}

/* An exception from outside while the stack is bad: contributory, so #DF. */
TEST(double_fault_injected)
{
	struct kvm_vcpu_events e;
	struct kvm_regs r;
	uint64_t *idt, halt;
	struct vm vm;

	LOAD(&vm, cold_stack);
	((uint64_t *)(vm.mem + G_PD0))[16] = 0;
	idt = (uint64_t *)(vm.mem + G_IDT);
	halt = G_CODE + 0x500;
	vm.mem[halt] = 0xf4;
	idt[16] = (halt & 0xffff) | (uint64_t)SEL_CODE64 << 16 | 0x8e01ull << 32 | (halt >> 16) << 48;
	r = vm_regs(&vm);
	r.rsp = 0x2000800;
	vm_set_regs(&vm, &r);
	e = vm_events(&vm);
	e.exception.injected = 1;
	e.exception.nr = 14;
	e.exception.has_error_code = 1;
	e.exception.error_code = 2;
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rip, halt + 1);
	CHECK_EQ(vm_regs(&vm).rsp, G_IST - 48);
}

/* Single steps: one #DB after each instruction, also those that exit. */
GUEST64(single_step,
	"pushfq; orq $0x100, (%rsp); popfq\n"
	"nop; cpuid; mov %cr0, %rax; out %al, $0x10; nop\n"
	"pushfq; andq $~0x100, (%rsp); popfq; hlt\n");

TEST(single_step)
{
	static const int rips[] = { 11, 13, 16, 18, 19, 20, 28 };
	struct guest_log *log;
	struct vm vm;

	LOAD(&vm, single_step);
	log = vm_log(&vm);
	vm_expect_out(&vm, 0x10);
	vm_expect(&vm, KVM_EXIT_HLT);
	for (unsigned int i = 0; i < log->count && i < 20; i++) {
		CHECK_EQ(log->event[i].vector, 1);
		CHECK(log->event[i].dr6 & 1 << 14);
		if (i < ARRAY_SIZE(rips) && log->event[i].rip != G_CODE + rips[i])
			FAIL("step %u at +%lld, +%d expected", i, (long long)(log->event[i].rip - G_CODE), rips[i]);
	}
	/* The POPF that ends it is itself not followed by one, or is, by one. */
	CHECK(log->count == ARRAY_SIZE(rips) || log->count == ARRAY_SIZE(rips) + 1);
}

/* Breakpoints on instructions and data. */
GUEST64(breakpoints,
	"nop; nop; mov %eax, " STR(G_DATA) "; nop; mov " STR(G_DATA) "+8, %eax; nop; hlt\n");

TEST(breakpoints)
{
	struct kvm_debugregs d = { .db = { G_CODE + 1, G_DATA, G_DATA + 8 }, .dr6 = 0xffff0ff0 };
	struct guest_log *log;
	struct vm vm;

	LOAD(&vm, breakpoints);
	log = vm_log(&vm);
	/* 0: execute; 1: write, 4 bytes; 2: read or write, 4 bytes. All global. */
	d.dr7 = 0x400 | 2 | 8 | 0x20 | 0xdull << 20 | 0xfull << 24;
	OK(ioctl(vm.vcpu, KVM_SET_DEBUGREGS, &d));
	/* The handler must set RF, else the first would repeat: go on behind it instead. */
	log->resume = G_CODE + 2;
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(log->count, 3);
	check_event(&vm, 0, 1, 0, G_CODE + 1);
	check_event(&vm, 1, 1, 0, G_CODE + 2 + 7);
	check_event(&vm, 2, 1, 0, G_CODE + 2 + 7 + 1 + 7);
	CHECK_EQ(log->event[0].dr6 & 0xf, 1);
	CHECK_EQ(log->event[1].dr6 & 2, 2);
	CHECK_EQ(log->event[2].dr6 & 4, 4);
}

/*
 * #DB and #AC that repeat during delivery must not hold the host up (CVE-2015-5307, CVE-2015-8104): a signal still
 * ends KVM_RUN.
 */
#include <signal.h>
#include <sys/time.h>

static void on_alarm(int signal)
{
}

/* Data breakpoint on the stack that #DB's own frame is written to. */
GUEST64(db_storm, "sti; mov $" STR(G_DATA) "+0x800, %esp; push %rax; 1: jmp 1b\n");

TEST(debug_storm)
{
	struct kvm_debugregs d = { .db = { G_DATA + 0x7f8 - 16 }, .dr6 = 0xffff0ff0, .dr7 = 0x400 | 2 | 0x9ull << 16 };
	struct itimerval timer = { .it_value.tv_usec = 300000 };
	struct kvm_debugregs all = d;
	struct vm vm;
	int error;

	if (is_tcg())
		skip("ends the emulator");
	LOAD(&vm, db_storm);
	((uint8_t *)(vm.mem + G_IDT))[16 + 5] = 0x8f;	/* a trap gate: interrupts stay on */
	for (int i = 0; i < 4; i++)
		all.db[i] = G_DATA + 0x7f8 - 8 * i;
	all.dr7 = 0x400 | 0xaa | 0x9999ull << 16;
	OK(ioctl(vm.vcpu, KVM_SET_DEBUGREGS, &all));
	signal(SIGALRM, SIG_DFL);
	struct sigaction action = { .sa_handler = on_alarm };

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	error = vm_try_run(&vm);
	CHECK(error == EINTR || (error == 0 && vm.run->exit_reason == KVM_EXIT_SHUTDOWN));
}
