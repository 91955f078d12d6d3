// SPDX-License-Identifier: GPL-2.0
/*
 * Messages on Arm64: LPIs, the interrupt translation service, its commands and tables, messages by KVM_SIGNAL_MSI and
 * eventfds, saved and restored state. What is expected is what KVM does.
 *
 * A guest's handler puts the numbers of interrupts, 16 bits each, at RAM + LIST, and counts them in X28.
 */
#define _GNU_SOURCE
#include "gic.h"
#include <sys/eventfd.h>

#define ITS 0x8080000ul
#define DOORBELL (ITS + 0x10040)
#define VALID (1ul << 63)
#define INDIRECT (1ul << 62)

/* Offsets in RAM: tables of devices, of collections, commands, configuration, pending bits of two vCPUs, events. */
#define DEVICES 0x400000
#define COLLECTIONS 0x410000
#define COMMANDS 0x420000
#define PROPERTIES 0x430000
#define PENDING 0x440000
#define EVENTS 0x480000
#define SECOND_LEVEL 0x490000

#define WORDS_VECTORS									\
	".balign 2048\n7:\n.skip 0x280\n"						\
	"mrs x26, S3_0_C12_C12_0\nstrh w26, [x27, x28, lsl #1]\nadd x28, x28, #1\n"	\
	"msr S3_0_C12_C12_1, x26\nisb\neret\n"

/* Tells again and again how many interrupts there were. */
GUEST(guest_counts,
	SETUP
	"mov x25, #0x10000000\nmsr daifclr, #2\n6:\nisb\nstr x28, [x25]\nisb\nb 6b\n" WORDS_VECTORS);

