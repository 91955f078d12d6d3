// SPDX-License-Identifier: GPL-2.0
/* RVMM_FORK, RVMM_BECOME: VMs that begin as another one is. */
#define _GNU_SOURCE
#include "whole.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>
#include <x86intrin.h>

GUEST64(writer, "1: out %al, $0x10; xor %ebp, %ebp\n" WRITE_PAGES "mov %ebp, %eax; out %eax, $0x11; jmp 1b\n");
GUEST64(reader, "1: out %al, $0x10; xor %ebp, %ebp\n"
	"mov $" STR(G_PAGES) ", %edi; mov $" STR(PAGES) ", %ecx\n"
	"8: add (%rdi), %rbp; add $" STR(PAGE) ", %rdi; loop 8b\n"
	"mov %ebp, %eax; out %eax, $0x11; jmp 1b\n");
/* Adds without an end, and in between tells. */
GUEST64(adds, "1: lock incq " STR(G_PAGES) "; lock incq " STR(G_PAGES) " + 0x1008; out %al, $0x13; jmp 1b\n");
GUEST64(emulated,
	"1: mov $" STR(G_MMIO) ", %esi; mov $" STR(G_PAGES) ", %edi; movsq\n"
	"mov " STR(G_PAGES) ", %eax; out %eax, $0x11; jmp 1b\n");
GUEST64(halts, "sti; 1: hlt; jmp 1b\n");

static void need_fork(void)
{
	int kvm = device_open();

	if (!has_extension(kvm, RVMM_CAP_FORK))
		skip("no forks");
	close(kvm);
}

static int fork_vm(struct vm *vm)
{
	return OK(ioctl(vm->fd, RVMM_FORK, 0));
}

/* The memory of `vm` in one of its forks. */
static uint8_t *map_fork(int fd, const struct vm *vm)
{
	void *memory = mmap(NULL, vm->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, (off_t)vm->mem);

	REQUIRE(memory != MAP_FAILED);
	return memory;
}

/* `vm` has its memory from a fork of `parent` from now on. */
static void take_memory(struct vm *vm, int fd, const struct vm *parent)
{
	vm_slot(vm, 0, 0, 0, 0, vm->mem);
	munmap(vm->mem, vm->bytes);
	vm->mem = map_fork(fd, parent);
	vm->bytes = parent->bytes;
	vm_slot(vm, 0, 0, 0, vm->bytes, vm->mem);
}

/* A VM with a vCPU and no controllers that is as `parent` was. */
static struct vm child_of(const struct vm *parent, int fd)
{
	struct vm child;

	vm_init(&child, MEMORY);
	take_memory(&child, fd, parent);
	vm_add_vcpu(&child, 0);
	OK(ioctl(child.fd, RVMM_BECOME, fd));
	return child;
}

static uint64_t *page(uint8_t *memory, int n)
{
	return (uint64_t *)(memory + G_PAGES + n * PAGE);
}

static void fill(struct vm *vm)
{
	for (int i = 0; i < PAGES; i++)
		*page(vm->mem, i) = i * 3 + 1;
}

#define SUM (PAGES * (PAGES - 1) / 2 * 3 + PAGES)

static void machine(struct vm *vm)
{
	struct kvm_pit_config pit = { 0 };

	vm_init_irqchip(vm, MEMORY);
	OK(ioctl(vm->fd, KVM_CREATE_PIT2, &pit));
}

/*
 * All of a machine is there in the child, which goes on as its parent did; more than once, from a fork before the guest
 * has done anything and from one with timers armed, an interrupt that waits and paravirtual pages in use.
 */
