// SPDX-License-Identifier: GPL-2.0
/* Asynchronous page faults (kernel document virt/kvm/x86/msr.rst), on pages that come by userfaultfd, and from swap. */
#define _GNU_SOURCE
#include "vm.h"
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define MSR_ASYNC_PF_EN		0x4b564d02
#define MSR_ASYNC_PF_INT	0x4b564d06
#define MSR_ASYNC_PF_ACK	0x4b564d07
#define ON		(1 << 3 | 1)
#define SEND_ALWAYS	(1 << 1)
#define VMEXIT		(1 << 2)
#define FEATURES	(1 << 4 | 1 << 10 | 1 << 14)

#define PAGES	80
#define GPA	0x8000000ull	/* identity-mapped, away from slot 0 */
#define SHARED	(G_DATA + 0x2000)
#define READY	0x60
#define OTHER	0x61

/* In shared memory. */
struct shared {
	uint32_t flags, token;
};

struct guest {
	struct vm vm;
	volatile struct shared *shared;
	int uffd;
	uint8_t *memory;
	bool user;
};

enum { READ = 1, ACK, HALT };

/*
 * Says that it is there, by port 0x10, and does what cell 0 says. READ: of the address in cell 1, to cell 2; then port
 * 0x11. ACK: WRMSR. HALT: until a page is ready.
 */
GUEST64(worker,
	"mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx); sti\n"
	"1: out %al, $0x10\n"
	"mov " STR(G_CELLS) ", %eax\n"
	"cmp $1, %eax; jne 2f\n"
	"mov " STR(G_CELLS) "+8, %rsi; mov (%rsi), %rax; mov %rax, " STR(G_CELLS) "+16\n"
	"out %al, $0x11; jmp 1b\n"
	"2: cmp $2, %eax; jne 3f\n"
	"mov $" STR(MSR_ASYNC_PF_ACK) ", %ecx; mov $1, %eax; xor %edx, %edx; wrmsr; jmp 1b\n"
	"3: cmp $3, %eax; jne 1b\n"
	"cli; cmpl $0, " STR(SHARED) "+4; jne 4f; sti; hlt; 4: sti; jmp 1b\n");

/* Where the guest goes on that is told of a page which is not present. */
GUEST64(elsewhere, "out %al, $0x12; mov $" STR(G_CODE) ", %eax; jmp *%rax\n");

static const struct guest_event *last(struct guest *g)
{
	struct guest_log *log = vm_log(&g->vm);

	REQUIRE(log->count > 0 && log->count <= 100);
	return &log->event[log->count - 1];
}

static void map_memory(struct guest *g)
{
	g->memory = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(g->memory != MAP_FAILED);
	madvise(g->memory, PAGES * 4096, MADV_NOHUGEPAGE);
}

/* From now on its pages come when they are brought. */
static void ask_for_memory(struct guest *g)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register r = { .mode = UFFDIO_REGISTER_MODE_MISSING };

	g->uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (g->uffd < 0)
		skip("no userfaultfd: %s", strerrorname(errno));
	OK(ioctl(g->uffd, UFFDIO_API, &api));
	r.range.start = (uintptr_t)g->memory;
	r.range.len = PAGES * 4096;
	OK(ioctl(g->uffd, UFFDIO_REGISTER, &r));
}

static void start(struct guest *g, bool user)
{
	struct kvm_regs regs;
	struct kvm_sregs s;

	g->user = user;
	vm_new_irqchip(&g->vm, 4 * MIB);
	vm_long(&g->vm, worker, worker_end);
	memcpy(g->vm.mem + G_DATA, elsewhere, elsewhere_end - elsewhere);
	vm_slot(&g->vm, 1, 0, GPA, PAGES * 4096, g->memory);
	vm_log(&g->vm)->eoi = LAPIC_EOI;
	g->shared = (void *)(g->vm.mem + SHARED);
	if (user) {
		/* Ports and interrupts are the user's. */
		regs = vm_regs(&g->vm);
		regs.rflags |= 0x3000;
		regs.rsp -= 0x2000;
		vm_set_regs(&g->vm, &regs);
		s = vm_sregs(&g->vm);
		s.cs.selector = SEL_USER_CODE64;
		s.ss.selector = SEL_USER_DATA;
		s.cs.dpl = s.ss.dpl = 3;
		vm_set_sregs(&g->vm, &s);
	}
	vm_expect_out(&g->vm, 0x10);
}

