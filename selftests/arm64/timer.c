// SPDX-License-Identifier: GPL-2.0
/*
 * The timers of Arm64's EL1, virtual and physical: their interrupts, awake and asleep, and what user space says of them
 * and of their counters. What is expected is what KVM does.
 */
#define _GNU_SOURCE
#include "gic.h"

/* Ten times, half of them without sleeping. */
GUEST(guest_timer,
	SETUP
	"mrs x9, cntfrq_el0\nmov x0, #200\nudiv x9, x9, x0\nmrs x10, cntvct_el0\n"
	"msr daifclr, #2\nmov x8, #0\n"
	"6:\nadd x8, x8, #1\nmsr cntv_tval_el0, x9\nmov x0, #1\nmsr cntv_ctl_el0, x0\nisb\n"
	"tbnz x8, #0, 4f\n3:\ncmp x28, x8\nb.lo 3b\nb 5f\n4:\n" WAIT_FOR(x8)
	"5:\ncmp x8, #10\nb.lo 6b\nmrs x11, cntvct_el0\nldr w14, [x21, #0x200]\nldr w15, [x21, #0x300]\n" DONE
	VECTORS("mrs x12, cntv_ctl_el0\nmsr cntv_ctl_el0, xzr\nisb\n"));

TEST_SECONDS(timer, 20)
{
	struct machine m = MACHINE(guest_timer);

	add_gic(&m);
	run_to_done(&m);
	for (int n = 0; n < 10; n++)
		CHECK_EQ(m.ram[LIST + n], 27);
	CHECK_EQ(get_reg(&m, X(28)), 10);
	CHECK(get_reg(&m, X(11)) - get_reg(&m, X(10)) >= 10 * get_reg(&m, X(9)));
	/* Enabled, fired, not masked by anybody. */
	CHECK_EQ(get_reg(&m, X(12)), 5);
	CHECK_EQ(get_reg(&m, X(14)) & 1 << 27, 0);
	CHECK_EQ(get_reg(&m, X(15)), 0);
}

/* The same by the physical timer, whose deadline is absolute. */
GUEST(guest_physical_timer,
	SETUP
	"mov w0, #0x40000000\nstr w0, [x21, #0x100]\n"
	"mrs x9, cntfrq_el0\nmov x0, #200\nudiv x9, x9, x0\nmrs x10, cntpct_el0\nmov x7, x10\n"
	"msr daifclr, #2\nmov x8, #0\n"
	"6:\nadd x8, x8, #1\nadd x7, x7, x9\nmsr cntp_cval_el0, x7\nmrs x6, cntp_tval_el0\nmov x0, #1\n"
	"msr cntp_ctl_el0, x0\nisb\n"
	"tbnz x8, #0, 4f\n3:\ncmp x28, x8\nb.lo 3b\nb 5f\n4:\n" WAIT_FOR(x8)
	"5:\nmrs x7, cntpct_el0\ncmp x8, #10\nb.lo 6b\nmov x11, x7\nmrs x13, cntvct_el0\n"
	"ldr w14, [x21, #0x200]\nldr w15, [x21, #0x300]\n" DONE
	VECTORS("mrs x12, cntp_ctl_el0\nmsr cntp_ctl_el0, xzr\nisb\n"));

static void check_physical(struct machine *m)
{
	run_to_done(m);
	for (int n = 0; n < 10; n++)
		CHECK_EQ(m->ram[LIST + n], 30);
	CHECK_EQ(get_reg(m, X(28)), 10);
	CHECK(get_reg(m, X(11)) - get_reg(m, X(10)) >= 10 * get_reg(m, X(9)));
	CHECK_EQ(get_reg(m, X(12)), 5);
	/* It may have fired by then. */
	CHECK((int32_t)get_reg(m, X(6)) <= (int32_t)get_reg(m, X(9)));
	CHECK_EQ(get_reg(m, X(14)) & 1 << 30, 0);
	CHECK_EQ(get_reg(m, X(15)), 0);
	CHECK_EQ(get_reg(m, KVM_REG_ARM_PTIMER_CTL) & 1, 0);
	CHECK(get_reg(m, KVM_REG_ARM_PTIMER_CVAL) <= get_reg(m, KVM_REG_ARM_PTIMER_CNT));
}

/* The counter is the host's, whatever offset another machine had on this CPU. */
TEST_SECONDS(physical_timer, 20)
{
	struct machine m = MACHINE(guest_physical_timer);
	uint64_t begin = get_reg(&m, KVM_REG_ARM_PTIMER_CNT);

	add_gic(&m);
	check_physical(&m);
	CHECK(get_reg(&m, X(10)) >= begin);
	CHECK(get_reg(&m, X(11)) <= get_reg(&m, KVM_REG_ARM_PTIMER_CNT));
}

