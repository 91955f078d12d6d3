// SPDX-License-Identifier: GPL-2.0
/* The ioctl interface: errors one by one, and that what KVM_CHECK_EXTENSION claims is there (api.rst 4). */
#define _GNU_SOURCE
#include "vm.h"
#include <signal.h>
#include <setjmp.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#define BAD ((void *)0x1000)	/* never mapped */
#define UNKNOWN_IOCTL _IO(KVMIO, 0xfe)

GUEST16(halt, "hlt\n");

TEST(version)
{
	int kvm = device_open();

	CHECK_EQ(ioctl(kvm, KVM_GET_API_VERSION, 0), 12);
	CHECK_ERRNO(ioctl(kvm, KVM_GET_API_VERSION, 1), EINVAL);
	CHECK_EQ(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), 3 * 4096);
	CHECK(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0) >= (int)sizeof(struct kvm_run));
	CHECK_ERRNO(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 1), EINVAL);
}

TEST(unknown_ioctls)
{
	struct vm vm;

	vm_new(&vm, MIB);
	CHECK_ERRNO(ioctl(vm.kvm, UNKNOWN_IOCTL, 0), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, UNKNOWN_IOCTL, 0), ENOTTY);
	CHECK_ERRNO(ioctl(vm.vcpu, UNKNOWN_IOCTL, 0), EINVAL);
	/* Right number, wrong size or direction: the whole command counts. */
	CHECK_ERRNO(ioctl(vm.kvm, _IOW(KVMIO, 0x00, int), 0), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, _IOW(KVMIO, 0x46, int), 0), ENOTTY);
	CHECK_ERRNO(ioctl(vm.vcpu, _IOR(KVMIO, 0x81, int), 0), EINVAL);
	/* The other kinds of file do not know a vCPU's ioctl. */
	CHECK_ERRNO(ioctl(vm.kvm, KVM_RUN, 0), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, KVM_RUN, 0), ENOTTY);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_CREATE_VM, 0), EINVAL);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_RUN, 1), EINVAL);
	/* Reads and writes are nothing these files know. */
	CHECK(write(vm.fd, "x", 1) < 0);
	CHECK(read(vm.vcpu, (char[1]){ 0 }, 1) < 0);
}

TEST(create_vm)
{
	int kvm = device_open();

	CHECK_ERRNO(ioctl(kvm, KVM_CREATE_VM, 0x7fffffff), EINVAL);
	CHECK_ERRNO(ioctl(kvm, KVM_CREATE_VM, ~0ul), EINVAL);
	close(OK(ioctl(kvm, KVM_CREATE_VM, 0)));
}

TEST(create_vcpu)
{
	struct vm vm;
	long max_id, max;

	vm_init(&vm, 0);
	max_id = OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPU_ID));
	max = OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS));
	CHECK(max >= 1);
	CHECK(max_id >= max);
	CHECK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_NR_VCPUS) >= 1);
	OK(ioctl(vm.fd, KVM_CREATE_VCPU, 0));
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_VCPU, 0), EEXIST);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_VCPU, max_id), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_VCPU, -1), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_VCPU, 1ul << 32 | 1), EINVAL);
	/* Ids may be sparse, up to the last one. */
	OK(ioctl(vm.fd, KVM_CREATE_VCPU, max_id - 1));
	OK(ioctl(vm.fd, KVM_CREATE_VCPU, 1));
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_VCPU, 1), EEXIST);
}

