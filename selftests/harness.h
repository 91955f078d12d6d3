/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A small test harness: each TEST() of a program runs in a process of its own, under a time limit, and gives one
 * line of KTAP.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

struct test {
	const char *name;
	void (*function)(void);
	unsigned int seconds;	/* time limit; $TIME_FACTOR makes a longer one of it */
	bool by_name;		/* runs only when named */
	struct test *next;
};

void harness_add(struct test *test);

/* The device under test: -d, else $DEVICE, else /dev/rvmm. */
extern const char *device;

/* -v: a test prints all that it finds. */
extern bool verbose;

#define TEST_FULL(id, limit, named)							\
	static void test_##id(void);							\
	__attribute__((constructor)) static void add_##id(void)				\
	{										\
		static struct test t = { #id, test_##id, limit, named, NULL };		\
		harness_add(&t);							\
	}										\
	static void test_##id(void)

#define TEST_SECONDS(id, limit) TEST_FULL(id, limit, false)
#define TEST(id) TEST_FULL(id, 60, false)
#define TEST_NAMED(id) TEST_FULL(id, 0, true)

/* Records a failure and goes on, or ends the test. */
__attribute__((format(printf, 4, 5)))
void harness_fail(const char *file, int line, bool fatal, const char *format, ...);
/* Ends the test as skipped. */
__attribute__((noreturn, format(printf, 1, 2))) void skip(const char *format, ...);
/* A line of diagnostics. */
__attribute__((format(printf, 1, 2))) void note(const char *format, ...);
/* fork() of a test: the child dies with its parent. */
pid_t fork_child(void);

#define FAIL(...) harness_fail(__FILE__, __LINE__, false, __VA_ARGS__)
#define DIE(...) do { harness_fail(__FILE__, __LINE__, true, __VA_ARGS__); __builtin_unreachable(); } while (0)

#define CHECK(condition) do { if (!(condition)) FAIL("%s", #condition); } while (0)
#define REQUIRE(condition) do {								\
	if (!(condition))								\
		DIE("%s (errno %d, %s)", #condition, errno, strerror(errno));		\
} while (0)

/* Equality of integers; both values are shown. */
#define CHECK_EQ(have, want) do {								\
	unsigned long long have_ = (unsigned long long)(have), want_ = (unsigned long long)(want);	\
	if (have_ != want_)								\
		FAIL("%s is %#llx, %#llx (%s) expected", #have, have_, want_, #want);	\
} while (0)

#define REQUIRE_EQ(have, want) do {							\
	unsigned long long have_ = (unsigned long long)(have), want_ = (unsigned long long)(want);	\
	if (have_ != want_)								\
		DIE("%s is %#llx, %#llx (%s) expected", #have, have_, want_, #want);	\
} while (0)

/* A system call that has to fail with this errno. */
#define CHECK_ERRNO(call, want) do {							\
	errno = 0;									\
	long result_ = (long)(call);							\
	int errno_ = errno;								\
	if (result_ != -1)								\
		FAIL("%s gave %ld, %s expected", #call, result_, strerrorname(want));	\
	else if (errno_ != (want))							\
		FAIL("%s: %s, %s expected", #call, strerrorname(errno_), strerrorname(want));	\
} while (0)

/* A system call that has to succeed; its value. */
#define OK(call) ({									\
	errno = 0;									\
	long result_ = (long)(call);							\
	if (result_ < 0)								\
		DIE("%s: %s", #call, strerrorname(errno));				\
	result_;									\
})

const char *strerrorname(int number);

/* A handler of signals that are to end a system call and do no more. */
void nothing(int signal);
/* Ends a thread's system calls by SIGUSR1, which has a handler, until it has returned. */
void stop_thread(pthread_t thread);

/* Whether the kernel, which says so to root, has that function. */
bool kernel_has(const char *function);

/* A line of /proc/meminfo, which has to be there, in KiB. */
long meminfo(const char *what);

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#endif
