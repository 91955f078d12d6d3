// SPDX-License-Identifier: GPL-2.0
/*
 * Hyper-V's interface (TLFS): CPUID, synthetic interrupts and timers, ends of interrupts, events. Hypercalls to other
 * vCPUs, the reference TSC page and what CPUID forbids are KVM's own selftests' business (tools/kvm-selftests).
 */
#define _GNU_SOURCE
#include "vm.h"
#include <sys/eventfd.h>

#define MSR_GUEST_OS_ID	0x40000000
#define MSR_HYPERCALL	0x40000001
#define MSR_VP_INDEX	0x40000002
#define MSR_EOI		0x40000070
#define MSR_TPR		0x40000072
#define MSR_ASSIST_PAGE	0x40000073
#define MSR_SCONTROL	0x40000080
#define MSR_SIEFP	0x40000082
#define MSR_SIMP	0x40000083
#define MSR_EOM		0x40000084
#define MSR_SINT(n)	(0x40000090 + (n))
#define MSR_CONFIG(n)	(0x400000b0 + 2 * (n))
#define MSR_COUNT(n)	(0x400000b1 + 2 * (n))
#define MSR_CRASH_P(n)	(0x40000100 + (n))
#define MSR_CRASH_CTL	0x40000105
#define MSR_REFERENCE_TSC	0x40000021
#define MSR_TIME_REF	0x40000020

#define AUTO_EOI	(1ull << 17)
#define ENABLE		1ull
#define DIRECT(vector)	(1ull << 12 | (vector) << 4)
#define TO_SINT(n)	((n) << 16)
/* Long ago: a timer with this count expires at once. */
#define PAST		1

#define PAGE		G_DATA
#define ASSIST_PAGE	(G_DATA + 0x1000)

/* WRMSR as the test has set the registers; what it caused is taken. */
GUEST64(wrmsrs,
	"mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx)\n"
	"out %al, $0x0f; 1: wrmsr; sti; nop; nop; cli; out %al, $0x10; jmp 1b\n");
/* VMCALL; the byte after it is the vendor's. */
GUEST64(calls, "out %al, $0x0f; 1: .byte 0x0f, 0x01, 0xc1; out %al, $0x10; jmp 1b\n");

/* A VM whose CPUID is Hyper-V's from 40000000H on. */
static void new_vm(struct vm *vm, const unsigned char *code, const unsigned char *end)
{
	int kvm = device_open();

	if (ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_SYS_HYPERV_CPUID) <= 0)
		skip("no Hyper-V");
	vm_new_irqchip(vm, 4 * MIB);
	set_hyperv_cpuid(kvm, vm->vcpu);
	close(kvm);
	OK(enable_cap(vm->vcpu, KVM_CAP_HYPERV_SYNIC2, 0));
	vm_long(vm, code, end);
	vm_hypercalls(vm, end - code);
	vm_expect_out(vm, 0x0f);
}

#define NEW(vm, code) new_vm(vm, code, code##_end)

/* The guest's next WRMSR; ends behind it, or at the exit that it causes. */
static void begin(struct vm *vm, uint32_t index, uint64_t value)
{
	vm_complete(vm);

	struct kvm_regs r = vm_regs(vm);

	r.rcx = index;
	r.rax = (uint32_t)value;
	r.rdx = value >> 32;
	vm_set_regs(vm, &r);
}

static void wrmsr(struct vm *vm, uint32_t index, uint64_t value)
{
	begin(vm, index, value);
	vm_expect_out(vm, 0x10);
}

/* The same for one of the registers that user space is told of. */
static void wrmsr_told(struct vm *vm, uint32_t index, uint64_t value)
{
	begin(vm, index, value);
	vm_expect(vm, KVM_EXIT_HYPERV);
	CHECK_EQ(vm->run->hyperv.type, KVM_EXIT_HYPERV_SYNIC);
	CHECK_EQ(vm->run->hyperv.u.synic.msr, index);
	vm_expect_out(vm, 0x10);
}

static uint32_t *slot(struct vm *vm, unsigned int sint)
{
	return (uint32_t *)(vm->mem + PAGE + 256 * sint);
}

static uint64_t last_vector(struct vm *vm)
{
	return vm_log(vm)->count ? vm_log(vm)->event[vm_log(vm)->count - 1].vector : 0;
}

