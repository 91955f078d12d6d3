// SPDX-License-Identifier: GPL-2.0
/*
 * The local APIC's registers as guests and user space find them, where processors and KVM do what the manual leaves
 * open or says otherwise (SDM 3A 11): narrow accesses, errors, reserved bits, disabling, INIT, saved state.
 */
#define _GNU_SOURCE
#include "vm.h"
#include <pthread.h>

#define APIC_BASE 0x1b
#define TSC_DEADLINE 0x6e0

static struct kvm_lapic_state state_of(struct vm *vm)
{
	struct kvm_lapic_state l;

	OK(ioctl(vm->vcpu, KVM_GET_LAPIC, &l));
	return l;
}

static uint32_t *reg(struct kvm_lapic_state *l, unsigned int offset)
{
	return (uint32_t *)(l->regs + offset);
}

static uint32_t reg_of(struct vm *vm, unsigned int offset)
{
	struct kvm_lapic_state l = state_of(vm);

	return *reg(&l, offset);
}

static void set_reg(struct vm *vm, unsigned int offset, uint32_t value)
{
	struct kvm_lapic_state l = state_of(vm);

	*reg(&l, offset) = value;
	OK(ioctl(vm->vcpu, KVM_SET_LAPIC, &l));
}

static bool in_bitmap(struct vm *vm, unsigned int first, unsigned int vector)
{
	return reg_of(vm, first + vector / 32 * 16) >> vector % 32 & 1;
}

static int send_msi(struct vm *vm, uint32_t bits, uint32_t data)
{
	struct kvm_msi m = { .address_lo = 0xfee00000 | bits, .data = data };

	return OK(ioctl(vm->fd, KVM_SIGNAL_MSI, &m));
}

static uint64_t msr_of(struct vm *vm, uint32_t index)
{
	uint64_t value;

	REQUIRE(get_msr(vm, index, &value));
	return value;
}

/* Start-up code reads the id as the byte at 0xfee00023. */
GUEST64(narrow,
	"mov $0xfee00000, %ebx\n"
	"movzbl 0x23(%rbx), %eax; out %eax, $0x10; movzwl 0x22(%rbx), %eax; out %eax, $0x10\n"
	"xor %eax, %eax; mov 0x23(%rbx), %al; out %eax, $0x10\n"
	"movzbl 0x30(%rbx), %eax; out %eax, $0x10; movzbl 0x32(%rbx), %eax; out %eax, $0x10\n"
	"movzwl 0x30(%rbx), %eax; out %eax, $0x10; movzbl 0xe3(%rbx), %eax; out %eax, $0x10\n"
	"mov 0x23(%rbx), %ah; movzbl %ah, %eax; out %eax, $0x10\n"
	/* A narrow compare, and a byte of a register below a word that is no register. */
	"xor %eax, %eax; cmpb $5, 0x23(%rbx); sete %al; out %eax, $0x10\n");

TEST(narrow_reads)
{
	static const uint32_t wanted[] = { 5, 0x500, 5, 0x14, 5, 0x14, 0xff, 5, 1 };
	struct vm vm;

	vm_init_irqchip(&vm, 4 * MIB);
	vm_add_vcpu(&vm, 5);
	VM_LONG(&vm, narrow);
	OK(ioctl(vm.vcpu, KVM_SET_MP_STATE, &(struct kvm_mp_state){ KVM_MP_STATE_RUNNABLE }));
	for (unsigned int i = 0; i < ARRAY_SIZE(wanted); i++)
		CHECK_EQ(vm_expect_out(&vm, 0x10), wanted[i]);
}

/* ESR says nothing of registers that do not exist and of vectors below 16, which are taken and never delivered. */
GUEST64(errors,
	"mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx); movl $0x50, 0x370(%rbx); sti\n"
	"mov 0x40(%rbx), %eax; out %eax, $0x10\n"
	"movl $0x1234, 0x40(%rbx); movl $0x40005, 0x300(%rbx); movl $0, 0x280(%rbx)\n"
	"mov 0x280(%rbx), %eax; out %eax, $0x10; mov 0x200(%rbx), %eax; out %eax, $0x10\n"
	"movl $0x4006, 0x300(%rbx); nop; mov 0x200(%rbx), %eax; out %eax, $0x10; out %eax, $0x11\n");

