// SPDX-License-Identifier: GPL-2.0
/* The local APIC in the kernel: timer, HLT, priorities, IPIs, INIT and SIPI, x2APIC (SDM 3A 11). */
#define _GNU_SOURCE
#include "vm.h"
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

#define EOI 0xfee000b0

/* A VM with all interrupt controllers in the kernel and a vCPU in front of the code. */
static void new_vm(struct vm *vm, const unsigned char *code, const unsigned char *end)
{
	vm_new_irqchip(vm, 4 * MIB);
	vm_long(vm, code, end);
	vm_log(vm)->eoi = EOI;
}

#define NEW(vm, code) new_vm(vm, code, code##_end)

/* RBX: the APIC's page; software-enabled. */
#define APIC "mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx)\n"
/* Sleep until the log counts n events. */
#define SLEEP_UNTIL(n) "7: cli; cmpq $" #n ", " STR(G_LOG) "; jae 8f; sti; hlt; jmp 7b\n8: cli\n"

static void check_vectors(struct vm *vm, unsigned int n, const uint8_t *vectors)
{
	struct guest_log *log = vm_log(vm);

	CHECK_EQ(log->count, n);
	for (unsigned int i = 0; i < n && i < log->count; i++)
		if (log->event[i].vector != vectors[i])
			FAIL("event %u is vector %#llx, %#x expected", i, (unsigned long long)log->event[i].vector,
			     vectors[i]);
}

#define VECTORS(vm, ...) do {									\
	static const uint8_t vectors_[] = { __VA_ARGS__ };					\
	check_vectors(vm, ARRAY_SIZE(vectors_), vectors_);					\
} while (0)

GUEST64(one_shot,
	APIC "movl $0xb, 0x3e0(%rbx); movl $0x40, 0x320(%rbx); movl $100000000, 0x380(%rbx)\n"
	"mov 0x390(%rbx), %eax; out %eax, $0x10\n"
	SLEEP_UNTIL(1)
	"mov 0x390(%rbx), %eax; out %eax, $0x11\n"
	/* Nothing more comes. */
	"sti; mov $100000, %ecx; 1: dec %ecx; jnz 1b; cli\n"
	/* Masked: the count runs, nothing is delivered. */
	"movl $0x10041, 0x320(%rbx); movl $1000, 0x380(%rbx); sti; mov $100000, %ecx\n"
	"1: dec %ecx; jnz 1b; cli\n"
	"mov 0x390(%rbx), %eax; out %eax, $0x12\n");

TEST(timer_one_shot)
{
	uint32_t left;
	struct vm vm;

	NEW(&vm, one_shot);
	left = vm_expect_out(&vm, 0x10);
	CHECK(left > 0 && left <= 100000000);
	CHECK_EQ(vm_expect_out(&vm, 0x11), 0);
	VECTORS(&vm, 0x40);
	CHECK_EQ(vm_expect_out(&vm, 0x12), 0);
	VECTORS(&vm, 0x40);
}

GUEST64(periodic,
	APIC "movl $0xb, 0x3e0(%rbx); movl $0x20050, 0x320(%rbx); movl $1000000, 0x380(%rbx)\n"
	SLEEP_UNTIL(5)
	"movl $0, 0x380(%rbx); rdtsc; shl $32, %rdx; or %rax, %rdx; mov %rdx, " STR(G_CELLS) "\n"
	"out %al, $0x10\n");

TEST(timer_periodic)
{
	struct vm vm;

	NEW(&vm, periodic);
	vm_expect_out(&vm, 0x10);
	CHECK(vm_log(&vm)->count >= 5);
	for (int i = 0; i < 5; i++)
		CHECK_EQ(vm_log(&vm)->event[i].vector, 0x50);
}

/* What the timer counts down during a loop, with this divide configuration. */
#define DIVIDED(divide)						\
	"movl $" STR(divide) ", 0x3e0(%rbx)\n"			\
	"movl $-1, 0x380(%rbx)\n"				\
	"mov $200000, %ecx\n"					\
	"1: dec %ecx; jnz 1b\n"					\
	"mov 0x390(%rbx), %eax; not %eax\n"			\
	"out %eax, $0x10\n"

