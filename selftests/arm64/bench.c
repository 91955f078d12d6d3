// SPDX-License-Identifier: GPL-2.0
/*
 * What things cost on Arm64, in ticks of the counter, which in a bed that counts instructions are instructions
 * (tools/bench --bed arm). Each test prints one row: `# bench NAME TICKS`, a mean of some hundred times.
 */
#define _GNU_SOURCE
#include "gic.h"
#include <signal.h>

#define TIMES 500

static uint64_t now(void)
{
	uint64_t ticks;

	asm volatile("isb\nmrs %0, cntvct_el0" : "=r"(ticks) : : "memory");
	return ticks;
}

static void row(const char *name, uint64_t ticks, unsigned int times)
{
	printf("# bench %s %llu\n", name, (unsigned long long)(ticks / times));
	fflush(stdout);
}

/* X9 counts down from TIMES; the first round, which warms up, is before the first reading. X10 and X11: readings. */
#define LOOP(work)								\
	"mov x9, #500\n" work "isb\nmrs x10, cntvct_el0\n"			\
	"5:\n" work "subs x9, x9, #1\nb.ne 5b\nisb\nmrs x11, cntvct_el0\n" DONE

/* A handler that only counts, in X28; `first`: what it does before. */
#define COUNTING(first)								\
	".balign 2048\n7:\n.skip 0x280\nmrs x26, S3_0_C12_C12_0\n" first	\
	"add x28, x28, #1\nmsr S3_0_C12_C12_1, x26\nisb\neret\n"

static void guest_row(const char *name, struct machine *m)
{
	run_to_done(m);
	row(name, get_reg(m, X(11)) - get_reg(m, X(10)), TIMES);
}

#define GUEST_ROW(name, gic, ...)						\
	GUEST(guest_##name, __VA_ARGS__);					\
	TEST_SECONDS(name, 120)							\
	{									\
		struct machine m = MACHINE(guest_##name);			\
		if (gic)							\
			add_gic(&m);						\
		guest_row(#name, &m);						\
	}

GUEST_ROW(hvc, false, LOOP("ldr x0, =0x840000ff\nhvc #0\n") ".ltorg\n")
GUEST_ROW(id_register, false, LOOP("mrs x0, id_aa64isar0_el1\n"))
GUEST_ROW(gic_read, true, SETUP LOOP("ldr w0, [x20, #4]\n") VECTORS(""))
GUEST_ROW(gic_write, true, SETUP LOOP("str w9, [x20, #0x420]\n") VECTORS(""))
/* An SGI to itself, up to its end. */
GUEST_ROW(sgi_self, true, SETUP "msr daifclr, #2\n"
	  LOOP("mov x1, #1\nadd x2, x28, #1\nmsr S3_0_C12_C11_5, x1\nisb\n3:\ncmp x28, x2\nb.ne 3b\n")
	  COUNTING(""))
/* A deadline that has passed, up to the interrupt's end. */
#define TIMER(which)								\
	SETUP "mov w0, #0x48000000\nstr w0, [x21, #0x100]\nmsr daifclr, #2\n"	\
	LOOP("add x2, x28, #1\nmsr " which "_cval_el0, xzr\nmov x1, #1\nmsr " which "_ctl_el0, x1\nisb\n"	\
	     "3:\ncmp x28, x2\nb.ne 3b\n")					\
	COUNTING("msr " which "_ctl_el0, xzr\nisb\n")
GUEST_ROW(virtual_timer, true, TIMER("cntv"))
GUEST_ROW(physical_timer, true, TIMER("cntp"))

/* User space answers at once. */
GUEST(guest_mmio_user, "mov x1, #0x10000000\n" LOOP("str x0, [x1, #8]\n"));

TEST_SECONDS(mmio_user, 120)
{
	struct machine m = MACHINE(guest_mmio_user);

	do {
		run_to_mmio(&m);
	} while (m.run->mmio.phys_addr != DEVICE_AT + 0xff0);
	row("mmio_user", get_reg(&m, X(11)) - get_reg(&m, X(10)), TIMES);
}

/* Pages that user space has, each for the first time. */
GUEST(guest_faults, "ldr x1, =0x40400000\n" LOOP("ldr x0, [x1]\nadd x1, x1, #0x1000\n") ".ltorg\n");

TEST_SECONDS(nested_fault, 120)
{
	struct machine m = MACHINE(guest_faults);

	OK(madvise(m.ram, RAM_SIZE, MADV_NOHUGEPAGE));
	memset(m.ram + 0x400000, 1, RAM_SIZE - 0x400000);
	guest_row("nested_fault", &m);
}

/* To a vCPU that sleeps, which sends one back to this one, which sleeps meanwhile. */
GUEST(guest_ipi,
	SETUP "msr daifclr, #2\n"
	"ldr x0, =0xc4000003\nmov x1, #1\nldr x2, =0x40001000\nmov x3, #0\nhvc #0\n" WAIT_FOR(#1) "mov x19, #1\n"
	LOOP("add x19, x19, #1\nmov x1, #2\nmsr S3_0_C12_C11_5, x1\nisb\n" WAIT_FOR(x19)) ".ltorg\n"
	COUNTING("") ".balign 4096\n"
	"mov x20, #0x08000000\nmov x21, #0x080d0000\nmov x28, #0\nadr x0, 7f\nmsr vbar_el1, x0\n"
	"mov x0, #0xff\nmsr S3_0_C4_C6_0, x0\nmov x0, #1\nmsr S3_0_C12_C12_7, x0\nmov x19, #0\nmsr daifclr, #2\n"
	"6:\nmov x1, #1\nmsr S3_0_C12_C11_5, x1\nisb\nadd x19, x19, #1\n" WAIT_FOR(x19) "b 6b\n"
	COUNTING(""));

TEST_SECONDS(ipi_asleep, 120)
{
	struct machine m = MACHINE(guest_ipi);
	struct kvm_vcpu_init init = {};
	pthread_t thread;
	int second = OK(ioctl(m.vm, KVM_CREATE_VCPU, 1));

	OK(ioctl(m.vm, KVM_ARM_PREFERRED_TARGET, &init));
	init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2 | 1 << KVM_ARM_VCPU_POWER_OFF;
	OK(ioctl(second, KVM_ARM_VCPU_INIT, &init));
	add_gic(&m);
	REQUIRE(!pthread_create(&thread, NULL, run_second, (void *)(intptr_t)second));
	guest_row("ipi_asleep", &m);
}

/* A machine with one vCPU and its interrupt controller, and its end. */
TEST_SECONDS(create_vm, 120)
{
	uint64_t begin = 0;

	for (int i = 0; i < 21; i++) {
		struct machine m;

		if (i == 1)
			begin = now();
		m.kvm = OK(open(device, O_RDWR));
		m.vm = OK(ioctl(m.kvm, KVM_CREATE_VM, 0));
		m.vcpu = OK(ioctl(m.vm, KVM_CREATE_VCPU, 0));
		init_vcpu(&m);
		close(add_gic(&m));
		close(m.vcpu);
		close(m.vm);
		close(m.kvm);
	}
	row("create_vm", now() - begin, 20);
}
