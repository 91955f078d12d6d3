// SPDX-License-Identifier: GPL-2.0
/* What the fuzzer does to the host meanwhile: memory, files, processes. */
#define _GNU_SOURCE
#include "fuzz.h"
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* --- files that come and go --- */

static void put_in(int *place, int fd)
{
	int old = __atomic_exchange_n(place, fd, __ATOMIC_SEQ_CST);

	if (old >= 0)
		close(old);
}

void keep_file(int fd)
{
	put_in(&world.files[below(FUZZ_FILES)], fd);
}

void make_vm(int place)
{
	struct kvm_userspace_memory_region r = { 0, below(2), 0, FUZZ_MEM, (uintptr_t)world.mem };
	int fd = fuzz_ioctl(world.kvm, KVM_CREATE_VM, 0);
	uint32_t chips = below(4), kind = below(3), pit = below(2);

	if (fd < 0)
		return;
	if (chips) {
		struct kvm_enable_cap c = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
		struct kvm_pit_config config = { .flags = below(2) };

		if (kind)
			fuzz_ioctl(fd, KVM_CREATE_IRQCHIP, 0);
		else
			fuzz_ioctl(fd, KVM_ENABLE_CAP, &c);
		if (pit)
			fuzz_ioctl(fd, KVM_CREATE_PIT2, &config);
	}
	fuzz_ioctl(fd, KVM_SET_USER_MEMORY_REGION, &r);
	r = (struct kvm_userspace_memory_region){ 1, 0, 0xffff0000, 0x10000, (uintptr_t)world.mem };
	fuzz_ioctl(fd, KVM_SET_USER_MEMORY_REGION, &r);
	put_in(&world.vms[place], fd);
}

void make_vcpu(int place)
{
	struct { struct kvm_cpuid2 h; struct kvm_cpuid_entry2 e[256]; } *c = (void *)scratch();
	uint64_t id = below(20) ? below(6) : value();
	int fd = fuzz_ioctl(world.vms[below(FUZZ_VMS)], KVM_CREATE_VCPU, (void *)(uintptr_t)id);
	struct kvm_run *run, *before;

	if (fd < 0)
		return;
	c->h.nent = 256;
	if (below(8) && !ioctl(world.kvm, KVM_GET_SUPPORTED_CPUID, c)) {
		if (!below(4))
			mutate(c->e, sizeof(c->e[0]) * c->h.nent);
		fuzz_ioctl(fd, KVM_SET_CPUID2, c);
	}
	run = mmap(NULL, 0x3000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	put_in(&world.vcpus[place], fd);
	before = __atomic_exchange_n(&world.runs[place], run == MAP_FAILED ? NULL : run, __ATOMIC_SEQ_CST);
	/* Another thread may be using its first pages. */
	if (before && !below(3))
		munmap((char *)before + 0x2000, 0x1000);
}

static void duplicate(void)
{
	int fd = dup(below(2) ? world.vms[below(FUZZ_VMS)] : world.vcpus[below(FUZZ_VCPUS)]);

	if (fd >= 0)
		keep_file(fd);
}

/* A descriptor on its way through a socket, received by whoever looks next. */
static void pass(void)
{
	int fd = below(2) ? world.vcpus[below(FUZZ_VCPUS)] : world.files[below(FUZZ_FILES)];
	union { struct cmsghdr h; char room[CMSG_SPACE(sizeof(int))]; } control = { 0 };
	struct iovec one = { &(char){ 0 }, 1 };
	struct msghdr m = { .msg_iov = &one, .msg_iovlen = 1, .msg_control = &control,
			    .msg_controllen = sizeof(control) };

	if (below(2)) {
		control.h = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.h), &fd, sizeof(fd));
		sendmsg(world.sockets[0], &m, MSG_DONTWAIT);
	} else if (recvmsg(world.sockets[1], &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) > 0 &&
		   control.h.cmsg_type == SCM_RIGHTS) {
		memcpy(&fd, CMSG_DATA(&control.h), sizeof(fd));
		keep_file(fd);
	}
}