TEST(memory_regions)
{
	struct vm vm;
	uint8_t *m;

	vm_init(&vm, 0);
	m = mmap(NULL, 16 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(m != MAP_FAILED);
	/* Address, size and user address have to be aligned. */
	CHECK_ERRNO(try_slot(vm.fd, 0, 0, 0, 0x1800, m), EINVAL);
	CHECK_ERRNO(try_slot(vm.fd, 0, 0, 0x800, 0x1000, m), EINVAL);
	CHECK_ERRNO(try_slot(vm.fd, 0, 0, 0, 0x1000, m + 0x800), EINVAL);
	/* Flags. */
	CHECK_ERRNO(try_slot(vm.fd, 0, 0x8, 0, 0x1000, m), EINVAL);
	CHECK_ERRNO(try_slot(vm.fd, 0, 0x80000000, 0, 0x1000, m), EINVAL);
	/* Addresses: kernel's, wrapping, and beyond the end. */
	CHECK_ERRNO(try_slot(vm.fd, 0, 0, 0, 0x1000, (void *)0xffff800000000000), EINVAL);
	CHECK_ERRNO(try_slot(vm.fd, 0, 0, ~0xfffull, 0x2000, m), EINVAL);
	CHECK_ERRNO(try_slot(vm.fd, 0, 0, 0, ~0xfffull, m), EINVAL);
	/* Slot numbers. */
	CHECK_ERRNO(try_slot(vm.fd, 32767, 0, 0, 0x1000, m), EINVAL);
	if (OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE)) <= 1)
		CHECK_ERRNO(try_slot(vm.fd, 1 << 16, 0, 0, 0x1000, m), EINVAL);
	CHECK_ERRNO(try_slot(vm.fd, OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS)), 0, 0, 0x1000, m),
		    EINVAL);
	/* Nothing to delete. */
	CHECK_ERRNO(try_slot(vm.fd, 3, 0, 0, 0, m), EINVAL);

	OK(try_slot(vm.fd, 0, 0, 0x10000, 0x4000, m));
	/* A slot that is set again as it is does not change. */
	OK(try_slot(vm.fd, 0, 0, 0x10000, 0x4000, m));
	/* Neither size, nor user address, nor READONLY can change. */
	CHECK_ERRNO(try_slot(vm.fd, 0, 0, 0x10000, 0x3000, m), EINVAL);
	CHECK_ERRNO(try_slot(vm.fd, 0, 0, 0x10000, 0x5000, m), EINVAL);
	CHECK_ERRNO(try_slot(vm.fd, 0, 0, 0x10000, 0x4000, m + 0x1000), EINVAL);
	CHECK_ERRNO(try_slot(vm.fd, 0, KVM_MEM_READONLY, 0x10000, 0x4000, m), EINVAL);
	/* Overlaps, also by one page. */
	CHECK_ERRNO(try_slot(vm.fd, 1, 0, 0x10000, 0x4000, m), EEXIST);
	CHECK_ERRNO(try_slot(vm.fd, 1, 0, 0xf000, 0x2000, m), EEXIST);
	CHECK_ERRNO(try_slot(vm.fd, 1, 0, 0x13000, 0x1000, m), EEXIST);
	CHECK_ERRNO(try_slot(vm.fd, 1, 0, 0, 0x100000, m), EEXIST);
	OK(try_slot(vm.fd, 1, 0, 0x14000, 0x1000, m));
	OK(try_slot(vm.fd, 2, 0, 0xf000, 0x1000, m));
	/* Move: onto another is refused, elsewhere it is allowed, also onto its own old place. */
	CHECK_ERRNO(try_slot(vm.fd, 2, 0, 0x12000, 0x1000, m), EEXIST);
	OK(try_slot(vm.fd, 0, 0, 0x20000, 0x4000, m));
	OK(try_slot(vm.fd, 0, 0, 0x22000, 0x4000, m));
	OK(try_slot(vm.fd, 2, 0, 0x10000, 0x1000, m));
	/* Flags only. */
	OK(try_slot(vm.fd, 0, KVM_MEM_LOG_DIRTY_PAGES, 0x22000, 0x4000, m));
	OK(try_slot(vm.fd, 0, 0, 0x22000, 0x4000, m));
	/* A slot can be deleted once. */
	OK(try_slot(vm.fd, 0, 0, 0x22000, 0, m));
	CHECK_ERRNO(try_slot(vm.fd, 0, 0, 0x22000, 0, m), EINVAL);
	OK(try_slot(vm.fd, 0, KVM_MEM_READONLY, 0x22000, 0x4000, m));
	CHECK_ERRNO(try_slot(vm.fd, 0, 0, 0x22000, 0x4000, m), EINVAL);
	/* Two slots on the same user memory. */
	OK(try_slot(vm.fd, 5, 0, 0x40000, 0x4000, m));
	/* User memory need not be there yet. */
	OK(try_slot(vm.fd, 6, 0, 0x50000, 0x4000, BAD));
}

TEST(many_slots)
{
	struct vm vm;
	uint8_t *m = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long slots;

	vm_init(&vm, 0);
	slots = OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS));
	CHECK(slots >= 509);
	for (int i = 0; i < 600 && i < slots; i++)
		OK(try_slot(vm.fd, (i * 7) % 600, 0, 0x100000ull + i * 0x2000ull, 0x1000, m));
	CHECK_ERRNO(try_slot(vm.fd, 700, 0, 0x100000ull + 300 * 0x2000ull, 0x1000, m), EEXIST);
	OK(try_slot(vm.fd, slots - 1, 0, 0x10000000, 0x1000, m));
	for (int i = 0; i < 600 && i < slots; i++)
		OK(try_slot(vm.fd, i, 0, 0, 0, NULL));
}

