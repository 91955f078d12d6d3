// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that comes when the guest accesses it: rvmm's own way (uapi/rvmm.h), and faults on what is there.
 * lazy_userfault.c has Linux's way.
 */
#define _GNU_SOURCE
#include "lazy.h"
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01
#define MSR_KVM_STEAL_TIME 0x4b564d03
#define MSR_KVM_PV_EOI_EN 0x4b564d04

static uint8_t *anonymous(void)
{
	uint8_t *m = mmap(NULL, TEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(m != MAP_FAILED);
	madvise(m, TEST_BYTES, MADV_NOHUGEPAGE);
	return m;
}

static bool there(void *page)
{
	unsigned char v = 0;

	return !mincore(page, 4096, &v) && (v & 1);
}

static void enable(struct vm *vm)
{
	if (!has_extension(vm->kvm, RVMM_CAP_MISSING))
		skip("no RVMM_CAP_MISSING");
	OK(enable_cap(vm->fd, RVMM_CAP_MISSING, 1));
}

/* A VM whose memory in TEST_SLOT reports what is missing. */
static void reporting_vm(struct vm *vm, void *memory)
{
	lazy_vm(vm, 0, memory);
	enable(vm);
	vm_slot(vm, TEST_SLOT, RVMM_MEM_MISSING, TEST_GPA, TEST_BYTES, memory);
}

static void resolve(int queue, uint64_t gpa, uint64_t size)
{
	struct rvmm_missing_range range = { .gpa = gpa, .size = size };

	OK(ioctl(queue, RVMM_MISSING_RESOLVE, &range));
}

static struct rvmm_missing_event next_event(int queue)
{
	struct pollfd p = { .fd = queue, .events = POLLIN };
	struct rvmm_missing_event event;

	REQUIRE_EQ(poll(&p, 1, 30000), 1);
	REQUIRE_EQ(read(queue, &event, sizeof(event)), sizeof(event));
	return event;
}

TEST(missing_refused)
{
	struct kvm_enable_cap cap = { .cap = RVMM_CAP_MISSING };
	struct rvmm_missing_range range = { 0 };
	struct rvmm_missing_event event;
	uint8_t *m = anonymous();
	struct vm vm;
	int queue;

	lazy_vm(&vm, 0, m);
	/* As on KVM as long as it is not enabled. */
	CHECK_ERRNO(try_slot(vm.fd, TEST_SLOT, RVMM_MEM_MISSING, TEST_GPA, TEST_BYTES, m), EINVAL);
	if (!has_extension(vm.kvm, RVMM_CAP_MISSING))
		skip("no RVMM_CAP_MISSING");
	CHECK_ERRNO(ioctl(vm.fd, KVM_ENABLE_CAP, &cap), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_MISSING_QUEUE), EINVAL);
	enable(&vm);
	vm_slot(&vm, TEST_SLOT, RVMM_MEM_MISSING, TEST_GPA, TEST_BYTES, m);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, TEST_BYTES, m);
	CHECK_ERRNO(try_slot(vm.fd, TEST_SLOT, RVMM_MEM_MISSING | 1u << 25, TEST_GPA, TEST_BYTES, m), EINVAL);
	queue = OK(ioctl(vm.fd, RVMM_MISSING_QUEUE));
	CHECK_ERRNO(ioctl(vm.fd, RVMM_MISSING_QUEUE), EBUSY);
	CHECK_ERRNO(read(queue, &event, sizeof(event)), EAGAIN);
	CHECK_ERRNO(read(queue, &event, sizeof(event) - 1), EINVAL);
	CHECK_ERRNO(ioctl(queue, RVMM_MISSING_RESOLVE, &range), EINVAL);
	range.gpa = TEST_GPA + 8;
	range.size = 4096;
	CHECK_ERRNO(ioctl(queue, RVMM_MISSING_RESOLVE, &range), EINVAL);
	range.gpa = -4096ull;
	range.size = 8192;
	CHECK_ERRNO(ioctl(queue, RVMM_MISSING_RESOLVE, &range), EINVAL);
	range.gpa = TEST_GPA;
	range.size = TEST_BYTES + 4096;
	CHECK_ERRNO(ioctl(queue, RVMM_MISSING_RESOLVE, &range), EFAULT);
	range.size = 4096;
	range.flags = 1;
	CHECK_ERRNO(ioctl(queue, RVMM_MISSING_RESOLVE, &range), EINVAL);
	CHECK_ERRNO(ioctl(queue, KVM_GET_API_VERSION, 0), ENOTTY);
	close(queue);
	close(OK(ioctl(vm.fd, RVMM_MISSING_QUEUE)));
}

