// SPDX-License-Identifier: GPL-2.0
/*
 * Breakpoints, watchpoints and steps on Arm64: the guest's own, and those of user space (KVM_SET_GUEST_DEBUG). What is
 * expected is what KVM does.
 */
#define _GNU_SOURCE
#include "machine.h"
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MDSCR ARM64_SYS_REG(2, 0, 0, 2, 2)
#define OSLSR ARM64_SYS_REG(2, 0, 1, 1, 4)
#define BVR(n) ARM64_SYS_REG(2, 0, 0, n, 4)
#define BCR(n) ARM64_SYS_REG(2, 0, 0, n, 5)
#define WVR(n) ARM64_SYS_REG(2, 0, 0, n, 6)
#define WCR(n) ARM64_SYS_REG(2, 0, 0, n, 7)
/* On, for EL1, all four bytes; loads and stores, all eight bytes. */
#define BREAK 0x1e3
#define WATCH 0x1ffb

/* Registers are what has been written to them; those of an external debugger read as zero. */
GUEST(guest_registers,
	"ldr x0, =0x1122334455667788\nmsr dbgbvr1_el1, x0\nmov x1, #0x1e6\nmsr dbgbcr1_el1, x1\n"
	"msr dbgwvr0_el1, x0\nmsr dbgwcr0_el1, x1\n"
	"mrs x10, dbgbvr1_el1\nmrs x11, dbgbcr1_el1\nmrs x12, dbgwvr0_el1\nmrs x13, dbgwcr0_el1\n"
	"mov x1, #1\nmsr oslar_el1, x1\nmrs x14, oslsr_el1\nmrs x15, mdscr_el1\nmrs x16, mdccsr_el0\n"
	"mrs x17, osdlr_el1\n"
	"mrs x18, id_aa64dfr0_el1\n" DONE ".ltorg\n");

TEST(registers)
{
	struct machine m = MACHINE(guest_registers);

	set_reg(&m, MDSCR, 1 << 12);
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(10)), 0x1122334455667788);
	CHECK_EQ(get_reg(&m, X(11)), 0x1e6);
	CHECK_EQ(get_reg(&m, X(12)), 0x1122334455667788);
	CHECK_EQ(get_reg(&m, X(13)), 0x1e6);
	CHECK_EQ(get_reg(&m, X(14)), 10);
	CHECK_EQ(get_reg(&m, X(15)), 1 << 12);
	CHECK_EQ(get_reg(&m, X(16)), 0);
	CHECK_EQ(get_reg(&m, X(17)), 0);
	uint64_t dfr0 = get_reg(&m, X(18));
	CHECK_EQ((dfr0 >> 12 & 15) + 1, ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_DEBUG_HW_BPS));
	CHECK_EQ((dfr0 >> 20 & 15) + 1, ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_DEBUG_HW_WPS));
	CHECK_EQ(get_reg(&m, BVR(1)), 0x1122334455667788);
	CHECK_EQ(get_reg(&m, BCR(1)), 0x1e6);
	CHECK_EQ(get_reg(&m, OSLSR), 10);
	set_reg(&m, OSLSR, 8);
	CHECK_EQ(get_reg(&m, OSLSR), 8);
	uint64_t bad = 0;
	struct kvm_one_reg r = { OSLSR, (uintptr_t)&bad };
	CHECK_ERRNO(ioctl(m.vcpu, KVM_SET_ONE_REG, &r), EINVAL);
	set_reg(&m, WVR(15), 0x1234);
	CHECK_EQ(get_reg(&m, WVR(15)), 0x1234);
	init_vcpu(&m);
	CHECK_EQ(get_reg(&m, BVR(1)), 0);
	CHECK_EQ(get_reg(&m, MDSCR), 0);
}

/*
 * Each exception is counted by its class: X10 breakpoints, X11 watchpoints, X12 steps, X13 BRK; X14 is FAR of the last
 * watchpoint. The first three go on with debug exceptions masked or, for a step, with another one; BRK behind itself.
 */
