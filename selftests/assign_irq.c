// SPDX-License-Identifier: GPL-2.0
/* Interrupts of assigned devices: messages, and the pin. */
#define _GNU_SOURCE
#include "assign.h"

static struct kvm_lapic_state lapic_of(struct vm *vm)
{
	struct kvm_lapic_state lapic;

	OK(ioctl(vm->vcpu, KVM_GET_LAPIC, &lapic));
	return lapic;
}

/* Whether VECTOR's bit in the IRR is set. */
static bool requested(struct vm *vm)
{
	struct kvm_lapic_state lapic = lapic_of(vm);

	return *(uint32_t *)(lapic.regs + LAPIC_IRR + VECTOR / 32 * 16) >> VECTOR % 32 & 1;
}

/* Clears the IRR. */
static void forget(struct vm *vm)
{
	struct kvm_lapic_state lapic = lapic_of(vm);

	memset(lapic.regs + LAPIC_IRR, 0, 0x80);
	OK(ioctl(vm->vcpu, KVM_SET_LAPIC, &lapic));
}

/* Has the device raise its interrupt, and waits until it would have arrived. */
static void raise_interrupt(volatile uint8_t *bar)
{
	write32(bar, EDU_RAISE, 1);
	write32(bar, EDU_ACK, 1);
	usleep(20000);
}

