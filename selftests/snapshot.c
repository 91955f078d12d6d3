// SPDX-License-Identifier: GPL-2.0
/* RVMM_RESET_POINT, RVMM_RESET, RVMM_TOUCH: a VM goes back to what it was. */
#define _GNU_SOURCE
#include "whole.h"
#include <pthread.h>
#include <stddef.h>
#include <sys/wait.h>
#include <x86intrin.h>

GUEST64(writer, "1: out %al, $0x10; xor %ebp, %ebp\n" WRITE_PAGES "mov %ebp, %eax; out %eax, $0x11; jmp 1b\n");

/* A read of a device goes to memory, then bytes of a port, then the guest's own word. */
GUEST64(emulated,
	"1: out %al, $0x10\n"
	"mov $" STR(G_MMIO) ", %esi; mov $" STR(G_PAGES) ", %edi; movsq\n"
	"mov $" STR(G_PAGES) " + 0x1000, %edi; mov $0x20, %edx; mov $16, %ecx; rep insb\n"
	"mov $" STR(G_MMIO) ", %esi; mov (%rsi), %eax\n"
	"add " STR(G_PAGES) ", %eax; add " STR(G_PAGES) " + 0x1000, %eax\n"
	"out %eax, $0x11; jmp 1b\n");

GUEST64(one_page,
	"1: out %al, $0x10; mov $" STR(G_PAGES) ", %edi; incq (%rdi)\n"
	"mov (%rdi), %eax; out %eax, $0x11; jmp 1b\n");
GUEST64(halts, "sti; 1: hlt; jmp 1b\n");
GUEST64(adds, "1: lock incq " STR(G_PAGES) "; lock incq " STR(G_PAGES) " + 8; out %al, $0x13; jmp 1b\n");

static int set_point(struct vm *vm, uint64_t pages)
{
	struct rvmm_reset_point point = { .pages = pages };

	return ioctl(vm->fd, RVMM_RESET_POINT, &point);
}

/* RVMM_RESET, which has to succeed; the number of pages. */
static uint64_t reset(struct vm *vm)
{
	struct rvmm_reset r = { .pages = ~0ull };

	OK(ioctl(vm->fd, RVMM_RESET, &r));
	return r.pages;
}

static int try_reset(struct vm *vm)
{
	struct rvmm_reset r;

	return ioctl(vm->fd, RVMM_RESET, &r);
}

static int touch(struct vm *vm, uint64_t gpa, uint64_t size)
{
	struct rvmm_touch t = { .gpa = gpa, .size = size };

	return ioctl(vm->fd, RVMM_TOUCH, &t);
}

/* The guest's page tables, which the processor writes to as well. */
#define TABLES 4

#define CHECK_PAGES(have, want) do {								\
	uint64_t have_ = (have), want_ = (want);						\
	if (have_ < want_ || have_ > want_ + TABLES)						\
		FAIL("%s is %llu, %llu expected", #have, (unsigned long long)have_,		\
		     (unsigned long long)want_);						\
} while (0)

static void need_reset(void)
{
	int kvm = device_open();

	if (!has_extension(kvm, RVMM_CAP_RESET_POINT))
		skip("no reset points");
	close(kvm);
}

static uint64_t vm_tsc(struct vm *vm)
{
	uint64_t tsc = 0;

	REQUIRE(get_msr(vm, 0x10, &tsc));
	return tsc;
}

