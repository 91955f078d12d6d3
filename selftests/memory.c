// SPDX-License-Identifier: GPL-2.0
/* Guest memory is user memory: whatever happens to that, the guest sees it at once (api.rst 4.35). */
#define _GNU_SOURCE
#include "vm.h"
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#define TEST_SLOT 5
#define TEST_ADDRESS 0x8000000	/* identity-mapped, away from slot 0 */
#define TEST_GPA ((uint64_t)TEST_ADDRESS)

/* cells: 0 address, 1 what to do (0 stop, 1 read, 2 write cell 2), 3 result. One OUT after each. */
GUEST64(accessor,
	"mov $" STR(G_CELLS) ", %ebx\n"
	"1: mov (%rbx), %rsi; mov 8(%rbx), %rax\n"
	"cmp $1, %rax; je 2f; cmp $2, %rax; je 3f\naccessor_stop: hlt; jmp 1b\n"
	"2: mov (%rsi), %rcx; mov %rcx, 24(%rbx); out %al, $0x10; jmp 1b\n"
	"3: mov 16(%rbx), %rcx; mov %rcx, (%rsi); out %al, $0x10; jmp 1b\n");

extern const unsigned char accessor_stop[];

static uint64_t guest_read(struct vm *vm, uint64_t gpa)
{
	volatile uint64_t *cell = vm_cells(vm);

	cell[0] = gpa;
	cell[1] = 1;
	vm_expect_out(vm, 0x10);
	return cell[3];
}

static void guest_write(struct vm *vm, uint64_t gpa, uint64_t value)
{
	volatile uint64_t *cell = vm_cells(vm);

	cell[0] = gpa;
	cell[1] = 2;
	cell[2] = value;
	vm_expect_out(vm, 0x10);
}

static uint8_t *map(size_t bytes)
{
	uint8_t *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(m != MAP_FAILED);
	return m;
}

static uint8_t *with_slot(struct vm *vm, size_t bytes, unsigned int flags)
{
	uint8_t *m = map(bytes);

	VM_NEW_LONG(vm, accessor);
	vm_slot(vm, TEST_SLOT, flags, TEST_GPA, bytes, m);
	return m;
}

static bool resident(void *page)
{
	unsigned char v = 0;

	return !mincore(page, 4096, &v) && (v & 1);
}

TEST(demand)
{
	struct vm vm;
	uint8_t *m = with_slot(&vm, 64 * MIB, 0);

	madvise(m, 64 * MIB, MADV_NOHUGEPAGE);
	/* Reading gives zeros, and only what is touched comes. */
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x5000), 0);
	guest_write(&vm, TEST_GPA + 0x7000, 0x1234);
	CHECK_EQ(*(uint64_t *)(m + 0x7000), 0x1234);
	CHECK(!resident(m + 0x3000000));
	*(uint64_t *)(m + 0x3000008) = 77;
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x3000008), 77);
	/* Reading first, then writing: the zero page must not be written. */
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x9000), 0);
	guest_write(&vm, TEST_GPA + 0x9000, 5);
	CHECK_EQ(*(uint64_t *)(m + 0x9000), 5);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0xa000), 0);
	CHECK_EQ(*(volatile uint64_t *)(m + 0xb000), 0);
	/* Host and guest each see what the other has written. */
	for (uint64_t i = 0; i < 50; i++) {
		*(volatile uint64_t *)(m + 0x100000 + i * 4096) = i;
		CHECK_EQ(guest_read(&vm, TEST_GPA + 0x100000 + i * 4096), i);
		guest_write(&vm, TEST_GPA + 0x100000 + i * 4096, ~i);
		CHECK_EQ(*(volatile uint64_t *)(m + 0x100000 + i * 4096), ~i);
	}
}

