// SPDX-License-Identifier: GPL-2.0
/* Guest memory under userfaultfd (kernel document admin-guide/mm/userfaultfd.rst), on KVM and on rvmm. */
#define _GNU_SOURCE
#include "lazy.h"
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01

struct pager {
	int fd, file;		/* file: of shared memory, or -1 */
	uint8_t *memory;	/* registered */
	unsigned int events, expected, wp;
	uint64_t flags;		/* of the last event */
};

static void pager_open(struct pager *p, void *memory, uint64_t mode, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register r = { .range = { (uintptr_t)memory, TEST_BYTES }, .mode = mode };

	*p = (struct pager){ .file = -1, .memory = memory };
	p->fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (p->fd < 0)
		skip("no userfaultfd: %s", strerrorname(errno));
	if (ioctl(p->fd, UFFDIO_API, &api))
		skip("userfaultfd lacks features %#llx", (unsigned long long)features);
	OK(ioctl(p->fd, UFFDIO_REGISTER, &r));
}

static uint8_t *anonymous(void)
{
	uint8_t *m = mmap(NULL, TEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(m != MAP_FAILED);
	madvise(m, TEST_BYTES, MADV_NOHUGEPAGE);
	return m;
}

static uint64_t word_of(uint64_t page)
{
	return page == 5 ? LAZY_TABLE_WORD : 0x1111111111111111 * page;
}

/* Waits for an event; the page. */
static uint64_t next_event(struct pager *p)
{
	struct pollfd poller = { .fd = p->fd, .events = POLLIN };
	struct uffd_msg msg;

	REQUIRE_EQ(poll(&poller, 1, 30000), 1);
	REQUIRE_EQ(read(p->fd, &msg, sizeof(msg)), sizeof(msg));
	REQUIRE_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	p->flags = msg.arg.pagefault.flags;
	return (msg.arg.pagefault.address - (uintptr_t)p->memory) / 4096;
}

static void bring(struct pager *p, uint64_t page)
{
	uint64_t word[512];
	struct uffdio_copy copy = { (uintptr_t)p->memory + page * 4096, (uintptr_t)word, 4096, 0, 0 };

	for (int i = 0; i < 512; i++)
		word[i] = word_of(page);
	if (ioctl(p->fd, UFFDIO_COPY, &copy) && errno != EEXIST)
		FAIL("UFFDIO_COPY: %s", strerrorname(errno));
}

static void protect(struct pager *p, uint64_t page, uint64_t pages, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = { (uintptr_t)p->memory + page * 4096, pages * 4096 },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	OK(ioctl(p->fd, UFFDIO_WRITEPROTECT, &wp));
}

static void *serve(void *argument)
{
	struct pager *p = argument;

	while (p->events < p->expected) {
		uint64_t page = next_event(p);

		p->events++;
		if (p->flags & UFFD_PAGEFAULT_FLAG_WP) {
			p->wp++;
			protect(p, page, 1, false);
		} else if (p->flags & UFFD_PAGEFAULT_FLAG_MINOR) {
			struct uffdio_continue c = { .range = { (uintptr_t)p->memory + page * 4096, 4096 } };
			uint64_t word = word_of(page) + 1;

			REQUIRE_EQ(pwrite(p->file, &word, 8, page * 4096), 8);
			OK(ioctl(p->fd, UFFDIO_CONTINUE, &c));
		} else {
			bring(p, page);
		}
	}
	return NULL;
}

TEST(uffd_missing)
{
	struct pager p;
	pthread_t server;
	struct vm vm;

	pager_open(&p, anonymous(), UFFDIO_REGISTER_MODE_MISSING, 0);
	p.expected = TEST_PAGES;
	lazy_vm(&vm, 0, p.memory);
	pthread_create(&server, NULL, serve, &p);
	for (uint64_t i = 0; i < TEST_PAGES; i++) {
		uint64_t page = i * 5 % TEST_PAGES;

		CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + page * 4096 + 8, 0), word_of(page));
		lazy_do(&vm, LAZY_WRITE, TEST_GPA + page * 4096, i);
		CHECK_EQ(*(uint64_t *)(p.memory + page * 4096), i);
	}
	pthread_join(server, NULL);
}

