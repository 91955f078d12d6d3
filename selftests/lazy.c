// SPDX-License-Identifier: GPL-2.0
/* Memory that comes when the guest accesses it. lazy_userfault.c has userfaultfd. */
#define _GNU_SOURCE
#include "lazy.h"

static uint8_t *anonymous(void)
{
	uint8_t *m = mmap(NULL, TEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(m != MAP_FAILED);
	madvise(m, TEST_BYTES, MADV_NOHUGEPAGE);
	return m;
}

/* Faults on shared memory that is there take the short way. */
TEST(short_shared)
{
	int fd = OK(memfd_create("guest", 0));
	uint64_t slow;
	struct vm vm;
	uint8_t *m;

	OK(ftruncate(fd, TEST_BYTES));
	m = mmap(NULL, TEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	REQUIRE(m != MAP_FAILED);
	memset(m, 1, TEST_BYTES);
	lazy_vm(&vm, 0, m);
	if (!is_rvmm())
		skip("KVM has one way");
	lazy_do(&vm, LAZY_READ, TEST_GPA, 0);
	slow = lazy_statistic(vm.fd, "slow_faults");
	for (unsigned int i = 1; i < TEST_PAGES; i++) {
		CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + i * 4096, 0), 0x0101010101010101);
		lazy_do(&vm, LAZY_WRITE, TEST_GPA + i * 4096, i);
		CHECK_EQ(*(uint64_t *)(m + i * 4096), i);
	}
	/* Somebody may hold the lock for a moment. */
	CHECK(lazy_statistic(vm.fd, "slow_faults") - slow <= TEST_PAGES / 4);
	/* What was written is in the file. */
	REQUIRE(!madvise(m, TEST_BYTES, MADV_DONTNEED));
	CHECK_EQ(*(uint64_t *)(m + 5 * 4096), 5);
	/* Holes are seen at once, and so is what is written to the file. */
	OK(fallocate(fd, 3 /* FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE */, 5 * 4096, 4096));
	CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + 5 * 4096, 0), 0);
	*(uint64_t *)(m + 5 * 4096) = 99;
	CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + 5 * 4096, 0), 99);
	/* Neither the file of another file system, nor a private copy, is written behind anybody's back. */
	m = mmap(m, TEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
	REQUIRE(m != MAP_FAILED);
	lazy_do(&vm, LAZY_READ, TEST_GPA + 6 * 4096, 0);
	lazy_do(&vm, LAZY_WRITE, TEST_GPA + 6 * 4096, 0x6666);
	slow = 0;
	REQUIRE_EQ(pread(fd, &slow, 8, 6 * 4096), 8);
	CHECK_EQ(slow, 6);
}

static void short_huge(unsigned int shift, uint64_t gpa)
{
	uint64_t size = 1ull << shift, faults, slow;
	struct vm vm;
	uint8_t *m;

	m = mmap(NULL, size, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE | shift << 26 /* MAP_HUGE_SHIFT */, -1, 0);
	if (m == MAP_FAILED)
		skip("no page of %u MiB (vm.nr_hugepages; hugepagesz=1G hugepages=1)", 1u << (shift - 20));
	m[0] = 1;
	lazy_vm(&vm, 0, anonymous());
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, 0, NULL);
	if (!is_rvmm())
		skip("KVM has one way");
	vm_slot(&vm, TEST_SLOT, 0, gpa, size, m);
	/* The guest's second GiB. */
	((uint64_t *)(vm.mem + G_PDPT))[1] = 0x40000000 | LAZY_TABLE_WORD;
	lazy_do(&vm, LAZY_READ, gpa, 0);
	slow = lazy_statistic(vm.fd, "slow_faults");
	faults = lazy_statistic(vm.vcpu, "exit_nested_fault");
	for (uint64_t at = 4096; at < 2 * MIB; at += 64 * 4096) {
		lazy_do(&vm, LAZY_WRITE, gpa + at, at);
		CHECK_EQ(*(uint64_t *)(m + at), at);
	}
	CHECK_EQ(lazy_statistic(vm.vcpu, "exit_nested_fault") - faults, 0);
	/* Another part of the same page. */
	if (size > 8 * MIB) {
		lazy_do(&vm, LAZY_WRITE, gpa + 6 * MIB, 6);
		CHECK_EQ(*(uint64_t *)(m + 6 * MIB), 6);
	}
	CHECK(lazy_statistic(vm.fd, "slow_faults") - slow <= 1);
}

TEST(short_hugetlb)
{
	FILE *f = fopen("/proc/sys/vm/nr_hugepages", "r+");
	int before = 0;

	if (!f || fscanf(f, "%d", &before) != 1)
		skip("no hugetlb");
	rewind(f);
	fprintf(f, "%d", before + 2);
	fflush(f);
	short_huge(21, TEST_GPA);
	rewind(f);
	fprintf(f, "%d", before);
	fclose(f);
}

TEST_SECONDS(short_hugetlb_1g, 240)
{
	short_huge(30, 0x40000000);
}

/* Device memory that user space maps for reading only: a guest's write is its business (KVM_EXIT_MMIO). */
TEST(readonly_device)
{
	int fd = open("/dev/mem", O_RDONLY);
	uint64_t there;
	struct vm vm;
	void *m;

	if (fd < 0)
		skip("no /dev/mem: %s", strerrorname(errno));
	/* The BIOS's ROM. */
	m = mmap(NULL, TEST_BYTES, PROT_READ, MAP_SHARED, fd, 0xf0000);
	if (m == MAP_FAILED)
		skip("the ROM cannot be mapped: %s", strerrorname(errno));
	lazy_vm(&vm, 0, m);
	there = *(volatile uint64_t *)((uint8_t *)m + 0x1008);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(lazy_do(&vm, LAZY_READ, TEST_GPA + 0x1008, 0), there);
		lazy_tell(&vm, LAZY_WRITE, TEST_GPA + 0x1008, 0x1122334455667788);
		vm_expect(&vm, KVM_EXIT_MMIO);
		CHECK(vm.run->mmio.is_write);
		CHECK_EQ(vm.run->mmio.phys_addr, TEST_GPA + 0x1008);
		CHECK_EQ(vm.run->mmio.len, 8);
		CHECK(!memcmp(vm.run->mmio.data, "\x88\x77\x66\x55\x44\x33\x22\x11", 8));
		vm_expect_out(&vm, 0x10);
	}
}