TEST(remap)
{
	struct vm vm;
	uint8_t *m = with_slot(&vm, MIB, 0);

	for (int i = 0; i < 20; i++) {
		guest_write(&vm, TEST_GPA, 0xaa00 + i);
		REQUIRE(mmap(m, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == m);
		*(volatile uint64_t *)m = 0xbb00 + i;
		CHECK_EQ(guest_read(&vm, TEST_GPA), 0xbb00 + i);
	}
	/* A file in its place. */
	int fd = memfd_create("memory", 0);
	uint64_t word = 0x66696c65;

	REQUIRE(ftruncate(fd, 8192) == 0);
	REQUIRE(pwrite(fd, &word, 8, 4096) == 8);
	REQUIRE(mmap(m, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == m);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 4096), word);
	guest_write(&vm, TEST_GPA + 4096, 99);
	REQUIRE(pread(fd, &word, 8, 4096) == 8);
	CHECK_EQ(word, 99);
	/* A file may be truncated under the guest. */
	REQUIRE(ftruncate(fd, 4096) == 0);
	vm_cells(&vm)[0] = TEST_GPA + 4096;
	vm_cells(&vm)[1] = 1;
	CHECK_EQ(vm_try_run(&vm), EFAULT);
	REQUIRE(ftruncate(fd, 8192) == 0);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 4096), 0);
}

/*
 * Memory is remapped while the guest runs on another CPU, or between its time slices. cells: 0 address, 3 last value
 * seen, 4 stop.
 */
/*
 * Interrupts on: the emulated Intel CPU does not leave a guest for an external interrupt while the guest has them
 * off.
 */
GUEST64(spin_read,
	"sti; mov $" STR(G_CELLS) ", %ebx; mov (%rbx), %rsi\n"
	"1: mov (%rsi), %rax; mov %rax, 24(%rbx); incq 40(%rbx); cmpq $0, 32(%rbx); je 1b\n"
	"hlt\n");

static void *runner(void *argument)
{
	struct vm *vm = argument;

	return (void *)(intptr_t)(vm_try_run(vm) ?: -(int)vm->run->exit_reason);
}

static bool wait_for(volatile uint64_t *cell, uint64_t value)
{
	for (int i = 0; i < 20000 && *cell != value; i++)
		usleep(200);
	return *cell == value;
}

TEST_SECONDS(remap_running, 120)
{
	pthread_t thread;
	struct vm vm;
	uint8_t *m = map(MIB);
	void *end;

	VM_NEW_LONG(&vm, spin_read);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, MIB, m);
	vm_cells(&vm)[0] = TEST_GPA + 8;
	*(volatile uint64_t *)(m + 8) = 1;
	REQUIRE(!pthread_create(&thread, NULL, runner, &vm));
	CHECK(wait_for(&vm_cells(&vm)[3], 1));
	for (uint64_t i = 2; i < 12; i++) {
		/* A page with the new value, moved over the old one in one step. */
		uint8_t *page = map(4096);

		*(volatile uint64_t *)(page + 8) = i;
		REQUIRE(mremap(page, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, m) == m);
		if (!wait_for(&vm_cells(&vm)[3], i))
			DIE("the guest still sees the old page after remap %llu", (unsigned long long)i);
	}
	/* MADV_DONTNEED: zeros. */
	REQUIRE(!madvise(m, 4096, MADV_DONTNEED));
	CHECK(wait_for(&vm_cells(&vm)[3], 0));
	vm_cells(&vm)[4] = 1;
	REQUIRE(!pthread_join(thread, &end));
	CHECK_EQ((intptr_t)end, -KVM_EXIT_HLT);
}

TEST(copy_on_write)
{
	struct vm vm;
	uint8_t *m = with_slot(&vm, MIB, 0);
	int status, pipes[2];
	char byte;
	pid_t pid;

	guest_write(&vm, TEST_GPA, 1);
	CHECK_EQ(guest_read(&vm, TEST_GPA), 1);
	REQUIRE(!pipe(pipes));
	pid = fork_child();
	if (pid == 0) {
		/* The parent's guest writes: this copy must not change. */
		if (read(pipes[0], &byte, 1) != 1)
			_exit(3);
		_exit(*(volatile uint64_t *)m == 1 && *(volatile uint64_t *)(m + 8) == 0 ? 0 : 2);
	}
	guest_write(&vm, TEST_GPA, 2);
	guest_write(&vm, TEST_GPA + 8, 3);
	CHECK_EQ(*(volatile uint64_t *)m, 2);
	CHECK_EQ(*(volatile uint64_t *)(m + 8), 3);
	REQUIRE(write(pipes[1], "x", 1) == 1);
	REQUIRE(waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
	/* Read by the guest only, then written by user space: the guest sees the new page. */
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x2000), 0);
	*(volatile uint64_t *)(m + 0x2000) = 9;
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x2000), 9);
	/* The guest also sees what user space writes after a fork. */
	CHECK_EQ(guest_read(&vm, TEST_GPA), 2);
	pid = fork_child();
	if (pid == 0) {
		pause();
		_exit(0);
	}
	*(volatile uint64_t *)m = 10;
	CHECK_EQ(guest_read(&vm, TEST_GPA), 10);
	guest_write(&vm, TEST_GPA, 11);
	CHECK_EQ(*(volatile uint64_t *)m, 11);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
}

