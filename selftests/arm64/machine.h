/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A machine on Arm64 with one vCPU and memory, whose guests are a few instructions.
 *
 * A guest's code is at RAM, where it begins; what it finds it leaves in X registers, which the test reads.
 */
#ifndef MACHINE_H
#define MACHINE_H

#include "harness.h"
#include <fcntl.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define RAM 0x40000000ul
#define RAM_SIZE (32ul << 20)
#define DEVICE_AT 0x10000000ul

#define CORE_REG(member) (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(member))
#define X(n) (CORE_REG(regs.regs[0]) + 2 * (n))
#define V(n) (KVM_REG_ARM64 | KVM_REG_SIZE_U128 | KVM_REG_ARM_CORE | (KVM_REG_ARM_CORE_REG(fp_regs.vregs[0]) + 4 * (n)))

/*
 * A guest that ends with its last instruction; asm() of its own, so that nothing is compiled into it. Aligned as in
 * RAM.
 */
#define GUEST(name, text)								\
	extern const char name[], name##_end[];						\
	asm(".pushsection .rodata\n.p2align 12\n.global " #name ", " #name "_end\n" #name ":\n" text	\
	    "\n" #name "_end:\n.popsection\n")

/* Says by a store to the device that the guest is done. */
#define DONE "mov x30, #0x10000000\nstr wzr, [x30, #0xff0]\nb .\n"

struct machine {
	int kvm, vm, vcpu;
	struct kvm_run *run;
	char *ram;
};

static inline void make_vm(struct machine *m)
{
	m->kvm = OK(open(device, O_RDWR));
	m->vm = OK(ioctl(m->kvm, KVM_CREATE_VM, 0));
}

static inline void put_slot(struct machine *m, unsigned int slot, unsigned int flags, uint64_t at, size_t size,
			    void *where)
{
	struct kvm_userspace_memory_region r = { slot, flags, at, size, (uintptr_t)where };

	OK(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &r));
}

static inline void init_vcpu(struct machine *m)
{
	struct kvm_vcpu_init init = {};

	OK(ioctl(m->vm, KVM_ARM_PREFERRED_TARGET, &init));
	init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
	OK(ioctl(m->vcpu, KVM_ARM_VCPU_INIT, &init));
}

static inline void set_reg(struct machine *m, uint64_t id, uint64_t value)
{
	struct kvm_one_reg r = { id, (uintptr_t)&value };

	OK(ioctl(m->vcpu, KVM_SET_ONE_REG, &r));
}

static inline uint64_t get_reg(struct machine *m, uint64_t id)
{
	uint64_t value = 0;
	struct kvm_one_reg r = { id, (uintptr_t)&value };

	OK(ioctl(m->vcpu, KVM_GET_ONE_REG, &r));
	return value;
}

static inline void make_vcpu(struct machine *m)
{
	int size = OK(ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0));

	m->vcpu = OK(ioctl(m->vm, KVM_CREATE_VCPU, 0));
	m->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	REQUIRE(m->run != MAP_FAILED);
}

/* A machine with RAM and this guest, which has not begun. */
static inline struct machine machine(const char *code, const char *end)
{
	struct machine m;

	make_vm(&m);
	m.ram = mmap(NULL, 2 * RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(m.ram != MAP_FAILED);
	m.ram = (char *)(((uintptr_t)m.ram + RAM_SIZE - 1) & -RAM_SIZE);
	memcpy(m.ram, code, end - code);
	put_slot(&m, 0, 0, RAM, RAM_SIZE, m.ram);
	make_vcpu(&m);
	init_vcpu(&m);
	set_reg(&m, CORE_REG(regs.pc), RAM);
	return m;
}

#define MACHINE(guest) machine(guest, guest##_end)

static inline void run_to_mmio(struct machine *m)
{
	OK(ioctl(m->vcpu, KVM_RUN, 0));
	REQUIRE_EQ(m->run->exit_reason, KVM_EXIT_MMIO);
}

static inline void run_to_done(struct machine *m)
{
	run_to_mmio(m);
	REQUIRE_EQ(m->run->mmio.phys_addr, DEVICE_AT + 0xff0);
}

#endif
