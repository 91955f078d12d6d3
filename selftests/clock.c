// SPDX-License-Identifier: GPL-2.0
/* Time: KVM_GET_CLOCK, kvmclock, and TSCs that run together. */
#define _GNU_SOURCE
#include "vm.h"
#include <time.h>

#define MSR_TSC			0x10
#define MSR_TSC_ADJUST		0x3b
#define MSR_WALL_CLOCK_OLD	0x11
#define MSR_SYSTEM_TIME_OLD	0x12
#define MSR_WALL_CLOCK		0x4b564d00
#define MSR_SYSTEM_TIME		0x4b564d01

#define NS 1000000000ull

/* struct pvclock_vcpu_time_info */
struct time_info {
	uint32_t version, pad;
	uint64_t tsc, system_time;
	uint32_t mul;
	int8_t shift;
	uint8_t flags, pad2[2];
};

#define TSC_STABLE	1
#define GUEST_STOPPED	2

struct wall_clock {
	uint32_t version, sec, nsec;
};

/* WRMSR with the registers as the test set them, then the TSC goes to a cell. */
GUEST64(clock_guest,
	"wrmsr; 1: rdtsc; shl $32, %rdx; or %rdx, %rax\n"
	"mov %rax, " STR(G_CELLS) "; hlt; jmp 1b\n");

static void guest_msr(struct vm *vm, uint32_t index, uint64_t value)
{
	struct kvm_regs r = vm_regs(vm);

	r.rip = G_CODE;
	r.rcx = index;
	r.rax = (uint32_t)value;
	r.rdx = value >> 32;
	vm_set_regs(vm, &r);
	vm_expect(vm, KVM_EXIT_HLT);
}

static struct kvm_clock_data get_clock(struct vm *vm)
{
	struct kvm_clock_data d;

	memset(&d, 0xee, sizeof(d));
	OK(ioctl(vm->fd, KVM_GET_CLOCK, &d));
	return d;
}

static uint64_t read_page(const struct time_info *t, uint64_t tsc)
{
	uint64_t delta = tsc - t->tsc;

	delta = t->shift < 0 ? delta >> -t->shift : delta << t->shift;
	return t->system_time + (uint64_t)((unsigned __int128)delta * t->mul >> 32);
}

static bool host_uses_tsc(void)
{
	FILE *f = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "r");
	char name[32] = "";

	if (f) {
		if (!fgets(name, sizeof(name), f))
			name[0] = 0;
		fclose(f);
	}
	return !strncmp(name, "tsc", 3);
}

TEST(get_set_clock)
{
	struct kvm_clock_data a, b, d;
	struct vm vm;

	vm_new(&vm, MIB);
	a = get_clock(&vm);
	b = get_clock(&vm);
	CHECK(b.clock >= a.clock);
	CHECK(a.clock < 100 * NS);
	CHECK_EQ(OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_ADJUST_CLOCK)),
		 KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC);
	/* What was read can be written back. */
	OK(ioctl(vm.fd, KVM_SET_CLOCK, &b));
	for (uint64_t set = 0; set < 4000 * NS; set = set * 3 + NS) {
		d = (struct kvm_clock_data){ .clock = set };
		OK(ioctl(vm.fd, KVM_SET_CLOCK, &d));
		a = get_clock(&vm);
		CHECK(a.clock >= set && a.clock < set + 50 * NS);
	}
	d.flags = 1;
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_CLOCK, &d), EINVAL);
	d.flags = 1u << 31;
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_CLOCK, &d), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_CLOCK, (void *)8), EFAULT);
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_CLOCK, (void *)8), EFAULT);
}