TEST(errors_are_not_told)
{
	struct vm vm;

	VM_NEW_LONG_IRQCHIP(&vm, errors);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 1 << 5);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 1 << 5 | 1 << 6);
	CHECK_EQ(send_msi(&vm, 0, 0x4), 1);
	vm_expect_out(&vm, 0x11);
	CHECK(in_bitmap(&vm, 0x200, 4));
	CHECK_EQ(vm_log(&vm)->count, 0);
}

/* Reserved bits of x2APIC registers fault where nobody could mean them: ESR, self-IPI, upper halves. */
TEST(reserved_bits)
{
	static const struct { uint32_t msr; uint64_t value; uint32_t kept; } taken[] = {
		{ 0x808, 0xffffff30, 0x30 }, { 0x80f, 0xffffe1ff, 0x1ff }, { 0x833, 0xfffeff42, 0x742 },
		{ 0x837, 0xfffeef43, 0x43 }, { 0x83e, 0xffffffff, 0xb },
	};
	static const struct { uint32_t msr; uint64_t value; } refused[] = {
		{ 0x808, 1ull << 32 }, { 0x80b, 1ull << 32 }, { 0x828, 1 }, { 0x83f, 0x140 }, { 0x830, 1 << 13 },
		{ 0x833, 1ull << 32 }, { 0x80d, 1 }, { 0x802, 1 }, { 0x80a, 0 },
	};
	struct kvm_sregs s;
	struct vm vm;

	vm_new_irqchip(&vm, MIB);
	s = vm_sregs(&vm);
	s.apic_base |= 0xc00;
	vm_set_sregs(&vm, &s);
	REQUIRE(set_msr(&vm, 0x80f, 0x1ff));
	for (unsigned int i = 0; i < ARRAY_SIZE(taken); i++) {
		if (!set_msr(&vm, taken[i].msr, taken[i].value))
			FAIL("%#x refused", taken[i].msr);
		/* KVM keeps the delivery status of LVT entries. */
		CHECK_EQ(msr_of(&vm, taken[i].msr) & ~(1u << 12), taken[i].kept);
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(refused); i++)
		if (set_msr(&vm, refused[i].msr, refused[i].value))
			FAIL("%#x taken", refused[i].msr);
	CHECK(set_msr(&vm, 0x80b, 0x1234));
}

/* What is in the registers survives while IA32_APIC_BASE says disabled; the id alone begins anew. */
TEST(disabling_keeps_registers)
{
	uint64_t base;
	struct vm vm;

	vm_new_irqchip(&vm, MIB);
	set_reg(&vm, 0xf0, 0x1ff);
	set_reg(&vm, 0x20, 9u << 24);
	set_reg(&vm, 0xd0, 4u << 24);
	set_reg(&vm, 0xe0, 0x0fffffff);
	set_reg(&vm, 0x340, 0x4ee);
	set_reg(&vm, 0x80, 0x20);
	CHECK_EQ(send_msi(&vm, 9 << 12, 0x77), 1);
	base = msr_of(&vm, APIC_BASE);
	REQUIRE(set_msr(&vm, APIC_BASE, base & ~0x800ull));
	REQUIRE(set_msr(&vm, APIC_BASE, base));
	CHECK_EQ(reg_of(&vm, 0xf0), 0x1ff);
	CHECK_EQ(reg_of(&vm, 0x20), 0);
	CHECK_EQ(reg_of(&vm, 0xd0), 4u << 24);
	CHECK_EQ(reg_of(&vm, 0xe0), 0x0fffffff);
	CHECK_EQ(reg_of(&vm, 0x340), 0x4ee);
	CHECK_EQ(reg_of(&vm, 0x80), 0x20);
	CHECK(in_bitmap(&vm, 0x200, 0x77));
}