TEST(uffd_missing_process)
{
	struct pager p;
	pid_t child;
	struct vm vm;
	int status;

	pager_open(&p, anonymous(), UFFDIO_REGISTER_MODE_MISSING, 0);
	p.expected = TEST_PAGES;
	child = fork_child();
	if (child == 0) {
		serve(&p);
		_exit(0);
	}
	lazy_vm(&vm, 0, p.memory);
	for (uint64_t page = 0; page < TEST_PAGES; page++)
		CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + page * 4096, 0), word_of(page));
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
}

/* Pages that are in the file, and changed by the pager before the guest sees them. */
TEST(uffd_minor)
{
	int file = OK(memfd_create("guest", 0));
	struct pager p;
	pthread_t server;
	struct vm vm;
	uint8_t *m;

	OK(ftruncate(file, TEST_BYTES));
	for (uint64_t page = 0; page < TEST_PAGES; page++)
		REQUIRE_EQ(pwrite(file, &page, 8, page * 4096), 8);
	m = mmap(NULL, TEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	REQUIRE(m != MAP_FAILED);
	pager_open(&p, m, UFFDIO_REGISTER_MODE_MINOR, UFFD_FEATURE_MINOR_SHMEM);
	p.file = file;
	p.expected = TEST_PAGES;
	lazy_vm(&vm, 0, m);
	pthread_create(&server, NULL, serve, &p);
	for (uint64_t page = 0; page < TEST_PAGES; page++)
		CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + page * 4096, 0), word_of(page) + 1);
	pthread_join(server, NULL);
}

static void write_protected(uint8_t *m, uint64_t features)
{
	struct uffd_msg msg;
	struct pager p;
	pthread_t server;
	struct vm vm;

	memset(m, 1, TEST_BYTES);
	pager_open(&p, m, UFFDIO_REGISTER_MODE_WP, features);
	p.expected = 4;
	lazy_vm(&vm, 0, m);
	/* Mapped writable before they are protected. */
	for (uint64_t page = 0; page < TEST_PAGES; page++)
		lazy_do(&vm, LAZY_WRITE, TEST_GPA + page * 4096, page);
	protect(&p, 0, TEST_PAGES, true);
	/* Reads are nobody's business. */
	for (uint64_t page = 0; page < TEST_PAGES; page++)
		CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + page * 4096, 0), page);
	CHECK_ERRNO(read(p.fd, &msg, sizeof(msg)), EAGAIN);
	pthread_create(&server, NULL, serve, &p);
	for (uint64_t page = 0; page < 4; page++) {
		lazy_do(&vm, LAZY_WRITE, TEST_GPA + page * 4096, 100 + page);
		CHECK_EQ(*(uint64_t *)(m + page * 4096), 100 + page);
		/* Once only. */
		lazy_do(&vm, LAZY_WRITE, TEST_GPA + page * 4096, 200 + page);
	}
	pthread_join(server, NULL);
	CHECK_EQ(p.wp, 4);
	protect(&p, 0, TEST_PAGES, false);
	lazy_do(&vm, LAZY_WRITE, TEST_GPA + 9 * 4096, 9);
	CHECK_EQ(*(uint64_t *)(m + 9 * 4096), 9);
}

TEST(uffd_write_protect)
{
	write_protected(anonymous(), UFFD_FEATURE_PAGEFAULT_FLAG_WP);
}

