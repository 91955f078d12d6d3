/* SPDX-License-Identifier: GPL-2.0 */
/* Interrupt controllers in the kernel: guests that count interrupts, and the ioctls, for the parts of `irqchip`. */
#ifndef IRQCHIP_H
#define IRQCHIP_H

#include "vm.h"
#include <signal.h>
#include <sys/eventfd.h>

#define RTE_MASKED	(1ull << 16)
#define RTE_LEVEL	(1ull << 15)
#define MSI_LEVEL	(1u << 15 | 1u << 14)
#define NOBODY		(-1)

/* Tells how many interrupts there have been, after each. */
GUEST64(count_interrupts,
	"mov $" STR(G_LOG) ", %ebx; xor %edx, %edx\n"
	"1: cli; cmp %rdx, (%rbx); jne 2f\n"
	"sti; hlt; jmp 1b\n"
	"2: mov (%rbx), %rdx; mov %edx, %eax; out %eax, $0x10\n"
	"jmp 1b\n");

/*
 * Tells how many interrupts there have been, after each, and ends the interrupt only then, outside the handler: for
 * lines that stay up.
 */
GUEST64(count_levels,
	"mov $" STR(G_LOG) ", %ebx; xor %edx, %edx; mov $0xfee000b0, %esi\n"
	"1: cli; cmp %rdx, (%rbx); jne 2f\n"
	"sti; hlt; jmp 1b\n"
	"2: mov (%rbx), %rdx; mov %edx, %eax; out %eax, $0x10\n"
	"movl $0, (%rsi); jmp 1b\n");

/* 64-bit guest with local APIC enabled; interrupts are ended by the handler. */
static inline void start(struct vm *vm, const unsigned char *code, const unsigned char *end)
{
	vm_add_vcpu(vm, 0);
	vm_long(vm, code, end);
	vm_enable_lapic(vm);
	vm_log(vm)->eoi = LAPIC_EOI;
}

static inline void full(struct vm *vm)
{
	vm_init_irqchip(vm, 4 * MIB);
}

static inline int enable_split(int fd, uint64_t pins)
{
	return enable_cap(fd, KVM_CAP_SPLIT_IRQCHIP, pins);
}

static inline struct kvm_irqchip get_chip(struct vm *vm, unsigned int id)
{
	struct kvm_irqchip chip = { .chip_id = id };

	OK(ioctl(vm->fd, KVM_GET_IRQCHIP, &chip));
	return chip;
}

static inline void set_pin(struct vm *vm, unsigned int pin, uint64_t entry)
{
	struct kvm_irqchip chip = get_chip(vm, KVM_IRQCHIP_IOAPIC);

	chip.chip.ioapic.redirtbl[pin].bits = entry;
	OK(ioctl(vm->fd, KVM_SET_IRQCHIP, &chip));
}

struct routing {
	struct kvm_irq_routing header;
	struct kvm_irq_routing_entry entry[4];
};

static inline struct kvm_irq_routing_entry msi(unsigned int gsi, uint32_t data)
{
	return (struct kvm_irq_routing_entry) {
		.gsi = gsi, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { .address_lo = 0xfee00000, .data = data },
	};
}

static inline struct kvm_irq_routing_entry pin(unsigned int gsi, unsigned int chip, unsigned int number)
{
	return (struct kvm_irq_routing_entry) {
		.gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { .irqchip = chip, .pin = number },
	};
}

static inline int set_routing(int fd, unsigned int n, struct kvm_irq_routing_entry a, struct kvm_irq_routing_entry b)
{
	struct routing r = { .header.nr = n, .entry = { a, b } };

	return ioctl(fd, KVM_SET_GSI_ROUTING, &r);
}

static inline int line(int fd, unsigned int gsi, unsigned int level)
{
	struct kvm_irq_level l = { .irq = gsi, .level = level };

	OK(ioctl(fd, KVM_IRQ_LINE_STATUS, &l));
	return l.status;
}

static inline int irqfd(int vm, int fd, unsigned int gsi, unsigned int flags, int resample)
{
	struct kvm_irqfd args = { .fd = fd, .gsi = gsi, .flags = flags, .resamplefd = resample };

	return ioctl(vm, KVM_IRQFD, &args);
}

static inline int ioeventfd(int vm, int fd, uint64_t addr, unsigned int len, unsigned int flags, uint64_t match)
{
	struct kvm_ioeventfd args = { .fd = fd, .addr = addr, .len = len, .flags = flags, .datamatch = match };

	return ioctl(vm, KVM_IOEVENTFD, &args);
}

static inline int event(void)
{
	return OK(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
}

static inline void signal_event(int fd)
{
	uint64_t one = 1;

	REQUIRE_EQ(write(fd, &one, 8), 8);
}

static inline uint64_t take_event(int fd)
{
	uint64_t n = 0;

	return read(fd, &n, 8) == 8 ? n : 0;
}

/* Runs until the guest has counted `count` interrupts, the last of `vector`. */
static inline void expect_interrupt(struct vm *vm, unsigned int count, unsigned int vector)
{
	REQUIRE_EQ(vm_expect_out(vm, 0x10), count);
	CHECK_EQ(vm_log(vm)->event[count - 1].vector, vector);
}

#endif