/* KVM_CLOCK_REALTIME: the time that has passed since then counts, but never backwards. */
TEST(clock_realtime)
{
	struct kvm_clock_data d, now;
	struct timespec ts;
	struct vm vm;

	VM_NEW_LONG(&vm, clock_guest);
	guest_msr(&vm, MSR_SYSTEM_TIME, 0);
	clock_gettime(CLOCK_REALTIME, &ts);
	for (int64_t shift = -500; shift <= 500; shift += 500) {
		d = (struct kvm_clock_data){
			.clock = 77 * NS, .flags = KVM_CLOCK_REALTIME,
			.realtime = ts.tv_sec * NS + ts.tv_nsec + shift * (int64_t)NS,
		};
		OK(ioctl(vm.fd, KVM_SET_CLOCK, &d));
		now = get_clock(&vm);
		if (shift < 0)
			CHECK(now.clock >= 577 * NS && now.clock < 650 * NS);
		else
			CHECK(now.clock >= 77 * NS && now.clock < 150 * NS);
	}
	if (!host_uses_tsc())
		return;
	now = get_clock(&vm);
	CHECK_EQ(now.flags, KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC);
	CHECK(now.realtime / NS - ts.tv_sec < 60);
	d = get_clock(&vm);
	CHECK(d.host_tsc > now.host_tsc && d.realtime >= now.realtime && d.clock >= now.clock);
}

static void check_page(struct vm *vm, const struct time_info *t)
{
	uint64_t khz = OK(ioctl(vm->vcpu, KVM_GET_TSC_KHZ, 0)), before, after, rate;

	CHECK(t->version && !(t->version & 1));
	/* A second of ticks is a second of nanoseconds. */
	rate = read_page(t, t->tsc + khz * 1000) - t->system_time;
	CHECK(rate > NS - NS / 1000 && rate < NS + NS / 1000);
	CHECK(t->mul >= 1u << 31);
	before = get_clock(vm).clock;
	vm_expect(vm, KVM_EXIT_HLT);
	after = get_clock(vm).clock;
	uint64_t seen = read_page(t, *vm_cells(vm));
	if (seen < before || seen > after)
		FAIL("the guest's clock says %llu, the host's %llu to %llu", (unsigned long long)seen,
		     (unsigned long long)before, (unsigned long long)after);
}

TEST(kvmclock)
{
	static const uint32_t msrs[] = { MSR_SYSTEM_TIME, MSR_SYSTEM_TIME_OLD };
	struct time_info *t;
	struct vm vm;
	uint64_t v;

	for (size_t i = 0; i < ARRAY_SIZE(msrs); i++) {
		uint32_t version;

		VM_NEW_LONG(&vm, clock_guest);
		t = (void *)(vm.mem + G_DATA + 0x40);
		guest_msr(&vm, msrs[i], (G_DATA + 0x40) | 1);
		CHECK(get_msr(&vm, msrs[i], &v) && v == ((G_DATA + 0x40) | 1));
		CHECK(get_msr(&vm, msrs[!i], &v) && v == ((G_DATA + 0x40) | 1));
		check_page(&vm, t);
		if (host_uses_tsc())
			CHECK_EQ(t->flags, i ? 0 : TSC_STABLE);
		/* After KVM_SET_CLOCK the page says so, with another version, and only with the next KVM_RUN. */
		version = t->version;
		struct kvm_clock_data d = { .clock = 1000 * NS };
		OK(ioctl(vm.fd, KVM_SET_CLOCK, &d));
		vm_expect(&vm, KVM_EXIT_HLT);
		CHECK(t->version != version);
		CHECK(t->system_time >= 1000 * NS);
		check_page(&vm, t);
		d.clock = 0;
		OK(ioctl(vm.fd, KVM_SET_CLOCK, &d));
		vm_expect(&vm, KVM_EXIT_HLT);
		CHECK(t->system_time < 100 * NS);
		check_page(&vm, t);
		/* A clock that is off leaves the page alone. */
		guest_msr(&vm, msrs[i], G_DATA + 0x40);
		memset(t, 0x55, sizeof(*t));
		OK(ioctl(vm.fd, KVM_SET_CLOCK, &d));
		vm_expect(&vm, KVM_EXIT_HLT);
		CHECK_EQ(t->version, 0x55555555);
		/* User space can switch it on as well: the page is written by KVM_RUN. */
		CHECK(set_msr(&vm, msrs[i], (G_DATA + 0x80) | 1));
		vm_expect(&vm, KVM_EXIT_HLT);
		check_page(&vm, (void *)(vm.mem + G_DATA + 0x80));
		vm_free(&vm);
	}
}