/* Sleeps until there were three. */
GUEST(guest_sleeps,
	SETUP
	"mov x25, #0x10000000\nstr x28, [x25]\nmsr daifclr, #2\n" WAIT_FOR(#3) DONE WORDS_VECTORS);

static const uint64_t move = 1, raise_it = 3, clear = 4, sync_all = 5, map_device = 8, map_collection = 9;
static const uint64_t map_event = 10, look = 12, look_all = 13, move_all = 14, discard = 15;

struct its {
	struct machine *m;
	int gic, fd;
	unsigned int next;
};

static void put(struct its *i, uint64_t at, uint64_t value)
{
	OK(set_attr(i->fd, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, at, &value));
}

static uint64_t get(struct its *i, uint64_t at)
{
	uint64_t value = 0;

	OK(get_attr(i->fd, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, at, &value));
	return value;
}

/* A register of 32 bits of the redistributor of vCPU `cpu`. */
static void put_redist(struct its *i, unsigned int cpu, uint64_t at, uint32_t value)
{
	OK(set_attr(i->gic, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, (uint64_t)cpu << 32 | at, &value));
}

static uint32_t get_redist(struct its *i, unsigned int cpu, uint64_t at)
{
	uint32_t value = 0;

	OK(get_attr(i->gic, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, (uint64_t)cpu << 32 | at, &value));
	return value;
}

static uint64_t *words(struct its *i, uint64_t at)
{
	return (uint64_t *)(i->m->ram + at);
}

static void command(struct its *i, uint64_t w0, uint64_t w1, uint64_t w2, uint64_t w3)
{
	memcpy(words(i, COMMANDS) + 4 * i->next, (uint64_t[]){ w0, w1, w2, w3 }, 32);
	i->next = (i->next + 1) % 2048;
	put(i, 0x88, i->next * 32);
	CHECK_EQ(get(i, 0x90), i->next * 32);
}

static void device_is(struct its *i, uint64_t device, unsigned int bits, uint64_t table)
{
	command(i, device << 32 | map_device, bits - 1, table ? VALID | (RAM + table) : 0, 0);
}

static void collection_is(struct its *i, uint64_t collection, uint64_t vcpu)
{
	command(i, map_collection, 0, VALID | vcpu << 16 | collection, 0);
}

static void event_is(struct its *i, uint64_t device, uint64_t event, uint64_t lpi, uint64_t collection)
{
	command(i, device << 32 | map_event, lpi << 32 | event, collection, 0);
}

/* A command about an event, and a collection for some. */
static void about(struct its *i, uint64_t what, uint64_t device, uint64_t event, uint64_t collection)
{
	command(i, device << 32 | what, event, collection, 0);
}

static int message(struct its *i, uint32_t device, uint32_t event)
{
	struct kvm_msi msi = { .address_lo = DOORBELL, .data = event, .flags = KVM_MSI_VALID_DEVID, .devid = device };

	return ioctl(i->m->vm, KVM_SIGNAL_MSI, &msi);
}

static struct its make_its(struct machine *m, int gic)
{
	struct kvm_create_device d = { .type = KVM_DEV_TYPE_ARM_VGIC_ITS };
	uint64_t at = ITS;

	OK(ioctl(m->vm, KVM_CREATE_DEVICE, &d));
	OK(set_attr(d.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, &at));
	OK(set_attr(d.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL));
	return (struct its){ .m = m, .gic = gic, .fd = d.fd };
}

/* The tables of redistributors. */
static void redistributors(struct its *i, unsigned int vcpus)
{
	for (unsigned int n = 0; n < vcpus; n++) {
		put_redist(i, n, 0x70, (RAM + PROPERTIES) | 15);
		put_redist(i, n, 0x74, 0);
		put_redist(i, n, 0x78, RAM + PENDING + n * 0x10000);
		put_redist(i, n, 0x7c, 0);
		put_redist(i, n, 0, 1);
	}
}

static void tables(struct its *i, uint64_t devices)
{
	put(i, 0x80, VALID | (RAM + COMMANDS) | 15);
	put(i, 0x100, VALID | devices);
	put(i, 0x108, VALID | (RAM + COLLECTIONS));
	put(i, 0, 1);
	CHECK_EQ(get(i, 0) & 1, 1);
	/* On KVM what comes while the distributor is off is lost. */
	OK(set_attr(i->gic, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0, &(uint32_t){ 2 }));
}

/* All LPIs are enabled and have priority 0xa0. */
static struct its add_its(struct machine *m, unsigned int vcpus)
{
	struct its i = make_its(m, add_gic(m));

	memset(m->ram + PROPERTIES, 0xa1, 0x10000 - 8192);
	redistributors(&i, vcpus);
	tables(&i, RAM + DEVICES);
	return i;
}

/* The guest's count of interrupts, before and after a look at what is pending. */
static uint64_t count(struct machine *m)
{
	uint64_t data;

	for (int n = 0; n < 2; n++)
		run_to_mmio(m);
	memcpy(&data, m->run->mmio.data, 8);
	return data;
}

static uint16_t taken(struct machine *m, unsigned int n)
{
	return ((uint16_t *)(m->ram + LIST))[n];
}

TEST_SECONDS(attributes, 20)
{
	struct machine m = MACHINE(guest_counts);
	struct kvm_create_device d = { .type = KVM_DEV_TYPE_ARM_VGIC_ITS, .flags = KVM_CREATE_DEVICE_TEST };
	struct its i = { .m = &m };
	uint64_t at = ITS + 4096, value = 0;
	uint32_t word;

	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_SIGNAL_MSI), 1);
	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_MSI_DEVID), 0);
	OK(ioctl(m.vm, KVM_CREATE_DEVICE, &d));
	CHECK_ERRNO(message(&i, 0, 0), EINVAL);
	i.gic = add_gic(&m);
	CHECK_ERRNO(message(&i, 0, 0), ENODEV);
	CHECK_EQ(get_redist(&i, 0, 8) & 1, 0);
	put_redist(&i, 0, 0, 1);
	CHECK_EQ(get_redist(&i, 0, 0) & 1, 0);
	d.flags = 0;
	OK(ioctl(m.vm, KVM_CREATE_DEVICE, &d));
	i.fd = d.fd;
	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_MSI_DEVID), 1);
	/* LPIs with 16 bits. */
	OK(get_attr(i.gic, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 4, &word));
	CHECK_EQ(word, 1 << 17 | 15 << 19 | 3);
	CHECK_EQ(get_redist(&i, 0, 8) & 1, 1);
	CHECK_ERRNO(get_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 0, &value), ENXIO);
	OK(get_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, &value));
	CHECK_EQ(value, -1ul);
	CHECK_ERRNO(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, 0, &at), ENODEV);
	CHECK_ERRNO(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, &at), EINVAL);
	at = (1ul << 40) - 0x10000;
	CHECK_ERRNO(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, &at), E2BIG);
	at = ITS;
	OK(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, &at));
	CHECK_ERRNO(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, &at), EEXIST);
	OK(get_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, &value));
	CHECK_EQ(value, ITS);
	CHECK_EQ(get(&i, 0), 1u << 31);
	CHECK_EQ(get(&i, 4), 0x4b00043b);
	CHECK_EQ(get(&i, 8), 0x1ef71);
	CHECK_EQ(get(&i, 0xffe8), 0x3b);
	CHECK_EQ(get(&i, 0x100), 0x1907000000000600);
	CHECK_EQ(get(&i, 0x108), 0x1c07000000000600);
	CHECK_EQ(get(&i, 0x110), 0);
	CHECK_ERRNO(get_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 0x84, &value), EINVAL);
	CHECK_ERRNO(get_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 0x98, &value), ENXIO);
	value = 0x4b00143b;
	CHECK_ERRNO(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 4, &value), EINVAL);
	/* Not without tables. */
	put(&i, 0, 1);
	CHECK_EQ(get(&i, 0), 1u << 31);
	put(&i, 0x108, -1ul);
	CHECK_EQ(get(&i, 0x108), 0xbc07fffffffffeff);
	put(&i, 0x80, 2 << 10 | RAM);
	CHECK_EQ(get(&i, 0x80), 3ul << 59 | 1 << 10 | RAM);
	put(&i, 0x90, 0xfff);
	CHECK_EQ(get(&i, 0x90), 0xfe0);
	value = 0x1000;
	CHECK_ERRNO(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 0x90, &value), EINVAL);
	put_redist(&i, 0, 0x70, -1u);
	CHECK_EQ(get_redist(&i, 0, 0x70), 0xffffff9f);
	put_redist(&i, 0, 0x7c, -1u);
	CHECK_EQ(get_redist(&i, 0, 0x7c), 0x000fffff);
	redistributors(&i, 1);
	CHECK_EQ(get_redist(&i, 0, 0) & 1, 1);
	/* Not while LPIs are on. */
	put_redist(&i, 0, 0x74, -1u);
	CHECK_EQ(get_redist(&i, 0, 0x74), 0);
	tables(&i, RAM + DEVICES);
	value = 0;
	CHECK_ERRNO(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 0x90, &value), EBUSY);
	OK(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_CTRL_RESET, NULL));
	CHECK_EQ(get(&i, 0), 1u << 31);
	CHECK_EQ(get(&i, 0x80), 0);
	CHECK_EQ(get(&i, 0x100) >> 63, 0);
	CHECK_ERRNO(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, 77, NULL), ENXIO);
}