/* The state of a VM with everything in the kernel comes back, and what follows is the same, a hundred times. */
TEST_SECONDS(everything, 300)
{
	static struct blob point, now;
	struct kvm_pit_config pit = { 0 };
	int rounds = is_bochs() ? 10 : 100;
	uint64_t tsc, clock, host, first = 0;
	struct vm vm;

	need_reset();
	vm_init_irqchip(&vm, MEMORY);
	OK(ioctl(vm.fd, KVM_CREATE_PIT2, &pit));
	vm_add_vcpu(&vm, 0);
	VM_LONG(&vm, everything);
	vm_enable_lapic(&vm);
	vm_log(&vm)->eoi = LAPIC_EOI;
	for (int i = 0; i < PAGES; i++)
		memset(vm.mem + G_PAGES + i * PAGE, i + 1, PAGE);
	vm_expect_out(&vm, 0x10);
	read_blob(&vm, &point, true);
	tsc = vm_tsc(&vm);
	clock = vm_clock(&vm);
	host = __rdtsc();
	OK(set_point(&vm, 1000));
	read_blob(&vm, &now, true);
	compare(&point, &now, -1);
	for (int round = 0; round < rounds; round++) {
		uint32_t value = vm_expect_out(&vm, 0x11);
		uint64_t pages, now_tsc, now_clock, passed;

		if (!round)
			first = value;
		CHECK_EQ(value, first);
		/* Some go on to the interrupt, and to HLT. */
		if (round % 3)
			vm_expect_out(&vm, 0x12);
		if (round == 1) {
			CHECK_EQ(vm_log(&vm)->count, 1);
			read_blob(&vm, &now, true);
			CHECK(now.memory != point.memory);
			CHECK(memcmp(&now.fpu, &point.fpu, sizeof(now.fpu)));
			CHECK(memcmp(&now.lapic, &point.lapic, sizeof(now.lapic)));
			CHECK(memcmp(&now.chip, &point.chip, sizeof(now.chip)));
			CHECK(memcmp(&now.pit, &point.pit, sizeof(now.pit)));
			CHECK(memcmp(&now.msr, &point.msr, sizeof(now.msr)));
			CHECK(memcmp(&now.debugregs, &point.debugregs, sizeof(now.debugregs)));
		}
		if (round % 7 == 3) {
			/* Interrupts from outside that nobody has taken. */
			struct kvm_irq_level level = { .irq = 5, .level = 1 };
			struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x66 };

			OK(ioctl(vm.fd, KVM_IRQ_LINE, &level));
			OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &msi));
			OK(ioctl(vm.vcpu, KVM_NMI));
		}
		pages = reset(&vm);
		passed = __rdtsc() - host;
		now_tsc = vm_tsc(&vm);
		now_clock = vm_clock(&vm);
		CHECK(pages >= PAGES + 6 && pages < PAGES + 20);
		CHECK(now_tsc >= tsc && (round < 5 || now_tsc - tsc < passed / 2));
		CHECK(now_clock >= clock);
		read_blob(&vm, &now, true);
		compare(&point, &now, round);
		if (round == 50)
			CHECK_EQ(reset(&vm), 0);
	}
}

/* An exit in flight is in flight again, with kvm_run as it was; emulated writes come back. */
TEST(in_flight)
{
	static struct blob point, now;
	struct vm vm;

	need_reset();
	VM_NEW_LONG(&vm, emulated);
	memset(vm.mem + G_PAGES, 0x11, 2 * PAGE);
	vm_expect_out(&vm, 0x10);
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm.run->mmio.phys_addr, G_MMIO);
	read_blob(&vm, &point, false);
	OK(set_point(&vm, 100));
	for (int round = 0; round < 20; round++) {
		uint64_t value = 0x1000 * round + 7;

		REQUIRE_EQ(vm.run->exit_reason, KVM_EXIT_MMIO);
		CHECK_EQ(vm.run->mmio.phys_addr, G_MMIO);
		memcpy(vm.run->mmio.data, &value, 8);
		vm_expect(&vm, KVM_EXIT_IO);
		CHECK_EQ(vm.run->io.port, 0x20);
		CHECK_EQ(*(uint64_t *)(vm.mem + G_PAGES), value);
		if (round % 2) {
			uint32_t count = 0;

			while (vm.run->io.port == 0x20) {
				CHECK_EQ(vm.run->io.size, 1);
				for (unsigned int i = 0; i < vm.run->io.count; i++)
					((uint8_t *)io_data(&vm))[i] = 0x40 + round;
				count += vm.run->io.count;
				if (vm_run(&vm) != KVM_EXIT_IO)
					break;
			}
			CHECK_EQ(count, 16);
			REQUIRE_EQ(vm.run->exit_reason, KVM_EXIT_MMIO);
			CHECK_EQ(vm.mem[G_PAGES + 0x1000], 0x40 + round);
			memset(vm.run->mmio.data, 0, 8);
			vm_expect_out(&vm, 0x11);
		}
		CHECK(reset(&vm) >= 1);
		read_blob(&vm, &now, false);
		compare(&point, &now, round);
	}
}