/* The page follows what the guest does to its TSC. */
TEST(kvmclock_and_tsc)
{
	struct time_info *t;
	struct vm vm;
	uint64_t v;

	VM_NEW_LONG(&vm, clock_guest);
	t = (void *)(vm.mem + G_DATA);
	guest_msr(&vm, MSR_SYSTEM_TIME, G_DATA | 1);
	check_page(&vm, t);
	guest_msr(&vm, MSR_TSC, 1ull << 50);
	guest_msr(&vm, MSR_SYSTEM_TIME, G_DATA | 1);
	check_page(&vm, t);
	CHECK(*vm_cells(&vm) >= 1ull << 50);
	CHECK(get_msr(&vm, MSR_TSC_ADJUST, &v) && v > 1ull << 49);
	guest_msr(&vm, MSR_TSC_ADJUST, 0);
	check_page(&vm, t);
	CHECK(*vm_cells(&vm) < 1ull << 49);
	CHECK(set_msr(&vm, MSR_TSC, 1ull << 52));
	check_page(&vm, t);
	vm_expect(&vm, KVM_EXIT_HLT);
	check_page(&vm, t);
}

TEST(guest_stopped)
{
	struct time_info *t;
	struct vm vm;

	VM_NEW_LONG(&vm, clock_guest);
	t = (void *)(vm.mem + G_DATA);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_KVMCLOCK_CTRL, 0), EINVAL);
	guest_msr(&vm, MSR_SYSTEM_TIME, G_DATA | 1);
	CHECK(!(t->flags & GUEST_STOPPED));
	OK(ioctl(vm.vcpu, KVM_KVMCLOCK_CTRL, 0));
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK(t->flags & GUEST_STOPPED);
	/* Stays until the guest clears it. */
	struct kvm_clock_data d = { .clock = 5 * NS };
	OK(ioctl(vm.fd, KVM_SET_CLOCK, &d));
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK(t->flags & GUEST_STOPPED);
	t->flags &= ~GUEST_STOPPED;
	OK(ioctl(vm.fd, KVM_SET_CLOCK, &d));
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK(!(t->flags & GUEST_STOPPED));
	check_page(&vm, t);
}

TEST(wall_clock)
{
	static const uint32_t msrs[] = { MSR_WALL_CLOCK, MSR_WALL_CLOCK_OLD };
	struct vm vm;
	uint64_t v;

	VM_NEW_LONG(&vm, clock_guest);
	for (size_t i = 0; i < ARRAY_SIZE(msrs); i++) {
		struct wall_clock *w = (void *)(vm.mem + G_DATA + 0x100 * i);
		struct kvm_clock_data c;
		int64_t epoch, said;
		struct timespec ts;

		guest_msr(&vm, msrs[i], G_DATA + 0x100 * i);
		CHECK(get_msr(&vm, msrs[i], &v) && v == G_DATA + 0x100 * i);
		CHECK(w->version && !(w->version & 1));
		CHECK(w->nsec < NS);
		c = get_clock(&vm);
		clock_gettime(CLOCK_REALTIME, &ts);
		epoch = ts.tv_sec * NS + ts.tv_nsec - c.clock;
		said = w->sec * NS + w->nsec;
		CHECK(epoch - said > -(int64_t)NS && epoch - said < (int64_t)(60 * NS));
	}
}

