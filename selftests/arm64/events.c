// SPDX-License-Identifier: GPL-2.0
/*
 * What comes to a vCPU on Arm64 from outside, and what it asks of user space: errors of memory, PSCI, suspended states,
 * ID registers that user space changes. What is expected is what KVM does.
 */
#define _GNU_SOURCE
#include "machine.h"
#include <signal.h>
#include <sys/time.h>

#define PFR0 ARM64_SYS_REG(3, 0, 0, 4, 0)
#define ISAR0 ARM64_SYS_REG(3, 0, 0, 6, 0)
#define VERSION KVM_REG_ARM_PSCI_VERSION

/* The handlers leave ESR_EL1, FAR_EL1 and ELR_EL1 in X20 to X22, and X23 says which it was. */
#define HANDLERS								\
	".balign 2048\n7:\n"							\
	".skip 0x200\nmov x23, #1\nb 8f\n.skip 0x178\nmov x23, #2\nb 8f\n"	\
	"8:\nmrs x20, esr_el1\nmrs x21, far_el1\nmrs x22, elr_el1\nmrs x24, spsr_el1\n" DONE


GUEST(guest_nop_events, DONE);

GUEST(guest_errors,
	"adr x0, 7f\nmsr vbar_el1, x0\nisb\nmov x1, #0x10000000\n"
	"ldr x2, [x1]\nldr x2, [x1, #8]\nstr x2, [x1, #16]\n"
	"msr daifclr, #4\nisb\nnop\nmov x23, #9\n" DONE
	HANDLERS);

TEST(no_event)
{
	struct machine m = MACHINE(guest_nop_events);
	struct kvm_vcpu_events events = {};

	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_VCPU_EVENTS), 1);
	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_INJECT_EXT_DABT), 1);
	OK(ioctl(m.vcpu, KVM_GET_VCPU_EVENTS, &events));
	CHECK_EQ(events.exception.serror_pending, 0);
	CHECK_EQ(events.exception.ext_dabt_pending, 0);
	CHECK_EQ(events.exception.serror_has_esr, ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_INJECT_SERROR_ESR));
	OK(ioctl(m.vcpu, KVM_SET_VCPU_EVENTS, &events));
	run_to_done(&m);
	/* Not before KVM_ARM_VCPU_INIT. */
	make_vm(&m);
	make_vcpu(&m);
	CHECK_ERRNO(ioctl(m.vcpu, KVM_GET_VCPU_EVENTS, &events), ENOEXEC);
	CHECK_ERRNO(ioctl(m.vcpu, KVM_SET_VCPU_EVENTS, &events), ENOEXEC);
}

/* An access that user space has no answer to. */
TEST(external_abort)
{
	struct machine m = MACHINE(guest_errors);
	struct kvm_vcpu_events events = { .exception.ext_dabt_pending = 1 };

	run_to_mmio(&m);
	memset(m.run->mmio.data, 0x11, 8);
	run_to_mmio(&m);
	uint64_t pc = get_reg(&m, CORE_REG(regs.pc));
	OK(ioctl(m.vcpu, KVM_SET_VCPU_EVENTS, &events));
	OK(ioctl(m.vcpu, KVM_GET_VCPU_EVENTS, &events));
	CHECK_EQ(events.exception.ext_dabt_pending, 0);
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(23)), 1);
	CHECK_EQ(get_reg(&m, X(20)), 0x96000010);
	CHECK_EQ(get_reg(&m, X(21)), DEVICE_AT + 8);
	CHECK_EQ(get_reg(&m, X(22)), pc);
	/* What the load had been given before. */
	CHECK_EQ(get_reg(&m, X(2)), 0x1111111111111111);
}

static void errors(int has_esr, uint64_t esr, uint64_t want)
{
	struct machine m = MACHINE(guest_errors);
	struct kvm_vcpu_events events = {
		.exception = { .serror_pending = 1, .serror_has_esr = has_esr, .serror_esr = esr },
	};

	for (int i = 0; i < 3; i++)
		run_to_mmio(&m);
	/* Masked: it waits. */
	OK(ioctl(m.vcpu, KVM_SET_VCPU_EVENTS, &events));
	memset(&events, 0xff, sizeof(events));
	OK(ioctl(m.vcpu, KVM_GET_VCPU_EVENTS, &events));
	CHECK_EQ(events.exception.serror_pending, 1);
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(23)), 2);
	CHECK_EQ(get_reg(&m, X(20)) & ~0xffffff, want & ~0xffffff);
	if (has_esr)
		CHECK_EQ(get_reg(&m, X(20)), want);
	OK(ioctl(m.vcpu, KVM_GET_VCPU_EVENTS, &events));
	CHECK_EQ(events.exception.serror_pending, 0);
}

