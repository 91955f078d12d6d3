// SPDX-License-Identifier: GPL-2.0
/* Huge pages of the host: how many faults they take, before, while and after writes to them are logged. */
#define _GNU_SOURCE
#include "lazy.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define LARGE (2 * MIB)
#define BYTES (2 * LARGE)
#define WORDS (BYTES / 4096 / 64)

/* Faults so far, in all and outside of stays; on KVM the tests are about what the log says alone. */
static uint64_t faults(struct vm *vm)
{
	return is_rvmm() ? lazy_statistic(vm->vcpu, "exit_nested_fault") : 0;
}

static uint64_t slow_faults(struct vm *vm)
{
	return is_rvmm() ? lazy_statistic(vm->fd, "slow_faults") : 0;
}

/* A write to a page that has been read from the log: a fault, or none where the processor logs writes. */
#define CHECK_LOGGED(vm, what) do {						\
	uint64_t before_ = faults(vm);						\
	what;									\
	if (is_rvmm())								\
		CHECK(faults(vm) - before_ <= 1);				\
} while (0)

#define CHECK_FAULTS(vm, n, what) do {						\
	uint64_t before_ = faults(vm);						\
	what;									\
	if (is_rvmm())								\
		CHECK_EQ(faults(vm) - before_, n);				\
} while (0)

static void write_page(struct vm *vm, uint64_t page)
{
	lazy_do(vm, LAZY_WRITE, TEST_GPA + page * 4096 + 8, page + 1);
}

/* BYTES of memory, resident, in huge pages or in small ones. */
static uint8_t *memory(bool huge)
{
	uint8_t *m = mmap(NULL, BYTES + LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(m != MAP_FAILED);
	m = (uint8_t *)(((uintptr_t)m + LARGE - 1) & -LARGE);
	if (madvise(m, BYTES, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		skip("no transparent huge pages");
	memset(m, 0x11, BYTES);
	return m;
}

/* A VM that has these in a slot and has written a page of each 2 MiB. */
static uint8_t *with_huge(struct vm *vm)
{
	uint8_t *m = memory(true);
	uint64_t before;

	lazy_vm(vm, 0, m);
	vm_slot(vm, TEST_SLOT, 0, TEST_GPA, 0, NULL);
	vm_slot(vm, TEST_SLOT, 0, TEST_GPA, BYTES, m);
	write_page(vm, 0);
	write_page(vm, 512);
	before = faults(vm);
	write_page(vm, 300);
	write_page(vm, 1023);
	if (faults(vm) != before)
		skip("the host gave no huge pages");
	return m;
}

static void get_log(struct vm *vm, uint64_t *bitmap)
{
	struct kvm_dirty_log log = { .slot = TEST_SLOT, .dirty_bitmap = bitmap };

	OK(ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log));
}

/* The log has these pages and no others. */
static void check_log(struct vm *vm, unsigned int count, const unsigned int *pages)
{
	uint64_t bitmap[WORDS], want[WORDS] = { 0 };

	for (unsigned int i = 0; i < count; i++)
		want[pages[i] / 64] |= 1ull << pages[i] % 64;
	get_log(vm, bitmap);
	for (unsigned int w = 0; w < WORDS; w++)
		CHECK_EQ(bitmap[w], want[w]);
}

#define CHECK_LOG(vm, ...) do {							\
	const unsigned int pages_[] = { __VA_ARGS__ };				\
	check_log(vm, sizeof(pages_) / sizeof(pages_[0]), pages_);		\
} while (0)

/* Each small page is in the log by itself; when the log ends one fault brings the whole huge page back. */
TEST(huge_log)
{
	struct vm vm;
	uint8_t *m = with_huge(&vm);
	uint64_t slow;

	for (unsigned int round = 0; round < 2; round++) {
		vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, BYTES, m);
		CHECK_LOG(&vm);
		slow = slow_faults(&vm);
		CHECK_FAULTS(&vm, 0, lazy_do(&vm, LAZY_READ, TEST_GPA + 5 * 4096, 0));
		CHECK_FAULTS(&vm, 1, write_page(&vm, 5));
		CHECK_FAULTS(&vm, 0, write_page(&vm, 5));
		CHECK_FAULTS(&vm, 1, write_page(&vm, 600));
		CHECK_LOG(&vm, 5, 600);
		CHECK_LOGGED(&vm, write_page(&vm, 5));
		CHECK_FAULTS(&vm, 1, write_page(&vm, 4));
		CHECK_FAULTS(&vm, 1, write_page(&vm, 1023));
		CHECK_LOG(&vm, 4, 5, 1023);
		CHECK_LOG(&vm);
		CHECK_EQ(slow_faults(&vm) - slow, 0);
		vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, BYTES, m);
		CHECK_FAULTS(&vm, 1, write_page(&vm, 7));
		CHECK_FAULTS(&vm, 0, write_page(&vm, 5); write_page(&vm, 511));
		CHECK_FAULTS(&vm, 1, lazy_do(&vm, LAZY_READ, TEST_GPA + 700 * 4096, 0));
		CHECK_FAULTS(&vm, 0, write_page(&vm, 700); write_page(&vm, 1023));
		CHECK_EQ(slow_faults(&vm) - slow, 0);
	}
	for (unsigned int page = 0; page < 1024; page++) {
		uint64_t value = *(uint64_t *)(m + page * 4096 + 8);

		if (value != 0x1111111111111111)
			CHECK_EQ(value, page + 1);
	}
	CHECK_EQ(*(uint64_t *)(m + 600 * 4096 + 8), 601);
}

