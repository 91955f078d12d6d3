// SPDX-License-Identifier: GPL-2.0
/*
 * A vCPU on Arm64: registers, exits to user space, PSCI, memory. What is expected is what KVM does.
 */
#define _GNU_SOURCE
#include "machine.h"
#include <signal.h>
#include <sys/time.h>

TEST(device)
{
	struct machine m;

	m.kvm = OK(open(device, O_RDWR));
	CHECK_EQ(ioctl(m.kvm, KVM_GET_API_VERSION, 0), 12);
	CHECK_EQ(ioctl(m.kvm, KVM_CHECK_EXTENSION, KVM_CAP_ONE_REG), 1);
	CHECK_EQ(ioctl(m.kvm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_PSCI_0_2), 1);
	CHECK(ioctl(m.kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS) >= 1);
	CHECK(ioctl(m.kvm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE) >= 40);
	CHECK_EQ(ioctl(m.kvm, KVM_CHECK_EXTENSION, 9999), 0);
	CHECK_ERRNO(ioctl(m.kvm, KVM_CREATE_VM, 20), EINVAL);
	CHECK_ERRNO(ioctl(m.kvm, KVM_RUN, 0), EINVAL);
	m.vm = OK(ioctl(m.kvm, KVM_CREATE_VM, 40));
	CHECK_ERRNO(ioctl(m.vm, _IO(KVMIO, 0xfe), 0), EINVAL);
}

TEST(init)
{
	struct kvm_vcpu_init init = { .target = KVM_ARM_TARGET_GENERIC_V8 };
	struct kvm_one_reg r = { X(0), (uintptr_t)&init };
	struct machine m;

	make_vm(&m);
	make_vcpu(&m);
	CHECK_ERRNO(ioctl(m.vcpu, KVM_GET_ONE_REG, &r), ENOEXEC);
	CHECK_ERRNO(ioctl(m.vcpu, KVM_RUN, 0), ENOEXEC);
	CHECK_ERRNO(ioctl(m.vm, KVM_CREATE_VCPU, 0), EEXIST);
	init.target = 1000;
	CHECK_ERRNO(ioctl(m.vcpu, KVM_ARM_VCPU_INIT, &init), EINVAL);
	init.target = KVM_ARM_TARGET_GENERIC_V8;
	init.features[0] = 1 << 0 | 1 << KVM_ARM_VCPU_PSCI_0_2;
	OK(ioctl(m.vcpu, KVM_ARM_VCPU_INIT, &init));
	struct kvm_mp_state state;
	OK(ioctl(m.vcpu, KVM_GET_MP_STATE, &state));
	CHECK_EQ(state.mp_state, KVM_MP_STATE_STOPPED);
	/* Other features than the first time. */
	init.features[0] = 0;
	CHECK_ERRNO(ioctl(m.vcpu, KVM_ARM_VCPU_INIT, &init), EINVAL);
	init_vcpu(&m);
	OK(ioctl(m.vcpu, KVM_GET_MP_STATE, &state));
	CHECK_EQ(state.mp_state, KVM_MP_STATE_RUNNABLE);
	CHECK_EQ(get_reg(&m, CORE_REG(regs.pstate)), 0x3c5);
}

GUEST(guest_nop, DONE);

TEST(registers)
{
	struct machine m = MACHINE(guest_nop);
	struct { uint64_t n, reg[2000]; } list = { .n = 1 };
	unsigned char value[256] = {}, other[16];
	unsigned int found = 0;

	CHECK_ERRNO(ioctl(m.vcpu, KVM_GET_REG_LIST, &list), E2BIG);
	REQUIRE(list.n > 60 && list.n <= 2000);
	OK(ioctl(m.vcpu, KVM_GET_REG_LIST, &list));
	for (uint64_t i = 0; i < list.n; i++) {
		struct kvm_one_reg r = { list.reg[i], (uintptr_t)value };

		if (ioctl(m.vcpu, KVM_GET_ONE_REG, &r) || ioctl(m.vcpu, KVM_SET_ONE_REG, &r))
			FAIL("register %#llx: %s", (unsigned long long)list.reg[i], strerror(errno));
		found += list.reg[i] == CORE_REG(regs.pc) || list.reg[i] == V(31);
		found += list.reg[i] == ARM64_SYS_REG(3, 0, 1, 0, 0);
	}
	CHECK_EQ(found, 3);
	for (int n = 0; n < 31; n++)
		set_reg(&m, X(n), n + 100);
	for (int n = 0; n < 31; n++)
		CHECK_EQ(get_reg(&m, X(n)), n + 100);
	memset(value, 0x5a, 16);
	struct kvm_one_reg r = { V(7), (uintptr_t)value };
	OK(ioctl(m.vcpu, KVM_SET_ONE_REG, &r));
	r.addr = (uintptr_t)other;
	OK(ioctl(m.vcpu, KVM_GET_ONE_REG, &r));
	CHECK(!memcmp(value, other, 16));
	r.id = X(0) + 1;
	CHECK(ioctl(m.vcpu, KVM_GET_ONE_REG, &r) == -1);
	r.id = X(0) ^ KVM_REG_SIZE_U64 ^ KVM_REG_SIZE_U32;
	CHECK(ioctl(m.vcpu, KVM_GET_ONE_REG, &r) == -1);
	/* EL2 is no mode of a guest's. */
	uint64_t el2 = 0x3c9;
	r = (struct kvm_one_reg){ CORE_REG(regs.pstate), (uintptr_t)&el2 };
	CHECK_ERRNO(ioctl(m.vcpu, KVM_SET_ONE_REG, &r), EINVAL);
}

