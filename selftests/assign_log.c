// SPDX-License-Identifier: GPL-2.0
/*
 * Nothing that an assigned device writes is missing in a dirty log. The log says which pages it may have written: all
 * that it reaches, as long as it is there, and once more when it has gone.
 */
#define _GNU_SOURCE
#include "assign.h"
#include "log.h"
#include <pthread.h>
#include <signal.h>

#define SLOT 2
#define SLOT_ADDRESS 0x8000000
#define PAGES 128

/* Stores to the lower halves of the first pages; counts. */
GUEST64(storer,
	"mov $" STR(G_CELLS) ", %ebx; mov $0x5851f42d4c957f2d, %r9\n"
	"1: imul %r9, %rax; add $12345, %rax\n"
	"mov %rax, %rdi; shr $40, %rdi; and $63, %edi; shl $12, %edi\n"
	"mov %rax, " STR(SLOT_ADDRESS) "(%rdi); incq (%rbx); jmp 1b\n");

struct copy {
	struct vm vm;
	enum way way;
	uint8_t *memory, *shadow;
	struct ring ring;
	unsigned int copied;
};

static volatile bool done;

static void *run_storer(void *argument)
{
	struct vm *vm = argument;

	while (!done) {
		int error = vm_try_run(vm);

		if (error == EINTR || error == EAGAIN)
			continue;
		if (error || vm->run->exit_reason != KVM_EXIT_DIRTY_RING_FULL) {
			FAIL("KVM_RUN: %s, %s", strerrorname(error), exit_name(vm->run->exit_reason));
			break;
		}
		usleep(100);
	}
	return NULL;
}

static void copy_page(struct copy *c, unsigned int page)
{
	memcpy(c->shadow + page * PAGE, c->memory + page * PAGE, PAGE);
	c->copied++;
}

/* Copies what the log has; how many pages that were. */
static unsigned int collect(struct copy *c)
{
	uint64_t bitmap[PAGES / 64];
	struct kvm_dirty_log log = { .slot = SLOT, .dirty_bitmap = bitmap };
	struct kvm_clear_dirty_log clear = { .slot = SLOT, .num_pages = PAGES, .dirty_bitmap = bitmap };
	unsigned int before = c->copied, n = 0;
	uint64_t taken[RING_ENTRIES];
	struct kvm_dirty_gfn entry;

	if (c->way == RING_AND_BITMAP) {
		for (; harvest(&c->ring, &entry); n++) {
			REQUIRE(entry.slot == SLOT && entry.offset < PAGES && n < ARRAY_SIZE(taken));
			taken[n] = entry.offset;
		}
		CHECK_EQ(OK(ioctl(c->vm.fd, KVM_RESET_DIRTY_RINGS, 0)), n);
		while (n)
			copy_page(c, taken[--n]);
	}
	OK(ioctl(c->vm.fd, KVM_GET_DIRTY_LOG, &log));
	if (c->way == MANUAL || c->way == INITIALLY_SET) {
		/* Reading alone forgets nothing. */
		OK(ioctl(c->vm.fd, KVM_GET_DIRTY_LOG, &log));
		OK(ioctl(c->vm.fd, KVM_CLEAR_DIRTY_LOG, &clear));
	}
	for (unsigned int page = 0; page < PAGES; page++)
		if (bitmap[page / 64] >> page % 64 & 1)
			copy_page(c, page);
	return c->copied - before;
}

static void prepare(struct copy *c)
{
	struct vm *vm = &c->vm;

	vm_init(vm, 4 * MIB);
	choose_log(vm, c->way);
	vm_add_vcpu(vm, 0);
	VM_LONG(vm, storer);
	c->memory = map(PAGES * PAGE);
	c->shadow = map(PAGES * PAGE);
	vm_slot(vm, SLOT, 0, SLOT_ADDRESS, PAGES * PAGE, c->memory);
	if (c->way == RING_AND_BITMAP)
		c->ring.entries = map_ring(vm);
}

/* From this offset on each page is as it was copied last. */
static void compare(struct copy *c, unsigned int from)
{
	unsigned int lost = 0;

	for (unsigned int page = 0; page < PAGES; page++)
		lost += !!memcmp(c->memory + page * PAGE + from, c->shadow + page * PAGE + from, PAGE - from);
	CHECK_EQ(lost, 0);
}

/* The upper half of a page gets what the device has, which is never the same twice. */
static void write_page(volatile uint8_t *bar, struct copy *c, uint64_t slot_address, unsigned int page)
{
	static unsigned int number;

	memset(c->vm.mem + G_DATA, ++number, PAGE);
	dma(bar, G_DATA, PAGE / 2, false);
	dma(bar, slot_address + page * PAGE + PAGE / 2, PAGE / 2, true);
	CHECK_EQ(c->memory[page * PAGE + PAGE - 1], (uint8_t)number);
}