/* An emulated write beyond what is allowed happens, and ends KVM_RUN before the guest goes on. */
TEST(emulated_when_full)
{
	uint64_t value = 0x1122334455667788;
	struct vm vm;

	need_reset();
	VM_NEW_LONG(&vm, emulated);
	vm_expect_out(&vm, 0x10);
	vm_expect(&vm, KVM_EXIT_MMIO);
	OK(set_point(&vm, 1));
	for (int round = 0; round < 3; round++) {
		OK(touch(&vm, G_PAGES + 5 * PAGE, PAGE));
		memcpy(vm.run->mmio.data, &value, 8);
		CHECK_EQ(vm_try_run(&vm), ENOSPC);
		CHECK_EQ(vm.run->exit_reason, KVM_EXIT_MEMORY_FAULT);
		CHECK_EQ(vm.run->memory_fault.gpa, 0);
		CHECK_EQ(*(uint64_t *)(vm.mem + G_PAGES), value);
		CHECK_EQ(vm_try_run(&vm), ENOSPC);
		if (round == 2)
			OK(set_point(&vm, 100));
		else
			CHECK_PAGES(reset(&vm), 2);
		CHECK_EQ(*(uint64_t *)(vm.mem + G_PAGES), round == 2 ? value : 0);
	}
	vm_expect(&vm, KVM_EXIT_IO);
	CHECK_EQ(vm.run->io.port, 0x20);
}

/* One page more than allowed: KVM_RUN ends, nothing is lost. */
TEST(full)
{
	struct vm vm;
	uint64_t sum, left = 0, want = 0;

	need_reset();
	VM_NEW_LONG(&vm, writer);
	for (int i = 0; i < PAGES; i++)
		want += *(uint64_t *)(vm.mem + G_PAGES + i * PAGE) = i * 3 + 1;
	vm_expect_out(&vm, 0x10);
	sum = checksum(&vm);
	OK(set_point(&vm, 10));
	for (int round = 0; round < 3; round++) {
		CHECK_EQ(vm_try_run(&vm), ENOSPC);
		CHECK_EQ(vm.run->exit_reason, KVM_EXIT_MEMORY_FAULT);
		/* The processor writes to the guest's page tables as well. */
		left = (vm.run->memory_fault.gpa - G_PAGES) / PAGE;
		CHECK(left >= 10 - TABLES && left <= 10);
		CHECK_EQ(vm.run->memory_fault.size, PAGE);
		/* Again, to the same end. */
		CHECK_EQ(vm_try_run(&vm), ENOSPC);
		CHECK_EQ(vm.run->memory_fault.gpa, G_PAGES + left * PAGE);
		CHECK_ERRNO(touch(&vm, G_PAGES + 11 * PAGE, PAGE), ENOSPC);
		CHECK_EQ(reset(&vm), 10);
		CHECK_EQ(checksum(&vm), sum);
	}
	CHECK_EQ(vm_try_run(&vm), ENOSPC);
	/* A new point there, with room for the rest. */
	OK(set_point(&vm, PAGES));
	CHECK_EQ(vm_expect_out(&vm, 0x11), want);
	CHECK_PAGES(reset(&vm), PAGES - left);
	for (int i = 0; i < PAGES; i++)
		CHECK_EQ(*(uint64_t *)(vm.mem + G_PAGES + i * PAGE), i * 3 + 1 + (i < left));
	CHECK_EQ(vm_expect_out(&vm, 0x11), want);
	/* No point: nothing is limited. */
	OK(set_point(&vm, 1));
	OK(set_point(&vm, 0));
	CHECK_EQ(vm_expect_out(&vm, 0x10), (uint32_t)want & 0xff);
	CHECK_EQ(vm_expect_out(&vm, 0x11), want + PAGES);
	CHECK_ERRNO(try_reset(&vm), ENODATA);
}

