// SPDX-License-Identifier: GPL-2.0
/* Interrupt controllers in the kernel, and GSI routing; irqfds and ioeventfds are in irqchip_eventfd.c. */
#define _GNU_SOURCE
#include "irqchip.h"

/*
 * As count_interrupts after programming the 8259s (automatic EOI, vectors from 0x20, line 0 open unless %edi) and
 * the 8254 (100 Hz).
 */
GUEST64(count_ticks,
	"mov $0x11, %al; out %al, $0x20; mov $0x20, %al\n"
	"out %al, $0x21; mov $4, %al; out %al, $0x21\n"
	"mov $3, %al; out %al, $0x21\n"
	"mov $0xfe, %al; or %dil, %al; out %al, $0x21\n"
	"mov $0x34, %al; out %al, $0x43; mov $0x9c, %al\n"
	"out %al, $0x40; mov $0x2e, %al; out %al, $0x40\n"
	"mov $" STR(G_LOG) ", %ebx; xor %edx, %edx\n"
	"1: cli; cmp %rdx, (%rbx); jne 2f\n"
	"sti; hlt; jmp 1b\n"
	"2: mov (%rbx), %rdx; mov %edx, %eax; out %eax, $0x10\n"
	"jmp 1b\n");

/* Counts interrupts of vector 0x61 in R8 (the handler: see storm_handler), and its own turns. */
GUEST64(storm,
	"xor %r8d, %r8d; sti; 1: incq " STR(G_CELLS) "\n"
	"cmp $25000, %r8d; jb 1b; cli; mov %r8d, %eax\n"
	"out %eax, $0x10\n");
GUEST64(storm_handler,
	"inc %r8d; push %rax; mov $0xfee000b0, %eax\n"
	"movl $0, (%rax); pop %rax; iretq\n");

TEST(creation)
{
	struct kvm_pit_config pit = {};
	struct vm vm;

	vm_init(&vm, 0);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_PIT2, &pit), ENOENT);
	OK(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0), EEXIST);
	CHECK_ERRNO(enable_split(vm.fd, 24), EEXIST);
	OK(ioctl(vm.fd, KVM_CREATE_PIT2, &pit));
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_PIT2, &pit), EEXIST);
	vm_free(&vm);

	vm_init(&vm, 0);
	CHECK_ERRNO(enable_split(vm.fd, 4097), EINVAL);
	OK(enable_split(vm.fd, 4096));
	CHECK_ERRNO(enable_split(vm.fd, 4096), EEXIST);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0), EEXIST);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_PIT2, &pit), ENOENT);
	vm_free(&vm);

	vm_new(&vm, 0);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0), EINVAL);
	CHECK_ERRNO(enable_split(vm.fd, 24), EEXIST);
	vm_free(&vm);
}

TEST(chip_state)
{
	struct kvm_irqchip chip = {};
	struct vm vm;

	vm_init(&vm, 0);
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_IRQCHIP, &chip), ENXIO);
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_IRQCHIP, &chip), ENXIO);
	OK(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	chip.chip_id = 3;
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_IRQCHIP, &chip), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_IRQCHIP, &chip), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_IRQCHIP, 8), EFAULT);

	chip = get_chip(&vm, KVM_IRQCHIP_IOAPIC);
	CHECK_EQ(chip.chip.ioapic.base_address, 0xfec00000);
	CHECK_EQ(chip.chip.ioapic.irr, 0);
	for (int i = 0; i < 24; i++)
		CHECK(chip.chip.ioapic.redirtbl[i].bits & RTE_MASKED);
	chip.chip.ioapic.ioregsel = 0x12;
	chip.chip.ioapic.id = 3;
	chip.chip.ioapic.redirtbl[7].bits = 0x0500000000018a41;
	OK(ioctl(vm.fd, KVM_SET_IRQCHIP, &chip));
	chip = get_chip(&vm, KVM_IRQCHIP_IOAPIC);
	CHECK_EQ(chip.chip.ioapic.ioregsel, 0x12);
	CHECK_EQ(chip.chip.ioapic.id, 3);
	CHECK_EQ(chip.chip.ioapic.redirtbl[7].bits, 0x0500000000018a41);

	for (unsigned int id = 0; id < 2; id++) {
		chip = get_chip(&vm, id);
		chip.chip.pic.imr = 0xa5;
		chip.chip.pic.irq_base = 0x70;
		chip.chip.pic.elcr = 0x08;
		chip.chip.pic.isr = 0x10;
		OK(ioctl(vm.fd, KVM_SET_IRQCHIP, &chip));
		chip = get_chip(&vm, id);
		CHECK_EQ(chip.chip.pic.imr, 0xa5);
		CHECK_EQ(chip.chip.pic.irq_base, 0x70);
		CHECK_EQ(chip.chip.pic.isr, 0x10);
		CHECK_EQ(chip.chip.pic.elcr_mask, id ? 0xde : 0xf8);
	}
	vm_free(&vm);
}

