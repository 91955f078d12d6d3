// SPDX-License-Identifier: GPL-2.0
/* KVM_GET_STATS_FD: the binary format and that the counts count (api.rst 4.133). */
#define _GNU_SOURCE
#include "vm.h"
#include <sched.h>

GUEST64(work,
	"mov $5, %r8d; 1: xor %eax, %eax; cpuid; dec %r8d; jnz 1b\n"
	"out %al, $0x10; mov $0x12345678, %ecx; hlt\n");

struct stats {
	int fd;
	struct kvm_stats_header header;
	uint8_t *descriptors;
	size_t descriptor_bytes;
};

static void open_stats(struct stats *s, int fd)
{
	struct kvm_stats_header *h = &s->header;
	char id[256];

	s->fd = OK(ioctl(fd, KVM_GET_STATS_FD, NULL));
	REQUIRE(pread(s->fd, h, sizeof(*h), 0) == sizeof(*h));
	CHECK(h->name_size > 0 && h->name_size <= 256);
	CHECK(h->num_desc > 0 && h->num_desc < 1000);
	CHECK(h->id_offset >= sizeof(*h));
	CHECK(h->desc_offset >= h->id_offset + h->name_size);
	s->descriptor_bytes = sizeof(struct kvm_stats_desc) + h->name_size;
	CHECK(h->data_offset >= h->desc_offset + h->num_desc * s->descriptor_bytes);
	CHECK_EQ(h->flags, 0);
	memset(id, 'x', sizeof(id));
	REQUIRE(pread(s->fd, id, h->name_size, h->id_offset) == h->name_size);
	CHECK(memchr(id, 0, h->name_size) && id[0]);
	s->descriptors = calloc(h->num_desc, s->descriptor_bytes);
	REQUIRE(pread(s->fd, s->descriptors, h->num_desc * s->descriptor_bytes, h->desc_offset) ==
		(ssize_t)(h->num_desc * s->descriptor_bytes));
}

static struct kvm_stats_desc *descriptor(const struct stats *s, unsigned int i)
{
	return (struct kvm_stats_desc *)(s->descriptors + i * s->descriptor_bytes);
}

static const char *name_of(const struct stats *s, unsigned int i)
{
	return (const char *)(s->descriptors + i * s->descriptor_bytes + sizeof(struct kvm_stats_desc));
}

static void check_descriptors(const struct stats *s)
{
	uint64_t values[64], total = 0;

	for (unsigned int i = 0; i < s->header.num_desc; i++) {
		const struct kvm_stats_desc *d = descriptor(s, i);
		uint32_t type = d->flags & KVM_STATS_TYPE_MASK, unit = d->flags & KVM_STATS_UNIT_MASK;

		CHECK(strnlen(name_of(s, i), s->header.name_size) < s->header.name_size);
		CHECK(strlen(name_of(s, i)) > 1);
		CHECK(type <= KVM_STATS_TYPE_MAX);
		CHECK(unit <= KVM_STATS_UNIT_MAX);
		CHECK(d->size >= 1 && d->size <= 64);
		if (type != KVM_STATS_TYPE_LINEAR_HIST && type != KVM_STATS_TYPE_LOG_HIST)
			CHECK_EQ(d->size, 1);
		CHECK_EQ(d->offset % 8, 0);
		for (unsigned int j = 0; j < i; j++)
			if (!strcmp(name_of(s, i), name_of(s, j)))
				FAIL("%s is there twice", name_of(s, i));
		if (pread(s->fd, values, d->size * 8, s->header.data_offset + d->offset) != d->size * 8)
			FAIL("%s cannot be read", name_of(s, i));
		if (d->offset + d->size * 8 > total)
			total = d->offset + d->size * 8;
	}
	/* Reading beyond the end gives nothing; in one piece it is all there; by and by it is the same. */
	size_t all = s->header.data_offset + total, n = 0;
	uint8_t *whole = malloc(all + 100), *piece = malloc(all + 100);
	ssize_t got;

	CHECK_EQ(pread(s->fd, whole, all + 100, 0), all);
	CHECK_EQ(pread(s->fd, piece, 8, all), 0);
	CHECK_EQ(pread(s->fd, piece, 8, all + 4096), 0);
	while ((got = read(s->fd, piece + n, 37)) > 0)
		n += got;
	CHECK_EQ(n, all);
	CHECK(!memcmp(whole, piece, s->header.data_offset));
	free(whole);
	free(piece);
}