/* INIT leaves the BSP's LINT0 open for the 8259s, by a quirk, and tells the processor's signature in EDX. */
static void check_init(bool quirk, unsigned int id)
{
	struct kvm_cpuid2 *table;
	struct kvm_mp_state mp;
	struct vm vm;

	vm_init_irqchip(&vm, MIB);
	if (!quirk)
		OK(enable_cap(vm.fd, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_LINT0_REENABLED));
	vm_add_vcpu(&vm, id);
	table = supported_cpuid(vm.kvm);
	CHECK_EQ(vm_regs(&vm).rdx, 0x600);
	set_reg(&vm, 0xf0, 0x1ff);
	set_reg(&vm, 0x350, 0x10000);
	set_reg(&vm, 0x330, 0x4ee);
	CHECK_EQ(send_msi(&vm, id << 12, 0x500), 1);
	/* A vCPU that is to be started waits for SIPI. */
	OK(ioctl(vm.vcpu, KVM_GET_MP_STATE, &mp));
	CHECK_EQ(mp.mp_state, id ? KVM_MP_STATE_INIT_RECEIVED : KVM_MP_STATE_RUNNABLE);
	CHECK_EQ(reg_of(&vm, 0x350), quirk && !id ? 0x700 : 0x10000);
	CHECK_EQ(reg_of(&vm, 0x330), 0x10000);
	CHECK_EQ(reg_of(&vm, 0xf0), 0xff);
	CHECK_EQ(vm_regs(&vm).rdx, cpuid_entry(table, 1, 0)->eax);
	CHECK_EQ(vm_regs(&vm).rip, 0xfff0);
	free(table);
	vm_free(&vm);
}

TEST(init)
{
	check_init(true, 0);
	check_init(false, 0);
	check_init(true, 3);
}

/* KVM_SET_LAPIC, before or after the deadline that is armed. */
TEST(deadline_and_state)
{
	struct kvm_lapic_state l;
	struct kvm_cpuid2 *table;
	struct vm vm;

	vm_new_irqchip(&vm, MIB);
	if (!has_extension(vm.kvm, KVM_CAP_TSC_DEADLINE_TIMER))
		skip("no TSC-deadline mode");
	/* The mode is in the state before the CPUID table has it. */
	set_reg(&vm, 0xf0, 0x1ff);
	set_reg(&vm, 0x320, 0x400ec);
	CHECK_EQ(reg_of(&vm, 0x320), 0x400ec);
	table = supported_cpuid(vm.kvm);
	cpuid_entry(table, 1, 0)->ecx |= 1 << 24;
	OK(ioctl(vm.vcpu, KVM_SET_CPUID2, table));
	set_reg(&vm, 0x320, 0x400ec);
	REQUIRE(set_msr(&vm, TSC_DEADLINE, 1ull << 62));
	CHECK_EQ(msr_of(&vm, TSC_DEADLINE), 1ull << 62);
	l = state_of(&vm);
	OK(ioctl(vm.vcpu, KVM_SET_LAPIC, &l));
	CHECK_EQ(msr_of(&vm, TSC_DEADLINE), 1ull << 62);
	set_reg(&vm, 0x320, 0x400ed);
	CHECK_EQ(msr_of(&vm, TSC_DEADLINE), 1ull << 62);
	/* Not in IA32_APIC_BASE's disabled state, and after it again. */
	REQUIRE(set_msr(&vm, APIC_BASE, 0xfee00100));
	CHECK_EQ(msr_of(&vm, TSC_DEADLINE), 0);
	REQUIRE(set_msr(&vm, APIC_BASE, 0xfee00900));
	CHECK_EQ(msr_of(&vm, TSC_DEADLINE), 1ull << 62);
	/* Another mode disarms. */
	set_reg(&vm, 0x320, 0x200ec);
	CHECK_EQ(msr_of(&vm, TSC_DEADLINE), 0);
	set_reg(&vm, 0x320, 0x400ec);
	CHECK_EQ(msr_of(&vm, TSC_DEADLINE), 0);
	free(table);
}