static void new_guest(struct guest *g, bool user)
{
	map_memory(g);
	ask_for_memory(g);
	start(g, user);
}

static void acknowledge(struct guest *g)
{
	g->shared->token = 0;
	if (g->user) {
		REQUIRE(set_msr(&g->vm, MSR_ASYNC_PF_ACK, 1));
		return;
	}
	vm_cells(&g->vm)[0] = ACK;
	vm_expect_out(&g->vm, 0x10);
	vm_cells(&g->vm)[0] = 0;
}

/* Switches the feature on; the guest is told that all pages are ready. */
static void enable(struct guest *g, uint64_t how)
{
	uint64_t count = vm_log(&g->vm)->count;

	REQUIRE(set_msr(&g->vm, MSR_ASYNC_PF_INT, READY));
	REQUIRE(set_msr(&g->vm, MSR_ASYNC_PF_EN, SHARED | ON | how));
	vm_expect_out(&g->vm, 0x10);
	REQUIRE_EQ(vm_log(&g->vm)->count, count + 1);
	CHECK_EQ(last(g)->vector, READY);
	CHECK_EQ(g->shared->token, 0xffffffff);
	CHECK_EQ(g->shared->flags, 0);
	acknowledge(g);
}

static void read_next(struct guest *g, unsigned int page)
{
	vm_cells(&g->vm)[0] = READ;
	vm_cells(&g->vm)[1] = GPA + page * 4096ull;
	vm_cells(&g->vm)[2] = 0;
}

static void expect_read(struct guest *g, unsigned int page)
{
	vm_expect_out(&g->vm, 0x11);
	vm_cells(&g->vm)[0] = 0;
	CHECK_EQ(vm_cells(&g->vm)[2], 0x1111 * (page + 1ull));
	vm_expect_out(&g->vm, 0x10);
}

/* The guest reads a page that is not present, is told so, and goes elsewhere. Its token. */
static uint32_t expect_absent(struct guest *g, unsigned int page)
{
	uint64_t count = vm_log(&g->vm)->count;
	uint32_t token;

	read_next(g, page);
	vm_log(&g->vm)->resume = G_DATA;
	vm_expect_out(&g->vm, 0x12);
	vm_cells(&g->vm)[0] = 0;
	REQUIRE_EQ(vm_log(&g->vm)->count, count + 1);
	CHECK_EQ(last(g)->vector, 14);
	CHECK_EQ(last(g)->error, 0);
	CHECK_EQ(last(g)->cs & 3, g->user ? 3 : 0);
	CHECK_EQ(g->shared->flags, 1);
	token = last(g)->cr2;
	CHECK_EQ(last(g)->cr2, token);
	CHECK(token != 0 && token != 0xffffffff);
	g->shared->flags = 0;
	vm_expect_out(&g->vm, 0x10);
	return token;
}

/* Waits for somebody to ask for a page; which one. */
static unsigned int next_event(struct guest *g)
{
	struct pollfd poller = { .fd = g->uffd, .events = POLLIN };
	struct uffd_msg msg;

	REQUIRE_EQ(poll(&poller, 1, 30000), 1);
	REQUIRE_EQ(read(g->uffd, &msg, sizeof(msg)), sizeof(msg));
	REQUIRE_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	return (msg.arg.pagefault.address - (uintptr_t)g->memory) / 4096;
}

static void fill(uint64_t *word, unsigned int page)
{
	for (int i = 0; i < 512; i++)
		word[i] = 0x1111 * (page + 1ull);
}