/*
 * The physical timer is another machine's with each offset. One that is 0 is where the processor's own can be used,
 * also after the guest has begun.
 */
TEST_SECONDS(offset_changes, 20)
{
	struct machine m = MACHINE(guest_physical_timer);
	struct kvm_arm_counter_offset offset = {};

	add_gic(&m);
	check_physical(&m);
	for (int n = 0; n < 4; n++) {
		offset.counter_offset = n % 2 ? 0 : -(1ul << 40);
		OK(ioctl(m.vm, KVM_ARM_SET_COUNTER_OFFSET, &offset));
		/* The store to the device is over. */
		m.run->immediate_exit = 1;
		CHECK_ERRNO(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
		m.run->immediate_exit = 0;
		set_reg(&m, CORE_REG(regs.pc), RAM);
		check_physical(&m);
		CHECK_EQ(get_reg(&m, X(10)) >= 1ul << 40, n % 2 == 0);
	}
}

/* What ends each of two timers: the handler switches off the one whose number it is. */
#define TIMER_ENDS									\
	VECTORS("cmp w26, #27\nb.eq 8f\nmsr cntp_ctl_el0, xzr\nb 9f\n8:\nmsr cntv_ctl_el0, xzr\n9:\nisb\n")

/* Both at once, ten times, half of them without sleeping. */
GUEST(guest_both_timers,
	SETUP
	"mov w0, #0x48000000\nstr w0, [x21, #0x100]\n"
	"mrs x9, cntfrq_el0\nmov x0, #200\nudiv x9, x9, x0\nmsr daifclr, #2\nmov x8, #0\n"
	"6:\nadd x8, x8, #2\nmsr cntv_tval_el0, x9\nmsr cntp_tval_el0, x9\nmov x0, #1\n"
	"msr cntp_ctl_el0, x0\nmsr cntv_ctl_el0, x0\nisb\n"
	"tbnz x8, #1, 4f\n3:\ncmp x28, x8\nb.lo 3b\nb 5f\n4:\n" WAIT_FOR(x8)
	"5:\ncmp x8, #20\nb.lo 6b\nldr w14, [x21, #0x200]\nldr w15, [x21, #0x300]\n" DONE
	TIMER_ENDS);

TEST_SECONDS(both_timers, 20)
{
	struct machine m = MACHINE(guest_both_timers);

	add_gic(&m);
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(28)), 20);
	for (int n = 0; n < 20; n += 2)
		CHECK_EQ(m.ram[LIST + n] + m.ram[LIST + n + 1], 27 + 30);
	CHECK_EQ(get_reg(&m, X(14)) & (1 << 30 | 1 << 27), 0);
	CHECK_EQ(get_reg(&m, X(15)), 0);
}

/* User space switches it on, before the guest begins and while that sleeps. */
GUEST(guest_waits,
	SETUP
	"mov w0, #0x40000000\nstr w0, [x21, #0x100]\nmsr daifclr, #2\n"
	WAIT_FOR(#1) "mov x30, #0x10000000\nstr wzr, [x30]\n" WAIT_FOR(#2) DONE
	TIMER_ENDS);

TEST_SECONDS(physical_of_user_space, 20)
{
	struct machine m = MACHINE(guest_waits);

	add_gic(&m);
	set_reg(&m, KVM_REG_ARM_PTIMER_CVAL, get_reg(&m, KVM_REG_ARM_PTIMER_CNT) + 1000);
	set_reg(&m, KVM_REG_ARM_PTIMER_CTL, 1);
	run_to_mmio(&m);
	CHECK_EQ(get_reg(&m, X(28)), 1);
	CHECK_EQ(get_reg(&m, KVM_REG_ARM_PTIMER_CTL) & 3, 0);
	set_reg(&m, KVM_REG_ARM_PTIMER_CVAL, 5);
	set_reg(&m, KVM_REG_ARM_PTIMER_CTL, 1);
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(28)), 2);
	CHECK_EQ(get_reg(&m, KVM_REG_ARM_PTIMER_CVAL), 5);
}

/* It has fired, and nobody has been told; user space switches it off. */
GUEST(guest_fired,
	SETUP
	"msr daifclr, #2\nmsr cntp_cval_el0, xzr\nmov x0, #1\nmsr cntp_ctl_el0, x0\nisb\n"
	"mrs x12, cntp_ctl_el0\nldr w13, [x21, #0x200]\nmov x30, #0x10000000\nstr wzr, [x30]\n"
	"mov w0, #0x40000000\nstr w0, [x21, #0x100]\nisb\nldr w14, [x21, #0x200]\n" DONE
	TIMER_ENDS);