#define OWN_VECTORS									\
	".balign 2048\n7:\n.skip 0x200\n"						\
	"mrs x20, esr_el1\nlsr x20, x20, #26\nmrs x21, spsr_el1\n"			\
	"cmp x20, #0x31\nb.ne 1f\nadd x10, x10, #1\norr x21, x21, #0x200\n1:\n"		\
	"cmp x20, #0x35\nb.ne 1f\nadd x11, x11, #1\nmrs x14, far_el1\norr x21, x21, #0x200\n1:\n"	\
	"cmp x20, #0x33\nb.ne 1f\nadd x12, x12, #1\norr x21, x21, #0x200000\n1:\n"	\
	"cmp x20, #0x3c\nb.ne 1f\nadd x13, x13, #1\nmrs x20, elr_el1\nadd x20, x20, #4\nmsr elr_el1, x20\n1:\n"	\
	"msr spsr_el1, x21\neret\n"

GUEST(guest_own,
	"adr x0, 7f\nmsr vbar_el1, x0\nisb\nmov x10, #0\nmov x11, #0\nmov x12, #0\nmov x13, #0\n"
	"cbz x9, 2f\nmov x0, #1\nmsr oslar_el1, x0\nisb\n2:\n"
	"mov x0, #0xa000\nmsr mdscr_el1, x0\nadr x0, 3f\nmsr dbgbvr0_el1, x0\nmov x0, #0x1e3\nmsr dbgbcr0_el1, x0\n"
	"ldr x1, =0x40003000\nmsr dbgwvr0_el1, x1\nmov x0, #0x1ffb\nmsr dbgwcr0_el1, x0\nisb\nmsr daifclr, #8\n"
	"3:\nnop\nmsr daifclr, #8\n"
	"str x0, [x1, #16]\nstr x0, [x1]\nmsr daifclr, #8\nldr x2, [x1]\n"
	"msr dbgbcr0_el1, xzr\nmsr dbgwcr0_el1, xzr\n"
	"brk #7\n"
	/* Steps from the second instruction with SS on, an MRS that traps and a store to a device among them. */
	"mov x3, #0x10000000\nmsr daifset, #8\nmov x0, #0x2001\nmsr mdscr_el1, x0\nisb\nmsr daifclr, #8\n"
	"nop\nmrs x4, id_aa64pfr0_el1\nstr w4, [x3, #8]\nnop\nmsr mdscr_el1, xzr\n" DONE
	OWN_VECTORS ".ltorg\n");

static void own(int locked)
{
	struct machine m = MACHINE(guest_own);

	set_reg(&m, X(9), locked);
	run_to_mmio(&m);
	CHECK_EQ(m.run->mmio.phys_addr, DEVICE_AT + 8);
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(10)), !locked);
	CHECK_EQ(get_reg(&m, X(11)), locked ? 0 : 2);
	CHECK_EQ(get_reg(&m, X(13)), 1);
	if (!locked)
		CHECK_EQ(get_reg(&m, X(14)), RAM + 0x3000);
	/* Before each instruction from the first NOP to the MSR that ends it. In QEMU one more, if it does not trap. */
	uint64_t steps = get_reg(&m, X(12));
	CHECK(locked ? steps == 0 : steps == 5 || steps == 6);
}

TEST(guests_own)
{
	own(0);
}

/* With the OS lock there is BRK alone. */
TEST(os_lock)
{
	own(1);
}

GUEST(guest_debugged,
	"mov x1, #0x10000000\nmov x2, #5\nmrs x3, id_aa64pfr0_el1\nstr w2, [x1, #8]\nldr w4, [x1, #12]\nnop\n"
	"ldr x0, =0x84000000\nhvc #0\n"
	"ldr x5, =0x40003000\nstr x2, [x5, #8]\nldr x2, [x5]\nbrk #3\n" DONE ".ltorg\n");

static void debug(struct machine *m, unsigned int control, const struct kvm_guest_debug_arch *arch)
{
	struct kvm_guest_debug d = { .control = control };

	if (arch)
		d.arch = *arch;
	OK(ioctl(m->vcpu, KVM_SET_GUEST_DEBUG, &d));
}