static uint64_t value(const struct stats *s, const char *name)
{
	uint64_t v = 0;

	for (unsigned int i = 0; i < s->header.num_desc; i++)
		if (!strcmp(name_of(s, i), name)) {
			REQUIRE(pread(s->fd, &v, 8, s->header.data_offset + descriptor(s, i)->offset) == 8);
			return v;
		}
	DIE("there is no %s", name);
}

static uint64_t histogram_sum(const struct stats *s, const char *name)
{
	uint64_t values[64], sum = 0;

	for (unsigned int i = 0; i < s->header.num_desc; i++)
		if (!strcmp(name_of(s, i), name)) {
			unsigned int n = descriptor(s, i)->size;

			REQUIRE(pread(s->fd, values, n * 8, s->header.data_offset + descriptor(s, i)->offset) == n * 8);
			while (n--)
				sum += values[n];
			return sum;
		}
	DIE("there is no %s", name);
}

TEST(format)
{
	struct stats vm_stats, vcpu_stats;
	struct vm vm;

	VM_NEW_LONG(&vm, work);
	if (!has_extension(vm.kvm, KVM_CAP_BINARY_STATS_FD))
		skip("no statistics");
	open_stats(&vm_stats, vm.fd);
	open_stats(&vcpu_stats, vm.vcpu);
	check_descriptors(&vm_stats);
	check_descriptors(&vcpu_stats);
	CHECK(write(vm_stats.fd, "x", 1) < 0);
	/* Two files on the same vCPU. */
	struct stats again;

	open_stats(&again, vm.vcpu);
	CHECK_EQ(again.header.num_desc, vcpu_stats.header.num_desc);
}

TEST(counts)
{
	struct stats s;
	struct vm vm;

	VM_NEW_LONG(&vm, work);
	open_stats(&s, vm.vcpu);
	if (!is_rvmm()) {
		uint64_t before = value(&s, "exits");

		vm_expect_out(&vm, 0x10);
		CHECK(value(&s, "exits") >= before + 6);
		return;
	}
	CHECK_EQ(value(&s, "exit_cpuid"), 0);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(value(&s, "exit_cpuid"), 5);
	CHECK_EQ(histogram_sum(&s, "exit_cpuid_cycles"), 5);
	CHECK_EQ(value(&s, "exit_io"), 1);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(value(&s, "exit_hlt"), 1);
	CHECK(value(&s, "exit_nested_fault") >= 1);
	CHECK_EQ(value(&s, "exit_wrmsr"), 0);
}

/* Plain moves, which the stay's loop knows, and an instruction that is emulated and accesses the device twice. */
GUEST64(touches,
	"mov $0xd0000000, %edi; out %al, $0x10\n"
	"mov %eax, (%rdi); mov (%rdi), %eax; addl $1, (%rdi); out %al, $0x11\n");

/* An access to device memory is an exit of its own class, and takes time. */
TEST(device_accesses)
{
	uint64_t faults, exits;
	struct stats s;
	struct vm vm;

	VM_NEW_LONG(&vm, touches);
	vm_expect_out(&vm, 0x10);
	open_stats(&s, vm.vcpu);
	faults = is_rvmm() ? value(&s, "exit_nested_fault") : 0;
	exits = value(&s, "mmio_exits");
	for (unsigned int i = 0; i < 4; i++)
		vm_expect(&vm, KVM_EXIT_MMIO);
	vm_expect_out(&vm, 0x11);
	if (!is_rvmm()) {
		CHECK_EQ(value(&s, "mmio_exits") - exits, 4);
		return;
	}
	CHECK_EQ(value(&s, "mmio_exits") - exits, 3);
	CHECK_EQ(value(&s, "exit_mmio"), 3);
	CHECK_EQ(value(&s, "exit_nested_fault"), faults);
	CHECK_EQ(histogram_sum(&s, "exit_mmio_cycles"), 3);
	CHECK_EQ(value(&s, "exit_mmio_cycles"), 0);
}