GUEST(guest_psci,
	"mov x0, #0x84000000\nhvc #0\nmov x10, x0\n"
	"mov x0, #0x80000000\nhvc #0\nmov x11, x0\n"
	"mov x0, #0x84000000\nadd x0, x0, #0xff\nhvc #0\nmov x12, x0\n"
	"mov x0, #0x84000000\nadd x0, x0, #0xa\nmov x1, #0x84000000\nadd x1, x1, #8\nhvc #0\nmov x13, x0\n"
	"mov x0, #0x84000000\nadd x0, x0, #4\nmov x1, #0\nmov x2, #0\nhvc #0\nmov x14, x0\n"
	"mov x0, #0x84000000\nadd x0, x0, #8\nhvc #0\n"
	"b .\n");

TEST(psci)
{
	struct machine m = MACHINE(guest_psci);
	struct kvm_mp_state state;

	OK(ioctl(m.vcpu, KVM_RUN, 0));
	REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_SYSTEM_EVENT);
	CHECK_EQ(m.run->system_event.type, KVM_SYSTEM_EVENT_SHUTDOWN);
	CHECK(get_reg(&m, X(10)) >= 0x10000 && get_reg(&m, X(10)) <= 0x10003);
	CHECK(get_reg(&m, X(11)) >= 0x10001);
	CHECK_EQ((int64_t)get_reg(&m, X(12)), -1);
	CHECK_EQ(get_reg(&m, X(13)), 0);
	CHECK_EQ(get_reg(&m, X(14)), 0);
	OK(ioctl(m.vcpu, KVM_GET_MP_STATE, &state));
	CHECK_EQ(state.mp_state, KVM_MP_STATE_STOPPED);
}

/* What SMCCC_ARCH_FEATURES says of workarounds 1 to 3, and what the first one and the last one return. */
GUEST(guest_workarounds,
	"mov x9, #0x80000000\nadd x9, x9, #1\n"
	"mov x0, x9\nmov x1, #0x80000000\nmovk x1, #0x8000\nhvc #0\nmov x10, x0\n"
	"mov x0, x9\nmov x1, #0x80000000\nmovk x1, #0x7fff\nhvc #0\nmov x11, x0\n"
	"mov x0, x9\nmov x1, #0x80000000\nmovk x1, #0x3fff\nhvc #0\nmov x12, x0\n"
	"mov x0, #0x80000000\nmovk x0, #0x8000\nhvc #0\nmov x13, x0\n"
	"mov x0, #0x80000000\nmovk x0, #0x3fff\nhvc #0\nmov x14, x0\n" DONE);

#define WORKAROUND(n) (KVM_REG_ARM_FW | KVM_REG_ARM64 | KVM_REG_SIZE_U64 | (n))

/* What a guest is told of workarounds fits what user space reads, and where KVM is there as well, what KVM says. */
TEST(workarounds)
{
	struct machine m = MACHINE(guest_workarounds);
	/* By level: of the first and the third one, and of the second. */
	static const int64_t answers[] = { -1, 0, 1 }, bypass[] = { -1, -1, 0, -2 };
	uint64_t level[3], value;

	for (int n = 0; n < 3; n++) {
		struct kvm_one_reg r = { WORKAROUND(n + 1), (uintptr_t)&value };

		value = level[n] = get_reg(&m, WORKAROUND(n + 1));
		REQUIRE(value <= (n == 1 ? 3 : 2));
		OK(ioctl(m.vcpu, KVM_SET_ONE_REG, &r));
		for (value = 0; value < level[n]; value++)
			OK(ioctl(m.vcpu, KVM_SET_ONE_REG, &r));
		value = n == 1 ? 4 : level[n] + 1;
		CHECK_ERRNO(ioctl(m.vcpu, KVM_SET_ONE_REG, &r), EINVAL);
		value = 0x20 | level[n];
		CHECK_ERRNO(ioctl(m.vcpu, KVM_SET_ONE_REG, &r), EINVAL);
		CHECK_EQ(get_reg(&m, WORKAROUND(n + 1)), level[n]);
	}
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(10)), answers[level[0]]);
	CHECK_EQ(get_reg(&m, X(11)), bypass[level[1]]);
	CHECK_EQ(get_reg(&m, X(12)), answers[level[2]]);
	CHECK_EQ(get_reg(&m, X(13)), 0);
	CHECK_EQ(get_reg(&m, X(14)), 0);
	if (!strcmp(device, "/dev/kvm") || access("/dev/kvm", F_OK))
		return;
	device = "/dev/kvm";
	struct machine other = MACHINE(guest_workarounds);
	for (int n = 0; n < 3; n++)
		CHECK_EQ(level[n], get_reg(&other, WORKAROUND(n + 1)));
}

/*
 * Pointer authentication: signs X1 with each key, checks what it has signed, and leaves a key of its own. PACIA, PACIB,
 * PACDA, PACDB X10 to X13, X2; PACGA X14, X1, X2; AUTIA X15, X2.
 */