/*
 * A one-shot count that is over in the state which is loaded: whoever saved it may not have noticed the end, so it ends
 * at once. Not where no count was started, and not while the entry is masked.
 */
GUEST64(outputs, "1: out %al, $0x10; jmp 1b\n");

TEST(ended_count)
{
	struct kvm_lapic_state l;
	struct vm vm;

	VM_NEW_LONG_IRQCHIP(&vm, outputs);
	for (int i = 0; i < 3; i++) {
		l = state_of(&vm);
		*reg(&l, 0xf0) = 0x1ff;
		*reg(&l, 0x320) = 0x40 | (i == 1 ? 0x10000 : 0);
		*reg(&l, 0x380) = i == 2 ? 0 : 1000;
		*reg(&l, 0x390) = 0;
		memset(l.regs + 0x200, 0, 0x80);
		OK(ioctl(vm.vcpu, KVM_SET_LAPIC, &l));
		/* A vCPU that runs takes notice. */
		for (int tries = 0; tries < (i ? 10 : 10000) && !in_bitmap(&vm, 0x200, 0x40); tries++)
			vm_expect_out(&vm, 0x10);
		CHECK_EQ(in_bitmap(&vm, 0x200, 0x40), i == 0);
	}
}

/* Nobody is where the local APIC's page was, which user space sees only if it says so. */
GUEST64(hole,
	"mov $0xfee00000, %ebx; 1: mov 0x30(%rbx), %eax; out %eax, $0x10; movl $1, 0x80(%rbx); incl 0x80(%rbx)\n"
	"movzbl 0x23(%rbx), %eax; out %eax, $0x10; jmp 1b\n");

TEST(mmio_hole)
{
	struct kvm_sregs s;
	struct vm vm;

	VM_NEW_LONG_IRQCHIP(&vm, hole);
	for (int x2apic = 0; x2apic < 2; x2apic++) {
		s = vm_sregs(&vm);
		s.apic_base = 0xfee00100 | (x2apic ? 0xc00 : 0);
		vm_set_sregs(&vm, &s);
		CHECK_EQ(vm_expect_out(&vm, 0x10), 0xffffffff);
		CHECK_EQ(vm_expect_out(&vm, 0x10), 0xff);
	}
	OK(enable_cap(vm.fd, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_LAPIC_MMIO_HOLE));
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm.run->mmio.phys_addr, 0xfee00030);
	CHECK_EQ(vm.run->mmio.is_write, 0);
	*(uint32_t *)vm.run->mmio.data = 0x1234;
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x1234);
}

/* Lowest priority: the vector says who, whatever the priorities are; a physical broadcast reaches all. */
TEST(lowest_priority)
{
	struct vm vm, other;

	vm_new_irqchip(&vm, MIB);
	other = vm_second_vcpu(&vm, 1);
	set_reg(&vm, 0xf0, 0x1ff);
	set_reg(&other, 0xf0, 0x1ff);
	set_reg(&vm, 0x80, 0xe0);
	set_reg(&vm, 0xd0, 1u << 24);
	set_reg(&other, 0xd0, 2u << 24);
	set_reg(&vm, 0x80, 0);
	set_reg(&other, 0x80, 0xf0);
	for (unsigned int v = 0x40; v < 0x50; v++) {
		CHECK_EQ(send_msi(&vm, 3 << 12 | 4, 0x100 | v), 1);
		CHECK_EQ(in_bitmap(&vm, 0x200, v), v % 2 == 0);
		CHECK_EQ(in_bitmap(&other, 0x200, v), v % 2 == 1);
	}
	/* The redirection hint alone asks for the same. */
	CHECK_EQ(send_msi(&vm, 3 << 12 | 0xc, 0x51), 1);
	CHECK(!in_bitmap(&vm, 0x200, 0x51) && in_bitmap(&other, 0x200, 0x51));
	CHECK_EQ(send_msi(&vm, 0xff << 12, 0x160), 2);
	CHECK(in_bitmap(&vm, 0x200, 0x60) && in_bitmap(&other, 0x200, 0x60));
}