/* Device and vCPU write, while a third one copies what the log has. In the end the copy is the memory. */
static void copy_while_written(enum way way)
{
	struct sigaction action = { .sa_handler = nothing };
	struct address address = edu();
	struct copy c = { .way = way };
	volatile uint8_t *bar;
	pthread_t thread;
	int device;

	sigaction(SIGUSR1, &action, NULL);
	prepare(&c);
	device = assign(&c.vm, &address);
	bar = map_bar(device, 0);
	set_master(device, true);
	done = false;
	OK(-pthread_create(&thread, NULL, run_storer, &c.vm));
	write_page(bar, &c, SLOT_ADDRESS, 5);
	vm_slot(&c.vm, SLOT, KVM_MEM_LOG_DIRTY_PAGES, SLOT_ADDRESS, PAGES * PAGE, c.memory);
	memcpy(c.shadow, c.memory, PAGES * PAGE);
	for (unsigned int round = 0; round < 4; round++) {
		uint64_t before = vm_cells(&c.vm)[0];

		write_page(bar, &c, SLOT_ADDRESS, 5 + 32 * round);
		while (vm_cells(&c.vm)[0] < before + 50)
			usleep(100);
		CHECK(collect(&c) >= PAGES);
		compare(&c, PAGE / 2);
	}
	done = true;
	stop_thread(thread);
	/* What it has written is told to who asks after it has gone, by whichever way. */
	write_page(bar, &c, SLOT_ADDRESS, 77);
	if (way == MANUAL)
		unbind_device(&address);
	else if (way == INITIALLY_SET)
		OK(ioctl(device, RVMM_DEVICE_DEASSIGN, 0));
	munmap((void *)bar, MIB);
	close(device);
	CHECK(collect(&c) >= PAGES);
	compare(&c, 0);
	/* Nobody writes any more. */
	CHECK_EQ(collect(&c), 0);
	compare(&c, 0);
	vm_free(&c.vm);
	bind_device(&address);
}

TEST_SECONDS(copy_by_bitmap, 120)
{
	copy_while_written(BITMAP);
}

TEST_SECONDS(copy_by_cleared_bitmap, 120)
{
	copy_while_written(MANUAL);
}

TEST_SECONDS(copy_of_all_at_first, 120)
{
	copy_while_written(INITIALLY_SET);
}

TEST_SECONDS(copy_by_ring_and_bitmap, 120)
{
	copy_while_written(RING_AND_BITMAP);
}

/* What is in the log, and what is not: slots that the device does not reach, a log that begins later. */
TEST(logged_slots)
{
	struct address address = edu();
	struct copy c = { .way = BITMAP };
	uint64_t bitmap[PAGES / 64];
	struct kvm_dirty_log log = { .slot = 3, .dirty_bitmap = bitmap };
	uint8_t *rom = map(64 * PAGE);
	volatile uint8_t *bar;
	int device;

	prepare(&c);
	vm_slot(&c.vm, SLOT, KVM_MEM_LOG_DIRTY_PAGES, SLOT_ADDRESS, PAGES * PAGE, c.memory);
	vm_slot(&c.vm, 3, KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY, 0x9000000, 64 * PAGE, rom);
	CHECK_EQ(collect(&c), 0);
	device = assign(&c.vm, &address);
	bar = map_bar(device, 0);
	set_master(device, true);
	vm_slot(&c.vm, 4, KVM_MEM_LOG_DIRTY_PAGES, G_BAR, MIB, (void *)bar);
	CHECK_EQ(collect(&c), PAGES);
	OK(ioctl(c.vm.fd, KVM_GET_DIRTY_LOG, &log));
	CHECK_EQ(bitmap[0], 0);
	log.slot = 4;
	OK(ioctl(c.vm.fd, KVM_GET_DIRTY_LOG, &(struct kvm_dirty_log){ .slot = 4, .dirty_bitmap = (uint64_t[4]){ } }));
	/* A slot that moves takes its log with it. */
	write_page(bar, &c, SLOT_ADDRESS, 9);
	vm_slot(&c.vm, SLOT, KVM_MEM_LOG_DIRTY_PAGES, SLOT_ADDRESS + MIB, PAGES * PAGE, c.memory);
	write_page(bar, &c, SLOT_ADDRESS + MIB, 10);
	OK(ioctl(device, RVMM_DEVICE_DEASSIGN, 0));
	log.slot = 3;
	OK(ioctl(c.vm.fd, KVM_GET_DIRTY_LOG, &log));
	CHECK_EQ(bitmap[0], 0);
	CHECK_EQ(collect(&c), PAGES);
	compare(&c, 0);
	CHECK_EQ(collect(&c), 0);
	/* The next one finds it so. */
	close(device);
	device = assign(&c.vm, &address);
	CHECK_EQ(collect(&c), PAGES);
	close(device);
}

/* Rings alone have no place for what a device writes. */
TEST(rings_alone)
{
	struct address address = edu();
	struct vm vm;
	int device;

	vm_init(&vm, 4 * MIB);
	device = assign(&vm, &address);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING, RING_BYTES), EBUSY);
	close(device);
	OK(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING, RING_BYTES));
	check_refused(vm.fd, &address, EBUSY, "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP");
	OK(try_slot(vm.fd, 0, 0, 0, 0, NULL));
	OK(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0));
	vm_slot(&vm, 0, 0, 0, vm.bytes, vm.mem);
	close(assign(&vm, &address));
}
