// SPDX-License-Identifier: GPL-2.0
/*
 * Interrupts on Arm64: the GICv3's attributes, SGIs, PPIs and SPIs, WFI, vCPUs that switch each other on. What is
 * expected is what KVM does.
 *
 * A guest's handler puts the numbers of interrupts, one byte each, at RAM + 0x100000, and counts them in X28.
 */
#define _GNU_SOURCE
#include "gic.h"
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/time.h>

#define SYSREG(op1, crn, crm, op2) (3 << 14 | (op1) << 11 | (crn) << 7 | (crm) << 3 | (op2))
#define PMR SYSREG(0, 4, 6, 0)
#define CTLR SYSREG(0, 12, 12, 4)

static void on_alarm(int number)
{
}

/* A signal in 200 ms. */
static void alarm_soon(void)
{
	struct itimerval in = { .it_value = { .tv_usec = 200000 } };

	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_alarm }, NULL);
	setitimer(ITIMER_REAL, &in, NULL);
}

static int line(struct machine *m, uint32_t type, uint32_t vcpu, uint32_t number, uint32_t level)
{
	struct kvm_irq_level l = {
		.irq = type << KVM_ARM_IRQ_TYPE_SHIFT | vcpu << KVM_ARM_IRQ_VCPU_SHIFT | number,
		.level = level,
	};

	return ioctl(m->vm, KVM_IRQ_LINE, &l);
}

GUEST(guest_nop, DONE);

TEST_SECONDS(attributes, 20)
{
	struct machine m = MACHINE(guest_nop);
	uint64_t at = DIST, value;
	uint32_t count = 33, word;
	struct kvm_create_device d = { .type = KVM_DEV_TYPE_ARM_VGIC_V3, .flags = KVM_CREATE_DEVICE_TEST };

	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_DEVICE_CTRL), 1);
	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP), 1);
	OK(ioctl(m.vm, KVM_CREATE_DEVICE, &d));
	CHECK_ERRNO(line(&m, KVM_ARM_IRQ_TYPE_SPI, 0, 40, 1), ENXIO);
	int gic = make_gic(&m);
	d.flags = 0;
	CHECK_ERRNO(ioctl(m.vm, KVM_CREATE_DEVICE, &d), EEXIST);
	CHECK_ERRNO(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &count), EINVAL);
	count = 64;
	OK(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &count));
	CHECK_ERRNO(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &count), EBUSY);
	CHECK_ERRNO(get_attr(gic, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 4, &word), EBUSY);
	OK(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL));
	CHECK_ERRNO(ioctl(m.vm, KVM_CREATE_VCPU, 1), EBUSY);
	at = DIST + 4096;
	CHECK_ERRNO(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &at), EINVAL);
	at = 1ul << 50;
	CHECK_ERRNO(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &at), E2BIG);
	at = DIST;
	OK(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &at));
	CHECK_ERRNO(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &at), EEXIST);
	CHECK_ERRNO(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, 77, &at), ENXIO);
	/* No room for any; behind that, room for one. */
	at = REDIST;
	CHECK_ERRNO(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, &at), EINVAL);
	at = 1ul << 52 | REDIST;
	OK(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, &at));
	value = 0;
	OK(get_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, &value));
	CHECK_EQ(value, at);
	OK(get_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &value));
	CHECK_EQ(value, DIST);
	run_to_done(&m);
}

TEST_SECONDS(not_ready, 20)
{
	struct machine m = MACHINE(guest_nop);

	make_gic(&m);
	CHECK_ERRNO(ioctl(m.vcpu, KVM_RUN, 0), ENXIO);
}

static uint32_t reg32(int gic, uint32_t group, uint64_t attr)
{
	uint32_t word = 0;

	OK(get_attr(gic, group, attr, &word));
	return word;
}

static void set_reg32(int gic, uint32_t group, uint64_t attr, uint32_t value)
{
	OK(set_attr(gic, group, attr, &value));
}