/* The divide configuration, against the TSC: 16 times slower. */
GUEST64(divided,
	APIC "movl $0x10000, 0x320(%rbx)\n"
	DIVIDED(0xb)
	DIVIDED(0x3));

TEST(timer_divide)
{
	uint32_t fast, slow;
	struct vm vm;

	NEW(&vm, divided);
	fast = vm_expect_out(&vm, 0x10);
	slow = vm_expect_out(&vm, 0x10);
	CHECK(fast > 0);
	/* Generously: others run, too. */
	CHECK(slow < fast * 4);
	note("%u ticks at 1, %u at 16", fast, slow);
}

#define TICKS_IN_RDX "rdtsc; shl $32, %rdx; or %rax, %rdx\n"
#define TICKS_IN_RAX "rdtsc; shl $32, %rdx; or %rdx, %rax\n"

GUEST64(deadline,
	APIC "movl $0x40060, 0x320(%rbx); mov $0x6e0, %ecx\n"
	/* The deadline, 50 million ticks away, is what the register says. */
	TICKS_IN_RDX
	"add $50000000, %rdx; mov %rdx, %r8\n"
	"mov %edx, %eax; shr $32, %rdx; wrmsr\n"
	"rdmsr; mov %eax, %eax; shl $32, %rdx; or %rdx, %rax\n"
	"sub %r8, %rax; out %eax, $0x10\n"
	/* The interrupt does not come before; then the timer is disarmed. */
	SLEEP_UNTIL(1)
	TICKS_IN_RDX
	"cmp %r8, %rdx; setae %al; movzbl %al, %eax; out %eax, $0x11\n"
	"rdmsr; or %edx, %eax; out %eax, $0x12\n"
	/* A deadline in the past comes at once. */
	"mov $1, %eax; xor %edx, %edx; wrmsr\n"
	SLEEP_UNTIL(2)
	/* One that is armed, RDI ticks away, and taken back does not come. */
	TICKS_IN_RAX
	"lea (%rax, %rdi), %r8\n"
	"mov %r8, %rax; mov %r8, %rdx; shr $32, %rdx; wrmsr\n"
	"xor %eax, %eax; xor %edx, %edx; wrmsr\n"
	"sti\n"
	"1: rdtsc; shl $32, %rdx; or %rdx, %rax; cmp %r8, %rax; jb 1b\n"
	"mov $4000000, %ecx\n"
	"1: sub $1, %ecx; jnz 1b\n"
	"cli; out %al, $0x13\n");

TEST(timer_deadline)
{
	struct kvm_cpuid_entry2 *e;
	struct kvm_regs r;
	struct vm vm;

	NEW(&vm, deadline);
	if (!has_extension(vm.kvm, KVM_CAP_TSC_DEADLINE_TIMER))
		skip("no TSC-deadline mode");
	struct kvm_cpuid2 *table = supported_cpuid(vm.kvm);

	e = cpuid_entry(table, 1, 0);
	e->ecx |= 1 << 24;
	OK(ioctl(vm.vcpu, KVM_SET_CPUID2, table));
	/* The bed turns to its other CPU for 100 ms at times: not between arming and taking back, please. */
	r = vm_regs(&vm);
	r.rdi = is_tcg() ? 600000000 : 20000000;
	vm_set_regs(&vm, &r);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0);
	CHECK_EQ(vm_expect_out(&vm, 0x11), 1);
	CHECK_EQ(vm_expect_out(&vm, 0x12), 0);
	vm_expect_out(&vm, 0x13);
	VECTORS(&vm, 0x60, 0x60);
}

/*
 * Deadlines RDI ticks away, one after the other, waited for in a loop and in HLT by turns; how late each came is in
 * the first cell.
 */
GUEST64(deadlines,
	APIC "movl $0x40060, 0x320(%rbx); mov $0x6e0, %ecx; mov $1, %r9d\n"
	"1:\n" TICKS_IN_RDX
	"add %rdi, %rdx; mov %rdx, %r8\n"
	"mov %edx, %eax; shr $32, %rdx; wrmsr\n"
	"sti\n"
	"2: cmp %r9, " STR(G_LOG) "; jae 3f; test $1, %r9b; jnz 2b\n"
	"cli; cmp %r9, " STR(G_LOG) "; jae 3f; sti; hlt; jmp 2b\n"
	"3:\n" TICKS_IN_RDX
	"sub %r8, %rdx; mov %rdx, " STR(G_CELLS) "\n"
	"out %al, $0x10; inc %r9; jmp 1b\n");