TEST_SECONDS(physical_line, 20)
{
	struct machine m = MACHINE(guest_fired);

	add_gic(&m);
	run_to_mmio(&m);
	CHECK_EQ(get_reg(&m, X(12)), 5);
	CHECK_EQ(get_reg(&m, X(13)), 1 << 30);
	set_reg(&m, KVM_REG_ARM_PTIMER_CTL, 0);
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(14)), 0);
	CHECK_EQ(get_reg(&m, X(28)), 0);
}

/* Both counters are as user space wants them, and so is the timer; one counter that is set has no effect any more. */
TEST_SECONDS(counter_offset, 20)
{
	struct machine m = MACHINE(guest_physical_timer);
	struct kvm_arm_counter_offset offset = { .reserved = 1 };

	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_COUNTER_OFFSET), 1);
	CHECK_ERRNO(ioctl(m.vm, KVM_ARM_SET_COUNTER_OFFSET, &offset), EINVAL);
	uint64_t now = get_reg(&m, KVM_REG_ARM_PTIMER_CNT);
	offset.counter_offset = now - (1ul << 40);
	offset.reserved = 0;
	OK(ioctl(m.vm, KVM_ARM_SET_COUNTER_OFFSET, &offset));
	set_reg(&m, KVM_REG_ARM_PTIMER_CNT, 1ul << 50);
	set_reg(&m, KVM_REG_ARM_TIMER_CNT, 1ul << 50);
	add_gic(&m);
	check_physical(&m);
	CHECK(get_reg(&m, X(10)) >= 1ul << 40 && get_reg(&m, X(10)) < 1ul << 41);
	CHECK(get_reg(&m, X(13)) >= get_reg(&m, X(11)) && get_reg(&m, X(13)) < 1ul << 41);
}

GUEST(guest_nop, DONE);

/* One PPI cannot be that of both timers, which is noticed late. */
TEST_SECONDS(one_intid, 20)
{
	struct machine m = MACHINE(guest_nop);
	uint32_t intid = 0;

	add_gic(&m);
	OK(get_attr(m.vcpu, KVM_ARM_VCPU_TIMER_CTRL, KVM_ARM_VCPU_TIMER_IRQ_PTIMER, &intid));
	CHECK_EQ(intid, 30);
	intid = 27;
	OK(set_attr(m.vcpu, KVM_ARM_VCPU_TIMER_CTRL, KVM_ARM_VCPU_TIMER_IRQ_PTIMER, &intid));
	CHECK_ERRNO(ioctl(m.vcpu, KVM_RUN, 0), EINVAL);
}

/* Which PPI the timer has, and that the counter says what user space has written. */
TEST_SECONDS(timer_attributes, 20)
{
	struct machine m = MACHINE(guest_timer);
	uint32_t intid;
	uint64_t count = 1ul << 50;
	struct kvm_one_reg r = { KVM_REG_ARM_TIMER_CNT, (uintptr_t)&count };

	intid = 27;
	CHECK_ERRNO(set_attr(m.vcpu, KVM_ARM_VCPU_TIMER_CTRL, KVM_ARM_VCPU_TIMER_IRQ_VTIMER, &intid), EINVAL);
	add_gic(&m);
	intid = 40;
	CHECK_ERRNO(set_attr(m.vcpu, KVM_ARM_VCPU_TIMER_CTRL, KVM_ARM_VCPU_TIMER_IRQ_VTIMER, &intid), EINVAL);
	intid = 27;
	OK(set_attr(m.vcpu, KVM_ARM_VCPU_TIMER_CTRL, KVM_ARM_VCPU_TIMER_IRQ_VTIMER, &intid));
	intid = 0;
	OK(get_attr(m.vcpu, KVM_ARM_VCPU_TIMER_CTRL, KVM_ARM_VCPU_TIMER_IRQ_VTIMER, &intid));
	CHECK_EQ(intid, 27);
	OK(ioctl(m.vcpu, KVM_SET_ONE_REG, &r));
	run_to_done(&m);
	CHECK(get_reg(&m, X(10)) >= 1ul << 50 && get_reg(&m, X(10)) < 1ul << 51);
	CHECK(get_reg(&m, KVM_REG_ARM_TIMER_CVAL) > 1ul << 50);
	CHECK_EQ(get_reg(&m, KVM_REG_ARM_TIMER_CTL) & 1, 0);
	CHECK_ERRNO(set_attr(m.vcpu, KVM_ARM_VCPU_TIMER_CTRL, KVM_ARM_VCPU_TIMER_IRQ_VTIMER, &intid), EBUSY);
}