/* KVM_RUN has to say that this page is missing. */
static void expect_missing(struct vm *vm, uint64_t gpa, int write)
{
	REQUIRE_EQ(vm_try_run(vm), EFAULT);
	REQUIRE_EQ(vm->run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	CHECK_EQ(vm->run->memory_fault.gpa, gpa);
	CHECK_EQ(vm->run->memory_fault.size, 4096);
	CHECK(vm->run->memory_fault.flags & RVMM_MEMORY_EXIT_MISSING);
	if (write >= 0)
		CHECK_EQ(!!(vm->run->memory_fault.flags & RVMM_MEMORY_EXIT_WRITE), write);
}

TEST(missing_exits)
{
	uint8_t *m = anonymous();
	struct vm vm;

	reporting_vm(&vm, m);
	lazy_tell(&vm, LAZY_READ, TEST_GPA + 0x3010, 0);
	for (int i = 0; i < 3; i++) {
		expect_missing(&vm, TEST_GPA + 0x3000, 0);
		CHECK(!there(m + 0x3000));
	}
	*(uint64_t *)(m + 0x3010) = 0x1234;
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_cells(&vm)[3], 0x1234);
	/* It is there from now on. */
	lazy_do(&vm, LAZY_WRITE, TEST_GPA + 0x3018, 5);
	CHECK_EQ(*(uint64_t *)(m + 0x3018), 5);
	lazy_tell(&vm, LAZY_WRITE, TEST_GPA + 0x4000, 6);
	expect_missing(&vm, TEST_GPA + 0x4000, 1);
	/* A page of zeroes, by reading it. */
	CHECK_EQ(*(volatile uint64_t *)(m + 0x4000), 0);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(*(uint64_t *)(m + 0x4000), 6);
	/* Taken away: missing again. */
	REQUIRE(!madvise(m + 0x3000, 4096, MADV_DONTNEED));
	lazy_tell(&vm, LAZY_READ, TEST_GPA + 0x3010, 0);
	expect_missing(&vm, TEST_GPA + 0x3000, 0);
	/* Without the flag the kernel fills it. */
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, TEST_BYTES, m);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_cells(&vm)[3], 0);
}

/* What the kernel accesses for the guest is missing as well. */
TEST(missing_kernel_accesses)
{
	uint8_t *m = anonymous();
	uint64_t at, gpa;
	struct vm vm;

	reporting_vm(&vm, m);
	/* OUTS reads the page. */
	lazy_tell(&vm, LAZY_OUTS, TEST_GPA + 0x1000, 0);
	for (int i = 0; i < 2; i++)
		expect_missing(&vm, TEST_GPA + 0x1000, -1);
	CHECK(!there(m + 0x1000));
	m[0x1000] = 0x5a;
	CHECK_EQ(vm_expect_out(&vm, 0x11), 0x5a);
	vm_expect_out(&vm, 0x10);
	/* MOVS is found out before the device is read. */
	lazy_tell(&vm, LAZY_MOVS, TEST_GPA + 0x2000, G_MMIO);
	for (int i = 0; i < 2; i++)
		expect_missing(&vm, TEST_GPA + 0x2000, -1);
	CHECK(!there(m + 0x2000));
	m[0x2000] = 0;
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK(!vm.run->mmio.is_write);
	memset(vm.run->mmio.data, 0x77, 8);
	/* It goes while user space reads the device, which is read once all the same. */
	REQUIRE(!madvise(m + 0x2000, 4096, MADV_DONTNEED));
	for (int i = 0; i < 2; i++)
		expect_missing(&vm, TEST_GPA + 0x2000, -1);
	CHECK(!there(m + 0x2000));
	m[0x2000] = 0;
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(*(uint64_t *)(m + 0x2000), 0x7777777777777777);
	/* A page table. */
	at = lazy_behind_table(&vm, TEST_GPA + 0x5000, G_CELLS + 40);
	vm_cells(&vm)[5] = 0x99;
	lazy_tell(&vm, LAZY_READ, at, 0);
	expect_missing(&vm, TEST_GPA + 0x5000, -1);
	CHECK(!there(m + 0x5000));
	for (int i = 0; i < 512; i++)
		((uint64_t *)(m + 0x5000))[i] = LAZY_TABLE_WORD;
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_cells(&vm)[3], 0x99);
	/* The pages of paravirtual MSRs. */
	gpa = TEST_GPA + 0x6000;
	REQUIRE(set_msr(&vm, MSR_KVM_SYSTEM_TIME_NEW, gpa | 1));
	lazy_tell(&vm, LAZY_READ, G_CELLS, 0);
	expect_missing(&vm, gpa, 1);
	CHECK(!there(m + 0x6000));
	m[0x6000] = 0;
	REQUIRE(set_msr(&vm, MSR_KVM_STEAL_TIME, (gpa + 0x1000) | 1));
	expect_missing(&vm, gpa + 0x1000, 1);
	CHECK(!there(m + 0x7000));
	m[0x7000] = 0;
	/* Set by user space: nothing is brought for that. */
	REQUIRE(set_msr(&vm, MSR_KVM_PV_EOI_EN, (gpa + 0x2000) | 1));
	CHECK(!there(m + 0x8000));
	vm_expect_out(&vm, 0x10);
	CHECK(*(uint32_t *)(m + 0x6000) >= 2);
	CHECK(*(uint32_t *)(m + 0x7008) >= 2);
}