TEST(cpuid)
{
	int kvm = device_open();
	struct vm vm;

	if (ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_SYS_HYPERV_CPUID) <= 0)
		skip("no Hyper-V");

	struct kvm_cpuid2 *table = hyperv_cpuid(kvm);

	CHECK_EQ(table->nent, 10);
	CHECK_EQ(cpuid_entry(table, 0x40000001, 0)->eax, 0x31237648);
	CHECK(cpuid_entry(table, 0x40000003, 0)->edx & 1 << 19);
	/* Timers that post vectors need local APICs in the kernel. */
	vm_new(&vm, 4 * MIB);
	CHECK(!(cpuid_entry(hyperv_cpuid(vm.vcpu), 0x40000003, 0)->edx & 1 << 19));

	struct kvm_cpuid2 none = { };

	CHECK_ERRNO(ioctl(kvm, KVM_GET_SUPPORTED_HV_CPUID, &none), E2BIG);
	/* Nothing without the leaves. */
	CHECK_ERRNO(enable_cap(vm.vcpu, KVM_CAP_HYPERV_SYNIC2, 0), EINVAL);
	vm_new_irqchip(&vm, 4 * MIB);
	VM_LONG(&vm, wrmsrs);
	vm_expect_out(&vm, 0x0f);
	begin(&vm, MSR_GUEST_OS_ID, 1);
	/* Behind the WRMSR. */
	vm_log(&vm)->resume = vm_regs(&vm).rip + 2;
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(last_vector(&vm), 13);
}

TEST(timer_messages)
{
	struct vm vm;

	NEW(&vm, wrmsrs);
	vm_log(&vm)->eoi = LAPIC_EOI;
	wrmsr_told(&vm, MSR_SIMP, PAGE | 1);
	CHECK_EQ(vm.run->hyperv.u.synic.msg_page, PAGE | 1);
	wrmsr_told(&vm, MSR_SCONTROL, 1);
	wrmsr(&vm, MSR_SINT(2), 0x55);
	wrmsr(&vm, MSR_CONFIG(0), ENABLE | TO_SINT(2));
	CHECK_EQ(vm_log(&vm)->count, 0);
	wrmsr(&vm, MSR_COUNT(0), PAST);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(last_vector(&vm), 0x55);
	CHECK_EQ(slot(&vm, 2)[0], 0x80000010);
	CHECK_EQ(slot(&vm, 2)[4], 0);
	CHECK_EQ(*(uint64_t *)&slot(&vm, 2)[6], PAST);
	/* It ran once. */
	uint64_t config;

	CHECK(get_msr(&vm, MSR_CONFIG(0), &config));
	CHECK_EQ(config, TO_SINT(2));
	/* The second one finds the slot full, says so, and comes when it is empty. */
	wrmsr(&vm, MSR_COUNT(3), PAST);
	wrmsr(&vm, MSR_CONFIG(3), ENABLE | TO_SINT(2));
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(slot(&vm, 2)[4], 0);
	CHECK_EQ(slot(&vm, 2)[1] >> 8 & 1, 1);
	slot(&vm, 2)[0] = 0;
	wrmsr(&vm, MSR_EOM, 0);
	CHECK_EQ(vm_log(&vm)->count, 2);
	CHECK_EQ(slot(&vm, 2)[0], 0x80000010);
	CHECK_EQ(slot(&vm, 2)[4], 3);
	/* A masked SINT tells nobody. */
	wrmsr(&vm, MSR_SINT(2), 0x10055);
	slot(&vm, 2)[0] = 0;
	wrmsr(&vm, MSR_CONFIG(0), ENABLE | TO_SINT(2));
	CHECK_EQ(vm_log(&vm)->count, 2);
}

