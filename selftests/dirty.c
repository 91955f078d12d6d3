// SPDX-License-Identifier: GPL-2.0
/* Dirty rings (api.rst 8.29), and whether a dirty log, of either kind, misses a write. */
#define _GNU_SOURCE
#include "log.h"
#include <pthread.h>
#include <signal.h>

#define TEST_SLOT 5
#define TEST_ADDRESS 0x8000000	/* identity-mapped, away from slot 0 */
#define TEST_GPA ((uint64_t)TEST_ADDRESS)
#define PAGE 4096ull

#define MOST_ENTRIES 65536u
/* So many are kept free at most. */
#define RESERVED (64u + 512u)

#define WALL_CLOCK_NEW 0x4b564d00u

/* Whether this is KVM, with the processor logging writes. */
static bool kvm_has_pml(void)
{
	int fd = open("/sys/module/kvm_intel/parameters/pml", O_RDONLY);
	char on = 'N';

	if (fd < 0)
		return false;
	if (read(fd, &on, 1) != 1)
		on = 'N';
	close(fd);
	return !is_rvmm() && on == 'Y';
}

/* A VM with rings, a slot of `pages` that is logged, and a vCPU that is about to run `code`. */
static uint8_t *with_ring(struct vm *vm, struct ring *ring, uint64_t pages)
{
	uint8_t *m = map(pages * PAGE);

	vm_init(vm, 4 * MIB);
	choose_log(vm, RING);
	vm_add_vcpu(vm, 0);
	vm_slot(vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, pages * PAGE, m);
	*ring = (struct ring){ .entries = map_ring(vm) };
	return m;
}

/* cells: 0 address, 1 number of pages; writes to each page, then does an OUT. */
GUEST64(filler,
	"mov $" STR(G_CELLS) ", %ebx\n"
	"1: mov (%rbx), %rsi; mov 8(%rbx), %rcx\n"
	"2: test %rcx, %rcx; jz 3f\n"
	"mov %rcx, (%rsi); add $4096, %rsi; dec %rcx; jmp 2b\n"
	"3: out %al, $0x10; jmp 1b\n");

static void fill(struct vm *vm, uint64_t page, uint64_t count)
{
	vm_cells(vm)[0] = TEST_GPA + page * PAGE;
	vm_cells(vm)[1] = count;
}

TEST(ring_sizes)
{
	struct vm vm;

	vm_init(&vm, 4 * MIB);
	need_rings(&vm);
	CHECK_EQ(ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING),
		 MOST_ENTRIES * sizeof(struct kvm_dirty_gfn));
	CHECK_EQ(ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_ACQ_REL),
		 MOST_ENTRIES * sizeof(struct kvm_dirty_gfn));
	CHECK_ERRNO(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0), EINVAL);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0), EINVAL);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING, 0), EINVAL);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING, 2048), EINVAL);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING, 3 * PAGE), EINVAL);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING, RING_BYTES + 16), EINVAL);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING, 2 * MOST_ENTRIES * sizeof(struct kvm_dirty_gfn)), E2BIG);
	OK(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, RING_BYTES));
	/* Only once. */
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING, RING_BYTES), EINVAL);
	CHECK_EQ(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0), 0);
	vm_add_vcpu(&vm, 0);
	CHECK_EQ(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0), 0);
	vm_free(&vm);
	/* Not after the first vCPU. */
	vm_new(&vm, 4 * MIB);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING, RING_BYTES), EINVAL);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING, 2 * MOST_ENTRIES * sizeof(struct kvm_dirty_gfn)), E2BIG);
}