TEST_SECONDS(messages, 20)
{
	struct machine m = MACHINE(guest_counts);
	struct its i = add_its(&m, 1);
	struct kvm_msi msi = { .address_lo = DOORBELL };

	CHECK_EQ(message(&i, 5, 3), 0);
	device_is(&i, 5, 4, EVENTS);
	collection_is(&i, 7, 0);
	event_is(&i, 5, 3, 8195, 7);
	event_is(&i, 5, 4, 8300, 7);
	/* An LPI belongs to its first event; below and above there are none; the device has 16 events. */
	event_is(&i, 5, 5, 8195, 7);
	event_is(&i, 5, 6, 8191, 7);
	event_is(&i, 5, 7, 0x10000, 7);
	event_is(&i, 5, 16, 8400, 7);
	event_is(&i, 6, 0, 8400, 7);
	CHECK_EQ(count(&m), 0);
	CHECK_EQ(message(&i, 5, 3), 1);
	CHECK_EQ(count(&m), 1);
	CHECK_EQ(taken(&m, 0), 8195);
	/* Twice before the guest runs is once. */
	CHECK_EQ(message(&i, 5, 4), 1);
	CHECK_EQ(message(&i, 5, 4), 1);
	CHECK_EQ(count(&m), 2);
	CHECK_EQ(taken(&m, 1), 8300);
	for (int n = 5; n < 8; n++)
		CHECK_EQ(message(&i, 5, n), 0);
	CHECK_EQ(message(&i, 5, 16), 0);
	CHECK_EQ(message(&i, 6, 0), 0);
	CHECK_EQ(message(&i, 0x10005, 3), 0);
	CHECK_EQ(message(&i, 5, 0x50003), 0);
	CHECK_ERRNO(ioctl(m.vm, KVM_SIGNAL_MSI, &msi), EINVAL);
	msi = (struct kvm_msi){ .address_lo = DIST, .flags = KVM_MSI_VALID_DEVID, .devid = 5, .data = 3 };
	CHECK_ERRNO(ioctl(m.vm, KVM_SIGNAL_MSI, &msi), EINVAL);
	msi.flags = 2;
	CHECK_ERRNO(ioctl(m.vm, KVM_SIGNAL_MSI, &msi), EINVAL);
	about(&i, raise_it, 5, 3, 0);
	CHECK_EQ(count(&m), 3);
	/* Pending, and not any more. */
	about(&i, raise_it, 5, 3, 0);
	about(&i, clear, 5, 3, 0);
	CHECK_EQ(count(&m), 3);
	/* Disabled, which the guest has to tell. */
	m.ram[PROPERTIES + 3] = 0xa0;
	CHECK_EQ(message(&i, 5, 3), 1);
	CHECK_EQ(count(&m), 4);
	about(&i, look, 5, 3, 0);
	CHECK_EQ(message(&i, 5, 3), 1);
	CHECK_EQ(count(&m), 4);
	m.ram[PROPERTIES + 3] = 0xa1;
	command(&i, look_all, 0, 7, 0);
	CHECK_EQ(count(&m), 5);
	/* The more urgent one first. */
	m.ram[PROPERTIES + 8300 - 8192] = 0x41;
	about(&i, look, 5, 4, 0);
	CHECK_EQ(message(&i, 5, 3), 1);
	CHECK_EQ(message(&i, 5, 4), 1);
	CHECK_EQ(count(&m), 7);
	CHECK_EQ(taken(&m, 5), 8300);
	CHECK_EQ(taken(&m, 6), 8195);
	/* LPIs are off, then the ITS is. */
	put_redist(&i, 0, 0, 0);
	CHECK_ERRNO(message(&i, 5, 3), EBUSY);
	put_redist(&i, 0, 0, 1);
	CHECK_EQ(message(&i, 5, 3), 1);
	CHECK_EQ(count(&m), 8);
	put(&i, 0, 0);
	CHECK_ERRNO(message(&i, 5, 3), EBUSY);
	put(&i, 0, 1);
	about(&i, discard, 5, 3, 0);
	CHECK_EQ(message(&i, 5, 3), 0);
	CHECK_EQ(message(&i, 5, 4), 1);
	CHECK_EQ(count(&m), 9);
	command(&i, map_collection, 0, 7, 0);
	CHECK_EQ(message(&i, 5, 4), 0);
	device_is(&i, 5, 4, 0);
	event_is(&i, 5, 3, 8195, 7);
	CHECK_EQ(message(&i, 5, 3), 0);
	command(&i, sync_all, 0, 0, 0);
	CHECK_EQ(count(&m), 9);
}

