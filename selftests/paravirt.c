// SPDX-License-Identifier: GPL-2.0
/* KVM's hypercalls and the MSRs by which guests ask for help: steal time, ends of interrupts in memory. */
#define _GNU_SOURCE
#include "vm.h"
#include <pthread.h>
#include <sched.h>
#include <time.h>

#define MSR_STEAL_TIME	0x4b564d03
#define MSR_PV_EOI_EN	0x4b564d04
#define MSR_POLL_CONTROL	0x4b564d05

#define HC_VAPIC_POLL_IRQ	1
#define HC_KICK_CPU		5
#define HC_CLOCK_PAIRING	9
#define HC_SEND_IPI		10
#define HC_SCHED_YIELD		11

#define FEATURE_PV_TLB_FLUSH	(1 << 9)
#define FEATURE_POLL_CONTROL	(1 << 12)
#define FEATURE_PV_SCHED_YIELD	(1 << 13)

#define EOI 0xfee000b0

/* RBX: the APIC's page; software-enabled. */
#define APIC "mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx)\n"
/* VMCALL; vm_hypercalls() makes it the vendor's. */
#define VMCALL ".byte 0x0f, 0x01, 0xc1\n"

/* A hypercall with the registers as the test set them; what it caused is taken; its result goes out. */
GUEST64(call, APIC "out %al, $0x0f; 1: " VMCALL "sti; nop; nop; cli; out %eax, $0x10; jmp 1b\n");
GUEST64(wrmsrs, "1: wrmsr; out %al, $0x10; jmp 1b\n");
GUEST64(sleeper, "cli; hlt; out %al, $0x11; hlt; out %al, $0x12\n");

static void new_vm(struct vm *vm, const unsigned char *code, const unsigned char *end)
{
	vm_new_irqchip(vm, 4 * MIB);
	vm_long(vm, code, end);
	vm_hypercalls(vm, end - code);
	vm_log(vm)->eoi = EOI;
}

#define NEW(vm, code) new_vm(vm, code, code##_end)

static int64_t hypercall(struct vm *vm, uint64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	struct kvm_regs r = vm_regs(vm);

	r.rax = nr;
	r.rbx = a;
	r.rcx = b;
	r.rdx = c;
	r.rsi = d;
	vm_set_regs(vm, &r);
	vm_expect_out(vm, 0x10);
	return vm_regs(vm).rax;
}

/*
 * Runs the guest to its first hypercall. OUT has not been stepped over at the exit, so the registers are set after a
 * KVM_RUN that only does that.
 */
static void start(struct vm *vm)
{
	vm_expect_out(vm, 0x0f);
	vm_complete(vm);
}

static int64_t call_next(struct vm *vm, uint64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	int64_t result = hypercall(vm, nr, a, b, c, d);

	vm_complete(vm);
	return result;
}

TEST(send_ipi)
{
	struct vm vm;

	NEW(&vm, call);
	start(&vm);
	CHECK_EQ(call_next(&vm, HC_SEND_IPI, 1, 0, 0, 0x44), 1);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 0x44);
	/* The second bitmap goes on where the first ends; the bits count from the lowest ID on. */
	CHECK_EQ(call_next(&vm, HC_SEND_IPI, 0, 1, (uint32_t)-64, 0x45), 1);
	CHECK_EQ(call_next(&vm, HC_SEND_IPI, 1ull << 3, 0, (uint32_t)-3, 0x46), 0);
	CHECK_EQ(call_next(&vm, HC_SEND_IPI, ~1ull, ~0ull, 0, 0x47), 0);
	/* An IPI can be an NMI. */
	CHECK_EQ(call_next(&vm, HC_SEND_IPI, 1, 0, 0, 0x400), 1);
	CHECK_EQ(vm_log(&vm)->event[vm_log(&vm)->count - 1].vector, 2);
	/* Logical destinations and shorthands have no place here. */
	CHECK_EQ(call_next(&vm, HC_SEND_IPI, 1, 0, 0, 0x844), -22);
	CHECK_EQ(call_next(&vm, HC_SEND_IPI, 1, 0, 0, 0x40044), -22);
	CHECK_EQ(call_next(&vm, HC_VAPIC_POLL_IRQ, 0, 0, 0, 0), 0);
	CHECK_EQ(call_next(&vm, 77, 0, 0, 0, 0), -1000);
	CHECK_EQ(call_next(&vm, 1ull << 32 | HC_SEND_IPI, 1, 0, 0, 0x44), -1000);
}

