// SPDX-License-Identifier: GPL-2.0
/* RVMM_RECORD: a record for each exit and entry, in memory that user space maps (uapi/rvmm.h). */
#define _GNU_SOURCE
#include "vm.h"
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>

#define CLASS_CPUID 0
#define CLASS_WRMSR 2
#define CLASS_IO 3
#define CLASS_MMIO 6
#define CLASS_HLT 7

GUEST64(work,
	"mov $5, %r8d; 1: mov $7, %eax; xor %ecx, %ecx; cpuid; dec %r8d; jnz 1b\n"
	"mov $0x5a, %al; out %al, $0x10; mov 0x10000040, %ebx; hlt\n");

GUEST64(endless, "1: mov $7, %eax; cpuid; jmp 1b\n");

struct recorder {
	int fd;
	const volatile struct rvmm_record_header *header;
	const volatile struct rvmm_record *records;
};

static size_t bytes(uint32_t records)
{
	return 4096 + 64ul * records;
}

static int try_record(int vcpu, uint32_t records, uint32_t flags)
{
	struct rvmm_record_ring ring = { records, flags };

	return ioctl(vcpu, RVMM_RECORD, &ring);
}

static struct recorder record(struct vm *vm, uint32_t records, uint32_t flags)
{
	struct recorder r = { .fd = OK(try_record(vm->vcpu, records, flags)) };
	void *map = mmap(NULL, bytes(records), PROT_READ, MAP_SHARED, r.fd, 0);

	REQUIRE(map != MAP_FAILED);
	r.header = map;
	r.records = map + 4096;
	return r;
}

static void close_recorder(struct recorder *r)
{
	munmap((void *)r->header, bytes(r->header->records));
	close(r->fd);
}

static void need_record(struct vm *vm)
{
	if (!has_extension(vm->kvm, RVMM_CAP_RECORD))
		skip("no recorder");
}