static void *signal_slowly(void *fd)
{
	usleep(100000);
	OK(eventfd_write((intptr_t)fd, 1));
	return NULL;
}

/* Eventfds are messages of devices. */
TEST_SECONDS(eventfds, 20)
{
	struct machine m = MACHINE(guest_sleeps);
	struct its i = add_its(&m, 1);
	int fd[2] = { OK(eventfd(0, EFD_NONBLOCK)), OK(eventfd(0, EFD_NONBLOCK)) };
	struct { struct kvm_irq_routing head; struct kvm_irq_routing_entry e[2]; } r = { .head.nr = 2 };
	pthread_t thread;

	for (int n = 0; n < 2; n++)
		r.e[n] = (struct kvm_irq_routing_entry){
			.gsi = 1000 - n, .type = KVM_IRQ_ROUTING_MSI, .flags = KVM_MSI_VALID_DEVID,
			.u.msi = { .address_lo = DOORBELL, .data = n, .devid = 5 },
		};
	OK(ioctl(m.vm, KVM_SET_GSI_ROUTING, &r));
	for (int n = 0; n < 2; n++)
		OK(ioctl(m.vm, KVM_IRQFD, (&(struct kvm_irqfd){ .fd = fd[n], .gsi = 1000 - n })));
	device_is(&i, 5, 4, EVENTS);
	collection_is(&i, 0, 0);
	event_is(&i, 5, 0, 8192, 0);
	event_is(&i, 5, 1, 8193, 0);
	run_to_mmio(&m);
	/* While it is out, and while it sleeps. */
	OK(eventfd_write(fd[0], 1));
	OK(eventfd_write(fd[1], 1));
	/* KVM's first one of a kind has to be carried out by another thread of its. */
	usleep(100000);
	REQUIRE(!pthread_create(&thread, NULL, signal_slowly, (void *)(intptr_t)fd[0]));
	run_to_done(&m);
	pthread_join(thread, NULL);
	CHECK_EQ(taken(&m, 0) + taken(&m, 1), 8192 + 8193);
	CHECK_EQ(taken(&m, 2), 8192);
}