TEST(system_error)
{
	struct machine m = MACHINE(guest_errors);
	struct kvm_vcpu_events events = {
		.exception = { .serror_pending = 1, .serror_has_esr = 1, .serror_esr = 1 << 25 },
	};

	CHECK_ERRNO(ioctl(m.vcpu, KVM_SET_VCPU_EVENTS, &events), EINVAL);
	errors(0, 0, 0xbf000000);
	if (ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_INJECT_SERROR_ESR) == 1)
		errors(1, 0x123, 0xbe000123);
}

/* The guest does not mask it: it is taken at once. */
TEST(system_error_unmasked)
{
	struct machine m = MACHINE(guest_errors);
	struct kvm_vcpu_events events = { .exception.serror_pending = 1 };

	run_to_mmio(&m);
	run_to_mmio(&m);
	run_to_mmio(&m);
	uint64_t pc = get_reg(&m, CORE_REG(regs.pc));
	set_reg(&m, CORE_REG(regs.pstate), 0x2c5);
	OK(ioctl(m.vcpu, KVM_SET_VCPU_EVENTS, &events));
	OK(ioctl(m.vcpu, KVM_GET_VCPU_EVENTS, &events));
	CHECK_EQ(events.exception.serror_pending, 0);
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(23)), 2);
	CHECK(get_reg(&m, X(22)) == pc || get_reg(&m, X(22)) == pc + 4);
	CHECK_EQ(get_reg(&m, X(24)), 0x2c5);
}

/* Answers of calls from X0 and X1 in X10 to X15, then the last one, in X9. */
GUEST(guest_calls,
	"ldr x0, =0x84000000\nhvc #0\nmov x10, x0\n"
	/* FEATURES of CPU_SUSPEND, SYSTEM_RESET2, SYSTEM_SUSPEND. */
	"ldr x0, =0x8400000a\nldr x1, =0xc4000001\nhvc #0\nmov x11, x0\n"
	"ldr x0, =0x8400000a\nldr x1, =0xc4000012\nhvc #0\nmov x12, x0\n"
	"ldr x0, =0x8400000a\nldr x1, =0xc400000e\nhvc #0\nmov x13, x0\n"
	"ldr x0, =0xc4000012\nmov x1, #1\nhvc #0\nmov x14, x0\n"
	"mov x0, x9\nmov x1, #0\nmov x2, #0\nhvc #0\nmov x15, x0\n" DONE ".ltorg\n");

static void calls(uint64_t version, uint64_t last, uint32_t event, uint64_t flags)
{
	struct machine m = MACHINE(guest_calls);
	struct kvm_enable_cap cap = { .cap = KVM_CAP_ARM_SYSTEM_SUSPEND };
	bool newer = version >= 0x10001;

	if (last == 0xc400000e)
		OK(ioctl(m.vm, KVM_ENABLE_CAP, &cap));
	set_reg(&m, VERSION, version);
	CHECK_EQ(get_reg(&m, VERSION), version);
	set_reg(&m, X(9), last);
	OK(ioctl(m.vcpu, KVM_RUN, 0));
	if (event) {
		REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_SYSTEM_EVENT);
		CHECK_EQ(m.run->system_event.type, event);
		CHECK_EQ(m.run->system_event.ndata, event != KVM_SYSTEM_EVENT_SUSPEND);
		CHECK_EQ(m.run->system_event.data[0], flags);
		CHECK_EQ(get_reg(&m, X(0)), event == KVM_SYSTEM_EVENT_SUSPEND ? last : -6);
	} else {
		REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_MMIO);
		CHECK_EQ((int64_t)get_reg(&m, X(15)), -1);
	}
	CHECK_EQ(get_reg(&m, X(10)), version);
	CHECK_EQ((int64_t)get_reg(&m, X(11)), version >= 0x10000 ? 0 : -1);
	CHECK_EQ((int64_t)get_reg(&m, X(12)), newer ? 0 : -1);
	CHECK_EQ((int64_t)get_reg(&m, X(13)), last == 0xc400000e ? 0 : -1);
	CHECK_EQ((int64_t)get_reg(&m, X(14)), newer ? -2 : -1);
}