/* What /proc/PID/fd calls a file. */
static void check_name(int fd, const char *name)
{
	char path[64], is[128] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	REQUIRE(readlink(path, is, sizeof(is) - 1) > 0);
	if (strcmp(is, name))
		FAIL("%s and not %s", is, name);
}

/* Programs find a VM's files by their names: `rvmm stat`, tools that attach to vCPUs. */
TEST(names_of_files)
{
	struct vm vm;

	vm_new(&vm, MIB);
	int vcpu = OK(ioctl(vm.fd, KVM_CREATE_VCPU, 7));

	check_name(vm.fd, "anon_inode:kvm-vm");
	check_name(vm.vcpu, "anon_inode:kvm-vcpu:0");
	check_name(vcpu, "anon_inode:kvm-vcpu:7");
	check_name(OK(ioctl(vm.fd, KVM_GET_STATS_FD, NULL)), "anon_inode:kvm-vm-stats");
	check_name(OK(ioctl(vm.vcpu, KVM_GET_STATS_FD, NULL)), "anon_inode:kvm-vcpu-stats:0");
	check_name(OK(ioctl(vcpu, KVM_GET_STATS_FD, NULL)), "anon_inode:kvm-vcpu-stats:7");
}

/* Every second page of 128. */
GUEST64(stripes,
	"mov $0x8000000, %edi; mov $64, %ecx\n"
	"1: movl $1, (%rdi); add $0x2000, %rdi; dec %ecx; jnz 1b; out %al, $0x10\n");

/* Reading a log protects what is in it; however it is strewn, vCPUs are made to forget once. */
TEST(one_flush_for_a_log)
{
	static _Alignas(4096) uint8_t pages[128 * 4096];
	uint64_t bitmap[2], before;
	struct kvm_dirty_log log = { .slot = 5, .dirty_bitmap = bitmap };
	struct stats s;
	struct vm vm;

	VM_NEW_LONG(&vm, stripes);
	vm_slot(&vm, 5, KVM_MEM_LOG_DIRTY_PAGES, 0x8000000, sizeof(pages), pages);
	vm_expect_out(&vm, 0x10);
	open_stats(&s, vm.fd);
	before = value(&s, "remote_tlb_flush");
	OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
	CHECK_EQ(bitmap[0], 0x5555555555555555);
	CHECK_EQ(bitmap[1], 0x5555555555555555);
	CHECK(value(&s, "remote_tlb_flush") <= before + 1);
}

/* The host takes a page back that is in 64 slots: vCPUs are made to forget once. One that is in no slot: not at all. */
TEST(one_flush_for_a_page)
{
	struct stats s;
	uint64_t before;
	struct vm vm;

	VM_NEW_LONG(&vm, stripes);
	uint8_t *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(page != MAP_FAILED);
	page[4096] = 1;
	for (unsigned int i = 0; i < 64; i++)
		vm_slot(&vm, 5 + i, 0, 0x8000000 + i * 0x2000, 4096, page);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(page[0], 1);
	open_stats(&s, vm.fd);
	before = value(&s, "remote_tlb_flush");
	OK(madvise(page + 4096, 4096, MADV_DONTNEED));
	CHECK_EQ(value(&s, "remote_tlb_flush"), before);
	OK(madvise(page, 4096, MADV_DONTNEED));
	CHECK(value(&s, "remote_tlb_flush") <= before + 1);
	if (is_rvmm()) {
		CHECK_EQ(value(&s, "remote_tlb_flush"), before + 1);
		CHECK(value(&s, "mmu_invalidations") >= 2);
		/* The vCPU is not in KVM_RUN. */
		CHECK_EQ(value(&s, "mmu_fault_waits"), 0);
		CHECK_EQ(value(&s, "mmu_fault_retries"), 0);
	}
}