/* Deadlines are in the guest's ticks, whatever their rate: never early, and, others being quiet, not late. */
TEST(timer_deadline_scaled)
{
	uint64_t host, khz, late, best[2];
	struct kvm_regs r;
	struct vm vm;

	for (int i = 0; i < 3; i++) {
		NEW(&vm, deadlines);
		if (!has_extension(vm.kvm, KVM_CAP_TSC_DEADLINE_TIMER))
			skip("no TSC-deadline mode");
		struct kvm_cpuid2 *table = supported_cpuid(vm.kvm);

		cpuid_entry(table, 1, 0)->ecx |= 1 << 24;
		OK(ioctl(vm.vcpu, KVM_SET_CPUID2, table));
		host = OK(ioctl(vm.vcpu, KVM_GET_TSC_KHZ, 0));
		khz = i == 0 ? host : i == 1 ? host * 3 : host / 4;
		if (khz != host && !OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL)))
			break;
		OK(ioctl(vm.vcpu, KVM_SET_TSC_KHZ, khz));
		r = vm_regs(&vm);
		r.rdi = khz * 10;
		vm_set_regs(&vm, &r);
		best[0] = best[1] = ~0ull;
		for (int n = 0; n < 20; n++) {
			vm_expect_out(&vm, 0x10);
			CHECK_EQ(vm_log(&vm)->count, n + 1);
			late = vm_cells(&vm)[0];
			if ((int64_t)late < 0)
				FAIL("%llu ticks early at %llu kHz", -(unsigned long long)late,
				     (unsigned long long)khz);
			if (late < best[n & 1])
				best[n & 1] = late;
		}
		note("at %llu kHz late by %llu ticks in a loop, %llu in HLT", (unsigned long long)khz,
		     (unsigned long long)best[0],
		     (unsigned long long)best[1]);
		CHECK(best[0] < khz * 5 && best[1] < khz * 5);
		vm_free(&vm);
	}
}

/* HLT does not leave the kernel: signals and state changes do end it. */
GUEST64(sleeper, APIC "sti; 1: hlt; incq " STR(G_CELLS) "; jmp 1b\n");

static void on_alarm(int signal)
{
}

TEST(halted)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval timer = { .it_value.tv_usec = 50000 };
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x71 };
	struct kvm_mp_state mp;
	struct vm vm;

	NEW(&vm, sleeper);
	sigaction(SIGALRM, &action, NULL);
	for (int i = 0; i < 3; i++) {
		setitimer(ITIMER_REAL, &timer, NULL);
		CHECK_EQ(vm_try_run(&vm), EINTR);
		OK(ioctl(vm.vcpu, KVM_GET_MP_STATE, &mp));
		CHECK_EQ(mp.mp_state, KVM_MP_STATE_HALTED);
		CHECK_EQ(vm_log(&vm)->count, i);
		CHECK_EQ(vm_cells(&vm)[0], i);
		CHECK(OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &msi)) > 0);
	}
	alarm(60);
}

/*
 * An interrupt that waits for RFLAGS.IF goes on waiting while others leave the guest: for the host's timer, for
 * signals. (CLI again and again: Bochs takes none of them in a guest that was entered with IF clear, before it has
 * seen an instruction that writes the flag.)
 */
GUEST64(held_back,
	APIC "cli; out %al, $0x10\n"
	"1: cli; cmpl $0, " STR(G_CELLS) "; je 1b\n"
	"mov " STR(G_LOG) ", %eax; out %eax, $0x11\n"
	"sti; nop; cli; out %al, $0x12\n");

TEST(held_back_by_if)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval timer = { .it_value.tv_usec = 20000, .it_interval.tv_usec = 20000 };
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x71 };
	struct vm vm;

	NEW(&vm, held_back);
	vm_expect_out(&vm, 0x10);
	CHECK(OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &msi)) > 0);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(vm_try_run(&vm), EINTR);
		CHECK_EQ(vm_log(&vm)->count, 0);
	}
	alarm(60);
	vm_cells(&vm)[0] = 1;
	CHECK_EQ(vm_expect_out(&vm, 0x11), 0);
	vm_expect_out(&vm, 0x12);
	VECTORS(&vm, 0x71);
}