TEST(missing_prefault)
{
	struct kvm_pre_fault_memory range = { .gpa = TEST_GPA, .size = 8192 };
	uint8_t *m = anonymous();
	struct vm vm;

	reporting_vm(&vm, m);
	m[0] = 1;
	CHECK_EQ(ioctl(vm.vcpu, KVM_PRE_FAULT_MEMORY, &range), 0);
	CHECK_EQ(range.gpa, TEST_GPA + 4096);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_PRE_FAULT_MEMORY, &range), EFAULT);
	CHECK(!there(m + 4096));
	m[4096] = 1;
	CHECK_EQ(ioctl(vm.vcpu, KVM_PRE_FAULT_MEMORY, &range), 0);
	CHECK_EQ(range.size, 0);
}

/* A page that is missing is reported before a reset point saves it; what comes is what it goes back to. */
TEST(missing_reset_point)
{
	struct rvmm_reset_point point = { .pages = 100 };
	struct rvmm_touch touch = { .gpa = TEST_GPA, .size = 8192 };
	struct rvmm_reset reset;
	uint8_t *m = anonymous();
	struct vm vm;

	reporting_vm(&vm, m);
	if (!has_extension(vm.kvm, RVMM_CAP_RESET_POINT))
		skip("no reset points");
	m[0x1000] = 0x11;
	OK(ioctl(vm.fd, RVMM_RESET_POINT, &point));
	OK(ioctl(vm.fd, RVMM_TOUCH, &touch));
	CHECK(!there(m));
	m[0x1000] = 0x12;
	OK(ioctl(vm.fd, RVMM_RESET, &reset));
	CHECK_EQ(reset.pages, 1);
	CHECK_EQ(m[0x1000], 0x11);
	for (int round = 0; round < 3; round++) {
		/* The guest's write. */
		lazy_tell(&vm, LAZY_WRITE, TEST_GPA + 0x3000, 6);
		if (!round) {
			expect_missing(&vm, TEST_GPA + 0x3000, 1);
			expect_missing(&vm, TEST_GPA + 0x3000, 1);
			CHECK(!there(m + 0x3000));
			*(uint64_t *)(m + 0x3000) = 0x33;
		}
		vm_expect_out(&vm, 0x10);
		CHECK_EQ(*(uint64_t *)(m + 0x3000), 6);
		/* The kernel's, of which nothing is done before. */
		lazy_tell(&vm, LAZY_MOVS, TEST_GPA + 0x2000, G_MMIO);
		if (!round) {
			expect_missing(&vm, TEST_GPA + 0x2000, -1);
			m[0x2000] = 0;
		}
		vm_expect(&vm, KVM_EXIT_MMIO);
		memset(vm.run->mmio.data, 0x77, 8);
		if (!round) {
			REQUIRE(!madvise(m + 0x2000, 4096, MADV_DONTNEED));
			expect_missing(&vm, TEST_GPA + 0x2000, -1);
			expect_missing(&vm, TEST_GPA + 0x2000, -1);
			CHECK(!there(m + 0x2000));
			*(uint64_t *)(m + 0x2000) = 0x22;
		}
		vm_expect_out(&vm, 0x10);
		CHECK_EQ(*(uint64_t *)(m + 0x2000), 0x7777777777777777);
		OK(ioctl(vm.fd, RVMM_RESET, &reset));
		CHECK(reset.pages >= 2);
		CHECK_EQ(*(uint64_t *)(m + 0x3000), 0x33);
		CHECK_EQ(*(uint64_t *)(m + 0x2000), 0x22);
	}
}