GUEST(guest_keys,
	"mrs x9, sctlr_el1\nmov x8, #0xc8000000\norr x9, x9, x8\nmov x8, #0x2000\norr x9, x9, x8\n"
	"msr sctlr_el1, x9\nisb\n"
	"mov x1, #0x40000000\nmov x2, #77\nmov x10, x1\nmov x11, x1\nmov x12, x1\nmov x13, x1\n"
	".inst 0xdac1004a\n.inst 0xdac1044b\n.inst 0xdac1084c\n.inst 0xdac10c4d\n.inst 0x9ac2302e\n"
	"mov x15, x10\n.inst 0xdac1104f\nmrs x16, s3_0_c2_c1_0\nmrs x17, s3_0_c2_c3_1\n"
	"mov x3, #0x1234\nmsr s3_0_c2_c2_2, x3\nisb\n" DONE);

#define SYSTEM(crn, crm, op2)	\
	(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG | 3 << 14 | (crn) << 7 | (crm) << 3 | (op2))
#define KEY(n) SYSTEM(2, 1 + (n) / 4, (n) % 4)
#define ISAR1 SYSTEM(0, 6, 1)
#define ISAR1_KEYS 0xff000ff0ul
#define BOTH (1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC)

/* A pointer that is signed with this process's key: PACIA1716, which does nothing where there is none. */
static uint64_t own_signature(void)
{
	register uint64_t x17 asm("x17") = 0x400000;
	register uint64_t x16 asm("x16") = 5;

	asm volatile("hint #8" : "+r"(x17) : "r"(x16));
	return x17;
}

static int init_with(struct machine *m, uint32_t features)
{
	struct kvm_vcpu_init init = {};

	OK(ioctl(m->vm, KVM_ARM_PREFERRED_TARGET, &init));
	init.features[0] = 1 << KVM_ARM_VCPU_PSCI_0_2 | features;
	return ioctl(m->vcpu, KVM_ARM_VCPU_INIT, &init);
}

/* What the guest finds in X10 to X17. */
static void sign(uint64_t *found)
{
	struct machine m;

	make_vm(&m);
	m.ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(m.ram != MAP_FAILED);
	memcpy(m.ram, guest_keys, guest_keys_end - guest_keys);
	put_slot(&m, 0, 0, RAM, RAM_SIZE, m.ram);
	make_vcpu(&m);
	CHECK_ERRNO(init_with(&m, 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC), EINVAL);
	OK(init_with(&m, BOTH));
	CHECK_ERRNO(init_with(&m, 0), EINVAL);
	set_reg(&m, CORE_REG(regs.pc), RAM);
	CHECK(get_reg(&m, ISAR1) & ISAR1_KEYS || get_reg(&m, SYSTEM(0, 6, 2)) & 0xff00);
	for (int n = 0; n < 10; n++)
		set_reg(&m, KEY(n), 0x1111111111111111ul * (n + 1) + n);
	run_to_done(&m);
	for (int n = 0; n < 8; n++)
		found[n] = get_reg(&m, X(10 + n));
	for (int n = 0; n < 10; n++)
		CHECK_EQ(get_reg(&m, KEY(n)), n == 6 ? 0x1234 : 0x1111111111111111ul * (n + 1) + n);
}

TEST(keys)
{
	struct machine m = MACHINE(guest_keys);
	uint64_t found[8], other[8], own = own_signature();
	struct kvm_one_reg r = { KEY(0), (uintptr_t)other };
	int there = ioctl(m.kvm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_PTRAUTH_ADDRESS);

	CHECK_EQ(ioctl(m.kvm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_PTRAUTH_GENERIC), there);
	/* None without the features. */
	CHECK_EQ(get_reg(&m, ISAR1) & ISAR1_KEYS, 0);
	CHECK_ERRNO(ioctl(m.vcpu, KVM_GET_ONE_REG, &r), ENOENT);
	if (!there) {
		CHECK_ERRNO(init_with(&m, BOTH), EINVAL);
		skip("no pointer authentication");
	}
	sign(found);
	CHECK_EQ(own_signature(), own);
	for (int n = 0; n < 4; n++)
		CHECK(found[n] != 0x40000000 && found[n] << 32 == 0x40000000ul << 32);
	CHECK(found[4] >> 32 && !(uint32_t)found[4]);
	CHECK_EQ(found[5], 0x40000000);
	CHECK_EQ(found[6], 0x1111111111111111);
	CHECK_EQ(found[7], 0xaaaaaaaaaaaaaaaaul + 9);
	if (!strcmp(device, "/dev/kvm") || access("/dev/kvm", F_OK))
		return;
	device = "/dev/kvm";
	sign(other);
	for (int n = 0; n < 8; n++)
		CHECK_EQ(found[n], other[n]);
}

GUEST(guest_reset, "mov x0, #0x84000000\nadd x0, x0, #9\nhvc #0\nb .\n");

TEST(reset)
{
	struct machine m = MACHINE(guest_reset);

	for (int i = 0; i < 3; i++) {
		OK(ioctl(m.vcpu, KVM_RUN, 0));
		REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_SYSTEM_EVENT);
		CHECK_EQ(m.run->system_event.type, KVM_SYSTEM_EVENT_RESET);
		init_vcpu(&m);
		CHECK_EQ(get_reg(&m, X(0)), 0);
		set_reg(&m, CORE_REG(regs.pc), RAM);
	}
}