/* No memory, read-only memory, an area over a page's end: nothing is written, and nobody complains. */
TEST(bad_addresses)
{
	static const uint64_t bad[] = { G_MMIO, 1ull << 45, 0x200000 - 16, 0xfffffffffffff000ull, 0x40000000 };
	struct vm vm;
	uint64_t v;
	void *m;

	VM_NEW_LONG(&vm, clock_guest);
	m = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	vm_slot(&vm, 3, KVM_MEM_READONLY, 0x40000000, 4096, m);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		guest_msr(&vm, MSR_SYSTEM_TIME, bad[i] | 1);
		CHECK(get_msr(&vm, MSR_SYSTEM_TIME, &v) && v == (bad[i] | 1));
		guest_msr(&vm, MSR_WALL_CLOCK, bad[i]);
		CHECK(set_msr(&vm, MSR_SYSTEM_TIME, bad[i] | 1));
		vm_expect(&vm, KVM_EXIT_HLT);
	}
	/* The memory goes away under the page, and comes back. */
	guest_msr(&vm, MSR_SYSTEM_TIME, 0x50000001);
	vm_slot(&vm, 4, 0, 0x50000000, 4096,
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	struct kvm_clock_data d = { .clock = 3 * NS };
	OK(ioctl(vm.fd, KVM_SET_CLOCK, &d));
	vm_expect(&vm, KVM_EXIT_HLT);
	vm_slot(&vm, 4, 0, 0x50000000, 0, NULL);
	OK(ioctl(vm.fd, KVM_SET_CLOCK, &d));
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* Writing the page is writing guest memory. */
TEST(dirty_log)
{
	uint64_t bitmap[2] = { 0 };
	struct kvm_dirty_log log = { .slot = 5, .dirty_bitmap = bitmap };
	struct vm vm;
	void *m;

	VM_NEW_LONG(&vm, clock_guest);
	m = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	vm_slot(&vm, 5, KVM_MEM_LOG_DIRTY_PAGES, 0x60000000, 64 * 4096, m);
	guest_msr(&vm, MSR_SYSTEM_TIME, 0x60003001);
	guest_msr(&vm, MSR_WALL_CLOCK, 0x60007000);
	OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
	CHECK_EQ(bitmap[0], 1 << 3 | 1 << 7);
	struct kvm_clock_data d = { .clock = 3 * NS };
	OK(ioctl(vm.fd, KVM_SET_CLOCK, &d));
	vm_expect(&vm, KVM_EXIT_HLT);
	OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
	CHECK_EQ(bitmap[0], 1 << 3);
}

/* vCPUs that are created together have one TSC and one clock. */
TEST(vcpus_together)
{
	struct vm vm, second;
	struct time_info *a, *b;
	uint64_t v, w, x;

	VM_NEW_LONG(&vm, clock_guest);
	usleep(20000);
	second = vm_second_vcpu(&vm, 1);
	vm_long_state(&second);
	a = (void *)(vm.mem + G_DATA);
	b = (void *)(vm.mem + G_DATA + 0x40);
	CHECK(get_msr(&vm, MSR_TSC, &v) && get_msr(&second, MSR_TSC, &w) && get_msr(&vm, MSR_TSC, &x));
	CHECK(v <= w && w <= x);
	guest_msr(&vm, MSR_SYSTEM_TIME, G_DATA | 1);
	guest_msr(&second, MSR_SYSTEM_TIME, (G_DATA + 0x40) | 1);
	check_page(&vm, a);
	check_page(&second, b);
	if (!host_uses_tsc())
		return;
	CHECK(a->flags & TSC_STABLE && b->flags & TSC_STABLE);
	CHECK_EQ(a->tsc, b->tsc);
	CHECK_EQ(a->system_time, b->system_time);
	/* When one TSC is elsewhere the vCPUs no longer have one clock. */
	CHECK(set_msr(&second, MSR_TSC, 1ull << 50));
	vm_expect(&vm, KVM_EXIT_HLT);
	vm_expect(&second, KVM_EXIT_HLT);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK(!(a->flags & TSC_STABLE) && !(b->flags & TSC_STABLE));
	CHECK(!(get_clock(&vm).flags & KVM_CLOCK_TSC_STABLE));
	/* The other follows, with the value that was read a moment ago: meant to be the same. */
	usleep(20000);
	CHECK(set_msr(&vm, MSR_TSC, 1ull << 50));
	vm_expect(&vm, KVM_EXIT_HLT);
	vm_expect(&second, KVM_EXIT_HLT);
	CHECK(a->flags & TSC_STABLE && b->flags & TSC_STABLE);
	CHECK(get_msr(&vm, MSR_TSC, &v) && get_msr(&second, MSR_TSC, &w) && get_msr(&vm, MSR_TSC, &x));
	CHECK(v <= w && w <= x);
	check_page(&vm, a);
	check_page(&second, b);
}

/* KVM_VCPU_TSC_OFFSET: host TSC plus this is the guest's TSC. */
TEST(tsc_offset)
{
	uint64_t offset = 0, before, after, tsc;
	struct kvm_device_attr a = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET,
				     .addr = (uintptr_t)&offset };
	struct vm vm, second;

	vm_new(&vm, MIB);
	second = vm_second_vcpu(&vm, 1);
	CHECK_EQ(OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_VCPU_ATTRIBUTES)), 1);
	OK(ioctl(vm.vcpu, KVM_HAS_DEVICE_ATTR, &a));
	OK(ioctl(vm.vcpu, KVM_GET_DEVICE_ATTR, &a));
	before = __builtin_ia32_rdtsc();
	CHECK(get_msr(&vm, MSR_TSC, &tsc));
	after = __builtin_ia32_rdtsc();
	CHECK(tsc - offset >= before && tsc - offset <= after);
	offset = 1ull << 60;
	OK(ioctl(vm.vcpu, KVM_SET_DEVICE_ATTR, &a));
	offset = 0;
	OK(ioctl(vm.vcpu, KVM_GET_DEVICE_ATTR, &a));
	CHECK_EQ(offset, 1ull << 60);
	CHECK(get_msr(&vm, MSR_TSC, &tsc) && tsc - offset - after < 1ull << 40);
	/* The second is set to the same: one clock. */
	OK(ioctl(second.vcpu, KVM_SET_DEVICE_ATTR, &a));
	OK(ioctl(second.vcpu, KVM_GET_DEVICE_ATTR, &a));
	CHECK_EQ(offset, 1ull << 60);
	a.attr = 1;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_HAS_DEVICE_ATTR, &a), ENXIO);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_GET_DEVICE_ATTR, &a), ENXIO);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_DEVICE_ATTR, &a), ENXIO);
	a.attr = 0;
	a.group = 7;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_HAS_DEVICE_ATTR, &a), ENXIO);
	a.group = KVM_VCPU_TSC_CTRL;
	a.addr = 8;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_GET_DEVICE_ATTR, &a), EFAULT);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_DEVICE_ATTR, &a), EFAULT);
	OK(ioctl(vm.vcpu, KVM_HAS_DEVICE_ATTR, &a));
}

