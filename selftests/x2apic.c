// SPDX-License-Identifier: GPL-2.0
/*
 * x2APIC ids beyond 8 bits and what user space chooses with KVM_CAP_X2APIC_API (api.rst 7.7); EOI broadcast
 * suppression.
 */
#define _GNU_SOURCE
#include "vm.h"
#include <pthread.h>

#ifndef KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST
#define KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST (1 << 2)
#define KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST (1 << 3)
#endif

#define HIGH_ID 300

static int send_msi(struct vm *vm, uint32_t hi, uint32_t lo, uint32_t data)
{
	struct kvm_msi m = { .address_hi = hi, .address_lo = 0xfee00000 | lo, .data = data };

	return ioctl(vm->fd, KVM_SIGNAL_MSI, &m);
}

static void x2apic_on(struct vm *vcpu)
{
	struct kvm_sregs s = vm_sregs(vcpu);

	s.apic_base |= 0xc00;
	vm_set_sregs(vcpu, &s);
	REQUIRE(set_msr(vcpu, 0x80f, 0x1ff));
}

static uint32_t lapic_word(struct vm *vcpu, unsigned int offset)
{
	struct kvm_lapic_state l;

	OK(ioctl(vcpu->vcpu, KVM_GET_LAPIC, &l));
	return *(uint32_t *)(l.regs + offset);
}

static bool in_irr(struct vm *vcpu, unsigned int vector)
{
	return lapic_word(vcpu, 0x200 + vector / 32 * 16) >> vector % 32 & 1;
}

TEST(api_flags)
{
	struct vm vm;

	vm_init(&vm, MIB);
	CHECK_EQ(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_X2APIC_API) & 3, 3);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_X2APIC_API, 1 << 4), EINVAL);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_X2APIC_API, 1ull << 32), EINVAL);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_X2APIC_API, KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST), EINVAL);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_X2APIC_API,
			   KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST | KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST),
			EINVAL);
	OK(enable_cap(vm.fd, KVM_CAP_X2APIC_API, 0));
	OK(enable_cap(vm.fd, KVM_CAP_X2APIC_API, 3));
	CHECK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPU_ID) > HIGH_ID);
}

TEST(max_vcpu_id)
{
	struct vm vm;
	long max;

	vm_init(&vm, MIB);
	max = OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPU_ID));
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_VCPU, max), EINVAL);
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_MAX_VCPU_ID, max + 1), EINVAL);
	vm_free(&vm);
	vm_init(&vm, MIB);
	OK(enable_cap(vm.fd, KVM_CAP_MAX_VCPU_ID, 5));
	OK(enable_cap(vm.fd, KVM_CAP_MAX_VCPU_ID, 5));
	CHECK_ERRNO(enable_cap(vm.fd, KVM_CAP_MAX_VCPU_ID, 6), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_BOOT_CPU_ID, 6), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_VCPU, 5), EINVAL);
	OK(ioctl(vm.fd, KVM_CREATE_VCPU, 4));
}

/* Two vCPUs with ids that an 8-bit field cannot tell apart (44 and 300), and one whose id means everybody there. */
TEST(ids)
{
	struct kvm_lapic_state l;
	struct vm vm, low, high, last;

	vm_init_irqchip(&vm, 4 * MIB);
	low = vm_second_vcpu(&vm, HIGH_ID & 0xff);
	high = vm_second_vcpu(&vm, HIGH_ID);
	last = vm_second_vcpu(&vm, 255);
	x2apic_on(&low);
	x2apic_on(&high);
	x2apic_on(&last);
	/* The format of old: 8 bits. */
	CHECK_EQ(lapic_word(&high, 0x20), (uint32_t)HIGH_ID << 24);
	CHECK_EQ(lapic_word(&high, 0xd0), (HIGH_ID >> 4) << 16 | 1 << (HIGH_ID & 15));
	CHECK_EQ(send_msi(&vm, HIGH_ID & ~0xff, (HIGH_ID & 0xff) << 12, 0x41), 1);
	CHECK(in_irr(&low, 0x41) && !in_irr(&high, 0x41));
	/* 0xff is everybody. */
	CHECK_EQ(send_msi(&vm, 0, 0xff << 12, 0x42), 3);
	/* The new format has 32-bit ids. */
	OK(enable_cap(vm.fd, KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS));
	CHECK_EQ(lapic_word(&high, 0x20), HIGH_ID);
	CHECK_EQ(lapic_word(&low, 0x20), HIGH_ID & 0xff);
	CHECK_EQ(send_msi(&vm, HIGH_ID & ~0xff, (HIGH_ID & 0xff) << 12, 0x43), 1);
	CHECK(!in_irr(&low, 0x43) && in_irr(&high, 0x43));
	CHECK_ERRNO(send_msi(&vm, 1, 0, 0x44), EINVAL);
	CHECK_EQ(send_msi(&vm, 0, 0xff << 12, 0x45), 3);
	OK(ioctl(high.vcpu, KVM_GET_LAPIC, &l));
	OK(ioctl(high.vcpu, KVM_SET_LAPIC, &l));
	*(uint32_t *)(l.regs + 0x20) = 1;
	CHECK_ERRNO(ioctl(high.vcpu, KVM_SET_LAPIC, &l), EINVAL);
	/* Without the broadcast quirk 0xff is an id like others. */
	OK(enable_cap(vm.fd, KVM_CAP_X2APIC_API, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK));
	CHECK_EQ(send_msi(&vm, 0xffffff00, 0xff << 12, 0x46), 3);
	CHECK_EQ(send_msi(&vm, 0, 0xff << 12, 0x47), 1);
	CHECK(!in_irr(&low, 0x47) && !in_irr(&high, 0x47) && in_irr(&last, 0x47));
}