TEST(pit_state)
{
	struct kvm_pit_state2 s = {};
	struct kvm_pit_config config = {};
	struct kvm_reinject_control control = {};
	struct vm vm;

	full(&vm);
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_PIT2, &s), ENXIO);
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_PIT2, &s), ENXIO);
	CHECK_ERRNO(ioctl(vm.fd, KVM_REINJECT_CONTROL, &control), ENXIO);
	OK(ioctl(vm.fd, KVM_CREATE_PIT2, &config));
	OK(ioctl(vm.fd, KVM_REINJECT_CONTROL, &control));
	OK(ioctl(vm.fd, KVM_GET_PIT2, &s));
	CHECK_EQ(s.channels[0].gate, 1);
	CHECK_EQ(s.channels[2].gate, 0);
	s.channels[2].count = 0x4321;
	s.channels[2].mode = 3;
	s.channels[2].rw_mode = 3;
	s.channels[2].gate = 1;
	s.flags = KVM_PIT_FLAGS_HPET_LEGACY;
	OK(ioctl(vm.fd, KVM_SET_PIT2, &s));
	OK(ioctl(vm.fd, KVM_GET_PIT2, &s));
	CHECK_EQ(s.channels[2].count, 0x4321);
	CHECK_EQ(s.channels[2].mode, 3);
	CHECK_EQ(s.channels[2].gate, 1);
	CHECK_EQ(s.flags, KVM_PIT_FLAGS_HPET_LEGACY);
	vm_free(&vm);
}