TEST_SECONDS(saved, 20)
{
	struct machine m = MACHINE(guest_nop);
	int gic = add_gic(&m);
	uint32_t group = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
	uint64_t value;

	CHECK_EQ(reg32(gic, group, 4) & 0x1f, 3);
	CHECK_EQ(reg32(gic, group, 8) & 0xfff, 0x43b);
	CHECK_EQ(reg32(gic, group, 0), 0x50);
	set_reg32(gic, group, 0, 2);
	CHECK_EQ(reg32(gic, group, 0), 0x52);
	set_reg32(gic, group, 0x104, 0xf00);
	set_reg32(gic, group, 0x184, 0x300);
	CHECK_EQ(reg32(gic, group, 0x104), 0xc00);
	set_reg32(gic, group, 0x204, 5);
	CHECK_EQ(reg32(gic, group, 0x204), 5);
	CHECK_EQ(reg32(gic, group, 0x284), 0);
	set_reg32(gic, group, 0x420, 0xa0b0c0d0);
	CHECK_EQ(reg32(gic, group, 0x420), 0xa0b0c0d0);
	set_reg32(gic, group, 0xc08, 0x8);
	CHECK_EQ(reg32(gic, group, 0xc08), 0x8);
	CHECK_EQ(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, 1ul << 32, &value), -1);
	CHECK_EQ(errno, EINVAL);
	group = KVM_DEV_ARM_VGIC_GRP_REDIST_REGS;
	CHECK_EQ(reg32(gic, group, 8) & 0x10, 0x10);
	CHECK_EQ(reg32(gic, group, 0x10000 + 0xc00), 0xaaaaaaaa);
	set_reg32(gic, group, 0x10000 + 0x100, 0x08000000);
	CHECK_EQ(reg32(gic, group, 0x10000 + 0x100) & 0x08000000, 0x08000000);
	set_reg32(gic, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0xc10, 0);
	set_reg32(gic, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0xc14, 0);
	group = KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO;
	set_reg32(gic, group, 64, 0x80000001);
	CHECK_EQ(reg32(gic, group, 64), 0x80000001);
	group = KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS;
	value = 0xa8;
	OK(set_attr(gic, group, PMR, &value));
	value = 0;
	OK(get_attr(gic, group, PMR, &value));
	CHECK_EQ(value, 0xa8);
	OK(get_attr(gic, group, CTLR, &value));
	value |= 2;
	OK(set_attr(gic, group, CTLR, &value));
	uint64_t again = 0;
	OK(get_attr(gic, group, CTLR, &again));
	CHECK_EQ(again, value);
	CHECK_EQ(get_attr(gic, group, SYSREG(0, 12, 11, 5), &value), -1);
}

GUEST(guest_sgi,
	SETUP
	/* ID_AA64PFR0_EL1.GIC, ICC_SRE_EL1. */
	"mrs x10, id_aa64pfr0_el1\nubfx x10, x10, #24, #4\nmrs x11, S3_0_C12_C12_5\n"
	/* SGI n has priority 0xf0 - 16 n; all are sent while interrupts are masked. */
	"mov x0, #0\n1:\nmov x1, #0xf0\nsub x1, x1, x0, lsl #4\nadd x2, x21, x0\nstrb w1, [x2, #0x400]\n"
	"lsl x1, x0, #24\norr x1, x1, #1\nmsr S3_0_C12_C11_5, x1\nadd x0, x0, #1\ncmp x0, #16\nb.ne 1b\n"
	"isb\nldr w12, [x21, #0x200]\nmsr daifclr, #2\n" WAIT_FOR(#16)
	"mrs x13, S3_0_C12_C12_0\nldr w14, [x21, #0x200]\nldr w15, [x21, #0x300]\n" DONE
	VECTORS(""));

/* More than there are list registers, the most urgent one first. */
TEST_SECONDS(software_generated, 20)
{
	struct machine m = MACHINE(guest_sgi);

	add_gic(&m);
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(10)), 1);
	CHECK_EQ(get_reg(&m, X(11)) & 1, 1);
	for (int n = 0; n < 16; n++)
		CHECK_EQ(m.ram[LIST + n], 15 - n);
	CHECK_EQ(get_reg(&m, X(28)), 16);
	CHECK_EQ(get_reg(&m, X(13)), 1023);
	CHECK_EQ(get_reg(&m, X(14)) & 0xffff, 0);
	CHECK_EQ(get_reg(&m, X(15)), 0);
}

