// SPDX-License-Identifier: GPL-2.0
/* How KVM_RUN ends early: immediate_exit, signals; and who may call it (api.rst 4.10, 5). */
#define _GNU_SOURCE
#include "vm.h"
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

/*
 * Interrupts on: the emulated Intel CPU does not leave a guest for an external interrupt while the guest has them
 * off.
 */
GUEST64(spin, "sti; 1: incq " STR(G_CELLS) "; jmp 1b\n");
GUEST64(port_in,
	"mov $-1, %eax; in $0x40, %al; mov %eax, %ebx\n"
	"in $0x41, %ax; mov %eax, %ecx; hlt\n");
GUEST64(mmio_ops,
	"mov $" STR(G_MMIO) ", %ebx; mov (%rbx), %ecx\n"
	"add %ecx, 8(%rbx); mov 0xffe(%rbx), %edx; hlt\n");
GUEST64(port_out, "mov $0x77, %al; out %al, $0x40; hlt\n");

static volatile sig_atomic_t signals;

static void on_signal(int signal)
{
	signals++;
}

static void handle(int number)
{
	struct sigaction action = { .sa_handler = on_signal };

	REQUIRE(!sigaction(number, &action, NULL));
}

TEST(immediate_exit)
{
	struct vm vm;

	VM_NEW_LONG(&vm, spin);
	vm.run->immediate_exit = 1;
	for (int i = 0; i < 3; i++)
		CHECK_EQ(vm_try_run(&vm), EINTR);
	CHECK_EQ(vm_regs(&vm).rip, G_CODE);
	CHECK_EQ(vm_cells(&vm)[0], 0);
}

/* What the last exit left open is finished first. */
TEST(completion)
{
	struct kvm_run *run;
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, port_in);
	run = vm.run;
	vm_expect(&vm, KVM_EXIT_IO);
	*(uint8_t *)io_data(&vm) = 0x12;
	run->immediate_exit = 1;
	CHECK_EQ(vm_try_run(&vm), EINTR);
	r = vm_regs(&vm);
	CHECK_EQ(r.rax, 0xffffff12);
	CHECK_EQ(r.rip, G_CODE + 7);
	/* The data is taken once only. */
	*(uint8_t *)io_data(&vm) = 0x99;
	CHECK_EQ(vm_try_run(&vm), EINTR);
	CHECK_EQ(vm_regs(&vm).rax, 0xffffff12);
	run->immediate_exit = 0;
	vm_expect(&vm, KVM_EXIT_IO);
	CHECK_EQ(vm_regs(&vm).rbx, 0xffffff12);
	*(uint16_t *)io_data(&vm) = 0x3456;
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rcx, 0xffff3456);
}