TEST_SECONDS(everything, 120)
{
	static struct blob point, busy, now;
	struct vm vm, child;
	uint64_t tsc, tsc_then, clock, host;
	uint32_t first;
	int fd, fd_busy;

	need_fork();
	machine(&vm);
	vm_add_vcpu(&vm, 0);
	VM_LONG(&vm, everything);
	vm_enable_lapic(&vm);
	vm_log(&vm)->eoi = LAPIC_EOI;
	for (int i = 0; i < PAGES; i++)
		memset(page(vm.mem, i), i + 1, PAGE);
	vm_expect_out(&vm, 0x10);
	machine(&child);
	vm_add_vcpu(&child, 0);
	read_blob(&vm, &point, true);
	REQUIRE(get_msr(&vm, 0x10, &tsc_then));
	clock = vm_clock(&vm);
	host = __rdtsc();
	fd = fork_vm(&vm);
	read_blob(&vm, &now, true);
	compare(&point, &now, -1);
	first = vm_expect_out(&vm, 0x11);
	read_blob(&vm, &busy, true);
	fd_busy = fork_vm(&vm);
	CHECK(memcmp(&busy.lapic, &point.lapic, sizeof(busy.lapic)));
	CHECK(memcmp(&busy.pit, &point.pit, sizeof(busy.pit)));
	vm_expect_out(&vm, 0x12);
	CHECK_EQ(vm_log(&vm)->count, 1);
	take_memory(&child, fd, &vm);
	for (int round = 0; round < 3; round++) {
		OK(ioctl(child.fd, RVMM_BECOME, fd));
		REQUIRE(get_msr(&child, 0x10, &tsc));
		/* No time has passed. */
		CHECK(tsc >= tsc_then && (!round || tsc - tsc_then < (__rdtsc() - host) / 2));
		CHECK(vm_clock(&child) >= clock);
		read_blob(&child, &now, true);
		compare(&point, &now, round);
		CHECK_EQ(vm_expect_out(&child, 0x11), first);
		vm_expect_out(&child, 0x12);
		CHECK_EQ(vm_log(&child)->count, 1);
		/* Copies of its own go: the memory of the fork is there again. */
		OK(madvise(child.mem, child.bytes, MADV_DONTNEED));
	}
	take_memory(&child, fd_busy, &vm);
	OK(ioctl(child.fd, RVMM_BECOME, fd_busy));
	read_blob(&child, &now, true);
	compare(&busy, &now, 3);
	vm_expect_out(&child, 0x12);
	CHECK_EQ(vm_log(&child)->count, 1);
	CHECK_EQ(vm_log(&vm)->count, 1);
}

/* An exit in flight is in flight in both, and has another end in each. */
TEST(in_flight)
{
	struct vm vm, child;
	uint64_t value = 0x1111, other = 0x2222;
	int fd;

	need_fork();
	VM_NEW_LONG(&vm, emulated);
	vm_expect(&vm, KVM_EXIT_MMIO);
	fd = fork_vm(&vm);
	child = child_of(&vm, fd);
	CHECK_EQ(child.run->exit_reason, KVM_EXIT_MMIO);
	CHECK_EQ(child.run->mmio.phys_addr, G_MMIO);
	memcpy(vm.run->mmio.data, &value, 8);
	memcpy(child.run->mmio.data, &other, 8);
	CHECK_EQ(vm_expect_out(&vm, 0x11), value);
	CHECK_EQ(vm_expect_out(&child, 0x11), other);
	CHECK_EQ(*page(vm.mem, 0), value);
	CHECK_EQ(*page(child.mem, 0), other);
}

/* Neither sees what the other writes, in whichever order; nor does a child of another fork, or of the same. */
TEST(apart)
{
	struct vm vm, child, second, later;
	int fd, fd2;

	need_fork();
	VM_NEW_LONG(&vm, writer);
	fill(&vm);
	vm_expect_out(&vm, 0x10);
	fd = fork_vm(&vm);
	child = child_of(&vm, fd);
	/* The child reads and writes first, what the parent has not written. */
	CHECK_EQ(vm_expect_out(&child, 0x11), SUM);
	CHECK_EQ(*page(vm.mem, 7), 22);
	CHECK_EQ(*page(child.mem, 7), 23);
	vm_expect_out(&child, 0x10);
	CHECK_EQ(vm_expect_out(&vm, 0x11), SUM);
	CHECK_EQ(vm_expect_out(&child, 0x11), SUM + PAGES);
	/* The parent has written everything before this one looks. */
	second = child_of(&vm, fd);
	fd2 = fork_vm(&vm);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_expect_out(&vm, 0x11), SUM + PAGES);
	CHECK_EQ(vm_expect_out(&second, 0x11), SUM);
	later = child_of(&vm, fd2);
	vm_expect_out(&later, 0x10);
	CHECK_EQ(vm_expect_out(&later, 0x11), SUM + PAGES);
	CHECK_EQ(*page(vm.mem, 7), 24);
	CHECK_EQ(*page(child.mem, 7), 24);
	CHECK_EQ(*page(second.mem, 7), 23);
	CHECK_EQ(*page(later.mem, 7), 24);
	/* What user space writes to a child is the child's, too. */
	*page(second.mem, 7) = 1000;
	vm_expect_out(&second, 0x10);
	CHECK_EQ(vm_expect_out(&second, 0x11), SUM + PAGES + 1000 - 23);
	CHECK_EQ(*page(vm.mem, 7), 24);
	/* And what it says it is going to write to the parent is not in the fork. */
	OK(close(fd));
	fd = fork_vm(&vm);
	OK(ioctl(vm.fd, RVMM_TOUCH, &(struct rvmm_touch){ .gpa = G_PAGES, .size = PAGE }));
	*page(vm.mem, 0) = 5;
	CHECK_EQ(*page(map_fork(fd, &vm), 0), 3);
}