/* Each interrupt lets the next one in: all sixteen are active at once, and end in reverse order. */
GUEST(guest_nested,
	SETUP
	"mov sp, x27\nadd x25, x27, #0x1000\nmov sp, x25\n"
	"mov x0, #0\n1:\nmov x1, #0xf0\nsub x1, x1, x0, lsl #4\nadd x2, x21, x0\nstrb w1, [x2, #0x400]\n"
	"add x0, x0, #1\ncmp x0, #16\nb.ne 1b\n"
	"mov x24, #0\nmov x1, #1\nmsr S3_0_C12_C11_5, x1\nisb\nmsr daifclr, #2\n" WAIT_FOR(#16)
	"ldr w14, [x21, #0x200]\nldr w15, [x21, #0x300]\nmrs x16, S3_0_C12_C9_0\n" DONE
	".balign 2048\n7:\n.skip 0x280\n"
	"mrs x26, S3_0_C12_C12_0\nmrs x1, elr_el1\nmrs x2, spsr_el1\nstp x1, x2, [sp, #-16]!\nstr x26, [sp, #-16]!\n"
	"strb w26, [x27, x28]\nadd x28, x28, #1\n"
	/* The next one, from within. */
	"cmp x28, #16\nb.eq 2f\nlsl x1, x28, #24\norr x1, x1, #1\nmsr S3_0_C12_C11_5, x1\nisb\nmsr daifclr, #2\n"
	"3:\nldr x3, [sp]\nadd x3, x3, #2\ncmp x28, x3\nb.lo 3b\n"
	"msr daifset, #2\n"
	"2:\nldr x26, [sp], #16\nldp x1, x2, [sp], #16\nmsr elr_el1, x1\nmsr spsr_el1, x2\n"
	"msr S3_0_C12_C12_1, x26\nisb\neret\n");

TEST_SECONDS(nested, 20)
{
	struct machine m = MACHINE(guest_nested);

	add_gic(&m);
	run_to_done(&m);
	for (int n = 0; n < 16; n++)
		CHECK_EQ(m.ram[LIST + n], n);
	CHECK_EQ(get_reg(&m, X(14)) & 0xffff, 0);
	CHECK_EQ(get_reg(&m, X(15)), 0);
	CHECK_EQ(get_reg(&m, X(16)), 0);
}

/* SPI 40, which is an edge after reset, says at the device that it has come. */
GUEST(guest_spi,
	SETUP
	"mov w0, #0x100\nstr w0, [x20, #0x104]\nmov x25, #0x10000000\n"
	"str x5, [x25]\nmsr daifclr, #2\n" WAIT_FOR(#3) DONE
	VECTORS("str x26, [x25, #8]\n"));

TEST_SECONDS(a_level, 20)
{
	struct machine m = MACHINE(guest_spi);

	int gic = add_gic(&m);

	CHECK_EQ(reg32(gic, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0xc08), 0xaaaaaaaa);
	set_reg32(gic, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0xc08, 0);
	run_to_mmio(&m);
	OK(line(&m, KVM_ARM_IRQ_TYPE_SPI, 0, 40, 1));
	/* Comes as long as the line is up. */
	for (int i = 0; i < 2; i++) {
		run_to_mmio(&m);
		REQUIRE_EQ(m.run->mmio.phys_addr, DEVICE_AT + 8);
		CHECK_EQ(m.run->mmio.data[0], 40);
	}
	OK(line(&m, KVM_ARM_IRQ_TYPE_SPI, 0, 40, 0));
	OK(line(&m, KVM_ARM_IRQ_TYPE_PPI, 0, 20, 1));
	CHECK_ERRNO(line(&m, KVM_ARM_IRQ_TYPE_SPI, 0, 20, 1), EINVAL);
	CHECK_ERRNO(line(&m, KVM_ARM_IRQ_TYPE_SPI, 0, 500, 1), EINVAL);
	CHECK_ERRNO(line(&m, KVM_ARM_IRQ_TYPE_PPI, 0, 40, 1), EINVAL);
	CHECK_ERRNO(line(&m, KVM_ARM_IRQ_TYPE_PPI, 9, 20, 1), EINVAL);
	/* The timer's, which is not user space's. */
	OK(line(&m, KVM_ARM_IRQ_TYPE_PPI, 0, 27, 1));
	OK(line(&m, KVM_ARM_IRQ_TYPE_SPI, 0, 40, 1));
	run_to_mmio(&m);
	CHECK_EQ(m.run->mmio.data[0], 40);
	OK(line(&m, KVM_ARM_IRQ_TYPE_SPI, 0, 40, 0));
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(28)), 3);
}