/* A child with copies of all descriptors and of the memory, which is ended or ends. */
static void fork_here(void)
{
	uint32_t how = below(4);
	pid_t pid = fork_child();

	if (pid < 0)
		return;
	if (!pid) {
		for (size_t i = 0; i < FUZZ_MEM; i += 4096 * 7)
			*(volatile uint8_t *)(world.mem + i) = 1;
		for (int i = 0; i < 20; i++)
			ioctl_step();
		for (int i = 0; i < FUZZ_VCPUS && how; i++)
			ioctl(world.vcpus[i], KVM_RUN, 0);
		_exit(0);
	}
	if (how == 3)
		kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

/* --- memory --- */

static void remap(size_t at, size_t n)
{
	bool shared = !below(3) && world.memfd >= 0;

	if (!below(3))
		munmap(world.mem + at, n);
	mmap(world.mem + at, n, PROT_READ | PROT_WRITE | (below(2) ? PROT_EXEC : 0),
	     MAP_FIXED | (shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS), shared ? world.memfd : -1,
	     shared ? at : 0);
}

static void advise(size_t at, size_t n)
{
	static const int advices[] = {
		MADV_DONTNEED, MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_FREE, 25 /* MADV_COLLAPSE */,
		20 /* MADV_COLD */, 21 /* MADV_PAGEOUT */, MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_DONTFORK, MADV_DOFORK,
		22 /* MADV_POPULATE_READ */, 23 /* MADV_POPULATE_WRITE */, MADV_REMOVE,
	};

	madvise(world.mem + at, n, advices[below(ARRAY_SIZE(advices))]);
}

static void protect(size_t at, size_t n)
{
	mprotect(world.mem + at, n, below(2) ? PROT_READ : PROT_NONE);
	if (below(2))
		sched_yield();
	mprotect(world.mem + at, n, PROT_READ | PROT_WRITE | (below(2) ? PROT_EXEC : 0));
}

static void move(size_t at, size_t n)
{
	/* Away and back: addresses change under the slots. */
	void *there = mremap(world.mem + at, n, n, MREMAP_MAYMOVE | 4 /* MREMAP_DONTUNMAP */);

	if (there == MAP_FAILED)
		return;
	if (below(2))
		mremap(there, n, n, MREMAP_MAYMOVE | MREMAP_FIXED, world.mem + at);
	else
		munmap(there, n);
}

/* Pages that are told of when they are missing, or written. */
static void watch(size_t at, size_t n)
{
	struct uffdio_register r = { .range = { (uintptr_t)world.mem + at, n }, .mode = 1 + below(3) };
	struct uffdio_writeprotect p = { .range = r.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP };

	if (below(3)) {
		if (!ioctl(world.uffd, UFFDIO_REGISTER, &r) && r.mode & UFFDIO_REGISTER_MODE_WP)
			ioctl(world.uffd, UFFDIO_WRITEPROTECT, &p);
	} else {
		ioctl(world.uffd, UFFDIO_UNREGISTER, &r.range);
	}
}

void *bring_pages(void *stop)
{
	while (!__atomic_load_n((int *)stop, __ATOMIC_RELAXED)) {
		struct pollfd p = { .fd = world.uffd, .events = POLLIN };
		struct uffd_msg m;

		if (poll(&p, 1, 10) <= 0 || read(world.uffd, &m, sizeof(m)) != sizeof(m))
			continue;
		if (m.event != UFFD_EVENT_PAGEFAULT)
			continue;
		struct uffdio_range page = { m.arg.pagefault.address & ~0xfffull, 4096 };
		struct uffdio_zeropage zero = { .range = page };
		struct uffdio_writeprotect open = { .range = page };

		if (m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
			ioctl(world.uffd, UFFDIO_WRITEPROTECT, &open);
		else
			ioctl(world.uffd, UFFDIO_ZEROPAGE, &zero);
		/* Whoever watched it may watch something else by now, so that neither was right. */
		ioctl(world.uffd, UFFDIO_WAKE, &page);
	}
	return NULL;
}

void host_step(void)
{
	size_t at = below(FUZZ_MEM) & ~0xfffu, n = below(2) ? 4096 : (1 + below(FUZZ_MEM - at) + 4095) & ~0xfffu;
	uint32_t which = below(24);

	if (at + n > FUZZ_MEM)
		n = FUZZ_MEM - at;
	count(&counts->host);
	switch (which) {
	case 0 ... 4:
		advise(at, n);
		break;
	case 5 ... 6:
		protect(at, n);
		break;
	case 7 ... 8:
		remap(at, n);
		break;
	case 9:
		move(at, 4096 * (1 + below(8)) < FUZZ_MEM - at ? 4096 * (1 + below(4)) : 4096);
		break;
	case 10:
		watch(at, n < 0x40000 ? n : 0x40000);
		break;
	case 11:
		fallocate(world.memfd, 3 /* punch a hole */, at, n);
		break;
	case 12:
		pass();
		break;
	case 13:
		duplicate();
		break;
	case 14:
		if (!below(16))
			fork_here();
		break;
	case 15:
		put_in(below(3) ? &world.vcpus[below(FUZZ_VCPUS)] : &world.files[below(FUZZ_FILES)], -1);
		break;
	case 16:
		if (!below(4))
			make_vm(below(FUZZ_VMS));
		break;
	case 17 ... 18:
		make_vcpu(below(FUZZ_VCPUS));
		break;
	case 19:
		if (write(world.events[below(FUZZ_EVENTS)], &(uint64_t){ 1 }, 8) < 0)
			errno = 0;
		break;
	default:
		plant();
	}
}