/* What user space writes comes back if it says so. */
TEST(touched)
{
	struct vm vm;

	need_reset();
	VM_NEW_LONG(&vm, one_page);
	vm_expect_out(&vm, 0x10);
	CHECK_ERRNO(touch(&vm, G_PAGES, PAGE), ENODATA);
	OK(set_point(&vm, 20));
	for (int round = 0; round < 3; round++) {
		OK(touch(&vm, G_PAGES, 2 * PAGE));
		OK(touch(&vm, G_PAGES, 0));
		vm.mem[G_PAGES] = 77;
		vm.mem[G_PAGES + PAGE + 5] = 78;
		vm.mem[G_PAGES + 2 * PAGE] = 79;
		CHECK_EQ(vm_expect_out(&vm, 0x11), 78);
		CHECK_PAGES(reset(&vm), 2);
		CHECK_EQ(vm.mem[G_PAGES], 0);
		CHECK_EQ(vm.mem[G_PAGES + PAGE + 5], 0);
		CHECK_EQ(vm.mem[G_PAGES + 2 * PAGE], 79);
	}
	CHECK_ERRNO(touch(&vm, G_PAGES + 8, PAGE), EINVAL);
	CHECK_ERRNO(touch(&vm, G_PAGES, 8), EINVAL);
	CHECK_ERRNO(touch(&vm, -PAGE, 2 * PAGE), EINVAL);
	CHECK_ERRNO(touch(&vm, MEMORY - PAGE, 2 * PAGE), EFAULT);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_TOUCH, 8), EFAULT);
}

TEST(refused)
{
	struct rvmm_reset_point point = { .pages = 1, .flags = 1 };
	struct sigaction action = { .sa_handler = nothing };
	struct vm vm, second;
	pthread_t thread;
	void *more;
	int status;

	need_reset();
	VM_NEW_LONG_IRQCHIP(&vm, halts);
	CHECK_ERRNO(try_reset(&vm), ENODATA);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_RESET_POINT, &point), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_RESET_POINT, 8), EFAULT);
	CHECK_ERRNO(ioctl(vm.vcpu, RVMM_RESET, 8), EINVAL);
	OK(set_point(&vm, ~0ull));
	CHECK_EQ(reset(&vm), 0);

	/* While a vCPU runs. */
	sigaction(SIGUSR1, &action, NULL);
	REQUIRE(!pthread_create(&thread, NULL, halted, &vm));
	usleep(100000);
	CHECK_ERRNO(set_point(&vm, 5), EBUSY);
	CHECK_ERRNO(try_reset(&vm), EBUSY);
	do {
		pthread_kill(thread, SIGUSR1);
		usleep(10000);
	} while (pthread_tryjoin_np(thread, NULL));
	CHECK(reset(&vm) <= 3);

	/* From another address space. */
	if (!fork_child())
		_exit(try_reset(&vm) != -1 || errno != EIO);
	OK(wait(&status));
	CHECK_EQ(status, 0);

	/* Logging does not matter to it, other changes of slots do. */
	vm_slot(&vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, vm.bytes, vm.mem);
	vm_slot(&vm, 0, 0, 0, vm.bytes, vm.mem);
	reset(&vm);
	more = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	vm_slot(&vm, 1, 0, 64 * MIB, PAGE, more);
	CHECK_ERRNO(try_reset(&vm), ESTALE);
	CHECK_ERRNO(touch(&vm, 0, PAGE), ESTALE);
	OK(set_point(&vm, 5));
	vm_slot(&vm, 1, 0, 65 * MIB, PAGE, more);
	CHECK_ERRNO(try_reset(&vm), ESTALE);
	OK(set_point(&vm, 5));
	vm_slot(&vm, 1, 0, 65 * MIB, 0, more);
	CHECK_ERRNO(try_reset(&vm), ESTALE);
	OK(set_point(&vm, 5));
	reset(&vm);

	/* vCPUs. */
	second = vm_second_vcpu(&vm, 1);
	CHECK_ERRNO(try_reset(&vm), ESTALE);
	OK(set_point(&vm, 5));
	reset(&vm);
	munmap(second.run, second.run_bytes);
	close(second.vcpu);
	CHECK_ERRNO(try_reset(&vm), ESTALE);
	OK(set_point(&vm, 5));
	reset(&vm);
	/* Memory that is gone. The point stays. */
	OK(touch(&vm, G_PAGES, PAGE));
	OK(munmap(vm.mem + G_PAGES, PAGE));
	CHECK_ERRNO(try_reset(&vm), EFAULT);
	REQUIRE(mmap(vm.mem + G_PAGES, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
		MAP_FAILED);
	CHECK_EQ(reset(&vm), 1);
}