static void bring(struct guest *g, unsigned int page)
{
	uint64_t word[512];
	struct uffdio_copy copy = { (uintptr_t)g->memory + page * 4096, (uintptr_t)word, 4096, 0, 0 };

	fill(word, page);
	OK(ioctl(g->uffd, UFFDIO_COPY, &copy));
}

/* Runs the guest until it is told that a page is ready; the token. */
static uint32_t expect_ready(struct guest *g)
{
	uint64_t count = vm_log(&g->vm)->count;

	for (int i = 0; vm_log(&g->vm)->count == count; i++) {
		REQUIRE(i < 20000);
		usleep(500);
		vm_expect_out(&g->vm, 0x10);
	}
	REQUIRE_EQ(vm_log(&g->vm)->count, count + 1);
	CHECK_EQ(last(g)->vector, READY);
	return g->shared->token;
}

/* The same, and somebody asks for the page. */
static uint32_t expect_asked(struct guest *g, unsigned int page)
{
	uint32_t token = expect_absent(g, page);

	CHECK_EQ(next_event(g), page);
	return token;
}

static void one_page(struct guest *g, unsigned int page)
{
	uint64_t count;
	uint32_t token = expect_asked(g, page);

	count = vm_log(&g->vm)->count;
	for (int i = 0; i < 10; i++)
		vm_expect_out(&g->vm, 0x10);
	CHECK_EQ(vm_log(&g->vm)->count, count);
	bring(g, page);
	CHECK_EQ(expect_ready(g), token);
	read_next(g, page);
	expect_read(g, page);
	acknowledge(g);
	CHECK_EQ(vm_log(&g->vm)->count, count + 1);
	CHECK_EQ(g->shared->flags, 0);
}

TEST(registers)
{
	struct kvm_cpuid2 *table;
	struct vm vm;
	uint64_t v;

	vm_new_irqchip(&vm, 4 * MIB);
	CHECK_EQ(OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_ASYNC_PF)), 1);
	CHECK_EQ(OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_ASYNC_PF_INT)), 1);
	table = supported_cpuid(vm.kvm);
	CHECK_EQ(cpuid_entry(table, 0x40000001, 0)->eax & FEATURES, FEATURES);
	CHECK(set_msr(&vm, MSR_ASYNC_PF_EN, SHARED | ON | SEND_ALWAYS | VMEXIT));
	CHECK(get_msr(&vm, MSR_ASYNC_PF_EN, &v) && v == (SHARED | ON | SEND_ALWAYS | VMEXIT));
	CHECK(!set_msr(&vm, MSR_ASYNC_PF_EN, SHARED | ON | 0x10));
	CHECK(!set_msr(&vm, MSR_ASYNC_PF_EN, SHARED | ON | 0x20));
	CHECK(!set_msr(&vm, MSR_ASYNC_PF_EN, 0x40000000 | ON));
	/* Without interrupts there is nothing that the address would be for. */
	CHECK(set_msr(&vm, MSR_ASYNC_PF_EN, 0x40000000 | 1));
	CHECK(set_msr(&vm, MSR_ASYNC_PF_EN, 0));
	CHECK(set_msr(&vm, MSR_ASYNC_PF_INT, 0xff));
	CHECK(get_msr(&vm, MSR_ASYNC_PF_INT, &v) && v == 0xff);
	CHECK(!set_msr(&vm, MSR_ASYNC_PF_INT, 0x100));
	CHECK(set_msr(&vm, MSR_ASYNC_PF_ACK, 1));
	CHECK(get_msr(&vm, MSR_ASYNC_PF_ACK, &v) && v == 0);
	vm_free(&vm);
	vm_new(&vm, 4 * MIB);
	CHECK(set_msr(&vm, MSR_ASYNC_PF_EN, 0));
	CHECK(!set_msr(&vm, MSR_ASYNC_PF_EN, SHARED | ON));
	CHECK(!set_msr(&vm, MSR_ASYNC_PF_INT, 0x60));
}