GUEST(guest_mmio,
	"mov x1, #0x10000000\n"
	"ldr x2, =0x1122334455667788\n"
	"strb w2, [x1, #1]\nstrh w2, [x1, #2]\nstr w2, [x1, #4]\nstr x2, [x1, #8]\nstr xzr, [x1, #16]\n"
	"ldrb w3, [x1]\nldrsb w4, [x1]\nldrsb x5, [x1]\nldrh w6, [x1]\nldrsw x7, [x1]\nldr w8, [x1]\nldr x9, [x1]\n"
	"ldr xzr, [x1]\n" DONE ".ltorg\n");

TEST(mmio)
{
	struct machine m = MACHINE(guest_mmio);
	static const struct { unsigned int offset, len; uint64_t data; } stores[] = {
		{ 1, 1, 0x88 }, { 2, 2, 0x7788 }, { 4, 4, 0x55667788 }, { 8, 8, 0x1122334455667788 }, { 16, 8, 0 },
	};
	static const struct { int reg, len; uint64_t want; } loads[] = {
		{ 3, 1, 0x81 }, { 4, 1, 0xffffff81 }, { 5, 1, 0xffffffffffffff81 }, { 6, 2, 0x8281 },
		{ 7, 4, 0xffffffff84838281 }, { 8, 4, 0x84838281 }, { 9, 8, 0x8887868584838281 }, { -1, 8, 0 },
	};
	static const uint64_t data = 0x8887868584838281;

	for (int i = 0; i < ARRAY_SIZE(stores); i++) {
		uint64_t pc = get_reg(&m, CORE_REG(regs.pc));

		run_to_mmio(&m);
		CHECK(m.run->mmio.is_write);
		CHECK_EQ(m.run->mmio.phys_addr, DEVICE_AT + stores[i].offset);
		CHECK_EQ(m.run->mmio.len, stores[i].len);
		uint64_t have = 0;
		memcpy(&have, m.run->mmio.data, m.run->mmio.len);
		CHECK_EQ(have, stores[i].data);
		CHECK(get_reg(&m, CORE_REG(regs.pc)) > pc);
	}
	for (int i = 0; i < ARRAY_SIZE(loads); i++) {
		run_to_mmio(&m);
		CHECK(!m.run->mmio.is_write);
		CHECK_EQ(m.run->mmio.len, loads[i].len);
		memcpy(m.run->mmio.data, &data, 8);
	}
	run_to_done(&m);
	for (int i = 0; i < ARRAY_SIZE(loads); i++)
		if (loads[i].reg >= 0)
			CHECK_EQ(get_reg(&m, X(loads[i].reg)), loads[i].want);
}

/* A pair is not described by the processor. */
GUEST(guest_pair, "mov x1, #0x10000000\nldp x2, x3, [x1]\n" DONE);

TEST(undescribed)
{
	struct machine m = MACHINE(guest_pair);
	struct kvm_enable_cap cap = { .cap = KVM_CAP_ARM_NISV_TO_USER };

	CHECK_ERRNO(ioctl(m.vcpu, KVM_RUN, 0), ENOSYS);
	OK(ioctl(m.vm, KVM_ENABLE_CAP, &cap));
	OK(ioctl(m.vcpu, KVM_RUN, 0));
	REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_ARM_NISV);
	CHECK_EQ(m.run->arm_nisv.fault_ipa, DEVICE_AT);
	set_reg(&m, CORE_REG(regs.pc), get_reg(&m, CORE_REG(regs.pc)) + 4);
	run_to_done(&m);
}

/* Adds up a word of each page from X1 to X2 into X0, and adds one to it. */
GUEST(guest_pages, "mov x0, #0\n1:\nldr x3, [x1]\nadd x0, x0, x3\nadd x3, x3, #1\nstr x3, [x1]\n"
	"add x1, x1, #0x1000\ncmp x1, x2\nb.ne 1b\n" DONE "b .\n");

/* What the last exit left to be finished is finished; registers may be changed. */
static void finish(struct machine *m)
{
	m->run->immediate_exit = 1;
	CHECK_ERRNO(ioctl(m->vcpu, KVM_RUN, 0), EINTR);
	m->run->immediate_exit = 0;
}

static uint64_t add_up(struct machine *m, uint64_t from, uint64_t to)
{
	finish(m);
	set_reg(m, CORE_REG(regs.pc), RAM);
	set_reg(m, X(1), from);
	set_reg(m, X(2), to);
	run_to_done(m);
	return get_reg(m, X(0));
}

static uint64_t *word(struct machine *m, unsigned int page)
{
	return (uint64_t *)(m->ram + page * 4096ul);
}