/* Pages that are only read are shared by the guests that have them from one fork. */
TEST(read_only)
{
	struct vm vm, child;
	int fd;

	need_fork();
	VM_NEW_LONG(&vm, reader);
	fill(&vm);
	vm_expect_out(&vm, 0x10);
	fd = fork_vm(&vm);
	for (int i = 0; i < 3; i++) {
		child = child_of(&vm, fd);
		CHECK_EQ(vm_expect_out(&child, 0x11), SUM);
		vm_free(&child);
	}
	CHECK_EQ(vm_expect_out(&vm, 0x11), SUM);
}

/* One user page behind two slots, in the parent and in the child. */
TEST(two_slots)
{
	const uint64_t gpa = G_PAGES + 4 * PAGE;
	struct vm vm, child;
	uint8_t *memory;
	int fd;

	need_fork();
	vm_init(&vm, MEMORY);
	vm_slot(&vm, 0, 0, 0, 0, vm.mem);
	vm_slot(&vm, 0, 0, 0, gpa, vm.mem);
	vm_slot(&vm, 1, 0, gpa, PAGE, page(vm.mem, 0));
	vm_slot(&vm, 2, 0, gpa + PAGE, MEMORY - gpa - PAGE, vm.mem + gpa + PAGE);
	vm_add_vcpu(&vm, 0);
	VM_LONG(&vm, writer);
	fill(&vm);
	vm_expect_out(&vm, 0x10);
	fd = fork_vm(&vm);
	CHECK_EQ(vm_expect_out(&vm, 0x11), SUM - 13 + 2);
	CHECK_EQ(*page(vm.mem, 0), 3);
	child = child_of(&vm, fd);
	memory = child.mem;
	vm_slot(&child, 0, 0, 0, 0, memory);
	vm_slot(&child, 0, 0, 0, gpa, memory);
	vm_slot(&child, 1, 0, gpa, PAGE, page(memory, 0));
	vm_slot(&child, 2, 0, gpa + PAGE, MEMORY - gpa - PAGE, memory + gpa + PAGE);
	CHECK_EQ(vm_expect_out(&child, 0x11), SUM - 13 + 2);
	CHECK_EQ(*page(memory, 0), 3);
	CHECK_EQ(*page(vm.mem, 0), 3);
}

static void *add_up(void *argument)
{
	struct vm *vm = argument;

	for (int i = 0; i < 50; i++)
		vm_expect_out(vm, 0x13);
	return NULL;
}

/* Two vCPUs of the parent meet the same pages, while the memory of forks is read. */
TEST_SECONDS(two_vcpus, 120)
{
	struct vm vm, second;
	uint8_t *before = NULL;

	need_fork();
	VM_NEW_LONG(&vm, adds);
	second = vm_second_vcpu(&vm, 1);
	vm_long_state(&second);
	for (uint64_t round = 0; round < 8; round++) {
		pthread_t threads[2];
		uint8_t *memory;
		int fd = fork_vm(&vm);

		memory = map_fork(fd, &vm);
		OK(close(fd));
		REQUIRE(!pthread_create(&threads[0], NULL, add_up, &vm));
		REQUIRE(!pthread_create(&threads[1], NULL, add_up, &second));
		if (round & 1)
			CHECK_EQ(*page(memory, 0), 100 * round);
		pthread_join(threads[0], NULL);
		pthread_join(threads[1], NULL);
		CHECK_EQ(*page(memory, 0), 100 * round);
		CHECK_EQ(page(memory, 1)[1], 100 * round);
		CHECK_EQ(*page(vm.mem, 0), 100 * round + 100);
		if (before) {
			CHECK_EQ(*page(before, 0), 100 * round - 100);
			munmap(before, vm.bytes);
		}
		before = memory;
	}
}