TEST(user)
{
	struct guest g;

	new_guest(&g, true);
	enable(&g, 0);
	one_page(&g, 3);
	one_page(&g, 4);
}

TEST(kernel)
{
	struct guest g;

	new_guest(&g, false);
	enable(&g, SEND_ALWAYS);
	one_page(&g, 3);
	one_page(&g, 4);
}

/* The next page is told when the guest has acknowledged the last one; whichever comes first. */
TEST(one_by_one)
{
	uint32_t tokens[4], token, found = 0;
	struct guest g;
	uint64_t count;

	new_guest(&g, false);
	enable(&g, SEND_ALWAYS);
	for (unsigned int i = 0; i < 4; i++)
		tokens[i] = expect_absent(&g, i);
	for (unsigned int i = 0; i < 4; i++)
		next_event(&g);
	bring(&g, 2);
	CHECK_EQ(expect_ready(&g), tokens[2]);
	count = vm_log(&g.vm)->count;
	for (unsigned int i = 0; i < 4; i++) {
		if (i != 2)
			bring(&g, i);
	}
	usleep(10000);
	for (unsigned int i = 0; i < 3; i++)
		vm_expect_out(&g.vm, 0x10);
	CHECK_EQ(vm_log(&g.vm)->count, count);
	for (unsigned int i = 0; i < 3; i++) {
		g.shared->token = 0;
		vm_cells(&g.vm)[0] = ACK;
		vm_expect_out(&g.vm, 0x10);
		vm_cells(&g.vm)[0] = 0;
		/* They may still be on their way. */
		token = vm_log(&g.vm)->count == count + i + 1 ? g.shared->token : expect_ready(&g);
		for (unsigned int k = 0; k < 4; k++) {
			if (token == tokens[k])
				found |= 1 << k;
		}
	}
	CHECK_EQ(found, 0xb);
	acknowledge(&g);
	CHECK_EQ(vm_log(&g.vm)->count, count + 3);
	CHECK_EQ(g.shared->token, 0);
}

static void *run_guest(void *argument)
{
	struct guest *g = argument;

	vm_expect_out(&g->vm, 0x11);
	return NULL;
}

static void await_count(struct guest *g, uint64_t count)
{
	volatile uint64_t *have = &vm_log(&g->vm)->count;

	for (int i = 0; *have < count; i++) {
		REQUIRE(i < 60000);
		usleep(500);
	}
}

/* A guest that cannot be told halts, and takes interrupts. */
TEST(halt)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = OTHER };
	struct kvm_mp_state mp;
	pthread_t thread;
	struct guest g;
	uint64_t count;

	new_guest(&g, false);
	enable(&g, 0);
	count = vm_log(&g.vm)->count;
	read_next(&g, 5);
	REQUIRE(!pthread_create(&thread, NULL, run_guest, &g));
	CHECK_EQ(next_event(&g), 5);
	for (int i = 1; i <= 3; i++) {
		OK(ioctl(g.vm.fd, KVM_SIGNAL_MSI, &msi));
		await_count(&g, count + i);
	}
	bring(&g, 5);
	pthread_join(thread, NULL);
	CHECK_EQ(last(&g)->vector, OTHER);
	CHECK_EQ(vm_cells(&g.vm)[2], 0x6666);
	CHECK_EQ(g.shared->flags, 0);
	CHECK_EQ(g.shared->token, 0);
	OK(ioctl(g.vm.vcpu, KVM_GET_MP_STATE, &mp));
	CHECK_EQ(mp.mp_state, KVM_MP_STATE_RUNNABLE);
}

