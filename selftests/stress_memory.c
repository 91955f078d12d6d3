// SPDX-License-Identifier: GPL-2.0
/*
 * User memory goes in several threads at once while guests use it: no page of it may be reached by a guest
 * afterwards.
 */
#define _GNU_SOURCE
#include "vm.h"
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define TEST_SLOT 5
#define TEST_ADDRESS 0x8000000	/* identity-mapped, away from slot 0 */
#define TEST_GPA ((uint64_t)TEST_ADDRESS)
#define TEST_BYTES 0x80000
#define TEST_END 0x8080000	/* TEST_ADDRESS + TEST_BYTES, for the assembler */
#define PATTERN 0x5a5a5a5a5a5a5a5aull

/*
 * Writes to each page of the slot, over and over. Without the slot a write is an MMIO exit, which is ignored.
 * Interrupts are on, although none comes: Bochs does not leave a guest that masks them for the host's interrupts
 * (nor with KVM).
 */
GUEST64(writer,
	"sti; xor %eax, %eax\n"
	"1: inc %eax; mov $" STR(TEST_ADDRESS) ", %edi\n"
	"2: mov %rax, (%rdi); add $4096, %edi; cmp $" STR(TEST_END) ", %edi; jb 2b; jmp 1b\n");

/* Reads a page that does not come. */
GUEST64(reader,
	"mov $0x9000000, %esi; mov (%rsi), %rax; out %al, $0x10; hlt\n");

static volatile bool done;

/* Runs until told to stop; leaves the guest now and then by a signal from outside. */
static void *run_guest(void *argument)
{
	struct vm *vm = argument;

	while (!done) {
		int error = vm_try_run(vm);

		if (error && error != EINTR && error != EFAULT && error != EAGAIN) {
			FAIL("KVM_RUN: %s", strerrorname(error));
			break;
		}
	}
	return NULL;
}

static uint8_t *map(size_t bytes)
{
	uint8_t *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	REQUIRE(m != MAP_FAILED);
	madvise(m, bytes, MADV_NOHUGEPAGE);
	return m;
}

static uint8_t *remove_memory;

static void *run_until_out(void *argument)
{
	vm_expect_out(argument, 0x10);
	return NULL;
}

static void *delete_slot(void *argument)
{
	OK(try_slot(((struct vm *)argument)->fd, TEST_SLOT, 0, 0, 0, NULL));
	return NULL;
}

static void *move_slot(void *argument)
{
	OK(try_slot(((struct vm *)argument)->fd, TEST_SLOT, 0, TEST_GPA + 0x2000000, TEST_BYTES, remove_memory));
	return NULL;
}

/*
 * munmap() in the middle of a slot's removal. A second vCPU waits in a fault for a page that we hold back: while it
 * reads the old slots, their removal cannot end.
 */
static void leave(void *(*change)(void *))
{
	struct sigaction action = { .sa_handler = nothing };
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_zeropage zero = { 0 };
	pthread_t guest, waiter, changer;
	struct vm vm, second;
	uint8_t *late;
	uint64_t *other;
	struct pollfd event = { .events = POLLIN };

	event.fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (event.fd < 0)
		skip("no userfaultfd: %s", strerrorname(errno));
	late = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	OK(ioctl(event.fd, UFFDIO_API, &api));
	range.range.start = zero.range.start = (uintptr_t)late;
	range.range.len = zero.range.len = 4096;
	OK(ioctl(event.fd, UFFDIO_REGISTER, &range));

	sigaction(SIGUSR1, &action, NULL);
	VM_NEW_LONG(&vm, writer);
	second = vm_second_vcpu(&vm, 1);
	memcpy(vm.mem + G_DATA, reader, reader_end - reader);
	vm_long_state(&second);
	{
		struct kvm_regs regs = vm_regs(&second);

		regs.rip = G_DATA;
		vm_set_regs(&second, &regs);
	}
	remove_memory = map(TEST_BYTES);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, TEST_BYTES, remove_memory);
	vm_slot(&vm, TEST_SLOT + 1, 0, TEST_GPA + 0x1000000, 4096, late);
	pthread_create(&guest, NULL, run_guest, &vm);
	while (*(volatile uint64_t *)(remove_memory + TEST_BYTES - 4096) < 10)
		usleep(100);
	pthread_create(&waiter, NULL, run_until_out, &second);
	REQUIRE_EQ(poll(&event, 1, 10000), 1);
	pthread_create(&changer, NULL, change, &vm);
	usleep(50000);

	/* As munmap(), but nothing else comes to that address. */
	REQUIRE(mmap(remove_memory, TEST_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		     0) != MAP_FAILED);
	/* Very likely the same pages, in other use. */
	other = (uint64_t *)map(TEST_BYTES);
	for (size_t i = 0; i < TEST_BYTES / 8; i++)
		other[i] = PATTERN;
	usleep(50000);
	for (size_t i = 0; i < TEST_BYTES / 8; i += 512)
		if (other[i] != PATTERN) {
			FAIL("page %zu of another mapping was written by the guest", i / 512);
			break;
		}
	OK(ioctl(event.fd, UFFDIO_ZEROPAGE, &zero));
	pthread_join(changer, NULL);
	pthread_join(waiter, NULL);
	done = true;
	stop_thread(guest);
	vm_free(&vm);
}

