// SPDX-License-Identifier: GPL-2.0
/*
 * VMs with hundreds of vCPUs, ids beyond 8 bits: whom messages reach, whatever they come from (SDM 3A 11.6.2,
 * 11.12.10).
 */
#define _GNU_SOURCE
#include "vm.h"
#include <pthread.h>
#include <sys/resource.h>

#define VCPUS	320
#define HC_SEND_IPI	10

static struct vm vcpus[VCPUS];
static unsigned int ids[VCPUS];
static struct kvm_lapic_state lapics[VCPUS];

/* Ids are indices first, then have gaps, up to 1276. Three clusters of 16 ids are met in the tests: 0, 43 and 79. */
static unsigned int id_of(unsigned int i)
{
	return i < 20 ? i : 4 * i;
}

/* A VM with 32-bit ids, and `n` vCPUs that are not mapped. */
static struct vm many(unsigned int n, unsigned int (*id)(unsigned int))
{
	struct kvm_enable_cap api = { .cap = KVM_CAP_X2APIC_API, .args = { 3 } };
	struct kvm_cpuid2 *table;
	struct vm vm;

	vm_init_irqchip(&vm, 4 * MIB);
	if (ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS) < (int)n)
		skip("fewer than %u vCPUs", n);
	OK(ioctl(vm.fd, KVM_ENABLE_CAP, &api));
	table = supported_cpuid(vm.kvm);
	for (unsigned int i = 0; i < n; i++) {
		vcpus[i] = vm;
		ids[i] = id(i);
		vcpus[i].vcpu = OK(ioctl(vm.fd, KVM_CREATE_VCPU, ids[i]));
		OK(ioctl(vcpus[i].vcpu, KVM_SET_CPUID2, table));
	}
	free(table);
	return vm;
}

static void map(struct vm *vcpu)
{
	vcpu->run = mmap(NULL, vcpu->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->vcpu, 0);
	REQUIRE(vcpu->run != MAP_FAILED);
}

static struct vm *with_id(unsigned int n, unsigned int id)
{
	for (unsigned int i = 0; i < n; i++)
		if (ids[i] == id)
			return &vcpus[i];
	DIE("no id %u", id);
}

static void x2apic_on(struct vm *vcpu)
{
	struct kvm_sregs s = vm_sregs(vcpu);

	s.apic_base |= 0xc00;
	vm_set_sregs(vcpu, &s);
	REQUIRE(set_msr(vcpu, 0x80f, 0x1ff));
}

static void read_lapics(unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		OK(ioctl(vcpus[i].vcpu, KVM_GET_LAPIC, &lapics[i]));
}

static bool in_irr(unsigned int i, unsigned int vector)
{
	return *(uint32_t *)(lapics[i].regs + 0x200 + vector / 32 * 16) >> vector % 32 & 1;
}

/* The vector waits in the APICs of those vCPUs, and of no others. Returns how many there are. */
#define CHECK_REACHED(n, vector, who) ({						\
	unsigned int reached_ = 0;							\
	for (unsigned int i = 0; i < (n); i++) {					\
		unsigned int id = ids[i];						\
		bool want_ = (who);							\
		reached_ += in_irr(i, vector);						\
		if (in_irr(i, vector) != want_)						\
			FAIL("vector %#x, id %u: %d", vector, id, !want_);		\
		(void)id;								\
	}										\
	reached_;									\
})

static void signal_msi(struct vm *vm, uint32_t dest, uint32_t bits, uint32_t data)
{
	struct kvm_msi m = { .address_hi = dest & ~0xff, .address_lo = 0xfee00000 | (dest & 0xff) << 12 | bits,
			     .data = data };

	/* Nobody there is no error of the caller's; KVM says EPERM. */
	if (ioctl(vm->fd, KVM_SIGNAL_MSI, &m) < 0)
		CHECK_EQ(errno, EPERM);
}

/* VCPUS of them in x2APIC mode; the first one's memory is mapped. */
static struct vm many_x2apic(void)
{
	struct vm vm = many(VCPUS, id_of);

	for (unsigned int i = 0; i < VCPUS; i++)
		x2apic_on(&vcpus[i]);
	map(&vcpus[0]);
	return vm;
}

/* RSI: values of the ICR, RDI: how many. */
GUEST64(send,
	"1: mov $0x830, %ecx; mov (%rsi), %eax; mov 4(%rsi), %edx; wrmsr\n"
	"add $8, %rsi; dec %rdi; jnz 1b; out %al, $0x10\n");

#define ICR(dest, low) ((uint64_t)(dest) << 32 | (low))
#define CLUSTER(id) ((uint32_t)(id) >> 4 << 16)
#define LOGICAL 0x800
#define LOWEST 0x100