/* How many leaves the nested page tables have. */
TEST(pages)
{
	const size_t bytes = 128 * 4096;
	uint8_t *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t before, after, split;
	struct stats s;
	struct vm vm;

	REQUIRE(m != MAP_FAILED);
	OK(madvise(m, bytes, MADV_NOHUGEPAGE));
	VM_NEW_LONG(&vm, stripes);
	vm_slot(&vm, 5, 0, 0x8000000, bytes, m);
	open_stats(&s, vm.fd);
	before = value(&s, "pages_4k");
	CHECK_EQ(value(&s, "pages_1g"), 0);
	vm_expect_out(&vm, 0x10);
	after = value(&s, "pages_4k");
	/* The guest's code and its tables as well, if they are in small pages, or the host has code in no huge ones. */
	split = value(&s, "nx_lpage_splits");
	CHECK(split <= 1);
	CHECK(after >= before + 64 && after < before + 64 + 32 + 512 * split);
	OK(madvise(m, bytes / 2, MADV_DONTNEED));
	CHECK_EQ(value(&s, "pages_4k"), after - 32);
	CHECK_EQ(value(&s, "nx_lpage_splits"), split);
}

/*
 * What a virtualised local APIC does without an exit: EOI, self-IPI with its delivery, TPR and CR8, reads. In
 * rounds, between two exits; first by MSRs, then by memory.
 */
#define SET "xor %edx, %edx; wrmsr\n"
GUEST64(quiet_x2apic,
	"mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr\n"
	"mov $0x80f, %ecx; mov $0x1ff, %eax; " SET "out %al, $0x10\n"
	"mov $20, %r8d\n"
	"1: mov $0x808, %ecx; mov $0x20, %eax; " SET "rdmsr\n"
	"mov %cr8, %rax; xor %eax, %eax; mov %rax, %cr8\n"
	"sti; mov $0x83f, %ecx; mov $0x77, %eax; " SET "nop; cli\n"
	"mov $0x80f, %ecx; rdmsr; mov $0x80b, %ecx; xor %eax, %eax; " SET
	"dec %r8d; jnz 1b; out %al, $0x11\n");
GUEST64(quiet_xapic,
	"mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx); out %al, $0x10\n"
	"mov $20, %r8d\n"
	"1: movl $0x20, 0x80(%rbx); mov 0x80(%rbx), %eax\n"
	"mov %cr8, %rax; xor %eax, %eax; mov %rax, %cr8\n"
	"sti; movl $0x44077, 0x300(%rbx); nop; cli\n"
	"mov 0xf0(%rbx), %eax; mov 0x20(%rbx), %eax; movl $0, 0xb0(%rbx)\n"
	"dec %r8d; jnz 1b; out %al, $0x11\n");

static void check_quiet(const unsigned char *code, const unsigned char *end)
{
	uint64_t before;
	struct stats s;
	struct vm vm;

	vm_new_irqchip(&vm, 4 * MIB);
	vm_long(&vm, code, end);
	vm_expect_out(&vm, 0x10);
	if (!is_rvmm())
		skip("KVM's statistics do not tell");
	open_stats(&s, vm.vcpu);
	if (!value(&s, "apicv"))
		skip("local APICs are not virtualised");
	before = value(&s, "exits") - value(&s, "exit_external_interrupt") - value(&s, "exit_nested_fault");
	vm_expect_out(&vm, 0x11);
	CHECK_EQ(value(&s, "exits") - value(&s, "exit_external_interrupt") - value(&s, "exit_nested_fault"),
		 before + 1);
	CHECK_EQ(vm_log(&vm)->count, 20);
	CHECK_EQ(vm_log(&vm)->event[19].vector, 0x77);
	CHECK_EQ(value(&s, "irq_injections"), 0);
}

