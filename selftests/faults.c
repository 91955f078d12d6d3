// SPDX-License-Identifier: GPL-2.0
/*
 * Everything that the module asks the kernel for fails once: memory, and copies from and to user memory
 * (Documentation/fault-injection/fault-injection.rst). Which of a call's allocations fails is told by its number, so
 * that none is left out and each find can be repeated.
 *
 * Counted is only what is asked for below the module's own functions: libc and the rest of the kernel fail elsewhere.
 * On kernels that have no such faults, as the stock one, the test module faulty/ makes them.
 */
#define _GNU_SOURCE
#include "faults.h"
#include <sys/eventfd.h>

struct world w;

/* The number of the allocation of this thread that is to fail; reads as zero when it has failed. */
static int nth = -1;
/* The kernel has no faults to order, but the test module that makes them (faulty/faults.c). */
#define OURS "/sys/kernel/debug/rvmm_faults/"
static bool ours;

static const struct kind {
	const char *name;
	const char *attributes[2];	/* below /sys/kernel/debug */
	int number;			/* of the test module */
	int error;
} kinds[] = {
	{ "allocations", { "failslab", "fail_page_alloc" }, 3, ENOMEM },
	{ "copies", { "fail_usercopy" }, 4, EFAULT },
};

static void knob(const char *attribute, const char *name, const char *value)
{
	char path[100];
	int fd;

	snprintf(path, sizeof(path), "/sys/kernel/debug/%s/%s", attribute, name);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		skip("this kernel has no %s", path);
	REQUIRE(write(fd, value, strlen(value)) == (ssize_t)strlen(value));
	close(fd);
}

/* Where the module's functions begin and end. */
static void module_text(char *start, char *end, size_t room)
{
	const char *name = is_rvmm() ? "[rvmm]" : "[kvm]";
	unsigned long long low = ~0ull, high = 0, address;
	char line[1000], type;
	FILE *f = fopen("/proc/kallsyms", "r");

	REQUIRE(f);
	while (fgets(line, sizeof(line), f))
		if (strstr(line, name) && sscanf(line, "%llx %c", &address, &type) == 2 && (type | 0x20) == 't') {
			low = address < low ? address : low;
			high = address > high ? address : high;
		}
	fclose(f);
	if (!high)
		skip("/proc/kallsyms does not say where %s is", name);
	snprintf(start, room, "%#llx", low);
	snprintf(end, room, "%#llx", high);
}

/* From now on what fails is of this kind. */
static void choose(const struct kind *chosen)
{
	char start[30], end[30], all[80];

	module_text(start, end, sizeof(start));
	if (ours) {
		int fd = OK(open(OURS "where", O_WRONLY));

		snprintf(all, sizeof(all), "%d %s %s", chosen->number, start, end);
		OK(write(fd, all, strlen(all)));
		close(fd);
		return;
	}
	for (const struct kind *k = kinds; k < kinds + ARRAY_SIZE(kinds); k++)
		for (int i = 0; i < 2 && k->attributes[i]; i++) {
			knob(k->attributes[i], "verbose", verbose ? "2" : "0");
			knob(k->attributes[i], "stacktrace-depth", "32");
			/* Nothing lies between 1 and 1. */
			knob(k->attributes[i], "require-start", k == chosen ? start : "1");
			knob(k->attributes[i], "require-end", k == chosen ? end : "1");
		}
	knob("failslab", "ignore-gfp-wait", "N");
	knob("fail_page_alloc", "ignore-gfp-wait", "N");
	knob("fail_page_alloc", "ignore-gfp-highmem", "N");
	knob("fail_page_alloc", "min-order", "0");
}

static void set_nth(unsigned int n)
{
	char text[12];
	int length = snprintf(text, sizeof(text), "%u", n);

	REQUIRE(pwrite(nth, text, length, 0) == length);
}

static unsigned int get_nth(void)
{
	char text[12] = "";

	REQUIRE(pread(nth, text, sizeof(text) - 1, 0) > 0);
	return atoi(text);
}

/* What is the module's and still there. */
struct left {
	long references, tables, areas, pins;
};