TEST(ring_mapping)
{
	const off_t at = KVM_DIRTY_LOG_PAGE_OFFSET * PAGE;
	struct ring ring;
	struct vm vm;
	void *m;

	with_ring(&vm, &ring, 64);
	CHECK_EQ(mmap(NULL, RING_BYTES, PROT_READ, MAP_PRIVATE, vm.vcpu, at), MAP_FAILED);
	CHECK_EQ(errno, EINVAL);
	CHECK_EQ(mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, vm.vcpu, at), MAP_FAILED);
	CHECK_EQ(errno, EINVAL);
	CHECK_EQ(mmap(NULL, RING_BYTES, PROT_READ | PROT_EXEC, MAP_SHARED, vm.vcpu, at), MAP_FAILED);
	CHECK_EQ(mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, vm.vcpu, at + RING_BYTES - PAGE), MAP_FAILED);
	/* From before the ring into it, and beyond. */
	CHECK_EQ(mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, vm.vcpu, at - PAGE), MAP_FAILED);
	CHECK_EQ(mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, vm.vcpu, at + RING_BYTES - PAGE), MAP_FAILED);
	m = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, vm.vcpu, at);
	REQUIRE(m != MAP_FAILED);
	if (is_rvmm())
		CHECK_ERRNO(mprotect(m, PAGE, PROT_READ | PROT_EXEC), EACCES);
	CHECK_EQ(*(volatile uint32_t *)m, 0);
	/* Both see the same memory, to its last byte. */
	ring.entries[RING_ENTRIES - 1].offset = 0x1234;
	m = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, vm.vcpu, at + RING_BYTES - PAGE);
	REQUIRE(m != MAP_FAILED);
	CHECK_EQ(((struct kvm_dirty_gfn *)m)[PAGE / 16 - 1].offset, 0x1234);
	/* It outlives the VM. */
	vm_free(&vm);
	CHECK_EQ(ring.entries[RING_ENTRIES - 1].offset, 0x1234);
}

/*
 * More pages than there are entries, several times around. The page that fills the ring up is entered twice: the guest
 * has not written it yet when it is protected again.
 */
TEST(ring_full)
{
	enum { PAGES = 2000 };
	static uint8_t seen[PAGES];
	struct kvm_dirty_gfn e;
	unsigned int reason, total = 0, stops = 0;
	struct ring ring;
	struct vm vm;

	with_ring(&vm, &ring, PAGES);
	VM_LONG(&vm, filler);
	for (int round = 1; round <= 2; round++) {
		fill(&vm, 0, PAGES);
		do {
			unsigned int count = 0, again = 0;

			reason = vm_run(&vm);
			if (reason == KVM_EXIT_DIRTY_RING_FULL) {
				stops++;
				/* It stays full until it is reset, and the guest stays where it is. */
				vm_expect(&vm, KVM_EXIT_DIRTY_RING_FULL);
			}
			while (harvest(&ring, &e)) {
				count++;
				CHECK_EQ(e.slot, TEST_SLOT);
				REQUIRE(e.offset < PAGES);
				/* The write at which the ring was full comes once more, after the reset. */
				again += seen[e.offset] == round;
				CHECK(seen[e.offset] == round - 1 || again == 1);
				seen[e.offset] = round;
			}
			if (reason == KVM_EXIT_DIRTY_RING_FULL) {
				CHECK(count >= RING_ENTRIES - RESERVED && count < RING_ENTRIES);
				/* Noted is not yet reset. */
				vm_expect(&vm, KVM_EXIT_DIRTY_RING_FULL);
			}
			CHECK_EQ(OK(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0)), count);
			total += count;
		} while (reason == KVM_EXIT_DIRTY_RING_FULL);
		REQUIRE_EQ(reason, KVM_EXIT_IO);
		for (unsigned int i = 0; i < PAGES; i++)
			if (seen[i] != round)
				FAIL("page %u is not in the ring, round %d", i, round);
	}
	CHECK(stops >= 2);
	note("%u entries, the ring was full %u times", total, stops);
}

/* A page is entered once until it is reset. */
TEST(ring_reset)
{
	struct kvm_dirty_gfn e;
	struct ring ring;
	struct vm vm;

	uint8_t *m = with_ring(&vm, &ring, 256);

	VM_LONG(&vm, filler);
	for (int i = 0; i < 3; i++) {
		fill(&vm, 10, 3);
		vm_expect_out(&vm, 0x10);
	}
	/* Nobody has taken note yet. */
	CHECK_EQ(OK(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0)), 0);
	for (int i = 0; i < 3; i++) {
		REQUIRE(harvest(&ring, &e));
		CHECK_EQ(e.offset, 10 + i);
		/* Only what is noted in a row is reset. */
		if (i == 1)
			ring.entries[1].flags = KVM_DIRTY_GFN_F_DIRTY;
	}
	CHECK(!harvest(&ring, &e));
	CHECK_EQ(OK(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0)), 1);
	CHECK_EQ(ring.entries[0].flags, 0);
	ring.entries[1].flags = KVM_DIRTY_GFN_F_RESET;
	CHECK_EQ(OK(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0)), 2);
	/* These three are protected again, others of the slot were never mapped. */
	fill(&vm, 8, 6);
	vm_expect_out(&vm, 0x10);
	for (int i = 0; i < 6; i++) {
		REQUIRE(harvest(&ring, &e));
		CHECK_EQ(e.offset, 8 + i);
	}
	CHECK(!harvest(&ring, &e));
	CHECK_EQ(OK(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0)), 6);
	/* Logging that begins where pages are mapped already protects them. */
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, 256 * PAGE, m);
	fill(&vm, 0, 20);
	vm_expect_out(&vm, 0x10);
	vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, 256 * PAGE, m);
	CHECK(!harvest(&ring, &e));
	fill(&vm, 19, 1);
	vm_expect_out(&vm, 0x10);
	REQUIRE(harvest(&ring, &e));
	CHECK_EQ(e.offset, 19);
	CHECK(!harvest(&ring, &e));
}