TEST(memory)
{
	struct machine m = MACHINE(guest_pages);
	unsigned int pages = RAM_SIZE >> 12;

	for (unsigned int i = 1; i < pages; i += 2)
		*word(&m, i) = i;
	uint64_t sum = (uint64_t)pages / 2 * (pages / 2);
	CHECK_EQ(add_up(&m, RAM + 0x1000, RAM + RAM_SIZE), sum);
	CHECK_EQ(*word(&m, 5), 6);
	CHECK_EQ(*word(&m, 6), 1);
	/* What the host takes away the guest has no more. */
	OK(madvise(m.ram + 0x1000, RAM_SIZE - 0x1000, MADV_DONTNEED));
	CHECK_EQ(add_up(&m, RAM + 0x1000, RAM + RAM_SIZE), 0);
	CHECK_EQ(add_up(&m, RAM + 0x1000, RAM + RAM_SIZE), pages - 1);
	/* What it may only read is copied when it is written. */
	OK(mprotect(m.ram + 0x5000, 0x1000, PROT_READ));
	OK(mprotect(m.ram + 0x5000, 0x1000, PROT_READ | PROT_WRITE));
	CHECK_EQ(add_up(&m, RAM + 0x5000, RAM + 0x6000), 2);
	CHECK_EQ(*word(&m, 5), 3);
	/* A hole is EFAULT. */
	OK(munmap(m.ram + 0x8000, 0x1000));
	finish(&m);
	set_reg(&m, CORE_REG(regs.pc), RAM);
	set_reg(&m, X(1), RAM + 0x8000);
	CHECK_ERRNO(ioctl(m.vcpu, KVM_RUN, 0), EFAULT);
}

TEST(huge_pages)
{
	struct machine m = MACHINE(guest_pages);

	if (madvise(m.ram, RAM_SIZE, MADV_HUGEPAGE))
		skip("no transparent huge pages");
	memset(m.ram + (4 << 20), 0, RAM_SIZE - (4 << 20));
	for (int i = 0; i < 3; i++)
		CHECK_EQ(add_up(&m, RAM + (4 << 20), RAM + RAM_SIZE), i * ((RAM_SIZE - (4 << 20)) >> 12));
	/* A part of one goes, and the others stay. */
	OK(madvise(m.ram + (6 << 20), 0x1000, MADV_DONTNEED));
	CHECK_EQ(add_up(&m, RAM + (6 << 20), RAM + (6 << 20) + 0x2000), 3);
}

TEST(dirty_log)
{
	struct machine m = MACHINE(guest_pages);
	static uint64_t bits[RAM_SIZE >> 18];
	struct kvm_dirty_log log = { .slot = 0, .dirty_bitmap = bits };

	madvise(m.ram, RAM_SIZE, MADV_HUGEPAGE);
	memset(m.ram + (4 << 20), 0, RAM_SIZE - (4 << 20));
	add_up(&m, RAM + (4 << 20), RAM + RAM_SIZE);
	put_slot(&m, 0, KVM_MEM_LOG_DIRTY_PAGES, RAM, RAM_SIZE, m.ram);
	OK(ioctl(m.vm, KVM_GET_DIRTY_LOG, &log));
	for (int round = 0; round < 3; round++) {
		unsigned int first = 2048 + 64 * round, count = 0;

		CHECK_EQ(add_up(&m, RAM + first * 4096ul, RAM + (first + 3) * 4096ul), 3);
		OK(ioctl(m.vm, KVM_GET_DIRTY_LOG, &log));
		/* The code, which is only read, may be marked as well when it is mapped anew. */
		for (int i = 1; i < ARRAY_SIZE(bits); i++)
			count += __builtin_popcountll(bits[i]);
		CHECK_EQ(count, 3);
		CHECK_EQ(bits[first / 64], 7);
	}
	/* Without the log nothing is lost. */
	put_slot(&m, 0, 0, RAM, RAM_SIZE, m.ram);
	CHECK_EQ(add_up(&m, RAM + 2048 * 4096ul, RAM + 2051 * 4096ul), 6);
}

/* The guest adds one to a word of read-only memory at `address`: it reads, and the write is user space's. */
static void write_to_rom(struct machine *m, uint64_t address)
{
	char *rom = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	*(uint64_t *)rom = 41;
	put_slot(m, 1, KVM_MEM_READONLY, address, 0x2000, rom);
	set_reg(m, X(1), address);
	set_reg(m, X(2), address + 0x1000);
	run_to_mmio(m);
	CHECK(m->run->mmio.is_write);
	CHECK_EQ(m->run->mmio.phys_addr, address);
	CHECK_EQ(*(uint64_t *)m->run->mmio.data, 42);
	run_to_done(m);
	CHECK_EQ(get_reg(m, X(0)), 41);
	CHECK_EQ(*(uint64_t *)rom, 41);
}

TEST(readonly)
{
	struct machine m = MACHINE(guest_pages);

	write_to_rom(&m, 0x80000000);
}

/* Vectors at RAM + 0x1000: an exception of EL1 leaves ESR in X20, ELR in X21, and goes on behind the instruction. */
GUEST(guest_undefined,
	"ldr x0, =0x40001000\nmsr vbar_el1, x0\nisb\n"
	"mov x22, #0\n.inst 0\n"
	/* An SVE instruction: rdvl x0, #1. */
	".inst 0x04bf5020\n"
	/* PACIA X0, X1: the register is what it was, or the instruction is undefined. */
	"mrs x1, s3_0_c0_c4_0\nmrs x2, s3_0_c0_c7_0\nmrs x3, s3_0_c0_c6_1\nmrs x4, midr_el1\nmrs x5, mpidr_el1\n"
	"mrs x6, currentel\nmrs x7, s3_0_c0_c4_4\n" DONE ".ltorg\n");