static void *signal_slowly(void *fd)
{
	usleep(100000);
	OK(eventfd_write((intptr_t)fd, 1));
	return NULL;
}

/* The vCPU sleeps in WFI when the eventfd is written. */
TEST_SECONDS(irqfd, 20)
{
	struct machine m = MACHINE(guest_spi);
	int gic = add_gic(&m), fd = OK(eventfd(0, EFD_NONBLOCK));
	struct kvm_irqfd irqfd = { .fd = fd, .gsi = 8 };
	pthread_t thread;

	/* An edge. */
	set_reg32(gic, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0xc08, 2 << 16);
	OK(ioctl(m.vm, KVM_IRQFD, &irqfd));
	CHECK_ERRNO(ioctl(m.vm, KVM_IRQFD, &irqfd), EBUSY);
	run_to_mmio(&m);
	for (int i = 0; i < 3; i++) {
		REQUIRE(!pthread_create(&thread, NULL, signal_slowly, (void *)(intptr_t)fd));
		run_to_mmio(&m);
		CHECK_EQ(m.run->mmio.data[0], 40);
		pthread_join(thread, NULL);
	}
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(28)), 3);
	irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
	OK(ioctl(m.vm, KVM_IRQFD, &irqfd));
}

static int route(struct machine *m, uint32_t n, const struct kvm_irq_routing_entry *entries)
{
	struct { struct kvm_irq_routing head; struct kvm_irq_routing_entry e[4]; } r = { .head.nr = n };

	memcpy(r.e, entries, n * sizeof(*entries));
	return ioctl(m->vm, KVM_SET_GSI_ROUTING, &r);
}

/* Before the controller is ready nothing can be connected to it; then GSIs lead where user space wants. */
TEST_SECONDS(routing, 20)
{
	struct machine m = MACHINE(guest_spi);
	int fd = OK(eventfd(0, EFD_NONBLOCK));
	struct kvm_irqfd irqfd = { .fd = fd, .gsi = 3000 };
	struct kvm_irq_routing_entry e[2] = {
		{ .gsi = 3000, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip.pin = 8 },
		{ .gsi = 9, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip.pin = 8 },
	};

	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_IRQ_ROUTING), 4096);
	CHECK_ERRNO(ioctl(m.vm, KVM_IRQFD, &irqfd), EAGAIN);
	int gic = make_gic(&m);
	CHECK_ERRNO(ioctl(m.vm, KVM_IRQFD, &irqfd), EAGAIN);
	CHECK_ERRNO(line(&m, KVM_ARM_IRQ_TYPE_SPI, 0, 40, 1), EBUSY);
	CHECK_ERRNO(line(&m, KVM_ARM_IRQ_TYPE_PPI, 0, 20, 1), EBUSY);
	CHECK_ERRNO(line(&m, KVM_ARM_IRQ_TYPE_CPU, 0, 0, 1), ENXIO);
	CHECK_ERRNO(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, NULL), ENXIO);
	uint64_t at = DIST;
	OK(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &at));
	at = REDIST;
	OK(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, &at));
	OK(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL));
	OK(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, NULL));
	OK(route(&m, 2, e));
	e[1].gsi = 3000;
	CHECK_ERRNO(route(&m, 2, e), EINVAL);
	e[1].gsi = 4096;
	CHECK_ERRNO(route(&m, 2, e), EINVAL);
	e[1] = (struct kvm_irq_routing_entry){ .gsi = 9, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip.pin = 988 };
	CHECK_ERRNO(route(&m, 2, e), EINVAL);
	e[1].u.irqchip.pin = 8;
	e[1].flags = 1;
	CHECK_ERRNO(route(&m, 2, e), EINVAL);
	e[1] = (struct kvm_irq_routing_entry){ .gsi = 9, .type = KVM_IRQ_ROUTING_MSI };
	OK(route(&m, 2, e));
	OK(ioctl(m.vm, KVM_IRQFD, &irqfd));
	run_to_mmio(&m);
	for (int i = 0; i < 3; i++) {
		OK(eventfd_write(fd, 1));
		run_to_mmio(&m);
		CHECK_EQ(m.run->mmio.data[0], 40);
	}
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(28)), 3);
}