TEST(completion_out)
{
	struct vm vm;

	VM_NEW_LONG(&vm, port_out);
	vm_expect(&vm, KVM_EXIT_IO);
	vm.run->immediate_exit = 1;
	CHECK_EQ(vm_try_run(&vm), EINTR);
	CHECK_EQ(vm_regs(&vm).rip, G_CODE + 4);
	vm.run->immediate_exit = 0;
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* An instruction with several accesses goes on from exit to exit, whatever immediate_exit says, until it is done. */
TEST(completion_mmio)
{
	struct kvm_run *run;
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, mmio_ops);
	run = vm.run;
	vm_expect(&vm, KVM_EXIT_MMIO);
	*(uint32_t *)run->mmio.data = 7;
	run->immediate_exit = 1;
	CHECK_EQ(vm_try_run(&vm), EINTR);
	r = vm_regs(&vm);
	CHECK_EQ(r.rcx, 7);
	CHECK_EQ(r.rip, G_CODE + 7);
	run->immediate_exit = 0;
	/* ADD exits for its read and for its write. */
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK(!run->mmio.is_write);
	*(uint32_t *)run->mmio.data = 100;
	run->immediate_exit = 1;
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK(run->mmio.is_write);
	CHECK_EQ(*(uint32_t *)run->mmio.data, 107);
	CHECK_EQ(vm_try_run(&vm), EINTR);
	CHECK_EQ(vm_regs(&vm).rip, G_CODE + 10);
	run->immediate_exit = 0;
	/* A read across pages exits once for each half. */
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(run->mmio.len, 2);
	*(uint16_t *)run->mmio.data = 0x1111;
	run->immediate_exit = 1;
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(run->mmio.len, 2);
	*(uint16_t *)run->mmio.data = 0x2222;
	CHECK_EQ(vm_try_run(&vm), EINTR);
	CHECK_EQ(vm_regs(&vm).rdx, 0x22221111);
	run->immediate_exit = 0;
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* A signal ends a guest that never exits. */
TEST(timer_signal)
{
	struct itimerval timer = { .it_value.tv_usec = 50000 };
	struct vm vm;
	uint64_t before;

	VM_NEW_LONG(&vm, spin);
	handle(SIGALRM);
	for (int i = 0; i < 3; i++) {
		before = vm_cells(&vm)[0];
		setitimer(ITIMER_REAL, &timer, NULL);
		CHECK_EQ(vm_try_run(&vm), EINTR);
		CHECK_EQ(vm.run->exit_reason, KVM_EXIT_INTR);
		CHECK_EQ(signals, i + 1);
		CHECK(vm_cells(&vm)[0] > before);
	}
	alarm(60);
}

/* Clock ticks that this process' guests have run: field 43 of /proc/self/stat (proc(5)). */
static unsigned long guest_time(void)
{
	char line[1024] = "", *field;
	FILE *file = fopen("/proc/self/stat", "r");

	REQUIRE(file && fgets(line, sizeof(line), file));
	fclose(file);
	/* The second field, a name in parentheses, may have blanks. */
	field = strrchr(line, ')');
	for (int i = 2; field && i < 43; i++)
		field = strchr(field + 1, ' ');
	REQUIRE(field);
	return strtoul(field, NULL, 10);
}

/* The time of a guest is accounted as such, and that of the task outside is not. */
TEST(guest_time)
{
	struct itimerval timer = { .it_value.tv_usec = 50000 };
	unsigned long before, after;
	struct vm vm;

	VM_NEW_LONG(&vm, spin);
	handle(SIGALRM);
	for (int i = 0; i < 400 && guest_time() < 5; i++) {
		setitimer(ITIMER_REAL, &timer, NULL);
		CHECK_EQ(vm_try_run(&vm), EINTR);
	}
	CHECK(guest_time() >= 5);
	before = guest_time();
	signals = 0;
	timer.it_value.tv_usec = 500000;
	setitimer(ITIMER_REAL, &timer, NULL);
	while (!signals)
		;
	after = guest_time();
	CHECK_EQ(after, before);
	alarm(60);
}

static void *spin_thread(void *argument)
{
	struct vm *vm = argument;
	int error = vm_try_run(vm);

	return (void *)(intptr_t)(error == EINTR && vm->run->exit_reason == KVM_EXIT_INTR ? 0 : 1000 + error);
}

static void wait_running(struct vm *vm)
{
	uint64_t before = vm_cells(vm)[0];

	for (int i = 0; i < 20000 && vm_cells(vm)[0] == before; i++)
		usleep(200);
	CHECK(vm_cells(vm)[0] != before);
}

/* KVM_RUN in a thread of its own, kicked by a signal to that thread; state is read from the first thread. */
TEST(thread_signal)
{
	pthread_t thread;
	struct vm vm;
	void *result;

	VM_NEW_LONG(&vm, spin);
	handle(SIGUSR1);
	for (int i = 0; i < 5; i++) {
		REQUIRE(!pthread_create(&thread, NULL, spin_thread, &vm));
		wait_running(&vm);
		REQUIRE(!pthread_kill(thread, SIGUSR1));
		REQUIRE(!pthread_join(thread, &result));
		CHECK_EQ((intptr_t)result, 0);
		CHECK(vm_regs(&vm).rip < G_CODE + 32);
	}
}

/* immediate_exit from another thread, with a signal, leaves no window: set before the signal, seen at the next run. */
TEST(kick_before_run)
{
	pthread_t thread;
	struct vm vm;
	void *result;

	VM_NEW_LONG(&vm, spin);
	handle(SIGUSR1);
	vm.run->immediate_exit = 1;
	REQUIRE(!pthread_create(&thread, NULL, spin_thread, &vm));
	REQUIRE(!pthread_join(thread, &result));
	CHECK_EQ((intptr_t)result, 1000 + EINTR);	/* not KVM_EXIT_INTR: nothing interrupted it */
}

/* An ioctl on a running vCPU waits until KVM_RUN returns. */
static void *regs_thread(void *argument)
{
	struct vm *vm = argument;

	return (void *)(uintptr_t)vm_regs(vm).rip;
}

TEST(ioctl_waits)
{
	pthread_t runner, reader;
	struct vm vm;
	void *result;

	VM_NEW_LONG(&vm, spin);
	handle(SIGUSR1);
	REQUIRE(!pthread_create(&runner, NULL, spin_thread, &vm));
	wait_running(&vm);
	REQUIRE(!pthread_create(&reader, NULL, regs_thread, &vm));
	usleep(20000);
	CHECK(pthread_tryjoin_np(reader, &result) == EBUSY);
	REQUIRE(!pthread_kill(runner, SIGUSR1));
	REQUIRE(!pthread_join(runner, &result));
	REQUIRE(!pthread_join(reader, &result));
	CHECK((uintptr_t)result >= G_CODE && (uintptr_t)result < G_CODE + 32);
}

/* A blocked signal does not end KVM_RUN; a pending one that is not blocked does, at once. */
TEST(blocked_signal)
{
	sigset_t set;
	struct vm vm;

	VM_NEW_LONG(&vm, port_out);
	handle(SIGUSR1);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	REQUIRE(!sigprocmask(SIG_BLOCK, &set, NULL));
	raise(SIGUSR1);
	vm_expect(&vm, KVM_EXIT_IO);
	REQUIRE(!sigprocmask(SIG_UNBLOCK, &set, NULL));
	CHECK_EQ(signals, 1);
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* A guest that spins until it is killed, for module.sh: this is no test, and runs only by name. */
TEST_NAMED(hold)
{
	struct vm vm;

	VM_NEW_LONG(&vm, spin);
	for (;;)
		vm_try_run(&vm);
}