/* Who touches a page again that is on its way waits for it. A signal ends that. */
TEST(again)
{
	struct sigaction action = { .sa_handler = nothing };
	pthread_t thread;
	struct guest g;
	uint32_t token;
	uint64_t count;

	sigaction(SIGUSR1, &action, NULL);
	new_guest(&g, false);
	enable(&g, SEND_ALWAYS);
	token = expect_asked(&g, 6);
	count = vm_log(&g.vm)->count;
	read_next(&g, 6);
	REQUIRE(!pthread_create(&thread, NULL, run_guest, &g));
	usleep(20000);
	CHECK_EQ(vm_cells(&g.vm)[2], 0);
	bring(&g, 6);
	pthread_join(thread, NULL);
	vm_cells(&g.vm)[0] = 0;
	CHECK_EQ(vm_cells(&g.vm)[2], 0x7777);
	if (vm_log(&g.vm)->count == count)
		expect_ready(&g);
	CHECK_EQ(g.shared->token, token);
	CHECK_EQ(vm_log(&g.vm)->count, count + 1);
}

static void *bring_later(void *argument)
{
	struct guest *g = argument;

	usleep(30000);
	bring(g, 7);
	return NULL;
}

/* HLT ends when a page is ready. */
TEST(idle)
{
	pthread_t thread;
	struct guest g;
	uint32_t token;

	new_guest(&g, false);
	enable(&g, SEND_ALWAYS);
	token = expect_asked(&g, 7);
	vm_expect_out(&g.vm, 0x10);
	vm_cells(&g.vm)[0] = HALT;
	REQUIRE(!pthread_create(&thread, NULL, bring_later, &g));
	vm_expect_out(&g.vm, 0x10);
	CHECK_EQ(g.shared->token, token);
	pthread_join(thread, NULL);
}

/* 64 pages may be on their way; for one more the vCPU waits. */
TEST(many)
{
	pthread_t thread;
	struct guest g;
	uint64_t count;

	new_guest(&g, false);
	enable(&g, SEND_ALWAYS);
	for (unsigned int i = 0; i < 64; i++) {
		expect_absent(&g, i);
		/* Of which there is room for 100. */
		vm_log(&g.vm)->count = 1;
	}
	for (unsigned int i = 0; i < 64; i++)
		CHECK(next_event(&g) < 64);
	count = vm_log(&g.vm)->count;
	read_next(&g, 64);
	REQUIRE(!pthread_create(&thread, NULL, run_guest, &g));
	CHECK_EQ(next_event(&g), 64);
	bring(&g, 64);
	pthread_join(thread, NULL);
	vm_cells(&g.vm)[0] = 0;
	CHECK_EQ(vm_log(&g.vm)->count, count);
	for (unsigned int i = 0; i < 64; i++) {
		bring(&g, i);
		expect_ready(&g);
		acknowledge(&g);
	}
}

/* The shared structure is written by the host: that is in the log. */
TEST(dirty)
{
	uint64_t bitmap[4 * MIB / 4096 / 64];
	struct kvm_dirty_log log = { .slot = 0, .dirty_bitmap = bitmap };
	const unsigned int page = SHARED / 4096;
	struct guest g;

	new_guest(&g, false);
	enable(&g, SEND_ALWAYS);
	vm_slot(&g.vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, g.vm.bytes, g.vm.mem);
	vm_expect_out(&g.vm, 0x10);
	OK(ioctl(g.vm.fd, KVM_GET_DIRTY_LOG, &log));
	expect_absent(&g, 1);
	OK(ioctl(g.vm.fd, KVM_GET_DIRTY_LOG, &log));
	CHECK(bitmap[page / 64] & 1ull << page % 64);
	CHECK_EQ(next_event(&g), 1);
	bring(&g, 1);
	expect_ready(&g);
	OK(ioctl(g.vm.fd, KVM_GET_DIRTY_LOG, &log));
	CHECK(bitmap[page / 64] & 1ull << page % 64);
}

