// SPDX-License-Identifier: GPL-2.0
/* Eventfds that are interrupts (irqfd), and writes of the guest that are eventfds (ioeventfd). */
#define _GNU_SOURCE
#include "irqchip.h"
#include <pthread.h>
#include <sys/wait.h>

/* Writes to ports and memory that ioeventfds may catch; ends with OUT to port 0x10. */
GUEST64(write_events,
	"mov $0x1234, %edx; mov $7, %eax; out %al, %dx; mov $8, %eax; out %al, %dx; out %ax, %dx\n"
	"mov $" STR(G_MMIO) ", %ebx; movl $1, (%rbx); movl $2, (%rbx)\n"
	"movb $1, (%rbx); movb $9, 16(%rbx); movq $9, 16(%rbx)\n"
	"out %al, $0x10\n");

TEST(irqfd_errors)
{
	int fd = event(), other = event(), pipe_fds[2];
	struct vm vm, second;

	OK(pipe(pipe_fds));
	vm_init(&vm, 0);
	CHECK_ERRNO(irqfd(vm.fd, fd, 5, 0, 0), EINVAL);
	OK(ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	CHECK_ERRNO(irqfd(vm.fd, fd, 5, 4, 0), EINVAL);
	CHECK_ERRNO(irqfd(vm.fd, -1, 5, 0, 0), EBADF);
	CHECK_ERRNO(irqfd(vm.fd, -1, 5, KVM_IRQFD_FLAG_DEASSIGN, 0), EBADF);
	CHECK_ERRNO(irqfd(vm.fd, pipe_fds[0], 5, 0, 0), EINVAL);
	CHECK_ERRNO(irqfd(vm.fd, fd, 5, KVM_IRQFD_FLAG_RESAMPLE, -1), EBADF);
	CHECK_ERRNO(irqfd(vm.fd, fd, 5, KVM_IRQFD_FLAG_RESAMPLE, pipe_fds[0]), EINVAL);
	OK(irqfd(vm.fd, fd, 5, 0, 0));
	CHECK_ERRNO(irqfd(vm.fd, fd, 5, 0, 0), EBUSY);
	CHECK_ERRNO(irqfd(vm.fd, fd, 6, 0, 0), EBUSY);
	CHECK_ERRNO(irqfd(vm.fd, fd, 6, KVM_IRQFD_FLAG_RESAMPLE, other), EBUSY);
	/* Deassigning what is not there is no error, and does nothing. */
	OK(irqfd(vm.fd, fd, 6, KVM_IRQFD_FLAG_DEASSIGN, 0));
	CHECK_ERRNO(irqfd(vm.fd, fd, 5, 0, 0), EBUSY);
	OK(irqfd(vm.fd, other, 6, KVM_IRQFD_FLAG_DEASSIGN, 0));
	OK(irqfd(vm.fd, other, 5, KVM_IRQFD_FLAG_RESAMPLE, event()));
	OK(irqfd(vm.fd, fd, 5, KVM_IRQFD_FLAG_DEASSIGN, 0));
	OK(irqfd(vm.fd, fd, 5000, 0, 0));
	/* Another VM cannot have it. */
	vm_init(&second, 0);
	OK(enable_split(second.fd, 24));
	CHECK_ERRNO(irqfd(second.fd, fd, 5, 0, 0), EBUSY);
	CHECK_ERRNO(irqfd(second.fd, event(), 5, KVM_IRQFD_FLAG_RESAMPLE, event()), EINVAL);
	vm_free(&vm);
	OK(irqfd(second.fd, fd, 5, 0, 0));
	vm_free(&second);
}

TEST(irqfd_msi)
{
	int fd = event(), late = event();
	struct vm vm;

	vm_init(&vm, 4 * MIB);
	OK(enable_split(vm.fd, 24));
	OK(set_routing(vm.fd, 2, msi(100, 0x41), msi(4095, 0x42)));
	OK(irqfd(vm.fd, fd, 100, 0, 0));
	start(&vm, count_interrupts, count_interrupts_end);
	signal_event(fd);
	/* The irqfd takes the signal at once. */
	CHECK_EQ(take_event(fd), 0);
	expect_interrupt(&vm, 1, 0x41);
	/* What was signalled before counts. */
	signal_event(late);
	OK(irqfd(vm.fd, late, 4095, 0, 0));
	expect_interrupt(&vm, 2, 0x42);
	/* The new route is in force when the call returns. */
	OK(set_routing(vm.fd, 1, msi(100, 0x43), msi(0, 0)));
	signal_event(fd);
	expect_interrupt(&vm, 3, 0x43);
	OK(irqfd(vm.fd, fd, 100, KVM_IRQFD_FLAG_DEASSIGN, 0));
	signal_event(fd);
	CHECK_EQ(take_event(fd), 1);
	OK(irqfd(vm.fd, fd, 100, 0, 0));
	signal_event(fd);
	expect_interrupt(&vm, 4, 0x43);
	vm_free(&vm);
	/* The VM is gone, the eventfd works on. */
	signal_event(fd);
	CHECK_EQ(take_event(fd), 1);
}

TEST(irqfd_closed_eventfd)
{
	struct vm vm;

	vm_init(&vm, 4 * MIB);
	OK(enable_split(vm.fd, 24));
	OK(set_routing(vm.fd, 1, msi(7, 0x47), msi(0, 0)));
	start(&vm, count_interrupts, count_interrupts_end);
	for (unsigned int i = 1; i <= 50; i++) {
		int fd = event();

		OK(irqfd(vm.fd, fd, 7, 0, 0));
		signal_event(fd);
		close(fd);
		expect_interrupt(&vm, i, 0x47);
	}
	/* vCPU's file last. */
	OK(irqfd(vm.fd, event(), 7, 0, 0));
	close(vm.fd);
	vm.fd = open("/dev/null", O_RDONLY);
	vm_free(&vm);
}

TEST(irqfd_edge_pin)
{
	int fd = event();
	struct vm vm;

	full(&vm);
	start(&vm, count_interrupts, count_interrupts_end);
	set_pin(&vm, 20, 0x52);
	OK(irqfd(vm.fd, fd, 20, 0, 0));
	for (unsigned int i = 1; i <= 3; i++) {
		signal_event(fd);
		expect_interrupt(&vm, i, 0x52);
	}
	/* Masked: an edge is lost. */
	set_pin(&vm, 20, RTE_MASKED | 0x52);
	signal_event(fd);
	set_pin(&vm, 20, 0x52);
	CHECK_EQ(line(vm.fd, 20, 1), 1);
	CHECK_EQ(line(vm.fd, 20, 1), 0);
	CHECK_EQ(line(vm.fd, 20, 0), 1);
	expect_interrupt(&vm, 4, 0x52);
	vm_free(&vm);
}

/* Level-triggered irqfds may be carried to the pin by a worker. */
static void expect_irr(struct vm *vm, uint32_t want)
{
	for (int i = 0; i < 1000 && get_chip(vm, KVM_IRQCHIP_IOAPIC).chip.ioapic.irr != want; i++)
		usleep(1000);
	CHECK_EQ(get_chip(vm, KVM_IRQCHIP_IOAPIC).chip.ioapic.irr, want);
}

TEST(irqfd_resample)
{
	int fd = event(), resample = event(), second = event(), second_resample = event();
	struct vm vm;

	full(&vm);
	start(&vm, count_interrupts, count_interrupts_end);
	set_pin(&vm, 21, RTE_LEVEL | 0x51);
	OK(irqfd(vm.fd, fd, 21, KVM_IRQFD_FLAG_RESAMPLE, resample));
	OK(irqfd(vm.fd, second, 21, KVM_IRQFD_FLAG_RESAMPLE, second_resample));
	for (unsigned int i = 1; i <= 3; i++) {
		signal_event(fd);
		CHECK_EQ(take_event(resample), 0);
		expect_irr(&vm, 1u << 21);
		expect_interrupt(&vm, i, 0x51);
		/* The end of the interrupt lowers the line and tells everyone. */
		CHECK_EQ(take_event(resample), 1);
		CHECK_EQ(take_event(second_resample), 1);
		CHECK_EQ(get_chip(&vm, KVM_IRQCHIP_IOAPIC).chip.ioapic.irr, 0);
	}
	/* The last one that goes lowers what it held. */
	OK(irqfd(vm.fd, second, 21, KVM_IRQFD_FLAG_DEASSIGN, 0));
	set_pin(&vm, 21, RTE_MASKED | RTE_LEVEL | 0x51);
	signal_event(fd);
	expect_irr(&vm, 1u << 21);
	OK(irqfd(vm.fd, fd, 21, KVM_IRQFD_FLAG_DEASSIGN, 0));
	CHECK_EQ(get_chip(&vm, KVM_IRQCHIP_IOAPIC).chip.ioapic.irr, 0);
	vm_free(&vm);
}

TEST(ioeventfd_errors)
{
	const unsigned int pio = KVM_IOEVENTFD_FLAG_PIO, match = KVM_IOEVENTFD_FLAG_DATAMATCH;
	const unsigned int deassign = KVM_IOEVENTFD_FLAG_DEASSIGN;
	int fd = event(), other = event();
	struct vm vm;

	vm_init(&vm, 0);
	CHECK_ERRNO(ioeventfd(vm.fd, fd, 0x1000, 3, 0, 0), EINVAL);
	CHECK_ERRNO(ioeventfd(vm.fd, fd, -1ull, 4, 0, 0), EINVAL);
	CHECK_ERRNO(ioeventfd(vm.fd, fd, 0x1000, 4, 1 << 5, 0), EINVAL);
	CHECK_ERRNO(ioeventfd(vm.fd, fd, 0x1000, 0, match, 0), EINVAL);
	CHECK_ERRNO(ioeventfd(vm.fd, -1, 0x1000, 4, 0, 0), EBADF);
	CHECK_ERRNO(ioeventfd(vm.fd, fd, 0x1000, 4, deassign, 0), ENOENT);
	OK(ioeventfd(vm.fd, fd, 0x1000, 4, match, 1));
	OK(ioeventfd(vm.fd, fd, 0x1000, 4, match, 2));
	OK(ioeventfd(vm.fd, fd, 0x1000, 2, match, 1));
	OK(ioeventfd(vm.fd, fd, 0x1000, 4, match | pio, 1));
	CHECK_ERRNO(ioeventfd(vm.fd, other, 0x1000, 4, match, 1), EEXIST);
	CHECK_ERRNO(ioeventfd(vm.fd, other, 0x1000, 4, 0, 0), EEXIST);
	CHECK_ERRNO(ioeventfd(vm.fd, other, 0x1000, 0, 0, 0), EEXIST);
	CHECK_ERRNO(ioeventfd(vm.fd, other, 0x1000, 4, match | deassign, 1), ENOENT);
	CHECK_ERRNO(ioeventfd(vm.fd, fd, 0x1000, 4, match | deassign, 3), ENOENT);
	CHECK_ERRNO(ioeventfd(vm.fd, fd, 0x1000, 4, deassign, 1), ENOENT);
	OK(ioeventfd(vm.fd, fd, 0x1000, 4, match | deassign, 1));
	CHECK_ERRNO(ioeventfd(vm.fd, fd, 0x1000, 4, match | deassign, 1), ENOENT);
	OK(ioeventfd(vm.fd, other, 0x1000, 4, match, 1));
	vm_free(&vm);
}

TEST(ioeventfd_hits)
{
	const unsigned int pio = KVM_IOEVENTFD_FLAG_PIO, match = KVM_IOEVENTFD_FLAG_DATAMATCH;
	const unsigned int deassign = KVM_IOEVENTFD_FLAG_DEASSIGN;
	int port7 = event(), port_word = event(), mem1 = event(), any = event();
	struct vm vm;

	VM_NEW_LONG(&vm, write_events);
	OK(ioeventfd(vm.fd, port7, 0x1234, 1, pio | match, 7));
	OK(ioeventfd(vm.fd, port_word, 0x1234, 2, pio, 0));
	OK(ioeventfd(vm.fd, mem1, G_MMIO, 4, match, 1));
	OK(ioeventfd(vm.fd, any, G_MMIO + 16, 0, 0, 0));
	/* What nobody waits for comes to user space. */
	CHECK_EQ(vm_expect_out(&vm, 0x1234) & 0xff, 8);
	CHECK_EQ(take_event(port7), 1);
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(take_event(port_word), 1);
	CHECK_EQ(vm.run->mmio.data[0], 2);
	CHECK_EQ(take_event(mem1), 1);
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm.run->mmio.len, 1);
	CHECK_EQ(vm_expect_out(&vm, 0x10) & 0xff, 8);
	CHECK_EQ(take_event(any), 2);
	CHECK_EQ(take_event(port7), 0);
	CHECK_EQ(take_event(mem1), 0);

	/* An ioeventfd is gone as soon as it is removed. */
	OK(ioeventfd(vm.fd, port7, 0x1234, 1, pio | match | deassign, 7));
	vm_long_state(&vm);
	vm.run->exit_reason = 0;
	CHECK_EQ(vm_expect_out(&vm, 0x1234) & 0xff, 7);
	CHECK_EQ(take_event(port7), 0);
	vm_free(&vm);
}