/* User space writes what it likes into the ring. */
TEST(ring_forged)
{
	struct kvm_dirty_gfn e;
	struct ring ring;
	struct vm vm;

	with_ring(&vm, &ring, 256);
	VM_LONG(&vm, filler);
	fill(&vm, 0, 6);
	vm_expect_out(&vm, 0x10);
	ring.entries[0] = (struct kvm_dirty_gfn){ .flags = 3, .slot = ~0u, .offset = 0 };
	ring.entries[1] = (struct kvm_dirty_gfn){ .flags = 2, .slot = TEST_SLOT, .offset = 256 };
	ring.entries[2] = (struct kvm_dirty_gfn){ .flags = ~0u, .slot = TEST_SLOT, .offset = ~0ull };
	ring.entries[3] = (struct kvm_dirty_gfn){ .flags = 2, .slot = TEST_SLOT, .offset = 1ull << 52 };
	ring.entries[4] = (struct kvm_dirty_gfn){ .flags = 2, .slot = 77, .offset = 1 };
	ring.entries[5] = (struct kvm_dirty_gfn){ .flags = 2, .slot = 1 << 16 | TEST_SLOT, .offset = 1 };
	CHECK_EQ(OK(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0)), 6);
	ring.next = 6;
	/* None of the written pages has been named, so none is protected. */
	fill(&vm, 0, 6);
	vm_expect_out(&vm, 0x10);
	CHECK(!harvest(&ring, &e));
	if (is_rvmm()) {
		/* Entries that the vCPU has not written yet. KVM believes them, and counts wrong from then on. */
		for (unsigned int i = 0; i < RING_ENTRIES; i++)
			ring.entries[i].flags = KVM_DIRTY_GFN_F_RESET;
		CHECK_EQ(OK(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0)), 0);
		memset(ring.entries, 0, RING_BYTES);
	}
	fill(&vm, 100, 2);
	vm_expect_out(&vm, 0x10);
	REQUIRE(harvest(&ring, &e));
	CHECK_EQ(e.offset, 100);
	REQUIRE(harvest(&ring, &e));
	CHECK_EQ(e.offset, 101);
	CHECK_EQ(OK(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0)), 2);
}

GUEST64(insert_string,
	"cld; mov $" STR(TEST_ADDRESS) "+0x5ffe, %edi\n"
	"mov $0x22, %edx; mov $4, %ecx; rep insb; hlt\n");

/* What the kernel writes for a vCPU is in its ring. */
TEST(ring_of_kernel_writes)
{
	bool seen[8] = { false };
	struct kvm_dirty_gfn e;
	struct ring ring;
	struct vm vm;
	int done = 0;

	with_ring(&vm, &ring, 256);
	VM_LONG(&vm, insert_string);
	while (done < 4) {
		vm_expect(&vm, KVM_EXIT_IO);
		memset(io_data(&vm), 'a', vm.run->io.count);
		done += vm.run->io.count;
	}
	vm_expect(&vm, KVM_EXIT_HLT);
	while (harvest(&ring, &e)) {
		REQUIRE(e.offset < 8);
		seen[e.offset] = true;
	}
	CHECK(seen[5] && seen[6] && !seen[4] && !seen[7]);
	/* From an ioctl. */
	if (!set_msr(&vm, WALL_CLOCK_NEW, TEST_GPA + 9 * PAGE))
		return;
	REQUIRE(harvest(&ring, &e));
	CHECK_EQ(e.offset, 9);
}