/* The guest makes everything but the tables, and waits for an interrupt of its own. */
GUEST(guest_itself,
	SETUP
	"mov x22, #0x080a0000\nmov x23, #0x08080000\nmov w0, #1\n"
	"mov x1, #0x40430000\nmovk x1, #0xf\nstr x1, [x22, #0x70]\nmov x1, #0x40440000\nstr x1, [x22, #0x78]\n"
	"ldr x9, [x22, #0x70]\nldr x10, [x22, #8]\nstr w0, [x22]\nldr w11, [x22]\n"
	"mov x1, #0x40400000\nmovk x1, #0x8000, lsl #48\nstr x1, [x23, #0x100]\n"
	"mov x1, #0x40410000\nmovk x1, #0x8000, lsl #48\nstr w1, [x23, #0x108]\n"
	"lsr x1, x1, #32\nstr w1, [x23, #0x10c]\n"
	"mov x1, #0x40420000\nmovk x1, #0x8000, lsl #48\nmovk x1, #0xf\nstr x1, [x23, #0x80]\n"
	"ldr x12, [x23, #8]\nldr w13, [x23, #12]\nstr w0, [x23]\n"
	"mov x1, #160\nstr x1, [x23, #0x88]\n3:\nldr x2, [x23, #0x90]\ncmp x2, x1\nb.ne 3b\nldr w14, [x23]\n"
	"msr daifclr, #2\n" WAIT_FOR(#1)
	/* Once more, by another configuration of the other one. */
	"mov x1, #0x40430000\nmov w2, #0xa1\nstrb w2, [x1, #4]\ndsb sy\nmov x1, #8196\nstr x1, [x22, #0xa0]\n"
	WAIT_FOR(#2)
	/* It has no frame for messages that a processor writes to. */
	"mov x1, #0x08090000\nmov w2, #3\nstr w2, [x1, #0x40]\nldr w15, [x1, #0x40]\n"
	"str wzr, [x22]\nldr w16, [x22]\n" DONE
	WORDS_VECTORS);

TEST_SECONDS(by_guest, 20)
{
	struct machine m = MACHINE(guest_itself);
	struct its i = make_its(&m, add_gic(&m));
	uint64_t commands[][4] = {
		{ 5ul << 32 | map_device, 3, VALID | (RAM + EVENTS) },
		{ map_collection, 0, VALID },
		{ 5ul << 32 | map_event, 8195ul << 32 | 3, 0 },
		{ 5ul << 32 | map_event, 8196ul << 32 | 4, 0 },
		{ 5ul << 32 | raise_it, 3 },
	};

	memcpy(words(&i, COMMANDS), commands, sizeof(commands));
	m.ram[PROPERTIES + 3] = 0xa1;
	/* The other one is pending by the table. */
	m.ram[PENDING + 8196 / 8] = 1 << 8196 % 8;
	run_to_done(&m);
	CHECK_EQ(taken(&m, 0), 8195);
	CHECK_EQ(taken(&m, 1), 8196);
	CHECK_EQ(m.ram[PENDING + 8196 / 8], 0);
	CHECK_EQ(get_reg(&m, X(9)), 3 << 7 | (RAM + PROPERTIES) | 15);
	CHECK_EQ(get_reg(&m, X(10)) & 0x11, 0x11);
	CHECK_EQ(get_reg(&m, X(11)) & 1, 1);
	CHECK_EQ(get_reg(&m, X(12)), 0x1ef71);
	CHECK_EQ(get_reg(&m, X(13)), 0);
	CHECK_EQ(get_reg(&m, X(14)), 1u << 31 | 1);
	CHECK_EQ(get_reg(&m, X(15)), 0);
	CHECK_EQ(get_reg(&m, X(16)) & 1, 0);
}

static void save(struct its *i)
{
	OK(set_attr(i->fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_SAVE_TABLES, NULL));
	OK(set_attr(i->gic, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, NULL));
}

/* Whether an LPI is pending in the table of a vCPU. */
static bool is_pending(struct machine *m, unsigned int vcpu, unsigned int lpi)
{
	return m->ram[PENDING + vcpu * 0x10000 + lpi / 8] >> lpi % 8 & 1;
}

/* A second vCPU, that does not run. */
static void second_vcpu(struct machine *m)
{
	struct kvm_vcpu_init init = {};
	int second = OK(ioctl(m->vm, KVM_CREATE_VCPU, 1));

	OK(ioctl(m->vm, KVM_ARM_PREFERRED_TARGET, &init));
	init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2 | 1 << KVM_ARM_VCPU_POWER_OFF;
	OK(ioctl(second, KVM_ARM_VCPU_INIT, &init));
}

TEST_SECONDS(moved, 20)
{
	struct machine m = MACHINE(guest_counts);

	second_vcpu(&m);
	struct its i = add_its(&m, 2);
	device_is(&i, 5, 4, EVENTS);
	collection_is(&i, 0, 0);
	collection_is(&i, 1, 1);
	collection_is(&i, 2, 7);
	for (int n = 0; n < 4; n++)
		event_is(&i, 5, n, 8192 + n, 0);
	for (int n = 0; n < 4; n++)
		CHECK_EQ(message(&i, 5, n), 1);
	/* One is moved while it is pending, and not to a collection that has no vCPU. */
	about(&i, move, 5, 1, 1);
	about(&i, move, 5, 2, 2);
	save(&i);
	for (int n = 0; n < 4; n++) {
		CHECK_EQ(is_pending(&m, 0, 8192 + n), n != 1);
		CHECK_EQ(is_pending(&m, 1, 8192 + n), n == 1);
	}
	/* All of vCPU 0, and then all of a collection. */
	command(&i, move_all, 0, 0, 1 << 16);
	save(&i);
	for (int n = 0; n < 4; n++)
		CHECK_EQ(is_pending(&m, 1, 8192 + n), 1);
	about(&i, clear, 5, 2, 0);
	collection_is(&i, 0, 0);
	memset(m.ram + PENDING, 0, 0x20000);
	save(&i);
	for (int n = 0; n < 4; n++) {
		CHECK_EQ(is_pending(&m, 0, 8192 + n), n == 0 || n == 3);
		CHECK_EQ(is_pending(&m, 1, 8192 + n), n == 1);
	}
	CHECK_EQ(count(&m), 2);
}

TEST_SECONDS(saved, 20)
{
	struct machine m = MACHINE(guest_counts), other = MACHINE(guest_counts);
	struct its i = add_its(&m, 1);
	uint64_t entry = RAM + EVENTS, *events = words(&i, EVENTS);

	device_is(&i, 0x20, 2, EVENTS + 0x800);
	device_is(&i, 5, 4, EVENTS);
	collection_is(&i, 3, 0);
	event_is(&i, 5, 7, 8200, 3);
	event_is(&i, 5, 1, 8193, 3);
	event_is(&i, 5, 9, 8201, 3);
	event_is(&i, 0x20, 0, 8210, 3);
	CHECK_EQ(message(&i, 5, 7), 1);
	save(&i);
	CHECK_EQ(words(&i, DEVICES)[5], VALID | 0x1bul << 49 | entry >> 8 << 5 | 3);
	CHECK_EQ(words(&i, DEVICES)[0x20], VALID | (entry + 0x800) >> 8 << 5 | 1);
	CHECK_EQ(words(&i, COLLECTIONS)[0], VALID | 3);
	CHECK_EQ(words(&i, COLLECTIONS)[1], 0);
	CHECK_EQ(events[1], 6ul << 48 | 8193ul << 16 | 3);
	CHECK_EQ(events[7], 2ul << 48 | 8200ul << 16 | 3);
	CHECK_EQ(events[9], 8201ul << 16 | 3);
	CHECK(is_pending(&m, 0, 8200) && !is_pending(&m, 0, 8193));
	/* Another machine goes on with it. */
	memcpy(other.ram + DEVICES, m.ram + DEVICES, SECOND_LEVEL - DEVICES);
	struct its o = make_its(&other, add_gic(&other));
	redistributors(&o, 1);
	OK(set_attr(o.gic, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0, &(uint32_t){ 2 }));
	for (uint64_t at = 0x80; at <= 0x108; at += at == 0x90 ? 0x70 : 8)
		if (at != 0x90)
			put(&o, at, get(&i, at));
	put(&o, 0x90, get(&i, 0x90));
	o.next = i.next;
	OK(set_attr(o.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_RESTORE_TABLES, NULL));
	put(&o, 0, get(&i, 0));
	CHECK_EQ(count(&other), 1);
	CHECK_EQ(taken(&other, 0), 8200);
	CHECK_EQ(message(&o, 0x20, 0), 1);
	CHECK_EQ(message(&o, 5, 9), 1);
	CHECK_EQ(message(&o, 5, 8), 0);
	CHECK_EQ(count(&other), 3);
	about(&o, raise_it, 5, 1, 0);
	CHECK_EQ(count(&other), 4);
	CHECK_EQ(taken(&other, 3), 8193);
	/* Tables that make no sense: there is nothing then. */
	OK(set_attr(o.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_CTRL_RESET, NULL));
	tables(&o, RAM + DEVICES);
	o.next = 0;
	words(&o, EVENTS)[9] = 20ul << 48 | 8201ul << 16 | 3;
	CHECK_ERRNO(set_attr(o.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_RESTORE_TABLES, NULL), EINVAL);
	CHECK_EQ(message(&o, 5, 1), 0);
	words(&o, COLLECTIONS)[1] = VALID | 3;
	CHECK_ERRNO(set_attr(o.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_RESTORE_TABLES, NULL), EEXIST);
	words(&o, COLLECTIONS)[1] = VALID | 9 << 16 | 4;
	CHECK_ERRNO(set_attr(o.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_RESTORE_TABLES, NULL), EINVAL);
}

/* A table in two levels, of which the guest has the first page of devices 0x6000 to 0x7fff alone. */
TEST_SECONDS(indirect, 20)
{
	struct machine m = MACHINE(guest_counts);
	struct its i = make_its(&m, add_gic(&m));

	memset(m.ram + PROPERTIES, 0xa1, 0x10000 - 8192);
	redistributors(&i, 1);
	tables(&i, INDIRECT | (RAM + DEVICES));
	words(&i, DEVICES)[2] = VALID | 1ul << 45;
	words(&i, DEVICES)[3] = VALID | (RAM + SECOND_LEVEL);
	collection_is(&i, 0, 0);
	for (uint64_t n = 0; n < 4; n++) {
		device_is(&i, n * 0x2000 + 1, 4, EVENTS + n * 0x100);
		event_is(&i, n * 0x2000 + 1, 0, 8192 + n, 0);
		CHECK_EQ(message(&i, n * 0x2000 + 1, 0), n == 3);
	}
	CHECK_EQ(count(&m), 1);
	CHECK_EQ(taken(&m, 0), 8195);
	save(&i);
	CHECK_EQ(words(&i, SECOND_LEVEL)[1], VALID | (RAM + EVENTS + 0x300) >> 8 << 5 | 3);
	OK(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_CTRL_RESET, NULL));
	CHECK_ERRNO(message(&i, 0x6001, 0), EBUSY);
	i.next = 0;
	put(&i, 0x80, VALID | (RAM + COMMANDS) | 15);
	put(&i, 0x100, VALID | INDIRECT | (RAM + DEVICES));
	put(&i, 0x108, VALID | (RAM + COLLECTIONS));
	CHECK_ERRNO(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_RESTORE_TABLES, NULL), EFAULT);
	words(&i, DEVICES)[2] = 0;
	OK(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_RESTORE_TABLES, NULL));
	put(&i, 0, 1);
	CHECK_EQ(message(&i, 0x6001, 0), 1);
	CHECK_EQ(count(&m), 2);
}