TEST(arguments)
{
	struct vm vm;
	int fd;

	_Static_assert(sizeof(struct rvmm_record) == 64 && sizeof(struct rvmm_record_header) == 64, "a line each");
	VM_NEW_LONG(&vm, work);
	need_record(&vm);
	CHECK_ERRNO(try_record(vm.vcpu, 0, 0), EINVAL);
	CHECK_ERRNO(try_record(vm.vcpu, 63, 0), EINVAL);
	CHECK_ERRNO(try_record(vm.vcpu, 32, 0), EINVAL);
	CHECK_ERRNO(try_record(vm.vcpu, 96, 0), EINVAL);
	CHECK_ERRNO(try_record(vm.vcpu, 1 << 19, 0), EINVAL);
	CHECK_ERRNO(try_record(vm.vcpu, 64, 2), EINVAL);
	CHECK_ERRNO(ioctl(vm.vcpu, RVMM_RECORD, NULL), EFAULT);
	fd = OK(try_record(vm.vcpu, 64, 0));
	CHECK_ERRNO(try_record(vm.vcpu, 64, 0), EBUSY);
	CHECK_ERRNO(ioctl(fd, RVMM_RECORD_CONSUMED, NULL), EFAULT);
	CHECK_ERRNO(ioctl(fd, KVM_RUN, 0), ENOTTY);
	/* For reading only, and what is there. */
	CHECK(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
	CHECK(mmap(NULL, 8192, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0) == MAP_FAILED);
	CHECK(mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED);
	char *map = mmap(NULL, 3 * 4096, PROT_READ, MAP_SHARED, fd, 0);
	REQUIRE(map != MAP_FAILED);
	CHECK_ERRNO(mprotect(map, 4096, PROT_READ | PROT_WRITE), EACCES);
	CHECK_ERRNO(mprotect(map, 4096, PROT_READ | PROT_EXEC), EACCES);
	struct rvmm_record_header *h = (void *)map;
	CHECK_EQ(h->magic, RVMM_RECORD_MAGIC);
	CHECK_EQ(h->record_size, 64);
	CHECK_EQ(h->records, 64);
	CHECK_EQ(h->head, 0);
	CHECK(h->tsc_khz > 0);
	pid_t pid = fork_child();
	if (!pid) {
		volatile char c = map[2 * 4096];
		(void)c;
		_exit(0);
	}
	int status;
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	/* The next one comes when file and mapping are gone. */
	close(fd);
	CHECK_ERRNO(try_record(vm.vcpu, 64, 0), EBUSY);
	munmap(map, 3 * 4096);
	close(OK(try_record(vm.vcpu, 1 << 18, RVMM_RECORD_STOP)));
}

TEST(exits)
{
	struct vm vm;
	unsigned int cpuids = 0, entries = 0, n;

	VM_NEW_LONG(&vm, work);
	need_record(&vm);
	struct recorder r = record(&vm, 1024, 0);

	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x5a);
	vm_expect(&vm, KVM_EXIT_MMIO);
	vm_expect(&vm, KVM_EXIT_HLT);
	n = r.header->head;
	REQUIRE(n > 8 && n < 1024);
	uint64_t tsc = 0;
	for (unsigned int i = 0; i < n; i++) {
		const volatile struct rvmm_record *x = &r.records[i];

		CHECK(x->tsc >= tsc && x->tsc);
		tsc = x->tsc;
		CHECK(x->kind == RVMM_RECORD_EXIT || x->kind == RVMM_RECORD_ENTRY);
		CHECK_EQ(x->inject, 0);
		if (x->kind == RVMM_RECORD_ENTRY) {
			CHECK(!x->class && !x->decision && !x->path && !x->address);
			entries++;
			continue;
		}
		CHECK(x->path >= RVMM_PATH_SHORT && x->path <= RVMM_PATH_OUTSIDE);
		if (x->class == CLASS_CPUID) {
			CHECK_EQ(x->address, 7);
			CHECK_EQ(x->value, 0);
			CHECK_EQ(vm.mem[x->rip], 0x0f);
			CHECK(x->decision == RVMM_DECIDED_AGAIN || x->decision == RVMM_DECIDED_RESUME);
			CHECK(x->path != RVMM_PATH_OUTSIDE);
			CHECK(x->cycles > 0);
			cpuids++;
		} else if (x->class == CLASS_IO) {
			CHECK_EQ(x->address, 0x10);
			CHECK_EQ(x->value & 0xff, 0x5a);
			CHECK_EQ(x->detail, 1);
			CHECK_EQ(x->decision, RVMM_DECIDED_USER);
			CHECK_EQ(x->reason, KVM_EXIT_IO);
		} else if (x->class == CLASS_MMIO) {
			CHECK_EQ(x->address, 0x10000040);
			CHECK_EQ(x->detail & 1, 0);
			CHECK_EQ(x->reason, KVM_EXIT_MMIO);
		} else if (x->class == CLASS_HLT) {
			CHECK_EQ(i, n - 1);
			CHECK_EQ(x->reason, KVM_EXIT_HLT);
		}
	}
	CHECK_EQ(cpuids, 5);
	CHECK(entries >= 3);
	CHECK_EQ(r.header->lost, 0);
	close_recorder(&r);
	/* The vCPU has noticed, and runs as before; the next ring begins anew. */
	struct kvm_regs regs = vm_regs(&vm);
	regs.rip = G_CODE;
	vm_set_regs(&vm, &regs);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x5a);
	r = record(&vm, 64, 0);
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(r.records[0].kind, RVMM_RECORD_ENTRY);
	CHECK(r.header->head >= 2 && r.header->head < 10);
	/* The ring outlives the machine. */
	vm_free(&vm);
	CHECK(r.records[0].tsc);
	close_recorder(&r);
}

static void *run(void *vm)
{
	vm_try_run(vm);
	return NULL;
}