TEST(psci_versions)
{
	struct machine m = MACHINE(guest_calls);
	uint64_t bad = 0x10009;
	struct kvm_one_reg r = { VERSION, (uintptr_t)&bad };

	CHECK_ERRNO(ioctl(m.vcpu, KVM_SET_ONE_REG, &r), EINVAL);
	CHECK_EQ(get_reg(&m, VERSION), 0x10003);
	calls(0x10003, 0xc4000012, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2);
	calls(0x10003, 0xc4000015, KVM_SYSTEM_EVENT_SHUTDOWN, 1);
	calls(0x10003, 0x84000008, KVM_SYSTEM_EVENT_SHUTDOWN, 0);
	calls(0x10001, 0xc4000012, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2);
	calls(0x10001, 0xc4000015, 0, 0);
	calls(2, 0xc4000012, 0, 0);
	calls(0x10003, 0xc400000e, KVM_SYSTEM_EVENT_SUSPEND, 0);
}

static void on_alarm(int number)
{
}

/* Suspended by user space: nothing is executed, and nothing wakes it without an interrupt controller. */
TEST(suspended)
{
	struct machine m = MACHINE(guest_nop_events);
	struct kvm_mp_state state = { KVM_MP_STATE_SUSPENDED };
	struct itimerval in = { .it_value = { .tv_usec = 200000 } };
	struct kvm_vcpu_events events = { .exception.serror_pending = 1 };

	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_alarm }, NULL);
	OK(ioctl(m.vcpu, KVM_SET_MP_STATE, &state));
	OK(ioctl(m.vcpu, KVM_GET_MP_STATE, &state));
	CHECK_EQ(state.mp_state, KVM_MP_STATE_SUSPENDED);
	setitimer(ITIMER_REAL, &in, NULL);
	CHECK_ERRNO(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
	CHECK_EQ(get_reg(&m, CORE_REG(regs.pc)), RAM);
	OK(ioctl(m.vcpu, KVM_SET_VCPU_EVENTS, &events));
	for (int i = 0; i < 2; i++) {
		OK(ioctl(m.vcpu, KVM_RUN, 0));
		REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_SYSTEM_EVENT);
		CHECK_EQ(m.run->system_event.type, KVM_SYSTEM_EVENT_WAKEUP);
		CHECK_EQ(get_reg(&m, CORE_REG(regs.pc)), RAM);
	}
	state.mp_state = KVM_MP_STATE_RUNNABLE;
	OK(ioctl(m.vcpu, KVM_SET_MP_STATE, &state));
	run_to_done(&m);
}

static int try_reg(struct machine *m, uint64_t id, uint64_t value)
{
	struct kvm_one_reg r = { id, (uintptr_t)&value };

	return ioctl(m->vcpu, KVM_SET_ONE_REG, &r);
}

GUEST(guest_ids, "mrs x10, id_aa64isar0_el1\nmrs x11, id_aa64pfr0_el1\n" DONE);

TEST(id_registers)
{
	struct machine m = MACHINE(guest_ids);
	uint64_t isar0 = get_reg(&m, ISAR0), pfr0 = get_reg(&m, PFR0), masks[KVM_ARM_FEATURE_ID_RANGE_SIZE];
	struct reg_mask_range range = { .addr = (uintptr_t)masks };

	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES), 1);
	OK(ioctl(m.vm, KVM_ARM_GET_REG_WRITABLE_MASKS, &range));
	CHECK_EQ(masks[KVM_ARM_FEATURE_ID_RANGE_IDX(3, 0, 0, 6, 0)] & 0xf0, 0xf0);
	CHECK_EQ(masks[KVM_ARM_FEATURE_ID_RANGE_IDX(3, 0, 0, 4, 0)] & 0xf0000, 0);
	range.range = 1;
	CHECK_ERRNO(ioctl(m.vm, KVM_ARM_GET_REG_WRITABLE_MASKS, &range), EINVAL);
	/* Before there is a controller or is known to be none. */
	CHECK_EQ(pfr0 >> 24 & 0xf, 1);
	/* AES: all models have it. */
	REQUIRE(isar0 & 0xf0);
	CHECK_ERRNO(try_reg(&m, ISAR0, isar0 | 0xf0), EINVAL);
	CHECK_ERRNO(try_reg(&m, PFR0, pfr0 & ~0xful), EINVAL);
	OK(try_reg(&m, ISAR0, isar0 & ~0xf0ul));
	OK(try_reg(&m, PFR0, pfr0));
	CHECK_EQ(get_reg(&m, ISAR0), isar0 & ~0xf0ul);
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(10)), isar0 & ~0xf0ul);
	CHECK_EQ(get_reg(&m, X(11)) >> 24 & 0xf, 0);
	OK(try_reg(&m, ISAR0, isar0 & ~0xf0ul));
	CHECK_ERRNO(try_reg(&m, ISAR0, isar0), EBUSY);
}