/* Masked messages are kept; switched off ones do not come. */
TEST(interrupts)
{
	struct address address = edu();
	struct rvmm_device_vector vector = { .vector = 0, .gsi = GSI };
	volatile uint8_t *bar;
	struct vm vm;
	int device;

	vm_init(&vm, 4 * MIB);
	device = assign(&vm, &address);
	CHECK_ERRNO(set_irqs(device, RVMM_IRQ_MSI, 1, GSI), EINVAL);
	close(device);
	OK(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	vm_add_vcpu(&vm, 0);
	vm_long_memory(&vm);
	vm_long_state(&vm);
	route_message(&vm, GSI, VECTOR);
	device = assign(&vm, &address);
	bar = map_bar(device, 0);
	CHECK_EQ(info_of(device).msi, 1);
	CHECK_EQ(info_of(device).msix, 0);
	CHECK_ERRNO(set_irqs(device, 0, 1, GSI), EINVAL);
	CHECK_ERRNO(set_irqs(device, RVMM_IRQ_MSI, 1, 4096), EINVAL);
	CHECK_ERRNO(set_irqs(device, RVMM_IRQ_MSI, 2, GSI), ENOSPC);
	CHECK_ERRNO(set_irqs(device, RVMM_IRQ_MSI, 2049, GSI), EINVAL);
	CHECK(set_irqs(device, RVMM_IRQ_MSIX, 1, GSI) == -1);
	CHECK_ERRNO(ioctl(device, RVMM_DEVICE_SET_VECTOR, &vector), EINVAL);
	OK(set_irqs(device, RVMM_IRQ_MSI, 1, RVMM_GSI_NONE));
	set_master(device, true);

	vm_enable_lapic(&vm);
	raise_interrupt(bar);
	CHECK_EQ(requested(&vm), 0);
	vector.gsi = 4096;
	CHECK_ERRNO(ioctl(device, RVMM_DEVICE_SET_VECTOR, &vector), EINVAL);
	vector.gsi = GSI;
	vector.vector = 1;
	CHECK_ERRNO(ioctl(device, RVMM_DEVICE_SET_VECTOR, &vector), EINVAL);
	vector.vector = 0;
	OK(ioctl(device, RVMM_DEVICE_SET_VECTOR, &vector));
	CHECK_EQ(requested(&vm), 1);
	forget(&vm);
	CHECK_EQ(requested(&vm), 0);
	raise_interrupt(bar);
	CHECK_EQ(requested(&vm), 1);
	forget(&vm);
	OK(set_irqs(device, RVMM_IRQ_MSI, 0, 0));
	CHECK_EQ(config_read(device, 4, 2) & 0x400, 0x400);
	raise_interrupt(bar);
	CHECK_EQ(requested(&vm), 0);
	/* Without bus mastering no message leaves the device. */
	OK(set_irqs(device, RVMM_IRQ_MSI, 1, GSI));
	set_master(device, false);
	raise_interrupt(bar);
	CHECK_EQ(requested(&vm), 0);
}

#define PIN_GSI		18
#define PIN_WAIT(n)	"7: cli; cmpq $" STR(n) ", " STR(G_LOG) "; jae 8f; sti; hlt; jmp 7b\n8: cli\n"
#define PIN_IDLE	"mov $2000, %esi; sti; 7: pause; dec %esi; jnz 7b; cli\n"
#define PIN_SERVE	"mov 0x24(%rbx), %eax; mov %eax, 0x64(%rbx)\n"
#define PIN_EOI		"movl $0, 0xb0(%rcx)\n"
#define PIN_COUNT(port)	"mov " STR(G_LOG) ", %eax; out %eax, $" STR(port) "\n"

GUEST64(pin_guest,
	"mov $" STR(G_BAR) ", %ebx; mov $0xfee00000, %ecx; movl $0x1ff, 0xf0(%rcx)\n"
	/* The IOAPIC's entry: level-triggered, to APIC 0. */
	"mov $0xfec00000, %edx\n"
	"movl $0x10 + 2 * " STR(PIN_GSI) " + 1, (%rdx)\n"
	"movl $0, 0x10(%rdx)\n"
	"movl $0x10 + 2 * " STR(PIN_GSI) ", (%rdx); movl $0x8000 + " STR(VECTOR) ", 0x10(%rdx)\n"
	"out %eax, $0x10\n"
	"movl $5, 0x60(%rbx)\n" PIN_WAIT(1)
	"mov 0x24(%rbx), %eax; out %eax, $0x11\n"
	/* Ended but not served: it comes again. */
	PIN_EOI PIN_WAIT(2)
	PIN_SERVE PIN_EOI PIN_IDLE PIN_COUNT(0x12)
	"movl $1, 0x60(%rbx)\n" PIN_WAIT(3)
	/* Served, and asserted anew before the end. */
	PIN_SERVE "movl $2, 0x60(%rbx)\n" PIN_EOI PIN_WAIT(4)
	PIN_SERVE PIN_EOI PIN_IDLE PIN_COUNT(0x13)
	/* Interrupt Disable is set now: what comes waits. */
	"movl $1, 0x60(%rbx)\n" PIN_IDLE PIN_COUNT(0x14)
	PIN_WAIT(5) PIN_SERVE PIN_EOI PIN_IDLE PIN_COUNT(0x15)
	/* An interrupt that waits is forgotten when the device gives it up. */
	"movl $1, 0x60(%rbx)\n" PIN_SERVE PIN_COUNT(0x16) PIN_IDLE PIN_COUNT(0x17)
	/* The last one is not served before the pin is given up. */
	"movl $1, 0x60(%rbx)\n" PIN_WAIT(6) PIN_COUNT(0x18)
	PIN_EOI PIN_IDLE PIN_COUNT(0x19)
	"1: jmp 1b\n");

/*
 * The guest's next OUT. With the IOAPIC in user space its registers exit, and so do EOIs, which the device has to
 * be told.
 */
static uint32_t pin_out(struct vm *vm, int device, bool split, unsigned int port)
{
	for (;;) {
		switch (vm_run(vm)) {
		case KVM_EXIT_MMIO:
			REQUIRE(split && vm->run->mmio.phys_addr >> 12 == 0xfec00);
			continue;
		case KVM_EXIT_IOAPIC_EOI:
			REQUIRE(split);
			CHECK_EQ(vm->run->eoi.vector, VECTOR);
			if (device >= 0)
				OK(ioctl(device, RVMM_DEVICE_RESAMPLE, 0));
			continue;
		case KVM_EXIT_IO:
			CHECK_EQ(vm->run->io.port, port);
			return *(uint32_t *)io_data(vm);
		default:
			DIE("%s", exit_name(vm->run->exit_reason));
		}
	}
}

static bool pin_is_off(int device)
{
	return config_read(device, 4, 2) & 0x400;
}

/* From messages to the pin and back: the pin still asserts. */
static void check_pin_and_messages(int device, volatile uint8_t *bar)
{
	for (unsigned int i = 0; i < 3; i++) {
		OK(set_irqs(device, RVMM_IRQ_INTX, 1, RVMM_GSI_NONE));
		CHECK(pin_is_off(device));
		OK(set_irqs(device, RVMM_IRQ_MSI, 1, GSI));
		CHECK(pin_is_off(device));
		write32(bar, EDU_ACK, ~0u);
		OK(set_irqs(device, RVMM_IRQ_INTX, 1, PIN_GSI));
		CHECK(!pin_is_off(device));
		write32(bar, EDU_RAISE, 1);
		usleep(20000);
		CHECK(pin_is_off(device));
	}
}

static void check_pin(const struct address *address, bool split)
{
	struct rvmm_device_vector vector = { .vector = 0, .gsi = RVMM_GSI_NONE };
	struct kvm_enable_cap cap = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args[0] = 24 };
	volatile uint8_t *bar;
	struct vm vm;
	int device;

	vm_init(&vm, 4 * MIB);
	device = assign(&vm, address);
	CHECK_EQ(info_of(device).intx, 1);
	CHECK_ERRNO(set_irqs(device, RVMM_IRQ_INTX, 1, PIN_GSI), EINVAL);
	OK(split ? ioctl(vm.fd, KVM_ENABLE_CAP, &cap) : ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	vm_add_vcpu(&vm, 0);
	VM_LONG(&vm, pin_guest);
	if (split) {
		/* What an IOAPIC in user space makes of the entry. */
		route_message(&vm, PIN_GSI, 0xc000 | VECTOR);
	}
	bar = map_bar(device, 0);
	vm_slot(&vm, 1, 0, G_BAR, MIB, (void *)bar);
	CHECK_ERRNO(ioctl(device, RVMM_DEVICE_RESAMPLE, 0), EINVAL);
	CHECK_ERRNO(set_irqs(device, RVMM_IRQ_INTX, 2, PIN_GSI), EINVAL);
	CHECK_ERRNO(set_irqs(device, RVMM_IRQ_INTX, 1, 4096), EINVAL);
	CHECK_ERRNO(ioctl(device, RVMM_DEVICE_SET_VECTOR, &vector), EINVAL);
	CHECK(pin_is_off(device));
	OK(set_irqs(device, RVMM_IRQ_INTX, 1, PIN_GSI));
	CHECK(!pin_is_off(device));
	/* Whatever else happens to the command register. */
	set_master(device, true);
	CHECK(!pin_is_off(device));
	pin_out(&vm, device, split, 0x10);
	CHECK_EQ(pin_out(&vm, device, split, 0x11), 5);
	CHECK(pin_is_off(device));
	set_master(device, false);
	CHECK(pin_is_off(device));
	CHECK_EQ(pin_out(&vm, device, split, 0x12), 2);
	CHECK(!pin_is_off(device));
	CHECK_EQ(pin_out(&vm, device, split, 0x13), 4);
	OK(ioctl(device, RVMM_DEVICE_SET_VECTOR, &vector));
	CHECK(pin_is_off(device));
	CHECK_EQ(pin_out(&vm, device, split, 0x14), 4);
	vector.gsi = PIN_GSI;
	OK(ioctl(device, RVMM_DEVICE_SET_VECTOR, &vector));
	CHECK_EQ(pin_out(&vm, device, split, 0x15), 5);
	vector.gsi = RVMM_GSI_NONE;
	OK(ioctl(device, RVMM_DEVICE_SET_VECTOR, &vector));
	CHECK_EQ(pin_out(&vm, device, split, 0x16), 5);
	vector.gsi = PIN_GSI;
	OK(ioctl(device, RVMM_DEVICE_SET_VECTOR, &vector));
	CHECK(!pin_is_off(device));
	CHECK_EQ(pin_out(&vm, device, split, 0x17), 5);
	CHECK_EQ(pin_out(&vm, device, split, 0x18), 6);
	/* Given up with the interrupt in service and the device asserting its pin. */
	OK(set_irqs(device, RVMM_IRQ_INTX, 0, 0));
	CHECK(pin_is_off(device));
	CHECK_ERRNO(ioctl(device, RVMM_DEVICE_RESAMPLE, 0), EINVAL);
	CHECK_EQ(pin_out(&vm, -1, split, 0x19), 6);
	check_pin_and_messages(device, bar);
	/* The device goes with its interrupt in service. */
	close(device);
	vm_slot(&vm, 1, 0, G_BAR, 0, (void *)bar);
	munmap((void *)bar, MIB);
	device = assign(&vm, address);
	CHECK(pin_is_off(device));
	write32(map_bar(device, 0), EDU_ACK, ~0u);
	close(device);
	vm_free(&vm);
}

/* INTx, with the IOAPIC in the kernel and in user space. */
TEST(pin)
{
	struct address address = edu();

	check_pin(&address, false);
}

TEST(pin_split_irqchip)
{
	struct address address = edu();

	check_pin(&address, true);
}