static void *run_sleeper(void *argument)
{
	struct vm *vm = argument;

	vm_expect_out(vm, 0x11);
	return NULL;
}

/* HLT with interrupts off ends by a kick, and one that came before is not lost. */
TEST(kick)
{
	struct kvm_mp_state mp = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct kvm_regs r;
	struct vm vm, ap;
	pthread_t thread;

	NEW(&vm, call);
	ap = vm_second_vcpu(&vm, 1);
	memcpy(vm.mem + G_DATA, sleeper, sleeper_end - sleeper);
	vm_long_state(&ap);
	r = vm_regs(&ap);
	r.rip = G_DATA;
	vm_set_regs(&ap, &r);
	OK(ioctl(ap.vcpu, KVM_SET_MP_STATE, &mp));
	start(&vm);
	REQUIRE(!pthread_create(&thread, NULL, run_sleeper, &ap));
	usleep(100000);
	CHECK_EQ(call_next(&vm, HC_KICK_CPU, 0, 5, 0, 0), 0);
	CHECK_EQ(call_next(&vm, HC_KICK_CPU, 0, 1, 0, 0), 0);
	pthread_join(thread, NULL);
	CHECK_EQ(call_next(&vm, HC_KICK_CPU, 0, 1, 0, 0), 0);
	vm_expect_out(&ap, 0x12);
}

TEST(clock_pairing)
{
	struct {
		int64_t sec, nsec;
		uint64_t tsc;
		uint32_t flags, pad[9];
	} *p;
	int64_t result;
	struct vm vm;

	NEW(&vm, call);
	p = (void *)(vm.mem + G_DATA);
	memset(p, 0xee, sizeof(*p));
	start(&vm);
	result = call_next(&vm, HC_CLOCK_PAIRING, G_DATA, 0, 0, 0);
	if (result == -95)
		skip("the host's clock is not its TSC");
	CHECK_EQ(result, 0);
	CHECK(p->sec - time(NULL) <= 0 && time(NULL) - p->sec < 60);
	CHECK(p->nsec >= 0 && p->nsec < 1000000000);
	CHECK(p->tsc && p->tsc < 1ull << 50);
	CHECK(!p->flags && !p->pad[0] && !p->pad[8]);
	CHECK_EQ(call_next(&vm, HC_CLOCK_PAIRING, G_DATA, 1, 0, 0), -95);
	CHECK_EQ(call_next(&vm, HC_CLOCK_PAIRING, G_MMIO, 0, 0, 0), -14);
}

/* With KVM_CAP_ENFORCE_PV_FEATURE_CPUID a hypercall needs its CPUID bit. */
TEST(enforced_features)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = { 1 } };
	struct kvm_cpuid2 *table;
	struct vm vm;

	NEW(&vm, call);
	table = supported_cpuid(vm.kvm);
	CHECK(cpuid_entry(table, 0x40000001, 0)->eax & 1 << 7);
	CHECK(cpuid_entry(table, 0x40000001, 0)->eax & 1 << 11);
	cpuid_entry(table, 0x40000001, 0)->eax &= ~(1 << 11);
	OK(ioctl(vm.vcpu, KVM_SET_CPUID2, table));
	start(&vm);
	CHECK_EQ(call_next(&vm, HC_SEND_IPI, 1, 0, 0, 0x44), 1);
	OK(ioctl(vm.vcpu, KVM_ENABLE_CAP, &cap));
	CHECK_EQ(call_next(&vm, HC_SEND_IPI, 1, 0, 0, 0x44), -1000);
	CHECK_EQ(call_next(&vm, HC_KICK_CPU, 0, 7, 0, 0), 0);
}