TEST(unmapped)
{
	struct vm vm;
	uint8_t *m = with_slot(&vm, MIB, 0);

	guest_write(&vm, TEST_GPA + 0x1000, 5);
	REQUIRE(!munmap(m + 0x1000, 0x1000));
	vm_cells(&vm)[0] = TEST_GPA + 0x1000;
	vm_cells(&vm)[1] = 1;
	CHECK_EQ(vm_try_run(&vm), EFAULT);
	CHECK_EQ(vm_try_run(&vm), EFAULT);
	/* Neighbours are fine, and a new mapping cures it: the same instruction runs. */
	REQUIRE(mmap(m + 0x1000, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		     0) == m + 0x1000);
	*(volatile uint64_t *)(m + 0x1000) = 66;
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_cells(&vm)[3], 66);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x2000), 0);
}

static struct {
	int count, code, lsb;
	uint8_t *at;
} bus;

static void on_bus(int signal, siginfo_t *info, void *context)
{
	bus.count++;
	bus.code = info->si_code;
	bus.lsb = info->si_addr_lsb;
	bus.at = info->si_addr;
}

/* KVM_PRE_FAULT_MEMORY of a page; 0 or errno. */
static int pre_fault(struct vm *vm, uint64_t gpa)
{
	uint64_t range[8] = { gpa, 4096 };

	return ioctl(vm->vcpu, _IOWR(KVMIO, 0xd5, uint64_t[8]), range) ? errno : 0;
}

/* The host finds that memory is broken. */
TEST(poisoned)
{
	struct sigaction action = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };
	struct vm vm;
	uint8_t *m;

	if (!is_tcg() && !is_bochs())
		skip("takes a page of memory from the host until it is booted again: in a bed only");
	m = with_slot(&vm, MIB, 0);
	REQUIRE(!madvise(m, MIB, MADV_NOHUGEPAGE));
	guest_write(&vm, TEST_GPA + 0x1008, 5);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x1008), 5);
	REQUIRE(!sigaction(SIGBUS, &action, NULL));
	/* Whoever poisons a page of its own is sent a signal for that. */
	if (madvise(m + 0x1000, 0x1000, MADV_HWPOISON))
		skip("MADV_HWPOISON: %s", strerrorname(errno));
	/* The thread is told, as often as the guest comes there, and where. */
	vm_cells(&vm)[0] = TEST_GPA + 0x1008;
	vm_cells(&vm)[1] = 1;
	for (int i = 0; i < 2; i++) {
		memset(&bus, 0, sizeof(bus));
		CHECK_EQ(vm_try_run(&vm), EINTR);
		CHECK_EQ(vm.run->exit_reason, KVM_EXIT_INTR);
		CHECK_EQ(bus.count, 1);
		CHECK_EQ(bus.code, BUS_MCEERR_AR);
		CHECK_EQ(bus.at - m, 0x1000);
		CHECK_EQ(bus.lsb, 12);
	}
	memset(&bus, 0, sizeof(bus));
	CHECK_EQ(pre_fault(&vm, TEST_GPA + 0x1000), EINTR);
	CHECK_EQ(bus.count, 1);
	/* Neighbours are fine, and a new page cures it: the same instruction runs. */
	REQUIRE(mmap(m + 0x1000, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		     0) == m + 0x1000);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x2000), 0);
	CHECK_EQ(bus.count, 1);
}

/* The host-physical address of something in memory. */
static uint64_t physical(const void *at)
{
	int fd = OK(open("/proc/self/pagemap", O_RDONLY));
	uint64_t entry = 0;

	REQUIRE(pread(fd, &entry, 8, (uintptr_t)at / 4096 * 8) == 8);
	close(fd);
	REQUIRE(entry >> 63);
	return (entry & ((1ull << 55) - 1)) * 4096 + (uintptr_t)at % 4096;
}