/* Pages that were put back are in the dirty log, and so are those that are written twice between two resets. */
TEST(dirty_log)
{
	static uint64_t bits[MEMORY / PAGE / 64];
	struct kvm_dirty_log log = { .dirty_bitmap = bits };
	const unsigned int page = G_PAGES / PAGE;
	struct vm vm;

	need_reset();
	VM_NEW_LONG(&vm, one_page);
	vm_slot(&vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, vm.bytes, vm.mem);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_expect_out(&vm, 0x11), 1);
	OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
	vm_expect_out(&vm, 0x10);
	OK(set_point(&vm, 10));
	OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
	for (int round = 0; round < 3; round++) {
		CHECK_EQ(vm_expect_out(&vm, 0x11), 2);
		OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
		CHECK(bits[page / 64] & 1ull << page % 64);
		vm_expect_out(&vm, 0x10);
		CHECK_EQ(vm_expect_out(&vm, 0x11), 3);
		OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
		CHECK(bits[page / 64] & 1ull << page % 64);
		OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
		CHECK(!(bits[page / 64] & 1ull << page % 64));
		CHECK_PAGES(reset(&vm), 1);
		OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
		CHECK(bits[page / 64] & 1ull << page % 64);
	}
}

/* Pages that were put back are in no ring, which is a vCPU's, but in the bitmap; without one there is no point. */
TEST(dirty_rings)
{
	static uint64_t bits[MEMORY / PAGE / 64];
	struct kvm_dirty_log log = { .dirty_bitmap = bits };
	const unsigned int page = G_PAGES / PAGE;
	struct vm vm;

	need_reset();
	vm_init(&vm, MEMORY);
	OK(set_point(&vm, 5));
	CHECK_EQ(reset(&vm), 0);
	OK(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING, 4 * PAGE));
	CHECK_ERRNO(try_reset(&vm), ESTALE);
	CHECK_ERRNO(set_point(&vm, 5), EINVAL);
	CHECK_ERRNO(touch(&vm, G_PAGES, PAGE), ESTALE);
	vm_slot(&vm, 0, 0, 0, 0, vm.mem);
	OK(enable_cap(vm.fd, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0));
	vm_slot(&vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, vm.bytes, vm.mem);
	vm_add_vcpu(&vm, 0);
	VM_LONG(&vm, one_page);
	vm_expect_out(&vm, 0x10);
	OK(set_point(&vm, 10));
	for (int round = 0; round < 3; round++) {
		OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
		CHECK_EQ(vm_expect_out(&vm, 0x11), 1);
		OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
		CHECK(!(bits[page / 64] & 1ull << page % 64));
		CHECK_PAGES(reset(&vm), 1);
		OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
		CHECK(bits[page / 64] & 1ull << page % 64);
	}
}