TEST(line_status)
{
	struct kvm_irq_level l = { .irq = 5, .level = 1 };
	struct vm vm;

	vm_init(&vm, 0);
	CHECK_ERRNO(ioctl(vm.fd, KVM_IRQ_LINE, &l), ENXIO);
	CHECK_ERRNO(ioctl(vm.fd, KVM_IRQ_LINE_STATUS, &l), ENXIO);
	OK(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	/* Open in the 8259, masked in the IOAPIC. */
	CHECK_EQ(line(vm.fd, 5, 1), 1);
	CHECK_EQ(line(vm.fd, 5, 0), 2);
	CHECK_EQ(line(vm.fd, 5, 1), 0);
	CHECK_EQ(line(vm.fd, 20, 1), NOBODY);
	CHECK_EQ(line(vm.fd, 24, 1), NOBODY);
	CHECK_EQ(line(vm.fd, 4096, 1), NOBODY);
	CHECK_EQ(line(vm.fd, 0xffffffff, 1), NOBODY);
	vm_free(&vm);
}

TEST(routing_errors)
{
	struct routing r = {};
	struct vm vm;

	vm_init(&vm, 0);
	CHECK_ERRNO(set_routing(vm.fd, 1, msi(0, 0x30), msi(0, 0)), EINVAL);
	OK(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	r.header.nr = 4097;
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_GSI_ROUTING, &r), EINVAL);
	r.header.nr = 0;
	r.header.flags = 1;
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_GSI_ROUTING, &r), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_GSI_ROUTING, 8), EFAULT);
	CHECK_ERRNO(set_routing(vm.fd, 1, msi(4096, 0x30), msi(0, 0)), EINVAL);
	CHECK_ERRNO(set_routing(vm.fd, 2, msi(9, 0x30), msi(9, 0x31)), EINVAL);
	CHECK_ERRNO(set_routing(vm.fd, 2, msi(9, 0x30), pin(9, 2, 9)), EINVAL);
	CHECK_ERRNO(set_routing(vm.fd, 2, pin(9, 2, 8), pin(9, 2, 9)), EINVAL);
	CHECK_ERRNO(set_routing(vm.fd, 1, pin(9, 0, 8), msi(0, 0)), EINVAL);
	CHECK_ERRNO(set_routing(vm.fd, 1, pin(9, 2, 24), msi(0, 0)), EINVAL);
	CHECK_ERRNO(set_routing(vm.fd, 1, pin(9, 3, 0), msi(0, 0)), EINVAL);
	r = (struct routing) { .header.nr = 1, .entry = { { .gsi = 1, .type = 99 } } };
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_GSI_ROUTING, &r), EINVAL);
	r = (struct routing) { .header.nr = 1, .entry = { pin(9, 2, 9) } };
	r.entry[0].flags = 1;
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_GSI_ROUTING, &r), EINVAL);
	/* A table that was refused changes nothing. */
	CHECK_EQ(line(vm.fd, 5, 1), 1);
	OK(set_routing(vm.fd, 2, pin(9, 2, 9), pin(9, 1, 1)));
	CHECK_EQ(line(vm.fd, 5, 0), NOBODY);
	OK(set_routing(vm.fd, 1, msi(4095, 0x30), msi(0, 0)));
	OK(set_routing(vm.fd, 0, msi(0, 0), msi(0, 0)));
	vm_free(&vm);

	vm_init(&vm, 0);
	OK(enable_split(vm.fd, 24));
	CHECK_ERRNO(set_routing(vm.fd, 1, pin(9, 2, 9), msi(0, 0)), EINVAL);
	OK(set_routing(vm.fd, 1, msi(9, 0x30), msi(0, 0)));
	vm_free(&vm);
}

TEST(signal_msi)
{
	struct kvm_msi m = { .address_lo = 0xfee00000, .data = 0x45 };
	struct vm vm;

	vm_init(&vm, 4 * MIB);
	CHECK_ERRNO(ioctl(vm.fd, KVM_SIGNAL_MSI, &m), EINVAL);
	OK(enable_split(vm.fd, 24));
	vm_add_vcpu(&vm, 0);
	VM_LONG(&vm, count_interrupts);
	vm_log(&vm)->eoi = LAPIC_EOI;
	/* Disabled in SVR. */
	CHECK_EQ(ioctl(vm.fd, KVM_SIGNAL_MSI, &m), 0);
	vm_enable_lapic(&vm);
	m.flags = 2;
	CHECK_ERRNO(ioctl(vm.fd, KVM_SIGNAL_MSI, &m), EINVAL);
	m.flags = KVM_MSI_VALID_DEVID;
	CHECK_EQ(ioctl(vm.fd, KVM_SIGNAL_MSI, &m), 1);
	expect_interrupt(&vm, 1, 0x45);
	/* To an APIC that does not exist. */
	m.address_lo = 0xfee05000;
	CHECK_EQ(ioctl(vm.fd, KVM_SIGNAL_MSI, &m), 0);
	/* A message to all APICs reaches them. */
	m.address_lo = 0xfeeff000;
	m.data = 0x46;
	CHECK_EQ(ioctl(vm.fd, KVM_SIGNAL_MSI, &m), 1);
	expect_interrupt(&vm, 2, 0x46);
	vm_free(&vm);
}