/* Memory breaks while the guest reads it: tools/machine-check does that when it is told where. */
TEST_NAMED(machine_check)
{
	struct sigaction action = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };
	uint8_t *m = map(MIB);
	pthread_t thread;
	struct vm vm;
	void *end;

	REQUIRE(!madvise(m, MIB, MADV_NOHUGEPAGE));
	VM_NEW_LONG(&vm, spin_read);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, MIB, m);
	vm_cells(&vm)[0] = TEST_GPA + 8;
	*(volatile uint64_t *)(m + 8) = 1;
	REQUIRE(!sigaction(SIGBUS, &action, NULL));
	REQUIRE(!pthread_create(&thread, NULL, runner, &vm));
	CHECK(wait_for(&vm_cells(&vm)[3], 1));
	note("break %#llx", (unsigned long long)physical(m));
	REQUIRE(!pthread_join(thread, &end));
	CHECK_EQ((intptr_t)end, EINTR);
	CHECK_EQ(vm_log(&vm)->count, 0);
	CHECK_EQ(bus.count, 1);
	CHECK_EQ(bus.code, BUS_MCEERR_AR);
	CHECK_EQ(bus.at - m, 0);
	/* The host has given the page up. A new one cures it. */
	CHECK_EQ(vm_try_run(&vm), EINTR);
	CHECK_EQ(bus.count, 2);
	REQUIRE(mmap(m, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == m);
	vm_cells(&vm)[4] = 1;
	vm_expect(&vm, KVM_EXIT_HLT);
}

TEST(protection)
{
	struct vm vm;
	uint8_t *m = with_slot(&vm, MIB, 0);

	guest_write(&vm, TEST_GPA, 5);
	REQUIRE(!mprotect(m, 0x1000, PROT_READ));
	CHECK_EQ(guest_read(&vm, TEST_GPA), 5);
	vm_cells(&vm)[0] = TEST_GPA;
	vm_cells(&vm)[1] = 2;
	vm_cells(&vm)[2] = 6;
	CHECK_EQ(vm_try_run(&vm), EFAULT);
	CHECK_EQ(*(volatile uint64_t *)m, 5);
	REQUIRE(!mprotect(m, 0x1000, PROT_READ | PROT_WRITE));
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(*(volatile uint64_t *)m, 6);
	REQUIRE(!mprotect(m, 0x1000, PROT_NONE));
	vm_cells(&vm)[1] = 1;
	CHECK_EQ(vm_try_run(&vm), EFAULT);
	REQUIRE(!mprotect(m, 0x1000, PROT_READ));
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_cells(&vm)[3], 6);
}

TEST(dont_need)
{
	struct vm vm;
	uint8_t *m = with_slot(&vm, 8 * MIB, 0);

	for (int i = 0; i < 5; i++) {
		guest_write(&vm, TEST_GPA + 0x200000, 5);
		guest_write(&vm, TEST_GPA + 0x201000, 6);
		REQUIRE(!madvise(m + 0x200000, 0x1000, MADV_DONTNEED));
		CHECK_EQ(guest_read(&vm, TEST_GPA + 0x200000), 0);
		CHECK_EQ(guest_read(&vm, TEST_GPA + 0x201000), 6);
		REQUIRE(!madvise(m, 8 * MIB, MADV_DONTNEED));
		CHECK_EQ(guest_read(&vm, TEST_GPA + 0x201000), 0);
	}
}

/* Pages that the kernel reclaims come back with what the guest wrote. */
TEST(paged_out)
{
	struct vm vm;
	uint8_t *m;
	int fd = memfd_create("memory", 0);

	VM_NEW_LONG(&vm, accessor);
	REQUIRE(!ftruncate(fd, MIB));
	m = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	REQUIRE(m != MAP_FAILED);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, MIB, m);
	for (uint64_t i = 0; i < 16; i++)
		guest_write(&vm, TEST_GPA + i * 4096, 0x100 + i);
	madvise(m, MIB, 21 /* MADV_PAGEOUT */);
	for (uint64_t i = 0; i < 16; i++)
		CHECK_EQ(guest_read(&vm, TEST_GPA + i * 4096), 0x100 + i);
	for (uint64_t i = 0; i < 16; i++)
		CHECK_EQ(*(volatile uint64_t *)(m + i * 4096), 0x100 + i);
}

