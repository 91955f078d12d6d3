// SPDX-License-Identifier: GPL-2.0
/* Interrupts and events, and guests that make them. */
#define _GNU_SOURCE
#include "faults.h"

static struct {
	struct kvm_irq_routing header;
	struct kvm_irq_routing_entry entry[3];
} table = {
	.entry = {
		{ .gsi = 20, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { 0xfee00000, 0, 0x41 } },
		{ .gsi = 22, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { 0xfee00000, 0, 0x42 } },
		{ .gsi = 21, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { KVM_IRQCHIP_IOAPIC, 21 } },
	},
};

static long message_routes(void)
{
	table.header.nr = 2;
	return ioctl(w.vm.fd, KVM_SET_GSI_ROUTING, &table);
}

static long routes(void)
{
	table.header.nr = 3;
	return ioctl(w.vm.fd, KVM_SET_GSI_ROUTING, &table);
}

static long irqfd(uint32_t flags, uint32_t gsi, int fd, int resample)
{
	struct kvm_irqfd i = { .fd = fd, .gsi = gsi, .flags = flags, .resamplefd = resample };

	return ioctl(w.vm.fd, KVM_IRQFD, &i);
}

static long add_irqfd(void)
{
	return irqfd(0, 20, w.event[0], 0);
}

static long add_resampled(void)
{
	return irqfd(KVM_IRQFD_FLAG_RESAMPLE, 21, w.event[1], w.event[0]);
}

static long signal_irqfd(void)
{
	uint64_t one = 1;

	return write(w.event[0], &one, sizeof(one));
}

static long drop_irqfd(void)
{
	return irqfd(KVM_IRQFD_FLAG_DEASSIGN, 20, w.event[0], 0);
}

static long drop_resampled(void)
{
	return irqfd(KVM_IRQFD_FLAG_DEASSIGN, 21, w.event[1], 0);
}

static long ioeventfd(uint64_t addr, uint32_t len, uint32_t flags)
{
	struct kvm_ioeventfd e = { .addr = addr, .len = len, .fd = w.event[0], .flags = flags, .datamatch = 1 };

	return ioctl(w.vm.fd, KVM_IOEVENTFD, &e);
}

static long add_port_event(void)
{
	return ioeventfd(0x500, 4, KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH);
}

static long add_memory_event(void)
{
	return ioeventfd(G_MMIO + 0x1000, 4, 0);
}

static long add_any_event(void)
{
	return ioeventfd(G_MMIO + 0x2000, 0, 0);
}

static long drop_port_event(void)
{
	return ioeventfd(0x500, 4, KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_DEASSIGN);
}

static long drop_memory_event(void)
{
	return ioeventfd(G_MMIO + 0x1000, 4, KVM_IOEVENTFD_FLAG_DEASSIGN);
}

static long zone(unsigned long request, uint64_t addr, uint32_t size, uint32_t pio)
{
	struct kvm_coalesced_mmio_zone z = { .addr = addr, .size = size, .pio = pio };

	return ioctl(w.vm.fd, request, &z);
}

static long add_zone(void)
{
	return zone(KVM_REGISTER_COALESCED_MMIO, G_MMIO + 0x3000, 4096, 0);
}

static long add_port_zone(void)
{
	return zone(KVM_REGISTER_COALESCED_MMIO, 0x600, 4, 1);
}

static long drop_zone(void)
{
	return zone(KVM_UNREGISTER_COALESCED_MMIO, G_MMIO + 0x3000, 4096, 0);
}

static long send_message(void)
{
	struct kvm_msi m = { .address_lo = 0xfee00000, .data = 0x43 };

	return ioctl(w.vm.fd, KVM_SIGNAL_MSI, &m);
}

static long set_line(void)
{
	struct kvm_irq_level l = { .irq = 4, .level = 1 };

	return ioctl(w.vm.fd, KVM_IRQ_LINE, &l);
}

GUEST64(tells,
	"mov $0x500, %edx; mov $1, %eax; out %eax, %dx; mov $" STR(G_MMIO) ", %ebx\n"
	"movl $1, 0x1000(%rbx); movl $1, 0x2000(%rbx); movl $1, 0x3000(%rbx); mov $0x600, %edx; out %al, %dx\n"
	"mov $7, %eax; out %eax, $0x11; hlt\n");
ENTERS(tells)

#define EVENTS SPARED(map_vcpu), SPARED(put_cpuid), STEP(message_routes), STEP(add_irqfd), STEP(signal_irqfd), \
	STEP(add_port_event), STEP(add_memory_event), STEP(add_any_event), STEP(add_zone),			\
	STEP(add_port_zone), STEP(send_message), SPARED(enter_tells), STEP(run)
#define NO_EVENTS STEP(drop_irqfd), STEP(drop_port_event), STEP(drop_memory_event), STEP(drop_zone)

TEST_SECONDS(interrupts, 1200)
{
	EACH_FAILS(SPARED(open_device), SPARED(create_vm), SPARED(add_slot), SPARED(add_irqchip), SPARED(add_vcpu),
		   EVENTS, STEP(routes), STEP(set_line), STEP(add_resampled), STEP(drop_resampled), NO_EVENTS);
}

static long split(void)
{
	return enable_cap(w.vm.fd, KVM_CAP_SPLIT_IRQCHIP, 24);
}

TEST_SECONDS(split_irqchip, 1200)
{
	EACH_FAILS(SPARED(open_device), SPARED(create_vm), SPARED(add_slot), STEP(split), STEP(add_vcpu), EVENTS,
		   NO_EVENTS);
}

static long synic(void)
{
	return enable_cap(w.vm.vcpu, KVM_CAP_HYPERV_SYNIC2, 0);
}

static long hyperv_cpuid_set(void)
{
	set_hyperv_cpuid(w.vm.kvm, w.vm.vcpu);
	return 0;
}

static long hyperv_event(void)
{
	struct kvm_hyperv_eventfd e = { .conn_id = 5, .fd = w.event[0] };

	return ioctl(w.vm.fd, KVM_HYPERV_EVENTFD, &e);
}

static long hyperv_msrs(void)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry[8];
	} m = {
		.header.nmsrs = 6,
		.entry = {
			{ .index = 0x40000000, .data = 1 }, { .index = 0x40000001, .data = 0x204001 },
			{ .index = 0x40000021, .data = 0x205001 }, { .index = 0x40000080, .data = 1 },
			{ .index = 0x40000082, .data = 0x206001 }, { .index = 0x40000083, .data = 0x207001 },
		},
	};
	return in_full(ioctl(w.vm.vcpu, KVM_SET_MSRS, &m), 6);
}

GUEST64(hello, "mov $0x77, %eax; out %eax, $0x11; hlt\n");
ENTERS(hello)

TEST_SECONDS(hyperv, 1200)
{
	EACH_FAILS(SPARED(open_device), SPARED(create_vm), SPARED(add_slot), SPARED(add_irqchip), SPARED(add_vcpu),
		   SPARED(map_vcpu), SPARED(hyperv_cpuid_set), STEP(synic), STEP(hyperv_event), STEP(hyperv_msrs),
		   SPARED(enter_hello), STEP(run));
}