/* Huge pages of the parent: written in parts while there is a fork, and as before after it. */
TEST(huge)
{
	struct vm vm;

	need_fork();
	VM_NEW_LONG(&vm, adds);
	make_huge(&vm);
	for (int round = 0; round < 4; round++) {
		uint64_t sum, before = *page(vm.mem, 0);
		struct vm as_it_was = vm;
		int fd;

		sum = checksum(&vm);
		fd = fork_vm(&vm);
		vm_expect_out(&vm, 0x13);
		vm_expect_out(&vm, 0x13);
		CHECK_EQ(*page(vm.mem, 0), before + 2);
		as_it_was.mem = map_fork(fd, &vm);
		CHECK_EQ(checksum(&as_it_was), sum);
		OK(munmap(as_it_was.mem, vm.bytes));
		OK(close(fd));
		vm_expect_out(&vm, 0x13);
		vm_expect_out(&vm, 0x13);
	}
}

/* Whoever goes first. */
TEST(closed)
{
	struct vm vm, child;
	uint8_t *memory;
	int fd;

	need_fork();
	/* The parent's VM, before the child has looked at anything; its memory has to stay. */
	VM_NEW_LONG(&vm, writer);
	fill(&vm);
	vm_expect_out(&vm, 0x10);
	fd = fork_vm(&vm);
	memory = vm.mem;
	munmap(vm.run, vm.run_bytes);
	close(vm.vcpu);
	close(vm.fd);
	child = child_of(&vm, fd);
	close(fd);
	CHECK_EQ(vm_expect_out(&child, 0x11), SUM);
	/* A page that nobody has seen, and is there no more. */
	OK(munmap(memory + 3 * MIB, MIB));
	vm_expect_out(&child, 0x10);
	CHECK_EQ(vm_expect_out(&child, 0x11), SUM + PAGES);
	vm_free(&child);

	/* The child. */
	VM_NEW_LONG(&vm, writer);
	fill(&vm);
	vm_expect_out(&vm, 0x10);
	fd = fork_vm(&vm);
	child = child_of(&vm, fd);
	CHECK_EQ(vm_expect_out(&child, 0x11), SUM);
	vm_free(&child);
	CHECK_EQ(vm_expect_out(&vm, 0x11), SUM);
	close(fd);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_expect_out(&vm, 0x11), SUM + PAGES);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_TOUCH, &(struct rvmm_touch){ .gpa = G_PAGES, .size = PAGE }), ENODATA);

	/* Slots of the parent come and go. */
	fd = fork_vm(&vm);
	vm_slot(&vm, 0, 0, 0, 0, vm.mem);
	vm_slot(&vm, 5, 0, 0, vm.bytes, vm.mem);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_expect_out(&vm, 0x11), SUM + 2 * PAGES);
	child = child_of(&vm, fd);
	vm_expect_out(&child, 0x10);
	CHECK_EQ(vm_expect_out(&child, 0x11), SUM + 2 * PAGES);
	CHECK_EQ(*page(child.mem, 0), 4);
}

static sigjmp_buf bus_error;

static void on_bus(int signal)
{
	siglongjmp(bus_error, 1);
}

static bool is_there(volatile uint8_t *at)
{
	struct sigaction action = { .sa_handler = on_bus };

	sigaction(SIGBUS, &action, NULL);
	if (sigsetjmp(bus_error, 1))
		return false;
	(void)*at;
	return true;
}