struct server {
	int queue, memory;	/* memory: a file to write to, or -1 */
	uint8_t *mapped;
	unsigned int events, expected, pages[TEST_PAGES];
};

static uint64_t word_of(uint64_t page)
{
	return 0x1111111111111111 * page;
}

/* Brings pages until there are as many as expected. Each is brought once, whatever is asked for how often. */
static void *serve(void *argument)
{
	struct server *s = argument;

	while (s->events < s->expected) {
		struct rvmm_missing_event event = next_event(s->queue);
		uint64_t page = (event.gpa - TEST_GPA) / 4096, word[512];

		for (int i = 0; i < 512; i++)
			word[i] = word_of(page);
		if (s->mapped) {
			CHECK_EQ(event.hva, (uintptr_t)s->mapped + page * 4096);
			memcpy(s->mapped + page * 4096, word, 4096);
		} else {
			REQUIRE_EQ(pwrite(s->memory, word, 4096, page * 4096), 4096);
		}
		s->pages[page]++;
		s->events++;
		resolve(s->queue, event.gpa, 4096);
	}
	return NULL;
}

static void *read_all(void *argument)
{
	struct vm *vm = argument;

	for (uint64_t i = 0; i < TEST_PAGES; i++)
		CHECK_EQ(lazy_do(vm, LAZY_READ, TEST_GPA + i * 5 % TEST_PAGES * 4096 + 16, 0),
			 word_of(i * 5 % TEST_PAGES));
	return NULL;
}

TEST(missing_queue)
{
	struct server s = { .memory = -1, .mapped = anonymous(), .expected = TEST_PAGES };
	pthread_t server;
	struct vm vm;

	reporting_vm(&vm, s.mapped);
	s.queue = OK(ioctl(vm.fd, RVMM_MISSING_QUEUE));
	pthread_create(&server, NULL, serve, &s);
	read_all(&vm);
	pthread_join(server, NULL);
	for (int i = 0; i < TEST_PAGES; i++)
		CHECK_EQ(s.pages[i], 1);
}

/* The pages come from another process, which has the memory's file. */
TEST(missing_queue_process)
{
	struct server s = { .expected = TEST_PAGES };
	uint8_t *m;
	struct vm vm;
	int status;
	pid_t child;

	s.memory = OK(memfd_create("guest", 0));
	OK(ftruncate(s.memory, TEST_BYTES));
	m = mmap(NULL, TEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, s.memory, 0);
	REQUIRE(m != MAP_FAILED);
	reporting_vm(&vm, m);
	s.queue = OK(ioctl(vm.fd, RVMM_MISSING_QUEUE));
	child = fork_child();
	if (child == 0) {
		serve(&s);
		_exit(0);
	}
	read_all(&vm);
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	/* The kernel's accesses wait as well. */
	lazy_do(&vm, LAZY_WRITE, TEST_GPA + 0x3000, 0x33);
	REQUIRE(!madvise(m, TEST_BYTES, MADV_DONTNEED));
	child = fork_child();
	if (child == 0) {
		s.events = 0;
		s.expected = 1;
		serve(&s);
		_exit(0);
	}
	lazy_tell(&vm, LAZY_OUTS, TEST_GPA + 0x3000, 0);
	CHECK_EQ(vm_expect_out(&vm, 0x11), (uint8_t)word_of(3));
	vm_expect_out(&vm, 0x10);
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
}

void *run_once(void *argument)
{
	struct runner *r = argument;

	r->error = vm_try_run(r->vm);
	return NULL;
}