/* What the host's kernel does not use, by an erratum, firmware or the command line, is not offered. */
TEST(cpuid_as_the_kernel)
{
	static const struct { const char *name; uint32_t leaf, reg, bit; } features[] = {
		{ "fma", 1, 2, 12 }, { "pcid", 1, 2, 17 }, { "aes", 1, 2, 25 }, { "avx", 1, 2, 28 },
		{ "rdrand", 1, 2, 30 }, { "fsgsbase", 7, 1, 0 }, { "avx2", 7, 1, 5 }, { "smep", 7, 1, 7 },
		{ "erms", 7, 1, 9 }, { "invpcid", 7, 1, 10 }, { "rdseed", 7, 1, 18 }, { "smap", 7, 1, 20 },
		{ "clflushopt", 7, 1, 23 }, { "pku", 7, 2, 3 }, { "rdpid", 7, 2, 22 },
		{ "fsrm", 7, 3, 4 }, { "nx", 0x80000001, 3, 20 }, { "rdtscp", 0x80000001, 3, 27 },
	};
	struct kvm_cpuid2 *table = supported_cpuid(device_open());
	static char line[16384];
	FILE *f = fopen("/proc/cpuinfo", "r");
	unsigned int offered = 0;

	REQUIRE(f);
	do
		REQUIRE(fgets(line, sizeof(line), f));
	while (strncmp(line, "flags", 5));
	fclose(f);
	line[strcspn(line, "\n")] = ' ';
	for (unsigned int i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
		struct kvm_cpuid_entry2 *e = cpuid_entry(table, features[i].leaf, 0);
		char word[32];

		if (!e || !((&e->eax)[features[i].reg] >> features[i].bit & 1))
			continue;
		offered++;
		snprintf(word, sizeof(word), " %s ", features[i].name);
		if (!strstr(line, word))
			FAIL("%s is offered, and the kernel does not use it", features[i].name);
	}
	CHECK(offered > 5);
	free(table);
}

TEST(cpuid)
{
	struct kvm_cpuid2 *table;
	unsigned int n;
	struct vm vm;

	vm_init(&vm, 0);
	table = supported_cpuid(vm.kvm);
	n = table->nent;
	CHECK(n > 5 && n < 100);
	CHECK(cpuid_entry(table, 0, 0) && cpuid_entry(table, 1, 0) && cpuid_entry(table, 7, 0));
	CHECK(cpuid_entry(table, 0x80000000, 0) && cpuid_entry(table, 0x80000001, 0) &&
	      cpuid_entry(table, 0x80000008, 0));
	/* The table is one entry too small. */
	table->nent = n - 1;
	CHECK_ERRNO(ioctl(vm.kvm, KVM_GET_SUPPORTED_CPUID, table), E2BIG);
	table->nent = 0;
	CHECK_ERRNO(ioctl(vm.kvm, KVM_GET_SUPPORTED_CPUID, table), E2BIG);
	table->nent = 1;
	CHECK_ERRNO(ioctl(vm.kvm, KVM_GET_SUPPORTED_CPUID, table), E2BIG);
	/* The table is just large enough. */
	table->nent = n;
	OK(ioctl(vm.kvm, KVM_GET_SUPPORTED_CPUID, table));
	CHECK_EQ(table->nent, n);
	CHECK_ERRNO(ioctl(vm.kvm, KVM_GET_SUPPORTED_CPUID, BAD), EFAULT);

	vm.vcpu = OK(ioctl(vm.fd, KVM_CREATE_VCPU, 0));
	struct kvm_cpuid2 *big = calloc(1, sizeof(*big) + 300 * sizeof(big->entries[0]));

	big->nent = 257;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_CPUID2, big), E2BIG);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_CPUID2, BAD), EFAULT);
	table->nent = n;
	OK(ioctl(vm.vcpu, KVM_SET_CPUID2, table));
	/* Another table is fine before the first run. */
	table->nent = 3;
	OK(ioctl(vm.vcpu, KVM_SET_CPUID2, table));
	table->nent = n;
	OK(ioctl(vm.vcpu, KVM_SET_CPUID2, table));
	/* KVM_GET_CPUID2 gives the table back. */
	big->nent = 256;
	OK(ioctl(vm.vcpu, KVM_GET_CPUID2, big));
	CHECK_EQ(big->nent, n);
	for (unsigned int i = 0; i < n && i < big->nent; i++) {
		CHECK_EQ(big->entries[i].function, table->entries[i].function);
		CHECK_EQ(big->entries[i].index, table->entries[i].index);
	}
	big->nent = n - 1;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_GET_CPUID2, big), E2BIG);
}