/* The line stays up until the guest has ended its interrupt, which the other eventfd tells. */
TEST_SECONDS(resampled, 20)
{
	struct machine m = MACHINE(guest_spi);
	int gic = add_gic(&m), fd = OK(eventfd(0, EFD_NONBLOCK)), ends = OK(eventfd(0, EFD_NONBLOCK));
	struct kvm_irqfd irqfd = { .fd = fd, .gsi = 8, .flags = KVM_IRQFD_FLAG_RESAMPLE, .resamplefd = ends };
	pthread_t thread;
	eventfd_t count;

	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_IRQFD_RESAMPLE), 1);
	set_reg32(gic, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0xc08, 0);
	OK(ioctl(m.vm, KVM_IRQFD, &irqfd));
	run_to_mmio(&m);
	for (int i = 0; i < 3; i++) {
		REQUIRE(!pthread_create(&thread, NULL, signal_slowly, (void *)(intptr_t)fd));
		run_to_mmio(&m);
		CHECK_EQ(m.run->mmio.data[0], 40);
		CHECK_ERRNO(eventfd_read(ends, &count), EAGAIN);
		pthread_join(thread, NULL);
		if (i == 2)
			run_to_done(&m);
		else {
			/* A signal of its own ends the wait after the guest's end. */
			alarm_soon();
			CHECK_ERRNO(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
		}
		OK(eventfd_read(ends, &count));
		CHECK_EQ(count, 1);
	}
	CHECK_EQ(get_reg(&m, X(28)), 3);
	irqfd.flags |= KVM_IRQFD_FLAG_DEASSIGN;
	OK(ioctl(m.vm, KVM_IRQFD, &irqfd));
}

/*
 * vCPU 0 switches vCPU 1 on, which begins at RAM + 0x1000 with a word of its own, sends SGI 3 back, and goes off.
 * The second time around it is there again.
 */
GUEST(guest_smp,
	SETUP
	"msr daifclr, #2\nmov x19, #0\n"
	"4:\nadd x19, x19, #1\n"
	"mov x0, #0x84000000\nadd x0, x0, #3\norr x0, x0, #0x40000000\nmov x1, #1\n"
	"mov x2, #0x40000000\nadd x2, x2, #0x1000\n"
	"mov x3, #0x55\nhvc #0\nmov x10, x0\n"
	WAIT_FOR(x19)
	/* Off again, sooner or later. */
	"5:\nmov x0, #0x84000000\nadd x0, x0, #4\norr x0, x0, #0x40000000\nmov x1, #1\nmov x2, #0\n"
	"hvc #0\ncmp x0, #1\nb.ne 5b\n"
	"cmp x19, #20\nb.lo 4b\n"
	/* Who is on, and who is not there. */
	"mov x0, #0x84000000\nadd x0, x0, #3\norr x0, x0, #0x40000000\nmov x1, #0\nhvc #0\nmov x11, x0\n"
	"mov x0, #0x84000000\nadd x0, x0, #3\norr x0, x0, #0x40000000\nmov x1, #7\nhvc #0\nmov x12, x0\n"
	DONE
	VECTORS("")
	".balign 4096\n"
	"mrs x1, mpidr_el1\nmov x2, #0x40200000\nstp x0, x1, [x2]\n"
	"mov x1, #1\nmovk x1, #0x300, lsl #16\nmsr S3_0_C12_C11_5, x1\nisb\n"
	"mov x0, #0x84000000\nadd x0, x0, #2\nhvc #0\nb .\n");