/* There is no page, whatever is said: KVM_RUN ends, and nobody is asked over and over. */
TEST(missing_queue_fails)
{
	struct rvmm_missing_range range = { .gpa = TEST_GPA + 0x3000, .size = 4096 };
	int queue, memory = OK(memfd_create("guest", 0)), ended;
	struct timespec until;
	struct runner r;
	pthread_t thread;
	struct vm vm;
	uint8_t *m;

	OK(ftruncate(memory, 0x3000));
	m = mmap(NULL, TEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	REQUIRE(m != MAP_FAILED);
	reporting_vm(&vm, m);
	r.vm = &vm;
	queue = OK(ioctl(vm.fd, RVMM_MISSING_QUEUE));
	for (int i = 0; i < 2; i++) {
		/* The kernel's access, the guest's. */
		lazy_tell(&vm, i ? LAZY_READ : LAZY_OUTS, range.gpa, 0);
		pthread_create(&thread, NULL, run_once, &r);
		CHECK_EQ(next_event(queue).gpa, range.gpa);
		CHECK_ERRNO(ioctl(queue, RVMM_MISSING_RESOLVE, &range), EFAULT);
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += 5;
		ended = !pthread_timedjoin_np(thread, NULL, &until);
		CHECK(ended);
		if (!ended) {
			close(queue);
			pthread_join(thread, NULL);
			break;
		}
		CHECK_EQ(r.error, EFAULT);
		CHECK_EQ(vm.run->exit_reason, KVM_EXIT_MEMORY_FAULT);
		CHECK_EQ(vm.run->memory_fault.gpa, range.gpa);
		CHECK(!(vm.run->memory_fault.flags & RVMM_MEMORY_EXIT_MISSING));
	}
}

TEST(missing_queue_ends)
{
	struct sigaction action = { .sa_handler = nothing };
	void *volatile nowhere = (void *)8;
	struct rvmm_missing_event event;
	uint8_t *m = anonymous();
	struct runner r;
	pthread_t thread;
	struct vm vm;
	int queue;

	sigaction(SIGUSR1, &action, NULL);
	reporting_vm(&vm, m);
	r.vm = &vm;
	queue = OK(ioctl(vm.fd, RVMM_MISSING_QUEUE));
	/* A signal, before and after the event has been read: it comes again. */
	lazy_tell(&vm, LAZY_WRITE, TEST_GPA + 0x3000, 7);
	for (int i = 0; i < 2; i++) {
		struct pollfd p = { .fd = queue, .events = POLLIN };

		pthread_create(&thread, NULL, run_once, &r);
		REQUIRE_EQ(poll(&p, 1, 30000), 1);
		/* Read in vain: it stays. */
		CHECK_ERRNO(read(queue, nowhere, sizeof(event)), EFAULT);
		if (i)
			next_event(queue);
		pthread_kill(thread, SIGUSR1);
		pthread_join(thread, NULL);
		CHECK_EQ(r.error, EINTR);
		CHECK_EQ(vm.run->exit_reason, KVM_EXIT_INTR);
		CHECK_ERRNO(read(queue, &event, sizeof(event)), EAGAIN);
		CHECK(!there(m + 0x3000));
	}
	m[0x3000] = 0;
	vm_expect_out(&vm, 0x10);
	REQUIRE(!madvise(m + 0x3000, 4096, MADV_DONTNEED));
	/* So with the kernel's accesses. */
	lazy_tell(&vm, LAZY_OUTS, TEST_GPA + 0x3000, 7);
	pthread_create(&thread, NULL, run_once, &r);
	event = next_event(queue);
	CHECK_EQ(event.gpa, TEST_GPA + 0x3000);
	CHECK_EQ(event.vcpu, 0);
	pthread_kill(thread, SIGUSR1);
	pthread_join(thread, NULL);
	CHECK_EQ(r.error, EINTR);
	/* Who only wants to be told does not wait. */
	CHECK_EQ(vm_complete(&vm), EINTR);
	CHECK(!there(m + 0x3000));
	/* While it waits slots can be changed. */
	pthread_create(&thread, NULL, run_once, &r);
	event = next_event(queue);
	vm_slot(&vm, TEST_SLOT + 1, 0, TEST_GPA + 0x1000000, 4096, m);
	/* The queue goes. */
	close(queue);
	pthread_join(thread, NULL);
	CHECK_EQ(r.error, EFAULT);
	CHECK_EQ(vm.run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	/* Another one. */
	queue = OK(ioctl(vm.fd, RVMM_MISSING_QUEUE));
	pthread_create(&thread, NULL, run_once, &r);
	event = next_event(queue);
	CHECK(!there(m + 0x3000));
	/* Resolved without having been brought: as it is. */
	resolve(queue, TEST_GPA, TEST_BYTES);
	pthread_join(thread, NULL);
	CHECK_EQ(r.error, 0);
	CHECK_EQ(vm.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(vm.run->io.port, 0x11);
	CHECK(there(m + 0x3000));
	CHECK(there(m));
}

/* Two vCPUs at the same page, and the death of a waiting process. */
TEST(missing_queue_two)
{
	struct rvmm_missing_event event[2];
	uint8_t *m = anonymous();
	struct runner r[2];
	pthread_t thread[2];
	struct vm vm, second;
	int queue, ready[2], status;
	pid_t child;

	reporting_vm(&vm, m);
	queue = OK(ioctl(vm.fd, RVMM_MISSING_QUEUE));
	second = vm_second_vcpu(&vm, 1);
	vm_long_state(&second);
	lazy_tell(&vm, LAZY_READ, TEST_GPA + 0x3000, 0);
	r[0].vm = &vm;
	r[1].vm = &second;
	for (int i = 0; i < 2; i++) {
		pthread_create(&thread[i], NULL, run_once, &r[i]);
		event[i] = next_event(queue);
		CHECK_EQ(event[i].gpa, TEST_GPA + 0x3000);
		CHECK_EQ(event[i].vcpu, i);
		CHECK_EQ(event[i].flags, 0);
	}
	*(uint64_t *)(m + 0x3000) = 0x42;
	resolve(queue, TEST_GPA + 0x3000, 4096);
	for (int i = 0; i < 2; i++) {
		pthread_join(thread[i], NULL);
		CHECK_EQ(r[i].error, 0);
	}
	CHECK_EQ(vm_cells(&vm)[3], 0x42);

	OK(pipe(ready));
	child = fork_child();
	if (child == 0) {
		struct vm own;
		char byte = 0;

		reporting_vm(&own, m + 0);
		queue = OK(ioctl(own.fd, RVMM_MISSING_QUEUE));
		r[0].vm = &own;
		madvise(m, TEST_BYTES, MADV_DONTNEED);
		lazy_tell(&own, LAZY_READ, TEST_GPA + 0x3000, 0);
		pthread_create(&thread[0], NULL, run_once, &r[0]);
		next_event(queue);
		REQUIRE_EQ(write(ready[1], &byte, 1), 1);
		pause();
		_exit(0);
	}
	REQUIRE_EQ(read(ready[0], &status, 1), 1);
	OK(kill(child, SIGKILL));
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(WTERMSIG(status), SIGKILL);
}

static struct rvmm_touches touches(struct vm *vm, uint64_t first, uint64_t *pages, uint64_t room)
{
	struct rvmm_touches t = { .first = first, .count = room, .pages = (uintptr_t)pages };

	OK(ioctl(vm->fd, RVMM_GET_TOUCHES, &t));
	return t;
}

TEST(touches)
{
	static const uint8_t order[] = { 9, 3, 4, 0, 15, 8, 1, 14, 2 };
	uint64_t pages[64];
	struct rvmm_touches t;
	uint8_t *m = anonymous();
	unsigned int seen = 0;
	struct vm vm;

	lazy_vm(&vm, 0, m);
	if (!has_extension(vm.kvm, RVMM_CAP_TOUCHES))
		skip("no RVMM_CAP_TOUCHES");
	t = (struct rvmm_touches){ .count = 64, .pages = (uintptr_t)pages };
	CHECK_ERRNO(ioctl(vm.fd, RVMM_GET_TOUCHES, &t), ENODATA);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_RECORD_TOUCHES, (1 << 24) + 1), EINVAL);
	/* Some are resident, so that faults are short. */
	for (unsigned int i = 0; i < ARRAY_SIZE(order); i += 2)
		m[order[i] * 4096] = 1;
	/* Pages that are mapped already count as well. */
	lazy_do(&vm, LAZY_READ, TEST_GPA + 9 * 4096, 0);
	OK(ioctl(vm.fd, RVMM_RECORD_TOUCHES, 64));
	CHECK_ERRNO(ioctl(vm.fd, RVMM_RECORD_TOUCHES, 64), EEXIST);
	for (unsigned int round = 0; round < 2; round++)
		for (unsigned int i = 0; i < ARRAY_SIZE(order); i++)
			lazy_do(&vm, i & 1 ? LAZY_WRITE : LAZY_READ, TEST_GPA + order[i] * 4096, i);
	t = touches(&vm, 0, pages, 64);
	CHECK(t.count == t.total);
	for (uint64_t i = 0; i < t.count; i++) {
		uint64_t page = pages[i] - TEST_GPA / 4096;

		/* Code, tables and cells of the guest lie elsewhere. */
		if (page >= TEST_PAGES)
			continue;
		if (seen < ARRAY_SIZE(order))
			CHECK_EQ(page, order[seen]);
		seen++;
	}
	CHECK_EQ(seen, ARRAY_SIZE(order));
	/* In parts. */
	for (uint64_t i = 0; i < t.count; i++) {
		uint64_t page;

		CHECK_EQ(touches(&vm, i, &page, 1).count, 1);
		CHECK_EQ(page, pages[i]);
	}
	CHECK_EQ(touches(&vm, t.total, pages, 64).count, 0);
	CHECK_EQ(touches(&vm, -1ull, pages, 64).count, 0);
	t = (struct rvmm_touches){ .count = 64, .pages = 8 };
	CHECK_ERRNO(ioctl(vm.fd, RVMM_GET_TOUCHES, &t), EFAULT);
	OK(ioctl(vm.fd, RVMM_RECORD_TOUCHES, 0));
	t = touches(&vm, 0, pages, 64);
	lazy_do(&vm, LAZY_READ, TEST_GPA + 12 * 4096, 0);
	CHECK_EQ(touches(&vm, 0, pages, 64).total, t.total);
}

/* More touches than there is room for. */
TEST(touches_bounded)
{
	uint64_t pages[8];
	struct rvmm_touches t;
	struct vm vm;

	lazy_vm(&vm, 0, anonymous());
	if (!has_extension(vm.kvm, RVMM_CAP_TOUCHES))
		skip("no RVMM_CAP_TOUCHES");
	OK(ioctl(vm.fd, RVMM_RECORD_TOUCHES, 4));
	for (unsigned int i = 0; i < TEST_PAGES; i++)
		lazy_do(&vm, LAZY_WRITE, TEST_GPA + i * 4096, i);
	t = touches(&vm, 0, pages, 8);
	CHECK_EQ(t.count, 4);
	CHECK(t.total >= TEST_PAGES);
}

/* Faults on shared memory that is there take the short way. */
TEST(short_shared)
{
	int fd = OK(memfd_create("guest", 0));
	uint64_t slow;
	struct vm vm;
	uint8_t *m;

	OK(ftruncate(fd, TEST_BYTES));
	m = mmap(NULL, TEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	REQUIRE(m != MAP_FAILED);
	memset(m, 1, TEST_BYTES);
	lazy_vm(&vm, 0, m);
	if (!is_rvmm())
		skip("KVM has one way");
	lazy_do(&vm, LAZY_READ, TEST_GPA, 0);
	slow = lazy_statistic(vm.fd, "slow_faults");
	for (unsigned int i = 1; i < TEST_PAGES; i++) {
		CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + i * 4096, 0), 0x0101010101010101);
		lazy_do(&vm, LAZY_WRITE, TEST_GPA + i * 4096, i);
		CHECK_EQ(*(uint64_t *)(m + i * 4096), i);
	}
	/* Somebody may hold the lock for a moment. */
	CHECK(lazy_statistic(vm.fd, "slow_faults") - slow <= TEST_PAGES / 4);
	/* What was written is in the file. */
	REQUIRE(!madvise(m, TEST_BYTES, MADV_DONTNEED));
	CHECK_EQ(*(uint64_t *)(m + 5 * 4096), 5);
	/* Holes are seen at once, and so is what is written to the file. */
	OK(fallocate(fd, 3 /* FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE */, 5 * 4096, 4096));
	CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + 5 * 4096, 0), 0);
	*(uint64_t *)(m + 5 * 4096) = 99;
	CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + 5 * 4096, 0), 99);
	/* Neither the file of another file system, nor a private copy, is written behind anybody's back. */
	m = mmap(m, TEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
	REQUIRE(m != MAP_FAILED);
	lazy_do(&vm, LAZY_READ, TEST_GPA + 6 * 4096, 0);
	lazy_do(&vm, LAZY_WRITE, TEST_GPA + 6 * 4096, 0x6666);
	slow = 0;
	REQUIRE_EQ(pread(fd, &slow, 8, 6 * 4096), 8);
	CHECK_EQ(slow, 6);
}

