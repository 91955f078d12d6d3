// SPDX-License-Identifier: GPL-2.0
/*
 * A host in trouble while the fuzzer runs: CPUs that go, compaction, KSM, a control group at its limit, the OOM killer
 * in it. Wants root; what is not there is left out.
 */
#define _GNU_SOURCE
#include "fuzz.h"
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define GROUP "/sys/fs/cgroup/rvmm-fuzz"

static bool write_to(const char *path, const char *what)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done;

	if (fd < 0)
		return false;
	done = write(fd, what, strlen(what)) == (ssize_t)strlen(what);
	close(fd);
	return done;
}

static const struct { const char *path, *what; } troubles[] = {
	{ "/sys/devices/system/cpu/cpu1/online", "0" }, { "/sys/devices/system/cpu/cpu1/online", "1" },
	{ "/proc/sys/vm/compact_memory", "1" }, { "/proc/sys/vm/drop_caches", "3" },
	{ "/sys/kernel/mm/ksm/run", "1" }, { "/sys/kernel/mm/ksm/run", "2" },
	{ "/sys/kernel/mm/ksm/pages_to_scan", "4096" }, { "/sys/kernel/mm/ksm/sleep_millisecs", "1" },
	{ "/sys/kernel/mm/transparent_hugepage/enabled", "always" },
	{ "/sys/kernel/mm/transparent_hugepage/enabled", "madvise" },
	{ GROUP "/memory.max", "5M" }, { GROUP "/memory.max", "64M" },
};

/* How often each of them succeeded; shared. */
static unsigned int *done;

pid_t trouble_begin(void)
{
	pid_t pid;

	done = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(done != MAP_FAILED);
	/* A bed has no init that would have done it. */
	if (access("/sys/fs/cgroup/cgroup.procs", F_OK))
		mount("none", "/sys/fs/cgroup", "cgroup2", 0, NULL);
	write_to("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	mkdir(GROUP, 0755);
	/* Without a word in the log each time. */
	write_to("/proc/sys/vm/drop_caches", "4");
	pid = fork_child();
	if (pid)
		return pid;
	for (uint64_t i = 0;; i++) {
		uint32_t k;

		rng_step(1, 1000, i);
		k = below(ARRAY_SIZE(troubles));
		done[k] += write_to(troubles[k].path, troubles[k].what);
		usleep(1000 * below(50));
	}
}

void trouble_end(pid_t pid)
{
	kill(pid, SIGKILL);
	REQUIRE(waitpid(pid, NULL, 0) == pid);
	write_to("/sys/devices/system/cpu/cpu1/online", "1");
	write_to("/sys/kernel/mm/ksm/run", "2");
	rmdir(GROUP);
	for (size_t k = 0; k < ARRAY_SIZE(troubles); k++)
		note("%s %s: %u", troubles[k].path, troubles[k].what, done[k]);
}

void trouble_me(void)
{
	write_to(GROUP "/cgroup.procs", "0");
}