GUEST(guest_vector, "mrs x20, esr_el1\nmrs x21, elr_el1\nadd x21, x21, #4\nmsr elr_el1, x21\nadd x22, x22, #1\neret\n");

TEST(undefined)
{
	struct machine m = MACHINE(guest_undefined);

	memcpy(m.ram + 0x1200, guest_vector, guest_vector_end - guest_vector);
	run_to_done(&m);
	CHECK_EQ(get_reg(&m, X(22)), 2);
	CHECK_EQ(get_reg(&m, X(6)), 1 << 2);
	/* PFR0: no SVE, of which ZFR0 tells nothing. */
	CHECK_EQ(get_reg(&m, X(1)) >> 32 & 0xf, 0);
	CHECK_EQ(get_reg(&m, X(3)) & 0xff0, 0);
	CHECK_EQ(get_reg(&m, X(5)) & 0xff00ffffff, 0);
	CHECK(get_reg(&m, X(5)) >> 31 & 1);
	CHECK_EQ(get_reg(&m, X(7)), 0);
	CHECK_EQ(get_reg(&m, X(1)), get_reg(&m, ARM64_SYS_REG(3, 0, 0, 4, 0)));
}

GUEST(guest_endless, "1: add x0, x0, #1\nb 1b\n");

static void alarm_in(unsigned int ms)
{
	struct itimerval t = { .it_value = { ms / 1000, ms % 1000 * 1000 } };
	struct sigaction action = { .sa_handler = nothing };

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &t, NULL);
}

TEST(signals)
{
	struct machine m = MACHINE(guest_endless);
	uint64_t before = 0;

	for (int i = 0; i < 3; i++) {
		alarm_in(100);
		CHECK_ERRNO(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
		CHECK_EQ(m.run->exit_reason, KVM_EXIT_INTR);
		CHECK(get_reg(&m, X(0)) > before);
		before = get_reg(&m, X(0));
	}
	m.run->immediate_exit = 1;
	CHECK_ERRNO(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
	CHECK_EQ(get_reg(&m, X(0)), before);
}

/* EL0 of 32 bits, where there is one: an endless loop at RAM + 0x2000. */
GUEST(guest_el0_32,
	"ldr x0, =0x40001000\nmsr vbar_el1, x0\nldr x0, =0x40002000\nmsr elr_el1, x0\nmov x0, #0x10\nmsr spsr_el1, x0\n"
	"isb\neret\n.ltorg\n");
GUEST(guest_no_32, DONE);

TEST(el0_of_32_bits)
{
	struct machine m = MACHINE(guest_el0_32);
	static const uint32_t loop[] = { 0xe2800001, 0xeafffffd };	/* add r0, r0, #1; b loop */

	memcpy(m.ram + 0x2000, loop, sizeof(loop));
	memcpy(m.ram + 0x1200, guest_no_32, guest_no_32_end - guest_no_32);
	for (int i = 0; i < 3; i++) {
		alarm_in(50);
		if (ioctl(m.vcpu, KVM_RUN, 0) != -1) {
			CHECK_EQ(m.run->exit_reason, KVM_EXIT_MMIO);
			skip("no EL0 of 32 bits");
		}
		CHECK_EQ(errno, EINTR);
	}
	CHECK(get_reg(&m, CORE_REG(regs.pstate)) & 0x10);
}

GUEST(guest_wait, "wfe\nwfi\nmov x0, #7\n" DONE);

TEST(wfi)
{
	struct machine m = MACHINE(guest_wait);

	alarm_in(100);
	CHECK_ERRNO(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
	CHECK_EQ(get_reg(&m, X(0)), 0);
}

/* The virtual timer counts, and what fires of it stops nobody. */
GUEST(guest_timer, "mrs x1, cntvct_el0\nmov x2, #1000\nmsr cntv_tval_el0, x2\nmov x2, #1\nmsr cntv_ctl_el0, x2\n"
	"isb\n1: mrs x3, cntv_ctl_el0\ntbz x3, #2, 1b\nmov x4, #0x10000\n2: subs x4, x4, #1\nb.ne 2b\n"
	"mrs x5, cntvct_el0\nsub x5, x5, x1\n" DONE);

TEST(timer)
{
	struct machine m = MACHINE(guest_timer);

	/* Of an interrupt that it cannot deliver KVM tells user space. */
	while (ioctl(m.vcpu, KVM_RUN, 0))
		REQUIRE_EQ(errno, EINTR);
	REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_MMIO);
	CHECK(get_reg(&m, X(5)) >= 1000);
	CHECK(get_reg(&m, X(1)) < 1ull << 40);
}

/* Vector and system registers are the guest's own across exits. */
GUEST(guest_state,
	"mov x0, #3 << 20\nmsr cpacr_el1, x0\nisb\n"
	"fmov d1, x1\nmsr tpidr_el0, x1\nmsr tpidr_el1, x1\nmsr contextidr_el1, x1\nmsr sp_el0, x1\n"
	"mov x30, #0x10000000\nstr wzr, [x30]\n"
	"fmov x2, d1\nmrs x3, tpidr_el0\nmrs x4, tpidr_el1\nmrs x5, contextidr_el1\nmrs x6, sp_el0\n" DONE);

TEST(state)
{
	struct machine a = MACHINE(guest_state), b = MACHINE(guest_state);
	double host = 1.25;

	set_reg(&a, X(1), 0x1111);
	set_reg(&b, X(1), 0x2222);
	run_to_mmio(&a);
	run_to_mmio(&b);
	host *= 2;
	CHECK_EQ(get_reg(&a, ARM64_SYS_REG(3, 0, 13, 0, 4)), 0x1111);
	CHECK_EQ(get_reg(&b, ARM64_SYS_REG(3, 0, 13, 0, 4)), 0x2222);
	run_to_done(&a);
	run_to_done(&b);
	CHECK(host == 2.5);
	for (int n = 2; n <= 6; n++) {
		CHECK_EQ(get_reg(&a, X(n)), 0x1111);
		CHECK_EQ(get_reg(&b, X(n)), 0x2222);
	}
}

/* What a vCPU writes is in its ring, and perhaps more, and twice; with a full one it leaves to user space. */
TEST(dirty_ring)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL, .args = { 4096 } };
	struct machine m;
	unsigned int pages = 300, taken = 0, exits = 0;

	make_vm(&m);
	CHECK(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_ACQ_REL) >= 65536);
	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP), 1);
	CHECK_ERRNO(ioctl(m.vm, KVM_RESET_DIRTY_RINGS, 0), EINVAL);
	OK(ioctl(m.vm, KVM_ENABLE_CAP, &cap));
	/* Without bitmaps KVM maps huge pages. */
	cap = (struct kvm_enable_cap){ .cap = KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP };
	OK(ioctl(m.vm, KVM_ENABLE_CAP, &cap));
	m.ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(m.ram != MAP_FAILED);
	memcpy(m.ram, guest_pages, guest_pages_end - guest_pages);
	put_slot(&m, 3, KVM_MEM_LOG_DIRTY_PAGES, RAM, RAM_SIZE, m.ram);
	make_vcpu(&m);
	init_vcpu(&m);
	struct kvm_dirty_gfn *ring = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu,
					  KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
	REQUIRE(ring != MAP_FAILED);
	for (int i = 0; i < 2; i++) {
		bool seen[RAM_SIZE >> 12] = {};

		set_reg(&m, CORE_REG(regs.pc), RAM);
		set_reg(&m, X(1), RAM + 0x100000);
		set_reg(&m, X(2), RAM + 0x100000 + pages * 0x1000);
		for (bool done = false; !done;) {
			OK(ioctl(m.vcpu, KVM_RUN, 0));
			done = m.run->exit_reason == KVM_EXIT_MMIO;
			if (!done) {
				REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_DIRTY_RING_FULL);
				exits++;
				/* As long as nothing is done about it. */
				OK(ioctl(m.vcpu, KVM_RUN, 0));
				REQUIRE_EQ(m.run->exit_reason, KVM_EXIT_DIRTY_RING_FULL);
			}
			unsigned int before = taken;
			struct kvm_dirty_gfn *e;
			for (; e = &ring[taken % 256], e->flags & KVM_DIRTY_GFN_F_DIRTY; taken++) {
				CHECK_EQ(e->slot, 3);
				REQUIRE(e->offset < ARRAY_SIZE(seen));
				seen[e->offset] = true;
				e->flags = KVM_DIRTY_GFN_F_RESET;
			}
			CHECK_EQ(ioctl(m.vm, KVM_RESET_DIRTY_RINGS, 0), taken - before);
		}
		for (unsigned int page = 0; page < pages; page++)
			REQUIRE(seen[0x100 + page]);
	}
	CHECK(exits >= 2);
}