/* Pages that user space brings later: restored registers do not need them, and messages wait for theirs. */
TEST(missing_pages)
{
	const uint64_t at = 0x40000000;
	uint8_t *m = mmap(NULL, 0x3000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vm vm;

	NEW(&vm, wrmsrs);
	if (!has_extension(vm.kvm, RVMM_CAP_MISSING))
		skip("no RVMM_CAP_MISSING");
	REQUIRE(m != MAP_FAILED);
	OK(enable_cap(vm.fd, RVMM_CAP_MISSING, 1));
	vm_slot(&vm, 1, RVMM_MEM_MISSING, at, 0x3000, m);
	vm_log(&vm)->eoi = LAPIC_EOI;
	CHECK(set_msr(&vm, MSR_GUEST_OS_ID, 1));
	CHECK(set_msr(&vm, MSR_HYPERCALL, at | 1));
	CHECK(set_msr(&vm, MSR_ASSIST_PAGE, (at + 0x1000) | 1));
	CHECK(set_msr(&vm, MSR_SIMP, (at + 0x2000) | 1));
	wrmsr(&vm, MSR_SINT(2), 0x55);
	wrmsr(&vm, MSR_COUNT(0), PAST);
	begin(&vm, MSR_CONFIG(0), ENABLE | TO_SINT(2));
	for (int n = 0; n < 2; n++) {
		REQUIRE_EQ(vm_try_run(&vm), EFAULT);
		REQUIRE_EQ(vm.run->exit_reason, KVM_EXIT_MEMORY_FAULT);
		CHECK_EQ(vm.run->memory_fault.gpa, at + 0x2000);
		CHECK(vm.run->memory_fault.flags & RVMM_MEMORY_EXIT_MISSING);
	}
	CHECK_EQ(vm_log(&vm)->count, 0);
	m[0x2000] = 0;
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(*(uint32_t *)(m + 0x2200), 0x80000010);
}

TEST(direct_timer)
{
	struct vm vm;
	uint64_t now, config;

	NEW(&vm, wrmsrs);
	vm_log(&vm)->eoi = LAPIC_EOI;
	wrmsr(&vm, MSR_COUNT(1), PAST);
	wrmsr(&vm, MSR_CONFIG(1), ENABLE | DIRECT(0x66));
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(last_vector(&vm), 0x66);
	/* Much later: not yet; when that time comes, without a write. */
	CHECK(get_msr(&vm, MSR_TIME_REF, &now));
	wrmsr(&vm, MSR_COUNT(1), now + 1000000000);
	wrmsr(&vm, MSR_CONFIG(1), ENABLE | DIRECT(0x67));
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK(get_msr(&vm, MSR_CONFIG(1), &config));
	CHECK_EQ(config, ENABLE | DIRECT(0x67));
	CHECK(get_msr(&vm, MSR_TIME_REF, &now));
	wrmsr(&vm, MSR_COUNT(1), now + 1000);
	wrmsr(&vm, MSR_CONFIG(1), ENABLE | DIRECT(0x67));
	while (vm_log(&vm)->count == 1)
		wrmsr(&vm, MSR_TPR, 0);
	CHECK_EQ(last_vector(&vm), 0x67);
}

/* Nobody ends interrupts: the second comes only where the first has ended by itself. */
static void two_interrupts(uint64_t sint, unsigned int want)
{
	struct vm vm;

	NEW(&vm, wrmsrs);
	vm_log(&vm)->eoi = 0;
	wrmsr(&vm, MSR_SINT(4), sint | 0x71);
	wrmsr(&vm, MSR_COUNT(0), PAST);
	for (int n = 0; n < 2; n++)
		wrmsr(&vm, MSR_CONFIG(0), ENABLE | DIRECT(0x71));
	CHECK_EQ(vm_log(&vm)->count, want);
	/* By hand, in Hyper-V's way. */
	wrmsr(&vm, MSR_EOI, 0);
	CHECK_EQ(vm_log(&vm)->count, 2);
}

TEST(auto_eoi)
{
	two_interrupts(0, 1);
	two_interrupts(AUTO_EOI, 2);
}

static uint32_t lapic_reg(const struct kvm_lapic_state *l, unsigned int offset)
{
	uint32_t value;

	memcpy(&value, l->regs + offset, sizeof(value));
	return value;
}

/* One that waits is in the local APIC's state, for user space to take away or to keep. */
TEST(auto_eoi_waits)
{
	struct kvm_lapic_state l;
	struct vm vm;

	NEW(&vm, wrmsrs);
	vm_log(&vm)->eoi = 0;
	wrmsr(&vm, MSR_SINT(4), AUTO_EOI | 0x71);
	wrmsr(&vm, MSR_COUNT(0), PAST);
	for (unsigned int kept = 0; kept < 2; kept++) {
		wrmsr(&vm, MSR_TPR, 0xf0);
		wrmsr(&vm, MSR_CONFIG(0), ENABLE | DIRECT(0x71));
		CHECK_EQ(vm_log(&vm)->count, 0);
		OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &l));
		CHECK_EQ(lapic_reg(&l, 0x230), 1 << 17);
		if (!kept)
			memset(l.regs + 0x230, 0, 4);
		OK(ioctl(vm.vcpu, KVM_SET_LAPIC, &l));
		wrmsr(&vm, MSR_TPR, 0);
		CHECK_EQ(vm_log(&vm)->count, kept);
	}
	OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &l));
	CHECK_EQ(lapic_reg(&l, 0x230), 0);
	CHECK_EQ(lapic_reg(&l, 0x130), 0);
}

