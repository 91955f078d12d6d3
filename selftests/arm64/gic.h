/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A GICv3 for machines on Arm64, and what their guests do with it.
 *
 * A guest's handler puts the numbers of interrupts, one byte each, at RAM + LIST, and counts them in X28.
 */
#ifndef GIC_H
#define GIC_H

#include "machine.h"

#define DIST 0x8000000ul
#define REDIST 0x80a0000ul
#define LIST 0x100000

/* X20: distributor. X21: the first redistributor's frame of SGIs and PPIs. */
#define SETUP										\
	"adr x0, 7f\nmsr vbar_el1, x0\n"						\
	"mov x20, #0x08000000\nmov x21, #0x080b0000\nmov x27, #0x40100000\nmov x28, #0\n"	\
	"mov x0, #0xff\nmsr S3_0_C4_C6_0, x0\nmov x0, #1\nmsr S3_0_C12_C12_7, x0\n"		\
	"mov w0, #2\nstr w0, [x20]\nmov w0, #0xffff\nmovk w0, #0x800, lsl #16\nstr w0, [x21, #0x100]\nisb\n"

/* `end`: what is done between acknowledgement and end; X26 is the number. */
#define VECTORS(end)									\
	".balign 2048\n7:\n.skip 0x280\n"						\
	"mrs x26, S3_0_C12_C12_0\nstrb w26, [x27, x28]\nadd x28, x28, #1\n"		\
	end										\
	"msr S3_0_C12_C12_1, x26\nisb\neret\n"

/* An interrupt that comes between the look and WFI ends WFI, which interrupts need not be on for. */
#define WAIT_FOR(count)									\
	"1:\nmsr daifset, #2\ncmp x28, " #count "\nb.hs 2f\nwfi\nmsr daifclr, #2\nisb\nb 1b\n2:\nmsr daifclr, #2\n"

static inline int set_attr(int fd, uint32_t group, uint64_t attr, const void *value)
{
	struct kvm_device_attr a = { .group = group, .attr = attr, .addr = (uintptr_t)value };

	return ioctl(fd, KVM_SET_DEVICE_ATTR, &a);
}

static inline int get_attr(int fd, uint32_t group, uint64_t attr, void *value)
{
	struct kvm_device_attr a = { .group = group, .attr = attr, .addr = (uintptr_t)value };

	return ioctl(fd, KVM_GET_DEVICE_ATTR, &a);
}

static inline int make_gic(struct machine *m)
{
	struct kvm_create_device d = { .type = KVM_DEV_TYPE_ARM_VGIC_V3 };

	OK(ioctl(m->vm, KVM_CREATE_DEVICE, &d));
	return d.fd;
}

static inline int add_gic(struct machine *m)
{
	uint64_t dist = DIST, redist = REDIST;
	uint32_t count = 128;
	int gic = make_gic(m);

	OK(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &dist));
	OK(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, &redist));
	OK(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &count));
	OK(set_attr(gic, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL));
	return gic;
}

static inline void *run_second(void *argument)
{
	int vcpu = (intptr_t)argument;

	/* Off from now on and then, and ended with the process. */
	ioctl(vcpu, KVM_RUN, 0);
	return NULL;
}

#endif