/* GuestPhysAddrSize of CPUID.80000008H:EAX[23:16] is how far memory reaches, which may be less than PhysAddrSize. */
TEST(guest_physical_width)
{
	struct kvm_cpuid2 *table;
	struct kvm_cpuid_entry2 *widths;
	unsigned int bits;
	struct vm vm;

	vm_init(&vm, 4096);
	table = supported_cpuid(vm.kvm);
	widths = cpuid_entry(table, 0x80000008, 0);
	REQUIRE(widths);
	bits = widths->eax >> 16 & 0xff;
	CHECK(bits >= 32 && bits <= (widths->eax & 0xff));
	CHECK_EQ(try_slot(vm.fd, 1, 0, (1ull << (bits & 63)) - 4096, 4096, vm.mem), 0);
	free(table);
}

TEST(msr_list)
{
	struct {
		struct kvm_msr_list header;
		uint32_t index[256];
	} list = { .header.nmsrs = 0 };
	uint64_t v;
	struct vm vm;
	unsigned int n;

	vm_new(&vm, MIB);
	CHECK_ERRNO(ioctl(vm.kvm, KVM_GET_MSR_INDEX_LIST, &list), E2BIG);
	n = list.header.nmsrs;
	CHECK(n > 10 && n <= 256);
	list.header.nmsrs = n - 1;
	CHECK_ERRNO(ioctl(vm.kvm, KVM_GET_MSR_INDEX_LIST, &list), E2BIG);
	CHECK_EQ(list.header.nmsrs, n);
	OK(ioctl(vm.kvm, KVM_GET_MSR_INDEX_LIST, &list));
	CHECK_EQ(list.header.nmsrs, n);
	CHECK_ERRNO(ioctl(vm.kvm, KVM_GET_MSR_INDEX_LIST, BAD), EFAULT);
	if (!is_rvmm())
		return;	/* KVM lists some that its emulated CPU lacks */
	/* The list promises that each can be read and written back. */
	for (unsigned int i = 0; i < n; i++) {
		for (unsigned int j = 0; j < i; j++)
			CHECK(list.index[i] != list.index[j]);
		/* It needs a local APIC in the kernel, as in KVM. */
		if (list.index[i] == 0x4b564d06)
			continue;
		if (!get_msr(&vm, list.index[i], &v))
			FAIL("MSR %#x of the list cannot be read", list.index[i]);
		else if (!set_msr(&vm, list.index[i], v))
			FAIL("MSR %#x of the list cannot be written back its value %#llx", list.index[i],
			     (unsigned long long)v);
	}
}

TEST(get_msrs)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry[256];
	} m = { 0 };
	struct vm vm;

	vm_new(&vm, MIB);
	m.entry[0].index = 0x174;
	m.entry[1].index = 0x12345678;	/* no such */
	m.entry[2].index = 0x175;
	m.header.nmsrs = 0;
	CHECK_EQ(ioctl(vm.vcpu, KVM_GET_MSRS, &m), 0);
	m.header.nmsrs = 1;
	CHECK_EQ(ioctl(vm.vcpu, KVM_GET_MSRS, &m), 1);
	/* Stops at the first that is not there: how many were done. */
	m.header.nmsrs = 3;
	CHECK_EQ(ioctl(vm.vcpu, KVM_GET_MSRS, &m), 1);
	CHECK_EQ(ioctl(vm.vcpu, KVM_SET_MSRS, &m), 1);
	m.entry[0].index = 0x12345678;
	CHECK_EQ(ioctl(vm.vcpu, KVM_GET_MSRS, &m), 0);
	CHECK_EQ(ioctl(vm.vcpu, KVM_SET_MSRS, &m), 0);
	for (int i = 0; i < 256; i++)
		m.entry[i].index = 0x174 + i % 3;
	m.header.nmsrs = 255;
	CHECK_EQ(ioctl(vm.vcpu, KVM_GET_MSRS, &m), 255);
	m.header.nmsrs = 256;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_GET_MSRS, &m), E2BIG);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_MSRS, &m), E2BIG);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_GET_MSRS, BAD), EFAULT);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_MSRS, BAD), EFAULT);
}