/*
 * The delivery of an interrupt writes to a page of the stack that is not mapped yet. What is delivered then is that
 * interrupt, and not the exception before it (SDM 3C 28.2.4).
 */
GUEST64(to_new_stack,
	APIC "cli; lea 1f(%rip), %rax; mov %rax, " STR(G_LOG) " + 8; mov $0x12345, %ecx; rdmsr\n"
	"1: mov $0x301000, %esp; movl $0x40071, 0x300(%rbx); sti; nop; cli; out %al, $0x10\n");

TEST(delivered_to_new_stack)
{
	struct vm vm;

	NEW(&vm, to_new_stack);
	vm_expect_out(&vm, 0x10);
	VECTORS(&vm, 13, 0x71);
	CHECK_EQ(vm_log(&vm)->event[1].rsp, 0x301000);
}

/* TPR and CR8 hold lower interrupts back; the higher one comes first. */
GUEST64(priorities,
	APIC "cli\n"
	"movl $0x40041, 0x300(%rbx); movl $0x40081, 0x300(%rbx)\n"
	"movl $0x40061, 0x300(%rbx)\n"	/* to itself */
	"mov 0x220(%rbx), %eax; out %eax, $0x10\n"	/* IRR 0x40 to 0x5f */
	"movl $0x50, 0x80(%rbx); sti; nop; nop; cli\n"
	"mov %cr8, %rax; out %eax, $0x11\n"
	"xor %eax, %eax; mov %rax, %cr8; sti; nop; nop; cli\n"
	"mov 0x80(%rbx), %eax; out %eax, $0x12\n");

TEST(priorities)
{
	struct vm vm;

	NEW(&vm, priorities);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 2);
	CHECK_EQ(vm_expect_out(&vm, 0x11), 5);
	VECTORS(&vm, 0x81, 0x61);
	CHECK_EQ(vm_expect_out(&vm, 0x12), 0);
	VECTORS(&vm, 0x81, 0x61, 0x41);
}

/* MOV to CR8 is the TPR at once, with and without an interrupt that waits for it. */
GUEST64(cr8,
	APIC "sti; mov $5, %eax; mov %rax, %cr8\n"
	"movl $0x40041, 0x300(%rbx); nop\n"
	"mov 0x80(%rbx), %eax; out %eax, $0x10\n"
	"mov $4, %eax; mov %rax, %cr8; nop; mov 0xa0(%rbx), %eax; out %eax, $0x11\n"	/* PPR */
	"mov $3, %eax; mov %rax, %cr8; nop; mov %cr8, %rax; out %eax, $0x12\n"
	"mov $9, %eax; mov %rax, %cr8; mov %cr8, %rax; out %eax, $0x13\n");

TEST(cr8)
{
	struct vm vm;

	NEW(&vm, cr8);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x50);
	CHECK_EQ(vm_log(&vm)->count, 0);
	CHECK_EQ(vm.run->cr8, 5);
	CHECK_EQ(vm_expect_out(&vm, 0x11), 0x40);
	CHECK_EQ(vm_log(&vm)->count, 0);
	CHECK_EQ(vm_expect_out(&vm, 0x12), 3);
	VECTORS(&vm, 0x41);
	CHECK_EQ(vm_expect_out(&vm, 0x13), 9);
	CHECK_EQ(vm.run->cr8, 9);
}

/* Without EOI nothing of the same or a lower class comes. */
GUEST64(no_eoi,
	APIC "sti\n"
	"movl $0x40065, 0x300(%rbx); nop\n"
	"movl $0x40060, 0x300(%rbx); movl $0x40041, 0x300(%rbx); nop\n"
	"movl $0x40091, 0x300(%rbx); nop\n"
	"mov 0x130(%rbx), %eax; out %eax, $0x10\n"	/* ISR 0x60 to 0x7f */
	"mov 0xa0(%rbx), %eax; out %eax, $0x11\n"	/* PPR */
	"movl $0, 0xb0(%rbx); movl $0, 0xb0(%rbx); nop\n"
	"movl $0, 0xb0(%rbx); nop\n"
	"movl $0, 0xb0(%rbx); out %al, $0x12\n");