TEST_SECONDS(x2apic_ipis, 240)
{
	const uint64_t icrs[] = {
		ICR(700, 0x4040),
		ICR(CLUSTER(700) | 0x1100, 0x4041 | LOGICAL),
		ICR(0xffffffff, 0x4042),
		ICR(0, 0xc4043),				/* all but the sender */
		ICR(0, 0x84044),				/* all */
		ICR(CLUSTER(700) | 0x1111, 0x4045 | LOGICAL | LOWEST),
		ICR(12, 0x4046),				/* not 268, 524, ... */
		ICR(0xff, 0x4047 | LOGICAL),			/* a set of cluster 0, not a broadcast */
		ICR(701, 0x4048),				/* nobody */
		ICR(0xffffffff, 0x4049 | LOGICAL),
		ICR(CLUSTER(1276) | 0x1000, 0x404a | LOGICAL),
		ICR(0xff, 0x404b),				/* id 255, which is nobody */
		ICR(0, 0x4404c),				/* the sender */
	};
	struct kvm_regs r;
	struct vm vm;

	vm = many_x2apic();
	vm_long(&vcpus[0], send, send_end);
	memcpy(vm.mem + G_DATA, icrs, sizeof(icrs));
	r = vm_regs(&vcpus[0]);
	r.rsi = G_DATA;
	r.rdi = ARRAY_SIZE(icrs);
	vm_set_regs(&vcpus[0], &r);
	x2apic_on(&vcpus[0]);
	vm_expect_out(&vcpus[0], 0x10);
	signal_msi(&vm, 1276, 0, 0x60);
	signal_msi(&vm, CLUSTER(12), 4, 0x61);
	signal_msi(&vm, 0xffffffff, 0, 0x62);
	signal_msi(&vm, CLUSTER(700) | 0x11, 4, 0x63);
	signal_msi(&vm, 0xff, 4, 0x64);
	read_lapics(VCPUS);
	CHECK_REACHED(VCPUS, 0x40, id == 700);
	CHECK_REACHED(VCPUS, 0x41, id == 696 || id == 700);
	CHECK_REACHED(VCPUS, 0x42, true);
	CHECK_REACHED(VCPUS, 0x43, id != 0);
	CHECK_REACHED(VCPUS, 0x44, true);
	CHECK_EQ(CHECK_REACHED(VCPUS, 0x45, id >> 4 == 43 && in_irr(i, 0x45)), 1);
	CHECK_REACHED(VCPUS, 0x46, id == 12);
	CHECK_REACHED(VCPUS, 0x47, id < 8);
	CHECK_REACHED(VCPUS, 0x48, false);
	CHECK_REACHED(VCPUS, 0x49, true);
	CHECK_REACHED(VCPUS, 0x4a, id == 1276);
	CHECK_REACHED(VCPUS, 0x4b, false);
	CHECK_REACHED(VCPUS, 0x4c, id == 0);
	CHECK_REACHED(VCPUS, 0x60, id == 1276);
	CHECK_REACHED(VCPUS, 0x61, false);
	CHECK_REACHED(VCPUS, 0x62, true);
	CHECK_REACHED(VCPUS, 0x63, id == 688 || id == 692);
	CHECK_REACHED(VCPUS, 0x64, id < 8);
}

static unsigned int id_with_gap(unsigned int i)
{
	return i < 90 ? i : 300 + i;
}

/* Logical and physical ids in xAPIC mode are what the guest makes of them. */
TEST_SECONDS(xapic_messages, 240)
{
	const unsigned int n = 100;
	struct vm vm;

	vm = many(n, id_with_gap);
	read_lapics(n);
	for (unsigned int i = 0; i < n; i++) {
		char *regs = lapics[i].regs;

		*(uint32_t *)(regs + 0xf0) = 0x1ff;
		*(uint32_t *)(regs + 0xd0) = (i >= 60 ? 1u << i % 8 : 0) << 24;
		if (i >= 95) {
			/* Clusters: 4 and 5. */
			*(uint32_t *)(regs + 0xe0) = 0x0fffffff;
			*(uint32_t *)(regs + 0xd0) = (i == 95 ? 0x41u : 0x52) << 24;
		}
		if (i == 80)
			*(uint32_t *)(regs + 0x20) = 200u << 24;
		OK(ioctl(vcpus[i].vcpu, KVM_SET_LAPIC, &lapics[i]));
	}
	/* One leaves xAPIC mode and is not found by its logical id any more. */
	x2apic_on(&vcpus[66]);
	signal_msi(&vm, 0x04, 4, 0x40);
	signal_msi(&vm, 0x43, 4, 0x41);
	signal_msi(&vm, 17, 0, 0x42);
	signal_msi(&vm, 390, 0, 0x43);
	signal_msi(&vm, 200, 0, 0x44);
	signal_msi(&vm, 80, 0, 0x45);
	signal_msi(&vm, 0xff, 0, 0x46);
	signal_msi(&vm, 66, 0, 0x47);
	read_lapics(n);
	CHECK_REACHED(n, 0x40, i >= 60 && i < 95 && i != 66 && i % 8 == 2);
	CHECK_REACHED(n, 0x41, i == 95 || (i >= 60 && i < 95 && i != 66 && 0x43 >> i % 8 & 1));
	CHECK_REACHED(n, 0x42, id == 17);
	CHECK_REACHED(n, 0x43, id == 390);
	CHECK_REACHED(n, 0x44, i == 80);
	CHECK_REACHED(n, 0x45, false);
	/* Without the quirk of broadcasts 0xff is one for xAPICs alone. */
	CHECK_REACHED(n, 0x46, i != 66);
	CHECK_REACHED(n, 0x47, i == 66);
}