static uint64_t pc_of(struct machine *m)
{
	return get_reg(m, CORE_REG(regs.pc)) - RAM;
}

/* One exit for each instruction, whatever it does; the guest sees none of it. */
TEST(steps)
{
	struct machine m = MACHINE(guest_debugged);
	int devices = 0;

	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_SET_GUEST_DEBUG), 1);
	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_SET_GUEST_DEBUG2),
		 KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_USE_HW);
	debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, NULL);
	for (uint64_t pc = 4; pc < 11 * 4;) {
		OK(ioctl(m.vcpu, KVM_RUN, 0));
		if (m.run->exit_reason == KVM_EXIT_MMIO) {
			devices++;
			continue;
		}
		REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_DEBUG);
		CHECK_EQ(m.run->debug.arch.hsr >> 26, 0x32);
		REQUIRE_EQ(pc_of(&m), pc);
		CHECK_EQ(get_reg(&m, CORE_REG(regs.pstate)) >> 21 & 1, 0);
		pc += 4;
	}
	CHECK_EQ(devices, 2);
	CHECK_EQ(get_reg(&m, MDSCR), 0);
	debug(&m, 0, NULL);
	set_reg(&m, CORE_REG(regs.pc), RAM + 12 * 4);
	run_to_done(&m);
}

TEST(points_of_user_space)
{
	struct machine m = MACHINE(guest_debugged);
	struct kvm_guest_debug_arch a = {
		.dbg_bvr[1] = RAM + 5 * 4, .dbg_bcr[1] = BREAK, .dbg_wvr[0] = RAM + 0x3000, .dbg_wcr[0] = WATCH,
	};
	struct kvm_guest_debug bad = { .control = 1 << 20 };

	CHECK_ERRNO(ioctl(m.vcpu, KVM_SET_GUEST_DEBUG, &bad), EINVAL);
	debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW | KVM_GUESTDBG_USE_SW_BP, &a);
	run_to_mmio(&m);
	run_to_mmio(&m);
	OK(ioctl(m.vcpu, KVM_RUN, 0));
	REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_DEBUG);
	CHECK_EQ(m.run->debug.arch.hsr >> 26, 0x30);
	CHECK_EQ(pc_of(&m), 5 * 4);
	/* The guest's own are as they were. */
	CHECK_EQ(get_reg(&m, BVR(1)), 0);
	a.dbg_bcr[1] = 0;
	debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW | KVM_GUESTDBG_USE_SW_BP, &a);
	OK(ioctl(m.vcpu, KVM_RUN, 0));
	REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_DEBUG);
	CHECK_EQ(m.run->debug.arch.hsr >> 26, 0x34);
	CHECK_EQ(m.run->debug.arch.far, RAM + 0x3000);
	CHECK_EQ(pc_of(&m), 10 * 4);
	debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP, NULL);
	OK(ioctl(m.vcpu, KVM_RUN, 0));
	REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_DEBUG);
	CHECK_EQ(m.run->debug.arch.hsr, 0x3cu << 26 | 1 << 25 | 3);
	CHECK_EQ(pc_of(&m), 11 * 4);
	CHECK_EQ(get_reg(&m, X(5)), RAM + 0x3000);
}

static volatile uint64_t watched;

static uint64_t hits(int fd)
{
	uint64_t count = 0;

	REQUIRE_EQ(read(fd, &count, sizeof(count)), sizeof(count));
	return count;
}

/* A watchpoint of the host's is there again after a guest has had its own, in the same registers. */
TEST(hosts_own)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_BREAKPOINT, .size = sizeof(attr), .bp_type = HW_BREAKPOINT_W,
		.bp_addr = (uintptr_t)&watched, .bp_len = 8, .exclude_kernel = 1, .exclude_hv = 1,
	};
	int fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);

	if (fd < 0)
		skip("no hardware watchpoint");
	watched = 1;
	CHECK_EQ(hits(fd), 1);
	own(0);
	watched = 2;
	CHECK_EQ(hits(fd), 2);
	close(fd);
}