TEST(ring_and_bitmap)
{
	uint64_t bitmap[4];
	struct kvm_dirty_log log = { .slot = TEST_SLOT, .dirty_bitmap = bitmap };
	struct kvm_clear_dirty_log clear = { .slot = TEST_SLOT, .num_pages = 256, .dirty_bitmap = bitmap };
	struct kvm_dirty_gfn e;
	struct ring ring;
	struct vm vm;
	uint8_t *m = map(256 * PAGE);

	with_ring(&vm, &ring, 256);
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log), ENXIO);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CLEAR_DIRTY_LOG, &clear), ENXIO);
	/* There are slots. */
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0), EINVAL);
	if (!has_extension(vm.kvm, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP))
		return;
	vm_free(&vm);
	vm_init(&vm, 4 * MIB);
	choose_log(&vm, RING_AND_BITMAP);
	vm_add_vcpu(&vm, 0);
	ring = (struct ring){ .entries = map_ring(&vm) };
	vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, 256 * PAGE, m);
	VM_LONG(&vm, filler);
	fill(&vm, 3, 1);
	vm_expect_out(&vm, 0x10);
	/* What a vCPU writes is in its ring alone. */
	OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
	CHECK_EQ(bitmap[0], 0);
	REQUIRE(harvest(&ring, &e));
	CHECK_EQ(e.offset, 3);
}

/* A counter of the vCPU's. */
static uint64_t counter(struct vm *vm, const char *name)
{
	uint8_t buffer[sizeof(struct kvm_stats_desc) + 256];
	struct kvm_stats_desc *d = (void *)buffer;
	int fd = OK(ioctl(vm->vcpu, KVM_GET_STATS_FD, NULL));
	struct kvm_stats_header h;
	uint64_t value = 0;

	REQUIRE(pread(fd, &h, sizeof(h), 0) == sizeof(h));
	for (unsigned int i = 0; i < h.num_desc; i++) {
		size_t bytes = sizeof(*d) + h.name_size;

		REQUIRE(bytes <= sizeof(buffer));
		REQUIRE(pread(fd, buffer, bytes, h.desc_offset + i * bytes) == bytes);
		if (strncmp((char *)(d + 1), name, h.name_size))
			continue;
		REQUIRE(pread(fd, &value, sizeof(value), h.data_offset + d->offset) == sizeof(value));
		close(fd);
		return value;
	}
	DIE("no counter %s", name);
}

/*
 * What notices writes: a fault for each page, or, where the processor logs them itself (the ring keeps more entries
 * free then), an exit for each 512.
 */
TEST(noticed_by)
{
	enum { PAGES = 1024 };
	uint64_t bitmap[PAGES / 64], faults[4];
	struct kvm_dirty_log log = { .slot = TEST_SLOT, .dirty_bitmap = bitmap };
	struct ring ring;
	bool by_processor;
	struct vm vm;
	uint8_t *m;

	if (!is_rvmm())
		skip("KVM counts otherwise");
	with_ring(&vm, &ring, PAGES);
	VM_LONG(&vm, filler);
	fill(&vm, 0, PAGES);
	vm_expect(&vm, KVM_EXIT_DIRTY_RING_FULL);
	by_processor = ring.entries[RING_ENTRIES - RESERVED].flags == 0;
	vm_free(&vm);

	m = map(PAGES * PAGE);
	madvise(m, PAGES * PAGE, MADV_NOHUGEPAGE);
	VM_NEW_LONG(&vm, filler);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, PAGES * PAGE, m);
	for (int i = 0; i < 4; i++) {
		faults[i] = counter(&vm, "exit_nested_fault");
		fill(&vm, 0, PAGES);
		vm_expect_out(&vm, 0x10);
		faults[i] = counter(&vm, "exit_nested_fault") - faults[i];
		if (i == 0)
			vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, PAGES * PAGE, m);
		OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
		for (int w = 0; w < PAGES / 64; w++)
			CHECK_EQ(bitmap[w], i ? ~0ull : 0);
	}
	CHECK(faults[0] >= PAGES);
	for (int i = 1; i < 4; i++)
		CHECK(by_processor ? faults[i] <= PAGES / 512 + 8 : faults[i] >= PAGES);
	note("%s: %llu exits for %u pages", by_processor ? "the processor's log" : "faults",
	     (unsigned long long)faults[3], PAGES);
}

/* cells: 0 what to write, and when; 1 what has been written. */
GUEST64(answerer,
	"sti; mov $" STR(G_CELLS) ", %ebx; xor %ecx, %ecx\n"
	"1: mov (%rbx), %rax; cmp %rcx, %rax; je 1b; mov %rax, %rcx\n"
	"mov %rax, %rdi; and $255, %edi; shl $12, %edi\n"
	"mov %rax, " STR(TEST_ADDRESS) "(%rdi); mov %rax, 8(%rbx); jmp 1b\n");

static void *run_scatter(void *argument);
static volatile bool stop;