/* A full ring, of both kinds, while the vCPU runs in another thread, and its descriptor in another process. */
TEST(full)
{
	pthread_t thread;
	struct vm vm;

	VM_NEW_LONG(&vm, endless);
	need_record(&vm);
	signal(SIGUSR1, nothing);
	REQUIRE(!pthread_create(&thread, NULL, run, &vm));
	struct recorder r = record(&vm, 64, 0);
	while (r.header->head < 1000)
		sched_yield();
	CHECK_EQ(r.header->lost, 0);
	close_recorder(&r);

	pid_t pid = fork_child();
	if (!pid) {
		/* Another address space: KVM_RUN is refused, this is not. */
		CHECK_ERRNO(ioctl(vm.vcpu, KVM_RUN, 0), EIO);
		r = record(&vm, 128, RVMM_RECORD_STOP);
		while (r.header->lost < 1000)
			sched_yield();
		CHECK_EQ(r.header->head, 128);
		uint64_t first = r.records[0].tsc, count = 28;
		OK(ioctl(r.fd, RVMM_RECORD_CONSUMED, &count));
		while (r.header->head < 156)
			sched_yield();
		CHECK(r.records[0].tsc > first);
		CHECK(r.records[28].tsc > first && r.records[28].tsc < r.records[0].tsc);
		CHECK_EQ(r.header->head, 156);
		count = ~0ull;
		OK(ioctl(r.fd, RVMM_RECORD_CONSUMED, &count));
		_exit(0);
	}
	int status;
	CHECK(waitpid(pid, &status, 0) == pid && !status);
	close(OK(try_record(vm.vcpu, 64, 0)));
	stop_thread(thread);
}

/* What an entry delivers is in its record, where the processor does not deliver it by itself. */
TEST(injection)
{
	struct vm vm;
	bool seen = false;

	vm_new(&vm, 4 * MIB);
	VM_LONG(&vm, work);
	need_record(&vm);
	struct recorder r = record(&vm, 256, 0);
	vm_expect_out(&vm, 0x10);
	OK(ioctl(vm.vcpu, KVM_NMI, 0));
	vm_run(&vm);
	for (unsigned int i = 0; i < r.header->head; i++) {
		const volatile struct rvmm_record *x = &r.records[i];

		if (x->inject) {
			/* NMI: type 2, vector 2. */
			CHECK_EQ(x->inject, 0x80000202);
			CHECK_EQ(x->error_code, 0);
			seen = true;
		}
	}
	CHECK(seen);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 2);
}

#define TRACING "/sys/kernel/tracing/"

static bool tell(const char *file, const char *text)
{
	int fd = open(file, O_WRONLY | O_CLOEXEC);
	bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	close(fd);
	return written;
}

/* The kernel's tracepoints tell the same, without a ring. */
TEST(tracepoints)
{
	static char text[1 << 16];
	struct vm vm;
	size_t n = 0;
	ssize_t got;

	VM_NEW_LONG(&vm, work);
	need_record(&vm);
	mount("tracefs", TRACING, "tracefs", 0, NULL);
	if (access(TRACING "events/rvmm", F_OK))
		skip("no tracefs, or no right to it");
	REQUIRE(tell(TRACING "trace", "\n"));
	REQUIRE(tell(TRACING "events/rvmm/enable", "1"));
	vm_expect_out(&vm, 0x10);
	vm_expect(&vm, KVM_EXIT_MMIO);
	REQUIRE(tell(TRACING "events/rvmm/enable", "0"));
	/* Nobody listens any more. */
	vm_expect(&vm, KVM_EXIT_HLT);
	int fd = OK(open(TRACING "trace", O_RDONLY | O_CLOEXEC));
	while (n < sizeof(text) - 1 && (got = read(fd, text + n, sizeof(text) - 1 - n)) > 0)
		n += got;
	unsigned int cpuids = 0;
	for (const char *at = text; (at = strstr(at, "rvmm_exit: vcpu 0 cpuid rip 0x")); at++)
		cpuids++;
	CHECK_EQ(cpuids, 5);
	CHECK(strstr(text, "rvmm_entry: vcpu 0 rip 0x10000,"));
	CHECK(strstr(text, "vcpu 0 io rip 0x") &&
	      strstr(text, "address 0x10 value 0x5a detail 0x1 user by stay, reason 2,"));
	CHECK(strstr(text, "vcpu 0 mmio rip 0x") && strstr(text, "address 0x10000040 value"));
	CHECK(!strstr(text, "vcpu 0 hlt"));
	if (verbose)
		note("%s", text);
}