/* A reset point takes huge pages apart as they are written; when it is gone one fault brings each of them back. */
TEST(huge_reset)
{
	struct rvmm_reset_point point = { .pages = 100 };
	struct vm vm;

	if (!is_rvmm())
		skip("no reset points");
	with_huge(&vm);
	for (unsigned int round = 0; round < 2; round++) {
		point.pages = 100;
		OK(ioctl(vm.fd, RVMM_RESET_POINT, &point));
		write_page(&vm, 5);
		write_page(&vm, 600);
		CHECK_FAULTS(&vm, 1, write_page(&vm, 6));
		point.pages = 0;
		OK(ioctl(vm.fd, RVMM_RESET_POINT, &point));
		/* What the guest itself runs in may have come back, too. */
		write_page(&vm, 700);
		CHECK_FAULTS(&vm, 1, write_page(&vm, 7));
		CHECK_FAULTS(&vm, 0, write_page(&vm, 5); write_page(&vm, 511));
		CHECK_FAULTS(&vm, 0, write_page(&vm, 600); write_page(&vm, 1023));
	}
}

/* Small pages: what a log has protected, one fault each makes writable when it has ended. */
TEST(small_log)
{
	struct vm vm;
	uint8_t *m = memory(false);
	uint64_t slow;

	lazy_vm(&vm, 0, m);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, 0, NULL);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, BYTES, m);
	write_page(&vm, 3);
	write_page(&vm, 4);
	vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, BYTES, m);
	slow = slow_faults(&vm);
	CHECK_LOGGED(&vm, write_page(&vm, 3));
	/* A page that is not mapped yet is mapped writable by a read, and counts as dirty. */
	CHECK_FAULTS(&vm, 1, lazy_do(&vm, LAZY_READ, TEST_GPA + 9 * 4096, 0));
	CHECK_FAULTS(&vm, 0, write_page(&vm, 9));
	CHECK_LOG(&vm, 3, 9);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, BYTES, m);
	CHECK_LOGGED(&vm, write_page(&vm, 4));
	CHECK_FAULTS(&vm, 0, write_page(&vm, 4));
	CHECK_LOGGED(&vm, write_page(&vm, 9));
	CHECK_EQ(slow_faults(&vm) - slow, 0);
}

/* A log that begins with all pages set: they stay writable until they are cleared. */
TEST(huge_log_all_set)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET,
	};
	uint64_t bitmap[WORDS];
	struct kvm_clear_dirty_log clear = {
		.slot = TEST_SLOT, .first_page = 64, .num_pages = 128, .dirty_bitmap = bitmap,
	};
	struct vm vm;
	uint8_t *m = with_huge(&vm);

	OK(ioctl(vm.fd, KVM_ENABLE_CAP, &cap));
	vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, BYTES, m);
	CHECK_FAULTS(&vm, 0, write_page(&vm, 1); write_page(&vm, 65));
	memset(bitmap, 0xff, sizeof(bitmap));
	OK(ioctl(vm.fd, KVM_CLEAR_DIRTY_LOG, &clear));
	CHECK_FAULTS(&vm, 0, write_page(&vm, 1); write_page(&vm, 63); write_page(&vm, 192); write_page(&vm, 700));
	CHECK_LOGGED(&vm, write_page(&vm, 64));
	CHECK_LOGGED(&vm, write_page(&vm, 191));
	CHECK_FAULTS(&vm, 0, write_page(&vm, 191));
	get_log(&vm, bitmap);
	for (unsigned int w = 0; w < WORDS; w++)
		CHECK_EQ(bitmap[w], w == 1 ? 1 : w == 2 ? 1ull << 63 : ~0ull);
}