/* A TSC of another frequency: RDTSC, the MSR and the clock's page say the same; the deadline timer knows it. */
TEST(tsc_scaling)
{
	uint64_t host, khz, a, b, ha, hb;
	struct kvm_clock_data c, d;
	struct time_info *t;
	struct vm vm;

	VM_NEW_LONG(&vm, clock_guest);
	host = OK(ioctl(vm.vcpu, KVM_GET_TSC_KHZ, 0));
	CHECK_EQ(OK(ioctl(vm.fd, KVM_GET_TSC_KHZ, 0)), host);
	OK(ioctl(vm.vcpu, KVM_SET_TSC_KHZ, 0));
	OK(ioctl(vm.vcpu, KVM_SET_TSC_KHZ, host + host / 10000));
	CHECK_EQ(OK(ioctl(vm.vcpu, KVM_GET_TSC_KHZ, 0)), host + host / 10000);
	OK(ioctl(vm.vcpu, KVM_SET_TSC_KHZ, host));
	/* The VM's is for vCPUs to come. */
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_TSC_KHZ, host), EINVAL);
	if (!OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL)))
		skip("the processor does not scale TSCs");
	CHECK_EQ(OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_VM_TSC_CONTROL)), 1);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_TSC_KHZ, 0x7fffffff), EINVAL);
	t = (void *)(vm.mem + G_DATA);
	for (int i = 0; i < 2; i++) {
		khz = i ? host * 3 : host / 4;
		OK(ioctl(vm.vcpu, KVM_SET_TSC_KHZ, khz));
		CHECK_EQ(OK(ioctl(vm.vcpu, KVM_GET_TSC_KHZ, 0)), khz);
		guest_msr(&vm, MSR_SYSTEM_TIME, G_DATA | 1);
		check_page(&vm, t);
		/* As fast as it says, by the host's clock, and RDTSC is between two readings of the MSR. */
		c = get_clock(&vm);
		CHECK(get_msr(&vm, MSR_TSC, &a));
		ha = __builtin_ia32_rdtsc();
		usleep(100000);
		vm_expect(&vm, KVM_EXIT_HLT);
		CHECK(get_msr(&vm, MSR_TSC, &b));
		hb = __builtin_ia32_rdtsc();
		d = get_clock(&vm);
		CHECK(*vm_cells(&vm) > a && *vm_cells(&vm) < b);
		double rate = (double)(b - a) / (hb - ha), want = (double)khz / host;
		if (rate < want * 0.98 || rate > want * 1.02)
			FAIL("%g ticks for one of the host's, %g expected", rate, want);
		CHECK(d.clock > c.clock);
		check_page(&vm, t);
		guest_msr(&vm, MSR_TSC, 1ull << 50);
		CHECK(*vm_cells(&vm) - (1ull << 50) < 1ull << 40);
		/* KVM writes the page again only when it is asked to. */
		guest_msr(&vm, MSR_SYSTEM_TIME, G_DATA | 1);
		check_page(&vm, t);
	}
	vm_free(&vm);
	/* A vCPU gets the frequency that its VM has. */
	vm_init(&vm, MIB);
	OK(ioctl(vm.fd, KVM_SET_TSC_KHZ, host / 2));
	CHECK_EQ(OK(ioctl(vm.fd, KVM_GET_TSC_KHZ, 0)), host / 2);
	vm_add_vcpu(&vm, 0);
	CHECK_EQ(OK(ioctl(vm.vcpu, KVM_GET_TSC_KHZ, 0)), host / 2);
	CHECK(get_msr(&vm, MSR_TSC, &a) && a < host * 1000 * 100);
}