/* Pages of hugetlb, 8 MiB at least of them. */
static void short_huge(unsigned int shift, uint64_t gpa)
{
	uint64_t size = shift > 23 ? 1ull << shift : 8 * MIB, faults, slow;
	struct vm vm;
	uint8_t *m;

	m = mmap(NULL, size, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE | shift << 26 /* MAP_HUGE_SHIFT */, -1, 0);
	if (m == MAP_FAILED)
		skip("no page of %u MiB (vm.nr_hugepages; hugepagesz=1G hugepages=1)", 1u << (shift - 20));
	m[0] = 1;
	lazy_vm(&vm, 0, anonymous());
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, 0, NULL);
	if (!is_rvmm())
		skip("KVM has one way");
	vm_slot(&vm, TEST_SLOT, 0, gpa, size, m);
	/* The guest's second GiB. */
	((uint64_t *)(vm.mem + G_PDPT))[1] = 0x40000000 | LAZY_TABLE_WORD;
	lazy_do(&vm, LAZY_READ, gpa, 0);
	slow = lazy_statistic(vm.fd, "slow_faults");
	faults = lazy_statistic(vm.vcpu, "exit_nested_fault");
	for (uint64_t at = 4096; at < 2 * MIB; at += 64 * 4096) {
		lazy_do(&vm, LAZY_WRITE, gpa + at, at);
		CHECK_EQ(*(uint64_t *)(m + at), at);
	}
	CHECK_EQ(lazy_statistic(vm.vcpu, "exit_nested_fault") - faults, 0);
	/* Other pages, or other parts of the same page. Somebody may hold the lock for a moment. */
	for (uint64_t at = 2 * MIB; at < 8 * MIB; at += 2 * MIB) {
		lazy_do(&vm, LAZY_WRITE, gpa + at, at);
		CHECK_EQ(*(uint64_t *)(m + at), at);
	}
	CHECK(lazy_statistic(vm.vcpu, "exit_nested_fault") - faults <= 4);
	CHECK(lazy_statistic(vm.fd, "slow_faults") - slow <= 1);
}