TEST(end_of_interrupt)
{
	struct vm vm;

	NEW(&vm, no_eoi);
	vm_log(&vm)->eoi = 0;
	CHECK_EQ(vm_expect_out(&vm, 0x10), 1 << 5);
	CHECK_EQ(vm_expect_out(&vm, 0x11) & 0xf0, 0x90);
	VECTORS(&vm, 0x65, 0x91);
	vm_expect_out(&vm, 0x12);
	VECTORS(&vm, 0x65, 0x91, 0x60, 0x41);
}

/* x2APIC: registers as MSRs, self-IPI, EOI; what does not exist faults. */
GUEST64(x2apic,
	"mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr; rdmsr; out %eax, $0x10\n"
	"mov $0x80f, %ecx; mov $0x1ff, %eax; xor %edx, %edx; wrmsr\n"
	"mov $0x802, %ecx; rdmsr; out %eax, $0x11\n"			/* id */
	"mov $0x803, %ecx; rdmsr; and $0xff, %eax; out %eax, $0x11\n"
	"mov $0x80d, %ecx; rdmsr; out %eax, $0x11\n"			/* LDR */
	"sti; mov $0x83f, %ecx; mov $0x77, %eax; xor %edx, %edx; wrmsr; nop; cli\n"
	"mov $0x80b, %ecx; xor %eax, %eax; wrmsr\n"
	"sti; mov $0x830, %ecx; mov $0x78, %eax; xor %edx, %edx; wrmsr; nop; cli\n"	/* ICR, to id 0 */
	"mov $0x80b, %ecx; xor %eax, %eax; wrmsr\n"
	"out %al, $0x12\n"
	"mov $0x831, %ecx; rdmsr\n.globl x2apic_1\nx2apic_1: out %al, $0x13\n"	/* no such */
	"mov $0x1b, %ecx; rdmsr; and $~0x800, %eax\n"
	"wrmsr\n.globl x2apic_2\nx2apic_2: out %al, $0x14\n");	/* invalid change */
extern const unsigned char x2apic_1[], x2apic_2[];

TEST(x2apic)
{
	static const unsigned char *const after[] = { x2apic_1, x2apic_2 };
	struct vm vm;

	NEW(&vm, x2apic);
	vm_log(&vm)->eoi = 0;
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0xfee00d00);
	CHECK_EQ(vm_expect_out(&vm, 0x11), 0);
	CHECK(vm_expect_out(&vm, 0x11) >= 0x10);
	CHECK_EQ(vm_expect_out(&vm, 0x11), 1);
	vm_expect_out(&vm, 0x12);
	VECTORS(&vm, 0x77, 0x78);
	for (int i = 0; i < 2; i++) {
		vm_log(&vm)->resume = G_CODE + (after[i] - x2apic);
		vm_expect_out(&vm, 0x13 + i);
		CHECK_EQ(vm_log(&vm)->count, 3 + i);
		CHECK_EQ(vm_log(&vm)->event[2 + i].vector, 13);
	}
	CHECK_EQ(vm.run->apic_base, 0xfee00d00);
}

/* Another vCPU in a thread of its own. */
static void *ap_thread(void *argument)
{
	struct vm *ap = argument;

	for (;;) {
		int error = vm_try_run(ap);

		if (error == EAGAIN)
			continue;
		if (error)
			return (void *)(intptr_t)error;
		return (void *)(intptr_t)-(int)ap->run->exit_reason;
	}
}

/* INIT and SIPI start it in real mode at the vector's page. */
GUEST64(starter,
	APIC "sti; mov $1 << 24, %eax; mov %eax, 0x310(%rbx)\n"
	"movl $0xc500, 0x300(%rbx); movl $0x8500, 0x300(%rbx)\n"	/* INIT, its end */
	"movl $0x4630, 0x300(%rbx); movl $0x4630, 0x300(%rbx)\n"	/* SIPI 0x30, twice */
	"1: pause; cmpl $0x1234, " STR(G_CELLS) "; jne 1b\n"
	"out %al, $0x10\n");