/* Where the processor does not scale TSCs a slower one cannot be had, and a faster one catches up at every entry. */
GUEST64(two_tscs,
	"1: rdtsc; shl $32, %rdx; or %rdx, %rax; mov %rax, " STR(G_CELLS) "; out %al, $0x10; jmp 1b\n");
GUEST64(fast_deadline,
	"mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx); movl $0x40060, 0x320(%rbx); mov $0x6e0, %ecx\n"
	"rdtsc; shl $32, %rdx; or %rax, %rdx; add %rdi, %rdx; mov %rdx, %r8; mov %edx, %eax; shr $32, %rdx; wrmsr\n"
	"2: sti; hlt; cli; cmpq $0, " STR(G_LOG) "; je 2b\n"
	"rdtsc; shl $32, %rdx; or %rdx, %rax; sub %r8, %rax; mov %rax, " STR(G_CELLS) "; out %al, $0x11\n");

TEST(tsc_catches_up)
{
	uint64_t host, a, b, ha, hb, now;
	struct kvm_cpuid2 *table;
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, two_tscs);
	if (OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL)))
		skip("the processor scales TSCs");
	if (!is_rvmm())
		skip("whether KVM's catches up within a test goes by its own clock");
	host = OK(ioctl(vm.vcpu, KVM_GET_TSC_KHZ, 0));
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_TSC_KHZ, host / 2), EINVAL);
	OK(ioctl(vm.vcpu, KVM_SET_TSC_KHZ, host * 3));
	CHECK_EQ(OK(ioctl(vm.vcpu, KVM_GET_TSC_KHZ, 0)), host * 3);
	vm_expect_out(&vm, 0x10);
	vm_expect_out(&vm, 0x10);
	ha = __builtin_ia32_rdtsc();
	vm_expect_out(&vm, 0x10);
	a = vm_cells(&vm)[0];
	usleep(100000);
	hb = __builtin_ia32_rdtsc();
	vm_expect_out(&vm, 0x10);
	b = vm_cells(&vm)[0];
	CHECK(get_msr(&vm, MSR_TSC, &now) && now >= b);
	double rate = (double)(b - a) / (hb - ha);
	if (rate < 2.5)
		FAIL("%g ticks for one of the host's, 3 expected", rate);
	note("%g ticks for one of the host's", rate);
	/* Back to what it was: it goes on, at the host's rate. */
	OK(ioctl(vm.vcpu, KVM_SET_TSC_KHZ, host));
	vm_free(&vm);

	/* A deadline comes in its time, and not before the guest's TSC says so. */
	VM_NEW_LONG_IRQCHIP(&vm, fast_deadline);
	table = supported_cpuid(vm.kvm);
	cpuid_entry(table, 1, 0)->ecx |= 1 << 24;
	OK(ioctl(vm.vcpu, KVM_SET_CPUID2, table));
	free(table);
	OK(ioctl(vm.vcpu, KVM_SET_TSC_KHZ, host * 3));
	r = vm_regs(&vm);
	r.rdi = host * 3 * 200;		/* 200 ms */
	vm_set_regs(&vm, &r);
	ha = __builtin_ia32_rdtsc();
	vm_expect_out(&vm, 0x11);
	hb = __builtin_ia32_rdtsc() - ha;
	CHECK((int64_t)vm_cells(&vm)[0] >= 0);
	if (hb < host * 190)
		FAIL("%llu ticks of the host's", (unsigned long long)hb);
	vm_free(&vm);

	/* The VM's is taken as it is, as long as it has no vCPU. */
	vm_init(&vm, MIB);
	OK(ioctl(vm.fd, KVM_SET_TSC_KHZ, host / 2));
	OK(ioctl(vm.fd, KVM_SET_TSC_KHZ, host * 2));
	CHECK_EQ(OK(ioctl(vm.fd, KVM_GET_TSC_KHZ, 0)), host * 2);
	vm_add_vcpu(&vm, 0);
	CHECK_EQ(OK(ioctl(vm.vcpu, KVM_GET_TSC_KHZ, 0)), host * 2);
}