TEST(assist_page)
{
	struct vm vm;
	uint32_t *word;

	NEW(&vm, wrmsrs);
	vm_log(&vm)->eoi = 0;
	word = (uint32_t *)(vm.mem + ASSIST_PAGE);
	word[0] = 0xffffffff;
	word[1] = 77;
	wrmsr(&vm, MSR_ASSIST_PAGE, ASSIST_PAGE | 1);
	CHECK_EQ(word[0], 0);
	CHECK_EQ(word[1], 77);
	wrmsr(&vm, MSR_COUNT(0), PAST);
	wrmsr(&vm, MSR_CONFIG(0), ENABLE | DIRECT(0x72));
	wrmsr(&vm, MSR_CONFIG(0), ENABLE | DIRECT(0x72));
	CHECK_EQ(vm_log(&vm)->count, 1);
	wrmsr(&vm, MSR_EOI, 0);
	CHECK_EQ(vm_log(&vm)->count, 2);
}

static uint64_t hypercall(struct vm *vm, uint64_t control, uint64_t first, uint64_t second)
{
	vm_complete(vm);

	struct kvm_regs r = vm_regs(vm);

	r.rax = ~0ull;
	r.rcx = control;
	r.rdx = first;
	r.r8 = second;
	vm_set_regs(vm, &r);
	while (vm_run(vm) == KVM_EXIT_HYPERV) {
		CHECK_EQ(vm->run->hyperv.type, KVM_EXIT_HYPERV_HCALL);
		CHECK_EQ(vm->run->hyperv.u.hcall.input, control);
		vm->run->hyperv.u.hcall.result = 0x1234;
	}
	return vm_regs(vm).rax;
}

#define FAST (1ull << 16)