struct steal_time {
	uint64_t steal;
	uint32_t version, flags;
	uint8_t preempted;
};

TEST(steal_time)
{
	struct steal_time *st;
	struct kvm_regs r;
	uint32_t version;
	uint64_t v, steal;
	struct vm vm;

	VM_NEW_LONG(&vm, wrmsrs);
	if (!OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_STEAL_TIME)))
		skip("not kept by this kernel");
	st = (void *)(vm.mem + G_DATA);
	for (uint64_t bit = 2; bit < 0x40; bit <<= 1)
		CHECK(!set_msr(&vm, MSR_STEAL_TIME, G_DATA | bit | 1));
	st->preempted = 1;
	st->version = 7;
	r = vm_regs(&vm);
	r.rcx = MSR_STEAL_TIME;
	r.rax = G_DATA | 1;
	r.rdx = 0;
	vm_set_regs(&vm, &r);
	vm_expect_out(&vm, 0x10);
	CHECK(get_msr(&vm, MSR_STEAL_TIME, &v) && v == (G_DATA | 1));
	CHECK(st->version > 7 && !(st->version & 1));
	CHECK_EQ(st->preempted, 0);
	CHECK_EQ(st->flags, 0);
	version = st->version;
	steal = st->steal;
	vm_expect_out(&vm, 0x10);
	CHECK(st->version > version && !(st->version & 1));
	CHECK(st->steal >= steal);
	/* No memory: nobody minds. Off: nothing is written. */
	CHECK(set_msr(&vm, MSR_STEAL_TIME, G_MMIO | 1));
	r = vm_regs(&vm);
	r.rax = G_MMIO | 1;
	vm_set_regs(&vm, &r);
	vm_expect_out(&vm, 0x10);
	CHECK(set_msr(&vm, MSR_STEAL_TIME, 0));
	r = vm_regs(&vm);
	r.rax = 0;
	vm_set_regs(&vm, &r);
	version = st->version;
	vm_expect_out(&vm, 0x10);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(st->version, version);
}

/*
 * Interrupts to itself, each ended by clearing the bit if it is set, else by the register: all arrive, one after
 * the other. G_CELLS counts those ended in memory, G_CELLS+8 the others. Before every second end there is an exit.
 */
GUEST64(pv_eoi,
	APIC "mov $0x4b564d04, %ecx; mov $" STR(G_DATA) "+1, %eax; xor %edx, %edx; wrmsr\n"
	"mov $20, %r8d\n"
	"1: movl $0, 0x310(%rbx); movl $0x44055, 0x300(%rbx); sti; nop; nop; cli\n"
	"test $1, %r8d; jz 2f; out %al, $0x10\n"
	"2: btrl $0, " STR(G_DATA) "; jc 3f; movl $0, 0xb0(%rbx); incq " STR(G_CELLS) "+8; jmp 4f\n"
	"3: incq " STR(G_CELLS) "\n"
	"4: dec %r8d; jnz 1b; out %al, $0x11\n");