TEST(refused)
{
	struct rvmm_reset_point reset_point = { .pages = 10 };
	struct sigaction action = { .sa_handler = nothing };
	struct vm vm, child, other;
	uint8_t *memory;
	pthread_t thread;
	struct kvm_create_device vfio = { .type = KVM_DEV_TYPE_VFIO };
	struct kvm_userspace_memory_region smm = { .slot = 1 << 16, .memory_size = MEMORY };
	struct kvm_vcpu_events events = { 0 };
	int fd, many[16], status, vfio_fd;

	need_fork();
	VM_NEW_LONG_IRQCHIP(&vm, halts);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_FORK, 1), EINVAL);
	sigaction(SIGUSR1, &action, NULL);
	REQUIRE(!pthread_create(&thread, NULL, halted, &vm));
	usleep(100000);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_FORK, 0), EBUSY);
	stop_thread(thread);
	fd = fork_vm(&vm);

	/* Reset points, either way. */
	CHECK_ERRNO(ioctl(vm.fd, RVMM_RESET_POINT, &reset_point), EBUSY);
	OK(close(fd));
	OK(ioctl(vm.fd, RVMM_RESET_POINT, &reset_point));
	CHECK_ERRNO(ioctl(vm.fd, RVMM_FORK, 0), EBUSY);
	reset_point.pages = 0;
	OK(ioctl(vm.fd, RVMM_RESET_POINT, &reset_point));

	/* Devices, whose writes nobody sees. */
	fd = fork_vm(&vm);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_DEVICE, &vfio), EBUSY);
	OK(close(fd));
	vfio_fd = OK(ioctl(vm.fd, KVM_CREATE_DEVICE, &vfio)) ? -1 : (int)vfio.fd;
	CHECK_ERRNO(ioctl(vm.fd, RVMM_FORK, 0), EBUSY);
	OK(close(vfio_fd));

	/* Too many. */
	for (int i = 0; i < 16; i++)
		many[i] = fork_vm(&vm);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_FORK, 0), ENOSPC);
	for (int i = 0; i < 16; i++)
		OK(close(many[i]));
	fd = fork_vm(&vm);

	/* Other machines. */
	CHECK_ERRNO(ioctl(vm.fd, RVMM_BECOME, -1), EBADF);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_BECOME, vm.kvm), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_BECOME, vm.fd), EINVAL);
	vm_init(&child, MEMORY);
	CHECK_ERRNO(ioctl(child.fd, RVMM_BECOME, fd), EINVAL);
	vm_add_vcpu(&child, 0);
	CHECK_ERRNO(ioctl(child.fd, RVMM_BECOME, fd), EINVAL);
	vm_free(&child);
	vm_init_irqchip(&child, MEMORY);
	vm_add_vcpu(&child, 1);
	CHECK_ERRNO(ioctl(child.fd, RVMM_BECOME, fd), EINVAL);
	other = vm_second_vcpu(&child, 0);
	CHECK_ERRNO(ioctl(child.fd, RVMM_BECOME, fd), EINVAL);
	OK(close(other.vcpu));
	munmap(other.run, other.run_bytes);
	vm_free(&child);

	/* Mappings. */
	CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, (off_t)vm.mem) == MAP_FAILED && errno == EINVAL);
	memory = map_fork(fd, &vm);
	CHECK(is_there(memory));
	CHECK(!is_there(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0)));
	CHECK(!is_there(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, (off_t)(vm.mem + vm.bytes))));
	CHECK(!is_there(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 1ll << 50)));
	if (!fork_child()) {
		void *there = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, (off_t)vm.mem);

		if (there != MAP_FAILED || errno != EIO || !is_there(memory) || is_there(memory + PAGE))
			_exit(1);
		_exit(ioctl(vm.fd, RVMM_BECOME, fd) != -1 || errno != EIO);
	}
	OK(wait(&status));
	CHECK_EQ(status, 0);
	/* Memory of the parent that is not there, and a fork in place of its own origin. */
	OK(munmap(vm.mem + 3 * MIB, PAGE));
	CHECK(!is_there(memory + 3 * MIB));
	REQUIRE(mmap(vm.mem + 3 * MIB, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, (off_t)(vm.mem + 3 * MIB)) !=
		MAP_FAILED);
	CHECK(!is_there(memory + 3 * MIB));
	CHECK(!is_there(vm.mem + 3 * MIB));

	/* A fork of memory of a fork. */
	vm_init(&child, MEMORY);
	take_memory(&child, fd, &vm);
	CHECK_ERRNO(ioctl(child.fd, RVMM_FORK, 0), EINVAL);
	vm_free(&child);

	/* Memory for SMM, either way. */
	vm_init(&child, MEMORY);
	vm_add_vcpu(&child, 0);
	fd = fork_vm(&child);
	smm.userspace_addr = (uintptr_t)child.mem;
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = 1;
	CHECK_ERRNO(ioctl(child.fd, KVM_SET_USER_MEMORY_REGION, &smm), EBUSY);
	CHECK_ERRNO(ioctl(child.vcpu, KVM_SET_VCPU_EVENTS, &events), EBUSY);
	CHECK_ERRNO(enable_cap(child.fd, RVMM_CAP_MISSING, 1), EBUSY);
	OK(close(fd));
	OK(close(fork_vm(&child)));
	OK(ioctl(child.fd, KVM_SET_USER_MEMORY_REGION, &smm));
	CHECK_ERRNO(ioctl(child.fd, RVMM_FORK, 0), EINVAL);
	vm_free(&child);

	vm_init(&child, MEMORY);
	OK(enable_cap(child.fd, RVMM_CAP_MISSING, 1));
	CHECK_ERRNO(ioctl(child.fd, RVMM_FORK, 0), EINVAL);
}