GUEST16(started,
	"mov %cs, %ax; out %ax, $0x50; xor %bx, %bx; mov %bx, %ds\n"
	"movl $0x1234, %ds:(" STR(G_CELLS) ")\n"
	"mov %cr0, %eax; out %eax, $0x51\n");

static void *bsp_thread(void *argument)
{
	struct vm *vm = argument;

	vm_expect_out(vm, 0x10);
	return NULL;
}

TEST(init_sipi)
{
	pthread_t thread;
	struct kvm_mp_state mp;
	struct vm vm, ap;
	int error;

	NEW(&vm, starter);
	ap = vm_second_vcpu(&vm, 1);
	memcpy(vm.mem + 0x30000, started, started_end - started);
	OK(ioctl(ap.vcpu, KVM_GET_MP_STATE, &mp));
	CHECK_EQ(mp.mp_state, KVM_MP_STATE_UNINITIALIZED);
	REQUIRE(!pthread_create(&thread, NULL, bsp_thread, &vm));
	/* Blocks until INIT and SIPI are there, then EAGAIN. */
	while ((error = vm_try_run(&ap)) == EAGAIN)
		;
	CHECK_EQ(error, 0);
	CHECK_EQ(ap.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(ap.run->io.port, 0x50);
	CHECK_EQ(*(uint16_t *)io_data(&ap), 0x3000);
	CHECK_EQ(vm_sregs(&ap).cs.base, 0x30000);
	OK(ioctl(ap.vcpu, KVM_GET_MP_STATE, &mp));
	CHECK_EQ(mp.mp_state, KVM_MP_STATE_RUNNABLE);
	CHECK_EQ(vm_expect_out(&ap, 0x51), 0x60000010);
	pthread_join(thread, NULL);
}

/* A vCPU that waits for INIT can be interrupted by a signal, and killed. */
TEST(waiting_for_init)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval timer = { .it_value.tv_usec = 30000 };
	struct vm vm, ap;

	NEW(&vm, starter);
	ap = vm_second_vcpu(&vm, 1);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	CHECK_EQ(vm_try_run(&ap), EINTR);
	alarm(60);
}

/* A fixed IPI to a vCPU that is halted, and to one that runs. */
GUEST64(ping,
	APIC "sti; mov $1 << 24, %eax; mov %eax, 0x310(%rbx); mov $10, %ecx; xor %edx, %edx\n"
	"1: movl $0x4055, 0x300(%rbx); inc %rdx\n"
	"2: pause; cmp %rdx, " STR(G_LOG) "; jb 2b\n"
	"dec %ecx; jnz 1b\n"
	"movl $1, " STR(G_CELLS) "; movl $0x4056, 0x300(%rbx)\n"
	"out %al, $0x10\n");
GUEST64(pong, APIC "incq " STR(G_CELLS) "+8\n"
	"1: sti; hlt; cli; cmpl $0, " STR(G_CELLS) "; je 1b; out %al, $0x11\n");
GUEST64(pong_busy, APIC "incq " STR(G_CELLS) "+8; sti\n"
	"1: cmpl $0, " STR(G_CELLS) "; je 1b; out %al, $0x11\n");

static void ping_pong(const unsigned char *code, const unsigned char *end)
{
	pthread_t thread;
	struct kvm_mp_state mp = { KVM_MP_STATE_RUNNABLE };
	struct kvm_regs r;
	struct vm vm, ap;
	void *result;

	NEW(&vm, ping);
	ap = vm_second_vcpu(&vm, 1);
	memcpy(vm.mem + 0x30000, code, end - code);
	vm_long_state(&ap);
	r = vm_regs(&ap);
	r.rip = 0x30000;
	r.rsp = G_IST;
	vm_set_regs(&ap, &r);
	OK(ioctl(ap.vcpu, KVM_SET_MP_STATE, &mp));
	REQUIRE(!pthread_create(&thread, NULL, ap_thread, &ap));
	/* An APIC that is not enabled yet takes nothing. */
	while (!vm_cells(&vm)[1])
		usleep(1000);
	vm_expect_out(&vm, 0x10);
	REQUIRE(!pthread_join(thread, &result));
	CHECK_EQ((intptr_t)result, -KVM_EXIT_IO);
	CHECK_EQ(ap.run->io.port, 0x11);
	CHECK(vm_log(&vm)->count >= 10);
	for (int i = 0; i < 10; i++)
		CHECK_EQ(vm_log(&vm)->event[i].vector, 0x55);
}