/* A write that user space knows of is in the log, although its vCPU goes on running. */
TEST_SECONDS(known_writes, 120)
{
	struct sigaction action = { .sa_handler = nothing };
	uint64_t bitmap[4];
	struct kvm_dirty_log log = { .slot = TEST_SLOT, .dirty_bitmap = bitmap };
	uint8_t *m = map(256 * PAGE);
	pthread_t thread;
	struct vm vm;

	/* KVM sends vCPUs a signal to empty the processor's log, and reads the bitmap without waiting for them. */
	if (kvm_has_pml())
		skip("KVM does not wait for the processor's log");
	sigaction(SIGUSR1, &action, NULL);
	VM_NEW_LONG(&vm, answerer);
	vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, 256 * PAGE, m);
	pthread_create(&thread, NULL, run_scatter, &vm);
	for (uint64_t n = 1; n < 100; n++) {
		uint64_t page = n * 7 & 63;

		vm_cells(&vm)[0] = n << 8 | page;
		while (vm_cells(&vm)[1] != (n << 8 | page))
			;
		OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
		/* The one before may be there again: it was protected while its entry was still on its way. */
		if (!(bitmap[0] >> page & 1))
			FAIL("write %llu is not in the log", (unsigned long long)n);
	}
	stop = true;
	stop_thread(thread);
}

/* The guest of known_writes writes to `page`. */
static void write_page(struct vm *vm, uint64_t page)
{
	static uint64_t number;
	uint64_t word = ++number << 8 | page;

	vm_cells(vm)[0] = word;
	while (vm_cells(vm)[1] != word)
		;
}

static bool in_ring(struct ring *ring, uint64_t page)
{
	struct kvm_dirty_gfn e;

	/* KVM does not wait for vCPUs that are on their way out. */
	for (int i = 0; i < 200; i++, usleep(100))
		while (harvest(ring, &e))
			if (e.offset == page)
				return true;
	return false;
}

/* What has been written before a slot moves is in the ring, although the address is not the slot's any more. */
TEST_SECONDS(ring_of_moved_slot, 120)
{
	struct sigaction action = { .sa_handler = nothing };
	struct ring ring;
	pthread_t thread;
	struct vm vm;
	uint8_t *m;

	if (kvm_has_pml())
		skip("KVM looks for what the processor has logged in the slots as they are");
	sigaction(SIGUSR1, &action, NULL);
	m = with_ring(&vm, &ring, 64);
	VM_LONG(&vm, answerer);
	stop = false;
	pthread_create(&thread, NULL, run_scatter, &vm);
	for (uint64_t page = 1; page < 9; page++) {
		write_page(&vm, page);
		CHECK(in_ring(&ring, page));
		OK(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0));
		/* Now it is mapped, and the processor may note the write. */
		write_page(&vm, page);
		vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA + 64 * PAGE, 64 * PAGE, m);
		CHECK(in_ring(&ring, page));
		vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, 64 * PAGE, m);
		OK(ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0));
	}
	stop = true;
	stop_thread(thread);
}

/* --- whether a write is missed ------------------------------------------------------------------------------- */

#define COPY_PAGES 256
#define COPY_BYTES (COPY_PAGES * PAGE)
#define ROUNDS 40

/*
 * Writes to pages in an order that looks random, and counts in the cell that %rbx points to. %r8: offset in pages;
 * interrupts are on, since Bochs does not leave a guest that masks them.
 */
GUEST64(scatter,
	"sti; mov $0x5851f42d4c957f2d, %r9\n"
	"1: imul %r9, %rax; add $12345, %rax\n"
	"mov %rax, %rdi; shr $40, %rdi; and $255, %edi; shl $12, %edi\n"
	"mov %rax, " STR(TEST_ADDRESS) "(%rdi,%r8)\n"
	"incq (%rbx); jmp 1b\n");

static void *run_scatter(void *argument)
{
	struct vm *vm = argument;

	while (!stop) {
		int error = vm_try_run(vm);

		if (error && error != EINTR && error != EAGAIN) {
			FAIL("KVM_RUN: %s", strerrorname(error));
			break;
		}
		if (!error && vm->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL)
			usleep(100);
		else if (!error) {
			FAIL("KVM_RUN: %s", exit_name(vm->run->exit_reason));
			break;
		}
	}
	return NULL;
}

struct copy {
	struct vm vm[2];
	struct ring ring[2];
	uint8_t *memory, *copy;
	enum way way;
	uint64_t pages;
};