TEST_SECONDS(memory_of_a_deleted_slot, 60)
{
	leave(delete_slot);
}

TEST_SECONDS(memory_of_a_moved_slot, 60)
{
	leave(move_slot);
}

/* What the parent's guest writes after a fork() is not the child's. */
static void check_child(uint8_t *memory)
{
	pid_t child = fork_child();
	int status;

	if (child == 0) {
		volatile uint64_t *cell = (uint64_t *)memory;
		uint64_t before = *cell;

		usleep(2000);
		_exit(*cell == before ? 0 : 1);
	}
	if (child > 0) {
		waitpid(child, &status, 0);
		CHECK_EQ(status, 0);
	}
}

static void read_log(struct vm *vm)
{
	uint64_t bitmap[TEST_BYTES / 4096 / 64];
	struct kvm_dirty_log log = { .slot = TEST_SLOT };

	log.dirty_bitmap = bitmap;
	OK(ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log));
}

/* The guest writes to each page still. */
static void check_writes(uint8_t *memory)
{
	for (size_t at = 0; at < TEST_BYTES; at += 4096)
		*(volatile uint64_t *)(memory + at) = ~0ull;
	for (int wait = 0; wait < 2000; wait++) {
		size_t at;

		for (at = 0; at < TEST_BYTES && *(volatile uint64_t *)(memory + at) != ~0ull; at += 4096)
			;
		if (at == TEST_BYTES)
			break;
		usleep(1000);
		if (wait == 1999)
			FAIL("page %#zx is not written by the guest any more", at);
	}
}

/* Everything that changes user memory, under two running vCPUs; then the guest's writes still arrive. */
TEST_SECONDS(everything_at_once, 120)
{
	struct sigaction action = { .sa_handler = nothing };
	uint8_t *memory = map(TEST_BYTES);
	pthread_t guest[2];
	struct vm vm, second;
	unsigned int seed = 1;

	sigaction(SIGUSR1, &action, NULL);
	VM_NEW_LONG(&vm, writer);
	second = vm_second_vcpu(&vm, 1);
	vm_long_state(&second);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, TEST_BYTES, memory);
	pthread_create(&guest[0], NULL, run_guest, &vm);
	pthread_create(&guest[1], NULL, run_guest, &second);
	for (int i = 0; i < 400; i++) {
		size_t at = (rand_r(&seed) % (TEST_BYTES / 4096)) * 4096, bytes = 4096 * (1 + rand_r(&seed) % 32);

		if (at + bytes > TEST_BYTES)
			bytes = TEST_BYTES - at;
		switch (rand_r(&seed) % 8) {
		case 0:
			madvise(memory + at, bytes, MADV_DONTNEED);
			break;
		case 1:
			mprotect(memory + at, bytes, PROT_READ);
			mprotect(memory + at, bytes, PROT_READ | PROT_WRITE);
			break;
		case 2:
			REQUIRE(mmap(memory + at, bytes, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
			break;
		case 3:
			if (rand_r(&seed) % 4 == 0)
				check_child(memory);
			break;
		case 4:
			vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, TEST_BYTES, memory);
			read_log(&vm);
			vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, TEST_BYTES, memory);
			break;
		case 5:
			OK(try_slot(vm.fd, TEST_SLOT, 0, 0, 0, NULL));
			vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, TEST_BYTES, memory);
			break;
		case 6:
			madvise(memory, TEST_BYTES, rand_r(&seed) & 1 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
			break;
		default:
			pthread_kill(guest[rand_r(&seed) & 1], SIGUSR1);
		}
	}
	check_writes(memory);
	done = true;
	stop_thread(guest[0]);
	stop_thread(guest[1]);
	vm_free(&vm);
}