TEST(signal_event)
{
	struct vm vm;
	int fd = OK(eventfd(0, EFD_NONBLOCK));
	struct kvm_hyperv_eventfd e = { .conn_id = 5, .fd = fd };
	uint64_t count;

	NEW(&vm, calls);
	OK(ioctl(vm.fd, KVM_HYPERV_EVENTFD, &e));
	CHECK_ERRNO(ioctl(vm.fd, KVM_HYPERV_EVENTFD, &e), EEXIST);
	/* Who has not said who he is makes KVM's calls. */
	CHECK_EQ(hypercall(&vm, 0x5d | FAST, 5, 0), -1000ull);
	CHECK(set_msr(&vm, MSR_GUEST_OS_ID, 1));
	CHECK_EQ(hypercall(&vm, 0x5d | FAST, 5, 0), 0);
	CHECK_EQ(read(fd, &count, 8), 8);
	CHECK_EQ(count, 1);
	*(uint64_t *)(vm.mem + PAGE) = 5;
	CHECK_EQ(hypercall(&vm, 0x5d, PAGE, 0), 0);
	CHECK_EQ(read(fd, &count, 8), 8);
	/* Others are user space's. */
	CHECK_EQ(hypercall(&vm, 0x5d | FAST, 6, 0), 0x1234);
	CHECK_EQ(vm.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(hypercall(&vm, 0x5d | FAST, 1ull << 33, 0), 0x1234);
	CHECK_EQ(hypercall(&vm, 0x5d | FAST, 1ull << 31, 0), 3);
	CHECK_EQ(hypercall(&vm, 0x5d, PAGE + 4, 0), 4);
	CHECK_EQ(hypercall(&vm, 0x5c, PAGE, 0), 0x1234);
	/* Reserved bits; no such call. */
	CHECK_EQ(hypercall(&vm, 0x5d | FAST | 1ull << 60, 5, 0), 3);
	CHECK_EQ(hypercall(&vm, 0xbeef, 0, 0), 2);
	e.flags = KVM_HYPERV_EVENTFD_DEASSIGN;
	OK(ioctl(vm.fd, KVM_HYPERV_EVENTFD, &e));
	CHECK_ERRNO(ioctl(vm.fd, KVM_HYPERV_EVENTFD, &e), ENOENT);
	e.flags = 2;
	CHECK_ERRNO(ioctl(vm.fd, KVM_HYPERV_EVENTFD, &e), EINVAL);
}

TEST(routes)
{
	struct vm vm;
	struct {
		struct kvm_irq_routing header;
		struct kvm_irq_routing_entry entry[1];
	} r = { .header.nr = 1, .entry = { {
		.gsi = 30, .type = KVM_IRQ_ROUTING_HV_SINT, .u.hv_sint = { .vcpu = 0, .sint = 7 },
	} } };
	struct kvm_irq_level line = { .irq = 30, .level = 1 };

	NEW(&vm, wrmsrs);
	vm_log(&vm)->eoi = LAPIC_EOI;
	OK(ioctl(vm.fd, KVM_SET_GSI_ROUTING, &r));
	wrmsr(&vm, MSR_SINT(7), 0x7a);
	OK(ioctl(vm.fd, KVM_IRQ_LINE, &line));
	wrmsr(&vm, MSR_TPR, 0);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(last_vector(&vm), 0x7a);
	/* To another number. */
	CHECK(set_msr(&vm, MSR_VP_INDEX, 3));
	OK(ioctl(vm.fd, KVM_IRQ_LINE, &line));
	wrmsr(&vm, MSR_TPR, 0);
	CHECK_EQ(vm_log(&vm)->count, 1);
}

TEST(events)
{
	struct vm vm;
	uint64_t value;

	NEW(&vm, wrmsrs);
	wrmsr(&vm, MSR_CRASH_P(0), 0x11);
	wrmsr(&vm, MSR_CRASH_P(4), 0x55);
	begin(&vm, MSR_CRASH_CTL, 1ull << 63);
	vm_expect(&vm, KVM_EXIT_SYSTEM_EVENT);
	CHECK_EQ(vm.run->system_event.type, KVM_SYSTEM_EVENT_CRASH);
	CHECK(get_msr(&vm, MSR_CRASH_P(4), &value));
	CHECK_EQ(value, 0x55);
	vm_expect_out(&vm, 0x10);
	begin(&vm, 0x40000003, 1);
	vm_expect(&vm, KVM_EXIT_SYSTEM_EVENT);
	CHECK_EQ(vm.run->system_event.type, KVM_SYSTEM_EVENT_RESET);
}

/* A timer that has expired since is started again. */
TEST(reset_point)
{
	struct rvmm_reset_point point = { .pages = 64 };
	struct rvmm_reset reset;
	struct vm vm;
	uint64_t now, then;

	if (!is_rvmm())
		skip("rvmm's own");
	NEW(&vm, wrmsrs);
	vm_log(&vm)->eoi = LAPIC_EOI;
	CHECK(get_msr(&vm, MSR_TIME_REF, &now));
	wrmsr(&vm, MSR_COUNT(2), now + 500000);
	wrmsr(&vm, MSR_CONFIG(2), ENABLE | DIRECT(0x68));
	CHECK_EQ(vm_log(&vm)->count, 0);
	CHECK(get_msr(&vm, MSR_TIME_REF, &then));
	OK(ioctl(vm.fd, RVMM_RESET_POINT, &point));
	for (int n = 0; n < 2; n++) {
		while (vm_log(&vm)->count == 0)
			wrmsr(&vm, MSR_TPR, 0);
		CHECK_EQ(last_vector(&vm), 0x68);
		CHECK(set_msr(&vm, MSR_VP_INDEX, 5));
		OK(ioctl(vm.fd, RVMM_RESET, &reset));
		CHECK_EQ(vm_log(&vm)->count, 0);
		CHECK(get_msr(&vm, MSR_VP_INDEX, &now));
		CHECK_EQ(now, 0);
		CHECK(get_msr(&vm, MSR_TIME_REF, &now));
		CHECK(now >= then);
	}
}

/* What user space saves it can put back. */
TEST(state)
{
	static const struct {
		uint32_t index;
		uint64_t value;
	} msrs[] = {
		{ MSR_GUEST_OS_ID, 0x8100 << 16 }, { MSR_HYPERCALL, PAGE | 1 }, { MSR_VP_INDEX, 9 },
		{ MSR_SCONTROL, 1 }, { MSR_SIEFP, PAGE | 1 }, { MSR_SIMP, PAGE | 1 }, { MSR_SINT(15), 0x200ff },
		{ MSR_CONFIG(2), TO_SINT(5) }, { MSR_COUNT(2), 12345 }, { MSR_ASSIST_PAGE, ASSIST_PAGE | 1 },
		{ MSR_CRASH_P(2), 7 }, { MSR_CRASH_CTL, 1ull << 63 }, { MSR_REFERENCE_TSC, PAGE },
		{ 0x40000106, 0x100ff }, { 0x40000107, 1 }, { 0x40000108, 1 }, { 0x40000118, 1 }, { 0x400000ff, 4 },
	};
	struct vm vm;
	uint64_t value;

	NEW(&vm, wrmsrs);
	for (unsigned int i = 0; i < ARRAY_SIZE(msrs); i++)
		CHECK(set_msr(&vm, msrs[i].index, msrs[i].value));
	for (unsigned int i = 0; i < ARRAY_SIZE(msrs); i++) {
		CHECK(get_msr(&vm, msrs[i].index, &value));
		if (value != msrs[i].value)
			FAIL("%#x: %#llx", msrs[i].index, (unsigned long long)value);
	}
	CHECK(!set_msr(&vm, MSR_VP_INDEX, 1 << 20));
	CHECK(!set_msr(&vm, 0x40000118, 2));
}