TEST(bad_pointers)
{
	static const struct {
		unsigned long command;
		const char *name;
	} vm_calls[] = {
		{ KVM_SET_USER_MEMORY_REGION, "SET_USER_MEMORY_REGION" }, { KVM_GET_DIRTY_LOG, "GET_DIRTY_LOG" },
		{ KVM_GET_CLOCK, "GET_CLOCK" }, { KVM_SET_CLOCK, "SET_CLOCK" }, { KVM_ENABLE_CAP, "ENABLE_CAP" },
		{ KVM_IRQFD, "IRQFD" }, { KVM_IOEVENTFD, "IOEVENTFD" }, { KVM_SET_GSI_ROUTING, "SET_GSI_ROUTING" },
		{ KVM_SIGNAL_MSI, "SIGNAL_MSI" }, { KVM_IRQ_LINE, "IRQ_LINE" }, { KVM_CREATE_PIT2, "CREATE_PIT2" },
	}, vcpu_calls[] = {
		{ KVM_GET_REGS, "GET_REGS" }, { KVM_SET_REGS, "SET_REGS" }, { KVM_GET_SREGS, "GET_SREGS" },
		{ KVM_SET_SREGS, "SET_SREGS" }, { KVM_GET_FPU, "GET_FPU" }, { KVM_SET_FPU, "SET_FPU" },
		{ KVM_GET_XSAVE, "GET_XSAVE" }, { KVM_SET_XSAVE, "SET_XSAVE" }, { KVM_GET_XCRS, "GET_XCRS" },
		{ KVM_SET_XCRS, "SET_XCRS" }, { KVM_GET_DEBUGREGS, "GET_DEBUGREGS" },
		{ KVM_SET_DEBUGREGS, "SET_DEBUGREGS" }, { KVM_GET_VCPU_EVENTS, "GET_VCPU_EVENTS" },
		{ KVM_SET_VCPU_EVENTS, "SET_VCPU_EVENTS" }, { KVM_GET_MP_STATE, "GET_MP_STATE" },
		{ KVM_SET_MP_STATE, "SET_MP_STATE" }, { KVM_INTERRUPT, "INTERRUPT" },
		{ KVM_TRANSLATE, "TRANSLATE" }, { KVM_GET_LAPIC, "GET_LAPIC" }, { KVM_SET_LAPIC, "SET_LAPIC" },
		{ KVM_X86_SETUP_MCE, "X86_SETUP_MCE" },
	};
	struct vm vm;

	vm_init(&vm, MIB);
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_IDENTITY_MAP_ADDR, BAD), EFAULT);
	OK(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	vm_add_vcpu(&vm, 0);
	for (size_t i = 0; i < ARRAY_SIZE(vm_calls); i++)
		if (ioctl(vm.fd, vm_calls[i].command, BAD) != -1 || errno != EFAULT)
			FAIL("KVM_%s with a bad pointer: %s", vm_calls[i].name, strerrorname(errno));
	for (size_t i = 0; i < ARRAY_SIZE(vcpu_calls); i++)
		if (ioctl(vm.vcpu, vcpu_calls[i].command, BAD) != -1 || errno != EFAULT)
			FAIL("KVM_%s with a bad pointer: %s", vcpu_calls[i].name, strerrorname(errno));
	CHECK_ERRNO(ioctl(vm.kvm, KVM_X86_GET_MCE_CAP_SUPPORTED, BAD), EFAULT);
}

/* A VM belongs to the address space that made it. */
TEST(other_process)
{
	struct kvm_regs regs;
	struct vm vm;
	int status;
	pid_t pid;

	vm_new(&vm, MIB);
	pid = fork_child();
	if (pid == 0) {
		CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_VCPU, 1), EIO);
		CHECK_ERRNO(try_slot(vm.fd, 1, 0, 0x10000000, 0x1000, vm.mem), EIO);
		CHECK_ERRNO(ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), EIO);
		CHECK_ERRNO(ioctl(vm.vcpu, KVM_GET_REGS, &regs), EIO);
		CHECK_ERRNO(ioctl(vm.vcpu, KVM_RUN, 0), EIO);
		/* The device is anybody's. */
		CHECK_EQ(ioctl(vm.kvm, KVM_GET_API_VERSION, 0), 12);
		_exit(0);
	}
	REQUIRE(waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
	OK(ioctl(vm.vcpu, KVM_GET_REGS, &regs));
}

TEST(close_order)
{
	struct kvm_regs regs;

	/* Every order of the three files, with the mapping used last. */
	for (int order = 0; order < 6; order++) {
		struct vm vm;
		int fds[3];

		vm_new(&vm, MIB);
		VM_REAL(&vm, halt);
		fds[0] = vm.kvm;
		fds[1] = vm.fd;
		fds[2] = vm.vcpu;
		int a = order / 2, b = (a + 1 + order % 2) % 3;

		close(fds[a]);
		if (a != 2)
			OK(ioctl(vm.vcpu, KVM_GET_REGS, &regs));
		close(fds[b]);
		if (a != 2 && b != 2) {
			OK(ioctl(vm.vcpu, KVM_GET_REGS, &regs));
			CHECK_EQ(regs.rsp, G_STACK);
		}
		close(fds[3 - a - b]);
		vm.run->immediate_exit = 1;
		CHECK_EQ(vm.run->immediate_exit, 1);
		munmap(vm.run, vm.run_bytes);
	}
}