TEST(level_line)
{
	int fd = event(), resample = event();
	struct vm vm;

	full(&vm);
	start(&vm, count_levels, count_levels_end);
	vm_log(&vm)->eoi = 0;
	OK(irqfd(vm.fd, fd, 22, KVM_IRQFD_FLAG_RESAMPLE, resample));
	/* The line waits until its pin is unmasked. */
	set_pin(&vm, 22, RTE_MASKED | RTE_LEVEL | 0x53);
	CHECK_EQ(line(vm.fd, 22, 1), NOBODY);
	set_pin(&vm, 22, RTE_LEVEL | 0x53);
	expect_interrupt(&vm, 1, 0x53);
	/* While the interrupt is in service no other comes. */
	CHECK(get_chip(&vm, KVM_IRQCHIP_IOAPIC).chip.ioapic.redirtbl[22].bits & 1 << 14);
	CHECK_EQ(line(vm.fd, 22, 1), NOBODY);
	signal_event(fd);
	/* The interrupt comes again while somebody holds the line up, as the irqfd does until the interrupt ends. */
	for (unsigned int i = 2; i <= 5; i++) {
		expect_interrupt(&vm, i, 0x53);
		CHECK_EQ(take_event(resample), 1);
	}
	line(vm.fd, 22, 0);
	CHECK_EQ(get_chip(&vm, KVM_IRQCHIP_IOAPIC).chip.ioapic.irr, 0);
	vm_free(&vm);
}

TEST(split_eoi)
{
	struct vm vm;

	vm_init(&vm, 4 * MIB);
	OK(enable_split(vm.fd, 24));
	OK(set_routing(vm.fd, 2, msi(5, MSI_LEVEL | 0x61), msi(6, 0x62)));
	start(&vm, count_interrupts, count_interrupts_end);
	CHECK_EQ(line(vm.fd, 5, 1), 1);
	vm_expect(&vm, KVM_EXIT_IOAPIC_EOI);
	CHECK_EQ(vm.run->eoi.vector, 0x61);
	expect_interrupt(&vm, 1, 0x61);
	CHECK_EQ(line(vm.fd, 6, 1), 1);
	expect_interrupt(&vm, 2, 0x62);
	CHECK_EQ(line(vm.fd, 6, 0), NOBODY);
	/* KVM forgets the end of an interrupt whose route goes. */
	if (!is_rvmm()) {
		vm_free(&vm);
		return;
	}
	/* The route goes while the interrupt is on its way: its end is told all the same. */
	CHECK_EQ(line(vm.fd, 5, 1), 1);
	OK(set_routing(vm.fd, 1, msi(6, 0x62), msi(0, 0)));
	vm_expect(&vm, KVM_EXIT_IOAPIC_EOI);
	CHECK_EQ(vm.run->eoi.vector, 0x61);
	expect_interrupt(&vm, 3, 0x61);
	vm_free(&vm);
}

/* Nothing is changed that the guest could not have written, but that user space may load. */
TEST(pic_state_round_trip)
{
	struct kvm_irqchip set = { .chip_id = KVM_IRQCHIP_PIC_SLAVE }, chip;
	struct vm vm;

	full(&vm);
	chip = get_chip(&vm, KVM_IRQCHIP_PIC_SLAVE);
	CHECK_EQ(chip.chip.pic.elcr_mask, 0xde);
	set.chip.pic.irq_base = 10;
	set.chip.pic.imr = 0x55;
	OK(ioctl(vm.fd, KVM_SET_IRQCHIP, &set));
	chip = get_chip(&vm, KVM_IRQCHIP_PIC_SLAVE);
	CHECK(!memcmp(&chip.chip.pic, &set.chip.pic, sizeof(chip.chip.pic)));
}