TEST(uffd_write_protect_shared)
{
	int file = OK(memfd_create("guest", 0));
	uint8_t *m;

	OK(ftruncate(file, TEST_BYTES));
	m = mmap(NULL, TEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	REQUIRE(m != MAP_FAILED);
	write_protected(m, UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
}

TEST(uffd_signal)
{
	struct sigaction action = { .sa_handler = nothing };
	struct runner r;
	pthread_t thread;
	struct pager p;
	struct vm vm;

	sigaction(SIGUSR1, &action, NULL);
	pager_open(&p, anonymous(), UFFDIO_REGISTER_MODE_MISSING, 0);
	lazy_vm(&vm, 0, p.memory);
	r.vm = &vm;
	lazy_tell(&vm, LAZY_READ, TEST_GPA + 0x3000, 0);
	for (int i = 0; i < 2; i++) {
		pthread_create(&thread, NULL, run_once, &r);
		CHECK_EQ(next_event(&p), 3);
		pthread_kill(thread, SIGUSR1);
		pthread_join(thread, NULL);
		CHECK_EQ(r.error, EINTR);
	}
	bring(&p, 3);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_cells(&vm)[3], word_of(3));
}

/* Waiting by a guest's access, and in an emulated one, which other signals than this do not end. */
static void kill_waiting(enum lazy_op op)
{
	int ready[2], status;
	char byte = 0;
	pid_t child;

	OK(pipe(ready));
	child = fork_child();
	if (child == 0) {
		struct runner r;
		pthread_t thread;
		struct pager p;
		struct vm vm;

		pager_open(&p, anonymous(), UFFDIO_REGISTER_MODE_MISSING, 0);
		lazy_vm(&vm, 0, p.memory);
		r.vm = &vm;
		lazy_tell(&vm, op, TEST_GPA + 0x3000, 0);
		pthread_create(&thread, NULL, run_once, &r);
		next_event(&p);
		REQUIRE_EQ(write(ready[1], &byte, 1), 1);
		pause();
		_exit(0);
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1) {
		waitpid(child, &status, 0);
		skip("the child could not wait");
	}
	OK(kill(child, SIGKILL));
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(WTERMSIG(status), SIGKILL);
}

TEST(uffd_kill)
{
	kill_waiting(LAZY_READ);
	kill_waiting(LAZY_OUTS);
}

TEST(uffd_prefault)
{
	struct kvm_pre_fault_memory range = { .gpa = TEST_GPA, .size = TEST_BYTES };
	struct pager p;
	pthread_t server;
	struct vm vm;

	pager_open(&p, anonymous(), UFFDIO_REGISTER_MODE_MISSING, 0);
	lazy_vm(&vm, 0, p.memory);
	if (ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY) <= 0)
		skip("no KVM_PRE_FAULT_MEMORY");
	p.expected = TEST_PAGES;
	pthread_create(&server, NULL, serve, &p);
	while (range.size)
		OK(ioctl(vm.vcpu, KVM_PRE_FAULT_MEMORY, &range));
	pthread_join(server, NULL);
	CHECK_EQ(*(uint64_t *)(p.memory + 0x3000), word_of(3));
	CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + 0x4000, 0), word_of(4));
}

/* Accesses that the kernel makes for the guest, and the processor to page tables. */
TEST(uffd_kernel_accesses)
{
	struct pager p;
	pthread_t server;
	struct vm vm;
	uint64_t at;

	pager_open(&p, anonymous(), UFFDIO_REGISTER_MODE_MISSING, 0);
	lazy_vm(&vm, 0, p.memory);
	p.expected = 4;
	pthread_create(&server, NULL, serve, &p);
	lazy_tell(&vm, LAZY_OUTS, TEST_GPA + 0x1000, 0);
	CHECK_EQ(vm_expect_out(&vm, 0x11), (uint8_t)word_of(1));
	vm_expect_out(&vm, 0x10);
	lazy_tell(&vm, LAZY_MOVS, TEST_GPA + 0x2000, G_MMIO);
	vm_expect(&vm, KVM_EXIT_MMIO);
	memset(vm.run->mmio.data, 0x77, 8);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(*(uint64_t *)(p.memory + 0x2000), 0x7777777777777777);
	CHECK_EQ(*(uint64_t *)(p.memory + 0x2008), word_of(2));
	at = lazy_behind_table(&vm, TEST_GPA + 0x5000, G_CELLS + 40);
	vm_cells(&vm)[5] = 0x99;
	CHECK_EQ(lazy_do(&vm, LAZY_READ, at, 0), 0x99);
	if (set_msr(&vm, MSR_KVM_SYSTEM_TIME_NEW, (TEST_GPA + 0x6000) | 1)) {
		lazy_do(&vm, LAZY_READ, G_CELLS, 0);
		CHECK(*(uint32_t *)(p.memory + 0x6000) != (uint32_t)word_of(6));
	} else {
		CHECK_EQ(*(volatile uint64_t *)(p.memory + 0x6000), word_of(6));
	}
	pthread_join(server, NULL);
}
