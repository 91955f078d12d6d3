// SPDX-License-Identifier: GPL-2.0
/*
 * Random ioctls, guests, snapshots, memory changes, files and processes from several threads at once: the host has to
 * survive them, and each process has to be able to end. Nothing else is checked; what the host's log says, and whether
 * the module can be unloaded, the bed looks at.
 *
 * A seed is an episode in a process of its own, of which some are killed. FUZZ_SEED=N is the first one, FUZZ_SEEDS=N
 * how many there are (0: until FUZZ_SECONDS have passed), FUZZ_STEPS=N the steps of each thread. What a thread chooses
 * in a step follows from these alone (fuzz.h).
 */
#define _GNU_SOURCE
#include "fuzz.h"
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define THREADS 4

struct world world;
struct fuzz_counts *counts;

static uint64_t seed;
static unsigned long steps;
static int left;
/* Episodes have little memory. */
static bool troubled;

/*
 * Seeds from which something was found, and some more: tools/test replays them. What each found stands in
 * docs/attacks.md.
 */
static const uint64_t corpus[] = { 1, 2, 3, 4, 5, 6 };

/* Memory that another thread has protected or taken away at this moment, or that has no file below it. */
static void restore(int signal, siginfo_t *info, void *context)
{
	void *page = (void *)((uintptr_t)info->si_addr & ~0xffful);

	if (signal == SIGSEGV && !mprotect(page, 4096, PROT_READ | PROT_WRITE))
		return;
	if (mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
		_exit(0);
}

static void *work(void *argument)
{
	uint32_t thread = (uintptr_t)argument;

	cover_begin();
	for (unsigned long i = 0; i < steps; i++) {
		rng_step(seed, thread, i);
		switch (below(12)) {
		case 0 ... 5:
			ioctl_step();
			break;
		case 6 ... 8:
			guest_step();
			break;
		case 9:
			snapshot_step();
			break;
		default:
			host_step();
		}
		cover_collect();
	}
	__atomic_fetch_sub(&left, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void make_world(void)
{
	struct uffdio_api api = { .api = UFFD_API };

	world.kvm = device_open();
	world.mem = mmap(NULL, FUZZ_MEM + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(world.mem != MAP_FAILED);
	world.mem = (uint8_t *)(((uintptr_t)world.mem + (2 << 20) - 1) & ~((2ul << 20) - 1));
	world.memfd = memfd_create("guest", MFD_CLOEXEC);
	if (world.memfd >= 0 && ftruncate(world.memfd, FUZZ_MEM))
		abort();
	world.uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (world.uffd >= 0)
		ioctl(world.uffd, UFFDIO_API, &api);
	REQUIRE(!socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, world.sockets));
	for (int i = 0; i < FUZZ_EVENTS; i++)
		world.events[i] = eventfd(0, EFD_NONBLOCK);
	memset(world.vms, -1, sizeof(world.vms));
	memset(world.vcpus, -1, sizeof(world.vcpus));
	memset(world.files, -1, sizeof(world.files));
	rng_step(seed, THREADS, 0);
	for (int i = 0; i < FUZZ_VMS; i++)
		make_vm(i);
	for (int i = 0; i < FUZZ_VCPUS; i++)
		make_vcpu(i);
	for (int i = 0; i < 100; i++)
		plant();
}

static void episode(void)
{
	struct sigaction mistakes = { .sa_sigaction = restore, .sa_flags = SA_SIGINFO };
	pthread_t threads[THREADS], pager;
	int stop = 0;

	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = nothing }, NULL);
	sigaction(SIGSEGV, &mistakes, NULL);
	sigaction(SIGBUS, &mistakes, NULL);
	make_world();
	left = THREADS;
	pthread_create(&pager, NULL, bring_pages, &stop);
	for (uintptr_t i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, work, (void *)i);
	/* Guests do not end by themselves. */
	while (__atomic_load_n(&left, __ATOMIC_SEQ_CST)) {
		usleep(1000);
		for (int i = 0; i < THREADS; i++)
			pthread_kill(threads[i], SIGUSR1);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	_exit(0);
}

/* What the threads of a process wait for. */
static void show_stacks(pid_t pid)
{
	char command[200];

	snprintf(command, sizeof(command),
		 "for t in /proc/%d/task/*; do grep -H State $t/status; sed 's/^/# /' $t/stack; done", pid);
	if (system(command))
		note("no stacks");
}

/* Whether the process ended; of its own accord, or soon after a SIGKILL. */
static bool ends(pid_t pid, unsigned int milliseconds)
{
	for (unsigned int i = 0; i < milliseconds; i++) {
		int status;

		if (waitpid(pid, &status, WNOHANG) == pid) {
			if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL)
				note("seed %llu: ended by signal %d", (unsigned long long)seed, WTERMSIG(status));
			return true;
		}
		usleep(1000);
	}
	return false;
}

static void run_seed(uint64_t number)
{
	bool to_kill = number % 4 == 3;
	pid_t pid;

	seed = number;
	pid = fork_child();
	REQUIRE(pid >= 0);
	if (!pid) {
		if (troubled)
			trouble_me();
		episode();
	}
	rng_step(seed, THREADS + 1, 0);
	if (ends(pid, to_kill ? below(2000) : 120000)) {
		count(&counts->episodes);
		return;
	}
	if (!to_kill) {
		note("seed %llu: signals have not ended it", (unsigned long long)seed);
		show_stacks(pid);
	}
	kill(pid, SIGKILL);
	count(&counts->killed);
	if (!ends(pid, 60000)) {
		show_stacks(pid);
		DIE("seed %llu: SIGKILL has not ended it", (unsigned long long)seed);
	}
}

static unsigned long number_of(const char *name, const char *otherwise)
{
	return strtoul(getenv(name) ?: otherwise, NULL, 0);
}

static void begin(const char *otherwise)
{
	counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(counts != MAP_FAILED);
	steps = number_of("FUZZ_STEPS", otherwise);
	cover_room();
}

static void sums(void)
{
	note("%lu ioctls, %lu of them done, %lu KVM_RUN, %lu changes of the host; %lu episodes, %lu killed",
	     counts->ioctls, counts->done, counts->entries, counts->host, counts->episodes, counts->killed);
	cover_report();
}

TEST_SECONDS(fuzz, 280)
{
	begin(is_amd() ? "600" : "150");
	for (size_t i = 0; i < ARRAY_SIZE(corpus); i++)
		run_seed(corpus[i]);
	sums();
}

/* The same on a host in trouble, which kills some of them itself. */
TEST_SECONDS(trouble, 280)
{
	pid_t pid;

	begin(is_amd() ? "400" : "100");
	pid = trouble_begin();
	troubled = true;
	for (size_t i = 0; i < ARRAY_SIZE(corpus); i++)
		run_seed(corpus[i] + 100);
	trouble_end(pid);
	sums();
}

/* As long as one likes. */
TEST_NAMED(long_walk)
{
	uint64_t first = number_of("FUZZ_SEED", "1000"), seeds = number_of("FUZZ_SEEDS", "0");
	time_t end = time(NULL) + number_of("FUZZ_SECONDS", "60"), said = time(NULL);

	begin("3000");
	note("from seed %llu, %lu steps of %d threads", (unsigned long long)first, steps, THREADS);
	for (uint64_t i = 0; seeds ? i < seeds : time(NULL) < end; i++) {
		run_seed(first + i);
		if (time(NULL) >= said + 60) {
			said = time(NULL);
			note("at seed %llu", (unsigned long long)(first + i));
			sums();
		}
	}
	sums();
}