/* The host joins small pages: one fault for all of them. */
TEST(huge_collapsed)
{
	struct vm vm;
	uint8_t *m = memory(false);

	lazy_vm(&vm, 0, m);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, 0, NULL);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, BYTES, m);
	write_page(&vm, 100);
	for (unsigned int page = 0; page < 4; page++)
		CHECK_FAULTS(&vm, 1, write_page(&vm, page));
	if (madvise(m, BYTES, MADV_HUGEPAGE) || madvise(m, LARGE, MADV_COLLAPSE))
		skip("no MADV_COLLAPSE");
	/* To make room for a huge page the host may have moved what the guest works with. */
	lazy_do(&vm, LAZY_WRITE, G_DATA, 0);
	CHECK_FAULTS(&vm, 1, write_page(&vm, 2));
	for (unsigned int page = 0; page < 512; page += 37)
		CHECK_FAULTS(&vm, 0, write_page(&vm, page));
	CHECK_EQ(*(uint64_t *)(m + 37 * 4096 + 8), 38);
	CHECK_EQ(*(uint64_t *)(m + 38 * 4096 + 8), 0x1111111111111111);
}

/* 1 GiB of hugetlb: one fault, and the log takes it apart and leaves it whole again. */
TEST_SECONDS(huge_1g, 240)
{
	static uint64_t bitmap[4096];
	struct kvm_dirty_log log = { .slot = TEST_SLOT, .dirty_bitmap = bitmap };
	const uint64_t gpa = 1ull << 30, bytes = 1ull << 30;
	struct vm vm;
	uint8_t *m;

	m = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE | 30 << 26 /* MAP_HUGE_SHIFT */, -1, 0);
	if (m == MAP_FAILED)
		skip("no page of 1 GiB (hugepagesz=1G hugepages=1)");
	lazy_vm(&vm, 0, m);
	vm_slot(&vm, TEST_SLOT, 0, TEST_GPA, 0, NULL);
	vm_slot(&vm, TEST_SLOT, 0, gpa, bytes, m);
	/* The guest's second GiB. */
	((uint64_t *)(vm.mem + G_PDPT))[1] = gpa | LAZY_TABLE_WORD;
	lazy_do(&vm, LAZY_WRITE, gpa, 1);
	CHECK_FAULTS(&vm, 0,
		for (uint64_t at = 4096; at < bytes; at += 0x3456000)
			lazy_do(&vm, LAZY_WRITE, gpa + at, at));
	vm_slot(&vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, gpa, bytes, m);
	CHECK_FAULTS(&vm, 1, lazy_do(&vm, LAZY_WRITE, gpa + 5 * 4096, 5));
	CHECK_FAULTS(&vm, 1, lazy_do(&vm, LAZY_WRITE, gpa + bytes - 4096, 6));
	CHECK_FAULTS(&vm, 0, lazy_do(&vm, LAZY_READ, gpa + 0x12345000, 0));
	OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
	for (unsigned int w = 0; w < 4096; w++)
		CHECK_EQ(bitmap[w], w == 0 ? 1 << 5 : w == 4095 ? 1ull << 63 : 0);
	vm_slot(&vm, TEST_SLOT, 0, gpa, bytes, m);
	CHECK_FAULTS(&vm, 1, lazy_do(&vm, LAZY_WRITE, gpa + 6 * 4096, 7));
	CHECK_FAULTS(&vm, 0,
		for (uint64_t at = 4096; at < bytes; at += 0x3456000)
			lazy_do(&vm, LAZY_WRITE, gpa + at, at));
	CHECK_EQ(*(uint64_t *)(m + 5 * 4096), 5);
	CHECK_EQ(*(uint64_t *)(m + 6 * 4096), 7);
}

/*
 * Huge pages for data alone (nx_huge_pages=1 on an rvmm that joins all of them every $NX_PERIOD_MS milliseconds): from
 * the first fetch on small pages, and a huge page again later on.
 */
TEST(huge_for_data)
{
	const char *text = getenv("NX_PERIOD_MS");
	struct vm vm;
	uint8_t *m;

	if (!text || !is_rvmm())
		skip("no $NX_PERIOD_MS");
	m = with_huge(&vm);
	memset(m, 0xc3 /* RET */, 4096);
	write_page(&vm, 600);
	lazy_do(&vm, LAZY_WRITE, G_STACK - 8, 0);
	/* The first fetch maps all of the 2 MiB, for code and data, and no more than these. */
	CHECK_FAULTS(&vm, 1, lazy_do(&vm, LAZY_CALL, TEST_GPA, 0));
	CHECK_FAULTS(&vm, 0, lazy_do(&vm, LAZY_CALL, TEST_GPA + 2, 0); write_page(&vm, 5); write_page(&vm, 600));
	/* The clock of the rounds starts with the first area. Whatever is joined, one access brings it back. */
	usleep(atoi(text) * 1000 + 1000);
	lazy_do(&vm, LAZY_WRITE, G_DATA, 0);
	CHECK_FAULTS(&vm, 1, write_page(&vm, 5));
	CHECK_FAULTS(&vm, 0, write_page(&vm, 6); write_page(&vm, 511));
	CHECK_FAULTS(&vm, 1, lazy_do(&vm, LAZY_CALL, TEST_GPA, 0));
	CHECK_EQ(*(uint64_t *)(m + 5 * 4096 + 8), 6);
}