TEST(apicv_x2apic)
{
	check_quiet(quiet_x2apic, quiet_x2apic_end);
}

TEST(apicv_xapic)
{
	check_quiet(quiet_xapic, quiet_xapic_end);
}

/* A guest that writes SPEC_CTRL again and again reaches it without exits; its value is known outside all the same. */
GUEST64(spec_ctrl,
	"mov $0x48, %ecx; mov $20, %r8d\n"
	"1: mov $1, %eax; " SET "xor %eax, %eax; " SET "dec %r8d; jnz 1b\n"
	"inc %eax; " SET "xor %eax, %eax; rdmsr; out %al, $0x10\n"
	"rdmsr; out %al, $0x11\n"
	"mov $20, %r8d\n"
	"2: mov $1, %eax; " SET "rdmsr; dec %eax; " SET "dec %r8d; jnz 2b\n"
	"inc %eax; " SET "out %al, $0x12\n");

TEST(spec_ctrl_without_exits)
{
	struct kvm_cpuid_entry2 *e;
	uint64_t before, v;
	struct stats s;
	struct vm vm;

	VM_NEW_LONG(&vm, spec_ctrl);
	e = cpuid_entry(supported_cpuid(vm.kvm), 7, 0);
	if (!e || !(e->edx & 1 << 26)) {
		e = cpuid_entry(supported_cpuid(vm.kvm), 0x80000008, 0);
		if (!e || !(e->ebx & 1 << 14))
			skip("no IA32_SPEC_CTRL");
	}
	open_stats(&s, vm.vcpu);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(*(uint8_t *)io_data(&vm), 1);
	CHECK(get_msr(&vm, 0x48, &v) && v == 1);
	CHECK(set_msr(&vm, 0x48, 0));
	vm_expect_out(&vm, 0x11);
	CHECK_EQ(*(uint8_t *)io_data(&vm), 0);
	before = value(&s, "exits");
	vm_expect_out(&vm, 0x12);
	CHECK(value(&s, "exits") < before + 20);
	CHECK(get_msr(&vm, 0x48, &v) && v == 1);
}

/* 50 halts of a millisecond each, which the local APIC's timer ends. */
GUEST64(naps,
	"mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx); movl $0xb, 0x3e0(%rbx); movl $0x77, 0x320(%rbx)\n"
	"2: mov $50, %r8d\n"
	"1: movl $1000000, 0x380(%rbx); sti; hlt; cli; movl $0, 0xb0(%rbx); dec %r8d; jnz 1b\n"
	"out %al, $0x10; jmp 2b\n");

static void limit_polls(struct vm *vm, uint32_t ns)
{
	OK(enable_cap(vm->fd, KVM_CAP_HALT_POLL, ns));
}

/*
 * A vCPU polls in HLT, the longer the more that has paid, until its guest or its VM does not want it
 * (halt-polling.rst). With a limit of 4 seconds every nap is short, however slow the host is.
 */
TEST(halt_polling)
{
	const uint32_t poll_control = 0x4b564d05;
	uint64_t polls, successes, sleeps;
	struct stats s;
	struct vm vm;

	vm_new_irqchip(&vm, 4 * MIB);
	vm_long(&vm, naps, naps_end);
	limit_polls(&vm, UINT32_MAX);
	open_stats(&s, vm.vcpu);
	vm_expect_out(&vm, 0x10);
	polls = value(&s, "halt_attempted_poll");
	successes = value(&s, "halt_successful_poll");
	/* At first there is none, and then some are too short. */
	CHECK(polls > 10 && polls < 50);
	CHECK(successes > 5 && successes < polls);
	CHECK(value(&s, "halt_poll_invalid") <= successes);
	CHECK_EQ(histogram_sum(&s, "halt_poll_success_hist"), successes);
	CHECK_EQ(histogram_sum(&s, "halt_poll_fail_hist"), polls - successes);
	CHECK(value(&s, "halt_poll_success_ns") > 0);
	CHECK(value(&s, "halt_poll_fail_ns") > 0);
	CHECK(value(&s, "halt_wait_ns") > 0);
	CHECK_EQ(value(&s, "blocking"), 0);
	/* The guest would rather poll itself. */
	CHECK(set_msr(&vm, poll_control, 0));
	sleeps = histogram_sum(&s, "halt_wait_hist");
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(value(&s, "halt_attempted_poll"), polls);
	CHECK(histogram_sum(&s, "halt_wait_hist") > sleeps + 10);
	CHECK(set_msr(&vm, poll_control, 1));
	vm_expect_out(&vm, 0x10);
	CHECK(value(&s, "halt_attempted_poll") > polls + 10);
	/* The VM must not. */
	polls = value(&s, "halt_attempted_poll");
	limit_polls(&vm, 0);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(value(&s, "halt_attempted_poll"), polls);
}