TEST(close_on_exec)
{
	struct vm vm;

	vm_new(&vm, MIB);
	CHECK(fcntl(vm.fd, F_GETFD) & FD_CLOEXEC);
	CHECK(fcntl(vm.vcpu, F_GETFD) & FD_CLOEXEC);
	if (has_extension(vm.kvm, KVM_CAP_BINARY_STATS_FD))
		CHECK(fcntl(OK(ioctl(vm.fd, KVM_GET_STATS_FD, 0)), F_GETFD) & FD_CLOEXEC);
}

static sigjmp_buf bus;

static void on_bus(int signal)
{
	siglongjmp(bus, 1);
}

TEST(mmap_ranges)
{
	struct vm vm;
	uint8_t *page, *again, *all;

	vm_new(&vm, MIB);
	all = (uint8_t *)vm.run;
	/* Pages by themselves, and twice. */
	for (int i = 0; i < 3; i++) {
		page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vm.vcpu, i * 4096);
		if (page == MAP_FAILED) {
			FAIL("page %d of the vCPU file: %s", i, strerror(errno));
			continue;
		}
		page[4000] = 0x55 + i;
		CHECK_EQ(all[i * 4096 + 4000], 0x55 + i);
		munmap(page, 4096);
	}
	again = mmap(NULL, vm.run_bytes, PROT_READ, MAP_SHARED, dup(vm.vcpu), 0);
	CHECK(again != MAP_FAILED && again[4096 + 4000] == 0x56);
	/* A mapping beyond the end is refused at once, or by SIGBUS. */
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vm.vcpu, 200 * 4096);
	if (page != MAP_FAILED) {
		signal(SIGBUS, on_bus);
		if (!sigsetjmp(bus, 1)) {
			*(volatile uint8_t *)page = 1;
			FAIL("a page beyond the end of the vCPU file can be written");
		}
	}
	/* The VM's file has no such thing. */
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, vm.fd, 0) == MAP_FAILED);
}

/* What a claimed extension promises, in one call each. */
TEST(extensions)
{
	static const uint32_t booleans[] = {
		KVM_CAP_IRQCHIP, KVM_CAP_HLT, KVM_CAP_USER_MEMORY, KVM_CAP_SET_TSS_ADDR, KVM_CAP_EXT_CPUID,
		KVM_CAP_MP_STATE, KVM_CAP_SYNC_MMU, KVM_CAP_DESTROY_MEMORY_REGION_WORKS,
		KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, KVM_CAP_IRQFD, KVM_CAP_PIT2, KVM_CAP_IOEVENTFD,
		KVM_CAP_SET_IDENTITY_MAP_ADDR, KVM_CAP_VCPU_EVENTS, KVM_CAP_DEBUGREGS, KVM_CAP_XSAVE,
		KVM_CAP_SIGNAL_MSI, KVM_CAP_GET_TSC_KHZ, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_SPLIT_IRQCHIP,
		KVM_CAP_IRQ_INJECT_STATUS, KVM_CAP_INTERNAL_ERROR_DATA, KVM_CAP_USER_NMI, KVM_CAP_READONLY_MEM,
	};
	struct vm vm;
	int kvm, fd;

	vm_init(&vm, MIB);
	kvm = vm.kvm;
	fd = vm.fd;
	/*
	 * Same answer on both files (but for flags that depend on the VM's irqchip), never an error; unknown ones
	 * are 0.
	 */
	for (unsigned int cap = 0; cap < 300; cap++) {
		int a = ioctl(kvm, KVM_CHECK_EXTENSION, cap), b = ioctl(fd, KVM_CHECK_EXTENSION, cap);

		if (a < 0 || (a != b && is_rvmm() && cap != KVM_CAP_X2APIC_API))
			FAIL("extension %u: %d on the device, %d on the VM", cap, a, b);
	}
	CHECK_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, 0x7fffffff), 0);
	CHECK_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, 1ul << 32 | KVM_CAP_USER_MEMORY), 0);
	/* Clients compare with 1. */
	for (size_t i = 0; i < ARRAY_SIZE(booleans); i++)
		if (ioctl(kvm, KVM_CHECK_EXTENSION, booleans[i]) != 1)
			FAIL("extension %u is %d, 1 expected", booleans[i],
			     ioctl(kvm, KVM_CHECK_EXTENSION, booleans[i]));
	CHECK_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_IRQ_ROUTING), 4096);
	CHECK(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_ADJUST_CLOCK) & KVM_CLOCK_TSC_STABLE);
	CHECK(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MCE) >= 10);
}