static struct kvm_irq_routing_entry msi(unsigned int gsi, uint32_t hi, uint32_t lo, uint32_t data)
{
	return (struct kvm_irq_routing_entry) {
		.gsi = gsi, .type = KVM_IRQ_ROUTING_MSI,
		.u.msi = { .address_hi = hi, .address_lo = 0xfee00000 | lo, .data = data },
	};
}

static int route(struct vm *vm, struct kvm_irq_routing_entry e)
{
	struct { struct kvm_irq_routing header; struct kvm_irq_routing_entry entry; } r = { .header.nr = 1,
											    .entry = e };

	return ioctl(vm->fd, KVM_SET_GSI_ROUTING, &r);
}

/* Messages also come by a route. */
TEST(routes)
{
	struct kvm_irq_level line = { .irq = 40, .level = 1 };
	struct vm vm, high;

	vm_init_irqchip(&vm, 4 * MIB);
	high = vm_second_vcpu(&vm, HIGH_ID);
	x2apic_on(&high);
	OK(enable_cap(vm.fd, KVM_CAP_X2APIC_API, 3));
	CHECK_ERRNO(route(&vm, msi(40, HIGH_ID | 0x10, 0, 0x50)), EINVAL);
	OK(route(&vm, msi(40, HIGH_ID & ~0xff, (HIGH_ID & 0xff) << 12, 0x50)));
	OK(ioctl(vm.fd, KVM_IRQ_LINE, &line));
	CHECK(in_irr(&high, 0x50));
}

/* INIT and SIPI by the 64-bit ICR to an APIC that is still an xAPIC, whose id does not fit there. */
GUEST64(starter,
	"mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr\n"
	"mov $0x80f, %ecx; mov $0x1ff, %eax; xor %edx, %edx\n"
	"wrmsr\n"
	"mov $0x830, %ecx; mov $" STR(HIGH_ID) ", %edx\n"
	"mov $0x4500, %eax; wrmsr; mov $0x4632, %eax; wrmsr\n"
	"sti; 1: pause; cmpl $1, " STR(G_CELLS) "; jne 1b\n"
	"out %al, $0x10\n");
GUEST16(started, "xor %ax, %ax; mov %ax, %ds; movl $1, %ds:(" STR(G_CELLS) "); out %al, $0x11\n");

static void *run_thread(void *argument)
{
	struct vm *vcpu = argument;

	while (vm_try_run(vcpu) == EAGAIN)
		;
	return NULL;
}

TEST(start_up)
{
	pthread_t thread;
	struct vm vm, high;

	vm_init_irqchip(&vm, 4 * MIB);
	OK(enable_cap(vm.fd, KVM_CAP_X2APIC_API, 3));
	vm_add_vcpu(&vm, 0);
	VM_LONG(&vm, starter);
	memcpy(vm.mem + 0x32000, started, started_end - started);
	high = vm_second_vcpu(&vm, HIGH_ID);
	REQUIRE(!pthread_create(&thread, NULL, run_thread, &high));
	vm_expect_out(&vm, 0x10);
	REQUIRE(!pthread_join(thread, NULL));
	CHECK_EQ(high.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(high.run->io.port, 0x11);
	CHECK_EQ(vm_sregs(&high).cs.base, 0x32000);
}

/* Suppression: what the version register says, and whether EOIs of a split irqchip come. */
GUEST64(eoi,
	"mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr; mov $0x80f, %ecx\n"
	"mov $0x1ff, %eax; or %edi, %eax; xor %edx, %edx; wrmsr\n"
	"mov $0x803, %ecx; rdmsr; shr $24, %eax; out %eax, $0x10\n"
	"1: sti; hlt; jmp 1b\n");

/* Takes the place of the handlers of 0x61 and its neighbours. */
GUEST64(ended, "mov $0x80b, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr; out %al, $0x11; iretq\n");

static void eoi_case(uint64_t flags, unsigned int svr, bool offered, bool exits)
{
	struct kvm_irq_level line = { .irq = 3, .level = 1 };
	struct kvm_regs r;
	struct vm vm;

	vm_init(&vm, 4 * MIB);
	OK(enable_cap(vm.fd, KVM_CAP_SPLIT_IRQCHIP, 24));
	if (flags)
		OK(enable_cap(vm.fd, KVM_CAP_X2APIC_API, flags));
	vm_add_vcpu(&vm, 0);
	VM_LONG(&vm, eoi);
	vm_log(&vm)->eoi = 0;
	r = vm_regs(&vm);
	r.rdi = svr;
	vm_set_regs(&vm, &r);
	CHECK_EQ(vm_expect_out(&vm, 0x10), offered);
	OK(route(&vm, msi(3, 0, 0, 0xc061)));
	OK(ioctl(vm.fd, KVM_IRQ_LINE, &line));
	memcpy(vm.mem + G_STUBS + 16 * 0x61, ended, ended_end - ended);
	if (exits) {
		vm_expect(&vm, KVM_EXIT_IOAPIC_EOI);
		CHECK_EQ(vm.run->eoi.vector, 0x61);
	}
	vm_expect_out(&vm, 0x11);
	vm_free(&vm);
}

TEST(eoi_suppression)
{
	/* As ever: offered, without effect. */
	eoi_case(0, 0, true, true);
	eoi_case(0, 1 << 12, true, true);
	if (!(ioctl(device_open(), KVM_CHECK_EXTENSION, KVM_CAP_X2APIC_API) & KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST))
		return;
	eoi_case(KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST, 0, true, true);
	eoi_case(KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST, 1 << 12, true, false);
	eoi_case(KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST, 0, false, true);
}