/* A child may have a reset point, and its writes a log. */
TEST(child_resets)
{
	struct rvmm_reset_point reset_point = { .pages = 100 };
	static uint64_t bits[MEMORY / PAGE / 64];
	struct kvm_dirty_log log = { .dirty_bitmap = bits };
	struct rvmm_reset reset;
	struct vm vm, child;
	int fd;

	need_fork();
	VM_NEW_LONG(&vm, writer);
	fill(&vm);
	vm_expect_out(&vm, 0x10);
	fd = fork_vm(&vm);
	child = child_of(&vm, fd);
	vm_slot(&child, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, child.bytes, child.mem);
	OK(ioctl(child.fd, RVMM_RESET_POINT, &reset_point));
	for (int round = 0; round < 3; round++) {
		CHECK_EQ(vm_expect_out(&child, 0x11), SUM);
		OK(ioctl(child.fd, KVM_GET_DIRTY_LOG, &log));
		CHECK(bits[G_PAGES / PAGE / 64] & 1ull << G_PAGES / PAGE % 64);
		OK(ioctl(child.fd, RVMM_RESET, &reset));
		CHECK(reset.pages >= PAGES && reset.pages < PAGES + 6);
	}
	CHECK_EQ(vm_expect_out(&vm, 0x11), SUM);
}

/* Nothing is left behind. */
TEST_SECONDS(leaks, 120)
{
	const int rounds = is_bochs() ? 40 : 150;
	uint64_t before = 0, after;
	struct vm vm;

	need_fork();
	VM_NEW_LONG(&vm, writer);
	vm_expect_out(&vm, 0x10);
	for (int round = 0; round < rounds; round++) {
		int fd = fork_vm(&vm);

		vm_expect_out(&vm, 0x11);
		vm_expect_out(&vm, 0x10);
		if (round % 10 == 0) {
			struct vm child = child_of(&vm, fd);

			vm_expect_out(&child, 0x11);
			vm_free(&child);
		}
		OK(close(fd));
		if (round == 9)
			before = meminfo("MemFree");
	}
	after = meminfo("MemFree");
	/* 4 KiB for each page written would be more than twice that. */
	if (after + rounds * PAGES * 2 < before)
		FAIL("%llu KiB were free, %llu are", (unsigned long long)before, (unsigned long long)after);
}

/* What a fork costs, in ticks of the TSC: instructions where the bed counts them. For tools/bench. */
TEST_NAMED(cost)
{
	static const uint64_t sizes[] = { 1ull << 30, 8ull << 30 };

	need_fork();
	for (int huge = 0; huge < 2; huge++) {
		for (int i = 0; i < 2; i++) {
			uint64_t mapped = i ? 64 * MIB : sizes[i], best = ~0ull, start, first = 0;
			struct kvm_pre_fault_memory all = { .gpa = 0, .size = mapped };
			struct vm vm;
			uint8_t *area;

			vm_new_irqchip(&vm, 4 * MIB);
			VM_LONG(&vm, writer);
			vm_expect_out(&vm, 0x10);
			area = mmap(NULL, sizes[i] + 2 * MIB, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
			REQUIRE(area != MAP_FAILED);
			area = (uint8_t *)(((uintptr_t)area + 2 * MIB - 1) & -(2 * MIB));
			madvise(area, sizes[i], huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
			memcpy(area, vm.mem, 4 * MIB);
			vm_slot(&vm, 0, 0, 0, 0, vm.mem);
			vm_slot(&vm, 0, 0, 0, sizes[i], area);
			while (all.size)
				OK(ioctl(vm.vcpu, KVM_PRE_FAULT_MEMORY, &all));
			for (int round = 0; round < 5; round++) {
				int fd;

				start = __rdtsc();
				fd = fork_vm(&vm);
				start = __rdtsc() - start;
				first = round ? first : start;
				best = start < best ? start : best;
				OK(close(fd));
				vm_expect_out(&vm, 0x11);
				vm_expect_out(&vm, 0x10);
			}
			note("fork of %llu MiB, %llu of them in %s pages: %llu ticks, the first %llu",
			     sizes[i] / MIB, mapped / MIB, huge ? "huge" : "small",
			     (unsigned long long)best, (unsigned long long)first);
			vm_free(&vm);
			munmap(area, sizes[i]);
		}
	}
}