/* The trigger mode register has each vector as it came last, also where the processor accepts interrupts by itself. */
GUEST64(triggers,
	"mov $0xfee00000, %ebx; 1: mov 0x1b0(%rbx), %eax; out %eax, $0x10; sti; hlt; cli; jmp 1b\n");

TEST(trigger_modes)
{
	struct vm vm;

	VM_NEW_LONG_IRQCHIP(&vm, triggers);
	vm_enable_lapic(&vm);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(send_msi(&vm, 0, 0xc061), 1);
		CHECK_EQ(vm_expect_out(&vm, 0x10), 2);
		CHECK_EQ(send_msi(&vm, 0, 0x61), 1);
		CHECK_EQ(vm_expect_out(&vm, 0x10), 0);
	}
	/* A state brings one. */
	set_reg(&vm, 0x1b0, 2);
	CHECK_EQ(send_msi(&vm, 0, 0x61), 1);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0);
	CHECK_EQ(vm_log(&vm)->count, 7);
}

/* An IPI may be a level, by its own bit; without the assert bit it is none. */
GUEST64(level_ipi,
	"mov $0xfee00000, %ebx; movl $0x4c061, 0x300(%rbx); mov 0x1b0(%rbx), %eax; out %eax, $0x10\n"
	"movl $0x48062, 0x300(%rbx); mov 0x230(%rbx), %eax; out %eax, $0x10\n");

TEST(level_triggered_ipis)
{
	struct vm vm;

	VM_NEW_LONG_IRQCHIP(&vm, level_ipi);
	vm_enable_lapic(&vm);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 2);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 2);
}

/*
 * A guest that is entered with interrupts off, and waits for what another vCPU does in a loop, is left for the host's
 * interrupts all the same: also on one CPU the other one gets its turn.
 */
GUEST64(waiter, "1: pause; cmpq $0, " STR(G_CELLS) "; je 1b; out %al, $0x10\n");
GUEST64(helper, "incq " STR(G_CELLS) "; out %al, $0x11\n");

static void *help(void *argument)
{
	vm_expect_out(argument, 0x11);
	return NULL;
}

TEST(waits_with_interrupts_off)
{
	struct kvm_mp_state runnable = { KVM_MP_STATE_RUNNABLE };
	struct kvm_regs r;
	pthread_t thread;
	struct vm vm, ap;

	VM_NEW_LONG_IRQCHIP(&vm, waiter);
	ap = vm_second_vcpu(&vm, 1);
	memcpy(vm.mem + 0x30000, helper, helper_end - helper);
	vm_long_state(&ap);
	r = vm_regs(&ap);
	r.rip = 0x30000;
	r.rsp = G_IST;
	vm_set_regs(&ap, &r);
	OK(ioctl(ap.vcpu, KVM_SET_MP_STATE, &runnable));
	REQUIRE(!pthread_create(&thread, NULL, help, &ap));
	vm_expect_out(&vm, 0x10);
	REQUIRE(!pthread_join(thread, NULL));
}

GUEST16(undefined, "ud2\n");

/* AMD's processors keep no state when they shut down: the vCPU is as after INIT, its local APIC as well. */
TEST(shutdown)
{
	struct kvm_lapic_state l;
	struct kvm_sregs s;
	struct vm vm;

	vm_new_irqchip(&vm, MIB);
	VM_REAL(&vm, undefined);
	s = vm_sregs(&vm);
	s.idt.limit = 0;
	vm_set_sregs(&vm, &s);
	OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &l));
	*(uint32_t *)(l.regs + LAPIC_SVR) = 0x1ff;
	*(uint32_t *)(l.regs + 0x120) = 1;	/* ISR: vector 0x40 */
	OK(ioctl(vm.vcpu, KVM_SET_LAPIC, &l));
	vm_expect(&vm, KVM_EXIT_SHUTDOWN);
	OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &l));
	CHECK_EQ(*(uint32_t *)(l.regs + 0x120), is_amd() ? 0 : 1);
	CHECK_EQ(*(uint32_t *)(l.regs + LAPIC_SVR), is_amd() ? 0xff : 0x1ff);
}