static void copy_page(struct copy *c, uint64_t page)
{
	REQUIRE(page < COPY_PAGES);
	memcpy(c->copy + page * PAGE, c->memory + page * PAGE, PAGE);
	c->pages++;
}

static void collect(struct copy *c)
{
	uint64_t bitmap[COPY_PAGES / 64];
	struct kvm_dirty_log log = { .slot = TEST_SLOT, .dirty_bitmap = bitmap };
	struct kvm_clear_dirty_log clear = { .slot = TEST_SLOT, .num_pages = COPY_PAGES, .dirty_bitmap = bitmap };
	static uint64_t list[2 * RING_ENTRIES];
	struct kvm_dirty_gfn e;
	unsigned int n = 0;

	if (c->way == RING) {
		for (int i = 0; i < 2; i++)
			while (n < ARRAY_SIZE(list) && harvest(&c->ring[i], &e))
				list[n++] = e.offset;
		CHECK_EQ(OK(ioctl(c->vm[0].fd, KVM_RESET_DIRTY_RINGS, 0)), n);
		while (n)
			copy_page(c, list[--n]);
		return;
	}
	OK(ioctl(c->vm[0].fd, KVM_GET_DIRTY_LOG, &log));
	if (c->way == MANUAL)
		OK(ioctl(c->vm[0].fd, KVM_CLEAR_DIRTY_LOG, &clear));
	for (unsigned int i = 0; i < COPY_PAGES; i++)
		if (bitmap[i / 64] >> i % 64 & 1)
			copy_page(c, i);
}

/*
 * Two vCPUs write to all pages in turn, each to words of its own, while their pages are collected and copied. In the
 * end the copy is the memory.
 */
static void copy_while_written(enum way way)
{
	struct sigaction action = { .sa_handler = nothing };
	struct copy c = { .way = way };
	pthread_t thread[2];
	unsigned int wrong = 0;

	sigaction(SIGUSR1, &action, NULL);
	vm_init(&c.vm[0], 4 * MIB);
	choose_log(&c.vm[0], way);
	vm_add_vcpu(&c.vm[0], 0);
	VM_LONG(&c.vm[0], scatter);
	c.vm[1] = vm_second_vcpu(&c.vm[0], 1);
	vm_long_state(&c.vm[1]);
	c.memory = map(COPY_BYTES);
	c.copy = map(COPY_BYTES);
	vm_slot(&c.vm[0], TEST_SLOT, 0, TEST_GPA, COPY_BYTES, c.memory);
	for (int i = 0; i < 2; i++) {
		struct kvm_regs r = vm_regs(&c.vm[i]);

		r.rax = 77 + i;
		r.rbx = G_CELLS + 64 * i;
		r.r8 = 8 * i;
		vm_set_regs(&c.vm[i], &r);
		if (way == RING)
			c.ring[i].entries = map_ring(&c.vm[i]);
		pthread_create(&thread[i], NULL, run_scatter, &c.vm[i]);
	}
	/* Logging begins while pages are mapped and written: what is there then has to be copied as a whole. */
	for (int i = 0; i < 2; i++)
		while (vm_cells(&c.vm[0])[8 * i] < 1000)
			usleep(100);
	vm_slot(&c.vm[0], TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, COPY_BYTES, c.memory);
	memcpy(c.copy, c.memory, COPY_BYTES);
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t before = vm_cells(&c.vm[0])[8 * (round & 1)];

		/* From a few pages to all of them, several times over. */
		for (int wait = 0; wait < 20 && vm_cells(&c.vm[0])[8 * (round & 1)] < before + 60 * round; wait++)
			usleep(100);
		collect(&c);
	}
	stop = true;
	stop_thread(thread[0]);
	stop_thread(thread[1]);
	collect(&c);
	for (uint64_t i = 0; i < COPY_PAGES; i++)
		wrong += !!memcmp(c.copy + i * PAGE, c.memory + i * PAGE, PAGE);
	CHECK_EQ(wrong, 0);
	CHECK(c.pages > 2 * COPY_PAGES);
	/* Nobody writes any more. */
	c.pages = 0;
	collect(&c);
	CHECK_EQ(c.pages, 0);
	vm_free(&c.vm[0]);
}

TEST_SECONDS(copy_by_bitmap, 120)
{
	copy_while_written(BITMAP);
}

TEST_SECONDS(copy_by_cleared_bitmap, 120)
{
	copy_while_written(MANUAL);
}

TEST_SECONDS(copy_by_ring, 120)
{
	copy_while_written(RING);
}