/* Switched off, pages on their way are forgotten, and so they are at INIT. KVM waits for them meanwhile. */
TEST(forgotten)
{
	struct guest g;
	uint64_t count, v;

	if (!is_rvmm())
		skip("KVM waits for the page");
	new_guest(&g, false);
	enable(&g, SEND_ALWAYS);
	expect_asked(&g, 1);
	REQUIRE(set_msr(&g.vm, MSR_ASYNC_PF_EN, 0));
	enable(&g, SEND_ALWAYS);
	count = vm_log(&g.vm)->count;
	bring(&g, 1);
	usleep(20000);
	vm_expect_out(&g.vm, 0x10);
	CHECK_EQ(vm_log(&g.vm)->count, count);
	CHECK_EQ(g.shared->token, 0);
	one_page(&g, 2);
	CHECK(get_msr(&g.vm, MSR_ASYNC_PF_EN, &v) && v == (SHARED | ON | SEND_ALWAYS));
}

/* Back at a reset point the guest may wait for pages that have come since: it is told that all are there. */
TEST(reset)
{
	struct rvmm_reset_point point = { .pages = 100 };
	struct rvmm_reset done = { .pages = 0 };
	struct guest g;
	uint64_t count;

	if (!is_rvmm())
		skip("no reset points");
	new_guest(&g, false);
	enable(&g, SEND_ALWAYS);
	expect_asked(&g, 1);
	OK(ioctl(g.vm.fd, RVMM_RESET_POINT, &point));
	count = vm_log(&g.vm)->count;
	bring(&g, 1);
	expect_ready(&g);
	acknowledge(&g);
	expect_asked(&g, 2);
	OK(ioctl(g.vm.fd, RVMM_RESET, &done));
	CHECK_EQ(vm_log(&g.vm)->count, count);
	bring(&g, 2);
	usleep(10000);
	vm_expect_out(&g.vm, 0x10);
	CHECK_EQ(vm_log(&g.vm)->count, count + 1);
	CHECK_EQ(last(&g)->vector, READY);
	CHECK_EQ(g.shared->token, 0xffffffff);
	acknowledge(&g);
	CHECK_EQ(vm_log(&g.vm)->count, count + 1);
	one_page(&g, 3);
}

/* References to the module; -1 where that is not told. */
static int references(void)
{
	FILE *f = fopen("/sys/module/rvmm/refcnt", "r");
	int n = -1;

	if (f && fscanf(f, "%d", &n) != 1)
		n = -1;
	if (f)
		fclose(f);
	return n;
}

/*
 * A process that ends is not held up by pages that nobody brings, nor is the end of a vCPU; KVM waits. While they are
 * on their way the module stays.
 */
TEST(killed)
{
	int ready[2], status, before = references(), uffd = -1;
	pid_t child;

	if (!is_rvmm())
		skip("KVM waits for the page");
	OK(pipe(ready));
	child = fork_child();
	if (child == 0) {
		struct guest g;

		new_guest(&g, false);
		enable(&g, SEND_ALWAYS);
		expect_absent(&g, 1);
		expect_absent(&g, 2);
		next_event(&g);
		next_event(&g);
		close(g.vm.vcpu);
		close(g.vm.fd);
		REQUIRE_EQ(write(ready[1], &g.uffd, sizeof(g.uffd)), sizeof(g.uffd));
		pause();
		_exit(0);
	}
	close(ready[1]);
	REQUIRE_EQ(read(ready[0], &uffd, sizeof(uffd)), sizeof(uffd));
	uffd = OK(syscall(SYS_pidfd_getfd, OK(syscall(SYS_pidfd_open, child, 0)), uffd, 0));
	OK(kill(child, SIGKILL));
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(WTERMSIG(status), SIGKILL);
	if (before >= 0) {
		usleep(10000);
		/* And what the process has mapped. */
		CHECK(references() >= before + 2);
	}
	/* Pages are nobody's to bring any more. */
	close(uffd);
	for (int i = 0; references() > before; i++) {
		REQUIRE(i < 20000);
		usleep(500);
	}
}

static bool write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return done;
}