TEST(extensions_hold)
{
	struct kvm_identity { uint64_t address; } identity = { 0xfeffc000 };
	struct kvm_pit_config pit = { 0 };
	struct kvm_clock_data clock = { 0 };
	struct kvm_mp_state mp;
	struct kvm_vcpu_events events;
	struct kvm_debugregs debug;
	struct kvm_xsave *xsave = calloc(1, sizeof(*xsave));
	struct kvm_xcrs xcrs;
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x40 };
	struct kvm_irq_level line = { .irq = 4, .level = 1 };
	struct kvm_irqfd irqfd = { .fd = eventfd(0, 0), .gsi = 5 };
	struct kvm_ioeventfd ioeventfd = { .addr = 0x500, .len = 2, .fd = eventfd(0, 0),
					   .flags = KVM_IOEVENTFD_FLAG_PIO };
	struct {
		struct kvm_irq_routing header;
		struct kvm_irq_routing_entry entry;
	} routing = { .header.nr = 1, .entry = { .gsi = 4095, .type = KVM_IRQ_ROUTING_MSI } };
	uint64_t mce = 0;
	struct vm vm;

	vm_init(&vm, MIB);
	OK(ioctl(vm.fd, KVM_SET_TSS_ADDR, 0xfffbd000));
	OK(ioctl(vm.fd, KVM_SET_IDENTITY_MAP_ADDR, &identity));
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_TSS_ADDR, 0xffffe000), EINVAL);
	OK(ioctl(vm.fd, KVM_SET_BOOT_CPU_ID, 0));
	OK(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	OK(ioctl(vm.fd, KVM_CREATE_PIT2, &pit));
	vm_add_vcpu(&vm, 0);
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_IDENTITY_MAP_ADDR, &identity), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_BOOT_CPU_ID, 0), EBUSY);
	OK(ioctl(vm.fd, KVM_GET_CLOCK, &clock));
	clock.flags = 0;
	clock.clock += 1000000000000;
	OK(ioctl(vm.fd, KVM_SET_CLOCK, &clock));
	OK(ioctl(vm.fd, KVM_GET_CLOCK, &clock));
	CHECK(clock.clock >= 1000000000000);
	clock.flags = 0x80;
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_CLOCK, &clock), EINVAL);
	OK(ioctl(vm.vcpu, KVM_GET_MP_STATE, &mp));
	CHECK_EQ(mp.mp_state, KVM_MP_STATE_RUNNABLE);
	OK(ioctl(vm.vcpu, KVM_GET_VCPU_EVENTS, &events));
	OK(ioctl(vm.vcpu, KVM_GET_DEBUGREGS, &debug));
	OK(ioctl(vm.vcpu, KVM_GET_XSAVE, xsave));
	if (has_extension(vm.kvm, KVM_CAP_XCRS))
		OK(ioctl(vm.vcpu, KVM_GET_XCRS, &xcrs));
	CHECK(OK(ioctl(vm.vcpu, KVM_GET_TSC_KHZ, 0)) > 0);
	CHECK(OK(ioctl(vm.fd, KVM_GET_TSC_KHZ, 0)) > 0);
	OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &msi));
	OK(ioctl(vm.fd, KVM_IRQ_LINE, &line));
	line.level = 0;
	OK(ioctl(vm.fd, KVM_IRQ_LINE_STATUS, &line));
	OK(ioctl(vm.fd, KVM_IRQFD, &irqfd));
	irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
	OK(ioctl(vm.fd, KVM_IRQFD, &irqfd));
	OK(ioctl(vm.fd, KVM_IOEVENTFD, &ioeventfd));
	OK(ioctl(vm.fd, KVM_SET_GSI_ROUTING, &routing));
	OK(ioctl(vm.vcpu, KVM_NMI, 0));
	OK(ioctl(vm.kvm, KVM_X86_GET_MCE_CAP_SUPPORTED, &mce));
	mce = (mce & ~0xffull) | 10;
	OK(ioctl(vm.vcpu, KVM_X86_SETUP_MCE, &mce));
	mce = (mce & ~0xffull) | 0xff;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_X86_SETUP_MCE, &mce), EINVAL);
}