TEST(eoi_in_memory)
{
	struct kvm_lapic_state l;
	struct vm vm;
	uint64_t v;

	NEW(&vm, pv_eoi);
	vm_log(&vm)->eoi = 0;
	for (int i = 0; i < 10; i++) {
		vm_expect_out(&vm, 0x10);
		CHECK_EQ(vm_log(&vm)->count, 2 + 2 * i);
		/* In service, whatever memory says. */
		OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &l));
		CHECK_EQ(*(uint32_t *)(l.regs + 0x120), 1 << 21);
	}
	vm_expect_out(&vm, 0x11);
	CHECK_EQ(vm_log(&vm)->count, 20);
	OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &l));
	CHECK_EQ(*(uint32_t *)(l.regs + 0x120), 0);
	CHECK_EQ(vm_cells(&vm)[0] + vm_cells(&vm)[1], 20);
	note("%llu of 20 ended in memory", (unsigned long long)vm_cells(&vm)[0]);
	/* Processors that virtualise the local APIC do not need it. */
	if (is_amd())
		CHECK(vm_cells(&vm)[0] >= 5);
	CHECK(get_msr(&vm, MSR_PV_EOI_EN, &v) && v == (G_DATA | 1));
	CHECK(!set_msr(&vm, MSR_PV_EOI_EN, (G_DATA + 2) | 1));
	CHECK(set_msr(&vm, MSR_PV_EOI_EN, 0));
}

static struct kvm_cpuid_entry2 *features(struct kvm_cpuid2 *table)
{
	return cpuid_entry(table, 0x40000001, 0);
}

static void without_feature(struct vm *vm, uint32_t feature)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = { 1 } };
	struct kvm_cpuid2 *table = supported_cpuid(vm->kvm);

	features(table)->eax &= ~feature;
	OK(ioctl(vm->vcpu, KVM_SET_CPUID2, table));
	OK(ioctl(vm->vcpu, KVM_ENABLE_CAP, &cap));
}

/* A statistic of the vCPU (api.rst 4.133); 0 if there is none of that name. */
static uint64_t statistic(struct vm *vm, const char *name)
{
	struct kvm_stats_header h;
	struct {
		struct kvm_stats_desc d;
		char name[256];
	} desc;
	uint64_t value = 0;
	int fd = OK(ioctl(vm->vcpu, KVM_GET_STATS_FD, NULL));

	REQUIRE(pread(fd, &h, sizeof(h), 0) == sizeof(h) && h.name_size <= sizeof(desc.name));
	for (unsigned int i = 0; i < h.num_desc; i++) {
		size_t bytes = sizeof(desc.d) + h.name_size;

		REQUIRE(pread(fd, &desc, bytes, h.desc_offset + i * bytes) == (ssize_t)bytes);
		if (!strcmp(desc.name, name))
			REQUIRE(pread(fd, &value, 8, h.data_offset + desc.d.offset) == 8);
	}
	close(fd);
	return value;
}

/*
 * What a vCPU that does not run is left in `preempted`: before it runs again its translations are gone. The guest
 * reads a page; its page tables change behind its back.
 */
#define FLUSHED 0x200000
GUEST64(reader, "1: mov " STR(FLUSHED) ", %eax; out %eax, $0x10; jmp 1b\n");

TEST(tlb_flush)
{
	volatile uint64_t *pd;
	struct steal_time *st;
	uint64_t flushes;
	cpu_set_t one;
	struct vm vm;

	VM_NEW_LONG(&vm, reader);
	if (!OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_STEAL_TIME)))
		skip("not kept by this kernel");
	CHECK(features(supported_cpuid(vm.kvm))->eax & FEATURE_PV_TLB_FLUSH);
	st = (void *)(vm.mem + G_DATA);
	pd = (void *)(vm.mem + G_PD0);
	*(uint32_t *)vm.mem = 2;
	*(uint32_t *)(vm.mem + FLUSHED) = 1;
	CHECK(set_msr(&vm, MSR_STEAL_TIME, G_DATA | 1));
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	OK(sched_setaffinity(0, sizeof(one), &one));
	for (int i = 0; i < 20; i++) {
		CHECK_EQ(vm_expect_out(&vm, 0x10), 1);
		CHECK_EQ(st->preempted & 2, 0);
		pd[1] = 0xe7;
		flushes = statistic(&vm, "tlb_flush");
		st->preempted = 3;
		CHECK_EQ(vm_expect_out(&vm, 0x10), 2);
		/* Emulators flush more often than they have to, so the page alone proves nothing. */
		CHECK(statistic(&vm, "tlb_flush") > flushes);
		CHECK_EQ(st->preempted & 2, 0);
		pd[1] = FLUSHED | 0xe7;
		st->preempted = 2;
	}
}