static uint64_t chance(void)
{
	static uint64_t x = 0x9e3779b97f4a7c15;

	x ^= x << 13;
	x ^= x >> 7;
	return x ^= x << 17;
}

/* Commands by chance, tables that are nowhere: nothing of that is the host's trouble, and the ITS works after it. */
TEST_SECONDS(hostile, 60)
{
	struct machine m = MACHINE(guest_counts);

	second_vcpu(&m);
	struct its i = add_its(&m, 2);
	for (int round = 0; round < 30; round++) {
		uint64_t *c = words(&i, COMMANDS);

		for (int n = 0; n < 2048; n++, c += 4) {
			c[0] = (chance() % 8 ? chance() % 8 : chance()) << 32 | chance() % 16;
			c[1] = (8192 + chance() % 300) << 32 | (chance() % 8 ? chance() % 16 : chance());
			c[2] = chance() % 8 ? RAM + EVENTS + chance() % 0x10000 : chance();
			if (chance() % 3)
				c[2] |= VALID;
			if ((c[0] & 0xff) != map_device)
				c[2] = (c[2] & VALID) | (chance() % 3) << 16 | (chance() % 8 ? chance() % 4 : chance());
			c[3] = chance() % 3 << 16;
		}
		put(&i, 0x88, 2047 * 32);
		CHECK_EQ(get(&i, 0x90), 2047 * 32);
		for (int n = 0; n < 64; n++)
			message(&i, chance() % 8, chance() % 16);
		count(&m);
		set_reg(&m, X(28), 0);
		save(&i);
		put(&i, 0, 0);
		if (round % 3 == 0) {
			put(&i, 0x100, VALID | (chance() % 2 ? INDIRECT : 0) | chance());
			put(&i, 0x108, VALID | chance());
			put(&i, 0x80, VALID | chance());
			put(&i, 0, 1);
			put(&i, 0x88, 0xfe0);
			put(&i, 0, 0);
		}
		OK(set_attr(i.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_CTRL_RESET, NULL));
		tables(&i, RAM + DEVICES);
		put(&i, 0x88, 0);
	}
	i.next = 0;
	put_redist(&i, 0, 0, 0);
	put_redist(&i, 0, 0, 1);
	count(&m);
	set_reg(&m, X(28), 0);
	device_is(&i, 5, 4, EVENTS);
	collection_is(&i, 0, 0);
	memset(m.ram + PENDING, 0, 0x20000);
	event_is(&i, 5, 3, 8195, 0);
	CHECK_EQ(message(&i, 5, 3), 1);
	CHECK_EQ(count(&m), 1);
	CHECK_EQ(taken(&m, 0), 8195);
}