TEST(readonly_slot)
{
	struct kvm_run *run;
	struct vm vm;
	uint8_t *m = with_slot(&vm, MIB, KVM_MEM_READONLY);

	*(volatile uint64_t *)(m + 0x1000) = 0x726f6d;
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x1000), 0x726f6d);
	for (int i = 0; i < 2; i++) {
		vm_cells(&vm)[0] = TEST_GPA + 0x1000 + i * 0x1000;
		vm_cells(&vm)[1] = 2;
		vm_cells(&vm)[2] = 0x1122334455667788;
		vm_expect(&vm, KVM_EXIT_MMIO);
		run = vm.run;
		CHECK(run->mmio.is_write);
		CHECK_EQ(run->mmio.phys_addr, TEST_GPA + 0x1000 + i * 0x1000);
		CHECK_EQ(run->mmio.len, 8);
		CHECK(!memcmp(run->mmio.data, "\x88\x77\x66\x55\x44\x33\x22\x11", 8));
		vm_expect_out(&vm, 0x10);
	}
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x1000), 0x726f6d);
	/* User memory behind it may itself be read-only. */
	REQUIRE(!mprotect(m, MIB, PROT_READ));
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x1000), 0x726f6d);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x3000), 0);
}

TEST(slot_changes)
{
	struct vm vm;
	uint8_t *m = with_slot(&vm, MIB, 0), *other = map(MIB);

	guest_write(&vm, TEST_GPA, 1);
	/* Moved: the old place is nothing, the new one has the content. */
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA + 0x1000000, MIB, m);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x1000000), 1);
	vm_cells(&vm)[0] = TEST_GPA;
	vm_cells(&vm)[1] = 1;
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm.run->mmio.phys_addr, TEST_GPA);
	*(uint64_t *)vm.run->mmio.data = 0x5555;
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_cells(&vm)[3], 0x5555);
	/* Another slot may take the old place. */
	*(uint64_t *)other = 2;
	vm_slot(&vm, 6, 0, TEST_GPA, MIB, other);
	CHECK_EQ(guest_read(&vm, TEST_GPA), 2);
	/* Deleted. */
	vm_slot(&vm, 6, 0, TEST_GPA, 0, other);
	vm_cells(&vm)[0] = TEST_GPA;
	vm_cells(&vm)[1] = 1;
	vm_expect(&vm, KVM_EXIT_MMIO);
	vm_expect_out(&vm, 0x10);
	/* Deleted and made again, over other memory. */
	vm_slot(&vm, TEST_SLOT, 0, 0, 0, m);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA + 0x1000000, MIB, other);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x1000000), 2);
	/* Memory may be at two places of the guest. */
	vm_slot(&vm, 7, 0, TEST_GPA, MIB, other);
	guest_write(&vm, TEST_GPA + 0x4000, 44);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x1004000), 44);
	REQUIRE(!madvise(other, MIB, MADV_DONTNEED));
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x4000), 0);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x1004000), 0);
}

/* The guest's read of a page that is in no slot: an exit, answered. */
static void read_nothing(struct vm *vm, uint64_t gpa)
{
	vm_cells(vm)[0] = gpa;
	vm_cells(vm)[1] = 1;
	vm_expect(vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm->run->mmio.phys_addr, gpa);
	*(uint64_t *)vm->run->mmio.data = ~gpa;
	vm_expect_out(vm, 0x10);
	CHECK_EQ(vm_cells(vm)[3], ~gpa);
}