/* The 32 vectors of IRR with `vector` among them. */
static uint32_t irr_word(const struct kvm_lapic_state *l, unsigned int vector)
{
	uint32_t word;

	memcpy(&word, l->regs + LAPIC_IRR + vector / 32 * 16, 4);
	return word;
}

static void set_irr_word(struct kvm_lapic_state *l, unsigned int vector, uint32_t word)
{
	memcpy(l->regs + LAPIC_IRR + vector / 32 * 16, &word, 4);
}

/* Many signals from another thread, none lost for good; the VM goes while they come. */
TEST(irqfd_storm)
{
	int fd = event(), status;
	struct vm vm;
	pid_t child;

	vm_init(&vm, 4 * MIB);
	OK(enable_split(vm.fd, 24));
	OK(set_routing(vm.fd, 1, msi(3, 0x44), msi(0, 0)));
	OK(irqfd(vm.fd, fd, 3, 0, 0));
	start(&vm, count_interrupts, count_interrupts_end);
	child = fork_child();
	if (!child) {
		for (;;)
			signal_event(fd);
	}
	for (unsigned int i = 1; i <= 200; i++) {
		vm_expect_out(&vm, 0x10);
		if (i % 50 == 0)
			OK(set_routing(vm.fd, 1, msi(3, 0x44), msi(0, 0)));
		if (i % 40 == 0) {
			OK(irqfd(vm.fd, fd, 3, KVM_IRQFD_FLAG_DEASSIGN, 0));
			OK(irqfd(vm.fd, fd, 3, 0, 0));
		}
	}
	CHECK(vm_log(&vm)->count >= 200);
	vm_free(&vm);
	OK(kill(child, 9));
	OK(waitpid(child, &status, 0));
}