TEST(pic_interrupt)
{
	struct kvm_irqchip chip;
	struct vm vm;

	full(&vm);
	vm_add_vcpu(&vm, 0);
	VM_LONG(&vm, count_interrupts);
	chip = get_chip(&vm, KVM_IRQCHIP_PIC_MASTER);
	chip.chip.pic.irq_base = 0x20;
	chip.chip.pic.auto_eoi = 1;
	OK(ioctl(vm.fd, KVM_SET_IRQCHIP, &chip));
	chip = get_chip(&vm, KVM_IRQCHIP_PIC_SLAVE);
	chip.chip.pic.irq_base = 0x28;
	chip.chip.pic.auto_eoi = 1;
	OK(ioctl(vm.fd, KVM_SET_IRQCHIP, &chip));
	line(vm.fd, 5, 1);
	line(vm.fd, 5, 0);
	expect_interrupt(&vm, 1, 0x25);
	line(vm.fd, 12, 1);
	line(vm.fd, 12, 0);
	expect_interrupt(&vm, 2, 0x2c);
	vm_free(&vm);
}

/* The 8254 at 100 Hz, through the 8259s and through the IOAPIC. */
static void ticks(bool ioapic)
{
	struct kvm_pit_config config = { .flags = KVM_PIT_SPEAKER_DUMMY };
	struct kvm_regs r;
	struct vm vm;

	full(&vm);
	OK(ioctl(vm.fd, KVM_CREATE_PIT2, &config));
	if (ioapic) {
		start(&vm, count_ticks, count_ticks_end);
		set_pin(&vm, 0, 0x20);
	} else {
		vm_add_vcpu(&vm, 0);
		VM_LONG(&vm, count_ticks);
	}
	r = vm_regs(&vm);
	r.rdi = ioapic ? 0xff : 0;
	vm_set_regs(&vm, &r);
	/* Ticks that were missed while the host was busy come in bursts. */
	while (vm_expect_out(&vm, 0x10) < 20)
		;
	for (unsigned int i = 0; i < 20; i++)
		CHECK_EQ(vm_log(&vm)->event[i].vector, 0x20);
	vm_free(&vm);
}

TEST(pit_through_pic)
{
	ticks(false);
}

TEST(pit_through_ioapic)
{
	ticks(true);
}

/* What KVM_IRQ_LINE_STATUS says of an 8259 line: 1 taken or nothing new, 0 pending already, -1 masked. */
TEST(line_status_pic)
{
	struct vm vm;
	struct kvm_irqchip c;
	struct routing r = { .header.nr = 1, .entry = { pin(5, KVM_IRQCHIP_PIC_MASTER, 5) } };

	full(&vm);
	OK(ioctl(vm.fd, KVM_SET_GSI_ROUTING, &r));
	CHECK_EQ(line(vm.fd, 5, 1), 1);
	CHECK_EQ(line(vm.fd, 5, 1), 1);	/* no edge */
	CHECK_EQ(line(vm.fd, 5, 0), 1);
	CHECK_EQ(line(vm.fd, 5, 1), 0);	/* an edge, but the last request still waits */
	c = get_chip(&vm, KVM_IRQCHIP_PIC_MASTER);
	CHECK_EQ(c.chip.pic.irr, 0x20);
	c.chip.pic.elcr = 0x20;
	OK(ioctl(vm.fd, KVM_SET_IRQCHIP, &c));
	CHECK_EQ(line(vm.fd, 5, 1), 0);
	CHECK_EQ(line(vm.fd, 5, 0), 1);
	CHECK_EQ(line(vm.fd, 5, 1), 1);
	c = get_chip(&vm, KVM_IRQCHIP_PIC_MASTER);
	c.chip.pic.imr = 0x20;
	OK(ioctl(vm.fd, KVM_SET_IRQCHIP, &c));
	CHECK_EQ(line(vm.fd, 5, 0), NOBODY);
	CHECK_EQ(line(vm.fd, 5, 1), NOBODY);
}