static uint64_t stat(int fd, const char *name)
{
	struct kvm_stats_header h;
	struct { struct kvm_stats_desc d; char name[48]; } d;
	uint64_t value;

	REQUIRE_EQ(pread(fd, &h, sizeof(h), 0), sizeof(h));
	REQUIRE_EQ(h.name_size, sizeof(d.name));
	for (unsigned int i = 0; i < h.num_desc; i++) {
		REQUIRE_EQ(pread(fd, &d, sizeof(d), h.desc_offset + i * sizeof(d)), sizeof(d));
		if (strcmp(d.d.name, name))
			continue;
		REQUIRE_EQ(pread(fd, &value, 8, h.data_offset + d.d.offset), 8);
		return value;
	}
	FAIL("no %s", name);
	return 0;
}

TEST(statistics)
{
	struct machine m = MACHINE(guest_psci);
	int vcpu = OK(ioctl(m.vcpu, KVM_GET_STATS_FD, 0)), vm = OK(ioctl(m.vm, KVM_GET_STATS_FD, 0));

	CHECK_EQ(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_BINARY_STATS_FD), 1);
	CHECK_EQ(stat(vcpu, "hvc_exit_stat"), 0);
	OK(ioctl(m.vcpu, KVM_RUN, 0));
	CHECK_EQ(stat(vcpu, "hvc_exit_stat"), 6);
	CHECK(stat(vcpu, "exits") >= 7);
	CHECK_EQ(stat(vcpu, "wfi_exit_stat"), 0);
	CHECK_EQ(stat(vcpu, "mmio_exit_user"), 0);
	CHECK_EQ(stat(vcpu, "signal_exits"), 0);
	CHECK_EQ(stat(vcpu, "blocking"), 0);
	stat(vm, "remote_tlb_flush");
	m = MACHINE(guest_mmio);
	vcpu = OK(ioctl(m.vcpu, KVM_GET_STATS_FD, 0));
	run_to_mmio(&m);
	run_to_mmio(&m);
	CHECK_EQ(stat(vcpu, "mmio_exit_user"), 2);
	CHECK_EQ(stat(vcpu, "mmio_exit_kernel"), 0);
}