/*
 * What exits nowhere or hardly ever. CR8 is the virtual APIC's TPR; RDMSR of the TSC is that of RDTSC (on Intel); the
 * longer a loop of PAUSE lasts, while nobody waits for its CPU, the fewer exits it makes.
 */
GUEST64(calm,
	"mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx); out %al, $0x10\n"
	"mov $50, %r8d; 1: lea (%r8), %eax; and $15, %eax; mov %rax, %cr8; mov %cr8, %rcx\n"
	"cmp %rax, %rcx; jne 9f; dec %r8d; jnz 1b; out %al, $0x11\n"
	"mov $50, %r8d; 2: rdtsc; shl $32, %rdx; or %rax, %rdx; mov %rdx, %rsi\n"
	"mov $0x10, %ecx; rdmsr; shl $32, %rdx; or %rax, %rdx; mov %rdx, %rdi\n"
	"rdtsc; shl $32, %rdx; or %rax, %rdx\n"
	"cmp %rsi, %rdi; jb 9f; cmp %rdi, %rdx; jb 9f; dec %r8d; jnz 2b; out %al, $0x12\n"
	"mov $4000000, %ecx; 3: pause; dec %ecx; jnz 3b; out %al, $0x13\n"
	"9: hlt\n");

TEST(calm)
{
	uint64_t before;
	struct stats s;
	struct vm vm;

	vm_new_irqchip(&vm, 4 * MIB);
	vm_long(&vm, calm, calm_end);
	if (!is_rvmm())
		skip("KVM's statistics do not tell");
	open_stats(&s, vm.vcpu);
	vm_expect_out(&vm, 0x10);
	before = value(&s, "exit_cr_access");
	vm_expect_out(&vm, 0x11);
	CHECK_EQ(value(&s, "exit_cr_access"), before);
	before = value(&s, "exit_rdmsr");
	vm_expect_out(&vm, 0x12);
	CHECK_EQ(value(&s, "exit_rdmsr") - before, is_amd() ? 50 : 0);
	vm_expect_out(&vm, 0x13);
	/* A loop of one length would exit some thousand times. */
	CHECK(value(&s, "exit_pause") < 500);
	printf("# %llu exits by PAUSE\n", (unsigned long long)value(&s, "exit_pause"));
}

/*
 * The registers of an x2APIC are no MSRs for who is not in x2APIC mode (SDM 3A 11.12.1). Where the processor gave them
 * to the guest before, it does not any more: each access exits, and is #GP.
 */