TEST(enable_cap)
{
	struct kvm_enable_cap cap = { .cap = 0x12345 };
	struct vm vm;

	vm_init(&vm, MIB);
	CHECK_ERRNO(ioctl(vm.fd, KVM_ENABLE_CAP, &cap), EINVAL);
	cap = (struct kvm_enable_cap) { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 }, .flags = 1 };
	CHECK_ERRNO(ioctl(vm.fd, KVM_ENABLE_CAP, &cap), EINVAL);
	cap = (struct kvm_enable_cap) { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 100000 } };
	CHECK_ERRNO(ioctl(vm.fd, KVM_ENABLE_CAP, &cap), EINVAL);
	cap.args[0] = 24;
	OK(ioctl(vm.fd, KVM_ENABLE_CAP, &cap));
	CHECK_ERRNO(ioctl(vm.fd, KVM_ENABLE_CAP, &cap), EEXIST);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0), EEXIST);
}

TEST(without_irqchip)
{
	struct kvm_lapic_state lapic;
	struct kvm_mp_state mp = { KVM_MP_STATE_HALTED };
	struct kvm_irq_level line = { .irq = 4, .level = 1 };
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x40 };
	struct kvm_pit_config pit = { 0 };
	struct kvm_interrupt irq = { 256 };
	struct vm vm;

	vm_new(&vm, MIB);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_GET_LAPIC, &lapic), EINVAL);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_MP_STATE, &mp), EINVAL);
	mp.mp_state = KVM_MP_STATE_RUNNABLE;
	OK(ioctl(vm.vcpu, KVM_SET_MP_STATE, &mp));
	CHECK_ERRNO(ioctl(vm.fd, KVM_IRQ_LINE, &line), ENXIO);
	CHECK(ioctl(vm.fd, KVM_SIGNAL_MSI, &msi) < 0);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_PIT2, &pit), ENOENT);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_INTERRUPT, &irq), EINVAL);
	irq.irq = 255;
	OK(ioctl(vm.vcpu, KVM_INTERRUPT, &irq));
	/* It is too late for an interrupt controller. */
	CHECK(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0) < 0);
}

/* RVMM_MEASURE_ROOT: its errors, and that the vCPU runs on where it was. */
GUEST64(read_and_halt, "mov " STR(G_CELLS) ", %rax; hlt; mov " STR(G_CELLS) ", %rax; hlt\n");

TEST(measure_root)
{
	struct rvmm_root_cost cost = {};
	struct kvm_regs before, after;
	struct kvm_sregs s;
	struct vm vm, with_apic;
	unsigned int index = 0;
	int status;

	VM_NEW_LONG(&vm, read_and_halt);
	if (!is_rvmm()) {
		CHECK_ERRNO(ioctl(vm.vcpu, RVMM_MEASURE_ROOT, &cost), EINVAL);
		skip("KVM does not have it");
	}
	vm_cells(&vm)[0] = 1;
	vm_expect(&vm, KVM_EXIT_HLT);
	before = vm_regs(&vm);
	s = vm_sregs(&vm);
	for (errno = 0; errno != ENOENT; index++) {
		int tries = 100;

		do {
			cost.index = index;
			errno = 0;
			ioctl(vm.vcpu, RVMM_MEASURE_ROOT, &cost);
		} while (errno == EAGAIN && tries--);
		if (errno == ENOENT)
			break;
		REQUIRE(!errno);
		CHECK(cost.count <= ARRAY_SIZE(cost.ticks));
		CHECK(cost.name[0] && memchr(cost.name, 0, sizeof(cost.name)));
		if (!index)
			CHECK(!strcmp(cost.name, "nothing") && cost.count);
	}
	CHECK(index > 20);
	cost.index = -1;
	CHECK_ERRNO(ioctl(vm.vcpu, RVMM_MEASURE_ROOT, &cost), ENOENT);
	CHECK_ERRNO(ioctl(vm.vcpu, RVMM_MEASURE_ROOT, 8), EFAULT);
	after = vm_regs(&vm);
	/* A faulting access may leave RFLAGS.RF set, to be tried again without its breakpoints. */
	after.rflags &= ~(1ull << 16);
	CHECK(!memcmp(&after, &before, sizeof(after)));
	CHECK_EQ(vm_sregs(&vm).cr3, s.cr3);
	vm_cells(&vm)[0] = 2;
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rax, 2);

	vm_new_irqchip(&with_apic, MIB);
	cost.index = 0;
	CHECK_ERRNO(ioctl(with_apic.vcpu, RVMM_MEASURE_ROOT, &cost), EINVAL);
	if (!fork_child()) {
		vm_new(&vm, MIB);
		OK(setuid(65534));
		_exit(ioctl(vm.vcpu, RVMM_MEASURE_ROOT, &cost) != -1 || errno != EPERM);
	}
	OK(wait(&status));
	CHECK_EQ(status, 0);
}