/* Two machines have different memory at the same address, on one CPU. */
TEST(two_machines)
{
	struct machine a = MACHINE(guest_pages), b = MACHINE(guest_pages);

	for (int i = 0; i < 20; i++) {
		*word(&a, 2) = 100;
		*word(&b, 2) = 200;
		CHECK_EQ(add_up(&a, RAM + 0x2000, RAM + 0x3000), 100);
		CHECK_EQ(add_up(&b, RAM + 0x2000, RAM + 0x3000), 200);
		CHECK_EQ(*word(&a, 2), 101);
		CHECK_EQ(*word(&b, 2), 201);
	}
}

/* Stage 1 on: a flat map of 1 GiB blocks in the guest's table at RAM + 0x4000, then the pages as before. */
GUEST(guest_mmu,
	"ldr x4, =0x40004000\nldr x5, =0x401\nstr x5, [x4]\nldr x5, =0x40000705\nstr x5, [x4, #8]\n"
	"ldr x5, =0xff00\nmsr mair_el1, x5\nldr x5, =0x280003519\nmsr tcr_el1, x5\nmsr ttbr0_el1, x4\nisb\n"
	"mrs x5, sctlr_el1\nldr x6, =0x1005\norr x5, x5, x6\nmsr sctlr_el1, x5\nisb\n"
	"mov x0, #0\n1:\nldr x3, [x1]\nadd x0, x0, x3\nadd x3, x3, #1\nstr x3, [x1]\n"
	"add x1, x1, #0x1000\ncmp x1, x2\nb.ne 1b\n" DONE ".ltorg\n");

TEST(own_tables)
{
	struct machine m = MACHINE(guest_mmu);

	/* A permission fault, whose address the processor does not tell. */
	write_to_rom(&m, 0x70000000);
}

/*
 * Registers of stage 1, whose writes trap where a guest's caches are watched, say what has been written to them: before
 * and after a cleaning by set and way, with stage 1 off and caches on, and with both on.
 */
#define WRITTEN(reg, value, to) "mov x2, #" #value "\nmsr " #reg ", x2\nmrs " #to ", " #reg "\n"
GUEST(guest_watched,
	WRITTEN(ttbr1_el1, 0x2000, x10) WRITTEN(esr_el1, 0x33, x11) WRITTEN(far_el1, 0x44, x12)
	WRITTEN(contextidr_el1, 0x55, x13)
	"mrs x5, sctlr_el1\norr x5, x5, #4\nmsr sctlr_el1, x5\nmrs x14, sctlr_el1\n"
	"dsb sy\ndc cisw, xzr\ndsb sy\n" WRITTEN(ttbr1_el1, 0x3000, x15) WRITTEN(far_el1, 0x77, x16)
	"ldr x4, =0x40004000\nldr x5, =0x401\nstr x5, [x4]\nldr x5, =0x40000705\nstr x5, [x4, #8]\n"
	"ldr x5, =0xff00\nmsr mair_el1, x5\nldr x5, =0x280003519\nmsr tcr_el1, x5\nmsr ttbr0_el1, x4\nisb\n"
	"mrs x17, mair_el1\nmrs x18, tcr_el1\nmrs x19, ttbr0_el1\n"
	"mrs x5, sctlr_el1\nldr x6, =0x1005\norr x5, x5, x6\nmsr sctlr_el1, x5\nisb\nmrs x20, sctlr_el1\n"
	"dsb sy\ndc csw, xzr\ndsb sy\n" WRITTEN(contextidr_el1, 0x88, x21)
	"ldr x22, [x4, #8]\nbic x5, x20, #4\nbic x5, x5, #1\nmsr sctlr_el1, x5\nisb\nmrs x23, sctlr_el1\n"
	"ldr x24, [x4, #8]\n" DONE ".ltorg\n");

TEST(watched_registers)
{
	static const struct { int x; uint64_t value; } is[] = {
		{ 10, 0x2000 }, { 11, 0x33 }, { 12, 0x44 }, { 13, 0x55 }, { 15, 0x3000 }, { 16, 0x77 }, { 17, 0xff00 },
		{ 18, 0x280003519 }, { 19, 0x40004000 }, { 21, 0x88 }, { 22, 0x40000705 }, { 24, 0x40000705 },
	};
	struct machine m = MACHINE(guest_watched);

	run_to_done(&m);
	for (size_t i = 0; i < ARRAY_SIZE(is); i++)
		CHECK_EQ(get_reg(&m, X(is[i].x)), is[i].value);
	CHECK_EQ(get_reg(&m, X(14)) & 5, 4);
	CHECK_EQ(get_reg(&m, X(20)) & 0x1005, 0x1005);
	CHECK_EQ(get_reg(&m, X(23)) & 0x1005, 0x1000);
}