GUEST64(x2apic_on_and_off,
	"mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr\n"
	"mov $0x80f, %ecx; mov $0x1ff, %eax; " SET "mov $0x808, %ecx; rdmsr; out %al, $0x10\n"
	/* Off altogether: the way from x2APIC to xAPIC mode. */
	"mov $0x1b, %ecx; rdmsr; and $~0xc00, %eax; wrmsr; out %al, $0x11\n"
	"mov $" STR(G_LOG) ", %ebx\n"
	"lea 1f(%rip), %rax; mov %rax, 8(%rbx); mov $0x808, %ecx; rdmsr; 1:\n"
	"lea 2f(%rip), %rax; mov %rax, 8(%rbx); mov $0x80b, %ecx; xor %eax, %eax; " SET "2:\n"
	"lea 3f(%rip), %rax; mov %rax, 8(%rbx); mov $0x83f, %ecx; mov $0x77, %eax; " SET "3: out %al, $0x12\n"
	"mov $0x1b, %ecx; rdmsr; or $0x800, %eax; wrmsr; out %al, $0x13\n"
	"lea 4f(%rip), %rax; mov %rax, 8(%rbx); mov $0x808, %ecx; rdmsr; 4:\n"
	"lea 5f(%rip), %rax; mov %rax, 8(%rbx); mov $0x83f, %ecx; mov $0x77, %eax; " SET "5: out %al, $0x14\n");

TEST(x2apic_off)
{
	uint64_t reads = 0, writes = 0;
	struct stats s;
	struct vm vm;

	vm_new_irqchip(&vm, 4 * MIB);
	vm_long(&vm, x2apic_on_and_off, x2apic_on_and_off_end);
	open_stats(&s, vm.vcpu);
	vm_expect_out(&vm, 0x10);
	for (unsigned int round = 0; round < 2; round++) {
		vm_expect_out(&vm, 0x11 + 2 * round);
		if (is_rvmm()) {
			reads = value(&s, "exit_rdmsr");
			writes = value(&s, "exit_wrmsr");
		}
		vm_expect_out(&vm, 0x12 + 2 * round);
		CHECK_EQ(vm_log(&vm)->count, round ? 5 : 3);
		if (is_rvmm()) {
			CHECK_EQ(value(&s, "exit_rdmsr") - reads, 1);
			CHECK_EQ(value(&s, "exit_wrmsr") - writes, round ? 1 : 2);
		}
	}
	for (unsigned int i = 0; i < 5; i++)
		CHECK_EQ(vm_log(&vm)->event[i].vector, 13);
}

static void run_on(struct vm *vm, unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	REQUIRE(!sched_setaffinity(0, sizeof(set), &set));
	vm_expect_out(vm, 0x10);
}

GUEST64(again, "1: out %al, $0x10; jmp 1b\n");

/*
 * A CPU that turns to another vCPU does so with an IBPB; so does a vCPU that comes back to a CPU on which nobody else
 * has run, since the guest may have given barriers of its own elsewhere (XSA-479). One that stays does not. The bed has
 * been booted with setcpuid=ibpb and two CPUs.
 */
TEST_NAMED(branch_barriers)
{
	static const struct {
		unsigned int vcpu, cpu;
		bool barrier;
	} turns[] = {
		{ 0, 0, true }, { 0, 0, false }, { 0, 1, true }, { 0, 1, false }, { 0, 0, true },
		{ 1, 0, true }, { 0, 0, true }, { 1, 1, true }, { 0, 0, false },
	};
	struct vm vm[2];
	struct stats s[2];

	if (!is_rvmm())
		skip("KVM does not count them");
	for (unsigned int i = 0; i < 2; i++) {
		VM_NEW_LONG(&vm[i], again);
		open_stats(&s[i], vm[i].vcpu);
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(turns); i++) {
		const struct stats *of = &s[turns[i].vcpu];
		uint64_t before = value(of, "branch_barriers"), after;

		run_on(&vm[turns[i].vcpu], turns[i].cpu);
		after = value(of, "branch_barriers");
		if (after - before != turns[i].barrier)
			FAIL("turn %u: %llu barriers", i, (unsigned long long)(after - before));
	}
}

/* The statistics' file keeps what it needs alive. */
TEST(outlives)
{
	struct stats a, b;
	struct vm vm;

	VM_NEW_LONG(&vm, work);
	open_stats(&a, vm.vcpu);
	open_stats(&b, vm.fd);
	vm_expect_out(&vm, 0x10);
	vm_free(&vm);
	check_descriptors(&a);
	check_descriptors(&b);
	if (is_rvmm())
		CHECK_EQ(value(&a, "exit_cpuid"), 5);
}