/*
 * What KVM_IRQ_LINE_STATUS says of the clock's line, GSI 8: 0 until the guest has ended the last interrupt, and
 * that edge is lost, for user space to make up for.
 */
TEST(line_status_rtc)
{
	struct routing r = { .header.nr = 1, .entry = { pin(8, KVM_IRQCHIP_IOAPIC, 8) } };
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x71 };
	struct vm vm;

	full(&vm);
	start(&vm, count_levels, count_levels_end);
	vm_log(&vm)->eoi = 0;
	OK(ioctl(vm.fd, KVM_SET_GSI_ROUTING, &r));
	set_pin(&vm, 8, 0x62);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(line(vm.fd, 8, 1), 1);
		CHECK_EQ(line(vm.fd, 8, 0), 1);
		/* On its way. */
		CHECK_EQ(line(vm.fd, 8, 1), 0);
		CHECK_EQ(line(vm.fd, 8, 0), 1);
		CHECK_EQ(vm_expect_out(&vm, 0x10), 2 * i + 1);
		/* While the interrupt is in service another one is told as lost. */
		CHECK_EQ(line(vm.fd, 8, 1), 0);
		CHECK_EQ(line(vm.fd, 8, 0), 1);
		/* Ended, and then this one. */
		CHECK_EQ(OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &msi)), 1);
		CHECK_EQ(vm_expect_out(&vm, 0x10), 2 * i + 2);
		CHECK_EQ(vm_log(&vm)->event[2 * i].vector, 0x62);
		CHECK_EQ(vm_log(&vm)->event[2 * i + 1].vector, 0x71);
	}
}

/*
 * The same while the guest gives the pin another vector, RDI, before it ends the interrupt, as Linux does when it moves
 * one to another CPU.
 */
GUEST64(moves,
	"mov $" STR(G_LOG) ", %ebx; xor %edx, %edx; mov $0xfee000b0, %esi; mov $0xfec00000, %ecx\n"
	"1: cli; cmp %rdx, (%rbx); jne 2f; sti; hlt; jmp 1b\n"
	"2: mov (%rbx), %rdx; mov %edx, %eax; out %eax, $0x10\n"
	"movl $0x20, (%rcx); mov %edi, 0x10(%rcx); movl $0, (%rsi); jmp 1b\n");

TEST(line_status_rtc_moved)
{
	static const uint32_t entry[] = { 0x63, 0x64, 0x62, 0x66 };
	struct routing r = { .header.nr = 1, .entry = { pin(8, KVM_IRQCHIP_IOAPIC, 8) } };
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x71 };
	struct kvm_lapic_state l;
	unsigned int count = 0;
	struct kvm_regs regs;
	struct vm vm;

	full(&vm);
	start(&vm, moves, moves_end);
	vm_log(&vm)->eoi = 0;
	OK(ioctl(vm.fd, KVM_SET_GSI_ROUTING, &r));
	set_pin(&vm, 8, 0x62);
	for (unsigned int i = 0; i < ARRAY_SIZE(entry); i++) {
		CHECK_EQ(line(vm.fd, 8, 1), 1);
		line(vm.fd, 8, 0);
		CHECK_EQ(vm_expect_out(&vm, 0x10), ++count);
		CHECK_EQ(line(vm.fd, 8, 1), 0);
		line(vm.fd, 8, 0);
		regs = vm_regs(&vm);
		regs.rdi = entry[i];
		vm_set_regs(&vm, &regs);
		OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &msi));
		CHECK_EQ(vm_expect_out(&vm, 0x10), ++count);
	}
	/* Saving and restoring the local APIC does not end an interrupt in service; forgetting it there does. */
	CHECK_EQ(line(vm.fd, 8, 1), 1);
	line(vm.fd, 8, 0);
	CHECK_EQ(vm_expect_out(&vm, 0x10), ++count);
	OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &l));
	OK(ioctl(vm.vcpu, KVM_SET_LAPIC, &l));
	CHECK_EQ(line(vm.fd, 8, 1), 0);
	line(vm.fd, 8, 0);
	memset(l.regs + 0x100, 0, 0x80);
	OK(ioctl(vm.vcpu, KVM_SET_LAPIC, &l));
	CHECK_EQ(line(vm.fd, 8, 1), 1);
	line(vm.fd, 8, 0);
}