TEST(short_hugetlb)
{
	FILE *f = fopen("/proc/sys/vm/nr_hugepages", "r+");
	int before = 0;

	if (!f || fscanf(f, "%d", &before) != 1)
		skip("no hugetlb");
	rewind(f);
	fprintf(f, "%d", before + 4);
	fflush(f);
	short_huge(21, TEST_GPA);
	rewind(f);
	fprintf(f, "%d", before);
	fclose(f);
}

TEST_SECONDS(short_hugetlb_1g, 240)
{
	short_huge(30, 0x40000000);
}

/* Device memory that user space maps for reading only: a guest's write is its business (KVM_EXIT_MMIO). */
TEST(readonly_device)
{
	int fd = open("/dev/mem", O_RDONLY);
	uint64_t there;
	struct vm vm;
	void *m;

	if (fd < 0)
		skip("no /dev/mem: %s", strerrorname(errno));
	/* The BIOS's ROM. */
	m = mmap(NULL, TEST_BYTES, PROT_READ, MAP_SHARED, fd, 0xf0000);
	if (m == MAP_FAILED)
		skip("the ROM cannot be mapped: %s", strerrorname(errno));
	lazy_vm(&vm, 0, m);
	there = *(volatile uint64_t *)((uint8_t *)m + 0x1008);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + 0x1008, 0), there);
		lazy_tell(&vm, LAZY_WRITE, TEST_GPA + 0x1008, 0x1122334455667788);
		vm_expect(&vm, KVM_EXIT_MMIO);
		CHECK(vm.run->mmio.is_write);
		CHECK_EQ(vm.run->mmio.phys_addr, TEST_GPA + 0x1008);
		CHECK_EQ(vm.run->mmio.len, 8);
		CHECK(!memcmp(vm.run->mmio.data, "\x88\x77\x66\x55\x44\x33\x22\x11", 8));
		vm_expect_out(&vm, 0x10);
	}
}