TEST(ipi_to_halted)
{
	ping_pong(pong, pong_end);
}

TEST(ipi_to_running)
{
	ping_pong(pong_busy, pong_busy_end);
}

/* An NMI as a message: whatever IF says. */
GUEST64(nmi_target, APIC "cli; out %al, $0x10; nop; out %al, $0x11\n");

TEST(nmi_message)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x400 };
	struct vm vm;

	NEW(&vm, nmi_target);
	vm_expect_out(&vm, 0x10);
	CHECK(OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &msi)) > 0);
	vm_expect_out(&vm, 0x11);
	VECTORS(&vm, 2);
}

/* The APIC switched off takes nothing; KVM_GET_LAPIC shows what the guest wrote. */
GUEST64(configure, APIC "movl $0x1000000, 0xd0(%rbx); movl $0xfee, 0x350(%rbx)\n"
	"movl $0x30, 0x80(%rbx); out %al, $0x10\n");

TEST(state)
{
	struct kvm_lapic_state l;
	struct vm vm;

	NEW(&vm, configure);
	vm_expect_out(&vm, 0x10);
	OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &l));
	CHECK_EQ(*(uint32_t *)(l.regs + 0xd0), 0x1000000);
	CHECK_EQ(*(uint32_t *)(l.regs + 0x80), 0x30);
	CHECK_EQ(*(uint32_t *)(l.regs + 0xf0), 0x1ff);
	CHECK_EQ(vm.run->cr8, 3);
	CHECK_EQ(*(uint32_t *)(l.regs + 0x30) & 0xff, 0x14);
}

/*
 * HLT that does not exit (api.rst 7.13): the processor waits, and user space is not told. (In a loop: in Bochs an exit
 * ends it.)
 */
GUEST64(native_sleeper, APIC "sti; 1: hlt; jmp 1b; out %al, $0x10\n");
#define AWAKE (G_CODE + (native_sleeper_end - native_sleeper) - 2)

/* Puts the vCPU in front of the HLT and lets it wait there until a signal comes. */
static void sleep_natively(struct vm *vm)
{
	struct itimerval timer = { .it_value.tv_usec = 50000 };

	VM_LONG(vm, native_sleeper);
	setitimer(ITIMER_REAL, &timer, NULL);
	REQUIRE_EQ(vm_try_run(vm), EINTR);
}

TEST(native_hlt)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_DISABLE_EXITS, .args = { KVM_X86_DISABLE_EXITS_HLT } };
	struct kvm_msi init = { .address_lo = 0xfee01000, .data = 0x500 };
	struct kvm_msi sipi = { .address_lo = 0xfee01000, .data = 0x630 };
	struct sigaction action = { .sa_handler = on_alarm };
	struct kvm_mp_state mp = { KVM_MP_STATE_RUNNABLE };
	struct kvm_vcpu_events e;
	struct kvm_regs r;
	struct vm vm;
	int error;

	vm_init_irqchip(&vm, 4 * MIB);
	if (!(OK(ioctl(vm.fd, KVM_CHECK_EXTENSION, cap.cap)) & KVM_X86_DISABLE_EXITS_HLT))
		skip("HLT has to exit here");
	OK(ioctl(vm.fd, KVM_ENABLE_CAP, &cap));
	vm_add_vcpu(&vm, 0);
	vm = vm_second_vcpu(&vm, 1);
	OK(ioctl(vm.vcpu, KVM_SET_MP_STATE, &mp));
	sigaction(SIGALRM, &action, NULL);

	/* An exception that user space injects. Its handler goes on behind the loop. */
	sleep_natively(&vm);
	vm_log(&vm)->resume = AWAKE;
	e = vm_events(&vm);
	e.exception.injected = 1;
	e.exception.nr = 6;
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	vm_expect_out(&vm, 0x10);
	VECTORS(&vm, 6);

	/* INIT and SIPI. */
	sleep_natively(&vm);
	memcpy(vm.mem + 0x30000, started, started_end - started);
	CHECK(OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &init)) > 0);
	CHECK(OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &sipi)) > 0);
	alarm(10);
	while ((error = vm_try_run(&vm)) == EAGAIN)
		;
	REQUIRE_EQ(error, 0);
	CHECK_EQ(vm.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(vm.run->io.port, 0x50);
	vm_expect_out(&vm, 0x51);

	/* Other registers. Stock KVM on Intel goes on waiting then. */
	if (is_rvmm() || is_amd()) {
		sleep_natively(&vm);
		r = vm_regs(&vm);
		r.rip = AWAKE;
		vm_set_regs(&vm, &r);
		alarm(10);
		vm_expect_out(&vm, 0x10);
	}
	alarm(60);
}