/* Makes the block device swap space, of 32 MiB. */
static void swap_to(const char *device)
{
	static union {
		struct {
			char boot[1024];
			uint32_t version, last_page, bad_pages;
		};
		struct {
			char rest[4086];
			char magic[10];
		};
	} header = { .version = 1, .last_page = 8191 };
	int fd = OK(open(device, O_WRONLY | O_CLOEXEC));

	memcpy(header.magic, "SWAPSPACE2", 10);
	REQUIRE_EQ(write(fd, &header, 4096), 4096);
	OK(fsync(fd));
	close(fd);
	OK(swapon(device, 0));
	/* One page at a time comes back. */
	REQUIRE(write_to("/proc/sys/vm/page-cluster", "0"));
}

/*
 * Until none of the pages is in memory. What has been written to the device stays in the swap cache, and can go next
 * time: it is mapped again by reading it, and then it is clean.
 */
static void put_out(struct guest *g)
{
	unsigned char there[PAGES];
	unsigned int left = PAGES;

	for (unsigned int tries = 0; left; tries++) {
		REQUIRE(tries < 2000);
		OK(madvise(g->memory, PAGES * 4096, MADV_PAGEOUT));
		usleep(1000);
		OK(mincore(g->memory, PAGES * 4096, there));
		left = 0;
		for (unsigned int i = 0; i < PAGES; i++) {
			if (!(there[i] & 1))
				continue;
			*(volatile uint8_t *)(g->memory + i * 4096);
			left++;
		}
	}
}

/*
 * The guest reads a page that the host has to read from its disk. Whether it was told so; it is not when the disk was
 * faster. When it was, that the page is ready may come before it has gone elsewhere.
 */
static bool read_swapped(struct guest *g, unsigned int page)
{
	struct guest_log *log = vm_log(&g->vm);
	uint64_t count = log->count;
	uint32_t token;

	read_next(g, page);
	log->resume = G_DATA;
	REQUIRE_EQ(vm_run(&g->vm), KVM_EXIT_IO);
	if (g->vm.run->io.port == 0x11) {
		log->resume = 0;
		vm_cells(&g->vm)[0] = 0;
		CHECK_EQ(log->count, count);
		CHECK_EQ(vm_cells(&g->vm)[2], 0x1111 * (page + 1ull));
		vm_expect_out(&g->vm, 0x10);
		return false;
	}
	REQUIRE_EQ(g->vm.run->io.port, 0x12);
	vm_cells(&g->vm)[0] = 0;
	CHECK_EQ(log->event[count].vector, 14);
	CHECK_EQ(g->shared->flags, 1);
	token = log->event[count].cr2;
	g->shared->flags = 0;
	for (int i = 0; log->count == count + 1; i++) {
		REQUIRE(i < 20000);
		vm_expect_out(&g->vm, 0x10);
		usleep(500);
	}
	REQUIRE_EQ(log->count, count + 2);
	CHECK_EQ(last(g)->vector, READY);
	CHECK_EQ(g->shared->token, token);
	vm_expect_out(&g->vm, 0x10);
	acknowledge(g);
	read_next(g, page);
	expect_read(g, page);
	CHECK_EQ(log->count, count + 2);
	return true;
}

/* Pages that the host reads from a disk, which SWAP_DEVICE is. */
TEST(swapped)
{
	const char *device = getenv("SWAP_DEVICE");
	unsigned int told = 0;
	struct guest g;

	if (!device)
		skip("no SWAP_DEVICE");
	swap_to(device);
	map_memory(&g);
	for (unsigned int i = 0; i < PAGES; i++)
		fill((uint64_t *)(g.memory + i * 4096), i);
	start(&g, false);
	enable(&g, SEND_ALWAYS);
	/* Once read by the guest, so that it has had them in its tables. */
	for (unsigned int i = 0; i < PAGES; i++) {
		read_next(&g, i);
		expect_read(&g, i);
	}
	put_out(&g);
	for (unsigned int i = 0; i < PAGES; i += 8)
		told += read_swapped(&g, i);
	CHECK(told > 0);
	OK(swapoff(device));
	for (unsigned int i = 0; i < PAGES; i++) {
		read_next(&g, i);
		expect_read(&g, i);
	}
}