/*
 * Ticks of the 8254 that a guest has missed come one after the other, but leave it time for its work: not the next one
 * at the end of each.
 */
GUEST64(backlog,
	"xor %r8d, %r8d; sti; 1: incq " STR(G_CELLS) "; cmp $50, %r8d; jb 1b; cli; out %al, $0x10\n");

TEST(missed_ticks)
{
	struct kvm_pit_config config = { .flags = 0 };
	struct kvm_lapic_state l;
	struct kvm_pit_state2 pit;
	struct vm vm;

	if (!is_rvmm())
		skip("KVM brings each missed tick at the end of the one before: the guest may not get on");
	full(&vm);
	OK(ioctl(vm.fd, KVM_CREATE_PIT2, &config));
	start(&vm, backlog, backlog_end);
	memcpy(vm.mem + G_STUBS + 16 * 0x61, storm_handler, storm_handler_end - storm_handler);
	OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &l));
	*(uint32_t *)(l.regs + 0x350) = 0x10000;
	OK(ioctl(vm.vcpu, KVM_SET_LAPIC, &l));
	set_pin(&vm, 0, 0x61);
	OK(ioctl(vm.fd, KVM_GET_PIT2, &pit));
	pit.channels[0].mode = 2;
	pit.channels[0].rw_mode = 3;
	pit.channels[0].gate = 1;
	pit.channels[0].count = 1;
	OK(ioctl(vm.fd, KVM_SET_PIT2, &pit));
	/* At 5 kHz at most: hundreds. */
	usleep(100000);
	vm_expect_out(&vm, 0x10);
	CHECK(vm_cells(&vm)[0] >= 10);
	note("%llu turns", (unsigned long long)vm_cells(&vm)[0]);
}

/* The IOAPIC of user space hears of every end of a vector that one of its level-triggered pins has. */
TEST(split_eoi_of_an_edge)
{
	struct kvm_msi message = { .address_lo = 0xfee00000 };
	struct vm vm;

	vm_init(&vm, 4 * MIB);
	OK(enable_split(vm.fd, 24));
	start(&vm, count_interrupts, count_interrupts_end);
	OK(set_routing(vm.fd, 1, msi(3, MSI_LEVEL | 0x61), (struct kvm_irq_routing_entry) {}));
	for (unsigned int i = 0; i < 4; i += 2) {
		message.data = 0x61;
		CHECK_EQ(OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &message)), 1);
		vm_expect(&vm, KVM_EXIT_IOAPIC_EOI);
		CHECK_EQ(vm.run->eoi.vector, 0x61);
		expect_interrupt(&vm, i + 1, 0x61);
		message.data = 0x62;
		CHECK_EQ(OK(ioctl(vm.fd, KVM_SIGNAL_MSI, &message)), 1);
		expect_interrupt(&vm, i + 2, 0x62);
	}
}

/* A level-triggered line that nobody lowers: the guest ends the interrupt again and again. It goes on, with pauses. */
TEST_SECONDS(level_storm, 120)
{
	struct kvm_irq_level line = { .irq = 10, .level = 1 };
	struct vm vm;

	full(&vm);
	start(&vm, storm, storm_end);
	/* The handler takes the place of the stub. */
	memcpy(vm.mem + G_STUBS + 16 * 0x61, storm_handler, storm_handler_end - storm_handler);
	set_pin(&vm, 10, RTE_LEVEL | 0x61);
	OK(ioctl(vm.fd, KVM_IRQ_LINE, &line));
	/* More than the 10000 after which it pauses. */
	CHECK(vm_expect_out(&vm, 0x10) >= 25000);
	/* Between two pauses the guest gets on with its work. */
	CHECK(vm_cells(&vm)[0] > 0);
}