static long number_in(const char *path, const char *word)
{
	char line[500];
	FILE *f = fopen(path, "r");
	long sum = 0;

	REQUIRE(f);
	while (fgets(line, sizeof(line), f)) {
		size_t length = strlen(word);

		if (!length)
			sum = atol(line);
		else if (!strncmp(line, word, length) && line[length] == ' ')
			sum = atol(line + length);
	}
	fclose(f);
	return sum;
}

static long areas(void)
{
	char line[500];
	FILE *f = fopen("/proc/vmallocinfo", "r");
	long count = 0;

	REQUIRE(f);
	while (fgets(line, sizeof(line), f))
		count += strstr(line, "[rvmm]") || strstr(line, "[kvm]");
	fclose(f);
	return count;
}

static struct left what_is_left(void)
{
	return (struct left) {
		.references = number_in(is_rvmm() ? "/sys/module/rvmm/refcnt" : "/sys/module/kvm/refcnt", ""),
		.tables = meminfo("SecPageTables"),
		.areas = areas(),
		.pins = number_in("/proc/vmstat", "nr_foll_pin_acquired") -
			number_in("/proc/vmstat", "nr_foll_pin_released"),
	};
}

static void begin(void)
{
	w = (struct world) { .vm = { .kvm = -1, .fd = -1, .vcpu = -1, .bytes = FAULTS_BYTES }, .vcpu2 = -1 };
	for (int i = 0; i < ARRAY_SIZE(w.fd); i++)
		w.fd[i] = -1;
	for (int i = 0; i < ARRAY_SIZE(w.event); i++)
		w.event[i] = OK(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
	w.vm.mem = mmap(NULL, w.vm.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	REQUIRE(w.vm.mem != MAP_FAILED);
}

static void end(void)
{
	const int files[] = { w.fd[0], w.fd[1], w.fd[2], w.fd[3], w.vcpu2, w.vm.vcpu, w.vm.fd, w.vm.kvm, w.event[0],
			      w.event[1] };

	if (w.map)
		munmap(w.map, w.map_bytes);
	if (w.vm.run)
		munmap(w.vm.run, w.vm.run_bytes);
	for (int i = 0; i < ARRAY_SIZE(files); i++)
		if (files[i] >= 0)
			close(files[i]);
	munmap(w.vm.mem, w.vm.bytes);
}

struct sums {
	int faults, refused;
};

/* The calls once, with the `n`th fault in call `i`; whether there was so many a fault. */
static bool once(const struct step *steps, size_t count, size_t i, unsigned int n, const struct kind *kind,
		 struct sums *sums)
{
	const struct step *s = &steps[i];
	bool met;
	long result;
	int error;

	begin();
	for (size_t j = 0; j < i; j++)
		if (steps[j].call() < 0)
			DIE("%s: %s, without a fault", steps[j].name, strerrorname(errno));
	set_nth(n);
	result = s->call();
	error = errno;
	met = get_nth() == 0;
	set_nth(0);
	if (!met && result < 0)
		DIE("%s: %s, without a fault", s->name, strerrorname(error));
	if (met) {
		sums->faults++;
		sums->refused += result < 0;
		if (result < 0 && error && error != kind->error)
			FAIL("%s: %s when number %u of its %s fails", s->name, strerrorname(error), n, kind->name);
		for (size_t j = result < 0 ? i : i + 1; j < count; j++)
			if (steps[j].call() < 0) {
				FAIL("%s: %s, after number %u of the %s of %s had failed", steps[j].name,
				     strerrorname(errno), n, kind->name, s->name);
				break;
			}
	}
	end();
	return met;
}

static void without_faults(const struct step *steps, size_t count)
{
	begin();
	for (size_t i = 0; i < count; i++)
		if (steps[i].call() < 0)
			DIE("%s: %s, without a fault", steps[i].name, strerrorname(errno));
	end();
}

void each_fails(const struct step *steps, size_t count)
{
	struct left before, after;

	/* The calls are right, and what is made once for all is there. */
	without_faults(steps, count);
	nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	ours = nth < 0;
	if (ours)
		nth = open(OURS "nth", O_RDWR | O_CLOEXEC);
	if (nth < 0)
		skip("neither /proc/thread-self/fail-nth here nor " OURS);
	for (const struct kind *kind = kinds; kind < kinds + ARRAY_SIZE(kinds); kind++) {
		struct sums sums = { 0 };
		unsigned int n;

		choose(kind);
		without_faults(steps, count);
		usleep(100000);
		before = what_is_left();
		for (size_t i = 0; i < count; i++) {
			struct sums old = sums;

			if (steps[i].spared)
				continue;
			for (n = 1; once(steps, count, i, n, kind, &sums); n++)
				REQUIRE(n < 10000);
			if (verbose)
				note("%s: %d %s failed, %d times it did", steps[i].name, sums.faults - old.faults,
				     kind->name, sums.refused - old.refused);
		}
		note("%d %s failed, %d calls", sums.faults, kind->name, sums.refused);
		/* A test in which nothing fails shows nothing. */
		CHECK(sums.faults > 0 && sums.refused > 0);
		/* Some of it goes after a grace period. */
		for (int tries = 0; tries < 50; tries++) {
			after = what_is_left();
			if (!memcmp(&before, &after, sizeof(before)))
				break;
			usleep(100000);
		}
		CHECK_EQ(after.references, before.references);
		CHECK_EQ(after.tables, before.tables);
		CHECK_EQ(after.areas, before.areas);
		CHECK_EQ(after.pins, before.pins);
	}
}

long in_full(long result, long asked)
{
	if (result < 0)
		return result;
	errno = 0;
	return result == asked ? 0 : -1;
}

long open_device(void)
{
	long bytes;

	w.vm.kvm = open(device, O_RDWR | O_CLOEXEC);
	if (w.vm.kvm < 0)
		return -1;
	bytes = ioctl(w.vm.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	w.vm.run_bytes = bytes;
	return bytes;
}

long create_vm(void)
{
	return w.vm.fd = ioctl(w.vm.kvm, KVM_CREATE_VM, 0);
}

long add_slot(void)
{
	return try_slot(w.vm.fd, 0, 0, 0, w.vm.bytes, w.vm.mem);
}

long small_slot(void)
{
	return try_slot(w.vm.fd, 0, 0, 0, 4 * MIB, w.vm.mem);
}

long add_irqchip(void)
{
	return ioctl(w.vm.fd, KVM_CREATE_IRQCHIP, 0);
}

long add_vcpu(void)
{
	return w.vm.vcpu = ioctl(w.vm.fd, KVM_CREATE_VCPU, 0);
}

long map_vcpu(void)
{
	void *p = mmap(NULL, w.vm.run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, w.vm.vcpu, 0);

	if (p == MAP_FAILED)
		return -1;
	w.vm.run = p;
	return 0;
}

long put_cpuid(void)
{
	static struct kvm_cpuid2 *table;

	if (!table)
		table = supported_cpuid(w.vm.kvm);
	return ioctl(w.vm.vcpu, KVM_SET_CPUID2, table);
}

long run(void)
{
	struct kvm_run *r = w.vm.run;

	for (int i = 0; i < 200; i++) {
		if (ioctl(w.vm.vcpu, KVM_RUN, 0))
			return -1;
		if (r->exit_reason == KVM_EXIT_IO && r->io.port == 0x11) {
			w.said = *(uint32_t *)io_data(&w.vm);
			return 0;
		}
		if (r->exit_reason == KVM_EXIT_IO && r->io.direction == KVM_EXIT_IO_IN)
			memset(io_data(&w.vm), 0x5a, r->io.size * r->io.count);
		else if (r->exit_reason == KVM_EXIT_MMIO && !r->mmio.is_write)
			memset(r->mmio.data, 0x5a, 8);
		else if (r->exit_reason == KVM_EXIT_DIRTY_RING_FULL)
			OK(ioctl(w.vm.fd, KVM_RESET_DIRTY_RINGS, 0));
		else if (r->exit_reason != KVM_EXIT_IO && r->exit_reason != KVM_EXIT_MMIO)
			DIE("exit %s", exit_name(r->exit_reason));
	}
	errno = ELOOP;
	return -1;
}

void check_said(uint64_t value)
{
	CHECK_EQ(w.said, value);
}

long map_file(int fd, size_t bytes, int prot, int flags, off_t offset)
{
	void *p = mmap(NULL, bytes, prot, flags, fd, offset);

	if (p == MAP_FAILED)
		return -1;
	w.map = p;
	w.map_bytes = bytes;
	return 0;
}