/* As many slots as there may be, each of one page: each page of the user's memory is behind 128 of them. */
TEST_SECONDS(many_slots, 120)
{
	const unsigned int pages = 256, n = is_bochs() ? 4096 : 32763;
	struct vm vm;
	uint8_t *m = map(pages * 4096), *other = map(4096);

	VM_NEW_LONG(&vm, accessor);
	madvise(m, pages * 4096, MADV_NOHUGEPAGE);
	for (unsigned int i = 0; i < pages; i++)
		*(uint64_t *)(m + i * 4096) = i;
	*(uint64_t *)other = 1000;
#define MANY_GPA(i) (TEST_GPA + (i) * 4096ull)
#define MANY_PAGE(i) (((i) * 97) % pages)
	/* Neither by guest-physical nor by user address in order: 32763 and 4096 have no factor in common with 1031. */
	for (unsigned int k = 0; k < n; k++) {
		unsigned int i = k * 1031 % n;

		vm_slot(&vm, i + 1, 0, MANY_GPA(i), 4096, m + MANY_PAGE(i) * 4096);
	}
	CHECK_ERRNO(try_slot(vm.fd, n < 32763 ? 32764 : 40000, 0, MANY_GPA(n), 4096, m), EINVAL);
	for (unsigned int i = 0; i < n; i += 29)
		CHECK_EQ(guest_read(&vm, MANY_GPA(i)), MANY_PAGE(i));
	CHECK_EQ(guest_read(&vm, MANY_GPA(n - 1)), MANY_PAGE(n - 1));
	read_nothing(&vm, MANY_GPA(n));
	/* One of three goes. What is left overlaps as before. */
	for (unsigned int i = 0; i < n; i += 3)
		vm_slot(&vm, i + 1, 0, 0, 0, m);
	CHECK_ERRNO(try_slot(vm.fd, 1, 0, MANY_GPA(0), 4096 * 2, m), EEXIST);
	CHECK_ERRNO(try_slot(vm.fd, 1, 0, MANY_GPA(1500), 4096 * 2, m), EEXIST);
	CHECK_ERRNO(try_slot(vm.fd, 1, 0, MANY_GPA(1499), 4096 * 2, m), EEXIST);
	CHECK_ERRNO(try_slot(vm.fd, 2, 0, MANY_GPA(1501), 4096, m + MANY_PAGE(1) * 4096), EEXIST);
	CHECK_ERRNO(try_slot(vm.fd, 1, 0, 0, 1ull << 30, m), EEXIST);
	CHECK_ERRNO(try_slot(vm.fd, 1, 0, 0, 0, m), EINVAL);
	for (unsigned int i = 0; i < n - 1; i += 87) {
		read_nothing(&vm, MANY_GPA(i));
		CHECK_EQ(guest_read(&vm, MANY_GPA(i + 1)), MANY_PAGE(i + 1));
	}
	/* Made again over another page, and one moved to where one was. */
	for (unsigned int i = 0; i < 300; i += 3)
		vm_slot(&vm, i + 1, 0, MANY_GPA(i), 4096, other);
	for (unsigned int i = 0; i < 300; i += 30)
		CHECK_EQ(guest_read(&vm, MANY_GPA(i)), 1000);
	vm_slot(&vm, 2, 0, MANY_GPA(300), 4096, m + MANY_PAGE(1) * 4096);
	CHECK_EQ(guest_read(&vm, MANY_GPA(300)), MANY_PAGE(1));
	read_nothing(&vm, MANY_GPA(1));
	/* A page of the host's goes from all slots over it; its neighbours stay. */
	REQUIRE(!madvise(m + 5 * 4096, 4096, MADV_DONTNEED));
	for (unsigned int i = 0; i < n; i++) {
		if (i % 3 && i != 1 && MANY_PAGE(i) == 5)
			CHECK_EQ(guest_read(&vm, MANY_GPA(i)), 0);
		else if (i % 3 && i != 1 && MANY_PAGE(i) == 6)
			CHECK_EQ(guest_read(&vm, MANY_GPA(i)), 6);
	}
	vm_free(&vm);
}

/* Slots come and go while the guest reads another one, and one of them moves under it. */
TEST_SECONDS(slot_changes_running, 120)
{
	uint8_t *m = map(MIB), *other = map(MIB);
	pthread_t thread;
	struct vm vm;
	void *end;

	VM_NEW_LONG(&vm, spin_read);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, MIB, m);
	vm_cells(&vm)[0] = TEST_GPA;
	*(volatile uint64_t *)m = 1;
	REQUIRE(!pthread_create(&thread, NULL, runner, &vm));
	CHECK(wait_for(&vm_cells(&vm)[3], 1));
	for (int i = 0; i < 50; i++) {
		vm_slot(&vm, 10, 0, 0x20000000, MIB, other);
		vm_slot(&vm, 10, 0, 0x20000000, 0, other);
	}
	for (int i = 0; i < 5; i++) {
		uint64_t before = vm_cells(&vm)[5];

		for (int j = 0; j < 20000 && vm_cells(&vm)[5] == before; j++)
			usleep(200);
		CHECK(vm_cells(&vm)[5] != before);
	}
	CHECK_EQ(vm_cells(&vm)[3], 1);
	/* Gone: the guest's next read is MMIO. */
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, 0, m);
	REQUIRE(!pthread_join(thread, &end));
	CHECK_EQ((intptr_t)end, -KVM_EXIT_MMIO);
	CHECK_EQ(vm.run->mmio.phys_addr, TEST_GPA);
}