/*
 * The same until the storm is held back: from one turn to the next no interrupt comes, which the pause alone can do.
 * The VM goes while the timer runs that would end it, and its memory gets other uses.
 */
GUEST64(storm_held,
	"xor %r8d, %r8d; sti; 1: mov %r8d, %eax; mov $100, %ecx; 2: pause; loop 2b\n"
	"cmp %r8d, %eax; jne 1b; cmp $9000, %eax; jb 1b; out %eax, $0x10\n");

TEST_SECONDS(level_storm_at_close, 120)
{
	struct kvm_irq_level line = { .irq = 10, .level = 1 };
	struct vm vm, next;

	for (int i = 0; i < 3; i++) {
		full(&vm);
		start(&vm, storm_held, storm_held_end);
		memcpy(vm.mem + G_STUBS + 16 * 0x61, storm_handler, storm_handler_end - storm_handler);
		set_pin(&vm, 10, RTE_LEVEL | 0x61);
		OK(ioctl(vm.fd, KVM_IRQ_LINE, &line));
		CHECK(vm_expect_out(&vm, 0x10) >= 9000);
		vm_free(&vm);
		full(&next);
		/* More than the pause, a hundredth of a second. */
		usleep(30000);
		vm_free(&next);
	}
}

/* The interface of old: the 8254 with port 61h, state without flags. */
TEST(old_pit)
{
	struct kvm_pit_state old;
	struct kvm_pit_state2 new;
	struct vm vm;

	vm_init(&vm, MIB);
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_PIT, 0), ENOENT);
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_PIT, &old), ENXIO);
	CHECK_ERRNO(ioctl(vm.fd, KVM_SET_PIT, &old), ENXIO);
	OK(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	OK(ioctl(vm.fd, KVM_CREATE_PIT, 0));
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_PIT, 0), EEXIST);
	OK(ioctl(vm.fd, KVM_GET_PIT, &old));
	old.channels[2].count = 0x1234;
	old.channels[2].mode = 3;
	OK(ioctl(vm.fd, KVM_SET_PIT, &old));
	OK(ioctl(vm.fd, KVM_GET_PIT2, &new));
	CHECK_EQ(new.channels[2].count, 0x1234);
	CHECK_EQ(new.channels[2].mode, 3);
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_PIT, 1), EFAULT);
}

/*
 * LINT0 in NMI mode: ticks of the 8254 come as NMIs (the watchdog of old kernels), whatever the 8259 and the IOAPIC
 * let in.
 */
GUEST64(watchdog,
	"mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx); movl $0x400, 0x350(%rbx)\n"
	"mov $0xff, %al; out %al, $0x21; mov $0x34, %al; out %al, $0x43\n"
	"mov $0x9c, %al; out %al, $0x40; mov $0x2e, %al; out %al, $0x40\n"
	"sti; 1: pause; cmpq $3, " STR(G_LOG) "; jb 1b; out %al, $0x10\n");

TEST(nmi_watchdog)
{
	struct kvm_pit_config config = { .flags = 0 };
	struct kvm_reinject_control no_reinject = { 0 };
	struct vm vm;

	full(&vm);
	OK(ioctl(vm.fd, KVM_CREATE_PIT2, &config));
	/* With reinjection a tick waits for the end of the interrupt of the one before. */
	OK(ioctl(vm.fd, KVM_REINJECT_CONTROL, &no_reinject));
	start(&vm, watchdog, watchdog_end);
	vm_expect_out(&vm, 0x10);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(vm_log(&vm)->event[i].vector, 2);
}