/* RSI: where to begin, in steps of 128 ids; VMCALL. R9: how many were reached. */
GUEST64(hypercalls,
	"xor %r9, %r9; 1: mov $10, %eax; mov $-1, %rbx; mov $-1, %rcx; mov %rdi, %rdx; mov $0x4051, %esi\n"
	".byte 0x0f, 0x01, 0xc1\n"
	"add %rax, %r9; add $128, %rdi; cmp $4096, %rdi; jb 1b\n"
	"mov %r9, %rax; out %eax, $0x10\n");

TEST_SECONDS(send_ipi, 240)
{
	struct kvm_regs r;
	struct vm vm;

	vm = many_x2apic();
	vm_long(&vcpus[0], hypercalls, hypercalls_end);
	vm_hypercalls(&vm, hypercalls_end - hypercalls);
	r = vm_regs(&vcpus[0]);
	r.rdi = 8;
	vm_set_regs(&vcpus[0], &r);
	x2apic_on(&vcpus[0]);
	CHECK_EQ(vm_expect_out(&vcpus[0], 0x10), VCPUS - 8);
	read_lapics(VCPUS);
	CHECK_REACHED(VCPUS, 0x51, id >= 8);
}

/* Sleeps until the interrupt comes, whose handler goes out. */
GUEST64(sleeper,
	"lock incq " STR(G_CELLS) "; 1: sti; hlt; jmp 1b\n");
GUEST64(woken, "out %al, $0x11\n");
/* Wakes everybody but itself. */
GUEST64(waker,
	"1: pause; cmpq $4, " STR(G_CELLS) "; jb 1b\n"
	"mov $0x830, %ecx; xor %edx, %edx; mov $0xc4061, %eax; wrmsr; out %al, $0x10\n");

static void *run_thread(void *vcpu)
{
	vm_expect(vcpu, KVM_EXIT_IO);
	CHECK_EQ(((struct vm *)vcpu)->run->io.port, 0x11);
	return NULL;
}

TEST_SECONDS(broadcast_wakes, 240)
{
	const unsigned int sleepers[] = { 1, 80, 700, 1276 };
	struct kvm_mp_state runnable = { KVM_MP_STATE_RUNNABLE };
	pthread_t threads[ARRAY_SIZE(sleepers)];
	struct kvm_regs r;
	struct vm vm;

	vm = many_x2apic();
	vm_long(&vcpus[0], waker, waker_end);
	x2apic_on(&vcpus[0]);
	memcpy(vm.mem + G_STUBS + 16 * 0x61, woken, woken_end - woken);
	memcpy(vm.mem + G_CODE + 0x1000, sleeper, sleeper_end - sleeper);
	for (unsigned int i = 0; i < ARRAY_SIZE(sleepers); i++) {
		struct vm *v = with_id(VCPUS, sleepers[i]);

		map(v);
		vm_long_state(v);
		r = vm_regs(v);
		r.rip = G_CODE + 0x1000;
		r.rsp = G_DATA + 0x1000 * (i + 1);
		vm_set_regs(v, &r);
		x2apic_on(v);
		OK(ioctl(v->vcpu, KVM_SET_MP_STATE, &runnable));
		REQUIRE(!pthread_create(&threads[i], NULL, run_thread, v));
	}
	vm_expect_out(&vcpus[0], 0x10);
	for (unsigned int i = 0; i < ARRAY_SIZE(sleepers); i++)
		REQUIRE(!pthread_join(threads[i], NULL));
}

/* As many as there may be, with the highest ids; then one more. */
TEST_SECONDS(all_of_them, 240)
{
	struct rlimit files = { 4096, 4096 };
	struct vm vm;
	long max, max_id;

	vm_init_irqchip(&vm, MIB);
	max = OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS));
	max_id = OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPU_ID));
	CHECK(max >= 1024);
	CHECK(max_id >= 4 * max);
	if (max > 1024)
		skip("takes %ld vCPUs", max);
	if (setrlimit(RLIMIT_NOFILE, &files))
		skip("setrlimit: %s", strerrorname(errno));
	for (long i = 0; i < max; i++)
		close(OK(ioctl(vm.fd, KVM_CREATE_VCPU, max_id - 1 - i)));
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_VCPU, 0), EINVAL);
}