/* One user page behind two slots, written by both. */
TEST(two_slots)
{
	struct vm vm;

	need_reset();
	VM_NEW_LONG(&vm, one_page);
	vm_slot(&vm, 1, 0, 64 * MIB, PAGE, vm.mem + G_PAGES);
	vm_expect_out(&vm, 0x10);
	OK(set_point(&vm, 10));
	for (int round = 0; round < 3; round++) {
		if (round & 1)
			OK(touch(&vm, 64 * MIB, PAGE));
		vm.mem[G_PAGES] += round & 1;
		CHECK_EQ(vm_expect_out(&vm, 0x11), 1 + (round & 1));
		OK(touch(&vm, 64 * MIB, PAGE));
		vm.mem[G_PAGES + 1] = 9;
		CHECK_PAGES(reset(&vm), 2);
		CHECK_EQ(*(uint64_t *)(vm.mem + G_PAGES), 0);
	}
}

/* Huge pages, with and without a mapping at the point. */
TEST(huge)
{
	struct vm vm;

	need_reset();
	VM_NEW_LONG(&vm, adds);
	make_huge(&vm);
	for (int mapped = 0; mapped < 2; mapped++) {
		uint64_t sum, before = *(uint64_t *)(vm.mem + G_PAGES);

		sum = checksum(&vm);
		OK(set_point(&vm, 10));
		for (int round = 0; round < 5; round++) {
			vm_expect_out(&vm, 0x13);
			vm_expect_out(&vm, 0x13);
			CHECK_EQ(*(uint64_t *)(vm.mem + G_PAGES), before + 2);
			CHECK(reset(&vm) >= 1);
			CHECK_EQ(checksum(&vm), sum);
		}
		OK(set_point(&vm, 0));
		vm_expect_out(&vm, 0x13);
	}
}

static void *add_up(void *argument)
{
	struct vm *vm = argument;

	for (int i = 0; i < 50; i++)
		vm_expect_out(vm, 0x13);
	return NULL;
}

/* Two vCPUs meet the same pages. */
TEST_SECONDS(two_vcpus, 120)
{
	struct vm vm, second;
	uint64_t sum;

	need_reset();
	VM_NEW_LONG(&vm, adds);
	second = vm_second_vcpu(&vm, 1);
	vm_long_state(&second);
	sum = checksum(&vm);
	OK(set_point(&vm, 10));
	for (int round = 0; round < 10; round++) {
		pthread_t threads[2];

		REQUIRE(!pthread_create(&threads[0], NULL, add_up, &vm));
		REQUIRE(!pthread_create(&threads[1], NULL, add_up, &second));
		pthread_join(threads[0], NULL);
		pthread_join(threads[1], NULL);
		CHECK_EQ(*(uint64_t *)(vm.mem + G_PAGES), 100);
		CHECK(reset(&vm) >= 1);
		CHECK_EQ(checksum(&vm), sum);
	}
}

/* What a reset costs, in ticks of the TSC: instructions where the bed counts them. For tools/bench. */
TEST_NAMED(cost)
{
	uint64_t best[2] = { ~0ull, ~0ull }, empty = ~0ull, point = ~0ull;
	struct vm vm;

	need_reset();
	for (int chips = 0; chips < 2; chips++) {
		if (chips)
			VM_NEW_LONG_IRQCHIP(&vm, writer);
		else
			VM_NEW_LONG(&vm, writer);
		vm_expect_out(&vm, 0x10);
		for (int round = 0; round < 20; round++) {
			uint64_t start = __rdtsc();

			OK(set_point(&vm, 1000));
			start = __rdtsc() - start;
			point = start < point ? start : point;
		}
		for (int round = 0; round < 20; round++) {
			vm_expect_out(&vm, 0x11);
			uint64_t start = __rdtsc();

			CHECK_PAGES(reset(&vm), PAGES);
			start = __rdtsc() - start;
			best[chips] = start < best[chips] ? start : best[chips];
			start = __rdtsc();
			CHECK_EQ(reset(&vm), 0);
			start = __rdtsc() - start;
			empty = start < empty ? start : empty;
		}
		vm_free(&vm);
	}
	note("reset of %d written pages: %llu ticks, with interrupt controllers %llu", PAGES,
	     (unsigned long long)best[0], (unsigned long long)best[1]);
	note("reset of none: %llu ticks", (unsigned long long)empty);
	note("reset point: %llu ticks", (unsigned long long)point);
}