/* Accesses to the TPR's register that user space wants to know, in order to patch them away. */
GUEST64(tpr_accesses,
	"mov $0xfee00080, %edi; mov (%rdi), %eax; movl $0x20, (%rdi); mov (%rdi), %eax; out %al, $0x10; hlt\n");

static void expect_tpr_access(struct vm *vm, uint64_t offset, unsigned int write)
{
	vm_expect(vm, KVM_EXIT_TPR_ACCESS);
	CHECK_EQ(vm->run->tpr_access.rip, G_CODE + offset);
	CHECK_EQ(vm->run->tpr_access.is_write, write);
}

TEST(tpr_reports)
{
	struct kvm_tpr_access_ctl control = { .enabled = 1, .flags = 1 };
	struct vm vm;

	if (!is_amd())
		skip("the processor may keep the TPR");
	VM_NEW_LONG_IRQCHIP(&vm, tpr_accesses);
	CHECK_EQ(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_VAPIC), 1);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_TPR_ACCESS_REPORTING, &control), EINVAL);
	control.flags = 0;
	OK(ioctl(vm.vcpu, KVM_TPR_ACCESS_REPORTING, &control));
	expect_tpr_access(&vm, 5, 0);
	/* The access is done. */
	CHECK_EQ(vm_regs(&vm).rip, G_CODE + 7);
	expect_tpr_access(&vm, 7, 1);
	expect_tpr_access(&vm, 13, 0);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x20);
	/* Not any more. */
	control.enabled = 0;
	OK(ioctl(vm.vcpu, KVM_TPR_ACCESS_REPORTING, &control));
	struct kvm_regs r = vm_regs(&vm);

	r.rip = G_CODE;
	vm_set_regs(&vm, &r);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x20);
}

/* The task priority in memory. */
GUEST64(vapic_guest,
	"mov $" STR(G_CELLS) ", %edi; movb $0x50, (%rdi); out %al, $0x10; sti; out %al, $0x11; out %al, $0x12\n"
	"movb $0, (%rdi); out %al, $0x13; nop; nop; out %al, $0x14; hlt\n");

TEST(vapic)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x45 };
	struct kvm_vapic_addr addr = { .vapic_addr = 1ull << 40 };
	struct kvm_lapic_state lapic;
	volatile uint32_t *word;
	struct vm vm;

	VM_NEW_LONG_IRQCHIP(&vm, vapic_guest);
	vm_enable_lapic(&vm);
	word = (volatile uint32_t *)vm_cells(&vm);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_VAPIC_ADDR, &addr), EINVAL);
	addr.vapic_addr = G_CELLS;
	OK(ioctl(vm.vcpu, KVM_SET_VAPIC_ADDR, &addr));
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm.run->cr8, 5);
	OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &lapic));
	CHECK_EQ(*(uint32_t *)(lapic.regs + 0x80), 0x50);
	/* It holds an interrupt back, and the guest finds which. */
	OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &msi));
	vm_expect_out(&vm, 0x11);
	vm_expect_out(&vm, 0x12);
	CHECK_EQ(vm_log(&vm)->count, 0);
	CHECK_EQ(*word, 0x45000050);
	vm_expect_out(&vm, 0x13);
	vm_expect_out(&vm, 0x14);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 0x45);
	/* Switched off, the word is the guest's own. */
	addr.vapic_addr = 0;
	OK(ioctl(vm.vcpu, KVM_SET_VAPIC_ADDR, &addr));
	struct kvm_regs r = vm_regs(&vm);

	r.rip = G_CODE;
	vm_set_regs(&vm, &r);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm.run->cr8, 0);
}