TEST(huge_pages)
{
	struct vm vm;
	uint8_t *m, *base;

	VM_NEW_LONG(&vm, accessor);
	m = map(8 * MIB);
	base = (uint8_t *)(((uintptr_t)m + 2 * MIB - 1) & ~(2 * MIB - 1));
	if (madvise(base, 4 * MIB, MADV_HUGEPAGE))
		skip("no transparent huge pages");
	memset(base, 0x11, 4 * MIB);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, 4 * MIB, base);
	for (uint64_t i = 0; i < 4 * MIB; i += 0x35000) {
		uint64_t at = i & ~7ull;

		CHECK_EQ(guest_read(&vm, TEST_GPA + at), 0x1111111111111111);
		guest_write(&vm, TEST_GPA + at, i);
		CHECK_EQ(*(volatile uint64_t *)(base + at), i);
	}
	/* One page of a huge one can go. */
	REQUIRE(!madvise(base + 0x5000, 0x1000, MADV_DONTNEED));
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x5000), 0);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x4000), 0x1111111111111111);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x6000), 0x1111111111111111);
	REQUIRE(!mprotect(base + 0x200000, 0x1000, PROT_READ));
	guest_write(&vm, TEST_GPA + 0x201000, 3);
	vm_cells(&vm)[0] = TEST_GPA + 0x200000;
	vm_cells(&vm)[1] = 2;
	CHECK_EQ(vm_try_run(&vm), EFAULT);
}

TEST(dirty_log)
{
	uint64_t bitmap[5];
	struct kvm_dirty_log log = { .slot = TEST_SLOT, .dirty_bitmap = bitmap };
	struct vm vm;
	uint8_t *m = with_slot(&vm, MIB, 0);

#define DIRTY() do { memset(bitmap, 0xff, sizeof(bitmap)); OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log)); } while (0)
#define CHECK_DIRTY(a, b, c, d) do {								\
	DIRTY();										\
	CHECK_EQ(bitmap[0], a);									\
	CHECK_EQ(bitmap[1], b);									\
	CHECK_EQ(bitmap[2], c);									\
	CHECK_EQ(bitmap[3], d);									\
} while (0)
	/* A slot that does not log has no dirty log. */
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log), ENOENT);
	log.slot = 99;
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log), ENOENT);
	log.slot = 1 << 15;
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log), EINVAL);
	log.slot = TEST_SLOT;
	guest_write(&vm, TEST_GPA + 0x1000, 1);
	guest_write(&vm, TEST_GPA + 0x2000, 1);
	vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, MIB, m);
	CHECK_DIRTY(0, 0, 0, 0);
	guest_read(&vm, TEST_GPA + 0x1000);
	guest_read(&vm, TEST_GPA + 0x70000);
	CHECK_DIRTY(0, 0, 0, 0);
	guest_write(&vm, TEST_GPA + 0x1000, 2);
	guest_write(&vm, TEST_GPA + 0xff000, 2);
	guest_write(&vm, TEST_GPA + 0x41000, 2);
	guest_write(&vm, TEST_GPA + 0x41008, 2);
	CHECK_DIRTY(2, 2, 0, 1ull << 63);
	CHECK_EQ(bitmap[4], ~0ull);
	/* Reading it out has cleared it, and later writes are seen again. */
	CHECK_DIRTY(0, 0, 0, 0);
	guest_write(&vm, TEST_GPA + 0x1000, 3);
	CHECK_DIRTY(2, 0, 0, 0);
	/* A write that crosses pages. */
	guest_write(&vm, TEST_GPA + 0x5ffc, 3);
	CHECK_DIRTY(0x60, 0, 0, 0);
	log.dirty_bitmap = NULL;
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log), EFAULT);
	log.dirty_bitmap = bitmap;
	/* A log that is switched off and on again has nothing left over. */
	guest_write(&vm, TEST_GPA + 0x3000, 3);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, MIB, m);
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log), ENOENT);
	vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, MIB, m);
	CHECK_DIRTY(0, 0, 0, 0);
	CHECK_EQ(guest_read(&vm, TEST_GPA + 0x3000), 3);
}

GUEST64(insert_string,
	"cld; mov $" STR(TEST_ADDRESS) ", %edi\n"
	"mov $0x22, %edx; mov $4, %ecx; rep insb; hlt\n");