/* What two threads do to an irqfd's GSI while a third one connects and disconnects the irqfd. */
struct contest {
	int vm, fd;
	volatile bool over;
};

static void *change_routes(void *argument)
{
	struct contest *c = argument;

	for (unsigned int i = 0; !c->over; i++)
		OK(set_routing(c->vm, 1, msi(3, 0x44 + i % 2), msi(0, 0)));
	return NULL;
}

static void *signal_events(void *argument)
{
	struct contest *c = argument;

	while (!c->over) {
		signal_event(c->fd);
		usleep(10);
	}
	return NULL;
}

/*
 * An irqfd is disconnected while routes change and signals come. After that no interrupt comes by it, by whichever
 * route; connected again, it goes by the route that is in force.
 */
TEST_SECONDS(irqfd_deassign_and_routes, 120)
{
	struct contest c = { .fd = event() };
	pthread_t routes, signals;
	struct kvm_lapic_state l;
	unsigned int came = 0;
	struct vm vm;

	vm_init(&vm, 4 * MIB);
	OK(enable_split(vm.fd, 24));
	OK(set_routing(vm.fd, 1, msi(3, 0x44), msi(0, 0)));
	start(&vm, count_interrupts, count_interrupts_end);
	c.vm = vm.fd;
	REQUIRE(!pthread_create(&routes, NULL, change_routes, &c));
	REQUIRE(!pthread_create(&signals, NULL, signal_events, &c));
	for (int i = 0; i < 200; i++) {
		OK(irqfd(vm.fd, c.fd, 3, 0, 0));
		if (i % 2)
			usleep(100);
		OK(irqfd(vm.fd, c.fd, 3, KVM_IRQFD_FLAG_DEASSIGN, 0));
		OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &l));
		came += irr_word(&l, 0x44) != 0;
		set_irr_word(&l, 0x44, 0);
		OK(ioctl(vm.vcpu, KVM_SET_LAPIC, &l));
		usleep(200);
		OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &l));
		if (irr_word(&l, 0x44))
			DIE("round %d: vectors %#x came by an irqfd that is gone", i, irr_word(&l, 0x44));
	}
	c.over = true;
	REQUIRE(!pthread_join(routes, NULL));
	REQUIRE(!pthread_join(signals, NULL));
	CHECK(came > 0);
	OK(set_routing(vm.fd, 1, msi(3, 0x47), msi(0, 0)));
	OK(irqfd(vm.fd, c.fd, 3, 0, 0));
	signal_event(c.fd);
	OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &l));
	CHECK_EQ(irr_word(&l, 0x47), 1u << 7);
	vm_free(&vm);
}
