// SPDX-License-Identifier: GPL-2.0
/* The harness: runs tests, prints KTAP (Documentation/dev-tools/ktap.rst). */
#define _GNU_SOURCE
#include "harness.h"
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { PASSED, FAILED, SKIPPED = 4 };

const char *device = "/dev/rvmm";
bool verbose;

static struct test *first, **last = &first;
/* Shared between a test's process and the harness. */
static struct shared {
	int failures;
	char reason[200];
} *shared;

void harness_add(struct test *test)
{
	*last = test;
	last = &test->next;
}

const char *strerrorname(int number)
{
	const char *name = strerrorname_np(number);

	return name ? name : "?";
}

void harness_fail(const char *file, int line, bool fatal, const char *format, ...)
{
	char text[400];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (__atomic_add_fetch(&shared->failures, 1, __ATOMIC_RELAXED) <= 40)
		printf("# %s:%d: %s\n", file, line, text);
	fflush(stdout);
	if (fatal)
		_exit(FAILED);
}

void skip(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(shared->reason, sizeof(shared->reason), format, args);
	va_end(args);
	_exit(SKIPPED);
}

void note(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("# ");
	vprintf(format, args);
	printf("\n");
	fflush(stdout);
	va_end(args);
}

pid_t fork_child(void)
{
	pid_t parent = getpid();
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(FAILED);
	}
	return pid;
}

static int run(struct test *test)
{
	int status;
	pid_t pid;

	memset(shared, 0, sizeof(*shared));
	fflush(stdout);
	pid = fork_child();
	if (pid < 0)
		return FAILED;
	if (pid == 0) {
		alarm(test->seconds * atoi(getenv("TIME_FACTOR") ?: "1"));
		test->function();
		fflush(stdout);
		_exit(shared->failures ? FAILED : PASSED);
	}
	if (waitpid(pid, &status, 0) != pid)
		return FAILED;
	if (WIFSIGNALED(status)) {
		printf("# ended by signal %d%s\n", WTERMSIG(status),
		       WTERMSIG(status) == SIGALRM ? ", out of time" : "");
		return FAILED;
	}
	status = WEXITSTATUS(status);
	return shared->failures ? FAILED : status;
}

static bool chosen(const struct test *test, char **names, int count)
{
	for (int i = 0; i < count; i++)
		if (!strcmp(names[i], test->name))
			return true;
	return count == 0 && !test->by_name;
}

int main(int argc, char **argv)
{
	const char *environment = getenv("DEVICE");
	int passed = 0, failed = 0, skipped = 0, number = 0, count = 0, option;

	if (environment && *environment)
		device = environment;
	while ((option = getopt(argc, argv, "d:lv")) != -1) {
		switch (option) {
		case 'd':
			device = optarg;
			break;
		case 'v':
			verbose = true;
			break;
		case 'l':
			for (struct test *t = first; t; t = t->next)
				puts(t->name);
			return 0;
		default:
			fprintf(stderr, "usage: %s [-d DEVICE] [-l] [-v] [NAME...]\n", argv[0]);
			return 2;
		}
	}
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 2;
	for (struct test *t = first; t; t = t->next)
		count += chosen(t, argv + optind, argc - optind);
	printf("TAP version 13\n1..%d\n", count);
	for (struct test *t = first; t; t = t->next) {
		int status;

		if (!chosen(t, argv + optind, argc - optind))
			continue;
		status = run(t);
		number++;
		if (status == PASSED) {
			passed++;
			printf("ok %d %s\n", number, t->name);
		} else if (status == SKIPPED) {
			skipped++;
			printf("ok %d %s # SKIP %s\n", number, t->name, shared->reason);
		} else {
			failed++;
			printf("not ok %d %s\n", number, t->name);
		}
	}
	printf("# Totals: pass:%d fail:%d xfail:0 xpass:0 skip:%d error:0\n", passed, failed, skipped);
	return failed ? 1 : 0;
}

void nothing(int signal)
{
}

void stop_thread(pthread_t thread)
{
	struct timespec soon;
	int result;

	do {
		pthread_kill(thread, SIGUSR1);
		clock_gettime(CLOCK_REALTIME, &soon);
		soon.tv_nsec += 10000000;
		if (soon.tv_nsec >= 1000000000) {
			soon.tv_nsec -= 1000000000;
			soon.tv_sec++;
		}
		result = pthread_timedjoin_np(thread, NULL, &soon);
	} while (result == ETIMEDOUT);
	CHECK_EQ(result, 0);
}

bool kernel_has(const char *function)
{
	char line[500], name[300];
	FILE *f = fopen("/proc/kallsyms", "r");
	bool found = false;

	while (f && !found && fgets(line, sizeof(line), f))
		found = sscanf(line, "%*s %*s %299s", name) == 1 && !strcmp(name, function);
	if (f)
		fclose(f);
	return found;
}

long meminfo(const char *what)
{
	char line[200];
	long kib = -1;
	FILE *f = fopen("/proc/meminfo", "r");

	REQUIRE(f);
	while (kib < 0 && fgets(line, sizeof(line), f))
		if (!strncmp(line, what, strlen(what)) && line[strlen(what)] == ':')
			kib = atol(line + strlen(what) + 1);
	fclose(f);
	REQUIRE(kib >= 0);
	return kib;
}