TEST_SECONDS(two, 20)
{
	struct machine m = MACHINE(guest_smp);
	struct kvm_vcpu_init init = {};
	struct kvm_mp_state state;
	pthread_t thread;
	int second = OK(ioctl(m.vm, KVM_CREATE_VCPU, 1));

	OK(ioctl(m.vm, KVM_ARM_PREFERRED_TARGET, &init));
	init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2 | 1 << KVM_ARM_VCPU_POWER_OFF;
	OK(ioctl(second, KVM_ARM_VCPU_INIT, &init));
	OK(ioctl(second, KVM_GET_MP_STATE, &state));
	CHECK_EQ(state.mp_state, KVM_MP_STATE_STOPPED);
	add_gic(&m);
	REQUIRE(!pthread_create(&thread, NULL, run_second, (void *)(intptr_t)second));
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(10)), 0);
	CHECK_EQ((int64_t)get_reg(&m, X(11)), -4);
	CHECK_EQ((int64_t)get_reg(&m, X(12)), -2);
	for (int n = 0; n < 20; n++)
		CHECK_EQ(m.ram[LIST + n], 3);
	uint64_t *found = (uint64_t *)(m.ram + 0x200000);
	CHECK_EQ(found[0], 0x55);
	CHECK_EQ(found[1] & 0xff00ffffff, 1);
}

/*
 * vCPU 0 switches the others on, all at once. Each begins at RAM + 0x1000 with its number, leaves a mark, sends SGI 3
 * and goes off. vCPU 0 sleeps until all marks are there.
 */
#define MANY 66
GUEST(guest_many,
	SETUP
	"mov x19, #1\n"
	"4:\nand x1, x19, #0xf\nlsr x2, x19, #4\norr x1, x1, x2, lsl #8\n"
	"mov x0, #0x84000000\nadd x0, x0, #3\norr x0, x0, #0x40000000\n"
	"mov x2, #0x40000000\nadd x2, x2, #0x1000\nmov x3, x19\nhvc #0\ncbnz x0, 6f\n"
	"add x19, x19, #1\ncmp x19, #66\nb.ne 4b\n"
	"mov x1, #0x40200000\n"
	"1:\nmsr daifset, #2\nmov x2, #1\n2:\nldrb w3, [x1, x2]\ncbz w3, 3f\nadd x2, x2, #1\ncmp x2, #66\nb.ne 2b\n"
	"b 6f\n3:\nwfi\nmsr daifclr, #2\nisb\nb 1b\n"
	"6:\n" DONE
	VECTORS("")
	".balign 4096\n"
	"mov x1, #0x40200000\nmov w2, #1\nstrb w2, [x1, x0]\ndsb sy\n"
	"mov x1, #1\nmovk x1, #0x300, lsl #16\nmsr S3_0_C12_C11_5, x1\nisb\n"
	"mov x0, #0x84000000\nadd x0, x0, #2\nhvc #0\nb .\n");

TEST_SECONDS(many, 60)
{
	struct machine m = MACHINE(guest_many);
	struct kvm_vcpu_init init = {};
	int vcpus[MANY];

	OK(ioctl(m.vm, KVM_ARM_PREFERRED_TARGET, &init));
	init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2 | 1 << KVM_ARM_VCPU_POWER_OFF;
	for (int n = 1; n < MANY; n++) {
		vcpus[n] = OK(ioctl(m.vm, KVM_CREATE_VCPU, n));
		OK(ioctl(vcpus[n], KVM_ARM_VCPU_INIT, &init));
	}
	add_gic(&m);
	for (int n = 1; n < MANY; n++) {
		pthread_t thread;

		REQUIRE(!pthread_create(&thread, NULL, run_second, (void *)(intptr_t)vcpus[n]));
	}
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(19)), MANY);
	for (int n = 1; n < MANY; n++)
		CHECK_EQ(m.ram[0x200000 + n], 1);
}