static void *spin(void *argument)
{
	vm_expect_out(argument, 0x11);
	return NULL;
}

GUEST64(spinner, "sti; 1: pause; cmpq $0, " STR(G_CELLS) "; je 1b; out %al, $0x11\n");

/* A vCPU whose CPU another thread has is marked as preempted; after it has run on, no longer. */
TEST(preempted)
{
	volatile struct steal_time *st;
	cpu_set_t one;
	pthread_t thread;
	struct vm vm;
	int seen = 0;

	NEW(&vm, spinner);
	if (!OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_STEAL_TIME)))
		skip("not kept by this kernel");
	st = (void *)(vm.mem + G_DATA);
	CHECK(set_msr(&vm, MSR_STEAL_TIME, G_DATA | 1));
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	OK(sched_setaffinity(0, sizeof(one), &one));
	REQUIRE(!pthread_create(&thread, NULL, spin, &vm));
	/* While this thread runs the other one, on the same CPU, does not. */
	for (int i = 0; i < 10000 && !seen; i++) {
		usleep(1000);
		seen = st->preempted == 1;
	}
	vm_cells(&vm)[0] = 1;
	pthread_join(thread, NULL);
	CHECK(seen);
	CHECK_EQ(st->preempted, 0);
}

TEST(sched_yield_call)
{
	struct vm vm, ap;

	NEW(&vm, call);
	ap = vm_second_vcpu(&vm, 1);
	CHECK(features(supported_cpuid(vm.kvm))->eax & FEATURE_PV_SCHED_YIELD);
	start(&vm);
	/* The hypercall names the caller itself, another one, nobody. */
	for (uint64_t id = 0; id < 3; id++)
		CHECK_EQ(call_next(&vm, HC_SCHED_YIELD, id, 0, 0, 0), 0);
	CHECK_EQ(call_next(&vm, HC_SCHED_YIELD, ~0ull, 0, 0, 0), 0);
	close(ap.vcpu);
	NEW(&vm, call);
	without_feature(&vm, FEATURE_PV_SCHED_YIELD);
	start(&vm);
	CHECK_EQ(call_next(&vm, HC_SCHED_YIELD, 1, 0, 0, 0), -1000);
}

TEST(poll_control)
{
	struct kvm_regs r;
	struct vm vm;
	uint64_t v;

	VM_NEW_LONG(&vm, wrmsrs);
	CHECK(features(supported_cpuid(vm.kvm))->eax & FEATURE_POLL_CONTROL);
	CHECK(get_msr(&vm, MSR_POLL_CONTROL, &v) && v == 1);
	for (uint64_t value = 0; value < 2; value++) {
		CHECK(set_msr(&vm, MSR_POLL_CONTROL, value));
		CHECK(get_msr(&vm, MSR_POLL_CONTROL, &v) && v == value);
	}
	CHECK(!set_msr(&vm, MSR_POLL_CONTROL, 2));
	CHECK(!set_msr(&vm, MSR_POLL_CONTROL, 1ull << 63));
	/* The guest writes the MSR as user space does. */
	r = vm_regs(&vm);
	r.rcx = MSR_POLL_CONTROL;
	r.rax = r.rdx = 0;
	vm_set_regs(&vm, &r);
	vm_expect_out(&vm, 0x10);
	CHECK(get_msr(&vm, MSR_POLL_CONTROL, &v) && v == 0);
	VM_NEW_LONG(&vm, wrmsrs);
	without_feature(&vm, FEATURE_POLL_CONTROL);
	CHECK(!set_msr(&vm, MSR_POLL_CONTROL, 1));
}
