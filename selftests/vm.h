/* SPDX-License-Identifier: GPL-2.0 */
/* Virtual machines for the tests, on the bare ioctls. */
#ifndef VM_H
#define VM_H

#include "guest.h"
#include "harness.h"
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include "rvmm.h"

#ifndef KVM_CAP_USER_MEMORY2
#define KVM_CAP_USER_MEMORY2 231
#endif

#define MIB (1ull << 20)

/* Registers of the local APIC. */
#define LAPIC_EOI 0xfee000b0ull
#define LAPIC_SVR 0xf0
#define LAPIC_IRR 0x200

struct vm {
	int kvm, fd, vcpu;
	struct kvm_run *run;
	size_t run_bytes;
	uint8_t *mem;	/* guest memory from address 0 on, slot 0 */
	uint64_t bytes;
};

/* The device, opened; the test fails without it. */
int device_open(void);
/* Whether this is rvmm, and has the extension. */
bool has_extension(int kvm, unsigned int cap);
bool is_rvmm(void);
/* Host CPU. */
bool is_amd(void);
/* Test beds whose emulated CPU departs from the manuals in places. */
bool is_tcg(void);
bool is_bochs(void);

/* A VM with memory and no vCPU. */
void vm_init(struct vm *vm, uint64_t bytes);
/* A VM with memory and interrupt controllers in the kernel, and no vCPU. */
void vm_init_irqchip(struct vm *vm, uint64_t bytes);
/* vCPU with all supported CPUID. */
void vm_add_vcpu(struct vm *vm, unsigned int id);
/* A VM with memory and a vCPU, without and with interrupt controllers in the kernel. */
void vm_new(struct vm *vm, uint64_t bytes);
void vm_new_irqchip(struct vm *vm, uint64_t bytes);
/* Another vCPU of the same VM: a copy with its own vcpu and run. */
struct vm vm_second_vcpu(const struct vm *vm, unsigned int id);
void vm_free(struct vm *vm);
void vm_slot(struct vm *vm, unsigned int slot, unsigned int flags, uint64_t gpa, uint64_t bytes, void *memory);
/* KVM_ENABLE_CAP of a VM or vCPU with one argument; what ioctl() returns. */
int enable_cap(int fd, unsigned int cap, uint64_t value);
int try_slot(int fd, unsigned int slot, unsigned int flags, uint64_t gpa, uint64_t bytes, void *memory);

/* CPUID tables. */
struct kvm_cpuid2 *supported_cpuid(int kvm);
struct kvm_cpuid_entry2 *cpuid_entry(struct kvm_cpuid2 *table, uint32_t function, uint32_t index);
void set_supported_cpuid(int kvm, int vcpu);
/* The same, of a processor of that vendor's ("GenuineIntel"). */
void set_vendor(struct vm *vm, const char *vendor);
/* Hyper-V's leaves, which KVM offers from 40000000H on; the same in the place of KVM's own, for a vCPU. */
struct kvm_cpuid2 *hyperv_cpuid(int fd);
void set_hyperv_cpuid(int kvm, int vcpu);

/*
 * Copies code to G_CODE and puts the vCPU in front of it: real mode, flat 32-bit protected mode, 64-bit mode with
 * handlers.
 */
void vm_real(struct vm *vm, const unsigned char *code, const unsigned char *end);
void vm_prot(struct vm *vm, const unsigned char *code, const unsigned char *end);
void vm_long(struct vm *vm, const unsigned char *code, const unsigned char *end);
#define VM_REAL(vm, name) vm_real(vm, name, name##_end)
#define VM_PROT(vm, name) vm_prot(vm, name, name##_end)
#define VM_LONG(vm, name) vm_long(vm, name, name##_end)
/* The structures of 64-bit guests, without touching the vCPU; the vCPU's part. */
void vm_long_memory(struct vm *vm);
/* The descriptors of SEL_*, at G_GDT of a guest's memory. */
void write_gdt(uint8_t *memory);
/* The interrupt gate of a vector, for software of that privilege level as well. */
void vm_gate(struct vm *vm, unsigned int vector, unsigned int dpl, uint64_t address);
void vm_long_state(struct vm *vm);
/* A new VM of 4 MiB in 64-bit mode, ready to run the code. */
#define VM_NEW_LONG(vm, name) do { vm_new(vm, 4 * MIB); VM_LONG(vm, name); } while (0)
/*
 * A new VM of 4 MiB in 64-bit mode with interrupt controllers in the kernel, ready to run the code. The guest's handler
 * ends interrupts, for which the local APIC has to be software-enabled, by the guest or by vm_enable_lapic().
 */
#define VM_NEW_LONG_IRQCHIP(vm, name) do {		\
	vm_new_irqchip(vm, 4 * MIB);			\
	VM_LONG(vm, name);				\
	vm_log(vm)->eoi = LAPIC_EOI;			\
} while (0)
/* Makes VMCALL (0F 01 C1) in the first bytes of the code at G_CODE the instruction of the host's vendor. */
void vm_hypercalls(struct vm *vm, size_t bytes);
/* Sets bit 8 of the spurious-interrupt vector register (SDM 3A 11.9), without which a local APIC takes nothing. */
void vm_enable_lapic(struct vm *vm);

/* KVM_RUN; 0 or errno. */
int vm_try_run(struct vm *vm);
/* KVM_RUN, which has to succeed; the exit reason. */
unsigned int vm_run(struct vm *vm);
/* KVM_RUN that completes the last exit and runs no guest code; 0 or errno, mostly EINTR. */
int vm_complete(struct vm *vm);
/* KVM_RUN that has to end with this reason; else the test ends with what is known. */
void vm_expect(struct vm *vm, unsigned int reason);
/* Value that the guest wrote to a port. */
uint32_t vm_expect_out(struct vm *vm, unsigned int port);
/* OUTs of these bytes to port 0x10, one after the other. */
void vm_expect_bytes(struct vm *vm, const uint8_t *bytes, size_t n);
#define VM_EXPECT_BYTES(vm, ...) \
	vm_expect_bytes(vm, (const uint8_t[]) { __VA_ARGS__ }, sizeof((const uint8_t[]) { __VA_ARGS__ }))
/* Runs on over OUTs to port 0x10, keeping the values, until another exit, whose reason is returned. */
unsigned int vm_collect(struct vm *vm, uint32_t *values, size_t max, size_t *count);
const char *exit_name(unsigned int reason);

struct kvm_regs vm_regs(struct vm *vm);
void vm_set_regs(struct vm *vm, const struct kvm_regs *regs);
struct kvm_sregs vm_sregs(struct vm *vm);
void vm_set_sregs(struct vm *vm, const struct kvm_sregs *sregs);
struct kvm_vcpu_events vm_events(struct vm *vm);
/* One MSR; false when it does not exist. */
bool get_msr(struct vm *vm, uint32_t index, uint64_t *value);
bool set_msr(struct vm *vm, uint32_t index, uint64_t value);

/* Data of an IO exit. */
static inline void *io_data(struct vm *vm)
{
	return (uint8_t *)vm->run + vm->run->io.data_offset;
}

static inline struct guest_log *vm_log(struct vm *vm)
{
	return (struct guest_log *)(vm->mem + G_LOG);
}

static inline volatile uint64_t *vm_cells(struct vm *vm)
{
	return (volatile uint64_t *)(vm->mem + G_CELLS);
}

#endif