/* What the kernel writes for the guest is dirty too. */
TEST(dirty_log_emulator)
{
	uint64_t bitmap[4];
	struct kvm_dirty_log log = { .slot = TEST_SLOT, .dirty_bitmap = bitmap };
	uint8_t *m = map(MIB);
	struct vm vm;
	int done = 0;

	VM_NEW_LONG(&vm, insert_string);
	vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, MIB, m);
	while (done < 4) {
		vm_expect(&vm, KVM_EXIT_IO);
		memset(io_data(&vm), 'a', vm.run->io.count);
		done += vm.run->io.count;
	}
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK(!memcmp(m, "aaaa", 4));
	OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
	CHECK_EQ(bitmap[0], 1);
}

/* Accessed and dirty bits of the guest's own page tables. */
TEST(guest_accessed_dirty)
{
	struct vm vm;
	uint64_t *pt;

	vm_new(&vm, 4 * MIB);
	VM_LONG(&vm, accessor);
	pt = (uint64_t *)(vm.mem + 0x30000);
	memset(pt, 0, 4096);
	pt[1] = G_DATA | 3;
	pt[2] = (G_DATA + 0x1000) | 3;
	pt[3] = (G_DATA + 0x2000) | 1;
	*(uint64_t *)(vm.mem + G_PD0 + 8 * 100) = 0x30000 | 3;
	CHECK_EQ(guest_read(&vm, 100 * 2 * MIB + 0x1000), 0);
	CHECK_EQ(pt[1], G_DATA | 0x23);
	CHECK_EQ(*(uint64_t *)(vm.mem + G_PD0 + 8 * 100), 0x30000 | 0x23);
	CHECK_EQ(pt[2], (G_DATA + 0x1000) | 3);
	guest_write(&vm, 100 * 2 * MIB + 0x2000, 7);
	CHECK_EQ(pt[2], (G_DATA + 0x1000) | 0x63);
	CHECK_EQ(*(uint64_t *)(vm.mem + G_DATA + 0x1000), 7);
	/* A page that is read-only for the guest (CR0.WP) gives #PF with write and present. */
	vm_cells(&vm)[0] = 100 * 2 * MIB + 0x3000;
	vm_cells(&vm)[1] = 2;
	vm_log(&vm)->resume = G_CODE + (accessor_stop - accessor);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 14);
	CHECK_EQ(vm_log(&vm)->event[0].error, 3);
	CHECK_EQ(vm_log(&vm)->event[0].cr2, 100 * 2 * MIB + 0x3000);
	CHECK_EQ(pt[3] & 0x40, 0);
}

/* Code in a page that is written, remapped and run again. */
GUEST64(self_modifying,
	"mov $" STR(G_CODE) "+0x1000, %ebx\n"
	"movb $0xb8, (%rbx); movl $1, 1(%rbx); movb $0xc3, 5(%rbx); call *%rbx; mov %eax, %esi\n"
	"movl $2, 1(%rbx); call *%rbx; mov %eax, %edi\n"
	"hlt; call *%rbx; hlt\n");

TEST(self_modifying)
{
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, self_modifying);
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.rsi, 1);
	CHECK_EQ(r.rdi, 2);
	*(volatile uint32_t *)(vm.mem + G_CODE + 0x1001) = 3;
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rax, 3);
}

/* Memory above 4 GiB, and slots far apart. */
TEST(high_memory)
{
	uint8_t *m = map(2 * MIB);
	struct vm vm;
	uint64_t *pdpt;

	VM_NEW_LONG(&vm, accessor);
	pdpt = (uint64_t *)(vm.mem + G_PDPT);
	/* Guest-virtual 5 to 6 GiB: guest-physical 512 GiB - 1 GiB, in 2 MiB pages. */
	pdpt[5] = 0x30000 | 0x67;
	for (uint64_t i = 0; i < 512; i++)
		((uint64_t *)(vm.mem + 0x30000))[i] = (511ull << 30) + (i << 21) + 0xe7;
	vm_slot(&vm, TEST_SLOT, 0, 511ull << 30, 2 * MIB, m);
	guest_write(&vm, 5ull << 30, 0x51);
	CHECK_EQ(*(uint64_t *)m, 0x51);
	vm_cells(&vm)[0] = (5ull << 30) + 2 * MIB;
	vm_cells(&vm)[1] = 1;
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm.run->mmio.phys_addr, (511ull << 30) + 2 * MIB);
}