/* KVM_CAP_ENFORCE_PV_FEATURE_CPUID: without their CPUID bits the MSRs are not there. */
TEST(enforced_features)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = { 1 } };
	struct kvm_cpuid2 *table;
	struct vm vm;
	uint64_t v;

	vm_new(&vm, MIB);
	table = supported_cpuid(vm.kvm);
	cpuid_entry(table, 0x40000001, 0)->eax &= ~(1u << 3);
	OK(ioctl(vm.vcpu, KVM_SET_CPUID2, table));
	CHECK(set_msr(&vm, MSR_SYSTEM_TIME, 0x1000));
	OK(ioctl(vm.vcpu, KVM_ENABLE_CAP, &cap));
	CHECK(!set_msr(&vm, MSR_SYSTEM_TIME, 0x2000));
	CHECK(set_msr(&vm, MSR_SYSTEM_TIME_OLD, 0x3000));
	CHECK(get_msr(&vm, MSR_SYSTEM_TIME_OLD, &v) && v == 0x3000);
	cap.args[0] = 0;
	OK(ioctl(vm.vcpu, KVM_ENABLE_CAP, &cap));
	CHECK(set_msr(&vm, MSR_SYSTEM_TIME, 0x1000));
	cap.flags = 1;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_ENABLE_CAP, &cap), EINVAL);
	cap.flags = 0;
	cap.cap = 9999;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_ENABLE_CAP, &cap), EINVAL);
}
